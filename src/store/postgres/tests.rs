//! What PostgreSQL adds to the promises that every store keeps. What it does in a running Prosody is tested in
//! `spec/server/test_postgresql.py`.

use super::connection::MIGRATIONS;
use super::*;
use crate::clock::Stopwatch;
use crate::invite::Type;
use crate::policy::Reason;
use crate::redemption::LEASE;
use crate::redemption::Purpose;
use crate::store::conformance::{
	allowance, claim, inviters_race, made_by, promises, races, redeem_once, sample, tests,
};

mod proxy;
#[path = "../../../spec/postgres.rs"]
mod server;

use proxy::{Fate, Proxy};
use server::Postgres;

/// Long enough that no test on a loaded machine runs into it by accident.
const DEADLINE: Duration = Duration::from_secs(30);

const NOW: Timestamp = 1_700_000_000;

promises!(tests(|_scratch| open(&new_database())));
races!(tests(|_scratch| open(&new_database())));

fn new_database() -> String {
	Postgres::shared().new_database()
}

fn open(url: &str) -> PostgresStore {
	PostgresStore::new(url, DEADLINE).unwrap()
}

fn problem(store: &PostgresStore) -> String {
	store.find("example.com", &Digest::of(b"x")).unwrap_err().to_string()
}

/// Changes something behind the store's back; how many rows.
fn execute(url: &str, statement: &'static str, params: Params<'_>) -> u64 {
	open(url).connection.call("testing", async |session| session.execute(statement, params).await).unwrap()
}

fn account(token: &str) -> Invite {
	Invite { invite_type: Type::Register, username: None, ..sample("example.com", token) }
}

fn bound(token: &str, username: &str) -> Invite {
	Invite { username: Some(username.to_owned()), ..account(token) }
}

#[test]
fn every_migration_applies_and_the_version_is_their_number() {
	let url = new_database();
	open(&url).create(&sample("example.com", "t")).unwrap();
	let versions = open(&url).connection.call("testing", async |session| {
		let rows = session.query("SELECT version FROM migration ORDER BY version", &[]).await?;
		Ok(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>())
	});
	let expected: Vec<i32> = (1..).take(MIGRATIONS.len()).collect();
	assert_eq!(versions.unwrap(), expected);
}

#[test]
fn a_database_of_an_earlier_schema_is_migrated() {
	let url = new_database();
	open(&url).create(&sample("example.com", "t")).unwrap();
	execute(&url, "DROP INDEX redemption_contact", &[]);
	execute(&url, "DELETE FROM migration WHERE version = 2", &[]);
	let store = open(&url);
	assert!(store.find("example.com", &sample("example.com", "t").digest).unwrap().is_some());
	let is_there = store.connection.call("testing", async |session| {
		let index = "SELECT FROM pg_indexes WHERE indexname = 'redemption_contact'";
		Ok(session.query(index, &[]).await?.len())
	});
	assert_eq!(is_there.unwrap(), 1);
}

#[test]
fn many_that_start_at_once_on_a_new_database_all_succeed() {
	let url = new_database();
	std::thread::scope(|threads| {
		for index in 0..16 {
			let url = &url;
			threads.spawn(move || open(url).create(&sample("example.com", &format!("t{index}"))).unwrap());
		}
	});
	assert_eq!(open(&url).open_invites("example.com", None, 100).unwrap().len(), 16);
}

#[test]
fn a_user_that_may_make_no_schema_is_told_and_one_made_for_him_will_do() {
	let url = new_database();
	let (_, name) = url.rsplit_once('/').unwrap();
	let server = Postgres::shared();
	server.tell(&format!("sql {name} ALTER DATABASE {name} OWNER TO postgres"));
	let problem = problem(&open(&url));
	assert!(
		problem.contains("make that the owner of the database, or of a schema prosody_invites"),
		"{problem}"
	);
	server.tell(&format!("sql {name} CREATE SCHEMA prosody_invites AUTHORIZATION prosody"));
	open(&url).create(&sample("example.com", "t")).unwrap();
}

#[test]
fn a_newer_schema_is_refused_naming_both_versions() {
	let url = new_database();
	execute(&url, "INSERT INTO migration (version) VALUES (99)", &[]);
	let problem = problem(&open(&url));
	assert!(problem.contains("schema 99") && problem.contains(&MIGRATIONS.len().to_string()), "{problem}");
}

