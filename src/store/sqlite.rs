//! Invites in an embedded SQLite database: the default.
//!
//! One file for all hosts of a server, one connection to it per process, shared by every [`SqliteStore`] that
//! [`SqliteStore::shared`] hands out. Several processes may use the file at once (the server and
//! prosodyctl). A commit is on the disk before a call returns.
//!
//! The connection is opened at the first call, never earlier: Prosody 0.12 forks with `-D` after it has loaded
//! its modules, and a connection that crosses a fork loses committed rows.

pub mod backup;
mod check;
mod checkpoint;
mod connection;
mod files;
mod statements;

use rusqlite::{Connection, Transaction, TransactionBehavior, named_params};

pub use self::connection::SqliteStore;
use self::connection::Trouble;
use self::statements::{
	ALL_INVITES, COUNT_OPEN, DUE, HISTORY_PART, IMPORT, INVITES_OF_INVITER, IS_REDEEMED,
	OPEN_INVITES_OF_INVITER, OPEN_PART, PURGE, PURGE_REDEMPTIONS, RENEW, all, brought_by, count, create,
	find, insert, insert_redemption, keep_member, lineage, open_invites_of_user, over, page, read_claim,
	read_invite, redemptions, release, retire, update, usage, view, view_name,
};
pub use self::statements::{
	BROUGHT, CLAIM, CLAIMS, CREATE, FIND, LINEAGE, OPEN_INVITES, OPEN_INVITES_OF_USER, REDEEMED_CLAIM,
	REDEMPTION, UPDATE,
};
use super::{Bundled, Carries, InviteStore, Record, StoreError};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::lineage::{Birth, Member, branch};
use crate::listing::{Part, Position};
use crate::policy::{Allowance, LimitReached, Usage, decide_creation};
use crate::redemption::{Admission, Claim, Redeemed, Redemption, Refusal, View, decide, supersedes};
use crate::token::{Digest, Nonce};

impl InviteStore for SqliteStore {
	fn carries(&self) -> Carries {
		Carries::ALL
	}

	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError> {
		let doing = "storing an invite";
		if invite.username.is_none() {
			// Nothing can be superseded, and one statement is a transaction of its own.
			return self.write(doing, |connection| create(connection, invite));
		}
		self.change(doing, |connection| create(connection, invite))
	}

	fn create_within(
		&self,
		invite: &Invite,
		allowance: &Allowance,
	) -> Result<Result<Vec<Invite>, LimitReached>, StoreError> {
		self.change("storing an invite", |connection| {
			let usage = usage(connection, &invite.host, allowance, invite.created_at)?;
			match decide_creation(invite, allowance, &usage, invite.created_at) {
				Ok(()) => create(connection, invite).map(Ok),
				Err(reached) => Ok(Err(reached)),
			}
		})
	}

	fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Result<Usage, StoreError> {
		self.with("counting the invites of a user", |connection| usage(connection, host, allowance, now))
	}

	fn import(&self, records: &[Record]) -> Result<usize, StoreError> {
		self.change("importing invites", |connection| {
			let mut kept = 0;
			for Record { invite, redemptions } in records {
				if insert(connection, &IMPORT, invite)? {
					kept += 1;
					for redemption in redemptions {
						insert_redemption(connection, &invite.host, &invite.digest, redemption)?;
						if let Some(Birth::Brought(member)) = redemption.birth(invite) {
							keep_member(connection, &invite.host, &member)?;
						}
					}
				}
			}
			Ok(kept)
		})
	}

