-- Redeeming an invite exactly once: get, claim, redeem or release.
--
-- Prosody validates a token at preauth, creates the account later in code that is not ours, and tells us afterwards,
-- if at all. So every attempt to register claims the invite first (user-registering), and redeems the claim when the
-- account is there (user-registered); a claim that is not redeemed by the next turn of the event loop is released.
-- Whether an invite may be claimed is decided in the library.

local compat = module.compat;

local jid_bare = compat.lib("util.jid").bare;
local jid_split = compat.lib("util.jid").split;
local nodeprep = compat.lib("util.encodings").stringprep.nodeprep;
local rostermanager = compat.lib("core.rostermanager");
local st = compat.lib("util.stanza");

local xmlns_preauth = "urn:xmpp:pars:0";

-- Bad tokens that a stream may present. Tokens are not guessed; this keeps the noise down.
local MAX_BAD_TOKENS = 10;

-- Seconds between two looks at attempts that wait for something, and looks between two renewals of their leases.
local REVIEW_INTERVAL, REVIEWS_PER_RENEWAL = 0.1, 200;

-- Looks between two tries to redeem while the storage fails: at first, and at most. Each may hold the server up, so one
-- of those that wait is tried for all.
local FIRST_RETRY, LAST_RETRY = 10, 40;

-- What somebody who registers is told: type and condition of the error, and a sentence.
local REFUSALS = {
	["token-invalid"] = { "cancel", "forbidden", "This invitation has been used already, or was revoked" };
	["token-used"] = { "cancel", "forbidden", "This invitation has been used already" };
	["token-busy"] = { "wait", "resource-constraint", "This invitation is being used right now, please try again" };
	["claims-stale"] = { "wait", "resource-constraint", "This invitation is being used right now, please try again" };
	["name-mismatch"] = { "modify", "not-acceptable", "This invitation is for another username" };
	["name-reserved"] = { "cancel", "conflict", "This username is reserved" };
	["name-busy"] = { "wait", "resource-constraint", "This username is being registered right now" };
	["account-missing"] = { "cancel", "item-not-found", "There is no account whose password could be reset" };
	["internal-server-error"] = { "wait", "internal-server-error", "The invitation cannot be checked at the moment" };
};

-- Attempts that hold a claim, by its nonce: { nonce, token, purpose, invitee, invite, holder, runner, thread }, and how
-- they go on.
local attempts = {};
-- The attempt of a holder (a stream, or else a validated invite), and the invites that were redeemed: one preauth is
-- good for one registration.
local attempt_of, redeemed = setmetatable({}, { __mode = "k" }), setmetatable({}, { __mode = "k" });

-- What is known of a validated invite besides what its holder sees and may change: { depends_on, is_reset }.
local abouts = setmetatable({}, { __mode = "k" });

local redemption = {};

local DEPENDS_ON_NOBODY = {};

-- What the library has told of an invite that it validated. It never changes, and need not be read again.
function redemption.remember(invite, depends_on, is_reset)
	abouts[invite] = depends_on and { depends_on = depends_on, is_reset = is_reset } or DEPENDS_ON_NOBODY;
end

-- What the preauth that is being handled has found. mod_invites_register looks its token up once more, and would call
-- it invalid if the storage failed between the two.
local validated_invite;

function redemption.take_validated(token)
	local invite = validated_invite;
	validated_invite = nil;
	return invite and invite.token == token and invite or nil;
end

