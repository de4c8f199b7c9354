-- What the bundled mod_invites keeps in the store "invite_token": a row for the host under each token that allows to
-- register (the invite itself), and a row for the inviter under each token that is for a contact (when it expires).

local compat = module:require("compat");

local jid_split = compat.lib("util.jid").split;
local nodeprep = compat.lib("util.encodings").stringprep.nodeprep;

local bundled = {};

local function open()
	local _, driver = compat.lib("core.storagemanager").get_driver(module.host, "invite_token");
	if driver == "memory" then
		return nil, "storage = \"memory\" keeps nothing for another process";
	end
	return module:open_store("invite_token");
end

-- The users that a store has rows for. Some drivers list the host's own rows among them: under "" (SQL), or under a
-- function (memory).
local function users_of(store)
	local users = {};
	for user in store:users() do
		if type(user) == "string" and user ~= "" then table.insert(users, user); end
	end
	return users;
end

-- Makes what is stored for this host equal to these invites, a list. True, or nil and an error: then some of it is
-- written, and writing it again completes it.
function bundled.write(invites)
	local store, err = open();
	if not store then return nil, err; end
	local host_rows, user_rows = {}, {};
	for _, user in ipairs(users_of(store)) do
		user_rows[user] = {};
	end
	for _, invite in ipairs(invites) do
		if invite.allow_registration then
			host_rows[invite.token] = invite;
		end
		if invite.type == "roster" then
			local inviter = jid_split(invite.jid);
			user_rows[inviter] = user_rows[inviter] or {};
			user_rows[inviter][invite.token] = invite.expires;
		end
	end
	user_rows[false] = host_rows;
	for user, rows in pairs(user_rows) do
		local ok;
		ok, err = store:set(user or nil, next(rows) and rows or nil);
		if not ok then return nil, err or "it could not be written"; end
	end
	return true;
end

-- All that is stored for this host, as the library's import_bundled takes it; nil and an error if it cannot be read.
function bundled.read()
	local store, err = module:open_store("invite_token");
	if not store then return nil, err; end
	local host_rows;
	host_rows, err = store:get(nil);
	if err then return nil, err; end

	local entries = {};
	for token, row in pairs(host_rows or {}) do
		local node, host;
		if type(row) == "table" and type(row.jid) == "string" then node, host = jid_split(row.jid); end
		local username = node and nodeprep(node);
		if username then row.jid = username.."@"..host; end
		table.insert(entries, { token = token, row = row, username = username });
	end
	for _, user in ipairs(users_of(store)) do
		local rows;
		rows, err = store:get(user);
		if err then return nil, err; end
		for token, expires in pairs(rows or {}) do
			if not host_rows or not host_rows[token] then
				table.insert(entries, { token = token, username = user, expires = expires });
			end
		end
	end
	return entries;
end

return bundled;
