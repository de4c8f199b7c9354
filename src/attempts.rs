//! What is under way: the attempts of this server to use an invite, and what is to be done about each next.
//!
//! Whoever registers claims the invite first. Code that is not ours then makes the account: it tells us when it has
//! succeeded, and nothing when it fails, waits for minutes, or vanishes. So the attempts are reviewed again and again for
//! as long as there are any ([`Attempts::plan`]): one whose coroutine waits gives a sign of life now and then, one whose
//! coroutine is over is released, and one that has succeeded while the storage failed is redeemed once that answers.
//!
//! Nothing here knows a store or a clock. Whoever carries out a [`Step`] says what became of it.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::clock::Timestamp;
use crate::ending::Scope;
use crate::redemption::{Account, Purpose};
use crate::token::{Digest, Nonce};
use crate::watch::Watch;

/// Between two reviews. They are the measure of time here, so time in which the storage held the server up does not count.
pub const REVIEW_INTERVAL: Duration = Duration::from_millis(100);

/// Reviews between two calls of a storage that fails, at first and at most: each may hold the server up.
const PAUSES: (u32, u32) = (10, 40);

/// What a process knows of the use of a host's invites. It outlives a reload of the module.
#[derive(Debug)]
pub struct UnderWay {
	attempts: Mutex<Attempts>,
	watch: Mutex<Watch>,
}

impl UnderWay {
	/// Nothing is known yet.
	#[must_use]
	pub fn new(lease: Duration) -> Self {
		Self { attempts: Mutex::new(Attempts::new(lease)), watch: Mutex::new(Watch::new(lease)) }
	}

	/// Changes how long somebody is watched who gives no sign of life. Nothing that is under way is forgotten.
	pub fn set_lease(&self, lease: Duration) {
		self.attempts().renewal = reviews_between_renewals(lease);
		let mut watch = self.watch();
		if watch.lease() != lease {
			*watch = Watch::new(lease);
		}
	}

	/// The attempts of this process.
	pub fn attempts(&self) -> MutexGuard<'_, Attempts> {
		self.attempts.lock().unwrap_or_else(PoisonError::into_inner)
	}

	/// What was seen of the others.
	pub fn watch(&self) -> MutexGuard<'_, Watch> {
		self.watch.lock().unwrap_or_else(PoisonError::into_inner)
	}
}

/// Somebody tries to use an invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
	/// The invite.
	pub digest: Digest,
	/// What for.
	pub purpose: Purpose,
	/// As [`Claim::invitee`](crate::redemption::Claim::invitee).
	pub invitee: Option<String>,
	/// The accounts that the invite depends on ([`Invite::depends_on`](crate::invite::Invite::depends_on)).
	pub depends_on: Vec<(String, Account)>,
}

/// What is to be done next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
	/// The account is there: turn the claim into a use.
	Redeem(Nonce),
	/// It is still being made: show that we live.
	Renew(Nonce),
	/// It was not made: give the claim back.
	Release(Nonce),
	/// Give the claims back that nobody holds.
	ReleaseOrphans,
	/// End the invites of a user, for something that happened at that time while the storage failed.
	End(Scope, String, Timestamp),
}

/// An attempt that has succeeded, and was not redeemed because the storage failed.
#[derive(Clone, Debug)]
pub struct Made {
	/// The attempt.
	pub attempt: Attempt,
	/// Who says that it has succeeded.
	pub source: Option<String>,
}

/// The attempts that hold a claim, and what else the storage still has to be told of.
#[derive(Debug)]
pub struct Attempts {
	/// Reviews between two signs of life.
	renewal: u32,
	/// Their accounts are being made. The reviews until the next sign of life.
	making: BTreeMap<Nonce, u32>,
	made: BTreeMap<Nonce, Made>,
	/// Claims that may still exist because the call that made or released them failed.
	orphans: Vec<Nonce>,
	/// What ends the invites of a user, and when it happened.
	late: BTreeMap<(Scope, String), Timestamp>,
	/// For how many reviews the storage is left alone after it has failed.
	pause: u32,
	/// How many of these are left.
	away: u32,
}

impl Attempts {
	/// Nothing is under way. Whoever gives no sign of life for a lease may lose its claims.
	#[must_use]
	pub fn new(lease: Duration) -> Self {
		Self {
			renewal: reviews_between_renewals(lease),
			making: BTreeMap::new(),
			made: BTreeMap::new(),
			orphans: Vec::new(),
			late: BTreeMap::new(),
			pause: PAUSES.0,
			away: 0,
		}
	}

