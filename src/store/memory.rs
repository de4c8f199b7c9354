//! Invites in this process alone, gone when it ends: for tests, and as the shortest example of a store. With a
//! [`Backing`] it is a store for what keeps rows but knows no transactions: it holds all invites and writes each change
//! through.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Carries, Lock, Members, Pick, Rows, Store, StoreError, TxError, Work};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::lineage::Member;
use crate::redemption::{Claim, LEASE, Purpose, Redemption};
use crate::token::{Digest, Nonce};
use crate::value::Fields;

/// Where the invites of a memory store lie when the process is not there. Nobody else may change them meanwhile. Claims
/// are not kept there, so what is under way when the process dies is free again.
pub trait Backing {
	/// As of [`Store::carries`].
	fn carries(&self) -> Carries;

	/// All invites of a host; called before it is used first, and again after a write that failed.
	///
	/// # Errors
	/// When they cannot be read.
	fn load(&self, host: &str) -> Result<Vec<Invite>, StoreError>;

	/// Makes changes last. They count once this has returned `Ok`.
	///
	/// # Errors
	/// When not all of them could be written.
	fn write(&self, changes: &[Change]) -> Result<(), StoreError>;

	/// As of [`Store::health`].
	fn health(&self, host: &str) -> Vec<Finding>;
}

/// What happens to one invite. Where history is not carried, an invite that was used up or revoked is no more.
#[derive(Debug)]
pub struct Change {
	/// As it was, if it was there.
	pub before: Option<Invite>,
	/// As it is to be, if it is to be there.
	pub after: Option<Invite>,
}

/// No backing: everything is gone when the process ends.
#[derive(Debug)]
pub struct Nowhere;

impl Backing for Nowhere {
	fn carries(&self) -> Carries {
		Carries::ALL
	}

	fn load(&self, _: &str) -> Result<Vec<Invite>, StoreError> {
		Ok(Vec::new())
	}

	fn write(&self, _: &[Change]) -> Result<(), StoreError> {
		Ok(())
	}

	fn health(&self, _: &str) -> Vec<Finding> {
		vec![Finding::warning(
			"invites are lost when the server stops: invite_storage = \"memory\" is for tests",
		)]
	}
}

/// A store without durability of its own.
#[derive(Debug)]
pub struct MemoryStore<B = Nowhere> {
	content: Arc<Mutex<Content>>,
	backing: B,
}

type InviteKey = (String, Digest);
type ClaimKey = (String, Nonce);

/// What a memory store holds.
#[derive(Debug, Default)]
pub struct Content {
	/// Hosts whose invites have been loaded.
	loaded: BTreeSet<String>,
	invites: BTreeMap<InviteKey, Invite>,
	claims: BTreeMap<ClaimKey, Claim>,
	redemptions: Vec<(String, Digest, Redemption)>,
	/// Who brought an account, by host and username.
	lineage: BTreeMap<(String, String), Member>,
	/// How to take the present call back, oldest step first.
	undo: Vec<Undo>,
}

#[derive(Debug)]
enum Undo {
	Invite(InviteKey, Option<Invite>),
	Claim(ClaimKey, Option<Claim>),
	Redemption,
	Redemptions(Vec<(String, Digest, Redemption)>),
	Lineage((String, String), Option<Member>),
}

impl Default for MemoryStore {
	fn default() -> Self {
		Self::over(Arc::default(), Nowhere)
	}
}

impl<B: Backing> MemoryStore<B> {
	/// A store over what a backing holds. Claims are in the content, which may be that of another store.
	pub const fn over(content: Arc<Mutex<Content>>, backing: B) -> Self {
		Self { content, backing }
	}

	/// Loads the invites of a host anew when it is used next.
	pub fn forget(&self, host: &str) {
		self.lock().forget(host);
	}

	fn lock(&self) -> MutexGuard<'_, Content> {
		self.content.lock().unwrap_or_else(|poisoned| {
			// Somebody panicked in the middle of a change.
			let mut content = poisoned.into_inner();
			content.roll_back();
			content
		})
	}

	fn loaded(&self, host: &str) -> Result<MutexGuard<'_, Content>, StoreError> {
		let mut content = self.lock();
		if !content.loaded.contains(host) {
			for invite in self.backing.load(host)? {
				content.invites.insert((invite.host.clone(), invite.digest), invite);
			}
			content.loaded.insert(host.to_owned());
		}
		Ok(content)
	}
}

