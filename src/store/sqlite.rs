//! Invites in an embedded SQLite database: the default.
//!
//! One file for all hosts of a server, one connection to it per process, shared by every [`SqliteStore`] that
//! [`SqliteStore::shared`] hands out. Several processes may use the file at once (the server and
//! prosodyctl). A commit is on the disk before a call returns.
//!
//! The connection is opened at the first call, never earlier: Prosody 0.12 forks with `-D` after it has loaded
//! its modules, and a connection that crosses a fork loses committed rows.

pub mod backup;
mod boots;
mod check;
mod checkpoint;
mod connection;
mod files;

use std::fs::File;
use std::path::Path;
use std::sync::PoisonError;

use rusqlite::ffi::SQLITE_CONSTRAINT_PRIMARYKEY;
use rusqlite::types::{ToSqlOutput, Value, ValueRef};
use rusqlite::{Connection, Row, ToSql, params_from_iter};

use self::connection::Needs;
pub use self::connection::SqliteStore;
use super::sql::{self, Columns, Each, Encoded, Engine, Locked, Param, SqlRows};
pub use super::sql::{
	BOUND, BROUGHT, CLAIM, CLAIMS, CREATE, FIND, LINEAGE, OPEN, REDEMPTION, TAKE_CLAIM, UPDATE,
};
use super::{Lock, Store, StoreError, TxError, Work};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::redemption::Life;
use crate::token::Nonce;

impl Store for SqliteStore {
	/// An invite that was found was stored, whatever lies under the file's name by now: who changes something because of it
	/// will see that, and so does the tidying once a minute. That there is none, or that it cannot be read, says nothing if
	/// the file was replaced.
	fn look(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.run(doing, Needs::Reading, |opened| {
			let mut rows = rows(opened.connection(), host, &self.path);
			let looked = work(&mut rows);
			if looked.is_err() || !rows.engine.has_found {
				opened.check_files()?;
			}
			Ok(looked?)
		})
	}

	fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.with(doing, |connection| {
			connection.prepare_cached("BEGIN")?.execute(())?;
			let _undone = Undone(connection);
			Ok(work(&mut rows(connection, host, &self.path))?)
		})
	}

	fn write(
		&self,
		doing: &'static str,
		host: &str,
		_: &[Lock<'_>],
		work: Work<'_>,
	) -> Result<(), StoreError> {
		self.change(doing, |connection| {
			connection.prepare_cached("BEGIN IMMEDIATE")?.execute(())?;
			let _undone = Undone(connection);
			// What proves that a process is over is kept until the commit.
			let mut rows = rows(connection, host, &self.path);
			work(&mut rows)?;
			connection.prepare_cached("COMMIT")?.execute(())?;
			Ok(())
		})
	}

	fn insert_one(&self, doing: &'static str, invite: &Invite) -> Result<bool, StoreError> {
		let is_known = |error: &rusqlite::Error| {
			error.sqlite_error().is_some_and(|error| error.extended_code == SQLITE_CONSTRAINT_PRIMARYKEY)
		};
		self.change(doing, |connection| {
			let row = Encoded::of_new(invite)?;
			match connection.prepare_cached(sql::CREATE)?.execute(params_from_iter(row.all())) {
				Err(error) if is_known(&error) => Ok(false),
				done => Ok(done.map(|_| true)?),
			}
		})
	}

	/// By the lock of a file: [`boots`]. Where there is no such lock to be had, claims are made all the same.
	fn hold(&self, boot: &Nonce) -> Result<(), StoreError> {
		let Ok(directory) = boots::directory(&self.path) else { return Ok(()) };
		let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
		if !held.as_ref().is_some_and(|held| held.is_of(&directory, boot)) {
			*held = boots::hold(&directory, boot).ok();
			self.with("looking for attempts under way", |connection| {
				let mut statement = connection.prepare("SELECT 1 FROM claim WHERE boot = ?1")?;
				// What is left lying about harms nobody.
				drop(boots::sweep(&directory, |boot| statement.exists([boot.as_bytes()]).unwrap_or(true)));
				Ok(())
			})?;
		}
		Ok(())
	}

	fn health(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.findings(host, now)
	}
}

/// Rolls a transaction back that was not committed. rusqlite's own transactions would have their BEGIN and COMMIT compiled
/// anew each time.
struct Undone<'a>(&'a Connection);

