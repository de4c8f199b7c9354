"""Programs that people really use, and the libraries that others are made of: their users join with an invite."""

import asyncio
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from typing import Any

import gi
import pytest
from gi.repository import GLib
from slixmpp.exceptions import IqError
from slixmpp.plugins.xep_0004 import Form
from slixmpp.stanza import Iq

from browser import expect, open_browser
from client import INVITATION, LoopbackClient
from prosody import CHECKOUT, VERSIONS
from seed import LINK, Seed

sys.path.insert(0, str(CHECKOUT / "target" / "nbxmpp"))  # spec/machine.sh has put it there

gi.require_version("Soup", "3.0")

from nbxmpp.client import Client  # noqa: E402
from nbxmpp.const import ConnectionProtocol, ConnectionType, Mode  # noqa: E402
from nbxmpp.errors import StanzaError  # noqa: E402
from nbxmpp.task import Task  # noqa: E402

pytestmark = pytest.mark.matrix("programs: converse.js, nbxmpp, slixmpp")

PASSWORD = "under the balcony"
DEADLINE = 10
NURSE = "nurse@example.com"
UNKNOWN = "This server does not know this invitation. Is it complete?"

#: converse.js as its documentation puts it into a page of one's own.
PAGE = """\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/files/dist/converse.min.css">
<script type="module" src="/files/dist/converse.min.js"></script>
</head>
<body>
<script type="module">
converse.initialize({
    assets_path: "/files/dist/",
    i18n: "en",
    registration_domain: "example.com",
    view_mode: "fullscreen",
    websocket_url: "wss://example.com/xmpp-websocket",
    xmpp_providers_url: "",
});
</script>
</body>
</html>
"""


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Seed]:
    """Shared by the tests: each uses names of its own. A page with converse.js is at /files/."""
    with Seed(request.param, modules=("tls", "websocket", "http_files")) as server:
        certificate = server.scratch / "example.com.crt"
        pages = server.scratch / "pages"
        pages.mkdir()
        (pages / "index.html").write_text(PAGE)
        (pages / "dist").symlink_to(CHECKOUT / "target" / "converse.js" / "dist")
        server.config += f"""
ssl = {{ certificate = "{certificate}"; key = "{certificate.with_suffix(".key")}" }};
http_files_dir = "{pages}";
"""
        server.start()
        server.add_user("nurse", "secret")
        yield server


def invite(server: Seed) -> str:
    """The token of an invite by the nurse, to an account and to be a contact of hers."""
    return server.eval('return assert(module:depends("invites").create_contact("nurse", true)).token;')


def assert_joined(server: Seed, username: str, token: str) -> None:
    """The server's own view: the account, both rosters and the invite."""
    exists, items, is_open = server.eval(
        """
        local usermanager = require "core.usermanager";
        local rostermanager = require "core.rostermanager";
        local function subscription(username, contact)
            local item = rostermanager.load_roster(username, module.host)[contact.."@"..module.host];
            return item and item.subscription or "none";
        end
        return usermanager.user_exists(args.username, module.host),
            { subscription(args.username, "nurse"), subscription("nurse", args.username) },
            module:depends("invites").get(args.token) ~= nil;
        """,
        username=username, token=token,
    )
    assert (exists, items, is_open) == (True, ["both", "both"], False)


# converse.js 14 knows no preauth (XEP-0445), so there is but one way with it.
async def test_whoever_pastes_the_link_into_converse_is_logged_in_with_the_inviter_as_a_contact(server: Seed) -> None:
    token = invite(server)
    async with open_browser(server) as browser:
        page = browser.page
        await page.goto("https://example.com/files/#converse/register")
        form = page.locator("form#converse-register")
        field = form.get_by_label("Invitation link or code")
        await expect(field).to_have_attribute("required", "")

        async def submit(pasted: str) -> None:
            await form.get_by_label("Username").fill("romeo")
            await form.get_by_label("Password").fill(PASSWORD)
            await field.fill(pasted)
            await form.get_by_role("button", name="Register").click()

        await submit("Verona")
        await page.get_by_role("alert").get_by_text(UNKNOWN).wait_for()
        # It asks for the form anew.
        await expect(field).to_have_value("")
        await submit(LINK + token)
        await page.locator("converse-roster").get_by_text(NURSE).wait_for()
        assert await page.locator("converse-user-profile").get_by_text("romeo@example.com").count() == 1
    assert_joined(server, "romeo", token)


class Nbxmpp:
    """nbxmpp, as Gajim uses it: TLS, first in a mode for registration, then a session."""

    def __init__(self, server: Seed) -> None:
        self._server = server
        self._client: Client | None = None

    def connect(self, mode: Mode, username: str | None = None, password: str | None = None) -> None:
        client = self._client = Client()
        client.set_domain("example.com")
        client.set_username(username)
        client.set_password(password)
        client.set_mode(mode)
        client.set_ignore_tls_errors(True)
        client.set_custom_host(f"127.0.0.1:{self._server.c2s}", ConnectionProtocol.TCP, ConnectionType.START_TLS)
        self._until("connected", client.connect)

    def ask(self, module: str, method: str, *args: Any) -> Any:
        def request(done: Callable[..., None]) -> None:
            getattr(self._client.get_module(module), method)(*args, callback=done)

        answer = run(request)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def disconnect(self) -> None:
        self._until("disconnected", self._client.disconnect)
        self._client.destroy()

    def _until(self, signal: str, start: Callable[[], None]) -> None:
        def wait(done: Callable[..., None]) -> None:
            for name in {signal, "connected", "disconnected", "connection-failed"}:
                self._client.subscribe(name, lambda _, name: done(name))
            start()

        outcome = run(wait)
        assert outcome == signal, (outcome, self._client.get_error())


