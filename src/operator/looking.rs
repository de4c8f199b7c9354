//! Commands that change nothing.

use std::fmt::Write as _;

use serde_json::{Map, json};

use super::args;
use super::stats::Stats;
use super::step::{Answer, Ask, Desk, Effect, Facts, PIECE, Problem, Step};
use super::text::{self, Detail, Listing, as_line};
use super::tree::Branch;
use super::voice::{Voice, named, refuse_account};
use crate::check::{Finding, Level};
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::{Invite, Type};
use crate::invites::Request;
use crate::lifecycle::State;
use crate::listing::{Filter, Part, Position};
use crate::policy::Inviter;
use crate::redemption::Account;
use crate::token::{Digest, Token};
use crate::value::Value;

/// Invites in one page of a listing: a few milliseconds.
const PAGE: u32 = 200;

/// A listing, page by page.
pub(super) struct Pages {
	pub(super) filter: Filter,
	pub(super) part: Part,
	pub(super) is_json: bool,
	pub(super) show_token: bool,
	pub(super) is_in_band: bool,
	pub(super) width: u16,
	/// How many invites may be shown yet.
	pub(super) left: Option<u32>,
	pub(super) shown: u32,
	pub(super) voice: Voice,
}

impl Pages {
	/// Of the words of `list` and `history`.
	fn of(picked: &args::Picked, (filter, part): (Filter, Part), facts: &Facts) -> Self {
		Self {
			filter,
			part,
			is_json: picked.output.json,
			show_token: false,
			is_in_band: facts.is_in_band,
			width: picked.output.width(),
			left: picked.limit.map(std::num::NonZeroU32::get),
			shown: 0,
			voice: Voice::Prosodyctl,
		}
	}

	/// From the beginning, or after the invite that is named.
	fn begin(self, desk: &Desk<'_>, after: Option<String>) -> Step {
		let Some(after) = after else {
			return Step::ask(Ask::Import, move |desk, _| self.go_on(desk, Position::START));
		};
		named(desk, self.voice, after.clone(), move |desk, digest| {
			let position = desk.invites.find(&digest).map(|invite| invite.position(self.part, desk.now));
			match position {
				Ok(Some(position)) => self.go_on(desk, position),
				// It is in the other part.
				Ok(None) => self.voice.refuse(InviteError::TokenInvalid.into(), &after),
				Err(error) => self.voice.refuse(error.into(), &after),
			}
		})
	}

	/// Prints what follows, a piece at a time.
	pub(super) fn go_on(mut self, desk: &Desk<'_>, mut after: Position) -> Step {
		let mut text = String::new();
		loop {
			let page = desk.invites.list(&self.filter, self.part, &after, PAGE, desk.now);
			let (mut page, next) = match page {
				Ok(page) => page,
				Err(error) => {
					return self.voice.refuse(error.into(), "").after(vec![Effect::Print(text)]);
				}
			};
			let left = self.left.map_or(usize::MAX, |left| usize::try_from(left).unwrap_or(usize::MAX));
			page.truncate(left);
			text += &self.text(&page, desk.now);
			let shown = u32::try_from(page.len()).unwrap_or(u32::MAX);
			self.shown = self.shown.saturating_add(shown);
			self.left = self.left.map(|left| left.saturating_sub(shown));
			match next {
				Some(next) if self.left != Some(0) => after = next,
				_ => return self.finish(text),
			}
			if text.len() >= PIECE {
				let step = Step::ask(Ask::Nothing, move |desk, _| self.go_on(desk, after));
				return step.after(vec![Effect::Print(text)]);
			}
		}
	}

	fn text(&self, page: &[Invite], now: Timestamp) -> String {
		if self.is_json {
			let detail =
				Detail { show_token: self.show_token, is_in_band: self.is_in_band, redemptions: None };
			return page.iter().map(|invite| text::json(invite, detail, now)).collect();
		}
		let listing = Listing::new(self.part, self.show_token, self.width);
		// Nothing stands above nothing.
		let header = if self.shown == 0 && !page.is_empty() { listing.header() } else { String::new() };
		header + &listing.page(page, self.is_in_band, now)
	}

