//! What PostgreSQL adds to the promises that every store keeps. What it does in a running Prosody, and how it fails, is
//! tested in `spec/server/test_postgresql.py`.

use super::*;
use crate::store::conformance::{redeem_once, sample, suite};

#[path = "../../../spec/postgres.rs"]
mod server;

use server::Postgres;

/// Long enough that no test on a loaded machine runs into it by accident.
const DEADLINE: Duration = Duration::from_secs(30);

suite!(|_scratch| open(&Postgres::shared().new_database()));

fn open(url: &str) -> PostgresStore {
	PostgresStore::new(url, DEADLINE).unwrap()
}

fn problem(store: &PostgresStore) -> String {
	store.find("example.com", &Digest::of(b"x")).unwrap_err().to_string()
}
