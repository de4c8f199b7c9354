"""The five kinds of invites from end to end: over client streams, through the `invites_register`, `invites_adhoc` and
`register_ibr` that the package brings, on top of our module.
"""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client import Refused, RosterItem, Stream, login, open_stream
from prosody import VERSIONS, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_adhoc", "invites_register")
RESET_COMMAND = "xmpp:prosody.im/mod_invites_adhoc#password-reset"

#: What was used up and what was never there are told alike.
NO_INVITE = ("cancel", "forbidden", "The invite token is invalid or expired")


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module, with an administrator."""

    def made(**options: Any) -> Prosody:
        options = {"config": 'admins = { "admin@example.com" };', **options}
        return prosody(plugin_paths=(native_lua,), modules=MODULES, **options)

    return made


def create(server: Prosody, call: str, **args: Any) -> str:
    """The token of an invite made by a module."""
    return server.eval(f'return assert(module:depends("invites").{call}).token;', **args)


async def command(stream: Stream, node: str, **form: str) -> str:
    """The URI that an ad-hoc command hands out, after its form where it asks something."""
    answer = await stream.command(node)
    if form:
        answer = await stream.command(node, action="complete", session=answer.session, form=form)
    assert answer.status == "completed"
    uri, = answer.form["uri"]
    return uri


def token_of(uri: str) -> str:
    return uri.partition("preauth=")[2].partition(";")[0]


async def register(server: Prosody, token: str, username: str, password: str = "pw") -> None:
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register(username, password)


async def refusal(server: Prosody, token: str) -> tuple[str, str, str]:
    """How a token is refused."""
    async with await open_stream(server) as stream:
        with pytest.raises(Refused) as refused:
            await stream.preauth(token)
    return refused.value.type, refused.value.condition, refused.value.text


def users(server: Prosody) -> set[str]:
    return set(server.eval(
        """
        local names = {};
        for name in require "core.usermanager".users(module.host) do table.insert(names, name); end
        return names;
        """
    ))


def assert_no_traceback(server: Prosody) -> None:
    assert "raceback" not in server.log()


async def test_an_account_invite_makes_one_account(make: Make) -> None:
    server = make()
    server.add_user("admin", "pw")
    async with await login(server, "admin", "pw") as admin:
        uri = await command(admin, "urn:xmpp:invite#create-account")
        assert uri.startswith("xmpp:example.com?register;preauth=")
        await register(server, token_of(uri), "juliet")
        async with await login(server, "juliet", "pw") as juliet:
            assert await juliet.roster() == {}
        assert await refusal(server, token_of(uri)) == NO_INVITE
    assert users(server) == {"admin", "juliet"}
    assert_no_traceback(server)


async def test_a_contact_invite_makes_one_contact_and_no_account(make: Make) -> None:
    server = make()
    for name in ("romeo", "juliet", "tybalt"):
        server.add_user(name, "pw")
    async with (
        await login(server, "juliet", "pw") as juliet,
        await login(server, "romeo", "pw") as romeo,
        await login(server, "tybalt", "pw") as tybalt,
    ):
        for stream in (juliet, romeo, tybalt):
            assert await stream.roster() == {}
            stream.send_presence()
        uri = await command(juliet, "urn:xmpp:invite#invite")
        assert uri.startswith("xmpp:juliet@example.com?roster;preauth=")
        assert not uri.endswith(";ibr=y")
        token = token_of(uri)
        assert await refusal(server, token) == NO_INVITE

        romeo.send_presence("juliet@example.com", "subscribe", token)
        await romeo.expect_presence("subscribe", "juliet@example.com")
        romeo.send_presence("juliet@example.com", "subscribed")
        await romeo.expect_presence(None, "juliet@example.com")
        await juliet.expect_presence(None, "romeo@example.com")
        assert await romeo.roster() == {"juliet@example.com": RosterItem("both")}
        assert await juliet.roster() == {"romeo@example.com": RosterItem("both")}

        # Used up: she is asked, as by anybody else.
        tybalt.send_presence("juliet@example.com", "subscribe", token)
        await juliet.expect_presence("subscribe", "tybalt@example.com")
        assert await tybalt.roster() == {"juliet@example.com": RosterItem("none", "subscribe")}
    assert_no_traceback(server)


async def test_a_contact_invite_with_registration_makes_an_account_and_mutual_contacts(make: Make) -> None:
    server = make(config="allow_user_invites = true;")
    for name in ("juliet", "tybalt"):
        server.add_user(name, "pw")
    async with await login(server, "juliet", "pw") as juliet, await login(server, "tybalt", "pw") as tybalt:
        assert await juliet.roster() == {}
        juliet.send_presence()
        uri = await command(juliet, "urn:xmpp:invite#invite")
        assert uri.startswith("xmpp:juliet@example.com?roster;preauth=")
        assert uri.endswith(";ibr=y")

        await register(server, token_of(uri), "romeo")
        async with await login(server, "romeo", "pw") as romeo:
            assert await romeo.roster() == {"juliet@example.com": RosterItem("both")}
            romeo.send_presence()
            await romeo.expect_presence(None, "juliet@example.com")
            await juliet.expect_presence(None, "romeo@example.com")
        assert await juliet.roster() == {"romeo@example.com": RosterItem("both")}

        # The one use was the account; neither another nor a contact is left.
        assert await refusal(server, token_of(uri)) == NO_INVITE
        tybalt.send_presence("juliet@example.com", "subscribe", token_of(uri))
        await juliet.expect_presence("subscribe", "tybalt@example.com")
        assert set(await juliet.roster()) == {"romeo@example.com"}
    assert users(server) == {"juliet", "romeo", "tybalt"}
    assert_no_traceback(server)


async def test_a_contact_invite_with_registration_also_serves_who_has_an_account(make: Make) -> None:
    server = make(config="allow_user_invites = true;")
    for name in ("juliet", "romeo"):
        server.add_user(name, "pw")
    async with await login(server, "juliet", "pw") as juliet, await login(server, "romeo", "pw") as romeo:
        token = token_of(await command(juliet, "urn:xmpp:invite#invite"))
        assert await romeo.roster() == {}
        romeo.send_presence()
        romeo.send_presence("juliet@example.com", "subscribe", token)
        # It comes once her side is done.
        await romeo.expect_presence("subscribe", "juliet@example.com")
        assert await juliet.roster() == {"romeo@example.com": RosterItem("from", "subscribe")}
    assert await refusal(server, token) == NO_INVITE


async def test_a_password_reset_sets_a_new_password_once_and_makes_no_account(make: Make, version: str) -> None:
    server = make()
    for name in ("admin", "juliet"):
        server.add_user(name, "old")
    if version.startswith("0.12"):
        token = create(server, 'create_account_reset("juliet")')  # its mod_invites_adhoc cannot
    else:
        async with await login(server, "admin", "old") as admin:
            token = token_of(await command(admin, RESET_COMMAND, accountjid="juliet@example.com"))

    async with await open_stream(server) as stream:
        await stream.preauth(token)
        for name in ("tybalt", "admin"):
            with pytest.raises(Refused):
                await stream.register(name, "new")
        await stream.register("juliet", "new")
        with pytest.raises(Refused):
            await stream.register("juliet", "newer")
    for name, password in (("juliet", "old"), ("juliet", "newer"), ("admin", "new")):
        with pytest.raises(Refused):
            await login(server, name, password)
    async with await login(server, "juliet", "new"):
        pass
    assert await refusal(server, token) == NO_INVITE
    assert users(server) == {"admin", "juliet"}
    assert_no_traceback(server)


async def test_a_group_invite_makes_members_until_it_expires(make: Make) -> None:
    server = make()
    # As mod_invites_groups does, which no Prosody brings.
    server.eval(
        """
        module:hook("user-registered", function (event)
            for _, group in ipairs(event.session.validated_invite.additional_data.groups) do
                module:open_store("spec_members", "map"):set(group, event.username, true);
            end
        end);
        """
    )
    token = create(server, 'create_group({ "friends", "family" }, nil, 3600)')
    for name in ("juliet", "romeo", "mercutio"):
        await register(server, token, name)
    everybody = {"juliet": True, "romeo": True, "mercutio": True}
    members = 'local store = module:open_store("spec_members"); return store:get("friends"), store:get("family");'
    assert server.eval(members) == (everybody, everybody)

    async with await open_stream(server) as stream:
        await stream.preauth(token)
        with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
            assert database.execute("UPDATE invite SET expires = created_at - 1").rowcount == 1
        assert await refusal(server, token) == NO_INVITE
        # XEP-0445 §3: it was valid when it was presented.
        await stream.register("benvolio", "pw")
        with pytest.raises(Refused):
            await stream.register("tybalt", "pw")
    assert users(server) == {"juliet", "romeo", "mercutio", "benvolio"}
    assert_no_traceback(server)


#: As 0.12 writes the roles of an invite, and as 13.0 does.
ROLES = {"map": '{ ["prosody:admin"] = true }', "list": '{ "prosody:admin" }'}


def role(server: Prosody, username: str) -> Any:
    """The roles that a user has: a map on 0.12, the name of the primary one on 13.0."""
    return server.eval(
        """
        local um = require "core.usermanager";
        if um.get_roles then return um.get_roles(args.username.."@"..module.host, module.host); end
        return um.get_user_role(args.username, module.host).name;
        """,
        username=username,
    )


def admin(version: str) -> Any:
    return {"prosody:admin": True} if version.startswith("0.12") else "prosody:admin"


@pytest.mark.parametrize("written", ROLES)
async def test_a_role_reaches_the_new_account(make: Make, version: str, written: str) -> None:
    server = make()
    await register(server, create(server, f"create_account(nil, {{ roles = {ROLES[written]} }})"), "juliet")
    assert role(server, "juliet") == admin(version)
    assert_no_traceback(server)


async def test_a_second_role_reaches_the_new_account_too(make: Make, version: str) -> None:
    server = make()
    for number, roles in enumerate((
        '{ "prosody:admin", "prosody:member" }', '{ ["prosody:admin"] = true, ["prosody:member"] = true }',
    )):
        await register(server, create(server, f"create_account(nil, {{ roles = {roles} }})"), f"user{number}")
        if version.startswith("0.12"):
            assert role(server, f"user{number}") == {"prosody:admin": True, "prosody:member": True}
        else:
            assert role(server, f"user{number}") == "prosody:admin"
            assert server.eval(
                """
                local roles = require "core.usermanager".get_user_secondary_roles(args.username, module.host);
                return roles["prosody:member"].name;
                """,
                username=f"user{number}",
            ) == "prosody:member"


async def test_an_invite_of_another_version_of_prosody_is_honoured(make: Make, version: str) -> None:
    if len(VERSIONS) == 1:
        pytest.skip("this machine can run one Prosody only")
    other = VERSIONS[VERSIONS.index(version) - 1]
    maker = make(version=other)
    done = maker.prosodyctl("mod_invites", "generate", "example.com", "--admin")
    tokens = [token_of(done.stdout.strip())]
    tokens += [create(maker, f"create_account(nil, {{ roles = {lua} }})") for lua in ROLES.values()]
    maker.stop()
    server = make(data_path=maker.data_path)
    for number, token in enumerate(tokens):
        await register(server, token, f"user{number}")
        assert role(server, f"user{number}") == admin(version)
