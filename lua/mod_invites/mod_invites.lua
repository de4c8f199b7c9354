-- mod_invites: creates invites and accepts them. The work is done by a native library, prosody_invites;
-- this file gives it to Prosody: options, events, the functions that other modules call, and a prosodyctl command.
--
-- XEP-0379 v0.3.3: Pre-Authenticated Roster Subscription
-- XEP-0401 v0.6.0: Ad-hoc Account Invitation Generation
-- XEP-0445 v0.2.0: Pre-Authenticated In-Band Registration

-- The library must be of this version: the two are installed together.
local VERSION = "0.1.0";

local function refuse_registration(event)
	event.allowed = false;
	event.reason = "Registration is closed because of a problem with this server's invitations";
	event.error_type, event.error_condition = "wait", "internal-server-error";
	return true;
end

-- mod_invites_register refuses registrations without an invite, but only if its dependencies work.
local function close_registration()
	if module.host == "*" or not module:get_option_boolean("registration_invite_only", true) then return; end
	module:hook("user-registering", refuse_registration, 1000000);
end

local has_all_parts, guard, bundled, form, limits, lineage, metrics, loader, prosodyctl, redemption, shell;
has_all_parts, guard, bundled, form, limits, lineage, metrics, loader, prosodyctl, redemption, shell = pcall(function ()
	-- The others find it there: Prosody would read it anew for each of them.
	module.compat = module:require("compat");
	module.protected = module:require("protected");
	local registration_guard = module:require("guard");
	-- First: it is needed most where one of the others fails.
	registration_guard.stand(refuse_registration);
	return registration_guard, module:require("bundled"), module:require("form"), module:require("limits"),
		module:require("lineage"), module:require("metrics"), module:require("native"), module:require("prosodyctl"),
		module:require("redemption"), module:require("shell");
end);
if not has_all_parts then
	module:log("error", "No invite can be created or used: %s: install mod_invites again", tostring(guard));
	close_registration();
	local function refuse() return nil, "internal-server-error"; end
	create_account, create_account_reset, create_contact, create_group = refuse, refuse, refuse, refuse;
	get_account_invite_info, delete_account_invite, get, use = refuse, refuse, refuse, refuse;
	function pending_account_invites() return function () end; end
	return;
end

local compat = module.compat;
local protected = module.protected;

local json_null = compat.lib("util.json").null;
local nodeprep = compat.lib("util.encodings").stringprep.nodeprep;
local url_escape = compat.lib("util.http").urlencode;
local interpolation = compat.lib("util.interpolation");

local is_prosodyctl = compat.is_prosodyctl;

-- Tells the operator. prosodyctl would print a log message among its results.
local function report(text)
	if prosodyctl.is_running() then prosodyctl.complain(text); end
	if not is_prosodyctl then
		module:log("error", "%s", text);
	end
end

local native, problem = loader.load(VERSION);

--- options

local DAY = 86400;

-- Seconds as a number or a duration as text, on every version of Prosody; math.huge for "never".
local function get_period(name, default)
	local value = module:get_option(name, default);
	if value == "never" or value == false then return math.huge; end
	local seconds = tonumber(value);
	if not seconds and type(value) == "string" and native then
		seconds = native.parse_duration(value);
	end
	if seconds and seconds < 0 then return math.huge; end -- as in Prosody 13
	if seconds and seconds > 0 then return seconds; end
	-- It is loaded for all hosts before it is loaded for one, and would say so twice.
	if module.host ~= "*" then
		report(("%s = %s is not understood: use seconds, a duration like \"1 week\", or \"never\"; until then it is %d "
			.."seconds"):format(name, tostring(value), default));
	end
	return default;
end

local storage = module:get_option_string("invite_storage", "sqlite");
local default_ttl = get_period("invite_expiry", 7 * DAY);
local reset_ttl = DAY;

-- A stream that has validated an invite has to find it for as long as it may take to register.
local c2s_timeout = get_period("c2s_timeout", 300);
local shortest_history = math.max(3600, c2s_timeout == math.huge and DAY or c2s_timeout);
local history_age = math.max(get_period("invite_history", 90 * DAY), shortest_history);

--- the host's invites

-- What answers in the place of the library when there is none: registration must not open because of it.
local function closed(why)
	why = "No invite can be created or used: "..why;
	-- prosodyctl says so when it is asked for something.
	if not is_prosodyctl then report(why); end
	local function refuse()
		return nil, "internal-server-error", why;
	end
	return setmetatable({}, { __index = function () return refuse; end });
end

