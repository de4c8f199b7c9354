-- Who may invite how much (option invite_limits). Whether an invite may be made is decided in the library; here it
-- learns what it has to know of an inviter, and those who are refused learn why.

local compat = module.compat;
local protected = module.protected;

local dataforms = compat.lib("util.dataforms");
local jid_prepped_split = compat.lib("util.jid").prepped_split;

local limits = {};

-- Whether an account must be of some age. What is wrong with the option is told by the library.
local function looks_at_age(options)
	for _, of_role in pairs(type(options) == "table" and options or {}) do
		if type(of_role) == "table" and of_role.min_account_age then return true; end
	end
	return false;
end

local is_age_to_be_told = prosody.process_type ~= "prosodyctl" and looks_at_age(module:get_option("invite_limits"));

-- A local user as the library's `prepare` takes an inviter; nil for none.
function limits.inviter(username)
	if not username then return nil; end
	local account_created = compat.account_created(username);
	if is_age_to_be_told and not account_created then
		is_age_to_be_told = false;
		local is_allowed = module:get_option_boolean("invite_limits_allow_unknown_age", true);
		module:log("warn", "This server does not know how old accounts are, or not of all: min_account_age %s "
			.."(invite_limits_allow_unknown_age = %s)",
			is_allowed and "lets their users invite" or "keeps their users from inviting", tostring(is_allowed));
	end
	return { username = username, roles = compat.role_chains(username), account_created = account_created };
end

--- ad-hoc commands (XEP-0401)

local RESET = "xmpp:prosody.im/mod_invites_adhoc#password-reset";

local NODES = {
	["urn:xmpp:invite#invite"] = true;
	["urn:xmpp:invite#create-account"] = true;
	[RESET] = true;
};

-- What the user of a command is told where the library has no sentence.
local SENTENCES = {
	["conflict"] = "There is an account with this username already";
	["item-not-found"] = "There is no such account";
	["account-unknown"] = "There is no such account, or it cannot be looked up at the moment";
	["not-allowed"] = "The account is disabled";
	["jid-malformed"] = "This is not a possible username";
	["internal-server-error"] = "The invitation could not be stored, please try again later";
};

local FAILED = "This could not be done because of a problem of the server";

-- Why nothing was created last, and else what was, by the coroutine that tried.
local refusals, created = setmetatable({}, { __mode = "k" }), setmetatable({}, { __mode = "k" });

local function current()
	return coroutine.running() or "main"; -- nil on Lua 5.1
end

-- Takes down why nothing was created: a sentence, or a condition.
function limits.tell(reason)
	refusals[current()] = SENTENCES[reason] or reason;
end

-- Those commands of mod_invites_adhoc that this file has put itself around: their own handlers.
local handlers = {};

-- Keeps what was created for the command that is under way, if there is one.
function limits.keep(invite)
	local thread = current();
	if created[thread] ~= nil then created[thread] = invite; end
end

-- The form of an invite whose end mod_invites_adhoc cannot write down, for it has none.
local endless = dataforms.new({
	title = "Your invite has been created";
	{ name = "url", var = "landing-url", label = "Invite web page", desc = "Share this link" };
	{ name = "uri", label = "Invite URI", desc = "This alternative link can be opened with some XMPP clients" };
});

-- What is wrong with what was filled in for a password reset, in a sentence. mod_invites_adhoc takes what stands before
-- the "@" and leaves out the host; with a bare name there is nothing before it.
local function form_problem(form)
	if not form then return "Fill in the form"; end
	for field in form:childtags("field") do
		if field.attr.var == "accountjid" then
			local username, host = jid_prepped_split(field:get_child_text("value"));
			if not username then return "Give the whole address of the account, such as user@"..module.host; end
			if host ~= module.host then return "This command is only for accounts of "..module.host; end
		end
	end
end

local function answer(message)
	return { status = "completed"; error = { message = message } };
end

-- mod_invites_adhoc takes for granted that every invite is made and that every form has what it asks for, and fails
-- without an answer where that is not so. mod_adhoc has asked for the permission by the time that it calls this.
local function around(handler)
	return function (command, data, state)
		local is_filled_in = (state or data.form) and data.action ~= "cancel";
		local problem = command.node == RESET and is_filled_in and form_problem(data.form);
		if problem then return answer(problem); end
		local thread = current();
		refusals[thread], created[thread] = nil, false;
		local result = { protected.call_at_once(nil, handler, command, data, state) };
		local refusal, invite = refusals[thread], created[thread];
		refusals[thread], created[thread] = nil, nil;
		if result[1] then
			return compat.unpack(result, 2, 3); -- the answer, and the state of the dialogue
		elseif refusal then
			return answer(refusal);
		elseif invite and invite.expires == math.huge then
			return { status = "completed"; result = {
				layout = endless; values = { uri = invite.uri, url = invite.landing_page };
			} };
		end
		module:log("error", "The ad-hoc command %s failed: %s", command.node, tostring(result[2]));
		return answer(FAILED);
	end;
end

function limits.hook()
	protected.handle_items("adhoc-provider", function (event)
		local command = event.item;
		if NODES[command.node] and not handlers[command] then
			local own = command.handler;
			local wrapped = around(own);
			command.handler = wrapped;
			handlers[command] = { own = own, wrapped = wrapped };
		end
	end, function (event)
		handlers[event.item] = nil;
	end);
end

-- Gives the commands back.
function limits.unload()
	for command, handler in pairs(handlers) do
		if command.handler == handler.wrapped then command.handler = handler.own; end
	end
end

return limits;
