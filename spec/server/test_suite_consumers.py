"""Every module that builds on mod_invites, by the calls that it makes and the fields that it reads.

The packaged ones run as they are. Of those that no Debian package holds there is a consumer of our own with the same
calls, in modules/mod_spec_*.lua.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import BUNDLED, VERSIONS
from seed import LINK, NATIVE, Seed

PASSWORD = "under the balcony"
DAY = 86400

_MODULES = (
    "invites_api", "invites_tracking", "spec_http_admin_api", "spec_invites_register_api", "spec_registered",
    "spec_inviting",
)


def _server(version: str, plugin_paths: Any) -> Seed:
    # Not in every release, and the same in all that have it.
    borrowed = () if version == "13.0.7" else ("mod_invites_tracking",)
    return Seed(version, plugin_paths=plugin_paths, modules=_MODULES, borrowed=borrowed)


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Seed]:
    """Shared by the tests: each uses names of its own."""
    with _server(request.param, NATIVE) as server:
        server.start()
        yield server


@pytest.fixture(scope="module")
def bundled(server: Seed) -> Iterator[Seed]:
    """The same with the mod_invites that this version brings."""
    with _server(server.version, BUNDLED) as bundled:
        bundled.start()
        yield bundled


def call(server: Seed, function: str, *args: Any) -> Any:
    """A function of a module of the host, as "module.function"."""
    module, _, name = function.partition(".")
    return server.eval(f"""
        local invoked = prosody.hosts[module.host].modules[args.module];
        for name in args.name:gmatch("[^.]+") do invoked = invoked[name]; end
        return invoked({", ".join(_lua(arg) for arg in args)});
    """, module=module, name=name)


def _lua(value: Any) -> str:
    match value:
        case None:
            return "nil"
        case list():
            return "{" + ", ".join(map(_lua, value)) + "}"
        case dict():
            return "{" + ", ".join(f"[{_lua(k)}] = {_lua(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


def token_of(link: str) -> str:
    return re.search(r"(?:preauth=|invite\?)([\w-]+)", link)[1]


async def register(server: Seed, token: str, username: str) -> None:
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register(username, PASSWORD)


# Packaged


@pytest.mark.matrix("invites_api")
async def test_an_api_key_buys_an_invite_that_names_it_as_its_source(server: Seed) -> None:
    made = server.prosodyctl("mod_invites_api", "create", "example.com", "shop")
    assert made.returncode == 0, made.stdout + made.stderr
    key = made.stdout.split()[-1]
    # Without a query it fails by itself.
    bought = server.request("/invites_api?by=header", headers={"Authorization": f"Bearer {key}"})
    assert bought.status == 201
    link = bought.headers["location"]
    assert link.startswith(LINK)

    invite = server.eval('return module:depends("invites").get(args.token)', token=token_of(link))
    assert invite["additional_data"] == {"source": f"api/token/{key.partition('/')[0]}"}
    await register(server, token_of(link), "gregory")
    async with await login(server, "gregory", PASSWORD):
        pass

    redirected = server.request(f"/invites_api?key={key}&redirect=1")
    assert (redirected.status, redirected.headers["location"].startswith(LINK)) == (303, True)
    assert server.request("/invites_api?key=none/such").status == 403
    assert server.prosodyctl("mod_invites_api", "delete", "example.com", key.partition("/")[0]).returncode == 0
    assert server.request(f"/invites_api?key={key}").status == 403


@pytest.mark.matrix("invites_tracking")
async def test_the_invite_and_its_source_are_tracked_for_the_account_that_it_made(server: Seed) -> None:
    token = server.eval('return module:depends("invites").create_account(nil, { source = "the fair" })')["token"]
    await register(server, token, "sampson")
    tracked = server.eval('return module:open_store("invites_tracking"):get("sampson")')
    assert tracked == {"invite_id": token, "invite_source": "the fair"}


# invites_groups, audit_user_accounts


@pytest.mark.matrix("invites_groups (its calls)")
async def test_the_new_account_joins_the_groups_of_its_invite(server: Seed) -> None:
    token = server.generate("--group", "montagues", "--group", "servants")
    await register(server, token, "abram")
    assert call(server, "spec_registered.groups", "abram") == ["montagues", "servants"]


@pytest.mark.matrix("audit_user_accounts (its calls)")
async def test_the_audit_of_a_new_account_has_the_token_of_its_invite_as_a_string(server: Seed) -> None:
    token = server.generate()
    await register(server, token, "peter")
    assert call(server, "spec_registered.invite_attribute", "peter") == token


# http_admin_api


def told(text: str) -> dict[str, Any]:
    """What it tells of an invite, with what differs from one to the next replaced. Times must be integers as printed."""
    assert not re.search(r'"(created_at|expires)":\d+\.', text), text
    invite = json.loads(text)
    token, created_at = invite["id"], invite["created_at"]
    assert isinstance(created_at, int)
    invite["id"], invite["created_at"] = "TOKEN", 0
    invite["expires"] -= created_at
    for name in ("uri", "landing_page"):
        if name in invite:
            invite[name] = invite[name].replace(token, "TOKEN")
    # An empty table is printed as either.
    return {name: value for name, value in invite.items() if value not in ({}, [])}


CREATED = {
    "account": ("create_account", None, None, None),
    "account with a name": ("create_account", "friar", {"source": "abbey", "note": "a"}, 3600),
    "account with data": ("create_account", None, {"roles": ["prosody:admin"], "groups": ["a", "b"], "more": 1}, 600),
    "group": ("create_group", ["x"], "abbey", None, "welcome"),
    "group for a while": ("create_group", ["x", "y"], "abbey", ["prosody:registered"], "welcome", DAY),
    "reset": ("create_reset", "laurence"),
    "reset for a while": ("create_reset", "laurence", None, 1800),
}


@pytest.fixture(scope="module")
def laurence(server: Seed, bundled: Seed) -> None:
    for one in (server, bundled):
        one.add_user("laurence", PASSWORD)


@pytest.mark.matrix("http_admin_api (its calls)")
@pytest.mark.parametrize("kind", CREATED)
def test_what_the_admin_api_creates_and_shows_is_what_it_was_on_the_bundled_module(
    server: Seed, bundled: Seed, laurence: None, kind: str
) -> None:
    function, *args = CREATED[kind]
    created, shown = [], []
    for one in (server, bundled):
        text = call(one, f"spec_http_admin_api.{function}", *args)
        created.append(told(text))
        shown.append(told(call(one, "spec_http_admin_api.show", json.loads(text)["id"])))
    assert created[0] == created[1]
    assert shown[0] == shown[1]
    # Taking the table apart took nothing from the store.
    assert shown[0] == created[0]


@pytest.mark.matrix("http_admin_api (its calls)")
def test_the_admin_api_lists_what_is_pending_and_deletes_it(server: Seed) -> None:
    one, other = (json.loads(call(server, "spec_http_admin_api.create_account", None, {"note": n}))["id"] for n in "ab")

    def listed() -> list[str]:
        return [invite["id"] for invite in json.loads(call(server, "spec_http_admin_api.list"))]

    assert {one, other} <= set(listed())
    assert call(server, "spec_http_admin_api.delete", one) is True
    assert one not in listed() and other in listed()
    assert call(server, "spec_http_admin_api.show", one) == (None, "token-invalid")
    assert call(server, "spec_http_admin_api.delete", "nonsense") is True


# invites_register_api


@pytest.mark.matrix("invites_register_api (its calls)")
def test_the_register_api_shows_an_invite_and_what_it_strikes_out_stays_in_the_store(server: Seed) -> None:
    server.add_user("escalus", PASSWORD)
    token = server.eval('return module:depends("invites").create_account_reset("escalus")')["token"]
    for _ in range(2):
        status, shown = call(server, "spec_invites_register_api.info", token)
        assert status == 200
        assert shown["reset"] == "escalus"
        assert shown["expires"] - shown["created_at"] == DAY
        assert (shown["token"], shown["type"], shown["jid"]) == (token, "register", "escalus@example.com")
        assert shown["uri"] == f"xmpp:escalus@example.com?register;preauth={token}"
    assert call(server, "spec_invites_register_api.info", "nonsense") == 404


@pytest.mark.matrix("invites_register_api (its calls)")
async def test_the_register_api_makes_one_account_with_the_name_of_the_invite(server: Seed) -> None:
    token = server.generate("--username", "rosaline")
    assert call(server, "spec_invites_register_api.register", token, "mallory", PASSWORD) == (200, "rosaline")
    async with await login(server, "rosaline", PASSWORD):
        pass
    assert call(server, "spec_invites_register_api.register", token, "mallory", PASSWORD) == 404
    assert call(server, "spec_invites_register_api.info", token) == 404


@pytest.mark.matrix("invites_register_api (its calls)")
async def test_the_register_api_resets_a_password_once(server: Seed) -> None:
    server.add_user("valentine", PASSWORD)
    token = server.eval('return module:depends("invites").create_account_reset("valentine")')["token"]
    assert call(server, "spec_invites_register_api.register", token, None, "a new one") == (200, "valentine")
    async with await login(server, "valentine", "a new one"):
        pass
    assert call(server, "spec_invites_register_api.register", token, None, "another") == 404


@pytest.mark.matrix("invites_register_api (its calls)")
def test_the_register_api_deletes_an_account_invite_that_is_not_reusable(server: Seed) -> None:
    server.add_user("anthony", PASSWORD)
    reusable = server.eval('return module:depends("invites").create_group({ "x" }, nil, 60)')["token"]
    contact = server.eval('return module:depends("invites").create_contact("anthony", true)')["token"]
    assert call(server, "spec_invites_register_api.delete", reusable) == 403
    assert call(server, "spec_invites_register_api.delete", contact) == 403
    token = server.generate()
    assert call(server, "spec_invites_register_api.delete", token) == 200
    assert call(server, "spec_invites_register_api.delete", token) == 404


# welcome_page, easy_invite, invites_bootstrap, invites_default_group


@pytest.mark.matrix("welcome_page (its calls)")
async def test_the_welcome_page_hands_out_an_account(server: Seed) -> None:
    status, link = call(server, "spec_inviting.welcome_page")
    assert status == 303 and link.startswith(LINK)
    invite = server.eval('return module:depends("invites").get(args.token)', token=token_of(link))
    assert invite["additional_data"] == {"source": "welcome_page"}
    await register(server, token_of(link), "potpan")


@pytest.mark.matrix("easy_invite (its calls)")
def test_easy_invite_makes_and_spends_every_kind(server: Seed) -> None:
    server.add_user("capulet", PASSWORD)
    assert re.fullmatch(
        r"xmpp:capulet@example\.com\?roster;preauth=\w+", call(server, "spec_inviting.easy_invite.contact", "capulet", False)
    )
    uris = [
        call(server, "spec_inviting.easy_invite.contact", "capulet", True),
        call(server, "spec_inviting.easy_invite.account", "prosody:admin"),
        call(server, "spec_inviting.easy_invite.account", None),
        call(server, "spec_inviting.easy_invite.reset", "capulet"),
    ]
    assert uris[0].endswith(";ibr=y")
    for uri in uris:
        assert call(server, "spec_inviting.easy_invite.spend", token_of(uri)) is True
        assert call(server, "spec_inviting.easy_invite.spend", token_of(uri)) == (None, "token-invalid")


@pytest.mark.matrix("invites_bootstrap, invites_default_group (their calls)")
async def test_the_first_invite_of_a_server_makes_an_admin_in_the_default_group(server: Seed) -> None:
    link, err = call(server, "spec_inviting.bootstrap")
    assert err is None
    info = server.eval('return module:depends("invites").get_account_invite_info(args.token)', token=token_of(link))
    assert info["expires"] - info["created_at"] == 3600
    await register(server, token_of(link), "prince")
    assert call(server, "spec_registered.groups", "prince") == ["default"]


@pytest.mark.matrix("invites_bootstrap, invites_default_group (their calls)")
async def test_what_a_module_adds_to_a_contact_invite_is_stored_with_it(server: Seed) -> None:
    server.add_user("lady", PASSWORD)
    token = token_of(server.eval('return module:depends("invites").create_contact("lady", true)')["uri"])
    server.eval('assert(require "core.modulemanager".reload(module.host, "invites"))')
    await register(server, token, "page")
    assert call(server, "spec_registered.groups", "page") == ["default"]
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)
