//! What an invite is good for at a moment: the one place for each rule about it.
//!
//! Whether it may be redeemed while others try the same is in [`crate::redemption`].

use crate::clock::Timestamp;
use crate::invite::{Invite, Type};
use crate::redemption::Purpose;

/// Where an invite stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
	/// May still be redeemed.
	Pending,
	/// Not accepted until it is resumed.
	Paused,
	/// Redeemed as often as it may be.
	Used,
	/// Its time is over.
	Expired,
	/// Taken back.
	Revoked,
}

impl State {
	/// The word for it, on the command line and in what programs read.
	#[must_use]
	pub const fn as_str(self) -> &'static str {
		match self {
			Self::Pending => "pending",
			Self::Paused => "paused",
			Self::Used => "used",
			Self::Expired => "expired",
			Self::Revoked => "revoked",
		}
	}

	/// From the word.
	#[must_use]
	pub fn from_word(word: &str) -> Option<Self> {
		[Self::Pending, Self::Paused, Self::Used, Self::Expired, Self::Revoked]
			.into_iter()
			.find(|known| known.as_str() == word)
	}
}

impl Invite {
	/// Expired from the second after `expires` on, everywhere: the bundled module had two rules.
	#[must_use]
	pub fn is_expired(&self, now: Timestamp) -> bool {
		self.expires.is_some_and(|expires| now > expires)
	}

	/// Whether uses are left, whatever the time.
	#[must_use]
	pub fn has_uses_left(&self) -> bool {
		self.max_uses.is_none_or(|max_uses| self.uses < max_uses)
	}

	/// Where it stands. What was done to it counts before what time did to it.
	#[must_use]
	pub fn state(&self, now: Timestamp) -> State {
		if !self.has_uses_left() {
			State::Used
		} else if self.revoked_at.is_some() {
			State::Revoked
		} else if self.is_expired(now) {
			State::Expired
		} else if self.paused {
			State::Paused
		} else {
			State::Pending
		}
	}

	/// Whether it is an invite for this purpose at all, in whatever state.
	#[must_use]
	pub fn serves(&self, purpose: Purpose) -> bool {
		match purpose {
			Purpose::Account => self.allow_registration,
			Purpose::Contact => self.invite_type == Type::Roster,
		}
	}
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::store::conformance::sample;

	fn invite() -> Invite {
		Invite { expires: Some(100), allow_registration: false, ..sample("example.com", "t") }
	}

	#[test]
	fn the_last_second_is_still_valid() {
		assert_eq!(invite().state(100), State::Pending);
		assert_eq!(invite().state(101), State::Expired);
	}

	#[test]
	fn without_an_end_it_never_expires() {
		assert_eq!(Invite { expires: None, ..invite() }.state(Timestamp::MAX), State::Pending);
	}

	#[test]
	fn a_limit_is_used_up_and_no_limit_is_not() {
		assert_eq!(Invite { uses: 1, ..invite() }.state(0), State::Used);
		assert_eq!(Invite { uses: 4, max_uses: Some(5), ..invite() }.state(0), State::Pending);
		assert_eq!(Invite { uses: u32::MAX, max_uses: None, ..invite() }.state(0), State::Pending);
	}

	#[test]
	fn what_was_done_to_it_outlasts_its_expiry() {
		assert_eq!(Invite { uses: 1, ..invite() }.state(101), State::Used);
		assert_eq!(Invite { revoked_at: Some(1), ..invite() }.state(101), State::Revoked);
		assert_eq!(Invite { uses: 1, revoked_at: Some(1), ..invite() }.state(101), State::Used);
	}

	#[test]
	fn a_contact_invite_serves_no_registration_unless_allowed() {
		assert!(invite().serves(Purpose::Contact));
		assert!(!invite().serves(Purpose::Account));
		assert!(Invite { allow_registration: true, ..invite() }.serves(Purpose::Account));
		let bound = Invite { invite_type: Type::Register, allow_registration: true, ..invite() };
		assert!(bound.serves(Purpose::Account));
		assert!(!bound.serves(Purpose::Contact));
	}
}
