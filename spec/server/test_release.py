"""A registration that fails leaves its invite as good as it was, for the same person and for others."""

import asyncio
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from client import Refused, Stream, login, open_stream
from prosody import COMMUNITY_MODULES, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")

CREATE = 'return assert(module:depends("invites").create_account()).token;'
FROM_NURSE = 'return assert(module:depends("invites").create_contact("nurse", true)).token;'
RELOAD = 'assert(require "core.modulemanager".reload(module.host, "invites"));'
SWITCH = 'local switch = module:shared("/example.com/auth_spec_slow/switch");'

#: The next user-registering waits, after mod_invites_register has looked at the invite, until `GO_ON`.
HOLD_HANDLER = """
    local async = require "util.async";
    local waiting = module:shared("waiting");
    module:hook("user-registering", function ()
        if waiting.go_on then return; end
        local wait, done = async.waiter();
        waiting.go_on = done;
        wait();
    end, -10);
"""
GO_ON = 'local go_on = module:shared("waiting").go_on; if go_on then require "util.timer".add_task(0, go_on); end'
HANDLER_WAITS = 'return module:shared("waiting").go_on ~= nil;'

SESSIONS = 'local n = 0; for _ in pairs(module:shared("/*/c2s/sessions")) do n = n + 1; end return n;'
#: The module looks every tenth of a second what became of attempts that wait; from now on at another interval.
REVIEW_EVERY = """
    local timer = require "util.timer";
    local add_task = timer.add_task;
    function timer.add_task(delay, callback, param)
        return add_task(delay, function (...)
            local again = callback(...);
            return again == 0.1 and args.seconds or again;
        end, param);
    end
"""

#: How soon a failed attempt is over for others, at the latest.
SOON = 2.0


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module, with an auth provider that waits 50 ms."""

    def made(*, modules: tuple[str, ...] = (), **options: Any) -> Prosody:
        server = prosody(
            plugin_paths=(native_lua, COMMUNITY_MODULES),
            modules=(*MODULES, *modules),
            **{"authentication": "spec_slow"} | options,
        )
        server.eval('module:depends("invites");')
        return server

    return made


def rows(server: Prosody, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        return database.execute(query, parameters).fetchall()


def exists(server: Prosody, username: str) -> bool:
    return server.eval(
        'return require "core.usermanager".user_exists(args.username, module.host) or false;', username=username
    )


def until(condition: Callable[[], bool]) -> None:
    """Returns as soon as it holds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline


async def begin(server: Prosody, stream: Stream, username: str, *, held: str | None) -> asyncio.Task[None]:
    """A registration that is stopped before or after the account is made, or (None) in user-registering."""
    if held:
        server.eval(f"{SWITCH} switch.hold = args.place;", place=held)
    registration = asyncio.create_task(stream.register(username, "secret"))
    is_held = f"{SWITCH} return switch.held > 0;" if held else HANDLER_WAITS
    while not await asyncio.to_thread(server.eval, is_held):
        assert not registration.done()
    return registration


async def register_soon(stream: Stream, username: str) -> None:
    """Tries again while the invite is being used."""
    deadline = time.monotonic() + SOON
    while True:
        try:
            return await stream.register(username, "secret")
        except Refused as refused:
            if refused.condition != "resource-constraint" or time.monotonic() > deadline:
                raise


@dataclass(frozen=True)
class Failure:
    """Why a registration fails: Lua to run before it and after it, and how the first try differs from the others."""

    condition: str
    begin: str = ""
    end: str = ""
    username: str = "tybalt"
    password: str = "secret"


REFUSE = """
    local is_on = true;
    local function refuse(event)
        if module:shared("refusal").is_off then return; end
        event.allowed, event.reason = false, "not today";
        event.error_type, event.error_condition = "modify", "policy-violation";
        event.error = { type = "modify", condition = "policy-violation", text = "not today" };
    end
"""
PERMIT = 'module:shared("refusal").is_off = true;'
FAULT = 'module:shared("/example.com/storage_spec_fault/switch").failing'