#[test]
fn an_encoding_that_cannot_hold_every_name_is_refused() {
	let url = Postgres::shared().new_database_with("ENCODING 'LATIN1' TEMPLATE template0 LOCALE 'C'");
	let problem = problem(&open(&url));
	assert!(problem.contains("LATIN1") && problem.contains("ENCODING 'UTF8'"), "{problem}");
}

#[test]
fn a_damaged_invite_is_named_by_its_id_and_hides_no_other() {
	let url = new_database();
	let store = open(&url);
	let (damaged, whole) = (sample("example.com", "damaged"), sample("example.com", "whole"));
	store.create(&damaged).unwrap();
	store.create(&whole).unwrap();
	let statement = "UPDATE invite SET fields = '{' WHERE digest = $1";
	assert_eq!(execute(&url, statement, &[&&damaged.digest.as_bytes()[..]]), 1);
	let error = store.find(&damaged.host, &damaged.digest).unwrap_err().to_string();
	assert!(error.contains(&damaged.digest.id().to_string()), "{error}");
	assert_eq!(store.find(&whole.host, &whole.digest).unwrap(), Some(whole));
}

#[test]
fn a_token_that_no_column_of_text_can_hold_is_kept_by_its_digest() {
	let store = open(&new_database());
	let invite = sample("example.com", "with\0nul");
	assert_eq!(store.import(&[invite.clone().into()]).unwrap(), 1);
	let found = store.find(&invite.host, &invite.digest).unwrap();
	assert_eq!(found, Some(Invite { token: None, ..invite }));
}

#[test]
fn one_store_serves_all_hosts_of_a_process_and_shows_no_password() {
	let url = "postgresql://prosody:secret@127.0.0.1:1/prosody";
	let [one, other] = [url, url].map(|url| PostgresStore::shared(url, DEADLINE).unwrap());
	assert!(Arc::ptr_eq(&one, &other));
	let said = format!("{one:?} {} {:?}", problem(&one), one.find("example.com", &Digest::of(b"x")));
	assert!(said.contains("127.0.0.1:1") && !said.contains("secret"), "{said}");
}

#[test]
fn connections_racing_for_one_invite_redeem_it_once() {
	let url = new_database();
	let stores: Vec<_> = (0..4).map(|_| open(&url)).collect();
	for round in 0..50 {
		let invite = account(&format!("t{round}"));
		stores[0].create(&invite).unwrap();
		let redeemed = std::thread::scope(|threads| {
			let racers: Vec<_> =
				stores.iter().map(|store| threads.spawn(|| redeem_once(store, &invite))).collect();
			racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
		});
		assert_eq!(redeemed, 1);
	}
}

#[test]
fn connections_racing_for_one_name_claim_it_once() {
	let url = new_database();
	let stores: Vec<_> = (0..4).map(|_| open(&url)).collect();
	for round in 0..50 {
		let invites: Vec<_> = (0..4).map(|index| account(&format!("t{round}.{index}"))).collect();
		for invite in &invites {
			stores[0].create(invite).unwrap();
		}
		let claimed = std::thread::scope(|threads| {
			let racers: Vec<_> = stores
				.iter()
				.zip(&invites)
				.map(|(store, invite)| {
					let claim = claim(invite, Purpose::Account, &format!("juliet{round}"), NOW);
					threads.spawn(move || store.claim(&claim, None, NOW).unwrap().is_ok())
				})
				.collect();
			racers.into_iter().map(|racer| racer.join().unwrap()).filter(|won| *won).count()
		});
		assert_eq!(claimed, 1);
	}
}

