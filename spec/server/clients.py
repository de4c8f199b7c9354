"""`make clients`: in Gajim, as Debian 12 has it, a person signs up with an invite link, by mouse and keyboard.

The screen is a virtual one; what is on it, and where, is known from what Gajim tells people who cannot see (AT-SPI).
Gajim runs in a scratch home directory. It refuses to run as root: there another user does what the person does.
target/clients/ has a picture of each step. Exit code 0: every step really happened, on each Prosody.
"""

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from gi.repository import GLib

from prosody import CHECKOUT, VERSIONS
from seed import LINK, Seed

T = TypeVar("T")

PICTURES = CHECKOUT / "target" / "clients"
USER = "nobody"
PASSWORD = "under the balcony"
#: Of a step of the desktop, and of all of them, in seconds.
DEADLINE = 30
WHOLE = 300
UNKNOWN = "This server does not know this invitation. Is it complete?"


class Unexpected(Exception):
    """Something did not come onto the screen, or did not happen on the server."""


def until(what: str, find: Callable[[], T | None]) -> T:
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        # What goes away while it is looked at is not there.
        with contextlib.suppress(GLib.Error):
            if found := find():
                return found
        time.sleep(0.1)
    raise Unexpected(f"{what}: not within {DEADLINE} s")


class Screen:
    """What is on it, by role and name. What is hidden does not count."""

    def __init__(self, home: Path, pictures: str) -> None:
        # Not sooner: it looks for the bus then.
        import gi

        gi.require_version("Atspi", "2.0")
        from gi.repository import Atspi

        self._atspi = Atspi
        self._home = home
        self._pictures = pictures
        self._number = 0

    def elements(self) -> Iterator[tuple[str, str, Any]]:
        """The role, the name and the element of everything that is to be seen."""

        def walk(element: Any) -> Iterator[tuple[str, str, Any]]:
            for index in range(element.get_child_count()):
                child = element.get_child_at_index(index)
                if child is None:
                    continue
                states = child.get_state_set()
                if states.contains(self._atspi.StateType.SHOWING):
                    yield child.get_role_name(), child.get_name() or "", child
                yield from walk(child)

        yield from walk(self._atspi.get_desktop(0))

    def find(self, role: str, name: str) -> Any:
        return until(f'the {role} "{name}"', lambda: self._look_for(role, name))

    def _look_for(self, role: str, name: str) -> Any:
        return next((element for r, n, element in self.elements() if r == role and name in n), None)

    def entry(self, label: str) -> Any:
        """The field to the right of a label."""
        return self._field("beside", label, lambda row, box: (
            box.x > row.x and box.y < row.y + row.height / 2 < box.y + box.height
        ))

    def entry_below(self, label: str) -> Any:
        return self._field("below", label, lambda row, box: box.x >= row.x and box.y > row.y)

    def _field(self, where: str, label: str, fits: Callable[[Any, Any], bool]) -> Any:
        """The topmost one that fits."""

        def look() -> Any:
            # Anew each time: pages slide in.
            element = self._look_for("label", label)
            fields = [field for role, _, field in self.elements() if role in ("text", "password text")]
            fitting = [field for field in fields if element and fits(self._box(element), self._box(field))]
            return min(fitting, key=self._top, default=None)

        return until(f'a field {where} "{label}"', look)

    def _top(self, element: Any) -> int:
        return self._box(element).y

    def names(self, role: str) -> list[str]:
        """From the top of the screen down."""
        return until(f"any {role}", lambda: [name for _, name in sorted(
            (self._top(element), name) for r, name, element in self.elements() if r == role
        )])

    def lowest(self, role: str) -> Any:
        return until(f"any {role}", lambda: max(
            (element for r, _, element in self.elements() if r == role), key=self._top, default=None
        ))

    def is_enabled(self, button: str) -> bool:
        return self._can_be_used(self.find("push button", button))

    def _can_be_used(self, element: Any) -> bool:
        return element.get_state_set().contains(self._atspi.StateType.SENSITIVE)

    def _box(self, element: Any) -> Any:
        return element.get_extents(self._atspi.CoordType.SCREEN)

    def click(self, element: Any) -> None:
        def resting() -> tuple[int, int] | None:
            before = self._box(element)
            time.sleep(0.2)
            box = self._box(element)
            if (before.x, before.y) != (box.x, box.y) or not self._can_be_used(element):
                return None
            return box.x + box.width // 2, box.y + box.height // 2

        x, y = until(f'"{element.get_name()}" can be clicked', resting)
        _do("xdotool", "mousemove", str(x), str(y), "click", "1")

    def press(self, name: str) -> None:
        self.click(self.find("push button", name))

    def type(self, element: Any, text: str) -> None:
        self.click(element)
        _do("xdotool", "key", "ctrl+a")
        _do("xdotool", "type", "--delay", "5", text)
        self._expect_text(element, text)

    def paste(self, element: Any, text: str) -> None:
        # It stays, to give the text to whoever pastes, until somebody else has a text or the screen is gone.
        subprocess.run(
            ["xclip", "-selection", "clipboard"], input=text, text=True, check=True, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, timeout=DEADLINE,
        )
        self.click(element)
        _do("xdotool", "key", "ctrl+a", "ctrl+v")
        self._expect_text(element, text)

    def _expect_text(self, element: Any, text: str) -> None:
        is_password = element.get_role_name() == "password text"
        until(f'"{text}" in the field', lambda: (
            len(self.text(element)) == len(text) if is_password else self.text(element) == text
        ))

    def text(self, element: Any) -> str:
        return self._atspi.Text.get_text(element, 0, -1)

    def picture(self, name: str) -> None:
        time.sleep(0.5)  # pages slide
        self._number += 1
        _do("import", "-window", "root", str(self._home / f"{self._pictures}-{self._number:02}-{name}.png"))


