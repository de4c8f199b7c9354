//! Commands of an operator as the shim carries them out, which are in [`crate::operator`].
//!
//! | function of the library | returns |
//! | --- | --- |
//! | `command(args)` | what a `prosodyctl mod_invites` command line asks for: `{ run, is_check, host, username, is_about_account, width, input, output }`; or `{ exit, stdout }` or `{ exit, stderr }`, what to print where there is nothing to carry out |
//! | `shell_commands()` | list of `{ name, desc, args, host_selector, flags }`, as `mod_admin_shell` takes it |
//! | `shell_command(line, …)` | what a line typed into the Prosody shell asks for: `{ run, username, is_about_account }`, or `{ problem }`; `line` is `{ name, selector, localpart, has_groups, width }`, and what follows are the words and flags that the shell passed |
//! | `carry_out(run, answer)` | the next step of a command of the whole server |
//!
//! A handle has the method `carry_out(run, answer)` for a command of its host. The first answer is a table of facts: see
//! [`Facts`]. A step is `{ effects, exit, message }`, or `{ effects, ask, … }`, which goes on with the answer to it:
//!
//! | `ask` | answer |
//! | --- | --- |
//! | `"nothing"` | none |
//! | `"import"` | whether everything is taken over from the bundled module's store |
//! | `"accounts"` of `usernames` | the state of each account, by username |
//! | `"inviter"`: `username`, `is_limited` | `{ account, inviter }`: a state, and of somebody who is limited what `prepare` takes |
//! | `"handlers"` of `invites` | none: the handlers of `invite-created` have changed the tables |
//! | `"bundled_rows"` | `{ host_rows, user_rows }`, or nil where they cannot be read |
//! | `"export_to_bundled"` | how many invites those are; or nil and a table, `{ why }` |
//! | `"why"`: `key`, `username` | `true`, or a table `{ condition, text }` |
//! | `"line"` at `prompt` | what was typed |
//!
//! An effect is a list: `{ "print", text }`, `{ "complain", line }`, `{ "report", condition, text }`, `{ "row", cells }`,
//! `{ "fire", event, summary }`, `{ "end_soon" }` or `{ "restored", field }`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::{self, IsTerminal};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::rc::Rc;

use mlua::{
	BString, FromLua, IntoLua, Lua, Result as LuaResult, Table, UserData, UserDataRef, Value, Variadic,
};

use super::handle::{Draft, Handle, Key, accounts};
use super::table::{Seconds, describe, summary, whole_seconds};
use super::{Failure, Outcome, policy, set_some};
use crate::check::{Finding, Level};
use crate::operator::args::{self, Command};
use crate::operator::health::Configuration;
use crate::operator::run::{begin, begin_alone};
use crate::operator::step::{Answer, Ask, Desk, Effect, Facts, Go, Handled, Next, Problem, Step};
use crate::operator::{moving, shell};
use crate::redemption::Account;

/// A command that is being carried out.
pub(super) struct Run(RefCell<State>);

impl UserData for Run {}

enum State {
	Typed(Command),
	TypedIntoShell(shell::Line),
	Waiting(Asked, Go),
	Over,
}

/// What an answer is needed for.
enum Asked {
	Nothing,
	Import,
	Accounts,
	Inviter,
	Handlers(Vec<(Table, Draft)>),
	BundledTokens,
	ExportToBundled,
	Why,
	Line,
}

impl From<Failure> for Problem {
	fn from(failure: Failure) -> Self {
		match failure {
			Failure::Invite(error) => error.into(),
			Failure::BadValue(text) => Self { condition: "bad-request", text: Some(text) },
			Failure::Misuse(text) => Self { condition: "misuse", text: Some(text) },
			Failure::Lua(error) => Self { condition: "misuse", text: Some(error.to_string()) },
		}
	}
}

fn run(lua: &Lua, state: State) -> LuaResult<Table> {
	let table = lua.create_table()?;
	table.raw_set("run", Run(RefCell::new(state)))?;
	Ok(table)
}

