//! What every store must pass: `promises!(tests(|scratch| …))` with a closure that makes an empty store in a scratch
//! directory, and `races!` likewise if several threads may use it.
//!
//! The rules themselves are tested where they stand; here it is that the store asks them and acts at once. What a store
//! does not carry it must refuse and leave everything as it was.

#![expect(clippy::unwrap_used, reason = "a broken promise panics, and whoever runs them tells it")]

#[cfg(test)]
use std::sync::atomic::{AtomicUsize, Ordering};

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use super::{Bundled, Carries, Members, Pick, Record, Store, StoreError};
#[cfg(test)]
use super::{Lock, Work};
use crate::attempts::Attempt;
use crate::check::{Finding, Level};
use crate::clock::{Timestamp, monotonic};
use crate::ending::Ending;
use crate::ending::Scope;
use crate::error::InviteError;
use crate::invite::{Invite, Type};
use crate::invites::{EndedMore, Invites};
use crate::lifecycle::State;
use crate::lineage::Member;
use crate::listing::{Part, Position};
use crate::policy::{Allowance, Inviter, LimitReached, Limits, Policy, Reason, Usage};
use crate::redemption::{
	Account, Admission, Claim, LEASE, Life, Loss, Purpose, Redeemed, Redemption, Refusal, View,
};
use crate::token::{Digest, Nonce, Token};
use crate::value::{Fields, Value};

/// The use cases of [`Invites`], for any host, on a store that is tested.
pub(crate) trait Uses {
	/// The invites of a host.
	fn of(&self, host: &str) -> Invites;

	fn carries(&self) -> Carries {
		self.of("").carries()
	}

	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError> {
		self.of(&invite.host).save(invite).map_err(of_store)
	}

	fn create_within(
		&self,
		invite: &Invite,
		allowance: &Allowance,
	) -> Result<Result<Vec<Invite>, LimitReached>, StoreError> {
		match self.of(&invite.host).save_within(invite, allowance) {
			Ok(superseded) => Ok(Ok(superseded)),
			Err(InviteError::LimitReached(reached)) => Ok(Err(reached)),
			Err(error) => Err(of_store(error)),
		}
	}

	fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Result<Usage, StoreError> {
		self.of(host).usage(allowance, now)
	}

	fn import(&self, records: &[Record]) -> Result<usize, StoreError> {
		let host = records.first().map_or("", |record| &record.invite.host);
		self.of(host).import(records).map_err(of_store)
	}

	fn records(&self, host: &str, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, StoreError> {
		self.of(host).records(after, limit).map_err(of_store)
	}

	fn forget_tokens(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Option<Digest>, StoreError> {
		self.of(host).take_tokens(after, limit)
	}

	fn check(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.of(host).check(now)
	}

	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError> {
		self.of(host).known(digest)
	}

	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<Admission, Refusal>, StoreError> {
		self.of(&claim.host).make_claim(claim, replaced, now)
	}

	fn redeem(&self, claim: &Claim, source: Option<&str>, now: Timestamp) -> Result<Redeemed, StoreError> {
		self.of(&claim.host).use_claim(claim, source, now)
	}

	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Option<Invite>, Refusal>, StoreError> {
		self.of(&claim.host).use_at_once(claim, source, now)
	}

	fn release(&self, host: &str, nonce: &Nonce) -> Result<bool, StoreError> {
		self.of(host).release(nonce).map_err(of_store)
	}

	fn renew(&self, host: &str, nonce: &Nonce) -> Result<bool, StoreError> {
		self.of(host).renew(nonce).map_err(of_store)
	}

	/// Lets others see that a process lives.
	fn hold(&self, boot: &Nonce);

	/// Whether a process lives, as far as others can see.
	fn life(&self, host: &str, boot: &Nonce) -> Life;

	fn view(&self, claim: &Claim, now: Timestamp) -> Result<View, StoreError> {
		self.of(&claim.host).view(claim, now)
	}

	fn view_name(&self, host: &str, username: &str, now: Timestamp) -> Result<View, StoreError> {
		self.of(host).view_of_name(username, now)
	}

	fn claims(&self, host: &str) -> Result<Vec<Claim>, StoreError> {
		self.of(host).claims()
	}

	fn revoke(
		&self,
		host: &str,
		digest: &Digest,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, StoreError> {
		self.of(host).revoke(digest, why, by, now).map_err(of_store)
	}

	/// Ends what depends on an account, a batch of it.
	fn retire(
		&self,
		host: &str,
		username: &str,
		earlier: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		Ok(self.of(host).end_for(Scope::Depending, username, earlier, now).map_err(of_store)?.invites)
	}

	fn retire_resets(&self, host: &str, username: &str, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		Ok(self.of(host).retire_resets(username, now).map_err(of_store)?.invites)
	}

	fn retire_inviter(
		&self,
		host: &str,
		inviter: &str,
		is_branch: bool,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		Ok(self.of(host).revoke_inviter(inviter, is_branch, why, by, now).map_err(of_store)?.invites)
	}

	fn end_more(&self, host: &str, now: Timestamp) -> Result<EndedMore, StoreError> {
		self.of(host).end_more(now).map_err(of_store)
	}

	fn pending(&self, host: &str, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		Ok(self.of(host).pending(None, 1000, now).map_err(of_store)?.0)
	}

	fn made_by(&self, host: &str, inviter: &str) -> Result<Vec<Invite>, StoreError> {
		self.of(host).made_by(inviter).map_err(of_store)
	}

	fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, StoreError> {
		self.of(host).members(Members::BroughtBy(inviter))
	}

	fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, StoreError> {
		Ok(self.of(host).members(Members::Of(username))?.pop())
	}

	fn import_lineage(&self, host: &str, members: &[Member]) -> Result<usize, StoreError> {
		self.of(host).import_lineage(members).map_err(of_store)
	}

	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError> {
		self.of(host).set_paused(digest, paused).map(|changed| changed.is_some()).map_err(of_store)
	}

	fn extend(
		&self,
		host: &str,
		digest: &Digest,
		expires: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Option<(Invite, Vec<Invite>)>, StoreError> {
		self.of(host).extend(digest, expires.map(|expires| expires - now), now).map_err(of_store)
	}

	fn end_expired(&self, host: &str, limit: u32, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		self.of(host).end_expired(limit, now).map_err(of_store)
	}

	fn open_invites(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Vec<Invite>, StoreError> {
		self.of(host).page("listing invites", Pick::Open(after), limit)
	}

	fn listing(
		&self,
		host: &str,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		Ok(self.of(host).listing(part, after, limit, now)?.0)
	}

	fn count_open(
		&self,
		host: &str,
		after: &Position,
		limit: u32,
	) -> Result<(u32, Option<Position>), StoreError> {
		self.of(host).count_open(after, limit).map_err(of_store)
	}

	fn purge(&self, host: &str, before: Timestamp, limit: u32, bundled: &Bundled) -> Result<u32, StoreError> {
		self.of(host).purge(before, limit, bundled).map_err(of_store)
	}

	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError> {
		self.of(host).redemptions(digest).map_err(of_store)
	}
}

impl<S: Store + 'static> Uses for Arc<S> {
	fn of(&self, host: &str) -> Invites {
		Invites::new(host.to_owned(), Arc::clone(self) as Arc<dyn Store>)
	}

	fn hold(&self, boot: &Nonce) {
		Store::hold(&**self, boot).unwrap();
	}

	fn life(&self, host: &str, boot: &Nonce) -> Life {
		let mut life = Life::Alive;
		let mut look = |rows: &mut dyn super::Rows| {
			life = rows.life(boot)?;
			Ok(())
		};
		self.look("testing", host, &mut look).unwrap();
		life
	}
}

/// What is in the database of every schema that was released: `spec/fixtures`.
#[cfg(test)]
pub(crate) fn released() -> Vec<Record> {
	let text = include_str!("../../spec/fixtures/released.jsonl");
	let invites =
		Invites::new("example.com".to_owned(), Arc::new(crate::store::memory::MemoryStore::default()));
	let terms = crate::transfer::Terms {
		prepare: &|name| Some(name.to_owned()),
		is_shared: false,
		progress: &|_, _| (),
	};
	crate::transfer::import(&invites, &mut std::io::Cursor::new(text), &terms).unwrap();
	invites.records(None, 100).unwrap().into_iter().map(without_spent_token).collect()
}

/// The claim that is in it besides, as it is since schema 4.
#[cfg(test)]
pub(crate) fn released_claim() -> Claim {
	let nonce = 0xdaa6_8bd5_1f19_765e_0752_a434_e16f_6055_u128;
	Claim {
		host: "example.com".to_owned(),
		nonce: Nonce::from_bytes(nonce.to_be_bytes()),
		digest: Digest::of(b"claimed"),
		purpose: Purpose::Account,
		invitee: Some("tybalt".to_owned()),
		boot: Nonce::from_bytes([1; 16]),
		made_at: Some(NOW),
		renewals: 0,
	}
}

/// A migration may forget the secrets that nobody can use any more.
#[cfg(test)]
pub(crate) fn without_spent_token(mut record: Record) -> Record {
	if record.invite.ended_at.is_some() {
		record.invite.token = None;
	}
	record
}

fn of_store(error: InviteError) -> StoreError {
	match error {
		InviteError::Store(error) => error,
		other => StoreError::Unusable { problem: other.to_string(), source: None },
	}
}

/// A store that does each write twice, and takes the first back: as one does whose connection breaks in the commit.
#[cfg(test)]
#[derive(Debug)]
pub(crate) struct Twice<S>(pub(crate) S);

#[cfg(test)]
impl<S: Store> Store for Twice<S> {
	fn carries(&self) -> Carries {
		self.0.carries()
	}

	fn look(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.0.look(doing, host, &mut *work)?;
		self.0.look(doing, host, work)
	}

	fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.0.read(doing, host, &mut *work)?;
		self.0.read(doing, host, work)
	}

	fn write(
		&self,
		doing: &'static str,
		host: &str,
		locks: &[Lock<'_>],
		work: Work<'_>,
	) -> Result<(), StoreError> {
		let taken_back = || StoreError::Unsupported { what: "the first of two" };
		self.0
			.write(doing, host, locks, &mut |rows| {
				work(rows)?;
				Err(taken_back().into())
			})
			.unwrap_err();
		self.0.write(doing, host, locks, work)
	}

	fn hold(&self, boot: &Nonce) -> Result<(), StoreError> {
		self.0.hold(boot)
	}

	fn health(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.0.health(host, now)
	}
}

/// Passes the names of the promises that every store keeps on to [`tests`] or [`table`].
macro_rules! promises {
	($to:ident($($given:tt)*)) => {
		$to! { $($given)*;
			an_invite_comes_back_as_it_was_stored,
			what_is_not_carried_is_refused_and_changes_nothing,
			hosts_do_not_see_each_others_invites,
			a_second_invite_with_the_same_token_is_refused_and_the_first_stays,
			a_newer_bound_invite_revokes_the_older,
			tokens_are_forgotten_page_by_page_and_links_with_them,
			the_invites_of_an_inviter_are_counted,
			an_inviter_makes_no_more_than_the_limit_lets,
			an_import_keeps_what_is_new_and_wakes_nothing,
			a_limit_is_reached_exactly,
			without_a_limit_every_redemption_counts,
			a_claim_is_redeemed_once_and_remembered,
			a_claim_is_redeemed_even_if_the_invite_was_revoked_since,
			a_released_claim_is_free_again_and_lost_to_its_owner,
			a_replaced_claim_makes_room_for_its_successor,
			a_contact_gets_in_again_without_another_use_as_long_as_the_invite_is_open,
			who_was_registered_with_an_invite_is_known_to_it_as_a_contact,
			a_renewed_claim_shows_that_its_owner_lives,
			a_claim_stands_until_it_is_settled_and_its_owner_is_proved_to_be_dead,
			a_claim_that_somebody_else_has_released_is_redeemed_afresh_where_a_use_is_free,
			an_account_is_taken_back_only_where_nobody_else_is_named_like_it,
			a_claim_of_our_own_that_nobody_holds_is_settled_after_a_lease,
			an_unknown_token_is_neither_redeemed_nor_revoked,
			what_is_revoked_is_not_redeemed_and_keeps_its_first_revocation,
			retiring_takes_what_depends_on_one_user_alone,
			the_end_of_many_begins_at_once_and_each_is_ended_once,
			an_end_that_is_told_late_spares_what_was_made_since,
			a_branch_of_many_is_revoked_at_once,
			a_claim_on_what_an_end_covers_comes_to_what_it_does_where_the_invite_is_revoked,
			a_pause_keeps_others_out_until_it_ends,
			who_brought_an_account_is_known_and_the_last_registration_counts,
			a_branch_is_revoked_at_once_and_nobody_elses_invites,
			the_invites_of_an_inviter_are_found_whatever_became_of_them,
			each_expired_invite_is_ended_once,
			a_name_is_seen_as_reserved_and_as_claimed,
			pages_follow_each_other_without_gap_or_repetition,
			the_open_part_shows_the_newest_first,
			the_history_shows_the_last_ended_first_and_what_expired_unnoted,
			open_invites_are_counted_in_pages,
			what_is_used_up_or_revoked_keeps_no_secret,
			an_extended_invite_is_good_again_unless_it_was_used_or_revoked,
			extending_a_bound_invite_takes_the_place_of_a_newer,
			a_purge_takes_what_ended_early_enough_with_its_uses_and_spares_claims,
			a_purge_spares_what_would_be_good_if_it_were_taken_in_again,
			looking_at_a_claim_makes_none,
			records_hold_everything_and_can_be_taken_over_by_another_host,
			a_look_at_a_good_store_finds_nothing_critical,
		}
	};
}

/// The same for the promises that only a store for several threads can keep.
#[cfg(test)]
macro_rules! races {
	($to:ident($($given:tt)*)) => {
		$to! { $($given)*;
			a_limit_is_reached_exactly_whatever_races,
			a_name_is_claimed_once_whatever_races,
			an_inviter_makes_no_more_than_the_limit_lets_whatever_races,
		}
	};
}

/// Stamps one test per promise: give it a closure that makes an empty store in a scratch directory.
#[cfg(test)]
macro_rules! tests {
	($make:expr; $($promise:ident,)*) => {
		$(
			#[test]
			fn $promise() {
				let scratch = tempfile::tempdir().unwrap();
				let make: fn(&std::path::Path) -> _ = $make;
				$crate::store::conformance::$promise(&std::sync::Arc::new(make(scratch.path())));
			}
		)*
	};
}

#[cfg(feature = "conformance")]
macro_rules! table {
	(; $($promise:ident,)*) => { &[$((stringify!($promise), $promise),)*] };
}

#[cfg(test)]
pub(crate) use {promises, races, tests};

#[cfg(feature = "conformance")]
type Promise = fn(&dyn Uses);

/// Every promise with its name, to be run on an empty store. It panics where the promise is broken.
#[cfg(feature = "conformance")]
pub(crate) const PROMISES: &[(&str, Promise)] = promises!(table());

/// Runs every promise, each on a new store.
///
/// # Panics
/// Where one is broken.
#[cfg(feature = "conformance")]
pub fn keep<S: Store + 'static>(make: impl Fn() -> S) {
	for (_, promise) in PROMISES {
		promise(&Arc::new(make()));
	}
}

const NOW: Timestamp = 1_700_000_000;

/// From the moment in which the samples are made to one at which a clock may be.
const LEAP: i64 = 100_000_000;

/// An invite of a local user with something in most fields.
pub(crate) fn sample(host: &str, token: &str) -> Invite {
	let groups = [(Value::Int(1), Value::text("a")), (Value::Int(2), Value::Str(vec![0, 255]))];
	let additional_data = [(Value::text("groups"), Value::Table(groups.into_iter().collect()))];
	let digest = Digest::of(token.as_bytes());
	Invite {
		invite_type: Type::Roster,
		username: Some("jörg".to_owned()),
		expires: Some(NOW + 60),
		fields: [(Value::text("additional_data"), Value::Table(additional_data.into_iter().collect()))]
			.into_iter()
			.collect(),
		..Invite::new(host.to_owned(), digest, Some(Token::from_stored(token.to_owned())), NOW)
	}
}

/// An invite for an account of any name.
fn account(token: &str) -> Invite {
	Invite { invite_type: Type::Register, username: None, ..sample("example.com", token) }
}

fn bound(token: &str, username: &str) -> Invite {
	Invite { username: Some(username.to_owned()), ..account(token) }
}

pub(crate) fn claim(invite: &Invite, purpose: Purpose, invitee: &str, now: Timestamp) -> Claim {
	Claim {
		host: invite.host.clone(),
		nonce: Nonce::generate().unwrap(),
		digest: invite.digest,
		purpose,
		invitee: Some(invitee.to_owned()),
		boot: Nonce::from_bytes([1; 16]),
		made_at: Some(now),
		renewals: 0,
	}
}

/// Claims and redeems for an account without a name; whether it was let.
pub(crate) fn redeem_once(store: &dyn Uses, invite: &Invite) -> bool {
	let claim = Claim { invitee: None, ..claim(invite, Purpose::Account, "", NOW) };
	store.redeem_at_once(&claim, Some("test"), NOW).unwrap().is_ok()
}

/// What can be found of an invite that has ended.
fn ended(store: &dyn Uses, invite: Invite) -> Option<Invite> {
	store.carries().history.then_some(invite)
}

fn is_refused<T>(result: &Result<T, StoreError>) -> bool {
	matches!(result, Err(StoreError::Unsupported { .. }))
}

pub(crate) fn an_invite_comes_back_as_it_was_stored(store: &dyn Uses) {
	let full = sample("example.com", "full");
	let bare = Invite { expires: None, fields: Fields::default(), ..account("bare") };
	let group = Invite { max_uses: None, ..account("group") };
	for invite in [full, bare, group, bound("bound", "juliet")] {
		let created = store.create(&invite);
		if invite.expires.is_none() && is_refused(&created) {
			// Some storages that Prosody has cannot keep an infinite number.
			assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), None);
		} else {
			assert_eq!(created.unwrap(), []);
			assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), Some(invite));
		}
	}
}

