//! The SQL, and what goes into it and comes out of it.

use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::connection::{Params, Session, Trouble};
use crate::clock::Timestamp;
use crate::invite::{Invite, Type};
use crate::lineage::{Birth, Member, birth};
use crate::policy::{Allowance, LimitReached, Usage, decide_creation};
use crate::redemption::{Admission, Claim, Purpose, Redemption, Refusal, View, decide, reserves, supersedes};
use crate::store::{SUPERSEDED, StoreError};
use crate::token::{Digest, Nonce, Token};
use crate::value::{Fields, Table};

pub(super) const CREATE: &str = "INSERT INTO invite (host, digest, token, type, kind, username, allow_registration, \
	created_at, expires, max_uses, uses, paused, revoked_at, revoked_why, revoked_by, ended_at, fields, inviter) \
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) ON CONFLICT DO NOTHING";

pub(super) const FIND: &str = "SELECT * FROM invite WHERE host = $1 AND digest = $2";

pub(super) const FIND_LOCKED: &str = "SELECT * FROM invite WHERE host = $1 AND digest = $2 FOR UPDATE";

/// Writes back what can change of an invite.
pub(super) const UPDATE: &str = "UPDATE invite SET token = $3, expires = $4, uses = $5, paused = $6, revoked_at = $7, \
	revoked_why = $8, revoked_by = $9, ended_at = $10, fields = $11 WHERE host = $1 AND digest = $2";

pub(super) const OPEN_INVITES: &str =
	"SELECT * FROM invite WHERE host = $1 AND digest > $2 AND ended_at IS NULL ORDER BY digest LIMIT $3";

pub(super) const ALL_INVITES: &str =
	"SELECT * FROM invite WHERE host = $1 AND digest > $2 ORDER BY digest LIMIT $3";

pub(super) const ALL_INVITES_LOCKED: &str =
	"SELECT * FROM invite WHERE host = $1 AND digest > $2 ORDER BY digest LIMIT $3 FOR UPDATE";

pub(super) const OPEN_OF_INVITER: &str = "SELECT count(*) FROM invite WHERE host = $1 AND inviter = $2 \
	AND ended_at IS NULL AND (expires IS NULL OR expires >= $3)";

pub(super) const NEWEST_OF_INVITER: &str =
	"SELECT created_at FROM invite WHERE host = $1 AND inviter = $2 ORDER BY created_at DESC LIMIT $3";

pub(super) const INVITES_OF_INVITER: &str =
	"SELECT * FROM invite WHERE host = $1 AND inviter = $2 ORDER BY created_at, digest";

pub(super) const OPEN_INVITES_OF_INVITERS_LOCKED: &str = "SELECT * FROM invite WHERE host = $1 AND inviter = ANY($2) \
	AND ended_at IS NULL ORDER BY digest FOR UPDATE";

pub(super) const BROUGHT_BY: &str =
	"SELECT * FROM lineage WHERE host = $1 AND inviter = $2 ORDER BY username";

pub(super) const LINEAGE: &str = "SELECT * FROM lineage WHERE host = $1 AND username = $2";

pub(super) const BROUGHT: &str = "INSERT INTO lineage (host, username, inviter, digest, joined_at) VALUES ($1, $2, $3, $4, $5) \
	ON CONFLICT (host, username) DO UPDATE SET inviter = $3, digest = $4, joined_at = $5";

pub(super) const ALONE: &str = "DELETE FROM lineage WHERE host = $1 AND username = $2";

pub(super) const OPEN_PART: &str = "SELECT * FROM invite WHERE host = $1 AND ended_at IS NULL \
	AND (created_at, digest) < ($2, $3) ORDER BY created_at DESC, digest DESC LIMIT $4";

/// What has ended and what is about to be noted as expired, each from its index.
pub(super) const HISTORY_PART: &str = "(SELECT *, ended_at AS over_at FROM invite WHERE host = $1 AND ended_at IS NOT NULL \
	AND (ended_at, digest) < ($2, $3) ORDER BY ended_at DESC, digest DESC LIMIT $4) \
	UNION ALL (SELECT *, expires AS over_at FROM invite WHERE host = $1 AND ended_at IS NULL AND expires < $5 \
	AND (expires, digest) < ($2, $3) ORDER BY expires DESC, digest DESC LIMIT $4) \
	ORDER BY over_at DESC, digest DESC LIMIT $4";

