-- Schema 2 too. Who invites is limited, and known afterwards.

-- The local user who made it: of a roster invite its username, of others what modules wrote down as the source. As
-- src/invite.rs says.
ALTER TABLE invite ADD COLUMN inviter TEXT;

UPDATE invite SET inviter = username WHERE type = 'roster';

WITH made AS (
	SELECT host AS of, digest AS made, json_extract(fields, '$.additional_data.source') AS source FROM invite
	WHERE type = 'register' AND json_valid(fields)
), named AS (
	SELECT of, made, substr(source, 1, instr(source || '/', '/') - 1) AS jid FROM made
	WHERE typeof(source) = 'text'
)
UPDATE invite SET inviter = (
	SELECT substr(jid, 1, instr(jid, '@') - 1) FROM named WHERE of = host AND made = digest
) WHERE (host, digest) IN (
	SELECT of, made FROM named WHERE instr(jid, '@') > 1 AND substr(jid, instr(jid, '@') + 1) = of
);

-- How many somebody has made of late, and what became of them.
CREATE INDEX invite_inviter ON invite (host, inviter, created_at) WHERE inviter IS NOT NULL;

-- How many of them are open.
CREATE INDEX invite_inviter_open ON invite (host, inviter, expires) WHERE inviter IS NOT NULL AND ended_at IS NULL;

-- Who invited whom: outlives the invites, which are purged.
CREATE TABLE lineage (
	host      TEXT NOT NULL,
	username  TEXT NOT NULL,  -- of the account that was brought
	inviter   TEXT NOT NULL,  -- by this one
	digest    BLOB NOT NULL CHECK (length(digest) = 32),  -- with this invite
	joined_at INTEGER,        -- NULL: not known
	PRIMARY KEY (host, username)
) STRICT, WITHOUT ROWID;

CREATE INDEX lineage_inviter ON lineage (host, inviter);

-- SQLite keeps, of the rows that max() does not decide between, that of the greatest one.
INSERT INTO lineage (host, username, inviter, digest, joined_at)
	SELECT host, invitee, inviter, digest, max(used_at) FROM redemption JOIN invite USING (host, digest)
	WHERE purpose = 'account' AND kind <> 'reset' AND invitee IS NOT NULL
	GROUP BY host, invitee
	HAVING inviter IS NOT NULL;
