//! The SQL, and what goes into it and comes out of it.

use std::sync::LazyLock;

use rusqlite::Error::FromSqlConversionFailure;
use rusqlite::types::FromSql;
use rusqlite::{Connection, Row, ToSql, named_params};

use super::connection::Trouble;
use crate::clock::Timestamp;
use crate::invite::{Invite, Type};
use crate::lineage::{Birth, Member, birth};
use crate::policy::{Allowance, Usage};
use crate::redemption::{Claim, Purpose, Redemption, View, reserves, supersedes};
use crate::store::{SUPERSEDED, StoreError};
use crate::token::{Digest, Nonce, Token};
use crate::value::{Fields, Table};

/// Public for the benchmark, which runs it on bare SQLite.
pub const CREATE: &str = "INSERT INTO invite (host, digest, token, type, kind, username, allow_registration, \
	created_at, expires, max_uses, uses, paused, revoked_at, revoked_why, revoked_by, ended_at, fields, inviter) \
	VALUES (:host, :digest, :token, :type, :kind, :username, :allow_registration, :created_at, :expires, :max_uses, \
	:uses, :paused, :revoked_at, :revoked_why, :revoked_by, :ended_at, :fields, :inviter)";

pub(super) static IMPORT: LazyLock<String> = LazyLock::new(|| format!("{CREATE} ON CONFLICT DO NOTHING"));

/// Public for the benchmark, which runs it on bare SQLite.
pub const FIND: &str = "SELECT * FROM invite WHERE host = :host AND digest = :digest";

/// Writes back what can change of an invite. Public for the benchmark, which runs it on bare SQLite.
pub const UPDATE: &str = "UPDATE invite SET token = :token, expires = :expires, uses = :uses, paused = :paused, \
	revoked_at = :revoked_at, revoked_why = :revoked_why, revoked_by = :revoked_by, ended_at = :ended_at, \
	fields = :fields WHERE host = :host AND digest = :digest";

/// Public for the benchmark, which runs it on bare SQLite.
pub const OPEN_INVITES: &str = "SELECT * FROM invite WHERE host = :host AND digest > :after AND ended_at IS NULL \
	ORDER BY digest LIMIT :limit";

pub(super) const ALL_INVITES: &str =
	"SELECT * FROM invite WHERE host = :host AND digest > :after ORDER BY digest LIMIT :limit";
pub(super) const OPEN_PART: &str = "SELECT * FROM invite WHERE host = :host AND ended_at IS NULL \
	AND (created_at, digest) < (:at, :digest) ORDER BY created_at DESC, digest DESC LIMIT :limit";

/// What has ended and what is about to be noted as expired, merged from two indexes.
pub(super) const HISTORY_PART: &str = "SELECT *, ended_at AS over_at FROM invite WHERE host = :host AND ended_at IS NOT NULL \
	AND (ended_at, digest) < (:at, :digest) \
	UNION ALL SELECT *, expires AS over_at FROM invite WHERE host = :host AND ended_at IS NULL AND expires < :now \
	AND (expires, digest) < (:at, :digest) \
	ORDER BY over_at DESC, digest DESC LIMIT :limit";

pub(super) const COUNT_OPEN: &str = "SELECT created_at, digest FROM invite WHERE host = :host AND ended_at IS NULL \
	AND (created_at, digest) < (:at, :digest) ORDER BY created_at DESC, digest DESC LIMIT :limit";

/// The invites that are to be purged, apart from those that are spared.
pub(super) const OVER: &str = "SELECT digest, expires FROM invite WHERE host = :host AND ended_at < :before \
	AND digest NOT IN (SELECT digest FROM claim WHERE host = :host) ORDER BY ended_at LIMIT :limit";

pub(super) const PURGE: &str = "DELETE FROM invite WHERE host = :host AND digest = :digest";

pub(super) const PURGE_REDEMPTIONS: &str = "DELETE FROM redemption WHERE host = :host AND digest = :digest";

/// Public for the benchmark, which runs it on bare SQLite.
pub const OPEN_INVITES_OF_USER: &str = "SELECT * FROM invite INDEXED BY invite_name WHERE host = :host AND username = :username AND ended_at IS NULL";

pub(super) const OPEN_INVITES_OF_INVITER: &str = "SELECT * FROM invite INDEXED BY invite_inviter_open WHERE host = :host AND inviter = :inviter AND ended_at IS NULL";

