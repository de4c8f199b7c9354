//! Commands that take invites elsewhere and bring them in: export, import, backup, restore.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufReader, BufWriter, Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use super::args;
use super::step::{Answer, Ask, Desk, Effect, Facts, PIECE, Problem, Step};
use super::text::{SECONDS, time};
use super::voice::Voice;
use crate::clock;
use crate::error::InviteError;
use crate::store::StoreError;
use crate::store::sqlite::SqliteStore;
use crate::store::sqlite::backup::{Backup, Content};
use crate::token::Digest;
use crate::transfer::{self, ExportError, ImportError, Source, Terms};

/// Between two pictures of the progress bar.
const REDRAW: u64 = 1000;

/// How long backup and restore wait for a server that writes.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// A file as it was named where prosodyctl was called: it has gone to the data directory since.
#[must_use]
pub fn absolute(file: &OsStr) -> PathBuf {
	match std::env::var_os("PWD") {
		Some(directory) if file != "-" => Path::new(&directory).join(file),
		_ => file.into(),
	}
}

/// Makes a new, empty file that only its owner may read.
///
/// # Errors
/// Why not, in a line.
pub fn create_file(path: &Path) -> Result<File, String> {
	OpenOptions::new()
		.write(true)
		.create_new(true)
		.mode(0o600)
		.open(path)
		.map_err(|error| format!("{} cannot be created: {error}", path.display()))
}

pub(super) fn export(options: args::Export, facts: &Facts) -> Step {
	let args::Export { host, to, pending, output } = options;
	if let Some(args::Destination::Prosody) = to {
		return Step::ask(Ask::ExportToBundled, move |_, answer| match answer {
			Answer::ExportToBundled(Ok(count)) => Step::printed(format!(
				"{count} pending invites of {host} are now all that the bundled module has\n"
			)),
			Answer::ExportToBundled(Err(Some(why))) => {
				Step::complaint(format!("the bundled module's store cannot be written: {why}"))
			}
			_ => Step::exit(Vec::new(), 1),
		});
	}
	// What a server prints, prosodyctl puts into the file.
	let output = output.filter(|_| facts.is_here).map(|output| absolute(&output));
	Step::ask(Ask::Import, move |desk, _| match output {
		Some(output) => export_to(desk, &output, pending),
		None => export_page(desk, pending, None),
	})
}

fn export_page(desk: &Desk<'_>, is_pending: bool, mut after: Option<Digest>) -> Step {
	let mut text = Vec::new();
	let print = |text: Vec<u8>| vec![Effect::Print(String::from_utf8_lossy(&text).into_owned())];
	loop {
		let pending_at = is_pending.then_some(desk.now);
		match transfer::export_page(desk.invites, pending_at, after.as_ref(), &mut text) {
			Ok((_, None)) => return Step::exit(print(text), 0),
			Ok((_, next)) => after = next,
			Err(error) => return refuse_export(error).after(print(text)),
		}
		if text.len() >= PIECE {
			let step = Step::ask(Ask::Nothing, move |desk, _| export_page(desk, is_pending, after));
			return step.after(print(text));
		}
	}
}

fn export_to(desk: &Desk<'_>, output: &Path, is_pending: bool) -> Step {
	let file = match create_file(output) {
		Ok(file) => file,
		Err(line) => return Step::complaint(line),
	};
	let mut out = BufWriter::with_capacity(PIECE, file);
	let written = transfer::export(desk.invites, is_pending.then_some(desk.now), &mut out)
		.and_then(|count| Ok(out.flush().map(|()| count)?));
	match written {
		Ok(count) => {
			let host = desk.invites.host();
			Step::printed(format!("{count} invites of {host} are in {}\n", output.display()))
		}
		Err(error) => {
			// It is not complete; if it stays, the failure is what matters.
			let _ = fs::remove_file(output);
			refuse_export(error)
		}
	}
}

fn refuse_export(error: ExportError) -> Step {
	match error {
		ExportError::Invite(error) => Voice::Prosodyctl.refuse(error.into(), ""),
		ExportError::Unwritable(_) => Step::complaint(error.to_string()),
	}
}

pub(super) fn import(desk: &Desk<'_>, import: &args::Import, facts: &Facts) -> Step {
	let mut source = match open(&import.file, facts.input.clone()) {
		Ok(source) => source,
		Err(error) => return Step::complaint(format!("it cannot be read: {error}")),
	};
	let bar = if facts.is_here { ProgressBar::new(0) } else { ProgressBar::hidden() };
	if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {eta}") {
		bar.set_style(style);
	}
	let progress = |done: u64, total: u64| {
		if done.is_multiple_of(REDRAW) || done == total {
			bar.set_length(total);
			bar.set_position(done);
		}
	};
	let terms = Terms { prepare: desk.prepare, is_shared: facts.is_here, progress: &progress };
	let done = transfer::import(desk.invites, &mut *source, &terms);
	bar.finish_and_clear();
	match done {
		Ok(done) => {
			let line = format!(
				"{} invites imported for {}, {} were known\n",
				done.imported,
				desk.invites.host(),
				done.known
			);
			Step::printed(line).after(done.remarks.into_iter().map(Effect::Complain).collect())
		}
		Err(ImportError::Wrong(lines)) => {
			Step::complaint("nothing was imported").after(lines.into_iter().map(Effect::Complain).collect())
		}
		Err(ImportError::Invite(error)) => Voice::Prosodyctl.refuse(error.into(), ""),
		Err(error @ ImportError::Unreadable(_)) => Step::complaint(error.to_string()),
	}
}

