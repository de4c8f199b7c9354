"""An invite depends on the account that made it and on the account that it is about, and on proof of what became of them.

Nothing is taken away because somebody cannot tell; and nobody ends an attempt but whoever makes it.
"""

import asyncio
import hashlib
import json
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from client import Refused, Stream, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

SWITCH = 'local switch = module:shared("/example.com/auth_spec_slow/switch");'
#: One invite of each kind that nurse made, however a module may write her address, and those that she did not make.
MAKE_ALL = """
    local invites = module:depends("invites");
    local hers = {
        invites.create_account(nil, { source = "nurse@example.com/phone" });
        invites.create_account("romeo", { source = "Nurse@Example.COM" });
        invites.create_group({ "house" }, { source = "nurse@example.com/admin_api" }, 3600);
        invites.create_account_reset("juliet", { source = "nurse@example.com" });
        invites.create_contact("juliet", true, { source = "nurse@example.com" });
        invites.create_contact("nurse", true);
        invites.create_invite { kind = "reset", username = "nurse", by_operator = true };
    };
    local others = {
        invites.create_account(nil, { source = "api/token/1" });
        invites.create_account("nurse2", { source = "nurse@example.net" });
        invites.create_contact("juliet", true);
    };
    local function tokens(list)
        for i, invite in ipairs(list) do list[i] = invite.token; end
        return list;
    end
    return tokens(hers), tokens(others);
"""
STATES = """
    local states = {};
    for i, token in ipairs(args.tokens) do states[i] = module:depends("invites").show(token).state; end
    return states;
"""
CHECK = """
    local found = {};
    for i, token in ipairs(args.tokens) do
        local invites = module:depends("invites");
        local info = invites.get_invite_info(token);
        local about = info.type == "roster" and not info.allow_registration and info.jid:match("^[^@]+") or nil;
        local invite, condition = invites.get(token, about);
        found[i] = invite and "good" or condition;
    end
    return found;
"""


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module, with juliet and nurse."""

    def made(*modules: str, **options: Any) -> Prosody:
        server = prosody(
            plugin_paths=(native_lua,), modules=("register_ibr", "invites", "invites_register", *modules), **options
        )
        server.eval('module:depends("invites");')
        for name in ("juliet", "nurse"):
            server.add_user(name, "old")
        return server

    return made


def rows(server: Prosody, query: str, *parameters: Any) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        return database.execute(query, parameters).fetchall()


def change(server: Prosody, statement: str, *parameters: Any) -> None:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        database.execute(statement, parameters)


@contextmanager
def locked(server: Prosody) -> Iterator[None]:
    """Nothing can be stored meanwhile, and at the end something can again."""
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        yield
        lock.execute("ROLLBACK")
    until(server.can_store)


def exists(server: Prosody, username: str) -> bool:
    return server.eval(
        'return require "core.usermanager".user_exists(args.username, module.host) or false;', username=username
    )


def until(condition: Callable[[], bool]) -> None:
    """Returns as soon as it holds."""
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline


async def begin(server: Prosody, stream: Any, username: str, host: str = "example.com") -> asyncio.Task[None]:
    """A registration that is stopped before its account is made, until `GO_ON`."""
    server.eval(f'{SWITCH} switch.hold = "before";', host=host)
    registration = asyncio.create_task(stream.register(username, "secret"))
    while not await asyncio.to_thread(server.eval, f"{SWITCH} return switch.held > 0;", host=host):
        assert not registration.done()
    return registration


GO_ON = f"{SWITCH} switch.release();"


# Who it depends on


def test_a_deletion_revokes_what_the_account_made_and_what_is_about_it_and_is_listed_beforehand(make: Make) -> None:
    server = make()
    hers, others = server.eval(MAKE_ALL)
    listed = server.eval(
        """
        local tokens = {};
        for invite in module:depends("invites").list({ inviter = args.inviter }) do table.insert(tokens, invite.id); end
        return #tokens;
        """,
        inviter="nurse",
    )
    assert listed == len(hers)
    server.eval('assert(require "core.usermanager".delete_user("nurse", module.host));')
    assert server.eval(STATES, tokens=hers) == ["revoked"] * len(hers)
    assert server.eval(STATES, tokens=others) == ["pending"] * len(others)
    assert "The account nurse was deleted: 7 open invites that depended on it were revoked" in server.log()


async def test_an_invite_of_an_administrators_command_ends_with_the_account_of_the_administrator(make: Make) -> None:
    server = make("adhoc", "invites_adhoc", config='admins = { "nurse@example.com" }')
    async with await login(server, "nurse", "old") as nurse:
        made = await nurse.command("urn:xmpp:invite#create-account")
    token = made.form["uri"][0].partition("preauth=")[2]
    server.eval('assert(require "core.usermanager".delete_user("nurse", module.host));')
    async with await open_stream(server) as stream:
        with pytest.raises(Refused) as refused:
            await stream.preauth(token)
        assert refused.value.condition == "forbidden"


def test_invites_of_any_kind_sleep_while_their_maker_is_disabled_and_operators_are_told(make: Make) -> None:
    server = make(authentication="internal_hashed")
    hers, others = server.eval(MAKE_ALL)
    server.eval('assert(require "core.usermanager".disable_user("nurse", module.host));')
    assert server.eval(CHECK, tokens=hers) == ["token-invalid"] * len(hers)
    assert server.eval(CHECK, tokens=others) == ["good"] * len(others)
    for token in hers:
        why = server.eval('return select(2, module:depends("invites").why(args.token));', token=token)
        assert why[0] == "token-invalid" and '"nurse"' in why[1] and "disabled" in why[1]
    server.eval('assert(require "core.usermanager".enable_user("nurse", module.host));')
    assert server.eval(CHECK, tokens=hers) == ["good"] * len(hers)


def test_an_account_that_its_own_storage_does_not_have_any_more_is_gone(make: Make) -> None:
    """As after `prosodyctl deluser`, which tells the server nothing."""
    server = make()
    hers, others = server.eval(MAKE_ALL)
    server.eval('assert(module:open_store("accounts"):set("nurse", nil));')
    assert server.eval(CHECK, tokens=hers) == ["token-invalid"] * len(hers)
    assert server.eval(STATES, tokens=hers) == ["revoked"] * len(hers)
    assert server.eval(CHECK, tokens=others) == ["good"] * len(others)


def test_a_deletion_while_the_storage_fails_ends_what_was_made_before_it_and_nothing_of_the_next_owner(
    make: Make,
) -> None:
    server = make()
    hers, others = server.eval(MAKE_ALL)
    # A clock counts seconds, and the next owner comes later.
    change(server, "UPDATE invite SET created_at = created_at - 60")
    with locked(server):
        server.eval('assert(require "core.usermanager".delete_user("nurse", module.host));')
        server.add_user("nurse", "new")
    change(server, "UPDATE invite SET created_at = created_at + 3600 WHERE digest = ?", hashlib.sha256(hers[0].encode()).digest())
    until(lambda: server.eval(STATES, tokens=hers[1:]) == ["revoked"] * len(hers[1:]))
    assert server.eval(STATES, tokens=[hers[0], *others]) == ["pending"] * (1 + len(others))


# Who cannot tell


async def test_a_provider_that_does_not_find_an_account_revokes_nothing_and_lets_nobody_in(make: Make) -> None:
    """LDAP, SQL and others say false, or nothing, of an account that is not there and when they cannot ask."""
    server = make(authentication="spec_slow")
    hers, others = server.eval(MAKE_ALL)
    server.eval('module:shared("validated").invite = module:depends("invites").get(args.token);', token=hers[0])
    for answer in ("false", "nil", 'nil, "Auth failed. Invalid username"'):
        server.eval(
            f"""
            local provider, switch = prosody.hosts[module.host].users, module:shared("outage");
            switch.user_exists = switch.user_exists or provider.user_exists;
            function provider.user_exists(username)
                if username == "nurse" then return {answer}; end
                return switch.user_exists(username);
            end
            """
        )
        assert server.eval(CHECK, tokens=hers) == ["account-unknown"] * len(hers)
        assert server.eval(CHECK, tokens=others) == ["good"] * len(others)
        async with await open_stream(server) as stream:
            with pytest.raises(Refused) as refused:
                await stream.preauth(hers[0])
            assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
        assert server.eval('return module:shared("validated").invite:use();') == (None, "account-unknown")
        condition, text = server.eval('return select(2, module:depends("invites").why(args.token));', token=hers[0])[:2]
        assert condition == "account-unknown" and "nurse" in text and "cannot be asked" in text
    server.eval('prosody.hosts[module.host].users.user_exists = module:shared("outage").user_exists;')
    assert server.eval(STATES, tokens=hers) == ["pending"] * len(hers)
    assert server.eval(CHECK, tokens=hers) == ["good"] * len(hers)
    assert server.eval('return module:shared("validated").invite:use();') is True


def test_no_link_is_made_for_an_account_that_the_provider_does_not_find(make: Make) -> None:
    server = make(authentication="spec_slow")
    sentence = "there is no account typo@example.com, or the authentication provider cannot be asked for it"
    for option in ("--contact", "--reset"):
        refused = server.prosodyctl("mod_invites", "generate", "example.com", option, "typo")
        assert (refused.returncode, refused.stdout) == (1, "")
        assert sentence in refused.stderr
    for call in ('create_account_reset("typo")', 'create_account(nil, { allow_reset = "typo" })'):
        assert server.eval(f'return module:depends("invites").{call};') == (None, "account-unknown")
    # Whoever was brought stays on the list of whom to look at.
    server.eval(
        """
        local invites = module:depends("invites");
        local invite = assert(invites.create_account(nil, { source = "nurse@example.com" }));
        local validated = assert(invites.get(invite.token));
        module:fire_event("user-registered", { username = "typo", host = module.host, validated_invite = validated });
        """
    )
    listed = server.prosodyctl("mod_invites", "tree", "example.com", "nurse", "--accounts")
    assert listed.stdout.split() == ["nurse@example.com", "typo@example.com"]
    told = server.prosodyctl("mod_invites", "tree", "example.com", "nurse", "--json")
    assert [json.loads(line)["account"] for line in told.stdout.splitlines()] == ["active", "unknown"]


# Deleted in between


async def test_no_contact_brings_back_the_roster_of_an_inviter_who_was_deleted_meanwhile(make: Make) -> None:
    server = make(authentication="spec_slow")
    token = server.eval('return module:depends("invites").create_contact("nurse", true).token;')
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        registration = await begin(server, stream, "romeo")
        server.eval('assert(require "core.usermanager".delete_user("nurse", module.host));')
        server.eval(GO_ON)
        await registration
    assert exists(server, "romeo")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    server.add_user("nurse", "new")
    for name in ("nurse", "romeo"):
        async with await login(server, name, "new" if name == "nurse" else "secret") as stream:
            assert await stream.roster() == {}


async def test_whoever_gets_the_name_of_a_deleted_inviter_meanwhile_has_no_strangers_in_the_roster(make: Make) -> None:
    server = make(authentication="spec_slow")
    token = server.eval('return module:depends("invites").create_contact("nurse", true).token;')
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        registration = await begin(server, stream, "romeo")
        server.eval(
            """
            assert(require "core.usermanager".delete_user("nurse", module.host));
            module:open_store("accounts"):set("nurse", { password = "new" });
            """
        )
        server.eval(GO_ON)
        await registration
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    for name, password in (("nurse", "new"), ("romeo", "secret")):
        async with await login(server, name, password) as stream:
            assert await stream.roster() == {}


#: Looking for nurse waits, as soon as there is a romeo, until `GO_ON_LOOKING`.
HOLD_LOOKING = """
    local async = require "util.async";
    local provider, looking = prosody.hosts[module.host].users, module:shared("looking");
    local user_exists, accounts = provider.user_exists, module:open_store("accounts");
    function provider.user_exists(username)
        if username == "nurse" and not looking.go_on and accounts:get("romeo") then
            local wait, done = async.waiter();
            looking.go_on = done;
            wait();
        end
        return user_exists(username);
    end
