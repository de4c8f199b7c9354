//! Redeeming invites: a claim, and then its use or its release.

use std::collections::BTreeMap;
use std::slice;
use std::time::Instant;

use super::ending::ACCOUNT_GONE;
use super::finding::check;
use super::{Invites, apply_endings, boot, cut, keep_member, peek, stored};
use crate::attempts::{Attempt, Made};
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::{Invite, Kind};
use crate::lineage::Birth;
use crate::redemption::{
	Account, Admission, Claim, Life, Loss, Purpose, Redeemed, Redemption, Refusal, View, decide, decide_lost,
	decide_name, reserves,
};
use crate::store::{Lock, Pick, Rows, StoreError, TxError};
use crate::token::{Digest, Nonce};

/// Reported as the source of a use whose server died before it could report it.
const SETTLED: &str = "settled after a crash";

const CLAIMING: &str = "claiming an invite";
const REDEEMING: &str = "redeeming an invite";
const RELEASING: &str = "releasing an invite";

impl Invites {
	/// Whether an invite is good as far as the accounts go that it depends on. An invite does not outlive its inviter:
	/// if one of the accounts is proved to be gone, it is revoked, so that it does not come back with another account of
	/// that name.
	///
	/// # Errors
	/// [`InviteError::AccountGone`], [`InviteError::OwnerDisabled`], [`InviteError::AccountNotFound`].
	pub fn confirm(
		&self,
		digest: &Digest,
		accounts: &[(String, Account)],
		now: Timestamp,
	) -> Result<(), InviteError> {
		match check_accounts(accounts) {
			Err(InviteError::AccountGone(_)) => {
				let revoked = self.revoke(digest, Some(ACCOUNT_GONE), None, now)?;
				Err(InviteError::AccountGone(revoked.map(Box::new)))
			}
			checked => checked,
		}
	}

	/// Whether an attempt to redeem an invite, presented and made at once, would succeed. Changes nothing.
	///
	/// # Errors
	/// Why it would not.
	pub fn why(&self, attempt: Attempt, now: Timestamp) -> Result<(), InviteError> {
		check(&self.find(&attempt.digest)?, attempt.purpose, now)?;
		check_accounts(&attempt.depends_on)?;
		let claim = self.draw_claim(attempt, now)?;
		decide(&self.view(&claim, now)?, &claim)?;
		Ok(())
	}