local function open_handle()
	if not native then return closed(problem); end
	local unusable = storage == "prosody" and bundled.unusable(module.host);
	if unusable then
		problem = ("invite_storage = \"prosody\", and the host's storage cannot keep invites (%s): configure another driver "
			.."for storage.invite_token, or use invite_storage = \"sqlite\""):format(unusable);
		return closed(problem);
	end
	local deadline = tonumber(module:get_option("invite_postgresql_deadline", 1));
	local is_open, handle, _, text = protected.call(nil, native.open, {
		host = module.host;
		storage = storage;
		path = prosody.paths.data.."/invites.sqlite3";
		-- The server serves nobody while it waits; an operator at a prompt can wait longer.
		lock_wait_ms = is_prosodyctl and 10000 or 40;
		deadline = deadline and is_prosodyctl and math.max(deadline, 10) or deadline;
		postgresql = module:get_option_string("invite_postgresql");
		bundled = {
			read = bundled.read, get = bundled.get, write = bundled.write;
			report = report;
		};
		token_at_rest = module:get_option_string("invite_token_at_rest", "plain");
		limits = module:get_option("invite_limits");
		allows_unknown_age = module:get_option_boolean("invite_limits_allow_unknown_age", true);
		-- It writes: not beside a server.
		try_out = not is_prosodyctl;
		null = json_null;
		nodeprep = nodeprep;
		registers_in_band = guard.registers_in_band;
	});
	if not is_open or not handle then
		problem = is_open and text or tostring(handle);
		return closed(problem);
	end
	return handle;
end

local handle = module.host ~= "*" and metrics.watch(open_handle());

if problem then close_registration(); end

-- Invites that are counted have to be there.
if module.host ~= "*" then
	shortest_history = math.max(shortest_history, handle:counted_period() or 0);
	history_age = math.max(history_age, shortest_history);
end

-- Passes a failure of the library on: misuse is raised, anything else returned.
local function failed(condition, text)
	if condition == "misuse" then
		error(text, 0);
	elseif text and condition == "bad-request" then
		-- Somebody's mistake, and nothing for the operator to mend.
		if prosodyctl.is_running() then prosodyctl.complain(text); end
		if not is_prosodyctl then module:log("info", "Refused: %s", text); end
	elseif text and (condition == "internal-server-error" or condition == "feature-not-implemented") then
		report(text);
	end
	return nil, condition;
end

--- what the bundled module stored

-- Where invites are kept in its store, there is nothing to take over.
local is_imported = storage == "prosody";

-- Why that failed; not tried again before the timer does.
local import_problem;

-- Seconds until it does.
local IMPORT_RETRY = 60;

-- Takes over what the bundled module has stored for this host, if it is new. Nothing is removed there. False if its
-- store cannot be read, so that nobody can say that there is no such invite.
local function import_bundled(is_retry)
	if is_imported or problem then return true; end
	if import_problem and not is_retry then
		-- The log has it.
		if prosodyctl.is_running() then prosodyctl.complain(import_problem); end
		return false;
	end
	local function fail(why)
		import_problem = "The invites that the bundled mod_invites stored cannot be taken over: "..tostring(why);
		report(import_problem);
		return false;
	end
	local host_rows, user_rows, remark = bundled.read(module.host);
	if not host_rows then return fail(user_rows); end
	local is_done, counts, condition, text = protected.call(nil, handle.import_bundled, handle, host_rows, user_rows);
	if not is_done then return fail(counts); end
	if not counts then return fail(text or condition); end
	is_imported, import_problem = true, nil;
	for _, why in ipairs(counts.unreadable) do
		report("An invite that the bundled mod_invites stored was not imported: "..why);
	end
	if remark and not is_prosodyctl then
		module:log("info", "There is nothing to take over from the bundled mod_invites, or not all: %s", remark);
	end
	if counts.imported > 0 and not is_prosodyctl then
		module:log("info", "Imported %d invites that the bundled mod_invites stored; %d were known, %d had expired",
			counts.imported, counts.known, counts.expired);
	end
	return true;
end

if module.host ~= "*" and not problem and not is_prosodyctl then
	-- After the start, not in it; a call that comes earlier does it then.
	protected.timer(0, "Taking over what the bundled mod_invites stored", function ()
		return not import_bundled(true) and IMPORT_RETRY or nil;
	end);
end

-- Calls a method of the library on an invite. If the library does not know it, the bundled module may: then once more,
-- when its invites are here. As long as they cannot be had, nobody can say that there is no such invite, and the
-- failure comes without a text: it has been reported.
local function ask(token, method, ...)
	local result, condition, text, more = handle[method](handle, ...);
	if result or condition ~= "token-invalid" or is_imported then return result, condition, text, more; end
	if import_bundled() then return handle[method](handle, ...); end
	if handle:look(token) then return result, condition, text; end -- it is known, and has ended
	return nil, "internal-server-error";
end

