-- The library as Lua sees it, without Prosody: what goes in comes out, and what cannot go in is refused in words.
-- Runs in the checkout with Lua 5.4, on the library that `make build` left beside the module.
-- luacheck: std lua54+busted

local NAME = "prosody_invites";
local native = assert(package.loadlib("lua/mod_invites/"..NAME..".so", "luaopen_"..NAME))();

-- Stands for util.json.null, which the library knows by its identity only.
local null = {};

local DEPTH = 100; -- of nested tables, the field itself being the first

local NONCE = ("n"):rep(16); -- of a claim that there never was

local directory, database;

setup(function ()
	-- The name of a file that exists by now, so nobody else has it.
	directory = os.tmpname();
	assert(os.remove(directory));
	assert(os.execute("mkdir -m 700 "..directory));
end);

teardown(function ()
	assert(os.execute("rm -r "..directory));
end);

local count = 0;
before_each(function ()
	count = count + 1;
	database = ("%s/%d.sqlite3"):format(directory, count);
end);

local function open(options)
	local all = { host = "example.com", storage = "sqlite", path = database, lock_wait_ms = 5000, null = null };
	all.nodeprep = string.lower;
	for k, v in pairs(options or {}) do
		all[k] = v;
	end
	return assert(native.open(all));
end

local function prepare(handle, request)
	local all = { type = "register", allow_registration = true, ttl = 60 };
	for k, v in pairs(request or {}) do
		all[k] = v;
	end
	return assert(handle:prepare(all));
end

-- A stored invite. `edit` is what the shim and the handlers of invite-created do between the two steps.
local function create(handle, request, edit)
	local invite, draft = prepare(handle, request);
	if edit then edit(invite); end
	return invite, assert(handle:save(invite, draft, true));
end

local function attempt_of(token, invitee)
	return { token = token, purpose = "account", invitee = invitee or "juliet" };
end

-- Uses an invite without a claim, as the shim does where nobody claimed it.
local function redeem(handle, token)
	return handle:redeem_at_once({ token = token, purpose = "account", invitee = "juliet" });
end

local function pending(handle)
	local tokens = {};
	for _, invite in ipairs((assert(handle:pending_invites("account")))) do
		tokens[invite.token] = invite;
	end
	return tokens;
end

-- Whether two values are the same to the last bit; of two tables, whether they hold the same.
local function same(a, b)
	if type(a) ~= type(b) or math.type(a) ~= math.type(b) then
		return false;
	elseif type(a) == "number" then
		return a == b and 1 / a == 1 / b or a ~= a and b ~= b;
	elseif type(a) ~= "table" or a == null or b == null then
		return a == b;
	end
	for k, v in pairs(a) do
		if not same(v, b[k]) then return false; end
	end
	for k in pairs(b) do
		if a[k] == nil then return false; end
	end
	return true;
end

local function is_plain(value)
	if type(value) ~= "table" then return true; end
	if getmetatable(value) then return false; end
	for _, v in pairs(value) do
		if not is_plain(v) then return false; end
	end
	return true;
end

-- `depth` tables, each in the one before.
local function nested(depth)
	local innermost = {};
	local outermost = innermost;
	for _ = 2, depth do
		outermost = { t = outermost };
	end
	return outermost, innermost;
end

local ODD_TOKENS = {
	["false"] = false;
	["the empty string"] = "";
	["10 kB"] = ("x"):rep(10240);
	["a NUL"] = "a\0b";
	["invalid UTF-8"] = "\xff\xfe";
	["a number"] = 42;
	["a float"] = 0 / 0;
	["a table"] = {};
	["true"] = true;
	["a function"] = print;
};

describe("the library", function ()
	it("has the version of the module, the crate and the rock", function ()
		local function find(path, pattern)
			local file <close> = assert(io.open(path));
			return assert(file:read("a"):match(pattern), path);
		end
		assert.equal(native.version, find("lua/mod_invites/mod_invites.lua", "\nlocal VERSION = \"([^\"]+)\";\n"));
		assert.equal(native.version, find("Cargo.toml", "\nversion = \"([^\"]+)\"\n"));
		assert.equal(native.version, find("mod_invites-"..native.version.."-1.rockspec", "\nversion = \"([^\"]+)%-%d+\"\n"));
	end);

	it("opens no connection to PostgreSQL, and says what is wrong with an address without showing it", function ()
		local options = { host = "example.com", storage = "postgresql", deadline = 1, null = null, nodeprep = string.lower };
		options.postgresql = "postgresql://prosody:secret@nowhere.invalid/prosody";
		assert(native.open(options));
		for _, url in ipairs({
			"secret", "postgresql://prosody:sec@ret@nowhere.invalid/",
			"postgresql://prosody:secret@nowhere.invalid/?sslmode=require",
		}) do
			options.postgresql = url;
			local handle, condition, text = native.open(options);
			assert.is_nil(handle);
			assert.equal("misuse", condition);
			assert.matches("^invite_postgresql is not understood: ", text);
			assert.is_nil(text:match("ret@") or text:match("secret@") or text:match("secret$"));
		end
		options.postgresql, options.deadline = nil, 0;
		local _, _, text = native.open(options);
		assert.matches("invite_postgresql_deadline must be a number of seconds", text);
	end);

	it("says no to a storage that it does not know", function ()
		local handle, condition, text = native.open({ host = "example.com", storage = "floppy", nodeprep = string.lower });
		assert.is_nil(handle);
		assert.equal("misuse", condition);
		assert.truthy(text:find("floppy", 1, true));
	end);

	it("reads durations and names what is none", function ()
		assert.equal(7 * 86400, native.parse_duration("1 week"));
		assert.equal("integer", math.type(native.parse_duration("90 min")));
		for _, no_duration in ipairs({ "", "soon", "1 fortnight", "1 day\0" }) do
			local seconds, condition, text = native.parse_duration(no_duration);
			assert.is_nil(seconds);
			assert.equal("misuse", condition);
			assert.string(text);
		end
	end);

	it("says no to a duration that is not UTF-8, as to any other that it does not understand", function ()
		local seconds, condition = native.parse_duration("1 \xff");
		assert.is_nil(seconds);
		assert.equal("misuse", condition);
	end);

	it("opens a database whose path is not UTF-8, as paths need not be", function ()
		database = database.."\xff";
		local handle = open();
		assert.truthy(handle:info("account", create(handle).token));
	end);

	it("opens no file before there is something to do", function ()
		local handle = open();
		prepare(handle);
		assert.is_nil(io.open(database));
		create(handle);
		assert(io.open(database)):close();
	end);
end);