"""
GO_ON_LOOKING = 'require "util.timer".add_task(0, module:shared("looking").go_on);'
SESSIONS = 'local n = 0; for _ in pairs(module:shared("/*/c2s/sessions")) do n = n + 1; end return n;'


async def test_who_hangs_up_while_the_inviter_is_looked_for_gets_what_was_promised_all_the_same(make: Make) -> None:
    server = make(authentication="spec_slow")
    token = server.eval(
        """
        local data = { roles = { ["prosody:admin"] = true } };
        return assert(module:depends("invites").create_contact("nurse", true, data)).token;
        """
    )
    server.eval(HOLD_LOOKING)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("romeo", "secret")
        until(lambda: server.eval('return module:shared("looking").go_on ~= nil;'))
    until(lambda: server.eval(SESSIONS) == 0)
    server.eval(GO_ON_LOOKING)
    until(lambda: server.eval(IS_ADMIN, username="romeo"))
    async with await login(server, "nurse", "old") as nurse:
        assert (await nurse.roster())["romeo@example.com"].subscription == "both"
    assert rows(server, "SELECT invitee FROM redemption") == [("romeo",)]


# Whose attempt it is


async def test_a_deletion_by_somebody_else_ends_no_attempt(make: Make) -> None:
    server = make(authentication="spec_slow")
    token = server.eval('return module:depends("invites").create_account().token;')
    async with await open_stream(server) as first, await open_stream(server) as rival:
        await first.preauth(token)
        await rival.preauth(token)
        registration = await begin(server, first, "romeo")
        server.eval(
            """
            -- An account of that name comes and goes.
            module:open_store("accounts"):set("romeo", { password = "x" });
            assert(require "core.usermanager".delete_user("romeo", module.host));
            """
        )
        with pytest.raises(Refused, match="being used right now"):
            await rival.register("tybalt", "secret")
        server.eval(GO_ON)
        await registration
        with pytest.raises(Refused, match="used already"):
            await rival.register("tybalt", "secret")
    assert not exists(server, "tybalt")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]


ATTEMPT = """
    local invite = module:shared("validated").invite;
    local event = { username = args.username, host = module.host, ip = "::1", validated_invite = invite, allowed = true };
    module:fire_event("user-registering", event);
    if not event.allowed then return event.reason; end
    assert(require "core.usermanager".create_user(args.username, "secret", module.host));
    event.source = "spec";
    module:fire_event("user-registered", event);
    return "made";
