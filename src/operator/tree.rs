//! The branch of an inviter: accounts, each with the invites that it made and, below it, the accounts that it brought.

use std::fmt::Write as _;

use serde::Serialize;

use super::text::{MINUTES, as_line, escape, time, uses};
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::lineage::Place;
use crate::policy::kind_word;
use crate::redemption::Account;

/// An account in a branch for programs: one line of it. What is absent is not so, or not known.
#[derive(Serialize)]
struct Json<'a> {
	jid: String,
	username: &'a str,
	account: &'static str,
	depth: usize,
	#[serde(skip_serializing_if = "Option::is_none")]
	inviter: Option<&'a str>,
	#[serde(skip_serializing_if = "Option::is_none")]
	invite: Option<String>,
	#[serde(skip_serializing_if = "Option::is_none")]
	joined_at: Option<Timestamp>,
	invites: Vec<JsonInvite>,
}

#[derive(Serialize)]
struct JsonInvite {
	id: String,
	kind: &'static str,
	state: &'static str,
	created_at: Timestamp,
	uses: u32,
	#[serde(skip_serializing_if = "Option::is_none")]
	max_uses: Option<u32>,
}

/// One account of a branch.
pub struct Branch<'a> {
	/// The host of all of them.
	pub host: &'a str,
	/// Which account, and where it stands.
	pub place: &'a Place,
	/// Whether there is such an account.
	pub account: Account,
	/// The invites that it made and that are still known.
	pub invites: &'a [Invite],
}

impl Branch<'_> {
	fn jid(&self) -> String {
		format!("{}@{}", self.place.username, self.host)
	}

	/// As one line of JSON.
	#[must_use]
	pub fn json(&self, now: Timestamp) -> String {
		let brought = self.place.brought.as_ref();
		let invite = |invite: &Invite| JsonInvite {
			id: invite.digest.id().to_string(),
			kind: kind_word(invite),
			state: invite.state(now).as_str(),
			created_at: invite.created_at,
			uses: invite.uses,
			max_uses: invite.max_uses,
		};
		as_line(&Json {
			jid: self.jid(),
			username: &self.place.username,
			account: word(self.account),
			depth: self.place.depth,
			inviter: brought.map(|member| member.inviter.as_str()),
			invite: brought.map(|member| member.digest.id().to_string()),
			joined_at: brought.and_then(|member| member.joined_at),
			invites: self.invites.iter().map(invite).collect(),
		})
	}

	/// As lines: the account, and below it its invites. Further in by its depth.
	#[must_use]
	pub fn text(&self, now: Timestamp) -> String {
		let indent = "  ".repeat(self.place.depth);
		let account = match self.account {
			Account::Active => String::new(),
			account => format!(" ({})", word(account)),
		};
		let since = match &self.place.brought {
			Some(member) if self.place.depth == 0 => format!(", invited by {}", member.inviter),
			Some(member) => {
				member.joined_at.map_or_else(String::new, |at| format!(", {}", time(at, MINUTES)))
			}
			None => String::new(),
		};
		let mut text = format!("{indent}{}{account}{since}\n", escape(self.jid().as_bytes()));
		for invite in self.invites {
			// To a String this does not fail.
			let _ = writeln!(
				text,
				"{indent}  · {} {} {} {} {}",
				invite.digest.id(),
				time(invite.created_at, MINUTES),
				kind_word(invite),
				invite.state(now).as_str(),
				uses(invite, "/"),
			);
		}
		text
	}
}

/// What is not found may be there all the same.
const fn word(account: Account) -> &'static str {
	match account {
		Account::Active => "active",
		Account::Disabled => "disabled",
		Account::Missing => "missing",
		Account::NotFound | Account::Unknown => "unknown",
	}
}
