//! Moves commits from the write-ahead log into the database file, beside the thread that made them, and waits for the
//! locks of others.
//!
//! By default SQLite does this within whichever commit makes the log long, and waits for the disk there: tens of
//! milliseconds in which a Prosody serves nobody. Here such a commit wakes a thread with a connection of its own, which
//! does the work while others go on reading and writing. The thread is started when there is work for the first time, so
//! never before Prosody has forked, and ends before the connection that it works for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OpenFlags};

use super::files::Files;
use crate::clock::Stopwatch;
use crate::signals;

/// Pages that the log may be ahead of the database: SQLite's own default.
pub(super) const PAGES: i32 = 1000;

/// So long nobody may have written before pages are moved: two that wait for one disk wait longer.
const LULL: Duration = Duration::from_millis(10);

/// So far ahead, they are moved whoever writes.
const BUSY_PAGES: i32 = 4 * PAGES;

/// A patient process empties a log of so many pages, and that only now and then: it is a flush or two each time.
pub(super) const PATIENT_PAGES: i32 = 2 * PAGES;

/// While commits keep coming the log cannot begin anew. One that makes it so long waits until the database has all of it:
/// longer than an importing process lets it become, or the server would do that one's work.
pub(super) const MAX_PAGES: i32 = 8 * PAGES;

/// Between two looks for a lock. SQLite's own handler sleeps up to 100 ms between two, and through every pause that a
/// busy neighbour makes for others.
const LOOK_INTERVAL: Duration = Duration::from_millis(1);

/// A lock is waited for anew whenever somebody else has had it meanwhile, up to so often: those who have it for a moment each
/// are no reason to give up.
const TURNS: u32 = 10;

/// Who waits so long for a lock serves nobody meanwhile (prosodyctl).
const PATIENCE: Duration = Duration::from_secs(1);

/// How long others are kept out, at most, while a patient process waits for those who read.
const EMPTYING: Duration = Duration::from_millis(10);

/// Looks after the log of one connection. To be dropped before it.
#[derive(Debug)]
pub(super) struct Checkpointer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
	path: PathBuf,
	/// Those of the connection.
	files: Arc<Files>,
	/// Whether nobody waits for this process but for what it writes: it then keeps the log short for the others.
	is_patient: bool,
	/// While it keeps others out to do so.
	is_emptying: AtomicBool,
	/// Whether the last wait for the lock was in vain, and nobody has written anything meanwhile.
	is_stuck: AtomicBool,
	log: Log,
	worker: Mutex<Option<Worker>>,
	/// Held while the thread moves pages: two cannot do that at once.
	moving: Mutex<()>,
}

/// How long the log is, and what is done about it.
#[derive(Debug, Default)]
struct Log {
	/// Pages, and how many of them the database has.
	pages: AtomicI32,
	done: AtomicI32,
	/// Counts commits, so that the thread sees whether there were any.
	commits: AtomicU32,
	/// Whether the thread has work. To wake it at every commit would cost each a tenth more.
	is_awake: AtomicBool,
}

#[derive(Debug)]
struct Worker {
	wake: SyncSender<()>,
	thread: JoinHandle<()>,
}

impl Checkpointer {
	/// Takes over from SQLite, for the commits of this connection to the database at `path`, and for its waits.
	pub(super) fn attach(
		connection: &mut Connection,
		path: &Path,
		files: Arc<Files>,
		lock_wait: Duration,
	) -> Result<Self, rusqlite::Error> {
		let shared = Arc::new(Shared {
			path: path.to_owned(),
			files,
			is_patient: lock_wait >= PATIENCE,
			is_emptying: AtomicBool::new(false),
			is_stuck: AtomicBool::new(false),
			log: Log::default(),
			worker: Mutex::default(),
			moving: Mutex::default(),
		});
		let hooked = Arc::clone(&shared);
		connection.wal_hook(Some(move |wal: &mut Wal, pages| {
			hooked.committed(wal, pages);
			// The commit is done, whatever became of this.
			Ok(())
		}))?;
		let waiting = Arc::clone(&shared);
		let (mut begun, mut since, mut written, mut turns) =
			(Stopwatch::start(), Stopwatch::start(), None, 0);
		connection.busy_handler(Some(move |looks| {
			if looks == 0 {
				(begun, since, written, turns) =
					(Stopwatch::start(), Stopwatch::start(), waiting.files.log_written(), 0);
			}
			std::thread::sleep(LOOK_INTERVAL);
			if waiting.is_emptying.load(Ordering::Relaxed) {
				return begun.elapsed() < EMPTYING;
			}
			let now = waiting.files.log_written();
			if now != written {
				// Several want it, and it goes from hand to hand.
				(since, written, turns) = (Stopwatch::start(), now, turns + 1);
			}
			let may_wait = since.elapsed() < lock_wait && begun.elapsed() < lock_wait * TURNS;
			waiting.is_stuck.store(!may_wait && turns == 0, Ordering::Relaxed);
			may_wait
		}))?;
		Ok(Self(shared))
	}
}

impl Checkpointer {
	/// Whether the connection waited for a lock in vain that somebody holds and does nothing with.
	pub(super) fn is_stuck(&self) -> bool {
		self.0.is_stuck.load(Ordering::Relaxed)
	}
}

impl Drop for Checkpointer {
	fn drop(&mut self) {
		let worker = self.0.worker.lock().unwrap_or_else(PoisonError::into_inner).take();
		if let Some(Worker { wake, thread }) = worker {
			drop(wake);
			// It ends by itself. Had it panicked, its commits would be in the log still, where they are safe.
			let _ = thread.join();
		}
	}
}

