//! What PostgreSQL adds to the promises that every store keeps. What it does in a running Prosody is tested in
//! `spec/server/test_postgresql.py`.

use super::sql::POSTGRESQL_MIGRATIONS as MIGRATIONS;
use super::*;
use crate::clock::Stopwatch;
use crate::invite::Type;
use crate::lineage::Member;
use crate::policy::Reason;
use crate::redemption::{Claim, Life, Purpose, Redeemed, Refusal};
use crate::store::conformance::{
	Uses, allowance, claim, inviters_race, made_by, promises, races, redeem_once, released, released_claim,
	reset, sample, tests, without_spent_token,
};
use crate::store::{Bundled, Record};
use crate::token::Digest;

mod proxy;
#[path = "../../../spec/postgres.rs"]
mod server;

use proxy::{Fate, Proxy};
use server::Postgres;

/// Long enough that no test on a loaded machine runs into it by accident.
const DEADLINE: Duration = Duration::from_secs(30);

const NOW: Timestamp = 1_700_000_000;

promises!(tests(|_scratch| store(&new_database())));
races!(tests(|_scratch| store(&new_database())));

mod twice {
	use super::*;
	use crate::store::conformance::Twice;

	promises!(tests(|_scratch| Twice(store(&new_database()))));
}

fn new_database() -> String {
	Postgres::shared().new_database()
}

fn store(url: &str) -> PostgresStore {
	PostgresStore::new(url, DEADLINE).unwrap()
}

fn open(url: &str) -> Arc<PostgresStore> {
	Arc::new(store(url))
}

fn hasty(url: &str, deadline: Duration) -> Arc<PostgresStore> {
	Arc::new(PostgresStore::new(url, deadline).unwrap())
}

fn problem(store: &Arc<PostgresStore>) -> String {
	store.find("example.com", &Digest::of(b"x")).unwrap_err().to_string()
}

/// Changes something behind the store's back; how many rows.
fn execute(url: &str, statement: &'static str, params: &[Param<'_>]) -> usize {
	open(url).connection.call("testing", |wire| Ok(wire.query(statement, params)?.len())).unwrap()
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
	let versions = open(&url).connection.call("testing", |wire| {
		let rows = wire.query("SELECT version FROM migration ORDER BY version", &[])?;
		Ok(rows.iter().map(|row| row.get(0)).collect::<Vec<i32>>())
	});
	let expected: Vec<i32> = (1..).take(MIGRATIONS.len()).collect();
	assert_eq!(versions.unwrap(), expected);
}

/// A database of every schema that was released, as the version with that schema wrote it.
const RELEASED: [&str; 4] = [
	include_str!("../../../spec/fixtures/postgresql-1.sql"),
	include_str!("../../../spec/fixtures/postgresql-2.sql"),
	include_str!("../../../spec/fixtures/postgresql-3.sql"),
	include_str!("../../../spec/fixtures/postgresql-4.sql"),
];

#[test]
fn a_database_of_every_released_schema_is_migrated_and_keeps_everything() {
	assert!(RELEASED.len() + 1 >= MIGRATIONS.len(), "keep a dump of each schema that is released");
	let schema = |url: &str| -> Vec<String> {
		let columns = "SELECT table_name || ' ' || column_name || ' ' || data_type || ' ' || is_nullable \
			FROM information_schema.columns WHERE table_schema = 'prosody_invites' \
			UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'prosody_invites' \
			UNION ALL SELECT 'version ' || version FROM migration ORDER BY 1";
		let rows = open(url).connection.call("testing", |wire| wire.query(columns, &[])).unwrap();
		rows.iter().map(|row| row.get(0)).collect()
	};
	let fresh = new_database();
	for dump in RELEASED {
		let url = new_database();
		let load = vec![Message::Text("DROP SCHEMA prosody_invites CASCADE"), Message::Text(dump)];
		open(&url).connection.call("testing", |wire| wire.exchange(load.clone())).unwrap();
		let found = open(&url).records("example.com", None, 100).unwrap();
		assert_eq!(found.into_iter().map(without_spent_token).collect::<Vec<_>>(), released());
		let claims = open(&url).claims("example.com").unwrap();
		assert!(claims.is_empty() || claims == [released_claim()], "the first two had none");
		assert_eq!(schema(&url), schema(&fresh));
	}
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
	let statement = "UPDATE invite SET fields = '{' WHERE digest = ?1 RETURNING 1";
	assert_eq!(execute(&url, statement, &[(&damaged.digest).into()]), 1);
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
							store.release(&claim.host, &claim.nonce).unwrap();
						}
					}
					store.create(&reset(&format!("reset {thread} {round}"), "juliet")).ok();
					store.retire("example.com", "juliet", None, NOW).unwrap();
					store.end_more("example.com", NOW).unwrap();
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
	let deadlocks = open(&url).connection.call("testing", |wire| {
		let row =
			wire.query("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()", &[]);
		Ok(row?[0].get::<_, i64>(0))
	});
	assert_eq!(deadlocks.unwrap(), 0);
}

