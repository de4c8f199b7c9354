//! Taking invites out of a store and into one: one JSON object a line, an invite and its history each.
//!
//! The same invites give the same text, whatever store they come from: lines are sorted by digest, and what an object
//! holds stands in one order. See [`line`] for the object; `list_invites` of ejabberd is read as well ([`ejabberd`]).

mod ejabberd;
mod line;

use std::collections::VecDeque;
use std::io::{self, BufRead, Read, Seek, SeekFrom, Write};
use std::ops::RangeInclusive;
use std::time::Duration;

use thiserror::Error;

use crate::clock::{Stopwatch, Timestamp};
use crate::error::InviteError;
use crate::invites::Invites;
use crate::lifecycle::State;
use crate::store::Record;
use crate::token::Digest;
use line::Line;

/// A line may be so long.
const MAX_LINE: u64 = 1 << 20;

/// Lines that are told to be wrong; the others are counted.
const TOLD: usize = 10;

/// Invites in one page of an export.
const PAGE: u32 = 500;

/// How long one batch of an import may keep others from writing, on a machine that has nothing else to do. What the disk
/// adds varies, so this is less than half of the 20 ms that nobody should exceed.
const BATCH_TIME: Duration = Duration::from_millis(7);

/// Between two batches the lock is free so long. Who waits for it looks for it every millisecond.
const PAUSE: Duration = Duration::from_millis(3);

/// Invites in the first batch, which tells how many there can be in the next ones, and at least and at most in any.
const FIRST_BATCH: usize = 400;
const BATCHES: RangeInclusive<u128> = 100..=4000;

/// Batches that tell how many invites there can be in the next one: the larger the database, the fewer.
const RECENT: usize = 8;

/// Where invites come from. It is read twice: once to check, once to write.
pub trait Source: BufRead + Seek {}

impl<T: BufRead + Seek> Source for T {}

/// What an import needs to know besides.
pub struct Terms<'a> {
	/// Makes a username what it is compared as; none if nobody can have it (nodeprep).
	pub prepare: &'a dyn Fn(&str) -> Option<String>,
	/// Whether another process may want to write between two batches.
	pub is_shared: bool,
	/// Told how many invites are done of how many.
	pub progress: &'a dyn Fn(u64, u64),
}

/// What an import did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imported {
	/// Invites that were new.
	pub imported: u64,
	/// Invites whose token was known already. They stay as they are.
	pub known: u64,
	/// What an operator has to know of some of them.
	pub remarks: Vec<String>,
}

