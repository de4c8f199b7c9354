"""One token, many who want it at once: as many accounts as it has uses, and not one more.

In Prosody's own path from preauth to account nothing yields between check and use, and on the web nothing at all, so
requests in parallel alone prove nothing. Here the auth provider waits (mod_auth_spec_slow), or a handler of
user-registering does, or two servers have one database between them.
"""

import asyncio
import re
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import pytest

from client import DEADLINE, INVITATION, Refused, Stream, login, open_stream
from prosody import COMMUNITY_MODULES, Prosody

Make = Callable[..., Prosody]

ROUNDS, CONTESTANTS = 20, 50

MODULES = ("register_ibr", "invites", "invites_register")
WEB_MODULES = ("register_apps", "password_policy", "invites_page", "invites_register_web")

CREATE = 'return assert(module:depends("invites").create_account()).token;'

#: Waits after mod_invites_register has looked at the invite.
SLOW_HANDLER = """
    local async, timer = require "util.async", require "util.timer";
    module:hook("user-registering", function ()
        local wait, done = async.waiter();
        timer.add_task(0.05, done);
        wait();
    end, -10);
"""

#: What those are told that come too late, as long as the winner is not done and afterwards; and to wait, by a server that has
#: waited 40 ms for the lock while the other one's disk was slower than that.
TOO_LATE = {"resource-constraint", "forbidden", "internal-server-error"}


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module, and wait for 50 ms in each creation of an account."""

    def made(*, web: bool = False, **options: Any) -> Prosody:
        server = prosody(
            plugin_paths=(native_lua, COMMUNITY_MODULES) if web else (native_lua,),
            modules=(*MODULES, *WEB_MODULES) if web else MODULES,
            **{"authentication": "spec_slow"} | options,
        )
        server.eval('module:depends("invites");')
        return server

    return made


@pytest.fixture
def make_two(make: Make) -> Callable[[], tuple[Prosody, Prosody]]:
    """Two servers for one host: accounts and invites are in the data directory of the first."""

    def made() -> tuple[Prosody, Prosody]:
        first = make(web=True)
        return first, make(web=True, data_path=first.data_path, config='admin_socket = "second.sock";')

    return made


class Contestant(Protocol):
    """Somebody with a token who wants an account."""

    async def present(self, token: str) -> None: ...

    async def register(self, username: str) -> str:
        """The outcome: "registered", or the condition of the refusal."""
        ...


class InBand:
    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def present(self, token: str) -> None:
        await self._stream.preauth(token)

    async def register(self, username: str) -> str:
        try:
            await self._stream.register(username, "secret password")
        except Refused as refused:
            return refused.condition
        return "registered"


class ByField:
    """With the invitation in the registration form."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream

    async def present(self, token: str) -> None:
        self._link = f"https://example.com/invite?{token}"

    async def register(self, username: str) -> str:
        try:
            await self._stream.submit(username, "secret password", invitation=self._link)
        except Refused as refused:
            return refused.condition
        return "registered"


class OnTheWeb:
    def __init__(self, server: Prosody) -> None:
        self._server = server

    async def present(self, token: str) -> None:
        self._token = token

    async def register(self, username: str) -> str:
        form = urlencode({"user": username, "password": "secret password", "token": self._token})
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.http)
        with closing(writer):
            # The module reads the query of the address where it sends those whose token is no good.
            writer.write(
                f"POST /register?{self._token} HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\n"
                f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n\r\n{form}".encode()
            )
            page = (await asyncio.wait_for(reader.read(), DEADLINE)).decode()
        for sentence, outcome in {
            "Congratulations": "registered",
            "used right now": "resource-constraint",
            "cannot be checked": "internal-server-error",
            "used already": "forbidden",
            " 303 ": "forbidden",
        }.items():
            if sentence in page:
                return outcome
        return page


@asynccontextmanager
async def opened(servers: Sequence[Prosody], count: int) -> AsyncIterator[list[Stream]]:
    async with AsyncExitStack() as streams:
        yield [
            await streams.enter_async_context(stream)
            for stream in await asyncio.gather(*(open_stream(servers[index % len(servers)]) for index in range(count)))
        ]


@asynccontextmanager
async def in_band(servers: Sequence[Prosody], count: int) -> AsyncIterator[list[Contestant]]:
    async with opened(servers, count) as streams:
        yield [InBand(stream) for stream in streams]


