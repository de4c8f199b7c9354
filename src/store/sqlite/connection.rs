//! The connection: opened when it is first needed, brought to our newest schema, and closed when it may be broken; and
//! what an operator is told of the errors of SQLite.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, TransactionBehavior};

use super::boots::Held;
use super::checkpoint::Checkpointer;
use super::files::{self, Files};
use crate::store::breaker::Breaker;
use crate::store::sql::SQLITE_MIGRATIONS as MIGRATIONS;
use crate::store::{StoreError, TxError};

/// What every connection sets.
const CONNECTION: &str = include_str!("connection.sql");

/// More than there are: none is compiled twice.
const STATEMENTS: usize = 64;

/// Marks the file as ours (`PRAGMA application_id`).
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"PInv");

/// Between two attempts at something for which SQLite does not wait by itself.
pub(super) const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// So much longer than for a lock one waits once, until the database is there that another process is about to make.
const OPENING: u32 = 10;

const CANNOT_WRITE: &str = "cannot be written: give it, its -wal and -shm files and its directory to the user that Prosody \
	runs as (chown), who must be allowed to write them (chmod)";

/// The stores that [`SqliteStore::shared`] has handed out.
static STORES: LazyLock<Mutex<HashMap<PathBuf, Arc<SqliteStore>>>> = LazyLock::new(Mutex::default);

/// A database file, opened when it is first needed.
#[derive(Debug)]
pub struct SqliteStore {
	pub(super) path: PathBuf,
	pub(super) lock_wait: Duration,
	/// None selects the operating system's own; the tests name one that cannot do WAL.
	pub(super) vfs: Option<&'static str>,
	state: Mutex<State>,
	/// What says that this process lives. Not let go as long as it does, whatever becomes of the connection.
	pub(super) held: Mutex<Option<Held>>,
}

#[derive(Debug, Default)]
struct State {
	opened: Option<Opened>,
	/// Somebody else had the lock for longer than may be waited. Reading needs none, and goes on.
	writing: Breaker,
	/// Not even reading could be had: a process was recovering the log, say.
	reading: Breaker,
}

/// What work needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Needs {
	/// To read.
	Reading,
	/// To write too: the lock.
	Writing,
}

#[derive(Debug)]
pub(super) struct Opened {
	/// Dropped before the connection, which is to be the last: how it is closed is decided here.
	checkpointer: Checkpointer,
	connection: Connection,
	/// Who opened it: not to be used by a child of that process.
	process: u32,
	files: Arc<Files>,
}

impl Opened {
	pub(super) const fn connection(&self) -> &Connection {
		&self.connection
	}

	/// Fails if one of the files that are open has lost its name: everybody else uses others by now, and what is written
	/// to this one is lost.
	pub(super) fn check_files(&self) -> Result<(), Trouble> {
		let lost = self.files.lost(&self.connection).map(Path::to_owned);
		lost.map_or(Ok(()), |lost| Err(Trouble::Replaced(lost)))
	}
}

impl Drop for Opened {
	/// The last to close a database moves the log into it and deletes -wal and -shm, by their names. If these are
	/// somebody else's by now, that would lose what others have committed since.
	fn drop(&mut self) {
		if self.process != std::process::id() || self.files.lost(&self.connection).is_none() {
			return;
		}
		if self.files.must_save_log() {
			// Where this fails, nothing else would help.
			let _ = self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
		}
		let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true);
	}
}

impl SqliteStore {
	/// The one store of this process for a database file. The first call for a file says how long a call
	/// may wait for another process that is writing.
	#[must_use]
	pub fn shared(path: &Path, lock_wait: Duration) -> Arc<Self> {
		let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
		Arc::clone(stores.entry(path.to_owned()).or_insert_with(|| Arc::new(Self::new(path, lock_wait))))
	}

