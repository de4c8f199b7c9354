//! What a command is made of: steps, their effects, and the questions between them.

use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use super::health::Configuration;
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::Invite;
use crate::invites::Invites;
use crate::policy::{Inviter, Policy};
use crate::redemption::Account;
use crate::store::Bundled;
use crate::token::{Digest, Token};

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
	/// The account of that username, for a command that [makes](super::args::Command::is_about_account) an invite for it.
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

	/// An exit after which the shell says this.
	pub(super) fn say(effects: Vec<Effect>, code: u8, message: impl Into<String>) -> Self {
		Self { effects, next: Next::Exit(Exit { code, message: Some(message.into()) }) }
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
