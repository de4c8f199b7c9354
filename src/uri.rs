//! xmpp: URIs of invites: RFC 5122 and XEP-0147, with the queries of XEP-0379 v0.3.3 §4 (`roster`),
//! XEP-0401 v0.6.0 §3 (`ibr=y`) and XEP-0445 v0.2.0 §2 (`register`).

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::invite::Type;

/// What RFC 5122 §2.2 lets stand in a localpart (`inode`): unreserved, and `! $ ( ) * + , ; =`.
const NODE: &AsciiSet = &NON_ALPHANUMERIC
	.remove(b'-')
	.remove(b'.')
	.remove(b'_')
	.remove(b'~')
	.remove(b'!')
	.remove(b'$')
	.remove(b'(')
	.remove(b')')
	.remove(b'*')
	.remove(b'+')
	.remove(b',')
	.remove(b';')
	.remove(b'=');

/// What stands in a host as it is: unreserved, and the brackets and colons of an IPv6 literal.
const HOST: &AsciiSet = &NON_ALPHANUMERIC
	.remove(b'-')
	.remove(b'.')
	.remove(b'_')
	.remove(b'~')
	.remove(b'[')
	.remove(b']')
	.remove(b':');

/// Writes the link that a client opens. The token stands in it as it is: ours need no escaping, and
/// those of the bundled module are base64url. Whether the invitee may register in-band is said of an invite to become
/// a contact alone; XEP-0401 forbids it where nobody can.
#[must_use]
pub fn invite_uri(
	invite_type: Type,
	username: Option<&str>,
	host: &str,
	token: &str,
	registers_in_band: bool,
) -> String {
	let node = username.map_or_else(String::new, |name| format!("{}@", utf8_percent_encode(name, NODE)));
	let host = utf8_percent_encode(host, HOST);
	let action = invite_type.as_str();
	let ibr = if invite_type == Type::Roster && registers_in_band { ";ibr=y" } else { "" };
	format!("xmpp:{node}{host}?{action};preauth={token}{ibr}")
}

#[cfg(test)]
mod tests {
	use super::*;

	#[test]
	fn ordinary_names_give_the_same_uri_as_the_bundled_module() {
		let uri = |kind, name, ibr| invite_uri(kind, name, "example.com", "T0ken", ibr);
		assert_eq!(uri(Type::Register, None, true), "xmpp:example.com?register;preauth=T0ken");
		assert_eq!(uri(Type::Register, Some("bob"), true), "xmpp:bob@example.com?register;preauth=T0ken");
		assert_eq!(uri(Type::Roster, Some("bob"), false), "xmpp:bob@example.com?roster;preauth=T0ken");
		assert_eq!(uri(Type::Roster, Some("bob"), true), "xmpp:bob@example.com?roster;preauth=T0ken;ibr=y");
	}

	#[test]
	fn characters_that_would_break_the_uri_are_escaped_as_utf8() {
		let node = |name| {
			let uri = invite_uri(Type::Register, Some(name), "h", "t", true);
			uri["xmpp:".len()..uri.find("@h?").unwrap()].to_owned()
		};
		assert_eq!(node("foo?bar#baz"), "foo%3Fbar%23baz");
		assert_eq!(node("a%b"), "a%25b");
		assert_eq!(node("[x]"), "%5Bx%5D");
		assert_eq!(node("jörg"), "j%C3%B6rg");
		assert_eq!(node("a-b.c_d~e!$()*+,;="), "a-b.c_d~e!$()*+,;=");
	}

	#[test]
	fn an_international_or_numeric_host_stays_valid() {
		let host = |name| invite_uri(Type::Register, None, name, "t", true);
		assert_eq!(host("münchen.example"), "xmpp:m%C3%BCnchen.example?register;preauth=t");
		assert_eq!(host("[::1]"), "xmpp:[::1]?register;preauth=t");
	}
}
