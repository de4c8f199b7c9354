-- prosodyctl mod_invites: the library understands a command line and carries it out. This file brings the facts that it
-- asks for, fires the events that it returns, and prints: results to stdout, everything else to stderr. Where two
-- processes cannot share the storage, the server does it, for a prosodyctl that asks it to.

local compat = module.compat;
local protected = module.protected;
local check = module:require("check");
local forward = module:require("forward");

local prosodyctl = {};

local is_prosodyctl = compat.is_prosodyctl;

local terminal = {
	stdout = function (text) io.stdout:write(text); end;
	stderr = function (text) io.stderr:write(text); end;
};

-- Where what a command prints goes; nil in a server that no prosodyctl asks for anything.
local sink = is_prosodyctl and terminal or nil;

-- Whether a command is being carried out, so that there is somebody to complain to.
function prosodyctl.is_running()
	return sink ~= nil;
end

-- One line, whatever is quoted in it.
function prosodyctl.complain(line)
	line = line:gsub("\\?[%c]", function (c) return ("\\%03d"):format(c:byte(-1)); end);
	sink.stderr("prosodyctl mod_invites: "..line.."\n");
end

--- carrying out

-- What the library asks for while it carries a command out: answers, by the word for the question. `desk` is what the
-- command is carried out on, see prosodyctl.carry_out.
local answers = {};

function answers.nothing() end

function answers.import(_, desk)
	return desk.import_bundled();
end

function answers.accounts(step)
	return compat.account_states(step.usernames);
end

function answers.inviter(step, desk)
	return {
		account = compat.account_state(step.username);
		inviter = step.is_limited and desk.inviter(step.username) or nil;
	};
end

function answers.handlers(step)
	for _, invite in ipairs(step.invites) do
		protected.fire("invite-created", invite);
	end
end

function answers.bundled_rows(_, desk)
	local host_rows, user_rows = desk.read_bundled();
	return host_rows and { host_rows = host_rows, user_rows = user_rows };
end

function answers.export_to_bundled(_, desk)
	local count, why = desk.export_to_bundled();
	return count or { why = why };
end

function answers.why(step, desk)
	local is_accepted, condition, text = desk.why(step.key, step.username);
	return is_accepted or { condition = condition, text = text };
end

function answers.line(step)
	io.stderr:write(step.prompt);
	return io.stdin:read("*l");
end

-- What the effects of a step do, by their names.
local effects = {};

function effects.print(_, out, text) out.stdout(text); end
function effects.complain(_, _, line) prosodyctl.complain(line); end
function effects.row(_, out, cells) out.row(cells); end
function effects.fire(_, _, event, summary) protected.fire(event, summary); end

function effects.report(desk, _, condition, text)
	-- A handler of an event has made a mistake, and nobody who called.
	desk.failed(condition == "misuse" and "internal-server-error" or condition, text);
end

function effects.end_soon(desk)
	desk.end_soon();
end

function effects.restored(_, _, name)
	module:log("warn", "A handler of invite-created changed the %s of an invite; it was restored", name);
end

-- Carries out a command that the library has understood: its exit code, and what the shell says last. `desk` has the
-- library's `handle` of a host, or of the whole server, and what the answers need; its `facts` are those of the
-- library that are not about the command. `out` prints.
function prosodyctl.carry_out(desk, command, out, input)
	local facts = setmetatable({ input = input, is_here = out == terminal }, { __index = desk.facts });
	facts.username = command.username and desk.prepped(command.username);
	if command.is_about_account and facts.username then
		facts.account = compat.account_state(facts.username);
	end
	local handle = desk.handle or desk.library;
	if command.is_check then
		facts.storage = desk.problem and { { level = "critical", text = desk.problem } } or handle:check();
		facts.configuration = check.configuration(command.host);
		handle = desk.library;
	end
	local step, condition, text = handle.carry_out(handle, command.run, facts);
	while step do
		for _, effect in ipairs(step.effects) do
			effects[effect[1]](desk, out, compat.unpack(effect, 2));
		end
		if step.exit then return step.exit, step.message; end
		step, condition, text = handle.carry_out(handle, command.run, answers[step.ask](step, desk));
	end
	desk.failed(condition, text);
	return 1;
end

--- in prosodyctl

-- The module of a host, which creates its invites; with it, what puts landing pages on them.
local function invites_of(host)
	local mm = compat.lib("core.modulemanager");
	local what = ("The accounts of %s cannot be looked at"):format(host);
	protected.call(what, compat.lib("core.usermanager").initialize_host, host);
	-- prosodyctl has loaded this file for all hosts at once; a module loaded so is not loaded for one.
	mm.unload("*", module.name);
	local invites, err = mm.load(host, module.name);
	if not invites then return nil, err; end
	local page_module = compat.lib("core.configmanager").get(host, "invites_page_module") or "invites_page";
	if mm.get_modules_for_host(host):contains(page_module) then
		local loaded, page_err = mm.load(host, page_module);
		if not loaded then
			prosodyctl.complain(("mod_%s cannot be loaded, so the link leads to no page: %s"):format(page_module, page_err));
		end
	end
	return mm.get_module(host, module.name);
