"""What allowed a cause: the fact is in the recording, and the rule that is named exists and is about it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from evenkeel.documents.evidence import Conditions
from evenkeel.documents.explanation import Alignment, Allowed, Cause, Charge, Kind, Spike
from evenkeel.measure.explain import allowed as module
from evenkeel.measure.explain.allowed import allowed
from evenkeel.measure.explain.attribute import Stage
from evenkeel.measure.explain.clocks import Clock
from evenkeel.measure.explain.recording import Raw, Recording
from evenkeel.measure.explain.timeline import PREEMPTED, RUNS, HostTimeline
from evenkeel.measure.explain.trace import Trace
from evenkeel.plan.catalogue import entries
from tests.measure.explain.test_charge import EMULATOR, HOG, HOME, LESSER, MS, VCPU, host, scene, steps
from tests.report.test_timeline import explanation


def thread(tid: int, **changes: Any) -> dict[str, Any]:
    plain = {
        "tid": tid,
        "name": "CPU 1/KVM",
        "vcpu": 1,
        "policy": "fifo",
        "priority": 2,
        "cpus": "3",
        "partition": None,
    }
    return {**plain, **changes}


#: Each of them was on the vCPU's CPU.
RAN = host(running={HOME: steps((0, VCPU), (MS, HOG), (2 * MS, LESSER), (3 * MS, VCPU))})


def facts(kind: Kind, who: str, seen: HostTimeline = RAN, **vcpu: Any) -> tuple[Allowed, ...]:
    nothing = Trace({}, {})
    clock = Clock(0, 1.0)
    on = Stage({1: scene(seen)}, nothing, nothing, clock, clock, Alignment(method="tsc-offset", error_ns=0), 0, 0)
    threads = (thread(VCPU, **vcpu), thread(EMULATOR, name="qemu-system-x86", vcpu=None, cpus="0-1,3"))
    conditions = Conditions(kernel="6.12", preempt_rt=True, command_line="")
    raw = Raw({}, {}, "")
    recording = Recording("cell", "plc", conditions, 1.0, 1000, raw, raw, threads, {})
    causes = (Cause(kind=kind, who=who, ns=1, spikes=1, worst_ns=1),)
    (found,) = allowed(on, recording, explanation(causes=causes)).causes
    return found.allowed


def rules(found: tuple[Allowed, ...]) -> list[str | None]:
    return [one.rule for one in found]


def test_a_better_task_without_a_partition() -> None:
    found = facts(Kind.waits, "hog")
    assert rules(found) == ["G-3", "C-1"]
    assert found[0].fact == "hog ran at real-time priority 50, the vCPU at FIFO 2"
    assert found[1].fact == "CPU 3 is in no isolated partition, so hog may run there"


def test_a_task_that_is_there_in_spite_of_a_partition() -> None:
    assert "in spite of its isolated partition" in facts(Kind.waits, "hog", partition="isolated")[1].fact


def test_an_equal_or_lesser_task_is_no_question_of_priority() -> None:
    assert rules(facts(Kind.waits, "backup")) == ["C-1"]


def test_a_priority_that_was_lent_elsewhere_is_no_question_of_priority() -> None:
    elsewhere = {0: steps((0, LESSER), cpu=0)}
    ranks = {**RAN.ranks, 0: replace(elsewhere[0], what=np.array([88]))}
    seen = replace(RAN, running={**RAN.running, **elsewhere}, ranks=ranks)
    assert rules(facts(Kind.waits, "backup", seen)) == ["C-1"]
    lent = {HOME: replace(RAN.ranks[HOME], what=np.array([97, 49, 88, 97]))}
    assert rules(facts(Kind.waits, "backup", replace(RAN, ranks=lent))) == ["G-3", "C-1"]


def test_the_own_emulator_says_where_it_may_run() -> None:
    (found,) = facts(Kind.emulator, "qemu-system-x86")
    assert found.rule == "G-2" and "may run on CPU 0-1,3" in found.fact


@pytest.mark.parametrize(
    ("kind", "who", "rule"),
    [
        (Kind.waits, "ktimers/3", "H-ISO-2"),
        (Kind.waits, "irq/31-nvme0q4", "R-IRQ-1"),
        (Kind.waits, "kworker/u8:2", "R-WQ-1"),
        (Kind.migrated, "hog", "G-1"),
        (Kind.throttled, "backup", "R-RT-2"),
        (Kind.throttled, "idle", "R-RT-1"),
        (Kind.page_fault, "", "G-4"),
        (Kind.host_irq, "local_timer", "H-ISO-2"),
        (Kind.host_irq, "call_function_single", "R-IPI"),
        (Kind.host_irq, "nvme0q4", "R-IRQ-1"),
        (Kind.guest_thread, "cron", "I-CMD"),
        (Kind.guest_irq, "eth0", "I-CMD"),
    ],
)
def test_the_rule_that_is_about_it(kind: Kind, who: str, rule: str) -> None:
    assert rules(facts(kind, who)) == [rule]


@pytest.mark.parametrize(
    "kind", [Kind.asleep, Kind.unexplained, Kind.below, Kind.guest_nmi, Kind.exits, Kind.host_timer]
)
def test_where_no_fact_is_known_none_is_named(kind: Kind) -> None:
    assert facts(kind, "x") == ()


def beside(**changes: Any) -> tuple[Allowed, ...]:
    """CPU 7 is of one core with CPU 3, where the vCPU ran but for 2 to 6 ms; a sample of 10 ms was late then."""
    running = {3: steps((0, VCPU)), 7: steps((0, 0), (6 * MS, HOG), (9 * MS, EMULATOR), (9 * MS + 200_000, 0))}
    seen = host(thread=steps((0, RUNS), (2 * MS, PREEMPTED), (6 * MS, RUNS)), running=running)
    one = replace(scene(seen), **{"siblings": {3: (7,), 7: (3,)}, **changes})
    kind = Kind.guest_kernel
    spike = Spike(at_ns=10 * MS, vcpu=1, latency_ns=10 * MS, charges=(Charge(kind=kind, who="x", ns=3 * MS),))
    nothing, clock = Trace({}, {}), Clock(0, 1.0)
    on = Stage({1: one}, nothing, nothing, clock, clock, Alignment(method="tsc-offset", error_ns=0), 0, 0)
    raw = Raw({}, {}, "")
    conditions = Conditions(kernel="6.12", preempt_rt=True, command_line="")
    recording = Recording("cell", "plc", conditions, 1.0, 1000, raw, raw, (thread(VCPU),), {})
    causes = tuple(Cause(kind=kind, who=who, ns=1, spikes=1, worst_ns=1) for kind, who in ((kind, "x"), (kind, "y")))
    first, second = allowed(on, recording, explanation(causes=causes, spikes=(spike,))).causes
    assert second.allowed == (), "it had no part in a late sample"
    return first.allowed


def test_a_sibling_that_ran_something_is_told() -> None:
    """3 of the 6 ms in which the vCPU ran; that of 0.2 ms beside it is not worth a word."""
    (found,) = beside()
    assert found == Allowed(fact="hog ran on CPU 7, of one core with CPU 3 of vCPU 1, for 50% of its time", rule="S3")


def test_a_cpu_of_another_core_is_no_sibling() -> None:
    assert beside(siblings={}) == beside(siblings={3: (), 7: ()}) == beside(siblings={3: (5,)}) == ()


def test_every_rule_that_is_named_exists() -> None:
    known = {entry.id for entry in entries()}
    named = {rule for _, rule, _ in module._KERNEL_THREADS} | set(module._INTERRUPTS.values())
    assert named | {"S3", "G-1", "G-2", "G-3", "G-4", "C-1", "R-RT-1", "R-RT-2", "R-IRQ-1", "I-CMD"} <= known
