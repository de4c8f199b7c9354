"""What a person or a form supplies is answered, whatever it is: no call raises an error, no stanza stays unanswered.

Only a mistake in the Lua of a module raises an error, see test_contract.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client import Command, Refused, login, open_stream
from prosody import Prosody

Make = Callable[..., Prosody]

MODULES = (
    "register_ibr", "invites", "invites_register", "invites_adhoc", "spec_http_admin_api", "spec_invites_register_api",
)
INVITE, CREATE_ACCOUNT = "urn:xmpp:invite#invite", "urn:xmpp:invite#create-account"
RESET = "xmpp:prosody.im/mod_invites_adhoc#password-reset"

#: Their users get invites without end.
ENDLESS = "endless.example"


@pytest.fixture
def server(prosody: Make, native_lua: Path) -> Iterator[Prosody]:
    hosts = {"example.com": "", ENDLESS: 'invite_expiry = "never";'}
    admins = f'admins = {{ "admin@example.com", "admin@{ENDLESS}" }};'
    server = prosody(plugin_paths=(native_lua,), modules=MODULES, hosts=hosts, config=admins)
    for host in hosts:
        server.add_user("admin", "pw", host)
        server.add_user("juliet", "pw", host)
    yield server
    assert "raceback" not in server.log()


#: Reads JSON as the web modules do, and calls a function of one of them with it.
CALL = """
    local arguments = require "util.json".decode(args.json);
    local api = prosody.hosts[module.host].modules[args.api];
    return api[args.name]((table.unpack or unpack)(arguments, 1, args.n));