FAILURES = {
    "name taken": Failure("conflict", username="nurse"),
    "password refused by policy": Failure("not-acceptable", password="x"),
    "refused by a handler before": Failure(
        "policy-violation", f'{REFUSE} module:hook("user-registering", refuse, 10);', PERMIT
    ),
    "refused by a handler after": Failure(
        "policy-violation", f'{REFUSE} module:hook("user-registering", refuse, -1000);', PERMIT
    ),
    "refused by whoever wraps the event": Failure(
        "policy-violation",
        f"""{REFUSE} module:wrap_event("user-registering", function (handlers, name, event)
            local ret = handlers(name, event);
            refuse(event);
            return ret;
        end);""",
        PERMIT,
    ),
    "details not stored": Failure(
        "internal-server-error", f"{FAULT}.account_details = true;", f"{FAULT}.account_details = nil;"
    ),
    "provider fails": Failure(
        "feature-not-implemented", f'{SWITCH} switch.failure = "no";', f"{SWITCH} switch.failure = nil;"
    ),
    "role not stored": Failure(
        "feature-not-implemented", f"{FAULT}.account_roles = true;", f"{FAULT}.account_roles = nil;"
    ),
}


@pytest.mark.parametrize("whose", ["same stream", "new stream"])
@pytest.mark.parametrize(
    ("name", "authentication"),
    [
        *((name, "spec_slow") for name in FAILURES),
        # Where nothing waits. It fails no sooner than its storage does.
        *((name, "internal_plain") for name in FAILURES if name != "provider fails"),
    ],
)
async def test_a_failed_registration_does_not_burn_the_invite(
    make: Make, name: str, authentication: str, whose: str
) -> None:
    failure = FAILURES[name]
    server = make(
        modules=("password_policy",),
        authentication=authentication,
        config="""
            password_policy = { length = 4 };
            storage = { account_details = "spec_fault", account_roles = "spec_fault" };
        """,
    )
    server.add_user("nurse", "secret")
    token = server.eval(CREATE)
    async with await open_stream(server) as first, await open_stream(server) as second:
        await first.preauth(token)
        await second.preauth(token)
        server.eval(failure.begin)
        with pytest.raises(Refused) as refused:
            await first.register(failure.username, failure.password)
        assert refused.value.condition == failure.condition
        server.eval(failure.end)
        if whose == "same stream":
            await first.register("juliet", "secret")
        else:
            await register_soon(second, "juliet")
    assert exists(server, "juliet")
    assert not exists(server, "tybalt")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    assert rows(server, "SELECT invitee FROM redemption") == [("juliet",)]
    assert rows(server, "SELECT * FROM claim") == []


async def test_a_rival_is_told_to_wait_and_gets_the_account_after_a_failure(make: Make) -> None:
    server = make()
    token = server.eval(CREATE)
    async with await open_stream(server) as first, await open_stream(server) as rival:
        await first.preauth(token)
        await rival.preauth(token)
        registration = await begin(server, first, "tybalt", held="before")
        for _ in range(3):
            with pytest.raises(Refused, match="being used right now") as refused:
                await rival.register("juliet", "secret")
            assert (refused.value.type, refused.value.condition) == ("wait", "resource-constraint")
        server.eval(f'{SWITCH} switch.failure = "no"; switch.release();')
        with pytest.raises(Refused):
            await registration
        server.eval(f"{SWITCH} switch.failure = nil;")
        await register_soon(rival, "juliet")
        with pytest.raises(Refused, match="used already"):
            await first.register("tybalt", "secret")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]


async def test_each_attempt_of_a_stream_is_checked_afresh(make: Make) -> None:
    """The earlier attempt was let in before the invite was revoked; that says nothing about the next."""
    server = make()
    server.eval(REVIEW_EVERY, seconds=600)
    token = server.eval(CREATE)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        registration = await begin(server, stream, "tybalt", held="before")
        server.eval(
            f'{SWITCH} module:depends("invites").delete_account_invite(args.token); switch.failure = "no";',
            token=token,
        )
        server.eval(f"{SWITCH} switch.release();")
        with pytest.raises(Refused):
            await registration
        # The claim that was let in still stands.
        assert rows(server, "SELECT invitee FROM claim") == [("tybalt",)]
        with pytest.raises(Refused) as refused:
            await stream.register("juliet", "secret")
        assert refused.value.condition == "forbidden"
    assert not exists(server, "juliet")


async def test_a_claim_is_for_the_name_of_the_attempt(make: Make) -> None:
    """What became of it is asked for under that name, should the server die now."""
    server = make()
    server.eval(REVIEW_EVERY, seconds=600)
    token = server.eval(CREATE)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        server.eval(f'{SWITCH} switch.failure = "no";')
        with pytest.raises(Refused):
            await stream.register("tybalt", "secret")
        server.eval(f"{SWITCH} switch.failure = nil;")
        registration = await begin(server, stream, "juliet", held="before")
        assert rows(server, "SELECT invitee FROM claim") == [("juliet",)]
        server.eval(f"{SWITCH} switch.release();")
        await registration


