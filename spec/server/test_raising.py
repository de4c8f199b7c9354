"""Whatever raises an error (a handler of an event, an auth provider, a storage driver, the work of a timer) is logged in
one line with what follows from it, and stops nothing: the stanza is answered, the other handlers run, the timer comes
again, what was stored is returned.

One server for all tests of a version; each activates a host of its own, on which the error stays.
"""

import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest

from client import Refused, Stream, login, open_stream
from prosody import CHECKOUT, COMMUNITY_MODULES, VERSIONS, Prosody

MODULES = ("register_ibr", "adhoc", "invites", "invites_register")

CREATE = 'return assert(module:depends("invites").create_account()).token;'
FROM_NURSE = 'return assert(module:depends("invites").create_contact("nurse", true)).token;'
RELOAD = 'assert(require "core.modulemanager".reload(module.host, "invites"));'

#: A handler of `event` that raises an error, before and after those that write down that they were called.
RAISE = """
    local seen = module:shared("seen");
    module:hook(args.event, function () seen.before = (seen.before or 0) + 1; end, args.priority + 1);
    module:hook(args.event, function ()
        if not seen.is_mended then error("Tybalt draws"); end
    end, args.priority);
    module:hook(args.event, function () seen.after = (seen.after or 0) + 1; end, args.priority - 1);
"""

#: The same, in a handler that is a tail call of another function, after it has waited.
RAISE_LATE = """
    local async, timer = require "util.async", require "util.timer";
    local seen = module:shared("seen");
    local function wait_and_raise()
        local wait, done = async.waiter();
        timer.add_task(0, done);
        wait();
        error("Tybalt draws");
    end
    module:hook(args.event, function () seen.before = (seen.before or 0) + 1; end, args.priority + 1);
    module:hook(args.event, function () return wait_and_raise(); end, args.priority);
    module:hook(args.event, function ()
        local wait, done = async.waiter();
        timer.add_task(0, done);
        wait();
        seen.after = (seen.after or 0) + 1;
    end, args.priority - 1);
"""

#: The same, in a handler that calls itself until the stack is full. It has so many locals that this is soon.
RAISE_DEEP = RAISE.replace(
    'error("Tybalt draws")',
    f"local function draw() local {', '.join(f'a{n}' for n in range(20))}; return 1 + draw(); end draw()",
)

#: Timers that come each minute come all the time.
HURRY = """
    local timer = require "util.timer";
    local add_task = timer.add_task;
    function timer.add_task(delay, callback, ...)
        local function hurried(...)
            local again = callback(...);
            return again == 60 and 0.02 or again;
        end
        return add_task(delay == 60 and 0 or delay, hurried, ...);
    end
    assert(require "core.modulemanager".reload(module.host, "invites"));
    timer.add_task = add_task;
"""

#: The accounts lie elsewhere, so that there is no store to ask beside the provider.
PROVIDER_RAISES = """
    local users = prosody.hosts[module.host].users;
    users.name = "directory";
    for _, method in ipairs(args.methods) do
        users[method] = function () error("Tybalt draws"); end
    end
"""


@dataclass
class Host:
    """One of the hosts of a server, new for each test."""

    server: Prosody
    name: str
    _from: int = field(init=False)

    def __post_init__(self) -> None:
        self._from = len(self.server.log())

    def eval(self, lua: str, **args: Any) -> Any:
        return self.server.eval(lua, host=self.name, **args)

    def raise_in(self, event: str, priority: float = 100, *, late: bool = False) -> None:
        self.eval(RAISE_LATE if late else RAISE, event=event, priority=priority)

    def seen(self) -> Any:
        """How often the handlers were called that are around the one that raises."""
        return self.eval('local seen = module:shared("seen"); return seen.before, seen.after;')

    def stream(self) -> Any:
        return open_stream(self.server, self.name)

    def errors(self, *, about: str = "") -> list[str]:
        """What our module has logged as an error since the test began."""
        lines = self.server.log()[self._from :].splitlines()
        ours = re.compile(rf"{re.escape(self.name)}:invites\s+error\s+(.*)")
        return [found[1] for found in map(ours.search, lines) if found and about in found[1]]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        with closing(sqlite3.connect(self.server.data_path / "invites.sqlite3")) as database:
            return database.execute(query, (self.name,)).fetchall()

    def exists(self, username: str) -> bool:
        return self.eval(
            'return require "core.usermanager".user_exists(args.username, module.host) or false;', username=username
        )


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Prosody]:
    with Prosody(
        request.param,
        config="""
            storage = { accounts = "spec_fault", invite_token = "spec_fault" };
            invite_limits = { ["prosody:registered"] = { max_open = 10 } };
        """,
        modules=MODULES,
        plugin_paths=(CHECKOUT / "lua", COMMUNITY_MODULES),
    ) as running:
        running.start()
        yield running


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return count()