pub(crate) fn what_is_not_carried_is_refused_and_changes_nothing(store: &dyn Uses) {
	let Carries { history, pause, several_uses, contact_details, digests } = store.carries();
	let good = account("good");
	let contact = Invite { allow_registration: false, ..sample("example.com", "contact") };
	let variants = [
		(history, Invite { uses: 1, ended_at: Some(NOW), ..account("used") }),
		(
			history,
			Invite {
				revoked_at: Some(NOW + 1),
				revoked_why: Some("a \"reason\"".to_owned()),
				revoked_by: Some("somebody".to_owned()),
				ended_at: Some(NOW + 2),
				..account("revoked")
			},
		),
		(history, Invite { ended_at: Some(NOW + 61), ..account("expired") }),
		(history, Invite { max_uses: None, uses: 7, ..account("counted") }),
		(pause, Invite { paused: true, ..account("paused") }),
		(several_uses, Invite { max_uses: Some(3), ..account("limit") }),
		(contact_details, Invite { max_uses: None, ..contact }),
		(digests, Invite { token: None, ..account("digest") }),
	];
	for (is_carried, invite) in variants {
		let records = [Record::from(good.clone()), Record::from(invite.clone())];
		if is_carried {
			assert_eq!(store.create(&invite).unwrap(), []);
			assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), Some(invite));
		} else {
			assert!(is_refused(&store.create(&invite)) && is_refused(&store.import(&records)));
			assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), None);
			assert_eq!(store.records("example.com", None, 10).unwrap(), []);
		}
	}
	if !pause {
		store.create(&good).unwrap();
		assert!(is_refused(&store.set_paused(&good.host, &good.digest, true)));
		assert_eq!(store.find(&good.host, &good.digest).unwrap(), Some(good));
	}
}

pub(crate) fn hosts_do_not_see_each_others_invites(store: &dyn Uses) {
	let (here, there) = (sample("a.example", "same"), sample("b.example", "same"));
	store.create(&here).unwrap();
	let claim_there = claim(&there, Purpose::Account, "bob", NOW);
	assert_eq!(store.find(&there.host, &there.digest).unwrap(), None);
	assert_eq!(store.claim(&claim_there, None, NOW).unwrap(), Err(Refusal::Invalid));
	assert_eq!(store.revoke(&there.host, &there.digest, None, None, NOW).unwrap(), None);
	assert_eq!(store.retire(&there.host, "jörg", None, NOW).unwrap(), []);
	assert_eq!(store.end_expired(&there.host, 10, NOW + 61).unwrap(), []);
	store.create(&there).unwrap();
	store.claim(&claim_there, None, NOW).unwrap().unwrap();
	assert!(!store.release(&here.host, &claim_there.nonce).unwrap());
	assert!(!store.renew(&here.host, &claim_there.nonce).unwrap());
	let elsewhere = Claim { host: here.host.clone(), digest: Digest::of(b"another"), ..claim_there };
	assert_eq!(store.redeem(&elsewhere, None, NOW).unwrap(), Redeemed::Lost(Loss::Stays));
	assert!(redeem_once(store, &here));
	assert_eq!(store.open_invites("a.example", None, 10).unwrap(), []);
	assert_eq!(store.open_invites("b.example", None, 10).unwrap(), [there]);
}

