//! Reviewing what is under way: what the attempts and the storage have left to do.

use super::{Ended, Invites};
use crate::attempts::{Made, Step};
use crate::clock::Timestamp;
use crate::ending::Scope;
use crate::error::InviteError;
use crate::invite::Invite;
use crate::token::Nonce;

/// What a review has done.
#[derive(Debug, Default)]
pub struct Review {
	/// The attempts that are over.
	pub over: Vec<Nonce>,
	/// The uses that have come of them.
	pub used: Vec<(Invite, Made)>,
	/// Those whose claim was lost, so that nothing came of them. What they have made stays: it may have been in use for a
	/// while.
	pub lost: Vec<(Made, InviteError)>,
	/// The ends of a user's invites that were stored.
	pub ended: Vec<(Scope, String, Ended)>,
	/// What failed for the first time.
	pub problems: Vec<InviteError>,
	/// Whether nothing is under way any more.
	pub is_idle: bool,
}

impl Invites {
	/// Does what is to be done now about the attempts of this process ([`Attempts::plan`](crate::attempts::Attempts::plan)).
	/// `waiting` are those whose coroutines wait for something. To be called every
	/// [`REVIEW_INTERVAL`](crate::attempts::REVIEW_INTERVAL) until it is idle.
	#[must_use]
	pub fn review(&self, waiting: &[Nonce], now: Timestamp) -> Review {
		let mut review = Review::default();
		let plan = self.attempts().plan(|claim| waiting.contains(claim));
		for step in plan {
			// Each may hold the server up, so one of those that wait for the storage is tried for all.
			if step.is_retry() && self.attempts().is_away() {
				continue;
			}
			let has_failed = match step {
				Step::Renew(claim) => {
					let has_failed = self.renew(&claim).is_err();
					self.attempts().renewed(&claim, has_failed);
					continue;
				}
				Step::Release(claim) => {
					review.over.push(claim);
					review.problems.extend(self.release(&claim).err());
					continue;
				}
				Step::Redeem(claim) => self.redeem_made(claim, &mut review, now),
				Step::ReleaseOrphans => self.release_orphans().is_err(),
				Step::End(scope, username, at) => self.end_late(scope, username, at, &mut review, now),
			};
			if has_failed {
				self.attempts().failed_again();
			} else {
				self.attempts().answered();
			}
		}
		review.is_idle = self.attempts().is_idle();
		review
	}

	/// Forgets an attempt without releasing its claim: it has ended unseen, its account made or not.
	pub fn forget(&self, claim: &Nonce) {
		self.attempts().forget(claim);
	}

	/// Redeems an attempt that has succeeded while the storage failed. Whether it still does.
	fn redeem_made(&self, claim: Nonce, review: &mut Review, now: Timestamp) -> bool {
		let Some(made) = self.attempts().made(&claim).cloned() else { return false };
		match self.redeem(made.attempt.clone(), &claim, made.source.as_deref(), now) {
			Err(error) if error.may_pass() => return true,
			Err(lost) => review.lost.push((made, lost)),
			Ok(Some(invite)) => review.used.push((invite, made)),
			Ok(None) => (),
		}
		review.over.push(claim);
		false
	}

	/// Ends the invites of a user, for something that happened while the storage failed. Whether it still does.
	fn end_late(
		&self,
		scope: Scope,
		username: String,
		at: Timestamp,
		review: &mut Review,
		now: Timestamp,
	) -> bool {
		let Ok(ended) = self.end_for(scope, &username, Some(at), now) else { return true };
		self.attempts().end_stored(scope, &username);
		review.ended.push((scope, username, ended));
		false
	}
}

#[cfg(test)]
mod tests {
	use std::sync::Arc;
	use std::sync::Mutex;
	use std::time::Duration;

	use proptest::prelude::*;

	use super::*;
	use crate::attempts::{Attempt, UnderWay};
	use crate::check::Finding;
	use crate::redemption::Purpose;
	use crate::store::memory::MemoryStore;
	use crate::store::{Lock, Store, StoreError, Work};
	use crate::token::Digest;

	const NOW: Timestamp = 1_700_000_000;
	const HOST: &str = "example.com";

	/// What becomes of whatever is written.
	#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
	enum Storage {
		#[default]
		Works,
		/// It is refused.
		Fails,
		/// It is done, and reported as failed.
		LosesAnswers,
	}

