"""The Lua API, promise by promise: one list of cases, run on the bundled `mod_invites` and on ours.

Both must give what a case expects. Where ours is to be better, DIFFERENCES says what the bundled module gives instead
and why that is a defect; an entry that no longer tells the two apart fails. `§` is a section of docs/design/contract.md,
`D` one of its defects; spec/layers.sh sees that they are there.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prosody import BUNDLED, CHECKOUT, VERSIONS, Prosody

NATIVE = (CHECKOUT / "lua",)
IMPLEMENTATIONS = {"bundled": BUNDLED, "native": NATIVE}
SUBJECTS = [(version, name) for version in VERSIONS for name in IMPLEMENTATIONS]

WEEK, DAY = 7 * 86400, 86400

#: Runs before every case. Servers are shared, so a case uses names of its own, and looks for its own tokens only.
PRELUDE = """
local invites = prosody.hosts[module.host].modules.invites;
local create_user = require "core.usermanager".create_user;
local json = require "util.json";

-- Some invites speak of an account, as a reset does; that one must exist.
local function account(name)
	assert(create_user(name, "secret", module.host));
	return name;
end

-- A function's value, or nil and an error. That there is no third value has a case of its own.
local function answer(value, err)
	return value, err;
end

local function why(_, err)
	return err;
end

-- Why this token makes nobody a contact of the user, or false. Bundled 0.12.3 raises where it accepts (D2).
local function refused(token, user)
	local ok, invite, err = pcall(invites.get, token, user);
	return ok and not invite and err;
end

-- The type of what a function raises, or false.
local function raises(f, ...)
	local ok, err = pcall(f, ...);
	return not ok and type(err);
end

-- Calls create(...) while handler is hooked to invite-created.
local function handled(handler, create, ...)
	module:hook("invite-created", handler);
	local results = table.pack(pcall(create, ...));
	module:unhook("invite-created", handler);
	assert(results[1], results[2]);
	return table.unpack(results, 2, results.n);
end

-- An invite that expires then: its ttl could only be positive.
local function expiring(expires, create, ...)
	return handled(function (invite) invite.expires = expires; end, create, ...);
end

-- What f finds of a token in the very second that it expires. It is the module that tells the time, by created_at:
-- os.time() may lag some milliseconds behind other clocks.
local function in_its_last_second(f)
	while true do
		local invite = handled(function (invite) invite.expires = invite.created_at; end, invites.create_account);
		local results = table.pack(f(invite.token));
		if invites.create_account().created_at == invite.created_at then
			return table.unpack(results, 1, results.n);
		end
	end
end

-- "integer" and "float" instead of "number".
local function kind(value)
	return math.type(value) or type(value);
end

local function keys(t)
	local names = {};
	for name in pairs(t) do table.insert(names, name); end
	table.sort(names);
	return table.concat(names, " ");
end

-- The URI with TOKEN for the token.
local function link(invite)
	local from, to = invite.uri:find(invite.token, 1, true);
	return invite.uri:sub(1, from - 1).."TOKEN"..invite.uri:sub(to + 1);
end

-- The columns of docs/design/contract.md §1.2, where a reusable of nil counts as false.
local function columns(invite)
	return {
		username = invite.username; inviter = invite.inviter; type = invite.type; uri = link(invite);
		additional_data = invite.additional_data; reusable = not not invite.reusable;
	};
end

-- Which of these tokens pending_account_invites yields: token -> invite.
local function pending(...)
	local wanted, found = {}, {};
	for _, token in ipairs({ ... }) do wanted[token] = true; end
	for token, invite in invites.pending_account_invites() do
		if wanted[token] then found[token] = invite; end
	end
	return found;
end

-- What comes back from the store when this was additional_data.
local function stored(additional_data)
	return invites.get_account_invite_info(invites.create_account(nil, additional_data).token).additional_data;
