//! Redeeming an invite exactly once: get → claim → redeem or release. The protocol is docs/design/redemption.md §1.
//!
//! Prosody validates a token, creates the account later in code that is not ours, and tells us afterwards, if
//! at all. So an attempt to redeem first makes a **claim**: it is counted like a use, but can be released. When the process
//! that made it has died, others settle it: [`crate::watch`] says when. The decision whether an invite may be claimed is
//! [`decide`], and nowhere else; stores make it atomic.

use std::borrow::Cow;

use crate::clock::Timestamp;
use crate::invite::{Invite, Kind, Type, local_user};
use crate::lineage::{Birth, birth};
use crate::token::{Digest, Nonce};

/// How long somebody who cannot tell whether the owner of a claim lives looks for a sign of life, in seconds. The owner
/// renews it three times meanwhile.
pub const LEASE: i64 = 60;

/// What an invite is redeemed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
	/// An account is registered, or its password reset (XEP-0445).
	Account,
	/// Somebody becomes a contact of the inviter (XEP-0379).
	Contact,
}

impl Purpose {
	/// The stored word.
	#[must_use]
	pub const fn as_str(self) -> &'static str {
		match self {
			Self::Account => "account",
			Self::Contact => "contact",
		}
	}

	/// From the stored word.
	#[must_use]
	pub fn from_stored(word: &str) -> Option<Self> {
		[Self::Account, Self::Contact].into_iter().find(|known| known.as_str() == word)
	}
}

/// One attempt to redeem an invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
	/// Host of the invite.
	pub host: String,
	/// Names the attempt.
	pub nonce: Nonce,
	/// The invite.
	pub digest: Digest,
	/// What for.
	pub purpose: Purpose,
	/// The username to be registered, nodeprepped, or the contact's bare JID; none where the caller does not say.
	pub invitee: Option<String>,
	/// The process that makes it.
	pub boot: Nonce,
	/// When it was made, by the clock of its owner. For operators: nothing is decided by it.
	pub made_at: Option<Timestamp>,
	/// How often its owner has renewed it. Each time is a sign of life.
	pub renewals: i64,
}

/// Whether the process that made a claim still runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
	/// It does.
	Alive,
	/// It is proved to have ended.
	Over,
	/// There is no proof of either.
	Unknown {
		/// Names the connection by which that was found out: looks by another one say nothing about what was between.
		connection: u64,
	},
}

impl Claim {
	/// The bare JID of who wants to become a contact, if that is what it is for; and the username, where that is a local user.
	#[must_use]
	pub fn contact(&self) -> Option<(&str, Option<Cow<'_, str>>)> {
		let jid = self.invitee.as_deref().filter(|_| self.purpose == Purpose::Contact)?;
		Some((jid, local_user(jid, &self.host)))
	}
}

/// How somebody is let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
	/// By a claim, which becomes a use.
	Claim,
	/// Without another use: the contact is among the invite's redemptions.
	Known,
}

/// Why an invite may not be claimed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
	/// There is no such invite, it is for something else, or it was revoked or paused.
	Invalid,
	/// No uses are left.
	Used,
	/// All uses that are left are claimed, or the name is: worth another try in a moment. A claim whose owner is dead stands
	/// until it is settled.
	Busy,
	/// It is for this username only.
	Bound(String),
	/// The username is reserved by another invite.
	Reserved,
}

/// What a store reads for a decision, in the transaction in which it acts on it.
#[derive(Clone, Debug, Default)]
pub struct View {
	/// The invite to be claimed.
	pub invite: Option<Invite>,
	/// All claims on it.
	pub claims: Vec<Claim>,
	/// All claims of [`Purpose::Account`] in the host for the username to be registered, whatever invite they are on.
	pub claims_on_name: Vec<Claim>,
	/// Whether [`reserves`] holds for another invite of the host.
	pub is_reserved: bool,
	/// Whether the [contact](Claim::contact) is among the invite's redemptions: became a contact by it, or was registered
	/// with it. Where no history is kept, nobody is.
	pub is_known: bool,
}

/// Whether the invite keeps a username for whoever holds its token: registrations by others are refused.
#[must_use]
pub fn reserves(invite: &Invite, username: &str, now: Timestamp) -> bool {
	invite.invite_type == Type::Register
		&& invite.kind() != Kind::Reset
		&& invite.username.as_deref() == Some(username)
		&& invite.revoked_at.is_none()
		&& invite.has_uses_left()
		&& !invite.is_expired(now)
}

