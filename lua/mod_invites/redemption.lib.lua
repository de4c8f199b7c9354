-- Redeeming an invite exactly once: get, claim, redeem or release; see docs/design/redemption.md.
--
-- Prosody validates a token at preauth, creates the account later in code that is not ours, and tells us afterwards,
-- if at all. So every attempt to register claims the invite first (user-registering), and redeems the claim when the
-- account is there (user-registered); a claim that is not redeemed by the next turn of the event loop is released.
-- Whether an invite may be claimed is decided in the library.

local compat = module.compat;
local contacts = module:require("contacts");
local protected = module.protected;

local nodeprep = compat.lib("util.encodings").stringprep.nodeprep;
local usermanager = compat.lib("core.usermanager");
local rostermanager = compat.lib("core.rostermanager");
local st = compat.lib("util.stanza");

local xmlns_preauth = "urn:xmpp:pars:0";

-- What somebody who registers is told: type and condition of the error, and a sentence; in some a name stands for "%s".
local REFUSALS = {
	["token-invalid"] = { "cancel", "forbidden", "This invitation has been used already, or was revoked" };
	["token-used"] = { "cancel", "forbidden", "This invitation has been used already" };
	["token-busy"] = { "wait", "resource-constraint", "This invitation is being used right now, please try again" };
	["name-mismatch"] = { "modify", "not-acceptable", "This invitation is for the username %s" };
	["name-reserved"] = { "cancel", "conflict", "This username is reserved" };
	["name-busy"] = { "wait", "resource-constraint", "This username is being registered right now" };
	["conflict"] = { "cancel", "conflict", "The requested username already exists." };
	["account-unknown"] = { "wait", "internal-server-error", "The invitation cannot be checked at the moment" };
	["account-missing"] = { "cancel", "item-not-found", "There is no account whose password could be reset" };
	["internal-server-error"] = { "wait", "internal-server-error", "The invitation cannot be checked at the moment" };
	-- Of what was entered into the registration form.
	["no-token"] = { "modify", "not-acceptable", "There is no invitation link or code in the field for it" };
	["other-host"] = { "modify", "not-acceptable", "This invitation is for %s, and this server is "..module.host };
	["link-unknown"] = { "modify", "not-acceptable", "This server does not know this invitation. Is the link, which leads "
		.."to %s, for another server?" };
	["code-unknown"] = { "modify", "not-acceptable", "This server does not know this invitation. Is it complete?" };
	["contact-only"] = { "cancel", "forbidden", "With this invitation you can become a contact, but not register" };
	["used"] = { "cancel", "forbidden", "This invitation has been used already" };
	["expired"] = { "cancel", "forbidden", "This invitation has expired" };
	["revoked"] = { "cancel", "forbidden", "This invitation was revoked" };
	["paused"] = { "wait", "forbidden", "This invitation is paused, please ask whoever sent it" };
	["pending"] = { "wait", "forbidden", "This invitation cannot be used at the moment" };
};

-- Attempts that hold a claim, by its nonce: { nonce, token, purpose, invitee, invite, holder, runner, thread,
-- was_missing }; `was_missing`: it was proved that there was no account of this name. What becomes of their claims is
-- decided in the library.
local attempts;
-- The attempt of a holder (a stream, or else a validated invite), and the invites that were redeemed: one preauth is
-- good for one registration. Nobody ends an attempt but its own coroutine, or a review when that is over.
local attempt_of, redeemed;

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

-- What is under way outlives this module: it may be reloaded, or its host be deactivated and activated, in the middle
-- of a registration. The library stays for as long as the process does; what module:shared() holds may be collected.
local function under_way(library)
	library.under_way = library.under_way or {};
	local of_host = library.under_way[module.host];
	if not of_host then
		local weak = { __mode = "k" };
		of_host = { attempts = {}, attempt_of = setmetatable({}, weak), redeemed = setmetatable({}, weak) };
		library.under_way[module.host] = of_host;
	end
	return of_host;
end

