"""What `evenkeel lint nova` looks for: each kind of broken promise, with its why, its fix and its source.

docs/how-to/lint-nova.md lists them (a test holds the two together).  Which sentence of the checker is of which kind
stands here too; a sentence that none of them knows is not lost, it becomes N-OTHER.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Severity = Literal["harmful", "warning", "note"]
_HARDWARE = "nova/virt/hardware.py of 34.0.0"
_AGAIN = (
    "move it away and back (a cold migration computes the place anew), or rebuild it elsewhere; then read the "
    "database again, because Nova may answer the same way"
)


@dataclass(frozen=True)
class Fault:
    """``words``: how the checker's sentences of this kind look, after the name of the guest or the host."""

    id: str
    subject: Literal["guest", "page", "ledger"]
    severity: Severity
    healthy: str
    why: str
    fix: str
    source: str
    words: str | None = None


FAULTS: tuple[Fault, ...] = (
    Fault(
        "N-UNPINNED",
        "guest",
        "harmful",
        "every vCPU of a dedicated guest is pinned",
        "a vCPU without a pin runs wherever the host likes, beside or on the CPUs of others, and its guest was sold "
        "as dedicated; Nova accepts the claim",
        _AGAIN,
        f"{_HARDWARE}: the fit cache is keyed by a cell id that the search itself overwrites, so a guest cell that "
        "was never fitted counts as fitting (guests of three cells and more)",
        r"cell \d+ has \d+ vCPUs, and \d+ CPUs|it has \d+ cells, and CPUs for",
    ),
    Fault(
        "N-OTHER-NODE",
        "guest",
        "harmful",
        "every vCPU is pinned to a dedicated CPU of the node that its memory is on",
        "all its memory is remote, and it takes CPUs that the books of that node do not know to be taken",
        _AGAIN,
        f"{_HARDWARE}: a hit of the fit cache sets the node and keeps the pins of the node tried before",
        r"CPU \[.*\] is not free on node",
    ),
    Fault(
        "N-CPU-TWICE",
        "guest",
        "harmful",
        "no CPU is pinned twice",
        "two vCPUs take turns on one CPU, and each waits for the other",
        "move one of the two; free the CPU in the books by restarting nova-compute of that host",
        "nova/objects/numa.py: pin_cpus refuses it, but pin_cpus_with_siblings (isolate) pins nothing at all for CPUs "
        "that are in no core of the node, so that the next guest there is given the same",
        r"CPU \d+ is .*'s and .*'s$|two vCPUs of cell \d+ are on one CPU",
    ),
    Fault(
        "N-SIBLING",
        "guest",
        "harmful",
        "nobody is on a thread beside an isolate guest",
        "a busy thread beside takes up to half of the core, and more of its worst case",
        "move the guest that is on the thread beside",
        "docs.openstack.org/nova: hw:cpu_thread_policy isolate; "
        f"{_HARDWARE}: _get_reserved may choose the emulator's CPU on a core that is half used",
        r"vCPUs of cell \d+ share a core|CPU \[.*\] beside cell|CPU \d+ is kept empty by|"
        r"CPU \[.*\] is to stay empty and carries",
    ),
    Fault(
        "N-PAIRS",
        "guest",
        "harmful",
        "the vCPUs of a require guest fill whole cores",
        "its vCPUs are shown to it as siblings and are none, and strangers are on the other threads",
        _AGAIN,
        "docs.openstack.org/nova: hw:cpu_thread_policy require",
        r"the vCPUs of cell \d+ do not fill whole cores",
    ),
    Fault(
        "N-EMULATOR",
        "guest",
        "harmful",
        "an isolated emulator thread has one CPU of its own, on the node of guest cell 0",
        "the emulator thread then runs on the CPUs of the vCPUs and interrupts them, or on those of another guest",
        _AGAIN,
        "docs.openstack.org/nova: hw:emulator_threads_policy isolate",
        r"its emulator is|CPU \d+ of its emulator|CPU \[.*\] beside its emulator",
    ),
    Fault(
        "N-PAGES",
        "page",
        "harmful",
        "the guests of a node have no more pages of a size than it has",
        "the last to start fails, with 'unable to map backing store', perhaps months later after a reboot",
        "move the largest of the guests named, or give the node more pages of that size at boot",
        f"{_HARDWARE}: see N-UNPINNED; the pages of a cell that was never fitted were never counted",
        r"\d+ bytes in pages of",
    ),
    Fault(
        "N-MEMORY",
        "page",
        "harmful",
        "the guests of a node have no more memory than it has",
        "their memory goes to other nodes, or they are killed",
        "move the largest of the guests named",
        f"{_HARDWARE}: dedicated guests may not be overcommitted",
        r"\d+ bytes on node|\d+ bytes for all guests",
    ),
    Fault(
        "N-PAGE-SIZE",
        "page",
        "harmful",
        "a guest has pages of the size that its flavor asks for, and a whole number of them",
        "with smaller pages every access may cost more page walks than the guest was measured with",
        _AGAIN,
        "docs.openstack.org/nova: hw:mem_page_size",
        r"it wants pages of|it wants huge pages|it wants ordinary pages|the memory of a cell is no whole|its pages are",
    ),
    Fault(
        "N-NODE",
        "guest",
        "harmful",
        "each guest cell is on a node of its own that the host has",
        "the guest shows NUMA nodes to its software that are not there",
        "move it; if the hardware of the host changed, move all of its guests",
        "nova/objects/instance_numa.py: the id of a cell is that of the host's",
        r"node \[.*\] is not on|two of its cells are on one node|it has \d+ cells and \d+ nodes",
    ),
    Fault(
        "N-DEVICE-FAR",
        "guest",
        "harmful",
        "a device is as near to the guest as its policy demands, and of the kind that was asked for",
        "each transfer crosses the link between nodes, which costs latency and is shared",
        "detach it and attach one of the guest's node, or move the guest",
        "docs.openstack.org/nova: hw:pci_numa_affinity_policy (required, legacy, socket, preferred)",
        r"its functions are not those",
    ),
    Fault(
        "N-DEVICE-COUNT",
        "guest",
        "harmful",
        "a guest has as many devices as it asked for",
        "it starts without one, or does not start again",
        "look at the log of nova-compute for the claim of this guest",
        "nova/pci/stats.py: consume_requests",
        r"it wants \d+ functions, and has",
    ),
    Fault(
        "N-DEVICE-TAKEN",
        "guest",
        "harmful",
        "a device is one guest's alone, and a physical function is given only when none of its virtual ones is",
        "one of the two loses the device when the other starts",
        "detach it from one of the two",
        "nova/pci/stats.py: _handle_device_dependents",
        r"function \S+ is|\S+ has no function|IOMMU group",
    ),
    Fault(
        "N-OTHER",
        "guest",
        "harmful",
        "the checker of placements has nothing else to say",
        "a rule of the checker is broken for which there is no kind of its own",
        "read the sentence",
        "evenkeel/placement_check.py",
    ),
    Fault(
        "N-BOOKS",
        "ledger",
        "warning",
        "the books of a compute node say what its guests really hold",
        "Nova decides by its books: it refuses room that is free, or gives room that is taken",
        "restart nova-compute on that host, which adds its books up anew; if it comes back, look for 'CPUPinning' in "
        "its log",
        "nova/compute/resource_tracker.py: _update_usage_from_instance; a claim that raises leaves its guest stored",
    ),
    Fault(
        "N-NO-HOST",
        "ledger",
        "warning",
        "every guest is on a compute node that the database has",
        "nothing can be said about its place",
        "name the dumps of all cells; else the compute node was deleted under its guests",
        "nova/db/main/models.py: instances.host and node",
    ),
    Fault(
        "N-MOVING",
        "ledger",
        "note",
        "no guest is between two hosts",
        "a guest that is being resized or migrated holds room on both hosts, and only one is looked at",
        "read the database again when it has arrived; confirm or revert a resize that waits",
        "nova/compute/resource_tracker.py: tracked_migrations",
    ),
)
OTHER = next(fault for fault in FAULTS if fault.id == "N-OTHER")


def kind_of(sentence: str) -> Fault:
    """The kind of a sentence of the checker, the name before it taken off."""
    for fault in FAULTS:
        if fault.words and re.match(fault.words, sentence):
            return fault
    return OTHER
