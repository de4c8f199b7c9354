"""The documentation's fully-featured setup, with the modules as Debian packages them, over HTTPS and XMPP.

What a person sees in a browser is in test_suite_browser.py.
"""

import re
import urllib.parse
from collections.abc import Iterator

import pytest

from client import Refused, login, open_stream
from prosody import VERSIONS
from seed import LINK, MODULES, Seed

PASSWORD = "under the balcony"


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Seed]:
    """Shared by the tests: each uses names of its own."""
    with Seed(request.param, config='admins = { "admin@example.com" };') as server:
        server.start()
        server.add_user("admin", PASSWORD)
        yield server


@pytest.mark.matrix("the seed's configuration, word for word")
def test_every_module_of_the_seed_is_loaded_and_none_complains(server: Seed) -> None:
    loaded = server.eval("""
        local names = {};
        for name in pairs(prosody.hosts[module.host].modules) do table.insert(names, name); end
        return names;
    """)
    assert set(MODULES) <= set(loaded)
    assert server.errors() == []


@pytest.mark.matrix("invites_page")
def test_the_page_of_an_invite_names_the_site_and_the_token_and_leads_to_the_uri(server: Seed) -> None:
    token = server.generate()
    page = server.request(f"/invite?{token}")
    assert page.status == 200
    assert page.headers["link"] == f'<xmpp:example.com?register;preauth={token}>; rel="alternate"'
    assert "Invite to example.com" in page.body
    assert f'href="register?t={token}"' in page.body


@pytest.mark.matrix("invites_page")
def test_the_page_of_a_contact_invite_names_the_inviter(server: Seed) -> None:
    server.add_user("nurse", PASSWORD)
    token = server.eval('return module:depends("invites").create_contact("nurse", true)')["token"]
    page = server.request(f"/invite?{token}")
    assert page.headers["link"] == f'<xmpp:nurse@example.com?roster;preauth={token};ibr=y>; rel="alternate"'
    assert re.search(r"You have been invited to chat\s+with nurse", page.body)


@pytest.mark.matrix("invites_page")
@pytest.mark.parametrize("query", ["", "nonsense", "a%20b", "t=x", "é".encode().hex()])
def test_the_page_of_no_invite_says_so(server: Seed, query: str) -> None:
    page = server.request(f"/invite?{query}")
    assert page.status == 200
    assert "Sorry, it looks like this invite code has expired!" in page.body


@pytest.mark.matrix("register_apps")
def test_the_page_lists_the_apps_and_each_is_set_up_with_the_invite(server: Seed) -> None:
    token = server.generate()
    apps = server.eval("""
        local apps = {};
        for _, app in ipairs(module:shared("register_apps/apps")) do
            table.insert(apps, { id = app.id; name = app.name; image = app.image; has_link = app.magic_link_format ~= nil });
        end
        return apps;
    """)
    page = server.request(f"/invite?{token}").body
    assert {"Conversations", "Gajim"} <= {app["name"] for app in apps}
    for app in apps:
        assert app["name"] in page
        if not app["image"].startswith("http"):
            path = urllib.parse.urlsplit(re.search(rf'src="([^"]*{re.escape(app["image"])})"', page)[1]).path
            assert server.request(path.replace("//", "/")).status == 200, app["name"]
        if app["has_link"]:
            # To a store, which hands the invite on to the app.
            assert f"preauth%3d{token}" in page
        else:
            assert f'invite/setup/{app["id"]}?{token}' in page or f't={token}&amp;c={app["id"]}' in page, app["name"]


@pytest.mark.matrix("register_apps")
def test_the_setup_page_of_an_app_leads_on_with_the_invite(server: Seed) -> None:
    token = server.generate()
    page = server.request(f"/invite/setup/siskin-im?{token}")
    assert page.status == 200
    assert f"xmpp:example.com?register;preauth={token}" in page.body
    assert "Siskin IM" in page.body


@pytest.mark.matrix("http_libjs")
@pytest.mark.parametrize("path", ["bootstrap4/css/bootstrap.min.css", "bootstrap4/js/bootstrap.min.js", "jquery/jquery.min.js"])
def test_what_the_pages_ask_of_bootstrap_and_jquery_is_served(server: Seed, path: str) -> None:
    file = server.request(f"/share/{path}")
    assert file.status == 200
    assert len(file.body) > 10000


