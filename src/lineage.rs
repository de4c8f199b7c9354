//! Who invited whom: the accounts that local users brought, kept after the invites themselves were purged.
//!
//! An account is brought by the inviter of the invite that it was registered with; of a name that was registered more
//! than once, the last time counts. All that one user brought, directly or through others, is the user's **branch**.

use std::collections::BTreeSet;

use crate::clock::Timestamp;
use crate::invite::{Invite, Kind};
use crate::redemption::Purpose;
use crate::token::Digest;

/// An account, and who brought it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
	/// The localpart of the account.
	pub username: String,
	/// The localpart of the inviter.
	pub inviter: String,
	/// The invite, which may be purged by now.
	pub digest: Digest,
	/// When the account was registered; none where that is not known.
	pub joined_at: Option<Timestamp>,
}

impl Member {
	/// Whether this is to be kept in the place of what is known of the account: of two registrations the later counts.
	#[must_use]
	pub fn replaces(&self, known: Option<&Self>) -> bool {
		known.is_none_or(|known| {
			self.joined_at.is_some() && self.joined_at >= known.joined_at && self != known
		})
	}
}

/// What becomes of an account's lineage when it is registered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Birth {
	/// Somebody brought it.
	Brought(Member),
	/// Nobody is known to have: what was known of an earlier account of that name is over.
	Alone(String),
}

/// What a use of an invite, for this username, means for lineage; none if it makes no account.
#[must_use]
pub fn birth(invite: &Invite, purpose: Purpose, username: Option<&str>, now: Timestamp) -> Option<Birth> {
	let username = username.filter(|_| purpose == Purpose::Account && invite.kind() != Kind::Reset)?;
	Some(match invite.local_inviter() {
		Some(inviter) => Birth::Brought(Member {
			username: username.to_owned(),
			inviter,
			digest: invite.digest,
			joined_at: Some(now),
		}),
		None => Birth::Alone(username.to_owned()),
	})
}

/// Where somebody stands in a branch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
	/// The localpart.
	pub username: String,
	/// Who brought the account; none of the root.
	pub brought: Option<Member>,
	/// Steps from the root.
	pub depth: usize,
}

/// A branch while it is looked up: everybody once, the root first, and after everybody those whom they brought.
#[derive(Debug)]
pub struct Branch {
	places: Vec<Place>,
	/// To be placed, the next one last.
	next: Vec<Place>,
	// Names can be registered again, by those whom they once brought: there may be circles.
	seen: BTreeSet<String>,
}

impl Branch {
	/// The branch of `root`, of which nobody has been looked up.
	#[must_use]
	pub fn of(root: &str) -> Self {
		let root = root.to_owned();
		Self {
			places: Vec::new(),
			seen: BTreeSet::from([root.clone()]),
			next: vec![Place { username: root, brought: None, depth: 0 }],
		}
	}

	/// Whose members are to be [added](Self::add) next, if anybody's are.
	pub fn next_inviter(&mut self) -> Option<String> {
		let place = self.next.pop()?;
		let username = place.username.clone();
		self.places.push(place);
		Some(username)
	}

	/// Adds those whom the last [`Self::next_inviter`] brought.
	pub fn add(&mut self, members: Vec<Member>) {
		let depth = self.places.last().map_or(0, |place| place.depth + 1);
		for member in members.into_iter().rev() {
			if self.seen.insert(member.username.clone()) {
				let username = member.username.clone();
				self.next.push(Place { username, brought: Some(member), depth });
			}
		}
	}

	/// All that have been looked up.
	#[must_use]
	pub fn places(self) -> Vec<Place> {
		self.places
	}
}

/// Everybody in the branch of `root`, where `brought_by` says whom somebody brought.
///
/// # Errors
/// Those of `brought_by`.
pub fn branch<E>(
	root: &str,
	mut brought_by: impl FnMut(&str) -> Result<Vec<Member>, E>,
) -> Result<Vec<Place>, E> {
	let mut branch = Branch::of(root);
	while let Some(inviter) = branch.next_inviter() {
		branch.add(brought_by(&inviter)?);
	}
	Ok(branch.places())
}

#[cfg(test)]
mod tests {
	use std::convert::Infallible;

	use super::*;
	use crate::invite::Type;
	use crate::store::conformance::{made_by, sample};
	use crate::value::Fields;

	const NOW: Timestamp = 1_700_000_000;

	#[test]
	fn an_account_is_brought_by_the_inviter_of_its_invite() {
		let invite = made_by("juliet", "t");
		let brought = Birth::Brought(Member {
			username: "romeo".to_owned(),
			inviter: "juliet".to_owned(),
			digest: invite.digest,
			joined_at: Some(NOW),
		});
		assert_eq!(birth(&invite, Purpose::Account, Some("romeo"), NOW), Some(brought));
		let nobodys = Invite { fields: Fields::default(), ..invite.clone() };
		let alone = Some(Birth::Alone("romeo".to_owned()));
		assert_eq!(birth(&nobodys, Purpose::Account, Some("romeo"), NOW), alone);
		assert_eq!(birth(&invite, Purpose::Account, None, NOW), None);
		assert_eq!(birth(&invite, Purpose::Contact, Some("romeo@example.net"), NOW), None);
	}

	#[test]
	fn a_reset_brings_nobody() {
		let fields = [("source", "nurse@example.com"), ("allow_reset", "romeo")]
			.map(|(key, value)| (crate::value::Value::text(key), crate::value::Value::text(value)));
		let data = crate::value::Value::Table(fields.into_iter().collect());
		let reset = Invite {
			invite_type: Type::Register,
			fields: [(crate::value::Value::text("additional_data"), data)].into_iter().collect(),
			..sample("example.com", "t")
		};
		assert_eq!(birth(&reset, Purpose::Account, Some("romeo"), NOW), None);
	}

	#[test]
	fn of_two_registrations_of_a_name_the_later_counts() {
		let member = |inviter: &str, joined_at| Member {
			username: "romeo".to_owned(),
			inviter: inviter.to_owned(),
			digest: Digest::of(b"t"),
			joined_at,
		};
		let [at_2, unknown] = [Some(2), None].map(|joined_at| member("juliet", joined_at));
		assert!(unknown.replaces(None));
		for (joined_at, replaces) in [(Some(1), false), (Some(2), true), (Some(3), true), (None, false)] {
			assert_eq!(member("nurse", joined_at).replaces(Some(&at_2)), replaces, "{joined_at:?}");
		}
		assert!(at_2.replaces(Some(&unknown)));
		assert!(!at_2.replaces(Some(&at_2)), "it is the same");
	}

	#[test]
	fn a_branch_holds_everybody_once_even_in_a_circle() {
		let brought = |inviter: &str| {
			let names: &[&str] = match inviter {
				"juliet" => &["romeo", "nurse"],
				"romeo" => &["paris", "juliet"],
				"nurse" => &["paris", "nurse"],
				_ => &[],
			};
			let member = |name: &&str| Member {
				username: (*name).to_owned(),
				inviter: inviter.to_owned(),
				digest: Digest::of(b"t"),
				joined_at: None,
			};
			Ok::<_, Infallible>(names.iter().map(member).collect())
		};
		let branch = |root| -> Vec<(usize, String)> {
			branch(root, brought).unwrap().into_iter().map(|place| (place.depth, place.username)).collect()
		};
		let expected = [(0, "juliet"), (1, "romeo"), (2, "paris"), (1, "nurse")];
		assert_eq!(branch("juliet"), expected.map(|(depth, name)| (depth, name.to_owned())));
		assert_eq!(branch("paris"), [(0, "paris".to_owned())]);
	}
}
