"""Device interrupts: where they may fire, where they do, and whether the kernel lets anybody change that.

Source: /proc/irq (Documentation/core-api/irq/irq-affinity.rst), /sys/kernel/irq.  Never writes to find out.
"""

from __future__ import annotations

import re
from typing import Any

from evenkeel.probe.facts.cpulist import format_list, parse_list
from evenkeel.probe.facts.root import Root

IRQ = "/proc/irq"

#: Interrupts that drivers spread over the CPUs with managed affinity, by their action.  Queue 0 of NVMe is the admin
#: queue, vector 0 of a virtio disk the configuration change: those are ordinary.
_MANAGED = re.compile(r"nvme\d+q[1-9]\d*\Z|virtio\d+-req\.\d+\Z")


def read_interrupts(root: Root, release: str) -> list[dict[str, Any]]:
    """Every numbered interrupt.  ``release``: the kernel's, because it decides what a writable file means."""
    told_by_mode = kernel_version(release) >= (6, 12)
    interrupts = []
    for number in root.numbered(IRQ, ""):
        folder = "%s/%d" % (IRQ, number)
        action = root.read("/sys/kernel/irq/%d/actions" % number)
        if action is None:  # before 4.9, or without CONFIG_SPARSE_IRQ: the folder of the handler has its name
            action = ",".join(root.folders(folder))
        affinity = root.read(folder + "/smp_affinity_list")
        interrupts.append(
            {
                "number": number,
                "action": action,
                "chip": root.read("/sys/kernel/irq/%d/chip_name" % number) or None,
                "affinity": format_list(parse_list(affinity)),
                "effective": format_list(parse_list(root.read(folder + "/effective_affinity_list"))),
                "managed": _managed(root, folder, action, told_by_mode),
            }
        )
    return interrupts


def kernel_version(release: str) -> tuple[int, int]:
    """``"6.12.100+deb12-rt-amd64"`` -> (6, 12); (0, 0) where there is none."""
    match = re.match(r"(\d+)\.(\d+)", release)
    return (int(match.group(1)), int(match.group(2))) if match else (0, 0)


def _managed(root: Root, folder: str, action: str, told_by_mode: bool) -> bool | None:
    """Whether a write of the affinity would be refused; None where only a write would tell.

    Since 6.12 the kernel makes smp_affinity and smp_affinity_list read-only (0444) where user space may not set them
    (irq_can_set_affinity_usr() in register_irq_proc(), kernel/irq/proc.c).  That is true of managed interrupts, and of
    the few that no one can move (the timer on IRQ 0, the cascade on 2): both refuse, so both answer True.
    """
    mode = root.mode(folder + "/smp_affinity_list")
    if mode is not None and not mode & 0o222:
        return True
    if told_by_mode:
        return None if mode is None else False
    return True if _MANAGED.match(action) else None
