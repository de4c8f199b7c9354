-- Stands in for a landing page: says of each invite, before it is stored, what it saw. Loaded beside mod_invites by the
-- option invites_page_module, in prosodyctl too.

local path = prosody.paths.data.."/invites.sqlite3";

module:hook("invite-created", function (invite)
	-- The exit code of this is 0 only if nobody holds the lock that it takes.
	local locked = os.execute(("sqlite3 %s 'BEGIN IMMEDIATE; ROLLBACK;' 2>/dev/null"):format(path));
	local is_free = locked == true or locked == 0;
	invite.landing_page = ("https://example.com/%s?%s"):format(is_free and "free" or "locked", invite.token);
end);
