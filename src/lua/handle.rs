//! The invites of one host, as the shim holds them.
//!
//! | method | returns |
//! | --- | --- |
//! | `limited { type, username, source }` | the username of the local user who invites, if anything limits anybody; `source` is `additional_data.source` |
//! | `prepare { type, username, account, is_reset, allow_registration, reusable, max_uses, ttl, default_ttl, inviter }` | invite table, draft; `account` is the state of the account of a register invite's username; `inviter` is `{ username, roles, account_created }` of whom `limited` named, `roles` a list of lists as of [`crate::policy::Inviter`] |
//! | `now()` | the time by the clock that invites are compared with |
//! | `counted_period()` | the seconds for which limits count invites that have ended |
//! | `may_save(table, draft)` | `true` if the inviter's limits let it be made now; nothing is stored |
//! | `save(table, draft, is_heard)` | list of the names of fields that were restored, list of summaries of the invites that it took the place of, and its own if anybody is to hear of it; the invite is on the disk |
//! | `import_bundled(host_rows, user_rows)` | `{ imported, known, expired, unreadable }`: numbers, and a list of reasons; rows as in [`super::bundled`], those of users by username |
//! | `bundled_rows()` | the same rows, of all invites that are good now; how many invites that is, and of how many there is no token |
//! | `check()` | list of `{ level, text }`: what there is to say of the storage |
//! | `get(token, username)` | validated invite table, a list of the usernames of the accounts that it depends on, if any, and whether it resets a password; `username` nil: for an account, else as contact of that user |
//! | `info(kinds, token)` | invite table |
//! | `look(token)` | `{ depends_on, is_reset, purpose, bound, state }` of an invite in whatever state: what it is redeemed for, the username it is bound to, and where it stands |
//! | `pasted(text)` | the token of an invite of this host in a text that a stranger entered, whatever became of it; or `nil, condition, text, host`: `"token-invalid"` if none is known (`host` is where the web link in the text leads, if there is one), `"other-host"` if it is a link to an invite of that host, `"no-token"` |
//! | `confirm(token, states)` | `true`; `states` are those of the accounts that it depends on, by username |
//! | `claims_on(token)` | list of `{ purpose, invitee, made_at, life }`: the attempts under way with an invite; `life` says of their servers `"alive"`, `"over"` or `"unknown"` |
//! | `release_claims(token)` | how many there were, which are released now |
//! | `check_name(username)` | `true` if it may be registered without any invite |
//! | `revoke(token, why, by)` | summary, or `false` if there was nothing to revoke |
//! | `retire_depending(username)`, `retire_resets(username)` | list of summaries, and whether there are more that are not good any more either and are ended by `end_more`; where the store fails, `review` does it |
//! | `end_more()` | list of summaries; list of `{ username, scope, ended }` of what is over now, `scope` being `"made"`, `"depending"` or `"reset"`; and whether there is more to do |
//! | `end_expired()` | list of summaries |
//! | `forget_tokens(after)` | what to pass as `after` to go on, or `nil` if the store has no token left that it is not to keep |
//! | `pending_invites(kinds, after)` | list of invite tables, and what to pass as `after` for more, if there is more |
//!
//! How invites are redeemed is in [`super::attempts`], what else an operator does in [`super::operator`] and [`super::command`]. Where a `token` is asked for, what its `resolve` returns does too.
//!
//! `kinds` is `"account"` for what allows to register an account, `"all"` for everything. `ttl` is in seconds, `math.huge` for never. The state of an account is `"active"`, `"disabled"`, `"missing"` (that
//! is proved), `"not-found"` or `"unknown"`, a purpose `"account"` or `"contact"`. Tables are fresh and plain; summaries hold no token. Times are
//! whole unix seconds.

use std::borrow::Cow;
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use mlua::{
	BString, Function, Lua, LuaString, Result as LuaResult, Table, UserData, UserDataMethods, UserDataRef,
	Value,
};

