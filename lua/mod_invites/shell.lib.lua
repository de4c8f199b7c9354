-- The "invite" commands of the Prosody shell, which the library understands and carries out as it does those of
-- prosodyctl. Their output is read by programs: links stand on the line that begins with "OK: ", and the columns of
-- "list" are divided by " | ".

local compat = module.compat;
local protected = module.protected;

local jid_split = compat.lib("util.jid").split;
local modulemanager = compat.lib("core.modulemanager");

local shell = {};

local COLUMNS = {
	{ title = "Token", key = "token", width = 24 };
	{ title = "Expires", key = "expires", width = 20 };
	{ title = "Description", key = "description", width = "100%" };
};

-- What prints for somebody at the shell.
local function output(session, width)
	local out = {};
	function out.stdout(text)
		for line in text:gmatch("([^\n]*)\n") do session.print(line); end
	end
	local print_row;
	function out.begin_table()
		print_row = compat.table(COLUMNS, width);
		session.print(print_row());
	end
	function out.row(cells)
		session.print(print_row({ token = cells[1], expires = cells[2], description = cells[3] }));
	end
	return out;
end

local function has_groups(host)
	return modulemanager.get_modules_for_host(host):contains("invites_groups");
end

-- Carries out what was typed: true and what is said last, or nil and why not. The shell keeps a command after the
-- module that has registered it is unloaded (13.0), or has that of whichever host was loaded last (0.12), so the module
-- is looked for again.
local function run(native, name, session, selector, ...)
	if type(selector) ~= "string" then return nil, "Supply a host, or the JID of an account"; end
	local localpart, host = jid_split(selector);
	local invites = prosody.hosts[host] and modulemanager.get_module(host, "invites");
	if not invites then return nil, "mod_invites not loaded on this host"; end
	-- 0.12 does not know how wide the terminal is, and would cut descriptions off.
	local width = session.width or 160;
	local command = native.shell_command({
		name = name, selector = selector, localpart = localpart, has_groups = has_groups(host), width = width;
	}, ...);
	if command.problem then return nil, command.problem; end
	local out = output(session, width);
	if name == "list" then out.begin_table(); end
	local code, message = invites.carry_out(command, out);
	message = message or "The invite could not be stored or read; see the log";
	if code ~= 0 then return nil, message; end
	return true, message;
end

-- Makes the commands known to the shell.
function shell.register(native)
	for _, command in ipairs(native.shell_commands()) do
		local name = command.name;
		if not has_groups(module.host) then command.flags.array_params.group = nil; end
		local function handler(self, ...) return run(native, name, self.session, ...); end
		local what = ("The command invite:%s of the shell failed, and its user was told so"):format(name);
		local function fail_in_words() return nil, "The command failed; see the log"; end
		compat.add_shell_command("invite", "Create and manage invitations", command,
			protected.guard(what, handler, fail_in_words));
	end
end

return shell;
