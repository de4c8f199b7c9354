-- prosodyctl mod_invites: carries out what the library made of the command line, through the functions that other
-- modules call, so that their handlers run. Results go to stdout, everything else to stderr. Where two processes cannot
-- share the storage, this runs in the server, for a prosodyctl that asks it to.

local compat = module:require("compat");
local forward = module:require("forward");

local prosodyctl = {};

local is_prosodyctl = prosody.process_type == "prosodyctl";

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

function prosodyctl.print(line)
	sink.stdout(line.."\n");
end

-- One line, whatever is quoted in it.
function prosodyctl.complain(line)
	line = line:gsub("\\?[%c]", function (c) return ("\\%03d"):format(c:byte(-1)); end);
	sink.stderr("prosodyctl mod_invites: "..line.."\n");
end

-- What creates the invites of a host: in the server it is there; in prosodyctl it is loaded, with what puts landing
-- pages on them.
local function invites_of(host)
	local mm = compat.lib("core.modulemanager");
	if not is_prosodyctl then return mm.get_module(host, module.name); end
	compat.lib("core.usermanager").initialize_host(host);
	-- prosodyctl has loaded this file for all hosts at once; a module loaded so is not loaded for one.
	mm.unload("*", module.name);
	local invites, err = mm.load(host, module.name);
	if not invites then return nil, err; end
	local config = compat.lib("core.configmanager");
	local page_module = config.get(host, "invites_page_module") or "invites_page";
	if mm.get_modules_for_host(host):contains(page_module) then
		local loaded, page_err = mm.load(host, page_module);
		if not loaded then
			prosodyctl.complain(("mod_%s cannot be loaded, so the link leads to no page: %s"):format(page_module, page_err));
		end
	end
	return mm.get_module(host, module.name);
end

-- Why no invite was made, in words.
local REFUSALS = {
	["conflict"] = "the account %s exists already";
	["item-not-found"] = "there is no account %s whose password could be reset";
	["not-allowed"] = "the account %s is disabled";
	["jid-malformed"] = "%s is not a possible account";
};

local commands = {};

function commands.generate(options, native)
	local invites, err = invites_of(options.host);
	if not invites then
		prosodyctl.complain(err);
		return 1;
	end
	local invite, condition;
	if options.reset then
		invite, condition = invites.create_account_reset(options.reset);
	else
		local role = options.admin and "prosody:admin" or options.role;
		invite, condition = invites.create_account(options.username, {
			roles = role and compat.roles({ role });
			groups = options.groups;
		});
	end
	if not invite then
		-- What is wrong with the storage was told when it happened.
		if REFUSALS[condition] then
			prosodyctl.complain(REFUSALS[condition]:format((options.reset or options.username).."@"..options.host));
		end
		return condition == "jid-malformed" and 2 or 1;
	end
	local link = invite.landing_page or invite.uri;
	if options.json then
		prosodyctl.print(native.json({
			link = link;
			token = invite.token;
			uri = invite.uri;
			landing_page = invite.landing_page;
			type = invite.type;
			jid = invite.jid;
			created_at = invite.created_at;
			expires = invite.expires ~= math.huge and invite.expires or nil;
			additional_data = invite.additional_data;
		}));
	else
		prosodyctl.print(link);
	end
	return 0;
end

function commands.export(options)
	local invites, err = invites_of(options.host);
	if not invites then
		prosodyctl.complain(err);
		return 1;
	end
	local count;
	count, err = invites.export_to_bundled();
	if not count then
		if err ~= "internal-server-error" then
			prosodyctl.complain("the bundled module's store cannot be written: "..err);
		end
		return 1;
	end
	prosodyctl.print(("%d pending invites of %s are now all that the bundled module has"):format(count, options.host));
	return 0;
end

-- Storage that only the server itself can use while it runs.
local IN_SERVER = { memory = true, prosody = true };

-- Has the running server do it, if it is to: comes back if this process may do it, with why not if it may not.
local function ask_server(options, arg)
	local host = options.host;
	local storage = compat.lib("core.configmanager").get(host, "invite_storage");
	if not IN_SERVER[storage] then return true; end
	local _, err = forward.ask(host, arg, nil, sink);
	if forward.is_server_running() then
		return nil, ("the server has the invites of %s to itself (invite_storage = %q) and has to be asked, but %s; "
			.."is mod_admin_shell enabled?"):format(host, storage, err);
	end
	local _, driver = compat.lib("core.storagemanager").get_driver(host, "invite_token");
	if storage == "memory" or driver == "memory" then
		return nil, ("the invites of %s are in the memory of the server, and it does not run"):format(host);
	end
	return true;
end

-- Understands the command line `arg`: what is asked for, or nil and an exit code once it was said what is wrong.
local function parse(native, arg)
	local options = native.command(arg);
	if options.stdout then sink.stdout(options.stdout); end
	if options.stderr then prosodyctl.complain(options.stderr); end
	if options.exit then return nil, options.exit; end
	if options.host == "*" or not prosody.hosts[options.host] then
		prosodyctl.complain(("there is no host %q in the configuration"):format(options.host));
		return nil, 2;
	end
	return options;
end

-- Carries out the command line `arg`: its exit code. Without the library, `native`, it says `problem`.
function prosodyctl.run(native, problem, arg)
	if not native then
		prosodyctl.complain(problem);
		return 1;
	end
	local options, code = parse(native, arg);
	if not options then return code; end
	compat.lib("core.storagemanager").initialize_host(options.host);
	local may, why = ask_server(options, arg);
	if not may then
		prosodyctl.complain(why);
		return 1;
	end
	return commands[options.name](options, native);
end

-- Carries out what prosodyctl asks the server to do.
function prosodyctl.serve(native)
	forward.serve(function (arg, input, asking)
		sink = asking;
		local ok, code = pcall(function ()
			local options, misuse = parse(native, arg);
			if not options then return misuse; end
			options.text = input;
			return commands[options.name](options, native);
		end);
		sink = nil;
		if not ok then error(code, 0); end
		return code;
	end);
end

return prosodyctl;
