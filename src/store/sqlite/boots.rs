//! Whether the processes that have made claims live.
//!
//! Each holds an exclusive lock (`flock`) on a file of its own beside the database, for as long as it runs: the kernel
//! gives it up when the process dies, and not sooner, however long it is suspended. A lock on a copy of the file, or on
//! one that was deleted and made anew, says nothing of whoever has locked the first. So the file says which one it is, by
//! its device and inode, and where that is not so, nobody can tell.
//!
//! Nothing of it has to survive a power cut: then nobody lives, and a file that is empty or missing proves nothing.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::connection::RETRY_INTERVAL;
use super::files::{directory_of, give_to_owner_of, with_suffix};
use crate::redemption::Life;
use crate::token::Nonce;

/// Attempts to lock the file of this process. Others lock it for a moment only, to look at it or to take it away.
const ATTEMPTS: u32 = 10;

/// There is no connection that could break.
const UNKNOWN: Life = Life::Unknown { connection: 0 };

/// The file that says that this process lives.
#[derive(Debug)]
pub(super) struct Held {
	path: PathBuf,
	/// Locked for as long as it is open. A process that this one starts does not get it.
	file: File,
}

impl Held {
	/// Whether it is still the one by which others tell whether the process of this name lives.
	pub(super) fn is_of(&self, directory: &Path, boot: &Nonce) -> bool {
		self.path == path_of(directory, boot) && is_there(&self.path, &self.file)
	}
}

/// Where the files of all who use a database lie.
pub(super) fn directory(database: &Path) -> io::Result<PathBuf> {
	// As SQLite puts its own files beside the database itself.
	Ok(with_suffix(&database.canonicalize()?, "-boots"))
}

/// Makes and locks the file of a process.
pub(super) fn hold(directory: &Path, boot: &Nonce) -> io::Result<Held> {
	match DirBuilder::new().mode(0o700).create(directory) {
		Ok(()) => give_to_owner_of(directory_of(directory), &File::open(directory)?)?,
		Err(error) if error.kind() == io::ErrorKind::AlreadyExists => (),
		Err(error) => return Err(error),
	}
	let path = path_of(directory, boot);
	for _ in 0..ATTEMPTS {
		let mut file =
			OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
		match file.try_lock() {
			Ok(()) if is_there(&path, &file) => {
				file.set_len(0)?;
				file.write_all(identity(&file)?.as_bytes())?;
				return Ok(Held { path, file });
			}
			// Somebody has taken it away meanwhile.
			Ok(()) => (),
			Err(TryLockError::WouldBlock) => std::thread::sleep(RETRY_INTERVAL),
			Err(TryLockError::Error(error)) => return Err(error),
		}
	}
	Err(io::ErrorKind::WouldBlock.into())
}

/// Whether a process lives; and where it is over, its file, by whose lock that stays proved.
pub(super) fn life(directory: &Path, boot: &Nonce) -> (Life, Option<File>) {
	let Ok(mut file) = OpenOptions::new().read(true).write(true).open(path_of(directory, boot)) else {
		return (UNKNOWN, None);
	};
	// Shared, so that others can look too.
	match file.try_lock_shared() {
		Ok(()) if is_genuine(&mut file) => (Life::Over, Some(file)),
		Err(TryLockError::WouldBlock) => (Life::Alive, None),
		Ok(()) | Err(TryLockError::Error(_)) => (UNKNOWN, None),
	}
}

/// Deletes the files of processes that are over and have no claim.
pub(super) fn sweep(directory: &Path, mut has_claims: impl FnMut(&Nonce) -> bool) -> io::Result<()> {
	for entry in fs::read_dir(directory)? {
		let path = entry?.path();
		let Some(boot) = boot_of(&path).filter(|boot| !has_claims(boot)) else { continue };
		let Ok(file) = OpenOptions::new().read(true).write(true).open(&path) else { continue };
		// Who makes claims holds the lock before.
		if file.try_lock().is_ok() && is_there(&path, &file) && !has_claims(&boot) {
			fs::remove_file(&path)?;
		}
	}
	Ok(())
}

/// Whether the file system beside a database has locks that others see.
pub(super) fn can_lock(database: &Path) -> io::Result<bool> {
	let scratch = tempfile::NamedTempFile::new_in(directory_of(database))?;
	let other = scratch.reopen()?;
	Ok(scratch.as_file().try_lock().is_ok() && matches!(other.try_lock(), Err(TryLockError::WouldBlock)))
}

