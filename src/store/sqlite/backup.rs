//! Copies of the whole database, and putting one back.
//!
//! A copy is taken as one reading transaction, while others go on writing; the file alone would lack what stands in its
//! write-ahead log. It is put back as one writing transaction, so a server that runs sees all of it at its next call and
//! needs no restart. The only thing that it could lose is the claim of a registration that is under way in that moment;
//! where there is one, nothing is restored.

use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use rusqlite::backup::{Backup as Copy, StepResult};
use rusqlite::{Connection, OpenFlags, named_params};
use tempfile::NamedTempFile;

use super::boots;
use super::connection::{Connecting, RETRY_INTERVAL, SqliteStore, is_current, migrate, version};
use super::files::{directory_of, give_to_owner_of};
use crate::clock::Timestamp;
use crate::redemption::{LEASE, Life};
use crate::store::StoreError;
use crate::token::Nonce;

const PENDING: &str = "SELECT count(*) FROM invite WHERE ended_at IS NULL";

const NEWEST: &str = "SELECT max(max(coalesce(created_at, 0)), max(coalesce(ended_at, 0))) FROM invite";

/// Open in the copy, and over here.
const WOULD_LIVE_AGAIN: &str = "SELECT count(*) FROM copy.invite JOIN main.invite USING (host, digest) \
	WHERE copy.invite.ended_at IS NULL AND main.invite.ended_at IS NOT NULL";

const WOULD_BE_GONE: &str = "SELECT count(*) FROM main.invite WHERE NOT EXISTS (SELECT 1 FROM copy.invite \
	WHERE copy.invite.host = main.invite.host AND copy.invite.digest = main.invite.digest)";

const CLAIMS: &str = "SELECT boot, made_at FROM claim";

const REVOKE_ALL: &str =
	"UPDATE invite SET revoked_at = :now, revoked_why = :why, ended_at = :now WHERE ended_at IS NULL";

/// Why invites are revoked that a backup brings back.
const RESTORED: &str = "it was restored from a backup";

/// A backup that was read and is good, with our newest schema, in a file of its own.
pub struct Backup {
	scratch: NamedTempFile,
	/// What it holds.
	pub content: Content,
}

/// What an operator has to know before a backup is put back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Content {
	/// The last moment that it knows of, so it is not older; none if it is empty.
	pub newest: Option<Timestamp>,
	/// Invites in it that may be open, of all hosts.
	pub pending: i64,
	/// How many of those were used up, were revoked or have expired in the present database. None where that one cannot
	/// be read.
	pub would_live_again: Option<i64>,
	/// Invites of the present database that the backup does not know.
	pub would_be_gone: Option<i64>,
}

impl SqliteStore {
	/// Writes a copy of the database to a new file, for its owner alone.
	///
	/// # Errors
	/// When there is no database, the file exists, or it cannot be written.
	pub fn back_up(&self, to: &Path) -> Result<(), StoreError> {
		if !self.path.exists() {
			return Err(problem(&self.path, "is not there: nothing was stored yet"));
		}
		let refuse = |what: &str, error: &dyn std::fmt::Display| {
			problem(to, &format!("cannot be written ({error}){what}"))
		};
		if to.exists() {
			return Err(problem(to, "exists already: name a new file"));
		}
		let directory = directory_of(to);
		let is_beside_database =
			directory.canonicalize().ok() == directory_of(&self.path).canonicalize().ok();
		let create = || {
			let scratch = NamedTempFile::new_in(directory)?;
			if is_beside_database {
				// Anywhere else it belongs to whoever asked for it.
				give_to_owner_of(directory, scratch.as_file())?;
			}
			Ok(scratch)
		};
		let scratch = create().map_err(|error: io::Error| refuse("", &error))?;
		self.with("copying the database", |connection| {
			let mut copy = Connection::open(scratch.path())?;
			copy_all(connection, &mut copy, self.lock_wait)?;
			// One file, without a log beside it.
			copy.pragma_update(None, "journal_mode", "delete")?;
			Ok(())
		})?;
		scratch.persist_noclobber(to).map_err(|error| refuse("", &error.error))?;
		File::open(directory)
			.and_then(|directory| directory.sync_all())
			.map_err(|error| refuse(", but is there", &error))
	}