"""


async def test_a_second_attempt_with_the_same_validated_invite_does_not_end_the_first(make: Make) -> None:
    """Two requests of one web session, say: each runs in a coroutine of its own."""
    server = make(authentication="spec_slow")
    server.eval(
        """
        local invites = module:depends("invites");
        module:shared("validated").invite = invites.get(invites.create_account().token);
        """
    )
    server.eval(f'{SWITCH} switch.hold = "before";')
    first = asyncio.create_task(asyncio.to_thread(server.eval, ATTEMPT, username="romeo"))
    while not await asyncio.to_thread(server.eval, f"{SWITCH} return switch.held > 0;"):
        assert not first.done()
    server.eval(f"{SWITCH} switch.hold = nil;")
    assert "being used right now" in server.eval(ATTEMPT, username="tybalt")
    server.eval(GO_ON)
    assert await first == "made"
    assert not exists(server, "tybalt")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]


async def test_an_invite_that_another_coroutine_uses_too_is_not_used_with_the_claim_of_the_first(make: Make) -> None:
    server = make(authentication="spec_slow")
    server.eval(
        """
        local invites = module:depends("invites");
        module:shared("validated").invite = invites.get(invites.create_account().token);
        """
    )
    server.eval(f'{SWITCH} switch.hold = "before";')
    first = asyncio.create_task(asyncio.to_thread(server.eval, ATTEMPT, username="romeo"))
    while not await asyncio.to_thread(server.eval, f"{SWITCH} return switch.held > 0;"):
        assert not first.done()
    assert server.eval('return module:shared("validated").invite:use();') == (None, "token-used")
    server.eval(GO_ON)
    assert await first == "made"
    assert rows(server, "SELECT invitee FROM redemption") == [("romeo",)]


async def registered_while_locked(server: Prosody, stream: Stream, username: str, then: Callable[[], Awaitable[None]]) -> None:
    """Makes an account whose use cannot be stored yet; `then` is awaited before it can."""
    server.eval(f'{SWITCH} switch.hold = "after";')
    registration = asyncio.create_task(stream.register(username, "secret"))
    while not await asyncio.to_thread(server.eval, f"{SWITCH} return switch.held > 0;"):
        assert not registration.done()
    with locked(server):
        server.eval(GO_ON)
        await registration
        await then()


async def test_the_next_registration_of_a_stream_does_not_end_a_use_that_cannot_be_stored_yet(make: Make) -> None:
    server = make(authentication="spec_slow")
    create = 'return module:depends("invites").create_account().token;'
    tokens = [server.eval(create), server.eval(create)]
    async with await open_stream(server) as stream:
        await stream.preauth(tokens[0])
        await registered_while_locked(server, stream, "romeo", lambda: stream.preauth(tokens[1]))
        await stream.register("tybalt", "secret")
    until(lambda: rows(server, "SELECT * FROM claim") == [])
    assert rows(server, "SELECT uses FROM invite") == [(1,), (1,)]


async def test_a_user_who_leaves_at_once_does_not_end_a_use_that_cannot_be_stored_yet(make: Make) -> None:
    server = make("user_account_management", authentication="spec_slow")
    token = server.eval('return module:depends("invites").create_account().token;')

    async with await open_stream(server) as stream:
        await stream.preauth(token)

        async def leave() -> None:
            await stream.authenticate("romeo", "secret")
            with suppress(ConnectionError):
                await stream.remove_account()
            until(lambda: not exists(server, "romeo"))

        await registered_while_locked(server, stream, "romeo", leave)
    until(lambda: rows(server, "SELECT * FROM claim") == [])
    assert rows(server, "SELECT uses FROM invite") == [(1,)]


# A host that goes off and on

#: Run on the other host. What waits in the provider goes on with the one that it waited in.
OFF_AND_ON = """
    local hostmanager = require "core.hostmanager";
    local release = module:shared("/example.com/auth_spec_slow/switch").release;
    assert(hostmanager.deactivate("example.com"));
    assert(hostmanager.activate("example.com"));
    local switch = module:shared("/example.com/auth_spec_slow/switch");
    switch.release_before = release;
    function switch.failure_before() switch.failure = "no"; release(); end
