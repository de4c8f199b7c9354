//! Who may invite how much: the limits of the inviter's roles, and whether they let an invite be made.
//!
//! An operator gives limits to roles. A role without limits of its own has those of the nearest role that it inherits from;
//! one that has none this way says nothing. Administrators are exempt, unless they have limits of their own. Who has
//! several roles may do what one of them allows. Whether an invite may be made is [`decide_creation`], and nowhere else;
//! stores make it atomic.

use std::collections::BTreeMap;

use thiserror::Error;

use crate::clock::Timestamp;
use crate::duration;
use crate::invite::{Invite, Kind};

/// Roles that have no limits unless they are given some.
const EXEMPT: [&str; 2] = ["prosody:admin", "prosody:operator"];

/// The words that [`Limits::kinds`] may hold: those of [`Kind`], with contact invites told apart by whether they allow to
/// register an account too.
pub const KINDS: [&str; 5] = ["account", "contact", "account-and-contact", "group", "reset"];

/// The word of [`KINDS`] for an invite.
#[must_use]
pub fn kind_word(invite: &Invite) -> &'static str {
	match invite.kind() {
		Kind::Contact if invite.allow_registration => "account-and-contact",
		kind => kind.as_str(),
	}
}

/// What a role may do. None of a limit: as much as one likes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Limits {
	/// Open invites at once: neither used up, nor revoked, nor expired.
	pub max_open: Option<u32>,
	/// Invites made within [`Limits::period`], whatever became of them.
	pub max_created: Option<u32>,
	/// In seconds.
	pub period: i64,
	/// Uses of one invite.
	pub max_uses: Option<u32>,
	/// Seconds from the making of an invite to its end.
	pub max_ttl: Option<i64>,
	/// Seconds since the inviter's account was made.
	pub min_account_age: Option<i64>,
	/// What invites may be: words of [`KINDS`].
	pub kinds: Option<Vec<String>>,
}

/// The limits of every role.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Policy {
	/// By the name of the role.
	pub roles: BTreeMap<String, Limits>,
	/// Whether an account whose age nobody knows counts as old enough.
	pub allows_unknown_age: bool,
}

/// Somebody who is about to invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inviter {
	/// The localpart, nodeprepped.
	pub username: String,
	/// Each of their roles, followed by those that it inherits from, the nearest first.
	pub roles: Vec<Vec<String>>,
	/// When the account was made, where the server knows.
	pub account_created: Option<Timestamp>,
}

/// What an inviter may do, by one of these roles or another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allowance {
	/// The localpart.
	pub inviter: String,
	account_created: Option<Timestamp>,
	allows_unknown_age: bool,
	limits: Vec<(String, Limits)>,
}

impl Policy {
	/// The seconds for which invites are counted that have ended; 0 if none are.
	#[must_use]
	pub fn counted_period(&self) -> i64 {
		self.roles
			.values()
			.filter(|limits| limits.max_created.is_some())
			.map(|limits| limits.period)
			.max()
			.unwrap_or(0)
	}

	/// What limits this inviter; none if nothing does.
	#[must_use]
	pub fn allowance(&self, inviter: Inviter) -> Option<Allowance> {
		let mut limits: Vec<(String, Limits)> = Vec::new();
		for chain in &inviter.roles {
			for role in chain {
				if let Some(found) = self.roles.get(role) {
					limits.push((role.clone(), found.clone()));
					break;
				} else if EXEMPT.contains(&role.as_str()) {
					return None;
				}
			}
		}
		(!limits.is_empty()).then_some(Allowance {
			inviter: inviter.username,
			account_created: inviter.account_created,
			allows_unknown_age: self.allows_unknown_age,
			limits,
		})
	}
}

impl Allowance {
	/// The time to live, in seconds, of an invite for which nobody chose one: the usual one, cut down to what is allowed.
	#[must_use]
	pub fn default_ttl(&self, usual: Option<i64>) -> Option<i64> {
		let longest =
			self.limits.iter().map(|(_, limits)| limits.max_ttl).reduce(|a, b| Some(a?.max(b?))).flatten();
		match (usual, longest) {
			(Some(usual), Some(longest)) => Some(usual.min(longest)),
			(usual, longest) => usual.or(longest),
		}
	}

	/// As many open invites as decide anything; none if they do not count.
	#[must_use]
	pub fn max_open(&self) -> Option<u32> {
		self.limits.iter().filter_map(|(_, limits)| limits.max_open).max()
	}

