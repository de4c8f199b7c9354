//! Finding invites, and what is known of them.

use super::{AtRest, Invites, apply_endings, invite, last_of_full_page, peek, peek_stored};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::error::InviteError;
use crate::invite::Invite;
use crate::lifecycle::State;
use crate::lineage::{self, Member, Place};
use crate::listing::{Filter, Part, Position};
use crate::redemption::{Claim, Purpose, Redemption};
use crate::store::{Members, Pick, Record, StoreError};
use crate::token::{Digest, ID_DIGITS, IdPrefix};

impl Invites {
	/// The invite behind what somebody presents as a token, if it is good for the purpose now.
	///
	/// # Errors
	/// [`InviteError::TokenInvalid`], [`InviteError::TokenExpired`].
	pub fn get(&self, presented: &[u8], purpose: Purpose, now: Timestamp) -> Result<Invite, InviteError> {
		let invite = self.find(&Digest::of(presented))?;
		check(&invite, purpose, now)?;
		Ok(invite)
	}

	/// The invite with this public id, if it is good for the purpose now: where the store keeps no token, nothing else names
	/// it. Not for redeeming it: an id is no secret.
	///
	/// # Errors
	/// As of [`Invites::get`]; [`InviteError::TokenInvalid`] too where the store keeps tokens.
	pub fn get_by_id(&self, id: &[u8], purpose: Purpose, now: Timestamp) -> Result<Invite, InviteError> {
		let invite = self.find(&self.identify(id)?)?;
		check(&invite, purpose, now)?;
		Ok(invite)
	}

	/// What callers name that had to do with an id where others have a token.
	///
	/// # Errors
	/// [`InviteError::TokenInvalid`].
	pub fn identify(&self, id: &[u8]) -> Result<Digest, InviteError> {
		match self.at_rest {
			AtRest::Digest if id.len() == ID_DIGITS => self.resolve(id),
			_ => Err(InviteError::TokenInvalid),
		}
	}

	/// The invite in whatever state.
	///
	/// # Errors
	/// [`InviteError::TokenInvalid`] if there is none.
	pub fn find(&self, digest: &Digest) -> Result<Invite, InviteError> {
		self.known(digest)?.ok_or(InviteError::TokenInvalid)
	}

	pub(crate) fn known(&self, digest: &Digest) -> Result<Option<Invite>, StoreError> {
		self.look("looking an invite up", |rows| invite(rows, digest))
	}

	/// The invite that an operator names, by its token or by the beginning of its public id. Not for redeeming it: an id is
	/// no secret.
	///
	/// # Errors
	/// [`InviteError::TokenInvalid`], [`InviteError::IdAmbiguous`].
	pub fn resolve(&self, named: &[u8]) -> Result<Digest, InviteError> {
		let digest = Digest::of(named);
		if self.known(&digest)?.is_some() {
			return Ok(digest);
		}
		let prefix = std::str::from_utf8(named).ok().and_then(IdPrefix::parse);
		let prefix = prefix.ok_or(InviteError::TokenInvalid)?;
		// Two are enough to see that it is not unique.
		let mut found = self.page("looking an invite up", Pick::All(prefix.before.as_ref()), 2)?;
		found.retain(|invite| invite.digest <= prefix.last);
		match found.as_slice() {
			[] => Err(InviteError::TokenInvalid),
			[invite] => Ok(invite.digest),
			_ => Err(InviteError::IdAmbiguous),
		}
	}

	/// Every use of an invite, in the order in which they were made.
	pub fn redemptions(&self, digest: &Digest) -> Result<Vec<Redemption>, InviteError> {
		if !self.carries().history {
			return Ok(Vec::new());
		}
		let found = self.look("listing the uses of an invite", |rows| rows.redemptions(&[*digest]))?;
		Ok(found.into_iter().map(|(_, redemption)| redemption).collect())
	}

