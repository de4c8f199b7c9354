//! What the parts of the library take: tokens, marshalling, and each operation of each store, beside a thousand invites.

#![expect(clippy::unwrap_used, reason = "a benchmark that cannot be set up measures nothing")]

use std::sync::Arc;

use divan::{Bencher, black_box};
use prosody_invites::attempts::Attempt;
use prosody_invites::clock::Timestamp;
use prosody_invites::invite::{Invite, Type};
use prosody_invites::invites::{Invites, Request};
use prosody_invites::redemption::Purpose;
use prosody_invites::store::memory::MemoryStore;
use prosody_invites::store::sqlite::SqliteStore;
use prosody_invites::token::{Digest, Token};
use prosody_invites::uri::invite_uri;
use prosody_invites::value::{Fields, Value};

const NOW: Timestamp = 1_700_000_000;
const STORED: usize = 1000;
const ADDITIONAL_DATA: &str =
	r#"{"groups":["reading-group"],"note":"for the people of the town library","source":"desk@example.com"}"#;

fn main() {
	divan::main();
}

#[divan::bench]
fn draw_a_token() -> Token {
	Token::generate().unwrap()
}

#[divan::bench]
fn digest_a_token(bencher: Bencher) {
	let token = Token::generate().unwrap();
	bencher.bench_local(|| black_box(&token).digest());
}

#[divan::bench]
fn write_a_link() -> String {
	invite_uri(Type::Roster, Some(black_box("juliet")), "example.com", "JKThEv7SuFn7EPQz2cW2sAsa", true)
}

#[divan::bench]
fn encode_additional_data(bencher: Bencher) {
	let value = Value::decode(ADDITIONAL_DATA).unwrap();
	bencher.bench_local(|| black_box(&value).encode().unwrap());
}

#[divan::bench]
fn decode_additional_data() -> Value {
	Value::decode(black_box(ADDITIONAL_DATA)).unwrap()
}

/// A store with [`STORED`] invites, and whatever must live as long as it.
struct Bench {
	invites: Invites,
	digests: Vec<Digest>,
	_directory: Option<tempfile::TempDir>,
}

impl Bench {
	fn of(store: &str) -> Self {
		let mut bench = if store == "memory" {
			let invites = Invites::new("example.com".to_owned(), Arc::new(MemoryStore::default()));
			Self { invites, digests: Vec::new(), _directory: None }
		} else {
			// On a disk, for a flush to be one.
			let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
			let store =
				SqliteStore::shared(&directory.path().join("invites.sqlite3"), std::time::Duration::ZERO);
			let invites = Invites::new("example.com".to_owned(), store);
			Self { invites, digests: Vec::new(), _directory: Some(directory) }
		};
		bench.digests = (0..STORED).map(|_| bench.created()).collect();
		bench
	}

	fn prepared(&self) -> Invite {
		let request = Request {
			invite_type: Type::Register,
			username: None,
			is_reset: false,
			account: None,
			allow_registration: true,
			ttl: Some(60),
			max_uses: Some(1),
		};
		let (invite, _) = self.invites.prepare(request, NOW).unwrap();
		// No two alike: what was decoded last is not decoded again.
		let data = Value::decode(&ADDITIONAL_DATA.replace("town", &invite.digest.id().to_string())).unwrap();
		Invite { fields: Fields::from_iter([(Value::text("additional_data"), data)]), ..invite }
	}

	fn created(&self) -> Digest {
		let invite = self.prepared();
		self.invites.save(&invite).unwrap();
		invite.digest
	}

	fn attempt(digest: Digest) -> Attempt {
		Attempt { digest, purpose: Purpose::Account, invitee: Some("juliet".to_owned()), depends_on: vec![] }
	}
}

const STORES: [&str; 2] = ["memory", "sqlite"];

#[divan::bench(args = STORES)]
fn create(bencher: Bencher, store: &str) {
	let bench = Bench::of(store);
	bencher
		.with_inputs(|| bench.prepared())
		.bench_local_values(|invite| bench.invites.save(&invite).unwrap());
}

#[divan::bench(args = STORES)]
fn find(bencher: Bencher, store: &str) {
	let bench = Bench::of(store);
	let mut digests = bench.digests.iter().cycle();
	bencher.bench_local(|| digests.next().map(|digest| bench.invites.find(digest).unwrap()));
}

#[divan::bench(args = STORES)]
fn find_nothing(bencher: Bencher, store: &str) {
	let bench = Bench::of(store);
	bencher.bench_local(|| {
		bench.invites.get(black_box(b"AAAAAAAAAAAAAAAAAAAAAAAA"), Purpose::Account, NOW).unwrap_err()
	});
}

#[divan::bench(args = STORES)]
fn claim_and_release(bencher: Bencher, store: &str) {
	let bench = Bench::of(store);
	bencher.bench_local(|| {
		let nonce = bench.invites.claim(Bench::attempt(bench.digests[0]), None, NOW).unwrap().unwrap();
		bench.invites.release(&nonce).unwrap()
	});
}

#[divan::bench(args = STORES)]
fn claim_and_redeem(bencher: Bencher, store: &str) {
	let bench = Bench::of(store);
	bencher.with_inputs(|| bench.created()).bench_local_values(|digest| {
		let nonce = bench.invites.claim(Bench::attempt(digest), None, NOW).unwrap().unwrap();
		bench.invites.redeem(Bench::attempt(digest), &nonce, None, NOW).unwrap()
	});
}

#[divan::bench(args = STORES)]
fn redeem_at_once(bencher: Bencher, store: &str) {
	let bench = Bench::of(store);
	bencher.with_inputs(|| bench.created()).bench_local_values(|digest| {
		bench.invites.redeem_at_once(Bench::attempt(digest), None, NOW).unwrap()
	});
}

#[divan::bench(args = STORES)]
fn revoke(bencher: Bencher, store: &str) {
	let bench = Bench::of(store);
	bencher
		.with_inputs(|| bench.created())
		.bench_local_values(|digest| bench.invites.revoke(&digest, None, None, NOW).unwrap());
}

#[divan::bench(args = STORES)]
fn list_a_page(bencher: Bencher, store: &str) {
	let bench = Bench::of(store);
	bencher.bench_local(|| bench.invites.pending(None, 500, NOW).unwrap());
}
