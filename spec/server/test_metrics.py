"""Numbers for Prosody's statistics, as mod_http_openmetrics exports them."""

import http.client
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register", "http_openmetrics")
STATISTICS = 'statistics = "internal"; statistics_interval = "manual";'

#: Every one, and its type.
METRICS = {
    "created": "counter", "redeemed": "counter", "refused": "counter", "expired": "counter", "revoked": "counter",
    "open": "gauge", "storage_errors": "counter", "store": "histogram",
}


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    def made(**options: Any) -> Prosody:
        config = STATISTICS + options.pop("config", "")
        return prosody(plugin_paths=(native_lua,), modules=MODULES, config=config, **options)

    return made


def scrape(server: Prosody) -> tuple[dict[tuple[str, str, str], float], str]:
    """By name, host and the other label's value."""
    connection = http.client.HTTPConnection("127.0.0.1", server.http, timeout=10)
    connection.request("GET", "/metrics", headers={"Host": "localhost"})
    text = connection.getresponse().read().decode()
    connection.close()
    found = {}
    for name, labels, value in re.findall(r"^prosody_mod_invites__(\w+)\{(.*)\} (\S+)", text, re.MULTILINE):
        by_name = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        host = by_name.pop("host")
        by_name.pop("le", None)
        found[name, host, next(iter(by_name.values()), "")] = float(value)
    return found, text


def value(server: Prosody, name: str, label: str = "", host: str = "example.com") -> float:
    return scrape(server)[0].get((name, host, label), 0)


async def test_every_metric_is_exported_and_right_after_a_scripted_sequence(make: Make) -> None:
    server = make(hosts={"example.com": "", "example.net": ""})
    server.add_user("juliet", "secret")
    text = scrape(server)[1]
    for name, kind in METRICS.items():
        assert re.search(rf"^# TYPE prosody_mod_invites__{name}\w* {kind}$", text, re.MULTILINE), name
    assert value(server, "created_total", "reset") == 0, "there from the beginning"

    account, group, reset, contact = server.eval(
        """
        local invites = module:depends("invites");
        local account = invites.create_account();
        local group = invites.create_group({ "a" }, nil, 60);
        local reset = invites.create_account_reset("juliet");
        local contact = invites.create_contact("juliet");
        local newer = invites.create_account_reset("juliet");
        return account.token, group.token, newer.token, contact.token;
        """
    )
    created = {kind: value(server, "created_total", kind) for kind in ("account", "contact", "group", "reset")}
    assert created == {"account": 1, "contact": 1, "group": 1, "reset": 2}
    assert value(server, "revoked_total", "reset") == 1, "the older reset"
    assert value(server, "open") == 4
    assert value(server, "open", host="example.net") == 0

    for name, token in (("alice", account), ("bob", group), ("carol", group)):
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            await stream.register(name, "pw")
    async with await open_stream(server) as stream:
        for token in (account, "nonsense"):
            with pytest.raises(Refused):
                await stream.preauth(token)
        await stream.preauth(group)
        server.eval('module:depends("invites").pause(args.token)', token=group)
        with pytest.raises(Refused):
            await stream.register("dave", "pw")
    async with await login(server, "alice", "pw") as stream:
        stream.send_presence()
        stream.send_presence("juliet@example.com", "subscribe", "nonsense")
        stream.send_presence("juliet@example.com", "subscribe", contact)
        await stream.expect_presence("subscribe", "juliet@example.com")
    assert value(server, "redeemed_total", "account") == 1
    assert value(server, "redeemed_total", "group") == 2
    assert value(server, "redeemed_total", "contact") == 1
    # Two at preauth, one at the registration, one subscription: each once, however often it was looked at.
    assert value(server, "refused_total", "token-invalid") == 4
    server.eval('assert(module:depends("invites").revoke(args.token))', token=reset)
    assert value(server, "revoked_total", "reset") == 2
    assert value(server, "open") == 1, "the paused group invite"
    assert value(server, "store_seconds_count", "claim") == 5
    assert value(server, "storage_errors_total", "get") == 0
    (server.data_path / "invites.sqlite3").unlink()
    assert server.eval('return select(2, module:depends("invites").get("anything"))') == "internal-server-error"
    assert value(server, "storage_errors_total", "get") == 1
    assert value(server, "refused_total", "internal-server-error") == 1


def test_what_expired_is_counted_when_it_is_seen(make: Make) -> None:
    server = make(start=False)
    assert server.prosodyctl("mod_invites", "generate", "example.com").returncode == 0
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        database.execute("UPDATE invite SET expires = created_at - 10")
    server.start()
    server.tidy()
    deadline = time.monotonic() + 20
    while value(server, "expired_total", "account") == 0:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert value(server, "expired_total", "account") == 1
    assert value(server, "open") == 0


def test_thousands_of_open_invites_are_counted_piece_by_piece(make: Make) -> None:
    server = make(start=False)
    done = server.prosodyctl("mod_invites", "generate", "example.com", "--count", "10001", timeout=60)
    assert done.returncode == 0, done.stderr
    server.start()
    deadline = time.monotonic() + 20
    while value(server, "open") != 10001:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_reload_counts_on(make: Make) -> None:
    server = make()
    create = 'assert(require "core.modulemanager".get_module("example.com", "invites").create_account())'
    server.eval(create)
    server.eval('require "core.modulemanager".reload("example.com", "invites")')
    server.eval(create)
    assert value(server, "created_total", "account") == 2


def test_without_statistics_everything_works_as_it_is(prosody: Make, native_lua: Path) -> None:
    server = prosody(plugin_paths=(native_lua,), modules=("invites",))
    assert server.eval('return module:depends("invites").create_account().type') == "register"
