"""The golden record: what `prosodyctl mod_invites` prints and its exit code, byte for byte, on each Prosody.

`golden/commands.txt` has the command lines, `golden/record.txt` what they print on Prosody 13.0.1, `golden/VERSION.diff` how
another version differs. Each is a process of its own, as an operator's is; all work on one database, whose invites are those of
`golden/invites.jsonl`. SPEC_GOLDEN=renew in the environment (without -n) writes the record anew in place of comparing it: read the
difference before you commit it.

The clock stands still (libfaketime), so times are recorded as they are. Three things differ from run to run: new tokens,
their ids, and the directory of the server. `Recorder.settled` gives them fixed names, tokens and ids of the same width.
"""

import hashlib
import json
import os
import re
import shlex
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from difflib import unified_diff
from pathlib import Path
from typing import Any

import pytest

from prosody import VERSIONS, Prosody

GOLDEN = Path(__file__).resolve().parent / "golden"
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
#: What the others are compared with, so the first to be recorded.
RECORDED = "13.0.1"
NOW = "2026-06-01 12:00:00"

HOSTS = {
    "example.com": "",
    "example.net": """
        invites_page = "https://example.net/invite?{invite.token}";
        invite_limits = { ["prosody:registered"] = { kinds = { "contact" } } };
        invite_expiry = "2 days";
        invites_expiry = "1 day";
    """,
    "empty.example": "",
    "floppy.example": 'invite_storage = "floppy";',
    "memory.example": 'invite_storage = "memory";',
}
ACCOUNTS = ("juliet@example.com", "nurse@example.com", "paris@example.com", "romeo@example.net")
FILES = {
    "invites.jsonl": (GOLDEN / "invites.jsonl").read_text(),
    "bad.jsonl": (
        '{"host":"example.com","token":"good","type":"register","allow_registration":true,"created_at":1,"expires":null,'
        '"max_uses":1}\n'
        '{"host":"example.com","token":"bad","type":"register","username":"Romeo","allow_registration":true,"created_at":1,'
        '"expires":null,"max_uses":1}\n'
        "{\n"
    ),
    "ejabberd.json": json.dumps([{
        "token": "mzS7hB3Uxo1nvTnIhYg6GkZK", "valid": "true", "created_at": "2026-02-01T10:00:00Z",
        "expires": "2099-02-06T10:00:00Z", "type": "account_only", "inviter": "example.net", "invitee": "",
        "account_name": "", "token_uri": "xmpp:example.net?register;preauth=mzS7hB3Uxo1nvTnIhYg6GkZK", "landing_page": "",
    }]),
    "garbage": "garbage " * 1000,
}
TOKEN = re.compile(r"(?<![A-Za-z0-9])[A-Za-z0-9]{24}(?![A-Za-z0-9])")


