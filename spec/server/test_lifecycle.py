"""Loaded twice, reloaded, unloaded, reinstalled, forked: streams, tokens and other modules do not notice."""

import os
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from client import Refused, RosterItem, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

HERE, THERE = "example.com", "example.net"
MODULES = ("register_ibr", "invites", "invites_register")
# Not by module:depends: what depends on a module is reloaded and unloaded with it.
INVITES = "prosody.hosts[module.host].modules.invites"
CREATE = f"return assert({INVITES}.create_account()).token;"
RELOAD = 'assert(require "core.modulemanager".reload(module.host, "invites"));'


def create(server: Prosody, host: str = HERE) -> str:
    return server.eval(CREATE, host=host)


def are_valid(server: Prosody, *tokens: str) -> bool:
    return all(server.eval(f"return ({INVITES}.get(args.token)) ~= nil;", token=token) for token in tokens)


def assert_calm(server: Prosody) -> None:
    assert "\terror\t" not in server.log()
    assert "raceback" not in server.log()


def count_uses(server: Prosody) -> Callable[[], list[str]]:
    """Whose uses of invites are told from now on."""
    server.eval(
        """
        local users = module:shared("spec_users");
        module:hook("invite-used", function (event) table.insert(users, event.invitee); end);
        """
    )
    return lambda: list(server.eval('return { (table.unpack or unpack)(module:shared("spec_users")) };'))


def test_how_long_an_invite_is_good_can_be_said_in_every_way_on_every_version(
    prosody: Callable[..., Prosody], native_lua: Path
) -> None:
    week = 7 * 86400
    spellings = {
        "3600": 3600, '"3600"': 3600, '"1 week"': week, '"36h"': 36 * 3600, '"2 days"': 2 * 86400, '"3 months"': 93 * 86400,
        '"never"': None, "false": None, "-1": None,
        # What is not understood is told, and the default holds until it is mended.
        '"10m"': week, '"soon"': week, "0": week, "{}": week,
    }
    hosts = {f"host{number}.example": f"invite_expiry = {text};" for number, text in enumerate(spellings)}
    server = prosody(plugin_paths=(native_lua,), modules=("invites",), hosts=hosts)
    for host, (text, seconds) in zip(hosts, spellings.items(), strict=True):
        is_endless, ttl = server.eval(
            f"""
            local invite = assert({INVITES}.create_account());
            local is_endless = invite.expires == math.huge;
            return is_endless, not is_endless and invite.expires - invite.created_at or 0;
            """,
            host=host,
        )
        assert (is_endless, ttl) == (seconds is None, seconds or 0), text
    told = [line for line in server.log().splitlines() if "is not understood" in line]
    assert len(told) == 4 and all("invite_expiry = " in line for line in told)


async def test_two_hosts_have_their_own_options(prosody: Make, native_lua: Path) -> None:
    server = prosody(
        plugin_paths=(native_lua,), modules=MODULES,
        hosts={
            HERE: 'invite_expiry = 60; invites_page = "https://here/{invite.token}";',
            THERE: 'invite_expiry = "1 day"; invite_storage = "memory"; registration_invite_only = false;'
                   " allow_registration = true;",
        },
    )
    for host, expected in ((HERE, (60, "https://here/")), (THERE, (86400, None))):
        assert server.eval(
            f"""
            local invite = {INVITES}.create_account();
            local page = invite.landing_page;
            return invite.expires - invite.created_at, page and page:sub(1, -#invite.token - 1);
            """,
            host=host,
        ) == expected
    # A name that is kept for somebody on one host is anybody's on the other.
    kept = server.eval(f'return {INVITES}.create_account("juliet").token;')
    async with await open_stream(server, HERE) as stream:
        with pytest.raises(Refused):
            await stream.register("juliet", "pw")
        await stream.preauth(kept)
        await stream.register("juliet", "pw")
    in_memory = create(server, THERE)
    async with await open_stream(server, THERE) as stream:
        await stream.register("juliet", "pw")

    server.eval(RELOAD, host=HERE)
    assert server.eval(f"return ({INVITES}.get(args.token)) ~= nil;", host=THERE, token=in_memory)
    server.restart()
    assert not server.eval(f"return ({INVITES}.get(args.token)) ~= nil;", host=THERE, token=in_memory)
    assert_calm(server)


