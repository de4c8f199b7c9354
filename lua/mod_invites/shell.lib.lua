-- The "invite" commands of the Prosody shell. Their output is read by programs: links stand on the line that begins
-- with "OK: ", and the columns of "list" are divided by " | ".

local compat = module.compat;
local protected = module.protected;

local jid_split = compat.lib("util.jid").split;
local get_module = compat.lib("core.modulemanager").get_module;

local shell = {};

local NO_USERNAME = "Supply the JID of the account, not only a host";

-- What went wrong, in words for an operator; other conditions are told as they are.
local SENTENCES = {
	["conflict"] = "There is an account with this username already";
	["item-not-found"] = "There is no such account";
	["account-unknown"] = "There is no such account, or the authentication provider cannot be asked for it";
	["not-allowed"] = "The account is disabled";
	["id-ambiguous"] = "Several invites have an id that begins so: write more of it";
	["jid-malformed"] = "This is not a possible username";
	["bad-request"] = "A value cannot be used; see the log";
	["internal-server-error"] = "The invite could not be stored or read; see the log";
};

-- The most that the library counts to.
local MAX_LIMIT = 2^32 - 1;

local function fail(condition)
	return nil, SENTENCES[condition] or condition;
end

local function describe(invite)
	local username, host = jid_split(invite.jid);
	local data = invite.additional_data;
	if invite.type == "roster" then
		return "Contact with "..invite.jid;
	elseif data and data.allow_reset then
		return "Password reset for "..data.allow_reset.."@"..host;
	elseif username then
		return "Register on "..host.." with username "..username;
	end
	return "Register on "..host;
end

local function date(seconds, format)
	return seconds == math.huge and "never" or os.date(format, seconds);
end

local function is_id(text)
	return type(text) == "string" and #text >= 6 and #text <= 16 and not text:find("%X");
end

-- 0.12 does not know how wide the terminal is, and would cut descriptions off.
local function width_of(self)
	return self.session.width or 160;
end

local function print_text(self, text)
	for line in text:gmatch("[^\n]+") do
		self.session.print(line);
	end
end

-- What a command returns that changes one invite.
local function changed(text, is_changed, condition)
	if is_changed == false then return nil, "The invitation has ended, or is so already"; end
	if not is_changed then return fail(condition); end
	return true, text;
end

