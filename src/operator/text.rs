//! Invites as an operator reads them: tables and lines that fit the terminal, and JSON for programs (the schema of
//! which is `spec/output.schema.json`).
//!
//! What others wrote (notes, names) is shown with its control characters escaped: it must not move the cursor, break a
//! line, or turn the direction of the text around it.

use std::fmt::Write as _;

use comfy_table::{ColumnConstraint, ContentArrangement, Row, Table, Width};
use jiff::tz::TimeZone;
use qrcode::QrCode;
use qrcode::render::unicode::Dense1x2;
use serde::Serialize;

use super::stats::{Kinds, States, Stats};
use crate::clock::Timestamp;
use crate::invite::{Invite, Kind};
use crate::listing::Part;
use crate::redemption::Redemption;
use crate::value::Value;

/// An invite for programs. Times are unix seconds; what is absent is not so, or not known.
#[derive(Serialize)]
struct Json<'a> {
	id: String,
	host: &'a str,
	state: &'static str,
	kind: &'static str,
	r#type: &'static str,
	jid: String,
	#[serde(skip_serializing_if = "Option::is_none")]
	username: Option<&'a str>,
	#[serde(skip_serializing_if = "Option::is_none")]
	inviter: Option<String>,
	allow_registration: bool,
	created_at: Timestamp,
	#[serde(skip_serializing_if = "Option::is_none")]
	expires: Option<Timestamp>,
	#[serde(skip_serializing_if = "Option::is_none")]
	max_uses: Option<u32>,
	uses: u32,
	#[serde(skip_serializing_if = "Option::is_none")]
	ended_at: Option<Timestamp>,
	#[serde(skip_serializing_if = "Option::is_none")]
	revoked_at: Option<Timestamp>,
	#[serde(skip_serializing_if = "Option::is_none")]
	revoked_why: Option<&'a str>,
	#[serde(skip_serializing_if = "Option::is_none")]
	revoked_by: Option<&'a str>,
	#[serde(skip_serializing_if = "Option::is_none")]
	note: Option<String>,
	#[serde(skip_serializing_if = "Option::is_none")]
	additional_data: Option<&'a Value>,
	#[serde(flatten, skip_serializing_if = "Option::is_none")]
	secret: Option<Secret>,
	#[serde(skip_serializing_if = "Option::is_none")]
	redemptions: Option<Vec<JsonUse<'a>>>,
}

/// What redeems the invite.
#[derive(Serialize)]
struct Secret {
	token: String,
	uri: String,
	link: String,
	#[serde(skip_serializing_if = "Option::is_none")]
	landing_page: Option<String>,
}

#[derive(Serialize)]
struct JsonUse<'a> {
	used_at: Timestamp,
	purpose: &'static str,
	#[serde(skip_serializing_if = "Option::is_none")]
	invitee: Option<&'a str>,
	#[serde(skip_serializing_if = "Option::is_none")]
	source: Option<&'a str>,
}

/// How much of an invite is shown.
#[derive(Clone, Copy, Debug, Default)]
pub struct Detail<'a> {
	/// Its token and links too.
	pub show_token: bool,
	/// Whether anybody can register in-band on its host: its link says so.
	pub is_in_band: bool,
	/// Who used it, where the caller has looked.
	pub redemptions: Option<&'a [Redemption]>,
}

/// One invite as one line of JSON.
#[must_use]
pub fn json(invite: &Invite, detail: Detail<'_>, now: Timestamp) -> String {
	as_line(&Json {
		id: invite.digest.id().to_string(),
		host: &invite.host,
		state: invite.state(now).as_str(),
		kind: invite.kind().as_str(),
		r#type: invite.invite_type.as_str(),
		jid: invite.jid(),
		username: invite.username.as_deref(),
		inviter: invite.inviter(),
		allow_registration: invite.allow_registration,
		created_at: invite.created_at,
		expires: invite.expires,
		max_uses: invite.max_uses,
		uses: invite.uses,
		ended_at: invite.position(Part::History, now).map(|position| position.at),
		revoked_at: invite.revoked_at,
		revoked_why: invite.revoked_why.as_deref(),
		revoked_by: invite.revoked_by.as_deref(),
		note: text_of(invite.additional_data("note")),
		additional_data: invite.fields.get("additional_data"),
		secret: if detail.show_token { secret(invite, detail.is_in_band) } else { None },
		redemptions: detail.redemptions.map(|redemptions| redemptions.iter().map(json_use).collect()),
	})
}

