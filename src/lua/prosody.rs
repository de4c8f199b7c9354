//! Invites in the host's own storage, where the bundled module has them: `invite_storage = "prosody"`.
//!
//! The rows are those of [`bundled`](super::bundled), so that module can take over at any time. They carry neither
//! history nor pause nor a limit of several uses: an invite that is used up or revoked is deleted, both rows of it. Of an
//! invite that is for a contact alone they carry its end and nothing else, whatever was given with it.
//!
//! The storage of a host knows no transactions, so this is a [`MemoryStore`] that writes through: it reads the rows of a
//! host once, when it needs them first, and answers from memory; what a rule costs (is a name reserved, which older invite is
//! superseded) is a walk over the host's invites in memory. Nobody else may write meanwhile, which is why `prosodyctl`
//! asks a running server to do its work. How long a write takes is the driver's affair; `internal` rewrites the whole
//! file. Claims are in memory alone and outlive a reload of the module, not the server: what was under way when it died is
//! free again.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex};

use mlua::{
	FromLuaMulti, Function, IntoLuaMulti, Lua, MultiValue, Result as LuaResult, Table, Value, WeakLua,
};

use super::bundled::Bundled;
use super::value::read;
use crate::check::Finding;
use crate::clock;
use crate::invite::Invite;
use crate::store::memory::{Backing, Change, Content, MemoryStore};
use crate::store::{Carries, StoreError};
use crate::value::Value as Stored;

/// What is in memory of all hosts. With the library, not with a handle: claims outlive a reload.
static CONTENT: LazyLock<Arc<Mutex<Content>>> = LazyLock::new(Arc::default);

/// A store over the storage of the hosts of this server.
pub(super) type ProsodyStore = MemoryStore<HostStorage>;

/// Where a row lies: the host, and the user if it is of one.
type Owner = (String, Option<String>);

/// Rows by token, of one owner: nothing where one is to be deleted.
type OwnedRows = BTreeMap<String, Option<Value>>;

/// The store `invite_token` of every host.
pub(super) struct HostStorage {
	lua: WeakLua,
	/// `read(host)`: all rows of the host, and a table of the rows of each user.
	read: Function,
	/// `get(host, user, tokens)`: the rows under these tokens, by token.
	get: Function,
	/// `write(host, user, rows)`: puts rows under their tokens, and deletes those that are `false`.
	write: Function,
	/// `report(text)`: tells the operator.
	report: Function,
	bundled: Bundled,
	/// Whether the driver was seen to wait in a coroutine.
	waits: Cell<bool>,
}

/// The store of this process, about to be used for `host`.
pub(super) fn open(host: &str, storage: HostStorage) -> ProsodyStore {
	let store = MemoryStore::over(Arc::clone(&CONTENT), storage);
	// The bundled module may have had the rows since.
	store.forget(host);
	store
}

impl HostStorage {
	/// Over `functions`, a table of those named below. They return `nil, text` when they fail.
	pub(super) fn new(lua: &Lua, functions: &Table, bundled: Bundled) -> LuaResult<Self> {
		Ok(Self {
			lua: lua.weak(),
			read: functions.get("read")?,
			get: functions.get("get")?,
			write: functions.get("write")?,
			report: functions.get("report")?,
			bundled,
			waits: Cell::new(false),
		})
	}

	/// Finds out whether the driver can be used: reads, and deletes what is not there.
	///
	/// # Errors
	/// [`StoreError::Unusable`] if it waits in a coroutine; other failures may pass, and are told when they matter.
	pub(super) fn try_out(&self, host: &str) -> Result<(), StoreError> {
		let nothing = BTreeMap::from([("no token".to_owned(), None)]);
		match self
			.call::<MultiValue>(&self.read, host)
			.and_then(|_| self.put(&(host.to_owned(), None), &nothing))
		{
			Err(error @ StoreError::Unusable { .. }) => Err(error),
			_ => Ok(()),
		}
	}

	/// Calls one of the functions in a coroutine of its own: there a driver that waits is noticed instead of raising an
	/// error across the library, or of going on later.
	fn call<R: FromLuaMulti>(
		&self,
		function: &Function,
		arguments: impl IntoLuaMulti,
	) -> Result<R, StoreError> {
		if self.waits.get() {
			return Err(waiting());
		}
		let lua = self.lua.upgrade();
		let run = || -> LuaResult<Option<MultiValue>> {
			let thread = lua.create_thread(function.clone())?;
			let results = thread.resume::<MultiValue>(arguments)?;
			if !thread.is_resumable() {
				return Ok(Some(results));
			}
			// What it waits for would make it go on, and write what was refused. Only some Luas can end a coroutine.
			let _ = thread.reset(lua.create_function(|_, ()| Ok(()))?);
			Ok(None)
		};
		let Some(results) = run()? else {
			self.waits.set(true);
			return Err(waiting());
		};
		if let (Some(Value::Nil), Some(error)) = (results.front(), results.get(1))
			&& !error.is_nil()
		{
			return Err(failed(error.to_string().unwrap_or_default()));
		}
		Ok(R::from_lua_multi(results, &lua)?)
	}

	fn put(&self, (host, user): &Owner, rows: &OwnedRows) -> Result<(), StoreError> {
		let lua = self.lua.upgrade();
		let table = lua.create_table()?;
		for (token, row) in rows {
			let row = row.clone().unwrap_or(Value::Boolean(false));
			table.raw_set(token.as_str(), row)?;
		}
		self.call(&self.write, (host.as_str(), user.as_deref(), table))
	}

