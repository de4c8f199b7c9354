"""The field for an invitation in the registration form: any program that shows the form lets its user in."""

import asyncio
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from client import INVITATION, Refused, Stream, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

HERE, THERE = "example.com", "example.net"
MODULES = ("register_ibr", "invites", "invites_register")
PAGE = 'invites_page = "https://{host}/invite?{invite.token}"\n'

#: Each kind of invite, and whom it lets register.
KINDS = {
    "account": "create_account()",
    "bound": 'create_account("%s")',
    "group": 'create_group({ "friends" })',
    "reset": 'create_account_reset("%s")',
    "contact": 'create_contact("nurse")',
    "contact and account": 'create_contact("nurse", true)',
}

#: What a stranger pastes.
PASTED = {
    "https": lambda token, uri: f"https://example.com/invite?{token}",
    "URI": lambda token, uri: uri,
    "bare": lambda token, uri: f" {token}\n",
    "percent-encoded": lambda token, uri: quote(uri, safe=""),
    "in a sentence": lambda token, uri: f"Come to us, <{uri}>, and be welcome.",
}

USED = ("cancel", "forbidden", "This invitation has been used already")
EXPIRED = ("cancel", "forbidden", "This invitation has expired")
REVOKED = ("cancel", "forbidden", "This invitation was revoked")
PAUSED = ("wait", "forbidden", "This invitation is paused, please ask whoever sent it")
CONTACT_ONLY = ("cancel", "forbidden", "With this invitation you can become a contact, but not register")
UNKNOWN = ("modify", "not-acceptable", "This server does not know this invitation. Is it complete?")
OTHER_HOST = ("modify", "not-acceptable", "This invitation is for example.net, and this server is example.com")
OTHER_LINK = (
    "modify", "not-acceptable",
    "This server does not know this invitation. Is the link, which leads to {}, for another server?",
)
NOTHING = ("modify", "not-acceptable", "There is no invitation link or code in the field for it")


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module."""

    def made(**options: Any) -> Prosody:
        server = prosody(plugin_paths=(native_lua,), modules=MODULES, **options)
        server.eval('module:depends("invites");')
        return server

    return made


def create(server: Prosody, call: str = "create_account()", host: str = HERE) -> tuple[str, str]:
    """The token and the URI of a new invite."""
    return server.eval(
        f'local invite = assert(module:depends("invites").{call}); return invite.token, invite.uri;', host=host
    )


def accounts(server: Prosody) -> set[str]:
    return {path.stem for path in (server.data_path / "example%2ecom" / "accounts").glob("*.dat")}


async def refusal(attempt: Any) -> tuple[str, str, str] | None:
    """How an attempt was refused, if it was."""
    try:
        await attempt
    except Refused as refused:
        return (refused.type, refused.condition, refused.text)
    return None


def seen(server: Prosody, expected: tuple[str, str, str] | None) -> tuple[str, str, str] | None:
    """What a stranger sees of a refusal: mod_register_ibr of 0.11 passes on nothing but the text."""
    if expected and server.version.startswith("0.11"):
        return ("modify", "not-acceptable", expected[2])
    return expected


async def test_strangers_are_asked_for_an_invitation_besides_what_the_form_asks_for(make: Make) -> None:
    server = make(config='additional_registration_fields = { "email+", "city" };')
    async with await open_stream(server) as stream:
        form = await stream.registration_form()
    assert list(form.fields) == ["FORM_TYPE", "username", "password", "email", "city", INVITATION]
    field = form.fields[INVITATION]
    assert (field.type, field.label, field.required, field.values) == (
        "text-single", "Invitation link or code", True, []
    )
    assert "Registration is by invitation: enter your invitation link or code." in form.instructions
    assert set(form.elements) == {"instructions", "username", "password", "email", "city"}


async def test_where_registration_is_open_an_invitation_may_be_entered(make: Make) -> None:
    server = make(config="registration_invite_only = false;\nallow_registration = true;")
    token, _ = create(server)
    async with await open_stream(server) as stream:
        form = await stream.registration_form()
        assert not form.fields[INVITATION].required
        assert "If you have an invitation, enter its link or code." in form.instructions
        await stream.submit("romeo", "secret")
        await stream.submit("paris", "secret", invitation="  ")
        assert await refusal(stream.submit("mallory", "secret", invitation="nothing here")) == seen(server, NOTHING)
        await stream.submit("juliet", "secret", invitation=token)
    assert accounts(server) == {"romeo", "paris", "juliet"}
    assert not server.eval('return module:depends("invites").get(args.token) ~= nil;', token=token)


async def test_the_option_takes_the_field_away(make: Make) -> None:
    server = make(config="invite_registration_field = false;" + PAGE)
    token, _ = create(server)
    async with await open_stream(server) as stream:
        form = await stream.registration_form()
        assert INVITATION not in form.fields
        assert "invitation" not in form.instructions and "invitation" not in form.elements["instructions"]
        with pytest.raises(Refused, match="invitation only"):
            await stream.submit("juliet", "secret", invitation=token)
        await stream.preauth(token)
        await stream.submit("juliet", "secret")


async def test_after_a_preauth_nobody_is_asked_and_a_bound_username_is_filled_in(make: Make) -> None:
    server = make(config=PAGE)
    server.add_user("romeo", "old")
    for call, username, sentence in (
        ("create_account()", None, None),
        ('create_account("juliet")', "juliet", "This invitation is for the username juliet."),
        ('create_account_reset("romeo")', "romeo", "With this invitation you set a new password for the account romeo."),
        ('create_contact("romeo", true)', None, None),
    ):
        token, _ = create(server, call)
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            form = await stream.registration_form()
            assert list(form.fields) == ["FORM_TYPE", "username", "password"], call
            assert form.fields["username"].values == ([username] if username else []), call
            assert form.elements["username"] == username, call
            for text in (form.instructions, form.elements["instructions"]):
                assert sentence in text if sentence else "nvitation" not in text, call
            if not username or username == "juliet":
                await stream.submit(username or f"new{len(accounts(server))}", "secret")
    # What one stream saw is not what the next one sees.
    async with await open_stream(server) as stream:
        form = await stream.registration_form()
        assert form.elements["username"] is None and form.fields["username"].values == []


@pytest.mark.parametrize("page", ["option", "option without a host", "module", "none"])
async def test_programs_without_data_forms_are_told_the_web_page(make: Make, page: str) -> None:
    config = {
        "option": PAGE,
        "option without a host": 'invites_page = "https://pages.example/i/#{invite.uri}"\n',
    }.get(page, "")
    server = make(config=config)
    if page == "module":
        server.eval('rawset(require "core.modulemanager".get_modules(module.host), "invites_page", {'
                    ' module = { http_url = function () return "https://example.com:5281/invites_page/"; end; };'
                    "});")
    async with await open_stream(server) as stream:
        instructions = (await stream.registration_form()).elements["instructions"]
    begins = {
        "option": "https://example.com/invite", "option without a host": "https://pages.example/i",
        "module": "https://example.com:5281/invites_page/",
    }.get(page)
    assert ("web browser" in instructions) == (begins is not None)
    assert begins is None or instructions.endswith(f"open the invitation link in a web browser; it begins with {begins}")


async def test_every_link_to_every_invite_is_answered_as_it_deserves(make: Make) -> None:
    server = make(hosts={HERE: "", THERE: ""})
    server.add_user("nurse", "secret")
    number = 0

    async def attempt(kind: str, text: str, username: str) -> tuple[str, str, str] | None:
        async with await open_stream(server) as stream:
            return await refusal(stream.submit(username, "new secret", invitation=text))

    def make_invite(kind: str, host: str = HERE) -> tuple[str, str, str]:
        nonlocal number
        number += 1
        username = f"user{number}"
        call = KINDS[kind].replace("%s", username)
        if "reset" in kind:
            server.eval(f'require "core.usermanager".create_user("{username}", "old", module.host);', host=host)
        elif "contact" in kind:
            server.eval('require "core.usermanager".create_user("nurse", "secret", module.host);', host=host)
        return (username, *create(server, call, host))

    with closing(sqlite3.connect(server.data_path / "invites.sqlite3", isolation_level=None)) as database:
        for kind in KINDS:
            for how, paste in PASTED.items():
                username, token, uri = make_invite(kind)
                expected = CONTACT_ONLY if kind == "contact" else None
                if kind == "reset" and server.version.startswith("0.11"):
                    continue  # its mod_register_ibr resets no password
                outcome = await attempt(kind, paste(token, uri), username)
                assert outcome == seen(server, expected), (kind, how, "alive")
                if outcome is None:
                    async with await login(server, username, "new secret"):
                        pass
                    if kind != "group":
                        outcome = await attempt(kind, paste(token, uri), f"late{number}")
                        assert outcome == seen(server, USED), (kind, how, "used")

            if kind != "contact":
                for state, expected in {"expired": EXPIRED, "revoked": REVOKED, "paused": PAUSED}.items():
                    username, token, uri = make_invite(kind)
                    if state == "expired":
                        changed = database.execute(
                            "UPDATE invite SET expires = created_at - 1 WHERE token = ?", [token]
                        )
                        assert changed.rowcount == 1
                    else:
                        call = {"revoked": "revoke", "paused": "pause"}[state]
                        server.eval(f'assert(module:depends("invites").{call}(args.token));', token=token)
                    for how, paste in PASTED.items():
                        outcome = await attempt(kind, paste(token, uri), username)
                        assert outcome == seen(server, expected), (kind, how, state)

        # Unknown ones are counted, so there are few of them.
        for kind in KINDS:
            username, token, uri = make_invite(kind, THERE)
            for how in ("URI", "percent-encoded", "in a sentence"):
                outcome = await attempt(kind, PASTED[how](token, uri), username)
                assert outcome == seen(server, OTHER_HOST), (kind, how, "other host")
        link = f"https://example.net/invite?{token}"
        assert await attempt(kind, link, "mallory") == seen(server, (*OTHER_LINK[:2], OTHER_LINK[2].format(THERE)))
        assert await attempt(kind, token, "mallory") == seen(server, UNKNOWN)
        token = "A" * 24
        for how, paste in PASTED.items():
            outcome = await attempt("", paste(token, f"xmpp:{HERE}?register;preauth={token}"), "mallory")
            assert outcome == seen(server, UNKNOWN), (how, "unknown")
        assert not {name for name in accounts(server) if name.startswith(("late", "mallory"))}
    log = server.log()
    assert "raceback" not in log
    assert "\terror\t" not in "\n".join(re.findall(r"^.*:invites\t.*$", log, re.MULTILINE))
