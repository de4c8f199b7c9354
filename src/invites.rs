//! The invites of one host: every use case, once, in the words of its rule.
//!
//! A use case says what it reads, which rule decides, and what it changes, in [`Work`](crate::store::Work) that a store
//! makes atomic. The order of its verbs is part of it: an invite is locked before its claims are read. Where a store is
//! looked at first without a lock, nearly always nothing is to be done.

#![expect(clippy::missing_errors_doc, reason = "that all fail when the store does is said once, at Invites")]

mod ending;
mod finding;
mod making;
mod redeeming;
mod reviewing;

pub use self::ending::{Ended, EndedMore};
pub use self::reviewing::Review;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::{Arc, MutexGuard, OnceLock};
use std::time::Duration;

use crate::attempts::{Attempts, UnderWay};
use crate::clock::Timestamp;
use crate::ending::Ending;
use crate::error::InviteError;
use crate::invite::{Invite, Type};
use crate::lineage::Member;
use crate::redemption::{Account, LEASE, supersedes};
use crate::store::{Carries, Endings, Lock, Members, Pick, Rows, Store, StoreError, TxError, Work};
use crate::token::{Digest, Nonce};
use crate::value::MAX_ATTACHED;
use crate::watch::Watch;

/// What a caller asks for.
#[derive(Clone, Debug)]
pub struct Request {
	/// What the invite is made for.
	pub invite_type: Type,
	/// The inviter of a roster invite, the bound name of a register one. Nodeprepped.
	pub username: Option<String>,
	/// Whether it resets the password of `username`.
	pub is_reset: bool,
	/// The account of `username`, for a register invite that has one.
	pub account: Option<Account>,
	/// Whether it may be redeemed for an account.
	pub allow_registration: bool,
	/// Seconds until it expires; none: never.
	pub ttl: Option<i64>,
	/// How often it may be redeemed; none: until it expires.
	pub max_uses: Option<u32>,
}

/// What the store keeps of the tokens of pending invites (option `invite_token_at_rest`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtRest {
	/// The token itself.
	#[default]
	Plain,
	/// Its digest alone, so that who gets hold of the store gets no token. What needs no token works as before; invites
	/// are listed, shown and revoked by their public ids.
	Digest,
}

/// Why an invite is revoked that another one [`supersedes`](crate::redemption::supersedes).
const SUPERSEDED: &str = "a newer invite took its place";

/// The invites of one host in one store. Every use case fails with [`InviteError::Store`] when the store does.
#[derive(Clone)]
pub struct Invites {
	host: String,
	store: Arc<dyn Store>,
	at_rest: AtRest,
	batch: usize,
	/// None: the name of this process.
	boot: Option<Nonce>,
	under_way: Arc<UnderWay>,
}

impl Invites {
	/// The invites of `host`, as Prosody writes it, in `store`.
	pub fn new(host: String, store: Arc<dyn Store>) -> Self {
		let lease = Duration::from_secs(LEASE.unsigned_abs());
		Self {
			host,
			store,
			at_rest: AtRest::Plain,
			batch: ending::BATCH,
			boot: None,
			under_way: Arc::new(UnderWay::new(lease)),
		}
	}

	/// The same as another process has them, whose name this is: for tests.
	#[must_use]
	pub fn of_process(self, boot: Nonce) -> Self {
		Self { boot: Some(boot), ..self }
	}

	/// The same, going on with what is under way.
	#[must_use]
	pub fn going_on_with(self, under_way: Arc<UnderWay>) -> Self {
		Self { under_way, ..self }
	}

	/// The same, keeping so much of the tokens.
	#[must_use]
	pub fn keeping(self, at_rest: AtRest) -> Self {
		Self { at_rest, ..self }
	}

	/// The same, ending so many invites at once.
	#[must_use]
	pub fn in_batches_of(self, batch: usize) -> Self {
		Self { batch, ..self }
	}

	/// The host.
	#[must_use]
	pub fn host(&self) -> &str {
		&self.host
	}

	/// What the store can keep.
	#[must_use]
	pub fn carries(&self) -> Carries {
		self.store.carries()
	}

