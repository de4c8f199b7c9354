"""The harness itself, tried on the `mod_invites` that Prosody bundles: what fails here is no fault of our module."""

import asyncio
import os
import pwd
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from client import Refused, RosterItem, login, open_stream
from prosody import LuaError, Prosody, ServerFailed

INVITES = ("register_ibr", "invites", "invites_register", "invites_adhoc")
CREATE_ACCOUNT = 'return module:depends("invites").create_account().token;'

Make = Callable[..., Prosody]


async def test_a_token_opens_registration_once(prosody: Make) -> None:
    server = prosody(modules=INVITES)
    token = server.eval(CREATE_ACCOUNT)

    async with await open_stream(server) as stream:
        assert stream.features.find("{urn:xmpp:ibr-token:0}register") is not None
        with pytest.raises(Refused) as without_token:
            await stream.register("juliet", "capulet")
        assert without_token.value.text == "Registration on this server is through invitation only"
        await stream.preauth(token)
        await stream.register("juliet", "capulet")
        await stream.authenticate("juliet", "capulet")
        assert stream.jid.bare == "juliet@example.com"

    async with await open_stream(server) as stream:
        with pytest.raises(Refused) as used:
            await stream.preauth(token)
        assert (used.value.type, used.value.condition) == ("cancel", "forbidden")
        with pytest.raises(Refused) as wrong:
            await stream.authenticate("juliet", "montague")
        assert wrong.value.condition == "not-authorized"


async def test_an_invited_contact_gets_into_both_rosters(prosody: Make) -> None:
    server = prosody(modules=INVITES, config='admins = { "romeo@example.com" };')
    for name in ("romeo", "juliet"):
        server.add_user(name, "pw")
    async with await login(server, "romeo", "pw") as romeo, await login(server, "juliet", "pw") as juliet:
        invite = await romeo.command("urn:xmpp:invite#invite")
        assert invite.status == "completed"
        uri, = invite.form["uri"]
        token = uri.partition("preauth=")[2].partition(";")[0]

        assert "juliet@example.com" not in await romeo.roster()  # and asks for pushes from now on
        romeo.send_presence()
        await juliet.roster()
        juliet.send_presence()
        # Bundled 0.12.3 loses a subscription with a contact-only token; an admin's invite is for registration too.
        juliet.send_presence("romeo@example.com", "subscribe", token)
        await juliet.expect_presence("subscribe", "romeo@example.com")
        juliet.send_presence("romeo@example.com", "subscribed")
        await juliet.expect_presence(None, "romeo@example.com")
        await romeo.expect_presence(None, "juliet@example.com")
        assert await romeo.roster() == {"juliet@example.com": RosterItem("both")}
        assert await juliet.roster() == {"romeo@example.com": RosterItem("both")}


async def test_fifty_streams_at_once(prosody: Make) -> None:
    server = prosody(modules=INVITES)
    tokens = server.eval(
        """
        local invites, tokens = module:depends("invites"), {};
        for i = 1, 50 do tokens[i] = invites.create_account().token; end
        return tokens;
        """
    )

    async def join(number: int, token: str) -> str:
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            await stream.register(f"user{number}", "pw")
            await stream.authenticate(f"user{number}", "pw")
            return stream.jid.user

    joined = await asyncio.gather(*(join(number, token) for number, token in enumerate(tokens)))
    assert set(joined) == {f"user{number}" for number in range(50)}


async def test_a_stream_the_server_ends_does_not_hang(prosody: Make) -> None:
    server = prosody(modules=INVITES)
    async with await open_stream(server) as stream:
        server.kill()
        await stream.wait_closed()
        with pytest.raises(ConnectionError):
            await stream.preauth("x")
    with pytest.raises(ConnectionError):
        await open_stream(server)


def test_eval_keeps_what_json_would_lose(prosody: Make) -> None:
    server = prosody()
    assert server.eval("") is None
    assert server.eval("return nil, false, nil;") == (None, False, None)
    assert [type(n) for n in server.eval("return 1, 1.0, 2^53, math.huge;")] == [int, float, float, float]
    assert server.eval("return { 1, { a = true } }, {}, { [1] = 'x', [3] = 'y', z = { } };") == (
        [1, {"a": True}], {}, {1: "x", 3: "y", "z": {}},
    )
    assert server.eval(r'return "jörg\0", "\255", print;') == ("jörg\0", b"\xff", "<function>")
    assert server.eval("local t = {}; t.t = t; return t;") == {"t": "<cycle>"}
    assert server.eval(
        "return args.n, args.f, args.list, args.none, getmetatable(args.list);", n=1, f=1.5, list=["ä"], none=None
    ) == (1, 1.5, ["ä"], None, None)
    assert server.eval('require "util.async".sleep(0.01); return "later";') == "later"
    with pytest.raises(LuaError, match="eval:1: oops\nstack traceback"):
        server.eval('error("oops");')
    with pytest.raises(LuaError, match="unexpected symbol"):
        server.eval("return return")
    with pytest.raises(ServerFailed, match="404"):
        server.eval("return 1;", host="elsewhere.example")


def test_the_server_stops_restarts_and_dies(prosody: Make, version: str) -> None:
    server = prosody(hosts={"example.com": "", "example.net": 'note = "n";'})
    assert server.eval("return prosody.version;") == version
    assert server.eval('return module.host, module:get_option("note");', host="example.net") == ("example.net", "n")
    server.add_user("juliet", "pw")
    server.restart()
    assert "Shutdown complete" in server.log()
    assert server.eval('return require "core.usermanager".user_exists("juliet", module.host);') is True
    server.kill()
    assert not server.running
    server.start()
    assert server.pid is not None
    os.kill(server.pid, signal.SIGSEGV)
    with pytest.raises(ServerFailed, match="status -11"):
        server.stop()
    server.config = "this is not Lua"
    with pytest.raises(ServerFailed, match="this is not Lua|syntax error"):
        server.start()


def test_a_daemon_is_ended_like_any_other(prosody: Make) -> None:
    server = prosody(daemonize=True)
    assert server.pid == server.eval('return require "util.pposix".getpid();')
    assert server.running
    server.stop()
    assert not server.running


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user")
def test_another_user_can_run_it(prosody: Make) -> None:
    server = prosody(user="nobody")
    nobody = pwd.getpwnam("nobody").pw_uid
    assert server.eval('return require "util.pposix".getuid();') == nobody
    assert server.prosodyctl("register", "juliet", "example.com", "pw").returncode == 0
    assert _account(server, "juliet").stat().st_uid == nobody


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_prosodyctl_uses_the_config_of_the_server(prosody: Make, running: bool) -> None:
    server = prosody(start=running)
    about = server.prosodyctl("about")
    assert about.returncode == 0
    assert str(server.data_path) in about.stdout
    assert server.prosodyctl("register", "juliet", "example.com", "pw").returncode == 0
    assert _account(server, "juliet").exists()
    if running:
        shell = server.prosodyctl("shell", "host", "list")
        assert "example.com" in shell.stdout


def test_servers_run_side_by_side_and_leave_nothing(prosody: Make, version: str) -> None:
    neighbour = prosody()
    with Prosody(version) as server:
        server.start()
        pid, scratch = server.pid, server.scratch
        assert {server.c2s, server.http}.isdisjoint({neighbour.c2s, neighbour.http})
        assert server.eval('return module:get_option("data_path");') == str(server.data_path)
    assert not Path(f"/proc/{pid}").exists()
    assert not scratch.exists()
    assert neighbour.running


def _account(server: Prosody, username: str) -> Path:
    return server.data_path / "example%2ecom" / "accounts" / f"{username}.dat"