function redemption.hook(handle, validate, report, count_refusal)
	local is_reviewing = false;
	local retry_pause, looks_since_failure = FIRST_RETRY, 0;

	-- Whether there may be claims that nobody holds, for the storage failed when they were made or released.
	local is_any_left = false;

	local function fire(event_name, summary, more)
		for k, v in pairs(more or {}) do
			summary[k] = v;
		end
		-- What the event tells has happened, whatever its handlers make of it.
		local ok, err = pcall(module.fire_event, module, event_name, summary);
		if not ok then module:log("error", "A handler of %s failed: %s", event_name, tostring(err)); end
	end

	-- Calls a method of the handle, and once more after it has settled the claims of servers that died. With an inviter,
	-- on whom it depends, `argument` is a table.
	local function settled(inviter, method, argument)
		local result, condition, text, more = method(handle, argument);
		if condition == "claims-stale" then
			for _, claim in ipairs(more) do
				local outcome;
				if attempts[claim.nonce] then
					-- Our own: this process, not its registration, was held up.
					handle:renew(claim.nonce);
					outcome = "unknown";
				elseif claim.purpose == "contact" then
					local roster = inviter and rostermanager.load_roster(inviter, module.host) or {};
					local item = roster[claim.invitee];
					local is_contact = item and (item.subscription == "from" or item.subscription == "both");
					local is_broken = roster[false] and roster[false].broken;
					outcome = is_contact and "active" or is_broken and "unknown" or "missing";
				else
					outcome = compat.account_state(claim.invitee);
				end
				local summary = handle:settle(claim, outcome);
				if type(summary) == "table" then
					fire("invite-used", summary, { purpose = claim.purpose, invitee = claim.invitee });
				end
			end
			if inviter then argument.depends_on = compat.account_state(inviter); end
			result, condition, text = method(handle, argument);
		elseif condition == "token-invalid" and more then
			fire("invite-revoked", more);
		end
		if condition == "internal-server-error" then
			report(text);
		end
		return result, condition;
	end

	local function forget(attempt)
		attempts[attempt.nonce] = nil;
		if attempt.holder and attempt_of[attempt.holder] == attempt then
			attempt_of[attempt.holder] = nil;
		end
	end

	local function release(attempt)
		forget(attempt);
		local released, condition, text = handle:release(attempt.nonce);
		if released == nil and condition == "internal-server-error" then
			report(text);
			is_any_left, looks_since_failure = true, 0;
		end
	end

	-- Turns the claim of an attempt into a use: true, false if the claim was lost, nil if that will be tried again.
	local function redeem(attempt, source)
		if type(source) ~= "string" then source = nil; end
		local is_heard = compat.is_heard("invite-used");
		local summary, condition, text = handle:redeem(attempt.token, attempt.nonce, source, is_heard);
		if condition == "internal-server-error" then
			if attempt.is_to_redeem then
				retry_pause = math.min(retry_pause * 2, LAST_RETRY);
			else
				report(text);
			end
			attempt.is_to_redeem, attempt.source = true, source;
			looks_since_failure = 0;
			return nil;
		end
		retry_pause = FIRST_RETRY;
		forget(attempt);
		if not summary then
			module:log("error", "An invite was used by %s, but %s", attempt.invitee, text);
			return false;
		end
		if type(summary) == "table" then
			fire("invite-used", summary, { purpose = attempt.purpose, invitee = attempt.invitee, source = source });
		end
		return true;
	end

	local function review_attempt(attempt)
		attempt.reviews = (attempt.reviews or 0) + 1;
		if attempt.is_to_redeem then
			if looks_since_failure >= retry_pause then redeem(attempt, attempt.source); end
		elseif attempt.runner and attempt.runner.state == "waiting" and attempt.runner.thread == attempt.thread then
			if attempt.reviews % REVIEWS_PER_RENEWAL == 0 then handle:renew(attempt.nonce); end
		else
			release(attempt);
		end
	end

	local function review()
		-- A copy: what is done for one may begin or end another.
		local all = {};
		for _, attempt in pairs(attempts) do table.insert(all, attempt); end
		looks_since_failure = looks_since_failure + 1;
		for _, attempt in ipairs(all) do
			-- A timer that raises an error is not called again, and these have to be looked at.
			local ok, err = pcall(review_attempt, attempt);
			if not ok then module:log("error", "%s", tostring(err)); end
		end
		if is_any_left and looks_since_failure >= retry_pause then
			local _, condition = handle:release_left();
			is_any_left = condition == "internal-server-error";
			retry_pause = is_any_left and math.min(retry_pause * 2, LAST_RETRY) or FIRST_RETRY;
			looks_since_failure = 0;
		end
		is_reviewing = is_any_left or next(attempts) ~= nil;
		return is_reviewing and REVIEW_INTERVAL or nil;
	end

	-- The same of the instance that a reload has put in the place of this one, whose timers are over.
	local successor_review_soon;

	local function review_soon()
		if successor_review_soon then
			successor_review_soon();
		elseif (is_any_left or next(attempts)) and not is_reviewing then
			is_reviewing = true;
			module:add_timer(0, review);
		end
	end

	-- Claims an invite for somebody: the attempt, or nil and why not.
	local function claim(token, purpose, invitee, depends_on, invite, holder)
		local replaced = holder and attempt_of[holder];
		local runner, thread = compat.current_runner();
		local attempt = {
			token = token, purpose = purpose, invitee = invitee;
			invite = invite, holder = holder, runner = runner, thread = thread;
		};
		if depends_on then attempt.depends_on = compat.account_state(depends_on); end
		if replaced then attempt.replaced = replaced.nonce; end
		local nonce, condition = settled(depends_on, handle.claim, attempt);
		if replaced then forget(replaced); end
		if not nonce then
			if condition == "internal-server-error" then
				is_any_left, looks_since_failure = true, 0;
				review_soon();
			end
			return nil, condition;
		end
		attempt.nonce, attempt.depends_on, attempt.replaced = nonce, nil, nil;
		attempts[nonce] = attempt;
		if holder then attempt_of[holder] = attempt; end
		review_soon();
		return attempt;
	end

	local function attempt_for(purpose, invitee)
		for _, attempt in pairs(attempts) do
			if attempt.purpose == purpose and attempt.invitee == invitee then return attempt; end
		end
	end

	local function validated_invite_of(event)
		return event.validated_invite or event.session and event.session.validated_invite;
	end

	local function clear_validated_invite(event)
		event.validated_invite = nil;
		if event.session then event.session.validated_invite = nil; end
	end

	--- registering an account, or resetting its password (XEP-0445)

	-- What the account of a username says against redeeming an invite for it, if anything.
	local function account_refusal(about, account)
		if about.is_reset and account == "missing" then
			return "account-missing";
		elseif about.is_reset and account == "unknown" then
			return "internal-server-error"; -- the caller would take it for a free name
		elseif not about.is_reset and (account == "active" or account == "disabled") then
			return "conflict";
		end
	end

	local function look(invite)
		if abouts[invite] then return abouts[invite]; end
		-- A copy, or validated before a reload.
		local about, condition, text = handle:look(invite.token);
		if condition == "internal-server-error" then report(text); end
		return about, condition;
	end

	local function refuse(event, condition)
		local refusal = REFUSALS[condition];
		count_refusal(condition);
		event.allowed = false;
		event.error_type, event.error_condition, event.reason = refusal[1], refusal[2], refusal[3];
		event.error = { type = refusal[1], condition = refusal[2], text = refusal[3] };
	end

	local function guard_registration(event, invite)
		local username = type(event.username) == "string" and nodeprep(event.username);
		if not username then return; end -- nobody can register that
		local account = compat.account_state(username);
		local exists = account == "active" or account == "disabled";

		if not invite or not invite.token then
			if exists then return; end
			local is_free, condition = settled(nil, handle.check_name, username);
			if not is_free then
				refuse(event, condition == "name-reserved" and condition
					or condition == "internal-server-error" and condition or "name-busy");
			end
			return;
		end

		local about, condition = look(invite);
		if not about then return refuse(event, condition); end
		if redeemed[invite] then return refuse(event, "token-used"); end
		local against = account_refusal(about, account);
		if against == "conflict" then
			event.allow_reset = nil;
			return; -- the caller says so, and the invite stays as it is
		elseif against then
			return refuse(event, against);
		end
		local attempt, why = claim(invite.token, "account", username, about.depends_on, invite, event.session or invite);
		if not attempt then refuse(event, why); end
	end

	-- Whether redeeming an invite would succeed now: true, or nil, a condition and a sentence. Changes nothing.
	function redemption.why(token, username)
		local about, condition, text = handle:look(token);
		if not about then return nil, condition, text; end
		local name = about.purpose == "account" and (username or about.bound) or nil;
		local against = name and account_refusal(about, compat.account_state(name));
		if against == "conflict" then
			return nil, against, "There is an account with this username already";
		elseif against then
			return nil, against, REFUSALS[against][3];
		end
		return handle:why({
			token = token;
			purpose = about.purpose;
			invitee = name;
			depends_on = about.depends_on and compat.account_state(about.depends_on);
		});
	end

	-- Around the handlers, not among them: a handler that returns something keeps the ones after it from running.
	module:wrap_event("user-registering", function (handlers, event_name, event)
		-- Looked at before the handlers: a client that hangs up while one of them waits leaves an empty session behind.
		local invite = type(event) == "table" and validated_invite_of(event);
		local ret = handlers(event_name, event);
		if type(event) == "table" and event.allowed and event.username then
			guard_registration(event, validated_invite_of(event) or invite);
		end
		return ret;
	end);

	-- Redeems before other handlers give the account what the invite promises, and takes the promise away if it cannot.
	local function redeem_registration(event)
		local invite = validated_invite_of(event);
		local attempt = attempt_of[event.session or invite or event];
		local username = attempt and attempt.invitee == event.username and attempt.invitee or nodeprep(event.username);
		if not attempt and username then
			-- The session of a client that hung up is empty; it is still the same thread that goes on.
			local by_name, _, thread = attempt_for("account", username), compat.current_runner();
			attempt = by_name and by_name.thread == thread and by_name or nil;
		end
		if attempt and (invite and attempt.token ~= invite.token or attempt.invitee ~= username) then
			attempt = nil; -- somebody else's
		end
		local is_redeemed;
		if attempt then
			if not invite then
				-- The client is gone, and its session with it; the account is there.
				invite = attempt.invite;
				event.validated_invite = invite;
			end
			is_redeemed = redeem(attempt, event.source) ~= false;
		elseif not invite or not invite.token then
			return;
		elseif redeemed[invite] then
			is_redeemed = false;
		else
			is_redeemed = redemption.redeem_at_once(invite, username, event.source);
		end
		if is_redeemed then
			redeemed[invite] = true;
		else
			module:log("error", "The account %s was made with an invite that is not good for it any more; it gets nothing of "
				.."what the invite promised", tostring(event.username));
			clear_validated_invite(event);
		end
	end

	-- For a caller that claims nothing: true, false if somebody was faster, or nil and why it could not be tried.
	function redemption.redeem_at_once(invite, invitee, source)
		if type(source) ~= "string" then source = nil; end
		local about, condition = look(invite);
		if not about then return nil, condition; end
		local purpose = invite.username and invite.type == "roster" and not invite.inviter and "contact" or "account";
		local summary, why = settled(about.depends_on, handle.redeem_at_once, {
			token = invite.token;
			purpose = purpose;
			invitee = invitee;
			depends_on = about.depends_on and compat.account_state(about.depends_on);
			source = source;
		});
		if not summary then return nil, why; end
		redeemed[invite] = true;
		fire("invite-used", summary, { purpose = purpose, invitee = invitee, source = source });
		return true;
	end

	local function after_account_change(handlers, event_name, event)
		if type(event) == "table" and type(event.username) == "string" then
			redeem_registration(event);
		end
		local ret = handlers(event_name, event);
		if type(event) == "table" then
			-- One preauth covers one registration. Others have read it by now.
			clear_validated_invite(event);
		end
		return ret;
	end

	module:wrap_event("user-registered", after_account_change);

	local function tell_revoked(retired, condition, text)
		for _, summary in ipairs(retired or {}) do
			fire("invite-revoked", summary);
		end
		if condition == "internal-server-error" then report(text); end
	end

	-- A new password ends every reset that is open. Some callers say no more than whose it is.
	module:wrap_event("user-password-reset", function (handlers, event_name, event)
		local ret = after_account_change(handlers, event_name, event);
		local username = type(event) == "table" and event.username or event;
		username = type(username) == "string" and nodeprep(username);
		if username then tell_revoked(handle:retire_resets(username)); end
		return ret;
	end);

	module:hook_global("user-password-changed", function (event)
		if event.host ~= module.host then return; end
		local attempt, _, thread = attempt_for("account", event.username), compat.current_runner();
		-- This very password was set by a reset (13.0.2 and later say so), which is yet to be redeemed.
		if attempt and attempt.thread == thread then return; end
		tell_revoked(handle:retire_resets(event.username));
	end);

	module:hook_global("user-deleted", function (event)
		if event.host ~= module.host then return; end
		-- register_ibr deletes the account that it has just made when it cannot store its details.
		local attempt = attempt_for("account", event.username);
		if attempt then release(attempt); end
		tell_revoked(handle:retire_depending(event.username));
	end);

	--- presenting a token before registering (XEP-0445)

	module:wrap_event("stanza/iq/"..xmlns_preauth..":preauth", function (handlers, event_name, event)
		local ret = handlers(event_name, event);
		validated_invite = nil;
		return ret;
	end);

	module:hook("stanza/iq/"..xmlns_preauth..":preauth", function (event)
		local session, stanza = event.origin, event.stanza;
		local invite, condition, is_unknown = validate(stanza.tags[1].attr.token);
		validated_invite = invite;
		if invite then
			return; -- mod_invites_register takes it from here
		elseif condition ~= "internal-server-error" or is_unknown then
			session.bad_invite_tokens = (session.bad_invite_tokens or 0) + 1;
			if session.bad_invite_tokens >= MAX_BAD_TOKENS then
				count_refusal(condition);
				session:close({ condition = "policy-violation", text = "Too many invalid invitations" });
				return true;
			end
		end
		if condition == "internal-server-error" then
			count_refusal(condition);
			local refusal = REFUSALS[condition];
			session.send(st.error_reply(stanza, refusal[1], refusal[2], refusal[3]));
			return true;
		end
	end, 10);

	--- becoming a contact (XEP-0379)

	-- Takes the token off, so that the subscription goes the ordinary way.
	local function strip_preauth(stanza)
		stanza:maptags(function (tag)
			if tag.name == "preauth" and tag.attr.xmlns == xmlns_preauth then return nil; end
			return tag;
		end);
	end

	local function claim_contact(stanza, token)
		local contact = jid_bare(stanza.attr.from);
		local username = stanza.attr.to and jid_split(stanza.attr.to);
		if not token or not username or jid_bare(stanza.attr.to) == contact then return nil; end
		local invite, condition = validate(token, username);
		local attempt;
		if invite then attempt, condition = claim(token, "contact", contact, username); end
		if not attempt then count_refusal(condition); end
		return attempt;
	end

	module:wrap_event("presence/bare", function (handlers, event_name, event)
		local stanza = event.stanza;
		local preauth = stanza.attr.type == "subscribe" and stanza:get_child("preauth", xmlns_preauth);
		if not preauth then return handlers(event_name, event); end
		local attempt = claim_contact(stanza, preauth.attr.token);
		if not attempt then strip_preauth(stanza); end
		local ret = handlers(event_name, event);
		-- mod_invites_register has called :use() if it made the subscription.
		if attempt and attempts[attempt.nonce] and not attempt.is_to_redeem then release(attempt); end
		return ret;
	end);

	--- :use() of a validated invite

	function redemption.use(invite)
		if redeemed[invite] then return true; end
		local is_contact = invite.type == "roster" and not invite.inviter;
		for _, attempt in pairs(attempts) do
			if attempt.token == invite.token and (attempt.invite == invite or is_contact and attempt.purpose == "contact") then
				local is_redeemed = redeem(attempt, attempt.purpose == "contact" and "presence" or nil);
				if is_redeemed == false then return nil, "token-used"; end
				redeemed[invite] = true;
				return true;
			end
		end
		local is_redeemed, condition = redemption.redeem_at_once(invite);
		if not is_redeemed then
			return nil, condition == "internal-server-error" and condition or "token-used";
		end
		return true;
	end

	--- reloading

	-- A claim outlives a reload of this module: the registration that made it goes on meanwhile.
	function module.save()
		return {
			attempts = attempts, attempt_of = attempt_of, redeemed = redeemed;
			set_successor = function (f) successor_review_soon = f; end;
		};
	end

	function module.restore(state)
		-- Nothing was saved by the bundled module, nor by this one while its library was broken.
		if not state.attempts then return; end
		attempts, attempt_of, redeemed = state.attempts, state.attempt_of, state.redeemed;
		state.set_successor(review_soon);
		review_soon();
	end
end

return redemption;
