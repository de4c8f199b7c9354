//! Invites in this process alone, gone when it ends: for tests, and as the shortest example of a store. With a
//! [`Backing`] it is a store for what keeps rows but knows no transactions: it holds all invites and writes each change
//! through.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Bundled, Carries, InviteStore, Record, StoreError};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::lineage::{Birth, Member, birth, branch};
use crate::listing::{Part, Position};
use crate::policy::{Allowance, LimitReached, Usage, decide_creation};
use crate::redemption::{
	Admission, Claim, LEASE, Purpose, Redeemed, Redemption, Refusal, View, decide, reserves, supersedes,
};
use crate::token::{Digest, Nonce};
use crate::value::Fields;

/// Where the invites of a memory store lie when the process is not there. Nobody else may change them meanwhile. Claims
/// are not kept there, so what is under way when the process dies is free again.
pub trait Backing {
	/// As of [`InviteStore::carries`].
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

	/// As of [`InviteStore::check`].
	fn check(&self, host: &str) -> Vec<Finding>;
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

	fn check(&self, _: &str) -> Vec<Finding> {
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
		// What was begun is taken back by the next change, so a panic elsewhere does not spoil it.
		self.content.lock().unwrap_or_else(PoisonError::into_inner)
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

	fn read<T>(&self, host: &str, look: impl FnOnce(&Content) -> T) -> Result<T, StoreError> {
		Ok(look(&*self.loaded(host)?))
	}

	/// What the content says of a claim.
	fn view_in(&self, content: &Content, claim: &Claim, now: Timestamp) -> View {
		// Without history the last uses are there for a while all the same.
		let is_known = self.carries().history && content.is_known(claim);
		View { is_known, ..content.view(claim, now) }
	}

	/// Does all of `work` or nothing.
	fn change<T>(
		&self,
		host: &str,
		work: impl FnOnce(&mut Content) -> Result<T, StoreError>,
	) -> Result<T, StoreError> {
		let mut content = self.loaded(host)?;
		content.undo.clear();
		let done = work(&mut content).inspect_err(|_| content.roll_back())?;
		if let Err(error) = self.backing.write(&content.changes(self.carries())) {
			content.roll_back();
			// Some of it may have been written.
			content.forget(host);
			return Err(error);
		}
		content.drop_what_is_not_carried(self.carries());
		Ok(done)
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

	fn retire(
		&mut self,
		host: &str,
		which: &dyn Fn(&Invite) -> bool,
		why: &str,
		now: Timestamp,
	) -> Vec<Invite> {
		let picked = self.digests(host, |invite| invite.ended_at.is_none() && which(invite));
		let mut retired = Vec::new();
		for digest in picked {
			if let Some(invite) = self.invite_mut(host, &digest)
				&& invite.revoke(Some(why), None, now)
			{
				retired.push(invite.clone());
			}
		}
		retired
	}

	fn create(&mut self, invite: &Invite) -> Result<Vec<Invite>, StoreError> {
		let superseded = self.retire(
			&invite.host,
			&|older| supersedes(invite, older),
			super::SUPERSEDED,
			invite.created_at,
		);
		if self.add(invite) { Ok(superseded) } else { Err(StoreError::Exists) }
	}

	fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Usage {
		let made = || {
			self.of_host(host).filter(|invite| invite.local_inviter().as_ref() == Some(&allowance.inviter))
		};
		let open = made().filter(|invite| invite.ended_at.is_none() && !invite.is_expired(now)).count();
		let mut newest: Vec<Timestamp> = made().map(|invite| invite.created_at).collect();
		newest.sort_unstable_by(|a, b| b.cmp(a));
		newest.truncate(allowance.newest().try_into().unwrap_or(usize::MAX));
		Usage { open: u32::try_from(open).unwrap_or(u32::MAX), newest }
	}

	/// An invite that is going to be changed.
	fn invite_mut(&mut self, host: &str, digest: &Digest) -> Option<&mut Invite> {
		let key = (host.to_owned(), *digest);
		let invite = self.invites.get_mut(&key)?;
		self.undo.push(Undo::Invite(key, Some(invite.clone())));
		Some(invite)
	}

	/// Whether there was no invite with its digest.
	fn add(&mut self, invite: &Invite) -> bool {
		let Entry::Vacant(place) = self.invites.entry((invite.host.clone(), invite.digest)) else {
			return false;
		};
		self.undo.push(Undo::Invite(place.key().clone(), None));
		place.insert(invite.clone());
		true
	}

	/// Removes an invite with its uses.
	fn remove(&mut self, host: &str, digest: &Digest) {
		let key = (host.to_owned(), *digest);
		if let Some(invite) = self.invites.remove(&key) {
			self.undo.push(Undo::Invite(key, Some(invite)));
		}
		let is_of = |(of, invite, _): &mut (String, Digest, Redemption)| of == host && invite == digest;
		self.undo.push(Undo::Redemptions(self.redemptions.extract_if(.., is_of).collect()));
	}

	/// Up to `limit` that come after a position on a part.
	fn listing(&self, host: &str, part: Part, after: &Position, limit: u32, now: Timestamp) -> Vec<Invite> {
		let mut found: Vec<_> = self
			.of_host(host)
			.filter_map(|invite| Some((invite.position(part, now)?, invite)))
			.filter(|(position, _)| position < after)
			.collect();
		found.sort_by_key(|(position, _)| Reverse(*position));
		found.into_iter().take(at_most(limit)).map(|(_, invite)| invite.clone()).collect()
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

	fn digests(&self, host: &str, which: impl Fn(&Invite) -> bool) -> Vec<Digest> {
		self.of_host(host).filter(|invite| which(invite)).map(|invite| invite.digest).collect()
	}

	/// Up to `limit` of those that follow `after`, in the order of their digests.
	fn page(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
		which: fn(&Invite) -> bool,
	) -> Vec<Invite> {
		self.of_host(host)
			.filter(|invite| which(invite) && after.is_none_or(|after| invite.digest > *after))
			.take(at_most(limit))
			.cloned()
			.collect()
	}

	fn claims_on_name(&self, host: &str, username: &str) -> Vec<Claim> {
		self.claims
			.values()
			.filter(|claim| claim.host == host && claim.purpose == Purpose::Account)
			.filter(|claim| claim.invitee.as_deref() == Some(username))
			.cloned()
			.collect()
	}

	fn view(&self, claim: &Claim, now: Timestamp) -> View {
		let name = if claim.purpose == Purpose::Account { claim.invitee.as_deref() } else { None };
		View {
			invite: self.invites.get(&(claim.host.clone(), claim.digest)).cloned(),
			claims: self
				.claims
				.values()
				.filter(|other| other.host == claim.host && other.digest == claim.digest)
				.cloned()
				.collect(),
			claims_on_name: name.map(|name| self.claims_on_name(&claim.host, name)).unwrap_or_default(),
			is_reserved: name.is_some_and(|name| {
				self.of_host(&claim.host)
					.any(|other| other.digest != claim.digest && reserves(other, name, now))
			}),
			..View::default()
		}
	}

	/// Whether the contact of a claim is among the redemptions of its invite.
	fn is_known(&self, claim: &Claim) -> bool {
		let Some((jid, username)) = claim.contact() else { return false };
		let is_by_contact = |(host, digest, redemption): &(String, Digest, Redemption)| {
			*host == claim.host
				&& *digest == claim.digest
				&& redemption.purpose == Purpose::Contact
				&& redemption.invitee.as_deref() == Some(jid)
		};
		let account =
			username.and_then(|username| self.lineage.get(&(claim.host.clone(), username.into_owned())));
		account.is_some_and(|member| member.digest == claim.digest)
			|| self.redemptions.iter().any(is_by_contact)
	}

	/// Counts the use that a claim has become.
	fn count(&mut self, claim: &Claim, source: Option<&str>, now: Timestamp) -> Option<Invite> {
		self.redemptions.push((
			claim.host.clone(),
			claim.digest,
			Redemption {
				nonce: claim.nonce,
				purpose: claim.purpose,
				invitee: claim.invitee.clone(),
				source: source.map(str::to_owned),
				used_at: now,
			},
		));
		self.undo.push(Undo::Redemption);
		let invite = self.invite_mut(&claim.host, &claim.digest)?;
		invite.add_use(now);
		let invite = invite.clone();
		match birth(&invite, claim.purpose, claim.invitee.as_deref(), now) {
			Some(Birth::Brought(member)) => drop(self.keep_member(&claim.host, &member)),
			Some(Birth::Alone(username)) => {
				let key = (claim.host.clone(), username);
				if let Some(member) = self.lineage.remove(&key) {
					self.undo.push(Undo::Lineage(key, Some(member)));
				}
			}
			None => (),
		}
		Some(invite)
	}

	/// Keeps who brought an account, if it replaces what is known; whether it did.
	fn keep_member(&mut self, host: &str, member: &Member) -> bool {
		let key = (host.to_owned(), member.username.clone());
		let may = member.replaces(self.lineage.get(&key));
		if may {
			let before = self.lineage.insert(key.clone(), member.clone());
			self.undo.push(Undo::Lineage(key, before));
		}
		may
	}

	fn brought_by(&self, host: &str, inviter: &str) -> Vec<Member> {
		self.lineage
			.iter()
			.filter(|((of, _), member)| of == host && member.inviter == inviter)
			.map(|(_, member)| member.clone())
			.collect()
	}

	fn redemptions(&self, host: &str, digest: &Digest) -> Vec<Redemption> {
		let mut redemptions: Vec<Redemption> = self
			.redemptions
			.iter()
			.filter(|(of, invite, _)| of == host && invite == digest)
			.map(|(_, _, redemption)| redemption.clone())
			.collect();
		redemptions.sort_by_key(|redemption| (redemption.used_at, redemption.nonce));
		redemptions
	}
}

fn at_most(limit: u32) -> usize {
	limit.try_into().unwrap_or(usize::MAX)
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

impl<B: Backing> InviteStore for MemoryStore<B> {
	fn carries(&self) -> Carries {
		self.backing.carries()
	}

	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError> {
		self.carries().admit(&invite.clone().into())?;
		self.change(&invite.host, |content| content.create(invite))
	}

	fn create_within(
		&self,
		invite: &Invite,
		allowance: &Allowance,
	) -> Result<Result<Vec<Invite>, LimitReached>, StoreError> {
		self.carries().admit(&invite.clone().into())?;
		self.change(&invite.host, |content| {
			let usage = content.usage(&invite.host, allowance, invite.created_at);
			match decide_creation(invite, allowance, &usage, invite.created_at) {
				Ok(()) => content.create(invite).map(Ok),
				Err(reached) => Ok(Err(reached)),
			}
		})
	}

	fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Result<Usage, StoreError> {
		self.read(host, |content| content.usage(host, allowance, now))
	}

	fn import(&self, records: &[Record]) -> Result<usize, StoreError> {
		for record in records {
			self.carries().admit_import(record)?;
		}
		let mut kept = 0;
		for of_host in records.chunk_by(|a, b| a.invite.host == b.invite.host) {
			kept += self.change(&of_host[0].invite.host, |content| {
				let mut kept = 0;
				for record in of_host {
					if content.add(&record.invite) {
						kept += 1;
						for redemption in &record.redemptions {
							let invite = &record.invite;
							content.redemptions.push((
								invite.host.clone(),
								invite.digest,
								redemption.clone(),
							));
							content.undo.push(Undo::Redemption);
							if let Some(Birth::Brought(member)) = redemption.birth(invite) {
								content.keep_member(&invite.host, &member);
							}
						}
					}
				}
				Ok(kept)
			})?;
		}
		Ok(kept)
	}

	fn records(&self, host: &str, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, StoreError> {
		let has_history = self.carries().history;
		self.read(host, |content| {
			let page = content.page(host, after, limit, |_| true);
			let record = |invite: Invite| Record {
				redemptions: if has_history { content.redemptions(host, &invite.digest) } else { Vec::new() },
				invite,
			};
			page.into_iter().map(record).collect()
		})
	}

	fn forget_tokens(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Option<Digest>, StoreError> {
		if !self.carries().digests {
			return Err(StoreError::Unsupported { what: "an invite without its token" });
		}
		self.change(host, |content| {
			let page = content.page(host, after, limit, |_| true);
			for invite in &page {
				if let Some(invite) = content.invite_mut(host, &invite.digest) {
					invite.forget_token();
				}
			}
			Ok(super::last_of_full_page(&page, limit))
		})
	}

	fn check(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		let mut findings = self.backing.check(host);
		let newest = self.read(host, |content| content.of_host(host).map(|invite| invite.created_at).max());
		findings.extend(newest.map(|newest| Finding::of_clock(newest, now)));
		findings
	}

	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError> {
		self.read(host, |content| content.invites.get(&(host.to_owned(), *digest)).cloned())
	}

	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<Admission, Refusal>, StoreError> {
		self.change(&claim.host, |content| {
			if let Some(replaced) = replaced {
				content.remove_claim(&claim.host, replaced);
			}
			let decision = decide(&self.view_in(content, claim, now), claim, now);
			if decision == Ok(Admission::Claim) {
				content.put_claim(claim.clone());
			}
			Ok(decision)
		})
	}

	fn redeem(
		&self,
		host: &str,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError> {
		self.change(host, |content| {
			if let Some(claim) = content.remove_claim(host, nonce) {
				return Ok(content.count(&claim, source, now).map_or(Redeemed::Lost, Redeemed::Now));
			}
			let is_redeemed = content
				.redemptions
				.iter()
				.any(|(of, invite, done)| of == host && invite == digest && done.nonce == *nonce);
			Ok(if is_redeemed { Redeemed::Before } else { Redeemed::Lost })
		})
	}

	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Option<Invite>, Refusal>, StoreError> {
		self.change(&claim.host, |content| {
			Ok(match decide(&self.view_in(content, claim, now), claim, now) {
				Ok(Admission::Claim) => content.count(claim, source, now).ok_or(Refusal::Invalid).map(Some),
				Ok(Admission::Known) => Ok(None),
				Err(refusal) => Err(refusal),
			})
		})
	}

	fn release(&self, host: &str, nonce: &Nonce, only_stale: Option<Timestamp>) -> Result<bool, StoreError> {
		self.change(host, |content| {
			let claim = content.claims.get(&(host.to_owned(), *nonce));
			let may = claim.is_some_and(|claim| only_stale.is_none_or(|now| claim.is_stale(now)));
			Ok(may && content.remove_claim(host, nonce).is_some())
		})
	}

	fn renew(&self, host: &str, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, StoreError> {
		self.change(host, |content| {
			let Some(claim) = content.claims.get(&(host.to_owned(), *nonce)).cloned() else {
				return Ok(false);
			};
			content.put_claim(Claim { lease_end, ..claim });
			Ok(true)
		})
	}

	fn view(&self, claim: &Claim, now: Timestamp) -> Result<View, StoreError> {
		self.read(&claim.host, |content| self.view_in(content, claim, now))
	}

	fn claims(&self, host: &str) -> Result<Vec<Claim>, StoreError> {
		let is_of_host = |claim: &&Claim| claim.host == host;
		self.read(host, |content| content.claims.values().filter(is_of_host).cloned().collect())
	}

	fn view_name(&self, host: &str, username: &str, now: Timestamp) -> Result<View, StoreError> {
		self.read(host, |content| View {
			claims_on_name: content.claims_on_name(host, username),
			is_reserved: content.of_host(host).any(|invite| reserves(invite, username, now)),
			..View::default()
		})
	}

	fn revoke(
		&self,
		host: &str,
		digest: &Digest,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, StoreError> {
		self.change(host, |content| {
			let invite = content.invite_mut(host, digest);
			Ok(invite.and_then(|invite| invite.revoke(why, by, now).then(|| invite.clone())))
		})
	}

	fn retire(
		&self,
		host: &str,
		username: &str,
		which: &dyn Fn(&Invite) -> bool,
		why: &str,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		let of_user = |invite: &Invite| invite.username.as_deref() == Some(username) && which(invite);
		self.change(host, |content| Ok(content.retire(host, &of_user, why, now)))
	}

	fn retire_inviter(
		&self,
		host: &str,
		inviter: &str,
		is_branch: bool,
		why: Option<&str>,
		by: Option<&str>,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		self.change(host, |content| {
			let inviters: BTreeSet<String> = branch(inviter, |inviter| {
				Ok::<_, StoreError>(if is_branch { content.brought_by(host, inviter) } else { Vec::new() })
			})?
			.into_iter()
			.map(|place| place.username)
			.collect();
			let is_theirs = |invite: &Invite| {
				invite.ended_at.is_none()
					&& invite.local_inviter().is_some_and(|inviter| inviters.contains(&inviter))
			};
			let mut retired = Vec::new();
			for digest in content.digests(host, is_theirs) {
				if let Some(invite) = content.invite_mut(host, &digest)
					&& invite.revoke(why, by, now)
				{
					retired.push(invite.clone());
				}
			}
			Ok(retired)
		})
	}

	fn made_by(&self, host: &str, inviter: &str) -> Result<Vec<Invite>, StoreError> {
		self.read(host, |content| {
			let is_theirs = |invite: &&Invite| invite.local_inviter().as_deref() == Some(inviter);
			let mut made: Vec<Invite> = content.of_host(host).filter(is_theirs).cloned().collect();
			made.sort_by_key(|invite| (invite.created_at, invite.digest));
			made
		})
	}

	fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, StoreError> {
		let has_history = self.carries().history;
		self.read(host, |content| if has_history { content.brought_by(host, inviter) } else { Vec::new() })
	}

	fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, StoreError> {
		let has_history = self.carries().history;
		self.read(host, |content| {
			content.lineage.get(&(host.to_owned(), username.to_owned())).filter(|_| has_history).cloned()
		})
	}

	fn import_lineage(&self, host: &str, members: &[Member]) -> Result<usize, StoreError> {
		if !self.carries().history {
			return Err(StoreError::Unsupported { what: "who brought an account" });
		}
		self.change(host, |content| {
			Ok(members.iter().filter(|member| content.keep_member(host, member)).count())
		})
	}

	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError> {
		if !self.carries().pause {
			return Err(StoreError::Unsupported { what: "a paused invite" });
		}
		self.change(host, |content| {
			let open = content.invite_mut(host, digest).filter(|invite| invite.ended_at.is_none());
			Ok(open.is_some_and(|invite| std::mem::replace(&mut invite.paused, paused) != paused))
		})
	}

	fn extend(
		&self,
		host: &str,
		digest: &Digest,
		expires: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Option<(Invite, Vec<Invite>)>, StoreError> {
		self.change(host, |content| {
			let invite = content.invite_mut(host, digest);
			let extended = invite.and_then(|invite| invite.extend(expires).then(|| invite.clone()));
			let Some(extended) = extended else {
				return Ok(None);
			};
			let which = |other: &Invite| other.digest != *digest && supersedes(&extended, other);
			let superseded = content.retire(host, &which, super::SUPERSEDED, now);
			Ok(Some((extended, superseded)))
		})
	}

	fn end_expired(&self, host: &str, limit: u32, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		self.change(host, |content| {
			let mut due = content.digests(host, |invite| invite.ended_at.is_none() && invite.is_expired(now));
			due.truncate(at_most(limit));
			let mut ended = Vec::new();
			for digest in due {
				if let Some(invite) = content.invite_mut(host, &digest) {
					invite.ended_at = invite.expires;
					ended.push(invite.clone());
				}
			}
			Ok(ended)
		})
	}

	fn open_invites(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Vec<Invite>, StoreError> {
		self.read(host, |content| content.page(host, after, limit, |invite| invite.ended_at.is_none()))
	}

	fn listing(
		&self,
		host: &str,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		self.read(host, |content| content.listing(host, part, after, limit, now))
	}

	fn count_open(
		&self,
		host: &str,
		after: &Position,
		limit: u32,
	) -> Result<(u32, Option<Position>), StoreError> {
		// What is open depends on no moment.
		let page = self.listing(host, Part::Open, after, limit, Timestamp::MIN)?;
		let count = u32::try_from(page.len()).unwrap_or(u32::MAX);
		let last = page.last().filter(|_| count == limit);
		Ok((count, last.and_then(|invite| invite.position(Part::Open, Timestamp::MIN))))
	}

	fn purge(&self, host: &str, before: Timestamp, limit: u32, bundled: &Bundled) -> Result<u32, StoreError> {
		self.change(host, |content| {
			let is_claimed = |digest: &Digest| {
				content.claims.values().any(|claim| claim.host == host && claim.digest == *digest)
			};
			let is_over = |invite: &Invite| {
				invite.ended_at.is_some_and(|ended_at| ended_at < before)
					&& !bundled.spares(&invite.digest, invite.expires, before)
			};
			let mut over = content.digests(host, |invite| is_over(invite) && !is_claimed(&invite.digest));
			over.truncate(at_most(limit));
			for digest in &over {
				content.remove(host, digest);
			}
			Ok(u32::try_from(over.len()).unwrap_or(u32::MAX))
		})
	}

	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError> {
		let has_history = self.carries().history;
		self.read(host, |content| if has_history { content.redemptions(host, digest) } else { Vec::new() })
	}
}

#[cfg(test)]
mod tests {
	use super::*;
	use crate::store::conformance::{promises, races, tests};

	promises!(tests(|_scratch| MemoryStore::default()));
	races!(tests(|_scratch| MemoryStore::default()));
}
