"""The database: whose it is, when it is opened, what holds without it, and that hosts do not see each other's rows."""

import os
import pwd
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

pytestmark = pytest.mark.storage

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
CREATE = 'return assert(module:depends("invites").create_account()).token;'

as_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can change the user")


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module."""

    def made(**options: Any) -> Prosody:
        return prosody(plugin_paths=(native_lua,), modules=MODULES, **options)

    return made


def database(server: Prosody) -> Path:
    return server.data_path / "invites.sqlite3"


def generate(server: Prosody) -> str:
    done = server.prosodyctl("mod_invites", "generate", "example.com")
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.strip().partition("preauth=")[2]


def validity(server: Prosody, token: str, host: str = "example.com") -> tuple[Any, ...]:
    """(True,) or (False, why not)."""
    return server.eval(
        """
        local invite, why = module:depends("invites").get(args.token);
        return invite ~= nil, why;
        """,
        token=token, host=host,
    )


def errors(server: Prosody) -> list[str]:
    """What the module has logged as an error on any host."""
    return re.findall(r"example\.\w+:invites\terror\t(.*)", server.log())


def owners(server: Prosody) -> dict[str, tuple[int, str]]:
    """Owner and mode of each file of the database."""
    return {
        path.name: (path.stat().st_uid, f"{path.stat().st_mode & 0o7777:o}")
        for path in server.data_path.glob("invites.sqlite3*")
    }


@pytest.mark.parametrize("user", [None, pytest.param("nobody", marks=as_root)], ids=["own-user", "another-user"])
@pytest.mark.parametrize("first", ["server", "prosodyctl"])
def test_the_files_are_for_the_user_of_prosody_alone(make: Make, user: str | None, first: str) -> None:
    server = make(user=user, start=first == "server")
    if first == "prosodyctl":
        generate(server)
        server.start()
    server.eval(CREATE)
    generate(server)
    uid = pwd.getpwnam(user).pw_uid if user else os.getuid()
    files = ("invites.sqlite3", "invites.sqlite3-wal", "invites.sqlite3-shm")
    assert owners(server) == {name: (uid, "600") for name in files}


@as_root
def test_a_database_that_root_makes_is_the_servers(make: Make) -> None:
    """As it is where root's prosodyctl does not become another user, and the server has not made any invite yet."""
    server = make(user="nobody", start=False)
    generated = server.prosodyctl("--root", "mod_invites", "generate", "example.com")
    assert (generated.returncode, generated.stderr) == (0, "")
    token = generated.stdout.strip().partition("preauth=")[2]
    uid = pwd.getpwnam("nobody").pw_uid
    assert {owner for owner, _ in owners(server).values()} == {uid}
    server.start()
    assert validity(server, token) == (True, None)
    assert server.prosodyctl("--root", "mod_invites", "generate", "example.com").returncode == 0
    assert owners(server) == {f"invites.sqlite3{suffix}": (uid, "600") for suffix in ("", "-wal", "-shm")}


def test_invites_survive_that_files_of_the_database_are_deleted_under_processes_that_have_them_open(make: Make) -> None:
    """Each of the two would overwrite what the other has committed since."""
    server = make()
    tokens = [server.eval(CREATE)]
    create = 'local invite, why = module:depends("invites").create_account(); return invite and invite.token, why;'
    for suffixes in (["-shm"], ["-wal"], ["-wal", "-shm"]):
        for suffix in suffixes:
            Path(f"{database(server)}{suffix}").unlink()
        if "-wal" in suffixes:
            # Before somebody else opens it: what was only in the log is saved by whoever has it open.
            assert server.eval(create) == (None, "internal-server-error")
        tokens.append(generate(server))
        if "-wal" not in suffixes:
            assert server.eval(create) == (None, "internal-server-error")
        tokens += [server.eval(CREATE), generate(server), server.eval(CREATE)]
        assert [validity(server, token) for token in tokens] == [(True, None)] * len(tokens)
    assert len([error for error in errors(server) if "was deleted or replaced" in error]) == 3
    server.restart()
    assert [validity(server, token) for token in tokens] == [(True, None)] * len(tokens)


@pytest.mark.parametrize("daemonize", [False, True], ids=["-F", "-D"])
def test_the_database_is_opened_at_first_use(make: Make, daemonize: bool) -> None:
    server = make(daemonize=daemonize)
    assert not database(server).exists()
    assert str(database(server)) not in _open_files(server)
    server.eval('module:depends("invites");')
    assert not database(server).exists()
    server.eval(CREATE)
    assert str(database(server)) in _open_files(server)


