//! How many invites a host has, of which state and kind.

use serde::Serialize;

use crate::clock::Timestamp;
use crate::invite::{Invite, Kind};
use crate::lifecycle::State;

/// Counts of a host's invites.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Stats {
	/// How many are in each state.
	pub states: States,
	/// How many of those that are open are of each kind.
	pub open_kinds: Kinds,
	/// How often those that are still known were used.
	pub uses: u64,
}

/// Counts by state.
#[derive(Clone, Debug, Default, Serialize)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct States {
	pub pending: u64,
	pub paused: u64,
	pub used: u64,
	pub expired: u64,
	pub revoked: u64,
}

/// Counts by kind.
#[derive(Clone, Debug, Default, Serialize)]
#[expect(missing_docs, reason = "the names say it all")]
pub struct Kinds {
	pub account: u64,
	pub contact: u64,
	pub group: u64,
	pub reset: u64,
}

impl Stats {
	/// Counts one more invite.
	pub fn add(&mut self, invite: &Invite, now: Timestamp) {
		let state = invite.state(now);
		*match state {
			State::Pending => &mut self.states.pending,
			State::Paused => &mut self.states.paused,
			State::Used => &mut self.states.used,
			State::Expired => &mut self.states.expired,
			State::Revoked => &mut self.states.revoked,
		} += 1;
		if matches!(state, State::Pending | State::Paused) {
			*match invite.kind() {
				Kind::Account => &mut self.open_kinds.account,
				Kind::Contact => &mut self.open_kinds.contact,
				Kind::Group => &mut self.open_kinds.group,
				Kind::Reset => &mut self.open_kinds.reset,
			} += 1;
		}
		self.uses += u64::from(invite.uses);
	}
}