pub(super) const INVITES_OF_INVITER: &str =
	"SELECT * FROM invite WHERE host = :host AND inviter = :inviter ORDER BY created_at, digest";

pub(super) const BROUGHT_BY: &str = "SELECT * FROM lineage INDEXED BY lineage_inviter WHERE host = :host AND inviter = :inviter ORDER BY username";

/// Public for the benchmark, which runs it on bare SQLite.
pub const LINEAGE: &str = "SELECT * FROM lineage WHERE host = :host AND username = :username";

/// Public for the benchmark, which runs it on bare SQLite.
pub const BROUGHT: &str = "INSERT OR REPLACE INTO lineage (host, username, inviter, digest, joined_at) \
	VALUES (:host, :username, :inviter, :digest, :joined_at)";

const ALONE: &str = "DELETE FROM lineage WHERE host = :host AND username = :username";

pub(super) const OPEN_OF_INVITER: &str = "SELECT count(*) FROM invite INDEXED BY invite_inviter_open WHERE host = :host AND inviter = :inviter \
	AND ended_at IS NULL AND (expires IS NULL OR expires >= :now)";

pub(super) const NEWEST_OF_INVITER: &str = "SELECT created_at FROM invite WHERE host = :host AND inviter = :inviter \
	ORDER BY created_at DESC LIMIT :limit";

pub(super) const DUE: &str = "SELECT * FROM invite WHERE host = :host AND expires < :now AND ended_at IS NULL \
	ORDER BY expires LIMIT :limit";

/// Public for the benchmark, which runs it on bare SQLite.
pub const CLAIM: &str = "INSERT INTO claim (host, nonce, digest, purpose, invitee, boot, lease_end) \
	VALUES (:host, :nonce, :digest, :purpose, :invitee, :boot, :lease_end)";

/// The table holds only what is under way now, so it is read from end to end. Public for the benchmark, which runs it on bare SQLite.
pub const CLAIMS: &str = "SELECT * FROM claim WHERE host = :host";

pub(super) const RELEASE: &str = "DELETE FROM claim WHERE host = :host AND nonce = :nonce AND (:stale_at IS NULL OR lease_end < :stale_at)";

/// Public for the benchmark, which runs it on bare SQLite.
pub const REDEEMED_CLAIM: &str = "DELETE FROM claim WHERE host = :host AND nonce = :nonce RETURNING *";

pub(super) const RENEW: &str =
	"UPDATE claim SET lease_end = :lease_end WHERE host = :host AND nonce = :nonce";

/// Public for the benchmark, which runs it on bare SQLite.
pub const REDEMPTION: &str = "INSERT INTO redemption (host, digest, nonce, purpose, invitee, source, used_at) \
	VALUES (:host, :digest, :nonce, :purpose, :invitee, :source, :used_at)";

pub(super) const IS_REDEEMED: &str =
	"SELECT 1 FROM redemption WHERE host = :host AND digest = :digest AND nonce = :nonce";

/// Whether somebody became a contact by an invite, or is a local user who was registered with it.
pub(super) const IS_KNOWN: &str = "SELECT 1 FROM redemption WHERE host = :host AND digest = :digest AND purpose = 'contact' \
	AND invitee = :jid \
	UNION ALL SELECT 1 FROM lineage WHERE host = :host AND username = :username AND digest = :digest";

pub(super) const REDEMPTIONS: &str =
	"SELECT * FROM redemption WHERE host = :host AND digest = :digest ORDER BY used_at, nonce";

type Source = Box<dyn std::error::Error + Send + Sync>;

pub(super) fn damaged(digest: &Digest, source: impl Into<Source>) -> StoreError {
	StoreError::Damaged { id: digest.id().to_string(), source: source.into() }
}

/// The columns of a row one after the other. To look each up by its name takes longer than all else about a row.
pub(super) struct Columns<'a, 'row> {
	row: &'a Row<'row>,
	next: usize,
}

impl<'a> Columns<'a, '_> {
	fn next<T: FromSql>(&mut self) -> Result<T, rusqlite::Error> {
		self.next += 1;
		self.row.get(self.next - 1)
	}

	fn next_text(&mut self) -> Result<Option<&'a str>, rusqlite::Error> {
		self.next += 1;
		let value = self.row.get_ref(self.next - 1)?;
		value
			.as_str_or_null()
			.map_err(|error| FromSqlConversionFailure(self.next - 1, value.data_type(), error.into()))
	}
}

