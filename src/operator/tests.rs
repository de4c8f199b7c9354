//! Commands carried out on invites in memory, before a world that answers as Prosody would.

use std::cell::Cell;
use std::collections::HashMap;
use std::ffi::OsString;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::SeqCst;

use super::args;
use super::run::{begin, begin_alone};
use super::shell::{self, Line};
use super::step::{Answer, Ask, Desk, Effect, Exit, Facts, Go, Handled, Next, Problem, Step};
use crate::attempts::Attempt;
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::invites::Invites;
use crate::policy::{Inviter, Limits, Policy};
use crate::redemption::{Account, Purpose};
use crate::store::memory::MemoryStore;
use crate::store::{Bundled, Carries, Lock, Store, StoreError, Work};
use crate::token::Digest;
use crate::value::Value;

const NOW: Timestamp = 1_700_000_000;
const HOST: &str = "example.com";
const DAY: i64 = 86400;

/// What there is besides the invites.
struct World {
	invites: Invites,
	policy: Policy,
	accounts: HashMap<&'static str, Account>,
	facts: Facts,
	/// Whether the bundled module's store can be read.
	can_import: bool,
	/// What somebody types who is asked.
	line: Option<&'static str>,
	/// What a handler of `invite-created` makes of an invite.
	handler: fn(&mut Invite) -> Result<(), Problem>,
	/// What the answer to "why" is.
	why: fn() -> Result<(), Problem>,
	asked: Cell<usize>,
}

/// What came of a command.
#[derive(Debug, Default, PartialEq)]
struct Done {
	out: String,
	err: Vec<String>,
	/// Events, with the ids of their invites.
	events: Vec<(&'static str, String)>,
	reports: Vec<Problem>,
	rows: Vec<[String; 3]>,
	is_ending: bool,
	restored: Vec<&'static str>,
	code: u8,
	message: Option<String>,
}

impl World {
	fn on(store: Arc<dyn Store>) -> Self {
		Self {
			invites: Invites::new(HOST.to_owned(), store),
			policy: Policy::default(),
			accounts: HashMap::from([("juliet", Account::Active), ("disabled", Account::Disabled)]),
			facts: Facts {
				default_ttl: Some(7 * DAY),
				history_age: Some(90 * DAY),
				shortest_history: 3600,
				is_in_band: true,
				by: "prosodyctl".to_owned(),
				..Facts::default()
			},
			can_import: true,
			line: None,
			handler: |_| Ok(()),
			why: || Ok(()),
			asked: Cell::new(0),
		}
	}

	fn new() -> Self {
		Self::on(Arc::new(MemoryStore::default()))
	}

	fn account(&self, username: &str) -> Account {
		self.accounts.get(username).copied().unwrap_or(Account::Missing)
	}

	fn facts(&self, username: Option<&str>) -> Facts {
		let username = username.and_then(nodeprep);
		let account = username.as_deref().map(|username| self.account(username));
		Facts { username, account, ..self.facts.clone() }
	}

