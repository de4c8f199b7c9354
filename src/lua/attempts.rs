//! How the shim has invites redeemed: methods of a [`Handle`].
//!
//! | method | returns |
//! | --- | --- |
//! | `claim { token, purpose, invitee, depends_on, replaced }` | nonce of the claim, or `false` for a contact who is let in without another use; `depends_on` are states as for `confirm`, `replaced` a nonce, other fields are ignored. From now on it is under way, until it is redeemed or released |
//! | `own_claim { token, purpose, invitee }` | nonce of the claim that this process has made for such an attempt, or `nil` |
//! | `redeem(attempt, nonce, source, is_heard)` | summary; `true` if it was redeemed before, or nobody is to hear of it; `attempt` as for `claim`. Where the claim was lost, `{ id, is_taken_back }` follows the text: the public id of the invite, and whether the account is to be deleted if it is sure that the attempt has made it. Where the store fails, `review` tries again |
//! | `redeem_at_once { token, purpose, invitee, depends_on, source }` | summary, or `false` as above |
//! | `release(nonce)` | whether there was such a claim. Where the store fails, `review` tries again |
//! | `forget(nonce)` | nothing; of an attempt that has ended unseen, its account made or not: the claim is for `look_at_claims` |
//! | `review(waiting, is_heard)` | what was done about what is under way, see below; `waiting` are the nonces of attempts whose coroutines wait for something. To be called every `review_interval()` seconds until it `is_idle` |
//! | `review_interval()`, `lease()` | seconds; a server that gives no sign of life is watched for a lease. Claims are to be looked at three times in it |
//! | `look_at_claims()` | list of claims that are to be settled now, as `settle` takes them: of servers that are proved to be over, or were watched for a lease, and of this one those that are not under way; `inviter` is whose contact somebody was to become |
//! | `settle(claim, account)` | summary if the claim became a use by it, else `true`; a claim from `look_at_claims`, and what came of it |
//!
//! A review is `{ over, used, lost, ended, problems, is_idle }`: the nonces of the attempts that are over; summaries with
//! `purpose`, `invitee` and `source`, unless nobody is to hear of them; `{ invitee, id, text }` of those that have lost
//! their claim; `{ username, is_deleted, revoked, is_more }` for the end of a user's invites, as `retire_depending` and
//! `retire_resets` return it; texts to report.

use std::collections::HashMap;

use mlua::{BString, Either, Lua, Table, UserDataMethods, Value};

use super::handle::{Handle, account_state, accounts, digest};
use super::table::{summary, write_claim};
use super::{Failure, Outcome, set_some};
use crate::attempts::{Attempt, Made, REVIEW_INTERVAL};
use crate::clock;
use crate::ending::Scope;
use crate::error::InviteError;
use crate::invite::Invite;
use crate::invites::{Ended, Review};
use crate::redemption::{Claim, Purpose};
use crate::token::{Digest, Nonce};

pub(super) fn read(attempt: &Table) -> Result<Attempt, Failure> {
	let token: Value = attempt.get("token")?;
	let depends_on: Option<HashMap<String, String>> = attempt.get("depends_on")?;
	Ok(Attempt {
		digest: digest(&token)?,
		purpose: purpose(&attempt.get::<String>("purpose")?)?,
		invitee: attempt.get("invitee")?,
		depends_on: accounts(depends_on.unwrap_or_default())?,
	})
}

fn purpose(word: &str) -> Result<Purpose, Failure> {
	Purpose::from_stored(word).ok_or_else(|| Failure::Misuse(format!("{word:?} is no purpose")))
}

fn nonce(bytes: &BString) -> Result<Nonce, Failure> {
	<[u8; 16]>::try_from(bytes.as_slice())
		.map(Nonce::from_bytes)
		.map_err(|_| Failure::Misuse("this is no claim".to_owned()))
}

fn written(nonce: &Nonce) -> BString {
	BString::from(nonce.as_bytes().as_slice())
}

impl Handle {
	fn claim(&self, attempt: &Table) -> Result<Either<BString, bool>, Failure> {
		let replaced: Option<BString> = attempt.get("replaced")?;
		let replaced = replaced.as_ref().map(nonce).transpose()?;
		let claim = self.invites.claim(read(attempt)?, replaced.as_ref(), self.now())?;
		Ok(claim.as_ref().map_or(Either::Right(false), |nonce| Either::Left(written(nonce))))
	}

	fn redeem(
		&self,
		lua: &Lua,
		attempt: &Table,
		claim: &BString,
		source: Option<&str>,
		is_heard: bool,
	) -> Result<Either<Table, bool>, Failure> {
		let redeemed = self.invites.redeem(read(attempt)?, &nonce(claim)?, source, self.now())?;
		self.told(lua, redeemed.filter(|_| is_heard), true)
	}

	fn redeem_at_once(&self, lua: &Lua, attempt: &Table) -> Result<Either<Table, bool>, Failure> {
		let source: Option<String> = attempt.get("source")?;
		let redeemed = self.invites.redeem_at_once(read(attempt)?, source.as_deref(), self.now())?;
		self.told(lua, redeemed, false)
	}

	/// The summary of an invite, or what stands for none.
	fn told(&self, lua: &Lua, invite: Option<Invite>, none: bool) -> Result<Either<Table, bool>, Failure> {
		Ok(match invite {
			Some(invite) => Either::Left(summary(lua, &invite, &self.bundled.null)?),
			None => Either::Right(none),
		})
	}

