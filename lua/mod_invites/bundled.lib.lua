-- Prosody's store "invite_token", where the bundled mod_invites keeps its invites. What its rows mean is known to the
-- library alone; this file fetches and puts them. Without a user, rows are those of the host itself.

local protected = module.protected;

local STORE = "invite_token";

local bundled = {};

-- Name of the driver that this host has for the store.
function bundled.driver()
	return protected.driver(module.host, STORE);
end

local function open(host, typ)
	return protected.open(host, STORE, typ);
end

-- Why the storage of a host can never keep invites; nil if it may.
function bundled.unusable(host)
	local store, err, is_final = open(host);
	if not store then return is_final and err or nil; end
	return not store.has_users and "its driver does not list the users of a store" or nil;
end

-- All rows of a host: its own by token, and a table of the rows of each user; or nil and an error. Where there can be
-- no rows, or none of users, so that reading again is no use, the third result says why.
function bundled.read(host)
	local store, err, is_final = open(host);
	if not store then
		if is_final then return {}, {}, err; end
		return nil, err;
	end
	local host_rows;
	host_rows, err = store:get(nil);
	if not store.has_users then
		return not err and host_rows or {}, {}, "the driver of the host's storage does not list the users of a store";
	end
	if err then return nil, err; end
	local users, users_err = store:users();
	if not users then return nil, users_err; end
	local user_rows = {};
	for _, user in ipairs(users) do
		user_rows[user], err = store:get(user);
		if err then return nil, err; end
	end
	return host_rows or {}, user_rows;
end

-- The rows under these tokens, by token.
function bundled.get(host, user, tokens)
	if #tokens > 1 then
		local store, err = open(host);
		if not store then return nil, err; end
		local rows;
		rows, err = store:get(user);
		if err then return nil, err; end
		return rows or {};
	end
	local store, err = open(host, "map");
	if not store then return nil, err; end
	local row;
	row, err = store:get(user, tokens[1]);
	if err then return nil, err; end
	return { [tokens[1]] = row };
end

-- Puts rows under their tokens, and deletes those that are false; true, or nil and an error.
function bundled.write(host, user, rows)
	local token, row = next(rows);
	local ok, err;
	if next(rows, token) == nil then
		local store;
		store, err = open(host, "map");
		if not store then return nil, err; end
		ok, err = store:set(user, token, row or nil);
	else
		-- With a key at a time, some drivers would write a whole file for each.
		local store, all;
		store, err = open(host);
		if not store then return nil, err; end
		all, err = store:get(user);
		if err then return nil, err; end
		all = all or {};
		for each, value in pairs(rows) do all[each] = value or nil; end
		ok, err = store:set(user, next(all) and all or nil);
	end
	if not ok then return nil, err or "it could not be written"; end
	return true;
end

-- Makes the rows of a host equal to these, as read() returns them. True, or nil and an error: then some of it is
-- written, and writing it again completes it.
function bundled.replace(host, host_rows, user_rows)
	local store, err = open(host);
	if not store then return nil, err; end
	if not store.has_users then return nil, "its driver does not list the users of a store"; end
	local users;
	users, err = store:users();
	if not users then return nil, err; end
	for _, user in ipairs(users) do
		user_rows[user] = user_rows[user] or {};
	end
	user_rows[false] = host_rows;
	for user, rows in pairs(user_rows) do
		local ok;
		ok, err = store:set(user or nil, next(rows) and rows or nil);
		if not ok then return nil, err or "it could not be written"; end
	end
	return true;
end

return bundled;
