"""A real browser: Debian's Chromium, driven by Playwright, in which https://example.com/ is a server of the tests."""

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from prosody import CHECKOUT
from seed import Seed

sys.path.insert(0, str(CHECKOUT / "target" / "playwright"))  # spec/machine.sh has put it there

from playwright.async_api import Page, async_playwright, expect  # noqa: E402

_TIMEOUT = 20_000
expect.set_options(timeout=_TIMEOUT)

#: No phoning home, and a root user's sandbox is none.
_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
)


class Browser:
    """`page` is the open tab. `troubles` holds what a person would see in the developer tools' console in red."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.troubles: list[str] = []
        page.on("pageerror", lambda error: self.troubles.append(str(error)))
        page.on("requestfailed", lambda request: self.troubles.append(f"{request.url}: {request.failure}"))
        page.on("response", lambda response: response.status >= 400 and self.troubles.append(
            f"{response.url}: {response.status}"
        ))


@asynccontextmanager
async def open_browser(server: Seed) -> AsyncIterator[Browser]:
    """Starts with an empty profile that is gone afterwards. Nothing but the server can be reached."""
    rules = f"MAP example.com:443 127.0.0.1:{server.https}, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(
            executable_path="/usr/bin/chromium", headless=True, args=[*_FLAGS, f"--host-resolver-rules={rules}"]
        )
        try:
            context = await chromium.new_context(ignore_https_errors=True)
            context.set_default_timeout(_TIMEOUT)
            yield Browser(await context.new_page())
        finally:
            await chromium.close()
