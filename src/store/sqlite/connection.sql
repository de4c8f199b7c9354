-- What every connection sets. The benchmark sets its bare SQLite up from this same file.
PRAGMA journal_mode = WAL;
-- FULL: a commit is on the disk before it returns, so a link that was shown survives a power cut.
PRAGMA synchronous = FULL;
-- What is taken out of an invite, its token before all, is gone from the file too.
PRAGMA secure_delete = ON;
-- A database that somebody else wrote cannot make us run functions hidden in its schema.
PRAGMA trusted_schema = OFF;