/// Reads a command line of prosodyctl.
fn command(lua: &Lua, args: &Table) -> LuaResult<Table> {
	let args: Vec<OsString> = args
		.sequence_values::<BString>()
		.map(|arg| arg.map(|arg| OsString::from_vec(arg.into())))
		.collect::<LuaResult<_>>()?;
	let command = match args::parse(args) {
		Ok(command) => command,
		Err(answer) => {
			let table = lua.create_table()?;
			let (exit, stream, text) = match answer {
				args::Answer::Help(text) => (0, "stdout", text),
				args::Answer::Misuse(line, code) => (code, "stderr", line),
			};
			table.raw_set("exit", exit)?;
			table.raw_set(stream, text)?;
			return Ok(table);
		}
	};
	let table = run(lua, State::Typed(command.clone()))?;
	set_some(&table, "host", command.host())?;
	set_some(&table, "username", command.username())?;
	set_some(&table, "width", command.width())?;
	table.raw_set("is_about_account", command.is_about_account())?;
	table.raw_set("is_check", matches!(command, Command::Check(_)))?;
	match command {
		Command::Import(import) => table.raw_set("input", file(&import.file))?,
		Command::Export(export) => set_some(&table, "output", export.output.as_deref().map(file))?,
		_ => (),
	}
	Ok(table)
}

fn file(name: &OsStr) -> BString {
	moving::absolute(name).into_os_string().into_vec().into()
}

fn path(bytes: &BString) -> PathBuf {
	OsStr::from_bytes(bytes).into()
}

/// Reads a line of the Prosody shell.
fn shell_command(lua: &Lua, line: &Table, passed: &[Value]) -> LuaResult<Table> {
	let mut line = shell::Line {
		name: line.get("name")?,
		selector: line.get("selector")?,
		localpart: line.get("localpart")?,
		has_groups: line.get("has_groups")?,
		width: line.get("width")?,
		..shell::Line::default()
	};
	for value in passed {
		match value {
			// 13.0 has read the flags.
			Value::Table(flags) => read_flags(flags, &mut line.flags)?,
			// create_contact(jid, true)
			Value::Boolean(true) => line.words.push("true".to_owned()),
			Value::Nil | Value::Boolean(false) => (),
			other => line.words.push(lossy(other)?),
		}
	}
	let line = match line.read() {
		Ok(line) => line,
		Err(problem) => {
			let table = lua.create_table()?;
			table.raw_set("problem", problem)?;
			return Ok(table);
		}
	};
	let (username, is_about_account) = (line.username().map(str::to_owned), line.is_about_account());
	let table = run(lua, State::TypedIntoShell(line))?;
	set_some(&table, "username", username)?;
	table.raw_set("is_about_account", is_about_account)?;
	Ok(table)
}

fn lossy(value: &Value) -> LuaResult<String> {
	match value {
		Value::String(text) => Ok(text.to_string_lossy()),
		Value::Integer(_) | Value::Number(_) => value.to_string(),
		other => Ok(other.type_name().to_owned()),
	}
}

fn read_flags(flags: &Table, into: &mut HashMap<String, Vec<String>>) -> LuaResult<()> {
	for pair in flags.pairs::<Value, Value>() {
		let (key, value) = pair?;
		let values = match value {
			Value::Boolean(false) => continue,
			Value::Boolean(true) => Vec::new(),
			Value::Table(values) => {
				values.sequence_values().map(|value| lossy(&value?)).collect::<LuaResult<_>>()?
			}
			value => vec![lossy(&value)?],
		};
		into.insert(lossy(&key)?, values);
	}
	Ok(())
}

