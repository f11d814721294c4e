"""What a count can be broken down by, and from the numbers that a program saw to the names that a person knows.

Names are looked up at the beginning and at the end, because what was counted may have ended meanwhile.
Must not load programs.
"""

from __future__ import annotations

import os
import pwd
import re
import struct
from typing import Any, Sequence

from evenkeel.probe.running import running_guests
from evenkeel.probe.sample import read
from evenkeel.probe.trace.tables import Row
from evenkeel.probe.trace.templates import COMM_BYTES

#: What a row is about -> what is taken of whoever runs (:class:`.templates.Current`); None: the command's name.
KEYS: dict[str, str | None] = {
    "process": "process",
    "thread": "thread",
    "command": None,
    "user": "user",
    "cgroup": "cgroup",
    "cpu": "cpu",
    # of threads, folded afterwards
    "vcpu": "thread",
    "guest": "thread",
}
_VCPU = re.compile(r"CPU (\d+)/")
_REST = "no guest"


def key_bytes(by: str) -> int:
    return COMM_BYTES if KEYS[by] is None else 8


class Names:
    """Names of what ran at the beginning; :meth:`rows` looks again for the rest."""

    def __init__(self, by: str) -> None:
        self.by = by
        self._guests = guest_threads() if by in ("vcpu", "guest") else {}

    def rows(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """``[{"key", "label", "count"}]``, the most frequent first."""
        if self.by in ("vcpu", "guest"):
            self._guests.update(guest_threads())
        cgroups = cgroup_paths({_number(row) for row in rows}) if self.by == "cgroup" else {}
        found: dict[str, dict[str, Any]] = {}
        for row in rows:
            key, label = self._name(row, cgroups)
            one = found.setdefault(key, {"key": key, "label": label, "count": 0})
            one["count"] += row.times
        return sorted(found.values(), key=lambda one: (-one["count"], one["key"]))

    def _name(self, row: Row, cgroups: dict[int, str]) -> tuple[str, str]:
        if self.by == "command":
            command = row.key.split(b"\0")[0].decode("utf-8", "replace")
            return command, command
        number = _number(row)
        if self.by in ("vcpu", "guest"):
            guest, what = self._guests.get(number, (_REST, ""))
            key = guest if self.by == "guest" or guest == _REST else "%s %s" % (guest, what)
            return key, key
        if self.by == "cpu":
            return str(number), "CPU %d" % number
        if self.by == "user":
            return str(number), user_name(number)
        if self.by == "cgroup":
            return str(number), cgroups.get(number, "a cgroup that is gone")
        return str(number), _command(number) or row.command


def _number(row: Row) -> int:
    return int(struct.unpack("=Q", row.key)[0])


def _command(number: int) -> str:
    """The name now: a program that was started since it was first seen had the name of its parent then."""
    if number == 0:
        return "idle"
    return (read("/proc/%d/comm" % number) or "").strip()


def user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return "user %d" % number


def guest_threads() -> dict[int, tuple[str, str]]:
    """Thread id -> (guest, "vCPU 0" or the thread's name), for every thread of every QEMU process."""
    found = {}
    for guest in running_guests():
        folder = "/proc/%d/task" % guest["process"]
        try:
            threads = os.listdir(folder)
        except OSError:
            continue  # it ended meanwhile
        for thread in threads:
            name = (read("%s/%s/comm" % (folder, thread)) or "").strip()
            match = _VCPU.match(name)
            found[int(thread)] = (guest["name"], "vCPU %s" % match.group(1) if match else name)
    return found


def cgroup_paths(wanted: set[int]) -> dict[int, str]:
    """Id -> path: the id of a cgroup is the inode number of its folder (64-bit systems, cgroup v2)."""
    found: dict[int, str] = {}
    places = ("/sys/fs/cgroup/unified", "/sys/fs/cgroup")
    top = next((place for place in places if os.path.exists(place + "/cgroup.procs")), None)
    if top is None:
        return found
    for folder, _, _ in os.walk(top):
        if len(found) == len(wanted):
            break
        try:
            inode = os.stat(folder).st_ino
        except OSError:
            continue
        if inode in wanted:
            found[inode] = folder[len(top) :] or "/"
    return found
