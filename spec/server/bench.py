"""`make bench`: what an invite costs with ten and with a million stored ones, beside the bundled module and beside bare
SQLite, and whether that is as little as was promised.

Every store of every size has a server of its own; each takes its turn at each operation, so that a disk or a machine that
slows down hits all alike. Those that write all they have at every change come after the others: for minutes after a million
were written, disk and memory are theirs. Ours takes turns with both, and has two figures. Before each turn the file of its
side, if it has one, is read once, so that none meets a colder memory than another. Compare only within a run. Exit code 1:
a bar was missed. Prints figures and bars, and leaves them in target/bench.json, spec/bench.svg and the README.
"""

import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import bench_busy
from bench_latency import Latency, ping_under_load
from bench_plot import plot
from bench_sides import (
    Bare, BareLibpq, BundledOnInternal, BundledOnMemory, BundledOnSql, InServer, Microseconds, OursOnInternal,
    OursOnPostgres, OursOnSqlite, SMALL, Side, Void,
)
from bench_start import generate_times, load_times
from postgresql import Postgres
from prosody import CHECKOUT, VERSIONS

VERSION = VERSIONS[0]
SIZES = (10, 1_000, 10_000, 100_000, 1_000_000)
SMALLEST, LARGEST = SIZES[0], SIZES[-1]
OPERATIONS = ("create", "get hit", "get miss", "get+use", "register", "list")
#: Calls in one turn of a side, and turns. Slow ones have fewer of both.
TURN = {"create": 40, "get hit": 100, "get miss": 100, "get+use": 40, "register": 40, "list": 1}
ROUNDS, WHOLE_ROUNDS, LISTINGS = 60, 25, 5
#: Seconds: of a turn, and of all turns of one side at one operation.
TURN_SECONDS, CELL_SECONDS = 0.2, 8
#: Calls of which each has to be on the disk.
TRACED = 20

TARGET = CHECKOUT / "target"

#: Ours where it takes turns with those that keep all their invites in one piece.
BESIDE_WHOLE = "ours sqlite, beside"

#: By operation, number of stored invites and side.
Samples = dict[tuple[str, int, str], Microseconds]


@dataclass
class Bar:
    """What was promised, and what came of it."""

    what: str
    measured: float
    limit: float
    is_minimum: bool = False

    @property
    def passed(self) -> bool:
        return self.measured >= self.limit if self.is_minimum else self.measured <= self.limit

    def __str__(self) -> str:
        verdict = "pass" if self.passed else "MISSED"
        wanted = "least" if self.is_minimum else "most"
        return f"{verdict}: {self.what}: {self.measured:,.2f}, at {wanted} {self.limit:,g}"


def begin(scratch: Path, stack: ExitStack) -> list[Side]:
    """Those that keep each invite by itself."""
    sides: list[Side] = []
    # PostgreSQL does not run as root.
    scratch.chmod(0o755)
    postgres = stack.enter_context(Postgres(scratch))
    for size in SIZES:
        ours = stack.enter_context(OursOnSqlite(VERSION, size, scratch))
        sides += [ours, stack.enter_context(Bare.beside(ours))]
        shared = stack.enter_context(OursOnPostgres(VERSION, size, scratch, postgres))
        sides += [shared, BareLibpq(shared, scratch), stack.enter_context(BundledOnSql(VERSION, size, scratch))]
        print(f"{size:,} invites stored by those that keep each by itself", flush=True)
    for side in sides:
        if isinstance(side, (OursOnSqlite, Bare)):
            settle(side)
        trim(side)
    return sides


def begin_whole(scratch: Path, stack: ExitStack) -> list[Side]:
    """Those that keep all in one piece, in a file or in memory."""
    sides: list[Side] = []
    for size in SIZES:
        for kind in (OursOnInternal, BundledOnInternal, BundledOnMemory):
            sides.append(stack.enter_context(kind(VERSION, size, scratch)))
        print(f"{size:,} invites stored by those that keep all in one piece", flush=True)
    for side in sides:
        trim(side)
    return sides


