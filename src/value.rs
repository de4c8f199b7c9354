//! Values that other modules attach to an invite, kept losslessly as text that a person can read.
//!
//! `additional_data` and whatever an `invite-created` handler adds may hold anything that a Lua table can
//! hold. It is written as JSON; only what JSON cannot say takes a tagged form:
//!
//! | Lua | JSON |
//! | --- | --- |
//! | list `1..n`; table with text keys; empty table | array; object; `{}` |
//! | table with other keys, or with a key beginning with `$` | `{"$table":[key, value, key, value, …]}` |
//! | string that is not UTF-8 | `{"$bytes":"base64"}` |
//! | NaN and the infinities | `{"$float":"nan"}`, `{"$float":"inf"}`, `{"$float":"-inf"}` |
//! | `util.json.null` | `null` |
//!
//! Keys are sorted, so equal values give equal text. Text in another order, or with other spaces, is read as well.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, LazyLock, OnceLock};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::ser::{SerializeMap, SerializeSeq, Serializer};
use serde::{Deserialize, Serialize, de};
use thiserror::Error;

/// Tables may be nested so deep: the outermost is the first.
pub const MAX_DEPTH: usize = 100;

/// What a caller attaches to an invite may be so long, in bytes of the text that is written of all of it. What is stored is
/// read however long it is.
pub const MAX_ATTACHED: usize = 64 << 10;

/// A tagged table is an object around an array, so text may be nested twice as deep, and one for a tagged leaf.
const MAX_JSON_DEPTH: usize = 2 * MAX_DEPTH + 1;

/// Of strings among keys, see [`Value::rank`].
const STR_RANK: u8 = 4;

const TABLE_TAG: &str = "$table";
const BYTES_TAG: &str = "$bytes";
const FLOAT_TAG: &str = "$float";

/// What Lua can put into a table and a store can give back.
#[derive(Clone, PartialEq)]
pub enum Value {
	/// `util.json.null`.
	Null,
	/// A boolean.
	Bool(bool),
	/// A number of the integer subtype; on Lua before 5.3 a whole number within ±2^53.
	Int(i64),
	/// Any other number.
	Float(f64),
	/// Bytes, UTF-8 or not.
	Str(Vec<u8>),
	/// A table, copied.
	Table(Table),
}

/// A Lua table by value: entries with distinct keys, sorted by key. Cheap to clone.
#[derive(Clone, Default, PartialEq)]
pub struct Table(Arc<Vec<(Value, Value)>>);

/// A table as it is stored: read when it is first needed, for most that is done with an invite needs none of it, and written
/// back as it was read, unless it was changed.
#[derive(Clone, Default)]
pub struct Fields {
	/// What is stored, as long as nothing was changed.
	text: Option<Arc<str>>,
	table: OnceLock<Table>,
}