function redemption.hook(library, handle, validate, form, report, count_refusal, count_lost, end_soon)
	local kept = under_way(library);
	attempts, attempt_of, redeemed = kept.attempts, kept.attempt_of, kept.redeemed;
	local is_reviewing = false;

	local function fire(event_name, summary, more)
		for k, v in pairs(more or {}) do
			summary[k] = v;
		end
		protected.fire(event_name, summary);
	end

	-- What came of a claim that nobody will redeem: the state of the account that was to be made; of a contact, "active"
	-- if the inviter has it.
	local function outcome_of(claim, inviter)
		if claim.purpose == "account" then
			return claim.invitee and compat.account_state(claim.invitee) or "unknown";
		elseif not inviter then
			return "unknown";
		end
		local is_read, roster = protected.call("Whether a claim has become a contact cannot be told",
			rostermanager.load_roster, inviter, module.host);
		local item = is_read and roster[claim.invitee];
		local is_contact = item and (item.subscription == "from" or item.subscription == "both");
		local is_broken = not is_read or roster[false] and roster[false].broken;
		return is_contact and "active" or is_broken and "unknown" or "missing";
	end

	local function settle(claim, outcome)
		local summary, condition, text = handle:settle(claim, outcome);
		if type(summary) == "table" then
			fire("invite-used", summary, { purpose = claim.purpose, invitee = claim.invitee });
		elseif condition == "internal-server-error" then
			report(text);
		end
		return summary ~= nil;
	end

	-- Settles the claims of servers that are proved to have died, or of which nothing was seen for a lease, and our own
	-- that no attempt holds. Whether there were any.
	local function settle_claims()
		-- A storage that fails says so to whoever wants something of it.
		local claims = handle:look_at_claims();
		local is_any_settled = false;
		for _, claim in ipairs(claims or {}) do
			local outcome = outcome_of(claim, claim.inviter); -- may wait
			is_any_settled = settle(claim, outcome) or is_any_settled;
		end
		return is_any_settled;
	end

	-- Looks after the claims of others, and after our own that nobody holds: the seconds until that is to be done again.
	function redemption.settle()
		settle_claims();
		return handle:lease() / 3;
	end

	-- Calls a method of the handle, and once more if claims could be settled that were in its way. If the invite depends
	-- on accounts, `argument` is a table.
	local function settled(depends_on, method, argument)
		local result, condition, text, more = method(handle, argument);
		if condition == "token-busy" and settle_claims() then
			if depends_on then argument.depends_on = compat.account_states(depends_on); end
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
		local released, _, text = handle:release(attempt.nonce);
		if released == nil then report(text); end
	end

	-- Leaves an attempt to the reviews: the account is there, so neither what its stream does next nor a deletion ends it.
	local function leave_to_reviews(attempt)
		if attempt.holder and attempt_of[attempt.holder] == attempt then attempt_of[attempt.holder] = nil; end
		attempt.runner, attempt.thread, attempt.is_made = nil, nil, true;
	end

	-- Somebody else has the use that an attempt had claimed, and what it has made stays.
	local function report_lost(invitee, lost)
		module:log("error", "%s has used the invite %s, but %s: nothing of what it promised is given",
			invitee or "Somebody", lost.id, lost.text);
		count_lost("kept");
	end

	-- Turns the claim of an attempt into a use: true, nil if a review will try that again, or false if the claim was lost,
	-- and what is known of that: { id, text, is_taken_back }.
	local function redeem(attempt, source)
		if type(source) ~= "string" then source = nil; end
		local is_heard = compat.is_heard("invite-used");
		local summary, condition, text, lost = handle:redeem(attempt, attempt.nonce, source, is_heard);
		if condition == "internal-server-error" then
			report(text);
			leave_to_reviews(attempt);
			kept.review_soon();
			return nil;
		end
		forget(attempt);
		if not summary then
			lost = lost or { id = "of an unknown id" };
			lost.text = text;
			return false, lost;
		end
		if type(summary) == "table" then
			fire("invite-used", summary, { purpose = attempt.purpose, invitee = attempt.invitee, source = source });
		end
		return true;
	end

	-- Whether the coroutine that makes an attempt waits for something.
	local function is_waiting(attempt)
		return compat.is_waiting(attempt.runner, attempt.thread);
	end

	-- Tells of the end of a user's invites, which may be more than were revoked at once.
	local function tell_ended(username, is_deleted, revoked, is_more)
		if is_deleted and is_more then
			module:log("info", "The account %s was deleted: the open invites that depended on it are not good any more, and are "
				.."being revoked", username);
		elseif is_deleted and revoked[1] then
			module:log("info", "The account %s was deleted: %d open invites that depended on it were revoked", username,
				#revoked);
		end
		for _, summary in ipairs(revoked) do
			fire("invite-revoked", summary);
		end
		if is_more then end_soon(); end
	end

	-- Ends the invites that end with what has just happened to an account: those that depend on it, or its resets.
	local function end_invites(username, is_deleted)
		local method = is_deleted and handle.retire_depending or handle.retire_resets;
		local revoked, is_more, text = method(handle, username);
		if revoked then return tell_ended(username, is_deleted, revoked, is_more); end
		report(text);
		kept.review_soon();
	end

	local function review()
		local waiting = {};
		for nonce, attempt in pairs(attempts) do
			if is_waiting(attempt) then table.insert(waiting, nonce); end
		end
		local done = handle:review(waiting, compat.is_heard("invite-used"));
		for _, nonce in ipairs(done.over) do
			if attempts[nonce] then forget(attempts[nonce]); end
		end
		for _, text in ipairs(done.problems) do report(text); end
		for _, summary in ipairs(done.used) do fire("invite-used", summary); end
		-- Their accounts are not taken back: they may have been in use for a while.
		for _, lost in ipairs(done.lost) do report_lost(lost.invitee, lost); end
		for _, ended in ipairs(done.ended) do
			tell_ended(ended.username, ended.is_deleted, ended.revoked, ended.is_more);
		end
		is_reviewing = not done.is_idle;
		return is_reviewing and handle:review_interval() or nil;
	end

	-- Begins to review what is under way, unless that is done already. Called through `kept`: the timers of an instance
	-- that a reload has replaced are over.
	function kept.review_soon()
		if is_reviewing then return; end
		is_reviewing = true;
		protected.timer(0, "Looking after the claims of registrations", review, 1);
	end

	-- Claims an invite for somebody: the attempt, or nil and why not. False for a contact who is among its redemptions and
	-- is let in without another use.
	local function claim(token, purpose, invitee, depends_on, invite, holder)
		local states = depends_on and compat.account_states(depends_on); -- may wait
		local runner, thread = compat.current_runner();
		local replaced = holder and attempt_of[holder];
		if replaced and replaced.thread ~= thread and is_waiting(replaced) then replaced = nil; end
		local attempt = {
			token = token, purpose = purpose, invitee = invitee, depends_on = states;
			invite = invite, holder = holder, runner = runner, thread = thread;
		};
		if replaced then attempt.replaced = replaced.nonce; end
		local nonce, condition = settled(depends_on, handle.claim, attempt);
		if replaced then forget(replaced); end
		if nonce == false then return false; end
		if not nonce then
			if condition == "internal-server-error" then kept.review_soon(); end
			return nil, condition;
		end
		attempt.nonce, attempt.depends_on, attempt.replaced = nonce, nil, nil;
		attempts[nonce] = attempt;
		if holder then attempt_of[holder] = attempt; end
		kept.review_soon();
		return attempt;
	end

	-- The attempt of this coroutine to make or reset this account. Another stream may be about to make one of the same
	-- name; that is not ours to end.
	local function own_attempt(username)
		local _, thread = compat.current_runner();
		if not thread then return nil; end
		for _, attempt in pairs(attempts) do
			if attempt.thread == thread and attempt.purpose == "account" and attempt.invitee == username then
				return attempt;
			end
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
		elseif about.is_reset and account == "not-found" then
			return "account-unknown";
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

	-- `words` is what it is told by, if not the condition; `name` is for the place of a name in them.
	local function refuse(event, condition, words, name)
		local refusal = REFUSALS[words or condition];
		local text = refusal[3]:gsub("%%s", function () return tostring(name); end);
		count_refusal(condition);
		event.allowed = false;
		event.error_type, event.error_condition, event.reason = refusal[1], refusal[2], text;
		event.error = { type = refusal[1], condition = refusal[2], text = text };
	end

	-- Refuses a registration under another username than that of the invite, whatever else speaks against it: who has the
	-- invite may know the name, and nothing else helps. Whether it did.
	local function refuse_other_name(event, invite)
		local username = invite and invite.token and type(event.username) == "string" and nodeprep(event.username);
		if not username then return false; end
		local _, condition = handle:why({ token = invite.token, purpose = "account", invitee = username });
		if condition ~= "name-mismatch" then return false; end
		refuse(event, condition, condition, invite.username);
		return true;
	end

	local function guard_registration(event, invite)
		local username = type(event.username) == "string" and nodeprep(event.username);
		if not username then return; end -- nobody can register that
		local account, has_failed = compat.account_state(username);
		-- The caller would ask the same, and leave the client without an answer.
		if has_failed then return refuse(event, "internal-server-error"); end
		local exists = account == "active" or account == "disabled";

		if not invite or not invite.token then
			if exists then return event.allow_reset == nil and refuse(event, "conflict") or nil; end
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
		-- The caller looks for the account too, before or after: what it finds may be another one.
		if against then return refuse_other_name(event, invite) or refuse(event, against); end
		local holder = event.session or invite;
		local attempt, why = claim(invite.token, "account", username, about.depends_on, invite, holder);
		if not attempt then return refuse(event, why, why, invite.username); end
		attempt.was_missing = account == "missing";
	end

	-- Counts an unknown token of a stranger, and ends the stream of who presents one after the other. Whether it did.
	local function is_guesser(session)
		if not library.count_bad_token(tostring(session.ip)) then return false; end
		session:close({ condition = "policy-violation", text = "Too many unknown invitations" });
		return true;
	end

	-- The invite that somebody has entered into the registration form, or nil after it was refused.
	local function entered_invite(event, text)
		local token, condition, _, host = form.find_invite(text);
		if not token then
			if condition ~= "token-invalid" then return refuse(event, condition, condition, host); end
			is_guesser(event.session);
			return refuse(event, condition, host and "link-unknown" or "code-unknown", host);
		end
		local invite;
		invite, condition = validate(token);
		if invite then return invite; end
		local about = condition ~= "internal-server-error" and condition ~= "account-unknown" and handle:look(token);
		refuse(event, condition, about and (about.purpose == "contact" and "contact-only" or about.state) or condition);
	end

	-- Whether redeeming an invite would succeed now: true, or nil, a condition and a sentence. Changes nothing.
	function redemption.why(token, username)
		local about, condition, text = handle:look(token);
		if not about then return nil, condition, text; end
		local name = about.purpose == "account" and (username or about.bound) or nil;
		local contact = about.purpose == "contact" and username and username.."@"..module.host or nil;
		local against = name and account_refusal(about, compat.account_state(name));
		if against == "conflict" then
			return nil, against, "There is an account with this username already";
		elseif against and against ~= "account-unknown" then -- the library has a sentence for operators
			return nil, against, REFUSALS[against][3];
		end
		return handle:why({
			token = token;
			purpose = about.purpose;
			invitee = name or contact;
			depends_on = about.depends_on and compat.account_states(about.depends_on);
		});
	end

	-- Around the handlers, not among them: a handler that returns something keeps the ones after it from running.
	protected.wrap("user-registering", "so the registration is refused", function (handlers, event_name, event)
		local text = type(event) == "table" and form.entered(event.session);
		if text then
			local invite = entered_invite(event, text);
			if not invite then return; end
			-- What the stream has presented before does not count any more.
			clear_validated_invite(event);
			event.validated_invite = invite;
		end
		-- Looked at before the handlers: a client that hangs up while one of them waits leaves an empty session behind.
		local invite = type(event) == "table" and validated_invite_of(event);
		local ret, has_failed = handlers(event_name, event);
		if type(event) == "table" and event.allowed and has_failed then
			-- It may have been going to say no.
			refuse(event, "internal-server-error");
		elseif type(event) == "table" and event.allowed and event.username then
			guard_registration(event, validated_invite_of(event) or invite);
		elseif type(event) == "table" then
			refuse_other_name(event, validated_invite_of(event) or invite);
		end
		return ret;
	end, function (event)
		if type(event) == "table" then refuse(event, "internal-server-error"); end
	end);

	-- The inviter may have been deleted since the claim. A contact would bring the roster back, for whoever gets the name
	-- next.
	local function forget_lost_inviter(invite, attempt)
		if not invite.inviter then return; end
		local was_deleted = attempt and attempt.is_inviter_deleted;
		local account = was_deleted and "missing" or compat.account_state(invite.inviter);
		if account == "missing" or account == "not-found" then
			module:log("warn", "An account was made with an invite of %s, whose own account was deleted or is not found: the "
				.."two do not become contacts", invite.inviter);
			invite.inviter = nil;
		end
	end

	local function has_session(username)
		local host = prosody.hosts[module.host];
		local user = host and host.sessions and host.sessions[username];
		return user ~= nil and next(user.sessions or {}) ~= nil;
	end

	-- Deletes the account that an attempt has made, where it is sure that it has: it was proved that there was none, and
	-- the coroutine that claimed is the one that has made it. Whether that was done.
	local function take_back(event, attempt, lost)
		local _, thread = compat.current_runner();
		local is_its_own = attempt.was_missing and thread and attempt.thread == thread;
		if not lost.is_taken_back or not is_its_own or has_session(attempt.invitee) then return false; end
		local what = ("The account %s, made with an invite that somebody else has used, cannot be deleted"):format(
			attempt.invitee);
		local ok, is_deleted = protected.call(what, usermanager.delete_user, attempt.invitee, module.host);
		if not ok or not is_deleted then return false; end
		module:log("error", "The account %s was made with the invite %s, which somebody else has used: it was deleted again",
			attempt.invitee, lost.id);
		count_lost("taken_back");
		local session = event.session;
		if session and type(session.close) == "function" then
			-- It has been told that the account is there.
			local text = "This invitation was used by somebody else meanwhile, and your account was not kept";
			protected.call("The stream of an account that was deleted again cannot be closed", session.close, session,
				{ condition = "policy-violation", text = text });
		end
		return true;
	end

	-- Redeems before other handlers give the account what the invite promises, and takes the promise away if it cannot.
	-- True if there is no account any more.
	local function redeem_registration(event)
		local invite = validated_invite_of(event);
		local username = event.username;
		-- By the coroutine first: the session of a client that hung up is empty, and it is still the same that goes on.
		local attempt = own_attempt(username) or attempt_of[event.session or invite or event];
		if not attempt or attempt.invitee ~= username then
			username = nodeprep(username);
			attempt = username and own_attempt(username) or attempt;
		end
		if attempt and (invite and attempt.token ~= invite.token or attempt.invitee ~= username) then
			attempt = nil; -- somebody else's
		end
		-- A client that is gone has taken its session with it, or does so while a provider is waited for below. The account
		-- is there all the same.
		invite = invite or attempt and attempt.invite;
		event.validated_invite = invite;
		local is_redeemed, lost;
		if attempt then
			is_redeemed, lost = redeem(attempt, event.source);
			is_redeemed = is_redeemed ~= false;
		elseif not invite or not invite.token then
			return;
		elseif redeemed[invite] then
			is_redeemed = false;
		else
			is_redeemed = redemption.redeem_at_once(invite, username, event.source);
		end
		if is_redeemed then
			redeemed[invite] = true;
			forget_lost_inviter(invite, attempt);
		elseif lost and take_back(event, attempt, lost) then
			clear_validated_invite(event);
			return true;
		elseif lost then
			report_lost(attempt.invitee, lost);
			clear_validated_invite(event);
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
		local wanted = { token = invite.token, purpose = purpose, invitee = invitee, source = source };
		local nonce = invitee and handle:own_claim(wanted);
		if nonce and not attempts[nonce] then
			-- The host was deactivated and activated since the claim was made: nobody else remembers it.
			wanted.nonce = nonce;
			attempts[nonce] = wanted;
			local is_redeemed, lost = redeem(wanted, source);
			if is_redeemed == false then report_lost(wanted.invitee, lost); end
			return is_redeemed ~= false;
		end
		wanted.depends_on = about.depends_on and compat.account_states(about.depends_on);
		local summary, why = settled(about.depends_on, handle.redeem_at_once, wanted);
		if summary == nil then return nil, why; end
		redeemed[invite] = true;
		if summary then fire("invite-used", summary, { purpose = purpose, invitee = invitee, source = source }); end
		return true;
	end

	local function after_account_change(handlers, event_name, event)
		if type(event) == "table" and type(event.username) == "string" then
			-- Nobody else is to be told of an account that is gone.
			if redeem_registration(event) then return; end
		end
		local ret = handlers(event_name, event);
		if type(event) == "table" then
			-- One preauth covers one registration. Others have read it by now.
			clear_validated_invite(event);
		end
		return ret;
	end

	local function take_promise_away(event)
		if type(event) == "table" then clear_validated_invite(event); end
	end

	local CHANGED = "which changes nothing about the account";

	protected.wrap("user-registered", CHANGED, after_account_change, take_promise_away);

	-- A new password ends every reset that is open. Some callers say no more than whose it is.
	protected.wrap("user-password-reset", CHANGED, function (handlers, event_name, event)
		local ret = after_account_change(handlers, event_name, event);
		local username = type(event) == "table" and event.username or event;
		username = type(username) == "string" and nodeprep(username);
		if username then end_invites(username, false); end
		return ret;
	end, take_promise_away);

	protected.hook_global("user-password-changed", function (event)
		if event.host ~= module.host then return; end
		-- This very password was set by a reset (13.0.2 and later say so), which is yet to be redeemed.
		if own_attempt(event.username) then return; end
		end_invites(event.username, false);
	end);

	protected.hook_global("user-deleted", function (event)
		if event.host ~= module.host then return; end
		-- register_ibr deletes the account that it has just made when it cannot store its details.
		local attempt = own_attempt(event.username);
		if attempt then release(attempt); end
		-- Whoever gets the name next has invited nobody.
		for _, other in pairs(attempts) do
			if other.invite and other.invite.inviter == event.username then other.is_inviter_deleted = true; end
			if other.invitee == event.username then other.was_missing = nil; end -- whose is the one that is there next?
		end
		end_invites(event.username, true);
	end);

	--- presenting a token before registering (XEP-0445)

	local function answer_failure(event, condition)
		condition = condition or "internal-server-error";
		local refusal = REFUSALS[condition];
		count_refusal(condition);
		event.origin.send(st.error_reply(event.stanza, refusal[1], refusal[2], refusal[3]));
		return true;
	end

	local UNANSWERED = "so another one answers, or an error is sent";

	protected.wrap("stanza/iq/"..xmlns_preauth..":preauth", UNANSWERED, function (handlers, event_name, event)
		local ret, has_failed = handlers(event_name, event);
		validated_invite = nil;
		if has_failed and ret == nil then return answer_failure(event); end
		return ret;
	end);

	protected.hook("stanza/iq/"..xmlns_preauth..":preauth", function (event)
		local session, stanza = event.origin, event.stanza;
		local token = stanza.tags[1].attr.token;
		local invite, condition, is_unknown = validate(token);
		validated_invite = invite;
		if invite then
			return; -- mod_invites_register takes it from here
		elseif condition == "account-unknown" or condition == "internal-server-error" and not is_unknown then
			return answer_failure(event, condition);
		end
		if is_unknown then return answer_failure(event, condition); end
		-- A token that was made is not guessed, whatever became of it.
		local _, why_not = handle:look(token);
		if (why_not == "token-invalid" or why_not == "no-token") and is_guesser(session) then
			count_refusal(condition);
			return true;
		end
	end, 10, answer_failure);

	contacts.hook(validate, function (invite, contact)
		return claim(invite.token, "contact", contact, abouts[invite].depends_on);
	end, release, count_refusal);

	--- :use() of a validated invite

	function redemption.use(invite)
		if redeemed[invite] then return true; end
		local is_contact = invite.type == "roster" and not invite.inviter;
		local request = is_contact and contacts.use(invite.token);
		if request and not request.attempt then return true; end
		local _, thread = compat.current_runner();
		for _, attempt in pairs(attempts) do
			-- Another coroutine may have been handed the same table.
			local is_anothers = thread and attempt.thread ~= thread and is_waiting(attempt);
			if attempt.token == invite.token and not is_anothers
			and (attempt.invite == invite or request and request.attempt == attempt) then
				local is_redeemed, lost = redeem(attempt, attempt.purpose == "contact" and "presence" or nil);
				if is_redeemed == false then
					report_lost(attempt.invitee, lost);
					return nil, "token-used";
				end
				redeemed[invite] = true;
				return true;
			end
		end
		local is_redeemed, condition = redemption.redeem_at_once(invite);
		if not is_redeemed then
			local is_temporary = condition == "internal-server-error" or condition == "account-unknown";
			return nil, is_temporary and condition or "token-used";
		end
		return true;
	end

	--- reloading

	-- Releases what a review would have released in a moment: attempts that have ended, while everything that they did was
	-- seen. A coroutine that runs, or has resumed this one, has not ended.
	function redemption.unload()
		for _, attempt in pairs(attempts) do
			local status = attempt.thread and coroutine.status(attempt.thread);
			local has_ended = (status == "suspended" or status == "dead") and not is_waiting(attempt);
			if has_ended and not attempt.is_made then release(attempt); end
		end
	end

	-- A reload takes no time; between an unloading and a loading attempts may have ended unseen, the account made or not.
	-- Their claims are nobody's then: a redeem takes them over, or they are settled when nobody has for a lease.
	function module.save()
		kept.is_reload = true;
		return {};
	end

	if not kept.is_reload then
		for _, attempt in pairs(attempts) do
			if not attempt.is_made and not is_waiting(attempt) then
				forget(attempt);
				handle:forget(attempt.nonce);
			end
		end
	end
	kept.is_reload = nil;
	kept.review_soon();
end

return redemption;