if module.host ~= "*" and not problem and not is_prosodyctl then
	lineage.import_tracked(function (entries)
		local imported, condition, text = handle:import_lineage(entries);
		if not imported then failed(condition, text); end
	end, report);
end

--- tokens that are not to be kept

if module.host ~= "*" and not problem and not is_prosodyctl then
	local after;
	-- The store may have some from before invite_token_at_rest = "digest". A batch at a time, for others wait meanwhile.
	protected.timer(0, "Forgetting the tokens that are kept as text (invite_token_at_rest = \"digest\")", function ()
		local next_after, condition, text = handle:forget_tokens(after);
		if condition then
			failed(condition, text);
			return 60;
		end
		after = next_after;
		return after and 0.05 or nil;
	end);
end

--- creating

-- What a form or JSON can bring in the place of a text; anything else is a mistake in a module.
local FORM_TYPES = { string = true, number = true, boolean = true, table = true };

-- A username as it is stored and compared; nil if it can be nobody's.
local function prepped(username)
	if not FORM_TYPES[type(username)] then
		error("a username must be a string, not a "..type(username), 0);
	end
	local node = type(username) == "string" and nodeprep(username);
	return node and node ~= "" and node or nil;
end

-- A value that may be left out, as JSON does that.
local function optional(value)
	if value == json_null then return nil; end
	return value or nil;
end

-- Whether a list, or with `is_map` also the keys of a table, are texts.
local function has_texts(list, is_map)
	if type(list) ~= "table" then return false; end
	for key, value in pairs(list) do
		local text = value;
		if is_map and type(key) == "string" then text = key; end
		if type(text) ~= "string" then return false; end
	end
	return true;
end

-- The additional_data of a new invite, or nil, a condition and a text. Other modules rely on the types of these fields
-- when the invite is used.
local function checked(additional_data)
	local data = optional(additional_data);
	if data == nil then return nil; end
	local wrong;
	if type(data) ~= "table" then
		wrong = "additional_data must be a table";
	elseif optional(data.roles) ~= nil and not has_texts(data.roles, true) then
		wrong = "additional_data.roles must be a list of names";
	elseif optional(data.groups) ~= nil and not has_texts(data.groups) then
		wrong = "additional_data.groups must be a list of names";
	elseif optional(data.source) ~= nil and type(data.source) ~= "string" then
		wrong = "additional_data.source must be a string";
	elseif optional(data.allow_reset) ~= nil and type(data.allow_reset) ~= "string" then
		wrong = "additional_data.allow_reset must be a string";
	end
	if wrong then return nil, "bad-request", wrong; end
	return data;
end

-- Nothing was created, and the library says why.
local function not_created(request, condition, text, limit)
	if limit then
		module:log("info", "%s was refused an invite, by %s", request.inviter.username, limit);
		limits.tell(text);
		return nil, condition;
	end
	limits.tell(condition == "bad-request" and text or condition);
	return failed(condition, text);
end

-- Makes an invite without storing it: its table as it is to be stored, and its draft. Or nil, a condition and a text,
-- followed by the limit that does not let its inviter make it, if it is that.
local function draft_of(request, additional_data)
	if not request.by_operator then
		request.source = additional_data and additional_data.source;
		request.inviter = limits.inviter(handle:limited(request));
	end
	local invite, draft, text = handle:prepare(request);
	if not invite then return nil, draft, text; end
	-- As they were passed, whatever counts as true.
	invite.allow_registration = request.allow_registration;
	invite.reusable = request.reusable;
	invite.additional_data = additional_data;

	if request.inviter then
		local is_allowed, condition, why_not, limit = handle:may_save(invite, draft);
		if not is_allowed then return nil, condition, why_not, limit; end
	end
	return invite, draft;
end

-- The same for an invite that is going to be stored. Without a request, additional_data and problem_text are the
-- condition and the text that there is instead.
local function prepare(request, additional_data, problem_text)
	if not request then return not_created(nil, additional_data, problem_text); end
	request.by_operator = request.by_operator or is_prosodyctl;
	local invite, draft, text, limit = draft_of(request, additional_data);
	if not invite then return not_created(request, draft, text, limit); end
	-- Before it is stored: handlers add to it.
	protected.fire("invite-created", invite);
	return invite, draft;
end

local function create(request, additional_data, problem_text)
	local invite, draft = prepare(request, additional_data, problem_text);
	if not invite then return nil, draft; end
	local restored, superseded, summary, limit = handle:save(invite, draft, compat.is_heard("invite-stored"));
	if not restored then return not_created(request, superseded, summary, limit); end
	for _, older in ipairs(superseded) do
		protected.fire("invite-revoked", older);
	end
	for _, name in ipairs(restored) do
		module:log("warn", "A handler of invite-created changed the %s of an invite; it was restored", name);
	end
	if summary then protected.fire("invite-stored", summary); end
	limits.keep(invite);
	return invite;