def trim(side: Side) -> None:
    """What was created while it was measured would be most of a small store."""
    if side.size <= SMALL and not isinstance(side, BareLibpq):
        side.trim()


def settle(side: OursOnSqlite | Bare) -> None:
    """Creates until the log was written to its beginning again, as in a server that has run for a while.

    A flush of a log that still grows costs twice as much. Small files write less, so they would stay in that state for
    longer than large ones and hide what a large file costs.
    """
    log, grown = Path(f"{side.path}-wal"), -1
    while log.stat().st_size != grown:
        grown = log.stat().st_size
        for _ in range(5):
            side.run("create", TURN["create"])


def begin_log_anew(side: OursOnSqlite) -> None:
    """Creates until the log has just begun anew: that takes a flush of its own, which is not one of the next calls."""
    def beginnings() -> bytes:
        return Path(f"{side.path}-wal").read_bytes()[12:16]

    before = beginnings()
    while beginnings() == before:
        side.run("create", TURN["create"])


def measure(sides: list[Side], rounds: int) -> Samples:
    samples: Samples = defaultdict(list)
    for number in range(rounds):
        for operation in OPERATIONS:
            if operation == "list" and number >= LISTINGS:
                continue
            # To and fro: whoever comes first finds the disk in another state than whoever comes after.
            for side in sides if number % 2 == 0 else reversed(sides):
                spent = samples[operation, side.size, side.name]
                if isinstance(side, BareLibpq) and operation not in side.OPERATIONS:
                    continue
                if sum(spent) > CELL_SECONDS * 1e6:
                    continue
                # Nobody knows yet how slow it is.
                calls = int(TURN_SECONDS * 1e6 / statistics.median(spent)) if spent else 1
                # What others have left for the disk to do is done.
                os.sync()
                side.warm()
                spent += side.run(operation, max(1, min(TURN[operation], calls)))
        for side in sides:
            trim(side)
    return samples


