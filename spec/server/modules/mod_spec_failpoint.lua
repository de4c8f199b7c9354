-- Kills the server at one point of its next registration, as kill -9 would. Tests call
-- module:depends("spec_failpoint").arm(point) in a server where all else is loaded.

local pposix = require "util.pposix";
local signal = require "util.signal";

local function die()
	signal.kill(pposix.getpid(), signal.SIGKILL);
end

-- Puts something around a method of what the library opens for the host.
local function wrap_handle(name, wrapper)
	local library = package.loaded["prosody_invites"];
	local open = library.open;
	function library.open(...)
		local handle = open(...);
		return setmetatable({}, {
			__index = function (_, method)
				return function (_, ...)
					if method == name then return wrapper(handle, handle[method], ...); end
					return handle[method](handle, ...);
				end
			end;
		});
	end
	require "core.modulemanager".reload(module.host, "invites");
	library.open = open;
end

-- The next write to the database's log that makes it longer by more than a page is the process's last: the kernel ends
-- it in the middle of that write (SIGXFSZ).
local function die_while_writing()
	local log = assert(io.open(prosody.paths.data.."/invites.sqlite3-wal", "rb"));
	assert(pposix.setrlimit("FSIZE", log:seek("end") + 5000, nil));
	log:close();
end

local points = {};

points["after claim"] = function ()
	local wrappers = prosody.hosts[module.host].events.wrappers;
	wrappers.add_handler("user-registering", function (handlers, name, event)
		handlers(name, event);
		die();
	end);
end

-- On 13.0 the account has no password yet.
points["after account"] = function ()
	local provider = require "core.usermanager".get_provider(module.host);
	local create_user = provider.create_user;
	function provider.create_user(...)
		create_user(...);
		die();
	end
end

points["before redeem"] = function ()
	wrap_handle("redeem", die);
end

points["inside redeem"] = function ()
	wrap_handle("redeem", function (handle, redeem, ...)
		die_while_writing();
		return redeem(handle, ...);
	end);
end

points["after redeem"] = function ()
	wrap_handle("redeem", function (handle, redeem, ...)
		redeem(handle, ...);
		die();
	end);
end

function arm(point)
	points[point]();
end
