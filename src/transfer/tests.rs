use std::cell::Cell;
use std::io::Cursor;
use std::sync::Arc;

use super::*;
use crate::invite::{Invite, Type};
use crate::redemption::{Claim, Purpose};
use crate::store::Store;
use crate::store::conformance::{Uses, claim, sample};
use crate::store::memory::MemoryStore;
use crate::store::sqlite::SqliteStore;
use crate::token::Token;

const NOW: Timestamp = 1_700_000_000;
const HOST: &str = "example.com";

fn lower(name: &str) -> Option<String> {
	(name != "nobody").then(|| name.to_lowercase())
}

const TERMS: Terms<'_> = Terms { prepare: &lower, is_shared: false, progress: &|_, _| () };

fn invites(store: Arc<dyn Store>) -> Invites {
	Invites::new(HOST.to_owned(), store)
}

fn memory() -> Invites {
	invites(Arc::new(MemoryStore::default()))
}

fn exported(invites: &Invites) -> String {
	let mut text = Vec::new();
	export(invites, None, &mut text).unwrap();
	String::from_utf8(text).unwrap()
}

fn imported(invites: &Invites, text: &str) -> Result<Imported, ImportError> {
	import(invites, &mut Cursor::new(text), &TERMS)
}

fn wrong(text: &str) -> Vec<String> {
	let invites = memory();
	match imported(&invites, text) {
		Err(ImportError::Wrong(lines)) => {
			assert_eq!(exported(&invites), "", "nothing is written");
			lines
		}
		other => panic!("{text}: {other:?}"),
	}
}

/// A store with invites of every state.
fn varied(store: &dyn Uses) {
	let invite = |token: &str| Invite { username: None, invite_type: Type::Register, ..sample(HOST, token) };
	let bound = Invite { username: Some("juliet".to_owned()), expires: None, ..invite("bound") };
	let [pending, used, several, revoked, paused] = [
		sample(HOST, "pending"),
		invite("used"),
		Invite { max_uses: Some(3), ..invite("several") },
		invite("revoked"),
		invite("paused"),
	];
	let unknown_token = Invite { token: None, ..invite("a token that nobody has kept") };
	let group = Invite { max_uses: None, ..invite("group") };
	for invite in [&pending, &bound, &used, &several, &revoked, &paused, &unknown_token, &group] {
		store.create(invite).unwrap();
	}
	let redeem = |claim: &Claim, at| store.redeem_at_once(claim, Some("test"), at).unwrap().unwrap();
	redeem(&claim(&used, Purpose::Account, "romeo", NOW), NOW);
	redeem(&claim(&several, Purpose::Account, "b", NOW), NOW + 1);
	redeem(&Claim { invitee: None, ..claim(&several, Purpose::Account, "", NOW) }, NOW);
	store.revoke(HOST, &revoked.digest, Some("a \"reason\""), Some("me"), NOW).unwrap().unwrap();
	assert!(store.set_paused(HOST, &paused.digest, true).unwrap());
	assert_eq!(store.end_expired(HOST, 1, NOW + 100).unwrap().len(), 1);
}

#[test]
fn export_import_export_gives_the_same_bytes_between_all_stores() {
	let scratch = tempfile::tempdir().unwrap();
	let store = Arc::new(MemoryStore::default());
	varied(&store);
	let first = exported(&invites(store));
	assert_eq!(first.lines().count(), 8);
	let sqlite = SqliteStore::new(&scratch.path().join("invites.sqlite3"), Duration::from_secs(10));
	let (sqlite, again) = (invites(Arc::new(sqlite)), memory());
	assert_eq!(imported(&sqlite, &first).unwrap().imported, 8);
	assert_eq!(exported(&sqlite), first);
	assert_eq!(imported(&again, &exported(&sqlite)).unwrap().imported, 8);
	assert_eq!(exported(&again), first);
}

#[test]
fn a_line_is_readable() {
	let store = Arc::new(MemoryStore::default());
	let invite =
		Invite { invite_type: Type::Register, username: None, max_uses: Some(2), ..sample(HOST, "t") };
	store.create(&invite).unwrap();
	store
		.redeem_at_once(&claim(&invite, Purpose::Account, "romeo", NOW), Some("test"), NOW)
		.unwrap()
		.unwrap();
	let nonce = store.redemptions(HOST, &invite.digest).unwrap()[0].nonce;
	let nonce = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, nonce.as_bytes());
	let expected = format!(
		concat!(
			r#"{{"host":"example.com","token":"t","type":"register","allow_registration":true,"created_at":1700000000,"#,
			r#""expires":1700000060,"max_uses":2,"uses":1,"fields":{{"additional_data":{{"groups":"#,
			r#"["a",{{"$bytes":"AP8="}}]}}}},"redemptions":[{{"nonce":"{}","purpose":"account","invitee":"romeo","#,
			r#""source":"test","used_at":1700000000}}]}}"#,
			"\n"
		),
		nonce
	);
	assert_eq!(exported(&invites(store)), expected);
}

