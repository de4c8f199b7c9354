//! Export, import, backup and restore, for prosodyctl.
//!
//! | function of the library | returns |
//! | --- | --- |
//! | `create_file(path)` | `true`; the file is new, empty and for its owner alone |
//! | `back_up(database, to)` | `true` |
//! | `read_backup(database, from)` | a backup, and what there is to know: `{ newest, pending, would_live_again, would_be_gone }` |
//! | `restore(database, backup, revoke)` | `true`; `revoke`: everything open in the backup |
//! | `discard_backup(backup)` | nothing: the backup that was read takes no room any more |
//! | `is_terminal()` | whether somebody can be asked |
//!
//! `database` is `{ path, lock_wait_ms }`.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Cursor, IsTerminal, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use mlua::{AnyUserData, BString, Function, Lua, Result as LuaResult, Table, UserData, UserDataRef, Value};

use super::{Failure, Outcome, outcome, set_some};
use crate::check::{Finding, Level};
use crate::clock;
use crate::error::InviteError;
use crate::invites::Invites;
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::backup::Backup;
use crate::transfer::{self, ExportError, ImportError, Source, Terms};

/// What is given to Lua at once.
const PIECE: usize = 64 << 10;

/// Between two pictures of the progress bar.
const REDRAW: u64 = 1000;

impl UserData for Backup {}

/// Gives what is written to a Lua function.
struct Pieces<'a>(&'a Function);

impl Write for Pieces<'_> {
	fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
		self.0.call::<()>(BString::from(bytes)).map_err(|error| io::Error::other(error.to_string()))?;
		Ok(bytes.len())
	}

	fn flush(&mut self) -> io::Result<()> {
		Ok(())
	}
}

pub(super) fn export(invites: &Invites, pending: bool, write: &Function) -> Result<u64, Failure> {
	let mut out = BufWriter::with_capacity(PIECE, Pieces(write));
	let pending_at = pending.then(clock::now);
	transfer::export(invites, pending_at, &mut out)
		.and_then(|count| Ok(out.flush().map(|()| count)?))
		.map_err(|error| match error {
			ExportError::Invite(error) => error.into(),
			ExportError::Unwritable(_) => Failure::Misuse(error.to_string()),
		})
}

pub(super) fn import(
	lua: &Lua,
	invites: &Invites,
	nodeprep: &Function,
	options: &Table,
) -> LuaResult<Result<Table, Failure>> {
	let mut source = match open(options)? {
		Ok(source) => source,
		Err(error) => return Ok(Err(Failure::Misuse(format!("it cannot be read: {error}")))),
	};
	let is_alone: bool = options.get::<Option<bool>>("is_alone")?.unwrap_or(false);
	let bar = if is_alone { ProgressBar::hidden() } else { ProgressBar::new(0) };
	if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta}") {
		bar.set_style(style);
	}
	let progress = |done: u64, total: u64| {
		if done.is_multiple_of(REDRAW) || done == total {
			bar.set_length(total);
			bar.set_position(done);
		}
	};
	let prepare = |name: &str| nodeprep.call::<Option<String>>(name).ok().flatten();
	let terms = Terms { prepare: &prepare, is_shared: !is_alone, progress: &progress };
	let done = transfer::import(invites, &mut *source, &terms);
	bar.finish_and_clear();
	let table = lua.create_table()?;
	match done {
		Ok(done) => {
			table.raw_set("imported", done.imported)?;
			table.raw_set("known", done.known)?;
			table.raw_set("remarks", done.remarks)?;
		}
		Err(ImportError::Wrong(lines)) => table.raw_set("wrong", lines)?,
		Err(ImportError::Invite(error)) => return Ok(Err(error.into())),
		Err(error @ ImportError::Unreadable(_)) => return Ok(Err(Failure::Misuse(error.to_string()))),
	}
	Ok(Ok(table))
}

