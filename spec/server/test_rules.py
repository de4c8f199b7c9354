"""What an invite is good for between the token and the account, rule by rule, on the wire."""

import asyncio
import json
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
SWITCH = 'local switch = module:shared("/example.com/auth_spec_slow/switch");'
RELOAD = 'assert(require "core.modulemanager".reload(module.host, "invites"));'


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module."""

    def made(**options: Any) -> Prosody:
        server = prosody(plugin_paths=(native_lua,), modules=MODULES, **options)
        server.eval('module:depends("invites");')
        return server

    return made


def create(server: Prosody, call: str = "create_account()") -> str:
    return server.eval(f'return assert(module:depends("invites").{call}).token;')


def revoke(server: Prosody, token: str) -> None:
    server.eval('assert(module:depends("invites").delete_account_invite(args.token));', token=token)


@contextmanager
def database(server: Prosody) -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3", isolation_level=None)) as connection:
        yield connection


def change(server: Prosody, statement: str, *parameters: Any) -> None:
    with database(server) as connection:
        assert connection.execute(statement, parameters).rowcount == 1


def rows(server: Prosody, query: str) -> list[tuple[Any, ...]]:
    with database(server) as connection:
        return connection.execute(query).fetchall()


@contextmanager
def locked(server: Prosody) -> Iterator[None]:
    """Somebody else writes to the database and does not come to an end."""
    with database(server) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    until(server.can_store)


def accounts(server: Prosody) -> set[str]:
    found = server.eval(
        """
        local found = {};
        for username in require "core.usermanager".users(module.host) do table.insert(found, username); end
        return found;
        """
    )
    return set(found)


def until(condition: Callable[[], bool]) -> None:
    """Returns as soon as it holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline


async def refusal(attempt: Any) -> tuple[str, str, str]:
    with pytest.raises(Refused) as refused:
        await attempt
    return refused.value.type, refused.value.condition, refused.value.text


USED = ("cancel", "forbidden", "This invitation has been used already")
GONE = ("cancel", "forbidden", "This invitation has been used already, or was revoked")
NO_TOKEN = ("cancel", "forbidden", "The invite token is invalid or expired")
NO_INVITE = ("modify", "not-acceptable", "Registration on this server is through invitation only")


# Between preauth and registration


@pytest.mark.parametrize("ended", [False, True], ids=["expired", "expired-and-ended"])
async def test_who_presented_a_token_in_time_may_take_their_time(make: Make, ended: bool) -> None:
    server = make()
    token = create(server)
    async with await open_stream(server) as stream, await open_stream(server) as late:
        await stream.preauth(token)
        change(server, "UPDATE invite SET expires = created_at - 100, ended_at = iif(?, created_at, NULL)", ended)
        assert await refusal(late.preauth(token)) == NO_TOKEN
        await stream.register("juliet", "secret")
    assert accounts(server) == {"juliet"}


async def test_a_token_revoked_after_it_was_presented_is_refused(make: Make) -> None:
    server = make()
    token = create(server)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        revoke(server, token)
        assert await refusal(stream.register("juliet", "secret")) == GONE
    assert accounts(server) == set()


async def test_one_preauth_is_good_for_one_registration(make: Make) -> None:
    server = make()
    token = create(server)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("juliet", "secret")
        assert await refusal(stream.register("romeo", "secret")) == NO_INVITE
        assert await refusal(stream.preauth(token)) == NO_TOKEN
        assert await refusal(stream.register("romeo", "secret")) == NO_INVITE
    assert accounts(server) == {"juliet"}


async def test_a_reusable_token_needs_a_preauth_for_each_registration(make: Make) -> None:
    server = make()
    token = create(server, 'create_group({ "house" }, nil, 3600)')
    async with await open_stream(server) as stream:
        for name in ("juliet", "nurse"):
            await stream.preauth(token)
            await stream.register(name, "secret")
            assert await refusal(stream.register("romeo", "secret")) == NO_INVITE
    assert accounts(server) == {"juliet", "nurse"}


