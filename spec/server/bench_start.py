"""What the module costs where it is loaded: in a server that starts, and in a prosodyctl that makes one invite."""

import statistics
import time
from contextlib import ExitStack
from pathlib import Path

from bench_sides import Bundled, OursOnSqlite, Void
from prosody import BUNDLED, CHECKOUT, Prosody

OURS = (CHECKOUT / "lua",)
TIMES = 11

LOAD = """
local now = require "util.time".monotonic;
local start = now();
assert(require "core.modulemanager".load(module.host, "invites"));
return (now() - start) * 1e3;
"""


def load_times(version: str) -> tuple[float, float]:
    """Milliseconds of the first load in a server, ours and the bundled one's: medians, each of a server of its own."""
    spent: dict[tuple[Path, ...], list[float]] = {OURS: [], BUNDLED: []}
    for _ in range(TIMES):
        for plugin_paths, times in spent.items():
            with Prosody(version, plugin_paths=plugin_paths, log_level="info") as server:
                server.start(60)
                times.append(server.eval(LOAD))
    return statistics.median(spent[OURS]), statistics.median(spent[BUNDLED])


class BundledAlone(Bundled):
    name = "bundled for prosodyctl"


class OursAlone(OursOnSqlite):
    name = "ours for prosodyctl"


def generate_times(version: str, size: int, scratch: Path) -> tuple[float, float]:
    """Milliseconds of a whole `prosodyctl mod_invites generate` beside so many stored invites: medians, by turns."""
    spent: list[list[float]] = [[], []]
    with ExitStack() as stack:
        sides = [kind(version, size, scratch) for kind in (OursAlone, BundledAlone)]
        for side in sides:
            if size:
                stack.enter_context(side)
        for _ in range(TIMES):
            for side, times in zip(sides, spent):
                start = time.monotonic()
                done = side.server.prosodyctl("mod_invites", "generate", "example.com")
                times.append((time.monotonic() - start) * 1e3)
                if done.returncode or "preauth=" not in done.stdout:
                    raise Void(f"prosodyctl, {side.name}: {done.stdout}{done.stderr}")
        for side in sides:
            if not size:
                side.server.close()
    ours, bundled = map(statistics.median, spent)
    return ours, bundled