	fn review(&self, lua: &Lua, waiting: &[BString], is_heard: bool) -> Result<Table, Failure> {
		let waiting = waiting.iter().map(nonce).collect::<Result<Vec<_>, _>>()?;
		let Review { over, used, lost, ended, problems, is_idle } = self.invites.review(&waiting, self.now());
		let review = lua.create_table()?;
		review.raw_set("over", over.iter().map(written).collect::<Vec<_>>())?;
		let used = used.iter().filter(|_| is_heard).map(|(invite, made)| self.used(lua, invite, made));
		review.raw_set("used", used.collect::<mlua::Result<Vec<_>>>()?)?;
		let lost = lost.iter().map(|(made, error)| {
			let table = lua.create_table()?;
			set_some(&table, "invitee", made.attempt.invitee.as_deref())?;
			table.raw_set("id", made.attempt.digest.id().to_string())?;
			table.raw_set("text", error.to_string())?;
			Ok(table)
		});
		review.raw_set("lost", lost.collect::<mlua::Result<Vec<_>>>()?)?;
		let ended =
			ended.iter().map(|(scope, username, ended)| self.ended_late(lua, *scope, username, ended));
		review.raw_set("ended", ended.collect::<mlua::Result<Vec<_>>>()?)?;
		let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
		review.raw_set("problems", problems)?;
		review.raw_set("is_idle", is_idle)?;
		Ok(review)
	}

	fn used(&self, lua: &Lua, invite: &Invite, made: &Made) -> mlua::Result<Table> {
		let table = summary(lua, invite, &self.bundled.null)?;
		table.raw_set("purpose", made.attempt.purpose.as_str())?;
		set_some(&table, "invitee", made.attempt.invitee.as_deref())?;
		set_some(&table, "source", made.source.as_deref())?;
		Ok(table)
	}

	fn ended_late(&self, lua: &Lua, scope: Scope, username: &str, ended: &Ended) -> mlua::Result<Table> {
		let table = lua.create_table()?;
		table.raw_set("username", username)?;
		table.raw_set("is_deleted", scope == Scope::Depending)?;
		let revoked = ended.invites.iter().map(|invite| summary(lua, invite, &self.bundled.null));
		table.raw_set("revoked", revoked.collect::<mlua::Result<Vec<_>>>()?)?;
		table.raw_set("is_more", !ended.under_way.is_empty())?;
		Ok(table)
	}

	fn look_at_claims(&self, lua: &Lua) -> Result<Vec<Table>, Failure> {
		let mut found = Vec::new();
		for claim in self.invites.look_at_claims(clock::monotonic())? {
			let inviter = match claim.purpose {
				Purpose::Account => None,
				Purpose::Contact => match self.invites.find(&claim.digest) {
					Ok(invite) => invite.username,
					Err(InviteError::TokenInvalid) => None,
					Err(error) => return Err(error.into()),
				},
			};
			found.push(write_claim(lua, &claim, inviter.as_deref())?);
		}
		Ok(found)
	}

	fn settle(&self, lua: &Lua, claim: &Table, account: &str) -> Result<Either<Table, bool>, Failure> {
		let settled = self.invites.settle(&self.read_claim(claim)?, account_state(account)?, self.now())?;
		self.told(lua, settled, true)
	}

	/// What [`write_claim`] has written.
	fn read_claim(&self, table: &Table) -> Result<Claim, Failure> {
		let digest = <[u8; 32]>::try_from(table.get::<BString>("digest")?.as_slice())
			.map_err(|_| Failure::Misuse("this is no digest".to_owned()))?;
		Ok(Claim {
			host: self.invites.host().to_owned(),
			nonce: nonce(&table.get("nonce")?)?,
			digest: Digest::from_bytes(digest),
			purpose: purpose(&table.get::<String>("purpose")?)?,
			invitee: table.get("invitee")?,
			boot: nonce(&table.get("boot")?)?,
			made_at: None,
			renewals: table.get("renewals")?,
		})
	}
}

pub(super) fn add_methods<M: UserDataMethods<Handle>>(methods: &mut M) {
	methods.add_method("claim", |_, this, attempt: Table| Ok(Outcome(this.claim(&attempt))));
	methods.add_method("own_claim", |_, this, attempt: Table| {
		let claim = read(&attempt).and_then(|attempt| Ok(this.invites.own_claim(attempt, this.now())?));
		Ok(Outcome(claim.map(|claim| claim.as_ref().map(written))))
	});
	methods.add_method(
		"redeem",
		|lua, this, (attempt, claim, source, is_heard): (Table, BString, Option<String>, bool)| {
			Ok(Outcome(this.redeem(lua, &attempt, &claim, source.as_deref(), is_heard)))
		},
	);
	methods.add_method("redeem_at_once", |lua, this, attempt: Table| {
		Ok(Outcome(this.redeem_at_once(lua, &attempt)))
	});
	methods.add_method("release", |_, this, claim: BString| {
		Ok(Outcome(nonce(&claim).and_then(|nonce| Ok(this.invites.release(&nonce)?))))
	});
	methods.add_method("forget", |_, this, claim: BString| {
		Ok(Outcome(nonce(&claim).map(|nonce| this.invites.forget(&nonce))))
	});
	methods.add_method("review", |lua, this, (waiting, is_heard): (Vec<BString>, bool)| {
		Ok(Outcome(this.review(lua, &waiting, is_heard)))
	});
	methods.add_method("review_interval", |_, _, ()| Ok(REVIEW_INTERVAL.as_secs_f64()));
	methods.add_method("lease", |_, this, ()| Ok(this.invites.lease().as_secs_f64()));
	methods.add_method("look_at_claims", |lua, this, ()| Ok(Outcome(this.look_at_claims(lua))));
	methods.add_method("settle", |lua, this, (claim, account): (Table, String)| {
		Ok(Outcome(this.settle(lua, &claim, &account)))
	});
}
