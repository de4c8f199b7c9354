"""The faults of the bundled mod_invites (docs/design/contract.md §6), each shown on it and absent from ours.

Each test does one thing on both and knows what comes of it on either; `flawed` says which is running.
"""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import BUNDLED, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")


@pytest.fixture(params=["bundled", "native"])
def flawed(request: pytest.FixtureRequest) -> bool:
    """Whether it is the bundled module."""
    return request.param == "bundled"


@pytest.fixture
def make(prosody: Make, native_lua: Path, flawed: bool) -> Make:
    """Servers of one or the other."""

    def made(**options: Any) -> Prosody:
        return prosody(plugin_paths=BUNDLED if flawed else (native_lua,), modules=MODULES, **options)

    return made


def create(server: Prosody, call: str = "create_account()") -> str:
    return server.eval(f'return assert(module:depends("invites").{call}).token;')


def delete(server: Prosody, token: str) -> None:
    assert server.eval('return module:depends("invites").delete_account_invite(args.token);', token=token) is True


def accounts(server: Prosody) -> set[str]:
    found = server.eval(
        """
        local found = {};
        for username in require "core.usermanager".users(module.host) do table.insert(found, username); end
        return found;
        """
    )
    return set(found)


async def register_each(server: Prosody, token: str, names: list[str], *, streams: int = 1) -> None:
    """All streams present the token, then each name is registered on the next of them, whatever the answer."""
    opened = [await open_stream(server) for _ in range(streams)]
    try:
        for stream in opened:
            await stream.preauth(token)
        for number, name in enumerate(names):
            try:
                await opened[number % streams].register(name, "secret")
            except Refused:
                pass
    finally:
        for stream in opened:
            await stream.close()


async def subscribes(server: Prosody, username: str, token: str) -> bool:
    """Whether the token makes `username` a contact of nurse at once."""
    async with await login(server, username, "secret") as stream:
        stream.send_presence(to="nurse@example.com", type="subscribe", token=token)
        await stream.roster()
    async with await login(server, "nurse", "secret") as nurse:
        item = (await nurse.roster()).get(f"{username}@example.com")
    return item is not None and item.subscription in {"from", "both"}


@pytest.mark.parametrize("streams", [1, 3], ids=["one-stream", "three-streams"])
async def test_d1_one_token_makes_one_account(make: Make, flawed: bool, streams: int) -> None:
    server = make()
    await register_each(server, create(server), ["a", "b", "c"], streams=streams)
    assert accounts(server) == ({"a", "b", "c"} if flawed else {"a"})


async def test_d2_a_token_for_contacts_only_is_good(make: Make, version: str, flawed: bool) -> None:
    server = make()
    for name in ("nurse", "juliet"):
        server.add_user(name, "secret")
    token = create(server, 'create_contact("nurse")')
    is_lost = flawed and version == "0.12.3"  # mended in 0.12.5 and 13.0
    assert await subscribes(server, "juliet", token) is not is_lost
    assert ("attempt to index a nil value" in server.log()) is is_lost


def test_d3_a_deleted_token_makes_no_contact(make: Make, flawed: bool) -> None:
    server = make()
    server.add_user("nurse", "secret")
    token = create(server, 'create_contact("nurse", true)')
    delete(server, token)
    # The bundled one of 0.12.3 takes what is left for an invite for contacts only, and falls over that (D2).
    is_refused = server.eval(
        """
        local ok, invite = pcall(module:depends("invites").get, args.token, "nurse");
        return ok and invite == nil;
        """,
        token=token,
    )
    assert is_refused is not flawed


async def test_d3_a_token_for_contacts_only_can_be_deleted(make: Make, flawed: bool) -> None:
    server = make()
    for name in ("nurse", "juliet"):
        server.add_user(name, "secret")
    token = create(server, 'create_contact("nurse")')
    delete(server, token)
    assert await subscribes(server, "juliet", token) is flawed


async def test_d4_a_token_for_one_name_makes_no_other_account(make: Make, flawed: bool) -> None:
    server = make()
    await register_each(server, create(server, 'create_account("juliet")'), ["mallory"])
    assert accounts(server) == ({"mallory"} if flawed else set())


async def test_d4_a_name_is_kept_for_its_token(make: Make, flawed: bool) -> None:
    server = make()
    create(server, 'create_account("juliet")')
    await register_each(server, create(server), ["juliet"])
    assert accounts(server) == ({"juliet"} if flawed else set())


async def test_d5_a_reset_makes_no_account(make: Make, flawed: bool) -> None:
    server = make()
    server.add_user("juliet", "old")
    await register_each(server, create(server, 'create_account_reset("juliet")'), ["evil"])
    assert accounts(server) == ({"juliet", "evil"} if flawed else {"juliet"})


def test_d5_there_is_no_reset_for_nobody(make: Make, flawed: bool) -> None:
    server = make()
    made = server.eval('return module:depends("invites").create_account_reset("nobody") ~= nil;')
    assert made is flawed


def test_d6_a_use_that_was_not_stored_is_none(make: Make, flawed: bool) -> None:
    server = make(config='storage = { invite_token = "spec_fault" };')
    token = create(server)
    with _failing_storage(server, flawed):
        used = server.eval('return module:depends("invites").use(args.token);', token=token)
    is_still_good = server.eval('return module:depends("invites").get(args.token) ~= nil;', token=token)
    assert used == (True if flawed else (None, "internal-server-error"))
    assert is_still_good is True


@pytest.mark.parametrize("to", ["nurse@example.com", None], ids=["self", "nobody"])
async def test_d12_a_subscription_to_oneself_is_no_contact(make: Make, flawed: bool, to: str | None) -> None:
    server = make()
    server.add_user("nurse", "secret")
    token = create(server)
    async with await login(server, "nurse", "secret") as nurse:
        nurse.send_presence(to=to, type="subscribe", token=token)
        await nurse.roster()
    assert ("raceback" in server.log()) is flawed


async def test_d20_an_invite_does_not_outlive_its_inviter(make: Make, flawed: bool) -> None:
    server = make()
    server.add_user("nurse", "secret")
    token = create(server, 'create_contact("nurse", true)')
    server.eval('assert(require "core.usermanager".delete_user("nurse", module.host));')
    async with await open_stream(server) as stream:
        try:
            await stream.preauth(token)
            await stream.register("juliet", "secret")
        except Refused:
            pass
    assert accounts(server) == ({"juliet"} if flawed else set())
    if flawed:
        async with await login(server, "juliet", "secret") as juliet:
            assert (await juliet.roster())["nurse@example.com"].subscription == "both", "with nobody"


async def test_d25_a_reset_over_the_api_uses_its_token(make: Make, flawed: bool) -> None:
    """mod_invites_register_api sets the password, then fires the event with the name alone."""
    server = make()
    server.add_user("juliet", "old")
    token = create(server, 'create_account_reset("juliet")')
    server.eval('module:fire_event("user-password-reset", "juliet");')
    async with await open_stream(server) as stream:
        if flawed:
            await stream.preauth(token)
        else:
            with pytest.raises(Refused):
                await stream.preauth(token)


@contextmanager
def _failing_storage(server: Prosody, flawed: bool) -> Iterator[None]:
    """Where either keeps its invites."""
    if flawed:
        switch = 'module:shared("/example.com/storage_spec_fault/switch").failing.invite_token = '
        server.eval(f"{switch} true;")
        yield
        server.eval(f"{switch} nil;")
    else:
        with closing(sqlite3.connect(server.data_path / "invites.sqlite3", isolation_level=None)) as database:
            database.execute("BEGIN IMMEDIATE")
            yield
            database.execute("ROLLBACK")
