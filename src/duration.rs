//! Durations as an operator writes them: `90s`, `10min`, `36h`, `2 hours`, `1d`, `1 week`, `3mon`, `1y`.
//!
//! The words are those of Prosody 13's period options. `10m` is refused as Prosody's shell refuses it:
//! minutes and months both begin so.

use std::num::NonZeroI64;

use fundu::{CustomDurationParser, CustomTimeUnit, Multiplier, TimeUnit};
use thiserror::Error;

/// A time to live in whole seconds: at least one.
pub type Seconds = NonZeroI64;

/// The length of each is Prosody's: a month has 31 days, a year 365.2425.
const UNITS: [CustomTimeUnit<'static>; 7] = [
	CustomTimeUnit::with_default(TimeUnit::Second, &["s", "sec", "secs", "second", "seconds"]),
	CustomTimeUnit::with_default(TimeUnit::Minute, &["min", "mins", "minute", "minutes"]),
	CustomTimeUnit::with_default(TimeUnit::Hour, &["h", "hr", "hrs", "hour", "hours"]),
	CustomTimeUnit::with_default(TimeUnit::Day, &["d", "day", "days"]),
	CustomTimeUnit::with_default(TimeUnit::Week, &["w", "week", "weeks"]),
	CustomTimeUnit::new(TimeUnit::Day, &["mon", "month", "months"], Some(Multiplier(31, 0))),
	CustomTimeUnit::new(TimeUnit::Day, &["y", "year", "years"], Some(Multiplier(3_652_425, -4))),
];

/// Not a duration that this module understands.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
	"{0:?} is not a duration: write a number and a unit, for example \"90s\", \"36h\", \"1 week\" or \"3 months\""
)]
pub struct DurationError(pub String);

/// Reads one number and one unit, with or without a space between; upper case is read like lower case.
///
/// # Errors
/// When it is no such text, has no unit, or is shorter than a second.
pub fn parse(text: &str) -> Result<Seconds, DurationError> {
	let error = || DurationError(text.to_owned());
	let lower = text.trim().to_ascii_lowercase();
	if !lower.ends_with(|last: char| last.is_ascii_alphabetic()) {
		return Err(error());
	}
	let duration = CustomDurationParser::builder()
		.time_units(&UNITS)
		.allow_time_unit_delimiter()
		.disable_exponent()
		.disable_infinity()
		.build()
		.parse(&lower)
		.map_err(|_| error())?;
	std::time::Duration::try_from(duration)
		.ok()
		.and_then(|duration| i64::try_from(duration.as_secs()).ok())
		.and_then(Seconds::new)
		.ok_or_else(error)
}

/// Seconds in words, with the largest unit that says them exactly: `3 days`, `90 seconds`.
#[must_use]
pub fn words(seconds: i64) -> String {
	let (length, unit) = [(604_800, "week"), (86_400, "day"), (3_600, "hour"), (60, "minute")]
		.into_iter()
		.find(|(length, _)| seconds > 0 && seconds % length == 0)
		.unwrap_or((1, "second"));
	let number = seconds / length;
	format!("{number} {unit}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
	use super::*;

	#[test]
	fn every_spelling_of_prosody_13_is_understood() {
		for (text, seconds) in [
			("90s", 90),
			("10min", 600),
			("2h", 7200),
			("2 hours", 7200),
			("36h", 36 * 3600),
			("1d", 86400),
			("1 day", 86400),
			("1 week", 7 * 86400),
			("1 Week", 7 * 86400),
			("2w", 14 * 86400),
			("3mon", 3 * 31 * 86400),
			("3 months", 3 * 31 * 86400),
			("1y", 31_556_952),
			("1.5h", 5400),
		] {
			assert_eq!(parse(text).map(Seconds::get), Ok(seconds), "{text}");
		}
	}

	#[test]
	fn what_is_ambiguous_or_no_duration_is_refused_with_an_example() {
		for text in [
			"",
			"30",
			"10m",
			"h",
			"1 fortnight",
			"-1h",
			"0s",
			"0.5s",
			"1h2m",
			"1e3s",
			"inf",
			"99999999999999999999y",
		] {
			let error = parse(text).unwrap_err().to_string();
			assert!(error.contains("for example") && error.contains(text), "{text}: {error}");
		}
	}

	#[test]
	fn seconds_are_told_in_the_largest_unit_that_fits() {
		for (seconds, text) in [
			(0, "0 seconds"),
			(1, "1 second"),
			(90, "90 seconds"),
			(120, "2 minutes"),
			(86_400, "1 day"),
			(604_800, "1 week"),
			(691_200, "8 days"),
		] {
			assert_eq!(words(seconds), text);
		}
	}
}
