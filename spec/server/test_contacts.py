"""Becoming a contact by an invite (XEP-0379): exactly one answer whoever is online, and one use for one contact.

Over slixmpp and over raw streams: those of a client and of a component, whose JIDs are not of this server.
"""

import asyncio
import base64
import hashlib
import re
import sqlite3
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager, closing
from typing import Any, Self

import pytest

from client import DEADLINE, RosterItem, Stream, login
from prosody import CHECKOUT, VERSIONS, Prosody

PASSWORD = "under the balcony"
HOST, OTHER_HOST, COMPONENT, SECRET = "example.com", "other.example", "gate.example.net", "sesame"
#: Keeps invites in its own storage.
OWN_HOST = "own.example"

XEP_0379 = pytest.mark.matrix("XEP-0379, what is ours")


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Prosody]:
    """Shared by the tests: each uses names of its own."""
    with Prosody(
        request.param, plugin_paths=(CHECKOUT / "lua",),
        modules=("register_ibr", "presence", "invites", "invites_register"),
        hosts={HOST: "", OWN_HOST: 'invite_storage = "prosody"', OTHER_HOST: f'Component "{COMPONENT}"\ncomponent_secret = "{SECRET}"'},
        config='storage = { roster = "spec_fault" };',
    ) as server:
        server.config += f'\ncomponent_ports = {{ {server.https} }}; component_interfaces = {{ "127.0.0.1" }};'
        server.start()
        yield server


class Names:
    """Of one test: each has its own inviter and contacts on the shared server."""

    def __init__(self, server: Prosody, test: str) -> None:
        self._server = server
        self._test = hashlib.sha256(test.encode()).hexdigest()[:8]

    def __call__(self, name: str, host: str = HOST) -> str:
        """Makes the account; its name."""
        username = f"{name}-{self._test}"
        self._server.add_user(username, PASSWORD, host)
        return username


@pytest.fixture
def user(server: Prosody, request: pytest.FixtureRequest) -> Names:
    return Names(server, request.node.name)


def contact_token(server: Prosody, inviter: str, host: str = HOST, **wanted: Any) -> str:
    return server.eval(
        """
        if args.wanted.max_uses == "unlimited" then args.wanted.max_uses = math.huge; end
        args.wanted.kind, args.wanted.username = "contact", args.inviter;
        return assert(module:depends("invites").create_invite(args.wanted)).token;
        """,
        host=host, inviter=inviter, wanted=wanted,
    )


def uses(server: Prosody, token: str) -> list[str]:
    """Who used an invite, in the order of their names; no claim on it is left."""
    digest = hashlib.sha256(token.encode()).digest()
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database:
        assert database.execute("SELECT count(*) FROM claim WHERE digest = ?", [digest]).fetchone() == (0,)
        found = database.execute("SELECT invitee FROM redemption WHERE digest = ? ORDER BY invitee", [digest]).fetchall()
        assert database.execute("SELECT uses FROM invite WHERE digest = ?", [digest]).fetchone() == (len(found),)
    return [invitee for (invitee,) in found]


def item_of(server: Prosody, username: str, contact: str, host: str = HOST) -> tuple[str, bool, bool]:
    """What the roster of a user, online or not, says of a contact: subscription, asked, is asked."""
    return server.eval(
        """
        local roster = require "core.rostermanager".load_roster(args.username, module.host);
        local item = roster[args.contact] or { subscription = "none" };
        return item.subscription, item.ask ~= nil, roster[false].pending[args.contact] ~= nil;
        """,
        host=host, username=username, contact=contact,
    )


def set_item(
    server: Prosody, username: str, contact: str, subscription: str, ask: bool, pending: bool, approved: bool = False
) -> None:
    server.eval(
        """
        local rostermanager = require "core.rostermanager";
        local roster = rostermanager.load_roster(args.username, module.host);
        roster[args.contact] = {
            subscription = args.subscription, ask = args.ask and "subscribe" or nil;
            approved = args.approved and "true" or nil, groups = {};
        };
        roster[false].pending[args.contact] = args.pending or nil;
        assert(rostermanager.save_roster(args.username, module.host, roster, args.contact));
        """,
        username=username, contact=contact, subscription=subscription, ask=ask, pending=pending, approved=approved,
    )


