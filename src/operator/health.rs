//! What the configuration of a host says that cannot be meant, and what others keep of invites.

use std::collections::BTreeSet;

use crate::check::Finding;
use crate::duration;

/// Options whose names begin as ours do, of this module and the others of its suite.
const OPTIONS: [&str; 19] = [
	"invite_expiry",
	"invite_history",
	"invite_limits",
	"invite_limits_allow_unknown_age",
	"invite_postgresql",
	"invite_postgresql_deadline",
	"invite_registration_field",
	"invite_storage",
	"invite_token_at_rest",
	"invites_bootstrap_index",
	"invites_bootstrap_secret",
	"invites_bootstrap_ttl",
	"invites_default_group",
	"invites_page",
	"invites_page_external",
	"invites_page_module",
	"invites_page_supports",
	"invites_register_template_path",
	"invites_registration_page",
];

const KINDS_OF_PAGES: [&str; 5] =
	["account", "account-and-contact", "contact", "contact-only", "password-reset"];

const TEMPLATE_NAMES: [&str; 3] = ["invite.token", "invite.uri", "host"];

/// What `mod_invites_register` cannot be loaded without, and what follows where the configuration keeps that out.
const NEEDED: [(&str, &str); 2] = [
	("invites", "invites do not work, and who has none is not refused"),
	("register_ibr", "nobody can register"),
];

/// What is configured for a host, and what lies in stores of others.
#[derive(Clone, Debug, Default)]
pub struct Configuration {
	/// The names of all options, of all hosts and of this one.
	pub options: Vec<String>,
	/// The option `invites_page`, if it is a text.
	pub page: Option<String>,
	/// The option `invites_page_supports`, if it is a list.
	pub page_supports: Option<Vec<String>>,
	/// The option `invites_page_module`.
	pub page_module: Option<String>,
	/// The option `invite_expiry`, if it is no number, and no word for never.
	pub expiry: Option<String>,
	/// Options that are set and do nothing since Prosody 13.
	pub outdated: Vec<String>,
	/// The modules that are enabled.
	pub modules: BTreeSet<String>,
	/// The modules that no other can depend on.
	pub disabled: BTreeSet<String>,
	/// Whether the option `allow_registration` is `true`.
	pub allows_registration: bool,
	/// Whether the option `registration_invite_only` is `false`.
	pub is_open: bool,
	/// Whether nobody can register without an invite.
	pub is_invite_only: bool,
	/// How many tokens lie in the store of the bundled module, or why nobody can tell; none where they belong there.
	pub bundled: Option<Result<u64, String>>,
	/// The same of the store of `mod_invites_tracking`; none where tokens may lie in the plain.
	pub tracked: Option<Result<u64, String>>,
}

impl Configuration {
	/// All that there is to say of it.
	pub(super) fn look_over(&self) -> Vec<Finding> {
		let mut findings = self.findings();
		if findings.is_empty() {
			findings.push(Finding::ok("the configuration makes sense"));
		}
		findings.extend(self.bundled.as_ref().map(bundled));
		findings.extend(self.tracked.as_ref().map(|found| self.tracked(found)));
		findings
	}

	/// What is not as it should be.
	fn findings(&self) -> Vec<Finding> {
		let mut warnings = self.option_names();
		warnings.extend(self.page());
		warnings.extend(self.expiry());
		warnings.extend(
			self.outdated
				.iter()
				.map(|name| format!("{name} does nothing since Prosody 13: use the permissions of roles")),
		);
		warnings.extend(self.modules());
		warnings.into_iter().map(Finding::warning).chain(self.disabled()).collect()
	}

	fn option_names(&self) -> Vec<String> {
		let is_ours = |name: &&String| name.starts_with("invite_") || name.starts_with("invites_");
		let unknown = self.options.iter().filter(is_ours).filter(|name| !OPTIONS.contains(&name.as_str()));
		unknown.map(|name| format!("the option {name} is nobody's: is it misspelt?")).collect()
	}

	fn page(&self) -> Vec<String> {
		let supports = self.page_supports.as_deref();
		let mut warnings: Vec<String> = supports
			.unwrap_or_default()
			.iter()
			.filter(|kind| !KINDS_OF_PAGES.contains(&kind.as_str()))
			.map(|kind| format!("invites_page_supports names {kind:?}, which no invite is"))
			.collect();
		let Some(template) = &self.page else { return warnings };
		let names = template_names(template);
		let unknown = names.iter().filter(|name| !TEMPLATE_NAMES.contains(name));
		warnings.extend(unknown.map(|name| format!("invites_page uses {{{name}}}, which there is not")));
		if !names.iter().any(|name| name.starts_with("invite.")) {
			warnings.push(
				"invites_page names neither {invite.token} nor {invite.uri}: its page cannot know which invite it is for"
					.to_owned(),
			);
		}
		if supports.is_some_and(<[String]>::is_empty) {
			warnings.push("invites_page is never used: invites_page_supports is empty".to_owned());
		}
		warnings
	}

	fn expiry(&self) -> Option<String> {
		let value = self.expiry.as_ref().filter(|value| duration::parse(value).is_err())?;
		Some(format!("invite_expiry = {value} is not understood, and invites expire after a week"))
	}

