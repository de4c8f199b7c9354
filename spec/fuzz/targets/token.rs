//! Whatever a stranger presents as a token finds an invite if it is that invite's token, and no other.

#![no_main]

use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use prosody_invites::clock::Timestamp;
use prosody_invites::error::InviteError;
use prosody_invites::invite::Type;
use prosody_invites::redemption::Purpose;
use prosody_invites::invites::{Invites, Request};
use prosody_invites::store::memory::MemoryStore;
use prosody_invites::token::{Digest, Token};

const NOW: Timestamp = 1_700_000_000;

/// As the bundled module made them, so that the fuzzer, which cannot invert a digest, may come upon it.
const TOKEN: &str = "-AbC_dEf0123456789xyz-_Q";

fn invites() -> Invites {
	let invites = Invites::new("example.com".to_owned(), Arc::new(MemoryStore::default()));
	let request = Request {
		invite_type: Type::Register,
		username: None,
		is_reset: false,
		account: None,
		allow_registration: true,
		ttl: None,
		max_uses: None,
	};
	let (mut invite, _) = invites.prepare(request, NOW).unwrap();
	let token = Token::from_stored(TOKEN.to_owned());
	invite.digest = token.digest();
	invite.token = Some(token);
	invites.save(&invite).unwrap();
	invites
}

thread_local! {
	static INVITES: Invites = invites();
}

fuzz_target!(|presented: &[u8]| {
	match INVITES.with(|invites| invites.get(presented, Purpose::Account, NOW)) {
		Ok(_) => assert_eq!(presented, TOKEN.as_bytes()),
		Err(InviteError::TokenInvalid) => assert_ne!(presented, TOKEN.as_bytes()),
		Err(error) => panic!("{error}"),
	}
	let id = Digest::of(presented).id().to_string();
	assert!(id.len() == 16 && id.bytes().all(|digit| digit.is_ascii_hexdigit()));
});
