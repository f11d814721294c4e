"""The gentlest way: the machine's own operating system, over ssh.  Also reads which boot it is in.

The boot id (``/proc/sys/kernel/random/boot_id``) is what proves a restart, whoever caused it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.lab.power_drivers import Action, PowerFailed, Reading, Way, program
from evenkeel.machines.ssh import SshTarget
from evenkeel.probe.boot_id import BOOT_ID

_LOOK = f"cat {BOOT_ID} /proc/uptime /proc/loadavg"
#: Below /var/lib, which systems with a root that is read-only can write, too.
_MARK = Path("/var/lib/evenkeel/before-installation")
#: ssh's words for: it never came as far as the command.
_NEVER_THERE = ("connect to host", "resolve hostname", "banner exchange", "kex_exchange_identification")
_COMMANDS: dict[str, str] = {"off": "poweroff", "reset": "reboot"}


@dataclass(frozen=True)
class Boot:
    """``uptime_s``: of the kernel; ``load``: processes that ran in the last minute, on average."""

    id: str
    uptime_s: float
    load: float


class Ssh:
    actions: frozenset[Action] = frozenset({"off", "reset"})
    reads_machine = True

    def __init__(self, way: Way) -> None:
        self._way = way

    def status(self, deadline_s: float) -> Reading:
        """A host that answers is on; one that does not is anything."""
        try:
            self.boot(deadline_s)
        except PowerFailed:
            return "unknown"
        return "on"

    def boot(self, deadline_s: float) -> Boot:
        """Which boot the host is in.  Raises PowerFailed."""
        said = self._run(_LOOK, deadline_s).split()
        if len(said) < 4 or not re.fullmatch(r"[0-9a-f-]{36}", said[0]):
            raise PowerFailed(f"ssh {self._way.address}: the host does not tell its boot id")
        return Boot(said[0], float(said[1]), float(said[3]))

    def act(self, action: Action, deadline_s: float) -> str:
        verb = _COMMANDS[action]
        sudo = self._sudo()
        # --no-block: ssh would otherwise be cut off in the middle of its own answer.
        self._run(f"{sudo}systemctl {verb} --no-block || {sudo}{verb}", deadline_s)
        return verb

    def watts(self, deadline_s: float) -> float | None:
        return None

    def mark(self, deadline_s: float) -> None:
        """Leave a file on its disk, which no system has that is installed after this.  Raises PowerFailed."""
        self._run(f"{self._sudo()}mkdir -p {_MARK.parent} && {self._sudo()}touch {_MARK} && sync {_MARK}", deadline_s)

    def marked(self, deadline_s: float) -> bool:
        """Raises PowerFailed."""
        return self._run(f"test -e {_MARK} && echo marked || echo new", deadline_s).strip() != "new"

    def _sudo(self) -> str:
        return "" if self.target().user in (None, "root") else "sudo -n "

    def target(self) -> SshTarget:
        """Where to log in, as of now: a virtual host has another port each time.  Raises PowerFailed, WrongInput."""
        address = self._way.address
        if address.startswith("virtual:"):
            from evenkeel.machines.virtual import lifecycle

            try:
                return lifecycle.ssh_target(address.removeprefix("virtual:"))
            except Unreachable as error:
                raise PowerFailed(error.message, silent=True) from None
        parts = urlsplit(address if "://" in address else f"ssh://{address}")
        if parts.scheme != "ssh" or not parts.hostname or parts.hostname.startswith("-"):
            raise WrongInput(f"{address!r} is no address for ssh", hint="ssh://root@HOST:PORT, or virtual:NAME")
        files = {
            name: Path(self._way.options[name]) for name in ("identity", "known_hosts") if name in self._way.options
        }
        return SshTarget(parts.hostname, parts.username, parts.port, **files)

    def _run(self, command: str, deadline_s: float) -> str:
        target = self.target()
        options = target.options()
        if self._way.address.startswith("virtual:"):
            options = ["-F", "/dev/null", "-o", "IdentityAgent=none", *options]
        # The first of two options counts.
        argv = ["ssh", "-o", f"ConnectTimeout={max(1, round(deadline_s))}", "-o", "LogLevel=ERROR", *options]
        what = f"ssh {self._way.address}"
        done = program([*argv, "--", target.destination, command], deadline_s, what)
        if done.returncode:
            said = done.stderr.strip().splitlines()
            why = said[-1][:200] if said else f"ended with {done.returncode}"
            # 255 is ssh's own; a refused key still shows that somebody answers.
            refused = "Permission denied" in why or "Host key verification failed" in why
            silent = done.returncode == 255 and not refused
            # A host that goes down at once cuts off its own answer: seen with busybox' reboot.
            late = silent and not any(words in why for words in _NEVER_THERE)
            raise PowerFailed(f"{what}: {why}", silent=silent, late=late)
        return done.stdout
