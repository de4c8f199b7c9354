//! Invites in an embedded SQLite database: the default.
//!
//! One file for all hosts of a server, one connection to it per process, shared by every [`SqliteStore`] that
//! [`SqliteStore::shared`] hands out. Several processes may use the file at once (the server and
//! prosodyctl). A commit is on the disk before a call returns.
//!
//! The connection is opened at the first call, never earlier: Prosody 0.12 forks with `-D` after it has loaded
//! its modules, and a connection that crosses a fork loses committed rows.

pub mod backup;
mod check;
mod checkpoint;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Error::FromSqlConversionFailure;
use rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY;
use rusqlite::types::FromSql;
use rusqlite::{
	Connection, ErrorCode, OpenFlags, Row, ToSql, Transaction, TransactionBehavior, named_params,
};

use self::checkpoint::Checkpointer;
use super::{Carries, InviteStore, Record, StoreError};
use crate::check::Finding;
use crate::clock::{Stopwatch, Timestamp};
use crate::invite::{Invite, Type};
use crate::lineage::{Birth, Member, birth, branch};
use crate::listing::{Part, Position};
use crate::policy::{Allowance, LimitReached, Usage, decide_creation};
use crate::redemption::{Claim, Purpose, Redeemed, Redemption, Refusal, View, decide, reserves, supersedes};
use crate::token::{Digest, Nonce, Token};
use crate::value::{Table, Value};

/// Every schema there was; the database's `user_version` says how many of them it has seen.
const MIGRATIONS: [&str; 2] = [
	include_str!("sqlite/1_invites.sql"),
	concat!(include_str!("sqlite/2_history.sql"), include_str!("sqlite/2_inviters.sql")),
];

/// What every connection sets.
const CONNECTION: &str = include_str!("sqlite/connection.sql");

/// Marks the file as ours (`PRAGMA application_id`).
const APPLICATION_ID: i32 = i32::from_be_bytes(*b"PInv");

/// Between two attempts at something for which SQLite does not wait by itself.
const RETRY_INTERVAL: Duration = Duration::from_millis(5);

/// Between two looks for a lock. SQLite's own handler sleeps up to 100 ms between two, and through every pause that a
/// busy neighbour makes for others.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// Who waits so long for a lock serves nobody meanwhile (prosodyctl).
const PATIENCE: Duration = Duration::from_secs(1);

/// Public for the benchmark, which runs it on bare SQLite.
pub const CREATE: &str = "INSERT INTO invite (host, digest, token, type, kind, username, allow_registration, \
	created_at, expires, max_uses, uses, paused, revoked_at, revoked_why, revoked_by, ended_at, fields, inviter) \
	VALUES (:host, :digest, :token, :type, :kind, :username, :allow_registration, :created_at, :expires, :max_uses, \
	:uses, :paused, :revoked_at, :revoked_why, :revoked_by, :ended_at, :fields, :inviter)";

static IMPORT: LazyLock<String> = LazyLock::new(|| format!("{CREATE} ON CONFLICT DO NOTHING"));

/// Public for the benchmark, which runs it on bare SQLite.
pub const FIND: &str = "SELECT * FROM invite WHERE host = :host AND digest = :digest";

/// Writes back what can change of an invite. Public for the benchmark, which runs it on bare SQLite.
pub const UPDATE: &str = "UPDATE invite SET token = :token, expires = :expires, uses = :uses, paused = :paused, \
	revoked_at = :revoked_at, revoked_why = :revoked_why, revoked_by = :revoked_by, ended_at = :ended_at, \
	fields = :fields WHERE host = :host AND digest = :digest";

/// Public for the benchmark, which runs it on bare SQLite.
pub const OPEN_INVITES: &str = "SELECT * FROM invite WHERE host = :host AND digest > :after AND ended_at IS NULL \
	ORDER BY digest LIMIT :limit";

const ALL_INVITES: &str =
	"SELECT * FROM invite WHERE host = :host AND digest > :after ORDER BY digest LIMIT :limit";
const OPEN_PART: &str = "SELECT * FROM invite WHERE host = :host AND ended_at IS NULL \
	AND (created_at, digest) < (:at, :digest) ORDER BY created_at DESC, digest DESC LIMIT :limit";

/// What has ended and what is about to be noted as expired, merged from two indexes.
const HISTORY_PART: &str = "SELECT *, ended_at AS over_at FROM invite WHERE host = :host AND ended_at IS NOT NULL \
	AND (ended_at, digest) < (:at, :digest) \
	UNION ALL SELECT *, expires AS over_at FROM invite WHERE host = :host AND ended_at IS NULL AND expires < :now \
	AND (expires, digest) < (:at, :digest) \
	ORDER BY over_at DESC, digest DESC LIMIT :limit";

const COUNT_OPEN: &str = "SELECT created_at, digest FROM invite WHERE host = :host AND ended_at IS NULL \
	AND (created_at, digest) < (:at, :digest) ORDER BY created_at DESC, digest DESC LIMIT :limit";

/// The invites that are to be purged.
const OVER: &str = "SELECT digest FROM invite WHERE host = :host AND ended_at < :before AND expires < :before \
	AND digest NOT IN (SELECT digest FROM claim WHERE host = :host) ORDER BY ended_at LIMIT :limit";

