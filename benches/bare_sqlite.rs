//! The store's own statements on bare SQLite, for `make bench` to put beside the whole module.
//!
//! `spec/server/bench.py` drives it: one command a line, one line of answer each, words separated by tabs.
//!
//! | command | answer |
//! | --- | --- |
//! | `open`, path, model | process id, journal mode, synchronous; what follows is about this file |
//! | `fill`, number | the number of invites added |
//! | `create`, number | the nanoseconds of each |
//! | `get`, token, … | how many were found, then the nanoseconds of each |
//!
//! `model` is a database of the module's: invites made here are like the first in it.

use std::error::Error;
use std::hint::black_box;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use prosody_invites::clock::{self, Timestamp};
use prosody_invites::store::sqlite::{CREATE, FIND, MIGRATIONS};
use prosody_invites::token::{Digest, Token};
use rusqlite::types::Value;
use rusqlite::{Connection, OptionalExtension, Row, ToSql, named_params};

const CONNECTION: &str = include_str!("../src/store/sqlite/connection.sql");

const HOST: &str = "example.com";
const DAY: i64 = 86400;
const WEEK: i64 = 7 * DAY;

struct Bare {
	connection: Connection,
	/// Parameters of [`CREATE`] with their values.
	model: Vec<(String, Value)>,
}

impl Bare {
	/// A new file gets the schema; one that the module made has it already.
	fn open(path: &str, model: &str) -> Result<Self, rusqlite::Error> {
		let connection = Connection::open(path)?;
		connection.execute_batch(CONNECTION)?;
		let is_new = connection.query_row("SELECT count(*) = 0 FROM sqlite_schema", [], |row| row.get(0))?;
		if is_new {
			for migration in MIGRATIONS {
				connection.execute_batch(migration)?;
			}
		}
		let model = Connection::open(model)?.query_row("SELECT * FROM invite LIMIT 1", [], |row| {
			let names = row.as_ref().column_names();
			names.into_iter().map(|name| Ok((format!(":{name}"), row.get(name)?))).collect()
		})?;
		Ok(Self { connection, model })
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

	fn create(&self, now: Timestamp) -> Result<Duration, Box<dyn Error>> {
		let token = Token::generate()?;
		let digest = token.digest();
		let revealed = token.reveal();
		let expires = now + WEEK;
		let parameters: Vec<(&str, &dyn ToSql)> = self
			.model
			.iter()
			.map(|(name, value)| {
				let value: &dyn ToSql = match name.as_str() {
					":digest" => digest.as_bytes(),
					":token" => &revealed,
					":created_at" => &now,
					":expires" => &expires,
					_ => value,
				};
				(name.as_str(), value)
			})
			.collect();
		let start = Instant::now();
		self.connection.prepare_cached(CREATE)?.execute(parameters.as_slice())?;
		Ok(start.elapsed())
	}

	fn get(&self, token: &str) -> Result<(bool, Duration), rusqlite::Error> {
		let digest = Digest::of(token.as_bytes());
		let start = Instant::now();
		let found = self
			.connection
			.prepare_cached(FIND)?
			.query_row(named_params! { ":host": HOST, ":digest": digest.as_bytes() }, read_all)
			.optional()?;
		Ok((found.is_some(), start.elapsed()))
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
			let spent = (0..number.parse()?)
				.map(|_: usize| bare.create(clock::now()))
				.collect::<Result<Vec<_>, _>>()?;
			Ok(nanoseconds(spent))
		}
		["get", tokens @ ..] => {
			let got = tokens.iter().map(|token| bare.get(token)).collect::<Result<Vec<_>, _>>()?;
			let found = got.iter().filter(|(found, _)| *found).count();
			Ok(format!("{found}\t{}", nanoseconds(got.into_iter().map(|(_, spent)| spent))))
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
