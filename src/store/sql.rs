//! What the stores in a database have in common: the statements, what goes into them and comes out of them, and the verbs.
//!
//! A statement is written for SQLite. PostgreSQL takes `$1` for `?1`, leaves `INDEXED BY` out, and adds what locks rows.

use std::borrow::Cow;

use super::{Endings, Members, Pick, Rows, StoreError, TxError};
use crate::clock::Timestamp;
use crate::ending::{Ending, Scope, Tie};
use crate::invite::{Invite, Type};
use crate::lineage::Member;
use crate::listing::{Part, Position};
use crate::redemption::{Claim, Life, Purpose, Redemption};
use crate::token::{Digest, Nonce, Token};
use crate::value::Fields;

/// Every schema of SQLite's there was; the database's `user_version` says how many of them it has seen.
pub(super) const SQLITE_MIGRATIONS: [&str; 5] = [
	include_str!("sqlite/1_invites.sql"),
	concat!(include_str!("sqlite/2_history.sql"), include_str!("sqlite/2_inviters.sql")),
	include_str!("sqlite/3_contacts.sql"),
	include_str!("sqlite/4_renewals.sql"),
	include_str!("sqlite/5_endings.sql"),
];

/// Every schema of PostgreSQL's; the newest version in the table `migration` says how many of them the database has seen.
#[cfg(feature = "postgres")]
pub(super) const POSTGRESQL_MIGRATIONS: [&str; 5] = [
	include_str!("postgres/1_invites.sql"),
	include_str!("postgres/2_contacts.sql"),
	include_str!("postgres/3_outcome.sql"),
	include_str!("postgres/4_renewals.sql"),
	include_str!("postgres/5_endings.sql"),
];

/// What [`read_invite`] reads.
macro_rules! select {
	($rest:literal) => {
		$crate::store::sql::select!("", $rest)
	};
	($more:literal, $rest:literal) => {
		concat!(
			"SELECT digest, token, type, username, allow_registration, created_at, expires, max_uses, uses, paused, \
			 revoked_at, revoked_why, revoked_by, ended_at, fields",
			$more,
			" FROM invite ",
			$rest
		)
	};
}

pub(super) use select;

macro_rules! create {
	($rest:literal) => {
		concat!(
			"INSERT INTO invite (host, digest, token, expires, uses, paused, revoked_at, revoked_why, revoked_by, ended_at, \
			 fields, type, kind, username, allow_registration, created_at, max_uses, inviter) \
			 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
			$rest
		)
	};
}

/// Fails where the digest is known. Takes what [`Encoded::all`] gives.
pub const CREATE: &str = create!("");

/// Leaves what is known as it is.
pub(super) const INSERT: &str = create!(" ON CONFLICT DO NOTHING RETURNING 1");

/// One invite.
pub const FIND: &str = select!("WHERE host = ?1 AND digest = ?2");

/// Writes back what can change of an invite; takes what [`Encoded::changing`] gives.
pub const UPDATE: &str = "UPDATE invite SET token = ?3, expires = ?4, uses = ?5, paused = ?6, revoked_at = ?7, revoked_why = ?8, \
	revoked_by = ?9, ended_at = ?10, fields = ?11 WHERE host = ?1 AND digest = ?2";

/// A page of the open invites.
pub const OPEN: &str =
	select!("WHERE host = ?1 AND digest > ?2 AND ended_at IS NULL ORDER BY digest LIMIT ?3");

const ALL: &str = select!("WHERE host = ?1 AND digest > ?2 ORDER BY digest LIMIT ?3");

/// The open invites that are bound to a username, in the order of the index. Asked for an order, SQLite compiles this anew
/// for each name.
pub const BOUND: &str = select!(
	"INDEXED BY invite_user WHERE host = ?1 AND username = ?2 AND kind IN ('account', 'group', 'reset') \
	 AND ended_at IS NULL"
);

/// The same in the order in which rows are locked.
#[cfg(feature = "postgres")]
pub(super) const BOUND_IN_ORDER: &str = select!(
	"WHERE host = ?1 AND username = ?2 AND kind IN ('account', 'group', 'reset') AND ended_at IS NULL ORDER BY digest"
);

