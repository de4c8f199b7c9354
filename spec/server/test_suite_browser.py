"""What a person with a link does in a browser, from the link to the login, with the documentation's setup."""

import re
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from browser import Browser, open_browser
from client import Refused, login
from prosody import VERSIONS
from seed import LINK, Seed

pytestmark = pytest.mark.matrix("link, invites_page, form, login: in a browser")

PASSWORD = "under the balcony"

#: Icons of the site that the pages name; the site's owner puts them there, or not.
SITE_ICONS = re.compile(r"https://example\.com/(apple-touch-icon|favicon|site\.webmanifest|safari-pinned-tab)")


@pytest.fixture(scope="module", params=VERSIONS)
def server(request: pytest.FixtureRequest) -> Iterator[Seed]:
    """Shared by the tests: each uses names of its own."""
    with Seed(request.param) as server:
        server.start()
        yield server


async def register(browser: Browser, username: str) -> str:
    """Fills the form in and sends it; the text of the page that comes."""
    page = browser.page
    await page.get_by_label("Username").or_(page.locator("input[name=user]")).first.fill(username)
    await page.locator("input[name=password]").fill(PASSWORD)
    await page.get_by_role("button", name="Submit").click()
    await page.wait_for_load_state()
    return await page.locator("body").inner_text()


async def assert_invalid(browser: Browser, link: str) -> None:
    await browser.page.goto(link)
    assert "Sorry, it looks like this invite code has expired!" in await browser.page.locator("body").inner_text()
    picture = browser.page.get_by_alt_text("Sad person holding empty box")
    assert await picture.evaluate("image => image.naturalWidth > 0")


async def test_a_link_leads_a_stranger_to_an_account_and_is_spent(server: Seed) -> None:
    link = LINK + server.generate()
    async with open_browser(server) as browser:
        page = browser.page
        await page.goto(link)
        assert (await page.get_by_role("heading", level=1).inner_text()).strip() == "Invite to example.com"

        # The code for a telephone is drawn, and says where this page is.
        await page.get_by_role("button", name="Scan with mobile device").or_(page.locator("#qr-modal-show")).first.click()
        code = page.locator("#qr-invite-page")
        await code.locator("img").wait_for(state="visible")
        assert await code.get_attribute("title") == link
        colours = await code.locator("canvas").evaluate("""canvas => {
            const pixels = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return [...new Set(new Uint32Array(pixels.buffer))].length;
        }""")
        assert colours >= 2
        await page.locator("#qr-modal .modal-footer button").click()
        await page.locator("#qr-modal").wait_for(state="hidden")

        # The apps for this computer, and after a click all of them.
        shown = page.locator(".client-card:visible h5")
        names = await shown.all_inner_texts()
        assert "Dino" in names and "Siskin IM" not in names
        await page.get_by_text("view all apps.").click()
        assert {"Dino", "Siskin IM", "Conversations"} <= set(await shown.all_inner_texts())

        await page.get_by_role("link", name="register an account manually").click()
        assert page.url == f"https://example.com/register?t={link.removeprefix(LINK)}"
        assert "Register on example.com" in await page.locator("body").inner_text()
        assert "Congratulations!" in await register(browser, "romeo")
        assert await page.locator("input[value='romeo@example.com']").count() == 1

        async with await login(server, "romeo", PASSWORD) as stream:
            assert stream.jid.bare == "romeo@example.com"
        await assert_invalid(browser, link)
        assert [trouble for trouble in browser.troubles if not SITE_ICONS.match(trouble)] == []


async def test_an_app_that_is_chosen_is_set_up_with_the_invite(server: Seed) -> None:
    token = server.generate()
    async with open_browser(server) as browser:
        page = browser.page
        await page.goto(LINK + token)
        # One that knows invites gets it, and one that does not leads to the form, and then says how to go on.
        await page.get_by_text("view all apps.").click()
        await page.locator(".client-card", has_text="Siskin IM").get_by_role("link").click()
        assert page.url == f"https://example.com/invite/setup/siskin-im?{token}"
        assert await page.locator(f'a[href="xmpp:example.com?register;preauth={token}"]').count() > 0

        await page.goto(LINK + token)
        await page.locator(".client-card", has_text="Dino").get_by_role("link").click()
        assert page.url == f"https://example.com/register?t={token}&c=dino"
        assert "Dino" in await register(browser, "benvolio")
    async with await login(server, "benvolio", PASSWORD):
        pass


async def test_a_link_for_one_username_makes_that_account_and_no_other(server: Seed) -> None:
    token = server.generate("--username", "juliet")
    async with open_browser(server) as browser:
        await browser.page.goto(f"https://example.com/register?t={token}")
        assert re.search(
            "is for the username juliet", await register(browser, "mallory")
        )
        with pytest.raises(Refused, match="not-authorized"):
            await login(server, "mallory", PASSWORD)

        # A stranger with another link cannot have the name.
        other = server.generate()
        await browser.page.goto(f"https://example.com/register?t={other}")
        assert "This username is reserved" in await register(browser, "juliet")

        await browser.page.goto(f"https://example.com/register?t={token}")
        assert "Congratulations!" in await register(browser, "juliet")
        async with await login(server, "juliet", PASSWORD):
            pass
        await assert_invalid(browser, LINK + token)


async def test_a_link_for_a_group_makes_accounts_until_it_expires_and_each_joins(server: Seed) -> None:
    server.eval("""
        module:hook("user-registered", function (event)
            local data = event.validated_invite.additional_data;
            module:open_store("spec_groups"):set(event.username, data.groups);
        end);
    """)
    link = server.eval('return module:depends("invites").create_group({ "montagues" }, nil, 3600).landing_page')
    async with open_browser(server) as browser:
        for name in ("abram", "balthasar"):
            await browser.page.goto(link)
            await browser.page.get_by_role("link", name="register an account manually").click()
            assert "Congratulations!" in await register(browser, name)
            async with await login(server, name, PASSWORD):
                pass
            assert server.eval('return module:open_store("spec_groups"):get(args.name)', name=name) == ["montagues"]
        server.eval(
            'assert(module:depends("invites").delete_account_invite(args.token))', token=link.removeprefix(LINK)
        )
        await assert_invalid(browser, link)


async def test_a_form_that_is_sent_too_late_leads_to_the_page_that_says_it_is_over(server: Seed) -> None:
    token = server.generate()
    async with open_browser(server) as browser:
        await browser.page.goto(f"https://example.com/register?t={token}")
        server.eval('assert(module:depends("invites").delete_account_invite(args.token))', token=token)
        await register(browser, "tybalt")
        assert browser.page.url == f"https://example.com/invite?t={quote(token)}"
        assert "Invite expired" in await browser.page.locator("body").inner_text()
    with pytest.raises(Refused, match="not-authorized"):
        await login(server, "tybalt", PASSWORD)
