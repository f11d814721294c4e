"""Step ``interrupt``: CPUs that all interrupts with one action may fire on.

``{"kind": "interrupt", "action": "eth0-rx-1", "value": "0-1"}``.  Numbers are looked up when it is written: they
change from boot to boot, actions do not.
"""

from __future__ import annotations

import errno
import json
import os
from typing import Any

from evenkeel.probe.compare import matches
from evenkeel.probe.failure import Refused, StepFailed, from_os_error
from evenkeel.probe.inside import inside
from evenkeel.probe.steps.files import read_value, write_value

PERSISTENT = False
ABSENT_IS_FINE = True  # many drivers ask for their interrupts only while the link is up
_IRQ = "/proc/irq"


def numbers(action: str, root: str) -> list[int]:
    """Every interrupt with this action.  A shared line has the actions of all its handlers, by comma."""
    found = []
    for entry in os.listdir(inside(root, _IRQ)):
        if not entry.isdigit():
            continue
        actions = read_value("/sys/kernel/irq/%s/actions" % entry, root)
        if actions is None:  # before 4.9, or without CONFIG_SPARSE_IRQ: each handler has a folder of its name
            folder = inside(root, "%s/%s" % (_IRQ, entry))
            actions = ",".join(sorted(name for name in os.listdir(folder) if os.path.isdir(os.path.join(folder, name))))
        if action in (actions.strip(), *actions.strip().split(",")):
            found.append(int(entry))
    return sorted(found)


def snapshot(step: dict[str, Any], root: str) -> str | None:
    """JSON: interrupt number -> list of CPUs; None: no interrupt has this action."""
    found = {}
    for number in numbers(step["action"], root):
        value = read_value(_file(number), root)
        if value is not None:
            found[str(number)] = value
    return json.dumps(found) if found else None


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    return state is not None and all(matches(value, step["value"], "cpulist") for value in json.loads(state).values())


def shown(step: dict[str, Any], state: str | None) -> str | None:
    return " ".join(sorted({value.strip() for value in json.loads(state).values()})) if state is not None else None


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    """Raises Refused when the kernel owns the affinity of one of them: EPERM since 6.12, EIO before."""
    refused = []
    for number, old in json.loads(state or "{}").items():
        if matches(old, step["value"], "cpulist"):
            continue
        try:
            write_value(_file(number), step["value"] + "\n", root)
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.EIO, errno.EACCES):
                raise from_os_error(error, "cannot write %r" % step["value"], _file(number)) from None
            refused.append((number, error.errno))
    if refused:
        raise Refused(
            "the kernel keeps the affinity of managed interrupt %s to itself" % ", ".join(n for n, _ in refused),
            refused[0][1],
        )


def undo(step: dict[str, Any], state: str | None, root: str) -> None:
    for number, old in json.loads(state or "{}").items():
        now = read_value(_file(number), root)
        if now is None or now == old:
            continue
        try:
            write_value(_file(number), old, root)
        except OSError as error:
            if error.errno in (errno.EPERM, errno.EIO, errno.EACCES):
                continue  # it became managed: the driver was reset meanwhile, and the kernel placed it
            raise from_os_error(error, "cannot write back %r" % old.strip(), _file(number)) from None
        now = read_value(_file(number), root)
        if now != old and not matches(now, old, "cpulist"):
            raise StepFailed("wrote back %r and reads %r" % (old.strip(), (now or "").strip()), None, _file(number))


def _file(number: int | str) -> str:
    return "%s/%s/smp_affinity_list" % (_IRQ, number)