	/// Notes an attempt that has claimed its invite.
	pub fn begin(&mut self, claim: Nonce) {
		self.making.insert(claim, self.renewal);
	}

	/// Whether a claim is one of these.
	#[must_use]
	pub fn holds(&self, claim: &Nonce) -> bool {
		self.making.contains_key(claim) || self.made.contains_key(claim)
	}

	/// An attempt that has succeeded and waits for the storage.
	#[must_use]
	pub fn made(&self, claim: &Nonce) -> Option<&Made> {
		self.made.get(claim)
	}

	/// Forgets an attempt: it was redeemed or has lost its claim, or its host was off while it ended.
	pub fn forget(&mut self, claim: &Nonce) {
		self.making.remove(claim);
		self.made.remove(claim);
	}

	/// Notes that an attempt has succeeded and could not be redeemed. From now on nothing that its stream does ends it.
	pub fn redeem_later(&mut self, claim: Nonce, made: Made) {
		self.making.remove(&claim);
		self.made.insert(claim, made);
		self.failed();
	}

	/// Notes claims that nobody holds, and that may be there all the same.
	pub fn release_later(&mut self, claims: impl IntoIterator<Item = Nonce>) {
		self.orphans.extend(claims);
		self.failed();
	}

	/// Notes what ends the invites of a user, and could not be stored when it happened.
	pub fn end_later(&mut self, scope: Scope, username: String, at: Timestamp) {
		let known = self.late.entry((scope, username)).or_insert(at);
		*known = at.max(*known);
		self.failed();
	}

	/// Notes that the end of a user's invites was stored.
	pub fn end_stored(&mut self, scope: Scope, username: &str) {
		self.late.remove(&(scope, username.to_owned()));
	}

	/// The claims that nobody holds.
	#[must_use]
	pub fn orphans(&self) -> &[Nonce] {
		&self.orphans
	}

	/// Notes that claims are gone, or have a holder again.
	pub fn adopt(&mut self, claims: &[Nonce]) {
		self.orphans.retain(|orphan| !claims.contains(orphan));
	}

	/// Notes a sign of life, or that it failed: a storage that is back is to know soon that we are here.
	pub fn renewed(&mut self, claim: &Nonce, has_failed: bool) {
		let pause = if has_failed { self.renewal.min(PAUSES.0) } else { self.renewal };
		if let Some(left) = self.making.get_mut(claim) {
			*left = pause;
		}
	}

	/// Notes that the storage has failed: it is left alone for a while.
	const fn failed(&mut self) {
		self.away = self.pause;
	}

	/// Notes that it has failed again, when it was asked for what it has refused before.
	pub fn failed_again(&mut self) {
		self.pause = PAUSES.1.min(self.pause * 2);
		self.failed();
	}

	/// Notes that the storage answers.
	pub const fn answered(&mut self) {
		(self.pause, self.away) = (PAUSES.0, 0);
	}

	/// Whether the storage is left alone, as it has failed a moment ago.
	#[must_use]
	pub const fn is_away(&self) -> bool {
		self.away > 0
	}

	/// A review: what is to be done now. `is_waiting` says of an attempt whether the coroutine that makes the account waits for
	/// something: it is neither over nor forgotten. As soon as the storage fails at a step that it has refused before
	/// ([`Step::is_retry`]), the others of these are left for a later review.
	#[must_use]
	pub fn plan(&mut self, is_waiting: impl Fn(&Nonce) -> bool) -> Vec<Step> {
		let mut steps = Vec::new();
		for (claim, left) in &mut self.making {
			*left = left.saturating_sub(1);
			if !is_waiting(claim) {
				steps.push(Step::Release(*claim));
			} else if *left == 0 {
				steps.push(Step::Renew(*claim));
			}
		}
		self.away = self.away.saturating_sub(1);
		if !self.is_away() {
			steps.extend(self.made.keys().map(|claim| Step::Redeem(*claim)));
			if !self.orphans.is_empty() {
				steps.push(Step::ReleaseOrphans);
			}
			let late = self.late.iter().map(|((scope, name), at)| Step::End(*scope, name.clone(), *at));
			steps.extend(late);
		}
		steps
	}

	/// Whether nothing is under way, so that nothing has to be reviewed.
	#[must_use]
	pub fn is_idle(&self) -> bool {
		self.making.is_empty() && self.made.is_empty() && self.orphans.is_empty() && self.late.is_empty()
	}
}

/// Three signs of life in a lease.
fn reviews_between_renewals(lease: Duration) -> u32 {
	let reviews = lease.as_millis() / 3 / REVIEW_INTERVAL.as_millis();
	u32::try_from(reviews).unwrap_or(u32::MAX).max(1)
}