fn open(options: &Table) -> LuaResult<io::Result<Box<dyn Source>>> {
	let (file, text): (Option<BString>, Option<BString>) = (options.get("file")?, options.get("text")?);
	let open = || -> io::Result<Box<dyn Source>> {
		let Some(file) = file else {
			return Ok(Box::new(Cursor::new(Vec::from(text.unwrap_or_default()))));
		};
		if file.as_slice() != b"-" {
			return Ok(Box::new(BufReader::new(File::open(path(&file))?)));
		}
		// It is read twice. The file has no name, so nobody else can open it, and it goes with this process.
		let mut spool = tempfile::tempfile()?;
		io::copy(&mut io::stdin().lock(), &mut spool)?;
		io::Seek::rewind(&mut spool)?;
		Ok(Box::new(BufReader::new(spool)))
	};
	Ok(open())
}

/// As a list of `{ level, text }`.
pub(super) fn findings(lua: &Lua, findings: &[Finding]) -> LuaResult<Vec<Table>> {
	let describe = |finding: &Finding| {
		let table = lua.create_table()?;
		let level = match finding.level {
			Level::Ok => "ok",
			Level::Warning => "warning",
			Level::Critical => "critical",
		};
		table.raw_set("level", level)?;
		table.raw_set("text", finding.text.as_str())?;
		Ok(table)
	};
	findings.iter().map(describe).collect()
}

fn path(bytes: &BString) -> PathBuf {
	OsStr::from_bytes(bytes).into()
}

fn database(options: &Table) -> LuaResult<Arc<SqliteStore>> {
	let (at, lock_wait): (BString, u64) = (options.get("path")?, options.get("lock_wait_ms")?);
	Ok(SqliteStore::shared(&path(&at), Duration::from_millis(lock_wait)))
}

fn failed(error: StoreError) -> Failure {
	InviteError::from(error).into()
}

fn create_file(path: &PathBuf) -> Result<bool, Failure> {
	match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
		Ok(_) => Ok(true),
		Err(error) => Err(Failure::Misuse(format!("{} cannot be created: {error}", path.display()))),
	}
}

pub(super) fn add_to(lua: &Lua, library: &Table) -> LuaResult<()> {
	library.set(
		"create_file",
		lua.create_function(|_, name: BString| Ok(Outcome(create_file(&path(&name)))))?,
	)?;
	library.set(
		"back_up",
		lua.create_function(|_, (options, to): (Table, BString)| {
			Ok(Outcome(database(&options)?.back_up(&path(&to)).map(|()| true).map_err(failed)))
		})?,
	)?;
	library.set(
		"read_backup",
		lua.create_function(|lua, (options, from): (Table, BString)| {
			outcome(match database(&options)?.read_backup(&path(&from)) {
				Ok(backup) => content(lua, &backup).map(|content| Ok((backup, content))),
				Err(error) => Ok(Err(failed(error))),
			})
		})?,
	)?;
	library.set(
		"restore",
		lua.create_function(|_, (options, backup, revoke): (Table, UserDataRef<Backup>, bool)| {
			let restored = database(&options)?.restore(&backup, revoke, clock::now());
			Ok(Outcome(restored.map(|()| true).map_err(failed)))
		})?,
	)?;
	library.set(
		"discard_backup",
		lua.create_function(|_, backup: AnyUserData| backup.take::<Backup>().map(drop))?,
	)?;
	library.set("is_terminal", lua.create_function(|_, ()| Ok(Value::Boolean(io::stdin().is_terminal())))?)
}

fn content(lua: &Lua, backup: &Backup) -> LuaResult<Table> {
	let content = &backup.content;
	let table = lua.create_table()?;
	table.raw_set("pending", content.pending)?;
	set_some(&table, "newest", content.newest)?;
	set_some(&table, "would_live_again", content.would_live_again)?;
	set_some(&table, "would_be_gone", content.would_be_gone)?;
	Ok(table)
}
