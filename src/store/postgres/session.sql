-- What every connection sets; $deadline is in milliseconds. Apart from the search path it is all about a server whose
-- client is gone or has given up: what nobody waits for any more must not keep locks.
SET search_path = prosody_invites;
SET statement_timeout = $deadline;
SET idle_in_transaction_session_timeout = $deadline;
-- Sooner, so that an invite that somebody else holds is told from a server that does not answer.
SET lock_timeout = $lock_wait;
-- A link that was shown survives a crash of the server, whatever the database does for others.
SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';
-- A server whose machine is gone is to be noticed within a dozen seconds, for others wait for what it has claimed; and one
-- that has nothing to say is not gone.
SET tcp_keepalives_idle = 5;
SET tcp_keepalives_interval = 2;
SET tcp_keepalives_count = 3;
-- COMPAT PostgreSQL 11 has no tcp_user_timeout, 13 no idle_session_timeout.
SELECT set_config('tcp_user_timeout', '11000', false) WHERE current_setting('tcp_user_timeout', true) IS NOT NULL;
SELECT set_config('idle_session_timeout', '0', false) WHERE current_setting('idle_session_timeout', true) IS NOT NULL;
