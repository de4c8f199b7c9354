-- Internal storage that lacks something, or fails at reading. How, says the option spec_partial, or a test that sets it
-- in module:shared("/HOST/storage_spec_partial/switch").how:
--   "no users"      it cannot list the users of a store
--   "fails"         reading fails
--   "raises"        reading raises an error
--   "users raises"  listing raises an error, as that of mod_storage_sql does
--   "open raises"   opening raises an error
--   "whole"         nothing
-- switch.reads counts how often something of the store invite_token was read.

local storagemanager = require "core.storagemanager";

local internal = storagemanager.load_driver(module.host, "internal");
local switch = module:shared("switch");
switch.how, switch.reads = module:get_option_string("spec_partial"), 0;

-- The others are of the server's own.
local PARTIAL = { invite_token = true, invites_tracking = true };

local driver = {};

function driver:open(store, typ)
	if switch.how == "open raises" and PARTIAL[store] then error("no connection"); end
	local opened, err = internal:open(store, typ);
	if not opened or not PARTIAL[store] then return opened, err; end
	local partial = {};
	function partial.get(_, ...)
		if store == "invite_token" then switch.reads = switch.reads + 1; end
		if switch.how == "fails" then return nil, "the disk is gone"; end
		if switch.how == "raises" then error("no connection"); end
		return opened:get(...);
	end
	function partial.users(_, ...)
		if switch.how == "users raises" then error("no connection"); end
		return opened:users(...);
	end
	if switch.how == "no users" then partial.users = nil; end
	return setmetatable(partial, {
		__index = function (_, method)
			if method == "users" then return nil; end
			return opened[method] and function (_, ...) return opened[method](opened, ...); end;
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