/// Everything that locks, in the orders that the calls have, on the same few rows. PostgreSQL would tell of a deadlock
/// after a second, and the store would hide it by trying again: here it is given no time for that.
#[test]
fn nobody_waits_for_somebody_who_waits_for_him() {
	let url = new_database();
	open(&url).create(&account("open")).unwrap();
	std::thread::scope(|threads| {
		for thread in 0..6 {
			let url = &url;
			threads.spawn(move || {
				let store = open(url);
				for round in 0..40 {
					let newer = bound(&format!("bound {thread} {round}"), "juliet");
					store.create(&newer).unwrap();
					for invite in [&newer, &account("open")] {
						let claim = claim(invite, Purpose::Account, "juliet", NOW);
						if store.claim(&claim, None, NOW).unwrap().is_ok() {
							store
								.claim(
									&Claim { nonce: Nonce::generate().unwrap(), ..claim.clone() },
									Some(&claim.nonce),
									NOW,
								)
								.unwrap()
								.ok();
							store.release(&claim.host, &claim.nonce, None).unwrap();
						}
					}
					store
						.retire("example.com", "juliet", &|invite| invite.digest != newer.digest, "why", NOW)
						.unwrap();
					store.end_expired("example.com", 10, NOW + 61).unwrap();
					let limited = made_by("nurse", &format!("limited {thread} {round}"));
					let limited = Invite { username: Some("juliet".to_owned()), ..limited };
					store.create_within(&limited, &allowance("nurse", 3, 1000)).unwrap().ok();
					store.retire_inviter("example.com", "nurse", true, None, None, NOW).unwrap();
					store.forget_tokens("example.com", None, 10).unwrap();
					store.revoke("example.com", &newer.digest, None, None, NOW).unwrap();
				}
			});
		}
	});
	let deadlocks = open(&url).connection.call("testing", async |session| {
		let row =
			session.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", &[]);
		Ok(row.await?[0].get::<_, i64>(0))
	});
	assert_eq!(deadlocks.unwrap(), 0);
}

/// A store behind a proxy, another one without, and the two open invites in it.
struct Cut {
	url: String,
	proxy: Proxy,
	store: PostgresStore,
	direct: PostgresStore,
	open: Invite,
	bound: Invite,
}

impl Cut {
	fn new() -> Self {
		let url = new_database();
		let proxy = Proxy::new(Postgres::shared().socket());
		let (store, direct) = (open(&proxy.url(&url)), open(&url));
		let (open, bound) = (account("open"), bound("bound", "juliet"));
		store.create(&open).unwrap();
		store.create(&bound).unwrap();
		Self { url, proxy, store, direct, open, bound }
	}

	fn found(&self, invite: &Invite) -> Invite {
		self.direct.find(&invite.host, &invite.digest).unwrap().unwrap()
	}
}

/// Runs a test for a connection that is cut before the server has got the commit, and for one that is cut after it.
fn when_cut_in_the_commit(test: impl Fn(&Cut)) {
	for fate in [Fate::CutBefore, Fate::CutAfter] {
		let cut = Cut::new();
		cut.proxy.wait_for(b"COMMIT\0", fate);
		test(&cut);
		assert!(cut.proxy.has_struck());
	}
}

#[test]
fn an_invite_is_created_once_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let newer = bound("newer", "juliet");
		let superseded = cut.store.create(&newer).unwrap();
		assert_eq!(superseded, [cut.found(&cut.bound)]);
		assert_eq!(superseded[0].revoked_at, Some(NOW));
		assert_eq!(cut.found(&newer), newer);
		assert!(matches!(cut.store.create(&newer), Err(StoreError::Exists)));
	});
	// One that is bound to no name is a statement by itself.
	for fate in [Fate::CutBefore, Fate::CutAfter] {
		let cut = Cut::new();
		let new = account("new");
		cut.proxy.wait_for(new.digest.as_bytes(), fate);
		assert_eq!(cut.store.create(&new).unwrap(), []);
		assert!(cut.proxy.has_struck());
		assert_eq!(cut.found(&new), new);
		assert!(matches!(cut.store.create(&new), Err(StoreError::Exists)));
	}
}

#[test]
fn a_limit_counts_an_invite_once_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let one = allowance("nurse", 1, 10);
		let new = made_by("nurse", "new");
		assert_eq!(cut.store.create_within(&new, &one).unwrap(), Ok(vec![]));
		assert_eq!(cut.found(&new), new);
		let refused = cut.store.create_within(&made_by("nurse", "newer"), &one).unwrap();
		assert_eq!(refused.map_err(|reached| reached.reason), Err(Reason::MaxOpen(1)));
	});
}

#[test]
fn connections_racing_for_one_inviter_make_no_more_than_the_limit_lets() {
	let url = new_database();
	inviters_race(&[&open(&url), &open(&url)]);
}

