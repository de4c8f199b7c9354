//! What SQLite adds to the promises that every store keeps.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::connection::{is_current, version};
use super::sql::SQLITE_MIGRATIONS as MIGRATIONS;
use super::*;
use crate::clock::{Stopwatch, monotonic};
use crate::invite::Type;
use crate::invites::Invites;
use crate::redemption::{Claim, Purpose, Redeemed};
use crate::store::Record;
use crate::store::conformance::{
	Uses, claim, inviters_race, made_by, promises, races, redeem_once, released, released_claim, sample,
	tests, without_spent_token,
};
use crate::token::Digest;

/// Long enough that no test on a loaded machine runs into it by accident.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// As a server has it, which others wait for.
const SHORT_WAIT: Duration = Duration::from_millis(500);

promises!(tests(|scratch| SqliteStore::new(&scratch.join("invites.sqlite3"), LOCK_WAIT)));
races!(tests(|scratch| SqliteStore::new(&scratch.join("invites.sqlite3"), LOCK_WAIT)));

mod twice {
	use super::*;
	use crate::store::conformance::Twice;

	promises!(tests(|scratch| Twice(SqliteStore::new(&scratch.join("invites.sqlite3"), LOCK_WAIT))));
}

fn open(path: &Path, lock_wait: Duration) -> Arc<SqliteStore> {
	Arc::new(SqliteStore::new(path, lock_wait))
}

fn scratch() -> (tempfile::TempDir, PathBuf) {
	let scratch = tempfile::tempdir().unwrap();
	let path = scratch.path().join("invites.sqlite3");
	(scratch, path)
}

fn problem(store: &Arc<SqliteStore>) -> String {
	store.find("example.com", &Digest::of(b"x")).unwrap_err().to_string()
}

#[test]
fn every_migration_applies_and_the_version_is_their_number() {
	let (_scratch, path) = scratch();
	open(&path, LOCK_WAIT).create(&sample("example.com", "t")).unwrap();
	let connection = Connection::open(&path).unwrap();
	assert_eq!(version(&connection).unwrap(), i64::try_from(MIGRATIONS.len()).unwrap());
	assert!(is_current(&connection).is_ok_and(|current| current));
}