@pytest.fixture
def host(server: Prosody, numbers: Iterator[int]) -> Host:
    name = f"h{next(numbers)}.example"
    server.eval('assert(require "core.hostmanager".activate(args.name, {}));', name=name)
    return Host(server, name)


def until(condition: Callable[[], bool]) -> None:
    """Returns as soon as it holds."""
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def register(host: Host, token: str, username: str = "juliet") -> None:
    async with await host.stream() as stream:
        await stream.preauth(token)
        await stream.register(username, "secret")


def contact(host: Host, username: str, jid: str) -> str | None:
    return host.eval(
        """
        local item = require "core.rostermanager".load_roster(args.username, module.host)[args.jid];
        return item and item.subscription;
        """,
        username=username, jid=jid,
    )


# Our own events

@pytest.mark.parametrize("event", ["invite-created", "invite-stored"])
@pytest.mark.parametrize(
    "call", ["create_account()", 'create_contact("nurse")', "create_invites({}, 1)[1]"], ids=["one", "contact", "many"]
)
def test_what_is_stored_is_returned(host: Host, event: str, call: str) -> None:
    host.raise_in(event)
    token = host.eval(f'local invites = module:depends("invites"); return assert(assert(invites.{call}).token);')
    assert host.eval('return module:depends("invites").show(args.token).state;', token=token) == "pending"
    assert host.seen() == (1, 1)
    error, = host.errors()
    assert event in error
    assert "which changes nothing about the invite" in error
    assert error.endswith("Tybalt draws")


def test_all_invites_that_are_revoked_are_told(host: Host) -> None:
    for _ in range(3):
        host.eval(FROM_NURSE)
    host.raise_in("invite-revoked")
    assert host.eval('return module:depends("invites").revoke_inviter("nurse");') == 3
    assert host.seen() == (3, 3)
    assert len(host.errors(about="invite-revoked")) == 3


def test_an_invite_is_used_whatever_its_handlers_do(host: Host) -> None:
    host.raise_in("invite-used")
    token = host.eval(CREATE)
    assert host.eval('return module:depends("invites").use(args.token);', token=token) is True
    assert host.seen() == (1, 1)
    assert len(host.errors(about="invite-used")) == 1


def test_expiry_goes_on(host: Host) -> None:
    host.raise_in("invite-expired")
    host.eval(HURRY)
    for number in (1, 2):
        host.eval(CREATE)
        with closing(sqlite3.connect(host.server.data_path / "invites.sqlite3", timeout=5)) as database, database:
            database.execute("UPDATE invite SET expires = created_at - 1 WHERE host = ?", [host.name])
        until(lambda: host.seen() == (number, number))
    assert len(host.errors(about="invite-expired")) == 2


def test_a_handler_that_calls_itself_without_end_does_not_hold_the_server(host: Host) -> None:
    host.eval(RAISE_DEEP, event="invite-created", priority=100)
    since = time.monotonic()
    host.eval(CREATE)
    assert time.monotonic() - since < 5
    assert host.seen() == (1, 1)
    error, = host.errors()
    assert error.endswith("stack overflow")


def test_an_error_that_has_no_message_is_one_like_others(host: Host) -> None:
    host.eval(
        """
        local oddity = setmetatable({}, { __tostring = function (self) error(self); end });
        module:hook("invite-created", function () error(oddity); end, 100);
        """
    )
    assert isinstance(host.eval(CREATE), str)
    assert len(host.errors(about="invite-created")) == 1


