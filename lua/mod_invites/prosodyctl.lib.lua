-- prosodyctl mod_invites: carries out what the library made of the command line, through the functions that other
-- modules call, so that their handlers run. Results go to stdout, everything else to stderr. Where two processes cannot
-- share the storage, this runs in the server, for a prosodyctl that asks it to.

local compat = module.compat;
local protected = module.protected;
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

-- Puts text out as it is.
function prosodyctl.write(text)
	sink.stdout(text);
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
function prosodyctl.invites_of(host)
	local mm = compat.lib("core.modulemanager");
	if not is_prosodyctl then return mm.get_module(host, module.name); end
	local what = ("The accounts of %s cannot be looked at"):format(host);
	protected.call(what, compat.lib("core.usermanager").initialize_host, host);
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
	["item-not-found"] = "there is no account %s";
	["account-unknown"] = "there is no account %s, or the authentication provider cannot be asked for it";
	["not-allowed"] = "the account %s is disabled";
	["jid-malformed"] = "%s is not a possible account";
};

-- Why nothing was done with an invite, in words.
local INVITE_REFUSALS = {
	["token-invalid"] = "there is no such invite: %s";
	["jid-malformed"] = "%s is not a possible username";
	["id-ambiguous"] = "several invites have an id that begins with %s: write more of it";
};

-- Invites that are made between two steps of the progress bar, and that are purged in one transaction: a server that
-- wants to write waits for it.
local BATCH, PURGED = 1000, 200;

local commands = {};

-- A command that is about the invites of a host.
local function of_host(command)
	return function (options, native)
		local invites, err = prosodyctl.invites_of(options.host);
		if not invites then
			prosodyctl.complain(err);
			return 1;
		end
		return command(options, invites, native);
	end;
end

-- A progress bar, if this is the process whose terminal it is.
local function progress(native, what, total)
	if is_prosodyctl then return native.progress(what, total); end
	local function ignore() end
	return { advance = ignore, finish = ignore };
end

-- Says why a command about an invite cannot be carried out: the exit code. What is wrong with the storage was told
-- when it happened.
local function refuse(condition, named)
	local refusal = INVITE_REFUSALS[condition];
	if refusal then
		prosodyctl.complain(refusal:format(named));
	end
	return 1;
end

-- Who does it, for the history.
local function operator()
	local user = os.getenv("SUDO_USER");
	return user and "prosodyctl ("..user..")" or "prosodyctl";
end

-- Prints an invite of a command that has a table of it.
local function print_created(invites, invite, options, native)
	local link = invite.landing_page or invite.uri;
	if options.json then
		local text, condition = invites.show_text(invite.token, { json = true, show_token = true, width = 0 });
		if not text then return nil, condition; end
		sink.stdout(text);
		return true;
	end
	if options.qr then
		local code = native.qr(link);
		if code then
			sink.stdout(code);
		else
			prosodyctl.complain("the link is too long for a QR code");
		end
	end
	prosodyctl.print(link);
	return true;
end