@asynccontextmanager
async def failing_roster(server: Prosody, writes: Iterable[int]) -> AsyncIterator[None]:
    """The writes of rosters with these numbers fail, counted from now."""
    switch = 'module:shared("/example.com/storage_spec_fault/switch")'
    server.eval(
        f"""
        local fails, count = {{}}, 0;
        for _, number in ipairs(args.writes) do fails[number] = true; end
        {switch}.failing = setmetatable({{}}, {{ __index = function (_, store)
            if store ~= "roster" then return nil; end
            count = count + 1;
            return fails[count];
        end }});
        """,
        writes=list(writes),
    )
    yield
    server.eval(f"{switch}.failing = {{}};")


async def interested(server: Prosody, username: str, host: str = HOST) -> Stream:
    """Logged in, with the roster, and available."""
    stream = await login(server, username, PASSWORD, host)
    await stream.roster()
    stream.send_presence()
    return stream


async def answers(stream: Stream, sender: str, type: str = "subscribed") -> int:
    """How many such presences came from somebody, once all that was sent so far has been handled."""
    await stream.roster()
    return sum(
        stanza.name == "presence" and stanza.xml.get("type") == type and stanza.xml.get("from") == sender
        for stanza in stream.received
    )


# Whoever is online


@XEP_0379
@pytest.mark.parametrize("kind", ["contact", "account-and-contact"])
async def test_whose_inviter_is_offline_is_a_contact_at_once(server: Prosody, user: Names, kind: str) -> None:
    inviter, contact = user("juliet"), user("romeo")
    token = contact_token(server, inviter, allow_registration=kind != "contact")
    async with await interested(server, contact) as romeo:
        romeo.send_presence(f"{inviter}@{HOST}", "subscribe", token)
        assert await answers(romeo, f"{inviter}@{HOST}") == 1
        assert await romeo.roster() == {f"{inviter}@{HOST}": RosterItem("both")}
        assert uses(server, token) == [f"{contact}@{HOST}"]
        async with await interested(server, inviter) as juliet:
            assert await juliet.roster() == {f"{contact}@{HOST}": RosterItem("both")}
            await juliet.expect_presence(None, f"{contact}@{HOST}")
            await romeo.expect_presence(None, f"{inviter}@{HOST}")
            # Nobody is asked for anything any more.
            assert await answers(juliet, f"{contact}@{HOST}", "subscribe") == 0
            assert await answers(romeo, f"{inviter}@{HOST}") == 1


async def test_every_resource_of_the_contact_learns_of_it_once_or_when_it_asks(server: Prosody, user: Names) -> None:
    inviter, contact = user("juliet"), user("romeo")
    inviter_jid = f"{inviter}@{HOST}"
    token = contact_token(server, inviter)
    async with (
        await login(server, contact, PASSWORD) as asking,
        await interested(server, contact) as away,
        await interested(server, contact) as other,
    ):
        # Neither available nor interested in the roster.
        asking.send_presence(inviter_jid, "subscribe", token)
        away.send_presence(show="away")
        await other.expect(lambda stanza: 'subscription="both"' in str(stanza))
        assert [await answers(stream, inviter_jid) for stream in (away, other)] == [1, 1]
        for stream in (asking, away, other):
            assert await stream.roster() == {inviter_jid: RosterItem("both")}
    assert item_of(server, inviter, f"{contact}@{HOST}") == ("both", False, False)


@pytest.mark.parametrize("state", ["two resources, one away", "not available", "not interested"])
async def test_whose_inviter_is_online_gets_one_answer_too(server: Prosody, user: Names, state: str) -> None:
    inviter, contact = user("juliet"), user("romeo")
    inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{contact}@{HOST}"
    token = contact_token(server, inviter)
    async with await login(server, inviter, PASSWORD) as first, await login(server, inviter, PASSWORD) as second:
        if state == "two resources, one away":
            for stream in (first, second):
                await stream.roster()
                stream.send_presence()
            second.send_presence(show="away")
        else:
            await second.close()
            if state == "not available":
                await first.roster()
        async with await interested(server, contact) as romeo:
            romeo.send_presence(inviter_jid, "subscribe", token)
            assert await answers(romeo, inviter_jid) == 1
            assert (await romeo.roster())[inviter_jid] == RosterItem("to")
            await romeo.expect_presence("subscribe", inviter_jid)
            romeo.send_presence(inviter_jid, "subscribed")
            assert (await romeo.roster())[inviter_jid] == RosterItem("both")
            assert await answers(romeo, inviter_jid) == 1
        assert (await first.roster())[contact_jid] == RosterItem("both")
    assert uses(server, token) == [contact_jid]


