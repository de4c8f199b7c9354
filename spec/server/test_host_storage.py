"""invite_storage = "prosody": the host's own storage, as the bundled module keeps it, with the same promises."""

import asyncio
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client import Refused, login, open_stream
from prosody import BUNDLED, CHECKOUT, Prosody

Make = Callable[..., Prosody]

MODULES = ("register_ibr", "invites", "invites_register")
DRIVERS = ("internal", "sql", "memory")
CONFIG = 'invite_storage = "prosody";'

CREATE = 'return assert(module:depends("invites").create_account()).token;'

#: The rows of a host, as they stand in its store.
ROWS = """
    local invites = prosody.hosts[module.host].modules.invites.module;
    local host_rows, user_rows = invites:require("bundled").read(module.host);
    for user, rows in pairs(user_rows) do
        if not next(rows) then user_rows[user] = nil; end -- the memory driver keeps an empty table
    end
    return { host = host_rows, users = user_rows };
"""


@pytest.fixture
def make(prosody: Make, native_lua: Path) -> Make:
    """Servers that run our module on their own storage."""

    def made(**options: Any) -> Prosody:
        config = CONFIG + options.pop("config", "")
        return prosody(plugin_paths=options.pop("plugin_paths", (native_lua,)), modules=MODULES, config=config, **options)

    return made


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def conformance_lua(native_lua: Path, tmp_path: Path) -> Path:
    """The module with a library that can run the promises."""
    library = CHECKOUT / "target" / "conformance" / "debug" / "libprosody_invites.so"
    assert library.exists(), "spec/cargo.sh build --features lua54,conformance --target-dir target/conformance"
    plugins = tmp_path / "plugins"
    shutil.copytree(native_lua / "mod_invites", plugins / "mod_invites", ignore=shutil.ignore_patterns("*.so"))
    shutil.copy(library, plugins / "mod_invites" / "prosody_invites.so")
    return plugins


@pytest.mark.storage
def test_every_promise_of_a_store_is_kept(make: Make, conformance_lua: Path, driver: str) -> None:
    hosts = ("example.com", "example.net", "a.example", "b.example")
    server = make(plugin_paths=(conformance_lua,), storage=driver, hosts=dict.fromkeys(hosts, ""))
    names, broken = server.eval(
        """
        local invites = prosody.hosts[module.host].modules.invites.module;
        local bundled = invites:require("bundled");
        local native = package.loaded.prosody_invites;
        local broken = {};
        for _, name in ipairs(native.promises) do
            for _, host in ipairs(args.hosts) do assert(bundled.replace(host, {}, {})); end
            local kept, how = native.keep(name, {
                bundled = {
                    read = bundled.read, get = bundled.get, write = bundled.write;
                    report = function (text) table.insert(broken, name..": "..text); end;
                };
                null = require "util.json".null;
                nodeprep = require "util.encodings".stringprep.nodeprep;
            });
            if not kept then table.insert(broken, name..": "..tostring(how)); end
        end
        return native.promises, broken;
        """,
        hosts=list(hosts), timeout=60,
    )
    assert len(names) > 20
    assert not broken, "\n".join(broken)


async def until(condition: Callable[[], bool], timeout: float = 10) -> None:
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)


def test_the_rows_are_those_of_the_bundled_module(make: Make, prosody: Make, driver: str) -> None:
    """Made by each, and the same but for what is drawn."""
    make_all = """
        local invites = module:depends("invites");
        local made = {
            account = invites.create_account(nil, { roles = { ["prosody:admin"] = true }, note = "n" });
            bound = invites.create_account("mercutio");
            contact = invites.create_contact("juliet", false, { source = "romeo" });
            both = invites.create_contact("juliet", true);
            group = invites.create_group({ "montagues" }, nil, 3600);
        };
        local tokens = {};
        for name, invite in pairs(made) do tokens[invite.token] = name; end
        return tokens, module:open_store("invite_token"):get(nil), module:open_store("invite_token"):get("juliet");
    """
    rows = []
    for server in (make(storage=driver), prosody(modules=MODULES, storage=driver)):
        tokens, host_rows, user_rows = server.eval(make_all)

        def plain(token: str, row: Any, tokens: dict[str, str] = tokens) -> Any:
            if not isinstance(row, dict):
                assert isinstance(row, int)
                return "expires"
            for name in ("created_at", "expires"):
                assert isinstance(row.pop(name), int)
            assert row.pop("token") == token
            row["uri"] = row["uri"].replace(token, "TOKEN")
            # The bundled module leaves false where ours leaves nothing.
            return {name: value for name, value in row.items() if value is not False}

        rows.append(
            [{tokens[token]: plain(token, row) for token, row in each.items()} for each in (host_rows, user_rows)]
        )
    assert rows[0] == rows[1]


async def test_an_invite_is_used_once_and_its_rows_are_gone(make: Make, driver: str) -> None:
    server = make(storage=driver)
    server.add_user("juliet", "pw")
    token = server.eval('return module:depends("invites").create_contact("juliet", true).token')
    streams = [await open_stream(server) for _ in range(4)]
    for stream in streams:
        await stream.preauth(token)
    made = 0
    for index, stream in enumerate(streams):
        try:
            await stream.register(f"user{index}", "pw")
            made += 1
        except Refused:
            pass
        await stream.close()
    assert made == 1
    assert server.eval(ROWS) == {"host": {}, "users": {}}


