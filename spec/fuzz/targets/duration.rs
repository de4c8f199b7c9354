//! Any text is a duration of at least a second or refused, and is read alike in upper case and between spaces.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prosody_invites::duration::parse;

fuzz_target!(|text: &str| {
	let parsed = parse(text).ok();
	assert!(parsed.is_none_or(|seconds| seconds.get() > 0));
	assert_eq!(parsed, parse(&text.to_ascii_uppercase()).ok());
	assert_eq!(parsed, parse(&format!("  {text} ")).ok());
	if let Some(seconds) = parsed {
		assert_eq!(parse(&format!("{seconds}s")), Ok(seconds));
	}
});
