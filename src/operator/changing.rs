//! Commands that change invites which are there.

use std::rc::Rc;
use std::thread;
use std::time::Duration;

use serde_json::json;

use super::args::{self, One};
use super::looking::{Shown, json_line};
use super::progress;
use super::step::{Answer, Ask, Desk, Effect, Facts, Problem, Step};
use super::text::{SECONDS, time};
use super::voice::{Voice, is_id, named};
use crate::clock::{self, Timestamp};
use crate::duration::Seconds;
use crate::invite::Invite;
use crate::lifecycle::State;
use crate::redemption::{Claim, Life, Purpose};
use crate::token::Digest;

/// Invites that are purged in one transaction: a server that wants to write waits for it.
const PURGED: u32 = 200;

/// SQLite wakes nobody: who waits for its lock looks again and again, and would hardly ever find it free between the
/// batches of another process.
const TURN: Duration = Duration::from_millis(5);

/// The invite as it then is, and events; none if there was nothing to change.
pub(super) type Changed = Result<Option<(Invite, Vec<Effect>)>, Problem>;

/// Invites are revoked.
pub(super) fn revoked(invites: Vec<Invite>) -> Vec<Effect> {
	invites.into_iter().map(|invite| Effect::Fire("invite-revoked", Box::new(invite))).collect()
}

/// Changes an invite and prints it as it then is. To want what is so already is no mistake.
fn change(
	desk: &Desk<'_>,
	one: One,
	wanted: Option<State>,
	act: impl Fn(&Desk<'_>, &Digest) -> Changed + 'static,
) -> Step {
	let voice = Voice::Prosodyctl;
	let shown = Shown { is_json: one.output.json, width: one.output.width(), ..Shown::default() };
	let name = one.invite.clone();
	let change = move |desk: &Desk<'_>, digest: &Digest| -> Result<Step, Problem> {
		if let Some((invite, events)) = act(desk, digest)? {
			return Ok(Step::printed(shown.text_of(desk, invite, &name)?).after(events));
		}
		let invite = desk.invites.find(digest)?;
		let state = invite.state(desk.now);
		if wanted == Some(state) {
			return Ok(Step::printed(shown.text_of(desk, invite, &name)?));
		}
		Ok(Step::complaint(format!("the invite {} is {}", digest.id(), state.as_str())))
	};
	let name = one.invite;
	// A change reads the invite, which need not be read before to see whether there is one.
	if !is_id(&name) {
		match change(desk, &Digest::of(name.as_bytes())) {
			Err(problem) if problem.condition == "token-invalid" => (),
			changed => return changed.unwrap_or_else(|problem| voice.refuse(problem, &name)),
		}
	}
	named(desk, voice, name.clone(), move |desk, digest| {
		change(desk, &digest).unwrap_or_else(|problem| voice.refuse(problem, &name))
	})
}

pub(super) fn pause(desk: &Desk<'_>, one: One) -> Step {
	change(desk, one, Some(State::Paused), |desk, digest| set_paused(desk, digest, true))
}

pub(super) fn resume(desk: &Desk<'_>, one: One) -> Step {
	change(desk, one, Some(State::Pending), |desk, digest| set_paused(desk, digest, false))
}

pub(super) fn set_paused(desk: &Desk<'_>, digest: &Digest, is_paused: bool) -> Changed {
	// Where none can be paused, all are as if they were resumed.
	if !desk.invites.carries().pause && desk.invites.find(digest)?.paused == is_paused {
		return Ok(None);
	}
	Ok(desk.invites.set_paused(digest, is_paused)?.map(|invite| (invite, Vec::new())))
}

pub(super) fn extend(desk: &Desk<'_>, extend: args::Extend) -> Step {
	let ttl = extend.expires_after.end().map(Seconds::get);
	change(desk, extend.one, None, move |desk, digest| extend_to(desk, digest, ttl))
}

pub(super) fn extend_to(desk: &Desk<'_>, digest: &Digest, ttl: Option<i64>) -> Changed {
	check_ttl(ttl, desk.now)?;
	let extended = desk.invites.extend(digest, ttl, desk.now)?;
	Ok(extended.map(|(invite, superseded)| (invite, revoked(superseded))))
}

