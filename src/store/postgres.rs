//! Invites in a PostgreSQL database, for several servers that share them.
//!
//! All hosts of all servers may use one database; a process has one connection to it, shared by every store that
//! [`PostgresStore::shared`] hands out. A commit is on the database's disk before a call returns. The connection is
//! opened at the first call, never earlier: Prosody 0.12 forks with `-D` after it has loaded its modules. How long a
//! call may take, and what is tried again, is in [`connection`].
//!
//! # Locks
//! A transaction reads what a rule needs, asks the rule, and acts on the answer, at the isolation level READ COMMITTED,
//! where each statement sees what was committed before it. So that nothing is committed in between, it first locks:
//!
//! 1. the username, where one is to be claimed or bound (an advisory lock, for a name has no row),
//! 2. the inviter, where limits are to be kept (an advisory lock too),
//! 3. the invite (its row, `FOR UPDATE`), in the order of digests where there are several,
//!
//! always in this order, so that no two wait for each other. Claims are made under the locks of their invite and their
//! name, so whoever holds these sees all of them. Redeeming or releasing a claim needs no lock on the name: it makes
//! room, and whoever has just looked is told at worst that the name is busy.
//!
//! SERIALIZABLE would need no locks and be shorter. But PostgreSQL then watches whole pages, and the table of claims is
//! one page: whatever is redeemed at the same time is in each other's way. Measured: eight connections that claim and
//! redeem 300 invites each, none of them shared, take 2.1 s with the locks and do nothing twice; with SERIALIZABLE
//! they take 12 s and do 11,600 transactions again.
//!
//! # A commit that nobody answered
//! Each attempt to redeem bears a nonce, and each invite a digest that is drawn at random, so what a commit would have
//! left behind can be recognised. Where the deadline leaves no time to ask, the call fails, and the claim that it may
//! have made is held by nobody: [`PostgresStore`] keeps its nonce, and the next claim releases it.

mod address;
mod check;
mod connection;
mod statements;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use self::address::Address;
pub use self::address::AddressError;
use self::connection::{Connection, Params};
use self::statements::{
	ALL_INVITES, ALL_INVITES_LOCKED, CLAIM, CLAIMS, COUNT_OPEN, DUE_LOCKED, FIND, FIND_LOCKED, HISTORY_PART,
	INVITES_OF_INVITER, IS_CLAIMED, IS_DUE, OPEN_INVITES, OPEN_INVITES_OF_INVITERS_LOCKED,
	OPEN_INVITES_OF_USER, OPEN_INVITES_OF_USER_LOCKED, OPEN_PART, OVER, OVER_LOCKED, PURGE,
	PURGE_REDEMPTIONS, REDEEMED_CLAIM, RELEASE, RENEW, digest, digest_and_end, read_claim, read_invite,
};
use super::{Bundled, Carries, InviteStore, Record, StoreError};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::lineage::{Birth, Branch, Member};
use crate::listing::{Part, Position};
use crate::policy::{Allowance, LimitReached, Usage};
use crate::redemption::{Admission, Claim, Redeemed, Redemption, Refusal, View, supersedes};
use crate::token::{Digest, Nonce};

/// The stores that [`PostgresStore::shared`] has handed out, by connection string.
static STORES: LazyLock<Mutex<HashMap<String, Arc<PostgresStore>>>> = LazyLock::new(Mutex::default);

/// A database, connected to when it is first needed.
#[derive(Debug)]
pub struct PostgresStore {
	connection: Connection,
	/// Claims that a call which failed may have made: nobody holds them.
	forsaken: Mutex<Vec<Claim>>,
}

impl PostgresStore {
	/// The one store of this process for a connection string, which is a URL; what an empty one leaves out is in the
	/// environment, as for PostgreSQL's own tools. The first call for it says how long a call may take.
	///
	/// # Errors
	/// When the string is not understood, or asks for what is not offered.
	pub fn shared(url: &str, deadline: Duration) -> Result<Arc<Self>, AddressError> {
		let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
		if let Some(store) = stores.get(url) {
			return Ok(Arc::clone(store));
		}
		let store = Arc::new(Self::new(url, deadline)?);
		stores.insert(url.to_owned(), Arc::clone(&store));
		Ok(store)
	}

	/// Closes the connections that this process has open; the next call opens another. For the moment before a fork and
	/// for the end.
	pub fn close_shared() {
		for store in STORES.lock().unwrap_or_else(PoisonError::into_inner).values() {
			store.connection.close();
		}
	}

