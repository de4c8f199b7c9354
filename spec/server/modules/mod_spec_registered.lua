-- What the community's mod_invites_groups and mod_audit_user_accounts read when an account is made with an invite.

local groups_of, attribute_of = {}, {};

module:hook("user-registered", function (event)
	local invite = event.validated_invite or event.session and event.session.validated_invite;
	local groups = invite and invite.additional_data and invite.additional_data.groups;
	groups_of[event.username] = {};
	for _, group in ipairs(groups or {}) do
		table.insert(groups_of[event.username], group);
	end
	attribute_of[event.username] = invite and invite.token;
end);

function groups(username)
	return groups_of[username];
end

function invite_attribute(username)
	return attribute_of[username];
end
