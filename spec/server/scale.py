"""`make scale`: what an operator's commands cost beside a million invites, and what they cost everybody else.

The rows are written with another SQLite, like those of the module. Exit code 1: a bar was missed.
"""

import asyncio
import hashlib
import multiprocessing
import os
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from client import login
from prosody import CHECKOUT, VERSIONS, Prosody

ROWS = 1_000_000
TARGET = CHECKOUT / "target"
DAY = 86400

#: Seconds for which a client pings an idle server, and one that purges, in turns: the disk has its moods.
PINGING, TURNS = 10, 3

FIRST_PAGE_MS, GENERATED, GENERATE_S = 20.0, 10_000, 2.0
LISTING_GROWTH_MB, PURGE_P99_MS, PURGE_WORST_MS, LOG_MB = 5.0, 20.0, 50.0, 40.0


class Bars:
    def __init__(self) -> None:
        self.missed = 0

    def check(self, what: str, measured: float, limit: float) -> None:
        verdict = "pass" if measured <= limit else "MISSED"
        self.missed += verdict == "MISSED"
        print(f"{verdict}: {what}: {measured:.1f}, at most {limit:g}", flush=True)


def fill(path: Path, *, ended: bool) -> None:
    """A million account invites: pending ones, or ones that expired half a year ago."""
    now = int(time.time())
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA synchronous = OFF")
        database.execute("PRAGMA cache_size = -400000")

        def rows():
            tokens = (hashlib.sha256(str(number).encode()).hexdigest()[:24] for number in range(ROWS))
            # In the order of the table: in any other it takes minutes.
            for digest, token in sorted((hashlib.sha256(token.encode()).digest(), token) for token in tokens):
                age = int.from_bytes(digest[:4]) % (6 * DAY)
                created_at = now - age - (200 * DAY if ended else 0)
                expires = created_at + 7 * DAY
                yield (digest, None if ended else token, created_at, expires, expires if ended else None)

        with database:
            database.executemany(
                "INSERT INTO invite (host, digest, token, type, kind, allow_registration, created_at, expires, max_uses,"
                " ended_at, fields) VALUES ('example.com', ?, ?, 'register', 'account', 1, ?, ?, 1, ?,"
                """ '{"additional_data":{"groups":["reading-group"],"note":"for the people of the town library"}}')""",
                rows(),
            )
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def server(version: str, data: Path, config: str = "") -> Prosody:
    return Prosody(
        version, plugin_paths=(CHECKOUT / "lua",), modules=("invites", "ping"), data_path=data, config=config
    )


def new_database(version: str, data: Path) -> Path:
    """With the schema of the module."""
    data.mkdir()
    with server(version, data) as prosody:
        assert prosody.prosodyctl("mod_invites", "stats", "example.com").returncode == 0
    return data / "invites.sqlite3"


def listing(bars: Bars, prosody: Prosody) -> None:
    spent = prosody.eval(
        """
        local invites, now = module:depends("invites"), require "util.time".monotonic;
        local library, words = package.loaded.prosody_invites, { "list", "example.com", "--state=pending", "--limit=200" };
        local spent = {};
        for i = 1, 21 do
            local lines = 0;
            local start = now();
            invites.carry_out(library.command(words), { stdout = function (text) lines = select(2, text:gsub("\\n", "")); end });
            spent[i] = (now() - start) * 1000;
            assert(lines == 201, lines);
        end
        return spent;
        """
    )
    # The first one reads from the disk.
    bars.check("first page of 200 pending, the very first time, ms", spent[0], FIRST_PAGE_MS)
    bars.check("first page of 200 pending, median, ms", statistics.median(spent), FIRST_PAGE_MS)
    for form in ((), ("--json",)):
        few, _ = printed(prosody, 1000, "--limit", "1000", *form)
        all_, spent = printed(prosody, ROWS, *form)
        print(f"listing all, {' '.join(form) or 'for people'}: {spent:.1f} s, {all_:.1f} MB resident")
        bars.check("more memory than for a thousand, MB", all_ - few, LISTING_GROWTH_MB)


def printed(prosody: Prosody, number: int, *options: str) -> tuple[float, float]:
    """Megabytes and seconds that it takes to list so many."""
    start = time.monotonic()
    child = subprocess.Popen(
        [prosody.scratch / "prosodyctl", "--config", prosody.config_path, "mod_invites", "list", "example.com",
         "--state", "pending", *options],
        stdout=subprocess.PIPE,
    )
    lines = sum(1 for _ in child.stdout)  # type: ignore[union-attr]
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0 and lines == number + ("--json" not in options), (status, lines)
    return used.ru_maxrss / 1024, time.monotonic() - start


