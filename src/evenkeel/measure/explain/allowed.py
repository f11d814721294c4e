"""Which fact allowed a cause, and which rule of the catalogue would have prevented it.  Pure.

Facts are taken from the recording itself: priorities and CPUs as the scheduler used them, the threads of the guest as
they were set.  A rule is named only where it is about that very fact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import groupby
from typing import Any

import numpy as np

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.explanation import Allowed, Cause, Explanation, Kind, Spike
from evenkeel.measure.explain.attribute import Stage
from evenkeel.measure.explain.charge import Scene
from evenkeel.measure.explain.recording import Recording
from evenkeel.measure.explain.timeline import IDLE, RUNS

#: Kernel threads by the begin of their name, and the rule that is about them.
_KERNEL_THREADS = (
    ("irq/", "R-IRQ-1", "interrupt threads run on the CPU of their interrupt"),
    ("kworker", "R-WQ-1", "kernel work may run on this CPU"),
    ("ktimers", "H-ISO-2", "timers of the kernel expire on this CPU"),
    ("ksoftirqd", "R-IRQ-1", "interrupts and their soft part are handled on this CPU"),
    ("rcuc", "H-ISO-3", "RCU callbacks of this CPU are run on it"),
    ("rcuop", "H-ISO-3", "RCU callbacks run on this CPU"),
    ("rcuog", "H-ISO-3", "RCU callbacks run on this CPU"),
    ("kvm-nx-lpage", "R-KVM-4", "KVM recovers huge pages on the CPU of the vCPU"),
    ("kvm-pit", "R-KVM-5", "a helper of KVM runs on the CPU of the vCPU"),
    ("vhost", "R-KVM-5", "a helper of KVM runs on the CPU of the vCPU"),
)
_INTERRUPTS = {"local_timer": "H-ISO-2", "reschedule": "R-IPI", "call_function": "R-IPI", "irq_work": "R-IPI"}
#: Causes that take longer while another thread of the core runs something: the vCPU's own thread ran.
_SLOWED = frozenset(
    {
        *(Kind.page_fault, Kind.exits, Kind.delivery),
        *(Kind.guest_nmi, Kind.guest_irq, Kind.guest_softirq, Kind.guest_thread, Kind.guest_kernel),
    }
)
#: A sibling that ran for less of that time is not told.
_SHARED = 0.1
_REALTIME = 100  # kernel priorities below this are real-time: 99 is FIFO 0, 49 is FIFO 50


def allowed(on: Stage, recording: Recording, explanation: Explanation) -> Explanation:
    """The same with the facts that made each cause possible; nothing where none is known."""
    threads = {thread["tid"]: thread for thread in recording.threads}
    causes = []
    for cause in explanation.causes:
        facts: list[Allowed] = []
        for vcpu, scene in sorted(on.scenes.items()):
            found = _facts(cause.kind, cause.who, vcpu, scene, threads)
            if cause.kind in _SLOWED and scene.siblings:
                late = [spike for spike in explanation.spikes if spike.vcpu == vcpu and _has_part(cause, spike)]
                found += _of_siblings(vcpu, scene, late)
            facts += [fact for fact in found if fact not in facts]
        causes.append(cause.model_copy(update={"allowed": tuple(facts)}))
    return explanation.model_copy(update={"causes": tuple(causes)})


def _facts(kind: Kind, who: str, vcpu: int, scene: Scene, threads: Mapping[int, Mapping[str, Any]]) -> list[Allowed]:
    home, own = format_cpus(scene.home), threads[scene.tid]
    match kind:
        case Kind.waits:
            return _of_task(who, scene, own, home)
        case Kind.emulator:
            placed = {
                threads[tid]["cpus"]
                for tid in scene.family
                if threads[tid]["name"] == who or who in threads[tid]["name"]
            }
            where = ", ".join(sorted(placed)) or "it"
            return [
                Allowed(
                    fact=f"{who}, of the guest's own QEMU, may run on CPU {where}; vCPU {vcpu} is on {home}", rule="G-2"
                )
            ]
        case Kind.migrated:
            return [Allowed(fact=f"vCPU {vcpu} was moved away from CPU {home}", rule="G-1")]
        case Kind.throttled:
            fact = f"vCPU {vcpu} at {_policy(own)} had to leave CPU {home} to {who}"
            rule = "R-RT-2" if own["policy"] in ("fifo", "rr") and who != "idle" else "R-RT-1"
            return [
                Allowed(
                    fact=fact + (": the fair server takes its share" if rule == "R-RT-2" else ": its time was used up"),
                    rule=rule,
                )
            ]
        case Kind.page_fault:
            return [
                Allowed(
                    fact="memory of the guest was not mapped: not locked, or its pages were split or given back",
                    rule="G-4",
                )
            ]
        case Kind.host_irq:
            rule = _INTERRUPTS.get(who.removesuffix("_single"), "R-IRQ-1")
            return [Allowed(fact=f"{who} interrupts CPU {home}", rule=rule)]
        case Kind.guest_thread:
            return [
                Allowed(
                    fact=f"in the guest {who} may run on vCPU {vcpu}, before timerlat's FIFO 95 or in the kernel",
                    rule="I-CMD",
                )
            ]
        case Kind.guest_irq | Kind.guest_softirq:
            return [Allowed(fact=f"in the guest {who} is handled on vCPU {vcpu}", rule="I-CMD")]
        case _:
            return []


def _of_task(who: str, scene: Scene, own: Mapping[str, Any], home: str) -> list[Allowed]:
    for begin, rule, fact in _KERNEL_THREADS:
        if who.startswith(begin):
            return [Allowed(fact=fact, rule=rule)]
    facts = []
    host = scene.host
    # With what they came to the vCPU's CPU: what one of that name was lent elsewhere did nothing here.
    pids = [pid for pid, name in host.names.items() if name == who]
    here = [(host.ranks[cpu].what, host.running[cpu].what) for cpu in scene.home & host.running.keys()]
    theirs = [int(rank) for ranks, ran in here for rank in np.unique(ranks[np.isin(ran, pids)])]
    if theirs and min(theirs) < host.own:
        facts.append(
            Allowed(fact=f"{who} ran at {_kernel_policy(min(theirs))}, the vCPU at {_policy(own)}", rule="G-3")
        )
    if own.get("partition") != "isolated":
        facts.append(Allowed(fact=f"CPU {home} is in no isolated partition, so {who} may run there", rule="C-1"))
    else:
        facts.append(
            Allowed(
                fact=f"{who} was put on CPU {home} in spite of its isolated partition: by its owner, or pinned before",
                rule="C-1",
            )
        )
    return facts


def _has_part(cause: Cause, spike: Spike) -> bool:
    return any((charge.kind, charge.who) == (cause.kind, cause.who) for charge in spike.charges)


def _of_siblings(vcpu: int, scene: Scene, spikes: Iterable[Spike]) -> list[Allowed]:
    """What ran the longest on each sibling of the vCPU's CPU while the vCPU ran, in what surely is of these samples."""
    whole, ran = 0, Counter[tuple[int, int, str]]()
    for spike in spikes:
        begin, end = spike.at_ns - spike.latency_ns + scene.error_ns, spike.at_ns - scene.error_ns
        for state in scene.host.thread.cut(begin, end):
            if state.what != RUNS:
                continue
            whole += state.end - state.start
            for cpu in scene.siblings.get(state.cpu, ()):
                running = scene.host.running.get(cpu)
                for span in running.cut(state.start, state.end) if running else ():
                    if span.what not in (IDLE, scene.tid):
                        name = scene.host.names.get(span.what, f"pid {span.what}")
                        ran[state.cpu, cpu, name] += span.end - span.start
    found = []
    for (home, cpu), parts in groupby(sorted(ran.items()), key=lambda item: item[0][:2]):
        (*_, name), ns = max(parts, key=lambda item: item[1])
        if ns >= _SHARED * whole:
            core = f"of one core with CPU {home} of vCPU {vcpu}"
            found.append(Allowed(fact=f"{name} ran on CPU {cpu}, {core}, for {ns / whole:.0%} of its time", rule="S3"))
    return found


def _policy(thread: Mapping[str, Any]) -> str:
    return f"FIFO {thread['priority']}" if thread["policy"] == "fifo" else str(thread["policy"]).upper()


def _kernel_policy(priority: int) -> str:
    return f"real-time priority {_REALTIME - 1 - priority}" if priority < _REALTIME else "ordinary priority"
