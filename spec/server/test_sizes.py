"""What is handed in has a bound: nobody makes the server work or store without end."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prosody import Prosody

LIMIT = 64 * 1024


@pytest.fixture
def server(prosody: Callable[..., Prosody], native_lua: Path) -> Prosody:
    return prosody(plugin_paths=(native_lua,), modules=("register_ibr", "invites", "invites_register"))


def test_more_than_can_be_stored_is_refused_soon_whichever_way_it_comes(server: Prosody) -> None:
    server.add_user("juliet", "secret")
    assert server.eval(
        """
        local invites, add = module:depends("invites"), false;
        -- A table that holds another one twice is two when it is stored.
        local nested = {};
        for _ = 1, 20 do nested = { nested, nested }; end
        module:hook("invite-created", function (invite) if add then invite.landing_page = ("x"):rep(args.limit); end end);
        local since, found = os.clock(), {};
        local function try(name, ...) found[name] = { select("#", ...) > 1 and (...) == nil, (select(2, ...)) }; end
        try("account", invites.create_account(nil, { nested = nested }));
        try("reset", invites.create_account_reset("juliet", { note = ("x"):rep(args.limit) }));
        try("contact", invites.create_contact("juliet", true, { nested = nested }));
        try("group", invites.create_group({ ("x"):rep(args.limit) }, nil, 60));
        try("many", invites.create_invites({ additional_data = { nested = nested } }, 3));
        local invite = assert(invites.create_account(nil, { note = ("x"):rep(args.limit / 2) }));
        try("reason", invites.revoke(invite.token, ("x"):rep(args.limit + 1)));
        try("by", invites.revoke(invite.token, "why", ("x"):rep(args.limit)));
        try("inviter", invites.revoke_inviter("juliet", false, ("x"):rep(args.limit + 1)));
        add = true;
        try("handler", invites.create_account());
        add = false;
        assert(os.clock() - since < 1, os.clock() - since);
        assert(invites.revoke(invite.token, ("x"):rep(args.limit)));
        return found;
        """,
        limit=LIMIT,
    ) == {
        name: [True, "bad-request"]
        for name in ("account", "reset", "contact", "group", "many", "reason", "by", "inviter", "handler")
    }
    log = server.log()
    for path in ("additional_data.nested[1]", "additional_data.note", "additional_data.groups[1]", "landing_page"):
        assert f"Refused: {path}" in log
    note = server.prosodyctl("mod_invites", "generate", "example.com", "--note", "x" * LIMIT)
    assert (note.returncode, note.stdout) == (1, "")
    assert note.stderr == "prosodyctl mod_invites: additional_data.note makes it larger than 64 KiB, which cannot be stored\n"
