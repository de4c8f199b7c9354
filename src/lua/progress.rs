//! A progress bar, so that an operator sees that long work goes on: `bar:advance(n)`, `bar:finish()`.

use indicatif::{ProgressBar, ProgressStyle};
use mlua::{UserData, UserDataMethods};

pub(super) struct Progress(ProgressBar);

impl Progress {
	/// Draws on stderr, and nothing at all where that is no terminal.
	pub(super) fn new(what: String, total: u64) -> Self {
		let bar = ProgressBar::new(total).with_message(what);
		if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40} {human_pos} of {human_len}") {
			bar.set_style(style);
		}
		Self(bar)
	}
}

impl UserData for Progress {
	fn add_methods<M: UserDataMethods<Self>>(methods: &mut M) {
		methods.add_method("advance", |_, this, steps: u64| {
			this.0.inc(steps);
			Ok(())
		});
		// The result is printed in its place.
		methods.add_method("finish", |_, this, ()| {
			this.0.finish_and_clear();
			Ok(())
		});
	}
}