describe("what is attached to an invite", function ()
	local DATA = {
		["nested tables"] = { a = { b = { c = { d = "deep" } } }, ["with space"] = { [""] = "empty key" } };
		["lists"] = { "a", { "b", { "c" } }, 3 };
		["integer and string keys"] = { "first", "second", name = "x", [10] = "ten", [-1] = "minus", [0] = "zero" };
		["a list with holes"] = { [1] = "a", [3] = "c" };
		["booleans"] = { yes = true, no = false, list = { true, false } };
		["boolean keys"] = { [true] = 1, [false] = 0, text = 2 };
		["float keys"] = { [1.5] = "x", [math.huge] = "y" };
		["integers beyond 2^53"] = { 1 << 53, (1 << 53) + 1, math.maxinteger, math.mininteger };
		["floats that are whole"] = { 1.0, -0.0, 0, 2^53, 2.0^63, 1e300 };
		["fractions"] = { 0.1, 1 / 3, 5e-324, 1.7976931348623157e308 };
		["no numbers"] = { nan = 0 / 0, inf = math.huge, minus_inf = -math.huge };
		["text"] = { "", "jörg", "\0", "\n\"\\", "🙂", ("x"):rep(30000) };
		["bytes"] = { "\xff", "\xc3", "\xed\xa0\x80", ["\xff"] = "\x80" };
		["keys that look like tags"] = { ["$table"] = { 1, 2 }, ["$bytes"] = "/w==", ["$float"] = "nan", ["$"] = {} };
		["the empty table"] = {};
		["tables that are empty"] = { {}, { {} }, x = {} };
		["null"] = { null, x = null, list = { 1, null } };
		["tables 100 deep"] = nested(DEPTH);
	};

	for what, data in pairs(DATA) do
		it("comes back exactly: "..what, function ()
			local handle = open();
			local invite = create(handle, nil, function (invite)
				invite.additional_data = data;
				invite.extra = data;
			end);
			local info = assert(handle:info("account", invite.token));
			assert.is_true(same(data, info.additional_data));
			assert.is_true(same(data, info.extra));
			assert.is_true(same(data, assert(handle:get(invite.token)).additional_data));
			assert.is_true(same(data, pending(handle)[invite.token].additional_data));
		end);
	end

	it("comes back as util.json.null itself where that was", function ()
		local handle = open();
		local invite = create(handle, nil, function (invite)
			invite.additional_data = { a = null, b = {} };
			invite.extra = null;
		end);
		local info = assert(handle:info("account", invite.token));
		assert.equal(null, info.additional_data.a);
		assert.not_equal(null, info.additional_data.b);
		assert.equal(null, info.extra);
	end);

	it("is a copy: a table in two places is two tables, and later changes stay outside", function ()
		local handle, shared = open(), { "x" };
		local invite = create(handle, nil, function (invite)
			invite.additional_data = { a = shared, b = shared };
		end);
		shared[1] = "changed";
		local data = assert(handle:info("account", invite.token)).additional_data;
		assert.same({ a = { "x" }, b = { "x" } }, data);
		assert.not_equal(data.a, data.b);
	end);

	it("is stored without its metatable", function ()
		local handle = open();
		local invite = create(handle, nil, function (invite)
			invite.additional_data = setmetatable({ x = 1 }, { __index = { y = 2 }, __name = "fancy" });
		end);
		assert.is_true(same({ x = 1 }, assert(handle:info("account", invite.token)).additional_data));
	end);

	local cycle = { list = { {} } };
	cycle.list[1].back = cycle;
	local too_deep, bottom = nested(DEPTH);
	bottom.t = {};
	local REFUSED = {
		["a cycle"] = { cycle, "additional_data.list[1].back", "holds itself" };
		["a function"] = { { a = { print } }, "additional_data.a[1]", "function" };
		["a userdata"] = { { file = io.stdout }, "additional_data.file", "userdata" };
		["a coroutine"] = { { co = coroutine.create(print) }, "additional_data.co", "thread" };
		["a table as key"] = { { x = { [{}] = 1 } }, "additional_data.x[table]", "table as its key" };
		["a function as key"] = { { [print] = 1 }, "additional_data[function]", "function" };
		["bytes on the way"] = { { ["\xff\n"] = print }, "additional_data.\\xff\\n", "function" };
	};
	for what, case in pairs(REFUSED) do
		local data, path, why, expected = table.unpack(case);
		it("is refused with its path, and nothing stored: "..what, function ()
			local handle = open();
			local invite, draft = prepare(handle);
			invite.additional_data = data;
			local saved, condition, text = handle:save(invite, draft);
			assert.is_nil(saved);
			assert.equal(expected or "misuse", condition);
			assert.equal(path, text:sub(1, #path));
			assert.truthy(text:find(why, 1, true), text);
			assert.is_nil(text:find(invite.token, 1, true));
			local found, not_there = handle:info("account", invite.token);
			assert.is_nil(found);
			assert.equal("token-invalid", not_there);
			assert.is_nil(next(pending(handle)));
		end);
	end

	local nested_twice = {};
	for _ = 1, 20 do nested_twice = { nested_twice, nested_twice }; end
	local LIMIT = 64 * 1024;
	local many = {};
	for i = 1, LIMIT do many[i] = true; end
	local TOO_MUCH = {
		["tables that hold the same one twice"] = { nested_twice, "additional_data" };
		["a long text"] = { { note = ("x"):rep(LIMIT) }, "additional_data.note" };
		["a text that is long once it is written"] = { { note = ("\0"):rep(LIMIT // 6) }, "additional_data.note" };
		["bytes that are long once they are written"] = { { note = ("\xff"):rep(LIMIT * 3 // 4) }, "additional_data.note" };
		["a long key"] = { { [("x"):rep(2^24)] = true }, "additional_data.xxx" };
		["many values"] = { many, "additional_data[" };
		["what is little by itself"] = { { ("x"):rep(LIMIT // 2), { ("x"):rep(LIMIT // 2) } }, "additional_data[2][1]" };
		["tables 101 deep"] = { too_deep, "additional_data.t.t" };
	};
	for what, case in pairs(TOO_MUCH) do
		local data, path = table.unpack(case);
		it("is refused soon where it is too much: "..what, function ()
			local handle = open();
			local invite, draft = prepare(handle);
			invite.additional_data = data;
			local since = os.clock();
			local saved, condition, text = handle:save(invite, draft);
			assert.is_nil(saved);
			assert.equal("bad-request", condition);
			assert.equal(path, text:sub(1, #path));
			assert.is_true(#text < 1000, text);
			assert.is_true(os.clock() - since < 0.5);
			assert.is_nil(next(pending(handle)));
		end);
	end

	it("may be 64 KiB, of all fields of an invite together", function ()
		local handle = open();
		local function save(landing_page)
			local invite, draft = prepare(handle);
			invite.additional_data = { note = ("x"):rep(LIMIT // 2) };
			invite.landing_page = landing_page;
			local saved, condition, text = handle:save(invite, draft);
			return saved and invite, condition, text;
		end
		local around = #'{"additional_data":{"note":""},"landing_page":""},,,,';
		local invite = assert(save(("y"):rep(LIMIT // 2 - around)));
		assert.equal(LIMIT // 2 - around, #assert(handle:info("account", invite.token)).landing_page);
		local refused, condition, text = save(("y"):rep(LIMIT // 2));
		assert.is_nil(refused);
		assert.equal("bad-request", condition);
		assert.truthy(text:find("64 KiB", 1, true));
	end);

	it("is read whatever its size where it was stored elsewhere", function ()
		local handle = open();
		local note = ("x"):rep(10 * LIMIT);
		local row = { type = "register", jid = "example.com", token = "large", created_at = 1, expires = 4000000000 };
		row.additional_data, row.allow_registration = { note = note }, true;
		assert.equal(1, assert(handle:import_bundled({ large = row }, {})).imported);
		assert.equal(note, assert(handle:get("large")).additional_data.note);
	end);

	it("is no longer than 64 KiB where it says why an invite is revoked, and cut where it says who used it", function ()
		local handle = open();
		local token, used = create(handle).token, create(handle).token;
		for _, texts in ipairs({ { ("x"):rep(LIMIT + 1) }, { "x", ("x"):rep(LIMIT) } }) do
			local revoked, condition = handle:revoke(token, table.unpack(texts));
			assert.is_nil(revoked);
			assert.equal("bad-request", condition);
			revoked, condition = handle:revoke_inviter("juliet", true, table.unpack(texts));
			assert.is_nil(revoked);
			assert.equal("bad-request", condition);
		end
		assert.is_table(handle:revoke(token, ("x"):rep(LIMIT)));
		assert(handle:redeem_at_once({ token = used, purpose = "account", source = ("ä"):rep(LIMIT) }));
		assert.equal(("ä"):rep(LIMIT // 2), assert(handle:show(used)).redemptions[1].source);
	end);

	it("is refused without telling the token, even where that is the name of the field", function ()
		local handle = open();
		local invite, draft = prepare(handle);
		invite["see "..invite.token] = print;
		local saved, condition, text = handle:save(invite, draft);
		assert.is_nil(saved);
		assert.equal("misuse", condition);
		assert.is_nil(text:find(invite.token, 1, true));
	end);

	it("is refused under any other field too, and so is a field that has no name", function ()
		local handle = open();
		for field, expected in pairs({ groups = "groups", [1] = "integer", [true] = "boolean" }) do
			local invite, draft = prepare(handle);
			invite[field] = print;
			local saved, condition, text = handle:save(invite, draft);
			assert.is_nil(saved);
			assert.equal("misuse", condition);
			assert.truthy(text:find(expected, 1, true), text);
		end
		assert.is_nil(next(pending(handle)));
	end);
end);

describe("between prepare and save a handler", function ()
	it("may set the end, the number of uses and the landing page", function ()
		local handle = open();
		local invite = create(handle, nil, function (invite)
			invite.expires = invite.created_at + 5.9;
			invite.reusable = true;
			invite.landing_page = "https://example.com/"..invite.token;
		end);
		local info = assert(handle:info("account", invite.token));
		assert.equal(info.created_at + 5, info.expires);
		assert.is_true(info.reusable);
		assert.equal("https://example.com/"..invite.token, info.landing_page);
		assert.equal(1, assert(redeem(handle, invite.token)).uses);
		assert.equal(2, assert(redeem(handle, invite.token)).uses);
	end);

	it("may add fields of any name", function ()
		local handle = open();
		local fields = { x = 1, [""] = 2, ["jörg"] = 3, ["a b\0"] = 4, ["\xff"] = 5, ["$table"] = 6, username = 7 };
		local invite = create(handle, nil, function (invite)
			for name, value in pairs(fields) do invite[name] = value; end
		end);
		local info = assert(handle:info("account", invite.token));
		for name, value in pairs(fields) do
			assert.equal(value, info[name], (name:gsub("[^%w$ ]", "?")));
		end
	end);

	it("may say what it likes for true and false, and that comes back", function ()
		local handle = open();
		local invite = create(handle, nil, function (invite)
			invite.allow_registration, invite.reusable = "true", false;
		end);
		local info = assert(handle:info("account", invite.token));
		assert.equal("true", info.allow_registration);
		assert.is_false(info.reusable);
		assert.is_false(assert(handle:get(invite.token)).reusable);
	end);

	it("may make it last for ever", function ()
		local handle = open();
		local invite = create(handle, nil, function (invite) invite.expires = math.huge; end);
		assert.equal(math.huge, assert(handle:info("account", invite.token)).expires);
		assert.equal(math.huge, assert(handle:get(invite.token)).expires);
	end);

	it("may let it be over at once", function ()
		local handle = open();
		local invite = create(handle, nil, function (invite) invite.expires = invite.created_at - 1; end);
		local info, condition = handle:info("account", invite.token);
		assert.is_nil(info);
		assert.equal("token-expired", condition);
	end);

	it("may close it to registration", function ()
		local handle = open();
		local invite = create(handle, { type = "roster", username = "romeo" }, function (invite)
			invite.allow_registration = false;
		end);
		assert.is_nil((handle:get(invite.token)));
		assert.equal("romeo", assert(handle:get(invite.token, "romeo")).username);
	end);

	it("cannot change whose it is: that is restored and named", function ()
		local handle = open();
		local before;
		local invite, restored = create(handle, { username = "juliet" }, function (invite)
			before = { token = invite.token, type = invite.type, created_at = invite.created_at, jid = invite.jid };
			invite.token, invite.type, invite.created_at, invite.jid = "mine", "roster", nil, "tybalt@example.com";
		end);
		table.sort(restored);
		assert.same({ "created_at", "jid", "token", "type" }, restored);
		local info = assert(handle:info("account", before.token));
		for name, value in pairs(before) do
			assert.equal(value, invite[name]);
			assert.equal(value, info[name]);
		end
		assert.is_nil((handle:info("account", "mine")));
	end);

	it("that changes nothing of that hears of nothing", function ()
		local _, restored = create(open());
		assert.same({}, restored);
	end);

	it("cannot set an end that is no time", function ()
		local handle = open();
		for _, expires in ipairs({ "soon", 0 / 0, {}, false }) do
			local invite, draft = prepare(handle);
			invite.expires = expires;
			local saved, condition, text = handle:save(invite, draft);
			assert.is_nil(saved);
			assert.equal("bad-request", condition);
			assert.truthy(text:find("^expires must be"), text);
		end
		assert.is_nil(next(pending(handle)));
	end);

	it("cannot have it stored twice", function ()
		local handle = open();
		local invite, draft = prepare(handle);
		assert(handle:save(invite, draft));
		local saved, condition, text = handle:save(invite, draft);
		assert.is_nil(saved);
		assert.equal("internal-server-error", condition);
		assert.string(text);
	end);
end);

describe("the tables that come out", function ()
	local function all(handle, token)
		return {
			info = assert(handle:info("account", token)); get = assert(handle:get(token)); pending = pending(handle)[token];
		};
	end

	it("have whole seconds, of the integer subtype, for every way to say a ttl", function ()
		local handle = open();
		for _, ttl in ipairs({ 60, 60.0, 60.9, "60", "60.5", " 60 " }) do
			local invite = create(handle, { ttl = ttl });
			assert.equal("integer", math.type(invite.expires));
			for where, found in pairs(all(handle, invite.token)) do
				assert.equal("integer", math.type(found.created_at), where);
				assert.equal("integer", math.type(found.expires), where);
				assert.equal(60, found.expires - found.created_at, where);
			end
		end
	end);

	it("are fresh and plain", function ()
		local handle = open();
		local data = { roles = { "a" }, note = "x" };
		local invite = create(handle, nil, function (invite) invite.additional_data = data; end);
		assert.is_true(is_plain(invite));
		local first = all(handle, invite.token);
		for where, found in pairs(first) do
			assert.is_true(is_plain(found), where);
			found.additional_data.roles[1] = "changed";
			found.additional_data.note = nil;
			found.token = nil;
		end
		for where, found in pairs(all(handle, invite.token)) do
			assert.is_true(same(data, found.additional_data), where);
			assert.equal(invite.token, found.token, where);
			assert.not_equal(first[where], found, where);
		end
	end);
end);

describe("a failure", function ()
	-- What may follow the text belongs to conditions that these specs do not ask for.
	local function assert_failure(condition, ...)
		local value, found, text, more = ...;
		assert.equal(found == "claim-lost", more ~= nil);
		assert.is_nil(value);
		assert.equal(condition, found);
		assert.string(text);
		return text;
	end

	it("is nil, a condition and a text, of every method", function ()
		local handle = open();
		local used = create(handle).token;
		assert(redeem(handle, used));
		local contact = create(handle, { type = "roster", username = "romeo", allow_registration = false }).token;
		local over = create(handle, nil, function (invite) invite.expires = invite.created_at - 1; end).token;

		assert_failure("no-token", handle:get(nil));
		assert_failure("no-token", handle:info("account", nil));
		assert_failure("no-token", handle:look(nil));
		assert_failure("no-token", handle:claim({ purpose = "account" }));
		assert_failure("no-token", handle:redeem(attempt_of(nil), NONCE));
		assert_failure("no-token", redeem(handle, nil));
		assert_failure("token-invalid", handle:get("unknown"));
		assert_failure("token-invalid", handle:get(used));
		assert_failure("token-invalid", handle:get(contact));
		assert_failure("token-invalid", handle:get(contact, "juliet"));
		assert_failure("token-expired", handle:get(over));
		assert_failure("token-invalid", handle:info("account", "unknown"));
		assert_failure("token-invalid", handle:look("unknown"));
		assert_failure("token-used", handle:claim({ token = used, purpose = "account", invitee = "juliet" }));
		assert_failure("token-invalid", handle:claim({ token = "unknown", purpose = "account", invitee = "juliet" }));
		assert_failure("token-invalid", handle:claim({ token = contact, purpose = "account", invitee = "juliet" }));
		assert_failure("token-used", redeem(handle, used));
		assert_failure("token-invalid", redeem(handle, "unknown"));
		assert_failure("claim-lost", handle:redeem(attempt_of(used), NONCE));
		assert_failure("claim-lost", handle:redeem(attempt_of("unknown"), NONCE));
		assert_failure("token-invalid", handle:confirm("unknown", { nurse = "missing" }));
		assert_failure("token-invalid", handle:confirm(contact, { nurse = "disabled" }));
		assert_failure("account-unknown", handle:confirm(contact, { nurse = "not-found" }));
		assert_failure("misuse", handle:confirm(contact, { nurse = "asleep" }));
		assert_failure("misuse", handle:claim({ token = used, purpose = "fun" }));
		assert_failure("misuse", handle:redeem(attempt_of(used), "half a claim"));
		assert_failure("misuse", handle:release("half a claim"));
		assert_failure("misuse", handle:forget("half a claim"));
		assert_failure("misuse", handle:prepare({ type = "postal", ttl = 60 }));
		for _, ttl in ipairs({ 0, -1, 0.5, 0 / 0, 1e300, "soon", {}, print, true }) do
			local text = assert_failure("bad-request", handle:prepare({ type = "register", ttl = ttl }));
			assert.is_nil(text and text:find("0x", 1, true));
		end
		assert_failure("bad-request", handle:prepare({ type = "register" }));
		assert_failure("misuse", handle:pending_invites("account", "half a page"));
		assert_failure("misuse", handle:prepare({ type = "register", ttl = 60, account = "asleep" }));
		assert_failure("conflict", handle:prepare({ type = "register", ttl = 60, username = "x", account = "active" }));
		local reset = { type = "register", ttl = 60, username = "x", is_reset = true };
		reset.account = "missing";
		assert_failure("item-not-found", handle:prepare(reset));
		reset.account = "disabled";
		assert_failure("not-allowed", handle:prepare(reset));
		assert.is_false(handle:release(NONCE));
		assert.is_false(handle:revoke("unknown"));
		assert.equal("romeo", handle:revoke(contact).username);
		assert.is_false(handle:revoke(contact));
	end);

	it("of the storage is nil, internal-server-error and what to do", function ()
		local handle = open({ path = directory.."/missing/invites.sqlite3" });
		local invite, draft = prepare(handle);
		local attempt = attempt_of("x");
		-- Not the one that is redeemed: that is under way from then on.
		local claim = { digest = ("x"):rep(32), nonce = ("s"):rep(16), boot = NONCE, purpose = "account", renewals = 0 };
		for name, args in pairs({
			save = { invite, draft }, get = { "x" }, info = { "account", "x" }, look = { "x" }, revoke = { "x" },
			confirm = { "x", { nurse = "missing" } }, claim = { attempt }, redeem_at_once = { attempt };
			redeem = { attempt, NONCE }, release = { NONCE }, settle = { claim, "missing" };
			look_at_claims = {}, claims_on = { "x" }, release_claims = { "x" };
			check_name = { "juliet" }, retire_depending = { "juliet" }, retire_resets = { "juliet" },
			end_expired = {}, pending_invites = { "account" },
		}) do
			local text = assert_failure("internal-server-error", handle[name](handle, table.unpack(args)));
			assert.truthy(text:find(directory.."/missing/invites.sqlite3", 1, true), text);
			assert.truthy(text:find("create it", 1, true), text);
			assert.is_nil(text:find(invite.token, 1, true));
		end
	end);

	it("is all that an odd token causes", function ()
		local handle = open();
		local function try(token)
			local expected = token and "token-invalid" or "no-token";
			assert_failure(expected, handle:get(token));
			assert_failure(expected, handle:get(token, "romeo"));
			assert_failure(expected, handle:info("account", token));
			assert_failure(expected, handle:look(token));
			assert_failure(expected, handle:claim({ token = token, purpose = "account", invitee = "juliet" }));
			assert_failure(expected, redeem(handle, token));
			assert_failure(type(token) == "string" and "claim-lost" or expected, handle:redeem(attempt_of(token), NONCE));
			if token then
				assert.is_false(handle:revoke(token));
			else
				assert_failure("no-token", handle:revoke(token));
			end
		end
		try(nil);
		for _, token in pairs(ODD_TOKENS) do
			try(token);
		end
	end);

	it("names no token", function ()
		local handle = open();
		local token = create(handle).token;
		assert(redeem(handle, token));
		for _, text in ipairs({
			assert_failure("token-invalid", handle:get(token)),
			assert_failure("token-invalid", handle:info("account", token)),
			assert_failure("token-used", redeem(handle, token)),
			assert_failure("token-used", handle:claim({ token = token, purpose = "account", invitee = "juliet" })),
			assert_failure("claim-lost", handle:redeem(attempt_of(token), NONCE)),
		}) do
			assert.is_nil(text:find(token, 1, true), text);
		end

		local invite, draft = prepare(handle);
		assert(handle:save(invite, draft));
		local text = assert_failure("internal-server-error", handle:save(invite, draft));
		assert.is_nil(text:find(invite.token, 1, true));
		for _, opaque in ipairs({ handle, draft }) do
			assert.is_nil(tostring(opaque):find(invite.token, 1, true));
		end
	end);

	it("of misuse by a programmer, raised, names no token either", function ()
		local handle = open();
		local invite, draft = prepare(handle);
		for _, call in ipairs({
			function () handle.get(invite.token); end,
			function () handle.save(handle, invite, invite); end,
			function () handle.save(handle, invite.token, draft); end,
			function () handle:get(invite.token, {}); end,
			function () handle:claim(invite.token); end,
			function () handle:redeem(invite.token); end,
			function () handle:redeem_at_once({ token = invite.token, purpose = {} }); end,
		}) do
			local ok, raised = pcall(call);
			assert.is_false(ok);
			assert.is_nil(tostring(raised):find(invite.token, 1, true));
		end
	end);
end);

describe("what an event would tell", function ()
	it("is put together only if anybody hears it", function ()
		local handle = open();
		local invite, draft = prepare(handle);
		local restored, superseded, summary = handle:save(invite, draft, false);
		assert.same({ {}, {} }, { restored, superseded });
		assert.is_nil(summary);
		local claim = assert(handle:claim({ token = invite.token, purpose = "account", invitee = "romeo" }));
		assert.is_true(handle:redeem(attempt_of(invite.token, "romeo"), claim, "spec", false));
		assert.equal("token-used", select(2, redeem(handle, invite.token)));
	end);
end);

describe("a claim", function ()
	local function attempt(token, invitee, more)
		local all = { token = token, purpose = "account", invitee = invitee };
		for k, v in pairs(more or {}) do
			all[k] = v;
		end
		return all;
	end

	it("keeps others out until it is released, and becomes a use once", function ()
		local handle = open();
		local token = create(handle).token;
		local claim = assert(handle:claim(attempt(token, "juliet")));
		assert.equal("token-busy", select(2, handle:claim(attempt(token, "romeo"))));
		assert.equal("token-busy", select(2, handle:redeem_at_once(attempt(token, "romeo"))));
		assert.equal("token-busy", select(2, handle:check_name("juliet")));
		assert.is_true(handle:release(claim));
		assert.is_false(handle:release(claim));
		assert.is_true(handle:check_name("juliet"));

		claim = assert(handle:claim(attempt(token, "romeo")));
		assert.equal(1, handle:redeem(attempt_of(token), claim, "spec", true).uses);
		assert.is_true(handle:redeem(attempt_of(token), claim, "spec"));
		assert.is_false(handle:release(claim));
		assert.equal("token-used", select(2, handle:claim(attempt(token, "mercutio"))));
	end);

	it("that somebody has released is redeemed where a use is free, and else says what is lost", function ()
		local handle = open();
		local token, other = create(handle).token, create(handle).token;
		local claim = assert(handle:claim(attempt(token, "juliet")));
		assert.is_true(handle:release(claim));
		assert.equal(1, handle:redeem(attempt(token, "juliet"), claim, nil, true).uses);

		local first = assert(handle:claim(attempt(other, "romeo")));
		assert.equal("alive", handle:claims_on(other)[1].life);
		assert.equal(1, handle:release_claims(other));
		assert(handle:claim(attempt(other, "tybalt")));
		local _, condition, text, lost = handle:redeem(attempt(other, "romeo"), first);
		assert.same({ "claim-lost", true }, { condition, lost.is_taken_back });
		assert.truthy(text:find(lost.id, 1, true));
	end);

	it("that nobody holds is to be settled after a lease of looks", function ()
		local handle = open({ lease = 0.05 });
		local token = create(handle).token;
		assert(handle:claim(attempt(token, "juliet")));
		handle:forget(assert(handle:claim(attempt(create(handle).token, "romeo"))));
		assert.same({}, handle:look_at_claims());
		local claims, began = {}, os.clock();
		while not claims[1] do
			claims = handle:look_at_claims();
			assert.is_true(os.clock() - began < 10);
		end
		assert.same({ 1, "romeo" }, { #claims, claims[1].invitee });
		assert.equal(1, handle:settle(claims[1], "active").uses);
		assert.is_true(handle:settle(claims[1], "active"));
	end);

	it("is released by a review once its coroutine waits for nothing any more", function ()
		local handle = open({ host = "review.example" });
		local token = create(handle).token;
		local claim = assert(handle:claim(attempt(token, "juliet")));
		local nothing = { over = {}, used = {}, lost = {}, ended = {}, problems = {}, is_idle = false };
		assert.same(nothing, handle:review({ claim }, true));
		assert.equal("token-busy", select(2, handle:claim(attempt(token, "romeo"))));
		nothing.over, nothing.is_idle = { claim }, true;
		assert.same(nothing, handle:review({}, true));
		assert.truthy(handle:claim(attempt(token, "romeo")));
	end);

	it("takes the place of the one that its holder names", function ()
		local handle = open();
		local token = create(handle).token;
		local first = assert(handle:claim(attempt(token, "juliet")));
		local second = assert(handle:claim(attempt(token, "romeo", { replaced = first })));
		assert.not_equal(first, second);
		assert.equal("claim-lost", select(2, handle:redeem(attempt_of(token), first)));
		assert.truthy(handle:redeem(attempt(token, "romeo"), second));
	end);

	it("is refused for another name than the one of the invite, and that name to everybody else", function ()
		local handle = open();
		local bound, any = create(handle, { username = "juliet" }).token, create(handle).token;
		assert.equal("name-mismatch", select(2, handle:claim(attempt(bound, "romeo"))));
		assert.equal("name-reserved", select(2, handle:claim(attempt(any, "juliet"))));
		assert.equal("name-reserved", select(2, handle:check_name("juliet")));
		assert.truthy(handle:claim(attempt(bound, "juliet")));
	end);
end);

describe("what is told of an invite that ended", function ()
	it("says which one it was, whatever ended it, and never its token", function ()
		local handle = open();
		local reset = { username = "juliet", is_reset = true, account = "active" };
		local function mark(invite) invite.additional_data = { allow_reset = "juliet" }; end
		local older = create(handle, { username = "juliet" });
		local newer, draft = prepare(handle, { username = "juliet" });
		local _, superseded = assert(handle:save(newer, draft));
		local changed, used = create(handle, reset, mark), create(handle);
		local told = {
			[older.token] = superseded[1],
			[newer.token] = handle:revoke(newer.token, "no longer welcome"),
			[changed.token] = handle:retire_resets("juliet")[1],
			[used.token] = redeem(handle, used.token),
		};
		local orphan = create(handle, { type = "roster", username = "juliet" });
		told[orphan.token] = handle:retire_depending("juliet")[1];
		local over = create(handle, nil, function (invite) invite.expires = invite.created_at - 1; end);
		told[over.token] = handle:end_expired()[1];

		local ids, told_of = {}, 0;
		for token, summary in pairs(told) do
			assert.is_true(is_plain(summary));
			assert.equal("example.com", summary.host);
			assert.equal("integer", math.type(summary.created_at));
			assert.is_nil(ids[summary.id]);
			ids[summary.id], told_of = true, told_of + 1;
			for name, value in pairs(summary) do
				assert.is_nil(tostring(value):find(token, 1, true), name);
			end
		end
		assert.equal("no longer welcome", told[newer.token].revoked_why);
		assert.equal(6, told_of);
	end);
end);

describe("two hosts on one database", function ()
	it("know nothing of each other's invites", function ()
		local here, there = open(), open({ host = "example.net" });
		local token = create(here).token;
		assert.is_nil((there:get(token)));
		assert.is_nil((there:info("account", token)));
		assert.is_nil((there:look(token)));
		assert.is_nil((there:claim({ token = token, purpose = "account", invitee = "juliet" })));
		assert.is_nil((redeem(there, token)));
		assert.is_false(there:revoke(token));
		assert.is_nil(next(pending(there)));
		assert.truthy(here:get(token));
	end);
end);

describe("a purge", function ()
	local FAR = 4000000000;

	-- Invites that were used, of which a purge that is told of the next minute takes what is not spared.
	local function used(handle, number)
		local tokens = {};
		for i = 1, number do
			tokens[i] = create(handle, { ttl = math.huge }).token;
			assert(redeem(handle, tokens[i]));
		end
		return tokens;
	end

	local function row(token)
		return {
			type = "register", jid = "example.com", token = token, created_at = 1, expires = FAR, allow_registration = true
		};
	end

	local function purge(handle, read) return assert(handle:purge(-60, 10, read)); end

	it("spares what lies in the bundled module's store, and everything while nobody can tell", function ()
		local handle = open();
		local tokens = used(handle, 3);
		assert.equal(0, purge(handle, function () return nil, "it cannot be read"; end));
		-- Nor is it tried again at once.
		assert.equal(0, purge(handle, function () error("it is read again"); end));

		handle = open();
		local function read() return { [tokens[2]] = row(tokens[2]) }, { juliet = { [tokens[3]] = math.huge } }; end
		assert.equal(1, purge(handle, read));
		assert.equal(0, purge(handle, read));
		assert.equal(2, purge(handle, function () return {}, {}; end));
	end);

	it("knows what was imported without reading it again", function ()
		local handle = open();
		local tokens = used(handle, 2);
		assert.equal(1, assert(handle:import_bundled({ [tokens[1]] = row(tokens[1]) }, {})).known);
		assert.equal(0, (handle:purge(0, 10, function () error("it is read again"); end)));
		-- What was stored there since is not known.
		assert.equal(1, purge(handle, function () return { [tokens[2]] = row(tokens[2]) }, {}; end));
		assert.same("used", assert(handle:show(tokens[2])).state);
	end);
end);

describe("pages of pending invites", function ()
	it("hold what is for a contact alone where all kinds are asked for", function ()
		local handle = open();
		local token = create(handle, { type = "roster", username = "romeo", allow_registration = false }).token;
		assert.is_nil(next(pending(handle)));
		assert.equal(token, assert(handle:pending_invites("all"))[1].token);
		assert.equal("token-invalid", select(2, handle:info("account", token)));
		assert.equal(token, assert(handle:info("all", token)).token);
	end);

	it("hold each invite once, also when some are revoked meanwhile", function ()
		local handle = open({ storage = "memory" });
		local created, seen = 1203, 0;
		local tokens = {};
		for _ = 1, created do
			tokens[create(handle).token] = true;
		end
		local after;
		repeat
			local page;
			page, after = assert(handle:pending_invites("account", after));
			for _, invite in ipairs(page) do
				assert.is_true(tokens[invite.token]);
				tokens[invite.token] = nil;
				seen = seen + 1;
				assert.truthy(handle:revoke(invite.token));
			end
		until not after;
		assert.equal(created, seen);
		assert.is_nil(next(tokens));
	end);

	describe("an operator's methods", function ()
		local function id_of(handle, token)
			return assert(handle:show(token)).id;
		end

		it("take a token or a piece of an id, and what redeems takes tokens alone", function ()
			local handle = open();
			local invite = create(handle);
			local id = id_of(handle, invite.token);
			for _, named in ipairs({ invite.token, id, id:sub(1, 6) }) do
				local key = assert(handle:resolve(named));
				assert.equal(id, assert(handle:show(key)).id);
				assert.equal("account", assert(handle:look(key)).purpose);
			end
			for _, named in ipairs({ id, id:sub(1, 6) }) do
				assert.same({ nil, "token-invalid" }, { (select(1, handle:get(named))), (select(2, handle:get(named))) });
				assert.equal("token-invalid", (select(2, handle:claim({ token = named, purpose = "account", invitee = "x" }))));
				assert.equal("token-invalid", (select(2, handle:redeem_at_once({ token = named, purpose = "account" }))));
				assert.is_false((handle:revoke(named)));
			end
			for what, odd in pairs(ODD_TOKENS) do
				local key, condition = handle:resolve(odd);
				assert.is_nil(key, what);
				assert.equal(odd and "token-invalid" or "no-token", condition, what);
			end
		end);

		it("refuse what is no filter, no page and no number of uses in words", function ()
			local handle = open();
			local function assert_refused(expected, result, condition, text)
				assert.is_nil(result);
				assert.equal(expected, condition);
				assert.is_string(text);
			end
			assert_refused("bad-request", handle:list({ state = "gone" }));
			assert_refused("bad-request", handle:list({ kind = "gone" }));
			assert_refused("misuse", handle:list({ part = "gone" }));
			assert_refused("misuse", handle:list({}, "not a page"));
			assert_refused("misuse", handle:count_open("not a page"));
			for _, max_uses in ipairs({ 0, 2^40, "many" }) do
				assert_refused("bad-request", handle:prepare({ type = "register", ttl = 60, max_uses = max_uses }));
			end
		end);

		it("list in pages that follow each other, without tokens", function ()
			local handle = open();
			local drafts = {};
			for i = 1, 450 do
				local invite, draft = prepare(handle, { max_uses = 2 });
				drafts[i] = { invite, draft };
			end
			assert.equal(450, #assert(handle:save_all(drafts)));
			local seen, total, after = {}, 0, nil;
			repeat
				local page, next_after = assert(handle:list({}, after));
				for _, summary in ipairs(page) do
					assert.is_nil(seen[summary.id]);
					assert.is_nil(summary.token);
					assert.equal(2, summary.max_uses);
					seen[summary.id], total = true, total + 1;
				end
				after = next_after;
			until not after;
			assert.equal(450, total);
		end);

		it("make a bounded invite that says how often it was used", function ()
			local handle = open();
			local invite = create(handle, { max_uses = 3 });
			assert.equal(3, invite.max_uses);
			assert(redeem(handle, invite.token));
			local info = assert(handle:info("account", invite.token));
			assert.equal(3, info.max_uses);
			assert.equal(1, info.uses);
			assert.equal("juliet", assert(handle:show(invite.token)).redemptions[1].invitee);
		end);
	end);
end);
