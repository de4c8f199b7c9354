"""One real XMPP client-to-server stream, on slixmpp.

`ClientXMPP` hurries from the stream features to a session. Here a stream stops after the features, as a client does
that has a token to present: `preauth` and `register` work on that unauthenticated stream, `authenticate` goes on.
A refusal by the server raises `Refused`; every wait has a deadline, and ends at once when the server closes the stream.
"""

import asyncio
import xml.etree.ElementTree as ET
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Self, TypeVar

from slixmpp import JID, ClientXMPP
from slixmpp.stanza import Iq, StreamFeatures
from slixmpp.xmlstream import StanzaBase

from prosody import Prosody

T = TypeVar("T")

DEADLINE = 10.0

#: The field of the registration form that takes an invitation.
INVITATION = "{urn:uuid:95bd5649-f5f5-443b-bb4e-0f2ba6270f84}invitation"

_CLIENT = "{jabber:client}"
_STANZAS = "{urn:ietf:params:xml:ns:xmpp-stanzas}"
_SASL = "{urn:ietf:params:xml:ns:xmpp-sasl}"
_PARS = "{urn:xmpp:pars:0}"
_REGISTER = "{jabber:iq:register}"
_ROSTER = "{jabber:iq:roster}"
_COMMANDS = "{http://jabber.org/protocol/commands}"
_DATA = "{jabber:x:data}"


class Refused(Exception):
    """The server's error: `condition` and `type` as on the wire, `text` possibly empty, `xml` the whole stanza."""

    def __init__(self, condition: str, type: str, text: str, xml: ET.Element) -> None:
        super().__init__(f"{type}/{condition}: {text}")
        self.condition = condition
        self.type = type
        self.text = text
        self.xml = xml

    @classmethod
    def from_stanza(cls, xml: ET.Element) -> Self:
        """Read from the XML: slixmpp knows a fixed list of conditions and hides the others (`policy-violation`)."""
        error = xml.find(f"{_CLIENT}error")
        assert error is not None
        conditions = [child.tag.removeprefix(_STANZAS) for child in error if child.tag.startswith(_STANZAS)]
        condition = next(name for name in conditions if name != "text")
        return cls(condition, error.get("type", ""), error.findtext(f"{_STANZAS}text", ""), xml)


@dataclass(frozen=True)
class RosterItem:
    subscription: str
    ask: str | None = None
    groups: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Command:
    """A stage of an ad-hoc command (XEP-0050). `form` maps each field of its data form to its list of values."""

    status: str
    session: str
    form: dict[str, list[str]]
    form_type: str | None
    notes: tuple[str, ...]
    xml: ET.Element


@dataclass(frozen=True)
class Field:
    type: str
    label: str | None
    required: bool
    values: list[str]


@dataclass(frozen=True)
class RegistrationForm:
    """`elements` are the texts of what programs without data forms read; `instructions` and `fields` those of the data form."""

    elements: dict[str, str | None]
    instructions: str
    fields: dict[str, Field]


class LoopbackClient(ClientXMPP):
    """slixmpp's client, for a server of the tests."""

    def __init__(self, jid: str, password: str) -> None:
        # PLAIN: one attempt, one answer, and SCRAM in pure Python would be most of the time of a test with 50 streams.
        mechanisms = {"feature_mechanisms": {"unencrypted_plain": True}}
        super().__init__(jid, password, sasl_mech="PLAIN", plugin_config=mechanisms)
        # slixmpp queues stanzas until there is a session, but in-band registration comes before one.
        self._always_send_everything = True

    def connect_in_the_clear(self, host: str, port: int) -> None:
        if hasattr(self, "enable_plaintext"):  # the slixmpp of Debian 13 and newer
            self.enable_direct_tls = self.enable_starttls = False
            self.enable_plaintext = True
            self.connect(host, port)
        else:
            self.connect((host, port), disable_starttls=True, force_starttls=False)

    async def get_dns_records(self, domain: str, port: int | None = None) -> list[tuple[str, str, int]]:
        """The address is known. slixmpp would ask the network's name servers all the same, for the empty name."""
        host, port = self.address
        return [(host, host, port)]


class _Client(LoopbackClient):
    """Held after the first stream features until `proceed`."""

    def __init__(self, host: str) -> None:
        super().__init__(host, "")
        # It would answer subscription requests by itself and hide what the server does.
        self.auto_authorize = None
        self.auto_subscribe = False
        self.first_features: asyncio.Future[StreamFeatures] = self.loop.create_future()

    async def _handle_stream_features(self, features: StreamFeatures) -> bool | None:
        if self.first_features.done():
            return await super()._handle_stream_features(features)
        self.first_features.set_result(features)
        return None

    async def proceed(self, jid: JID, password: str) -> None:
        self.requested_jid = jid
        self.password = password
        await super()._handle_stream_features(self.first_features.result())


