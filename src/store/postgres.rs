//! Invites in a PostgreSQL database, for several servers that share them.
//!
//! All hosts of all servers may use one database; a process has one connection to it, shared by every store that
//! [`PostgresStore::shared`] hands out. A commit is on the database's disk before a call returns. The connection is
//! opened at the first call, never earlier: Prosody 0.12 forks with `-D` after it has loaded its modules. How long a
//! call may take, and what is tried again, is in [`connection`].
//!
//! # Locks
//! A transaction reads what a rule needs, asks the rule, and acts on the answer, at the isolation level READ COMMITTED,
//! where each statement sees what was committed before it. So that nothing is committed in between, it first locks:
//!
//! 1. the username, where one is to be claimed or bound (an advisory lock, for a name has no row),
//! 2. the inviter, where limits are to be kept (an advisory lock too),
//! 3. the invite (its row, `FOR UPDATE`), in the order of digests where there are several,
//!
//! always in this order, so that no two wait for each other. Claims are made under the locks of their invite and their
//! name, so whoever holds these sees all of them. Redeeming or releasing a claim needs no lock on the name: it makes
//! room, and whoever has just looked is told at worst that the name is busy.
//!
//! SERIALIZABLE would need no locks and be shorter. But PostgreSQL then watches whole pages, and the table of claims is
//! one page: whatever is redeemed at the same time is in each other's way. Measured: eight connections that claim and
//! redeem 300 invites each, none of them shared, take 2.1 s with the locks and do nothing twice; with SERIALIZABLE
//! they take 12 s and do 11,600 transactions again.
//!
//! # A commit that nobody answered
//! A transaction that changes something writes, last of all, the number of the attempt into a row of this server's: its
//! mark. If the connection breaks in the commit, the row is read on the next one, and says whether the commit took place:
//! it is data of the same transaction, so nothing can make it say otherwise. (`txid_status` does not do: after a crash
//! PostgreSQL gives the number of our lost transaction to somebody else, and answers that it was committed.) Who reads
//! waits for the lost transaction to end, by a lock that each has. Where the deadline leaves no time to ask, the call
//! fails, and what it may have left bears the caller's nonce.
//!
//! # Who lives
//! A server that makes claims holds a lock for as long as its session lasts: an advisory one of its own name, shared,
//! because after a loss its old session may still stand when it takes the lock in its new one. Whoever looks tries for the
//! same lock, exclusively and for a moment: while it is held, the server lives. (What the operating system is told to do
//! about connections whose other end is gone is in `session.sql`.) That the engine really locks is tried once by each
//! process, with a second session.
//!
//! # Conversations
//! What is changed is sent when something is asked next, and at last with the mark and the commit: claiming an invite takes
//! four conversations with the database, and redeeming it three, or four if it has an inviter.

mod address;
mod check;
mod connection;
mod message;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;

use self::address::Address;
pub use self::address::AddressError;
use self::connection::{Connection, Trouble, Wire};
use self::message::Message;
use super::sql::{self, Each, Engine, Locked, Param, SqlRows};
use super::{Lock, Rows, Store, StoreError, TxError, Work};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::redemption::Life;
use crate::token::Nonce;

/// The stores that [`PostgresStore::shared`] has handed out, by connection string.
static STORES: LazyLock<Mutex<HashMap<String, Arc<PostgresStore>>>> = LazyLock::new(Mutex::default);

const LOCK: &str = "SELECT pg_advisory_xact_lock(?1)";

const MARK: &str = "INSERT INTO outcome (writer, attempt) VALUES (?1, ?2) \
	ON CONFLICT (writer) DO UPDATE SET attempt = ?2, at = now()";

const MARKED: &str = "SELECT attempt FROM outcome WHERE writer = ?1";

/// Those of servers that have stopped, or have changed nothing for long: these mark the next change again.
const FORGET_MARKS: &str = "DELETE FROM outcome WHERE at < now() - INTERVAL '1 day'";

/// A database, connected to when it is first needed.
#[derive(Debug)]
pub struct PostgresStore {
	connection: Connection,
	/// Names this store on its marks. Drawn at the first change, so not shared with a parent that forked.
	writer: OnceLock<Nonce>,
	/// The last attempt to change something.
	attempt: AtomicI64,
}

impl PostgresStore {
	/// The one store of this process for a connection string, which is a URL; what an empty one leaves out is in the
	/// environment, as for PostgreSQL's own tools. The first call for it says how long a call may take.
	///
	/// # Errors
	/// When the string is not understood, or asks for what is not offered.
	pub fn shared(url: &str, deadline: Duration) -> Result<Arc<Self>, AddressError> {
		let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
		if let Some(store) = stores.get(url) {
			return Ok(Arc::clone(store));
		}
		let store = Arc::new(Self::new(url, deadline)?);
		stores.insert(url.to_owned(), Arc::clone(&store));
		Ok(store)
	}