def _do(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE)


@contextlib.contextmanager
def desktop(home: Path) -> Iterator[None]:
    """A screen, its window manager, the buses and Gajim, in a home directory of its own, until the end."""
    reader, writer = os.pipe()
    for name in [name for name in os.environ if name.startswith("XDG_")]:
        del os.environ[name]
    os.environ.update(HOME=str(home), XDG_RUNTIME_DIR=str(home), LANG="C.UTF-8", LANGUAGE="en", GTK_THEME="Adwaita")
    processes: list[subprocess.Popen[str]] = []

    def start(*command: str, **options: Any) -> subprocess.Popen[str]:
        log = (home / f"{command[0]}.log").open("w")
        options = {"stdout": log, "stderr": log, "text": True, "cwd": home, **options}
        processes.append(subprocess.Popen(command, **options))
        return processes[-1]

    try:
        start("Xvfb", "-displayfd", str(writer), "-screen", "0", "1100x800x24", "-nolisten", "tcp", pass_fds=[writer])
        os.close(writer)
        display = os.read(reader, 16).decode().strip()
        if not display:
            raise Unexpected("there is no screen: " + (home / "Xvfb.log").read_text())
        os.environ["DISPLAY"] = f":{display}"
        bus = start("dbus-daemon", "--session", "--nofork", "--print-address", stdout=subprocess.PIPE)
        os.environ["DBUS_SESSION_BUS_ADDRESS"] = bus.stdout.readline().strip()
        start("openbox")
        start("gajim", "--verbose")
        yield
    finally:
        for process in reversed(processes):
            process.terminate()
            process.wait(DEADLINE)


def come_to_the_form(screen: Screen, server: Seed) -> None:
    """From the first page of the wizard. What has been entered once is still there at the second time."""
    screen.find("label", "Please choose a server")
    entry = screen.entry_below("Please choose a server")
    if not screen.text(entry):
        screen.type(entry, "example.com")
        # No name server here knows it.
        screen.click(screen.find("check box", "Advanced Settings"))
        screen.picture("server")
    screen.press("Sign Up")
    screen.find("label", "Hostname")
    if not screen.text(screen.entry("Hostname")):
        screen.type(screen.entry("Hostname"), "127.0.0.1")
        screen.type(screen.entry("Port"), str(server.c2s))
        screen.picture("address")
        screen.press("Sign Up")
        screen.click(screen.find("check box", "Add to Trusted Certificates"))
        screen.picture("certificate")
    screen.press("Sign Up")
    screen.find("label", "Registration is by invitation: enter your invitation link or code.")


def fill_in(screen: Screen, pasted: str) -> None:
    screen.type(screen.entry("Username"), "romeo")
    screen.type(screen.entry("Password"), PASSWORD)
    screen.paste(screen.entry("Invitation link or code"), pasted)


