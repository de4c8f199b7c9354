//! The arguments of `prosodyctl mod_invites …`.

use std::ffi::OsString;
use std::num::NonZeroU32;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Args, Parser, ValueEnum};
use terminal_size::Width;

use super::voice::MISUSE;
use crate::duration::{self, Seconds};
use crate::invite::Kind;
use crate::lifecycle::State;
use crate::listing::{Filter, Part};

/// A command line that was understood.
#[derive(Clone, Debug, Parser, PartialEq, Eq)]
#[command(
	name = "mod_invites",
	bin_name = "prosodyctl mod_invites",
	no_binary_name = true,
	subcommand_required = true,
	disable_help_subcommand = true,
	about = "Create invites, look after them, and take them elsewhere"
)]
pub enum Command {
	/// Create invites and print their links
	Generate(Generate),
	/// List the invites that are open, or those in one state, the newest first
	List(List),
	/// List what became of invites, the last ended first
	History(History),
	/// Show an invite and who used it
	Show(Show),
	/// Take an invite back, or all open ones of a user
	Revoke(Revoke),
	/// Free an invite that somebody has been using without an end, as check has said
	Release(Release),
	/// Have an invite refused until it is resumed
	Pause(One),
	/// Have a paused invite accepted again
	Resume(One),
	/// Give an invite another end, counted from now; one that has expired is good again
	Extend(Extend),
	/// Say whether an invite would be accepted now, or whether a user may create one, and if not, why; exit code 1 if not
	Why(Why),
	/// Show whom a user invited, whom these invited, and so on, with the invites of each
	Tree(Tree),
	/// Count the invites of a host
	Stats(Stats),
	/// Remove what ended long ago
	Purge(Purge),
	/// Write all invites as JSON lines, or the pending ones where another module finds them
	Export(Export),
	/// Take in invites that were exported, or that ejabberd has listed
	Import(Import),
	/// Write a copy of the database of all hosts
	Backup(Backup),
	/// Put a copy in the place of the database of all hosts
	Restore(Restore),
	/// Look whether everything is as it should be: exit code 0 if it is, 1 for warnings, 2 if invites do not work
	Check(Check),
}

impl Command {
	/// The host that it is about, unless it is about the whole server.
	#[must_use]
	pub fn host(&self) -> Option<&str> {
		Some(match self {
			Self::Generate(options) => &options.host,
			Self::List(list) => &list.picked.host,
			Self::History(history) => &history.picked.host,
			Self::Show(show) => &show.one.host,
			Self::Revoke(revoke) => &revoke.which.host,
			Self::Release(release) => &release.one.host,
			Self::Pause(one) | Self::Resume(one) => &one.host,
			Self::Extend(extend) => &extend.one.host,
			Self::Why(why) => &why.which.host,
			Self::Tree(tree) => &tree.host,
			Self::Stats(stats) => &stats.host,
			Self::Purge(purge) => &purge.host,
			Self::Export(export) => &export.host,
			Self::Import(import) => &import.host,
			Self::Check(check) => &check.host,
			Self::Backup(_) | Self::Restore(_) => return None,
		})
	}

	/// The username that has to be known as it is compared.
	#[must_use]
	pub fn username(&self) -> Option<&str> {
		match self {
			Self::Generate(options) => {
				options.reset.as_deref().or(options.contact.as_deref()).or(options.username.as_deref())
			}
			Self::Revoke(revoke) => revoke.which.inviter.as_deref(),
			Self::Why(why) => why.which.inviter.as_deref().or(why.username.as_deref()),
			Self::Tree(tree) => Some(&tree.username),
			_ => None,
		}
	}

	/// Whether it has to be known what the account of that username is.
	#[must_use]
	pub const fn is_about_account(&self) -> bool {
		matches!(self, Self::Generate(_))
	}

	/// The columns of the terminal, for a command that fits its text to them.
	#[must_use]
	pub fn width(&self) -> Option<u16> {
		let output = match self {
			Self::List(list) => &list.picked.output,
			Self::History(history) => &history.picked.output,
			Self::Show(show) => &show.one.output,
			Self::Revoke(revoke) => &revoke.which.output,
			Self::Release(release) => &release.one.output,
			Self::Pause(one) | Self::Resume(one) => &one.output,
			Self::Extend(extend) => &extend.one.output,
			Self::Why(why) => &why.which.output,
			Self::Stats(stats) => &stats.output,
			_ => return None,
		};
		Some(output.width())
	}
}