@pytest.mark.parametrize("priority", [1000, -1000])
@pytest.mark.parametrize("spoilt", ["used", "revoked"])
async def test_no_handler_that_allows_it_passes_a_spent_token(make: Make, spoilt: str, priority: int) -> None:
    server = make()
    token = create(server)
    server.eval(
        """
        module:hook("user-registering", function (event) event.allowed = true; return true; end, args.priority);
        """,
        priority=priority,
    )
    async with await open_stream(server) as stream, await open_stream(server) as other:
        await stream.preauth(token)
        if spoilt == "used":
            await other.preauth(token)
            await other.register("juliet", "secret")
        else:
            revoke(server, token)
        assert await refusal(stream.register("romeo", "secret")) == (USED if spoilt == "used" else GONE)
    assert "romeo" not in accounts(server)


async def test_a_reload_after_preauth_neither_opens_nor_closes(make: Make) -> None:
    server = make()
    good, used, revoked = (create(server) for _ in range(3))
    async with (
        await open_stream(server) as with_good,
        await open_stream(server) as with_used,
        await open_stream(server) as with_revoked,
    ):
        await with_good.preauth(good)
        await with_used.preauth(used)
        await with_revoked.preauth(revoked)
        async with await open_stream(server) as other:
            await other.preauth(used)
            await other.register("nurse", "secret")
        revoke(server, revoked)
        server.eval(RELOAD)
        assert await refusal(with_used.register("romeo", "secret")) == USED
        assert await refusal(with_revoked.register("romeo", "secret")) == GONE
        await with_good.register("juliet", "secret")
        server.eval(RELOAD)
        assert await refusal(with_good.register("romeo", "secret")) == NO_INVITE
    assert accounts(server) == {"juliet", "nurse"}
    assert rows(server, "SELECT sum(uses) FROM invite") == [(2,)]


# Names


async def test_a_bound_invite_makes_its_account_and_no_other(make: Make) -> None:
    server = make()
    token = create(server, 'create_account("Juliet")')
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        refused = ("modify", "not-acceptable", "This invitation is for the username juliet")
        assert await refusal(stream.register("romeo", "secret")) == refused
        await stream.register("JULIET", "secret")
    assert accounts(server) == {"juliet"}


@pytest.mark.parametrize("other", ["no token", "another token"])
async def test_a_bound_name_is_kept_for_who_has_the_token(make: Make, other: str) -> None:
    server = make(config="registration_invite_only = false;\nallow_registration = true;")
    bound = create(server, 'create_account("juliet")')
    reserved = ("cancel", "conflict", "This username is reserved")
    async with await open_stream(server) as stream, await open_stream(server) as holder:
        if other == "another token":
            await stream.preauth(create(server))
        assert await refusal(stream.register("juliet", "secret")) == reserved
        await stream.register("nurse", "secret")
        await holder.preauth(bound)
        await holder.register("juliet", "secret")
    assert accounts(server) == {"juliet", "nurse"}


@pytest.mark.parametrize("how", ["revoked", "expired"])
async def test_a_name_is_free_again_once_its_invite_is_over(make: Make, how: str) -> None:
    server = make()
    bound, token = create(server, 'create_account("juliet")'), create(server)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        if how == "revoked":
            revoke(server, bound)
        else:
            change(server, "UPDATE invite SET expires = created_at - 100 WHERE username = 'juliet'")
        await stream.register("juliet", "secret")


# Password resets


async def test_a_reset_works_once_however_many_presented_it(make: Make) -> None:
    server = make()
    server.add_user("juliet", "old")
    token = create(server, 'create_account_reset("juliet")')
    streams = [await open_stream(server) for _ in range(4)]
    for stream in streams:
        await stream.preauth(token)
    await streams[0].register("juliet", "new0")
    for number, stream in enumerate(streams[1:], 1):
        assert (await refusal(stream.register("juliet", f"new{number}")))[:2] == ("cancel", "forbidden")
    assert (await refusal(streams[0].register("juliet", "again")))[1] in {"not-acceptable", "conflict"}
    for stream in streams:
        await stream.close()
    async with await login(server, "juliet", "new0"):
        pass
    assert accounts(server) == {"juliet"}