/// Whether an invite can be good for so many seconds from now on.
pub(super) fn check_ttl(ttl: Option<i64>, now: Timestamp) -> Result<(), Problem> {
	match ttl {
		Some(ttl) if !clock::is_ttl(ttl, now) => {
			Err(Problem { condition: "bad-request", text: Some(clock::refuse_ttl(&ttl.to_string())) })
		}
		_ => Ok(()),
	}
}

pub(super) fn revoke(desk: &Desk<'_>, revoke: args::Revoke, facts: Rc<Facts>) -> Step {
	let args::Revoke { which, branch, why } = revoke;
	match (which.inviter, which.invite) {
		(Some(inviter), _) => {
			let is_json = which.output.json;
			Step::ask(Ask::Import, move |desk, _| {
				revoke_inviter(desk, &inviter, branch, why.as_deref(), is_json, &facts)
			})
		}
		(None, invite) => {
			let one = One { host: which.host, invite: invite.unwrap_or_default(), output: which.output };
			change(desk, one, Some(State::Revoked), move |desk, digest| {
				revoke_one(desk, digest, why.as_deref(), &facts.by)
			})
		}
	}
}

pub(super) fn revoke_one(desk: &Desk<'_>, digest: &Digest, why: Option<&str>, by: &str) -> Changed {
	let invite = desk.invites.revoke(digest, why, Some(by), desk.now)?;
	Ok(invite.map(|invite| (invite.clone(), revoked(vec![invite]))))
}

fn revoke_inviter(
	desk: &Desk<'_>,
	inviter: &str,
	is_branch: bool,
	why: Option<&str>,
	is_json: bool,
	facts: &Facts,
) -> Step {
	let Some(username) = &facts.username else {
		return Voice::Prosodyctl.refuse(Problem::of("jid-malformed"), inviter);
	};
	let branch = if is_branch { " and the user's branch" } else { "" };
	let of = format!("{inviter}@{}{branch}", desk.invites.host());
	let told = move |count: u32| {
		Step::printed(if is_json {
			json_line([("revoked".to_owned(), json!(count))].into_iter().collect())
		} else {
			format!("{count} open invites of {of} were revoked\n")
		})
	};
	match desk.invites.revoke_inviter(username, is_branch, why, Some(&facts.by), desk.now) {
		Ok(ended) if ended.under_way.is_empty() || !facts.is_here => {
			let count = u32::try_from(ended.invites.len()).unwrap_or(u32::MAX);
			let mut step = told(count).after(revoked(ended.invites));
			if !ended.under_way.is_empty() {
				step.effects.push(Effect::EndSoon);
				let line = "The others are not good any more either, and are being revoked\n";
				step.effects.extend((!is_json).then(|| Effect::Print(line.to_owned())));
			}
			step
		}
		Ok(ended) => {
			let alone = ended.alone();
			let inviters = ended.under_way.into_iter().map(|ending| ending.username).collect();
			let step = Step::ask(Ask::Nothing, move |desk, _| end_all(desk, inviters, alone, told));
			step.after(revoked(ended.invites))
		}
		Err(error) => Voice::Prosodyctl.refuse(error.into(), inviter),
	}
}

/// Ends what is under way, in a process that nobody waits for. Says then how many invites of these inviters those were, and
/// others.
fn end_all(
	desk: &Desk<'_>,
	inviters: Vec<String>,
	others: u32,
	told: impl FnOnce(u32) -> Step + 'static,
) -> Step {
	let more = match desk.invites.end_more(desk.now) {
		Ok(more) => more,
		Err(error) => return Voice::Prosodyctl.refuse(error.into(), ""),
	};
	let step = if more.is_more {
		Step::ask(Ask::Nothing, move |desk, _| {
			thread::sleep(TURN);
			end_all(desk, inviters, others, told)
		})
	} else {
		match desk.invites.ended_of(&inviters) {
			Ok(ended) => told(others.saturating_add(ended)),
			Err(error) => Voice::Prosodyctl.refuse(error.into(), ""),
		}
	};
	step.after(revoked(more.invites))
}

