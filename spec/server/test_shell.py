"""`prosodyctl shell invite …`: what operators and programs rely on (docs/design/contract.md §3.4), through the real admin socket."""

import hashlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from prosody import Prosody

Make = Callable[..., Prosody]

LINK = re.compile(r"OK: (xmpp:\S+\?(?:register|roster);preauth=([A-Za-z0-9]{24})\S*)")


@pytest.fixture
def server(prosody: Make, native_lua: Path) -> Prosody:
    server = prosody(
        plugin_paths=(native_lua,), modules=("invites", "invites_register"),
        hosts={"example.com": "", "example.net": ""},
    )
    server.add_user("juliet", "secret", "example.com")
    return server


def invite(server: Prosody, *words: str) -> CompletedProcess[str]:
    return server.prosodyctl("shell", "invite", *words)


def told(server: Prosody, *words: str) -> str:
    done = invite(server, *words)
    return done.stdout + done.stderr


def link(server: Prosody, *words: str) -> tuple[str, str]:
    output = told(server, *words)
    found = LINK.search(output)
    assert found, output
    return found[1], found[2]


def info(server: Prosody, token: str) -> dict[str, object]:
    return server.eval('return (module:depends("invites").get_invite_info(args.token))', token=token)


def test_accounts_are_invited_with_their_roles_and_expiry(server: Prosody, version: str) -> None:
    uri, token = link(server, "create_account", "example.com")
    assert uri.startswith("xmpp:example.com?register;")
    uri, token = link(server, "create_account", "romeo@example.com", "--admin", "--role", "x", "--expires-after", "2h")
    assert uri.startswith("xmpp:romeo@example.com?register;")
    made = info(server, token)
    assert made["expires"] - made["created_at"] == 7200  # type: ignore[operator]
    roles = made["additional_data"]["roles"]  # type: ignore[index]
    assert roles == ({"prosody:admin": True, "x": True} if version == "0.12.3" else ["prosody:admin", "x"])


def test_a_reset_prints_its_link_and_for_whom_it_is(server: Prosody) -> None:
    output = told(server, "create_reset", "juliet@example.com")
    assert re.search(r"xmpp:juliet@example\.com\?register;preauth=\S{24}", output)
    assert re.search(r"OK: Password reset link for juliet@example\.com valid until \d{4}-\d\d-\d\d \d\d:\d\d:\d\d", output)
    assert "no such account" in told(server, "create_reset", "nobody@example.com")


def test_contacts_are_invited_in_the_old_form_and_in_the_new(server: Prosody) -> None:
    assert info(server, link(server, "create_contact", "juliet@example.com")[1]).get("allow_registration") is None
    for words in (("--allow-registration",), ("true",)):
        uri, token = link(server, "create_contact", "juliet@example.com", *words)
        assert uri.endswith(";ibr=y")
        assert info(server, token)["allow_registration"] is True
    done = server.prosodyctl("shell", 'invite:create_contact("juliet@example.com", true)')
    assert LINK.search(done.stdout)
    assert "Supply the JID" in told(server, "create_contact", "example.com")


def test_show_tells_what_an_invite_is(server: Prosody) -> None:
    _, token = link(server, "create_account", "romeo@example.com", "--role", "prosody:member")
    output = told(server, "show", "example.com", token)
    assert "Invitation to register on example.com with username 'romeo'" in output
    assert f"XMPP URI:\txmpp:romeo@example.com?register;preauth={token}" in output
    assert "Role:\tprosody:member" in output
    assert "OK: Invitation valid" in output
    assert "token-invalid" in told(server, "show", "example.com", "unknown")


def test_delete_revokes_and_says_when_there_was_nothing(server: Prosody) -> None:
    _, token = link(server, "create_contact", "juliet@example.com")
    assert "OK: Invitation deleted" in told(server, "delete", "example.com", token)
    assert "Invitation not found" in told(server, "delete", "example.com", token)
    assert "token-invalid" in told(server, "show", "example.com", token)