async def test_a_contact_on_another_host_of_this_server_is_answered_too(server: Prosody, user: Names) -> None:
    inviter, contact = user("juliet"), user("romeo", OTHER_HOST)
    inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{contact}@{OTHER_HOST}"
    token = contact_token(server, inviter)
    async with await interested(server, contact, OTHER_HOST) as romeo:
        romeo.send_presence(inviter_jid, "subscribe", token)
        assert await answers(romeo, inviter_jid) == 1
        assert await romeo.roster() == {inviter_jid: RosterItem("both")}
    assert item_of(server, inviter, contact_jid) == ("both", False, False)
    assert uses(server, token) == [contact_jid]


#: What the rosters said before, inviter's and contact's (subscription, asked, is asked, has approved beforehand); what they
#: say when the inviter is offline; whether it took a use.
BEFORE = {
    "the inviter asked": (("none", True, False), ("none", False, True), ("both", "both"), True),
    "the contact asked": (("none", False, True), ("none", True, False), ("both", "both"), True),
    "both asked": (("none", True, True), ("none", True, True), ("both", "both"), True),
    "the inviter approved it": (("none", False, False, True), ("none", False, False), ("both", "both"), True),
    "the contact approved it": (("none", False, False), ("none", False, False, True), ("both", "both"), True),
    "the inviter sees the contact": (("to", False, False), ("from", False, False), ("both", "both"), True),
    "the contact was never answered": (("from", False, False), ("none", True, False), ("from", "to"), False),
    "the contact lost one half": (("both", False, False), ("from", False, False), ("both", "both"), False),
}


@pytest.mark.parametrize("is_online", [False, True], ids=["offline", "online"])
async def test_whatever_the_rosters_said_before_there_is_one_answer(
    server: Prosody, user: Names, is_online: bool
) -> None:
    for number, (what, (of_inviter, of_contact, expected, is_used)) in enumerate(BEFORE.items()):
        inviter, contact = user(f"juliet{number}"), user(f"romeo{number}")
        inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{contact}@{HOST}"
        set_item(server, inviter, contact_jid, *of_inviter)
        set_item(server, contact, inviter_jid, *of_contact)
        token = contact_token(server, inviter)
        juliet = await interested(server, inviter) if is_online else None
        async with await interested(server, contact) as romeo:
            if juliet and of_contact[1] and of_inviter[0] == "from":
                # mod_presence has asked once more for the contact, and was answered.
                assert await answers(romeo, inviter_jid) == 1, what
            else:
                romeo.send_presence(inviter_jid, "subscribe", token)
                assert await answers(romeo, inviter_jid) == 1, what
        if juliet:
            await juliet.close()
            assert item_of(server, inviter, contact_jid)[0] in ("from", "both"), what
            assert item_of(server, contact, inviter_jid)[0] in ("to", "both"), what
        else:
            found = item_of(server, inviter, contact_jid), item_of(server, contact, inviter_jid)
            assert found == ((expected[0], False, False), (expected[1], False, False)), what
        assert uses(server, token) == ([contact_jid] if is_used else []), what


# Raw streams


class Raw:
    """A stream of bytes; `text` is all that came in."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self.text = ""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        self._writer.close()

    def send(self, xml: str) -> None:
        self._writer.write(xml.encode())

    async def read_until(self, pattern: str) -> re.Match[str]:
        """The first match in what came in since the last one."""
        start = len(self.text)
        while not (found := re.search(pattern, self.text[start:])):
            received = await asyncio.wait_for(self._reader.read(4096), DEADLINE)
            assert received, self.text
            self.text += received.decode()
        return found

    async def ask(self, xml: str, pattern: str) -> re.Match[str]:
        self.send(xml)
        return await self.read_until(pattern)

    async def settle(self, number: int) -> str:
        """All that came in until now, once all that was sent so far has been handled."""
        iq = f"<iq type='get' to='{HOST}' id='settle{number}'{self.stamp}><query xmlns='urn:nobody:knows'/></iq>"
        await self.ask(iq, f"""id=['"]settle{number}['"]""")
        return self.text

    stamp = ""


async def open_raw(port: int, namespace: str, to: str) -> tuple[Raw, str]:
    """The stream and its id."""
    raw = Raw(*await asyncio.open_connection("127.0.0.1", port))
    header = await raw.ask(
        f"<stream:stream to='{to}' version='1.0' xmlns='{namespace}' xmlns:stream='http://etherx.jabber.org/streams'>",
        """id=['"]([^'"]+)['"]""",
    )
    return raw, header[1]


