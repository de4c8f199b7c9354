"""A server that is held up in the middle of a registration while another one, on the same storage, wants its invite.

Where it can be told that the server lives, nobody gets the invite, however long it is held up. Where that cannot be told,
somebody else gets it after a lease; then the account of the first is taken back as soon as it is made. Each invite makes
one account, and none is lost.

SPEC_LEASE in the environment is the seconds of a lease, SPEC_ROUNDS how many registrations are held up side by side.
Without it a lease is of two seconds, and all that is to happen in its time happens so much faster.
"""

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client import Refused, Stream, login, open_stream
from postgresql import Postgres
from prosody import Prosody

Make = Callable[..., Prosody]

#: The lease of a server as it is installed, and here.
FULL_LEASE, LEASE = 60, float(os.environ.get("SPEC_LEASE", "2"))
ROUNDS = int(os.environ.get("SPEC_ROUNDS", "2"))
#: Those that take minutes each.
LONG_ROUNDS = min(ROUNDS, 3)

MODULES = ("register_ibr", "invites", "invites_register", "spec_registered")

BUSY, FAILED = "resource-constraint", "internal-server-error"

CREATE = 'return assert(module:depends("invites").create_account(nil, { groups = { "montagues" } })).token;'
RESET = 'return assert(module:depends("invites").create_account_reset(args.username)).token;'

#: Every account that is to be made, or password to be set, is held up until `GO_ON`. Prosody's own provider never waits by itself.
HOLD = """
    local async = require "util.async";
    local provider = prosody.hosts[module.host].users;
    local held = module:shared("held");
    for _, name in ipairs({ "create_user", "set_password" }) do
        local f = provider[name];
        provider[name] = function (...)
            if async.ready() and not held.is_over then
                local wait, done = async.waiter();
                table.insert(held, done);
                wait();
            end
            return f(...);
        end
    end
"""
HELD = 'return #module:shared("held");'
GO_ON = """
    local held = module:shared("held");
    held.is_over = true;
    for _, go_on in ipairs(held) do require "util.timer".add_task(0, go_on); end
"""


def scaled(seconds: float) -> float:
    """So long as seconds are beside a lease as it is installed."""
    return seconds * LEASE / FULL_LEASE


@dataclass
class Storage:
    """What both servers have in common."""

    servers: tuple[Prosody, Prosody]
    database: str | None
    postgres: Postgres | None

    def query(self, statement: str) -> list[tuple[str, ...]]:
        if self.postgres:
            assert self.database
            return [tuple(row) for row in self.postgres.query(self.database, statement)]
        with closing(sqlite3.connect(self.path, timeout=10)) as database:
            return [tuple(map(str, row)) for row in database.execute(statement).fetchall()]

    @property
    def path(self) -> Path:
        return self.servers[0].data_path / "invites.sqlite3"

    @asynccontextmanager
    async def away(self) -> AsyncIterator[None]:
        """Nobody can use it."""
        if self.postgres:
            await asyncio.to_thread(self.postgres.tell, "stop")
            yield
            await asyncio.to_thread(self.postgres.tell, "start")
        else:
            with closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as lock:
                lock.execute("BEGIN IMMEDIATE")
                yield
                lock.execute("ROLLBACK")

    def lose_proof(self) -> None:
        """From now on nobody can tell whether the servers live, until these do something about it."""
        if self.postgres:
            self.query("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'prosody'")
        else:
            for file in self.path.with_name("invites.sqlite3-boots").iterdir():
                file.unlink()


