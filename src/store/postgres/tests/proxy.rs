//! Between a store and its database: passes everything on, until a message comes that it waits for.

#![expect(clippy::disallowed_methods, reason = "no server is here")]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// What happens to the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
	/// It is cut before the message has gone through.
	CutBefore,
	/// The message goes through, the answer does not: the connection is cut.
	CutAfter,
	/// The message goes through, and then nothing does any more. The server never learns that the client has gone.
	Swallow,
}

/// Done when the message has come, before the connection is cut.
type Meanwhile = Box<dyn FnOnce() + Send>;

type Trap = Arc<Mutex<Option<(Vec<u8>, Fate, Meanwhile)>>>;

pub(super) struct Proxy {
	port: u16,
	trap: Trap,
	turns: Arc<Turns>,
}

/// Counts how often somebody asks who has heard the answer to what was asked before.
#[derive(Default)]
struct Turns {
	is_answered: AtomicBool,
	count: AtomicUsize,
}

impl Proxy {
	/// Runs until the process ends.
	pub(super) fn new(socket: String) -> Self {
		let listener = TcpListener::bind("127.0.0.1:0").unwrap();
		let port = listener.local_addr().unwrap().port();
		let (trap, turns) = (Trap::default(), Arc::<Turns>::default());
		let (armed, counted) = (Arc::clone(&trap), Arc::clone(&turns));
		std::thread::spawn(move || {
			for client in listener.incoming() {
				let (client, server) = (client.unwrap(), UnixStream::connect(&socket).unwrap());
				let answers = (server.try_clone().unwrap(), client.try_clone().unwrap());
				let (trap, swallows) = (Arc::clone(&armed), Arc::<AtomicBool>::default());
				let is_swallowed = Arc::clone(&swallows);
				let [asked, answered] = [(); 2].map(|()| Arc::clone(&counted));
				std::thread::spawn(move || pass_answers(answers.0, answers.1, &is_swallowed, &answered));
				std::thread::spawn(move || pass_requests(client, server, &trap, &swallows, &asked));
			}
		});
		Self { port, trap, turns }
	}

	/// The database of a URL that goes by the socket, through this.
	pub(super) fn url(&self, url: &str) -> String {
		let (_, name) = url.rsplit_once('/').unwrap();
		format!("postgresql://prosody@127.0.0.1:{}/{name}", self.port)
	}

	/// The next message that holds these bytes is the last of its connection. Others go on.
	pub(super) fn wait_for(&self, bytes: &[u8], fate: Fate) {
		self.wait_and_do(bytes, fate, || ());
	}

	/// The same, and does something meanwhile.
	pub(super) fn wait_and_do(&self, bytes: &[u8], fate: Fate, meanwhile: impl FnOnce() + Send + 'static) {
		*self.trap.lock().unwrap() = Some((bytes.to_vec(), fate, Box::new(meanwhile)));
	}

	/// How many conversations there were since this was asked last.
	pub(super) fn turns(&self) -> usize {
		self.turns.count.swap(0, Ordering::SeqCst)
	}

	/// Whether the message came.
	pub(super) fn has_struck(&self) -> bool {
		self.trap.lock().unwrap().is_none()
	}
}

fn pass_requests(
	mut client: TcpStream,
	mut server: UnixStream,
	trap: &Trap,
	swallows: &AtomicBool,
	turns: &Turns,
) {
	let mut buffer = [0; 8192];
	while let Ok(length @ 1..) = client.read(&mut buffer) {
		if turns.is_answered.swap(false, Ordering::SeqCst) {
			turns.count.fetch_add(1, Ordering::SeqCst);
		}
		let message = &buffer[..length];
		let struck = trap
			.lock()
			.unwrap()
			.take_if(|(bytes, ..)| message.windows(bytes.len()).any(|window| window == bytes));
		let fate = struck.map(|(_, fate, meanwhile)| {
			meanwhile();
			fate
		});
		if fate.is_some_and(|fate| fate != Fate::Swallow) {
			client.shutdown(Shutdown::Both).unwrap();
		}
		if fate == Some(Fate::Swallow) {
			swallows.store(true, Ordering::SeqCst);
			server.write_all(message).unwrap();
			while let Ok(1..) = client.read(&mut buffer) {}
			// Open as long as the thread that reads answers has its copy.
			return;
		}
		if fate != Some(Fate::CutBefore) && server.write_all(message).is_err() || fate.is_some() {
			break;
		}
	}
	// Closing ends what it was sent without looking at it; this lets it finish.
	server.shutdown(Shutdown::Write).ok();
}

fn pass_answers(mut server: UnixStream, mut client: TcpStream, swallows: &AtomicBool, turns: &Turns) {
	let (mut buffer, mut is_heard) = ([0; 8192], true);
	while let Ok(length @ 1..) = server.read(&mut buffer) {
		turns.is_answered.store(true, Ordering::SeqCst);
		// What nobody hears is read all the same: a server that cannot answer stops in the middle of what it was sent.
		if is_heard && !swallows.load(Ordering::SeqCst) {
			is_heard = client.write_all(&buffer[..length]).is_ok();
		}
	}
}
