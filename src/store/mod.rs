//! Where invites are kept.
//!
//! A store holds [`Invite`]s under their host and digest: rows in a transaction. It decides nothing; every use case is
//! written once, in [`crate::invites`], over the verbs of [`Rows`]. How to add one is in [`adding`].

#[doc = include_str!("adding.md")]
pub mod adding {}
mod breaker;
#[cfg(any(test, feature = "conformance"))]
pub mod conformance;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
mod sql;
pub mod sqlite;

use std::cmp::Reverse;
use std::collections::HashMap;
use std::error::Error;

use thiserror::Error;

use crate::check::Finding;
use crate::clock::Timestamp;
use crate::ending::{Ending, Tie};
use crate::invite::{Invite, Type};
use crate::lineage::Member;
use crate::listing::{Part, Position};
use crate::redemption::{Claim, Life, Redemption};
use crate::token::{Digest, Nonce};

/// An invite with its history, as it moves from one store to another. Claims do not move: they are of the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
	/// The invite as it stands.
	pub invite: Invite,
	/// Its uses, in the order in which they were made.
	pub redemptions: Vec<Redemption>,
}

impl From<Invite> for Record {
	/// An invite that was never used.
	fn from(invite: Invite) -> Self {
		Self { invite, redemptions: Vec::new() }
	}
}

/// What a store can keep of an invite, beyond one that is still good. What it cannot keep it refuses with
/// [`StoreError::Unsupported`]; it never drops it in silence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "one for each thing that can be carried")]
pub struct Carries {
	/// What became of invites: used, revoked or expired, why, and who used them. Without it, an invite that was used up or
	/// revoked is gone, and the uses of one that is not used up are not counted.
	pub history: bool,
	/// Paused invites.
	pub pause: bool,
	/// A limit of uses other than one and none.
	pub several_uses: bool,
	/// What was given with an invite that is for a contact alone. Without it, its end is kept and no more, as the bundled
	/// module does, whose callers always give something; an import is refused.
	pub contact_details: bool,
	/// Pending invites without their tokens.
	pub digests: bool,
}

impl Carries {
	/// Of a store that can keep everything.
	pub const ALL: Self =
		Self { history: true, pause: true, several_uses: true, contact_details: true, digests: true };

	/// Whether all of a new invite can be kept.
	///
	/// # Errors
	/// [`StoreError::Unsupported`], naming what cannot.
	pub fn admit(self, invite: &Invite) -> Result<(), StoreError> {
		if self == Self::ALL {
			return Ok(());
		}
		let has_history = invite.uses > 0 || invite.revoked_at.is_some() || invite.ended_at.is_some();
		let what = if has_history && !self.history {
			"an invite that was used, was revoked or has expired"
		} else if invite.paused && !self.pause {
			"a paused invite"
		} else if invite.max_uses.is_some_and(|max_uses| max_uses != 1) && !self.several_uses {
			"a limit of several uses"
		} else if invite.max_uses.is_none() && !invite.allow_registration && !self.contact_details {
			"an invite for any number of contacts"
		} else if invite.token.is_none() && !has_history && !self.digests {
			"an invite without its token"
		} else {
			return Ok(());
		};
		Err(StoreError::Unsupported { what })
	}

	/// The same of an import, which must not lose what whoever makes an invite has to do without.
	///
	/// # Errors
	/// [`StoreError::Unsupported`], naming what cannot be kept.
	pub fn admit_import(self, record: &Record) -> Result<(), StoreError> {
		let is_for_a_contact = !record.invite.allow_registration;
		if !record.redemptions.is_empty() {
			require(self.history, "an invite that was used, was revoked or has expired")?;
		}
		if is_for_a_contact && !self.contact_details && !record.invite.fields.is_empty() {
			return Err(StoreError::Unsupported { what: "what was given with an invite for a contact" });
		}
		self.admit(&record.invite)
	}
}

/// Refuses what is not carried.
///
/// # Errors
/// [`StoreError::Unsupported`]
pub(crate) const fn require(is_carried: bool, what: &'static str) -> Result<(), StoreError> {
	if is_carried { Ok(()) } else { Err(StoreError::Unsupported { what }) }
}