	/// Reads a backup and sees whether it is good. Nothing is changed.
	///
	/// # Errors
	/// When it cannot be read, is no backup of ours or damaged, or was made by a newer version.
	pub fn read_backup(&self, from: &Path) -> Result<Backup, StoreError> {
		let cannot =
			|error: &dyn std::fmt::Display| problem(from, &format!("cannot be read as a backup: {error}"));
		// Beside the database: it will be as large.
		let beside = directory_of(&self.path);
		let scratch = NamedTempFile::new_in(beside).map_err(|error| cannot(&error))?;
		give_to_owner_of(beside, scratch.as_file()).map_err(|error| cannot(&error))?;
		let read = || -> Result<Vec<String>, Connecting> {
			let backup = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
			let mut copy = Connection::open(scratch.path())?;
			copy_all(&backup, &mut copy, self.lock_wait)?;
			copy.pragma_update(None, "journal_mode", "delete")?;
			let mut statement = copy.prepare("PRAGMA integrity_check")?;
			let faults = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
			drop(statement);
			if version(&copy)? == 0 {
				// Empty, or of another program.
				return Err(Connecting::Foreign);
			}
			if !is_current(&copy)? {
				migrate(&mut copy)?;
			}
			Ok(faults)
		};
		match read() {
			Ok(faults) if faults == ["ok"] => (),
			Ok(faults) => return Err(cannot(&faults.join("; ").replace('\n', " "))),
			Err(Connecting::Sqlite(error)) => return Err(cannot(&error)),
			Err(Connecting::Foreign) => return Err(problem(from, "is no backup of invites")),
			Err(error) => return Err(Self::new(from, self.lock_wait).explain_connecting(error)),
		}
		let content = self.compare(scratch.path()).map_err(|error| cannot(&error))?;
		Ok(Backup { scratch, content })
	}

	fn compare(&self, copy: &Path) -> Result<Content, rusqlite::Error> {
		let connection = Connection::open(copy)?;
		let count = |sql| connection.query_row(sql, [], |row| row.get(0));
		let present = || {
			self.with("comparing with a backup", |connection| {
				connection
					.execute("ATTACH :path AS copy", named_params! { ":path": copy.to_string_lossy() })?;
				let counts = connection.query_row(WOULD_LIVE_AGAIN, [], |row| row.get(0)).and_then(|again| {
					Ok((again, connection.query_row(WOULD_BE_GONE, [], |row| row.get(0))?))
				});
				connection.execute_batch("DETACH copy")?;
				Ok(counts?)
			})
		};
		let (would_live_again, would_be_gone) =
			if self.path.exists() { present().ok().unzip() } else { (Some(0), Some(0)) };
		Ok(Content {
			newest: connection.query_row(NEWEST, [], |row| row.get(0))?,
			pending: count(PENDING)?,
			would_live_again,
			would_be_gone,
		})
	}

	/// Puts a backup in the place of everything that is in the database. With `revoke`, no invite in it is good any more.
	///
	/// # Errors
	/// When a registration is under way, or the database cannot be written.
	pub fn restore(&self, backup: &Backup, revoke: bool, now: Timestamp) -> Result<(), StoreError> {
		let doing = "restoring a backup";
		let copy = Connection::open(backup.scratch.path()).map_err(|error| self.explain(doing, error))?;
		if revoke {
			copy.execute(REVOKE_ALL, named_params! { ":now": now, ":why": RESTORED })
				.map_err(|error| self.explain(doing, error))?;
		}
		let claims: Vec<([u8; 16], Option<Timestamp>)> = self.with(doing, |connection| {
			let mut statement = connection.prepare(CLAIMS)?;
			let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
			Ok(rows.collect::<Result<_, _>>()?)
		})?;
		let directory = boots::directory(&self.path).unwrap_or_default();
		let is_under_way = |(boot, made_at): &([u8; 16], Option<Timestamp>)| {
			match boots::life(&directory, &Nonce::from_bytes(*boot)).0 {
				Life::Alive => true,
				Life::Over => false,
				// Nobody watches here for a lease.
				Life::Unknown { .. } => made_at.is_some_and(|made_at| now.saturating_sub(made_at) <= LEASE),
			}
		};
		let under_way = claims.into_iter().filter(is_under_way).count();
		if under_way > 0 {
			return Err(problem(
				&self.path,
				&format!("is in use by {under_way} registrations that are under way: try again in a minute"),
			));
		}
		let mut present = self.open()?;
		copy_all(&copy, &mut present, self.lock_wait).map_err(|error| self.explain(doing, error))
	}
}

/// Copies everything in one transaction; waits for a lock if need be.
fn copy_all(from: &Connection, to: &mut Connection, lock_wait: Duration) -> Result<(), rusqlite::Error> {
	let copy = Copy::new(from, to)?;
	let mut attempts = lock_wait.as_millis() / RETRY_INTERVAL.as_millis();
	loop {
		match copy.step(-1)? {
			StepResult::Done => return Ok(()),
			_ if attempts > 0 => {
				attempts -= 1;
				std::thread::sleep(RETRY_INTERVAL);
			}
			_ => {
				return Err(rusqlite::Error::SqliteFailure(
					rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_BUSY),
					None,
				));
			}
		}
	}
}

fn problem(path: &Path, problem: &str) -> StoreError {
	StoreError::Unusable { problem: format!("{} {problem}", path.display()), source: None }
}
