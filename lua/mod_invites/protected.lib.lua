-- Calls code that may raise an error: the handlers of an event, an authentication or storage provider, the work of a
-- timer. Prosody stops what it was doing at an error: the stanza is not answered, the timer never called again, the
-- handlers that come after not at all. So all such calls are made here and nowhere else (spec/layers.sh looks): what
-- failed is logged in one line, with what follows from it, and the rest goes on.

local compat = module.compat;

local storagemanager = compat.lib("core.storagemanager");

local protected = {};

-- COMPAT Lua 5.1 cannot wait within a pcall. There, what may wait in a coroutine is called without protection.
local can_wait_in_pcall = select(2, coroutine.resume(coroutine.create(function ()
	return pcall(coroutine.yield, true);
end))) == true;

local function can_protect()
	return can_wait_in_pcall or not coroutine.running();
end

-- An error message is one line in the log; the rest, if any, is for whoever mends the code.
local function first_line(err)
	return (tostring(err):match("[^\n]+") or "an error without a message");
end

-- In prosodyctl a log message would stand among its results.
local function tell(text, trace)
	if compat.is_prosodyctl then
		io.stderr:write("prosodyctl mod_invites: ", text, "\n");
	else
		module:log("error", "%s", text);
		module:log("debug", "%s", trace);
	end
end

-- Of more functions on the stack than this there is no traceback: it takes a second where one calls itself without end.
local DEEP = 10000;

local function examine(err)
	local trace = tostring(err);
	if not debug.getinfo(DEEP, "") then trace = debug.traceback(trace, 2); end
	return { text = first_line(err), trace = trace };
end

-- What xpcall returned in the place of results. Where memory or the stack is exhausted, it has not called examine().
local function examined(raised)
	return type(raised) == "table" and raised or { text = first_line(raised), trace = tostring(raised) };
end

local function finish_call(what, ok, ...)
	if ok then return true, ...; end
	local raised = examined((...));
	if what then tell(what..": "..raised.text, raised.trace); end
	return false, raised.text;
end

-- Calls `f`, which never waits, with the arguments that follow: true and what it returned, or false and the message of
-- the error that it raised. `what` is the line for the log without that message: what failed, and what follows from it;
-- nil if the caller tells it.
function protected.call_at_once(what, f, ...)
	local arguments, number = { ... }, select("#", ...);
	return finish_call(what, xpcall(function () return f(compat.unpack(arguments, 1, number)); end, examine));
end

-- The same for what may wait in a coroutine (util.async), as providers and storage drivers do.
function protected.call(what, f, ...)
	if not can_protect() then return true, f(...); end
	return protected.call_at_once(what, f, ...);
end

local function returned(ok, ...)
	if ok then return ...; end
	return nil, (...);
end

-- The same function, for others to call. If it raises an error, that is logged with `what`, and it returns what
-- `on_failure` returns, called with the same arguments; nothing without one.
function protected.guard(what, f, on_failure)
	local function finish_guarded(ok, arguments, ...)
		if ok then return ...; end
		if on_failure then return on_failure(compat.unpack(arguments, 1, arguments.n)); end
	end
	return function (...)
		if not can_protect() then return f(...); end
		local arguments = { n = select("#", ...), ... };
		local function results(ok, ...) return finish_guarded(ok, arguments, ...); end
		return results(protected.call(what, f, ...));
	end;
end

--- events

local FAILED_HOOK = "mod_invites failed in its handler of %s, and others go on without it";

-- Hooks an event of this host, as module:hook does. `on_failure(event)` is called in the place of a handler that raised
-- an error.
function protected.hook(event_name, handler, priority, on_failure)
	module:hook(event_name, protected.guard(FAILED_HOOK:format(event_name), handler, on_failure), priority);
end

-- Hooks an event of the whole server, as module:hook_global does.
function protected.hook_global(event_name, handler, priority, on_failure)
	module:hook_global(event_name, protected.guard(FAILED_HOOK:format(event_name), handler, on_failure), priority);
end

-- Calls functions for items that modules of this host add and remove, as module:handle_items does.
function protected.handle_items(key, added, removed)
	local what = FAILED_HOOK:format("an item "..key);
	module:handle_items(key, protected.guard(what, added), protected.guard(what, removed));
end

-- The number of functions on the stack. To get at one takes a step for each that is above it, and a function that calls
-- itself without end leaves a million of them: to look at each would hold the server for hours.
local function stack_depth()
	local depth, beyond = 1, 2;
	while debug.getinfo(beyond, "") do depth, beyond = beyond, beyond * 2; end
	while beyond - depth > 1 do
		local middle = math.floor((depth + beyond) / 2);
		if debug.getinfo(middle, "") then depth = middle; else beyond = middle; end
	end
	return depth - 1;
end

-- Functions that may stand between run() and the loop that calls the handlers; those of wrappers, most of them.
local MAX_BETWEEN = 30;

-- The number of the one of these handlers that util.events was calling; nil if it was a wrapper that failed. The loop
-- there has the locals `h`, the handlers, and `i`. `depth` is that of the stack in run(). For a message handler of
-- xpcall.
local function place_of_error(handlers, depth)
	local level = stack_depth() - depth; -- that of xpcall
	-- The first one found is the one that we called: a handler may fire the same event again.
	for inner = level - 1, math.max(level - MAX_BETWEEN, 1), -1 do
		local place, is_loop, number = nil, false, 1;
		local name, value = debug.getlocal(inner, number);
		while name do
			if name == "h" and value == handlers then is_loop = true; end
			if name == "i" then place = value; end
			number = number + 1;
			name, value = debug.getlocal(inner, number);
		end
		if is_loop then return place; end
	end
