//! How operators are told that something is not done.

use super::step::{Answer, Ask, Desk, Effect, Problem, Step};
use crate::error::InviteError;
use crate::token::Digest;

/// Exit code of a command line that cannot be understood, as in Prosody's own commands.
pub(super) const MISUSE: u8 = 2;

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
				Step::say(Vec::new(), 1, "Invitation not found")
			}
			Self::Shell | Self::ShellDeleting => refuse_in_shell(problem),
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

/// Whether it may be the beginning of an id.
pub(super) fn is_id(name: &str) -> bool {
	(6..=16).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_hexdigit())
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

/// What went wrong, in words for an operator; other conditions are told as they are.
fn refuse_in_shell(problem: Problem) -> Step {
	let message = match problem.condition {
		"conflict" => "There is an account with this username already",
		"item-not-found" => "There is no such account",
		"account-unknown" => {
			"There is no such account, or the authentication provider cannot be asked for it"
		}
		"not-allowed" => "The account is disabled",
		"id-ambiguous" => "Several invites have an id that begins so: write more of it",
		"jid-malformed" => "This is not a possible username",
		"bad-request" => "A value cannot be used; see the log",
		"internal-server-error" => "The invite could not be stored or read; see the log",
		"misuse" => "The command failed; see the log",
		condition => condition,
	};
	Step::say(problem.report().into_iter().collect(), 1, message)
}
