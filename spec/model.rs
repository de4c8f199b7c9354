//! Random interleavings of everything that can happen to invites, against each store and a simple model of them.
//!
//! The model knows one process, one list and no database. Where a store or a rule disagrees with it, one of them is wrong.

#![expect(
	clippy::unwrap_used,
	clippy::panic,
	reason = "these are tests; clippy knows only functions that say so"
)]

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use prosody_invites::attempts::Attempt;
use prosody_invites::clock::{Stopwatch, Timestamp, monotonic};
use prosody_invites::error::InviteError;
use prosody_invites::invite::{Invite, Type};
use prosody_invites::invites::{Invites, Request};
use prosody_invites::redemption::{Account, Claim, LEASE, Purpose};
use prosody_invites::store::Store;
use prosody_invites::store::memory::MemoryStore;
#[cfg(feature = "postgres")]
use prosody_invites::store::postgres::PostgresStore;
use prosody_invites::store::sqlite::SqliteStore;
use prosody_invites::token::{Nonce, Token};
use prosody_invites::value::{Table, Value};

#[cfg(feature = "postgres")]
mod postgres;

const START: Timestamp = 1_700_000_000;
const NAMES: [&str; 2] = ["juliet", "romeo"];
const HOLDERS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
	Create {
		bound: Option<usize>,
		/// The name of the local user who makes it.
		inviter: Option<usize>,
		max_uses: Option<u32>,
		ttl: i64,
	},
	Get {
		invite: usize,
	},
	Claim {
		holder: usize,
		invite: usize,
		name: usize,
	},
	Settle {
		came_about: bool,
	},
	Redeem {
		holder: usize,
	},
	RedeemAtOnce {
		invite: usize,
		name: usize,
	},
	Release {
		holder: usize,
	},
	Renew {
		holder: usize,
	},
	Revoke {
		invite: usize,
	},
	SetPaused {
		invite: usize,
		paused: bool,
	},
	CheckName {
		name: usize,
	},
	Wait {
		seconds: i64,
	},
	EndExpired,
	/// The invites of a user end, who has more than are ended at once.
	EndMany {
		inviter: usize,
		is_deleted: bool,
	},
	/// A batch of those is ended.
	EndMore,
	/// The process dies: nobody knows the claims that it held, and the store is opened anew.
	Crash,
}

fn step() -> impl Strategy<Value = Step> {
	let (invite, holder, name) = (0..4usize, 0..HOLDERS, 0..NAMES.len());
	let max_uses = prop_oneof![3 => Just(Some(1)), 1 => Just(Some(2)), 1 => Just(None)];
	prop_oneof![
		3 => (prop::option::of(name.clone()), prop::option::of(name.clone()), max_uses, prop_oneof![Just(30), Just(300)])
			.prop_map(|(bound, inviter, max_uses, ttl)| Step::Create { bound, inviter, max_uses, ttl }),
		2 => invite.clone().prop_map(|invite| Step::Get { invite }),
		6 => (holder.clone(), invite.clone(), name.clone())
			.prop_map(|(holder, invite, name)| Step::Claim { holder, invite, name }),
		2 => any::<bool>().prop_map(|came_about| Step::Settle { came_about }),
		3 => holder.clone().prop_map(|holder| Step::Redeem { holder }),
		2 => (invite.clone(), name.clone()).prop_map(|(invite, name)| Step::RedeemAtOnce { invite, name }),
		2 => holder.clone().prop_map(|holder| Step::Release { holder }),
		1 => holder.prop_map(|holder| Step::Renew { holder }),
		1 => invite.clone().prop_map(|invite| Step::Revoke { invite }),
		1 => (invite, any::<bool>()).prop_map(|(invite, paused)| Step::SetPaused { invite, paused }),
		1 => name.clone().prop_map(|name| Step::CheckName { name }),
		1 => (name, any::<bool>()).prop_map(|(inviter, is_deleted)| Step::EndMany { inviter, is_deleted }),
		1 => Just(Step::EndMore),
		2 => prop_oneof![Just(1), Just(31), Just(LEASE + 1)].prop_map(|seconds| Step::Wait { seconds }),
		1 => Just(Step::EndExpired),
		1 => Just(Step::Crash),
	]
}

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "one for each thing that can be true of it")]
struct ModelInvite {
	bound: Option<usize>,
	inviter: Option<usize>,
	max_uses: Option<u32>,
	expires: Timestamp,
	uses: u32,
	revoked: bool,
	paused: bool,
	ended: bool,
	/// Whether it was ended with others, and nobody was told so yet.
	is_untold: bool,
}

