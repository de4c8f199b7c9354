//! The record of one invite.

use std::borrow::Cow;
use std::fmt;

use crate::clock::Timestamp;
use crate::token::{Digest, Token};
use crate::uri::invite_uri;
use crate::value::{Fields, Table, Value};

/// The stored word for what an invite is made for first. Never renamed: the bundled module wrote it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Type {
	/// To register an account, or to reset the password of one.
	Register,
	/// To become a contact of the inviter; with `allow_registration` also to register an account.
	Roster,
}

impl Type {
	/// The stored word.
	#[must_use]
	pub const fn as_str(self) -> &'static str {
		match self {
			Self::Register => "register",
			Self::Roster => "roster",
		}
	}

	/// From the stored word.
	#[must_use]
	pub fn from_stored(word: &str) -> Option<Self> {
		[Self::Register, Self::Roster].into_iter().find(|known| known.as_str() == word)
	}
}

/// What an invite is, in the words that people use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
	/// Somebody registers an account.
	Account,
	/// Somebody becomes a contact of the inviter, registering an account first where that is allowed.
	Contact,
	/// Somebody registers an account that joins groups.
	Group,
	/// A user sets a new password. Never makes an account.
	Reset,
}

impl Kind {
	/// The stored word.
	#[must_use]
	pub const fn as_str(self) -> &'static str {
		match self {
			Self::Account => "account",
			Self::Contact => "contact",
			Self::Group => "group",
			Self::Reset => "reset",
		}
	}

	/// From the stored word.
	#[must_use]
	pub fn from_stored(word: &str) -> Option<Self> {
		[Self::Account, Self::Contact, Self::Group, Self::Reset]
			.into_iter()
			.find(|known| known.as_str() == word)
	}
}

/// Stands in the fields of an invite where its token stood.
const FORGOTTEN: &str = "(token)";

/// One invite. What can be told from a moment in time is in [`crate::lifecycle`].
#[derive(Clone, PartialEq)]
pub struct Invite {
	/// The virtual host it is for, as Prosody writes it.
	pub host: String,
	/// Its key within the host.
	pub digest: Digest,
	/// The secret, where the store still has it: it goes when the invite is used up or revoked, and with
	/// [`AtRest::Digest`](crate::invites::AtRest) it never comes there.
	pub token: Option<Token>,
	/// What it is made for.
	pub invite_type: Type,
	/// Of a [`Type::Roster`] invite the inviter's localpart; of a [`Type::Register`] one the only name that
	/// it may be redeemed for, or none. Nodeprepped.
	pub username: Option<String>,
	/// Whether it may be redeemed for an account.
	pub allow_registration: bool,
	/// When it was made.
	pub created_at: Timestamp,
	/// The last second in which it is accepted; none: for ever.
	pub expires: Option<Timestamp>,
	/// How often it may be redeemed; none: until it expires (`reusable`).
	pub max_uses: Option<u32>,
	/// How often it was redeemed.
	pub uses: u32,
	/// Whether it is not to be accepted for now.
	pub paused: bool,
	/// When it was revoked, if it was.
	pub revoked_at: Option<Timestamp>,
	/// Why it was revoked, for people to read.
	pub revoked_why: Option<String>,
	/// Who revoked it, as far as that is known: a module, or the operator's way in.
	pub revoked_by: Option<String>,
	/// When it was used up, revoked, or seen to have expired.
	pub ended_at: Option<Timestamp>,
	/// `additional_data`, `landing_page`, and whatever else handlers of `invite-created` left on it.
	pub fields: Fields,
}

impl Invite {
	/// An invite as all begin: for an account of any name, good once and for ever. Its maker changes what is to be otherwise.
	#[must_use]
	pub fn new(host: String, digest: Digest, token: Option<Token>, created_at: Timestamp) -> Self {
		Self {
			host,
			digest,
			token,
			invite_type: Type::Register,
			username: None,
			allow_registration: true,
			created_at,
			expires: None,
			max_uses: Some(1),
			uses: 0,
			paused: false,
			revoked_at: None,
			revoked_why: None,
			revoked_by: None,
			ended_at: None,
			fields: Fields::default(),
		}
	}

	/// One entry of `additional_data`.
	#[must_use]
	pub fn additional_data(&self, name: &str) -> Option<&Value> {
		match self.fields.get("additional_data") {
			Some(Value::Table(data)) => data.get(name),
			_ => None,
		}
	}

	/// What it is, which follows from its type and its additional data.
	#[must_use]
	pub fn kind(&self) -> Kind {
		let is_true = |value: &Value| !matches!(value, Value::Bool(false));
		if self.invite_type == Type::Roster {
			Kind::Contact
		} else if self.additional_data("allow_reset").is_some_and(is_true) {
			Kind::Reset
		} else if matches!(self.additional_data("groups"), Some(Value::Table(groups)) if !groups.is_empty()) {
			Kind::Group
		} else {
			Kind::Account
		}
	}