	fn desk<T>(&self, work: impl FnOnce(&Desk<'_>) -> T) -> T {
		let desk = Desk { invites: &self.invites, policy: &self.policy, now: NOW, prepare: &nodeprep };
		work(&desk)
	}

	fn answer(&self, ask: Ask) -> Answer {
		match ask {
			Ask::Nothing | Ask::ExportToBundled => Answer::Nothing,
			Ask::Import => Answer::Import(self.can_import),
			Ask::Accounts(names) => {
				Answer::Accounts(names.into_iter().map(|name| (name.clone(), self.account(&name))).collect())
			}
			Ask::Inviter(username, is_limited) => {
				let account = self.account(&username);
				let roles = vec![vec!["prosody:registered".to_owned()]];
				let inviter = Inviter { username, roles, account_created: None };
				Answer::Inviter(account, is_limited.then_some(inviter))
			}
			Ask::Handlers(drafts) => Answer::Handlers(
				drafts
					.into_iter()
					.map(|mut draft| {
						(self.handler)(&mut draft.invite)?;
						Ok(Handled { invite: draft.invite, restored: vec!["jid"] })
					})
					.collect(),
			),
			Ask::BundledTokens(_) => Answer::BundledTokens(Rc::new(Bundled::Known(HashMap::new()))),
			Ask::Why(..) => Answer::Why((self.why)()),
			Ask::Line(_) => Answer::Line(self.line.map(str::to_owned)),
		}
	}

	fn finish(&self, mut step: Step) -> Done {
		let mut done = Done::default();
		self.asked.set(0);
		loop {
			for effect in step.effects {
				match effect {
					Effect::Print(text) => done.out += &text,
					Effect::Complain(line) => done.err.push(line),
					Effect::Report(problem) => done.reports.push(problem),
					Effect::Row(cells) => done.rows.push(cells),
					Effect::Fire(event, invite) => {
						done.events.push((event, invite.digest.id().to_string()));
					}
					Effect::Restored(field) => done.restored.push(field),
					Effect::EndSoon => done.is_ending = true,
				}
			}
			match step.next {
				Next::Exit(Exit { code, message }) => return Done { code, message, ..done },
				Next::Ask(ask, go) => {
					self.asked.set(self.asked.get() + 1);
					let answer = self.answer(ask);
					step = match go {
						Go::OfHost(go) => self.desk(|desk| go(desk, answer)),
						Go::OfServer(go) => go(answer),
					};
				}
			}
		}
	}

	fn run(&self, line: &str) -> Done {
		self.run_words(&line.split(' ').collect::<Vec<_>>())
	}

	fn run_words(&self, words: &[&str]) -> Done {
		let command = args::parse(words.iter().map(OsString::from)).unwrap();
		let facts = Rc::new(self.facts(command.username()));
		self.finish(self.desk(|desk| begin(desk, command, &facts)))
	}

	/// The token of a new invite.
	fn generate(&self, options: &str) -> String {
		let done = self.run(format!("generate {HOST} {options}").trim_end());
		assert_eq!((done.code, &done.err), (0, &Vec::new()), "{options}");
		let (_, token) = done.out.trim_end().rsplit_once("preauth=").unwrap();
		token.split(';').next().unwrap().to_owned()
	}

	fn invite(&self, token: &str) -> Invite {
		self.invites.find(&Digest::of(token.as_bytes())).unwrap()
	}

	fn shell(&self, line: &str) -> Done {
		let mut words = line.split(' ').map(str::to_owned);
		let (name, selector) = (words.next().unwrap(), words.next().unwrap());
		let localpart = selector.split_once('@').map(|(localpart, _)| localpart.to_owned());
		let line = Line { name, selector, localpart, words: words.collect(), width: 80, ..Line::default() };
		match line.read() {
			Ok(line) => {
				let facts = self.facts(line.username());
				self.finish(self.desk(|desk| shell::begin(desk, &line, &facts)))
			}
			Err(problem) => Done { code: 1, message: Some(problem), ..Done::default() },
		}
	}
}

fn nodeprep(name: &str) -> Option<String> {
	let is_possible = !name.is_empty() && !name.contains(['@', '/', '\n', ' ']);
	is_possible.then(|| name.to_lowercase())
}

fn id_of(token: &str) -> String {
	Digest::of(token.as_bytes()).id().to_string()
}

/// Fails at every call, and counts them.
#[derive(Default)]
struct Broken;

impl Store for Broken {
	fn read(&self, doing: &'static str, _: &str, _: Work<'_>) -> Result<(), StoreError> {
		Err(StoreError::Unavailable { problem: doing.to_owned(), source: "the disk is full".into() })
	}

