"""Which source answers a question at the lowest cost, and why not the others.  Pure.

The ladder is a table of nanoseconds an event; with the rate of the event it becomes a share of a core.  Which source
works is not known here: the caller tries them in this order, and the kernel says.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass

from evenkeel.documents.answer import Question, Refused, TraceCost
from evenkeel.errors import WrongInput

SYSCALLS = "raw_syscalls:sys_enter"
#: Events a second that are assumed where nobody could count them beforehand.
NOMINAL_RATE = 1000.0
TABLE = "the table (Linux 6.18, x86)"


@dataclass(frozen=True)
class Source:
    """One way to see an event.  ``ns``: kind of question -> what one event costs; it cannot answer other kinds.

    ``call_ns``: what it costs more where the event is a system call.  ``other_ns``: what every other system call costs
    while one is watched, because all of them take the kernel's slow path then.
    """

    name: str
    ns: Mapping[str, float]
    call_ns: float = 0.0
    other_ns: float = 0.0
    cannot: str = ""


@dataclass(frozen=True)
class Each:
    """Nanoseconds of an event of a question, and of each other system call, as measured on the machine itself."""

    ns: float
    other_ns: float = 0.0
    how: str = ""  # what is to be said behind "calibrated here"


#: Measured on Linux 6.18 (x86, mitigations on, load average of 10) as `evenkeel.probe.trace.calibrate` does.
SOURCES = {
    one.name: one
    for one in (
        Source(
            "raw_tp", {"count": 25, "top": 29, "latency": 120, "wakeups": 150, "record": 75}, call_ns=8, other_ns=30
        ),
        Source(
            "tp_btf", {"count": 25, "top": 29, "latency": 120, "wakeups": 150, "record": 75}, call_ns=6, other_ns=30
        ),
        Source("perf", {"count": 37}, call_ns=16, other_ns=11, cannot="a counter tells neither by whom nor when"),
        Source(
            "tracepoint",
            {"count": 50, "top": 53, "latency": 125, "wakeups": 165, "noise": 165, "exits": 53, "record": 100},
            call_ns=15,
            other_ns=11,
        ),
        Source(
            "ring",
            {"count": 65, "record": 90},
            call_ns=24,
            other_ns=11,
            cannot="it would write records, to be read and sorted outside",
        ),
        # In a virtual machine without KVM only their order could be measured; an int3 kprobe costs some 300.  A system
        # call seen by its function does not make the others take the slow path.
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
#: What is measured on the machine itself before the first question of a kind, of events at a tracepoint.  To count
#: records is never cheapest.
TO_CALIBRATE = ("raw_tp", "tp_btf", "perf", "tracepoint")
_CALIBRATED_KINDS = ("count", "top", "latency", "record", "wakeups")
#: Sources that have all of an event's record: what they do not find there does not exist.
SEES_FIELDS = ("tracepoint", "ring", "debugfs", "function", "uprobe")
#: Events of the exception of a page that is not there.
_FAULTS = "exceptions:page_fault"
#: What each kind of event can be seen by.
_ON_TRACEPOINT = ("raw_tp", "tp_btf", "perf", "tracepoint", "ring")
_ON_COUNTER = ("perf",)
_ON_FUNCTION = ("fentry", "function", "kprobe")
#: The beginning of a system call is an event, and a function.
_ON_CALL = ("fentry", *_ON_TRACEPOINT)
#: Windows would cut durations in two.
_SAMPLED = ("count", "top")


def pace(question: Question, share_of_core: float, attached_s: float, kept_s: float, left_s: float) -> float:
    """The share of what is left of the time for which it may be attached, so that all of it takes no more than the
    budget: 1 is always, 0 not at all any more.

    ``share_of_core``: what it takes while attached.  ``attached_s``: so long it has been, ``kept_s``: so long it will
    be in the end whatever comes, ``left_s``: from now until then.
    """
    if not paced(question) or share_of_core <= 0:
        return 1.0
    may_s = question.budget * question.seconds / share_of_core - attached_s - kept_s
    return max(0.0, min(1.0, may_s / left_s)) if left_s > 0 else float(may_s >= 0)


def paced(question: Question) -> bool:
    """Whether it may be watched in windows."""
    return question.kind in _SAMPLED


def loop_of(question: Question) -> str | None:
    """The loop of `evenkeel.probe.trace.calibrate` whose event is like those of the question; None: there is none."""
    if question.kind == "profile":
        return "profile"
    if question.kind not in _CALIBRATED_KINDS:
        return None
    if sources_of(question) == ("uprobe",):
        return "uprobe" if question.kind in ("count", "top", "record") else None
    if sources_of(question) not in (_ON_TRACEPOINT, _ON_CALL):
        return None
    if question.kind == "wakeups":
        return "switch"
    if question.events[0].startswith(_FAULTS):
        return "fault"
    return "call" if _is_call(question) else "event"


def calibrated(question: Question) -> tuple[str, ...]:
    """The sources of it that are measured on the machine itself."""
    able = (one for one in sources_of(question) if question.kind in SOURCES[one].ns)
    return tuple(one for one in able if one in TO_CALIBRATE or one not in _ON_TRACEPOINT or question.kind == "record")


def gap_ns(question: Question, rates: Mapping[str, float], on_cpus: float) -> float:
    """From one event to the next on a CPU, as far as their rate tells it; 0 where nothing is known of it.

    The rates were counted by perf, each by itself, and what that takes is left out.
    """
    rate = sum(rates.get(event, 0.0) for event in question.events)
    if rate <= 0:
        return 0.0
    perf = SOURCES["perf"]
    counting = (perf.ns["count"] + (perf.call_ns if _is_call(question) else 0.0)) / len(question.events)
    return max(1.0, 1e9 * on_cpus / rate - counting)


def check(question: Question) -> None:
    """Raises WrongInput for what no source can answer on any kernel; one that was tried would say something else."""
    kinds = {event: _kind(event) for event in question.events}
    if len(set(kinds.values())) > 1:
        told = ", and ".join(f"{event} is {kind}" for event, kind in kinds.items())
        raise WrongInput(
            f"one source has to see both ends of a {question.kind}: {told}",
            hint="take both ends of one kind; `evenkeel trace events WORD` lists tracepoints",
        )
    if kinds and question.kind not in ("count", "exits") and _COUNTER in kinds.values():
        raise WrongInput(
            f"{question.events[0]} is a counter, which tells neither by whom nor when",
            hint="only `evenkeel trace count` has answers from it; page faults are exceptions:page_fault_user, too",
        )
    if question.process is not None and question.kind == "latency" and "=" in (question.key or ""):
        # The beginning is seen in the thread that wakes, the end in the one that goes.
        raise WrongInput(
            f"--process is about who runs, and these ends are joined by {question.key}, in other threads than that",
            hint="leave --process out; `evenkeel trace wakeups` has a row for each thread that was woken",
        )


_COUNTER = "a counter"


def _kind(event: str) -> str:
    """What a part of the kernel, or of a program, an event is."""
    system = event.partition(":")[0]
    if system in ("software", "hardware"):
        return _COUNTER
    return {"function": "a function of the kernel", "uprobe": "a function of a program"}.get(system, "a tracepoint")


def _is_call(question: Question) -> bool:
    """A tracepoint of a system call, for which all of them take the slow path."""
    return any(event.startswith("syscalls:") for event in question.events)


def sources_of(question: Question) -> tuple[str, ...]:
    """What can be tried at all."""
    if question.kind == "profile":
        return ("sampling",)
    if question.kind == "exits":
        return ("debugfs", "libvirt", "tracepoint")
    if question.kind == "noise":
        return ("tracepoint",)  # the others do not have the number of an interrupt
    if question.kind in ("count", "top") and question.events[0].startswith("syscalls:sys_enter_"):
        return _ON_CALL
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
    question: Question, rates: Mapping[str, float], measured: Mapping[str, Each] | None = None, factor: float = 1.0
) -> tuple[tuple[Candidate, ...], tuple[tuple[float, Refused], ...]]:
    """Candidates, cheapest first; and what cannot answer by its nature, each with the cost that it would have had.

    ``rates``: events a second, as far as they are known; of samples by the kind of question.  ``measured``: source
    -> what an event costs as calibrated on the machine itself, in place of the table; the rest of the table is taken
    times as much as those cost more than it says, because a slower machine, or an event that is seldom, makes them all
    dearer.  ``factor``: how many times as much as in a loop these events cost, by whatever source.
    """
    known_rates = [rates[event] for event in question.events if event in rates]
    rate = sum(known_rates) if known_rates else rates.get(question.kind, NOMINAL_RATE)
    call = _is_call(question)
    others = max(0.0, rates.get(SYSCALLS, rate) - rate) if call else 0.0
    dearer = _dearer(question, measured or {})
    candidates, unable = [], []
    for name in sources_of(question):
        source, each = SOURCES[name], (measured or {}).get(name)
        here = each is not None
        known = source.ns.get(question.kind)
        if each is None:
            plain = known if known is not None else source.ns["count"]
            other_ns = _other_ns(source, measured or {}) if call else 0.0
            each = Each(dearer * (plain + (source.call_ns if call else 0.0)), other_ns)
        each = Each(each.ns * factor, each.other_ns, each.how)
        share = (each.ns * rate + each.other_ns * others) / 1e9
        if known is None:
            unable.append((share, Refused(source=name, why=source.cannot)))
            continue
        how = (
            "calibrated here" + each.how
            if here
            else TABLE + (f", times {dearer:.2g} like what was measured here" * (dearer != 1))
        )
        if factor != 1:
            how += f", times {factor:.3g} as when this was asked before"
        if others and each.other_ns:
            how += f", and {each.other_ns:.0f} ns for each of {others:,.0f} other system calls a second"
        if not known_rates and question.kind not in rates:
            how += f", at an assumed {NOMINAL_RATE:,.0f} events a second"
        cost = TraceCost(ns_per_event=each.ns, events_per_s=round(rate, 1), share_of_core=share, how=how)
        candidates.append(Candidate(name, cost))
    # Python's sort is stable: among equals the order of the table stays.
    return tuple(sorted(candidates, key=lambda one: one.cost.share_of_core)), tuple(unable)


def _dearer(question: Question, measured: Mapping[str, Each]) -> float:
    """How many times as much as by the table it costs here, by the sources that were measured."""
    call = _is_call(question)
    ratios = [
        each.ns / (table + (SOURCES[name].call_ns if call else 0.0))
        for name, each in measured.items()
        if (table := SOURCES[name].ns.get(question.kind))
    ]
    return statistics.median(ratios) if ratios else 1.0


def _other_ns(source: Source, measured: Mapping[str, Each]) -> float:
    """What each other system call costs by a source that was not measured: as by those that are alike in the table.

    They take the same slow path.  By the table, whatever the machine, such a source would seem the cheapest of all.
    """
    alike = [each.other_ns for name, each in measured.items() if SOURCES[name].other_ns == source.other_ns]
    return statistics.median(alike) if alike and source.other_ns else source.other_ns


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
        Refused(source=one.source, why=f"{_percent(one.cost.share_of_core)} of a core in all: {one.cost.how}")
        for one in candidates
        if one.cost.ns_per_event < own.ns_per_event and one.cost.share_of_core > own.share_of_core
    )
    return (*(one for share, one in unable if share < own.share_of_core), *refused, *dearer)


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
