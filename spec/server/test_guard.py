"""Registration by invitation only stays so while mod_invites_register, which sees to it, is not loaded.

One server with a host for each case. They register in-band, over a stream.
"""

import asyncio
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from client import Refused, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

CLOSED = "problem with this server's invitations"
INVITE_ONLY = "through invitation only"

LOAD = 'assert(require "core.modulemanager".load(module.host, args.name))'
UNLOAD = 'assert(require "core.modulemanager".unload(module.host, args.name))'
RELOAD = 'assert(require "core.modulemanager".reload(module.host, args.name))'
LOADED = 'return require "core.modulemanager".is_loaded(module.host, args.name) or false'
#: What a web form makes of it.
REGISTERING = """
    local event = { username = "romeo", host = module.host, ip = "::1", allowed = true };
    event.validated_invite = args.token and prosody.hosts[module.host].modules.invites.get(args.token);
    module:fire_event("user-registering", event);
    event.validated_invite = nil;
    return event;
"""
CREATE = "return assert(prosody.hosts[module.host].modules.invites.create_account()).token"

INVITES = 'modules_enabled = { "invites_register" };'


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    def made(hosts: dict[str, str], **options: object) -> Prosody:
        # One that is not touched answers while another is.
        return prosody(plugin_paths=(native_lua,), hosts={"example.com": INVITES, **hosts}, **options)

    return made


async def refusal(server: Prosody, host: str, token: str | None = None) -> str | None:
    """Why nobody can register there; None if somebody can, and did."""
    async with await open_stream(server, host) as stream:
        if token:
            await stream.preauth(token)
        try:
            await stream.register(f"user{time.monotonic_ns()}", "pw")
        except Refused as refused:
            return refused.text or refused.condition
    return None


async def warnings(server: Prosody, host: str, number: int) -> list[str]:
    """What the log says of the guard of a host, once that are so many lines."""
    deadline = time.monotonic() + 10
    while True:
        said = re.findall(rf"\t(Nobody can register on {re.escape(host)}: .*)", server.log())
        if len(said) >= number:
            return said
        assert time.monotonic() < deadline, server.log_tail()
        await asyncio.sleep(0.01)


async def test_registration_stays_closed_from_unload_to_load(make: Make) -> None:
    host = "unload.example"
    server = make({host: INVITES, "alone.example": INVITES})
    token = server.eval(CREATE, host=host)
    async with await open_stream(server, host) as validated:
        await validated.preauth(token)

        server.eval(UNLOAD, host=host, name="invites")
        assert server.eval(LOADED, host=host, name="register_ibr")
        assert not server.eval(LOADED, host=host, name="invites_register")
        assert CLOSED in str(await refusal(server, host))
        with pytest.raises(Refused) as refused:
            await validated.register("romeo", "pw")
        assert CLOSED in refused.value.text
        told, = await warnings(server, host, 1)
        assert 'remove "invites_register" from modules_enabled' in told
        assert "registration_invite_only = false" in told

        # Ours alone does not refuse anybody.
        server.eval(LOAD, host=host, name="invites")
        assert CLOSED in str(await refusal(server, host))
        server.eval(RELOAD, host=host, name="invites")
        server.eval(RELOAD, host=host, name="invites")
        assert CLOSED in str(await refusal(server, host))
        assert len(await warnings(server, host, 1)) == 1

        server.eval(LOAD, host=host, name="invites_register")
        assert INVITE_ONLY in str(await refusal(server, host))
        # Refused, it was not used.
        await validated.preauth(token)
        await validated.register("romeo", "pw")
    async with await login(server, "romeo", "pw", host):
        pass

    # A new cause, a new line.
    server.eval(UNLOAD, host=host, name="invites")
    assert len(await warnings(server, host, 2)) == 2
    assert CLOSED in str(await refusal(server, host))

    # The other one alone.
    server.eval(UNLOAD, host="alone.example", name="invites_register")
    assert len(await warnings(server, "alone.example", 1)) == 1
    assert CLOSED in str(await refusal(server, "alone.example"))
    token = server.eval(CREATE, host="alone.example")
    async with await open_stream(server, "alone.example") as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)
    # A form that validates an invite by itself: without mod_invites_register nobody gives what it promises.
    event = server.eval(REGISTERING, host="alone.example", token=token)
    assert not event["allowed"]
    assert CLOSED in event["reason"]
    assert server.eval(
        "return prosody.hosts[module.host].modules.invites.get_account_invite_info(args.token) ~= nil",
        host="alone.example", token=token,
    )
    server.eval(LOAD, host="alone.example", name="invites_register")
    assert INVITE_ONLY in str(await refusal(server, "alone.example"))
    assert "Nobody can register on example.com" not in server.log()
    assert "raceback" not in server.log()


