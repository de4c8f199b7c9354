//! `command(args)`: what a command line asks for, as a table.
//!
//! Understood: `{ name = "generate", host, admin, role, groups, username, reset, json }`, absent options left out;
//! `{ name = "export", host }`.
//! Else what to print: `{ exit = code, stdout = text }` or `{ exit = code, stderr = line }`.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use mlua::{BString, Lua, Result as LuaResult, Table};

use super::set_some;
use crate::cli::{self, Answer, Command, Destination};

pub(super) fn parse(lua: &Lua, args: &Table) -> LuaResult<Table> {
	let args: Vec<OsString> = args
		.sequence_values::<BString>()
		.map(|arg| arg.map(|arg| OsString::from_vec(arg.into())))
		.collect::<LuaResult<_>>()?;
	let table = lua.create_table()?;
	match cli::parse(args) {
		Ok(Command::Generate(options)) => {
			table.set("name", "generate")?;
			table.set("host", options.host)?;
			table.set("admin", options.admin)?;
			table.set("groups", options.groups)?;
			table.set("json", options.json)?;
			set_some(&table, "role", options.role)?;
			set_some(&table, "username", options.username)?;
			set_some(&table, "reset", options.reset)?;
		}
		Ok(Command::Export(options)) => {
			let Destination::Prosody = options.to;
			table.set("name", "export")?;
			table.set("host", options.host)?;
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
