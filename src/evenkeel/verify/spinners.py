"""What disturbed a busy thread on a real-time CPU.  Pure; counts, no latencies: exact in emulation as well.

The spinner shares its CPU with a vCPU.  A guest that is busy all the time is its own spinner: its vCPU thread is judged
then.  One that works now and then disturbs the spinner itself, by its own timers and each time that it wakes: what
passes with that passes all the more without; what fails may be its doing, and is not judged.  A thread that is in the
vCPU's cgroup and is none of the guest's vCPUs is an intruder: the guest is never blamed for it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.findings import Check
from evenkeel.documents.plan import HostPlan
from evenkeel.verify.catalogue import SPIN_IRQ, SPIN_LOAD, SPIN_TICK, Kind, item, shorten
from evenkeel.verify.observe import Observation, Options

#: Measured on PREEMPT_RT 6.12: 4 to 9 timer interrupts in 4 s on a nohz_full CPU, hundreds on any other.
TICKS_IN_4_S = 9
#: How much less often than on a housekeeping CPU a spinner must lose its CPU under load.
FEWER = 5
#: Share of its CPU that an idle guest's vCPU may use, and that a busy one must.
IDLE, BUSY = 0.05, 0.90
#: Share of its CPU that a spinner must get under load.  Below it the switches say little, whoever took the rest.
ENOUGH = 0.80


@dataclass(frozen=True)
class Busy:
    """The thread that was busy on one CPU: our spinner, or the vCPU.

    ``involuntary``: switches that took the CPU away, those by the guest's own waking up left out.  ``share``: of the
    CPU, the guest's share included.  ``doubt``: why a bad number may be the guest's doing.  ``intruder``: who else used
    the CPU, from the vCPU's own cgroup.
    """

    cpu: int
    seconds: float
    ticks: int
    devices: dict[str, int]
    others: dict[str, int]
    involuntary: int
    share: float
    placement: str
    doubt: str = ""
    intruder: str = ""

    def told(self) -> str:
        others = " ".join(f"{name} {count}" for name, count in sorted(self.others.items()))
        return (
            f"{self.ticks} timer interrupts, {sum(self.devices.values())} device interrupts, {self.involuntary} "
            f"involuntary switches, {100 * self.share:.0f} % of the CPU in {self.seconds:.1f} s"
            + (f"; {others}" if others else "")
            + "".join(f"; {text}" for text in (self.placement, self.doubt, self.intruder) if text)
        )


def busy(spin: dict[str, Any]) -> Busy:
    """Whom to judge on the CPU of this spin."""
    seconds = float(spin["seconds"]) or 1.0
    tenants = spin.get("tenants", [])
    used = sum(_share(tenant, seconds) for tenant in tenants)
    alone = used >= BUSY  # at its real-time priority the vCPU leaves nothing to the spinner
    lost = sum(tenant["involuntary_switches"] for tenant in tenants)
    intruder = _intruder(spin, seconds)
    return Busy(
        cpu=int(spin["cpu"]),
        seconds=seconds,
        ticks=int(spin["timer_interrupts"]),
        devices=dict(spin["device_interrupts"]),
        others=dict(spin["other_interrupts"]),
        involuntary=lost if alone else spin["involuntary_switches"] - by_guest(spin) + lost,
        share=used if alone else _share(spin, seconds) + used,
        placement="the guest's vCPU itself, which was busy throughout" if alone else spin["placement"],
        doubt=f"the guest used {100 * used:.0f} % of CPU {spin['cpu']} meanwhile"
        if IDLE < used < BUSY and not intruder
        else "",
        intruder=intruder,
    )


def by_guest(spin: dict[str, Any]) -> int:
    """Of the spinner's involuntary switches, those by the guest whose CPU it is: each time that the vCPU wakes up it
    takes the CPU once, and goes to sleep again by itself.
    """
    woke = sum(int(tenant["voluntary_switches"]) for tenant in spin.get("tenants", ()))
    return min(int(spin["involuntary_switches"]), woke)


def _intruder(spin: dict[str, Any], seconds: float) -> str:
    """Who took a share that counts, and how much; one that sleeps disturbs nobody."""
    shares = [(_share(one, seconds), one) for one in spin.get("intruders", ())]
    told = [
        f"{one['name']} ({one['tid']}) used {100 * share:.0f} % of CPU {spin['cpu']}"
        for share, one in shares
        if share > IDLE
    ]
    return f"{shorten(told, 3)}, in the vCPU's cgroup and not of the guest" if told else ""


def _share(one: dict[str, Any], seconds: float) -> float:
    """Of its CPU, by the thread's own window: the count's is shorter by what reading the interrupts took."""
    return float(one["cpu_seconds"]) / (one.get("watched_seconds") or seconds)


def check(host: HostPlan, seen: Observation, options: Options) -> tuple[Check, ...]:
    """Three checks, where the plan isolates a CPU."""
    if not host.ledger.isolated:
        return ()
    quiet = _all(seen.quiet, seen.control)
    loaded = _all(seen.loaded, seen.control)
    control = next((busy(s) for s in (seen.loaded or {}).get("spins", ()) if s["cpu"] == seen.control), None)
    left_out = "" if options.spinners else "left out (--quick)"
    return (
        _ticks(quiet, left_out or seen.trouble.get("quiet", "")),
        _load(loaded, control, left_out or _no_load(options) or seen.trouble.get("loaded", ""), seen),
        _devices([*quiet, *loaded], left_out or seen.trouble.get("quiet", "")),
    )


def _no_load(options: Options) -> str:
    return "left out (--load none)" if options.load == "none" else ""


def _all(answer: dict[str, Any] | None, control: int | None) -> list[Busy]:
    return [busy(spin) for spin in (answer or {}).get("spins", ()) if spin["cpu"] != control]


def limit(seconds: float) -> int:
    """Timer interrupts that are allowed in ``seconds``."""
    return max(TICKS_IN_4_S, math.ceil(TICKS_IN_4_S * seconds / 4))


def _ticks(found: list[Busy], reason: str) -> Check:
    expected = f"at most {TICKS_IN_4_S} in 4 s"
    if refused := _refused(SPIN_TICK, found, reason, expected):
        return refused
    worst = max(found, key=lambda one: one.ticks / one.seconds)
    # Beside an intruder at real-time priority the tick may rest all the same, for it was not the spinner that ran.
    wrong = [one for one in found if one.intruder or one.ticks > limit(one.seconds)]
    if doubtful := _doubtful(SPIN_TICK, wrong, expected, lambda one: f"{one.ticks} in {one.seconds:.1f} s"):
        return doubtful
    return SPIN_TICK.judge(
        not wrong,
        expected=expected,
        observed=f"{worst.ticks} in {worst.seconds:.1f} s on CPU {worst.cpu}{_beside(found)}",
        evidence=_evidence(found),
    )


def _load(found: list[Busy], control: Busy | None, reason: str, seen: Observation) -> Check:
    """Judged against a spinner on a housekeeping CPU at the same time: the strength of the load does not matter."""
    expected = f"at least {FEWER} times fewer involuntary switches than on a housekeeping CPU"
    if refused := _refused(SPIN_LOAD, found, reason, expected):
        return refused
    if control is None:
        return SPIN_LOAD.not_checked("there was no housekeeping CPU to compare with", expected=expected)
    load = (seen.loaded or {}).get("load", "load")
    worst = max(found, key=lambda one: one.involuntary)
    wrong = [one for one in found if one.share < ENOUGH or one.involuntary * FEWER > control.involuntary]
    if doubtful := _doubtful(SPIN_LOAD, wrong, expected, lambda one: f"{one.involuntary} involuntary switches"):
        return doubtful
    starved = [one for one in found if one.share < ENOUGH]
    if control.involuntary < FEWER and not starved:
        # Also where the real-time CPU had none: a load that did not even reach the housekeeping CPU tested nothing.
        return SPIN_LOAD.not_checked(
            f"{load} took housekeeping CPU {control.cpu} away only {control.involuntary} times, CPU {worst.cpu} "
            f"{worst.involuntary} times: fewer than {FEWER} prove nothing",
            expected=expected,
        )
    observed = f"{worst.involuntary} on CPU {worst.cpu}, {control.involuntary} on CPU {control.cpu}, with {load}"
    if starved:
        observed += f"; CPU {format_cpus(one.cpu for one in starved)} gave only {100 * starved[0].share:.0f} %"
    observed += _beside(found)
    evidence = [*_evidence(found), item(f"for comparison, housekeeping CPU {control.cpu}", control.told())]
    return SPIN_LOAD.judge(
        not wrong,
        expected=expected,
        observed=observed,
        evidence=evidence,
    )


def _devices(found: list[Busy], reason: str) -> Check:
    if refused := _refused(SPIN_IRQ, found, reason, "0"):
        return refused
    told = [f"{name} {n} times on CPU {one.cpu}" for one in found for name, n in sorted(one.devices.items())]
    return SPIN_IRQ.judge(not told, expected="0", observed=shorten(told) or "0", evidence=_evidence(found))


def _refused(kind: Kind, found: list[Busy], reason: str, expected: str) -> Check | None:
    """The check that could not be made, or None."""
    return None if found else kind.not_checked(reason or "no spinner was run", expected=expected)


def _doubtful(kind: Kind, wrong: list[Busy], expected: str, told: Callable[[Busy], str]) -> Check | None:
    """The check that found something which may be the guest's own doing, or None."""
    if not wrong or not all(one.doubt for one in wrong):
        return None
    one = wrong[0]
    return kind.not_checked(
        f"{told(one)} on CPU {one.cpu}, but {one.doubt}: it may be its own doing. Verify while it is idle",
        expected=expected,
    )


def _beside(found: Iterable[Busy]) -> str:
    return "".join(f"; {one.intruder}" for one in found if one.intruder)


def _evidence(found: Iterable[Busy]) -> list[Any]:
    return [item(f"spinner on CPU {one.cpu}", one.told()) for one in found]