fn path_of(directory: &Path, boot: &Nonce) -> PathBuf {
	directory.join(boot.to_string())
}

fn boot_of(path: &Path) -> Option<Nonce> {
	Nonce::from_hex(path.file_name()?.to_str()?)
}

/// What a file says of itself while it is neither a copy nor another one of its name.
fn identity(file: &File) -> io::Result<String> {
	let metadata = file.metadata()?;
	Ok(format!("{}:{}", metadata.dev(), metadata.ino()))
}

fn is_genuine(file: &mut File) -> bool {
	let mut text = String::new();
	file.read_to_string(&mut text).is_ok() && identity(file).is_ok_and(|identity| identity == text)
}

/// Whether an open file still has its name.
fn is_there(path: &Path, file: &File) -> bool {
	let id = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
	matches!((path.metadata().map(id), file.metadata().map(id)), (Ok(named), Ok(opened)) if named == opened)
}

#[cfg(test)]
mod tests {
	use super::*;

	const BOOT: Nonce = Nonce::from_bytes([7; 16]);

	fn scratch() -> (tempfile::TempDir, PathBuf) {
		let scratch = tempfile::tempdir().unwrap();
		let directory = scratch.path().join("invites.sqlite3-boots");
		(scratch, directory)
	}

	fn look(directory: &Path) -> Life {
		life(directory, &BOOT).0
	}

	#[test]
	fn who_holds_its_file_lives_and_who_has_let_it_go_is_over() {
		let (_scratch, directory) = scratch();
		let held = hold(&directory, &BOOT).unwrap();
		assert!(held.is_of(&directory, &BOOT));
		// Closing another descriptor of the file gives no lock up.
		assert_eq!([look(&directory), look(&directory)], [Life::Alive; 2]);
		drop(held);
		let looks = [life(&directory, &BOOT), life(&directory, &BOOT)];
		assert!(
			looks.iter().all(|(life, file)| *life == Life::Over && file.is_some()),
			"two may look at once"
		);
	}

	#[test]
	fn a_missing_empty_copied_or_remade_file_proves_nothing() {
		let (_scratch, directory) = scratch();
		assert_eq!(look(&directory), UNKNOWN, "there is no directory");
		let held = hold(&directory, &BOOT).unwrap();
		let path = path_of(&directory, &BOOT);
		fs::remove_file(&path).unwrap();
		assert_eq!(look(&directory), UNKNOWN, "its file is missing");
		assert!(!held.is_of(&directory, &BOOT));
		File::create(&path).unwrap();
		assert_eq!(look(&directory), UNKNOWN, "its file is empty");
		fs::write(&path, "1:1").unwrap();
		assert_eq!(look(&directory), UNKNOWN, "it is another file's content");
		let held = hold(&directory, &BOOT).unwrap();
		let copy = directory.with_file_name("copy");
		fs::create_dir(&copy).unwrap();
		fs::copy(&path, path_of(&copy, &BOOT)).unwrap();
		assert_eq!((look(&copy), look(&directory)), (UNKNOWN, Life::Alive));
		drop(held);
	}

	#[test]
	fn nobody_else_can_look_into_the_files() {
		use std::os::unix::fs::PermissionsExt;
		let (_scratch, directory) = scratch();
		let _held = hold(&directory, &BOOT).unwrap();
		let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o777;
		assert_eq!([mode(&directory), mode(&path_of(&directory, &BOOT))], [0o700, 0o600]);
	}

	#[test]
	fn only_files_of_the_dead_that_have_no_claim_are_swept() {
		let (_scratch, directory) = scratch();
		let boots = [1, 2, 3].map(|byte| Nonce::from_bytes([byte; 16]));
		let [alive, claims, over] = boots.map(|boot| hold(&directory, &boot).unwrap());
		drop((claims, over));
		fs::write(directory.join("README"), "of somebody else").unwrap();
		sweep(&directory, |boot| *boot == boots[1]).unwrap();
		let are_there = boots.map(|boot| path_of(&directory, &boot).exists());
		assert_eq!(are_there, [true, true, false]);
		assert!(alive.is_of(&directory, &boots[0]) && directory.join("README").exists());
	}

	#[test]
	fn this_file_system_has_locks() {
		let (scratch, _) = scratch();
		assert!(can_lock(&scratch.path().join("invites.sqlite3")).unwrap());
	}
}
