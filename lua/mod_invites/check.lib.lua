-- What `prosodyctl mod_invites check` has to know of a host's configuration and of the stores of others. What is wrong
-- with it, the library says.

local compat = module.compat;

local config = compat.lib("core.configmanager");

local check = {};

-- Options that do nothing since Prosody 13.
local OUTDATED = { "allow_user_invites_by_roles", "deny_user_invites_by_roles" };

local function names_of(set)
	local names = {};
	for name in pairs(set) do table.insert(names, tostring(name)); end
	table.sort(names);
	return names;
end

-- How many tokens lie in the store of the bundled module; or an error.
local function count_bundled(host)
	local host_rows, user_rows = module:require("bundled").read(host);
	if not host_rows then return tostring(user_rows); end
	local tokens = {};
	for token in pairs(host_rows) do tokens[token] = true; end
	for _, rows in pairs(user_rows) do
		for token in pairs(rows) do tokens[token] = true; end
	end
	return #names_of(tokens);
end

-- How many tokens lie in the store of mod_invites_tracking; or an error.
local function count_tracked(host)
	local count, err = module:require("lineage").count_tracked(host);
	return count or tostring(err);
end

function check.configuration(host)
	local guard = module:require("guard");
	local modules = {};
	for name in compat.lib("core.modulemanager").get_modules_for_host(host):items() do modules[name] = true; end
	local options = {};
	for _, section in ipairs({ "*", host }) do
		for _, name in ipairs(names_of(config.getconfig()[section] or {})) do table.insert(options, name); end
	end
	local outdated = {};
	for _, name in ipairs(compat.is_13 and OUTDATED or {}) do
		if config.get(host, name) ~= nil then table.insert(outdated, name); end
	end
	local page, supports = config.get(host, "invites_page"), nil;
	if type(config.get(host, "invites_page_supports")) == "table" then
		supports = {};
		for i, kind in ipairs(config.get(host, "invites_page_supports")) do supports[i] = tostring(kind); end
	end
	local page_module, expiry = config.get(host, "invites_page_module"), config.get(host, "invite_expiry");
	local is_expiry_known = not expiry or expiry == "never" or tonumber(expiry) ~= nil;
	return {
		options = options, outdated = outdated, modules = names_of(modules);
		disabled = names_of(guard.disabled_modules(host));
		page = type(page) == "string" and page or nil, page_supports = supports;
		page_module = page_module and tostring(page_module) or nil;
		expiry = not is_expiry_known and tostring(expiry) or nil;
		allows_registration = config.get(host, "allow_registration") == true;
		is_open = config.get(host, "registration_invite_only") == false;
		is_invite_only = guard.is_invite_only(host);
		bundled = config.get(host, "invite_storage") ~= "prosody" and count_bundled(host) or nil;
		tracked = config.get(host, "invite_token_at_rest") == "digest" and count_tracked(host) or nil;
	};
end

return check;
