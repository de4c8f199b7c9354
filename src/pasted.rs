//! What a person enters where an invitation is asked for: a web link, an `xmpp:` URI or the token alone, with or without
//! text around it, percent-encoded or not.
//!
//! Links are read more freely than [`crate::uri`] writes them: they come from landing pages of all kinds. What may be a
//! token is tried, so nothing here has to be certain.

use percent_encoding::percent_decode_str;

use crate::invite::is_same_host;

/// What was found in it.
#[derive(Debug, PartialEq, Eq)]
pub enum Pasted {
	/// What may be the token, the likeliest first; and the host that the web link leads to, if that is another one.
	Tokens(Vec<String>, Option<String>),
	/// A link to an invitation of this other host.
	OtherHost(String),
	/// Nothing that may be a token.
	Nothing,
}

/// Characters that are read. No invitation is so long, even in a letter.
const MAX_TEXT: usize = 4096;

/// Words of a text, or parts of a link, that are tried.
const MAX_TOKENS: usize = 8;

/// Tokens are longer, the bundled module's too (16 characters); most words are shorter.
const MIN_LENGTH: usize = 8;

/// What stands before the token in an `xmpp:` URI (XEP-0379 §4, XEP-0401 §3, XEP-0445 §2).
const PREAUTH: &str = "preauth=";

/// Looks for an invitation of `host` in a text.
#[must_use]
pub fn read(text: &str, host: &str) -> Pasted {
	let text: String = text.trim().chars().take(MAX_TEXT).collect();
	// The whole URI may be encoded, as in the fragment of a link; once more, where somebody encoded that link.
	let once = decode(&text);
	let decoded = decode(&once);
	for text in [&text, &once, &decoded] {
		let mut links = preauth_links(text).peekable();
		if links.peek().is_none() {
			continue;
		}
		let mut others = Vec::new();
		let mut tokens = Vec::new();
		for (of, token) in links {
			match of {
				Some(of) if !is_same_host(&of, host) => others.push(of),
				_ => tokens.push(token.to_owned()),
			}
		}
		return match others.pop() {
			Some(other) if tokens.is_empty() => Pasted::OtherHost(other),
			_ => Pasted::Tokens(first_few(tokens), None),
		};
	}
	let (tokens, link_host) = match web_link(&decoded) {
		Some((link_host, rest)) => (words(rest), Some(link_host)),
		None => (words(&decoded), None),
	};
	let mut tokens: Vec<String> = tokens.into_iter().map(str::to_owned).collect();
	if link_host.is_none() && !text.is_empty() && !text.contains(char::is_whitespace) {
		// Whatever it is, it may be one that was made elsewhere and imported.
		tokens.push(text);
	}
	match first_few(tokens) {
		tokens if tokens.is_empty() => Pasted::Nothing,
		tokens => {
			let other = link_host.filter(|link_host| !is_same_host(link_host, host)).map(str::to_owned);
			Pasted::Tokens(tokens, other)
		}
	}
}

