-- Schema 4. A claim is settled when its server is proved to be dead; no clock is compared.

ALTER TABLE claim RENAME TO claim_before;

-- An attempt to redeem that is under way. A handful of rows at any time.
CREATE TABLE claim (
	host     TEXT    NOT NULL,
	nonce    BLOB    NOT NULL CHECK (length(nonce) = 16),  -- names the attempt
	digest   BLOB    NOT NULL,                             -- of the invite
	purpose  TEXT    NOT NULL CHECK (purpose IN ('account', 'contact')),
	invitee  TEXT,                                         -- username to be registered, or the contact's bare JID
	boot     BLOB    NOT NULL,                             -- the process that made it
	made_at  INTEGER,                                      -- by the clock of that process; for operators
	renewals INTEGER NOT NULL,                             -- signs of life: counted up for as long as it is under way
	PRIMARY KEY (host, nonce)
) STRICT, WITHOUT ROWID;

-- A lease was of a minute.
INSERT INTO claim (host, nonce, digest, purpose, invitee, boot, made_at, renewals)
	SELECT host, nonce, digest, purpose, invitee, boot, lease_end - 60, 0 FROM claim_before;

DROP TABLE claim_before;
