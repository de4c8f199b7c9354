//! The option `invite_limits`: a table of tables, by role.
//!
//! | key | value |
//! | --- | --- |
//! | `max_open`, `max_created`, `max_uses` | a whole number, 1 or more |
//! | `period`, `max_ttl`, `min_account_age` | seconds, or a duration as text; `period` goes with `max_created`, else it is a day |
//! | `kinds` | a list of [`KINDS`] |

use mlua::{Result as LuaResult, Table, Value};

use super::table::{Seconds, whole_seconds};
use crate::duration;
use crate::policy::{Inviter, KINDS, Limits, Policy};

const OPTION: &str = "invite_limits";

const DAY: i64 = 86400;

/// Reads the options.
///
/// # Errors
/// What is wrong and what to do, in one line.
pub(super) fn read(limits: &Value, allows_unknown_age: &Value) -> Result<Policy, String> {
	let allows_unknown_age = !matches!(allows_unknown_age, Value::Boolean(false));
	let roles = match limits {
		Value::Nil => return Ok(Policy { allows_unknown_age, ..Policy::default() }),
		Value::Table(roles) => roles,
		other => {
			return Err(format!(
				"{OPTION} is a {}: write a table of limits for each role, such as {{ [\"prosody:registered\"] = {{ max_open = 10 }} }}",
				other.type_name()
			));
		}
	};
	let mut policy = Policy { allows_unknown_age, ..Policy::default() };
	for pair in roles.pairs::<Value, Value>() {
		let (role, limits) = pair.map_err(|error| error.to_string())?;
		let (Value::String(role), Value::Table(limits)) = (&role, &limits) else {
			return Err(format!("{OPTION} has an entry that is not a role's name and a table of its limits"));
		};
		let role = role.to_string_lossy();
		policy.roles.insert(role.clone(), role_limits(&role, limits)?);
	}
	Ok(policy)
}

fn role_limits(role: &str, table: &Table) -> Result<Limits, String> {
	let mut limits = Limits { period: DAY, ..Limits::default() };
	for pair in table.pairs::<Value, Value>() {
		let (key, value) = pair.map_err(|error| error.to_string())?;
		let key = key.as_string().map(mlua::LuaString::to_string_lossy).unwrap_or_default();
		let wrong = |what: &str| format!("{OPTION}[{role:?}].{key} must be {what}");
		let number = || match whole_seconds(&value) {
			Some(Seconds::Finite(number)) if number > 0 => {
				u32::try_from(number).map(Some).map_err(|_| wrong("smaller"))
			}
			_ => Err(wrong("a whole number, 1 or more; kinds = {} is how to allow nothing")),
		};
		let seconds = || match (whole_seconds(&value), value.as_string()) {
			(Some(Seconds::Finite(seconds)), _) if seconds > 0 => Ok(seconds),
			(None, Some(text)) => duration::parse(&text.to_string_lossy())
				.map(i64::from)
				.map_err(|error| format!("{OPTION}[{role:?}].{key}: {error}")),
			_ => Err(wrong("a number of seconds or a duration like \"1 week\"")),
		};
		match key.as_str() {
			"max_open" => limits.max_open = number()?,
			"max_created" => limits.max_created = number()?,
			"max_uses" => limits.max_uses = number()?,
			"period" => limits.period = seconds()?,
			"max_ttl" => limits.max_ttl = Some(seconds()?),
			"min_account_age" => limits.min_account_age = Some(seconds()?),
			"kinds" => limits.kinds = Some(kinds(&value).ok_or_else(|| wrong(&list_of_kinds()))?),
			_ => {
				return Err(format!(
					"{OPTION}[{role:?}] has {key:?}, which is no limit: use max_open, max_created, period, max_uses, max_ttl, min_account_age or kinds"
				));
			}
		}
	}
	Ok(limits)
}

fn list_of_kinds() -> String {
	format!("a list of {}", KINDS.map(|kind| format!("{kind:?}")).join(", "))
}

fn kinds(value: &Value) -> Option<Vec<String>> {
	let table = value.as_table()?;
	let words: Vec<String> = table.sequence_values().collect::<LuaResult<_>>().ok()?;
	let is_list = table.pairs::<Value, Value>().count() == words.len();
	(is_list && words.iter().all(|word| KINDS.contains(&word.as_str()))).then_some(words)
}

/// Somebody as the shim describes them: `{ username, roles, account_created }`.
pub(super) fn inviter(table: &Table) -> LuaResult<Inviter> {
	Ok(Inviter {
		username: table.get("username")?,
		roles: table.get("roles")?,
		account_created: match whole_seconds(&table.get("account_created")?) {
			Some(Seconds::Finite(created)) => Some(created),
			_ => None,
		},
	})
}