async def test_a_reset_never_makes_an_account(make: Make) -> None:
    server = make()
    server.add_user("juliet", "old")
    server.add_user("romeo", "old")
    token = create(server, 'create_account_reset("juliet")')
    async with await open_stream(server) as stream, await open_stream(server) as other:
        await stream.preauth(token)
        await other.preauth(token)
        for username in ("nurse", "romeo"):
            refused = ("modify", "not-acceptable", "This invitation is for the username juliet")
            assert await refusal(stream.register(username, "new")) == refused
        server.eval('assert(require "core.usermanager".delete_user("juliet", module.host));')
        assert (await refusal(stream.register("juliet", "new")))[1] in {"forbidden", "item-not-found"}
        server.add_user("juliet", "somebody else's")
        assert (await refusal(other.register("juliet", "new"))) == GONE
    assert accounts(server) == {"juliet", "romeo"}
    async with await login(server, "juliet", "somebody else's"), await login(server, "romeo", "old"):
        pass


async def test_a_newer_reset_takes_the_place_of_the_older(make: Make) -> None:
    server = make()
    server.add_user("juliet", "old")
    older = create(server, 'create_account_reset("juliet")')
    async with await open_stream(server) as stream:
        await stream.preauth(older)
        newer = create(server, 'create_account_reset("juliet")')
        assert await refusal(stream.register("juliet", "new")) == GONE
        assert await refusal(stream.preauth(older)) == NO_TOKEN
        await stream.preauth(newer)
        await stream.register("juliet", "new")


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param('assert(require "core.usermanager".set_password("juliet", "x", module.host, nil));', id="changed"),
        # As mod_invites_register_api fires it: no table, only the name.
        pytest.param('module:fire_event("user-password-reset", "juliet");', id="reset-named-by-a-string"),
    ],
)
async def test_a_new_password_ends_every_open_reset(make: Make, changed: str) -> None:
    server = make()
    server.add_user("juliet", "old")
    server.add_user("romeo", "old")
    token, other = (create(server, f'create_account_reset("{name}")') for name in ("juliet", "romeo"))
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        server.eval(changed)
        assert await refusal(stream.register("juliet", "new")) == GONE
        assert await refusal(stream.preauth(token)) == NO_TOKEN
        await stream.preauth(other)
        await stream.register("romeo", "new")


# The inviter


async def test_an_invite_ends_with_its_inviter_for_good(make: Make) -> None:
    server = make()
    server.add_user("nurse", "secret")
    token = create(server, 'create_contact("nurse", true)')
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        server.eval('assert(require "core.usermanager".delete_user("nurse", module.host));')
        assert await refusal(stream.register("juliet", "secret")) == GONE
        server.add_user("nurse", "of somebody else")
        assert await refusal(stream.register("juliet", "secret")) == GONE
        assert await refusal(stream.preauth(token)) == NO_TOKEN
    assert accounts(server) == {"nurse"}


async def test_an_invite_ends_with_an_inviter_who_is_gone_unseen(make: Make) -> None:
    """Deleted by a prosodyctl of 0.12, which tells the server nothing."""
    server = make()
    server.add_user("nurse", "secret")
    token = create(server, 'create_contact("nurse", true)')
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        server.eval('module:context(module.host):open_store("accounts"):set("nurse", nil);')
        assert await refusal(stream.register("juliet", "secret")) == GONE
        server.add_user("nurse", "of somebody else")
        assert await refusal(stream.preauth(token)) == NO_TOKEN


async def test_an_invite_sleeps_while_its_inviter_is_disabled(make: Make) -> None:
    server = make(authentication="internal_hashed")
    server.add_user("nurse", "secret")
    token = create(server, 'create_contact("nurse", true)')
    able = 'assert(require "core.usermanager".{}_user("nurse", module.host));'.format
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        server.eval(able("disable"))
        assert await refusal(stream.register("juliet", "secret")) == GONE
        assert await refusal(stream.preauth(token)) == NO_TOKEN
        server.eval(able("enable"))
        await stream.preauth(token)
        await stream.register("juliet", "secret")
    assert accounts(server) == {"juliet", "nurse"}


# Events