async def test_a_module_that_cannot_be_loaded_leaves_registration_closed(make: Make) -> None:
    """Nor does it open what other modules, the form of mod_register_web or so, make of the same event."""
    host = "nothing.example"
    server = make({host: INVITES + 'modules_disabled = { "register_ibr" };'})
    assert not server.eval(LOADED, host=host, name="invites_register")
    assert len(await warnings(server, host, 1)) == 1
    event = server.eval(REGISTERING, host=host)
    assert not event["allowed"]
    assert CLOSED in event["reason"]


async def test_the_configuration_as_it_is_now_decides(make: Make) -> None:
    taken_out, let_in, both = "taken-out.example", "let-in.example", "both.example"
    disabled = "disabled.example"
    server = make(dict.fromkeys((taken_out, let_in, both, disabled), INVITES))
    for host in (taken_out, let_in, both, disabled):
        server.eval(UNLOAD, host=host, name="invites")
        assert CLOSED in str(await refusal(server, host))

    server.hosts |= {
        taken_out: 'modules_enabled = { "register_ibr" };',
        let_in: INVITES + "registration_invite_only = false;",
        both: INVITES + "registration_invite_only = true;",
        disabled: INVITES + 'modules_disabled = { "invites_register" };',
    }
    server.write_config()
    server.eval("prosody.reload_config()")
    assert await refusal(server, taken_out) is None
    assert await refusal(server, let_in) is None
    assert await refusal(server, disabled) is None
    assert CLOSED in str(await refusal(server, both))

    # The global section counts as it does when modules are loaded.
    server.hosts |= {taken_out: "", let_in: 'modules_enabled = { "register_ibr" };', both: ""}
    server.modules = ("invites_register",)
    server.config = "registration_invite_only = true;"
    server.write_config()
    server.eval("prosody.reload_config()")
    for host in (taken_out, let_in, both):
        assert CLOSED in str(await refusal(server, host)), host
    assert await refusal(server, disabled) is None
    assert "raceback" not in server.log()


async def test_the_guard_ends_with_its_host(make: Make) -> None:
    host = "gone.example"
    server = make({host: INVITES})
    server.eval('assert(require "core.hostmanager".deactivate(args.gone))', gone=host)
    server.eval('assert(require "core.hostmanager".activate(args.gone))', gone=host)
    assert INVITE_ONLY in str(await refusal(server, host))
    assert await refusal(server, host, server.eval(CREATE, host=host)) is None
    # Unloaded with its host, it has nobody to keep out.
    assert "Nobody can register" not in server.log()


async def test_where_the_configuration_keeps_it_from_loading_check_is_critical(make: Make) -> None:
    server = make({
        "no-invites.example": INVITES + 'modules_disabled = { "invites" };',
        "no-ibr.example": INVITES + 'modules_disabled = { "register_ibr" };',
        "web-alone.example": INVITES + 'modules_disabled = { "register_ibr" }; registration_invite_only = false;',
    })
    for host, name in (
        ("no-invites.example", "invites"), ("no-ibr.example", "register_ibr"), ("web-alone.example", None),
        ("example.com", None),
    ):
        done = server.prosodyctl("mod_invites", "check", host)
        critical = [line for line in done.stdout.splitlines() if line.startswith("critical: ")]
        assert len(critical) == (name is not None), done.stdout
        if name:
            assert done.returncode == 2
            assert f'modules_disabled has "{name}"' in critical[0]
