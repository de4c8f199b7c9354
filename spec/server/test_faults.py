"""Whatever breaks while invites are made and used: none that was acknowledged is lost, none makes a second account, the
server stays up (or comes back after a kill), and the log tells the cause.

Each round lets strangers race for the invites of a real server, two for each, and breaks something at a moment drawn by
chance. What the server has acknowledged is written down outside of it, and compared when all is well again.
SPEC_ROUNDS in the environment says how often; the table at the end counts what was found (conftest.py).
"""

import asyncio
import http.client
import json
import os
import random
import re
import signal
import sqlite3
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from client import Refused, open_stream
from postgresql import Postgres
from prosody import Prosody, ServerFailed
from test_trouble import OnASmallDisk, as_root, fill_up, locked

pytestmark = pytest.mark.storage

Make = Callable[..., Prosody]
Breaking = Callable[[Prosody, random.Random], Any]

ROUNDS = int(os.environ.get("SPEC_ROUNDS", "3"))
DEADLINE = 60

MODULES = ("register_ibr", "invites", "invites_register")
CREATE = 'local invite, why = module:depends("invites").create_account(); return invite and invite.token, why;'
#: What a stranger may be told of an invite that is good.
BUSY, FAILED = "resource-constraint", "internal-server-error"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


class Ledger:
    """What one round asked of the server and what the server has acknowledged."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.tokens: list[str] = []
        self.registered: set[str] = set()
        self.refused: list[tuple[int, str]] = []
        self.failed_creates = 0
        self._attempts = 0
        self._unspent: asyncio.Queue[int] = asyncio.Queue()

    def invite_of(self, username: str) -> int | None:
        """Which of the invites an account was made with: the name says so."""
        parts = re.fullmatch(rf"round{self.number}invite(\d+)attempt\d+", username)
        return int(parts[1]) if parts else None

    async def work(self, server: Prosody) -> None:
        """Until cancelled, or the server is gone."""
        await asyncio.gather(self._create(server), *(self._contend(server) for _ in range(3)))

    async def _create(self, server: Prosody) -> None:
        while True:
            try:
                token, _ = await asyncio.to_thread(server.eval, CREATE)
            except (OSError, http.client.HTTPException, ServerFailed):
                return
            if token:
                self._unspent.put_nowait(len(self.tokens))
                self.tokens.append(token)
            else:
                self.failed_creates += 1

    async def _contend(self, server: Prosody) -> None:
        while True:
            index = await self._unspent.get()
            await asyncio.gather(*(self._register(server, index) for _ in range(2)))

    async def _register(self, server: Prosody, index: int) -> None:
        self._attempts += 1
        username = f"round{self.number}invite{index}attempt{self._attempts}"
        try:
            async with await open_stream(server) as stream:
                await stream.preauth(self.tokens[index])
                await stream.register(username, "secret")
        except Refused as refused:
            self.refused.append((index, refused.condition))
        except OSError:
            pass  # the server is gone, and whether it did it nobody has heard
        else:
            self.registered.add(username)


class Toll:
    """What a kind of fault did to invites, over all rounds."""

    def __init__(self) -> None:
        self.acknowledged = self.lost = self.used_twice = 0

    def audit(self, server: Prosody, ledger: Ledger) -> None:
        """Uses each invite once more: one that made an account must be spent, any other good."""
        accounts, outcomes = server.eval(
            """
            local use, accounts, outcomes = module:depends("invites").use, {}, {};
            for username in require "core.usermanager".users(module.host) do table.insert(accounts, username); end
            for i, token in ipairs(args.tokens) do
                local used, why = use(token);
                outcomes[i] = used and "used" or why;
            end
            return accounts, outcomes;
            """,
            tokens=ledger.tokens, timeout=DEADLINE,
        )
        assert ledger.registered <= set(accounts)
        spent = Counter(ledger.invite_of(username) for username in accounts)
        for index, outcome in enumerate(outcomes or []):
            assert outcome in ("used", "token-invalid", "token-used"), outcome
            self.lost += not spent[index] and outcome != "used"
            self.used_twice += spent[index] + (outcome == "used") > 1
        self.acknowledged += len(ledger.tokens)


class OnADisk(OnASmallDisk):
    SIZE = "16m"


class OnPostgres(Prosody):
    def __init__(self, version: str, postgres: Postgres, **options: Any) -> None:
        self.postgres, self.database = postgres, postgres.new_database()
        config = f'invite_storage = "postgresql"; invite_postgresql = "{postgres.url(self.database)}";'
        super().__init__(version, config=config, **options)


def rows(server: Prosody, statement: str) -> list[tuple[Any, ...]]:
    if isinstance(server, OnPostgres):
        found = server.postgres.query(server.database, statement)
        return [tuple(int(cell) if cell.isdecimal() else cell for cell in row) for row in found]
    if isinstance(server, OnADisk):
        # SQLite follows the link in /proc to a path that leads elsewhere outside of the server's own mounts. Without
        # --root the path would begin at that of the whole machine, even where all this runs in a chroot.
        enter = ["nsenter", f"--target={server.pid}", "--mount", "--root"]
        command = [*enter, "sqlite3", "-json", "-cmd", ".timeout 60000"]
        answer = subprocess.run(
            [*command, server.data_path / "invites.sqlite3", statement], check=True, capture_output=True, text=True
        ).stdout
        return [tuple(row.values()) for row in json.loads(answer or "[]")]
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3", timeout=DEADLINE)) as database, database:
        return database.execute(statement).fetchall()


def errors(server: Prosody) -> list[str]:
    return re.findall(r"example\.com:invites\terror\t(.*)", server.log())


async def until_settled(server: Prosody) -> None:
    """Until its storage is there again, and the server has tried again whatever it could not write down."""
    deadline = time.monotonic() + DEADLINE
    while not (await asyncio.to_thread(server.eval, CREATE))[0]:
        assert time.monotonic() < deadline, "invites do not come back"
        await asyncio.sleep(0.05)
    while rows(server, "SELECT 1 FROM claim"):
        assert time.monotonic() < deadline, "a claim is never redeemed nor released"
        await asyncio.sleep(0.05)


async def moment(chance: random.Random) -> None:
    """Not a wait for anything: faults come when they come."""
    await asyncio.sleep(chance.uniform(0.02, 0.5))


async def suffer(
    server: Prosody, breaking: Breaking, record: Callable[[str, object], None], kind: str, *, rounds: int = ROUNDS,
    causes: tuple[str, ...] = (), may_seem_invalid: bool = False,
) -> None:
    """Rounds of work in each of which `breaking`, an async context manager, breaks something and mends it again.

    `causes` are words of which the log has one as soon as somebody was told of an internal error.
    """
    toll = Toll()
    server.eval(CREATE)  # so that there is a database
    for number in range(rounds):
        chance = random.Random(f"{kind} {number}")
        ledger, known = Ledger(number), len(errors(server))
        working = asyncio.create_task(ledger.work(server))
        await moment(chance)
        async with breaking(server, chance):
            await moment(chance)
        await moment(chance)
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)
        if not server.running:
            server.start(DEADLINE)
        await until_settled(server)
        told = [condition for _, condition in ledger.refused if condition not in (BUSY, "forbidden")]
        assert set(told) <= ({FAILED} if causes else set()), told
        if told or ledger.failed_creates:
            said = errors(server)[known:]
            assert any(cause in line for cause in causes for line in said), said
        toll.audit(server, ledger)
        if not may_seem_invalid:
            spent = {ledger.invite_of(username) for username in ledger.registered}
            uses = dict(rows(server, "SELECT token, uses FROM invite"))
            for index, condition in ledger.refused:
                assert condition != "forbidden" or index in spent or uses.get(ledger.tokens[index]) != 0
    record("fault", [kind, rounds, toll.acknowledged, toll.lost, toll.used_twice])
    assert toll.acknowledged > 0
    assert (toll.lost, toll.used_twice) == (0, 0)


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    def made(**options: Any) -> Prosody:
        return prosody(plugin_paths=(native_lua,), modules=MODULES, **options)

    return made


@asynccontextmanager
async def killed(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    server.kill()
    yield


async def test_killed_at_any_moment(make: Make, record_property: Any) -> None:
    await suffer(make(), killed, record_property, "kill -9")


@contextmanager
def interfered(server: Prosody, fault: str) -> Iterator[None]:
    """The server's system calls on the files of the database end as `fault` says, in strace's words."""
    path = server.data_path / "invites.sqlite3"
    calls = fault.partition(":")[0]
    command = ["strace", "-f", "-o", "/dev/null", "-e", f"trace={calls}", "-e", f"inject={fault}"]
    for suffix in ("", "-wal"):
        command += ["-P", f"{path}{suffix}"]
    with subprocess.Popen([*command, "-p", str(server.pid)], stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr
        while "attached" not in (line := tracer.stderr.readline()):
            assert "Requested path" in line, line
        try:
            yield
        finally:
            tracer.send_signal(signal.SIGINT)


@asynccontextmanager
async def killed_in_a_flush(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    with interfered(server, f"fsync,fdatasync:signal=KILL:when={chance.randint(1, 8)}"):
        deadline = time.monotonic() + DEADLINE
        while server.running:
            assert time.monotonic() < deadline, "nothing is written any more"
            await asyncio.sleep(0.01)
    server.kill()
    yield


@as_root
async def test_killed_while_a_commit_is_on_its_way_to_the_disk(make: Make, record_property: Any) -> None:
    await suffer(make(), killed_in_a_flush, record_property, "kill -9 in a flush")


@asynccontextmanager
async def bad_disk(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    call = chance.choice(["pwrite64", "fsync,fdatasync", "pread64", "pwrite64,fsync,fdatasync,pread64,ftruncate"])
    with interfered(server, f"{call}:error=EIO:when={chance.randint(1, 5)}+{chance.randint(1, 4)}"):
        yield


@as_root
async def test_a_disk_with_errors(make: Make, record_property: Any) -> None:
    causes = ("look at the disk and the system's log", "is damaged", "failed while")
    await suffer(make(), bad_disk, record_property, "I/O errors", causes=causes)


@asynccontextmanager
async def full_disk(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    assert isinstance(server, OnADisk)
    filler = await asyncio.to_thread(fill_up, server.disk)
    yield
    filler.unlink()


@as_root
async def test_a_full_disk(version: str, native_lua: Path, record_property: Any) -> None:
    # Accounts are in memory: what other modules make of a full disk is not ours to show.
    with OnADisk(version, plugin_paths=(native_lua,), modules=MODULES, storage="memory") as server:
        server.start(DEADLINE)
        await suffer(server, full_disk, record_property, "disk full", causes=("does not fit on the disk: make room",))


@asynccontextmanager
async def somebody_writes(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    with locked(server.data_path / "invites.sqlite3"):
        yield
        # Longer than the server waits.
        await asyncio.sleep(chance.uniform(0, 1))


async def test_a_database_that_another_process_has_locked(make: Make, record_property: Any) -> None:
    server = make()
    await suffer(server, somebody_writes, record_property, "database locked", causes=("is locked by another process",))


class OnAnotherClock(Prosody):
    """What time it is, and not how it passes, is what `set_clock` says."""

    def _as_user(self) -> list[str]:
        self.set_clock("+0")
        return [
            "env", f"LD_PRELOAD={FAKETIME}", f"FAKETIME_TIMESTAMP_FILE={self.scratch}/clock", "FAKETIME_NO_CACHE=1",
            "FAKETIME_DONT_FAKE_MONOTONIC=1", *super()._as_user(),
        ]

    def set_clock(self, offset: str) -> None:
        new = self.scratch / "clock.new"
        new.write_text(offset)
        new.rename(self.scratch / "clock")


#: Beyond a lease; beyond the week that an invite is good for; back by less than that.
JUMPS = ("+2h", "+15d", "-2h", "-3d")


@asynccontextmanager
async def wrong_clock(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    assert isinstance(server, OnAnotherClock)
    server.set_clock(chance.choice(JUMPS))
    yield
    server.set_clock("+0")


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
async def test_a_clock_that_jumps(version: str, native_lua: Path, record_property: Any) -> None:
    with OnAnotherClock(version, plugin_paths=(native_lua,), modules=MODULES) as server:
        server.start(DEADLINE)
        # What was made today has expired in a fortnight: then it is refused, and good again when the clock is right.
        await suffer(server, wrong_clock, record_property, "clock jumps", may_seem_invalid=True)


@asynccontextmanager
async def postgres_killed(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    assert isinstance(server, OnPostgres)
    await asyncio.to_thread(server.postgres.tell, "kill")
    yield
    await asyncio.to_thread(server.postgres.tell, "start")


@asynccontextmanager
async def postgres_restarted(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    assert isinstance(server, OnPostgres)
    await asyncio.to_thread(server.postgres.tell, "stop")
    yield
    await asyncio.to_thread(server.postgres.tell, "start")


@asynccontextmanager
async def postgres_stopped(server: Prosody, chance: random.Random) -> AsyncIterator[None]:
    assert isinstance(server, OnPostgres)
    await asyncio.to_thread(server.postgres.tell, "freeze")
    yield
    # Longer than the server waits for an answer.
    await asyncio.sleep(chance.uniform(0, 3))
    await asyncio.to_thread(server.postgres.tell, "thaw")


@pytest.mark.parametrize("breaking", [postgres_killed, postgres_restarted, postgres_stopped])
async def test_a_postgresql_that_goes_away(
    version: str, native_lua: Path, breaking: Breaking, record_property: Any
) -> None:
    kind = breaking.__name__.replace("postgres_", "PostgreSQL ")
    with Postgres() as postgres, OnPostgres(version, postgres, plugin_paths=(native_lua,), modules=MODULES) as server:
        server.start(DEADLINE)
        await suffer(server, breaking, record_property, kind, causes=("PostgreSQL", "database"))
