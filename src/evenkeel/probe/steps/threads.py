"""Step ``thread``: policy and priority of every kernel thread of a name.

``{"kind": "thread", "name": "ktimers/2", "value": "fifo:11"}``
"""

from __future__ import annotations

import json
from typing import Any

from evenkeel.probe import tasks
from evenkeel.probe.failure import StepFailed

PERSISTENT = False


def snapshot(step: dict[str, Any], root: str) -> str | None:
    """JSON: process id -> schedule, for the threads of that name; None: there is none."""
    found = {}
    for process, name in tasks.kernel_threads(root):
        now = tasks.schedule(process) if name == step["name"] else None
        if now is not None:
            found[str(process)] = now
    return json.dumps(found) if found else None


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    return state is not None and set(json.loads(state).values()) == {step["value"]}


def shown(step: dict[str, Any], state: str | None) -> str | None:
    return ",".join(sorted(set(json.loads(state).values()))) if state is not None else None


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    if state is None:
        raise StepFailed("there is no kernel thread named %s; make the plan anew from fresh facts" % step["name"], 2)
    for process in json.loads(state):
        tasks.set_schedule(int(process), step["value"])


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    # Only threads of that name: a process id may have gone to something else.
    living = json.loads(snapshot(step, root) or "{}")
    for process, old in json.loads(state or "{}").items():
        if living.get(process, old) != old:
            tasks.set_schedule(int(process), old)
