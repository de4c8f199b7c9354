"""The setup that the documentation of mod_invites shows, word for word, with what an operator installs for it."""

import shutil
import ssl
import subprocess
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any

from prosody import CHECKOUT, COMMUNITY_MODULES, Prosody

#: The documentation's section of the VirtualHost "example.com", unchanged.
SECTION = """\
    invites_page = "https://example.com/invite?{invite.token}"
    http_external_url = "https://example.com/"
    http_paths = {
        invites_page = "/invite";
        invites_register_web = "/register";
    }
    modules_enabled = {
        "invites";
        "invites_adhoc";
        "invites_page";
        "invites_register";
        "invites_register_web";

        "http_libjs"; -- See 'external dependencies' below
    }
"""
#: What that section loads, with what these modules load by themselves.
MODULES = (
    "invites", "invites_adhoc", "invites_page", "invites_register", "invites_register_web", "http_libjs", "register_apps",
)
LINK = "https://example.com/invite?"

NATIVE = (CHECKOUT / "lua",)


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: str


class Seed(Prosody):
    """A server with the seed's setup for example.com, reached by HTTPS on the port `https`.

    modules       more of them, on every host, as `register_ibr` is: without it mod_invites_register has no clients
    borrowed      community modules that the server's own release lacks, from one that has them
    section       more of the host's section
    """

    def __init__(
        self, version: str, *, plugin_paths: Sequence[Path] = NATIVE, modules: Sequence[str] = (),
        borrowed: Sequence[str] = (), section: str = "", config: str = "", **options: Any,
    ) -> None:
        super().__init__(
            version, plugin_paths=plugin_paths, modules=("register_ibr", "adhoc", *modules),
            hosts={"example.com": SECTION + section}, **options,
        )
        self.plugin_paths = (*plugin_paths, *_packaged_modules(version), self.scratch / "modules")
        if version == "0.12.3":
            # mod_invites_register_web asks for it.
            borrowed = ("mod_password_policy", *borrowed)
        for module in borrowed:
            shutil.copytree(COMMUNITY_MODULES / module, self.scratch / "modules" / module)
        certificate = self.scratch / "example.com.crt"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
             "-days", "2", "-subj", "/CN=example.com", "-keyout", certificate.with_suffix(".key"), "-out", certificate],
            check=True, capture_output=True,
        )
        self.config = f"""\
https_ports = {{ {self.https} }};
https_interfaces = {{ "127.0.0.1" }};
https_certificate = "{certificate}";
{config}
"""

    def generate(self, *options: str) -> str:
        """The token of the link that the seed's own command prints."""
        done = self.prosodyctl("mod_invites", "generate", "example.com", *options)
        assert (done.returncode, done.stderr) == (0, "")
        link = done.stdout.splitlines()[-1]
        assert link.startswith(LINK), link
        return link.removeprefix(LINK)

    def request(
        self, path: str, form: Mapping[str, str] | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        """As https://example.com/… is asked for, which the port 443 would lead here. A form is posted."""
        connection = HTTPSConnection("127.0.0.1", self.https, timeout=10, context=ssl._create_unverified_context())
        all_headers = {"Host": "example.com", "Content-Type": "application/x-www-form-urlencoded", **(headers or {})}
        try:
            connection.request("POST" if form else "GET", path, form and urllib.parse.urlencode(form), all_headers)
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read().decode())
        finally:
            connection.close()

    def errors(self) -> list[str]:
        """What the server has logged at level error."""
        return [line for line in self.log().splitlines() if "\terror\t" in line]


def _packaged_modules(version: str) -> tuple[Path, ...]:
    """The package prosody-modules of a release. In a root directory its modules are among Prosody's own."""
    path = CHECKOUT / "target" / "prosody" / f"{version}-modules" / "usr/lib/prosody/modules"
    return (path,) if path.is_dir() else ()
