//! A bar on stderr, so that an operator sees that long work goes on.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar in the process that the operator has called; nothing at all where stderr is no terminal.
pub(super) fn bar(what: &'static str, total: u64, is_here: bool) -> ProgressBar {
	let bar = if is_here { ProgressBar::new(total).with_message(what) } else { ProgressBar::hidden() };
	if let Ok(style) = ProgressStyle::with_template("{msg} {bar:40} {human_pos} of {human_len}") {
		bar.set_style(style);
	}
	bar
}
