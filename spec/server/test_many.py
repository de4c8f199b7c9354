"""The end of many invites: one row, from which on none of them is good, and then a batch at a time.

SPEC_MANY in the environment is how many those are whose server is restarted in between.
"""

import hashlib
import json
import os
import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from client import Refused, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

#: A few batches.
MANY = 300
#: Enough that some are left when the server is restarted.
VERY_MANY = int(os.environ.get("SPEC_MANY", "1000"))
#: The server does so many in one evaluation, in which it does nothing else.
PAGE = 2000
#: Makes some for nurse; the tokens.
MAKE = """
    local invites = module:depends("invites");
    local tokens = {};
    local made = assert(invites.create_invites({ additional_data = { source = "nurse@example.com" } }, args.number));
    for i, invite in ipairs(made) do tokens[i] = invite.token; end
    return tokens;
"""
#: Has every invite that is revoked written down.
LISTEN = """
    local file = assert(io.open(args.file, "a"));
    module:hook("invite-revoked", function (event) file:write(event.id, "\\n"); file:flush(); end);
"""
#: How many are refused.
REFUSED = """
    local refused = 0;
    for _, token in ipairs(args.tokens) do
        local invite, condition = module:depends("invites").get(token);
        if not invite and condition == "token-invalid" then refused = refused + 1; end
    end
    return refused;
"""
DELETE = 'assert(require "core.usermanager".delete_user(args.username, module.host));'


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


@contextmanager
def locked(server: Prosody) -> Iterator[None]:
    """Another process has the lock."""
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3", isolation_level=None)) as lock:
        lock.execute("BEGIN IMMEDIATE")
        yield
        lock.execute("ROLLBACK")
    until(server.can_store)


def make_many(server: Prosody, number: int) -> list[str]:
    """Their tokens."""
    tokens: list[str] = []
    while len(tokens) < number:
        tokens += server.eval(MAKE, number=min(PAGE, number - len(tokens)))
    return tokens


def refused(server: Prosody, tokens: list[str]) -> int:
    pages = (tokens[start : start + PAGE] for start in range(0, len(tokens), PAGE))
    return sum(server.eval(REFUSED, tokens=page) for page in pages)


def until(condition: Callable[[], bool], within: float = 30) -> None:
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ids(tokens: list[str]) -> set[str]:
    return {hashlib.sha256(token.encode()).hexdigest()[:16] for token in tokens}


def open_ones(server: Prosody) -> int:
    return rows(server, "SELECT count(*) FROM invite WHERE ended_at IS NULL")[0][0]


async def test_whoever_gets_the_name_of_a_deleted_inviter_has_none_of_the_old_invites_a_restart_in_between_included(
    make: Make,
) -> None:
    server = make()
    heard = server.scratch / "heard"
    server.eval(LISTEN, file=str(heard))
    old = make_many(server, VERY_MANY)
    server.eval(DELETE, username="nurse")
    server.add_user("nurse", "new")
    assert refused(server, old) == VERY_MANY
    new = make_many(server, 2)
    assert rows(server, "SELECT username, scope FROM ending") == [("nurse", "depending")]
    assert open_ones(server) > 2, "the test sees nothing that is still to be ended"
    server.restart()
    server.eval(LISTEN, file=str(heard))
    assert refused(server, old) == VERY_MANY
    listed = 'local n = 0; for _ in module:depends("invites").pending_account_invites() do n = n + 1; end return n;'
    assert server.eval(listed) == 2
    server.tidy()
    until(lambda: open_ones(server) == 2, within=30 + VERY_MANY / 100)
    # Whoever listens is gone before the server is.
    counts = Counter(heard.read_text().split())
    assert set(counts) < ids(old) and set(counts.values()) == {1}
    assert refused(server, [*old, *new]) == VERY_MANY
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(old[-1])
        await stream.preauth(new[0])
        await stream.register("romeo", "secret")
    assert f"The account nurse was deleted: {VERY_MANY} open invites that depended on it were revoked" in server.log()


def test_a_branch_is_revoked_at_once_however_many_invites_it_has(make: Make) -> None:
    server = make()
    heard = server.scratch / "heard"
    server.eval(LISTEN, file=str(heard))
    tokens = make_many(server, MANY)
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        database.execute("INSERT INTO lineage VALUES ('example.com', 'nurse', 'juliet', zeroblob(32), 1)")
    revoke = 'return module:depends("invites").revoke_inviter("juliet", true, "spam", "spec");'
    ended, is_more = server.eval(revoke)
    assert ended < MANY and is_more
    assert refused(server, tokens) == MANY
    shown = server.eval('return module:depends("invites").show(args.token);', token=tokens[-1])
    assert (shown["state"], shown["revoked_why"]) == ("revoked", "spam")
    until(lambda: len(heard.read_text().split()) >= MANY)
    assert open_ones(server) == 0
    counts = Counter(heard.read_text().split())
    assert set(counts) == ids(tokens) and set(counts.values()) == {1}


def test_prosodyctl_ends_them_all_by_itself_and_says_how_many(make: Make) -> None:
    server = make()
    make_many(server, MANY)
    done = server.prosodyctl("mod_invites", "revoke", "example.com", "--inviter", "nurse", "--json")
    assert (done.returncode, json.loads(done.stdout), open_ones(server)) == (0, {"revoked": MANY}, 0)


def test_a_password_that_is_changed_while_the_storage_fails_ends_the_resets_before_it(make: Make) -> None:
    server = make()
    made = 'return module:depends("invites").create_account_reset("juliet").token;'
    before = server.eval(made)
    with locked(server):
        server.eval('assert(require "core.usermanager".set_password("juliet", "new", module.host));')
    until(lambda: refused(server, [before]) == 1)
    assert refused(server, [server.eval(made)]) == 0


def test_no_endless_number_of_invites_is_made(make: Make) -> None:
    server = make()
    made = 'return module:depends("invites").create_invites({}, args.number or math.huge);'
    for number in (None, 0, -1, 1.5, 10**9):
        assert server.eval(made, number=number) == (None, "bad-request"), number
    assert len(server.eval(made, number=3)) == 3
    assert open_ones(server) == 3