	/// An invite as it is stored.
	fn at_rest<'a>(&self, invite: &'a Invite) -> Cow<'a, Invite> {
		match self.at_rest {
			AtRest::Plain => Cow::Borrowed(invite),
			AtRest::Digest => {
				let mut invite = invite.clone();
				invite.forget_token();
				Cow::Owned(invite)
			}
		}
	}

	/// Does work that changes nothing, and whose verbs need not see one moment.
	fn look<T>(
		&self,
		doing: &'static str,
		work: impl FnMut(&mut dyn Rows) -> Result<T, TxError>,
	) -> Result<T, StoreError> {
		kept(work, |work| self.store.look(doing, &self.host, work))
	}

	/// Does work that reads what has to fit together.
	fn read<T>(
		&self,
		doing: &'static str,
		work: impl FnMut(&mut dyn Rows) -> Result<T, TxError>,
	) -> Result<T, StoreError> {
		kept(work, |work| self.store.read(doing, &self.host, work))
	}

	/// Does work that changes something, and releases the orphans with it.
	fn write<T>(
		&self,
		doing: &'static str,
		locks: &[Lock<'_>],
		mut work: impl FnMut(&mut dyn Rows) -> Result<T, TxError>,
	) -> Result<T, StoreError> {
		let orphans = self.attempts().orphans().to_vec();
		let work = |rows: &mut dyn Rows| {
			let done = work(rows)?;
			// Last: whoever waits for one of these claims has locked what the work locks.
			if !orphans.is_empty() {
				rows.take_claims(&orphans)?;
			}
			Ok(done)
		};
		let done = kept(work, |work| self.store.write(doing, &self.host, locks, work))
			.inspect_err(|error| self.note_failure(error))?;
		self.attempts().adopt(&orphans);
		Ok(done)
	}

	fn attempts(&self) -> MutexGuard<'_, Attempts> {
		self.under_way.attempts()
	}

	/// While nobody can write, nobody can show that it lives by renewing its claims: what was not seen meanwhile proves
	/// nothing.
	fn note_failure(&self, error: &StoreError) {
		if matches!(error, StoreError::Unavailable { .. } | StoreError::Unusable { .. }) {
			self.watch().clear();
		}
	}

	fn watch(&self) -> MutexGuard<'_, Watch> {
		self.under_way.watch()
	}

	/// How long somebody is watched who gives no sign of life.
	#[must_use]
	pub fn lease(&self) -> Duration {
		self.watch().lease()
	}
}