#: Not module:hook: the module that runs this is reloaded along with ours.
RECORD = """
    local seen = module:shared("events");
    for _, name in ipairs({ "invite-used", "invite-revoked", "invite-expired" }) do
        prosody.hosts[module.host].events.add_handler(name, function (payload)
            local copy = { event = name };
            for k, v in pairs(payload) do copy[k] = v; end
            table.insert(seen, copy);
        end);
    end
"""
EVERY = {
    "event", "id", "host", "type", "kind", "state", "allow_registration", "created_at", "expires", "uses", "max_uses", "ended_at",
}
FOR_USED = {"purpose", "invitee", "source"}
FOR_REVOKED = {"revoked_at"}


def events(server: Prosody) -> list[dict[str, Any]]:
    seen = server.eval('return module:shared("events");')
    return list(seen) if isinstance(seen, list) else []


async def test_each_end_of_an_invite_is_an_event_and_none_tells_a_token(make: Make) -> None:
    server = make()
    for name in ("nurse", "romeo"):
        server.add_user(name, "secret")
    account = create(server, 'create_account("juliet", { note = "for a ball" })')
    contact = create(server, 'create_contact("nurse")')
    revoked = create(server, 'create_account("tybalt")')
    expired = create(server)
    server.eval(RECORD)

    async with await open_stream(server) as stream:
        await stream.preauth(account)
        await stream.register("juliet", "secret")
    async with await login(server, "romeo", "secret") as romeo:
        romeo.send_presence(to="nurse@example.com", type="subscribe", token=contact)
        await romeo.roster()
    for _ in range(2):
        revoke(server, revoked)
    change(server, "UPDATE invite SET expires = created_at - 100 WHERE ended_at IS NULL")
    for _ in range(2):
        server.tidy()
    until(lambda: len(events(server)) >= 4)

    by_account, by_contact, by_revocation, by_time = found = events(server)
    assert by_account.keys() == EVERY | FOR_USED | {"username", "additional_data"}
    assert by_contact.keys() == EVERY | FOR_USED | {"username", "inviter"}
    assert by_revocation.keys() == EVERY | FOR_REVOKED | {"username"}
    assert by_time.keys() == EVERY

    def of(event: dict[str, Any], *names: str) -> tuple[Any, ...]:
        return tuple(event[name] for name in names)

    common = ("event", "host", "type", "kind", "uses", "max_uses")
    assert of(by_account, *common) == ("invite-used", "example.com", "register", "account", 1, 1)
    assert of(by_contact, *common) == ("invite-used", "example.com", "roster", "contact", 1, 1)
    assert of(by_revocation, *common) == ("invite-revoked", "example.com", "register", "account", 0, 1)
    assert of(by_time, *common) == ("invite-expired", "example.com", "register", "account", 0, 1)
    used = ("purpose", "invitee", "source", "username")
    assert of(by_account, *used) == ("account", "juliet", "mod_register", "juliet")
    assert of(by_contact, *used) == ("contact", "romeo@example.com", "presence", "nurse")
    assert by_account["additional_data"] == {"note": "for a ball"}
    text = json.dumps(found)
    assert not [token for token in (account, contact, revoked, expired) if token in text]


async def test_a_reset_that_was_used_is_not_reported_as_revoked(make: Make) -> None:
    """Though the password it sets ends every open reset."""
    server = make()
    server.add_user("juliet", "old")
    token = create(server, 'create_account_reset("juliet")')
    server.eval(RECORD)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("juliet", "new")
    assert [event["event"] for event in events(server)] == ["invite-used"]
    assert rows(server, "SELECT uses, revoked_at FROM invite") == [(1, None)]


# Becoming a contact


@pytest.mark.parametrize("fault", ["unknown", "of another inviter", "for an account", "expired", "revoked", "used"])
async def test_a_bad_contact_token_leaves_an_ordinary_request(make: Make, fault: str) -> None:
    server = make()
    for name in ("juliet", "nurse", "romeo", "tybalt"):
        server.add_user(name, "secret")
    token = {
        "unknown": lambda: "x" * 24,
        "of another inviter": lambda: create(server, 'create_contact("nurse")'),
        "for an account": lambda: create(server),
    }.get(fault, lambda: create(server, 'create_contact("juliet")'))()
    if fault == "expired":
        change(server, "UPDATE invite SET expires = created_at - 100")
    elif fault == "revoked":
        revoke(server, token)
    async with (
        await login(server, "juliet", "secret") as juliet,
        await login(server, "romeo", "secret") as romeo,
        await login(server, "tybalt", "secret") as tybalt,
    ):
        juliet.send_presence()
        await juliet.roster()
        if fault == "used":
            tybalt.send_presence(to="juliet@example.com", type="subscribe", token=token)
            await tybalt.roster()
        romeo.send_presence(to="juliet@example.com", type="subscribe", token=token)
        request = await juliet.expect_presence(type="subscribe", sender="romeo@example.com")
        assert token not in str(request), "the inviter's client is not told tokens"
        assert (await romeo.roster())["juliet@example.com"].ask == "subscribe"
    uses = {"unknown": [], "used": [(1,)]}.get(fault, [(0,)])
    assert rows(server, "SELECT uses FROM invite") == uses
    assert rows(server, "SELECT * FROM claim") == []