fn json_use(redemption: &Redemption) -> JsonUse<'_> {
	JsonUse {
		used_at: redemption.used_at,
		purpose: redemption.purpose.as_str(),
		invitee: redemption.invitee.as_deref(),
		source: redemption.source.as_deref(),
	}
}

fn text_of(value: Option<&Value>) -> Option<String> {
	match value {
		Some(Value::Str(text)) => Some(String::from_utf8_lossy(text).into_owned()),
		_ => None,
	}
}

/// As [`escape`] shows it.
pub(super) fn shown(value: Option<&Value>) -> Option<String> {
	match value {
		Some(Value::Str(text)) => Some(escape(text)),
		_ => None,
	}
}

fn secret(invite: &Invite, is_in_band: bool) -> Option<Secret> {
	let token = invite.token.as_ref()?;
	let uri = text_of(invite.fields.get("uri")).unwrap_or_else(|| invite.uri(token, is_in_band));
	let landing_page = text_of(invite.fields.get("landing_page"));
	let link = landing_page.clone().unwrap_or_else(|| uri.clone());
	Some(Secret { token: token.reveal().to_owned(), uri, link, landing_page })
}

/// A column of a listing.
struct ListColumn {
	title: &'static str,
	width: u16,
	cell: fn(&Invite, Timestamp) -> String,
}

const ID: ListColumn =
	ListColumn { title: "ID", width: 16, cell: |invite, _| invite.digest.id().to_string() };
const STATE: ListColumn =
	ListColumn { title: "STATE", width: 7, cell: |invite, now| invite.state(now).as_str().to_owned() };
const KIND: ListColumn =
	ListColumn { title: "KIND", width: 7, cell: |invite, _| invite.kind().as_str().to_owned() };
const USES: ListColumn = ListColumn { title: "USES", width: 7, cell: |invite, _| uses(invite, "/") };
const EXPIRES: ListColumn = ListColumn {
	title: "EXPIRES",
	width: 16,
	cell: |invite, _| invite.expires.map_or_else(|| "never".to_owned(), |expires| time(expires, MINUTES)),
};
const ENDED: ListColumn = ListColumn {
	title: "ENDED",
	width: 16,
	cell: |invite, now| {
		let position = invite.position(Part::History, now);
		position.map_or_else(String::new, |position| time(position.at, MINUTES))
	},
};

/// What the last column, which takes what is left of the line, needs at least.
const MIN_ABOUT: u16 = 15;

/// A listing, page by page. Which columns there are and how wide they are depends on the width alone, so that all pages
/// fit together.
pub struct Listing {
	part: Part,
	columns: Vec<ListColumn>,
	about: u16,
	show_token: bool,
}

impl Listing {
	/// For lines of so many columns. The less there is to say in a column, the sooner it is left out.
	#[must_use]
	pub fn new(part: Part, show_token: bool, width: u16) -> Self {
		let time = if part == Part::Open { EXPIRES } else { ENDED };
		let mut left = width.saturating_sub(ID.width + 1);
		let mut columns = vec![ID];
		// By importance; and so they stand, which leaves them in place when the next one fits too.
		for column in [STATE, time, KIND, USES] {
			if left < column.width + 1 + MIN_ABOUT {
				break;
			}
			left -= column.width + 1;
			columns.push(column);
		}
		Self { part, columns, about: left.max(MIN_ABOUT), show_token }
	}

	/// The line above the first page.
	#[must_use]
	pub fn header(&self) -> String {
		let titles = self.columns.iter().map(|column| column.title.to_owned());
		self.rows([titles.chain(["ABOUT".to_owned()]).collect()])
	}

	/// One line for each invite; with tokens, a second one with the link. `is_in_band` says whether anybody can register
	/// in-band on their host.
	#[must_use]
	pub fn page(&self, invites: &[Invite], is_in_band: bool, now: Timestamp) -> String {
		let row = |invite: &Invite| -> Vec<String> {
			let cells = self.columns.iter().map(|column| (column.cell)(invite, now));
			let about = if self.part == Part::Open { about(invite) } else { ending(invite) };
			cells.chain([escape(about.as_bytes())]).collect()
		};
		if !self.show_token {
			return self.rows(invites.iter().map(row));
		}
		let mut text = String::new();
		for invite in invites {
			text += &self.rows([row(invite)]);
			if let Some(secret) = secret(invite, is_in_band) {
				// Never cut off, however narrow the terminal.
				_ = writeln!(text, "  {}", escape(secret.link.as_bytes()));
			}
		}
		text
	}