/// The commands of the shell as `mod_admin_shell` takes them.
fn shell_commands(lua: &Lua) -> LuaResult<Vec<Table>> {
	let describe = |command: &shell::Command| {
		let table = lua.create_table()?;
		table.raw_set("name", command.name)?;
		table.raw_set("desc", command.description)?;
		let argument = |name: &&str| {
			let argument = lua.create_table()?;
			argument.raw_set("name", *name)?;
			argument.raw_set("type", "string")?;
			Ok(argument)
		};
		table.raw_set("args", command.arguments.iter().map(argument).collect::<LuaResult<Vec<Table>>>()?)?;
		set_some(&table, "host_selector", command.arguments.first().copied())?;
		let flags = lua.create_table()?;
		for (kind, takes) in [
			("kv_params", shell::Takes::Nothing),
			("value_params", shell::Takes::Value),
			("array_params", shell::Takes::Values),
		] {
			let of_kind = lua.create_table()?;
			for (name, _) in command.flags.iter().filter(|(_, known)| *known == takes) {
				of_kind.raw_set(*name, true)?;
			}
			flags.raw_set(kind, of_kind)?;
		}
		table.raw_set("flags", flags)?;
		Ok(table)
	};
	shell::COMMANDS.iter().map(describe).collect()
}

fn misuse(text: &str) -> Failure {
	Failure::Misuse(text.to_owned())
}

/// Of a command of the whole server.
fn carry_out(lua: &Lua, run: &Run, answer: &Value) -> Result<Table, Failure> {
	let step = match run.0.replace(State::Over) {
		State::Typed(command) => begin_alone(&command, &Rc::new(read_facts(answer)?))
			.ok_or_else(|| misuse("the command is about a host"))?,
		State::Waiting(_, Go::OfServer(go)) => go(Answer::Line(line(answer))),
		_ => return Err(misuse("there is no such command, or it is about a host")),
	};
	Ok(write_step(lua, run, step, None)?)
}

impl Handle {
	fn carry_out(&self, lua: &Lua, run: &Run, answer: Value) -> Result<Table, Failure> {
		let prepare = |name: &str| self.bundled.nodeprep.call::<Option<String>>(name).ok().flatten();
		let desk = Desk { invites: &self.invites, policy: &self.policy, now: self.now(), prepare: &prepare };
		let mut step = match run.0.replace(State::Over) {
			State::Typed(command) => begin(&desk, command, &Rc::new(read_facts(&answer)?)),
			State::TypedIntoShell(line) => shell::begin(&desk, &line, &read_facts(&answer)?),
			State::Waiting(asked, Go::OfHost(go)) => go(&desk, self.read_answer(lua, asked, answer)?),
			State::Waiting(_, Go::OfServer(_)) | State::Over => {
				return Err(misuse("there is no such command, or it is about the whole server"));
			}
		};
		// What the handle knows need not be asked.
		if let Next::Ask(Ask::BundledTokens(before), Go::OfHost(go)) = step.next {
			match self.known_tokens(before, self.now()) {
				Some(tokens) => step = go(&desk, Answer::BundledTokens(tokens)),
				None => step.next = Next::Ask(Ask::BundledTokens(before), Go::OfHost(go)),
			}
		}
		Ok(write_step(lua, run, step, Some(self))?)
	}