/// `export`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Export {
	/// Host whose invites are exported
	pub host: String,
	/// Make the store of Prosody's bundled module equal to the pending invites here: what was used or revoked is removed there
	#[arg(long, value_name = "WHERE", conflicts_with_all = ["pending", "output"])]
	pub to: Option<Destination>,
	/// Leave out what was used or revoked, has expired or is paused
	#[arg(long)]
	pub pending: bool,
	/// Write to this new file, for its owner alone, instead of stdout
	#[arg(long, short, value_name = "FILE")]
	pub output: Option<OsString>,
}

/// `import`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Import {
	/// Host that the invites are for
	pub host: String,
	/// File to read; - for stdin
	pub file: OsString,
}

/// `backup`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Backup {
	/// New file to write
	pub file: OsString,
}

/// `restore`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Restore {
	/// File that `backup` wrote
	pub file: OsString,
	/// Revoke every invite that is open in the backup: what was used since then would be good again
	#[arg(long)]
	pub revoke_older: bool,
	/// Do not ask
	#[arg(long)]
	pub yes: bool,
}

/// `check`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Check {
	/// Host to look at
	pub host: String,
	/// Print what is found as JSON
	#[arg(long)]
	pub json: bool,
}

/// Where to export to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Destination {
	/// The bundled module's store `invite_token`.
	Prosody,
}

/// `generate`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own on the command line")]
pub struct Generate {
	/// Host that the invite is for
	pub host: String,
	/// Make the new user privileged: the same as --role prosody:admin; of --admin and --role the last one wins
	#[arg(long, overrides_with = "role")]
	pub admin: bool,
	/// Grant this role to the new user
	#[arg(long, value_name = "ROLE", overrides_with_all = ["role", "admin"])]
	pub role: Option<String>,
	/// Add the new user to the group with this id; may be given several times
	#[arg(long = "group", short = 'g', value_name = "GROUPID")]
	pub groups: Vec<String>,
	/// Bind the invite to this username: no other can be registered with it
	#[arg(long, value_name = "USERNAME", conflicts_with = "count")]
	pub username: Option<String>,
	/// Create a password reset link for this user instead of an invite
	#[arg(long, value_name = "USERNAME",
		conflicts_with_all = ["admin", "role", "groups", "username", "contact", "max_uses", "count"])]
	pub reset: Option<String>,
	/// Create an invite to become a contact of this user
	#[arg(long, value_name = "USERNAME", conflicts_with_all = ["admin", "role", "groups", "username"])]
	pub contact: Option<String>,
	/// With --contact: also to register an account
	#[arg(long, requires = "contact")]
	pub allow_registration: bool,
	/// How long it is good, such as 36h or "2 weeks", or never
	#[arg(long, value_name = "DURATION", value_parser = ttl)]
	pub expires_after: Option<Ttl>,
	/// What it is for, in your own words; only operators see it
	#[arg(long, value_name = "TEXT")]
	pub note: Option<String>,
	/// How often it can be used: a number, or unlimited (until it expires)
	#[arg(long, value_name = "N", value_parser = limit)]
	pub max_uses: Option<Limit>,
	/// Create so many invites that are alike
	#[arg(long, value_name = "N")]
	pub count: Option<NonZeroU32>,
	/// Draw the link as a QR code first
	#[arg(long, conflicts_with_all = ["json", "count"])]
	pub qr: bool,
	/// Print the invite as JSON instead of its link alone
	#[arg(long)]
	pub json: bool,
}

/// A time to live; none: for ever.
pub type Ttl = Never<Seconds>;

/// A number of uses; none: any.
pub type Limit = Never<NonZeroU32>;

/// A value, or the word that says that there is no end to it. (Not an `Option`: clap takes that for "not given".)
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Never<T> {
	/// There is an end, this one.
	At(T),
	/// There is none.
	Never,
}

impl<T> Never<T> {
	/// The end, if there is one.
	pub fn end(self) -> Option<T> {
		match self {
			Self::At(end) => Some(end),
			Self::Never => None,
		}
	}
}

fn ttl(text: &str) -> Result<Ttl, duration::DurationError> {
	if text == "never" { Ok(Never::Never) } else { duration::parse(text).map(Never::At) }
}

fn limit(text: &str) -> Result<Limit, std::num::ParseIntError> {
	if text == "unlimited" { Ok(Never::Never) } else { text.parse().map(Never::At) }
}

