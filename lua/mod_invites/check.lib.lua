-- prosodyctl mod_invites check: what the configuration of a host says that cannot be meant, and what the storage says
-- of itself.

local compat = module.compat;

local config = compat.lib("core.configmanager");

local check = {};

-- Exit codes, as monitoring systems have them.
local EXIT_CODES = { ok = 0, warning = 1, critical = 2 };

-- Options whose names begin as ours do, of this module and the others of its suite.
local OPTIONS = {
	invite_expiry = true, invite_history = true, invite_postgresql = true, invite_postgresql_deadline = true;
	invite_storage = true, invites_page = true, invites_page_external = true, invites_page_module = true;
	invites_page_supports = true, invites_registration_page = true, invites_register_template_path = true;
	invites_bootstrap_index = true, invites_bootstrap_secret = true, invites_bootstrap_ttl = true;
	invites_default_group = true, invite_limits = true, invite_limits_allow_unknown_age = true;
	invite_registration_field = true, invite_token_at_rest = true;
};

local KINDS_OF_PAGES = {
	["account"] = true, ["account-and-contact"] = true, ["contact"] = true, ["contact-only"] = true;
	["password-reset"] = true;
};

local TEMPLATE_NAMES = { ["invite.token"] = true, ["invite.uri"] = true, ["host"] = true };

-- Each of these looks at a host and calls warn(text) for what is not right.

local function check_option_names(host, warn)
	for _, section in ipairs({ "*", host }) do
		for name in pairs(config.getconfig()[section] or {}) do
			if name:match("^invites?_") and not OPTIONS[name] then
				warn(("the option %s is nobody's: is it misspelt?"):format(name));
			end
		end
	end
end

local function check_page(host, warn)
	local template, supports = config.get(host, "invites_page"), config.get(host, "invites_page_supports");
	for _, kind in ipairs(type(supports) == "table" and supports or {}) do
		if not KINDS_OF_PAGES[kind] then
			warn(("invites_page_supports names %q, which no invite is"):format(tostring(kind)));
		end
	end
	if type(template) ~= "string" then return; end
	local is_about_invite = false;
	for name in template:gmatch("{([%w_.]+)[^}]*}") do
		if not TEMPLATE_NAMES[name] then
			warn(("invites_page uses {%s}, which there is not"):format(name));
		end
		is_about_invite = is_about_invite or name:match("^invite%.") ~= nil;
	end
	if not is_about_invite then
		warn("invites_page names neither {invite.token} nor {invite.uri}: its page cannot know which invite it is for");
	end
	if type(supports) == "table" and #supports == 0 then
		warn("invites_page is never used: invites_page_supports is empty");
	end
end

local function check_expiry(host, warn, native)
	local value = config.get(host, "invite_expiry");
	if value == nil or value == false or value == "never" or tonumber(value) then return; end
	if type(value) ~= "string" or not native.parse_duration(value) then
		warn(("invite_expiry = %s is not understood, and invites expire after a week"):format(tostring(value)));
	end
end

local function check_roles(host, warn)
	for _, name in ipairs({ "allow_user_invites_by_roles", "deny_user_invites_by_roles" }) do
		if compat.is_13 and config.get(host, name) ~= nil then
			warn(("%s does nothing since Prosody 13: use the permissions of roles"):format(name));
		end
	end
end

local function check_modules(host, warn)
	local modules = compat.lib("core.modulemanager").get_modules_for_host(host);
	local registers_in_band = modules:contains("register_ibr")
		or modules:contains("register") and config.get(host, "allow_registration") == true;
	if registers_in_band and not modules:contains("invites_register") then
		warn("anybody can register without an invite: add \"invites_register\" to modules_enabled");
	elseif registers_in_band and config.get(host, "registration_invite_only") == false then
		warn("anybody can register without an invite: registration_invite_only is false");
	end
	if not (registers_in_band or modules:contains("invites_register_web") or modules:contains("invites_register_api")) then
		warn("nobody can register with an invite: add \"register_ibr\" to modules_enabled");
	end
	if modules:contains("register_json") then
		warn("mod_register_json makes accounts without asking: it gives away usernames that invites reserve");
	end
	if modules:contains("easy_invite") then
		warn("mod_easy_invite has invites of its own and takes the place of the shell's invite commands: remove it");
	end
	local page_module = config.get(host, "invites_page_module");
	if page_module and not modules:contains(page_module) then
		warn(("invites_page_module = %q is not enabled here, so it makes no pages"):format(tostring(page_module)));
	end