"""
GO_ON_BEFORE = f"{SWITCH} switch.hold = nil; switch.release_before();"
WITH_ROLE = """
    local roles = { ["prosody:admin"] = true };
    return assert(module:depends("invites").create_account(nil, { roles = roles })).token;
"""
IS_ADMIN = """
    local um = require "core.usermanager";
    if um.get_user_role then return um.get_user_role(args.username, module.host).name == "prosody:admin"; end
    return (um.get_roles(args.username.."@"..module.host, module.host) or {})["prosody:admin"] or false;
"""


async def test_an_account_gets_its_role_when_its_host_went_off_and_on_meanwhile(make: Make) -> None:
    server = make(authentication="spec_slow", hosts={"example.com": "", "example.net": ""})
    token = server.eval(WITH_ROLE)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        registration = await begin(server, stream, "romeo", host="example.net")
        server.eval(OFF_AND_ON, host="example.net")
        assert len(rows(server, "SELECT * FROM claim")) == 1
        server.eval(GO_ON_BEFORE, host="example.net")
        await registration
    server.eval('module:depends("invites");')
    assert server.eval(IS_ADMIN, username="romeo")
    assert rows(server, "SELECT uses FROM invite") == [(1,)]
    assert rows(server, "SELECT invitee FROM redemption") == [("romeo",)]
    assert rows(server, "SELECT * FROM claim") == []


async def test_an_invite_is_free_as_soon_as_its_registration_fails_though_its_host_went_off_and_on(make: Make) -> None:
    server = make(authentication="spec_slow", hosts={"example.com": "", "example.net": ""})
    token = server.eval(WITH_ROLE)
    async with await open_stream(server) as stream, await open_stream(server) as rival:
        await stream.preauth(token)
        await rival.preauth(token)
        registration = await begin(server, stream, "romeo", host="example.net")
        server.eval(OFF_AND_ON, host="example.net")
        with pytest.raises(Refused, match="being used right now"):
            await rival.register("tybalt", "secret")
        server.eval(f'{SWITCH} switch.failure_before();', host="example.net")
        with pytest.raises(Refused):
            await registration
        until(lambda: rows(server, "SELECT * FROM claim") == [])
        server.eval(f"{SWITCH} switch.failure = nil;", host="example.net")
        await rival.register("tybalt", "secret")
    assert not exists(server, "romeo")


async def test_a_registration_that_failed_just_before_its_host_went_off_leaves_no_claim(make: Make) -> None:
    server = make(authentication="spec_slow", hosts={"example.com": "", "example.net": ""})
    token = server.eval(WITH_ROLE)
    server.eval(
        """
        -- Nobody looks after attempts by a timer any more.
        local timer = require "util.timer";
        local add_task = timer.add_task;
        function timer.add_task(delay, callback, param)
            return add_task(delay, function (...)
                local again = callback(...);
                return again == 0.1 and 600 or again;
            end, param);
        end
        """
    )
    async with await open_stream(server) as stream, await open_stream(server) as rival:
        await stream.preauth(token)
        await rival.preauth(token)
        registration = await begin(server, stream, "romeo", host="example.net")
        server.eval(f'{SWITCH} switch.failure = "no"; switch.release();', host="example.net")
        with pytest.raises(Refused):
            await registration
        assert len(rows(server, "SELECT * FROM claim")) == 1
        server.eval(OFF_AND_ON, host="example.net")
        server.eval(f"{SWITCH} switch.failure = nil;", host="example.net")
        assert rows(server, "SELECT * FROM claim") == []
        await rival.register("tybalt", "secret")


#: The next account is made when `go_on` is called. Prosody's own provider never waits by itself.
HOLD_CREATING = """
    local async = require "util.async";
    local provider, waiting = prosody.hosts[module.host].users, prosody.spec_waiting or {};
    rawset(prosody, "spec_waiting", waiting);
    local create_user = provider.create_user;
    function provider.create_user(...)
        local wait, done = async.waiter();
        waiting.go_on = done;
        wait();
        if waiting.failure then return nil, waiting.failure; end
        return create_user(...);
    end
