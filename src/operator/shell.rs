//! The `invite` commands of the Prosody shell. Their output is read by programs: links stand on the line that begins with
//! "OK: ", and the columns of `list` are divided by " | ". Six of them, and their words, are those of the bundled module.

use std::collections::HashMap;

use super::args::Ttl;
use super::changing::{Changed, extend_to, revoke_one, set_paused};
use super::looking::{Pages, Shown};
use super::making::{Making, Wanted, What};
use super::step::{Answer, Ask, Desk, Effect, Facts, Problem, Step};
use super::text::{self, escape, time};
use super::voice::{Voice, is_id, named};
use crate::duration::{self, Seconds};
use crate::error::InviteError;
use crate::invite::{Invite, Type};
use crate::listing::{Filter, Part, Position};
use crate::redemption::Purpose;
use crate::token::Digest;
use crate::value::Value;

/// Invites in one page of the list.
const PAGE: u32 = 500;

/// What a flag takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Takes {
	/// Nothing.
	Nothing,
	/// A value.
	Value,
	/// A value, each time that it is given.
	Values,
}

/// A command of the shell, as the shell wants to know it.
#[derive(Debug)]
pub struct Command {
	/// What is typed.
	pub name: &'static str,
	/// What it does.
	pub description: &'static str,
	/// What has to be given. The first one says which host is meant.
	pub arguments: &'static [&'static str],
	/// What may be given.
	pub flags: &'static [(&'static str, Takes)],
}

const USER: &[&str] = &["user_jid"];
const HOST: &[&str] = &["host"];
const INVITE: &[&str] = &["host", "token"];

/// The name of the flag for groups, which there is only where a module makes use of them.
pub const GROUP: &str = "group";

/// All commands.
pub const COMMANDS: [Command; 11] = [
	Command {
		name: "create_account",
		description: "Create an invitation to make an account on this server with the specified JID (supply only a hostname to \
		              allow any username)",
		arguments: USER,
		flags: &[
			("role", Takes::Values),
			(GROUP, Takes::Values),
			("expires_after", Takes::Value),
			("max_uses", Takes::Value),
			("note", Takes::Value),
			("admin", Takes::Nothing),
		],
	},
	Command {
		name: "create_reset",
		description: "Create a password reset link for the specified user",
		arguments: USER,
		flags: &[("expires_after", Takes::Value)],
	},
	Command {
		name: "create_contact",
		description: "Create an invitation to become contacts with the specified user",
		arguments: USER,
		flags: &[("expires_after", Takes::Value), (ALLOW_REGISTRATION, Takes::Nothing)],
	},
	Command {
		name: "show",
		description: "Show details of an invitation token",
		arguments: INVITE,
		flags: &[],
	},
	Command {
		name: "delete",
		description: "Delete/revoke an invitation token",
		arguments: INVITE,
		flags: &[("why", Takes::Value)],
	},
	Command { name: "list", description: "List pending invitations", arguments: HOST, flags: &[] },
	Command {
		name: "history",
		description: "Show what became of invitations, the last ended first",
		arguments: HOST,
		flags: &[("limit", Takes::Value)],
	},
	Command {
		name: "pause",
		description: "Have an invitation refused until it is resumed",
		arguments: INVITE,
		flags: &[],
	},
	Command {
		name: "resume",
		description: "Have a paused invitation accepted again",
		arguments: INVITE,
		flags: &[],
	},
	Command {
		name: "extend",
		description: "Give an invitation another end, counted from now",
		arguments: INVITE,
		flags: &[("expires_after", Takes::Value)],
	},
	Command {
		name: "why",
		description: "Say whether an invitation would be accepted now, and if not, why",
		arguments: INVITE,
		flags: &[("username", Takes::Value)],
	},
];

const ALLOW_REGISTRATION: &str = "allow_registration";

/// What was typed into the shell.
#[derive(Clone, Debug, Default)]
pub struct Line {
	/// The command.
	pub name: String,
	/// The host, or the JID of an account there.
	pub selector: String,
	/// The localpart of the selector.
	pub localpart: Option<String>,
	/// The words that follow, flags among them where the shell does not know them (0.12).
	pub words: Vec<String>,
	/// The flags that the shell has read.
	pub flags: HashMap<String, Vec<String>>,
	/// Whether the flag for groups is known.
	pub has_groups: bool,
	/// Columns of the terminal.
	pub width: u16,
}