fn decode(text: &str) -> String {
	percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn first_few(mut tokens: Vec<String>) -> Vec<String> {
	let mut seen = Vec::new();
	tokens.retain(|token| {
		let is_new = !seen.contains(token);
		if is_new {
			seen.push(token.clone());
		}
		is_new
	});
	tokens.truncate(MAX_TOKENS);
	tokens
}

const fn is_of_token(character: char) -> bool {
	character.is_ascii_alphanumeric() || matches!(character, '-' | '_')
}

/// What may be a token by its letters and its length, the longest first.
fn words(text: &str) -> Vec<&str> {
	let mut words: Vec<&str> = text.split(|character| !is_of_token(character)).collect();
	words.retain(|word| word.len() >= MIN_LENGTH);
	words.sort_by_key(|word| std::cmp::Reverse(word.len()));
	words
}

/// The host and the token of everything like `xmpp:user@host?roster;preauth=TOKEN`; no host where the link does not say it,
/// since it is a web link.
fn preauth_links(text: &str) -> impl Iterator<Item = (Option<String>, &str)> {
	text.match_indices(PREAUTH).filter_map(|(at, _)| {
		let token = text[at + PREAUTH.len()..].split(|character| !is_of_token(character)).next()?;
		let before = &text[..at];
		let subject = before.rfind('?').map_or(before, |end| &before[..end]);
		let start =
			subject.rfind(|c: char| c.is_whitespace() || "#<>\"'(".contains(c)).map_or(0, |start| start + 1);
		let host = subject.get(start..).and_then(uri_host);
		Some((host, token)).filter(|(_, token)| !token.is_empty())
	})
}

/// The host of an `xmpp:` URI without its query, or of the address alone, as in the fragment of a landing page's link.
fn uri_host(address: &str) -> Option<String> {
	// RFC 5122: //authority/ may say as whom to log in.
	let address = match strip_scheme(address, "xmpp:") {
		Some(address) => match address.strip_prefix("//") {
			Some(rest) => rest.split_once('/').map_or(rest, |(_, address)| address),
			None => address,
		},
		None if address.contains("://") => return None,
		None => address,
	};
	let bare = address.split('/').next()?;
	let host = bare.rsplit('@').next()?;
	Some(decode(host)).filter(|host| !host.is_empty())
}

fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
	let at = text.to_ascii_lowercase().rfind(scheme)?;
	text.get(at + scheme.len()..)
}

/// The host of the first web link in a text, and what follows the host.
fn web_link(text: &str) -> Option<(&str, &str)> {
	let lowercase = text.to_ascii_lowercase();
	let start = ["https://", "http://"]
		.iter()
		.filter_map(|scheme| Some(lowercase.find(scheme)? + scheme.len()))
		.min()?;
	let link = text[start..].split(|c: char| c.is_whitespace() || "<>\"".contains(c)).next()?;
	let end = link.find(['/', '?', '#']).unwrap_or(link.len());
	let (authority, rest) = link.split_at(end);
	let authority = authority.rsplit('@').next()?;
	let host = authority.rsplit_once(':').map_or(authority, |(host, port)| {
		if port.bytes().all(|byte| byte.is_ascii_digit()) { host } else { authority }
	});
	Some((host, rest))
}

#[cfg(test)]
mod tests {
	use super::*;

	const TOKEN: &str = "5ER1LMzhQfLTckGNGwmmzBpX";

	fn read_here(text: &str) -> Pasted {
		read(text, "example.com")
	}

	/// Whether the token is the first that is tried.
	fn finds(text: &str) -> bool {
		matches!(read_here(text), Pasted::Tokens(tokens, _) if tokens.first().is_some_and(|first| first == TOKEN))
	}

	fn encoded(text: &str) -> String {
		percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
	}

	/// What a stranger may have been sent.
	fn links() -> Vec<String> {
		[
			"{}",
			"xmpp:example.com?register;preauth={}",
			"XMPP:example.com?register;preauth={}",
			"xmpp:EXAMPLE.com?register;preauth={}",
			"xmpp:juliet@example.com?register;preauth={}",
			"xmpp:juliet@example.com?roster;preauth={};ibr=y",
			"xmpp:juliet@example.com?roster;ibr=y;preauth={}",
			"xmpp:juliet@example.com/phone?roster;preauth={}",
			"xmpp:foo%3Fbar%23@example.com?roster;preauth={}",
			"xmpp://guest@example.net/juliet@example.com?roster;preauth={}",
			"https://example.com/invite?{}",
			"https://example.com/register?t={}&c=conversations",
			"https://example.com:5281/invites_page?{}",
			"https://elsewhere.example/i/{}",
			"https://elsewhere.example/invite/#{}",
			"https://elsewhere.example/#juliet@example.com?roster;preauth={};ibr=y",
			"https://elsewhere.example/#xmpp:example.com?register;preauth={}",
			"HTTPS://EXAMPLE.COM/invite?{}",
			"http://localhost:5280/invite?preauth={}",
		]
		.iter()
		.map(|link| link.replace("{}", TOKEN))
		.collect()
	}

