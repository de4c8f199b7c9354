//! The library as Lua sees it: `require "prosody_invites"`. The only code that knows mlua.
//!
//! | field | |
//! | --- | --- |
//! | `version` | string; the shim refuses a library of another version |
//! | `open(options)` | a [`handle`] for the invites of one host; opens no file yet |
//! | `command(args)`, `shell_command(line, …)`, `carry_out(run, answer)`, … | see [`command`] |
//! | `close()` | closes what is open, before a fork and at the end; it is opened again where it is needed |
//! | `parse_duration(text)` | seconds, or `nil, "misuse", text` |
//! | `create_file(path)` | `true`; the file is new, empty and for its owner alone |
//! | `count_bad_token(address)` | counts an unknown token that a stranger presented, and says whether it is one too many, see [`crate::bad_tokens`] |
//!
//! Every function returns `nil, condition, text` when it fails. The condition is one of
//! [`InviteError::condition`], `"bad-request"` for a value that a form may have brought, or `"misuse"` where the author of
//! the caller made a mistake: the shim raises that one as a string, since an error raised from here would be a userdata.

mod attempts;
mod bundled;
mod command;
#[cfg(feature = "conformance")]
mod conformance;
mod handle;
mod operator;
mod policy;
mod postgresql;
mod prosody;
mod table;
mod value;

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use mlua::{BString, IntoLua, IntoLuaMulti, Lua, LuaString, MultiValue, Result as LuaResult, Table, Value};

use crate::attempts::UnderWay;
use crate::bad_tokens::BadTokens;
use crate::clock;
use crate::error::InviteError;
use crate::invites::{AtRest, Invites};
use crate::redemption::LEASE;
use crate::store::Store;
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;
use bundled::Bundled;
use handle::Handle;
use prosody::HostStorage;
use value::Null;

/// How a call from Lua failed.
#[derive(Debug)]
enum Failure {
	Invite(InviteError),
	/// A value that a form may have brought, such as a negative ttl.
	BadValue(String),
	/// What only the author of a module can mean, such as a function among what is to be stored.
	Misuse(String),
	/// Lua itself has failed: it is raised.
	Lua(mlua::Error),
}

impl From<mlua::Error> for Failure {
	fn from(error: mlua::Error) -> Self {
		Self::Lua(error)
	}
}

impl From<InviteError> for Failure {
	fn from(error: InviteError) -> Self {
		Self::Invite(error)
	}
}

/// Returned to Lua as the value, or as `nil, condition, text`, followed by what is known of the loss if the condition is
/// `"claim-lost"`, by the limit that was reached if it is `"policy-violation"`, by the other host that a link names, and by
/// the summary of the invite if it was revoked just now.
struct Outcome<T>(Result<T, Failure>);

impl<T: IntoLuaMulti> IntoLuaMulti for Outcome<T> {
	fn into_lua_multi(self, lua: &Lua) -> LuaResult<MultiValue> {
		match self.0 {
			Ok(value) => value.into_lua_multi(lua),
			Err(Failure::Invite(error)) => {
				let more = match &error {
					InviteError::ClaimLost { id, is_taken_back } => {
						let lost = lua.create_table()?;
						lost.raw_set("id", id.as_str())?;
						lost.raw_set("is_taken_back", *is_taken_back)?;
						Value::Table(lost)
					}
					InviteError::AccountGone(Some(invite)) => {
						Value::Table(table::summary(lua, invite, &Null::new(None))?)
					}
					InviteError::TokenUnknown(host) => host.as_deref().into_lua(lua)?,
					InviteError::OtherHost(host) => host.as_str().into_lua(lua)?,
					InviteError::LimitReached(reached) => reached.limit().into_lua(lua)?,
					_ => Value::Nil,
				};
				(Value::Nil, error.condition(), error.to_string(), more).into_lua_multi(lua)
			}
			Err(Failure::BadValue(text)) => (Value::Nil, "bad-request", text).into_lua_multi(lua),
			Err(Failure::Misuse(text)) => (Value::Nil, "misuse", text).into_lua_multi(lua),
			Err(Failure::Lua(error)) => Err(error),
		}
	}
}

/// Runs what may fail in either way: the outer error, Lua itself failing, is raised.
fn outcome<T>(result: LuaResult<Result<T, Failure>>) -> LuaResult<Outcome<T>> {
	result.map(Outcome)
}