/// Reads `SELECT *`: the order is that of the table, to which migrations append.
pub(super) fn read_invite(row: &Row<'_>) -> Result<Invite, Trouble> {
	let mut columns = Columns { row, next: 0 };
	let host = columns.next()?;
	let digest = Digest::from_bytes(columns.next()?);
	let token: Option<String> = columns.next()?;
	let invite_type = columns.next_text()?.and_then(Type::from_stored);
	let _kind = columns.next_text()?;
	Ok(Invite {
		host,
		digest,
		token: token.map(Token::from_stored),
		invite_type: invite_type.ok_or_else(|| damaged(&digest, "its type is unknown"))?,
		username: columns.next()?,
		allow_registration: columns.next()?,
		created_at: columns.next()?,
		expires: columns.next()?,
		max_uses: columns.next()?,
		uses: columns.next()?,
		paused: columns.next()?,
		revoked_at: columns.next()?,
		revoked_why: columns.next()?,
		ended_at: columns.next()?,
		fields: match columns.next_text()? {
			None => Fields::default(),
			Some(text) => Table::decode(text).map_err(|error| damaged(&digest, error))?.into(),
		},
		revoked_by: columns.next()?,
	})
}

/// The first of the invites that are [`OVER`], up to `limit`, that `which` picks by its digest and its end.
pub(super) fn over(
	connection: &Connection,
	params: &[(&str, &dyn ToSql)],
	limit: u32,
	which: impl Fn(&Digest, Option<Timestamp>) -> bool,
) -> Result<Vec<Digest>, Trouble> {
	let mut statement = connection.prepare_cached(OVER)?;
	let mut rows = statement.query(params)?;
	let mut found = Vec::new();
	while u32::try_from(found.len()).is_ok_and(|found| found < limit)
		&& let Some(row) = rows.next()?
	{
		let digest = Digest::from_bytes(row.get(0)?);
		if which(&digest, row.get(1)?) {
			found.push(digest);
		}
	}
	Ok(found)
}

const UNKNOWN_PURPOSE: &str = "the purpose of its use is unknown";

/// Reads `SELECT *`, as [`read_invite`] does.
pub(super) fn read_claim(row: &Row<'_>) -> Result<Claim, Trouble> {
	let mut columns = Columns { row, next: 0 };
	let host = columns.next()?;
	let nonce = Nonce::from_bytes(columns.next()?);
	let digest = Digest::from_bytes(columns.next()?);
	let purpose = columns.next_text()?.and_then(Purpose::from_stored);
	Ok(Claim {
		host,
		nonce,
		digest,
		purpose: purpose.ok_or_else(|| damaged(&digest, UNKNOWN_PURPOSE))?,
		invitee: columns.next()?,
		boot: Nonce::from_bytes(columns.next()?),
		lease_end: columns.next()?,
	})
}

pub(super) fn read_redemption(row: &Row<'_>) -> Result<Redemption, Trouble> {
	let digest = Digest::from_bytes(row.get("digest")?);
	let purpose: String = row.get("purpose")?;
	Ok(Redemption {
		nonce: Nonce::from_bytes(row.get("nonce")?),
		purpose: Purpose::from_stored(&purpose).ok_or_else(|| damaged(&digest, UNKNOWN_PURPOSE))?,
		invitee: row.get("invitee")?,
		source: row.get("source")?,
		used_at: row.get("used_at")?,
	})
}