pub(super) const COUNT_OPEN: &str = "SELECT created_at, digest FROM invite WHERE host = $1 AND ended_at IS NULL \
	AND (created_at, digest) < ($2, $3) ORDER BY created_at DESC, digest DESC LIMIT $4";

/// The invites that may be purged, apart from those that are spared.
pub(super) const OVER: &str = "SELECT digest, expires FROM invite WHERE host = $1 AND ended_at < $2 \
	AND digest NOT IN (SELECT digest FROM claim WHERE host = $1) ORDER BY ended_at LIMIT $3";

/// What somebody else works on is for the next time.
pub(super) const OVER_LOCKED: &str = "SELECT digest FROM invite WHERE host = $1 AND digest = ANY($3) AND ended_at < $2 \
	FOR UPDATE SKIP LOCKED";

/// By now they are locked, so that no claim is made any more; one may have been made before.
pub(super) const PURGE: &str = "DELETE FROM invite WHERE host = $1 AND digest = ANY($2) \
	AND digest NOT IN (SELECT digest FROM claim WHERE host = $1) RETURNING digest";

pub(super) const PURGE_REDEMPTIONS: &str = "DELETE FROM redemption WHERE host = $1 AND digest = ANY($2)";

pub(super) const OPEN_INVITES_OF_USER: &str =
	"SELECT * FROM invite WHERE host = $1 AND username = $2 AND ended_at IS NULL";

pub(super) const OPEN_INVITES_OF_USER_LOCKED: &str = "SELECT * FROM invite WHERE host = $1 AND username = $2 \
	AND ended_at IS NULL ORDER BY digest FOR UPDATE";

pub(super) const IS_DUE: &str =
	"SELECT FROM invite WHERE host = $1 AND expires < $2 AND ended_at IS NULL LIMIT 1";

/// What somebody else works on is for the next time.
pub(super) const DUE_LOCKED: &str = "SELECT * FROM invite WHERE host = $1 AND expires < $2 AND ended_at IS NULL \
	ORDER BY expires LIMIT $3 FOR UPDATE SKIP LOCKED";

pub(super) const LOCK_NAME: &str = "SELECT pg_advisory_xact_lock($1)";

pub(super) const CLAIM: &str = "INSERT INTO claim (host, nonce, digest, purpose, invitee, boot, lease_end) \
	VALUES ($1, $2, $3, $4, $5, $6, $7)";

/// The table holds only what is under way now, so it is read from end to end.
pub(super) const CLAIMS: &str = "SELECT * FROM claim WHERE host = $1";

pub(super) const IS_CLAIMED: &str = "SELECT FROM claim WHERE host = $1 AND nonce = $2";

pub(super) const RELEASE: &str =
	"DELETE FROM claim WHERE host = $1 AND nonce = $2 AND ($3::BIGINT IS NULL OR lease_end < $3)";

pub(super) const RELEASE_ALL: &str = "DELETE FROM claim WHERE host = $1 AND nonce = ANY($2)";

pub(super) const REDEEMED_CLAIM: &str = "DELETE FROM claim WHERE host = $1 AND nonce = $2 RETURNING *";

pub(super) const RENEW: &str = "UPDATE claim SET lease_end = $3 WHERE host = $1 AND nonce = $2";

pub(super) const REDEMPTION: &str = "INSERT INTO redemption (host, digest, nonce, purpose, invitee, source, used_at) \
	VALUES ($1, $2, $3, $4, $5, $6, $7)";

pub(super) const IS_REDEEMED: &str = "SELECT FROM redemption WHERE host = $1 AND digest = $2 AND nonce = $3";

/// Whether somebody became a contact by an invite, or is a local user who was registered with it.
pub(super) const IS_KNOWN: &str = "SELECT FROM redemption WHERE host = $1 AND digest = $2 AND purpose = 'contact' AND invitee = $3 \
	UNION ALL SELECT FROM lineage WHERE host = $1 AND username = $4 AND digest = $2";

pub(super) const REDEMPTIONS: &str =
	"SELECT * FROM redemption WHERE host = $1 AND digest = ANY($2) ORDER BY used_at, nonce";

pub(super) fn damaged(
	digest: &Digest,
	source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
) -> StoreError {
	StoreError::Damaged { id: digest.id().to_string(), source: source.into() }
}

