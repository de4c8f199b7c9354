//! The secret of an invite, its digest and its public id; and the one door to the random source.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rand::TryRng;
use rand::rngs::SysRng;
use sha2::{Digest as _, Sha256};

/// The operating system gave no random bytes.
pub use rand::rngs::SysError as RandomError;

/// Random bytes in a token: 144 bits drawn, 142 left after redrawing, where XEP-0379 §7 asks for 80.
const TOKEN_BYTES: usize = 18;

/// Hexadecimal digits shown of a [`PublicId`].
pub const ID_DIGITS: usize = 16;

/// The secret that an invite is redeemed with. `Debug` does not show it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

fn random<const BYTES: usize>() -> Result<[u8; BYTES], RandomError> {
	let mut bytes = [0; BYTES];
	// From the operating system each time: a generator in this process would repeat itself in the child when
	// Prosody forks.
	SysRng.try_fill_bytes(&mut bytes)?;
	Ok(bytes)
}

impl Token {
	/// Draws a token of 24 alphanumeric characters (XEP-0401 §4.1 asks for alphanumeric ones).
	///
	/// # Errors
	/// When the operating system gives no random bytes.
	pub fn generate() -> Result<Self, RandomError> {
		loop {
			let text = URL_SAFE_NO_PAD.encode(random::<TOKEN_BYTES>()?);
			// A leading "-" would read as a command-line option.
			if text.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
				return Ok(Self(text));
			}
		}
	}

	/// Takes a token that was made before, by this module or by the bundled one.
	#[must_use]
	pub fn from_stored(text: String) -> Self {
		Self(text)
	}

	/// The secret itself.
	#[must_use]
	pub fn reveal(&self) -> &str {
		&self.0
	}

	/// What stores look the invite up by.
	#[must_use]
	pub fn digest(&self) -> Digest {
		Digest::of(self.0.as_bytes())
	}
}

impl fmt::Debug for Token {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		f.write_str("Token(secret)")
	}
}

/// SHA-256 of a token. Looking up by it, no response time tells how a token begins.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; 32]);

impl Digest {
	/// The digest of whatever was presented as a token: any bytes of any length.
	#[must_use]
	pub fn of(presented: &[u8]) -> Self {
		Self(Sha256::digest(presented).into())
	}

	/// As kept in a store.
	#[must_use]
	pub const fn as_bytes(&self) -> &[u8; 32] {
		&self.0
	}

	/// From a store.
	#[must_use]
	pub const fn from_bytes(bytes: [u8; 32]) -> Self {
		Self(bytes)
	}

	/// The name under which the invite may be shown and logged.
	#[must_use]
	pub const fn id(&self) -> PublicId {
		PublicId(*self)
	}
}

impl fmt::Debug for Digest {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		write!(f, "Digest({})", self.id())
	}
}

/// Public short name of an invite: the first 16 hexadecimal digits of its [`Digest`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublicId(Digest);

impl fmt::Display for PublicId {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		self.0.0[..ID_DIGITS / 2].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
	}
}

/// The beginning of a [`PublicId`], as a person types it: at least six digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IdPrefix {
	/// The digest before the first whose id begins so; none where that is the very first.
	pub before: Option<Digest>,
	/// The last digest whose id begins so.
	pub last: Digest,
}

impl IdPrefix {
	const MIN_DIGITS: usize = 6;

	/// None if it is too short, too long, or something else.
	#[must_use]
	pub fn parse(text: &str) -> Option<Self> {
		let is_one = (Self::MIN_DIGITS..=ID_DIGITS).contains(&text.len());
		if !is_one || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
			return None;
		}
		let id = |filler: &str| {
			u64::from_str_radix(&format!("{text}{}", filler.repeat(ID_DIGITS - text.len())), 16).ok()
		};
		let last_with = |id: u64| {
			let mut bytes = [u8::MAX; 32];
			bytes[..ID_DIGITS / 2].copy_from_slice(&id.to_be_bytes());
			Digest(bytes)
		};
		Some(Self { before: id("0")?.checked_sub(1).map(last_with), last: last_with(id("f")?) })
	}
}

/// A name that nobody else draws: of a claim, or of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Nonce([u8; 16]);

impl Nonce {
	/// Draws one.
	///
	/// # Errors
	/// When the operating system gives no random bytes.
	pub fn generate() -> Result<Self, RandomError> {
		random().map(Self)
	}

	/// As kept in a store.
	#[must_use]
	pub const fn as_bytes(&self) -> &[u8; 16] {
		&self.0
	}

	/// From a store.
	#[must_use]
	pub const fn from_bytes(bytes: [u8; 16]) -> Self {
		Self(bytes)
	}

	/// From what [`Nonce::to_string`] has written.
	#[must_use]
	pub fn from_hex(text: &str) -> Option<Self> {
		if text.len() != 32 || !text.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')) {
			return None;
		}
		u128::from_str_radix(text, 16).ok().map(|number| Self(number.to_be_bytes()))
	}
}

impl fmt::Display for Nonce {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		write!(f, "{:032x}", u128::from_be_bytes(self.0))
	}
}

#[cfg(test)]
mod tests {
	use super::*;

	#[test]
	fn a_token_is_24_alphanumeric_characters_and_never_the_same() {
		let tokens: std::collections::HashSet<_> =
			(0..2000).map(|_| Token::generate().unwrap().reveal().to_owned()).collect();
		assert_eq!(tokens.len(), 2000);
		for token in tokens {
			assert_eq!(token.len(), 24);
			assert!(token.bytes().all(|byte| byte.is_ascii_alphanumeric()), "{token}");
		}
	}

	#[test]
	fn debug_output_does_not_hold_the_token() {
		let token = Token::generate().unwrap();
		assert!(!format!("{token:?} {:?}", token.digest()).contains(token.reveal()));
	}

	#[test]
	fn an_id_can_be_cut_down_to_six_digits() {
		let digest = Digest::of(b"abc");
		let is_of = |text: &str, digest: &Digest| {
			IdPrefix::parse(text).is_some_and(|prefix| {
				prefix.before.is_none_or(|before| before < *digest) && *digest <= prefix.last
			})
		};
		for text in ["ba7816bf8f01cfea", "ba7816b", "ba7816", "BA7816"] {
			assert!(is_of(text, &digest), "{text}");
		}
		for text in ["ba7817", "ba7815", "ba781", "ba7816bf8f01cfea0", "ba781g", "", "+a7816"] {
			assert!(!is_of(text, &digest), "{text}");
		}
		assert!(is_of("000000", &Digest([0; 32])) && is_of("ffffff", &Digest([u8::MAX; 32])));
	}

	#[test]
	fn the_public_id_is_the_beginning_of_the_sha_256() {
		// printf abc | sha256sum
		assert_eq!(Digest::of(b"abc").id().to_string(), "ba7816bf8f01cfea");
	}
}