	fn rows(&self, rows: impl IntoIterator<Item = Vec<String>>) -> String {
		let mut table = bare_table();
		// Cut anywhere, not between words: what is escaped holds no such character.
		table.set_delimiter('\0');
		for cells in rows {
			let mut row = Row::from(cells);
			row.max_height(1);
			table.add_row(row);
		}
		let widths = self.columns.iter().map(|column| column.width + 1).chain([self.about + 1]);
		for (column, width) in table.column_iter_mut().zip(widths) {
			column.set_constraint(ColumnConstraint::Absolute(Width::Fixed(width)));
		}
		finish(table)
	}
}

/// One invite in full, a line for each thing that there is to say.
#[must_use]
pub fn text(invite: &Invite, detail: Detail<'_>, now: Timestamp, width: u16) -> String {
	let mut said: Vec<(&str, String)> = vec![
		("id", invite.digest.id().to_string()),
		("state", invite.state(now).as_str().to_owned()),
		("kind", invite.kind().as_str().to_owned()),
		("about", about_itself(invite)),
		("uses", uses(invite, " of ")),
		("created", time(invite.created_at, SECONDS)),
		("expires", invite.expires.map_or_else(|| "never".to_owned(), |expires| time(expires, SECONDS))),
	];
	let mut say = |name, value: Option<String>| said.extend(value.map(|value| (name, value)));
	say("inviter", invite.inviter());
	if let Some(ended) = invite.position(Part::History, now) {
		say("ended", Some(time(ended.at, SECONDS)));
	}
	say("revoked by", invite.revoked_by.clone());
	say("because", invite.revoked_why.clone());
	say("note", shown(invite.additional_data("note")));
	for name in ["roles", "groups"] {
		say(name, invite.additional_data(name).and_then(names));
	}
	for redemption in detail.redemptions.unwrap_or_default() {
		let invitee = redemption.invitee.as_deref().unwrap_or("somebody");
		let source = redemption.source.as_ref().map_or_else(String::new, |source| format!(" ({source})"));
		say("used", Some(format!("{} by {invitee}{source}", time(redemption.used_at, SECONDS))));
	}
	let rows = said.into_iter().map(|(name, value)| (name.to_owned(), escape(value.as_bytes())));
	let mut text = lines(rows, width);
	if let Some(secret) = secret(invite, detail.is_in_band).filter(|_| detail.show_token) {
		// Whole on a line of its own, to be copied.
		text += &escape(secret.link.as_bytes());
		text.push('\n');
	}
	text
}

/// Counts for people.
#[must_use]
pub fn stats_text(stats: &Stats, width: u16) -> String {
	let States { pending, paused, used, expired, revoked } = &stats.states;
	let Kinds { account, contact, group, reset } = &stats.open_kinds;
	let rows = [
		("pending", pending),
		("paused", paused),
		("used", used),
		("expired", expired),
		("revoked", revoked),
		("open for an account", account),
		("open for a contact", contact),
		("open for a group", group),
		("open to reset a password", reset),
		("uses", &stats.uses),
	];
	lines(rows.map(|(name, count)| (name.to_owned(), count.to_string())), width)
}

/// Counts as one line of JSON.
#[must_use]
pub fn stats_json(stats: &Stats) -> String {
	as_line(stats)
}

/// One line of JSON. What is shown here has text for keys, so nothing can go wrong.
pub(super) fn as_line(value: &impl Serialize) -> String {
	serde_json::to_string(value).unwrap_or_else(|error| error.to_string()) + "\n"
}

/// Names and values, two columns, the values wrapped.
fn lines(rows: impl IntoIterator<Item = (String, String)>, width: u16) -> String {
	let mut table = bare_table();
	table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
	for (name, value) in rows {
		table.add_row([name, value]);
	}
	if let Some(names) = table.column_mut(0) {
		names.set_constraint(ColumnConstraint::ContentWidth);
	}
	finish(table)
}

/// Without lines, and with one space between columns.
fn bare_table() -> Table {
	let mut table = Table::new();
	table.load_style(comfy_table::presets::NOTHING).set_truncation_indicator("…");
	table
}