pub(crate) fn a_second_invite_with_the_same_token_is_refused_and_the_first_stays(store: &dyn Uses) {
	for first in [account("same"), bound("bound", "juliet")] {
		store.create(&first).unwrap();
		let second = Invite { created_at: 5, ..first.clone() };
		assert!(matches!(store.create(&second), Err(StoreError::Exists)));
		assert_eq!(store.find(&first.host, &first.digest).unwrap(), Some(first));
	}
}

pub(crate) fn a_newer_bound_invite_revokes_the_older(store: &dyn Uses) {
	let (older, newer) =
		(bound("older", "juliet"), Invite { created_at: NOW + 1, ..bound("newer", "juliet") });
	store.create(&older).unwrap();
	let superseded = store.create(&newer).unwrap();
	assert_eq!(superseded.len(), 1);
	assert_eq!(superseded[0].digest, older.digest);
	let found = store.find(&older.host, &older.digest).unwrap();
	assert_eq!(found.is_some(), store.carries().history);
	assert!(found.is_none_or(|found| (found.revoked_at, found.ended_at) == (Some(NOW + 1), Some(NOW + 1))));
	assert_eq!(store.find(&newer.host, &newer.digest).unwrap(), Some(newer));
}

/// What lets somebody have so many open invites, and make so many in a minute.
pub(crate) fn allowance(inviter: &str, max_open: u32, max_created: u32) -> Allowance {
	let limits =
		Limits { max_open: Some(max_open), max_created: Some(max_created), period: 60, ..Limits::default() };
	let policy = Policy { roles: [("user".to_owned(), limits)].into(), allows_unknown_age: true };
	let inviter =
		Inviter { username: inviter.to_owned(), roles: vec![vec!["user".to_owned()]], account_created: None };
	policy.allowance(inviter).unwrap()
}

/// An invite for an account, made by a local user.
pub(crate) fn made_by(inviter: &str, token: &str) -> Invite {
	let source = [(Value::text("source"), Value::text(&format!("{inviter}@example.com/balcony")))];
	let fields = [(Value::text("additional_data"), Value::Table(source.into_iter().collect()))];
	Invite { fields: fields.into_iter().collect(), ..account(token) }
}

pub(crate) fn tokens_are_forgotten_page_by_page_and_links_with_them(store: &dyn Uses) {
	let linked = |token: &str| {
		let fields = [(Value::text("landing_page"), Value::text(&format!("https://example.com/?{token}")))];
		Invite { fields: fields.into_iter().collect(), ..account(token) }
	};
	for index in 0..5 {
		store.create(&linked(&format!("token{index}"))).unwrap();
	}
	let elsewhere = Invite { host: "example.net".to_owned(), ..linked("token5") };
	store.create(&elsewhere).unwrap();
	if !store.carries().digests {
		let refused = store.forget_tokens("example.com", None, 2);
		assert!(matches!(refused, Err(StoreError::Unsupported { .. })), "{refused:?}");
		return;
	}
	for _ in 0..2 {
		let (mut after, mut pages) = (None, 1);
		while let Some(next) = store.forget_tokens("example.com", after.as_ref(), 2).unwrap() {
			(after, pages) = (Some(next), pages + 1);
		}
		assert_eq!(pages, 3);
	}
	for index in 0..5 {
		let token = format!("token{index}");
		let expected = Invite { token: None, fields: linked("(token)").fields, ..linked(&token) };
		assert_eq!(store.find("example.com", &Digest::of(token.as_bytes())).unwrap(), Some(expected));
	}
	assert_eq!(store.find("example.net", &elsewhere.digest).unwrap(), Some(elsewhere));
}

pub(crate) fn the_invites_of_an_inviter_are_counted(store: &dyn Uses) {
	let contact = Invite {
		username: Some("juliet".to_owned()),
		created_at: NOW - 1,
		..sample("example.com", "contact")
	};
	let expiring = Invite { expires: Some(NOW + 5), created_at: NOW - 2, ..made_by("juliet", "expiring") };
	let [used, revoked] = [("used", 3), ("revoked", 4)]
		.map(|(token, age)| Invite { created_at: NOW - age, ..made_by("juliet", token) });
	let endless = Invite { expires: without_end(store), created_at: NOW - 5, ..made_by("juliet", "endless") };
	let elsewhere = Invite { host: "example.net".to_owned(), ..contact.clone() };
	let others = [made_by("romeo", "romeo"), account("nobody"), bound("bound", "juliet"), elsewhere];
	for invite in [&contact, &expiring, &used, &revoked, &endless].into_iter().chain(&others) {
		store.create(invite).unwrap();
	}
	assert!(redeem_once(store, &used));
	store.revoke(&revoked.host, &revoked.digest, None, None, NOW).unwrap().unwrap();
	let usage = |newest, now| store.usage("example.com", &allowance("juliet", 9, newest), now).unwrap();
	assert_eq!([usage(1, NOW + 5).open, usage(1, NOW + 6).open], [3, 2]);
	assert_eq!(
		store.usage("example.com", &allowance("juliet", 2, 1), NOW).unwrap().open,
		2,
		"enough to decide"
	);
	let all = if store.carries().history { [1, 2, 3, 4, 5].as_slice() } else { &[1, 2, 5] };
	let made: Vec<_> = all.iter().map(|age| NOW - age).collect();
	assert_eq!(usage(10, NOW).newest, made);
	assert_eq!(usage(2, NOW).newest, made[..2]);
	assert_eq!(store.usage("example.com", &allowance("nurse", 1, 1), NOW).unwrap(), Usage::default());
}

pub(crate) fn an_inviter_makes_no_more_than_the_limit_lets(store: &dyn Uses) {
	let make = |name: &str, token: &str, allowance: &Allowance| {
		store.create_within(&made_by(name, token), allowance).unwrap().map_err(|reached| reached.reason)
	};
	let two = allowance("juliet", 2, 100);
	for token in ["1", "2"] {
		assert_eq!(make("juliet", token, &two), Ok(vec![]));
	}
	assert_eq!(make("juliet", "3", &two), Err(Reason::MaxOpen(2)));
	assert_eq!(store.find("example.com", &Digest::of(b"3")).unwrap(), None);
	assert_eq!(make("romeo", "4", &allowance("romeo", 2, 100)), Ok(vec![]));
	store.revoke("example.com", &Digest::of(b"1"), None, None, NOW).unwrap().unwrap();
	assert_eq!(make("juliet", "3", &two), Ok(vec![]));
	if store.carries().history {
		assert_eq!(make("juliet", "5", &allowance("juliet", 100, 3)), Err(Reason::MaxCreated(3, 60)));
	}
	let newer =
		Invite { invite_type: Type::Register, username: Some("nurse".to_owned()), ..made_by("juliet", "6") };
	let older = bound("7", "nurse");
	store.create(&older).unwrap();
	let superseded = store.create_within(&newer, &allowance("juliet", 100, 100)).unwrap().unwrap();
	assert_eq!(superseded.iter().map(|invite| invite.digest).collect::<Vec<_>>(), [older.digest]);
	let again = store.create_within(&newer, &allowance("juliet", 100, 100));
	assert!(matches!(again, Err(StoreError::Exists)), "{again:?}");
}

#[cfg(test)]
pub(crate) fn an_inviter_makes_no_more_than_the_limit_lets_whatever_races(store: &(impl Uses + Sync)) {
	inviters_race(&[store, store]);
}

/// Eight threads, each with one of the stores, make invites for one inviter after the other.
#[cfg(test)]
pub(crate) fn inviters_race(stores: &[&(impl Uses + Sync)]) {
	for round in 0..20 {
		let inviter = format!("inviter{round}");
		let allowance = allowance(&inviter, 10, 100);
		let made = AtomicUsize::new(0);
		std::thread::scope(|threads| {
			for (thread, store) in (0..8).zip(stores.iter().cycle()) {
				let (inviter, allowance, made) = (&inviter, &allowance, &made);
				threads.spawn(move || {
					for attempt in 0..5 {
						let invite = made_by(inviter, &format!("{inviter} {thread} {attempt}"));
						let is_made = store.create_within(&invite, allowance).unwrap().is_ok();
						made.fetch_add(usize::from(is_made), Ordering::SeqCst);
					}
				});
			}
		});
		assert_eq!(made.into_inner(), 10);
		let all = self::allowance(&inviter, 1000, 1);
		assert_eq!(stores[0].usage("example.com", &all, NOW).unwrap().open, 10);
	}
}

pub(crate) fn an_import_keeps_what_is_new_and_wakes_nothing(store: &dyn Uses) {
	let [used, revoked, open, new, same_name] =
		["used", "revoked", "open", "new", "same name"].map(|token| bound(token, token));
	let same_name = Invite { username: new.username.clone(), ..same_name };
	for invite in [&used, &revoked, &open] {
		store.create(invite).unwrap();
	}
	store.redeem_at_once(&claim(&used, Purpose::Account, "used", NOW), None, NOW).unwrap().unwrap();
	store.revoke(&revoked.host, &revoked.digest, None, None, NOW).unwrap().unwrap();
	let has_history = store.carries().history;
	// Who keeps no history cannot know what is over.
	let known = if has_history { vec![&used, &revoked, &open] } else { vec![&open] };
	let all: Vec<Record> =
		known.iter().copied().chain([&new, &same_name]).map(|invite| invite.clone().into()).collect();
	assert_eq!(store.import(&all).unwrap(), 2);
	assert_eq!(store.import(&all).unwrap(), 0);
	let found = |invite: &Invite| store.find(&invite.host, &invite.digest).unwrap();
	assert_eq!(found(&used).is_some_and(|used| used.uses == 1), has_history);
	assert_eq!(found(&revoked).is_some_and(|revoked| revoked.revoked_at == Some(NOW)), has_history);
	assert_eq!([found(&open), found(&new), found(&same_name)], [open, new, same_name].map(Some));
}

pub(crate) fn a_limit_is_reached_exactly(store: &dyn Uses) {
	let limits: &[u32] = if store.carries().several_uses { &[1, 5] } else { &[1] };
	for &limit in limits {
		let invite = Invite { max_uses: Some(limit), ..account(&format!("limit {limit}")) };
		store.create(&invite).unwrap();
		for use_number in 1..=limit + 2 {
			assert_eq!(redeem_once(store, &invite), use_number <= limit);
		}
		let found = store.find(&invite.host, &invite.digest).unwrap();
		assert_eq!(found, ended(store, Invite { uses: limit, ended_at: Some(NOW), token: None, ..invite }));
	}
}

