"""Who invited whom, and what an operator does about it: tree, and revoke of all that one user and the user's branch made."""

import json
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from client import Refused, login, open_stream
from prosody import CHECKOUT, COMMUNITY_MODULES, Prosody

Make = Callable[..., Prosody]

SCHEMA = json.loads((CHECKOUT / "spec" / "output.schema.json").read_text())
MODULES = ("register_ibr", "invites", "invites_register", "invites_adhoc")
INVITE = "urn:xmpp:invite#invite"


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module, on which every user may invite, and a user juliet."""

    def made(*, modules: tuple[str, ...] = (), **options: Any) -> Prosody:
        server = prosody(
            plugin_paths=(native_lua, COMMUNITY_MODULES),
            modules=(*MODULES, *modules),
            **{"config": "allow_user_invites = true;"} | options,
        )
        server.eval('module:depends("invites");')
        if "data_path" not in options:
            server.add_user("juliet", "secret")
        return server

    return made


def rows(server: Prosody, query: str) -> list[tuple[Any, ...]]:
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        return database.execute(query).fetchall()


def operate(server: Prosody, *words: str, code: int = 0) -> str:
    done = server.prosodyctl("mod_invites", *words)
    assert done.returncode == code, done
    return done.stdout


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline


async def invite(server: Prosody, inviter: str) -> str:
    async with await login(server, inviter, "secret") as stream:
        uri = (await stream.command(INVITE)).form["uri"][0]
    return uri.split("preauth=")[1].split(";")[0]


async def register(server: Prosody, token: str, username: str) -> None:
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register(username, "secret")


async def bring(server: Prosody, inviter: str, *usernames: str) -> None:
    for username in usernames:
        await register(server, await invite(server, inviter), username)


def validated(kind: str, line: str) -> dict[str, Any]:
    instance = json.loads(line)
    jsonschema.validate(instance, {"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]})
    return instance


def branch(server: Prosody, username: str) -> list[tuple[int, str, str | None]]:
    lines = operate(server, "tree", "example.com", username, "--json").splitlines()
    accounts = [validated("account", line) for line in lines]
    return [(account["depth"], account["username"], account.get("inviter")) for account in accounts]


async def test_a_tree_shows_everybody_in_a_branch_with_the_state_of_their_invites(make: Make) -> None:
    server = make()
    await bring(server, "juliet", "romeo", "nurse")
    await bring(server, "romeo", "paris")
    open_token = await invite(server, "paris")
    assert branch(server, "juliet") == [
        (0, "juliet", None),
        (1, "nurse", "juliet"),
        (1, "romeo", "juliet"),
        (2, "paris", "romeo"),
    ]
    assert branch(server, "paris") == [(0, "paris", "romeo")]
    lines = operate(server, "tree", "example.com", "juliet").splitlines()
    shown = [line.split(",")[0] for line in lines if "@" in line]
    assert shown == ["juliet@example.com", "  nurse@example.com", "  romeo@example.com", "    paris@example.com"]
    states = Counter(line.split()[-2] for line in lines if "·" in line)
    assert states == {"used": 3, "pending": 1}
    assert "invited by romeo" in operate(server, "tree", "example.com", "paris")
    assert operate(server, "tree", "example.com", "juliet", "--accounts").split() == [
        f"{name}@example.com" for name in ("juliet", "nurse", "romeo", "paris")
    ]
    for text in (lines, operate(server, "tree", "example.com", "juliet", "--json").splitlines()):
        assert not any(open_token in line for line in text)


async def test_what_is_known_of_a_branch_outlives_its_invites_and_its_accounts(make: Make) -> None:
    server = make()
    await bring(server, "juliet", "romeo")
    await bring(server, "romeo", "paris")
    operate(server, "purge", "example.com", "--older-than", "1s")
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        database.execute("UPDATE invite SET ended_at = 1, expires = 1")
    operate(server, "purge", "example.com", "--older-than", "1h")
    assert rows(server, "SELECT count(*) FROM invite") == [(0,)]
    server.eval('assert(require "core.usermanager".delete_user("romeo", module.host));')
    assert branch(server, "juliet") == [(0, "juliet", None), (1, "romeo", "juliet"), (2, "paris", "romeo")]
    assert "romeo@example.com (missing)" in operate(server, "tree", "example.com", "juliet")
    left = operate(server, "tree", "example.com", "juliet", "--accounts").split()
    assert left == ["juliet@example.com", "paris@example.com"]


async def test_open_invites_of_one_user_are_revoked_and_no_others(make: Make) -> None:
    server = make()
    await bring(server, "juliet", "romeo")
    mine, theirs = await invite(server, "juliet"), await invite(server, "romeo")
    said = operate(server, "revoke", "example.com", "--inviter", "juliet", "--why", "moderation")
    assert said == "1 open invites of juliet@example.com were revoked\n"
    with pytest.raises(Refused):
        await register(server, mine, "paris")
    await register(server, theirs, "paris")
    why = "SELECT revoked_why, revoked_by LIKE 'prosodyctl%' FROM invite WHERE revoked_at IS NOT NULL"
    assert rows(server, why) == [("moderation", 1)]


@pytest.mark.storage
async def test_a_branch_of_a_thousand_invites_is_revoked_by_one_command(make: Make) -> None:
    """Three levels: juliet brought ten, each of whom brought nine; all of them have open invites."""
    server = make()
    children = [f"child{index}" for index in range(10)]
    grandchildren = {f"grandchild{index}": children[index % 10] for index in range(90)}
    brought = dict.fromkeys(children, "juliet") | grandchildren
    for username in brought:
        server.add_user(username, "secret")
    server.eval(
        """
        local invites = module:depends("invites");
        for username, number in pairs(args.wanted) do
            for _ = 1, number do assert(invites.create_contact(username, true)); end
        end
        """,
        wanted={"juliet": 100} | dict.fromkeys(children, 9) | dict.fromkeys(grandchildren, 9) | {"nurse": 5},
        timeout=60,
    )
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        for username, inviter in brought.items():
            database.execute("INSERT INTO lineage VALUES (?, ?, ?, zeroblob(32), 1)", ("example.com", username, inviter))
    tokens = dict(rows(server, "SELECT username, token FROM invite"))
    said = operate(server, "revoke", "example.com", "--inviter", "juliet", "--branch")
    assert said == "1000 open invites of juliet@example.com and the user's branch were revoked\n"
    left = "SELECT username, count(*) FROM invite WHERE revoked_at IS NULL GROUP BY username"
    assert rows(server, left) == [("nurse", 5)]
    async with await open_stream(server) as stream:
        for username in ("juliet", "child3", "grandchild42"):
            with pytest.raises(Refused):
                await stream.preauth(tokens[username])
    again = operate(server, "revoke", "example.com", "--inviter", "juliet", "--branch", "--json")
    assert validated("revoked", again) == {"revoked": 0}


async def test_a_branch_is_revoked_as_a_whole_or_not_at_all(make: Make) -> None:
    server = make()
    await bring(server, "juliet", "romeo")
    for inviter in ("juliet", "romeo", "romeo"):
        await invite(server, inviter)
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3", isolation_level=None)) as database:
        database.execute(
            "CREATE TRIGGER broken BEFORE UPDATE OF revoked_at ON invite WHEN new.username = 'romeo' "
            "BEGIN SELECT RAISE(ABORT, 'broken disk'); END"
        )
        failed = server.prosodyctl("mod_invites", "revoke", "example.com", "--inviter", "juliet", "--branch")
        assert failed.returncode == 1 and "broken disk" in failed.stderr
        assert rows(server, "SELECT count(*) FROM invite WHERE revoked_at IS NOT NULL") == [(0,)]
        database.execute("DROP TRIGGER broken")
    assert operate(server, "revoke", "example.com", "--inviter", "juliet", "--branch").startswith("3 ")


async def test_what_mod_invites_tracking_wrote_down_is_taken_over(prosody: Make, make: Make) -> None:
    """Made with the bundled module and that one, where nothing else remembers who invited."""
    before = prosody(
        plugin_paths=(COMMUNITY_MODULES,),
        modules=(*MODULES, "invites_tracking"),
        config="allow_user_invites = true;",
    )
    before.add_user("juliet", "secret")
    await bring(before, "juliet", "romeo", "nurse")
    await bring(before, "romeo", "paris")
    before.stop()
    server = make(data_path=before.data_path)
    until(lambda: rows(server, "SELECT count(*) FROM lineage") == [(3,)])
    assert branch(server, "juliet") == [
        (0, "juliet", None),
        (1, "nurse", "juliet"),
        (1, "romeo", "juliet"),
        (2, "paris", "romeo"),
    ]
    await bring(server, "paris", "tybalt")
    server.restart()
    server.eval('module:depends("invites");')
    assert branch(server, "paris") == [(0, "paris", "romeo"), (1, "tybalt", "paris")]


async def test_whom_a_user_invited_in_the_words_of_another_module(make: Make) -> None:
    """Its `additional_data.source` is a full JID, and the invite no contact's."""
    server = make()
    token = server.eval(
        'return assert(module:depends("invites").create_account(nil, { source = "juliet@example.com/phone" })).token;'
    )
    await register(server, token, "romeo")
    assert branch(server, "juliet") == [(0, "juliet", None), (1, "romeo", "juliet")]
    reset = server.eval('return assert(module:depends("invites").create_account_reset("romeo")).token;')
    await register(server, reset, "romeo")
    assert branch(server, "juliet") == [(0, "juliet", None), (1, "romeo", "juliet")]


