-- COMPAT: what differs between the Prosody versions that mod_invites runs on (0.11, 0.12, 13.0), in one place.

local compat = {};

-- Prosody 13.0 calls its libraries "prosody.util.x", the versions before it "util.x". Up to now the short name is good
-- for all; a name that leads nowhere would take Lua through dozens of directories.
function compat.lib(name)
	local found, lib = pcall(require, name);
	if found then return lib; end
	return require("prosody."..name);
end

-- Whether this is prosodyctl and not the server. 0.11 does not say it; there, only the server can be shut down.
compat.is_prosodyctl = prosody.process_type == "prosodyctl" or not prosody.process_type and not prosody.shutdown;

compat.unpack = rawget(table, "unpack") or rawget(_G, "unpack");

compat.is_13 = pcall(require, "prosody.util.roles");

local usermanager = compat.lib("core.usermanager");

local REGISTERED = "prosody:registered";

-- Roles as the running version's mod_invites_register hands them to a new account: a map up to 0.12, since then a list
-- that begins with the primary role. Invites may hold either, whichever version made them.
function compat.roles(roles)
	if type(roles) ~= "table" then return roles; end
	if compat.is_13 then return compat.list_roles(roles); end
	if roles[1] == nil then return roles; end
	local map = {};
	for _, role in ipairs(roles) do map[role] = true; end
	return map;
end

-- Roles as a list, whichever they are.
function compat.list_roles(roles)
	if not roles or roles[1] ~= nil then return roles or {}; end
	local list = {};
	for role, is_granted in pairs(roles) do
		if is_granted and role ~= "prosody:admin" then table.insert(list, role); end
	end
	table.sort(list);
	if roles["prosody:admin"] then table.insert(list, 1, "prosody:admin"); end
	return list;
end

-- Roles as a list without those that this host does not have (since 13.0, where to assign one is an error), and these
-- others. Nothing is left out where nobody can say which roles there are.
function compat.known_roles(roles)
	local get_all_roles = usermanager.get_all_roles; -- since 13.0
	local list = compat.list_roles(roles);
	if not get_all_roles or type(list) ~= "table" then return roles, {}; end
	local ok, registered = module.protected.call("Which roles there are cannot be told, so an invite keeps all of its own",
		get_all_roles, module.host);
	if not ok or type(registered) ~= "table" then return roles, {}; end
	local known, unknown = {}, {};
	for _, role in ipairs(list) do
		table.insert(registered[role] and known or unknown, role);
	end
	if not unknown[1] then return roles, {}; end
	if known[1] and not registered[list[1]] then
		-- The first is the primary role. A secondary one must not become that.
		table.insert(known, 1, module:get_option_string("register_ibr_default_role", REGISTERED));
	end
	return known, unknown;
end

-- Whether anybody on this host has hooked an event. What it would tell need not be put together otherwise.
function compat.is_heard(event_name)
	local handlers = (prosody.hosts[module.host] or prosody).events.get_handlers(event_name);
	return handlers ~= nil and handlers[1] ~= nil;
end


-- Prosody's own providers, whose accounts lie in its own storage.
local INTERNAL = { internal_plain = true, internal_hashed = true };

local accounts;

-- What is known of an account on this host: "active"; "disabled"; "missing", for which there is proof; "not-found" if
-- its provider does not find it, or cannot ask for it; or "unknown", and whether that is because what was asked raised
-- an error. Nothing is taken away but for "missing".
function compat.account_state(username)
	local provider = (prosody.hosts[module.host] or {}).users;
	local is_internal = provider and INTERNAL[provider.name];
	local call, what = module.protected.call, ("Whether there is an account %s cannot be told"):format(username);
	if is_internal then
		if compat.is_prosodyctl then
			-- They may be in the memory of the server.
			if module.protected.driver(module.host, "accounts") == "memory" then return "unknown"; end
		end
		-- These report a storage that fails as an account that is not there.
		accounts = accounts or module.protected.open(module.host, "accounts");
		if not accounts then return "unknown"; end
		local account, storage_err = accounts:get(username);
		if not account then return storage_err and "unknown" or "missing"; end
	end
	local ok, exists, err = call(what, usermanager.user_exists, username, module.host);
	if not ok then return "unknown", true; end
	if exists then
		local is_enabled = usermanager.user_is_enabled; -- since 13.0
		if not is_enabled then return "active"; end
		what = ("Whether the account %s is enabled cannot be told"):format(username);
		ok, is_enabled = call(what, is_enabled, username, module.host);
		if not ok then return "unknown", true; end
		return is_enabled == false and "disabled" or "active";
	elseif is_internal then
		return "unknown"; -- it was there a moment ago
	end
	-- Others say false or nil, or what Prosody's own say, of an account that is not there and of a directory that is out
	-- of reach; and something else when they never know.
	local is_known = exists == false or err == nil or err == "Auth failed. Invalid username";
	return is_known and "not-found" or "unknown";
end

-- The same of several accounts: a table of their states by username.
function compat.account_states(usernames)
	local states = {};
	for _, username in ipairs(usernames) do states[username] = compat.account_state(username); end
	return states;
end

