-- Stores of other modules in the storage of a host. A host need not have them: its driver may keep nothing at all, or
-- only some stores, or be missing. Drivers may also raise errors; whoever reads a store bears that in mind.

local compat = module.compat;

local storagemanager = compat.lib("core.storagemanager");

local stores = {};

-- Name of the driver that a host has for a store.
function stores.driver(host, name)
	local _, driver = storagemanager.get_driver(host, name);
	return driver;
end

-- Opens a store; or nil and an error, and whether that will stay so for as long as the configuration does.
function stores.open(host, name, typ)
	local store, err = storagemanager.open(host, name, typ);
	if not store then return nil, err, err == "unsupported-datastore"; end -- mod_storage_xep0227
	-- storagemanager's stand-in for a driver that cannot be loaded, or does not keep such a store.
	if store.name == "null" then return nil, "the host has no storage for "..name, true; end
	return store;
end

-- Whether a driver can list the users of a store. Not all can, mod_storage_none cannot.
function stores.has_users(store)
	return type(store.users) == "function";
end

-- The users that a store has rows for. Some drivers list the host's own rows among them: under "" (SQL), or under a
-- function (memory).
function stores.users(store)
	local users = {};
	for user in store:users() do
		if type(user) == "string" and user ~= "" then table.insert(users, user); end
	end
	return users;
end

return stores;