/// Text that was not written by this module, or was damaged since.
#[derive(Debug, Error)]
#[error("its additional data is damaged: {0}")]
pub struct DataError(#[from] serde_json::Error);

impl Value {
	/// A string value.
	#[must_use]
	pub fn text(text: &str) -> Self {
		Self::Str(text.as_bytes().to_vec())
	}

	/// The text, if it is a string of UTF-8.
	#[must_use]
	pub fn as_text(&self) -> Option<&str> {
		match self {
			Self::Str(bytes) => std::str::from_utf8(bytes).ok(),
			_ => None,
		}
	}

	/// Writes the text described at the head of this module.
	///
	/// # Errors
	/// None that this type can hold; it stands here because the JSON writer has one.
	pub fn encode(&self) -> Result<String, DataError> {
		Ok(serde_json::to_string(self)?)
	}

	/// Bytes of what [`Value::encode`] writes of it; of a table those of its brackets. A float counts as the longest.
	#[must_use]
	pub fn encoded_length(&self) -> usize {
		match self {
			Self::Null => "null".len(),
			Self::Bool(_) => "false".len(),
			Self::Int(value) => {
				let digits = value.unsigned_abs().checked_ilog10().unwrap_or(0) as usize + 1;
				digits + usize::from(*value < 0)
			}
			Self::Float(_) => "-2.2250738585072014e-308".len(),
			Self::Str(bytes) => text_length(bytes),
			Self::Table(_) => "{}".len(),
		}
	}

	/// Reads what [`Value::encode`] wrote.
	///
	/// # Errors
	/// When the text is no such text.
	pub fn decode(text: &str) -> Result<Self, DataError> {
		from_text(text)
	}

	fn holds(&self, secret: &str) -> bool {
		match self {
			// Looking is not cheap, and most texts are too short.
			Self::Str(bytes) if bytes.len() >= secret.len() => {
				self.as_text().is_some_and(|text| text.contains(secret))
			}
			Self::Table(table) => table.holds(secret),
			_ => false,
		}
	}

	fn replace_text(self, secret: &str, with: &str) -> Self {
		match self {
			Self::Str(bytes) => match String::from_utf8(bytes) {
				Ok(text) => Self::Str(text.replace(secret, with).into_bytes()),
				Err(error) => Self::Str(error.into_bytes()),
			},
			Self::Table(mut table) => {
				table.replace_text(secret, with);
				Self::Table(table)
			}
			other => other,
		}
	}

	const fn rank(&self) -> u8 {
		match self {
			Self::Null => 0,
			Self::Bool(_) => 1,
			Self::Int(_) => 2,
			Self::Float(_) => 3,
			Self::Str(_) => STR_RANK,
			Self::Table(_) => 5,
		}
	}

	/// Orders keys; tables are no keys and all alike here.
	fn order(&self, other: &Self) -> Ordering {
		match (self, other) {
			(Self::Bool(a), Self::Bool(b)) => a.cmp(b),
			(Self::Int(a), Self::Int(b)) => a.cmp(b),
			(Self::Float(a), Self::Float(b)) => a.total_cmp(b),
			(Self::Str(a), Self::Str(b)) => a.cmp(b),
			_ => self.rank().cmp(&other.rank()),
		}
	}
}

impl fmt::Debug for Value {
	/// Shows no content: a landing page holds the token.
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		f.write_str("Value(…)")
	}
}

impl fmt::Debug for Table {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		write!(f, "Table({} entries)", self.0.len())
	}
}

impl FromIterator<(Value, Value)> for Table {
	/// Of two entries with one key the later stays.
	fn from_iter<I: IntoIterator<Item = (Value, Value)>>(entries: I) -> Self {
		let mut entries: Vec<_> = entries.into_iter().collect();
		entries.reverse();
		entries.sort_by(|(a, _), (b, _)| a.order(b));
		entries.dedup_by(|(a, _), (b, _)| a.order(b) == Ordering::Equal);
		Self(Arc::new(entries))
	}
}

impl Table {
	/// The entries, sorted by key.
	#[must_use]
	pub fn entries(&self) -> &[(Value, Value)] {
		&self.0
	}

	/// Puts `with` wherever `secret` stands in a text, keys and nested tables included.
	pub(crate) fn replace_text(&mut self, secret: &str, with: &str) {
		if !self.holds(secret) {
			return;
		}
		let entries = std::mem::take(&mut self.0);
		*self = Arc::unwrap_or_clone(entries)
			.into_iter()
			.map(|(key, value)| (key.replace_text(secret, with), value.replace_text(secret, with)))
			.collect();
	}

	fn holds(&self, secret: &str) -> bool {
		self.0.iter().any(|(key, value)| key.holds(secret) || value.holds(secret))
	}

	/// Writes it as [`Value::encode`] does.
	///
	/// # Errors
	/// As there.
	pub fn encode(&self) -> Result<String, DataError> {
		Ok(serde_json::to_string(self)?)
	}

	/// Reads what [`Table::encode`] wrote.
	///
	/// # Errors
	/// When the text is no such text, or that of another value.
	pub fn decode(text: &str) -> Result<Self, DataError> {
		from_text(text)
	}

	/// Whether there is no entry.
	#[must_use]
	pub fn is_empty(&self) -> bool {
		self.0.is_empty()
	}

	/// The value under a text key.
	#[must_use]
	pub fn get(&self, key: &str) -> Option<&Value> {
		self.0
			.binary_search_by(|(entry, _)| match entry {
				Value::Str(entry) => entry.as_slice().cmp(key.as_bytes()),
				other => other.rank().cmp(&STR_RANK),
			})
			.ok()
			.and_then(|found| self.0.get(found))
			.map(|(_, value)| value)
	}