async def test_a_reload_is_not_noticed(prosody: Make, native_lua: Path) -> None:
    server = prosody(plugin_paths=(native_lua,), modules=MODULES)
    for name in ("romeo", "mercutio"):
        server.add_user(name, "pw")
    users = count_uses(server)
    before, in_hand, in_session = (create(server) for _ in range(3))
    contact = server.eval(f'return {INVITES}.create_contact("romeo").token;')
    async with (
        await open_stream(server) as preauthed,
        await open_stream(server) as other,
        await login(server, "mercutio", "pw") as mercutio,
    ):
        await preauthed.preauth(in_session)
        assert server.eval(
            f"""
            local invite = assert({INVITES}.get(args.token));
            {RELOAD * 3}
            return invite:use(), {INVITES}.get(args.token);
            """,
            token=in_hand,
        ) == (True, None, "token-invalid")
        await preauthed.register("juliet", "pw")
        for token in (in_session, in_hand):
            with pytest.raises(Refused):
                await other.preauth(token)
        await other.preauth(before)
        await other.register("tybalt", "pw")
        await mercutio.roster()
        mercutio.send_presence()
        mercutio.send_presence("romeo@example.com", "subscribe", contact)
        await mercutio.expect_presence("subscribe", "romeo@example.com")
    # Once each: what was hooked before the reload is hooked no more.
    assert users() == ["juliet", "tybalt", "mercutio@example.com"]
    assert_calm(server)


async def test_unloaded_and_loaded_again_it_goes_on(prosody: Make, native_lua: Path) -> None:
    server = prosody(plugin_paths=(native_lua,), modules=MODULES)
    server.add_user("romeo", "pw")
    in_session, in_hand, contact = create(server), create(server), server.eval(
        f'return {INVITES}.create_contact("romeo", true).token;'
    )
    async with await open_stream(server) as stream, await login(server, "romeo", "pw") as romeo:
        await stream.preauth(in_session)
        assert server.eval(
            f"""
            local mm = require "core.modulemanager";
            local invite = {INVITES}.get(args.token);
            assert(mm.unload(module.host, "invites"));
            local is_gone = {INVITES} == nil;
            require "core.usermanager".create_user("paris", "pw", module.host);
            require "core.usermanager".delete_user("paris", module.host);
            assert(mm.load(module.host, "invites"));
            assert(mm.load(module.host, "invites_register"));
            return is_gone, invite:use(), {INVITES}.get(args.token);
            """,
            token=in_hand,
        ) == (True, True, None, "token-invalid")
        assert (await romeo.roster()) == {}
        await stream.register("juliet", "pw")
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(in_session)
        with pytest.raises(Refused):
            await stream.register("tybalt", "pw")
        await stream.preauth(contact)
        await stream.register("mercutio", "pw")
    async with await login(server, "mercutio", "pw") as mercutio:
        assert await mercutio.roster() == {"romeo@example.com": RosterItem("both")}
    assert_calm(server)


@pytest.mark.parametrize("command", ["build", "install"])
async def test_a_new_build_takes_its_place_under_a_running_server(
    prosody: Make, native_lua: Path, checkout: Path, tmp_path: Path, command: str
) -> None:
    # Of `make build` only the steps that put the library in its place; what they find is not compiled.
    built = tmp_path / "built"
    (built / "release").mkdir(parents=True)
    shutil.copy(native_lua / "mod_invites" / "prosody_invites.so", built / "release" / "libprosody_invites.so")
    feature = os.path.relpath(built, checkout / "target")
    options = {
        "build": ("-o", "machine-build", "CARGO=true", f"FEATURE={feature}", f"MODULE={tmp_path}/mod_invites"),
        "install": (f"PLUGINS={tmp_path}",),
    }

    def make(target: str) -> None:
        subprocess.run(["make", "-C", checkout, *options[target], target], check=True, stdout=subprocess.DEVNULL)

    make("install")
    library = tmp_path / "mod_invites" / "prosody_invites.so"
    server = prosody(plugin_paths=(tmp_path,), modules=MODULES)
    before = create(server)
    mapped = library.stat().st_ino
    async with await open_stream(server) as stream:
        await stream.preauth(before)
        make(command)
        assert library.stat().st_ino != mapped
        assert [path.name for path in library.parent.glob("*.so")] == [library.name]
        # Code that was not needed yet is read from the file only now.
        await stream.register("juliet", "pw")
        after = create(server)
        server.eval(RELOAD)
        assert are_valid(server, after, create(server))
    server.restart()
    assert are_valid(server, after)
    assert_calm(server)