pub(super) const MADE_BY: &str = select!(
	"INDEXED BY invite_inviter_open WHERE host = ?1 AND inviter = ?2 AND created_at <= ?3 AND ended_at IS NULL \
	 ORDER BY expires LIMIT ?4"
);

pub(super) const CONTACT_OF: &str = select!(
	"INDEXED BY invite_user WHERE host = ?1 AND username = ?2 AND kind = 'contact' AND created_at <= ?3 \
	 AND ended_at IS NULL ORDER BY created_at DESC LIMIT ?4"
);

pub(super) const RESET_OF: &str = select!(
	"INDEXED BY invite_user WHERE host = ?1 AND username = ?2 AND kind = 'reset' AND created_at <= ?3 \
	 AND ended_at IS NULL ORDER BY created_at DESC LIMIT ?4"
);

pub(super) const ALL_OF_INVITER: &str =
	select!("WHERE host = ?1 AND inviter = ?2 ORDER BY created_at, digest");

pub(super) const DUE: &str =
	select!("WHERE host = ?1 AND expires < ?2 AND ended_at IS NULL ORDER BY expires LIMIT ?3");

pub(super) const OPEN_PART: &str = select!(
	"WHERE host = ?1 AND ended_at IS NULL AND (created_at, digest) < (?2, ?3) \
	 ORDER BY created_at DESC, digest DESC LIMIT ?4"
);

pub(super) const COUNT_OPEN: &str = "SELECT created_at, digest FROM invite WHERE host = ?1 AND ended_at IS NULL \
	AND (created_at, digest) < (?2, ?3) ORDER BY created_at DESC, digest DESC LIMIT ?4";

/// The invites that may be purged, apart from those that are spared.
pub(super) const OVER: &str = "SELECT digest, expires FROM invite WHERE host = ?1 AND ended_at < ?2 \
	AND digest NOT IN (SELECT digest FROM claim WHERE host = ?1) ORDER BY ended_at LIMIT ?3";

const PURGE: &str = "DELETE FROM invite WHERE host = ?1 AND digest = ?2";

const PURGE_REDEMPTIONS: &str = "DELETE FROM redemption WHERE host = ?1 AND digest = ?2";

/// The open invites of an inviter that have not expired: those that never do, and those that will. Only what is asked for in
/// the order of the index is certain to be read by it: PostgreSQL may hope to find as many by reading everything.
pub(super) const COUNT_MADE: &str = "SELECT count(*) FROM (\
	SELECT 1 FROM (SELECT 1 FROM invite INDEXED BY invite_inviter_open WHERE host = ?1 AND inviter = ?2 AND expires IS NULL \
	AND ended_at IS NULL ORDER BY expires, created_at LIMIT ?4) AS lasting \
	UNION ALL SELECT 1 FROM (SELECT 1 FROM invite INDEXED BY invite_inviter_open WHERE host = ?1 AND inviter = ?2 \
	AND expires >= ?3 AND ended_at IS NULL ORDER BY expires LIMIT ?4) AS expiring LIMIT ?4) AS made";

/// The same of those that were made after a moment.
pub(super) const COUNT_MADE_AFTER: &str = "SELECT count(*) FROM (\
	SELECT 1 FROM invite INDEXED BY invite_inviter WHERE host = ?1 AND inviter = ?2 AND created_at > ?5 \
	AND ended_at IS NULL AND (expires IS NULL OR expires >= ?3) ORDER BY created_at LIMIT ?4) AS made";

pub(super) const NEWEST_OF_INVITER: &str =
	"SELECT created_at FROM invite WHERE host = ?1 AND inviter = ?2 ORDER BY created_at DESC LIMIT ?3";

/// Makes a claim.
pub const CLAIM: &str = "INSERT INTO claim (host, nonce, digest, purpose, invitee, boot, made_at, renewals) \
	VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)";

/// All claims. The table holds only what is under way now, so it is read from end to end.
pub const CLAIMS: &str =
	"SELECT nonce, digest, purpose, invitee, boot, made_at, renewals FROM claim WHERE host = ?1";

