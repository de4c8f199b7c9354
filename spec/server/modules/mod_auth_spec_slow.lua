-- An auth provider that waits, as one behind a network does: accounts in the plain in a store, and a pause in a
-- coroutine around each write. Nothing else in Prosody's own path from preauth to account yields, so without it
-- requests in parallel run one after another.
--
-- Tests reach the switch with module:shared("/HOST/auth_spec_slow/switch"):
--   seconds   how long create_user and set_password wait, 0.05
--   hold      "before" or "after": create_user stops there, before or after the account is made, until release()
--   held      how many are stopped now
--   failure   what create_user fails with, after its wait
--   random    every call waits for up to so many seconds, whatever the others say

local async = require "util.async";
local new_sasl = require "util.sasl".new;
local timer = require "util.timer";

local accounts = module:open_store("accounts");
local switch = module:shared("switch");
local stopped = {};

switch.seconds, switch.held = 0.05, 0;

function switch.release()
	switch.hold = nil;
	for _, go_on in ipairs(stopped) do
		timer.add_task(0, go_on);
	end
	stopped, switch.held = {}, 0;
end

local function wait(place)
	if not async.ready() then return; end
	local stop, go_on = async.waiter();
	if switch.random then
		timer.add_task(math.random() * switch.random, go_on);
		stop();
		return;
	end
	if switch.hold == place then
		table.insert(stopped, go_on);
		switch.held = #stopped;
	elseif place == "before" then
		timer.add_task(switch.seconds, go_on);
	else
		return;
	end
	stop();
end

local provider = {};

function provider.test_password(username, password)
	local account = accounts:get(username);
	if account and account.password == password then return true; end
	return nil, "Auth failed. Invalid username or password.";
end

local function wait_at_random()
	if switch.random then wait(); end
end

function provider.user_exists(username)
	wait_at_random();
	if accounts:get(username) then return true; end
	return nil, "Auth failed. Invalid username";
end

-- Prosody 13 makes an account without a password first. Stored as more than nothing: an empty table would not be there.
function provider.create_user(username, password)
	wait("before");
	if switch.failure then return nil, switch.failure; end
	local made, err = accounts:set(username, { created = os.time(), password = password });
	wait("after");
	return made, err;
end

function provider.set_password(username, password)
	wait("before");
	local account = accounts:get(username);
	if not account then return nil, "Account not available."; end
	account.password = password;
	return accounts:set(username, account);
end

function provider.delete_user(username)
	wait_at_random();
	local deleted, err = accounts:set(username, nil);
	wait_at_random();
	return deleted, err;
end

function provider.users()
	return accounts:users();
end

function provider.get_sasl_handler()
	return new_sasl(module.host, {
		plain = function (_, username)
			local account = accounts:get(username);
			return account and account.password or "", account ~= nil or nil;
		end;
	});
end

module:provides("auth", provider);