end

local function account_request(account_username, additional_data, ttl)
	local data, condition, problem_text = checked(additional_data);
	if condition then return nil, condition, problem_text; end
	local is_reset = data and optional(data.allow_reset);
	-- It is bound to the account whose password it resets.
	local username = optional(account_username) or is_reset;
	if username then
		username = prepped(username);
		if not username then return nil, "jid-malformed"; end
	end
	return {
		type = "register";
		username = username;
		account = username and compat.account_state(username);
		is_reset = is_reset;
		allow_registration = true;
		ttl = optional(ttl);
		default_ttl = default_ttl;
	}, data;
end

local function reset_request(account_username, additional_data, ttl)
	local username = prepped(account_username);
	if not username then return nil, "jid-malformed"; end
	local data, condition, problem_text = checked(additional_data);
	if condition then return nil, condition, problem_text; end
	local merged_additional_data = {};
	for k, v in pairs(data or {}) do
		merged_additional_data[k] = v;
	end
	merged_additional_data.allow_reset = username;
	return account_request(username, merged_additional_data, optional(ttl) or reset_ttl);
end

local function contact_request(username, allow_registration, additional_data, ttl)
	local inviter = prepped(username);
	if not inviter then return nil, "jid-malformed"; end
	local data, condition, problem_text = checked(additional_data);
	if condition then return nil, condition, problem_text; end
	return {
		type = "roster";
		username = inviter;
		allow_registration = optional(allow_registration);
		ttl = optional(ttl);
		default_ttl = default_ttl;
	}, data;
end

-- Creates an invite to register an account, with this username if one is given.
function create_account(account_username, additional_data, ttl)
	return create(account_request(account_username, additional_data, ttl));
end

-- Creates an invite to set a new password for an account. Both (username, ttl) and (username, additional_data, ttl)
-- are in use.
function create_account_reset(account_username, additional_data, ttl)
	if additional_data ~= nil and type(additional_data) ~= "table" then
		additional_data, ttl = nil, additional_data;
	end
	return create(reset_request(account_username, additional_data, ttl));
end

-- Creates an invite to become a contact of a local user; if allow_registration is given, also to register an account.
function create_contact(username, allow_registration, additional_data, ttl)
	return create(contact_request(username, allow_registration, additional_data, ttl));
end

-- Creates an invite to register an account that joins groups. If a ttl is given, it can be used any number of times
-- until it expires.
function create_group(group_ids, additional_data, ttl)
	local merged_additional_data = { groups = group_ids };
	local data, condition, problem_text = checked(additional_data);
	for k, v in pairs(data or {}) do
		merged_additional_data[k] = v;
	end
	if not condition then data, condition, problem_text = checked(merged_additional_data); end
	if condition then return create(nil, condition, problem_text); end
	return create({
		type = "register";
		allow_registration = true;
		reusable = optional(ttl) ~= nil;
		ttl = optional(ttl);
		default_ttl = default_ttl;
	}, data);
end

-- What create_invite and create_invites are asked for, as a request.
local function any_request(wanted)
	local request, data, problem_text;
	if wanted.kind == "contact" then
		request, data, problem_text = contact_request(wanted.username, wanted.allow_registration, wanted.additional_data,
			wanted.ttl);
		local account = request and compat.account_state(request.username);
		if account == "missing" then return nil, "item-not-found"; end
		if account == "not-found" then return nil, "account-unknown"; end
	elseif wanted.kind == "reset" then
		request, data, problem_text = reset_request(wanted.username, wanted.additional_data, wanted.ttl);
	elseif wanted.kind == nil or wanted.kind == "account" then
		request, data, problem_text = account_request(wanted.username, wanted.additional_data, wanted.ttl);
	else
		return nil, "bad-request", "an invite of kind "..tostring(wanted.kind).." cannot be asked for";
	end
	if not request then return nil, data, problem_text; end
	request.by_operator = wanted.by_operator;
	if wanted.max_uses == math.huge then
		request.reusable = true;
	else
		request.max_uses = wanted.max_uses;
	end
	return request, data;
end

-- Creates an invite from { kind, username, allow_registration, additional_data, ttl, max_uses, by_operator }: of kind
-- "account" (the default), "contact" or "reset"; max_uses is a number, or math.huge for no limit until it expires;
-- nobody's limits apply to what an operator makes.
function create_invite(wanted)
	return create(any_request(wanted));
end

-- So many are made in a second or two, in which a server serves nobody.
local MAX_AT_ONCE = 10000;

