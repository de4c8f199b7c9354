"""Many at once, and everything that may come between: what each invite has become is right all the same.

Clients alone race for invites over real streams, while every call of the authentication provider waits for a random time,
hosts go off and on, modules are reloaded, clients hang up, and accounts of the very names are deleted. SPEC_ROUNDS in the
environment says how often.
"""

import asyncio
import os
import random
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

ROUNDS = int(os.environ.get("SPEC_ROUNDS", "8"))
#: Rounds that run side by side, each on a host of its own.
HOSTS = [f"h{i}.example" for i in range(4)]
#: How long a round may take until every invite is used or free: no lease has to run out for it.
SOON = 20.0

CREATE = """
    local invites = module:depends("invites");
    local roles = { ["prosody:admin"] = true };
    return assert(invites.create_account(nil, { roles = roles })).token, assert(invites.create_contact("nurse", true)).token;
"""
ROLE_OF = """
    local um = require "core.usermanager";
    if um.get_user_role then return um.get_user_role(args.username, module.host).name == "prosody:admin"; end
    return (um.get_roles(args.username.."@"..module.host, module.host) or {})["prosody:admin"] or false;
"""
ACCOUNTS = """
    local found = {};
    for username in require "core.usermanager".users(module.host) do table.insert(found, username); end
    return found;
"""
#: Run on the host that stays.
OFF_AND_ON = """
    local hostmanager = require "core.hostmanager";
    assert(hostmanager.deactivate(args.of));
    assert(hostmanager.activate(args.of));
"""
RELOAD = 'require "core.modulemanager".reload(args.of, args.name);'
DELETE = 'require "core.usermanager".delete_user(args.username, args.of);'
SWITCH = 'module:shared("/"..args.of.."/auth_spec_slow/switch").random = args.seconds;'


@pytest.fixture
def server(prosody: Make, native_lua: Path) -> Prosody:
    server = prosody(
        plugin_paths=(native_lua,),
        modules=("register_ibr", "invites", "invites_register"),
        authentication="spec_slow",
        hosts={host: "" for host in (*HOSTS, "stays.example")},
        log_level="info",
    )
    for host in HOSTS:
        server.eval('module:depends("invites");', host=host)
    return server


def rows(server: Prosody, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        return database.execute(query, parameters).fetchall()


async def ask(server: Prosody, lua: str, on: str, /, **args: Any) -> Any:
    """Right after a host went off and on, its modules may not be there yet."""
    deadline = time.monotonic() + SOON
    while True:
        try:
            return await asyncio.to_thread(server.eval, lua, host=on, **args)
        except Exception:
            if time.monotonic() > deadline:
                raise


async def compete(server: Prosody, host: str, token: str, username: str, dice: random.Random) -> bool:
    """Whether this client was told that it has an account."""
    try:
        async with await open_stream(server, host) as stream:
            if dice.random() < 0.5:
                attempt = stream.submit(username, "secret", invitation=token)
            else:
                await stream.preauth(token)
                attempt = stream.register(username, "secret")
            registration = asyncio.create_task(attempt)
            if dice.random() < 0.2:
                await asyncio.sleep(dice.random() * 0.02)
                registration.cancel()
                return False  # hangs up, and does not know
            await registration
            return True
    except (Refused, ConnectionError):
        return False


async def disturb(server: Prosody, host: str, names: list[str], dice: random.Random) -> None:
    """What others do meanwhile."""
    for _ in range(3):
        await asyncio.sleep(dice.random() * 0.05)
        deed = dice.choice(("off and on", "reload", "reload", "delete", "delete"))
        if deed == "off and on":
            await ask(server, OFF_AND_ON, "stays.example", of=host)
            await ask(server, SWITCH, "stays.example", of=host, seconds=0.02)
        elif deed == "reload":
            await ask(server, RELOAD, "stays.example", of=host, name=dice.choice(("invites", "invites_register")))
        else:
            await ask(server, DELETE, "stays.example", of=host, username=dice.choice(names))


async def settle(server: Prosody, host: str) -> None:
    deadline = time.monotonic() + SOON
    while rows(server, "SELECT 1 FROM claim WHERE host = ?", host):
        assert time.monotonic() < deadline, "an invite is still claimed"
        await asyncio.sleep(0.02)


async def play(server: Prosody, host: str, seed: int) -> None:
    dice = random.Random(seed)
    await ask(server, SWITCH, "stays.example", of=host, seconds=None)
    await ask(server, 'require "core.usermanager".create_user("nurse", "secret", module.host);', host)
    tokens = await ask(server, CREATE, host)
    await ask(server, SWITCH, "stays.example", of=host, seconds=0.02)
    names = [f"{name}{seed}" for name in ("romeo", "juliet", "tybalt")]
    told: dict[str, list[str]] = {token: [] for token in tokens}

    async def client(token: str, username: str) -> None:
        if await compete(server, host, token, username, dice):
            told[token].append(username)

    racing = [client(token, username) for token in tokens for username in names]
    await asyncio.gather(*racing, disturb(server, host, [*names[:1], "nurse"], dice))
    await settle(server, host)
    await ask(server, SWITCH, "stays.example", of=host, seconds=None)

    for token, usernames in told.items():
        where = f"round {seed} on {host}"
        assert len(usernames) <= 1, f"{where}: {usernames} from one single-use invite"
        used = rows(
            server,
            "SELECT invitee FROM redemption JOIN invite USING (host, digest) WHERE host = ? AND type = ? AND invitee LIKE ?",
            host, "register" if token == tokens[0] else "roster", f"%{seed}",
        )
        assert len(used) <= 1, f"{where}: used by {used}"
        if usernames:
            assert used == [(usernames[0],)], f"{where}: {usernames[0]} has an account and the invite says {used}"
    there = await ask(server, ACCOUNTS, host)
    made = [name for name in there if name.endswith(str(seed))]
    redeemed = [name for name, in rows(server, "SELECT invitee FROM redemption WHERE host = ? AND invitee LIKE ?", host, f"%{seed}")]
    assert set(made) <= set(redeemed), f"round {seed} on {host}: {made} have accounts, and only {redeemed} used an invite"
    for name in told[tokens[0]]:
        # The first name was deleted now and then, and may have been registered again with the other invite.
        if name in made and name != names[0]:
            assert await ask(server, ROLE_OF, host, username=name), f"round {seed} on {host}: {name} has not got the role"
    for name in told[tokens[1]]:
        if name in made and "nurse" in there:
            async with await login(server, name, "secret", host) as stream:
                roster = await stream.roster()
            assert set(roster) <= {f"nurse@{host}"}


async def test_whatever_comes_between_an_invite_makes_one_account_that_gets_what_was_promised(server: Prosody) -> None:
    async def one_after_the_other(index: int) -> None:
        for number in range(index, ROUNDS, len(HOSTS)):
            await play(server, HOSTS[index], number + 1000)

    await asyncio.gather(*(one_after_the_other(index) for index in range(len(HOSTS))))
    assert "traceback" not in server.log().lower()