-- The commands of one host. `invites` is the environment of the module; `duration` reads "2 days".
function shell.commands(invites, duration, has_groups)
	local function get_ttl(opts, default)
		local text = opts.expires_after or default;
		if not text then return nil; end
		local seconds = duration and duration(text);
		if not seconds then return nil, "Unable to parse duration: "..text; end
		return seconds;
	end

	local function link_of(invite)
		return invite.landing_page or invite.uri;
	end

	return {
		{
			name = "create_account";
			desc = "Create an invitation to make an account on this server with the specified JID (supply only a hostname to "
				.."allow any username)";
			args = { { name = "user_jid", type = "string" } };
			host_selector = "user_jid";
			flags = {
				array_params = { role = true, group = has_groups };
				value_params = { expires_after = true, max_uses = true, note = true };
				kv_params = { admin = true };
			};
			handler = function (_, user_jid, opts)
				local ttl, err = get_ttl(opts);
				if err then return nil, err; end
				local max_uses = tonumber(opts.max_uses or 1);
				if not max_uses or max_uses < 1 or max_uses % 1 ~= 0 then return nil, "Unable to count to: "..opts.max_uses; end
				local roles = opts.role or {};
				if opts.admin then table.insert(roles, 1, "prosody:admin"); end
				local invite, condition = invites.create_invite({
					username = jid_split(user_jid);
					additional_data = {
						roles = compat.roles(roles);
						groups = opts.group or {};
						note = opts.note;
					};
					ttl = ttl;
					max_uses = max_uses;
				});
				if not invite then return fail(condition); end
				return true, link_of(invite);
			end;
		};
		{
			name = "create_reset";
			desc = "Create a password reset link for the specified user";
			args = { { name = "user_jid", type = "string" } };
			host_selector = "user_jid";
			flags = { value_params = { expires_after = true } };
			handler = function (self, user_jid, opts)
				local username = jid_split(user_jid);
				if not username then return nil, NO_USERNAME; end
				local ttl, err = get_ttl(opts, "1d");
				if err then return nil, err; end
				local invite, condition = invites.create_account_reset(username, ttl);
				if not invite then return fail(condition); end
				self.session.print(link_of(invite));
				local expires = date(invite.expires, "%Y-%m-%d %T");
				return true, ("Password reset link for %s valid until %s"):format(user_jid, expires);
			end;
		};
		{
			name = "create_contact";
			desc = "Create an invitation to become contacts with the specified user";
			args = { { name = "user_jid", type = "string" } };
			host_selector = "user_jid";
			flags = {
				value_params = { expires_after = true };
				kv_params = { allow_registration = true };
			};
			handler = function (_, user_jid, opts)
				local username = jid_split(user_jid);
				if not username then return nil, NO_USERNAME; end
				local ttl, err = get_ttl(opts);
				if err then return nil, err; end
				local invite, condition = invites.create_invite({
					kind = "contact", username = username, allow_registration = opts.allow_registration, ttl = ttl;
					by_operator = true;
				});
				if not invite then return fail(condition); end
				return true, link_of(invite);
			end;
		};
		{
			name = "show";
			desc = "Show details of an invitation token";
			args = { { name = "host", type = "string" }, { name = "token", type = "string" } };
			host_selector = "host";
			handler = function (self, _, token)
				local invite, condition = invites.get_invite_info(token);
				if condition == "token-invalid" and is_id(token) then
					-- An id shows what became of an invite too.
					local text, why_not = invites.show_text(token, { json = false, show_token = false, width = width_of(self) });
					if not text then return fail(why_not); end
					print_text(self, text);
					return true, "Invitation found by its id";
				end
				if not invite then return fail(condition); end
				local print, data = self.session.print, invite.additional_data or {};
				if invite.type == "roster" then
					local register = invite.allow_registration and "register and " or "";
					print("Invitation to "..register.."become a contact of "..invite.jid);
				elseif data.allow_reset then
					print(describe(invite));
				else
					local username, host = jid_split(invite.jid);
					print("Invitation to register on "..host..(username and (" with username '"..username.."'") or ""));
				end
				print("Created:", date(invite.created_at, "%Y-%m-%d %T"));
				print("Expires:", date(invite.expires, "%Y-%m-%d %T"));
				print("");
				print("XMPP URI:", invite.uri);
				if invite.landing_page then print("Web link:", invite.landing_page); end
				if invite.additional_data then
					print("");
					local roles = compat.list_roles(data.roles);
					if roles[1] then print("Role:", roles[1]); end
					if roles[2] then print("Secondary roles:", table.concat(roles, ", ", 2)); end
					if data.groups then print("Groups:", table.concat(data.groups, ", ")); end
					if data.note then print("Comment:", data.note); end
				end
				return true, "Invitation valid";
			end;
		};
		{
			name = "delete";
			desc = "Delete/revoke an invitation token";
			args = { { name = "host", type = "string" }, { name = "token", type = "string" } };
			host_selector = "host";
			flags = { value_params = { why = true } };
			handler = function (_, _, token, opts)
				local revoked, condition = invites.revoke(token, opts.why, "shell");
				if condition == "token-invalid" then return nil, "Invitation not found"; end
				if not revoked then return fail(condition); end
				return true, "Invitation deleted";
			end;
		};
		{
			name = "list";
			desc = "List pending invitations";
			args = { { name = "host", type = "string" } };
			host_selector = "host";
			handler = function (self)
				local columns = {
					{ title = "Token"; key = "token"; width = 24 };
					{ title = "Expires"; key = "expires"; width = 20 };
					{ title = "Description"; key = "description"; width = "100%" };
				};
				local print_row = compat.table(columns, width_of(self));
				self.session.print(print_row());
				local count = 0;
				for token, invite in invites.pending_invites() do
					count = count + 1;
					self.session.print(print_row({
						token = token;
						expires = date(invite.expires, "%Y-%m-%dT%T");
						description = describe(invite);
					}));
				end
				return true, ("%d pending invites"):format(count);
			end;
		};
		{
			name = "history";
			desc = "Show what became of invitations, the last ended first";
			args = { { name = "host", type = "string" } };
			host_selector = "host";
			flags = { value_params = { limit = true } };
			handler = function (self, _, opts)
				local left = tonumber(opts.limit or 100);
				if not left or left < 1 or left % 1 ~= 0 or left > MAX_LIMIT then
					return nil, "Unable to count to: "..opts.limit;
				end
				local options = { json = false, width = width_of(self) };
				local count, after = 0, nil;
				repeat
					local text, next_after, shown = invites.list_text({ part = "history" }, options, after, left, count > 0);
					if not text then return fail(next_after); end
					print_text(self, text);
					count, left, after = count + shown, left - shown, next_after;
				until not after or left == 0;
				return true, ("%d ended invites"):format(count);
			end;
		};
		{
			name = "pause";
			desc = "Have an invitation refused until it is resumed";
			args = { { name = "host", type = "string" }, { name = "token", type = "string" } };
			host_selector = "host";
			handler = function (_, _, token)
				return changed("Invitation paused", invites.pause(token));
			end;
		};
		{
			name = "resume";
			desc = "Have a paused invitation accepted again";
			args = { { name = "host", type = "string" }, { name = "token", type = "string" } };
			host_selector = "host";
			handler = function (_, _, token)
				return changed("Invitation resumed", invites.resume(token));
			end;
		};
		{
			name = "extend";
			desc = "Give an invitation another end, counted from now";
			args = { { name = "host", type = "string" }, { name = "token", type = "string" } };
			host_selector = "host";
			flags = { value_params = { expires_after = true } };
			handler = function (_, _, token, opts)
				local ttl, err = get_ttl(opts);
				if err then return nil, err; end
				if not ttl then return nil, "Supply --expires-after"; end
				return changed("Invitation extended", invites.extend(token, ttl));
			end;
		};
		{
			name = "why";
			desc = "Say whether an invitation would be accepted now, and if not, why";
			args = { { name = "host", type = "string" }, { name = "token", type = "string" } };
			host_selector = "host";
			flags = { value_params = { username = true } };
			handler = function (_, _, token, opts)
				local is_accepted, condition, text = invites.why(token, opts.username);
				if not is_accepted then return nil, text or SENTENCES[condition] or condition; end
				return true, "Invitation would be accepted";
			end;
		};
	};