/// Whether `claim` is to be made. Expiry of the invite does not count (XEP-0445 §3: it is checked when the token is
/// presented).
///
/// # Errors
/// Why whoever it is for is not let in.
pub fn decide(view: &View, claim: &Claim) -> Result<Admission, Refusal> {
	let invite = view.invite.as_ref().ok_or(Refusal::Invalid)?;
	if invite.revoked_at.is_some() || invite.paused || !invite.serves(claim.purpose) {
		return Err(Refusal::Invalid);
	}
	if !invite.has_uses_left() {
		return Err(Refusal::Used);
	}
	if view.is_known {
		return Ok(Admission::Known);
	}
	if claim.purpose == Purpose::Account
		&& let (Type::Register, Some(bound), Some(wanted)) =
			(invite.invite_type, &invite.username, &claim.invitee)
		&& bound != wanted
	{
		return Err(Refusal::Bound(bound.clone()));
	}
	if !has_free_use(invite, view.claims.len()) || !view.claims_on_name.is_empty() {
		return Err(Refusal::Busy);
	}
	// Two invites may be bound to one name when they were imported: each of them is for it.
	let is_bound = invite.invite_type == Type::Register && invite.username.is_some();
	if view.is_reserved && !is_bound {
		return Err(Refusal::Reserved);
	}
	Ok(Admission::Claim)
}

/// Whether an invite has a use left beside so many claims.
fn has_free_use(invite: &Invite, claims: usize) -> bool {
	let claimed = u32::try_from(claims).unwrap_or(u32::MAX);
	invite.max_uses.is_none_or(|max_uses| invite.uses.saturating_add(claimed) < max_uses)
}

/// What becomes of an attempt whose claim is gone when it is to be redeemed. Who held a claim has been let in, so it does
/// not count that the invite was revoked, was paused or has expired since.
#[must_use]
pub fn decide_lost(view: &View, claim: &Claim, is_named: bool) -> Loss {
	// A database that was replaced proves nothing.
	let Some(invite) = &view.invite else { return Loss::Stays };
	if invite.serves(claim.purpose) && has_free_use(invite, view.claims.len()) {
		return Loss::Afresh;
	}
	let is_account = claim.purpose == Purpose::Account && claim.invitee.is_some();
	// Somebody else who was let in under this name may have made the account.
	let is_anothers = is_named || !view.claims_on_name.is_empty();
	if is_account && invite.kind() != Kind::Reset && !is_anothers { Loss::TakenBack } else { Loss::Stays }
}

/// What becomes of an attempt whose claim is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loss {
	/// A use is free: it is redeemed all the same, and nothing was lost.
	Afresh,
	/// Somebody else has the use. The account is to be taken back, if it is sure that the attempt has made it.
	TakenBack,
	/// What was made stays, without what the invite promised.
	Stays,
}

/// Whether a username may be registered without any invite, as far as invites are concerned.
///
/// # Errors
/// [`Refusal::Reserved`] or [`Refusal::Busy`].
pub const fn decide_name(view: &View) -> Result<(), Refusal> {
	if !view.claims_on_name.is_empty() {
		Err(Refusal::Busy)
	} else if view.is_reserved {
		Err(Refusal::Reserved)
	} else {
		Ok(())
	}
}

/// Whether making `newer` takes `older` back: one name is bound, and one password reset, by one invite at a time.
#[must_use]
pub fn supersedes(newer: &Invite, older: &Invite) -> bool {
	newer.invite_type == Type::Register
		&& older.invite_type == Type::Register
		&& newer.username.is_some()
		&& newer.username == older.username
		&& (newer.kind() == Kind::Reset) == (older.kind() == Kind::Reset)
}

/// What becomes of a claim that is redeemed.
#[derive(Clone, Debug, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "returned once and taken apart at once")]
pub enum Redeemed {
	/// It is a use now; the invite as it stands after it.
	Now(Invite),
	/// It was redeemed before: by an earlier attempt whose answer was lost, or by whoever settled it.
	Before,
	/// There is no such claim any more, and no free use either. Never [`Loss::Afresh`].
	Lost(Loss),
}

/// One use of an invite.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redemption {
	/// Nonce of the claim that it was.
	pub nonce: Nonce,
	/// What for.
	pub purpose: Purpose,
	/// Who used it, as in [`Claim::invitee`].
	pub invitee: Option<String>,
	/// The module that reported it.
	pub source: Option<String>,
	/// When.
	pub used_at: Timestamp,
}

