"""Prosody's signals are handled in the thread that runs Lua, whatever other threads the library has started."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

from prosody import Prosody

#: Mostly more than the log may be ahead of the database before a thread moves its pages there.
MANY = 1000

#: Looking the name of this host up takes a thread, too, which stays for as long as the server waits for an answer.
POSTGRESQL = 'invite_storage = "postgresql"; invite_postgresql = "postgresql://user:secret@localhost:{}/invites";'

SIGHUPS = 200
DEADLINE = 20


def blocked_by_thread(server: Prosody) -> dict[str, set[int]]:
    """The signals that each thread but the main one blocks, by the thread's id and name."""
    blocked = {}
    for task in Path(f"/proc/{server.pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            status = dict(line.split(":\t", 1) for line in (task / "status").read_text().splitlines())
            mask = int(status["SigBlk"], 16)
            if int(task.name) != server.pid:
                blocked[f"{task.name} {status['Name']}"] = {
                    number for number in signal.valid_signals() if mask >> number - 1 & 1
                }
    return blocked


@contextmanager
def watched(server: Prosody) -> Iterator[dict[str, set[int]]]:
    """What the threads block that there are meanwhile: some live no longer than a call."""
    seen: dict[str, set[int]] = {}
    is_over = Event()

    def watch() -> None:
        while not is_over.is_set():
            seen.update(blocked_by_thread(server))

    watcher = Thread(target=watch)
    watcher.start()
    try:
        yield seen
    finally:
        is_over.set()
        watcher.join()


def until(what: Callable[[], bool], seen: object = None) -> None:
    deadline = time.monotonic() + DEADLINE
    while not what():
        assert time.monotonic() < deadline, seen
        time.sleep(0.002)


def test_every_thread_but_the_main_one_blocks_all_signals(
    prosody: Callable[..., Prosody], native_lua: Path, version: str
) -> None:
    posix = ("posix",) if version.startswith("0.") else ()
    silent = socket.create_server(("127.0.0.1", 0))  # takes calls, and says nothing
    server = prosody(
        plugin_paths=(native_lua,),
        modules=("invites", "invites_register", *posix),
        hosts={"example.com": "", "example.net": POSTGRESQL.format(silent.getsockname()[1])},
        log_level="info",
    )
    make_many = f'assert(module:depends("invites").create_invites({{}}, {MANY}));'
    look_up = 'assert(not module:depends("invites").create_account());'

    def ask_both() -> None:
        server.eval(make_many, timeout=DEADLINE)
        server.eval(look_up, host="example.net")

    with watched(server) as blocked:
        # A commit may move the pages itself, if they are many at once; then the next ones need the thread.
        until(lambda: ask_both() is None and len(blocked) >= 2, blocked)
    silent.close()
    assert any("invites-log" in name for name in blocked)
    assert blocked == dict.fromkeys(blocked, signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP})
    for count in range(1, SIGHUPS + 1):
        assert server.pid
        os.kill(server.pid, signal.SIGHUP)
        until(lambda: server.log().count("Received SIGHUP") == count)
        # Prosody 0.12 may lose one that comes while it handles another.
        server.eval("return true;")
    assert server.eval('return module:depends("invites").create_account() ~= nil;') is True
