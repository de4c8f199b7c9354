//! An [`Invite`] as the plain table that callers get, and back (docs/design/contract.md §1.1, §1.2).

use mlua::{BString, Lua, Result as LuaResult, Table, Value};

use super::bundled::Bundled;
use super::value::{Null, Room, read_field, write, write_entries};
use super::{Failure, is_truthy, set_some};
use crate::clock::{self, Timestamp};
use crate::invite::{Invite, Kind, Type};
use crate::listing::Part;
use crate::redemption::{Claim, Purpose, Redemption};
use crate::token::Token;

/// The invite with all that is known of it, as `create_*` and `get_account_invite_info` return it. Without a token the public
/// id stands in its place, and there are no links.
pub(super) fn describe(
	lua: &Lua,
	invite: &Invite,
	token: Option<&Token>,
	bundled: &Bundled,
) -> LuaResult<Table> {
	let null = &bundled.null;
	let table = lua.create_table_with_capacity(0, 7 + invite.fields.entries().len())?;
	table.raw_set("type", invite.invite_type.as_str())?;
	table.raw_set("jid", invite.jid())?;
	table.raw_set("created_at", invite.created_at)?;
	table.raw_set("expires", expires(invite))?;
	set_some(&table, "allow_registration", invite.allow_registration.then_some(true))?;
	set_some(&table, "reusable", invite.max_uses.is_none().then_some(true))?;
	set_some(&table, "max_uses", invite.max_uses.filter(|max_uses| *max_uses > 1))?;
	set_some(&table, "uses", Some(invite.uses).filter(|uses| *uses > 0))?;
	if let Some(token) = token {
		table.raw_set("token", token.reveal())?;
		table.raw_set("uri", bundled.uri(invite, token)?)?;
		write_entries(lua, &invite.fields_with(token), null, &table)?;
	} else {
		write_entries(lua, &invite.fields, null, &table)?;
		table.raw_set("token", invite.digest.id().to_string())?;
		table.raw_set("uri", Value::Nil)?;
		table.raw_set("landing_page", Value::Nil)?;
	}
	Ok(table)
}

/// The invite as `get` returns it to whoever presented `token` for `purpose`.
pub(super) fn validated(
	lua: &Lua,
	invite: &Invite,
	token: &Token,
	purpose: Purpose,
	bundled: &Bundled,
) -> LuaResult<Table> {
	let null = &bundled.null;
	// No larger than it must be, for this is done most often: a table of Lua has room for 8 or 16.
	let table = lua.create_table_with_capacity(0, if invite.username.is_some() { 10 } else { 8 })?;
	table.raw_set("token", token.reveal())?;
	table.raw_set("type", invite.invite_type.as_str())?;
	set_some(&table, "username", invite.username.as_deref())?;
	match (purpose, invite.invite_type) {
		(Purpose::Account, Type::Roster) => set_some(&table, "inviter", invite.username.as_deref())?,
		// On a roster invite it would be taken for the name to register: the inviter's.
		(Purpose::Account, Type::Register) => table.raw_set("jid", invite.jid())?,
		(Purpose::Contact, _) => (),
	}
	let fields = invite.fields_with(token);
	let field = |name| fields.get(name).map(|value| write(lua, value, null)).transpose();
	match field("uri")? {
		Some(uri) => table.raw_set("uri", uri)?,
		None => table.raw_set("uri", bundled.uri(invite, token)?)?,
	}
	set_some(&table, "additional_data", field("additional_data")?)?;
	table.raw_set("reusable", invite.max_uses.is_none())?;
	table.raw_set("created_at", invite.created_at)?;
	table.raw_set("expires", expires(invite))?;
	Ok(table)
}

pub(super) fn expires(invite: &Invite) -> Value {
	invite.expires.map_or(Value::Number(f64::INFINITY), Value::Integer)
}