impl Shared {
	/// Called after each commit with the pages that the log then has.
	fn committed(self: &Arc<Self>, wal: &mut Wal, pages: i32) {
		if self.is_patient {
			if pages >= PATIENT_PAGES {
				empty(wal, &self.is_emptying);
			}
			return;
		}
		self.log.committed(pages);
		if pages >= MAX_PAGES {
			let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
			if wal.checkpoint().is_ok() {
				self.log.moved(pages);
			}
			return;
		}
		if !self.log.needs_the_thread() {
			return;
		}
		let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
		if worker.is_none() {
			let (wake, woken) = sync_channel(1);
			let shared = Arc::clone(self);
			let thread = signals::spawn("invites-log", move || shared.work(&woken));
			// Without the thread the log grows, and the next commit tries again.
			*worker = thread.ok().map(|thread| Worker { wake, thread });
		}
		if worker.as_ref().is_none_or(|worker| worker.wake.try_send(()).is_err()) {
			self.log.is_awake.store(false, Ordering::Relaxed);
		}
	}

	fn work(&self, woken: &Receiver<()>) {
		let mut connection = None;
		while woken.recv().is_ok() {
			loop {
				let seen = self.log.commits.load(Ordering::Relaxed);
				// Who closes the connection has moved what there was.
				if woken.recv_timeout(LULL) == Err(RecvTimeoutError::Disconnected) {
					return;
				}
				if self.log.commits.load(Ordering::Relaxed) == seen || self.log.ahead() >= BUSY_PAGES {
					break;
				}
			}
			// What fails is tried again after a later commit; a disk that is broken shows in the commits themselves.
			if self.checkpoint(&mut connection).is_err() {
				connection = None;
			}
			self.log.is_awake.store(false, Ordering::Relaxed);
		}
	}

	fn checkpoint(&self, connection: &mut Option<Connection>) -> Result<(), rusqlite::Error> {
		if !self.files.are_there() {
			// What the log's index says may not be so any more. The next change sees it, too, and says so.
			return Ok(());
		}
		let connection = match connection {
			Some(connection) => connection,
			none => {
				let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
				let opened = Connection::open_with_flags(&self.path, flags)?;
				// Whether there is anything to be done then, whoever closes the other connection knows.
				opened.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
				none.insert(opened)
			}
		};
		let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
		let done = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2))?;
		self.log.moved(done);
		Ok(())
	}
}

impl Log {
	/// After a commit the log has so many pages.
	fn committed(&self, pages: i32) {
		if pages < self.pages.swap(pages, Ordering::Relaxed) {
			// It has begun anew.
			self.done.store(0, Ordering::Relaxed);
		}
		self.commits.fetch_add(1, Ordering::Relaxed);
	}

	/// The database has so many pages of the log that the caller saw.
	fn moved(&self, pages: i32) {
		// Others may have written more to it than this process knows of.
		self.done.store(pages.min(self.pages.load(Ordering::Relaxed)), Ordering::Relaxed);
	}

	/// Pages that it is ahead of the database.
	fn ahead(&self) -> i32 {
		let (pages, done) = (self.pages.load(Ordering::Relaxed), self.done.load(Ordering::Relaxed));
		// It may have begun anew while the thread was about to say what it had moved.
		if pages < done { pages } else { pages - done }
	}

	/// Whether the thread is to be woken: once, until it has done its work.
	fn needs_the_thread(&self) -> bool {
		self.ahead() >= PAGES && !self.is_awake.swap(true, Ordering::Relaxed)
	}
}

/// Moves all that there is, and lets the next commit begin the log anew. Most is moved beside the others' commits; only
/// for what they write meanwhile are they kept out, else the log would never be empty.
fn empty(wal: &mut Wal, is_emptying: &AtomicBool) {
	if wal.checkpoint().is_ok() {
		is_emptying.store(true, Ordering::Relaxed);
		// Who reads for long may keep it from beginning anew: then a later commit will.
		let _ = wal.checkpoint_v2(CheckpointMode::RESTART);
		is_emptying.store(false, Ordering::Relaxed);
	}
}

#[cfg(test)]
mod tests {
	use super::*;

	#[test]
	fn the_thread_is_woken_once_however_many_commits_follow() {
		let log = Log::default();
		log.committed(PAGES - 1);
		assert!(!log.needs_the_thread(), "not far enough ahead");
		let wakes = |pages| {
			log.committed(pages);
			log.needs_the_thread()
		};
		assert_eq!((PAGES..PAGES + 100).filter(|pages| wakes(*pages)).count(), 1);
		log.moved(PAGES + 99);
		log.is_awake.store(false, Ordering::Relaxed);
		assert!(!wakes(PAGES + 100), "there is nothing to do");
		assert!(wakes(2 * PAGES + 100), "there is again");
	}

	#[test]
	fn a_log_that_began_anew_counts_from_its_beginning_however_long_the_last_one_was() {
		let log = Log::default();
		log.committed(3 * PAGES);
		log.moved(2 * PAGES);
		log.committed(10);
		assert_eq!(log.ahead(), 10);
		log.committed(4 * PAGES);
		assert_eq!(log.ahead(), 4 * PAGES);
	}

	#[test]
	fn what_another_process_wrote_to_the_log_and_was_moved_wakes_nobody() {
		let log = Log::default();
		log.committed(PAGES);
		log.moved(PAGES + 200);
		log.committed(PAGES + 205);
		assert!(!log.needs_the_thread(), "{} pages", log.ahead());
	}
}