impl<B: Backing> Store for MemoryStore<B> {
	fn carries(&self) -> Carries {
		self.backing.carries()
	}

	fn read(&self, doing: &'static str, host: &str, work: Work<'_>) -> Result<(), StoreError> {
		let mut content = self.loaded(host)?;
		let done = work(&mut HostRows { content: &mut content, host });
		debug_assert!(content.undo.is_empty(), "what reads changes nothing");
		done.map_err(|error| error.into_store(doing))
	}

	fn write(
		&self,
		doing: &'static str,
		host: &str,
		_: &[Lock<'_>],
		work: Work<'_>,
	) -> Result<(), StoreError> {
		let mut content = self.loaded(host)?;
		if let Err(error) = work(&mut HostRows { content: &mut content, host }) {
			content.roll_back();
			return Err(error.into_store(doing));
		}
		if let Err(error) = self.backing.write(&content.changes(self.carries())) {
			content.roll_back();
			// Some of it may have been written.
			content.forget(host);
			return Err(error);
		}
		content.drop_what_is_not_carried(self.carries());
		content.undo.clear();
		Ok(())
	}

	fn health(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		let mut findings = self.backing.health(host);
		let newest =
			self.loaded(host).map(|content| content.of_host(host).map(|invite| invite.created_at).max());
		findings.extend(newest.map(|newest| Finding::of_clock(newest, now)));
		findings
	}
}

impl Content {
	fn forget(&mut self, host: &str) {
		self.loaded.remove(host);
		let claimed: BTreeSet<InviteKey> =
			self.claims.values().map(|claim| (claim.host.clone(), claim.digest)).collect();
		self.invites.retain(|key, invite| {
			if key.0 == host {
				// If it is not there any more when the host is loaded again, its claims stand all the same.
				invite.revoked_at.get_or_insert(invite.created_at);
			}
			key.0 != host || claimed.contains(key)
		});
	}

	fn roll_back(&mut self) {
		for step in std::mem::take(&mut self.undo).into_iter().rev() {
			match step {
				Undo::Invite(key, Some(invite)) => drop(self.invites.insert(key, invite)),
				Undo::Invite(key, None) => drop(self.invites.remove(&key)),
				Undo::Claim(key, Some(claim)) => drop(self.claims.insert(key, claim)),
				Undo::Claim(key, None) => drop(self.claims.remove(&key)),
				Undo::Redemption => drop(self.redemptions.pop()),
				Undo::Lineage(key, Some(member)) => drop(self.lineage.insert(key, member)),
				Undo::Lineage(key, None) => drop(self.lineage.remove(&key)),
				Undo::Redemptions(removed) => self.redemptions.extend(removed),
			}
		}
	}

	/// Each invite that the present call has changed, as far as a store that carries so much can tell.
	fn changes(&self, carries: Carries) -> Vec<Change> {
		let mut before = BTreeMap::new();
		for step in &self.undo {
			if let Undo::Invite(key, invite) = step {
				before.entry(key).or_insert(invite);
			}
		}
		before
			.into_iter()
			.map(|(key, before)| Change {
				before: carried(before.as_ref(), carries),
				after: carried(self.invites.get(key), carries),
			})
			.filter(|change| change.before != change.after)
			.collect()
	}

