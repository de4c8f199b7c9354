"""The library of every Lua, each in its own interpreter. Needs what spec/matrix.sh has built."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[2]
LUAS = ("lua5.1", "luajit", "lua5.2", "lua5.3", "lua5.4")
#: What the README promises of a library built with GLIBC=2.17, and of one built on Debian 12.
GLIBC = {"luajit": (2, 34)}
GLIBC_ASKED_FOR = (2, 17)


def library(lua: str) -> Path:
    return CHECKOUT / "target" / "plugins" / lua / "mod_invites" / "prosody_invites.so"


def run(lua: str, *args: str | Path) -> None:
    done = subprocess.run([lua, *args], capture_output=True, text=True, timeout=60, cwd=CHECKOUT)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A database that a Lua has written, and its tokens; written once."""
    directory = tmp_path_factory.mktemp("exchange")

    def write(lua: str) -> tuple[Path, Path]:
        database, tokens = directory / f"{lua}.sqlite3", directory / f"{lua}.tokens"
        if not tokens.exists():
            run(lua, "spec/matrix/exchange.lua", library(lua), "write", database, tokens)
        return database, tokens

    return write


@pytest.mark.parametrize("reader", LUAS)
@pytest.mark.parametrize("writer", LUAS)
def test_what_one_lua_stored_another_finds_unchanged_and_uses_once(
    written: Callable[[str], tuple[Path, Path]], writer: str, reader: str
) -> None:
    run(reader, "spec/matrix/exchange.lua", library(reader), "read", *written(writer))


@pytest.mark.parametrize("lua", LUAS)
def test_what_the_library_raises_is_caught(lua: str) -> None:
    """LuaJIT unwinds the C stack for it, and whose unwinder is linked in matters."""
    run(
        lua, "-e", f"""
        local native = package.loadlib("{library(lua)}", "luaopen_prosody_invites")();
        for i = 1, 100 do
            local ok, err = pcall(native.open, i % 2 == 0 and {{}} or i);
            assert(not ok and tostring(err):find("converting"), tostring(err));
        end""",
    )


@pytest.mark.parametrize("lua", LUAS)
def test_the_module_around_the_library_is_a_program_in_every_lua(lua: str) -> None:
    for file in sorted((CHECKOUT / "lua" / "mod_invites").glob("*.lua")):
        run(lua, "-e", f'assert(loadfile("{file}"))')


@pytest.mark.parametrize("lua", LUAS)
def test_the_library_asks_for_no_newer_libc_than_was_said(lua: str) -> None:
    symbols = subprocess.run(["objdump", "-T", library(lua)], capture_output=True, text=True, check=True).stdout
    asked = {tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_([\d.]+)", symbols)}
    assert asked and max(asked) <= GLIBC.get(lua, GLIBC_ASKED_FOR)
    libraries = subprocess.run(["objdump", "-p", library(lua)], capture_output=True, text=True, check=True).stdout
    needed = set(re.findall(r"NEEDED\s+(\S+)", libraries))
    allowed = {"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-x86-64.so.2"}
    assert needed <= (allowed | {"libgcc_s.so.1"} if lua == "luajit" else allowed)
    # What the module loads is the one function that it exports.
    assert re.findall(r"g +DF \.text.* (\S+)$", symbols, re.M) == ["luaopen_prosody_invites"]


@pytest.mark.parametrize("lua", LUAS)
def test_the_rock_of_a_lua_holds_its_library_and_is_for_no_other_lua(lua: str, tmp_path: Path) -> None:
    rock, = (CHECKOUT / "target" / "rocks" / lua).glob("*.rock")
    own = "5.1" if lua == "luajit" else lua.removeprefix("lua")

    def install(version: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["luarocks", f"--lua-version={version}", f"--tree={tmp_path / version}", "install", "--deps-mode=one", rock],
            capture_output=True, text=True, timeout=60, cwd=tmp_path,
        )

    done = install(own)
    assert done.returncode == 0, done.stderr
    installed = tmp_path / own / "lib" / "lua" / own / "prosody_invites.so"
    assert installed.read_bytes() == library(lua).read_bytes()
    assert list((tmp_path / own).rglob("LICENSE-THIRD-PARTY.md"))
    refused = install("5.2" if own == "5.3" else "5.3")
    assert refused.returncode != 0
    assert "lua" in refused.stderr