@pytest.fixture(params=["sqlite", "postgresql"])
def storage(request: pytest.FixtureRequest, prosody: Make, native_lua: Path) -> Storage:
    """Two servers for one host, with one storage and one directory of accounts."""
    config, postgres, database = "c2s_timeout = 3600;", None, None
    if request.param == "postgresql":
        # Its own, for it is stopped.
        postgres = request.getfixturevalue("own_postgres")
        database = postgres.new_database()
        config += f'invite_storage = "postgresql"; invite_postgresql = "{postgres.url(database)}";'
    first = prosody(plugin_paths=(native_lua,), modules=MODULES, config=config)
    config += 'admin_socket = "second.sock";'
    second = prosody(plugin_paths=(native_lua,), modules=MODULES, config=config, data_path=first.data_path)
    for server in (first, second):
        server.set_lease(LEASE)
    return Storage((first, second), database, postgres)


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    with Postgres() as postgres:
        yield postgres


def accounts(server: Prosody) -> set[str]:
    found = server.eval(
        """
        local found = {};
        for username in require "core.usermanager".users(module.host) do table.insert(found, username); end
        return found;
        """
    )
    return set(found)


async def until(is_so: Callable[[], bool], within: float = 10) -> None:
    deadline = time.monotonic() + within
    while not await asyncio.to_thread(is_so):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


TEXTS = {
    "This invitation is being used right now, please try again": BUSY,
    "The invitation cannot be checked at the moment": FAILED,
    "This invitation has been used already": "forbidden",
    "This invitation has been used already, or was revoked": "forbidden",
}


@dataclass
class Round:
    """A registration that is held up at the first server, and somebody who wants the same invite at the second."""

    number: int
    token: str
    holder: Stream
    rival: Stream
    registration: asyncio.Task[None]

    @property
    def names(self) -> tuple[str, str]:
        return f"holder{self.number}", f"rival{self.number}"

    async def rival_registers(self) -> str:
        """The outcome: "registered", or the condition of the refusal."""
        try:
            await self.rival.register(self.names[1], "secret")
        except Refused as refused:
            # mod_register_ibr of 0.11 passes on nothing but the text.
            return TEXTS.get(refused.text, refused.condition)
        return "registered"


@asynccontextmanager
async def held_up(storage: Storage, number: int) -> AsyncIterator[list[Round]]:
    """So many rounds, side by side, each of them claimed and its account not made yet."""
    first, second = storage.servers
    first.eval(HOLD)
    async with AsyncExitStack() as stack:
        rounds = []
        for index in range(number):
            token = first.eval(CREATE)
            holder, rival = [await stack.enter_async_context(await open_stream(server)) for server in storage.servers]
            for stream in (holder, rival):
                await stream.preauth(token)
            registration = asyncio.create_task(holder.register(f"holder{index}", "secret", timeout=3600))
            rounds.append(Round(index, token, holder, rival, registration))
        await until(lambda: first.eval(HELD) == number)
        assert storage.query("SELECT count(*) FROM claim") == [(str(number),)]
        yield rounds
        for round in rounds:
            round.registration.cancel()


async def rivals_try(rounds: list[Round], seconds: float) -> list[set[str]]:
    """What they are told, each of them again and again for so long."""
    deadline = time.monotonic() + seconds
    told: list[set[str]] = [set() for _ in rounds]
    while time.monotonic() < deadline:
        for round, conditions in zip(rounds, told, strict=True):
            if "registered" not in conditions:
                conditions.add(await round.rival_registers())
        await asyncio.sleep(LEASE / 20)
    return told


@asynccontextmanager
async def suspended(server: Prosody) -> AsyncIterator[None]:
    assert server.pid
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


async def holders_keep_theirs(storage: Storage, rounds: list[Round]) -> None:
    """They go on: each gets what its invite has promised, and the rival nothing."""
    first, second = storage.servers
    await asyncio.to_thread(first.eval, GO_ON)
    await asyncio.gather(*(round.registration for round in rounds))
    await until(lambda: storage.query("SELECT count(*) FROM claim") == [("0",)])
    for round in rounds:
        assert await round.rival_registers() == "forbidden"
        assert first.eval('return module:depends("spec_registered").groups(args.name);', name=round.names[0]) == ["montagues"]
    assert accounts(first) == {round.names[0] for round in rounds}
    assert storage.query("SELECT DISTINCT uses FROM invite") == [("1",)]