#[test]
fn what_is_pending_can_be_exported_alone() {
	let store = Arc::new(MemoryStore::default());
	varied(&store);
	let mut text = Vec::new();
	assert_eq!(export(&invites(store), Some(NOW), &mut text).unwrap(), 5);
	let text = String::from_utf8(text).unwrap();
	assert!(
		!text.contains("\"revoked\"") && !text.contains("\"used\"") && !text.contains("\"paused\""),
		"{text}"
	);
}

const GOOD: &str = r#"{"host":"example.com","token":"good","type":"register","allow_registration":true,"created_at":1,"expires":null,"max_uses":1}"#;

#[test]
fn a_bad_line_is_told_by_number_and_nothing_is_written() {
	for (bad, named) in [
		("{", "is no invite"),
		("[1]", "is no invite"),
		("5", "is no invite"),
		(r#"{"host":"example.com"}"#, "is no invite: missing field"),
		(&GOOD.replace("\"max_uses\":1", "\"max_uses\":1,\"color\":1"), "color"),
		(&GOOD.replace(",\"expires\":null", ""), "expires"),
		(&GOOD.replace(",\"max_uses\":1", ""), "max_uses"),
		(&GOOD.replace("\"max_uses\":1", "\"max_uses\":0"), "can never be used"),
		(&GOOD.replace("example.com", "example.net"), "for the host \"example.net\""),
		(&GOOD.replace("\"token\":\"good\",", ""), "needs a token"),
		(&GOOD.replace("\"token\":\"good\"", "\"token\":\"\""), "needs a token"),
		(&GOOD.replace("\"token\"", "\"digest\":\"x\",\"token\""), "or else a digest"),
		(&GOOD.replace("\"token\":\"good\"", "\"digest\":\"x\""), "digest that is none"),
		(&GOOD.replace("register\"", "reset\""), "unknown type"),
		(&GOOD.replace("\"type\":\"register\"", "\"type\":\"roster\""), "does not say who invites"),
		(&GOOD.replace("\"type\"", "\"username\":\"Romeo\",\"type\""), "\"Romeo\""),
		(&GOOD.replace("\"max_uses\":1", "\"max_uses\":1,\"fields\":[1]"), "name is no text"),
		(
			&GOOD.replace(
				"\"max_uses\":1",
				r#""max_uses":1,"redemptions":[{"nonce":"AAAAAAAAAAAAAAAAAAAAAA","purpose":"account","used_at":1}]"#,
			),
			"more uses than it counts",
		),
	] {
		let text = format!("{GOOD}\n\n{bad}\n{}\n", GOOD.replace("good", "better"));
		let [line] = &wrong(&text)[..] else { panic!("{bad}") };
		assert!(line.starts_with("line 3: ") && line.contains(named), "{bad}: {line}");
	}
}

#[test]
fn of_many_bad_lines_ten_are_told() {
	let lines = wrong(&"{\n".repeat(1000));
	assert_eq!((lines.len(), lines[10].as_str()), (11, "and 990 more"));
}

#[test]
fn a_line_without_end_is_refused() {
	let lines = wrong(&"x".repeat(usize::try_from(MAX_LINE).unwrap() + 1));
	assert!(lines[0].starts_with("line 1: is longer than"), "{lines:?}");
}

#[test]
fn data_nested_deeper_than_the_reader_likes_is_read_and_without_end_is_refused() {
	let nested = |depth: usize| {
		let fields = format!("{{\"a\":{}{}}}", "[".repeat(depth), "]".repeat(depth));
		GOOD.replace("\"max_uses\":1", &format!("\"max_uses\":1,\"fields\":{fields}"))
	};
	assert_eq!(imported(&memory(), &nested(190)).unwrap().imported, 1);
	assert!(wrong(&nested(100_000))[0].contains("nested too deep"));
	let unknown = GOOD.replace("\"max_uses\":1", &format!("\"max_uses\":1,\"x\":{}", "[".repeat(100_000)));
	assert!(wrong(&unknown)[0].contains('x'));
}

#[test]
fn what_is_known_stays_as_it_is_and_an_import_can_be_repeated() {
	let store = Arc::new(MemoryStore::default());
	let invites = invites(Arc::clone(&store) as Arc<dyn Store>);
	let text = format!("{GOOD}\n{}\n{GOOD}", GOOD.replace("good", "better"));
	let first = imported(&invites, &text).unwrap();
	assert_eq!((first.imported, first.known), (2, 1));
	let good = Token::from_stored("good".to_owned()).digest();
	store.revoke(HOST, &good, None, None, NOW).unwrap().unwrap();
	let again = imported(&invites, &text).unwrap();
	assert_eq!((again.imported, again.known), (0, 3));
	assert!(store.find(HOST, &good).unwrap().unwrap().revoked_at.is_some());
}

#[test]
fn progress_reaches_the_end_over_many_batches() {
	let text: String = (0..1234).map(|index| GOOD.replace("good", &format!("{index}")) + "\n").collect();
	let last = Cell::new((0, 0));
	let progress = |done, total| {
		assert!(done == last.get().0 + 1 && total == 1234);
		last.set((done, total));
	};
	let terms = Terms { progress: &progress, is_shared: true, ..TERMS };
	assert_eq!(import(&memory(), &mut Cursor::new(text), &terms).unwrap().imported, 1234);
	assert_eq!(last.get(), (1234, 1234));
}

/// As ejabberd's HTTP API answers `list_invites`: its `mod_invites.erl` of 26.01 makes these tuples.
fn from_ejabberd(changes: &[(&str, &str)]) -> String {
	let mut object = serde_json::json!({
		"token": "mzS7hB3Uxo1nvTnIhYg6GkZK",
		"valid": "true",
		"created_at": "2026-02-01T10:00:00Z",
		"expires": "2026-02-06T10:00:00Z",
		"type": "account_only",
		"inviter": "example.com",
		"invitee": "",
		"account_name": "",
		"token_uri": "xmpp:example.com?register;preauth=mzS7hB3Uxo1nvTnIhYg6GkZK",
		"landing_page": "https://example.com/invites/mzS7hB3Uxo1nvTnIhYg6GkZK",
	});
	for (key, value) in changes {
		object[*key] = (*value).into();
	}
	object.to_string()
}

fn taken_over(changes: &[(&str, &str)]) -> (Record, Vec<String>) {
	let invites = memory();
	let done = imported(&invites, &format!("[\n{}\n]", from_ejabberd(changes))).unwrap();
	(invites.records(None, 10).unwrap().remove(0), done.remarks)
}

#[test]
fn what_ejabberd_lists_becomes_the_same_invite_here() {
	let (Record { invite, redemptions }, remarks) = taken_over(&[]);
	assert_eq!((invite.invite_type, invite.username.as_deref()), (Type::Register, None));
	assert_eq!((invite.created_at, invite.expires), (1_769_940_000, Some(1_770_372_000)));
	assert_eq!((invite.max_uses, invite.uses, invite.ended_at), (Some(1), 0, None));
	assert!(invite.allow_registration && redemptions.is_empty() && remarks.is_empty());

	let juliet = ("inviter", "juliet@example.com");
	let (contact, _) = taken_over(&[
		("type", "roster_only"),
		juliet,
		("token_uri", "xmpp:juliet@example.com?roster;preauth=x"),
	]);
	assert_eq!((contact.invite.invite_type, contact.invite.allow_registration), (Type::Roster, false));
	assert_eq!(contact.invite.username.as_deref(), Some("juliet"));
	let (both, _) = taken_over(&[
		("type", "roster_only"),
		juliet,
		("token_uri", "xmpp:juliet@example.com?roster;preauth=x;ibr=y"),
	]);
	assert!(both.invite.allow_registration);

	let (subscription, _) = taken_over(&[("type", "account_subscription"), juliet]);
	assert_eq!(
		(subscription.invite.invite_type, subscription.invite.allow_registration),
		(Type::Roster, true)
	);

	let (bound, remarks) = taken_over(&[("type", "account_subscription"), juliet, ("account_name", "Romeo")]);
	assert_eq!((bound.invite.invite_type, bound.invite.username.as_deref()), (Type::Register, Some("romeo")));
	assert!(remarks[0].starts_with("invite 1: is bound to a username"), "{remarks:?}");

	let (reset, _) = taken_over(&[("type", "reset_token"), ("account_name", "romeo")]);
	assert_eq!(
		(reset.invite.kind(), reset.invite.username.as_deref()),
		(crate::invite::Kind::Reset, Some("romeo"))
	);

	let (used, _) =
		taken_over(&[("valid", "false"), ("invitee", "romeo@example.com"), ("account_name", "romeo")]);
	assert_eq!(used.invite.state(used.invite.created_at), State::Used);
	assert_eq!(used.redemptions[0].invitee.as_deref(), Some("romeo"));
}

#[test]
fn one_invite_of_ejabberd_a_line_will_do() {
	let text = format!("{}\n{}\n", from_ejabberd(&[]), from_ejabberd(&[("token", "second")]));
	assert_eq!(imported(&memory(), &text).unwrap().imported, 2);
}

#[test]
fn what_ejabberd_lists_and_nobody_can_have_here_is_told() {
	for (changes, named) in [
		(("inviter", "juliet@example.net"), "not of this host"),
		(("type", "other"), "unknown variant"),
		(("expires", "tomorrow"), "tomorrow"),
		(("token", ""), "has no token"),
		(("account_name", "nobody"), "no username"),
	] {
		let lines = wrong(&format!("[{}]", from_ejabberd(&[changes])));
		assert!(lines[0].contains(named), "{lines:?}");
	}
	assert!(wrong("[")[0].starts_with("line 1: is no list of invites"));
}