	fn records(&self, host: &str, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, StoreError> {
		self.with("reading invites", |connection| {
			// A transaction, so that no use comes between an invite and its uses.
			let transaction = connection.unchecked_transaction()?;
			let records = page(&transaction, ALL_INVITES, host, after, limit)?
				.into_iter()
				.map(|invite| {
					let redemptions = if invite.uses > 0 {
						redemptions(&transaction, host, &invite.digest)?
					} else {
						Vec::new()
					};
					Ok(Record { invite, redemptions })
				})
				.collect::<Result<_, Trouble>>()?;
			transaction.commit()?;
			Ok(records)
		})
	}

	fn forget_tokens(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Option<Digest>, StoreError> {
		let doing = "taking tokens out of invites";
		// Nearly always there is none, and looking for them needs no lock.
		let (next, is_done) = self.with(doing, |connection| {
			let page = page(connection, ALL_INVITES, host, after, limit)?;
			let is_done = page.iter().all(|invite| invite.token.is_none());
			Ok((super::last_of_full_page(&page, limit), is_done))
		})?;
		if is_done {
			return Ok(next);
		}
		self.change(doing, |connection| {
			let mut page = page(connection, ALL_INVITES, host, after, limit)?;
			for invite in &mut page {
				if invite.forget_token() {
					update(connection, invite)?;
				}
			}
			Ok(super::last_of_full_page(&page, limit))
		})
	}

	fn check(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.look(host, now)
	}

	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError> {
		self.look_up("looking an invite up", |connection| find(connection, host, digest))
	}

	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<Admission, Refusal>, StoreError> {
		self.change("claiming an invite", |connection| {
			if let Some(replaced) = replaced {
				release(connection, &claim.host, replaced, None)?;
			}
			let decision = decide(&view(connection, claim, now)?, claim, now);
			if decision == Ok(Admission::Claim) {
				connection.prepare_cached(CLAIM)?.execute(named_params! {
					":host": claim.host,
					":nonce": claim.nonce.as_bytes(),
					":digest": claim.digest.as_bytes(),
					":purpose": claim.purpose.as_str(),
					":invitee": claim.invitee,
					":boot": claim.boot.as_bytes(),
					":lease_end": claim.lease_end,
				})?;
			}
			Ok(decision)
		})
	}

	fn redeem(
		&self,
		host: &str,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError> {
		self.change("redeeming an invite", |connection| {
			let params = named_params! { ":host": host, ":nonce": nonce.as_bytes() };
			if let Some(claim) = all(connection, REDEEMED_CLAIM, params, read_claim)?.first() {
				return Ok(count(connection, claim, source, now)?.map_or(Redeemed::Lost, Redeemed::Now));
			}
			let is_redeemed = connection.prepare_cached(IS_REDEEMED)?.exists(
				named_params! { ":host": host, ":digest": digest.as_bytes(), ":nonce": nonce.as_bytes() },
			)?;
			Ok(if is_redeemed { Redeemed::Before } else { Redeemed::Lost })
		})
	}

	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Option<Invite>, Refusal>, StoreError> {
		self.change("redeeming an invite", |connection| {
			match decide(&view(connection, claim, now)?, claim, now) {
				Ok(Admission::Claim) => {
					Ok(count(connection, claim, source, now)?.ok_or(Refusal::Invalid).map(Some))
				}
				Ok(Admission::Known) => Ok(Ok(None)),
				Err(refusal) => Ok(Err(refusal)),
			}
		})
	}

	fn release(&self, host: &str, nonce: &Nonce, only_stale: Option<Timestamp>) -> Result<bool, StoreError> {
		self.write("releasing an invite", |connection| release(connection, host, nonce, only_stale))
	}

	fn renew(&self, host: &str, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, StoreError> {
		self.write("renewing a claim", |connection| {
			let renewed = connection.prepare_cached(RENEW)?.execute(
				named_params! { ":host": host, ":nonce": nonce.as_bytes(), ":lease_end": lease_end },
			)?;
			Ok(renewed == 1)
		})
	}

	fn view(&self, claim: &Claim, now: Timestamp) -> Result<View, StoreError> {
		self.with("looking at an invite", |connection| {
			// Several reads that have to fit together.
			let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
			view(&transaction, claim, now)
		})
	}

	fn claims(&self, host: &str) -> Result<Vec<Claim>, StoreError> {
		self.with("looking for attempts under way", |connection| {
			all(connection, CLAIMS, named_params! { ":host": host }, read_claim)
		})
	}

	fn view_name(&self, host: &str, username: &str, now: Timestamp) -> Result<View, StoreError> {
		self.with("looking a username up", |connection| {
			let claims = all(connection, CLAIMS, named_params! { ":host": host }, read_claim)?;
			view_name(connection, host, username, None, &claims, now)
		})
	}

	fn revoke(
		&self,
		host: &str,
		digest: &Digest,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, StoreError> {
		self.change("revoking an invite", |connection| {
			let Some(mut invite) = find(connection, host, digest)? else {
				return Ok(None);
			};
			if !invite.revoke(why, by, now) {
				return Ok(None);
			}
			update(connection, &invite)?;
			Ok(Some(invite))
		})
	}

	fn retire(
		&self,
		host: &str,
		username: &str,
		which: &dyn Fn(&Invite) -> bool,
		why: &str,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		let doing = "retiring the invites of a user";
		// Most users have none, and looking for them needs no lock.
		let has_any = self.with(doing, |connection| {
			Ok(open_invites_of_user(connection, host, username)?.iter().any(which))
		})?;
		if !has_any {
			return Ok(Vec::new());
		}
		self.change(doing, |connection| retire(connection, host, username, which, why, now))
	}

	fn retire_inviter(
		&self,
		host: &str,
		inviter: &str,
		is_branch: bool,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		let doing = "revoking the invites of an inviter";
		// Most users have none, and looking for them needs no lock.
		if !is_branch {
			let params = named_params! { ":host": host, ":inviter": inviter };
			let has_any = |connection: &Connection| {
				Ok(connection.prepare_cached(OPEN_INVITES_OF_INVITER)?.exists(params)?)
			};
			if !self.with(doing, has_any)? {
				return Ok(Vec::new());
			}
		}
		self.change(doing, |connection| {
			let inviters = branch(inviter, |inviter| {
				if is_branch { brought_by(connection, host, inviter) } else { Ok(Vec::new()) }
			})?;
			let mut retired = Vec::new();
			for place in inviters {
				let params = named_params! { ":host": host, ":inviter": place.username };
				for mut invite in all(connection, OPEN_INVITES_OF_INVITER, params, read_invite)? {
					if invite.revoke(why, by, now) {
						update(connection, &invite)?;
						retired.push(invite);
					}
				}
			}
			Ok(retired)
		})
	}

	fn made_by(&self, host: &str, inviter: &str) -> Result<Vec<Invite>, StoreError> {
		self.with("listing the invites of an inviter", |connection| {
			let params = named_params! { ":host": host, ":inviter": inviter };
			all(connection, INVITES_OF_INVITER, params, read_invite)
		})
	}

	fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, StoreError> {
		self.with("listing whom somebody brought", |connection| brought_by(connection, host, inviter))
	}

	fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, StoreError> {
		self.with("looking up who brought an account", |connection| lineage(connection, host, username))
	}

	fn import_lineage(&self, host: &str, members: &[Member]) -> Result<usize, StoreError> {
		self.change("importing who brought whom", |connection| {
			let mut kept = 0;
			for member in members {
				kept += usize::from(keep_member(connection, host, member)?);
			}
			Ok(kept)
		})
	}

	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError> {
		self.change("pausing or resuming an invite", |connection| {
			let Some(mut invite) = find(connection, host, digest)? else {
				return Ok(false);
			};
			if invite.ended_at.is_some() || invite.paused == paused {
				return Ok(false);
			}
			invite.paused = paused;
			update(connection, &invite)?;
			Ok(true)
		})
	}

	fn extend(
		&self,
		host: &str,
		digest: &Digest,
		expires: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Option<(Invite, Vec<Invite>)>, StoreError> {
		self.change("extending an invite", |connection| {
			let Some(mut invite) = find(connection, host, digest)? else {
				return Ok(None);
			};
			if !invite.extend(expires) {
				return Ok(None);
			}
			let mut superseded = Vec::new();
			if let Some(username) = &invite.username {
				let which = |other: &Invite| other.digest != *digest && supersedes(&invite, other);
				superseded = retire(connection, host, username, &which, super::SUPERSEDED, now)?;
			}
			update(connection, &invite)?;
			Ok(Some((invite, superseded)))
		})
	}

	fn end_expired(&self, host: &str, limit: u32, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		let doing = "ending expired invites";
		let params = named_params! { ":host": host, ":now": now, ":limit": limit };
		let due = |connection: &Connection| all(connection, DUE, params, read_invite);
		// Nearly always there is none, and looking for them needs no lock.
		if self.with(doing, |connection| Ok(due(connection)?.is_empty()))? {
			return Ok(Vec::new());
		}
		self.change(doing, |connection| {
			let mut ended = due(connection)?;
			for invite in &mut ended {
				invite.ended_at = invite.expires;
				update(connection, invite)?;
			}
			Ok(ended)
		})
	}

	fn open_invites(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Vec<Invite>, StoreError> {
		self.with("listing invites", |connection| page(connection, OPEN_INVITES, host, after, limit))
	}

	fn listing(
		&self,
		host: &str,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		self.with("listing invites", |connection| {
			let (at, digest) = (after.at, after.digest.as_bytes());
			match part {
				Part::Open => {
					let params =
						named_params! { ":host": host, ":at": at, ":digest": digest, ":limit": limit };
					all(connection, OPEN_PART, params, read_invite)
				}
				Part::History => {
					let params = named_params! {
						":host": host, ":at": at, ":digest": digest, ":limit": limit, ":now": now
					};
					all(connection, HISTORY_PART, params, read_invite)
				}
			}
		})
	}

	fn count_open(
		&self,
		host: &str,
		after: &Position,
		limit: u32,
	) -> Result<(u32, Option<Position>), StoreError> {
		self.with("counting invites", |connection| {
			let mut statement = connection.prepare_cached(COUNT_OPEN)?;
			let mut rows = statement.query(named_params! {
				":host": host, ":at": after.at, ":digest": after.digest.as_bytes(), ":limit": limit
			})?;
			let (mut count, mut last) = (0, None);
			while let Some(row) = rows.next()? {
				count += 1;
				if count == limit {
					let digest = Digest::from_bytes(row.get("digest")?);
					last = Some(Position { at: row.get("created_at")?, digest });
				}
			}
			Ok((count, last))
		})
	}

	fn purge(&self, host: &str, before: Timestamp, limit: u32, bundled: &Bundled) -> Result<u32, StoreError> {
		let doing = "purging invites";
		let looked_at = bundled.looked_at(limit);
		let over = |connection: &Connection| {
			let params = named_params! { ":host": host, ":before": before, ":limit": looked_at };
			over(connection, params, limit, |digest, expires| !bundled.spares(digest, expires, before))
		};
		// Nearly always there is none, and looking for them needs no lock.
		if self.with(doing, |connection| Ok(over(connection)?.is_empty()))? {
			return Ok(0);
		}
		self.change(doing, |connection| {
			let digests = over(connection)?;
			for digest in &digests {
				for statement in [PURGE_REDEMPTIONS, PURGE] {
					connection
						.prepare_cached(statement)?
						.execute(named_params! { ":host": host, ":digest": digest.as_bytes() })?;
				}
			}
			Ok(u32::try_from(digests.len()).unwrap_or(u32::MAX))
		})
	}

	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError> {
		self.with("listing the uses of an invite", |connection| redemptions(connection, host, digest))
	}
}

#[cfg(test)]
mod tests;