impl ModelInvite {
	fn is_spent(&self) -> bool {
		self.max_uses.is_some_and(|max_uses| self.uses >= max_uses)
	}

	fn count(&mut self) {
		self.uses += 1;
		self.ended |= self.is_spent();
		if self.is_untold && self.is_spent() {
			// Whoever was let in has used it up before its turn to be ended came.
			(self.revoked, self.is_untold) = (false, false);
		}
	}
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct ModelClaim {
	number: usize,
	invite: usize,
	name: usize,
	/// The process that made it.
	boot: u8,
}

#[derive(Debug, Default)]
struct Model {
	now: Timestamp,
	invites: Vec<ModelInvite>,
	claims: Vec<ModelClaim>,
	redeemed: Vec<usize>,
	made_claims: usize,
	/// The process that runs.
	boot: u8,
}

/// What both sides say, in words.
type Answer = Result<String, &'static str>;

#[expect(
	clippy::needless_pass_by_value,
	clippy::unnecessary_wraps,
	reason = "answers are compared as results"
)]
fn done(word: impl ToString) -> Answer {
	Ok(word.to_string())
}

impl Model {
	fn create(&mut self, bound: Option<usize>, inviter: Option<usize>, max_uses: Option<u32>, ttl: i64) {
		for older in
			self.invites.iter_mut().filter(|older| bound.is_some() && older.bound == bound && !older.ended)
		{
			older.revoked = true;
			older.ended = true;
		}
		let expires = self.now + ttl;
		let (uses, revoked, paused, ended, is_untold) = (0, false, false, false, false);
		let invite =
			ModelInvite { bound, inviter, max_uses, expires, uses, revoked, paused, ended, is_untold };
		self.invites.push(invite);
	}

	fn get(&self, invite: usize) -> Answer {
		match self.invites.get(invite) {
			None => Err("token-invalid"),
			Some(invite) if invite.revoked || invite.is_spent() => Err("token-invalid"),
			Some(invite) if self.now > invite.expires => Err("token-expired"),
			Some(invite) if invite.paused => Err("token-invalid"),
			Some(_) => done("good"),
		}
	}

	fn may_redeem(&self, index: usize, name: usize) -> Result<(), &'static str> {
		let Some(invite) = self.invites.get(index) else { return Err("token-invalid") };
		if invite.revoked || invite.paused {
			return Err("token-invalid");
		}
		if invite.is_spent() {
			return Err("token-used");
		}
		if invite.bound.is_some_and(|bound| bound != name) {
			return Err("name-mismatch");
		}
		let in_the_way: Vec<_> =
			self.claims.iter().filter(|claim| claim.invite == index || claim.name == name).collect();
		let claimed = in_the_way.iter().filter(|claim| claim.invite == index).count();
		let left = invite.max_uses.map_or(usize::MAX, |max_uses| (max_uses - invite.uses) as usize);
		if claimed >= left || in_the_way.iter().any(|claim| claim.name == name) {
			return Err("token-busy");
		}
		if invite.bound.is_none() && self.is_reserved(name, Some(index)) {
			return Err("name-reserved");
		}
		Ok(())
	}

	fn is_reserved(&self, name: usize, except: Option<usize>) -> bool {
		self.invites.iter().enumerate().any(|(index, other)| {
			Some(index) != except
				&& other.bound == Some(name)
				&& !other.revoked
				&& !other.is_spent()
				&& !other.ended
				&& self.now <= other.expires
		})
	}

	fn check_name(&self, name: usize) -> Answer {
		if self.claims.iter().any(|claim| claim.name == name) {
			Err("token-busy")
		} else if self.is_reserved(name, None) {
			Err("name-reserved")
		} else {
			done("free")
		}
	}

	fn claim(&mut self, replaced: Option<usize>, invite: usize, name: usize) -> Result<usize, &'static str> {
		self.claims.retain(|claim| Some(claim.number) != replaced);
		self.may_redeem(invite, name)?;
		self.made_claims += 1;
		let number = self.made_claims;
		self.claims.push(ModelClaim { number, invite, name, boot: self.boot });
		Ok(number)
	}

	/// Every attempt names what it has claimed: where its claim is gone, a use that is free will do.
	fn redeem(&mut self, number: usize, index: usize) -> Answer {
		if let Some(position) = self.claims.iter().position(|claim| claim.number == number) {
			let claim = self.claims.remove(position);
			self.invites[claim.invite].count();
			self.redeemed.push(number);
			done("now")
		} else if self.redeemed.contains(&number) {
			done("before")
		} else {
			let claimed = self.claims.iter().filter(|claim| claim.invite == index).count();
			let Some(invite) = self.invites.get_mut(index) else { return Err("claim-lost") };
			if invite.max_uses.is_some_and(|max_uses| invite.uses as usize + claimed >= max_uses as usize) {
				return Err("claim-lost");
			}
			invite.count();
			self.redeemed.push(number);
			done("now")
		}
	}
}