async def raw_client(server: Prosody, username: str) -> Raw:
    raw, _ = await open_raw(server.c2s, "jabber:client", HOST)
    plain = base64.b64encode(f"\0{username}\0{PASSWORD}".encode()).decode()
    if "</stream:features>" not in raw.text:
        await raw.read_until("</stream:features>")
    await raw.ask(f"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>{plain}</auth>", "<success")
    await raw.ask(
        f"<stream:stream to='{HOST}' version='1.0' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams'>",
        "</stream:features>",
    )
    bind = "<iq type='set' id='bind'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'/></iq>"
    await raw.ask(bind, """id=['"]bind['"]""")
    await raw.ask("<iq type='get' id='roster'><query xmlns='jabber:iq:roster'/></iq>", """id=['"]roster['"]""")
    return raw


async def raw_component(server: Prosody) -> Raw:
    raw, stream_id = await open_raw(server.https, "jabber:component:accept", COMPONENT)
    digest = hashlib.sha1((stream_id + SECRET).encode()).hexdigest()
    await raw.ask(f"<handshake>{digest}</handshake>", "<handshake")
    raw.stamp = f" from='{COMPONENT}'"
    return raw


def preauth(to: str, token: str, **more: str) -> str:
    attributes = "".join(f" {name.rstrip('_')}='{value}'" for name, value in more.items())
    return f"<presence type='subscribe' to='{to}'{attributes}><preauth xmlns='urn:xmpp:pars:0' token='{token}'/></presence>"


def count(text: str, type: str, sender: str, to: str = "") -> int:
    """Presences of this type from a JID."""
    stanzas = re.findall(r"<presence [^>]*>", text)
    wanted = [f"""type=['"]{type}['"]""", f"""from=['"]{re.escape(sender)}['"]"""]
    wanted += [f"""to=['"]{re.escape(to)}['"]"""] if to else []
    return sum(all(re.search(one, stanza) for one in wanted) for stanza in stanzas)


@pytest.mark.parametrize("to", ["bare", "full"])
async def test_a_client_that_speaks_for_itself_is_answered_once(server: Prosody, user: Names, to: str) -> None:
    inviter, contact = user("juliet"), user("romeo")
    inviter_jid = f"{inviter}@{HOST}"
    token = contact_token(server, inviter)
    async with await raw_client(server, contact) as romeo:
        romeo.send(preauth(inviter_jid if to == "bare" else f"{inviter_jid}/balcony", token))
        text = await romeo.settle(1)
        assert count(text, "subscribed", inviter_jid) == 1
        last = re.findall(r"<item [^>]*>", text)[-1]
        assert re.search("subscription=['\"]both", last) and " ask=" not in last, text
    assert uses(server, token) == [f"{contact}@{HOST}"]


@pytest.mark.parametrize("state", ["offline", "online", "away on one of two"])
@pytest.mark.parametrize("to", ["bare", "full"])
async def test_a_contact_that_is_not_of_this_server_is_answered_once(
    server: Prosody, user: Names, state: str, to: str
) -> None:
    inviter = user("juliet")
    inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{inviter}@{COMPONENT}"
    token = contact_token(server, inviter)
    streams = []
    for _ in range(["offline", "online", "away on one of two"].index(state)):
        streams.append(await interested(server, inviter))
    if len(streams) == 2:
        streams[1].send_presence(show="away")
        await streams[1].roster()
    async with await raw_component(server) as gate:
        gate.send(preauth(inviter_jid if to == "bare" else f"{inviter_jid}/balcony", token, from_=contact_jid))
        text = await gate.settle(1)
        assert count(text, "subscribed", inviter_jid, contact_jid) == 1
        assert count(text, "subscribe", inviter_jid, contact_jid) == 1
        # Only the contact itself grants what it is asked for.
        assert item_of(server, inviter, contact_jid) == ("from", True, False)
        gate.send(f"<presence type='subscribed' to='{inviter_jid}' from='{contact_jid}'/>")
        assert count(await gate.settle(2), "subscribed", inviter_jid, contact_jid) == 1
    for stream in streams:
        assert token not in "".join(map(str, stream.received))
        await stream.close()
    assert item_of(server, inviter, contact_jid) == ("both", False, False)
    assert uses(server, token) == [contact_jid]


# Rosters that cannot be written