def _open_files(server: Prosody) -> set[str]:
    found = set()
    for descriptor in Path(f"/proc/{server.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile: the connection of the last eval
            found.add(os.readlink(descriptor))
    return found


def test_a_daemon_and_prosodyctl_see_each_others_invites(make: Make) -> None:
    """A connection that was open when 0.12 forked for -D would lose rows once another process had used the file."""
    server = make(daemonize=True)
    tokens: list[str] = []
    for _ in range(4):
        tokens += [server.eval(CREATE), generate(server)]
        with closing(sqlite3.connect(database(server))) as another_process:
            rows = another_process.execute("SELECT token FROM invite").fetchall()
        assert {token for token, in rows} == set(tokens)
    for _ in range(2):
        assert [validity(server, token) for token in tokens] == [(True, None)] * len(tokens)
        server.kill()
        server.start()


def test_without_a_data_directory_the_rest_works_and_invites_come_back_by_themselves(make: Make) -> None:
    server = make(storage="memory")
    missing = server.data_path.rename(server.scratch / "away")
    _assert_only_invites_fail(server, "directory does not exist: create it")
    missing.rename(server.data_path)
    assert validity(server, server.eval(CREATE)) == (True, None)


def test_where_it_may_not_write_the_rest_works_and_invites_come_back_by_themselves(make: Make) -> None:
    # Nothing is forbidden to root.
    server = make(storage="memory", user="nobody" if os.getuid() == 0 else None)
    server.data_path.chmod(0o500)
    _assert_only_invites_fail(server, "cannot be created: give its directory to the user that Prosody runs as")
    server.data_path.chmod(0o700)
    assert validity(server, server.eval(CREATE)) == (True, None)


def test_a_damaged_database_is_kept_and_invites_come_back_with_a_good_one(make: Make) -> None:
    server = make(storage="memory")
    garbage = b"garbage " * 1000
    database(server).write_bytes(garbage)
    _assert_only_invites_fail(server, "is damaged: stop Prosody, move the file away")
    assert database(server).read_bytes() == garbage
    database(server).unlink()
    assert validity(server, server.eval(CREATE)) == (True, None)


def _assert_only_invites_fail(server: Prosody, problem: str) -> None:
    calls = {
        "create_account": "invites.create_account()",
        "create_contact": 'invites.create_contact("romeo", true)',
        "get": 'invites.get("x")',
        "get for a contact": 'invites.get("x", "romeo")',
        "use": 'invites.use("x")',
        "get_account_invite_info": 'invites.get_account_invite_info("x")',
        "delete_account_invite": 'invites.delete_account_invite("x")',
    }
    for name, call in calls.items():
        before = len(errors(server))
        answer = server.eval(f'local invites = module:depends("invites"); return {call};')
        assert answer == (None, "internal-server-error"), name
        said, = errors(server)[before:]
        assert str(database(server)) in said, name
        assert problem in said, name
    before = len(errors(server))
    assert server.eval('for token in module:depends("invites").pending_account_invites() do return token; end') is None
    assert len(errors(server)) == before + 1
    server.add_user("juliet", "pw")
    assert server.eval('return require "core.usermanager".test_password("juliet", module.host, "pw");') is True


async def test_a_token_is_refused_in_band_while_its_database_is_away(make: Make) -> None:
    server = make(storage="memory")
    token = server.eval(CREATE)
    server.restart()  # a connection that is open already would not notice
    away = server.data_path.rename(server.scratch / "away")
    async with await open_stream(server) as stream:
        with pytest.raises(Refused) as refused:
            await stream.preauth(token)
        assert (refused.value.type, refused.value.condition) == ("wait", "internal-server-error")
        with pytest.raises(Refused):
            await stream.register("tybalt", "pw")
        away.rename(server.data_path)
        await stream.preauth(token)
        await stream.register("juliet", "pw")
    async with await login(server, "juliet", "pw"):
        pass


async def test_an_invite_is_for_one_host(make: Make) -> None:
    here, there = "example.com", "example.net"
    server = make(hosts={here: "", there: ""})
    token = server.eval(CREATE, host=here)
    server.add_user("romeo", "pw", host=here)
    with_a_name = server.eval('return module:depends("invites").create_contact("romeo", true).token;', host=here)
    for each in (token, with_a_name):
        assert validity(server, each, host=there) == (False, "token-invalid")
    assert server.eval(
        """
        local invites = module:depends("invites");
        local _, contact = invites.get(args.with_a_name, "romeo");
        local _, info = invites.get_account_invite_info(args.token);
        local _, used = invites.use(args.token);
        invites.delete_account_invite(args.token);
        invites.delete_account_invite(args.with_a_name);
        return contact, info, used, invites.pending_account_invites()();
        """,
        host=there, token=token, with_a_name=with_a_name,
    ) == ("token-invalid", "token-invalid", "token-invalid", None)
    async with await open_stream(server, there) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)
    assert validity(server, with_a_name, host=here) == (True, None)
    async with await open_stream(server, here) as stream:
        await stream.preauth(token)
        await stream.register("juliet", "pw")
    assert [path.name for path in server.data_path.glob("*.sqlite3")] == ["invites.sqlite3"]
