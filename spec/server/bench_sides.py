"""What `make bench` measures: mod_invites in real servers, ours and the bundled one on each of their storages, and the
same statements without any server.

Every server runs the same driver, below: it calls the public functions as other modules call them, and times each call.
"""

import hashlib
import json
import random
import re
import secrets
import shutil
import signal
import sqlite3
import subprocess
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Self

from postgresql import Postgres
from prosody import BUNDLED, CHECKOUT, Prosody

HOST = "example.com"
WEEK, DAY = 7 * 86400, 86400
#: In the place of READER each invite has a number of its own, as wide.
READER = f"reader {0:10}"
#: About 100 bytes as JSON. No roles: giving them is the work of another module.
ADDITIONAL_DATA = {
    "groups": ["reading-group"], "note": f"for {READER} of the library", "source": "desk@example.com",
}
#: As many tokens are known of each store: more than are used, so that what is looked up stays random.
SAMPLE = 20_000
#: What their tokens begin with in the bundled module's stores; ten digits follow.
PREFIX = "BenchmarkToken"
PGBENCH = max(Path("/usr/lib/postgresql").glob("*/bin/pgbench"), default=Path("pgbench"))
#: And never fewer than these.
LEAST = 5
#: So few invites would be most of them others after a while: what is used is replaced, what is added taken away.
SMALL = 1_000
#: For one request to a server: rewriting a million invites takes the bundled module this long.
PATIENCE = 900

Microseconds = list[float]


class Void(Exception):
    """What was measured cannot be compared."""


DRIVER = """
local invites, now = module:depends("invites"), require "util.time".monotonic;
local spent, count, created = {}, 0, {};
local run = {};

function run.create()
    local data = {};
    for i = 1, args.number do
        local note = args.additional_data.note:gsub(args.reader, ("reader %10d"):format(args.serial * 1000 + i));
        data[i] = { groups = { args.additional_data.groups[1] }, note = note, source = args.additional_data.source };
    end
    for i = 1, args.number do
        local start = now();
        local invite, err = invites.create_account(nil, data[i]);
        spent[i] = (now() - start) * 1e6;
        created[i] = assert(invite, err).token;
    end
    count = args.number;
end

function run.get()
    local get = invites.get;
    for i, token in ipairs(args.tokens) do
        local start = now();
        local invite = get(token);
        spent[i] = (now() - start) * 1e6;
        count = count + (invite and 1 or 0);
    end
end

run["get+use"] = function ()
    local get = invites.get;
    for i, token in ipairs(args.tokens) do
        local start = now();
        local invite = get(token);
        local used = invite and invite:use();
        spent[i] = (now() - start) * 1e6;
        count = count + (used and 1 or 0);
    end
end

-- From the token to the use, as a stream goes through it; the account itself is the work of others. What those others
-- pass is there before, so that nobody collects it meanwhile.
function run.register()
    local get, host = invites.get, module.host;
    local registering, registered = {}, {};
    for i = 1, args.number do
        local username = ("%s%d"):format(args.names, i);
        local session = { type = "c2s_unauthed" };
        registering[i] = { username = username, host = host, ip = "::1", session = session, allowed = true };
        registered[i] = { username = username, host = host, source = "mod_register", session = session };
        spent[i] = 0;
    end
    for i, token in ipairs(args.tokens) do
        local before, after = registering[i], registered[i];
        local start = now();
        before.session.validated_invite = get(token);
        module:fire_event("user-registering", before);
        if before.allowed then module:fire_event("user-registered", after); end
        spent[i] = (now() - start) * 1e6;
        count = count + (before.allowed and 1 or 0);
    end
end

function run.list()
    local start = now();
    for _ in invites.pending_account_invites() do count = count + 1; end
    spent[1] = (now() - start) * 1e6;
end

run[args.operation]();
return count, spent, created;
"""