/// `open { host, storage, path, lock_wait_ms, postgresql, deadline, bundled, token_at_rest, limits, allows_unknown_age, null,
/// nodeprep, registers_in_band }`: `storage` is `"sqlite"` (with `path`, the database file, and `lock_wait_ms`, how long to wait for another
/// process), `"postgresql"` (with `postgresql`, a URL or nil, and `deadline`, the seconds that a call may take), `"prosody"`
/// (with `bundled`, the functions of [`HostStorage`], and `try_out`, whether to see if they can be used) or `"memory"`;
/// `token_at_rest` is `"plain"` or `"digest"`; `limits` is the option `invite_limits` (see [`policy`]), and
/// `allows_unknown_age` whether an account of unknown age counts as old enough; `null` is `util.json.null`, `nodeprep` that of
/// `util.encodings`. For tests alone, `lease` is another lease than that of [`crate::redemption`], and `clock_ahead` the
/// seconds by which the clock of this server is wrong. `registers_in_band(host)` says whether anybody can register in-band there, which links have to tell.
fn open(lua: &Lua, options: &Table) -> LuaResult<Result<Handle, Failure>> {
	let host: String = options.get("host")?;
	let storage: String = options.get("storage")?;
	let bundled = Bundled::new(options)?;
	let store: Arc<dyn Store> = match storage.as_str() {
		"sqlite" => {
			let path: BString = options.get("path")?;
			let lock_wait: u64 = options.get("lock_wait_ms")?;
			SqliteStore::shared(Path::new(OsStr::from_bytes(&path)), Duration::from_millis(lock_wait))
		}
		"postgresql" => match postgresql::open(options)? {
			Ok(store) => store,
			Err(failure) => return Ok(Err(failure)),
		},
		"prosody" => {
			let storage = HostStorage::new(lua, &options.get("bundled")?, bundled.clone())?;
			if options.get("try_out")?
				&& let Err(error) = storage.try_out(&host)
			{
				return Ok(Err(InviteError::from(error).into()));
			}
			#[expect(
				clippy::arc_with_non_send_sync,
				reason = "it holds Lua functions, and stays in Lua's thread"
			)]
			Arc::new(prosody::open(&host, storage))
		}
		"memory" => {
			static STORE: OnceLock<Arc<MemoryStore>> = OnceLock::new();
			Arc::clone(STORE.get_or_init(Arc::default)) as Arc<dyn Store>
		}
		other => {
			return Ok(Err(Failure::Misuse(format!(
				"invite_storage = {other:?} is unknown: use \"sqlite\", \"postgresql\", \"prosody\", or \"memory\" for tests"
			))));
		}
	};
	let at_rest = match options.get::<Option<String>>("token_at_rest")?.as_deref() {
		None | Some("plain") => AtRest::Plain,
		Some("digest") if store.carries().digests => AtRest::Digest,
		Some("digest") => {
			return Ok(Err(Failure::Misuse(format!(
				"invite_token_at_rest = \"digest\" does not go with invite_storage = {storage:?}, which knows invites by their tokens alone: change one of the two"
			))));
		}
		Some(other) => {
			return Ok(Err(Failure::Misuse(format!(
				"invite_token_at_rest = {other:?} is unknown: use \"plain\" or \"digest\""
			))));
		}
	};
	let policy = match policy::read(&options.get("limits")?, &options.get("allows_unknown_age")?) {
		Ok(policy) => policy,
		Err(problem) => return Ok(Err(Failure::Misuse(problem))),
	};
	if policy.counted_period() > 0 && !store.carries().history {
		return Ok(Err(Failure::Misuse(format!(
			"invite_limits with max_created counts invites that have ended, and invite_storage = {storage:?} keeps none: leave max_created out"
		))));
	}
	let lease: Option<f64> = options.get("lease")?;
	let lease = lease.map_or(Ok(Duration::from_secs(LEASE.unsigned_abs())), Duration::try_from_secs_f64);
	let Ok(lease) = lease else {
		return Ok(Err(Failure::Misuse("a lease is a number of seconds".to_owned())));
	};
	let ahead: Option<i64> = options.get("clock_ahead")?;
	let under_way = under_way(&host, lease);
	let invites = Invites::new(host, store).keeping(at_rest).going_on_with(under_way);
	Ok(Ok(Handle::new(invites, policy, bundled, ahead.unwrap_or(0))))
}

/// What is under way outlives a reload of the module.
fn under_way(host: &str, lease: Duration) -> Arc<UnderWay> {
	static HOSTS: LazyLock<Mutex<HashMap<String, Arc<UnderWay>>>> = LazyLock::new(Mutex::default);
	let mut hosts = HOSTS.lock().unwrap_or_else(PoisonError::into_inner);
	let of_host = hosts.entry(host.to_owned()).or_insert_with(|| Arc::new(UnderWay::new(lease)));
	of_host.set_lease(lease);
	Arc::clone(of_host)
}

fn parse_duration(text: &LuaString) -> Result<i64, Failure> {
	crate::duration::parse(&text.to_string_lossy())
		.map(i64::from)
		.map_err(|error| Failure::Misuse(error.to_string()))
}

/// Called by `require "prosody_invites"`. Memory is not checked for: Prosody's Lua has no limit of it, and with checks every
/// string and table would be made in a protected call, which takes longer than all else about a get.
#[mlua::lua_module(skip_memory_check)]
fn prosody_invites(lua: &Lua) -> LuaResult<Table> {
	let library = lua.create_table()?;
	library.set("version", env!("CARGO_PKG_VERSION"))?;
	library.set("open", lua.create_function(|lua, options: Table| outcome(open(lua, &options)))?)?;
	command::add_to(lua, &library)?;
	library.set(
		"parse_duration",
		lua.create_function(|_, text: LuaString| Ok(Outcome(parse_duration(&text))))?,
	)?;
	library.set(
		"close",
		lua.create_function(|_, ()| {
			SqliteStore::close_shared();
			postgresql::close();
			Ok(())
		})?,
	)?;
	#[cfg(feature = "conformance")]
	conformance::add_to(lua, &library)?;
	let bad_tokens = RefCell::new(BadTokens::default());
	library.set(
		"count_bad_token",
		lua.create_function(move |_, address: String| {
			Ok(bad_tokens.borrow_mut().count(&address, clock::monotonic()))
		})?,
	)?;
	Ok(library)
}

/// Something that Lua counts as true.
fn is_truthy(value: &Value) -> bool {
	!matches!(value, Value::Nil | Value::Boolean(false))
}

/// Sets a field unless it is `nil`, without asking metatables.
fn set_some(table: &Table, key: &str, value: Option<impl IntoLua>) -> LuaResult<()> {
	value.map_or(Ok(()), |value| table.raw_set(key, value))
}
