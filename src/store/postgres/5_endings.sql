-- Schema 5. Many invites of a user end at once, by one row.

-- From `at` on the open invites of a user count as revoked. They are ended in batches afterwards.
CREATE TABLE ending (
	host        TEXT   COLLATE "C" NOT NULL,
	username    TEXT   COLLATE "C" NOT NULL,
	scope       TEXT   NOT NULL CHECK (scope IN ('made', 'depending', 'reset')),
	at          BIGINT NOT NULL,
	made_until  BIGINT NOT NULL,             -- what was made later is spared
	revoked_why TEXT,
	revoked_by  TEXT,
	ended       BIGINT NOT NULL,             -- invites that were ended so far
	due         BIGINT NOT NULL,             -- when somebody goes on with it; later than 0: nothing was left
	PRIMARY KEY (host, username, scope)
);

CREATE INDEX ending_due ON ending (host, due);

-- Whose name is reserved, whose password is to be reset, whose contact one becomes: each found without the others.
DROP INDEX invite_name;
CREATE INDEX invite_user ON invite (host, username, kind, created_at) WHERE username IS NOT NULL AND ended_at IS NULL;

-- How many of somebody's invites are open, and those that were made before a moment.
DROP INDEX invite_inviter_open;
CREATE INDEX invite_inviter_open ON invite (host, inviter, expires, created_at)
	WHERE inviter IS NOT NULL AND ended_at IS NULL;