/// The name of the account that is to be made, if one is.
pub(super) fn username(claim: &Claim) -> Option<&str> {
	if claim.purpose == Purpose::Account { claim.invitee.as_deref() } else { None }
}

/// A column of bytes whose number the schema checks.
pub(super) fn bytes<const LENGTH: usize>(row: &Row, column: &str) -> Result<[u8; LENGTH], Trouble> {
	let found: &[u8] = row.try_get(column)?;
	found.try_into().map_err(|_| {
		let source = format!("its {column} has {} bytes, not {LENGTH}", found.len());
		damaged(&Digest::of(found), source).into()
	})
}

pub(super) fn digest(row: &Row) -> Result<Digest, Trouble> {
	bytes(row, "digest").map(Digest::from_bytes)
}

pub(super) fn digest_and_end(row: &Row) -> Result<(Digest, Option<Timestamp>), Trouble> {
	Ok((digest(row)?, row.try_get("expires")?))
}

pub(super) fn nonce(row: &Row, column: &str) -> Result<Nonce, Trouble> {
	bytes(row, column).map(Nonce::from_bytes)
}

pub(super) fn purpose(row: &Row, digest: &Digest) -> Result<Purpose, Trouble> {
	let word: &str = row.try_get("purpose")?;
	Purpose::from_stored(word).ok_or_else(|| damaged(digest, "the purpose of its use is unknown").into())
}

pub(super) fn read_invite(row: &Row) -> Result<Invite, Trouble> {
	let digest = digest(row)?;
	let fields = match row.try_get::<_, Option<&str>>("fields")? {
		None => Fields::default(),
		Some(text) => Table::decode(text).map_err(|error| damaged(&digest, error))?.into(),
	};
	let number = |found: i64| u32::try_from(found).map_err(|error| damaged(&digest, error));
	Ok(Invite {
		host: row.try_get("host")?,
		digest,
		token: row.try_get::<_, Option<String>>("token")?.map(Token::from_stored),
		invite_type: Type::from_stored(row.try_get("type")?)
			.ok_or_else(|| damaged(&digest, "its type is unknown"))?,
		username: row.try_get("username")?,
		allow_registration: row.try_get("allow_registration")?,
		created_at: row.try_get("created_at")?,
		expires: row.try_get("expires")?,
		max_uses: row.try_get::<_, Option<i64>>("max_uses")?.map(number).transpose()?,
		uses: number(row.try_get("uses")?)?,
		paused: row.try_get("paused")?,
		revoked_at: row.try_get("revoked_at")?,
		revoked_why: row.try_get("revoked_why")?,
		revoked_by: row.try_get("revoked_by")?,
		ended_at: row.try_get("ended_at")?,
		fields,
	})
}

pub(super) fn read_claim(row: &Row) -> Result<Claim, Trouble> {
	let digest = digest(row)?;
	Ok(Claim {
		host: row.try_get("host")?,
		nonce: nonce(row, "nonce")?,
		digest,
		purpose: purpose(row, &digest)?,
		invitee: row.try_get("invitee")?,
		boot: nonce(row, "boot")?,
		lease_end: row.try_get("lease_end")?,
	})
}

pub(super) fn read_member(row: &Row) -> Result<Member, Trouble> {
	Ok(Member {
		username: row.try_get("username")?,
		inviter: row.try_get("inviter")?,
		digest: digest(row)?,
		joined_at: row.try_get("joined_at")?,
	})
}

/// With the digest of its invite.
pub(super) fn read_redemption(row: &Row) -> Result<(Digest, Redemption), Trouble> {
	let digest = digest(row)?;
	let redemption = Redemption {
		nonce: nonce(row, "nonce")?,
		purpose: purpose(row, &digest)?,
		invitee: row.try_get("invitee")?,
		source: row.try_get("source")?,
		used_at: row.try_get("used_at")?,
	};
	Ok((digest, redemption))
}

/// What the domain asks of one session.
impl Session {
	pub(super) async fn all<T>(
		&self,
		text: &'static str,
		params: Params<'_>,
		read: fn(&Row) -> Result<T, Trouble>,
	) -> Result<Vec<T>, Trouble> {
		self.query(text, params).await?.iter().map(read).collect()
	}

	pub(super) async fn is_there(&self, text: &'static str, params: Params<'_>) -> Result<bool, Trouble> {
		Ok(!self.query(text, params).await?.is_empty())
	}

