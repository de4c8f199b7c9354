-- Schema 3. Whether a commit took place is known though its answer was lost.

-- One row for each server that writes: the last of its attempts that was committed.
CREATE TABLE outcome (
	writer  BYTEA       PRIMARY KEY CHECK (octet_length(writer) = 16),  -- the server
	attempt BIGINT      NOT NULL,                                       -- counted by it
	at      TIMESTAMPTZ NOT NULL DEFAULT now()                          -- when: rows of servers that are gone are deleted
);
