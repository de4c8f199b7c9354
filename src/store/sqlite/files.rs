//! The files of a database: whose they are, and whether those that are open still have their names.
//!
//! A file keeps working for whoever has it open after it was deleted or replaced, so what is written to it is lost
//! without an error. Of the three files each is enough for that: others no longer read this -wal, or no longer see
//! the locks and the index in this -shm.

use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use rusqlite::Connection;

/// Creates a file for its owner alone, which is that of its directory, and not whoever runs prosodyctl as root. SQLite
/// gives a -wal, a -shm and a -journal that it creates beside it to the same one.
pub(super) fn create(path: &Path) -> io::Result<File> {
	let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
	give_to_owner_of(directory_of(path), &file)?;
	Ok(file)
}

/// Gives a file that was just created to the owner of its directory. By its descriptor: under its name, somebody else's
/// file may lie by now.
pub(super) fn give_to_owner_of(directory: &Path, file: &File) -> io::Result<()> {
	let (directory, metadata) = (directory.metadata()?, file.metadata()?);
	if metadata.uid() == directory.uid() {
		return Ok(());
	}
	match fchown(file, Some(directory.uid()), Some(directory.gid())) {
		// Only root can, and need not be able to on a network's file system; `check` tells whose it is.
		Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
		done => done,
	}
}

pub(super) fn directory_of(path: &Path) -> &Path {
	path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

pub(super) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
	let mut name = path.as_os_str().to_owned();
	name.push(suffix);
	name.into()
}

/// The files that a connection has open.
#[derive(Debug)]
pub(super) struct Files {
	database: OpenFile,
	log: OpenFile,
	index: OpenFile,
}

#[derive(Debug)]
struct OpenFile {
	path: PathBuf,
	/// Device and inode. They are nobody else's as long as it is open.
	id: (u64, u64),
	/// As it was when it was last looked at.
	length: AtomicU64,
}

impl Files {
	/// Those of a connection that was just opened, and has read.
	pub(super) fn of(path: &Path) -> io::Result<Self> {
		// SQLite follows links, and puts the others beside the file itself.
		let beside = path.canonicalize()?;
		Ok(Self {
			database: OpenFile::new(path.to_owned())?,
			log: OpenFile::new(with_suffix(&beside, "-wal"))?,
			index: OpenFile::new(with_suffix(&beside, "-shm"))?,
		})
	}

	/// Whether all of them still have their names.
	pub(super) fn are_there(&self) -> bool {
		[&self.database, &self.log, &self.index].into_iter().all(OpenFile::is_there)
	}

	/// When the log was written to last. Between two looks at which this differs, somebody has had the lock.
	pub(super) fn log_written(&self) -> Option<SystemTime> {
		self.log.path.metadata().and_then(|log| log.modified()).ok()
	}

	/// The path of one that was deleted, replaced or cut off.
	pub(super) fn lost(&self, connection: &Connection) -> Option<&Path> {
		// SQLite, too, makes the first two shorter at times, but never shorter than what they hold by its own account.
		let is_cut_off = |length| length == 0 || database_length(connection).is_none_or(|held| length < held);
		self.database
			.lost(is_cut_off)
			.or_else(|| self.log.lost(|length| log_length(connection).is_none_or(|held| length < held)))
			.or_else(|| self.index.lost(|_| true))
	}

	/// Whether the log is to be moved into the database that is open before both are closed, and nobody else can have
	/// written to another log since. Without a name, what is in it would be gone. Beside another database, it would be
	/// taken for that one's; and the one that is open may still be somewhere.
	pub(super) fn must_save_log(&self) -> bool {
		let is_apart = !(self.database.is_there() && self.log.is_there());
		let is_index_ours = self.index.is_there();
		let is_log_empty = || self.log.path.metadata().is_ok_and(|log| log.len() == 0);
		is_apart
			&& (is_index_ours || self.index.is_gone())
			&& (self.log.is_there() || self.log.is_gone() || is_index_ours && is_log_empty())
	}
}

impl OpenFile {
	fn new(path: PathBuf) -> io::Result<Self> {
		let metadata = path.metadata()?;
		Ok(Self { path, id: id(&metadata), length: AtomicU64::new(metadata.len()) })
	}

	/// The file, if it still has its name.
	fn look(&self) -> Option<Metadata> {
		self.path.metadata().ok().filter(|metadata| id(metadata) == self.id)
	}

	fn is_there(&self) -> bool {
		self.look().is_some()
	}

	/// Whether nothing has its name.
	fn is_gone(&self) -> bool {
		matches!(self.path.metadata(), Err(error) if error.kind() == io::ErrorKind::NotFound)
	}

	/// Its path, if it has not its name any more, or is shorter than it was and `is_cut_off` says so of its length.
	fn lost(&self, is_cut_off: impl FnOnce(u64) -> bool) -> Option<&Path> {
		let Some(now) = self.look().map(|metadata| metadata.len()) else { return Some(&self.path) };
		if now < self.length.load(Ordering::Relaxed) && is_cut_off(now) {
			return Some(&self.path);
		}
		self.length.store(now, Ordering::Relaxed);
		None
	}
}

fn id(metadata: &Metadata) -> (u64, u64) {
	(metadata.dev(), metadata.ino())
}

/// Bytes of the database. After a checkpoint that made it shorter it has all of them.
fn database_length(connection: &Connection) -> Option<u64> {
	let read =
		|name| connection.pragma_query_value(None, name, |row| row.get::<_, u32>(0)).ok().map(u64::from);
	Some(read("page_count")? * read("page_size")?)
}

/// Bytes of the log that are in use.
fn log_length(connection: &Connection) -> Option<u64> {
	const HEADER: u64 = 32;
	const FRAME_HEADER: u64 = 24;
	let page_size: u32 = connection.pragma_query_value(None, "page_size", |row| row.get(0)).ok()?;
	let frames: u32 = connection.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| row.get(1)).ok()?;
	Some(if frames == 0 { 0 } else { HEADER + u64::from(frames) * (FRAME_HEADER + u64::from(page_size)) })
}
