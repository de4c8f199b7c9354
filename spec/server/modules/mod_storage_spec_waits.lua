-- Internal storage that waits in a coroutine at each call, as one behind a network does; where no coroutine is running,
-- it answers at once.

local async = require "util.async";
local storagemanager = require "core.storagemanager";
local timer = require "util.timer";

local internal = storagemanager.load_driver(module.host, "internal");

local driver = {};

function driver:open(store, typ)
	local opened, err = internal:open(store, typ);
	if not opened then return nil, err; end
	return setmetatable({}, {
		__index = function (_, method)
			return opened[method] and function (_, ...)
				if async.ready() then
					local wait, done = async.waiter();
					timer.add_task(0.05, done);
					wait();
				end
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
