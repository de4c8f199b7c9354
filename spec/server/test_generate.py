"""`prosodyctl mod_invites generate`: what an operator types, what is printed, and what is in the store afterwards."""

import json
import re
import sqlite3
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
WEEK, DAY = 7 * 86400, 86400
LINK = re.compile(r"xmpp:(?:[a-z-]+@)?example\.com\?register;preauth=([A-Za-z0-9]{24})")

#: (options, whose name it is bound to, its additional_data). The role stands there as text, see `roles`.
ASKED_FOR: tuple[tuple[str, str | None, dict[str, Any]], ...] = (
    ("", None, {"groups": {}}),
    ("--admin", None, {"groups": {}, "roles": "prosody:admin"}),
    ("--role prosody:member", None, {"groups": {}, "roles": "prosody:member"}),
    ("--role=a --role b", None, {"groups": {}, "roles": "b"}),
    ("--role a --admin", None, {"groups": {}, "roles": "prosody:admin"}),
    ("--admin --role a", None, {"groups": {}, "roles": "a"}),
    ("--group a", None, {"groups": ["a"]}),
    ("-g a -gb --group=c", None, {"groups": ["a", "b", "c"]}),
    ("--username Juliet", "juliet", {"groups": {}}),
    ("--username romeo --admin -g a", "romeo", {"groups": ["a"], "roles": "prosody:admin"}),
    ("--reset Romeo-The-Forgetful", "romeo-the-forgetful", {"allow_reset": "romeo-the-forgetful"}),
)


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module."""

    def made(**options: Any) -> Prosody:
        return prosody(plugin_paths=(native_lua,), modules=MODULES, **options)

    return made


def generate(server: Prosody, *options: str) -> str:
    """The token of the printed link. A script takes the last line of stdout, so that must be the link and no more."""
    done = server.prosodyctl("mod_invites", "generate", "example.com", *options)
    assert (done.returncode, done.stderr) == (0, "")
    link = LINK.fullmatch(done.stdout.splitlines()[-1])
    assert link, done.stdout
    return link[1]


def complaint(server: Prosody, *args: str) -> tuple[int, str]:
    """Exit code and line on stderr of a command that must fail: one line, and nothing on stdout to take for a link."""
    done = server.prosodyctl("mod_invites", *args)
    assert done.stdout == ""
    line, = done.stderr.splitlines()
    assert line.startswith("prosodyctl mod_invites: ")
    assert "traceback" not in line
    return done.returncode, line


def add_user(server: Prosody, username: str) -> None:
    """Create an account, whether the server runs or not."""
    assert server.prosodyctl("register", username, "example.com", "secret").returncode == 0


def stored(server: Prosody) -> int:
    """How many invites the database holds, counted with another SQLite."""
    path = server.data_path / "invites.sqlite3"
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as database:
        return database.execute("SELECT count(*) FROM invite").fetchone()[0]


def info(server: Prosody, token: str) -> dict[str, Any]:
    return server.eval('return module:depends("invites").get_account_invite_info(args.token);', token=token)


def refused(server: Prosody, tokens: list[str]) -> dict[str, str]:
    """Which of the tokens are not valid, and why."""
    return server.eval(
        """
        local invites, refused = module:depends("invites"), {};
        for _, token in ipairs(args.tokens) do
            local invite, why = invites.get(token);
            if not invite then refused[token] = why; end
        end
        return refused;
        """,
        tokens=tokens,
    )


def roles(version: str, role: str) -> Any:
    """As the `mod_invites_register` of that version wants them."""
    return [role] if version.startswith("13") else {role: True}


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_an_invite_holds_what_was_asked_for(make: Make, version: str, running: bool) -> None:
    server = make(start=running)
    add_user(server, "romeo-the-forgetful")
    tokens = [generate(server, *options.split()) for options, _, _ in ASKED_FOR]
    assert len(set(tokens)) == stored(server) == len(ASKED_FOR)
    if not running:
        server.start()
    for token, (options, username, expected) in zip(tokens, ASKED_FOR, strict=True):
        invite = info(server, token)
        jid = f"{username}@example.com" if username else "example.com"
        additional_data = invite.pop("additional_data")
        if "roles" in expected:
            expected = {**expected, "roles": roles(version, expected["roles"])}
        assert additional_data == expected, options
        assert invite.pop("expires") - invite.pop("created_at") == (DAY if "--reset" in options else WEEK), options
        assert invite == {
            "type": "register",
            "token": token,
            "jid": jid,
            "uri": f"xmpp:{jid}?register;preauth={token}",
            "allow_registration": True,
        }, options
    assert refused(server, tokens) == {}


async def test_a_running_server_honours_a_link_at_once(make: Make) -> None:
    server = make()
    for number in range(3):
        token = generate(server)
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            await stream.register(f"user{number}", "pw")
        async with await login(server, f"user{number}", "pw") as stream:
            assert stream.jid.bare == f"user{number}@example.com"


async def test_a_reset_link_sets_a_new_password(make: Make) -> None:
    server = make()
    server.add_user("juliet", "forgotten")
    token = generate(server, "--reset", "juliet")
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("juliet", "new")
    async with await login(server, "juliet", "new"):
        pass
    assert refused(server, [token]) == {token: "token-invalid"}


async def test_no_other_name_can_be_registered_with_an_invite_for_a_username(make: Make) -> None:
    server = make()
    token = generate(server, "--username", "juliet")
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        with pytest.raises(Refused):
            await stream.register("tybalt", "pw")
        await stream.register("juliet", "pw")
    async with await login(server, "juliet", "pw"):
        pass


def test_json_says_what_the_server_knows(make: Make, version: str) -> None:
    server = make()
    done = server.prosodyctl("mod_invites", "generate", "example.com", "--json", "--admin", "--username", "juliet")
    assert (done.returncode, done.stderr) == (0, "")
    invite = json.loads(done.stdout.splitlines()[-1])
    assert invite["link"] == invite["uri"]
    assert invite["jid"] == "juliet@example.com"
    assert invite["additional_data"] == {"groups": {}, "roles": roles(version, "prosody:admin")}
    known = info(server, invite["token"])
    assert {name: invite.get(name) for name in known} == known


def test_an_invite_for_ever_has_no_end_in_json(make: Make) -> None:
    server = make(start=False, config='invite_expiry = "never";')
    done = server.prosodyctl("mod_invites", "generate", "example.com", "--json")
    assert "expires" not in json.loads(done.stdout)


@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_an_account_is_not_invited_again_and_none_that_is_not_there_gets_a_reset(make: Make, running: bool) -> None:
    server = make(start=running)
    add_user(server, "juliet")
    problems = {
        "--username juliet": "the account juliet@example.com exists already",
        "--username Juliet --admin": "the account Juliet@example.com exists already",
        "--reset romeo": "there is no account romeo@example.com",
        "--contact romeo": "there is no account romeo@example.com",
    }
    for options, problem in problems.items():
        assert complaint(server, "generate", "example.com", *options.split()) == (
            1, f"prosodyctl mod_invites: {problem}",
        )
    assert stored(server) == 0


def test_a_broken_database_is_one_line_and_no_link(make: Make) -> None:
    server = make(start=False)
    add_user(server, "juliet")
    garbage = b"garbage " * 1000
    database = server.data_path / "invites.sqlite3"
    database.write_bytes(garbage)
    for options in ("", "--json", "--reset juliet"):
        code, line = complaint(server, "generate", "example.com", *options.split())
        assert code == 1
        assert str(database) in line
        assert "is damaged" in line
    assert database.read_bytes() == garbage
    database.unlink()
    generate(server)


def test_memory_storage_gives_no_link_that_the_server_never_sees(make: Make) -> None:
    server = make(config='invite_storage = "memory";')
    generate(server)
    server.stop()
    code, line = complaint(server, "generate", "example.com")
    assert code == 1
    assert "memory of the server, and it does not run" in line


def test_an_unknown_storage_is_one_line(make: Make) -> None:
    server = make(start=False, config='invite_storage = "floppy";')
    code, line = complaint(server, "generate", "example.com")
    assert code == 1
    assert "floppy" in line


def test_a_landing_page_is_the_link(make: Make) -> None:
    server = make(config='invites_page = "https://x/{invite.token}";')
    done = server.prosodyctl("mod_invites", "generate", "example.com")
    assert done.stderr == ""
    page = done.stdout.splitlines()[-1]
    token = page.removeprefix("https://x/")
    invite = info(server, token)
    assert invite["landing_page"] == page
    assert invite["uri"] == f"xmpp:example.com?register;preauth={token}"

    done = server.prosodyctl("mod_invites", "generate", "example.com", "--json")
    as_json = json.loads(done.stdout)
    assert as_json["link"] == as_json["landing_page"] == f"https://x/{as_json['token']}"


def test_none_is_lost_and_no_operator_refused_when_all_create_at_once(make: Make) -> None:
    server = make()
    made_by_server: list[str] = []
    with ThreadPoolExecutor(8) as operators:
        links = [operators.submit(generate, server) for _ in range(8)]
        # From the first moment on: the database does not exist yet, and nine processes want to create it.
        while not all(link.done() for link in links):
            made_by_server += server.eval(
                """
                local invites, tokens = module:depends("invites"), {};
                for _ = 1, 10 do
                    -- It waits for 40 ms, and not for as long as a slow disk keeps others at theirs.
                    local invite, condition = invites.create_account();
                    assert(invite or condition == "internal-server-error", condition);
                    table.insert(tokens, invite and invite.token);
                end
                return tokens;
                """
            )
    tokens = made_by_server + [link.result() for link in links]
    assert len(set(tokens)) == stored(server) == len(made_by_server) + 8
    assert refused(server, tokens) == {}


def test_a_link_outlives_a_crash_right_after_it_was_shown(make: Make) -> None:
    server = make()
    tokens: list[str] = []
    for _ in range(3):
        tokens.append(generate(server))
        tokens.append(server.eval('return module:depends("invites").create_account().token;'))
        server.kill()
        server.start()
        assert refused(server, tokens) == {}


def test_a_link_is_printed_after_the_disk_has_its_invite(make: Make) -> None:
    server = make(start=False)
    trace = server.scratch / "trace"
    done = subprocess.run(
        # -y shows paths; strings are cut off at -s.
        ["strace", "-f", "-y", "-s", "200", "-e", "trace=write,pwrite64,fsync,fdatasync", "-o", trace,
         server.scratch / "prosodyctl", "--config", server.config_path, "mod_invites", "generate", "example.com"],
        capture_output=True, text=True, timeout=30, cwd=server.scratch,
    )
    link = done.stdout.strip()
    assert LINK.fullmatch(link), done.stderr
    calls = trace.read_text().splitlines()
    printed = _last(calls, rf"write\(1<.*{re.escape(link)}", len(calls))
    log_written = _last(calls, r"pwrite64\(\d+<.*invites\.sqlite3-wal>", printed)
    log_flushed = _last(calls, r"f(data)?sync\(\d+<.*invites\.sqlite3-wal>\) += 0", printed)
    assert log_written < log_flushed < printed
    # A new file is found again only if its directory is on the disk too.
    assert _last(calls, rf"fsync\(\d+<{re.escape(str(server.data_path))}>\) += 0", printed) < log_flushed


def _last(calls: list[str], pattern: str, before: int) -> int:
    """Where in the trace the last such call stands."""
    return max(number for number, call in enumerate(calls[:before]) if re.search(pattern, call))