	fn finish(&self, text: String) -> Step {
		match self.voice {
			Voice::Prosodyctl if self.shown == 0 && !self.is_json => {
				Step::exit(vec![Effect::Complain("no such invites".to_owned())], 0)
			}
			Voice::Prosodyctl => Step::printed(text),
			Voice::Shell | Voice::ShellDeleting => {
				Step::say(vec![Effect::Print(text)], 0, format!("{} ended invites", self.shown))
			}
		}
	}
}

pub(super) fn list(desk: &Desk<'_>, list: args::List, facts: &Facts) -> Step {
	let pages = Pages::of(&list.picked, list.filter(), facts);
	Pages { show_token: list.show_token, ..pages }.begin(desk, list.picked.after)
}

pub(super) fn history(desk: &Desk<'_>, history: args::History, facts: &Facts) -> Step {
	Pages::of(&history.picked, history.filter(), facts).begin(desk, history.picked.after)
}

/// What is printed of one invite.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each is an option of its own on the command line")]
pub(super) struct Shown {
	pub(super) is_json: bool,
	pub(super) width: u16,
	pub(super) show_token: bool,
	pub(super) is_qr: bool,
	pub(super) is_in_band: bool,
}

impl Shown {
	/// The invite as it is now, `name` being what it was called.
	pub(super) fn text_of(&self, desk: &Desk<'_>, invite: Invite, name: &str) -> Result<String, InviteError> {
		let redemptions = desk.invites.redemptions(&invite.digest)?;
		let invite = with_token(invite, name);
		let detail = Detail {
			show_token: self.show_token,
			is_in_band: self.is_in_band,
			redemptions: Some(&redemptions),
		};
		if self.is_json {
			return Ok(text::json(&invite, detail, desk.now));
		}
		let link = if self.is_qr { text::link(&invite, self.is_in_band) } else { None };
		let code = link.and_then(|link| text::qr(&link)).unwrap_or_default();
		Ok(code + &text::text(&invite, detail, desk.now, self.width))
	}
}

/// An open invite with the token that it was named by, which the store may not have.
pub(super) fn with_token(mut invite: Invite, name: &str) -> Invite {
	if invite.ended_at.is_none() && Digest::of(name.as_bytes()) == invite.digest {
		let token = Token::from_stored(name.to_owned());
		invite.fields = invite.fields_with(&token).into_owned().into();
		invite.token = Some(token);
	}
	invite
}

pub(super) fn show(desk: &Desk<'_>, show: args::Show, facts: &Facts) -> Step {
	let shown = Shown {
		is_json: show.one.output.json,
		width: show.one.output.width(),
		show_token: show.show_token,
		is_qr: show.qr,
		is_in_band: facts.is_in_band,
	};
	print(desk, Voice::Prosodyctl, show.one.invite, shown)
}

/// Prints an invite.
fn print(desk: &Desk<'_>, voice: Voice, name: String, shown: Shown) -> Step {
	named(desk, voice, name.clone(), move |desk, digest| {
		let text = desk.invites.find(&digest).and_then(|invite| shown.text_of(desk, invite, &name));
		match text {
			Ok(text) => Step::printed(text),
			Err(error) => voice.refuse(error.into(), &name),
		}
	})
}

pub(super) fn stats(stats: &args::Stats) -> Step {
	let (is_json, width) = (stats.output.json, stats.output.width());
	Step::ask(Ask::Import, move |desk, _| match count(desk) {
		Ok(stats) if is_json => Step::printed(text::stats_json(&stats)),
		Ok(stats) => Step::printed(text::stats_text(&stats, width)),
		Err(error) => Voice::Prosodyctl.refuse(error.into(), ""),
	})
}

fn count(desk: &Desk<'_>) -> Result<Stats, InviteError> {
	let mut stats = Stats::default();
	for part in [Part::Open, Part::History] {
		let mut after = Some(Position::START);
		while let Some(position) = after {
			let (page, next) = desk.invites.list(&Filter::default(), part, &position, PAGE, desk.now)?;
			for invite in &page {
				stats.add(invite, desk.now);
			}
			after = next;
		}
	}
	Ok(stats)
}

