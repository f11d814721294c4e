"""Who holds /dev/cpu_dma_latency: a program that does keeps all CPUs out of deep idle states for as long as it runs.

A measurement beside one is true only as long as that program runs.  In a guest it is the same: its vCPUs then poll
instead of halting.  Reads only; must not judge.

Source: Documentation/power/pm_qos_interface.rst: the request lives as long as the file is open.
"""

from __future__ import annotations

import os
import time
from typing import Any

from evenkeel.probe.sample import OnProgress, read
from evenkeel.probe.sample_guest import guest_exec
from evenkeel.probe.sample_proc import parse_status

DEVICE = "/dev/cpu_dma_latency"


def dma_latency() -> list[dict[str, Any]] | None:
    """Processes that have the device open, other than this probe and what it started: ``pid`` and ``name``.

    None when it cannot be known: only root sees the files of everybody.
    """
    if os.geteuid() != 0:
        return None
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdecimal() and _holds("/proc/%s/fd" % entry) and not _is_ours(int(entry)):
            found.append({"pid": int(entry), "name": (read("/proc/%s/comm" % entry) or "").strip() or "?"})
    return sorted(found, key=lambda holder: holder["pid"])


class Holders:
    """Looks now and then while a measurement runs, so that one who comes and goes meanwhile is seen, too."""

    EVERY_S = 5.0

    def __init__(self) -> None:
        self._known = True
        self._names: set[str] = set()
        self._next_s = 0.0

    def look(self, now: bool = False, on_progress: OnProgress | None = None) -> None:
        """Look, when the last look is long enough ago: walking /proc costs milliseconds on a large host."""
        if not now and time.monotonic() < self._next_s:
            return
        found = self._find(on_progress)
        if found is None:
            self._known = False
        else:
            self._names.update("%s (pid %d)" % (holder["name"], holder["pid"]) for holder in found)
        self._next_s = time.monotonic() + self.EVERY_S

    def _find(self, on_progress: OnProgress | None) -> list[dict[str, Any]] | None:
        return dma_latency()

    def names(self) -> list[str] | None:
        return sorted(self._names) if self._known else None


class GuestHolders(Holders):
    """The same inside a guest, through its agent; rarely, because there it takes time of what is measured."""

    EVERY_S = 60.0

    def __init__(self, guest: str) -> None:
        super().__init__()
        self.guest = guest

    def _find(self, on_progress: OnProgress | None) -> list[dict[str, Any]] | None:
        try:
            ran = guest_exec(self.guest, ["/bin/sh", "-c", GUEST_SCRIPT], on_progress=on_progress)
        except OSError:
            return None
        return parse_guest(ran["stdout"])


#: Tests of the shell itself, no process for each of a thousand files.  The last line says that it came so far.
GUEST_SCRIPT = (
    r"""
for file in /proc/[0-9]*/fd/*; do
	[ "$file" -ef %s ] || continue
	pid=${file#/proc/}
	pid=${pid%%%%/*}
	name=?
	read -r name </proc/$pid/comm
	echo "$pid $name"
done 2>/dev/null
echo looked
"""
    % DEVICE
)


def parse_guest(text: str) -> list[dict[str, Any]] | None:
    """What :data:`GUEST_SCRIPT` printed; None when it did not come to its end."""
    lines = text.splitlines()
    if not lines or lines[-1] != "looked":
        return None
    found = {pid: name for pid, _, name in (line.partition(" ") for line in lines[:-1]) if pid.isdecimal()}
    return [{"pid": int(pid), "name": name or "?"} for pid, name in found.items()]


def _holds(folder: str) -> bool:
    try:
        entries = os.listdir(folder)
    except OSError:
        return False  # it ended
    for entry in entries:
        try:
            if os.readlink("%s/%s" % (folder, entry)) == DEVICE:
                return True
        except OSError:
            continue
    return False


def _is_ours(pid: int) -> bool:
    """Whether it is this process or descends from it."""
    while pid > 1:
        if pid == os.getpid():
            return True
        parent = parse_status(read("/proc/%d/status" % pid) or "").get("PPid", "0")
        pid = int(parent) if parent.isdecimal() else 0
    return False
