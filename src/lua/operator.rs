//! What modules ask about invites and do with them on behalf of an operator: more methods of [`Handle`].
//!
//! | method | returns |
//! | --- | --- |
//! | `resolve(named)` | what stands for the invite as a `token` elsewhere; `named` is its token, or at least six digits of its id |
//! | `save_all(pairs)` | list of summaries; a pair is `{ table, draft }`, of an invite that is bound to no username |
//! | `show(token)` | summary, with `redemptions`, a list of `{ used_at, purpose, invitee, source }` |
//! | `list(filter, after)` | list of summaries, and what to pass as `after` for more, if there is more |
//! | `set_paused(token, is_paused)` | `true`, or `false` if it has ended or was so already |
//! | `extend(token, ttl)` | summary, list of summaries of the invites that it took the place of; or `false` if it was used up or revoked |
//! | `purge(age, limit, read_bundled)` | how many invites were removed, at most so many, and whether there may be more; `read_bundled()` returns what `import_bundled` takes, or nil where it cannot be read |
//! | `why { token, purpose, invitee, depends_on }` | `true` if the attempt would succeed; nothing is changed |
//! | `revoke_inviter(username, is_branch, why, by)` | list of summaries, and whether there are more that are not good any more either and are ended by `end_more` |
//! | `branch(username)` | list of `{ username, depth, inviter, joined_at }`, the user first and after everybody those whom they brought |
//! | `import_lineage(entries)` | how many were new; an entry is `{ username, source, token, joined_at }`, and counts if the source is a local user |
//! | `count_open(after)` | how many invites have not ended in the next piece of them, and `after` as above |
//!
//! A `filter` is `{ part, state, kind, inviter, text }`; without a `part` (`"open"` or `"history"`) it follows from
//! the state. A page is one piece of the store, so it may hold fewer invites than there are to come, or none.

use mlua::{
	BString, Function, Lua, LuaString, Result as LuaResult, Table, UserDataMethods, UserDataRef, Value,
};

use super::handle::{Draft, Handle, IMPORT_BATCH, Key, digest, ttl};
use super::table::{redemptions, summary};
use super::{Failure, Outcome, attempts, outcome, set_some};
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::{Kind, local_user};
use crate::lifecycle::State;
use crate::lineage::{Member, Place};
use crate::listing::{Filter, Part, Position};
use crate::token::Digest;

/// Invites in one page of a listing: a few milliseconds.
const PAGE: u32 = 200;

/// Invites that are counted at once: less than a millisecond.
const COUNTED: u32 = 10_000;

/// Summaries, and where the next page begins.
type Summaries = (Vec<Table>, Option<BString>);

/// Summary of an invite or `false`, and summaries of those that it took the place of.
type Extended = (Value, Option<Vec<Table>>);

impl Handle {
	fn resolve(&self, named: &Value) -> Result<Key, Failure> {
		match named {
			Value::Nil | Value::Boolean(false) => Err(InviteError::NoToken.into()),
			Value::String(named) => Ok(Key::new(self.invites.resolve(&named.as_bytes())?)),
			_ => Err(InviteError::TokenInvalid.into()),
		}
	}

	fn save_all(&self, lua: &Lua, pairs: &Table) -> LuaResult<Result<Vec<Table>, Failure>> {
		let mut invites = Vec::new();
		for pair in pairs.sequence_values::<Table>() {
			let pair = pair?;
			let draft: UserDataRef<Draft> = pair.get(2)?;
			match self.complete(&pair.get(1)?, &draft)? {
				Ok((invite, _)) => invites.push(invite.into()),
				Err(failure) => return Ok(Err(failure)),
			}
		}
		for batch in invites.chunks(IMPORT_BATCH) {
			if let Err(error) = self.invites.save_all(batch) {
				return Ok(Err(error.into()));
			}
		}
		let invites = invites.into_iter().map(|record| record.invite).collect();
		self.summaries(lua, Ok(invites))
	}

