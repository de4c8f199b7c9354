-- Schema 1. Keys carry the host: all virtual hosts of a server share the file. Times are unix seconds.

-- The digest is random, so is the order of rows; a create writes about three pages, two of them in the indexes below.
CREATE TABLE invite (
	host               TEXT    NOT NULL,
	digest             BLOB    NOT NULL CHECK (length(digest) = 32),  -- SHA-256 of the token
	token              TEXT,                                          -- the secret, where it is kept
	type               TEXT    NOT NULL CHECK (type IN ('register', 'roster')),
	kind               TEXT    NOT NULL CHECK (kind IN ('account', 'contact', 'group', 'reset')),
	username           TEXT,                                          -- roster: the inviter; register: the bound name
	allow_registration INTEGER NOT NULL CHECK (allow_registration IN (0, 1)),
	created_at         INTEGER NOT NULL,
	expires            INTEGER,                                       -- NULL: never
	max_uses           INTEGER CHECK (max_uses > 0),                  -- NULL: any number
	uses               INTEGER NOT NULL DEFAULT 0,
	paused             INTEGER NOT NULL DEFAULT 0 CHECK (paused IN (0, 1)),
	revoked_at         INTEGER,
	revoked_why        TEXT,
	ended_at           INTEGER,                                       -- used up, revoked, or seen to have expired
	fields             TEXT,                                          -- JSON, see src/value.rs
	PRIMARY KEY (host, digest)
) STRICT, WITHOUT ROWID;

-- Who invited, whose name is reserved, whose password is to be reset. Most invites have no name and cost nothing here.
CREATE INDEX invite_name ON invite (host, username) WHERE username IS NOT NULL AND ended_at IS NULL;

-- What expires next.
CREATE INDEX invite_due ON invite (host, expires) WHERE expires IS NOT NULL AND ended_at IS NULL;

-- An attempt to redeem that is under way. A handful of rows at any time.
CREATE TABLE claim (
	host      TEXT    NOT NULL,
	nonce     BLOB    NOT NULL CHECK (length(nonce) = 16),  -- names the attempt
	digest    BLOB    NOT NULL,                             -- of the invite
	purpose   TEXT    NOT NULL CHECK (purpose IN ('account', 'contact')),
	invitee   TEXT,                                         -- username to be registered, or the contact's bare JID
	boot      BLOB    NOT NULL,                             -- the process that made it
	lease_end INTEGER NOT NULL,                             -- after this somebody else may settle it
	PRIMARY KEY (host, nonce)
) STRICT, WITHOUT ROWID;

-- Who redeemed what.
CREATE TABLE redemption (
	host    TEXT    NOT NULL,
	digest  BLOB    NOT NULL,
	nonce   BLOB    NOT NULL,  -- of the claim: a second attempt to redeem it recognises the first
	purpose TEXT    NOT NULL,
	invitee TEXT,
	source  TEXT,              -- the module that said so
	used_at INTEGER NOT NULL,
	PRIMARY KEY (host, digest, nonce)
) STRICT, WITHOUT ROWID;