/// Why nothing, or not everything, was imported.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ImportError {
	/// What cannot be understood; nothing was written. Each begins with where it stands.
	#[error("{} lines are wrong", .0.len())]
	Wrong(Vec<String>),
	/// The source cannot be read.
	#[error("it cannot be read: {0}")]
	Unreadable(#[from] io::Error),
	/// The store failed. What was written before stays, and importing again completes it.
	#[error(transparent)]
	Invite(#[from] InviteError),
}

/// Why an export is not complete.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ExportError {
	/// The text cannot be written.
	#[error("it cannot be written: {0}")]
	Unwritable(#[from] io::Error),
	/// The store failed.
	#[error(transparent)]
	Invite(#[from] InviteError),
}

/// Writes all invites, or those alone that are good at this moment. How many those were.
///
/// # Errors
/// See [`ExportError`].
pub fn export(
	invites: &Invites,
	pending_at: Option<Timestamp>,
	out: &mut dyn Write,
) -> Result<u64, ExportError> {
	let (mut count, mut after) = (0, None);
	loop {
		let (written, next) = export_page(invites, pending_at, after.as_ref(), out)?;
		count += written;
		after = next;
		if after.is_none() {
			return Ok(count);
		}
	}
}

/// The same of those that follow `after`, a few hundred. Where to go on, unless those were the last.
///
/// # Errors
/// See [`ExportError`].
pub fn export_page(
	invites: &Invites,
	pending_at: Option<Timestamp>,
	after: Option<&Digest>,
	out: &mut dyn Write,
) -> Result<(u64, Option<Digest>), ExportError> {
	let page = invites.records(after, PAGE)?;
	let is_last = u32::try_from(page.len()).is_ok_and(|found| found < PAGE);
	let next = page.last().map(|record| record.invite.digest).filter(|_| !is_last);
	let mut count = 0;
	for record in page {
		if pending_at.is_none_or(|now| record.invite.state(now) == State::Pending) {
			serde_json::to_writer(&mut *out, &Line::from(record)).map_err(io::Error::from)?;
			out.write_all(b"\n")?;
			count += 1;
		}
	}
	Ok((count, next))
}

/// Reads all of the source, and if nothing is wrong with it, takes the invites over that are not known yet.
///
/// # Errors
/// See [`ImportError`].
pub fn import(
	invites: &Invites,
	source: &mut dyn Source,
	terms: &Terms<'_>,
) -> Result<Imported, ImportError> {
	let (mut total, mut wrong, mut done) = (0, Vec::new(), Imported::default());
	let mut unsaid: u64 = 0;
	read(source, invites.host(), terms.prepare, &mut |place, entry| {
		total += 1;
		let admitted = entry.and_then(|Entry { record, remark }| {
			invites.carries().admit_import(&record).map_err(|error| error.to_string())?;
			Ok(remark)
		});
		match admitted {
			Ok(remark) => done.remarks.extend(remark.map(|remark| format!("{place}: {remark}"))),
			Err(why) if wrong.len() < TOLD => wrong.push(format!("{place}: {why}")),
			Err(_) => unsaid += 1,
		}
		Ok(())
	})?;
	if unsaid > 0 {
		wrong.push(format!("and {unsaid} more"));
	}
	if !wrong.is_empty() {
		return Err(ImportError::Wrong(wrong));
	}

	source.seek(SeekFrom::Start(0))?;
	let mut batches = Batches::new(invites, terms);
	let mut seen = 0;
	read(source, invites.host(), terms.prepare, &mut |_, entry| {
		// What has changed since it was checked is left out, and missing from the count.
		if let Ok(Entry { record, .. }) = entry {
			seen += 1;
			done.imported += batches.add(record)?;
			(terms.progress)(seen, total);
		}
		Ok(())
	})?;
	done.imported += batches.write()?;
	done.known = seen - done.imported;
	Ok(done)
}

/// Collects invites and writes them so many at a time that nobody waits long.
struct Batches<'a> {
	invites: &'a Invites,
	terms: &'a Terms<'a>,
	batch: Vec<Record>,
	size: usize,
	/// What an invite took in each of the last batches. The fastest counts: in the others, somebody else kept the machine
	/// busy.
	recent: VecDeque<Duration>,
	/// Since the last batch.
	last: Option<Stopwatch>,
}

impl<'a> Batches<'a> {
	const fn new(invites: &'a Invites, terms: &'a Terms<'a>) -> Self {
		Self { invites, terms, batch: Vec::new(), size: FIRST_BATCH, recent: VecDeque::new(), last: None }
	}

	/// How many invites were written that were new.
	fn add(&mut self, record: Record) -> Result<u64, InviteError> {
		self.batch.push(record);
		if self.batch.len() < self.size { Ok(0) } else { self.write() }
	}

	fn write(&mut self) -> Result<u64, InviteError> {
		if let Some(last) = self.last
			&& self.terms.is_shared
		{
			std::thread::sleep(PAUSE.saturating_sub(last.elapsed()));
		}
		let stopwatch = Stopwatch::start();
		let new = self.invites.import(&self.batch)?;
		let took = stopwatch.elapsed();
		self.last = Some(Stopwatch::start());
		if self.batch.len() == self.size {
			self.recent.truncate(RECENT - 1);
			self.recent.push_front(took / u32::try_from(self.size).unwrap_or(u32::MAX));
			let fastest = self.recent.iter().min().map_or(1, Duration::as_nanos).max(1);
			let fits = (BATCH_TIME.as_nanos() / fastest).clamp(*BATCHES.start(), *BATCHES.end());
			self.size = usize::try_from(fits).unwrap_or(FIRST_BATCH);
		}
		self.batch.clear();
		Ok(u64::try_from(new).unwrap_or(u64::MAX))
	}
}

/// An invite that was read.
struct Entry {
	record: Record,
	/// What is not quite as it was where it comes from.
	remark: Option<String>,
}

impl From<Record> for Entry {
	fn from(record: Record) -> Self {
		Self { record, remark: None }
	}
}

/// Told of every invite where it stands, and what it is or why it cannot be understood.
type Visit<'a> = dyn FnMut(&str, Result<Entry, String>) -> Result<(), InviteError> + 'a;

fn read(
	source: &mut dyn Source,
	host: &str,
	prepare: &dyn Fn(&str) -> Option<String>,
	visit: &mut Visit<'_>,
) -> Result<(), ImportError> {
	if first_byte(source)? == Some(b'[') {
		return ejabberd::read(source, host, prepare, visit);
	}
	let mut bytes = Vec::new();
	for number in 1_u64.. {
		bytes.clear();
		if (&mut *source).take(MAX_LINE + 1).read_until(b'\n', &mut bytes)? == 0 {
			break;
		}
		let place = format!("line {number}");
		if u64::try_from(bytes.len()).is_ok_and(|length| length > MAX_LINE) {
			visit(&place, Err(format!("is longer than {MAX_LINE} bytes")))?;
			break;
		}
		let text = bytes.trim_ascii();
		if !text.is_empty() {
			let entry =
				Line::parse(text).and_then(|line| line.into_record(host, prepare)).map(Entry::from).or_else(
					|why| ejabberd::parse(text).map_or(Err(why), |invite| invite.into_entry(host, prepare)),
				);
			visit(&place, entry)?;
		}
	}
	Ok(())
}

/// The first byte that is no white space, left to be read.
fn first_byte(source: &mut dyn Source) -> Result<Option<u8>, io::Error> {
	loop {
		let buffer = source.fill_buf()?;
		if buffer.is_empty() {
			return Ok(None);
		}
		let blank = buffer.len() - buffer.trim_ascii_start().len();
		let first = buffer.get(blank).copied();
		if first.is_some() {
			// Line numbers count from the beginning.
			return Ok(first);
		}
		source.consume(blank);
	}
}

#[cfg(test)]
mod tests;
