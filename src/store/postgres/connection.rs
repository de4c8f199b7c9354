//! The connection to PostgreSQL, how long anybody waits for it, and what is tried again.
//!
//! Prosody serves nobody else while it waits, so every call has a **deadline** that is kept here, in this process: a
//! server that is stopped or cannot be reached keeps no timeout of its own. Whoever runs into it closes the connection, and
//! nobody waits for the database again before a pause is over ([`Breaker`]).
//!
//! A connection that breaks is replaced within the same call, which then does its work again. Where it broke while a
//! commit was under way nobody knows whether it took place: whoever commits finds that out.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::future::{Either, select};
use rustls::CertificateError;
use thiserror::Error;
use tokio::runtime::{Builder, Runtime};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, Row, Statement};

use super::address::Address;
use super::message::{Message, exchange};
use crate::clock::Stopwatch;
use crate::signals;
use crate::store::breaker::Breaker;
use crate::store::sql::{Locked, POSTGRESQL_MIGRATIONS as MIGRATIONS, Param};
use crate::store::{StoreError, TxError};
use crate::token::Nonce;

const SESSION: &str = include_str!("session.sql");

/// Held by whoever looks for migrations to make (an advisory lock: there is no table yet).
const MIGRATION_LOCK: i64 = i64::from_be_bytes(*b"PInvites");

/// Asked of the catalog's tables: `to_regclass` may still say what it said before somebody else's migration.
const SCHEMA: &str = "SELECT FROM pg_namespace WHERE nspname = 'prosody_invites'";

const MIGRATED: &str =
	"SELECT FROM pg_tables WHERE schemaname = 'prosody_invites' AND tablename = 'migration'";

const VERSION: &str = "SELECT coalesce(max(version), 0) FROM prosody_invites.migration";

/// Whether nobody holds a lock of this key. Two that ask in one moment may each be told that somebody does.
pub(super) const IS_FREE: &str =
	"SELECT CASE WHEN pg_try_advisory_lock(?1) THEN pg_advisory_unlock(?1) ELSE false END";

const HOLD: &str = "SELECT pg_advisory_lock_shared(?1)";

const LET_GO: &str = "SELECT pg_advisory_unlock_shared(?1)";

/// How long a server may take to notice that a session has ended.
const END_OF_SESSION: Duration = Duration::from_millis(250);

/// Connections that may break in one call.
const LOSSES: u32 = 3;

/// A database, connected to when it is first needed.
#[derive(Debug)]
pub(super) struct Connection {
	address: Address,
	deadline: Duration,
	state: Mutex<State>,
}

#[derive(Default)]
struct State {
	/// What drives the connection, and the process that made it: not to be used by a child of that one.
	runtime: Option<(Runtime, u32)>,
	link: Option<Link>,
	away: Breaker,
	/// Key of the lock that every session holds from its beginning.
	held: Option<i64>,
	/// Connections that were made.
	connections: u64,
	/// Whether it was seen that the engine locks.
	has_locks: bool,
}

struct Link {
	client: Client,
	/// What is compiled there.
	statements: HashMap<(&'static str, Locked), Statement>,
	/// Carries the bytes. To be polled beside whatever waits for an answer; ends when the connection does.
	traffic: Pin<Box<dyn Future<Output = ()> + Send>>,
	/// Which of this process's connections it is.
	number: u64,
	/// Key of the lock that it holds.
	held: Option<i64>,
}

/// The connection, for as long as a call may take.
pub(super) struct Wire<'a> {
	runtime: &'a Runtime,
	link: &'a mut Link,
	since: Stopwatch,
	deadline: Duration,
}

