"""Invites in PostgreSQL: servers that share them, and what they do while the database is away, or lies.

What every store keeps, and what becomes of each call whose connection is cut in its commit, is tested in Rust
(src/store/postgres/tests.rs).
"""

import asyncio
import contextlib
import hashlib
import json
import re
import time
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from client import Refused, Stream, login, open_stream
from postgresql import Authority, Network, Postgres, with_tls
from prosody import CHECKOUT, VERSIONS, Prosody

pytestmark = pytest.mark.storage

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register", "ping")
CREATE = 'local invite, why = module:depends("invites").create_account(); return invite and invite.token, why;'
FAILED = (None, "internal-server-error")

#: Seconds: the default of invite_postgresql_deadline, what a client may wait beyond it, and how soon all is well again.
DEADLINE, MARGIN, RECOVERY = 1, 0.1, 5

ROUNDS, CONTESTANTS = 5, 50

COMMIT = b"COMMIT\0"


@pytest.fixture(scope="module")
def shared_postgres() -> Iterator[Postgres]:
    """For tests that leave it as it is."""
    with Postgres() as postgres:
        yield postgres


@pytest.fixture
def own_postgres() -> Iterator[Postgres]:
    """For tests that stop it, or configure it."""
    with Postgres() as postgres:
        yield postgres


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that keep their invites in the database of a URL."""

    def made(url: str | None, *, modules: tuple[str, ...] = MODULES, config: str = "", **options: Any) -> Prosody:
        where = f'invite_postgresql = "{url}";' if url is not None else ""
        config = f'invite_storage = "postgresql"; {where} {config}'
        return prosody(plugin_paths=(native_lua,), modules=modules, config=config, **options)

    return made


@pytest.fixture
def make_two(make: Make) -> Callable[..., tuple[Prosody, Prosody]]:
    """Two servers for one host, with one database and one directory of accounts."""

    def made(url: str, **options: Any) -> tuple[Prosody, Prosody]:
        first = make(url, **options)
        return first, make(url, data_path=first.data_path, config='admin_socket = "second.sock";', **options)

    return made


def errors(server: Prosody) -> list[str]:
    return re.findall(r"example\.com:invites\terror\t(.*)", server.log())


def create(server: Prosody) -> str:
    token, why = server.eval(CREATE)
    assert why is None, errors(server)[-1:]
    return token


def accounts(server: Prosody) -> list[str]:
    found = server.eval(
        """
        local found = {};
        for username in require "core.usermanager".users(module.host) do table.insert(found, username); end
        return found;
        """
    )
    return sorted(found)


async def register(server: Prosody, token: str, username: str) -> str:
    """The outcome: "registered", or the condition of the refusal."""
    async with await open_stream(server) as stream:
        try:
            await stream.preauth(token)
            await stream.register(username, "secret")
        except Refused as refused:
            return refused.condition
    return "registered"


async def eventually(attempt: Callable[[], Any], within: float = RECOVERY) -> Any:
    """What it gives in the end, if that is anything that counts as true in time."""
    deadline = time.monotonic() + within
    while True:
        result = attempt()
        if asyncio.iscoroutine(result):
            result = await result
        if result:
            return result
        assert time.monotonic() < deadline, f"not within {within} s"
        await asyncio.sleep(0.02)


# Servers that share a database


def test_an_invite_made_by_anybody_is_everybodys(
    make_two: Callable[..., tuple[Prosody, Prosody]], shared_postgres: Postgres
) -> None:
    servers = make_two(shared_postgres.url(shared_postgres.new_database()))
    done = servers[0].prosodyctl("mod_invites", "generate", "example.com")
    assert (done.returncode, done.stderr) == (0, "")
    tokens = [done.stdout.strip().partition("preauth=")[2], *map(create, servers)]
    get = 'local invite, why = module:depends("invites").get(args.token); return invite ~= nil, why;'
    for server in servers:
        assert [server.eval(get, token=token) for token in tokens] == [(True, None)] * 3
    assert servers[1].eval('return module:depends("invites").delete_account_invite(args.token)', token=tokens[0])
    assert servers[0].eval(get, token=tokens[0]) == (False, "token-invalid")
    assert not list(servers[0].data_path.glob("invites.sqlite3*"))


@pytest.mark.parametrize("authentication", ["spec_slow", "internal_plain"])
async def test_one_token_makes_one_account_on_two_servers(
    make_two: Callable[..., tuple[Prosody, Prosody]], shared_postgres: Postgres, authentication: str
) -> None:
    database = shared_postgres.new_database()
    servers = make_two(shared_postgres.url(database), authentication=authentication)
    async with AsyncExitStack() as stack:
        streams = [
            await stack.enter_async_context(await open_stream(servers[index % 2])) for index in range(CONTESTANTS)
        ]

        async def contend(stream: Stream, username: str) -> str:
            try:
                await stream.register(username, "secret")
            except Refused as refused:
                return refused.condition
            return "registered"

        for number in range(ROUNDS):
            token = create(servers[number % 2])
            await asyncio.gather(*(stream.preauth(token) for stream in streams))
            names = (f"round{number}-{index}" for index in range(CONTESTANTS))
            outcomes = Counter(await asyncio.gather(*map(contend, streams, names)))
            assert outcomes["registered"] == 1, outcomes
            assert outcomes.keys() <= {"registered", "resource-constraint", "forbidden"}, outcomes
    assert Counter(name.partition("-")[0] for name in accounts(servers[0])) == {f"round{n}": 1 for n in range(ROUNDS)}
    assert shared_postgres.query(database, "SELECT DISTINCT uses, max_uses FROM invite") == [["1", "1"]]
    assert shared_postgres.query(database, "SELECT * FROM claim") == []


async def test_ten_thousand_tokens_raced_by_two_servers_are_each_used_once(
    make_two: Callable[..., tuple[Prosody, Prosody]], shared_postgres: Postgres
) -> None:
    database = shared_postgres.new_database()
    servers = make_two(shared_postgres.url(database))
    piece, pieces = 1000, 10
    used: Counter[str] = Counter()
    won: Counter[int] = Counter()
    for _ in range(pieces):
        tokens = await evaluate(
            servers[0],
            """
            local invites, tokens = module:depends("invites"), {};
            for i = 1, args.number do tokens[i] = assert(invites.create_account()).token; end
            return tokens;
            """,
            number=piece,
        )
        both = await asyncio.gather(*(
            evaluate(
                server,
                """
                local use, used = module:depends("invites").use, {};
                for _, token in ipairs(args.tokens) do
                    local is_used, why = use(token);
                    if is_used then table.insert(used, token); else assert(why == "token-used" or why == "token-invalid", why); end
                end
                return used;
                """,
                tokens=tokens,
            )
            for server in servers
        ))
        for number, mine in enumerate(both):
            used.update(mine or [])
            won[number] += len(mine or [])
    assert len(used) == piece * pieces and set(used.values()) == {1}
    assert min(won[0], won[1]) > 0, "there was no race"
    assert shared_postgres.query(database, "SELECT count(*) FROM redemption") == [[str(piece * pieces)]]
    assert shared_postgres.query(database, "SELECT DISTINCT uses, max_uses FROM invite") == [["1", "1"]]


@pytest.mark.parametrize("point", ["after claim", "before redeem"])
async def test_another_server_settles_what_a_dead_one_has_claimed(
    make_two: Callable[..., tuple[Prosody, Prosody]], shared_postgres: Postgres, point: str
) -> None:
    database = shared_postgres.new_database()
    dead, alive = make_two(shared_postgres.url(database), modules=(*MODULES, "spec_failpoint"))
    token = create(dead)
    async with await open_stream(alive) as stream:
        await stream.preauth(token)
        async with await open_stream(dead) as dying:
            await dying.preauth(token)
            dead.eval('module:depends("spec_failpoint").arm(args.point);', point=point)
            with pytest.raises(ConnectionError):
                await dying.register("juliet", "secret")
        await eventually(lambda: not dead.running)
        dead.kill()
        with pytest.raises(Refused) as refused:
            await stream.register("romeo", "secret")
        assert refused.value.condition == "resource-constraint"
        # That its lock is free proves nothing: somebody has to look for a lease.
        lease = 2
        alive.set_lease(lease)
        began = time.monotonic()

        async def is_free() -> bool:
            try:
                await stream.register("romeo", "secret")
            except Refused as refused:
                return refused.condition != "resource-constraint"
            return True

        await eventually(is_free, within=2 * lease)
        assert time.monotonic() - began >= lease - MARGIN
    assert accounts(alive) == ["juliet" if point == "before redeem" else "romeo"]
    assert shared_postgres.query(database, "SELECT uses FROM invite") == [["1"]]


def test_what_the_bundled_module_stored_is_taken_over_and_can_go_back(
    prosody: Make, make: Make, shared_postgres: Postgres, tmp_path: Path
) -> None:
    bundled = prosody(modules=("invites",), data_path=tmp_path)
    tokens = [create(bundled) for _ in range(3)]
    bundled.stop()
    server = make(shared_postgres.url(shared_postgres.new_database()), data_path=tmp_path)
    get = 'return module:depends("invites").get(args.token) ~= nil;'
    assert all(server.eval(get, token=token) for token in tokens)
    assert server.eval('return module:depends("invites").use(args.token)', token=tokens[0]) is True
    made_here = create(server)
    done = server.prosodyctl("mod_invites", "export", "example.com", "--to", "prosody")
    assert (done.returncode, done.stderr) == (0, "")
    server.stop()
    bundled.start()
    assert [bundled.eval(get, token=token) for token in (*tokens, made_here)] == [False, True, True, True]


def test_an_operators_commands_work_on_it_as_on_any_other(make: Make, shared_postgres: Postgres) -> None:
    server, other = (make(shared_postgres.url(shared_postgres.new_database())) for _ in range(2))

    def run(command: str, *args: str, on: Prosody = server, code: int = 0) -> str:
        done = on.prosodyctl("mod_invites", command, "example.com", *args)
        assert done.returncode == code, done.stderr
        return done.stdout

    def listed(on: Prosody = server) -> list[tuple[str, str]]:
        lines = (run("list", "--json", on=on) + run("history", "--json", on=on)).splitlines()
        return sorted((row["id"], row["state"]) for row in map(json.loads, lines))

    for args in ((), ("--max-uses", "5"), ("--username", "romeo"), ("--note", "summer")):
        run("generate", *args)
    ids = [id for id, _ in listed()]
    run("revoke", ids[0], "--why", "a mistake")
    run("pause", ids[1])
    run("extend", ids[2], "--expires-after", "2 weeks")
    assert "a mistake" in run("show", ids[0])
    states = ["revoked", "paused", "pending", "pending"]
    assert listed() == list(zip(ids, states, strict=True))
    assert "pending                  2" in run("stats")
    exported = run("export")
    assert "4 invites imported" in other.prosodyctl("mod_invites", "import", "example.com", "-", input=exported).stdout
    assert listed(other) == listed()
    assert run("export", on=other) == exported
    found = run("check", code=1)  # fsync is off here
    assert f"can be used, with schema 5 on {shared_postgres.name}" in found
    assert "warning: fsync is off" in found and "critical" not in found
    assert Postgres.PASSWORD not in found


@pytest.mark.parametrize("daemonize", [False, True], ids=["-F", "-D"])
async def test_the_database_is_connected_to_once_and_after_the_fork(
    make: Make, shared_postgres: Postgres, daemonize: bool
) -> None:
    """A connection that was there when 0.12 forked for -D would be shared with a process that is gone."""
    database = shared_postgres.new_database()
    server = make(shared_postgres.url(database), daemonize=daemonize)
    connections = f"SELECT count(*) FROM pg_stat_activity WHERE datname = '{database}' AND usename = 'prosody'"
    # It looks for claims of servers that have died.
    await eventually(lambda: shared_postgres.query("postgres", connections) == [["1"]])
    create(server)
    assert shared_postgres.query("postgres", connections) == [["1"]]
    server.stop()
    await eventually(lambda: shared_postgres.query("postgres", connections) == [["0"]])


def test_the_environment_says_where_the_database_is(
    make: Make, shared_postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = shared_postgres.new_database()
    for name, value in {
        "PGHOST": "127.0.0.1", "PGPORT": str(shared_postgres.port), "PGUSER": Postgres.USER,
        "PGPASSWORD": Postgres.PASSWORD, "PGDATABASE": database,
    }.items():
        monkeypatch.setenv(name, value)
    create(make(None))
    create(make(f"postgresql://127.0.0.1/{database}?sslmode=disable"))
    for name in ("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "PGDATABASE"):
        monkeypatch.delenv(name)
    assert shared_postgres.query(database, "SELECT count(*) FROM invite") == [["2"]]


def test_backup_says_that_it_does_not_copy_what_is_in_postgresql(make: Make, shared_postgres: Postgres) -> None:
    server = make(shared_postgres.url(shared_postgres.new_database()))
    create(server)
    done = server.prosodyctl("mod_invites", "backup", "copy")
    assert done.returncode == 1
    *told, refused = done.stderr.splitlines()
    assert "prosodyctl mod_invites: the invites of example.com are in PostgreSQL, which pg_dump copies" in told
    assert "nothing was stored yet" in refused


# The database is away


def frozen(postgres: Postgres, network: Network) -> Iterator[None]:
    postgres.tell("freeze")
    yield
    postgres.tell("thaw")


def killed(postgres: Postgres, network: Network) -> Iterator[None]:
    postgres.tell("kill")
    yield
    postgres.tell("start")


def stopped(postgres: Postgres, network: Network) -> Iterator[None]:
    postgres.tell("stop")
    yield
    postgres.tell("start")


def swallowed(postgres: Postgres, network: Network) -> Iterator[None]:
    network.swallows = True
    yield
    network.swallows = False


TROUBLES = [frozen, killed, stopped, swallowed]


class Pings:
    """How long a client waited at most for the answer to a ping, one after the other."""

    longest = 0.0

    async def send(self, stream: Stream) -> None:
        while True:
            sent = time.monotonic()
            await stream.iq("get", ET.Element("{urn:xmpp:ping}ping"), to="example.com")
            self.longest = max(self.longest, time.monotonic() - sent)
            await asyncio.sleep(0.02)


@asynccontextmanager
async def pinging(server: Prosody) -> AsyncIterator[Pings]:
    pings = Pings()
    async with await login(server, "juliet", "pw") as stream:
        sending = asyncio.create_task(pings.send(stream))
        try:
            yield pings
        finally:
            sending.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sending


async def evaluate(server: Prosody, lua: str, **args: Any) -> Any:
    """Without keeping the clients of this test waiting."""
    return await asyncio.to_thread(server.eval, lua, **args)


@pytest.mark.parametrize("trouble", TROUBLES)
async def test_while_the_database_is_away_invites_fail_nobody_waits_long_and_all_comes_back(
    make: Make, prosody: Make, own_postgres: Postgres, trouble: Callable[[Postgres, Network], Iterator[None]]
) -> None:
    database = own_postgres.new_database()
    # A busy machine keeps clients waiting as well: this one tells how long.
    other = prosody(modules=("ping",))
    with Network(own_postgres.port) as network:
        server = make(own_postgres.url(database, port=network.port))
        for each in (server, other):
            each.add_user("juliet", "pw")
        tokens = [create(server) for _ in range(5)]
        async with pinging(server) as pings, pinging(other) as others:
            away = trouble(own_postgres, network)
            await asyncio.to_thread(next, away)
            began = time.monotonic()
            while time.monotonic() - began < 3:
                assert await evaluate(server, CREATE) == FAILED
                get = 'local invite, why = module:depends("invites").get(args.token); return invite, why;'
                assert await evaluate(server, get, token=tokens[0]) == FAILED
                assert await register(server, tokens[0], "romeo") == "internal-server-error"
            await asyncio.to_thread(next, away, None)
            came_back = time.monotonic()
            while (await evaluate(server, CREATE))[0] is None:
                assert time.monotonic() - came_back < RECOVERY
            assert time.monotonic() - came_back < RECOVERY
            for number, token in enumerate(tokens):
                assert await register(server, token, f"user{number}") == "registered"
        assert pings.longest < DEADLINE + MARGIN + others.longest
        assert accounts(server) == ["juliet", *(f"user{number}" for number in range(5))]
        used = own_postgres.query(database, "SELECT count(*) FROM invite WHERE uses = 1 AND max_uses = 1")
        assert used == [["5"]]
        assert own_postgres.query(database, "SELECT * FROM claim") == []
        assert Postgres.PASSWORD not in server.log() and "p%40ss" not in server.log()
        assert all("the PostgreSQL database" in error for error in errors(server)), errors(server)


async def test_a_restart_while_many_register_loses_nothing_and_doubles_nothing(
    make_two: Callable[..., tuple[Prosody, Prosody]], own_postgres: Postgres
) -> None:
    database = own_postgres.new_database()
    servers = make_two(own_postgres.url(database), authentication="spec_slow")
    tokens = [create(servers[index % 2]) for index in range(40)]

    is_away = asyncio.Event()

    async def persist(index: int) -> int:
        """Tries until it has an account; how often. Half of them come when the database has gone."""
        if index >= 20:
            await is_away.wait()
        for attempt in range(1, 100):
            outcome = await register(servers[index % 2], tokens[index], f"user{index}")
            if outcome in ("registered", "conflict"):
                return attempt
            assert outcome in ("internal-server-error", "resource-constraint"), outcome
            await asyncio.sleep(0.1)
        raise AssertionError(f"user{index} never gets an account")

    async def restart() -> None:
        for how in ("stop", "kill"):
            await asyncio.sleep(0.1)
            await asyncio.to_thread(own_postgres.tell, how)
            is_away.set()
            await asyncio.sleep(0.5)
            await asyncio.to_thread(own_postgres.tell, "start")

    attempts, _ = await asyncio.gather(asyncio.gather(*map(persist, range(40))), restart())
    assert max(attempts) > 1, "the restart came too late"
    assert accounts(servers[0]) == sorted(f"user{index}" for index in range(40))
    all_used = "SELECT count(*), sum(uses), min(uses), max(uses) FROM invite"
    # An account whose redeem failed is redeemed when the database is back, without anybody asking.
    await eventually(lambda: own_postgres.query(database, all_used) == [["40", "40", "1", "1"]], 40)
    assert own_postgres.query(database, "SELECT * FROM claim") == []
    assert own_postgres.query(database, "SELECT count(*), count(DISTINCT invitee) FROM redemption") == [["40", "40"]]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("number", [1, 2], ids=["claim", "redeem"])
async def test_a_registration_does_not_notice_that_the_connection_is_cut_in_a_commit(
    make: Make, shared_postgres: Postgres, number: int, after: bool
) -> None:
    database = shared_postgres.new_database()
    with Network(shared_postgres.port) as network:
        server = make(shared_postgres.url(database, port=network.port))
        used = 'module:hook("invite-used", function (event) module:log("info", "used by %s", event.invitee); end);'
        server.eval(used)
        token = create(server)
        network.cut(COMMIT, number, after=after)
        assert await register(server, token, "romeo") == "registered"
        assert network.has_struck
        assert await register(server, token, "mallory") == "forbidden"
        assert server.log().count("used by romeo") == 1
        assert errors(server) == []
    assert accounts(server) == ["romeo"]
    assert shared_postgres.query(database, "SELECT uses FROM invite") == [["1"]]
    assert shared_postgres.query(database, "SELECT invitee FROM redemption") == [["romeo"]]
    assert shared_postgres.query(database, "SELECT * FROM claim") == []


async def test_a_database_that_goes_while_a_token_is_looked_at_makes_no_token_invalid(
    make: Make, shared_postgres: Postgres
) -> None:
    """mod_invites_register looks at it after us, and takes whatever goes wrong then for a bad token."""
    with Network(shared_postgres.port) as network:
        server = make(shared_postgres.url(shared_postgres.new_database(), port=network.port))
        tokens = [create(server) for _ in range(2)]
        for number, token in enumerate(tokens, 1):
            async with await open_stream(server) as stream:
                network.swallow_from(hashlib.sha256(token.encode()).digest(), number)
                try:
                    await stream.preauth(token)
                except Refused as refused:
                    assert refused.condition == "internal-server-error", refused
            network.swallows = False
            await eventually(lambda: server.eval(CREATE)[0])


@pytest.mark.parametrize("number", [1, 2], ids=["claim", "redeem"])
async def test_a_commit_whose_answer_never_comes_is_made_good_when_the_database_is_back(
    make: Make, shared_postgres: Postgres, number: int
) -> None:
    database = shared_postgres.new_database()
    with Network(shared_postgres.port) as network:
        server = make(shared_postgres.url(database, port=network.port))
        token = create(server)
        network.swallow_from(COMMIT, number)
        outcome = await register(server, token, "romeo")
        assert network.has_struck
        network.swallows = False
        if number == 1:
            assert outcome == "internal-server-error"

            async def again() -> bool:
                return await register(server, token, "romeo") == "registered"

            await eventually(again)
        else:
            assert outcome == "registered", "the account is there, and its use is recorded later"
        await eventually(lambda: shared_postgres.query(database, "SELECT uses FROM invite") == [["1"]])
        await eventually(lambda: shared_postgres.query(database, "SELECT * FROM claim") == [])
    assert accounts(server) == ["romeo"]
    assert shared_postgres.query(database, "SELECT invitee FROM redemption") == [["romeo"]]


def test_the_deadline_is_an_option(make: Make, own_postgres: Postgres) -> None:
    server = make(own_postgres.url(own_postgres.new_database()), config="invite_postgresql_deadline = 3;")
    create(server)
    own_postgres.tell("freeze")
    began = time.monotonic()
    assert server.eval(CREATE) == FAILED
    assert time.monotonic() - began >= 3
    own_postgres.tell("thaw")
    assert "did not answer within 3000 ms" in errors(server)[-1]


# TLS, and what an operator gets wrong: nothing of it depends on the version of Prosody

on_one_version = pytest.mark.parametrize("version", VERSIONS[-1:])


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> tuple[Authority, Authority]:
    directory = tmp_path_factory.mktemp("certificates")
    return Authority(directory, "ours"), Authority(directory, "another")


@pytest.fixture(scope="module")
def tls_postgres(
    authorities: tuple[Authority, Authority], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Postgres]:
    """Its certificate is of the first authority, and for localhost."""
    with Postgres() as postgres:
        with_tls(postgres, authorities[0].issue("localhost", tmp_path_factory.mktemp("server")))
        yield postgres


@on_one_version
def test_a_server_that_shows_a_good_certificate_is_used_with_tls(
    make: Make, tls_postgres: Postgres, authorities: tuple[Authority, Authority]
) -> None:
    database = tls_postgres.new_database()
    url = tls_postgres.url(database, host="localhost", parameters=f"?sslrootcert={authorities[0].certificate}")
    create(make(url))
    in_use = f"SELECT ssl FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE datname = '{database}' " \
        "AND usename = 'prosody'"
    assert tls_postgres.query("postgres", in_use) == [["t"]]


@on_one_version
@pytest.mark.parametrize(
    ("host", "parameters", "problem"),
    [
        ("127.0.0.1", "?sslrootcert={ours}", "has a certificate for another host: connect to a name that is in it"),
        ("localhost", "?sslrootcert={another}", "has a certificate of an unknown authority: if it is yours, name its"),
        ("localhost", "?sslmode=verify-full", "has a certificate of an unknown authority: if it is yours, name its"),
        ("localhost", "?sslrootcert={ours}.missing", ".missing cannot be read"),
        ("localhost", "?sslrootcert=/dev/null", "sslrootcert=/dev/null holds no certificate"),
    ],
    ids=["wrong host", "other authority", "authorities of the system", "no file", "empty file"],
)
def test_a_server_that_cannot_be_verified_is_refused_with_a_clear_line(
    make: Make,
    tls_postgres: Postgres,
    authorities: tuple[Authority, Authority],
    host: str,
    parameters: str,
    problem: str,
) -> None:
    parameters = parameters.format(ours=authorities[0].certificate, another=authorities[1].certificate)
    server = make(tls_postgres.url(tls_postgres.new_database(), host=host, parameters=parameters))
    assert server.eval(CREATE) == FAILED
    assert problem in errors(server)[-1]


@on_one_version
def test_a_server_without_tls_is_refused_where_it_has_to_be_verified(make: Make, shared_postgres: Postgres) -> None:
    url = shared_postgres.url(shared_postgres.new_database(), host="localhost", parameters="?sslmode=verify-full")
    server = make(url)
    assert server.eval(CREATE) == FAILED
    assert "server does not support TLS" in errors(server)[-1]


@on_one_version
@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda url: url.replace("p%40ss", "wrong"), "does not let its user in: look at the user and the password"),
        (lambda url: re.sub(r"/\w+$", "/nosuch", url), "does not exist: create it"),
        (lambda url: re.sub(r":\d+/", ":1/", url), "cannot be reached"),
        (lambda url: url.replace("127.0.0.1", "nowhere.invalid") + "?sslmode=disable", "cannot be reached"),
        (lambda url: url.replace("%40", "@"), "has more than one @"),
        (lambda url: url + "?sslmode=require", "sslmode must be verify-full"),
        (lambda url: url.replace("postgresql://", ""), "it must be a URL such as postgresql://"),
    ],
    ids=["password", "database", "port", "host", "at", "sslmode", "no URL"],
)
async def test_a_mistake_is_told_in_one_line_without_the_password_and_closes_registration(
    make: Make, shared_postgres: Postgres, change: Callable[[str], str], problem: str
) -> None:
    server = make(change(shared_postgres.url(shared_postgres.new_database())))
    assert server.eval(CREATE) == FAILED
    assert problem in errors(server)[-1]
    assert await register(server, "x", "mallory") in ("internal-server-error", "forbidden")
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.register("mallory", "secret")
    done = server.prosodyctl("mod_invites", "generate", "example.com")
    assert (done.returncode, done.stdout) == (1, "")
    assert len(done.stderr.splitlines()) == 1 and problem in done.stderr
    said = server.log() + server.log_tail() + done.stderr
    assert not any(secret in said for secret in ("ss/word", "ss%2Fword", "wrong%2F"))


@on_one_version
def test_a_deadline_that_is_none_is_refused(make: Make, shared_postgres: Postgres) -> None:
    url = shared_postgres.url(shared_postgres.new_database())
    for deadline in ('"soon"', "0", "-1", "1e400"):
        server = make(url, config=f"invite_postgresql_deadline = {deadline};")
        assert server.eval(CREATE) == FAILED
        assert "invite_postgresql_deadline must be a number of seconds" in errors(server)[-1]


def test_the_promises_of_the_readme_are_about_the_server_that_is_tested(shared_postgres: Postgres) -> None:
    assert shared_postgres.name in (CHECKOUT / "README.md").read_text()
