//! Where invites are kept.
//!
//! A store holds [`Invite`]s under their host and digest and makes single decisions atomic; it decides
//! nothing itself and owns no clock. To add one: implement [`InviteStore`], then give it to
//! `conformance::promises!` in its tests; passing that suite is what makes it a store.

#[cfg(any(test, feature = "conformance"))]
pub(crate) mod conformance;
pub mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod sqlite;

use std::collections::HashMap;
use std::error::Error;

use thiserror::Error;

use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::lineage::Member;
use crate::listing::{Part, Position};
use crate::policy::{Allowance, LimitReached, Usage};
use crate::redemption::{Admission, Claim, Redeemed, Redemption, Refusal, View};
use crate::token::{Digest, Nonce};

/// Why an invite is revoked that another one [`supersedes`](crate::redemption::supersedes).
const SUPERSEDED: &str = "a newer invite took its place";

/// An invite with its history, as it moves from one store to another. Claims do not move: they are of the moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
	/// The invite as it stands.
	pub invite: Invite,
	/// Its uses, in the order of [`InviteStore::redemptions`].
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
	/// What was given with an invite that is for a contact alone. Without it, [`InviteStore::create`] keeps its end and no
	/// more, as the bundled module does, whose callers always give something; an import is refused.
	pub contact_details: bool,
	/// Pending invites without their tokens.
	pub digests: bool,
}

impl Carries {
	/// Of a store that can keep everything.
	pub const ALL: Self =
		Self { history: true, pause: true, several_uses: true, contact_details: true, digests: true };

