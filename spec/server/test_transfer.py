"""prosodyctl mod_invites export, import, backup and restore, beside a running server."""

import base64
import hashlib
import json
import os
import select
import sqlite3
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from client import login, open_stream
from prosody import CHECKOUT, Prosody

pytestmark = pytest.mark.storage

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")

MAKE = """
    local invites = module:depends("invites");
    local made = {
        account = invites.create_account(nil, { roles = { "prosody:admin" }, note = "ä\\0\\255", n = { 1, 2.5, x = {} } });
        bound = invites.create_account("mercutio");
        both = invites.create_contact("juliet", true);
        group = invites.create_group({ "montagues" }, nil, 3600);
        used = invites.create_account();
        revoked = invites.create_account();
    };
    for name, invite in pairs(made) do made[name] = invite.token; end
    assert(invites.use(made.used));
    assert(invites.delete_account_invite(made.revoked));
    return made;
"""
IS_GOOD = 'return (module:depends("invites").get(args.token)) ~= nil'


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    def made(**options: Any) -> Prosody:
        server = prosody(**{"plugin_paths": (native_lua,), "modules": MODULES, **options})
        if server.running:
            server.add_user("juliet", "pw")
        return server

    return made


def run(server: Prosody, *args: str, code: int = 0, **options: Any) -> subprocess.CompletedProcess[str]:
    done = server.prosodyctl("mod_invites", *args, **options)
    assert done.returncode == code, done
    if code == 0:
        assert done.stderr == ""
    return done


def exported(server: Prosody, *args: str) -> str:
    return run(server, "export", "example.com", *args).stdout


def test_export_import_export_gives_the_same_bytes(make: Make) -> None:
    first = make()
    tokens = first.eval(MAKE)
    text = exported(first)
    lines = [json.loads(line) for line in text.splitlines()]
    # Nobody needs the token of what is over.
    by_token = {line["token"]: line for line in lines if "token" in line}
    assert set(by_token) == {tokens[name] for name in ("account", "bound", "both", "group")}
    used, = (line for line in lines if line.get("uses"))
    assert used["redemptions"][0]["purpose"] == "account"
    assert used["digest"] == base64.urlsafe_b64encode(hashlib.sha256(tokens["used"].encode()).digest()).decode()[:-1]
    assert [line for line in lines if line.get("revoked_at")]
    assert by_token[tokens["account"]]["fields"]["additional_data"]["note"] == {"$bytes": "w6QA/w=="}

    second = make()
    said = run(second, "import", "example.com", "-", input=text).stdout
    assert said == "6 invites imported for example.com, 0 were known\n"
    assert exported(second) == text
    assert second.eval(IS_GOOD, token=tokens["account"])
    for spent in ("used", "revoked"):
        assert not second.eval(IS_GOOD, token=tokens[spent])


@pytest.mark.parametrize("storage", ["sqlite", "prosody", "memory"])
def test_pending_invites_move_between_all_storages(make: Make, storage: str) -> None:
    source = make()
    tokens = source.eval(MAKE)
    text = exported(source, "--pending")
    assert len(text.splitlines()) == 4
    target = make(config=f'invite_storage = "{storage}";')
    run(target, "import", "example.com", "-", input=text)
    assert exported(target) == text
    for good in ("account", "bound", "group", "both"):
        assert target.eval(IS_GOOD, token=tokens[good]), good
    back = make()
    run(back, "import", "example.com", "-", input=exported(target))
    assert exported(back) == text


def test_what_a_storage_cannot_carry_is_told_by_line_and_nothing_is_written(make: Make) -> None:
    source = make()
    source.eval(MAKE)
    text = exported(source)
    spent = [n for n, line in enumerate(text.splitlines(), 1) if "ended_at" in json.loads(line)]
    target = make(config='invite_storage = "prosody";')
    done = run(target, "import", "example.com", "-", input=text, code=1)
    told = done.stderr.splitlines()
    assert [f"line {n}: " in line and "cannot be kept" in line for n, line in zip(spent, told, strict=False)] == [True, True]
    assert told[-1] == "prosodyctl mod_invites: nothing was imported"
    assert exported(target) == ""


