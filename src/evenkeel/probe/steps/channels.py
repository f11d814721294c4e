"""Step ``channels``: how many queues a network interface has.

``{"kind": "channels", "nic": "eth0", "value": "combined=4"}`` or ``"rx=2 tx=2"``.  Drivers reset the device for it, so
the link goes down for a moment and its interrupts are made anew.
"""

from __future__ import annotations

import json
import re
from typing import Any

from evenkeel.probe import ethtool
from evenkeel.probe.failure import StepFailed, from_os_error

PERSISTENT = False
_KINDS = ("combined", "rx", "tx")
_VALUE = re.compile(r"(combined|rx|tx)=(\d{1,4})\Z")


def parse(value: str) -> dict[str, int]:
    """``"rx=2 tx=2"`` -> {"rx": 2, "tx": 2}.  Raises StepFailed."""
    found = {}
    for word in value.split():
        match = _VALUE.match(word)
        if match is None:
            raise StepFailed("%r is no number of channels: write combined=4, or rx=2 tx=2" % value)
        found[match.group(1)] = int(match.group(2))
    if not found or not sum(found.values()):
        raise StepFailed("%r leaves the interface no queue" % value)
    return found


def snapshot(step: dict[str, Any], root: str) -> str | None:
    """JSON: the counts now; None: the interface is gone, or its driver has no channels."""
    parse(step["value"])
    now = ethtool.channels(step["nic"]) if root == "/" else None
    return json.dumps({kind: now[kind] for kind in _KINDS}) if now is not None else None


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    return state is not None and parse(step["value"]).items() <= json.loads(state).items()


def shown(step: dict[str, Any], state: str | None) -> str | None:
    """The kinds that the step names, in its words."""
    if state is None:
        return None
    now = json.loads(state)
    return " ".join("%s=%d" % (kind, now[kind]) for kind in parse(step["value"]))


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    if state is None:
        raise StepFailed(
            "there is no interface %s with channels; make the plan anew from fresh facts" % step["nic"], 19
        )
    _set(step["nic"], parse(step["value"]))


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    now = snapshot(step, root)
    if state is None or now is None or now == state:
        return  # it was not there, or is gone, or nothing was written
    _set(step["nic"], json.loads(state))


def _set(nic: str, counts: dict[str, int]) -> None:
    try:
        ethtool.set_channels(nic, counts)
    except OSError as error:
        wanted = " ".join("%s=%d" % item for item in counts.items())
        raise from_os_error(error, "cannot give %s the channels %s" % (nic, wanted)) from None
