"""A real sshd on a free port of the loopback interface, with keys of its own; nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from evenkeel.machines.ssh import SshMachine, SshTarget

SSHD = shutil.which("sshd") or shutil.which("sshd", path="/usr/sbin:/sbin")


#: In the environment of every session, so that a test can tell its own processes from those of another Evenkeel.
_MARK = f"EVENKEEL_TEST={os.getpid()}"


class Sshd:
    """``folder`` holds keys and configuration.  ``more``: further lines of sshd_config."""

    def __init__(self, folder: Path, *more: str) -> None:
        self.folder = folder
        self.port = _free_port()
        self._process: subprocess.Popen[bytes] | None = None
        for name in ("host", "user"):
            if not (folder / name).exists():
                subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)], check=True)
        (folder / "authorized").write_bytes((folder / "user.pub").read_bytes())
        self.trust_host_key((folder / "host.pub").read_text())
        lines = [
            f"Port {self.port}",
            "ListenAddress 127.0.0.1",
            f"HostKey {folder}/host",
            f"AuthorizedKeysFile {folder}/authorized",
            "StrictModes no",
            "UsePAM no",
            "PidFile none",
            "PermitRootLogin prohibit-password",
            "MaxStartups 100",
            f"SetEnv {_MARK}",
            *more,
        ]
        (folder / "sshd_config").write_text("\n".join(lines) + "\n")

    def trust_host_key(self, public: str) -> None:
        kind, key = public.split()[:2]
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {key}\n")

    def start(self) -> None:
        assert SSHD
        if os.getuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        log = (self.folder / "log").open("ab")
        self._process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(self.folder / "sshd_config")], stderr=log, start_new_session=True
        )
        log.close()
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.05)
        raise AssertionError((self.folder / "log").read_text())

    def stop(self) -> None:
        """As a machine that goes down: the listener and every session end at once."""
        if self._process is None:
            return
        # Sessions are in sessions of their own; find them by their parent before it is gone.
        family = descendants(self._process.pid)
        for number in (self._process.pid, *family):
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._process.wait()
        self._process = None

    def machine(self) -> SshMachine:
        target = SshTarget("127.0.0.1", getpass.getuser(), self.port, self.folder / "user", self.folder / "known_hosts")
        return SshMachine(target, address=f"ssh://127.0.0.1:{self.port}")


def processes_with(word: str) -> list[int]:
    """Process ids whose command line has this word, this process left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if word in (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"):
                    found.append(int(entry.name))
    return found


def is_of_this_test(number: int) -> bool:
    """True for a process that was started in a session of an :class:`Sshd` of this process."""
    try:
        return _MARK.encode() in (Path("/proc") / str(number) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False


def descendants(parent: int) -> list[int]:
    """Process ids of all that a process started, and of what they did."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError, ValueError):
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
                children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, todo = [], [parent]
    while todo:
        todo += (below := children.get(todo.pop(), []))
        found += below
    return found


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