def test_a_wrapper_that_raises_does_not_keep_the_handlers_from_running(host: Host) -> None:
    """It is behind ours: it was there when our module was loaded."""
    host.eval(
        """
        module:wrap_event("user-registered", function () error("Tybalt draws"); end);
        module:hook("user-registered", function () module:shared("seen").after = 1; end, -1);
        """
    )
    host.eval(RELOAD)
    host.eval('module:fire_event("user-registered", { username = "juliet", host = module.host });')
    assert host.eval('return module:shared("seen").after;') == 1
    error, = host.errors()
    assert error.startswith("A wrapper of user-registered failed")


# Registering

@pytest.mark.parametrize("late", [False, True], ids=["at-once", "after-waiting"])
async def test_a_registration_is_refused_where_a_handler_cannot_say_whether_it_may(host: Host, late: bool) -> None:
    host.raise_in("user-registering", -5, late=late)
    token = host.eval(CREATE)
    async with await host.stream() as stream:
        await stream.preauth(token)
        with pytest.raises(Refused) as refused:
            await stream.register("juliet", "secret")
    assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
    assert not host.exists("juliet")
    assert host.seen() == (1, 1)
    error, = host.errors()
    assert "so the registration is refused" in error


async def test_an_invite_is_good_again_when_the_handler_is(host: Host) -> None:
    host.raise_in("user-registering", 5)
    token = host.eval(CREATE)
    with pytest.raises(Refused):
        await register(host, token)
    host.eval('module:shared("seen").is_mended = true;')
    await register(host, token)
    assert host.exists("juliet")


@pytest.mark.parametrize("late", [False, True], ids=["at-once", "after-waiting"])
async def test_a_new_account_gets_what_its_invite_promises(host: Host, late: bool) -> None:
    """The handler comes before those of mod_invites_register and others."""
    host.server.add_user("nurse", "secret", host=host.name)
    host.raise_in("user-registered", 10, late=late)
    await register(host, host.eval(FROM_NURSE))
    until(lambda: host.seen() == (1, 1))
    until(lambda: contact(host, "nurse", f"juliet@{host.name}") == "both")
    error, = host.errors()
    assert "user-registered" in error
    assert "which changes nothing about the account" in error


async def test_a_password_is_reset_and_its_invite_used(host: Host) -> None:
    host.server.add_user("juliet", "forgotten", host=host.name)
    host.raise_in("user-password-reset", 10)
    await register(host, host.eval('return module:depends("invites").create_account_reset("juliet").token;'))
    async with await login(host.server, "juliet", "secret", host.name):
        pass
    assert host.seen() == (1, 1)
    assert host.rows("SELECT uses FROM invite WHERE host = ?") == [(1,)]
    assert len(host.errors()) == 1


def test_a_handler_of_ours_that_fails_keeps_no_other_from_running(host: Host) -> None:
    host.eval(
        """
        module:hook_global("user-password-changed", function (event)
            if event.host == module.host then module:shared("seen").after = 1; end
        end, -1000);
        prosody.events.fire_event("user-password-changed", { username = {}, host = module.host });
        """
    )
    assert host.eval('return module:shared("seen").after;') == 1
    assert len(host.errors(about="user-password-changed")) == 1


# Other stanzas

async def test_a_token_is_answered_by_the_handlers_that_are_left(host: Host) -> None:
    host.raise_in("stanza/iq/urn:xmpp:pars:0:preauth", 5)
    token = host.eval(CREATE)
    await register(host, token)
    assert host.exists("juliet")
    assert len(host.errors(about="preauth")) == 1


async def test_a_token_that_nobody_is_left_to_answer_is_answered_with_an_error(host: Host) -> None:
    """Somebody else answers in the place of mod_invites_register, and fails."""
    host.eval(
        """
        module:hook("stanza/iq/urn:xmpp:pars:0:preauth", function () error("Tybalt draws"); end, 1);
        local events = prosody.hosts[module.host].events;
        local handlers = events.get_handlers("stanza/iq/urn:xmpp:pars:0:preauth");
        events.remove_handler("stanza/iq/urn:xmpp:pars:0:preauth", handlers[#handlers]);
        """
    )
    token = host.eval(CREATE)
    async with await host.stream() as stream:
        with pytest.raises(Refused) as refused:
            await stream.preauth(token)
    assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")


