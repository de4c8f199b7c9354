//! What a person enters where an invitation is asked for: a web link, an `xmpp:` URI or the token alone, with or without
//! text around it, percent-encoded or not.
//!
//! Links are read more freely than [`crate::uri`] writes them: they come from landing pages of all kinds. What may be a
//! token is tried, so nothing here has to be certain.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use stringprep::nameprep;

/// What was found in it.
#[derive(Debug, PartialEq, Eq)]
pub enum Pasted {
	/// What may be the token, the likeliest first; and where the web link around that one leads, if to another host.
	Tokens(Vec<String>, Option<String>),
	/// A link to an invitation of this other host.
	OtherHost(String),
	/// Nothing that may be a token.
	Nothing,
}

/// Characters that are read. No invitation is so long, even in a letter.
const MAX_TEXT: usize = 4096;

/// Words of a text, or parts of a link, that are tried; and links that are looked at.
const MAX_TOKENS: usize = 8;

/// Tokens are longer, the bundled module's too (16 characters); most words are shorter.
const MIN_LENGTH: usize = 8;

/// Bytes of a host's name, which is shown to whoever entered it.
const MAX_HOST: usize = 255;

/// What stands before the token in an `xmpp:` URI (XEP-0379 §4, XEP-0401 §3, XEP-0445 §2).
const PREAUTH: &str = "preauth=";

const SCHEMES: [&str; 2] = ["https://", "http://"];

/// Looks for an invitation of `host` in a text.
#[must_use]
pub fn read(text: &str, host: &str) -> Pasted {
	let text: String = text.trim().chars().filter(|c| !is_invisible(*c)).take(MAX_TEXT).collect();
	let text = text.trim();
	// The whole URI may be encoded, as in the fragment of a link; once more, where somebody encoded that link.
	let once = decode(text);
	let decoded = decode(&once);
	let found = [text, &once, &decoded]
		.into_iter()
		.find_map(|text| read_preauth(text, host))
		.unwrap_or_else(|| read_words(&decoded, host));
	let Pasted::Tokens(mut tokens, link_host) = found else { return found };
	let joined: String = decoded.split_whitespace().collect();
	if decoded.contains(PREAUTH) || decoded.contains("://") {
		// A long link may have been broken into lines.
		if let Pasted::Tokens(more, _) =
			read_preauth(&joined, host).unwrap_or_else(|| read_words(&joined, host))
		{
			tokens.extend(more.into_iter().take(1).filter(|token| looks_made(token)));
		}
	} else if !text.contains(char::is_whitespace) {
		// Whatever it is, it may be one that was made elsewhere and imported.
		tokens.push(text.to_owned());
	}
	match first_few(tokens) {
		tokens if tokens.is_empty() => Pasted::Nothing,
		tokens => Pasted::Tokens(tokens, link_host),
	}
}

/// Whether it looks like what a program has made: words of a language have no digits, and no capital letters after small
/// ones.
fn looks_made(token: &str) -> bool {
	let mut after_small = token.chars().skip_while(|character| !character.is_ascii_lowercase());
	token.contains(|character: char| character.is_ascii_digit())
		|| after_small.any(|c| c.is_ascii_uppercase())
}

/// Whether a character is not seen: where a line may be broken, and which way the text runs.
const fn is_invisible(character: char) -> bool {
	matches!(
		character,
		'\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}'
	)
}

fn decode(text: &str) -> String {
	percent_decode_str(text).decode_utf8_lossy().into_owned()
}

fn first_few(mut tokens: Vec<String>) -> Vec<String> {
	let mut seen = Vec::new();
	tokens.retain(|token| {
		let is_new = !token.is_empty() && seen.len() < MAX_TOKENS && !seen.contains(token);
		if is_new {
			seen.push(token.clone());
		}
		is_new
	});
	tokens
}

const fn is_of_token(character: char) -> bool {
	character.is_ascii_alphanumeric() || matches!(character, '-' | '_')
}

/// What follows all `preauth=` in a text; none if there is no such link.
fn read_preauth(text: &str, host: &str) -> Option<Pasted> {
	let mut tokens = Vec::new();
	let mut other = None;
	for (at, _) in text.match_indices(PREAUTH).take(MAX_TOKENS) {
		let rest = &text[at + PREAUTH.len()..];
		let whole =
			rest.split(|c: char| c.is_whitespace() || ";&#<>\"'".contains(c)).next().unwrap_or_default();
		let token = whole.split(|character| !is_of_token(character)).next().unwrap_or_default();
		if whole.is_empty() {
			continue;
		}
		match host_before(&text[..at]) {
			Some(of) if of != host => other = Some(of),
			_ => tokens.extend([token, without_emphasis(token), &decode(whole)].map(str::to_owned)),
		}
	}
	match (first_few(tokens), other) {
		(tokens, _) if !tokens.is_empty() => Some(Pasted::Tokens(tokens, None)),
		(_, other) => other.map(Pasted::OtherHost),
	}
}

