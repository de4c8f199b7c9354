-- prosodyctl mod_invites: carries out what the library made of the command line, through the functions that other
-- modules call, so that their handlers run. Results go to stdout, everything else to stderr.

local compat = module:require("compat");

local prosodyctl = {};

-- One line, whatever is quoted in it.
function prosodyctl.complain(line)
	line = line:gsub("\\?[%c]", function (c) return ("\\%03d"):format(c:byte(-1)); end);
	io.stderr:write("prosodyctl mod_invites: ", line, "\n");
end

-- Loads what creates the invites of a host, and what puts landing pages on them, into this process.
local function load_host(host)
	local mm = compat.lib("core.modulemanager");
	compat.lib("core.storagemanager").initialize_host(host);
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
	local invites, err = load_host(options.host);
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
		if condition ~= "internal-server-error" then
			prosodyctl.complain(REFUSALS[condition]:format((options.reset or options.username).."@"..options.host));
		end
		return condition == "jid-malformed" and 2 or 1;
	end
	local link = invite.landing_page or invite.uri;
	if options.json then
		print(native.json({
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
		print(link);
	end
	return 0;
end

function commands.export(options)
	local invites, err = load_host(options.host);
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
	print(("%d pending invites of %s are now all that the bundled module has"):format(count, options.host));
	return 0;
end

-- Carries out the command line `arg`: its exit code. Without the library, `native`, it says `problem`.
function prosodyctl.run(native, problem, arg)
	if not native then
		prosodyctl.complain(problem);
		return 1;
	end
	local options = native.command(arg);
	if options.stdout then io.stdout:write(options.stdout); end
	if options.stderr then prosodyctl.complain(options.stderr); end
	if options.exit then return options.exit; end
	if options.host == "*" or not prosody.hosts[options.host] then
		prosodyctl.complain(("there is no host %q in the configuration"):format(options.host));
		return 2;
	end
	return commands[options.name](options, native);
end

return prosodyctl;