-- Creates many invites that are alike, up to 10,000, in a few transactions: a list of them. Handlers see all before any
-- is stored. Only an operator does that: nobody's limits apply.
function create_invites(wanted, number)
	local request, additional_data, problem_text = any_request(wanted);
	if not request then return not_created(nil, additional_data, problem_text); end
	if type(number) ~= "number" or number < 1 or number % 1 ~= 0 or number > MAX_AT_ONCE then
		return not_created(nil, "bad-request", ("the number of invites must be between 1 and %d"):format(MAX_AT_ONCE));
	end
	request.by_operator = true;
	if request.type == "register" and request.username then
		return not_created(nil, "bad-request", "only one invite at a time can be bound to a username");
	end
	local pairs_to_save, invites = {}, {};
	for i = 1, number do
		local invite, draft = prepare(request, additional_data);
		if not invite then return nil, draft; end
		pairs_to_save[i], invites[i] = { invite, draft }, invite;
	end
	local summaries, condition, text = handle:save_all(pairs_to_save);
	if not summaries then return failed(condition, text); end
	for _, summary in ipairs(summaries) do
		protected.fire("invite-stored", summary);
	end
	return invites;
end

-- Whether a local user may create an invite of a kind ("contact", "account-and-contact", "account" or "group") now:
-- true, or nil, a condition, and where it is a limit the sentence for the user and which limit it is. Changes nothing.
function may_invite(username, kind)
	local inviter = prepped(username);
	if not inviter then return nil, "jid-malformed"; end
	local account = compat.account_state(inviter);
	if account == "missing" then return nil, "item-not-found"; end
	if account == "not-found" then return nil, "account-unknown"; end
	local is_contact = kind == "contact" or kind == "account-and-contact";
	local invite, condition, text, limit = draft_of({
		type = is_contact and "roster" or "register";
		username = is_contact and inviter or nil;
		allow_registration = kind ~= "contact";
		default_ttl = default_ttl;
	}, {
		source = inviter.."@"..module.host;
		groups = kind == "group" and { "" } or nil;
	});
	if invite then return true; end
	if limit then return nil, condition, text, limit; end
	return failed(condition, text);
end

--- the end of many

-- Seconds between two batches of work: little enough is done at a time that nobody else waits. And until what somebody
-- else is about to redeem, or the storage, is asked for again.
local BATCH_PAUSE, BATCH_RETRY = 0.1, 1;

local is_ending = false;

-- Ends a batch of the invites that count as revoked since a deletion or the like: what is ended, and whether that was
-- all. Nil, a condition and a text if the storage fails.
local function end_more()
	local ended, over, is_more = handle:end_more();
	if not ended then return nil, over, is_more; end
	for _, summary in ipairs(ended) do
		protected.fire("invite-revoked", summary);
	end
	for _, ending in ipairs(over) do
		if ending.scope == "depending" and not is_prosodyctl then
			module:log("info", "The account %s was deleted: %d open invites that depended on it were revoked", ending.username,
				ending.ended);
		end
	end
	return ended, not is_more;
end

-- Begins to do that batch by batch, unless it is done already.
local function end_soon()
	if is_ending or is_prosodyctl then return; end
	is_ending = true;
	protected.timer(BATCH_PAUSE, "Ending the invites of a user", function ()
		local ended, is_all, text = end_more();
		if ended and not is_all then return ended[1] and BATCH_PAUSE or BATCH_RETRY; end
		is_ending = false; -- tidy() looks for more
		if not ended then failed(is_all, text); end
	end, BATCH_RETRY);
end

--- looking at invites

-- Iterates over token, invite of a listing that comes in pages. Invites may be deleted meanwhile.
local function iterate(kinds)
	import_bundled();
	local page, index, after, is_last = {}, 0, nil, false;
	local function next_invite()
		while index == #page do
			if is_last then return nil; end
			local invites, next_after, text = handle:pending_invites(kinds, after);
			if not invites then
				-- Callers loop over the result without a look at it, so there is no way to tell them.
				failed(next_after, text);
				is_last = true;
				return nil;
			end
			page, index, after, is_last = invites, 0, next_after, not next_after;
		end
		index = index + 1;
		return page[index].token, page[index];
	end
	return next_invite, {}, nil;
end

-- Iterates over token, invite of all invites that allow to register an account now.
function pending_account_invites()
	return iterate("account");
end

-- Iterates over token, invite of all invites that can be used now, those for a contact alone among them.
function pending_invites()
	return iterate("all");
end

local function get_info(kinds, token)
	local invite, condition, text = ask(token, "info", kinds, token);
	if not invite then return failed(condition, text); end
	return invite;
end

-- All that is known of an invite that allows to register an account.
function get_account_invite_info(token)
	return get_info("account", token);
end

-- All that is known of an invite of any kind.
function get_invite_info(token)
	return get_info("all", token);
end

--- looking after invites

