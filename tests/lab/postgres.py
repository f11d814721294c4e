"""A real PostgreSQL from Debian, of a test's own, on a socket: started, stopped, and its processes killed.

The benchmark of the queue runs its peer on one, too.  Must not touch the machine's own server.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), None)
marks = [
    pytest.mark.long,
    pytest.mark.skipif(BIN is None, reason="no PostgreSQL (Debian package postgresql)"),
]


class Postgres:
    """``options``: of the server; ``folder``: made for it, and removed with all in it.

    A short path that the user postgres reaches: the kernel takes 107 characters for a socket."""

    def __init__(self, *options: str, folder: Path | None = None) -> None:
        assert BIN is not None
        self.folder = folder or Path(f"/tmp/evenkeel-pg-{os.getpid()}-{time.monotonic_ns() % 10**6}")
        self.folder.mkdir()
        self._as: list[str] = []
        if os.geteuid() == 0:
            shutil.chown(self.folder, "postgres", "postgres")
            self._as = ["runuser", "-u", "postgres", "--"]
        self.user = "postgres" if self._as else pwd.getpwuid(os.geteuid()).pw_name
        self._data = self.folder / "data"
        initdb = [str(BIN / "initdb"), "-D", str(self._data), "-A", "trust", "-U", self.user, "--no-sync"]
        subprocess.run([*self._as, *initdb], check=True, capture_output=True)
        sockets = ["-c", f"unix_socket_directories={self.folder}", "-c", "listen_addresses="]
        self._command = [*self._as, str(BIN / "postgres"), "-D", str(self._data), *sockets, *options]
        self._number = 0
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """And wait until it answers: after a kill it first replays its log."""
        end = time.monotonic() + 180
        while not self._answers():
            assert time.monotonic() < end, (self.folder / "log").read_text()
            if self._process is None or self._process.poll() is not None:
                # After its postmaster was killed, the last of its backends may still be on the way out.
                with (self.folder / "log").open("ab") as log:
                    # In a session of its own: Ctrl-C in a terminal is for who runs this, who ends it in order.
                    self._process = subprocess.Popen(self._command, stdout=log, stderr=log, start_new_session=True)
            time.sleep(0.1)

    def _answers(self) -> bool:
        if self._process is None or self._process.poll() is not None:
            return False
        return not subprocess.run([str(_bin() / "pg_isready"), "-q", "-h", str(self.folder)], check=False).returncode

    def database(self, *options: str) -> str:
        """The URL of a new, empty one; ``options``: of createdb."""
        self._number += 1
        name = f"lab{self._number}"
        command = [str(_bin() / "createdb"), "-h", str(self.folder), "-U", self.user, *options, name]
        subprocess.run(command, check=True, capture_output=True)
        return f"postgresql://{self.user}@/{name}?host={self.folder}"

    @property
    def postmaster(self) -> int:
        return int((self._data / "postmaster.pid").read_text().split()[0])

    def kill(self) -> None:
        """SIGKILL to the postmaster; its children see that and end.  Nobody starts it again but :meth:`start`."""
        assert self._process is not None
        os.kill(self.postmaster, signal.SIGKILL)
        self._process.wait()

    def kill_backend(self, pid: int) -> None:
        """SIGKILL; the postmaster then ends all the others, replays its log and goes on."""
        os.kill(pid, signal.SIGKILL)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """All its processes stand still."""
        assert self._process is not None
        first = self.postmaster
        processes = [first, *map(int, Path(f"/proc/{first}/task/{first}/children").read_text().split())]
        for pid in processes:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            # runuser stands still with what it runs.
            for pid in (*processes, self._process.pid):
                os.kill(pid, signal.SIGCONT)

    def stop(self, how: str = "fast") -> None:
        """As an administrator does it; ``how``: fast or immediate."""
        command = [str(_bin() / "pg_ctl"), "-D", str(self._data), "-m", how, "-s", "-w", "stop"]
        subprocess.run([*self._as, *command], check=False, timeout=120)
        if self._process is not None:
            self._process.wait(120)

    def remove(self) -> None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.stop("immediate")
        shutil.rmtree(self.folder, ignore_errors=True)


def _bin() -> Path:
    assert BIN is not None
    return BIN


@contextlib.contextmanager
def running(*options: str, folder: Path | None = None) -> Iterator[Postgres]:
    server = Postgres(*options, folder=folder)
    try:
        server.start()
        yield server
    finally:
        server.remove()