def join(server: Seed, screen: Screen, token: str, done: Callable[[str], None]) -> None:
    """Each step ends when what it says is seen, or raises."""
    screen.find("label", "Welcome")
    screen.picture("welcome")
    screen.press("Sign Up")
    come_to_the_form(screen, server)
    fields = [name for name in screen.names("label") if name in ("Username", "Password", "Invitation link or code")]
    screen.picture("form")
    if fields != ["Username", "Password", "Invitation link or code"]:
        raise Unexpected(f"the fields of the form are {fields}")
    done('the wizard asks for a username, a password and an "Invitation link or code", in this order')

    screen.type(screen.entry("Username"), "romeo")
    screen.type(screen.entry("Password"), PASSWORD)
    time.sleep(1)  # Gajim looks at it a moment after the last key
    if screen.is_enabled("Sign Up"):
        raise Unexpected("the form can be sent without an invitation")
    done("it cannot be sent without an invitation")

    fill_in(screen, "Verona")
    screen.press("Sign Up")
    screen.find("label", UNKNOWN)
    screen.picture("refused")
    if exists(server, "romeo"):
        raise Unexpected("there is an account without an invite")
    done(f'what is no invitation is refused: "{UNKNOWN}"')

    screen.press("Back")
    come_to_the_form(screen, server)
    fill_in(screen, LINK + token)
    screen.picture("link")
    screen.press("Sign Up")
    screen.find("label", "Account has been added successfully")
    screen.picture("added")
    if not exists(server, "romeo"):
        raise Unexpected("there is no account")
    if server.eval('return module:depends("invites").get(args.token) ~= nil;', token=token):
        raise Unexpected("the invite is not used up")
    done("the link makes the account romeo@example.com, and is used up")

    screen.press("Connect")
    # There is no keyring that would keep it.
    screen.type(screen.entry_below("Please enter your password"), PASSWORD)
    screen.press("Login")
    until("romeo is online", lambda: server.eval("""
        local session = next((prosody.bare_sessions["romeo@example.com"] or { sessions = {} }).sessions);
        return session ~= nil;
    """))
    done("Gajim logs in with it")

    # Accounts are below everything else.
    screen.click(screen.lowest("list item"))
    screen.find("table cell", "nurse")
    screen.picture("contacts")
    if "Contacts (1/1)" not in screen.names("table cell"):
        raise Unexpected(f"other contacts than the nurse: {screen.names('table cell')}")
    done("whoever invited is a contact")


def exists(server: Seed, username: str) -> bool:
    return server.eval(
        'return (require "core.usermanager".user_exists(args.username, module.host)) == true;', username=username
    )


STEPS = 6


def show(version: str) -> int:
    """How many steps of a person who joins on this Prosody went well. The first that did not ends it."""
    print(f"Prosody {version}, Gajim {installed('gajim')}")
    with Seed(version, modules=("tls",)) as server:
        certificate = server.scratch / "example.com.crt"
        server.config += f'ssl = {{ certificate = "{certificate}"; key = "{certificate.with_suffix(".key")}" }};'
        server.start()
        server.add_user("nurse", PASSWORD)
        token = server.eval('return assert(module:depends("invites").create_contact("nurse", true)).token;')
        home = Path(tempfile.mkdtemp(prefix="prosody-spec-clients-"))
        try:
            if os.geteuid() == 0:
                account = pwd.getpwnam(USER)
                os.chown(home, account.pw_uid, account.pw_gid)
            return in_a_process_of_its_own(home, lambda done: use(server, home, version, token, done))
        finally:
            for picture in home.glob("*.png"):
                shutil.copy(picture, PICTURES)
            for log in home.glob("*.log"):
                shutil.copy(log, PICTURES / f"{version}-{log.name}")
            shutil.rmtree(home)


def use(server: Seed, home: Path, version: str, token: str, done: Callable[[str], None]) -> None:
    with desktop(home):
        screen = Screen(home, version)
        try:
            join(server, screen, token, done)
        except Exception:
            screen.picture("trouble")
            raise


def in_a_process_of_its_own(home: Path, task: Callable[[Callable[[str], None]], None]) -> int:
    """How often `task` said that a step was done."""
    reader, writer = os.pipe()
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reader)
            if os.geteuid() == 0:
                account = pwd.getpwnam(USER)
                os.setgroups([])
                os.setresgid(*3 * [account.pw_gid])
                os.setresuid(*3 * [account.pw_uid])
            os.chdir(home)
            signal.signal(signal.SIGALRM, out_of_time)
            signal.alarm(WHOLE)

            def done(what: str) -> None:
                print(f"  {what}", flush=True)
                os.write(writer, b".")

            task(done)
            status = 0
        except Unexpected as error:
            print(f"  FAILED: {error}", flush=True)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        passed = len(pipe.read())
    _, status = os.waitpid(child, 0)
    if status != 0 and passed == STEPS:
        passed -= 1
    return passed


def out_of_time(*_: object) -> None:
    raise Unexpected(f"not done within {WHOLE} s")


def installed(package: str) -> str:
    return subprocess.run(
        ["dpkg-query", "-Wf", "${Version}", package], check=True, capture_output=True, text=True
    ).stdout


def main() -> int:
    if not installed("gajim").startswith("1.7."):
        print("This knows the windows of Gajim 1.7, which is Debian 12's", file=sys.stderr)
        return 2
    shutil.rmtree(PICTURES, ignore_errors=True)
    PICTURES.mkdir(parents=True)
    passed = sum(show(version) for version in VERSIONS)
    print(f"target/clients/ has a picture of each step\n{passed} passed, {STEPS * len(VERSIONS) - passed} failed")
    return 0 if passed == STEPS * len(VERSIONS) else 1


if __name__ == "__main__":
    sys.exit(main())