/// Takes over what the caller and the handlers of `invite-created` put on the table of a prepared invite. Changes to its
/// identity are undone on the table; the names of those fields are returned.
pub(super) fn take_over(
	invite: &mut Invite,
	token: &Token,
	table: &Table,
	null: &Null,
) -> LuaResult<Result<Vec<&'static str>, Failure>> {
	let mut restored = Vec::new();
	for name in ["token", "type", "created_at", "jid"] {
		if says(invite, token, name, &table.raw_get(name)?) {
			continue;
		}
		match name {
			"token" => table.raw_set(name, token.reveal())?,
			"type" => table.raw_set(name, invite.invite_type.as_str())?,
			"created_at" => table.raw_set(name, invite.created_at)?,
			_ => table.raw_set(name, invite.jid())?,
		}
		restored.push(name);
	}
	Ok(absorb(invite, token, table, null, Room::attached())?.map(|()| restored))
}

/// Whether the columns of an invite say of it what a field of its table says, so that the field need not be kept.
fn says(invite: &Invite, token: &Token, name: &str, value: &Value) -> bool {
	let text = |known: &str| matches!(value, Value::String(text) if *text == known);
	match name {
		"token" => text(token.reveal()),
		"type" => text(invite.invite_type.as_str()),
		"jid" => text(&invite.jid()),
		// Whatever could be done on the host when it was written down.
		"uri" => text(&invite.uri(token, true)) || text(&invite.uri(token, false)),
		"created_at" => *value == Value::Integer(invite.created_at),
		"allow_registration" => invite.allow_registration && *value == Value::Boolean(true),
		"reusable" => invite.max_uses.is_none() && *value == Value::Boolean(true),
		"uses" => invite.uses > 0 && *value == Value::Integer(invite.uses.into()),
		"expires" | "max_uses" => true,
		_ => false,
	}
}

/// Takes over what an invite table says beyond the identity of the invite, for which there is so much room.
pub(super) fn absorb(
	invite: &mut Invite,
	token: &Token,
	table: &Table,
	null: &Null,
	mut room: Room,
) -> LuaResult<Result<(), Failure>> {
	invite.expires = match end(&table.raw_get("expires")?) {
		Ok(expires) => expires,
		Err(failure) => return Ok(Err(failure)),
	};
	let reusable: Value = table.raw_get("reusable")?;
	invite.max_uses = match (is_truthy(&reusable), &table.raw_get("max_uses")?) {
		(true, _) => None,
		(false, Value::Nil) => Some(1),
		(false, max_uses) => match limit(max_uses) {
			Ok(limit) => limit,
			Err(failure) => return Ok(Err(failure)),
		},
	};
	invite.allow_registration = is_truthy(&table.raw_get("allow_registration")?);

	let mut fields = Vec::new();
	for pair in table.pairs::<Value, Value>() {
		let (key, value) = pair?;
		let Value::String(name) = &key else {
			return Ok(Err(Failure::Misuse(format!(
				"an invite has a field whose name is a {}",
				key.type_name()
			))));
		};
		let name = name.as_bytes();
		if str::from_utf8(&name).is_ok_and(|name| says(invite, token, name, &value)) {
			continue;
		}
		match read_field(&name, value, null, &mut room)? {
			Ok(field) => fields.push(field),
			Err(failure) => return Ok(Err(failure)),
		}
	}
	invite.fields = fields.into_iter().collect();
	if invite.kind() == Kind::Reset && invite.username.is_none() {
		invite.username = invite.reset_name();
	}
	Ok(Ok(()))
}

