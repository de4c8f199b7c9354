"""How long others wait while somebody does something to invites: beside a million open invites of one user, beside a
hundred thousand pending ones, and while another process has SQLite's lock.

Prosody serves nobody else during a call, so what others wait for is the time that it takes. Each action is called from the
event loop, in turns with a bare commit to the same disk: what the disk does hits both. Run by itself, it prints the table of
docs/performance.md.
"""

import asyncio
import signal
import sqlite3
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench_sides import DAY, HOST, PATIENCE, WEEK, OursOnSqlite, Void
from client import Refused, open_stream
from prosody import CHECKOUT, VERSIONS

#: Milliseconds over idle: of 99 in a hundred, and of all.
P99, WORST = 20, 50
MILLION, PENDING = 1_000_000, 100_000
#: How many the inviter has open.
OPEN = (10, 10_000, MILLION)
CALLS = 60
#: Registrations that one stream sends without waiting for an answer.
PIPELINED = 12

#: What a client can cause, and what other modules call, by what the table calls it: code that makes what is needed, and code
#: that is timed. `name` is the user with the invites, `invites` the module.
ACTIONS = {
    # By clients
    "contact invite made (ad-hoc)": ("", 'assert(invites.create_contact(name, true, { source = jid }));'),
    "account invite made (ad-hoc)": ("", 'assert(invites.create_account(nil, { source = jid }));'),
    "whether one may be made (ad-hoc)": ("", 'assert(invites.may_invite(name, "contact"));'),
    "token presented, good": ("local token = made();", "assert(invites.get(token));"),
    "token presented, of a contact": ("local token = contact();", "assert(invites.get(token, name));"),
    "token presented, unknown": ("", 'assert(not invites.get("unknown"..i));'),
    "registration with an invite": (
        'local token, session = made(), { type = "c2s_unauthed" };',
        """
        session.validated_invite = invites.get(token);
        local event = { username = user, host = module.host, ip = "::1", session = session, allowed = true };
        module:fire_event("user-registering", event);
        assert(event.allowed, event.reason);
        module:fire_event("user-registered", { username = user, host = module.host, source = "bench", session = session });
        """,
    ),
    "registration without an invite": (
        "",
        """
        local event = { username = user, host = module.host, ip = "::1", session = { type = "c2s_unauthed" }, allowed = true };
        module:fire_event("user-registering", event);
        """,
    ),
    "contact added": ("local invite = assert(invites.get(contact(), name));", "assert(invite:use());"),
    "password changed": (
        "", 'prosody.events.fire_event("user-password-changed", { username = name, host = module.host });',
    ),
    "password changed, a reset open": (
        'assert(invites.create_invite { kind = "reset", username = name, by_operator = true });',
        'prosody.events.fire_event("user-password-changed", { username = name, host = module.host });',
    ),
    "account deleted, without invites": (
        "", 'prosody.events.fire_event("user-deleted", { username = user, host = module.host });',
    ),
    # By other modules and operators
    "create_group": ("", 'assert(invites.create_group({ "house" }, { source = jid }, 3600));'),
    "create_account, bound": ("", "assert(invites.create_account(user, { source = jid }));"),
    "create_account_reset": ("", "assert(invites.create_account_reset(name));"),
    "create_invites, 10 of them": ("", "assert(invites.create_invites({ additional_data = { source = jid } }, 10));"),
    "use": ("local token = made();", "assert(invites.use(token));"),
    "get_account_invite_info": ("local token = made();", "assert(invites.get_account_invite_info(token));"),
    "get_invite_info": ("local token = made();", "assert(invites.get_invite_info(token));"),
    "delete_account_invite": ("local token = made();", "assert(invites.delete_account_invite(token));"),
    "revoke": ("local token = made();", "assert(invites.revoke(token));"),
    "pause and resume": ("local token = made();", "assert(invites.pause(token) and invites.resume(token));"),
    "extend": ("local token = made();", "assert(invites.extend(token, 3600));"),
    "show": ("local token = made();", "assert(invites.show(token));"),
    "why": ("local token = made();", "assert(invites.why(token, user));"),
    "claims_on and release_claims": (
        "local token = made();", "assert(invites.claims_on(token) and invites.release_claims(token));",
    ),
    "branch of one": ("", "assert(invites.branch(user));"),
    # What the module does by a timer.
    "purge, a batch": (
        """
        local kept = module:shared("purging");
        kept.handle = kept.handle or assert(require "prosody_invites".open({
            host = module.host, storage = "sqlite", path = prosody.paths.data.."/invites.sqlite3", lock_wait_ms = 40,
            null = require "util.json".null, nodeprep = require "util.encodings".stringprep.nodeprep,
        }));
        """,
        "assert(kept.handle:purge(86400, 25, function () return {}, {}; end));",
    ),
    "revoke_inviter, of few": (
        'assert(invites.create_contact("nurse", true));', 'assert(invites.revoke_inviter("nurse") > 0);',
    ),
}
#: Once, at the end: everything of the user is over with it. Then it goes on batch by batch.
LAST = {
    "account deleted, of the user": 'prosody.events.fire_event("user-deleted", { username = name, host = module.host });',
}