pub(super) fn release(desk: &Desk<'_>, release: args::Release, facts: &Facts) -> Step {
	let args::Release { one, yes } = release;
	let (name, is_terminal) = (one.invite, facts.is_terminal);
	named(desk, Voice::Prosodyctl, name.clone(), move |desk, digest| {
		let claims = match desk.invites.claims_on(&digest) {
			Ok(claims) => claims,
			Err(error) => return Voice::Prosodyctl.refuse(error.into(), &name),
		};
		if claims.is_empty() {
			return Step::complaint(format!("nobody is using the invite {name}"));
		}
		let is_json = one.output.json;
		let say = |line: String| {
			if is_json { Effect::Complain(line) } else { Effect::Print(line + "\n") }
		};
		let mut effects: Vec<Effect> =
			claims.iter().map(|(claim, life)| say(describe(claim, *life))).collect();
		let release = move |desk: &Desk<'_>| match desk.invites.release_claims(&digest) {
			Ok(count) if is_json => {
				Step::printed(json_line([("released".to_owned(), json!(count))].into_iter().collect()))
			}
			Ok(_) => Step::printed("the invite is free\n".to_owned()),
			Err(error) => Voice::Prosodyctl.refuse(error.into(), &name),
		};
		if yes {
			return release(desk).after(effects);
		}
		let refuse = || Effect::Complain("nothing was released".to_owned());
		if !is_terminal {
			effects.push(Effect::Complain("say --yes to free the invite".to_owned()));
			effects.push(refuse());
			return Step::exit(effects, 1);
		}
		let step = Step::ask(Ask::Line("Type yes to free the invite: "), move |desk, answer| match answer {
			Answer::Line(Some(line)) if line == "yes" => release(desk),
			_ => Step::exit(vec![refuse()], 1),
		});
		step.after(effects)
	})
}

fn describe(claim: &Claim, life: Life) -> String {
	let invitee = claim.invitee.as_deref().unwrap_or("somebody without a name");
	let since = claim.made_at.map_or_else(|| "a time that is not known".to_owned(), |at| time(at, SECONDS));
	let purpose = match claim.purpose {
		Purpose::Account => "to register an account",
		Purpose::Contact => "to become a contact",
	};
	let server = match life {
		Life::Alive => "its server runs, and it may go on",
		Life::Over => "its server has ended",
		Life::Unknown { .. } => "whether its server runs cannot be seen",
	};
	format!("{invitee} has been using it since {since}, {purpose}; {server}")
}

pub(super) fn purge(desk: &Desk<'_>, purge: &args::Purge, facts: &Facts) -> Step {
	let age = purge.older_than.map(Seconds::get).or(facts.history_age);
	let (is_json, is_here) = (purge.json, facts.is_here);
	let Some(age) = age.filter(|_| desk.invites.carries().history) else {
		return purged(0, is_json, desk.invites.host());
	};
	let before = desk.now.saturating_sub(age.max(facts.shortest_history));
	Step::ask(Ask::BundledTokens(before), move |desk, answer| {
		let Answer::BundledTokens(tokens) = answer else { return Step::exit(Vec::new(), 1) };
		let (mut total, bar) = (0, progress::bar("purging", 0, is_here));
		let all = loop {
			match desk.invites.purge(before, PURGED, &tokens) {
				Ok(count) => {
					total += u64::from(count);
					bar.inc(count.into());
					if count < PURGED {
						break Ok(total);
					}
					thread::sleep(TURN);
				}
				Err(error) => break Err(error),
			}
		};
		// The result is printed in its place.
		bar.finish_and_clear();
		match all {
			Ok(total) => purged(total, is_json, desk.invites.host()),
			Err(error) => Voice::Prosodyctl.refuse(error.into(), ""),
		}
	})
}

fn purged(total: u64, is_json: bool, host: &str) -> Step {
	Step::printed(if is_json {
		json_line([("purged".to_owned(), json!(total))].into_iter().collect())
	} else {
		format!("{total} invites were removed from the history of {host}\n")
	})
}
