//! Any command line is understood, or answered in one line and with an exit code; and what is understood and touches no
//! file is carried out on invites in memory to an exit code.

#![no_main]

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::rc::Rc;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use prosody_invites::invites::Invites;
use prosody_invites::operator::args::{self, Command, parse};
use prosody_invites::operator::run::begin;
use prosody_invites::operator::step::{Answer, Ask, Desk, Draft, Facts, Go, Handled, Next};
use prosody_invites::policy::Policy;
use prosody_invites::redemption::Account;
use prosody_invites::store::memory::MemoryStore;

/// A number of invites that is very large takes as many steps.
const STEPS: usize = 5;

fuzz_target!(|input: &[u8]| {
	// No argument holds a NUL: the operating system ends it there.
	let args = input.split(|byte| *byte == 0).map(|arg| OsString::from_vec(arg.to_vec()));
	match parse(args) {
		Ok(command) => carry_out(command),
		Err(args::Answer::Help(text)) => assert!(text.ends_with('\n')),
		Err(args::Answer::Misuse(line, code)) => {
			assert_eq!(code, 2);
			assert!(line.ends_with("see: prosodyctl mod_invites --help"));
		}
	}
});

fn carry_out(command: Command) {
	if matches!(
		command,
		Command::Export(_) | Command::Import(_) | Command::Backup(_) | Command::Restore(_)
	) {
		return;
	}
	let invites = Invites::new("example.com".to_owned(), Arc::new(MemoryStore::default()));
	let (policy, prepare) = (Policy::default(), |name: &str| Some(name.to_owned()));
	let desk = Desk { invites: &invites, policy: &policy, now: 1_700_000_000, prepare: &prepare };
	let username = command.username().map(str::to_owned);
	let facts = Facts { username, account: Some(Account::Active), ..Facts::default() };
	let mut step = begin(&desk, command, &Rc::new(facts));
	for _ in 0..STEPS {
		let (ask, go) = match step.next {
			Next::Exit(exit) => return assert!(exit.code <= 2 && exit.message.is_none()),
			Next::Ask(ask, go) => (ask, go),
		};
		let answer = answer(ask);
		step = match go {
			Go::OfHost(go) => go(&desk, answer),
			Go::OfServer(go) => go(answer),
		};
	}
}

fn answer(ask: Ask) -> Answer {
	match ask {
		Ask::Import => Answer::Import(true),
		Ask::Accounts(_) => Answer::Accounts(HashMap::new()),
		Ask::Inviter(..) => Answer::Inviter(Account::Active, None),
		Ask::Handlers(drafts) => {
			let handled = |draft: Draft| Handled { invite: draft.invite, restored: Vec::new() };
			Answer::Handlers(Ok(drafts.into_iter().map(handled).collect()))
		}
		Ask::Why(..) => Answer::Why(Ok(())),
		Ask::Line(_) => Answer::Line(Some("yes".to_owned())),
		Ask::Nothing | Ask::BundledTokens(_) | Ask::ExportToBundled => Answer::Nothing,
	}
}
