//! Whatever stands around a link, its token is found; and nothing that a stranger enters raises an error.

#![no_main]

use libfuzzer_sys::fuzz_target;
use prosody_invites::pasted::{Pasted, read};

const TOKEN: &str = "T0kenT0kenT0kenT0kenT0ke";

fuzz_target!(|input: (&str, &str, &str)| {
	let (before, after, host) = input;
	if let Pasted::Tokens(tokens, _) = read(before, host) {
		assert!(!tokens.is_empty() && tokens.iter().all(|token| !token.is_empty()));
	}

	let is_plain = |text: &str| text.len() < 1000 && !text.contains(['%', '=']);
	if is_plain(before) && is_plain(after) {
		let text = format!("{before} xmpp:juliet@example.com?roster;preauth={TOKEN};ibr=y {after}");
		let Pasted::Tokens(tokens, None) = read(&text, "example.com") else { panic!("nothing found") };
		assert_eq!(tokens[0], TOKEN);
		assert_eq!(read(&text, "example.net"), Pasted::OtherHost("example.com".to_owned()));
	}
});
