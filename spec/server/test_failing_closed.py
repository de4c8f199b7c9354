"""A broken installation closes registration, says what to do, and leaves the rest of the server alone.

Loaded without its library the module must not raise: `invites_register` would not load either, and `register_ibr` alone
lets everybody in.
"""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from client import Refused, login, open_stream
from prosody import CHECKOUT, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")

LIBRARY = "prosody_invites.so"


def _missing(module: Path) -> None:
    (module / LIBRARY).unlink()


def _empty(module: Path) -> None:
    (module / LIBRARY).write_bytes(b"")


def _cut_off(module: Path, numerator: int, denominator: int) -> None:
    library = module / LIBRARY
    whole = library.read_bytes()
    library.write_bytes(whole[: len(whole) * numerator // denominator])


def _half(module: Path) -> None:
    _cut_off(module, 1, 2)


def _nearly_whole(module: Path) -> None:
    _cut_off(module, 999, 1000)


def _header_alone(module: Path) -> None:
    (module / LIBRARY).write_bytes((module / LIBRARY).read_bytes()[:64])


def _text(module: Path) -> None:
    (module / LIBRARY).write_text("<html>404 Not Found</html>\n" * 100)


def _of_another_version(module: Path) -> None:
    shim = module / "mod_invites.lua"
    text, changed = re.subn('\nlocal VERSION = "[^"]+";\n', '\nlocal VERSION = "99.0.0";\n', shim.read_text())
    assert changed == 1
    shim.write_text(text)


def _compiled(module: Path, c: str) -> None:
    (module / LIBRARY).unlink()
    command = ["cc", "-shared", "-fPIC", "-x", "c", "-", "-o", module / LIBRARY]
    subprocess.run(command, input=c, text=True, check=True)


def _for_another_lua(module: Path) -> None:
    """Stands for a build of ours for Lua 5.1, which takes a minute: that too calls what Lua 5.4 does not have."""
    _compiled(module, "int lua_objlen(void *, int); int luaopen_prosody_invites(void *L) { return lua_objlen(L, 1); }")


def _another_library(module: Path) -> None:
    _compiled(module, "int luaopen_something_else(void *L) { return 0; }")


def _that_raises(module: Path) -> None:
    _compiled(
        module,
        "int lua_error(void *); const char *lua_pushstring(void *, const char *);"
        'int luaopen_prosody_invites(void *L) { lua_pushstring(L, "out of memory"); return lua_error(L); }',
    )


def _that_returns_nothing(module: Path) -> None:
    _compiled(module, "int luaopen_prosody_invites(void *L) { return 0; }")


INSTALL = "install mod_invites again"

#: How to break it, and what the log says besides what to do.
BROKEN = {
    "missing": (_missing, "was found neither in"),
    "empty": (_empty, "is damaged"),
    "half": (_half, "is damaged"),
    "nearly whole": (_nearly_whole, "is damaged"),
    "its header alone": (_header_alone, "is damaged"),
    "text": (_text, "is damaged"),
    "of another version": (_of_another_version, "this is version 99.0.0, its library is version "),
    "for another Lua": (_for_another_lua, "undefined symbol: lua_objlen"),
    "another library": (_another_library, "undefined symbol: luaopen_prosody_invites"),
    "that raises": (_that_raises, "out of memory"),
    "that returns nothing": (_that_returns_nothing, "cannot be loaded"),
}


@pytest.fixture
def installed(native_lua: Path, tmp_path: Path) -> Path:
    """Plugin path of a copy of our module."""
    copy = tmp_path / "lua"
    shutil.copytree(native_lua, copy)
    return copy


def errors(server: Prosody) -> list[str]:
    return re.findall(r"example\.com:invites\terror\t(.*)", server.log())


async def assert_closed(server: Prosody) -> None:
    """Nobody gets in, callers are told why (docs/design/contract.md §4.6), and who has an account goes on using it."""
    for call in (
        "create_account()", 'create_account_reset("romeo")', 'create_contact("romeo", true)', "create_group({})",
        'get("x")', 'get("x", "romeo")', 'use("x")', 'get_account_invite_info("x")', 'delete_account_invite("x")',
    ):
        assert server.eval(f'return module:depends("invites").{call};') == (None, "internal-server-error"), call
    assert server.eval('for token in module:depends("invites").pending_account_invites() do return token; end') is None
    async with await open_stream(server) as stream:
        with pytest.raises(Refused) as refused:
            await stream.register("tybalt", "pw")
        assert "problem with this server's invitations" in refused.value.text
        with pytest.raises(Refused):
            await stream.preauth("x")
    server.add_user("juliet", "pw")
    async with await login(server, "juliet", "pw"):
        pass


@pytest.mark.parametrize("how", BROKEN)
async def test_with_a_broken_library_nobody_registers_and_the_log_says_what_to_do(
    prosody: Make, installed: Path, how: str
) -> None:
    break_it, problem = BROKEN[how]
    break_it(installed / "mod_invites")
    server = prosody(plugin_paths=(installed,), modules=MODULES)
    said, = errors(server)
    assert problem in said
    assert INSTALL in said
    await assert_closed(server)

    done = server.prosodyctl("mod_invites", "generate", "example.com")
    assert (done.returncode, done.stdout) == (1, "")
    line, = done.stderr.splitlines()
    assert INSTALL in line


PARTS = [path.name for path in (CHECKOUT / "lua" / "mod_invites").glob("*.lib.lua")]


@pytest.mark.parametrize("part", sorted(PARTS))
async def test_with_a_file_of_the_module_missing_nobody_registers(prosody: Make, installed: Path, part: str) -> None:
    (installed / "mod_invites" / part).unlink()
    server = prosody(plugin_paths=(installed,), modules=MODULES)
    said, = errors(server)
    assert part.removesuffix(".lib.lua") in said
    assert INSTALL in said
    await assert_closed(server)


async def test_registration_without_invites_stays_open_where_it_was_meant_to_be(
    prosody: Make, installed: Path
) -> None:
    _missing(installed / "mod_invites")
    server = prosody(
        plugin_paths=(installed,), modules=MODULES,
        config="registration_invite_only = false; allow_registration = true;",
    )
    assert len(errors(server)) == 1
    async with await open_stream(server) as stream:
        await stream.register("juliet", "pw")
    async with await login(server, "juliet", "pw"):
        pass


async def test_an_unknown_storage_closes_registration_too(prosody: Make, native_lua: Path) -> None:
    server = prosody(plugin_paths=(native_lua,), modules=MODULES, config='invite_storage = "floppy";')
    said, = errors(server)
    assert "floppy" in said
    assert '"sqlite"' in said
    await assert_closed(server)


async def test_once_the_library_is_there_a_reload_suffices(prosody: Make, native_lua: Path, installed: Path) -> None:
    _missing(installed / "mod_invites")
    server = prosody(plugin_paths=(installed,), modules=MODULES)
    await assert_closed(server)
    shutil.copy(native_lua / "mod_invites" / LIBRARY, installed / "mod_invites")
    server.eval('assert(require "core.modulemanager".reload(module.host, "invites"));')
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.register("tybalt", "pw")
        await stream.preauth(server.eval('return prosody.hosts[module.host].modules.invites.create_account().token;'))
        await stream.register("romeo", "pw")
    async with await login(server, "romeo", "pw"):
        pass
    assert "raceback" not in server.log()


async def test_a_module_newer_than_the_library_in_memory_is_closed_until_the_restart(
    prosody: Make, installed: Path
) -> None:
    """An upgrade under a running server: a reload gets the new module, but the old library stays loaded."""
    server = prosody(plugin_paths=(installed,), modules=MODULES)
    token = server.eval('return prosody.hosts[module.host].modules.invites.create_account().token;')
    shim = installed / "mod_invites" / "mod_invites.lua"
    old = shim.read_text()
    reload = 'assert(require "core.modulemanager".reload(module.host, "invites"));'
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        _of_another_version(installed / "mod_invites")
        server.eval(reload)
        said, = errors(server)
        assert f"{INSTALL} and restart Prosody" in said
        with pytest.raises(Refused) as refused:
            await stream.register("romeo", "pw")
        assert "problem with this server's invitations" in refused.value.text
        shim.write_text(old)
        server.eval(reload)
        await stream.register("romeo", "pw")
    _of_another_version(installed / "mod_invites")
    server.eval(reload)
    await assert_closed(server)
    assert "raceback" not in server.log()