@pytest.mark.parametrize("to", ["nurse@example.com", None], ids=["self", "nobody"])
@pytest.mark.parametrize("call", ["create_account()", 'create_contact("nurse")', 'create_contact("nurse", true)'])
async def test_nobody_invites_oneself(make: Make, call: str, to: str | None) -> None:
    server = make()
    server.add_user("nurse", "secret")
    token = create(server, call)
    async with await login(server, "nurse", "secret") as nurse:
        nurse.send_presence(to=to, type="subscribe", token=token)
        assert "nurse@example.com" not in await nurse.roster()
    assert rows(server, "SELECT uses FROM invite") == [(0,)]
    assert rows(server, "SELECT * FROM claim") == []
    assert "raceback" not in server.log()


# Presenting tokens


async def test_a_token_is_not_called_bad_while_the_storage_fails(make: Make) -> None:
    server = make(authentication="spec_slow")
    token = create(server)
    failing = ("wait", "internal-server-error", "The invitation cannot be checked at the moment")
    server.restart()  # a connection that is open already would not notice
    away = server.data_path.rename(server.scratch / "away")
    async with await open_stream(server) as stream:
        for _ in range(20):  # nor does it count as one
            assert await refusal(stream.preauth(token)) == failing
        away.rename(server.data_path)
        await stream.preauth(token)
        with locked(server):
            assert await refusal(stream.register("juliet", "secret")) == failing
        await stream.register("juliet", "secret")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]


async def test_an_account_that_was_made_uses_the_invite_as_soon_as_the_storage_answers(make: Make) -> None:
    server = make(authentication="spec_slow")
    token = create(server)
    async with await open_stream(server) as stream, await open_stream(server) as rival:
        await stream.preauth(token)
        await rival.preauth(token)
        server.eval(f'{SWITCH} switch.hold = "after";')
        registration = asyncio.create_task(stream.register("juliet", "secret"))
        while not await asyncio.to_thread(server.eval, f"{SWITCH} return switch.held > 0;"):
            pass
        with locked(server):
            server.eval(f"{SWITCH} switch.release();")
            await registration
            assert rows(server, "SELECT uses FROM invite") == [(0,)]
        until(lambda: rows(server, "SELECT uses FROM invite") == [(1,)])
        assert await refusal(rival.register("tybalt", "secret")) == USED
    assert accounts(server) == {"juliet"}
    assert rows(server, "SELECT * FROM claim") == []


# Durability


async def test_a_registration_costs_two_durable_writes(make: Make, tmp_path: Path) -> None:
    """The claim, which has to survive a crash, and the use."""
    server = make()
    token = create(server)
    trace = tmp_path / "trace"
    tracer = subprocess.Popen(
        ["strace", "-f", "-y", "-e", "trace=fsync,fdatasync", "-o", str(trace), "-p", str(server.pid)],
        stderr=subprocess.PIPE, text=True,
    )
    assert tracer.stderr is not None
    said = tracer.stderr.readline()
    if "attached" not in said:
        pytest.skip(f"the kernel does not let us trace a server: {said.strip()}")

    def writes() -> list[str]:
        return re.findall(r"f(?:data)?sync\(\d+<.*/(invites\.sqlite3[^>]*)>", trace.read_text())

    try:
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            assert writes() == []
            await stream.register("juliet", "secret")
            server.eval("return 1;")  # the server is past user-registered
    finally:
        tracer.terminate()
        tracer.wait()
    assert writes() == ["invites.sqlite3-wal"] * 2