/// The tokens that lie in the bundled module's store, from which each start of a server takes in those that it does not
/// know. So what was used or revoked has to stay known as long as its token lies there with an end that is to come, or it
/// would be good once more.
#[derive(Debug)]
pub enum Bundled {
	/// Nobody can tell: any invite may be among them.
	Unknown,
	/// These, with their ends there (none: never).
	Known(HashMap<Digest, Option<Timestamp>>),
}

impl Bundled {
	/// Invites that are looked at in vain, at most, where nobody can tell.
	const IN_VAIN: usize = 1000;

	/// Whether an invite that may be purged otherwise, with this end, is to be spared.
	pub(crate) fn spares(&self, digest: &Digest, expires: Option<Timestamp>, before: Timestamp) -> bool {
		let end = match self {
			Self::Unknown => Some(expires),
			Self::Known(ends) => ends.get(digest).copied(),
		};
		end.is_some_and(|end| end.is_none_or(|end| end >= before))
	}

	/// How many invites have to be looked at to find so many that are not spared.
	pub(crate) fn looked_at(&self, limit: u32) -> u32 {
		let spared = match self {
			Self::Unknown => Self::IN_VAIN,
			Self::Known(ends) => ends.len(),
		};
		limit.saturating_add(u32::try_from(spared).unwrap_or(u32::MAX))
	}
}

/// What is done with the rows of one host. It may be done again from the start, so it consumes nothing that it captures.
pub type Work<'a> = &'a mut dyn FnMut(&mut dyn Rows) -> Result<(), TxError>;

/// Why work stopped. The store makes a [`StoreError`] of it, or does the work again.
#[derive(Debug)]
pub enum TxError {
	/// To be reported as it is.
	Store(StoreError),
	/// The engine's own error: only the store that raised it looks into it.
	Engine(Box<dyn Error + Send + Sync>),
}

impl TxError {
	/// Of a store whose engine raises nothing.
	#[must_use]
	pub fn into_store(self, doing: &str) -> StoreError {
		match self {
			Self::Store(error) => error,
			Self::Engine(source) => {
				StoreError::Unavailable { problem: format!("failed while {doing}"), source }
			}
		}
	}

	/// The engine's own error.
	///
	/// # Errors
	/// What is to be reported as it is.
	pub(crate) fn engine<E: Error + 'static>(self, doing: &str) -> Result<E, StoreError> {
		match self {
			Self::Engine(source) => match source.downcast() {
				Ok(error) => Ok(*error),
				Err(source) => Err(Self::Engine(source).into_store(doing)),
			},
			Self::Store(error) => Err(error),
		}
	}
}

impl From<StoreError> for TxError {
	fn from(error: StoreError) -> Self {
		Self::Store(error)
	}
}

