"""The bundled module's store, and mod_invites_tracking's, need not be there, nor work: our own invites go on.

One server with a host for each storage that lacks something.
"""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from client import Refused, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
CREATE = 'return assert(module:depends("invites").create_account()).token'

#: What every other store of these hosts is in.
OTHERS = """
    storage = { accounts = "internal", account_roles = "internal", account_details = "internal", roster = "internal" };
"""

#: Storage that has nothing to take over, and never will.
NONE = {
    "none.example": OTHERS + 'default_storage = "none";',
    "null.example": OTHERS + 'default_storage = "null";',
    "xep0227.example": OTHERS + 'default_storage = "xep0227";',
    "not-installed.example": OTHERS + 'default_storage = "spec_not_installed";',
    "no-users.example": 'storage = "spec_partial"; spec_partial = "no users";',
}
#: Storage that may yet be read.
FAILING = {
    "fails.example": 'storage = "spec_partial"; spec_partial = "fails";',
    "raises.example": 'storage = "spec_partial"; spec_partial = "raises";',
    "users-raises.example": 'storage = "spec_partial"; spec_partial = "users raises";',
    "open-raises.example": 'storage = "spec_partial"; spec_partial = "open raises";',
}
SWITCH = 'local switch = module:shared("/"..module.host.."/storage_spec_partial/switch"); '


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    def made(hosts: dict[str, str], **options: object) -> Prosody:
        server = prosody(plugin_paths=(native_lua,), modules=MODULES, hosts={"example.com": "", **hosts}, **options)
        for host in hosts:
            server.add_user("juliet", "pw", host)
        return server

    return made


async def condition_of(server: Prosody, host: str, token: str) -> str | None:
    """What a preauth with the token is answered; None for a result."""
    async with await open_stream(server, host) as stream:
        try:
            await stream.preauth(token)
        except Refused as refused:
            return refused.condition
    return None


async def assert_registers(server: Prosody, host: str) -> None:
    async with await open_stream(server, host) as stream:
        await stream.preauth(server.eval(CREATE, host=host))
        await stream.register("romeo", "pw")


#: The hosts on which every command is tried; a process each.
ALL_COMMANDS = ("not-installed.example", "raises.example")


def assert_commands_work(server: Prosody, host: str, told: str | None) -> None:
    """Listings and what is done with our own invites; `told` is what they remark, if anything."""
    token, contact = server.eval(
        """
        local invites = module:depends("invites");
        return invites.create_account().token, invites.create_contact("juliet", true).token;
        """,
        host=host,
    )
    commands = [("list", host)]
    if host in ALL_COMMANDS:
        commands += [
            ("stats", host), ("show", host, token), ("history", host), ("pause", host, token), ("resume", host, token),
            ("why", host, token), ("extend", host, token, "--expires-after", "1h"), ("export", host),
            ("tree", host, "juliet"), ("generate", host), ("purge", host), ("revoke", host, token),
            ("revoke", host, "--inviter", "juliet"),
        ]
    for command in commands:
        done = server.prosodyctl("mod_invites", *command)
        assert done.returncode == 0, (command, done.stderr)
        assert "raceback" not in done.stderr, command
        if command[0] == "list":
            assert (told or "") in done.stderr
    assert server.eval(
        """
        local invites = module:depends("invites");
        local account = invites.create_account().token;
        assert(invites.revoke(account) or invites.delete_account_invite(account));
        assert(invites.revoke_inviter("juliet"));
        return (invites.get(account)), (invites.get(args.token));
        """,
        host=host, token=contact,
    ) == (None, None)


async def test_where_there_can_be_nothing_to_take_over_everything_works(make: Make) -> None:
    server = make(NONE)
    for host in NONE:
        await assert_registers(server, host)
        assert await condition_of(server, host, "x" * 24) == "forbidden", host
        assert server.eval(
            """
            local invites = module:depends("invites");
            local deleted = invites.delete_account_invite("unknown");
            local info, why = invites.get_account_invite_info("unknown");
            return deleted, why, (select(2, invites.revoke("unknown")));
            """,
            host=host,
        ) == (True, "token-invalid", "token-invalid")
        assert_commands_work(server, host, None)
        said = f"{host}:invites\tinfo\tThere is nothing to take over"
        assert server.log().count(said) == 1
        assert f"{host}:invites\terror" not in server.log()
        exported = server.prosodyctl("mod_invites", "export", host, "--to", "prosody")
        assert exported.returncode == 1
        assert "the bundled module's store cannot be written: " in exported.stderr
    assert "raceback" not in server.log()


async def test_what_the_host_has_is_taken_over_where_users_cannot_be_listed(
    make: Make, prosody: Make, tmp_path: Path
) -> None:
    host = "no-users.example"
    bundled = prosody(modules=MODULES, data_path=tmp_path, hosts={host: ""})
    token = bundled.eval(CREATE, host=host)
    bundled.stop()
    server = make({host: NONE[host]}, data_path=tmp_path)
    assert await condition_of(server, host, token) is None