#[cfg(test)]
pub(crate) fn a_limit_is_reached_exactly_whatever_races(store: &(impl Uses + Sync)) {
	for limit in [1, 5] {
		let invite = Invite { max_uses: Some(limit), ..account(&format!("limit {limit}")) };
		store.create(&invite).unwrap();
		let redeemed = AtomicUsize::new(0);
		std::thread::scope(|threads| {
			for thread in 0..8 {
				let (invite, redeemed) = (&invite, &redeemed);
				threads.spawn(move || {
					for attempt in 0..3 {
						let claim = claim(invite, Purpose::Account, &format!("user{thread}.{attempt}"), NOW);
						if attempt == 1 {
							let at_once = store.redeem_at_once(&claim, None, NOW).unwrap();
							redeemed.fetch_add(usize::from(at_once.is_ok()), Ordering::SeqCst);
						} else if store.claim(&claim, None, NOW).unwrap().is_ok() {
							let done = store.redeem(&claim, None, NOW).unwrap();
							assert!(matches!(done, Redeemed::Now(_)));
							redeemed.fetch_add(1, Ordering::SeqCst);
						}
					}
				});
			}
		});
		let limit_reached = usize::try_from(limit).unwrap();
		assert_eq!(redeemed.into_inner(), limit_reached);
		assert_eq!(store.redemptions(&invite.host, &invite.digest).unwrap().len(), limit_reached);
		let found = store.find(&invite.host, &invite.digest).unwrap().unwrap();
		assert_eq!(found, Invite { uses: limit, ended_at: Some(NOW), token: None, ..invite });
	}
}

#[cfg(test)]
pub(crate) fn a_name_is_claimed_once_whatever_races(store: &(impl Uses + Sync)) {
	let group = Invite { max_uses: None, ..account("group") };
	store.create(&group).unwrap();
	let claimed = AtomicUsize::new(0);
	std::thread::scope(|threads| {
		for _ in 0..8 {
			threads.spawn(|| {
				let claim = claim(&group, Purpose::Account, "juliet", NOW);
				claimed.fetch_add(
					usize::from(store.claim(&claim, None, NOW).unwrap().is_ok()),
					Ordering::SeqCst,
				);
			});
		}
	});
	assert_eq!(claimed.into_inner(), 1);
}

pub(crate) fn without_a_limit_every_redemption_counts(store: &dyn Uses) {
	let invite = Invite { max_uses: None, ..account("group") };
	store.create(&invite).unwrap();
	for _ in 0..3 {
		assert!(redeem_once(store, &invite));
	}
	let uses = if store.carries().history { 3 } else { 0 };
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), Some(Invite { uses, ..invite }));
}

pub(crate) fn a_claim_is_redeemed_once_and_remembered(store: &dyn Uses) {
	let invite = sample("example.com", "secret");
	store.create(&invite).unwrap();
	let claim = claim(&invite, Purpose::Contact, "romeo@example.net", NOW);
	store.claim(&claim, None, NOW).unwrap().unwrap();
	let redeem = || store.redeem(&claim, Some("test"), NOW + 1).unwrap();
	let after = Invite { uses: 1, ended_at: Some(NOW + 1), token: None, ..invite.clone() };
	assert_eq!(redeem(), Redeemed::Now(after.clone()));
	assert_eq!(redeem(), Redeemed::Before);
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), ended(store, after));
	let expected = Redemption {
		nonce: claim.nonce,
		purpose: Purpose::Contact,
		invitee: Some("romeo@example.net".to_owned()),
		source: Some("test".to_owned()),
		used_at: NOW + 1,
	};
	let expected: &[Redemption] = if store.carries().history { &[expected] } else { &[] };
	assert_eq!(store.redemptions(&invite.host, &invite.digest).unwrap(), expected);
	assert!(!store.release(&claim.host, &claim.nonce).unwrap());
}

pub(crate) fn a_claim_is_redeemed_even_if_the_invite_was_revoked_since(store: &dyn Uses) {
	let invite = account("t");
	store.create(&invite).unwrap();
	let claim = claim(&invite, Purpose::Account, "alice", NOW);
	store.claim(&claim, None, NOW).unwrap().unwrap();
	store.revoke(&invite.host, &invite.digest, None, None, NOW).unwrap().unwrap();
	assert!(!redeem_once(store, &invite));
	let redeemed = store.redeem(&claim, None, NOW).unwrap();
	assert!(matches!(redeemed, Redeemed::Now(invite) if invite.uses == 1));
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap().is_some(), store.carries().history);
}

pub(crate) fn a_released_claim_is_free_again_and_lost_to_its_owner(store: &dyn Uses) {
	let invite = account("t");
	store.create(&invite).unwrap();
	let (first, second) =
		(claim(&invite, Purpose::Account, "alice", NOW), claim(&invite, Purpose::Account, "bob", NOW));
	store.claim(&first, None, NOW).unwrap().unwrap();
	assert_eq!(store.claim(&second, None, NOW).unwrap(), Err(Refusal::Busy));
	assert!(store.release(&first.host, &first.nonce).unwrap());
	store.claim(&second, None, NOW).unwrap().unwrap();
	let lost = store.redeem(&first, None, NOW).unwrap();
	assert_eq!(lost, Redeemed::Lost(Loss::TakenBack));
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap().unwrap().uses, 0);
}

pub(crate) fn a_replaced_claim_makes_room_for_its_successor(store: &dyn Uses) {
	let invite = account("t");
	store.create(&invite).unwrap();
	let (first, second) =
		(claim(&invite, Purpose::Account, "alice", NOW), claim(&invite, Purpose::Account, "alice", NOW));
	store.claim(&first, None, NOW).unwrap().unwrap();
	store.claim(&second, Some(&first.nonce), NOW).unwrap().unwrap();
	let redeem = |claim: &Claim| store.redeem(claim, None, NOW).unwrap();
	assert!(matches!(redeem(&first), Redeemed::Lost(_)));
	assert!(matches!(redeem(&second), Redeemed::Now(_)));
}

pub(crate) fn a_contact_gets_in_again_without_another_use_as_long_as_the_invite_is_open(store: &dyn Uses) {
	if !store.carries().history {
		return;
	}
	let invite = Invite { max_uses: Some(2), ..sample("example.com", "several") };
	let other = Invite { max_uses: None, ..sample("example.com", "other") };
	let elsewhere = Invite { host: "example.net".to_owned(), ..invite.clone() };
	for invite in [&invite, &other, &elsewhere] {
		store.create(invite).unwrap();
	}
	let contact = |invite: &Invite, jid: &str| claim(invite, Purpose::Contact, jid, NOW);
	let [romeo, tybalt, paris] = ["romeo@example.net", "tybalt@example.net", "paris@example.net"];
	let ask = |claim: &Claim| store.claim(claim, None, NOW).unwrap();
	let first = contact(&invite, romeo);
	assert_eq!(ask(&first), Ok(Admission::Claim));
	assert!(!store.view(&contact(&invite, romeo), NOW).unwrap().is_known, "a claim is no redemption yet");
	store.redeem(&first, None, NOW).unwrap();

	let before = store.find(&invite.host, &invite.digest).unwrap();
	let again = contact(&invite, romeo);
	assert_eq!(ask(&again), Ok(Admission::Known));
	assert!(!store.release(&invite.host, &again.nonce).unwrap(), "there is no claim");
	assert_eq!(store.redeem_at_once(&again, None, NOW).unwrap(), Ok(None));
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), before);
	assert_eq!(store.redemptions(&invite.host, &invite.digest).unwrap().len(), 1);
	for stranger in [contact(&invite, tybalt), contact(&other, romeo), contact(&elsewhere, romeo)] {
		assert!(!store.view(&stranger, NOW).unwrap().is_known);
	}
	assert!(!store.view(&claim(&invite, Purpose::Account, romeo, NOW), NOW).unwrap().is_known);

	let last = contact(&invite, tybalt);
	assert_eq!(ask(&last), Ok(Admission::Claim));
	assert_eq!(ask(&contact(&invite, paris)), Err(Refusal::Busy));
	assert_eq!(ask(&contact(&invite, romeo)), Ok(Admission::Known), "nothing is taken from who claims");
	store.redeem(&last, None, NOW).unwrap();
	for somebody in [romeo, tybalt, paris] {
		assert_eq!(ask(&contact(&invite, somebody)), Err(Refusal::Used));
	}
}

pub(crate) fn who_was_registered_with_an_invite_is_known_to_it_as_a_contact(store: &dyn Uses) {
	if !store.carries().history {
		return;
	}
	let several = |token| Invite { max_uses: Some(3), ..sample("example.com", token) };
	let (invite, other) = (several("several"), several("other"));
	register(store, &invite, "romeo", NOW);
	store.create(&other).unwrap();
	let is_known = |invite: &Invite, jid: &str| {
		store.view(&claim(invite, Purpose::Contact, jid, NOW), NOW).unwrap().is_known
	};
	assert!(is_known(&invite, "romeo@example.com"));
	assert!(!is_known(&invite, "romeo@example.net") && !is_known(&other, "romeo@example.com"));
	// The account is another's now.
	let later = claim(&other, Purpose::Account, "romeo", NOW + 1);
	store.redeem_at_once(&later, None, NOW + 1).unwrap().unwrap();
	assert!(!is_known(&invite, "romeo@example.com") && is_known(&other, "romeo@example.com"));
}

/// Two processes with the invites of one host in one store: the first makes claims, the second looks at them.
fn two_processes(store: &dyn Uses) -> [(Nonce, Invites); 2] {
	[1, 2].map(|byte| {
		let boot = Nonce::from_bytes([byte; 16]);
		(boot, store.of("example.com").of_process(boot))
	})
}

/// Looks that are made so often that nothing is missed, for a lease and a little more: what may be settled at the first
/// and at the last.
fn watched(invites: &Invites) -> [Vec<Claim>; 2] {
	let start = monotonic();
	let look = |at: i64| {
		let mono = start + Duration::from_secs(at.unsigned_abs());
		let mut claims = invites.look_at_claims(mono).unwrap();
		claims.sort_by_key(|claim| claim.nonce);
		claims
	};
	let first = look(0);
	for at in (1..LEASE).step_by(10) {
		assert_eq!(look(at), first, "nothing is proved before a whole lease");
	}
	[first, look(LEASE)]
}

pub(crate) fn a_renewed_claim_shows_that_its_owner_lives(store: &dyn Uses) {
	let invite = account("t");
	store.create(&invite).unwrap();
	let first = claim(&invite, Purpose::Account, "alice", NOW);
	store.claim(&first, None, NOW).unwrap().unwrap();
	for renewals in 1..3 {
		assert!(store.renew(&first.host, &first.nonce).unwrap());
		assert_eq!(store.claims(&first.host).unwrap(), [Claim { renewals, ..first.clone() }]);
	}
	store.release(&first.host, &first.nonce).unwrap();
	assert!(!store.renew(&first.host, &first.nonce).unwrap());
}