async def test_a_contact_is_made_whatever_a_handler_before_does(host: Host) -> None:
    host.server.add_user("nurse", "secret", host=host.name)
    host.server.add_user("juliet", "secret", host=host.name)
    host.raise_in("presence/bare", 5)
    token = host.eval('return module:depends("invites").create_contact("nurse").token;')
    async with await login(host.server, "juliet", "secret", host.name) as juliet:
        juliet.send_presence(to=f"nurse@{host.name}", type="subscribe", token=token)
        await juliet.roster()  # answered after it
    assert contact(host, "nurse", f"juliet@{host.name}") == "both"
    assert host.rows("SELECT uses FROM invite WHERE host = ?") == [(1,)]
    assert host.errors(about="presence/bare")


async def test_the_user_of_a_command_that_fails_is_told(host: Host) -> None:
    host.server.add_user("juliet", "secret", host=host.name)
    host.eval(
        """
        local new = module:require "adhoc".new;
        module:provides("adhoc", new("Invite", "urn:xmpp:invite#invite", function () error("Tybalt draws"); end, "any"));
        """
    )
    async with await login(host.server, "juliet", "secret", host.name) as juliet:
        answer = await juliet.command("urn:xmpp:invite#invite")
    assert answer.status == "completed"
    assert len(host.errors(about="The ad-hoc command urn:xmpp:invite#invite failed")) == 1


async def test_prosodyctl_is_told_when_the_server_does_not_understand_it(host: Host) -> None:
    """Then nothing is carried out, for a part of the input may be missing."""
    answers = host.eval(
        """
        local st = require "util.stanza";
        local xmlns, answers = "urn:x-prosody-invites:command", {};
        local session = { send = function (stanza) table.insert(answers, stanza.attr.code or stanza.name); end };
        local function ask(stanza)
            prosody.events.fire_event("admin/"..xmlns..":"..stanza.name, { origin = session, stanza = stanza });
        end
        ask(st.stanza("input", { xmlns = xmlns }):tag("nonsense"));
        ask(st.stanza("run", { xmlns = xmlns, host = module.host }):tag("arg"):text("Z2VuZXJhdGU="));
        return answers;
        """
    )
    assert answers == ["output", "1"]
    assert host.rows("SELECT count(*) FROM invite WHERE host = ?") == [(0,)]


# Providers

async def test_a_provider_that_raises_says_nothing_about_an_account(host: Host) -> None:
    token = host.eval(CREATE)
    contacts = host.eval(FROM_NURSE)
    host.eval(PROVIDER_RAISES, methods=["user_exists", "get_account_info", "is_enabled"])
    state = 'return module:depends("invites").show(args.token).state;'
    async with await host.stream() as stream:
        with pytest.raises(Refused) as refused:
            await stream.preauth(token)
            await stream.register("juliet", "secret")
        assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
        assert await answered(stream, contacts)
    assert host.eval(state, token=token) == host.eval(state, token=contacts) == "pending"
    assert host.errors(about="Whether there is an account juliet cannot be told")


async def answered(stream: Stream, token: str) -> bool:
    """Whether a token gets an answer of whatever kind; a stream that is closed or silent is none."""
    try:
        await stream.preauth(token)
    except Refused as refused:
        return refused.condition != "forbidden"
    return True


async def test_a_provider_that_fails_late_does_not_close_the_account_of_an_inviter(host: Host) -> None:
    """The account is there, and nobody can say whether it is enabled."""
    host.server.add_user("nurse", "secret", host=host.name)
    token = host.eval(FROM_NURSE)
    host.eval(PROVIDER_RAISES, methods=["get_account_info", "is_enabled"])
    async with await host.stream() as stream:
        assert await answered(stream, token)
    assert host.eval('return module:depends("invites").show(args.token).state;', token=token) == "pending"


