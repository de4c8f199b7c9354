"""`make bench`: what an invite costs beside 10 and beside 100,000 stored ones, and beside the same on bare SQLite.

Each batch of calls into a real Prosody alternates with one of the same statements in `benches/bare_sqlite.rs`, on a
file with as many rows, so that a disk that slows down hits all alike. Exit code 1: a bar was missed.
"""

import json
import random
import secrets
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

from prosody import CHECKOUT, VERSIONS, Prosody

SIZES = SMALL, LARGE = 10, 100_000
#: Whichever comes first ends the run of a version.
ROUNDS, SECONDS = 40, 20
CREATES, GETS = 20, 200
MAX_GROWTH = 1.5
MAX_GET = 50.0
TARGET = CHECKOUT / "target"
#: About 100 bytes as JSON.
ADDITIONAL_DATA = {
    "groups": ["reading-group"], "note": "for the people of the town library", "roles": ["prosody:member"],
}

OPERATIONS = ("create", "get hit", "get miss")
SIDES = ("ours", "bare")

Microseconds = list[float]
#: By operation, number of stored invites and side.
Samples = dict[tuple[str, int, str], Microseconds]


class Void(Exception):
    """What was measured cannot be compared."""


class Ours:
    """The module in a server, called as other modules call it."""

    name = "ours"

    def __init__(self, server: Prosody) -> None:
        self.server = server
        self.path = server.data_path / "invites.sqlite3"

    @property
    def pid(self) -> int:
        assert self.server.pid is not None
        return self.server.pid

    def create(self, number: int) -> Microseconds:
        return self.server.eval(
            """
            local create_account, now = module:depends("invites").create_account, require "util.time".monotonic;
            local spent = {};
            for i = 1, args.number do
                local start = now();
                local invite, err = create_account(nil, args.additional_data);
                spent[i] = (now() - start) * 1e6;
                assert(invite, err);
            end
            return spent;
            """,
            number=number, additional_data=ADDITIONAL_DATA,
        )

    def get(self, tokens: list[str]) -> tuple[int, Microseconds]:
        found, spent = self.server.eval(
            """
            local get, now = module:depends("invites").get, require "util.time".monotonic;
            local found, spent = 0, {};
            for i, token in ipairs(args.tokens) do
                local start = now();
                local invite = get(token);
                spent[i] = (now() - start) * 1e6;
                found = found + (invite and 1 or 0);
            end
            return found, spent;
            """,
            tokens=tokens,
        )
        return found, spent


