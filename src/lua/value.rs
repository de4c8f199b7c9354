//! Lua values to [`crate::value::Value`] and back.

use mlua::{Lua, Result as LuaResult, Table, Value};

use super::Failure;
use crate::error::InviteError;
use crate::value::{MAX_ATTACHED, MAX_DEPTH, Table as StoredTable, Value as Stored, text_length};

/// Up to here a double holds every whole number.
const WHOLE_LIMIT: i64 = 1 << 53;

/// `util.json.null`, a table that stands for JSON's null; compared by identity.
#[derive(Clone)]
pub(super) struct Null(Option<Table>);

impl Null {
	pub(super) const fn new(null: Option<Table>) -> Self {
		Self(null)
	}

	fn is(&self, table: &Table) -> bool {
		self.0.as_ref().is_some_and(|null| null.to_pointer() == table.to_pointer())
	}
}

/// How much may still be read, in bytes of the text that is to be written of it.
pub(super) struct Room(usize);

impl Room {
	/// Of what a caller attaches to one invite. A table that holds another one twice is two: without a bound, twenty small
	/// tables would be a million.
	pub(super) const fn attached() -> Self {
		Self(MAX_ATTACHED)
	}

	/// Of what was stored, and so fitted somewhere.
	pub(super) const fn stored() -> Self {
		Self(usize::MAX)
	}

	/// Takes so much away, unless there is no more.
	fn take(&mut self, length: usize) -> Option<()> {
		self.0 = self.0.checked_sub(length)?;
		Some(())
	}
}

/// Copies a value. What cannot be stored (a function, a userdata, a cycle, tables nested too deep) is named by its
/// path, beginning with `name`.
pub(super) fn read(value: Value, name: &str, null: &Null) -> LuaResult<Result<Stored, Failure>> {
	Reader { null, path: name.to_owned(), parents: Vec::new(), room: &mut Room::stored() }.value(value)
}

/// The same of a field of a table, and its name. What there is no room for is named by its path, too.
pub(super) fn read_field(
	name: &[u8],
	value: Value,
	null: &Null,
	room: &mut Room,
) -> LuaResult<Result<(Stored, Stored), Failure>> {
	let mut reader = Reader { null, path: shown(name), parents: Vec::new(), room };
	match reader.text(name).and_then(|name| reader.take(PUNCTUATION).map(|()| name)) {
		Ok(name) => Ok(reader.value(value)?.map(|value| (name, value))),
		Err(failure) => Ok(Err(failure)),
	}
}

/// Around the entries of a table.
const BRACKETS: usize = "{}".len();

/// What separates an entry from the next one, and its key from its value.
const PUNCTUATION: usize = ",:".len();

/// Bytes of a key in a path, and of another text that is shown.
const MAX_SHOWN: usize = 100;

struct Reader<'a> {
	null: &'a Null,
	path: String,
	parents: Vec<*const std::ffi::c_void>,
	room: &'a mut Room,
}

impl Reader<'_> {
	fn refuse(&self, why: &str) -> Failure {
		Failure::Misuse(format!("{} {why}", self.path))
	}

	fn take(&mut self, length: usize) -> Result<(), Failure> {
		self.room.take(length).ok_or_else(|| InviteError::TooLarge(self.path.clone()).into())
	}

	fn text(&mut self, bytes: &[u8]) -> Result<Stored, Failure> {
		// What is far too long is not looked at.
		self.take(if bytes.len() > self.room.0 { bytes.len() } else { text_length(bytes) })?;
		Ok(Stored::Str(bytes.to_vec()))
	}

	fn value(&mut self, value: Value) -> LuaResult<Result<Stored, Failure>> {
		let stored = match value {
			Value::Boolean(value) => Stored::Bool(value),
			Value::Integer(value) => integer(value),
			Value::Number(value) => number(value),
			Value::String(value) => return Ok(self.text(&value.as_bytes())),
			Value::Table(table) if self.null.is(&table) => Stored::Null,
			Value::Table(table) => return self.table(&table),
			other => {
				return Ok(Err(self.refuse(&format!("is a {}, which cannot be stored", other.type_name()))));
			}
		};
		Ok(self.take(stored.encoded_length()).map(|()| stored))
	}

	fn table(&mut self, table: &Table) -> LuaResult<Result<Stored, Failure>> {
		if self.parents.contains(&table.to_pointer()) {
			return Ok(Err(self.refuse("holds itself, which cannot be stored")));
		}
		if self.parents.len() == MAX_DEPTH {
			return Ok(Err(InviteError::TooDeep(self.path.clone()).into()));
		}
		if let Err(failure) = self.take(BRACKETS) {
			return Ok(Err(failure));
		}
		self.parents.push(table.to_pointer());
		let mut entries = Vec::new();
		for pair in table.pairs::<Value, Value>() {
			let (key, value) = pair?;
			let length = self.path.len();
			self.path.push_str(&step(&key));
			if let Err(failure) = self.take(PUNCTUATION) {
				return Ok(Err(failure));
			}
			let position = i64::try_from(entries.len() + 1).unwrap_or(i64::MAX);
			let key = match key {
				// The keys of a list are not written.
				Value::Integer(key) if key == position => Stored::Int(key),
				Value::Table(_) => {
					return Ok(Err(self.refuse("has a table as its key, which cannot be stored")));
				}
				key => match self.value(key)? {
					Ok(key) => key,
					failed => return Ok(failed),
				},
			};
			match self.value(value)? {
				Ok(value) => entries.push((key, value)),
				failed => return Ok(failed),
			}
			self.path.truncate(length);
		}
		self.parents.pop();
		Ok(Ok(Stored::Table(entries.into_iter().collect())))
	}
}

