//! Ending invites, and bringing them back.

use std::collections::BTreeSet;
use std::slice;

use super::{
	AtRest, Invites, all_stored, check_reason, invite, invites, last_of_full_page, revoke_superseded,
};
use crate::clock::Timestamp;
use crate::ending::{Ending, Scope, Tie};
use crate::error::InviteError;
use crate::invite::{Invite, Type};
use crate::lineage::branch;
use crate::store::{Bundled, Endings, Lock, Members, Pick, Rows, StoreError, TxError, require};
use crate::token::Digest;

/// Why invites are revoked whose inviter, or whose account to be reset, is gone.
pub(super) const ACCOUNT_GONE: &str = "the account that it depends on was deleted";

const CHANGED: &str = "the password was changed";

/// Invites that are ended in one transaction: others wait for it.
pub(super) const BATCH: usize = 50;

/// Users whose invites begin to end in one transaction, and endings that one goes on with.
const ENDINGS: usize = 100;
const ENDINGS_AT_ONCE: u32 = 8;

/// Why invites end, and by whom.
#[derive(Clone, Copy)]
struct Reason<'a> {
	why: Option<&'a str>,
	by: Option<&'a str>,
}

/// What became of the end of many: none of them is good any more.
#[derive(Debug, Default)]
pub struct Ended {
	/// Those that were ended at once.
	pub invites: Vec<Invite>,
	/// What is under way for the others.
	pub under_way: Vec<Ending>,
}

impl Ended {
	/// How many were ended of users who have no others left.
	#[must_use]
	pub fn alone(&self) -> u32 {
		let under_way: u32 = self.under_way.iter().map(|ending| ending.ended).sum();
		u32::try_from(self.invites.len()).unwrap_or(u32::MAX).saturating_sub(under_way)
	}
}