@pytest.mark.storage
@pytest.mark.parametrize("seconds", [10, 66, 200])
async def test_who_is_suspended_keeps_what_it_has_claimed(storage: Storage, seconds: int) -> None:
    async with held_up(storage, LONG_ROUNDS if seconds > 100 else ROUNDS) as rounds:
        async with suspended(storage.servers[0]):
            told = await rivals_try(rounds, scaled(seconds))
        assert told == [{BUSY}] * len(rounds)
        await holders_keep_theirs(storage, rounds)


@pytest.mark.storage
async def test_who_is_cut_off_from_the_storage_keeps_what_it_has_claimed(storage: Storage) -> None:
    async with held_up(storage, ROUNDS) as rounds:
        async with storage.away():
            told = await rivals_try(rounds[:1], scaled(61))
        assert told == [{FAILED}]
        # It shows that it is there before anybody has looked for a lease.
        told = await rivals_try(rounds, 1.5 * LEASE)
        assert all(conditions <= {BUSY, FAILED} and BUSY in conditions for conditions in told), told
        await holders_keep_theirs(storage, rounds)


@pytest.mark.storage
async def test_a_clock_that_is_ahead_settles_nothing(storage: Storage) -> None:
    storage.servers[1].set_lease(LEASE, clock_ahead=90)
    async with held_up(storage, ROUNDS) as rounds:
        assert await rivals_try(rounds, LEASE / 2) == [{BUSY}] * len(rounds)
        await holders_keep_theirs(storage, rounds)


async def test_what_is_lost_where_nobody_could_tell_is_taken_back_at_once(storage: Storage) -> None:
    """Suspended, and its lock gone: nobody can know that it will be back."""
    first, second = storage.servers
    async with held_up(storage, ROUNDS) as rounds:
        async with suspended(first):
            await asyncio.to_thread(storage.lose_proof)
            told = await rivals_try(rounds, LEASE / 2)
            assert all(conditions <= {BUSY, FAILED} for conditions in told), "not before a lease"
            told = await rivals_try(rounds, 1.5 * LEASE)
            assert all("registered" in conditions for conditions in told), told
        await asyncio.to_thread(first.eval, GO_ON)
        rivals = {round.names[1] for round in rounds}
        await until(lambda: first.eval(HELD) > 0 and accounts(first) == rivals, within=1 + 0.1 * len(rounds))
        for round in rounds:
            await round.holder.wait_closed()
            with pytest.raises(Exception):
                await login(first, round.names[0], "secret")
            groups = first.eval('return module:depends("spec_registered").groups(args.name);', name=round.names[0])
            assert groups is None, "nobody else is told of it"
    assert accounts(second) == rivals
    assert storage.query("SELECT DISTINCT uses FROM invite") == [("1",)]
    assert storage.query("SELECT count(*) FROM claim") == [("0",)]
    assert "which somebody else has used: it was deleted again" in first.log()


async def test_a_reset_whose_claim_was_lost_deletes_nothing(storage: Storage) -> None:
    first, second = storage.servers
    first.add_user("juliet", "old")
    first.eval(HOLD)
    token = first.eval(RESET, username="juliet")
    async with await open_stream(first) as holder, await open_stream(second) as rival:
        for stream in (holder, rival):
            await stream.preauth(token)
        reset = asyncio.create_task(holder.register("juliet", "new", timeout=3600))
        await until(lambda: first.eval(HELD) == 1)
        async with suspended(first):
            await asyncio.to_thread(storage.lose_proof)
            deadline = time.monotonic() + 3 * LEASE
            while True:
                try:
                    await rival.register("juliet", "newest")
                    break
                except Refused as refused:
                    assert refused.condition in (BUSY, FAILED) and time.monotonic() < deadline
                await asyncio.sleep(LEASE / 20)
        await asyncio.to_thread(first.eval, GO_ON)
        await reset
    assert accounts(first) == {"juliet"}
    assert storage.query("SELECT uses FROM invite") == [("1",)]