impl Line {
	/// The flags and the one argument besides the selector, if there is one.
	///
	/// # Errors
	/// What is wrong.
	pub fn read(mut self) -> Result<Self, String> {
		let command = COMMANDS.iter().find(|command| command.name == self.name).ok_or("Unknown command")?;
		let mut arguments = Vec::new();
		let mut words = std::mem::take(&mut self.words).into_iter();
		while let Some(word) = words.next() {
			let flag = word.strip_prefix("--").map(|flag| flag.split_once('=').unwrap_or((flag, "")));
			let Some((flag, value)) = flag.filter(|(flag, _)| !flag.is_empty()) else {
				// create_contact JID true
				if word == "true" && takes(command, ALLOW_REGISTRATION, self.has_groups).is_some() {
					self.flags.insert(ALLOW_REGISTRATION.to_owned(), Vec::new());
				} else {
					arguments.push(word);
				}
				continue;
			};
			let key = flag.replace('-', "_");
			match takes(command, &key, self.has_groups) {
				None => return Err(format!("Unknown parameter: --{flag}")),
				Some(Takes::Nothing) => drop(self.flags.insert(key, Vec::new())),
				Some(takes) => {
					let value = if value.is_empty() { words.next() } else { Some(value.to_owned()) };
					let value = value.ok_or_else(|| format!("Expected value after --{flag}"))?;
					let values = self.flags.entry(key).or_default();
					if takes == Takes::Value {
						values.clear();
					}
					values.push(value);
				}
			}
		}
		match arguments.get(command.arguments.len() - 1..) {
			Some([.., last]) => Err(format!("Unexpected argument: {last}")),
			Some([]) => Ok(Self { words: arguments, ..self }),
			None => {
				Err(format!("Supply the {}", command.arguments.get(arguments.len() + 1).unwrap_or(&"host")))
			}
		}
	}

	/// The username that has to be as it is compared.
	#[must_use]
	pub fn username(&self) -> Option<&str> {
		if self.is_about_account() { self.localpart.as_deref() } else { self.flag("username") }
	}

	/// Whether it has to be known what the account of that username is.
	#[must_use]
	pub fn is_about_account(&self) -> bool {
		self.name.starts_with("create_")
	}

	fn flag(&self, name: &str) -> Option<&str> {
		self.flags.get(name)?.last().map(String::as_str)
	}

	fn values(&self, name: &str) -> Vec<String> {
		self.flags.get(name).cloned().unwrap_or_default()
	}

	fn invite(&self) -> String {
		self.words.first().cloned().unwrap_or_default()
	}

	fn ttl(&self) -> Result<Option<Seconds>, Step> {
		let Some(text) = self.flag("expires_after") else { return Ok(None) };
		duration::parse(text).map(Some).map_err(|_| fail(format!("Unable to parse duration: {text}")))
	}

	fn count(&self, name: &str, default: u32) -> Result<u32, Step> {
		let Some(text) = self.flag(name) else { return Ok(default) };
		let count = text.trim().parse().ok().filter(|count| *count > 0);
		count.ok_or_else(|| fail(format!("Unable to count to: {text}")))
	}
}

fn takes(command: &Command, flag: &str, has_groups: bool) -> Option<Takes> {
	let known = command.flags.iter().find(|(name, _)| *name == flag && (has_groups || *name != GROUP));
	known.map(|(_, takes)| *takes)
}

fn fail(message: impl Into<String>) -> Step {
	Step::say(Vec::new(), 1, message)
}

fn done(message: impl Into<String>) -> Step {
	Step::say(Vec::new(), 0, message)
}

