//! Any text in a database is refused, or a value whose own text gives the same value again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prosody_invites::value::Value;

fuzz_target!(|text: &str| {
	if let Ok(value) = Value::decode(text) {
		let written = value.encode().unwrap();
		let again = Value::decode(&written).unwrap();
		assert_eq!(again.encode().unwrap(), written);
	}
});
