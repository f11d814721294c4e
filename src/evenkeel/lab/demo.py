"""The pool of `evenkeel lab demo`: virtual hosts of this machine, in a lab that runs on this machine.

What a run began is undone when it fails or is interrupted: no QEMU, no file, no machine in the pool, nothing in the
queue.  Prints nothing.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.lab.actor import Conflict, NotFound
from evenkeel.lab.client import Client
from evenkeel.machines.protocol import OnProgress
from evenkeel.machines.virtual import lifecycle
from evenkeel.machines.virtual.interrupt import undisturbed
from evenkeel.machines.virtual.spec import HostSpec

TAG = "demo"
_PREFIX = "lab-demo-"
_SUBMISSION = "lab-demo"
#: Two steps, of which the second takes a machine of the pool.
GRAPH: dict[str, Any] = {
    "version": 1,
    "name": _SUBMISSION,
    "steps": {
        "greet": {"step": {"kind": "demo-greet", "command": 'echo "hello from $(uname -n)"'}},
        "look": {
            "needs": ["greet"],
            "step": {
                "kind": "demo-look",
                "machine": f"tag:{TAG}",
                "command": 'echo "I have $MACHINE_NAME for myself"',
            },
        },
    },
}
#: A step that was cancelled gives its machine back within its grace and a little more.
_STEP_S = 15.0


def usual_hosts() -> int:
    """How many there are if nobody says: one where it has two cores to itself, else two."""
    return 1 if len(os.sched_getaffinity(0)) <= 2 else 2


def name_of(number: int) -> str:
    return f"{_PREFIX}{number}"


def need_here(lab: Client) -> str:
    """The URL of its pages.  Raises WrongInput when its service would not see virtual hosts of this user here."""
    if "://" in lab.at:
        raise WrongInput(
            "the virtual hosts of a demo are on this machine, and so must its lab be",
            hint="`evenkeel lab up` starts one; then leave out --lab, or name its folder",
        )
    url = str(lab.get("/service")["url"])
    if (owner := Path(lab.at).stat().st_uid) != os.geteuid():
        raise WrongInput(
            f"the lab at {lab.at} runs as another user (uid {owner}), who does not see your virtual hosts",
            hint="run the demo as that user, or `evenkeel lab up` as yourself",
        )
    return url


@dataclass
class Begun:
    """What a run has done so far.  ``made``: hosts that were not there; ``started``: that were, and did not run."""

    lab: Client
    made: list[str] = field(default_factory=list)
    started: list[str] = field(default_factory=list)
    enrolled: list[str] = field(default_factory=list)
    submission: int | None = None

    def boot(self, name: str, spec: HostSpec, on_progress: OnProgress | None = None) -> None:
        """A virtual host that runs; from a kept boot where there is one.

        Raises WrongInput when one of that name is there with another topology, and as :mod:`lifecycle` does.
        """
        if not lifecycle.exists(name):
            self.made.append(name)  # before it is: an interruption comes at any time
            try:
                lifecycle.create(name, spec, on_progress=on_progress)
            except EvenkeelError:  # it left nothing; one that is there now is another run's
                self.made.remove(name)
                raise
        elif lifecycle.read_host(name).spec != spec:
            raise WrongInput(f"{name} has another topology", hint="`evenkeel lab demo --rm` removes it")
        elif lifecycle.read_run(name) is None:
            self.started.append(name)
        lifecycle.start(name, reuse_boot=True, on_progress=on_progress)

    def enrol(self, name: str, facts: dict[str, Any], inventory: dict[str, Any] | None) -> str:
        """Have the lab know it; gives its name in the pool.  One of an earlier demo is that machine again."""
        address = f"virtual:{name}"
        wanted = {"name": name, "facts": facts, "inventory": inventory, "address": address, "site": TAG}
        wanted |= {"policy": {"tags": [TAG]}, "note": "A virtual host of `evenkeel lab demo`."}
        before = None
        with contextlib.suppress(NotFound):
            before = self.lab.get(f"/machines/{name}")
        if before is not None and before["address"] == address:
            wanted["same_as"] = name  # made anew it has another UUID
        if before is None or before["state"] == "retired":
            self.enrolled.append(name)
        known = self.lab.post("/machines", wanted)["machine"]
        way = {"kind": "hypervisor", "driver": "virtual", "address": address}
        self.lab.post(f"/machines/{known['name']}/endpoints", way)
        if known["state"] in ("suspect", "broken", "off"):
            self.lab.post(f"/machines/{known['name']}/state", {"state": "ready", "reason": "booted by the demo"})
        return str(known["name"])

    def submit(self) -> int:
        """Something to do for the pool."""
        self.submission = int(self.lab.post("/submissions", {"graph": GRAPH})["id"])
        return self.submission

    def undo(self) -> None:
        """As far as it goes: hosts first, which need no lab."""
        with undisturbed():
            for name in self.made:
                with contextlib.suppress(EvenkeelError):
                    lifecycle.remove(name)
            for name in self.started:
                with contextlib.suppress(EvenkeelError):
                    lifecycle.power_cut(name)
        with contextlib.suppress(EvenkeelError):
            if self.submission is not None:
                self.lab.post(f"/submissions/{self.submission}/cancel")
            for name in self.enrolled:
                _retire(self.lab, name, "the demo was interrupted")


@contextlib.contextmanager
def whole_or_nothing(lab: Client, say: Callable[[str], None] = lambda what: None) -> Iterator[Begun]:
    """What is begun within stays only when all of it came about."""
    begun = Begun(lab)
    try:
        yield begun
    except BaseException:
        say("removing what this run began")
        begun.undo()
        raise


def hosts() -> list[str]:
    """Virtual hosts that demos made, and that are there."""
    return [host.name for host in lifecycle.listing() if host.name.startswith(_PREFIX)]


def leave_pool(lab: Client) -> None:
    """Take all machines of demos out of the pool, and what they had to do out of the queue.

    Raises Conflict when somebody reserved one, Unreachable.
    """
    for one in lab.pages("/submissions", state="open"):
        if one["name"] == _SUBMISSION:
            with contextlib.suppress(Conflict):  # it has just ended
                lab.post(f"/submissions/{one['id']}/cancel")
    for one in lab.pages("/machines", q=f"tag:{TAG} site:{TAG}", facets=False):
        if str(lab.get(f"/machines/{one['name']}")["address"]).startswith(f"virtual:{_PREFIX}"):
            _retire(lab, one["name"], "the demo is over")


def remove(name: str) -> None:
    with undisturbed():
        lifecycle.remove(name)


def _retire(lab: Client, name: str, why: str) -> None:
    """A step that was cancelled may still hold it for a moment."""
    end = time.monotonic() + _STEP_S
    while True:
        try:
            lab.post(f"/machines/{name}/retire", {"reason": why})
        except Conflict:
            held = lab.get(f"/machines/{name}")["held"]
            if held is None or held["kind"] != "step" or time.monotonic() > end:
                raise
            time.sleep(0.2)
        else:
            return