#[test]
fn what_an_inviter_loses_and_whom_it_brought_is_told_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let made = made_by("nurse", "made");
		cut.direct.create(&made).unwrap();
		let retire =
			|| cut.store.retire_inviter("example.com", "nurse", true, Some("why"), None, NOW).unwrap();
		assert_eq!(retire(), [cut.found(&made)]);
		assert_eq!(retire(), []);
	});
	when_cut_in_the_commit(|cut| {
		let member = Member {
			username: "romeo".to_owned(),
			inviter: "nurse".to_owned(),
			digest: cut.open.digest,
			joined_at: None,
		};
		let import = || cut.store.import_lineage("example.com", std::slice::from_ref(&member)).unwrap();
		assert_eq!([import(), import()], [1, 0]);
		assert_eq!(cut.direct.lineage("example.com", "romeo").unwrap(), Some(member.clone()));
	});
	when_cut_in_the_commit(|cut| {
		assert_eq!(cut.store.forget_tokens("example.com", None, 10).unwrap(), None);
		assert_eq!((cut.found(&cut.open).token, cut.found(&cut.bound).token), (None, None));
	});
}

#[test]
fn an_import_counts_once_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let records = [account("new"), account("newer"), cut.open.clone()].map(Record::from);
		assert_eq!(cut.store.import(&records).unwrap(), 2);
		assert_eq!(cut.store.import(&records).unwrap(), 0);
	});
}

#[test]
fn a_claim_is_made_once_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let claim = claim(&cut.open, Purpose::Account, "romeo", NOW);
		cut.store.claim(&claim, None, NOW).unwrap().unwrap();
		assert_eq!(execute(&cut.url, "DELETE FROM claim", &[]), 1);
	});
}

#[test]
fn a_claim_is_redeemed_once_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let claim = claim(&cut.open, Purpose::Account, "romeo", NOW);
		cut.direct.claim(&claim, None, NOW).unwrap().unwrap();
		let redeem =
			|| cut.store.redeem(&claim.host, &claim.digest, &claim.nonce, Some("test"), NOW).unwrap();
		let Redeemed::Now(invite) = redeem() else { panic!("not by us") };
		assert_eq!((invite.uses, &invite), (1, &cut.found(&cut.open)));
		assert_eq!(redeem(), Redeemed::Before);
		assert_eq!(cut.direct.redemptions(&claim.host, &claim.digest).unwrap().len(), 1);
	});
}

#[test]
fn an_invite_is_redeemed_at_once_and_once_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let claim = claim(&cut.open, Purpose::Account, "romeo", NOW);
		let invite = cut.store.redeem_at_once(&claim, None, NOW).unwrap().unwrap().unwrap();
		assert_eq!((invite.uses, &invite), (1, &cut.found(&cut.open)));
		assert_eq!(cut.direct.redemptions(&claim.host, &claim.digest).unwrap().len(), 1);
	});
}

#[test]
fn what_was_changed_is_told_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let claim = claim(&cut.open, Purpose::Account, "romeo", NOW);
		cut.direct.claim(&claim, None, NOW).unwrap().unwrap();
		assert!(cut.store.release(&claim.host, &claim.nonce, None).unwrap());
		assert!(!cut.store.release(&claim.host, &claim.nonce, None).unwrap());
	});
	when_cut_in_the_commit(|cut| {
		let revoked = cut.store.revoke("example.com", &cut.open.digest, Some("why"), None, NOW).unwrap();
		assert_eq!(revoked, Some(cut.found(&cut.open)));
		assert_eq!(cut.store.revoke("example.com", &cut.open.digest, Some("why"), None, NOW).unwrap(), None);
	});
	when_cut_in_the_commit(|cut| {
		let retired = cut.store.retire("example.com", "juliet", &|_| true, "why", NOW).unwrap();
		assert_eq!(retired, [cut.found(&cut.bound)]);
		assert_eq!(cut.store.retire("example.com", "juliet", &|_| true, "why", NOW).unwrap(), []);
	});
	when_cut_in_the_commit(|cut| {
		assert!(cut.store.set_paused("example.com", &cut.open.digest, true).unwrap());
		assert!(!cut.store.set_paused("example.com", &cut.open.digest, true).unwrap());
	});
	when_cut_in_the_commit(|cut| {
		assert_eq!(cut.store.end_expired("example.com", 10, NOW + 61).unwrap().len(), 2);
		assert_eq!(cut.store.end_expired("example.com", 10, NOW + 61).unwrap().len(), 0);
		assert_eq!(cut.found(&cut.open).ended_at, cut.open.expires);
	});
}