	/// A store with a connection of its own.
	///
	/// # Errors
	/// As of [`PostgresStore::shared`].
	pub fn new(url: &str, deadline: Duration) -> Result<Self, AddressError> {
		let address = Address::parse(url, |name| std::env::var(name).ok())?;
		Ok(Self { connection: Connection::new(address, deadline), forsaken: Mutex::default() })
	}

	fn forsaken(&self) -> MutexGuard<'_, Vec<Claim>> {
		self.forsaken.lock().unwrap_or_else(PoisonError::into_inner)
	}

	/// The nonces of a host's claims that nobody holds. Those that are stale are settled by whoever meets them.
	fn forsaken_nonces(&self, host: &str, now: Timestamp) -> Vec<Nonce> {
		let mut forsaken = self.forsaken();
		forsaken.retain(|claim| !claim.is_stale(now));
		forsaken.iter().filter(|claim| claim.host == host).map(|claim| claim.nonce).collect()
	}
}

impl InviteStore for PostgresStore {
	fn carries(&self) -> Carries {
		Carries::ALL
	}

	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError> {
		let doing = "storing an invite";
		let Some(username) = &invite.username else {
			// Nothing can be superseded, and one statement is a transaction of its own.
			let mut attempts = 0;
			return self.connection.call(doing, async |session| {
				attempts += 1;
				if session.insert(&[invite]).await?[0] {
					return Ok(Vec::new());
				}
				let found = session.find(FIND, &invite.host, &invite.digest).await?;
				if attempts > 1 && found.as_ref() == Some(invite) {
					return Ok(Vec::new());
				}
				Err(StoreError::Exists.into())
			});
		};
		self.connection.change(doing, async |session, lost: Option<&Vec<Invite>>| {
			session.lock_name(&invite.host, username).await?;
			if let Some(superseded) = lost
				&& session.find(FIND, &invite.host, &invite.digest).await?.is_some()
			{
				return Ok(superseded.clone());
			}
			Ok(session.create(invite, None).await?.unwrap_or_default())
		})
	}

	fn create_within(
		&self,
		invite: &Invite,
		allowance: &Allowance,
	) -> Result<Result<Vec<Invite>, LimitReached>, StoreError> {
		type Created = Result<Vec<Invite>, LimitReached>;
		self.connection.change("storing an invite", async |session, lost: Option<&Created>| {
			if let Some(username) = &invite.username {
				session.lock_name(&invite.host, username).await?;
			}
			// Locked by the attempt before until its commit took place or not.
			session.lock_inviter(&invite.host, &allowance.inviter).await?;
			if let Some(Ok(superseded)) = lost
				&& session.find(FIND, &invite.host, &invite.digest).await?.is_some()
			{
				return Ok(Ok(superseded.clone()));
			}
			session.create(invite, Some(allowance)).await
		})
	}

	fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Result<Usage, StoreError> {
		self.connection
			.call("counting the invites of a user", async |session| session.usage(host, allowance, now).await)
	}

	fn import(&self, records: &[Record]) -> Result<usize, StoreError> {
		// In one order, so that servers that import the same at once do not wait for each other.
		let mut records: Vec<_> = records.iter().collect();
		records.sort_by_key(|record| (&record.invite.host, record.invite.digest));
		let invites: Vec<_> = records.iter().map(|record| &record.invite).collect();
		let kept =
			self.connection.change("importing invites", async |session, lost: Option<&Vec<&Record>>| {
				if let Some(kept) = lost
					&& let Some(Record { invite, .. }) = kept.first()
					&& session.find(FIND, &invite.host, &invite.digest).await?.is_some()
				{
					return Ok(kept.clone());
				}
				let inserted = session.insert(&invites).await?;
				let kept: Vec<_> = records
					.iter()
					.zip(inserted)
					.filter(|(_, is_new)| *is_new)
					.map(|(record, _)| *record)
					.collect();
				for Record { invite, redemptions } in &kept {
					for redemption in redemptions {
						session.insert_redemption(&invite.host, &invite.digest, redemption).await?;
						if let Some(Birth::Brought(member)) = redemption.birth(invite) {
							session.keep_member(&invite.host, &member).await?;
						}
					}
				}
				Ok(kept)
			})?;
		Ok(kept.len())
	}