@pytest.mark.parametrize("is_online", [False, True], ids=["offline", "online"])
@pytest.mark.parametrize("what", ["request", "approval", "all"])
async def test_a_roster_that_cannot_be_written_costs_no_use(
    server: Prosody, user: Names, is_online: bool, what: str
) -> None:
    # The first write is that of the contact's own request; on 0.11 the second is that of the inviter's in turn.
    first = 3 if server.version.startswith("0.11") else 2
    writes = {"request": [first], "approval": [first + 1], "all": range(first, first + 5)}[what]
    inviter, contact = user("juliet"), user("romeo")
    inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{contact}@{HOST}"
    token = contact_token(server, inviter)
    juliet = await interested(server, inviter) if is_online else None
    async with await interested(server, contact) as romeo:
        async with failing_roster(server, writes):
            romeo.send_presence(inviter_jid, "subscribe", token)
            assert await answers(romeo, inviter_jid) == 0
            assert item_of(server, inviter, contact_jid)[0] == "none"
            assert uses(server, token) == []
        romeo.send_presence(inviter_jid, "subscribe", token)
        assert await answers(romeo, inviter_jid) == 1
    if juliet:
        await juliet.close()
    assert uses(server, token) == [contact_jid]


# One use for one contact


@XEP_0379
@pytest.mark.parametrize("is_online", [False, True], ids=["offline", "online"])
async def test_a_contact_who_comes_again_takes_no_use_from_others(
    server: Prosody, user: Names, is_online: bool
) -> None:
    inviter, contact, others = user("juliet"), user("romeo"), [user("tybalt"), user("paris")]
    inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{contact}@{HOST}"
    tokens = [contact_token(server, inviter, max_uses=2), contact_token(server, inviter, max_uses="unlimited")]
    server.eval(
        """
        local used = module:shared("used");
        if used.count then return; end
        function used.count(event) used[event.invitee] = (used[event.invitee] or 0) + 1; end
        module:hook("invite-used", used.count);
        """
    )
    juliet = await interested(server, inviter) if is_online else None
    for token in tokens:
        async with await interested(server, contact) as romeo:
            for round in range(1, 5):
                romeo.send_presence(inviter_jid, "subscribe", token)
                assert await answers(romeo, inviter_jid) == round
                assert (await romeo.roster())[inviter_jid].subscription in ("to", "both")
                romeo.send_presence(inviter_jid, "unsubscribe")
                romeo.send_presence(inviter_jid, "unsubscribed")
        assert uses(server, token) == [contact_jid]
    assert server.eval('return module:shared("used")[args.jid];', jid=contact_jid) == len(tokens)
    assert server.eval('return module:depends("invites").why(args.token, args.name)', token=tokens[0], name=contact)
    async with await interested(server, others[0]) as tybalt:
        tybalt.send_presence(inviter_jid, "subscribe", tokens[0])
        assert await answers(tybalt, inviter_jid) == 1
    everybody = sorted([contact_jid, f"{others[0]}@{HOST}"])
    assert uses(server, tokens[0]) == everybody

    # Used up, it is good for nobody.
    refused = server.eval('return module:depends("invites").why(args.token, args.name)', token=tokens[0], name=contact)
    assert refused[:2] == (None, "token-invalid")
    for name in (contact, others[1]):
        async with await interested(server, name) as somebody:
            before = await answers(somebody, inviter_jid)
            somebody.send_presence(inviter_jid, "subscribe", tokens[0])
            assert await answers(somebody, inviter_jid) == before
        assert item_of(server, inviter, f"{name}@{HOST}")[::2] == ("none", True)
    assert uses(server, tokens[0]) == everybody
    if juliet:
        await juliet.close()


async def test_whom_the_inviter_removed_asks_as_anybody_does_once_the_token_is_spent(
    server: Prosody, user: Names
) -> None:
    inviter, contact = user("juliet"), user("romeo")
    inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{contact}@{HOST}"
    token = contact_token(server, inviter)
    async with await interested(server, inviter) as juliet, await interested(server, contact) as romeo:
        romeo.send_presence(inviter_jid, "subscribe", token)
        assert await answers(romeo, inviter_jid) == 1
        juliet.send_presence(contact_jid, "unsubscribed")
        juliet.send_presence(contact_jid, "unsubscribe")
        await juliet.roster()
        romeo.send_presence(inviter_jid, "subscribe", token)
        assert await answers(romeo, inviter_jid) == 1
        await juliet.expect_presence("subscribe", contact_jid)
        assert (await romeo.roster())[inviter_jid] == RosterItem("none", "subscribe")
    assert uses(server, token) == [contact_jid]