pub(super) fn all<T>(
	connection: &Connection,
	statement: &str,
	params: &[(&str, &dyn ToSql)],
	read: fn(&Row<'_>) -> Result<T, Trouble>,
) -> Result<Vec<T>, Trouble> {
	let mut statement = connection.prepare_cached(statement)?;
	let mut rows = statement.query(params)?;
	let mut found = Vec::new();
	while let Some(row) = rows.next()? {
		found.push(read(row)?);
	}
	Ok(found)
}

pub(super) fn encode_fields(invite: &Invite) -> Result<Option<String>, Trouble> {
	if invite.fields.is_empty() {
		return Ok(None);
	}
	Ok(Some(invite.fields.encode().map_err(|error| damaged(&invite.digest, error))?))
}

/// Stores an invite by `statement`; whether it did.
pub(super) fn insert(connection: &Connection, statement: &str, invite: &Invite) -> Result<bool, Trouble> {
	let inserted = connection.prepare_cached(statement)?.execute(named_params! {
		":host": invite.host,
		":digest": invite.digest.as_bytes(),
		":token": invite.token.as_ref().map(Token::reveal),
		":type": invite.invite_type.as_str(),
		":kind": invite.kind().as_str(),
		":username": invite.username,
		":allow_registration": invite.allow_registration,
		":created_at": invite.created_at,
		":expires": invite.expires,
		":max_uses": invite.max_uses,
		":uses": invite.uses,
		":paused": invite.paused,
		":revoked_at": invite.revoked_at,
		":revoked_why": invite.revoked_why,
		":revoked_by": invite.revoked_by,
		":ended_at": invite.ended_at,
		":fields": encode_fields(invite)?,
		":inviter": invite.local_inviter(),
	})?;
	Ok(inserted == 1)
}

pub(super) fn find(connection: &Connection, host: &str, digest: &Digest) -> Result<Option<Invite>, Trouble> {
	let mut statement = connection.prepare_cached(FIND)?;
	let mut rows = statement.query(named_params! { ":host": host, ":digest": digest.as_bytes() })?;
	rows.next()?.map(read_invite).transpose()
}

pub(super) fn update(connection: &Connection, invite: &Invite) -> Result<(), Trouble> {
	connection.prepare_cached(UPDATE)?.execute(named_params! {
		":host": invite.host,
		":digest": invite.digest.as_bytes(),
		":token": invite.token.as_ref().map(Token::reveal),
		":expires": invite.expires,
		":uses": invite.uses,
		":paused": invite.paused,
		":revoked_at": invite.revoked_at,
		":revoked_why": invite.revoked_why,
		":revoked_by": invite.revoked_by,
		":ended_at": invite.ended_at,
		":fields": encode_fields(invite)?,
	})?;
	Ok(())
}

pub(super) fn open_invites_of_user(
	connection: &Connection,
	host: &str,
	username: &str,
) -> Result<Vec<Invite>, Trouble> {
	let params = named_params! { ":host": host, ":username": username };
	all(connection, OPEN_INVITES_OF_USER, params, read_invite)
}

/// Revokes what `which` picks of a user's open invites.
pub(super) fn retire(
	connection: &Connection,
	host: &str,
	username: &str,
	which: &dyn Fn(&Invite) -> bool,
	why: &str,
	now: Timestamp,
) -> Result<Vec<Invite>, Trouble> {
	let mut retired = Vec::new();
	for mut invite in open_invites_of_user(connection, host, username)? {
		if which(&invite) && invite.revoke(Some(why), None, now) {
			update(connection, &invite)?;
			retired.push(invite);
		}
	}
	Ok(retired)
}

/// What [`InviteStore::create`] does.
pub(super) fn create(connection: &Connection, invite: &Invite) -> Result<Vec<Invite>, Trouble> {
	let superseded = match &invite.username {
		Some(username) => {
			let which = |older: &Invite| supersedes(invite, older);
			retire(connection, &invite.host, username, &which, SUPERSEDED, invite.created_at)?
		}
		None => Vec::new(),
	};
	insert(connection, CREATE, invite)?;
	Ok(superseded)
}

pub(super) fn usage(
	connection: &Connection,
	host: &str,
	allowance: &Allowance,
	now: Timestamp,
) -> Result<Usage, Trouble> {
	let inviter = &allowance.inviter;
	let open = connection
		.prepare_cached(OPEN_OF_INVITER)?
		.query_row(named_params! { ":host": host, ":inviter": inviter, ":now": now }, |row| row.get(0))?;
	let params = named_params! { ":host": host, ":inviter": inviter, ":limit": allowance.newest() };
	let newest = all(connection, NEWEST_OF_INVITER, params, |row| Ok(row.get(0)?))?;
	Ok(Usage { open, newest })
}

/// The claims for a username and whether an invite other than `except` reserves it.
pub(super) fn view_name(
	connection: &Connection,
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
		is_reserved: open_invites_of_user(connection, host, username)?
			.iter()
			.any(|invite| Some(&invite.digest) != except && reserves(invite, username, now)),
		..View::default()
	})
}