	fn show(&self, lua: &Lua, token: &Value) -> LuaResult<Result<Table, Failure>> {
		let found = digest(token)
			.and_then(|digest| Ok((self.invites.find(&digest)?, self.invites.redemptions(&digest)?)));
		match found {
			Ok((invite, used)) => {
				let table = summary(lua, &invite, &self.bundled.null)?;
				table.raw_set("redemptions", redemptions(lua, &used)?)?;
				Ok(Ok(table))
			}
			Err(error) => Ok(Err(error.into())),
		}
	}

	fn list(
		&self,
		lua: &Lua,
		filter: &Table,
		after: Option<&BString>,
	) -> LuaResult<Result<Summaries, Failure>> {
		let (filter, part) = match read_filter(filter)? {
			Ok(read) => read,
			Err(failure) => return Ok(Err(failure)),
		};
		let page = || {
			let after = after.map_or(Ok(Position::START), read_position)?;
			Ok(self.invites.list(&filter, part, &after, PAGE, self.now())?)
		};
		match page() {
			Ok((page, next)) => Ok(self
				.summaries(lua, Ok(page))?
				.map(|summaries| (summaries, next.as_ref().map(write_position)))),
			Err(failure) => Ok(Err(failure)),
		}
	}

	fn extend(&self, lua: &Lua, token: &Value, seconds: &Value) -> LuaResult<Result<Extended, Failure>> {
		let seconds = match ttl(lua, seconds)? {
			Ok(seconds) => seconds,
			Err(failure) => return Ok(Err(failure)),
		};
		match digest(token).and_then(|digest| self.invites.extend(&digest, seconds, self.now())) {
			Ok(Some((invite, superseded))) => {
				let extended = Value::Table(summary(lua, &invite, &self.bundled.null)?);
				Ok(self.summaries(lua, Ok(superseded))?.map(|superseded| (extended, Some(superseded))))
			}
			Ok(None) => Ok(Ok((Value::Boolean(false), None))),
			Err(error) => Ok(Err(error.into())),
		}
	}

	fn branch(&self, lua: &Lua, username: &str) -> LuaResult<Result<Vec<Table>, Failure>> {
		let places = match self.invites.branch(username) {
			Ok(places) => places,
			Err(error) => return Ok(Err(error.into())),
		};
		let describe = |place: Place| {
			let table = lua.create_table()?;
			table.raw_set("username", place.username)?;
			table.raw_set("depth", place.depth)?;
			if let Some(member) = place.brought {
				table.raw_set("inviter", member.inviter)?;
				set_some(&table, "joined_at", member.joined_at)?;
			}
			Ok(table)
		};
		places.into_iter().map(describe).collect::<LuaResult<_>>().map(Ok)
	}

	fn import_lineage(&self, entries: &Table) -> LuaResult<Result<usize, Failure>> {
		let mut members = Vec::new();
		for entry in entries.sequence_values::<Table>() {
			let entry = entry?;
			let (source, token): (BString, BString) = (entry.get("source")?, entry.get("token")?);
			if let Some(inviter) = local_user(&source.to_string(), self.invites.host()) {
				members.push(Member {
					username: entry.get("username")?,
					inviter: inviter.into_owned(),
					digest: Digest::of(&token),
					joined_at: entry.get("joined_at")?,
				});
			}
		}
		if !self.invites.carries().history {
			return Ok(Ok(0));
		}
		let mut imported = 0;
		for batch in members.chunks(IMPORT_BATCH) {
			match self.invites.import_lineage(batch) {
				Ok(new) => imported += new,
				Err(error) => return Ok(Err(error.into())),
			}
		}
		Ok(Ok(imported))
	}

	fn why(&self, attempt: &Table) -> Result<bool, Failure> {
		self.invites.why(attempts::read(attempt)?, self.now())?;
		Ok(true)
	}

	fn purge(
		&self,
		age: i64,
		limit: u32,
		read_bundled: &Function,
	) -> LuaResult<Result<(u32, bool), Failure>> {
		if !self.invites.carries().history {
			return Ok(Ok((0, false)));
		}
		let now = self.now();
		let before = now.saturating_sub(age);
		let bundled = self.bundled_tokens(before, now, read_bundled)?;
		let purged = self.invites.purge(before, limit, &bundled);
		Ok(purged.map(|purged| (purged, purged == limit)).map_err(Failure::from))
	}

