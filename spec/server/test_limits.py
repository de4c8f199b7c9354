"""Who may invite how much (option invite_limits), as users of the ad-hoc commands of XEP-0401 and operators meet it."""

import asyncio
import sqlite3
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from client import Command, Refused, login
from prosody import Prosody

Make = Callable[..., Prosody]

MODULES = ("invites", "invites_adhoc", "invites_register", "register_ibr")
INVITE, CREATE_ACCOUNT = "urn:xmpp:invite#invite", "urn:xmpp:invite#create-account"
RESET = "xmpp:prosody.im/mod_invites_adhoc#password-reset"

DAY = 86400


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers with limits for every user, and a user juliet."""

    def made(limits: str, config: str = "", **options: Any) -> Prosody:
        server = prosody(
            plugin_paths=(native_lua,), modules=MODULES, config=f"invite_limits = {limits};\n{config}", **options
        )
        server.eval('module:depends("invites");')
        if "data_path" not in options:
            server.add_user("juliet", "secret")
        return server

    return made


def registered(limits: str) -> str:
    return f'{{ ["prosody:registered"] = {{ {limits} }} }}'


def rows(server: Prosody, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        return database.execute(query).fetchall()


def change(server: Prosody, statement: str, *parameters: Any) -> None:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        assert database.execute(statement, parameters).rowcount >= 1


def outcome(command: Command) -> str:
    """ "made", or what the user was told."""
    if "uri" in command.form:
        return "made"
    assert command.status == "completed" and not command.form, ET.tostring(command.xml)
    return " ".join(command.notes)


async def ask(server: Prosody, username: str = "juliet", node: str = INVITE, times: int = 1) -> list[str]:
    async with await login(server, username, "secret") as stream:
        return [outcome(await stream.command(node)) for _ in range(times)]


TEN_OPEN = "You have 10 open invitations already; you can create another when one was used or has expired"


async def race(servers: Sequence[Prosody], requests: int) -> Counter[str]:
    """What comes of so many requests of one user that are all under way at once."""
    async with AsyncExitStack() as streams:
        opened = await asyncio.gather(*(login(server, "juliet", "secret") for server in servers for _ in range(5)))
        for stream in opened:
            await streams.enter_async_context(stream)
        asked = (opened[index % len(opened)].command(INVITE) for index in range(requests))
        return Counter(map(outcome, await asyncio.gather(*asked)))


async def test_of_a_hundred_requests_at_once_as_many_are_granted_as_the_limit_says(make: Make) -> None:
    server = make(registered("max_open = 10"))
    assert await race([server], 100) == {"made": 10, TEN_OPEN: 90}
    assert rows(server, "SELECT count(*) FROM invite") == [(10,)]


@pytest.mark.storage
async def test_two_servers_with_one_database_keep_the_limit_together(make: Make) -> None:
    first = make(registered("max_open = 10"))
    second = make(registered("max_open = 10"), config='admin_socket = "second.sock";', data_path=first.data_path)
    for _ in range(10):
        assert await race([first, second], 100) == {"made": 10, TEN_OPEN: 90}
        change(first, "DELETE FROM invite")


async def test_an_invite_that_is_not_open_any_more_makes_room(make: Make) -> None:
    server = make(registered("max_open = 1"))
    full = "You have 1 open invitation already; you can create another when one was used or has expired"
    for end in (
        "UPDATE invite SET ended_at = 1, revoked_at = 1",
        "UPDATE invite SET ended_at = 1, uses = 1",
        "UPDATE invite SET expires = created_at - 1",
    ):
        assert await ask(server, times=2) == ["made", full]
        change(server, end)
    assert await ask(server) == ["made"]


async def test_what_was_made_in_a_period_counts_whatever_became_of_it(make: Make) -> None:
    server = make(registered('max_created = 2, period = "2 hours"'))
    limit = "You may create 2 invitations within 2 hours and have done so; please try again later"
    assert await ask(server, times=3) == ["made", "made", limit]
    change(server, "UPDATE invite SET ended_at = 1, revoked_at = 1")
    assert await ask(server) == [limit]
    change(server, "UPDATE invite SET created_at = created_at - 7200")
    assert await ask(server) == ["made"]


async def test_a_validity_that_is_too_long_is_cut_if_nobody_chose_it_and_refused_otherwise(make: Make) -> None:
    server = make(registered('max_ttl = "1 day"'))
    assert await ask(server) == ["made"]
    assert rows(server, "SELECT expires - created_at FROM invite") == [(DAY,)]
    create = 'return module:depends("invites").create_contact("juliet", false, nil, args.ttl);'
    assert server.eval(create, ttl=DAY + 1) == (None, "policy-violation")
    assert server.eval(create, ttl=DAY)["type"] == "roster"


async def test_only_kinds_that_are_listed_may_be_made(make: Make) -> None:
    server = make(registered('kinds = { "contact" }'), config='allow_user_invites = true; admins = { "nurse@example.com" }')
    server.add_user("nurse", "secret")
    assert await ask(server) == ["You may not create this kind of invitation (account-and-contact)"]
    assert await ask(server, "nurse", CREATE_ACCOUNT) == ["made"]
    source = 'return module:depends("invites").create_group({ "house" }, { source = "juliet@example.com/balcony" }, 60);'
    assert server.eval(source)[1] == "policy-violation"


async def test_an_account_has_to_be_old_enough_where_its_age_is_known(make: Make, version: str) -> None:
    server = make(registered('min_account_age = "1 day"'))
    if version.startswith("0."):
        assert await ask(server, times=2) == ["made", "made"]
        assert server.log().count("does not know how old accounts are") == 1
        return
    young = "Your account must be 1 day old before you can invite somebody"
    assert await ask(server) == [young]
    server.eval(
        """
        local accounts = module:open_store("accounts");
        local account = accounts:get("juliet");
        account.created = account.created - 86400;
        assert(accounts:set("juliet", account));
        """
    )
    assert await ask(server) == ["made"]
    assert "does not know how old" not in server.log()


async def test_an_operator_can_keep_accounts_of_unknown_age_from_inviting(make: Make) -> None:
    server = make(registered("min_account_age = 60"), config="invite_limits_allow_unknown_age = false;")
    server.eval('local accounts = module:open_store("accounts"); assert(accounts:set("juliet", { password = "secret" }));')
    assert await ask(server, times=2) == [
        "You cannot invite anybody, because the server does not know how old your account is"
    ] * 2
    assert server.log().count("does not know how old accounts are") == 1


async def test_ended_invites_are_not_purged_while_they_count(make: Make) -> None:
    server = make(registered('max_created = 1, period = "1 year"'), config="invite_history = 3600;")
    assert await ask(server) == ["made"]
    long_ago = "created_at - 30 * 86400"
    change(server, f"UPDATE invite SET ended_at = {long_ago}, revoked_at = {long_ago}, expires = {long_ago}")
    purged = server.prosodyctl("mod_invites", "purge", "example.com", "--older-than", "1s")
    assert purged.stdout == "0 invites were removed from the history of example.com\n"
    assert (await ask(server))[0].startswith("You may create 1 invitation within")


async def test_limits_hold_in_the_hosts_own_storage_too(make: Make) -> None:
    server = make(registered("max_open = 10"), config='invite_storage = "prosody";')
    assert await race([server], 30) == {"made": 10, TEN_OPEN: 20}


@pytest.mark.parametrize("storage", ["sqlite", "prosody"])
def test_what_an_operator_makes_is_held_to_nobodys_limits(make: Make, storage: str) -> None:
    server = make(registered("max_open = 1"), config=f'invite_storage = "{storage}";')
    for _ in range(2):
        done = server.prosodyctl("mod_invites", "generate", "example.com", "--contact", "juliet")
        assert (done.returncode, done.stderr) == (0, "")


# Roles


def give_roles(server: Prosody, username: str, primary: str | None, *others: str) -> None:
    server.eval(
        """
        local usermanager = require "core.usermanager";
        if usermanager.set_user_role then
            if args.primary then assert(usermanager.set_user_role(args.username, module.host, args.primary)); end
            for _, role in ipairs(args.others) do
                assert(usermanager.add_user_secondary_role(args.username, module.host, role));
            end
        else
            local roles = {};
            if args.primary then roles[args.primary] = true; end
            for _, role in ipairs(args.others) do roles[role] = true; end
            assert(usermanager.set_roles(args.username.."@"..module.host, module.host, roles));
        end
        """,
        username=username, primary=primary, others=list(others),
    )


BY_ROLE = '{ ["prosody:registered"] = { max_open = 1 }, ["prosody:member"] = { max_open = 2 }, ["inviter"] = { max_open = 3 } }'
#: `admins` in the configuration makes administrators, and since 13.0 operators.
ADMINISTRATORS = '{ ["prosody:admin"] = { max_open = 2 }, ["prosody:operator"] = { max_open = 2 } }'
CUSTOM_ROLES = 'custom_roles = { { name = "inviter", priority = 30 }, { name = "staff", inherits = { "prosody:member" } } };'


@pytest.mark.parametrize(
    ("primary", "others", "granted"),
    [
        (None, (), 1),
        ("prosody:member", (), 2),
        (None, ("inviter",), 3),
        ("prosody:member", ("inviter",), 3),
        ("prosody:admin", (), 5),
        (None, ("prosody:admin",), 5),
    ],
)
async def test_a_user_may_do_what_one_of_the_roles_allows(
    make: Make, primary: str | None, others: tuple[str, ...], granted: int
) -> None:
    server = make(BY_ROLE, config=CUSTOM_ROLES)
    if primary or others:
        give_roles(server, "juliet", primary, *others)
    assert Counter(await ask(server, times=5))["made"] == granted


@pytest.mark.parametrize(("limits", "granted"), [(BY_ROLE, 5), (ADMINISTRATORS, 2)])
async def test_an_administrator_by_configuration_is_one(make: Make, limits: str, granted: int) -> None:
    server = make(limits, config='admins = { "juliet@example.com" };')
    assert Counter(await ask(server, times=5))["made"] == granted


async def test_a_role_without_limits_has_those_of_the_nearest_that_it_inherits_from(make: Make, version: str) -> None:
    server = make(BY_ROLE, config=CUSTOM_ROLES)
    give_roles(server, "juliet", "staff")
    inherits = not version.startswith("0.")
    assert Counter(await ask(server, times=5))["made"] == (2 if inherits else 1)


async def test_an_administrator_is_limited_who_was_given_limits(make: Make) -> None:
    server = make('{ ["prosody:admin"] = { max_open = 1 } }')
    assert await ask(server, times=3) == ["made"] * 3
    give_roles(server, "juliet", "prosody:admin")
    change(server, "DELETE FROM invite")
    assert Counter(await ask(server, times=3, node=CREATE_ACCOUNT))["made"] == 1


# Who is meant


async def test_whoever_a_module_names_as_the_source_is_the_inviter(make: Make) -> None:
    server = make(registered("max_open = 1"))
    create = """
        local invites = module:depends("invites");
        local made = 0;
        for i = 1, 3 do
            if invites.create_account(nil, { source = args.source }) then made = made + 1; end
        end
        return made;
    """
    for source, made in [
        ("juliet@example.com/balcony", 1),
        ("nurse@example.com", 1),
        ("api/token/1", 3),
        ("juliet@example.net", 3),
        (None, 3),
    ]:
        assert server.eval(create, source=source) == made, source
    named = rows(server, "SELECT inviter FROM invite WHERE inviter IS NOT NULL ORDER BY inviter")
    assert named == [("juliet",), ("nurse",)]


async def test_an_operator_is_not_held_to_the_limits_of_users(make: Make) -> None:
    server = make(registered("max_open = 1"))
    assert await ask(server, times=2) != ["made", "made"]
    for _ in range(2):
        made = server.prosodyctl("shell", "invite", "create_contact", "juliet@example.com")
        assert made.stdout.startswith("OK: ") or "OK: " in made.stdout, made
    assert rows(server, "SELECT count(*) FROM invite") == [(3,)]


# What is told to whom


async def test_the_log_names_the_limit_and_handlers_never_see_what_is_refused(make: Make) -> None:
    server = make(registered("max_open = 1"))
    server.eval(
        """
        local seen = module:shared("/*/spec/seen");
        seen.count = 0;
        module:hook("invite-created", function () seen.count = seen.count + 1; end);
        """
    )
    await ask(server, times=3)
    assert server.eval('return module:shared("/*/spec/seen").count;') == 1
    line = 'juliet was refused an invite, by invite_limits["prosody:registered"]: max_open = 1'
    assert server.log().count(line) == 2
    assert "attempt to index" not in server.log()


async def test_what_an_invite_became_in_handlers_counts(make: Make) -> None:
    server = make(registered("max_uses = 1"))
    server.eval('module:hook("invite-created", function (invite) invite.reusable = true; end);')
    assert await ask(server) == ["Your invitations may be good for 1 use at most"]


async def test_any_refusal_of_an_ad_hoc_command_is_a_sentence(make: Make, version: str) -> None:
    server = make("{ }", config='admins = { "juliet@example.com" }')
    await ask(server)
    async with await login(server, "juliet", "secret") as juliet:
        if not version.startswith("0."):
            first = await juliet.command(RESET)
            form = {"accountjid": "nobody@example.com"}
            second = await juliet.command(RESET, action="complete", session=first.session, form=form)
            assert outcome(second) == "There is no such account"
        with closing(sqlite3.connect(server.data_path / "invites.sqlite3", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            stored = outcome(await juliet.command(INVITE))
            database.execute("ROLLBACK")
        assert stored == "The invitation could not be stored, please try again later"
        while not server.can_store():
            pass
        assert outcome(await juliet.command(INVITE)) == "made"


async def test_who_has_no_permission_is_told_that_and_nothing_else(make: Make) -> None:
    server = make(registered("max_open = 1"), config="allow_contact_invites = false;")
    async with await login(server, "juliet", "secret") as juliet:
        for node in (INVITE, CREATE_ACCOUNT):
            with pytest.raises(Refused) as refused:
                await juliet.command(node)
            assert refused.value.condition == "forbidden"
    assert "was refused an invite" not in server.log()


async def test_the_commands_are_their_modules_own_again_when_this_one_is_gone(make: Make) -> None:
    server = make(registered("max_open = 1"))
    handler = """
        local item = prosody.hosts[module.host].modules.invites_adhoc.module.items["adhoc-provider"][1];
        return debug.getinfo(item.handler, "S").source:match("mod_invites_adhoc") ~= nil;
    """
    assert server.eval(handler) is False
    server.eval('assert(require "core.modulemanager".reload(module.host, "invites_adhoc"));')
    assert server.eval(handler) is False
    own = """
        local item = prosody.hosts[module.host].modules.invites_adhoc.module.items["adhoc-provider"][1];
        prosody.hosts[module.host].modules.invites.module.unload();
        return debug.getinfo(item.handler, "S").source:match("mod_invites_adhoc") ~= nil;
    """
    assert server.eval(own) is True


# The option


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ("10", "invite_limits is a integer: write a table of limits for each role"),
        ("{ 10 }", "has an entry that is not a role's name and a table of its limits"),
        (registered("max_opne = 10"), 'invite_limits["prosody:registered"] has "max_opne", which is no limit: use max_open'),
        (registered("max_open = 0"), 'invite_limits["prosody:registered"].max_open must be a whole number, 1 or more'),
        (registered('max_open = "many"'), "max_open must be a whole number"),
        (registered('max_ttl = "10m"'), 'invite_limits["prosody:registered"].max_ttl: "10m" is not a duration'),
        (registered("period = -1"), "period must be a number of seconds or a duration"),
        (registered('kinds = "contact"'), 'kinds must be a list of "account", "contact", "account-and-contact"'),
        (registered('kinds = { "friend" }'), "kinds must be a list of"),
        (registered("kinds = { contact = true }"), "kinds must be a list of"),
        (registered("max_created = 1") + '; invite_storage = "prosody"', "leave max_created out"),
    ],
)
def test_limits_that_make_no_sense_close_invitations_and_say_what_to_write(make: Make, limits: str, told: str) -> None:
    server = make(limits)
    lines = [line for line in server.log().splitlines() if "No invite can be created or used" in line]
    assert len(lines) == 1 and told in lines[0], lines
    assert server.eval('return module:depends("invites").create_account();') == (None, "internal-server-error")