end

local function source_of(f)
	local info = debug.getinfo(f, "S");
	return ("%s:%d"):format(info.short_src, info.linedefined);
end

-- Calls `chain(event_name, event)`, which calls the handlers of an event; those after one that raised an error are
-- called all the same. What they return, and whether one raised. A chain that `goes_on` when it is called again is what
-- util.events hands to a wrapper: where another wrapper raised an error, the handlers are still behind it.
local function run(chain, goes_on, event_name, event, consequence)
	local handlers = (prosody.hosts[module.host] or prosody).events.get_handlers(event_name) or {};
	local place, is_spent;
	local depth = stack_depth();
	local function examine_event(err)
		place = place_of_error(handlers, depth);
		-- Called again when nothing is behind it any more, it fails by itself.
		is_spent = debug.getinfo(2, "f").func == chain;
		return examine(err);
	end
	local has_failed = false;
	repeat
		local ok, ret = xpcall(function () return chain(event_name, event); end, examine_event);
		if ok then return ret, has_failed; end
		ret = examined(ret);
		if not is_spent then
			local who = place and "handler" or "wrapper";
			local where = place and " ("..source_of(handlers[place])..")" or "";
			tell(("A %s of %s%s failed, %s: %s"):format(who, event_name, where, consequence, ret.text), ret.trace);
		end
		has_failed = true;
	until place or is_spent or not goes_on;
	for i = (place or #handlers) + 1, #handlers do
		local what = ("A handler of %s (%s) failed, %s"):format(event_name, source_of(handlers[i]), consequence);
		local ok, ret = protected.call_at_once(what, handlers[i], event);
		if ok and ret ~= nil then return ret, true; end
	end
	return nil, true;
end

-- Fires an event of this module on its host: what its handlers returned. What it tells has happened, whatever they do;
-- they do not wait on Lua 5.1.
function protected.fire(event_name, event)
	local function fire(...) return module:fire_event(...); end
	return (run(fire, false, event_name, event, "which changes nothing about the invite"));
end

-- Puts a function around the handlers of an event of this host, as module:wrap_event does. `handlers(event_name,
-- event)` also tells whether a handler raised an error: that is logged with `consequence`, and the others are called
-- all the same. If the function itself raises one, `on_failure(event)` is called, and then the handlers, if they were
-- not.
function protected.wrap(event_name, consequence, wrapper, on_failure)
	local what = ("mod_invites failed around %s"):format(event_name);
	module:wrap_event(event_name, function (chain, _, event)
		local has_run = false;
		local function handlers(name, data)
			has_run = true;
			if not can_protect() then return chain(name, data), false; end
			return run(chain, true, name, data, consequence);
		end
		local ok, ret = protected.call(what, wrapper, handlers, event_name, event);
		if ok then return ret; end
		if on_failure then protected.call(what, on_failure, event); end
		if not has_run then return (handlers(event_name, event)); end
	end);
end

--- timers

-- Calls `work` after so many seconds, and again after as many as it returns, as module:add_timer does. If it raises an
-- error, that is logged with `what`, and it is called again after `again` seconds, a minute without that.
function protected.timer(delay, what, work, again)
	again = again or 60;
	what = ("%s failed and is tried again in %d seconds"):format(what, again);
	module:add_timer(delay, protected.guard(what, work, function () return again; end));
end

--- storage

-- Name of the driver that a host has for a store.
function protected.driver(host, name)
	local _, _, driver = protected.call(nil, storagemanager.get_driver, host, name);
	return driver;
end

-- A store of Prosody's on a host, `typ` as for storagemanager.open; nil, an error, and whether that will stay so for as
-- long as the configuration does: a host's driver may keep nothing at all, or only some stores, or be missing. Where
-- the driver raises an error, its methods return nil and the message. `has_users`: whether the driver can list the
-- users that a store has rows for; users() returns a list of them.
function protected.open(host, name, typ)
	local ok, store, err = protected.call(nil, storagemanager.open, host, name, typ);
	if not ok then return nil, store; end
	if not store then
		-- That is what mod_storage_xep0227 says.
		return nil, err or "the store "..name.." cannot be opened", err == "unsupported-datastore";
	end
	-- storagemanager's stand-in for a driver that cannot be loaded, or does not keep such a store.
	if store.name == "null" then return nil, "the host has no storage for "..name, true; end
	local opened = { has_users = type(store.users) == "function" };
	-- Some drivers list the host's own rows among them: under "" (SQL), or under a function (memory).
	function opened.users()
		return returned(protected.call(nil, function ()
			local users = {};
			local iterator, state, user = store:users();
			if not iterator then error(state or "the users of the store "..name.." cannot be listed", 0); end
			for each in iterator, state, user do
				if type(each) == "string" and each ~= "" then table.insert(users, each); end
			end
			return users;
		end));
	end
	return setmetatable(opened, {
		__index = function (_, method)
			return function (_, ...) return returned(protected.call(nil, store[method], store, ...)); end;
		end;
	});
end

return protected;