-- What stands in the library for an invite that an operator names: by its token, or by at least six digits of its id.
local function resolve(named)
	local key, condition, text = ask(named, "resolve", named);
	if not key then return failed(condition, text); end
	return key;
end

-- Passes on what a call of the library returned; there may be nils at the end.
local function told(result, condition, ...)
	if result == nil then return failed(condition, (...)); end
	return result, condition, ...;
end

-- Calls a method of the library on an invite that an operator names.
local function look_after(method, named, ...)
	local key, condition = resolve(named);
	if not key then return nil, condition; end
	return told(handle[method](handle, key, ...));
end

local function revoke_key(key, reason, by)
	local revoked, condition, text = handle:revoke(key, reason, by);
	if revoked == nil then return failed(condition, text); end
	if not revoked then return nil, "token-invalid"; end
	protected.fire("invite-revoked", revoked);
	return true;
end

-- Revokes an invite of any kind: true, or nil and "token-invalid" if there was nothing to revoke. Why and by whom are
-- texts for the history.
function revoke(named, reason, by)
	local key, condition = resolve(named);
	if not key then return nil, condition; end
	return revoke_key(key, reason, by);
end

-- Revokes the open invites of a local user, and with `is_branch` of everybody in the user's branch. From then on none
-- of them is good: how many were ended, and whether a server is yet to end others, a batch at a time.
function revoke_inviter(username, is_branch, reason, by)
	import_bundled();
	local inviter = prepped(username);
	if not inviter then return nil, "jid-malformed"; end
	local revoked, is_more, text = handle:revoke_inviter(inviter, is_branch or false, reason, by);
	if not revoked then return failed(is_more, text); end
	for _, summary in ipairs(revoked) do
		protected.fire("invite-revoked", summary);
	end
	if not is_more then return #revoked; end
	end_soon();
	return #revoked, true;
end

-- Revokes an invite of any kind by its token. Also true if there is no such invite.
function delete_account_invite(token)
	local revoked, condition = revoke_key(token);
	if not revoked and condition == "token-invalid" and not is_imported then
		-- If it is one of the bundled module's, it would be good once it is here.
		local known, why_not, text = ask(token, "look", token);
		if not known and why_not == "internal-server-error" then return failed(why_not, text); end
		revoked, condition = revoke_key(token);
	end
	if not revoked and condition ~= "token-invalid" then return nil, condition; end
	return true;
end

-- The attempts to use an invite that are under way: a list of { purpose, invitee, made_at, life }, where `life` says of
-- the server of each "alive", "over" or "unknown".
function claims_on(named)
	return look_after("claims_on", named);
end

-- Frees an invite of all attempts to use it: how many there were. One that goes on may still make an account.
function release_claims(named)
	return look_after("release_claims", named);
end

-- Has an invite refused until it is resumed: true, or false if it has ended or is paused already.
function pause(named)
	return look_after("set_paused", named, true);
end

-- Has a paused invite accepted again: true, or false if it is not paused.
function resume(named)
	return look_after("set_paused", named, false);
end

-- Gives an invite another end, `ttl` seconds from now or never (math.huge): its summary, or false if it was used up or
-- revoked. One that had expired is good again.
function extend(named, ttl)
	local key, condition = resolve(named);
	if not key then return nil, condition; end
	local extended, superseded, text = handle:extend(key, ttl);
	if extended == nil then return failed(superseded, text); end
	for _, summary in ipairs(superseded or {}) do
		protected.fire("invite-revoked", summary);
	end
	return extended;
end

-- What is known of an invite in whatever state, without its token, and who used it.
function show(named)
	local summary, condition = look_after("show", named);
	if not summary then return nil, condition; end
	return summary;
end

-- Iterates over the summaries of the invites that a filter picks, { state, kind, inviter, text }: open ones unless it
-- names a state, the newest first; of those that have ended, the last ended first.
function list(filter)
	import_bundled();
	local page, index, after, is_last = {}, 0, nil, false;
	return function ()
		while index == #page do
			if is_last then return nil; end
			local summaries, next_after, text = handle:list(filter or {}, after);
			if not summaries then
				failed(next_after, text);
				return nil;
			end
			page, index, after, is_last = summaries, 0, next_after, not next_after;
		end
		index = index + 1;
		return page[index];
	end;
end

-- Whom a local user brought, whom these brought, and so on: a list of { username, depth, inviter, joined_at, account },
-- the user first and everybody before those whom they brought; `account` is "active", "disabled", "missing" or
-- "unknown".
function branch(username)
	local inviter = prepped(username);
	if not inviter then return nil, "jid-malformed"; end
	local members, condition, text = handle:branch(inviter);
	if not members then return failed(condition, text); end
	for _, member in ipairs(members) do
		local account = compat.account_state(member.username);
		member.account = account == "not-found" and "unknown" or account;
	end
	return members;