/// A text as it is shown in a message: one line, and not long.
pub(super) fn shown(text: &[u8]) -> String {
	match text.get(..MAX_SHOWN) {
		Some(begin) if begin.len() < text.len() => format!("{}…", begin.escape_ascii()),
		_ => text.escape_ascii().to_string(),
	}
}

/// How a key is written in a path.
fn step(key: &Value) -> String {
	match key {
		Value::String(key) => format!(".{}", shown(&key.as_bytes())),
		Value::Integer(key) => format!("[{key}]"),
		Value::Number(key) => format!("[{key}]"),
		Value::Boolean(key) => format!("[{key}]"),
		other => format!("[{}]", other.type_name()),
	}
}

/// Whether this Lua tells integers from floats.
const HAS_INTEGERS: bool = cfg!(any(feature = "lua53", feature = "lua54"));

fn integer(value: i64) -> Stored {
	if HAS_INTEGERS || (-WHOLE_LIMIT..=WHOLE_LIMIT).contains(&value) {
		Stored::Int(value)
	} else {
		#[expect(clippy::cast_precision_loss, reason = "it was a double before mlua made an integer of it")]
		Stored::Float(value as f64)
	}
}

fn number(value: f64) -> Stored {
	#[expect(clippy::cast_precision_loss, reason = "2^53 is a double")]
	let is_whole = value.fract() == 0.0 && value.abs() <= WHOLE_LIMIT as f64;
	if !HAS_INTEGERS && is_whole && (value != 0.0 || value.is_sign_positive()) {
		#[expect(clippy::cast_possible_truncation, reason = "it is a whole number within 2^53")]
		Stored::Int(value as i64)
	} else {
		Stored::Float(value)
	}
}

/// Makes a fresh Lua value.
pub(super) fn write(lua: &Lua, value: &Stored, null: &Null) -> LuaResult<Value> {
	Ok(match value {
		Stored::Null => null.0.clone().map_or(Value::Nil, Value::Table),
		Stored::Bool(value) => Value::Boolean(*value),
		Stored::Int(value) => mlua::IntoLua::into_lua(*value, lua)?,
		Stored::Float(value) => Value::Number(*value),
		Stored::Str(bytes) => Value::String(lua.create_string(bytes)?),
		Stored::Table(stored) => {
			// Of its final size at once: Lua would make it anew as it grows.
			let listed = stored.entries().iter().filter(|(key, _)| matches!(key, Stored::Int(_))).count();
			let table = lua.create_table_with_capacity(listed, stored.entries().len() - listed)?;
			write_entries(lua, stored, null, &table)?;
			Value::Table(table)
		}
	})
}

/// Sets every entry on `table`.
pub(super) fn write_entries(lua: &Lua, stored: &StoredTable, null: &Null, table: &Table) -> LuaResult<()> {
	for (key, value) in stored.entries() {
		// Nearly all keys are text, and so are most values: mlua need not make handles of those.
		match (key.as_text(), value.as_text()) {
			(Some(key), Some(value)) => table.raw_set(key, value)?,
			(Some(key), None) => table.raw_set(key, write(lua, value, null)?)?,
			_ => table.raw_set(write(lua, key, null)?, write(lua, value, null)?)?,
		}
	}
	Ok(())
}
