//! A line of an export.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::invite::{Invite, Type};
use crate::redemption::{Purpose, Redemption};
use crate::store::Record;
use crate::token::{Digest, Nonce, Token};
use crate::value::{Table, Value};

/// One invite with its history. Times are unix seconds. The keys are those of [`Invite`]; what is empty or false may be
/// missing, but for `expires` and `max_uses`: an invite without end is not to be made by forgetting a word.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Line {
	host: String,
	/// The secret, or its digest where the store has not kept it.
	#[serde(default, skip_serializing_if = "Option::is_none")]
	token: Option<String>,
	/// base64, URL-safe.
	#[serde(default, skip_serializing_if = "Option::is_none")]
	digest: Option<String>,
	/// `"register"` or `"roster"`.
	#[serde(rename = "type")]
	invite_type: String,
	#[serde(default, skip_serializing_if = "Option::is_none")]
	username: Option<String>,
	allow_registration: bool,
	created_at: Timestamp,
	/// `null`: never.
	#[serde(deserialize_with = "Option::deserialize")]
	expires: Option<Timestamp>,
	/// `null`: any number.
	#[serde(deserialize_with = "Option::deserialize")]
	max_uses: Option<u32>,
	#[serde(default, skip_serializing_if = "is_zero")]
	uses: u32,
	#[serde(default, skip_serializing_if = "std::ops::Not::not")]
	paused: bool,
	#[serde(default, skip_serializing_if = "Option::is_none")]
	revoked_at: Option<Timestamp>,
	#[serde(default, skip_serializing_if = "Option::is_none")]
	revoked_why: Option<String>,
	#[serde(default, skip_serializing_if = "Option::is_none")]
	revoked_by: Option<String>,
	#[serde(default, skip_serializing_if = "Option::is_none")]
	ended_at: Option<Timestamp>,
	/// `additional_data`, `landing_page` and so on, as in [`crate::value`].
	#[serde(default, skip_serializing_if = "Table::is_empty")]
	fields: Table,
	#[serde(default, skip_serializing_if = "Vec::is_empty")]
	redemptions: Vec<Use>,
}

/// One use of it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct Use {
	/// base64, URL-safe.
	nonce: String,
	/// `"account"` or `"contact"`.
	purpose: String,
	#[serde(default, skip_serializing_if = "Option::is_none")]
	invitee: Option<String>,
	#[serde(default, skip_serializing_if = "Option::is_none")]
	source: Option<String>,
	used_at: Timestamp,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
const fn is_zero(number: &u32) -> bool {
	*number == 0
}

impl From<Record> for Line {
	fn from(Record { invite, redemptions }: Record) -> Self {
		let digest = if invite.token.is_none() {
			Some(URL_SAFE_NO_PAD.encode(invite.digest.as_bytes()))
		} else {
			None
		};
		Self {
			host: invite.host,
			token: invite.token.map(|token| token.reveal().to_owned()),
			digest,
			invite_type: invite.invite_type.as_str().to_owned(),
			username: invite.username,
			allow_registration: invite.allow_registration,
			created_at: invite.created_at,
			expires: invite.expires,
			max_uses: invite.max_uses,
			uses: invite.uses,
			paused: invite.paused,
			revoked_at: invite.revoked_at,
			revoked_why: invite.revoked_why,
			revoked_by: invite.revoked_by,
			ended_at: invite.ended_at,
			fields: Table::clone(&invite.fields),
			redemptions: redemptions.into_iter().map(Use::from).collect(),
		}
	}
}

impl From<Redemption> for Use {
	fn from(redemption: Redemption) -> Self {
		Self {
			nonce: URL_SAFE_NO_PAD.encode(redemption.nonce.as_bytes()),
			purpose: redemption.purpose.as_str().to_owned(),
			invitee: redemption.invitee,
			source: redemption.source,
			used_at: redemption.used_at,
		}
	}
}

impl Line {
	/// Reads the text of a line.
	pub(super) fn parse(text: &[u8]) -> Result<Self, String> {
		let mut json = serde_json::Deserializer::from_slice(text);
		// What may be nested counts its own depth.
		json.disable_recursion_limit();
		let line = Self::deserialize(&mut json).and_then(|line| json.end().map(|()| line));
		line.map_err(|error| format!("is no invite: {error}"))
	}

	/// What it says, if that can be.
	pub(super) fn into_record(
		self,
		host: &str,
		prepare: &dyn Fn(&str) -> Option<String>,
	) -> Result<Record, String> {
		if self.host != host {
			return Err(format!("is for the host {:?}", self.host));
		}
		let (digest, token) = match (self.token, self.digest) {
			(Some(token), None) if !token.is_empty() => {
				let token = Token::from_stored(token);
				(token.digest(), Some(token))
			}
			(None, Some(digest)) => {
				let bytes = decode(&digest).ok_or("has a digest that is none")?;
				(Digest::from_bytes(bytes), None)
			}
			_ => return Err("needs a token, or else a digest".to_owned()),
		};
		let invite_type = Type::from_stored(&self.invite_type).ok_or("is of an unknown type")?;
		match &self.username {
			None if invite_type == Type::Roster => return Err("does not say who invites".to_owned()),
			Some(username) if prepare(username).as_ref() != Some(username) => {
				return Err(format!("has a username that is not as it is compared: {username:?}"));
			}
			_ => (),
		}
		if self.max_uses == Some(0) {
			return Err("can never be used".to_owned());
		}
		if !self.fields.entries().iter().all(|(name, _)| matches!(name, Value::Str(_))) {
			return Err("has a field whose name is no text".to_owned());
		}
		if self.redemptions.len() > usize::try_from(self.uses).unwrap_or(usize::MAX) {
			return Err("tells of more uses than it counts".to_owned());
		}
		let redemptions = self.redemptions.into_iter().map(Use::into_redemption).collect::<Result<_, _>>()?;
		let invite = Invite {
			invite_type,
			username: self.username,
			allow_registration: self.allow_registration,
			expires: self.expires,
			max_uses: self.max_uses,
			uses: self.uses,
			paused: self.paused,
			revoked_at: self.revoked_at,
			revoked_why: self.revoked_why,
			revoked_by: self.revoked_by,
			ended_at: self.ended_at,
			fields: self.fields.into(),
			..Invite::new(self.host, digest, token, self.created_at)
		};
		Ok(Record { invite, redemptions })
	}
}

impl Use {
	fn into_redemption(self) -> Result<Redemption, String> {
		Ok(Redemption {
			nonce: Nonce::from_bytes(decode(&self.nonce).ok_or("has a use with a nonce that is none")?),
			purpose: Purpose::from_stored(&self.purpose).ok_or("has a use for an unknown purpose")?,
			invitee: self.invitee,
			source: self.source,
			used_at: self.used_at,
		})
	}
}

fn decode<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
	URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok()
}