@pytest.mark.parametrize("how", ["revoked", "paused"])
async def test_an_invite_that_is_closed_lets_its_own_contact_in_no_more(
    server: Prosody, user: Names, how: str
) -> None:
    inviter, contact = user("juliet"), user("romeo")
    inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{contact}@{HOST}"
    token = contact_token(server, inviter, max_uses="unlimited")
    async with await interested(server, contact) as romeo:
        romeo.send_presence(inviter_jid, "subscribe", token)
        assert await answers(romeo, inviter_jid) == 1
        romeo.send_presence(inviter_jid, "unsubscribe")
        await romeo.roster()
        call = "revoke" if how == "revoked" else "pause"
        server.eval(f'assert(module:depends("invites").{call}(args.token))', token=token)
        romeo.send_presence(inviter_jid, "subscribe", token)
        assert await answers(romeo, inviter_jid) == 1
    assert item_of(server, inviter, contact_jid)[2] is True
    assert uses(server, token) == [contact_jid]


async def test_contacts_who_come_at_once_are_told_apart(server: Prosody, user: Names) -> None:
    """With a store that waits: who is known takes no use, and each of the others one of their own."""
    inviter, names = user("juliet"), [user(f"romeo{number}") for number in range(6)]
    inviter_jid = f"{inviter}@{HOST}"
    token = contact_token(server, inviter, max_uses="unlimited")
    known = names[0]
    streams = [await interested(server, name) for name in names]
    streams[0].send_presence(inviter_jid, "subscribe", token)
    assert await answers(streams[0], inviter_jid) == 1
    streams[0].send_presence(inviter_jid, "unsubscribe")
    await streams[0].roster()
    assert uses(server, token) == [f"{known}@{HOST}"]
    switch = 'module:shared("/example.com/storage_spec_fault/switch").seconds = '
    server.eval(f"{switch} 0.02;")
    for stream in streams:
        stream.send_presence(inviter_jid, "subscribe", token)
    found = await asyncio.gather(*(answers(stream, inviter_jid) for stream in streams))
    server.eval(f"{switch} 0;")
    for stream in streams:
        await stream.close()
    assert found == [2, 1, 1, 1, 1, 1]
    assert uses(server, token) == [f"{name}@{HOST}" for name in names]


async def test_a_contact_who_asks_twice_at_once_is_one(server: Prosody, user: Names) -> None:
    inviter, contact = user("juliet"), user("romeo")
    inviter_jid, contact_jid = f"{inviter}@{HOST}", f"{contact}@{HOST}"
    token = contact_token(server, inviter, max_uses="unlimited")
    streams = [await interested(server, contact) for _ in range(3)]
    switch = 'module:shared("/example.com/storage_spec_fault/switch").seconds = '
    server.eval(f"{switch} 0.02;")
    for stream in streams:
        stream.send_presence(inviter_jid, "subscribe", token)
    await asyncio.gather(*(stream.roster() for stream in streams))
    server.eval(f"{switch} 0;")
    for stream in streams:
        assert await answers(stream, inviter_jid) == 1
        assert await stream.roster() == {inviter_jid: RosterItem("both")}
    for stream in streams:
        await stream.close()
    assert item_of(server, inviter, contact_jid) == ("both", False, False)
    assert uses(server, token) == [contact_jid]


async def test_where_no_history_is_kept_contacts_are_made_too(server: Prosody, user: Names) -> None:
    inviter, contact = user("juliet", OWN_HOST), user("romeo", OWN_HOST)
    inviter_jid, contact_jid = f"{inviter}@{OWN_HOST}", f"{contact}@{OWN_HOST}"
    tokens = [
        contact_token(server, inviter, OWN_HOST),
        contact_token(server, inviter, OWN_HOST, allow_registration=True, max_uses="unlimited"),
    ]
    async with await interested(server, contact, OWN_HOST) as romeo:
        for token in tokens:
            before = await answers(romeo, inviter_jid)
            romeo.send_presence(inviter_jid, "subscribe", token)
            assert await answers(romeo, inviter_jid) == before + 1
            assert await romeo.roster() == {inviter_jid: RosterItem("both")}
            assert item_of(server, inviter, contact_jid, OWN_HOST) == ("both", False, False)
            romeo.send_presence(inviter_jid, "unsubscribe")
            romeo.send_presence(inviter_jid, "unsubscribed")
        # The first is spent, the second is not.
        for token, count in ((tokens[0], 2), (tokens[1], 3)):
            romeo.send_presence(inviter_jid, "subscribe", token)
            assert await answers(romeo, inviter_jid) == count
