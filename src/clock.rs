//! The one door to the clocks.
//!
//! Everything else takes `now` as an argument, so that each rule about time can be tested at any time.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Whole seconds since 1970, as in `created_at` and `expires`.
pub type Timestamp = i64;

/// The present second. Before 1970 it is 0.
#[must_use]
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub fn now() -> Timestamp {
	SystemTime::now()
		.duration_since(UNIX_EPOCH)
		.map_or(0, |since| Timestamp::try_from(since.as_secs()).unwrap_or(Timestamp::MAX))
}

/// A moment that no change of the wall clock moves. For what lasts seconds and ends with the process.
#[must_use]
pub fn monotonic() -> Instant {
	Instant::now()
}

/// Measures how long something takes.
#[derive(Clone, Copy, Debug)]
pub struct Stopwatch(Instant);

impl Stopwatch {
	/// Begins to measure.
	#[must_use]
	pub fn start() -> Self {
		Self(Instant::now())
	}

	/// Since it was started.
	#[must_use]
	pub fn elapsed(self) -> Duration {
		self.0.elapsed()
	}
}

/// The end of the year 9999: later times cannot be written as a date everywhere.
const END_OF_TIME: Timestamp = 253_402_300_799;

/// Whether something can be good for so many seconds from now on.
#[must_use]
pub fn is_ttl(seconds: i64, now: Timestamp) -> bool {
	(1..=END_OF_TIME.saturating_sub(now)).contains(&seconds)
}

/// Why not, in a sentence; `shown` is what was asked for.
#[must_use]
pub fn refuse_ttl(shown: &str) -> String {
	format!(
		"ttl must be a positive number of seconds that ends before the year 10000, or math.huge for never, not {shown}"
	)
}
