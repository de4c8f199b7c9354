//! A PostgreSQL for the tests of one process: `spec/postgres.sh` runs it until the process ends.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};

/// A running server.
pub(crate) struct Postgres {
	port: String,
	directory: String,
	commands: Mutex<Commands>,
}

struct Commands {
	databases: u32,
	input: ChildStdin,
	output: BufReader<ChildStdout>,
	/// Kept, for the server runs as long as we hold its input.
	_child: Child,
}

impl Postgres {
	/// A server of the caller's own, which he may stop.
	pub(crate) fn start() -> Self {
		let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/spec/postgres.sh"))
			.stdin(Stdio::piped())
			.stdout(Stdio::piped())
			.spawn()
			.unwrap();
		let (input, output) = (child.stdin.take().unwrap(), BufReader::new(child.stdout.take().unwrap()));
		let mut commands = Commands { databases: 0, input, output, _child: child };
		let line = commands.answer();
		let (port, directory) = line.split_once(' ').unwrap();
		Self { port: port.to_owned(), directory: directory.to_owned(), commands: Mutex::new(commands) }
	}

	/// The one that all tests of this process share.
	pub(crate) fn shared() -> &'static Self {
		static SHARED: OnceLock<Postgres> = OnceLock::new();
		SHARED.get_or_init(Self::start)
	}

	fn lock(&self) -> MutexGuard<'_, Commands> {
		self.commands.lock().unwrap()
	}

	/// Carries out a command of `spec/postgres.sh`.
	#[allow(dead_code, reason = "not every test that includes this stops the server")]
	pub(crate) fn tell(&self, command: &str) {
		self.lock().tell(command);
	}

	/// The URL of a new empty database, by way of the socket.
	pub(crate) fn new_database(&self) -> String {
		self.new_database_with("")
	}

	/// The same with more of the CREATE DATABASE.
	pub(crate) fn new_database_with(&self, options: &str) -> String {
		let mut commands = self.lock();
		commands.databases += 1;
		let name = format!("spec{}", commands.databases);
		commands.tell(&format!("database {name} {options}"));
		format!("postgresql://prosody@{}:{}/{name}", self.directory.replace('/', "%2F"), self.port)
	}

	/// Its socket.
	#[allow(dead_code, reason = "not every test that includes this looks for it")]
	pub(crate) fn socket(&self) -> String {
		format!("{}/.s.PGSQL.{}", self.directory, self.port)
	}
}

impl Commands {
	fn tell(&mut self, command: &str) {
		writeln!(self.input, "{command}").unwrap();
		assert_eq!(self.answer(), "done", "{command}");
	}

	fn answer(&mut self) -> String {
		let mut line = String::new();
		self.output.read_line(&mut line).unwrap();
		line.trim_end().to_owned()
	}
}
