//! Carries commands out, step by step.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use super::args::Command;
use super::health::{self, Configuration};
use super::{changing, looking, making, moving, shell};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::Invite;
use crate::invites::Invites;
use crate::policy::{Inviter, Policy};
use crate::redemption::Account;
use crate::store::Bundled;
use crate::token::{Digest, Token};

/// Exit code of a command line that cannot be understood, as in Prosody's own commands.
pub(super) const MISUSE: u8 = 2;

/// A text is given to the caller once it has so many bytes.
pub(super) const PIECE: usize = 64 << 10;

/// What the commands of a host work on.
#[derive(Clone, Copy)]
pub struct Desk<'a> {
	/// The invites of the host.
	pub invites: &'a Invites,
	/// Who may invite how much there.
	pub policy: &'a Policy,
	/// The time.
	pub now: Timestamp,
	/// Makes a username what it is compared as; none if nobody can have it (nodeprep).
	pub prepare: &'a dyn Fn(&str) -> Option<String>,
}

/// What the caller knows before the first step.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "they have nothing to do with each other")]
pub struct Facts {
	/// The username that the command names, as it is compared; none if nobody can have it.
	pub username: Option<String>,
	/// The account of that username, for a command that [makes](Command::is_about_account) an invite for it.
	pub account: Option<Account>,
	/// Whether anybody can register in-band on the host: some links say so.
	pub is_in_band: bool,
	/// Seconds for which an invite is good unless something else is said; none: for ever.
	pub default_ttl: Option<i64>,
	/// Seconds for which history is kept; none: for ever.
	pub history_age: Option<i64>,
	/// Seconds for which history has to be kept.
	pub shortest_history: i64,
	/// Whether this Prosody has the roles of an invite as a map, not as a list.
	pub has_role_maps: bool,
	/// Whether this is the process that the operator has called, not a server that does it for another.
	pub is_here: bool,
	/// Whether somebody can be asked.
	pub is_terminal: bool,
	/// Who does it, for the history.
	pub by: String,
	/// What is to be imported, if this process cannot read it itself.
	pub input: Option<Vec<u8>>,
	/// The database of all hosts.
	pub database: PathBuf,
	/// The hosts that have invites, and where.
	pub storages: Vec<(String, String)>,
	/// What the storage of the host says of itself.
	pub storage: Vec<Finding>,
	/// What `check` looks at.
	pub configuration: Configuration,
}

/// A step of a command.
pub struct Step {
	/// What it does to the world, in this order.
	pub effects: Vec<Effect>,
	/// What comes then.
	pub next: Next,
}

/// Something that the caller does.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
	/// Prints to stdout, as it is.
	Print(String),
	/// Prints one line to stderr.
	Complain(String),
	/// Reports that the storage failed, or that a value cannot be used.
	Report(Problem),
	/// Prints a row of the shell's list: token, end, description.
	Row([String; 3]),
	/// Fires an event about an invite.
	Fire(&'static str, Box<Invite>),
	/// Begins to end, a batch at a time, what is not good any more.
	EndSoon,
	/// Logs that a handler changed a field that it must not change.
	Restored(&'static str),
}

/// What comes after a step.
pub enum Next {
	/// The command is done.
	Exit(Exit),
	/// It goes on with the answer.
	Ask(Ask, Go),
}

/// How a command ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
	/// The exit code.
	pub code: u8,
	/// What the Prosody shell says last.
	pub message: Option<String>,
}