end

-- Whether an invite would be accepted now, for registering this username if one is given: true, or nil, a condition and
-- a sentence. Changes nothing.
function why(named, username)
	local key, condition = resolve(named);
	if not key then return nil, condition; end
	username = username and prepped(username);
	return redemption.why(key, username);
end

-- Removes up to `limit` of what ended longer ago than so many seconds, but nothing that a stream may still have
-- validated, nor what the next start would take over from the bundled module's store as if it were new: how many, and
-- whether there may be more.
local function purge(age, limit)
	return told(handle:purge(math.floor(math.max(age, shortest_history)), limit, function ()
		return bundled.read(module.host); -- nil where nobody can tell
	end));
end

-- Makes the bundled module's store equal to the invites that can be used now: how many; or nil, and an error that was
-- not reported yet.
local function export_to_bundled()
	-- What was made there since is to stay.
	if not import_bundled() then return nil; end
	local unusable = bundled.unusable(module.host);
	if unusable then return nil, unusable; end
	if bundled.driver() == "memory" then return nil, "storage = \"memory\" keeps nothing for another process"; end
	local host_rows, user_rows, count, unknown = handle:bundled_rows();
	if not host_rows then
		failed(user_rows, count);
		return nil;
	end
	if unknown > 0 then
		return nil, ("%d pending invites are kept without their tokens (invite_token_at_rest = \"digest\"), "
			.."and that module knows them by nothing else"):format(unknown);
	end
	local written, err = bundled.replace(module.host, host_rows, user_rows);
	if not written then return nil, err; end
	return count;
end

--- accepting invites

local valid_invite_methods = {};
local valid_invite_mt = { __index = valid_invite_methods };

-- Redeems the invite, unless the registration that it was validated for has done so already. True, or nil and
-- "token-used" if somebody else was faster; another condition if that cannot be told now.
function valid_invite_methods:use()
	return redemption.use(self);
end

-- The validated invite of a token; or nil, why not, and whether the library does not know it although it cannot say
-- that there is no such invite.
local function validate(token, username)
	if token and username then
		username = type(username) == "string" and nodeprep(username);
		if not username or username == "" then return nil, "token-invalid"; end
	end
	local invite, depends_on, more = ask(token, "get", token, username or nil);
	if not invite then
		local _, condition = failed(depends_on, more);
		return nil, condition, condition == "internal-server-error" and not more;
	end
	redemption.remember(invite, depends_on, more);
	if depends_on then
		local confirmed, condition, why_not, revoked = handle:confirm(token, compat.account_states(depends_on));
		if revoked then protected.fire("invite-revoked", revoked); end
		if not confirmed then
			-- Whoever presented it is not told.
			if condition ~= "internal-server-error" then
				module:log("info", "An invite was refused: %s", why_not);
			end
			return failed(condition, why_not);
		end
	end
	-- The bundled module has stored whatever it was given, and others take the types for granted.
	if type(invite.additional_data) ~= "table" then invite.additional_data = nil; end
	local data = invite.additional_data or {};
	if not has_texts(data.groups) then data.groups = nil; end
	if not has_texts(data.roles, true) then data.roles = nil; end
	if data.roles then
		local roles, unknown = compat.known_roles(compat.roles(data.roles));
		data.roles = roles;
		if unknown[1] then
			report(("An invite gives roles that %s does not have, and whoever uses it goes without: %s"):format(module.host,
				table.concat(unknown, ", ")));
		end
	end
	return setmetatable(invite, valid_invite_mt);
end

-- The token in a text that a stranger entered; or nil, a condition, a text and the host that a link in it is for.
local function find_pasted(text)
	local token, condition, why_not, host = ask(text, "pasted", text);
	if condition == "internal-server-error" then failed(condition, why_not); end
	return token, condition, why_not, host;
end

-- The validated invite of a token, or nil and why not. Its method :use() is to be called once it was actually used.
-- With a username: for becoming a contact of this user. Without: for registering an account; the inviter, whose
-- contact the new account becomes, is then in the field of that name.
function get(token, username)
	local known = not username and redemption.take_validated(token);
	if known then return known; end
	local invite, condition = validate(token, username);
	if not invite then
		metrics.refused(condition);
		return nil, condition;
	end
	return invite;
end

-- Validates and redeems a token that allows to register an account, in one step.
function use(token)
	local invite, condition = get(token);
	if not invite then return nil, condition; end
	return invite:use();
end

if module.host ~= "*" and not problem then
	redemption.hook(native, handle, validate, form, report, metrics.refused, metrics.lost, end_soon);
	metrics.hook(handle);
end

if module.host ~= "*" and not problem and not is_prosodyctl then
	limits.hook();

	function module.unload()
		limits.unload();
		redemption.unload();
	end
