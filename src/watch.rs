//! When the claims of a process may be settled that is not known to live.
//!
//! Taking a claim away needs proof that its owner has died: [`Life::Over`] is one. Where there is none to be had, who looks
//! needs another: the owner renews its claims three times in a lease and shows by other means that it lives, and nothing
//! of that was seen for a whole lease. Clocks are not compared, for they are set and differ between machines: who looks
//! measures the time by its own monotonic clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::redemption::Life;
use crate::token::Nonce;

/// What was seen of the owners of claims, who are named by their boots; of claims that this process has made and nobody
/// holds any more, each is its own.
#[derive(Debug)]
pub struct Watch {
	lease: Duration,
	seen: BTreeMap<Nonce, Seen>,
}

/// Looks at one owner that have shown no sign of life.
#[derive(Debug)]
struct Seen {
	/// The first.
	since: Instant,
	/// The newest.
	last: Instant,
	/// The connection by which all of them were made.
	connection: u64,
	/// The claims and how often they were renewed.
	renewals: BTreeMap<Nonce, i64>,
}

impl Watch {
	/// Nothing was seen yet.
	#[must_use]
	pub const fn new(lease: Duration) -> Self {
		Self { lease, seen: BTreeMap::new() }
	}

	/// How long somebody is watched.
	#[must_use]
	pub const fn lease(&self) -> Duration {
		self.lease
	}

	/// Notes what a look at `mono`, a moment of the monotonic clock, has shown of an owner: whether it lives, and its claims
	/// with how often they were renewed. Whether the claims may be settled now.
	pub fn may_settle(&mut self, owner: Nonce, life: Life, renewals: &[(Nonce, i64)], mono: Instant) -> bool {
		let connection = match life {
			Life::Alive => {
				self.seen.remove(&owner);
				return false;
			}
			Life::Over => return true,
			Life::Unknown { connection } => connection,
		};
		let renewals: BTreeMap<Nonce, i64> = renewals.iter().copied().collect();
		// Looks that are too far apart prove nothing: who looks was held up, and may have missed what the owner did.
		let longest_gap = self.lease * 2 / 3;
		match self.seen.get_mut(&owner) {
			Some(seen)
				if seen.connection == connection
					&& mono.saturating_duration_since(seen.last) <= longest_gap
					&& !has_news(&seen.renewals, &renewals) =>
			{
				seen.last = mono;
				seen.renewals = renewals;
				mono.saturating_duration_since(seen.since) >= self.lease
			}
			_ => {
				self.seen.insert(owner, Seen { since: mono, last: mono, connection, renewals });
				false
			}
		}
	}

	/// Forgets all owners but these: the others have no claims any more.
	pub fn retain(&mut self, is_there: impl Fn(&Nonce) -> bool) {
		self.seen.retain(|owner, _| is_there(owner));
	}

	/// Forgets everything, because a look has failed, or a renewal may have: what happened then was not seen.
	pub fn clear(&mut self) {
		self.seen.clear();
	}
}

/// Whether there is a claim that is new, or was renewed. That others are gone may be the doing of somebody else.
fn has_news(before: &BTreeMap<Nonce, i64>, now: &BTreeMap<Nonce, i64>) -> bool {
	now.iter().any(|(nonce, renewals)| before.get(nonce) != Some(renewals))
}

#[cfg(test)]
mod tests {
	use std::sync::LazyLock;

	use super::*;

	/// So many seconds after the tests have begun.
	fn at(second: u64) -> Instant {
		static START: LazyLock<Instant> = LazyLock::new(crate::clock::monotonic);
		*START + Duration::from_secs(second)
	}

	const LEASE: Duration = Duration::from_secs(60);
	const OWNER: Nonce = Nonce::from_bytes([1; 16]);
	const CLAIM: Nonce = Nonce::from_bytes([2; 16]);
	const OTHER: Nonce = Nonce::from_bytes([3; 16]);
	const UNKNOWN: Life = Life::Unknown { connection: 1 };

	/// Looks at the owner of one claim at these seconds, and says at which it may be settled.
	fn settled(watch: &mut Watch, looks: impl IntoIterator<Item = u64>) -> Vec<u64> {
		let look = |second: &u64| watch.may_settle(OWNER, UNKNOWN, &[(CLAIM, 0)], at(*second));
		looks.into_iter().filter(look).collect()
	}

