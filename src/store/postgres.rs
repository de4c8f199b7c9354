//! Invites in a PostgreSQL database, for several servers that share them.
//!
//! All hosts of all servers may use one database; a process has one connection to it, shared by every store that
//! [`PostgresStore::shared`] hands out. A commit is on the database's disk before a call returns. The connection is
//! opened at the first call, never earlier: Prosody 0.12 forks with `-D` after it has loaded its modules. How long a
//! call may take, and what is tried again, is in [`connection`].
//!
//! # Locks
//! A transaction reads what a rule needs, asks the rule, and acts on the answer, at the isolation level READ COMMITTED,
//! where each statement sees what was committed before it. So that nothing is committed in between, it first locks:
//!
//! 1. the username, where one is to be claimed or bound (an advisory lock, for a name has no row),
//! 2. the inviter, where limits are to be kept (an advisory lock too),
//! 3. the invite (its row, `FOR UPDATE`), in the order of digests where there are several,
//!
//! always in this order, so that no two wait for each other. Claims are made under the locks of their invite and their
//! name, so whoever holds these sees all of them. Redeeming or releasing a claim needs no lock on the name: it makes
//! room, and whoever has just looked is told at worst that the name is busy.
//!
//! SERIALIZABLE would need no locks and be shorter. But PostgreSQL then watches whole pages, and the table of claims is
//! one page: whatever is redeemed at the same time is in each other's way. Measured: eight connections that claim and
//! redeem 300 invites each, none of them shared, take 2.1 s with the locks and do nothing twice; with SERIALIZABLE
//! they take 12 s and do 11,600 transactions again.
//!
//! # A commit that nobody answered
//! Each attempt to redeem bears a nonce, and each invite a digest that is drawn at random, so what a commit would have
//! left behind can be recognised. Where the deadline leaves no time to ask, the call fails, and the claim that it may
//! have made is held by nobody: [`PostgresStore`] keeps its nonce, and the next claim releases it.

mod address;
mod check;
mod connection;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256};
use tokio_postgres::Row;
use tokio_postgres::types::ToSql;

use super::{Carries, InviteStore, Record, StoreError};
use crate::check::Finding;
use crate::clock::Timestamp;
use crate::invite::{Invite, Type};
use crate::lineage::{Birth, Branch, Member, birth};
use crate::listing::{Part, Position};
use crate::policy::{Allowance, LimitReached, Usage, decide_creation};
use crate::redemption::{Claim, Purpose, Redeemed, Redemption, Refusal, View, decide, reserves, supersedes};
use crate::token::{Digest, Nonce, Token};
use crate::value::{Table, Value};
use address::Address;
pub use address::AddressError;
use connection::{Connection, Params, Session, Trouble};

const CREATE: &str = "INSERT INTO invite (host, digest, token, type, kind, username, allow_registration, \
	created_at, expires, max_uses, uses, paused, revoked_at, revoked_why, revoked_by, ended_at, fields, inviter) \
	VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) ON CONFLICT DO NOTHING";

const FIND: &str = "SELECT * FROM invite WHERE host = $1 AND digest = $2";

const FIND_LOCKED: &str = "SELECT * FROM invite WHERE host = $1 AND digest = $2 FOR UPDATE";

/// Writes back what can change of an invite.
const UPDATE: &str = "UPDATE invite SET token = $3, expires = $4, uses = $5, paused = $6, revoked_at = $7, \
	revoked_why = $8, revoked_by = $9, ended_at = $10, fields = $11 WHERE host = $1 AND digest = $2";

const OPEN_INVITES: &str =
	"SELECT * FROM invite WHERE host = $1 AND digest > $2 AND ended_at IS NULL ORDER BY digest LIMIT $3";

const ALL_INVITES: &str = "SELECT * FROM invite WHERE host = $1 AND digest > $2 ORDER BY digest LIMIT $3";

const ALL_INVITES_LOCKED: &str =
	"SELECT * FROM invite WHERE host = $1 AND digest > $2 ORDER BY digest LIMIT $3 FOR UPDATE";

const OPEN_OF_INVITER: &str = "SELECT count(*) FROM invite WHERE host = $1 AND inviter = $2 \
	AND ended_at IS NULL AND (expires IS NULL OR expires >= $3)";

const NEWEST_OF_INVITER: &str =
	"SELECT created_at FROM invite WHERE host = $1 AND inviter = $2 ORDER BY created_at DESC LIMIT $3";

const INVITES_OF_INVITER: &str =
	"SELECT * FROM invite WHERE host = $1 AND inviter = $2 ORDER BY created_at, digest";

const OPEN_INVITES_OF_INVITERS_LOCKED: &str = "SELECT * FROM invite WHERE host = $1 AND inviter = ANY($2) \
	AND ended_at IS NULL ORDER BY digest FOR UPDATE";