pub(crate) fn a_claim_stands_until_it_is_settled_and_its_owner_is_proved_to_be_dead(store: &dyn Uses) {
	let [(_, dead), (boot, alive)] = two_processes(store);
	let attempt = |invite: &Invite, name: &str| Attempt {
		digest: invite.digest,
		purpose: Purpose::Account,
		invitee: Some(name.to_owned()),
		depends_on: vec![],
	};
	let names = ["made", "missing", "unknown", "not found", "renewed"];
	let claims = names.map(|name| {
		let invite = account(name);
		store.create(&invite).unwrap();
		let nonce = dead.claim(attempt(&invite, name), None, NOW).unwrap().unwrap();
		(invite, nonce)
	});
	for later in [NOW + LEASE + 1, NOW + 1_000_000] {
		let refused = alive.claim(attempt(&claims[0].0, "romeo"), None, later).unwrap_err();
		assert_eq!(refused.condition(), "token-busy", "no clock settles anything");
	}
	let life = store.life(&claims[0].0.host, &Nonce::from_bytes([1; 16]));
	let [first, last] = watched(&alive);
	match life {
		Life::Alive => {
			assert_eq!([first, last], [vec![], vec![]]);
			// Now the second is the one that lives.
			store.hold(&boot);
		}
		Life::Over => assert_eq!(first.len(), names.len()),
		Life::Unknown { .. } => assert_eq!([first.len(), last.len()], [0, names.len()]),
	}
	let [_, settled] = watched(&alive);
	assert_eq!(settled.len(), names.len());
	let of = |index: usize| settled.iter().find(|claim| claim.nonce == claims[index].1).unwrap();
	assert!(dead.renew(&claims[4].1).unwrap());
	// That was a sign of life of a process that has ended; what was looked at before is not settled any more.
	store.hold(&boot);
	for (index, account) in
		[Account::Active, Account::Missing, Account::Unknown, Account::NotFound, Account::Missing]
			.into_iter()
			.enumerate()
	{
		let used = alive.settle(of(index), account, NOW).unwrap();
		assert_eq!(used.is_some(), index == 0, "{account:?}");
		assert_eq!(alive.settle(of(index), account, NOW).unwrap(), None, "once is enough");
	}
	let claim = |index: usize| {
		let (invite, _): &(Invite, Nonce) = &claims[index];
		alive.claim(attempt(invite, "romeo"), None, NOW).map_err(|error| error.condition())
	};
	assert_eq!(claim(0), Err(if store.carries().history { "token-used" } else { "token-invalid" }));
	let romeos = claim(1).unwrap().unwrap();
	alive.release(&romeos).unwrap();
	assert_eq!([2, 3, 4].map(claim), [Err("token-busy"), Err("token-busy"), Err("token-busy")]);
	// The one that was taken for dead learns what became of its claims.
	let redeem = |index: usize| {
		let (invite, nonce): &(Invite, Nonce) = &claims[index];
		dead.redeem(attempt(invite, names[index]), nonce, None, NOW)
	};
	assert!(redeem(0).unwrap().is_none(), "it was counted");
	assert!(redeem(1).unwrap().is_some(), "nobody has used it");
	assert!(redeem(2).unwrap().is_some());
}

pub(crate) fn a_claim_that_somebody_else_has_released_is_redeemed_afresh_where_a_use_is_free(
	store: &dyn Uses,
) {
	let invite = account("t");
	store.create(&invite).unwrap();
	let first = claim(&invite, Purpose::Account, "alice", NOW);
	store.claim(&first, None, NOW).unwrap().unwrap();
	assert!(store.release(&first.host, &first.nonce).unwrap());
	let redeem = || store.redeem(&first, Some("test"), NOW).unwrap();
	assert!(matches!(redeem(), Redeemed::Now(invite) if invite.uses == 1));
	assert_eq!(redeem(), Redeemed::Before);
}

pub(crate) fn an_account_is_taken_back_only_where_nobody_else_is_named_like_it(store: &dyn Uses) {
	if !store.carries().history {
		return;
	}
	let [contested, other, claimed] = ["contested", "other", "claimed"].map(account);
	for invite in [&contested, &other, &claimed] {
		store.create(invite).unwrap();
	}
	let lost = |name: &str| claim(&contested, Purpose::Account, name, NOW);
	let use_up = claim(&contested, Purpose::Account, "romeo", NOW);
	store.redeem_at_once(&use_up, None, NOW).unwrap().unwrap();
	let named = claim(&other, Purpose::Account, "nurse", NOW);
	store.redeem_at_once(&named, None, NOW).unwrap().unwrap();
	store.claim(&claim(&claimed, Purpose::Account, "paris", NOW), None, NOW).unwrap().unwrap();
	let redeem = |claim: &Claim| store.redeem(claim, None, NOW).unwrap();
	assert_eq!(redeem(&lost("juliet")), Redeemed::Lost(Loss::TakenBack));
	for name in ["romeo", "nurse", "paris"] {
		assert_eq!(redeem(&lost(name)), Redeemed::Lost(Loss::Stays), "{name}");
	}
	assert_eq!(store.redemptions(&contested.host, &contested.digest).unwrap().len(), 1);
}

pub(crate) fn a_claim_of_our_own_that_nobody_holds_is_settled_after_a_lease(store: &dyn Uses) {
	let [_, (boot, own)] = two_processes(store);
	let invites = ["held", "left"].map(account);
	let [held, left] = invites.each_ref().map(|invite| {
		store.create(invite).unwrap();
		Claim { boot, ..claim(invite, Purpose::Account, invite_name(invite), NOW) }
	});
	store.claim(&left, None, NOW).unwrap().unwrap();
	let attempt = Attempt {
		digest: held.digest,
		purpose: Purpose::Account,
		invitee: held.invitee.clone(),
		depends_on: vec![],
	};
	let nonce = own.claim(attempt, None, NOW).unwrap().unwrap();
	let start = monotonic();
	let look = |at: i64| own.look_at_claims(start + Duration::from_secs(at.unsigned_abs())).unwrap();
	assert_eq!([look(0), look(LEASE / 2)], [vec![], vec![]]);
	assert_eq!(look(LEASE), std::slice::from_ref(&left));
	assert!(own.settle(&left, Account::Active, NOW).unwrap().is_some());
	assert_eq!(store.claims(&held.host).unwrap(), [Claim { nonce, ..held }]);
}

/// A name that no other invite of a test has.
fn invite_name(invite: &Invite) -> &str {
	invite.token.as_ref().map_or("", Token::reveal)
}

pub(crate) fn an_unknown_token_is_neither_redeemed_nor_revoked(store: &dyn Uses) {
	let unknown = account("unknown");
	assert_eq!(store.find(&unknown.host, &unknown.digest).unwrap(), None);
	assert!(!redeem_once(store, &unknown));
	assert_eq!(store.revoke(&unknown.host, &unknown.digest, None, None, NOW).unwrap(), None);
	if store.carries().pause {
		assert!(!store.set_paused(&unknown.host, &unknown.digest, true).unwrap());
	}
	let lost = store.redeem(&claim(&unknown, Purpose::Account, "romeo", NOW), None, NOW).unwrap();
	assert_eq!(lost, Redeemed::Lost(Loss::Stays));
}

pub(crate) fn what_is_revoked_is_not_redeemed_and_keeps_its_first_revocation(store: &dyn Uses) {
	let invite = account("revoked");
	store.create(&invite).unwrap();
	let revoked = Invite {
		revoked_at: Some(10),
		revoked_why: Some("why".to_owned()),
		revoked_by: Some("who".to_owned()),
		ended_at: Some(10),
		token: None,
		..invite.clone()
	};
	let revoke = |why, now| store.revoke(&invite.host, &invite.digest, Some(why), Some("who"), now).unwrap();
	assert_eq!(revoke("why", 10), Some(revoked.clone()));
	assert_eq!(revoke("again", 20), None);
	assert!(!redeem_once(store, &invite));
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), ended(store, revoked));
}

/// An invite that resets a password.
pub(crate) fn reset(token: &str, username: &str) -> Invite {
	let data = [(Value::text("allow_reset"), Value::text(username))].into_iter().collect();
	let fields = [(Value::text("additional_data"), Value::Table(data))];
	Invite { fields: fields.into_iter().collect(), ..bound(token, username) }
}

pub(crate) fn retiring_takes_what_depends_on_one_user_alone(store: &dyn Uses) {
	let contact = |token: &str, username: &str| Invite {
		username: Some(username.to_owned()),
		..sample("example.com", token)
	};
	let mine = [contact("1", "juliet"), contact("2", "juliet"), made_by("juliet", "3"), reset("4", "juliet")];
	let others = [contact("5", "romeo"), bound("6", "juliet"), reset("7", "romeo"), made_by("nurse", "8")];
	for invite in mine.iter().chain(&others) {
		assert_eq!(store.create(invite).unwrap(), []);
	}
	assert!(redeem_once(store, &mine[0]));
	let digests = |invites: &[Invite]| {
		let mut digests: Vec<_> = invites.iter().map(|invite| invite.digest).collect();
		digests.sort();
		digests
	};
	let resets = store.retire_resets("example.com", "juliet", NOW + 1).unwrap();
	assert_eq!(digests(&resets), [mine[3].digest]);
	let retired = store.retire("example.com", "juliet", None, NOW + 1).unwrap();
	assert_eq!(digests(&retired), digests(&mine[1..3]));
	assert_eq!(store.retire("example.com", "juliet", None, NOW + 1).unwrap(), []);
	assert_eq!(digests(&store.open_invites("example.com", None, 10).unwrap()), digests(&others));
}

/// More than are ended in one batch.
const MANY: usize = 120;

/// Ends all that is to be ended, and that is once: what was ended, in the order of the digests.
fn end_all(store: &dyn Uses, begun: Vec<Invite>, now: Timestamp) -> Vec<Digest> {
	let mut ended = begun;
	for _ in 0..MANY {
		let more = store.end_more("example.com", now).unwrap();
		ended.extend(more.invites);
		if !more.is_more {
			break;
		}
	}
	assert!(ended.iter().all(|invite| invite.revoked_at.is_some() && invite.token.is_none()));
	let mut digests: Vec<_> = ended.iter().map(|invite| invite.digest).collect();
	digests.sort();
	let number = digests.len();
	digests.dedup();
	assert_eq!(digests.len(), number, "each is told once");
	digests
}

