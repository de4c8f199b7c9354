//! Two processes with several threads each redeem the same ten thousand invites from one database.

#![expect(
	clippy::unwrap_used,
	clippy::print_stdout,
	reason = "these are tests; clippy knows only functions that say so"
)]

use std::collections::HashSet;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use prosody_invites::attempts::Attempt;
use prosody_invites::clock;
use prosody_invites::error::InviteError;
use prosody_invites::invite::Type;
use prosody_invites::invites::{Invites, Request};
use prosody_invites::redemption::Purpose;
#[cfg(feature = "postgres")]
use prosody_invites::store::postgres::PostgresStore;
use prosody_invites::store::sqlite::SqliteStore;
use prosody_invites::token::Digest;

#[cfg(feature = "postgres")]
mod postgres;

const INVITES: usize = 10_000;
const PROCESSES: usize = 2;
const THREADS: usize = 8;

/// Each has a connection of its own there, and every refusal is a conversation of its own.
const POSTGRESQL_THREADS: usize = 2;

/// Says to this test binary that it is one of the processes, and where the database is: a file, or a URL.
const DATABASE: &str = "RACE_DATABASE";

const POSTGRESQL: &str = "postgresql:";

fn open(database: &str, lock_wait: Duration) -> Invites {
	let host = "example.com".to_owned();
	#[cfg(feature = "postgres")]
	if database.starts_with(POSTGRESQL) {
		// A connection for each caller, so that threads meet in the database. None of them gives up: nobody would know
		// whose use it was if the answer to a commit came too late.
		let store = PostgresStore::new(database, Duration::from_secs(60)).unwrap();
		return Invites::new(host, std::sync::Arc::new(store));
	}
	Invites::new(host, SqliteStore::shared(Path::new(database), lock_wait))
}

fn digests(invites: &Invites) -> Vec<Digest> {
	let (mut digests, mut after) = (Vec::new(), None);
	loop {
		let (page, next) = invites.pending(after.as_ref(), 1000, clock::now()).unwrap();
		digests.extend(page.iter().map(|invite| invite.digest));
		let Some(next) = next else { return digests };
		after = Some(next);
	}
}

/// One of the processes: prints each invite that it redeemed, and how often it found the database locked.
#[test]
fn a_process_that_takes_part() {
	let Ok(database) = std::env::var(DATABASE) else { return };
	// A server's patience, so that giving up and trying again happens too.
	let open = || open(&database, Duration::from_millis(500));
	let digests = digests(&open());
	let count = if database.starts_with(POSTGRESQL) { POSTGRESQL_THREADS } else { THREADS };
	std::thread::scope(|threads| {
		for thread in 0..count {
			let (open, digests) = (&open, &digests);
			threads.spawn(move || {
				let invites = open();
				// Each begins elsewhere, so that they meet all the time.
				for offset in 0..digests.len() {
					let digest = digests[(offset + thread * digests.len() / count) % digests.len()];
					let attempt =
						Attempt { digest, purpose: Purpose::Account, invitee: None, depends_on: vec![] };
					loop {
						match invites.redeem_at_once(attempt.clone(), None, clock::now()) {
							Ok(_) => println!("redeemed {}", digest.id()),
							Err(InviteError::TokenUsed) => (),
							Err(InviteError::Store(_)) => {
								println!("locked");
								continue;
							}
							Err(error) => panic!("{error}"),
						}
						break;
					}
				}
			});
		}
	});
}

fn each_invite_is_redeemed_once_and_none_is_lost(database: &str) {
	let invites = open(database, Duration::from_secs(10));
	for _ in 0..INVITES {
		let request = Request {
			invite_type: Type::Register,
			username: None,
			is_reset: false,
			account: None,
			allow_registration: true,
			ttl: None,
			max_uses: Some(1),
		};
		let (invite, _) = invites.prepare(request, clock::now()).unwrap();
		invites.save(&invite).unwrap();
	}
	let processes: Vec<_> = (0..PROCESSES)
		.map(|_| {
			Command::new(std::env::current_exe().unwrap())
				.args(["--exact", "a_process_that_takes_part", "--nocapture"])
				.env(DATABASE, database)
				.stdout(Stdio::piped())
				.spawn()
				.unwrap()
		})
		.collect();
	let (mut redeemed, mut locked) = (Vec::new(), 0);
	for process in processes {
		let output = process.wait_with_output().unwrap();
		assert!(output.status.success());
		for line in String::from_utf8(output.stdout).unwrap().lines() {
			if let Some(id) = line.strip_prefix("redeemed ") {
				redeemed.push(id.to_owned());
			}
			locked += usize::from(line == "locked");
		}
	}
	println!("{} redeemed, {locked} attempts gave up waiting for a lock and were made again", redeemed.len());
	assert_eq!(redeemed.len(), INVITES);
	assert_eq!(redeemed.into_iter().collect::<HashSet<_>>().len(), INVITES);
	assert!(digests(&invites).is_empty());
}

#[test]
fn processes_and_threads_race_for_a_file() {
	let shared_memory = Path::new("/dev/shm");
	let scratch =
		tempfile::tempdir_in(if shared_memory.is_dir() { shared_memory } else { Path::new("/tmp") }).unwrap();
	let path = scratch.path().join("invites.sqlite3");
	each_invite_is_redeemed_once_and_none_is_lost(path.to_str().unwrap());
}

#[cfg(feature = "postgres")]
#[test]
fn processes_and_threads_race_for_a_postgresql_database() {
	each_invite_is_redeemed_once_and_none_is_lost(&postgres::Postgres::shared().new_database());
}
