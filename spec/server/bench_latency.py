"""How long a client waits for the answer to a ping while others create, read and redeem 200 invites a second.

Two servers, one that works and one that does nothing, are pinged side by side in the same seconds, so that whatever else
the machine and its disk do hits both.
"""

import asyncio
import base64
import re
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

from bench_sides import ADDITIONAL_DATA, OursOnSqlite, Void

STORED = 100_000
PER_SECOND = 200
PING_INTERVAL, SECONDS = 0.01, 30

LOAD = """
local invites, deadline = module:depends("invites"), require "util.time".monotonic() + args.seconds;
local now, made, last = require "util.time".monotonic, 0, require "util.time".monotonic();
module:add_timer(0, function ()
    -- As many as the time that has passed is worth.
    local due = math.floor((now() - last) * args.per_second);
    for _ = 1, math.min(due, 10) do
        args.additional_data.note = ("for reader %d of the library"):format(made);
        local invite = assert(invites.create_account(nil, args.additional_data));
        assert(invites.get(invite.token));
        assert(invites.use(invite.token));
        made = made + 1;
    end
    last = last + math.min(due, 10) / args.per_second;
    module:shared("load").made = made;
    return now() < deadline and 1 / args.per_second or nil;
end);
"""


@dataclass
class Latency:
    """Milliseconds."""

    idle_p99: float
    idle_worst: float
    loaded_p99: float
    loaded_worst: float
    made: int
    pings: int

    def __str__(self) -> str:
        return (
            f"{self.pings} pings in {SECONDS} s: idle p99 {self.idle_p99:.2f} ms, worst {self.idle_worst:.2f} ms; while "
            f"{self.made / SECONDS:.0f} invites a second are created, read and redeemed beside {STORED:,}: "
            f"p99 {self.loaded_p99:.2f} ms, worst {self.loaded_worst:.2f} ms"
        )


class Idle(OursOnSqlite):
    name = "idle"


class Loaded(OursOnSqlite):
    name = "loaded"


async def _until(reader: asyncio.StreamReader, pattern: bytes) -> None:
    seen = b""
    while not re.search(pattern, seen):
        more = await asyncio.wait_for(reader.read(65536), 20)
        if not more:
            raise Void(f"the stream ended: {seen!r}")
        seen += more


async def ping(port: int, host: str) -> list[float]:
    """A stream of its own, without a library: what is measured is the server."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    header = (
        f"<stream:stream to='{host}' version='1.0' xmlns='jabber:client'"
        " xmlns:stream='http://etherx.jabber.org/streams'>"
    )
    plain = base64.b64encode(b"\0pinger\0secret").decode()
    for sent, answer in (
        (header, b"</stream:features>"),
        (f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>", b"<success"),
        (header, b"</stream:features>"),
        ("<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>", b"id='bind'.*</iq>"),
    ):
        writer.write(sent.encode())
        await _until(reader, answer)
    spent, deadline = [], time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        name = f"ping{len(spent)}"
        start = time.monotonic()
        writer.write(f"<iq type='get' to='{host}' id='{name}'><ping xmlns='urn:xmpp:ping'/></iq>".encode())
        await _until(reader, f"id='{name}'".encode())
        spent.append((time.monotonic() - start) * 1e3)
        await asyncio.sleep(PING_INTERVAL)
    writer.close()
    return spent


def ping_under_load(version: str, scratch: Path) -> Latency:
    with Idle(version, STORED, scratch) as idle, Loaded(version, STORED, scratch) as loaded:
        servers = [side.server for side in (idle, loaded)]
        for server in servers:
            server.eval('require "core.modulemanager".load(module.host, "ping");')
            server.add_user("pinger", "secret")
        loaded.server.eval(LOAD, seconds=SECONDS, per_second=PER_SECOND, additional_data=ADDITIONAL_DATA)

        async def both() -> list[list[float]]:
            return await asyncio.gather(*(ping(server.c2s, "example.com") for server in servers))

        resting, working = asyncio.run(both())
        made = loaded.server.eval('return module:shared("load").made;')
        if made < 0.9 * PER_SECOND * SECONDS:
            raise Void(f"only {made} invites were made in {SECONDS} s")

    def p99(spent: list[float]) -> float:
        return statistics.quantiles(spent, n=100)[-1]

    return Latency(p99(resting), max(resting), p99(working), max(working), made, len(working))
