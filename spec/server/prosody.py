"""One real Prosody per test, in a scratch directory, on loopback.

The server is Debian's package, unpacked into `target/prosody/<version>/`. Its launchers have four fixed paths; each
scratch server gets a copy of them with only those four lines changed, so the code that runs is the packaged code, and
a Prosody installed on the machine is neither needed nor touched.

A Prosody that needs another Debian than this machine's stands in `target/roots/<version>/`, a whole root directory that
spec/matrix.sh has made; its servers see this checkout, and in it the library for their Lua.
"""

import grp
import http.client
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

CHECKOUT = Path(__file__).resolve().parents[2]
try:
    #: The Prosodys that this machine can run, the oldest first: what spec/machine.sh has unpacked.
    UNPACKED = tuple((CHECKOUT / "target" / "prosody" / "versions").read_text().split())
except FileNotFoundError:
    sys.exit("No Prosody is unpacked here: spec/machine.sh test does that.")
_CHOSEN = tuple(os.environ.get("SPEC_VERSIONS", "").split())
#: Those that the specs run on.
VERSIONS = _CHOSEN or UNPACKED
#: Those that the specs of the storage run on, for which one Prosody is as good as another: unless some were chosen, as
#: `make matrix` does, the newest.
STORAGE_VERSIONS = _CHOSEN or UNPACKED[-1:]
#: The newest release of the community's modules, for servers that need one which their own release lacks.
COMMUNITY_MODULES = CHECKOUT / "target" / "prosody" / f"{UNPACKED[-1]}-modules" / "usr/lib/prosody/modules"
#: `plugin_paths` of a server that runs the `mod_invites` its package brings.
BUNDLED: tuple[Path, ...] = ()

_SPEC_MODULES = Path(__file__).resolve().parent / "modules"
_ROOTS = CHECKOUT / "target" / "roots"
#: Runs a command in the root directory $0 and the directory $1, with $2 as the library. The mounts end with it.
_IN_ROOT = """
set -e
mount --rbind /dev "$0/dev"
mount -t proc proc "$0/proc"
for shared in "$3" "$4"; do
	mkdir -p "$0$shared"
	mount --rbind "$shared" "$0$shared"
done
[ ! -f "$2" ] || mount --bind "$2" "$0$4/lua/mod_invites/prosody_invites.so"
root=$0 directory=$1
shift 4
exec chroot "$root" env --chdir="$directory" "$@"
"""
_LOOPBACK = "127.0.0.1"
_POLL = 0.01
#: What /proc/PID/wchan says of a process that waits for something to do; "0" where it says nothing.
_IDLE = ("ep_poll", "do_epoll_wait", "poll_schedule_timeout", "do_select", "0")
#: Below the kernel's ephemeral range: an outgoing connection must not take a port between our test and the bind.
_FIRST_PORT, _PORTS_PER_WORKER, _WORKERS = 20000, 200, 60


class LuaError(Exception):
    """The chunk given to `Prosody.eval` raised; the text is the message with Lua's traceback."""


class ServerFailed(Exception):
    """The server died or did not answer in time; the text ends with the tail of its log."""


class _Port:
    """A free port that is ours until `release`, also against other workers and other test runs.

    A test bind alone leaves a gap until the server binds, and Prosody only logs a taken port and carries on: the test
    would talk to a neighbour's server. The reservation is a name in Linux' abstract socket namespace, which the kernel
    drops with the process.
    """

    def __init__(self) -> None:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
        first = _FIRST_PORT + worker * _PORTS_PER_WORKER
        for number in range(first, first + _PORTS_PER_WORKER):
            self._reservation = socket.socket(socket.AF_UNIX)
            try:
                self._reservation.bind(f"\0mod_invites-spec-port-{number}")
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind((_LOOPBACK, number))
            except OSError:
                self._reservation.close()
                continue
            self.number = number
            return
        raise ServerFailed(f"no free port from {first} on")

    def release(self) -> None:
        self._reservation.close()


