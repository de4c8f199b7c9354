//! Making invites, and taking them over from elsewhere.

use std::borrow::Cow;

use super::{Invites, Request, endings_of, keep_member, revoke_superseded};
use crate::clock::Timestamp;
use crate::ending::{Ending, Scope};
use crate::error::InviteError;
use crate::invite::{Invite, Type};
use crate::lineage::{Birth, Member};
use crate::policy::{Allowance, Usage, decide_creation};
use crate::redemption::{Account, Redemption};
use crate::store::{Endings, Lock, Record, Rows, StoreError, TxError, require};
use crate::token::Token;

const STORING: &str = "storing an invite";

impl Invites {
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
	pub fn save(&self, invite: &Invite) -> Result<Vec<Invite>, InviteError> {
		let invite = &*self.at_rest(invite);
		self.carries().admit(invite)?;
		if let Some(lock) = lock_of(invite) {
			return Ok(self.write(STORING, &[lock], |rows| create(rows, invite))?);
		}
		// Nothing can be superseded.
		let invite = if invite.depends_on().is_empty() {
			Cow::Borrowed(invite)
		} else {
			self.look(STORING, |rows| made_now(rows, invite))?
		};
		if self.store.insert_one(STORING, &invite)? { Ok(Vec::new()) } else { Err(StoreError::Exists.into()) }
	}

	/// Stores many prepared invites in one transaction. None of them is bound to a username: these take the place of others.
	pub fn save_all(&self, invites: &[Record]) -> Result<(), InviteError> {
		let made = self.look(STORING, |rows| {
			let endings = endings_of(rows, invites.iter().map(|record| &record.invite))?;
			let now = |record: &Record| Record {
				invite: later(&endings, &record.invite).into_owned(),
				redemptions: record.redemptions.clone(),
			};
			Ok((!endings.is_empty()).then(|| invites.iter().map(now).collect::<Vec<_>>()))
		})?;
		if self.import(made.as_deref().unwrap_or(invites))? < invites.len() {
			return Err(StoreError::Exists.into());
		}
		Ok(())
	}

	/// Whether somebody with these limits may make a prepared invite, as things stand. Stores nothing.
	///
	/// # Errors
	/// [`InviteError::LimitReached`].
	pub fn check_limits(
		&self,
		invite: &Invite,
		allowance: &Allowance,
		now: Timestamp,
	) -> Result<(), InviteError> {
		Ok(decide_creation(invite, allowance, &self.usage(allowance, now)?, now)?)
	}

	/// What [`decide_creation`] needs to know of an inviter, for an invite that is not made.
	pub(crate) fn usage(&self, allowance: &Allowance, now: Timestamp) -> Result<Usage, StoreError> {
		self.look("counting the invites of a user", |rows| usage(rows, allowance, now))
	}

	/// Stores a prepared invite for somebody with limits, as [`Invites::save`] does without.
	///
	/// # Errors
	/// [`InviteError::LimitReached`].
	pub fn save_within(&self, invite: &Invite, allowance: &Allowance) -> Result<Vec<Invite>, InviteError> {
		let invite = &*self.at_rest(invite);
		self.carries().admit(invite)?;
		let mut locks: Vec<Lock<'_>> = lock_of(invite).into_iter().collect();
		locks.push(Lock::Inviter(&allowance.inviter));
		// Made invites are counted up to the moment at which this one is.
		let now = invite.created_at;
		let saved = self.write(STORING, &locks, |rows| {
			match decide_creation(invite, allowance, &usage(rows, allowance, now)?, now) {
				Ok(()) => create(rows, invite).map(Ok),
				Err(reached) => Ok(Err(reached)),
			}
		})?;
		Ok(saved?)
	}

	/// Takes over invites that were made elsewhere. A token that is known here stays as it is, used or revoked as it may
	/// be. How many were new.
	pub fn import(&self, records: &[Record]) -> Result<usize, InviteError> {
		for record in records {
			self.carries().admit_import(record)?;
		}
		let mut records: Vec<(Cow<'_, Invite>, &[Redemption])> = records
			.iter()
			.map(|record| (self.at_rest(&record.invite), record.redemptions.as_slice()))
			.collect();
		// In one order, so that servers that import the same at once do not wait for each other.
		records.sort_by_key(|(invite, _)| invite.digest);
		let invites: Vec<&Invite> = records.iter().map(|(invite, _)| &**invite).collect();
		Ok(self.write("importing invites", &[], |rows| {
			let are_new = rows.insert(&invites)?;
			for ((invite, redemptions), _) in records.iter().zip(&are_new).filter(|(_, is_new)| **is_new) {
				for redemption in *redemptions {
					rows.insert_redemption(&invite.digest, redemption)?;
					if let Some(Birth::Brought(member)) = redemption.birth(invite) {
						keep_member(rows, &member)?;
					}
				}
			}
			Ok(are_new.into_iter().filter(|is_new| *is_new).count())
		})?)
	}

	/// Takes over who brought whom, where it is not known better. Of how many accounts it was new.
	pub fn import_lineage(&self, members: &[Member]) -> Result<usize, InviteError> {
		require(self.carries().history, "who brought an account")?;
		Ok(self.write("importing who brought whom", &[], |rows| {
			let mut kept = 0;
			for member in members {
				kept += usize::from(keep_member(rows, member)?);
			}
			Ok(kept)
		})?)
	}
}

/// What a new invite locks: the name that it is bound to, if any, for others may be bound to it.
fn lock_of(invite: &Invite) -> Option<Lock<'_>> {
	invite.username.as_deref().filter(|_| invite.invite_type == Type::Register).map(Lock::Name)
}

/// What [`decide_creation`] needs to know of an inviter. No more is counted than decides.
fn usage(rows: &mut dyn Rows, allowance: &Allowance, now: Timestamp) -> Result<Usage, TxError> {
	let mut usage = Usage::default();
	if let Some(most) = allowance.max_open() {
		let endings = rows.endings(Endings::Of(std::slice::from_ref(&allowance.inviter)))?;
		// What these cover is not open any more.
		let made = endings.iter().filter(|ending| ending.scope != Scope::Resets);
		let after = made.map(|ending| ending.made_until).max();
		usage.open = rows.count_made(&allowance.inviter, after, most, now)?;
	}
	if allowance.newest() > 0 {
		usage.newest = rows.newest_made(&allowance.inviter, allowance.newest())?;
	}
	Ok(usage)
}

/// A new invite, made later than those that an ending covers: who has the name now is not who had it then.
fn made_now<'a>(rows: &mut dyn Rows, invite: &'a Invite) -> Result<Cow<'a, Invite>, TxError> {
	let endings = endings_of(rows, std::iter::once(invite))?;
	Ok(later(&endings, invite))
}

fn later<'a>(endings: &[Ending], invite: &'a Invite) -> Cow<'a, Invite> {
	let about = endings.iter().filter(|ending| ending.covers(invite));
	match about.map(|ending| ending.made_until).max() {
		Some(until) => Cow::Owned(Invite { created_at: until.saturating_add(1), ..invite.clone() }),
		None => Cow::Borrowed(invite),
	}
}

/// Keeps a new invite, and revokes those that it supersedes, which it returns.
fn create(rows: &mut dyn Rows, invite: &Invite) -> Result<Vec<Invite>, TxError> {
	let invite = &*made_now(rows, invite)?;
	let superseded = revoke_superseded(rows, invite, invite.created_at)?;
	if rows.insert(&[invite])? == [true] { Ok(superseded) } else { Err(StoreError::Exists.into()) }
}