const BROUGHT_BY: &str = "SELECT * FROM lineage WHERE host = $1 AND inviter = $2 ORDER BY username";

const LINEAGE: &str = "SELECT * FROM lineage WHERE host = $1 AND username = $2";

const BROUGHT: &str = "INSERT INTO lineage (host, username, inviter, digest, joined_at) VALUES ($1, $2, $3, $4, $5) \
	ON CONFLICT (host, username) DO UPDATE SET inviter = $3, digest = $4, joined_at = $5";

const ALONE: &str = "DELETE FROM lineage WHERE host = $1 AND username = $2";

const OPEN_PART: &str = "SELECT * FROM invite WHERE host = $1 AND ended_at IS NULL \
	AND (created_at, digest) < ($2, $3) ORDER BY created_at DESC, digest DESC LIMIT $4";

/// What has ended and what is about to be noted as expired, each from its index.
const HISTORY_PART: &str = "(SELECT *, ended_at AS over_at FROM invite WHERE host = $1 AND ended_at IS NOT NULL \
	AND (ended_at, digest) < ($2, $3) ORDER BY ended_at DESC, digest DESC LIMIT $4) \
	UNION ALL (SELECT *, expires AS over_at FROM invite WHERE host = $1 AND ended_at IS NULL AND expires < $5 \
	AND (expires, digest) < ($2, $3) ORDER BY expires DESC, digest DESC LIMIT $4) \
	ORDER BY over_at DESC, digest DESC LIMIT $4";

const COUNT_OPEN: &str = "SELECT created_at, digest FROM invite WHERE host = $1 AND ended_at IS NULL \
	AND (created_at, digest) < ($2, $3) ORDER BY created_at DESC, digest DESC LIMIT $4";

const IS_OVER: &str = "SELECT FROM invite WHERE host = $1 AND ended_at < $2 AND expires < $2 LIMIT 1";

/// What somebody else works on is for the next time.
const OVER_LOCKED: &str = "SELECT digest FROM invite WHERE host = $1 AND ended_at < $2 AND expires < $2 \
	AND digest NOT IN (SELECT digest FROM claim WHERE host = $1) \
	ORDER BY ended_at LIMIT $3 FOR UPDATE SKIP LOCKED";

/// By now they are locked, so that no claim is made any more; one may have been made before.
const PURGE: &str = "DELETE FROM invite WHERE host = $1 AND digest = ANY($2) \
	AND digest NOT IN (SELECT digest FROM claim WHERE host = $1) RETURNING digest";

const PURGE_REDEMPTIONS: &str = "DELETE FROM redemption WHERE host = $1 AND digest = ANY($2)";

const OPEN_INVITES_OF_USER: &str =
	"SELECT * FROM invite WHERE host = $1 AND username = $2 AND ended_at IS NULL";

const OPEN_INVITES_OF_USER_LOCKED: &str = "SELECT * FROM invite WHERE host = $1 AND username = $2 \
	AND ended_at IS NULL ORDER BY digest FOR UPDATE";

const IS_DUE: &str = "SELECT FROM invite WHERE host = $1 AND expires < $2 AND ended_at IS NULL LIMIT 1";

/// What somebody else works on is for the next time.
const DUE_LOCKED: &str = "SELECT * FROM invite WHERE host = $1 AND expires < $2 AND ended_at IS NULL \
	ORDER BY expires LIMIT $3 FOR UPDATE SKIP LOCKED";

const LOCK_NAME: &str = "SELECT pg_advisory_xact_lock($1)";

const CLAIM: &str = "INSERT INTO claim (host, nonce, digest, purpose, invitee, boot, lease_end) \
	VALUES ($1, $2, $3, $4, $5, $6, $7)";

/// The table holds only what is under way now, so it is read from end to end.
const CLAIMS: &str = "SELECT * FROM claim WHERE host = $1";

const IS_CLAIMED: &str = "SELECT FROM claim WHERE host = $1 AND nonce = $2";

const RELEASE: &str =
	"DELETE FROM claim WHERE host = $1 AND nonce = $2 AND ($3::BIGINT IS NULL OR lease_end < $3)";

const RELEASE_ALL: &str = "DELETE FROM claim WHERE host = $1 AND nonce = ANY($2)";

const REDEEMED_CLAIM: &str = "DELETE FROM claim WHERE host = $1 AND nonce = $2 RETURNING *";

const RENEW: &str = "UPDATE claim SET lease_end = $3 WHERE host = $1 AND nonce = $2";

const REDEMPTION: &str = "INSERT INTO redemption (host, digest, nonce, purpose, invitee, source, used_at) \
	VALUES ($1, $2, $3, $4, $5, $6, $7)";

const IS_REDEEMED: &str = "SELECT FROM redemption WHERE host = $1 AND digest = $2 AND nonce = $3";

