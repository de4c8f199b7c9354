-- Finds the native library, and sees that it can be used.

local protected = module.protected;

local native = {};

-- Whether a file is there, and whether it is as long as its ELF header says: the section headers end it. Loading a
-- library that was cut off kills the process.
local function examine(path)
	local file = io.open(path, "rb");
	if not file then return false; end
	local header, size = file:read(64) or "", file:seek("end");
	file:close();
	local function number(offset, length)
		local value = 0;
		for i = offset + length, offset + 1, -1 do value = value * 256 + (header:byte(i) or 0); end
		return value;
	end
	local is_64_bit, is_little_endian = header:byte(5) == 2, header:byte(6) == 1;
	if header:sub(1, 4) ~= "\127ELF" then return true, false; end
	if not is_little_endian then return true, true; end
	local sections, entry_size, entries;
	if is_64_bit then
		sections, entry_size, entries = number(0x28, 8), number(0x3A, 2), number(0x3C, 2);
	else
		sections, entry_size, entries = number(0x20, 4), number(0x2E, 2), number(0x30, 2);
	end
	return true, size >= sections + entry_size * entries;
end

-- require() alone does not find the library: Prosody adds neither the installer's tree nor plugin_paths to
-- package.cpath. It may lie beside this file (a checkout), in the lib half of a LuaRocks tree, or where Lua looks by
-- itself. See docs/design/contract.md §4.3.
local function load_library()
	local name = "prosody_invites";
	if package.loaded[name] then return package.loaded[name]; end
	local lua_version = _VERSION:match("%d+%.%d+");
	local directories = {};
	local here = module.path and module.path:match("^(.*)/[^/]*$");
	if here then
		table.insert(directories, here);
		local tree = here:match("^(.*)/share/lua/"..lua_version:gsub("%.", "%%.").."/mod_invites$");
		table.insert(directories, tree and tree.."/lib/lua/"..lua_version);
	end
	if prosody.paths.installer then
		table.insert(directories, prosody.paths.installer.."/lib/lua/"..lua_version);
	end
	for _, directory in ipairs(directories) do
		local path = directory.."/"..name..".so";
		local is_there, is_whole = examine(path);
		if is_there and not is_whole then
			return nil, path.." is damaged";
		elseif is_there then
			local open, err = package.loadlib(path, "luaopen_"..name);
			if not open then return nil, err; end
			local is_open, library = protected.call(nil, open, name, path);
			if not is_open or type(library) ~= "table" then
				return nil, path.." is not the library of mod_invites, it gave "..tostring(library);
			end
			package.loaded[name] = library;
			return library;
		end
	end
	local found, library = protected.call(nil, require, name);
	if found then return library; end
	return nil, name..".so was found neither in "..table.concat(directories, ", ").." nor by Lua's own search";
end

-- The library if it can be used, which has to be of this version; else nil and why not.
function native.load(version)
	local library, err = load_library();
	if not library then
		return nil, ("its library cannot be loaded (%s): install mod_invites again, for %s"):format(err, _VERSION);
	end
	if library.version ~= version then
		return nil, ("this is version %s, its library is version %s: install mod_invites again and restart Prosody")
			:format(version, tostring(library.version));
	end
	return library;
end

return native;