	fn read_answer(&self, lua: &Lua, asked: Asked, answer: Value) -> Result<Answer, Failure> {
		Ok(match asked {
			Asked::Nothing => Answer::Nothing,
			Asked::Import => Answer::Import(answer == Value::Boolean(true)),
			Asked::Accounts => {
				Answer::Accounts(accounts(HashMap::from_lua(answer, lua)?)?.into_iter().collect())
			}
			Asked::Inviter => {
				let table = Table::from_lua(answer, lua)?;
				let account: String = table.get("account")?;
				let inviter = table.get::<Option<Table>>("inviter")?;
				let inviter = inviter.map(|inviter| policy::inviter(&inviter)).transpose()?;
				Answer::Inviter(Account::from_word(&account).unwrap_or(Account::Unknown), inviter)
			}
			Asked::Handlers(drafts) => {
				let mut handled = Vec::new();
				for (table, draft) in &drafts {
					match self.complete(table, draft)? {
						Ok((invite, restored)) => handled.push(Handled { invite, restored }),
						Err(failure) => return Ok(Answer::Handlers(Err(failure.into()))),
					}
				}
				Answer::Handlers(Ok(handled))
			}
			Asked::BundledTokens => {
				let rows = match Option::<Table>::from_lua(answer, lua)? {
					Some(rows) => (rows.get("host_rows")?, rows.get("user_rows")?),
					None => (Value::Nil, Value::Nil),
				};
				Answer::BundledTokens(self.read_tokens(rows, self.now())?)
			}
			Asked::ExportToBundled => Answer::ExportToBundled(match answer {
				Value::Table(failed) => Err(failed.get("why")?),
				count => Ok(number(&count)),
			}),
			Asked::Why => Answer::Why(match answer {
				Value::Table(why) => Err(Problem {
					condition: condition(&why.get::<String>("condition")?),
					text: why.get("text")?,
				}),
				_ => Ok(()),
			}),
			Asked::Line => Answer::Line(line(&answer)),
		})
	}
}

/// A condition that came from here.
fn condition(word: &str) -> &'static str {
	const KNOWN: [&str; 13] = [
		"account-missing",
		"account-unknown",
		"bad-request",
		"claim-lost",
		"conflict",
		"feature-not-implemented",
		"internal-server-error",
		"name-mismatch",
		"name-reserved",
		"token-busy",
		"token-expired",
		"token-invalid",
		"token-used",
	];
	KNOWN.into_iter().find(|known| *known == word).unwrap_or("internal-server-error")
}

fn line(answer: &Value) -> Option<String> {
	answer.as_string().map(mlua::LuaString::to_string_lossy)
}

fn number(value: &Value) -> u64 {
	whole_seconds(value).and_then(Seconds::finite).unwrap_or(0).unsigned_abs()
}

fn read_facts(answer: &Value) -> LuaResult<Facts> {
	let Some(table) = answer.as_table() else { return Ok(Facts::default()) };
	let seconds = |name: &str| -> LuaResult<Option<i64>> {
		Ok(whole_seconds(&table.get(name)?).and_then(Seconds::finite))
	};
	let is = |name: &str| -> LuaResult<bool> { Ok(table.get::<Option<bool>>(name)?.unwrap_or(false)) };
	let account: Option<String> = table.get("account")?;
	let is_here = is("is_here")?;
	Ok(Facts {
		username: table.get("username")?,
		account: account.as_deref().and_then(Account::from_word),
		is_in_band: is("is_in_band")?,
		default_ttl: seconds("default_ttl")?,
		history_age: seconds("history_age")?,
		shortest_history: seconds("shortest_history")?.unwrap_or(0),
		has_role_maps: is("has_role_maps")?,
		is_here,
		// What a server reads is nobody's answer.
		is_terminal: is_here && io::stdin().is_terminal(),
		by: std::env::var("SUDO_USER")
			.map_or_else(|_| "prosodyctl".to_owned(), |user| format!("prosodyctl ({user})")),
		input: table.get::<Option<BString>>("input")?.map(Vec::from),
		database: table.get::<Option<BString>>("database")?.map(|at| path(&at)).unwrap_or_default(),
		storages: pairs(table.get("storages")?)?,
		storage: read_findings(table.get("storage")?)?,
		configuration: configuration(table.get("configuration")?)?,
	})
}

/// Of a list of `{ host, storage }`.
fn pairs(list: Option<Table>) -> LuaResult<Vec<(String, String)>> {
	let Some(list) = list else { return Ok(Vec::new()) };
	list.sequence_values::<Table>()
		.map(|pair| {
			let pair = pair?;
			Ok((pair.get(1)?, pair.get(2)?))
		})
		.collect()
}