def generating(bars: Bars, prosody: Prosody) -> None:
    start = time.monotonic()
    done = prosody.prosodyctl("mod_invites", "generate", "example.com", "--count", str(GENERATED), timeout=60)
    spent = time.monotonic() - start
    assert done.returncode == 0 and len(set(done.stdout.splitlines())) == GENERATED, done.stderr
    bars.check(f"generate --count {GENERATED}, s", spent, GENERATE_S)


def pings(prosody: Prosody, while_true: Callable[[], bool]) -> list[float]:
    """Milliseconds of round trips of one client, for as long as that."""

    async def ping() -> list[float]:
        spent = []
        async with await login(prosody, "juliet", "secret") as stream:
            while while_true():
                start = time.perf_counter()
                await stream.iq("get", ET.Element("{urn:xmpp:ping}ping"), to="example.com")
                spent.append((time.perf_counter() - start) * 1000)
                await asyncio.sleep(0.005)
        return spent

    return asyncio.run(ping())


def stored(path: Path) -> int:
    with closing(sqlite3.connect(path)) as database:
        (count,) = database.execute("SELECT count(*) FROM invite").fetchone()
    return count


def purging(bars: Bars, version: str, data: Path) -> None:
    path = data / "invites.sqlite3"

    def for_a_while() -> Callable[[], bool]:
        end = time.monotonic() + PINGING
        return lambda: time.monotonic() < end

    p99 = lambda spent: statistics.quantiles(spent, n=100)[-1]  # noqa: E731
    idle: list[float] = []
    purged: list[float] = []
    log = 0.0
    for turn in range(TURNS):
        # For ever, so that it finds nothing to do.
        for config, spent in (('invite_history = "never";', idle), ("", purged)):
            with server(version, data, config) as prosody:
                prosody.start()
                if turn == 0 and spent is idle:
                    prosody.add_user("juliet", "secret")
                prosody.tidy()
                spent += pings(prosody, for_a_while())
                log = max(log, Path(f"{path}-wal").stat().st_size / 1e6)
    left = stored(path)
    print(f"idle:    {len(idle)} pings, p99 {p99(idle):.1f} ms, worst {max(idle):.1f} ms")
    print(f"purging: {len(purged)} pings, p99 {p99(purged):.1f} ms, worst {max(purged):.1f} ms,"
          f" {(ROWS - left) / PINGING / TURNS:.0f} rows a second")
    assert left < ROWS
    bars.check("p99 of a ping while a million is purged, ms more than idle", p99(purged) - p99(idle), PURGE_P99_MS)
    bars.check("worst, ms more than idle", max(purged) - max(idle), PURGE_WORST_MS)
    bars.check("write-ahead log, MB", log, LOG_MB)
    with server(version, data, 'invite_history = "never";') as prosody:
        prosody.start()
        by_operator = subprocess.Popen(
            [prosody.scratch / "prosodyctl", "--config", prosody.config_path, "mod_invites", "purge", "example.com",
             "--older-than", "90d"],
        )
        end = for_a_while()
        purged = pings(prosody, lambda: end() and by_operator.poll() is None)
        by_operator.terminate()
        by_operator.wait()
    print(f"prosodyctl purge: p99 {p99(purged):.1f} ms, worst {max(purged):.1f} ms,"
          f" {(left - stored(path)) / PINGING:.0f} rows a second")
    bars.check("p99 of a ping meanwhile, ms more than idle", p99(purged) - p99(idle), PURGE_P99_MS)
    bars.check("worst, ms more than idle", max(purged) - max(idle), PURGE_WORST_MS)


def main() -> None:
    # Ended by a time limit, it still stops its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    bars = Bars()
    # Not in /tmp, which may be memory: a flush has to reach a disk.
    with tempfile.TemporaryDirectory(prefix="scale-", dir=TARGET) as directory:
        scratch = Path(directory)
        pending, ended = scratch / "pending.sqlite3", scratch / "ended.sqlite3"
        empty = new_database(VERSIONS[0], scratch / "empty")
        for path in (pending, ended):
            shutil.copy(empty, path)
            # In another process: the memory of this one would count as that of its children.
            filling = multiprocessing.Process(target=fill, args=(path,), kwargs={"ended": path is ended})
            filling.start()
            filling.join()
            assert filling.exitcode == 0
        for version in VERSIONS:
            print(f"\nProsody {version}, {ROWS:,} invites")
            for filled, measure in ((pending, "listing"), (ended, "purging")):
                data = scratch / f"{version}-{measure}"
                data.mkdir()
                shutil.copy(filled, data / "invites.sqlite3")
                if measure == "purging":
                    purging(bars, version, data)
                    continue
                with server(version, data) as prosody:
                    prosody.start()
                    listing(bars, prosody)
                    generating(bars, prosody)
    if bars.missed:
        sys.exit("A bar was missed.")


if __name__ == "__main__":
    main()
