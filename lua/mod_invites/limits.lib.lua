-- Who may invite how much (option invite_limits). Whether an invite may be made is decided in the library; here it
-- learns what it has to know of an inviter, and those who are refused learn why.

local compat = module.compat;
local protected = module.protected;

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

local NODES = {
	["urn:xmpp:invite#invite"] = true;
	["urn:xmpp:invite#create-account"] = true;
	["xmpp:prosody.im/mod_invites_adhoc#password-reset"] = true;
};

-- What the user of a command is told where the library has no sentence.
local SENTENCES = {
	["conflict"] = "There is an account with this username already";
	["item-not-found"] = "There is no such account";
	["account-unknown"] = "There is no such account, or it cannot be looked up at the moment";
	["not-allowed"] = "The account is disabled";
	["not-acceptable"] = "That is more than can be stored with an invitation";
	["jid-malformed"] = "This is not a possible username";
	["internal-server-error"] = "The invitation could not be stored, please try again later";
};

-- Why nothing was created last, by the coroutine that tried.
local refusals = setmetatable({}, { __mode = "k" });

local function current()
	return coroutine.running() or "main"; -- nil on Lua 5.1
end

-- Takes down why nothing was created: a sentence, or a condition.
function limits.tell(reason)
	refusals[current()] = SENTENCES[reason] or reason;
end

-- Those commands of mod_invites_adhoc that this file has put itself around: their own handlers.
local handlers = {};

-- mod_invites_adhoc takes for granted that every invite is made, and fails with an internal error where one is not.
-- mod_adhoc has asked for the permission by the time that it calls this.
local function around(handler)
	return function (...)
		local thread = current();
		refusals[thread] = nil;
		local result = { protected.call_at_once(nil, handler, ...) };
		if result[1] then
			return compat.unpack(result, 2, 3); -- the answer, and the state of the dialogue
		elseif not refusals[thread] then
			module:log("error", "An ad-hoc command failed, and its user was told so: %s", result[2]);
		end
		return { status = "completed"; error = { message = refusals[thread] or SENTENCES["internal-server-error"] } };
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

	function module.unload()
		for command, handler in pairs(handlers) do
			if command.handler == handler.wrapped then command.handler = handler.own; end
		end
	end
end

return limits;
