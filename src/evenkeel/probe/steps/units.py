"""Step ``unit``: a systemd unit that must not run (``stopped``: stopped and masked) or must (``running``).

``{"kind": "unit", "unit": "irqbalance.service", "value": "stopped"}``.  A mask lies over the enablement links without
touching them, so taking it away restores exactly what was enabled before.
"""

from __future__ import annotations

import json
import re
from typing import Any

from evenkeel.probe import command
from evenkeel.probe.failure import StepFailed

PERSISTENT = True
_UNIT = re.compile(r"[A-Za-z0-9][A-Za-z0-9:_.@\\-]{0,254}\Z")
_RUNNING = ("active", "activating", "reloading", "refreshing")
_MASKED = ("masked", "masked-runtime")
#: Nothing starts a unit in these states by itself at boot.
_QUIET = (*_MASKED, "disabled")


def snapshot(step: dict[str, Any], root: str) -> str | None:
    """JSON: ``load``, ``active``, ``enabled`` as systemd names them; None: there is no such unit."""
    if not _UNIT.match(step["unit"]):
        raise StepFailed("%r is not the name of a unit" % step["unit"])
    properties = "--property=LoadState,ActiveState,UnitFileState"
    said = command.output(["systemctl", "show", properties, "--", step["unit"]], root=root)
    found = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if found.get("LoadState") == "not-found":
        return None
    return json.dumps(
        {
            "load": found.get("LoadState", ""),
            "active": found.get("ActiveState", ""),
            "enabled": found.get("UnitFileState", ""),
        }
    )


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    found = json.loads(state or "{}")
    if step["value"] == "stopped":  # a unit that is not installed does not run
        return state is None or (found["active"] not in _RUNNING and found["enabled"] in _QUIET)
    return bool(found) and found["active"] == "active"


def shown(step: dict[str, Any], state: str | None) -> str | None:
    if state is None:
        return None
    found = json.loads(state)
    if found["active"] in _RUNNING:
        return "running"
    return "stopped" if found["enabled"] in _QUIET else "stopped (%s)" % (found["enabled"] or "not masked")


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    unit, found = step["unit"], json.loads(state or "{}")
    if step["value"] == "stopped":
        if found["enabled"] not in _MASKED:
            _systemctl("mask", unit, root)  # first, so that nothing starts it again in between
        if found["active"] in _RUNNING:
            _systemctl("stop", unit, root)
    elif step["value"] == "running":
        if state is None:
            raise StepFailed("there is no unit %s; install the package that brings it" % unit, 2)
        if found["enabled"] in _MASKED:
            _systemctl("unmask", unit, root)
        _systemctl("start", unit, root)
    else:
        raise StepFailed("%r is not a state of a unit: stopped or running" % step["value"])


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    unit, old = step["unit"], json.loads(state or "{}")
    now = json.loads(snapshot(step, root) or "{}")
    if not old or not now or old == now:
        return
    if now["enabled"] in _MASKED and old["enabled"] not in _MASKED:
        _systemctl("unmask", unit, root)
    if old["active"] in _RUNNING and now["active"] not in _RUNNING:
        _systemctl("start", unit, root)
    elif old["active"] not in _RUNNING and now["active"] in _RUNNING:
        _systemctl("stop", unit, root)
    if old["enabled"] in _MASKED and now["enabled"] not in _MASKED:
        _systemctl("mask", unit, root)


def _systemctl(verb: str, unit: str, root: str) -> None:
    command.output(["systemctl", verb, "--", unit], 120.0, root=root)
