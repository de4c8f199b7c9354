//! The store's own statements on bare SQLite, for `make bench` to put beside the whole module.
//!
//! `spec/server/bench.py` drives it: one command a line, one line of answer each, words separated by tabs.
//!
//! | command | answer |
//! | --- | --- |
//! | `open`, path, model | process id, journal mode, synchronous; what follows is about this file |
//! | `fill`, number | the number of invites added |
//! | `create`, number | how many were made, the nanoseconds of each, and their tokens |
//! | `get`, token, … | how many were found, then the nanoseconds of each |
//! | `get+use`, token, … | how many were used, then the nanoseconds of each: one transaction |
//! | `register`, token, … | how many were redeemed, then the nanoseconds of each: a claim and its redemption, two transactions |
//! | `list`, number | how many were read, then the nanoseconds of it all |
//!
//! `model` is a database of the module's: invites made here are like the first in it.

use std::cell::Cell;
use std::error::Error;
use std::hint::black_box;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use prosody_invites::clock::{self, Timestamp};
use prosody_invites::store::sqlite::{
	BOUND, BROUGHT, CLAIM, CLAIMS, CREATE, FIND, LINEAGE, OPEN, REDEMPTION, TAKE_CLAIM, UPDATE,
};
use prosody_invites::token::{Digest, Nonce, Token};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, TransactionBehavior, params};

const CONNECTION: &str = include_str!("../src/store/sqlite/connection.sql");

/// In the order in which [`CREATE`] takes them.
const COLUMNS: &str = "host, digest, token, expires, uses, paused, revoked_at, revoked_why, revoked_by, ended_at, fields, \
	type, kind, username, allow_registration, created_at, max_uses, inviter";

const HOST: &str = "example.com";
const DAY: i64 = 86400;
const WEEK: i64 = 7 * DAY;

/// What stands before the number in the additional data, and the width of that.
const READER: &str = "reader ";
const NUMBER: usize = 10;

struct Bare {
	/// Its transactions begin as the module's do, with the lock.
	connection: Connection,
	/// Parameters of [`CREATE`].
	model: Vec<Value>,
	/// The additional data of that, before and after the number by which it differs from that of others.
	fields: (String, String),
	/// So many invites were made here.
	made: Cell<u32>,
	/// So many accounts were registered: each has another name.
	registered: Cell<u32>,
}

impl Bare {
	/// A file that the module made, so that it has its schema.
	fn open(path: &str, model: &str) -> Result<Self, Box<dyn Error>> {
		let mut connection = Connection::open(path)?;
		connection.execute_batch(CONNECTION)?;
		connection.set_transaction_behavior(TransactionBehavior::Immediate);
		let (model, fields) = Connection::open(model)?.query_row(
			&format!("SELECT {COLUMNS} FROM invite LIMIT 1"),
			[],
			|row| {
				let model: Result<_, rusqlite::Error> =
					(0..row.as_ref().column_count()).map(|column| row.get(column)).collect();
				Ok((model?, row.get::<_, String>("fields")?))
			},
		)?;
		let number = fields.find(READER).ok_or("the model has no number")? + READER.len();
		let rest = fields.get(number + NUMBER..).ok_or("the number of the model is cut off")?;
		let fields = (fields[..number].to_owned(), rest.to_owned());
		Ok(Self { connection, model, fields, made: Cell::new(0), registered: Cell::new(0) })
	}

	fn settings(&self) -> Result<String, rusqlite::Error> {
		let read = |sql| self.connection.query_row(sql, [], |row| row.get::<_, String>(0));
		Ok(format!(
			"{}\t{}\t{}",
			std::process::id(),
			read("SELECT journal_mode FROM pragma_journal_mode")?,
			read("SELECT CAST(synchronous AS TEXT) FROM pragma_synchronous")?
		))
	}

