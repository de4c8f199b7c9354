//! What the bundled module keeps in Prosody's store `invite_token` (docs/design/contract.md §2), read and written here alone.
//!
//! | row | key | value |
//! | --- | --- | --- |
//! | of the host | token of an invite that allows to register | the invite, as [`describe`] writes it |
//! | of the inviter | token of an invite to become a contact | number: when it expires |
//!
//! An invite that does both has both rows. Of one that is for a contact alone nothing more is known than its end.

use mlua::{Function, Lua, Result as LuaResult, Table, Value};

use super::Failure;
use super::table::{Seconds, absorb, describe, end, expires, whole_seconds};
use super::value::{Null, Room};
use crate::clock::Timestamp;
use crate::invite::{Invite, Type};
use crate::redemption::Purpose;
use crate::token::Token;

/// How rows are read and written.
#[derive(Clone)]
pub(super) struct Bundled {
	/// `util.json.null`
	pub(super) null: Null,
	/// `util.encodings.stringprep.nodeprep`
	pub(super) nodeprep: Function,
	/// Whether anybody can register in-band on the host of this name. Without it, everybody whose invite says so.
	pub(super) registers_in_band: Option<Function>,
}

/// The rows of one invite.
pub(super) struct Rows {
	/// Of the host.
	pub(super) host: Option<Table>,
	/// Of the user of this name.
	pub(super) user: Option<(String, Value)>,
}

/// What stands in the rows of a host: invites, and why some rows are none of ours.
#[derive(Default)]
pub(super) struct Found {
	pub(super) invites: Vec<Invite>,
	pub(super) unreadable: Vec<String>,
}

impl Found {
	fn add(&mut self, read: LuaResult<Result<Invite, Failure>>) {
		match read {
			Ok(Ok(invite)) => self.invites.push(invite),
			// A row that is not of the bundled module's making must not keep the others from being read.
			Ok(Err(Failure::Misuse(why) | Failure::BadValue(why))) => self.unreadable.push(why),
			Ok(Err(Failure::Invite(error))) => self.unreadable.push(error.to_string()),
			Ok(Err(Failure::Lua(error))) | Err(error) => self.unreadable.push(error.to_string()),
		}
	}
}

impl Bundled {
	/// From the options of a handle.
	pub(super) fn new(options: &Table) -> LuaResult<Self> {
		Ok(Self {
			null: Null::new(options.get("null")?),
			nodeprep: options.get("nodeprep")?,
			registers_in_band: options.get("registers_in_band")?,
		})
	}

	/// Whether anybody can register in-band on a host now.
	pub(super) fn is_in_band(&self, host: &str) -> LuaResult<bool> {
		self.registers_in_band.as_ref().map_or(Ok(true), |registers| registers.call(host))
	}

	/// The link of an invite as it is good now.
	pub(super) fn uri(&self, invite: &Invite, token: &Token) -> LuaResult<String> {
		let is_asked = invite.invite_type == Type::Roster && invite.allow_registration;
		Ok(invite.uri(token, is_asked && self.is_in_band(&invite.host)?))
	}

	/// The rows of an invite. One without a token has none.
	pub(super) fn rows(&self, lua: &Lua, invite: &Invite) -> LuaResult<Option<(Token, Rows)>> {
		let Some(token) = &invite.token else { return Ok(None) };
		let host = if invite.serves(Purpose::Account) {
			Some(describe(lua, invite, Some(token), self)?)
		} else {
			None
		};
		let user = match &invite.username {
			Some(username) if invite.serves(Purpose::Contact) => Some((username.clone(), expires(invite))),
			_ => None,
		};
		Ok(Some((token.clone(), Rows { host, user })))
	}

	/// The invites in the rows of `host`, `host_rows[token]` and `user_rows[username][token]`. What the rows do not tell of
	/// an invite that is for a contact alone is made up from `now`.
	pub(super) fn read(
		&self,
		host: &str,
		host_rows: Option<&Table>,
		user_rows: &Table,
		now: Timestamp,
	) -> LuaResult<Found> {
		let mut found = Found::default();
		let mut users = Vec::new();
		if let Some(rows) = host_rows {
			for row in rows.pairs::<Value, Value>() {
				let (token, row) = row?;
				found.add(self.read_host_row(host, &token, &row));
			}
		}
		for user in user_rows.pairs::<String, Table>() {
			users.push(user?);
		}
		for (user, rows) in users {
			for row in rows.pairs::<Value, Value>() {
				let (token, row) = row?;
				let is_told = host_rows.is_some_and(|rows| rows.contains_key(token.clone()).unwrap_or(false));
				if !is_told {
					found.add(Ok(Self::read_user_row(host, &user, &token, &row, now)));
				}
			}
		}
		Ok(found)
	}

	fn read_host_row(&self, host: &str, token: &Value, row: &Value) -> LuaResult<Result<Invite, Failure>> {
		let Some(token) = read_token(token) else { return Ok(Err(no_token())) };
		let mut invite = new(host, &token, 0);
		let refuse =
			|why: &str| Ok(Err(Failure::Misuse(format!("the invite {} {why}", token.digest().id()))));
		let Value::Table(row) = row else { return refuse("is no table") };
		let (Value::String(word), Value::String(jid)) = (row.get("type")?, row.get("jid")?) else {
			return refuse("does not say what it is for");
		};
		if !matches!(row.get("token")?, Value::Nil)
			&& row.get::<Value>("token")?.as_string().is_none_or(|own| own != token.reveal())
		{
			return refuse("is stored under another token than its own");
		}
		let Some(invite_type) = Type::from_stored(&word.to_string_lossy()) else {
			return refuse("is of an unknown type");
		};
		let Some(Seconds::Finite(created_at)) = whole_seconds(&row.get("created_at")?) else {
			return refuse("does not say when it was made");
		};
		invite.invite_type = invite_type;
		invite.created_at = created_at;
		let jid = jid.to_string_lossy();
		if jid != host {
			let node = jid.strip_suffix(host).and_then(|rest| rest.strip_suffix('@'));
			let username = node.map(|node| self.nodeprep.call::<Option<String>>(node)).transpose()?.flatten();
			let Some(username) = username.filter(|username| !username.is_empty()) else {
				return refuse("is for another host, or for a username that nobody can have");
			};
			invite.username = Some(username);
		}
		// Written otherwise, they would count as fields that say something else than the columns.
		row.raw_set("created_at", created_at)?;
		row.raw_set("jid", invite.jid())?;
		Ok(absorb(&mut invite, &token, row, &self.null, Room::stored())?.map(|()| invite))
	}

	fn read_user_row(
		host: &str,
		user: &str,
		token: &Value,
		row: &Value,
		now: Timestamp,
	) -> Result<Invite, Failure> {
		let token = read_token(token).ok_or_else(no_token)?;
		let invite = Invite {
			invite_type: Type::Roster,
			username: Some(user.to_owned()),
			allow_registration: false,
			..new(host, &token, now)
		};
		Ok(Invite { expires: end(row)?, ..invite })
	}
}

fn read_token(token: &Value) -> Option<Token> {
	let Value::String(token) = token else { return None };
	Some(Token::from_stored(token.to_str().ok()?.to_owned()))
}

fn no_token() -> Failure {
	Failure::Misuse("a row stands under something that is no token".to_owned())
}

fn new(host: &str, token: &Token, created_at: Timestamp) -> Invite {
	Invite::new(host.to_owned(), token.digest(), Some(token.clone()), created_at)
}