/// As the process of this number has them. Of more than one invite that end together, the end of the others is under way.
fn invites(host: &str, boot: u8, store: Arc<dyn Store>) -> Invites {
	let boot = Nonce::from_bytes([boot; 16]);
	store.hold(&boot).unwrap();
	Invites::new(host.to_owned(), store).of_process(boot).in_batches_of(1)
}

/// A holder's claim on both sides.
#[derive(Clone)]
struct Held {
	number: usize,
	invite: usize,
	name: usize,
	nonce: Nonce,
}

struct Run<'a> {
	host: String,
	stores: &'a mut dyn Stores,
	invites: Invites,
	tokens: Vec<Token>,
	model: Model,
	held: Vec<Option<Held>>,
	/// Claims by the number that the model gave them, whoever still knows them.
	nonces: Vec<(usize, Nonce)>,
	/// The moment of the next look at claims.
	mono: Instant,
}

fn said<T>(result: Result<T, InviteError>, word: impl FnOnce(T) -> String) -> Answer {
	result.map(word).map_err(|error| error.condition())
}

impl Run<'_> {
	fn token(&self, invite: usize) -> Token {
		self.tokens.get(invite).cloned().unwrap_or_else(|| Token::from_stored("unknown".to_owned()))
	}

	fn attempt(&self, invite: usize, name: usize) -> Attempt {
		Attempt {
			digest: self.token(invite).digest(),
			purpose: Purpose::Account,
			invitee: Some(NAMES[name].to_owned()),
			depends_on: vec![],
		}
	}

	/// The claims of the dead, after so many looks that it is proved.
	fn watched(&mut self) -> Vec<Claim> {
		let mut settled = Vec::new();
		for second in (0..=LEASE.unsigned_abs()).step_by(20) {
			settled = self.invites.look_at_claims(self.mono + Duration::from_secs(second)).unwrap();
		}
		// So that the next looks begin anew: of these, some may have come before the database saw who is dead.
		self.mono += Duration::from_secs(3600);
		settled
	}

	/// Both sides' answers to one step.
	#[expect(clippy::too_many_lines, reason = "one arm for each kind of step")]
	fn take(&mut self, step: &Step) -> (Answer, Answer) {
		let now = self.model.now;
		match *step {
			Step::Create { bound, inviter, max_uses, ttl } => {
				self.model.create(bound, inviter, max_uses, ttl);
				let request = Request {
					invite_type: Type::Register,
					username: bound.map(|name| NAMES[name].to_owned()),
					is_reset: false,
					account: None,
					allow_registration: true,
					ttl: Some(ttl),
					max_uses,
				};
				let (mut invite, token) = self.invites.prepare(request, now).unwrap();
				if let Some(inviter) = inviter {
					let source = format!("{}@{}", NAMES[inviter], self.host);
					let data = [(Value::text("source"), Value::text(&source))].into_iter().collect();
					let fields: Table =
						[(Value::text("additional_data"), Value::Table(data))].into_iter().collect();
					invite.fields = fields.into();
				}
				self.tokens.push(token);
				(done(""), said(self.invites.save(&invite), |_| String::new()))
			}
			Step::Get { invite } => {
				let token = self.token(invite);
				let found = self.invites.get(token.reveal().as_bytes(), Purpose::Account, now);
				(self.model.get(invite), said(found, |_| "good".to_owned()))
			}
			Step::Claim { holder, invite, name } => {
				let replaced = self.held[holder].take().filter(|held| held.invite == invite);
				let claimed = self.invites.claim(
					self.attempt(invite, name),
					replaced.as_ref().map(|held| &held.nonce),
					now,
				);
				let expected = self.model.claim(replaced.map(|held| held.number), invite, name);
				if let (Ok(number), Ok(Some(nonce))) = (&expected, &claimed) {
					self.held[holder] = Some(Held { number: *number, invite, name, nonce: *nonce });
					self.nonces.push((*number, *nonce));
				}
				(expected.map(|_| "claimed".to_owned()), said(claimed, |_| "claimed".to_owned()))
			}
			Step::Settle { came_about } => {
				let account = if came_about { Account::Active } else { Account::Missing };
				// Of this process, some are held; all of the others are dead.
				let is_over = |claim: &&ModelClaim| claim.boot != self.model.boot;
				let over: Vec<ModelClaim> = self.model.claims.iter().filter(is_over).cloned().collect();
				let mut settled = self.watched();
				let began = Stopwatch::start();
				// A database takes a moment to see that a connection is closed.
				while settled.len() < over.len() && began.elapsed() < Duration::from_secs(10) {
					settled = self.watched();
				}
				for claim in over {
					let nonce = self.nonces.iter().find(|(number, _)| *number == claim.number).unwrap().1;
					let found = settled.iter().find(|found| found.nonce == nonce).unwrap();
					self.invites.settle(found, account, now).unwrap();
					if came_about {
						self.model.redeem(claim.number, claim.invite).unwrap();
					} else {
						self.model.claims.retain(|other| other.number != claim.number);
					}
				}
				(done(""), done(""))
			}
			Step::Redeem { holder } => match self.held[holder].clone() {
				None => (done(""), done("")),
				Some(held) => {
					let attempt = self.attempt(held.invite, held.name);
					let redeemed = self.invites.redeem(attempt, &held.nonce, None, now);
					let word = |invite: Option<_>| if invite.is_some() { "now" } else { "before" }.to_owned();
					(self.model.redeem(held.number, held.invite), said(redeemed, word))
				}
			},
			Step::RedeemAtOnce { invite, name } => {
				let expected = self.model.may_redeem(invite, name);
				if expected.is_ok() {
					self.model.invites[invite].count();
				}
				let redeemed = self.invites.redeem_at_once(self.attempt(invite, name), None, now);
				(expected.map(|()| String::new()), said(redeemed, |_| String::new()))
			}
			Step::Release { holder } => match self.held[holder].clone() {
				None => (done(""), done("")),
				Some(held) => {
					let before = self.model.claims.len();
					self.model.claims.retain(|claim| claim.number != held.number);
					let released = self.model.claims.len() < before;
					(done(released), said(self.invites.release(&held.nonce), |released| released.to_string()))
				}
			},
			Step::Renew { holder } => match self.held[holder].clone() {
				None => (done(""), done("")),
				Some(held) => {
					let renewed = self.model.claims.iter().any(|claim| claim.number == held.number);
					(done(renewed), said(self.invites.renew(&held.nonce), |renewed| renewed.to_string()))
				}
			},
			Step::Revoke { invite } => {
				let revoked = self.invites.revoke(&self.token(invite).digest(), None, None, now);
				let may = self.model.invites.get_mut(invite).is_some_and(|invite| {
					let may = !invite.revoked && !invite.is_spent();
					invite.revoked |= may;
					invite.ended |= may;
					may
				});
				(done(may), said(revoked, |invite| invite.is_some().to_string()))
			}
			Step::SetPaused { invite, paused } => {
				let set = self.invites.set_paused(&self.token(invite).digest(), paused);
				let may = self.model.invites.get_mut(invite).is_some_and(|invite| {
					let may = !invite.ended && invite.paused != paused;
					invite.paused ^= may;
					may
				});
				(done(may), said(set, |set| set.is_some().to_string()))
			}
			Step::CheckName { name } => {
				let checked = self.invites.check_name(NAMES[name], now);
				(self.model.check_name(name), said(checked, |()| "free".to_owned()))
			}
			Step::Wait { seconds } => {
				self.model.now += seconds;
				(done(""), done(""))
			}
			Step::EndExpired => {
				let is_due =
					|invite: &&mut ModelInvite| (!invite.ended || invite.is_untold) && now > invite.expires;
				let due = self.model.invites.iter_mut().filter(is_due);
				let ended = due.map(|invite| (invite.ended, invite.is_untold) = (true, false)).count();
				(done(ended), said(self.invites.end_expired(100, now), |ended| ended.len().to_string()))
			}
			Step::EndMany { inviter, is_deleted } => {
				for invite in self.model.invites.iter_mut().filter(|invite| invite.inviter == Some(inviter)) {
					if !invite.ended {
						(invite.revoked, invite.ended, invite.is_untold) = (true, true, true);
					}
				}
				let name = NAMES[inviter];
				let ended = if is_deleted {
					self.invites.retire_depending(name, now)
				} else {
					self.invites.revoke_inviter(name, false, None, None, now)
				};
				let told = said(ended, |ended| self.hear(&ended.invites));
				(done(""), told)
			}
			Step::EndMore => {
				let more = self.invites.end_more(now);
				(done(""), said(more, |more| self.hear(&more.invites)))
			}
			Step::Crash => {
				self.held = vec![None; HOLDERS];
				self.model.boot += 1;
				self.invites = invites(&self.host, self.model.boot, self.stores.after_a_crash());
				(done(""), done(""))
			}
		}
	}

	/// Hears that invites were ended, of which nobody has heard that yet; what is wrong with that.
	fn hear(&mut self, ended: &[Invite]) -> String {
		let mut wrong = Vec::new();
		for invite in ended {
			let index = self.tokens.iter().position(|token| token.digest() == invite.digest).unwrap();
			let known = &mut self.model.invites[index];
			if !std::mem::take(&mut known.is_untold) || invite.revoked_at.is_none() {
				wrong.push(format!("{index} is told, and is {known:?}"));
			}
		}
		wrong.join("; ")
	}

	/// Ends what is left to be ended, and everything was told.
	fn end_all(&mut self) -> Result<(), TestCaseError> {
		for _ in 0..=self.tokens.len() {
			let more = self.invites.end_more(self.model.now).unwrap();
			prop_assert_eq!(self.hear(&more.invites), "");
			if !more.is_more {
				break;
			}
		}
		prop_assert!(self.model.invites.iter().all(|invite| !invite.is_untold));
		Ok(())
	}

	/// Uses are never more than the limit, and as many as the model counts.
	fn check_counts(&self) -> Result<(), TestCaseError> {
		for (token, expected) in self.tokens.iter().zip(&self.model.invites) {
			let found = self.invites.find(&token.digest()).unwrap();
			prop_assert_eq!(found.uses, expected.uses);
			prop_assert!(found.max_uses.is_none_or(|max_uses| found.uses <= max_uses));
			prop_assert_eq!(found.ended_at.is_some(), expected.ended);
		}
		Ok(())
	}
}