	/// A page of all invites, whatever became of them, with their uses, in the order of their digests.
	pub fn records(&self, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, InviteError> {
		let has_history = self.carries().history;
		Ok(self.read("reading invites", |rows| {
			let invites = peek(rows, Pick::All(after), limit)?;
			let used: Vec<Digest> = invites
				.iter()
				.filter(|invite| has_history && invite.uses > 0)
				.map(|invite| invite.digest)
				.collect();
			let mut redemptions = rows.redemptions(&used)?.into_iter().peekable();
			let record = |invite: Invite| {
				let is_of_invite = |(digest, _): &(Digest, Redemption)| *digest == invite.digest;
				let of_invite = std::iter::from_fn(|| redemptions.next_if(is_of_invite));
				Record { redemptions: of_invite.map(|(_, redemption)| redemption).collect(), invite }
			};
			Ok(invites.into_iter().map(record).collect())
		})?)
	}

	/// Invites of a part that follow `after`, and where to go on, unless those were the last.
	pub(crate) fn listing(
		&self,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<(Vec<Invite>, Option<Position>), StoreError> {
		self.look("listing invites", |rows| {
			let mut page = peek_stored(rows, Pick::Part(part, after, now), limit)?;
			// Where they stand does not depend on what is going to be ended.
			let next = last_of_full_page(&page, limit).and_then(|invite| invite.position(part, now));
			apply_endings(rows, &mut page)?;
			Ok((page, next))
		})
	}

	/// Invites that are picked, none of them locked.
	pub(crate) fn page(
		&self,
		doing: &'static str,
		pick: Pick<'_>,
		limit: u32,
	) -> Result<Vec<Invite>, StoreError> {
		self.look(doing, |rows| peek(rows, pick, limit))
	}

	/// What `filter` picks among the next `limit` places of a part, and where to go on, unless those were the last.
	pub fn list(
		&self,
		filter: &Filter,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<(Vec<Invite>, Option<Position>), InviteError> {
		let (mut page, next) = self.listing(part, after, limit, now)?;
		page.retain(|invite| filter.picks(invite, part, now));
		Ok((page, next))
	}

	/// How many invites have not ended after a position, counting up to `limit`; and where to go on counting, unless those
	/// were the last.
	pub fn count_open(&self, after: &Position, limit: u32) -> Result<(u32, Option<Position>), InviteError> {
		let (count, last) = self.look("counting invites", |rows| rows.count_open(after, limit))?;
		Ok((count, last.filter(|_| count == limit)))
	}

	/// A page of the invites that are good now, and where the next page begins, if there is one.
	pub fn pending(
		&self,
		after: Option<&Digest>,
		limit: u32,
		now: Timestamp,
	) -> Result<(Vec<Invite>, Option<Digest>), InviteError> {
		let mut page = self.page("listing invites", Pick::Open(after), limit)?;
		let next = last_of_full_page(&page, limit).map(|invite| invite.digest);
		page.retain(|invite| invite.state(now) == State::Pending);
		Ok((page, next))
	}

	/// The invites of an inviter that are still known, whatever became of them, the oldest first.
	pub fn made_by(&self, inviter: &str) -> Result<Vec<Invite>, InviteError> {
		Ok(self.page("listing the invites of an inviter", Pick::AllOfInviter(inviter), u32::MAX)?)
	}

	/// Everybody in somebody's branch; the root's place names who brought it, if that is known.
	pub fn branch(&self, root: &str) -> Result<Vec<Place>, InviteError> {
		let mut branch = lineage::branch(root, |inviter| self.members(Members::BroughtBy(inviter)))?;
		if let Some(first) = branch.first_mut() {
			first.brought = self.members(Members::Of(root))?.pop();
		}
		Ok(branch)
	}

	/// Who brought whom; nobody where the store carries no history.
	pub(crate) fn members(&self, which: Members<'_>) -> Result<Vec<Member>, StoreError> {
		if !self.carries().history {
			return Ok(Vec::new());
		}
		self.look("looking up who brought whom", |rows| rows.members(which))
	}

	/// Looks the storage over for an operator.
	#[must_use]
	pub fn check(&self, now: Timestamp) -> Vec<Finding> {
		let mut findings = self.store.health(&self.host, now);
		// Where the storage fails, it has said so.
		findings
			.extend(self.claims().unwrap_or_default().iter().filter_map(|claim| self.old_claim(claim, now)));
		if self.at_rest == AtRest::Digest {
			findings.push(match self.has_tokens() {
				Ok(true) => Finding::warning(
					"tokens from before invite_token_at_rest = \"digest\" lie in the store: a server that is started forgets them",
				),
				Ok(false) => Finding::ok("no token lies in the store"),
				Err(error) => Finding::critical(error.to_string()),
			});
		}
		findings
	}

	/// What there is to say of a claim that has stood for so long that nobody can have been registering all the time.
	fn old_claim(&self, claim: &Claim, now: Timestamp) -> Option<Finding> {
		const LEASES: u32 = 10;
		let age = now.saturating_sub(claim.made_at?);
		if age <= i64::try_from((self.lease() * LEASES).as_secs()).unwrap_or(i64::MAX) {
			return None;
		}
		let id = claim.digest.id();
		let invitee = claim.invitee.as_deref().unwrap_or("somebody without a name");
		Some(Finding::warning(format!(
			"{invitee} has been using the invite {id} for {} minutes, and nobody else can: if that is over, \
			 prosodyctl mod_invites release {} {id}",
			age / 60,
			self.host
		)))
	}

	/// Whether the store has the token of an open invite.
	fn has_tokens(&self) -> Result<bool, InviteError> {
		const PAGE: u32 = 500;
		let mut after = None;
		loop {
			let page = self.page("looking for tokens", Pick::Open(after.as_ref()), PAGE)?;
			if page.iter().any(|invite| invite.token.is_some()) {
				return Ok(true);
			}
			after = last_of_full_page(&page, PAGE).map(|invite| invite.digest);
			if after.is_none() {
				return Ok(false);
			}
		}
	}
}

/// Whether an invite is one for the purpose, and good now.
pub(super) fn check(invite: &Invite, purpose: Purpose, now: Timestamp) -> Result<(), InviteError> {
	if !invite.serves(purpose) {
		return Err(InviteError::TokenInvalid);
	}
	match invite.state(now) {
		State::Pending => Ok(()),
		State::Expired => Err(InviteError::TokenExpired),
		State::Used | State::Revoked | State::Paused => Err(InviteError::TokenInvalid),
	}
}