const REDEMPTIONS: &str =
	"SELECT * FROM redemption WHERE host = $1 AND digest = ANY($2) ORDER BY used_at, nonce";

/// The stores that [`PostgresStore::shared`] has handed out, by connection string.
static STORES: LazyLock<Mutex<HashMap<String, Arc<PostgresStore>>>> = LazyLock::new(Mutex::default);

/// A database, connected to when it is first needed.
#[derive(Debug)]
pub struct PostgresStore {
	connection: Connection,
	/// Claims that a call which failed may have made: nobody holds them.
	forsaken: Mutex<Vec<Claim>>,
}

impl PostgresStore {
	/// The one store of this process for a connection string, which is a URL; what an empty one leaves out is in the
	/// environment, as for PostgreSQL's own tools. The first call for it says how long a call may take.
	///
	/// # Errors
	/// When the string is not understood, or asks for what is not offered.
	pub fn shared(url: &str, deadline: Duration) -> Result<Arc<Self>, AddressError> {
		let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
		if let Some(store) = stores.get(url) {
			return Ok(Arc::clone(store));
		}
		let store = Arc::new(Self::new(url, deadline)?);
		stores.insert(url.to_owned(), Arc::clone(&store));
		Ok(store)
	}

	/// Closes the connections that this process has open; the next call opens another. For the moment before a fork and
	/// for the end.
	pub fn close_shared() {
		for store in STORES.lock().unwrap_or_else(PoisonError::into_inner).values() {
			store.connection.close();
		}
	}

	/// A store with a connection of its own.
	///
	/// # Errors
	/// As of [`PostgresStore::shared`].
	pub fn new(url: &str, deadline: Duration) -> Result<Self, AddressError> {
		let address = Address::parse(url, |name| std::env::var(name).ok())?;
		Ok(Self { connection: Connection::new(address, deadline), forsaken: Mutex::default() })
	}

	fn forsaken(&self) -> MutexGuard<'_, Vec<Claim>> {
		self.forsaken.lock().unwrap_or_else(PoisonError::into_inner)
	}

	/// The nonces of a host's claims that nobody holds. Those that are stale are settled by whoever meets them.
	fn forsaken_nonces(&self, host: &str, now: Timestamp) -> Vec<Nonce> {
		let mut forsaken = self.forsaken();
		forsaken.retain(|claim| !claim.is_stale(now));
		forsaken.iter().filter(|claim| claim.host == host).map(|claim| claim.nonce).collect()
	}
}

fn damaged(digest: &Digest, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
	StoreError::Damaged { id: digest.id().to_string(), source: source.into() }
}

/// The name of the account that is to be made, if one is.
fn username(claim: &Claim) -> Option<&str> {
	if claim.purpose == Purpose::Account { claim.invitee.as_deref() } else { None }
}

/// A column of bytes whose number the schema checks.
fn bytes<const LENGTH: usize>(row: &Row, column: &str) -> Result<[u8; LENGTH], Trouble> {
	let found: &[u8] = row.try_get(column)?;
	found.try_into().map_err(|_| {
		let source = format!("its {column} has {} bytes, not {LENGTH}", found.len());
		damaged(&Digest::of(found), source).into()
	})
}

fn digest(row: &Row) -> Result<Digest, Trouble> {
	bytes(row, "digest").map(Digest::from_bytes)
}

fn nonce(row: &Row, column: &str) -> Result<Nonce, Trouble> {
	bytes(row, column).map(Nonce::from_bytes)
}

fn purpose(row: &Row, digest: &Digest) -> Result<Purpose, Trouble> {
	let word: &str = row.try_get("purpose")?;
	Purpose::from_stored(word).ok_or_else(|| damaged(digest, "the purpose of its use is unknown").into())
}

