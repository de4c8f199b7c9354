//! The invites of one host: making them, finding them, redeeming them.

use std::borrow::Cow;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::check::Finding;
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::{Invite, Kind, Type};
use crate::lifecycle::State;
use crate::lineage::{self, Member, Place};
use crate::listing::{Filter, Part, Position};
use crate::policy::{Allowance, decide_creation};
use crate::redemption::{
	Account, Admission, Claim, LEASE, Purpose, Redeemed, Redemption, decide, decide_name,
};
use crate::store::{Bundled, Carries, InviteStore, Record, StoreError};
use crate::token::{Digest, ID_DIGITS, IdPrefix, Nonce, Token};
use crate::value::MAX_ATTACHED;

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct Request {
	/// What the invite is made for.
	pub invite_type: Type,
	/// The inviter of a roster invite, the bound name of a register one. Nodeprepped.
	pub username: Option<String>,
	/// Whether it resets the password of `username`.
	pub is_reset: bool,
	/// The account of `username`, for a register invite that has one.
	pub account: Option<Account>,
	/// Whether it may be redeemed for an account.
	pub allow_registration: bool,
	/// Seconds until it expires; none: never.
	pub ttl: Option<i64>,
	/// How often it may be redeemed; none: until it expires.
	pub max_uses: Option<u32>,
}

/// Somebody tries to redeem an invite.
#[derive(Clone, Debug)]
pub struct Attempt {
	/// The invite.
	pub digest: Digest,
	/// What for.
	pub purpose: Purpose,
	/// As [`Claim::invitee`].
	pub invitee: Option<String>,
	/// The accounts that the invite depends on ([`Invite::depends_on`]).
	pub depends_on: Vec<(String, Account)>,
}

/// Why invites are revoked whose inviter, or whose account to be reset, is gone.
const ACCOUNT_GONE: &str = "the account that it depends on was deleted";

/// Reported as the source of a use whose server died before it could report it.
const SETTLED: &str = "settled after a crash";

/// What the store keeps of the tokens of pending invites (option `invite_token_at_rest`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtRest {
	/// The token itself.
	#[default]
	Plain,
	/// Its digest alone, so that who gets hold of the store gets no token. What needs no token works as before; invites
	/// are listed, shown and revoked by their public ids.
	Digest,
}

/// The invites of one host in one store.
#[derive(Clone)]
pub struct Invites {
	host: String,
	store: Arc<dyn InviteStore>,
	at_rest: AtRest,
	/// Claims that nobody holds, and that may be there all the same: the call that made or released them failed.
	left: Arc<Mutex<Vec<Nonce>>>,
}

impl Invites {
	/// The invites of `host`, as Prosody writes it, in `store`.
	pub fn new(host: String, store: Arc<dyn InviteStore>) -> Self {
		Self { host, store, at_rest: AtRest::Plain, left: Arc::default() }
	}

	/// The same, keeping so much of the tokens.
	#[must_use]
	pub fn keeping(self, at_rest: AtRest) -> Self {
		Self { at_rest, ..self }
	}

