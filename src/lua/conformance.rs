//! For the tests alone: runs the promises of every store on the storage of a real host.
//!
//! | field | |
//! | --- | --- |
//! | `promises` | the names of the promises |
//! | `keep(name, options)` | `true`, or `nil` and how the promise was broken; `options` as for `open`, with rows that are empty |

use std::panic::{AssertUnwindSafe, catch_unwind, set_hook};
use std::sync::{Arc, Mutex};

use mlua::{Lua, Result as LuaResult, Table};

use super::bundled::Bundled;
use super::prosody::HostStorage;
use crate::invite::Invite;
use crate::store::Record;
use crate::store::conformance::{PROMISES, Uses};
use crate::store::memory::MemoryStore;

pub(super) fn add_to(lua: &Lua, library: &Table) -> LuaResult<()> {
	library.set("promises", PROMISES.iter().map(|(name, _)| *name).collect::<Vec<_>>())?;
	library
		.set("keep", lua.create_function(|lua, (name, options): (String, Table)| keep(lua, &name, &options))?)
}

fn keep(lua: &Lua, name: &str, options: &Table) -> LuaResult<(Option<bool>, Option<String>)> {
	let Some((_, promise)) = PROMISES.iter().find(|(known, _)| *known == name) else {
		return Ok((None, Some("no such promise".to_owned())));
	};
	let bundled = Bundled::new(options)?;
	let functions: Table = options.get("bundled")?;
	let storage = HostStorage::new(lua, &functions, bundled.clone())?;
	let again = HostStorage::new(lua, &functions, bundled)?;
	let [store, again] = [storage, again].map(over_storage);
	let panic = Arc::new(Mutex::new(None));
	let told = Arc::clone(&panic);
	set_hook(Box::new(move |info| {
		if let Ok(mut told) = told.lock() {
			*told = Some(info.to_string());
		}
	}));
	let keep = || {
		promise(&store);
		for host in ["example.com", "example.net", "a.example", "b.example"] {
			assert_eq!(
				kept(&again, host),
				kept(&store, host),
				"what is in the rows of {host}, and what is in memory"
			);
		}
	};
	if catch_unwind(AssertUnwindSafe(keep)).is_ok() {
		return Ok((Some(true), None));
	}
	Ok((None, panic.lock().ok().and_then(|mut told| told.take())))
}

#[expect(clippy::arc_with_non_send_sync, reason = "it holds Lua functions, and stays in Lua's thread")]
fn over_storage(storage: HostStorage) -> Arc<MemoryStore<HostStorage>> {
	Arc::new(MemoryStore::over(Arc::default(), storage))
}

/// What must be the same whoever reads the rows, and when.
fn kept(store: &dyn Uses, host: &str) -> Result<Vec<Invite>, String> {
	let records = store.records(host, None, u32::MAX).map_err(|error| error.to_string())?;
	let invite = |Record { invite, .. }: Record| Invite {
		created_at: if invite.allow_registration { invite.created_at } else { 0 },
		ended_at: None,
		..invite
	};
	Ok(records.into_iter().map(invite).collect())
}
