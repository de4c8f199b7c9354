-- Who invited whom according to mod_invites_tracking, which wrote it down before this module did: in its store
-- "invites_tracking", for each new user { invite_id = the token, invite_source = who made the invite }.

local compat = module.compat;
local protected = module.protected;

local lineage = {};

-- Users in one batch, and seconds between two of them: each is a read of a file, and nobody else is to wait.
local BATCH, PAUSE = 20, 0.1;

-- Seconds until the store is opened again, if that failed.
local RETRY = 60;

-- The users of a host whom it knows, and its store; or nil and an error. None where there can be none.
local function tracked_users(host)
	local store, err, is_final = protected.open(host, "invites_tracking");
	if not store then
		if is_final then return {}; end
		return nil, err;
	end
	local users = {};
	if store.has_users then
		users, err = store:users();
		if not users then return nil, err; end
	end
	local usernames = {};
	-- That module keeps its own notes under " ".
	for _, username in ipairs(users) do
		if username:match("%S") then table.insert(usernames, username); end
	end
	return usernames, store;
end

-- How many tokens lie there; or nil and an error.
function lineage.count_tracked(host)
	local usernames, store = tracked_users(host);
	if not usernames then return nil, store; end
	local count = 0;
	for _, username in ipairs(usernames) do
		local tracked, err = store:get(username);
		if err then return nil, err; end
		if tracked and tracked.invite_id then count = count + 1; end
	end
	return count;
end

-- Hands lists of { username, source, token, joined_at } to `import` until all have been read. Nothing is changed there.
-- `report` is told what cannot be read.
function lineage.import_tracked(import, report)
	local usernames, store;

	local function next_batch()
		local entries = {};
		for _ = 1, BATCH do
			local username = table.remove(usernames);
			if not username then break; end
			local tracked, err = store:get(username);
			if err then
				report(("who invited %s could not be read from the store of mod_invites_tracking: %s"):format(username, err));
			elseif tracked and type(tracked.invite_source) == "string" and type(tracked.invite_id) == "string" then
				table.insert(entries, {
					username = username, source = tracked.invite_source, token = tracked.invite_id;
					joined_at = compat.account_created(username);
				});
			end
		end
		if entries[1] then import(entries); end
		return usernames[1] and PAUSE or nil;
	end

	protected.timer(0, "Taking over who invited whom from mod_invites_tracking", function ()
		if usernames then return next_batch(); end
		usernames, store = tracked_users(module.host);
		if not usernames then
			report("the store of mod_invites_tracking cannot be read: "..tostring(store));
			return RETRY;
		end
		return next_batch();
	end);
end

return lineage;