	fn drop_what_is_not_carried(&mut self, carries: Carries) {
		if carries == Carries::ALL {
			return;
		}
		for step in std::mem::take(&mut self.undo) {
			let key = match step {
				Undo::Invite(key, _) => key,
				Undo::Claim(_, Some(claim)) => (claim.host, claim.digest),
				Undo::Claim(_, None) | Undo::Redemption | Undo::Redemptions(_) | Undo::Lineage(..) => {
					continue;
				}
			};
			let is_claimed =
				|| self.claims.values().any(|claim| claim.host == key.0 && claim.digest == key.1);
			if let Some(carried) = carried(self.invites.get(&key), carries) {
				self.invites
					.entry(key)
					.and_modify(|invite| *invite = Invite { ended_at: invite.ended_at, ..carried });
			} else if !is_claimed() {
				// While there are claims on it, it is still to be redeemed.
				self.invites.remove(&key);
			}
		}
		if !carries.history {
			self.lineage.clear();
		}
		// For a second attempt to redeem a claim; the lease was made for such delays.
		if !carries.history
			&& let Some(newest) = self.redemptions.iter().map(|(_, _, redemption)| redemption.used_at).max()
		{
			self.redemptions.retain(|(_, _, redemption)| newest - redemption.used_at <= LEASE);
		}
	}

	/// Puts an invite in the place of the one of its digest, or of none.
	fn put(&mut self, invite: &Invite) {
		let key = (invite.host.clone(), invite.digest);
		let before = self.invites.insert(key.clone(), invite.clone());
		self.undo.push(Undo::Invite(key, before));
	}

	fn put_claim(&mut self, claim: Claim) {
		let key = (claim.host.clone(), claim.nonce);
		let before = self.claims.insert(key.clone(), claim);
		self.undo.push(Undo::Claim(key, before));
	}

	fn remove_claim(&mut self, host: &str, nonce: &Nonce) -> Option<Claim> {
		let key = (host.to_owned(), *nonce);
		let claim = self.claims.remove(&key)?;
		self.undo.push(Undo::Claim(key, Some(claim.clone())));
		Some(claim)
	}

	fn of_host<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Invite> {
		let first = (host.to_owned(), Digest::from_bytes([0; 32]));
		self.invites.range(first..).map(|(_, invite)| invite).take_while(move |invite| invite.host == host)
	}
}

/// What is left of an invite in a store that carries so much.
fn carried(invite: Option<&Invite>, carries: Carries) -> Option<Invite> {
	let mut invite = invite?.clone();
	if !carries.history {
		if invite.revoked_at.is_some() || !invite.has_uses_left() {
			return None;
		}
		(invite.uses, invite.ended_at) = (0, None);
	}
	if !carries.contact_details && !invite.allow_registration {
		invite.fields = Fields::default();
	}
	Some(invite)
}

/// The rows of one host.
struct HostRows<'a> {
	content: &'a mut Content,
	host: &'a str,
}

impl HostRows<'_> {
	fn get(&self, digest: &Digest) -> Option<&Invite> {
		self.content.invites.get(&(self.host.to_owned(), *digest))
	}
}