impl Drop for Undone<'_> {
	fn drop(&mut self) {
		if !self.0.is_autocommit() {
			// SQLite does the same when the connection is closed, if this fails.
			let _ = self.0.execute_batch("ROLLBACK");
		}
	}
}

const fn rows<'a>(connection: &'a Connection, host: &'a str, path: &'a Path) -> SqlRows<'a, Sqlite<'a>> {
	SqlRows { engine: Sqlite { connection, path, has_found: false, proofs: Vec::new() }, host }
}

struct Sqlite<'a> {
	connection: &'a Connection,
	/// Of the database.
	path: &'a Path,
	/// Whether an invite was found by its digest.
	has_found: bool,
	/// Locked files of processes that are over.
	proofs: Vec<File>,
}

impl Engine for Sqlite<'_> {
	const BOUND: &'static str = sql::BOUND;

	/// What has ended and what is about to be noted as expired, merged from two indexes.
	const HISTORY_PART: &'static str = concat!(
		sql::select!(
			", ended_at AS over_at",
			"WHERE host = ?1 AND ended_at IS NOT NULL AND (ended_at, digest) < (?2, ?3)"
		),
		" UNION ALL ",
		sql::select!(
			", expires AS over_at",
			"WHERE host = ?1 AND ended_at IS NULL AND expires < ?5 AND (expires, digest) < (?2, ?3)"
		),
		" ORDER BY over_at DESC, digest DESC LIMIT ?4"
	);

	fn query(
		&mut self,
		text: &'static str,
		_: Locked,
		lists: &[&[Param<'_>]],
		each: Each<'_>,
	) -> Result<(), TxError> {
		let mut statement = self.connection.prepare_cached(text).map_err(engine)?;
		let mut has_any = false;
		for (list, params) in lists.iter().enumerate() {
			let mut rows = statement.query(params_from_iter(*params)).map_err(engine)?;
			while let Some(row) = rows.next().map_err(engine)? {
				has_any = true;
				each(list, row)?;
			}
		}
		self.has_found |= has_any && text == sql::FIND;
		Ok(())
	}

	fn change(&mut self, text: &'static str, params: &[Param<'_>]) -> Result<(), TxError> {
		let mut statement = self.connection.prepare_cached(text).map_err(engine)?;
		statement.execute(params_from_iter(params)).map_err(engine)?;
		Ok(())
	}

	fn life(&mut self, boot: &Nonce) -> Result<Life, TxError> {
		let directory = boots::directory(self.path).unwrap_or_default();
		let (life, proof) = boots::life(&directory, boot);
		self.proofs.extend(proof);
		Ok(life)
	}
}

fn engine(error: rusqlite::Error) -> TxError {
	TxError::Engine(Box::new(error))
}

impl ToSql for Param<'_> {
	fn to_sql(&self) -> Result<ToSqlOutput<'_>, rusqlite::Error> {
		Ok(match *self {
			Self::Null => ToSqlOutput::Owned(Value::Null),
			Self::Text(text) => ToSqlOutput::Borrowed(ValueRef::Text(text.as_bytes())),
			Self::Bytes(bytes) => ToSqlOutput::Borrowed(ValueRef::Blob(bytes)),
			Self::Number(number) => ToSqlOutput::Owned(Value::Integer(number)),
			Self::Flag(flag) => ToSqlOutput::Owned(Value::Integer(flag.into())),
		})
	}
}

/// What SQLite has in a column of a row, if that is of the type that it must be.
fn column<'a, T>(
	row: &'a Row<'_>,
	column: usize,
	read: impl FnOnce(ValueRef<'a>) -> Result<T, rusqlite::types::FromSqlError>,
) -> Result<T, TxError> {
	let value = row.get_ref(column).map_err(engine)?;
	read(value).map_err(|error| {
		engine(rusqlite::Error::FromSqlConversionFailure(column, value.data_type(), error.into()))
	})
}

impl Columns for Row<'_> {
	fn text(&self, at: usize) -> Result<Option<&str>, TxError> {
		column(self, at, |value| value.as_str_or_null())
	}

	fn number(&self, at: usize) -> Result<Option<i64>, TxError> {
		column(self, at, |value| value.as_i64_or_null())
	}

	fn bytes(&self, at: usize) -> Result<&[u8], TxError> {
		column(self, at, |value| value.as_blob())
	}

	fn flag(&self, at: usize) -> Result<bool, TxError> {
		column(self, at, |value| value.as_i64().map(|flag| flag != 0))
	}
}

#[cfg(test)]
mod tests;