-- The roles of a local user, each as a list of its name and those of the roles that it inherits from, nearest first.
-- Up to 0.12 roles inherit nothing: what every user is stands in for that.
function compat.role_chains(username)
	local jid = username.."@"..module.host;
	local chains = {};
	local function ask(f, ...)
		local what = ("Not all roles of %s can be told, and the limits of the others count"):format(jid);
		local ok, answer = module.protected.call(what, f, ...);
		return ok and answer;
	end
	if usermanager.get_user_role then -- since 13.0
		local function add(role)
			if type(role) ~= "table" then return; end
			local chain, i = { role }, 1;
			while chain[i] do
				for _, inherited in ipairs(chain[i].inherits or {}) do table.insert(chain, inherited); end
				i = i + 1;
			end
			for j, each in ipairs(chain) do chain[j] = each.name; end
			table.insert(chains, chain);
		end
		add(ask(usermanager.get_user_role, username, module.host));
		for _, role in pairs(ask(usermanager.get_user_secondary_roles, username, module.host) or {}) do add(role); end
	elseif usermanager.get_roles then -- 0.12
		for role, is_granted in pairs(ask(usermanager.get_roles, jid, module.host) or {}) do
			if is_granted then table.insert(chains, { role, REGISTERED }); end
		end
		table.sort(chains, function (a, b) return a[1] < b[1]; end);
	elseif ask(usermanager.is_admin, jid, module.host) then
		return { { "prosody:admin" } };
	end
	if not chains[1] then chains[1] = { REGISTERED }; end
	return chains;
end

-- When a local account was made, in unix seconds, where the version and its authentication provider know.
function compat.account_created(username)
	local get_account_info = usermanager.get_account_info; -- since 13.0
	if not get_account_info then return nil; end
	local what = ("When the account %s was made cannot be told"):format(username);
	local ok, info = module.protected.call(what, get_account_info, username, module.host);
	return ok and info and info.created or nil;
end

-- By thread.
local runners = setmetatable({}, { __mode = "kv" });

-- The util.async runner that this code runs in and its thread; nil outside of one. That a runner is waiting can be seen
-- from outside only by its state, and util.async gives it to nobody.
function compat.current_runner()
	local thread, is_main = coroutine.running();
	if not thread or is_main then return nil; end
	local known = runners[thread];
	if known and known.thread == thread then return known, thread; end
	local level = 0;
	while debug.getinfo(thread, level, "") do level = level + 1; end
	local name, runner = debug.getlocal(thread, level - 1, 1);
	if name == "self" and type(runner) == "table" and runner.thread == thread then
		runners[thread] = runner;
		return runner, thread;
	end
end

-- Whether what ran in a thread of a util.async runner still waits there. The runner's own state says so for a moment
-- longer; a thread that has nothing to do has nothing on its stack but its loop.
function compat.is_waiting(runner, thread)
	return runner ~= nil and runner.state == "waiting" and runner.thread == thread
		and coroutine.status(thread) == "suspended" and debug.getinfo(thread, 2, "") ~= nil;
end

--- statistics

-- Whether anybody counts: without statistics in the configuration nobody does. 0.11 does not say.
function compat.has_statistics()
	local registry = compat.lib("core.statsmanager").get_metric_registry;
	return not registry or registry() ~= nil;
end

-- COMPAT 0.11 has only module:measure, which knows no labels: a measure for each of their values.
local function measures(name, kind)
	local by_value = {};
	return function (value)
		by_value[value] = by_value[value] or module:measure(name.."_"..value, kind);
		return by_value[value];
	end
end

-- What a metric family has for each value of its label.
local function labelled(family)
	local by_value = {};
	return function (value)
		by_value[value] = by_value[value] or family:with_labels(value);
		return by_value[value];
	end
end

-- A function that counts one more of a value; `values` are there from the beginning.
function compat.counter(name, description, label, values)
	if not module.metric then
		local measure = measures(name, "counter");
		return function (value) measure(value)(1); end
	end
	local metric = labelled(module:metric("counter", name, "", description, { label }));
	for _, value in ipairs(values) do metric(value):add(0); end
	return function (value) metric(value):add(1); end
end

-- A function that sets a number.
function compat.gauge(name, description)
	if not module.metric then return module:measure(name, "amount"); end
	local metric = module:metric("gauge", name, "", description, {}):with_labels();
	return function (value) metric:set(value); end
end

-- A function that starts timing a value and returns one that stops it.
function compat.stopwatch(name, description, label)
	if not module.metric then
		local measure = measures(name, "times");
		return function (value) return measure(value)(); end
	end
	local timed = compat.lib("util.openmetrics").timed;
	local metric = labelled(module:metric("histogram", name, "seconds", description, { label }, {
		buckets = { 0.0001, 0.001, 0.01, 0.1, 1, 10 };
	}));
	return function (value) return timed(metric(value)); end
end

--- the Prosody shell

-- Adds a command of the shell, { name, desc, args, host_selector, flags }. `handler(self, selector, …)` is called with
-- the words that were typed; 13.0 has read the flags among them and puts a table of those at the end.
function compat.add_shell_command(section, section_desc, command, handler)
	if compat.is_13 then
		command.section, command.section_desc, command.handler = section, section_desc, handler;
		module:add_item("shell-command", command);
	else
		local env = module:shared("/*/admin_shell/env");
		env[section] = env[section] or {};
		env[section][command.name] = handler;
	end
end

local has_human_io, human_io = pcall(compat.lib, "util.human.io");
compat.table = has_human_io and human_io.table; -- 0.11 has neither this nor the shell that prints it

return compat;