/// As a list of `{ level, text }`.
pub(super) fn findings(lua: &Lua, findings: &[Finding]) -> LuaResult<Vec<Table>> {
	let describe = |finding: &Finding| {
		let table = lua.create_table()?;
		table.raw_set("level", finding.level.as_str())?;
		table.raw_set("text", finding.text.as_str())?;
		Ok(table)
	};
	findings.iter().map(describe).collect()
}

/// Of such a list.
fn read_findings(list: Option<Table>) -> LuaResult<Vec<Finding>> {
	let Some(list) = list else { return Ok(Vec::new()) };
	list.sequence_values::<Table>()
		.map(|finding| {
			let finding = finding?;
			let level = Level::from_word(&finding.get::<String>("level")?).unwrap_or(Level::Critical);
			Ok(Finding { level, text: finding.get("text")? })
		})
		.collect()
}

fn configuration(table: Option<Table>) -> LuaResult<Configuration> {
	let Some(table) = table else { return Ok(Configuration::default()) };
	let list = |name: &str| -> LuaResult<Option<Vec<String>>> {
		let list: Option<Table> = table.get(name)?;
		list.map(|list| list.sequence_values().map(|value| lossy(&value?)).collect()).transpose()
	};
	let names = |name: &str| -> LuaResult<Vec<String>> { Ok(list(name)?.unwrap_or_default()) };
	let text = |name: &str| -> LuaResult<Option<String>> {
		Some(table.get::<Value>(name)?).filter(|value| !value.is_nil()).as_ref().map(lossy).transpose()
	};
	let is = |name: &str| -> LuaResult<bool> { Ok(table.get::<Option<bool>>(name)?.unwrap_or(false)) };
	let count = |name: &str| -> LuaResult<Option<Result<u64, String>>> {
		Ok(match table.get::<Value>(name)? {
			Value::Nil => None,
			Value::String(error) => Some(Err(error.to_string_lossy())),
			count => Some(Ok(number(&count))),
		})
	};
	Ok(Configuration {
		options: names("options")?,
		page: text("page")?,
		page_supports: list("page_supports")?,
		page_module: text("page_module")?,
		expiry: text("expiry")?,
		outdated: names("outdated")?,
		modules: names("modules")?.into_iter().collect(),
		disabled: names("disabled")?.into_iter().collect(),
		allows_registration: is("allows_registration")?,
		is_open: is("is_open")?,
		is_invite_only: is("is_invite_only")?,
		bundled: count("bundled")?,
		tracked: count("tracked")?,
	})
}

fn write_step(lua: &Lua, run: &Run, step: Step, handle: Option<&Handle>) -> LuaResult<Table> {
	let table = lua.create_table()?;
	let mut effects: Vec<Table> = Vec::new();
	let mut text = String::new();
	for effect in step.effects {
		if let Effect::Print(more) = &effect {
			text += more;
			continue;
		}
		write_text(lua, &mut text, &mut effects)?;
		effects.push(write_effect(lua, effect, handle)?);
	}
	write_text(lua, &mut text, &mut effects)?;
	table.raw_set("effects", effects)?;
	match step.next {
		Next::Exit(exit) => {
			table.raw_set("exit", exit.code)?;
			set_some(&table, "message", exit.message)?;
		}
		Next::Ask(ask, go) => {
			let asked = write_ask(lua, &table, ask, handle)?;
			run.0.replace(State::Waiting(asked, go));
		}
	}
	Ok(table)
}

/// What is printed in one go is one effect.
fn write_text(lua: &Lua, text: &mut String, effects: &mut Vec<Table>) -> LuaResult<()> {
	if !text.is_empty() {
		effects.push(list(lua, [("print".into_lua(lua)?), std::mem::take(text).into_lua(lua)?])?);
	}
	Ok(())
}

fn list(lua: &Lua, values: impl IntoIterator<Item = Value>) -> LuaResult<Table> {
	lua.create_sequence_from(values)
}

