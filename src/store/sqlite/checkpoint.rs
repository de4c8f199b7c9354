//! Moves commits from the write-ahead log into the database file, beside the thread that made them.
//!
//! By default SQLite does this within whichever commit makes the log long, and waits for the disk there: tens of
//! milliseconds in which a Prosody serves nobody. Here such a commit wakes a thread with a connection of its own, which
//! does the work while others go on reading and writing. The thread is started when there is work for the first time, so
//! never before Prosody has forked, and ends with the connection that it works for.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::hooks::Wal;
use rusqlite::wal::CheckpointMode;
use rusqlite::{Connection, OpenFlags};

/// Pages that the log may be ahead of the database: SQLite's own default.
pub(super) const PAGES: i32 = 1000;

/// While commits keep coming the log cannot begin anew. One that makes it so long waits until the database has all of it.
pub(super) const MAX_PAGES: i32 = 4 * PAGES;

/// How often at most one commit of a patient process moves what others have written since.
const EMPTYING: usize = 4;

/// Looks after the log of one connection. To be dropped after it.
#[derive(Debug)]
pub(super) struct Checkpointer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
	path: PathBuf,
	/// Whether nobody waits for this process but for what it writes: it then keeps the log short for the others.
	is_patient: bool,
	/// Pages of the log that the database has.
	done: AtomicI32,
	worker: Mutex<Option<Worker>>,
	/// Held while the thread moves pages: two cannot do that at once.
	moving: Mutex<()>,
}

#[derive(Debug)]
struct Worker {
	wake: SyncSender<()>,
	thread: JoinHandle<()>,
}

impl Checkpointer {
	/// Takes over from SQLite, for the commits of this connection to the database at `path`.
	pub(super) fn attach(
		connection: &mut Connection,
		path: &Path,
		is_patient: bool,
	) -> Result<Self, rusqlite::Error> {
		let shared = Arc::new(Shared {
			path: path.to_owned(),
			is_patient,
			done: AtomicI32::new(0),
			worker: Mutex::default(),
			moving: Mutex::default(),
		});
		let hooked = Arc::clone(&shared);
		connection.wal_hook(Some(move |wal: &mut Wal, pages| {
			hooked.committed(wal, pages);
			// The commit is done, whatever became of this.
			Ok(())
		}))?;
		Ok(Self(shared))
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
			if pages >= PAGES {
				empty(wal);
			}
			return;
		}
		if pages >= MAX_PAGES {
			let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
			if wal.checkpoint().is_ok() {
				self.done.store(pages, Ordering::Relaxed);
			}
			return;
		}
		let done = self.done.load(Ordering::Relaxed);
		// A log that is shorter has begun anew.
		let ahead = if pages < done { pages } else { pages - done };
		if ahead < PAGES {
			return;
		}
		let mut worker = self.worker.lock().unwrap_or_else(PoisonError::into_inner);
		if worker.is_none() {
			let (wake, woken) = sync_channel(1);
			let shared = Arc::clone(self);
			let thread = std::thread::Builder::new().name("invites-log".to_owned());
			// Without the thread the log grows, and the next commit tries again.
			*worker = thread.spawn(move || shared.work(&woken)).ok().map(|thread| Worker { wake, thread });
		}
		if let Some(worker) = &*worker {
			// Full means woken already.
			let _ = worker.wake.try_send(());
		}
	}

	fn work(&self, woken: &Receiver<()>) {
		let mut connection = None;
		while woken.recv().is_ok() {
			// What fails is tried again after a later commit; a disk that is broken shows in the commits themselves.
			if self.checkpoint(&mut connection).is_err() {
				connection = None;
			}
		}
	}

	fn checkpoint(&self, connection: &mut Option<Connection>) -> Result<(), rusqlite::Error> {
		let connection = match connection {
			Some(connection) => connection,
			none => {
				let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
				none.insert(Connection::open_with_flags(&self.path, flags)?)
			}
		};
		let _moving = self.moving.lock().unwrap_or_else(PoisonError::into_inner);
		let done = connection.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |row| row.get(2))?;
		self.done.store(done, Ordering::Relaxed);
		Ok(())
	}
}

/// Moves all that there is, so that the next commit begins the log anew. What others write meanwhile is little, and soon
/// moved as well; if they are faster, the commits to come will do it.
fn empty(wal: &mut Wal) {
	for _ in 0..EMPTYING {
		if !matches!(wal.checkpoint_v2(CheckpointMode::PASSIVE), Ok((log, moved)) if moved < log) {
			return;
		}
	}
}
