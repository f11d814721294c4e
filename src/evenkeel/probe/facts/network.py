"""What a network interface can besides moving packets: how many queues it may have, and its PTP clock.

Source: the ioctl of ethtool -l (no file tells), /sys/class/net/NIC/device/ptp.
"""

from __future__ import annotations

import json
from typing import Any

from evenkeel.probe import ethtool
from evenkeel.probe.facts.root import Root

_KINDS = ("combined", "rx", "tx")


def read_channels(root: Root, nic: str) -> dict[str, int] | None:
    """Counts now and at most, as the driver tells them; None: it has no such thing, or nobody recorded it."""
    said = root.ask("channels " + nic, lambda: _ask(nic))
    try:
        told = json.loads(said or "null")
        found = {kind: int(told[kind]) for kind in _KINDS}
        found.update(("most_" + kind, int(told["max_" + kind])) for kind in _KINDS)
    except (ValueError, TypeError, KeyError):
        return None
    return found


def _ask(nic: str) -> str | None:
    try:
        found = ethtool.channels(nic)
    except OSError:
        return None
    return json.dumps(found) if found is not None else None


def read_ptp_clock(root: Root, folder: str) -> int | None:
    """N of the /dev/ptpN that time-stamps this interface's packets.  ``folder``: its sysfs folder."""
    clocks: list[Any] = root.numbered(folder + "/device/ptp", "ptp")
    return clocks[0] if clocks else None
