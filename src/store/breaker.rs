//! What keeps a server from waiting for its storage again and again.
//!
//! Prosody serves nobody else while it waits. So after one wait in vain the storage is **away**: until the pause that follows
//! is over every call fails at once, and the first one after it tries again. The pauses grow, but not so long that a
//! storage that is back stays unnoticed for five seconds.

use std::time::Duration;

use super::StoreError;
use crate::clock::Stopwatch;

/// The first pause after the storage was found away, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(3));

/// Whether a storage is to be waited for.
#[derive(Debug, Default)]
pub(super) struct Breaker(Option<Away>);

/// The storage could not be had, and is not to be waited for before a pause is over.
#[derive(Debug)]
struct Away {
	since: Stopwatch,
	pause: Duration,
	problem: String,
	cause: Option<String>,
}

impl Breaker {
	/// Whether the storage may be waited for.
	///
	/// # Errors
	/// What whoever waited was told, as long as the pause lasts.
	pub(super) fn check(&self) -> Result<(), StoreError> {
		match &self.0 {
			Some(away) if away.since.elapsed() < away.pause => Err(away.error()),
			_ => Ok(()),
		}
	}

	/// Notes that somebody has waited in vain.
	pub(super) fn trip(&mut self, error: &StoreError) {
		let pause = self.0.as_ref().map_or(PAUSES.0, |away| PAUSES.1.min(away.pause * 2));
		let (problem, cause) = match error {
			StoreError::Unavailable { problem, source } => (problem.clone(), Some(source.to_string())),
			other => (other.to_string(), None),
		};
		self.0 = Some(Away { since: Stopwatch::start(), pause, problem, cause });
	}

	/// Notes that the storage answers.
	pub(super) fn reset(&mut self) {
		self.0 = None;
	}
}

impl Away {
	fn error(&self) -> StoreError {
		match &self.cause {
			Some(cause) => {
				StoreError::Unavailable { problem: self.problem.clone(), source: cause.clone().into() }
			}
			None => StoreError::Unusable { problem: self.problem.clone(), source: None },
		}
	}
}

#[cfg(test)]
mod tests {
	use super::*;

	#[test]
	fn a_pause_follows_each_wait_in_vain_and_they_grow_up_to_the_longest() {
		let mut breaker = Breaker::default();
		let pause = |breaker: &Breaker| breaker.0.as_ref().map(|away| away.pause.as_millis());
		assert!(breaker.check().is_ok());
		let locked = StoreError::Unavailable { problem: "it is locked".to_owned(), source: "busy".into() };
		let pauses = [(); 6].map(|()| {
			breaker.trip(&locked);
			pause(&breaker).unwrap()
		});
		assert_eq!(pauses, [250, 500, 1000, 2000, 3000, 3000]);
		assert_eq!(breaker.check().unwrap_err().to_string(), locked.to_string());
		breaker.reset();
		assert!(breaker.check().is_ok() && pause(&breaker).is_none());
	}
}
