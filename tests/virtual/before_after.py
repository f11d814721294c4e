"""What of a virtual host must be as it was, once all that was written to it is undone."""

from __future__ import annotations

import contextlib
import re
from typing import Any

from evenkeel.apply.hosts import read_facts
from evenkeel.documents.facts import Facts
from evenkeel.machines.virtual import VirtualMachine

#: Every byte that the boot layer may touch, as a script of the shell that prints it.
BOOT_FILES = (
    "find /boot/grub /etc/default /etc/grub.d -type f ! -name '*.mod' -exec stat -c '%n %a' {} + -exec sha256sum {} +"
)


def facts_of(machine: VirtualMachine) -> Facts:
    with machine.probe() as probe:
        return read_facts(probe)


def settings(facts: Facts) -> dict[str, str]:
    """Every value that can be set."""
    return dict(facts.settings)


def stable(facts: Facts) -> dict[str, Any]:
    """Facts without what another boot of the same machine draws anew: interrupt numbers, where irqbalance put them
    at this moment, and the pages that the kernel took for itself."""
    data = facts.model_dump(mode="json", exclude={"interrupts", "memory_bytes"})
    data["interrupts"] = sorted((one.action, str(one.managed), one.chip or "") for one in facts.interrupts)
    threads = [(re.sub(r"^irq/\d+", "irq", t.name), t.policy, t.priority) for t in facts.kernel_threads]
    data["kernel_threads"] = sorted(threads)
    for node in data["nodes"]:
        with contextlib.suppress(KeyError):
            del node["memory_bytes"]
    return data