	fn modules(&self) -> Vec<String> {
		let has = |name: &str| self.modules.contains(name);
		let registers_in_band = has("register_ibr") || has("register") && self.allows_registration;
		let mut warnings = Vec::new();
		if registers_in_band && !has("invites_register") {
			warnings.push(
				"anybody can register without an invite: add \"invites_register\" to modules_enabled"
					.to_owned(),
			);
		} else if registers_in_band && self.is_open {
			warnings
				.push("anybody can register without an invite: registration_invite_only is false".to_owned());
		}
		if !(registers_in_band || has("invites_register_web") || has("invites_register_api")) {
			warnings.push(
				"nobody can register with an invite: add \"register_ibr\" to modules_enabled".to_owned(),
			);
		}
		if has("register_json") {
			warnings.push(
				"mod_register_json makes accounts without asking: it gives away usernames that invites reserve"
					.to_owned(),
			);
		}
		if has("easy_invite") {
			warnings.push(
				"mod_easy_invite has invites of its own and takes the place of the shell's invite commands: remove it"
					.to_owned(),
			);
		}
		if let Some(module) = self.page_module.as_ref().filter(|module| !has(module)) {
			warnings
				.push(format!("invites_page_module = {module:?} is not enabled here, so it makes no pages"));
		}
		warnings
	}

	fn disabled(&self) -> Vec<Finding> {
		if !self.modules.contains("invites_register") {
			return Vec::new();
		}
		// It needs mod_register_ibr only then.
		let is_disabled =
			|name: &str| self.disabled.contains(name) && (name != "register_ibr" || self.is_invite_only);
		NEEDED
			.into_iter()
			.filter(|(name, _)| is_disabled(name))
			.map(|(name, consequence)| {
				Finding::critical(format!(
					"modules_disabled has {name:?}, which mod_invites_register needs, so that is not loaded: {consequence}"
				))
			})
			.collect()
	}

	fn tracked(&self, found: &Result<u64, String>) -> Finding {
		match found {
			Err(error) => {
				Finding::warning(format!("the store of mod_invites_tracking cannot be read: {error}"))
			}
			Ok(count) if self.modules.contains("invites_tracking") => Finding::warning(format!(
				"mod_invites_tracking writes every token that is used into its store, invites_tracking, in the plain: \
				 remove it from modules_enabled, who invited whom is known without it (tokens there now: {count})"
			)),
			Ok(0) => Finding::ok("nothing is left in the store of mod_invites_tracking"),
			Ok(count) => Finding::warning(format!(
				"{count} tokens lie in the plain in the store of mod_invites_tracking, invites_tracking: remove them \
				 once the server has taken over who invited whom"
			)),
		}
	}
}

/// What still lies in the bundled module's store, where anybody who can read it can use it.
fn bundled(found: &Result<u64, String>) -> Finding {
	match found {
		Err(error) => Finding::warning(format!("the store of the bundled module cannot be read: {error}")),
		Ok(0) => Finding::ok("nothing is left in the store of the bundled module"),
		Ok(count) => Finding::warning(format!(
			"{count} tokens lie in the plain in the store of the bundled module, invite_token: remove them if you will \
			 not go back to it"
		)),
	}
}

/// What stands between braces, without the filter that may follow.
fn template_names(template: &str) -> Vec<&str> {
	template
		.split('{')
		.skip(1)
		.filter_map(|rest| {
			let inside = rest.split_once('}')?.0;
			let is_name = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
			let end = inside.find(|c| !is_name(c)).unwrap_or(inside.len());
			inside.get(..end).filter(|name| !name.is_empty())
		})
		.collect()
}

#[cfg(test)]
mod tests {
	use super::*;

	fn texts(configuration: &Configuration) -> Vec<String> {
		configuration.findings().into_iter().map(|finding| finding.text).collect()
	}

	fn names(names: &[&str]) -> BTreeSet<String> {
		names.iter().map(|name| (*name).to_owned()).collect()
	}

	fn sound() -> Configuration {
		Configuration {
			modules: names(&["register_ibr", "invites", "invites_register"]),
			is_invite_only: true,
			..Configuration::default()
		}
	}

	#[test]
	fn a_configuration_that_makes_sense_is_not_complained_of() {
		assert_eq!(texts(&sound()), [""; 0]);
		let page = Configuration {
			options: vec!["invites_page".to_owned(), "invite_expiry".to_owned(), "storage".to_owned()],
			page: Some("https://{host}/{invite.token|urlescape}".to_owned()),
			page_supports: Some(vec!["account".to_owned()]),
			expiry: Some("2 days".to_owned()),
			..sound()
		};
		assert_eq!(texts(&page), [""; 0]);
	}

	#[test]
	fn what_cannot_be_meant_is_named() {
		let some = |text: &str| Some(text.to_owned());
		for (configuration, named) in [
			(Configuration { options: vec!["invites_expiry".to_owned()], ..sound() }, "invites_expiry"),
			(Configuration { page: some("https://x/{token}"), ..sound() }, "{token}"),
			(Configuration { page: some("https://x/"), ..sound() }, "neither"),
			(Configuration { page_supports: Some(vec!["x".to_owned()]), ..sound() }, "\"x\""),
			(Configuration { expiry: some("soon"), ..sound() }, "invite_expiry = soon"),
			(Configuration { page_module: some("other_page"), ..sound() }, "\"other_page\""),
			(Configuration { outdated: vec!["deny".to_owned()], ..sound() }, "deny does nothing"),
			(Configuration { is_open: true, ..sound() }, "registration_invite_only is false"),
			(Configuration { modules: names(&["invites"]), ..sound() }, "nobody can register"),
			(Configuration { disabled: names(&["invites"]), ..sound() }, "modules_disabled has \"invites\""),
		] {
			let found = texts(&configuration);
			assert!(found.iter().any(|text| text.contains(named)), "{named}: {found:?}");
		}
	}
}
