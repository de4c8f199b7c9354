"""prosodyctl mod_invites check: what is wrong is found, and the exit code tells it."""

import json
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from prosody import Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
CREATE = 'return module:depends("invites").create_account().token'


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    def made(**options: Any) -> Prosody:
        return prosody(**{"plugin_paths": (native_lua,), "modules": MODULES, **options})

    return made


def check(server: Prosody, code: int) -> list[tuple[str, str]]:
    done = server.prosodyctl("mod_invites", "check", "example.com")
    assert done.returncode == code, done.stdout
    found = [tuple(line.split(": ", 1)) for line in done.stdout.splitlines()]
    told = json.loads(server.prosodyctl("mod_invites", "check", "example.com", "--json").stdout)
    assert [entry["level"] for entry in told] == [level for level, _ in found]
    assert max(("ok", "warning", "critical").index(level) for level, _ in found) == code
    return found


@pytest.mark.parametrize("storage", ["sqlite", "prosody"])
@pytest.mark.parametrize("start", [True, False], ids=["running", "stopped"])
def test_a_good_installation_is_ok(make: Make, storage: str, start: bool) -> None:
    server = make(config=f'invite_storage = "{storage}";')
    server.eval(CREATE)
    if not start:
        server.stop()
    texts = [text for _, text in check(server, 0)]
    assert any("and its library have the version" in text for text in texts)
    if storage == "sqlite":
        for told in ("with schema", "is whole", "for their owner alone", "write-ahead log has", "clock is not behind"):
            assert any(told in text for text in texts), told