	/// With what was created in the past six days, so that nothing expires while it is measured; in the order in which
	/// it came, for sorted by digest it would leave pages fuller than life does.
	fn fill(&self, number: i64) -> Result<(), Box<dyn Error>> {
		// Random places in a file larger than SQLite's cache: without this it takes minutes.
		self.connection.pragma_update(None, "cache_size", -256_000)?;
		let past = 6 * DAY;
		let begin = clock::now() - past;
		let transaction = self.connection.unchecked_transaction()?;
		for index in 1..=number {
			self.create(begin + index * past / number)?;
		}
		transaction.commit()?;
		// However much was filled in, the log begins empty: its state decides what a flush costs.
		self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
		Ok(())
	}

	fn create(&self, now: Timestamp) -> Result<(Token, Duration), Box<dyn Error>> {
		let token = Token::generate()?;
		let digest = token.digest();
		let revealed = token.reveal();
		let expires = now + WEEK;
		self.made.set(self.made.get() + 1);
		let fields = format!("{}{:NUMBER$}{}", self.fields.0, self.made.get(), self.fields.1);
		let parameters: Vec<&dyn ToSql> = COLUMNS
			.split(", ")
			.zip(&self.model)
			.map(|(name, value)| match name {
				"digest" => digest.as_bytes() as &dyn ToSql,
				"token" => &revealed,
				"created_at" => &now,
				"expires" => &expires,
				"fields" => &fields,
				_ => value,
			})
			.collect();
		let start = Instant::now();
		self.connection.prepare_cached(CREATE)?.execute(parameters.as_slice())?;
		let spent = start.elapsed();
		drop(parameters);
		Ok((token, spent))
	}

	/// What a use reads and writes; of a claim, who joined besides.
	fn redeem(&self, digest: &Digest, claimed: Option<(&Nonce, &str)>) -> Result<bool, rusqlite::Error> {
		let connection = &self.connection;
		let now = clock::now();
		let drawn = [0; 16];
		let nonce = claimed.map_or(&drawn, |(nonce, _)| nonce.as_bytes());
		let transaction = connection.unchecked_transaction()?;
		match claimed {
			Some((nonce, _)) => {
				let params = params![HOST, nonce.as_bytes()];
				connection.prepare_cached(TAKE_CLAIM)?.query_row(params, read_all)?;
			}
			None => self.view(digest, None)?,
		}
		connection.prepare_cached(REDEMPTION)?.execute(params![
			HOST,
			digest.as_bytes(),
			nonce,
			"account",
			claimed.map(|(_, username)| username),
			"mod_register",
			now
		])?;
		let is_found = self.find(digest)?;
		if let Some((_, username)) = claimed {
			let params = params![HOST, username];
			connection.prepare_cached(LINEAGE)?.query_row(params, read_all).optional()?;
			connection.prepare_cached(BROUGHT)?.execute(params![
				HOST,
				username,
				"desk",
				digest.as_bytes(),
				now
			])?;
		}
		let fields =
			COLUMNS.split(", ").position(|name| name == "fields").and_then(|column| self.model.get(column));
		connection.prepare_cached(UPDATE)?.execute(params![
			HOST,
			digest.as_bytes(),
			None::<String>,
			now + WEEK,
			1,
			false,
			None::<i64>,
			None::<String>,
			None::<String>,
			now,
			fields
		])?;
		transaction.commit()?;
		Ok(is_found)
	}

	/// What a decision reads.
	fn view(&self, digest: &Digest, username: Option<&str>) -> Result<(), rusqlite::Error> {
		let host = params![HOST];
		self.connection.prepare_cached(CLAIMS)?.query_map(host, read_all)?.collect::<Result<(), _>>()?;
		if let Some(username) = username {
			let params = params![HOST, username];
			self.connection.prepare_cached(BOUND)?.query_map(params, read_all)?.collect::<Result<(), _>>()?;
		}
		self.find(digest).map(|_| ())
	}

	fn get_and_use(&self, token: &str) -> Result<(bool, Duration), Box<dyn Error>> {
		let start = Instant::now();
		let digest = Digest::of(token.as_bytes());
		let is_found = self.find(&digest)? && self.redeem(&digest, None)?;
		Ok((is_found, start.elapsed()))
	}

