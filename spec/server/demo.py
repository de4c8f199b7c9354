"""`make demo`: on a real Prosody a stranger joins with an invite link, and nobody joins with it again.

The servers run on loopback in a scratch directory and are gone afterwards. Exit code 0: every step really happened.
"""

import asyncio
import logging
import shlex
import signal
import sys

# Before slixmpp is imported: it warns then, and again at each refusal that we provoke.
logging.disable()

from client import Refused, login, open_stream
from prosody import CHECKOUT, VERSIONS, Prosody

MODULES = ("register_ibr", "invites", "invites_register")
OURS = CHECKOUT / "lua" / "mod_invites" / "mod_invites.lua"


class Unexpected(Exception):
    """A step went otherwise than it should."""


def show(version: str) -> None:
    print(f"Prosody {version}: its own mod_invites_register on top of our mod_invites")
    with Prosody(version, plugin_paths=(OURS.parents[1],), modules=MODULES) as server:
        server.start()
        step(1, f'It listens on 127.0.0.1:{server.c2s}, and its module "invites" is')
        print(loaded(server))
        step(2, "Its operator creates an invite:\n")
        token = generate(server)
        step(3, "Tybalt has no invite and tries to register. The server answers:")
        print(asyncio.run(refusal(server, "tybalt", None)))
        step(4, "Juliet has the link, presents its token and registers:")
        print(asyncio.run(join(server, "juliet", token)))
        step(5, "Juliet logs in with her new password. The server knows her as")
        print(asyncio.run(log_in(server, "juliet")))
        step(6, "Tybalt got hold of the link and presents the same token. The server answers:")
        print(asyncio.run(refusal(server, "tybalt", token)))
        step(7, "Stopping the server and removing its directory:")
    print("done\n")


def step(number: int, text: str) -> None:
    """Before it is done, so that a failure stands behind the step that failed."""
    print(f" {number}. {text}", end="" if text.endswith("\n") else " ", flush=True)


def loaded(server: Prosody) -> str:
    path = server.eval("return prosody.hosts[module.host].modules.invites.module.path;")
    if path != str(OURS):
        raise Unexpected(f"another mod_invites runs: {path}")
    return str(OURS.relative_to(CHECKOUT))


def generate(server: Prosody) -> str:
    """The token of the link that the command prints."""
    command = ("mod_invites", "generate", "example.com")
    print("     $ prosodyctl", shlex.join(command))
    done = server.prosodyctl(*command)
    for line in (done.stdout + done.stderr).splitlines():
        print(f"     {line}")
    if done.returncode != 0 or not done.stdout.startswith("xmpp:example.com?register;preauth="):
        raise Unexpected(f"no link, exit code {done.returncode}")
    return done.stdout.strip().partition("preauth=")[2]


async def join(server: Prosody, username: str, token: str) -> str:
    async with await open_stream(server) as stream:
        await stream.preauth(token)
        await stream.register(username, "secret")
    return "accepted"


async def log_in(server: Prosody, username: str) -> str:
    async with await login(server, username, "secret") as stream:
        if stream.jid.bare != f"{username}@example.com":
            raise Unexpected(f"logged in as {stream.jid}")
        return stream.jid.bare


async def refusal(server: Prosody, username: str, token: str | None) -> str:
    """The words in which the server refuses; that there is no account now is looked at, not believed."""
    words = None
    async with await open_stream(server) as stream:
        try:
            if token is not None:
                await stream.preauth(token)
            await stream.register(username, "secret")
        except Refused as refused:
            words = f'"{refused.text}"'
    if words is None:
        raise Unexpected("it was accepted")
    try:
        await log_in(server, username)
    except Refused:
        return words
    raise Unexpected(f"refused with {words}, but the account exists")


def main() -> None:
    # Ended by a time limit, it still stops its server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        for version in VERSIONS:
            show(version)
    except Exception as failure:
        print(flush=True)
        sys.exit(f"The demo failed: {type(failure).__name__}: {failure}")
    print("Every step happened as described.")


if __name__ == "__main__":
    main()
