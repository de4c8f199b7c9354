"""Every command that the README tells an operator to type is run, here or by what is named here."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from prosody import Prosody

# Where the commands are run that need more than a server.
RUN_ELSEWHERE = {
    r"make (demo|test)": (".ci/run", "make {0}"),
    r"make build": ("Makefile", "test: machine-test build"),
    r"make (build|rock) LUA=lua5\.[24] (GLIBC=2\.17)": ("spec/matrix.sh", "make rock LUA=\"$lua\" {1}"),
    r"luarocks --lua-version=5\.4 (make|remove) --tree=\S+( mod_invites)?": ("spec/server/test_loading.py", '"{0}"'),
}


def commands(checkout: Path) -> list[str]:
    blocks = re.findall(r"^```sh\n(.*?)^```", (checkout / "README.md").read_text(), re.M | re.S)
    return [line for block in blocks for line in block.splitlines() if line]


def test_every_prosodyctl_command_does_what_it_says(
    prosody: Callable[..., Prosody], native_lua: Path, checkout: Path
) -> None:
    server = prosody(plugin_paths=(native_lua,), modules=("invites",))
    server.add_user("juliet", "secret", "example.com")
    typed = [line for line in commands(checkout) if line.startswith("prosodyctl ")]
    assert typed
    for line in typed:
        result = server.prosodyctl(*shlex.split(line)[1:])
        assert (result.returncode, result.stderr) == (0, ""), line
        assert result.stdout.strip(), line


def test_every_other_command_is_run_by_what_is_named(checkout: Path) -> None:
    for line in commands(checkout):
        if line.startswith("prosodyctl "):
            continue
        known = [(re.fullmatch(pattern, line), where) for pattern, where in RUN_ELSEWHERE.items()]
        found = [(match, where) for match, where in known if match]
        assert found, f"nothing runs: {line}"
        (match, (file, text)) = found[0]
        assert text.format(*match.groups()) in (checkout / file).read_text(), f"{file} does not run: {line}"


@pytest.mark.parametrize(
    "option",
    ["invite_expiry", "invite_history", "invite_storage", "invite_postgresql", "invite_postgresql_deadline",
     "invite_limits", "invite_limits_allow_unknown_age", "invite_token_at_rest", "invites_page", "invites_page_supports"],
)
def test_every_option_in_the_table_is_one_that_is_read(checkout: Path, option: str) -> None:
    assert f"| `{option}` |" in (checkout / "README.md").read_text()
    assert f'"{option}"' in (checkout / "lua" / "mod_invites" / "mod_invites.lua").read_text()