	/// The values if the keys are exactly 1 to n, n at least 1.
	fn as_list(&self) -> Option<impl ExactSizeIterator<Item = &Value>> {
		let is_list = !self.0.is_empty()
			&& self.0.iter().zip(1..).all(|((key, _), index)| matches!(key, Value::Int(i) if *i == index));
		is_list.then(|| self.0.iter().map(|(_, value)| value))
	}

	/// The entries with their keys as text if an object can say them.
	fn as_object(&self) -> Option<Vec<(&str, &Value)>> {
		self.0
			.iter()
			.map(|(key, value)| match key {
				Value::Str(bytes) => std::str::from_utf8(bytes)
					.ok()
					.filter(|key| !key.starts_with('$'))
					.map(|key| (key, value)),
				_ => None,
			})
			.collect()
	}
}

impl Fields {
	/// From a text that [`Fields::stored`] gave out, or none; it is not looked at before it is needed.
	#[must_use]
	pub fn from_stored(text: Option<&str>) -> Self {
		Self { text: text.map(Arc::from), table: OnceLock::new() }
	}

	/// The text to be stored; none where there is nothing.
	///
	/// # Errors
	/// As of [`Table::encode`].
	pub fn stored(&self) -> Result<Option<Cow<'_, str>>, DataError> {
		match &self.text {
			Some(text) => Ok(Some(Cow::Borrowed(text))),
			None if self.is_empty() => Ok(None),
			None => Ok(Some(Cow::Owned(self.encode()?))),
		}
	}

	/// The table. Where this is not asked first, what is damaged looks as if it were empty.
	///
	/// # Errors
	/// When the text is damaged.
	pub fn check(&self) -> Result<&Table, DataError> {
		if let Some(table) = self.table.get() {
			return Ok(table);
		}
		let table = self.text.as_deref().map_or_else(|| Ok(Table::default()), Table::decode)?;
		Ok(self.table.get_or_init(|| table))
	}

	/// As of [`Table::replace_text`].
	pub(crate) fn replace_text(&mut self, secret: &str, with: &str) {
		if self.text.as_deref().is_some_and(|text| is_surely_without(text, secret)) || !self.holds(secret) {
			return;
		}
		let mut table = Table::clone(self);
		table.replace_text(secret, with);
		*self = table.into();
	}
}

/// Whether no string in a text that was stored holds the secret, as far as that can be told without reading it.
fn is_surely_without(text: &str, secret: &str) -> bool {
	let is_written_as_it_is = !text.contains('\\') && secret.bytes().all(|byte| byte.is_ascii_graphic());
	is_written_as_it_is && !text.contains(secret)
}

impl Deref for Fields {
	type Target = Table;

	fn deref(&self) -> &Table {
		static EMPTY: LazyLock<Table> = LazyLock::new(Table::default);
		self.check().unwrap_or(&EMPTY)
	}
}

impl From<Table> for Fields {
	fn from(table: Table) -> Self {
		Self { text: None, table: table.into() }
	}
}

impl FromIterator<(Value, Value)> for Fields {
	fn from_iter<I: IntoIterator<Item = (Value, Value)>>(entries: I) -> Self {
		Table::from_iter(entries).into()
	}
}

impl PartialEq for Fields {
	fn eq(&self, other: &Self) -> bool {
		**self == **other
	}
}

impl fmt::Debug for Fields {
	fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		Table::fmt(self, f)
	}
}

/// Bytes of what is written of a string.
#[must_use]
pub fn text_length(bytes: &[u8]) -> usize {
	if std::str::from_utf8(bytes).is_err() {
		return r#"{"$bytes":""}"#.len() + bytes.len().div_ceil(3) * 4;
	}
	let escaped = |byte: &u8| match byte {
		b'"' | b'\\' | b'\n' | b'\r' | b'\t' | 0x08 | 0x0c => 2,
		0..=0x1f => r"\u0000".len(),
		_ => 1,
	};
	"\"\"".len() + bytes.iter().map(escaped).sum::<usize>()
}

fn from_text<'de, T: Deserialize<'de>>(text: &'de str) -> Result<T, DataError> {
	let mut json = serde_json::Deserializer::from_str(text);
	// Its own limit of 128 is less than our tables need; ours is counted while reading.
	json.disable_recursion_limit();
	let value = T::deserialize(&mut json)?;
	json.end()?;
	Ok(value)
}

