"""prosodyctl has the running server work where two processes cannot share the storage."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prosody import BUNDLED, Prosody

Make = Callable[..., Prosody]

MODULES = ("invites",)
IS_GOOD = 'return (module:depends("invites").get(args.token)) ~= nil'


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module on their own storage."""

    def made(**options: Any) -> Prosody:
        options = {"plugin_paths": (native_lua,), "modules": MODULES, "config": 'invite_storage = "prosody";', **options}
        return prosody(**options)

    return made


def generate(server: Prosody, *options: str) -> str:
    done = server.prosodyctl("mod_invites", "generate", "example.com", *options)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()[-1].partition("preauth=")[2]


@pytest.mark.parametrize("storage", ["internal", "sql", "memory"])
def test_a_running_server_makes_the_invite_itself(make: Make, storage: str) -> None:
    server = make(storage=storage)
    server.eval(
        """
        local handled = module:shared("/*/spec_forward/handled");
        module:hook("invite-created", function () handled[1] = true; end);
        """
    )
    token = generate(server, "--username", "juliet")
    assert server.eval(IS_GOOD, token=token)
    # Only in the server could a handler see it.
    assert server.eval('return module:shared("/*/spec_forward/handled")[1]') is True


@pytest.mark.parametrize("storage", ["internal", "sql"])
def test_without_a_server_prosodyctl_writes_itself(make: Make, storage: str) -> None:
    server = make(storage=storage, start=False)
    token = generate(server)
    server.start()
    assert server.eval(IS_GOOD, token=token)


def test_in_memory_there_is_nothing_without_a_server(make: Make) -> None:
    server = make(storage="memory", start=False)
    done = server.prosodyctl("mod_invites", "generate", "example.com")
    assert (done.returncode, done.stdout) == (1, "")
    assert "memory of the server, and it does not run" in done.stderr


def test_output_and_exit_codes_are_those_of_the_command(make: Make) -> None:
    server = make()
    for args, code, told in [
        (("--reset", "nobody"), 1, "there is no account nobody@example.com"),
        (("--username", "@"), 2, "not a possible account"),
        (("--frob",), 2, "--frob"),
    ]:
        done = server.prosodyctl("mod_invites", "generate", "example.com", *args)
        assert (done.returncode, done.stdout) == (code, "")
        assert len(done.stderr.splitlines()) == 1
        assert told in done.stderr
    done = server.prosodyctl("mod_invites", "generate", "example.com", "--json")
    assert done.returncode == 0
    assert done.stdout.startswith("{")


def test_what_goes_wrong_in_the_server_is_told_here_and_there(make: Make) -> None:
    server = make(storage="spec_fault")
    server.eval('module:shared("/"..module.host.."/storage_spec_fault/switch").failing.invite_token = true')
    done = server.prosodyctl("mod_invites", "generate", "example.com")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the disk is full" in done.stderr
    assert "the disk is full" in server.log()


def test_a_server_that_cannot_be_asked_is_not_gone_behind(make: Make) -> None:
    server = make(config='invite_storage = "prosody"; admin_socket = "missing/prosody.sock";')
    done = server.prosodyctl("mod_invites", "generate", "example.com")
    assert (done.returncode, done.stdout) == (1, "")
    assert "is mod_admin_shell enabled?" in done.stderr
    assert server.eval('return module:open_store("invite_token"):get(nil)') is None


def test_a_server_without_this_module_says_so(make: Make) -> None:
    server = make(plugin_paths=BUNDLED)
    server.plugin_paths = (Path(__file__).resolve().parents[2] / "lua",)
    server.write_config()
    done = server.prosodyctl("mod_invites", "generate", "example.com")
    assert (done.returncode, done.stdout) == (1, "")
    assert "the running server has no mod_invites on example.com that could do this" in done.stderr
