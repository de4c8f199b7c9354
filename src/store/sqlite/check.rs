//! What an operator wants to know of the database file.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use super::boots;
use super::connection::{SqliteStore, version};
use super::files::with_suffix;
use crate::check::Finding;
use crate::clock::Timestamp;

/// Above this the log is not folded back into the database as it should be: something reads without an end.
const LARGE_WAL: u64 = 64 << 20;

const NEWEST: &str = "SELECT max(created_at) FROM invite WHERE host = ?";

/// Faults in the file that are told; there may be thousands.
const TOLD_FAULTS: usize = 3;

impl SqliteStore {
	pub(super) fn findings(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		// What SQLite says of the whole file: one "ok", or a line for each fault.
		let looked = self.with("checking the database", |connection| {
			let mut statement = connection.prepare("PRAGMA integrity_check")?;
			let faults =
				statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()?;
			let newest = connection.query_row(NEWEST, [host], |row| row.get(0))?;
			Ok((version(connection)?, faults, newest))
		});
		let path = self.path.display();
		let mut findings = match looked {
			Ok((schema, faults, newest)) => {
				let whole = if faults.iter().eq(["ok"]) {
					Finding::ok(format!("the database {path} is whole"))
				} else {
					let told: Vec<&str> = faults.iter().take(TOLD_FAULTS).map(String::as_str).collect();
					Finding::critical(format!(
						"the database {path} is damaged, restore a backup: {}",
						told.join("; ").replace('\n', " ")
					))
				};
				vec![
					Finding::ok(format!("the database {path} can be used, with schema {schema}")),
					whole,
					Finding::of_clock(newest, now),
				]
			}
			Err(error) => vec![Finding::critical(error.to_string())],
		};
		findings.extend(self.look_at_files());
		findings
	}

	fn look_at_files(&self) -> Vec<Finding> {
		let Ok(directory) = self.path.parent().unwrap_or(Path::new(".")).metadata() else {
			return Vec::new();
		};
		let wal = with_suffix(&self.path, "-wal");
		let mut findings = Vec::new();
		for file in [&self.path, &wal, &with_suffix(&self.path, "-shm")] {
			let Ok(metadata) = file.metadata() else { continue };
			let (path, mode) = (file.display(), metadata.permissions().mode() & 0o777);
			if metadata.uid() != directory.uid() {
				findings.push(Finding::warning(format!(
					"{path} belongs to the user {}, its directory to the user {}: give both to the user that Prosody runs \
					 as (chown)",
					metadata.uid(),
					directory.uid()
				)));
			}
			if mode & 0o077 != 0 {
				findings.push(Finding::warning(format!(
					"{path} can be opened by others than its owner, mode {mode:03o}: chmod 600"
				)));
			}
		}
		if findings.is_empty() {
			findings.push(Finding::ok("the files of the database are for their owner alone"));
		}
		if !boots::can_lock(&self.path).unwrap_or(false) {
			findings.push(Finding::warning(format!(
				"no file beside {} can be locked, so that after a crash nobody can tell for a minute whether a registration \
				 is still under way",
				self.path.display()
			)));
		}
		let wal_size = wal.metadata().map_or(0, |metadata| metadata.len());
		findings.push(if wal_size > LARGE_WAL {
			Finding::warning(format!(
				"{} has {} MiB: does a backup or another program keep the database open?",
				wal.display(),
				wal_size >> 20
			))
		} else {
			Finding::ok(format!("the write-ahead log has {} KiB", wal_size >> 10))
		});
		findings
	}
}