# why --inviter


def test_why_says_whether_a_user_may_invite_and_which_limit_forbids_it(make: Make) -> None:
    server = make(
        config="""
        allow_user_invites = true;
        invite_limits = { ["prosody:registered"] = { max_open = 1, kinds = { "contact", "account-and-contact" } } };
        """
    )
    assert operate(server, "why", "example.com", "--inviter", "juliet") == "allowed\n"
    server.eval('assert(module:depends("invites").create_contact("juliet", true));')
    said = operate(server, "why", "example.com", "--inviter", "juliet", code=1)
    assert said == (
        "refused (policy-violation): You have 1 open invitation already; you can create another when one was used or has "
        'expired [invite_limits["prosody:registered"]: max_open = 1]\n'
    )
    words = ("why", "example.com", "--inviter", "juliet", "--kind", "group", "--json")
    told = validated("why_inviter", operate(server, *words, code=1))
    assert told == {
        "inviter": "juliet",
        "allowed": False,
        "condition": "policy-violation",
        "text": "You may not create this kind of invitation (group)",
        "limit": 'invite_limits["prosody:registered"]: kinds is without "group"',
    }
    assert rows(server, "SELECT count(*) FROM invite") == [(1,)]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("why", "example.com", "--inviter", "nobody"), "there is no account nobody@example.com"),
        (("why", "example.com"), "<INVITE>"),
        (("revoke", "example.com", "abcdef", "--inviter", "juliet"), "--inviter"),
        (("revoke", "example.com", "abcdef", "--branch"), "--branch"),
        (("tree", "example.com"), "<USERNAME>"),
        (("tree", "example.com", "@"), "@ is not a possible username"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(make: Make, words: tuple[str, ...], told: str) -> None:
    done = make().prosodyctl("mod_invites", *words)
    assert done.returncode in (1, 2) and done.stdout == ""
    assert told in done.stderr and len(done.stderr.splitlines()) == 1, done
