-- Becoming a contact by an invite (XEP-0379): somebody presents a token with a subscription request.
--
-- mod_invites_register puts the contact into the inviter's roster and asks for a subscription in turn; mod_presence
-- answers the request. Here the invite is claimed before them, and what they leave undone is done after them.

local compat = module.compat;
local protected = module.protected;

local jid_bare = compat.lib("util.jid").bare;
local jid_split = compat.lib("util.jid").split;
local rostermanager = compat.lib("core.rostermanager");
local st = compat.lib("util.stanza");

local xmlns_preauth = "urn:xmpp:pars:0";

-- COMPAT 0.11: its mod_invites_register asks for the subscription in turn in nobody's name, and mod_presence raises an
-- error.
local asks_in_nobodys_name = not rostermanager.is_contact_preapproved; -- new in 0.12

local contacts = {};

-- The requests that are being handled and that were let in, by thread: { stanza, token, username, contact,
-- was_subscribed, attempt, is_asked, is_used }. There is no attempt for somebody who needs no other use of the invite;
-- `is_asked`: it is to be asked for a subscription in turn, here.
local requests = setmetatable({}, { __mode = "k" });

local function current_thread()
	return coroutine.running() or "main";
end

-- What else is being handled of the same contact for the same inviter.
local function others_of(request)
	local others = {};
	for _, other in pairs(requests) do
		if other ~= request and other.username == request.username and other.contact == request.contact then
			table.insert(others, other);
		end
	end
	return others;
end

-- The request for which this token is used now, if there is one.
function contacts.use(token)
	local request = requests[current_thread()];
	if not request or request.token ~= token then return nil; end
	request.is_used = true;
	for _, other in ipairs(others_of(request)) do other.was_subscribed = true; end
	return request;
end

-- Takes the token off, so that the subscription goes the ordinary way.
local function strip_preauth(stanza)
	stanza:maptags(function (tag)
		if tag.name == "preauth" and tag.attr.xmlns == xmlns_preauth then return nil; end
		return tag;
	end);
end

-- What a function of rostermanager answers; nil if it raised an error.
local function ask(f, ...)
	local ok, answer = protected.call("A roster cannot be used, so a contact may have to ask once more", f, ...);
	return ok and answer or nil;
end

-- Whether the inviter's own roster has the contact subscribed.
local function is_subscribed(username, contact)
	local item = (ask(rostermanager.load_roster, username, module.host) or {})[contact];
	return item and (item.subscription == "from" or item.subscription == "both");
end

-- Answers the request, and grants the one that the inviter makes in turn: who uses an invite agrees to that.
local function answer(username, contact)
	local inviter = username.."@"..module.host;
	module:send(st.presence({ type = "subscribed", from = inviter, to = contact }));
	local contact_username, contact_host = jid_split(contact);
	if ask(rostermanager.is_contact_pending_in, contact_username, contact_host, inviter)
	and ask(rostermanager.subscribed, contact_username, contact_host, inviter) then
		ask(rostermanager.roster_push, contact_username, contact_host, inviter);
		module:send(st.presence({ type = "subscribed", from = contact, to = inviter }), prosody.hosts[contact_host]);
	end
end

-- `claim(invite, contact)` returns an attempt, false if the contact needs no other use, or nil and why not;
-- `release(attempt)` gives up one that was not used.
function contacts.hook(validate, claim, release, count_refusal)
	local function let_in(stanza, token)
		local contact = stanza.attr.from and jid_bare(stanza.attr.from);
		local username = stanza.attr.to and jid_split(stanza.attr.to);
		if not token or not username or not contact or jid_bare(stanza.attr.to) == contact then return nil; end
		local invite, condition = validate(token, username);
		local was_subscribed = invite and is_subscribed(username, contact);
		local attempt;
		if was_subscribed then
			attempt = false; -- mod_invites_register does nothing then
		elseif invite then
			attempt, condition = claim(invite, contact);
		end
		if attempt == nil then
			count_refusal(condition);
			return nil;
		end
		return {
			stanza = stanza, token = token, username = username, contact = contact;
			was_subscribed = was_subscribed, attempt = attempt or nil;
		};
	end

	-- COMPAT 0.11: mod_invites_register does not ask where that was done already.
	local function ask_first(request)
		local username, contact = request.username, request.contact;
		return asks_in_nobodys_name and not request.was_subscribed
			and not ask(rostermanager.is_user_subscribed, username, module.host, contact)
			and not ask(rostermanager.is_contact_pending_out, username, module.host, contact)
			and ask(rostermanager.set_contact_pending_out, username, module.host, contact);
	end

	protected.wrap("presence/bare", "so the stanza may have to be sent once more", function (handlers, event_name, event)
		local stanza = event.stanza;
		local preauth = stanza.attr.type == "subscribe" and stanza:get_child("preauth", xmlns_preauth);
		if not preauth then return handlers(event_name, event); end
		local request = let_in(stanza, preauth.attr.token);
		if not request then
			strip_preauth(stanza);
			return handlers(event_name, event);
		end
		local username, contact = request.username, request.contact;
		request.is_asked = ask_first(request);
		local thread = current_thread();
		requests[thread] = request;
		local ret = handlers(event_name, event);
		requests[thread] = nil;
		if request.attempt and not request.is_used then release(request.attempt); end
		local is_let_in = request.is_used or request.was_subscribed;
		if request.is_asked then
			local other = others_of(request)[1];
			if is_let_in then
				module:send(st.presence({ type = "subscribe", from = username.."@"..module.host, to = contact }));
			elseif other then
				other.is_asked = true;
			else
				ask(rostermanager.unsubscribe, username, module.host, contact);
			end
			ask(rostermanager.roster_push, username, module.host, contact);
		end
		-- mod_presence asks the roster of whoever is online whether the contact is subscribed. The inviter's says so; if
		-- only the contact is online, the contact's does not yet, and nobody has answered.
		if is_let_in and not ask(rostermanager.is_contact_subscribed, username, module.host, contact) then
			answer(username, contact);
		end
		return ret;
	end, function (event)
		requests[current_thread()] = nil;
		strip_preauth(event.stanza);
	end);

	-- Between mod_invites_register and mod_presence. A subscription that could not be stored has not used the invite, and
	-- is in the inviter's roster all the same, until that is read again. One that another request is making is not that.
	protected.hook("presence/bare", function (event)
		local request = requests[current_thread()];
		if request and request.stanza == event.stanza and not request.is_used and not request.was_subscribed
		and not others_of(request)[1] and is_subscribed(request.username, request.contact) then
			ask(rostermanager.unsubscribed, request.username, module.host, request.contact);
		end
	end, 0.5);

	-- Servers send such requests to the bare JID. mod_presence takes others for the same.
	protected.hook("presence/full", function (event)
		local stanza = event.stanza;
		if stanza.attr.type == "subscribe" and stanza:get_child("preauth", xmlns_preauth) then
			stanza.attr.to = jid_bare(stanza.attr.to);
			return protected.fire("presence/bare", event);
		end
	end, 1);
end

return contacts;
