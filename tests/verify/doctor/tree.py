"""A recorded host as a tree in memory that a test may break: files are edited as an administrator would.

Every edit fails when there is nothing to edit, so that a fault cannot quietly be none.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Callable
from pathlib import Path

from evenkeel.documents.facts import Facts
from evenkeel.machines.tree import TarFiles, TreeMachine
from evenkeel.probe.facts import facts_of
from evenkeel.probe.facts.record import Recording
from evenkeel.probe.facts.root import ASKED, Root

MACHINES = Path(__file__).parents[2] / "machines" / "recorded"
#: Healthy hosts.  ``guests``: tuned, with a real-time and an ordinary guest running; ``smt``: tuned, with two threads a
#: core, no guest; ``fresh``: as installed.
BASES = {
    "guests": Path(__file__).parent / "recorded" / "virtual-2s3c-guests.tar.bz2",
    "smt": MACHINES / "virtual-2s3c2t-tuned.tar.bz2",
    "fresh": MACHINES / "virtual-2s3c2t.tar.bz2",
}
ETC_GUEST = "/etc/libvirt/qemu/plc.xml"
KERNEL_THREAD = 0x00200040
#: Where the boot arguments of the recorded hosts are written down.
ARGUMENTS = ("/proc/cmdline", "/boot/grub/grub.cfg", "/etc/default/grub.d/zz-evenkeel.cfg")


@functools.cache
def _recorded(base: str) -> TarFiles:
    files = TreeMachine(BASES[base]).files()
    assert isinstance(files, TarFiles)
    return files


class Tree:
    def __init__(self, base: str) -> None:
        self.files = copy.deepcopy(_recorded(base))
        if base == "guests":  # the disk of the recorded host has a queue for each CPU; a healthy one has four
            self.put("/proc/irq/29/smp_affinity_list", "0", mode=0o444)
            self.put("/proc/irq/30/smp_affinity_list", "1", mode=0o444)

    def facts(self) -> Facts:
        return Facts.model_validate(facts_of(Root(self.files)))

    def tarball(self) -> bytes:
        """What a recording of this host would be."""
        recording = Recording()
        facts_of(Root(self.files, recording))
        return recording.tarball()

    # -- files ---------------------------------------------------------------------------------------------------

    def text(self, path: str) -> str:
        return self.files.read(path).decode().rstrip("\n")

    def put(self, path: str, text: str, mode: int = 0o644) -> None:
        self.files.add_file(self.files.prefix + path, text.encode() + b"\n", mode)

    def change(self, path: str, text: str) -> None:
        """Another content of a file that is there."""
        assert self.text(path) != text, f"{path} already holds {text!r}"
        self.put(path, text, self.files.mode(path))

    def swap(self, path: str, old: str, new: str) -> None:
        before = self.text(path)
        assert old in before, f"{path} does not hold {old!r}"
        self.put(path, before.replace(old, new), self.files.mode(path))

    def remove(self, path: str) -> None:
        """A file, or a folder with all that is in it."""
        full = self.files.prefix + path
        gone = [one for one in (*self.files._modes, *self.files._names) if one == full or one.startswith(full + "/")]
        assert gone, f"there is no {path}"
        for one in gone:
            for table in (self.files._contents, self.files._modes, self.files._links, self.files._names):
                table.pop(one, None)
        parent, _, name = full.rpartition("/")
        self.files._names[parent].pop(name, None)

    # -- what a host has -----------------------------------------------------------------------------------------

    def argument(self, old: str, new: str) -> None:
        """Another boot argument, also where the boot loader has it."""
        for path in ARGUMENTS:
            try:
                self.text(path)
            except OSError:
                continue
            if self.text(path):  # a recording keeps of some files only that they are there
                self.swap(path, old, new)

    def said(self, question: str, answer: str) -> None:
        """Another answer of the recording: the kernel's log, its unknown parameters."""
        answers = json.loads(self.text(ASKED))
        answers[question] = answer
        self.put(ASKED, json.dumps(answers))

    def logged(self, kind: str, line: str) -> None:
        self.said("kernel-log", json.dumps({"complete": True, "lines": {kind: line}}))

    def _stats(self) -> list[str]:
        prefix = self.files.prefix
        return [path.removeprefix(prefix) for path in self.files._contents if re.search(r"/proc/\d.*/stat\Z", path)]

    def thread(
        self, name: str, *, policy: str | None = None, priority: int = 0, cpus: str | None = None, guest: bool = False
    ) -> None:
        """Another schedule of the threads of this name; ``guest``: of those of the guest plc."""
        found = [path for path in self._stats() if f"({name})" in self.text(path)]
        if guest:
            found = [path for path in found if path.startswith(f"/proc/{self.pid('plc')}/task/")]
        assert found, f"there is no thread {name}"
        for path in found:
            if policy is not None:
                head, _, rest = self.text(path).rpartition(") ")
                fields = rest.split()
                fields[37:39] = [str(priority), {"other": "0", "fifo": "1"}[policy]]
                self.change(path, f"{head}) {' '.join(fields)}")
            if cpus is not None:
                status = path.removesuffix("stat") + "status"
                self.change(status, re.sub(r"(Cpus_allowed_list:\s*)\S*", rf"\g<1>{cpus}", self.text(status)))

    def pid(self, guest: str) -> str:
        for path in list(self.files._contents):
            match = re.search(r"/proc/(\d+)/cmdline\Z", path)
            if match and f"guest={guest}," in self.text(match[0]):
                return match[1]
        raise AssertionError(f"guest {guest} does not run")

    def stop(self, guest: str) -> None:
        self.remove(f"/proc/{self.pid(guest)}")
        self.remove(f"/run/libvirt/qemu/{guest}.xml")

    def end(self, process: str) -> None:
        found = [path for path in self._stats() if f"({process})" in self.text(path)]
        assert found, f"{process} does not run"
        for path in found:
            self.remove(path.removesuffix("/stat"))

    def start(self, number: int, name: str, *, flags: int = 0x400100, cpus: str = "0-5") -> None:
        """A process, or with the flags of one a kernel thread."""
        fields = ["S", "2", *["0"] * 4, str(flags), *["0"] * 30, "0", "0", *["0"] * 11]
        self.put(f"/proc/{number}/stat", f"{number} ({name}) {' '.join(fields)}")
        self.put(f"/proc/{number}/status", f"Name:\t{name}\nCpus_allowed_list:\t{cpus}")

    def pages(self, node: int, count: int) -> None:
        """2 MiB pages of a node, and with them of the machine."""
        pool = "hugepages/hugepages-2048kB/nr_hugepages"
        self.change(f"/sys/devices/system/node/node{node}/{pool}", str(count))
        total = sum(int(self.text(f"/sys/devices/system/node/node{one}/{pool}")) for one in (0, 1))
        self.put(f"/sys/kernel/mm/{pool}", str(total))

    def interrupts(self, choose: Callable[[str], str]) -> None:
        """Another CPU for every interrupt: ``choose`` gets the present list."""
        for path in [one for one in self.files._contents if re.search(r"/proc/irq/\d+/.*affinity_list\Z", one)]:
            short = path.removeprefix(self.files.prefix)
            if self.text(short):
                self.put(short, choose(self.text(short)), self.files.mode(short))