	pub(super) async fn lock_name(&self, host: &str, username: &str) -> Result<(), Trouble> {
		self.lock_key(&[host, username]).await
	}

	pub(super) async fn lock_inviter(&self, host: &str, username: &str) -> Result<(), Trouble> {
		self.lock_key(&[host, username, "inviter"]).await
	}

	pub(super) async fn lock_key(&self, words: &[&str]) -> Result<(), Trouble> {
		// Two that happen to have one key wait for each other, and that is all.
		let hash = Sha256::digest(words.join("\0"));
		let key = hash.iter().take(8).fold(0, |key, byte| key << 8 | i64::from(*byte));
		self.query(LOCK_NAME, &[&key]).await?;
		Ok(())
	}

	/// Stores each invite unless there is one with its digest; whether it did.
	pub(super) async fn insert(&self, invites: &[&Invite]) -> Result<Vec<bool>, Trouble> {
		let rows = invites.iter().map(|invite| NewRow::of(invite)).collect::<Result<Vec<_>, _>>()?;
		let lists: Vec<_> = invites.iter().zip(&rows).map(|(invite, row)| row.all(invite)).collect();
		Ok(self.execute_all(CREATE, &lists).await?.into_iter().map(|inserted| inserted == 1).collect())
	}

	/// Stores an invite, and revokes those that it supersedes; with limits, only if these let it. The name that it is bound to
	/// is locked first.
	pub(super) async fn create(
		&self,
		invite: &Invite,
		allowance: Option<&Allowance>,
	) -> Result<Result<Vec<Invite>, LimitReached>, Trouble> {
		if let Some(allowance) = allowance {
			self.lock_inviter(&invite.host, &allowance.inviter).await?;
			let usage = self.usage(&invite.host, allowance, invite.created_at).await?;
			if let Err(reached) = decide_creation(invite, allowance, &usage, invite.created_at) {
				return Ok(Err(reached));
			}
		}
		let superseded = match &invite.username {
			Some(username) => {
				let which = |older: &Invite| supersedes(invite, older);
				self.retire(&invite.host, username, &which, SUPERSEDED, invite.created_at).await?
			}
			None => Vec::new(),
		};
		if self.insert(&[invite]).await?[0] { Ok(Ok(superseded)) } else { Err(StoreError::Exists.into()) }
	}

	pub(super) async fn usage(
		&self,
		host: &str,
		allowance: &Allowance,
		now: Timestamp,
	) -> Result<Usage, Trouble> {
		let (inviter, limit) = (&allowance.inviter, i64::from(allowance.newest()));
		let counted = self.query(OPEN_OF_INVITER, &[&host, inviter, &now]).await?;
		let open: i64 = counted.first().map_or(Ok(0), |row| row.try_get(0))?;
		let read = |row: &Row| Ok(row.try_get(0)?);
		let newest = self.all(NEWEST_OF_INVITER, &[&host, inviter, &limit], read).await?;
		Ok(Usage { open: u32::try_from(open).unwrap_or(u32::MAX), newest })
	}

	pub(super) async fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, Trouble> {
		Ok(self.all(LINEAGE, &[&host, &username], read_member).await?.pop())
	}

	pub(super) async fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, Trouble> {
		self.all(BROUGHT_BY, &[&host, &inviter], read_member).await
	}

