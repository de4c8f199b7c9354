"""What the library is as a file: what it offers to others, what it asks of the machine, and how large it is."""

import re
import subprocess
from pathlib import Path

import pytest

NAME = "prosody_invites"
#: Prosody itself needs all of these, or the C library has them; before 2.34, in several files.
NEEDED = {
    "libc.so.6", "libgcc_s.so.1", "libm.so.6", "libdl.so.2", "libpthread.so.0", "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
}
#: A good third is for PostgreSQL.
MAX_MEGABYTES = 10


@pytest.fixture
def library(native_lua: Path) -> Path:
    return native_lua / "mod_invites" / f"{NAME}.so"


def test_it_offers_the_one_function_that_lua_calls_and_nothing_that_another_library_could_take_for_its_own(
    library: Path,
) -> None:
    symbols = subprocess.run(
        ["nm", "--dynamic", "--defined-only", library], check=True, capture_output=True, text=True
    ).stdout
    assert [line.split()[-1] for line in symbols.splitlines()] == [f"luaopen_{NAME}"]


def test_it_asks_for_no_library_that_prosody_does_not_bring(library: Path) -> None:
    header = subprocess.run(["readelf", "--dynamic", library], check=True, capture_output=True, text=True).stdout
    assert set(re.findall(r"\(NEEDED\).*\[(.*)\]", header)) <= NEEDED
    assert "NODELETE" in header


def test_it_is_not_large(library: Path) -> None:
    assert library.stat().st_size <= MAX_MEGABYTES * 1e6
