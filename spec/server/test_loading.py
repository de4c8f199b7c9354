"""How the module gets into a Prosody and takes the place of the bundled one."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import BUNDLED, CHECKOUT, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
CREATE = 'return assert(module:depends("invites").create_account()).token;'


def loaded_from(server: Prosody) -> Path:
    """The file of the module "invites" that runs."""
    return Path(server.eval("return prosody.hosts[module.host].modules.invites.module.path;"))


def assert_works(server: Prosody, version: str) -> None:
    """In the server and in prosodyctl, where options take the module's own compat library too."""
    assert server.eval(CREATE)
    done = server.prosodyctl("mod_invites", "generate", "example.com", "--role", "prosody:member")
    assert (done.returncode, done.stderr) == (0, "")
    token = done.stdout.strip().partition("preauth=")[2]
    invite = server.eval('return module:depends("invites").get(args.token);', token=token)
    assert invite["additional_data"]["roles"] == (
        ["prosody:member"] if version.startswith("13") else {"prosody:member": True}
    )


def luarocks(tree: Path, *args: str | Path, cwd: Path, **env: str) -> None:
    done = subprocess.run(
        ["luarocks", "--lua-version=5.4", f"--tree={tree}", *args],
        cwd=cwd, env={**os.environ, **env}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120,
    )
    assert done.returncode == 0, done.stdout


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Path]]:
    """Builds a rocks tree with the module from a copy of the checkout, the second time into the same tree."""
    scratch = tmp_path_factory.mktemp("rock")
    copy = scratch / "checkout"
    ignored = shutil.ignore_patterns("target", ".git", "*.so", "__pycache__", ".*_cache")
    shutil.copytree(CHECKOUT, copy, symlinks=True, ignore=ignored)
    # What cargo has compiled already it finds again: LuaRocks sets CC, which alone would make it compile SQLite anew.
    shutil.copytree(CHECKOUT / "target" / "lua54", copy / "target" / "lua54", symlinks=True)
    (scratch / "without_cc.mk").write_text("unexport CC\n")

    def make() -> Path:
        rockspec, = copy.glob("*.rockspec")
        luarocks(scratch / "tree", "make", rockspec, cwd=copy, MAKEFILES=f"{scratch}/without_cc.mk")
        return scratch / "tree"

    yield make
    shutil.rmtree(copy)


@pytest.fixture(scope="session")
def tree(build: Callable[[], Path]) -> Path:
    """Not to be changed: several tests share it."""
    return build()


def with_installer(tree: Path) -> dict[str, Any]:
    return {"plugin_paths": BUNDLED, "modules": MODULES, "config": f'installer_plugin_path = "{tree}";'}


@pytest.mark.matrix("a checkout on plugin_paths")
def test_a_checkout_on_the_plugin_path_replaces_the_bundled_module(
    prosody: Make, native_lua: Path, version: str
) -> None:
    server = prosody(plugin_paths=(native_lua,), modules=MODULES)
    assert loaded_from(server) == native_lua / "mod_invites" / "mod_invites.lua"
    assert_works(server, version)


@pytest.mark.matrix("luarocks make")
def test_a_rocks_tree_replaces_the_bundled_module(prosody: Make, tree: Path, version: str) -> None:
    server = prosody(**with_installer(tree))
    assert loaded_from(server) == tree / "share/lua/5.4/mod_invites/mod_invites.lua"
    assert_works(server, version)


@pytest.mark.matrix("a packed rock")
def test_a_packed_rock_needs_no_compiler_and_leaves_no_trace(
    prosody: Make, tree: Path, tmp_path: Path, version: str
) -> None:
    luarocks(tree, "pack", "mod_invites", cwd=tmp_path)
    rock, = tmp_path.glob("*.rock")
    other = tmp_path / "other"
    luarocks(other, "install", rock, cwd=tmp_path)
    server = prosody(**with_installer(other))
    assert loaded_from(server) == other / "share/lua/5.4/mod_invites/mod_invites.lua"
    assert_works(server, version)

    server.stop()
    luarocks(other, "remove", "mod_invites", cwd=tmp_path)
    assert not [path for path in other.rglob("*invites*") if path.is_file()]
    server.start()
    assert loaded_from(server).is_relative_to(server.package)
    assert server.eval(CREATE)


@pytest.mark.matrix("luarocks make")
async def test_a_rock_made_again_takes_its_place_under_a_running_server(
    prosody: Make, tree: Path, build: Callable[[], Path], version: str
) -> None:
    server = prosody(**with_installer(tree))
    library = tree / "lib/lua/5.4/prosody_invites.so"
    mapped = library.stat().st_ino
    token = server.eval(CREATE)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        build()
        assert library.stat().st_ino != mapped
        # Code that was not needed yet is read from the file only now.
        await stream.register("juliet", "pw")
    server.eval('assert(require "core.modulemanager".reload(module.host, "invites"));')
    assert_works(server, version)