	/// Whose password the additional data lets be reset.
	#[must_use]
	pub fn reset_name(&self) -> Option<String> {
		match self.additional_data("allow_reset") {
			Some(Value::Str(name)) => String::from_utf8(name.clone()).ok(),
			_ => None,
		}
	}

	/// The local users whose accounts the invite depends on: whoever made it, whatever its kind, and besides the account
	/// that it is about (whose contact, whose password). Each once; none of an account or group invite that an operator made.
	#[must_use]
	pub fn depends_on(&self) -> Vec<String> {
		let is_about = self.invite_type == Type::Roster || self.kind() == Kind::Reset;
		let mut names: Vec<String> = self.username.iter().filter(|_| is_about).cloned().collect();
		names.extend(self.local_inviter().filter(|inviter| !names.contains(inviter)));
		names
	}

	/// The bare JID of whoever made it, where it says so: the `source` that modules write into the additional data. Of a
	/// contact invite without one, or with one that is no user of this host, it is the user whose contact one becomes.
	#[must_use]
	pub fn inviter(&self) -> Option<String> {
		let local = self.source().and_then(|source| local_user(source, &self.host));
		match (local, self.invite_type) {
			(Some(username), _) => Some(format!("{username}@{}", self.host)),
			(None, Type::Roster) => Some(self.jid()),
			(None, Type::Register) => {
				let bare = self.source()?.split('/').next()?;
				bare.contains('@').then(|| bare.to_owned())
			}
		}
	}

	/// The localpart of the [`Invite::inviter`], if that is a user of the same host.
	#[must_use]
	pub fn local_inviter(&self) -> Option<String> {
		let local = self.source().and_then(|source| local_user(source, &self.host)).map(Cow::into_owned);
		local.or_else(|| self.username.clone().filter(|_| self.invite_type == Type::Roster))
	}

	/// Who or what made it, in the words of the module that asked for it.
	fn source(&self) -> Option<&str> {
		match self.additional_data("source") {
			Some(Value::Str(source)) => std::str::from_utf8(source).ok(),
			_ => None,
		}
	}

	/// Counts one use.
	pub(crate) fn add_use(&mut self, now: Timestamp) {
		self.uses = self.uses.saturating_add(1);
		if !self.has_uses_left() {
			self.end_for_good(now);
		}
	}

	/// Takes it back, unless it was taken back or used up before; says whether it did.
	pub(crate) fn revoke(&mut self, why: Option<&str>, by: Option<&str>, now: Timestamp) -> bool {
		let may = self.revoked_at.is_none() && self.has_uses_left();
		if may {
			self.revoked_at = Some(now);
			self.revoked_why = why.map(str::to_owned);
			self.revoked_by = by.map(str::to_owned);
			self.end_for_good(now);
		}
		may
	}

	/// Moves the end of its validity, unless it was revoked or used up; one that had expired is good again. Says whether
	/// it did.
	pub(crate) fn extend(&mut self, expires: Option<Timestamp>) -> bool {
		let may = self.revoked_at.is_none() && self.has_uses_left();
		if may {
			self.expires = expires;
			self.ended_at = None;
		}
		may
	}

	/// Nothing brings it back, so nobody needs its secret any more: neither by itself nor in a link that a handler of
	/// `invite-created` made of it.
	fn end_for_good(&mut self, now: Timestamp) {
		self.ended_at.get_or_insert(now);
		self.forget_token();
	}

	/// Takes the secret out, and out of every text that holds it. Says whether it was there.
	pub(crate) fn forget_token(&mut self) -> bool {
		let Some(token) = self.token.take() else { return false };
		self.fields.replace_text(token.reveal(), FORGOTTEN);
		true
	}

	/// The fields with the token in its places, for whoever has presented it.
	#[must_use]
	pub fn fields_with(&self, token: &Token) -> Cow<'_, Table> {
		if self.token.is_some() {
			return Cow::Borrowed(&self.fields);
		}
		let mut fields = Table::clone(&self.fields);
		fields.replace_text(FORGOTTEN, token.reveal());
		Cow::Owned(fields)
	}

	/// The address that it is about: the bound or the inviter's account, else the host.
	#[must_use]
	pub fn jid(&self) -> String {
		match &self.username {
			Some(name) => format!("{name}@{}", self.host),
			None => self.host.clone(),
		}
	}

	/// The link for a client, made from the token presented: the store may not have it. `is_in_band` says whether anybody
	/// can register in-band on the host.
	#[must_use]
	pub fn uri(&self, token: &Token, is_in_band: bool) -> String {
		invite_uri(
			self.invite_type,
			self.username.as_deref(),
			&self.host,
			token.reveal(),
			self.allow_registration && is_in_band,
		)
	}
}