/// A store behind a proxy, another one without, and the two open invites in it.
struct Cut {
	url: String,
	proxy: Proxy,
	store: Arc<PostgresStore>,
	direct: Arc<PostgresStore>,
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
		assert_eq!(execute(&cut.url, "DELETE FROM claim RETURNING 1", &[]), 1);
	});
}

#[test]
fn a_claim_is_redeemed_once_though_the_commit_was_cut_off() {
	when_cut_in_the_commit(|cut| {
		let claim = claim(&cut.open, Purpose::Account, "romeo", NOW);
		cut.direct.claim(&claim, None, NOW).unwrap().unwrap();
		let redeem = || cut.store.redeem(&claim, Some("test"), NOW).unwrap();
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
		assert!(cut.store.release(&claim.host, &claim.nonce).unwrap());
		assert!(!cut.store.release(&claim.host, &claim.nonce).unwrap());
	});
	when_cut_in_the_commit(|cut| {
		let revoked = cut.store.revoke("example.com", &cut.open.digest, Some("why"), None, NOW).unwrap();
		assert_eq!(revoked, Some(cut.found(&cut.open)));
		assert_eq!(cut.store.revoke("example.com", &cut.open.digest, Some("why"), None, NOW).unwrap(), None);
	});
	when_cut_in_the_commit(|cut| {
		let made = made_by("nurse", "made");
		cut.direct.create(&made).unwrap();
		assert_eq!(cut.store.retire("example.com", "nurse", None, NOW).unwrap(), [cut.found(&made)]);
		assert_eq!(cut.store.retire("example.com", "nurse", None, NOW).unwrap(), []);
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

/// An id of a transaction that was lost in a crash is given to somebody else, and is committed then.
#[test]
fn a_crash_in_the_middle_is_not_taken_for_a_commit() {
	let server = Arc::new(Postgres::start());
	let url = server.new_database();
	let proxy = Proxy::new(server.socket());
	let (store, direct) = (open(&proxy.url(&url)), open(&url));
	let invite = account("open");
	// Before and after the first commit of the store, which has no mark until then.
	for round in ["first", "second"] {
		let invite = Invite { digest: Digest::of(round.as_bytes()), ..invite.clone() };
		direct.create(&invite).unwrap();
		let (server, direct_again) = (Arc::clone(&server), Arc::clone(&direct));
		proxy.wait_and_do(b"COMMIT\0", Fate::CutBefore, move || {
			server.tell("kill");
			server.tell("start");
			for index in 0..10 {
				direct_again.create(&account(&format!("{round} {index}"))).unwrap();
			}
		});
		let revoked = store.revoke(&invite.host, &invite.digest, None, None, NOW).unwrap();
		assert!(proxy.has_struck());
		assert!(revoked.is_some());
		assert_eq!(direct.find(&invite.host, &invite.digest).unwrap(), revoked);
	}
}

/// Who asks has another connection, and may be faster than what was sent on the first.
#[test]
fn a_commit_that_nobody_answered_is_waited_for() {
	let cut = Cut::new();
	let [first, second] = ["romeo", "paris"].map(|name| claim(&cut.open, Purpose::Account, name, NOW));
	cut.store.claim(&first, None, NOW).unwrap().unwrap();
	cut.store.release(&first.host, &first.nonce).unwrap();
	let waits = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted \
		AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
	std::thread::scope(|threads| {
		let (ready, is_ready) = std::sync::mpsc::channel();
		let url = &cut.url;
		threads.spawn(move || {
			// The mark waits for this one.
			let marks = "UPDATE outcome SET at = at";
			let other = open(url);
			let blocked = other.connection.call("testing", |wire| {
				wire.exchange(vec![Message::Text("BEGIN"), Message::Text(marks)])?;
				ready.send(()).unwrap();
				eventually(|| execute(url, waits, &[]) > 0);
				wire.exchange(vec![Message::Text("COMMIT")])
			});
			blocked.unwrap();
		});
		is_ready.recv().unwrap();
		cut.proxy.wait_for(b"COMMIT\0", Fate::CutAfter);
		cut.store.claim(&second, None, NOW).unwrap().unwrap();
	});
	assert!(cut.proxy.has_struck());
	assert_eq!(execute(&cut.url, "DELETE FROM claim RETURNING 1", &[]), 1);
}

#[test]
fn marks_of_servers_that_are_gone_are_forgotten() {
	let url = new_database();
	open(&url).create(&bound("t", "juliet")).unwrap();
	let old = "UPDATE outcome SET at = now() - INTERVAL '2 days' RETURNING 1";
	assert_eq!(execute(&url, old, &[]), 1);
	let store = open(&url);
	for token in ["u", "v"] {
		store.create(&bound(token, "juliet")).unwrap();
	}
	assert_eq!(execute(&url, "SELECT 1 FROM outcome", &[]), 1);
}

#[test]
fn no_use_case_takes_more_conversations_with_the_database_than_it_must() {
	let cut = Cut::new();
	let invites = cut.store.of("example.com");
	let count = |what: &str, most: usize, work: &dyn Fn(&str)| {
		// The first compiles the statements.
		work(&format!("{what} 1"));
		cut.proxy.turns();
		work(&format!("{what} 2"));
		let turns = cut.proxy.turns();
		assert!(turns <= most, "{what} takes {turns} conversations, and may take {most}");
		println!("{what}: {turns} conversations of at most {most}");
	};
	let created = |invite: Invite| {
		cut.direct.create(&invite).unwrap();
		invite
	};
	let claimed = |token: &str| {
		let claim = claim(&created(account(token)), Purpose::Account, token, NOW);
		cut.direct.claim(&claim, None, NOW).unwrap().unwrap();
		claim
	};
	count("create", 1, &|token| drop(cut.store.create(&account(token)).unwrap()));
	count("create bound", 5, &|token| drop(cut.store.create(&bound(token, "paris")).unwrap()));
	count("create within limits", 7, &|token| {
		let made = made_by("nurse", token);
		cut.store.create_within(&made, &allowance("nurse", 9, 9)).unwrap().unwrap();
	});
	count("get", 1, &|_| drop(cut.store.find("example.com", &cut.open.digest).unwrap()));
	count("claim", 6, &|token| {
		let claim = claim(&created(account(token)), Purpose::Account, token, NOW);
		cut.store.claim(&claim, None, NOW).unwrap().unwrap();
	});
	count("redeem", 7, &|token| {
		let claim = claimed(token);
		let used = cut.store.redeem(&claim, None, NOW).unwrap();
		assert!(matches!(used, Redeemed::Now(_)));
	});
	count("redeem at once", 10, &|token| {
		let claim = claim(&created(account(token)), Purpose::Account, token, NOW);
		cut.store.redeem_at_once(&claim, None, NOW).unwrap().unwrap();
	});
	count("release", 3, &|token| assert!(invites.release(&claimed(token).nonce).unwrap()));
	count("renew", 1, &|token| {
		assert!(cut.store.renew("example.com", &claimed(token).nonce).unwrap());
	});
	count("look at a claim", 5, &|token| {
		let claim = claim(&cut.open, Purpose::Account, token, NOW);
		cut.store.view(&claim, NOW).unwrap();
	});
	count("look at a name", 4, &|token| drop(cut.store.view_name("example.com", token, NOW).unwrap()));
	count("revoke", 4, &|token| {
		let invite = created(account(token));
		cut.store.revoke(&invite.host, &invite.digest, None, None, NOW).unwrap().unwrap();
	});
	count("pause", 4, &|token| {
		let invite = created(account(token));
		assert!(cut.store.set_paused(&invite.host, &invite.digest, true).unwrap());
	});
	count("extend", 5, &|token| {
		let invite = created(account(token));
		cut.store.extend(&invite.host, &invite.digest, None, NOW).unwrap().unwrap();
	});
	count("extend bound", 8, &|token| {
		let invite = created(bound(token, "tybalt"));
		cut.store.extend(&invite.host, &invite.digest, None, NOW).unwrap().unwrap();
	});
	count("revoke of a user who has none", 1, &|token| {
		cut.store.retire_resets("example.com", token, NOW).unwrap();
	});
	count("revoke of a user", 5, &|token| {
		created(reset(token, "benvolio"));
		assert_eq!(cut.store.retire_resets("example.com", "benvolio", NOW).unwrap().len(), 1);
	});
	count("revoke of an inviter", 5, &|token| {
		created(made_by("mercutio", token));
		let revoked = cut.store.retire_inviter("example.com", "mercutio", false, None, None, NOW).unwrap();
		assert_eq!(revoked.len(), 1);
	});
	count("end nothing", 1, &|_| drop(cut.store.end_expired("example.com", 10, NOW).unwrap()));
	count("purge nothing", 1, &|_| {
		cut.store.purge("example.com", 0, 10, &Bundled::Unknown).unwrap();
	});
	count("purge", 6, &|token| {
		let invite = created(Invite { expires: Some(1), ..account(token) });
		cut.direct.revoke(&invite.host, &invite.digest, None, None, 2).unwrap().unwrap();
		assert_eq!(cut.store.purge("example.com", 3, 10, &Bundled::Unknown).unwrap(), 1);
	});
	count("list", 2, &|_| drop(cut.store.open_invites("example.com", None, 10).unwrap()));
	count("export", 4, &|_| drop(cut.store.records("example.com", None, 10).unwrap()));
	count("import", 3, &|token| {
		let records = ["a", "b", "c"].map(|name| Record::from(account(&format!("{token} {name}"))));
		assert_eq!(cut.store.import(&records).unwrap(), 3);
	});
}

#[test]
fn a_claim_that_nobody_knows_of_is_released_by_the_next() {
	let cut = Cut::new();
	let short = hasty(&cut.proxy.url(&cut.url), Duration::from_millis(500));
	let (lost, next) =
		(claim(&cut.open, Purpose::Account, "romeo", NOW), claim(&cut.open, Purpose::Account, "romeo", NOW));
	short.find("example.com", &cut.open.digest).unwrap();
	let invites = short.of("example.com");
	cut.proxy.wait_for(b"COMMIT\0", Fate::Swallow);
	let error = invites.make_claim(&lost, None, NOW).unwrap_err().to_string();
	assert!(error.contains("did not answer within 500 ms"), "{error}");
	assert!(cut.proxy.has_struck());
	assert_eq!(cut.direct.claim(&next, None, NOW).unwrap(), Err(Refusal::Busy), "it was made");
	eventually(|| invites.make_claim(&next, None, NOW).is_ok_and(|decision| decision.is_ok()));
	assert_eq!(execute(&cut.url, "DELETE FROM claim RETURNING 1", &[]), 1);
}

#[test]
fn what_was_cut_off_before_the_commit_keeps_its_locks_for_no_longer_than_the_deadline() {
	let cut = Cut::new();
	let short = hasty(&cut.proxy.url(&cut.url), Duration::from_millis(500));
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

/// Invites of whom half were made by, are for or are about one user, and as many endings; and what is known of them.
const MANY_ROWS: [&str; 3] = [
	"INSERT INTO invite (host, digest, type, kind, username, allow_registration, created_at, expires, max_uses, inviter) \
	 SELECT 'example.com', sha256(i::text::bytea), CASE kind WHEN 'contact' THEN 'roster' ELSE 'register' END, kind, name, true, \
	 i, CASE WHEN i % 3 > 0 THEN i + 1000000 END, 1, name FROM (SELECT i, \
	 (ARRAY['account', 'contact', 'group', 'reset'])[i % 4 + 1] AS kind, \
	 CASE WHEN i / 4 % 2 = 0 THEN 'juliet' ELSE 'user' || i / 20 END AS name FROM generate_series(1, 20000) AS i) AS made",
	"INSERT INTO ending (host, username, scope, at, made_until, ended, due) \
	 SELECT 'example.com', 'user' || i, 'made', i, i, 0, i FROM generate_series(1, 20000) AS i",
	"ANALYZE",
];

#[test]
fn what_the_end_of_many_picks_is_found_by_an_index_beside_many_rows() {
	let store = open(&new_database());
	let of_user = "'example.com', 'juliet'";
	// Those with a limit take the first of an index, and read no others.
	let statements = [
		(sql::MADE_BY, format!("{of_user}, 15000, 50"), true),
		(sql::CONTACT_OF, format!("{of_user}, 15000, 50"), true),
		(sql::RESET_OF, format!("{of_user}, 15000, 50"), true),
		(sql::ENDINGS_DUE, "'example.com', 500, 8".to_owned(), true),
		(sql::BOUND_IN_ORDER, "'example.com', 'user500'".to_owned(), false),
		(sql::ENDINGS_OF, of_user.to_owned(), false),
		(sql::COUNT_MADE, format!("{of_user}, 5, 10"), false),
		(sql::COUNT_MADE_AFTER, format!("{of_user}, 5, 10, 15000"), false),
		(sql::NEWEST_OF_INVITER, format!("{of_user}, 10"), true),
	];
	let mut wrong = Vec::new();
	store
		.connection
		.call("testing", |wire| {
			for statement in MANY_ROWS {
				wire.query(statement, &[])?;
			}
			// As the server plans it for these words, and for whatever words may come.
			for mode in ["force_custom_plan", "force_generic_plan"] {
				wire.query(String::leak(format!("SET plan_cache_mode = {mode}")), &[])?;
				for (statement, params, is_in_order) in &statements {
					wire.query(String::leak(format!("PREPARE asked AS {statement}")), &[])?;
					let plan = wire.query(String::leak(format!("EXPLAIN EXECUTE asked ({params})")), &[])?;
					wire.query("DEALLOCATE asked", &[])?;
					let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
					let has = |word| plan.iter().any(|step| step.contains(word));
					if has("Seq Scan on") || !has("Index") || *is_in_order && has("Sort") {
						wrong.push(format!("{mode} of {statement}: {plan:#?}"));
					}
				}
			}
			Ok(())
		})
		.unwrap();
	assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn who_holds_lives_whatever_becomes_of_its_session_and_nobody_can_tell_when_it_is_gone() {
	let url = new_database();
	let boot = Nonce::from_bytes([7; 16]);
	let (holder, looker) = (open(&url), open(&url));
	let look = || looker.life("example.com", &boot);
	assert!(matches!(look(), Life::Unknown { .. }), "nobody holds anything yet");
	Store::hold(&*holder, &boot).unwrap();
	assert_eq!([look(), look()], [Life::Alive; 2]);
	// Its next session takes the lock before anything else.
	holder.connection.close();
	eventually(|| matches!(look(), Life::Unknown { .. }));
	holder.find("example.com", &Digest::of(b"x")).unwrap();
	assert_eq!(look(), Life::Alive);
	// Another name takes the place of the first.
	Store::hold(&*holder, &Nonce::from_bytes([8; 16])).unwrap();
	let Life::Unknown { connection } = look() else { panic!("it is held still") };
	looker.connection.close();
	assert!(matches!(look(), Life::Unknown { connection: next } if next > connection), "another connection");
}

#[test]
fn looks_of_many_disturb_neither_each_other_nor_who_holds() {
	let url = new_database();
	let boot = Nonce::from_bytes([7; 16]);
	let holder = open(&url);
	std::thread::scope(|threads| {
		for _ in 0..4 {
			threads.spawn(|| {
				let looker = open(&url);
				let alive = (0..200).filter(|_| looker.life("example.com", &boot) == Life::Alive).count();
				assert!(alive < 20, "{alive} of 200 looks met another one");
			});
		}
	});
	Store::hold(&*holder, &boot).unwrap();
}

#[test]
fn an_engine_that_only_pretends_to_lock_is_refused() {
	let server = Postgres::start();
	let url = server.new_database();
	let (_, name) = url.rsplit_once('/').unwrap();
	let (name, _) = name.split_once('?').unwrap_or((name, ""));
	server.tell(&format!(
		"sql {name} CREATE OR REPLACE FUNCTION pg_catalog.pg_try_advisory_lock(bigint) RETURNS boolean \
		 LANGUAGE sql AS 'SELECT true'"
	));
	server.tell(&format!(
		"sql {name} CREATE OR REPLACE FUNCTION pg_catalog.pg_advisory_unlock(bigint) RETURNS boolean \
		 LANGUAGE sql AS 'SELECT true'"
	));
	let error = open(&url).find("example.com", &Digest::of(b"x")).unwrap_err().to_string();
	assert!(error.contains("does not keep advisory locks of sessions apart"), "{error}");
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
	let store = hasty(&server.new_database(), deadline);
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