@asynccontextmanager
async def by_field(servers: Sequence[Prosody], count: int) -> AsyncIterator[list[Contestant]]:
    async with opened(servers, count) as streams:
        yield [ByField(stream) for stream in streams]


@asynccontextmanager
async def field_and_preauth(servers: Sequence[Prosody], count: int) -> AsyncIterator[list[Contestant]]:
    async with in_band(servers, count // 2) as streams, by_field(servers, count // 2) as forms:
        yield [contestant for pair in zip(streams, forms, strict=True) for contestant in pair]


@asynccontextmanager
async def on_the_web(servers: Sequence[Prosody], count: int) -> AsyncIterator[list[Contestant]]:
    yield [OnTheWeb(servers[index % len(servers)]) for index in range(count)]


@asynccontextmanager
async def mixed(servers: Sequence[Prosody], count: int) -> AsyncIterator[list[Contestant]]:
    async with in_band(servers, count // 2) as streams, on_the_web(servers, count // 2) as posts:
        yield [contestant for pair in zip(streams, posts, strict=True) for contestant in pair]


async def race(contestants: Iterable[Contestant], token: str, prefix: str) -> Counter[str]:
    """All present the token, then all register, each a name of its own; how often there was which outcome."""
    await asyncio.gather(*(contestant.present(token) for contestant in contestants))
    names = (f"{prefix}-{index}" for index, _ in enumerate(contestants))
    return Counter(await asyncio.gather(*map(lambda one, name: one.register(name), contestants, names)))


def change(server: Prosody, statement: str, *parameters: Any) -> None:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        assert database.execute(statement, parameters).rowcount == 1


def rows(server: Prosody, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        return database.execute(query).fetchall()


def accounts(server: Prosody) -> list[str]:
    found = server.eval(
        """
        local found = {};
        for username in require "core.usermanager".users(module.host) do table.insert(found, username); end
        return found;
        """
    )
    return sorted(found)


async def assert_each_round_has(uses: int, servers: Sequence[Prosody], contestants: Sequence[Contestant]) -> None:
    """Of `ROUNDS` races for a token that is good for so many uses."""
    for number in range(ROUNDS):
        token = servers[0].eval(CREATE)
        if uses > 1:
            change(servers[0], "UPDATE invite SET max_uses = ? WHERE token = ?", uses, token)
        outcomes = await race(contestants, token, f"round{number}")
        late = outcomes.keys() - {"registered"}
        assert (outcomes["registered"], late - TOO_LATE) == (uses, set()), f"round {number}: {outcomes}"
    made = Counter(name.partition("-")[0] for name in accounts(servers[0]))
    assert made == {f"round{number}": uses for number in range(ROUNDS)}
    assert rows(servers[0], "SELECT DISTINCT uses, max_uses FROM invite") == [(uses, uses)]
    assert rows(servers[0], "SELECT * FROM claim") == []


@pytest.mark.parametrize("contest", [in_band, by_field, on_the_web, mixed])
async def test_one_token_makes_one_account_however_many_want_it_at_once(make: Make, contest: Any) -> None:
    server = make(web=True)
    async with contest([server], CONTESTANTS) as contestants:
        await assert_each_round_has(1, [server], contestants)


@pytest.mark.parametrize("contest", [field_and_preauth, on_the_web])
async def test_one_token_makes_one_account_while_a_handler_waits(make: Make, contest: Any) -> None:
    server = make(web=True, authentication="internal_plain")
    server.eval(SLOW_HANDLER)
    async with contest([server], CONTESTANTS) as contestants:
        await assert_each_round_has(1, [server], contestants)


@pytest.mark.storage
@pytest.mark.parametrize("contest", [field_and_preauth, mixed])
async def test_one_token_makes_one_account_on_two_servers(
    make_two: Callable[[], tuple[Prosody, Prosody]], contest: Any
) -> None:
    servers = make_two()
    async with contest(servers, CONTESTANTS) as contestants:
        await assert_each_round_has(1, servers, contestants)


async def test_a_token_with_a_limit_makes_as_many_accounts(make: Make) -> None:
    server = make(web=True)
    async with mixed([server], CONTESTANTS) as contestants:
        await assert_each_round_has(5, [server], contestants)


@pytest.mark.parametrize("way", ["preauth", "field"])
@pytest.mark.parametrize("authentication", ["spec_slow", "internal_plain"])
async def test_one_stream_gets_one_account_however_often_it_registers(
    make: Make, authentication: str, way: str
) -> None:
    """It sends all in one piece and does not wait for answers, which the client of the other tests would do.

    The piece is one read of the server's: Prosody forgets to go on reading after a stanza that waited.
    """
    server = make(authentication=authentication)
    count = {"preauth": 25, "field": 8}[way]  # a form is three times as long
    for number in range(ROUNDS):
        token = server.eval(CREATE)
        names = [f"round{number}-{index}" for index in range(count)]
        if way == "field":
            values = ("username", "{}"), ("password", "secret"), (INVITATION, token)
            fields = "".join(f"<field var='{var}'><value>{value}</value></field>" for var, value in values)
            query, preauth = f"<x xmlns='jabber:x:data' type='submit'>{fields}</x>", ""
        else:
            query = "<username>{}</username><password>secret</password>"
            preauth = f"<iq type='set' id='token'><preauth xmlns='urn:xmpp:pars:0' token='{token}'/></iq>"
        attempts = preauth + "".join(
            f"<iq type='set' id='{name}'><query xmlns='jabber:iq:register'>{query.replace('{}', name)}</query></iq>"
            for name in names
        )
        reader, writer = await asyncio.open_connection("127.0.0.1", server.c2s)
        with closing(writer):
            writer.write(
                "<stream:stream to='example.com' version='1.0' xmlns='jabber:client'"
                f" xmlns:stream='http://etherx.jabber.org/streams'>{attempts}".encode()
            )
            answers = ""
            while answers.count("<iq ") < attempts.count("<iq "):
                answers += (await asyncio.wait_for(reader.read(4096), DEADLINE)).decode()
        outcomes = Counter(re.findall(r"<iq [^>]*type=.(result|error)", answers))
        assert outcomes == {"result": attempts.count("<iq ") - count + 1, "error": count - 1}, answers
    assert Counter(name.partition("-")[0] for name in accounts(server)) == {f"round{n}": 1 for n in range(ROUNDS)}


async def test_one_name_is_registered_once_and_the_losers_tokens_stay_good(make: Make) -> None:
    """With a provider that waits, a name is still free when the second of two asks for it."""
    server = make()
    async with in_band([server], 10) as contestants:
        tokens = [server.eval(CREATE) for _ in contestants]
        for contestant, token in zip(contestants, tokens, strict=True):
            await contestant.present(token)
        outcomes = await asyncio.gather(*(contestant.register("juliet") for contestant in contestants))
        assert Counter(outcomes)["registered"] == 1, outcomes
        again = await asyncio.gather(*map(lambda one, index: one.register(f"nurse{index}"), contestants, range(10)))
    # The winner's stream has no invite any more.
    assert [outcome == "registered" for outcome in again] == [outcome != "registered" for outcome in outcomes]
    assert len(accounts(server)) == 10


async def test_a_contact_token_makes_one_contact_however_many_subscribe_at_once(make: Make) -> None:
    """With a store that waits, all twenty have been let in before the first is in the roster."""
    server = make(authentication="internal_plain", config='storage = { roster = "spec_fault" };')
    names = [f"romeo{index}" for index in range(20)]
    for name in ("juliet", *names):
        server.add_user(name, "secret")
    token = server.eval('return assert(module:depends("invites").create_contact("juliet")).token;')
    async with AsyncExitStack() as streams:
        juliet = await streams.enter_async_context(await login(server, "juliet", "secret"))
        romeos = await asyncio.gather(*(login(server, name, "secret") for name in names))
        for romeo in romeos:
            await streams.enter_async_context(romeo)
        server.eval('module:shared("/example.com/storage_spec_fault/switch").seconds = 0.05;')
        for romeo in romeos:
            romeo.send_presence(to="juliet@example.com", type="subscribe", token=token)
        # Answered after the presence that was sent before it.
        await asyncio.gather(*(romeo.roster() for romeo in romeos))
        roster = await juliet.roster()
    assert Counter(item.subscription for item in roster.values())["from"] == 1, roster
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    assert rows(server, "SELECT * FROM claim") == []