	fn register(&self, token: &str) -> Result<(bool, Duration), Box<dyn Error>> {
		let nonce = Nonce::generate()?;
		self.registered.set(self.registered.get() + 1);
		let username = format!("user{}", self.registered.get());
		let start = Instant::now();
		let digest = Digest::of(token.as_bytes());
		self.find(&digest)?;
		let transaction = self.connection.unchecked_transaction()?;
		self.view(&digest, Some(&username))?;
		self.connection.prepare_cached(CLAIM)?.execute(params![
			HOST,
			nonce.as_bytes(),
			digest.as_bytes(),
			"account",
			username,
			nonce.as_bytes(),
			clock::now(),
			0
		])?;
		transaction.commit()?;
		let is_found = self.redeem(&digest, Some((&nonce, &username)))?;
		Ok((is_found, start.elapsed()))
	}

	fn list(&self) -> Result<(usize, Duration), rusqlite::Error> {
		let start = Instant::now();
		let params = params![HOST, &[][..] as &[u8], i64::MAX];
		let count = self.connection.prepare_cached(OPEN)?.query_map(params, read_all)?.count();
		Ok((count, start.elapsed()))
	}

	fn find(&self, digest: &Digest) -> Result<bool, rusqlite::Error> {
		let params = params![HOST, digest.as_bytes()];
		Ok(self.connection.prepare_cached(FIND)?.query_row(params, read_all).optional()?.is_some())
	}

	fn get(&self, token: &str) -> Result<(bool, Duration), Box<dyn Error>> {
		let start = Instant::now();
		let is_found = self.find(&Digest::of(token.as_bytes()))?;
		Ok((is_found, start.elapsed()))
	}
}

fn read_all(row: &Row<'_>) -> Result<(), rusqlite::Error> {
	for column in 0..row.as_ref().column_count() {
		black_box(row.get_ref(column)?);
	}
	Ok(())
}

fn nanoseconds(spent: impl IntoIterator<Item = Duration>) -> String {
	let words: Vec<_> = spent.into_iter().map(|one| one.as_nanos().to_string()).collect();
	words.join("\t")
}

/// Does it with each token: how often it did something, and how long each took.
fn each(
	tokens: &[&str],
	call: impl Fn(&str) -> Result<(bool, Duration), Box<dyn Error>>,
) -> Result<String, Box<dyn Error>> {
	let done = tokens.iter().map(|token| call(token)).collect::<Result<Vec<_>, _>>()?;
	let count = done.iter().filter(|(did, _)| *did).count();
	Ok(format!("{count}\t{}", nanoseconds(done.into_iter().map(|(_, spent)| spent))))
}

fn answer(bare: &mut Option<Bare>, words: &[&str]) -> Result<String, Box<dyn Error>> {
	if let ["open", path, model] = words {
		return Ok(bare.insert(Bare::open(path, model)?).settings()?);
	}
	let bare = bare.as_ref().ok_or("open a file first")?;
	match words {
		["fill", number] => {
			bare.fill(number.parse()?)?;
			Ok((*number).to_owned())
		}
		["create", number] => {
			let made = (0..number.parse()?)
				.map(|_: usize| bare.create(clock::now()))
				.collect::<Result<Vec<_>, _>>()?;
			let tokens: Vec<_> = made.iter().map(|(token, _)| token.reveal()).collect();
			Ok(format!(
				"{}\t{}\t{}",
				made.len(),
				nanoseconds(made.iter().map(|(_, spent)| *spent)),
				tokens.join("\t")
			))
		}
		["get", tokens @ ..] => each(tokens, |token| bare.get(token)),
		["get+use", tokens @ ..] => each(tokens, |token| bare.get_and_use(token)),
		["register", tokens @ ..] => each(tokens, |token| bare.register(token)),
		["list", ..] => {
			let (count, spent) = bare.list()?;
			Ok(format!("{count}\t{}", nanoseconds([spent])))
		}
		_ => Err(format!("not a command: {words:?}").into()),
	}
}

fn main() -> Result<(), Box<dyn Error>> {
	let mut bare = None;
	let mut stdout = io::stdout();
	for line in io::stdin().lines() {
		let line = line?;
		let words: Vec<_> = line.split('\t').collect();
		writeln!(stdout, "{}", answer(&mut bare, &words)?)?;
	}
	Ok(())
}