class Stream:
    """Made by `open_stream` or `login`; an async context manager. `received` holds every stanza that came in."""

    def __init__(self, host: str) -> None:
        self.host = host
        self.received: list[StanzaBase] = []
        self._answers: dict[str | None, asyncio.Future[ET.Element]] = {}
        self._client = _Client(host)
        self._gone: asyncio.Future[None] = self._client.loop.create_future()
        self._arrival = asyncio.Event()
        self._client.add_filter("in", self._record)
        self._client.add_filter("out_sync", self._push_on)
        self._client.add_event_handler("disconnected", self._set_gone)
        self._client.add_event_handler("connection_failed", self._connection_failed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self, port: int) -> None:
        self._client.connect_in_the_clear("127.0.0.1", port)
        await self._in_time(self._client.first_features)

    async def close(self) -> None:
        if not self._gone.done():
            await self._client.disconnect()
        self._client.abort()

    async def wait_closed(self, timeout: float = DEADLINE) -> None:
        """Return when the server has ended the stream."""
        await asyncio.wait_for(asyncio.shield(self._gone), timeout)

    @property
    def jid(self) -> JID:
        """The full JID, once authenticated."""
        return self._client.boundjid

    @property
    def features(self) -> ET.Element:
        """The stream features offered before authentication."""
        return self._client.first_features.result().xml

    # Before authentication

    async def preauth(self, token: str | None) -> None:
        """Present an invite token (XEP-0445). None sends the element without the attribute."""
        await self.iq("set", ET.Element(f"{_PARS}preauth", {} if token is None else {"token": token}))

    async def register(self, username: str, password: str, *, timeout: float = DEADLINE, **fields: str) -> None:
        """Ask for an account (XEP-0077), as often as the test likes on one stream."""
        query = ET.Element(f"{_REGISTER}query")
        for name, value in {"username": username, "password": password, **fields}.items():
            ET.SubElement(query, _REGISTER + name).text = value
        await self.iq("set", query, timeout=timeout)

    async def registration_form(self) -> RegistrationForm:
        """What a program shows to somebody who wants to register (XEP-0077)."""
        query = (await self.iq("get", ET.Element(f"{_REGISTER}query"))).find(f"{_REGISTER}query")
        assert query is not None
        form = query.find(f"{_DATA}x")
        return RegistrationForm(
            elements={child.tag.removeprefix(_REGISTER): child.text for child in query if child.tag != f"{_DATA}x"},
            instructions="" if form is None else form.findtext(f"{_DATA}instructions", ""),
            fields={} if form is None else {
                field.get("var", ""): Field(
                    field.get("type", ""), field.get("label"), field.find(f"{_DATA}required") is not None,
                    [value.text or "" for value in field.iterfind(f"{_DATA}value")],
                )
                for field in form.iterfind(f"{_DATA}field")
            },
        )

    async def submit(self, username: str, password: str, **fields: str) -> None:
        """Register with a data form (XEP-0004). `invitation` is what is entered into the field for it."""
        query = ET.Element(f"{_REGISTER}query")
        form = ET.SubElement(query, f"{_DATA}x", {"type": "submit"})
        values = {"FORM_TYPE": "jabber:iq:register", "username": username, "password": password, **fields}
        for name, value in values.items():
            field = ET.SubElement(form, f"{_DATA}field", {"var": INVITATION if name == "invitation" else name})
            ET.SubElement(field, f"{_DATA}value").text = value
        await self.iq("set", query)

    async def authenticate(self, username: str, password: str) -> None:
        """Log in on this stream. A refusal has the SASL condition and type "auth"."""
        outcome: asyncio.Future[ET.Element | None] = self._client.loop.create_future()

        def settle(failure: object) -> None:
            if not outcome.done():
                outcome.set_result(failure.xml if isinstance(failure, StanzaBase) else None)

        with (
            self._client.event_handler("failed_auth", settle),
            self._client.event_handler("session_start", settle),
        ):
            await self._client.proceed(JID(f"{username}@{self.host}"), password)
            failure = await self._in_time(outcome)
        if failure is not None:
            condition = next(child.tag.removeprefix(_SASL) for child in failure if child.tag != f"{_SASL}text")
            raise Refused(condition, "auth", failure.findtext(f"{_SASL}text", ""), failure)

    # With a session

    async def remove_account(self) -> None:
        """Give up the account of this session (XEP-0077)."""
        query = ET.Element(f"{_REGISTER}query")
        ET.SubElement(query, f"{_REGISTER}remove")
        await self.iq("set", query)

    def send_presence(
        self, to: str | None = None, type: str | None = None, token: str | None = None, show: str | None = None
    ) -> None:
        """`type="subscribe"` with a `token` is a pre-authenticated subscription (XEP-0379)."""
        presence = self._client.make_presence(pto=to, ptype=type, pshow=show)
        if token is not None:
            presence.append(ET.Element(f"{_PARS}preauth", {"token": token}))
        presence.send()

    async def expect_presence(self, type: str | None = None, sender: str | None = None) -> StanzaBase:
        """The first presence of this type (None: available) from this bare JID, already here or still to come."""
        return await self.expect(
            lambda stanza: stanza.name == "presence"
            and stanza.xml.get("type") == type
            and (sender is None or JID(stanza.xml.get("from")).bare == sender)
        )

    async def expect(self, predicate: Callable[[StanzaBase], bool], timeout: float = DEADLINE) -> StanzaBase:
        """The first stanza that fits, whether already in `received` or still to come."""
        async def search() -> StanzaBase:
            looked_at = 0
            while True:
                for stanza in self.received[looked_at:]:
                    looked_at += 1
                    if predicate(stanza):
                        return stanza
                self._arrival.clear()
                await self._arrival.wait()

        return await self._in_time(search(), timeout)

    async def roster(self) -> dict[str, RosterItem]:
        answer = await self.iq("get", ET.Element(f"{_ROSTER}query"))
        return {
            item.attrib["jid"]: RosterItem(
                item.get("subscription", "none"),
                item.get("ask"),
                frozenset(group.text or "" for group in item.iterfind(f"{_ROSTER}group")),
            )
            for item in answer.iterfind(f"{_ROSTER}query/{_ROSTER}item")
        }

    async def command(
        self,
        node: str,
        *,
        action: str = "execute",
        session: str | None = None,
        form: Mapping[str, str] | None = None,
        to: str | None = None,
    ) -> Command:
        """One stage of an ad-hoc command of the host; the next stage takes the `session` it gave and the `form`."""
        request = ET.Element(f"{_COMMANDS}command", {"node": node, "action": action})
        if session is not None:
            request.set("sessionid", session)
        if form is not None:
            submitted = ET.SubElement(request, f"{_DATA}x", {"type": "submit"})
            for name, value in form.items():
                data_field = ET.SubElement(submitted, f"{_DATA}field", {"var": name})
                ET.SubElement(data_field, f"{_DATA}value").text = value
        answer = (await self.iq("set", request, to=to or self.host)).find(f"{_COMMANDS}command")
        assert answer is not None
        data_form = answer.find(f"{_DATA}x")
        return Command(
            status=answer.get("status", ""),
            session=answer.get("sessionid", ""),
            form={
                entry.get("var", ""): [value.text or "" for value in entry.iterfind(f"{_DATA}value")]
                for entry in answer.iterfind(f"{_DATA}x/{_DATA}field")
            },
            form_type=None if data_form is None else data_form.get("type"),
            notes=tuple(note.text or "" for note in answer.iterfind(f"{_COMMANDS}note")),
            xml=answer,
        )

    # On any stream

    async def iq(self, type: str, payload: ET.Element, to: str | None = None, timeout: float = DEADLINE) -> ET.Element:
        """Send an IQ and return the result stanza's XML."""
        request: Iq = self._client.make_iq(id=self._client.new_id(), ito=to)
        request["type"] = type
        request.append(payload)
        # Not the future of `request.send`: newer ones of slixmpp drop an error whose condition they do not know.
        answer = self._answers[request["id"]] = self._client.loop.create_future()
        self._client.send(request)
        xml = await self._in_time(answer, timeout)
        if xml.get("type") == "error":
            raise Refused.from_stanza(xml)
        return xml

    def _push_on(self, stanza: StanzaBase) -> StanzaBase:
        """Expat, as of its fixes of 2024, keeps what came in pieces until much more has come: white space will do."""
        length = len(str(stanza))
        if length > 4096:
            self._client.loop.call_soon(self._client.send_raw, " " * 2 * length)
        return stanza

    def _record(self, stanza: StanzaBase) -> StanzaBase:
        self.received.append(stanza)
        self._arrival.set()
        if stanza.name == "iq" and stanza.xml.get("type") in ("result", "error"):
            answer = self._answers.pop(stanza.xml.get("id"), None)
            if answer and not answer.done():
                answer.set_result(stanza.xml)
        return stanza

    def _set_gone(self, _: object) -> None:
        if not self._gone.done():
            self._gone.set_result(None)

    def _connection_failed(self, error: object) -> None:
        """slixmpp would try again for ever."""
        self._client.cancel_connection_attempt()
        self._set_gone(error)

    async def _in_time(self, answer: Awaitable[T], timeout: float = DEADLINE) -> T:
        awaited = asyncio.ensure_future(answer)
        await asyncio.wait({awaited, self._gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if awaited.done():
            return awaited.result()
        awaited.cancel()
        if self._gone.done():
            raise ConnectionError("the stream was closed")
        raise TimeoutError(f"nothing in {timeout} s")


async def open_stream(server: Prosody, host: str = "example.com") -> Stream:
    """A stream that has read the server's features and not authenticated."""
    stream = Stream(host)
    try:
        await stream.connect(server.c2s)
    except BaseException:
        await stream.close()
        raise
    return stream


async def login(server: Prosody, username: str, password: str, host: str = "example.com") -> Stream:
    """A stream with a session and no presence sent yet."""
    stream = await open_stream(server, host)
    try:
        await stream.authenticate(username, password)
    except BaseException:
        await stream.close()
        raise
    return stream
