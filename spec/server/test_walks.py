"""How often Lua calls the library for a command: a call is a conversion of all that goes in and comes out."""

from collections.abc import Callable
from pathlib import Path

import pytest

from prosody import Prosody

#: Counts what is called of the library and of the handles that it opens. The server carries commands out itself, since only
#: it has what is in its memory.
COUNT = """
    local library = package.loaded.prosody_invites;
    local calls = module:shared("/*/spec_walks/calls");
    local function counted(name, f)
        return function (...)
            table.insert(calls, name);
            return f(...);
        end;
    end
    for _, name in ipairs({ "command", "shell_command", "carry_out" }) do library[name] = counted(name, library[name]); end
    local open = library.open;
    function library.open(options)
        local handle = assert(open(options));
        return setmetatable({}, { __index = function (_, name)
            return counted(name, function (_, ...) return handle[name](handle, ...); end);
        end });
    end
    assert(require "core.modulemanager".reload(module.host, "invites"));
"""
TAKE = """
    local calls, taken = module:shared("/*/spec_walks/calls"), {};
    while calls[1] do table.insert(taken, table.remove(calls, 1)); end
    return taken;
"""
#: What timers call, whoever does what.
BY_TIMER = {
    "count_open", "counted_period", "end_expired", "end_more", "forget_tokens", "import_bundled", "import_lineage", "lease",
    "look_at_claims", "purge", "review", "review_interval",
}


@pytest.fixture
def server(prosody: Callable[..., Prosody], native_lua: Path) -> Prosody:
    server = prosody(
        plugin_paths=(native_lua,), modules=("register_ibr", "invites", "invites_register"), config='invite_storage = "memory";'
    )
    server.add_user("juliet", "secret")
    server.eval(COUNT)
    return server


def calls(server: Prosody, *words: str) -> list[str]:
    """What a command calls that succeeds."""
    server.eval(TAKE)
    done = server.prosodyctl(*words)
    assert done.returncode == 0, done
    return [name for name in server.eval(TAKE) if name not in BY_TIMER]


@pytest.mark.parametrize(
    "options",
    ["", "--json", "--qr", "--username romeo --admin -g a --note x --max-uses 3 --expires-after 1d --json",
     "--contact juliet --allow-registration --json", "--reset juliet", "--count 5", "--count 5 --json"],
)
def test_an_invite_is_made_in_three_calls_with_any_options(server: Prosody, options: str) -> None:
    made = calls(server, "mod_invites", "generate", "example.com", *options.split())
    assert made == ["command", "carry_out", "carry_out"]


def test_an_invite_is_paused_in_two_calls(server: Prosody) -> None:
    token = server.eval('return module:depends("invites").create_account().token')
    for command in ("pause", "resume", "pause"):
        assert calls(server, "mod_invites", command, "example.com", token) == ["command", "carry_out"]


def test_the_shell_needs_no_more_calls(server: Prosody, version: str) -> None:
    made = calls(server, "shell", "invite", "create_account", "example.com", "--max-uses", "3")
    assert made == ["shell_command", "carry_out", "carry_out"]