/// A word without what makes it slanted or bold, and without a dash after it.
fn without_emphasis(word: &str) -> &str {
	word.trim_matches(['-', '_'])
}

/// What may be a token by its letters and its length, the likeliest first.
fn read_words(text: &str, host: &str) -> Pasted {
	let mut words: Vec<(&str, Option<&str>)> = Vec::new();
	for (part, link_host) in parts(text) {
		let found = part.split(|character| !is_of_token(character)).filter(|word| word.len() >= MIN_LENGTH);
		words.extend(found.map(|word| (word, link_host)));
	}
	words.sort_by_key(|(word, _)| std::cmp::Reverse((looks_made(word), word.len())));
	let link_host = words.first().and_then(|(_, of)| prepared_host((*of)?)).filter(|of| of != host);
	let tokens = words.iter().flat_map(|(word, _)| [*word, without_emphasis(word)]).map(str::to_owned);
	Pasted::Tokens(first_few(tokens.collect()), link_host)
}

/// The parts of a text that may hold a token: what is in no web link, and of each web link what follows its host, with
/// that host.
fn parts(text: &str) -> Vec<(&str, Option<&str>)> {
	let lowercase = text.to_ascii_lowercase();
	let starts = SCHEMES.iter().flat_map(|scheme| lowercase.match_indices(scheme));
	let mut starts: Vec<(usize, usize)> = starts.map(|(at, scheme)| (at, at + scheme.len())).collect();
	starts.sort_unstable();
	let mut parts = vec![(&text[..starts.first().map_or(text.len(), |(at, _)| *at)], None)];
	for (index, (_, start)) in starts.iter().enumerate() {
		let end = starts.get(index + 1).map_or(text.len(), |(at, _)| *at);
		let after = &text[*start..end];
		let length = after.find(|c: char| c.is_whitespace() || "<>\"".contains(c)).unwrap_or(after.len());
		let (link, text) = after.split_at(length);
		let (authority, rest) = link.split_at(link.find(['/', '?', '#']).unwrap_or(link.len()));
		parts.extend([(rest, Some(authority)), (text, None)]);
	}
	parts
}

/// The host of the `xmpp:` URI of which this is the beginning, up to its token; none where it does not say it, since it is
/// a web link, or a part of the URI.
fn host_before(text: &str) -> Option<String> {
	let (subject, query) = text.rsplit_once('?')?;
	if query.contains(char::is_whitespace) {
		return None;
	}
	let start =
		subject.rfind(|c: char| c.is_whitespace() || "#<>\"'(".contains(c)).map_or(0, |start| start + 1);
	uri_host(subject.get(start..)?)
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
		// A web link without its scheme.
		None if address.contains('/') && !address.contains('@') => return None,
		None => address,
	};
	let bare = address.split('/').next()?;
	prepared_host(bare)
}

fn strip_scheme<'a>(text: &'a str, scheme: &str) -> Option<&'a str> {
	let at = text.to_ascii_lowercase().rfind(scheme)?;
	text.get(at + scheme.len()..)
}