/// How a kind of store is had.
trait Stores {
	/// For a new case, whose host is in none yet.
	fn for_a_case(&mut self) -> Arc<dyn Store>;
	/// What a process finds that starts after another one died.
	fn after_a_crash(&mut self) -> Arc<dyn Store>;
}

fn agrees_with_the_model(cases: u32, stores: impl Stores) {
	let (hosts, stores) = (AtomicU64::new(0), RefCell::new(stores));
	let mut runner = TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() });
	let run = runner.run(&prop::collection::vec(step(), 1..40), |steps| {
		let mut stores = stores.borrow_mut();
		let host = format!("{}.example", hosts.fetch_add(1, Ordering::Relaxed));
		let mut run = Run {
			invites: invites(&host, 0, stores.for_a_case()),
			host,
			stores: &mut *stores,
			tokens: Vec::new(),
			model: Model { now: START, ..Model::default() },
			held: vec![None; HOLDERS],
			nonces: Vec::new(),
			mono: monotonic(),
		};
		for step in &steps {
			let (expected, found) = run.take(step);
			prop_assert_eq!(expected, found, "at {:?}", step);
		}
		run.check_counts()?;
		run.end_all()?;
		run.check_counts()
	});
	if let Err(difference) = run {
		panic!("{difference}");
	}
}

