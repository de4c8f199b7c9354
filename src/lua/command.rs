//! `command(args)`: what a command line asks for, as a table.
//!
//! It has `name`, `host` and the options that were given, under their long names with `_` for `-`; durations are seconds,
//! and `math.huge` stands for never and for unlimited. Commands that print have `width`, the columns of the terminal.
//! `list` and `history` have a `filter`: `{ part, state, kind, inviter, text }`.
//! Else what to print: `{ exit = code, stdout = text }` or `{ exit = code, stderr = line }`.

use std::ffi::OsString;
use std::num::NonZeroU32;
use std::os::unix::ffi::OsStringExt;

use mlua::{BString, Lua, Result as LuaResult, Table, Value};

use super::set_some;
use crate::duration::Seconds;
use crate::invite::Kind;
use crate::lifecycle::State;
use crate::listing::{Filter, Part};
use crate::operator::args::{
	self, Answer, Command, Destination, Generate, Limit, One, OneOrInviter, Picked, Ttl,
};

pub(super) fn parse(lua: &Lua, args: &Table) -> LuaResult<Table> {
	let args: Vec<OsString> = args
		.sequence_values::<BString>()
		.map(|arg| arg.map(|arg| OsString::from_vec(arg.into())))
		.collect::<LuaResult<_>>()?;
	let table = lua.create_table()?;
	match args::parse(args) {
		Ok(Command::Generate(options)) => generate(&table, options)?,
		Ok(Command::List(list)) => {
			table.set("name", "list")?;
			table.set("show_token", list.show_token)?;
			let (filter, part) = list.filter();
			picked(lua, &table, list.picked, filter, part)?;
		}
		Ok(Command::History(history)) => {
			table.set("name", "history")?;
			let (filter, part) = history.filter();
			picked(lua, &table, history.picked, filter, part)?;
		}
		Ok(Command::Show(show)) => {
			table.set("show_token", show.show_token)?;
			table.set("qr", show.qr)?;
			one(&table, "show", show.one)?;
		}
		Ok(Command::Revoke(revoke)) => {
			set_some(&table, "why", revoke.why)?;
			table.set("branch", revoke.branch)?;
			one_or_inviter(&table, "revoke", revoke.which)?;
		}
		Ok(Command::Release(release)) => {
			table.set("yes", release.yes)?;
			one(&table, "release", release.one)?;
		}
		Ok(Command::Pause(pause)) => one(&table, "pause", pause)?,
		Ok(Command::Resume(resume)) => one(&table, "resume", resume)?,
		Ok(Command::Extend(extend)) => {
			table.set("expires_after", seconds(extend.expires_after))?;
			one(&table, "extend", extend.one)?;
		}
		Ok(Command::Why(why)) => {
			set_some(&table, "username", why.username)?;
			set_some(&table, "kind", why.kind)?;
			one_or_inviter(&table, "why", why.which)?;
		}
		Ok(Command::Tree(tree)) => {
			table.set("name", "tree")?;
			table.set("host", tree.host)?;
			table.set("username", tree.username)?;
			table.set("accounts", tree.accounts)?;
			table.set("json", tree.output.json)?;
		}
		Ok(Command::Stats(stats)) => {
			table.set("name", "stats")?;
			table.set("host", stats.host)?;
			table.set("json", stats.output.json)?;
			table.set("width", stats.output.width())?;
		}
		Ok(Command::Purge(purge)) => {
			table.set("name", "purge")?;
			table.set("host", purge.host)?;
			set_some(&table, "older_than", purge.older_than.map(Seconds::get))?;
			table.set("json", purge.json)?;
		}
		Ok(Command::Export(options)) => {
			table.set("name", "export")?;
			table.set("host", options.host)?;
			table.set("pending", options.pending)?;
			set_some(&table, "to", options.to.map(|Destination::Prosody| "prosody"))?;
			set_some(&table, "output", options.output.map(file))?;
		}
		Ok(Command::Import(options)) => {
			table.set("name", "import")?;
			table.set("host", options.host)?;
			table.set("file", file(options.file))?;
		}
		Ok(Command::Backup(options)) => {
			table.set("name", "backup")?;
			table.set("file", file(options.file))?;
		}
		Ok(Command::Restore(options)) => {
			table.set("name", "restore")?;
			table.set("file", file(options.file))?;
			table.set("revoke_older", options.revoke_older)?;
			table.set("yes", options.yes)?;
		}
		Ok(Command::Check(options)) => {
			table.set("name", "check")?;
			table.set("host", options.host)?;
			table.set("json", options.json)?;
		}
		Err(Answer::Help(text)) => {
			table.set("exit", 0)?;
			table.set("stdout", text)?;
		}
		Err(Answer::Misuse(line, code)) => {
			table.set("exit", code)?;
			table.set("stderr", line)?;
		}
	}
	Ok(table)
}

fn generate(table: &Table, options: Generate) -> LuaResult<()> {
	table.set("name", "generate")?;
	table.set("host", options.host)?;
	table.set("admin", options.admin)?;
	table.set("groups", options.groups)?;
	table.set("json", options.json)?;
	set_some(table, "role", options.role)?;
	set_some(table, "username", options.username)?;
	set_some(table, "reset", options.reset)?;
	set_some(table, "contact", options.contact)?;
	table.set("allow_registration", options.allow_registration)?;
	set_some(table, "expires_after", options.expires_after.map(seconds))?;
	set_some(table, "note", options.note)?;
	let uses = |limit: Limit| limit.end().map_or(f64::INFINITY, |limit| limit.get().into());
	set_some(table, "max_uses", options.max_uses.map(uses))?;
	set_some(table, "count", options.count.map(NonZeroU32::get))?;
	table.set("qr", options.qr)
}

fn seconds(ttl: Ttl) -> Value {
	ttl.end().map_or(Value::Number(f64::INFINITY), |seconds| Value::Integer(seconds.get()))
}

fn one(table: &Table, name: &str, one: One) -> LuaResult<()> {
	table.set("name", name)?;
	table.set("host", one.host)?;
	table.set("invite", one.invite)?;
	table.set("json", one.output.json)?;
	table.set("width", one.output.width())
}

fn one_or_inviter(table: &Table, name: &str, which: OneOrInviter) -> LuaResult<()> {
	table.set("name", name)?;
	table.set("host", which.host)?;
	set_some(table, "invite", which.invite)?;
	set_some(table, "inviter", which.inviter)?;
	table.set("json", which.output.json)?;
	table.set("width", which.output.width())
}

fn picked(lua: &Lua, table: &Table, picked: Picked, filter: Filter, part: Part) -> LuaResult<()> {
	table.set("host", picked.host)?;
	table.set("json", picked.output.json)?;
	table.set("width", picked.output.width())?;
	set_some(table, "after", picked.after)?;
	set_some(table, "limit", picked.limit.map(NonZeroU32::get))?;
	let picks = lua.create_table()?;
	picks.set("part", part.as_str())?;
	set_some(&picks, "state", filter.state.map(State::as_str))?;
	set_some(&picks, "kind", filter.kind.map(Kind::as_str))?;
	set_some(&picks, "inviter", filter.inviter)?;
	set_some(&picks, "text", filter.text)?;
	table.set("filter", picks)
}

fn file(name: OsString) -> BString {
	name.into_vec().into()
}
