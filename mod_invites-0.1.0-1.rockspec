rockspec_format = "3.0"
package = "mod_invites"
version = "0.1.0-1"
-- The release tarball beside this file; `luarocks make` builds the checkout and never fetches it.
source = {
	url = "mod_invites-0.1.0.tar.gz",
	dir = "mod_invites-0.1.0",
}
description = {
	summary = "Invitations for Prosody, as a drop-in replacement of its mod_invites",
	detailed = [[
		Creates, validates and redeems invitations to register an account or to become a contact.
		The logic is native (Rust); building it needs cargo and a C compiler.
	]],
	license = "MIT",
	labels = { "prosody", "xmpp" },
}
supported_platforms = { "linux" }
dependencies = { "lua >= 5.1, < 5.5" }
build = {
	type = "make",
	build_variables = { LUA = "$(LUA)" },
	install_pass = false,
	install = {
		lua = {
			["mod_invites.mod_invites"] = "lua/mod_invites/mod_invites.lua",
			-- These become mod_invites/compat.lua and so on; Prosody's module:require looks for those after compat.lib.lua.
			["mod_invites.compat"] = "lua/mod_invites/compat.lib.lua",
			["mod_invites.bundled"] = "lua/mod_invites/bundled.lib.lua",
			["mod_invites.check"] = "lua/mod_invites/check.lib.lua",
			["mod_invites.contacts"] = "lua/mod_invites/contacts.lib.lua",
			["mod_invites.form"] = "lua/mod_invites/form.lib.lua",
			["mod_invites.forward"] = "lua/mod_invites/forward.lib.lua",
			["mod_invites.guard"] = "lua/mod_invites/guard.lib.lua",
			["mod_invites.limits"] = "lua/mod_invites/limits.lib.lua",
			["mod_invites.lineage"] = "lua/mod_invites/lineage.lib.lua",
			["mod_invites.metrics"] = "lua/mod_invites/metrics.lib.lua",
			["mod_invites.native"] = "lua/mod_invites/native.lib.lua",
			["mod_invites.prosodyctl"] = "lua/mod_invites/prosodyctl.lib.lua",
			["mod_invites.protected"] = "lua/mod_invites/protected.lib.lua",
			["mod_invites.redemption"] = "lua/mod_invites/redemption.lib.lua",
			["mod_invites.shell"] = "lua/mod_invites/shell.lib.lua",
		},
		lib = {
			prosody_invites = "lua/mod_invites/prosody_invites.so",
		},
	},
}
