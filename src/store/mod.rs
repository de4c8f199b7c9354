//! Where invites are kept.
//!
//! A store holds [`Invite`]s under their host and digest and makes single decisions atomic; it decides
//! nothing itself and owns no clock. To add one: implement [`InviteStore`], then give it to
//! `conformance::suite!` in its tests; passing that suite is what makes it a store.

#[cfg(test)]
pub(crate) mod conformance;
pub mod memory;
pub mod sqlite;

use std::error::Error;

use thiserror::Error;

use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::redemption::{Claim, Redeemed, Redemption, Refusal, View};
use crate::token::{Digest, Nonce};

/// Why an invite is revoked that another one [`supersedes`](crate::redemption::supersedes).
const SUPERSEDED: &str = "a newer invite took its place";

/// What a store must do.
///
/// Every call is atomic: seen from other threads and other processes that share the storage, it has
/// happened or it has not. When a call that changes something returns `Ok`, the change survives a crash of
/// the machine, unless the store says in its own documentation that it is not durable. When it returns
/// an error, nothing was changed, with one exception: an error after the commit was sent may leave it done.
///
/// Where a rule is needed to decide, the store reads what the rule needs, asks [`crate::redemption`] or
/// [`crate::lifecycle`], and acts on the answer, all in one transaction that no other can come between.
pub trait InviteStore: Send + Sync {
	/// Keeps a new invite, and revokes those that it [`supersedes`](crate::redemption::supersedes), which it returns.
	///
	/// # Errors
	/// [`StoreError::Exists`] if the host has an invite with this digest already; that one stays as it is.
	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError>;

	/// Keeps those of the invites whose token the host does not know yet, whatever became of the ones it knows. How many
	/// those were.
	///
	/// # Errors
	/// When the storage fails.
	fn import(&self, invites: &[Invite]) -> Result<usize, StoreError>;

	/// The invite as it stands, ended ones included; `None` if there never was one, or it was purged.
	///
	/// # Errors
	/// When the storage fails, or what it holds is damaged.
	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError>;

	/// Makes the claim if [`decide`](crate::redemption::decide) lets it. The holder's earlier claim on the same invite is
	/// released first, whatever the decision.
	///
	/// # Errors
	/// The inner one is the decision's; the outer one is the storage's.
	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<(), Refusal>, StoreError>;

	/// Turns a claim into a use, whatever was done to the invite since: who holds a claim has been let in.
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

	/// Claims and redeems in one step.
	///
	/// # Errors
	/// As of [`InviteStore::claim`].
	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Invite, Refusal>, StoreError>;

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

	/// Pauses or resumes an invite that has not ended; `false` if there is none that this changes.
	///
	/// # Errors
	/// When the storage fails.
	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError>;

	/// Marks up to `limit` invites that have expired as ended, and returns them. Each is returned once.
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

	/// Every use of an invite, in the order in which they were made.
	///
	/// # Errors
	/// When the storage fails.
	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError>;
}

/// Why a store could not do its work. The texts tell an operator what to do, and hold no token.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum StoreError {
	/// Two invites with one digest in one host.
	#[error("an invite with this token exists already")]
	Exists,
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
