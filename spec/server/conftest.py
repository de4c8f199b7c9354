"""Fixtures of the tests against a real server. A test may be an `async def`: it gets an event loop of its own."""

import asyncio
import inspect
import pwd
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import pytest

import prosody as harness
from prosody import CHECKOUT, STORAGE_VERSIONS, VERSIONS, Prosody


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "matrix(row): the row of the README's table of versions that the test stands for")
    config.addinivalue_line("markers", "storage: what is tested is the library and its storage, not what Prosody does with it")


def version_of(item: pytest.Item) -> str | None:
    """The Prosody that a test is about, if it is about one."""
    for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
        version = value[0] if isinstance(value, tuple) and value else value
        if version in VERSIONS:
            return version
    return None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what spec/matrix/skips.toml names and what one Prosody shows for all; tells the table of versions what each
    test stands for.
    """
    shown = {
        item for item in items if item.get_closest_marker("storage") and version_of(item) not in (None, *STORAGE_VERSIONS)
    }
    config.hook.pytest_deselected(items=list(shown))
    items[:] = [item for item in items if item not in shown]
    skips = tomllib.loads((CHECKOUT / "spec" / "matrix" / "skips.toml").read_text())["skip"]
    for item in items:
        version = version_of(item)
        row = item.get_closest_marker("matrix")
        if version is None:
            continue
        item.user_properties += [("version", version), ("row", row.args[0] if row else "")]
        for skip in skips:
            if version in skip["versions"] and any(fnmatchcase(item.name, test) or fnmatchcase(
                f"{item.path.name}::{item.name}", test
            ) for test in skip["tests"]):
                item.add_marker(pytest.mark.skip(reason=skip["reason"]))


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Saves a plugin: run a coroutine test to its end."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture
def checkout() -> Path:
    return CHECKOUT


@pytest.fixture
def native_lua() -> Path:
    """Our plugin path: holds `mod_invites/mod_invites.lua`."""
    return CHECKOUT / "lua"


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    """Each test that asks for it, or for `prosody`, runs once per Prosody."""
    return request.param


def reaches(user: str, path: Path) -> bool:
    account = pwd.getpwnam(user)
    as_user = ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]
    return subprocess.run([*as_user, "test", "-r", path], check=False).returncode == 0


def copy_of_the_checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each worker of each run has its own; directories of pytest's own are for their owner alone."""
    base = tmp_path_factory.getbasetemp()
    return Path("/tmp") / f"prosody-spec-checkout-{base.parent.name}-{base.name}"


@pytest.fixture
def checkout_for(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where a user finds what a server needs: here, or in a copy if this is in root's home directory, for one."""

    def find(user: str) -> Path:
        if reaches(user, CHECKOUT / "lua" / "mod_invites" / "mod_invites.lua"):
            return CHECKOUT
        copy = copy_of_the_checkout(tmp_path_factory)
        if not copy.exists():
            for part in ("lua", "spec/server/modules", "target/prosody"):
                shutil.copytree(CHECKOUT / part, copy / part)
        return copy

    return find


@pytest.fixture(scope="session", autouse=True)
def no_copy_of_the_checkout_stays(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    yield
    shutil.rmtree(copy_of_the_checkout(tmp_path_factory), ignore_errors=True)


@pytest.fixture
def prosody(
    version: str, checkout_for: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Prosody]]:
    """Makes running servers (`start=False`: only configured ones) that do not outlive the test.

    Takes the options of `Prosody`; `version` may be given to set a second version beside the first.
    """
    with ExitStack() as servers:

        def make(*, start: bool = True, version: str = version, **options: Any) -> Prosody:
            if options.get("user"):
                reachable = checkout_for(options["user"])
                monkeypatch.setattr(harness, "CHECKOUT", reachable)
                monkeypatch.setattr(harness, "_SPEC_MODULES", reachable / "spec" / "server" / "modules")
                options["plugin_paths"] = [
                    reachable / Path(path).relative_to(CHECKOUT) if Path(path).is_relative_to(CHECKOUT) else path
                    for path in options.get("plugin_paths", ())
                ]
            server = servers.enter_context(Prosody(version, **options))
            if start:
                server.start()
            return server

        yield make


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """What the tests of faults counted, by kind, over all versions."""
    tolls: dict[str, list[int]] = {}
    for reports in terminalreporter.stats.values():
        for report in (report for report in reports if getattr(report, "when", None) == "call"):
            for kind, *counts in (value for name, value in report.user_properties if name == "fault"):
                tolls[kind] = [sum(pair) for pair in zip(tolls.get(kind, [0] * len(counts)), counts)]
    if tolls:
        terminalreporter.section("faults")
        terminalreporter.write_line(f"{'fault':30}{'rounds':>8}{'invites':>9}{'lost':>6}{'used twice':>12}")
        for kind, (rounds, invites, lost, twice) in sorted(tolls.items()):
            terminalreporter.write_line(f"{kind:30}{rounds:>8}{invites:>9}{lost:>6}{twice:>12}")