"""
UNLOAD = """
    local unload = require "core.modulemanager".unload;
    unload("example.com", "invites_register");
    assert(unload("example.com", "invites"));
"""
LOAD = """
    local load = require "core.modulemanager".load;
    assert(load("example.com", "invites_register"));
    load("example.com", "spec_eval"); -- which had called upon it
"""


@pytest.mark.parametrize("is_made", [True, False], ids=["made", "failed"])
async def test_a_claim_that_nobody_holds_is_settled_after_a_lease(make: Make, is_made: bool) -> None:
    """What became of its registration was not seen; Prosody's own storage tells."""
    server = make(hosts={"example.com": "", "example.net": ""})
    token = server.eval('return module:depends("invites").create_account().token;')
    async with await open_stream(server) as stream, await open_stream(server) as rival:
        await stream.preauth(token)
        await rival.preauth(token)
        server.eval(HOLD_CREATING)
        registration = asyncio.create_task(stream.register("romeo", "secret"))
        waits = "return prosody.spec_waiting.go_on ~= nil;"
        while not await asyncio.to_thread(server.eval, waits, host="example.net"):
            assert not registration.done()
        server.eval(UNLOAD, host="example.net")
        server.eval("prosody.spec_waiting.failure = args.failure;", host="example.net", failure=None if is_made else "no")
        server.eval('require "util.timer".add_task(0, prosody.spec_waiting.go_on);', host="example.net")
        if is_made:
            await registration
        else:
            with pytest.raises(Refused):
                await registration
        server.eval(LOAD, host="example.net")
        assert len(rows(server, "SELECT * FROM claim")) == 1
        server.set_lease(0.5)
        until(lambda: rows(server, "SELECT * FROM claim") == [])
        assert rows(server, "SELECT uses FROM invite") == [(1 if is_made else 0,)]
    assert rows(server, "SELECT invitee, source FROM redemption") == ([("romeo", "settled after a crash")] if is_made else [])
