//! Invites in this process alone, gone when it ends: for tests, and as the shortest example of a store.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::{Mutex, MutexGuard, PoisonError};

use super::{InviteStore, StoreError};
use crate::clock::Timestamp;
use crate::invite::Invite;
use crate::redemption::{Claim, Purpose, Redeemed, Redemption, Refusal, View, decide, reserves, supersedes};
use crate::token::{Digest, Nonce};

/// A store without durability.
#[derive(Debug, Default)]
pub struct MemoryStore(Mutex<Content>);

#[derive(Debug, Default)]
struct Content {
	invites: BTreeMap<(String, Digest), Invite>,
	claims: BTreeMap<(String, Nonce), Claim>,
	redemptions: Vec<(String, Digest, Redemption)>,
}

impl MemoryStore {
	fn lock(&self) -> MutexGuard<'_, Content> {
		// Nothing below can leave the content half changed, so a panic elsewhere does not spoil it.
		self.0.lock().unwrap_or_else(PoisonError::into_inner)
	}
}

impl Content {
	fn invite(&mut self, host: &str, digest: &Digest) -> Option<&mut Invite> {
		self.invites.get_mut(&(host.to_owned(), *digest))
	}

	fn of_host<'a>(&'a self, host: &'a str) -> impl Iterator<Item = &'a Invite> {
		self.invites.values().filter(move |invite| invite.host == host)
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
		}
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
		let invite = self.invite(&claim.host, &claim.digest)?;
		invite.add_use(now);
		Some(invite.clone())
	}

	fn retire(
		&mut self,
		host: &str,
		which: &dyn Fn(&Invite) -> bool,
		why: &str,
		now: Timestamp,
	) -> Vec<Invite> {
		self.invites
			.values_mut()
			.filter(|invite| invite.host == host && invite.ended_at.is_none() && which(invite))
			.filter_map(|invite| invite.revoke(Some(why), now).then(|| invite.clone()))
			.collect()
	}
}

impl InviteStore for MemoryStore {
	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError> {
		let mut content = self.lock();
		if content.invite(&invite.host, &invite.digest).is_some() {
			return Err(StoreError::Exists);
		}
		let superseded = content.retire(
			&invite.host,
			&|older| supersedes(invite, older),
			super::SUPERSEDED,
			invite.created_at,
		);
		if let Entry::Vacant(place) = content.invites.entry((invite.host.clone(), invite.digest)) {
			place.insert(invite.clone());
		}
		Ok(superseded)
	}

	fn import(&self, invites: &[Invite]) -> Result<usize, StoreError> {
		let mut content = self.lock();
		let mut kept = 0;
		for invite in invites {
			if let Entry::Vacant(place) = content.invites.entry((invite.host.clone(), invite.digest)) {
				place.insert(invite.clone());
				kept += 1;
			}
		}
		Ok(kept)
	}

	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError> {
		Ok(self.lock().invite(host, digest).cloned())
	}

	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<(), Refusal>, StoreError> {
		let mut content = self.lock();
		if let Some(replaced) = replaced {
			content.claims.remove(&(claim.host.clone(), *replaced));
		}
		let decision = decide(&content.view(claim, now), claim, now);
		if decision.is_ok() {
			content.claims.insert((claim.host.clone(), claim.nonce), claim.clone());
		}
		Ok(decision)
	}

	fn redeem(
		&self,
		host: &str,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError> {
		let mut content = self.lock();
		if let Some(claim) = content.claims.remove(&(host.to_owned(), *nonce)) {
			return Ok(content.count(&claim, source, now).map_or(Redeemed::Lost, Redeemed::Now));
		}
		let is_redeemed = content
			.redemptions
			.iter()
			.any(|(of, invite, done)| of == host && invite == digest && done.nonce == *nonce);
		Ok(if is_redeemed { Redeemed::Before } else { Redeemed::Lost })
	}

	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Invite, Refusal>, StoreError> {
		let mut content = self.lock();
		Ok(decide(&content.view(claim, now), claim, now)
			.and_then(|()| content.count(claim, source, now).ok_or(Refusal::Invalid)))
	}

	fn release(&self, host: &str, nonce: &Nonce, only_stale: Option<Timestamp>) -> Result<bool, StoreError> {
		let mut content = self.lock();
		let key = (host.to_owned(), *nonce);
		let may =
			content.claims.get(&key).is_some_and(|claim| only_stale.is_none_or(|now| claim.is_stale(now)));
		if may {
			content.claims.remove(&key);
		}
		Ok(may)
	}

	fn renew(&self, host: &str, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, StoreError> {
		let mut content = self.lock();
		let claim = content.claims.get_mut(&(host.to_owned(), *nonce));
		Ok(claim.map(|claim| claim.lease_end = lease_end).is_some())
	}

	fn view_name(&self, host: &str, username: &str, now: Timestamp) -> Result<View, StoreError> {
		let content = self.lock();
		Ok(View {
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
		now: Timestamp,
	) -> Result<Option<Invite>, StoreError> {
		let mut content = self.lock();
		Ok(content.invite(host, digest).and_then(|invite| invite.revoke(why, now).then(|| invite.clone())))
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
		Ok(self.lock().retire(host, &of_user, why, now))
	}

	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError> {
		let mut content = self.lock();
		let open = content.invite(host, digest).filter(|invite| invite.ended_at.is_none());
		Ok(open.is_some_and(|invite| std::mem::replace(&mut invite.paused, paused) != paused))
	}

	fn end_expired(&self, host: &str, limit: u32, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		Ok(self
			.lock()
			.invites
			.values_mut()
			.filter(|invite| invite.host == host && invite.ended_at.is_none() && invite.is_expired(now))
			.take(limit.try_into().unwrap_or(usize::MAX))
			.map(|invite| {
				invite.ended_at = Some(now);
				invite.clone()
			})
			.collect())
	}

	fn open_invites(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Vec<Invite>, StoreError> {
		Ok(self
			.lock()
			.of_host(host)
			.filter(|invite| invite.ended_at.is_none() && after.is_none_or(|after| invite.digest > *after))
			.take(limit.try_into().unwrap_or(usize::MAX))
			.cloned()
			.collect())
	}

	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError> {
		Ok(self
			.lock()
			.redemptions
			.iter()
			.filter(|(of, invite, _)| of == host && invite == digest)
			.map(|(_, _, redemption)| redemption.clone())
			.collect())
	}
}

#[cfg(test)]
mod tests {
	use super::*;

	crate::store::conformance::suite!(|_scratch| MemoryStore::default());
}