/// Removes a claim, and returns it.
pub const TAKE_CLAIM: &str = "DELETE FROM claim WHERE host = ?1 AND nonce = ?2 \
	RETURNING nonce, digest, purpose, invitee, boot, made_at, renewals";

pub(super) const RENEW: &str =
	"UPDATE claim SET renewals = renewals + 1 WHERE host = ?1 AND nonce = ?2 RETURNING 1";

/// Keeps a use.
pub const REDEMPTION: &str = "INSERT INTO redemption (host, digest, nonce, purpose, invitee, source, used_at) \
	VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)";

const REDEMPTIONS: &str = "SELECT nonce, purpose, invitee, source, used_at FROM redemption WHERE host = ?1 AND digest = ?2 \
	ORDER BY used_at, nonce";

/// There is no index for it.
const IS_NAMED: &str =
	"SELECT 1 FROM redemption WHERE host = ?1 AND purpose = 'account' AND invitee = ?2 LIMIT 1";

/// Whether somebody became a contact by an invite, or is a local user who was registered with it.
pub(super) const IS_KNOWN: &str = "SELECT 1 FROM redemption WHERE host = ?1 AND digest = ?2 AND purpose = 'contact' AND invitee = ?3 \
	UNION ALL SELECT 1 FROM lineage WHERE host = ?1 AND username = ?4 AND digest = ?2";

/// Who brought an account.
pub const LINEAGE: &str =
	"SELECT username, inviter, digest, joined_at FROM lineage WHERE host = ?1 AND username = ?2";

pub(super) const BROUGHT_BY: &str = "SELECT username, inviter, digest, joined_at FROM lineage INDEXED BY lineage_inviter \
	WHERE host = ?1 AND inviter = ?2 ORDER BY username";

/// Keeps who brought an account.
pub const BROUGHT: &str = "INSERT INTO lineage (host, username, inviter, digest, joined_at) VALUES (?1, ?2, ?3, ?4, ?5) \
	ON CONFLICT (host, username) DO UPDATE SET inviter = ?3, digest = ?4, joined_at = ?5";

macro_rules! endings {
	($rest:literal) => {
		concat!(
			"SELECT username, scope, at, made_until, revoked_why, revoked_by, ended, due FROM ending ",
			$rest
		)
	};
}

pub(super) const ENDINGS_OF: &str = endings!("WHERE host = ?1 AND username = ?2");

pub(super) const ENDINGS_DUE: &str = endings!("WHERE host = ?1 AND due <= ?2 ORDER BY due LIMIT ?3");

const PUT_ENDING: &str = "INSERT INTO ending (host, username, scope, at, made_until, revoked_why, revoked_by, ended, due) \
	VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9) ON CONFLICT (host, username, scope) DO UPDATE SET at = ?4, \
	made_until = ?5, revoked_why = ?6, revoked_by = ?7, ended = ?8, due = ?9";

const REMOVE_ENDING: &str = "DELETE FROM ending WHERE host = ?1 AND username = ?2 AND scope = ?3";

const ALONE: &str = "DELETE FROM lineage WHERE host = ?1 AND username = ?2";

/// What goes into a statement.
#[derive(Clone, Copy, Debug)]
pub(super) enum Param<'a> {
	Null,
	Text(&'a str),
	Bytes(&'a [u8]),
	Number(i64),
	Flag(bool),
}

macro_rules! params {
	($($given:ty, $value:ident => $param:expr;)*) => {
		$(impl<'a> From<$given> for Param<'a> {
			fn from($value: $given) -> Self {
				$param
			}
		})*
	};
}

params! {
	&'a str, text => Self::Text(text);
	&'a Digest, digest => Self::Bytes(digest.as_bytes());
	&'a Nonce, nonce => Self::Bytes(nonce.as_bytes());
	i64, number => Self::Number(number);
	u32, number => Self::Number(number.into());
	bool, flag => Self::Flag(flag);
}

impl<T: Into<Self>> From<Option<T>> for Param<'_> {
	fn from(value: Option<T>) -> Self {
		value.map_or(Self::Null, Into::into)
	}
}