impl Rows for HostRows<'_> {
	fn invite(&mut self, digest: &Digest) -> Result<Option<Invite>, TxError> {
		Ok(self.get(digest).cloned())
	}

	fn peek(&mut self, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError> {
		Ok(pick.of(self.content.of_host(self.host), limit).into_iter().cloned().collect())
	}

	fn over(&mut self, before: Timestamp, limit: u32) -> Result<Vec<(Digest, Option<Timestamp>)>, TxError> {
		let claimed: BTreeSet<Digest> = self.claims()?.into_iter().map(|claim| claim.digest).collect();
		let mut over: Vec<&Invite> = self
			.content
			.of_host(self.host)
			.filter(|invite| invite.ended_at.is_some_and(|ended_at| ended_at < before))
			.filter(|invite| !claimed.contains(&invite.digest))
			.collect();
		over.sort_by_key(|invite| invite.ended_at);
		over.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
		Ok(over.into_iter().map(|invite| (invite.digest, invite.expires)).collect())
	}

	fn insert(&mut self, invites: &[&Invite]) -> Result<Vec<bool>, TxError> {
		let mut are_new = Vec::new();
		for invite in invites {
			let is_new = self.get(&invite.digest).is_none();
			if is_new {
				self.content.put(invite);
			}
			are_new.push(is_new);
		}
		Ok(are_new)
	}

	fn update(&mut self, invites: &[Invite]) -> Result<(), TxError> {
		for invite in invites {
			self.content.put(invite);
		}
		Ok(())
	}

	fn remove(&mut self, digests: &[Digest]) -> Result<(), TxError> {
		for digest in digests {
			let key = (self.host.to_owned(), *digest);
			if let Some(invite) = self.content.invites.remove(&key) {
				self.content.undo.push(Undo::Invite(key, Some(invite)));
			}
			let is_of =
				|(of, invite, _): &mut (String, Digest, Redemption)| of == self.host && invite == digest;
			let removed = self.content.redemptions.extract_if(.., is_of).collect();
			self.content.undo.push(Undo::Redemptions(removed));
		}
		Ok(())
	}

	fn claims(&mut self) -> Result<Vec<Claim>, TxError> {
		Ok(self.content.claims.values().filter(|claim| claim.host == self.host).cloned().collect())
	}

	fn insert_claim(&mut self, claim: &Claim) -> Result<(), TxError> {
		self.content.put_claim(claim.clone());
		Ok(())
	}

	fn take_claims(&mut self, nonces: &[Nonce]) -> Result<Vec<Claim>, TxError> {
		Ok(nonces.iter().filter_map(|nonce| self.content.remove_claim(self.host, nonce)).collect())
	}

	fn renew_claim(&mut self, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, TxError> {
		let Some(claim) = self.content.claims.get(&(self.host.to_owned(), *nonce)).cloned() else {
			return Ok(false);
		};
		self.content.put_claim(Claim { lease_end, ..claim });
		Ok(true)
	}

	fn redemptions(&mut self, digests: &[Digest]) -> Result<Vec<(Digest, Redemption)>, TxError> {
		let mut found = Vec::new();
		for digest in digests {
			let of_invite = self.content.redemptions.iter();
			let of_invite = of_invite.filter(|(of, invite, _)| of == self.host && invite == digest);
			let mut uses: Vec<_> =
				of_invite.map(|(_, _, redemption)| (*digest, redemption.clone())).collect();
			uses.sort_by_key(|(_, redemption)| (redemption.used_at, redemption.nonce));
			found.append(&mut uses);
		}
		Ok(found)
	}

	fn insert_redemption(&mut self, digest: &Digest, redemption: &Redemption) -> Result<(), TxError> {
		self.content.redemptions.push((self.host.to_owned(), *digest, redemption.clone()));
		self.content.undo.push(Undo::Redemption);
		Ok(())
	}

	fn is_known(&mut self, digest: &Digest, jid: &str, username: Option<&str>) -> Result<bool, TxError> {
		let is_contact = |(host, of, redemption): &(String, Digest, Redemption)| {
			host == self.host
				&& of == digest
				&& redemption.purpose == Purpose::Contact
				&& redemption.invitee.as_deref() == Some(jid)
		};
		let member =
			username.and_then(|name| self.content.lineage.get(&(self.host.to_owned(), name.to_owned())));
		Ok(member.is_some_and(|member| member.digest == *digest)
			|| self.content.redemptions.iter().any(is_contact))
	}

	fn members(&mut self, which: Members<'_>) -> Result<Vec<Member>, TxError> {
		let is_asked_for = |member: &&Member| match which {
			Members::Of(username) => member.username == username,
			Members::BroughtBy(inviter) => member.inviter == inviter,
		};
		let of_host = self.content.lineage.iter().filter(|((host, _), _)| host == self.host);
		Ok(of_host.map(|(_, member)| member).filter(is_asked_for).cloned().collect())
	}

	fn put_member(&mut self, member: &Member) -> Result<(), TxError> {
		let key = (self.host.to_owned(), member.username.clone());
		let before = self.content.lineage.insert(key.clone(), member.clone());
		self.content.undo.push(Undo::Lineage(key, before));
		Ok(())
	}

	fn remove_member(&mut self, username: &str) -> Result<(), TxError> {
		let key = (self.host.to_owned(), username.to_owned());
		if let Some(member) = self.content.lineage.remove(&key) {
			self.content.undo.push(Undo::Lineage(key, Some(member)));
		}
		Ok(())
	}
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::store::conformance::{promises, races, tests};

	promises!(tests(|_scratch| MemoryStore::default()));
	races!(tests(|_scratch| MemoryStore::default()));

	mod twice {
		use super::*;
		use crate::store::conformance::Twice;

		promises!(tests(|_scratch| Twice(MemoryStore::default())));
	}
}