/// Begins to carry out a command.
#[must_use]
pub fn begin(desk: &Desk<'_>, line: &Line, facts: &Facts) -> Step {
	let begun = match line.name.as_str() {
		"create_account" => create_account(desk, line, facts),
		"create_reset" => create_reset(desk, line, facts),
		"create_contact" => create_contact(desk, line, facts),
		"show" => Ok(show(desk, line.invite(), line.width, facts.is_in_band)),
		"delete" => {
			let why = line.flag("why").map(str::to_owned);
			Ok(change(desk, line, "Invitation deleted", move |desk, digest| {
				revoke_one(desk, digest, why.as_deref(), "shell")
			}))
		}
		"list" => Ok(Step::ask(Ask::Import, |desk, _| list(desk, None, 0))),
		"history" => history(line, facts),
		"pause" => {
			let act = |desk: &Desk<'_>, digest: &Digest| set_paused(desk, digest, true);
			Ok(change(desk, line, "Invitation paused", act))
		}
		"resume" => {
			let act = |desk: &Desk<'_>, digest: &Digest| set_paused(desk, digest, false);
			Ok(change(desk, line, "Invitation resumed", act))
		}
		"extend" => extend(desk, line),
		"why" => Ok(why(desk, line, facts)),
		_ => Ok(fail("Unknown command")),
	};
	begun.unwrap_or_else(|step| step)
}

/// Makes an invite, and says so; `tell` has what is printed before, and what is said last.
fn create(
	desk: &Desk<'_>,
	wanted: Wanted,
	facts: &Facts,
	tell: impl Fn(&Invite, String) -> (Vec<Effect>, String) + 'static,
) -> Result<Step, Step> {
	let is_in_band = facts.is_in_band;
	let tell = move |invite: &Invite, _: &Desk<'_>| {
		let (effects, message) = tell(invite, text::link(invite, is_in_band).unwrap_or_default());
		(effects, Some(message))
	};
	Making::new(wanted, facts, |problem| Voice::Shell.refuse(problem, ""), tell)
		.map(|making| making.go_on(desk))
}

fn create_account(desk: &Desk<'_>, line: &Line, facts: &Facts) -> Result<Step, Step> {
	let ttl = line.ttl()?;
	let max_uses = line.count("max_uses", 1)?;
	let mut roles = line.values("role");
	if line.flags.contains_key("admin") {
		roles.insert(0, "prosody:admin".to_owned());
	}
	let wanted = Wanted {
		what: What::Account,
		named: line.localpart.clone(),
		ttl: ttl.map(Ttl::At),
		max_uses: Some(max_uses),
		roles: Some(roles),
		groups: Some(line.values(GROUP)),
		note: line.flag("note").map(str::to_owned),
	};
	create(desk, wanted, facts, |_, link| (Vec::new(), link))
}

/// One that is about an account which there has to be.
fn about(what: What, line: &Line, ttl: Option<Seconds>) -> Result<Wanted, Step> {
	if line.localpart.is_none() {
		return Err(fail("Supply the JID of the account, not only a host"));
	}
	Ok(Wanted {
		what,
		named: line.localpart.clone(),
		ttl: ttl.map(Ttl::At),
		max_uses: Some(1),
		roles: None,
		groups: None,
		note: None,
	})
}

fn create_reset(desk: &Desk<'_>, line: &Line, facts: &Facts) -> Result<Step, Step> {
	let wanted = about(What::Reset, line, line.ttl()?)?;
	let jid = line.selector.clone();
	create(desk, wanted, facts, move |invite, link| {
		let until = expires(invite, "%Y-%m-%d %H:%M:%S");
		(vec![Effect::Print(link + "\n")], format!("Password reset link for {jid} valid until {until}"))
	})
}

fn create_contact(desk: &Desk<'_>, line: &Line, facts: &Facts) -> Result<Step, Step> {
	let allow_registration = line.flags.contains_key(ALLOW_REGISTRATION);
	let wanted = about(What::Contact { allow_registration }, line, line.ttl()?)?;
	create(desk, wanted, facts, |_, link| (Vec::new(), link))
}

fn expires(invite: &Invite, format: &str) -> String {
	invite.expires.map_or_else(|| "never".to_owned(), |expires| time(expires, format))
}