use super::bundled::Bundled;
use super::table::{Seconds, describe, limit, summary, take_over, validated, whole_seconds};
use super::value::shown;
use super::{Failure, Outcome, attempts, command, is_truthy, operator, outcome, policy, set_some};
use crate::clock::{self, Timestamp};
use crate::ending::Ending;
use crate::error::InviteError;
use crate::invite::{Invite, Kind, Type, local_user};
use crate::invites::{Ended, Invites, Request};
use crate::pasted::{self, Pasted};
use crate::policy::{Allowance, Policy};
use crate::redemption::{Account, Claim, Life, Purpose};
use crate::store::{Bundled as Tokens, Record};
use crate::token::{Digest, Token};

/// Asks for invites of every kind, not for those alone that allow to register an account.
const ALL_KINDS: &str = "all";

/// Invites in one page of a listing, and in one batch of work: about a millisecond of it.
const PAGE: u32 = 500;

/// Invites that are ended in one transaction.
const BATCH: u32 = 50;

pub(super) struct Handle {
	pub(super) invites: Invites,
	pub(super) policy: Policy,
	pub(super) bundled: Bundled,
	/// What a test adds to the clock.
	ahead: i64,
	last_read: RefCell<Option<Read>>,
}

/// What the bundled module's store held when it was last read.
struct Read {
	at: Timestamp,
	tokens: Rc<Tokens>,
}

/// A prepared invite as it was before handlers saw it.
pub(super) struct Draft {
	invite: Invite,
	token: Token,
	/// What limits its inviter.
	allowance: Option<Allowance>,
}

/// An invite that an operator named. Only [`super::operator`] and [`super::command`] make one: a public id by itself is no
/// token anywhere.
pub(super) struct Key(Digest);

impl Key {
	pub(super) const fn new(digest: Digest) -> Self {
		Self(digest)
	}
}

/// Invites that are imported in one transaction: less than 20 ms in which others cannot write.
pub(super) const IMPORT_BATCH: usize = 200;