end

-- What mod_invites_register cannot be loaded without, and what follows where the configuration keeps that out.
local NEEDED = {
	{ name = "invites", consequence = "invites do not work, and who has none is not refused" };
	{ name = "register_ibr", consequence = "nobody can register" };
};

local function check_disabled(host, _, _, add)
	local modules = compat.lib("core.modulemanager").get_modules_for_host(host);
	if not modules:contains("invites_register") then return; end
	local guard = module:require("guard");
	local disabled = guard.disabled_modules(host);
	-- It needs mod_register_ibr only then.
	disabled.register_ibr = disabled.register_ibr and guard.is_invite_only(host);
	for _, needed in ipairs(NEEDED) do
		if disabled[needed.name] then
			add("critical", ("modules_disabled has %q, which mod_invites_register needs, so that is not loaded: %s"):format(
				needed.name, needed.consequence));
		end
	end
end

-- What still lies in the bundled module's store, where anybody who can read it can use it.
local function check_bundled(host, warn, _, add)
	if config.get(host, "invite_storage") == "prosody" then return; end
	local host_rows, user_rows = module:require("bundled").read(host);
	if not host_rows then
		warn("the store of the bundled module cannot be read: "..tostring(user_rows));
		return;
	end
	local count = 0;
	for _ in pairs(host_rows) do count = count + 1; end
	for _, rows in pairs(user_rows) do
		for token in pairs(rows) do
			if not host_rows[token] then count = count + 1; end
		end
	end
	if count > 0 then
		warn(("%d tokens lie in the plain in the store of the bundled module, invite_token: remove them if you will not go "
			.."back to it"):format(count));
	else
		add("ok", "nothing is left in the store of the bundled module");
	end
end

-- What mod_invites_tracking has written down, where no token is to lie in the plain.
local function check_tracking(host, warn, _, add)
	if config.get(host, "invite_token_at_rest") ~= "digest" then return; end
	local modules = compat.lib("core.modulemanager").get_modules_for_host(host);
	local count, err = module:require("lineage").count_tracked(host);
	if not count then
		warn("the store of mod_invites_tracking cannot be read: "..tostring(err));
	elseif modules:contains("invites_tracking") then
		warn(("mod_invites_tracking writes every token that is used into its store, invites_tracking, in the plain: remove "
			.."it from modules_enabled, who invited whom is known without it (tokens there now: %d)"):format(count));
	elseif count > 0 then
		warn(("%d tokens lie in the plain in the store of mod_invites_tracking, invites_tracking: remove them once the "
			.."server has taken over who invited whom"):format(count));
	else
		add("ok", "nothing is left in the store of mod_invites_tracking");
	end
end

function check.commands(prosodyctl)
	local commands = {};

	-- Looks at everything: prints it, and returns how bad the worst is.
	function commands.check(options, native)
		local host, findings = options.host, {};
		local function add(level, text)
			table.insert(findings, { level = level, text = text });
		end
		add("ok", ("mod_invites and its library have the version %s"):format(native.version));
		local invites, err = prosodyctl.invites_of(host);
		if invites then
			for _, finding in ipairs(invites.check_storage()) do table.insert(findings, finding); end
		else
			add("critical", err);
		end
		local before = #findings;
		local function warn(text) add("warning", text); end
		for _, look in ipairs({
			check_option_names, check_page, check_expiry, check_roles, check_modules, check_disabled;
		}) do
			look(host, warn, native, add);
		end
		if #findings == before then add("ok", "the configuration makes sense"); end
		check_bundled(host, warn, native, add);
		check_tracking(host, warn, native, add);

		local worst = 0;
		for _, finding in ipairs(findings) do
			worst = math.max(worst, EXIT_CODES[finding.level]);
			if not options.json then prosodyctl.print(finding.level..": "..finding.text); end
		end
		if options.json then prosodyctl.print(native.json(findings)); end
		return worst;
	end

	return commands;
end

return check;