	/// Whether all of a record can be kept.
	///
	/// # Errors
	/// [`StoreError::Unsupported`], naming what cannot.
	pub fn admit(self, record: &Record) -> Result<(), StoreError> {
		let invite = &record.invite;
		let has_history = invite.uses > 0
			|| invite.revoked_at.is_some()
			|| invite.ended_at.is_some()
			|| !record.redemptions.is_empty();
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

	/// The same of an import, which must not lose what a caller of [`InviteStore::create`] has to do without.
	///
	/// # Errors
	/// [`StoreError::Unsupported`], naming what cannot be kept.
	pub fn admit_import(self, record: &Record) -> Result<(), StoreError> {
		let is_for_a_contact = !record.invite.allow_registration;
		if is_for_a_contact && !self.contact_details && !record.invite.fields.is_empty() {
			return Err(StoreError::Unsupported { what: "what was given with an invite for a contact" });
		}
		self.admit(record)
	}
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

/// What a store must do.
///
/// A store is used by one thread, unless it is `Send` and `Sync` besides.
///
/// Every call is atomic: seen from other threads and other processes that share the storage, it has
/// happened or it has not. When a call that changes something returns `Ok`, the change survives a crash of
/// the machine, unless the store says in its own documentation that it is not durable. When it returns
/// an error, nothing was changed, with one exception: an error after the commit was sent may leave it done.
///
/// Where a rule is needed to decide, the store reads what the rule needs, asks [`crate::redemption`],
/// [`crate::policy`] or [`crate::lifecycle`], and acts on the answer, all in one transaction that no other can come between.
pub trait InviteStore {
	/// What it can keep, and what it refuses.
	fn carries(&self) -> Carries;

	/// Keeps a new invite, and revokes those that it [`supersedes`](crate::redemption::supersedes), which it returns.
	///
	/// # Errors
	/// [`StoreError::Exists`] if the host has an invite with this digest already; that one stays as it is.
	/// [`StoreError::Unsupported`] for what the store does not carry.
	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError>;

	/// The same for somebody whose limits [`decide_creation`](crate::policy::decide_creation) knows, if it lets the invite be
	/// made. Made invites are counted up to the moment at which this one is.
	///
	/// # Errors
	/// The inner one is the decision's; the outer one is the storage's, as of [`InviteStore::create`].
	fn create_within(
		&self,
		invite: &Invite,
		allowance: &Allowance,
	) -> Result<Result<Vec<Invite>, LimitReached>, StoreError>;

	/// What [`decide_creation`](crate::policy::decide_creation) needs to know of an inviter, for an invite that is not made.
	///
	/// # Errors
	/// When the storage fails.
	fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Result<Usage, StoreError>;

	/// Keeps those of the invites whose token the host does not know yet, with their uses and what these mean for
	/// [lineage](crate::lineage::birth), whatever became of the ones it knows. How many those were.
	///
	/// # Errors
	/// When the storage fails; [`StoreError::Unsupported`] if one of them is more than the store carries.
	fn import(&self, records: &[Record]) -> Result<usize, StoreError>;

	/// Up to `limit` invites of the host, whatever became of them, with their uses: those that follow `after`, in the order
	/// of their digests. Fewer than `limit` means: these were the last.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn records(&self, host: &str, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, StoreError>;

	/// Takes the secret out of those of up to `limit` invites that have one still: of those that follow `after`, in the order
	/// of their digests, whatever became of them. Where to go on, unless those were the last.
	///
	/// # Errors
	/// When the storage fails; [`StoreError::Unsupported`] where it keeps invites by nothing but their tokens.
	fn forget_tokens(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Option<Digest>, StoreError>;

	/// Looks the storage of a host over for an operator: whether it can be reached, is whole, and is kept as it should be.
	/// What is wrong is a finding, not an error. What it says of the clock comes from [`Finding::of_clock`].
	fn check(&self, host: &str, now: Timestamp) -> Vec<Finding>;

	/// The invite as it stands, ended ones included; `None` if there never was one, or it was purged.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError>;

	/// Makes the claim if [`decide`](crate::redemption::decide) asks for it, and returns what it decided. The holder's earlier
	/// claim on the same invite is released first, whatever the decision.
	///
	/// # Errors
	/// The inner one is the decision's; the outer one is the storage's.
	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<Admission, Refusal>, StoreError>;

	/// Turns a claim into a use, whatever was done to the invite since: who holds a claim has been let in. What the use means
	/// for [lineage](crate::lineage::birth) is kept with it.
	///
	/// # Errors
	/// When the storage fails. The claim then stands as it stood.
	fn redeem(
		&self,
		host: &str,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError>;

	/// Claims and redeems in one step. The invite as it stands after the use; none where [`Admission::Known`] needs none.
	///
	/// # Errors
	/// As of [`InviteStore::claim`].
	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Option<Invite>, Refusal>, StoreError>;

	/// Drops a claim, if it is still one; `only_stale` spares one that was renewed meanwhile.
	///
	/// # Errors
	/// When the storage fails.
	fn release(&self, host: &str, nonce: &Nonce, only_stale: Option<Timestamp>) -> Result<bool, StoreError>;

	/// Moves the lease of a claim to a later end; `false` if there is no such claim any more.
	///
	/// # Errors
	/// When the storage fails.
	fn renew(&self, host: &str, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, StoreError>;

	/// All claims of the host: the attempts that are under way, a handful.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn claims(&self, host: &str) -> Result<Vec<Claim>, StoreError>;

	/// What [`decide`](crate::redemption::decide) needs to know of a claim, which is not made.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn view(&self, claim: &Claim, now: Timestamp) -> Result<View, StoreError>;

	/// What [`decide_name`](crate::redemption::decide_name) needs to know of a username.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn view_name(&self, host: &str, username: &str, now: Timestamp) -> Result<View, StoreError>;

	/// Marks the invite revoked at `now`, whatever its kind; an earlier revocation stays as it is. Claims on it stand. The
	/// invite as it then is, if this call did it; `None` if there is no such invite, or it was revoked or used up before.
	///
	/// # Errors
	/// When the storage fails.
	fn revoke(
		&self,
		host: &str,
		digest: &Digest,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, StoreError>;

	/// Revokes all invites of this username (bound to it, or by it as inviter) that have not ended and that `which` picks.
	///
	/// # Errors
	/// When the storage fails.
	fn retire(
		&self,
		host: &str,
		username: &str,
		which: &dyn Fn(&Invite) -> bool,
		why: &str,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError>;

	/// Revokes the open invites of an inviter, and with `is_branch` of everybody in the inviter's
	/// [branch](crate::lineage::branch).
	///
	/// # Errors
	/// When the storage fails.
	fn retire_inviter(
		&self,
		host: &str,
		inviter: &str,
		is_branch: bool,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError>;

	/// All invites of an inviter that are still known, whatever became of them, the oldest first (of two of one second, in
	/// the order of their digests).
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn made_by(&self, host: &str, inviter: &str) -> Result<Vec<Invite>, StoreError>;

	/// The accounts that somebody brought, in the order of their names. None where the store does not carry
	/// [`Carries::history`].
	///
	/// # Errors
	/// When the storage fails.
	fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, StoreError>;

	/// Who brought an account, if that is known.
	///
	/// # Errors
	/// When the storage fails.
	fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, StoreError>;

	/// Takes over what is known elsewhere, of accounts where it [replaces](Member::replaces) what the store knows. Of how many
	/// it did.
	///
	/// # Errors
	/// When the storage fails.
	fn import_lineage(&self, host: &str, members: &[Member]) -> Result<usize, StoreError>;

	/// Pauses or resumes an invite that has not ended; `false` if there is none that this changes.
	///
	/// # Errors
	/// When the storage fails; [`StoreError::Unsupported`] where the store does not carry [`Carries::pause`].
	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError>;

	/// Moves the end of an invite's validity, where [`Invite::extend`] lets it. Since one that had expired is good again by
	/// it, those that it [`supersedes`](crate::redemption::supersedes) are revoked. The invite as it then is, and those that
	/// were revoked; `None` if there is no such invite, or it was used up or revoked before.
	///
	/// # Errors
	/// When the storage fails.
	fn extend(
		&self,
		host: &str,
		digest: &Digest,
		expires: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Option<(Invite, Vec<Invite>)>, StoreError>;

	/// Marks up to `limit` invites that have expired as ended when they expired, and returns them. Each is returned once.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn end_expired(&self, host: &str, limit: u32, now: Timestamp) -> Result<Vec<Invite>, StoreError>;

	/// Up to `limit` invites of the host that have not ended and that follow `after`, in the order of their digests.
	/// Fewer than `limit` means: these were the last.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn open_invites(&self, host: &str, after: Option<&Digest>, limit: u32)
	-> Result<Vec<Invite>, StoreError>;

	/// Up to `limit` invites that have a [position](Invite::position) in the part after this one, in descending order of
	/// their positions. Fewer than `limit` means: these were the last. Reads no more than it returns, however many the host
	/// has.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn listing(
		&self,
		host: &str,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError>;

	/// How many invites the open part has after this position, counting up to `limit`; and where to go on counting, unless
	/// those were the last.
	///
	/// # Errors
	/// When the storage fails.
	fn count_open(
		&self,
		host: &str,
		after: &Position,
		limit: u32,
	) -> Result<(u32, Option<Position>), StoreError>;

	/// Removes up to `limit` invites that ended before `before`, that are not [`Bundled`] with an end to come, and on which
	/// there is no claim, with their uses. How many; fewer than `limit` means: there are no more.
	///
	/// # Errors
	/// When the storage fails.
	fn purge(&self, host: &str, before: Timestamp, limit: u32, bundled: &Bundled) -> Result<u32, StoreError>;

	/// Every use of an invite, in the order in which they were made (of two in one second, in that of their nonces). None
	/// where the store does not carry [`Carries::history`].
	///
	/// # Errors
	/// When the storage fails.
	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError>;
}

/// Where the next page begins, if there may be one: a page that is not full is the last.
fn last_of_full_page(page: &[Invite], limit: u32) -> Option<Digest> {
	let is_last = u32::try_from(page.len()).is_ok_and(|found| found < limit);
	if is_last { None } else { page.last().map(|invite| invite.digest) }
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
