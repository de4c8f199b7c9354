-- Runs a chunk of Lua inside the running server and answers with its values as JSON.
-- It executes whatever it is sent: only for the scratch servers of the tests, on loopback.
--
-- A JSON array, string, true and false stand for themselves. All else is an object with one key, the Lua type, because
-- JSON would lose what the tests look at: nil against false, integer against float, keys that are no strings.

local json = require "util.json";
local valid_utf8 = require "util.encodings".utf8.valid;

-- COMPAT Lua 5.1. Read raw: Prosody logs a warning for each look at a global that does not exist.
local loadstring, setfenv = rawget(_G, "loadstring"), rawget(_G, "setfenv");
-- COMPAT Lua 5.1, 5.2: no subtypes, a whole number counts as an integer
local math_type = rawget(math, "type") or function (n)
	return n % 1 == 0 and math.abs(n) <= 2^53 and "integer" or "float";
end;

module:depends("http");

local function is_array(t)
	local count = 0;
	for _ in next, t do
		count = count + 1;
	end
	return count > 0 and count == #t;
end

local encode;

-- Reads the table raw: a metatable is not part of what the test compares. `parents` stops cycles.
local function encode_table(t, parents)
	if parents[t] then
		return "<cycle>";
	end
	parents[t] = true;
	local out = {};
	if is_array(t) then
		for i = 1, #t do
			out[i] = encode(rawget(t, i), parents);
		end
	else
		local pairs_list = {};
		for k, v in next, t do
			table.insert(pairs_list, { encode(k, parents), encode(v, parents) });
		end
		out.map = pairs_list;
	end
	parents[t] = nil;
	return out;
end

function encode(value, parents)
	local kind = type(value);
	if kind == "nil" then
		return { ["nil"] = true };
	elseif kind == "boolean" then
		return value;
	elseif kind == "number" then
		if math_type(value) == "integer" then
			return { integer = ("%d"):format(value) };
		end
		return { float = ("%.17g"):format(value) };
	elseif kind == "string" then
		if valid_utf8(value) then
			return value;
		end
		return { bytes = (value:gsub(".", function (c) return ("%02x"):format(c:byte()); end)) };
	elseif kind == "table" then
		return encode_table(value, parents);
	end
	return "<"..kind..">";
end

-- What util.json decodes carries metatables; a module under test must get the tables that a Lua caller would pass.
local function plain(value)
	if type(value) ~= "table" or value == json.null then
		return value;
	end
	local out = {};
	for k, v in next, value do
		out[k] = plain(v);
	end
	return out;
end

-- Globals that the chunk sets die with it; those of the module environment (module, prosody, require) are seen through.
local function compile(code, args)
	local env = setmetatable({ args = args }, { __index = module.environment });
	if setfenv then
		local chunk, err = loadstring(code, "=eval");
		return chunk and setfenv(chunk, env), err;
	end
	return load(code, "=eval", "t", env);
end

local function pack(ok, ...)
	return ok, select("#", ...), { ... };
end

local function traceback(err)
	return debug.traceback(tostring(err), 2);
end

local function run(code, args)
	local chunk, syntax_error = compile(code, args);
	if not chunk then
		return { ok = false, error = syntax_error };
	end
	local ok, n, values = pack(xpcall(chunk, traceback));
	if not ok then
		return { ok = false, error = values[1] };
	end
	local encoded = {};
	for i = 1, n do
		encoded[i] = encode(values[i], {});
	end
	return { ok = true, n = n, values = encoded };
end

-- HTTP handlers run in util.async: a chunk may wait, and only its own connection waits with it.
module:provides("http", {
	name = "spec_eval";
	route = {
		["POST"] = function (event)
			local request = json.decode(event.request.body);
			event.response.headers.content_type = "application/json";
			return json.encode(run(request.lua, plain(request.args)));
		end;
	};
});