WRONG = {
    "misspelt": ('invites_expiry = "1 day";', (), "invites_expiry is nobody's"),
    "expiry": ('invite_expiry = "soon";', (), "invite_expiry = soon is not understood"),
    "page-kind": ('invites_page_supports = { "acount" };', (), '"acount", which no invite is'),
    "page-name": ('invites_page = "https://x/{invite.tokn}";', (), "{invite.tokn}, which there is not"),
    "page-nothing": ('invites_page = "https://x/";', (), "cannot know which invite it is for"),
    "page-never": ('invites_page = "https://x/{invite.token}"; invites_page_supports = { };', (), "is never used"),
    "page-module": ('invites_page_module = "other_page";', (), '"other_page" is not enabled'),
    "open": ("registration_invite_only = false;", (), "anybody can register without an invite"),
    "json": ("", ("register_json",), "gives away usernames"),
    "easy": ("", ("easy_invite",), "invites of its own"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_configuration_that_cannot_be_meant_is_a_warning(make: Make, wrong: str) -> None:
    config, modules, told = WRONG[wrong]
    server = make(start=False, config=config, modules=(*MODULES, *modules))
    assert [told in text for level, text in check(server, 1) if level == "warning"] == [True]


def test_no_option_of_the_readme_is_taken_for_a_misspelt_one(checkout: Path) -> None:
    options = re.findall(r"^\| `(invites?_\w+)` \|", (checkout / "README.md").read_text(), re.M)
    known = (checkout / "src" / "operator" / "health.rs").read_text()
    assert len(options) > 5
    assert [option for option in options if f'"{option}",' not in known] == []


def test_open_and_impossible_registration_are_warnings(make: Make) -> None:
    server = make(start=False, modules=("register_ibr", "invites"))
    assert any("anybody can register" in text for _, text in check(server, 1))
    server = make(start=False, modules=("invites", "invites_register"))
    assert any("nobody can register with an invite" in text for _, text in check(server, 1))


def test_roles_that_do_nothing_are_a_warning_where_they_do_nothing(make: Make, version: str) -> None:
    server = make(start=False, config='deny_user_invites_by_roles = { "x" };')
    found = check(server, 0 if version.startswith("0.") else 1)
    assert any("deny_user_invites_by_roles" in text for _, text in found) is not version.startswith("0.")


def test_tokens_in_the_bundled_modules_store_are_a_warning(make: Make, prosody: Make, tmp_path: Path) -> None:
    bundled = prosody(modules=MODULES, data_path=tmp_path)
    bundled.eval('local i = module:depends("invites"); i.create_account(); i.create_contact("romeo", true)')
    bundled.stop()
    server = make(data_path=tmp_path)
    assert any("2 tokens lie in the plain" in text for level, text in check(server, 1) if level == "warning")


def test_a_damaged_database_is_critical_and_told_once(make: Make) -> None:
    server = make(start=False)
    (server.data_path / "invites.sqlite3").write_bytes(b"garbage " * 1000)
    assert [level for level, text in check(server, 2) if "is damaged" in text] == ["critical"]


def test_a_newer_schema_is_critical(make: Make) -> None:
    server = make()
    server.eval(CREATE)
    server.stop()
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as connection:
        connection.execute("PRAGMA user_version = 99")
    assert any("has schema 99" in text for level, text in check(server, 2) if level == "critical")


def test_files_for_others_are_a_warning(make: Make) -> None:
    server = make()
    server.eval(CREATE)
    (server.data_path / "invites.sqlite3").chmod(0o644)
    assert any("mode 644: chmod 600" in text for _, text in check(server, 1))


@pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user")
def test_a_file_of_another_user_is_a_warning(make: Make) -> None:
    server = make()
    server.eval(CREATE)
    server.stop()
    os.chown(server.data_path / "invites.sqlite3", 65534, 0)
    assert any("belongs to the user 65534" in text for _, text in check(server, 1))


def test_a_log_that_is_never_folded_back_is_a_warning(make: Make) -> None:
    server = make()
    server.eval(CREATE)
    with (server.data_path / "invites.sqlite3-wal").open("r+b") as log:
        log.truncate(65 << 20)
    assert any("has 65 MiB" in text for _, text in check(server, 1))


def test_invites_from_the_future_are_a_warning(make: Make) -> None:
    server = make()
    server.eval(CREATE)
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as connection, connection:
        connection.execute("UPDATE invite SET created_at = created_at + 1000")
    assert any("seconds in the future" in text for _, text in check(server, 1))


def test_a_host_that_cannot_be_looked_at_is_misuse(make: Make) -> None:
    server = make(start=False)
    done = server.prosodyctl("mod_invites", "check", "nowhere.example")
    assert (done.returncode, done.stdout) == (2, "")
    assert "there is no host" in done.stderr


def test_memory_without_a_server_is_critical(make: Make) -> None:
    server = make(start=False, config='invite_storage = "memory";')
    done = server.prosodyctl("mod_invites", "check", "example.com")
    assert done.returncode == 2
    assert "it does not run" in done.stderr


def test_tokens_that_are_left_where_none_is_to_lie_are_warnings(make: Make) -> None:
    server = make()
    server.eval(CREATE)
    server.eval('assert(module:open_store("invites_tracking"):set("romeo", { invite_id = "token" }));')
    check(server, 0)
    server.stop()
    server.config += 'invite_token_at_rest = "digest";'
    server.write_config()
    left = [text for level, text in check(server, 1) if level == "warning"]
    assert len(left) == 2
    assert "tokens from before" in left[0] and "1 tokens lie in the plain in the store of mod_invites_tracking" in left[1]
    server.modules += ("invites_tracking",)
    server.write_config()
    assert any("writes every token that is used" in text for _, text in check(server, 1))


def test_a_host_that_keeps_no_token_is_ok(make: Make) -> None:
    server = make(config='invite_token_at_rest = "digest"; invite_limits = { ["prosody:registered"] = { max_open = 1 } };')
    server.eval(CREATE)
    texts = [text for _, text in check(server, 0)]
    assert "no token lies in the store" in texts
    assert "nothing is left in the store of mod_invites_tracking" in texts


def test_limits_that_make_no_sense_are_critical(make: Make) -> None:
    server = make(start=False, config='invite_limits = { ["prosody:registered"] = { max_opne = 1 } };')
    assert any('"max_opne", which is no limit' in text for level, text in check(server, 2) if level == "critical")