	/// How many entries [`Usage::newest`] needs.
	#[must_use]
	pub fn newest(&self) -> u32 {
		self.limits.iter().filter_map(|(_, limits)| limits.max_created).max().unwrap_or(0)
	}
}

/// What a store reads for a decision, in the transaction in which it acts on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
	/// The inviter's open invites, up to [`Allowance::max_open`].
	pub open: u32,
	/// When the inviter's newest invites were made, the newest first; as many as [`Allowance::newest`] says.
	pub newest: Vec<Timestamp>,
}

/// A limit that does not let an invite be made.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{reason}")]
pub struct LimitReached {
	/// Whose limit it is.
	pub role: String,
	/// Which one.
	pub reason: Reason,
}

/// Which limit, as a sentence for the inviter.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Reason {
	/// [`Limits::kinds`], and what was wanted.
	#[error("You may not create this kind of invitation ({0})")]
	Kind(&'static str),
	/// [`Limits::max_uses`]
	#[error("Your invitations may be good for {} at most", count(*.0, "use"))]
	MaxUses(u32),
	/// [`Limits::max_ttl`]
	#[error("Your invitations may be valid for {} at most", duration::words(*.0))]
	MaxTtl(i64),
	/// [`Limits::min_account_age`]
	#[error("Your account must be {} old before you can invite somebody", duration::words(*.0))]
	MinAccountAge(i64),
	/// [`Limits::min_account_age`], of an account whose age nobody knows.
	#[error("You cannot invite anybody, because the server does not know how old your account is")]
	UnknownAccountAge(i64),
	/// [`Limits::max_open`]
	#[error("You have {} already; you can create another when one was used or has expired", count(*.0, "open invitation"))]
	MaxOpen(u32),
	/// [`Limits::max_created`] and [`Limits::period`]
	#[error("You may create {} within {} and have done so; please try again later", count(*.0, "invitation"), duration::words(*.1))]
	MaxCreated(u32, i64),
}