pub(crate) fn the_end_of_many_begins_at_once_and_each_is_ended_once(store: &dyn Uses) {
	let mut old: Vec<Invite> = (0..MANY).map(|index| made_by("juliet", &format!("old {index}"))).collect();
	// A clock that is ahead, and an invite that reserves a name.
	old[0].created_at = NOW + 90;
	old[1].username = Some("tybalt".to_owned());
	for invite in &old {
		store.create(invite).unwrap();
	}
	let others = [made_by("nurse", "nurse"), account("nobody"), bound("bound", "juliet")];
	for invite in &others {
		store.create(invite).unwrap();
	}
	assert!(store.view_name("example.com", "tybalt", NOW).unwrap().is_reserved);
	let claimed = claim(&old[2], Purpose::Account, "paris", NOW);
	store.claim(&claimed, None, NOW).unwrap().unwrap();

	let begun = store.retire("example.com", "juliet", None, NOW).unwrap();
	assert_eq!(begun.len() < MANY, store.carries().history, "a batch at a time");
	for invite in &old {
		let found = store.find("example.com", &invite.digest).unwrap();
		assert!(
			found.is_none_or(|found| found.state(NOW) == State::Revoked && found.revoked_at == Some(NOW))
		);
		let claim = claim(invite, Purpose::Account, "romeo", NOW);
		assert_eq!(store.claim(&claim, None, NOW).unwrap(), Err(Refusal::Invalid));
		assert_eq!(store.redeem_at_once(&claim, None, NOW).unwrap(), Err(Refusal::Invalid));
		assert_eq!(store.revoke("example.com", &invite.digest, None, None, NOW).unwrap(), None);
		if store.carries().pause {
			assert!(!store.set_paused("example.com", &invite.digest, true).unwrap());
		}
		assert_eq!(store.extend("example.com", &invite.digest, Some(NOW + 99), NOW).unwrap(), None);
	}
	assert!(!store.view_name("example.com", "tybalt", NOW).unwrap().is_reserved);
	let is_good = |record: &&Record| record.invite.state(NOW) == State::Pending;
	let records = store.records("example.com", None, 1000).unwrap();
	assert_eq!(records.iter().filter(is_good).count(), others.len());
	assert_eq!(store.pending("example.com", NOW).unwrap().len(), others.len());

	// Somebody else gets the name, in the same second.
	let one = allowance("juliet", 1, 1000);
	let new = [
		made_by("juliet", "new"),
		Invite { username: Some("juliet".to_owned()), ..sample("example.com", "contact") },
	];
	assert_eq!(store.usage("example.com", &one, NOW).unwrap().open, 0);
	assert_eq!(store.create_within(&new[0], &one).unwrap(), Ok(vec![]));
	assert_eq!(store.usage("example.com", &allowance("juliet", 9, 1000), NOW).unwrap().open, 1);
	let refused = store.create_within(&made_by("juliet", "newer"), &one).unwrap();
	assert_eq!(refused.map_err(|reached| reached.reason), Err(Reason::MaxOpen(1)));
	assert_eq!(store.create(&new[1]).unwrap(), []);

	let redeemed = store.redeem(&claimed, None, NOW).unwrap();
	assert!(matches!(redeemed, Redeemed::Now(_)), "who was let in before may go on");
	let was_begun = begun.iter().any(|invite| invite.digest == old[2].digest);
	let expected: BTreeSet<Digest> = old
		.iter()
		.map(|invite| invite.digest)
		.filter(|digest| was_begun || *digest != old[2].digest)
		.collect();
	assert_eq!(end_all(store, begun, NOW), expected.into_iter().collect::<Vec<_>>());
	let open = store.open_invites("example.com", None, 1000).unwrap();
	assert_eq!(open.len(), others.len() + new.len());
	assert!(redeem_once(store, &new[0]) && redeem_once(store, &new[1]));
	let later = NOW + Ending::LINGER;
	assert!(!store.end_more("example.com", later).unwrap().is_more);
	assert_eq!(store.create(&made_by("juliet", "last")).unwrap(), [], "and then it is forgotten");
	let last = store.find("example.com", &Digest::of(b"last")).unwrap();
	assert_eq!(last.map(|last| last.created_at), Some(NOW));
}

pub(crate) fn an_end_that_is_told_late_spares_what_was_made_since(store: &dyn Uses) {
	let made = |index: usize| {
		let created_at = if index.is_multiple_of(2) { NOW } else { NOW + 1 };
		Invite { created_at, ..made_by("juliet", &format!("{index}")) }
	};
	for index in 0..2 * MANY {
		store.create(&made(index)).unwrap();
	}
	let begun = store.retire("example.com", "juliet", Some(NOW), NOW + 5).unwrap();
	assert_eq!(store.pending("example.com", NOW + 5).unwrap().len(), MANY);
	assert_eq!(store.usage("example.com", &allowance("juliet", 1000, 1), NOW + 5).unwrap().open, 120);
	let mut expected: Vec<_> = (0..2 * MANY).step_by(2).map(|index| made(index).digest).collect();
	expected.sort();
	assert_eq!(end_all(store, begun, NOW + 5), expected);
}

pub(crate) fn a_branch_of_many_is_revoked_at_once(store: &dyn Uses) {
	register(store, &made_by("juliet", "1"), "romeo", NOW);
	for (inviter, index) in [("juliet", 0), ("romeo", 1), ("nurse", 2)] {
		for number in 0..MANY {
			store.create(&made_by(inviter, &format!("{index} {number}"))).unwrap();
		}
	}
	let begun =
		store.retire_inviter("example.com", "juliet", true, Some("spam"), Some("op"), NOW + 1).unwrap();
	let branch = if store.carries().history { 2 * MANY } else { MANY };
	assert_eq!(store.pending("example.com", NOW + 1).unwrap().len(), 3 * MANY - branch);
	assert_eq!(end_all(store, begun, NOW + 1).len(), branch);
	assert_eq!(store.open_invites("example.com", None, 1000).unwrap().len(), 3 * MANY - branch);
}

pub(crate) fn a_claim_on_what_an_end_covers_comes_to_what_it_does_where_the_invite_is_revoked(
	store: &dyn Uses,
) {
	if !store.carries().history {
		return; // it keeps no endings either: all end at once
	}
	let [(dead, _), (boot, alive)] = two_processes(store);
	let claims = ["revoked", "covered"].map(|end| {
		["lost", "contested", "made", "missing"].map(|case| {
			let name = format!("{end} {case}");
			// Their turn to be ended comes last, and most are not used up by then.
			let (created_at, expires) = (NOW - 10, Some(NOW + 1000));
			let max_uses = Some(if case == "contested" { 1 } else { 2 });
			let invite = Invite { created_at, expires, max_uses, ..made_by("juliet", &name) };
			store.create(&invite).unwrap();
			let claim = Claim { boot: dead, ..claim(&invite, Purpose::Account, &name, NOW) };
			store.claim(&claim, None, NOW).unwrap().unwrap();
			claim
		})
	});
	let others: Vec<Invite> = (0..MANY).map(|index| made_by("juliet", &format!("{index}"))).collect();
	for invite in &others {
		store.create(invite).unwrap();
	}
	let rivals = claims.each_ref().map(|[lost, contested, ..]| {
		for claim in [lost, contested] {
			assert!(store.release(&claim.host, &claim.nonce).unwrap());
		}
		let invitee = contested.invitee.as_ref().map(|name| format!("rival of {name}"));
		let rival = Claim { nonce: Nonce::generate().unwrap(), invitee, ..contested.clone() };
		store.claim(&rival, None, NOW).unwrap().unwrap();
		rival
	});
	let [revoked, covered] = &claims;
	for claim in revoked {
		store.revoke(&claim.host, &claim.digest, None, None, NOW).unwrap().unwrap();
	}
	let begun = store.retire("example.com", "juliet", None, NOW).unwrap();
	let is_begun = |claim: &Claim| begun.iter().any(|invite| invite.digest == claim.digest);
	assert_eq!(covered.each_ref().map(is_begun), [!store.carries().history; 4]);

	store.hold(&boot);
	let outcomes = claims.each_ref().map(|[lost, contested, made, missing]| {
		let redeem = |claim| match store.redeem(claim, None, NOW).unwrap() {
			Redeemed::Now(_) => None,
			other => Some(other),
		};
		let settle = |claim, account| alive.settle(claim, account, NOW).unwrap().is_some();
		let redeemed = [redeem(lost), redeem(contested)];
		(redeemed, [settle(made, Account::Active), settle(missing, Account::Missing)])
	});
	assert_eq!(outcomes[0], outcomes[1]);
	if store.carries().history {
		let taken_back = Some(Redeemed::Lost(Loss::TakenBack));
		assert_eq!(outcomes[1], ([None, taken_back], [true, false]), "who was let in may go on");
	}
	for rival in &rivals {
		assert!(matches!(store.redeem(rival, None, NOW).unwrap(), Redeemed::Now(_)));
	}
	assert_eq!(store.claims("example.com").unwrap(), []);

	// What is not used up is ended in its turn, and that is told.
	let used_up = store.carries().history.then_some(covered[1].digest);
	let untold = covered.iter().map(|claim| claim.digest).filter(|digest| Some(*digest) != used_up);
	let others = others.iter().map(|invite| invite.digest);
	let expected: BTreeSet<Digest> = others.chain(untold).collect();
	assert_eq!(end_all(store, begun, NOW), expected.into_iter().collect::<Vec<_>>());
}

/// Redeems an invite for an account with this name.
fn register(store: &dyn Uses, invite: &Invite, username: &str, now: Timestamp) {
	store.create(invite).unwrap();
	store.redeem_at_once(&claim(invite, Purpose::Account, username, now), None, now).unwrap().unwrap();
}

pub(crate) fn who_brought_an_account_is_known_and_the_last_registration_counts(store: &dyn Uses) {
	let (first, later) = (made_by("juliet", "first"), made_by("nurse", "later"));
	let lineage = |username: &str| store.lineage("example.com", username).unwrap();
	let names = |inviter: &str| -> Vec<String> {
		let brought = store.brought_by("example.com", inviter).unwrap();
		brought.into_iter().map(|member| member.username).collect()
	};
	register(store, &first, "romeo", NOW);
	let tracked = |username: &str| Member {
		username: username.to_owned(),
		inviter: "tracked".to_owned(),
		digest: Digest::of(b"elsewhere"),
		joined_at: None,
	};
	let members = [tracked("romeo"), tracked("paris")];
	if !store.carries().history {
		assert!(is_refused(&store.import_lineage("example.com", &members)));
		assert_eq!((lineage("romeo"), names("juliet")), (None, vec![]));
		return;
	}
	let romeo = Member {
		username: "romeo".to_owned(),
		inviter: "juliet".to_owned(),
		digest: first.digest,
		joined_at: Some(NOW),
	};
	assert_eq!(lineage("romeo"), Some(romeo));
	assert_eq!(store.import_lineage("example.com", &members).unwrap(), 1);
	assert_eq!(store.import_lineage("example.com", &members).unwrap(), 0);
	assert_eq!([names("juliet"), names("tracked")], [["romeo"], ["paris"]]);
	store.purge("example.com", NOW + 1, 10, &Bundled::Unknown).unwrap();
	assert_eq!(names("juliet"), ["romeo"], "the invite is gone, who used it is known");
	register(store, &later, "romeo", NOW + 1);
	assert_eq!((names("juliet"), names("nurse")), (vec![], vec!["romeo".to_owned()]));
	register(store, &account("nobody's"), "romeo", NOW + 2);
	assert_eq!((lineage("romeo"), names("nurse")), (None, vec![]));
	assert_eq!(store.lineage("example.net", "paris").unwrap(), None);
}