def run(start: Callable[[Callable[..., None]], None]) -> Any:
    """What `start` hands to the function that it gets, with GLib's loop running until it does."""
    loop = GLib.MainLoop()
    outcome: list[Any] = []

    def done(value: Any) -> None:
        # A task forgets its result when its callback is through.
        outcome.append(value.get_result() if isinstance(value, Task) else value)
        loop.quit()

    alarm = GLib.timeout_add_seconds(DEADLINE, loop.quit)
    start(done)
    loop.run()
    if not outcome:
        raise TimeoutError(f"nothing in {DEADLINE} s")
    GLib.source_remove(alarm)
    return outcome[0]


def join_with_nbxmpp(server: Seed, username: str, token: str, *, preauth: bool) -> None:
    newcomer = Nbxmpp(server)
    newcomer.connect(Mode.REGISTER)
    if preauth:
        newcomer.ask("Register", "send_preauth", token)
    form = newcomer.ask("Register", "request_register_form").form
    form.vars["username"].value = username
    form.vars["password"].value = PASSWORD
    assert (INVITATION in form.vars) == (not preauth)
    if not preauth:
        field = form.vars[INVITATION]
        assert (field.label, field.required, field.type_) == ("Invitation link or code", True, "text-single")
        assert form.is_valid() is False
        field.value = "Verona"
        form.type_ = "submit"
        with pytest.raises(StanzaError, match=UNKNOWN):
            newcomer.ask("Register", "submit_register_form", form)
        field.value = LINK + token
    form.type_ = "submit"
    newcomer.ask("Register", "submit_register_form", form)
    newcomer.disconnect()

    newcomer.connect(Mode.CLIENT, username, PASSWORD)
    roster = newcomer.ask("Roster", "request_roster")
    newcomer.disconnect()
    assert {(str(item.jid), item.subscription) for item in roster.items} == {(NURSE, "both")}
    assert_joined(server, username, token)


def test_whoever_pastes_the_link_into_the_form_of_nbxmpp_joins(server: Seed) -> None:
    join_with_nbxmpp(server, "juliet", invite(server), preauth=False)


def test_nbxmpp_joins_by_preauth(server: Seed) -> None:
    join_with_nbxmpp(server, "benvolio", invite(server), preauth=True)


class Slixmpp(LoopbackClient):
    """slixmpp as the examples of its documentation register an account, and then go on to the session."""

    def __init__(self, username: str, token: str, *, preauth: bool) -> None:
        super().__init__(f"{username}@example.com", PASSWORD)
        self._token = token
        self._preauth = preauth
        self.register_plugin("xep_0077")
        self.add_event_handler("register", self._register)
        self.asked: set[str] = set()
        #: What was said to what was entered first.
        self.refusals: list[str] = []
        self.done: asyncio.Future[dict[str, str]] = self.loop.create_future()
        self.add_event_handler("session_start", self._look_at_roster)

    async def _register(self, answer: Iq) -> None:
        try:
            if self._preauth:
                # It has no plugin for XEP-0445.
                request = self.make_iq_set(sub=ET.Element("{urn:xmpp:pars:0}preauth", {"token": self._token}))
                await request.send()
                answer = await self["xep_0077"].get_registration()
            form = answer["register"]["form"]
            self.asked = set(form.get_fields())
            answers = {"username": self.boundjid.user, "password": PASSWORD}
            if not self._preauth:
                field = form.get_fields()[INVITATION]
                assert (field["label"], field["required"]) == ("Invitation link or code", True)
                try:
                    await self._submit(form, {**answers, INVITATION: "Verona"})
                except IqError as error:
                    self.refusals.append(error.text)
                answers[INVITATION] = LINK + self._token
            await self._submit(form, answers)
        except Exception as error:  # slixmpp would log it and go on
            self.done.set_exception(error)

    async def _submit(self, form: Form, answers: dict[str, str]) -> None:
        request = self.make_iq_set()
        form["type"] = "submit"
        form["values"] = answers
        request["register"].append(form)
        await request.send()

    async def _look_at_roster(self, _: object) -> None:
        answer = await self.get_roster()
        self.done.set_result({str(jid): item["subscription"] for jid, item in answer["roster"]["items"].items()})


async def join_with_slixmpp(server: Seed, username: str, token: str, *, preauth: bool) -> None:
    client = Slixmpp(username, token, preauth=preauth)
    client.connect_in_the_clear("127.0.0.1", server.c2s)
    try:
        roster = await asyncio.wait_for(client.done, DEADLINE)
    finally:
        await client.disconnect()
        client.abort()
    assert client.asked == {"FORM_TYPE", "username", "password", *([] if preauth else [INVITATION])}
    assert client.refusals == ([] if preauth else [UNKNOWN])
    assert roster == {NURSE: "both"}
    assert_joined(server, username, token)


async def test_whoever_pastes_the_link_into_the_form_of_slixmpp_joins(server: Seed) -> None:
    await join_with_slixmpp(server, "mercutio", invite(server), preauth=False)


async def test_slixmpp_joins_by_preauth(server: Seed) -> None:
    await join_with_slixmpp(server, "paris", invite(server), preauth=True)