MANY_EARLY = """
-- More than the log may hold before a thread moves it into the database.
module:depends("invites").create_invites({}, 3000);
"""


@pytest.mark.parametrize("daemonize", [False, True], ids=["-F", "-D"])
def test_the_thread_that_looks_after_the_log_does_not_cross_a_fork_and_comes_again(
    prosody: Make, native_lua: Path, tmp_path: Path, daemonize: bool
) -> None:
    (tmp_path / "mod_spec_early.lua").write_text(MANY_EARLY)
    server = prosody(plugin_paths=(native_lua, tmp_path), modules=(*MODULES, "spec_early"), daemonize=daemonize)

    def threads() -> list[str]:
        return [(task / "comm").read_text().strip() for task in Path(f"/proc/{server.pid}/task").iterdir()]

    assert "invites-log" not in threads()
    for _ in range(3):
        server.eval('assert(#module:depends("invites").create_invites({}, 1000) == 1000)')
    assert "invites-log" in threads()
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM invite").fetchone() == (6000,)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert_calm(server)
    server.stop()
    assert not (server.data_path / "invites.sqlite3-wal").exists()


EARLY = """
-- As a module may that welcomes the first administrator.
token = module:depends("invites").create_account().token;
"""


@pytest.mark.parametrize("daemonize", [False, True], ids=["-F", "-D"])
async def test_in_the_background_as_in_the_foreground(
    prosody: Make, native_lua: Path, tmp_path: Path, daemonize: bool
) -> None:
    (tmp_path / "mod_spec_early.lua").write_text(EARLY)
    server = prosody(plugin_paths=(native_lua, tmp_path), modules=(*MODULES, "spec_early"), daemonize=daemonize)
    # A thread does not survive a fork, and what it held stays locked.
    assert len(list(Path(f"/proc/{server.pid}/task").iterdir())) == 1
    early = server.eval('return module:depends("spec_early").token;')
    done = server.prosodyctl("mod_invites", "generate", HERE)
    tokens = [early, create(server), done.stdout.strip().partition("preauth=")[2]]
    assert are_valid(server, *tokens)
    async with await open_stream(server) as stream:
        await stream.preauth(early)
        await stream.register("juliet", "pw")
    server.kill()
    server.start()
    assert not are_valid(server, early)
    assert are_valid(server, *tokens[1:])
    assert_calm(server)


OTHER = """
local invites = module:depends("invites");

-- The environment as each of the ways to it shows it.
function environments()
    return {
        invites, prosody.hosts[module.host].modules.invites,
        require "core.modulemanager".get_module(module.host, "invites"), invites.module.environment,
    };
end

function invite() return invites.create_account(); end
"""


def test_other_modules_bring_it_along_and_follow_its_reloads(prosody: Make, native_lua: Path, tmp_path: Path) -> None:
    (tmp_path / "mod_spec_other.lua").write_text(OTHER)
    server = prosody(plugin_paths=(native_lua, tmp_path), modules=("spec_other",))
    same = """
        local environments = prosody.hosts[module.host].modules.spec_other.environments();
        for i = 1, 4 do
            if not rawequal(environments[i], environments[1]) then return i; end
        end
        return environments[1].module.name, environments[1].module.host, environments[1].module.path;
    """
    expected = ("invites", HERE, str(native_lua / "mod_invites" / "mod_invites.lua"))
    assert server.eval(same) == expected
    token = server.eval("return prosody.hosts[module.host].modules.spec_other.invite().token;")
    server.eval(RELOAD)
    assert server.eval(same) == expected
    assert are_valid(server, token, server.eval("return prosody.hosts[module.host].modules.spec_other.invite().token;"))
    assert_calm(server)