	fn records(&self, host: &str, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, StoreError> {
		self.connection.snapshot("reading invites", async |session| {
			let invites = session.page(ALL_INVITES, host, after, limit).await?;
			let used: Vec<_> =
				invites.iter().filter(|invite| invite.uses > 0).map(|invite| &invite.digest).collect();
			let mut redemptions: HashMap<Digest, Vec<Redemption>> = HashMap::new();
			for (digest, redemption) in session.redemptions(host, &used).await? {
				redemptions.entry(digest).or_default().push(redemption);
			}
			let record = |invite: Invite| {
				let redemptions = redemptions.remove(&invite.digest).unwrap_or_default();
				Record { invite, redemptions }
			};
			Ok(invites.into_iter().map(record).collect())
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
		let (next, is_done) = self.connection.call(doing, async |session| {
			let page = session.page(ALL_INVITES, host, after, limit).await?;
			let is_done = page.iter().all(|invite| invite.token.is_none());
			Ok((super::last_of_full_page(&page, limit), is_done))
		})?;
		if is_done {
			return Ok(next);
		}
		self.connection.change(doing, async |session, _: Option<&Option<Digest>>| {
			let mut page = session.page(ALL_INVITES_LOCKED, host, after, limit).await?;
			let next = super::last_of_full_page(&page, limit);
			page.retain_mut(Invite::forget_token);
			session.update(&page).await?;
			Ok(next)
		})
	}

	fn check(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.look(host, now)
	}

	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError> {
		self.connection.call("looking an invite up", async |session| session.find(FIND, host, digest).await)
	}

	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<Admission, Refusal>, StoreError> {
		let mut released = self.forsaken_nonces(&claim.host, now);
		released.extend(replaced);
		let nonce = &claim.nonce.as_bytes()[..];
		let claimed = self.connection.change(
			"claiming an invite",
			async |session, lost: Option<&Result<Admission, Refusal>>| {
				let decision = session.decide(claim, &released, now).await?;
				let was_made = lost.is_some_and(|decision| *decision == Ok(Admission::Claim));
				if was_made && session.is_there(IS_CLAIMED, &[&claim.host, &nonce]).await? {
					return Ok(Ok(Admission::Claim));
				}
				if decision == Ok(Admission::Claim) {
					let params: Params<'_> = &[
						&claim.host,
						&nonce,
						&&claim.digest.as_bytes()[..],
						&claim.purpose.as_str(),
						&claim.invitee,
						&&claim.boot.as_bytes()[..],
						&claim.lease_end,
					];
					session.execute(CLAIM, params).await?;
				}
				Ok(decision)
			},
		);
		if claimed.is_err() {
			self.forsaken().push(claim.clone());
		}
		claimed
	}

	fn redeem(
		&self,
		host: &str,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError> {
		self.connection.change("redeeming an invite", async |session, lost: Option<&Redeemed>| {
			session.find(FIND_LOCKED, host, digest).await?;
			let claims = session.all(REDEEMED_CLAIM, &[&host, &&nonce.as_bytes()[..]], read_claim).await?;
			if let Some(claim) = claims.first() {
				return Ok(session.count(claim, source, now).await?.map_or(Redeemed::Lost, Redeemed::Now));
			}
			if !session.is_redeemed(host, digest, nonce).await? {
				return Ok(Redeemed::Lost);
			}
			Ok(match lost {
				Some(now @ Redeemed::Now(_)) => now.clone(),
				_ => Redeemed::Before,
			})
		})
	}

	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Option<Invite>, Refusal>, StoreError> {
		let released = self.forsaken_nonces(&claim.host, now);
		self.connection.change(
			"redeeming an invite",
			async |session, lost: Option<&Result<Option<Invite>, Refusal>>| {
				let decision = session.decide(claim, &released, now).await?;
				if let Some(Ok(Some(invite))) = lost
					&& session.is_redeemed(&claim.host, &claim.digest, &claim.nonce).await?
				{
					return Ok(Ok(Some(invite.clone())));
				}
				match decision {
					Ok(Admission::Claim) => {
						Ok(session.count(claim, source, now).await?.ok_or(Refusal::Invalid).map(Some))
					}
					Ok(Admission::Known) => Ok(Ok(None)),
					Err(refusal) => Ok(Err(refusal)),
				}
			},
		)
	}

	fn release(&self, host: &str, nonce: &Nonce, only_stale: Option<Timestamp>) -> Result<bool, StoreError> {
		self.connection.change("releasing an invite", async |session, lost: Option<&bool>| {
			let params: Params<'_> = &[&host, &&nonce.as_bytes()[..], &only_stale];
			let released = session.execute(RELEASE, params).await? == 1;
			Ok(released || lost.copied().unwrap_or(false))
		})
	}

	fn renew(&self, host: &str, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, StoreError> {
		self.connection.call("renewing a claim", async |session| {
			Ok(session.execute(RENEW, &[&host, &&nonce.as_bytes()[..], &lease_end]).await? == 1)
		})
	}

	fn view(&self, claim: &Claim, now: Timestamp) -> Result<View, StoreError> {
		self.connection.snapshot("looking at an invite", async |session| {
			let invite = session.find(FIND, &claim.host, &claim.digest).await?;
			session.view(invite, claim, now).await
		})
	}

	fn claims(&self, host: &str) -> Result<Vec<Claim>, StoreError> {
		self.connection.call("looking for attempts under way", async |session| {
			session.all(CLAIMS, &[&host], read_claim).await
		})
	}

	fn view_name(&self, host: &str, username: &str, now: Timestamp) -> Result<View, StoreError> {
		self.connection.snapshot("looking a username up", async |session| {
			let claims = session.all(CLAIMS, &[&host], read_claim).await?;
			session.view_name(host, username, None, &claims, now).await
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
		self.connection.change("revoking an invite", async |session, lost: Option<&Option<Invite>>| {
			let Some(mut invite) = session.find(FIND_LOCKED, host, digest).await? else {
				return Ok(None);
			};
			if let Some(Some(revoked)) = lost
				&& *revoked == invite
			{
				return Ok(Some(invite));
			}
			if !invite.revoke(why, by, now) {
				return Ok(None);
			}
			session.update(std::slice::from_ref(&invite)).await?;
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
		let has_any = self.connection.call(doing, async |session| {
			let open = session.all(OPEN_INVITES_OF_USER, &[&host, &username], read_invite).await?;
			Ok(open.iter().any(which))
		})?;
		if !has_any {
			return Ok(Vec::new());
		}
		self.connection.change(doing, async |session, lost: Option<&Vec<Invite>>| {
			let retired = session.retire(host, username, which, why, now).await?;
			session.with_lost(retired, lost).await
		})
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
		self.connection.change(doing, async |session, lost: Option<&Vec<Invite>>| {
			let mut inviters = Branch::of(inviter);
			while let Some(next) = inviters.next_inviter() {
				inviters.add(if is_branch { session.brought_by(host, &next).await? } else { Vec::new() });
			}
			let inviters: Vec<String> = inviters.places().into_iter().map(|place| place.username).collect();
			let mut retired =
				session.all(OPEN_INVITES_OF_INVITERS_LOCKED, &[&host, &inviters], read_invite).await?;
			retired.retain_mut(|invite| invite.revoke(why, by, now));
			session.update(&retired).await?;
			session.with_lost(retired, lost).await
		})
	}

	fn made_by(&self, host: &str, inviter: &str) -> Result<Vec<Invite>, StoreError> {
		self.connection.call("listing the invites of an inviter", async |session| {
			session.all(INVITES_OF_INVITER, &[&host, &inviter], read_invite).await
		})
	}

	fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, StoreError> {
		self.connection
			.call("listing whom somebody brought", async |session| session.brought_by(host, inviter).await)
	}

	fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, StoreError> {
		self.connection
			.call("looking up who brought an account", async |session| session.lineage(host, username).await)
	}

	fn import_lineage(&self, host: &str, members: &[Member]) -> Result<usize, StoreError> {
		self.connection.change("importing who brought whom", async |session, lost: Option<&usize>| {
			let mut kept = 0;
			for member in members {
				kept += usize::from(session.keep_member(host, member).await?);
			}
			// What the attempt before has kept is known to this one.
			Ok(lost.copied().unwrap_or(0).max(kept))
		})
	}

	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError> {
		self.connection.change("pausing or resuming an invite", async |session, lost: Option<&bool>| {
			let Some(mut invite) = session.find(FIND_LOCKED, host, digest).await? else {
				return Ok(false);
			};
			if invite.ended_at.is_some() {
				return Ok(false);
			}
			if invite.paused == paused {
				return Ok(lost.copied().unwrap_or(false));
			}
			invite.paused = paused;
			session.update(&[invite]).await?;
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
		type Extended = Option<(Invite, Vec<Invite>)>;
		self.connection.change("extending an invite", async |session, lost: Option<&Extended>| {
			let Some(Invite { username, .. }) = session.find(FIND, host, digest).await? else {
				return Ok(None);
			};
			if let Some(username) = &username {
				session.lock_name(host, username).await?;
				// In the order of digests: the invite itself is one of them, or has ended.
				session.query(OPEN_INVITES_OF_USER_LOCKED, &[&host, username]).await?;
			}
			let Some(mut invite) = session.find(FIND_LOCKED, host, digest).await? else {
				return Ok(None);
			};
			if let Some(Some((extended, superseded))) = lost
				&& *extended == invite
			{
				return Ok(Some((invite, superseded.clone())));
			}
			if !invite.extend(expires) {
				return Ok(None);
			}
			let mut superseded = Vec::new();
			if let Some(username) = &username {
				let which = |other: &Invite| other.digest != *digest && supersedes(&invite, other);
				superseded = session.retire(host, username, &which, super::SUPERSEDED, now).await?;
			}
			session.update(std::slice::from_ref(&invite)).await?;
			Ok(Some((invite, superseded)))
		})
	}

	fn end_expired(&self, host: &str, limit: u32, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		let doing = "ending expired invites";
		// Nearly always there is none, and looking for them needs no lock.
		let is_due =
			self.connection.call(doing, async |session| session.is_there(IS_DUE, &[&host, &now]).await)?;
		if !is_due {
			return Ok(Vec::new());
		}
		self.connection.change(doing, async |session, lost: Option<&Vec<Invite>>| {
			let params: Params<'_> = &[&host, &now, &i64::from(limit)];
			let mut ended = session.all(DUE_LOCKED, params, read_invite).await?;
			for invite in &mut ended {
				invite.ended_at = invite.expires;
			}
			session.update(&ended).await?;
			session.with_lost(ended, lost).await
		})
	}

	fn open_invites(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Vec<Invite>, StoreError> {
		self.connection
			.call("listing invites", async |session| session.page(OPEN_INVITES, host, after, limit).await)
	}

	fn listing(
		&self,
		host: &str,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		let (digest, limit) = (&after.digest.as_bytes()[..], i64::from(limit));
		self.connection.call("listing invites", async |session| match part {
			Part::Open => session.all(OPEN_PART, &[&host, &after.at, &digest, &limit], read_invite).await,
			Part::History => {
				session.all(HISTORY_PART, &[&host, &after.at, &digest, &limit, &now], read_invite).await
			}
		})
	}

	fn count_open(
		&self,
		host: &str,
		after: &Position,
		limit: u32,
	) -> Result<(u32, Option<Position>), StoreError> {
		let (digest, limit) = (&after.digest.as_bytes()[..], i64::from(limit));
		self.connection.call("counting invites", async |session| {
			let rows = session.query(COUNT_OPEN, &[&host, &after.at, &digest, &limit]).await?;
			let is_last = i64::try_from(rows.len()).is_ok_and(|found| found < limit);
			let last = match rows.last() {
				Some(row) if !is_last => {
					Some(Position { at: row.try_get("created_at")?, digest: self::digest(row)? })
				}
				_ => None,
			};
			Ok((u32::try_from(rows.len()).unwrap_or(u32::MAX), last))
		})
	}

	fn purge(&self, host: &str, before: Timestamp, limit: u32, bundled: &Bundled) -> Result<u32, StoreError> {
		let doing = "purging invites";
		// Nearly always there is none, and looking for them needs no lock.
		let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
		let mut over = Vec::new();
		for looked_at in [limit, bundled.looked_at(limit)] {
			over = self.connection.call(doing, async |session| {
				session.all(OVER, &[&host, &before, &i64::from(looked_at)], digest_and_end).await
			})?;
			let has_all = over.len() < wanted;
			over.retain(|(digest, expires)| !bundled.spares(digest, *expires, before));
			if has_all || over.len() >= wanted {
				break;
			}
		}
		over.truncate(wanted);
		if over.is_empty() {
			return Ok(0);
		}
		let over: Vec<_> = over.iter().map(|(digest, _)| &digest.as_bytes()[..]).collect();
		let purged = self.connection.change(doing, async |session, lost: Option<&Vec<Digest>>| {
			let over = session.all(OVER_LOCKED, &[&host, &before, &over], digest).await?;
			let over: Vec<_> = over.iter().map(|digest| &digest.as_bytes()[..]).collect();
			let mut purged = session.all(PURGE, &[&host, &over], digest).await?;
			let gone: Vec<_> = purged.iter().map(|digest| &digest.as_bytes()[..]).collect();
			session.execute(PURGE_REDEMPTIONS, &[&host, &gone]).await?;
			// Had the commit failed, they would be the first again.
			if let Some(lost) = lost.filter(|lost| lost.first().is_some_and(|first| !purged.contains(first)))
			{
				purged.extend(lost);
			}
			Ok(purged)
		})?;
		Ok(u32::try_from(purged.len()).unwrap_or(u32::MAX))
	}

	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError> {
		let found = self.connection.call("listing the uses of an invite", async |session| {
			session.redemptions(host, &[digest]).await
		})?;
		Ok(found.into_iter().map(|(_, redemption)| redemption).collect())
	}
}