impl Step {
	/// Whether the storage has refused it before.
	#[must_use]
	pub const fn is_retry(&self) -> bool {
		!matches!(self, Self::Renew(_) | Self::Release(_))
	}
}

#[cfg(test)]
mod tests {
	use super::*;

	/// With which a sign of life is due in every fifth review.
	const LEASE: Duration = Duration::from_millis(1500);
	const CLAIM: Nonce = Nonce::from_bytes([1; 16]);
	const OTHER: Nonce = Nonce::from_bytes([2; 16]);

	fn made() -> Made {
		let (digest, invitee) = (Digest::of(b"token"), Some("juliet".to_owned()));
		let attempt = Attempt { digest, purpose: Purpose::Account, invitee, depends_on: vec![] };
		Made { attempt, source: None }
	}

	fn one() -> Attempts {
		let mut attempts = Attempts::new(LEASE);
		attempts.begin(CLAIM);
		attempts
	}

	/// How many reviews plan nothing before one does, and what it plans.
	fn next(attempts: &mut Attempts, is_waiting: impl Fn(&Nonce) -> bool) -> (usize, Vec<Step>) {
		let plans = (0..100).map(|count| (count, attempts.plan(&is_waiting)));
		plans.into_iter().find(|(_, steps)| !steps.is_empty()).unwrap()
	}

	#[test]
	fn an_attempt_that_waits_gives_a_sign_of_life_three_times_in_a_lease() {
		let mut attempts = one();
		for _ in 0..3 {
			assert_eq!(next(&mut attempts, |_| true), (4, vec![Step::Renew(CLAIM)]));
			attempts.renewed(&CLAIM, false);
		}
		let mut attempts = Attempts::new(Duration::from_secs(60));
		attempts.begin(CLAIM);
		attempts.renewed(&CLAIM, true);
		assert_eq!(next(&mut attempts, |_| true).0, 9, "soon again where the storage has failed");
	}

	#[test]
	fn an_attempt_that_is_over_is_released_and_then_forgotten() {
		let mut attempts = one();
		attempts.begin(OTHER);
		assert_eq!(attempts.plan(|claim| *claim == OTHER), [Step::Release(CLAIM)]);
		attempts.forget(&CLAIM);
		assert!(!attempts.holds(&CLAIM) && attempts.holds(&OTHER) && !attempts.is_idle());
		attempts.forget(&OTHER);
		assert!(attempts.is_idle());
	}

	#[test]
	fn what_has_succeeded_is_redeemed_and_never_released_whatever_becomes_of_its_coroutine() {
		let mut attempts = one();
		attempts.redeem_later(CLAIM, made());
		assert_eq!(next(&mut attempts, |_| false), (9, vec![Step::Redeem(CLAIM)]), "after a pause");
		assert!(attempts.made(&CLAIM).is_some());
	}

	#[test]
	fn a_storage_that_fails_is_left_alone_for_a_pause_that_grows_up_to_the_longest() {
		let mut attempts = one();
		attempts.redeem_later(CLAIM, made());
		let pauses = [(); 4].map(|()| {
			let (pause, _) = next(&mut attempts, |_| false);
			attempts.failed_again();
			pause + 1
		});
		assert_eq!(pauses, [10, 20, 40, 40]);
		attempts.answered();
		assert!(!attempts.is_away());
		attempts.redeem_later(CLAIM, made());
		assert_eq!(next(&mut attempts, |_| false).0, 9, "the pauses begin anew");
	}

	#[test]
	fn claims_that_nobody_holds_are_released_until_they_are_gone_or_have_a_holder() {
		let mut attempts = Attempts::new(LEASE);
		attempts.release_later([CLAIM, OTHER]);
		assert_eq!(next(&mut attempts, |_| true), (9, vec![Step::ReleaseOrphans]));
		attempts.adopt(&[OTHER]);
		assert_eq!(attempts.orphans(), [CLAIM]);
		attempts.adopt(&[CLAIM]);
		assert!(attempts.is_idle());
	}

	#[test]
	fn what_ends_invites_is_remembered_with_the_time_at_which_it_happened() {
		let mut attempts = Attempts::new(LEASE);
		for at in [7, 9, 8] {
			attempts.end_later(Scope::Depending, "juliet".to_owned(), at);
		}
		let end = Step::End(Scope::Depending, "juliet".to_owned(), 9);
		assert_eq!(next(&mut attempts, |_| true), (9, vec![end]));
		attempts.end_stored(Scope::Depending, "juliet");
		assert!(attempts.is_idle());
	}
}