/// Keeps what work returns that a store has done.
fn kept<T>(
	mut work: impl FnMut(&mut dyn Rows) -> Result<T, TxError>,
	run: impl FnOnce(Work<'_>) -> Result<(), StoreError>,
) -> Result<T, StoreError> {
	let mut done = None;
	run(&mut |rows| {
		done = Some(work(rows)?);
		Ok(())
	})?;
	done.ok_or_else(|| StoreError::Unusable {
		problem: "the store says that it is done, and has done nothing".to_owned(),
		source: None,
	})
}

/// An invite that can be read.
fn whole(invite: Invite) -> Result<Invite, TxError> {
	match invite.fields.check() {
		Ok(_) => Ok(invite),
		Err(error) => Err(StoreError::damaged(&invite.digest, error).into()),
	}
}

/// An invite as it is stored. What the end of many covers is revoked all the same: it is for what does not look at that,
/// or ends the invite itself.
fn stored(rows: &mut dyn Rows, digest: &Digest) -> Result<Option<Invite>, TxError> {
	rows.invite(digest)?.map(whole).transpose()
}

/// Invites as they are stored, as of [`stored`].
fn all_stored(rows: &mut dyn Rows, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError> {
	rows.invites(pick, limit)?.into_iter().map(whole).collect()
}

/// The same without a lock.
fn peek_stored(rows: &mut dyn Rows, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError> {
	rows.peek(pick, limit)?.into_iter().map(whole).collect()
}

/// An invite as it counts.
fn invite(rows: &mut dyn Rows, digest: &Digest) -> Result<Option<Invite>, TxError> {
	let mut found = stored(rows, digest)?;
	apply_endings(rows, found.as_mut_slice())?;
	Ok(found)
}

/// Invites as they count.
fn invites(rows: &mut dyn Rows, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError> {
	let mut found = all_stored(rows, pick, limit)?;
	apply_endings(rows, &mut found)?;
	Ok(found)
}

/// The same without a lock.
fn peek(rows: &mut dyn Rows, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError> {
	let mut found = peek_stored(rows, pick, limit)?;
	apply_endings(rows, &mut found)?;
	Ok(found)
}

/// Has invites count as revoked that the end of many covers, whether or not its turn has come to be ended. An ending is
/// removed a while after its last invite was ended, so it may be read after the invite.
fn apply_endings(rows: &mut dyn Rows, found: &mut [Invite]) -> Result<(), TxError> {
	let open = found.iter().filter(|invite| invite.ended_at.is_none());
	let endings = endings_of(rows, open)?;
	for invite in found {
		for ending in &endings {
			ending.end(invite);
		}
	}
	Ok(())
}

/// The endings of all that some invites depend on.
fn endings_of<'a>(
	rows: &mut dyn Rows,
	invites: impl Iterator<Item = &'a Invite>,
) -> Result<Vec<Ending>, TxError> {
	let names: BTreeSet<String> = invites.flat_map(Invite::depends_on).collect();
	if names.is_empty() {
		return Ok(Vec::new());
	}
	rows.endings(Endings::Of(&names.into_iter().collect::<Vec<_>>()))
}

/// Revokes the open invites whose place a new one takes, which are bound to the same name.
fn revoke_superseded(rows: &mut dyn Rows, newer: &Invite, now: Timestamp) -> Result<Vec<Invite>, TxError> {
	let Some(username) = newer.username.as_deref().filter(|_| newer.invite_type == Type::Register) else {
		return Ok(Vec::new());
	};
	let mut revoked = invites(rows, Pick::Bound(username), u32::MAX)?;
	revoked.retain_mut(|older| {
		older.digest != newer.digest && supersedes(newer, older) && older.revoke(Some(SUPERSEDED), None, now)
	});
	rows.update(&revoked)?;
	Ok(revoked)
}

/// Keeps who brought an account, if it replaces what is known; whether it did.
fn keep_member(rows: &mut dyn Rows, member: &Member) -> Result<bool, TxError> {
	let known = rows.members(Members::Of(&member.username))?.pop();
	let may = member.replaces(known.as_ref());
	if may {
		rows.put_member(member)?;
	}
	Ok(may)
}

/// Where the next page begins, if there may be one: a page that is not full is the last.
fn last_of_full_page(page: &[Invite], limit: u32) -> Option<&Invite> {
	let is_last = u32::try_from(page.len()).is_ok_and(|found| found < limit);
	page.last().filter(|_| !is_last)
}

/// Whether the texts that say why something is revoked, and by whom, can be kept.
fn check_reason(why: Option<&str>, by: Option<&str>) -> Result<(), InviteError> {
	let length: usize = [why, by].into_iter().flatten().map(str::len).sum();
	if length > MAX_ATTACHED { Err(InviteError::TooLarge("the reason".to_owned())) } else { Ok(()) }
}

/// As much of a text as can be kept, where it is too late to refuse it.
fn cut(text: &str) -> &str {
	if text.len() <= MAX_ATTACHED {
		return text;
	}
	let end = (0..=MAX_ATTACHED).rev().find(|end| text.is_char_boundary(*end));
	text.get(..end.unwrap_or(0)).unwrap_or_default()
}

/// Names this process on its claims. Drawn at the first claim, so not shared with a parent that forked.
fn boot() -> Result<Nonce, InviteError> {
	static BOOT: OnceLock<Nonce> = OnceLock::new();
	if let Some(boot) = BOOT.get() {
		return Ok(*boot);
	}
	let drawn = Nonce::generate()?;
	Ok(*BOOT.get_or_init(|| drawn))
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::attempts::Attempt;
	use crate::redemption::Purpose;
	use crate::store::memory::MemoryStore;
	use crate::token::Token;
	use crate::value::{Fields, Value};

	const NOW: Timestamp = 1_700_000_000;

	fn invites() -> Invites {
		Invites::new("example.com".to_owned(), Arc::new(MemoryStore::default()))
	}

	fn account() -> Request {
		Request {
			invite_type: Type::Register,
			username: None,
			is_reset: false,
			account: None,
			allow_registration: true,
			ttl: Some(60),
			max_uses: Some(1),
		}
	}

	fn saved(invites: &Invites, request: Request) -> Token {
		let (invite, token) = invites.prepare(request, NOW).unwrap();
		invites.save(&invite).unwrap();
		token
	}

	fn condition<T: std::fmt::Debug>(result: Result<T, InviteError>) -> &'static str {
		result.unwrap_err().condition()
	}

	fn attempt(token: &Token, name: &str) -> Attempt {
		Attempt {
			digest: token.digest(),
			purpose: Purpose::Account,
			invitee: Some(name.to_owned()),
			depends_on: Vec::new(),
		}
	}

	/// Loses the answer to a write that it is told to lose.
	#[derive(Default)]
	struct Forgetful(MemoryStore, std::sync::atomic::AtomicBool);

	impl Forgetful {
		fn lose_the_next(&self) {
			self.1.store(true, std::sync::atomic::Ordering::SeqCst);
		}
	}

	impl Store for Forgetful {
		fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
			self.0.read(doing, host, work)
		}

		fn write(
			&self,
			doing: &'static str,
			host: &str,
			locks: &[Lock<'_>],
			work: Work<'_>,
		) -> Result<(), StoreError> {
			self.0.write(doing, host, locks, work)?;
			if self.1.swap(false, std::sync::atomic::Ordering::SeqCst) {
				let source = "the answer was lost".into();
				return Err(StoreError::Unavailable { problem: doing.to_owned(), source });
			}
			Ok(())
		}

		fn health(&self, host: &str, now: Timestamp) -> Vec<crate::check::Finding> {
			self.0.health(host, now)
		}
	}

	#[test]
	fn a_claim_whose_answer_was_lost_goes_with_whatever_is_written_next() {
		let store = Arc::new(Forgetful::default());
		let invites = Invites::new("example.com".to_owned(), Arc::clone(&store) as _);
		let (token, other) = (saved(&invites, account()), saved(&invites, account()));
		let lose_a_claim = || {
			store.lose_the_next();
			let lost = invites.claim(attempt(&token, "bob"), None, NOW);
			assert_eq!(condition(lost), "internal-server-error");
			assert_eq!(invites.claims().unwrap().len(), 1);
		};
		lose_a_claim();
		invites.set_paused(&other.digest(), true).unwrap();
		assert_eq!(invites.claims().unwrap(), []);
		lose_a_claim();
		invites.release_orphans().unwrap();
		assert_eq!(invites.claims().unwrap(), []);
		lose_a_claim();
		let nonce = invites.claim(attempt(&token, "eve"), None, NOW).unwrap().unwrap();
		store.lose_the_next();
		assert_eq!(condition(invites.release(&nonce)), "internal-server-error");
		assert!(invites.claim(attempt(&token, "bob"), None, NOW).is_ok(), "it is released all the same");
		assert_eq!(invites.attempts().orphans(), []);
	}

	#[test]
	fn a_token_is_good_until_it_is_redeemed() {
		let invites = invites();
		let token = saved(&invites, account());
		let presented = token.reveal().as_bytes();
		assert!(invites.get(presented, Purpose::Account, NOW).is_ok());
		let nonce = invites.claim(attempt(&token, "bob"), None, NOW).unwrap().unwrap();
		assert!(invites.get(presented, Purpose::Account, NOW).is_ok(), "a claim may yet be released");
		assert_eq!(condition(invites.claim(attempt(&token, "eve"), None, NOW)), "token-busy");
		assert!(invites.redeem(attempt(&token, "bob"), &nonce, None, NOW).unwrap().is_some());
		assert!(invites.redeem(attempt(&token, "bob"), &nonce, None, NOW).unwrap().is_none(), "done before");
		assert_eq!(condition(invites.get(presented, Purpose::Account, NOW)), "token-invalid");
		assert_eq!(condition(invites.claim(attempt(&token, "eve"), None, NOW)), "token-used");
	}

	#[test]
	fn a_released_token_is_good_again() {
		let invites = invites();
		let token = saved(&invites, account());
		let nonce = invites.claim(attempt(&token, "bob"), None, NOW).unwrap().unwrap();
		assert!(invites.release(&nonce).unwrap());
		assert!(invites.claim(attempt(&token, "eve"), None, NOW).is_ok());
		assert_eq!(condition(invites.redeem(attempt(&token, "bob"), &nonce, None, NOW)), "claim-lost");
	}

	#[test]
	fn a_token_found_good_can_be_redeemed_after_it_expired() {
		let invites = invites();
		let token = saved(&invites, account());
		assert_eq!(
			condition(invites.get(token.reveal().as_bytes(), Purpose::Account, NOW + 61)),
			"token-expired"
		);
		assert_eq!(invites.end_expired(10, NOW + 61).unwrap().len(), 1);
		assert!(invites.redeem_at_once(attempt(&token, "bob"), None, NOW + 61).is_ok());
	}

	#[test]
	fn a_revoked_token_is_neither_good_nor_redeemable_but_a_claim_on_it_stands() {
		let invites = invites();
		let (token, claimed) = (saved(&invites, account()), saved(&invites, account()));
		let nonce = invites.claim(attempt(&claimed, "bob"), None, NOW).unwrap().unwrap();
		for token in [&token, &claimed] {
			assert!(invites.revoke(&token.digest(), None, None, NOW).unwrap().is_some());
			assert!(invites.revoke(&token.digest(), None, None, NOW).unwrap().is_none());
			assert_eq!(
				condition(invites.get(token.reveal().as_bytes(), Purpose::Account, NOW)),
				"token-invalid"
			);
			assert_eq!(condition(invites.claim(attempt(token, "eve"), None, NOW)), "token-invalid");
		}
		assert!(invites.redeem(attempt(&claimed, "bob"), &nonce, None, NOW).unwrap().is_some());
	}

	#[test]
	fn an_invite_does_not_outlive_its_inviter_and_sleeps_while_he_is_disabled() {
		let invites = invites();
		let from_juliet =
			Request { invite_type: Type::Roster, username: Some("juliet".to_owned()), ..account() };
		let token = saved(&invites, from_juliet);
		let with = |juliet| Attempt {
			depends_on: vec![("nurse".to_owned(), Account::Active), ("juliet".to_owned(), juliet)],
			..attempt(&token, "bob")
		};
		let cannot_tell = invites.claim(with(Account::NotFound), None, NOW);
		assert_eq!(condition(cannot_tell), "account-unknown");
		assert_eq!(invites.find(&token.digest()).unwrap().revoked_at, None, "nothing is proved");
		assert_eq!(condition(invites.claim(with(Account::Disabled), None, NOW)), "token-invalid");
		let nonce = invites.claim(with(Account::Unknown), None, NOW).unwrap().unwrap();
		invites.release(&nonce).unwrap();
		assert_eq!(condition(invites.claim(with(Account::Missing), None, NOW)), "token-invalid");
		assert_eq!(condition(invites.claim(with(Account::Active), None, NOW)), "token-invalid");
		assert!(invites.find(&token.digest()).unwrap().revoked_at.is_some());
	}

	#[test]
	fn a_contact_who_is_known_gets_in_again_without_a_claim_and_a_dry_run_says_so() {
		let invites = invites();
		let several = Request {
			invite_type: Type::Roster,
			username: Some("juliet".to_owned()),
			max_uses: Some(2),
			..account()
		};
		let token = saved(&invites, several);
		let contact = |jid: &str| Attempt { purpose: Purpose::Contact, ..attempt(&token, jid) };
		let (romeo, tybalt) = (contact("romeo@example.net"), contact("tybalt@example.net"));
		assert!(invites.redeem_at_once(romeo.clone(), None, NOW).unwrap().is_some());
		assert_eq!(invites.claim(romeo.clone(), None, NOW).unwrap(), None);
		assert!(invites.redeem_at_once(romeo.clone(), None, NOW).unwrap().is_none());
		let nonce = invites.claim(tybalt.clone(), None, NOW).unwrap().unwrap();
		assert!(invites.why(romeo.clone(), NOW).is_ok(), "he takes nothing away from others");
		assert_eq!(condition(invites.why(contact("paris@example.net"), NOW)), "token-busy");
		invites.redeem(tybalt, &nonce, None, NOW).unwrap();
		assert_eq!(condition(invites.claim(romeo.clone(), None, NOW)), "token-used");
		assert_eq!(condition(invites.why(romeo, NOW)), "token-invalid");
	}

	#[test]
	fn a_claim_that_stands_for_ten_leases_is_named_with_what_frees_it() {
		let invites = invites();
		let token = saved(&invites, account());
		invites.claim(attempt(&token, "bob"), None, NOW).unwrap();
		let release = format!("release example.com {}", token.digest().id());
		let is_named = |now| invites.check(now).iter().any(|finding| finding.text.contains(&release));
		assert_eq!([is_named(NOW + 10 * LEASE), is_named(NOW + 10 * LEASE + 1)], [false, true]);
		assert_eq!(invites.release_claims(&token.digest()).unwrap(), 1);
		assert!(!is_named(NOW + 10 * LEASE + 1));
		assert!(invites.claim(attempt(&token, "eve"), None, NOW).is_ok());
	}

	#[test]
	fn a_newer_invite_for_a_name_takes_the_place_of_the_older() {
		let invites = invites();
		let bound = Request { username: Some("juliet".to_owned()), ..account() };
		let older = saved(&invites, bound.clone());
		let newer = saved(&invites, bound);
		assert_eq!(condition(invites.claim(attempt(&older, "juliet"), None, NOW)), "token-invalid");
		assert_eq!(condition(invites.check_name("juliet", NOW)), "name-reserved");
		assert!(invites.claim(attempt(&newer, "juliet"), None, NOW).is_ok());
		assert_eq!(condition(invites.check_name("juliet", NOW)), "token-busy");
		assert!(invites.check_name("romeo", NOW).is_ok());
	}

	#[test]
	fn an_existing_account_is_not_invited_and_a_missing_one_not_reset() {
		let invites = invites();
		let made = |is_reset, account| {
			let request = Request {
				username: Some("juliet".to_owned()),
				is_reset,
				account: Some(account),
				..self::account()
			};
			invites.prepare(request, NOW).map(drop).map_err(|error| error.condition())
		};
		assert_eq!(made(false, Account::Active), Err("conflict"));
		assert_eq!(made(false, Account::Disabled), Err("conflict"));
		assert_eq!(made(true, Account::Missing), Err("item-not-found"));
		assert_eq!(made(true, Account::Disabled), Err("not-allowed"));
		assert_eq!(made(true, Account::NotFound), Err("account-unknown"));
		assert_eq!(made(false, Account::NotFound), Ok(()), "how else could it be made");
		for (is_reset, account) in [(false, Account::Missing), (true, Account::Active)] {
			assert_eq!(made(is_reset, account), Ok(()));
			assert_eq!(made(is_reset, Account::Unknown), Ok(()));
		}
	}

	#[test]
	fn a_store_that_keeps_digests_never_sees_a_token_and_the_rest_is_the_same() {
		let store = Arc::new(MemoryStore::default());
		let invites = Invites::new("example.com".to_owned(), Arc::clone(&store) as _).keeping(AtRest::Digest);
		let linked = |token: &Token| {
			[(Value::text("landing_page"), Value::text(&format!("https://example.com/?{}", token.reveal())))]
				.into_iter()
				.collect::<Fields>()
		};
		let make = |token: &mut Option<Token>| {
			let (invite, drawn) = invites.prepare(account(), NOW).unwrap();
			let invite = Invite { fields: linked(&drawn), ..invite };
			*token = Some(drawn);
			invite
		};
		let mut tokens = [None, None, None];
		let [saved, limited, imported] = tokens.each_mut().map(make);
		invites.save(&saved).unwrap();
		let policy = crate::policy::Policy {
			roles: [("user".to_owned(), crate::policy::Limits::default())].into(),
			allows_unknown_age: true,
		};
		let juliet = crate::policy::Inviter {
			username: "juliet".to_owned(),
			roles: vec![vec!["user".to_owned()]],
			account_created: None,
		};
		invites.save_within(&limited, &policy.allowance(juliet).unwrap()).unwrap();
		assert_eq!(invites.import(&[imported.into()]).unwrap(), 1);
		for record in invites.records(None, 10).unwrap() {
			assert_eq!(record.invite.token, None);
			assert_eq!(
				record.invite.fields.get("landing_page"),
				Some(&Value::text("https://example.com/?(token)"))
			);
		}
		for token in tokens.into_iter().flatten() {
			let id = token.digest().id().to_string();
			let found = invites.get(token.reveal().as_bytes(), Purpose::Account, NOW).unwrap();
			assert_eq!(found.fields_with(&token).as_ref(), &*linked(&token));
			assert_eq!(invites.get_by_id(id.as_bytes(), Purpose::Account, NOW).unwrap(), found);
			assert_eq!(
				condition(invites.get_by_id(&id.as_bytes()[..15], Purpose::Account, NOW)),
				"token-invalid"
			);
			assert_eq!(condition(invites.get(id.as_bytes(), Purpose::Account, NOW)), "token-invalid");
			let nonce = invites.claim(attempt(&token, "bob"), None, NOW).unwrap().unwrap();
			assert!(invites.redeem(attempt(&token, "bob"), &nonce, None, NOW).unwrap().is_some());
			assert_eq!(condition(invites.get_by_id(id.as_bytes(), Purpose::Account, NOW)), "token-invalid");
		}
	}

	#[test]
	fn an_id_names_nothing_where_there_are_tokens() {
		let invites = invites();
		let id = saved(&invites, account()).digest().id().to_string();
		assert_eq!(condition(invites.get_by_id(id.as_bytes(), Purpose::Account, NOW)), "token-invalid");
		assert_eq!(invites.forget_tokens(None, 10).unwrap(), None);
		assert!(invites.pending(None, 10, NOW).unwrap().0[0].token.is_some());
	}

	#[test]
	fn the_public_id_redeems_nothing() {
		let invites = invites();
		let token = saved(&invites, account());
		let id = token.digest().id().to_string();
		assert_eq!(condition(invites.get(id.as_bytes(), Purpose::Account, NOW)), "token-invalid");
	}

	#[test]
	fn a_dry_run_says_what_an_attempt_would_meet_and_changes_nothing() {
		let invites = invites();
		let token = saved(&invites, account());
		let why = |name: &str, now| invites.why(attempt(&token, name), now);
		assert!(why("bob", NOW).is_ok());
		assert!(why("bob", NOW).is_ok(), "the first dry run made no claim");
		assert_eq!(condition(why("bob", NOW + 61)), "token-expired");
		let gone =
			Attempt { depends_on: vec![("juliet".to_owned(), Account::Missing)], ..attempt(&token, "bob") };
		assert_eq!(condition(invites.why(gone, NOW)), "token-invalid");
		assert_eq!(invites.find(&token.digest()).unwrap().revoked_at, None);
		let nonce = invites.claim(attempt(&token, "eve"), None, NOW).unwrap().unwrap();
		assert_eq!(condition(why("bob", NOW)), "token-busy");
		invites.redeem(attempt(&token, "eve"), &nonce, None, NOW).unwrap();
		assert_eq!(condition(why("bob", NOW)), "token-invalid");
		let bound = saved(&invites, Request { username: Some("juliet".to_owned()), ..account() });
		assert_eq!(condition(invites.why(attempt(&bound, "romeo"), NOW)), "name-mismatch");
		let open = saved(&invites, account());
		assert_eq!(condition(invites.why(attempt(&open, "juliet"), NOW)), "name-reserved");
	}

	#[test]
	fn an_operator_names_an_invite_by_its_token_or_a_piece_of_its_id() {
		let invites = invites();
		let token = saved(&invites, account());
		let id = token.digest().id().to_string();
		for named in [token.reveal(), &id, &id[..6]] {
			assert_eq!(invites.resolve(named.as_bytes()).unwrap(), token.digest(), "{named}");
		}
		for named in [&id[..5], &token.reveal()[..23], "", "\u{fc}"] {
			assert_eq!(condition(invites.resolve(named.as_bytes())), "token-invalid", "{named}");
		}
	}

	#[test]
	fn pages_leave_out_what_is_not_pending_and_still_reach_the_end() {
		let invites = invites();
		for index in 0..50_i64 {
			let ttl = Some(if index % 2 == 0 { 60 } else { -60 });
			saved(&invites, Request { ttl, ..account() });
		}
		let contact_only = Request {
			invite_type: Type::Roster,
			username: Some("juliet".to_owned()),
			allow_registration: false,
			..account()
		};
		saved(&invites, contact_only);
		let (mut found, mut after) = (0, None);
		loop {
			let (page, next) = invites.pending(after.as_ref(), 7, NOW).unwrap();
			found += page.len();
			let Some(next) = next else { break };
			after = Some(next);
		}
		assert_eq!(found, 26);
	}
}
