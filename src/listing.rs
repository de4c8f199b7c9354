//! Which invites a listing shows, and in which order.
//!
//! It goes through one of two parts, as nobody wants a week's pending invites between a year's used ones: what is open, the newest
//! first, and the history, the last ended first. A listing comes in pages; each goes on after the [`Position`] of the
//! last invite of the one before, so what is made or ended meanwhile neither shifts nor repeats anything.

use std::borrow::Cow;

use crate::clock::Timestamp;
use crate::invite::{Invite, Kind, local_user};
use crate::lifecycle::State;
use crate::token::Digest;
use crate::value::{Table, Value};

/// What a listing goes through: not all invites of a host, but one half of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
	/// Invites that have not ended, the last created first.
	Open,
	/// Invites that were used up or revoked, or have expired, the last ended first.
	History,
}

impl Part {
	/// The word for it.
	#[must_use]
	pub const fn as_str(self) -> &'static str {
		match self {
			Self::Open => "open",
			Self::History => "history",
		}
	}

	/// From the word.
	#[must_use]
	pub fn from_word(word: &str) -> Option<Self> {
		[Self::Open, Self::History].into_iter().find(|known| known.as_str() == word)
	}
}

/// A place in a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
	/// When the invite there was created, or ended.
	pub at: Timestamp,
	/// The invite there.
	pub digest: Digest,
}

impl Position {
	/// Before everything in a part.
	pub const START: Self = Self { at: Timestamp::MAX, digest: Digest::from_bytes([u8::MAX; 32]) };
}

impl Invite {
	/// Where it stands in a part at a moment; none if it is not there.
	#[must_use]
	pub fn position(&self, part: Part, now: Timestamp) -> Option<Position> {
		let expired_at = if self.is_expired(now) { self.expires } else { None };
		let at = match part {
			Part::Open => self.ended_at.is_none().then_some(self.created_at),
			Part::History => self.ended_at.or(expired_at),
		};
		at.map(|at| Position { at, digest: self.digest })
	}
}

/// What a listing picks. Everything that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
	/// In this state.
	pub state: Option<State>,
	/// Of this kind.
	pub kind: Option<Kind>,
	/// By this inviter: a username or a bare JID.
	pub inviter: Option<String>,
	/// With this text in the username, the additional data or the reason of the revocation, in upper or lower case.
	pub text: Option<String>,
}

impl Filter {
	/// The part that holds what is in the state asked for; without one, what is open.
	#[must_use]
	pub const fn part(&self) -> Part {
		match self.state {
			None | Some(State::Pending | State::Paused) => Part::Open,
			Some(State::Used | State::Expired | State::Revoked) => Part::History,
		}
	}

	/// Whether it picks this invite for a part.
	#[must_use]
	pub fn picks(&self, invite: &Invite, part: Part, now: Timestamp) -> bool {
		let state = invite.state(now);
		let is_open = matches!(state, State::Pending | State::Paused);
		is_open == (part == Part::Open)
			&& self.state.is_none_or(|wanted| wanted == state)
			&& self.kind.is_none_or(|wanted| wanted == invite.kind())
			&& self.inviter.as_deref().is_none_or(|wanted| is_inviter(invite, wanted))
			&& self.text.as_deref().is_none_or(|wanted| holds_text(invite, &wanted.to_lowercase()))
	}
}

/// Whether somebody made the invite, or it ends with the account: all that a deletion will revoke is listed beforehand.
fn is_inviter(invite: &Invite, wanted: &str) -> bool {
	let username = local_user(wanted, &invite.host).unwrap_or(Cow::Borrowed(wanted));
	invite.inviter().is_some_and(|inviter| inviter == wanted)
		|| invite.depends_on().iter().any(|name| *name == username)
}

fn holds_text(invite: &Invite, wanted: &str) -> bool {
	let columns = [&invite.username, &invite.revoked_why, &invite.revoked_by];
	columns.into_iter().flatten().any(|text| text.to_lowercase().contains(wanted))
		|| invite.fields.get("additional_data").is_some_and(|data| value_holds_text(data, wanted))
}

fn value_holds_text(value: &Value, wanted: &str) -> bool {
	match value {
		Value::Str(bytes) => String::from_utf8_lossy(bytes).to_lowercase().contains(wanted),
		Value::Table(table) => table_holds_text(table, wanted),
		_ => false,
	}
}

fn table_holds_text(table: &Table, wanted: &str) -> bool {
	// The names of the fields are not what anybody looks for.
	table.entries().iter().any(|(_, value)| value_holds_text(value, wanted))
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::invite::Type;
	use crate::store::conformance::sample;

	const NOW: Timestamp = 1_700_000_000;

	fn picks(filter: &Filter, invite: &Invite) -> bool {
		filter.picks(invite, filter.part(), NOW)
	}

	fn state(state: State) -> Filter {
		Filter { state: Some(state), ..Filter::default() }
	}

	#[test]
	fn without_a_state_a_listing_shows_what_is_open() {
		let open = sample("example.com", "t");
		assert!(picks(&Filter::default(), &open));
		assert!(picks(&Filter::default(), &Invite { paused: true, ..open.clone() }));
		for over in [
			Invite { expires: Some(NOW - 1), ..open.clone() },
			Invite { uses: 1, ended_at: Some(NOW), ..open.clone() },
			Invite { revoked_at: Some(NOW), ended_at: Some(NOW), ..open },
		] {
			assert!(!picks(&Filter::default(), &over));
			assert!(picks(&state(over.state(NOW)), &over));
			assert!(!picks(&state(State::Pending), &over));
		}
	}

	#[test]
	fn what_has_expired_is_history_before_anybody_noted_it() {
		let expired = Invite { expires: Some(NOW - 1), ..sample("example.com", "t") };
		let position = expired.position(Part::History, NOW);
		assert_eq!(position, Some(Position { at: NOW - 1, digest: expired.digest }));
		assert_eq!(expired.position(Part::History, NOW - 1), None);
	}

	#[test]
	fn an_inviter_is_found_by_name_and_by_address_whatever_the_kind() {
		let contact = sample("example.com", "t");
		let source = [(Value::text("source"), Value::text("jörg@example.com/phone"))];
		let account = Invite {
			invite_type: Type::Register,
			username: Some("bob".to_owned()),
			fields: [(Value::text("additional_data"), Value::Table(source.into_iter().collect()))]
				.into_iter()
				.collect(),
			..contact.clone()
		};
		for invite in [contact, account] {
			for (inviter, found) in
				[("jörg", true), ("jörg@example.com", true), ("bob", false), ("örg", false)]
			{
				let filter = Filter { inviter: Some(inviter.to_owned()), ..Filter::default() };
				assert_eq!(picks(&filter, &invite), found, "{inviter} of {invite:?}");
			}
		}
	}

	#[test]
	fn text_is_found_in_data_and_names_in_upper_and_lower_case_but_not_in_links() {
		let note = [(Value::text("note"), Value::text("For the Café"))];
		let invite = Invite {
			fields: [
				(Value::text("additional_data"), Value::Table(note.into_iter().collect())),
				(Value::text("landing_page"), Value::text("https://example.com/?secret")),
			]
			.into_iter()
			.collect(),
			..sample("example.com", "t")
		};
		for (text, found) in [("CAFÉ", true), ("jör", true), ("secret", false), ("note", false)] {
			let filter = Filter { text: Some(text.to_owned()), ..Filter::default() };
			assert_eq!(picks(&filter, &invite), found, "{text}");
		}
	}
}