@pytest.mark.matrix("invites_register_web")
async def test_the_form_makes_one_account_and_then_leads_to_the_page_that_says_it_is_over(server: Seed) -> None:
    token = server.generate()
    form = server.request(f"/register?t={token}")
    assert form.status == 200
    assert f'name="token" value="{token}"' in form.body

    done = server.request(f"/register?t={token}", {"user": "romeo", "password": PASSWORD, "token": token})
    assert done.status == 200
    assert "romeo@example.com" in done.body
    async with await login(server, "romeo", PASSWORD):
        pass

    for again in (
        server.request(f"/register?t={token}"),
        server.request(f"/register?t={token}", {"user": "paris", "password": PASSWORD, "token": token}),
    ):
        assert again.status == 303
        assert again.headers["location"] == f"https://example.com/invite?t={token}"
    with pytest.raises(Refused, match="not-authorized"):
        await login(server, "paris", PASSWORD)


@pytest.mark.matrix("invites_register_web")
async def test_the_form_takes_the_bound_username_alone(server: Seed) -> None:
    token = server.generate("--username", "juliet")
    form = {"password": PASSWORD, "token": token}
    refused = server.request(f"/register?t={token}", {**form, "user": "mallory"})
    assert re.search("is for the username juliet", refused.body)
    done = server.request(f"/register?t={token}", {**form, "user": "Juliet"})
    assert "juliet@example.com" in done.body
    async with await login(server, "juliet", PASSWORD):
        pass


@pytest.mark.matrix("invites_register")
async def test_a_client_registers_with_the_token_of_the_link_in_band(server: Seed) -> None:
    token = server.generate()
    async with await open_stream(server) as stream:
        # The namespace of the XEP came after the release of Debian 11.
        namespace = "urn:xmpp:invite" if server.version.startswith("0.11") else "urn:xmpp:ibr-token:0"
        assert stream.features.find(f"{{{namespace}}}register") is not None
        with pytest.raises(Refused):
            await stream.register("mercutio", PASSWORD)
        await stream.preauth(token)
        await stream.register("mercutio", PASSWORD)
    async with await login(server, "mercutio", PASSWORD):
        pass
    assert "Invite expired" in server.request(f"/invite?{token}").body


@pytest.mark.matrix("invites_adhoc")
async def test_an_admin_invites_a_contact_who_registers_and_is_one(server: Seed) -> None:
    async with await login(server, "admin", PASSWORD) as admin:
        admin.send_presence()
        command = await admin.command("urn:xmpp:invite#invite")
        assert command.status == "completed"
        (uri,), (page,), (expire,) = command.form["uri"], command.form["landing-url"], command.form["expire"]
        token = page.removeprefix(LINK)
        assert uri == f"xmpp:admin@example.com?roster;preauth={token};ibr=y"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", expire)
        async with await open_stream(server) as stream:
            await stream.preauth(token)
            await stream.register("benvolio", PASSWORD)
        assert (await admin.roster())["benvolio@example.com"].subscription == "both"


@pytest.mark.matrix("invites_adhoc")
async def test_a_user_invites_a_contact_who_has_an_account_elsewhere_and_may_not_register(server: Seed) -> None:
    server.add_user("balthasar", PASSWORD)
    async with await login(server, "balthasar", PASSWORD) as balthasar:
        command = await balthasar.command("urn:xmpp:invite#invite")
        (uri,) = command.form["uri"]
        token = re.fullmatch(r"xmpp:balthasar@example\.com\?roster;preauth=(\w+)", uri)[1]
    async with await open_stream(server) as stream:
        with pytest.raises(Refused, match="forbidden"):
            await stream.preauth(token)


@pytest.mark.matrix("invites_adhoc")
async def test_an_admin_makes_an_account_invite_and_a_user_may_not(server: Seed) -> None:
    server.add_user("peter", PASSWORD)
    async with await login(server, "admin", PASSWORD) as admin:
        command = await admin.command("urn:xmpp:invite#create-account")
        (page,) = command.form["landing-url"]
        invite = server.eval('return module:depends("invites").get(args.token)', token=page.removeprefix(LINK))
        assert invite["type"] == "register"
        assert invite["additional_data"]["source"].startswith("admin@example.com")
    async with await login(server, "peter", PASSWORD) as peter:
        with pytest.raises(Refused, match="forbidden"):
            await peter.command("urn:xmpp:invite#create-account")


@pytest.mark.matrix("prosodyctl mod_invites generate, with and without the server")
def test_the_command_of_the_seed_works_while_the_server_is_down(server: Seed) -> None:
    server.stop()
    token = server.generate()
    server.start()
    assert "Invite to example.com" in server.request(f"/invite?{token}").body