class Prosody:
    """A server of `version`. Configured when constructed, running between `start` and `stop`, gone after `close`.

    hosts         name of each VirtualHost and the Lua config text of its section
    config        Lua config text of the global section, after the harness's own (a later setting wins)
    modules       added to the global `modules_enabled`, so loaded on every host
    plugin_paths  searched before the modules of the package
    user          unix user to run as; needs root. Without it the server runs as whoever runs the tests
    data_path     directory to use, and keep, in place of a fresh one: another server's data, another version's
    daemonize     run with -D, where the server forks after it has loaded its modules
    log_level     what is measured runs as an operator runs it, at "info"
    """

    def __init__(
        self,
        version: str,
        *,
        hosts: Mapping[str, str] | None = None,
        config: str = "",
        modules: Sequence[str] = (),
        plugin_paths: Sequence[Path] = BUNDLED,
        authentication: str = "internal_plain",
        storage: str = "internal",
        user: str | None = None,
        data_path: Path | None = None,
        daemonize: bool = False,
        log_level: str = "debug",
    ) -> None:
        self._root = _ROOTS / version if (_ROOTS / version).is_dir() else None
        self._unpacked = self._root or CHECKOUT / "target" / "prosody" / version
        if not self._unpacked.is_dir():
            raise ServerFailed(f"no Prosody {version} at {self._unpacked}: spec/machine.sh test unpacks those of this Debian")
        #: Where the server finds its own code.
        self.package = Path("/usr/lib/prosody") if self._root else self._unpacked / "usr/lib/prosody"
        self.version = version
        self.hosts = dict(hosts or {"example.com": ""})
        self.config = config
        self.modules = tuple(modules)
        self.plugin_paths = tuple(plugin_paths)
        self.authentication = authentication
        self.storage = storage
        self.user = user
        self.daemonize = daemonize
        self.log_level = log_level
        self.pid: int | None = None
        self._child: subprocess.Popen[bytes] | None = None

        self.scratch = Path(tempfile.mkdtemp(prefix="prosody-spec-"))
        self.config_path = self.scratch / "prosody.cfg.lua"
        self.data_path = data_path or self.scratch / "data"
        self.data_path.mkdir(exist_ok=True)
        # Empty, but its absence is logged as an error, and prosodyctl prints that.
        (self.scratch / "certs").mkdir()
        self._pidfile = self.scratch / "prosody.pid"
        self._log_path = self.scratch / "prosody.log"
        self._console_path = self.scratch / "console.log"
        self._ports = (_Port(), _Port(), _Port())
        #: Nothing listens on `https` unless the configuration says so.
        self.c2s, self.http, self.https = (port.number for port in self._ports)
        self._prosody = self._launcher("prosody")
        self._prosodyctl = self._launcher("prosodyctl")
        self.write_config()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # Life of the process

    def start(self, timeout: float = 10) -> None:
        """Return once the server answers a stream header.

        An accepted connection would not do: the port is bound while modules still load, and 0.12 installs its signal
        handlers only in the first turn of the main loop, so that an early SIGTERM would kill it without a shutdown.
        """
        assert self.pid is None, "already running"
        self.write_config()
        self._pidfile.unlink(missing_ok=True)
        command = [*self._in_root(), *self._as_user(), str(self._prosody), "--config", str(self.config_path)]
        with self._console_path.open("ab") as console:
            self._child = subprocess.Popen(
                [*command, "-D" if self.daemonize else "-F"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, cwd=self.scratch,
            )
        self.pid = None if self.daemonize else self._child.pid
        deadline = time.monotonic() + timeout
        while not self._answers(deadline):
            if self._died():
                status = self._reap()
                raise ServerFailed(f"Prosody {self.version} died while starting, status {status}\n{self.log_tail()}")
            if time.monotonic() > deadline:
                self.kill()
                raise ServerFailed(f"Prosody {self.version} did not answer in {timeout} s\n{self.log_tail()}")
            time.sleep(_POLL)

    def stop(self, timeout: float = 10) -> None:
        """Shut down in order (SIGTERM). Too late, crashed on the way or crashed before: each is an error."""
        if self.pid is None:
            return
        self._wait_idle(timeout)
        self._signal(signal.SIGTERM)
        if not self._wait_gone(timeout):
            self.kill()
            raise ServerFailed(f"Prosody {self.version} did not stop in {timeout} s\n{self.log_tail()}")
        status = self._reap()
        if status != 0:
            raise ServerFailed(f"Prosody {self.version} ended with status {status}\n{self.log_tail()}")

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL, nothing flushed."""
        if self._child and self._child.poll() is None:
            self._child.kill()
        if self.pid is not None:
            self._signal(signal.SIGKILL)
            self._wait_gone(10)
        self._reap()

    def restart(self) -> None:
        self.stop()
        self.start()

    @property
    def running(self) -> bool:
        """Whether the process is there, whatever we did or did not do to it."""
        return self.pid is not None and not self._died()

    def close(self) -> None:
        """Stop and leave nothing behind; with KEEP in the environment the scratch directory stays and is printed."""
        try:
            self.stop()
        finally:
            for port in self._ports:
                port.release()
            if os.environ.get("KEEP"):
                print(f"kept {self.scratch}")
            else:
                shutil.rmtree(self.scratch)

    # Talking to it

    def eval(self, lua: str, *, host: str = "example.com", timeout: float = 20, **args: Any) -> Any:
        """Run a chunk inside the server, in the environment of a module of `host`, with `args` as its table `args`.

        Returns None, the one value, or a tuple of several. nil is None; an integer and a float keep their type; a table
        with keys 1..n is a list, any other (the empty one too) a dict; a string that is not UTF-8 is bytes; functions
        and other opaque values are "<function>" and so on. An argument that is None is absent. Raises `LuaError`.

        `module:depends(x)` binds the eval module as it would any: unloading x then ends `eval` on that host. One that
        unloads takes `prosody.hosts[module.host].modules.x`.
        """
        body = json.dumps({"lua": lua, "args": {k: v for k, v in args.items() if v is not None}})
        connection = http.client.HTTPConnection(_LOOPBACK, self.http, timeout=timeout)
        try:
            connection.request("POST", "/spec_eval", body.encode(), {"Host": host})
            response = connection.getresponse()
            text = response.read().decode()
        finally:
            connection.close()
        if response.status != 200:
            raise ServerFailed(f"eval on {host} answered {response.status}: {text}\n{self.log_tail()}")
        answer = json.loads(text)
        if not answer["ok"]:
            raise LuaError(answer["error"])
        if answer["n"] == 0:
            return None
        values = tuple(_decode(value) for value in answer["values"])
        return values[0] if len(values) == 1 else values

    def set_lease(self, seconds: float, *, clock_ahead: int = 0, host: str = "example.com") -> None:
        """From now on a lease is so long, and the clock of the library so many seconds ahead."""
        self.eval(
            """
            local library = package.loaded["prosody_invites"];
            local open = library.open;
            function library.open(options)
                options.lease, options.clock_ahead = args.lease, args.ahead;
                return open(options);
            end
            require "core.modulemanager".reload(module.host, "invites");
            """,
            host=host, lease=seconds, ahead=clock_ahead,
        )

    def tidy(self, host: str = "example.com") -> None:
        """Have our module look now, not in a minute, for what expired and for what has been history for long enough."""
        self.eval(
            """
            local timer = require "util.timer";
            local add_task = timer.add_task;
            function timer.add_task(delay, ...) return add_task(delay == 60 and 0 or delay, ...); end
            require "core.modulemanager".reload(module.host, "invites");
            timer.add_task = add_task;
            """,
            host=host,
        )

    def can_store(self, host: str = "example.com") -> bool:
        """Whether mod_invites can change something; nothing is changed. After a lock it waits for a while before it tries."""
        return self.eval('return module:depends("invites").delete_account_invite("unknown");', host=host) is True

    def add_user(self, username: str, password: str, host: str = "example.com") -> None:
        """Create an account directly, for tests whose subject is not registration."""
        self.eval(
            'assert(require "core.usermanager".create_user(args.username, args.password, module.host));',
            host=host, username=username, password=password,
        )

    def prosodyctl(
        self, *args: str, timeout: float = 20, input: str | None = None, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run prosodyctl on this server's config, running or stopped. As root it switches to `user` by itself.

        `env` is added to the environment of the tests, less the width of a terminal that readline may have left in it.
        """
        inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
        return subprocess.run(
            [*self._in_root(), str(self._prosodyctl), "--config", str(self.config_path), *args],
            input=input or "", capture_output=True, text=True, timeout=timeout, cwd=self.scratch,
            env={**inherited, "PWD": str(self.scratch), **(env or {})},
        )

    def log(self) -> str:
        """All the server has logged so far."""
        return self._log_path.read_text(errors="replace") if self._log_path.exists() else ""

    def log_tail(self, lines: int = 40) -> str:
        """The end of the console output (errors before logging starts) and of the log."""
        console = self._console_path.read_text(errors="replace") if self._console_path.exists() else ""
        return "\n".join(console.splitlines()[-lines:] + self.log().splitlines()[-lines:])

    # Files

    def write_config(self) -> None:
        """Write the attributes out. `start` does so too; a running server then needs `prosody.reload_config()`."""
        # In 0.11 it is a module that handles signals and writes the pid, and there is no shell yet.
        own = ("posix",) if self.version.startswith("0.11") else ("admin_shell",)
        modules = ("roster", "saslauth", "disco", "spec_eval", *own, *self.modules)
        owner = "run_as_root = true;"
        if self.user:
            group = grp.getgrgid(pwd.getpwnam(self.user).pw_gid).gr_name
            owner = f"prosody_user = {_lua(self.user)};\nprosody_group = {_lua(group)};"
        text = f"""\
interfaces = {{ "{_LOOPBACK}" }};
local_interfaces = {{ "{_LOOPBACK}" }};
http_interfaces = {{ "{_LOOPBACK}" }};
c2s_ports = {{ {self.c2s} }};
http_ports = {{ {self.http} }};
https_ports = {{ }};
s2s_ports = {{ }};
modules_enabled = {{ {", ".join(map(_lua, modules))} }};
modules_disabled = {{ "s2s" }};
plugin_paths = {{ {", ".join(_lua(str(path)) for path in (*self.plugin_paths, _SPEC_MODULES))} }};
data_path = {_lua(str(self.data_path))};
pidfile = {_lua(str(self._pidfile))};
log = {{ {self.log_level} = {_lua(str(self._log_path))} }};
authentication = {_lua(self.authentication)};
storage = {_lua(self.storage)};
c2s_require_encryption = false;
allow_unencrypted_plain_auth = true;
{owner}
{self.config}
"""
        for host, section in self.hosts.items():
            text += f"\nVirtualHost {_lua(host)}\n{section}\n"
        self.config_path.write_text(text)
        if self.user:
            account = pwd.getpwnam(self.user)
            for root in (self.scratch, self.data_path):
                for path in (root, *root.rglob("*")):
                    os.chown(path, account.pw_uid, account.pw_gid)

    def _launcher(self, name: str) -> Path:
        text = (self._unpacked / "usr/bin" / name).read_text()
        paths = {
            "CFG_SOURCEDIR": self.package,
            "CFG_CONFIGDIR": self.scratch,
            "CFG_PLUGINDIR": f"{self.package}/modules/",
            "CFG_DATADIR": self.data_path,
        }
        for variable, path in paths.items():
            line = f"{variable}={_lua(str(path))};"
            text, changed = re.subn(rf"^{variable}=.*$", lambda _: line, text, flags=re.MULTILINE)
            if changed != 1:
                raise ServerFailed(f"{name} of Prosody {self.version} has {changed} lines that set {variable}")
        launcher = self.scratch / name
        launcher.write_text(text)
        launcher.chmod(0o755)
        return launcher

    # The process

    def _in_root(self) -> list[str]:
        """bash and chroot exec, so the pid we started stays the server's own."""
        if not self._root:
            return []
        lua = re.search(r"lua\S*$", (self._root / "usr/bin/prosody").read_text().splitlines()[0])
        assert lua
        library = CHECKOUT / "target" / "plugins" / lua[0] / "mod_invites" / "prosody_invites.so"
        paths = (self._root, self.scratch, library, tempfile.gettempdir(), CHECKOUT)
        return ["unshare", "--mount", "bash", "-c", _IN_ROOT, *map(str, paths)]

    def _as_user(self) -> list[str]:
        """setpriv execs, so the pid we started stays the server's own."""
        if not self.user:
            return []
        account = pwd.getpwnam(self.user)
        return ["setpriv", f"--reuid={account.pw_uid}", f"--regid={account.pw_gid}", "--clear-groups"]

    def _answers(self, deadline: float) -> bool:
        header = (
            f"<stream:stream to='{next(iter(self.hosts))}' version='1.0' xmlns='jabber:client'"
            " xmlns:stream='http://etherx.jabber.org/streams'>"
        )
        if self.daemonize:
            self.pid = self._read_pidfile()
            if self.pid is None:
                return False
        try:
            with socket.create_connection((_LOOPBACK, self.c2s), timeout=1) as connection:
                connection.settimeout(max(_POLL, deadline - time.monotonic()))
                connection.sendall(header.encode())
                return bool(connection.recv(1))
        except OSError:
            return False

    def _read_pidfile(self) -> int | None:
        """The daemon's pid. Empty for a moment while it is written, and a -D start has none before the fork is done."""
        if self._child is None or self._child.poll() != 0 or not self._pidfile.exists():
            return None
        text = self._pidfile.read_text()
        return int(text) if text else None

    def _died(self) -> bool:
        status = self._child.poll() if self._child else None
        if not self.daemonize:
            return status is not None
        if status is None:
            return False
        return status != 0 or (self.pid is not None and not _alive(self.pid))

    def _signal(self, number: signal.Signals) -> None:
        """Signal our own process only; one that is gone but not yet reaped keeps its pid, so no other can have it."""
        assert self.pid is not None
        if not self._died():
            os.kill(self.pid, number)

    def _wait_idle(self, timeout: float) -> None:
        """0.12 is never gone after a SIGTERM that comes while it serves somebody: its handler of the signal fails there.

        A client has its answer, and has hung up, before the server is done with it. Asleep in epoll there is nothing left
        (0.11: in select).
        """
        process = Path(f"/proc/{self.pid}")
        deadline = time.monotonic() + timeout
        while not self._died() and time.monotonic() < deadline:
            try:
                state = (process / "stat").read_text().rpartition(")")[2].split()[0]
                if state == "S" and (process / "wchan").read_text().startswith(_IDLE):
                    return
            except (FileNotFoundError, ProcessLookupError):
                return  # a daemon that died just now
            time.sleep(_POLL)

    def _wait_gone(self, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        while not self._died():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    def _reap(self) -> int:
        """Forget the process; its exit status, negative for a signal. A daemon's own status goes to init, unseen."""
        status = self._child.wait() if self._child else 0
        self._child = None
        self.pid = None
        return status


def _alive(pid: int) -> bool:
    """A daemon is not our child: we cannot wait for it, and as a zombie of init it would still take a signal."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"


def _lua(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _decode(value: Any) -> Any:
    """Undo the tagging of mod_spec_eval."""
    if isinstance(value, list):
        return [_decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    (tag, content), = value.items()
    match tag:
        case "nil":
            return None
        case "integer":
            return int(content)
        case "float":
            return float(content)
        case "bytes":
            return bytes.fromhex(content)
    return {_key(key): _decode(item) for key, item in content} if content else {}


def _key(value: Any) -> Any:
    key = _decode(value)
    return str(key) if isinstance(key, (list, dict)) else key
