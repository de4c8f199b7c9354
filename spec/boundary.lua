-- spec/boundary.lua CHECKOUT CALLS [SEED]
-- Calls everything that the library offers to Lua with arguments drawn by chance: senseless ones, and ones that make
-- nearly sense. Each call returns or raises an error; the library works as before after it, and valgrind, under which
-- spec/valgrind.sh runs this, has nothing to say. Runs with Lua 5.4, in a directory of its own: some methods write
-- files.
-- What they print goes to stdout, the result to stderr.
-- luacheck: std lua54

local checkout, calls, seed = arg[1], tonumber(arg[2]), tonumber(arg[3]) or 1;
math.randomseed(seed);

local NAME = "prosody_invites";
local native = assert(package.loadlib(checkout.."/lua/mod_invites/"..NAME..".so", "luaopen_"..NAME))();

local null = {};
local handle = assert(native.open({ host = "example.com", storage = "memory", null = null, nodeprep = string.lower }));

-- What the library registers, read from where it does so: a new method is among them at once.
local names = {};
for file in assert(io.popen("ls "..checkout.."/src/lua/*.rs")):lines() do
	for name in assert(io.open(file)):read("a"):gmatch('add_method%(%s*"([%w_]+)"') do
		table.insert(names, name);
	end
end
assert(#names > 10, "no methods found");

local KEYS = {
	"account", "additional_data", "after", "allow_registration", "created_at", "depends_on", "digest", "expires", "host",
	"invitee", "is_reset", "jid", "landing_page", "name", "nonce", "purpose", "replaced", "reusable", "row", "source",
	"token", "ttl", "type", "username",
};
local WORDS = {
	"account", "active", "all", "bob", "contact", "disabled", "example.com", "bob@example.com", "missing", "register",
	"roster", "unknown", "", "-", "1", ("x"):rep(16), ("x"):rep(32), "\255\0", "ü", ("y"):rep(5000),
};
local NUMBERS = {
	0, 1, -1, 60, 1.5, 2^53, -2^63, 1e308, -0.0, 0/0, math.huge, -math.huge, math.maxinteger, math.mininteger, 2000000000,
};

-- What earlier calls returned: tokens, claims, drafts, tables.
local returned = {};

local function one_of(list)
	return list[math.random(#list)];
end

local anything;

local function some_table(depth)
	local t = {};
	for _ = 1, math.random(0, 6) do
		local key = one_of(KEYS);
		if math.random(8) == 1 then key = anything(depth + 1); end
		if key ~= nil and key == key then t[key] = anything(depth + 1); end
	end
	if math.random(40) == 1 then t.itself = t; end
	if math.random(40) == 1 then setmetatable(t, { __index = function () error("asked a metatable"); end }); end
	return t;
end

function anything(depth)
	-- Most methods take a table or a token first.
	if depth == 0 and math.random(2) == 1 then
		return math.random(2) == 1 and some_table(depth) or returned[1] and one_of(returned) or one_of(WORDS);
	end
	local kind = math.random(12);
	if kind <= 3 then return one_of(WORDS);
	elseif kind <= 5 then return one_of(NUMBERS);
	elseif kind == 6 then return math.random(2) == 1;
	elseif kind == 7 then return nil;
	elseif kind == 8 and returned[1] then return one_of(returned);
	elseif kind == 9 then return one_of({ print, handle, io.stdout, coroutine.create(print), null });
	elseif depth < 5 then return some_table(depth);
	end
	return nil;
end

local function keep(ok, ...)
	for i = 1, ok and select("#", ...) or 0 do
		local value = select(i, ...);
		if value ~= nil then
			returned[#returned < 200 and #returned + 1 or math.random(200)] = value;
			if type(value) == "table" and type(value.token) == "string" then
				returned[math.random(#returned)] = value.token;
			end
		end
	end
	return ok;
end

local raised = 0;
for _ = 1, calls do
	local name, args = one_of(names), {};
	for i = 1, math.random(0, 3) do args[i] = anything(0); end
	if math.random(20) == 1 then
		name = one_of({ "carry_out", "command", "open", "parse_duration", "shell_command" });
		if name == "open" then
			args[1] = some_table(0);
			args[1].storage = one_of({ "memory", "sqlite", "nothing" });
			args[1].path = "/nowhere/invites.sqlite3";
		end
		raised = raised + (keep(pcall(native[name], table.unpack(args, 1, 3))) and 0 or 1);
	else
		raised = raised + (keep(pcall(handle[name], handle, table.unpack(args, 1, 3))) and 0 or 1);
	end
	if math.random(100) == 1 then
		local invite, draft = assert(handle:prepare({ type = "register", allow_registration = true, ttl = 60 }));
		assert(handle:save(invite, draft));
		assert(handle:get(invite.token));
		keep(true, invite.token);
	end
end
collectgarbage();
io.stderr:write(("boundary: %d calls with seed %d, %d of them raised an error\n"):format(calls, seed, raised));