/// What a command has to know.
pub enum Ask {
	/// Nothing: what it has printed is to be seen.
	Nothing,
	/// Takes over what is new in the store of the bundled module.
	Import,
	/// What there is to know of these local accounts.
	Accounts(Vec<String>),
	/// The account of this username; and who that is as an inviter, if there are limits.
	Inviter(String, bool),
	/// What the handlers of `invite-created` make of these invites.
	Handlers(Vec<Draft>),
	/// The tokens in the store of the bundled module, before what ended before this moment is purged.
	BundledTokens(Timestamp),
	/// Makes the store of the bundled module equal to the invites that are good now.
	ExportToBundled,
	/// Whether this invite would be accepted now, for this username if there is one.
	Why(Digest, Option<String>),
	/// What somebody types at this prompt.
	Line(&'static str),
}

/// The answer to [`Ask`], by the same names.
#[derive(Debug)]
pub enum Answer {
	/// Also where there is no answer.
	Nothing,
	/// Whether that is done.
	Import(bool),
	/// By username.
	Accounts(HashMap<String, Account>),
	/// As asked for.
	Inviter(Account, Option<Inviter>),
	/// The invites, in the same order.
	Handlers(Result<Vec<Handled>, Problem>),
	/// As asked for.
	BundledTokens(Rc<Bundled>),
	/// How many those are; or why it failed, if that is not said already.
	ExportToBundled(Result<u64, Option<String>>),
	/// Why not, if not.
	Why(Result<(), Problem>),
	/// None at the end of the input.
	Line(Option<String>),
}

/// A prepared invite.
pub struct Draft {
	/// As it is made.
	pub invite: Invite,
	/// Its token.
	pub token: Token,
}

/// An invite that handlers have seen.
#[derive(Clone, Debug)]
pub struct Handled {
	/// As they left it.
	pub invite: Invite,
	/// Fields that they must not change, and did.
	pub restored: Vec<&'static str>,
}

/// Goes on with a command.
pub enum Go {
	/// With one that is about a host.
	OfHost(Box<GoOfHost>),
	/// With one that is about the whole server.
	OfServer(Box<dyn FnOnce(Answer) -> Step>),
}

type GoOfHost = dyn FnOnce(&Desk<'_>, Answer) -> Step;

/// Why something is not done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
	/// As [`InviteError::condition`].
	pub condition: &'static str,
	/// A sentence; none if it was said already.
	pub text: Option<String>,
}

impl From<InviteError> for Problem {
	fn from(error: InviteError) -> Self {
		Self { condition: error.condition(), text: Some(error.to_string()) }
	}
}

impl Problem {
	/// The storage failed, and that was reported.
	pub(super) const REPORTED: Self = Self { condition: "internal-server-error", text: None };

	/// The condition says it all.
	pub(super) const fn of(condition: &'static str) -> Self {
		Self { condition, text: None }
	}

	/// The report of it, if an operator has to know more than its condition.
	pub(super) fn report(self) -> Option<Effect> {
		let is_reported = self.text.is_some()
			&& matches!(
				self.condition,
				"bad-request" | "internal-server-error" | "feature-not-implemented" | "misuse"
			);
		is_reported.then_some(Effect::Report(self))
	}
}

impl Step {
	pub(super) fn exit(effects: Vec<Effect>, code: u8) -> Self {
		Self { effects, next: Next::Exit(Exit { code, message: None }) }
	}

	pub(super) fn printed(text: String) -> Self {
		Self::exit(vec![Effect::Print(text)], 0)
	}

	pub(super) fn complaint(line: impl Into<String>) -> Self {
		Self::exit(vec![Effect::Complain(line.into())], 1)
	}

