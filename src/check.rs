//! What a look at an installation finds, as `prosodyctl mod_invites check` reports it.

use serde::Serialize;

use crate::clock::Timestamp;

/// Clocks of two machines may differ so much, in seconds.
const CLOCK_TOLERANCE: i64 = 60;

/// No clock that is right says so little: this version did not exist in 2025.
const PAST: Timestamp = 1_735_689_600;

/// How bad it is. Its number is the exit code, as monitoring systems have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
	/// As it should be.
	Ok,
	/// Invites work, but something is not as it should be, or will not stay so.
	Warning,
	/// Invites do not work.
	Critical,
}

impl Level {
	/// The word for it.
	#[must_use]
	pub const fn as_str(self) -> &'static str {
		match self {
			Self::Ok => "ok",
			Self::Warning => "warning",
			Self::Critical => "critical",
		}
	}

	/// From the word.
	#[must_use]
	pub fn from_word(word: &str) -> Option<Self> {
		[Self::Ok, Self::Warning, Self::Critical].into_iter().find(|known| known.as_str() == word)
	}
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
	/// How bad it is.
	pub level: Level,
	/// What was found, in one line, and what to do if it is not good. Holds no token.
	pub text: String,
}

impl Finding {
	/// As it should be.
	#[must_use]
	pub fn ok(text: impl Into<String>) -> Self {
		Self { level: Level::Ok, text: text.into() }
	}

	/// Not as it should be.
	#[must_use]
	pub fn warning(text: impl Into<String>) -> Self {
		Self { level: Level::Warning, text: text.into() }
	}

	/// What the clock says, against the newest thing that is stored.
	#[must_use]
	pub fn of_clock(newest: Option<Timestamp>, now: Timestamp) -> Self {
		let ahead = newest.unwrap_or(now).saturating_sub(now);
		if now < PAST {
			Self::critical("the clock of this machine is years behind: no invite expires when it should")
		} else if ahead > CLOCK_TOLERANCE {
			Self::warning(format!(
				"invites were made {ahead} seconds in the future: the clock of this machine was wrong, or is now"
			))
		} else {
			Self::ok("the clock is not behind what was stored")
		}
	}

	/// Does not work.
	#[must_use]
	pub fn critical(text: impl Into<String>) -> Self {
		Self { level: Level::Critical, text: text.into() }
	}
}
