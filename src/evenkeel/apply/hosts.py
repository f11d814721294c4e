"""Conversations with a host that several verbs share: facts, journal, checks, patience.

Reads only, but for :func:`settle`, which waits.  Nothing here decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from typing import Any

from pydantic import ValidationError

from evenkeel.apply.scope import RunningGuest
from evenkeel.apply.steps import Step
from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.journal import JournalEntry
from evenkeel.errors import Unreachable, WrongInput
from evenkeel.machines.protocol import Machine, OnProgress, Probe, ProbeError

#: Longest wait for systemd to finish its start-up jobs after a boot; verification tells what comes later still.
SETTLE_S = 300.0


class HostJournal:
    """The journal as read from a host, and what follows from it."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.entries = tuple(JournalEntry.model_validate(entry) for entry in answer["entries"])
        self.boot_id: str = answer["boot_id"]
        self.writer: int | None = answer["writer"]
        self.not_ready: str | None = answer["not_ready"]
        #: Whether the boot gate passed since the kernel started: only then guests may run.
        self.schedulable: bool = answer["schedulable"]

    @property
    def outstanding(self) -> tuple[JournalEntry, ...]:
        """Intents that were not undone, oldest first: what a rollback would restore."""
        undone = {entry.sequence for entry in self.entries if entry.event == "undone"}
        return tuple(e for e in self.entries if e.event == "intent" and e.sequence not in undone)

    @property
    def last_frame(self) -> JournalEntry | None:
        """The last begin, reboot, gate or end."""
        frames = [entry for entry in self.entries if entry.event in ("begin", "reboot", "gate", "end")]
        return frames[-1] if frames else None

    @property
    def interrupted(self) -> bool:
        """Whether the last run has no end: it was killed, or it runs right now."""
        return self.last_frame is not None and self.last_frame.event != "end"

    @property
    def applied_plan(self) -> str | None:
        """SHA-256 of the plan that the outstanding entries belong to, the newest one."""
        return self.outstanding[-1].plan_sha256 if self.outstanding else None

    def finished(self, sequence: int) -> JournalEntry | None:
        """The ``done`` or ``refused`` of an intent."""
        return next((e for e in self.entries if e.sequence == sequence and e.event in ("done", "refused")), None)


def ask_facts(address: str, on_progress: OnProgress | None = None) -> Facts:
    """Facts of a machine that nothing else is asked.  Raises Unreachable."""
    from evenkeel.machines.address import resolve

    with closing(resolve(address)) as machine, machine.probe() as probe:
        return read_facts(probe, on_progress, address)


def read_facts(probe: Probe, on_progress: OnProgress | None = None, address: str = "") -> Facts:
    """``address``: for the error, where there may be several machines.

    Raises Unreachable when nothing comes for five minutes, or something that is no facts.
    """
    return facts_of(probe.call("facts", on_progress=on_progress, timeout_s=300.0), address)


def facts_of(answer: object, address: str = "") -> Facts:
    """What a probe answered, as a document.  Raises Unreachable when it is none."""
    try:
        return Facts.model_validate(answer)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = f"the probe answers with facts that make no sense ({place}: {first['msg']})"
        raise Unreachable(f"{address}: {said}" if address else said) from None


def read_journal(probe: Probe) -> HostJournal:
    return HostJournal(probe.call("journal_read"))


def read_values(probe: Probe, paths: Sequence[str]) -> dict[str, str]:
    """Contents of files; one that cannot be read is missing from the answer."""
    values: dict[str, str] = probe.call("read", paths=list(paths))["values"] if paths else {}
    return values


def check_steps(probe: Probe, steps: Iterable[Step]) -> list[dict[str, Any]]:
    """What each step would do now; without waiting for anything."""
    bodies = [{**step.body, "wait_s": 0} if "wait_s" in step.body else step.body for step in steps]
    found: list[dict[str, Any]] = probe.call("check_steps", steps=bodies, timeout_s=300.0)
    return found


def running_guests(probe: Probe) -> list[RunningGuest]:
    """Every guest that runs on the host, those that are none of ours and none of libvirt's too."""
    return [RunningGuest(name=guest["name"], cpus=parse_cpus(guest["cpus"])) for guest in probe.call("running_guests")]


def require_root(probe: Probe, machine: Machine) -> None:
    """Raises WrongInput when the probe does not run as root."""
    if probe.call("hello")["uid"] != 0:
        raise WrongInput(
            f"{machine.address}: not root there, so nothing can be written",
            hint="run evenkeel with sudo" if machine.address == "local" else "use ssh://root@HOST",
        )


def settle(probe: Probe, on_progress: OnProgress) -> None:
    """Wait until systemd has no start-up jobs left: a service that starts later would set its own values over ours.

    ``on_progress`` is called every second and may raise to leave.
    """
    start = time.monotonic()
    while (elapsed := time.monotonic() - start) < SETTLE_S:
        on_progress(int(elapsed), 0, "waiting for the services of the host to start")
        try:
            state = probe.call("run", argv=["systemctl", "is-system-running"])["stdout"].strip()
        except ProbeError:
            return  # no systemd: nothing starts later
        if state not in ("initializing", "starting"):
            return  # also "degraded": a service that failed does not come any more
        time.sleep(1.0)


def patient_probe(machine: Machine, within_s: float, check: Callable[[], None] | None = None) -> Probe:
    """A conversation with a machine that may be away for a moment.  ``check()`` is called between attempts."""
    deadline = time.monotonic() + within_s
    while True:
        try:
            return machine.probe()
        except Unreachable:
            if time.monotonic() > deadline:
                raise
            if check:
                check()
            time.sleep(2.0)