/// How a command prints.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Output {
	/// Print JSON, an object a line
	#[arg(long)]
	pub json: bool,
	/// The width of the terminal where this process has none: a server that carries the command out for another.
	#[arg(long, hide = true)]
	columns: Option<u16>,
}

impl Output {
	/// How many columns the operator sees: what COLUMNS says, else those of the terminal, else 80.
	#[must_use]
	pub fn width(&self) -> u16 {
		let said = || std::env::var("COLUMNS").ok()?.parse().ok().filter(|columns| *columns > 0);
		let seen = || terminal_size::terminal_size().map(|(Width(columns), _)| columns);
		self.columns.or_else(said).or_else(seen).unwrap_or(80)
	}
}

/// What `list` and `history` have in common.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Picked {
	/// Host whose invites are listed
	pub host: String,
	/// Only those of this kind
	#[arg(long, value_enum)]
	kind: Option<Kind>,
	/// Only those by this user
	#[arg(long, value_name = "USERNAME")]
	inviter: Option<String>,
	/// Only those with this text in their note, name, groups, roles or reason
	#[arg(long, value_name = "TEXT")]
	text: Option<String>,
	/// Go on after this one, the last of an earlier listing
	#[arg(long, value_name = "INVITE")]
	pub after: Option<String>,
	/// At most so many
	#[arg(long, value_name = "N")]
	pub limit: Option<NonZeroU32>,
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub output: Output,
}

/// `list`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct List {
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub picked: Picked,
	/// Only those in this state; without it, pending and paused ones
	#[arg(long, value_enum)]
	state: Option<State>,
	/// Show links too, which let anybody in who sees them
	#[arg(long)]
	pub show_token: bool,
}

/// `history`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct History {
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub picked: Picked,
	/// Only those that ended so
	#[arg(long, value_parser = end())]
	state: Option<State>,
}

impl ValueEnum for Kind {
	fn value_variants<'a>() -> &'a [Self] {
		&[Self::Account, Self::Contact, Self::Group, Self::Reset]
	}

	fn to_possible_value(&self) -> Option<PossibleValue> {
		Some(PossibleValue::new(self.as_str()))
	}
}

impl ValueEnum for State {
	fn value_variants<'a>() -> &'a [Self] {
		&[Self::Pending, Self::Paused, Self::Used, Self::Expired, Self::Revoked]
	}

	fn to_possible_value(&self) -> Option<PossibleValue> {
		Some(PossibleValue::new(self.as_str()))
	}
}

/// The states in which an invite is history.
fn end() -> impl TypedValueParser<Value = State> {
	let ends = [State::Used, State::Expired, State::Revoked].map(State::as_str);
	PossibleValuesParser::new(ends).try_map(|word| State::from_word(&word).ok_or("not a state"))
}

impl Picked {
	fn filter(&self, state: Option<State>) -> Filter {
		Filter { state, kind: self.kind, inviter: self.inviter.clone(), text: self.text.clone() }
	}
}

impl List {
	/// What is listed, and of which part.
	#[must_use]
	pub fn filter(&self) -> (Filter, Part) {
		let filter = self.picked.filter(self.state);
		let part = filter.part();
		(filter, part)
	}
}

impl History {
	/// What is listed, and of which part.
	#[must_use]
	pub fn filter(&self) -> (Filter, Part) {
		(self.picked.filter(self.state), Part::History)
	}
}

/// One invite of a host.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct One {
	/// Host of the invite
	pub host: String,
	/// Its token, or its id (the first six characters are enough if no other begins so)
	pub invite: String,
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub output: Output,
}

/// `show`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Show {
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub one: One,
	/// Show its link too, which lets anybody in who sees it
	#[arg(long)]
	pub show_token: bool,
	/// Draw the link as a QR code
	#[arg(long, requires = "show_token", conflicts_with = "json")]
	pub qr: bool,
}

/// `revoke`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Revoke {
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub which: OneOrInviter,
	/// With --inviter: also those of everybody in the user's branch, as tree shows it
	#[arg(long, requires = "inviter", conflicts_with = "invite")]
	pub branch: bool,
	/// Why, for the history
	#[arg(long, value_name = "TEXT")]
	pub why: Option<String>,
}

/// `release`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Release {
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub one: One,
	/// Do not ask
	#[arg(long)]
	pub yes: bool,
}