impl Serialize for Value {
	fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
		match self {
			Self::Null => serializer.serialize_unit(),
			Self::Bool(value) => serializer.serialize_bool(*value),
			Self::Int(value) => serializer.serialize_i64(*value),
			Self::Float(value) if value.is_nan() => tagged(serializer, FLOAT_TAG, "nan"),
			Self::Float(value) if value.is_infinite() => {
				tagged(serializer, FLOAT_TAG, if *value > 0.0 { "inf" } else { "-inf" })
			}
			Self::Float(value) => serializer.serialize_f64(*value),
			Self::Str(bytes) => match std::str::from_utf8(bytes) {
				Ok(text) => serializer.serialize_str(text),
				Err(_) => tagged(serializer, BYTES_TAG, &STANDARD.encode(bytes)),
			},
			Self::Table(table) => table.serialize(serializer),
		}
	}
}

impl Serialize for Table {
	fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
		if let Some(list) = self.as_list() {
			let mut seq = serializer.serialize_seq(Some(list.len()))?;
			for value in list {
				seq.serialize_element(value)?;
			}
			seq.end()
		} else if let Some(object) = self.as_object() {
			serializer.collect_map(object)
		} else {
			let flat: Vec<&Value> = self.0.iter().flat_map(|(key, value)| [key, value]).collect();
			tagged(serializer, TABLE_TAG, &flat)
		}
	}
}

fn tagged<S: Serializer, T: Serialize + ?Sized>(
	serializer: S,
	tag: &str,
	content: &T,
) -> Result<S::Ok, S::Error> {
	let mut map = serializer.serialize_map(Some(1))?;
	map.serialize_entry(tag, content)?;
	map.end()
}

impl<'de> Deserialize<'de> for Value {
	/// As for [`Table`].
	fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
		Nested(0).deserialize(deserializer)
	}
}

impl<'de> Deserialize<'de> for Table {
	/// Of text, when the limit of its own that the reader has is switched off: ours is counted here.
	fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
		match Value::deserialize(deserializer)? {
			Value::Table(table) => Ok(table),
			_ => Err(de::Error::custom("no table stands where one must")),
		}
	}
}

/// Reads one value that stands so many arrays and objects deep.
struct Nested(usize);

impl Nested {
	fn inner<E: de::Error>(&self) -> Result<Self, E> {
		if self.0 < MAX_JSON_DEPTH { Ok(Self(self.0 + 1)) } else { Err(E::custom("nested too deep")) }
	}
}

impl<'de> DeserializeSeed<'de> for Nested {
	type Value = Value;

	fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
		deserializer.deserialize_any(self)
	}
}

impl<'de> Visitor<'de> for Nested {
	type Value = Value;

	fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
		f.write_str("invite data")
	}

	fn visit_unit<E>(self) -> Result<Value, E> {
		Ok(Value::Null)
	}

	fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
		Ok(Value::Bool(value))
	}

	fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
		Ok(Value::Int(value))
	}

	fn visit_u64<E: de::Error>(self, value: u64) -> Result<Value, E> {
		i64::try_from(value).map(Value::Int).map_err(|_| E::custom("an integer is out of range"))
	}

	fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
		Ok(Value::Float(value))
	}

	fn visit_str<E>(self, value: &str) -> Result<Value, E> {
		Ok(Value::text(value))
	}

	fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
		let mut entries = Vec::new();
		while let Some(value) = seq.next_element_seed(self.inner()?)? {
			entries.push((Value::Int(i64::try_from(entries.len() + 1).map_err(de::Error::custom)?), value));
		}
		Ok(Value::Table(Table(Arc::new(entries))))
	}

	fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
		let mut entries = Vec::new();
		while let Some(key) = map.next_key::<String>()? {
			let value = map.next_value_seed(self.inner()?)?;
			if key.starts_with('$') {
				if !entries.is_empty() || map.next_key::<de::IgnoredAny>()?.is_some() {
					return Err(de::Error::custom("a tag stands beside other keys"));
				}
				return untag(&key, value)
					.ok_or_else(|| de::Error::custom("a tag is unknown or its content wrong"));
			}
			entries.push((Value::Str(key.into_bytes()), value));
		}
		Ok(Value::Table(entries.into_iter().collect()))
	}
}

