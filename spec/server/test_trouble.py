"""The database in trouble: callers are told so, the log says what to do, the rest of the server goes on, and invites
come back by themselves once the cause is gone. A failure of the storage never reads as an invalid token.
"""

import asyncio
import os
import pwd
import re
import shutil
import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

pytestmark = pytest.mark.storage

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
CREATE = 'return module:depends("invites").create_account();'
USER = "nobody"

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can change users and mount file systems")


def _command_as(user: str) -> list[str]:
    account = pwd.getpwnam(user)
    return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module as a user to whom permissions apply."""
    user = USER if os.getuid() == 0 else None

    def made(**options: Any) -> Prosody:
        return prosody(plugin_paths=(native_lua,), modules=MODULES, user=user, **options)

    return made


def database(server: Prosody) -> Path:
    return server.data_path / "invites.sqlite3"


def create(server: Prosody) -> str:
    return server.eval('return assert(module:depends("invites").create_account()).token;')


def validity(server: Prosody, token: str) -> tuple[Any, ...]:
    """(True,) or (False, why not)."""
    return server.eval(
        """
        local invite, why = module:depends("invites").get(args.token);
        return invite ~= nil, why;
        """,
        token=token,
    )


def closed(server: Prosody) -> None:
    """Restart it, so that its database is closed and in one file."""
    server.stop()
    _execute(database(server), "VACUUM")
    server.start()


def errors(server: Prosody) -> list[str]:
    """What the module has logged as an error."""
    return re.findall(r"example\.com:invites\terror\t(.*)", server.log())


@contextmanager
def one_error(server: Prosody, *problems: str) -> Iterator[None]:
    """What happens inside makes the module say one thing, in one line, and that names the database and what to do."""
    before = len(errors(server))
    yield
    said, = errors(server)[before:]
    for problem in (str(database(server)), *problems):
        assert problem in said


CREATE_SOMETHING = (
    "invites.create_account()", 'invites.create_account_reset("romeo")', 'invites.create_contact("romeo", true)',
    "invites.create_group({}, nil, 60)",
)
CHANGE_SOMETHING = ("invites.use(args.token)", "invites.delete_account_invite(args.token)")
LOOK = (
    "invites.get(args.token)", 'invites.get(args.token, "romeo")', "invites.get_account_invite_info(args.token)",
)


def assert_fails(server: Prosody, call: str, token: str, problem: str) -> None:
    with one_error(server, problem):
        answer = server.eval(f'local invites = module:depends("invites"); return {call};', token=token)
    assert answer == (None, "internal-server-error"), call


async def assert_out_of_order(server: Prosody, token: str, problem: str) -> None:
    for call in CREATE_SOMETHING + CHANGE_SOMETHING + LOOK:
        assert_fails(server, call, token, problem)
    with one_error(server, problem):  # whoever loops over these does not look for an error
        assert server.eval('return module:depends("invites").pending_account_invites()();') is None
    async with await open_stream(server) as stream:
        with one_error(server, problem), pytest.raises(Refused) as refused:
            await stream.preauth(token)
        assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
    async with await login(server, "juliet", "pw") as juliet:
        assert await juliet.roster() == {}


async def assert_in_order(server: Prosody, *tokens: str) -> None:
    said = len(errors(server))
    assert validity(server, create(server)) == (True, None)
    for number, token in enumerate(tokens):
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            await stream.register(f"user{number}", "pw")
    assert len(errors(server)) == said


# Each breaks the database of a server that has closed it, and mends it again where the generator is resumed.


def _read_only(path: Path) -> Iterator[None]:
    path.chmod(0o400)
    yield
    path.chmod(0o600)


def _of_another_user(path: Path) -> Iterator[None]:
    owner = path.stat()
    os.chown(path, 0, 0)
    yield
    os.chown(path, owner.st_uid, owner.st_gid)


def _log_of_another_user(path: Path) -> Iterator[None]:
    """As root leaves it who looks into the database with the sqlite3 of the system."""
    log = path.with_name(f"{path.name}-wal")
    log.touch(0o600)
    yield
    os.chown(log, path.stat().st_uid, path.stat().st_gid)


def _directory_read_only(path: Path) -> Iterator[None]:
    path.parent.chmod(0o500)
    yield
    path.parent.chmod(0o700)


def _garbage(path: Path) -> Iterator[None]:
    whole = path.read_bytes()
    path.write_bytes(b"garbage " * 1000)
    yield
    path.write_bytes(whole)


def _truncated(path: Path) -> Iterator[None]:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    yield
    path.write_bytes(whole)


def _newer(path: Path) -> Iterator[None]:
    with closing(sqlite3.connect(path)) as connection:
        schema, = connection.execute("PRAGMA user_version").fetchone()
    _execute(path, "PRAGMA user_version = 99")
    yield
    _execute(path, f"PRAGMA user_version = {schema}")


def _of_another_program(path: Path) -> Iterator[None]:
    _execute(path, "PRAGMA application_id = 7")
    yield
    _execute(path, f"PRAGMA application_id = {int.from_bytes(b'PInv')}")


def _execute(path: Path, statement: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(statement)


CHOWN = "to the user that Prosody runs as (chown)"

DAMAGED = "is damaged: stop Prosody, move the file away"

#: How to break it, and what the log says to do.
TROUBLES = {
    "read-only": (_read_only, CHOWN),
    "of another user": (_of_another_user, CHOWN),
    "its log of another user": (_log_of_another_user, CHOWN),
    "in a read-only directory": (_directory_read_only, CHOWN),
    "garbage": (_garbage, DAMAGED),
    "truncated": (_truncated, DAMAGED),
    "newer": (_newer, "has schema 99, this version of mod_invites knows schemas up to 5: install the newer version"),
    "of another program": (_of_another_program, "is an SQLite database of another program: move it away"),
}


@pytest.mark.parametrize(
    "trouble",
    [pytest.param(name, marks=as_root) if "another user" in name else name for name in TROUBLES],
)
async def test_while_the_database_is_broken_only_invites_fail_and_they_come_back(make: Make, trouble: str) -> None:
    break_it, problem = TROUBLES[trouble]
    server = make()
    for name in ("juliet", "romeo"):
        server.add_user(name, "pw")
    server.eval('for _ = 1, 50 do assert(module:depends("invites").create_contact("romeo")); end')
    tokens = [create(server) for _ in range(3)]
    closed(server)

    broken = break_it(database(server))
    next(broken)
    await assert_out_of_order(server, tokens[0], problem)
    next(broken, None)
    await assert_in_order(server, *tokens)


LOCKED = "is locked by another process; try again"
#: Seconds. The server serves nobody else while it waits for 40 ms, or for half a second until the database is open.
NOT_LONG = 2


def until_it_can_store(server: Prosody) -> None:
    """Until the pause is over that follows a wait in vain."""
    deadline = time.monotonic() + 10
    while not server.can_store():
        assert time.monotonic() < deadline


async def test_whoever_registers_again_and_again_keeps_others_waiting_once_while_another_process_writes(make: Make) -> None:
    """The server's own clock says how long it was busy with each."""
    server = make()
    token = create(server)
    server.eval(
        """
        local now, spent = require "util.time".monotonic, module:shared("spent");
        module:wrap_event("user-registering", function (handlers, name, event)
            local start = now();
            local ret = handlers(name, event);
            table.insert(spent, now() - start);
            return ret;
        end);
        """
    )
    async with await open_stream(server) as stream:
        await stream.preauth(token)

        async def refused(number: int) -> None:
            with pytest.raises(Refused):
                await stream.register(f"user{number}", "pw")

        with locked(database(server)):
            await asyncio.gather(*map(refused, range(12)))
    spent = sorted(server.eval('return module:shared("spent");'), reverse=True)
    assert len(spent) == 12
    # On a machine that is busy with other tests: no second wait of 40 ms for nothing.
    assert sum(spent[1:]) < 11 * 0.04 / 2, spent