	fn count_open(&self, after: Option<&BString>) -> Result<(u32, Option<BString>), Failure> {
		let after = after.map_or(Ok(Position::START), read_position)?;
		let (count, next) = self.invites.count_open(&after, COUNTED)?;
		Ok((count, next.as_ref().map(write_position)))
	}
}

fn read_part(word: &str) -> Result<Part, Failure> {
	Part::from_word(word).ok_or_else(|| Failure::Misuse(format!("{word:?} is no part")))
}

fn read_filter(table: &Table) -> LuaResult<Result<(Filter, Part), Failure>> {
	let state: Option<String> = table.get("state")?;
	let kind: Option<String> = table.get("kind")?;
	let part: Option<String> = table.get("part")?;
	let (inviter, text) = (table.get("inviter")?, table.get("text")?);
	let read = || {
		let state = state
			.map(|word| {
				State::from_word(&word).ok_or_else(|| Failure::BadValue(format!("{word:?} is no state")))
			})
			.transpose()?;
		let kind = kind
			.map(|word| {
				Kind::from_stored(&word)
					.ok_or_else(|| Failure::BadValue(format!("{word:?} is no kind of invite")))
			})
			.transpose()?;
		let filter = Filter { state, kind, inviter, text };
		let part = part.map_or_else(|| Ok(filter.part()), |word| read_part(&word))?;
		Ok((filter, part))
	};
	Ok(read())
}

fn write_position(position: &Position) -> BString {
	let mut bytes = position.at.to_be_bytes().to_vec();
	bytes.extend(position.digest.as_bytes());
	bytes.into()
}

fn read_position(bytes: &BString) -> Result<Position, Failure> {
	let read = || {
		let (at, digest) = bytes.split_first_chunk::<8>()?;
		let digest = <[u8; 32]>::try_from(digest).ok()?;
		Some(Position { at: Timestamp::from_be_bytes(*at), digest: Digest::from_bytes(digest) })
	};
	read().ok_or_else(|| Failure::Misuse("this is not where a page ends".to_owned()))
}

pub(super) fn add_methods<M: UserDataMethods<Handle>>(methods: &mut M) {
	methods.add_method("resolve", |_, this, named: Value| Ok(Outcome(this.resolve(&named))));
	methods.add_method("save_all", |lua, this, pairs: Table| outcome(this.save_all(lua, &pairs)));
	methods.add_method("show", |lua, this, token: Value| outcome(this.show(lua, &token)));
	methods.add_method("list", |lua, this, (filter, after): (Table, Option<BString>)| {
		outcome(this.list(lua, &filter, after.as_ref()))
	});
	methods.add_method("set_paused", |_, this, (token, paused): (Value, bool)| {
		let changed = digest(&token).and_then(|digest| this.invites.set_paused(&digest, paused));
		Ok(Outcome(changed.map(|changed| changed.is_some()).map_err(Failure::from)))
	});
	methods.add_method("extend", |lua, this, (token, ttl): (Value, Value)| {
		outcome(this.extend(lua, &token, &ttl))
	});
	methods.add_method("purge", |_, this, (age, limit, read_bundled): (i64, u32, Function)| {
		outcome(this.purge(age, limit, &read_bundled))
	});
	methods.add_method("why", |_, this, attempt: Table| Ok(Outcome(this.why(&attempt))));
	methods.add_method(
		"revoke_inviter",
		|lua, this, (username, is_branch, why, by): (String, bool, Option<LuaString>, Option<LuaString>)| {
			let (why, by) = (why.map(|why| why.to_string_lossy()), by.map(|by| by.to_string_lossy()));
			let revoked =
				this.invites.revoke_inviter(&username, is_branch, why.as_deref(), by.as_deref(), this.now());
			outcome(this.ended(lua, revoked))
		},
	);
	methods.add_method("branch", |lua, this, username: String| outcome(this.branch(lua, &username)));
	methods.add_method("import_lineage", |_, this, entries: Table| outcome(this.import_lineage(&entries)));
	methods.add_method("count_open", |_, this, after: Option<BString>| {
		Ok(Outcome(this.count_open(after.as_ref())))
	});
}
