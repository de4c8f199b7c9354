-- spec/instructions.lua PATH OPERATION NUMBER
-- Calls the library as the shim does, for callgrind to count (spec/instructions.sh).
-- luacheck: std lua54

local path, operation, number = arg[1], arg[2], tonumber(arg[3]);

local NAME = "prosody_invites";
local native = assert(package.loadlib("lua/mod_invites/"..NAME..".so", "luaopen_"..NAME))();
local handle = assert(native.open({
	host = "example.com", storage = "sqlite", path = path, lock_wait_ms = 500, null = {}, nodeprep = string.lower;
}));

local request = { type = "register", allow_registration = true, ttl = 604800 };
local created = 0;

local function create()
	created = created + 1;
	local invite, draft = assert(handle:prepare(request));
	invite.additional_data = {
		groups = { "reading-group" }, note = ("for reader %10d of the library"):format(created), source = "desk@example.com",
	};
	assert(handle:save(invite, draft));
	return invite.token;
end

-- One for each call, of the most that spec/instructions.sh asks for: made however few it counts, and so no part of the
-- difference.
local tokens = {};
for i = 1, 1200 do tokens[i] = create(); end

local operations = { create = create };

operations["get hit"] = function (i)
	assert(handle:get(tokens[i]));
end

operations["get miss"] = function ()
	assert(not handle:get("AAAAAAAAAAAAAAAAAAAAAAAA"));
end

function operations.register(i)
	local invite = assert(handle:get(tokens[i]));
	local attempt = { token = invite.token, purpose = "account", invitee = "user"..i };
	local nonce = assert(handle:claim(attempt));
	assert(handle:redeem(attempt, nonce, "mod_register", false));
end

for i = 1, number do operations[operation](i); end