end

-- Makes them known to the shell. They stay there after this module is unloaded (13.0), or belong to whichever host was
-- loaded last (0.12), so each looks for the module again when it is called.
function shell.register(make_commands)
	local function command_of(host, name)
		local invites = prosody.hosts[host] and get_module(host, "invites");
		if not invites then return nil, "mod_invites not loaded on this host"; end
		for _, command in ipairs(invites.shell_commands()) do
			if command.name == name then return command; end
		end
	end

	for _, command in ipairs(make_commands()) do
		local name = command.name;
		local function handler(self, selector, ...)
			if type(selector) ~= "string" then return nil, "Supply a host, or the JID of an account"; end
			local _, host = jid_split(selector);
			local current, err = command_of(host, name);
			if not current then return nil, err; end
			local words, opts = {}, {};
			for i = 1, select("#", ...) do
				local word = (select(i, ...));
				if type(word) == "table" then
					opts = word; -- 13.0 has parsed the flags
				elseif type(word) == "boolean" then
					opts.allow_registration = word; -- create_contact(jid, true)
				elseif word ~= nil then
					table.insert(words, word);
				end
			end
			local arguments, problem = compat.parse_flags(words, opts, current.flags or {});
			if not arguments then return nil, problem; end
			if #arguments >= #current.args then
				return nil, "Unexpected argument: "..tostring(arguments[#arguments]);
			elseif #arguments < #current.args - 1 then
				return nil, "Supply the "..current.args[#arguments + 2].name;
			end
			table.insert(arguments, opts);
			return current.handler(self, selector, compat.unpack(arguments));
		end
		local what = ("The command invite:%s of the shell failed, and its user was told so"):format(name);
		local function fail_in_words() return nil, "The command failed; see the log"; end
		compat.add_shell_command("invite", "Create and manage invitations", command,
			protected.guard(what, handler, fail_in_words));
	end
end

return shell;
