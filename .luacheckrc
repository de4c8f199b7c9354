-- Everything keeps to what Lua 5.1 to 5.4 and LuaJIT have in common.
std = "min"
max_line_length = 120
cache = false
ignore = { "212/self" }

-- What a Prosody module sees. Listed one by one, and only what 0.12 and 13.0 both have: a misspelt or a newer name
-- belongs to a warning, a newer one that is needed to compat.lib.lua.
local module_api = {
	"add_extension", "add_feature", "add_identity", "add_item", "add_timer", "broadcast", "context", "cron", "daily",
	"depends", "environment", "fire_event", "get_directory", "get_host", "get_host_items", "get_host_type", "get_name",
	"get_option", "get_option_array", "get_option_boolean", "get_option_inherited_set", "get_option_number",
	"get_option_path", "get_option_scalar", "get_option_set", "get_option_string", "get_status", "global",
	"handle_items", "hook", "hook_global", "hook_object_event", "hook_tag", "host", "hourly", "load_resource", "loaded",
	"log", "log_status", "measure", "metric", "name", "open_store", "path", "provides", "reloading", "remove_item",
	"require", "resource_path", "saved_state", "send", "send_iq", "set_global", "set_status", "shared", "unhook",
	"unhook_object_event", "weekly", "wrap_event", "wrap_global", "wrap_object_event",
}
local fields = {}
for _, name in ipairs(module_api) do fields[name] = { other_fields = true } end
for _, name in ipairs({ "add_host", "command", "load", "restore", "save", "unload" }) do
	fields[name] = { read_only = false }
end
-- Ours: what differs between the versions, and what calls code that may fail; loaded once for all parts of the module.
fields.compat = { read_only = false, other_fields = true }
fields.protected = { read_only = false, other_fields = true }

files["lua/"] = {
	read_globals = { prosody = { other_fields = true }, module = { fields = fields } },
	-- A global of a module is a function that it exports; others reach it through module:depends.
	allow_defined_top = true,
	module = true,
}
files["lua/mod_invites/*.lib.lua"] = {
	read_globals = { module = { other_fields = true, fields = fields } },
}
files["spec/"] = { std = "+busted" }
files["spec/server/modules/"] = {
	read_globals = { prosody = { other_fields = true }, module = { other_fields = true } },
	allow_defined_top = true,
	module = true,
}
