"""What comes between the steps of a registration: a client that hangs up, an outage, a handler that fails, a lock.

A registration is several calls that other code makes, and any of them may wait. Whatever happens meanwhile, an invite
is used as often as accounts were made with it, nobody gets more than it promises, and it is good again once the trouble
is over.
"""

import asyncio
import re
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client import DEADLINE, Refused, Stream, login, open_stream
from prosody import BUNDLED, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")

CREATE = 'return assert(module:depends("invites").create_account()).token;'
CREATE_ADMIN = """
    local roles = { ["prosody:admin"] = true };
    return assert(module:depends("invites").create_account(nil, { roles = roles })).token;
"""
BOUND = 'return assert(module:depends("invites").create_account("juliet")).token;'
RESET = 'return assert(module:depends("invites").create_account_reset("juliet")).token;'
FROM_NURSE = 'return assert(module:depends("invites").create_contact("nurse", true)).token;'
SWITCH = 'local switch = module:shared("/example.com/auth_spec_slow/switch");'
SESSIONS = 'local n = 0; for _ in pairs(module:shared("/*/c2s/sessions")) do n = n + 1; end return n;'

REGISTER = "<query xmlns='jabber:iq:register'><username>{}</username><password>secret</password></query>"

#: The next look for an account of this name waits, until `GO_ON`.
HOLD_LOOK = """
    local async = require "util.async";
    local provider, waiting = prosody.hosts[module.host].users, module:shared("waiting");
    local user_exists, is_armed = provider.user_exists, true;
    waiting.go_on, waiting.is_over = nil, nil;
    -- Those of this name never wait, and are not asked through the provider.
    provider.name = "spec_waiting";
    function provider.user_exists(username)
        if username == args.username and is_armed and async.ready() then
            is_armed = false;
            local wait, done = async.waiter();
            waiting.go_on = done;
            wait();
        end
        return user_exists(username);
    end
"""
LOOK_WAITS = 'return module:shared("waiting").go_on ~= nil;'
#: It is over when all that follows is, for nothing else waits there.
GO_ON = """
    local waiting = module:shared("waiting");
    require "util.timer".add_task(0, function ()
        waiting.go_on();
        waiting.is_over = true;
    end);
"""
IS_OVER = 'return module:shared("waiting").is_over;'

#: From now on the provider answers like this for every account: what a directory does that is out of reach.
OUTAGE = """
    local provider, outage = prosody.hosts[module.host].users, module:shared("outage");
    local user_exists = provider.user_exists;
    function provider.user_exists(username)
        if outage.is_over then return user_exists(username); end
        return args.answer; -- an argument of None is nil here
    end
"""
OUTAGE_ENDS = 'module:shared("outage").is_over = true;'

#: The module looks every tenth of a second what became of attempts that wait; from now on at another interval. Each
#: look is counted.
REVIEW_EVERY = """
    local timer, count = require "util.timer", module:shared("count");
    local add_task = timer.add_task;
    count.reviews = 0;
    function timer.add_task(delay, callback, param)
        return add_task(delay, function (...)
            local again = callback(...);
            if again ~= 0.1 then return again; end
            count.reviews = count.reviews + 1;
            return args.seconds;
        end, param);
    end
"""
REVIEWS = 'return module:shared("count").reviews;'

FAIL_ONCE = """
    local has_failed = false;
    module:hook("invite-used", function ()
        if has_failed then return; end
        has_failed = true;
        error("a handler of somebody else's");
    end);
"""


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module, with an auth provider that waits 50 ms."""

    def made(**options: Any) -> Prosody:
        server = prosody(plugin_paths=(native_lua,), modules=MODULES, **{"authentication": "spec_slow"} | options)
        server.eval('module:depends("invites");')
        return server

    return made


def database(server: Prosody) -> Path:
    return server.data_path / "invites.sqlite3"


def rows(server: Prosody, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(database(server))) as connection:
        return connection.execute(query).fetchall()


def accounts(server: Prosody) -> set[str]:
    found = server.eval(
        """
        local found = {};
        for username in require "core.usermanager".users(module.host) do table.insert(found, username); end
        return found;
        """
    )
    return set(found)


def validity(server: Prosody, token: str) -> tuple[Any, ...]:
    """(True, None) or (False, why not)."""
    return server.eval(
        """
        local invite, why = module:depends("invites").get(args.token);
        return invite ~= nil, why;
        """,
        token=token,
    )


def is_admin(server: Prosody, username: str) -> bool:
    return server.eval(
        """
        local um = require "core.usermanager";
        if um.get_roles then
            return (um.get_roles(args.username.."@"..module.host, module.host) or {})["prosody:admin"] == true;
        end
        return um.get_user_role(args.username, module.host).name == "prosody:admin";
        """,
        username=username,
    )


def until(condition: Callable[[], object], timeout: float = 10) -> None:
    """Returns as soon as it holds."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline


