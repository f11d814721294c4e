"""Exits of a guest: counters that KVM keeps anyway, and its event where they are refused or do not say why.

The counters cost nothing: they are read before and after.  ``debugfs`` has them for every guest, and a locked-down
kernel refuses it; libvirt asks QEMU for them.  Never changes a guest.
"""

from __future__ import annotations

import errno
import os
import re
import struct
import subprocess
from typing import Any, Callable, Sequence

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.running import running_guests
from evenkeel.probe.trace import tracefs
from evenkeel.probe.trace.sources import Hook, refused
from evenkeel.probe.trace.tables import Row
from evenkeel.probe.trace.templates import Current, Packed, Record

EVENT = "kvm:kvm_exit"
#: Exits that KVM cannot handle itself, of every kind of KVM; some (PVM) have no other event.
USERSPACE = "kvm:kvm_userspace_exit"
_DEBUGFS = "/sys/kernel/debug"
_VCPU = re.compile(r"vcpu(\d+)\Z")
#: What counts as an exit in KVM's statistics; "exits" is all of them.
_COUNTED = re.compile(r"exits\Z|\w+_exits\Z|hypercalls\Z|insn_emulation\Z")
_DOMSTATS = re.compile(r"vcpu\.(\d+)\.(\w+?)\.sum=(\d+)\Z")
_SYMBOLS = re.compile(r"__print_symbolic\(REC->(?:exit_)?reason[^,]*,(.*?)\}\)", re.DOTALL)
_SYMBOL = re.compile(r"\{ (0x[0-9a-f]+|-?\d+), (?:\"KVM_EXIT_\" )?\"(\w+)\" \}?")


def process_of(guest: str) -> int:
    """Process id of a running guest.  Raises StepFailed ENOENT with the names there are."""
    found = running_guests()
    for one in found:
        if one["name"] == guest:
            return int(one["process"])
    names = ", ".join(one["name"] for one in found) or "none"
    raise StepFailed("no guest %s runs here; running: %s" % (guest, names), errno.ENOENT)


class Statistics:
    """Numbers that only grow, by vCPU and name, read when it begins and when it ends."""

    def __init__(self, guest: str) -> None:
        self.guest = guest
        self.process = process_of(guest)
        self._before: dict[tuple[int, str], int] = {}
        self._after: dict[tuple[int, str], int] = {}

    def read(self) -> dict[tuple[int, str], int]:
        raise NotImplementedError

    def attach(self) -> None:
        self._before = self._after = self.read()

    def detach(self) -> None:
        self._after = self.read()

    def grown(self) -> dict[tuple[int, str], int]:
        return {key: value - self._before.get(key, 0) for key, value in self._after.items()}

    def total(self) -> int:
        return sum(count for (_, name), count in self.grown().items() if name == "exits")

    def lost(self) -> int:
        return 0

    def rows(self) -> list[dict[str, Any]]:
        found = [
            {"key": "vCPU %d" % vcpu, "label": name, "count": count}
            for (vcpu, name), count in sorted(self.grown().items())
            if count
        ]
        return sorted(found, key=lambda row: -row["count"])

    def close(self) -> None:
        pass


class Debugfs(Statistics):
    """``/sys/kernel/debug/kvm/PID-FD/vcpuN``."""

    def __init__(self, guest: str) -> None:
        """Raises StepFailed: EPERM under lockdown, ENOENT when the guest does not run by KVM."""
        super().__init__(guest)
        try:
            top = _DEBUGFS if os.path.isdir(_DEBUGFS + "/kvm") else tracefs.detached("debugfs")
            names = os.listdir(top + "/kvm")
        except OSError as error:
            raise refused(error, "cannot read the counters of KVM in debugfs") from None
        folders = [name for name in names if name.startswith("%d-" % self.process)]
        if not folders:
            raise StepFailed("KVM does not run guest %s; is it emulated?" % guest, errno.ENOENT)
        self._folder = "%s/kvm/%s" % (top, folders[0])
        self.read()  # whether it may

    def read(self) -> dict[tuple[int, str], int]:
        found = {}
        try:
            for entry in os.listdir(self._folder):
                match = _VCPU.match(entry)
                for name in os.listdir("%s/%s" % (self._folder, entry)) if match else ():
                    if match and _COUNTED.match(name):
                        with open("%s/%s/%s" % (self._folder, entry, name)) as file:
                            found[int(match.group(1)), name] = int(file.read())
        except OSError as error:
            raise refused(error, "cannot read the counters of KVM in debugfs") from None
        if not found:
            found = self._of_guest()
        return found

    def _of_guest(self) -> dict[tuple[int, str], int]:
        """Kernels whose vcpuN folders have no counters keep sums for the whole guest: they are given to vCPU 0."""
        found = {}
        try:
            for name in os.listdir(self._folder):
                if _COUNTED.match(name):
                    with open("%s/%s" % (self._folder, name)) as file:
                        found[0, name] = int(file.read())
        except OSError as error:
            raise refused(error, "cannot read the counters of KVM in debugfs") from None
        return found

    def rows(self) -> list[dict[str, Any]]:
        """Sums are of the guest and not of its first vCPU."""
        rows = super().rows()
        if not os.path.exists(self._folder + "/vcpu0/exits"):
            for row in rows:
                row["key"] = self.guest
        return rows

    def mechanism(self) -> str:
        return "counters of KVM in debugfs"


