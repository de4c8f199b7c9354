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
local additional_data = {
	groups = { "reading-group" }, note = "for the people of the town library", source = "desk@example.com",
};

local function create()
	local invite, draft = assert(handle:prepare(request));
	invite.additional_data = additional_data;
	assert(handle:save(invite, draft));
	return invite.token;
end

local token = create();

local operations = { create = create };

operations["get hit"] = function ()
	assert(handle:get(token));
end

operations["get miss"] = function ()
	assert(not handle:get("AAAAAAAAAAAAAAAAAAAAAAAA"));
end

for _ = 1, number do operations[operation](); end