pub(super) fn view(connection: &Connection, claim: &Claim, now: Timestamp) -> Result<View, Trouble> {
	let claims = all(connection, CLAIMS, named_params! { ":host": claim.host }, read_claim)?;
	let of_name = match (claim.purpose, claim.invitee.as_deref()) {
		(Purpose::Account, Some(name)) => {
			view_name(connection, &claim.host, name, Some(&claim.digest), &claims, now)?
		}
		_ => View::default(),
	};
	let is_known = match claim.contact() {
		Some((jid, username)) => connection.prepare_cached(IS_KNOWN)?.exists(named_params! {
			":host": claim.host,
			":digest": claim.digest.as_bytes(),
			":jid": jid,
			":username": username.as_deref(),
		})?,
		None => false,
	};
	Ok(View {
		invite: find(connection, &claim.host, &claim.digest)?,
		claims: claims.into_iter().filter(|other| other.digest == claim.digest).collect(),
		is_known,
		..of_name
	})
}

pub(super) fn insert_redemption(
	connection: &Connection,
	host: &str,
	digest: &Digest,
	redemption: &Redemption,
) -> Result<(), Trouble> {
	connection.prepare_cached(REDEMPTION)?.execute(named_params! {
		":host": host,
		":digest": digest.as_bytes(),
		":nonce": redemption.nonce.as_bytes(),
		":purpose": redemption.purpose.as_str(),
		":invitee": redemption.invitee,
		":source": redemption.source,
		":used_at": redemption.used_at,
	})?;
	Ok(())
}

pub(super) fn redemptions(
	connection: &Connection,
	host: &str,
	digest: &Digest,
) -> Result<Vec<Redemption>, Trouble> {
	let params = named_params! { ":host": host, ":digest": digest.as_bytes() };
	all(connection, REDEMPTIONS, params, read_redemption)
}

/// A page of invites by `statement`, one of those that take a page's parameters.
pub(super) fn page(
	connection: &Connection,
	statement: &str,
	host: &str,
	after: Option<&Digest>,
	limit: u32,
) -> Result<Vec<Invite>, Trouble> {
	// Every digest follows the empty one.
	let after = after.map_or(&[][..], |after| after.as_bytes());
	let params = named_params! { ":host": host, ":after": after, ":limit": limit };
	all(connection, statement, params, read_invite)
}

/// Counts the use that a claim has become.
pub(super) fn count(
	connection: &Connection,
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
	insert_redemption(connection, &claim.host, &claim.digest, &redemption)?;
	let Some(mut invite) = find(connection, &claim.host, &claim.digest)? else {
		return Ok(None);
	};
	match birth(&invite, claim.purpose, claim.invitee.as_deref(), now) {
		Some(Birth::Brought(member)) => drop(keep_member(connection, &claim.host, &member)?),
		Some(Birth::Alone(username)) => {
			let params = named_params! { ":host": claim.host, ":username": username };
			connection.prepare_cached(ALONE)?.execute(params)?;
		}
		None => (),
	}
	invite.add_use(now);
	update(connection, &invite)?;
	Ok(Some(invite))
}

/// Keeps who brought an account, if it replaces what is known; whether it did.
pub(super) fn keep_member(connection: &Connection, host: &str, member: &Member) -> Result<bool, Trouble> {
	let may = member.replaces(lineage(connection, host, &member.username)?.as_ref());
	if may {
		connection.prepare_cached(BROUGHT)?.execute(named_params! {
			":host": host,
			":username": member.username,
			":inviter": member.inviter,
			":digest": member.digest.as_bytes(),
			":joined_at": member.joined_at,
		})?;
	}
	Ok(may)
}

pub(super) fn lineage(
	connection: &Connection,
	host: &str,
	username: &str,
) -> Result<Option<Member>, Trouble> {
	let params = named_params! { ":host": host, ":username": username };
	Ok(all(connection, LINEAGE, params, read_member)?.pop())
}

pub(super) fn read_member(row: &Row<'_>) -> Result<Member, Trouble> {
	Ok(Member {
		username: row.get("username")?,
		inviter: row.get("inviter")?,
		digest: Digest::from_bytes(row.get("digest")?),
		joined_at: row.get("joined_at")?,
	})
}

pub(super) fn brought_by(connection: &Connection, host: &str, inviter: &str) -> Result<Vec<Member>, Trouble> {
	all(connection, BROUGHT_BY, named_params! { ":host": host, ":inviter": inviter }, read_member)
}

pub(super) fn release(
	connection: &Connection,
	host: &str,
	nonce: &Nonce,
	only_stale: Option<Timestamp>,
) -> Result<bool, Trouble> {
	let released = connection
		.prepare_cached(RELEASE)?
		.execute(named_params! { ":host": host, ":nonce": nonce.as_bytes(), ":stale_at": only_stale })?;
	Ok(released == 1)
}