	/// An invite as it is stored.
	fn at_rest<'a>(&self, invite: &'a Invite) -> Cow<'a, Invite> {
		match self.at_rest {
			AtRest::Plain => Cow::Borrowed(invite),
			AtRest::Digest => {
				let mut invite = invite.clone();
				invite.forget_token();
				Cow::Owned(invite)
			}
		}
	}

	/// The host.
	#[must_use]
	pub fn host(&self) -> &str {
		&self.host
	}

	/// Makes a complete invite without storing it, so that others may look at it and change it first.
	///
	/// # Errors
	/// When its account is there that it is to make, or is not there whose password it is to reset; or when the
	/// operating system gives no random bytes.
	pub fn prepare(&self, request: Request, now: Timestamp) -> Result<(Invite, Token), InviteError> {
		match (request.is_reset, request.account) {
			(false, Some(Account::Active | Account::Disabled)) => return Err(InviteError::AccountExists),
			(true, Some(Account::Missing)) => return Err(InviteError::AccountMissing),
			(true, Some(Account::Disabled)) => return Err(InviteError::AccountDisabled),
			(true, Some(Account::NotFound)) => {
				return Err(InviteError::AccountNotFound(request.username.unwrap_or_default()));
			}
			_ => (),
		}
		let token = Token::generate()?;
		let invite = Invite {
			invite_type: request.invite_type,
			username: request.username,
			allow_registration: request.allow_registration,
			expires: request.ttl.map(|ttl| now.saturating_add(ttl)),
			max_uses: request.max_uses,
			..Invite::new(self.host.clone(), token.digest(), Some(token.clone()), now)
		};
		Ok((invite, token))
	}

	/// Stores a prepared invite. When this returns `Ok` it is on the disk. Returns the older invites that it took
	/// the place of.
	///
	/// # Errors
	/// When the store fails.
	pub fn save(&self, invite: &Invite) -> Result<Vec<Invite>, InviteError> {
		Ok(self.store.create(&self.at_rest(invite))?)
	}

	/// Stores many prepared invites in one transaction. None of them is bound to a username: these take the place of others.
	///
	/// # Errors
	/// When the store fails.
	pub fn save_all(&self, invites: &[Record]) -> Result<(), InviteError> {
		if self.import(invites)? < invites.len() {
			return Err(StoreError::Exists.into());
		}
		Ok(())
	}

	/// Whether somebody with these limits may make a prepared invite, as things stand. Stores nothing.
	///
	/// # Errors
	/// [`InviteError::LimitReached`], or the store's failure.
	pub fn check_limits(
		&self,
		invite: &Invite,
		allowance: &Allowance,
		now: Timestamp,
	) -> Result<(), InviteError> {
		Ok(decide_creation(invite, allowance, &self.store.usage(&self.host, allowance, now)?, now)?)
	}

	/// Stores a prepared invite for somebody with limits, as [`Invites::save`] does without.
	///
	/// # Errors
	/// [`InviteError::LimitReached`], or the store's failure.
	pub fn save_within(&self, invite: &Invite, allowance: &Allowance) -> Result<Vec<Invite>, InviteError> {
		Ok(self.store.create_within(&self.at_rest(invite), allowance)??)
	}

	/// Takes over invites that were made elsewhere. A token that is known here stays as it is, used or revoked as it may
	/// be. How many were new.
	///
	/// # Errors
	/// When the store fails.
	pub fn import(&self, records: &[Record]) -> Result<usize, InviteError> {
		if self.at_rest == AtRest::Plain {
			return Ok(self.store.import(records)?);
		}
		let records: Vec<Record> = records
			.iter()
			.map(|record| Record { invite: self.at_rest(&record.invite).into_owned(), ..record.clone() })
			.collect();
		Ok(self.store.import(&records)?)
	}

	/// What the store can keep.
	#[must_use]
	pub fn carries(&self) -> Carries {
		self.store.carries()
	}

	/// A page of all invites, whatever became of them, with their uses, in the order of their digests.
	///
	/// # Errors
	/// When the store fails.
	pub fn records(&self, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, InviteError> {
		Ok(self.store.records(&self.host, after, limit)?)
	}

	/// Looks the storage over for an operator.
	#[must_use]
	pub fn check(&self, now: Timestamp) -> Vec<Finding> {
		let mut findings = self.store.check(&self.host, now);
		if self.at_rest == AtRest::Digest {
			findings.push(match self.has_tokens() {
				Ok(true) => Finding::warning(
					"tokens from before invite_token_at_rest = \"digest\" lie in the store: a server that is started forgets them",
				),
				Ok(false) => Finding::ok("no token lies in the store"),
				Err(error) => Finding::critical(error.to_string()),
			});
		}
		findings
	}

	/// Whether the store has the token of an open invite.
	fn has_tokens(&self) -> Result<bool, InviteError> {
		const PAGE: u32 = 500;
		let mut after = None;
		loop {
			let page = self.store.open_invites(&self.host, after.as_ref(), PAGE)?;
			if page.iter().any(|invite| invite.token.is_some()) {
				return Ok(true);
			}
			after = page.last().map(|invite| invite.digest);
			if u32::try_from(page.len()).is_ok_and(|found| found < PAGE) {
				return Ok(false);
			}
		}
	}

	/// The invite behind what somebody presents as a token, if it is good for the purpose now.
	///
	/// # Errors
	/// [`InviteError::TokenInvalid`], [`InviteError::TokenExpired`], or the store's failure.
	pub fn get(&self, presented: &[u8], purpose: Purpose, now: Timestamp) -> Result<Invite, InviteError> {
		let invite = self.find(&Digest::of(presented))?;
		check(&invite, purpose, now)?;
		Ok(invite)
	}

	/// The invite with this public id, if it is good for the purpose now: where the store keeps no token, nothing else names
	/// it. Not for redeeming it: an id is no secret.
	///
	/// # Errors
	/// As of [`Invites::get`]; [`InviteError::TokenInvalid`] too where the store keeps tokens.
	pub fn get_by_id(&self, id: &[u8], purpose: Purpose, now: Timestamp) -> Result<Invite, InviteError> {
		let invite = self.find(&self.identify(id)?)?;
		check(&invite, purpose, now)?;
		Ok(invite)
	}

	/// What callers name that had to do with an id where others have a token.
	///
	/// # Errors
	/// [`InviteError::TokenInvalid`], or the store's failure.
	pub fn identify(&self, id: &[u8]) -> Result<Digest, InviteError> {
		match self.at_rest {
			AtRest::Digest if id.len() == ID_DIGITS => self.resolve(id),
			_ => Err(InviteError::TokenInvalid),
		}
	}

	/// Takes the tokens out of up to `limit` invites that follow `after` in the order of their digests, where the store is
	/// to keep none. Where to go on, unless those were the last.
	///
	/// # Errors
	/// When the store fails.
	pub fn forget_tokens(&self, after: Option<&Digest>, limit: u32) -> Result<Option<Digest>, InviteError> {
		match self.at_rest {
			AtRest::Plain => Ok(None),
			AtRest::Digest => Ok(self.store.forget_tokens(&self.host, after, limit)?),
		}
	}

	/// The invite in whatever state.
	///
	/// # Errors
	/// [`InviteError::TokenInvalid`] if there is none, or the store's failure.
	pub fn find(&self, digest: &Digest) -> Result<Invite, InviteError> {
		self.store.find(&self.host, digest)?.ok_or(InviteError::TokenInvalid)
	}

	/// The invite that an operator names, by its token or by the beginning of its public id. Not for redeeming it: an id is
	/// no secret.
	///
	/// # Errors
	/// [`InviteError::TokenInvalid`], [`InviteError::IdAmbiguous`], or the store's failure.
	pub fn resolve(&self, named: &[u8]) -> Result<Digest, InviteError> {
		let digest = Digest::of(named);
		if self.store.find(&self.host, &digest)?.is_some() {
			return Ok(digest);
		}
		let prefix = std::str::from_utf8(named).ok().and_then(IdPrefix::parse);
		let prefix = prefix.ok_or(InviteError::TokenInvalid)?;
		// Two are enough to see that it is not unique.
		let mut found = self.store.records(&self.host, prefix.before.as_ref(), 2)?;
		found.retain(|record| record.invite.digest <= prefix.last);
		match found.as_slice() {
			[] => Err(InviteError::TokenInvalid),
			[record] => Ok(record.invite.digest),
			_ => Err(InviteError::IdAmbiguous),
		}
	}

	/// Every use of an invite, in the order in which they were made.
	///
	/// # Errors
	/// When the store fails.
	pub fn redemptions(&self, digest: &Digest) -> Result<Vec<Redemption>, InviteError> {
		Ok(self.store.redemptions(&self.host, digest)?)
	}

	/// Whether an invite is good as far as the accounts go that it depends on. An invite does not outlive its inviter:
	/// if one of the accounts is proved to be gone, it is revoked, so that it does not come back with another account of
	/// that name.
	///
	/// # Errors
	/// [`InviteError::AccountGone`], [`InviteError::OwnerDisabled`], [`InviteError::AccountNotFound`], or the store's failure.
	pub fn confirm(
		&self,
		digest: &Digest,
		accounts: &[(String, Account)],
		now: Timestamp,
	) -> Result<(), InviteError> {
		match check_accounts(accounts) {
			Err(InviteError::AccountGone(_)) => {
				let revoked = self.store.revoke(&self.host, digest, Some(ACCOUNT_GONE), None, now)?;
				Err(InviteError::AccountGone(revoked.map(Box::new)))
			}
			checked => checked,
		}
	}

	/// Whether an attempt to redeem an invite, presented and made at once, would succeed. Changes nothing.
	///
	/// # Errors
	/// Why it would not, or the store's failure.
	pub fn why(&self, attempt: Attempt, now: Timestamp) -> Result<(), InviteError> {
		check(&self.find(&attempt.digest)?, attempt.purpose, now)?;
		check_accounts(&attempt.depends_on)?;
		let claim = self.draw_claim(attempt, now)?;
		decide(&self.store.view(&claim, now)?, &claim, now)?;
		Ok(())
	}

	/// Claims an invite for one attempt to redeem it, in the place of the holder's earlier claim. The claim is to be
	/// redeemed or released; if the store fails, both are for [`Invites::release_left`]. None for somebody who is let in
	/// without another use ([`Admission::Known`]).
	///
	/// # Errors
	/// Why it may not be redeemed, or the store's failure.
	pub fn claim(
		&self,
		attempt: Attempt,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Option<Nonce>, InviteError> {
		let claim = self.prepare_claim(attempt, now)?;
		let claimed = self.store.claim(&claim, replaced, now);
		if claimed.is_err() {
			// A commit that was reported as failed may be found in the log later.
			self.left().extend(replaced.copied().into_iter().chain([claim.nonce]));
		}
		Ok(match claimed?? {
			Admission::Claim => Some(claim.nonce),
			Admission::Known => None,
		})
	}

	fn left(&self) -> MutexGuard<'_, Vec<Nonce>> {
		self.left.lock().unwrap_or_else(PoisonError::into_inner)
	}

	/// Claims and redeems in one step, for a caller that has done already what the invite is for. None for somebody who is
	/// let in without another use.
	///
	/// # Errors
	/// Why it may not be redeemed, or the store's failure.
	pub fn redeem_at_once(
		&self,
		attempt: Attempt,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		let claim = self.prepare_claim(attempt, now)?;
		Ok(self.store.redeem_at_once(&claim, source.map(cut), now)??)
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
	/// [`InviteError::ClaimLost`], or the store's failure; the claim then stands, and this is to be tried again.
	pub fn redeem(
		&self,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		match self.store.redeem(&self.host, digest, nonce, source.map(cut), now)? {
			Redeemed::Now(invite) => Ok(Some(invite)),
			Redeemed::Before => Ok(None),
			Redeemed::Lost => Err(InviteError::ClaimLost),
		}
	}

	/// Gives a claim back, because the attempt failed. `false` if there was none any more.
	///
	/// # Errors
	/// When the store fails; the claim is then for [`Invites::release_left`].
	pub fn release(&self, nonce: &Nonce) -> Result<bool, InviteError> {
		let released = self.store.release(&self.host, nonce, None);
		if released.is_err() {
			self.left().push(*nonce);
		}
		Ok(released?)
	}

	/// Releases the claims that are there because a call failed.
	///
	/// # Errors
	/// When the store fails still; this is to be tried again.
	pub fn release_left(&self) -> Result<(), InviteError> {
		let mut left = self.left();
		while let Some(nonce) = left.last() {
			self.store.release(&self.host, nonce, None)?;
			left.pop();
		}
		Ok(())
	}

	/// The claim that this very process made for such an attempt, if there is one. When a host is deactivated and activated
	/// again in the middle of a registration, nobody in the server remembers it, and it would stand in its own way.
	///
	/// # Errors
	/// When the store fails.
	pub fn own_claim(&self, attempt: Attempt, now: Timestamp) -> Result<Option<Nonce>, InviteError> {
		let wanted = self.draw_claim(attempt, now)?;
		let is_same = |claim: &Claim| {
			claim.boot == wanted.boot
				&& claim.digest == wanted.digest
				&& claim.purpose == wanted.purpose
				&& claim.invitee == wanted.invitee
		};
		Ok(self.store.claims(&self.host)?.into_iter().find(is_same).map(|claim| claim.nonce))
	}

	/// The claims of this process whose lease is over: whoever made them does not renew them any more.
	///
	/// # Errors
	/// When the store fails.
	pub fn own_stale_claims(&self, now: Timestamp) -> Result<Vec<Claim>, InviteError> {
		let boot = boot()?;
		let mut claims = self.store.claims(&self.host)?;
		claims.retain(|claim| claim.boot == boot && claim.is_stale(now));
		Ok(claims)
	}

	/// Keeps a claim for another lease. `false` if there was none any more.
	///
	/// # Errors
	/// When the store fails.
	pub fn renew(&self, nonce: &Nonce, now: Timestamp) -> Result<bool, InviteError> {
		Ok(self.store.renew(&self.host, nonce, now.saturating_add(LEASE))?)
	}

	/// Settles a claim whose owner died. `account` is what was to come out of it: the account registered, or, for a
	/// contact, `Active` if the inviter has the contact. If it came about, the claim becomes its use, and the invite as it
	/// then is is returned; if not, it is released; if nobody can say, it stays. A reset that was cut off may be repeated,
	/// for it is bound to its user.
	///
	/// # Errors
	/// When the store fails.
	pub fn settle(
		&self,
		digest: &Digest,
		nonce: &Nonce,
		account: Account,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		let kind = self.store.find(&self.host, digest)?.map(|invite| invite.kind());
		match account {
			Account::Active | Account::Disabled if kind != Some(Kind::Reset) => {
				match self.store.redeem(&self.host, digest, nonce, Some(SETTLED), now)? {
					Redeemed::Now(invite) => return Ok(Some(invite)),
					Redeemed::Before | Redeemed::Lost => (),
				}
			}
			Account::Unknown | Account::NotFound => (),
			Account::Active | Account::Disabled | Account::Missing => {
				self.store.release(&self.host, nonce, Some(now))?;
			}
		}
		Ok(None)
	}

	/// Whether a username may be registered without any invite.
	///
	/// # Errors
	/// Why not, or the store's failure.
	pub fn check_name(&self, username: &str, now: Timestamp) -> Result<(), InviteError> {
		Ok(decide_name(&self.store.view_name(&self.host, username, now)?, now)?)
	}

	/// Revokes an invite of any kind. The invite as it then is, or none if there was nothing to revoke.
	///
	/// # Errors
	/// When the store fails.
	pub fn revoke(
		&self,
		digest: &Digest,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		check_reason(why, by)?;
		Ok(self.store.revoke(&self.host, digest, why, by, now)?)
	}

	/// Revokes the open invites that depend on this account, which was deleted.
	///
	/// # Errors
	/// When the store fails.
	pub fn retire_depending(&self, username: &str, now: Timestamp) -> Result<Vec<Invite>, InviteError> {
		let which = |invite: &Invite| invite.depends_on().iter().any(|name| name == username);
		let mut retired = self.store.retire(&self.host, username, &which, ACCOUNT_GONE, now)?;
		retired.extend(self.revoke_inviter(username, false, Some(ACCOUNT_GONE), None, now)?);
		Ok(retired)
	}

	/// Revokes the open password resets of this account.
	///
	/// # Errors
	/// When the store fails.
	pub fn retire_resets(&self, username: &str, now: Timestamp) -> Result<Vec<Invite>, InviteError> {
		let which = |invite: &Invite| invite.kind() == Kind::Reset;
		Ok(self.store.retire(&self.host, username, &which, "the password was changed", now)?)
	}

	/// Revokes the open invites of an inviter, and of everybody in the inviter's branch if that is asked for, at once.
	///
	/// # Errors
	/// When the store fails.
	pub fn revoke_inviter(
		&self,
		inviter: &str,
		is_branch: bool,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Vec<Invite>, InviteError> {
		check_reason(why, by)?;
		Ok(self.store.retire_inviter(&self.host, inviter, is_branch, why, by, now)?)
	}

	/// Everybody in somebody's branch; the root's place names who brought it, if that is known.
	///
	/// # Errors
	/// When the store fails.
	pub fn branch(&self, root: &str) -> Result<Vec<Place>, InviteError> {
		let mut branch = lineage::branch(root, |inviter| self.store.brought_by(&self.host, inviter))?;
		if let Some(first) = branch.first_mut() {
			first.brought = self.store.lineage(&self.host, root)?;
		}
		Ok(branch)
	}

	/// The invites of an inviter that are still known, whatever became of them, the oldest first.
	///
	/// # Errors
	/// When the store fails.
	pub fn made_by(&self, inviter: &str) -> Result<Vec<Invite>, InviteError> {
		Ok(self.store.made_by(&self.host, inviter)?)
	}

	/// Takes over who brought whom, where it is not known better. Of how many accounts it was new.
	///
	/// # Errors
	/// When the store fails.
	pub fn import_lineage(&self, members: &[Member]) -> Result<usize, InviteError> {
		Ok(self.store.import_lineage(&self.host, members)?)
	}

	/// Pauses or resumes an invite. `false` if it has ended, or was so already.
	///
	/// # Errors
	/// When the store fails.
	pub fn set_paused(&self, digest: &Digest, paused: bool) -> Result<bool, InviteError> {
		Ok(self.store.set_paused(&self.host, digest, paused)?)
	}

	/// Gives an invite another end: so many seconds from now, or none. The invite as it then is, and those that it took the
	/// place of; none if it was used up or revoked.
	///
	/// # Errors
	/// When the store fails.
	pub fn extend(
		&self,
		digest: &Digest,
		ttl: Option<i64>,
		now: Timestamp,
	) -> Result<Option<(Invite, Vec<Invite>)>, InviteError> {
		let expires = ttl.map(|ttl| now.saturating_add(ttl));
		Ok(self.store.extend(&self.host, digest, expires, now)?)
	}

	/// Removes up to `limit` invites that ended before `before` and may be forgotten. How many; fewer than `limit` means:
	/// there are no more.
	///
	/// # Errors
	/// When the store fails.
	pub fn purge(&self, before: Timestamp, limit: u32, bundled: &Bundled) -> Result<u32, InviteError> {
		Ok(self.store.purge(&self.host, before, limit, bundled)?)
	}

	/// What `filter` picks among the next `limit` places of a part, and where to go on, unless those were the last.
	///
	/// # Errors
	/// When the store fails.
	pub fn list(
		&self,
		filter: &Filter,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<(Vec<Invite>, Option<Position>), InviteError> {
		let mut page = self.store.listing(&self.host, part, after, limit, now)?;
		let is_last = u32::try_from(page.len()).is_ok_and(|found| found < limit);
		let next = page.last().filter(|_| !is_last).and_then(|invite| invite.position(part, now));
		page.retain(|invite| filter.picks(invite, part, now));
		Ok((page, next))
	}

	/// How many invites have not ended after a position, counting up to `limit`; and where to go on counting, unless those
	/// were the last.
	///
	/// # Errors
	/// When the store fails.
	pub fn count_open(&self, after: &Position, limit: u32) -> Result<(u32, Option<Position>), InviteError> {
		Ok(self.store.count_open(&self.host, after, limit)?)
	}

	/// Ends some of the invites that have expired, and returns them: each once, to whichever server asks first.
	///
	/// # Errors
	/// When the store fails.
	pub fn end_expired(&self, limit: u32, now: Timestamp) -> Result<Vec<Invite>, InviteError> {
		Ok(self.store.end_expired(&self.host, limit, now)?)
	}

	/// A page of the invites that are good now, and where the next page begins, if there is one.
	///
	/// # Errors
	/// When the store fails.
	pub fn pending(
		&self,
		after: Option<&Digest>,
		limit: u32,
		now: Timestamp,
	) -> Result<(Vec<Invite>, Option<Digest>), InviteError> {
		let mut page = self.store.open_invites(&self.host, after, limit)?;
		let is_last = u32::try_from(page.len()).is_ok_and(|found| found < limit);
		let next = if is_last { None } else { page.last().map(|invite| invite.digest) };
		page.retain(|invite| invite.state(now) == State::Pending);
		Ok((page, next))
	}
}

/// Whether the texts that say why something is revoked, and by whom, can be kept.
fn check_reason(why: Option<&str>, by: Option<&str>) -> Result<(), InviteError> {
	let length: usize = [why, by].into_iter().flatten().map(str::len).sum();
	if length > MAX_ATTACHED { Err(InviteError::TooLarge("the reason".to_owned())) } else { Ok(()) }
}

/// As much of a text as can be kept, where it is too late to refuse it.
fn cut(text: &str) -> &str {
	if text.len() <= MAX_ATTACHED {
		return text;
	}
	let end = (0..=MAX_ATTACHED).rev().find(|end| text.is_char_boundary(*end));
	text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Whether an invite is one for the purpose, and good now.
fn check(invite: &Invite, purpose: Purpose, now: Timestamp) -> Result<(), InviteError> {
	if !invite.serves(purpose) {
		return Err(InviteError::TokenInvalid);
	}
	match invite.state(now) {
		State::Pending => Ok(()),
		State::Expired => Err(InviteError::TokenExpired),
		State::Used | State::Revoked | State::Paused => Err(InviteError::TokenInvalid),
	}
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

/// Names this process on its claims. Drawn at the first claim, so not shared with a parent that forked.
fn boot() -> Result<Nonce, InviteError> {
	static BOOT: OnceLock<Nonce> = OnceLock::new();
	if let Some(boot) = BOOT.get() {
		return Ok(*boot);
	}
	let drawn = Nonce::generate()?;
	Ok(*BOOT.get_or_init(|| drawn))
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::store::memory::MemoryStore;
	use crate::value::{Fields, Value};

	const NOW: Timestamp = 1_700_000_000;

	fn invites() -> Invites {
		Invites::new("example.com".to_owned(), Arc::new(MemoryStore::default()))
	}

	fn account() -> Request {
		Request {
			invite_type: Type::Register,
			username: None,
			is_reset: false,
			account: None,
			allow_registration: true,
			ttl: Some(60),
			max_uses: Some(1),
		}
	}

	fn saved(invites: &Invites, request: Request) -> Token {
		let (invite, token) = invites.prepare(request, NOW).unwrap();
		invites.save(&invite).unwrap();
		token
	}

	fn condition<T: std::fmt::Debug>(result: Result<T, InviteError>) -> &'static str {
		result.unwrap_err().condition()
	}

	fn attempt(token: &Token, name: &str) -> Attempt {
		Attempt {
			digest: token.digest(),
			purpose: Purpose::Account,
			invitee: Some(name.to_owned()),
			depends_on: Vec::new(),
		}
	}

	#[test]
	fn a_token_is_good_until_it_is_redeemed() {
		let invites = invites();
		let token = saved(&invites, account());
		let presented = token.reveal().as_bytes();
		assert!(invites.get(presented, Purpose::Account, NOW).is_ok());
		let nonce = invites.claim(attempt(&token, "bob"), None, NOW).unwrap().unwrap();
		assert!(invites.get(presented, Purpose::Account, NOW).is_ok(), "a claim may yet be released");
		assert_eq!(condition(invites.claim(attempt(&token, "eve"), None, NOW)), "token-busy");
		assert!(invites.redeem(&token.digest(), &nonce, None, NOW).unwrap().is_some());
		assert!(invites.redeem(&token.digest(), &nonce, None, NOW).unwrap().is_none(), "done before");
		assert_eq!(condition(invites.get(presented, Purpose::Account, NOW)), "token-invalid");
		assert_eq!(condition(invites.claim(attempt(&token, "eve"), None, NOW)), "token-used");
	}

	#[test]
	fn a_released_token_is_good_again() {
		let invites = invites();
		let token = saved(&invites, account());
		let nonce = invites.claim(attempt(&token, "bob"), None, NOW).unwrap().unwrap();
		assert!(invites.release(&nonce).unwrap());
		assert!(invites.claim(attempt(&token, "eve"), None, NOW).is_ok());
		assert_eq!(condition(invites.redeem(&token.digest(), &nonce, None, NOW)), "claim-lost");
	}

	#[test]
	fn a_token_found_good_can_be_redeemed_after_it_expired() {
		let invites = invites();
		let token = saved(&invites, account());
		assert_eq!(
			condition(invites.get(token.reveal().as_bytes(), Purpose::Account, NOW + 61)),
			"token-expired"
		);
		assert_eq!(invites.end_expired(10, NOW + 61).unwrap().len(), 1);
		assert!(invites.redeem_at_once(attempt(&token, "bob"), None, NOW + 61).is_ok());
	}

	#[test]
	fn a_revoked_token_is_neither_good_nor_redeemable_but_a_claim_on_it_stands() {
		let invites = invites();
		let (token, claimed) = (saved(&invites, account()), saved(&invites, account()));
		let nonce = invites.claim(attempt(&claimed, "bob"), None, NOW).unwrap().unwrap();
		for token in [&token, &claimed] {
			assert!(invites.revoke(&token.digest(), None, None, NOW).unwrap().is_some());
			assert!(invites.revoke(&token.digest(), None, None, NOW).unwrap().is_none());
			assert_eq!(
				condition(invites.get(token.reveal().as_bytes(), Purpose::Account, NOW)),
				"token-invalid"
			);
			assert_eq!(condition(invites.claim(attempt(token, "eve"), None, NOW)), "token-invalid");
		}
		assert!(invites.redeem(&claimed.digest(), &nonce, None, NOW).unwrap().is_some());
	}

	#[test]
	fn an_invite_does_not_outlive_its_inviter_and_sleeps_while_he_is_disabled() {
		let invites = invites();
		let from_juliet =
			Request { invite_type: Type::Roster, username: Some("juliet".to_owned()), ..account() };
		let token = saved(&invites, from_juliet);
		let with = |juliet| Attempt {
			depends_on: vec![("nurse".to_owned(), Account::Active), ("juliet".to_owned(), juliet)],
			..attempt(&token, "bob")
		};
		let cannot_tell = invites.claim(with(Account::NotFound), None, NOW);
		assert_eq!(condition(cannot_tell), "account-unknown");
		assert_eq!(invites.find(&token.digest()).unwrap().revoked_at, None, "nothing is proved");
		assert_eq!(condition(invites.claim(with(Account::Disabled), None, NOW)), "token-invalid");
		let nonce = invites.claim(with(Account::Unknown), None, NOW).unwrap().unwrap();
		invites.release(&nonce).unwrap();
		assert_eq!(condition(invites.claim(with(Account::Missing), None, NOW)), "token-invalid");
		assert_eq!(condition(invites.claim(with(Account::Active), None, NOW)), "token-invalid");
		assert!(invites.find(&token.digest()).unwrap().revoked_at.is_some());
	}

	#[test]
	fn a_contact_who_is_known_gets_in_again_without_a_claim_and_a_dry_run_says_so() {
		let invites = invites();
		let several = Request {
			invite_type: Type::Roster,
			username: Some("juliet".to_owned()),
			max_uses: Some(2),
			..account()
		};
		let token = saved(&invites, several);
		let contact = |jid: &str| Attempt { purpose: Purpose::Contact, ..attempt(&token, jid) };
		let (romeo, tybalt) = (contact("romeo@example.net"), contact("tybalt@example.net"));
		assert!(invites.redeem_at_once(romeo.clone(), None, NOW).unwrap().is_some());
		assert_eq!(invites.claim(romeo.clone(), None, NOW).unwrap(), None);
		assert!(invites.redeem_at_once(romeo.clone(), None, NOW).unwrap().is_none());
		let nonce = invites.claim(tybalt.clone(), None, NOW).unwrap().unwrap();
		assert!(invites.why(romeo.clone(), NOW).is_ok(), "he takes nothing away from others");
		assert_eq!(condition(invites.why(contact("paris@example.net"), NOW)), "token-busy");
		invites.redeem(&token.digest(), &nonce, None, NOW).unwrap();
		assert_eq!(condition(invites.claim(romeo.clone(), None, NOW)), "token-used");
		assert_eq!(condition(invites.why(romeo, NOW)), "token-invalid");
	}

	#[test]
	fn a_dead_servers_claim_becomes_its_account_or_is_released() {
		let invites = invites();
		let later = NOW + LEASE + 1;
		for (outcome, then) in [
			(Account::Active, Err("token-used")),
			(Account::Missing, Ok(())),
			(Account::Unknown, Err("claims-stale")),
			(Account::NotFound, Err("claims-stale")),
		] {
			let token = saved(&invites, account());
			invites.claim(attempt(&token, &format!("{outcome:?}")), None, NOW).unwrap();
			assert_eq!(condition(invites.claim(attempt(&token, "eve"), None, NOW + LEASE)), "token-busy");
			let Err(InviteError::ClaimsStale(stale)) = invites.claim(attempt(&token, "eve"), None, later)
			else {
				panic!("the claim is not stale");
			};
			invites.settle(&stale[0].digest, &stale[0].nonce, outcome, later).unwrap();
			let again = invites.claim(attempt(&token, "eve"), None, later);
			assert_eq!(again.as_ref().map(drop).map_err(InviteError::condition), then, "{outcome:?}");
			if let Ok(nonce) = again {
				invites.release(&nonce.unwrap()).unwrap();
			}
		}
	}

	#[test]
	fn a_newer_invite_for_a_name_takes_the_place_of_the_older() {
		let invites = invites();
		let bound = Request { username: Some("juliet".to_owned()), ..account() };
		let older = saved(&invites, bound.clone());
		let newer = saved(&invites, bound);
		assert_eq!(condition(invites.claim(attempt(&older, "juliet"), None, NOW)), "token-invalid");
		assert_eq!(condition(invites.check_name("juliet", NOW)), "name-reserved");
		assert!(invites.claim(attempt(&newer, "juliet"), None, NOW).is_ok());
		assert_eq!(condition(invites.check_name("juliet", NOW)), "token-busy");
		assert!(invites.check_name("romeo", NOW).is_ok());
	}

	#[test]
	fn an_existing_account_is_not_invited_and_a_missing_one_not_reset() {
		let invites = invites();
		let made = |is_reset, account| {
			let request = Request {
				username: Some("juliet".to_owned()),
				is_reset,
				account: Some(account),
				..self::account()
			};
			invites.prepare(request, NOW).map(drop).map_err(|error| error.condition())
		};
		assert_eq!(made(false, Account::Active), Err("conflict"));
		assert_eq!(made(false, Account::Disabled), Err("conflict"));
		assert_eq!(made(true, Account::Missing), Err("item-not-found"));
		assert_eq!(made(true, Account::Disabled), Err("not-allowed"));
		assert_eq!(made(true, Account::NotFound), Err("account-unknown"));
		assert_eq!(made(false, Account::NotFound), Ok(()), "how else could it be made");
		for (is_reset, account) in [(false, Account::Missing), (true, Account::Active)] {
			assert_eq!(made(is_reset, account), Ok(()));
			assert_eq!(made(is_reset, Account::Unknown), Ok(()));
		}
	}

	#[test]
	fn a_store_that_keeps_digests_never_sees_a_token_and_the_rest_is_the_same() {
		let store = Arc::new(MemoryStore::default());
		let invites = Invites::new("example.com".to_owned(), Arc::clone(&store) as _).keeping(AtRest::Digest);
		let linked = |token: &Token| {
			[(Value::text("landing_page"), Value::text(&format!("https://example.com/?{}", token.reveal())))]
				.into_iter()
				.collect::<Fields>()
		};
		let make = |token: &mut Option<Token>| {
			let (invite, drawn) = invites.prepare(account(), NOW).unwrap();
			let invite = Invite { fields: linked(&drawn), ..invite };
			*token = Some(drawn);
			invite
		};
		let mut tokens = [None, None, None];
		let [saved, limited, imported] = tokens.each_mut().map(make);
		invites.save(&saved).unwrap();
		let policy = crate::policy::Policy {
			roles: [("user".to_owned(), crate::policy::Limits::default())].into(),
			allows_unknown_age: true,
		};
		let juliet = crate::policy::Inviter {
			username: "juliet".to_owned(),
			roles: vec![vec!["user".to_owned()]],
			account_created: None,
		};
		invites.save_within(&limited, &policy.allowance(juliet).unwrap()).unwrap();
		assert_eq!(invites.import(&[imported.into()]).unwrap(), 1);
		for record in store.records("example.com", None, 10).unwrap() {
			assert_eq!(record.invite.token, None);
			assert_eq!(
				record.invite.fields.get("landing_page"),
				Some(&Value::text("https://example.com/?(token)"))
			);
		}
		for token in tokens.into_iter().flatten() {
			let id = token.digest().id().to_string();
			let found = invites.get(token.reveal().as_bytes(), Purpose::Account, NOW).unwrap();
			assert_eq!(found.fields_with(&token).as_ref(), &*linked(&token));
			assert_eq!(invites.get_by_id(id.as_bytes(), Purpose::Account, NOW).unwrap(), found);
			assert_eq!(
				condition(invites.get_by_id(&id.as_bytes()[..15], Purpose::Account, NOW)),
				"token-invalid"
			);
			assert_eq!(condition(invites.get(id.as_bytes(), Purpose::Account, NOW)), "token-invalid");
			let nonce = invites.claim(attempt(&token, "bob"), None, NOW).unwrap().unwrap();
			assert!(invites.redeem(&token.digest(), &nonce, None, NOW).unwrap().is_some());
			assert_eq!(condition(invites.get_by_id(id.as_bytes(), Purpose::Account, NOW)), "token-invalid");
		}
	}

	#[test]
	fn an_id_names_nothing_where_there_are_tokens() {
		let invites = invites();
		let id = saved(&invites, account()).digest().id().to_string();
		assert_eq!(condition(invites.get_by_id(id.as_bytes(), Purpose::Account, NOW)), "token-invalid");
		assert_eq!(invites.forget_tokens(None, 10).unwrap(), None);
		assert!(invites.pending(None, 10, NOW).unwrap().0[0].token.is_some());
	}

	#[test]
	fn the_public_id_redeems_nothing() {
		let invites = invites();
		let token = saved(&invites, account());
		let id = token.digest().id().to_string();
		assert_eq!(condition(invites.get(id.as_bytes(), Purpose::Account, NOW)), "token-invalid");
	}

	#[test]
	fn a_dry_run_says_what_an_attempt_would_meet_and_changes_nothing() {
		let invites = invites();
		let token = saved(&invites, account());
		let why = |name: &str, now| invites.why(attempt(&token, name), now);
		assert!(why("bob", NOW).is_ok());
		assert!(why("bob", NOW).is_ok(), "the first dry run made no claim");
		assert_eq!(condition(why("bob", NOW + 61)), "token-expired");
		let gone =
			Attempt { depends_on: vec![("juliet".to_owned(), Account::Missing)], ..attempt(&token, "bob") };
		assert_eq!(condition(invites.why(gone, NOW)), "token-invalid");
		assert_eq!(invites.find(&token.digest()).unwrap().revoked_at, None);
		let nonce = invites.claim(attempt(&token, "eve"), None, NOW).unwrap().unwrap();
		assert_eq!(condition(why("bob", NOW)), "token-busy");
		invites.redeem(&token.digest(), &nonce, None, NOW).unwrap();
		assert_eq!(condition(why("bob", NOW)), "token-invalid");
		let bound = saved(&invites, Request { username: Some("juliet".to_owned()), ..account() });
		assert_eq!(condition(invites.why(attempt(&bound, "romeo"), NOW)), "name-mismatch");
		let open = saved(&invites, account());
		assert_eq!(condition(invites.why(attempt(&open, "juliet"), NOW)), "name-reserved");
	}

	#[test]
	fn an_operator_names_an_invite_by_its_token_or_a_piece_of_its_id() {
		let invites = invites();
		let token = saved(&invites, account());
		let id = token.digest().id().to_string();
		for named in [token.reveal(), &id, &id[..6]] {
			assert_eq!(invites.resolve(named.as_bytes()).unwrap(), token.digest(), "{named}");
		}
		for named in [&id[..5], &token.reveal()[..23], "", "\u{fc}"] {
			assert_eq!(condition(invites.resolve(named.as_bytes())), "token-invalid", "{named}");
		}
	}

	#[test]
	fn pages_leave_out_what_is_not_pending_and_still_reach_the_end() {
		let invites = invites();
		for index in 0..50_i64 {
			let ttl = Some(if index % 2 == 0 { 60 } else { -60 });
			saved(&invites, Request { ttl, ..account() });
		}
		let contact_only = Request {
			invite_type: Type::Roster,
			username: Some("juliet".to_owned()),
			allow_registration: false,
			..account()
		};
		saved(&invites, contact_only);
		let (mut found, mut after) = (0, None);
		loop {
			let (page, next) = invites.pending(after.as_ref(), 7, NOW).unwrap();
			found += page.len();
			let Some(next) = next else { break };
			after = Some(next);
		}
		assert_eq!(found, 26);
	}
}
