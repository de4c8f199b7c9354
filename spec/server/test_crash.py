"""A server that is killed in the middle of a registration: no second account, and no token lost.

SPEC_ROUNDS in the environment says how often each.
"""

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

pytestmark = pytest.mark.storage

Make = Callable[..., Prosody]

ROUNDS = int(os.environ.get("SPEC_ROUNDS", "3"))

MODULES = ("register_ibr", "invites", "invites_register", "spec_failpoint")

CREATE = 'return assert(module:depends("invites").create_account()).token;'
RESET = 'return assert(module:depends("invites").create_account_reset("juliet")).token;'
ARM = 'module:depends("spec_failpoint").arm(args.point);'

#: Each point, and whether the account is there by then.
POINTS = {
    "after claim": False,
    "after account": True,
    "before redeem": True,
    "inside redeem": True,
    "after redeem": True,
}


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module."""

    def made(**options: Any) -> Prosody:
        return prosody(plugin_paths=(native_lua,), modules=MODULES, **options)

    return made


def rows(server: Prosody, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        return database.execute(statement, parameters).fetchall()


def accounts(server: Prosody) -> set[str]:
    found = server.eval(
        """
        local found = {};
        for username in require "core.usermanager".users(module.host) do table.insert(found, username); end
        return found;
        """
    )
    return set(found)


async def die_registering(server: Prosody, point: str, token: str, username: str) -> None:
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        server.eval(ARM, point=point)
        with pytest.raises(ConnectionError):
            await stream.register(username, "secret")
    deadline = time.monotonic() + 10
    while server.running:
        assert time.monotonic() < deadline
    server.kill()


@pytest.mark.parametrize("point", POINTS)
async def test_a_kill_makes_no_second_account_and_loses_no_token(make: Make, point: str) -> None:
    server = make()
    made: set[str] = set()
    for number in range(ROUNDS):
        token, first, rival = server.eval(CREATE), f"first{number}", f"rival{number}"
        await die_registering(server, point, token, first)
        server.start()
        assert (first in accounts(server)) == POINTS[point]
        async with await open_stream(server) as stream:
            # Whoever tries first is not told to wait: the file of the server that has died is not locked any more.
            if POINTS[point]:
                with pytest.raises(Refused) as refused:
                    await stream.preauth(token)
                    await stream.register(rival, "secret")
                assert refused.value.condition == "forbidden"
                made.add(first)
            else:
                await stream.preauth(token)
                await stream.register(rival, "secret")
                made.add(rival)
        assert accounts(server) == made
        assert rows(server, "SELECT * FROM claim") == []
    assert rows(server, "SELECT DISTINCT uses FROM invite") == [(1,)]
    assert {name for name, in rows(server, "SELECT invitee FROM redemption")} == made


@pytest.mark.parametrize("point", ["after claim", "after account", "inside redeem"])
async def test_a_reset_that_was_cut_off_may_be_repeated_for_the_same_account_only(make: Make, point: str) -> None:
    server = make()
    for name in ("juliet", "romeo"):
        server.add_user(name, "old")
    token = server.eval(RESET)
    await die_registering(server, point, token, "juliet")
    server.start()
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        for other in ("romeo", "nurse"):
            with pytest.raises(Refused):
                await stream.register(other, "new")
        await stream.register("juliet", "new")
    async with await login(server, "juliet", "new"):
        pass
    assert accounts(server) == {"juliet", "romeo"}
    assert rows(server, "SELECT uses FROM invite") == [(1,)]


@pytest.mark.parametrize("point", ["after claim", "before redeem"])
async def test_another_server_settles_what_a_dead_one_has_claimed(make: Make, point: str) -> None:
    dead = make()
    alive = make(data_path=dead.data_path, config='admin_socket = "second.sock";')
    token = dead.eval(CREATE)
    async with await open_stream(alive) as stream:
        await stream.preauth(token)
        await die_registering(dead, point, token, "juliet")
        if POINTS[point]:
            with pytest.raises(Refused, match="used already"):
                await stream.register("romeo", "secret")
        else:
            await stream.register("romeo", "secret")
    assert accounts(alive) == {"juliet" if POINTS[point] else "romeo"}
    assert rows(alive, "SELECT uses FROM invite") == [(1,)]