DRIVER = """
local invites, now = module:depends("invites"), require "util.time".monotonic;
local name, jid = args.name, args.name.."@"..module.host;
local function made() return assert(invites.create_account(nil, { source = jid })).token; end
local function contact() return assert(invites.create_contact(name, true)).token; end
local spent = {};
for i = 1, args.calls do
    local user = "somebody"..args.serial.."x"..i;
    PREPARE
    local start = now();
    TIMED
    spent[i] = (now() - start) * 1e3;
end
return spent;
"""
#: What a turn of the loop takes in which a batch is ended.
WATCH = """
local now = require "util.time".monotonic;
local watched = { spent = {} };
module:shared("/example.com/invites_spec/watched").watched = watched;
local last = now();
module:add_timer(0.001, function ()
    local this = now();
    table.insert(watched.spent, (this - last) * 1e3 - 1);
    last = this;
    return 0.001;
end);
"""
WATCHED = """
local shared = module:shared("/example.com/invites_spec/watched");
local spent = shared.watched.spent;
shared.watched.spent = {};
return spent;
"""


@dataclass
class Waits:
    """Milliseconds."""

    what: str
    beside: str
    spent: list[float]
    idle: list[float]

    @property
    def p99(self) -> float:
        return _p99(self.spent) - _p99(self.idle)

    @property
    def worst(self) -> float:
        return max(self.spent) - max(self.idle)

    def __str__(self) -> str:
        return (
            f"| {self.what} | {self.beside} | {statistics.median(self.spent):.2f} | {_p99(self.spent):.1f} "
            f"| {max(self.spent):.1f} | {max(0, self.p99):.1f} | {max(0, self.worst):.1f} |"
        )


@dataclass
class Busy:
    waits: list[Waits] = field(default_factory=list)
    #: Milliseconds, by how many the inviter has open: create, the disk beside it, password change, deletion.
    inviter: dict[int, dict[str, list[float]]] = field(default_factory=dict)
    locked: float = 0
    #: Milliseconds for a thousand listed invites.
    listing: float = 0

    def creates(self) -> list[float]:
        """What a create takes, in bare commits to the disk as it was at that time; by how many the inviter has open."""
        return [
            statistics.median(create) / statistics.median(idle)
            for create, idle, *_ in (turns.values() for turns in self.inviter.values())
        ]


def _p99(spent: list[float]) -> float:
    return statistics.quantiles(spent, n=100, method="inclusive")[-1] if len(spent) > 1 else spent[0]


class Ours(OursOnSqlite):
    """With so many open invites of nurse's."""

    name = "busy"

    def fill(self) -> None:
        self.server.eval('module:depends("invites").create_contact("nurse", true, { source = "nurse@example.com" });')
        with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
            columns = [row[1] for row in database.execute("PRAGMA table_info(invite)")]
            model = dict(zip(columns, database.execute("SELECT * FROM invite").fetchone(), strict=True))
            database.execute("DELETE FROM invite")
            now = int(time.time())

            def row(number: int) -> list[object]:
                # Half of them contacts, half of them accounts.
                account = {"type": "register", "kind": "account", "username": None} if number % 2 else {}
                made = {
                    "digest": number.to_bytes(4, "big") * 8, "token": f"busy{number:020}", "created_at": now - number % DAY,
                    "expires": now + WEEK - number % DAY,
                }
                return [(model | made | account)[column] for column in columns]

            marks = ", ".join("?" * len(columns))
            # In no order, as digests come.
            numbers = ((number * 2_654_435_761) % 2**32 for number in range(self.size))
            database.executemany(f"INSERT INTO invite VALUES ({marks})", map(row, numbers))
        for user in ("nurse", "juliet"):
            self.server.add_user(user, "secret")


def commits(path: Path, number: int) -> list[float]:
    """What the disk takes for as much as an invite is: idle, nobody else writes."""
    spent = []
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("CREATE TABLE IF NOT EXISTS bare (content)")
        for _ in range(number):
            start = time.monotonic()
            database.execute("INSERT INTO bare VALUES (zeroblob(12000))")
            spent.append((time.monotonic() - start) * 1e3)
    return spent


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path, isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        yield
        lock.execute("ROLLBACK")


def act(side: Ours, what: str, serial: int, calls: int = CALLS) -> list[float]:
    prepare, timed = ACTIONS[what] if what in ACTIONS else ("", LAST[what])
    driver = DRIVER.replace("PREPARE", prepare).replace("TIMED", timed)
    return side.server.eval(driver, timeout=PATIENCE, name="nurse", calls=calls, serial=serial)


