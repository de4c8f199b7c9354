-- The calls that the community's mod_http_admin_api makes of mod_invites, written from the list of them, without HTTP.

local json = require "util.json";

local invites = module:depends("invites");

-- It takes the invite's table apart, so the module must not have handed out one that it keeps.
local function describe(invite)
	local data = invite.additional_data or {};
	local description = {
		id = invite.token;
		type = invite.type;
		reusable = invite.reusable;
		inviter = invite.inviter;
		jid = invite.jid;
		uri = invite.uri;
		landing_page = invite.landing_page;
		created_at = invite.created_at;
		expires = invite.expires;
		groups = data.groups;
		roles = data.roles;
		source = data.source;
		note = data.note;
		reset = data.allow_reset;
	};
	data.groups, data.roles, data.source, data.note, data.allow_reset = nil, nil, nil, nil, nil;
	description.additional_data = data;
	return description;
end

local function answer(invite, err)
	if not invite then return nil, err; end
	return json.encode(describe(invite));
end

function create_account(username, additional_data, ttl)
	return answer(invites.create_account(username, additional_data, ttl));
end

-- A newer one looks at how many parameters there are. Lua 5.1 does not tell; there it takes the older form.
function create_reset(username, additional_data, ttl)
	if debug.getinfo(invites.create_account_reset, "u").nparams == 3 then
		return answer(invites.create_account_reset(username, additional_data, ttl));
	end
	return answer(invites.create_account_reset(username, ttl));
end

function create_group(groups, source, roles, note, ttl)
	return answer(invites.create_group(groups, { source = source, roles = roles, note = note }, ttl));
end

function show(token)
	return answer(invites.get_account_invite_info(token));
end

function delete(token)
	return not not invites.delete_account_invite(token);
end

function list()
	local descriptions = {};
	for _, invite in invites.pending_account_invites() do
		table.insert(descriptions, describe(invite));
	end
	table.sort(descriptions, function (a, b) return a.created_at < b.created_at; end);
	return json.encode(descriptions);
end