/// What comes out of one: the columns of a row by their number.
pub(super) trait Columns {
	fn text(&self, column: usize) -> Result<Option<&str>, TxError>;
	fn number(&self, column: usize) -> Result<Option<i64>, TxError>;
	fn bytes(&self, column: usize) -> Result<&[u8], TxError>;
	fn flag(&self, column: usize) -> Result<bool, TxError>;
}

/// What becomes of rows that somebody else has locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Locked {
	/// They are read as they are: these need no lock.
	Read,
	/// They are waited for.
	Awaited,
	/// They are left out.
	LeftOut,
}

/// Told of each row, and of which list of parameters it comes.
pub(super) type Each<'a> = &'a mut dyn FnMut(usize, &dyn Columns) -> Result<(), TxError>;

/// The database in one transaction.
pub(super) trait Engine {
	/// What a part of the history shows: `?2` and `?3` are a position, `?4` is the limit and `?5` the moment.
	const HISTORY_PART: &'static str;

	/// What is bound to a username: [`BOUND`], in the order of digests where rows are locked.
	const BOUND: &'static str;

	/// Runs a statement with one list of parameters after the other.
	fn query(
		&mut self,
		text: &'static str,
		locked: Locked,
		lists: &[&[Param<'_>]],
		each: Each<'_>,
	) -> Result<(), TxError>;

	/// Runs a statement of which nothing has to be known. It may be sent later, but before all that follows it.
	fn change(&mut self, text: &'static str, params: &[Param<'_>]) -> Result<(), TxError>;

	/// As of [`Rows::life`].
	fn life(&mut self, boot: &Nonce) -> Result<Life, TxError>;
}

/// The rows of a host in a database.
pub(super) struct SqlRows<'a, E> {
	pub(super) engine: E,
	pub(super) host: &'a str,
}

