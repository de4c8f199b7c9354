"""`ibr=y` stands in a link only where somebody can register in-band (a MUST of XEP-0401), whoever shows the link.

One server with a host for each configuration.
"""

from collections.abc import Callable
from pathlib import Path

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

INVITE = "urn:xmpp:invite#invite"
PAGE = 'invites_page = "https://page.example/{invite.uri}";'

#: Whether one can register in-band there, and how it is configured.
HOSTS = {
    "both.example": (True, 'modules_enabled = { "register_ibr", "invites_register" };'),
    # mod_invites_register loads mod_register_ibr.
    "invites-alone.example": (True, 'modules_enabled = { "invites_register" };'),
    "open.example": (True, 'modules_enabled = { "register_ibr" };'),
    "old-name.example": (True, 'modules_enabled = { "register" }; allow_registration = true;'),
    "as-text.example": (True, 'modules_enabled = { "register" }; allow_registration = "true";'),
    # mod_invites_register does not understand it, and does not load mod_register_ibr.
    "not-understood.example": (False, 'modules_enabled = { "invites_register" }; registration_invite_only = "yes";'),
    "none.example": (False, ""),
    "old-name-closed.example": (False, 'modules_enabled = { "register" };'),
    "not-only.example": (False, 'modules_enabled = { "invites_register" }; registration_invite_only = false;'),
    "disabled.example": (
        False, 'modules_enabled = { "invites_register", "register_ibr" }; modules_disabled = { "register_ibr" };'
    ),
}

CREATE = """
    local invites = module:depends("invites");
    local invite = assert(invites.create_contact("juliet", true, nil, 3600));
    return invite.token, invite.uri, invite.landing_page;
"""

#: Links as every function hands them out.
LINKS = """
    local invites, links = module:depends("invites"), {};
    table.insert(links, invites.get(args.token).uri);
    table.insert(links, invites.get(args.token, "juliet").uri);
    table.insert(links, invites.get_account_invite_info(args.token).uri);
    table.insert(links, invites.get_invite_info(args.token).uri);
    for token, invite in invites.pending_account_invites() do
        if token == args.token then table.insert(links, invite.uri); end
    end
    for token, invite in invites.pending_invites() do
        if token == args.token then table.insert(links, invite.uri); end
    end
    return links;
"""


@pytest.fixture
def server(prosody: Make, native_lua: Path) -> Prosody:
    server = prosody(
        plugin_paths=(native_lua,), modules=("invites", "invites_adhoc"), config="allow_user_invites = true;" + PAGE,
        hosts={"example.com": "", **{host: config for host, (_, config) in HOSTS.items()}},
    )
    for host in HOSTS:
        server.add_user("juliet", "pw", host)
    return server


async def test_a_link_says_so_only_where_somebody_can_register_in_band(server: Prosody) -> None:
    for host, (can, _) in HOSTS.items():
        token, uri, page = server.eval(CREATE, host=host)
        assert uri == f"xmpp:juliet@{host}?roster;preauth={token}" + (";ibr=y" if can else ""), host
        assert page.endswith("ibr%3dy") is can
        assert server.eval(LINKS, host=host, token=token) == [uri] * 6
        async with await login(server, "juliet", "pw", host) as juliet:
            assert (await juliet.command(INVITE)).form["uri"][0].endswith(";ibr=y") is can
        # It is true: whoever has the link can, or cannot.
        async with await open_stream(server, host) as stream:
            try:
                if host not in ("open.example", "old-name.example", "as-text.example"):
                    await stream.preauth(token)
                await stream.register("romeo", "pw")
                registered = True
            except Refused:
                registered = False
        assert registered is can, host
        # Of an invite to register nothing changes.
        register = server.eval('return module:depends("invites").create_account("romeo2").uri', host=host)
        assert "ibr" not in register


def test_prosodyctl_goes_by_the_configuration(server: Prosody) -> None:
    for host, (can, _) in HOSTS.items():
        made = server.prosodyctl("mod_invites", "generate", host, "--contact", "juliet", "--allow-registration", "--json")
        assert made.returncode == 0, made.stderr
        assert (";ibr=y" in made.stdout) is can, host
    for host, can in (("both.example", True), ("none.example", False)):
        token = server.eval(CREATE, host=host)[0]
        for command in (
            ("list", host, "--show-token", "--json"), ("show", host, token, "--show-token", "--json"),
        ):
            shown = server.prosodyctl("mod_invites", *command)
            assert shown.returncode == 0, shown.stderr
            assert (";ibr=y" in shown.stdout) is can, command


def test_it_is_asked_each_time_a_link_is_shown(server: Prosody) -> None:
    host = "both.example"
    token, uri, _ = server.eval(CREATE, host=host)
    assert uri.endswith(";ibr=y")
    plain = uri.removesuffix(";ibr=y")
    load = 'local mm = require "core.modulemanager"; assert(mm[args.what](module.host, args.name))'
    server.eval(load, host=host, what="unload", name="invites_register")
    # mod_register_ibr is still there, and nobody gets in.
    assert set(server.eval(LINKS, host=host, token=token)) == {plain}
    server.eval(load, host=host, what="load", name="invites_register")
    assert set(server.eval(LINKS, host=host, token=token)) == {uri}
    server.eval(load, host=host, what="unload", name="register_ibr")
    assert set(server.eval(LINKS, host=host, token=token)) == {plain}


@pytest.mark.parametrize("storage", ["internal", "memory"])
def test_rows_for_the_bundled_module_say_it_no_more_than_that(
    prosody: Make, native_lua: Path, storage: str
) -> None:
    host = "none.example"
    server = prosody(
        plugin_paths=(native_lua,), modules=("invites",), storage=storage,
        hosts={"example.com": "", host: 'invite_storage = "prosody";'},
    )
    server.add_user("juliet", "pw", host)
    token, uri, _ = server.eval(CREATE, host=host)
    assert uri.endswith(token)
    assert server.eval('return module:open_store("invite_token"):get(nil)[args.token].uri', host=host, token=token) == uri