	/// Closes the connections that this process has open; the next call opens another. For the moment before a fork and
	/// for the end.
	pub fn close_shared() {
		for store in STORES.lock().unwrap_or_else(PoisonError::into_inner).values() {
			store.connection.close();
		}
	}

	/// A store with a connection of its own.
	///
	/// # Errors
	/// As of [`PostgresStore::shared`].
	pub fn new(url: &str, deadline: Duration) -> Result<Self, AddressError> {
		let address = Address::parse(url, |name| std::env::var(name).ok())?;
		let connection = Connection::new(address, deadline);
		Ok(Self { connection, writer: OnceLock::new(), attempt: AtomicI64::new(0) })
	}

	fn writer(&self) -> Result<&Nonce, StoreError> {
		if let Some(writer) = self.writer.get() {
			return Ok(writer);
		}
		let drawn = Nonce::generate().map_err(|source| StoreError::Unavailable {
			problem: "a change cannot be marked".to_owned(),
			source: source.into(),
		})?;
		Ok(self.writer.get_or_init(|| drawn))
	}
}

impl Store for PostgresStore {
	fn look(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.connection.call(doing, |wire| Ok(work(&mut rows(wire, host, Mode::Alone))?))
	}

	fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.connection.call(doing, |wire| {
			let mut rows = rows(wire, host, Mode::Reading);
			rows.engine.begin("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", &[])?;
			let worked = work(&mut rows);
			rows.engine.end(worked)
		})
	}

	fn write(
		&self,
		doing: &'static str,
		host: &str,
		locks: &[Lock<'_>],
		work: Work<'_>,
	) -> Result<(), StoreError> {
		let writer = self.writer()?;
		let attempt = self.attempt.fetch_add(1, Ordering::Relaxed) + 1;
		// Who asks what became of an attempt waits for its end by this one.
		let own = key(&[b"writer", writer.as_bytes()]);
		let mut keys = vec![own];
		let mut locks = locks.to_vec();
		locks.sort_unstable();
		keys.extend(locks.into_iter().map(|lock| key_of(lock, host)));
		let mut is_in_doubt = false;
		self.connection.call(doing, |wire| {
			if is_in_doubt && is_marked(wire, own, writer, attempt)? {
				// What the work has left is right.
				return Ok(());
			}
			is_in_doubt = false;
			let mut rows = rows(wire, host, Mode::Writing);
			rows.engine.begin("BEGIN ISOLATION LEVEL READ COMMITTED", &keys)?;
			let worked = work(&mut rows);
			if worked.is_err() || !rows.engine.has_changed {
				return rows.engine.end(worked);
			}
			if attempt == 1 {
				rows.engine.change(FORGET_MARKS, &[])?;
			}
			rows.engine.change(MARK, &[writer.into(), attempt.into()])?;
			rows.engine.end(Ok(())).inspect_err(|error| is_in_doubt = error.is_lost())
		})
	}

	fn insert_one(&self, doing: &'static str, invite: &Invite) -> Result<bool, StoreError> {
		let mut attempts = 0;
		self.connection.call(doing, |wire| {
			attempts += 1;
			// One statement is a transaction of its own, and the digest was drawn at random.
			let mut rows = rows(wire, &invite.host, Mode::Alone);
			let is_new = rows.insert(&[invite])? == [true];
			Ok(is_new || attempts > 1 && rows.invite(&invite.digest)?.as_ref() == Some(invite))
		})
	}

	fn renew(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		// It may be done twice.
		self.look(doing, host, work)
	}

	fn hold(&self, boot: &Nonce) -> Result<(), StoreError> {
		self.connection.hold(boot_key(boot))
	}

	fn health(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.findings(host, now)
	}
}

/// Whether an attempt took place whose commit nobody answered.
fn is_marked(wire: &mut Wire<'_>, own: i64, writer: &Nonce, attempt: i64) -> Result<bool, Trouble> {
	let lock = wire.statement(LOCK, Locked::Read)?;
	let marked = wire.statement(MARKED, Locked::Read)?;
	let answers = wire.exchange(vec![
		Message::Text("BEGIN"),
		Message::prepared(lock, &[own.into()]),
		Message::prepared(marked, &[writer.into()]),
		Message::Text("COMMIT"),
	])?;
	match answers.get(2).and_then(|rows| rows.first()) {
		Some(row) => Ok(row.try_get::<_, i64>(0)? == attempt),
		None => Ok(false),
	}
}

fn key_of(lock: Lock<'_>, host: &str) -> i64 {
	match lock {
		Lock::Name(name) => key(&[host.as_bytes(), name.as_bytes()]),
		Lock::Inviter(name) => key(&[host.as_bytes(), name.as_bytes(), b"inviter"]),
	}
}