/// How work on the connection failed.
#[derive(Debug, Error)]
pub(super) enum Trouble {
	#[error(transparent)]
	Postgres(#[from] Error),
	#[error("no answer came in time")]
	TooLate,
	#[error(transparent)]
	Store(#[from] StoreError),
}

impl Trouble {
	/// Whether the connection is over, so that nobody knows what became of what was sent last.
	pub(super) fn is_lost(&self) -> bool {
		matches!(self, Self::Postgres(error) if is_lost(error))
	}
}

impl From<Trouble> for TxError {
	fn from(trouble: Trouble) -> Self {
		match trouble {
			Trouble::Store(error) => Self::Store(error),
			trouble => Self::Engine(Box::new(trouble)),
		}
	}
}

impl From<TxError> for Trouble {
	fn from(error: TxError) -> Self {
		error.engine("reading the database").unwrap_or_else(Self::Store)
	}
}

/// How all attempts of a call failed.
enum Failure {
	/// The database answers.
	Refused(StoreError),
	/// It does not, or not so that it could be used.
	Away(StoreError),
}

impl Connection {
	pub(super) fn new(address: Address, deadline: Duration) -> Self {
		Self { address, deadline, state: Mutex::default() }
	}

	pub(super) const fn address(&self) -> &Address {
		&self.address
	}

	fn lock(&self) -> MutexGuard<'_, State> {
		// A panic in the middle of a call has taken the connection with it.
		self.state.lock().unwrap_or_else(PoisonError::into_inner)
	}

	/// Closes the connection, if this process has it; the next call opens another.
	pub(super) fn close(&self) {
		let mut state = self.lock();
		if state.runtime.as_ref().is_some_and(|(_, process)| *process == std::process::id()) {
			state.link = None;
			// A thread that still looks up a host name is not waited for.
			if let Some((runtime, _)) = state.runtime.take() {
				runtime.shutdown_background();
			}
		}
	}

	/// Holds a lock, here and in every session to come, in the place of the one that was held before.
	pub(super) fn hold(&self, key: i64) -> Result<(), StoreError> {
		self.lock().held = Some(key);
		self.call("showing that this server runs", |wire| wire.hold(key))
	}

	/// Runs `work`: again, if the connection breaks, or somebody else was in the way.
	pub(super) fn call<T>(
		&self,
		doing: &str,
		work: impl FnMut(&mut Wire<'_>) -> Result<T, Trouble>,
	) -> Result<T, StoreError> {
		let mut state = self.lock();
		let State { runtime, link, away, held, connections, has_locks } = &mut *state;
		let mut session = Session { held: *held, connections, has_locks };
		let (runtime, process) = match runtime {
			Some(runtime) => runtime,
			none => {
				let runtime = Builder::new_current_thread().enable_all().build().map_err(|source| {
					let problem = "PostgreSQL cannot be used".to_owned();
					StoreError::Unavailable { problem, source: source.into() }
				})?;
				none.insert((runtime, std::process::id()))
			}
		};
		if *process != std::process::id() {
			return Err(self.unusable("was connected to before this process was forked: restart Prosody"));
		}
		away.check()?;
		// Put back only where it is known what was done on it: it may be in the middle of a transaction.
		let mut used = link.take();
		let done = self.attempts(doing, runtime, &mut used, &mut session, work);
		if let Err(Failure::Away(error)) = &done {
			away.trip(error);
		} else {
			*link = used;
			away.reset();
		}
		done.map_err(|(Failure::Refused(error) | Failure::Away(error))| error)
	}

	fn attempts<T>(
		&self,
		doing: &str,
		runtime: &Runtime,
		link: &mut Option<Link>,
		session: &mut Session<'_>,
		mut work: impl FnMut(&mut Wire<'_>) -> Result<T, Trouble>,
	) -> Result<T, Failure> {
		let (since, deadline) = (Stopwatch::start(), self.deadline);
		let too_late = || {
			let deadline = deadline.as_millis();
			Failure::Away(
				self.unusable(&format!("did not answer within {deadline} ms; this was while {doing}")),
			)
		};
		let mut losses = 0;
		loop {
			let current = match &mut *link {
				Some(current) => current,
				none => {
					// It starts a thread to look a host's name up.
					let connected = runtime.block_on(signals::blocked_in(async {
						tokio::time::timeout(deadline.saturating_sub(since.elapsed()), self.connect(session))
							.await
					}));
					none.insert(connected.map_err(|_| too_late())?.map_err(Failure::Away)?)
				}
			};
			let error = match work(&mut Wire { runtime, link: current, since, deadline }) {
				Ok(done) => return Ok(done),
				Err(Trouble::Store(error)) => return Err(Failure::Refused(error)),
				Err(Trouble::TooLate) => return Err(too_late()),
				Err(Trouble::Postgres(error)) => error,
			};
			if is_lost(&error) {
				*link = None;
				losses += 1;
				if losses == LOSSES {
					return Err(Failure::Away(self.unavailable(&format!("was lost while {doing}"), error)));
				}
			} else if !is_conflict(&error) {
				if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
					// Whatever it is, a new connection may not have it.
					*link = None;
				}
				return Err(Failure::Refused(self.explain(doing, error)));
			}
		}
	}

	async fn connect(&self, session: &mut Session<'_>) -> Result<Link, StoreError> {
		let tls =
			self.address.tls().map_err(|error| self.unusable(&format!("cannot be trusted: {error}")))?;
		let (client, connection) =
			self.address.config().connect(tls).await.map_err(|error| self.explain_connecting(error))?;
		let encoding = connection.parameter("server_encoding").map(str::to_owned);
		*session.connections += 1;
		let mut link = Link {
			client,
			statements: HashMap::new(),
			// How it ended is told to whoever waits for an answer.
			traffic: Box::pin(async { drop(connection.await) }),
			number: *session.connections,
			held: session.held,
		};
		if let Some(encoding) = encoding.filter(|encoding| encoding != "UTF8") {
			let problem = format!("has the encoding {encoding}: create it anew with ENCODING 'UTF8'");
			return Err(self.unusable(&problem));
		}
		let milliseconds = self.deadline.as_millis();
		let settings = SESSION
			.replace("$deadline", &milliseconds.to_string())
			.replace("$lock_wait", &(milliseconds * 3 / 4).to_string());
		// Before anything else is done, for others look at it.
		let settings = match session.held {
			Some(key) => settings + &HOLD.replace("?1", &key.to_string()),
			None => settings,
		};
		let prepared = link
			.drive(async |client| {
				client.batch_execute(&settings).await?;
				self.migrate(client).await
			})
			.await;
		let tried = match prepared {
			Ok(()) if !*session.has_locks => self.try_locks(&mut link).await,
			prepared => prepared.map(|()| *session.has_locks),
		};
		match tried {
			Ok(has_locks) => {
				*session.has_locks = has_locks;
				Ok(link)
			}
			Err(Trouble::Postgres(error)) => Err(self.explain("connecting", error)),
			Err(Trouble::Store(error)) => Err(error),
			Err(Trouble::TooLate) => Err(self.unusable("did not answer in time")),
		}
	}

	/// Sees whether a lock that one session holds is refused to another, and free when that one has ended. Some engines that
	/// speak PostgreSQL's language only pretend, and a pool that hands sessions around gives them to anybody. False where
	/// there is no second session to be had now.
	async fn try_locks(&self, link: &mut Link) -> Result<bool, Trouble> {
		let tls =
			self.address.tls().map_err(|error| self.unusable(&format!("cannot be trusted: {error}")))?;
		let Ok((client, connection)) = self.address.config().connect(tls).await else { return Ok(false) };
		let mut other = Link {
			client,
			statements: HashMap::new(),
			traffic: Box::pin(async { drop(connection.await) }),
			number: 0,
			held: None,
		};
		let drawn = Nonce::generate().map_err(|source| StoreError::Unavailable {
			problem: "no lock can be tried".to_owned(),
			source: source.into(),
		})?;
		let key = super::boot_key(&drawn);
		let hold = of_postgresql(HOLD, Locked::Read);
		other.drive(async |client| client.query(&hold, &[&key]).await).await?;
		let is_refused = !link.is_free(key).await?;
		let Link { client, traffic, .. } = other;
		drop(client);
		traffic.await;
		let ended = Stopwatch::start();
		let mut is_free = link.is_free(key).await?;
		while !is_free && ended.elapsed() < END_OF_SESSION {
			tokio::time::sleep(Duration::from_millis(1)).await;
			is_free = link.is_free(key).await?;
		}
		if is_refused && is_free {
			return Ok(true);
		}
		let problem = "does not keep advisory locks of sessions apart, without which two servers use one invite: use \
			PostgreSQL itself, and no pool that hands sessions around (PgBouncer: pool_mode = session)";
		Err(self.unusable(problem).into())
	}

	/// Brings the database to our newest schema: of two servers that start at once, the second waits for the first and
	/// then finds nothing to do.
	async fn migrate(&self, client: &Client) -> Result<(), Trouble> {
		if self.version(client).await? == MIGRATIONS.len() {
			return Ok(());
		}
		client.batch_execute("BEGIN").await?;
		client.execute("SELECT pg_advisory_xact_lock($1)", &[&MIGRATION_LOCK]).await?;
		let seen = self.version(client).await?;
		for (index, migration) in MIGRATIONS.iter().enumerate().skip(seen) {
			if index == 0 {
				// It may have been made by somebody who may make schemas, for a user who may not.
				if client.query_opt(SCHEMA, &[]).await?.is_none() {
					client.batch_execute("CREATE SCHEMA prosody_invites").await?;
				}
				client.batch_execute("CREATE TABLE migration (version INTEGER PRIMARY KEY)").await?;
			}
			client.batch_execute(migration).await?;
			let version = i32::try_from(index + 1).unwrap_or(i32::MAX);
			client.execute("INSERT INTO migration (version) VALUES ($1)", &[&version]).await?;
		}
		Ok(client.batch_execute("COMMIT").await?)
	}

	async fn version(&self, client: &Client) -> Result<usize, Trouble> {
		if client.query_opt(MIGRATED, &[]).await?.is_none() {
			return Ok(0);
		}
		let found: i32 = client.query_one(VERSION, &[]).await?.try_get(0)?;
		match usize::try_from(found) {
			Ok(found) if found <= MIGRATIONS.len() => Ok(found),
			_ => {
				let problem = format!(
					"has schema {found}, this version of mod_invites knows schemas up to {}: install the newer version \
					again",
					MIGRATIONS.len()
				);
				Err(self.unusable(&problem).into())
			}
		}
	}

	/// Says what an operator can do about what PostgreSQL reports.
	fn explain(&self, doing: &str, error: Error) -> StoreError {
		let advice = match error.code() {
			Some(&SqlState::LOCK_NOT_AVAILABLE) => "is locked by somebody else; try again",
			Some(&SqlState::QUERY_CANCELED) => "was too slow",
			Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => "cannot be written: is it a standby?",
			Some(&SqlState::DISK_FULL) => "has no room on its disk",
			Some(&SqlState::INSUFFICIENT_PRIVILEGE) => {
				"does not let its user work: make that the owner of the database, or of a schema prosody_invites in it"
			}
			_ => return self.unavailable(&format!("failed while {doing}"), error),
		};
		self.unavailable(&format!("{advice}; this was while {doing}"), error)
	}

	fn explain_connecting(&self, error: Error) -> StoreError {
		let certificate = certificate_error(&error);
		let problem = match (error.code(), certificate) {
			(_, Some(CertificateError::UnknownIssuer)) => {
				"has a certificate of an unknown authority: if it is yours, name its certificate as sslrootcert=FILE"
			}
			(
				_,
				Some(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. }),
			) => "has a certificate for another host: connect to a name that is in it",
			(_, Some(_)) => "has a certificate that is not valid",
			(Some(&(SqlState::INVALID_PASSWORD | SqlState::INVALID_AUTHORIZATION_SPECIFICATION)), _) => {
				"does not let its user in: look at the user and the password in invite_postgresql, and at pg_hba.conf"
			}
			(Some(&SqlState::INVALID_CATALOG_NAME), _) => "does not exist: create it",
			_ => "cannot be reached",
		};
		self.unavailable(problem, error)
	}

	fn unavailable(&self, problem: &str, error: Error) -> StoreError {
		StoreError::Unavailable {
			problem: format!("the PostgreSQL database {} {problem}", self.address),
			source: Box::new(Said(error)),
		}
	}

	fn unusable(&self, problem: &str) -> StoreError {
		let problem = format!("the PostgreSQL database {} {problem}", self.address);
		StoreError::Unusable { problem, source: None }
	}
}

impl fmt::Debug for State {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		f.debug_struct("State")
			.field("is_connected", &self.link.is_some())
			.field("away", &self.away)
			.finish_non_exhaustive()
	}
}