	/// A store that does what it is told.
	#[derive(Default)]
	struct Flaky(MemoryStore, Mutex<Storage>);

	impl Flaky {
		fn becomes(&self, storage: Storage) {
			*self.1.lock().unwrap() = storage;
		}
	}

	impl Store for Flaky {
		fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
			self.0.read(doing, host, work)
		}

		fn write(
			&self,
			doing: &'static str,
			host: &str,
			locks: &[Lock<'_>],
			work: Work<'_>,
		) -> Result<(), StoreError> {
			let storage = *self.1.lock().unwrap();
			if storage != Storage::Fails {
				self.0.write(doing, host, locks, work)?;
			}
			if storage != Storage::Works {
				let source = "it is told to".into();
				return Err(StoreError::Unavailable { problem: doing.to_owned(), source });
			}
			Ok(())
		}

		fn health(&self, host: &str, now: Timestamp) -> Vec<Finding> {
			self.0.health(host, now)
		}
	}

	/// Registrations, each with an invite of its own and one at a time.
	const NAMES: [&str; 4] = ["juliet", "nurse", "romeo", "paris"];

	#[derive(Clone, Debug)]
	enum Act {
		/// Claims an invite.
		Begin(usize),
		/// The account was made.
		Succeed(usize),
		/// The coroutine ends without saying anything.
		Vanish(usize),
		/// The module is loaded anew.
		Reload,
		Become(Storage),
		Review,
	}

	fn act() -> impl Strategy<Value = Act> {
		let of = || 0..NAMES.len();
		prop_oneof![
			4 => of().prop_map(Act::Begin),
			3 => of().prop_map(Act::Succeed),
			2 => of().prop_map(Act::Vanish),
			1 => Just(Act::Reload),
			3 => prop_oneof![Just(Storage::Works), Just(Storage::Fails), Just(Storage::LosesAnswers)].prop_map(Act::Become),
			5 => Just(Act::Review),
		]
	}

	/// Where a registration stands.
	#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
	enum Stage {
		#[default]
		Idle,
		Waits(Nonce),
		Succeeded,
	}

	struct Run {
		store: Arc<Flaky>,
		under_way: Arc<UnderWay>,
		invites: Invites,
		stages: [Stage; NAMES.len()],
		/// How often the use of each was reported.
		reported: [usize; NAMES.len()],
	}

	fn digest(of: usize) -> Digest {
		Digest::of(NAMES[of].as_bytes())
	}

	fn attempt(of: usize) -> Attempt {
		let invitee = Some(NAMES[of].to_owned());
		Attempt { digest: digest(of), purpose: Purpose::Account, invitee, depends_on: Vec::new() }
	}

	impl Run {
		fn new() -> Self {
			let store = Arc::new(Flaky::default());
			let under_way = Arc::new(UnderWay::new(Duration::from_millis(900)));
			let invites = Self::loaded(&store, &under_way);
			for name in NAMES {
				let invite = crate::store::conformance::sample(HOST, name);
				let invite = Invite { invite_type: crate::invite::Type::Register, username: None, ..invite };
				invites.save(&invite).unwrap();
			}
			Self { store, under_way, invites, stages: [Stage::Idle; 4], reported: [0; 4] }
		}

		fn loaded(store: &Arc<Flaky>, under_way: &Arc<UnderWay>) -> Invites {
			Invites::new(HOST.to_owned(), Arc::clone(store) as _).going_on_with(Arc::clone(under_way))
		}