/// The file, or what prosodyctl has read of it for the server that does this.
fn open(file: &OsString, input: Option<Vec<u8>>) -> io::Result<Box<dyn Source>> {
	if let Some(input) = input {
		return Ok(Box::new(Cursor::new(input)));
	}
	if file != "-" {
		return Ok(Box::new(BufReader::new(File::open(absolute(file))?)));
	}
	// It is read twice. The file has no name, so nobody else can open it, and it goes with this process.
	let mut spool = tempfile::tempfile()?;
	io::copy(&mut io::stdin().lock(), &mut spool)?;
	io::Seek::rewind(&mut spool)?;
	Ok(Box::new(BufReader::new(spool)))
}

/// The invites of these hosts are in no database of ours.
fn elsewhere(facts: &Facts) -> Vec<Effect> {
	let line = |(host, storage): &(String, String)| {
		let place = match storage.as_str() {
			"memory" => "in the memory of the server",
			"postgresql" => "in PostgreSQL, which pg_dump copies",
			"prosody" => "in Prosody's own storage, and are copied with that",
			_ => return None,
		};
		Some(Effect::Complain(format!("the invites of {host} are {place}")))
	};
	facts.storages.iter().filter_map(line).collect()
}

fn database(facts: &Facts) -> Arc<SqliteStore> {
	SqliteStore::shared(&facts.database, LOCK_WAIT)
}

fn failed(error: StoreError) -> Step {
	Voice::Prosodyctl.refuse(Problem::from(InviteError::from(error)), "")
}

pub(super) fn back_up(backup: &args::Backup, facts: &Facts) -> Step {
	let to = absolute(&backup.file);
	let step = match database(facts).back_up(&to) {
		Ok(()) => Step::printed(format!("the database of all hosts is copied to {}\n", to.display())),
		Err(error) => failed(error),
	};
	step.after(elsewhere(facts))
}

pub(super) fn restore(restore: &args::Restore, facts: &Rc<Facts>) -> Step {
	let mut effects = elsewhere(facts);
	let from = absolute(&restore.file);
	let backup = match database(facts).read_backup(&from) {
		Ok(backup) => backup,
		Err(error) => return failed(error).after(effects),
	};
	effects.push(Effect::Print(describe(&from, &backup.content)));
	let revokes = restore.revoke_older;
	if restore.yes {
		return put_back(facts, &backup, revokes).after(effects);
	}
	let refuse = || Effect::Complain("nothing was restored".to_owned());
	if !facts.is_terminal {
		effects.push(Effect::Complain(
			"say --yes, and --revoke-older if nothing in the backup is to be good any more".to_owned(),
		));
		effects.push(refuse());
		return Step::exit(effects, 1);
	}
	let prompt = if revokes {
		"Type yes to restore it, and revoke what is open in it: "
	} else {
		"Type yes to restore it, or revoke to restore it and revoke what is open in it: "
	};
	let facts = Rc::clone(facts);
	let step = Step::ask_alone(Ask::Line(prompt), move |answer| match answer {
		Answer::Line(Some(line)) if line == "revoke" => put_back(&facts, &backup, true),
		Answer::Line(Some(line)) if line == "yes" => put_back(&facts, &backup, revokes),
		_ => Step::exit(vec![refuse()], 1),
	});
	step.after(effects)
}

fn describe(from: &Path, content: &Content) -> String {
	let newest = content.newest.map_or_else(|| "no time at all".to_owned(), |newest| time(newest, SECONDS));
	let pending = content.pending;
	let would_live_again = match (content.would_live_again, content.would_be_gone) {
		(Some(again), gone) => format!(
			"{again} of them were used, revoked or have expired here since and would be good again.\n\
			 {} invites that are here now are not in it and would be gone.\n",
			gone.unwrap_or_default()
		),
		(None, _) => "Those that were used since would be good again; the present database cannot be read.\n"
			.to_owned(),
	};
	let from = from.display();
	format!("{from} knows of nothing after {newest}. {pending} invites are open in it.\n{would_live_again}")
}

fn put_back(facts: &Facts, backup: &Backup, revokes: bool) -> Step {
	match database(facts).restore(backup, revokes, clock::now()) {
		Ok(()) if revokes => Step::printed("restored; nothing in it is good any more\n".to_owned()),
		Ok(()) => Step::printed("restored\n".to_owned()),
		Err(error) => failed(error),
	}
}