/// An invite that is good now, by what the bundled module knows it by.
fn good(desk: &Desk<'_>, name: &str) -> Result<Invite, InviteError> {
	let mut found = Err(InviteError::TokenInvalid);
	for purpose in [Purpose::Account, Purpose::Contact] {
		found = desk.invites.get(name.as_bytes(), purpose, desk.now);
		if matches!(found, Err(InviteError::TokenInvalid)) {
			found = desk.invites.get_by_id(name.as_bytes(), purpose, desk.now);
		}
		if !matches!(found, Err(InviteError::TokenInvalid)) {
			break;
		}
	}
	found.map(|invite| super::looking::with_token(invite, name))
}

fn show(desk: &Desk<'_>, name: String, width: u16, is_in_band: bool) -> Step {
	match good(desk, &name) {
		Ok(invite) => details(&invite, is_in_band),
		Err(InviteError::TokenInvalid) => Step::ask(Ask::Import, move |desk, answer| {
			let is_known = || desk.invites.find(&Digest::of(name.as_bytes())).is_ok();
			if !matches!(answer, Answer::Import(true)) && !is_known() {
				return Voice::Shell.refuse(Problem::REPORTED, "");
			}
			match good(desk, &name) {
				Ok(invite) => details(&invite, is_in_band),
				Err(InviteError::TokenInvalid) if is_id(&name) => show_by_id(desk, name, width),
				Err(error) => Voice::Shell.refuse(error.into(), ""),
			}
		}),
		Err(error) => Voice::Shell.refuse(error.into(), ""),
	}
}

/// An id shows what became of an invite too.
fn show_by_id(desk: &Desk<'_>, name: String, width: u16) -> Step {
	let shown = Shown { width, ..Shown::default() };
	named(desk, Voice::Shell, name.clone(), move |desk, digest| {
		let text = desk.invites.find(&digest).and_then(|invite| shown.text_of(desk, invite, &name));
		match text {
			Ok(text) => Step::say(vec![Effect::Print(text)], 0, "Invitation found by its id"),
			Err(error) => Voice::Shell.refuse(error.into(), ""),
		}
	})
}

fn details(invite: &Invite, is_in_band: bool) -> Step {
	const FORMAT: &str = "%Y-%m-%d %H:%M:%S";
	let about = match (invite.invite_type, &invite.username) {
		(Type::Roster, _) => {
			let register = if invite.allow_registration { "register and " } else { "" };
			format!("Invitation to {register}become a contact of {}", invite.jid())
		}
		(Type::Register, _) if invite.reset_name().is_some() => describe(invite),
		(Type::Register, Some(name)) => {
			format!("Invitation to register on {} with username '{name}'", invite.host)
		}
		(Type::Register, None) => format!("Invitation to register on {}", invite.host),
	};
	let mut lines = vec![
		about,
		format!("Created:\t{}", time(invite.created_at, FORMAT)),
		format!("Expires:\t{}", expires(invite, FORMAT)),
		String::new(),
	];
	let mut say = |name: &str, value: Option<String>| {
		lines.extend(value.map(|value| format!("{name}\t{}", escape(value.as_bytes()))));
	};
	let (uri, page) = text::links(invite, is_in_band);
	say("XMPP URI:", uri);
	say("Web link:", page);
	if invite.fields.get("additional_data").is_some() {
		lines.push(String::new());
		let roles = roles(invite);
		let mut say = |name: &str, value: Option<String>| {
			lines.extend(value.map(|value| format!("{name}\t{value}")));
		};
		say("Role:", roles.first().cloned());
		say("Secondary roles:", roles.get(1..).filter(|more| !more.is_empty()).map(|more| more.join(", ")));
		say(
			"Groups:",
			invite.additional_data("groups").map(|groups| text::names(groups).unwrap_or_default()),
		);
		say("Comment:", text::shown(invite.additional_data("note")));
	}
	Step::say(vec![Effect::Print(lines.join("\n") + "\n")], 0, "Invitation valid")
}