		fn act(&mut self, act: &Act) {
			match *act {
				Act::Begin(of) if self.stages[of] == Stage::Idle => {
					if let Ok(Some(nonce)) = self.invites.claim(attempt(of), None, NOW) {
						self.stages[of] = Stage::Waits(nonce);
					}
				}
				Act::Succeed(of) => {
					if let Stage::Waits(nonce) = self.stages[of] {
						self.stages[of] = Stage::Succeeded;
						match self.invites.redeem(attempt(of), &nonce, None, NOW) {
							Ok(invite) => self.reported[of] += usize::from(invite.is_some()),
							Err(error) => assert!(error.may_pass(), "{error}"),
						}
					}
				}
				Act::Vanish(of) if matches!(self.stages[of], Stage::Waits(_)) => {
					self.stages[of] = Stage::Idle;
				}
				Act::Begin(_) | Act::Vanish(_) => (),
				Act::Reload => self.invites = Self::loaded(&self.store, &self.under_way),
				Act::Become(storage) => self.store.becomes(storage),
				Act::Review => {
					let waits =
						|stage: &Stage| if let Stage::Waits(nonce) = stage { Some(*nonce) } else { None };
					let waiting: Vec<Nonce> = self.stages.iter().filter_map(waits).collect();
					let review = self.invites.review(&waiting, NOW);
					assert!(review.lost.is_empty() && review.over.iter().all(|over| !waiting.contains(over)));
					for (invite, _) in review.used {
						let of = (0..NAMES.len()).find(|of| digest(*of) == invite.digest).unwrap();
						self.reported[of] += 1;
					}
				}
			}
		}

		/// The storage works, no coroutine is left, and it was reviewed for long enough.
		fn end(&mut self) {
			self.act(&Act::Become(Storage::Works));
			for of in 0..NAMES.len() {
				self.act(&Act::Vanish(of));
			}
			for _ in 0..50 {
				self.act(&Act::Review);
			}
		}
	}

	proptest! {
		#[test]
		fn every_claim_is_redeemed_or_released_and_nothing_is_redeemed_twice(acts in prop::collection::vec(act(), 1..60)) {
			let mut run = Run::new();
			for act in &acts {
				run.act(act);
			}
			run.end();
			prop_assert!(run.under_way.attempts().is_idle());
			prop_assert_eq!(run.invites.claims().unwrap(), vec![]);
			for (of, stage) in run.stages.iter().enumerate() {
				let uses = run.invites.find(&digest(of)).unwrap().uses;
				prop_assert_eq!(uses, u32::from(*stage == Stage::Succeeded), "{}", NAMES[of]);
				prop_assert!(run.reported[of] <= 1);
			}
		}
	}

	#[test]
	fn what_has_succeeded_is_redeemed_once_the_storage_answers_however_its_coroutine_ends() {
		let mut run = Run::new();
		for act in [Act::Begin(0), Act::Become(Storage::Fails), Act::Succeed(0), Act::Reload, Act::Review] {
			run.act(&act);
		}
		assert_eq!(run.invites.claims().unwrap().len(), 1, "it is not released");
		run.end();
		assert_eq!((run.reported[0], run.invites.claims().unwrap().len()), (1, 0));
	}

	#[test]
	fn what_is_redeemed_later_is_lost_where_somebody_else_has_the_use() {
		let mut run = Run::new();
		for act in [Act::Begin(0), Act::Become(Storage::Fails), Act::Succeed(0), Act::Become(Storage::Works)]
		{
			run.act(&act);
		}
		run.invites.release_claims(&digest(0)).unwrap();
		let rival = Attempt { invitee: Some("rival".to_owned()), ..attempt(0) };
		run.invites.redeem_at_once(rival, None, NOW).unwrap();
		let lost = (0..50).flat_map(|_| run.invites.review(&[], NOW).lost).collect::<Vec<_>>();
		assert_eq!(lost.len(), 1);
		assert_eq!(lost[0].1.condition(), "claim-lost");
		assert!(run.under_way.attempts().is_idle());
	}

	#[test]
	fn what_ends_the_invites_of_a_user_while_the_storage_fails_ends_those_made_before_it() {
		let run = Run::new();
		let made = |token: &str, created_at| {
			let invite = crate::store::conformance::made_by("juliet", token);
			run.invites.save(&Invite { created_at, ..invite }).unwrap();
		};
		made("old", NOW);
		run.store.becomes(Storage::Fails);
		assert_eq!(
			run.invites.retire_depending("juliet", NOW).unwrap_err().condition(),
			"internal-server-error"
		);
		run.store.becomes(Storage::Works);
		made("new", NOW + 10);
		let ended = (0..50).flat_map(|_| run.invites.review(&[], NOW + 20).ended).collect::<Vec<_>>();
		let [(Scope::Depending, username, ended)] = ended.as_slice() else { panic!("{ended:?}") };
		assert_eq!((username.as_str(), ended.invites.len()), ("juliet", 1));
		assert!(run.invites.find(&Digest::of(b"new")).unwrap().ended_at.is_none());
	}
}