fn untag(tag: &str, content: Value) -> Option<Value> {
	match (tag, content) {
		(TABLE_TAG, Value::Table(Table(flat))) => {
			let mut values = Arc::unwrap_or_clone(flat).into_iter().map(|(_, value)| value);
			let mut entries = Vec::new();
			while let Some(key) = values.next() {
				let is_key = match &key {
					Value::Null | Value::Table(_) => false,
					Value::Float(number) => !number.is_nan(),
					Value::Bool(_) | Value::Int(_) | Value::Str(_) => true,
				};
				entries.push((is_key.then_some(key)?, values.next()?));
			}
			Some(Value::Table(entries.into_iter().collect()))
		}
		(BYTES_TAG, Value::Str(text)) => STANDARD.decode(text).ok().map(Value::Str),
		(FLOAT_TAG, Value::Str(name)) => match name.as_slice() {
			b"nan" => Some(Value::Float(f64::NAN)),
			b"inf" => Some(Value::Float(f64::INFINITY)),
			b"-inf" => Some(Value::Float(f64::NEG_INFINITY)),
			_ => None,
		},
		_ => None,
	}
}

#[cfg(test)]
mod tests {
	use proptest::prelude::*;

	use super::*;

	fn table(entries: Vec<(Value, Value)>) -> Value {
		Value::Table(entries.into_iter().collect())
	}

	fn string(bytes: &[u8]) -> Value {
		Value::Str(bytes.to_vec())
	}