@contextmanager
def locked(path: Path, *statements: str) -> Iterator[None]:
    """Another process holds the database."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for statement in (*statements, "BEGIN EXCLUSIVE"):
            connection.execute(statement)
        yield
        connection.execute("ROLLBACK")


async def test_while_somebody_else_writes_nobody_waits_long_and_reading_goes_on(make: Make) -> None:
    server = make()
    server.add_user("romeo", "pw")
    token = create(server)
    with locked(database(server)):
        for call in (CREATE_SOMETHING[0], *CHANGE_SOMETHING):
            start = time.monotonic()
            assert_fails(server, call, token, LOCKED)
            assert time.monotonic() - start < NOT_LONG, call
        assert validity(server, token) == (True, None)
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            with one_error(server, LOCKED), pytest.raises(Refused) as refused:
                await stream.register("juliet", "pw")
            assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
    until_it_can_store(server)
    await assert_in_order(server, token)


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "old"])
async def test_a_database_locked_at_first_use_keeps_nobody_waiting_long_either(make: Make, is_new: bool) -> None:
    server = make()
    tokens = []
    if not is_new:
        tokens = [create(server)]
        closed(server)
    with locked(database(server), "PRAGMA journal_mode = WAL", "PRAGMA locking_mode = EXCLUSIVE"):
        if server.user:
            shutil.chown(database(server), server.user)
        with one_error(server, LOCKED):
            start = time.monotonic()
            assert server.eval(CREATE, timeout=10) == (None, "internal-server-error")
            assert time.monotonic() - start < NOT_LONG
        assert validity(server, "x") == (False, "internal-server-error")
    until_it_can_store(server)
    await assert_in_order(server, *tokens)


class OnASmallDisk(Prosody):
    """Its data directory is a small file system, seen by the server alone and gone with it."""

    SIZE = "1m"

    def _as_user(self) -> list[str]:
        mount = f'mount -t tmpfs -o size={self.SIZE},mode=777 tmpfs "{self.data_path}" && exec "$@"'
        return ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh", *super()._as_user()]

    @property
    def disk(self) -> Path:
        """Its data directory as the server sees it."""
        return Path(f"/proc/{self.pid}/root{self.data_path}")


def fill_up(disk: Path) -> Path:
    filler = disk / "filler"
    with suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    return filler


@as_root
@pytest.mark.parametrize("first_used", ["when it is full", "before"])
async def test_on_a_full_disk_only_invites_fail_and_they_come_back(
    version: str, native_lua: Path, first_used: str
) -> None:
    # Accounts are in memory: what other modules make of a full disk is not ours to show.
    with OnASmallDisk(version, plugin_paths=(native_lua,), modules=MODULES, storage="memory") as server:
        server.start()
        tokens = [create(server)] if first_used == "before" else []
        filler = fill_up(server.disk)
        for name in ("juliet", "romeo"):
            server.add_user(name, "pw")
        for call in CREATE_SOMETHING:
            assert_fails(server, call, "x", "does not fit on the disk: make room")
        for token in tokens:
            assert_fails(server, CHANGE_SOMETHING[0], token, "does not fit on the disk: make room")
            # What is there can be read.
            assert validity(server, token) == (True, None)
            async with await open_stream(server) as stream:
                await stream.preauth(token)
                with pytest.raises(Refused) as refused:
                    await stream.register("tybalt", "pw")
                assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
        async with await login(server, "juliet", "pw") as juliet:
            assert await juliet.roster() == {}
        filler.unlink()
        await assert_in_order(server, *tokens)


def generate(server: Prosody, *prefix: str, root: bool = False) -> subprocess.CompletedProcess[str]:
    command = [*prefix, server.scratch / "prosodyctl", "--config", server.config_path, *(["--root"] if root else [])]
    return subprocess.run(
        [*command, "mod_invites", "generate", "example.com"],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20, cwd=server.scratch,
    )


@as_root
@pytest.mark.parametrize("by", ["root", USER])
async def test_a_database_first_made_by_prosodyctl_is_the_servers(make: Make, by: str) -> None:
    server = make(start=False)
    done = generate(server, *(_command_as(by) if by != "root" else []))
    assert (done.returncode, done.stderr) == (0, "")
    assert database(server).owner() == USER
    server.start()
    await assert_in_order(server, done.stdout.strip().partition("preauth=")[2])


@as_root
@pytest.mark.parametrize("is_there", [False, True], ids=["no-database", "a-database"])
async def test_prosodyctl_by_a_third_user_says_what_to_do_and_does_no_harm(make: Make, is_there: bool) -> None:
    server = make()
    tokens = [create(server)] if is_there else []
    for path in (server.scratch, server.data_path):
        path.chmod(0o755)
    done = generate(server, *_command_as("daemon"))
    assert done.returncode == 1
    assert "preauth=" not in done.stdout
    line, = done.stderr.splitlines()
    assert str(database(server)) in line
    assert CHOWN in line
    assert [path.owner() for path in server.data_path.glob("invites*")] == [USER] * (3 * is_there)
    await assert_in_order(server, *tokens)


@as_root
async def test_a_database_that_belongs_to_root_is_told_once_per_call_and_comes_back(make: Make) -> None:
    server = make(start=False)
    done = generate(server, root=True)
    assert done.returncode == 0
    assert database(server).owner() == USER
    server.start()
    os.chown(database(server), 0, 0)
    for name in ("juliet", "romeo"):
        server.add_user(name, "pw")
    await assert_out_of_order(server, "x", CHOWN)
    for path in server.data_path.glob("invites.sqlite3*"):
        shutil.chown(path, USER)
    await assert_in_order(server, done.stdout.strip().partition("preauth=")[2])
