"""What the bundled module stored is good here after the switch, and nothing that was spent comes back."""

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import BUNDLED, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")

MAKE_ONE_OF_EACH = """
    local invites = module:depends("invites");
    local additional_data = { roles = { ["prosody:admin"] = true }, note = "by hand" };
    return {
        account = invites.create_account(nil, additional_data).token;
        bound = invites.create_account("CA-Mercutio").token;
        contact = invites.create_contact("juliet", false).token;
        both = invites.create_contact("juliet", "true").token;
        group = invites.create_group({ "montagues" }, nil, 3600.5).token;
        reset = invites.create_account_reset("juliet").token;
        expired = invites.create_account(nil, nil, -10).token;
    };
"""

GET = """
    local invite, err = prosody.hosts[module.host].modules.invites.get(args.token, args.username);
    if not invite then return nil, err; end
    return setmetatable(invite, nil), nil;
"""


def get(server: Prosody, token: str, username: str | None = None) -> tuple[dict[str, Any] | None, str | None]:
    invite, err = server.eval(GET, token=token, username=username)
    return invite, err


@pytest.fixture(params=["internal", "sql"])
def storage(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def moved(prosody: Make, native_lua: Path, storage: str, tmp_path: Path) -> Callable[[bool], Prosody]:
    """The one server there is, now with our module and now with the bundled one, on the same data."""
    running: list[Prosody] = []

    def to(native: bool) -> Prosody:
        for server in running:
            server.stop()
        running[:] = [
            prosody(
                plugin_paths=(native_lua,) if native else BUNDLED, modules=MODULES, storage=storage, data_path=tmp_path
            )
        ]
        return running[0]

    return to


def test_every_kind_that_the_bundled_module_made_is_good_here(moved: Callable[[bool], Prosody]) -> None:
    server = moved(False)
    server.add_user("juliet", "secret", "example.com")
    tokens = server.eval(MAKE_ONE_OF_EACH)
    info = {
        name: server.eval('return (module:depends("invites").get_account_invite_info(args.token))', token=token)
        for name, token in tokens.items()
    }
    server = moved(True)

    account, err = get(server, tokens["account"])
    assert err is None and account is not None
    assert account["additional_data"]["note"] == "by hand"
    assert account["expires"] == info["account"]["expires"]
    bound, _ = get(server, tokens["bound"])
    assert bound is not None and bound["username"] == "ca-mercutio"
    group, _ = get(server, tokens["group"])
    assert group is not None and group["reusable"] is True and isinstance(group["expires"], int)
    both, _ = get(server, tokens["both"])
    assert both is not None and both["inviter"] == "juliet"
    assert get(server, tokens["both"], "juliet")[1] is None
    assert get(server, tokens["contact"], "juliet")[1] is None
    assert get(server, tokens["contact"])[1] == "token-invalid"
    reset, _ = get(server, tokens["reset"])
    assert reset is not None and reset["additional_data"]["allow_reset"] == "juliet"
    assert get(server, tokens["expired"])[1] in ("token-invalid", "token-expired")

    stored = server.eval(
        'return (module:depends("invites").get_account_invite_info(args.token))', token=tokens["both"]
    )
    assert stored["allow_registration"] == info["both"]["allow_registration"]
    assert "Imported 6 invites" in server.log()


def test_what_was_imported_once_is_not_imported_again(moved: Callable[[bool], Prosody]) -> None:
    tokens = moved(False).eval(MAKE_ONE_OF_EACH)
    server = moved(True)
    assert server.eval('return (module:depends("invites").use(args.token))', token=tokens["account"]) is True
    assert server.eval('return (module:depends("invites").delete_account_invite(args.token))', token=tokens["group"])
    made_meanwhile = moved(False).eval('return (module:depends("invites").create_account()).token')
    server = moved(True)
    assert get(server, tokens["account"])[1] == "token-invalid"
    assert get(server, tokens["group"])[1] == "token-invalid"
    assert get(server, made_meanwhile)[1] is None
    assert "Imported 1 invites" in server.log()


def test_the_bundled_store_is_left_as_it_was(moved: Callable[[bool], Prosody]) -> None:
    tokens = moved(False).eval(MAKE_ONE_OF_EACH)
    server = moved(True)
    assert server.eval('return (module:depends("invites").use(args.token))', token=tokens["account"]) is True
    server = moved(False)
    assert get(server, tokens["bound"])[1] is None
    assert get(server, tokens["account"])[1] is None


def test_what_is_pending_here_is_good_on_the_bundled_module_after_an_export(moved: Callable[[bool], Prosody]) -> None:
    bundled_tokens = moved(False).eval(MAKE_ONE_OF_EACH)
    server = moved(True)
    server.add_user("juliet", "secret", "example.com")
    tokens = server.eval(MAKE_ONE_OF_EACH.replace("expired = ", "--"))
    used = server.eval('return module:depends("invites").create_account().token')
    for spent in (used, bundled_tokens["account"], bundled_tokens["both"]):
        assert server.eval('return (module:depends("invites").use(args.token))', token=spent) is True
    for revoked in (tokens["contact"], bundled_tokens["contact"]):
        assert server.eval('return (module:depends("invites").delete_account_invite(args.token))', token=revoked)
    done = server.prosodyctl("mod_invites", "export", "example.com", "--to", "prosody")
    assert (done.returncode, done.stderr) == (0, "")
    server = moved(False)
    for good in ("account", "bound", "group", "reset", "both"):
        assert get(server, tokens[good])[1] is None, good
    assert get(server, tokens["both"], "juliet")[1] is None
    # The newer invites for the same name, and the newer reset, took the place of the imported ones.
    assert get(server, bundled_tokens["group"])[1] is None
    for spent in (used, bundled_tokens["account"], bundled_tokens["both"], bundled_tokens["bound"]):
        assert get(server, spent)[1] == "token-invalid"
    for spent in (tokens["contact"], bundled_tokens["contact"], bundled_tokens["both"]):
        assert get(server, spent, "juliet")[1] == "token-invalid"


def test_an_export_keeps_what_the_bundled_module_made_and_nobody_imported_yet(moved: Callable[[bool], Prosody]) -> None:
    server = moved(False)
    token = server.eval('return module:depends("invites").create_account().token')
    server.stop()
    server = moved(True)
    server.stop()
    done = server.prosodyctl("mod_invites", "export", "example.com", "--to", "prosody")
    assert (done.returncode, done.stderr) == (0, "")
    assert get(moved(False), token)[1] is None


async def test_a_link_from_before_registers_an_account_once(moved: Callable[[bool], Prosody]) -> None:
    token = moved(False).eval(MAKE_ONE_OF_EACH)["account"]
    server = moved(True)
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register("romeo", "secret")
    async with await login(server, "romeo", "secret"):
        pass
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.preauth(token)


async def test_a_link_from_here_registers_an_account_once_after_going_back(moved: Callable[[bool], Prosody]) -> None:
    server = moved(True)
    server.add_user("juliet", "secret")
    tokens = server.eval(MAKE_ONE_OF_EACH.replace("expired = ", "--"))
    async with await open_stream(server) as stream:
        await stream.preauth(tokens["group"])
        await stream.register("benvolio", "secret")
    async with await open_stream(server) as stream:
        await stream.preauth(tokens["both"])
        await stream.register("tybalt", "secret")
    done = server.prosodyctl("mod_invites", "export", "example.com", "--to", "prosody")
    assert (done.returncode, done.stderr) == (0, "")
    server = moved(False)
    for good, name in (("account", "romeo"), ("group", "mercutio")):
        async with await open_stream(server) as stream:
            await stream.preauth(tokens[good])
            await stream.register(name, "secret")
    for spent in ("both", "account"):
        async with await open_stream(server) as stream:
            with pytest.raises(Refused):
                await stream.preauth(tokens[spent])


def test_what_was_used_here_never_comes_back_from_the_bundled_store(moved: Callable[[bool], Prosody]) -> None:
    """However long ago it was: an invite without end is still there."""
    server = moved(False)
    token = server.eval(
        """
        local invites = module:depends("invites");
        local invite = invites.create_account();
        local store, row = module:open_store("invite_token", "map");
        row = store:get(nil, invite.token);
        row.expires = 4000000000;
        assert(store:set(nil, invite.token, row));
        return invite.token;
        """
    )
    server = moved(True)
    use = """
        local invites = module:depends("invites");
        local endless = invites.create_account(nil, nil, math.huge);
        assert(invites.revoke(invites.create_account(nil, nil, math.huge).token));
        return invites.use(args.token), invites.use(endless.token);
    """
    assert server.eval(use, token=token) == (True, True)
    server.stop()
    with closing(sqlite3.connect(server.data_path / "invites.sqlite3")) as database, database:
        long_ago = "UPDATE invite SET created_at = created_at - 100000000, ended_at = ended_at - 100000000"
        assert database.execute(long_ago).rowcount == 3
    done = server.prosodyctl("mod_invites", "purge", "example.com", "--older-than", "1 day")
    made_here = "2 invites were removed from the history of example.com\n"
    assert (done.returncode, done.stderr, done.stdout) == (0, "", made_here)
    assert get(moved(True), token)[1] == "token-invalid"


def test_an_invite_without_end_is_taken_over_without_end(moved: Callable[[bool], Prosody], storage: str) -> None:
    if storage == "sql":
        return  # it writes infinity so that nobody can read the store any more
    token = moved(False).eval(
        """
        local invites, store = module:depends("invites"), module:open_store("invite_token", "map");
        local invite = invites.create_account();
        invite.expires = math.huge;
        assert(store:set(nil, invite.token, invite));
        return invite.token;
        """
    )
    invite, _ = get(moved(True), token)
    assert invite is not None and invite["expires"] == float("inf")


def test_a_16_character_token_of_prosody_0_11_is_good_here(moved: Callable[[bool], Prosody]) -> None:
    server = moved(False)
    server.eval(
        """
        local now = os.time();
        module:open_store("invite_token", "map"):set(nil, "-_abcdefghijklmn", {
            type = "register", jid = module.host, token = "-_abcdefghijklmn", allow_registration = true,
            uri = "xmpp:"..module.host.."?register;preauth=-_abcdefghijklmn", created_at = now, expires = now + 60,
        });
        """
    )
    assert get(moved(True), "-_abcdefghijklmn")[1] is None


def test_rows_that_are_no_invites_are_told_and_keep_no_other_out(moved: Callable[[bool], Prosody]) -> None:
    server = moved(False)
    token = server.eval(
        """
        local now, store = os.time(), module:open_store("invite_token", "map");
        store:set(nil, "elsewhere", { type = "register", jid = "other.example", created_at = now, expires = now + 60 });
        store:set(nil, "odd", { type = "odd", jid = module.host, created_at = now, expires = now + 60 });
        store:set(nil, "timeless", { type = "register", jid = module.host, expires = now + 60 });
        return module:depends("invites").create_account().token;
        """
    )
    server = moved(True)
    assert get(server, token)[1] is None
    told = [line for line in server.log().splitlines() if "was not imported" in line]
    assert len(told) == 3
    assert not any(name in line for line in told for name in ("elsewhere", "timeless"))


def test_host_rows_of_another_shape_are_told_and_keep_no_other_out(moved: Callable[[bool], Prosody]) -> None:
    """One such row would otherwise raise, at every call, in whatever looks at invites."""
    server = moved(False)
    token = server.eval(
        """
        local now, store = os.time(), module:open_store("invite_token", "map");
        store:set(nil, "number", 5);
        store:set(nil, "text", "register");
        store:set(nil, "jid-number", { type = "register", jid = 5, created_at = now, expires = now + 60 });
        store:set(nil, "jid-table", { type = "register", jid = { "a" }, created_at = now, expires = now + 60 });
        store:set(nil, "jid-missing", { type = "register", created_at = now, expires = now + 60 });
        return module:depends("invites").create_account().token;
        """
    )
    server = moved(True)
    assert get(server, token)[1] is None
    assert get(server, "number")[1] == "token-invalid"
    told = [line for line in server.log().splitlines() if "was not imported" in line]
    assert len(told) == 5
    assert all("\terror\t" in line for line in told)
    assert not any(name in line for line in told for name in ("text", "jid-"))


def test_a_store_that_cannot_be_read_is_no_invalid_token(
    prosody: Make, native_lua: Path, tmp_path: Path
) -> None:
    bundled = prosody(modules=MODULES, data_path=tmp_path)
    token = bundled.eval('return module:depends("invites").create_account().token')
    bundled.stop()
    stored = tmp_path / "example%2ecom" / "invite_token.dat"
    content = stored.read_text()
    stored.write_text(content[: len(content) // 2])
    server = prosody(plugin_paths=(native_lua,), modules=MODULES, data_path=tmp_path)
    assert get(server, token)[1] == "internal-server-error"
    assert "stored cannot be taken over" in server.log()
    stored.write_text(content)
    # Not at once: each bad token would have it read. A timer tries again, and a reload.
    assert get(server, token)[1] == "internal-server-error"
    server.eval('assert(require "core.modulemanager".reload(module.host, "invites"))')
    assert get(server, token)[1] is None