class Report:
    """The figures, and what was promised of them."""

    def __init__(self, samples: Samples) -> None:
        self.samples = samples
        self.bars: list[Bar] = []
        self.notes: list[str] = []

    def median(self, operation: str, size: int, side: str) -> float:
        return statistics.median(self.samples[operation, size, side])

    def p99(self, operation: str, size: int, side: str) -> float | None:
        spent = self.samples[operation, size, side]
        return statistics.quantiles(spent, n=100)[-1] if len(spent) >= 50 else None

    def growth(self, operation: str, side: str) -> float:
        return self.median(operation, LARGEST, side) / self.median(operation, SMALLEST, side)

    def judge_times(self) -> None:
        median, bars = self.median, self.bars
        for size in SIZES:
            for operation, name in (("create", "create"), ("register", "a whole registration")):
                ratio = median(operation, size, "ours sqlite") / median(operation, size, "bare sqlite")
                bars.append(Bar(f"{name} at {size:,}, times the floor", ratio, 1.3))
            for operation, limit in (("get hit", 10), ("get miss", 3)):
                above = median(operation, size, "ours sqlite") - median(operation, size, "bare sqlite")
                bars.append(Bar(f"{operation} at {size:,}, µs above the floor", above, limit))
        for size, create, get in ((10_000, 500, 5_000), (100_000, 5_000, 50_000)):
            for operation, limit in (("create", create), ("get hit", get)):
                ratio = median(operation, size, "bundled internal") / median(operation, size, BESIDE_WHOLE)
                bars.append(Bar(f"{operation} at {size:,}, times faster than bundled on internal", ratio, limit, True))
        for size in SIZES:
            for operation, limit in (("create", 2), ("get+use", 2), ("get hit", 3), ("list", 3)):
                if operation == "list" and size < 1_000:
                    continue
                ratio = median(operation, size, "bundled sql") / median(operation, size, "ours sqlite")
                bars.append(Bar(f"{operation} at {size:,}, times faster than bundled on sql", ratio, limit, True))
        for operation in ("create", "get+use"):
            growth = self.growth(operation, "ours sqlite")
            bars.append(Bar(f"{operation}, growth from {SMALLEST} to {LARGEST:,}", growth, 1.5))
        for operation in ("get hit", "get miss"):
            bars.append(
                Bar(
                    f"{operation}, growth from {SMALLEST} to {LARGEST:,}", self.growth(operation, "ours sqlite"),
                    1.1 * self.growth(operation, "bare sqlite"),
                )
            )

    def judge_sides(self, sides: list[Side], scratch: Path) -> None:
        """What is no time of a call: flushes, memory."""
        ours = {side.size: side for side in sides if isinstance(side, OursOnSqlite)}
        for size, side in ours.items():
            for operation, each in (("create", 1), ("register", 2)):
                begin_log_anew(side)
                counted = side.flushes(operation, TRACED, scratch / "strace") / TRACED
                self.bars.append(Bar(f"{operation} at {size:,}, flushes of each", counted, each))
                self.bars.append(Bar(f"{operation} at {size:,}, flushes of each", counted, each, is_minimum=True))
            trim(side)
        for side in sides:
            if isinstance(side, Bare):
                if (side.journal_mode, side.synchronous) != ("wal", "2"):
                    raise Void(f"bare SQLite has journal mode {side.journal_mode}, synchronous {side.synchronous}")
                if side.flushes("create", TRACED, scratch / "strace") < TRACED:
                    raise Void("bare SQLite does not flush each create")
        self.notes.append("bare SQLite, read back: journal_mode wal, synchronous 2 (FULL)")
        grown = (ours[LARGEST].memory() - ours[SMALLEST].memory()) / 1e6
        self.bars.append(Bar(f"memory, MB more at {LARGEST:,} than at {SMALLEST}", grown, 16))
        for size in SIZES[1:]:
            servers = [side for side in sides if side.size == size and isinstance(side, InServer)]
            peaks = {side.name: side.peak("list") / 1e6 for side in servers}
            self.notes.append(
                f"peak memory of a listing of {size:,}, MB: "
                + ", ".join(f"{name} {peak:.1f}" for name, peak in peaks.items())
            )
            if size == LARGEST:
                self.bars.append(Bar(f"memory, MB more while {size:,} are listed", peaks["ours sqlite"], 16))

    def judge_start(self, scratch: Path) -> None:
        ours, bundled = load_times(VERSION)
        self.notes.append(f"loading the module: ours {ours:.1f} ms, bundled {bundled:.1f} ms")
        self.bars.append(Bar("loading the module, ms", ours, 20))
        for size, limit in ((0, 30), (1_000, 0), (10_000, 0)):
            ours, bundled = generate_times(VERSION, size, scratch)
            self.notes.append(f"prosodyctl generate beside {size:,}: ours {ours:.0f} ms, bundled {bundled:.0f} ms")
            self.bars.append(Bar(f"prosodyctl generate beside {size:,}, ms longer than bundled", ours - bundled, limit))

    def judge_latency(self, latency: Latency) -> None:
        self.notes.append(str(latency))
        self.bars.append(Bar("ping under load, p99, ms more than idle", latency.loaded_p99 - latency.idle_p99, 20))
        self.bars.append(Bar("ping under load, worst, ms more than idle", latency.loaded_worst - latency.idle_worst, 50))

    def judge_busy(self, busy: bench_busy.Busy) -> None:
        for waits in busy.waits:
            for what, measured, limit in (("p99", waits.p99, bench_busy.P99), ("worst", waits.worst, bench_busy.WORST)):
                self.bars.append(Bar(f"{waits.what}, beside {waits.beside}, {what}, ms more than idle", measured, limit))
        creates = busy.creates()
        self.bars.append(Bar("create, growth with what the inviter has open", max(creates) / creates[0], 1.5))
        self.bars.append(Bar("another process has the lock: others wait, ms in sum", busy.locked, 60))
        self.notes.append(bench_busy.table(busy))

    def show(self) -> None:
        names = list(dict.fromkeys(name for _, _, name in self.samples))
        print(f"\nProsody {VERSION}; µs, median / p99")
        print(f"{'':10}{'stored':>10}" + "".join(f"{name:>26}" for name in names))
        for operation in OPERATIONS:
            for size in SIZES:
                cells = []
                for name in names:
                    if not self.samples.get((operation, size, name)):
                        cells.append("-")
                        continue
                    p99 = self.p99(operation, size, name)
                    cells.append(f"{self.median(operation, size, name):,.1f}" + (f" / {p99:,.0f}" if p99 else ""))
                print(f"{operation:10}{size:>10,}" + "".join(f"{cell:>26}" for cell in cells))
        for line in (*self.notes, *map(str, self.bars)):
            print(line)

    def as_json(self) -> dict[str, object]:
        return {
            "version": VERSION, "commit": commit(), "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "figures": [
                {
                    "operation": operation, "stored": size, "side": side, "calls": len(spent),
                    "median_us": statistics.median(spent), "p99_us": self.p99(operation, size, side),
                }
                for (operation, size, side), spent in self.samples.items() if spent
            ],
            "notes": self.notes,
            "bars": [{**asdict(bar), "passed": bar.passed} for bar in self.bars],
        }


