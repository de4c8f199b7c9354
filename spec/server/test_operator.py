"""The commands with which an operator looks after invites, on a running server and on a stopped one."""

import hashlib
import json
import re
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from client import Refused, login, open_stream
from prosody import CHECKOUT, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
SCHEMA = json.loads((CHECKOUT / "spec" / "output.schema.json").read_text())
DAY = 86400


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module."""

    def made(**options: Any) -> Prosody:
        modules = options.pop("modules", ())
        return prosody(plugin_paths=(native_lua,), modules=(*MODULES, *modules), **options)

    return made


def run(server: Prosody, command: str, *args: str, columns: int = 80, code: int = 0) -> str:
    """What a command about example.com prints."""
    done = server.prosodyctl(
        "mod_invites", command, "example.com", *args, env={"COLUMNS": str(columns), "TZ": "UTC"}, timeout=40
    )
    assert done.returncode == code, (done.stdout, done.stderr)
    if code == 0 and "no such invites" not in done.stderr:
        assert done.stderr == ""
    return done.stdout


def complaint(server: Prosody, command: str, *args: str, code: int = 1) -> str:
    done = server.prosodyctl("mod_invites", command, "example.com", *args)
    assert (done.returncode, done.stdout) == (code, ""), done.stdout
    line, = done.stderr.splitlines()
    return line.removeprefix("prosodyctl mod_invites: ")


def validated(kind: str, text: str) -> dict[str, Any]:
    """One line of JSON, which the schema must allow."""
    instance = json.loads(text)
    jsonschema.validate(instance, {"$ref": f"#/$defs/{kind}", "$defs": SCHEMA["$defs"]})
    return instance


def rows(server: Prosody, command: str, *args: str) -> list[dict[str, Any]]:
    return [validated("invite", line) for line in run(server, command, *args, "--json").splitlines()]


def generate(server: Prosody, *args: str) -> str:
    """The token of a new invite."""
    return run(server, "generate", *args).splitlines()[-1].split("preauth=")[1].split(";")[0]


def id_of(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()[:16]


def add_user(server: Prosody, username: str) -> None:
    assert server.prosodyctl("register", username, "example.com", "secret").returncode == 0


def execute(server: Prosody, statement: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """On the database, with another SQLite."""
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3", timeout=10)) as database, database:
        return database.execute(statement, parameters).fetchall()


def wait_until(happened: Callable[[], bool], timeout: float = 20) -> None:
    deadline = time.monotonic() + timeout
    while not happened():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.storage
@pytest.mark.parametrize("running", [True, False], ids=["running", "stopped"])
def test_every_command_serves_people_and_programs(make: Make, running: bool) -> None:
    server = make(start=running)
    add_user(server, "juliet")
    token = generate(server, "--note", "for the fair", "--max-uses", "5", "--expires-after", "2h")
    short = id_of(token)[:6]

    shown = run(server, "show", short)
    assert re.search(r"^note +for the fair$", shown, re.MULTILINE) and token not in shown
    assert "0 of 5" in shown
    assert token in run(server, "show", token, "--show-token")
    invite = validated("invite", run(server, "show", short, "--json"))
    assert invite["expires"] - invite["created_at"] == 7200
    assert (invite["state"], invite["max_uses"], invite["uses"]) == ("pending", 5, 0)
    assert validated("invite", run(server, "show", short, "--show-token", "--json"))["token"] == token

    assert "paused" in run(server, "pause", short)
    assert validated("invite", run(server, "pause", short, "--json"))["state"] == "paused", "that it is so is no mistake"
    assert run(server, "why", short, code=1) == "refused (token-invalid): the invite is paused\n"
    assert validated("invite", run(server, "resume", short, "--json"))["state"] == "pending"
    assert run(server, "why", token) == "accepted\n"
    assert validated("why", run(server, "why", token, "--username", "bob", "--json"))["accepted"] is True
    why = validated("why", run(server, "why", token, "--username", "juliet", "--json", code=1))
    assert (why["accepted"], why["condition"]) == (False, "conflict")

    assert "expires" not in validated("invite", run(server, "extend", short, "--expires-after", "never", "--json"))
    assert re.search(r"^expires +never$", run(server, "extend", short, "--expires-after", "never"), re.MULTILINE)

    contact = generate(server, "--contact", "juliet", "--allow-registration")
    listed = run(server, "list")
    assert short in listed and "contact of juliet@example.com" in run(server, "list", columns=100)
    assert {row["id"] for row in rows(server, "list")} == {id_of(token), id_of(contact)}

    revoked = run(server, "revoke", short, "--why", "it rained")
    assert re.search(r"^because +it rained$", revoked, re.MULTILINE)
    assert validated("invite", run(server, "revoke", token, "--json"))["revoked_why"] == "it rained"
    assert complaint(server, "extend", short, "--expires-after", "1d") == f"the invite {id_of(token)} is revoked"
    history, = rows(server, "history")
    assert history["revoked_by"].startswith("prosodyctl")
    assert "it rained" in run(server, "history", columns=120)
    assert [row["id"] for row in rows(server, "list")] == [id_of(contact)]

    stats = validated("stats", run(server, "stats", "--json"))
    assert stats["states"] == {"pending": 1, "paused": 0, "used": 0, "expired": 0, "revoked": 1}
    assert stats["open_kinds"]["contact"] == 1
    assert re.search(r"^revoked +1$", run(server, "stats"), re.MULTILINE)
    assert validated("purge", run(server, "purge", "--json")) == {"purged": 0}
    assert run(server, "purge") == "0 invites were removed from the history of example.com\n"


@pytest.mark.storage
def test_a_listing_is_filtered_and_comes_in_pages(make: Make) -> None:
    server = make(start=False)
    add_user(server, "juliet")
    tokens = [generate(server, "--note", f"number {number}") for number in range(5)]
    for number, token in enumerate(tokens):
        execute(server, "UPDATE invite SET created_at = created_at - ? WHERE token = ?", 10 * number, token)
    newest_first = [id_of(token) for token in tokens]
    contact = generate(server, "--contact", "juliet", "--expires-after", "never")
    group = generate(server, "-g", "friends")
    run(server, "pause", tokens[4])
    run(server, "revoke", tokens[3])
    execute(server, "UPDATE invite SET expires = created_at WHERE token = ?", tokens[2])

    def listed(*args: str) -> list[str]:
        return [row["id"] for row in rows(server, "list", *args)]

    assert listed("--kind", "account") == [newest_first[0], newest_first[1], newest_first[4]]
    assert listed("--kind", "contact") == listed("--inviter", "juliet") == [id_of(contact)]
    assert listed("--text", "FRIENDS") == listed("--kind", "group") == [id_of(group)]
    assert listed("--state", "paused") == [newest_first[4]]
    assert listed("--state", "revoked") == [newest_first[3]]
    assert listed("--state", "expired") == [newest_first[2]], "before any server noted it"
    assert listed("--state", "used") == []
    assert {row["id"] for row in rows(server, "history")} == {newest_first[2], newest_first[3]}

    everything = listed()
    assert len(everything) == 5
    paged: list[str] = []
    while page := listed("--limit", "2", *(("--after", paged[-1]) if paged else ())):
        paged += page
    assert paged == everything
    assert run(server, "list", "--state", "used") == ""


async def test_a_bounded_invite_lets_so_many_in_and_says_who(make: Make) -> None:
    server = make()
    token = generate(server, "--max-uses", "2")
    for name in ("alice", "bob"):
        assert rows(server, "list")[0]["state"] == "pending"
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            await stream.register(name, "pw")
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)
    assert run(server, "list", "--state", "pending") == ""
    invite = validated("invite", run(server, "show", id_of(token), "--json"))
    assert (invite["state"], invite["uses"], invite["max_uses"]) == ("used", 2, 2)
    assert sorted(use["invitee"] for use in invite["redemptions"]) == ["alice", "bob"]
    assert all(use["source"] == "mod_register" and use["purpose"] == "account" for use in invite["redemptions"])
    assert re.search(r"^used +\S+ \S+ by alice \(mod_register\)$", run(server, "show", id_of(token)), re.MULTILINE)


async def test_a_paused_invite_is_refused_until_it_is_resumed(make: Make) -> None:
    server = make()
    token = generate(server)
    run(server, "pause", token)
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)
        run(server, "resume", token)
        await stream.preauth(token)
        run(server, "pause", token)
        with pytest.raises(Refused):
            await stream.register("bob", "pw")
        run(server, "resume", token)
        await stream.register("bob", "pw")


async def test_an_expired_invite_is_good_again_under_the_same_link_once_it_is_extended(make: Make) -> None:
    server = make()
    token = generate(server)
    execute(server, "UPDATE invite SET expires = created_at - 10")
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)
        run(server, "extend", token, "--expires-after", "1h")
        await stream.preauth(token)
        await stream.register("bob", "pw")


async def test_a_public_id_redeems_nothing(make: Make) -> None:
    server = make()
    server.add_user("juliet", "secret")
    account, contact = generate(server), generate(server, "--contact", "juliet")
    ids = [id_of(account), id_of(account)[:6], id_of(contact)]
    async with await open_stream(server) as stream:
        for named in ids:
            with pytest.raises(Refused):
                await stream.preauth(named)
    got = server.eval(
        """
        local invites, got = module:depends("invites"), {};
        for _, id in ipairs(args.ids) do
            table.insert(got, invites.get(id) and "got" or "nothing");
            table.insert(got, invites.get(id, "juliet") and "got" or "nothing");
            table.insert(got, invites.use(id) and "used" or "nothing");
            table.insert(got, invites.get_account_invite_info(id) and "told" or "nothing");
            invites.delete_account_invite(id);
        end
        return got;
        """,
        ids=ids,
    )
    assert set(got) == {"nothing"}
    assert {row["state"] for row in rows(server, "list")} == {"pending"}


async def test_a_spent_token_is_nowhere_in_the_files(make: Make) -> None:
    page = 'invites_page = "https://example.com/invite?{invite.token}";'
    server = make(config=page)
    used, revoked, pending = (generate_page(server) for _ in range(3))
    async with await open_stream(server) as stream:
        await stream.preauth(used)
        await stream.register("bob", "pw")
    run(server, "revoke", revoked)
    server.stop()
    execute(server, "VACUUM")  # what is free in the file is no concern of this test
    content = (server.data_path / "invites.sqlite3").read_bytes()
    assert pending.encode() in content
    assert used.encode() not in content and revoked.encode() not in content


def generate_page(server: Prosody) -> str:
    return run(server, "generate").strip().split("?")[1]


def test_handlers_see_every_invite_before_the_lock_is_taken(make: Make) -> None:
    server = make(start=False, config='invites_page_module = "spec_witness";', modules=("spec_witness",))
    run(server, "stats")  # makes the database
    links = run(server, "generate", "--count", "3").splitlines() + run(server, "generate").splitlines()
    assert len(links) == 4
    assert all(link.startswith("https://example.com/free?") for link in links), links
    assert {row["id"] for row in rows(server, "list")} == {id_of(link.split("?")[1]) for link in links}


def test_history_is_purged_by_the_server_but_not_what_a_stream_may_still_have_validated(make: Make) -> None:
    server = make(start=False, config="invite_history = 1;")
    old, young, open_ = (generate(server) for _ in range(3))
    for token, age in ((old, 4000), (young, 3000)):
        run(server, "revoke", token)
        execute(
            server, "UPDATE invite SET ended_at = ended_at - ?1, expires = ended_at - ?1 WHERE digest = ?2",
            age, hashlib.sha256(token.encode()).digest(),
        )
    server.start()
    server.tidy()
    wait_until(lambda: execute(server, "SELECT count(*) FROM invite") == [(2,)])
    assert [row["id"] for row in rows(server, "history")] == [id_of(young)]
    assert [row["id"] for row in rows(server, "list")] == [id_of(open_)]
    run(server, "purge", "--older-than", "1s")
    assert [row["id"] for row in rows(server, "history")] == [id_of(young)]


def test_history_is_kept_for_ninety_days_unless_told_otherwise(make: Make) -> None:
    server = make(start=False)
    tokens = {age: generate(server) for age in (89, 91)}
    for age, token in tokens.items():
        run(server, "revoke", token)
        execute(
            server, "UPDATE invite SET ended_at = ended_at - ?1, expires = ended_at - ?1 WHERE digest = ?2",
            age * DAY, hashlib.sha256(token.encode()).digest(),
        )
    assert run(server, "purge") == "1 invites were removed from the history of example.com\n"
    assert [row["id"] for row in rows(server, "history")] == [id_of(tokens[89])]


def test_a_qr_code_holds_the_link_and_the_link_stands_alone_below(make: Make, tmp_path: Path) -> None:
    server = make(start=False)
    *code, link = run(server, "generate", "--qr").splitlines()
    assert link.startswith("xmpp:") and set("".join(code)) <= set("█▀▄ ")
    token = link.split("preauth=")[1]
    assert run(server, "show", token, "--show-token", "--qr").splitlines()[: len(code)] == code


def test_other_modules_look_after_invites_by_the_same_functions(make: Make) -> None:
    server = make()
    server.add_user("juliet", "secret")
    told = server.eval(
        """
        local invites, seen = module:depends("invites"), {};
        for _, event in ipairs({ "invite-stored", "invite-revoked" }) do
            module:hook(event, function (summary)
                table.insert(seen, event..":"..summary.kind);
                assert(not summary.token and not summary.uri and not summary.landing_page);
            end);
        end
        local invite = assert(invites.create_invite({ username = "bob", max_uses = 3, additional_data = { note = "n" } }));
        local contact = assert(invites.create_invite({ kind = "contact", username = "juliet", ttl = math.huge }));
        local many = assert(invites.create_invites({ max_uses = math.huge }, 3));
        local id = assert(invites.show(invite.token)).id;
        local count = 0;
        for summary in invites.list({ kind = "account" }) do count = count + 1; end
        local _, taken = invites.why(id, "eve");
        assert(invites.pause(id));
        local _, paused = invites.why(id);
        assert(invites.resume(id:sub(1, 8)));
        assert(invites.why(id, "bob"));
        local extended = assert(invites.extend(id, 60));
        assert(invites.revoke(id, "because", "a module"));
        return {
            count = count, taken = taken, paused = paused, seen = seen, max_uses = invite.max_uses;
            reusable = many[1].reusable, lasts = extended.expires - os.time(), shown = invites.show(id);
            again = { invites.revoke(id) }, extended_again = invites.extend(id, 60);
        };
        """
    )
    assert told["count"] == 4
    assert (told["taken"], told["paused"]) == ("name-mismatch", "token-invalid")
    assert told["seen"] == ["invite-stored:account", "invite-stored:contact", *["invite-stored:account"] * 3, "invite-revoked:account"]
    assert (told["max_uses"], told["reusable"]) == (3, True)
    assert 58 <= told["lasts"] <= 60
    shown = told["shown"]
    assert (shown["state"], shown["revoked_why"], shown["revoked_by"]) == ("revoked", "because", "a module")
    assert shown["redemptions"] == {} and "token" not in shown
    assert told["extended_again"] is False
    refused = server.eval('return module:depends("invites").create_invite({ max_uses = 0 })')
    assert refused == (None, "bad-request") and "max_uses must be a positive whole number" in server.log()
    refused = server.eval('return module:depends("invites").create_invites({ username = "eve" }, 2)')
    assert refused == (None, "bad-request") and "only one invite at a time" in server.log()


async def test_a_limit_that_a_handler_sets_holds(make: Make) -> None:
    server = make()
    token = server.eval(
        """
        module:hook("invite-created", function (invite) invite.max_uses = 2; end);
        return module:depends("invites").create_account().token;
        """
    )
    for name in ("alice", "bob"):
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            await stream.register(name, "pw")
    info = server.eval('return (module:depends("invites").show(args.token))', token=token)
    assert (info["state"], info["uses"], info["max_uses"]) == ("used", 2, 2)
    async with await login(server, "bob", "pw"):
        pass


def test_the_table_of_invites_is_what_a_pipe_gets_too(make: Make) -> None:
    """80 columns where there is no terminal; a reader that goes away early is no crash."""
    server = make(start=False)
    generate(server, "--note", "x" * 100)
    listed = server.prosodyctl("mod_invites", "list", "example.com").stdout
    assert all(len(line) <= 80 for line in listed.splitlines())
    run(server, "generate", "--count", "2000")
    head = subprocess.run(
        f"{server.scratch}/prosodyctl --config {server.config_path} mod_invites list example.com | head -n 2",
        shell=True, capture_output=True, text=True, timeout=20,
    )
    assert len(head.stdout.splitlines()) == 2 and "traceback" not in head.stderr.lower()
