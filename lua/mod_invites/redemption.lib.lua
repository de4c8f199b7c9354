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

-- Seconds between two looks at attempts that wait for something.
local REVIEW_INTERVAL = 0.1;

-- Looks between two tries to redeem while the storage fails: at first, and at most. Each may hold the server up, so one
-- of those that wait is tried for all.
local FIRST_RETRY, LAST_RETRY = 10, 40;

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
-- was_missing }, and how they go on; `was_missing`: it was proved that there was no account of this name.
local attempts;
-- The attempt of a holder (a stream, or else a validated invite), and the invites that were redeemed: one preauth is
-- good for one registration. Nobody ends an attempt but its own coroutine, or the review when that is over.
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
	-- What happened to accounts while the storage failed, and ends invites: { method, username, at }, each once.
	local late = kept.late or {};
	kept.late = late;
	local is_reviewing = false;
	local retry_pause, looks_since_failure = FIRST_RETRY, 0;

	-- Seconds between two looks for claims that are to be settled, and reviews between two signs of life.
	local settle_interval = handle:lease() / 3;
	local reviews_per_renewal = math.max(1, math.floor(settle_interval / REVIEW_INTERVAL));

	-- Whether there may be claims that nobody holds, for the storage failed when they were made or released.
	local is_any_left = false;

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
		local held = {};
		for nonce in pairs(attempts) do table.insert(held, nonce); end
		-- A storage that fails says so to whoever wants something of it.
		local claims = handle:look_at_claims(held);
		local is_any_settled = false;
		for _, claim in ipairs(claims or {}) do
			local outcome = outcome_of(claim, claim.inviter); -- may wait
			if not attempts[claim.nonce] then is_any_settled = settle(claim, outcome) or is_any_settled; end
		end
		return is_any_settled;
	end

	-- Looks after the claims of others, and after our own that nobody holds: the seconds until that is to be done again.
	function redemption.settle()
		settle_claims();
		return settle_interval;
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
		local released, condition, text = handle:release(attempt.nonce);
		if released == nil and condition == "internal-server-error" then
			report(text);
			is_any_left, looks_since_failure = true, 0;
		end
	end

	-- Leaves an attempt to the review: the account is there, so neither what its stream does next nor a deletion ends it.
	local function leave_to_review(attempt)
		if attempt.holder and attempt_of[attempt.holder] == attempt then attempt_of[attempt.holder] = nil; end
		attempt.runner, attempt.thread = nil, nil;
	end

	-- Somebody else has the use that an attempt had claimed, and what it has made stays.
	local function report_lost(attempt, lost)
		module:log("error", "%s has used the invite %s, but %s: nothing of what it promised is given",
			attempt.invitee or "Somebody", lost.id, lost.text);
		count_lost("kept");
	end

	-- Turns the claim of an attempt into a use: true, nil if that will be tried again, or false if the claim was lost, and
	-- what is known of that: { id, text, is_taken_back }.
	local function redeem(attempt, source)
		if type(source) ~= "string" then source = nil; end
		local is_heard = compat.is_heard("invite-used");
		local summary, condition, text, lost = handle:redeem(attempt, attempt.nonce, source, is_heard);
		if condition == "internal-server-error" then
			if attempt.is_to_redeem then
				retry_pause = math.min(retry_pause * 2, LAST_RETRY);
			else
				report(text);
			end
			attempt.is_to_redeem, attempt.source = true, source;
			leave_to_review(attempt);
			looks_since_failure = 0;
			return nil;
		end
		retry_pause = FIRST_RETRY;
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

	local function review_attempt(attempt)
		attempt.reviews = (attempt.reviews or 0) + 1;
		if attempt.is_to_redeem then
			if looks_since_failure < retry_pause then return; end
			local is_redeemed, lost = redeem(attempt, attempt.source);
			-- Its account is not taken back: it may have been in use for a while.
			if is_redeemed == false then report_lost(attempt, lost); end
		elseif is_waiting(attempt) then
			if attempt.reviews < (attempt.next_renewal or reviews_per_renewal) then return; end
			local _, condition = handle:renew(attempt.nonce);
			-- A storage that is back is to know soon that we are here.
			local pause = condition and math.min(FIRST_RETRY, reviews_per_renewal) or reviews_per_renewal;
			attempt.next_renewal = attempt.reviews + pause;
		else
			release(attempt);
		end
	end

	-- Ends the invites that end with something that happened to an account, by this method of the handle: now, or `at` an
	-- earlier time. If the storage fails, that is tried again, with the time at which it happened: a name may have another
	-- owner by then, and what was made since is not touched. Whether it is done.
	local function end_invites(method, username, at)
		local ended, is_more, text = handle[method](handle, username, at);
		if not ended then
			if not at then
				report(text);
				late[method.." "..username] = { method = method, username = username, at = handle:now() };
				looks_since_failure = 0;
				kept.review_soon();
			end
			return false;
		end
		if method == "retire_depending" and is_more then
			module:log("info", "The account %s was deleted: the open invites that depended on it are not good any more, and are "
				.."being revoked", username);
		elseif method == "retire_depending" and ended[1] then
			module:log("info", "The account %s was deleted: %d open invites that depended on it were revoked", username, #ended);
		end
		for _, summary in ipairs(ended) do
			fire("invite-revoked", summary);
		end
		if is_more then end_soon(); end
		return true;
	end

	-- Whether all is done.
	local function end_late()
		local key, event = next(late);
		while key do
			if not end_invites(event.method, event.username, event.at) then return false; end
			late[key] = nil;
			key, event = next(late);
		end
		return true;
	end

	local function review()
		-- A copy: what is done for one may begin or end another.
		local all = {};
		for _, attempt in pairs(attempts) do table.insert(all, attempt); end
		looks_since_failure = looks_since_failure + 1;
		for _, attempt in ipairs(all) do
			protected.call("Looking after the claim of a registration failed and is tried again", review_attempt, attempt);
		end
		if (is_any_left or next(late)) and looks_since_failure >= retry_pause then
			local _, condition = handle:release_left();
			is_any_left = condition == "internal-server-error" or not end_late();
			retry_pause = is_any_left and math.min(retry_pause * 2, LAST_RETRY) or FIRST_RETRY;
			looks_since_failure = 0;
		end
		is_reviewing = is_any_left or next(attempts) ~= nil or next(late) ~= nil;
		return is_reviewing and REVIEW_INTERVAL or nil;
	end

	-- Begins to review, unless that is done already. Called through `kept`: the timers of an instance that a reload has
	-- replaced are over.
	function kept.review_soon()
		if (is_any_left or next(attempts) or next(late)) and not is_reviewing then
			is_reviewing = true;
			protected.timer(0, "Looking after the claims of registrations", review, 1);
		end
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
			if condition == "internal-server-error" then
				is_any_left, looks_since_failure = true, 0;
				kept.review_soon();
			end
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
			report_lost(attempt, lost);
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
			if is_redeemed == false then report_lost(wanted, lost); end
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
		if username then end_invites("retire_resets", username); end
		return ret;
	end, take_promise_away);

	protected.hook_global("user-password-changed", function (event)
		if event.host ~= module.host then return; end
		-- This very password was set by a reset (13.0.2 and later say so), which is yet to be redeemed.
		if own_attempt(event.username) then return; end
		end_invites("retire_resets", event.username);
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
		end_invites("retire_depending", event.username);
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
					report_lost(attempt, lost);
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

	-- Releases what the review would have released in a moment: attempts that have ended, while everything that they did
	-- was seen. A coroutine that runs, or has resumed this one, has not ended.
	function redemption.unload()
		for _, attempt in pairs(attempts) do
			local status = attempt.thread and coroutine.status(attempt.thread);
			local has_ended = (status == "suspended" or status == "dead") and not is_waiting(attempt);
			if has_ended and not attempt.is_to_redeem then release(attempt); end
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
			if not attempt.is_to_redeem and not is_waiting(attempt) then forget(attempt); end
		end
	end
	kept.is_reload = nil;
	kept.review_soon();
end

return redemption;
