//! Making invites.

use std::num::NonZeroU32;

use indicatif::ProgressBar;

use super::args::{self, Ttl};
use super::changing::{check_ttl, revoked};
use super::progress;
use super::step::{Answer, Ask, Desk, Draft, Effect, Exit, Facts, Next, Problem, Step};
use super::text::{self, Detail};
use super::voice::refuse_account;
use crate::duration::Seconds;
use crate::invite::{Invite, Type};
use crate::invites::Request;
use crate::redemption::Account;
use crate::store::Record;
use crate::value::{Table, Value};

/// Invites that handlers see and that are stored at once.
const BATCH: u32 = 1000;

const DAY: i64 = 86400;

/// What is made, whichever way it was asked for.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
	pub(super) what: What,
	/// The name that is to be registered, or whose contact or password it is, as it was typed.
	pub(super) named: Option<String>,
	/// How long it is good; none: as is usual.
	pub(super) ttl: Option<Ttl>,
	/// How often it can be used; none: until it expires.
	pub(super) max_uses: Option<u32>,
	pub(super) roles: Option<Vec<String>>,
	pub(super) groups: Option<Vec<String>>,
	pub(super) note: Option<String>,
}

/// What an invite is made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum What {
	Account,
	Contact { allow_registration: bool },
	Reset,
}

impl Wanted {
	/// What is to be prepared, and the additional data.
	fn request(self, facts: &Facts) -> Result<(Request, Table), Problem> {
		let username = match &self.named {
			Some(_) => Some(facts.username.clone().ok_or(Problem::of("jid-malformed"))?),
			None => None,
		};
		let mut data: Vec<(Value, Value)> = Vec::new();
		let mut add = |key, value| data.push((Value::text(key), value));
		if let Some(roles) = self.roles {
			add("roles", if facts.has_role_maps { map(&roles) } else { list(&roles) });
		}
		if let Some(groups) = self.groups {
			add("groups", list(&groups));
		}
		if let Some(note) = self.note {
			add("note", Value::text(&note));
		}
		let usual = if self.what == What::Reset { Some(DAY) } else { facts.default_ttl };
		let mut request = Request {
			invite_type: Type::Register,
			is_reset: false,
			account: username.as_ref().and(facts.account),
			username,
			allow_registration: true,
			ttl: self.ttl.map_or(usual, |ttl| ttl.end().map(Seconds::get)),
			max_uses: self.max_uses,
		};
		match self.what {
			What::Account => (),
			What::Contact { allow_registration } => {
				match request.account.take() {
					Some(Account::Missing) => return Err(Problem::of("item-not-found")),
					Some(Account::NotFound) => return Err(Problem::of("account-unknown")),
					_ => (),
				}
				request = Request { invite_type: Type::Roster, allow_registration, ..request };
			}
			What::Reset => {
				add("allow_reset", Value::text(request.username.as_deref().unwrap_or_default()));
				request.is_reset = true;
			}
		}
		Ok((request, data.into_iter().collect()))
	}
}

fn list(names: &[String]) -> Value {
	let entries = (1..).zip(names).map(|(place, name)| (Value::Int(place), Value::text(name)));
	Value::Table(entries.collect())
}

fn map(names: &[String]) -> Value {
	Value::Table(names.iter().map(|name| (Value::text(name), Value::Bool(true))).collect())
}

/// Invites that are being made.
pub(super) struct Making {
	request: Request,
	additional_data: Table,
	/// How many are to be made yet.
	left: u32,
	/// Whether there may be many: none of them takes the place of another.
	is_many: bool,
	bar: Option<ProgressBar>,
	/// Why they are not made.
	refuse: Box<dyn Fn(Problem) -> Step>,
	tell: Tell,
}