fn count(number: u32, what: &str) -> String {
	format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

impl LimitReached {
	/// The limit as an operator knows it: role, option and value.
	#[must_use]
	pub fn limit(&self) -> String {
		let option = match &self.reason {
			Reason::Kind(word) => format!("kinds is without {word:?}"),
			Reason::MaxUses(max) => format!("max_uses = {max}"),
			Reason::MaxTtl(max) => format!("max_ttl = {max}"),
			Reason::MinAccountAge(min) | Reason::UnknownAccountAge(min) => format!("min_account_age = {min}"),
			Reason::MaxOpen(max) => format!("max_open = {max}"),
			Reason::MaxCreated(max, period) => format!("max_created = {max}, period = {period}"),
		};
		format!("invite_limits[{:?}]: {option}", self.role)
	}
}

/// Whether an invite may be made.
///
/// # Errors
/// Why not by the first of the inviter's roles, if none of them allows it.
pub fn decide_creation(
	invite: &Invite,
	allowance: &Allowance,
	usage: &Usage,
	now: Timestamp,
) -> Result<(), LimitReached> {
	let mut refused = None;
	for (role, limits) in &allowance.limits {
		match decide_by(limits, invite, allowance, usage, now) {
			Ok(()) => return Ok(()),
			Err(reason) => {
				refused.get_or_insert(LimitReached { role: role.clone(), reason });
			}
		}
	}
	refused.map_or(Ok(()), Err)
}

fn decide_by(
	limits: &Limits,
	invite: &Invite,
	allowance: &Allowance,
	usage: &Usage,
	now: Timestamp,
) -> Result<(), Reason> {
	let kind = kind_word(invite);
	if limits.kinds.as_ref().is_some_and(|kinds| !kinds.iter().any(|allowed| allowed == kind)) {
		return Err(Reason::Kind(kind));
	}
	if let Some(max_uses) = limits.max_uses
		&& invite.max_uses.is_none_or(|uses| uses > max_uses)
	{
		return Err(Reason::MaxUses(max_uses));
	}
	if let Some(max_ttl) = limits.max_ttl
		&& invite.expires.is_none_or(|expires| expires.saturating_sub(invite.created_at) > max_ttl)
	{
		return Err(Reason::MaxTtl(max_ttl));
	}
	if let Some(min_age) = limits.min_account_age {
		match allowance.account_created {
			Some(created) if now.saturating_sub(created) < min_age => {
				return Err(Reason::MinAccountAge(min_age));
			}
			None if !allowance.allows_unknown_age => return Err(Reason::UnknownAccountAge(min_age)),
			_ => (),
		}
	}
	if let Some(max_open) = limits.max_open
		&& usage.open >= max_open
	{
		return Err(Reason::MaxOpen(max_open));
	}
	if let Some(max_created) = limits.max_created {
		let since = now.saturating_sub(limits.period);
		let made = usage.newest.iter().filter(|created_at| **created_at > since).count();
		if u32::try_from(made).is_ok_and(|made| made >= max_created) {
			return Err(Reason::MaxCreated(max_created, limits.period));
		}
	}
	Ok(())
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::invite::Type;
	use crate::store::conformance::sample;

	const NOW: Timestamp = 1_700_000_000;
	const DAY: i64 = 86400;

	fn contact() -> Invite {
		Invite { allow_registration: false, ..sample("example.com", "t") }
	}

	fn policy(roles: &[(&str, Limits)]) -> Policy {
		Policy {
			roles: roles.iter().map(|(role, limits)| ((*role).to_owned(), limits.clone())).collect(),
			allows_unknown_age: true,
		}
	}

	fn inviter(chains: &[&[&str]]) -> Inviter {
		Inviter {
			username: "juliet".to_owned(),
			roles: chains.iter().map(|chain| chain.iter().map(|&role| role.to_owned()).collect()).collect(),
			account_created: Some(NOW - DAY),
		}
	}

	fn open(max: u32) -> Limits {
		Limits { max_open: Some(max), ..Limits::default() }
	}

	/// The allowance of somebody with one role.
	fn allowance(limits: Limits) -> Allowance {
		policy(&[("user", limits)]).allowance(inviter(&[&["user"]])).unwrap()
	}

	fn refusal(invite: &Invite, limits: Limits, usage: &Usage) -> Option<Reason> {
		decide_creation(invite, &allowance(limits), usage, NOW).err().map(|refused| refused.reason)
	}

	#[test]
	fn without_limits_nothing_is_refused() {
		let usage = Usage { open: u32::MAX, newest: vec![NOW] };
		assert_eq!(refusal(&contact(), Limits::default(), &usage), None);
		assert_eq!(policy(&[]).allowance(inviter(&[&["user"]])), None);
	}

	#[test]
	fn open_invites_are_counted_to_the_limit_and_not_beyond() {
		let with = |open| Usage { open, newest: vec![] };
		assert_eq!(refusal(&contact(), open(10), &with(9)), None);
		assert_eq!(refusal(&contact(), open(10), &with(10)), Some(Reason::MaxOpen(10)));
		assert_eq!(refusal(&contact(), open(0), &with(0)), Some(Reason::MaxOpen(0)));
	}

	#[test]
	fn ended_invites_are_needed_for_as_long_as_a_role_counts_them() {
		let created = |max_created, period| Limits { max_created, period, ..Limits::default() };
		assert_eq!(policy(&[("a", created(None, DAY))]).counted_period(), 0);
		let both = policy(&[("a", created(Some(1), DAY)), ("b", created(Some(1), 2 * DAY))]);
		assert_eq!(both.counted_period(), 2 * DAY);
	}

	#[test]
	fn what_was_made_counts_until_the_period_is_over() {
		let limits = Limits { max_created: Some(2), period: DAY, ..Limits::default() };
		assert_eq!(allowance(limits.clone()).newest(), 2);
		for (newest, refused) in [
			(vec![], false),
			(vec![NOW], false),
			(vec![NOW, NOW - DAY], false),
			(vec![NOW, NOW - DAY + 1], true),
		] {
			let usage = Usage { open: 0, newest: newest.clone() };
			let expected = refused.then_some(Reason::MaxCreated(2, DAY));
			assert_eq!(refusal(&contact(), limits.clone(), &usage), expected, "{newest:?}");
		}
	}

	#[test]
	fn uses_and_validity_have_a_limit_that_no_limit_exceeds() {
		let limits = Limits { max_uses: Some(2), max_ttl: Some(60), ..Limits::default() };
		let refused = |invite: &Invite| refusal(invite, limits.clone(), &Usage::default());
		let fitting = Invite { max_uses: Some(2), expires: Some(NOW + 60), created_at: NOW, ..contact() };
		assert_eq!(refused(&fitting), None);
		for max_uses in [Some(3), None] {
			assert_eq!(refused(&Invite { max_uses, ..fitting.clone() }), Some(Reason::MaxUses(2)));
		}
		for expires in [Some(NOW + 61), None] {
			assert_eq!(refused(&Invite { expires, ..fitting.clone() }), Some(Reason::MaxTtl(60)));
		}
	}

	#[test]
	fn an_account_must_be_old_enough_and_the_operator_says_what_an_unknown_age_is() {
		let limits = |min| Limits { min_account_age: Some(min), ..Limits::default() };
		assert_eq!(refusal(&contact(), limits(DAY), &Usage::default()), None);
		let too_young = refusal(&contact(), limits(DAY + 1), &Usage::default());
		assert_eq!(too_young, Some(Reason::MinAccountAge(DAY + 1)));
		for allows_unknown_age in [true, false] {
			let unknown = Allowance { account_created: None, allows_unknown_age, ..allowance(limits(DAY)) };
			let decision = decide_creation(&contact(), &unknown, &Usage::default(), NOW);
			assert_eq!(decision.is_ok(), allows_unknown_age);
		}
	}

	#[test]
	fn a_kind_that_is_not_listed_is_refused_and_a_contact_alone_is_one() {
		let limits = Limits { kinds: Some(vec!["contact".to_owned()]), ..Limits::default() };
		let refused = |invite: &Invite| refusal(invite, limits.clone(), &Usage::default());
		assert_eq!(refused(&contact()), None);
		let both = Invite { allow_registration: true, ..contact() };
		assert_eq!(refused(&both), Some(Reason::Kind("account-and-contact")));
		let account = Invite { invite_type: Type::Register, fields: crate::value::Fields::default(), ..both };
		assert_eq!(refused(&account), Some(Reason::Kind("account")));
	}

	#[test]
	fn a_role_has_its_own_limits_or_the_nearest_it_inherits() {
		let policy = policy(&[("member", open(3)), ("registered", open(1))]);
		let limits_of = |chain: &[&str]| {
			policy.allowance(inviter(&[chain])).map(|allowance| allowance.limits[0].1.max_open.unwrap())
		};
		assert_eq!(limits_of(&["member", "registered"]), Some(3));
		assert_eq!(limits_of(&["staff", "member", "registered"]), Some(3));
		assert_eq!(limits_of(&["registered", "guest"]), Some(1));
		assert_eq!(limits_of(&["guest"]), None);
	}

	#[test]
	fn administrators_are_exempt_unless_they_have_limits_of_their_own() {
		let admin: &[&str] = &["prosody:admin", "prosody:member", "prosody:registered"];
		let registered = ("prosody:registered", open(1));
		assert_eq!(policy(std::slice::from_ref(&registered)).allowance(inviter(&[admin])), None);
		let both = policy(&[registered, ("prosody:admin", open(5))]);
		let operator: &[&str] = &["prosody:operator", "prosody:admin"];
		assert_eq!(both.allowance(inviter(&[admin])).unwrap().limits[0].1, open(5));
		assert_eq!(both.allowance(inviter(&[operator])), None);
		assert_eq!(both.allowance(inviter(&[&["prosody:registered"], operator])), None, "a second role");
	}

	#[test]
	fn one_role_that_allows_it_is_enough_and_the_first_is_named_where_none_does() {
		let policy = policy(&[("first", open(1)), ("second", open(2))]);
		let allowance = policy.allowance(inviter(&[&["first"], &["mute"], &["second"]])).unwrap();
		let decide = |open| decide_creation(&contact(), &allowance, &Usage { open, newest: vec![] }, NOW);
		assert_eq!(decide(1), Ok(()));
		let refused = decide(2).unwrap_err();
		assert_eq!(refused.limit(), "invite_limits[\"first\"]: max_open = 1");
		assert_eq!(
			refused.to_string(),
			"You have 1 open invitation already; you can create another when one was used or has expired"
		);
	}

	#[test]
	fn a_validity_that_nobody_chose_is_cut_to_the_longest_that_a_role_allows() {
		let ttl = |max_ttl| Limits { max_ttl, ..Limits::default() };
		let default = |first, second, usual| {
			let policy = policy(&[("first", ttl(first)), ("second", ttl(second))]);
			policy.allowance(inviter(&[&["first"], &["second"]])).unwrap().default_ttl(usual)
		};
		assert_eq!(default(Some(60), Some(90), Some(100)), Some(90));
		assert_eq!(default(Some(60), Some(90), Some(80)), Some(80));
		assert_eq!(default(Some(60), Some(90), None), Some(90));
		assert_eq!(default(Some(60), None, Some(100)), Some(100));
	}
}