fn finish(mut table: Table) -> String {
	for column in table.column_iter_mut() {
		column.set_padding((0, 1));
	}
	table.lines().fold(String::new(), |text, line| text + line.trim_end() + "\n")
}

pub(super) fn uses(invite: &Invite, of: &str) -> String {
	invite
		.max_uses
		.map_or_else(|| format!("{}{of}∞", invite.uses), |max_uses| format!("{}{of}{max_uses}", invite.uses))
}

/// What an open invite is about, the note first: it was written to tell invites apart.
fn about(invite: &Invite) -> String {
	let itself = about_itself(invite);
	shown(invite.additional_data("note")).map_or_else(|| itself.clone(), |note| format!("{note} ({itself})"))
}

fn about_itself(invite: &Invite) -> String {
	match (invite.kind(), &invite.username) {
		(Kind::Contact, _) if invite.allow_registration => format!("contact of {} and account", invite.jid()),
		(Kind::Contact, _) => format!("contact of {}", invite.jid()),
		(Kind::Reset, _) => format!("new password for {}", invite.jid()),
		(Kind::Account | Kind::Group, Some(_)) => format!("account {}", invite.jid()),
		(Kind::Account, None) => "account".to_owned(),
		(Kind::Group, None) => {
			let groups = invite.additional_data("groups").and_then(names);
			format!("account in {}", groups.unwrap_or_else(|| "groups".to_owned()))
		}
	}
}

/// How an invite ended, and what it was about.
fn ending(invite: &Invite) -> String {
	let mut text = about(invite);
	if let Some(by) = &invite.revoked_by {
		_ = write!(text, ", by {by}");
	}
	if let Some(why) = &invite.revoked_why {
		_ = write!(text, ": {why}");
	}
	text
}

/// The names in a list or a map of them.
pub(super) fn names(value: &Value) -> Option<String> {
	let Value::Table(table) = value else { return shown(Some(value)) };
	let names: Vec<String> = table
		.entries()
		.iter()
		.filter_map(|(key, value)| match (key, value) {
			(_, Value::Str(_)) => shown(Some(value)),
			(Value::Str(_), Value::Bool(true)) => shown(Some(key)),
			_ => None,
		})
		.collect();
	if names.is_empty() { None } else { Some(names.join(", ")) }
}

pub(super) const MINUTES: &str = "%Y-%m-%d %H:%M";
pub(super) const SECONDS: &str = "%Y-%m-%d %H:%M:%S";

/// In the time zone of the machine.
pub(super) fn time(seconds: Timestamp, format: &str) -> String {
	jiff::Timestamp::from_second(seconds).map_or_else(
		|_| seconds.to_string(),
		|time| time.to_zoned_datetime(TimeZone::system()).strftime(format).to_string(),
	)
}

/// Text of others on one line and in one direction: control characters, characters that turn the direction of text, and
/// bytes that are no text are written out.
#[must_use]
pub fn escape(bytes: &[u8]) -> String {
	let mut text = String::new();
	for chunk in bytes.utf8_chunks() {
		for character in chunk.valid().chars() {
			let turns = matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
			let breaks = character.is_control() || matches!(character, '\u{2028}' | '\u{2029}');
			if turns || breaks {
				text.extend(character.escape_default());
			} else {
				text.push(character);
			}
		}
		for byte in chunk.invalid() {
			_ = write!(text, "\\x{byte:02x}");
		}
	}
	text
}

/// The link that is passed on, where the store still has its token.
#[must_use]
pub fn link(invite: &Invite, is_in_band: bool) -> Option<String> {
	secret(invite, is_in_band).map(|secret| secret.link)
}

/// The link without a web page, and the web page, where the store still has its token.
pub(super) fn links(invite: &Invite, is_in_band: bool) -> (Option<String>, Option<String>) {
	secret(invite, is_in_band).map_or((None, None), |secret| (Some(secret.uri), secret.landing_page))
}

/// A link as a QR code of block characters, with the light border that scanners need. None if it is too long for one.
#[must_use]
pub fn qr(link: &str) -> Option<String> {
	let code = QrCode::new(link).ok()?;
	// Light on a dark terminal: what is drawn are the light modules.
	let image = code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build();
	Some(image + "\n")
}

#[cfg(test)]
mod tests;
