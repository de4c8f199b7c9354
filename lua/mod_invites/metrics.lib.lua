-- Numbers for Prosody's statistics, which mod_http_openmetrics and others export. What other processes do (prosodyctl,
-- another server on the same storage) is counted there, except for the open invites, which are counted where they lie.

local compat = module.compat;
local protected = module.protected;

local KINDS = { "account", "contact", "group", "reset" };

local metrics = {};

local created = compat.counter("created", "Invites that were created", "kind", KINDS);
local redeemed = compat.counter("redeemed", "Uses of invites", "kind", KINDS);
local revoked = compat.counter("revoked", "Invites that were revoked, by whomever and whyever", "kind", KINDS);
local expired = compat.counter("expired", "Invites that were seen to have expired", "kind", KINDS);
local refused = compat.counter("refused", "Tokens and registrations that were refused", "reason", {});
local lost = compat.counter("claims_lost", "Registrations that somebody else was faster than, after all", "outcome",
	{ "taken_back", "kept" });
local storage_errors = compat.counter("storage_errors", "Calls of the storage that failed", "operation", {});
local store_seconds = compat.stopwatch("store", "Time that calls of the storage took", "operation");
local open = compat.gauge("open", "Invites that have not ended");

-- Counts one refusal, by its condition.
function metrics.refused(condition)
	refused(condition);
end

-- Counts one registration that has lost its claim on an invite: what became of what it has made.
function metrics.lost(outcome)
	lost(outcome);
end

-- The same library handle, with every call of the storage timed, if anybody wants to know.
function metrics.watch(handle)
	if not compat.has_statistics() then return handle; end
	local watched = { prepare = function (_, ...) return handle:prepare(...); end }; -- stores nothing
	return setmetatable(watched, {
		__index = function (_, name)
			local function call(_, ...)
				local stop = store_seconds(name);
				local result, more, text, rest = handle[name](handle, ...);
				stop();
				if result == nil and more == "internal-server-error" then storage_errors(name); end
				return result, more, text, rest;
			end
			watched[name] = call;
			return call;
		end;
	});
end

function metrics.hook(handle)
	if not compat.has_statistics() then return; end
	protected.hook("invite-stored", function (invite) created(invite.kind); end);
	protected.hook("invite-used", function (invite) redeemed(invite.kind); end);
	protected.hook("invite-revoked", function (invite) revoked(invite.kind); end);
	protected.hook("invite-expired", function (invite) expired(invite.kind); end);

	-- Counted piece by piece, the first at once and the others in later turns of the event loop: of many thousand, the
	-- number is that of the collection before.
	local is_counting = false;
	protected.hook_global("stats-update", function ()
		if is_counting then return; end
		local total, after = 0, nil;
		local function count()
			local number, next_after = handle:count_open(after);
			if number then total, after = total + number, next_after; end
			is_counting = number and after ~= nil;
			if is_counting then return 0; end
			if number then open(total); end
		end
		if count() then protected.timer(0, "Counting the open invites", count); end
	end);
end

return metrics;