def test_list_shows_every_kind_in_the_columns_that_programs_read(server: Prosody) -> None:
    rows = {
        link(server, "create_account", "example.com")[1]: "Register on example.com",
        link(server, "create_account", "romeo@example.com")[1]: "Register on example.com with username romeo",
        link(server, "create_contact", "juliet@example.com")[1]: "Contact with juliet@example.com",
    }
    lines = [line.lstrip("| ") for line in invite(server, "list", "example.com").stdout.splitlines()]
    lines = lines[next(i for i, line in enumerate(lines) if line.startswith("Token")) :]
    assert [cell.strip() for cell in lines[0].split(" | ")] == ["Token", "Expires", "Description"]
    found = {}
    for line in lines[1:-1]:
        token, expires, description = (cell.strip() for cell in line.split(" | "))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d", expires)
        found[token] = description
    assert found == rows
    assert lines[-1].endswith("OK: 3 pending invites")


def test_an_invite_for_ever_does_not_stop_the_list(server: Prosody) -> None:
    server.eval('module:depends("invites").create_account(nil, nil, math.huge)')
    output = told(server, "list", "example.com")
    assert "| never" in output and "OK: 1 pending invites" in output


@pytest.mark.parametrize(
    "words",
    [
        ("create_account", "example.com", "--frob"),
        ("create_account", "example.com", "--expires-after", "10m"),
        ("create_account", "elsewhere.example"),
        ("create_account", "juliet@example.com"),
        ("list", "elsewhere.example"),
    ],
    ids=" ".join,
)
def test_what_makes_no_sense_creates_nothing(server: Prosody, words: tuple[str, ...]) -> None:
    output = told(server, *words)
    assert "Traceback" not in output and "traceback" not in output
    assert not LINK.search(output)
    assert "OK: 0 pending invites" in told(server, "list", "example.com")


def test_an_invite_is_paused_extended_and_explained(server: Prosody) -> None:
    _, token = link(server, "create_account", "example.com", "--max-uses", "3", "--note", "for the fair")
    made = info(server, token)
    assert made["max_uses"] == 3
    assert made["additional_data"]["note"] == "for the fair"  # type: ignore[index]
    short = hashlib.sha256(token.encode()).hexdigest()[:8]
    assert "OK: Invitation would be accepted" in told(server, "why", "example.com", token)
    assert "OK: Invitation paused" in told(server, "pause", "example.com", short)
    assert "has ended, or is so already" in told(server, "pause", "example.com", short)
    assert "Error: " in told(server, "why", "example.com", token)
    assert "OK: Invitation resumed" in told(server, "resume", "example.com", token)
    assert "already" in told(server, "why", "example.com", token, "--username", "juliet")
    assert "--expires-after" in told(server, "extend", "example.com", short)
    assert "OK: Invitation extended" in told(server, "extend", "example.com", short, "--expires-after", "2h")
    extended = info(server, token)
    assert abs(extended["expires"] - time.time() - 7200) < 60  # type: ignore[operator]
    shown = told(server, "show", "example.com", short)
    assert re.search(r"note +for the fair", shown) and token not in shown
    assert "OK: Invitation deleted" in told(server, "delete", "example.com", short, "--why", "it rained")
    assert "Invitation not found" in told(server, "delete", "example.com", "ffffffff")
    history = told(server, "history", "example.com")
    assert short in history and "OK: 1 ended invites" in history
    assert "Unable to count to: none" in told(server, "history", "example.com", "--limit", "none")
    assert "Unable to count to: 0" in told(server, "create_account", "example.com", "--max-uses", "0")


def test_unloading_on_one_host_leaves_the_other_its_commands(server: Prosody) -> None:
    server.eval('require "core.modulemanager".unload("example.net", "invites")')
    link(server, "create_account", "example.com")
    assert re.search("not (loaded|available) on", told(server, "create_account", "example.net"))
    server.eval('require "core.modulemanager".reload("example.com", "invites")')
    link(server, "create_account", "example.com")
