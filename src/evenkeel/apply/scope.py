"""What one run of apply may touch, and why the rest is left: disturbance classes against the guests that run.  Pure.

``live`` disturbs nothing that runs, ``drain`` wants the guests of the host shut down, ``reboot`` the host itself.
A run for live settings alone goes one step further: whatever would reach the CPUs of a running guest is left, too.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from evenkeel.apply.steps import Step
from evenkeel.documents.cpuset import format_cpus, parse_cpus, parse_mask
from evenkeel.documents.plan import HostPlan, Phase

_CPU_OF_PATH = re.compile(r"/cpu(\d+)(?:/|\Z)")
_CPU_OF_THREAD = re.compile(r"/(\d+)\Z")


@dataclass(frozen=True)
class RunningGuest:
    """A guest that runs on the host, one of ours or not, and the CPUs that its vCPUs may run on now."""

    name: str
    cpus: frozenset[int]


def changing(steps: Sequence[Step], found: Sequence[dict[str, Any]]) -> list[Step]:
    """The steps that would write, or that cannot even be looked at."""
    return [step for step, answer in zip(steps, found, strict=True) if answer["outcome"] in ("would_change", "failed")]


def needs_drain(steps: Sequence[Step]) -> list[Step]:
    """Those that want every guest of the host shut down.  A definition concerns its own guest alone."""
    return [step for step in steps if step.disturbance == "drain" and step.body["kind"] != "guest"]


def without_drain(steps: Sequence[Step], guests: Sequence[RunningGuest]) -> dict[str, str]:
    """Step name -> reason, for the steps that are left because guests run and may not be shut down."""
    if not guests:
        return {}
    names = ", ".join(guest.name for guest in guests)
    return {step.name: f"disturbs what runs ({names}); --drain shuts it down first" for step in needs_drain(steps)}


def live_only(
    host: HostPlan,
    steps: Sequence[Step],
    found: Sequence[dict[str, Any]],
    guests: Sequence[RunningGuest],
    not_schedulable: str | None,
) -> dict[str, str]:
    """Step name -> reason, for every step that a run for live settings alone leaves.

    ``not_schedulable``: why no guest may be started; None: the boot gate passed.  A guest is taken whole or left
    whole: half of its steps would have it run in the wrong place.
    """
    old = {step.name: answer["old"] for step, answer in zip(steps, found, strict=True)}
    reasons: dict[str, str] = {}
    for step in changing(steps, found):
        reason = _reason(host, step, old[step.name], guests, not_schedulable)
        if reason:
            reasons[step.name] = reason
    whole = {step.body["guest"]: reasons[step.name] for step in steps if step.name in reasons and "guest" in step.body}
    for step in changing(steps, found):
        guest = step.body.get("guest")
        if guest in whole:
            reasons.setdefault(step.name, f"another step for {guest} is left: {whole[guest]}")
    return reasons


def _reason(
    host: HostPlan, step: Step, old: str | None, guests: Sequence[RunningGuest], not_schedulable: str | None
) -> str | None:
    if step.disturbance == "reboot":
        return "needs a reboot"
    if step.disturbance == "drain":
        return "is no live setting: it wants the guests shut down (--drain)"
    if "guest" in step.body and not_schedulable:
        return f"the host is not schedulable: {not_schedulable}"
    for guest in guests:
        why = _touches(host, step, old, guest)
        if why:
            return f"{why}, and guest {guest.name} runs on CPUs {format_cpus(guest.cpus)}"
    return None


def _touches(host: HostPlan, step: Step, old: str | None, guest: RunningGuest) -> str | None:
    """How the step would reach a CPU of the guest; None: it does not.  What moves work away from it is welcome."""
    body = step.body
    if body.get("guest") == guest.name:
        return "it changes how that guest runs"
    if step.phase is Phase.THROTTLE:
        return "it changes how long a real-time thread may keep its CPU"
    if body["kind"] == "thread":
        cpu = _CPU_OF_THREAD.search(body["name"])
        return _there("a kernel thread of", {int(cpu[1])} if cpu else set(), guest)
    if body["kind"] == "file":
        cpu = _CPU_OF_PATH.search(body["path"])
        if cpu:
            return _there("a setting of", {int(cpu[1])}, guest)
        if body.get("compare") in ("cpulist", "cpumask"):
            return _gains("it sends work to", body["value"], old, body["compare"], guest)
        return None
    if body["kind"] == "interrupt":
        return _gains("it sends interrupts to", body["value"], old, "cpulist", guest)
    if body["kind"] == "partition":
        return _there("a partition takes", set(parse_cpus(body["value"])), guest)
    if body["kind"] == "guest_power":
        own = next((one for one in host.guests if one.name == body["guest"]), None)
        fifo = {cpu for vcpu in (own.vcpus if own else ()) if vcpu.policy == "fifo" for cpu in vcpu.cpus}
        return _there("a real-time vCPU would run on", fifo, guest)
    return None


def _there(what: str, cpus: set[int], guest: RunningGuest) -> str | None:
    shared = cpus & guest.cpus
    return f"{what} CPU {format_cpus(shared)}" if shared else None


def _gains(what: str, value: str, old: str | None, how: str, guest: RunningGuest) -> str | None:
    """Only CPUs that were not in the old value: a list that loses CPUs takes work away from them."""
    parse = parse_mask if how == "cpumask" else parse_cpus
    try:
        before = frozenset[int]().union(*(parse(word) for word in (old or "").split()))
    except ValueError:
        before = frozenset()
    return _there(what, set(parse(value) - before), guest)