/// The primary role first.
fn roles(invite: &Invite) -> Vec<String> {
	let Some(Value::Table(roles)) = invite.additional_data("roles") else { return Vec::new() };
	let is_list = roles.entries().iter().any(|(key, _)| matches!(key, Value::Int(_)));
	let mut names: Vec<String> = roles
		.entries()
		.iter()
		.filter_map(|(key, value)| match (key, value) {
			(Value::Int(_), name @ Value::Str(_)) | (name @ Value::Str(_), Value::Bool(true)) => {
				text::shown(Some(name))
			}
			_ => None,
		})
		.collect();
	if !is_list {
		names.sort_by_key(|name| (name != "prosody:admin", name.clone()));
	}
	names
}

fn describe(invite: &Invite) -> String {
	match (invite.invite_type, invite.reset_name(), &invite.username) {
		(Type::Roster, ..) => format!("Contact with {}", invite.jid()),
		(Type::Register, Some(name), _) => {
			format!("Password reset for {}@{}", escape(name.as_bytes()), invite.host)
		}
		(Type::Register, None, Some(name)) => format!("Register on {} with username {name}", invite.host),
		(Type::Register, None, None) => format!("Register on {}", invite.host),
	}
}

/// One page after the other.
fn list(desk: &Desk<'_>, after: Option<Digest>, count: usize) -> Step {
	let (page, next) = match desk.invites.pending(after.as_ref(), PAGE, desk.now) {
		Ok(page) => page,
		Err(error) => return Voice::Shell.refuse(error.into(), ""),
	};
	let row = |invite: &Invite| {
		let token = invite.token.as_ref().map(|token| token.reveal().to_owned());
		let token = token.unwrap_or_else(|| invite.digest.id().to_string());
		Effect::Row([token, expires(invite, "%Y-%m-%dT%H:%M:%S"), describe(invite)])
	};
	let count = count + page.len();
	let step = match next {
		Some(next) => Step::ask(Ask::Nothing, move |desk, _| list(desk, Some(next), count)),
		None => done(format!("{count} pending invites")),
	};
	step.after(page.iter().map(row).collect())
}

fn history(line: &Line, facts: &Facts) -> Result<Step, Step> {
	let pages = Pages {
		filter: Filter::default(),
		part: Part::History,
		is_json: false,
		show_token: false,
		is_in_band: facts.is_in_band,
		width: line.width,
		left: Some(line.count("limit", 100)?),
		shown: 0,
		voice: Voice::Shell,
	};
	Ok(Step::ask(Ask::Import, move |desk, _| pages.go_on(desk, Position::START)))
}

/// Changes one invite.
fn change(
	desk: &Desk<'_>,
	line: &Line,
	message: &'static str,
	act: impl FnOnce(&Desk<'_>, &Digest) -> Changed + 'static,
) -> Step {
	let is_deletion = line.name == "delete";
	let voice = if is_deletion { Voice::ShellDeleting } else { Voice::Shell };
	named(desk, voice, line.invite(), move |desk, digest| match act(desk, &digest) {
		Ok(Some((_, effects))) => Step::say(effects, 0, message),
		Ok(None) if is_deletion => voice.refuse(InviteError::TokenInvalid.into(), ""),
		Ok(None) => fail("The invitation has ended, or is so already"),
		Err(problem) => Voice::Shell.refuse(problem, ""),
	})
}

fn extend(desk: &Desk<'_>, line: &Line) -> Result<Step, Step> {
	let Some(ttl) = line.ttl()? else { return Err(fail("Supply --expires-after")) };
	let act = move |desk: &Desk<'_>, digest: &Digest| extend_to(desk, digest, Some(ttl.get()));
	Ok(change(desk, line, "Invitation extended", act))
}

fn why(desk: &Desk<'_>, line: &Line, facts: &Facts) -> Step {
	let username = line.flag("username").and(facts.username.clone());
	named(desk, Voice::Shell, line.invite(), move |_, digest| {
		Step::ask(Ask::Why(digest, username), |_, answer| match answer {
			Answer::Why(Ok(())) => done("Invitation would be accepted"),
			Answer::Why(Err(problem)) => match problem.text.clone() {
				Some(text) => Step::say(problem.report().into_iter().collect(), 1, text),
				None => Voice::Shell.refuse(problem, ""),
			},
			_ => fail("The command failed; see the log"),
		})
	})
}