	fn write(
		&self,
		doing: &'static str,
		host: &str,
		_: &[Lock<'_>],
		work: Work<'_>,
	) -> Result<(), StoreError> {
		self.read(doing, host, work)
	}

	fn health(&self, _: &str, _: Timestamp) -> Vec<Finding> {
		Vec::new()
	}
}

#[test]
fn a_link_stands_alone_and_its_invite_is_what_was_asked_for() {
	let world = World::new();
	let done = world.run("generate example.com --username Romeo -g a -g b --role x --note fair --max-uses 5");
	let (_, token) = done.out.trim_end().rsplit_once("preauth=").unwrap();
	assert_eq!(done.out, format!("xmpp:romeo@example.com?register;preauth={token}\n"));
	assert_eq!(done.events, [("invite-stored", id_of(token))]);
	assert_eq!((done.restored, world.asked.get()), (vec!["jid"], 1));
	let invite = world.invite(token);
	assert_eq!((invite.username.as_deref(), invite.max_uses), (Some("romeo"), Some(5)));
	assert_eq!(invite.expires, Some(NOW + 7 * DAY));
	let Some(data) = invite.fields.get("additional_data") else { panic!("it has none") };
	assert_eq!(data.encode().unwrap(), r#"{"groups":["a","b"],"note":"fair","roles":["x"]}"#);
}

#[test]
fn roles_are_a_map_where_prosody_has_them_so() {
	let mut world = World::new();
	world.facts.has_role_maps = true;
	let invite = world.invite(&world.generate("--admin"));
	let roles = invite.additional_data("roles").unwrap();
	assert_eq!(roles.encode().unwrap(), r#"{"prosody:admin":true}"#);
}

#[test]
fn a_reset_lasts_a_day_and_a_contact_is_whom_it_names() {
	let world = World::new();
	let reset = world.invite(&world.generate("--reset Juliet"));
	assert_eq!((reset.reset_name().as_deref(), reset.expires), (Some("juliet"), Some(NOW + DAY)));
	let contact = world.invite(&world.generate("--contact juliet --allow-registration"));
	assert_eq!(contact.inviter().as_deref(), Some("juliet@example.com"));
	assert!(contact.allow_registration);
	assert!(!world.invite(&world.generate("--contact juliet")).allow_registration);
}

#[test]
fn an_account_that_is_in_the_way_is_named() {
	let world = World::new();
	for (options, code, complaint) in [
		("--username Juliet", 1, "the account Juliet@example.com exists already"),
		("--reset nobody", 1, "there is no account nobody@example.com"),
		("--contact nobody", 1, "there is no account nobody@example.com"),
		("--reset disabled", 1, "the account disabled@example.com is disabled"),
		("--username a@b", 2, "a@b@example.com is not a possible account"),
	] {
		let done = world.run(&format!("generate example.com {options}"));
		assert_eq!(done, Done { err: vec![complaint.to_owned()], code, ..Done::default() }, "{options}");
	}
	assert_eq!(world.run("list example.com --json").out, "");
}

#[test]
fn what_handlers_do_is_stored_and_what_cannot_be_stored_is_reported() {
	let page = |invite: &mut Invite| {
		let token = invite.token.as_ref().unwrap().reveal().to_owned();
		let page = Value::text(&format!("https://x/?preauth={token}"));
		let entries = invite.fields.entries().iter().cloned().chain([(Value::text("landing_page"), page)]);
		invite.fields = entries.collect();
		Ok(())
	};
	let world = World { handler: page, ..World::new() };
	let done = world.run("generate example.com --json");
	assert!(done.out.contains(r#","link":"https://x/?preauth="#), "{}", done.out);
	assert!(world.generate("").len() == 24);

	let problem = || Problem { condition: "bad-request", text: Some("it is too large".to_owned()) };
	let world = World {
		handler: |_| Err(Problem { condition: "bad-request", text: Some("it is too large".to_owned()) }),
		..World::new()
	};
	let done = world.run("generate example.com");
	assert_eq!(done, Done { reports: vec![problem()], code: 1, ..Done::default() });
}

#[test]
fn many_are_made_a_batch_at_a_time() {
	let world = World::new();
	let done = world.run("generate example.com --count 2500");
	assert_eq!((done.out.lines().count(), done.events.len(), world.asked.get()), (2500, 2500, 3));
	assert_eq!(done.restored, [""; 0]);
	assert_eq!(
		world.run("stats example.com --json").out.split(',').next(),
		Some(r#"{"states":{"pending":2500"#)
	);
}

#[test]
fn an_end_after_the_year_9999_is_refused() {
	let world = World::new();
	let token = world.generate("");
	for line in [
		"generate example.com --expires-after 9000y",
		&format!("extend example.com {token} --expires-after 9000y"),
	] {
		let done = world.run(line);
		assert_eq!((done.code, done.reports.len(), done.out.as_str()), (1, 1, ""), "{line}");
		assert!(done.reports[0].text.as_ref().unwrap().contains("before the year 10000"));
	}
}

/// What is done with the store.
#[derive(Default)]
struct Counted {
	store: MemoryStore,
	looks: AtomicUsize,
	writes: AtomicUsize,
}

impl Store for Counted {
	fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.looks.fetch_add(1, SeqCst);
		self.store.read(doing, host, work)
	}

	fn write(
		&self,
		doing: &'static str,
		host: &str,
		locks: &[Lock<'_>],
		work: Work<'_>,
	) -> Result<(), StoreError> {
		self.writes.fetch_add(1, SeqCst);
		self.store.write(doing, host, locks, work)
	}

	fn health(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.store.health(host, now)
	}
}

/// Keeps neither pauses nor history.
#[derive(Default)]
struct Poor(MemoryStore);

impl Store for Poor {
	fn carries(&self) -> Carries {
		Carries { history: false, pause: false, ..Carries::ALL }
	}

	fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		self.0.read(doing, host, work)
	}

	fn write(
		&self,
		doing: &'static str,
		host: &str,
		locks: &[Lock<'_>],
		work: Work<'_>,
	) -> Result<(), StoreError> {
		self.0.write(doing, host, locks, work)
	}

	fn health(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.0.health(host, now)
	}
}

#[test]
fn where_nothing_can_be_paused_everything_is_resumed() {
	let world = World::on(Arc::new(Poor::default()));
	let token = world.generate("");
	assert!(world.run(&format!("resume example.com {token}")).out.contains("pending"));
	let done = world.run(&format!("pause example.com {token}"));
	assert_eq!((done.code, done.reports[0].condition), (1, "feature-not-implemented"));
	assert_eq!(world.run("pause example.com unknown").err, ["there is no such invite: unknown"]);
	assert_eq!(world.run("purge example.com --json").out, "{\"purged\":0}\n");
}

#[test]
fn an_invite_that_is_changed_is_read_once() {
	let store = Arc::new(Counted::default());
	let world = World::on(Arc::clone(&store) as Arc<dyn Store>);
	let token = world.generate("");
	for command in ["pause", "resume", "extend", "revoke"] {
		let option = if command == "extend" { " --expires-after 1h" } else { "" };
		store.looks.store(0, SeqCst);
		store.writes.store(0, SeqCst);
		assert_eq!(world.run(&format!("{command} example.com {token}{option}")).code, 0);
		// One look is for who used it; to extend it, one more is for the name that is locked.
		let looks = if command == "extend" { 2 } else { 1 };
		assert_eq!((store.looks.load(SeqCst), store.writes.load(SeqCst)), (looks, 1), "{command}");
	}
}

#[test]
fn an_invite_is_printed_as_it_is_after_a_change_and_to_want_what_is_so_is_no_mistake() {
	let world = World::new();
	let token = world.generate("");
	for (command, state) in [
		("pause", "paused"),
		("pause", "paused"),
		("resume", "pending"),
		("resume", "pending"),
		("revoke", "revoked"),
		("revoke", "revoked"),
	] {
		let done = world.run(&format!("{command} example.com {} --json", &id_of(&token)[..6]));
		assert!(done.out.contains(&format!(r#""state":"{state}""#)), "{command}: {done:?}");
		assert!(!done.out.contains(&token));
	}
	for command in ["pause", "resume", "extend --expires-after 1h"] {
		let (command, option) = command.split_once(' ').unwrap_or((command, ""));
		let done = world.run(format!("{command} example.com {token} {option}").trim_end());
		assert_eq!((done.code, done.err), (1, vec![format!("the invite {} is revoked", id_of(&token))]));
	}
}

#[test]
fn the_end_of_an_invite_is_told_with_who_and_why() {
	let world = World::new();
	let (token, other) = (world.generate("--username romeo"), world.generate(""));
	let done = world.run_words(&["revoke", HOST, &other, "--why", "it rained"]);
	assert_eq!(done.events, [("invite-revoked", id_of(&other))]);
	assert!(done.out.contains("revoked by prosodyctl\nbecause    it rained\n"), "{}", done.out);
	// A newer one takes the place of the older.
	let newer = world.run("generate example.com --username romeo");
	assert_eq!(newer.events[0], ("invite-revoked", id_of(&token)));
}

#[test]
fn an_invite_that_is_not_known_may_be_one_of_the_bundled_modules() {
	let mut world = World::new();
	for command in ["show", "pause", "revoke", "release", "why"] {
		let line = format!("{command} example.com abcdef");
		let done = world.run(&line);
		assert_eq!((done.code, done.err), (1, vec!["there is no such invite: abcdef".to_owned()]), "{line}");
		assert_eq!(world.asked.get(), 1, "{line}");
		world.can_import = false;
		let done = world.run(&line);
		assert_eq!(done, Done { code: 1, ..Done::default() }, "why was said before");
		world.can_import = true;
	}
}

#[test]
fn a_listing_goes_on_where_it_ended_under_one_header() {
	let world = World::new();
	world.run("generate example.com --count 450");
	let all = world.run("list example.com").out;
	assert_eq!((all.lines().count(), all.matches("STATE").count()), (451, 1));
	let first: Vec<String> =
		world.run("list example.com --limit 3").out.lines().skip(1).map(str::to_owned).collect();
	assert_eq!(first.len(), 3);
	let after = first[2].split(' ').next().unwrap();
	let next = world.run(&format!("list example.com --limit 2 --after {after}")).out;
	assert_eq!(next.lines().skip(1).collect::<Vec<_>>(), all.lines().skip(4).take(2).collect::<Vec<_>>());
	let none = world.run("history example.com");
	assert_eq!((none.code, none.err), (0, vec!["no such invites".to_owned()]));
	let done = world.run(&format!("history example.com --after {after}"));
	assert_eq!(done.err, [format!("there is no such invite: {after}")], "it is in the other part");
}

#[test]
fn an_invite_that_somebody_uses_is_freed_by_who_says_so() {
	let mut world = World::new();
	let token = world.generate("");
	let free = format!("release example.com {token}");
	assert_eq!(world.run(&free).err, [format!("nobody is using the invite {token}")]);
	let claim = |world: &World| {
		let attempt = Attempt {
			digest: Digest::of(token.as_bytes()),
			purpose: Purpose::Account,
			invitee: Some("bob".to_owned()),
			depends_on: Vec::new(),
		};
		world.invites.claim(attempt, None, NOW).unwrap().unwrap()
	};
	claim(&world);
	let done = world.run(&free);
	assert!(done.out.starts_with("bob has been using it since "), "{}", done.out);
	assert_eq!(
		(done.code, done.err),
		(1, vec!["say --yes to free the invite".to_owned(), "nothing was released".to_owned()])
	);
	world.facts.is_terminal = true;
	for line in [None, Some("no")] {
		world.line = line;
		assert_eq!(world.run(&free).err, ["nothing was released"], "{line:?}");
	}
	world.line = Some("yes");
	assert!(world.run(&free).out.ends_with("\nthe invite is free\n"));
	claim(&world);
	let done = world.run(&format!("{free} --yes --json"));
	assert_eq!((done.out.as_str(), done.err.len()), ("{\"released\":1}\n", 1));
}

#[test]
fn the_invites_of_a_user_are_revoked_at_once() {
	let world = World::new();
	let token = world.generate("--contact juliet");
	let done = world.run("revoke example.com --inviter Juliet --branch");
	assert_eq!(done.out, "1 open invites of Juliet@example.com and the user's branch were revoked\n");
	assert_eq!(done.events, [("invite-revoked", id_of(&token))]);
	assert_eq!(world.run("revoke example.com --inviter juliet --json").out, "{\"revoked\":0}\n");
	assert_eq!(world.run("revoke example.com --inviter a@b").err, ["a@b is not a possible username"]);
}

#[test]
fn the_end_of_many_goes_on_in_the_server_and_is_waited_for_at_a_prompt() {
	let mut world = World::new();
	world.invites = world.invites.clone().in_batches_of(2);
	for is_here in [false, true] {
		world.facts.is_here = is_here;
		world.run("generate example.com --contact juliet --count 5");
		let done = world.run("revoke example.com --inviter juliet");
		assert_eq!(done.code, 0);
		if is_here {
			assert_eq!((done.events.len(), done.is_ending), (5, false));
			assert_eq!(done.out, "5 open invites of juliet@example.com were revoked\n");
		} else {
			assert_eq!((done.events.len(), done.is_ending), (2, true));
			assert_eq!(
				done.out,
				"2 open invites of juliet@example.com were revoked\n\
				 The others are not good any more either, and are being revoked\n"
			);
			while world.invites.end_more(NOW).unwrap().is_more {}
		}
	}
}

#[test]
fn a_tree_says_which_accounts_are_there() {
	let world = World::new();
	world.generate("--contact juliet");
	assert!(world.run("tree example.com juliet").out.starts_with("juliet@example.com\n  · "));
	assert_eq!(world.run("tree example.com nobody").out, "nobody@example.com (missing)\n");
	assert_eq!(world.run("tree example.com nobody --accounts").out, "");
	assert_eq!(world.run("tree example.com juliet --accounts").out, "juliet@example.com\n");
	assert_eq!(world.run("tree example.com a@b").err, ["a@b is not a possible username"]);
}

#[test]
fn who_may_not_invite_is_told_the_limit() {
	let mut world = World::new();
	assert_eq!(world.run("why example.com --inviter juliet").out, "allowed\n");
	assert_eq!(world.run("why example.com --inviter nobody").err, ["there is no account nobody@example.com"]);
	assert_eq!(world.run("why example.com --inviter a@b").code, 2);
	let limits = Limits { max_open: Some(1), kinds: Some(vec!["contact".to_owned()]), ..Limits::default() };
	world.policy.roles.insert("prosody:registered".to_owned(), limits);
	assert_eq!(world.run("why example.com --inviter juliet").out, "allowed\n");
	let done = world.run("why example.com --inviter juliet --kind group");
	assert_eq!(done.code, 1);
	assert!(
		done.out.ends_with("[invite_limits[\"prosody:registered\"]: kinds is without \"group\"]\n"),
		"{}",
		done.out
	);
	world.generate("--contact juliet");
	let done = world.run("why example.com --inviter juliet --json");
	let told: serde_json::Value = serde_json::from_str(&done.out).unwrap();
	assert_eq!(told["condition"], "policy-violation");
	assert_eq!(told["limit"], "invite_limits[\"prosody:registered\"]: max_open = 1");
}

#[test]
fn an_operator_is_told_more_of_an_invite_than_a_stranger() {
	let mut world = World::new();
	let token = world.generate("");
	let why = format!("why example.com {token}");
	assert_eq!(world.run(&why).out, "accepted\n");
	world.why = || Err(Problem { condition: "token-invalid", text: Some("there is none".to_owned()) });
	assert_eq!(world.run(&why).out, "refused (token-invalid): there is none\n");
	world.run(&format!("pause example.com {token}"));
	let done = world.run(&why);
	assert_eq!((done.code, done.out.as_str()), (1, "refused (token-invalid): the invite is paused\n"));
	let done = world.run(&format!("{why} --json"));
	let id = id_of(&token);
	let expected = format!(
		"{{\"accepted\":false,\"condition\":\"token-invalid\",\"id\":\"{id}\",\"state\":\"paused\",\"text\":\"the invite is paused\"}}\n"
	);
	assert_eq!(done.out, expected);
}

#[test]
fn history_that_is_old_enough_is_removed() {
	let mut world = World::new();
	let token = world.generate("");
	world.run(&format!("revoke example.com {token}"));
	assert_eq!(
		world.run("purge example.com").out,
		"0 invites were removed from the history of example.com\n"
	);
	world.facts.shortest_history = -1;
	assert_eq!(world.run("purge example.com --older-than 1s --json").out, "{\"purged\":0}\n");
	world.facts.history_age = None;
	assert_eq!(world.run("purge example.com --json").out, "{\"purged\":0}\n");
	world.facts.history_age = Some(-1);
	assert_eq!(world.run("purge example.com --json").out, "{\"purged\":1}\n");
}

#[test]
fn what_is_exported_can_be_imported() {
	let (from, mut to) = (World::new(), World::new());
	from.generate("--note fair");
	let spent = from.generate("");
	from.run(&format!("revoke example.com {spent}"));
	let text = from.run("export example.com").out;
	assert_eq!((text.lines().count(), from.run("export example.com --pending").out.lines().count()), (2, 1));
	to.facts.input = Some(text.clone().into_bytes());
	assert_eq!(to.run("import example.com -").out, "2 invites imported for example.com, 0 were known\n");
	assert_eq!(to.run("import example.com -").out, "0 invites imported for example.com, 2 were known\n");
	assert_eq!(to.run("export example.com").out, text);
	to.facts.input = Some(b"{\n".to_vec());
	let done = to.run("import example.com -");
	assert_eq!((done.code, done.err.last().unwrap().as_str()), (1, "nothing was imported"));
}

#[test]
fn an_export_makes_a_new_file_and_leaves_none_that_is_there_alone() {
	let mut world = World::new();
	world.facts.is_here = true;
	world.generate("");
	let directory = tempfile::tempdir().unwrap();
	let file = directory.path().join("invites.jsonl");
	let line = format!("export example.com --output {}", file.display());
	assert_eq!(world.run(&line).out, format!("1 invites of example.com are in {}\n", file.display()));
	assert_eq!(std::fs::read_to_string(&file).unwrap(), world.run("export example.com").out);
	assert!(world.run(&line).err[0].contains("cannot be created"));
}

#[test]
fn a_storage_that_fails_is_reported_once_and_nothing_is_printed() {
	let world = World::on(Arc::new(Broken));
	for line in [
		"generate h",
		"generate h --json",
		"generate h --count 2",
		"generate h --contact juliet",
		"list h",
		"list h --json",
		"list h --after abcdef",
		"history h",
		"show h abcdef",
		"revoke h abcdef",
		"revoke h --inviter juliet",
		"release h abcdef",
		"pause h abcdef",
		"resume h abcdef",
		"extend h abcdef --expires-after 1d",
		"why h abcdef",
		"tree h juliet",
		"stats h",
		"purge h",
		"export h",
	] {
		let done = world.run(line);
		assert_eq!((done.code, done.out.as_str(), done.reports.len()), (1, "", 1), "{line}: {done:?}");
		assert!(done.reports[0].text.as_ref().unwrap().contains("the disk is full"), "{line}");
		assert_eq!((done.events, done.err), (Vec::new(), Vec::new()), "{line}");
	}
	for line in [
		"create_account h",
		"create_contact juliet@h",
		"show h abcdef",
		"delete h abcdef",
		"list h",
		"history h",
		"pause h abcdef",
		"why h abcdef",
	] {
		let done = world.shell(line);
		assert_eq!(
			done.message.as_deref(),
			Some("The invite could not be stored or read; see the log"),
			"{line}"
		);
		assert_eq!(done.reports.len(), 1, "{line}");
	}
}

#[test]
fn the_shell_makes_invites_in_the_words_of_the_bundled_module() {
	let world = World::new();
	let done =
		world.shell("create_account romeo@example.com --admin --role x --expires-after 2h --max-uses=3");
	let link = done.message.unwrap();
	assert!(link.starts_with("xmpp:romeo@example.com?register;preauth="), "{link}");
	let invite = world.invite(link.rsplit_once('=').unwrap().1);
	assert_eq!((invite.expires, invite.max_uses), (Some(NOW + 7200), Some(3)));
	let data = invite.fields.get("additional_data").unwrap().encode().unwrap();
	assert_eq!(data, r#"{"groups":{},"roles":["prosody:admin","x"]}"#);

	let done = world.shell("create_reset juliet@example.com");
	assert!(done.out.starts_with("xmpp:juliet@example.com?register;preauth="));
	assert!(done.message.unwrap().starts_with("Password reset link for juliet@example.com valid until "));
	for words in ["--allow-registration", "true"] {
		let link = world.shell(&format!("create_contact juliet@example.com {words}")).message.unwrap();
		assert!(link.ends_with(";ibr=y"), "{link}");
	}
	let contact = world.shell("create_contact juliet@example.com").message.unwrap();

	let mut described: Vec<String> =
		world.shell("list example.com").rows.into_iter().map(|row| row[2].clone()).collect();
	described.sort();
	let expected = [
		"Contact with juliet@example.com",
		"Contact with juliet@example.com",
		"Contact with juliet@example.com",
		"Password reset for juliet@example.com",
		"Register on example.com with username romeo",
	];
	assert_eq!(described, expected);
	assert_eq!(world.shell("list example.com").message.as_deref(), Some("5 pending invites"));

	let token = contact.rsplit_once('=').unwrap().1;
	let shown = world.shell(&format!("show example.com {token}"));
	assert!(
		shown.out.starts_with("Invitation to become a contact of juliet@example.com\nCreated:\t"),
		"{}",
		shown.out
	);
	assert!(shown.out.contains(&format!("\n\nXMPP URI:\t{contact}\n")));
	assert_eq!(shown.message.as_deref(), Some("Invitation valid"));
	assert_eq!(
		world.shell(&format!("show example.com {}", id_of(token))).message.as_deref(),
		Some("Invitation found by its id")
	);
	for last in ["Invitation deleted", "Invitation not found"] {
		assert_eq!(world.shell(&format!("delete example.com {token}")).message.as_deref(), Some(last));
	}
	assert_eq!(world.shell(&format!("show example.com {token}")).message.as_deref(), Some("token-invalid"));
	let history = world.shell("history example.com");
	assert_eq!(history.message.as_deref(), Some("1 ended invites"));
	assert!(history.out.contains(&id_of(token)));
}

#[test]
fn the_shell_shows_roles_groups_and_notes() {
	let world = World::new();
	let token = world.generate("--role x --note fair -g friends");
	let shown = world.shell(&format!("show example.com {token}")).out;
	assert!(shown.ends_with("\n\nRole:\tx\nGroups:\tfriends\nComment:\tfair\n"), "{shown}");
}

#[test]
fn the_shell_changes_invites_and_says_what_cannot_be_changed() {
	let mut world = World::new();
	let token = world.generate("");
	for (line, message) in [
		("pause", "Invitation paused"),
		("pause", "The invitation has ended, or is so already"),
		("resume", "Invitation resumed"),
		("extend", "Supply --expires-after"),
		("why", "Invitation would be accepted"),
	] {
		let done = world.shell(&format!("{line} example.com {token}"));
		assert_eq!(done.message.as_deref(), Some(message), "{line}");
	}
	assert_eq!(
		world.shell(&format!("extend example.com {token} --expires-after 2h")).message.as_deref(),
		Some("Invitation extended")
	);
	assert_eq!(world.invite(&token).expires, Some(NOW + 7200));
	world.why = || Err(Problem { condition: "token-busy", text: Some("somebody uses it".to_owned()) });
	let done = world.shell(&format!("why example.com {token}"));
	assert_eq!((done.code, done.message.as_deref(), done.reports.len()), (1, Some("somebody uses it"), 0));
}

#[test]
fn a_line_of_the_shell_that_is_wrong_is_told_what_is() {
	let world = World::new();
	for (line, problem) in [
		("create_account example.com --frob", "Unknown parameter: --frob"),
		("create_account example.com --group a", "Unknown parameter: --group"),
		("create_account example.com --note", "Expected value after --note"),
		("create_account example.com more", "Unexpected argument: more"),
		("create_account example.com --max-uses 0", "Unable to count to: 0"),
		("create_account example.com --expires-after soon", "Unable to parse duration: soon"),
		("create_account a/b@example.com", "This is not a possible username"),
		("create_account juliet@example.com", "There is an account with this username already"),
		("create_reset example.com", "Supply the JID of the account, not only a host"),
		("create_reset nobody@example.com", "There is no such account"),
		("create_contact example.com", "Supply the JID of the account, not only a host"),
		("show example.com", "Supply the token"),
		("history example.com --limit 1e30", "Unable to count to: 1e30"),
	] {
		let done = world.shell(line);
		assert_eq!((done.code, done.message.as_deref()), (1, Some(problem)), "{line}");
	}
	assert_eq!(world.shell("list example.com").message.as_deref(), Some("0 pending invites"));
}

#[test]
fn flags_that_the_shell_has_read_count_as_those_that_were_typed() {
	let world = World::new();
	let flags = HashMap::from([("group".to_owned(), vec!["a".to_owned()]), ("admin".to_owned(), Vec::new())]);
	let line = Line {
		name: "create_account".to_owned(),
		selector: HOST.to_owned(),
		flags,
		has_groups: true,
		..Line::default()
	};
	let line = line.read().unwrap();
	let done = world.finish(world.desk(|desk| shell::begin(desk, &line, &world.facts(None))));
	let invite = world.invite(done.message.unwrap().rsplit_once('=').unwrap().1);
	let data = invite.fields.get("additional_data").unwrap().encode().unwrap();
	assert_eq!(data, r#"{"groups":["a"],"roles":["prosody:admin"]}"#);
}

#[test]
fn the_worst_finding_is_the_exit_code_of_check() {
	let mut world = World::new();
	let modules = ["register_ibr", "invites", "invites_register"];
	world.facts.configuration.modules = modules.map(str::to_owned).into_iter().collect();
	for (finding, code) in [
		(Finding::ok("it is there"), 0),
		(Finding::warning("it is full"), 1),
		(Finding::critical("it is gone"), 2),
	] {
		world.facts.storage = vec![finding.clone()];
		let command = args::parse(["check", HOST].map(OsString::from)).unwrap();
		let done = world.finish(begin_alone(&command, &Rc::new(world.facts(None))).unwrap());
		assert_eq!(done.code, code, "{done:?}");
		assert!(done.out.contains(&format!("\n{}: {}\n", finding.level.as_str(), finding.text)));
		assert!(done.out.ends_with("ok: the configuration makes sense\n"), "{}", done.out);
	}
}