	/// Closes the connections that this process has open; the next call opens another. For the moment before a fork and
	/// for the end: the last to close a file leaves it whole, without a -wal beside it.
	pub fn close_shared() {
		for store in STORES.lock().unwrap_or_else(PoisonError::into_inner).values() {
			let mut state = store.state.lock().unwrap_or_else(PoisonError::into_inner);
			if state.opened.as_ref().is_some_and(|opened| opened.process == std::process::id()) {
				state.opened = None;
			}
		}
	}

	/// A store with a connection of its own.
	#[must_use]
	pub fn new(path: &Path, lock_wait: Duration) -> Self {
		Self { path: path.to_owned(), lock_wait, vfs: None, state: Mutex::default(), held: Mutex::default() }
	}

	/// Runs `work` on the connection, opening it where needed. After an error that may come from the connection or
	/// from the file under it, it is closed, so that the next call starts afresh: once the cause
	/// is gone, the store works again.
	pub(super) fn with<T>(
		&self,
		doing: &str,
		work: impl FnOnce(&Connection) -> Result<T, Trouble>,
	) -> Result<T, StoreError> {
		self.run(doing, Needs::Reading, |opened| {
			opened.check_files()?;
			work(&opened.connection)
		})
	}

	/// The same for work that changes something. Where one of the files was lost meanwhile, nobody knows whether that is
	/// among what others see.
	pub(super) fn change<T>(
		&self,
		doing: &str,
		work: impl FnOnce(&Connection) -> Result<T, Trouble>,
	) -> Result<T, StoreError> {
		self.run(doing, Needs::Writing, |opened| {
			opened.check_files()?;
			let done = work(&opened.connection)?;
			opened.check_files()?;
			Ok(done)
		})
	}

