-- Schema 4. A claim is settled when its server is proved to be dead; no clock is compared.

-- When it was made, by the clock of its server; for operators. A lease was of a minute.
ALTER TABLE claim ADD COLUMN made_at BIGINT;
UPDATE claim SET made_at = lease_end - 60;

-- Signs of life: counted up for as long as the attempt is under way.
ALTER TABLE claim ADD COLUMN renewals BIGINT NOT NULL DEFAULT 0;
ALTER TABLE claim DROP COLUMN lease_end;