	/// Keeps who brought an account, if it replaces what is known; whether it did.
	pub(super) async fn keep_member(&self, host: &str, member: &Member) -> Result<bool, Trouble> {
		let may = member.replaces(self.lineage(host, &member.username).await?.as_ref());
		if may {
			let params: Params<'_> = &[
				&host,
				&member.username,
				&member.inviter,
				&&member.digest.as_bytes()[..],
				&member.joined_at,
			];
			self.execute(BROUGHT, params).await?;
		}
		Ok(may)
	}

	pub(super) async fn find(
		&self,
		text: &'static str,
		host: &str,
		digest: &Digest,
	) -> Result<Option<Invite>, Trouble> {
		Ok(self.all(text, &[&host, &&digest.as_bytes()[..]], read_invite).await?.pop())
	}

	pub(super) async fn update(&self, invites: &[Invite]) -> Result<(), Trouble> {
		let rows = invites.iter().map(NewRow::of).collect::<Result<Vec<_>, _>>()?;
		let lists: Vec<_> = invites.iter().zip(&rows).map(|(invite, row)| row.changing(invite)).collect();
		self.execute_all(UPDATE, &lists).await?;
		Ok(())
	}

	/// Revokes what `which` picks of a user's open invites.
	pub(super) async fn retire(
		&self,
		host: &str,
		username: &str,
		which: &dyn Fn(&Invite) -> bool,
		why: &str,
		now: Timestamp,
	) -> Result<Vec<Invite>, Trouble> {
		let mut retired = self.all(OPEN_INVITES_OF_USER_LOCKED, &[&host, &username], read_invite).await?;
		retired.retain_mut(|invite| which(invite) && invite.revoke(Some(why), None, now));
		self.update(&retired).await?;
		Ok(retired)
	}

	/// The claims for a username and whether an invite other than `except` reserves it.
	pub(super) async fn view_name(
		&self,
		host: &str,
		username: &str,
		except: Option<&Digest>,
		claims: &[Claim],
		now: Timestamp,
	) -> Result<View, Trouble> {
		let is_on_name =
			|claim: &&Claim| claim.purpose == Purpose::Account && claim.invitee.as_deref() == Some(username);
		Ok(View {
			claims_on_name: claims.iter().filter(is_on_name).cloned().collect(),
			is_reserved: self
				.all(OPEN_INVITES_OF_USER, &[&host, &username], read_invite)
				.await?
				.iter()
				.any(|invite| Some(&invite.digest) != except && reserves(invite, username, now)),
			..View::default()
		})
	}

	/// What there is to know of a claim on an invite.
	pub(super) async fn view(
		&self,
		invite: Option<Invite>,
		claim: &Claim,
		now: Timestamp,
	) -> Result<View, Trouble> {
		let claims = self.all(CLAIMS, &[&claim.host], read_claim).await?;
		let of_name = match username(claim) {
			Some(name) => self.view_name(&claim.host, name, Some(&claim.digest), &claims, now).await?,
			None => View::default(),
		};
		let is_known = match claim.contact() {
			Some((jid, username)) => {
				let digest = &claim.digest.as_bytes()[..];
				self.is_there(IS_KNOWN, &[&claim.host, &digest, &jid, &username.as_deref()]).await?
			}
			None => false,
		};
		let claims = claims.into_iter().filter(|other| other.digest == claim.digest).collect();
		Ok(View { invite, claims, is_known, ..of_name })
	}

	/// Locks what a claim is about, releases claims of the same holder, or of nobody, and decides.
	pub(super) async fn decide(
		&self,
		claim: &Claim,
		released: &[Nonce],
		now: Timestamp,
	) -> Result<Result<Admission, Refusal>, Trouble> {
		if let Some(name) = username(claim) {
			self.lock_name(&claim.host, name).await?;
		}
		let invite = self.find(FIND_LOCKED, &claim.host, &claim.digest).await?;
		if !released.is_empty() {
			let nonces: Vec<_> = released.iter().map(|nonce| &nonce.as_bytes()[..]).collect();
			self.execute(RELEASE_ALL, &[&claim.host, &nonces]).await?;
		}
		Ok(decide(&self.view(invite, claim, now).await?, claim, now))
	}

	/// A page of invites by a statement that takes a page's parameters.
	pub(super) async fn page(
		&self,
		text: &'static str,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Vec<Invite>, Trouble> {
		// Every digest follows the empty one.
		let after = after.map_or(&[][..], |after| after.as_bytes());
		self.all(text, &[&host, &after, &i64::from(limit)], read_invite).await
	}

	/// The uses of some invites.
	pub(super) async fn redemptions(
		&self,
		host: &str,
		digests: &[&Digest],
	) -> Result<Vec<(Digest, Redemption)>, Trouble> {
		let digests: Vec<_> = digests.iter().map(|digest| &digest.as_bytes()[..]).collect();
		self.all(REDEMPTIONS, &[&host, &digests], read_redemption).await
	}

	pub(super) async fn insert_redemption(
		&self,
		host: &str,
		digest: &Digest,
		redemption: &Redemption,
	) -> Result<(), Trouble> {
		let params: Params<'_> = &[
			&host,
			&&digest.as_bytes()[..],
			&&redemption.nonce.as_bytes()[..],
			&redemption.purpose.as_str(),
			&redemption.invitee,
			&redemption.source,
			&redemption.used_at,
		];
		self.execute(REDEMPTION, params).await?;
		Ok(())
	}

	/// Counts the use that a claim has become.
	pub(super) async fn count(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Option<Invite>, Trouble> {
		let redemption = Redemption {
			nonce: claim.nonce,
			purpose: claim.purpose,
			invitee: claim.invitee.clone(),
			source: source.map(str::to_owned),
			used_at: now,
		};
		self.insert_redemption(&claim.host, &claim.digest, &redemption).await?;
		let Some(mut invite) = self.find(FIND_LOCKED, &claim.host, &claim.digest).await? else {
			return Ok(None);
		};
		match birth(&invite, claim.purpose, claim.invitee.as_deref(), now) {
			Some(Birth::Brought(member)) => drop(self.keep_member(&claim.host, &member).await?),
			Some(Birth::Alone(username)) => drop(self.execute(ALONE, &[&claim.host, &username]).await?),
			None => (),
		}
		invite.add_use(now);
		self.update(std::slice::from_ref(&invite)).await?;
		Ok(Some(invite))
	}

	/// Adds to what was changed what the attempt before has changed, if its commit took place.
	pub(super) async fn with_lost(
		&self,
		mut changed: Vec<Invite>,
		lost: Option<&Vec<Invite>>,
	) -> Result<Vec<Invite>, Trouble> {
		for invite in lost.into_iter().flatten() {
			let is_new = changed.iter().any(|other| other.digest == invite.digest);
			// Locked: the attempt before may be committing still.
			if !is_new && self.find(FIND_LOCKED, &invite.host, &invite.digest).await?.as_ref() == Some(invite)
			{
				changed.push(invite.clone());
			}
		}
		Ok(changed)
	}

	pub(super) async fn is_redeemed(
		&self,
		host: &str,
		digest: &Digest,
		nonce: &Nonce,
	) -> Result<bool, Trouble> {
		self.is_there(IS_REDEEMED, &[&host, &&digest.as_bytes()[..], &&nonce.as_bytes()[..]]).await
	}
}

