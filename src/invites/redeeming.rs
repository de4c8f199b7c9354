//! Redeeming invites: a claim, and then its use or its release.

use std::slice;

use super::ending::ACCOUNT_GONE;
use super::finding::check;
use super::{Attempt, Invites, Orphan, apply_endings, boot, cut, keep_member, peek, stored};
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::{Invite, Kind};
use crate::lineage::Birth;
use crate::redemption::{
	Account, Admission, Claim, LEASE, Purpose, Redeemed, Redemption, Refusal, View, decide, decide_name,
	reserves,
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
		decide(&self.view(&claim, now)?, &claim, now)?;
		Ok(())
	}

	/// Claims an invite for one attempt to redeem it, in the place of the holder's earlier claim. The claim is to be
	/// redeemed or released; if the store fails, both are for [`Invites::release_left`]. None for somebody who is let in
	/// without another use ([`Admission::Known`]).
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
			Admission::Claim => Some(claim.nonce),
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
		let mut released = self.orphans_at(now);
		released.extend(replaced);
		// From now on it has a holder.
		self.orphans().retain(|orphan| orphan.nonce != claim.nonce);
		let claimed = self.write(CLAIMING, &name_of(claim), |rows| {
			let decision = decide(&self.view_in(rows, claim, &released, now)?, claim, now);
			if decision == Ok(Admission::Claim) {
				rows.insert_claim(claim)?;
			}
			Ok(decision)
		});
		if claimed.is_err() {
			// A commit that was reported as failed may be found in the log later.
			let mut orphans = self.orphans();
			orphans.extend(replaced.map(|nonce| Orphan { nonce: *nonce, lease_end: None }));
			orphans.push(Orphan { nonce: claim.nonce, lease_end: Some(claim.lease_end) });
		}
		claimed
	}

	/// The claims that nobody holds, without those that are stale: whoever meets these settles them.
	fn orphans_at(&self, now: Timestamp) -> Vec<Nonce> {
		let mut orphans = self.orphans();
		orphans.retain(|orphan| orphan.lease_end.is_none_or(|lease_end| now <= lease_end));
		orphans.iter().map(|orphan| orphan.nonce).collect()
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
		let released = self.orphans_at(now);
		self.write(REDEEMING, &name_of(claim), |rows| {
			let view = self.view_in(rows, claim, &released, now)?;
			Ok(match (decide(&view, claim, now), view.invite) {
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
			boot: boot()?,
			lease_end: now.saturating_add(LEASE),
		})
	}

	/// Turns a claim into a use. The invite as it then is, or none if that was done before.
	///
	/// # Errors
	/// [`InviteError::ClaimLost`]. Where the store fails the claim stands, and this is to be tried again.
	pub fn redeem(
		&self,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		match self.use_claim(digest, nonce, source.map(cut), now)? {
			Redeemed::Now(invite) => Ok(Some(invite)),
			Redeemed::Before => Ok(None),
			Redeemed::Lost => Err(InviteError::ClaimLost),
		}
	}

	/// Turns a claim into a use, whatever was done to the invite since: who holds a claim has been let in.
	pub(crate) fn use_claim(
		&self,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError> {
		self.write(REDEEMING, &[], |rows| {
			// Whatever ends it.
			let found = stored(rows, digest)?;
			if let Some(claim) = rows.take_claims(slice::from_ref(nonce))?.pop() {
				let claimed = if claim.digest == *digest { found } else { stored(rows, &claim.digest)? };
				return Ok(match claimed {
					Some(invite) => Redeemed::Now(record_use(rows, invite, &claim, source, now)?),
					None => Redeemed::Lost,
				});
			}
			let uses = rows.redemptions(slice::from_ref(digest))?;
			let is_redeemed = uses.iter().any(|(_, redemption)| redemption.nonce == *nonce);
			Ok(if is_redeemed { Redeemed::Before } else { Redeemed::Lost })
		})
	}

	/// Gives a claim back, because the attempt failed. `false` if there was none any more.
	///
	/// # Errors
	/// When the store fails; the claim is then for [`Invites::release_left`].
	pub fn release(&self, nonce: &Nonce) -> Result<bool, InviteError> {
		let released =
			self.write(RELEASING, &[], |rows| Ok(!rows.take_claims(slice::from_ref(nonce))?.is_empty()));
		if released.is_err() {
			self.orphans().push(Orphan { nonce: *nonce, lease_end: None });
		}
		Ok(released?)
	}

	/// Gives a claim back, unless it was renewed meanwhile.
	pub(crate) fn release_stale(&self, nonce: &Nonce, now: Timestamp) -> Result<bool, StoreError> {
		self.write(RELEASING, &[], |rows| {
			let Some(claim) = rows.take_claims(slice::from_ref(nonce))?.pop() else { return Ok(false) };
			let is_stale = claim.is_stale(now);
			if !is_stale {
				rows.insert_claim(&claim)?;
			}
			Ok(is_stale)
		})
	}

	/// Releases the claims that are there because a call failed.
	///
	/// # Errors
	/// When the store fails still; this is to be tried again.
	pub fn release_left(&self) -> Result<(), InviteError> {
		if self.orphans().is_empty() {
			return Ok(());
		}
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

	/// The claims of this process whose lease is over: whoever made them does not renew them any more.
	pub fn own_stale_claims(&self, now: Timestamp) -> Result<Vec<Claim>, InviteError> {
		let boot = boot()?;
		let mut claims = self.claims()?;
		claims.retain(|claim| claim.boot == boot && claim.is_stale(now));
		Ok(claims)
	}

	/// All claims of the host.
	pub(crate) fn claims(&self) -> Result<Vec<Claim>, StoreError> {
		self.look("looking for attempts under way", |rows| rows.claims())
	}

	/// Keeps a claim for another lease. `false` if there was none any more.
	pub fn renew(&self, nonce: &Nonce, now: Timestamp) -> Result<bool, InviteError> {
		Ok(self.renew_until(nonce, now.saturating_add(LEASE))?)
	}

	pub(crate) fn renew_until(&self, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, StoreError> {
		super::kept(
			|rows| rows.renew_claim(nonce, lease_end),
			|work| self.store.renew("renewing a claim", self.host(), work),
		)
	}

	/// Settles a claim whose owner died. `account` is what was to come out of it: the account registered, or, for a
	/// contact, `Active` if the inviter has the contact. If it came about, the claim becomes its use, and the invite as it
	/// then is is returned; if not, it is released; if nobody can say, it stays. A reset that was cut off may be repeated,
	/// for it is bound to its user.
	pub fn settle(
		&self,
		digest: &Digest,
		nonce: &Nonce,
		account: Account,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		let kind = self.known(digest)?.map(|invite| invite.kind());
		match account {
			Account::Active | Account::Disabled if kind != Some(Kind::Reset) => {
				match self.use_claim(digest, nonce, Some(SETTLED), now)? {
					Redeemed::Now(invite) => return Ok(Some(invite)),
					Redeemed::Before | Redeemed::Lost => (),
				}
			}
			Account::Unknown | Account::NotFound => (),
			Account::Active | Account::Disabled | Account::Missing => {
				self.release_stale(nonce, now)?;
			}
		}
		Ok(None)
	}

	/// Whether a username may be registered without any invite.
	///
	/// # Errors
	/// Why not.
	pub fn check_name(&self, username: &str, now: Timestamp) -> Result<(), InviteError> {
		Ok(decide_name(&self.view_of_name(username, now)?, now)?)
	}

	/// What [`decide_name`] needs to know of a username.
	pub(crate) fn view_of_name(&self, username: &str, now: Timestamp) -> Result<View, StoreError> {
		self.read("looking a username up", |rows| {
			let claims = rows.claims()?;
			view_name(rows, username, None, &claims, now)
		})
	}
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