/// What events tell of an invite, and logs may: everything but the secret and what holds it.
pub(super) fn summary(lua: &Lua, invite: &Invite, null: &Null) -> LuaResult<Table> {
	let now = clock::now();
	// Few have more, and Lua makes room for the next power of two.
	let table = lua.create_table_with_capacity(0, 16)?;
	table.raw_set("id", invite.digest.id().to_string())?;
	table.raw_set("host", invite.host.as_str())?;
	table.raw_set("type", invite.invite_type.as_str())?;
	table.raw_set("kind", invite.kind().as_str())?;
	table.raw_set("state", invite.state(now).as_str())?;
	set_some(&table, "username", invite.username.as_deref())?;
	set_some(&table, "inviter", invite.inviter())?;
	table.raw_set("allow_registration", invite.allow_registration)?;
	table.raw_set("created_at", invite.created_at)?;
	table.raw_set("expires", expires(invite))?;
	table.raw_set("uses", invite.uses)?;
	set_some(&table, "max_uses", invite.max_uses)?;
	set_some(&table, "revoked_at", invite.revoked_at)?;
	set_some(&table, "revoked_why", invite.revoked_why.as_deref())?;
	set_some(&table, "revoked_by", invite.revoked_by.as_deref())?;
	set_some(&table, "ended_at", invite.position(Part::History, now).map(|position| position.at))?;
	let additional_data =
		invite.fields.get("additional_data").map(|value| write(lua, value, null)).transpose()?;
	set_some(&table, "additional_data", additional_data)?;
	Ok(table)
}

/// Who used an invite: a list of `{ used_at, purpose, invitee, source }`.
pub(super) fn redemptions(lua: &Lua, redemptions: &[Redemption]) -> LuaResult<Vec<Table>> {
	redemptions
		.iter()
		.map(|redemption| {
			let table = lua.create_table_with_capacity(0, 4)?;
			table.raw_set("used_at", redemption.used_at)?;
			table.raw_set("purpose", redemption.purpose.as_str())?;
			set_some(&table, "invitee", redemption.invitee.as_deref())?;
			set_some(&table, "source", redemption.source.as_deref())?;
			Ok(table)
		})
		.collect()
}

/// A claim that is to be settled; `inviter` is whose contact somebody was to become.
pub(super) fn write_claim(lua: &Lua, claim: &Claim, inviter: Option<&str>) -> LuaResult<Table> {
	let table = lua.create_table_with_capacity(0, 7)?;
	let bytes = |bytes: &[u8]| BString::from(bytes);
	table.raw_set("digest", bytes(claim.digest.as_bytes()))?;
	table.raw_set("nonce", bytes(claim.nonce.as_bytes()))?;
	table.raw_set("boot", bytes(claim.boot.as_bytes()))?;
	table.raw_set("purpose", claim.purpose.as_str())?;
	table.raw_set("renewals", claim.renewals)?;
	set_some(&table, "invitee", claim.invitee.as_deref())?;
	set_some(&table, "inviter", inviter)?;
	Ok(table)
}

/// How often an invite may be used, from a number; `math.huge` is no limit.
pub(super) fn limit(value: &Value) -> Result<Option<u32>, Failure> {
	let limit = match whole_seconds(value) {
		Some(Seconds::Endless) => return Ok(None),
		Some(Seconds::Finite(limit)) => u32::try_from(limit).ok().filter(|limit| *limit > 0),
		None => None,
	};
	limit.map(Some).ok_or_else(|| {
		Failure::BadValue("max_uses must be a positive whole number, or math.huge for no limit".to_owned())
	})
}

/// The last second of validity from what stands under `expires`.
pub(super) fn end(value: &Value) -> Result<Option<Timestamp>, Failure> {
	whole_seconds(value).map(Seconds::finite).ok_or_else(|| {
		Failure::BadValue("expires must be a number of seconds since 1970, or math.huge for never".to_owned())
	})
}

/// A number of seconds as Lua has it.
pub(super) enum Seconds {
	/// Whole ones.
	Finite(i64),
	/// `math.huge`.
	Endless,
}

impl Seconds {
	pub(super) const fn finite(self) -> Option<i64> {
		match self {
			Self::Finite(seconds) => Some(seconds),
			Self::Endless => None,
		}
	}
}

/// A number, rounded down to whole seconds.
pub(super) fn whole_seconds(value: &Value) -> Option<Seconds> {
	match *value {
		Value::Integer(seconds) => Some(Seconds::Finite(seconds)),
		Value::Number(seconds) if seconds == f64::INFINITY => Some(Seconds::Endless),
		#[expect(clippy::cast_possible_truncation, reason = "a float beyond the range becomes its end")]
		Value::Number(seconds) if !seconds.is_nan() => Some(Seconds::Finite(seconds.floor() as i64)),
		_ => None,
	}
}
