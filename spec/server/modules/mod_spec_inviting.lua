-- The calls that modules make of mod_invites to create invites by themselves, written from the list of them: the
-- community's mod_welcome_page and mod_easy_invite, and the mod_invites_bootstrap and mod_invites_default_group that
-- Snikket has.

local invites = module:depends("invites");

local function link(invite)
	return invite.landing_page or invite.uri;
end

function welcome_page()
	local invite = invites.create_account(nil, { source = "welcome_page" });
	if not invite then return 500; end
	return 303, link(invite);
end

function bootstrap()
	local invite, err = invites.create_account(nil, {
		roles = { ["prosody:admin"] = true }, groups = { "default" }, source = "api/token/bootstrap";
	}, 3600);
	return invite and link(invite), err;
end

easy_invite = {};

function easy_invite.contact(username, allow_registration)
	return invites.create_contact(username, allow_registration).uri;
end

function easy_invite.account(role)
	return invites.create_account(nil, { roles = role and { [role] = true } }).uri;
end

function easy_invite.reset(username)
	return invites.create_account_reset(username).uri;
end

-- Its own registration, which uses the invite by itself when it is done.
function easy_invite.spend(token)
	local invite, err = invites.get(token);
	if not invite then return nil, err; end
	return invite:use();
end

module:hook("invite-created", function (invite)
	if invite.type == "roster" then
		invite.additional_data = invite.additional_data or {};
		invite.additional_data.groups = { "default" };
	end
end);
