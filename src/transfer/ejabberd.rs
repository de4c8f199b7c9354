//! What ejabberd's command `list_invites` says of an invite, as its HTTP API writes it: an array of objects, or one of
//! them a line.
//!
//! What it does not say: when an invite was used (told as the moment it was made), and by which module. Its landing pages are
//! left behind: they are ejabberd's.

use std::fmt;

use jiff::Timestamp as Instant;
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, SeqAccess, Visitor};

use super::{Entry, ImportError, Source, Visit};
use crate::invite::{Invite, Type};
use crate::redemption::{Purpose, Redemption};
use crate::store::Record;
use crate::token::{Nonce, Token};
use crate::value::Value;

/// The keys that tell it from a line of ours, and what else is needed.
#[derive(Debug, Deserialize)]
pub(super) struct Invitation {
	token: String,
	created_at: String,
	expires: String,
	#[serde(rename = "type")]
	kind: Kind,
	/// Who made it, or the host if that was an administrator.
	inviter: String,
	/// Who used it, if it was used.
	invitee: String,
	/// The name that it is bound to, or that was registered.
	account_name: String,
	token_uri: String,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Kind {
	RosterOnly,
	AccountOnly,
	AccountSubscription,
	ResetToken,
}

/// Reads one object.
pub(super) fn parse(text: &[u8]) -> Option<Invitation> {
	serde_json::from_slice(text).ok()
}

/// Reads the array.
pub(super) fn read(
	source: &mut dyn Source,
	host: &str,
	prepare: &dyn Fn(&str) -> Option<String>,
	visit: &mut Visit<'_>,
) -> Result<(), ImportError> {
	let mut failure = None;
	let mut json = serde_json::Deserializer::from_reader(source);
	let array = Array { host, prepare, visit: &mut *visit, failure: &mut failure };
	let read = array.deserialize(&mut json).and_then(|()| json.end());
	if let Some(error) = failure {
		return Err(error);
	}
	match read {
		Ok(()) => Ok(()),
		Err(error) if error.is_io() => Err(ImportError::Unreadable(error.into())),
		Err(error) => {
			visit(&format!("line {}", error.line()), Err(format!("is no list of invites: {error}")))?;
			Ok(())
		}
	}
}

struct Array<'a, 'v> {
	host: &'a str,
	prepare: &'a dyn Fn(&str) -> Option<String>,
	visit: &'a mut Visit<'v>,
	failure: &'a mut Option<ImportError>,
}

impl<'de> DeserializeSeed<'de> for Array<'_, '_> {
	type Value = ();

	fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
		deserializer.deserialize_seq(self)
	}
}

impl<'de> Visitor<'de> for Array<'_, '_> {
	type Value = ();

	fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		f.write_str("the invites of ejabberd's list_invites")
	}

	fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
		for number in 1_u64.. {
			let Some(invitation) = seq.next_element::<Invitation>()? else { break };
			let entry = invitation.into_entry(self.host, self.prepare);
			if let Err(error) = (self.visit)(&format!("invite {number}"), entry) {
				*self.failure = Some(error.into());
				return Err(de::Error::custom("stopped"));
			}
		}
		Ok(())
	}
}

impl Invitation {
	pub(super) fn into_entry(
		self,
		host: &str,
		prepare: &dyn Fn(&str) -> Option<String>,
	) -> Result<Entry, String> {
		let node_of = |jid: &str| match jid.rsplit_once('@') {
			Some((node, of)) if of == host => Ok(Some(node.to_owned())),
			None if jid == host => Ok(None),
			_ => Err(format!("is of {jid:?}, which is not of this host")),
		};
		let name = |name: &str| {
			prepare(name)
				.filter(|name| !name.is_empty())
				.ok_or_else(|| format!("is for {name:?}, which is no username"))
		};
		if self.token.is_empty() {
			return Err("has no token".to_owned());
		}
		let inviter = node_of(&self.inviter)?.map(|node| name(&node)).transpose()?;
		let is_used = !self.invitee.is_empty();
		// Once it is used, this is who used it.
		let bound = if self.account_name.is_empty() { None } else { Some(name(&self.account_name)?) };
		let (mut invite_type, mut username, mut remark) = (Type::Register, bound.clone(), None);
		match self.kind {
			Kind::RosterOnly => {
				(invite_type, username) =
					(Type::Roster, Some(inviter.clone().ok_or("does not say who invites")?));
			}
			Kind::AccountSubscription if bound.is_none() || is_used => {
				if let Some(inviter) = &inviter {
					(invite_type, username) = (Type::Roster, Some(inviter.clone()));
				}
			}
			Kind::AccountSubscription if inviter.is_some() => {
				remark = Some(
					"is bound to a username, and will not make its user a contact of the inviter".to_owned(),
				);
			}
			Kind::ResetToken if bound.is_none() => {
				return Err("does not say whose password it resets".to_owned());
			}
			_ => (),
		}
		let allow_registration = self.kind != Kind::RosterOnly || self.token_uri.ends_with(";ibr=y");
		let created_at = seconds(&self.created_at)?;
		let token = Token::from_stored(self.token);
		let mut additional_data = Vec::new();
		if self.kind == Kind::ResetToken
			&& let Some(name) = &bound
		{
			additional_data.push((Value::text("allow_reset"), Value::text(name)));
		} else if inviter.is_some() {
			additional_data.push((Value::text("source"), Value::text(&self.inviter)));
		}
		let mut fields = Vec::new();
		if !additional_data.is_empty() {
			fields
				.push((Value::text("additional_data"), Value::Table(additional_data.into_iter().collect())));
		}
		let mut redemptions = Vec::new();
		if is_used {
			let for_account = self.kind != Kind::RosterOnly || bound.is_some();
			let user = if for_account { node_of(&self.invitee)?.or(bound) } else { Some(self.invitee) };
			let mut nonce = [0; 16];
			nonce.copy_from_slice(&token.digest().as_bytes()[..16]);
			redemptions.push(Redemption {
				nonce: Nonce::from_bytes(nonce),
				purpose: if for_account { Purpose::Account } else { Purpose::Contact },
				invitee: user,
				source: Some("ejabberd".to_owned()),
				used_at: created_at,
			});
		}
		let invite = Invite {
			invite_type,
			username,
			allow_registration,
			expires: Some(seconds(&self.expires)?),
			uses: u32::from(is_used),
			ended_at: is_used.then_some(created_at),
			fields: fields.into_iter().collect(),
			..Invite::new(host.to_owned(), token.digest(), Some(token), created_at)
		};
		Ok(Entry { record: Record { invite, redemptions }, remark })
	}
}

fn seconds(time: &str) -> Result<i64, String> {
	time.parse::<Instant>().map(Instant::as_second).map_err(|_| format!("has a time that is none: {time:?}"))
}
