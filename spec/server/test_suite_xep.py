"""What the XEPs demand of the one who makes and accepts invites, requirement by requirement: spec/XEPS.md has the list.

With the modules of the suite as they come, so that what is shown is what a client sees.
"""

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from client import Refused, Stream, login, open_stream
from prosody import CHECKOUT, VERSIONS, Prosody

PASSWORD = "under the balcony"

XEP_0379 = pytest.mark.matrix("XEP-0379, what is ours")
XEP_0401 = pytest.mark.matrix("XEP-0401, what is ours")
XEP_0445 = pytest.mark.matrix("XEP-0445, what is ours")


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Prosody]:
    """Shared by the tests: each uses names of its own."""
    with Prosody(
        request.param, plugin_paths=(CHECKOUT / "lua",),
        modules=("register_ibr", "presence", "invites", "invites_register"),
    ) as server:
        server.start()
        yield server


def create(server: Prosody, call: str = "create_account()") -> dict[str, Any]:
    return server.eval(f'return assert(module:depends("invites").{call})')


async def until_expired(server: Prosody, token: str) -> None:
    deadline = time.monotonic() + 10
    while server.eval('return select(2, module:depends("invites").get(args.token))', token=token) != "token-expired":
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)


def users(server: Prosody, *names: str) -> None:
    for name in names:
        server.add_user(name, PASSWORD)


async def available(stream: Stream) -> Stream:
    stream.send_presence()
    await stream.roster()
    return stream


# XEP-0379: Pre-Authenticated Roster Subscription


@XEP_0379
@XEP_0401
def test_a_token_is_alphanumeric_and_cannot_be_guessed(server: Prosody) -> None:
    tokens = [create(server)["token"] for _ in range(300)]
    assert all(re.fullmatch("[A-Za-z0-9]{24}", token) for token in tokens)
    assert len(set(tokens)) == 300
    # Every character anywhere: 24 of 62 are 142 bits, where 80 are asked for.
    assert len(set("".join(tokens))) == 62
    assert max(Counter("".join(tokens)).values()) < 3 * 300 * 24 / 62


@XEP_0379
@pytest.mark.parametrize("call", ["create_account()", 'create_contact("benvolio")', 'create_group({ "x" })'])
def test_a_token_is_valid_for_a_limited_time_if_nobody_says_otherwise(server: Prosody, call: str) -> None:
    invite = create(server, call)
    assert invite["expires"] - invite["created_at"] == 7 * 86400


@XEP_0379
async def test_a_contact_token_is_good_once_and_then_the_request_is_an_ordinary_one(server: Prosody) -> None:
    users(server, "juliet", "romeo", "tybalt")
    token = create(server, 'create_contact("juliet")')["token"]
    async with (
        await login(server, "juliet", PASSWORD) as juliet,
        await login(server, "romeo", PASSWORD) as romeo,
        await login(server, "tybalt", PASSWORD) as tybalt,
    ):
        for stream in (juliet, romeo, tybalt):
            await available(stream)
        romeo.send_presence(to="juliet@example.com", type="subscribe", token=token)
        await romeo.roster()  # by now it was dealt with
        tybalt.send_presence(to="juliet@example.com", type="subscribe", token=token)
        await juliet.expect_presence("subscribe", "tybalt@example.com")
        roster = await juliet.roster()
        assert roster["romeo@example.com"].subscription in {"from", "both"}
        assert "tybalt@example.com" not in roster


@XEP_0379
@pytest.mark.parametrize("token", ["", "x", "a" * 24, "a%20b;ibr=y", "\u00fc", "x" * 2000])
async def test_a_malformed_or_unknown_contact_token_leaves_the_request_to_be_approved(
    server: Prosody, token: str
) -> None:
    nurse, guest = f"nurse{len(token)}", f"guest{len(token)}"
    users(server, nurse, guest)
    async with await login(server, nurse, PASSWORD) as inviter, await login(server, guest, PASSWORD) as stranger:
        await available(inviter)
        await available(stranger)
        stranger.send_presence(to=f"{nurse}@example.com", type="subscribe", token=token)
        await inviter.expect_presence("subscribe", f"{guest}@example.com")
        assert f"{guest}@example.com" not in await inviter.roster()


@XEP_0379
async def test_an_expired_contact_token_leaves_the_request_to_be_approved(server: Prosody) -> None:
    users(server, "peter", "susan")
    token = create(server, 'create_contact("peter", false, nil, 1)')["token"]
    deadline = time.monotonic() + 10
    while server.eval('return module:depends("invites").get(args.token, "peter") ~= nil', token=token):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.05)
    async with await login(server, "peter", PASSWORD) as peter, await login(server, "susan", PASSWORD) as susan:
        await available(peter)
        await available(susan)
        susan.send_presence(to="peter@example.com", type="subscribe", token=token)
        await peter.expect_presence("subscribe", "susan@example.com")


