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


async def test_instructions_of_an_operator_who_has_none_are_ours_alone(make: Make) -> None:
    server = make(config='registration_instructions = "";')
    async with await open_stream(server) as stream:
        form = await stream.registration_form()
    assert form.instructions == "Registration is by invitation: enter your invitation link or code."


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


async def test_a_link_to_a_page_of_this_server_is_for_no_other(make: Make) -> None:
    server = make(config='invites_page = "https://Pages.example/i/#{invite.token}"\n')
    async with await open_stream(server) as stream:
        for link, expected in (
            ("https://pages.example/i/#Unknown-1", UNKNOWN),
            ("https://pages.example:443/i/#Unknown-1", UNKNOWN),
            ("https://other.example/i/#Unknown-1", (*OTHER_LINK[:2], OTHER_LINK[2].format("other.example"))),
        ):
            outcome = await refusal(stream.submit("mallory", "secret", invitation=link))
            assert outcome == seen(server, expected), link


async def test_what_is_no_name_of_a_host_is_not_told(make: Make) -> None:
    server = make()
    async with await open_stream(server) as stream:
        for host in ("ex%00ample", "ex%01ample", "ex%0Aample", "ex%FFample", "h" * 3000):
            for link in ("https://{}/invite?Unknown-1", "xmpp:{}?register;preauth=Unknown-1"):
                outcome = await refusal(stream.submit("mallory", "secret", invitation=link.format(host)))
                assert outcome == seen(server, UNKNOWN), (host, link)
    assert "\terror\t" not in server.log() and "raceback" not in server.log()


async def test_a_name_is_kept_and_bound_as_after_a_preauth(make: Make) -> None:
    server = make()
    server.add_user("nurse", "old")
    bound, other, reset = create(server, 'create_account("juliet")')[0], create(server)[0], create(
        server, 'create_account_reset("nurse")'
    )[0]
    for token, username, expected in (
        (bound, "romeo", ("modify", "not-acceptable", "This invitation is for the username juliet")),
        (other, "juliet", ("cancel", "conflict", "This username is reserved")),
        (other, "nurse", ("cancel", "conflict", "The requested username already exists.")),
        (reset, "romeo", ("modify", "not-acceptable", "This invitation is for the username nurse")),
    ):
        async with await open_stream(server) as stream:
            # What failed gave back what it held, for the same stream and for others.
            for _ in range(2):
                assert await refusal(stream.submit(username, "new", invitation=token)) == seen(server, expected)
            with pytest.raises(Refused, match="invitation only"):
                await stream.submit(username, "new")
    async with await open_stream(server) as stream:
        await stream.submit("JULIET", "new", invitation=bound)
        await stream.submit("romeo", "new", invitation=other)
    assert accounts(server) == {"nurse", "juliet", "romeo"}


async def test_what_the_field_lets_in_gets_what_the_invite_promises(make: Make) -> None:
    server = make()
    server.add_user("nurse", "secret")
    token, _ = create(server, 'create_contact("nurse", true)')
    async with await open_stream(server) as stream:
        await stream.submit("juliet", "secret", invitation=token)
    async with await login(server, "juliet", "secret") as juliet:
        assert (await juliet.roster())["nurse@example.com"].subscription == "both"


async def test_one_field_is_good_for_one_registration(make: Make) -> None:
    """The next one on the stream needs an invitation of its own."""
    server = make()
    tokens = [create(server)[0] for _ in range(3)]
    async with await open_stream(server) as stream:
        await stream.submit("juliet", "secret", invitation=tokens[0])
        with pytest.raises(Refused, match="invitation only"):
            await stream.submit("romeo", "secret")
        # What is entered counts, not what was presented before.
        await stream.preauth(tokens[1])
        await stream.submit("romeo", "secret", invitation=tokens[2])
        with pytest.raises(Refused, match="invitation only"):
            await stream.submit("paris", "secret")
    used = "return { get(args[1]) == nil, get(args[2]) == nil, get(args[3]) == nil };"
    assert server.eval(
        'local get = module:depends("invites").get;' + used.replace("args[", "args.tokens["), tokens=tokens
    ) == [True, False, True]


async def test_nobody_else_sees_or_keeps_what_is_entered(make: Make) -> None:
    server = make(config='additional_registration_fields = { "email" };', log_level="debug")
    server.eval(
        """
        local seen = module:shared("seen");
        local function see(event)
            local text = {};
            for k, v in pairs(event.additional or {}) do table.insert(text, tostring(k).."="..tostring(v)); end
            table.insert(seen, table.concat(text, ","));
        end
        module:hook("user-registering", see);
        module:hook("user-registered", see);
        module:hook("stanza/iq/jabber:iq:register:query", function (event)
            table.insert(seen, tostring(event.stanza));
        end, 1000);
        """
    )
    token, uri = create(server)
    async with await open_stream(server) as stream:
        for text in ("A" * 24, uri.replace(HERE, THERE), uri):
            await refusal(stream.submit("juliet", "secret", invitation=text, email="juliet@mail.example"))
    seen_by_others = server.eval('return module:shared("seen");')
    assert any("email=juliet@mail.example" in text for text in seen_by_others)
    details = (server.data_path / "example%2ecom" / "account_details" / "juliet.dat").read_text()
    assert "juliet@mail.example" in details
    for text in (*seen_by_others, details, server.log()):
        assert token not in text and "A" * 24 not in text and INVITATION not in text