end

--- expiry and history

-- Seconds between two looks for what has expired or has been history for long enough.
local TIDY_INTERVAL = 60;

-- Invites that are purged in one batch. They lie all over the file, so each costs a page.
local PURGED = 25;

local function tidy()
	local ended, condition, text = handle:end_expired();
	if not ended then
		failed(condition, text);
		return TIDY_INTERVAL;
	end
	end_soon(); -- what another process has begun, or this one before it was started again
	for _, summary in ipairs(ended) do
		protected.fire(summary.state == "revoked" and "invite-revoked" or "invite-expired", summary);
	end
	if ended[1] then return BATCH_PAUSE; end
	if history_age == math.huge then return TIDY_INTERVAL; end
	local purged, is_more = purge(history_age, PURGED);
	return purged and is_more and BATCH_PAUSE or TIDY_INTERVAL;
end

if module.host ~= "*" and not problem and not is_prosodyctl then
	-- Where it has to be watched for a lease whether a server has died, that begins at once. SQLite's file says so itself
	-- to whoever wants something, and is opened when it is needed.
	local first_look = storage == "postgresql" and 0 or handle:lease() / 3;
	protected.timer(first_look, "Settling what servers that have died were about to use", redemption.settle);
	protected.timer(TIDY_INTERVAL, "Ending invites that have expired and purging old ones", tidy, TIDY_INTERVAL);
	-- Prosody 0.12 forks for -D in a handler of this event, and another module may have made an invite before.
	protected.hook_global("server-started", function () native.close(); end, 1000);
	protected.hook_global("server-stopped", function () native.close(); end, -1000);
end

--- landing pages

-- A web page that explains the invite, such as a deployment of https://github.com/modernxmpp/easy-xmpp-invitation.
-- Always an absolute URL, as it is passed on by itself.
local page_template = module:get_option_string("invites_page");
local page_supports = module:get_option_set("invites_page_supports", { "account", "contact", "account-and-contact" });

local render_url = interpolation.new("%b{}", url_escape, {
	urlescape = url_escape;
	noscheme = function (url)
		return (url:gsub("^[^:]+:", ""));
	end;
});

local function is_supported(invite)
	if invite.type == "register" then
		local is_reset = invite.additional_data and invite.additional_data.allow_reset;
		return page_supports:contains(is_reset and "password-reset" or "account");
	elseif invite.allow_registration then
		return page_supports:contains("account-and-contact");
	end
	return page_supports:contains("contact") or page_supports:contains("contact-only");
end

-- After the handlers of other modules: mod_invites_page knows its page better.
protected.hook("invite-created", function (invite)
	if page_template and not invite.landing_page and is_supported(invite) then
		invite.landing_page = render_url(page_template, { host = module.host, invite = invite });
	end
end, -1);

-- How the links of landing pages begin, or nil if there are none.
local function page_start()
	local start = page_template and page_template:match("^(.-){invite") or page_template;
	if start then return (render_url(start, { host = module.host }):gsub("[/?#&=]+$", "")); end
	local page = compat.lib("core.modulemanager").get_module(module.host, "invites_page");
	local url = page and page.module.http_url and page.module:http_url();
	-- That is what mod_http says where no HTTP port is open.
	return url and not url:find("//disabled.invalid", 1, true) and url or nil;
end

if module.host ~= "*" and not problem and not is_prosodyctl then
	form.hook(module:get_option_boolean("invite_registration_field", true), find_pasted, page_start);
end

--- commands

-- What commands are carried out on, see prosodyctl.carry_out.
local desk = {
	handle = handle, library = native and { carry_out = function (_, ...) return native.carry_out(...); end };
	problem = problem, failed = failed, prepped = prepped;
	import_bundled = import_bundled, export_to_bundled = export_to_bundled, why = redemption.why;
	end_soon = end_soon, inviter = limits.inviter, read_bundled = function () return bundled.read(module.host); end;
	facts = {
		default_ttl = default_ttl, history_age = history_age, shortest_history = shortest_history;
		has_role_maps = not compat.is_13;
	};
};

-- Carries out a command that the library has understood, see prosodyctl.carry_out. For prosodyctl and the shell.
function carry_out(command, out, input)
	desk.facts.is_in_band = guard.registers_in_band(module.host);
	return prosodyctl.carry_out(desk, command, out or prosodyctl.terminal, input);
end

if module.host ~= "*" and native and not is_prosodyctl then
	shell.register(native);
	prosodyctl.serve(native, carry_out);
end

function module.command(arg)
	if not native then
		prosodyctl.complain(problem);
		return 1;
	end
	local code = prosodyctl.run(native, desk, arg);
	native.close();
	return code;
end