	/// Claims an invite for one attempt to redeem it, in the place of the holder's earlier claim. The claim is to be
	/// redeemed or released; if the store fails, both are released by a [review](Invites::review). None for somebody who is
	/// let in without another use ([`Admission::Known`]).
	///
	/// # Errors
	/// Why it may not be redeemed.
	pub fn claim(
		&self,
		attempt: Attempt,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Option<Nonce>, InviteError> {
		let claim = self.prepare_claim(attempt, now)?;
		Ok(match self.make_claim(&claim, replaced, now)?? {
			Admission::Claim => {
				self.attempts().begin(claim.nonce);
				Some(claim.nonce)
			}
			Admission::Known => None,
		})
	}

	/// Makes a claim if [`decide`] asks for it. The holder's earlier claim is released first, whatever the decision.
	pub(crate) fn make_claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<Admission, Refusal>, StoreError> {
		// Before there is a claim, for others look whether its owner lives.
		self.store.hold(&claim.boot)?;
		let mut released = self.attempts().orphans().to_vec();
		if let Some(replaced) = replaced {
			self.attempts().forget(replaced);
			released.push(*replaced);
		}
		// From now on it has a holder.
		self.attempts().adopt(slice::from_ref(&claim.nonce));
		let claimed = self.write(CLAIMING, &name_of(claim), |rows| {
			let decision = decide(&self.view_in(rows, claim, &released, now)?, claim);
			if decision == Ok(Admission::Claim) {
				rows.insert_claim(claim)?;
			}
			Ok(decision)
		});
		if claimed.is_err() {
			// A commit that was reported as failed may be found in the log later.
			self.attempts().release_later(replaced.into_iter().chain([&claim.nonce]).copied());
		}
		claimed
	}

	/// What [`decide`] needs to know of a claim, which is not made.
	pub(crate) fn view(&self, claim: &Claim, now: Timestamp) -> Result<View, StoreError> {
		self.read("looking at an invite", |rows| self.view_in(rows, claim, &[], now))
	}

	/// The same, once some claims are released.
	fn view_in(
		&self,
		rows: &mut dyn Rows,
		claim: &Claim,
		released: &[Nonce],
		now: Timestamp,
	) -> Result<View, TxError> {
		// Locked before its claims are read: from now on nobody makes one. What is attached to it decides nothing.
		let mut invite = rows.invite(&claim.digest)?;
		apply_endings(rows, invite.as_mut_slice())?;
		if !released.is_empty() {
			rows.take_claims(released)?;
		}
		let claims = rows.claims()?;
		let of_name = match username(claim) {
			Some(name) => view_name(rows, name, Some(&claim.digest), &claims, now)?,
			None => View::default(),
		};
		let is_known = match claim.contact() {
			Some((jid, username)) if self.carries().history => {
				rows.is_known(&claim.digest, jid, username.as_deref())?
			}
			_ => false,
		};
		let claims = claims.into_iter().filter(|other| other.digest == claim.digest).collect();
		Ok(View { invite, claims, is_known, ..of_name })
	}

	/// Claims and redeems in one step, for a caller that has done already what the invite is for. None for somebody who is
	/// let in without another use.
	///
	/// # Errors
	/// Why it may not be redeemed.
	pub fn redeem_at_once(
		&self,
		attempt: Attempt,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		let claim = self.prepare_claim(attempt, now)?;
		Ok(self.use_at_once(&claim, source.map(cut), now)??)
	}

	/// The same of a claim that is ready. The invite as it stands after the use; none where [`Admission::Known`] needs none.
	pub(crate) fn use_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Option<Invite>, Refusal>, StoreError> {
		let released = self.attempts().orphans().to_vec();
		self.write(REDEEMING, &name_of(claim), |rows| {
			let view = self.view_in(rows, claim, &released, now)?;
			Ok(match (decide(&view, claim), view.invite) {
				(Ok(Admission::Claim), Some(invite)) => {
					Ok(Some(record_use(rows, super::whole(invite)?, claim, source, now)?))
				}
				(Ok(Admission::Claim), None) => Err(Refusal::Invalid),
				(Ok(Admission::Known), _) => Ok(None),
				(Err(refusal), _) => Err(refusal),
			})
		})
	}

	fn prepare_claim(&self, attempt: Attempt, now: Timestamp) -> Result<Claim, InviteError> {
		self.confirm(&attempt.digest, &attempt.depends_on, now)?;
		self.draw_claim(attempt, now)
	}

	fn draw_claim(&self, attempt: Attempt, now: Timestamp) -> Result<Claim, InviteError> {
		Ok(Claim {
			host: self.host.clone(),
			nonce: Nonce::generate()?,
			digest: attempt.digest,
			purpose: attempt.purpose,
			invitee: attempt.invitee,
			boot: self.boot()?,
			made_at: Some(now),
			renewals: 0,
		})
	}

	/// Names the process that these invites are used by.
	fn boot(&self) -> Result<Nonce, InviteError> {
		self.boot.map_or_else(boot, Ok)
	}

	/// Turns the claim of an attempt into a use. The invite as it then is, or none if that was done before.
	///
	/// # Errors
	/// [`InviteError::ClaimLost`]. Where the store fails the claim stands, and a [review](Invites::review) tries again.
	pub fn redeem(
		&self,
		attempt: Attempt,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		let redeemed = self.redeem_once(attempt.clone(), nonce, source, now);
		let mut attempts = self.attempts();
		if redeemed.as_ref().is_err_and(InviteError::may_pass) {
			attempts.redeem_later(*nonce, Made { attempt, source: source.map(str::to_owned) });
		} else {
			attempts.forget(nonce);
			attempts.answered();
		}
		redeemed
	}

	fn redeem_once(
		&self,
		attempt: Attempt,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		let digest = attempt.digest;
		let claim = Claim { nonce: *nonce, ..self.draw_claim(attempt, now)? };
		match self.use_claim(&claim, source.map(cut), now)? {
			Redeemed::Now(invite) => Ok(Some(invite)),
			Redeemed::Before => Ok(None),
			Redeemed::Lost(loss) => Err(InviteError::ClaimLost {
				id: digest.id().to_string(),
				is_taken_back: loss == Loss::TakenBack,
			}),
		}
	}

	/// Turns a claim into a use, whatever was done to the invite since: who holds a claim has been let in. `wanted` is what
	/// was claimed. Where the claim is gone, the invite is redeemed afresh if it can be.
	pub(crate) fn use_claim(
		&self,
		wanted: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError> {
		self.write(REDEEMING, &[], |rows| {
			// Whatever has ended it since, or is about to.
			let found = stored(rows, &wanted.digest)?;
			if let Some(claim) = rows.take_claims(slice::from_ref(&wanted.nonce))?.pop() {
				let claimed =
					if claim.digest == wanted.digest { found } else { stored(rows, &claim.digest)? };
				return Ok(match claimed {
					Some(invite) => Redeemed::Now(record_use(rows, invite, &claim, source, now)?),
					None => Redeemed::Lost(Loss::Stays),
				});
			}
			let uses = rows.redemptions(slice::from_ref(&wanted.digest))?;
			if uses.iter().any(|(_, redemption)| redemption.nonce == wanted.nonce) {
				return Ok(Redeemed::Before);
			}
			use_afresh(rows, found, wanted, source, now)
		})
	}

	/// Gives a claim back, because the attempt failed. `false` if there was none any more.
	///
	/// # Errors
	/// When the store fails; the claim is then released by a [review](Invites::review).
	pub fn release(&self, nonce: &Nonce) -> Result<bool, InviteError> {
		self.attempts().forget(nonce);
		let released =
			self.write(RELEASING, &[], |rows| Ok(!rows.take_claims(slice::from_ref(nonce))?.is_empty()));
		if released.is_err() {
			self.attempts().release_later([*nonce]);
		}
		Ok(released?)
	}

	/// Releases all claims on an invite, because an operator says so. How many there were.
	pub fn release_claims(&self, digest: &Digest) -> Result<usize, InviteError> {
		Ok(self.write(RELEASING, &[], |rows| {
			// From now on nobody makes one.
			rows.invite(digest)?;
			let claims = rows.claims()?.into_iter().filter(|claim| claim.digest == *digest);
			let nonces: Vec<Nonce> = claims.map(|claim| claim.nonce).collect();
			Ok(rows.take_claims(&nonces)?.len())
		})?)
	}

	/// Releases the claims that are there because a call failed, as every change of the store does.
	pub(super) fn release_orphans(&self) -> Result<(), InviteError> {
		Ok(self.write(RELEASING, &[], |_| Ok(()))?)
	}

	/// The claim that this very process made for such an attempt, if there is one. When a host is deactivated and activated
	/// again in the middle of a registration, nobody in the server remembers it, and it would stand in its own way.
	pub fn own_claim(&self, attempt: Attempt, now: Timestamp) -> Result<Option<Nonce>, InviteError> {
		let wanted = self.draw_claim(attempt, now)?;
		let is_same = |claim: &Claim| {
			claim.boot == wanted.boot
				&& claim.digest == wanted.digest
				&& claim.purpose == wanted.purpose
				&& claim.invitee == wanted.invitee
		};
		Ok(self.claims()?.into_iter().find(is_same).map(|claim| claim.nonce))
	}

	/// The claims that may be settled now: those of processes that are over, and those of which no sign of life was seen for a
	/// whole lease, by looks like this one; `mono` is the present moment by the monotonic clock. Of the claims of this
	/// process, those may that no attempt holds, and none has taken over for a lease. Where the store fails, what was seen
	/// before is worth nothing.
	pub fn look_at_claims(&self, mono: Instant) -> Result<Vec<Claim>, InviteError> {
		let own = self.boot()?;
		let looked = self.look("looking for attempts under way", |rows| {
			let claims = rows.claims()?;
			let mut lives = BTreeMap::new();
			for Claim { boot, .. } in &claims {
				if *boot != own && !lives.contains_key(boot) {
					lives.insert(*boot, rows.life(boot)?);
				}
			}
			Ok((claims, lives))
		});
		let mut watch = self.watch();
		let (claims, lives) = looked.inspect_err(|_| watch.clear())?;
		let mut owners: BTreeMap<Nonce, (Life, Vec<Claim>)> = BTreeMap::new();
		for claim in claims {
			// Nobody vouches for one of our own that nobody holds, so each is watched by itself.
			let (owner, life) = match lives.get(&claim.boot) {
				Some(life) => (claim.boot, *life),
				None if self.attempts().holds(&claim.nonce) => continue,
				None => (claim.nonce, Life::Unknown { connection: 0 }),
			};
			owners.entry(owner).or_insert_with(|| (life, Vec::new())).1.push(claim);
		}
		watch.retain(|owner| owners.contains_key(owner));
		let mut settled = Vec::new();
		for (owner, (life, claims)) in owners {
			let renewals: Vec<(Nonce, i64)> =
				claims.iter().map(|claim| (claim.nonce, claim.renewals)).collect();
			if watch.may_settle(owner, life, &renewals, mono) {
				settled.extend(claims);
			}
		}
		Ok(settled)
	}

	/// All claims of the host.
	pub(crate) fn claims(&self) -> Result<Vec<Claim>, StoreError> {
		self.look("looking for attempts under way", |rows| rows.claims())
	}

	/// Shows that the owner of a claim lives. `false` if there is no such claim any more.
	pub fn renew(&self, nonce: &Nonce) -> Result<bool, InviteError> {
		self.store.hold(&self.boot()?)?;
		let renewed = super::kept(
			|rows| rows.renew_claim(nonce),
			|work| self.store.renew("renewing a claim", self.host(), work),
		);
		Ok(renewed.inspect_err(|error| self.note_failure(error))?)
	}

	/// Settles a claim that [`Invites::look_at_claims`] has named. `account` is what was to come out of it: the account
	/// registered, or, for a contact, `Active` if the inviter has the contact. If it came about, the claim becomes its use,
	/// and the invite as it then is is returned; if not, it is released; if nobody can say, it stays. A reset that was cut
	/// off may be repeated, for it is bound to its user. If its owner turns out to live, or an attempt of ours has taken it
	/// over, nothing is done.
	pub fn settle(
		&self,
		claim: &Claim,
		account: Account,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		let came_about = match account {
			Account::Unknown | Account::NotFound => return Ok(None),
			Account::Active | Account::Disabled => true,
			Account::Missing => false,
		};
		let own = self.boot()?;
		if self.attempts().holds(&claim.nonce) {
			return Ok(None);
		}
		Ok(self.write("settling a claim", &name_of(claim), |rows| {
			let found = stored(rows, &claim.digest)?;
			if claim.boot != own && rows.life(&claim.boot)? == Life::Alive {
				return Ok(None);
			}
			let Some(taken) = rows.take_claims(slice::from_ref(&claim.nonce))?.pop() else { return Ok(None) };
			if taken.renewals != claim.renewals {
				rows.insert_claim(&taken)?;
				return Ok(None);
			}
			match found.filter(|invite| came_about && invite.kind() != Kind::Reset) {
				Some(invite) => Ok(Some(record_use(rows, invite, &taken, Some(SETTLED), now)?)),
				None => Ok(None),
			}
		})?)
	}

	/// The claims on an invite, for an operator: each with whether its owner lives.
	pub fn claims_on(&self, digest: &Digest) -> Result<Vec<(Claim, Life)>, InviteError> {
		Ok(self.look("looking for attempts under way", |rows| {
			let claims = rows.claims()?.into_iter().filter(|claim| claim.digest == *digest);
			claims.map(|claim| rows.life(&claim.boot).map(|life| (claim, life))).collect()
		})?)
	}

	/// Whether a username may be registered without any invite.
	///
	/// # Errors
	/// Why not.
	pub fn check_name(&self, username: &str, now: Timestamp) -> Result<(), InviteError> {
		Ok(decide_name(&self.view_of_name(username, now)?)?)
	}

	/// What [`decide_name`] needs to know of a username.
	pub(crate) fn view_of_name(&self, username: &str, now: Timestamp) -> Result<View, StoreError> {
		self.read("looking a username up", |rows| {
			let claims = rows.claims()?;
			view_name(rows, username, None, &claims, now)
		})
	}
}

/// What becomes of an attempt whose claim somebody has released.
fn use_afresh(
	rows: &mut dyn Rows,
	found: Option<Invite>,
	wanted: &Claim,
	source: Option<&str>,
	now: Timestamp,
) -> Result<Redeemed, TxError> {
	let claims = rows.claims()?;
	let of_name = match username(wanted) {
		Some(name) => view_name(rows, name, Some(&wanted.digest), &claims, now)?,
		None => View::default(),
	};
	let claims = claims.into_iter().filter(|claim| claim.digest == wanted.digest).collect();
	let view = View { invite: found, claims, ..of_name };
	let is_named = |rows: &mut dyn Rows| username(wanted).map_or(Ok(false), |name| rows.is_named(name));
	let loss = match decide_lost(&view, wanted, false) {
		Loss::TakenBack => decide_lost(&view, wanted, is_named(rows)?),
		other => other,
	};
	Ok(match (loss, view.invite) {
		(Loss::Afresh, Some(invite)) => Redeemed::Now(record_use(rows, invite, wanted, source, now)?),
		(loss, _) => Redeemed::Lost(loss),
	})
}

/// The name of the account that is to be made, if one is.
fn username(claim: &Claim) -> Option<&str> {
	claim.invitee.as_deref().filter(|_| claim.purpose == Purpose::Account)
}

fn name_of(claim: &Claim) -> Vec<Lock<'_>> {
	username(claim).map(Lock::Name).into_iter().collect()
}

/// The claims for a username and whether an invite other than `except` reserves it.
fn view_name(
	rows: &mut dyn Rows,
	username: &str,
	except: Option<&Digest>,
	claims: &[Claim],
	now: Timestamp,
) -> Result<View, TxError> {
	let is_on_name =
		|claim: &&Claim| claim.purpose == Purpose::Account && claim.invitee.as_deref() == Some(username);
	Ok(View {
		claims_on_name: claims.iter().filter(is_on_name).cloned().collect(),
		is_reserved: peek(rows, Pick::Bound(username), u32::MAX)?
			.iter()
			.any(|invite| Some(&invite.digest) != except && reserves(invite, username, now)),
		..View::default()
	})
}

/// Records the use that a claim has become, and what it means for lineage.
fn record_use(
	rows: &mut dyn Rows,
	mut invite: Invite,
	claim: &Claim,
	source: Option<&str>,
	now: Timestamp,
) -> Result<Invite, TxError> {
	let redemption = Redemption {
		nonce: claim.nonce,
		purpose: claim.purpose,
		invitee: claim.invitee.clone(),
		source: source.map(str::to_owned),
		used_at: now,
	};
	rows.insert_redemption(&invite.digest, &redemption)?;
	match redemption.birth(&invite) {
		Some(Birth::Brought(member)) => drop(keep_member(rows, &member)?),
		Some(Birth::Alone(username)) => rows.remove_member(&username)?,
		None => (),
	}
	invite.add_use(now);
	rows.update(slice::from_ref(&invite))?;
	Ok(invite)
}

/// Whether an invite is good as far as the accounts go that it depends on.
fn check_accounts(accounts: &[(String, Account)]) -> Result<(), InviteError> {
	let mut checked = Ok(());
	for (username, account) in accounts {
		match account {
			Account::Active | Account::Unknown => (),
			Account::Disabled => checked = Err(InviteError::OwnerDisabled(username.clone())),
			Account::NotFound => checked = Err(InviteError::AccountNotFound(username.clone())),
			// The one answer that does not change any more.
			Account::Missing => return Err(InviteError::AccountGone(None)),
		}
	}
	checked
}