/// The host in `user@host:port`, as the server writes it; none if no host is called so.
fn prepared_host(authority: &str) -> Option<String> {
	let host = authority.rsplit('@').next()?;
	let host = host.rsplit_once(':').map_or(host, |(before, port)| {
		if port.bytes().all(|byte| byte.is_ascii_digit()) { before } else { host }
	});
	if host.is_empty() || host.len() > MAX_HOST * "%00".len() {
		return None;
	}
	let host = decode(host);
	// The longest names grow when they are prepared.
	let host = Some(host)
		.filter(|host| host.len() <= MAX_HOST)
		.and_then(|host| nameprep(&host).map(Cow::into_owned).ok())?;
	let is_name = |c: char| !c.is_ascii() || c.is_ascii_alphanumeric() || "-._:[]".contains(c);
	(host.len() <= MAX_HOST && host.chars().all(is_name)).then_some(host)
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
		assert!(finds(&text));
		assert!(matches!(read_here(&text), Pasted::Tokens(tokens, _) if tokens.len() <= MAX_TOKENS));
	}

	#[test]
	fn a_text_that_is_made_to_take_long_does_not() {
		for text in [
			format!("xmpp:{}?{}", "\u{fdfa}".repeat(2000), "preauth=a;".repeat(200)),
			format!("xmpp:{}?{}", "\u{c9}".repeat(2000), "preauth=a;".repeat(200)),
			"preauth=a;".repeat(409),
			"https://".repeat(500),
		] {
			let start = crate::clock::monotonic();
			let _ = read_here(&text);
			assert!(start.elapsed() < std::time::Duration::from_secs(1), "{text:.40}: {:?}", start.elapsed());
		}
	}

	#[test]
	fn a_host_that_is_told_is_the_name_of_a_host() {
		for host in [
			"ex%00ample",
			"ex%0aample",
			"%01",
			"ex%ffample",
			"ex%ef%bf%bfample",
			"a=b",
			"register;x",
			&"h".repeat(300),
			&"\u{fdfa}".repeat(100),
		] {
			for link in [
				"https://{}/invite?{token}",
				"xmpp:{}?register;preauth={token}",
				"{}?register;preauth={token}",
			] {
				for encode in [false, true] {
					let link = link.replace("{}", host).replace("{token}", TOKEN);
					let link = if encode { encoded(&link) } else { link };
					assert!(finds(&link), "{link}");
					assert!(
						matches!(read_here(&link), Pasted::Tokens(_, None)),
						"{link}: {:?}",
						read_here(&link)
					);
				}
			}
		}
		let link = format!("https://B%C3%9Chne.example:8080/invite?{TOKEN}");
		assert!(
			matches!(read_here(&link), Pasted::Tokens(_, Some(host)) if host == "b\u{fc}hne.example"),
			"{:?}",
			read_here(&link)
		);
	}

	#[test]
	fn an_invitation_is_found_wherever_else_the_text_leads() {
		for text in [
			"Install https://f-droid.org/packages/eu.siacs.conversations/ and open https://elsewhere.example/invite?{}",
			"{} is your code; get the program at https://conversations.im/",
			"Open https://elsewhere.example/invite?{} after https://conversations.im/downloads/Conversations-2-19.apk",
			"[Invitation](https://example.com/invite?{}), see https://example.com/help-and-documentation-of-all-kinds",
			"https://click.example/?id=12345678&to=https%3A%2F%2Fexample.com%2Finvite%3F{}&source=newsletter2026",
			"register;preauth={}",
			"Lost? Then use preauth={} or ask",
			"example.com/invite?preauth={}",
			"pages.example.com/invite?preauth={}",
			"_{}_",
			"_xmpp:example.com?register;preauth={}_",
			"xmpp:example.com:5222?register;preauth={}",
			"xmpp:example.com?register;preauth={}-- come soon",
			"\u{2066}xmpp:example.com?register;preauth={}\u{2069}",
			"\u{8bf7}\u{70b9}\u{51fb}https://example.com/invite?{}\u{52a0}\u{5165}",
			"<a href=\"https://example.com/invite?x=1&amp;t={}\">Come</a>",
		] {
			let text = text.replace("{}", TOKEN);
			assert!(
				matches!(read_here(&text), Pasted::Tokens(tokens, _) if tokens.iter().any(|token| token == TOKEN)),
				"{text}: {:?}",
				read_here(&text)
			);
		}
	}

	#[test]
	fn a_link_that_was_broken_on_its_way_is_put_together() {
		for link in links().iter().filter(|link| link.as_str() != TOKEN) {
			for broken in ["\u{200b}", "\u{ad}", "\n", " \r\n  "] {
				let text = link.replace(TOKEN, &format!("{}{broken}{}", &TOKEN[..13], &TOKEN[13..]));
				assert!(
					matches!(read_here(&text), Pasted::Tokens(tokens, _) if tokens.iter().any(|token| token == TOKEN)),
					"{text}: {:?}",
					read_here(&text)
				);
			}
		}
	}

	#[test]
	fn a_token_of_other_letters_is_found_in_its_uri_too() {
		for uri in ["xmpp:example.com?register;preauth=a.b+c", "xmpp:example.com?register;preauth=a.b%2Bc"] {
			assert!(
				matches!(read_here(uri), Pasted::Tokens(tokens, _) if tokens.iter().any(|token| token == "a.b+c")),
				"{uri}: {:?}",
				read_here(uri)
			);
		}
	}
}