async def test_an_attempt_that_waits_for_long_keeps_its_claim(make: Make) -> None:
    server = make()
    token = server.eval(CREATE)
    server.eval(REVIEW_EVERY, seconds=0.001)
    async with await open_stream(server) as first, await open_stream(server) as rival:
        await first.preauth(token)
        await rival.preauth(token)
        registration = await begin(server, first, "juliet", held="before")
        until(lambda: rows(server, "SELECT renewals >= 2 FROM claim") == [(1,)])
        with pytest.raises(Refused, match="being used right now"):
            await rival.register("tybalt", "secret")
        server.eval(f"{SWITCH} switch.release();")
        await registration
    assert not exists(server, "tybalt")


# A client that goes away

HELD = pytest.mark.parametrize("held", ["before", "after", None], ids=["before-account", "after-account", "in-handler"])


@HELD
async def test_an_invite_is_used_when_its_client_hung_up_meanwhile(make: Make, held: str | None) -> None:
    """Its session is emptied, and the invite in it is gone, but the account is made all the same."""
    server = make()
    server.add_user("nurse", "secret")
    if not held:
        server.eval(HOLD_HANDLER)
    token = server.eval(FROM_NURSE)
    async with await open_stream(server) as rival:
        await rival.preauth(token)
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            registration = await begin(server, stream, "juliet", held=held)
        registration.cancel()
        until(lambda: server.eval(SESSIONS) == 1)
        server.eval(f"{SWITCH} switch.release(); {GO_ON}")
        until(lambda: exists(server, "juliet"))
        until(lambda: rows(server, "SELECT uses FROM invite") == [(1,)])
        with pytest.raises(Refused):
            await rival.register("tybalt", "secret")
    assert rows(server, "SELECT invitee FROM redemption") == [("juliet",)]
    async with await login(server, "nurse", "secret") as nurse:
        assert (await nurse.roster())["juliet@example.com"].subscription == "both"


# A reload

@HELD
async def test_a_reload_while_a_registration_waits_does_not_open_anything(make: Make, held: str | None) -> None:
    server = make()
    if not held:
        server.eval(HOLD_HANDLER)
    token = server.eval(CREATE)
    async with await open_stream(server) as first, await open_stream(server) as rival:
        await first.preauth(token)
        await rival.preauth(token)
        registration = await begin(server, first, "juliet", held=held)
        server.eval(RELOAD)
        if held:
            with pytest.raises(Refused, match="being used right now"):
                await rival.register("tybalt", "secret")
        server.eval(f"{SWITCH} switch.release(); {GO_ON}")
        await registration
        with pytest.raises(Refused, match="used already"):
            await rival.register("tybalt", "secret")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    assert rows(server, "SELECT * FROM claim") == []


@pytest.mark.parametrize("held", ["before", None], ids=["before-account", "in-handler"])
async def test_a_reload_while_a_registration_waits_does_not_close_anything(make: Make, held: str | None) -> None:
    server = make()
    if not held:
        server.eval(HOLD_HANDLER)
    token = server.eval(CREATE)
    async with await open_stream(server) as first, await open_stream(server) as rival:
        await first.preauth(token)
        await rival.preauth(token)
        registration = await begin(server, first, "juliet", held=held)
        server.eval(RELOAD)
        server.eval(f'{SWITCH} switch.failure = "no"; switch.release(); {GO_ON}')
        with pytest.raises(Refused):
            await registration
        server.eval(f"{SWITCH} switch.failure = nil;")
        await register_soon(rival, "tybalt")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    assert rows(server, "SELECT * FROM claim") == []


CLAIM_AND_LOSE_THE_FILE = """
    local session = { type = "c2s_unauthed", validated_invite = module:depends("invites").get(args.token) };
    local event = { username = "juliet", host = module.host, ip = "::1", session = session, allowed = true };
    module:fire_event("user-registering", event);
    assert(event.allowed, event.reason);
    assert(os.rename(args.path, args.path..".away"));
"""


async def test_a_claim_whose_release_failed_is_released_when_the_storage_is_back(make: Make) -> None:
    server = make()
    token, path = server.eval(CREATE), server.data_path / "invites.sqlite3"
    server.eval(CLAIM_AND_LOSE_THE_FILE, token=token, path=str(path))
    until(lambda: "was deleted or replaced" in server.log())
    path.with_name("invites.sqlite3.away").rename(path)
    assert len(rows(server, "SELECT * FROM claim")) == 1
    until(lambda: rows(server, "SELECT * FROM claim") == [])
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("juliet", "secret")