/// The cases that the redemption protocol is held to; fewer are no proof.
const CASES: u32 = 10_000;

/// Lives on in a crash, which it cannot survive.
struct Memory(Arc<MemoryStore>);

impl Stores for Memory {
	fn for_a_case(&mut self) -> Arc<dyn Store> {
		self.0 = Arc::default();
		self.after_a_crash()
	}

	fn after_a_crash(&mut self) -> Arc<dyn Store> {
		Arc::clone(&self.0) as Arc<dyn Store>
	}
}

struct Sqlite {
	path: PathBuf,
	store: Arc<SqliteStore>,
}

impl Stores for Sqlite {
	fn for_a_case(&mut self) -> Arc<dyn Store> {
		Arc::clone(&self.store) as Arc<dyn Store>
	}

	fn after_a_crash(&mut self) -> Arc<dyn Store> {
		self.store = Arc::new(SqliteStore::new(&self.path, LOCK_WAIT));
		self.for_a_case()
	}
}

const LOCK_WAIT: Duration = Duration::from_secs(10);

#[test]
fn the_memory_store_agrees_with_the_model() {
	agrees_with_the_model(CASES, Memory(Arc::default()));
}

#[test]
fn the_sqlite_store_agrees_with_the_model() {
	// In memory where that is to be had: what is tested is not the disk, and half a million commits would wear it.
	let shared_memory = Path::new("/dev/shm");
	let scratch =
		tempfile::tempdir_in(if shared_memory.is_dir() { shared_memory } else { Path::new("/tmp") });
	let path = scratch.as_ref().unwrap().path().join("invites.sqlite3");
	let store = Arc::new(SqliteStore::new(&path, LOCK_WAIT));
	agrees_with_the_model(CASES, Sqlite { path, store });
}

/// Each takes many conversations with another process, so all of them take minutes: `SPEC_CASES` in the environment has
/// its way. The rules are the same code as in the other stores.
#[cfg(feature = "postgres")]
const POSTGRESQL_CASES: u32 = 1_000;

#[cfg(feature = "postgres")]
struct Postgres {
	url: String,
	store: Arc<PostgresStore>,
}

#[cfg(feature = "postgres")]
impl Stores for Postgres {
	fn for_a_case(&mut self) -> Arc<dyn Store> {
		Arc::clone(&self.store) as Arc<dyn Store>
	}

	fn after_a_crash(&mut self) -> Arc<dyn Store> {
		self.store = Arc::new(PostgresStore::new(&self.url, LOCK_WAIT).unwrap());
		self.for_a_case()
	}
}

#[cfg(feature = "postgres")]
#[test]
fn the_postgresql_store_agrees_with_the_model() {
	let url = postgres::Postgres::shared().new_database();
	let store = Arc::new(PostgresStore::new(&url, LOCK_WAIT).unwrap());
	let cases = std::env::var("SPEC_CASES").map_or(POSTGRESQL_CASES, |cases| cases.parse().unwrap());
	agrees_with_the_model(cases, Postgres { url, store });
}