end

-- Storage that only the server itself can use while it runs.
local IN_SERVER = { memory = true, prosody = true };

-- Makes a new file that only its owner may read: a function that writes to it, or nil and why not.
local function new_file(native, name)
	local created, _, err = native.create_file(name);
	if not created then return nil, err; end
	local file;
	file, err = io.open(name, "wb");
	if not file then return nil, err; end
	return function (text)
		local written, write_err = file:write(text);
		if written then written, write_err = file:flush(); end
		if not written then error(write_err, 0); end
	end;
end

-- Has the running server do it, if it is to: comes back if this process may do it, with why not if it may not.
local function ask_server(native, command, arg)
	local host, output = command.host, command.output;
	local storage = compat.lib("core.configmanager").get(host, "invite_storage");
	if not IN_SERVER[storage] then return true; end
	local forwarded = { compat.unpack(arg) };
	-- The terminal is here.
	if command.width then table.insert(forwarded, "--columns="..command.width); end
	local input, err;
	local asking = { stdout = terminal.stdout, stderr = terminal.stderr };
	if command.input then
		input, err = io.stdin, nil;
		if command.input ~= "-" then input, err = io.open(command.input, "rb"); end
		if not input then return nil, err; end
	end
	if output then
		asking.stdout, err = new_file(native, output);
		if not asking.stdout then return nil, err; end
		function asking.finish(code)
			if code ~= 0 then os.remove(output); end
		end
	end
	err = select(2, forward.ask(host, forwarded, input, asking));
	if output then os.remove(output); end
	if forward.is_server_running() then
		return nil, ("the server has the invites of %s to itself (invite_storage = %q) and has to be asked, but %s; "
			.."is mod_admin_shell enabled?"):format(host, storage, err);
	end
	local driver = protected.driver(host, "invite_token");
	if storage == "memory" or driver == "memory" then
		return nil, ("the invites of %s are in the memory of the server, and it does not run"):format(host);
	end
	return true;
end

-- Understands the command line `arg`: what is asked for, or nil and an exit code once it was said what is wrong.
local function understand(native, arg)
	local command = native.command(arg);
	if command.stdout then sink.stdout(command.stdout); end
	if command.stderr then prosodyctl.complain(command.stderr); end
	if command.exit then return nil, command.exit; end
	if command.host and (command.host == "*" or not prosody.hosts[command.host]) then
		prosodyctl.complain(("there is no host %q in the configuration"):format(command.host));
		return nil, 2;
	end
	return command;
end

-- The hosts that have invites, and where they keep them.
local function storages()
	local config, mm = compat.lib("core.configmanager"), compat.lib("core.modulemanager");
	local list = {};
	for host in compat.lib("util.iterators").sorted_pairs(prosody.hosts) do
		if mm.get_modules_for_host(host):contains(module.name) then
			table.insert(list, { host, tostring(config.get(host, "invite_storage")) });
		end
	end
	return list;
end

-- Carries out the command line `arg`: its exit code. `desk` is for what is about the whole server.
function prosodyctl.run(native, desk, arg)
	local command, code = understand(native, arg);
	if not command then return code; end
	if not command.host then
		desk.facts = { database = prosody.paths.data.."/invites.sqlite3", storages = storages() };
		return prosodyctl.carry_out(desk, command, terminal);
	end
	local what = ("The storage of %s cannot be looked at"):format(command.host);
	protected.call(what, compat.lib("core.storagemanager").initialize_host, command.host);
	local may, why = ask_server(native, command, arg);
	if not may then
		prosodyctl.complain(why);
		return command.is_check and 2 or 1;
	end
	local invites, err = invites_of(command.host);
	if invites then return invites.carry_out(command); end
	if command.is_check then
		desk.problem = err;
		return prosodyctl.carry_out(desk, command, terminal);
	end
	prosodyctl.complain(err);
	return 1;
end

--- in the server

-- Carries out what prosodyctl asks the server to do, with `carry_out(command, out, input)`.
function prosodyctl.serve(native, carry_out)
	forward.serve(function (arg, input, asking)
		sink = asking;
		local ok, code = protected.call_at_once(nil, function ()
			local command, misuse = understand(native, arg);
			if not command then return misuse; end
			return (carry_out(command, asking, input));
		end);
		sink = nil;
		if not ok then error(code, 0); end
		return code;
	end);
end

prosodyctl.terminal = terminal;

return prosodyctl;