@pytest.mark.parametrize("storage", ["sqlite", "prosody"])
def test_a_file_is_for_its_owner_alone_and_never_overwritten(make: Make, storage: str) -> None:
    server = make(config=f'invite_storage = "{storage}";')
    server.eval('return module:depends("invites").create_account().token')
    run(server, "export", "example.com", "--output", "invites.jsonl")
    file = server.scratch / "invites.jsonl"
    assert f"{file.stat().st_mode & 0o777:o}" == "600"
    text = file.read_text()
    assert text == exported(server)
    assert "cannot be created" in run(server, "export", "example.com", "-o", "invites.jsonl", code=1).stderr
    assert file.read_text() == text
    other = make(config=f'invite_storage = "{storage}";')
    assert "1 invites imported" in run(other, "import", "example.com", str(file)).stdout
    assert "0 invites imported" in run(other, "import", "example.com", str(file)).stdout


def test_a_file_that_is_not_there_is_one_line(make: Make) -> None:
    for storage in ("sqlite", "prosody"):
        server = make(config=f'invite_storage = "{storage}";')
        line, = run(server, "import", "example.com", "missing", code=1).stderr.splitlines()
        assert "No such file" in line


def test_a_bad_line_is_told_and_nothing_is_imported(make: Make) -> None:
    server = make()
    good = {
        "host": "example.com", "token": "good", "type": "register", "allow_registration": True,
        "created_at": 1, "expires": None, "max_uses": 1,
    }
    text = "\n".join(json.dumps({**good, **change}) for change in ({}, {"username": "Romeo"}, {"token": "other"}))
    told = run(server, "import", "example.com", "-", input=text, code=1).stderr.splitlines()
    assert told == [
        'prosodyctl mod_invites: line 2: has a username that is not as it is compared: "Romeo"',
        "prosodyctl mod_invites: nothing was imported",
    ]
    assert exported(server) == ""


async def test_an_invite_from_ejabberd_registers_here(make: Make) -> None:
    server = make()
    listed = [
        {
            "token": "mzS7hB3Uxo1nvTnIhYg6GkZK", "valid": "true", "created_at": "2026-02-01T10:00:00Z",
            "expires": "2099-02-06T10:00:00Z", "type": "account_only", "inviter": "example.com", "invitee": "",
            "account_name": "", "token_uri": "xmpp:example.com?register;preauth=mzS7hB3Uxo1nvTnIhYg6GkZK",
            "landing_page": "",
        }
    ]
    run(server, "import", "example.com", "-", input=json.dumps(listed, indent=1))
    async with await open_stream(server) as stream:
        await stream.preauth("mzS7hB3Uxo1nvTnIhYg6GkZK")
        await stream.register("romeo", "pw")
    async with await login(server, "romeo", "pw"):
        pass


