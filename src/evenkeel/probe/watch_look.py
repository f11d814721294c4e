"""Read again one part of the facts that an event may have changed, where reading all of them would take too long.

The readers are those of :mod:`evenkeel.probe.facts`; must not have any of its own.
"""

from __future__ import annotations

from typing import Any

from evenkeel.probe.facts.interrupts import read_interrupts
from evenkeel.probe.facts.kernel import uname
from evenkeel.probe.facts.root import Root
from evenkeel.probe.facts.threads import read_processes


def look(part: str, root: str = "/") -> Any:
    """Operation: ``interrupts`` or ``kernel_threads``, as the Facts document has them."""
    here = Root(root)
    if part == "interrupts":
        return read_interrupts(here, uname(here)["release"])
    if part == "kernel_threads":
        return read_processes(here, frozenset())[0]
    raise ValueError("%r is no part of the facts that can be read alone" % part)