const PURGE: &str = "DELETE FROM invite WHERE host = :host AND digest = :digest";

const PURGE_REDEMPTIONS: &str = "DELETE FROM redemption WHERE host = :host AND digest = :digest";

/// Public for the benchmark, which runs it on bare SQLite.
pub const OPEN_INVITES_OF_USER: &str =
	"SELECT * FROM invite WHERE host = :host AND username = :username AND ended_at IS NULL";

const OPEN_INVITES_OF_INVITER: &str =
	"SELECT * FROM invite WHERE host = :host AND inviter = :inviter AND ended_at IS NULL";

const INVITES_OF_INVITER: &str =
	"SELECT * FROM invite WHERE host = :host AND inviter = :inviter ORDER BY created_at, digest";

const BROUGHT_BY: &str = "SELECT * FROM lineage WHERE host = :host AND inviter = :inviter ORDER BY username";

const LINEAGE: &str = "SELECT * FROM lineage WHERE host = :host AND username = :username";

const BROUGHT: &str = "INSERT OR REPLACE INTO lineage (host, username, inviter, digest, joined_at) \
	VALUES (:host, :username, :inviter, :digest, :joined_at)";

/// Public for the benchmark, which runs it on bare SQLite.
pub const ALONE: &str = "DELETE FROM lineage WHERE host = :host AND username = :username";

const OPEN_OF_INVITER: &str = "SELECT count(*) FROM invite WHERE host = :host AND inviter = :inviter \
	AND ended_at IS NULL AND (expires IS NULL OR expires >= :now)";

const NEWEST_OF_INVITER: &str = "SELECT created_at FROM invite WHERE host = :host AND inviter = :inviter \
	ORDER BY created_at DESC LIMIT :limit";

const DUE: &str = "SELECT * FROM invite WHERE host = :host AND expires < :now AND ended_at IS NULL \
	ORDER BY expires LIMIT :limit";

/// Public for the benchmark, which runs it on bare SQLite.
pub const CLAIM: &str = "INSERT INTO claim (host, nonce, digest, purpose, invitee, boot, lease_end) \
	VALUES (:host, :nonce, :digest, :purpose, :invitee, :boot, :lease_end)";

/// The table holds only what is under way now, so it is read from end to end. Public for the benchmark, which runs it on bare SQLite.
pub const CLAIMS: &str = "SELECT * FROM claim WHERE host = :host";

const RELEASE: &str = "DELETE FROM claim WHERE host = :host AND nonce = :nonce AND (:stale_at IS NULL OR lease_end < :stale_at)";

/// Public for the benchmark, which runs it on bare SQLite.
pub const REDEEMED_CLAIM: &str = "DELETE FROM claim WHERE host = :host AND nonce = :nonce RETURNING *";

const RENEW: &str = "UPDATE claim SET lease_end = :lease_end WHERE host = :host AND nonce = :nonce";

/// Public for the benchmark, which runs it on bare SQLite.
pub const REDEMPTION: &str = "INSERT INTO redemption (host, digest, nonce, purpose, invitee, source, used_at) \
	VALUES (:host, :digest, :nonce, :purpose, :invitee, :source, :used_at)";

const IS_REDEEMED: &str =
	"SELECT 1 FROM redemption WHERE host = :host AND digest = :digest AND nonce = :nonce";

const REDEMPTIONS: &str =
	"SELECT * FROM redemption WHERE host = :host AND digest = :digest ORDER BY used_at, nonce";

const CANNOT_WRITE: &str = "cannot be written: give it, its -wal and -shm files and its directory to the user that Prosody \
	runs as (chown), who must be allowed to write them (chmod)";

/// The stores that [`SqliteStore::shared`] has handed out.
static STORES: LazyLock<Mutex<HashMap<PathBuf, Arc<SqliteStore>>>> = LazyLock::new(Mutex::default);

/// A database file, opened when it is first needed.
#[derive(Debug)]
pub struct SqliteStore {
	path: PathBuf,
	lock_wait: Duration,
	/// None selects the operating system's own; the tests name one that cannot do WAL.
	vfs: Option<&'static str>,
	opened: Mutex<Option<Opened>>,
}