class Recorder:
    """Runs the lines of commands.txt; `text` is the record."""

    def __init__(self, server: Prosody) -> None:
        self._server = server
        self._known = {token for text in FILES.values() for token in TOKEN.findall(text)}
        self._new: list[str] = []
        self._environment = {
            "PATH": os.environ["PATH"], "PWD": str(server.scratch), "TZ": "UTC", "SUDO_USER": "capulet",
            "LD_PRELOAD": str(FAKETIME), "FAKETIME": NOW, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1",
        }

    def prosodyctl(self, *words: str, columns: str = "80", stdin: str = "") -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [self._server.scratch / "prosodyctl", "--config", self._server.config_path, *words],
            env=self._environment | {"COLUMNS": columns}, input=stdin.encode(), capture_output=True, timeout=60,
            cwd=self._server.scratch,
        )

    def run(self, line: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr."""
        words = [word.replace("\\n", "\n") for word in shlex.split(line)]
        columns, stdin = "80", ""
        if words[0].startswith("COLUMNS="):
            columns = words.pop(0).removeprefix("COLUMNS=")
        if words[-2:-1] == ["<"]:
            stdin = FILES[words[-1]]
            del words[-2:]
        done = self.prosodyctl("mod_invites", *words, columns=columns, stdin=stdin)
        return done.returncode, self.settled(done.stdout), self.settled(done.stderr)

    def settled(self, output: bytes) -> str:
        """What is different each time by its name, and what cannot be seen by its number: nothing else is changed."""
        text = output.decode(errors="surrogateescape").replace(str(self._server.scratch), "/scratch")
        assert "<U+" not in text, "it would be taken for a character that cannot be seen"
        for token in TOKEN.findall(text):
            if token not in self._known and token not in self._new:
                self._new.append(token)
        for number, token in enumerate(self._new, 1):
            public = hashlib.sha256(token.encode()).hexdigest()[:16]
            text = text.replace(token, f"token{number:019}").replace(public, f"id{number:014}")
        return "".join(c if c.isprintable() or c == "\n" else f"<U+{ord(c):04X}>" for c in text)

    def stored(self) -> Any:
        """All that is in the database, to see that a command has changed nothing."""
        path = self._server.data_path / "invites.sqlite3"
        if not path.exists():
            return None
        try:
            with closing(sqlite3.connect(path)) as database:
                return list(database.iterdump())
        except sqlite3.DatabaseError:
            return path.read_bytes()

    def remove(self) -> None:
        for path in self._server.data_path.glob("invites.sqlite3*"):
            path.unlink()

    def damage(self) -> None:
        self.remove()
        path = self._server.data_path / "invites.sqlite3"
        path.touch(mode=0o600)
        path.write_text(FILES["garbage"])


def marked(mark: str, text: str) -> Iterator[str]:
    """The lines of an output, each behind a mark."""
    *lines, rest = text.split("\n")
    yield from (f"{mark} {line}" for line in lines)
    if rest:
        yield f"{mark} {rest}"
        yield "(no line break)"


@pytest.fixture(params=sorted(VERSIONS, key=lambda version: version != RECORDED))
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def recorder(version: str, native_lua: Path) -> Iterator[Recorder]:
    assert FAKETIME, "libfaketime is not installed: spec/machine.sh test does that"
    with Prosody(
        version, plugin_paths=(native_lua,), modules=("register_ibr", "invites", "invites_register"), hosts=HOSTS
    ) as server:
        for name, text in FILES.items():
            (server.scratch / name).write_text(text)
        recorder = Recorder(server)
        for account in ACCOUNTS:
            assert recorder.prosodyctl("register", *account.split("@"), "secret").returncode == 0
        yield recorder


def test_every_command_prints_what_is_recorded_and_changes_nothing_where_it_fails(
    recorder: Recorder, version: str
) -> None:
    printed: list[str] = []
    before = recorder.stored()
    for line in (GOLDEN / "commands.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        if line.startswith("!"):
            {"!damage": recorder.damage, "!remove": recorder.remove}[line]()
            before = recorder.stored()
            continue
        code, stdout, stderr = recorder.run(line)
        printed += [f"$ {line}", *marked("1>", stdout), *marked("2>", stderr), f"exit {code}", ""]
        after = recorder.stored()
        assert code == 0 or after == before, f"it failed, and has changed something: {line}"
        if code == 2 and not line.startswith("check "):
            assert (stdout, stderr.count("\n")) == ("", 1), line
        assert "traceback" not in stderr.lower(), line
        before = after

    record, variant = GOLDEN / "record.txt", GOLDEN / f"{version}.diff"
    is_renewed = os.environ.get("SPEC_GOLDEN") == "renew"
    if is_renewed and version == RECORDED:
        record.write_text("\n".join(printed))
    lines = unified_diff(record.read_text().split("\n"), printed, RECORDED, version, lineterm="", n=0)
    # Without where it is: that moves with every line that is added above.
    difference = [line for line in lines if not line.startswith("@@")]
    if is_renewed:
        variant.unlink(missing_ok=True)
        if difference:
            variant.write_text("\n".join(difference) + "\n")
        pytest.skip("wrote the record, and compared nothing")
    assert difference == (variant.read_text().split("\n")[:-1] if variant.exists() else [])