/// What a new connection has to know, and what is known by it.
struct Session<'a> {
	held: Option<i64>,
	connections: &'a mut u64,
	has_locks: &'a mut bool,
}

impl Link {
	async fn is_free(&mut self, key: i64) -> Result<bool, Error> {
		let is_free = of_postgresql(IS_FREE, Locked::Read);
		self.drive(async |client| client.query_one(&is_free, &[&key]).await?.try_get(0)).await
	}

	async fn drive<T>(&mut self, work: impl AsyncFnOnce(&Client) -> T) -> T {
		let work = pin!(work(&self.client));
		match select(work, &mut self.traffic).await {
			Either::Left((done, _)) => done,
			// No answer comes any more, and the work is told so.
			Either::Right(((), work)) => work.await,
		}
	}
}

impl Wire<'_> {
	fn wait<T>(&mut self, work: impl AsyncFnOnce(&Client) -> Result<T, Error>) -> Result<T, Trouble> {
		let left = self.deadline.saturating_sub(self.since.elapsed());
		let link = &mut *self.link;
		match self.runtime.block_on(async { tokio::time::timeout(left, link.drive(work)).await }) {
			Ok(done) => Ok(done?),
			Err(_) => Err(Trouble::TooLate),
		}
	}

	/// A statement, compiled once.
	pub(super) fn statement(&mut self, text: &'static str, locked: Locked) -> Result<Statement, Trouble> {
		if let Some(statement) = self.link.statements.get(&(text, locked)) {
			return Ok(statement.clone());
		}
		let of_postgresql = of_postgresql(text, locked);
		let statement = self.wait(async |client| client.prepare(&of_postgresql).await)?;
		self.link.statements.insert((text, locked), statement.clone());
		Ok(statement)
	}

	/// Sends messages without waiting for answers, and then waits for all of them: the rows of each.
	pub(super) fn exchange(&mut self, messages: Vec<Message>) -> Result<Vec<Vec<Row>>, Trouble> {
		self.wait(async |client| exchange(client, messages).await)
	}

	/// Which of this process's connections it is.
	pub(super) const fn number(&self) -> u64 {
		self.link.number
	}

	fn hold(&mut self, key: i64) -> Result<(), Trouble> {
		if self.link.held == Some(key) {
			return Ok(());
		}
		self.query(HOLD, &[key.into()])?;
		if let Some(before) = self.link.held.replace(key) {
			self.query(LET_GO, &[before.into()])?;
		}
		Ok(())
	}

	/// The rows of one statement.
	pub(super) fn query(&mut self, text: &'static str, params: &[Param<'_>]) -> Result<Vec<Row>, Trouble> {
		let statement = self.statement(text, Locked::Read)?;
		let mut answers = self.exchange(vec![Message::prepared(statement, params)])?;
		Ok(answers.pop().unwrap_or_default())
	}
}

