//! Invites in this process alone, gone when it ends: for tests. With a
//! [`Backing`] it is a store for what keeps rows but knows no transactions: it holds all invites and writes each change
//! through.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Carries, Endings, Lock, Members, Pick, Rows, Store, StoreError, TxError, Work};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::ending::{Ending, Scope};
use crate::invite::Invite;
use crate::lineage::Member;
use crate::redemption::{Claim, LEASE, Life, Purpose, Redemption};
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

/// What a memory store holds. All keys begin with the host.
#[derive(Debug, Default)]
pub struct Content {
	/// Hosts whose invites have been loaded.
	loaded: BTreeSet<String>,
	invites: Undoable<InviteKey, Invite>,
	claims: Undoable<(String, Nonce), Claim>,
	redemptions: Undoable<(String, Digest, Timestamp, Nonce), Redemption>,
	/// Who brought an account, by its username.
	lineage: Undoable<(String, String), Member>,
	endings: Undoable<(String, (String, Scope)), Ending>,
	/// The process that lives, by the name that it gives itself.
	boot: Option<Nonce>,
}

/// Rows, and what the present call has done to them: the oldest step first.
#[derive(Debug)]
struct Undoable<K, V> {
	rows: BTreeMap<K, V>,
	undo: Vec<(K, Option<V>)>,
}

impl<K, V> Default for Undoable<K, V> {
	fn default() -> Self {
		Self { rows: BTreeMap::new(), undo: Vec::new() }
	}
}

impl<K: Ord + Clone, V: Clone> Undoable<K, V> {
	fn put(&mut self, key: K, row: V) {
		let before = self.rows.insert(key.clone(), row);
		self.undo.push((key, before));
	}

	fn take(&mut self, key: K) -> Option<V> {
		let row = self.rows.remove(&key)?;
		self.undo.push((key, Some(row.clone())));
		Some(row)
	}

	fn roll_back(&mut self) {
		for (key, before) in std::mem::take(&mut self.undo).into_iter().rev() {
			match before {
				Some(row) => drop(self.rows.insert(key, row)),
				None => drop(self.rows.remove(&key)),
			}
		}
	}
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
				content.invites.rows.insert((invite.host.clone(), invite.digest), invite);
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
		content.roll_back();
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
		content.commit(self.carries());
		Ok(())
	}

	/// Claims are gone when the process that made them is, so there are none of others.
	fn hold(&self, boot: &Nonce) -> Result<(), StoreError> {
		self.lock().boot = Some(*boot);
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
			self.claims.rows.values().map(|claim| (claim.host.clone(), claim.digest)).collect();
		self.invites.rows.retain(|key, invite| {
			if key.0 == host {
				// If it is not there any more when the host is loaded again, its claims stand all the same.
				invite.revoked_at.get_or_insert(invite.created_at);
			}
			key.0 != host || claimed.contains(key)
		});
	}

	fn roll_back(&mut self) {
		self.invites.roll_back();
		self.claims.roll_back();
		self.redemptions.roll_back();
		self.lineage.roll_back();
		self.endings.roll_back();
	}

	/// Each invite that the present call has changed, as far as a store that carries so much can tell.
	fn changes(&self, carries: Carries) -> Vec<Change> {
		let mut before = BTreeMap::new();
		for (key, invite) in &self.invites.undo {
			before.entry(key).or_insert(invite);
		}
		before
			.into_iter()
			.map(|(key, before)| Change {
				before: carried(before.as_ref(), carries),
				after: carried(self.invites.rows.get(key), carries),
			})
			.filter(|change| change.before != change.after)
			.collect()
	}

	/// Nothing of the present call is taken back any more; what is not carried is dropped.
	fn commit(&mut self, carries: Carries) {
		self.redemptions.undo.clear();
		self.lineage.undo.clear();
		self.endings.undo.clear();
		let changed = std::mem::take(&mut self.invites.undo).into_iter().map(|(key, _)| key);
		let claims = std::mem::take(&mut self.claims.undo).into_iter().filter_map(|(_, claim)| claim);
		if carries == Carries::ALL {
			return;
		}
		for key in changed.chain(claims.map(|claim| (claim.host, claim.digest))) {
			let mut claims = self.claims.rows.values();
			if let Some(carried) = carried(self.invites.rows.get(&key), carries) {
				let keep = |invite: &mut Invite| *invite = Invite { ended_at: invite.ended_at, ..carried };
				self.invites.rows.entry(key).and_modify(keep);
			} else if !claims.any(|claim| claim.host == key.0 && claim.digest == key.1) {
				// While there are claims on it, it is still to be redeemed.
				self.invites.rows.remove(&key);
			}
		}
		if !carries.history {
			self.lineage.rows.clear();
			// For a second attempt to redeem a claim; the lease was made for such delays.
			let newest = self.redemptions.rows.values().map(|redemption| redemption.used_at).max();
			self.redemptions
				.rows
				.retain(|_, redemption| newest.is_none_or(|newest| newest - redemption.used_at <= LEASE));
		}
	}

	fn of_host<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Invite> {
		let first = (host.to_owned(), Digest::from_bytes([0; 32]));
		self.invites
			.rows
			.range(first..)
			.map(|(_, invite)| invite)
			.take_while(move |invite| invite.host == host)
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
	fn key<T>(&self, of: T) -> (String, T) {
		(self.host.to_owned(), of)
	}

	fn uses(&self, digest: Digest) -> impl Iterator<Item = &Redemption> {
		let ends = [(Timestamp::MIN, [0; 16]), (Timestamp::MAX, [u8::MAX; 16])];
		let [first, last] =
			ends.map(|(at, nonce)| (self.host.to_owned(), digest, at, Nonce::from_bytes(nonce)));
		self.content.redemptions.rows.range(first..=last).map(|(_, redemption)| redemption)
	}
}