/// Of the lock by which a process shows that it lives.
fn boot_key(boot: &Nonce) -> i64 {
	key(&[b"boot", boot.as_bytes()])
}

/// Two that happen to have one key wait for each other, and that is all.
fn key(words: &[&[u8]]) -> i64 {
	let hash = Sha256::digest(words.join(&0));
	hash.iter().take(8).fold(0, |key, byte| key << 8 | i64::from(*byte))
}

const fn rows<'a, 'w>(wire: &'a mut Wire<'w>, host: &'a str, mode: Mode) -> SqlRows<'a, Postgres<'a, 'w>> {
	SqlRows { engine: Postgres { wire, mode, waiting: Vec::new(), is_open: false, has_changed: false }, host }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
	/// Each statement by itself.
	Alone,
	/// In a transaction that reads.
	Reading,
	/// In one that locks what it reads.
	Writing,
}

struct Postgres<'a, 'w> {
	wire: &'a mut Wire<'w>,
	mode: Mode,
	/// What goes out with the next question.
	waiting: Vec<Message>,
	/// Whether the transaction has begun in the database.
	is_open: bool,
	has_changed: bool,
}

impl Postgres<'_, '_> {
	/// Begins a transaction that takes locks first.
	fn begin(&mut self, text: &'static str, keys: &[i64]) -> Result<(), TxError> {
		self.waiting.push(Message::Text(text));
		for key in keys {
			let lock = self.wire.statement(LOCK, Locked::Read)?;
			self.waiting.push(Message::prepared(lock, &[(*key).into()]));
		}
		Ok(())
	}

	/// Ends the transaction as the work ended, if it has begun.
	fn end(&mut self, worked: Result<(), TxError>) -> Result<(), Trouble> {
		if let Err(error) = worked {
			if self.is_open {
				// Where even this cannot be said, the connection is of no use any more.
				self.wire.exchange(vec![Message::Text("ROLLBACK")])?;
			}
			return Err(error.into());
		}
		if !self.is_open && !self.has_changed {
			return Ok(());
		}
		if !self.is_open {
			// The locks must be there before anybody can be in doubt.
			self.send()?;
		}
		self.waiting.push(Message::Text("COMMIT"));
		self.send().map(drop)
	}

	fn send(&mut self) -> Result<Vec<Vec<Row>>, Trouble> {
		self.is_open = self.mode != Mode::Alone;
		self.wire.exchange(std::mem::take(&mut self.waiting))
	}
}

impl Engine for Postgres<'_, '_> {
	const BOUND: &'static str = sql::BOUND_IN_ORDER;

	/// What has ended and what is about to be noted as expired, each from its index.
	const HISTORY_PART: &'static str = concat!(
		"(",
		sql::select!(
			", ended_at AS over_at",
			"WHERE host = ?1 AND ended_at IS NOT NULL AND (ended_at, digest) < (?2, ?3) \
			 ORDER BY ended_at DESC, digest DESC LIMIT ?4"
		),
		") UNION ALL (",
		sql::select!(
			", expires AS over_at",
			"WHERE host = ?1 AND ended_at IS NULL AND expires < ?5 AND (expires, digest) < (?2, ?3) \
			 ORDER BY expires DESC, digest DESC LIMIT ?4"
		),
		") ORDER BY over_at DESC, digest DESC LIMIT ?4"
	);

	fn query(
		&mut self,
		text: &'static str,
		locked: Locked,
		lists: &[&[Param<'_>]],
		each: Each<'_>,
	) -> Result<(), TxError> {
		if lists.is_empty() {
			return Ok(());
		}
		let locked = if self.mode == Mode::Writing { locked } else { Locked::Read };
		let statement = self.wire.statement(text, locked)?;
		self.has_changed |= !text.starts_with("SELECT") && !text.starts_with('(');
		let first = self.waiting.len();
		self.waiting.extend(lists.iter().map(|params| Message::prepared(statement.clone(), params)));
		for (list, rows) in self.send()?.iter().skip(first).enumerate() {
			for row in rows {
				each(list, row)?;
			}
		}
		Ok(())
	}

	fn change(&mut self, text: &'static str, params: &[Param<'_>]) -> Result<(), TxError> {
		let statement = self.wire.statement(text, Locked::Read)?;
		self.has_changed = true;
		self.waiting.push(Message::prepared(statement, params));
		Ok(())
	}

	/// That a lock is free proves nothing: a server loses it with its connection, and a database all of them when it
	/// crashes.
	fn life(&mut self, boot: &Nonce) -> Result<Life, TxError> {
		let mut is_free = false;
		let key = boot_key(boot);
		self.query(connection::IS_FREE, Locked::Read, &[&[key.into()]], &mut |_, row| {
			is_free = row.flag(0)?;
			Ok(())
		})?;
		let connection = self.wire.number();
		Ok(if is_free { Life::Unknown { connection } } else { Life::Alive })
	}
}