	fn look(watch: &mut Watch, second: u64, life: Life, renewals: &[(Nonce, i64)]) -> bool {
		watch.may_settle(OWNER, life, renewals, at(second))
	}

	#[test]
	fn who_is_proved_to_be_dead_is_settled_at_the_first_look() {
		assert!(look(&mut Watch::new(LEASE), 0, Life::Over, &[(CLAIM, 5)]));
	}

	#[test]
	fn who_lives_is_never_settled_however_long_it_renews_nothing() {
		let mut watch = Watch::new(LEASE);
		assert!((0..1000).step_by(20).all(|second| !look(&mut watch, second, Life::Alive, &[(CLAIM, 0)])));
	}

	#[test]
	fn nobody_is_settled_without_proof_before_a_whole_lease_of_looks() {
		assert_eq!(settled(&mut Watch::new(LEASE), [0, 20, 40, 59, 60, 80]), [60, 80]);
		assert!(settled(&mut Watch::new(LEASE), [1000, 1020, 1040, 1059]).is_empty());
	}

	#[test]
	fn a_single_look_proves_nothing_whenever_it_is_made() {
		assert!(settled(&mut Watch::new(LEASE), [1_000_000]).is_empty());
	}

	#[test]
	fn a_renewal_or_a_new_claim_is_a_sign_of_life_and_one_that_is_gone_is_none() {
		for news in [[(CLAIM, 1), (OTHER, 0)], [(CLAIM, 0), (Nonce::from_bytes([4; 16]), 0)]] {
			let mut watch = Watch::new(LEASE);
			assert_eq!(
				[0, 30, 50].map(|second| look(&mut watch, second, UNKNOWN, &[(CLAIM, 0), (OTHER, 0)])),
				[false; 3]
			);
			let looks = [59, 90, 118, 119].map(|second| look(&mut watch, second, UNKNOWN, &news));
			assert_eq!(looks, [false, false, false, true]);
		}
		let mut watch = Watch::new(LEASE);
		look(&mut watch, 0, UNKNOWN, &[(CLAIM, 0), (OTHER, 0)]);
		look(&mut watch, 30, UNKNOWN, &[(CLAIM, 0)]);
		assert!(look(&mut watch, 60, UNKNOWN, &[(CLAIM, 0)]));
	}

	#[test]
	fn who_was_seen_alive_is_watched_from_the_beginning_again() {
		let mut watch = Watch::new(LEASE);
		assert!(settled(&mut watch, [0, 30]).is_empty());
		look(&mut watch, 50, Life::Alive, &[(CLAIM, 0)]);
		assert_eq!(settled(&mut watch, [60, 90, 119, 120]), [120]);
	}

	#[test]
	fn looks_by_another_connection_begin_anew() {
		let mut watch = Watch::new(LEASE);
		assert!(settled(&mut watch, [0, 30]).is_empty());
		assert!(!look(&mut watch, 60, Life::Unknown { connection: 2 }, &[(CLAIM, 0)]));
		assert!(!look(&mut watch, 90, Life::Unknown { connection: 2 }, &[(CLAIM, 0)]));
		assert!(look(&mut watch, 120, Life::Unknown { connection: 2 }, &[(CLAIM, 0)]));
	}

	#[test]
	fn who_was_held_up_between_two_looks_begins_anew() {
		assert_eq!(settled(&mut Watch::new(LEASE), [0, 41, 61, 101]), [101]);
		assert_eq!(settled(&mut Watch::new(LEASE), [0, 200, 220, 240, 260]), [260]);
	}

	#[test]
	fn what_is_forgotten_is_watched_from_the_beginning_again() {
		let mut watch = Watch::new(LEASE);
		assert!(settled(&mut watch, [0, 30]).is_empty());
		watch.retain(|owner| *owner == OWNER);
		assert_eq!(settled(&mut watch, [60]), [60]);
		watch.retain(|_| false);
		assert_eq!(settled(&mut watch, [80, 110, 140]), [140]);
		watch.clear();
		assert!(settled(&mut watch, [150]).is_empty());
	}
}