#[test]
fn a_claim_that_nobody_knows_of_is_released_by_the_next() {
	let cut = Cut::new();
	let short = PostgresStore::new(&cut.proxy.url(&cut.url), Duration::from_millis(500)).unwrap();
	let (lost, next) =
		(claim(&cut.open, Purpose::Account, "romeo", NOW), claim(&cut.open, Purpose::Account, "romeo", NOW));
	short.find("example.com", &cut.open.digest).unwrap();
	cut.proxy.wait_for(b"COMMIT\0", Fate::Swallow);
	let error = short.claim(&lost, None, NOW).unwrap_err().to_string();
	assert!(error.contains("did not answer within 500 ms"), "{error}");
	assert!(cut.proxy.has_struck());
	assert_eq!(cut.direct.claim(&next, None, NOW).unwrap(), Err(Refusal::Busy), "it was made");
	eventually(|| short.claim(&next, None, NOW).is_ok_and(|decision| decision.is_ok()));
	assert_eq!(execute(&cut.url, "DELETE FROM claim", &[]), 1);
}

#[test]
fn what_was_cut_off_before_the_commit_keeps_its_locks_for_no_longer_than_the_deadline() {
	let cut = Cut::new();
	let short = PostgresStore::new(&cut.proxy.url(&cut.url), Duration::from_millis(500)).unwrap();
	short.find("example.com", &cut.open.digest).unwrap();
	// The name and the invite are locked by then, and what follows never arrives.
	cut.proxy.wait_for(b"INSERT INTO claim", Fate::Swallow);
	let claim = claim(&cut.open, Purpose::Account, "romeo", NOW);
	short.claim(&claim, None, NOW).unwrap_err();
	assert!(cut.proxy.has_struck());
	let asked = Stopwatch::start();
	cut.direct.claim(&claim, None, NOW).unwrap().unwrap();
	assert!(asked.elapsed() < DEADLINE / 3);
}

#[test]
fn a_stale_claim_that_nobody_knows_of_is_settled_like_any_other() {
	let cut = Cut::new();
	let lost = claim(&cut.open, Purpose::Account, "romeo", NOW);
	cut.direct.claim(&lost, None, NOW).unwrap().unwrap();
	cut.store.forsaken().push(lost.clone());
	let later = NOW + LEASE + 1;
	let next = claim(&cut.open, Purpose::Account, "juliet", later);
	assert_eq!(cut.store.claim(&next, None, later).unwrap(), Err(Refusal::Stale(vec![lost])));
}

#[test]
fn a_connection_that_the_server_has_closed_is_replaced_unnoticed() {
	let server = Postgres::start();
	let store = open(&server.new_database());
	let invite = sample("example.com", "t");
	store.create(&invite).unwrap();
	server.tell("stop");
	server.tell("start");
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), Some(invite.clone()));
	store.connection.close();
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), Some(invite));
}

#[test]
fn while_the_database_is_away_one_call_in_a_pause_waits_and_the_others_fail_at_once() {
	let deadline = Duration::from_millis(200);
	let server = Postgres::start();
	let store = PostgresStore::new(&server.new_database(), deadline).unwrap();
	let invite = sample("example.com", "t");
	eventually(|| store.create(&invite).is_ok());
	server.tell("freeze");
	let began = Stopwatch::start();
	let (mut calls, mut waits) = (0, 0);
	// Pauses of 0.25 s, 0.5 s, 1 s; and a wait before each of them, and one after.
	while began.elapsed() < Duration::from_secs(2) {
		let asked = Stopwatch::start();
		let error = store.find(&invite.host, &invite.digest).unwrap_err().to_string();
		assert!(error.contains("did not answer within 200 ms"), "{error}");
		calls += 1;
		waits += usize::from(asked.elapsed() >= deadline);
	}
	assert!((2..=4).contains(&waits) && calls > 100, "{waits} of {calls} calls waited");
	server.tell("thaw");
	let thawed = Stopwatch::start();
	eventually(|| store.find(&invite.host, &invite.digest).is_ok());
	assert!(thawed.elapsed() < Duration::from_secs(5));
}

/// Asks until it is so.
fn eventually(mut is_so: impl FnMut() -> bool) {
	let began = Stopwatch::start();
	while !is_so() {
		assert!(began.elapsed() < DEADLINE, "not in {DEADLINE:?}");
		std::thread::yield_now();
	}
}