	/// Equality that tells 0.0 from -0.0 and finds NaN equal to itself.
	fn same(a: &Value, b: &Value) -> bool {
		match (a, b) {
			(Value::Float(a), Value::Float(b)) => a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan()),
			(Value::Table(a), Value::Table(b)) => {
				a.0.len() == b.0.len()
					&& a.0.iter().zip(b.0.iter()).all(|(a, b)| same(&a.0, &b.0) && same(&a.1, &b.1))
			}
			_ => a == b,
		}
	}

	#[test]
	fn plain_data_is_plain_json_with_sorted_keys() {
		let data = table(vec![
			(string(b"roles"), table(vec![(string(b"prosody:admin"), Value::Bool(true))])),
			(
				string(b"groups"),
				table(vec![(Value::Int(2), string(b"b")), (Value::Int(1), string("ä".as_bytes()))]),
			),
			(string(b"empty"), table(vec![])),
			(string(b"n"), Value::Int(9_007_199_254_740_993)),
			(string(b"x"), Value::Float(1.0)),
			(string(b"nothing"), Value::Null),
		]);
		assert_eq!(
			data.encode().unwrap(),
			r#"{"empty":{},"groups":["ä","b"],"n":9007199254740993,"nothing":null,"roles":{"prosody:admin":true},"x":1.0}"#
		);
	}

	#[test]
	fn the_length_of_what_is_written_is_known_before() {
		for value in [
			Value::Null,
			Value::Bool(false),
			Value::Int(0),
			Value::Int(-1),
			Value::Int(10),
			Value::Int(i64::MAX),
			Value::Int(i64::MIN),
			Value::Float(-f64::MIN_POSITIVE),
			string(b""),
			string("\u{0}\u{1f}\"\\\n\r\t\u{8}\u{c}\u{7f}ä🙂/".as_bytes()),
			string(b"\xff"),
			string(b"\xffabc"),
			table(vec![]),
		] {
			assert_eq!(value.encoded_length(), value.encode().unwrap().len(), "{}", value.encode().unwrap());
		}
	}

	#[test]
	fn what_json_cannot_say_is_tagged() {
		let text = |value: Value| value.encode().unwrap();
		assert_eq!(text(string(b"\xff")), r#"{"$bytes":"/w=="}"#);
		assert_eq!(text(Value::Float(f64::NEG_INFINITY)), r#"{"$float":"-inf"}"#);
		assert_eq!(
			text(table(vec![(Value::Int(1), string(b"a")), (string(b"k"), string(b"v"))])),
			r#"{"$table":[1,"a","k","v"]}"#
		);
		assert_eq!(text(table(vec![(string(b"$table"), Value::Int(1))])), r#"{"$table":["$table",1]}"#);
	}

	#[test]
	fn damaged_text_is_an_error_not_a_guess() {
		for text in [
			"",
			"{",
			"[1] 2",
			r#"{"$what":1}"#,
			r#"{"$bytes":"%"}"#,
			r#"{"$float":"big"}"#,
			r#"{"$table":[1]}"#,
			r#"{"$table":[null,1]}"#,
			r#"{"$table":[{"$float":"nan"},1]}"#,
			r#"{"a":1,"$bytes":""}"#,
			r#"{"$bytes":"","a":1}"#,
			"18446744073709551615",
		] {
			assert!(Value::decode(text).is_err(), "{text}");
		}
	}

	#[test]
	fn text_nested_without_end_is_refused_and_the_deepest_allowed_table_is_not() {
		assert!(Value::decode(&"[".repeat(1_000_000)).is_err());
		let deepest = (1..MAX_DEPTH).fold(table(vec![(Value::Bool(true), string(b"\xff"))]), |inner, _| {
			table(vec![(Value::Bool(true), inner)])
		});
		assert!(same(&Value::decode(&deepest.encode().unwrap()).unwrap(), &deepest));
	}

	fn any_value() -> impl Strategy<Value = Value> {
		let number = prop_oneof![any::<i64>().prop_map(Value::Int), any::<f64>().prop_map(Value::Float)];
		let key = prop_oneof![
			any::<bool>().prop_map(Value::Bool),
			(0..4i64).prop_map(Value::Int),
			any::<f64>().prop_filter("a key is no NaN", |n| !n.is_nan()).prop_map(Value::Float),
			"[$a-c]{0,3}".prop_map(String::into_bytes).prop_map(Value::Str),
			any::<Vec<u8>>().prop_map(Value::Str),
		];
		let leaf = prop_oneof![
			Just(Value::Null),
			any::<bool>().prop_map(Value::Bool),
			number,
			any::<Vec<u8>>().prop_map(Value::Str),
			any::<String>().prop_map(String::into_bytes).prop_map(Value::Str),
		];
		leaf.prop_recursive(4, 32, 5, move |inner| {
			prop_oneof![
				prop::collection::vec((key.clone(), inner.clone()), 0..5).prop_map(table),
				prop::collection::vec(inner, 0..5)
					.prop_map(|list| table((1..).map(Value::Int).zip(list).collect())),
			]
		})
	}

	proptest! {
		#[test]
		fn every_value_comes_back_as_it_was(value in any_value()) {
			let text = value.encode().unwrap();
			let back = Value::decode(&text).unwrap();
			prop_assert!(same(&back, &value), "{text}");
			prop_assert_eq!(back.encode().unwrap(), text);
		}
	}

	#[test]
	fn what_nobody_has_changed_is_written_back_as_it_was() {
		for text in [r#"{"note":"one"}"#, r#"{"note":"two"}"#, r#"{ "note" : "one" }"#] {
			let fields = Fields::from_stored(Some(text));
			assert_eq!(Value::Table(Table::clone(&fields)), Value::decode(text).unwrap());
			assert_eq!(fields.stored().unwrap().as_deref(), Some(text));
			let mut changed = fields.clone();
			changed.replace_text("o", "0");
			let expected = text.replace(' ', "").replace('o', "0");
			assert_eq!(changed.stored().unwrap().as_deref(), Some(expected.as_str()));
			assert_eq!(fields, Fields::from_stored(Some(text)), "nor does it change with its clones");
			changed.replace_text("three", "3");
			assert_eq!(changed.stored().unwrap().as_deref(), Some(expected.as_str()));
		}
		assert_eq!(Fields::default().stored().unwrap(), None);
		assert_eq!(Fields::from(Table::default()), Fields::from_stored(None));
	}

	#[test]
	fn a_secret_is_found_however_its_letters_were_written() {
		for text in
			[r#"{"link":"x?secret"}"#, r#"{"link":"x?\u0073ecret"}"#, r#"{"$table":["link","x?secret"]}"#]
		{
			let mut fields = Fields::from_stored(Some(text));
			fields.replace_text("secret", "(token)");
			assert_eq!(fields.get("link"), Some(&Value::text("x?(token)")), "{text}");
		}
		let mut quoted = Fields::from_stored(Some(r#"{"link":"a\"b"}"#));
		quoted.replace_text("a\"b", "c");
		assert_eq!(quoted.get("link"), Some(&Value::text("c")));
	}

	#[test]
	fn damaged_text_is_told_and_kept() {
		for text in ["[1", "true"] {
			let fields = Fields::from_stored(Some(text));
			assert!(fields.check().is_err() && fields.is_empty());
			assert_eq!(fields.stored().unwrap().as_deref(), Some(text));
			assert!(Table::decode(text).is_err());
		}
	}
}