/// A statement as PostgreSQL takes it.
fn of_postgresql(text: &str, locked: Locked) -> String {
	// Only parameters have it.
	let mut text = text.replace('?', "$");
	while let Some((before, hint)) = text.split_once(" INDEXED BY ") {
		let rest = hint.split_once(' ').map_or("", |(_, rest)| rest);
		text = format!("{before} {rest}");
	}
	if locked != Locked::Read && !text.contains(" ORDER BY ") {
		// Two who lock the same rows do not wait for each other.
		text += " ORDER BY digest";
	}
	text + match locked {
		Locked::Read => "",
		Locked::Awaited => " FOR UPDATE",
		Locked::LeftOut => " FOR UPDATE SKIP LOCKED",
	}
}

/// Whether the connection is over, be it that the server said so before it went.
fn is_lost(error: &Error) -> bool {
	error.as_db_error().map_or_else(
		|| error.is_closed() || error.source().is_some_and(<dyn StdError>::is::<io::Error>),
		|error| {
			matches!(
				*error.code(),
				SqlState::ADMIN_SHUTDOWN
					| SqlState::CRASH_SHUTDOWN
					| SqlState::CANNOT_CONNECT_NOW
					| SqlState::IDLE_IN_TRANSACTION_SESSION_TIMEOUT
			)
		},
	)
}

