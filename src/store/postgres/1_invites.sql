-- Schema 1. Everything stands in a schema of PostgreSQL's that is named prosody_invites, apart from what else the
-- database is used for. Keys carry the host. Times are unix seconds. Text is compared byte by byte.

CREATE TABLE invite (
	host               TEXT    COLLATE "C" NOT NULL,
	digest             BYTEA   NOT NULL CHECK (octet_length(digest) = 32),  -- SHA-256 of the token
	token              TEXT,                                                -- the secret, where it is kept
	type               TEXT    NOT NULL CHECK (type IN ('register', 'roster')),
	kind               TEXT    NOT NULL CHECK (kind IN ('account', 'contact', 'group', 'reset')),
	username           TEXT    COLLATE "C",                                 -- roster: the inviter; register: the bound name
	allow_registration BOOLEAN NOT NULL,
	created_at         BIGINT  NOT NULL,
	expires            BIGINT,                                              -- NULL: never
	max_uses           BIGINT  CHECK (max_uses > 0),                        -- NULL: any number
	uses               BIGINT  NOT NULL DEFAULT 0,
	paused             BOOLEAN NOT NULL DEFAULT FALSE,
	revoked_at         BIGINT,
	revoked_why        TEXT,
	revoked_by         TEXT,                                                -- a module, or the operator's way in
	ended_at           BIGINT,                                              -- used up, revoked, or seen to have expired
	fields             TEXT,                                                -- JSON, see src/value.rs
	inviter            TEXT    COLLATE "C",                                 -- the local user who made it
	PRIMARY KEY (host, digest)
);

-- Who invited, whose name is reserved, whose password is to be reset.
CREATE INDEX invite_name ON invite (host, username) WHERE username IS NOT NULL AND ended_at IS NULL;

-- What expires next, and what has expired without being noted.
CREATE INDEX invite_due ON invite (host, expires, digest) WHERE expires IS NOT NULL AND ended_at IS NULL;

-- What is open, the newest first.
CREATE INDEX invite_open ON invite (host, created_at, digest) WHERE ended_at IS NULL;

-- What is over, the last ended first; purged from the other end.
CREATE INDEX invite_ended ON invite (host, ended_at, digest) WHERE ended_at IS NOT NULL;

-- How many somebody has made of late, and what became of them.
CREATE INDEX invite_inviter ON invite (host, inviter, created_at) WHERE inviter IS NOT NULL;

-- How many of them are open.
CREATE INDEX invite_inviter_open ON invite (host, inviter, expires) WHERE inviter IS NOT NULL AND ended_at IS NULL;

-- An attempt to redeem that is under way. A handful of rows at any time.
CREATE TABLE claim (
	host      TEXT   COLLATE "C" NOT NULL,
	nonce     BYTEA  NOT NULL CHECK (octet_length(nonce) = 16),  -- names the attempt
	digest    BYTEA  NOT NULL,                                   -- of the invite
	purpose   TEXT   NOT NULL CHECK (purpose IN ('account', 'contact')),
	invitee   TEXT   COLLATE "C",                                -- username to be registered, or the contact's bare JID
	boot      BYTEA  NOT NULL,                                   -- the process that made it
	lease_end BIGINT NOT NULL,                                   -- after this somebody else may settle it
	PRIMARY KEY (host, nonce)
);

-- Who redeemed what.
CREATE TABLE redemption (
	host    TEXT   COLLATE "C" NOT NULL,
	digest  BYTEA  NOT NULL,
	nonce   BYTEA  NOT NULL,  -- of the claim: a second attempt to redeem it recognises the first
	purpose TEXT   NOT NULL,
	invitee TEXT,
	source  TEXT,             -- the module that said so
	used_at BIGINT NOT NULL,
	PRIMARY KEY (host, digest, nonce)
);

-- Whether somebody became a contact by an invite, and gets in again.
CREATE INDEX redemption_contact ON redemption (host, digest, invitee) WHERE purpose = 'contact';

-- Who invited whom: outlives the invites, which are purged.
CREATE TABLE lineage (
	host      TEXT   COLLATE "C" NOT NULL,
	username  TEXT   COLLATE "C" NOT NULL,                        -- of the account that was brought
	inviter   TEXT   COLLATE "C" NOT NULL,                        -- by this one
	digest    BYTEA  NOT NULL CHECK (octet_length(digest) = 32),  -- with this invite
	joined_at BIGINT,                                             -- NULL: not known
	PRIMARY KEY (host, username)
);

CREATE INDEX lineage_inviter ON lineage (host, inviter);