async def test_a_storage_that_fails_is_not_the_strangers_mistake(make: Make) -> None:
    server = make()
    token, uri = create(server)
    database = server.data_path / "invites.sqlite3"
    server.stop()
    intact = database.read_bytes()
    database.write_bytes(b"no database at all".ljust(4096, b"."))
    server.start()
    async with await open_stream(server) as stream:
        for _ in range(25):
            assert await refusal(stream.submit("juliet", "secret", invitation=uri)) == seen(
                server, ("wait", "internal-server-error", "The invitation cannot be checked at the moment")
            )
    server.stop()
    database.write_bytes(intact)
    server.start()
    async with await open_stream(server) as stream:
        await stream.submit("juliet", "secret", invitation=uri)


# Guessing


class Closed(Exception):
    """The server has ended the stream."""


async def guess(stream: Stream, how: str, token: str) -> None:
    try:
        if how == "preauth":
            await stream.preauth(token)
        else:
            await stream.submit("mallory", "secret", invitation=token)
    except Refused:
        return
    except ConnectionError:
        raise Closed from None


async def test_after_twenty_unknown_tokens_in_a_minute_each_more_ends_its_stream(make: Make) -> None:
    server = make(log_level="debug")
    good, used, expired = (create(server)[0] for _ in range(3))
    server.eval('assert(module:depends("invites").use(args.token));', token=used)
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3", isolation_level=None)) as database:
        assert database.execute("UPDATE invite SET expires = 1 WHERE token = ?", [expired]).rowcount == 1
    async with await open_stream(server) as stream:
        # Whatever was made is known, and nobody guesses it.
        for token in (used, expired) * 15:
            for how in ("preauth", "field"):
                await guess(stream, how, token)
        # Nor do other modules guess.
        server.eval('for i = 1, 30 do module:depends("invites").get("unknown-token-"..i); end')
        for number in range(10):
            await guess(stream, "preauth", f"unknown-{number}")
            await guess(stream, "field", f"unknown-{number}-too")
    for how in ("preauth", "field", "preauth"):
        async with await open_stream(server) as stream:
            for token in (used, expired):
                await guess(stream, how, token)
            with pytest.raises(Closed):
                await guess(stream, how, "unknown-and-one-too-many")
            await stream.wait_closed()
    log = server.log()
    assert "Too many unknown invitations" in log and "unknown-" not in log
    async with await open_stream(server) as stream:
        await stream.submit("juliet", "secret", invitation=good)


async def test_contacts_who_present_unknown_tokens_are_not_counted(make: Make) -> None:
    server = make()
    for name in ("juliet", "romeo"):
        server.add_user(name, "secret")
    async with await login(server, "romeo", "secret") as romeo:
        for number in range(30):
            romeo.send_presence("juliet@example.com", "subscribe", f"unknown-token-{number}")
        await romeo.roster()
    async with await open_stream(server) as stream:
        for number in range(20):
            await guess(stream, "preauth", f"unknown-{number}")
        with pytest.raises(Closed):
            await guess(stream, "preauth", "unknown-and-one-too-many")


# When something is missing or fails


async def test_without_the_module_that_keeps_what_an_invite_promises_nobody_is_asked(make: Make) -> None:
    server = make(config="registration_invite_only = false;\nallow_registration = true;")
    token, _ = create(server)
    server.eval('assert(require "core.modulemanager".unload(module.host, "invites_register"));')
    async with await open_stream(server) as stream:
        assert INVITATION not in (await stream.registration_form()).fields
        await stream.submit("juliet", "secret", invitation=token)
    assert server.eval('return module:depends("invites").get(args.token) ~= nil;', token=token)


async def test_a_registration_that_fails_in_the_middle_is_answered(make: Make) -> None:
    server = make()
    token, _ = create(server)
    server.eval(
        """
        local usermanager = require "core.usermanager";
        for _, name in ipairs({ "create_user", "create_user_with_role" }) do
            local create = usermanager[name];
            usermanager[name] = create and function () error("no more accounts"); end;
        end
        local ibr = require "core.modulemanager";
        assert(ibr.reload(module.host, "register_ibr"));
        """
    )
    async with await open_stream(server) as stream:
        assert await refusal(stream.submit("juliet", "secret", invitation=token)) == (
            "wait", "internal-server-error", ""
        )
    assert server.eval('return module:depends("invites").get(args.token) ~= nil;', token=token)