/// What a row holds that the invite holds in another form.
pub(super) struct NewRow<'a> {
	digest: &'a [u8],
	token: Option<&'a str>,
	invite_type: &'static str,
	kind: &'static str,
	max_uses: Option<i64>,
	uses: i64,
	fields: Option<String>,
	inviter: Option<String>,
}

impl<'a> NewRow<'a> {
	pub(super) fn of(invite: &'a Invite) -> Result<Self, Trouble> {
		let fields = if invite.fields.is_empty() {
			None
		} else {
			let fields = invite.fields.encode();
			Some(fields.map_err(|error| damaged(&invite.digest, error))?)
		};
		Ok(Self {
			digest: invite.digest.as_bytes(),
			// PostgreSQL's text holds no NUL, nor does XML: nobody can present such a token.
			token: invite.token.as_ref().map(Token::reveal).filter(|token| !token.contains('\0')),
			invite_type: invite.invite_type.as_str(),
			kind: invite.kind().as_str(),
			max_uses: invite.max_uses.map(i64::from),
			uses: i64::from(invite.uses),
			fields,
			inviter: invite.local_inviter(),
		})
	}

	/// The parameters of [`CREATE`].
	pub(super) fn all(&'a self, invite: &'a Invite) -> Vec<&'a (dyn ToSql + Sync)> {
		vec![
			&invite.host,
			&self.digest,
			&self.token,
			&self.invite_type,
			&self.kind,
			&invite.username,
			&invite.allow_registration,
			&invite.created_at,
			&invite.expires,
			&self.max_uses,
			&self.uses,
			&invite.paused,
			&invite.revoked_at,
			&invite.revoked_why,
			&invite.revoked_by,
			&invite.ended_at,
			&self.fields,
			&self.inviter,
		]
	}

	/// The parameters of [`UPDATE`].
	pub(super) fn changing(&'a self, invite: &'a Invite) -> Vec<&'a (dyn ToSql + Sync)> {
		vec![
			&invite.host,
			&self.digest,
			&self.token,
			&invite.expires,
			&self.uses,
			&invite.paused,
			&invite.revoked_at,
			&invite.revoked_why,
			&invite.revoked_by,
			&invite.ended_at,
			&self.fields,
		]
	}
}