	/// Nobody waits again for a lock that somebody has waited for in vain, until a pause is over.
	pub(super) fn run<T>(
		&self,
		doing: &str,
		needs: Needs,
		work: impl FnOnce(&Opened) -> Result<T, Trouble>,
	) -> Result<T, StoreError> {
		let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
		let State { opened, writing, reading } = &mut *state;
		reading.check()?;
		if needs == Needs::Writing {
			writing.check()?;
		}
		let current = match &mut *opened {
			Some(current) => current,
			none => match self.open_all() {
				Ok(current) => none.insert(current),
				Err(error) => {
					if is_locked(&error) {
						reading.trip(&error);
					}
					return Err(error);
				}
			},
		};
		if current.process != std::process::id() {
			return Err(StoreError::Unusable {
				problem: format!(
					"the database {} was opened before this process was forked: restart Prosody",
					self.path.display()
				),
				source: None,
			});
		}
		let done = work(current);
		if matches!(done, Ok(_) | Err(Trouble::Store(_))) {
			reading.reset();
			if needs == Needs::Writing {
				writing.reset();
			}
		}
		let error = match done {
			Ok(done) => return Ok(done),
			Err(Trouble::Store(error)) => return Err(error),
			Err(Trouble::Replaced(file)) => {
				*opened = None;
				return Err(StoreError::Unusable {
					problem: format!(
						"the file {} of the database was deleted or replaced while it was in use; the next call opens what \
						 lies there now",
						file.display()
					),
					source: None,
				});
			}
			Err(Trouble::Sqlite(error)) => error,
		};
		let code = error.sqlite_error_code();
		// Whom others have kept out by writing one after the other gets its turn sooner or later.
		let is_stuck = opened.as_ref().is_none_or(|opened| opened.checkpointer.is_stuck());
		let error = self.explain(doing, error);
		match code {
			Some(ErrorCode::ConstraintViolation) => (),
			Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) if !is_stuck => (),
			Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) if needs == Needs::Writing => {
				writing.trip(&error);
			}
			Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => reading.trip(&error),
			_ => *opened = None,
		}
		Err(error)
	}

	fn open_all(&self) -> Result<Opened, StoreError> {
		let mut connection = self.open()?;
		let files = Files::of(&self.path)
			.map(Arc::new)
			.map_err(|error| self.unavailable("cannot be looked at", error))?;
		let checkpointer =
			Checkpointer::attach(&mut connection, &self.path, Arc::clone(&files), self.lock_wait)
				.map_err(|error| self.explain("opening", error))?;
		Ok(Opened { checkpointer, connection, process: std::process::id(), files })
	}

	pub(super) fn open(&self) -> Result<Connection, StoreError> {
		self.create_file()?;
		// SQLite itself does not wait while another process turns a new file to WAL: it reports "busy" at once.
		let attempts = (self.lock_wait * OPENING).as_millis() / RETRY_INTERVAL.as_millis();
		for _ in 0..attempts {
			match self.connect() {
				Err(Connecting::Sqlite(error))
					if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) =>
				{
					std::thread::sleep(RETRY_INTERVAL);
				}
				result => return result.map_err(|error| self.explain_connecting(error)),
			}
		}
		self.connect().map_err(|error| self.explain_connecting(error))
	}

	/// SQLite would create the file with the process's umask and owner; its -wal and -shm take over the ones they find.
	pub(super) fn create_file(&self) -> Result<(), StoreError> {
		match files::create(&self.path) {
			Ok(_) => File::open(files::directory_of(&self.path))
				.and_then(|directory| directory.sync_all())
				.map_err(|source| {
					self.unavailable("was created, but its directory could not be written to disk", source)
				}),
			Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
			Err(error) if error.kind() == io::ErrorKind::NotFound => Err(self.unusable(
				"cannot be created because its directory does not exist: create it, owned by the user that Prosody runs as",
				error,
			)),
			Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(self.unusable(
				"cannot be created: give its directory to the user that Prosody runs as (chown)",
				error,
			)),
			Err(error) => Err(self.unavailable("cannot be created", error)),
		}
	}

	fn connect(&self) -> Result<Connection, Connecting> {
		let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
		let mut connection = match self.vfs {
			None => Connection::open_with_flags(&self.path, flags)?,
			Some(vfs) => Connection::open_with_flags_and_vfs(&self.path, flags, vfs)?,
		};
		// `open` waits, for all of this together.
		connection.busy_timeout(Duration::ZERO)?;
		if connection.is_readonly(rusqlite::MAIN_DB)? {
			return Err(Connecting::ReadOnly);
		}
		connection.execute_batch(CONNECTION)?;
		connection.set_prepared_statement_cache_capacity(STATEMENTS);
		let journal_mode: String = connection.pragma_query_value(None, "journal_mode", |row| row.get(0))?;
		if journal_mode != "wal" {
			return Err(Connecting::NoWal);
		}
		// Seen in one moment: another process that migrates meanwhile would look like another program.
		let moment = connection.unchecked_transaction()?;
		let is_current = is_current(&moment)?;
		drop(moment);
		if !is_current {
			migrate(&mut connection)?;
		}
		Ok(connection)
	}

	pub(super) fn explain_connecting(&self, error: Connecting) -> StoreError {
		let problem = match error {
			Connecting::Sqlite(error) => return self.explain("opening", error),
			Connecting::NoWal => "lies on a file system that cannot share memory between processes, which \
				SQLite's write-ahead log needs: move Prosody's data directory to a local disk"
				.to_owned(),
			// SQLite would read it, and keep a connection that cannot write when the file can be written again.
			Connecting::ReadOnly => CANNOT_WRITE.to_owned(),
			Connecting::Foreign => "is an SQLite database of another program: move it away".to_owned(),
			Connecting::Newer(found) => format!(
				"has schema {found}, this version of mod_invites knows schemas up to {}: install the newer version again",
				MIGRATIONS.len()
			),
		};
		StoreError::Unusable {
			problem: format!("the database {} {problem}", self.path.display()),
			source: None,
		}
	}

	/// Says what an operator can do about what SQLite reports.
	pub(super) fn explain(&self, doing: &str, error: rusqlite::Error) -> StoreError {
		let advice = match error.sqlite_error_code() {
			Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
				"is locked by another process; try again"
			}
			Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => CANNOT_WRITE,
			Some(ErrorCode::DiskFull) => "does not fit on the disk: make room",
			Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
				"is damaged: stop Prosody, move the file away and put a backup in its place"
			}
			Some(ErrorCode::SystemIoFailure) => {
				"cannot be read or written: look at the disk and the system's log"
			}
			_ => return self.unavailable(&format!("failed while {doing}"), error),
		};
		self.unavailable(&format!("{advice}; this was while {doing}"), error)
	}

	pub(super) fn unavailable(
		&self,
		problem: &str,
		source: impl std::error::Error + Send + Sync + 'static,
	) -> StoreError {
		StoreError::Unavailable {
			problem: format!("the database {} {problem}", self.path.display()),
			source: Box::new(source),
		}
	}

	pub(super) fn unusable(
		&self,
		problem: &str,
		source: impl std::error::Error + Send + Sync + 'static,
	) -> StoreError {
		StoreError::Unusable {
			problem: format!("the database {} {problem}", self.path.display()),
			source: Some(Box::new(source)),
		}
	}
}