/// One invite of a host, or a user who invites.
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct OneOrInviter {
	/// Host of the invite
	pub host: String,
	/// Its token, or its id (the first six characters are enough if no other begins so)
	#[arg(required_unless_present = "inviter", conflicts_with = "inviter")]
	pub invite: Option<String>,
	/// Instead of one invite: this user
	#[arg(long, value_name = "USERNAME")]
	pub inviter: Option<String>,
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub output: Output,
}

/// `extend`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Extend {
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub one: One,
	/// How long it is good from now on, such as 36h or "2 weeks", or never
	#[arg(long, value_name = "DURATION", value_parser = ttl)]
	pub expires_after: Ttl,
}

/// `why`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Why {
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub which: OneOrInviter,
	/// The username that would be registered with it
	#[arg(long, value_name = "USERNAME", conflicts_with = "inviter")]
	pub username: Option<String>,
	/// With --inviter: what the user would create; without it, an invite to become a contact
	#[arg(long, requires = "inviter", conflicts_with = "invite", value_parser = PossibleValuesParser::new(CREATED_BY_USERS))]
	pub kind: Option<String>,
}

/// The kinds of invites that users create, as `invite_limits` names them.
const CREATED_BY_USERS: [&str; 4] = ["contact", "account-and-contact", "account", "group"];

/// `tree`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Tree {
	/// Host of the user
	pub host: String,
	/// The user
	pub username: String,
	/// Print the accounts alone, one address a line: those that still exist
	#[arg(long, conflicts_with = "json")]
	pub accounts: bool,
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub output: Output,
}

/// `stats`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Stats {
	/// Host whose invites are counted
	pub host: String,
	#[command(flatten)]
	#[expect(missing_docs, reason = "it would become part of the help")]
	pub output: Output,
}

/// `purge`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Purge {
	/// Host whose history is shortened
	pub host: String,
	/// What ended longer ago than this, such as 30d; without it, what the option `invite_history` says
	#[arg(long, value_name = "DURATION", value_parser = duration::parse)]
	pub older_than: Option<Seconds>,
	/// Print the number as JSON
	#[arg(long)]
	pub json: bool,
}

/// What to print instead of running a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
	/// Help that was asked for: to stdout, exit code 0.
	Help(String),
	/// One line about what is wrong: to stderr, with this exit code.
	Misuse(String, u8),
}

/// Reads the arguments that follow `prosodyctl mod_invites`.
///
/// # Errors
/// The text to print where there is no command to run.
pub fn parse(args: impl IntoIterator<Item = OsString>) -> Result<Command, Answer> {
	Command::try_parse_from(args).map_err(|error| match error.kind() {
		ErrorKind::DisplayHelp => Answer::Help(error.render().to_string()),
		ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand | ErrorKind::MissingSubcommand => {
			misuse("a command is missing")
		}
		_ => {
			let text = error.render().to_string();
			// After the first empty line clap goes on with usage and hints.
			let problem: Vec<&str> =
				text.lines().map(str::trim).take_while(|line| !line.is_empty()).collect();
			misuse(problem.join(" ").trim_start_matches("error: "))
		}
	})
}

fn misuse(problem: &str) -> Answer {
	Answer::Misuse(format!("{problem}; see: prosodyctl mod_invites --help"), MISUSE)
}

#[cfg(test)]
mod tests {
	use super::*;

	fn generate(args: &str) -> Result<Generate, Answer> {
		match parse(args.split_whitespace().map(OsString::from))? {
			Command::Generate(options) => Ok(options),
			other => panic!("{args}: {other:?}"),
		}
	}

	fn problem(args: &str) -> String {
		match generate(args) {
			Err(Answer::Misuse(problem, 2)) => problem,
			other => panic!("{args}: {other:?}"),
		}
	}

	#[test]
	fn every_option_of_prosody_0_12_is_understood() {
		let options =
			generate("generate example.com --role x --admin -g a --group b --json --username bob").unwrap();
		assert_eq!(
			options,
			Generate {
				host: "example.com".to_owned(),
				admin: true,
				role: None,
				groups: vec!["a".to_owned(), "b".to_owned()],
				username: Some("bob".to_owned()),
				reset: None,
				contact: None,
				allow_registration: false,
				expires_after: None,
				note: None,
				max_uses: None,
				count: None,
				qr: false,
				json: true,
			}
		);
		assert_eq!(generate("generate h --reset bob").unwrap().reset.as_deref(), Some("bob"));
	}