end
"""


@dataclass(frozen=True)
class Case:
    name: str
    lua: str
    expected: Any


@dataclass(frozen=True)
class Difference:
    """`bundled` is what the bundled module of these versions gives instead of what is expected."""

    defect: str
    bundled: Any
    versions: tuple[str, ...] = VERSIONS


CASES = [
    # §1: the globals of the module's environment, reached in three ways
    Case(
        "depends(), get_module() and the host's table of modules lead to the same ten functions",
        """
        local names = {
            "create_account", "create_account_reset", "create_contact", "create_group", "pending_account_invites",
            "get_account_invite_info", "delete_account_invite", "get", "use",
        };
        local by_depends = module:depends("invites");
        local by_manager = require "core.modulemanager".get_module(module.host, "invites");
        local found = { module = by_depends.module.name.." on "..by_depends.module.host };
        for _, name in ipairs(names) do
            found[name] = type(invites[name]) == "function"
                and rawequal(invites[name], by_depends[name]) and rawequal(invites[name], by_manager[name]);
        end
        found["use()"] = type(invites.get(invites.create_account().token).use) == "function";
        return found;
        """,
        {
            "module": "invites on example.com",
            "create_account": True, "create_account_reset": True, "create_contact": True, "create_group": True,
            "pending_account_invites": True, "get_account_invite_info": True, "delete_account_invite": True,
            "get": True, "use": True, "use()": True,
        },
    ),
    Case(
        "they are Lua functions with the parameters of their rows",
        """
        local counts = {};
        for _, name in ipairs { "create_account", "create_contact", "create_group", "pending_account_invites",
            "get_account_invite_info", "delete_account_invite", "get", "use" } do
            local info = debug.getinfo(invites[name], "Su");
            counts[name] = info.what == "Lua" and not info.isvararg and info.nparams;
        end
        return counts;
        """,
        {
            "create_account": 3, "create_contact": 4, "create_group": 3, "pending_account_invites": 0,
            "get_account_invite_info": 1, "delete_account_invite": 1, "get": 2, "use": 1,
        },
    ),
    Case(
        "create_account_reset declares three parameters: mod_http_admin_api chooses its calling form by them",
        'return debug.getinfo(invites.create_account_reset, "u").nparams;',
        3,
    ),
    Case(
        "a failure is two values, nil and an error",
        """
        return select("#", invites.get(nil)), select("#", invites.get("unknown")),
            select("#", invites.get_account_invite_info("unknown")), select("#", invites.delete_account_invite(nil));
        """,
        (2, 2, 2, 2),
    ),

    # §1 create_account(username?, additional_data?, ttl?)
    Case(
        "create_account() is for any name of the host, for a week",
        """
        local invite = invites.create_account();
        return invite.type, invite.jid, link(invite), invite.expires - invite.created_at, invite.additional_data;
        """,
        ("register", "example.com", "xmpp:example.com?register;preauth=TOKEN", WEEK, None),
    ),
    Case(
        "create_account(username) is for that name",
        'local invite = invites.create_account("ca-juliet"); return invite.type, invite.jid, link(invite);',
        ("register", "ca-juliet@example.com", "xmpp:ca-juliet@example.com?register;preauth=TOKEN"),
    ),
    Case(
        "create_account(username, additional_data, ttl)",
        """
        local invite = invites.create_account("ca-romeo", { source = "spec", roles = { "prosody:member" } }, 90);
        return invite.additional_data, invite.expires - invite.created_at;
        """,
        ({"source": "spec", "roles": ["prosody:member"]}, 90),
    ),
    Case(
        "create_account(false) is create_account(): the username counts when it is true",
        "return invites.create_account(false).jid;",
        "example.com",
    ),
    Case(
        "a username of another type, as JSON may have it, can be nobody's",
        """
        local results = {};
        for _, name in ipairs { {}, 5, true } do
            local ok, invite, err = pcall(invites.create_account, name);
            table.insert(results, tostring(ok and not invite and err));
        end
        return results;
        """,
        ["jid-malformed"] * 3,
    ),
    Case(
        "a function as username raises a string",
        "return raises(invites.create_account, print);",
        "string",
    ),
    Case(
        "a username is a localpart, never a JID",
        'local invite, err = invites.create_account("ca-tybalt@example.com"); return invite and invite.jid, err;',
        (None, "jid-malformed"),
    ),
    Case(
        "a username must be one that an account can have",
        """
        local results = {};
        for _, name in ipairs { "", "two words", "a/b", "<a>" } do
            table.insert(results, tostring(why(invites.create_account(name))));
        end
        return results;
        """,
        ["jid-malformed"] * 4,
    ),
    Case(
        "a username is held as the account will be called",
        'return invites.create_account("CA-Mercutio").jid;',
        "ca-mercutio@example.com",
    ),

    # §1 create_account_reset(username, ttl?) and (username, additional_data?, ttl?)
    Case(
        "create_account_reset(username) is a register invite for that account, for a day",
        """
        local invite = invites.create_account_reset(account("cr-one"));
        return invite.type, invite.jid, link(invite), invite.additional_data, invite.expires - invite.created_at;
        """,
        (
            "register", "cr-one@example.com", "xmpp:cr-one@example.com?register;preauth=TOKEN",
            {"allow_reset": "cr-one"}, DAY,
        ),
    ),
    Case(
        "create_account_reset(username, ttl)",
        """
        local invite = invites.create_account_reset(account("cr-two"), 90);
        return invite.additional_data, invite.expires - invite.created_at;
        """,
        ({"allow_reset": "cr-two"}, 90),
    ),
    Case(
        "create_account_reset(username, nil, ttl) keeps the ttl",
        """
        local invite = invites.create_account_reset(account("cr-three"), nil, 90);
        return invite.additional_data, invite.expires - invite.created_at;
        """,
        ({"allow_reset": "cr-three"}, 90),
    ),
    Case(
        "create_account_reset(username, additional_data, ttl) adds allow_reset to a copy",
        """
        local additional_data = { source = "spec", allow_reset = "somebody" };
        local ok, invite = pcall(invites.create_account_reset, account("cr-four"), additional_data, 90);
        if not ok then return type(invite); end
        return invite.additional_data, invite.expires - invite.created_at, additional_data;
        """,
        ({"allow_reset": "cr-four", "source": "spec"}, 90, {"source": "spec", "allow_reset": "somebody"}),
    ),
    Case(
        "create_account_reset(username, additional_data) is for a day",
        """
        local ok, invite = pcall(invites.create_account_reset, account("cr-five"), { note = "n" });
        if not ok then return type(invite); end
        return invite.additional_data, invite.expires - invite.created_at;
        """,
        ({"allow_reset": "cr-five", "note": "n"}, DAY),
    ),
    Case(
        "create_account_reset(nil) raises a string: it must not become an invite to register any name",
        "return raises(invites.create_account_reset, nil);",
        "string",
    ),

    # §1 create_contact(username, allow_registration?, additional_data?, ttl?)
    Case(
        "create_contact(username) is for a contact only, for a week",
        """
        local invite = invites.create_contact(account("cc-one"));
        return invite.type, invite.jid, link(invite), not not invite.allow_registration,
            invite.expires - invite.created_at;
        """,
        ("roster", "cc-one@example.com", "xmpp:cc-one@example.com?roster;preauth=TOKEN", False, WEEK),
    ),
    Case(
        "create_contact(username, true) says in the URI that it is also for registration",
        """
        local invite = invites.create_contact(account("cc-two"), true);
        return invite.type, invite.jid, link(invite);
        """,
        ("roster", "cc-two@example.com", "xmpp:cc-two@example.com?roster;preauth=TOKEN;ibr=y"),
    ),
    Case(
        "create_contact(username, allow_registration, additional_data, ttl)",
        """
        local invite = invites.create_contact(account("cc-three"), false, { source = "spec" }, 90);
        return invite.additional_data, invite.expires - invite.created_at;
        """,
        ({"source": "spec"}, 90),
    ),
    Case(
        "create_contact(nil) raises a string",
        "return raises(invites.create_contact, nil), raises(invites.create_contact, nil, true);",
        ("string", "string"),
    ),

    # §1 create_group(group_ids[], additional_data?, ttl?): reusable = ttl was given
    Case(
        "create_group(groups) can be used once, within a week",
        """
        local invite = invites.create_group({ "g1", "g2" });
        return invite.type, invite.jid, invite.additional_data, invite.reusable, invite.expires - invite.created_at;
        """,
        ("register", "example.com", {"groups": ["g1", "g2"]}, False, WEEK),
    ),
    Case(
        "create_group(groups, additional_data, ttl) can be used again and again",
        """
        local invite = invites.create_group({ "g1" }, { source = "spec" }, 90);
        return invite.additional_data, invite.reusable, invite.expires - invite.created_at;
        """,
        ({"groups": ["g1"], "source": "spec"}, True, 90),
    ),
    Case(
        "groups in the additional_data win over the first parameter",
        'return invites.create_group({ "g1" }, { groups = { "g2" } }).additional_data;',
        {"groups": ["g2"]},
    ),
    Case(
        "create_group() leaves the caller's tables as they were",
        """
        local groups, additional_data = { "g1" }, { note = "n" };
        invites.create_group(groups, additional_data, 90);
        return groups, additional_data;
        """,
        (["g1"], {"note": "n"}),
    ),

    # §1 ttl: "may be fractional, a numeric string, or negative (stock accepts all); ours: floor, reject ≤0/NaN"
    Case(
        "a fractional ttl is rounded down to whole seconds",
        "local invite = invites.create_account(nil, nil, 60.5); return invite.expires - invite.created_at;",
        60,
    ),
    Case(
        "a ttl may be a numeric string",
        """
        local register = invites.create_account(nil, nil, "60");
        local roster = invites.create_contact(account("ttl-one"), true, nil, "60");
        return register.expires - register.created_at, roster.expires - roster.created_at;
        """,
        (60, 60),
    ),
    Case(
        "a ttl of zero, less, NaN or beyond the year 9999 is refused",
        """
        local results = {};
        for _, ttl in ipairs { 0, -1, -86400, 0/0, "-1", 1e300 } do
            table.insert(results, tostring(why(invites.create_account(nil, nil, ttl))));
        end
        return results;
        """,
        ["bad-request"] * 6,
    ),
    Case(
        "every function that takes a ttl refuses a negative one",
        """
        return why(invites.create_account_reset(account("ttl-two"), -1)),
            why(invites.create_contact("ttl-two", false, nil, -1)), why(invites.create_group({}, nil, -1));
        """,
        ("bad-request", "bad-request", "bad-request"),
    ),
    Case(
        "a ttl that is no number is refused",
        """
        local results = {};
        for _, ttl in ipairs { "soon", {} } do
            local ok, invite, err = pcall(invites.create_account, nil, nil, ttl);
            table.insert(results, tostring(ok and not invite and err));
        end
        return results;
        """,
        ["bad-request"] * 2,
    ),
    Case(
        "a refused ttl creates nothing and tells no handler",
        """
        local created = 0;
        local function count() created = created + 1; end
        module:hook("invite-created", count);
        pcall(invites.create_account, nil, nil, -1);
        module:unhook("invite-created", count);
        return created;
        """,
        0,
    ),
    Case(
        "a ttl of math.huge means never",
        """
        local invite = invites.create_account(nil, nil, math.huge);
        return invite.expires, invites.get(invite.token) ~= nil, invites.get_account_invite_info(invite.token).expires,
            pending(invite.token)[invite.token] ~= nil;
        """,
        (float("inf"), True, float("inf"), True),
    ),

    # §1.1: the table that create_* return
    Case(
        "an account invite has these fields",
        """
        local invite, kinds = invites.create_account("f-one", { note = "n" }), {};
        for name, value in pairs(invite) do kinds[name] = kind(value); end
        kinds.reusable = nil; -- true, false or nil
        return kinds, getmetatable(invite), math.abs(os.time() - invite.created_at) <= 1;
        """,
        (
            {
                "type": "string", "jid": "string", "token": "string", "allow_registration": "boolean",
                "additional_data": "table", "uri": "string", "created_at": "integer", "expires": "integer",
            },
            None, True,
        ),
    ),
    Case(
        "a contact invite has these fields",
        """
        local kinds = {};
        for name, value in pairs(invites.create_contact(account("f-two"), true)) do kinds[name] = kind(value); end
        kinds.reusable = nil;
        return kinds;
        """,
        {
            "type": "string", "jid": "string", "token": "string", "allow_registration": "boolean",
            "uri": "string", "created_at": "integer", "expires": "integer",
        },
    ),
    Case(
        "times are integers whatever the ttl was",
        """
        local results = {};
        for _, ttl in ipairs { 60, "60", 60.5, 1e3 } do
            local invite = invites.create_account(nil, nil, ttl);
            local info = invites.get_account_invite_info(invite.token);
            table.insert(results, kind(invite.expires).." "..kind(info.expires).." "..kind(info.created_at));
        end
        return results;
        """,
        ["integer integer integer"] * 4,
    ),
    Case(
        "a token is 24 characters that need no URI escaping, and never the same twice",
        """
        local seen, lengths, others = {}, {}, {};
        for i = 1, 20 do
            local token = invites.create_account().token;
            seen[token] = true;
            lengths[#token] = true;
            if token:find("[^%w_-]") then table.insert(others, token); end
        end
        local count = 0;
        for _ in pairs(seen) do count = count + 1; end
        return count, keys(lengths), others;
        """,
        (20, "24", {}),
    ),
    Case(
        "a token is alphanumeric, so none looks like an option on a command line (XEP-0401)",
        """
        local others = 0; -- 40 base64url tokens without - and _: once in 10^13
        for i = 1, 40 do
            if invites.create_account().token:find("%W") then others = 1; end
        end
        return others;
        """,
        0,
    ),
    Case(
        "allow_registration is kept as it was passed",
        """
        local invite = invites.create_contact(account("f-three"), "true");
        return invite.allow_registration, invites.get_account_invite_info(invite.token).allow_registration;
        """,
        ("true", "true"),
    ),
    Case(
        "names are escaped in the URI as RFC 5122 wants it",
        r"""
        local uris = {};
        for _, name in ipairs { "foo?bar", "foo#bar", "a%b", "[x]", "j\195\182rg" } do
            table.insert(uris, link(invites.create_account(name)));
        end
        return uris;
        """,
        [
            f"xmpp:{node}@example.com?register;preauth=TOKEN"
            for node in ("foo%3Fbar", "foo%23bar", "a%25b", "%5Bx%5D", "j%C3%B6rg")
        ],
    ),
    Case(
        "names are escaped in the URI of a contact invite, when created and when looked up",
        """
        local invite = invites.create_contact(account("uri?one"), true);
        local by_host, by_user = invites.get(invite.token), invites.get(invite.token, "uri?one");
        return link(invite), link(by_host), link(by_user);
        """,
        ("xmpp:uri%3Fone@example.com?roster;preauth=TOKEN;ibr=y",) * 3,
    ),
    Case(
        "what RFC 5122 allows in a name stays as it is",
        'return link(invites.create_account("a-b.c_d~e!$()*+,;=9"));',
        "xmpp:a-b.c_d~e!$()*+,;=9@example.com?register;preauth=TOKEN",
    ),

    # §1.1 landing_page, §0.4, §3.1: handlers of invite-created see and change the invite before it is stored
    Case(
        "a handler gets the invite that the caller will get, not yet stored",
        """
        local seen, err;
        local invite = handled(function (created)
            seen, err = created, why(invites.get(created.token));
        end, invites.create_account);
        return rawequal(seen, invite), err;
        """,
        (True, "token-invalid"),
    ),
    Case(
        "a handler's landing_page is returned and stored",
        """
        local invite = handled(function (invite)
            invite.landing_page = "https://example.com/invite?"..invite.token;
        end, invites.create_account);
        local url = "https://example.com/invite?"..invite.token;
        return invite.landing_page == url, invites.get_account_invite_info(invite.token).landing_page == url,
            pending(invite.token)[invite.token].landing_page == url;
        """,
        (True, True, True),
    ),
    Case(
        "a handler's groups are stored (mod_invites_default_group)",
        """
        local function add_group(invite)
            invite.additional_data = invite.additional_data or {};
            invite.additional_data.groups = { "default" };
        end
        local account_invite = handled(add_group, invites.create_account, nil, { note = "n" });
        local contact_invite = handled(add_group, invites.create_contact, account("h-one"), true);
        return invites.get_account_invite_info(account_invite.token).additional_data,
            invites.get(contact_invite.token).additional_data;
        """,
        ({"note": "n", "groups": ["default"]}, {"groups": ["default"]}),
    ),
    Case(
        "a handler's other fields are stored",
        """
        local invite = handled(function (invite)
            invite.reusable, invite.campaign = true, { name = "spring", number = 3 };
        end, invites.create_account);
        local info = invites.get_account_invite_info(invite.token);
        return info.reusable, info.campaign, invites.get(invite.token).reusable;
        """,
        (True, {"name": "spring", "number": 3}, True),
    ),
    Case(
        "a handler's end of validity is stored",
        """
        local invite = expiring(4102444800, invites.create_account);
        return invite.expires, invites.get_account_invite_info(invite.token).expires;
        """,
        (4102444800, 4102444800),
    ),
    Case(
        "a handler's end of validity also binds the contact",
        """
        local user = account("h-two");
        local contact = expiring(os.time() - 1, invites.create_contact, user, false);
        local both = expiring(os.time() - 1, invites.create_contact, user, true);
        return refused(contact.token, user), refused(both.token, user);
        """,
        ("token-expired", "token-expired"),
    ),
    Case(
        "a handler cannot change what identifies the invite",
        """
        local original;
        local invite = handled(function (invite)
            original = { token = invite.token, type = invite.type, jid = invite.jid, created_at = invite.created_at };
            invite.token, invite.type, invite.jid, invite.created_at = "mine", "roster", "h-three@example.com", 1;
        end, invites.create_account);
        local info = invites.get_account_invite_info(original.token);
        local kept = {};
        for name, value in pairs(original) do kept[name] = info[name] == value and invite[name] == value; end
        invites.delete_account_invite(original.token);
        return kept;
        """,
        {"token": True, "type": True, "jid": True, "created_at": True},
    ),

    # §1, §2: additional_data comes back as it was
    Case(
        "additional_data may be absent or empty",
        "return stored(nil), stored({});",
        (None, {}),
    ),
    Case(
        "additional_data comes back: nested tables, lists, booleans",
        """
        return stored({
            list = { "a", "b", { "c" } }; map = { a = { b = { c = "deep" } } }; empty = {};
            yes = true; no = false; text = "jörg\\n\\"quoted\\"";
        });
        """,
        {
            "list": ["a", "b", ["c"]], "map": {"a": {"b": {"c": "deep"}}}, "empty": {},
            "yes": True, "no": False, "text": 'jörg\n"quoted"',
        },
    ),
    Case(
        "additional_data comes back: mixed and integer keys",
        'return stored({ "one", "two", name = "n", [10] = "ten", [-1] = "minus", ["1"] = "text", [true] = "yes" });',
        {1: "one", 2: "two", "name": "n", 10: "ten", -1: "minus", "1": "text", True: "yes"},
    ),
    Case(
        "additional_data comes back: integers of 64 bits and fractions",
        """
        return stored({ zero = 0; big = 9007199254740993; max = math.maxinteger; min = math.mininteger + 1;
            fraction = 0.1; huge = math.huge; minus = -math.huge; });
        """,
        {
            "zero": 0, "big": 2**53 + 1, "max": 2**63 - 1, "min": -(2**63) + 1,
            "fraction": 0.1, "huge": float("inf"), "minus": -float("inf"),
        },
    ),
    Case(
        "additional_data comes back: a whole float is a float",
        "return kind(stored({ n = 2.0 }).n);",
        "float",
    ),
    Case(
        "additional_data comes back: bytes that are no UTF-8",
        r'return stored({ bytes = "\255\0\128", ["key\254"] = "x" });',
        {"bytes": b"\xff\0\x80", b"key\xfe": "x"},
    ),
    Case(
        "additional_data comes back: util.json's null",
        'return rawequal(stored(json.decode([[{"nothing":null}]])).nothing, json.null);',
        True,
    ),
    Case(
        "additional_data comes back without metatables",
        """
        local back = stored(json.decode([[{"list":["a"],"map":{"b":1}}]]));
        return back, getmetatable(back), getmetatable(back.list), getmetatable(back.map);
        """,
        ({"list": ["a"], "map": {"b": 1}}, None, None, None),
    ),
    Case(
        "additional_data that cannot be stored raises a string with the path of it, and nothing is stored",
        """
        local function count()
            local n = 0;
            for _ in invites.pending_account_invites() do n = n + 1; end
            return n;
        end
        local before = count();
        local ok, err = pcall(invites.create_account, nil, { x = print });
        return ok, type(err) == "string" and err:match("additional_data%.x"), count() - before;
        """,
        (False, "additional_data.x", 0),
    ),

    # §0.7: every table handed out is the receiver's own
    Case(
        "changes to the table of create_account() do not reach the store",
        """
        local invite = invites.create_account(nil, { note = "n", list = { "a" } });
        invite.additional_data.note, invite.additional_data.list[1], invite.landing_page = nil, "b", "x";
        local info = invites.get_account_invite_info(invite.token);
        return info.additional_data, info.landing_page;
        """,
        ({"note": "n", "list": ["a"]}, None),
    ),
    Case(
        "changes to the table of get_account_invite_info() do not reach the store (mod_http_admin_api nils fields)",
        """
        local token = invites.create_account(nil, { note = "n", groups = { "g" } }).token;
        local info = invites.get_account_invite_info(token);
        info.additional_data.note, info.additional_data.groups[1], info.expires = nil, "h", 0;
        return invites.get_account_invite_info(token).additional_data, invites.get(token) ~= nil;
        """,
        ({"note": "n", "groups": ["g"]}, True),
    ),
    Case(
        "changes to the tables of pending_account_invites() do not reach the store",
        """
        local token = invites.create_account(nil, { note = "n" }).token;
        local invite = pending(token)[token];
        invite.additional_data.note, invite.expires = nil, 0;
        return pending(token)[token].additional_data, invites.get(token) ~= nil;
        """,
        ({"note": "n"}, True),
    ),
    Case(
        "changes to the table of get() do not reach the store",
        """
        local token = invites.create_account(nil, { note = "n" }).token;
        local invite = invites.get(token);
        invite.additional_data.note, invite.reusable = nil, true;
        local again = invites.get(token);
        return again.additional_data, not not again.reusable;
        """,
        ({"note": "n"}, False),
    ),
    Case(
        "the caller's additional_data stays the caller's: unchanged, and later changes are not seen",
        """
        local additional_data = { note = "n", list = { "a" } };
        local token = invites.create_account(nil, additional_data).token;
        local copy = json.encode(additional_data) == json.encode({ note = "n", list = { "a" } });
        additional_data.list[1] = "b";
        return copy, invites.get_account_invite_info(token).additional_data;
        """,
        (True, {"note": "n", "list": ["a"]}),
    ),

    # §1 pending_account_invites(): a generic-for triple yielding token, invite
    Case(
        "pending_account_invites() returns a function, a table and nil",
        """
        local results = table.pack(invites.pending_account_invites());
        return results.n, type(results[1]), type(results[2]), type(results[3]);
        """,
        (3, "function", "table", "nil"),
    ),
    Case(
        "pending_account_invites() yields tokens and what get_account_invite_info() returns for them",
        """
        local one = invites.create_account("p-one", { note = "n" }, 90).token;
        local two = invites.create_contact(account("p-two"), true).token;
        local three = invites.create_group({ "g" }, nil, 90).token;
        local found = pending(one, two, three);
        local results = {};
        for i, token in ipairs { one, two, three } do
            local invite, info = found[token], invites.get_account_invite_info(token);
            results[i] = { keys(invite) == keys(info), invite.token == token, invite.type, invite.jid, link(invite) };
        end
        return results;
        """,
        [
            [True, True, "register", "p-one@example.com", "xmpp:p-one@example.com?register;preauth=TOKEN"],
            [True, True, "roster", "p-two@example.com", "xmpp:p-two@example.com?roster;preauth=TOKEN;ibr=y"],
            [True, True, "register", "example.com", "xmpp:example.com?register;preauth=TOKEN"],
        ],
    ),
    Case(
        "pending_account_invites() leaves out contact-only, expired, used and deleted invites",
        """
        local contact = invites.create_contact(account("p-three")).token;
        local expired = expiring(os.time() - 1, invites.create_account).token;
        local used, deleted = invites.create_account().token, invites.create_account().token;
        invites.get(used):use();
        invites.delete_account_invite(deleted);
        return keys(pending(contact, expired, used, deleted));
        """,
        "",
    ),
    Case(
        "pending_account_invites() iterates over a snapshot: all may be deleted meanwhile",
        """
        local mine, seen = {}, 0;
        for i = 1, 5 do mine[invites.create_account().token] = true; end
        for token in invites.pending_account_invites() do
            if mine[token] then
                if seen == 0 then
                    for each in pairs(mine) do invites.delete_account_invite(each); end
                end
                seen = seen + 1;
            end
        end
        local left = 0;
        for token in invites.pending_account_invites() do
            if mine[token] then left = left + 1; end
        end
        return seen, left;
        """,
        (5, 0),
    ),

    # §1 get_account_invite_info(token)
    Case(
        "get_account_invite_info() returns the invite as it was created, without a metatable",
        """
        local invite = invites.create_account("i-one", { note = "n" }, 90);
        local info = invites.get_account_invite_info(invite.token);
        local equal = {};
        for name, value in pairs(invite) do
            if type(value) ~= "table" then equal[name] = info[name] == value; end
        end
        equal.reusable = nil; -- true, false or nil
        return equal, info.additional_data, getmetatable(info);
        """,
        (
            {
                "type": True, "jid": True, "token": True, "allow_registration": True, "uri": True,
                "created_at": True, "expires": True,
            },
            {"note": "n"}, None,
        ),
    ),
    Case(
        "get_account_invite_info() says what is wrong with a token",
        """
        local used = invites.create_account().token;
        invites.get(used):use();
        local function err(token) return why(invites.get_account_invite_info(token)); end
        return { err(nil), err(false), err("unknown"), err(used), err(invites.create_contact(account("i-two")).token),
            err(expiring(os.time() - 1, invites.create_account).token) };
        """,
        ["no-token", "no-token", "token-invalid", "token-invalid", "token-invalid", "token-expired"],
    ),

    # §1 delete_account_invite(token)
    Case(
        "delete_account_invite() revokes an invite",
        """
        local token = invites.create_account().token;
        local deleted = invites.delete_account_invite(token);
        return deleted, why(invites.get(token)), why(invites.get_account_invite_info(token));
        """,
        (True, "token-invalid", "token-invalid"),
    ),
    Case(
        "delete_account_invite() is true for a token that is unknown, used or already deleted (D19: kept)",
        """
        local used, deleted = invites.create_account().token, invites.create_account().token;
        invites.get(used):use();
        invites.delete_account_invite(deleted);
        return invites.delete_account_invite("unknown"), invites.delete_account_invite(used),
            invites.delete_account_invite(deleted);
        """,
        (True, True, True),
    ),
    Case(
        "delete_account_invite() without a token",
        """
        return { invites.delete_account_invite(nil) == nil, why(invites.delete_account_invite(nil)),
            why(invites.delete_account_invite(false)) };
        """,
        [True, "no-token", "no-token"],
    ),
    Case(
        "delete_account_invite() of a contact invite ends both halves of it",
        """
        local user = account("d-one");
        local token = invites.create_contact(user, true).token;
        invites.delete_account_invite(token);
        return why(invites.get(token)), refused(token, user);
        """,
        ("token-invalid", "token-invalid"),
    ),
    Case(
        "delete_account_invite() revokes a contact-only invite, too",
        """
        local user = account("d-two");
        local token = invites.create_contact(user).token;
        return invites.delete_account_invite(token), refused(token, user);
        """,
        (True, "token-invalid"),
    ),

    # §1 get(token, username?): errors
    Case(
        "get() without a token",
        """
        return { invites.get(nil) == nil, why(invites.get(nil)), why(invites.get(false)),
            why(invites.get(nil, "somebody")) };
        """,
        [True, "no-token", "no-token", "no-token"],
    ),
    Case(
        "get() says token-invalid for what was never a token, and raises nothing",
        r"""
        local results = {};
        for _, token in ipairs { "", "unknown", "\255\0", ("x"):rep(100000), 42, {}, true } do
            table.insert(results, tostring(why(invites.get(token))));
        end
        return results;
        """,
        ["token-invalid"] * 7,
    ),
    Case(
        "get() says token-expired once now > expires, for an account",
        "return answer(invites.get(expiring(os.time() - 1, invites.create_account).token));",
        (None, "token-expired"),
    ),
    Case(
        "get() and get_account_invite_info() accept a token in the very second that it expires",
        """
        return in_its_last_second(function (token)
            return invites.get(token) ~= nil, invites.get_account_invite_info(token) ~= nil;
        end);
        """,
        (True, True),
    ),
    Case(
        "pending_account_invites() still yields a token in the second that it expires, for get() accepts it",
        """
        return in_its_last_second(function (token)
            return pending(token)[token] ~= nil;
        end);
        """,
        True,
    ),
    Case(
        # The only case that waits: the end of a contact-only invite cannot be moved on the bundled module.
        "get() says token-expired when the ttl has passed, for an account, a contact and both",
        """
        local user = account("g-time");
        local account_token = invites.create_account(nil, nil, 1).token;
        local contact_token = invites.create_contact(user, false, nil, 1).token;
        local both = invites.create_contact(user, true, nil, 1);
        while os.time() <= both.expires do require "util.async".sleep(0.05); end
        return { why(invites.get(account_token)), why(invites.get(contact_token, user)),
            why(invites.get(both.token)), why(invites.get(both.token, user)) };
        """,
        ["token-expired"] * 4,
    ),
    Case(
        "get(token, username) accepts the inviter's name only, and no account invite",
        """
        local user, other = account("g-owner"), account("g-other");
        local roster, register = invites.create_contact(user, true).token, invites.create_account("g-bound").token;
        return { why(invites.get(roster, other)), why(invites.get(roster, "g-nobody")),
            why(invites.get(register, user)), why(invites.get(register, "g-bound")) };
        """,
        ["token-invalid"] * 4,
    ),
    Case(
        'get(token, "") is token-invalid',
        'return answer(invites.get(invites.create_account().token, ""));',
        (None, "token-invalid"),
    ),
    Case(
        "get(token) of a contact-only invite is token-invalid",
        'return answer(invites.get(invites.create_contact(account("g-only")).token));',
        (None, "token-invalid"),
    ),

    # §1.2: what get() returns
    Case(
        "get(token), account invite: no username, no inviter",
        'return columns(invites.get(invites.create_account(nil, { source = "spec" }).token));',
        {
            "type": "register", "uri": "xmpp:example.com?register;preauth=TOKEN",
            "additional_data": {"source": "spec"}, "reusable": False,
        },
    ),
    Case(
        "get(token), account invite for a name: type, URI, additional_data, no inviter",
        """
        local row = columns(invites.get(invites.create_account("v-one", { source = "spec" }).token));
        row.username = nil;
        return row;
        """,
        {
            "type": "register", "uri": "xmpp:v-one@example.com?register;preauth=TOKEN",
            "additional_data": {"source": "spec"}, "reusable": False,
        },
    ),
    Case(
        "get(token), account invite for a name: username and jid say which",
        """
        local invite = invites.get(invites.create_account("v-two").token);
        return { username = invite.username, jid = invite.jid };
        """,
        {"username": "v-two", "jid": "v-two@example.com"},
    ),
    Case(
        "get(token), reset invite: username and jid say whose",
        """
        local invite = invites.get(invites.create_account_reset(account("v-three")).token);
        return { username = invite.username, jid = invite.jid, allow_reset = invite.additional_data.allow_reset };
        """,
        {"username": "v-three", "jid": "v-three@example.com", "allow_reset": "v-three"},
    ),
    Case(
        "get(token), group invite with ttl: reusable",
        'return columns(invites.get(invites.create_group({ "g" }, nil, 90).token));',
        {
            "type": "register", "uri": "xmpp:example.com?register;preauth=TOKEN",
            "additional_data": {"groups": ["g"]}, "reusable": True,
        },
    ),
    Case(
        "get(token), contact invite for registration: username and inviter are the inviter's",
        """
        return columns(invites.get(invites.create_contact(account("v-four"), true, { source = "spec" }).token));
        """,
        {
            "username": "v-four", "inviter": "v-four", "type": "roster", "reusable": False,
            "uri": "xmpp:v-four@example.com?roster;preauth=TOKEN;ibr=y", "additional_data": {"source": "spec"},
        },
    ),
    Case(
        "get(token), contact invite for registration: no jid, which would be taken for the name to register",
        'return invites.get(invites.create_contact(account("v-five"), true).token).jid;',
        None,
    ),
    Case(
        "get(token, username), contact invite for registration: username, no inviter",
        """
        local user = account("v-six");
        return columns(invites.get(invites.create_contact(user, true, { source = "spec" }).token, user));
        """,
        {
            "username": "v-six", "type": "roster", "reusable": False,
            "uri": "xmpp:v-six@example.com?roster;preauth=TOKEN;ibr=y", "additional_data": {"source": "spec"},
        },
    ),
    Case(
        "get(token, username), contact-only invite: username, no inviter",
        """
        local user = account("v-seven");
        local token = invites.create_contact(user).token;
        local ok, invite = pcall(invites.get, token, user);
        return ok and columns(invite);
        """,
        {
            "username": "v-seven", "type": "roster", "reusable": False,
            "uri": "xmpp:v-seven@example.com?roster;preauth=TOKEN",
        },
    ),
    Case(
        "get(token, username), contact-only invite: additional_data is kept",
        """
        local user = account("v-eight");
        local token = invites.create_contact(user, false, { source = "spec" }).token;
        local ok, invite = pcall(invites.get, token, user);
        return ok and invite.additional_data or "lost";
        """,
        {"source": "spec"},
    ),
    Case(
        "get(): reusable is true or false",
        """
        local user = account("v-nine");
        local contact, both = invites.create_contact(user).token, invites.create_contact(user, true).token;
        local function reusable(...)
            local ok, invite = pcall(invites.get, ...);
            return not ok and "raised" or tostring(invite.reusable);
        end
        return {
            account = reusable(invites.create_account().token), group = reusable(invites.create_group({}).token),
            group_ttl = reusable(invites.create_group({}, nil, 90).token), contact = reusable(contact, user),
            both = reusable(both), both_as_contact = reusable(both, user),
        };
        """,
        {
            "account": "false", "group": "false", "group_ttl": "true", "contact": "false",
            "both": "false", "both_as_contact": "false",
        },
    ),
    Case(
        "get(): the token is the one that was asked for, and the method is no field",
        """
        local token = invites.create_account().token;
        local invite = invites.get(token);
        return invite.token == token, rawget(invite, "use"), type(invite.use), type(getmetatable(invite).__index.use);
        """,
        (True, None, "function", "function"),
    ),
    Case(
        "get() returns these fields",
        """
        local user = account("v-ten");
        local both = invites.create_contact(user, true, { note = "n" }).token;
        local function fields(...)
            local invite = invites.get(...);
            invite.reusable = nil; -- has a case of its own
            return keys(invite);
        end
        return fields(invites.create_account(nil, { note = "n" }).token),
            fields(invites.create_account("v-eleven", { note = "n" }).token), fields(both), fields(both, user);
        """,
        (
            "additional_data created_at expires jid token type uri",
            "additional_data created_at expires jid token type uri username",
            "additional_data created_at expires inviter token type uri username",
            "additional_data created_at expires token type uri username",
        ),
    ),
    Case(
        "get() says when the invite was created and when it expires",
        """
        local user = account("v-twelve");
        local invite = invites.create_contact(user, true, nil, 90);
        local by_host, by_user = invites.get(invite.token), invites.get(invite.token, user);
        return { by_host.created_at == invite.created_at, by_host.expires == invite.expires,
            by_user.created_at == invite.created_at, by_user.expires == invite.expires };
        """,
        [True, True, True, True],
    ),

    # §1.2 invite:use()
    Case(
        "invite:use() is true and spends the token",
        """
        local token = invites.create_account().token;
        return invites.get(token):use(), why(invites.get(token));
        """,
        (True, "token-invalid"),
    ),
    Case(
        "invite:use() of one that can be used again is true and spends nothing",
        """
        local token = invites.create_group({ "g" }, nil, 90).token;
        return invites.get(token):use(), invites.get(token):use(), invites.get(token) ~= nil;
        """,
        (True, True, True),
    ),
    Case(
        "invite:use() of a contact invite spends both halves, whichever is used",
        """
        local user = account("u-one");
        local one, two = invites.create_contact(user, true).token, invites.create_contact(user, true).token;
        local used_as_account, used_as_contact = invites.get(one):use(), invites.get(two, user):use();
        return { used_as_account, used_as_contact, why(invites.get(one)), why(invites.get(one, user)),
            why(invites.get(two)), why(invites.get(two, user)) };
        """,
        [True, True, "token-invalid", "token-invalid", "token-invalid", "token-invalid"],
    ),
    Case(
        "invite:use() of a contact-only invite spends it",
        """
        local user = account("u-two");
        local token = invites.create_contact(user).token;
        local ok, invite = pcall(invites.get, token, user);
        return ok and { invite:use(), why(invites.get(token, user)) };
        """,
        [True, "token-invalid"],
    ),
    Case(
        "invite:use() spends one token and no other",
        """
        local user = account("u-three");
        local spent, left = invites.create_contact(user, true).token, invites.create_contact(user, true).token;
        invites.get(spent):use();
        return invites.get(left) ~= nil, invites.get(left, user) ~= nil;
        """,
        (True, True),
    ),
    Case(
        "invite:use() of a token that another has spent is nil, token-used",
        """
        local token = invites.create_account().token;
        local first, second = invites.get(token), invites.get(token);
        return first:use(), answer(second:use());
        """,
        (True, None, "token-used"),
    ),
    Case(
        "invite:use() of a token that was revoked is nil, token-used",
        """
        local token = invites.create_account().token;
        local invite = invites.get(token);
        invites.delete_account_invite(token);
        return answer(invite:use());
        """,
        (None, "token-used"),
    ),

    # §1 use(token): get(token) and :use() in one
    Case(
        "use() is true and spends the token",
        """
        local token = invites.create_account().token;
        return invites.use(token), why(invites.get(token));
        """,
        (True, "token-invalid"),
    ),
    Case(
        "use() of one that can be used again spends nothing",
        """
        local token = invites.create_group({ "g" }, nil, 90).token;
        return invites.use(token), invites.use(token), invites.get(token) ~= nil;
        """,
        (True, True, True),
    ),
    Case(
        "use() spends both halves of a contact invite",
        """
        local user = account("t-one");
        local token = invites.create_contact(user, true).token;
        return invites.use(token), why(invites.get(token, user));
        """,
        (True, "token-invalid"),
    ),
    Case(
        "use() never touches a contact-only token",
        """
        local user = account("t-two");
        local token = invites.create_contact(user).token;
        return answer(invites.use(token)) == nil, refused(token, user);
        """,
        (True, False),
    ),
    Case(
        "use() is nil for a token that is not good",
        """
        local used = invites.create_account().token;
        invites.use(used);
        return { invites.use("unknown") == nil, invites.use(used) == nil, invites.use(nil) == nil,
            invites.use(expiring(os.time() - 1, invites.create_account).token) == nil };
        """,
        [True, True, True, True],
    ),
    Case(
        "use() says why it is nil",
        """
        local function err(token) return tostring(why(invites.use(token))); end
        return { err("unknown"), err(nil), err(expiring(os.time() - 1, invites.create_account).token) };
        """,
        ["token-invalid", "no-token", "token-expired"],
    ),
]

#: The same, on a server whose default storage is SQL, where "" and nil are one user.
SQL_STORAGE_CASES = [
    # §1 get(token, username?)
    Case(
        'get(token, "") is token-invalid, and raises nothing on SQL',
        """
        local ok, invite, err = pcall(invites.get, invites.create_account().token, "");
        if not ok then return "raised"; end
        return answer(invite, err);
        """,
        (None, "token-invalid"),
    ),
]

#: The same, on a server whose storage cannot be read or written.
BROKEN_STORAGE_CASES = [
    # §1 "internal-server-error" (create only)
    Case(
        "a create that cannot be stored is internal-server-error",
        """
        local results = {};
        for _, create in ipairs {
            function () return invites.create_account("b-one"); end,
            function () return invites.create_contact("b-two"); end,
            function () return invites.create_contact("b-two", true); end,
            function () return invites.create_group({ "g" }); end,
        } do
            local invite, err = create();
            table.insert(results, not invite and err);
        end
        return results;
        """,
        ["internal-server-error"] * 4,
    ),
    Case(
        "invite-created is fired for an invite that then cannot be stored",
        """
        local created = 0;
        handled(function () created = created + 1; end, invites.create_account);
        return created;
        """,
        1,
    ),
    # §7.8: storage errors get their own error
    Case(
        "a token that cannot be looked up is not called invalid",
        """
        return { why(invites.get("x")), why(invites.get("x", "b-one")),
            why(invites.get_account_invite_info("x")) };
        """,
        ["internal-server-error"] * 3,
    ),
    Case(
        "use() of a token that cannot be looked up says so",
        'return tostring(why(invites.use("x")));',
        "internal-server-error",
    ),
    Case(
        "a delete that cannot be stored is not called done",
        'local deleted, err = invites.delete_account_invite("x"); return deleted, type(err);',
        (None, "string"),
    ),
    Case(
        "pending_account_invites() yields nothing and raises nothing",
        "local n = 0; for _ in invites.pending_account_invites() do n = n + 1; end return n;",
        0,
    ),
]

#: By the name of the case.
DIFFERENCES: Mapping[str, Difference] = {
    # The name an invite is for
    "a username is a localpart, never a JID":
        Difference("§1: username = localpart, never a JID", ("ca-tybalt@example.com@example.com", None)),
    "a username must be one that an account can have":
        Difference("D4: such a name can be enforced on nobody", ["nil"] * 4),
    "a username is held as the account will be called":
        Difference("D4: such a name can be enforced on nobody", "CA-Mercutio@example.com"),
    "get(token), account invite for a name: username and jid say which": Difference("D4", {}),
    "get(token), reset invite: username and jid say whose": Difference("D4", {"allow_reset": "v-three"}),
    "create_account_reset(nil) raises a string: it must not become an invite to register any name":
        Difference("§1: username is not optional; D5", False),

    # create_account_reset in three parameters
    "create_account_reset declares three parameters: mod_http_admin_api chooses its calling form by them":
        Difference("§0.6", 2),
    "create_account_reset(username, nil, ttl) keeps the ttl":
        Difference("§1: both calling forms MUST work", ({"allow_reset": "cr-three"}, DAY)),
    "create_account_reset(username, additional_data, ttl) adds allow_reset to a copy":
        Difference("§1: both calling forms MUST work", "string"),
    "create_account_reset(username, additional_data) is for a day":
        Difference("§1: both calling forms MUST work", "string"),

    # ttl
    "a fractional ttl is rounded down to whole seconds": Difference("§1: ours: floor", 60.5),
    "times are integers whatever the ttl was":
        Difference("§1.1: SHOULD stay Lua integers", [
            "integer integer integer", "integer integer integer", "float float integer", "float integer integer",
        ]),
    "a ttl of zero, less, NaN or beyond the year 9999 is refused":
        Difference("§1: reject ≤0/NaN", ["nil"] * 6),
    "every function that takes a ttl refuses a negative one":
        Difference("§1: reject ≤0/NaN", (None, None, None)),
    "a ttl that is no number is refused":
        Difference("§1: a form brings it, and an error would leave it unanswered", ["false"] * 2),
    "a username of another type, as JSON may have it, can be nobody's":
        Difference("§1: a form brings it, and an error would leave it unanswered", ["false"] * 3),
    "a refused ttl creates nothing and tells no handler": Difference("§1: reject ≤0/NaN", 1),
    "pending_account_invites() still yields a token in the second that it expires, for get() accepts it":
        Difference("§1: one-second mismatch", False),

    # Tokens and URIs
    "a token is alphanumeric, so none looks like an option on a command line (XEP-0401)":
        Difference("§5.2: SHOULD be alpha-numeric", 1),
    "names are escaped in the URI as RFC 5122 wants it":
        Difference("D23", [
            f"xmpp:{node}@example.com?register;preauth=TOKEN" for node in ("foo?bar", "foo#bar", "a%b", "[x]", "jörg")
        ]),
    "names are escaped in the URI of a contact invite, when created and when looked up":
        Difference("D23", ("xmpp:uri?one@example.com?roster;preauth=TOKEN;ibr=y",) * 3),

    # Handlers of invite-created
    "a handler's end of validity also binds the contact":
        Difference("§0.4: what handlers change is stored", (False, False)),
    "a handler cannot change what identifies the invite":
        Difference("§2: host row `token` field must equal its key", {
            "token": False, "type": False, "jid": False, "created_at": False,
        }),

    # additional_data
    "additional_data comes back: a whole float is a float": Difference("§1: any key must round-trip", "integer"),
    "additional_data comes back: util.json's null": Difference("§2: json.null becomes {}", False),
    "additional_data that cannot be stored raises a string with the path of it, and nothing is stored":
        Difference("§1: any key must round-trip", (False, None, 0)),
    "get(token, username), contact-only invite: additional_data is kept": Difference("D28", "lost"),

    # Contact-only invites, and both halves of the others
    "get(token, username), contact-only invite: username, no inviter": Difference("D2", False, ("0.12.3",)),
    "invite:use() of a contact-only invite spends it": Difference("D2", False, ("0.12.3",)),
    "delete_account_invite() of a contact invite ends both halves of it": Difference("D3", ("token-invalid", False)),
    "delete_account_invite() revokes a contact-only invite, too": Difference("D3", (True, False)),

    # The fields of get()
    "get(): reusable is true or false":
        Difference("§1.2: nil until 0.12.4; D2", {
            "account": "nil", "group": "false", "group_ttl": "true", "contact": "raised",
            "both": "nil", "both_as_contact": "nil",
        }, ("0.12.3",)),
    "get() returns these fields":
        Difference("§1.2: a compatible gain", (
            "additional_data token type uri", "additional_data token type uri",
            "additional_data inviter token type uri username", "additional_data token type uri username",
        )),
    "get() says when the invite was created and when it expires":
        Difference("§1.2: a compatible gain", [False] * 4),

    # Spending a token
    "invite:use() of a token that another has spent is nil, token-used": Difference("D6, D26", (True, True, None)),
    "invite:use() of a token that was revoked is nil, token-used": Difference("D6, D26", (True, None)),
    "use() says why it is nil": Difference("D19", ["nil"] * 3),

    # Storage
    'get(token, "") is token-invalid, and raises nothing on SQL': Difference("D13", "raised"),
    "a token that cannot be looked up is not called invalid": Difference("D10", ["token-invalid"] * 3),
    "use() of a token that cannot be looked up says so": Difference("D10, D19", "nil"),
}


def _subject(version: str, implementation: str, **options: Any) -> Iterator[Prosody]:
    paths = IMPLEMENTATIONS[implementation]
    # With mod_register_ibr: links say "ibr=y" only where somebody can register in-band.
    with Prosody(version, modules=("invites", "register_ibr"), plugin_paths=paths, **options) as server:
        server.start()
        loaded = server.eval("return prosody.hosts[module.host].modules.invites.module.path;")
        origin = paths[0] if paths else server.package
        assert Path(loaded).is_relative_to(origin), f"{loaded} is not the {implementation} module"
        yield server


@pytest.fixture(scope="session", params=SUBJECTS, ids="-".join)
def server(request: pytest.FixtureRequest) -> Iterator[Prosody]:
    yield from _subject(*request.param)


@pytest.fixture(scope="session", params=SUBJECTS, ids="-".join)
def sql_server(request: pytest.FixtureRequest) -> Iterator[Prosody]:
    yield from _subject(*request.param, storage="sql")


@pytest.fixture(scope="session", params=SUBJECTS, ids="-".join)
def broken_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prosody]:
    """Files stand where either module wants a directory, and the other way round: that stops root, too."""
    data = tmp_path_factory.mktemp("data")
    (data / "example%2ecom").touch()
    (data / "invites.sqlite3").mkdir()
    yield from _subject(*request.param, data_path=data)


def _each(cases: list[Case]) -> Callable[..., Any]:
    return pytest.mark.parametrize("case", cases, ids=[case.name for case in cases])


@_each(CASES)
def test_promise(server: Prosody, case: Case) -> None:
    _check(server, case)


@_each(SQL_STORAGE_CASES)
def test_promise_on_sql(sql_server: Prosody, case: Case) -> None:
    _check(sql_server, case)


@_each(BROKEN_STORAGE_CASES)
def test_promise_without_storage(broken_server: Prosody, case: Case) -> None:
    _check(broken_server, case)


@pytest.mark.parametrize("server", [(version, "native") for version in VERSIONS], indirect=True, ids="-".join)
def test_a_change_that_was_undone_is_logged(server: Prosody) -> None:
    """So that its author sees it: no error can reach a handler of an event."""

    def warnings() -> int:
        return len(re.findall(r"invites\twarn\t.*\bcreated_at\b", server.log()))

    before = warnings()
    server.eval(PRELUDE + "handled(function (invite) invite.created_at = 1; end, invites.create_account);")
    assert warnings() == before + 1


def test_each_difference_is_one() -> None:
    every_case = [*CASES, *SQL_STORAGE_CASES, *BROKEN_STORAGE_CASES]
    cases = {case.name: case for case in every_case}
    assert len(cases) == len(every_case)
    for name, difference in DIFFERENCES.items():
        assert not _equal(difference.bundled, cases[name].expected), name


def _check(server: Prosody, case: Case) -> None:
    result = server.eval(PRELUDE + case.lua)
    expected = case.expected
    difference = DIFFERENCES.get(case.name)
    if difference is not None and server.version in difference.versions:
        other = difference.bundled
        if server.plugin_paths == BUNDLED:
            expected, other = other, expected
        assert not _equal(result, other), f"no longer a difference ({difference.defect}): {result!r}"
    assert _equal(result, expected), f"{result!r} instead of {expected!r}"


def _equal(left: Any, right: Any) -> bool:
    """As in Lua, where 1 is not true and an integer is told from a float."""
    return bool(_typed(left) == _typed(right))


def _typed(value: Any) -> Any:
    if isinstance(value, dict):
        return {_typed(key): _typed(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [type(value), *map(_typed, value)]
    return type(value), value