	pub(super) fn ask(ask: Ask, go: impl FnOnce(&Desk<'_>, Answer) -> Self + 'static) -> Self {
		Self { effects: Vec::new(), next: Next::Ask(ask, Go::OfHost(Box::new(go))) }
	}

	pub(super) fn ask_alone(ask: Ask, go: impl FnOnce(Answer) -> Self + 'static) -> Self {
		Self { effects: Vec::new(), next: Next::Ask(ask, Go::OfServer(Box::new(go))) }
	}

	/// The same after these effects.
	pub(super) fn after(mut self, mut effects: Vec<Effect>) -> Self {
		effects.append(&mut self.effects);
		Self { effects, ..self }
	}
}

/// To whom a command answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Voice {
	/// Somebody who has called prosodyctl.
	Prosodyctl,
	/// Somebody at the Prosody shell.
	Shell,
	/// Somebody there who deletes an invite: the bundled module has a sentence of its own.
	ShellDeleting,
}

impl Voice {
	/// Nothing is done with what was named so.
	pub(super) fn refuse(self, problem: Problem, named: &str) -> Step {
		match self {
			Self::ShellDeleting if problem.condition == "token-invalid" => {
				shell::exit(Vec::new(), 1, "Invitation not found")
			}
			Self::Shell | Self::ShellDeleting => shell::refuse(problem),
			Self::Prosodyctl => {
				let complaint = match problem.condition {
					"token-invalid" => Some(format!("there is no such invite: {named}")),
					"jid-malformed" => Some(format!("{named} is not a possible username")),
					"id-ambiguous" => {
						Some(format!("several invites have an id that begins with {named}: write more of it"))
					}
					_ => None,
				};
				let effects = problem.report().into_iter().chain(complaint.map(Effect::Complain));
				Step::exit(effects.collect(), 1)
			}
		}
	}
}

/// No account or invite is made or asked about: the step that says why.
pub(super) fn refuse_account(problem: Problem, jid: &str) -> Step {
	let complaint = match problem.condition {
		"conflict" => Some(format!("the account {jid} exists already")),
		"item-not-found" => Some(format!("there is no account {jid}")),
		"account-unknown" => {
			Some(format!("there is no account {jid}, or the authentication provider cannot be asked for it"))
		}
		"not-allowed" => Some(format!("the account {jid} is disabled")),
		"jid-malformed" => Some(format!("{jid} is not a possible account")),
		_ => None,
	};
	let code = if problem.condition == "jid-malformed" { MISUSE } else { 1 };
	let effects = problem.report().into_iter().chain(complaint.map(Effect::Complain));
	Step::exit(effects.collect(), code)
}

/// The invite that is named by its token, or by the beginning of its id. Where it is not known, the bundled module may have
/// it.
pub(super) fn named(
	desk: &Desk<'_>,
	voice: Voice,
	name: String,
	then: impl FnOnce(&Desk<'_>, Digest) -> Step + 'static,
) -> Step {
	match desk.invites.resolve(name.as_bytes()) {
		Ok(digest) => then(desk, digest),
		Err(InviteError::TokenInvalid) => Step::ask(Ask::Import, move |desk, answer| {
			if !matches!(answer, Answer::Import(true)) {
				// As long as its invites cannot be had, nobody can say that there is none.
				return voice.refuse(Problem::REPORTED, &name);
			}
			match desk.invites.resolve(name.as_bytes()) {
				Ok(digest) => then(desk, digest),
				Err(error) => voice.refuse(error.into(), &name),
			}
		}),
		Err(error) => voice.refuse(error.into(), &name),
	}
}

/// Begins to carry out a command that does not need the invites of a host; none for any other.
#[must_use]
pub fn begin_alone(command: &Command, facts: &Rc<Facts>) -> Option<Step> {
	match command {
		Command::Backup(options) => Some(moving::back_up(options, facts)),
		Command::Restore(options) => Some(moving::restore(options, facts)),
		Command::Check(options) => Some(health::check(options, facts)),
		_ => None,
	}
}

/// Begins to carry out a command.
#[must_use]
pub fn begin(desk: &Desk<'_>, command: Command, facts: &Rc<Facts>) -> Step {
	match command {
		Command::Generate(options) => making::generate(desk, options, facts),
		Command::List(list) => looking::list(desk, list, facts),
		Command::History(history) => looking::history(desk, history, facts),
		Command::Show(show) => looking::show(desk, show, facts),
		Command::Tree(tree) => looking::tree(desk, tree, facts),
		Command::Stats(stats) => looking::stats(&stats),
		Command::Why(why) => looking::why(desk, why, facts),
		Command::Revoke(revoke) => changing::revoke(desk, revoke, Rc::clone(facts)),
		Command::Release(release) => changing::release(desk, release, facts),
		Command::Pause(one) => changing::pause(desk, one),
		Command::Resume(one) => changing::resume(desk, one),
		Command::Extend(extend) => changing::extend(desk, extend),
		Command::Purge(purge) => changing::purge(desk, &purge, facts),
		Command::Export(options) => moving::export(options, facts),
		Command::Import(options) => moving::import(desk, &options, facts),
		Command::Backup(options) => moving::back_up(&options, facts),
		Command::Restore(options) => moving::restore(&options, facts),
		Command::Check(options) => health::check(&options, facts),
	}
}
