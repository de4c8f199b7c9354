-- Internal storage that fails, or waits in a coroutine, where a test says so.
--
-- Tests reach the switch with module:shared("/HOST/storage_spec_fault/switch"):
--   failing   stores whose writes fail: failing.account_details = true
--   raising   stores of which every call raises an error: raising.accounts = true
--   seconds   how long each write waits; 0

local async = require "util.async";
local storagemanager = require "core.storagemanager";
local timer = require "util.timer";

local internal = storagemanager.load_driver(module.host, "internal");
local switch = module:shared("switch");
switch.failing, switch.raising, switch.seconds = {}, {}, 0;

local driver = {};

function driver:open(store, typ)
	local opened, err = internal:open(store, typ);
	if not opened then return nil, err; end
	local faulty = {};
	local function may_raise()
		if switch.raising[store] then error("the driver of "..store.." raised this"); end
	end
	function faulty.set(_, ...)
		may_raise();
		if switch.failing[store] then return nil, "the disk is full"; end
		if switch.seconds > 0 and async.ready() then
			local wait, done = async.waiter();
			timer.add_task(switch.seconds, done);
			wait();
		end
		return opened:set(...);
	end
	return setmetatable(faulty, {
		__index = function (_, method)
			return opened[method] and function (_, ...)
				may_raise();
				return opened[method](opened, ...);
			end;
		end;
	});
end

function driver:purge(username)
	return internal:purge(username);
end

function driver:stores(username)
	return internal:stores(username);
end

module:provides("storage", driver);
