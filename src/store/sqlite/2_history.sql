-- Schema 2. Ended invites are listed and purged, and no longer hold their secret.

ALTER TABLE invite ADD COLUMN revoked_by TEXT;  -- a module, or the operator's way in

-- What is open, the newest first.
CREATE INDEX invite_open ON invite (host, created_at, digest) WHERE ended_at IS NULL;

-- What is over, the last ended first; purged from the other end.
CREATE INDEX invite_ended ON invite (host, ended_at, digest) WHERE ended_at IS NOT NULL;

-- Nothing brings these back, so nobody needs their token any more, nor a link that holds it.
UPDATE invite SET fields = replace(fields, token, '(token)'), token = NULL
	WHERE token IS NOT NULL AND (revoked_at IS NOT NULL OR uses >= max_uses);