pub(super) fn tree(desk: &Desk<'_>, tree: args::Tree, facts: &Facts) -> Step {
	let voice = Voice::Prosodyctl;
	let Some(username) = &facts.username else {
		return voice.refuse(Problem::of("jid-malformed"), &tree.username);
	};
	let places = match desk.invites.branch(username) {
		Ok(places) => places,
		Err(error) => return voice.refuse(error.into(), &tree.username),
	};
	let names = places.iter().map(|place| place.username.clone()).collect();
	Step::ask(Ask::Accounts(names), move |desk, answer| {
		let Answer::Accounts(accounts) = answer else { return Step::exit(Vec::new(), 1) };
		let account = |username: &str| accounts.get(username).copied().unwrap_or(Account::Unknown);
		let mut text = String::new();
		for place in &places {
			let account = account(&place.username);
			if tree.accounts {
				if account != Account::Missing {
					// To a String this does not fail.
					let _ = writeln!(text, "{}@{}", place.username, tree.host);
				}
				continue;
			}
			let invites = match desk.invites.made_by(&place.username) {
				Ok(invites) => invites,
				Err(error) => return voice.refuse(error.into(), &tree.username),
			};
			let branch = Branch { host: desk.invites.host(), place, account, invites: &invites };
			text += &if tree.output.json { branch.json(desk.now) } else { branch.text(desk.now) };
		}
		Step::printed(text)
	})
}

/// Looks everything over. How bad the worst is, is the exit code, as monitoring systems have it.
pub(super) fn check(options: &args::Check, facts: &Facts) -> Step {
	let version = env!("CARGO_PKG_VERSION");
	let mut findings = vec![Finding::ok(format!("mod_invites and its library have the version {version}"))];
	findings.extend(facts.storage.iter().cloned());
	findings.extend(facts.configuration.look_over());
	let worst = findings.iter().map(|finding| finding.level).max().unwrap_or(Level::Ok);
	let line = |finding: &Finding| format!("{}: {}\n", finding.level.as_str(), finding.text);
	let text = if options.json { as_line(&findings) } else { findings.iter().map(line).collect() };
	Step::exit(vec![Effect::Print(text)], worst as u8)
}

/// One line of JSON without what is null, its keys sorted.
pub(super) fn json_line(mut object: Map<String, serde_json::Value>) -> String {
	object.retain(|_, value| !value.is_null());
	serde_json::Value::Object(object).to_string() + "\n"
}

/// The entries of an object of JSON.
macro_rules! entries {
	($($key:literal: $value:expr),* $(,)?) => {
		[$(($key.to_owned(), json!($value))),*].into_iter().collect()
	};
}

pub(super) fn why(desk: &Desk<'_>, why: args::Why, facts: &Facts) -> Step {
	let is_json = why.which.output.json;
	match (why.which.inviter, why.which.invite) {
		(Some(inviter), _) => {
			let kind = why.kind.unwrap_or_else(|| "contact".to_owned());
			why_inviter(desk, inviter, &kind, is_json, facts)
		}
		(None, invite) => {
			let username = why.username.and_then(|_| facts.username.clone());
			why_one(desk, invite.unwrap_or_default(), username, is_json)
		}
	}
}

/// Whether an invite would be accepted.
fn why_one(desk: &Desk<'_>, name: String, username: Option<String>, is_json: bool) -> Step {
	named(desk, Voice::Prosodyctl, name.clone(), move |desk, digest| {
		let state = match desk.invites.find(&digest) {
			Ok(invite) => invite.state(desk.now),
			Err(error) => return Voice::Prosodyctl.refuse(error.into(), &name),
		};
		Step::ask(Ask::Why(digest, username), move |_, answer| {
			let problem = match answer {
				Answer::Why(Ok(())) => None,
				Answer::Why(Err(problem)) if problem.condition != "internal-server-error" => Some(problem),
				Answer::Why(Err(problem)) => return Voice::Prosodyctl.refuse(problem, &name),
				_ => return Step::exit(Vec::new(), 1),
			};
			let condition = problem.as_ref().map(|problem| problem.condition);
			let text = match &problem {
				// A stranger is told less.
				Some(problem) if problem.condition == "token-invalid" && state != State::Pending => {
					Some(format!("the invite is {}", state.as_str()))
				}
				Some(problem) => problem.text.clone(),
				None => None,
			};
			let line = match condition {
				_ if is_json => json_line(entries! {
					"id": digest.id().to_string(), "state": state.as_str(), "accepted": condition.is_none(),
					"condition": condition, "text": text,
				}),
				Some(condition) => format!("refused ({condition}): {}\n", text.unwrap_or_default()),
				None => "accepted\n".to_owned(),
			};
			Step::exit(vec![Effect::Print(line)], u8::from(problem.is_some()))
		})
	})
}