pub(crate) fn a_branch_is_revoked_at_once_and_nobody_elses_invites(store: &dyn Uses) {
	register(store, &made_by("juliet", "1"), "romeo", NOW);
	register(store, &made_by("romeo", "2"), "paris", NOW);
	let open = [("juliet", "3"), ("romeo", "4"), ("paris", "5"), ("paris", "6"), ("nurse", "7")];
	for (inviter, token) in open {
		store.create(&made_by(inviter, token)).unwrap();
	}
	let elsewhere = Invite { host: "example.net".to_owned(), ..made_by("juliet", "8") };
	store.create(&elsewhere).unwrap();
	let retire = |is_branch| {
		let retired =
			store.retire_inviter("example.com", "juliet", is_branch, Some("spam"), Some("op"), NOW + 1);
		let mut digests: Vec<_> = retired.unwrap().iter().map(|invite| invite.digest).collect();
		digests.sort();
		digests
	};
	let digests = |tokens: &[&str]| {
		let mut digests: Vec<_> = tokens.iter().map(|token| Digest::of(token.as_bytes())).collect();
		digests.sort();
		digests
	};
	assert_eq!(retire(false), digests(&["3"]));
	let branch: &[&str] = if store.carries().history { &["4", "5", "6"] } else { &[] };
	assert_eq!(retire(true), digests(branch));
	assert_eq!(retire(true), []);
	if store.carries().history {
		let found = store.find("example.com", &Digest::of(b"5")).unwrap().unwrap();
		let revoked = (found.revoked_at, found.revoked_why.as_deref(), found.revoked_by.as_deref());
		assert_eq!(revoked, (Some(NOW + 1), Some("spam"), Some("op")));
		let open = store.open_invites("example.com", None, 10).unwrap();
		assert_eq!(open.iter().map(|invite| invite.digest).collect::<Vec<_>>(), digests(&["7"]));
	}
	assert_eq!(store.open_invites("example.net", None, 10).unwrap().len(), 1);
}

pub(crate) fn the_invites_of_an_inviter_are_found_whatever_became_of_them(store: &dyn Uses) {
	let made = |token: &str, created_at| Invite { created_at, ..made_by("juliet", token) };
	let contact = Invite { username: Some("juliet".to_owned()), ..sample("example.com", "contact") };
	register(store, &made("used", NOW + 1), "romeo", NOW);
	store.create(&made("open", NOW + 2)).unwrap();
	store.create(&contact).unwrap();
	store.create(&made_by("nurse", "nurse")).unwrap();
	let found = store.made_by("example.com", "juliet").unwrap();
	let found: Vec<_> = found.iter().map(|invite| invite.digest).collect();
	let tokens: &[&[u8]] =
		if store.carries().history { &[b"contact", b"used", b"open"] } else { &[b"contact", b"open"] };
	assert_eq!(found, tokens.iter().map(|token| Digest::of(token)).collect::<Vec<_>>());
}

pub(crate) fn a_pause_keeps_others_out_until_it_ends(store: &dyn Uses) {
	if !store.carries().pause {
		return;
	}
	let invite = account("t");
	store.create(&invite).unwrap();
	let pause = |paused| store.set_paused(&invite.host, &invite.digest, paused).unwrap();
	assert!(pause(true) && !pause(true));
	assert!(!redeem_once(store, &invite));
	assert!(pause(false) && !pause(false));
	assert!(redeem_once(store, &invite));
	assert!(!pause(true), "it has ended");
}

pub(crate) fn each_expired_invite_is_ended_once(store: &dyn Uses) {
	for index in 0..5 {
		store.create(&Invite { expires: Some(NOW + index), ..account(&format!("t{index}")) }).unwrap();
	}
	store.create(&Invite { expires: Some(NOW + 1000), ..account("later") }).unwrap();
	let end = |limit, now| store.end_expired("example.com", limit, now).unwrap().len();
	assert_eq!(end(10, NOW), 0);
	assert_eq!(end(2, NOW + 3), 2);
	assert_eq!(end(10, NOW + 3), 1);
	assert_eq!(end(10, NOW + 3), 0);
	let ended = store.find("example.com", &Digest::of(b"t0")).unwrap().unwrap();
	let when_it_expired = (Some(NOW), None);
	assert_eq!((ended.ended_at, ended.revoked_at), when_it_expired);
	assert!(redeem_once(store, &ended), "who was validated before may still redeem it");
}

pub(crate) fn a_name_is_seen_as_reserved_and_as_claimed(store: &dyn Uses) {
	let (own, other) = (bound("own", "juliet"), account("other"));
	store.create(&own).unwrap();
	store.create(&other).unwrap();
	let view = store.view_name("example.com", "juliet", NOW).unwrap();
	assert!(view.is_reserved && view.claims_on_name.is_empty());
	assert!(!store.view_name("example.com", "romeo", NOW).unwrap().is_reserved);
	let stranger = claim(&other, Purpose::Account, "juliet", NOW);
	assert_eq!(store.claim(&stranger, None, NOW).unwrap(), Err(Refusal::Reserved));
	let holder = claim(&own, Purpose::Account, "juliet", NOW);
	store.claim(&holder, None, NOW).unwrap().unwrap();
	assert_eq!(store.view_name("example.com", "juliet", NOW).unwrap().claims_on_name, [holder]);
}

pub(crate) fn pages_follow_each_other_without_gap_or_repetition(store: &dyn Uses) {
	let mut expected = Vec::new();
	for index in 0..25 {
		let invite = account(&format!("page {index}"));
		store.create(&invite).unwrap();
		match index % 5 {
			0 => assert!(redeem_once(store, &invite)),
			1 => assert!(store.revoke(&invite.host, &invite.digest, None, None, 1).unwrap().is_some()),
			_ => expected.push(invite),
		}
	}
	expected.sort_by_key(|invite| invite.digest);
	let mut found = Vec::new();
	loop {
		let after = found.last().map(|invite: &Invite| invite.digest);
		let page = store.open_invites("example.com", after.as_ref(), 5).unwrap();
		let is_last = page.len() < 5;
		found.extend(page);
		if is_last {
			break;
		}
	}
	assert_eq!(found, expected);
}

pub(crate) fn records_hold_everything_and_can_be_taken_over_by_another_host(store: &dyn Uses) {
	let invites: Vec<Invite> = (0..7).map(|index| account(&format!("record {index}"))).collect();
	for invite in &invites {
		store.create(invite).unwrap();
	}
	let used = claim(&invites[0], Purpose::Account, "alice", NOW);
	store.redeem_at_once(&used, Some("test"), NOW + 5).unwrap().unwrap();
	store.revoke("example.com", &invites[1].digest, Some("why"), Some("who"), NOW + 6).unwrap().unwrap();
	let all = |host: &str| {
		let mut records: Vec<Record> = Vec::new();
		loop {
			let after = records.last().map(|record| record.invite.digest);
			let page = store.records(host, after.as_ref(), 3).unwrap();
			let is_last = page.len() < 3;
			records.extend(page);
			if is_last {
				return records;
			}
		}
	};
	let records = all("example.com");
	assert_eq!(records.len(), if store.carries().history { 7 } else { 5 });
	assert!(records.is_sorted_by_key(|record| record.invite.digest));
	for Record { invite, redemptions } in &records {
		assert_eq!(store.find(&invite.host, &invite.digest).unwrap().as_ref(), Some(invite));
		assert_eq!(store.redemptions(&invite.host, &invite.digest).unwrap(), *redemptions);
	}
	let there = |record: Record| Record {
		invite: Invite { host: "b.example".to_owned(), ..record.invite },
		redemptions: record.redemptions,
	};
	let moved: Vec<Record> = records.into_iter().map(there).collect();
	assert_eq!(store.import(&moved).unwrap(), moved.len());
	assert_eq!(all("b.example"), moved);
}

pub(crate) fn a_look_at_a_good_store_finds_nothing_critical(store: &dyn Uses) {
	store.create(&account("t")).unwrap();
	let findings = store.check("example.com", NOW + LEAP);
	assert!(!findings.is_empty());
	assert!(findings.iter().all(|finding| finding.level < Level::Critical), "{findings:?}");
	let behind = store.check("example.com", NOW - LEAP);
	assert!(behind.iter().any(|finding| finding.text.contains("clock")), "{behind:?}");
}

/// Reads a part to its end in pages of three.
fn whole_part(store: &dyn Uses, part: Part, now: Timestamp) -> Vec<Digest> {
	let (mut found, mut after) = (Vec::new(), Position::START);
	loop {
		let page = store.listing("example.com", part, &after, 3, now).unwrap();
		found.extend(page.iter().map(|invite| invite.digest));
		match page.last() {
			Some(last) if page.len() == 3 => after = last.position(part, now).unwrap(),
			_ => return found,
		}
	}
}

pub(crate) fn the_open_part_shows_the_newest_first(store: &dyn Uses) {
	let mut expected = Vec::new();
	for index in 0..10 {
		// Some of one second, so that the digests have to tell them apart.
		let invite = Invite { created_at: NOW + index / 3, ..account(&format!("t{index}")) };
		store.create(&invite).unwrap();
		match index {
			3 => assert!(redeem_once(store, &invite)),
			4 => drop(store.revoke(&invite.host, &invite.digest, None, None, NOW).unwrap()),
			5 if store.carries().pause => {
				assert!(store.set_paused(&invite.host, &invite.digest, true).unwrap());
			}
			_ => (),
		}
		if !(3..=4).contains(&index) {
			expected.push((invite.created_at, invite.digest));
		}
	}
	store.create(&sample("example.net", "elsewhere")).unwrap();
	expected.sort();
	let newest_first: Vec<_> = expected.into_iter().rev().map(|(_, digest)| digest).collect();
	assert_eq!(whole_part(store, Part::Open, NOW + 1000), newest_first, "expired ones that nobody noted too");
}