def test_a_revoked_invite_is_gone_on_the_bundled_module(make: Make, prosody: Make, tmp_path: Path) -> None:
    for driver in ("internal", "sql"):
        data = tmp_path / driver
        ours = make(storage=driver, data_path=data)
        ours.add_user("juliet", "pw")
        tokens = ours.eval(
            """
            local invites = module:depends("invites");
            local revoked, kept = invites.create_contact("juliet", true).token, invites.create_account().token;
            assert(invites.delete_account_invite(revoked));
            return { revoked = revoked, kept = kept };
            """
        )
        ours.stop()
        theirs = prosody(plugin_paths=BUNDLED, modules=MODULES, storage=driver, data_path=data)
        get = 'local invite, err = module:depends("invites").get(args.token, args.user); return invite ~= nil, err;'
        assert theirs.eval(get, token=tokens["kept"])[0] is True
        assert theirs.eval(get, token=tokens["revoked"]) == (False, "token-invalid")
        assert theirs.eval(get, token=tokens["revoked"], user="juliet") == (False, "token-invalid")
        theirs.stop()


def test_what_is_made_elsewhere_between_two_loads_is_seen(make: Make, prosody: Make, tmp_path: Path) -> None:
    ours = make(data_path=tmp_path)
    ours.eval(CREATE)
    ours.stop()
    theirs = prosody(modules=MODULES, data_path=tmp_path)
    token = theirs.eval(CREATE)
    theirs.stop()
    assert make(data_path=tmp_path).eval('return (module:depends("invites").get(args.token)) ~= nil', token=token)


async def test_a_claim_outlives_a_reload(make: Make) -> None:
    server = make(authentication="spec_slow")
    token = server.eval(CREATE)
    server.eval('module:shared("/"..module.host.."/auth_spec_slow/switch").hold = "before"')
    async with await open_stream(server) as stream, await open_stream(server) as rival:
        await stream.preauth(token)
        await rival.preauth(token)
        registration = asyncio.create_task(stream.register("romeo", "pw"))
        await until(lambda: server.eval('return module:shared("/"..module.host.."/auth_spec_slow/switch").held') == 1)
        server.eval('assert(require "core.modulemanager".reload(module.host, "invites"))')
        with pytest.raises(Refused) as refused:
            await rival.register("tybalt", "pw")
        assert refused.value.condition == "resource-constraint"
        server.eval('module:shared("/"..module.host.."/auth_spec_slow/switch").release()')
        await registration
    assert server.eval(ROWS) == {"host": {}, "users": {}}


@pytest.mark.parametrize("call", ["create_account(nil, { n = 0/0 })", "create_group({}, nil, math.huge)"])
def test_what_a_driver_cannot_keep_is_refused_and_spoils_nothing(make: Make, driver: str, call: str) -> None:
    server = make(storage=driver)
    kept = server.eval(CREATE)
    result = server.eval(f'local invite, err = module:depends("invites").{call}; return invite ~= nil, err;')
    can_be_kept = driver != "sql" and "huge" in call
    assert result == ((True, None) if can_be_kept else (False, "feature-not-implemented"))
    rows = server.eval(ROWS)["host"]
    assert len(rows) == 1 + can_be_kept
    assert kept in rows
    assert ("cannot be kept in this storage" in server.log()) is not can_be_kept


def test_a_failed_write_changes_nothing(make: Make) -> None:
    server = make(storage="spec_fault")
    server.add_user("juliet", "pw")
    token = server.eval(CREATE)
    outcome = server.eval(
        """
        local invites, switch = module:depends("invites"), module:shared("/"..module.host.."/storage_spec_fault/switch");
        switch.failing.invite_token = true;
        local made, create_err = invites.create_contact("juliet", true);
        local used, use_err = invites.get(args.token):use();
        local deleted, delete_err = invites.delete_account_invite(args.token);
        switch.failing.invite_token = nil;
        return made == nil, create_err, used == nil, use_err, deleted == nil, delete_err, invites.get(args.token) ~= nil;
        """,
        token=token,
    )
    err = "internal-server-error"
    assert outcome == (True, err, True, err, True, err, True)
    assert list(server.eval(ROWS)["host"]) == [token]
    assert server.eval('return module:depends("invites").get(args.token):use()', token=token) is True


async def test_a_driver_that_waits_is_refused_at_load_and_registration_stays_closed(make: Make) -> None:
    server = make(storage='internal', config='storage = { invite_token = "spec_waits" };')
    assert "waits in a coroutine" in server.log()
    assert server.eval('return module:depends("invites").create_account()') == (None, "internal-server-error")
    async with await open_stream(server) as stream:
        with pytest.raises(Refused):
            await stream.register("romeo", "pw")


def test_a_driver_that_waits_later_is_refused_from_then_on_and_writes_nothing(make: Make) -> None:
    server = make(storage="spec_fault")
    made, condition = server.eval(
        """
        module:shared("/"..module.host.."/storage_spec_fault/switch").seconds = 0.02;
        local invite, condition = module:depends("invites").create_account();
        module:shared("/"..module.host.."/storage_spec_fault/switch").seconds = 0;
        return invite ~= nil, condition;
        """
    )
    assert (made, condition) == (False, "internal-server-error")
    assert "waits in a coroutine" in server.log()
    # Past the moment at which the driver would have gone on.
    server.eval(
        """
        local async = require "util.async";
        local wait, done = async.waiter();
        require "util.timer".add_task(0.1, done);
        wait();
        """
    )
    assert server.eval('return module:depends("invites").create_account()') == (None, "internal-server-error")
    assert server.eval('return module:open_store("invite_token"):get(nil)') is None