# XEP-0401: Ad-hoc Account Invitation Generation, and XEP-0147


@XEP_0401
@pytest.mark.parametrize(("call", "uri"), {
    "create_account()": "xmpp:example.com?register;preauth=TOKEN",
    'create_account("rosaline")': "xmpp:rosaline@example.com?register;preauth=TOKEN",
    'create_contact("rosaline")': "xmpp:rosaline@example.com?roster;preauth=TOKEN",
    'create_contact("rosaline", true)': "xmpp:rosaline@example.com?roster;preauth=TOKEN;ibr=y",
    # RFC 5122: what is no more than a character of a name must not end the name.
    r'create_contact("a?b#c%d[e]")': "xmpp:a%3fb%23c%25d%5be%5d@example.com?roster;preauth=TOKEN",
    r'create_contact("j\195\182rg")': "xmpp:j%c3%b6rg@example.com?roster;preauth=TOKEN",
    'create_contact("a+b!$(c)*,;=d")': "xmpp:a+b!$(c)*,;=d@example.com?roster;preauth=TOKEN",
}.items())
def test_the_uri_says_what_the_invite_is_for(server: Prosody, call: str, uri: str) -> None:
    invite = create(server, call)
    assert re.sub("%[0-9A-F]{2}", lambda m: m[0].lower(), invite["uri"]) == uri.replace("TOKEN", invite["token"])


@XEP_0401
@XEP_0445
async def test_a_username_is_reserved_until_its_invite_ends_and_no_account_is_made_before(server: Prosody) -> None:
    bound, other = create(server, 'create_account("paris")')["token"], create(server)["token"]
    exists = 'return (require "core.usermanager".user_exists("paris", module.host)) == true'
    assert not server.eval(exists)
    async with await open_stream(server) as stranger:
        await stranger.preauth(other)
        with pytest.raises(Refused):
            await stranger.register("paris", PASSWORD)
        assert not server.eval(exists)
        assert server.eval('return module:depends("invites").delete_account_invite(args.token)', token=bound) is True
        await stranger.register("paris", PASSWORD)
    assert server.eval(exists)


# XEP-0445: Pre-Authenticated In-Band Registration


@XEP_0445
async def test_a_token_is_not_used_up_by_a_registration_that_fails(server: Prosody) -> None:
    users(server, "mercutio")
    token = create(server)["token"]
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        with pytest.raises(Refused):
            await stream.register("mercutio", PASSWORD)
        await stream.register("valentine", PASSWORD)
    async with await login(server, "valentine", PASSWORD):
        pass


@XEP_0379
@XEP_0445
async def test_a_token_makes_one_account_however_many_presented_it_before(server: Prosody) -> None:
    token = create(server)["token"]
    streams = [await open_stream(server) for _ in range(10)]
    try:
        for stream in streams:
            await stream.preauth(token)
        results = await asyncio.gather(
            *(stream.register(f"hydra{number}", PASSWORD) for number, stream in enumerate(streams)),
            return_exceptions=True,
        )
    finally:
        for stream in streams:
            await stream.close()
    assert sorted(type(result).__name__ for result in results) == ["NoneType", *["Refused"] * 9]
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)


@XEP_0445
async def test_a_token_that_expires_after_it_was_presented_is_good_in_that_stream_alone(server: Prosody) -> None:
    token = create(server, "create_account(nil, nil, 1)")["token"]
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await until_expired(server, token)
        await stream.register("laurence", PASSWORD)
        async with await open_stream(server) as late:
            with pytest.raises(Refused, match="invalid or expired"):
                await late.preauth(token)


@XEP_0445
async def test_an_invite_for_a_username_registers_no_other(server: Prosody) -> None:
    token = create(server, 'create_account("escalus")')["token"]
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        with pytest.raises(Refused):
            await stream.register("mallory", PASSWORD)
        await stream.register("escalus", PASSWORD)


@XEP_0445
async def test_a_token_that_was_revoked_after_it_was_presented_registers_nobody(server: Prosody) -> None:
    token = create(server)["token"]
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        server.eval('assert(module:depends("invites").delete_account_invite(args.token))', token=token)
        with pytest.raises(Refused):
            await stream.register("samson", PASSWORD)


def test_every_requirement_in_the_list_names_a_spec_that_there_is_or_the_module_it_belongs_to() -> None:
    text = (CHECKOUT / "spec" / "XEPS.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    requirements = [row for row in rows if row[0] != "requirement"]
    assert len(requirements) > 20
    for row in requirements:
        assert len(row) == 3, row
        _, whose, shown = row
        for file, name in re.findall(r"`(test_\w+)::(\w+)`", shown):
            assert f"def {name}(" in (CHECKOUT / "spec" / "server" / f"{file}.py").read_text(), row
        if whose == "ours":
            assert "`test_" in shown, row
