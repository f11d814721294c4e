"""Which source answers a question at the lowest cost, and why not the others.  Pure.

The ladder is a table of nanoseconds an event; with the rate of the event it becomes a share of a core.  Which source
works is not known here: the caller tries them in this order, and the kernel says.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evenkeel.documents.answer import Question, Refused, TraceCost

SYSCALLS = "raw_syscalls:sys_enter"
#: Events a second that are assumed where nobody could count them beforehand.
NOMINAL_RATE = 1000.0
TABLE = "the table (Linux 6.18, x86)"


@dataclass(frozen=True)
class Source:
    """One way to see an event.  ``ns``: kind of question -> what one event costs; it cannot answer other kinds.

    ``other_ns``: what every other system call costs besides, where the source sees them all.
    """

    name: str
    ns: Mapping[str, float]
    other_ns: float = 0.0
    cannot: str = ""


#: Measured as the difference of quickest chunks of a loop of getuid on Linux 6.18 (x86, mitigations on); some 28 ns of
#: each are the kernel's own slow path of a system call that is traced.
SOURCES = {
    one.name: one
    for one in (
        Source("raw_tp", {"count": 28, "top": 33, "latency": 56, "wakeups": 85, "record": 80}, other_ns=8),
        Source("tp_btf", {"count": 28, "top": 33, "latency": 56, "wakeups": 85, "record": 80}, other_ns=8),
        Source("perf", {"count": 32}, cannot="a counter tells neither by whom nor when"),
        Source(
            "tracepoint",
            {"count": 44, "top": 49, "latency": 72, "wakeups": 101, "noise": 101, "exits": 49, "record": 96},
        ),
        Source("ring", {"count": 66, "record": 112}, cannot="it would write records, to be read and sorted outside"),
        # In a virtual machine without KVM only their order could be measured; an int3 kprobe costs some 300.
        Source("fentry", {"count": 30, "top": 35, "latency": 58, "record": 82}),
        Source("function", {"count": 60}, cannot="it would write a record for each call"),
        Source("kprobe", {"count": 70, "top": 75, "latency": 98, "record": 122}),
        # 14.6 us were measured under nested virtualisation.
        Source("uprobe", {"count": 1500, "top": 1505, "latency": 1528, "record": 1552}),
        # With a user's and a kernel's stack.
        Source("sampling", {"profile": 4000}),
        # Counters that KVM keeps anyway, read twice.
        Source("debugfs", {"exits": 0}),
        Source("libvirt", {"exits": 0}),
    )
}
#: Sources that have all of an event's record: what they do not find there does not exist.
SEES_FIELDS = ("tracepoint", "ring", "debugfs", "function", "uprobe")
#: What each kind of event can be seen by.
_ON_TRACEPOINT = ("raw_tp", "tp_btf", "perf", "tracepoint", "ring")
_ON_COUNTER = ("perf",)
_ON_FUNCTION = ("fentry", "function", "kprobe")
#: Windows would cut durations in two.
_SAMPLED = ("count", "top")


def pace(question: Question, ns_per_event: float, rate: float) -> float:
    """The share of the time for which it may be attached, so that it takes no more than the budget: 1 is always."""
    share = ns_per_event * rate / 1e9
    if question.kind not in _SAMPLED or share <= question.budget:
        return 1.0
    return max(0.001, question.budget / share)


def sources_of(question: Question) -> tuple[str, ...]:
    """What can be tried at all."""
    if question.kind == "profile":
        return ("sampling",)
    if question.kind == "exits":
        return ("debugfs", "libvirt", "tracepoint")
    if question.kind == "noise":
        return ("tracepoint",)  # the others do not have the number of an interrupt
    system = question.events[0].partition(":")[0]
    if system in ("software", "hardware"):
        return _ON_COUNTER
    return {"function": _ON_FUNCTION, "uprobe": ("uprobe",)}.get(system, _ON_TRACEPOINT)


@dataclass(frozen=True)
class Candidate:
    """A source that could answer, with what it would cost."""

    source: str
    cost: TraceCost


def ladder(
    question: Question, rates: Mapping[str, float], measured_ns: Mapping[str, float] | None = None
) -> tuple[tuple[Candidate, ...], tuple[tuple[float, Refused], ...]]:
    """Candidates, cheapest first; and what cannot answer by its nature, each with the cost that it would have had.

    ``rates``: events a second, as far as they are known; of samples by the kind of question.  ``measured_ns``: source
    -> ns an event as calibrated on the machine itself, in place of the table.
    """
    known_rates = [rates[event] for event in question.events if event in rates]
    rate = sum(known_rates) if known_rates else rates.get(question.kind, NOMINAL_RATE)
    sees_all = any(event.startswith("syscalls:") for event in question.events)
    others = max(0.0, rates.get(SYSCALLS, rate) - rate) if sees_all else 0.0
    candidates, unable = [], []
    for name in sources_of(question):
        source = SOURCES[name]
        known = source.ns.get(question.kind)
        each = (measured_ns or {}).get(name, known if known is not None else source.ns["count"])
        share = (each * rate + source.other_ns * others) / 1e9
        if known is None:
            unable.append((share, Refused(source=name, why=source.cannot)))
            continue
        how = "calibrated here" if name in (measured_ns or {}) else TABLE
        if others and source.other_ns:
            how += f", and {source.other_ns:.0f} ns for each of {others:,.0f} other system calls a second"
        if not known_rates and question.kind not in rates:
            how += f", at an assumed {NOMINAL_RATE:,.0f} events a second"
        cost = TraceCost(ns_per_event=each, events_per_s=round(rate, 1), share_of_core=share, how=how)
        candidates.append(Candidate(name, cost))
    # Python's sort is stable: among equals the order of the table stays.
    return tuple(sorted(candidates, key=lambda one: one.cost.share_of_core)), tuple(unable)


def cheaper(
    chosen: Candidate,
    candidates: tuple[Candidate, ...],
    unable: tuple[tuple[float, Refused], ...],
    refused: tuple[Refused, ...],
) -> tuple[Refused, ...]:
    """Why not the cheaper ones: what the kernel refused, what cannot by its nature and would cost less, and what is
    cheaper for the event itself and dearer in all."""
    own = chosen.cost
    dearer = (
        Refused(source=one.source, why=f"{_percent(one.cost.share_of_core)} of a core in all, with {one.cost.how}")
        for one in candidates
        if one.cost.ns_per_event < own.ns_per_event and one.cost.share_of_core > own.share_of_core
    )
    return (*(one for share, one in unable if share < own.share_of_core), *refused, *dearer)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
