"""invite_token_at_rest = "digest": the suite works, and who steals the disk finds no token on it."""

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from client import DEADLINE, Refused, login, open_stream
from prosody import COMMUNITY_MODULES, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register", "invites_adhoc")
WEB_MODULES = ("register_apps", "password_policy", "invites_page", "invites_register_web")
DIGEST = 'invite_token_at_rest = "digest";\nallow_user_invites = true;\nadmins = { "nurse@example.com" };\n'


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module with the modules that create, explain and redeem its invites."""

    def made(config: str = DIGEST, **options: Any) -> Prosody:
        server = prosody(
            plugin_paths=(native_lua, COMMUNITY_MODULES), modules=(*MODULES, *WEB_MODULES), config=config, **options
        )
        server.eval('module:depends("invites");')
        return server

    return made


def create(server: Prosody, call: str = "create_account()") -> str:
    return server.eval(f'return assert(module:depends("invites").{call}).token;')


def public_id(server: Prosody, token: str) -> str:
    return server.eval('return require "util.hashes".sha256(args.token, true):sub(1, 16);', token=token)


def places(server: Prosody, token: str) -> list[str]:
    """Every file of the server's that holds a token: data, logs, whatever it has written."""
    return [
        str(path.relative_to(server.scratch))
        for root in {server.scratch, server.data_path}
        for path in root.rglob("*")
        if path.is_file() and token.encode() in path.read_bytes()
    ]


async def request(server: Prosody, method: str, target: str, form: dict[str, str] | None = None) -> str:
    body = urlencode(form or {})
    reader, writer = await asyncio.open_connection("127.0.0.1", server.http)
    with closing(writer):
        writer.write(
            f"{method} {target} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n"
            f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
        )
        return (await asyncio.wait_for(reader.read(), DEADLINE)).decode()


async def test_no_token_is_on_the_disk_whatever_is_done_with_it(make: Make) -> None:
    server = make()
    for name in ("juliet", "nurse", "benvolio"):
        server.add_user(name, "secret password")
    issued = set()

    def take(link: str) -> str:
        token = re.search(r"(?:preauth=|\?)([A-Za-z0-9]{24})(?:;|$)", link)
        assert token, link
        issued.add(token.group(1))
        return token.group(1)

    # Made by users, by an operator and by other modules; some are never used.
    async with await login(server, "juliet", "secret password") as juliet, await login(server, "nurse", "secret password") as nurse:
        contact = await juliet.command("urn:xmpp:invite#invite")
        assert "landing-url" in contact.form
        contact_token = take(contact.form["uri"][0])
        assert take(contact.form["landing-url"][0]) == contact_token
        account_token = take((await nurse.command("urn:xmpp:invite#create-account")).form["uri"][0])
        generated = server.prosodyctl("mod_invites", "generate", "example.com", "--group", "house")
        web_token = take(generated.stdout.strip())
        in_shell = server.prosodyctl("shell", "invite", "create_account", "romeo@example.com")
        bound_token = take(in_shell.stdout.strip())
        reset_token = create(server, 'create_account_reset("benvolio")')
        group_token = create(server, 'create_group({ "house" }, nil, 3600)')
        unused = create(server, 'create_contact("juliet")')
        issued |= {reset_token, group_token, unused}

        # Explained and redeemed: on the web, in-band, as a contact, as a reset; refused too.
        page = await request(server, "GET", f"/invites_page?{web_token}")
        assert " 200 " in page and f"preauth={web_token}" in page
        form = {"user": "tybalt", "password": "secret password", "token": web_token}
        assert "Congratulations" in await request(server, "POST", f"/register?{web_token}", form)
        for name, token in (("paris", account_token), ("romeo", bound_token), ("rosaline", group_token)):
            async with await open_stream(server) as stream:
                await stream.preauth(token)
                await stream.register(name, "secret password")
        async with await open_stream(server) as stream:
            await stream.preauth(reset_token)
            await stream.register("benvolio", "new secret password")
        async with await login(server, "paris", "secret password") as paris:
            paris.send_presence(to="juliet@example.com", type="subscribe", token=contact_token)
            await paris.roster()  # answered after the presence
            assert (await juliet.roster())["paris@example.com"].subscription == "from"
        async with await open_stream(server) as stream:
            with pytest.raises(Refused):
                await stream.preauth(account_token)

    assert len(issued) == 7
    found = {token: places(server, token) for token in issued}
    assert not any(found.values()), found
    server.stop()
    found = {token: places(server, token) for token in issued}
    assert not any(found.values()), found


def test_a_server_that_keeps_tokens_has_them_on_the_disk(make: Make) -> None:
    """Or the search of the test above would find nothing whatever there was."""
    server = make(config="")
    assert places(server, create(server))