class Side:
    """One store with `size` pending invites, reached one way."""

    name: str
    size: int
    pid: int
    #: The file that it keeps them in. PostgreSQL's many, and its own memory, are left to it.
    path: Path | None = None

    def __init__(self) -> None:
        self.tokens: list[str] = []

    def warm(self) -> None:
        """Reads its file: the machine, or its host, may have given that memory to somebody else since the last turn."""
        if self.path:
            with self.path.open("rb", buffering=0) as file:
                while file.read(1 << 20):
                    pass

    def ask(self, operation: str, number: int, tokens: list[str]) -> tuple[int, Microseconds, list[str]]:
        """How many of the calls did what they are for, how long each took, and the tokens that were made."""
        raise NotImplementedError

    def run(self, operation: str, number: int, *, is_stocked: bool = False) -> Microseconds:
        """`number` calls that do what they are for, and nothing beside them if the store is stocked for them."""
        tokens, expected = [], number
        match operation:
            case "get hit":
                if self.size > SMALL and len(self.tokens) < SMALL:
                    raise Void(f"{self.name} at {self.size:,} knows {len(self.tokens)} tokens: others would be found faster")
                tokens = random.choices(self.tokens, k=number)
            case "get miss":
                tokens, expected = [secrets.token_hex(12) for _ in range(number)], 0
            case "get+use" | "register":
                if not is_stocked:
                    self.stock(number)
                tokens = [self.tokens.pop() for _ in range(number)]
            case "list":
                expected = None
        count, spent, _ = self.ask("get" if operation.startswith("get ") else operation, number, tokens)
        if expected not in (count, None) or operation == "list" and not self.size / 2 <= count <= self.size * 2 + 300:
            raise Void(f"{self.name} at {self.size:,}: {count} of {expected} calls did what they are for ({operation})")
        return spent

    def stock(self, number: int) -> None:
        """Sees that there are tokens for so many uses, and that a small store stays as large as it is."""
        if self.size <= SMALL or len(self.tokens) < number + LEAST:
            self.tokens = self.ask("create", number, [])[2] + self.tokens

    def trim(self) -> None:
        """Takes away what was created since it was filled."""
        raise NotImplementedError

    def memory(self) -> int:
        """Bytes of memory of the process, mapped pages counted."""
        rollup = Path(f"/proc/{self.pid}/smaps_rollup").read_text()
        return next(int(line.split()[1]) for line in rollup.splitlines() if line.startswith("Rss:")) * 1024

    def peak(self, operation: str) -> int:
        """How many bytes more than before the process has at most while it does one thing."""
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        before = self.memory()
        self.run(operation, 1)
        status = Path(f"/proc/{self.pid}/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024 - before

    def flushes(self, operation: str, number: int, log: Path) -> int:
        """How often the thread that serves clients waits for the disk."""
        self.stock(number)
        command = ["strace", "-e", "trace=fsync,fdatasync", "-o", str(log), "-p", str(self.pid)]
        with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as tracer:
            assert tracer.stderr
            attached = tracer.stderr.readline()
            if "attached" not in attached:
                raise Void(f"cannot look at the flushes of {self.name}: {attached}")
            self.run(operation, number, is_stocked=True)
            tracer.send_signal(signal.SIGINT)
        return log.read_text().count("sync(")


class InServer(Side):
    """mod_invites in a server of its own."""

    plugin_paths: tuple[Path, ...] = BUNDLED
    storage = "internal"
    config = ""

    def __init__(self, version: str, size: int, scratch: Path) -> None:
        super().__init__()
        self.size = size
        data = scratch / f"{self.name}-{size}".replace(" ", "-")
        data.mkdir()
        self.server = Prosody(
            version, plugin_paths=self.plugin_paths, modules=("invites", "invites_register"), data_path=data,
            storage=self.storage, config=self.config, log_level="info",
        )
        self._asked = 0

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.callback(self.__exit__)
            self.server.start(PATIENCE)
            self.fill()
            stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        # Nothing of it is looked at any more, and the bundled module may be busy for a minute.
        self.server.kill()
        self.server.close()

    @property
    def pid(self) -> int:
        assert self.server.pid is not None
        return self.server.pid

    def fill(self) -> None:
        raise NotImplementedError

    def ask(self, operation: str, number: int, tokens: list[str]) -> tuple[int, Microseconds, list[str]]:
        self._asked += 1
        count, spent, created = self.server.eval(
            DRIVER, timeout=PATIENCE, operation=operation, number=number, tokens=tokens, serial=self._asked,
            additional_data=ADDITIONAL_DATA, reader=READER, names=f"user{self._asked}x",
        )
        return count, spent or [], created or []


class OursOnSqlite(InServer):
    name = "ours sqlite"
    plugin_paths = (CHECKOUT / "lua",)

    @property
    def path(self) -> Path:
        return self.server.data_path / "invites.sqlite3"

    def trim(self) -> None:
        trim_sqlite(self)

    def fill(self) -> None:
        self.ask("create", 1, [])
        with Bare() as bare:
            bare.open(self.path, self.path)
            bare.fill(self.size)
        self.tokens = sqlite_tokens(self.path)


class Bare(Side):
    """Ours without Prosody, Lua or the domain: the store's statements on SQLite. See benches/bare_sqlite.rs."""

    name = "bare sqlite"

    def __init__(self) -> None:
        super().__init__()
        self._process = subprocess.Popen(
            [CHECKOUT / "spec" / "cargo.sh", "bench", "--quiet", "--locked", "--bench", "bare_sqlite"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )

    @classmethod
    def beside(cls, ours: OursOnSqlite) -> Self:
        """On a copy of the module's file: the same schema, the same invites."""
        bare = cls()
        bare.size = ours.size
        path = ours.path.with_name("bare.sqlite3")
        shutil.copyfile(ours.path, path)
        bare.open(path, ours.path)
        bare.tokens = list(ours.tokens)
        return bare

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def open(self, path: Path, model: Path) -> None:
        self.path = path
        pid, self.journal_mode, self.synchronous = self._ask("open", str(path), str(model))
        self.pid = int(pid)

    def trim(self) -> None:
        trim_sqlite(self)

    def fill(self, number: int) -> None:
        self._ask("fill", str(number))

    def ask(self, operation: str, number: int, tokens: list[str]) -> tuple[int, Microseconds, list[str]]:
        answer = self._ask(operation, *(tokens or [str(number)]))
        spent = [int(word) / 1000 for word in answer[1:] if word.isdecimal()]
        return int(answer[0]), spent, [word for word in answer[1:] if not word.isdecimal()]

    def _ask(self, *words: str) -> list[str]:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write("\t".join(words) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Void("bare_sqlite ended early")
        return answer.rstrip("\n").split("\t")


class OursOnPostgres(InServer):
    name = "ours postgresql"
    plugin_paths = (CHECKOUT / "lua",)

    def __init__(self, version: str, size: int, scratch: Path, postgres: Postgres) -> None:
        self.postgres, self.database = postgres, postgres.new_database()
        self.config = f'invite_storage = "postgresql"; invite_postgresql = "{postgres.url(self.database)}";'
        super().__init__(version, size, scratch)

    def fill(self) -> None:
        self.ask("create", 1, [])
        named = "SELECT attname FROM pg_attribute WHERE attrelid = 'invite'::regclass AND attnum > 0 ORDER BY attnum"
        columns = [row[0] for row in self.postgres.query(self.database, named)]
        now = int(time.time())
        new = {
            "token": "made.token", "digest": "sha256(convert_to(made.token, 'UTF8'))",
            "fields": f"regexp_replace(model.fields, 'reader +[0-9]+', 'reader ' || lpad(made.i::text, 10))",
            "created_at": f"{now} - made.i::bigint * {6 * DAY} / {self.size}",
            "expires": f"{now + WEEK} - made.i::bigint * {6 * DAY} / {self.size}",
        }
        self.postgres.query(
            self.database,
            f"""
            INSERT INTO invite ({", ".join(columns)})
            SELECT {", ".join(new.get(column, f"model.{column}") for column in columns)}
            FROM (SELECT * FROM invite LIMIT 1) AS model,
                (SELECT i, '{PREFIX}' || lpad(i::text, 10, '0') AS token FROM generate_series(1, {self.size}) AS i
                ORDER BY random()) AS made;
            """,
        )
        for statement in ("VACUUM ANALYZE invite", "CHECKPOINT"):
            self.postgres.tell(f"sql {self.database} {statement.replace('invite', 'prosody_invites.invite')}")
        chosen = random.sample(range(1, self.size + 1), k=min(SAMPLE, self.size))
        self.tokens = [f"{PREFIX}{number:010d}" for number in chosen]

    def trim(self) -> None:
        known = ", ".join(f"'{token}'" for token in self.tokens)
        self.postgres.query(
            self.database,
            f"DELETE FROM invite WHERE token IS NULL OR token NOT IN ({known}); DELETE FROM redemption;",
        )


class BareLibpq(Side):
    """The statements of ours on PostgreSQL without Prosody, Lua or the domain: sent by pgbench, which is libpq."""

    name = "bare libpq"
    OPERATIONS = ("create", "get hit", "get miss")

    def __init__(self, ours: OursOnPostgres, scratch: Path) -> None:
        super().__init__()
        self.size, self._ours, self._scratch = ours.size, ours, scratch / f"pgbench-{ours.size}"
        self._scratch.mkdir()
        (row,) = ours.postgres.query(ours.database, "SELECT row_to_json(invite) FROM invite LIMIT 1")
        model = json.loads("|".join(row))
        made = {
            "token": "'made' || :i", "digest": "sha256(convert_to('made' || :i, 'UTF8'))",
            "expires": str(int(time.time()) + WEEK),
        }
        insert = _postgres_statement("INSERT")
        columns = insert.partition("(")[2].partition(")")[0].split(", ")
        values = [made.get(column, _literal(model[column])) for column in columns]
        find = _postgres_statement("FIND")
        known = f"sha256(convert_to('{PREFIX}' || lpad(:i::text, 10, '0'), 'UTF8'))"
        self._scripts = {
            "create": (9 * 10**15, insert, values),
            "get hit": (self.size, find, [f"'{HOST}'", known]),
            "get miss": (self.size, find, [f"'{HOST}'", known.replace(PREFIX, "NoSuchTokenAs_")]),
        }

    def run(self, operation: str, number: int) -> Microseconds:
        upto, statement, values = self._scripts[operation]
        script, log = self._scratch / "script.sql", self._scratch / "log"
        text = re.sub(r"\?(\d+)", lambda place: values[int(place[1]) - 1], statement)
        script.write_text(f"\\set i random(1, {upto})\n{text};\n")
        postgres = self._ours.postgres
        subprocess.run(
            [PGBENCH, "--no-vacuum", "--protocol=prepared", f"--transactions={number}", f"--file={script}", "--log",
             f"--log-prefix={log}", "--host=127.0.0.1", f"--port={postgres.port}", f"--username={postgres.USER}",
             self._ours.database],
            check=True, capture_output=True,
            env={"PGPASSWORD": postgres.PASSWORD, "PGOPTIONS": "-c search_path=prosody_invites"},
        )
        spent = []
        for written in self._scratch.glob("log.*"):
            spent += [float(line.split()[2]) for line in written.read_text().splitlines()]
            written.unlink()
        # Its first call prepares the statement; ours has done that before.
        return spent[1:] if len(spent) > 1 else spent


def _postgres_statement(name: str) -> str:
    source = (CHECKOUT / "src" / "store" / "sql.rs").read_text()
    found = re.search(rf'const {name}: &str =\s*(\w+)!\(\s*"(.*?)"\s*\);', source, re.DOTALL)
    macro = found and re.search(rf"macro_rules! {found[1]} {{(.*?)\n}}", source, re.DOTALL)
    if not macro:
        raise Void(f"the stores have no statement {name}")
    return re.sub(r"\\\n\s*", "", "".join(re.findall(r'"(.*?)"', macro[1], re.DOTALL)) + found[2])


def _literal(value: object) -> str:
    if value is None:
        return "NULL"
    return "'" + str(value).replace("'", "''") + "'" if isinstance(value, str) else str(value).upper()


class Bundled(InServer):
    """The module that Prosody brings, on one of its storages."""

    def fill(self) -> None:
        self.server.eval(
            """
            local store, now = module:open_store("invite_token"), os.time();
            local rows = {};
            -- What is stored in one file may not hold one table twice.
            local function copy(t)
                if type(t) ~= "table" then return t; end
                local new = {};
                for k, v in pairs(t) do new[k] = copy(v); end
                return new;
            end
            for i = 1, args.size do
                local token = ("%s%010d"):format(args.prefix, i);
                local created_at = now - math.floor(i / args.size * 6 * 86400);
                local additional_data = copy(args.additional_data);
                additional_data.note = additional_data.note:gsub(args.reader, ("reader %10d"):format(i));
                rows[token] = {
                    type = "register", jid = module.host, token = token, allow_registration = true, reusable = false,
                    uri = ("xmpp:%s?register;preauth=%s"):format(module.host, token),
                    additional_data = additional_data, created_at = created_at,
                    expires = created_at + 7 * 86400,
                };
            end
            assert(store:set(nil, rows));
            """,
            timeout=PATIENCE, size=self.size, prefix=PREFIX, additional_data=ADDITIONAL_DATA, reader=READER,
        )
        chosen = random.sample(range(1, self.size + 1), k=min(SAMPLE, self.size))
        self.tokens = [f"{PREFIX}{number:010d}" for number in chosen]

    def trim(self) -> None:
        self.server.eval(
            """
            local invites, known, extra = module:depends("invites"), {}, {};
            for _, token in ipairs(args.tokens) do known[token] = true; end
            for token in invites.pending_account_invites() do
                if not known[token] then table.insert(extra, token); end
            end
            for _, token in ipairs(extra) do assert(invites.delete_account_invite(token)); end
            """,
            timeout=PATIENCE, tokens=self.tokens,
        )


class BundledOnInternal(Bundled):
    name = "bundled internal"

    @property
    def path(self) -> Path:
        return self.server.data_path / HOST.replace(".", "%2e") / "invite_token.dat"


class OursOnInternal(BundledOnInternal):
    """Ours on the same storage, written in the same way."""

    name = "ours prosody"
    plugin_paths = (CHECKOUT / "lua",)
    config = 'invite_storage = "prosody";'


class BundledOnMemory(Bundled):
    name = "bundled memory"
    storage = "memory"


class BundledOnSql(Bundled):
    name = "bundled sql"
    storage = "sql"
    config = 'sql = { driver = "SQLite3", database = "prosody.sqlite" };'

    @property
    def path(self) -> Path:
        return self.server.data_path / "prosody.sqlite"

    def fill(self) -> None:
        # Through the module's own interface it is a quarter of an hour for a million.
        self.ask("create", 1, [])
        with closing(sqlite3.connect(self.path, timeout=60)) as database, database:
            now = int(time.time())

            def row(number: int) -> tuple[str, str, str, str, str, str]:
                token, created_at = f"{PREFIX}{number:010d}", now - number * 6 * DAY // self.size
                note = ADDITIONAL_DATA["note"].replace(READER, f"reader {number:10}")
                invite = {
                    "type": "register", "jid": HOST, "token": token, "allow_registration": True, "reusable": False,
                    "uri": f"xmpp:{HOST}?register;preauth={token}", "additional_data": ADDITIONAL_DATA | {"note": note},
                    "created_at": created_at, "expires": created_at + WEEK,
                }
                return HOST, "", "invite_token", token, "json", json.dumps(invite, separators=(",", ":"))

            numbers = list(range(1, self.size + 1))
            # In the order in which random tokens come.
            random.shuffle(numbers)
            database.executemany(
                'INSERT INTO prosody ("host", "user", "store", "key", "type", "value") VALUES (?, ?, ?, ?, ?, ?)',
                map(row, numbers),
            )
        self.tokens = [f"{PREFIX}{number:010d}" for number in numbers[:SAMPLE]]


def sqlite_tokens(path: Path) -> list[str]:
    """Of invites from all over the file."""
    with closing(sqlite3.connect(path)) as database:
        (stored,) = database.execute("SELECT count(*) FROM invite").fetchone()
        if stored <= SAMPLE:
            found = database.execute("SELECT token FROM invite").fetchall()
        else:
            find = "SELECT token FROM invite WHERE host = ? AND digest >= ? ORDER BY digest LIMIT 1"
            places = ((HOST, hashlib.sha256(str(number).encode()).digest()) for number in range(SAMPLE))
            found = [row for place in places for row in database.execute(find, place)]
    tokens = list({token for (token,) in found})
    random.shuffle(tokens)
    return tokens


def trim_sqlite(side: OursOnSqlite | Bare) -> None:
    with closing(sqlite3.connect(side.path, timeout=60)) as database, database:
        known = json.dumps(side.tokens)
        database.execute(
            "DELETE FROM invite WHERE token IS NULL OR token NOT IN (SELECT value FROM json_each(?))", (known,)
        )
        database.execute("DELETE FROM redemption")