/// What is said of an invite that was made: effects, and what the shell says last.
type Tell = Box<dyn Fn(&Invite, &Desk<'_>) -> (Vec<Effect>, Option<String>)>;

impl Making {
	pub(super) fn new(
		wanted: Wanted,
		facts: &Facts,
		refuse: impl Fn(Problem) -> Step + 'static,
		tell: impl Fn(&Invite, &Desk<'_>) -> (Vec<Effect>, Option<String>) + 'static,
	) -> Result<Self, Step> {
		match wanted.request(facts) {
			Ok((request, additional_data)) => Ok(Self {
				request,
				additional_data,
				left: 1,
				is_many: false,
				bar: None,
				refuse: Box::new(refuse),
				tell: Box::new(tell),
			}),
			Err(problem) => Err(refuse(problem)),
		}
	}

	/// Prepares the next ones, lets handlers see them, and stores them.
	pub(super) fn go_on(self, desk: &Desk<'_>) -> Step {
		match self.drafts(desk) {
			Ok(drafts) => Step::ask(Ask::Handlers(drafts), move |desk, answer| self.store(desk, answer)),
			Err(problem) => (self.refuse)(problem),
		}
	}

	fn drafts(&self, desk: &Desk<'_>) -> Result<Vec<Draft>, Problem> {
		check_ttl(self.request.ttl, desk.now)?;
		let data = || Value::Table(self.additional_data.clone());
		(0..self.left.min(BATCH))
			.map(|_| {
				let (invite, token) = desk.invites.prepare(self.request.clone(), desk.now)?;
				let fields = [(Value::text("additional_data"), data())].into_iter().collect();
				Ok(Draft { invite: Invite { fields, ..invite }, token })
			})
			.collect()
	}

	fn store(mut self, desk: &Desk<'_>, answer: Answer) -> Step {
		let handled = match answer {
			Answer::Handlers(Ok(handled)) => handled,
			Answer::Handlers(Err(problem)) => return (self.refuse)(problem),
			_ => return (self.refuse)(Problem::REPORTED),
		};
		let (mut effects, mut message) = (Vec::new(), None);
		let mut invites = Vec::new();
		for each in handled {
			if !self.is_many {
				effects.extend(each.restored.into_iter().map(Effect::Restored));
			}
			invites.push(each.invite);
		}
		match self.save(desk, &invites) {
			Ok(superseded) => effects = revoked(superseded).into_iter().chain(effects).collect(),
			Err(problem) => return (self.refuse)(problem),
		}
		let stored = |invite: &Invite| Effect::Fire("invite-stored", Box::new(invite.clone()));
		effects.extend(invites.iter().map(stored));
		for invite in &invites {
			let (said, last) = (self.tell)(invite, desk);
			effects.extend(said);
			message = last;
		}
		let count = u32::try_from(invites.len()).unwrap_or(u32::MAX);
		self.left = self.left.saturating_sub(count);
		if let Some(bar) = &self.bar {
			bar.inc(count.into());
		}
		if self.left > 0 && count > 0 {
			return self.go_on(desk).after(effects);
		}
		if let Some(bar) = &self.bar {
			bar.finish_and_clear();
		}
		Step { effects, next: Next::Exit(Exit { code: 0, message }) }
	}

	/// Those that they take the place of.
	fn save(&self, desk: &Desk<'_>, invites: &[Invite]) -> Result<Vec<Invite>, Problem> {
		match invites {
			[invite] if !self.is_many => Ok(desk.invites.save(invite)?),
			_ => {
				let records: Vec<Record> = invites.iter().cloned().map(Record::from).collect();
				// Less than 20 ms each in which others cannot write.
				for batch in records.chunks(200) {
					desk.invites.save_all(batch)?;
				}
				Ok(Vec::new())
			}
		}
	}
}

pub(super) fn generate(desk: &Desk<'_>, options: args::Generate, facts: &Facts) -> Step {
	let what = match (&options.reset, &options.contact) {
		(Some(_), _) => What::Reset,
		(None, Some(_)) => What::Contact { allow_registration: options.allow_registration },
		(None, None) => What::Account,
	};
	let role = if options.admin { Some("prosody:admin".to_owned()) } else { options.role };
	let wanted = Wanted {
		what,
		named: options.reset.or(options.contact).or(options.username),
		ttl: options.expires_after,
		max_uses: options.max_uses.map_or(Some(1), |limit| limit.end().map(NonZeroU32::get)),
		roles: role.map(|role| vec![role]),
		groups: (what == What::Account).then_some(options.groups),
		note: options.note,
	};
	let jid = format!("{}@{}", wanted.named.as_deref().unwrap_or_default(), options.host);
	let (is_json, is_qr, is_in_band) = (options.json, options.qr, facts.is_in_band);
	let refuse = move |problem| refuse_account(problem, &jid);
	let tell =
		move |invite: &Invite, desk: &Desk<'_>| (print(invite, is_json, is_qr, is_in_band, desk), None);
	match Making::new(wanted, facts, refuse, tell) {
		Ok(mut making) => {
			if let Some(count) = options.count {
				making.left = count.get();
				making.is_many = true;
				making.bar = Some(progress::bar("inviting", count.get().into(), facts.is_here));
			}
			making.go_on(desk)
		}
		Err(step) => step,
	}
}

/// A script takes the last line for the link.
fn print(invite: &Invite, is_json: bool, is_qr: bool, is_in_band: bool, desk: &Desk<'_>) -> Vec<Effect> {
	if is_json {
		let detail = Detail { show_token: true, is_in_band, redemptions: Some(&[]) };
		return vec![Effect::Print(text::json(invite, detail, desk.now))];
	}
	let link = text::link(invite, is_in_band).unwrap_or_default();
	let mut effects = Vec::new();
	if is_qr {
		effects.push(text::qr(&link).map_or_else(
			|| Effect::Complain("the link is too long for a QR code".to_owned()),
			Effect::Print,
		));
	}
	effects.push(Effect::Print(link + "\n"));
	effects
}