/// The localpart of a JID, bare or full, as the server writes it (nodeprepped), if the JID is one of this host.
#[must_use]
pub fn local_user<'a>(jid: &'a str, host: &str) -> Option<Cow<'a, str>> {
	let bare = jid.split_once('/').map_or(jid, |(bare, _)| bare);
	let (username, of) = bare.split_once('@')?;
	if !is_same_host(of, host) || username.is_empty() {
		return None;
	}
	let username =
		if is_prepared(username) { Cow::Borrowed(username) } else { stringprep::nodeprep(username).ok()? };
	Some(username).filter(|username| !username.is_empty())
}

/// Whether a name, in whatever spelling, is that of the host, which is written as the server does (nameprepped).
fn is_same_host(name: &str, host: &str) -> bool {
	name == host || !is_prepared(name) && stringprep::nameprep(name).is_ok_and(|name| name == host)
}

/// Whether neither nodeprep nor nameprep has anything to change or refuse: most JIDs are written so.
fn is_prepared(part: &str) -> bool {
	part.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_'))
}

impl fmt::Debug for Invite {
	/// Names the invite by its public id: the token and links that hold it stay out of logs.
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		f.debug_struct("Invite")
			.field("host", &self.host)
			.field("id", &self.digest.id())
			.field("type", &self.invite_type)
			.field("username", &self.username)
			.field("allow_registration", &self.allow_registration)
			.field("created_at", &self.created_at)
			.field("expires", &self.expires)
			.field("max_uses", &self.max_uses)
			.field("uses", &self.uses)
			.field("paused", &self.paused)
			.field("revoked_at", &self.revoked_at)
			.field("revoked_by", &self.revoked_by)
			.field("ended_at", &self.ended_at)
			.field("fields", &self.fields)
			.finish_non_exhaustive()
	}
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::store::conformance::sample;

	fn invite(invite_type: Type, username: Option<&str>, data: &[(&str, &str)]) -> Invite {
		let data = data.iter().map(|(key, value)| (Value::text(key), Value::text(value))).collect();
		Invite {
			invite_type,
			username: username.map(str::to_owned),
			fields: [(Value::text("additional_data"), Value::Table(data))].into_iter().collect(),
			..sample("example.com", "t")
		}
	}

	#[test]
	fn an_invite_depends_on_who_made_it_whatever_its_kind_and_on_the_account_that_it_is_about() {
		let nurse = ("source", "nurse@example.com/phone");
		for (invite, names) in [
			(invite(Type::Register, None, &[nurse]), vec!["nurse"]),
			(invite(Type::Register, Some("juliet"), &[nurse]), vec!["nurse"]),
			(
				invite(Type::Register, Some("juliet"), &[nurse, ("allow_reset", "juliet")]),
				vec!["juliet", "nurse"],
			),
			(invite(Type::Roster, Some("juliet"), &[nurse]), vec!["juliet", "nurse"]),
			(invite(Type::Roster, Some("nurse"), &[nurse]), vec!["nurse"]),
			// What an operator, another host's user or a program made.
			(invite(Type::Register, None, &[]), vec![]),
			(invite(Type::Register, Some("juliet"), &[("source", "api/token/1")]), vec![]),
			(invite(Type::Register, None, &[("source", "admin@example.net")]), vec![]),
			(invite(Type::Roster, Some("juliet"), &[("source", "admin@example.net")]), vec!["juliet"]),
			(invite(Type::Register, Some("juliet"), &[("allow_reset", "juliet")]), vec!["juliet"]),
		] {
			assert_eq!(invite.depends_on(), names, "{invite:?}");
			let inviter = invite.local_inviter().map(|inviter| format!("{inviter}@example.com"));
			assert!(inviter.is_none() || inviter == invite.inviter(), "one notion of inviter");
		}
	}

	#[test]
	fn an_inviter_is_known_however_the_address_is_written() {
		for jid in ["nurse@example.com", "Nurse@Example.COM/x", "NURSE@example.com/a@b/c"] {
			assert_eq!(local_user(jid, "example.com").as_deref(), Some("nurse"), "{jid}");
		}
		assert_eq!(
			local_user("J\u{d6}RG@B\u{dc}HNE.example", "b\u{fc}hne.example").as_deref(),
			Some("j\u{f6}rg")
		);
		for jid in [
			"example.com",
			"@example.com",
			"nurse@example.net",
			"nurse",
			"nurse@example.com@x",
			"a b@example.com",
		] {
			assert_eq!(local_user(jid, "example.com"), None, "{jid}");
		}
	}
}