/// What is to be locked and has no row. Locks are taken when the transaction begins, in the order of the variants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lock<'a> {
	/// A username that is to be claimed or bound.
	Name(&'a str),
	/// A user whose invites are counted.
	Inviter(&'a str),
}

/// Where invites are kept: makes work atomic and durable. What the work is, is in [`crate::invites`]; a store knows no rule
/// and owns no clock.
///
/// A store is used by one thread, unless it is `Send` and `Sync` besides. `doing` says in an error's text what failed
/// ("claiming an invite"). Work never calls the store itself: it would wait for itself.
///
/// Every method fails with [`StoreError::Unusable`] or [`StoreError::Unavailable`] when the storage does, and with what the
/// work returns.
#[expect(clippy::missing_errors_doc, reason = "stated once, above")]
pub trait Store {
	/// What it can keep. What it cannot keep it is never given.
	fn carries(&self) -> Carries {
		Carries::ALL
	}

	/// Does work of a single verb that changes nothing: nothing is begun, and no moment is kept.
	fn look(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.read(doing, host, work)
	}

	/// Does work that reads rows as they are in one moment, and changes nothing.
	fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError>;

	/// Does work that no other writer comes between. When this returns `Ok`, what was changed survives a crash of the
	/// machine, unless the store says in its own documentation that it is not durable. When it fails, nothing was changed,
	/// with one exception: where the answer to the commit was lost and could not be had any more, it may be done.
	fn write(
		&self,
		doing: &'static str,
		host: &str,
		locks: &[Lock<'_>],
		work: Work<'_>,
	) -> Result<(), StoreError>;

	/// Keeps one invite that nothing depends on; whether its digest was new. For a store that needs no transaction for it.
	fn insert_one(&self, doing: &'static str, invite: &Invite) -> Result<bool, StoreError> {
		let mut is_new = false;
		self.write(doing, &invite.host, &[], &mut |rows| {
			is_new = rows.insert(&[invite])?.first().is_some_and(|is_new| *is_new);
			Ok(())
		})?;
		Ok(is_new)
	}

	/// Does work of a single [`Rows::renew_claim`]. For a store that needs no transaction for it.
	fn renew(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.write(doing, host, &[], work)
	}

	/// From now on others can see that the process of this name lives, for as long as it does: [`Rows::life`]. To be called
	/// before each claim and each renewal of one; what has ended it meanwhile is made good. Where the storage has no means
	/// for that, nobody can tell whether the process lives. One process has one name: another one takes its place.
	fn hold(&self, _boot: &Nonce) -> Result<(), StoreError> {
		Ok(())
	}

	/// Looks the storage of a host over for an operator: whether it can be reached, is whole, and is kept as it should be.
	/// What is wrong is a finding, not an error. What it says of the clock comes from [`Finding::of_clock`].
	fn health(&self, host: &str, now: Timestamp) -> Vec<Finding>;
}

/// Which invites of a host, and in which order they come.
#[derive(Clone, Copy, Debug)]
pub enum Pick<'a> {
	/// Those that have not ended and are bound to this username. In the order of their digests.
	Bound(&'a str),
	/// Those that have not ended, are tied to a user this way, and were made no later than at this moment: where that is
	/// not by the maker, the newest first.
	Tied(Tie<'a>, Timestamp),
	/// Those that this user made, whatever became of them: the oldest first, of two of one second in the order of their digests.
	AllOfInviter(&'a str),
	/// Those that have expired before this moment and are not marked as ended: the first to expire first.
	Due(Timestamp),
	/// Those that have not ended and follow a digest, in the order of digests.
	Open(Option<&'a Digest>),
	/// Those that follow a digest, in the order of digests.
	All(Option<&'a Digest>),
	/// Those of a part that follow a position, in descending order of their positions. No more is read than is returned.
	Part(Part, &'a Position, Timestamp),
	/// Those of these that have ended before a moment.
	Over(&'a [Digest], Timestamp),
	/// These, which are named in the order of digests.
	These(&'a [Digest]),
}

impl Pick<'_> {
	/// What it picks of all invites of a host, which come in the order of their digests.
	pub fn of<'a>(self, all: impl Iterator<Item = &'a Invite>, limit: u32) -> Vec<&'a Invite> {
		let is_open = |invite: &Invite| invite.ended_at.is_none();
		let follows =
			|invite: &Invite, after: Option<&Digest>| after.is_none_or(|after| invite.digest > *after);
		let is_picked = |invite: &&Invite| match self {
			Self::Bound(name) => {
				let is_bound = invite.invite_type == Type::Register && is_open(invite);
				is_bound && invite.username.as_deref() == Some(name)
			}
			Self::Tied(tie, until) => is_open(invite) && invite.created_at <= until && invite.is_tied(tie),
			Self::AllOfInviter(name) => invite.local_inviter().as_deref() == Some(name),
			Self::Due(now) => is_open(invite) && invite.is_expired(now),
			Self::Open(after) => is_open(invite) && follows(invite, after),
			Self::All(after) => follows(invite, after),
			Self::Part(part, after, now) => {
				invite.position(part, now).is_some_and(|position| position < *after)
			}
			Self::Over(digests, before) => {
				digests.contains(&invite.digest) && invite.ended_at.is_some_and(|ended_at| ended_at < before)
			}
			Self::These(digests) => digests.contains(&invite.digest),
		};
		let mut found: Vec<&Invite> = all.filter(is_picked).collect();
		match self {
			Self::AllOfInviter(_) => found.sort_by_key(|invite| (invite.created_at, invite.digest)),
			Self::Tied(..) => found.sort_by_key(|invite| Reverse(invite.created_at)),
			Self::Due(_) => found.sort_by_key(|invite| invite.expires),
			Self::Part(part, _, now) => found.sort_by_key(|invite| Reverse(invite.position(part, now))),
			_ => (),
		}
		found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
		found
	}
}

/// Which endings.
#[derive(Clone, Copy, Debug)]
pub enum Endings<'a> {
	/// Of these users.
	Of(&'a [String]),
	/// Up to so many that are due at a moment, the first of them first.
	Due(Timestamp, u32),
}

impl Endings<'_> {
	/// What it picks of all endings of a host.
	pub fn of<'a>(self, all: impl Iterator<Item = &'a Ending>) -> Vec<Ending> {
		match self {
			Self::Of(usernames) => {
				all.filter(|ending| usernames.contains(&ending.username)).cloned().collect()
			}
			Self::Due(now, limit) => {
				let mut due: Vec<Ending> = all.filter(|ending| ending.due <= now).cloned().collect();
				due.sort_by_key(|ending| ending.due);
				due.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
				due
			}
		}
	}
}

/// Whose lineage.
#[derive(Clone, Copy, Debug)]
pub enum Members<'a> {
	/// Of one account.
	Of(&'a str),
	/// Of all that somebody brought, in the order of their names.
	BroughtBy(&'a str),
}

/// The rows of one host in one transaction. No rule lives here.
///
/// In [`Store::write`], every invite that [`Rows::invite`] and [`Rows::invites`] return is locked until the end; what
/// somebody else has locked is left out of [`Pick::Due`], [`Pick::Over`], [`Pick::Tied`] and [`Endings::Due`], and waited for
/// otherwise. The order of a use case's verbs is part of what it is: it locks the invite, and then reads its claims.
///
/// Every verb fails when the storage does, or holds what was never written there.
#[expect(clippy::missing_errors_doc, reason = "stated once, above")]
pub trait Rows {
	/// The invite, ended ones included. What is [attached](Invite::fields) to it may be damaged.
	fn invite(&mut self, digest: &Digest) -> Result<Option<Invite>, TxError>;

	/// Up to `limit` invites; as of [`Rows::invite`]. Where one writer is let in at a time, nothing has to be locked.
	fn invites(&mut self, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError> {
		self.peek(pick, limit)
	}

	/// The same without a lock.
	fn peek(&mut self, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError>;

	/// Up to `limit` invites that ended before a moment and are not claimed, with the end of their validity: the first to
	/// end first. Locks nothing.
	fn over(&mut self, before: Timestamp, limit: u32) -> Result<Vec<(Digest, Option<Timestamp>)>, TxError>;

	/// How many invites the open part has after a position, counting up to `limit`, and the position of the last one.
	fn count_open(&mut self, after: &Position, limit: u32) -> Result<(u32, Option<Position>), TxError> {
		// What is open depends on no moment.
		let moment = Timestamp::MIN;
		let found = self.peek(Pick::Part(Part::Open, after, moment), limit)?;
		let last = found.last().and_then(|invite| invite.position(Part::Open, moment));
		Ok((u32::try_from(found.len()).unwrap_or(u32::MAX), last))
	}

	/// Keeps invites; of each, whether its digest was new. One that is known stays as it is.
	fn insert(&mut self, invites: &[&Invite]) -> Result<Vec<bool>, TxError>;

	/// Writes back what can change of invites.
	fn update(&mut self, invites: &[Invite]) -> Result<(), TxError>;

	/// Removes invites with their uses.
	fn remove(&mut self, digests: &[Digest]) -> Result<(), TxError>;

	/// How many invites of an inviter are open, have not expired, and were made after a moment, counting up to `limit`.
	fn count_made(
		&mut self,
		inviter: &str,
		after: Option<Timestamp>,
		limit: u32,
		now: Timestamp,
	) -> Result<u32, TxError> {
		let made = self.peek(Pick::AllOfInviter(inviter), u32::MAX)?;
		let is_open = |invite: &&Invite| invite.ended_at.is_none() && !invite.is_expired(now);
		let is_counted = |invite: &&Invite| after.is_none_or(|after| invite.created_at > after);
		let open = made.iter().filter(is_open).filter(is_counted).count();
		Ok(u32::try_from(open).unwrap_or(u32::MAX).min(limit))
	}

	/// When the newest invites of an inviter were made, whatever became of them: the newest first, up to `limit`.
	fn newest_made(&mut self, inviter: &str, limit: u32) -> Result<Vec<Timestamp>, TxError> {
		let made = self.peek(Pick::AllOfInviter(inviter), u32::MAX)?;
		let newest = made.iter().rev().map(|invite| invite.created_at);
		Ok(newest.take(usize::try_from(limit).unwrap_or(usize::MAX)).collect())
	}

	/// All claims: the attempts that are under way, a handful.
	fn claims(&mut self) -> Result<Vec<Claim>, TxError>;

	/// Keeps a claim whose nonce is new.
	fn insert_claim(&mut self, claim: &Claim) -> Result<(), TxError>;

	/// Removes claims, and returns those that were there.
	fn take_claims(&mut self, nonces: &[Nonce]) -> Result<Vec<Claim>, TxError>;

	/// Counts one more renewal of a claim; `false` if there is no such claim.
	fn renew_claim(&mut self, nonce: &Nonce) -> Result<bool, TxError>;

	/// Whether the process of this name, another than this one, lives. What proves that it is over stays so until the end
	/// of the transaction.
	fn life(&mut self, _boot: &Nonce) -> Result<Life, TxError> {
		Ok(Life::Unknown { connection: 0 })
	}

	/// The uses of invites, in the order of the digests and of when they were made (of two in one second, in that of their
	/// nonces).
	fn redemptions(&mut self, digests: &[Digest]) -> Result<Vec<(Digest, Redemption)>, TxError>;

	/// Keeps a use of an invite.
	fn insert_redemption(&mut self, digest: &Digest, redemption: &Redemption) -> Result<(), TxError>;

	/// Whether any use of any invite of the host names this username. For the rare case: it may read all of them.
	fn is_named(&mut self, username: &str) -> Result<bool, TxError>;

	/// Whether somebody became a contact by an invite, under this JID, or is the account of this name that was registered
	/// with it.
	fn is_known(&mut self, digest: &Digest, jid: &str, username: Option<&str>) -> Result<bool, TxError>;

	/// Who brought whom.
	fn members(&mut self, which: Members<'_>) -> Result<Vec<Member>, TxError>;

	/// Keeps who brought an account, in the place of what was known of it.
	fn put_member(&mut self, member: &Member) -> Result<(), TxError>;

	/// Forgets who brought an account.
	fn remove_member(&mut self, username: &str) -> Result<(), TxError>;

	/// The ends of many invites that are under way, or were until just now.
	fn endings(&mut self, which: Endings<'_>) -> Result<Vec<Ending>, TxError>;

	/// Keeps an ending, in the place of that of the same user and scope.
	fn put_ending(&mut self, ending: &Ending) -> Result<(), TxError>;

	/// Removes an ending.
	fn remove_ending(&mut self, ending: &Ending) -> Result<(), TxError>;
}

/// Why a store could not do its work. The texts tell an operator what to do, and hold no token.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
	/// Two invites with one digest in one host.
	#[error("an invite with this token exists already")]
	Exists,
	/// The storage has no place for this; nothing was changed.
	#[error("{what} cannot be kept in this storage")]
	Unsupported {
		/// What it is, as the subject of a sentence.
		what: &'static str,
	},
	/// The storage cannot be used at all as it is configured or as it lies there.
	#[error("{problem}")]
	Unusable {
		/// What is wrong and what to do, in one line.
		problem: String,
		/// What the operating system or the database said, if anything.
		source: Option<Box<dyn Error + Send + Sync>>,
	},
	/// The storage failed this time; the next call may succeed.
	#[error("{problem}: {source}")]
	Unavailable {
		/// What was being done.
		problem: String,
		/// What the operating system or the database said.
		source: Box<dyn Error + Send + Sync>,
	},
	/// The storage answers, but holds something that this module never wrote.
	#[error("the invite {id} is damaged in the store: {source}")]
	Damaged {
		/// Public id of the invite.
		id: String,
		/// What is wrong with it.
		source: Box<dyn Error + Send + Sync>,
	},
}

impl StoreError {
	/// Of an invite that cannot be read.
	pub(crate) fn damaged(digest: &Digest, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
		Self::Damaged { id: digest.id().to_string(), source: source.into() }
	}
}
