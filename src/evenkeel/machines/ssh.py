"""A machine over OpenSSH, one master connection for everything (ControlMaster), closed at the end.

Uses the ssh program, so that the user's own ~/.ssh/config, agent and jump hosts work.  No password prompts: BatchMode.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import stat
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

from evenkeel.errors import EvenkeelError, Unreachable
from evenkeel.machines.connection import ProcessProbe
from evenkeel.machines.protocol import OnProgress, Probe, ProbeError
from evenkeel.machines.zipapp import BOOTSTRAP

_NUMBERS = itertools.count(1)
#: Seconds that a master lives on without a conversation; what is left of one when we are killed.
PERSIST_S = 30


@dataclass(frozen=True)
class SshTarget:
    """Where to log in.  ``identity`` and ``known_hosts`` None: the user's own."""

    host: str
    user: str | None = None
    port: int | None = None
    identity: Path | None = None
    known_hosts: Path | None = None

    def options(self) -> list[str]:
        """ssh options without the destination."""
        options = ["-o", "BatchMode=yes", "-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=4"]
        options += ["-o", "ConnectTimeout=20"]
        if self.port:
            options += ["-p", str(self.port)]
        if self.identity:
            options += ["-i", str(self.identity), "-o", "IdentitiesOnly=yes"]
        if self.known_hosts:
            options += ["-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "StrictHostKeyChecking=yes"]
        return options

    @property
    def destination(self) -> str:
        return f"{self.user}@{self.host}" if self.user else self.host


class SshMachine:
    """A machine that OpenSSH reaches and that has Python 3.9 or newer."""

    read_only = False

    def __init__(self, target: SshTarget, *, address: str) -> None:
        self.address = address
        self.target = target
        self._control: Path | None = None

    def _argv(self, *remote: str) -> list[str]:
        # Each time: when our master ended by itself, another evenkeel may have removed the folder, empty then.
        folder = _socket_folder()
        if self._control is None:
            self._control = folder / f"{os.getpid()}-{next(_NUMBERS)}"
        master = ["-o", "ControlMaster=auto", "-o", f"ControlPath={self._control}", "-o", f"ControlPersist={PERSIST_S}"]
        # ssh joins the words and gives them to a shell on the other side: quote each, always.
        command = " ".join(shlex.quote(word) for word in remote)
        return ["ssh", *self.target.options(), *master, "--", self.target.destination, command]

    def probe(self) -> Probe:
        return ProcessProbe(self._argv("python3", "-I", "-c", BOOTSTRAP), machine=self.address, start_timeout_s=120.0)

    def reboot(self, *, on_progress: OnProgress | None = None, timeout_s: float = 600.0) -> None:
        """Ask for a reboot and wait for a new boot id.  Raises Unreachable when none shows up in time."""
        with self.probe() as probe:
            before = probe.call("hello")["boot_id"]
            try:
                probe.call("reboot", timeout_s=30.0)
            except (Unreachable, ProbeError) as error:
                if isinstance(error, ProbeError):
                    raise
        self.drop_master()
        self.wait_for_boot(before, on_progress=on_progress, timeout_s=timeout_s)

    def wait_for_boot(self, before: str | None, *, on_progress: OnProgress | None, timeout_s: float) -> str:
        """Wait until the probe answers with another boot id than ``before``; return it."""
        start = time.monotonic()
        last: EvenkeelError | None = None
        while (elapsed := time.monotonic() - start) < timeout_s:
            if on_progress:
                on_progress(int(elapsed), 0, "waiting for the machine to come back")
            try:
                with self.probe() as probe:
                    boot_id = str(probe.call("hello")["boot_id"])
                if boot_id != before:
                    return boot_id
            except EvenkeelError as error:
                last = error
            self.drop_master()
            time.sleep(1.0)
        raise Unreachable(
            f"{self.address}: not back within {timeout_s:.0f} s after the reboot",
            hint=f"look at its console; the last attempt said: {last.message}" if last else "look at its console",
        )

    def drop_master(self) -> None:
        """End the master connection, which is of no use once the machine went down."""
        if self._control is None:
            return
        # The master answers this itself, without the machine.
        subprocess.run(
            ["ssh", "-o", f"ControlPath={self._control}", "-O", "exit", "--", self.target.destination],
            capture_output=True,
            check=False,
            timeout=20,
        )
        self._control.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another evenkeel has its socket there
            self._control.parent.rmdir()
        self._control = None

    def close(self) -> None:
        self.drop_master()


def _socket_folder() -> Path:
    """The folder for control sockets, which only this user can enter; made when it is not there.

    Not a folder of its own: what SIGKILL keeps us from removing must not pile up.  ssh removes the socket itself when
    the master ends by itself.  Short, because ssh appends 17 characters and a socket path ends at 108.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(runtime) / "evenkeel" if 0 < len(runtime) < 50 else Path(f"/tmp/evenkeel-{os.getuid()}")
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        info = folder.lstat()
    except OSError as error:
        raise EvenkeelError(f"cannot make {folder} for ssh: {error.strerror}") from None
    if not stat.S_ISDIR(info.st_mode) or info.st_uid != os.getuid() or info.st_mode & 0o077:
        raise EvenkeelError(f"{folder} belongs to somebody else", hint="set XDG_RUNTIME_DIR to a folder of your own")
    return folder