async def test_a_store_that_cannot_be_read_keeps_nothing_of_ours_from_working(make: Make) -> None:
    server = make(FAILING)
    for host in FAILING:
        await assert_registers(server, host)
        assert_commands_work(server, host, "bundled mod_invites stored cannot be taken over")
        # But nobody can say that there is no such invite.
        assert await condition_of(server, host, "x" * 24) == "internal-server-error"
        error = "internal-server-error"
        assert server.eval(
            """
            local invites = module:depends("invites");
            local deleted, why_not = invites.delete_account_invite("unknown");
            local info, why = invites.get_account_invite_info("unknown");
            return why_not, why, (select(2, invites.revoke("unknown"))), (select(2, invites.get("unknown", "juliet")));
            """,
            host=host,
        ) == (error, error, error, error)
        # Of one of ours that has ended everybody can.
        used = server.eval(
            "local invite = module:depends('invites').create_account(); "
            "module:depends('invites').get(invite.token):use(); return invite.token",
            host=host,
        )
        assert await condition_of(server, host, used) == "forbidden"
    assert "raceback" not in server.log()


async def test_junk_does_not_have_a_broken_store_read_again(make: Make) -> None:
    host = "fails.example"
    server = make({host: FAILING[host]})
    await condition_of(server, host, "x" * 24)
    reads = server.eval(SWITCH + "return switch.reads", host=host)
    assert reads == 1
    async with await open_stream(server, host) as stream:
        # Nobody can tell whether it is known, so it is not counted as a guess.
        for _ in range(25):
            with pytest.raises(Refused, match="internal-server-error"):
                await stream.preauth("x" * 24)
    assert server.eval(SWITCH + "return switch.reads", host=host) == reads
    assert server.log().count("cannot be taken over") == 1


async def test_once_it_can_be_read_it_is_taken_over_by_the_next_try(make: Make, prosody: Make, tmp_path: Path) -> None:
    host = "raises.example"
    bundled = prosody(modules=MODULES, data_path=tmp_path, hosts={host: ""})
    token = bundled.eval(CREATE, host=host)
    bundled.stop()
    server = make({host: FAILING[host]}, data_path=tmp_path)
    # What the timer does in a minute.
    server.eval(
        """
        local timer = require "util.timer";
        local add_task = timer.add_task;
        function timer.add_task(delay, callback, ...)
            return add_task(delay, function (...)
                local data, n = { ... }, select("#", ...);
                local again = callback(...);
                if again == 60 then
                    module:shared("/*/spec/import").again = function () return callback(unpack(data, 1, n)); end
                end
                return again;
            end, ...);
        end
        require "core.modulemanager".reload(module.host, "invites");
        timer.add_task = add_task;
        """.replace("unpack(", "(table.unpack or unpack)("),
        host=host,
    )
    assert await condition_of(server, host, token) == "internal-server-error"
    server.eval(SWITCH + 'switch.how = "whole"', host=host)
    assert await condition_of(server, host, token) == "internal-server-error"
    assert server.eval('return module:shared("/*/spec/import").again()', host=host) is None
    assert await condition_of(server, host, token) is None


async def test_the_hosts_own_storage_has_to_be_one_that_keeps_invites(make: Make) -> None:
    hosts = {host: config + 'invite_storage = "prosody";' for host, config in NONE.items()}
    server = make(hosts)
    for host in hosts:
        said, = [line for line in server.log().splitlines() if f"{host}:invites\terror\t" in line]
        assert "the host's storage cannot keep invites" in said
        assert "storage.invite_token" in said
        assert server.eval('return module:depends("invites").create_account()', host=host) == (
            None, "internal-server-error"
        )
        async with await open_stream(server, host) as stream:
            with pytest.raises(Refused) as refused:
                await stream.register("romeo", "pw")
            assert "problem with this server's invitations" in refused.value.text
    done = server.prosodyctl("mod_invites", "check", "xep0227.example")
    assert done.returncode == 2
    assert "the host's storage cannot keep invites" in done.stdout
    assert "raceback" not in done.stdout + done.stderr + server.log()


async def test_a_tracking_store_that_cannot_be_read_is_reported_and_stops_nothing(make: Make) -> None:
    every = {**NONE, **FAILING}
    failing = {"users-raises.example", "open-raises.example"}
    digest = 'invite_token_at_rest = "digest";'
    hosts = {host: every[host] + digest for host in ("none.example", "null.example", *failing)}
    server = make(hosts)
    for host in hosts:
        await assert_registers(server, host)
        done = server.prosodyctl("mod_invites", "check", host)
        assert done.returncode == (host in failing), done.stdout
        told = "the store of mod_invites_tracking cannot be read"
        assert (told in done.stdout) == (host in failing), done.stdout
        assert "raceback" not in done.stdout + done.stderr
        assert (re.search(rf"{host}:invites\terror\t{told}", server.log()) is not None) == (host in failing)
    assert "raceback" not in server.log()
