//! Which command is carried out by which function.

use std::rc::Rc;

use super::args::Command;
use super::step::{Desk, Facts, Step};
use super::{changing, looking, making, moving};

/// Begins to carry out a command that does not need the invites of a host; none for any other.
#[must_use]
pub fn begin_alone(command: &Command, facts: &Rc<Facts>) -> Option<Step> {
	match command {
		Command::Backup(options) => Some(moving::back_up(options, facts)),
		Command::Restore(options) => Some(moving::restore(options, facts)),
		Command::Check(options) => Some(looking::check(options, facts)),
		_ => None,
	}
}

/// Begins to carry out a command.
#[must_use]
pub fn begin(desk: &Desk<'_>, command: Command, facts: &Rc<Facts>) -> Step {
	match command {
		Command::Generate(options) => making::generate(desk, options, facts),
		Command::List(list) => looking::list(desk, list, facts),
		Command::History(history) => looking::history(desk, history, facts),
		Command::Show(show) => looking::show(desk, show, facts),
		Command::Tree(tree) => looking::tree(desk, tree, facts),
		Command::Stats(stats) => looking::stats(&stats),
		Command::Why(why) => looking::why(desk, why, facts),
		Command::Revoke(revoke) => changing::revoke(desk, revoke, Rc::clone(facts)),
		Command::Release(release) => changing::release(desk, release, facts),
		Command::Pause(one) => changing::pause(desk, one),
		Command::Resume(one) => changing::resume(desk, one),
		Command::Extend(extend) => changing::extend(desk, extend),
		Command::Purge(purge) => changing::purge(desk, &purge, facts),
		Command::Export(options) => moving::export(options, facts),
		Command::Import(options) => moving::import(desk, &options, facts),
		Command::Backup(options) => moving::back_up(&options, facts),
		Command::Restore(options) => moving::restore(&options, facts),
		Command::Check(options) => looking::check(&options, facts),
	}
}
