-- What every connection sets; $deadline is in milliseconds. Apart from the search path it is all about a server whose
-- client is gone or has given up: what nobody waits for any more must not keep locks.
SET search_path = prosody_invites;
SET statement_timeout = $deadline;
SET idle_in_transaction_session_timeout = $deadline;
-- Sooner, so that an invite that somebody else holds is told from a server that does not answer.
SET lock_timeout = $lock_wait;
-- A link that was shown survives a crash of the server, whatever the database does for others.
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