pub(crate) fn the_history_shows_the_last_ended_first_and_what_expired_unnoted(store: &dyn Uses) {
	if !store.carries().history {
		return;
	}
	let expiring = |token, expires| Invite { expires: Some(expires), ..account(token) };
	let [used, revoked, noted, unnoted, open] = [
		expiring("used", NOW + 1000),
		expiring("revoked", NOW + 1000),
		expiring("noted", NOW + 20),
		expiring("unnoted", NOW + 25),
		expiring("open", NOW + 99),
	];
	for invite in [&used, &revoked, &noted, &unnoted, &open] {
		store.create(invite).unwrap();
	}
	let claim = claim(&used, Purpose::Account, "bob", NOW + 30);
	store.redeem_at_once(&claim, None, NOW + 30).unwrap().unwrap();
	store.revoke(&revoked.host, &revoked.digest, None, None, NOW + 22).unwrap().unwrap();
	assert_eq!(store.end_expired("example.com", 10, NOW + 25).unwrap().len(), 1);
	let expected = [&used, &unnoted, &revoked, &noted].map(|invite| invite.digest);
	assert_eq!(whole_part(store, Part::History, NOW + 99), expected);
	assert!(!whole_part(store, Part::History, NOW + 25).contains(&unnoted.digest));
}

pub(crate) fn open_invites_are_counted_in_pages(store: &dyn Uses) {
	for index in 0..7 {
		store.create(&account(&format!("t{index}"))).unwrap();
	}
	assert!(redeem_once(store, &account("t0")));
	let (first, after) = store.count_open("example.com", &Position::START, 4).unwrap();
	let (second, end) = store.count_open("example.com", &after.unwrap(), 4).unwrap();
	assert_eq!((first, second, end), (4, 2, None));
	assert_eq!(store.count_open("example.net", &Position::START, 4).unwrap(), (0, None));
}

pub(crate) fn what_is_used_up_or_revoked_keeps_no_secret(store: &dyn Uses) {
	if !store.carries().history {
		return;
	}
	let with_link = |token: &str, max_uses| {
		let link = Value::text(&format!("https://example.com/?{token}"));
		let fields = [(Value::text("landing_page"), link)].into_iter().collect();
		Invite { max_uses: Some(max_uses), fields, ..account(token) }
	};
	let [used, revoked, expired, half] =
		[with_link("used", 1), with_link("revoked", 1), with_link("expired", 1), with_link("half", 2)];
	for invite in [&used, &revoked, &expired, &half] {
		store.create(invite).unwrap();
	}
	assert!(redeem_once(store, &used) && redeem_once(store, &half));
	store.revoke(&revoked.host, &revoked.digest, None, None, NOW).unwrap().unwrap();
	assert_eq!(store.end_expired("example.com", 10, NOW + 61).unwrap().len(), 2);
	let found = |invite: &Invite| store.find(&invite.host, &invite.digest).unwrap().unwrap();
	for over in [&used, &revoked] {
		let found = found(over);
		assert_eq!(found.token, None);
		assert_eq!(found.fields.get("landing_page"), Some(&Value::text("https://example.com/?(token)")));
	}
	for kept in [&expired, &half] {
		assert_eq!((found(kept).token, found(kept).fields), (kept.token.clone(), kept.fields.clone()));
	}
}

/// How long an invite is good without end: some storages that Prosody has cannot keep an infinite number.
fn without_end(store: &dyn Uses) -> Option<Timestamp> {
	let endless = Invite { expires: None, ..account("without end") };
	if is_refused(&store.create(&endless)) {
		return Some(NOW + 1_000_000);
	}
	store.revoke(&endless.host, &endless.digest, None, None, NOW).unwrap().unwrap();
	None
}

pub(crate) fn an_extended_invite_is_good_again_unless_it_was_used_or_revoked(store: &dyn Uses) {
	let never = without_end(store);
	let [open, expired, used, revoked] = ["open", "expired", "used", "revoked"].map(account);
	for invite in [&open, &expired, &used, &revoked] {
		store.create(invite).unwrap();
	}
	assert!(redeem_once(store, &used));
	store.revoke(&revoked.host, &revoked.digest, None, None, NOW).unwrap().unwrap();
	assert_eq!(store.end_expired("example.com", 10, NOW + 61).unwrap().len(), 2);
	let extend =
		|invite: &Invite, expires| store.extend(&invite.host, &invite.digest, expires, NOW + 61).unwrap();
	for (invite, expires) in [(&open, never), (&expired, Some(NOW + 100))] {
		let extended = Invite { expires, ..invite.clone() };
		assert_eq!(extend(invite, expires), Some((extended.clone(), vec![])));
		assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), Some(extended));
	}
	assert_eq!(extend(&used, None), None);
	assert_eq!(extend(&revoked, None), None);
	assert_eq!(extend(&account("unknown"), None), None);
	assert_eq!(store.end_expired("example.com", 10, NOW + 101).unwrap().len(), 1, "it can expire again");
}

pub(crate) fn extending_a_bound_invite_takes_the_place_of_a_newer(store: &dyn Uses) {
	let endless = without_end(store);
	let (older, newer) = (bound("older", "juliet"), bound("newer", "juliet"));
	store.create(&older).unwrap();
	assert_eq!(store.end_expired("example.com", 10, NOW + 61).unwrap().len(), 1);
	store.create(&Invite { expires: endless, ..newer.clone() }).unwrap();
	let (_, superseded) = store.extend(&older.host, &older.digest, endless, NOW + 61).unwrap().unwrap();
	assert_eq!(superseded.iter().map(|invite| invite.digest).collect::<Vec<_>>(), [newer.digest]);
	assert!(!redeem_once(store, &newer));
	assert!(store.find(&older.host, &older.digest).unwrap().unwrap().revoked_at.is_none());
}

pub(crate) fn a_purge_takes_what_ended_early_enough_with_its_uses_and_spares_claims(store: &dyn Uses) {
	if !store.carries().history {
		return;
	}
	let [early, late, claimed, open] =
		["early", "late", "claimed", "open"].map(|token| Invite { expires: Some(NOW), ..account(token) });
	for invite in [&early, &late, &claimed, &open] {
		store.create(invite).unwrap();
	}
	let held = claim(&claimed, Purpose::Account, "alice", NOW);
	store.claim(&held, None, NOW).unwrap().unwrap();
	store.revoke(&claimed.host, &claimed.digest, None, None, NOW).unwrap().unwrap();
	for (invite, name, used_at) in [(&early, "bob", NOW), (&late, "eve", NOW + 10)] {
		let claim = claim(invite, Purpose::Account, name, used_at);
		store.redeem_at_once(&claim, None, used_at).unwrap().unwrap();
	}
	assert_eq!(store.purge("example.net", NOW + 10, 10, &Bundled::Unknown).unwrap(), 0);
	assert_eq!(store.purge("example.com", NOW + 10, 10, &Bundled::Unknown).unwrap(), 1);
	assert_eq!(store.find(&early.host, &early.digest).unwrap(), None);
	assert_eq!(store.redemptions(&early.host, &early.digest).unwrap(), []);
	assert_eq!(store.redemptions(&late.host, &late.digest).unwrap().len(), 1);
	assert!(matches!(store.redeem(&held, None, NOW + 20).unwrap(), Redeemed::Now(_)));
	assert_eq!(store.purge("example.com", NOW + 1000, 1, &Bundled::Unknown).unwrap(), 1);
	assert_eq!(store.purge("example.com", NOW + 1000, 10, &Bundled::Unknown).unwrap(), 1);
	assert_eq!(store.open_invites("example.com", None, 10).unwrap(), [open]);
}

pub(crate) fn a_purge_spares_what_would_be_good_if_it_were_taken_in_again(store: &dyn Uses) {
	if !store.carries().history {
		return;
	}
	let [used, endless, revoked, open] =
		[("used", Some(NOW + 60)), ("endless", None), ("revoked", None), ("open", None)]
			.map(|(token, expires)| Invite { expires, ..account(token) });
	for (invite, at) in [(&used, NOW), (&endless, NOW + 1), (&revoked, NOW + 2), (&open, NOW)] {
		store.create(invite).unwrap();
		match at {
			_ if invite.digest == open.digest => (),
			_ if invite.digest == revoked.digest => {
				store.revoke(&invite.host, &invite.digest, None, None, at).unwrap().unwrap();
			}
			_ => {
				store.redeem_at_once(&claim(invite, Purpose::Account, "x", at), None, at).unwrap().unwrap();
			}
		}
	}
	let purge =
		|before, limit, bundled: &Bundled| store.purge("example.com", before, limit, bundled).unwrap();
	assert_eq!(purge(NOW + 60, 10, &Bundled::Unknown), 0, "any of them may be taken in again");
	assert_eq!(store.import(&[used.clone().into(), endless.clone().into()]).unwrap(), 0);
	let both = Bundled::Known([(used.digest, Some(NOW + 60)), (endless.digest, None)].into());
	// What is spared is not in the way of what is not, nor is it counted.
	assert_eq!(purge(NOW + 2, 1, &both), 0, "it ended later");
	assert_eq!(purge(NOW + 3, 1, &both), 1);
	assert_eq!(store.find(&revoked.host, &revoked.digest).unwrap(), None);
	assert_eq!(purge(NOW + 60, 10, &both), 0);
	assert_eq!(purge(NOW + 61, 10, &both), 1, "its token there has expired, too");
	assert_eq!(store.find(&used.host, &used.digest).unwrap(), None);
	assert_eq!(purge(NOW + 1_000_000, 10, &Bundled::Unknown), 0);
	assert_eq!(store.import(&[endless.clone().into()]).unwrap(), 0);
	assert_eq!(purge(NOW + 1_000_000, 10, &Bundled::Known([(used.digest, None)].into())), 1);
	assert_eq!(store.redemptions(&endless.host, &endless.digest).unwrap(), []);
	assert_eq!(store.open_invites("example.com", None, 10).unwrap(), [open]);
}

pub(crate) fn looking_at_a_claim_makes_none(store: &dyn Uses) {
	let invite = account("t");
	store.create(&invite).unwrap();
	let (alice, bob) =
		(claim(&invite, Purpose::Account, "alice", NOW), claim(&invite, Purpose::Account, "bob", NOW));
	let view = store.view(&alice, NOW).unwrap();
	assert_eq!((view.invite.as_ref(), &view.claims, view.is_reserved), (Some(&invite), &vec![], false));
	store.claim(&bob, None, NOW).unwrap().unwrap();
	assert_eq!(store.view(&alice, NOW).unwrap().claims, std::slice::from_ref(&bob));
	assert_eq!(store.claims("example.com").unwrap(), [bob]);
	assert_eq!(store.claims("example.net").unwrap(), []);
}
