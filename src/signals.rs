//! Threads that no signal reaches.
//!
//! The kernel gives a signal for a process to any of its threads that does not block it, and Prosody 0.12 handles it right
//! there: in a thread of ours, beside the one that runs Lua, whose state it changes.

use std::io;
use std::thread::{Builder, JoinHandle};

use nix::sys::signal::{SigSet, SigmaskHow};

/// As long as it lives, all signals are blocked in the thread that made it, and in the threads that this one starts.
pub(crate) struct Blocked(SigSet);

impl Blocked {
	pub(crate) fn new() -> io::Result<Self> {
		Ok(Self(SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK)?))
	}
}

impl Drop for Blocked {
	fn drop(&mut self) {
		// It was the mask before, so there is nothing wrong with it. What came meanwhile is handled now.
		let _ = self.0.thread_set_mask();
	}
}

/// Starts a thread. From its first moment on it blocks all signals: it inherits the mask of the one that starts it.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
	let _blocked = Blocked::new()?;
	#[expect(clippy::disallowed_methods, reason = "this is the place")]
	Builder::new().name(name.to_owned()).spawn(work)
}

/// The same for the threads that a future starts. While it waits, signals are handled as ever.
#[cfg(feature = "postgres")]
pub(crate) async fn blocked_in<F: Future>(work: F) -> F::Output {
	let mut work = std::pin::pin!(work);
	std::future::poll_fn(|context| {
		let _blocked = Blocked::new();
		work.as_mut().poll(context)
	})
	.await
}

#[cfg(test)]
mod tests {
	use std::sync::mpsc::channel;

	use super::*;

	#[test]
	fn a_thread_blocks_all_signals_and_the_one_that_starts_it_none_that_it_did_not() {
		let before = SigSet::thread_get_mask().unwrap();
		let (send, receive) = channel();
		let thread = spawn("test", move || {
			// What it starts itself does so, too.
			let inner = spawn("inner", move || send.send(SigSet::thread_get_mask().unwrap()).unwrap());
			inner.unwrap().join().unwrap();
			assert_eq!(SigSet::thread_get_mask().unwrap(), blockable());
		});
		thread.unwrap().join().unwrap();
		assert_eq!(receive.recv().unwrap(), blockable());
		assert_eq!(SigSet::thread_get_mask().unwrap(), before);
	}

	/// All, as the kernel reads it.
	fn blockable() -> SigSet {
		let _blocked = Blocked::new().unwrap();
		SigSet::thread_get_mask().unwrap()
	}
}