impl Rows for HostRows<'_> {
	fn invite(&mut self, digest: &Digest) -> Result<Option<Invite>, TxError> {
		Ok(self.content.invites.rows.get(&self.key(*digest)).cloned())
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
			let key = self.key(invite.digest);
			are_new.push(!self.content.invites.rows.contains_key(&key));
			if are_new.ends_with(&[true]) {
				self.content.invites.put(key, (*invite).clone());
			}
		}
		Ok(are_new)
	}

	fn update(&mut self, invites: &[Invite]) -> Result<(), TxError> {
		for invite in invites {
			let key = self.key(invite.digest);
			self.content.invites.put(key, invite.clone());
		}
		Ok(())
	}

	fn remove(&mut self, digests: &[Digest]) -> Result<(), TxError> {
		for digest in digests {
			let uses: Vec<_> = self.uses(*digest).map(|use_| (use_.used_at, use_.nonce)).collect();
			for (used_at, nonce) in uses {
				self.content.redemptions.take((self.host.to_owned(), *digest, used_at, nonce));
			}
			let key = self.key(*digest);
			self.content.invites.take(key);
		}
		Ok(())
	}

	fn claims(&mut self) -> Result<Vec<Claim>, TxError> {
		Ok(self.content.claims.rows.values().filter(|claim| claim.host == self.host).cloned().collect())
	}

	fn insert_claim(&mut self, claim: &Claim) -> Result<(), TxError> {
		let key = self.key(claim.nonce);
		self.content.claims.put(key, claim.clone());
		Ok(())
	}

	fn take_claims(&mut self, nonces: &[Nonce]) -> Result<Vec<Claim>, TxError> {
		let take = |nonce: &Nonce| self.content.claims.take((self.host.to_owned(), *nonce));
		Ok(nonces.iter().filter_map(take).collect())
	}

	fn renew_claim(&mut self, nonce: &Nonce) -> Result<bool, TxError> {
		let Some(claim) = self.content.claims.rows.get(&self.key(*nonce)).cloned() else { return Ok(false) };
		self.insert_claim(&Claim { renewals: claim.renewals + 1, ..claim })?;
		Ok(true)
	}

	fn life(&mut self, boot: &Nonce) -> Result<Life, TxError> {
		Ok(if self.content.boot.as_ref() == Some(boot) { Life::Alive } else { Life::Over })
	}

	fn redemptions(&mut self, digests: &[Digest]) -> Result<Vec<(Digest, Redemption)>, TxError> {
		let uses =
			|digest: &Digest| self.uses(*digest).map(|redemption| (*digest, redemption.clone())).collect();
		Ok(digests.iter().flat_map(|digest| -> Vec<_> { uses(digest) }).collect())
	}

	fn insert_redemption(&mut self, digest: &Digest, redemption: &Redemption) -> Result<(), TxError> {
		let key = (self.host.to_owned(), *digest, redemption.used_at, redemption.nonce);
		self.content.redemptions.put(key, redemption.clone());
		Ok(())
	}

	fn is_named(&mut self, username: &str) -> Result<bool, TxError> {
		Ok(self.content.redemptions.rows.iter().any(|((host, ..), redemption)| {
			host == self.host
				&& redemption.purpose == Purpose::Account
				&& redemption.invitee.as_deref() == Some(username)
		}))
	}

	fn is_known(&mut self, digest: &Digest, jid: &str, username: Option<&str>) -> Result<bool, TxError> {
		let is_contact = |redemption: &Redemption| {
			redemption.purpose == Purpose::Contact && redemption.invitee.as_deref() == Some(jid)
		};
		let member = username.and_then(|name| self.content.lineage.rows.get(&self.key(name.to_owned())));
		Ok(member.is_some_and(|member| member.digest == *digest) || self.uses(*digest).any(is_contact))
	}

	fn members(&mut self, which: Members<'_>) -> Result<Vec<Member>, TxError> {
		let is_asked_for = |member: &&Member| match which {
			Members::Of(username) => member.username == username,
			Members::BroughtBy(inviter) => member.inviter == inviter,
		};
		let of_host = self.content.lineage.rows.iter().filter(|((host, _), _)| host == self.host);
		Ok(of_host.map(|(_, member)| member).filter(is_asked_for).cloned().collect())
	}

	fn put_member(&mut self, member: &Member) -> Result<(), TxError> {
		let key = self.key(member.username.clone());
		self.content.lineage.put(key, member.clone());
		Ok(())
	}

	fn remove_member(&mut self, username: &str) -> Result<(), TxError> {
		let key = self.key(username.to_owned());
		self.content.lineage.take(key);
		Ok(())
	}

	fn endings(&mut self, which: Endings<'_>) -> Result<Vec<Ending>, TxError> {
		let of_host = self.content.endings.rows.iter().filter(|((host, _), _)| host == self.host);
		Ok(which.of(of_host.map(|(_, ending)| ending)))
	}

	fn put_ending(&mut self, ending: &Ending) -> Result<(), TxError> {
		let key = self.key((ending.username.clone(), ending.scope));
		self.content.endings.put(key, ending.clone());
		Ok(())
	}

	fn remove_ending(&mut self, ending: &Ending) -> Result<(), TxError> {
		let key = self.key((ending.username.clone(), ending.scope));
		self.content.endings.take(key);
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
