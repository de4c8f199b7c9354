//! Ending invites, and bringing them back.

use std::collections::BTreeSet;
use std::slice;

use super::{
	AtRest, Invites, SUPERSEDED, check_reason, invite, invites, last_of_full_page, peek, revoke_open,
};
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::{Invite, Kind};
use crate::lineage::branch;
use crate::redemption::supersedes;
use crate::store::{Bundled, Lock, Members, Pick, StoreError, require};
use crate::token::Digest;

/// Why invites are revoked whose inviter, or whose account to be reset, is gone.
pub(super) const ACCOUNT_GONE: &str = "the account that it depends on was deleted";

impl Invites {
	/// Revokes an invite of any kind. The invite as it then is, or none if there was nothing to revoke.
	pub fn revoke(
		&self,
		digest: &Digest,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, InviteError> {
		check_reason(why, by)?;
		Ok(self.write("revoking an invite", &[], |rows| {
			let Some(mut invite) = invite(rows, digest)? else { return Ok(None) };
			if !invite.revoke(why, by, now) {
				return Ok(None);
			}
			rows.update(slice::from_ref(&invite))?;
			Ok(Some(invite))
		})?)
	}

	/// Revokes the open invites that depend on this account, which was deleted.
	pub fn retire_depending(&self, username: &str, now: Timestamp) -> Result<Vec<Invite>, InviteError> {
		let which = |invite: &Invite| invite.depends_on().iter().any(|name| name == username);
		let mut retired = self.revoke_of(username, &which, ACCOUNT_GONE, now)?;
		retired.extend(self.revoke_inviter(username, false, Some(ACCOUNT_GONE), None, now)?);
		Ok(retired)
	}

	/// Revokes the open password resets of this account.
	pub fn retire_resets(&self, username: &str, now: Timestamp) -> Result<Vec<Invite>, InviteError> {
		let which = |invite: &Invite| invite.kind() == Kind::Reset;
		Ok(self.revoke_of(username, &which, "the password was changed", now)?)
	}

	/// Revokes what `which` picks of a user's open invites: bound to the name, or by it as inviter.
	pub(crate) fn revoke_of(
		&self,
		username: &str,
		which: &dyn Fn(&Invite) -> bool,
		why: &str,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		let doing = "revoking the invites of a user";
		// Most users have none.
		let open = self.look(doing, |rows| peek(rows, Pick::OpenOfUser(username), u32::MAX))?;
		if !open.iter().any(which) {
			return Ok(Vec::new());
		}
		self.write(doing, &[], |rows| revoke_open(rows, username, which, why, now))
	}

	/// Revokes the open invites of an inviter, and of everybody in the inviter's branch if that is asked for, at once.
	pub fn revoke_inviter(
		&self,
		inviter: &str,
		is_branch: bool,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Vec<Invite>, InviteError> {
		check_reason(why, by)?;
		let doing = "revoking the invites of an inviter";
		// Most users have none.
		let own = [inviter.to_owned()];
		if !is_branch && self.look(doing, |rows| rows.peek(Pick::OpenOfInviters(&own), 1))?.is_empty() {
			return Ok(Vec::new());
		}
		Ok(self.write(doing, &[], |rows| {
			let inviters: Vec<String> = branch(inviter, |inviter| {
				if is_branch { rows.members(Members::BroughtBy(inviter)) } else { Ok(Vec::new()) }
			})?
			.into_iter()
			.map(|place| place.username)
			.collect();
			let open = rows.peek(Pick::OpenOfInviters(&inviters), u32::MAX)?;
			let mut digests: Vec<Digest> = open.iter().map(|invite| invite.digest).collect();
			// In one order, so that two who do this do not wait for each other.
			digests.sort_unstable();
			let mut revoked = invites(rows, Pick::These(&digests), u32::MAX)?;
			revoked.retain_mut(|invite| invite.ended_at.is_none() && invite.revoke(why, by, now));
			rows.update(&revoked)?;
			Ok(revoked)
		})?)
	}

	/// Pauses or resumes an invite. `false` if it has ended, or was so already.
	pub fn set_paused(&self, digest: &Digest, paused: bool) -> Result<bool, InviteError> {
		require(self.carries().pause, "a paused invite")?;
		Ok(self.write("pausing or resuming an invite", &[], |rows| {
			let Some(mut invite) = rows.invite(digest)? else { return Ok(false) };
			if invite.ended_at.is_some() || invite.paused == paused {
				return Ok(false);
			}
			invite.paused = paused;
			rows.update(&[invite])?;
			Ok(true)
		})?)
	}

	/// Gives an invite another end: so many seconds from now, or none. The invite as it then is, and those that it took the
	/// place of; none if it was used up or revoked.
	pub fn extend(
		&self,
		digest: &Digest,
		ttl: Option<i64>,
		now: Timestamp,
	) -> Result<Option<(Invite, Vec<Invite>)>, InviteError> {
		let expires = ttl.map(|ttl| now.saturating_add(ttl));
		let doing = "extending an invite";
		// What has to be locked follows from what never changes.
		let Some(Invite { username, .. }) = self.look(doing, |rows| rows.invite(digest))? else {
			return Ok(None);
		};
		Ok(self.write(doing, username.as_deref().map(Lock::Name).as_slice(), |rows| {
			// In the order of digests: the invite itself is one of them, or has ended.
			let mut superseded = match &username {
				Some(username) => invites(rows, Pick::OpenOfUser(username), u32::MAX)?,
				None => Vec::new(),
			};
			let Some(mut invite) = invite(rows, digest)? else { return Ok(None) };
			if !invite.extend(expires) {
				return Ok(None);
			}
			superseded.retain_mut(|other| {
				other.digest != *digest
					&& supersedes(&invite, other)
					&& other.revoke(Some(SUPERSEDED), None, now)
			});
			rows.update(&superseded)?;
			rows.update(slice::from_ref(&invite))?;
			Ok(Some((invite, superseded)))
		})?)
	}

	/// Ends some of the invites that have expired, and returns them: each once, to whichever server asks first.
	pub fn end_expired(&self, limit: u32, now: Timestamp) -> Result<Vec<Invite>, InviteError> {
		let doing = "ending expired invites";
		// Nearly always there is none.
		if self.look(doing, |rows| rows.peek(Pick::Due(now), 1))?.is_empty() {
			return Ok(Vec::new());
		}
		Ok(self.write(doing, &[], |rows| {
			let mut ended = invites(rows, Pick::Due(now), limit)?;
			for invite in &mut ended {
				invite.ended_at = invite.expires;
			}
			rows.update(&ended)?;
			Ok(ended)
		})?)
	}

	/// Removes up to `limit` invites that ended before `before` and may be forgotten. How many; fewer than `limit` means:
	/// there are no more.
	pub fn purge(&self, before: Timestamp, limit: u32, bundled: &Bundled) -> Result<u32, InviteError> {
		let doing = "purging invites";
		let wanted = usize::try_from(limit).unwrap_or(usize::MAX);
		let mut digests: Vec<Digest> = Vec::new();
		// Nearly always there is none; where some are spared, more have to be looked at to find others.
		for looked_at in [limit, bundled.looked_at(limit)] {
			let over = self.look(doing, |rows| rows.over(before, looked_at))?;
			let has_all = over.len() < wanted;
			let is_spared = |(digest, expires): &(Digest, _)| bundled.spares(digest, *expires, before);
			digests = over.into_iter().filter(|over| !is_spared(over)).map(|(digest, _)| digest).collect();
			if has_all || digests.len() >= wanted {
				break;
			}
		}
		if digests.is_empty() {
			return Ok(0);
		}
		digests.truncate(wanted);
		digests.sort_unstable();
		Ok(self.write(doing, &[], |rows| {
			let over = rows.invites(Pick::Over(&digests, before), limit)?;
			// By now they are locked, so that no claim is made any more; one may have been made before.
			let claimed: BTreeSet<Digest> = rows.claims()?.into_iter().map(|claim| claim.digest).collect();
			let gone =
				over.into_iter().map(|invite| invite.digest).filter(|digest| !claimed.contains(digest));
			let gone: Vec<Digest> = gone.collect();
			rows.remove(&gone)?;
			Ok(u32::try_from(gone.len()).unwrap_or(u32::MAX))
		})?)
	}

	/// Takes the tokens out of up to `limit` invites that follow `after` in the order of their digests, where the store is
	/// to keep none. Where to go on, unless those were the last.
	pub fn forget_tokens(&self, after: Option<&Digest>, limit: u32) -> Result<Option<Digest>, InviteError> {
		match self.at_rest {
			AtRest::Plain => Ok(None),
			AtRest::Digest => Ok(self.take_tokens(after, limit)?),
		}
	}

	/// The same, whatever the store is to keep.
	pub(crate) fn take_tokens(
		&self,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Option<Digest>, StoreError> {
		require(self.carries().digests, "an invite without its token")?;
		let doing = "taking tokens out of invites";
		let next = |page: &[Invite]| last_of_full_page(page, limit).map(|invite| invite.digest);
		// Nearly always there is none.
		let page = self.look(doing, |rows| rows.peek(Pick::All(after), limit))?;
		if page.iter().all(|invite| invite.token.is_none()) {
			return Ok(next(&page));
		}
		self.write(doing, &[], |rows| {
			let mut page = invites(rows, Pick::All(after), limit)?;
			let next = next(&page);
			page.retain_mut(Invite::forget_token);
			rows.update(&page)?;
			Ok(next)
		})
	}
}