async def test_invites_are_listed_shown_and_revoked_by_their_public_ids(make: Make) -> None:
    server = make()
    server.add_user("juliet", "secret password")
    token = create(server, 'create_account("romeo", { note = "for Romeo" })')
    contact = create(server, 'create_contact("juliet", true)')
    ids = {public_id(server, token), public_id(server, contact)}
    listed = server.eval(
        """
        local listed = {};
        for id, invite in module:depends("invites").pending_account_invites() do listed[id] = invite; end
        return listed;
        """
    )
    assert listed.keys() == ids
    for id, invite in listed.items():
        assert invite["token"] == id
        assert not invite.keys() & {"uri", "landing_page"}
        assert server.eval('return module:depends("invites").get_account_invite_info(args.id);', id=id) == invite
    by_token = server.eval('return module:depends("invites").get_account_invite_info(args.token);', token=token)
    shown = listed[public_id(server, token)]
    page = by_token["landing_page"]
    assert page.endswith(f"?{token}")
    uri = f"xmpp:romeo@example.com?register;preauth={token}"
    assert by_token == shown | {"token": token, "uri": uri, "landing_page": page}

    id = public_id(server, token)
    for call in ("get(args.id)", "use(args.id)", 'get(args.id, "juliet")'):
        assert server.eval(f'return module:depends("invites").{call};', id=id) == (None, "token-invalid")
    assert server.eval('return module:depends("invites").get(args.token).uri;', token=token) == uri
    assert server.eval('return module:depends("invites").delete_account_invite(args.id);', id=id) is True
    gone = (None, "token-invalid")
    for name in (id, token):
        assert server.eval('return module:depends("invites").get_account_invite_info(args.name);', name=name) == gone
    assert server.eval('return module:depends("invites").get(args.token);', token=token) == gone


def test_the_shell_lists_shows_and_deletes_by_id(make: Make) -> None:
    server = make()
    id = public_id(server, create(server))
    assert id in server.prosodyctl("shell", "invite", "list", "example.com").stdout
    assert "Register on example.com" in (shown := server.prosodyctl("shell", "invite", "show", "example.com", id)).stdout or (
        "Invitation to register on example.com" in shown.stdout
    ), shown
    assert "preauth" not in shown.stdout
    assert "Invitation deleted" in server.prosodyctl("shell", "invite", "delete", "example.com", id).stdout
    assert "0 pending invites" in server.prosodyctl("shell", "invite", "list", "example.com").stdout


def test_the_link_is_told_when_the_invite_is_made_and_never_again(make: Make) -> None:
    server = make()
    made = json.loads(server.prosodyctl("mod_invites", "generate", "example.com", "--json").stdout)
    assert made["link"].endswith(made["token"]) and made["uri"].endswith(f"preauth={made['token']}")
    by_token = json.loads(
        server.prosodyctl("mod_invites", "show", "example.com", made["token"], "--show-token", "--json").stdout
    )
    assert by_token["link"] == made["link"]
    shown = server.prosodyctl("mod_invites", "show", "example.com", made["id"], "--show-token", "--json").stdout
    listed = server.prosodyctl("mod_invites", "list", "example.com", "--show-token", "--json").stdout
    for text in (shown, listed):
        assert json.loads(text)["id"] == made["id"]
        assert not json.loads(text).keys() & {"token", "uri", "link", "landing_page"}


def test_the_bundled_modules_store_is_left_alone_rather_than_emptied(make: Make, prosody: Make) -> None:
    bundled = prosody(modules=("invites",))
    create(bundled)
    bundled.stop()
    (store,) = (bundled.data_path / "example%2ecom").glob("invite_token*")
    before = store.read_bytes()
    server = make(data_path=bundled.data_path)
    exported = server.prosodyctl("mod_invites", "export", "example.com", "--to", "prosody")
    assert exported.returncode == 1 and "1 pending invites are kept without their tokens" in exported.stderr
    assert store.read_bytes() == before


def test_where_tokens_are_kept_an_id_names_nothing_for_other_modules(make: Make) -> None:
    server = make(config="")
    token = create(server)
    id = public_id(server, token)
    info = 'return module:depends("invites").get_account_invite_info(args.name);'
    assert server.eval(info, name=id) == (None, "token-invalid")
    server.eval('assert(module:depends("invites").delete_account_invite(args.id));', id=id)
    assert server.eval(info, name=token)["token"] == token


async def test_tokens_from_before_are_forgotten_and_still_redeem(make: Make) -> None:
    server = make(config="")
    tokens = [create(server) for _ in range(120)]
    assert places(server, tokens[0])
    server.stop()
    server.config = DIGEST
    server.start()
    server.eval('module:depends("invites");')
    deadline = time.monotonic() + DEADLINE
    while rows(server, "SELECT 1 FROM invite WHERE token IS NOT NULL"):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    async with await open_stream(server) as stream:
        await stream.preauth(tokens[0])
        await stream.register("juliet", "secret password")
    server.stop()
    found = {token: places(server, token) for token in tokens}
    assert not any(found.values()), found


def rows(server: Prosody, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        return database.execute(query).fetchall()


def test_what_the_bundled_module_stored_is_taken_over_without_its_tokens(make: Make, prosody: Make) -> None:
    bundled = prosody(modules=("invites",))
    token = create(bundled)
    bundled.stop()
    server = make(data_path=bundled.data_path)
    assert server.eval('return module:depends("invites").get(args.token).token;', token=token) == token
    assert rows(server, "SELECT token FROM invite") == [(None,)]


@pytest.mark.parametrize(
    ("config", "told"),
    [
        ('invite_token_at_rest = "hashed"', 'invite_token_at_rest = "hashed" is unknown: use "plain" or "digest"'),
        (
            'invite_token_at_rest = "digest"; invite_storage = "prosody"',
            'invite_token_at_rest = "digest" does not go with invite_storage = "prosody"',
        ),
    ],
)
def test_a_setting_that_makes_no_sense_closes_invitations_and_says_what_to_write(
    make: Make, config: str, told: str
) -> None:
    server = make(config=config)
    lines = [line for line in server.log().splitlines() if "No invite can be created or used" in line]
    assert len(lines) == 1 and told in lines[0], lines