async def begin(server: Prosody, stream: Stream, username: str, *, held: str) -> asyncio.Task[None]:
    """A registration that is stopped before or after the account is made."""
    server.eval(f"{SWITCH} switch.hold = args.place;", place=held)
    registration = asyncio.create_task(stream.register(username, "secret"))
    while not await asyncio.to_thread(server.eval, f"{SWITCH} return switch.held > 0;"):
        assert not registration.done()
    return registration


async def pipelined(server: Prosody, *payloads: str) -> list[str]:
    """The types of the answers to IQs that are all sent at once; `Stream` has each wait for its answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.c2s)
    stanzas = "".join(f"<iq type='set' id='n{n}'>{payload}</iq>" for n, payload in enumerate(payloads))
    writer.write(
        (
            f"<stream:stream to='{next(iter(server.hosts))}' version='1.0' xmlns='jabber:client'"
            f" xmlns:stream='http://etherx.jabber.org/streams'>{stanzas}"
        ).encode()
    )
    types: dict[str, str] = {}
    text = ""
    try:
        async with asyncio.timeout(DEADLINE):
            while len(types) < len(payloads):
                read = await reader.read(4096)
                assert read, text
                text += read.decode()
                for attributes in re.findall("<iq ([^>]*)>", text):
                    pairs = dict(re.findall("""([a-z]+)=['"]([^'"]*)['"]""", attributes))
                    types[pairs["id"]] = pairs["type"]
    finally:
        writer.close()
    return [types[f"n{n}"] for n in range(len(payloads))]


async def register_soon(stream: Stream, username: str) -> None:
    """Tries again while the invite is being used."""
    deadline = time.monotonic() + 5
    while True:
        try:
            return await stream.register(username, "secret")
        except Refused as refused:
            if refused.condition != "resource-constraint" or time.monotonic() > deadline:
                raise


# A client that goes away


async def test_hanging_up_again_and_again_makes_one_account_of_one_invite(make: Make) -> None:
    """The session is emptied, the invite in it is gone, and the registration goes on all the same."""
    server = make(authentication="internal_plain")
    token = server.eval(CREATE)
    names = [f"mallory{number}" for number in range(3)]
    streams = [await open_stream(server) for _ in names]
    # All of them before the first is used: no later preauth is refused.
    for stream in streams:
        await stream.preauth(token)
    for left, (name, stream) in enumerate(zip(names, streams, strict=True), start=1):
        server.eval(HOLD_LOOK, username=name)
        async with stream:
            registration = asyncio.create_task(stream.register(name, "secret"))
            while not await asyncio.to_thread(server.eval, LOOK_WAITS):
                assert not registration.done()
        registration.cancel()
        until(lambda: server.eval(SESSIONS) == len(streams) - left)
        server.eval(GO_ON)
        until(lambda: server.eval(IS_OVER))
    assert accounts(server) == {"mallory0"}
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    assert rows(server, "SELECT invitee FROM redemption") == [("mallory0",)]


# Imported invites


@pytest.fixture
def imported(prosody: Make, make: Make, tmp_path: Path) -> tuple[Prosody, list[str]]:
    """A server with two invites for juliet: the bundled module makes as many as it is asked for."""
    bundled = prosody(plugin_paths=BUNDLED, modules=MODULES, data_path=tmp_path)
    tokens = [bundled.eval(BOUND) for _ in range(2)]
    bundled.stop()
    server = make(data_path=tmp_path)
    assert [validity(server, token) for token in tokens] == [(True, None)] * 2
    return server, tokens


@pytest.mark.parametrize("used", [0, 1])
async def test_either_of_two_imported_invites_for_one_name_is_good_for_that_name_alone(
    imported: tuple[Prosody, list[str]], used: int
) -> None:
    server, tokens = imported
    async with await open_stream(server) as stream, await open_stream(server) as other:
        await stream.preauth(tokens[used])
        await other.preauth(tokens[1 - used])
        for one in (stream, other):
            with pytest.raises(Refused) as refused:
                await one.register("romeo", "secret")
            assert refused.value.condition == "not-acceptable"
        await stream.register("juliet", "secret")
        for name, condition in (("juliet", "conflict"), ("romeo", "not-acceptable")):
            with pytest.raises(Refused) as refused:
                await other.register(name, "secret")
            assert refused.value.condition == condition
    assert accounts(server) == {"juliet"}
    assert rows(server, "SELECT SUM(uses) FROM invite") == [(1,)]


async def test_two_imported_invites_for_one_name_race_for_one_account(imported: tuple[Prosody, list[str]]) -> None:
    server, tokens = imported
    async with await open_stream(server) as first, await open_stream(server) as second:
        await first.preauth(tokens[0])
        await second.preauth(tokens[1])
        registration = await begin(server, first, "juliet", held="before")
        with pytest.raises(Refused) as refused:
            await second.register("juliet", "stolen")
        assert refused.value.condition == "resource-constraint"
        server.eval(f"{SWITCH} switch.release();")
        await registration
    async with await login(server, "juliet", "secret"):
        pass
    assert accounts(server) == {"juliet"}
    assert rows(server, "SELECT SUM(uses) FROM invite") == [(1,)]


# Handlers of others that fail


@pytest.mark.parametrize("authentication", ["internal_plain", "spec_slow"])
async def test_a_handler_of_invite_used_that_fails_takes_nothing_away_that_the_invite_promised(
    make: Make, authentication: str
) -> None:
    server = make(authentication=authentication)
    token = server.eval(CREATE_ADMIN)
    server.eval(FAIL_ONCE)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("juliet", "secret")
    until(lambda: rows(server, "SELECT uses FROM invite") == [(1,)])
    assert is_admin(server, "juliet")
    assert "a handler of somebody else's" in server.log()


async def test_a_handler_of_invite_used_that_fails_leaves_later_claims_looked_at(make: Make) -> None:
    """It fails in the timer that also releases what failed registrations have claimed."""
    server = make()
    server.eval(REVIEW_EVERY, seconds=0.001)
    late, other = server.eval(CREATE), server.eval(CREATE)
    async with (
        await open_stream(server) as first,
        await open_stream(server) as second,
        await open_stream(server) as rival,
    ):
        await first.preauth(late)
        for stream in (second, rival):
            await stream.preauth(other)
        registration = await begin(server, first, "juliet", held="before")
        with closing(sqlite3.connect(database(server), isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            server.eval(f"{FAIL_ONCE} {SWITCH} switch.release();")
            await registration
            lock.execute("ROLLBACK")
        until(lambda: "a handler of somebody else's" in server.log())
        assert rows(server, "SELECT invitee FROM redemption") == [("juliet",)]
        server.eval(f'{SWITCH} switch.failure = "no";')
        with pytest.raises(Refused):
            await second.register("tybalt", "secret")
        server.eval(f"{SWITCH} switch.failure = nil;")
        await register_soon(rival, "mercutio")
    assert accounts(server) == {"juliet", "mercutio"}
    assert rows(server, "SELECT * FROM claim") == []


# Time that passes, and storage that is out of reach


async def test_a_claim_of_this_process_is_not_settled_away_however_long_its_registration_waits(make: Make) -> None:
    server = make()
    server.set_lease(0.3)
    token = server.eval(CREATE)
    async with await open_stream(server) as first, await open_stream(server) as rival:
        await first.preauth(token)
        await rival.preauth(token)
        registration = await begin(server, first, "juliet", held="before")
        server.eval(f"{SWITCH} switch.hold = nil;")
        deadline = time.monotonic() + 1
        while time.monotonic() < deadline:
            with pytest.raises(Refused, match="being used right now") as refused:
                await rival.register("romeo", "secret")
            assert refused.value.condition == "resource-constraint"
        server.eval(f"{SWITCH} switch.release();")
        await registration
        with pytest.raises(Refused, match="used already"):
            await rival.register("romeo", "secret")
    assert accounts(server) == {"juliet"}
    assert rows(server, "SELECT uses FROM invite") == [(1,)]


@pytest.mark.parametrize("answer", [None, False])
@pytest.mark.parametrize(("create", "invitee"), [(FROM_NURSE, "romeo"), (RESET, "juliet")], ids=["inviter", "reset"])
async def test_an_outage_of_the_accounts_revokes_nothing(
    make: Make, answer: bool | None, create: str, invitee: str
) -> None:
    """Providers that ask elsewhere answer no more than that: no account is gone because of it, and nobody is let in."""
    server = make()
    for name in ("nurse", "juliet"):
        server.add_user(name, "old")
    token = server.eval(create)
    server.eval(OUTAGE, answer=answer)
    async with await open_stream(server) as stream:
        assert validity(server, token) == (False, "account-unknown")
        with pytest.raises(Refused) as refused:
            await stream.preauth(token)
        assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
        server.eval(OUTAGE_ENDS)
        assert validity(server, token) == (True, None)
        await stream.preauth(token)
        await stream.register(invitee, "new")
    async with await login(server, invitee, "new"):
        pass
    assert rows(server, "SELECT uses, revoked_at FROM invite") == [(1, None)]


async def test_a_storage_that_fails_between_two_looks_makes_no_account_go_away(make: Make) -> None:
    """The internal providers say of one that fails that there is no such account."""
    server = make(authentication="internal_plain")
    server.add_user("nurse", "old")
    token = server.eval(FROM_NURSE)
    server.eval(OUTAGE.replace("return args.answer;", 'return nil, "Auth failed. Invalid username";'))
    assert validity(server, token) == (True, None)
    server.eval(OUTAGE_ENDS)
    assert validity(server, token) == (True, None)
    assert rows(server, "SELECT revoked_at FROM invite") == [(None,)]


async def test_a_reset_that_nobody_can_look_up_makes_no_account(make: Make) -> None:
    """The caller takes the name for free, and would make the account that is there once more."""
    server = make()
    server.add_user("juliet", "old")
    token = server.eval(RESET)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        server.eval(OUTAGE, answer=None)
        with pytest.raises(Refused) as refused:
            await stream.register("juliet", "new")
        assert refused.value.condition == "internal-server-error"
        server.eval(OUTAGE_ENDS)
        async with await login(server, "juliet", "old"):
            pass
        assert rows(server, "SELECT uses FROM invite") == [(0,)]
        await stream.register("juliet", "new")
    async with await login(server, "juliet", "new"):
        pass
    assert accounts(server) == {"juliet"}


async def test_a_use_that_cannot_be_stored_yet_is_counted_in_the_end(make: Make) -> None:
    server = make()
    server.eval(REVIEW_EVERY, seconds=0.001)
    token = server.eval(CREATE)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        registration = await begin(server, stream, "juliet", held="before")
        with closing(sqlite3.connect(database(server), isolation_level=None)) as lock:
            lock.execute("BEGIN IMMEDIATE")
            server.eval(f"{SWITCH} switch.release();")
            await registration
            reviews = server.eval(REVIEWS)
            until(lambda: server.eval(REVIEWS) > reviews + 50)  # a few tries
            lock.execute("ROLLBACK")
    until(lambda: rows(server, "SELECT uses FROM invite") == [(1,)])
    assert rows(server, "SELECT invitee FROM redemption") == [("juliet",)]
    assert rows(server, "SELECT * FROM claim") == []
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)


async def test_a_database_deleted_under_a_running_server_costs_one_call(make: Make) -> None:
    """What was written to the deleted file would be gone with the process, and unknown to all others until then."""
    server = make(authentication="internal_plain")
    lost = server.eval(CREATE)
    for suffix in ("", "-wal", "-shm"):
        Path(f"{database(server)}{suffix}").unlink()
    create = """
        local invite, why = module:depends("invites").create_account();
        return invite and invite.token, why;
    """
    assert server.eval(create) == (None, "internal-server-error")
    (error,) = (line for line in server.log().splitlines() if "\terror\t" in line and "invites.sqlite3" in line)
    assert "was deleted or replaced" in error
    token, why = server.eval(create)
    assert why is None
    generated = server.prosodyctl("mod_invites", "generate", "example.com")
    assert (generated.returncode, generated.stderr) == (0, "")
    tokens = {token, generated.stdout.strip().rpartition("=")[2]}
    exported = server.prosodyctl("mod_invites", "export", "example.com", "--to", "prosody")
    assert (exported.returncode, exported.stderr) == (0, "")
    assert exported.stdout.startswith("2 pending invites")
    for _ in range(2):
        assert [validity(server, token) for token in tokens] == [(True, None)] * 2
        assert validity(server, lost) == (False, "token-invalid")
        server.restart()


async def test_an_invite_settled_after_a_crash_is_told_as_used(make: Make) -> None:
    server = make()
    token = server.eval(CREATE)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        registration = await begin(server, stream, "juliet", held="after")
        server.kill()
        with pytest.raises(ConnectionError):
            await registration
    # Without a proof that it has died, it is watched for a lease.
    for file in server.data_path.glob("invites.sqlite3-boots/*"):
        file.unlink()
    server.start()
    assert accounts(server) == {"juliet"}
    server.eval(
        """
        local seen = module:shared("seen");
        module:hook("invite-used", function (event)
            table.insert(seen, { purpose = event.purpose, invitee = event.invitee, uses = event.uses });
        end);
        """
    )
    server.set_lease(0.5)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        with pytest.raises(Refused, match="being used right now"):
            await stream.register("romeo", "secret")
        until(lambda: rows(server, "SELECT * FROM claim") == [])
        with pytest.raises(Refused, match="used already"):
            await stream.register("romeo", "secret")
    assert server.eval('return module:shared("seen");') == [{"purpose": "account", "invitee": "juliet", "uses": 1}]
    assert accounts(server) == {"juliet"}


# What callers pass


async def test_an_invite_to_a_contact_resets_no_password_whatever_it_carries(make: Make) -> None:
    """`allow_reset` is for what create_account_reset makes; here nothing would count its use."""
    server = make()
    for name in ("nurse", "victim"):
        server.add_user(name, "old")
    token = server.eval(
        'return assert(module:depends("invites").create_contact("nurse", true, { allow_reset = "victim" })).token;'
    )
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        with pytest.raises(Refused) as refused:
            await stream.register("victim", "new")
        assert refused.value.condition == "conflict"
        async with await login(server, "victim", "old"):
            pass
        assert rows(server, "SELECT uses FROM invite") == [(0,)]
        await stream.register("juliet", "secret")
    assert accounts(server) == {"nurse", "victim", "juliet"}


async def test_a_stream_that_presents_its_token_again_is_not_kept_out_by_its_own_failure(make: Make) -> None:
    """A client that waits for no answer: the claim of what failed is still there when it registers again."""
    server = make()
    server.eval(REVIEW_EVERY, seconds=600)
    token = server.eval(CREATE)
    server.eval(
        f"""
        {SWITCH}
        local provider = prosody.hosts[module.host].users;
        local create_user = provider.create_user;
        function provider.create_user(username, ...)
            switch.failure = username == "tybalt" and "no" or nil;
            return create_user(username, ...);
        end
        """
    )
    answers = await pipelined(
        server,
        f"<preauth xmlns='urn:xmpp:pars:0' token='{token}'/>",
        REGISTER.format("tybalt"),
        f"<preauth xmlns='urn:xmpp:pars:0' token='{token}'/>",
        REGISTER.format("juliet"),
    )
    assert answers == ["result", "error", "result", "result"]
    assert accounts(server) == {"juliet"}
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    assert rows(server, "SELECT * FROM claim") == []


@pytest.mark.parametrize("source", ["{}", "true", "print", "5"])
@pytest.mark.parametrize("is_claimed", [True, False])
def test_a_registration_by_a_caller_that_says_no_proper_source_is_counted(
    make: Make, source: str, is_claimed: bool
) -> None:
    server = make(authentication="internal_plain")
    token = server.eval(CREATE)
    assert server.eval(
        f"""
        local invite = module:depends("invites").get(args.token);
        local event = {{ username = "juliet", host = module.host, validated_invite = invite, allowed = true }};
        if args.is_claimed then module:fire_event("user-registering", event); end
        module:fire_event("user-registered", {{
            username = "juliet", host = module.host, validated_invite = invite, source = {source};
        }});
        return event.allowed;
        """,
        token=token, is_claimed=is_claimed,
    )
    assert rows(server, "SELECT invitee FROM redemption") == [("juliet",)]
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