#[derive(Debug)]
struct Opened {
	connection: Connection,
	/// Dropped after the connection, which wakes it.
	_checkpointer: Checkpointer,
	/// Who opened it: not to be used by a child of that process.
	process: u32,
	/// Which file it is, whatever lies under its name later: device and inode.
	file: (u64, u64),
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
			let mut opened = store.opened.lock().unwrap_or_else(PoisonError::into_inner);
			if opened.as_ref().is_some_and(|opened| opened.process == std::process::id()) {
				*opened = None;
			}
		}
	}

	/// A store with a connection of its own.
	#[must_use]
	pub fn new(path: &Path, lock_wait: Duration) -> Self {
		Self { path: path.to_owned(), lock_wait, vfs: None, opened: Mutex::default() }
	}

	/// Runs `work` on the connection, opening it where needed. After an error that may come from the connection or
	/// from the file under it, it is closed, so that the next call starts afresh: once the cause
	/// is gone, the store works again.
	fn with<T>(
		&self,
		doing: &str,
		work: impl FnOnce(&Connection) -> Result<T, Trouble>,
	) -> Result<T, StoreError> {
		let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
		let current = match &mut *opened {
			Some(current) => current,
			none => {
				let mut connection = self.open()?;
				let is_patient = self.lock_wait >= PATIENCE;
				let checkpointer = Checkpointer::attach(&mut connection, &self.path, is_patient)
					.map_err(|error| self.explain("opening", error))?;
				let file = self.file().map_err(|error| self.unavailable("cannot be looked at", error))?;
				none.insert(Opened {
					connection,
					_checkpointer: checkpointer,
					process: std::process::id(),
					file,
				})
			}
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
		if !self.file().is_ok_and(|file| file == current.file) {
			// Everybody else uses the new one by now, and what is written to this one is lost.
			*opened = None;
			return Err(StoreError::Unusable {
				problem: format!(
					"the database {} was deleted or replaced while it was in use; the next call opens what lies there now",
					self.path.display()
				),
				source: None,
			});
		}
		match work(&current.connection) {
			Ok(done) => Ok(done),
			Err(Trouble::Store(error)) => Err(error),
			Err(Trouble::Sqlite(error)) => {
				if !matches!(
					error.sqlite_error_code(),
					Some(
						ErrorCode::ConstraintViolation | ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked
					)
				) {
					*opened = None;
				}
				Err(self.explain(doing, error))
			}
		}
	}

	/// Runs `work` in a transaction that no other writer comes between.
	fn change<T>(
		&self,
		doing: &str,
		work: impl FnOnce(&Connection) -> Result<T, Trouble>,
	) -> Result<T, StoreError> {
		self.with(doing, |connection| {
			let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Immediate)?;
			let done = work(&transaction)?;
			transaction.commit()?;
			Ok(done)
		})
	}

	fn file(&self) -> io::Result<(u64, u64)> {
		std::fs::metadata(&self.path).map(|file| (file.dev(), file.ino()))
	}

	fn open(&self) -> Result<Connection, StoreError> {
		self.create_file()?;
		// SQLite itself does not wait while another process turns a new file to WAL: it reports "busy" at once.
		let attempts = self.lock_wait.as_millis() / RETRY_INTERVAL.as_millis();
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

	/// SQLite would create the file with the process's umask; its -wal and -shm take over the mode it finds.
	fn create_file(&self) -> Result<(), StoreError> {
		match OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path) {
			Ok(_) => {
				let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
				File::open(directory.unwrap_or(Path::new("."))).and_then(|directory| directory.sync_all()).map_err(
					|source| self.unavailable("was created, but its directory could not be written to disk", source),
				)
			}
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
		let lock_wait = self.lock_wait;
		let mut waiting = Stopwatch::start();
		connection.busy_handler(Some(move |looks| {
			if looks == 0 {
				waiting = Stopwatch::start();
			}
			std::thread::sleep(LOOK_INTERVAL);
			waiting.elapsed() < lock_wait
		}))?;
		Ok(connection)
	}

	fn explain_connecting(&self, error: Connecting) -> StoreError {
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
	fn explain(&self, doing: &str, error: rusqlite::Error) -> StoreError {
		if error.sqlite_error().is_some_and(|error| error.extended_code == SQLITE_CONSTRAINT_PRIMARYKEY) {
			return StoreError::Exists;
		}
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

	fn unavailable(
		&self,
		problem: &str,
		source: impl std::error::Error + Send + Sync + 'static,
	) -> StoreError {
		StoreError::Unavailable {
			problem: format!("the database {} {problem}", self.path.display()),
			source: Box::new(source),
		}
	}

	fn unusable(&self, problem: &str, source: impl std::error::Error + Send + Sync + 'static) -> StoreError {
		StoreError::Unusable {
			problem: format!("the database {} {problem}", self.path.display()),
			source: Some(Box::new(source)),
		}
	}
}

/// How work on the connection failed.
enum Trouble {
	Sqlite(rusqlite::Error),
	Store(StoreError),
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

enum Connecting {
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

fn version(connection: &Connection) -> Result<i64, rusqlite::Error> {
	connection.pragma_query_value(None, "user_version", |row| row.get(0))
}

/// Whether the database has our newest schema.
fn is_current(connection: &Connection) -> Result<bool, Connecting> {
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
fn migrate(connection: &mut Connection) -> Result<(), Connecting> {
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

type Source = Box<dyn std::error::Error + Send + Sync>;

fn damaged(digest: &Digest, source: impl Into<Source>) -> StoreError {
	StoreError::Damaged { id: digest.id().to_string(), source: source.into() }
}

/// The columns of a row one after the other. To look each up by its name takes longer than all else about a row.
struct Columns<'a, 'row> {
	row: &'a Row<'row>,
	next: usize,
}

impl<'a> Columns<'a, '_> {
	fn next<T: FromSql>(&mut self) -> Result<T, rusqlite::Error> {
		self.next += 1;
		self.row.get(self.next - 1)
	}

	fn next_text(&mut self) -> Result<Option<&'a str>, rusqlite::Error> {
		self.next += 1;
		let value = self.row.get_ref(self.next - 1)?;
		value
			.as_str_or_null()
			.map_err(|error| FromSqlConversionFailure(self.next - 1, value.data_type(), error.into()))
	}
}

/// Reads `SELECT *`: the order is that of the table, to which migrations append.
fn read_invite(row: &Row<'_>) -> Result<Invite, Trouble> {
	let mut columns = Columns { row, next: 0 };
	let host = columns.next()?;
	let digest = Digest::from_bytes(columns.next()?);
	let token: Option<String> = columns.next()?;
	let invite_type = columns.next_text()?.and_then(Type::from_stored);
	let _kind = columns.next_text()?;
	Ok(Invite {
		host,
		digest,
		token: token.map(Token::from_stored),
		invite_type: invite_type.ok_or_else(|| damaged(&digest, "its type is unknown"))?,
		username: columns.next()?,
		allow_registration: columns.next()?,
		created_at: columns.next()?,
		expires: columns.next()?,
		max_uses: columns.next()?,
		uses: columns.next()?,
		paused: columns.next()?,
		revoked_at: columns.next()?,
		revoked_why: columns.next()?,
		ended_at: columns.next()?,
		fields: match columns.next_text()?.map(Value::decode) {
			None => Table::default(),
			Some(Ok(Value::Table(fields))) => fields,
			Some(Ok(_)) => return Err(damaged(&digest, "its additional data is no table").into()),
			Some(Err(error)) => return Err(damaged(&digest, error).into()),
		},
		revoked_by: columns.next()?,
	})
}

fn read_digest(row: &Row<'_>) -> Result<Digest, Trouble> {
	Ok(Digest::from_bytes(row.get("digest")?))
}

fn read_purpose(row: &Row<'_>, digest: &Digest) -> Result<Purpose, Trouble> {
	let word: String = row.get("purpose")?;
	Purpose::from_stored(&word).ok_or_else(|| damaged(digest, "the purpose of its use is unknown").into())
}

fn read_claim(row: &Row<'_>) -> Result<Claim, Trouble> {
	let digest = Digest::from_bytes(row.get("digest")?);
	Ok(Claim {
		host: row.get("host")?,
		nonce: Nonce::from_bytes(row.get("nonce")?),
		digest,
		purpose: read_purpose(row, &digest)?,
		invitee: row.get("invitee")?,
		boot: Nonce::from_bytes(row.get("boot")?),
		lease_end: row.get("lease_end")?,
	})
}

fn read_redemption(row: &Row<'_>) -> Result<Redemption, Trouble> {
	let digest = Digest::from_bytes(row.get("digest")?);
	Ok(Redemption {
		nonce: Nonce::from_bytes(row.get("nonce")?),
		purpose: read_purpose(row, &digest)?,
		invitee: row.get("invitee")?,
		source: row.get("source")?,
		used_at: row.get("used_at")?,
	})
}

fn all<T>(
	connection: &Connection,
	statement: &str,
	params: &[(&str, &dyn ToSql)],
	read: fn(&Row<'_>) -> Result<T, Trouble>,
) -> Result<Vec<T>, Trouble> {
	let mut statement = connection.prepare_cached(statement)?;
	let mut rows = statement.query(params)?;
	let mut found = Vec::new();
	while let Some(row) = rows.next()? {
		found.push(read(row)?);
	}
	Ok(found)
}

fn encode_fields(invite: &Invite) -> Result<Option<String>, Trouble> {
	if invite.fields.is_empty() {
		return Ok(None);
	}
	let encoded = Value::Table(invite.fields.clone()).encode();
	Ok(Some(encoded.map_err(|error| damaged(&invite.digest, error))?))
}

/// Stores an invite by `statement`; whether it did.
fn insert(connection: &Connection, statement: &str, invite: &Invite) -> Result<bool, Trouble> {
	let inserted = connection.prepare_cached(statement)?.execute(named_params! {
		":host": invite.host,
		":digest": invite.digest.as_bytes(),
		":token": invite.token.as_ref().map(Token::reveal),
		":type": invite.invite_type.as_str(),
		":kind": invite.kind().as_str(),
		":username": invite.username,
		":allow_registration": invite.allow_registration,
		":created_at": invite.created_at,
		":expires": invite.expires,
		":max_uses": invite.max_uses,
		":uses": invite.uses,
		":paused": invite.paused,
		":revoked_at": invite.revoked_at,
		":revoked_why": invite.revoked_why,
		":revoked_by": invite.revoked_by,
		":ended_at": invite.ended_at,
		":fields": encode_fields(invite)?,
		":inviter": invite.local_inviter(),
	})?;
	Ok(inserted == 1)
}

fn find(connection: &Connection, host: &str, digest: &Digest) -> Result<Option<Invite>, Trouble> {
	let mut statement = connection.prepare_cached(FIND)?;
	let mut rows = statement.query(named_params! { ":host": host, ":digest": digest.as_bytes() })?;
	rows.next()?.map(read_invite).transpose()
}

fn update(connection: &Connection, invite: &Invite) -> Result<(), Trouble> {
	connection.prepare_cached(UPDATE)?.execute(named_params! {
		":host": invite.host,
		":digest": invite.digest.as_bytes(),
		":token": invite.token.as_ref().map(Token::reveal),
		":expires": invite.expires,
		":uses": invite.uses,
		":paused": invite.paused,
		":revoked_at": invite.revoked_at,
		":revoked_why": invite.revoked_why,
		":revoked_by": invite.revoked_by,
		":ended_at": invite.ended_at,
		":fields": encode_fields(invite)?,
	})?;
	Ok(())
}

fn open_invites_of_user(connection: &Connection, host: &str, username: &str) -> Result<Vec<Invite>, Trouble> {
	let params = named_params! { ":host": host, ":username": username };
	all(connection, OPEN_INVITES_OF_USER, params, read_invite)
}

/// Revokes what `which` picks of a user's open invites.
fn retire(
	connection: &Connection,
	host: &str,
	username: &str,
	which: &dyn Fn(&Invite) -> bool,
	why: &str,
	now: Timestamp,
) -> Result<Vec<Invite>, Trouble> {
	let mut retired = Vec::new();
	for mut invite in open_invites_of_user(connection, host, username)? {
		if which(&invite) && invite.revoke(Some(why), None, now) {
			update(connection, &invite)?;
			retired.push(invite);
		}
	}
	Ok(retired)
}

/// What [`InviteStore::create`] does.
fn create(connection: &Connection, invite: &Invite) -> Result<Vec<Invite>, Trouble> {
	let superseded = match &invite.username {
		Some(username) => {
			let which = |older: &Invite| supersedes(invite, older);
			retire(connection, &invite.host, username, &which, super::SUPERSEDED, invite.created_at)?
		}
		None => Vec::new(),
	};
	insert(connection, CREATE, invite)?;
	Ok(superseded)
}

fn usage(
	connection: &Connection,
	host: &str,
	allowance: &Allowance,
	now: Timestamp,
) -> Result<Usage, Trouble> {
	let inviter = &allowance.inviter;
	let open = connection
		.prepare_cached(OPEN_OF_INVITER)?
		.query_row(named_params! { ":host": host, ":inviter": inviter, ":now": now }, |row| row.get(0))?;
	let params = named_params! { ":host": host, ":inviter": inviter, ":limit": allowance.newest() };
	let newest = all(connection, NEWEST_OF_INVITER, params, |row| Ok(row.get(0)?))?;
	Ok(Usage { open, newest })
}

/// The claims for a username and whether an invite other than `except` reserves it.
fn view_name(
	connection: &Connection,
	host: &str,
	username: &str,
	except: Option<&Digest>,
	claims: &[Claim],
	now: Timestamp,
) -> Result<View, Trouble> {
	let is_on_name =
		|claim: &&Claim| claim.purpose == Purpose::Account && claim.invitee.as_deref() == Some(username);
	Ok(View {
		claims_on_name: claims.iter().filter(is_on_name).cloned().collect(),
		is_reserved: open_invites_of_user(connection, host, username)?
			.iter()
			.any(|invite| Some(&invite.digest) != except && reserves(invite, username, now)),
		..View::default()
	})
}

fn view(connection: &Connection, claim: &Claim, now: Timestamp) -> Result<View, Trouble> {
	let claims = all(connection, CLAIMS, named_params! { ":host": claim.host }, read_claim)?;
	let of_name = match (claim.purpose, claim.invitee.as_deref()) {
		(Purpose::Account, Some(name)) => {
			view_name(connection, &claim.host, name, Some(&claim.digest), &claims, now)?
		}
		_ => View::default(),
	};
	Ok(View {
		invite: find(connection, &claim.host, &claim.digest)?,
		claims: claims.into_iter().filter(|other| other.digest == claim.digest).collect(),
		..of_name
	})
}

fn insert_redemption(
	connection: &Connection,
	host: &str,
	digest: &Digest,
	redemption: &Redemption,
) -> Result<(), Trouble> {
	connection.prepare_cached(REDEMPTION)?.execute(named_params! {
		":host": host,
		":digest": digest.as_bytes(),
		":nonce": redemption.nonce.as_bytes(),
		":purpose": redemption.purpose.as_str(),
		":invitee": redemption.invitee,
		":source": redemption.source,
		":used_at": redemption.used_at,
	})?;
	Ok(())
}

fn redemptions(connection: &Connection, host: &str, digest: &Digest) -> Result<Vec<Redemption>, Trouble> {
	let params = named_params! { ":host": host, ":digest": digest.as_bytes() };
	all(connection, REDEMPTIONS, params, read_redemption)
}

/// A page of invites by `statement`, one of those that take a page's parameters.
fn page(
	connection: &Connection,
	statement: &str,
	host: &str,
	after: Option<&Digest>,
	limit: u32,
) -> Result<Vec<Invite>, Trouble> {
	// Every digest follows the empty one.
	let after = after.map_or(&[][..], |after| after.as_bytes());
	let params = named_params! { ":host": host, ":after": after, ":limit": limit };
	all(connection, statement, params, read_invite)
}

/// Counts the use that a claim has become.
fn count(
	connection: &Connection,
	claim: &Claim,
	source: Option<&str>,
	now: Timestamp,
) -> Result<Option<Invite>, Trouble> {
	let redemption = Redemption {
		nonce: claim.nonce,
		purpose: claim.purpose,
		invitee: claim.invitee.clone(),
		source: source.map(str::to_owned),
		used_at: now,
	};
	insert_redemption(connection, &claim.host, &claim.digest, &redemption)?;
	let Some(mut invite) = find(connection, &claim.host, &claim.digest)? else {
		return Ok(None);
	};
	match birth(&invite, claim.purpose, claim.invitee.as_deref(), now) {
		Some(Birth::Brought(member)) => drop(keep_member(connection, &claim.host, &member)?),
		Some(Birth::Alone(username)) => {
			let params = named_params! { ":host": claim.host, ":username": username };
			connection.prepare_cached(ALONE)?.execute(params)?;
		}
		None => (),
	}
	invite.add_use(now);
	update(connection, &invite)?;
	Ok(Some(invite))
}

/// Keeps who brought an account, if it replaces what is known; whether it did.
fn keep_member(connection: &Connection, host: &str, member: &Member) -> Result<bool, Trouble> {
	let may = member.replaces(lineage(connection, host, &member.username)?.as_ref());
	if may {
		connection.prepare_cached(BROUGHT)?.execute(named_params! {
			":host": host,
			":username": member.username,
			":inviter": member.inviter,
			":digest": member.digest.as_bytes(),
			":joined_at": member.joined_at,
		})?;
	}
	Ok(may)
}

fn lineage(connection: &Connection, host: &str, username: &str) -> Result<Option<Member>, Trouble> {
	let params = named_params! { ":host": host, ":username": username };
	Ok(all(connection, LINEAGE, params, read_member)?.pop())
}

fn read_member(row: &Row<'_>) -> Result<Member, Trouble> {
	Ok(Member {
		username: row.get("username")?,
		inviter: row.get("inviter")?,
		digest: Digest::from_bytes(row.get("digest")?),
		joined_at: row.get("joined_at")?,
	})
}

fn brought_by(connection: &Connection, host: &str, inviter: &str) -> Result<Vec<Member>, Trouble> {
	all(connection, BROUGHT_BY, named_params! { ":host": host, ":inviter": inviter }, read_member)
}

fn release(
	connection: &Connection,
	host: &str,
	nonce: &Nonce,
	only_stale: Option<Timestamp>,
) -> Result<bool, Trouble> {
	let released = connection
		.prepare_cached(RELEASE)?
		.execute(named_params! { ":host": host, ":nonce": nonce.as_bytes(), ":stale_at": only_stale })?;
	Ok(released == 1)
}

impl InviteStore for SqliteStore {
	fn carries(&self) -> Carries {
		Carries::ALL
	}

	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError> {
		let doing = "storing an invite";
		if invite.username.is_none() {
			// Nothing can be superseded, and one statement is a transaction of its own.
			return self.with(doing, |connection| create(connection, invite));
		}
		self.change(doing, |connection| create(connection, invite))
	}

	fn create_within(
		&self,
		invite: &Invite,
		allowance: &Allowance,
	) -> Result<Result<Vec<Invite>, LimitReached>, StoreError> {
		self.change("storing an invite", |connection| {
			let usage = usage(connection, &invite.host, allowance, invite.created_at)?;
			match decide_creation(invite, allowance, &usage, invite.created_at) {
				Ok(()) => create(connection, invite).map(Ok),
				Err(reached) => Ok(Err(reached)),
			}
		})
	}

	fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Result<Usage, StoreError> {
		self.with("counting the invites of a user", |connection| usage(connection, host, allowance, now))
	}

	fn import(&self, records: &[Record]) -> Result<usize, StoreError> {
		self.change("importing invites", |connection| {
			let mut kept = 0;
			for Record { invite, redemptions } in records {
				if insert(connection, &IMPORT, invite)? {
					kept += 1;
					for redemption in redemptions {
						insert_redemption(connection, &invite.host, &invite.digest, redemption)?;
						if let Some(Birth::Brought(member)) = redemption.birth(invite) {
							keep_member(connection, &invite.host, &member)?;
						}
					}
				}
			}
			Ok(kept)
		})
	}

	fn records(&self, host: &str, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, StoreError> {
		self.with("reading invites", |connection| {
			// A transaction, so that no use comes between an invite and its uses.
			let transaction = connection.unchecked_transaction()?;
			let records = page(&transaction, ALL_INVITES, host, after, limit)?
				.into_iter()
				.map(|invite| {
					let redemptions = if invite.uses > 0 {
						redemptions(&transaction, host, &invite.digest)?
					} else {
						Vec::new()
					};
					Ok(Record { invite, redemptions })
				})
				.collect::<Result<_, Trouble>>()?;
			transaction.commit()?;
			Ok(records)
		})
	}

	fn forget_tokens(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Option<Digest>, StoreError> {
		let doing = "taking tokens out of invites";
		// Nearly always there is none, and looking for them needs no lock.
		let (next, is_done) = self.with(doing, |connection| {
			let page = page(connection, ALL_INVITES, host, after, limit)?;
			let is_done = page.iter().all(|invite| invite.token.is_none());
			Ok((super::last_of_full_page(&page, limit), is_done))
		})?;
		if is_done {
			return Ok(next);
		}
		self.change(doing, |connection| {
			let mut page = page(connection, ALL_INVITES, host, after, limit)?;
			for invite in &mut page {
				if invite.forget_token() {
					update(connection, invite)?;
				}
			}
			Ok(super::last_of_full_page(&page, limit))
		})
	}

	fn check(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.look(host, now)
	}

	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError> {
		self.with("looking an invite up", |connection| find(connection, host, digest))
	}

	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<(), Refusal>, StoreError> {
		self.change("claiming an invite", |connection| {
			if let Some(replaced) = replaced {
				release(connection, &claim.host, replaced, None)?;
			}
			let decision = decide(&view(connection, claim, now)?, claim, now);
			if decision.is_ok() {
				connection.prepare_cached(CLAIM)?.execute(named_params! {
					":host": claim.host,
					":nonce": claim.nonce.as_bytes(),
					":digest": claim.digest.as_bytes(),
					":purpose": claim.purpose.as_str(),
					":invitee": claim.invitee,
					":boot": claim.boot.as_bytes(),
					":lease_end": claim.lease_end,
				})?;
			}
			Ok(decision)
		})
	}

	fn redeem(
		&self,
		host: &str,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError> {
		self.change("redeeming an invite", |connection| {
			let params = named_params! { ":host": host, ":nonce": nonce.as_bytes() };
			if let Some(claim) = all(connection, REDEEMED_CLAIM, params, read_claim)?.first() {
				return Ok(count(connection, claim, source, now)?.map_or(Redeemed::Lost, Redeemed::Now));
			}
			let is_redeemed = connection.prepare_cached(IS_REDEEMED)?.exists(
				named_params! { ":host": host, ":digest": digest.as_bytes(), ":nonce": nonce.as_bytes() },
			)?;
			Ok(if is_redeemed { Redeemed::Before } else { Redeemed::Lost })
		})
	}

	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Invite, Refusal>, StoreError> {
		self.change("redeeming an invite", |connection| {
			match decide(&view(connection, claim, now)?, claim, now) {
				Ok(()) => Ok(count(connection, claim, source, now)?.ok_or(Refusal::Invalid)),
				Err(refusal) => Ok(Err(refusal)),
			}
		})
	}

	fn release(&self, host: &str, nonce: &Nonce, only_stale: Option<Timestamp>) -> Result<bool, StoreError> {
		self.with("releasing an invite", |connection| release(connection, host, nonce, only_stale))
	}

	fn renew(&self, host: &str, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, StoreError> {
		self.with("renewing a claim", |connection| {
			let renewed = connection.prepare_cached(RENEW)?.execute(
				named_params! { ":host": host, ":nonce": nonce.as_bytes(), ":lease_end": lease_end },
			)?;
			Ok(renewed == 1)
		})
	}

	fn view(&self, claim: &Claim, now: Timestamp) -> Result<View, StoreError> {
		self.with("looking at an invite", |connection| {
			// Several reads that have to fit together.
			let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
			view(&transaction, claim, now)
		})
	}

	fn view_name(&self, host: &str, username: &str, now: Timestamp) -> Result<View, StoreError> {
		self.with("looking a username up", |connection| {
			let claims = all(connection, CLAIMS, named_params! { ":host": host }, read_claim)?;
			view_name(connection, host, username, None, &claims, now)
		})
	}

	fn revoke(
		&self,
		host: &str,
		digest: &Digest,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, StoreError> {
		self.change("revoking an invite", |connection| {
			let Some(mut invite) = find(connection, host, digest)? else {
				return Ok(None);
			};
			if !invite.revoke(why, by, now) {
				return Ok(None);
			}
			update(connection, &invite)?;
			Ok(Some(invite))
		})
	}

	fn retire(
		&self,
		host: &str,
		username: &str,
		which: &dyn Fn(&Invite) -> bool,
		why: &str,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		let doing = "retiring the invites of a user";
		// Most users have none, and looking for them needs no lock.
		let has_any = self.with(doing, |connection| {
			Ok(open_invites_of_user(connection, host, username)?.iter().any(which))
		})?;
		if !has_any {
			return Ok(Vec::new());
		}
		self.change(doing, |connection| retire(connection, host, username, which, why, now))
	}

	fn retire_inviter(
		&self,
		host: &str,
		inviter: &str,
		is_branch: bool,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		self.change("revoking the invites of an inviter", |connection| {
			let inviters = branch(inviter, |inviter| {
				if is_branch { brought_by(connection, host, inviter) } else { Ok(Vec::new()) }
			})?;
			let mut retired = Vec::new();
			for place in inviters {
				let params = named_params! { ":host": host, ":inviter": place.username };
				for mut invite in all(connection, OPEN_INVITES_OF_INVITER, params, read_invite)? {
					if invite.revoke(why, by, now) {
						update(connection, &invite)?;
						retired.push(invite);
					}
				}
			}
			Ok(retired)
		})
	}

	fn made_by(&self, host: &str, inviter: &str) -> Result<Vec<Invite>, StoreError> {
		self.with("listing the invites of an inviter", |connection| {
			let params = named_params! { ":host": host, ":inviter": inviter };
			all(connection, INVITES_OF_INVITER, params, read_invite)
		})
	}

	fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, StoreError> {
		self.with("listing whom somebody brought", |connection| brought_by(connection, host, inviter))
	}

	fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, StoreError> {
		self.with("looking up who brought an account", |connection| lineage(connection, host, username))
	}

	fn import_lineage(&self, host: &str, members: &[Member]) -> Result<usize, StoreError> {
		self.change("importing who brought whom", |connection| {
			let mut kept = 0;
			for member in members {
				kept += usize::from(keep_member(connection, host, member)?);
			}
			Ok(kept)
		})
	}

	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError> {
		self.change("pausing or resuming an invite", |connection| {
			let Some(mut invite) = find(connection, host, digest)? else {
				return Ok(false);
			};
			if invite.ended_at.is_some() || invite.paused == paused {
				return Ok(false);
			}
			invite.paused = paused;
			update(connection, &invite)?;
			Ok(true)
		})
	}

	fn extend(
		&self,
		host: &str,
		digest: &Digest,
		expires: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Option<(Invite, Vec<Invite>)>, StoreError> {
		self.change("extending an invite", |connection| {
			let Some(mut invite) = find(connection, host, digest)? else {
				return Ok(None);
			};
			if !invite.extend(expires) {
				return Ok(None);
			}
			let mut superseded = Vec::new();
			if let Some(username) = &invite.username {
				let which = |other: &Invite| other.digest != *digest && supersedes(&invite, other);
				superseded = retire(connection, host, username, &which, super::SUPERSEDED, now)?;
			}
			update(connection, &invite)?;
			Ok(Some((invite, superseded)))
		})
	}

	fn end_expired(&self, host: &str, limit: u32, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		let doing = "ending expired invites";
		let params = named_params! { ":host": host, ":now": now, ":limit": limit };
		let due = |connection: &Connection| all(connection, DUE, params, read_invite);
		// Nearly always there is none, and looking for them needs no lock.
		if self.with(doing, |connection| Ok(due(connection)?.is_empty()))? {
			return Ok(Vec::new());
		}
		self.change(doing, |connection| {
			let mut ended = due(connection)?;
			for invite in &mut ended {
				invite.ended_at = invite.expires;
				update(connection, invite)?;
			}
			Ok(ended)
		})
	}

	fn open_invites(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Vec<Invite>, StoreError> {
		self.with("listing invites", |connection| page(connection, OPEN_INVITES, host, after, limit))
	}

	fn listing(
		&self,
		host: &str,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		self.with("listing invites", |connection| {
			let (at, digest) = (after.at, after.digest.as_bytes());
			match part {
				Part::Open => {
					let params =
						named_params! { ":host": host, ":at": at, ":digest": digest, ":limit": limit };
					all(connection, OPEN_PART, params, read_invite)
				}
				Part::History => {
					let params = named_params! {
						":host": host, ":at": at, ":digest": digest, ":limit": limit, ":now": now
					};
					all(connection, HISTORY_PART, params, read_invite)
				}
			}
		})
	}

	fn count_open(
		&self,
		host: &str,
		after: &Position,
		limit: u32,
	) -> Result<(u32, Option<Position>), StoreError> {
		self.with("counting invites", |connection| {
			let mut statement = connection.prepare_cached(COUNT_OPEN)?;
			let mut rows = statement.query(named_params! {
				":host": host, ":at": after.at, ":digest": after.digest.as_bytes(), ":limit": limit
			})?;
			let (mut count, mut last) = (0, None);
			while let Some(row) = rows.next()? {
				count += 1;
				if count == limit {
					let digest = Digest::from_bytes(row.get("digest")?);
					last = Some(Position { at: row.get("created_at")?, digest });
				}
			}
			Ok((count, last))
		})
	}

	fn purge(&self, host: &str, before: Timestamp, limit: u32) -> Result<u32, StoreError> {
		let doing = "purging invites";
		let params = named_params! { ":host": host, ":before": before, ":limit": limit };
		let over = |connection: &Connection| all(connection, OVER, params, read_digest);
		// Nearly always there is none, and looking for them needs no lock.
		if self.with(doing, |connection| Ok(over(connection)?.is_empty()))? {
			return Ok(0);
		}
		self.change(doing, |connection| {
			let digests = over(connection)?;
			for digest in &digests {
				for statement in [PURGE_REDEMPTIONS, PURGE] {
					connection
						.prepare_cached(statement)?
						.execute(named_params! { ":host": host, ":digest": digest.as_bytes() })?;
				}
			}
			Ok(u32::try_from(digests.len()).unwrap_or(u32::MAX))
		})
	}

	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError> {
		self.with("listing the uses of an invite", |connection| redemptions(connection, host, digest))
	}
}

#[cfg(test)]
mod tests;