	#[test]
	fn of_admin_and_role_the_last_one_wins() {
		let roles = |args| generate(args).map(|options| (options.admin, options.role)).unwrap();
		assert_eq!(roles("generate h --admin --role x"), (false, Some("x".to_owned())));
		assert_eq!(roles("generate h --role x --role y"), (false, Some("y".to_owned())));
		assert_eq!(roles("generate h --role x --admin"), (true, None));
	}

	#[test]
	fn durations_and_limits_have_a_word_for_none() {
		let options = |args| generate(args).map(|options| (options.expires_after, options.max_uses)).unwrap();
		assert_eq!(
			options("generate h --expires-after never --max-uses unlimited"),
			(Some(Never::Never), Some(Never::Never))
		);
		let (expires_after, max_uses) = options("generate h --expires-after 36h --max-uses 5");
		assert_eq!(expires_after.and_then(Never::end).map(Seconds::get), Some(36 * 3600));
		assert_eq!(max_uses.and_then(Never::end).map(NonZeroU32::get), Some(5));
	}

	#[test]
	fn a_state_says_which_part_a_listing_goes_through() {
		let part = |args: &str| match parse(args.split_whitespace().map(OsString::from)) {
			Ok(Command::List(list)) => list.filter().1,
			Ok(Command::History(history)) => history.filter().1,
			other => panic!("{args}: {other:?}"),
		};
		assert_eq!(part("list h"), Part::Open);
		assert_eq!(part("list h --state paused"), Part::Open);
		assert_eq!(part("list h --state used"), Part::History);
		assert_eq!(part("history h"), Part::History);
	}

	#[test]
	fn what_is_wrong_is_one_line_that_names_it() {
		for (args, named) in [
			("", "a command is missing"),
			("frob", "frob"),
			("list", "<HOST>"),
			("list h --state gone", "gone"),
			("history h --state pending", "pending"),
			("list h --limit 0", "--limit"),
			("show h", "<INVITE>"),
			("extend h abcdef", "--expires-after"),
			("extend h abcdef --expires-after 10m", "10m"),
			("show h abcdef --qr", "--show-token"),
			("generate h --max-uses 0", "--max-uses"),
			("generate h --count 2 --qr", "--qr"),
			("generate h --count 2 --username x", "--username"),
			("generate h --contact x --admin", "--contact"),
			("generate h --allow-registration", "--contact"),
			("generate h --reset x --count 2", "--reset"),
			("purge h --older-than 30", "30"),
			("export", "<HOST>"),
			("export h --to prosody --pending", "--pending"),
			("export h --to prosody --output f", "--output"),
			("import h", "<FILE>"),
			("backup", "<FILE>"),
			("restore", "<FILE>"),
			("release h", "<INVITE>"),
			("check", "<HOST>"),
			("export h --to elsewhere", "elsewhere"),
			("generate", "<HOST>"),
			("generate h --frob", "--frob"),
			("generate h extra", "extra"),
			("generate h --role", "--role"),
			("generate h --reset", "--reset"),
			("generate h --group", "--group"),
			("generate h --username", "--username"),
			("generate h --reset bob --admin", "--admin"),
			("generate h --reset bob --role x", "--role"),
			("generate h --reset bob -g x", "--group"),
			("generate h --reset bob --username x", "--username"),
		] {
			let problem = problem(args);
			assert!(problem.contains(named), "{args}: {problem}");
			assert_eq!(problem.lines().count(), 1, "{args}: {problem}");
		}
	}

	#[test]
	fn one_invite_or_an_inviter_is_meant_and_not_both() {
		let words = |args: &str| parse(args.split_whitespace().map(OsString::from));
		for (args, named) in [
			("revoke h abcdef --branch", "--branch"),
			("revoke h abcdef --inviter juliet", "--inviter"),
			("why h abcdef --kind contact", "--kind"),
			("why h --inviter juliet --username romeo", "--username"),
			("why h --inviter juliet --kind reset", "reset"),
		] {
			match words(args) {
				Err(Answer::Misuse(problem, 2)) => assert!(problem.contains(named), "{args}: {problem}"),
				other => panic!("{args}: {other:?}"),
			}
		}
		for args in
			["revoke h abcdef", "revoke h --inviter juliet --branch", "why h --inviter juliet --kind contact"]
		{
			assert!(words(args).is_ok(), "{args}");
		}
	}

	#[test]
	fn help_is_no_mistake() {
		for args in ["--help", "generate --help", "generate example.com --help"] {
			assert!(matches!(generate(args), Err(Answer::Help(text)) if text.contains("generate")), "{args}");
		}
	}
}
