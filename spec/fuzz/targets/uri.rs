//! A link names the account that it is for, whatever that is called, and nothing in a name ends its part of the link.

#![no_main]

use libfuzzer_sys::fuzz_target;
use percent_encoding::percent_decode_str;
use prosody_invites::invite::Type;
use prosody_invites::uri::invite_uri;

fuzz_target!(|input: (bool, Option<&str>, &str, bool)| {
	let (is_roster, username, host, allow_registration) = input;
	let invite_type = if is_roster { Type::Roster } else { Type::Register };
	let uri = invite_uri(invite_type, username, host, "T0ken", allow_registration);
	assert!(uri.is_ascii() && !uri.contains(['#', ' ', '"', '<', '>']));

	let (address, query) = uri.strip_prefix("xmpp:").unwrap().split_once('?').unwrap();
	let ibr = if is_roster && allow_registration { ";ibr=y" } else { "" };
	assert_eq!(query, format!("{};preauth=T0ken{ibr}", invite_type.as_str()));

	let decode = |part| percent_decode_str(part).decode_utf8().unwrap().into_owned();
	match (username, address.split_once('@')) {
		(Some(username), Some((node, domain))) => {
			assert_eq!((decode(node).as_str(), decode(domain).as_str()), (username, host));
		}
		(None, None) => assert_eq!(decode(address), host),
		_ => panic!("{uri}"),
	}
});
