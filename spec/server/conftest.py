"""Fixtures of the tests against a real server. A test may be an `async def`: it gets an event loop of its own."""

import asyncio
import inspect
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

import prosody as harness
from prosody import CHECKOUT, VERSIONS, Prosody


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "matrix(row): the row of the README's table of versions that the test stands for")


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