def beside(side: Ours, label: str, scratch: Path) -> list[Waits]:
    """Each action, in turns with the bare disk."""
    waits = []
    for serial, what in enumerate(ACTIONS):
        spent, idle = [], []
        for turn in range(4):
            spent += act(side, what, serial * 10 + turn, CALLS // 4)
            idle += commits(scratch / "bare.sqlite3", CALLS // 4)
        waits.append(Waits(what, label, spent, idle))
    return waits


def end(side: Ours, label: str, scratch: Path) -> list[Waits]:
    """The deletion of the user, and what the loop waits for while its invites are ended."""
    side.server.eval(WATCH)
    time.sleep(5)
    resting = side.server.eval(WATCHED)
    (what,) = LAST
    spent = act(side, what, 0, 1)
    waits = [Waits(f"{what} with {side.size:,} invites", label, spent, commits(scratch / "bare.sqlite3", CALLS))]
    side.server.eval(WATCHED)
    time.sleep(10)
    working = side.server.eval(WATCHED)
    with closing(sqlite3.connect(side.path)) as database:
        (left,) = database.execute("SELECT count(*) FROM invite WHERE ended_at IS NULL").fetchone()
    if left == 0 and side.size >= PENDING:
        raise Void("all were ended before anything was seen of it")
    waits.append(Waits("while they are ended, a turn of the loop", label, working, resting))
    return waits


async def pipelined(side: Ours) -> float:
    """How long all others wait in sum while one stream registers while another process has the lock."""
    token = side.server.eval('return module:depends("invites").create_account().token;')
    side.server.eval(WATCH)
    async with await open_stream(side.server) as stream:
        await stream.preauth(token)

        async def register(number: int) -> None:
            try:
                await stream.register(f"piped{number}", "secret")
            except Refused:
                return
            raise Void("an account was made while another process had the lock")

        await asyncio.sleep(1)
        side.server.eval(WATCHED)
        with locked(side.path):
            await asyncio.gather(*map(register, range(PIPELINED)))
        # The answers are there before the timer has seen how long the turn took.
        await asyncio.sleep(1)
        # Whatever held the loop for longer than a turn of it.
        return sum(spent for spent in side.server.eval(WATCHED) if spent > 5)


def listing(side: Ours) -> float:
    """What an iterator takes that goes through all of them at once."""
    listed = """
    local now, listed = require "util.time".monotonic, 0;
    local start = now();
    for _ in module:depends("invites").pending_invites() do listed = listed + 1; end
    return (now() - start) * 1e3, listed;
    """
    spent, listed_ones = side.server.eval(listed, timeout=PATIENCE)
    return spent / listed_ones * 1_000


def measure(version: str, scratch: Path) -> Busy:
    busy = Busy()
    for number in OPEN:
        with Ours(version, number, scratch) as side:
            create, idle = [], []
            for turn in range(4):
                create += act(side, "contact invite made (ad-hoc)", 1 + turn, CALLS // 4)
                idle += commits(scratch / "bare.sqlite3", CALLS // 4)
            turns = {"create": create, "idle": idle, "password changed": act(side, "password changed", 1)}
            if number == MILLION:
                busy.waits += beside(side, f"{MILLION:,} of the user", scratch)
            if number == OPEN[0]:
                busy.locked = asyncio.run(pipelined(side))
            (deleted,) = LAST
            if number == MILLION:
                busy.waits += end(side, f"{MILLION:,} of the user", scratch)
                turns[deleted] = busy.waits[-2].spent
            else:
                turns[deleted] = act(side, deleted, 1, 1)
            busy.inviter[number] = turns
    # Of others: the user who acts has none.
    with Ours(version, PENDING, scratch) as side:
        with closing(sqlite3.connect(side.path)) as database, database:
            database.execute("UPDATE invite SET inviter = NULL, username = NULL, type = 'register', kind = 'account', fields = NULL")
        busy.listing = listing(side)
        busy.waits += beside(side, f"{PENDING:,} pending", scratch)
    return busy


def table(busy: Busy) -> str:
    lines = [
        "| action | beside | median | p99 | worst | p99 over idle | worst over idle |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        *map(str, busy.waits),
    ]
    lines += ["", "| the inviter has open | create, median | in commits of the disk | create, worst | password change, worst | deletion |",
              "| ---: | ---: | ---: | ---: | ---: | ---: |"]
    for (number, turns), commits in zip(busy.inviter.items(), busy.creates(), strict=True):
        create, _, change, deletion = turns.values()
        lines.append(
            f"| {number:,} | {statistics.median(create):.2f} | {commits:.2f} | {max(create):.1f} | {max(change):.1f} "
            f"| {max(deletion):.1f} |"
        )
    lines += ["", f"Another process has the lock, {PIPELINED} registrations at once: others wait {busy.locked:.0f} ms in sum."]
    lines += ["", f"A listing of {PENDING:,}: {busy.listing:.1f} ms for a thousand."]
    return "\n".join(lines)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="bench-", dir=CHECKOUT / "target") as directory, ExitStack():
        print(table(measure(VERSIONS[0], Path(directory))))


if __name__ == "__main__":
    main()
