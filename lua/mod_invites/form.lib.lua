-- The registration form (XEP-0077, XEP-0004). Strangers whose program knows no preauth enter their invitation there: a
-- field takes the link or the token. Those who did present a token see what it is for.

local compat = module.compat;
local guard = module:require("guard");
local protected = module.protected;

local dataforms = compat.lib("util.dataforms");
local filters = compat.lib("util.filters");
local modulemanager = compat.lib("core.modulemanager");
local st = compat.lib("util.stanza");

local form = {};

-- XEP-0068: a field that the manager of the FORM_TYPE has not defined stands in a namespace of its own.
local FIELD = "{urn:uuid:95bd5649-f5f5-443b-bb4e-0f2ba6270f84}invitation";

-- By session, while its registration is handled: what was entered into the field.
local entered = setmetatable({}, { __mode = "k" });

-- What somebody who registers has entered, if anything.
function form.entered(session)
	return session and entered[session];
end

local function is_field(tag)
	return tag.name == "field" and tag.attr.var == FIELD;
end

-- Takes the field out of a submitted form, so that nobody else sees it, stores it or logs it: its text, or nil.
local function take(query)
	local x = query:get_child("x", "jabber:x:data");
	if not x then return nil; end
	local values = {};
	x:maptags(function (tag)
		if not is_field(tag) then return tag; end
		for value in tag:childtags("value") do table.insert(values, value:get_text()); end
		return nil;
	end);
	local text = table.concat(values, " ");
	return text:find("%S") and text or nil;
end

-- Adds a sentence to the instructions for people.
local function instruct(parent, text)
	local instructions = parent:get_child("instructions");
	if instructions then
		instructions:text(instructions:get_text() == "" and text or " "..text);
	else
		parent:add_direct_child(st.stanza("instructions", { xmlns = parent.attr.xmlns }):text(text));
	end
end

-- `query` is what answers a stranger without an invite; `page_start` how the links of landing pages begin, if there are
-- such pages.
local function ask_for_invite(query, page_start)
	local is_required = guard.is_invite_only(module.host);
	local x = query:get_child("x", "jabber:x:data");
	if x then
		instruct(x, is_required and "Registration is by invitation: enter your invitation link or code."
			or "If you have an invitation, enter its link or code.");
		local field = { name = FIELD, type = "text-single", label = "Invitation link or code", required = is_required };
		x:add_direct_child(dataforms.new({ field }):form():get_child("field"));
	end
	if page_start then
		-- For programs that know no data forms. Others show it too, if they show both.
		instruct(query, ("If this program does not ask for your invitation, open the invitation link in a web browser; it "
			.."begins with %s"):format(page_start));
	end
end

-- The same for somebody who has presented an invite that is bound to a username.
local function fill_in(query, username, is_reset)
	local sentence = is_reset and "With this invitation you set a new password for the account %s."
		or "This invitation is for the username %s.";
	local x = query:get_child("x", "jabber:x:data");
	for _, parent in ipairs({ query, x }) do
		instruct(parent, sentence:format(username));
	end
	for tag in (x or st.stanza("x")):childtags("field") do
		if tag.attr.var == "username" and not tag:get_child("value") then
			tag:add_direct_child(st.stanza("value"):text(username));
		end
	end
	local element = query:get_child("username");
	if element and (element:get_text() or "") == "" then element:text(username); end
end

-- `has_field`: whether strangers are asked for an invitation. `find_invite(text)` is the token in what they enter, or
-- nil and why not; `page_start()` how links of landing pages begin.
function form.hook(has_field, find_invite, page_start)
	function form.find_invite(text)
		local token, condition, why_not, host = find_invite(text);
		local page = condition == "token-invalid" and host and page_start();
		-- A link to a page of this server is for this server.
		if page and page:lower():match("^%a+://([^/?#:]+)") == host then host = nil; end
		return token, condition, why_not, host;
	end

	-- Without mod_invites_register nobody would give what an invite promises.
	local function is_by_invite()
		return modulemanager.is_loaded(module.host, "invites_register");
	end

	-- What a stranger sees in the place of the form that mod_register_ibr sends.
	local function completed(session, reply)
		-- The form in it is the same for all.
		reply = st.clone(reply);
		local query = reply:get_child("query", "jabber:iq:register");
		local invite = session.validated_invite;
		if not query then
			return reply;
		elseif not invite then
			if has_field then ask_for_invite(query, page_start()); end
		elseif invite.type == "register" and invite.username then
			local data = invite.additional_data;
			fill_in(query, invite.username, data and data.allow_reset);
		end
		return reply;
	end

	local function around(handlers, event_name, event)
		local session, stanza = event.origin, event.stanza;
		if session.type ~= "c2s_unauthed" or not is_by_invite() then return (handlers(event_name, event)); end
		local is_submitted, is_answered = stanza.attr.type == "set", false;
		entered[session] = is_submitted and has_field and take(stanza.tags[1]) or nil;
		local function pass_on(reply)
			if type(reply) ~= "table" or reply.attr.id ~= stanza.attr.id or reply.name ~= "iq" then return reply; end
			is_answered = true;
			return is_submitted and reply or completed(session, reply);
		end
		local watch = protected.guard("A registration form was sent as it was", pass_on, function (reply) return reply; end);
		filters.add_filter(session, "stanzas/out", watch, 1000);
		local ret, has_failed = handlers(event_name, event);
		filters.remove_filter(session, "stanzas/out", watch);
		entered[session] = nil;
		if has_failed and ret == nil and not is_answered then
			session.send(st.error_reply(stanza, "wait", "internal-server-error"));
			return true;
		end
		return ret;
	end

	protected.wrap("stanza/iq/jabber:iq:register:query", "so an error is sent, unless it was answered", around);
end

return form;
