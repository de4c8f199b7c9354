//! What an operator wants to know of the database.

use std::time::Duration;

use super::PostgresStore;
use crate::check::Finding;
use crate::clock::{Stopwatch, Timestamp};
use crate::store::sql::POSTGRESQL_MIGRATIONS as MIGRATIONS;

const LOOK: &str = "SELECT current_setting('server_version') AS server_version, \
	current_setting('transaction_read_only') = 'on' AS is_read_only, \
	current_setting('fsync') = 'on' AS is_durable, \
	(SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser, \
	extract(epoch FROM clock_timestamp())::BIGINT AS now";

const NEWEST: &str = "SELECT max(created_at) AS newest FROM invite WHERE host = ?1";

/// Seconds by which the clocks of servers may differ: what has expired on one is to have expired on the others.
const CLOCK_DIFFERENCE: i64 = 5;

/// Prosody serves nobody meanwhile, and a registration asks some thirty times.
const SLOW_ANSWER: Duration = Duration::from_millis(10);

impl PostgresStore {
	pub(super) fn findings(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		let looked = self.connection.call("checking the database", |wire| {
			let row = wire.query(LOOK, &[])?.swap_remove(0);
			// The fastest says how far away it is, the others how busy both sides are.
			let mut took = Duration::MAX;
			for _ in 0..5 {
				let asked = Stopwatch::start();
				wire.query(LOOK, &[])?;
				took = took.min(asked.elapsed());
			}
			let version: String = row.try_get("server_version")?;
			let found: [bool; 3] =
				[row.try_get("is_read_only")?, row.try_get("is_durable")?, row.try_get("is_superuser")?];
			let newest: Option<i64> = wire.query(NEWEST, &[host.into()])?.swap_remove(0).try_get("newest")?;
			Ok((version, found, row.try_get::<_, i64>("now")?, newest, took))
		});
		let address = self.connection.address();
		let (version, [is_read_only, is_durable, is_superuser], there, newest, took) = match looked {
			Ok(looked) => looked,
			Err(error) => return vec![Finding::critical(error.to_string())],
		};
		let mut findings = vec![if is_read_only {
			Finding::critical(format!(
				"the PostgreSQL database {address} cannot be written: is it a standby?"
			))
		} else {
			Finding::ok(format!(
				"the PostgreSQL database {address} can be used, with schema {} on PostgreSQL {version}",
				MIGRATIONS.len()
			))
		}];
		findings.push(if address.is_verified() {
			Finding::ok("the server of the database is verified, and what is said to it is encrypted")
		} else if address.is_local() {
			Finding::ok("the database is on this machine, and is talked to without TLS")
		} else {
			Finding::warning(
				"whoever listens between here and the database can read and change everything: leave sslmode=disable out",
			)
		});
		if !is_durable {
			findings.push(Finding::warning(
				"fsync is off in the database: a crash of its machine may damage it, or bring used invites back",
			));
		}
		if is_superuser {
			findings.push(Finding::warning(
				"the database is used as a superuser: a user that owns the database, or a schema prosody_invites in it, \
				 is enough",
			));
		}
		let difference = there - now;
		findings.push(if difference.abs() > CLOCK_DIFFERENCE {
			Finding::warning(format!(
				"the clock of the database is {difference} s ahead of this one: servers that share invites have to agree \
				 on the time",
			))
		} else {
			Finding::ok("the clocks of the database and of this machine agree")
		});
		findings.push(Finding::of_clock(newest, now));
		let took_ms = took.as_secs_f64() * 1000.0;
		findings.push(if took > SLOW_ANSWER {
			Finding::warning(format!(
				"the database takes {took_ms:.1} ms to answer, and Prosody serves nobody else meanwhile"
			))
		} else {
			Finding::ok(format!("the database answers in {took_ms:.1} ms"))
		});
		findings
	}
}
