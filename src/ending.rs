//! The end of many invites: one row, from which on they count as revoked.
//!
//! To revoke ten thousand invites takes seconds, and nobody is to wait for that. So where there are many, their end begins
//! with an [`Ending`]: whatever it [covers](Ending::covers) counts as revoked from the moment on in which that is
//! stored. The invites themselves are ended later, a batch at a time.

use crate::clock::Timestamp;
use crate::invite::{Invite, Kind, Type};

/// How an invite is tied to a local user: by what its row holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tie<'a> {
	/// It was made by this user.
	MadeBy(&'a str),
	/// One becomes a contact of this user.
	ContactOf(&'a str),
	/// It resets the password of this user.
	ResetOf(&'a str),
}

impl Invite {
	/// Whether it is tied to a user this way.
	#[must_use]
	pub fn is_tied(&self, tie: Tie<'_>) -> bool {
		let is_about = |name: &str| self.username.as_deref() == Some(name);
		match tie {
			Tie::MadeBy(name) => self.local_inviter().as_deref() == Some(name),
			Tie::ContactOf(name) => self.invite_type == Type::Roster && is_about(name),
			Tie::ResetOf(name) => self.kind() == Kind::Reset && is_about(name),
		}
	}
}

/// Which invites of a user end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scope {
	/// Those that the user made.
	Made,
	/// Those that depend on the user's account ([`Invite::depends_on`]).
	Depending,
	/// Those that reset the user's password.
	Resets,
}

impl Scope {
	/// The stored word.
	#[must_use]
	pub const fn as_str(self) -> &'static str {
		match self {
			Self::Made => "made",
			Self::Depending => "depending",
			Self::Resets => "reset",
		}
	}

	/// From the stored word.
	#[must_use]
	pub fn from_stored(word: &str) -> Option<Self> {
		[Self::Made, Self::Depending, Self::Resets].into_iter().find(|known| known.as_str() == word)
	}
}

/// The end of the invites of one user, from when it begins until somewhat after the last of them has ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
	/// The localpart of the user.
	pub username: String,
	/// Which invites.
	pub scope: Scope,
	/// When they end.
	pub at: Timestamp,
	/// What was made later is spared: it is of whoever has the name by then.
	pub made_until: Timestamp,
	/// Why, for people to read.
	pub why: Option<String>,
	/// By whom.
	pub by: Option<String>,
	/// How many were ended so far.
	pub ended: u32,
	/// From when on somebody goes on with it; [`Self::UNDER_WAY`] as long as some are left.
	pub due: Timestamp,
}

impl Ending {
	/// As [`Self::due`].
	pub const UNDER_WAY: Timestamp = 0;

	/// Seconds for which it stays after the last invite has ended: what was being made or looked at when it began is done
	/// by then.
	pub const LINGER: i64 = 60;

	/// How the invites that it is about are tied to the user.
	#[must_use]
	pub fn ties(&self) -> Vec<Tie<'_>> {
		let name = &self.username;
		match self.scope {
			Scope::Made => vec![Tie::MadeBy(name)],
			Scope::Depending => vec![Tie::MadeBy(name), Tie::ContactOf(name), Tie::ResetOf(name)],
			Scope::Resets => vec![Tie::ResetOf(name)],
		}
	}

	/// Whether it is about an invite, whenever that was made.
	#[must_use]
	pub fn is_about(&self, invite: &Invite) -> bool {
		self.ties().into_iter().any(|tie| invite.is_tied(tie))
	}

	/// Whether it ends an invite.
	#[must_use]
	pub fn covers(&self, invite: &Invite) -> bool {
		invite.ended_at.is_none() && invite.created_at <= self.made_until && self.is_about(invite)
	}

	/// Revokes an invite that it covers; whether it did.
	pub(crate) fn end(&self, invite: &mut Invite) -> bool {
		self.covers(invite) && invite.revoke(self.why.as_deref(), self.by.as_deref(), self.at)
	}

	/// What becomes of it where another one of the same user and scope is under way: one row covers what both cover.
	pub(crate) fn join(&mut self, other: &Self) {
		self.made_until = self.made_until.max(other.made_until);
		if other.due == Self::UNDER_WAY {
			self.ended = self.ended.saturating_add(other.ended);
		}
	}
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::store::conformance::{made_by, sample};
	use crate::value::Value;

	const NOW: Timestamp = 1_700_000_000;

	fn ending(username: &str, scope: Scope) -> Ending {
		Ending {
			username: username.to_owned(),
			scope,
			at: NOW + 5,
			made_until: NOW,
			why: Some("why".to_owned()),
			by: None,
			ended: 0,
			due: Ending::UNDER_WAY,
		}
	}

	fn reset(username: &str) -> Invite {
		let data = [(Value::text("allow_reset"), Value::text(username))].into_iter().collect();
		Invite {
			invite_type: Type::Register,
			username: Some(username.to_owned()),
			fields: [(Value::text("additional_data"), Value::Table(data))].into_iter().collect(),
			..sample("example.com", "reset")
		}
	}

	#[test]
	fn an_end_is_about_what_its_scope_says_and_about_nobody_else() {
		let contact = Invite { username: Some("juliet".to_owned()), ..sample("example.com", "contact") };
		let bound = Invite { username: Some("juliet".to_owned()), ..made_by("nurse", "bound") };
		for (invite, of) in [
			(made_by("juliet", "made"), [true, true, false]),
			(contact, [true, true, false]),
			(reset("juliet"), [false, true, true]),
			(bound, [false, false, false]),
			(made_by("nurse", "other"), [false, false, false]),
		] {
			let found = [Scope::Made, Scope::Depending, Scope::Resets]
				.map(|scope| ending("juliet", scope).covers(&invite));
			assert_eq!(found, of, "{invite:?}");
			assert_eq!(of[1], invite.depends_on().contains(&"juliet".to_owned()), "one notion of depending");
		}
	}

	#[test]
	fn an_end_spares_what_was_made_later_or_has_ended() {
		let of_moment = made_by("juliet", "t");
		let later = Invite { created_at: NOW + 1, ..of_moment.clone() };
		let over = Invite { ended_at: Some(NOW), ..of_moment.clone() };
		let made = ending("juliet", Scope::Made);
		assert_eq!([&of_moment, &later, &over].map(|invite| made.covers(invite)), [true, false, false]);
		let mut ended = of_moment;
		assert!(made.end(&mut ended) && !made.end(&mut ended), "once");
		assert_eq!((ended.revoked_at, ended.revoked_why.as_deref()), (Some(NOW + 5), Some("why")));
	}

	#[test]
	fn of_two_ends_one_row_covers_what_both_cover() {
		let mut newer = Ending { made_until: NOW + 3, ended: 2, ..ending("juliet", Scope::Made) };
		newer.join(&Ending { made_until: NOW + 9, ended: 5, ..newer.clone() });
		assert_eq!((newer.made_until, newer.ended), (NOW + 9, 7));
		newer.join(&Ending { due: NOW, ended: 100, ..newer.clone() });
		assert_eq!((newer.made_until, newer.ended), (NOW + 9, 7), "that one is over");
	}
}
