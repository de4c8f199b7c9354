//! The arguments of `prosodyctl mod_invites …`: parsed here, carried out by the shim through the API that
//! other modules use, so that their handlers run.

use std::ffi::OsString;

use clap::{Args, Parser, ValueEnum, error::ErrorKind};

/// Exit code of a command line that cannot be understood, as in Prosody's own commands.
const MISUSE: u8 = 2;

/// A command line that was understood.
#[derive(Clone, Debug, Parser, PartialEq, Eq)]
#[command(
	name = "mod_invites",
	bin_name = "prosodyctl mod_invites",
	no_binary_name = true,
	subcommand_required = true,
	disable_help_subcommand = true,
	about = "Create invites, and take them elsewhere"
)]
pub enum Command {
	/// Create an invite and print its link
	Generate(Generate),
	/// Write the pending invites where another module finds them
	Export(Export),
}

/// `export`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
pub struct Export {
	/// Host whose invites are exported
	pub host: String,
	/// Make the store of Prosody's bundled module equal to the pending invites here: what was used or revoked is removed there
	#[arg(long, value_name = "WHERE")]
	pub to: Destination,
}

/// Where to export to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Destination {
	/// The bundled module's store `invite_token`.
	Prosody,
}

/// `generate`
#[derive(Args, Clone, Debug, PartialEq, Eq)]
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
	#[arg(long, value_name = "USERNAME")]
	pub username: Option<String>,
	/// Create a password reset link for this user instead of an invite
	#[arg(long, value_name = "USERNAME", conflicts_with_all = ["admin", "role", "groups", "username"])]
	pub reset: Option<String>,
	/// Print the invite as JSON instead of its link alone
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
			other @ Command::Export(_) => panic!("{args}: {other:?}"),
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
	fn what_is_wrong_is_one_line_that_names_it() {
		for (args, named) in [
			("", "a command is missing"),
			("list", "list"),
			("export h", "--to"),
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
	fn help_is_no_mistake() {
		for args in ["--help", "generate --help", "generate example.com --help"] {
			assert!(matches!(generate(args), Err(Answer::Help(text)) if text.contains("generate")), "{args}");
		}
	}
}
