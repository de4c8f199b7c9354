-- exchange.lua LIBRARY write DATABASE TOKENS   stores invites, and their tokens in a file of this name
-- exchange.lua LIBRARY read DATABASE TOKENS    finds them as they were stored, whichever Lua stored them, and uses one
--
-- Runs on every Lua there is a library for, so it is written in what they have in common.

local library, what, database, tokens_file = arg[1], arg[2], arg[3], arg[4];

local name = "prosody_invites";
local native = assert(package.loadlib(library, "luaopen_"..name))(name, library);

local subtype = rawget(math, "type"); -- since Lua 5.3

local null = {};
local handle = assert(native.open({
	host = "example.com", storage = "sqlite", path = database, lock_wait_ms = 5000, null = null, nodeprep = string.lower;
}));

local function data()
	return {
		note = "caf\195\169, \0 and \255";
		roles = { "prosody:registered", "x" };
		whole = 3;
		large = 2^52;
		half = 0.5;
		yes = true;
		nothing = null;
		nested = { { deep = { [1] = "a", [2] = "b", key = "c" } } };
	};
end

local function same(a, b)
	if type(a) ~= "table" or type(b) ~= "table" or a == null or b == null then return a == b; end
	for k, v in pairs(a) do
		if not same(v, b[k]) then return false; end
	end
	for k in pairs(b) do
		if a[k] == nil then return false; end
	end
	return true;
end

local function create(request)
	request.allow_registration, request.ttl = true, 3600;
	local invite, draft = assert(handle:prepare(request));
	invite.allow_registration, invite.reusable = true, request.reusable;
	invite.additional_data = data();
	assert(handle:save(invite, draft));
	return invite.token;
end

local function redeem(token, invitee)
	return handle:redeem_at_once({ token = token, purpose = "account", invitee = invitee });
end

if what == "write" then
	local tokens = assert(io.open(tokens_file, "w"));
	local spent = create({ type = "register" });
	assert(redeem(spent, "paris"));
	tokens:write(spent, "\n", create({ type = "register", reusable = true }), "\n");
	-- One for each that reads.
	for _ = 1, 5 do
		tokens:write(create({ type = "register" }), "\n");
	end
	tokens:close();
	return;
end

local tokens = {};
for token in io.lines(tokens_file) do
	table.insert(tokens, token);
end
assert(#tokens == 7);
local spent, reusable = tokens[1], tokens[2];

local _, condition = handle:get(spent);
assert(condition == "token-invalid", condition);
assert(redeem(reusable, "somebody") and redeem(reusable, "somebody else"));

local own;
for i = 3, #tokens do
	local invite = handle:get(tokens[i]);
	if invite then
		own = own or tokens[i];
		local found = invite.additional_data;
		assert(same(found, data()), "what was stored came back otherwise");
		assert(not subtype or subtype(found.whole) == "integer" and subtype(found.half) == "float");
		assert(invite.expires - invite.created_at == 3600);
	end
end
assert(redeem(own, "romeo"));
_, condition = redeem(own, "mercutio");
assert(condition == "token-invalid" or condition == "token-used", condition);