fn read_invite(row: &Row) -> Result<Invite, Trouble> {
	let digest = digest(row)?;
	let fields = match row.try_get::<_, Option<&str>>("fields")?.map(Value::decode) {
		None => Table::default(),
		Some(Ok(Value::Table(fields))) => fields,
		Some(Ok(_)) => return Err(damaged(&digest, "its additional data is no table").into()),
		Some(Err(error)) => return Err(damaged(&digest, error).into()),
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

fn read_claim(row: &Row) -> Result<Claim, Trouble> {
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

fn read_member(row: &Row) -> Result<Member, Trouble> {
	Ok(Member {
		username: row.try_get("username")?,
		inviter: row.try_get("inviter")?,
		digest: digest(row)?,
		joined_at: row.try_get("joined_at")?,
	})
}

/// With the digest of its invite.
fn read_redemption(row: &Row) -> Result<(Digest, Redemption), Trouble> {
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
	async fn all<T>(
		&self,
		text: &'static str,
		params: Params<'_>,
		read: fn(&Row) -> Result<T, Trouble>,
	) -> Result<Vec<T>, Trouble> {
		self.query(text, params).await?.iter().map(read).collect()
	}

	async fn is_there(&self, text: &'static str, params: Params<'_>) -> Result<bool, Trouble> {
		Ok(!self.query(text, params).await?.is_empty())
	}

	async fn lock_name(&self, host: &str, username: &str) -> Result<(), Trouble> {
		self.lock_key(&[host, username]).await
	}

	async fn lock_inviter(&self, host: &str, username: &str) -> Result<(), Trouble> {
		self.lock_key(&[host, username, "inviter"]).await
	}

	async fn lock_key(&self, words: &[&str]) -> Result<(), Trouble> {
		// Two that happen to have one key wait for each other, and that is all.
		let hash = Sha256::digest(words.join("\0"));
		let key = hash.iter().take(8).fold(0, |key, byte| key << 8 | i64::from(*byte));
		self.query(LOCK_NAME, &[&key]).await?;
		Ok(())
	}

	/// Stores each invite unless there is one with its digest; whether it did.
	async fn insert(&self, invites: &[&Invite]) -> Result<Vec<bool>, Trouble> {
		let rows = invites.iter().map(|invite| NewRow::of(invite)).collect::<Result<Vec<_>, _>>()?;
		let lists: Vec<_> = invites.iter().zip(&rows).map(|(invite, row)| row.all(invite)).collect();
		Ok(self.execute_all(CREATE, &lists).await?.into_iter().map(|inserted| inserted == 1).collect())
	}

	/// Stores an invite, and revokes those that it supersedes; with limits, only if these let it. The name that it is bound to
	/// is locked first.
	async fn create(
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
				self.retire(&invite.host, username, &which, super::SUPERSEDED, invite.created_at).await?
			}
			None => Vec::new(),
		};
		if self.insert(&[invite]).await?[0] { Ok(Ok(superseded)) } else { Err(StoreError::Exists.into()) }
	}

	async fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Result<Usage, Trouble> {
		let (inviter, limit) = (&allowance.inviter, i64::from(allowance.newest()));
		let counted = self.query(OPEN_OF_INVITER, &[&host, inviter, &now]).await?;
		let open: i64 = counted.first().map_or(Ok(0), |row| row.try_get(0))?;
		let read = |row: &Row| Ok(row.try_get(0)?);
		let newest = self.all(NEWEST_OF_INVITER, &[&host, inviter, &limit], read).await?;
		Ok(Usage { open: u32::try_from(open).unwrap_or(u32::MAX), newest })
	}

	async fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, Trouble> {
		Ok(self.all(LINEAGE, &[&host, &username], read_member).await?.pop())
	}

	async fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, Trouble> {
		self.all(BROUGHT_BY, &[&host, &inviter], read_member).await
	}

	/// Keeps who brought an account, if it replaces what is known; whether it did.
	async fn keep_member(&self, host: &str, member: &Member) -> Result<bool, Trouble> {
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

	async fn find(&self, text: &'static str, host: &str, digest: &Digest) -> Result<Option<Invite>, Trouble> {
		Ok(self.all(text, &[&host, &&digest.as_bytes()[..]], read_invite).await?.pop())
	}

	async fn update(&self, invites: &[Invite]) -> Result<(), Trouble> {
		let rows = invites.iter().map(NewRow::of).collect::<Result<Vec<_>, _>>()?;
		let lists: Vec<_> = invites.iter().zip(&rows).map(|(invite, row)| row.changing(invite)).collect();
		self.execute_all(UPDATE, &lists).await?;
		Ok(())
	}

	/// Revokes what `which` picks of a user's open invites.
	async fn retire(
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
	async fn view_name(
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
	async fn view(&self, invite: Option<Invite>, claim: &Claim, now: Timestamp) -> Result<View, Trouble> {
		let claims = self.all(CLAIMS, &[&claim.host], read_claim).await?;
		let of_name = match username(claim) {
			Some(name) => self.view_name(&claim.host, name, Some(&claim.digest), &claims, now).await?,
			None => View::default(),
		};
		let claims = claims.into_iter().filter(|other| other.digest == claim.digest).collect();
		Ok(View { invite, claims, ..of_name })
	}

	/// Locks what a claim is about, releases claims of the same holder, or of nobody, and decides.
	async fn decide(
		&self,
		claim: &Claim,
		released: &[Nonce],
		now: Timestamp,
	) -> Result<Result<(), Refusal>, Trouble> {
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
	async fn page(
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
	async fn redemptions(
		&self,
		host: &str,
		digests: &[&Digest],
	) -> Result<Vec<(Digest, Redemption)>, Trouble> {
		let digests: Vec<_> = digests.iter().map(|digest| &digest.as_bytes()[..]).collect();
		self.all(REDEMPTIONS, &[&host, &digests], read_redemption).await
	}

	async fn insert_redemption(
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
	async fn count(
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
	async fn with_lost(
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

	async fn is_redeemed(&self, host: &str, digest: &Digest, nonce: &Nonce) -> Result<bool, Trouble> {
		self.is_there(IS_REDEEMED, &[&host, &&digest.as_bytes()[..], &&nonce.as_bytes()[..]]).await
	}
}

/// What a row holds that the invite holds in another form.
struct NewRow<'a> {
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
	fn of(invite: &'a Invite) -> Result<Self, Trouble> {
		let fields = if invite.fields.is_empty() {
			None
		} else {
			let fields = Value::Table(invite.fields.clone()).encode();
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
	fn all(&'a self, invite: &'a Invite) -> Vec<&'a (dyn ToSql + Sync)> {
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
	fn changing(&'a self, invite: &'a Invite) -> Vec<&'a (dyn ToSql + Sync)> {
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

impl InviteStore for PostgresStore {
	fn carries(&self) -> Carries {
		Carries::ALL
	}

	fn create(&self, invite: &Invite) -> Result<Vec<Invite>, StoreError> {
		let doing = "storing an invite";
		let Some(username) = &invite.username else {
			// Nothing can be superseded, and one statement is a transaction of its own.
			let mut attempts = 0;
			return self.connection.call(doing, async |session| {
				attempts += 1;
				if session.insert(&[invite]).await?[0] {
					return Ok(Vec::new());
				}
				let found = session.find(FIND, &invite.host, &invite.digest).await?;
				if attempts > 1 && found.as_ref() == Some(invite) {
					return Ok(Vec::new());
				}
				Err(StoreError::Exists.into())
			});
		};
		self.connection.change(doing, async |session, lost: Option<&Vec<Invite>>| {
			session.lock_name(&invite.host, username).await?;
			if let Some(superseded) = lost
				&& session.find(FIND, &invite.host, &invite.digest).await?.is_some()
			{
				return Ok(superseded.clone());
			}
			Ok(session.create(invite, None).await?.unwrap_or_default())
		})
	}

	fn create_within(
		&self,
		invite: &Invite,
		allowance: &Allowance,
	) -> Result<Result<Vec<Invite>, LimitReached>, StoreError> {
		type Created = Result<Vec<Invite>, LimitReached>;
		self.connection.change("storing an invite", async |session, lost: Option<&Created>| {
			if let Some(username) = &invite.username {
				session.lock_name(&invite.host, username).await?;
			}
			// Locked by the attempt before until its commit took place or not.
			session.lock_inviter(&invite.host, &allowance.inviter).await?;
			if let Some(Ok(superseded)) = lost
				&& session.find(FIND, &invite.host, &invite.digest).await?.is_some()
			{
				return Ok(Ok(superseded.clone()));
			}
			session.create(invite, Some(allowance)).await
		})
	}

	fn usage(&self, host: &str, allowance: &Allowance, now: Timestamp) -> Result<Usage, StoreError> {
		self.connection
			.call("counting the invites of a user", async |session| session.usage(host, allowance, now).await)
	}

	fn import(&self, records: &[Record]) -> Result<usize, StoreError> {
		// In one order, so that servers that import the same at once do not wait for each other.
		let mut records: Vec<_> = records.iter().collect();
		records.sort_by_key(|record| (&record.invite.host, record.invite.digest));
		let invites: Vec<_> = records.iter().map(|record| &record.invite).collect();
		let kept =
			self.connection.change("importing invites", async |session, lost: Option<&Vec<&Record>>| {
				if let Some(kept) = lost
					&& let Some(Record { invite, .. }) = kept.first()
					&& session.find(FIND, &invite.host, &invite.digest).await?.is_some()
				{
					return Ok(kept.clone());
				}
				let inserted = session.insert(&invites).await?;
				let kept: Vec<_> = records
					.iter()
					.zip(inserted)
					.filter(|(_, is_new)| *is_new)
					.map(|(record, _)| *record)
					.collect();
				for Record { invite, redemptions } in &kept {
					for redemption in redemptions {
						session.insert_redemption(&invite.host, &invite.digest, redemption).await?;
						if let Some(Birth::Brought(member)) = redemption.birth(invite) {
							session.keep_member(&invite.host, &member).await?;
						}
					}
				}
				Ok(kept)
			})?;
		Ok(kept.len())
	}

	fn records(&self, host: &str, after: Option<&Digest>, limit: u32) -> Result<Vec<Record>, StoreError> {
		self.connection.snapshot("reading invites", async |session| {
			let invites = session.page(ALL_INVITES, host, after, limit).await?;
			let used: Vec<_> =
				invites.iter().filter(|invite| invite.uses > 0).map(|invite| &invite.digest).collect();
			let mut redemptions: HashMap<Digest, Vec<Redemption>> = HashMap::new();
			for (digest, redemption) in session.redemptions(host, &used).await? {
				redemptions.entry(digest).or_default().push(redemption);
			}
			let record = |invite: Invite| {
				let redemptions = redemptions.remove(&invite.digest).unwrap_or_default();
				Record { invite, redemptions }
			};
			Ok(invites.into_iter().map(record).collect())
		})
	}

	fn forget_tokens(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Option<Digest>, StoreError> {
		let doing = "taking tokens out of invites";
		// Nearly always there is none, and looking for them needs no lock.
		let (next, is_done) = self.connection.call(doing, async |session| {
			let page = session.page(ALL_INVITES, host, after, limit).await?;
			let is_done = page.iter().all(|invite| invite.token.is_none());
			Ok((super::last_of_full_page(&page, limit), is_done))
		})?;
		if is_done {
			return Ok(next);
		}
		self.connection.change(doing, async |session, _: Option<&Option<Digest>>| {
			let mut page = session.page(ALL_INVITES_LOCKED, host, after, limit).await?;
			let next = super::last_of_full_page(&page, limit);
			page.retain_mut(Invite::forget_token);
			session.update(&page).await?;
			Ok(next)
		})
	}

	fn check(&self, host: &str, now: Timestamp) -> Vec<Finding> {
		self.look(host, now)
	}

	fn find(&self, host: &str, digest: &Digest) -> Result<Option<Invite>, StoreError> {
		self.connection.call("looking an invite up", async |session| session.find(FIND, host, digest).await)
	}

	fn claim(
		&self,
		claim: &Claim,
		replaced: Option<&Nonce>,
		now: Timestamp,
	) -> Result<Result<(), Refusal>, StoreError> {
		let mut released = self.forsaken_nonces(&claim.host, now);
		released.extend(replaced);
		let nonce = &claim.nonce.as_bytes()[..];
		let claimed = self.connection.change(
			"claiming an invite",
			async |session, lost: Option<&Result<(), Refusal>>| {
				let decision = session.decide(claim, &released, now).await?;
				let was_made = lost.is_some_and(Result::is_ok);
				if was_made && session.is_there(IS_CLAIMED, &[&claim.host, &nonce]).await? {
					return Ok(Ok(()));
				}
				if decision.is_ok() {
					let params: Params<'_> = &[
						&claim.host,
						&nonce,
						&&claim.digest.as_bytes()[..],
						&claim.purpose.as_str(),
						&claim.invitee,
						&&claim.boot.as_bytes()[..],
						&claim.lease_end,
					];
					session.execute(CLAIM, params).await?;
				}
				Ok(decision)
			},
		);
		if claimed.is_err() {
			self.forsaken().push(claim.clone());
		}
		claimed
	}

	fn redeem(
		&self,
		host: &str,
		digest: &Digest,
		nonce: &Nonce,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Redeemed, StoreError> {
		self.connection.change("redeeming an invite", async |session, lost: Option<&Redeemed>| {
			session.find(FIND_LOCKED, host, digest).await?;
			let claims = session.all(REDEEMED_CLAIM, &[&host, &&nonce.as_bytes()[..]], read_claim).await?;
			if let Some(claim) = claims.first() {
				return Ok(session.count(claim, source, now).await?.map_or(Redeemed::Lost, Redeemed::Now));
			}
			if !session.is_redeemed(host, digest, nonce).await? {
				return Ok(Redeemed::Lost);
			}
			Ok(match lost {
				Some(now @ Redeemed::Now(_)) => now.clone(),
				_ => Redeemed::Before,
			})
		})
	}

	fn redeem_at_once(
		&self,
		claim: &Claim,
		source: Option<&str>,
		now: Timestamp,
	) -> Result<Result<Invite, Refusal>, StoreError> {
		let released = self.forsaken_nonces(&claim.host, now);
		self.connection.change(
			"redeeming an invite",
			async |session, lost: Option<&Result<Invite, Refusal>>| {
				let decision = session.decide(claim, &released, now).await?;
				if let Some(Ok(invite)) = lost
					&& session.is_redeemed(&claim.host, &claim.digest, &claim.nonce).await?
				{
					return Ok(Ok(invite.clone()));
				}
				match decision {
					Ok(()) => Ok(session.count(claim, source, now).await?.ok_or(Refusal::Invalid)),
					Err(refusal) => Ok(Err(refusal)),
				}
			},
		)
	}

	fn release(&self, host: &str, nonce: &Nonce, only_stale: Option<Timestamp>) -> Result<bool, StoreError> {
		self.connection.change("releasing an invite", async |session, lost: Option<&bool>| {
			let params: Params<'_> = &[&host, &&nonce.as_bytes()[..], &only_stale];
			let released = session.execute(RELEASE, params).await? == 1;
			Ok(released || lost.copied().unwrap_or(false))
		})
	}

	fn renew(&self, host: &str, nonce: &Nonce, lease_end: Timestamp) -> Result<bool, StoreError> {
		self.connection.call("renewing a claim", async |session| {
			Ok(session.execute(RENEW, &[&host, &&nonce.as_bytes()[..], &lease_end]).await? == 1)
		})
	}

	fn view(&self, claim: &Claim, now: Timestamp) -> Result<View, StoreError> {
		self.connection.snapshot("looking at an invite", async |session| {
			let invite = session.find(FIND, &claim.host, &claim.digest).await?;
			session.view(invite, claim, now).await
		})
	}

	fn view_name(&self, host: &str, username: &str, now: Timestamp) -> Result<View, StoreError> {
		self.connection.snapshot("looking a username up", async |session| {
			let claims = session.all(CLAIMS, &[&host], read_claim).await?;
			session.view_name(host, username, None, &claims, now).await
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
		self.connection.change("revoking an invite", async |session, lost: Option<&Option<Invite>>| {
			let Some(mut invite) = session.find(FIND_LOCKED, host, digest).await? else {
				return Ok(None);
			};
			if let Some(Some(revoked)) = lost
				&& *revoked == invite
			{
				return Ok(Some(invite));
			}
			if !invite.revoke(why, by, now) {
				return Ok(None);
			}
			session.update(std::slice::from_ref(&invite)).await?;
			Ok(Some(invite))
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
		let doing = "retiring the invites of a user";
		// Most users have none, and looking for them needs no lock.
		let has_any = self.connection.call(doing, async |session| {
			let open = session.all(OPEN_INVITES_OF_USER, &[&host, &username], read_invite).await?;
			Ok(open.iter().any(which))
		})?;
		if !has_any {
			return Ok(Vec::new());
		}
		self.connection.change(doing, async |session, lost: Option<&Vec<Invite>>| {
			let retired = session.retire(host, username, which, why, now).await?;
			session.with_lost(retired, lost).await
		})
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
		let doing = "revoking the invites of an inviter";
		self.connection.change(doing, async |session, lost: Option<&Vec<Invite>>| {
			let mut inviters = Branch::of(inviter);
			while let Some(next) = inviters.next_inviter() {
				inviters.add(if is_branch { session.brought_by(host, &next).await? } else { Vec::new() });
			}
			let inviters: Vec<String> = inviters.places().into_iter().map(|place| place.username).collect();
			let mut retired =
				session.all(OPEN_INVITES_OF_INVITERS_LOCKED, &[&host, &inviters], read_invite).await?;
			retired.retain_mut(|invite| invite.revoke(why, by, now));
			session.update(&retired).await?;
			session.with_lost(retired, lost).await
		})
	}

	fn made_by(&self, host: &str, inviter: &str) -> Result<Vec<Invite>, StoreError> {
		self.connection.call("listing the invites of an inviter", async |session| {
			session.all(INVITES_OF_INVITER, &[&host, &inviter], read_invite).await
		})
	}

	fn brought_by(&self, host: &str, inviter: &str) -> Result<Vec<Member>, StoreError> {
		self.connection
			.call("listing whom somebody brought", async |session| session.brought_by(host, inviter).await)
	}

	fn lineage(&self, host: &str, username: &str) -> Result<Option<Member>, StoreError> {
		self.connection
			.call("looking up who brought an account", async |session| session.lineage(host, username).await)
	}

	fn import_lineage(&self, host: &str, members: &[Member]) -> Result<usize, StoreError> {
		self.connection.change("importing who brought whom", async |session, lost: Option<&usize>| {
			let mut kept = 0;
			for member in members {
				kept += usize::from(session.keep_member(host, member).await?);
			}
			// What the attempt before has kept is known to this one.
			Ok(lost.copied().unwrap_or(0).max(kept))
		})
	}

	fn set_paused(&self, host: &str, digest: &Digest, paused: bool) -> Result<bool, StoreError> {
		self.connection.change("pausing or resuming an invite", async |session, lost: Option<&bool>| {
			let Some(mut invite) = session.find(FIND_LOCKED, host, digest).await? else {
				return Ok(false);
			};
			if invite.ended_at.is_some() {
				return Ok(false);
			}
			if invite.paused == paused {
				return Ok(lost.copied().unwrap_or(false));
			}
			invite.paused = paused;
			session.update(&[invite]).await?;
			Ok(true)
		})
	}

	fn extend(
		&self,
		host: &str,
		digest: &Digest,
		expires: Option<Timestamp>,
		now: Timestamp,
	) -> Result<Option<(Invite, Vec<Invite>)>, StoreError> {
		type Extended = Option<(Invite, Vec<Invite>)>;
		self.connection.change("extending an invite", async |session, lost: Option<&Extended>| {
			let Some(Invite { username, .. }) = session.find(FIND, host, digest).await? else {
				return Ok(None);
			};
			if let Some(username) = &username {
				session.lock_name(host, username).await?;
				// In the order of digests: the invite itself is one of them, or has ended.
				session.query(OPEN_INVITES_OF_USER_LOCKED, &[&host, username]).await?;
			}
			let Some(mut invite) = session.find(FIND_LOCKED, host, digest).await? else {
				return Ok(None);
			};
			if let Some(Some((extended, superseded))) = lost
				&& *extended == invite
			{
				return Ok(Some((invite, superseded.clone())));
			}
			if !invite.extend(expires) {
				return Ok(None);
			}
			let mut superseded = Vec::new();
			if let Some(username) = &username {
				let which = |other: &Invite| other.digest != *digest && supersedes(&invite, other);
				superseded = session.retire(host, username, &which, super::SUPERSEDED, now).await?;
			}
			session.update(std::slice::from_ref(&invite)).await?;
			Ok(Some((invite, superseded)))
		})
	}

	fn end_expired(&self, host: &str, limit: u32, now: Timestamp) -> Result<Vec<Invite>, StoreError> {
		let doing = "ending expired invites";
		// Nearly always there is none, and looking for them needs no lock.
		let is_due =
			self.connection.call(doing, async |session| session.is_there(IS_DUE, &[&host, &now]).await)?;
		if !is_due {
			return Ok(Vec::new());
		}
		self.connection.change(doing, async |session, lost: Option<&Vec<Invite>>| {
			let params: Params<'_> = &[&host, &now, &i64::from(limit)];
			let mut ended = session.all(DUE_LOCKED, params, read_invite).await?;
			for invite in &mut ended {
				invite.ended_at = invite.expires;
			}
			session.update(&ended).await?;
			session.with_lost(ended, lost).await
		})
	}

	fn open_invites(
		&self,
		host: &str,
		after: Option<&Digest>,
		limit: u32,
	) -> Result<Vec<Invite>, StoreError> {
		self.connection
			.call("listing invites", async |session| session.page(OPEN_INVITES, host, after, limit).await)
	}

	fn listing(
		&self,
		host: &str,
		part: Part,
		after: &Position,
		limit: u32,
		now: Timestamp,
	) -> Result<Vec<Invite>, StoreError> {
		let (digest, limit) = (&after.digest.as_bytes()[..], i64::from(limit));
		self.connection.call("listing invites", async |session| match part {
			Part::Open => session.all(OPEN_PART, &[&host, &after.at, &digest, &limit], read_invite).await,
			Part::History => {
				session.all(HISTORY_PART, &[&host, &after.at, &digest, &limit, &now], read_invite).await
			}
		})
	}

	fn count_open(
		&self,
		host: &str,
		after: &Position,
		limit: u32,
	) -> Result<(u32, Option<Position>), StoreError> {
		let (digest, limit) = (&after.digest.as_bytes()[..], i64::from(limit));
		self.connection.call("counting invites", async |session| {
			let rows = session.query(COUNT_OPEN, &[&host, &after.at, &digest, &limit]).await?;
			let is_last = i64::try_from(rows.len()).is_ok_and(|found| found < limit);
			let last = match rows.last() {
				Some(row) if !is_last => {
					Some(Position { at: row.try_get("created_at")?, digest: self::digest(row)? })
				}
				_ => None,
			};
			Ok((u32::try_from(rows.len()).unwrap_or(u32::MAX), last))
		})
	}

	fn purge(&self, host: &str, before: Timestamp, limit: u32) -> Result<u32, StoreError> {
		let doing = "purging invites";
		// Nearly always there is none, and looking for them needs no lock.
		let is_over = self
			.connection
			.call(doing, async |session| session.is_there(IS_OVER, &[&host, &before]).await)?;
		if !is_over {
			return Ok(0);
		}
		let purged = self.connection.change(doing, async |session, lost: Option<&Vec<Digest>>| {
			let over = session.all(OVER_LOCKED, &[&host, &before, &i64::from(limit)], digest).await?;
			let over: Vec<_> = over.iter().map(|digest| &digest.as_bytes()[..]).collect();
			let mut purged = session.all(PURGE, &[&host, &over], digest).await?;
			let gone: Vec<_> = purged.iter().map(|digest| &digest.as_bytes()[..]).collect();
			session.execute(PURGE_REDEMPTIONS, &[&host, &gone]).await?;
			// Had the commit failed, they would be the first again.
			if let Some(lost) = lost.filter(|lost| lost.first().is_some_and(|first| !purged.contains(first)))
			{
				purged.extend(lost);
			}
			Ok(purged)
		})?;
		Ok(u32::try_from(purged.len()).unwrap_or(u32::MAX))
	}

	fn redemptions(&self, host: &str, digest: &Digest) -> Result<Vec<Redemption>, StoreError> {
		let found = self.connection.call("listing the uses of an invite", async |session| {
			session.redemptions(host, &[digest]).await
		})?;
		Ok(found.into_iter().map(|(_, redemption)| redemption).collect())
	}
}