/// Names of restored fields, the invites that were superseded, and the invite.
type Saved = (Vec<&'static str>, Vec<Table>, Option<Table>);

/// An invite table, the usernames of the accounts that it depends on, if any, and whether it resets a password.
type Validated = (Table, Option<Vec<String>>, bool);

/// Summaries, what is over, and whether there is more to do.
type EndedMore = (Vec<Table>, Vec<Table>, bool);

/// Invite tables, and what to pass as `after` for more, if there is more.
type Page = (Vec<Table>, Option<BString>);

impl UserData for Draft {}

impl Draft {
	/// Of an invite that nobody's limits apply to.
	pub(super) const fn unlimited(invite: Invite, token: Token) -> Self {
		Self { invite, token, allowance: None }
	}

	fn without_token(&self, text: &str) -> String {
		text.replace(self.token.reveal(), "(the token)")
	}
}

impl UserData for Key {}

impl Handle {
	/// The clock of its server is `ahead` by so many seconds.
	pub(super) const fn new(invites: Invites, policy: Policy, bundled: Bundled, ahead: i64) -> Self {
		Self { invites, policy, bundled, ahead, last_read: RefCell::new(None) }
	}

	pub(super) fn now(&self) -> Timestamp {
		clock::now().saturating_add(self.ahead)
	}

	fn prepare(&self, lua: &Lua, request: &Table) -> LuaResult<Result<(Table, Draft), Failure>> {
		let word: String = request.get("type")?;
		let Some(invite_type) = Type::from_stored(&word) else {
			return Ok(Err(Failure::Misuse(format!("{word:?} is no type of invite"))));
		};
		let allowance = match request.get::<Option<Table>>("inviter")? {
			Some(inviter) => self.policy.allowance(policy::inviter(&inviter)?),
			None => None,
		};
		let (chosen, usual): (Value, Value) = (request.get("ttl")?, request.get("default_ttl")?);
		let ttl = match ttl(lua, if chosen.is_nil() { &usual } else { &chosen })? {
			Ok(usual) if chosen.is_nil() => {
				allowance.as_ref().map_or(usual, |allowance| allowance.default_ttl(usual))
			}
			Ok(chosen) => chosen,
			Err(failure) => return Ok(Err(failure)),
		};
		let account: Option<String> = request.get("account")?;
		let account = match account.as_deref().map(account_state).transpose() {
			Ok(account) => account,
			Err(failure) => return Ok(Err(failure)),
		};
		let max_uses = match &request.get("max_uses")? {
			_ if is_truthy(&request.get("reusable")?) => None,
			Value::Nil => Some(1),
			max_uses => match limit(max_uses) {
				Ok(limit) => limit,
				Err(failure) => return Ok(Err(failure)),
			},
		};
		let request = Request {
			invite_type,
			username: request.get("username")?,
			is_reset: is_truthy(&request.get("is_reset")?),
			account,
			allow_registration: is_truthy(&request.get("allow_registration")?),
			ttl,
			max_uses,
		};
		match self.invites.prepare(request, self.now()) {
			Ok((invite, token)) => {
				let table = describe(lua, &invite, Some(&token), &self.bundled)?;
				Ok(Ok((table, Draft { invite, token, allowance })))
			}
			Err(error) => Ok(Err(error.into())),
		}
	}

	fn save(
		&self,
		lua: &Lua,
		table: &Table,
		draft: &Draft,
		is_heard: bool,
	) -> LuaResult<Result<Saved, Failure>> {
		let (invite, restored) = match self.complete(table, draft)? {
			Ok(complete) => complete,
			Err(failure) => return Ok(Err(failure)),
		};
		let saved = match &draft.allowance {
			Some(allowance) => self.invites.save_within(&invite, allowance),
			None => self.invites.save(&invite),
		};
		match self.summaries(lua, saved)? {
			Ok(superseded) => {
				let heard = is_heard.then(|| summary(lua, &invite, &self.bundled.null)).transpose()?;
				Ok(Ok((restored, superseded, heard)))
			}
			Err(failure) => Ok(Err(failure)),
		}
	}

	fn may_save(&self, table: &Table, draft: &Draft) -> LuaResult<Result<bool, Failure>> {
		let Some(allowance) = &draft.allowance else { return Ok(Ok(true)) };
		Ok(match self.complete(table, draft)? {
			Ok((invite, _)) => self
				.invites
				.check_limits(&invite, allowance, self.now())
				.map(|()| true)
				.map_err(Failure::from),
			Err(failure) => Err(failure),
		})
	}

	/// The invite as its caller and handlers have left it, and the names of what they must not change and did.
	pub(super) fn complete(
		&self,
		table: &Table,
		draft: &Draft,
	) -> LuaResult<Result<(Invite, Vec<&'static str>), Failure>> {
		let mut invite = draft.invite.clone();
		Ok(match take_over(&mut invite, &draft.token, table, &self.bundled.null)? {
			Ok(restored) => Ok((invite, restored)),
			// The name of a field may be, or hold, the token.
			Err(Failure::Misuse(text)) => Err(Failure::Misuse(draft.without_token(&text))),
			Err(Failure::Invite(InviteError::TooLarge(path))) => {
				Err(InviteError::TooLarge(draft.without_token(&path)).into())
			}
			Err(Failure::Invite(InviteError::TooDeep(path))) => {
				Err(InviteError::TooDeep(draft.without_token(&path)).into())
			}
			Err(Failure::BadValue(text)) => {
				Err(Failure::BadValue(text.replace(draft.token.reveal(), "(the token)")))
			}
			Err(failure) => Err(failure),
		})
	}

	fn limited(&self, request: &Table) -> LuaResult<Option<String>> {
		if self.policy.roles.is_empty() {
			return Ok(None);
		}
		let source: Value = request.get("source")?;
		let source = source.as_string().and_then(|source| source.to_str().ok());
		let made_by = source.and_then(|source| local_user(&source, self.invites.host()).map(Cow::into_owned));
		if made_by.is_none() && request.get::<String>("type")? == Type::Roster.as_str() {
			return request.get("username");
		}
		Ok(made_by)
	}

	fn import_bundled(
		&self,
		lua: &Lua,
		host_rows: Option<&Table>,
		user_rows: &Table,
	) -> LuaResult<Result<Table, Failure>> {
		let now = self.now();
		let found = self.bundled.read(self.invites.host(), host_rows, user_rows, now)?;
		let tokens = tokens(&found.invites);
		let (expired, good): (Vec<Invite>, Vec<Invite>) =
			found.invites.into_iter().partition(|invite| invite.is_expired(now));
		let records: Vec<Record> = good.into_iter().map(Record::from).collect();
		let mut imported = 0;
		for batch in records.chunks(IMPORT_BATCH) {
			match self.invites.import(batch) {
				Ok(new) => imported += new,
				Err(error) => return Ok(Err(error.into())),
			}
		}
		self.last_read.replace(Some(Read { at: now, tokens: Rc::new(tokens) }));
		let counts = lua.create_table()?;
		counts.raw_set("imported", imported)?;
		counts.raw_set("known", records.len() - imported)?;
		counts.raw_set("expired", expired.len())?;
		counts.raw_set("unreadable", found.unreadable)?;
		Ok(Ok(counts))
	}

	/// The tokens that lie in the bundled module's store, for a purge of what ended before `before`. What was put there
	/// since it was read was still good then: only such is exported to it. So it has to be read again only if that was
	/// earlier.
	pub(super) fn bundled_tokens(
		&self,
		before: Timestamp,
		now: Timestamp,
		read: &Function,
	) -> LuaResult<Rc<Tokens>> {
		match self.known_tokens(before, now) {
			Some(tokens) => Ok(tokens),
			None => self.read_tokens(read.call(())?, now),
		}
	}

	/// Those that were read last, if nothing has come there since that matters.
	pub(super) fn known_tokens(&self, before: Timestamp, now: Timestamp) -> Option<Rc<Tokens>> {
		let last_read = self.last_read.borrow();
		last_read.as_ref().filter(|last| last.is_good_for(before, now)).map(|last| Rc::clone(&last.tokens))
	}

	/// Those of the rows of the host and of its users; nobody can tell where they are no tables.
	pub(super) fn read_tokens(&self, rows: (Value, Value), now: Timestamp) -> LuaResult<Rc<Tokens>> {
		let tokens = match rows {
			(Value::Table(host_rows), Value::Table(user_rows)) => {
				let found = self.bundled.read(self.invites.host(), Some(&host_rows), &user_rows, now)?;
				tokens(&found.invites)
			}
			_ => Tokens::Unknown,
		};
		let tokens = Rc::new(tokens);
		self.last_read.replace(Some(Read { at: now, tokens: Rc::clone(&tokens) }));
		Ok(tokens)
	}

	fn bundled_rows(&self, lua: &Lua) -> LuaResult<Result<(Table, Table, usize, usize), Failure>> {
		let (host_rows, user_rows) = (lua.create_table()?, lua.create_table()?);
		let (mut count, mut unknown, mut after) = (0, 0, None);
		loop {
			let (page, next) = match self.invites.pending(after.as_ref(), PAGE, self.now()) {
				Ok(page) => page,
				Err(error) => return Ok(Err(error.into())),
			};
			for invite in &page {
				let Some((token, rows)) = self.bundled.rows(lua, invite)? else {
					unknown += 1;
					continue;
				};
				count += 1;
				if let Some(row) = rows.host {
					host_rows.raw_set(token.reveal(), row)?;
				}
				if let Some((user, row)) = rows.user {
					let of_user = match user_rows.raw_get::<Option<Table>>(user.as_str())? {
						Some(of_user) => of_user,
						None => lua.create_table()?,
					};
					of_user.raw_set(token.reveal(), row)?;
					user_rows.raw_set(user, of_user)?;
				}
			}
			after = next;
			if after.is_none() {
				return Ok(Ok((host_rows, user_rows, count, unknown)));
			}
		}
	}

	fn get(&self, lua: &Lua, token: &Value, username: Option<&str>) -> LuaResult<Result<Validated, Failure>> {
		let purpose = if username.is_some() { Purpose::Contact } else { Purpose::Account };
		match self.found(token, purpose) {
			Ok((invite, _)) if username.is_some() && invite.username.as_deref() != username => {
				Ok(Err(InviteError::TokenInvalid.into()))
			}
			Ok((invite, token)) => {
				let table = validated(lua, &invite, &token, purpose, &self.bundled)?;
				Ok(Ok((table, depends_on(&invite), invite.kind() == Kind::Reset)))
			}
			Err(error) => Ok(Err(error.into())),
		}
	}

	fn info(&self, lua: &Lua, kinds: &str, token: &Value) -> LuaResult<Result<Table, Failure>> {
		let purposes: &[Purpose] =
			if kinds == ALL_KINDS { &[Purpose::Account, Purpose::Contact] } else { &[Purpose::Account] };
		let mut found = Err(InviteError::TokenInvalid);
		for purpose in purposes {
			found = self.found(token, *purpose).map(|(invite, token)| (invite, Some(token)));
			if matches!(found, Err(InviteError::TokenInvalid)) {
				found = self.found_by_id(token, *purpose).map(|invite| (invite, None));
			}
			if !matches!(found, Err(InviteError::TokenInvalid)) {
				break;
			}
		}
		match found {
			Ok((invite, token)) => describe(lua, &invite, token.as_ref(), &self.bundled).map(Ok),
			Err(error) => Ok(Err(error.into())),
		}
	}

	fn found_by_id(&self, id: &Value, purpose: Purpose) -> Result<Invite, InviteError> {
		self.invites.get_by_id(&presented(id)?.as_bytes(), purpose, self.now())
	}

	fn found(&self, token: &Value, purpose: Purpose) -> Result<(Invite, Token), InviteError> {
		let token = presented(token)?;
		let invite = self.invites.get(&token.as_bytes(), purpose, self.now())?;
		// A token that was found is one that was made, and those are text.
		let token = token.to_str().map_err(|_| InviteError::TokenInvalid)?.to_owned();
		Ok((invite, Token::from_stored(token)))
	}

	fn look(&self, lua: &Lua, token: &Value) -> LuaResult<Result<Table, Failure>> {
		match digest(token).and_then(|digest| self.invites.find(&digest)) {
			Ok(invite) => {
				let table = lua.create_table()?;
				set_some(&table, "depends_on", depends_on(&invite))?;
				table.raw_set("is_reset", invite.kind() == Kind::Reset)?;
				let purpose =
					if invite.serves(Purpose::Account) { Purpose::Account } else { Purpose::Contact };
				table.raw_set("purpose", purpose.as_str())?;
				let bound = invite.username.as_deref().filter(|_| invite.invite_type == Type::Register);
				set_some(&table, "bound", bound)?;
				table.raw_set("state", invite.state(clock::now()).as_str())?;
				Ok(Ok(table))
			}
			Err(error) => Ok(Err(error.into())),
		}
	}

	fn pasted(&self, text: &str) -> Result<String, InviteError> {
		let host = self.invites.host();
		match pasted::read(text, host) {
			Pasted::Nothing => Err(InviteError::NoToken),
			Pasted::OtherHost(other) => Err(InviteError::OtherHost(other)),
			Pasted::Tokens(tokens, link_host) => {
				for token in tokens {
					match self.invites.find(&Digest::of(token.as_bytes())) {
						Ok(_) => return Ok(token),
						Err(InviteError::TokenInvalid) => (),
						Err(error) => return Err(error),
					}
				}
				Err(InviteError::TokenUnknown(link_host))
			}
		}
	}

	fn confirm(&self, token: &Value, states: HashMap<String, String>) -> Result<bool, Failure> {
		self.invites.confirm(&digest(token)?, &accounts(states)?, self.now())?;
		Ok(true)
	}

	fn claims_on(&self, lua: &Lua, token: &Value) -> LuaResult<Result<Vec<Table>, Failure>> {
		let found = match digest(token).and_then(|digest| self.invites.claims_on(&digest)) {
			Ok(found) => found,
			Err(error) => return Ok(Err(error.into())),
		};
		let table = |(claim, life): &(Claim, Life)| {
			let table = lua.create_table()?;
			table.raw_set("purpose", claim.purpose.as_str())?;
			set_some(&table, "invitee", claim.invitee.as_deref())?;
			set_some(&table, "made_at", claim.made_at)?;
			let life = match life {
				Life::Alive => "alive",
				Life::Over => "over",
				Life::Unknown { .. } => "unknown",
			};
			table.raw_set("life", life)?;
			Ok(table)
		};
		Ok(Ok(found.iter().map(table).collect::<LuaResult<_>>()?))
	}

	fn revoke(
		&self,
		lua: &Lua,
		token: &Value,
		why: Option<&str>,
		by: Option<&str>,
	) -> LuaResult<Result<Value, Failure>> {
		let revoked = match digest(token) {
			Err(InviteError::TokenInvalid) => Ok(None),
			Err(error) => Err(error),
			Ok(digest) => {
				self.invites.revoke(&digest, why, by, self.now()).and_then(|revoked| match revoked {
					None => self.revoke_by_id(token, why, by),
					revoked => Ok(revoked),
				})
			}
		};
		Ok(match revoked {
			Ok(Some(invite)) => Ok(Value::Table(summary(lua, &invite, &self.bundled.null)?)),
			Ok(None) => Ok(Value::Boolean(false)),
			Err(error) => Err(error.into()),
		})
	}

	fn revoke_by_id(
		&self,
		id: &Value,
		why: Option<&str>,
		by: Option<&str>,
	) -> Result<Option<Invite>, InviteError> {
		let Value::String(id) = id else { return Ok(None) };
		match self.invites.identify(&id.as_bytes()) {
			Ok(digest) => self.invites.revoke(&digest, why, by, self.now()),
			Err(InviteError::TokenInvalid) => Ok(None),
			Err(error) => Err(error),
		}
	}

	fn forget_tokens(&self, after: Option<&BString>) -> Result<Option<BString>, Failure> {
		let after = after.map(page_end).transpose()?;
		let next = self.invites.forget_tokens(after.as_ref(), BATCH)?;
		Ok(next.map(|next| BString::from(next.as_bytes().as_slice())))
	}

	pub(super) fn summaries(
		&self,
		lua: &Lua,
		invites: Result<Vec<Invite>, InviteError>,
	) -> LuaResult<Result<Vec<Table>, Failure>> {
		match invites {
			Ok(invites) => invites
				.iter()
				.map(|invite| summary(lua, invite, &self.bundled.null))
				.collect::<LuaResult<Vec<_>>>()
				.map(Ok),
			Err(error) => Ok(Err(error.into())),
		}
	}

	pub(super) fn ended(
		&self,
		lua: &Lua,
		ended: Result<Ended, InviteError>,
	) -> LuaResult<Result<(Vec<Table>, bool), Failure>> {
		match ended {
			Ok(ended) => {
				let is_more = !ended.under_way.is_empty();
				Ok(self.summaries(lua, Ok(ended.invites))?.map(|summaries| (summaries, is_more)))
			}
			Err(error) => Ok(Err(error.into())),
		}
	}

	fn end_more(&self, lua: &Lua) -> LuaResult<Result<EndedMore, Failure>> {
		let more = match self.invites.end_more(clock::now()) {
			Ok(more) => more,
			Err(error) => return Ok(Err(error.into())),
		};
		let describe = |ending: Ending| {
			let table = lua.create_table()?;
			table.raw_set("username", ending.username)?;
			table.raw_set("scope", ending.scope.as_str())?;
			table.raw_set("ended", ending.ended)?;
			Ok(table)
		};
		let over = more.over.into_iter().map(describe).collect::<LuaResult<Vec<Table>>>()?;
		Ok(self.summaries(lua, Ok(more.invites))?.map(|summaries| (summaries, over, more.is_more)))
	}

	fn pending_invites(
		&self,
		lua: &Lua,
		kinds: &str,
		after: Option<&BString>,
	) -> LuaResult<Result<Page, Failure>> {
		let after = match after.map(page_end).transpose() {
			Ok(after) => after,
			Err(failure) => return Ok(Err(failure)),
		};
		match self.invites.pending(after.as_ref(), PAGE, self.now()) {
			Ok((page, next)) => {
				let tables = page
					.iter()
					.filter(|invite| kinds == ALL_KINDS || invite.serves(Purpose::Account))
					.map(|invite| describe(lua, invite, invite.token.as_ref(), &self.bundled))
					.collect::<LuaResult<Vec<_>>>()?;
				Ok(Ok((tables, next.map(|next| BString::from(next.as_bytes().as_slice())))))
			}
			Err(error) => Ok(Err(error.into())),
		}
	}
}

impl Read {
	/// Seconds between two attempts to read a store that could not be read.
	const PAUSE: i64 = 3600;

	fn is_good_for(&self, before: Timestamp, now: Timestamp) -> bool {
		match *self.tokens {
			Tokens::Known(_) => self.at >= before,
			Tokens::Unknown => (self.at..self.at.saturating_add(Self::PAUSE)).contains(&now),
		}
	}
}

/// Those of invites that were read from the bundled module's store.
fn tokens(invites: &[Invite]) -> Tokens {
	Tokens::Known(invites.iter().map(|invite| (invite.digest, invite.expires)).collect())
}

/// What was given as a token: nothing is an error of its own, anything but a string is no token of ours.
fn presented(token: &Value) -> Result<&LuaString, InviteError> {
	match token {
		Value::Nil | Value::Boolean(false) => Err(InviteError::NoToken),
		Value::String(token) => Ok(token),
		_ => Err(InviteError::TokenInvalid),
	}
}

pub(super) fn digest(token: &Value) -> Result<Digest, InviteError> {
	if let Value::UserData(key) = token
		&& let Ok(key) = key.borrow::<Key>()
	{
		return Ok(key.0);
	}
	Ok(Digest::of(&presented(token)?.as_bytes()))
}

/// Where a page ended, as it was told to the caller.
fn page_end(bytes: &BString) -> Result<Digest, Failure> {
	<[u8; 32]>::try_from(bytes.as_slice())
		.map(Digest::from_bytes)
		.map_err(|_| Failure::Misuse("this is not where a page ends".to_owned()))
}

fn depends_on(invite: &Invite) -> Option<Vec<String>> {
	Some(invite.depends_on()).filter(|names| !names.is_empty())
}

/// The states of accounts by their usernames.
pub(super) fn accounts(states: HashMap<String, String>) -> Result<Vec<(String, Account)>, Failure> {
	states.into_iter().map(|(username, state)| Ok((username, account_state(&state)?))).collect()
}

pub(super) fn account_state(word: &str) -> Result<Account, Failure> {
	Account::from_word(word).ok_or_else(|| Failure::Misuse(format!("{word:?} is no state of an account")))
}

/// Reads a time to live: whole seconds, rounded down, or none for never. A text that is a number counts as one, as it did
/// in the bundled module.
pub(super) fn ttl(lua: &Lua, value: &Value) -> LuaResult<Result<Option<i64>, Failure>> {
	let number = match value {
		Value::String(_) => lua.coerce_number(value.clone())?.map_or(Value::Nil, Value::Number),
		_ => value.clone(),
	};
	Ok(match whole_seconds(&number) {
		Some(Seconds::Finite(seconds)) if !clock::is_ttl(seconds, clock::now()) => Err(refuse_ttl(value)?),
		Some(seconds) => Ok(seconds.finite()),
		None => Err(refuse_ttl(value)?),
	})
}

fn refuse_ttl(value: &Value) -> LuaResult<Failure> {
	// A table or a function is named by its type alone.
	let value = match value {
		// It may hold anything, and stands in one line of the log.
		Value::String(text) => shown(&text.as_bytes()),
		Value::Integer(_) | Value::Number(_) | Value::Boolean(_) => value.to_string()?,
		other => format!("a {}", other.type_name()),
	};
	Ok(Failure::BadValue(clock::refuse_ttl(&value)))
}

impl UserData for Handle {
	fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
		attempts::add_methods(methods);
		operator::add_methods(methods);
		command::add_methods(methods);
		methods.add_method("now", |_, this, ()| Ok(this.now()));
		methods.add_method("counted_period", |_, this, ()| Ok(this.policy.counted_period()));
		methods.add_method("limited", |_, this, request: Table| this.limited(&request));
		methods.add_method("may_save", |_, this, (table, draft): (Table, UserDataRef<Draft>)| {
			outcome(this.may_save(&table, &draft))
		});
		methods.add_method("prepare", |lua, this, request: Table| outcome(this.prepare(lua, &request)));
		methods.add_method(
			"save",
			|lua, this, (table, draft, is_heard): (Table, UserDataRef<Draft>, bool)| {
				outcome(this.save(lua, &table, &draft, is_heard))
			},
		);
		methods.add_method("import_bundled", |lua, this, (host_rows, user_rows): (Option<Table>, Table)| {
			outcome(this.import_bundled(lua, host_rows.as_ref(), &user_rows))
		});
		methods.add_method("check", |lua, this, ()| command::findings(lua, &this.invites.check(this.now())));
		methods.add_method("bundled_rows", |lua, this, ()| outcome(this.bundled_rows(lua)));
		methods.add_method("get", |lua, this, (token, username): (Value, Option<String>)| {
			outcome(this.get(lua, &token, username.as_deref()))
		});
		methods.add_method("info", |lua, this, (kinds, token): (String, Value)| {
			outcome(this.info(lua, &kinds, &token))
		});
		methods.add_method("look", |lua, this, token: Value| outcome(this.look(lua, &token)));
		methods.add_method("pasted", |_, this, text: LuaString| {
			Ok(Outcome(this.pasted(&text.to_string_lossy()).map_err(Failure::from)))
		});
		methods.add_method("confirm", |_, this, (token, states): (Value, HashMap<String, String>)| {
			Ok(Outcome(this.confirm(&token, states)))
		});
		methods.add_method("claims_on", |lua, this, token: Value| outcome(this.claims_on(lua, &token)));
		methods.add_method("release_claims", |_, this, token: Value| {
			let released = digest(&token).and_then(|digest| this.invites.release_claims(&digest));
			Ok(Outcome(released.map_err(Failure::from)))
		});
		methods.add_method("check_name", |_, this, username: String| {
			let checked = this.invites.check_name(&username, this.now());
			Ok(Outcome(checked.map(|()| true).map_err(Failure::from)))
		});
		methods.add_method(
			"revoke",
			|lua, this, (token, why, by): (Value, Option<LuaString>, Option<LuaString>)| {
				let (why, by) = (why.map(|why| why.to_string_lossy()), by.map(|by| by.to_string_lossy()));
				outcome(this.revoke(lua, &token, why.as_deref(), by.as_deref()))
			},
		);
		methods.add_method("retire_depending", |lua, this, username: String| {
			outcome(this.ended(lua, this.invites.retire_depending(&username, this.now())))
		});
		methods.add_method("retire_resets", |lua, this, username: String| {
			outcome(this.ended(lua, this.invites.retire_resets(&username, this.now())))
		});
		methods.add_method("end_more", |lua, this, ()| outcome(this.end_more(lua)));
		methods.add_method("end_expired", |lua, this, ()| {
			outcome(this.summaries(lua, this.invites.end_expired(BATCH, this.now())))
		});
		methods.add_method("forget_tokens", |_, this, after: Option<BString>| {
			Ok(Outcome(this.forget_tokens(after.as_ref())))
		});
		methods.add_method("pending_invites", |lua, this, (kinds, after): (String, Option<BString>)| {
			outcome(this.pending_invites(lua, &kinds, after.as_ref()))
		});
	}
}
