"""What is no token, or none of ours: the right error for each, a server that stays up, and no token in what is told."""

import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from client import Refused, login, open_stream
from prosody import LuaError, Prosody

Make = Callable[..., Prosody]

HERE, THERE = "example.com", "example.net"
MODULES = ("register_ibr", "invites", "invites_register")

#: As Lua text: not all of them can be written in JSON or XML.
BAD = {
    "empty": '""',
    "a space": '" "',
    "10 kB": '("x"):rep(10240)',
    "a NUL": r'"a\0b"',
    "a token and a NUL": r'args.valid.."\0"',
    "invalid UTF-8": r'"\255\254"',
    "overlong UTF-8": r'"\192\128"',
    "a path": '"../../../etc/passwd"',
    "SQL": '''"' OR '1'='1"''',
    "more SQL": r'''"x\"; DROP TABLE invite; --"''',
    "wildcards of SQL": '"%"',
    "a pattern that is malformed": '"%"..("["):rep(24)',
    "a pattern": '("."):rep(24)',
    "a format": '"%s%n%d"',
    "lines": r'"a\r\nb"',
    "changed case": 'swapped(args.valid)',
    "one character less": 'args.valid:sub(1, -2)',
    "one character more": 'args.valid.."A"',
    "a space before it": '" "..args.valid',
    "encoded": '(args.valid:gsub("^.", function (c) return ("%%%02X"):format(c:byte()); end))',
    "of another host": "args.foreign",
    "a number": "42",
    "not a number": "0/0",
    "true": "true",
    "a table": "{}",
    "a table that is a string": "setmetatable({}, { __tostring = function () return args.valid; end })",
    "a function": "print",
}

PRELUDE = """
local invites = prosody.hosts[module.host].modules.invites;

local function swapped(text)
    return (text:gsub("%a", function (c) return c == c:lower() and c:upper() or c:lower(); end));
end
"""


@pytest.fixture
def server(prosody: Make, native_lua: Path) -> Prosody:
    return prosody(plugin_paths=(native_lua,), modules=MODULES, hosts={HERE: "", THERE: ""})


def create(server: Prosody, host: str = HERE) -> str:
    return server.eval('return assert(module:depends("invites").create_account()).token;', host=host)


def is_valid(server: Prosody, token: str) -> bool:
    return server.eval('return module:depends("invites").get(args.token) ~= nil;', token=token)


def told(server: Prosody) -> str:
    """What a reader of the log hears from our module, or because of it, and all that went to the console."""
    log = re.findall(r"^.*:invites\t.*$|^.*raceback.*$(?:\n\t.*$)*", server.log(), re.MULTILINE)
    return "\n".join([*log, *(server.scratch / "console.log").read_text().splitlines()])


def test_what_is_no_token_is_invalid_and_nothing_happens(server: Prosody) -> None:
    valid, foreign = create(server), create(server, THERE)
    server.add_user("romeo", "pw")
    for what, lua in BAD.items():
        assert server.eval(
            PRELUDE + f"""
            local token, errors = {lua}, {{}};
            for name, f in pairs {{
                get = function () return invites.get(token); end;
                contact = function () return invites.get(token, "romeo"); end;
                use = function () return invites.use(token); end;
                info = function () return invites.get_account_invite_info(token); end;
            }} do
                local found, why = f();
                errors[name] = found or why;
            end
            return errors, invites.delete_account_invite(token);
            """,
            valid=valid, foreign=foreign,
        ) == (dict.fromkeys(("get", "contact", "use", "info"), "token-invalid"), True), what
    assert is_valid(server, valid)
    assert server.eval('return module:depends("invites").get(args.token) ~= nil;', host=THERE, token=foreign)
    assert "\terror\t" not in told(server)


def test_no_token_is_told_from_an_invalid_one(server: Prosody) -> None:
    for nothing in ("nil", "false"):
        for call in (
            "get(%s)", 'get(%s, "romeo")', "use(%s)", "get_account_invite_info(%s)", "delete_account_invite(%s)",
        ):
            answer = server.eval(f'return module:depends("invites").{call % nothing};')
            assert answer == (None, "no-token"), call


def test_whom_nobody_can_be_has_no_contact_invite(server: Prosody) -> None:
    server.add_user("romeo", "pw")
    token = server.eval('return module:depends("invites").create_contact("romeo", true).token;')
    for username in (
        '""', '"ro meo"', r'"romeo\0"', '"romeo@example.com"', r'"\255"', '("x"):rep(10240)', "42", "{}", "true",
    ):
        assert server.eval(
            f'return module:depends("invites").get(args.token, {username});', token=token
        ) == (None, "token-invalid"), username
    assert is_valid(server, token)