/// Whether somebody else has a lock that is needed.
fn is_locked(error: &StoreError) -> bool {
	let StoreError::Unavailable { source, .. } = error else { return false };
	let error = source.downcast_ref::<rusqlite::Error>();
	matches!(
		error.and_then(rusqlite::Error::sqlite_error_code),
		Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked)
	)
}

/// How work on the connection failed.
pub(super) enum Trouble {
	Sqlite(rusqlite::Error),
	Store(StoreError),
	/// The file of this path is no longer the one that is open.
	Replaced(PathBuf),
}

impl From<rusqlite::Error> for Trouble {
	fn from(error: rusqlite::Error) -> Self {
		Self::Sqlite(error)
	}
}

impl From<StoreError> for Trouble {
	fn from(error: StoreError) -> Self {
		Self::Store(error)
	}
}

impl From<TxError> for Trouble {
	fn from(error: TxError) -> Self {
		error.engine("reading the database").map_or_else(Self::Store, Self::Sqlite)
	}
}

pub(super) enum Connecting {
	Sqlite(rusqlite::Error),
	ReadOnly,
	NoWal,
	Foreign,
	Newer(i64),
}

impl From<rusqlite::Error> for Connecting {
	fn from(error: rusqlite::Error) -> Self {
		Self::Sqlite(error)
	}
}

pub(super) fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
	connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Whether the database has our newest schema.
pub(super) fn is_current(connection: &Connection) -> Result<bool, Connecting> {
	let application_id: i32 = connection.pragma_query_value(None, "application_id", |row| row.get(0))?;
	if application_id == APPLICATION_ID {
		let found = version(connection)?;
		return match usize::try_from(found) {
			Ok(found) if found <= MIGRATIONS.len() => Ok(found == MIGRATIONS.len()),
			_ => Err(Connecting::Newer(found)),
		};
	}
	let tables: i64 = connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
	if tables > 0 { Err(Connecting::Foreign) } else { Ok(false) }
}

/// Brings the database to our newest schema, in one transaction: of two processes that start at once, the
/// second waits for the first and then finds nothing to do.
pub(super) fn migrate(connection: &mut Connection) -> Result<(), Connecting> {
	let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
	if !is_current(&transaction)? {
		let seen = usize::try_from(version(&transaction)?).unwrap_or(0);
		for migration in &MIGRATIONS[seen..] {
			transaction.execute_batch(migration)?;
		}
		transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
		transaction.pragma_update(
			None,
			"user_version",
			i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX),
		)?;
	}
	transaction.commit()?;
	Ok(())
}