async def test_a_claim_that_an_operator_has_released_is_redeemed_all_the_same_if_nobody_was_faster(storage: Storage) -> None:
    first, _ = storage.servers
    async with held_up(storage, 1) as rounds:
        named = first.eval('return module:depends("invites").show(args.token).id;', token=rounds[0].token)
        refused = await asyncio.to_thread(first.prosodyctl, "mod_invites", "release", "example.com", named)
        assert (refused.returncode, "say --yes" in refused.stderr) == (1, True)
        released = await asyncio.to_thread(first.prosodyctl, "mod_invites", "release", "example.com", named, "--yes")
        assert released.returncode == 0, released.stderr
        shown, done = released.stdout.splitlines()
        assert shown.startswith("holder0 has been using it since") and shown.endswith("its server runs, and it may go on")
        assert done == "the invite is free"
        assert storage.query("SELECT count(*) FROM claim") == [("0",)]
        await holders_keep_theirs(storage, rounds)
        again = await asyncio.to_thread(first.prosodyctl, "mod_invites", "release", "example.com", named, "--yes")
        assert (again.returncode, "nobody is using the invite" in again.stderr) == (1, True)


@pytest.mark.storage
async def test_a_database_that_was_replaced_by_its_backup_takes_nothing_from_an_account(storage: Storage, tmp_path: Path) -> None:
    """It knows the invite, and nothing of the claim on it."""
    if storage.postgres:
        pytest.skip("a file")
    first, _ = storage.servers
    first.eval(HOLD)
    token, copy = first.eval(CREATE), tmp_path / "copy"
    with closing(sqlite3.connect(storage.path)) as database:
        database.execute("VACUUM INTO ?", (str(copy),))
    async with await open_stream(first) as holder:
        await holder.preauth(token)
        registration = asyncio.create_task(holder.register("holder0", "secret"))
        await until(lambda: first.eval(HELD) == 1)
        for suffix in ("-wal", "-shm"):
            storage.path.with_name(storage.path.name + suffix).unlink(missing_ok=True)
        copy.rename(storage.path)
        await asyncio.to_thread(first.eval, GO_ON)
        await registration
        await until(lambda: storage.query("SELECT uses FROM invite") == [("1",)])
    assert accounts(first) == {"holder0"}
    assert first.eval('return module:depends("spec_registered").groups("holder0");') == ["montagues"]
    assert storage.query("SELECT count(*) FROM claim") == [("0",)]


@pytest.mark.parametrize("change", ["reload", "off and on"])
async def test_what_becomes_of_the_host_meanwhile_takes_nothing_from_an_account(storage: Storage, change: str) -> None:
    first, _ = storage.servers
    async with held_up(storage, 1) as rounds:
        if change == "reload":
            first.eval('require "core.modulemanager".reload(module.host, "invites");')
        else:
            # What is asked next, whoever asks it, is whether it is there again.
            first.eval(
                """
                local held, hosts = module:shared("held"), require "core.hostmanager";
                rawset(prosody, "spec_held", held);
                require "util.timer".add_task(0, function ()
                    hosts.deactivate("example.com");
                    hosts.activate("example.com");
                end);
                """
            )
            await until(lambda: bool(first.eval('return prosody.spec_held ~= nil and module:depends("invites") ~= nil;')))
        await asyncio.to_thread(
            first.eval, 'local held = prosody.spec_held or module:shared("held"); held.is_over = true;'
            'for _, go_on in ipairs(held) do require "util.timer".add_task(0, go_on); end'
        )
        try:
            await rounds[0].registration
        except ConnectionError:
            assert change == "off and on"  # its streams were closed
        await until(lambda: storage.query("SELECT count(*) FROM claim") == [("0",)], within=3 * LEASE)
        assert await rounds[0].rival_registers() == "forbidden"
    assert accounts(first) == {"holder0"}
    assert storage.query("SELECT uses FROM invite") == [("1",)]