async def test_a_stream_with_a_bad_token_is_refused_and_registers_nobody(server: Prosody) -> None:
    valid, foreign = create(server), create(server, THERE)
    on_the_wire = [
        # Prosody 0.12 closes a stream that is not authenticated at 10,000 bytes; longer ones are tried through the API.
        None, "", " ", "x" * 9000, "../../../etc/passwd", "' OR '1'='1", '"; DROP TABLE invite; --', "%", "%[[[[",
        "." * 24, "<&>\"'", "�\U0001f642", valid.swapcase(), f" {valid}", valid[:-1], foreign,
    ]
    for token in on_the_wire:
        async with await open_stream(server) as stream:
            with pytest.raises(Refused) as refused:
                await stream.preauth(token)
            assert (refused.value.type, refused.value.condition) == ("cancel", "forbidden"), token
            with pytest.raises(Refused):
                await stream.register("tybalt", "pw")
    async with await open_stream(server) as stream:
        await stream.preauth(valid)
        await stream.register("juliet", "pw")


@pytest.mark.parametrize("bytes_", [b"a\0b", b"\xff\xfe", b"&#0;"], ids=["NUL", "not UTF-8", "a reference to NUL"])
def test_what_is_no_xml_ends_that_stream_alone(server: Prosody, bytes_: bytes) -> None:
    valid = create(server)
    with socket.create_connection(("127.0.0.1", server.c2s), timeout=10) as connection:
        connection.sendall(
            b"<stream:stream to='example.com' version='1.0' xmlns='jabber:client'"
            b" xmlns:stream='http://etherx.jabber.org/streams'>"
            b"<iq type='set' id='1'><preauth xmlns='urn:xmpp:pars:0' token='" + bytes_ + b"'/></iq>"
        )
        answer = b""
        while part := connection.recv(4096):
            answer += part
    assert b"not-well-formed" in answer
    assert is_valid(server, valid)


async def test_a_bad_token_makes_a_subscription_an_ordinary_one(server: Prosody) -> None:
    for name in ("juliet", "romeo"):
        server.add_user(name, "pw")
    foreign = server.eval(
        'require "core.usermanager".create_user("juliet", "pw", module.host);'
        'return module:depends("invites").create_contact("juliet").token;',
        host=THERE,
    )
    async with await login(server, "juliet", "pw") as juliet, await login(server, "romeo", "pw") as romeo:
        for stream in (juliet, romeo):
            await stream.roster()
            stream.send_presence()
        for token in ("", "x" * 10240, "../", "' OR '1'='1", "%", foreign):
            romeo.send_presence("juliet@example.com", "subscribe", token)
            await juliet.expect_presence("subscribe", "romeo@example.com")
            juliet.send_presence("romeo@example.com", "unsubscribed")
            await romeo.expect_presence("unsubscribed", "juliet@example.com")
            for stream in (juliet, romeo):
                stream.received.clear()
        assert await juliet.roster() == {}
    assert "raceback" not in server.log()


async def test_nothing_that_is_told_holds_a_token(server: Prosody) -> None:
    """Whatever goes wrong with it: refused, spoilt by a handler, misused by a module, lost with the database."""
    server.add_user("romeo", "pw")
    token = create(server)
    secrets = [token, server.eval('return module:depends("invites").create_contact("romeo", true).token;')]
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("juliet", "pw")
        with pytest.raises(Refused):
            await stream.register("tybalt", "pw")
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)

    for spoil in (
        "invite.token = 'changed';", "invite.created_at = invite.token;", "invite.expires = invite.token;",
        "invite.f = print;", "invite.additional_data = { [{}] = invite.token };",
        "invite[1] = invite.token;", "invite.note = setmetatable({}, { __index = error, __pairs = error });",
    ):
        secret, text = server.eval(
            f"""
            local secret;
            local function handler(invite) secret = invite.token; {spoil} end
            module:hook("invite-created", handler);
            local ok, text = pcall(module:depends("invites").create_account);
            module:unhook("invite-created", handler);
            return secret, not ok and tostring(text) or "";
            """
        )
        secrets.append(secret)
        assert secret not in text, spoil

    for misuse in (
        "invites.create_account({ args.token })", "invites.create_account(nil, nil, { args.token })",
        "invites.create_account(nil, { [args.token] = 1, f = print })",
        'invites.create_contact("romeo", args.token, {}, -1)',
        "invites.get(args.token).use(args.token)", "invites.get(args.token):use(args.token)",
    ):
        secret = create(server)
        secrets.append(secret)
        try:
            server.eval(f'local invites = module:depends("invites"); {misuse};', token=secret)
        except LuaError as error:
            assert secret not in str(error), misuse

    database = server.data_path / "invites.sqlite3"
    for path in server.data_path.glob("invites.sqlite3*"):
        path.rename(server.scratch / path.name)
    database.write_bytes(b"garbage " * 1000)
    server.restart()
    for call in ("get", "use", "get_account_invite_info", "delete_account_invite"):
        assert server.eval(f'return module:depends("invites").{call}(args.token);', token=token) == (
            None, "internal-server-error",
        )
    done = server.prosodyctl("mod_invites", "generate", HERE)
    assert done.returncode == 1

    assert "is damaged" in told(server)
    for secret in secrets:
        for text in (told(server), done.stdout, done.stderr):
            assert secret not in text