def test_an_import_that_was_cut_off_is_completed_by_the_next(make: Make, tmp_path: Path) -> None:
    server = make()
    file = tmp_path / "many"
    write_invites(file, 20_000)
    child = subprocess.Popen(
        [server.scratch / "prosodyctl", "--config", server.config_path, "mod_invites", "import", "example.com", file],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    deadline = time.monotonic() + 20
    while not 0 < stored(server) < 20_000:
        assert time.monotonic() < deadline and child.poll() is None
    child.kill()
    child.communicate()
    done = stored(server)
    assert 0 < done < 20_000
    assert run(server, "import", "example.com", str(file)).stdout == (
        f"{20_000 - done} invites imported for example.com, {done} were known\n"
    )
    assert stored(server) == 20_000


def write_invites(file: Path, count: int) -> None:
    """In the order of an export."""
    indexes = sorted(range(count), key=lambda index: hashlib.sha256(f"token{index:019}".encode()).digest())
    with file.open("w") as out:
        for index in indexes:
            out.write(
                f'{{"host":"example.com","token":"token{index:019}","type":"register","allow_registration":true,'
                f'"created_at":{1_700_000_000 + index},"expires":{4_000_000_000 + index},"max_uses":1,'
                '"fields":{"additional_data":{"note":"one of many"}}}\n'
            )
        # Else the system does it half a minute later, when somebody is looking at how long the disk takes.
        os.fsync(out)


def stored(server: Prosody) -> int:
    path = server.data_path / "invites.sqlite3"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as connection:
        try:
            return connection.execute("SELECT count(*) FROM invite").fetchone()[0]
        except sqlite3.OperationalError:  # not made yet
            return 0


@pytest.fixture
def busy(make: Make) -> Iterator[Callable[[], tuple[Prosody, Callable[[], list[float]]]]]:
    """A server that makes one invite after the other; a function that ends it and gives how long each took."""
    ends: list[Callable[[], list[float]]] = []

    def begin() -> tuple[Prosody, Callable[[], list[float]]]:
        server = make()
        server.eval('return module:depends("invites").create_account().token')
        times: list[float] = []
        failed: list[BaseException] = []
        over = threading.Event()

        def work() -> None:
            try:
                while not over.is_set():
                    times.append(
                        server.eval(
                            """
                            local now, invites = require "util.time".now, module:depends("invites");
                            local begin = now();
                            assert(invites.create_account());
                            return now() - begin;
                            """
                        )
                    )
            except BaseException as error:
                failed.append(error)

        thread = threading.Thread(target=work)
        thread.start()

        def end() -> list[float]:
            over.set()
            thread.join()
            assert not failed, failed
            return times

        ends.append(end)
        return server, end

    yield begin
    for end in ends:
        end()


def test_a_large_import_does_not_hold_the_server_up_and_loses_nothing(
    busy: Callable[[], tuple[Prosody, Callable[[], list[float]]]], tmp_path: Path
) -> None:
    """SPEC_INVITES=1000000 SPEC_WAIT_MS=50 on a quiet machine measures what is promised."""
    count = int(os.environ.get("SPEC_INVITES", "10000"))
    file = tmp_path / "many"
    write_invites(file, count)
    server, end = busy()
    begin = time.monotonic()
    child = subprocess.Popen(
        [server.scratch / "prosodyctl", "--config", server.config_path, "mod_invites", "import", "example.com", file],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    peak = 0
    while child.poll() is None:
        for line in Path(f"/proc/{child.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                peak = max(peak, int(line.split()[1]))
        time.sleep(0.05)
    took = time.monotonic() - begin
    out, err = child.communicate()
    times = end()
    assert (child.returncode, err) == (0, "")
    assert out == f"{count} invites imported for example.com, 0 were known\n"
    assert stored(server) == count + len(times) + 1
    times.sort()
    print(
        f"{count} invites in {took:.1f} s, {peak // 1024} MiB; {len(times)} creates meanwhile:"
        f" median {times[len(times) // 2] * 1e3:.1f} ms, 99 % {times[len(times) * 99 // 100] * 1e3:.1f} ms,"
        f" longest {times[-1] * 1e3:.1f} ms"
    )
    assert peak < 200 * 1024
    # The promise is 50 ms on a quiet machine; beside other tests, only that nobody gives up waiting (500 ms).
    if "SPEC_WAIT_MS" in os.environ:
        assert times[-1] * 1e3 < float(os.environ["SPEC_WAIT_MS"])


@pytest.mark.parametrize("revoke", [False, True], ids=["as-it-was", "revoke-older"])
def test_a_backup_is_restored_under_a_running_server(make: Make, revoke: bool) -> None:
    server = make()
    tokens = server.eval(MAKE)
    # The last create is only in the log yet, which a copy of the file would lack.
    assert "copied to" in run(server, "backup", "invites.backup").stdout
    file = server.scratch / "invites.backup"
    assert f"{file.stat().st_mode & 0o777:o}" == "600"
    assert server.eval('return module:depends("invites").use(args.token)', token=tokens["account"]) is True
    later = server.eval('return module:depends("invites").create_account().token')

    unsure = run(server, "restore", "invites.backup", code=1)
    assert "1 of them were used, revoked or have expired here since and would be good again" in unsure.stdout
    assert "1 invites that are here now are not in it" in unsure.stdout
    assert "--yes" in unsure.stderr
    assert server.eval(IS_GOOD, token=later)

    run(server, "restore", "invites.backup", "--yes", *(["--revoke-older"] if revoke else []))
    assert not server.eval(IS_GOOD, token=later)
    for name in ("account", "bound", "group", "both"):
        assert server.eval(IS_GOOD, token=tokens[name]) is not revoke, name
    assert not server.eval(IS_GOOD, token=tokens["used"])
    fresh = server.eval('return module:depends("invites").create_account().token')
    assert server.eval(IS_GOOD, token=fresh)
    assert not list(server.data_path.glob(".tmp*"))


def test_a_backup_is_restored_where_everything_is_lost(make: Make) -> None:
    server = make()
    tokens = server.eval(MAKE)
    run(server, "backup", "invites.backup")
    server.stop()
    for path in server.data_path.glob("invites.sqlite3*"):
        path.unlink()
    run(server, "restore", "invites.backup", "--yes")
    server.start()
    assert server.eval(IS_GOOD, token=tokens["account"])


def test_restore_asks_on_a_terminal(make: Make) -> None:
    server = make()
    token = server.eval('return module:depends("invites").create_account().token')
    run(server, "backup", "invites.backup")
    for answer, code, is_good in (("no", 1, True), ("yes", 0, True), ("revoke", 0, False)):
        said, status = at_terminal(server, answer, "restore", "invites.backup")
        assert status == code, said
        assert "Type yes" in said
        assert server.eval(IS_GOOD, token=token) is is_good


def at_terminal(server: Prosody, answer: str, *args: str) -> tuple[str, int]:
    """What it says, and its exit code, where it can ask."""
    ours, theirs = os.openpty()
    child = subprocess.Popen(
        [server.scratch / "prosodyctl", "--config", server.config_path, "mod_invites", *args],
        stdin=theirs, stdout=theirs, stderr=theirs, cwd=server.scratch, env={**os.environ, "PWD": str(server.scratch)},
    )
    os.close(theirs)
    said, deadline = b"", time.monotonic() + 20
    with suppress(OSError):  # the other end is closed
        while b"Type yes" not in said:
            said += read_by(ours, deadline)
        os.write(ours, answer.encode() + b"\n")
        while True:
            said += read_by(ours, deadline)
    os.close(ours)
    return said.decode(), child.wait(20)


def read_by(terminal: int, deadline: float) -> bytes:
    assert select.select([terminal], [], [], deadline - time.monotonic())[0], "it says nothing"
    return os.read(terminal, 4096)


def test_what_is_no_backup_is_one_line(make: Make) -> None:
    server = make()
    server.eval('return module:depends("invites").create_account().token')
    (server.scratch / "garbage").write_text("garbage " * 1000)
    for name in ("garbage", "missing"):
        line, = run(server, "restore", name, "--yes", code=1).stderr.splitlines()
        assert "cannot be read as a backup" in line
    run(server, "backup", "a")
    line, = run(server, "backup", "a", code=1).stderr.splitlines()
    assert "exists already" in line


def test_processes_that_meet_an_older_schema_at_once_migrate_it_once(make: Make) -> None:
    server = make(start=False)
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as connection:
        connection.executescript((CHECKOUT / "spec" / "fixtures" / "schema-1.sql").read_text())
    command = [str(server.scratch / "prosodyctl"), "--config", str(server.config_path), "mod_invites", "export", "example.com"]
    children = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(4)
    ]
    texts = set()
    for child in children:
        out, err = child.communicate(timeout=30)
        assert (child.returncode, err) == (0, "")
        texts.add(out)
    text, = texts
    expected = (CHECKOUT / "spec" / "fixtures" / "released.jsonl").read_text()
    assert [json.loads(line)["created_at"] for line in text.splitlines()] == [1_700_000_000] * len(expected.splitlines())