/// Whether two transactions got in each other's way, so that another attempt may succeed.
fn is_conflict(error: &Error) -> bool {
	matches!(error.code(), Some(&(SqlState::T_R_SERIALIZATION_FAILURE | SqlState::T_R_DEADLOCK_DETECTED)))
}

/// Why the server's certificate was refused, if that is what happened.
fn certificate_error(error: &Error) -> Option<&CertificateError> {
	let error = error.source()?.downcast_ref::<io::Error>()?.get_ref()?;
	match error.downcast_ref()? {
		rustls::Error::InvalidCertificate(why) => Some(why),
		_ => None,
	}
}

/// An error of tokio-postgres, which by itself says only what kind it is of: in one line, with its causes.
#[derive(Debug)]
struct Said(Error);

impl fmt::Display for Said {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		if let Some(error) = self.0.as_db_error() {
			// Without the details, which may hold values, and are lines of their own.
			return write!(f, "{} (SQLSTATE {})", error.message(), error.code().code());
		}
		write!(f, "{}", self.0)?;
		let mut cause = self.0.source();
		while let Some(error) = cause {
			write!(f, ": {error}")?;
			cause = error.source();
		}
		Ok(())
	}
}

impl StdError for Said {
	fn source(&self) -> Option<&(dyn StdError + 'static)> {
		Some(&self.0)
	}
}