class Libvirt(Statistics):
    """``virsh domstats --vcpu``: libvirt asks QEMU, and does not mark the guest as tampered with."""

    def __init__(self, guest: str) -> None:
        """Raises StepFailed."""
        super().__init__(guest)
        if not self.read():
            raise StepFailed("libvirt has no exits of guest %s; is it emulated, or too old?" % guest, errno.ENODATA)

    def read(self) -> dict[tuple[int, str], int]:
        argv = ["virsh", "-c", "qemu:///system", "domstats", "--vcpu", self.guest]
        try:
            done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=20, check=False)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise StepFailed("virsh: %s" % error, getattr(error, "errno", None)) from None
        if done.returncode:
            said = done.stderr.decode("utf-8", "replace").strip().splitlines()
            raise StepFailed("virsh: %s" % (said[-1] if said else "failed"), errno.ENOENT)
        return parse_domstats(done.stdout.decode("utf-8", "replace"))

    def mechanism(self) -> str:
        return "counters of KVM, by libvirt"


def parse_domstats(text: str) -> dict[tuple[int, str], int]:
    """``vcpu.0.exits.sum=812`` and the like -> (vCPU, name) -> number."""
    found = {}
    for line in text.splitlines():
        match = _DOMSTATS.match(line.strip())
        if match and _COUNTED.match(match.group(2)):
            found[int(match.group(1)), match.group(2)] = int(match.group(3))
    return found


COUNTERS: dict[str, Callable[[str], Statistics]] = {"debugfs": Debugfs, "libvirt": Libvirt}


# -- the event --------------------------------------------------------------------------------------------------------


def reason_key(hook: Hook) -> Packed:
    """vCPU, kind of processor and reason in one number.  Raises StepFailed where the record lacks one (before 5.11)."""
    vcpu, isa, reason = (hook.field(name) for name in ("vcpu_id", "isa", "exit_reason"))
    assert isinstance(vcpu, Record) and isinstance(isa, Record) and isinstance(reason, Record)
    return Packed(((vcpu, 48), (isa, 32), (reason, 0)))


def reasons(text: str) -> dict[tuple[int, int], str]:
    """(1 for VMX or 2 for SVM, number) -> name, from the event's own format: the kernel prints them by it."""
    found = {}
    for isa, table in enumerate(_SYMBOLS.findall(text), 1):
        for number, name in _SYMBOL.findall(table + "}"):
            found[isa, int(number, 0)] = name
    return found


def reason_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    known = reasons(tracefs.read(tracefs.event_folder(EVENT) + "/format"))
    found = []
    for row in rows:
        number = struct.unpack("=Q", row.key)[0]
        isa, reason = number >> 32 & 0xFFFF, number & 0xFFFFFFFF
        plain = reason & 0xFFFF if isa == 1 else reason
        name = known.get((isa, plain), "reason %#x" % reason)
        found.append({"key": "vCPU %d" % (number >> 48), "label": name, "count": row.times})
    return found


def userspace_key(hook: Hook) -> Packed:
    """Thread and reason in one number: the record does not have the vCPU."""
    reason = hook.field("reason")
    assert isinstance(reason, Record)
    return Packed(((Current("thread"), 32), (reason, 0)))


def userspace_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    known = reasons(tracefs.read(tracefs.event_folder(USERSPACE) + "/format"))
    found = []
    for row in rows:
        number = struct.unpack("=Q", row.key)[0]
        vcpu = re.match(r"CPU (\d+)/", row.command)
        key = "vCPU %s" % vcpu.group(1) if vcpu else row.command
        name = known.get((1, number & 0xFFFFFFFF), str(number & 0xFFFFFFFF))
        found.append({"key": key, "label": "to QEMU: %s" % name, "count": row.times})
    return found