fn write_effect(lua: &Lua, effect: Effect, handle: Option<&Handle>) -> LuaResult<Table> {
	let text = |text: &str| text.into_lua(lua);
	match effect {
		Effect::Print(printed) => list(lua, [text("print")?, text(&printed)?]),
		Effect::Complain(line) => list(lua, [text("complain")?, text(&line)?]),
		Effect::Report(problem) => {
			let what = problem.text.unwrap_or_default();
			list(lua, [text("report")?, text(problem.condition)?, text(&what)?])
		}
		Effect::Row(cells) => list(lua, [text("row")?, cells.into_lua(lua)?]),
		Effect::EndSoon => list(lua, [text("end_soon")?]),
		Effect::Restored(field) => list(lua, [text("restored")?, text(field)?]),
		Effect::Fire(event, invite) => {
			let null = handle.map(|handle| handle.bundled.null.clone());
			let summary = summary(lua, &invite, &null.unwrap_or(super::value::Null::new(None)))?;
			list(lua, [text("fire")?, text(event)?, Value::Table(summary)])
		}
	}
}

fn write_ask(lua: &Lua, table: &Table, ask: Ask, handle: Option<&Handle>) -> LuaResult<Asked> {
	let (word, asked) = match ask {
		Ask::Nothing => ("nothing", Asked::Nothing),
		Ask::Import => ("import", Asked::Import),
		Ask::Accounts(usernames) => {
			table.raw_set("usernames", usernames)?;
			("accounts", Asked::Accounts)
		}
		Ask::Inviter(username, is_limited) => {
			table.raw_set("username", username)?;
			table.raw_set("is_limited", is_limited)?;
			("inviter", Asked::Inviter)
		}
		Ask::Handlers(drafts) => {
			let mut pairs = Vec::new();
			let invites = lua.create_table()?;
			for draft in drafts {
				let Some(handle) = handle else { break };
				let invite = describe(lua, &draft.invite, Some(&draft.token), &handle.bundled)?;
				invites.raw_push(&invite)?;
				pairs.push((invite, Draft::unlimited(draft.invite, draft.token)));
			}
			table.raw_set("invites", invites)?;
			("handlers", Asked::Handlers(pairs))
		}
		Ask::BundledTokens(_) => ("bundled_rows", Asked::BundledTokens),
		Ask::ExportToBundled => ("export_to_bundled", Asked::ExportToBundled),
		Ask::Why(digest, username) => {
			table.raw_set("key", Key::new(digest))?;
			set_some(table, "username", username)?;
			("why", Asked::Why)
		}
		Ask::Line(prompt) => {
			table.raw_set("prompt", prompt)?;
			("line", Asked::Line)
		}
	};
	table.raw_set("ask", word)?;
	Ok(asked)
}

pub(super) fn add_methods<M: mlua::UserDataMethods<Handle>>(methods: &mut M) {
	methods.add_method("carry_out", |lua, this, (run, answer): (UserDataRef<Run>, Value)| {
		Ok(Outcome(this.carry_out(lua, &run, answer)))
	});
}

pub(super) fn add_to(lua: &Lua, library: &Table) -> LuaResult<()> {
	library.set("command", lua.create_function(|lua, args: Table| command(lua, &args))?)?;
	library.set("shell_commands", lua.create_function(|lua, ()| shell_commands(lua))?)?;
	library.set(
		"shell_command",
		lua.create_function(|lua, (line, passed): (Table, Variadic<Value>)| {
			shell_command(lua, &line, &passed)
		})?,
	)?;
	library.set(
		"carry_out",
		lua.create_function(|lua, (run, answer): (UserDataRef<Run>, Value)| {
			Ok(Outcome(carry_out(lua, &run, &answer)))
		})?,
	)?;
	library.set(
		"create_file",
		lua.create_function(|_, name: BString| {
			Ok(Outcome(moving::create_file(&path(&name)).map(|_| true).map_err(Failure::Misuse)))
		})?,
	)
}
