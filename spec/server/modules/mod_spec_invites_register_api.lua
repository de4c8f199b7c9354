-- The calls that the community's mod_invites_register_api makes of mod_invites, written from the list of them, without
-- HTTP: each function returns the status that it would answer with.

local usermanager = require "core.usermanager";

local invites = module:depends("invites");

-- GET
function info(token)
	local invite = invites.get_account_invite_info(token);
	if not invite then return 404; end
	local data = invite.additional_data;
	local reset = data and data.allow_reset or nil;
	if data then data.allow_reset = nil; end
	return 200, {
		token = invite.token, uri = invite.uri, type = invite.type, jid = invite.jid, inviter = invite.inviter;
		created_at = invite.created_at, expires = invite.expires, reset = reset, additional_data = data;
	};
end

-- POST. Whoever holds an invite for a JID gets that username, whatever they ask for.
function register(token, username, password)
	local invite = invites.get(token);
	if not invite then return 404; end
	local reset = invite.additional_data and invite.additional_data.allow_reset;
	if reset then
		if not usermanager.set_password(reset, password, module.host) then return 500; end
		module:fire_event("user-password-reset", reset); -- not a table
		return 200, reset;
	end
	if invite.jid and invite.jid ~= module.host then
		username = invite.jid:match("^([^@]+)@");
	end
	local registering = { validated_invite = invite, username = username, host = module.host, ip = "::1", allowed = true };
	module:fire_event("user-registering", registering);
	if not registering.allowed then return 403; end
	if not usermanager.create_user(username, password, module.host) then return 500; end
	module:fire_event("user-registered", {
		username = username, host = module.host, source = "mod_invites_register_api", validated_invite = invite;
	});
	return 200, username;
end

-- DELETE
function delete(token)
	local invite = invites.get(token);
	if not invite then return 404; end
	if invite.type ~= "register" or invite.reusable then return 403; end
	return invites.delete_account_invite(token) and 200 or 500;
end