impl Redemption {
	/// What this use of an invite means for lineage.
	#[must_use]
	pub fn birth(&self, invite: &Invite) -> Option<Birth> {
		birth(invite, self.purpose, self.invitee.as_deref(), self.used_at)
	}
}

/// Whether an account exists, as far as the server's user manager can say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Account {
	/// It exists and may log in.
	Active,
	/// It exists and is disabled.
	Disabled,
	/// There is none, and that is proved: its storage has answered. The only state for which something may be taken away.
	Missing,
	/// The authentication provider does not find it, or cannot ask for it: many say the same of both.
	NotFound,
	/// The user manager cannot say, or its storage failed.
	Unknown,
}

impl Account {
	/// From the word that the shim uses.
	#[must_use]
	pub fn from_word(word: &str) -> Option<Self> {
		Some(match word {
			"active" => Self::Active,
			"disabled" => Self::Disabled,
			"missing" => Self::Missing,
			"not-found" => Self::NotFound,
			"unknown" => Self::Unknown,
			_ => return None,
		})
	}
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::store::conformance::{claim, sample};

	const NOW: Timestamp = 1_700_000_000;

	fn account() -> Invite {
		Invite { invite_type: Type::Register, username: None, ..sample("example.com", "t") }
	}

	fn view(invite: Invite) -> View {
		View { invite: Some(invite), ..View::default() }
	}

	fn wanted(name: &str) -> Claim {
		claim(&account(), Purpose::Account, name, NOW)
	}

	fn refusal(view: &View, claim: &Claim) -> Refusal {
		decide(view, claim).unwrap_err()
	}

	#[test]
	fn an_open_invite_can_be_claimed_even_after_it_expired() {
		let expired = Invite { expires: Some(NOW - 1), ..account() };
		assert_eq!(decide(&view(expired), &wanted("bob")), Ok(Admission::Claim));
	}

	#[test]
	fn what_is_gone_revoked_paused_or_for_something_else_is_invalid() {
		assert_eq!(refusal(&View::default(), &wanted("bob")), Refusal::Invalid);
		for invite in [
			Invite { revoked_at: Some(1), ..account() },
			Invite { paused: true, ..account() },
			Invite { allow_registration: false, ..account() },
		] {
			assert_eq!(refusal(&view(invite), &wanted("bob")), Refusal::Invalid);
		}
	}

	#[test]
	fn uses_and_claims_count_alike_but_are_refused_differently() {
		let used = Invite { max_uses: Some(2), uses: 2, ..account() };
		assert_eq!(refusal(&view(used), &wanted("bob")), Refusal::Used);
		let half = Invite { max_uses: Some(2), uses: 1, ..account() };
		let claimed = View { claims: vec![wanted("alice")], ..view(half.clone()) };
		assert_eq!(refusal(&claimed, &wanted("bob")), Refusal::Busy);
		assert_eq!(decide(&view(half), &wanted("bob")), Ok(Admission::Claim));
	}

	#[test]
	fn a_known_contact_gets_in_without_another_use_while_the_invite_is_open_and_never_after() {
		let contacts = |invite: Invite| View { is_known: true, ..view(invite) };
		let several = Invite { max_uses: Some(2), uses: 1, ..sample("example.com", "t") };
		let romeo = claim(&several, Purpose::Contact, "romeo@example.net", NOW);
		assert_eq!(decide(&contacts(several.clone()), &romeo), Ok(Admission::Known));
		let claimed = View { claims: vec![wanted("alice")], ..contacts(several.clone()) };
		assert_eq!(decide(&claimed, &romeo), Ok(Admission::Known), "nothing is taken from others");
		for (over, why) in [
			(Invite { uses: 2, ..several.clone() }, Refusal::Used),
			(Invite { revoked_at: Some(1), ..several.clone() }, Refusal::Invalid),
			(Invite { paused: true, ..several }, Refusal::Invalid),
		] {
			assert_eq!(refusal(&contacts(over), &romeo), why);
		}
	}

	#[test]
	fn only_who_becomes_a_contact_can_be_known_and_a_local_user_under_both_names() {
		let invite = sample("example.com", "t");
		let contact = |purpose, invitee| claim(&invite, purpose, invitee, NOW);
		let names = |claim: &Claim| {
			claim.contact().map(|(jid, username)| (jid.to_owned(), username.map(Cow::into_owned)))
		};
		let local = ("romeo@example.com".to_owned(), Some("romeo".to_owned()));
		assert_eq!(names(&contact(Purpose::Contact, "romeo@example.com")), Some(local));
		let remote = ("romeo@example.net".to_owned(), None);
		assert_eq!(names(&contact(Purpose::Contact, "romeo@example.net")), Some(remote));
		assert_eq!(names(&contact(Purpose::Account, "romeo")), None);
	}