def test_an_inviter_whose_age_and_roles_nobody_can_tell_is_held_to_the_limits_of_all(host: Host) -> None:
    host.server.add_user("nurse", "secret", host=host.name)
    host.eval(PROVIDER_RAISES, methods=["get_account_info"])
    host.eval(
        """
        local authz = prosody.hosts[module.host].authz;
        for method in pairs(authz) do
            if method:match("^get_.*role") then authz[method] = function () error("Tybalt draws"); end; end
        end
        """
    )
    assert host.eval('return module:depends("invites").may_invite("nurse", "contact");') is True
    if host.server.version.startswith("13"):
        assert host.errors(about=f"Not all roles of nurse@{host.name} can be told")
    token = host.eval('return module:depends("invites").create_account(nil, { roles = { "prosody:member" } }).token;')
    assert host.eval('return module:depends("invites").get(args.token) ~= nil;', token=token) is True


# A role that is gone

async def test_an_account_is_made_without_a_role_that_is_gone(host: Host) -> None:
    host.server.add_user("nurse", "secret", host=host.name)
    host.eval('module:hook("user-registered", function () module:shared("seen").after = 1; end, -1);')
    roles = host.eval(
        """
        local invite = module:depends("invites").create_account(nil, { roles = { "capulet:page", "prosody:member" } });
        module:shared("seen").token = invite.token;
        return module:depends("invites").get(invite.token).additional_data.roles;
        """
    )
    token = host.eval('return module:shared("seen").token;')
    if host.server.version.startswith("13"):
        # A secondary role does not become the primary one.
        assert roles == ["prosody:registered", "prosody:member"]
        error, = host.errors()
        assert "capulet:page" in error
    await register(host, token)
    until(lambda: host.eval('return module:shared("seen").after;') == 1)
    assert host.exists("juliet")


async def test_an_account_whose_only_role_is_gone_is_an_ordinary_one(host: Host) -> None:
    token = host.eval('return module:depends("invites").create_account(nil, { roles = { "capulet:page" } }).token;')
    host.eval('module:hook("user-registered", function () module:shared("seen").after = 1; end, -1);')
    await register(host, token)
    until(lambda: host.eval('return module:shared("seen").after;') == 1)
    assert host.exists("juliet")


# Storage drivers

FAULT = 'local switch = module:shared("/"..module.host.."/storage_spec_fault/switch");'


async def test_a_driver_that_raises_never_makes_a_token_invalid(host: Host) -> None:
    """The token may be in the store of the bundled module, which is to be taken over."""
    host.eval(f"{FAULT} switch.raising.invite_token = true; {RELOAD}")
    async with await host.stream() as stream:
        with pytest.raises(Refused) as refused:
            await stream.preauth("not-one-of-ours")
    assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
    assert host.errors(about="The invites that the bundled mod_invites stored cannot be taken over")


def test_what_could_not_be_taken_over_is_taken_over_later(host: Host) -> None:
    host.eval(f"{FAULT} switch.raising.invite_token = true;")
    host.eval(HURRY)
    until(lambda: len(host.errors(about="cannot be taken over")) > 2)
    host.eval(
        f"""
        {FAULT}
        switch.raising.invite_token = nil;
        module:open_store("invite_token", "map"):set(nil, "bundled-token-bundled-token", {{
            type = "register", token = "bundled-token-bundled-token", jid = module.host, allow_registration = true;
            created_at = os.time(), expires = os.time() + 3600;
        }});
        """
    )
    until(lambda: host.rows("SELECT count(*) FROM invite WHERE host = ?") == [(1,)])


def test_an_account_whose_storage_raises_is_not_taken_for_missing(host: Host) -> None:
    host.server.add_user("nurse", "secret", host=host.name)
    token = host.eval(FROM_NURSE)
    host.eval(f"{FAULT} switch.raising.accounts = true;")
    host.eval('return module:depends("invites").get(args.token);', token=token)
    host.eval(f"{FAULT} switch.raising.accounts = nil;")
    assert host.eval('return module:depends("invites").get(args.token) ~= nil;', token=token) is True