#[test]
fn nothing_is_opened_before_the_first_call() {
	let (_scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	assert!(!path.exists());
	store.find("example.com", &Digest::of(b"x")).unwrap();
	assert!(path.exists());
}

#[test]
fn the_files_are_for_their_owner_alone() {
	let (scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	store.create(&sample("example.com", "t")).unwrap();
	let mut modes: Vec<_> = std::fs::read_dir(scratch.path())
		.unwrap()
		.map(|entry| {
			let entry = entry.unwrap();
			(entry.file_name().into_string().unwrap(), entry.metadata().unwrap().permissions().mode() & 0o777)
		})
		.collect();
	modes.sort();
	let expected = ["invites.sqlite3", "invites.sqlite3-shm", "invites.sqlite3-wal"];
	assert_eq!(modes, expected.map(|name| (name.to_owned(), 0o600)));
}

#[test]
fn files_that_root_creates_belong_to_the_owner_of_their_directory() {
	let (scratch, path) = scratch();
	let (user, group) = (4711, 4712);
	if std::os::unix::fs::chown(scratch.path(), Some(user), Some(group)).is_err() {
		return; // Only root can.
	}
	let store = open(&path, LOCK_WAIT);
	store.create(&sample("example.com", "t")).unwrap();
	let beside = scratch.path().join("backup");
	store.back_up(&beside).unwrap();
	let elsewhere = tempfile::tempdir().unwrap();
	store.back_up(&elsewhere.path().join("backup")).unwrap();
	let _held = store.read_backup(&beside).unwrap();
	let owners = || -> Vec<(u32, u32)> {
		let entries = std::fs::read_dir(scratch.path()).unwrap();
		entries.map(|entry| entry.unwrap().metadata().unwrap()).map(|file| (file.uid(), file.gid())).collect()
	};
	assert_eq!(
		owners(),
		[(user, group); 5],
		"the database, its -wal and -shm, the copy and what is read of it"
	);
	let of_caller = elsewhere.path().join("backup").metadata().unwrap().uid();
	assert_eq!(of_caller, elsewhere.path().metadata().unwrap().uid());
	let backup = store.read_backup(&beside).unwrap();
	store.restore(&backup, false, 1).unwrap();
	drop((backup, store));
	open(&path, LOCK_WAIT).create(&sample("example.com", "u")).unwrap();
	assert_eq!(owners(), [(user, group); 3], "the database, the copy, and what is left is gone");
}

#[test]
fn a_connection_waits_for_the_disk_at_each_commit() {
	let (_scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	let pragmas = store.with("testing", |connection| {
		let read = |name| connection.pragma_query_value(None, name, |row| row.get::<_, i64>(0));
		Ok((read("synchronous")?, read("trusted_schema")?))
	});
	let full = 2;
	assert_eq!(pragmas.unwrap(), (full, 0));
}

#[test]
fn invites_are_there_after_reopening() {
	let (_scratch, path) = scratch();
	let invite = sample("example.com", "t");
	open(&path, LOCK_WAIT).create(&invite).unwrap();
	let again = open(&path, LOCK_WAIT);
	assert_eq!(again.find(&invite.host, &invite.digest).unwrap(), Some(invite));
}

#[test]
fn one_store_serves_all_hosts_of_a_process() {
	let (_scratch, path) = scratch();
	let (one, other) = (SqliteStore::shared(&path, LOCK_WAIT), SqliteStore::shared(&path, LOCK_WAIT));
	assert!(Arc::ptr_eq(&one, &other));
}

#[test]
fn many_that_start_at_once_on_a_new_file_all_succeed() {
	let (_scratch, path) = scratch();
	std::thread::scope(|threads| {
		for index in 0..16 {
			let path = &path;
			threads.spawn(move || {
				let store = open(path, LOCK_WAIT);
				store.create(&sample("example.com", &format!("t{index}"))).unwrap();
			});
		}
	});
	let found = open(&path, LOCK_WAIT).open_invites("example.com", None, 100).unwrap();
	assert_eq!(found.len(), 16);
}

#[test]
fn connections_racing_for_one_invite_redeem_it_once() {
	let (_scratch, path) = scratch();
	let stores: Vec<_> = (0..4).map(|_| open(&path, LOCK_WAIT)).collect();
	for round in 0..50 {
		let invite = Invite { username: None, ..sample("example.com", &format!("t{round}")) };
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
fn connections_racing_for_one_inviter_make_no_more_than_the_limit_lets() {
	let (_scratch, path) = scratch();
	let [one, other] = [(); 2].map(|()| open(&path, LOCK_WAIT));
	inviters_race(&[&one, &other]);
}

#[test]
fn the_inviters_of_older_invites_are_known_after_the_migration() {
	let (_scratch, path) = scratch();
	let (contact, made) = (sample("example.com", "contact"), made_by("juliet", "made"));
	let elsewhere = Invite { host: "example.net".to_owned(), ..made_by("juliet", "elsewhere") };
	let nobodys = Invite { username: None, invite_type: Type::Register, ..sample("example.com", "nobody") };
	let bound = Invite { username: Some("juliet".to_owned()), ..nobodys.clone() };
	let bound = Invite { digest: Digest::of(b"bound"), ..bound };
	let again = made_by("nurse", "again");
	let all = [&contact, &made, &elsewhere, &nobodys, &bound, &again];
	let store = open(&path, LOCK_WAIT);
	for invite in all {
		store.create(invite).unwrap();
	}
	for (invite, name, at) in [(&made, "romeo", 1), (&again, "romeo", 2), (&nobodys, "paris", 3)] {
		let claim = claim(invite, Purpose::Account, name, at);
		store.redeem_at_once(&claim, None, at).unwrap().unwrap();
	}
	let lineage = |store: &Arc<SqliteStore>| {
		let of = |name| store.lineage("example.com", name).unwrap();
		(of("romeo").map(|member| (member.inviter, member.joined_at)), of("paris"))
	};
	assert_eq!(lineage(&store), (Some(("nurse".to_owned(), Some(2))), None));
	drop(store);
	let connection = Connection::open(&path).unwrap();
	connection
		.execute_batch(
			"DROP TABLE lineage; DROP INDEX invite_inviter; DROP INDEX invite_inviter_open; ALTER TABLE invite DROP COLUMN inviter",
		)
		.unwrap();
	connection.execute_batch(include_str!("2_inviters.sql")).unwrap();
	for invite in all {
		let inviter: Option<String> = connection
			.query_row("SELECT inviter FROM invite WHERE digest = ?", [invite.digest.as_bytes()], |row| {
				row.get(0)
			})
			.unwrap();
		assert_eq!(inviter, invite.local_inviter());
	}
	assert_eq!(lineage(&open(&path, LOCK_WAIT)), (Some(("nurse".to_owned(), Some(2))), None));
}

#[test]
fn a_missing_directory_is_named_and_not_created() {
	let scratch = tempfile::tempdir().unwrap();
	let directory = scratch.path().join("missing");
	let problem = problem(&open(&directory.join("invites.sqlite3"), LOCK_WAIT));
	assert!(problem.contains("directory does not exist: create it"), "{problem}");
	assert!(!directory.exists());
}

#[test]
fn a_file_system_without_wal_is_told_in_words() {
	let (_scratch, path) = scratch();
	// SQLite's own driver for file systems that cannot lock: it cannot share memory either.
	let mut store = SqliteStore::new(&path, LOCK_WAIT);
	store.vfs = Some("unix-dotfile");
	let problem = problem(&Arc::new(store));
	assert!(problem.contains("move Prosody's data directory to a local disk"), "{problem}");
}

#[test]
fn another_programs_database_is_left_alone() {
	let (_scratch, path) = scratch();
	Connection::open(&path).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
	let problem = problem(&open(&path, LOCK_WAIT));
	assert!(problem.contains("of another program"), "{problem}");
	let tables: i64 = Connection::open(&path)
		.unwrap()
		.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))
		.unwrap();
	assert_eq!(tables, 1);
}

fn backup(store: &SqliteStore, to: &Path) -> backup::Backup {
	store.back_up(to).unwrap();
	store.read_backup(to).unwrap()
}

#[test]
fn a_backup_holds_what_is_in_the_log_and_comes_back_under_a_running_server() {
	let (scratch, path) = scratch();
	let (server, operator) = (open(&path, LOCK_WAIT), open(&path, LOCK_WAIT));
	let [kept, used, later] =
		["kept", "used", "later"].map(|token| Invite { username: None, ..sample("example.com", token) });
	server.create(&kept).unwrap();
	server.create(&used).unwrap();
	let copy = scratch.path().join("backup");
	operator.back_up(&copy).unwrap();
	assert_eq!(std::fs::metadata(&copy).unwrap().permissions().mode() & 0o777, 0o600);
	assert!(redeem_once(&server, &used));
	server.create(&later).unwrap();
	let backup = operator.read_backup(&copy).unwrap();
	let expected = backup::Content {
		newest: Some(kept.created_at),
		pending: 2,
		would_live_again: Some(1),
		would_be_gone: Some(1),
	};
	assert_eq!(backup.content, expected);
	operator.restore(&backup, false, 1).unwrap();
	let found = |invite: &Invite| server.find(&invite.host, &invite.digest).unwrap();
	assert_eq!([found(&kept), found(&used), found(&later)], [Some(kept.clone()), Some(used.clone()), None]);
	assert!(redeem_once(&server, &used), "as the operator was warned");
	server.create(&later).unwrap();
	assert_eq!(found(&later), Some(later));
}

#[test]
fn nothing_in_a_backup_that_is_restored_revoked_is_ever_good() {
	let (scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	let invite = sample("example.com", "t");
	store.create(&invite).unwrap();
	let backup = backup(&store, &scratch.path().join("backup"));
	store.restore(&backup, true, 5).unwrap();
	let found = store.find(&invite.host, &invite.digest).unwrap().unwrap();
	assert_eq!((found.revoked_at, found.ended_at), (Some(5), Some(5)));
	assert!(!redeem_once(&store, &invite));
}

#[test]
fn a_backup_comes_back_where_the_database_is_lost() {
	let (scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	let invite = sample("example.com", "t");
	store.create(&invite).unwrap();
	store.back_up(&scratch.path().join("backup")).unwrap();
	drop(store);
	for name in std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().path()) {
		if name != scratch.path().join("backup") {
			std::fs::remove_file(name).unwrap();
		}
	}
	let store = open(&path, LOCK_WAIT);
	let backup = store.read_backup(&scratch.path().join("backup")).unwrap();
	assert_eq!((backup.content.would_live_again, backup.content.would_be_gone), (Some(0), Some(0)));
	store.restore(&backup, false, 1).unwrap();
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), Some(invite));
	assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_registration_under_way_keeps_a_backup_from_being_restored() {
	let (scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	let invite = Invite { username: None, ..sample("example.com", "t") };
	store.create(&invite).unwrap();
	let backup = backup(&store, &scratch.path().join("backup"));
	let now = 1_700_000_000;
	let claim = crate::store::conformance::claim(&invite, Purpose::Account, "romeo", now);
	store.claim(&claim, None, now).unwrap().unwrap();
	let error = store.restore(&backup, false, now).unwrap_err().to_string();
	assert!(error.contains("1 registrations that are under way"), "{error}");
	assert!(matches!(store.redeem(&claim, None, now).unwrap(), Redeemed::Now(_)));
	store.restore(&backup, false, now).unwrap();
}

#[test]
fn what_is_no_good_backup_is_told_and_changes_nothing() {
	let (scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	let invite = sample("example.com", "t");
	store.create(&invite).unwrap();
	let good = scratch.path().join("good");
	store.back_up(&good).unwrap();
	let file = |name: &str, content: &[u8]| {
		let path = scratch.path().join(name);
		std::fs::write(&path, content).unwrap();
		path
	};
	let content = std::fs::read(&good).unwrap();
	let newer = file("newer", &content);
	Connection::open(&newer).unwrap().pragma_update(None, "user_version", 99).unwrap();
	let foreign = scratch.path().join("foreign");
	Connection::open(&foreign).unwrap().execute_batch("CREATE TABLE theirs (x)").unwrap();
	for (path, told) in [
		(scratch.path().join("missing"), "cannot be read as a backup"),
		(file("empty", b""), "is no backup of invites"),
		(file("garbage", &b"garbage ".repeat(1000)), "cannot be read as a backup"),
		(file("half", &content[..content.len() / 2]), "cannot be read as a backup"),
		(foreign, "is no backup of invites"),
		(newer, "has schema 99"),
	] {
		let Err(error) = store.read_backup(&path) else { panic!("{}", path.display()) };
		assert!(error.to_string().contains(told), "{error}");
	}
	let error = store.back_up(&good).unwrap_err().to_string();
	assert!(error.contains("exists already"), "{error}");
	assert_eq!(std::fs::read(&good).unwrap(), content);
	assert_eq!(store.find(&invite.host, &invite.digest).unwrap(), Some(invite));
	let leftovers = std::fs::read_dir(scratch.path())
		.unwrap()
		.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".tmp"));
	assert_eq!(leftovers.count(), 0);
}

/// A database of every schema that was released, as the version with that schema wrote it.
const RELEASED: [&str; 4] = [
	include_str!("../../../spec/fixtures/schema-1.sql"),
	include_str!("../../../spec/fixtures/schema-2.sql"),
	include_str!("../../../spec/fixtures/schema-3.sql"),
	include_str!("../../../spec/fixtures/schema-4.sql"),
];

fn migrated(path: &Path) -> Vec<Record> {
	let store = open(path, LOCK_WAIT);
	store.records("example.com", None, 100).unwrap().into_iter().map(without_spent_token).collect()
}

#[test]
fn a_database_of_every_released_schema_is_migrated_and_keeps_everything() {
	assert!(RELEASED.len() + 1 >= MIGRATIONS.len(), "keep a dump of each schema that is released");
	for (index, dump) in RELEASED.iter().enumerate() {
		let (_scratch, path) = scratch();
		Connection::open(&path).unwrap().execute_batch(dump).unwrap();
		assert_eq!(version(&Connection::open(&path).unwrap()).unwrap(), i64::try_from(index + 1).unwrap());
		assert_eq!(migrated(&path), released());
		assert_eq!(open(&path, LOCK_WAIT).claims("example.com").unwrap(), [released_claim()]);
		assert!(is_current(&Connection::open(&path).unwrap()).is_ok_and(|current| current));
		let fresh = open(&path.with_file_name("fresh"), LOCK_WAIT);
		fresh.create(&sample("example.com", "t")).unwrap();
		let schema = |path: &Path| -> Vec<(String, String)> {
			let connection = Connection::open(path).unwrap();
			let mut statement = connection
				.prepare("SELECT name, sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
				.unwrap();
			let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).unwrap();
			rows.collect::<Result<_, _>>().unwrap()
		};
		assert_eq!(schema(&path), schema(&path.with_file_name("fresh")));
	}
}

#[test]
fn processes_that_migrate_at_once_all_find_everything() {
	let (_scratch, path) = scratch();
	Connection::open(&path).unwrap().execute_batch(RELEASED[0]).unwrap();
	let expected = released();
	std::thread::scope(|threads| {
		for _ in 0..8 {
			threads.spawn(|| assert_eq!(migrated(&path), expected));
		}
	});
}

#[test]
fn a_newer_schema_is_refused_naming_both_versions() {
	let (_scratch, path) = scratch();
	open(&path, LOCK_WAIT).find("example.com", &Digest::of(b"x")).unwrap();
	Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
	let problem = problem(&open(&path, LOCK_WAIT));
	assert!(problem.contains("schema 99") && problem.contains(&MIGRATIONS.len().to_string()), "{problem}");
}

#[test]
fn garbage_is_reported_kept_and_recovered_from_without_a_restart() {
	let (_scratch, path) = scratch();
	let garbage = "garbage ".repeat(1000);
	std::fs::write(&path, &garbage).unwrap();
	let store = open(&path, LOCK_WAIT);
	let problem = problem(&store);
	assert!(problem.contains("put a backup in its place"), "{problem}");
	assert_eq!(std::fs::read_to_string(&path).unwrap(), garbage);
	std::fs::remove_file(&path).unwrap();
	store.create(&sample("example.com", "t")).unwrap();
}

#[test]
fn a_lock_held_too_long_is_waited_for_once_and_then_not_before_a_pause_is_over() {
	let (_scratch, path) = scratch();
	let lock_wait = Duration::from_millis(50);
	let store = open(&path, lock_wait);
	let invite = sample("example.com", "t");
	store.create(&invite).unwrap();
	let other = Connection::open(&path).unwrap();
	other.execute_batch("BEGIN IMMEDIATE").unwrap();
	let since = Stopwatch::start();
	let revoke = || store.revoke(&invite.host, &invite.digest, None, None, 1);
	let error = revoke().unwrap_err().to_string();
	assert!(error.contains("locked by another process"), "{error}");
	let waited = since.elapsed();
	assert!(waited >= lock_wait, "{waited:?}");
	let (calls, since) = (20, Stopwatch::start());
	for _ in 0..calls {
		assert_eq!(revoke().unwrap_err().to_string(), error);
	}
	let waited = since.elapsed();
	assert!(waited < lock_wait * calls / 2, "{waited:?} in all");
	assert!(store.find(&invite.host, &invite.digest).is_ok(), "reading needs no lock");
	other.execute_batch("COMMIT").unwrap();
	let since = Stopwatch::start();
	while revoke().is_err() {
		assert!(since.elapsed() < Duration::from_secs(10), "the pause is over at some time");
		std::thread::sleep(Duration::from_millis(5));
	}
	let since = Stopwatch::start();
	other.execute_batch("BEGIN IMMEDIATE").unwrap();
	store.revoke(&invite.host, &invite.digest, None, None, 1).unwrap_err();
	assert!(since.elapsed() >= lock_wait, "what succeeded ends the pauses");
}

/// A process on a database that others use too.
struct Process {
	boot: Nonce,
	store: Arc<SqliteStore>,
	invites: Invites,
}

/// Two of them, the first of which has a claim; and what takes the proof away that it lives.
fn holder_and_looker(path: &Path) -> ([Process; 2], impl Fn()) {
	let processes = [1, 2].map(|byte| {
		let (boot, store) = (Nonce::from_bytes([byte; 16]), open(path, Duration::from_millis(50)));
		let invites = Uses::of(&store, "example.com").of_process(boot);
		Process { boot, store, invites }
	});
	let Process { boot, store, .. } = &processes[0];
	let invite = Invite { invite_type: Type::Register, username: None, ..sample("example.com", "t") };
	store.create(&invite).unwrap();
	let claim = Claim { boot: *boot, ..claim(&invite, Purpose::Account, "romeo", 1) };
	store.claim(&claim, None, 1).unwrap().unwrap();
	let file = boots::directory(path).unwrap().join(boot.to_string());
	(processes, move || std::fs::remove_file(&file).unwrap())
}

#[test]
fn whoever_waits_for_the_lock_shows_meanwhile_that_it_lives_and_sees_others() {
	let (_scratch, path) = scratch();
	let ([holder, looker], lose_proof) = holder_and_looker(&path);
	let other = Connection::open(&path).unwrap();
	other.execute_batch("BEGIN IMMEDIATE").unwrap();
	for Process { invites, .. } in [&holder, &looker] {
		invites.revoke(&Digest::of(b"t"), None, None, 1).unwrap_err();
	}
	lose_proof();
	let since = Stopwatch::start();
	Store::hold(&*holder.store, &holder.boot).unwrap();
	assert_eq!(looker.store.life("example.com", &holder.boot), Life::Alive);
	assert_eq!(looker.invites.look_at_claims(monotonic()).unwrap(), []);
	assert!(since.elapsed() < Duration::from_millis(50), "{:?}", since.elapsed());
}

#[test]
fn a_renewal_that_could_not_be_written_is_not_missed() {
	let (_scratch, path) = scratch();
	let ([_holder, looker], lose_proof) = holder_and_looker(&path);
	lose_proof();
	let start = monotonic();
	let look = |second| looker.invites.look_at_claims(start + Duration::from_secs(second)).unwrap().len();
	assert_eq!([look(0), look(30)], [0; 2]);
	let other = Connection::open(&path).unwrap();
	other.execute_batch("BEGIN IMMEDIATE").unwrap();
	looker.invites.revoke(&Digest::of(b"t"), None, None, 1).unwrap_err();
	other.execute_batch("ROLLBACK").unwrap();
	// The first would settle it if nothing had failed.
	assert_eq!([look(60), look(90), look(119), look(120)], [0, 0, 0, 1]);
}

#[test]
fn who_has_once_waited_for_one_after_the_other_is_not_held_up_again_by_one_who_keeps_the_lock() {
	let (_scratch, path) = scratch();
	let lock_wait = Duration::from_millis(50);
	let store = open(&path, lock_wait);
	store.create(&sample("example.com", "t")).unwrap();
	let revoke = || store.revoke("example.com", &Digest::of(b"t"), None, None, 1);
	let other = Connection::open(&path).unwrap();
	other.execute_batch("BEGIN IMMEDIATE; CREATE TABLE other (number INTEGER)").unwrap();
	std::thread::scope(|threads| {
		let waiting = threads.spawn(|| {
			let since = Stopwatch::start();
			(revoke().is_ok(), since.elapsed())
		});
		let since = Stopwatch::start();
		while since.elapsed() < Duration::from_millis(300) {
			std::thread::sleep(Duration::from_millis(10));
			// Whoever waits may be faster.
			if other.execute_batch("COMMIT; BEGIN IMMEDIATE; INSERT INTO other VALUES (1)").is_err() {
				break;
			}
		}
		let _ = other.execute_batch("ROLLBACK");
		let (is_done, waited) = waiting.join().unwrap();
		assert!(is_done, "it waited for {waited:?}");
	});
	other.execute_batch("BEGIN IMMEDIATE").unwrap();
	revoke().unwrap_err();
	let since = Stopwatch::start();
	revoke().unwrap_err();
	assert!(since.elapsed() < lock_wait, "{:?}", since.elapsed());
}

#[test]
fn a_damaged_invite_is_named_by_its_id_and_hides_no_other() {
	let (_scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	let (damaged, whole) = (sample("example.com", "damaged"), sample("example.com", "whole"));
	store.create(&damaged).unwrap();
	store.create(&whole).unwrap();
	let changed = Connection::open(&path)
		.unwrap()
		.execute("UPDATE invite SET fields = '{' WHERE digest = ?", [damaged.digest.as_bytes()])
		.unwrap();
	assert_eq!(changed, 1);
	let error = store.find(&damaged.host, &damaged.digest).unwrap_err().to_string();
	assert!(error.contains(&damaged.digest.id().to_string()), "{error}");
	assert_eq!(store.find(&whole.host, &whole.digest).unwrap(), Some(whole));
}

#[test]
fn a_file_that_is_deleted_or_replaced_is_noticed_and_what_lies_there_now_counts() {
	let (scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	store.create(&sample("example.com", "old")).unwrap();
	std::fs::remove_file(&path).unwrap();
	let error = store.create(&sample("example.com", "lost")).unwrap_err().to_string();
	assert!(error.contains("deleted or replaced"), "{error}");
	store.create(&sample("example.com", "moved")).unwrap();
	std::fs::rename(&path, path.with_extension("moved")).unwrap();
	// It may be in the file that lies there now.
	let unknown = sample("example.com", "unknown");
	let error = store.find(&unknown.host, &unknown.digest).unwrap_err().to_string();
	assert!(error.contains("deleted or replaced"), "{error}");
	let new = sample("example.com", "new");
	store.create(&new).unwrap();
	assert_eq!(open(&path, LOCK_WAIT).find(&new.host, &new.digest).unwrap(), Some(new));
	drop(scratch);
}

/// What somebody may do to files of a database that is in use. In no case may a change be acknowledged that is not there
/// afterwards; where `saves`, what was acknowledged before is there, too.
fn a_change_notices(what: &str, saves: bool, damage: impl Fn(&dyn Fn(&str) -> PathBuf)) {
	let (_scratch, path) = scratch();
	let file = |suffix: &str| PathBuf::from(format!("{}{suffix}", path.display()));
	let store = open(&path, SHORT_WAIT);
	let before: Vec<_> = (0..200)
		.map(|index| Invite { username: None, ..sample("example.com", &format!("{index}")) })
		.collect();
	store.import(&before[..100].iter().cloned().map(Record::from).collect::<Vec<_>>()).unwrap();
	for invite in &before[100..] {
		store.create(invite).unwrap();
	}
	damage(&file);
	let lost = Invite { username: None, ..sample("example.com", "lost") };
	let error = store.create(&lost).unwrap_err().to_string();
	assert!(error.contains("was deleted or replaced"), "{what}: {error}");
	let after = Invite { username: None, ..sample("example.com", "after") };
	store.create(&after).unwrap();
	let find = |store: &Arc<SqliteStore>, invite: &Invite| store.find(&invite.host, &invite.digest).unwrap();
	drop(store);
	let store = open(&path, SHORT_WAIT);
	assert_eq!(find(&store, &after).as_ref(), Some(&after), "{what}");
	assert_eq!(find(&store, &lost), None, "{what}");
	if saves {
		for invite in &before {
			assert_eq!(find(&store, invite).as_ref(), Some(invite), "{what}");
		}
	}
}

#[test]
fn a_log_or_index_that_is_deleted_or_replaced_is_noticed_and_no_invite_is_lost() {
	let remove = |path: PathBuf| std::fs::remove_file(path).unwrap();
	a_change_notices("index deleted", true, |file| remove(file("-shm")));
	a_change_notices("log deleted", true, |file| remove(file("-wal")));
	a_change_notices("both deleted", true, |file| {
		remove(file("-wal"));
		remove(file("-shm"));
	});
	a_change_notices("index moved", true, |file| std::fs::rename(file("-shm"), file("-moved")).unwrap());
	a_change_notices("log moved", true, |file| std::fs::rename(file("-wal"), file("-moved")).unwrap());
	a_change_notices("log replaced by a copy", true, |file| {
		std::fs::copy(file("-wal"), file("-copy")).unwrap();
		std::fs::rename(file("-copy"), file("-wal")).unwrap();
	});
	a_change_notices("index replaced by an empty one", true, |file| {
		remove(file("-shm"));
		std::fs::write(file("-shm"), "").unwrap();
	});
}

#[test]
fn a_log_is_never_taken_for_that_of_another_database_and_goes_with_its_own() {
	let (scratch, path) = scratch();
	let [old, common] =
		["old", "common"].map(|token| Invite { username: None, ..sample("example.com", token) });
	let store = open(&path, SHORT_WAIT);
	store.create(&common).unwrap();
	let copy = scratch.path().join("copy");
	store.back_up(&copy).unwrap();
	store.create(&old).unwrap();
	let moved = scratch.path().join("moved");
	std::fs::rename(&path, &moved).unwrap();
	std::fs::rename(&copy, &path).unwrap();
	let new = Invite { username: None, ..sample("example.com", "new") };
	store.create(&new).unwrap_err();
	store.create(&new).unwrap();
	let found = |store: &Arc<SqliteStore>| {
		[&old, &common, &new].map(|invite| store.find(&invite.host, &invite.digest).unwrap().is_some())
	};
	assert_eq!(found(&store), [false, true, true]);
	let findings = store.check("example.com", 2_000_000_000);
	assert!(findings.iter().all(|finding| finding.level != crate::check::Level::Critical), "{findings:?}");
	assert_eq!(found(&open(&moved, SHORT_WAIT)), [true, true, false]);
}

#[test]
fn files_that_are_cut_off_are_noticed() {
	let cut = |path: PathBuf| drop(std::fs::File::create(path).unwrap());
	a_change_notices("log cut off", false, |file| cut(file("-wal")));
	a_change_notices("database cut off", false, |file| cut(file("")));
	// To look into it when it is closed would end the process.
	a_change_notices("index cut off", true, |file| cut(file("-shm")));
	a_change_notices("all deleted", false, |file| {
		for suffix in ["", "-wal", "-shm"] {
			std::fs::remove_file(file(suffix)).unwrap();
		}
	});
}

#[test]
fn a_process_that_ends_spares_what_others_have_committed_to_files_of_the_same_names() {
	let (_scratch, path) = scratch();
	let store = open(&path, SHORT_WAIT);
	store.create(&sample("example.com", "t")).unwrap();
	let [log, index] = ["-wal", "-shm"].map(|suffix| PathBuf::from(format!("{}{suffix}", path.display())));
	std::fs::remove_file(&index).unwrap();
	std::fs::write(&index, "of another process").unwrap();
	drop(store);
	assert!(log.exists() && index.exists());
}

#[test]
fn a_database_that_a_restored_backup_makes_shorter_is_no_other_one() {
	let (scratch, path) = scratch();
	let (server, operator) = (open(&path, SHORT_WAIT), open(&path, LOCK_WAIT));
	server.create(&Invite { username: None, ..sample("example.com", "t") }).unwrap();
	let backup = backup(&operator, &scratch.path().join("backup"));
	let many: Vec<_> = (0..3000).map(|index| sample("example.com", &format!("{index}")).into()).collect();
	operator.import(&many).unwrap();
	let checkpoint = || {
		let other = Connection::open(&path).unwrap();
		other.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
		std::fs::metadata(&path).unwrap().len()
	};
	let long = checkpoint();
	server.create(&Invite { username: None, ..sample("example.com", "u") }).unwrap();
	operator.restore(&backup, false, 1).unwrap();
	assert!(checkpoint() < long);
	server.create(&Invite { username: None, ..sample("example.com", "v") }).unwrap();
}

#[test]
fn what_is_asked_of_few_invites_is_found_by_an_index_and_not_by_reading_all() {
	let (_scratch, path) = scratch();
	open(&path, LOCK_WAIT).create(&sample("example.com", "t")).unwrap();
	let connection = Connection::open(&path).unwrap();
	let mut wrong = Vec::new();
	for statement in [
		sql::ALL_OF_INVITER,
		sql::BROUGHT_BY,
		sql::BOUND,
		sql::CONTACT_OF,
		sql::COUNT_MADE,
		sql::COUNT_MADE_AFTER,
		sql::COUNT_OPEN,
		sql::DUE,
		sql::ENDINGS_DUE,
		sql::ENDINGS_OF,
		sql::MADE_BY,
		sql::RESET_OF,
		sql::IS_KNOWN,
		sql::NEWEST_OF_INVITER,
		sql::OPEN_PART,
		sql::OVER,
		Sqlite::HISTORY_PART,
	] {
		let mut plan = connection.prepare(&format!("EXPLAIN QUERY PLAN {statement}")).unwrap();
		for parameter in 1..=plan.parameter_count() {
			plan.raw_bind_parameter(parameter, 1).unwrap();
		}
		let mut rows = plan.raw_query();
		while let Some(row) = rows.next().unwrap() {
			let step: String = row.get("detail").unwrap();
			let is_of_all = step.ends_with("PRIMARY KEY (host=?)") || step.starts_with("SCAN");
			// What a subquery has found is read from end to end.
			let is_found = ["SCAN made", "SCAN lasting", "SCAN expiring"].contains(&step.as_str());
			if is_of_all && !step.contains(" claim ") && !is_found {
				wrong.push(format!("{statement}: {step}"));
			}
		}
	}
	assert!(wrong.is_empty(), "{wrong:#?}");
}

fn log_size(path: &Path) -> u64 {
	std::fs::metadata(format!("{}-wal", path.display())).map_or(0, |log| log.len())
}

#[test]
fn a_long_log_is_moved_into_the_database_beside_the_commits_and_has_a_bound() {
	let (_scratch, path) = scratch();
	let store = open(&path, SHORT_WAIT);
	let page = 4096 + 24; // with its header in the log
	let (wake_at, bound) = (page * checkpoint::PAGES, 2 * page * checkpoint::MAX_PAGES);
	let mut largest = 0;
	// One batch is about two hundred pages.
	for batch in 0..60 {
		let invites: Vec<_> =
			(0..200).map(|index| sample("example.com", &format!("{batch} {index}")).into()).collect();
		store.import(&invites).unwrap();
		largest = largest.max(log_size(&path));
	}
	assert!(largest > u64::try_from(wake_at).unwrap(), "the test writes too little to show anything");
	assert!(largest < u64::try_from(bound).unwrap(), "{largest}");
	let is_moved = || {
		let other = Connection::open(&path).unwrap();
		let (log, moved): (i32, i32) =
			other.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
		log - moved < checkpoint::PAGES
	};
	let mut patience = 10_000;
	while !is_moved() {
		patience -= 1;
		assert!(patience > 0, "the log is not moved into the database");
		std::thread::sleep(Duration::from_millis(1));
	}
}

#[test]
fn a_process_that_may_wait_leaves_no_long_log_to_the_server() {
	let (_scratch, path) = scratch();
	let (server, operator) = (open(&path, SHORT_WAIT), open(&path, LOCK_WAIT));
	let mut largest = 0;
	for batch in 0..20 {
		let invites: Vec<_> =
			(0..1000).map(|index| sample("example.com", &format!("{batch} {index}")).into()).collect();
		operator.import(&invites).unwrap();
		server.create(&sample("example.com", &format!("between {batch}"))).unwrap();
		let other = Connection::open(&path).unwrap();
		let (log, moved): (i32, i32) =
			other.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| Ok((row.get(1)?, row.get(2)?))).unwrap();
		// And what the server has written since.
		assert!(
			log - moved < checkpoint::PATIENT_PAGES + checkpoint::PAGES,
			"{moved} of {log} pages are moved"
		);
		largest = largest.max(log);
	}
	// It begins anew each time, whatever is written in between.
	assert!(largest < checkpoint::MAX_PAGES, "{largest} pages");
}

#[test]
fn the_last_to_close_leaves_a_whole_file_and_no_log() {
	let (_scratch, path) = scratch();
	let store = open(&path, LOCK_WAIT);
	for batch in 0..10 {
		let invites: Vec<_> =
			(0..200).map(|index| sample("example.com", &format!("{batch} {index}")).into()).collect();
		store.import(&invites).unwrap();
	}
	assert!(log_size(&path) > 0);
	drop(store);
	assert!(!Path::new(&format!("{}-wal", path.display())).exists());
}