	#[test]
	fn a_bound_invite_is_for_its_name_alone() {
		let bound = Invite { username: Some("juliet".to_owned()), ..account() };
		assert_eq!(refusal(&view(bound.clone()), &wanted("mallory")), Refusal::Bound("juliet".to_owned()));
		assert_eq!(decide(&view(bound), &wanted("juliet")), Ok(Admission::Claim));
	}

	#[test]
	fn a_reserved_or_claimed_name_is_for_others_to_leave() {
		let reserved = View { is_reserved: true, ..view(account()) };
		assert_eq!(refusal(&reserved, &wanted("juliet")), Refusal::Reserved);
		let bound =
			View { invite: Some(Invite { username: Some("juliet".to_owned()), ..account() }), ..reserved };
		assert_eq!(decide(&bound, &wanted("juliet")), Ok(Admission::Claim), "imported twice");
		let claimed = View { claims_on_name: vec![wanted("juliet")], ..view(account()) };
		assert_eq!(refusal(&claimed, &wanted("juliet")), Refusal::Busy);
	}

	#[test]
	fn a_lost_claim_is_redeemed_afresh_where_a_use_is_free_whatever_became_of_the_invite() {
		for invite in [
			account(),
			Invite { revoked_at: Some(1), ..account() },
			Invite { paused: true, ..account() },
			Invite { expires: Some(1), ..account() },
			Invite { max_uses: Some(2), uses: 1, ..account() },
		] {
			assert_eq!(decide_lost(&view(invite), &wanted("bob"), false), Loss::Afresh);
		}
		let claimed = View { claims: vec![wanted("alice")], ..view(account()) };
		assert_eq!(
			decide_lost(&claimed, &wanted("bob"), false),
			Loss::TakenBack,
			"who claims was let in too"
		);
	}

	#[test]
	fn an_account_is_taken_back_only_where_somebody_else_has_the_use_and_nobody_else_may_have_made_it() {
		let used = || Invite { uses: 1, ..account() };
		assert_eq!(decide_lost(&view(used()), &wanted("bob"), false), Loss::TakenBack);
		assert_eq!(decide_lost(&view(used()), &wanted("bob"), true), Loss::Stays, "a use names it");
		let claimed = View { claims_on_name: vec![wanted("bob")], ..view(used()) };
		assert_eq!(decide_lost(&claimed, &wanted("bob"), false), Loss::Stays, "a claim names it");
		assert_eq!(decide_lost(&View::default(), &wanted("bob"), false), Loss::Stays, "another database");
		let nameless = Claim { invitee: None, ..wanted("bob") };
		assert_eq!(decide_lost(&view(used()), &nameless, false), Loss::Stays);
		let contact = Invite { uses: 1, ..sample("example.com", "t") };
		let romeo = claim(&contact, Purpose::Contact, "romeo@example.net", NOW);
		assert_eq!(decide_lost(&view(contact), &romeo, false), Loss::Stays);
	}

	#[test]
	fn a_reset_is_never_taken_back() {
		let data = [(crate::value::Value::text("allow_reset"), crate::value::Value::text("juliet"))];
		let fields = [(
			crate::value::Value::text("additional_data"),
			crate::value::Value::Table(data.into_iter().collect()),
		)];
		let reset =
			Invite { username: Some("juliet".to_owned()), fields: fields.into_iter().collect(), ..account() };
		assert_eq!(reset.kind(), Kind::Reset);
		let used = Invite { uses: 1, ..reset.clone() };
		assert_eq!(decide_lost(&view(used), &wanted("juliet"), false), Loss::Stays);
		assert_eq!(decide_lost(&view(reset), &wanted("juliet"), false), Loss::Afresh);
	}

	#[test]
	fn only_a_live_bound_account_invite_reserves_its_name() {
		let bound = Invite { username: Some("juliet".to_owned()), expires: Some(NOW), ..account() };
		assert!(reserves(&bound, "juliet", NOW));
		assert!(!reserves(&bound, "romeo", NOW));
		assert!(!reserves(&bound, "juliet", NOW + 1));
		assert!(!reserves(&Invite { uses: 1, ..bound.clone() }, "juliet", NOW));
		assert!(!reserves(&Invite { revoked_at: Some(1), ..bound.clone() }, "juliet", NOW));
		assert!(!reserves(&Invite { invite_type: Type::Roster, ..bound }, "juliet", NOW));
	}
}