"""


def call(server: Prosody, name: str, *arguments: str, api: str = "spec_http_admin_api") -> Any:
    """With arguments that are JSON."""
    return server.eval(CALL, api=api, name=name, json=f"[{','.join(arguments)}]", n=len(arguments))


BAD_TTLS = ("-5", "0", "0.5", '"abc"', '""', "1e300", "-1e300", "true", "[]", '{"a":1}', "99999999999999")
DEEP = '{"x":' * 200 + "1" + "}" * 200


def test_a_value_that_json_brings_is_refused_with_a_condition(server: Prosody) -> None:
    calls = [
        *(("create_account", "null", "null", ttl) for ttl in BAD_TTLS),
        *(("create_group", '["g"]', '"admin"', "null", "null", ttl) for ttl in BAD_TTLS),
        *(("create_reset", '"juliet"', "null", ttl) for ttl in BAD_TTLS),
        *(("create_account", name) for name in ("5", "true", "[]", '{"a":1}', '""', '"a b"', '"a@b"')),
        *(("create_reset", name) for name in ("5", "true", "false", "null", "[]", '""', '"a@b"', '"nobody"')),
        *(
            ("create_account", "null", f'{{"{field}":{value}}}')
            for field, values in {
                "roles": ("5", '"admin"', "true", "[5]", "[[]]"),
                "groups": ("5", '"montagues"', "true", "[5]", '[{"a":1}]'),
                "source": ("5", "true", "[]", '{"a":1}'),
                "allow_reset": ("5", "true", "[]"),
            }.items()
            for value in values
        ),
        *(("create_account", "null", data) for data in ("5", '"text"', "true", DEEP)),
        *(("create_group", groups, '"admin"') for groups in ("5", '"montagues"', "true", "[5]")),
        ("create_group", '["g"]', "5"), ("create_group", '["g"]', '"admin"', "5"),
    ]
    for each in calls:
        answer, condition = call(server, *each)
        assert answer is None, each
        assert condition in ("bad-request", "jid-malformed", "item-not-found"), each
    assert server.eval('for token in module:depends("invites").pending_invites() do return token; end') is None
    assert "Refused: ttl must be a positive number of seconds" in server.log()
    assert "Refused: additional_data.groups must be a list of names" in server.log()
    # A text that is no UTF-8, one of several lines, and one without end: one line of the log, and not long.
    assert server.eval(
        r"""
        local invites, results = module:depends("invites"), {};
        local token = invites.create_account().token;
        for _, ttl in ipairs({ "\255", "1\nforged", ("x"):rep(100000) }) do
            table.insert(results, (select(2, invites.create_account(nil, nil, ttl))));
            table.insert(results, (select(2, invites.extend(token, ttl))));
        end
        return results;
        """
    ) == ["bad-request"] * 6
    assert not any(line.startswith("forged") or len(line) > 1000 for line in server.log().splitlines())


def test_what_json_leaves_out_is_left_out(server: Prosody) -> None:
    for each in (
        ("create_account", "null", "null", "null"), ("create_account", "false", "false", "false"),
        ("create_account", "null", '{"roles":null,"groups":null,"source":null,"note":null}'),
        ("create_account", "null", '{"roles":{"prosody:admin":true},"groups":["g"],"note":{"a":[5]}}', '"60"'),
        ("create_group", "[]", "null", "null", "null", "null"), ("create_reset", '"juliet"', "null", "null"),
    ):
        assert isinstance(call(server, *each), str), each
    assert isinstance(call(server, "list"), str)
    # Nor does what was stored keep anything from being looked at.
    for command in (("list",), ("list", "--show-token"), ("stats",), ("export",), ("check",)):
        done = server.prosodyctl("mod_invites", command[0], "example.com", *command[1:])
        assert "raceback" not in done.stdout + done.stderr
        assert command == ("check",) or done.returncode == 0, done.stderr


def test_tokens_and_names_of_any_type_are_answered(server: Prosody) -> None:
    for token in ("null", "5", "true", "[]", '{"a":1}', '""', '"x"', '"\\u0000"'):
        assert call(server, "info", token, api="spec_invites_register_api") == 404
        assert call(server, "delete", token, api="spec_invites_register_api") == 404
        assert call(server, "register", token, '"romeo"', '"pw"', api="spec_invites_register_api") == 404
        assert call(server, "show", token)[0] is None
        assert call(server, "delete", token) is True
        found = server.eval(
            """
            local invites, token = module:depends("invites"), require "util.json".decode(args.json)[1];
            local results = {};
            for _, f in ipairs({
                "get", "use", "get_account_invite_info", "get_invite_info", "revoke", "pause", "resume", "show", "why",
            }) do
                table.insert(results, not (invites[f](token)) and f);
            end
            table.insert(results, not invites.get(token, token) and "get");
            table.insert(results, not invites.extend(token, token) and "extend");
            return #results;
            """,
            json=f"[{token}]",
        )
        assert found == 11, token
    token = server.eval('return module:depends("invites").create_account().token')
    event = server.eval(
        """
        local results = {};
        for _, name in ipairs({ {}, 5, true }) do
            local event = { username = name, host = module.host, ip = "::1", allowed = true };
            event.validated_invite = module:depends("invites").get(args.token);
            module:fire_event("user-registering", event);
            module:fire_event("user-password-reset", { username = name, host = module.host });
            table.insert(results, module:depends("invites").get(args.token) ~= nil);
        end
        return results;
        """,
        token=token,
    )
    assert event == [True] * 3


async def test_what_the_bundled_module_was_given_makes_an_account_all_the_same(server: Prosody) -> None:
    oddities = ("5", '"text"', "{ roles = 5 }", "{ roles = { 5 } }", '{ groups = "montagues" }', "{ source = { 5 } }")
    tokens = server.eval(
        """
        local store, now, tokens = module:open_store("invite_token", "map"), os.time(), {};
        for i, data in ipairs(args.oddities) do
            local token = ("odd"..i):rep(6);
            assert(store:set(nil, token, {
                type = "register", jid = module.host, token = token, allow_registration = true, created_at = now;
                expires = now + 600, additional_data = assert(load("return "..data))();
                uri = "xmpp:"..module.host.."?register;preauth="..token;
            }));
            table.insert(tokens, token);
        end
        assert(require "core.modulemanager".reload(module.host, "invites"));
        return tokens;
        """,
        oddities=list(oddities),
    )
    for number, token in enumerate(tokens):
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            await stream.register(f"user{number}", "pw")


def test_wishes_that_make_no_sense_are_refused(server: Prosody) -> None:
    wishes = (
        '{ kind = "postal" }', "{ kind = 5 }", "{ max_uses = 0 }", "{ max_uses = -1 }", "{ max_uses = 0/0 }",
        '{ max_uses = "many" }', "{ max_uses = 2^40 }", "{ max_uses = {} }", '{ kind = "contact", username = {} }',
        '{ kind = "contact", username = "juliet", ttl = -1 }', '{ kind = "reset", username = 5 }',
        '{ additional_data = "note" }', '{ username = "a b" }',
    )
    for wish in wishes:
        for create in (f"create_invite({wish})", f"create_invites({wish}, 2)"):
            made, condition = server.eval(f'return module:depends("invites").{create}')
            assert made is None, wish
            assert condition in ("bad-request", "jid-malformed"), wish
    assert server.eval(
        """
        local invites = module:depends("invites");
        local key = invites.create_account().token;
        local results = {};
        for _, ttl in ipairs({ 0, -1, 0/0, 1e300, "soon", {} }) do
            table.insert(results, tostring(select(2, invites.extend(key, ttl))));
        end
        table.insert(results, tostring(invites.list({ state = "gone" })()));
        table.insert(results, tostring(invites.list({ kind = "gone" })()));
        table.insert(results, tostring(select(2, invites.branch(5))));
        table.insert(results, tostring(select(2, invites.revoke_inviter({}))));
        table.insert(results, tostring(select(2, invites.may_invite(true, "contact"))));
        table.insert(results, tostring((invites.revoke(key, "\\255", "\\255"))));
        return results;
        """
    ) == ["bad-request"] * 6 + ["nil"] * 2 + ["jid-malformed"] * 3 + ["true"]


def told(command: Command) -> str:
    assert command.status == "completed"
    assert "uri" not in command.form
    note, = command.notes
    return note


async def test_a_password_reset_is_answered_whatever_is_filled_in(server: Prosody) -> None:
    if server.version.startswith("0."):
        return  # its mod_invites_adhoc has no password reset
    whole = "Give the whole address of the account, such as user@example.com"
    cases = {
        "juliet": whole, "example.com": whole, "@example.com": None, "juliet@": None, "": None, "a b@example.com": None,
        "juliet@other.example": "This command is only for accounts of example.com",
        "nobody@example.com": "There is no such account", "\x7f@example.com": None, "juliet@example.com@x": None,
        "x" * 2000 + "@example.com": None, "/resource": None,
    }
    async with await login(server, "admin", "pw") as stream:
        for filled_in, sentence in cases.items():
            form = await stream.command(RESET)
            assert form.status == "executing"
            fields = {"accountjid": filled_in}
            answer = told(await stream.command(RESET, action="complete", session=form.session, form=fields))
            assert sentence is None or answer == sentence, filled_in
            assert answer
        # The form all at once, without the field, without a form, and a wrong address of an account that is there.
        told(await stream.command(RESET, form={"accountjid": "juliet"}))
        told(await stream.command(RESET, form={"other": "juliet@example.com"}))
        form = await stream.command(RESET)
        assert told(await stream.command(RESET, action="complete", session=form.session)) == "Fill in the form"
        form = await stream.command(RESET)
        assert (await stream.command(RESET, action="cancel", session=form.session)).status == "canceled"
        for filled_in in ("juliet@example.com", "JULIET@EXAMPLE.COM/phone"):
            made = await stream.command(RESET, form={"accountjid": filled_in})
            assert "uri" in made.form, filled_in


async def test_an_invite_without_end_is_shown_by_the_ad_hoc_commands(server: Prosody) -> None:
    async with await login(server, "admin", "pw", ENDLESS) as stream:
        for node in (INVITE, CREATE_ACCOUNT):
            made = await stream.command(node)
            assert made.form["uri"][0].startswith("xmpp:")
            assert made.form_type == "result"


async def test_preauth_is_answered_whatever_its_token(server: Prosody) -> None:
    async with await open_stream(server) as stream:
        for token in (None, "", " ", "x" * 5000, "'\"<>&", "ü", "%00"):
            with pytest.raises(Refused):
                await stream.preauth(token)


def test_commands_with_odd_values_end_without_a_traceback(server: Prosody) -> None:
    odd = b"\xff".decode(errors="surrogateescape")
    token = server.eval('return module:depends("invites").create_account().token')
    for command in (
        ("generate", "example.com", "--note", odd), ("generate", "example.com", "--username", odd),
        ("generate", "example.com", "--expires-after", "1000000y"),
        ("generate", "example.com", "--max-uses", "99999999999"),
        ("generate", "example.com", "--reset", ""), ("generate", "example.com", "--contact", "@"),
        ("revoke", "example.com", token, "--why", odd), ("list", "example.com", "--inviter", odd),
        ("show", "example.com", odd), ("extend", "example.com", token, "--expires-after", "1000000y"),
        ("tree", "example.com", ""), ("why", "example.com", token, "--username", ""), ("list", odd), ("list", ""),
        ("revoke", "example.com", "--inviter", "a@b"),
    ):
        done = server.prosodyctl("mod_invites", *command)
        assert "raceback" not in done.stdout + done.stderr, command
        assert ".lua:" not in done.stderr, (command, done.stderr)
        assert done.returncode in (0, 1, 2)
        assert done.returncode == 0 or done.stderr.strip(), command


#: Calls a command of the shell as it is called from there: its results.
SHELL = """
    local session = { print = function () end };
    local command;
    if prosody.hosts["example.com"].modules.invites.module.items then
        for _, item in ipairs(prosody.hosts["example.com"].modules.invites.module.items["shell-command"] or {}) do
            if item.name == args.name then command = item.handler; end
        end
    end
    command = command or module:shared("/*/admin_shell/env").invite[args.name];
    return command({ session = session }, (table.unpack or unpack)(args.words, 1, args.n));
"""


def test_shell_commands_with_odd_values_say_what_is_wrong(server: Prosody) -> None:
    for name, *words in (
        ("create_account",), ("create_account", 5), ("create_account", {}), ("create_account", "a b@example.com"),
        ("create_account", "example.com", "--max-uses", "0"), ("create_reset", "example.com"),
        ("create_contact", "example.com"), ("show", "example.com"), ("show", "example.com", 5), ("delete", "example.com"),
        ("delete", "example.com", 5), ("pause", "example.com"), ("extend", "example.com"),
        ("extend", "example.com", "x", "--expires-after", "soon"), ("why", "example.com"), ("why", "example.com", True),
        ("list",), ("list", "nowhere.example"), ("history", "example.com", "--limit", "1e30"),
    ):
        answer = server.eval(SHELL, name=name, words=words, n=len(words))
        assert answer[0] is None, (name, words)
        assert isinstance(answer[1], str)