@pytest.mark.matrix("prosodyctl install and remove, and back to the bundled module")
async def test_a_rock_from_a_local_server_is_installed_removed_and_its_links_live_on(
    prosody: Make, tree: Path, tmp_path: Path, version: str
) -> None:
    shop = tmp_path / "shop"
    shop.mkdir()
    luarocks(tree, "pack", "mod_invites", cwd=shop)
    subprocess.run(["luarocks-admin", "make_manifest", shop], check=True, capture_output=True)

    plugins = tmp_path / "plugins"
    server = prosody(start=False, modules=MODULES, config=f'installer_plugin_path = "{plugins}";')
    done = server.prosodyctl("install", f"--server={shop}", "mod_invites", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "mod_invites" in server.prosodyctl("list").stdout
    server.start()
    assert loaded_from(server).is_relative_to(plugins)
    assert_works(server, version)
    # What must go along with a library that others' work is linked into.
    licences, = plugins.rglob("LICENSE-THIRD-PARTY.md")
    assert "rusqlite" in licences.read_text()

    token = server.eval(CREATE)
    done = server.prosodyctl("mod_invites", "export", "example.com", "--to", "prosody")
    assert done.returncode == 0, done.stdout + done.stderr
    done = server.prosodyctl("remove", "mod_invites", timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    server.restart()
    assert loaded_from(server).is_relative_to(server.package)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("juliet", "capulet")
    async with await login(server, "juliet", "capulet"):
        pass


@pytest.mark.matrix("several hosts with options of their own")
async def test_two_hosts_have_invites_and_options_of_their_own(prosody: Make, native_lua: Path) -> None:
    server = prosody(
        plugin_paths=(native_lua,), modules=MODULES,
        hosts={
            "example.com": 'invite_expiry = "2 hours"; invites_page = "https://example.com/i?{invite.token}";',
            "example.org": 'invite_expiry = 60; registration_invite_only = false;',
        },
    )
    com, org = (server.eval('return module:depends("invites").create_account()', host=host) for host in server.hosts)
    assert (com["expires"] - com["created_at"], org["expires"] - org["created_at"]) == (7200, 60)
    assert com["landing_page"] == f"https://example.com/i?{com['token']}" and "landing_page" not in org
    assert server.prosodyctl("mod_invites", "generate", "example.org").stdout.startswith("xmpp:example.org?register;")

    # A token of one is none of the other, and only one of them lets in who has none.
    async with await open_stream(server, "example.org") as stream:
        with pytest.raises(Refused, match="forbidden"):
            await stream.preauth(com["token"])
        await stream.register("romeo", "montague")
    async with await open_stream(server, "example.com") as stream:
        with pytest.raises(Refused):
            await stream.register("romeo", "montague")
        await stream.preauth(com["token"])
        await stream.register("romeo", "montague")
    pending = 'local n = 0; for _ in module:depends("invites").pending_account_invites() do n = n + 1; end return n;'
    assert [server.eval(pending, host=host) for host in server.hosts] == [0, 2]


async def test_a_stranger_registers_with_a_generated_link_and_the_link_is_spent(
    prosody: Make, native_lua: Path
) -> None:
    server = prosody(plugin_paths=(native_lua,), modules=MODULES)
    done = server.prosodyctl("mod_invites", "generate", "example.com")
    token = done.stdout.strip().partition("preauth=")[2]

    async with await open_stream(server) as stream:
        assert stream.features.find("{urn:xmpp:ibr-token:0}register") is not None
        with pytest.raises(Refused) as without_token:
            await stream.register("juliet", "capulet")
        assert without_token.value.text == "Registration on this server is through invitation only"
        await stream.preauth(token)
        await stream.register("juliet", "capulet")
    async with await login(server, "juliet", "capulet") as stream:
        assert stream.jid.bare == "juliet@example.com"

    async with await open_stream(server) as stream:
        with pytest.raises(Refused) as used:
            await stream.preauth(token)
        assert (used.value.type, used.value.condition) == ("cancel", "forbidden")
        assert used.value.text == "The invite token is invalid or expired"
        with pytest.raises(Refused):
            await stream.register("tybalt", "pw")


def test_everything_that_is_linked_into_the_library_has_its_licence_in_the_file(checkout: Path) -> None:
    tree = subprocess.run(
        [checkout / "spec/cargo.sh", "tree", "--locked", "--all-features", "--edges=normal", "--prefix=none"],
        cwd=checkout, capture_output=True, text=True, check=True,
    ).stdout
    linked = {" ".join(line.split()[:2]).replace(" v", " ") for line in tree.splitlines() if line}
    text = (checkout / "LICENSE-THIRD-PARTY.md").read_text()
    absent = {crate for crate in linked if not re.search(rf"^- {re.escape(crate)}( |$)", text, re.MULTILINE)}
    assert not absent, "run `make licences`"