impl<E: Engine> SqlRows<'_, E> {
	fn all<T>(
		&mut self,
		text: &'static str,
		locked: Locked,
		params: &[Param<'_>],
		read: impl Fn(&dyn Columns) -> Result<T, TxError>,
	) -> Result<Vec<T>, TxError> {
		self.all_of(text, locked, &[params], |_, row| read(row))
	}

	fn all_of<T>(
		&mut self,
		text: &'static str,
		locked: Locked,
		lists: &[&[Param<'_>]],
		read: impl Fn(usize, &dyn Columns) -> Result<T, TxError>,
	) -> Result<Vec<T>, TxError> {
		let mut found = Vec::new();
		self.engine.query(text, locked, lists, &mut |list, row| {
			found.push(read(list, row)?);
			Ok(())
		})?;
		Ok(found)
	}

	/// What a statement finds for each of some keys, and for which of them.
	fn of_each<'k, T>(
		&mut self,
		text: &'static str,
		locked: Locked,
		keys: impl Iterator<Item = Param<'k>>,
		read: impl Fn(usize, &dyn Columns) -> Result<T, TxError>,
	) -> Result<Vec<T>, TxError> {
		let host = Param::Text(self.host);
		let lists: Vec<[Param<'_>; 2]> = keys.map(|key| [host, key]).collect();
		let lists: Vec<&[Param<'_>]> = lists.iter().map(<[_; 2]>::as_slice).collect();
		self.all_of(text, locked, &lists, read)
	}

	fn pick(&mut self, pick: Pick<'_>, limit: u32, is_locking: bool) -> Result<Vec<Invite>, TxError> {
		let (awaited, left_out) =
			if is_locking { (Locked::Awaited, Locked::LeftOut) } else { (Locked::Read, Locked::Read) };
		let name = self.host;
		let host = Param::Text(name);
		let mut all =
			|text, locked, params: &[Param<'_>]| self.all(text, locked, params, |row| read_invite(name, row));
		let mut found = match pick {
			Pick::Bound(username) => all(E::BOUND, awaited, &[host, username.into()]),
			Pick::Tied(tie, until) => {
				let (text, name) = match tie {
					Tie::MadeBy(name) => (MADE_BY, name),
					Tie::ContactOf(name) => (CONTACT_OF, name),
					Tie::ResetOf(name) => (RESET_OF, name),
				};
				all(text, left_out, &[host, name.into(), until.into(), limit.into()])
			}
			Pick::AllOfInviter(inviter) => all(ALL_OF_INVITER, awaited, &[host, inviter.into()]),
			Pick::Due(now) => all(DUE, left_out, &[host, now.into(), limit.into()]),
			Pick::Open(after) => all(OPEN, awaited, &[host, following(after), limit.into()]),
			Pick::All(after) => all(ALL, awaited, &[host, following(after), limit.into()]),
			Pick::Part(part, after, now) => {
				let params = [host, after.at.into(), (&after.digest).into(), limit.into(), now.into()];
				match part {
					Part::Open => all(OPEN_PART, Locked::Read, &params[..4]),
					Part::History => all(E::HISTORY_PART, Locked::Read, &params),
				}
			}
			Pick::Over(digests, before) => {
				let digests = digests.iter().map(Param::from);
				let mut over = self.of_each(FIND, left_out, digests, |_, row| read_invite(name, row))?;
				over.retain(|invite| invite.ended_at.is_some_and(|ended_at| ended_at < before));
				Ok(over)
			}
			Pick::These(digests) => {
				let digests = digests.iter().map(Param::from);
				self.of_each(FIND, awaited, digests, |_, row| read_invite(name, row))
			}
		}?;
		found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
		Ok(found)
	}
}

impl<E: Engine> Rows for SqlRows<'_, E> {
	fn invite(&mut self, digest: &Digest) -> Result<Option<Invite>, TxError> {
		let (host, mut found) = (self.host, None);
		self.engine.query(FIND, Locked::Awaited, &[&[host.into(), digest.into()]], &mut |_, row| {
			found = Some(read_invite(host, row)?);
			Ok(())
		})?;
		Ok(found)
	}

	fn invites(&mut self, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError> {
		self.pick(pick, limit, true)
	}

	fn peek(&mut self, pick: Pick<'_>, limit: u32) -> Result<Vec<Invite>, TxError> {
		self.pick(pick, limit, false)
	}

	fn over(&mut self, before: Timestamp, limit: u32) -> Result<Vec<(Digest, Option<Timestamp>)>, TxError> {
		let params = [self.host.into(), before.into(), limit.into()];
		self.all(OVER, Locked::Read, &params, |row| Ok((digest(row, 0)?, row.number(1)?)))
	}

	fn count_open(&mut self, after: &Position, limit: u32) -> Result<(u32, Option<Position>), TxError> {
		let params = [self.host.into(), after.at.into(), (&after.digest).into(), limit.into()];
		let (mut count, mut last) = (0, None);
		self.engine.query(COUNT_OPEN, Locked::Read, &[&params], &mut |_, row| {
			count += 1;
			if count == limit {
				last = Some(Position { at: some(row.number(0)?)?, digest: digest(row, 1)? });
			}
			Ok(())
		})?;
		Ok((count, last))
	}

	fn insert(&mut self, invites: &[&Invite]) -> Result<Vec<bool>, TxError> {
		let rows = invites.iter().map(|invite| Encoded::of_new(invite)).collect::<Result<Vec<_>, _>>()?;
		let lists: Vec<_> = rows.iter().map(|row| row.all()).collect();
		let lists: Vec<&[Param<'_>]> = lists.iter().map(<[_; 18]>::as_slice).collect();
		let mut are_new = vec![false; invites.len()];
		self.engine.query(INSERT, Locked::Read, &lists, &mut |list, _| {
			are_new[list] = true;
			Ok(())
		})?;
		Ok(are_new)
	}

	fn update(&mut self, invites: &[Invite]) -> Result<(), TxError> {
		for invite in invites {
			self.engine.change(UPDATE, &Encoded::of(invite)?.changing())?;
		}
		Ok(())
	}

	fn remove(&mut self, digests: &[Digest]) -> Result<(), TxError> {
		for digest in digests {
			for text in [PURGE_REDEMPTIONS, PURGE] {
				self.engine.change(text, &[self.host.into(), digest.into()])?;
			}
		}
		Ok(())
	}

	fn count_made(
		&mut self,
		inviter: &str,
		after: Option<Timestamp>,
		limit: u32,
		now: Timestamp,
	) -> Result<u32, TxError> {
		let text = if after.is_some() { COUNT_MADE_AFTER } else { COUNT_MADE };
		let params: [Param<'_>; 5] =
			[self.host.into(), inviter.into(), now.into(), limit.into(), after.into()];
		let params = if after.is_some() { &params[..] } else { &params[..4] };
		let count = self.all(text, Locked::Read, params, |row| some(row.number(0)?))?;
		Ok(count.first().map_or(0, |count| u32::try_from(*count).unwrap_or(u32::MAX)))
	}

	fn newest_made(&mut self, inviter: &str, limit: u32) -> Result<Vec<Timestamp>, TxError> {
		let params = [self.host.into(), inviter.into(), limit.into()];
		self.all(NEWEST_OF_INVITER, Locked::Read, &params, |row| some(row.number(0)?))
	}

	fn endings(&mut self, which: Endings<'_>) -> Result<Vec<Ending>, TxError> {
		let host = Param::Text(self.host);
		match which {
			Endings::Of(usernames) => {
				let lists: Vec<[Param<'_>; 2]> =
					usernames.iter().map(|username| [host, username.as_str().into()]).collect();
				let lists: Vec<&[Param<'_>]> = lists.iter().map(<[_; 2]>::as_slice).collect();
				self.all_of(ENDINGS_OF, Locked::Read, &lists, |_, row| read_ending(row))
			}
			Endings::Due(now, limit) => {
				self.all(ENDINGS_DUE, Locked::LeftOut, &[host, now.into(), limit.into()], read_ending)
			}
		}
	}

	fn put_ending(&mut self, ending: &Ending) -> Result<(), TxError> {
		let params = [
			self.host.into(),
			ending.username.as_str().into(),
			ending.scope.as_str().into(),
			ending.at.into(),
			ending.made_until.into(),
			ending.why.as_deref().into(),
			ending.by.as_deref().into(),
			ending.ended.into(),
			ending.due.into(),
		];
		self.engine.change(PUT_ENDING, &params)
	}

	fn remove_ending(&mut self, ending: &Ending) -> Result<(), TxError> {
		let params = [self.host.into(), ending.username.as_str().into(), ending.scope.as_str().into()];
		self.engine.change(REMOVE_ENDING, &params)
	}

	fn claims(&mut self) -> Result<Vec<Claim>, TxError> {
		let host = self.host;
		self.all(CLAIMS, Locked::Read, &[host.into()], |row| read_claim(host, row))
	}

	fn insert_claim(&mut self, claim: &Claim) -> Result<(), TxError> {
		let params = [
			self.host.into(),
			(&claim.nonce).into(),
			(&claim.digest).into(),
			claim.purpose.as_str().into(),
			claim.invitee.as_deref().into(),
			(&claim.boot).into(),
			claim.made_at.into(),
			claim.renewals.into(),
		];
		self.engine.change(CLAIM, &params)
	}

	fn take_claims(&mut self, nonces: &[Nonce]) -> Result<Vec<Claim>, TxError> {
		let host = self.host;
		let nonces = nonces.iter().map(Param::from);
		self.of_each(TAKE_CLAIM, Locked::Read, nonces, |_, row| read_claim(host, row))
	}

	fn renew_claim(&mut self, nonce: &Nonce) -> Result<bool, TxError> {
		let params = [self.host.into(), nonce.into()];
		Ok(!self.all(RENEW, Locked::Read, &params, |_| Ok(()))?.is_empty())
	}

	fn life(&mut self, boot: &Nonce) -> Result<Life, TxError> {
		self.engine.life(boot)
	}

	fn redemptions(&mut self, digests: &[Digest]) -> Result<Vec<(Digest, Redemption)>, TxError> {
		self.of_each(REDEMPTIONS, Locked::Read, digests.iter().map(Param::from), |list, row| {
			Ok((digests[list], read_redemption(&digests[list], row)?))
		})
	}

	fn insert_redemption(&mut self, digest: &Digest, redemption: &Redemption) -> Result<(), TxError> {
		let params = [
			self.host.into(),
			digest.into(),
			(&redemption.nonce).into(),
			redemption.purpose.as_str().into(),
			redemption.invitee.as_deref().into(),
			redemption.source.as_deref().into(),
			redemption.used_at.into(),
		];
		self.engine.change(REDEMPTION, &params)
	}

	fn is_named(&mut self, username: &str) -> Result<bool, TxError> {
		let params = [self.host.into(), username.into()];
		Ok(!self.all(IS_NAMED, Locked::Read, &params, |_| Ok(()))?.is_empty())
	}

	fn is_known(&mut self, digest: &Digest, jid: &str, username: Option<&str>) -> Result<bool, TxError> {
		let params = [self.host.into(), digest.into(), jid.into(), username.into()];
		Ok(!self.all(IS_KNOWN, Locked::Read, &params, |_| Ok(()))?.is_empty())
	}

	fn members(&mut self, which: Members<'_>) -> Result<Vec<Member>, TxError> {
		let (text, name) = match which {
			Members::Of(username) => (LINEAGE, username),
			Members::BroughtBy(inviter) => (BROUGHT_BY, inviter),
		};
		self.all(text, Locked::Read, &[self.host.into(), name.into()], |row| {
			Ok(Member {
				username: owned(row, 0)?,
				inviter: owned(row, 1)?,
				digest: digest(row, 2)?,
				joined_at: row.number(3)?,
			})
		})
	}

	fn put_member(&mut self, member: &Member) -> Result<(), TxError> {
		let params = [
			self.host.into(),
			member.username.as_str().into(),
			member.inviter.as_str().into(),
			(&member.digest).into(),
			member.joined_at.into(),
		];
		self.engine.change(BROUGHT, &params)
	}

	fn remove_member(&mut self, username: &str) -> Result<(), TxError> {
		self.engine.change(ALONE, &[self.host.into(), username.into()])
	}
}

/// An invite, as far as its row holds it in another form.
pub(super) struct Encoded<'a> {
	invite: &'a Invite,
	fields: Option<Cow<'a, str>>,
	inviter: Option<String>,
}

impl<'a> Encoded<'a> {
	pub(super) fn of(invite: &'a Invite) -> Result<Self, StoreError> {
		let fields = invite.fields.stored().map_err(|error| StoreError::damaged(&invite.digest, error))?;
		Ok(Self { invite, fields, inviter: None })
	}

	/// The same of one that is new.
	pub(super) fn of_new(invite: &'a Invite) -> Result<Self, StoreError> {
		Ok(Self { inviter: invite.local_inviter(), ..Self::of(invite)? })
	}

	/// The parameters of [`UPDATE`].
	fn changing(&self) -> [Param<'_>; 11] {
		let invite = self.invite;
		[
			invite.host.as_str().into(),
			(&invite.digest).into(),
			invite.token.as_ref().map(Token::reveal).into(),
			invite.expires.into(),
			invite.uses.into(),
			invite.paused.into(),
			invite.revoked_at.into(),
			invite.revoked_why.as_deref().into(),
			invite.revoked_by.as_deref().into(),
			invite.ended_at.into(),
			self.fields.as_deref().into(),
		]
	}

	/// The parameters of [`CREATE`] and [`INSERT`], of one that is new: the same, and what never changes.
	pub(super) fn all(&self) -> [Param<'_>; 18] {
		let invite = self.invite;
		let constant = [
			invite.invite_type.as_str().into(),
			invite.kind().as_str().into(),
			invite.username.as_deref().into(),
			invite.allow_registration.into(),
			invite.created_at.into(),
			invite.max_uses.into(),
			self.inviter.as_deref().into(),
		];
		let mut all = [Param::Null; 18];
		for (place, param) in all.iter_mut().zip(self.changing().into_iter().chain(constant)) {
			*place = param;
		}
		all
	}
}

/// Every digest follows the empty one.
fn following(digest: Option<&Digest>) -> Param<'_> {
	digest.map_or(Param::Bytes(&[]), Param::from)
}

/// Reads what [`select`] selects.
fn read_invite(host: &str, row: &dyn Columns) -> Result<Invite, TxError> {
	let digest = digest(row, 0)?;
	let count = |found: i64| u32::try_from(found).map_err(|error| StoreError::damaged(&digest, error));
	let token = row.text(1)?.map(|token| Token::from_stored(token.to_owned()));
	let invite_type = row.text(2)?.and_then(Type::from_stored);
	Ok(Invite {
		invite_type: invite_type.ok_or_else(|| StoreError::damaged(&digest, "its type is unknown"))?,
		username: row.text(3)?.map(str::to_owned),
		allow_registration: row.flag(4)?,
		expires: row.number(6)?,
		max_uses: row.number(7)?.map(count).transpose()?,
		uses: count(some(row.number(8)?)?)?,
		paused: row.flag(9)?,
		revoked_at: row.number(10)?,
		revoked_why: row.text(11)?.map(str::to_owned),
		revoked_by: row.text(12)?.map(str::to_owned),
		ended_at: row.number(13)?,
		fields: Fields::from_stored(row.text(14)?),
		..Invite::new(host.to_owned(), digest, token, some(row.number(5)?)?)
	})
}

fn read_ending(row: &dyn Columns) -> Result<Ending, TxError> {
	let scope = row.text(1)?.and_then(Scope::from_stored);
	Ok(Ending {
		username: owned(row, 0)?,
		scope: some(scope)?,
		at: some(row.number(2)?)?,
		made_until: some(row.number(3)?)?,
		why: row.text(4)?.map(str::to_owned),
		by: row.text(5)?.map(str::to_owned),
		ended: u32::try_from(some(row.number(6)?)?).unwrap_or(u32::MAX),
		due: some(row.number(7)?)?,
	})
}

fn read_claim(host: &str, row: &dyn Columns) -> Result<Claim, TxError> {
	let digest = digest(row, 1)?;
	Ok(Claim {
		host: host.to_owned(),
		nonce: nonce(row, 0)?,
		digest,
		purpose: purpose(&digest, row.text(2)?)?,
		invitee: row.text(3)?.map(str::to_owned),
		boot: nonce(row, 4)?,
		made_at: row.number(5)?,
		renewals: some(row.number(6)?)?,
	})
}

fn read_redemption(digest: &Digest, row: &dyn Columns) -> Result<Redemption, TxError> {
	Ok(Redemption {
		nonce: nonce(row, 0)?,
		purpose: purpose(digest, row.text(1)?)?,
		invitee: row.text(2)?.map(str::to_owned),
		source: row.text(3)?.map(str::to_owned),
		used_at: some(row.number(4)?)?,
	})
}

fn purpose(digest: &Digest, word: Option<&str>) -> Result<Purpose, TxError> {
	word.and_then(Purpose::from_stored)
		.ok_or_else(|| StoreError::damaged(digest, "the purpose of its use is unknown").into())
}

fn digest(row: &dyn Columns, column: usize) -> Result<Digest, TxError> {
	bytes(row, column).map(Digest::from_bytes)
}

fn nonce(row: &dyn Columns, column: usize) -> Result<Nonce, TxError> {
	bytes(row, column).map(Nonce::from_bytes)
}

/// A column of bytes whose number the schema checks.
fn bytes<const LENGTH: usize>(row: &dyn Columns, column: usize) -> Result<[u8; LENGTH], TxError> {
	let found = row.bytes(column)?;
	found.try_into().map_err(|_| {
		let source = format!("a column has {} bytes, not {LENGTH}", found.len());
		StoreError::damaged(&Digest::of(found), source).into()
	})
}

fn owned(row: &dyn Columns, column: usize) -> Result<String, TxError> {
	some(row.text(column)?).map(str::to_owned)
}

/// What the schema lets be nothing nowhere.
fn some<T>(value: Option<T>) -> Result<T, TxError> {
	value.ok_or_else(|| TxError::Engine("a column is empty that never is".into()))
}