class Bare:
    """The store's statements without Prosody, Lua or the domain."""

    name = "bare"

    def __init__(self, path: Path, model: Path) -> None:
        self.path = path
        self._model = model
        self._process = subprocess.Popen(
            [CHECKOUT / "spec" / "cargo.sh", "bench", "--quiet", "--locked", "--bench", "bare_sqlite"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def open(self, path: Path) -> None:
        pid, self.journal_mode, self.synchronous = self._ask("open", str(path), str(self._model))
        self.pid = int(pid)

    def fill(self, number: int) -> None:
        self._ask("fill", str(number))

    def create(self, number: int) -> Microseconds:
        return _microseconds(self._ask("create", str(number)))

    def get(self, tokens: list[str]) -> tuple[int, Microseconds]:
        found, *spent = self._ask("get", *tokens)
        return int(found), _microseconds(spent)

    def _ask(self, *words: str) -> list[str]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\t".join(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Void("bare_sqlite ended early")
        return answer.rstrip("\n").split("\t")


def _microseconds(nanoseconds: Iterable[str]) -> Microseconds:
    return [int(one) / 1000 for one in nanoseconds]


class Bench:
    """One version of Prosody: per size a server and a bare SQLite, each on a file with as many rows."""

    def __init__(self, version: str, scratch: Path, stack: ExitStack) -> None:
        self.sides: list[tuple[int, Ours | Bare]] = []
        for size in SIZES:
            data = scratch / f"{version}-{size}"
            data.mkdir()
            server = Prosody(version, plugin_paths=(CHECKOUT / "lua",), modules=("invites",), data_path=data)
            stack.enter_context(server).start()
            ours = Ours(server)
            ours.create(1)
            # Both get rows like the one that the module has just written.
            bare = stack.enter_context(Bare(data / "bare.sqlite3", ours.path))
            bare.open(ours.path)
            bare.fill(size - 1)
            bare.open(bare.path)
            bare.fill(size)
            # Again, as filling leaves settings of its own.
            bare.open(bare.path)
            if schema(ours.path) != schema(bare.path):
                raise Void("bare_sqlite has not the schema of the module")
            self.sides += [(size, ours), (size, bare)]
        for _, side in self.sides:
            settle(side)

    def measure(self) -> Samples:
        samples: Samples = defaultdict(list)
        deadline = time.monotonic() + SECONDS
        for number in range(ROUNDS):
            if time.monotonic() > deadline:
                break
            batches = [(size, side, stored_tokens(side.path, size)) for size, side in self.sides]
            # To and fro: whoever comes first finds the disk in another state than whoever comes after.
            for size, side, tokens in batches if number % 2 == 0 else reversed(batches):
                samples["create", size, side.name] += side.create(CREATES)
                samples["get hit", size, side.name] += get(side, tokens, expected=GETS)
                unknown = [secrets.token_hex(12) for _ in range(GETS)]
                samples["get miss", size, side.name] += get(side, unknown, expected=0)
        return samples

    def settings(self, scratch: Path) -> list[str]:
        """Read back: what a file and a connection say; and how often they flush, for our connection is out of reach."""
        lines = []
        for size, side in self.sides:
            if isinstance(side, Bare):
                journal_mode, said = side.journal_mode, f", synchronous {side.synchronous}"
            else:
                journal_mode, said = stored_journal_mode(side.path), ""
            flushed = flushes(side, scratch / "strace")
            line = f"{side.name} at {size:,}: journal_mode {journal_mode}{said}, {flushed} flushes in {CREATES} creates"
            if journal_mode != "wal" or flushed < CREATES:
                raise Void(f"not durable, {line}")
            lines.append(line)
        return lines


def settle(side: Ours | Bare) -> None:
    """Creates until the log was written to its beginning again, as in a server that has run for a while.

    A flush of a log that still grows costs twice as much. Small files write less, so they would stay in that state for
    longer than large ones and hide what a large file costs.
    """
    log, grown = Path(f"{side.path}-wal"), -1
    while log.stat().st_size != grown:
        grown = log.stat().st_size
        side.create(CREATES)


def schema(path: Path) -> list[tuple[str, str]]:
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT name, sql FROM sqlite_schema ORDER BY name").fetchall()


def stored_journal_mode(path: Path) -> str:
    with closing(sqlite3.connect(path)) as database:
        (journal_mode,) = database.execute("PRAGMA journal_mode").fetchone()
    return journal_mode


def stored_tokens(path: Path, size: int) -> list[str]:
    """As many as one batch gets, from all over the file. First takes away what was created where that counts."""
    with closing(sqlite3.connect(path)) as database, database:
        (stored,) = database.execute("SELECT count(*) FROM invite").fetchone()
        if stored > 2 * size:
            database.execute("DELETE FROM invite WHERE digest NOT IN (SELECT digest FROM invite LIMIT ?)", (size,))
        tokens = [token for (token,) in database.execute("SELECT token FROM invite")]
    return random.choices(tokens, k=GETS)


def get(side: Ours | Bare, tokens: list[str], *, expected: int) -> Microseconds:
    found, spent = side.get(tokens)
    if found != expected:
        raise Void(f"{side.name} found {found} of {len(tokens)} tokens where it should find {expected}")
    return spent


def flushes(side: Ours | Bare, log: Path) -> int:
    command = ["strace", "-e", "trace=fsync,fdatasync", "-o", str(log), "-p", str(side.pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
        assert tracer.stderr
        attached = tracer.stderr.readline()
        if "attached" not in attached:
            raise Void(f"cannot look at the flushes of {side.name}: {attached}")
        side.create(CREATES)
        tracer.send_signal(signal.SIGINT)
    return log.read_text().count("sync(")


def p99(spent: Microseconds) -> float:
    return statistics.quantiles(spent, n=100)[-1]


class Report:
    """The figures of one version, on the screen and for `target/bench.json`."""

    def __init__(self, version: str, samples: Samples, settings: list[str]) -> None:
        self.version = version
        self.samples = samples
        self.settings = settings

    def median(self, operation: str, size: int, side: str) -> float:
        return statistics.median(self.samples[operation, size, side])

    def growth(self, operation: str, side: str) -> float:
        return self.median(operation, LARGE, side) / self.median(operation, SMALL, side)

    def bars(self) -> list[tuple[str, float, float]]:
        """What is measured, how much it is, how much it may be."""
        return [
            (f"create at {LARGE:,} to create at {SMALL}", self.growth("create", "ours"), MAX_GROWTH),
            *(
                (f"{operation} at {size:,}, µs", self.median(operation, size, "ours"), MAX_GET)
                for operation in ("get hit", "get miss") for size in SIZES
            ),
        ]

    def show(self) -> None:
        rounds = len(self.samples["create", SMALL, "ours"]) // CREATES
        print(f"\nProsody {self.version}, {rounds} rounds; µs")
        print(f"{'':10}{'stored':>8}{'ours':>9}{'p99':>9}{'bare':>9}{'p99':>9}{'ours/bare':>11}")
        for operation in OPERATIONS:
            for size in SIZES:
                ours, bare = (self.median(operation, size, side) for side in SIDES)
                ours_p99, bare_p99 = (p99(self.samples[operation, size, side]) for side in SIDES)
                print(
                    f"{operation:10}{size:>8,}{ours:>9.1f}{ours_p99:>9.1f}{bare:>9.1f}{bare_p99:>9.1f}"
                    f"{ours / bare:>11.2f}"
                )
            grown = ", ".join(f"{side} {self.growth(operation, side):.2f}" for side in SIDES)
            print(f"{'':10}{LARGE:,} to {SMALL}: {grown}")
        for line in self.settings:
            print(line)
        for what, measured, limit in self.bars():
            print(f"{'pass' if measured <= limit else 'MISSED'}: {what}: {measured:.2f}, at most {limit:g}")

    def as_json(self) -> dict[str, object]:
        return {
            "version": self.version,
            "settings": self.settings,
            "figures": [
                {
                    "operation": operation, "stored": size, "side": side, "calls": len(spent),
                    "median_us": statistics.median(spent), "p99_us": p99(spent),
                }
                for (operation, size, side), spent in self.samples.items()
            ],
            "bars": [
                {"what": what, "measured": measured, "limit": limit, "passed": measured <= limit}
                for what, measured, limit in self.bars()
            ],
        }


def main() -> None:
    # Ended by a time limit, it still stops its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    reports = []
    # Not in /tmp, which may be memory: a flush has to reach a disk.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=TARGET) as directory:
        scratch = Path(directory)
        kind = subprocess.run(
            ["stat", "--file-system", "--format=%T", scratch], check=True, capture_output=True, text=True
        ).stdout.strip()
        if kind in ("tmpfs", "ramfs"):
            sys.exit(f"{TARGET} is on {kind}: nothing there reaches a disk")
        print(f"files on {kind}; create includes the flush to the disk on both sides")
        try:
            for version in VERSIONS:
                with ExitStack() as stack:
                    bench = Bench(version, scratch, stack)
                    report = Report(version, bench.measure(), bench.settings(scratch))
                report.show()
                reports.append(report)
        except Void as problem:
            sys.exit(f"There is nothing to compare: {problem}")
    (TARGET / "bench.json").write_text(json.dumps([report.as_json() for report in reports], indent="\t") + "\n")
    if any(measured > limit for report in reports for _, measured, limit in report.bars()):
        sys.exit("A bar was missed.")


if __name__ == "__main__":
    main()
