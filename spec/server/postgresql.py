"""A real PostgreSQL per test or module, run by `spec/postgres.sh`; and a network between it and Prosody that fails."""

import os
import select
import socket
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self
from urllib.parse import quote

from prosody import CHECKOUT

_LOOPBACK = "127.0.0.1"


class Postgres:
    """Running when constructed, gone after `close`. Commands are those of the script: `tell("freeze")`.

    With a directory its data are there, and a commit waits for the disk.
    """

    USER = "prosody"
    PASSWORD = "p@ss/word?"

    def __init__(self, directory: Path | None = None) -> None:
        self._script = subprocess.Popen(
            [CHECKOUT / "spec" / "postgres.sh", *([directory] if directory else [])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        port, _, directory = self._answer().partition(" ")
        self.port, self.directory = int(port), Path(directory)
        self._databases = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        assert self._script.stdin
        self._script.stdin.close()
        self._script.wait()

    def tell(self, command: str) -> None:
        assert self._script.stdin
        print(command, file=self._script.stdin, flush=True)
        answer = self._answer()
        assert answer == "done", f"{command}: {answer}"

    def new_database(self) -> str:
        """Its name."""
        self._databases += 1
        name = f"spec{self._databases}"
        self.tell(f"database {name}")
        return name

    def url(self, database: str, *, host: str = _LOOPBACK, port: int | None = None, parameters: str = "") -> str:
        password = quote(self.PASSWORD, safe="")
        return f"postgresql://{self.USER}:{password}@{host}:{port or self.port}/{database}{parameters}"

    def query(self, database: str, statement: str) -> list[list[str]]:
        """Rows of text, asked as the superuser."""
        output = subprocess.run(
            ["psql", "--host", self.directory, "--port", str(self.port), "--username=postgres", "--no-psqlrc",
             "--tuples-only", "--no-align", "--quiet", "--set=ON_ERROR_STOP=1", f"--dbname={database}",
             "--command", f"SET search_path = prosody_invites, public; {statement}"],
            capture_output=True, text=True, check=True,
        ).stdout
        return [line.split("|") for line in output.splitlines()]

    @property
    def name(self) -> str:
        """As people call it: "PostgreSQL 17"."""
        ((number,),) = self.query("postgres", "SHOW server_version_num")
        return f"PostgreSQL {int(number) // 10000}"

    def log(self) -> str:
        return (self.directory / "log").read_text(errors="replace")

    def _answer(self) -> str:
        assert self._script.stdout
        return self._script.stdout.readline().rstrip("\n")


class Network:
    """Carries what is sent to `port` on to the database, and back, in a thread: the tests block while they evaluate.

    While `swallows` is set nothing goes through, and nobody is told. `cut(message, number)` cuts the connection at the
    number-th request from now on that holds the message, before it has gone through, or, with `after`, behind it.
    `swallow_from` lets it through and begins to swallow.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server((_LOOPBACK, 0))
        self.port = self._listener.getsockname()[1]
        self.swallows = False
        self._trap: tuple[bytes, int, str] | None = None
        self._lock = threading.Lock()
        self._is_open = True
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        # Closing alone does not wake who waits in accept().
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def cut(self, message: bytes, number: int = 1, *, after: bool) -> None:
        with self._lock:
            self._trap = (message, number, "after" if after else "before")

    def swallow_from(self, message: bytes, number: int = 1) -> None:
        with self._lock:
            self._trap = (message, number, "swallow")

    @property
    def has_struck(self) -> bool:
        return self._trap is None

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, client: socket.socket) -> None:
        # The database may be down, and either side may go at any time.
        with client, suppress(ConnectionError), socket.create_connection((_LOOPBACK, self._target)) as server:
            while self._is_open:
                readable, _, _ = select.select([client, server], [], [], 0.1)
                for source in readable:
                    if not self._pass_on(source, client, server):
                        return

    def _pass_on(self, source: socket.socket, client: socket.socket, server: socket.socket) -> bool:
        """Whether the connection goes on."""
        data = source.recv(65536)
        if not data:
            while self.swallows and self._is_open:
                time.sleep(0.05)  # the end of a connection is swallowed as well
            return False
        fate = self._fate_of(data) if source is client else None
        if fate == "before":
            return False
        if not self.swallows:
            (server if source is client else client).sendall(data)
        if fate == "swallow":
            self.swallows = True
        if fate == "after":
            # It may answer into the void, but it is not to lose the request.
            client.close()
            server.shutdown(socket.SHUT_WR)
            while server.recv(65536):
                pass
            return False
        return True

    def _fate_of(self, data: bytes) -> str | None:
        with self._lock:
            if self._trap is None or self._trap[0] not in data:
                return None
            message, number, fate = self._trap
            self._trap = (message, number - 1, fate) if number > 1 else None
            return None if self._trap else fate


class Authority:
    """A certificate authority of the test's own, in files that everybody may read."""

    def __init__(self, directory: Path, name: str) -> None:
        self.certificate, self._key = directory / f"{name}.pem", directory / f"{name}.key"
        self._name = name
        self._openssl(
            "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
            "-subj", f"/CN={name}", "-keyout", self._key, "-out", self.certificate,
        )

    def issue(self, host: str, directory: Path) -> tuple[Path, Path]:
        """A certificate for a host, and its key."""
        certificate, key, request = (directory / f"{self._name}-{host}.{suffix}" for suffix in ("pem", "key", "csr"))
        self._openssl(
            "req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={host}",
            "-addext", f"subjectAltName=DNS:{host}", "-keyout", key, "-out", request,
        )
        self._openssl(
            "x509", "-req", "-in", request, "-CA", self.certificate, "-CAkey", self._key, "-days", "2",
            "-copy_extensions", "copy", "-out", certificate,
        )
        return certificate, key

    @staticmethod
    def _openssl(*arguments: str | Path) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True)


def with_tls(postgres: Postgres, pair: Sequence[Path]) -> None:
    """Makes the server offer TLS from its next connection on."""
    data = postgres.directory / "data"
    for path, name in zip(pair, ("server.crt", "server.key"), strict=True):
        copy = data / name
        copy.write_bytes(path.read_bytes())
        copy.chmod(0o600)
        if os.getuid() == 0:
            os.chown(copy, data.stat().st_uid, data.stat().st_gid)
    postgres.tell("sql postgres ALTER SYSTEM SET ssl = on")
    postgres.tell("stop")
    postgres.tell("start")
