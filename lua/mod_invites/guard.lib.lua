-- Keeps registration closed where it is by invitation only and mod_invites_register, which sees to that, is not loaded:
-- it is unloaded with this module, and mod_register_ibr alone lets everybody in. So the guard is added to the
-- host's events, not through the module API: it stays when this module is unloaded, and ends with the host. It also
-- says whether anybody can register in-band. See docs/design/contract.md §4.6.

local compat = module.compat;
local protected = module.protected;

local config = compat.lib("core.configmanager");
local modulemanager = compat.lib("core.modulemanager");
local timer = compat.lib("util.timer");

local guard = {};

-- Before every handler that could end the event.
local PRIORITY = 1000000;

-- Whether the configuration, as it is now, lets nobody register without an invite.
function guard.is_invite_only(host)
	local value = config.get(host, "registration_invite_only");
	if value == false or value == "false" or value == 0 then return false; end
	-- It raises an error if modules_enabled is no list.
	local is_known, modules = protected.call(nil, modulemanager.get_modules_for_host, host);
	return not is_known or modules:contains("invites_register");
end

-- Whether registration has to be refused on a host, since mod_invites_register is not there to do it.
local function must_be_closed(host)
	return not modulemanager.is_loaded(host, "invites_register") and guard.is_invite_only(host);
end

-- The modules that no other module can depend on, by name: modules_disabled, of the host and of all hosts.
function guard.disabled_modules(host)
	local disabled = {};
	for _, section in ipairs({ "*", host }) do
		for _, name in ipairs(config.get(section, "modules_disabled") or {}) do disabled[name] = true; end
	end
	return disabled;
end

-- An option as module:get_option_boolean reads it for a module of the host: nil if it is not understood.
local function boolean(host, name, default)
	local value = config.get(host, name);
	if value == nil then return default; end
	if value == true or value == "true" or value == 1 then return true; end
	if value == false or value == "false" or value == 0 then return false; end
end

-- The question of registers_in_band(), asked of the configuration.
local function will_register_in_band(host)
	local modules, disabled = modulemanager.get_modules_for_host(host), guard.disabled_modules(host);
	if disabled.register_ibr then return false; end
	-- mod_invites_register loads mod_register_ibr then; without it, the guard stands.
	if modules:contains("invites_register") and boolean(host, "registration_invite_only", true) then
		return not disabled.invites;
	end
	return modules:contains("register_ibr")
		or modules:contains("register") and boolean(host, "allow_registration", false) or false;
end

-- By host. In prosodyctl no configuration is loaded again.
local will_register = {};

-- Whether anybody can register in-band on a host: XEP-0401 forbids "ibr=y" in its links otherwise. prosodyctl loads no
-- modules, and goes by the configuration.
function guard.registers_in_band(host)
	if not compat.is_prosodyctl then
		return (modulemanager.is_loaded(host, "register_ibr") or false) and not must_be_closed(host);
	end
	if will_register[host] == nil then will_register[host] = will_register_in_band(host); end
	return will_register[host];
end

-- Guards this module's host from now on, in the place of the guard that an earlier load of this module has left.
-- `refuse(event)` refuses a registration.
function guard.stand(refuse)
	if module.host == "*" or compat.is_prosodyctl then return; end
	local host, host_session = module.host, prosody.hosts[module.host];
	local previous = host_session.invites_guard;
	local this = { is_reported = previous and previous.is_reported; handlers = {} };

	local function is_needed()
		if not must_be_closed(host) then
			this.is_reported = false;
			return false;
		end
		if not this.is_reported then
			this.is_reported = true;
			module:log("warn", "Nobody can register on %s: registration is by invitation only, and mod_invites_register "
				.."is not loaded. Load it again; or, to let everybody register, remove \"invites_register\" from "
				.."modules_enabled or set registration_invite_only = false, and reload the configuration", host);
		end
		return true;
	end

	-- Once all modules are loaded or unloaded, or the host is gone. A timer of the module would end with it.
	local function look_soon()
		timer.add_task(0, protected.guard("Whether registration has to be closed cannot be told yet", function ()
			if prosody.hosts[host] == host_session and host_session.invites_guard == this then is_needed(); end
		end));
	end

	local function close(event)
		refuse(event);
		return true;
	end

	this.handlers["user-registering"] = protected.guard("Whether registration has to be closed cannot be told, so it is",
		function (event)
			if is_needed() then return close(event); end
		end, close);
	this.handlers["module-loaded"] = look_soon;
	this.handlers["module-unloaded"] = look_soon;

	for name, handler in pairs(this.handlers) do
		host_session.events.add_handler(name, handler, PRIORITY);
	end
	for name, handler in pairs(previous and previous.handlers or {}) do
		host_session.events.remove_handler(name, handler);
	end
	rawset(host_session, "invites_guard", this);
	look_soon();
end

return guard;