	/// Whether the rows can be read as they were written.
	fn is_kept(&self, (host, user): &Owner, rows: &OwnedRows) -> Result<bool, StoreError> {
		let written: Vec<_> = rows.iter().filter_map(|(token, row)| Some((token, row.as_ref()?))).collect();
		if written.is_empty() {
			return Ok(true);
		}
		let tokens: Vec<&str> = written.iter().map(|(token, _)| token.as_str()).collect();
		let found: Table = self.call(&self.get, (host.as_str(), user.as_deref(), tokens))?;
		for (token, row) in written {
			let found = read(found.get(token.as_str())?, token, &self.bundled.null)?;
			let written = read(row.clone(), token, &self.bundled.null)?;
			if !matches!((found, written), (Ok(found), Ok(written)) if is_same(&found, &written)) {
				return Ok(false);
			}
		}
		Ok(true)
	}

	/// Adds the rows of an invite: what they are, or that they are to go.
	fn collect(
		&self,
		lua: &Lua,
		invite: Option<&Invite>,
		delete: bool,
		into: &mut BTreeMap<Owner, OwnedRows>,
	) -> Result<(), StoreError> {
		let Some(invite) = invite else { return Ok(()) };
		let rows = self.bundled.rows(lua, invite)?;
		let (token, rows) =
			rows.ok_or(StoreError::Unsupported { what: "an invite whose token is not known any more" })?;
		let mut add = |user, row| {
			let row = if delete { None } else { Some(row) };
			into.entry((invite.host.clone(), user)).or_default().insert(token.reveal().to_owned(), row);
		};
		if let Some(row) = rows.host {
			add(None, Value::Table(row));
		}
		if let Some((user, row)) = rows.user {
			add(Some(user), row);
		}
		Ok(())
	}
}

impl Backing for HostStorage {
	fn carries(&self) -> Carries {
		Carries { history: false, pause: false, several_uses: false, contact_details: false, digests: false }
	}

	fn load(&self, host: &str) -> Result<Vec<Invite>, StoreError> {
		let now = clock::now();
		let (host_rows, user_rows): (Option<Table>, Table) = self.call(&self.read, host)?;
		let found = self.bundled.read(host, host_rows.as_ref(), &user_rows, now)?;
		for why in found.unreadable {
			self.report.call::<()>(format!("A row of the store invite_token is left alone: {why}"))?;
		}
		let mut invites = found.invites;
		for invite in &mut invites {
			// What has expired before was told before.
			if invite.is_expired(now) {
				invite.ended_at = invite.expires;
			}
		}
		Ok(invites)
	}

	fn write(&self, changes: &[Change]) -> Result<(), StoreError> {
		let lua = self.lua.upgrade();
		let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
		for change in changes {
			self.collect(&lua, change.after.as_ref(), true, &mut before)?;
			self.collect(&lua, change.before.as_ref(), false, &mut before)?;
			self.collect(&lua, change.before.as_ref(), true, &mut after)?;
			self.collect(&lua, change.after.as_ref(), false, &mut after)?;
		}
		let mut written = Vec::new();
		for (owner, rows) in &after {
			written.push(owner);
			let kept = self.put(owner, rows).and_then(|()| self.is_kept(owner, rows));
			if matches!(kept, Ok(true)) {
				continue;
			}
			// Both rows of an invite, or neither. If this fails too, there is nothing left to do.
			let is_restored = written
				.iter()
				.all(|owner| before.get(*owner).is_none_or(|rows| self.put(owner, rows).is_ok()));
			return match kept {
				Err(error @ StoreError::Unusable { .. }) => Err(error),
				// Some drivers cannot read the whole store any more where one row holds an infinite number.
				Err(error)
					if !(is_restored && self.call::<MultiValue>(&self.read, owner.0.as_str()).is_ok()) =>
				{
					Err(error)
				}
				_ => Err(StoreError::Unsupported { what: "something that the invite holds" }),
			};
		}
		Ok(())
	}

	fn health(&self, host: &str) -> Vec<Finding> {
		vec![match self.load(host) {
			Ok(invites) => Finding::ok(format!(
				"the storage of this host can be read and holds {} invites",
				invites.len()
			)),
			Err(error) => Finding::critical(error.to_string()),
		}]
	}
}

/// Whether Lua finds two values equal: it tells no integer from a float of the same value.
fn is_same(a: &Stored, b: &Stored) -> bool {
	match (a, b) {
		#[expect(
			clippy::cast_precision_loss,
			reason = "a driver writes numbers as text, and reads either kind"
		)]
		(Stored::Int(a), Stored::Float(b)) | (Stored::Float(b), Stored::Int(a)) => {
			Stored::Float(*a as f64) == Stored::Float(*b)
		}
		(Stored::Table(a), Stored::Table(b)) => {
			let (a, b) = (a.entries(), b.entries());
			a.len() == b.len() && a.iter().zip(b).all(|(a, b)| is_same(&a.0, &b.0) && is_same(&a.1, &b.1))
		}
		_ => a == b,
	}
}

fn waiting() -> StoreError {
	StoreError::Unusable {
		problem:
			"the storage of this host waits in a coroutine, and invites cannot: configure another driver for \
		          storage.invite_token, or use invite_storage = \"sqlite\""
				.to_owned(),
		source: None,
	}
}

fn failed(text: String) -> StoreError {
	StoreError::Unavailable { problem: "the storage of this host failed".to_owned(), source: text.into() }
}

impl From<mlua::Error> for StoreError {
	/// Without the traceback.
	fn from(error: mlua::Error) -> Self {
		failed(error.to_string().lines().next().unwrap_or_default().to_owned())
	}
}