/// Whether somebody may create an invite of a kind.
fn why_inviter(desk: &Desk<'_>, named: String, kind: &str, is_json: bool, facts: &Facts) -> Step {
	let jid = format!("{named}@{}", desk.invites.host());
	let Some(username) = facts.username.clone() else {
		return refuse_account(Problem::of("jid-malformed"), &jid);
	};
	let wanted = Wanted::of(kind, &username, facts, desk.invites.host());
	let ask = Ask::Inviter(username, !desk.policy.roles.is_empty());
	Step::ask(ask, move |desk, answer| {
		let Answer::Inviter(account, inviter) = answer else { return Step::exit(Vec::new(), 1) };
		let condition = match account {
			Account::Missing => Some("item-not-found"),
			Account::NotFound => Some("account-unknown"),
			Account::Active | Account::Disabled | Account::Unknown => None,
		};
		if let Some(condition) = condition {
			return refuse_account(Problem::of(condition), &jid);
		}
		let reached = match wanted.decide(desk, inviter) {
			Ok(()) => None,
			Err(InviteError::LimitReached(reached)) => Some(reached),
			Err(error) => return refuse_account(error.into(), &jid),
		};
		let limit = reached.as_ref().map(crate::policy::LimitReached::limit);
		let text = reached.as_ref().map(ToString::to_string);
		let line = match (&text, &limit) {
			_ if is_json => json_line(entries! {
				"inviter": named, "allowed": reached.is_none(),
				"condition": reached.as_ref().map(|_| "policy-violation"), "text": text, "limit": limit,
			}),
			(Some(text), Some(limit)) => format!("refused (policy-violation): {text} [{limit}]\n"),
			_ => "allowed\n".to_owned(),
		};
		Step::exit(vec![Effect::Print(line)], u8::from(reached.is_some()))
	})
}

/// An invite that somebody might create.
struct Wanted {
	request: Request,
	additional_data: Value,
}

impl Wanted {
	fn of(kind: &str, inviter: &str, facts: &Facts, host: &str) -> Self {
		let is_contact = matches!(kind, "contact" | "account-and-contact");
		let mut data = vec![(Value::text("source"), Value::text(&format!("{inviter}@{host}")))];
		if kind == "group" {
			let groups = [(Value::Int(1), Value::text(""))];
			data.push((Value::text("groups"), Value::Table(groups.into_iter().collect())));
		}
		Self {
			request: Request {
				invite_type: if is_contact { Type::Roster } else { Type::Register },
				username: is_contact.then(|| inviter.to_owned()),
				is_reset: false,
				account: None,
				allow_registration: kind != "contact",
				ttl: facts.default_ttl,
				max_uses: Some(1),
			},
			additional_data: Value::Table(data.into_iter().collect()),
		}
	}

	fn decide(self, desk: &Desk<'_>, inviter: Option<Inviter>) -> Result<(), InviteError> {
		let Some(allowance) = inviter.and_then(|inviter| desk.policy.allowance(inviter)) else {
			return Ok(());
		};
		let ttl = allowance.default_ttl(self.request.ttl);
		let (invite, _) = desk.invites.prepare(Request { ttl, ..self.request }, desk.now)?;
		let fields = [(Value::text("additional_data"), self.additional_data)];
		let invite = Invite { fields: fields.into_iter().collect(), ..invite };
		desk.invites.check_limits(&invite, &allowance, desk.now)
	}
}