/// What became of a batch of them.
#[derive(Debug, Default)]
pub struct EndedMore {
	/// Those that were ended.
	pub invites: Vec<Invite>,
	/// What is over now.
	pub over: Vec<Ending>,
	/// Whether there is more to do.
	pub is_more: bool,
}

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

	/// Revokes the open invites that depend on this account, which was deleted just now. Where the store fails, a
	/// [review](Invites::review) does that.
	pub fn retire_depending(&self, username: &str, now: Timestamp) -> Result<Ended, InviteError> {
		self.end_now(Scope::Depending, username, now)
	}

	/// Revokes the open password resets of this account, whose password was changed just now; as above.
	pub fn retire_resets(&self, username: &str, now: Timestamp) -> Result<Ended, InviteError> {
		self.end_now(Scope::Resets, username, now)
	}

	fn end_now(&self, scope: Scope, username: &str, now: Timestamp) -> Result<Ended, InviteError> {
		let ended = self.end_for(scope, username, None, now);
		if ended.is_err() {
			self.attempts().end_later(scope, username.to_owned(), now);
		}
		ended
	}

	/// Ends invites of a user for something that happens to the account now, or has happened earlier.
	pub(crate) fn end_for(
		&self,
		scope: Scope,
		username: &str,
		earlier: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Ended, InviteError> {
		let why = if scope == Scope::Resets { CHANGED } else { ACCOUNT_GONE };
		let users = [username.to_owned()];
		Ok(self.end_many(&users, scope, Reason { why: Some(why), by: None }, earlier, now)?)
	}

	/// Revokes the open invites of an inviter, and of everybody in the inviter's branch if that is asked for.
	pub fn revoke_inviter(
		&self,
		inviter: &str,
		is_branch: bool,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Ended, InviteError> {
		check_reason(why, by)?;
		let branch = branch(inviter, |inviter| {
			if is_branch { self.members(Members::BroughtBy(inviter)) } else { Ok(Vec::new()) }
		})?;
		let users: Vec<String> = branch.into_iter().map(|place| place.username).collect();
		Ok(self.end_many(&users, Scope::Made, Reason { why, by }, None, now)?)
	}

	/// Ends the open invites of some users, a few at once. Where more are left, an [`Ending`] is stored with that, so that
	/// none of them is good any more, and [`Self::end_more`] is to be called.
	fn end_many(
		&self,
		users: &[String],
		scope: Scope,
		reason: Reason<'_>,
		earlier: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Ended, StoreError> {
		let doing = "ending the invites of a user";
		let of = |username: &String| Ending {
			username: username.clone(),
			scope,
			at: earlier.unwrap_or(now),
			made_until: earlier.unwrap_or(Timestamp::MAX),
			why: reason.why.map(str::to_owned),
			by: reason.by.map(str::to_owned),
			ended: 0,
			due: Ending::UNDER_WAY,
		};
		let mut done = Ended::default();
		for users in users.chunks(ENDINGS) {
			// Most users have none.
			let endings = self.look(doing, |rows| {
				let mut endings = Vec::new();
				for ending in users.iter().map(of) {
					if is_any_left(rows, &ending)? {
						endings.push(ending);
					}
				}
				Ok(endings)
			})?;
			if endings.is_empty() {
				continue;
			}
			let left = self.batch().saturating_sub(done.invites.len());
			let locks: Vec<Lock<'_>> = endings.iter().map(|ending| Lock::Inviter(&ending.username)).collect();
			let begun = self.write(doing, &locks, |rows| {
				let mut begun = Ended::default();
				for ending in &endings {
					let left = left.saturating_sub(begun.invites.len());
					begin(rows, ending.clone(), earlier.is_none(), left, now, &mut begun)?;
				}
				Ok(begun)
			})?;
			done.invites.extend(begun.invites);
			done.under_way.extend(begun.under_way);
		}
		Ok(done)
	}

	/// Invites that are ended at once. A store that keeps no history keeps no endings either, and forgets what is revoked.
	fn batch(&self) -> usize {
		if self.carries().history { self.batch } else { usize::MAX }
	}

	/// Goes on with the ends of many that are under way: ends a batch of invites.
	pub fn end_more(&self, now: Timestamp) -> Result<EndedMore, InviteError> {
		let doing = "ending the invites of a user";
		// Nearly always there is none.
		if self.look(doing, |rows| rows.endings(Endings::Due(now, 1)))?.is_empty() {
			return Ok(EndedMore::default());
		}
		Ok(self.write(doing, &[], |rows| {
			let mut more = EndedMore::default();
			for mut ending in rows.endings(Endings::Due(now, ENDINGS_AT_ONCE))? {
				let mut ended = end_batch(rows, &ending, self.batch.saturating_sub(more.invites.len()))?;
				ending.ended = ending.ended.saturating_add(u32::try_from(ended.len()).unwrap_or(u32::MAX));
				if is_any_left(rows, &ending)? {
					ending.due = Ending::UNDER_WAY;
					rows.put_ending(&ending)?;
				} else if ending.due == Ending::UNDER_WAY || !ended.is_empty() {
					ending.due = now.saturating_add(Ending::LINGER);
					rows.put_ending(&ending)?;
					more.over.push(ending);
				} else {
					rows.remove_ending(&ending)?;
				}
				more.invites.append(&mut ended);
				if more.invites.len() >= self.batch {
					break;
				}
			}
			more.is_more = !rows.endings(Endings::Due(now, 1))?.is_empty();
			Ok(more)
		})?)
	}

	/// How many invites were ended of those that these users made, by what was under way until a minute ago.
	pub fn ended_of(&self, inviters: &[String]) -> Result<u32, InviteError> {
		let endings =
			self.look("counting the invites of a user", |rows| rows.endings(Endings::Of(inviters)))?;
		Ok(endings.iter().filter(|ending| ending.scope == Scope::Made).map(|ending| ending.ended).sum())
	}

	/// Pauses or resumes an invite. The invite as it then is, or none if it has ended, or was so already.
	pub fn set_paused(&self, digest: &Digest, paused: bool) -> Result<Option<Invite>, InviteError> {
		require(self.carries().pause, "a paused invite")?;
		Ok(self.write("pausing or resuming an invite", &[], |rows| {
			let Some(mut invite) = invite(rows, digest)? else { return Ok(None) };
			if invite.ended_at.is_some() || invite.paused == paused {
				return Ok(None);
			}
			invite.paused = paused;
			rows.update(slice::from_ref(&invite))?;
			Ok(Some(invite))
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
		let Some(Invite { username, invite_type, .. }) = self.look(doing, |rows| rows.invite(digest))? else {
			return Ok(None);
		};
		let bound = username.as_deref().filter(|_| invite_type == Type::Register);
		Ok(self.write(doing, bound.map(Lock::Name).as_slice(), |rows| {
			// In the order of digests: the invite itself is one of them, or has ended.
			if let Some(username) = bound {
				rows.invites(Pick::Bound(username), u32::MAX)?;
			}
			let Some(mut invite) = invite(rows, digest)? else { return Ok(None) };
			if !invite.extend(expires) {
				return Ok(None);
			}
			let superseded = revoke_superseded(rows, &invite, now)?;
			rows.update(slice::from_ref(&invite))?;
			Ok(Some((invite, superseded)))
		})?)
	}

	/// Ends some of the invites that have expired, and returns them: each once, to whichever server asks first. What the end
	/// of many covers is revoked instead: who has validated it must not claim it any more.
	pub fn end_expired(&self, limit: u32, now: Timestamp) -> Result<Vec<Invite>, InviteError> {
		let doing = "ending expired invites";
		// Nearly always there is none.
		if self.look(doing, |rows| rows.peek(Pick::Due(now), 1))?.is_empty() {
			return Ok(Vec::new());
		}
		Ok(self.write(doing, &[], |rows| {
			let mut ended = invites(rows, Pick::Due(now), limit)?;
			for invite in ended.iter_mut().filter(|invite| invite.ended_at.is_none()) {
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
			let mut page = all_stored(rows, Pick::All(after), limit)?;
			let next = next(&page);
			page.retain_mut(Invite::forget_token);
			rows.update(&page)?;
			Ok(next)
		})
	}
}

/// Begins the end of the invites of one user: ends up to `limit` of them, and stores it where others are left.
fn begin(
	rows: &mut dyn Rows,
	mut ending: Ending,
	covers_all: bool,
	limit: usize,
	now: Timestamp,
	begun: &mut Ended,
) -> Result<(), TxError> {
	if covers_all {
		// A clock may be ahead of ours, or set back: what is there was made before.
		let newest = newest(rows, &ending)?;
		ending.made_until = newest.map_or(now, |newest| newest.max(now));
	}
	let mut ended = end_batch(rows, &ending, limit)?;
	if is_any_left(rows, &ending)? {
		ending.ended = u32::try_from(ended.len()).unwrap_or(u32::MAX);
		let known = rows.endings(Endings::Of(slice::from_ref(&ending.username)))?;
		if let Some(other) = known.iter().find(|other| other.scope == ending.scope) {
			ending.join(other);
		}
		rows.put_ending(&ending)?;
		begun.under_way.push(ending);
	}
	begun.invites.append(&mut ended);
	Ok(())
}

/// Ends up to `limit` of the invites that an ending covers, apart from those that somebody is about to redeem.
fn end_batch(rows: &mut dyn Rows, ending: &Ending, limit: usize) -> Result<Vec<Invite>, TxError> {
	let mut ended = Vec::new();
	for tie in ending.ties() {
		let left = u32::try_from(limit.saturating_sub(ended.len())).unwrap_or(u32::MAX);
		if left == 0 {
			break;
		}
		let mut picked = all_stored(rows, Pick::Tied(tie, ending.made_until), left)?;
		picked.retain_mut(|invite| ending.end(invite));
		// Before the next tie, which may be another one to the same invite.
		rows.update(&picked)?;
		ended.append(&mut picked);
	}
	Ok(ended)
}

fn is_any_left(rows: &mut dyn Rows, ending: &Ending) -> Result<bool, TxError> {
	for tie in ending.ties() {
		if !rows.peek(Pick::Tied(tie, ending.made_until), 1)?.is_empty() {
			return Ok(true);
		}
	}
	Ok(false)
}

/// When the newest of the invites was made that an ending is about.
fn newest(rows: &mut dyn Rows, ending: &Ending) -> Result<Option<Timestamp>, TxError> {
	let mut newest = None;
	for tie in ending.ties() {
		newest = newest.max(match tie {
			Tie::MadeBy(username) => rows.newest_made(username, 1)?.first().copied(),
			Tie::ContactOf(_) | Tie::ResetOf(_) => {
				rows.peek(Pick::Tied(tie, Timestamp::MAX), 1)?.first().map(|invite| invite.created_at)
			}
		});
	}
	Ok(newest)
}