def commit() -> str:
    described = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=CHECKOUT, check=True, capture_output=True, text=True
    )
    return described.stdout.strip()


def write_readme(report: Report) -> None:
    """The bars, where the README has a place for them."""
    readme = CHECKOUT / "README.md"
    day = time.strftime("%Y-%m-%d", time.gmtime())
    lines = [f"`make bench` on {day}, commit {commit()}, Prosody {VERSION}:", ""]
    lines += ["| promised | measured | |", "| --- | ---: | --- |"]
    for bar in report.bars:
        wanted = f"{'≥' if bar.is_minimum else '≤'} {round(bar.limit, 2):,}"
        lines.append(f"| {bar.what} {wanted} | {bar.measured:,.2f} | {'' if bar.passed else '**missed**'} |")
    table = "".join(f"{line}\n" for line in lines)
    text, found = re.subn(
        r"(<!-- make bench -->\n).*?(<!-- /make bench -->)", lambda place: place[1] + table + place[2],
        readme.read_text(), flags=re.DOTALL,
    )
    if not found:
        raise Void("the README has no place for the results")
    readme.write_text(text)


def main() -> None:
    # Ended by a time limit, it still stops its servers.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    # Not in /tmp, which may be memory: a flush has to reach a disk.
    with tempfile.TemporaryDirectory(prefix="bench-", dir=TARGET) as directory:
        scratch = Path(directory)
        kind = subprocess.run(
            ["stat", "--file-system", "--format=%T", scratch], check=True, capture_output=True, text=True
        ).stdout.strip()
        if kind in ("tmpfs", "ramfs"):
            sys.exit(f"{TARGET} is on {kind}: nothing there reaches a disk")
        try:
            with ExitStack() as stack:
                sides = begin(scratch, stack)
                samples = measure(sides, ROUNDS)
                whole = begin_whole(scratch, stack)
                ours = [side for side in sides if isinstance(side, OursOnSqlite)]
                for (operation, size, name), spent in measure(ours + whole, WHOLE_ROUNDS).items():
                    samples[operation, size, BESIDE_WHOLE if name == OursOnSqlite.name else name] = spent
                sides += whole
                report = Report(samples)
                report.notes.append(f"files on {kind}; a create includes the flush to the disk")
                report.notes.append(
                    f"{BESIDE_WHOLE}: the same server again, taking turns with those that are to the right of it"
                )
                report.judge_times()
                report.judge_sides(sides, scratch)
            report.judge_start(scratch)
            report.judge_latency(ping_under_load(VERSION, scratch))
            report.judge_busy(bench_busy.measure(VERSION, scratch))
        except Void as problem:
            sys.exit(f"There is nothing to compare: {problem}")
    report.show()
    (TARGET / "bench.json").write_text(json.dumps(report.as_json(), indent="\t") + "\n")
    write_readme(report)
    plot(report.samples, CHECKOUT / "spec" / "bench.svg")
    missed = [bar for bar in report.bars if not bar.passed]
    if missed:
        sys.exit(f"{len(missed)} of {len(report.bars)} bars were missed.")


if __name__ == "__main__":
    main()
