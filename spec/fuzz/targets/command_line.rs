//! Any command line is understood, or answered in one line and with an exit code.

#![no_main]

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use libfuzzer_sys::fuzz_target;
use prosody_invites::operator::args::{Answer, parse};

fuzz_target!(|input: &[u8]| {
	// No argument holds a NUL: the operating system ends it there.
	let args = input.split(|byte| *byte == 0).map(|arg| OsString::from_vec(arg.to_vec()));
	match parse(args) {
		Ok(_) => (),
		Err(Answer::Help(text)) => assert!(text.ends_with('\n')),
		Err(Answer::Misuse(line, code)) => {
			assert_eq!(code, 2);
			assert!(line.ends_with("see: prosodyctl mod_invites --help"));
		}
	}
});