commands.generate = of_host(function (options, invites, native)
	local role = options.admin and "prosody:admin" or options.role;
	local wanted = {
		kind = options.reset and "reset" or options.contact and "contact" or "account";
		username = options.reset or options.contact or options.username;
		allow_registration = options.allow_registration or nil;
		ttl = options.expires_after;
		max_uses = options.max_uses;
		additional_data = {
			roles = role and compat.roles({ role });
			groups = not options.reset and not options.contact and options.groups or nil;
			note = options.note;
		};
	};
	local left = options.count or 1;
	local bar = options.count and progress(native, "inviting", left);
	while left > 0 do
		local made, condition;
		if options.count then
			made, condition = invites.create_invites(wanted, math.min(left, BATCH));
		else
			local invite;
			invite, condition = invites.create_invite(wanted);
			made = invite and { invite };
		end
		if not made then
			-- What is wrong with the storage was told when it happened.
			if REFUSALS[condition] then
				prosodyctl.complain(REFUSALS[condition]:format(wanted.username.."@"..options.host));
			end
			return condition == "jid-malformed" and 2 or 1;
		end
		for _, invite in ipairs(made) do
			local is_printed;
			is_printed, condition = print_created(invites, invite, options, native);
			if not is_printed then return refuse(condition); end
		end
		left = left - #made;
		if bar then bar:advance(#made); end
	end
	if bar then bar:finish(); end
	return 0;
end);

local list = of_host(function (options, invites)
	local after, left = nil, options.limit;
	if options.after then
		local condition;
		after, condition = invites.place(options.after, options.filter.part);
		if not after then return refuse(condition, options.after); end
	end
	local has_any = false;
	repeat
		local text, next_after, shown = invites.list_text(options.filter, options, after, left, has_any);
		if not text then return refuse(next_after); end
		sink.stdout(text);
		has_any = has_any or shown > 0;
		after, left = next_after, left and left - shown;
	until not after or left == 0;
	if not has_any and not options.json then prosodyctl.complain("no such invites"); end
	return 0;
end);

commands.list, commands.history = list, list;

local function print_invite(options, invites, native)
	local text, link = invites.show_text(options.invite, options);
	if not text then return refuse(link, options.invite); end
	local code = options.qr and link and native.qr(link);
	if code then sink.stdout(code); end
	sink.stdout(text);
	return 0;
end

commands.show = of_host(print_invite);

-- A command that changes an invite and prints it as it then is; `change` returns false, or nil and a condition, if
-- there was nothing to change. To want what is so already is no mistake.
local function changing(state, change)
	return of_host(function (options, invites, native)
		local invite, condition = invites.show(options.invite);
		if not invite then return refuse(condition, options.invite); end
		if invite.state ~= state then
			local is_changed;
			is_changed, condition = change(options, invites);
			if is_changed == nil and condition ~= "token-invalid" then return refuse(condition, options.invite); end
			if not is_changed then
				prosodyctl.complain(("the invite %s is %s"):format(invite.id, invite.state));
				return 1;
			end
		end
		return print_invite({
			invite = options.invite, json = options.json, width = options.width, show_token = false;
		}, invites, native);
	end);
end

local revoke_one = changing("revoked", function (options, invites)
	return invites.revoke(options.invite, options.why, operator());
end);

local revoke_inviter = of_host(function (options, invites, native)
	local revoked, condition = invites.revoke_inviter(options.inviter, options.branch, options.why, operator());
	if not revoked then return refuse(condition, options.inviter); end
	if options.json then
		prosodyctl.print(native.json({ revoked = revoked }));
	else
		prosodyctl.print(("%d open invites of %s@%s%s were revoked"):format(revoked, options.inviter, options.host,
			options.branch and " and the user's branch" or ""));
		-- The server did it, which has the invites to itself.
		if condition then prosodyctl.print("The others are not good any more either, and are being revoked"); end
	end
	return 0;
end);

function commands.revoke(options, native)
	return (options.inviter and revoke_inviter or revoke_one)(options, native);
end

local PURPOSES = { account = "to register an account", contact = "to become a contact" };

local SERVERS = {
	alive = "its server runs, and it may go on";
	over = "its server has ended";
	unknown = "whether its server runs cannot be seen";
};

-- Asks whether to free an invite.
local function may_release(options, native)
	if options.yes then return true; end
	-- What a server reads is nobody's answer.
	if not is_prosodyctl or not native.is_terminal() then
		prosodyctl.complain("say --yes to free the invite");
		return false;
	end
	sink.stderr("Type yes to free the invite: ");
	return io.stdin:read("*l") == "yes";
end

commands.release = of_host(function (options, invites, native)
	local claims, condition = invites.claims_on(options.invite);
	if not claims then return refuse(condition, options.invite); end
	if not claims[1] then
		prosodyctl.complain("nobody is using the invite "..options.invite);
		return 1;
	end
	for _, claim in ipairs(claims) do
		local since = claim.made_at and os.date("%Y-%m-%d %H:%M:%S", claim.made_at) or "a time that is not known";
		local line = ("%s has been using it since %s, %s; %s"):format(claim.invitee or "somebody without a name", since,
			PURPOSES[claim.purpose], SERVERS[claim.life]);
		if options.json then prosodyctl.complain(line); else prosodyctl.print(line); end
	end
	if not may_release(options, native) then
		prosodyctl.complain("nothing was released");
		return 1;
	end
	local released;
	released, condition = invites.release_claims(options.invite);
	if not released then return refuse(condition, options.invite); end
	if options.json then
		prosodyctl.print(native.json({ released = released }));
	else
		prosodyctl.print("the invite is free");
	end
	return 0;
end);

commands.tree = of_host(function (options, invites)
	if options.accounts then
		local members, condition = invites.branch(options.username);
		if not members then return refuse(condition, options.username); end
		for _, member in ipairs(members) do
			if member.account ~= "missing" then
				prosodyctl.print(member.username.."@"..options.host);
			end
		end
		return 0;
	end
	local text, condition = invites.tree_text(options.username, options);
	if not text then return refuse(condition, options.username); end
	sink.stdout(text);
	return 0;
end);

commands.pause = changing("paused", function (options, invites)
	return invites.pause(options.invite);
end);

commands.resume = changing("pending", function (options, invites)
	return invites.resume(options.invite);
end);

commands.extend = changing(nil, function (options, invites)
	return invites.extend(options.invite, options.expires_after);
end);

local why_inviter = of_host(function (options, invites, native)
	local is_allowed, condition, text, limit = invites.may_invite(options.inviter, options.kind or "contact");
	if not is_allowed and not limit then
		local refusal = REFUSALS[condition];
		if refusal then prosodyctl.complain(refusal:format(options.inviter.."@"..options.host)); end
		return condition == "jid-malformed" and 2 or 1;
	end
	if options.json then
		prosodyctl.print(native.json({
			inviter = options.inviter, allowed = is_allowed or false, condition = condition, text = text, limit = limit;
		}));
	elseif is_allowed then
		prosodyctl.print("allowed");
	else
		prosodyctl.print(("refused (%s): %s [%s]"):format(condition, text, limit));
	end
	return is_allowed and 0 or 1;
end);

local why_one = of_host(function (options, invites, native)
	local invite, condition = invites.show(options.invite);
	if not invite then return refuse(condition, options.invite); end
	local is_accepted, why_not, text = invites.why(options.invite, options.username);
	if why_not == "internal-server-error" then return refuse(why_not); end
	if why_not == "token-invalid" and invite.state ~= "pending" then
		text = "the invite is "..invite.state; -- a stranger is told less
	end
	if options.json then
		prosodyctl.print(native.json({
			id = invite.id, state = invite.state, accepted = is_accepted or false, condition = why_not, text = text;
		}));
	elseif is_accepted then
		prosodyctl.print("accepted");
	else
		prosodyctl.print(("refused (%s): %s"):format(why_not, text));
	end
	return is_accepted and 0 or 1;
end);

function commands.why(options, native)
	return (options.inviter and why_inviter or why_one)(options, native);
end

commands.stats = of_host(function (options, invites)
	local text, condition = invites.stats_text(options);
	if not text then return refuse(condition); end
	sink.stdout(text);
	return 0;
end);

commands.purge = of_host(function (options, invites, native)
	local age = options.older_than or invites.history_age;
	local total, bar = 0, progress(native, "purging", 0);
	if age < math.huge then
		local purged, is_more;
		repeat
			purged, is_more = invites.purge(age, PURGED);
			if not purged then
				bar:finish();
				return refuse(is_more);
			end
			total = total + purged;
			bar:advance(purged);
			native.let_others_write();
		until not is_more;
	end
	bar:finish();
	if options.json then
		prosodyctl.print(native.json({ purged = total }));
	else
		prosodyctl.print(("%d invites were removed from the history of %s"):format(total, options.host));
	end
	return 0;
end);

for _, file in ipairs({ "transfer", "check" }) do
	for name, command in pairs(module:require(file).commands(prosodyctl)) do
		commands[name] = command;
	end
end

-- Storage that only the server itself can use while it runs.
local IN_SERVER = { memory = true, prosody = true };

-- Has the running server do it, if it is to: comes back if this process may do it, with why not if it may not.
local function ask_server(options, native, arg)
	local host = options.host;
	local storage = compat.lib("core.configmanager").get(host, "invite_storage");
	if not IN_SERVER[storage] then return true; end
	local forwarded = { compat.unpack(arg) };
	-- The terminal is here.
	if options.width then table.insert(forwarded, "--columns="..options.width); end
	local input, err;
	local asking = { stdout = sink.stdout, stderr = sink.stderr };
	if options.file then
		input, err = io.stdin, nil;
		if options.file ~= "-" then input, err = io.open(options.file, "rb"); end
		if not input then return nil, err; end
	end
	if options.output then
		asking.stdout, err = prosodyctl.new_file(native, options.output);
		if not asking.stdout then return nil, err; end
		function asking.finish(code)
			if code ~= 0 then os.remove(options.output); end
		end
	end
	err = select(2, forward.ask(host, forwarded, input, asking));
	if options.output then os.remove(options.output); end
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

-- A file as it was named where prosodyctl was called: it has gone to the data directory since.
local function absolute(name)
	local directory = os.getenv("PWD");
	if name == "-" or name:sub(1, 1) == "/" or not directory then return name; end
	return directory.."/"..name;
end

-- Understands the command line `arg`: what is asked for, or nil and an exit code once it was said what is wrong.
local function parse(native, arg)
	local options = native.command(arg);
	if options.stdout then sink.stdout(options.stdout); end
	if options.stderr then prosodyctl.complain(options.stderr); end
	if options.exit then return nil, options.exit; end
	if options.host and (options.host == "*" or not prosody.hosts[options.host]) then
		prosodyctl.complain(("there is no host %q in the configuration"):format(options.host));
		return nil, 2;
	end
	for _, name in ipairs({ "file", "output" }) do
		options[name] = options[name] and absolute(options[name]);
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
	if options.host then
		local what = ("The storage of %s cannot be looked at"):format(options.host);
		protected.call(what, compat.lib("core.storagemanager").initialize_host, options.host);
		local may, why = ask_server(options, native, arg);
		if not may then
			prosodyctl.complain(why);
			return options.name == "check" and 2 or 1;
		end
	end
	return commands[options.name](options, native);
end

-- Carries out what prosodyctl asks the server to do.
function prosodyctl.serve(native)
	forward.serve(function (arg, input, asking)
		sink = asking;
		local ok, code = protected.call_at_once(nil, function ()
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