	#[test]
	fn links_uris_and_tokens_are_found_also_in_a_text_and_also_percent_encoded() {
		for link in links() {
			for text in [
				link.clone(),
				format!("  {link}\n"),
				format!("<{link}>"),
				format!("Welcome! Your invitation: {link} (good for a week)"),
				format!("See {link}."),
				format!("\u{2019}{link}\u{2019}, says \u{c4}nne"),
				encoded(&link),
				encoded(&encoded(&link)),
				format!("https://elsewhere.example/redirect?to={}", encoded(&link)),
			] {
				assert!(finds(&text), "{text}: {:?}", read_here(&text));
			}
		}
	}

	#[test]
	fn a_link_of_another_host_is_told_from_one_of_this() {
		for text in [
			"xmpp:other.example?register;preauth={}",
			"xmpp:juliet@other.example?roster;preauth={};ibr=y",
			"https://example.com/#juliet@other.example?roster;preauth={}",
			"Come: xmpp:example.com@other.example?roster;preauth={}.",
		] {
			let text = text.replace("{}", TOKEN);
			for text in [encoded(&text), text] {
				assert_eq!(read_here(&text), Pasted::OtherHost("other.example".to_owned()), "{text}");
			}
		}
		let both = format!(
			"xmpp:other.example?register;preauth=AAAAAAAAAAAAAAAA or xmpp:example.com?register;preauth={TOKEN}"
		);
		assert!(finds(&both));
	}

	#[test]
	fn a_web_link_says_where_it_leads_if_that_is_elsewhere() {
		assert_eq!(
			read_here(&format!("https://Example.com/invite?{TOKEN}")),
			Pasted::Tokens(vec![TOKEN.to_owned()], None)
		);
		for (link, host) in [
			("https://other.example/invite?{}", "other.example"),
			("https://user@other.example:8443?{}", "other.example"),
			("http://[::1]:5280/invite?{}", "[::1]"),
		] {
			let link = link.replace("{}", TOKEN);
			assert!(
				matches!(read_here(&link), Pasted::Tokens(_, Some(of)) if of == host),
				"{link}: {:?}",
				read_here(&link)
			);
		}
	}

	#[test]
	fn an_international_host_is_the_same_in_every_spelling() {
		for uri in [
			"xmpp:b\u{fc}hne.example?register;preauth=",
			"xmpp:B\u{dc}HNE.example?register;preauth=",
			"xmpp:b%C3%BChne.example?register;preauth=",
		] {
			let text = format!("{uri}{TOKEN}");
			assert_eq!(
				read(&text, "b\u{fc}hne.example"),
				Pasted::Tokens(vec![TOKEN.to_owned()], None),
				"{uri}"
			);
		}
	}

	#[test]
	fn a_word_that_can_be_no_token_of_ours_is_tried_as_it_is() {
		assert_eq!(read_here(" a.b+c "), Pasted::Tokens(vec!["a.b+c".to_owned()], None));
	}

	#[test]
	fn where_nothing_may_be_a_token_nothing_is_found() {
		for text in
			["", "  \n", "I have no code", "https://example.com/", "xmpp:example.com?roster;preauth= x"]
		{
			assert_eq!(read_here(text), Pasted::Nothing, "{text:?}");
		}
	}

	#[test]
	fn no_text_is_too_long_and_not_much_of_it_is_tried() {
		let text = "invitation".repeat(10) + &" some-word-or-other".repeat(10_000);
		assert!(matches!(read_here(&text), Pasted::Tokens(tokens, _) if tokens.len() <= MAX_TOKENS));
		let words: Vec<String> = (10_000_000..10_001_000).map(|word| word.to_string()).collect();
		let text = words.join(" ");
		assert!(matches!(read_here(&text), Pasted::Tokens(tokens, _) if tokens.len() == MAX_TOKENS));
		let text = format!("preauth={TOKEN} ").repeat(100);
		assert_eq!(read_here(&text), Pasted::Tokens(vec![TOKEN.to_owned()], None));
	}
}
