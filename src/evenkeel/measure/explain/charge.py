"""Charge the time of one late sample: split the window from timer to thread among what took it.  Pure.

Layers are painted one over the other, from the hardware upwards: what the vCPU did not get cannot be the guest's
fault.  Each instant belongs to the first layer that covers it, so the charges can never exceed the window.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import numpy as np

from evenkeel.documents.explanation import NO_CAUSE, Charge, Kind
from evenkeel.measure.explain.timeline import (
    IDLE,
    IRQ,
    NMI,
    PREEMPTED,
    RUNS,
    SLEEPS,
    SOFTIRQ,
    THREAD,
    WOKEN,
    Below,
    GuestTimeline,
    HostTimeline,
    Interrupts,
    Span,
)

#: Exit reasons of AMD (SVM) and Intel (VMX) that are worth a name; from arch/x86/include/uapi/asm/{svm,vmx}.h.
SVM_EXITS = {
    0x60: "interrupt", 0x61: "NMI", 0x64: "interrupt window", 0x72: "CPUID", 0x73: "RSM", 0x74: "IRET",
    0x77: "PAUSE", 0x78: "HLT", 0x7B: "I/O port", 0x7C: "MSR", 0x81: "VMMCALL", 0x400: "page fault",
    0x401: "AVIC", 0x402: "AVIC",
}  # fmt: skip
VMX_EXITS = {
    0: "exception or NMI", 1: "interrupt", 7: "interrupt window", 10: "CPUID", 12: "HLT", 18: "VMCALL",
    28: "control register", 30: "I/O port", 31: "MSR", 32: "MSR", 40: "PAUSE", 44: "APIC access", 48: "page fault",
    49: "MMIO", 52: "preemption timer", 56: "APIC write",
}  # fmt: skip
#: The host takes its own interrupts, and sleeps for the guest: neither is work for the guest, but a part of the way on
#: which its timer reaches it.
_OWN = frozenset({"interrupt", "NMI", "HLT", "preemption timer"})
#: A charge is named that is so large a part of what could be named, above what is usual.
NAMED_SHARE = 1 / 3
#: And at least so many times the usual: what every sample goes through takes longer now and then.
NAMED_TIMES = 10
#: And on an emulated host this: nothing there takes less.
NAMED_EMULATED_NS = 300_000
#: The way of a sample, by nature.
_WAY = frozenset({Kind.delivery, Kind.host_timer, Kind.guest_kernel})
#: Samples that tell what is usual; more cost time and say no more.
LOOKED_AT = 1000
#: A move counts for what happened within this time after it.
MOVED_NS = 20_000_000
#: Who is not known, of what is as near to a change on the host as the clocks can be off.
CLOCKS = "within the error of the clocks"
#: A lesser task, or none, runs while the vCPU could: a cause only when it lasts longer than a switch takes.
SWITCH_NS = 200_000


@dataclass(frozen=True)
class Painted:
    """A part of the window that belongs to one cause."""

    start: int
    end: int
    kind: Kind
    who: str


@dataclass(frozen=True)
class Scene:
    """What is known about one vCPU.  ``home``: the host CPUs that it belongs on; ``family``: threads of its QEMU;
    ``siblings``: CPU of the host -> the other threads of its core; ``error_ns``: how far the guest's times can be off.
    """

    host: HostTimeline
    guest: GuestTimeline
    tid: int
    home: frozenset[int]
    family: frozenset[int]
    exit_names: Mapping[int, str]
    below: Below | None = None
    siblings: Mapping[int, Sequence[int]] = field(default_factory=dict)
    error_ns: int = 0


Layer = Iterable[tuple[int, int, Kind, str]]
Usual = Mapping[tuple[Kind, str], int]


def paint(start: int, end: int, layers: Iterable[Layer]) -> list[Painted]:
    """Split ``start`` to ``end`` among the layers, the first that covers an instant wins; the rest is unexplained.

    What comes back is in order, without gaps or overlaps, whatever the layers say.
    """
    free = [(start, end)] if start < end else []
    painted: list[Painted] = []
    for layer in layers:
        for begin, until, kind, who in layer:
            left: list[tuple[int, int]] = []
            for gap_begin, gap_end in free:
                a, b = max(begin, gap_begin), min(until, gap_end)
                if a >= b:
                    left.append((gap_begin, gap_end))
                    continue
                painted.append(Painted(a, b, kind, who))
                left += [(x, y) for x, y in ((gap_begin, a), (b, gap_end)) if x < y]
            free = left
    painted += [Painted(a, b, Kind.unexplained, "") for a, b in free]
    return sorted(painted, key=lambda part: part.start)


def charges(
    painted: Iterable[Painted], usual: Usual = MappingProxyType({}), *, emulated: bool = False
) -> tuple[Charge, ...]:
    """Sums, largest first; ``usual``: as of :func:`usual`.

    On an emulated host what every sample goes through is never named: the emulator takes its own time within it, where
    no trace can see that.
    """
    total: dict[tuple[Kind, str], int] = {}
    for part in painted:
        total[part.kind, part.who] = total.get((part.kind, part.who), 0) + part.end - part.start
    ranked = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    # What the machine under the host took, it took from all others alike; so does an emulator on a sample's way.
    apart = frozenset({Kind.below}) | (_WAY if emulated else frozenset())
    own = sum(ns for (kind, _), ns in ranked if kind not in apart)
    least = max(round(NAMED_SHARE * own), NAMED_EMULATED_NS if emulated else 0)
    return tuple(
        Charge(
            kind=kind,
            who=who,
            ns=ns,
            usual_ns=(as_ever := usual.get((kind, who), 0)),
            named=kind not in NO_CAUSE
            and ns >= max(as_ever + least, NAMED_TIMES * as_ever)
            and not (emulated and (as_ever or kind in _WAY)),
        )
        for (kind, who), ns in ranked
    )


def usual(scene: Scene, samples: Sequence[tuple[int, int]]) -> Usual:
    """What each charge takes of the middle one of ``samples`` (time, latency), late or not.

    Of no more than :data:`LOOKED_AT` of them, evenly spread.  What fewer than half of them have is not in it.
    """
    looked = samples[:: max(1, len(samples) // LOOKED_AT)]
    found: dict[tuple[Kind, str], list[int]] = {}
    for at, latency in looked:
        for charge in charges(explain(scene, at - latency, at)):
            found.setdefault((charge.kind, charge.who), []).append(charge.ns)
    # The middle one of all, where those without count as 0.
    without = {key: len(looked) - len(parts) for key, parts in found.items()}
    middle = len(looked) // 2
    return {key: sorted(parts)[middle - without[key]] for key, parts in found.items() if middle >= without[key]}


def explain(scene: Scene, start: int, end: int) -> list[Painted]:
    """Where the time from ``start`` (the timer was due) to ``end`` (the thread ran) went.

    Where the clocks can be off, only that is charged which holds wherever within their error the window lay.  What is
    as near to a change on the host as that is unexplained.
    """
    error = scene.error_ns
    states = list(scene.host.thread.cut(start - error, end + error))
    host = [
        _below(scene.below, states) if scene.below else (),
        _waiting(scene, states),
        _host_interrupts(scene, scene.host.nmis, states, Kind.host_nmi),
        _host_interrupts(scene, scene.host.interrupts, states, Kind.host_irq),
        _exits(scene, states),
        _asleep(scene, states),
    ]
    guest = [_noise(scene.guest, number, kind, start, end) for number, kind in _GUEST]
    way: Layer = _guest_kernel(scene, states, start, end)
    if error:
        host = [_certain(paint(start - error, end + error, host), error)]
        way = [(begin + error, until - error, kind, who) for begin, until, kind, who in way]
    return paint(start, end, [*host, *guest, way])


def _certain(painted: Sequence[Painted], error: int) -> Layer:
    """Of what the host did, what it did ``error`` earlier and later as well; about each change that nobody knows.

    Where it is certain that the host did nothing there is nothing: that is the guest's.
    """
    for before, after in itertools.pairwise(painted):
        if (before.kind, before.who) != (after.kind, after.who):
            yield after.start - error, after.start + error, Kind.unexplained, CLOCKS
    for part in painted:
        if part.kind is not Kind.unexplained:
            yield part.start, part.end, part.kind, part.who


def _below(below: Below, states: Iterable[Span]) -> Layer:
    for state in states:
        for spans, asleep in ((below.waits.get(state.cpu), False), (below.sleeps.get(state.cpu), True)):
            # A CPU of the host that sleeps while the vCPU sleeps is as it should be.
            if spans is None or (asleep and state.what == SLEEPS):
                continue
            for span in spans.cut(state.start, state.end):
                yield (
                    span.start,
                    span.end,
                    Kind.below,
                    "nothing: it slept" if asleep else below.names.get(span.what, "?"),
                )
        if state.what == SLEEPS:
            for span in below.timer.cut(state.start, state.end):
                yield span.start, span.end, Kind.below, below.names.get(span.what, "?")


def _waiting(scene: Scene, states: Iterable[Span]) -> Layer:
    host = scene.host
    for state in states:
        running = host.running.get(state.cpu)
        if state.what not in (PREEMPTED, WOKEN) or running is None:
            continue
        away = state.cpu not in scene.home or bool(
            np.searchsorted(host.moves, state.start - MOVED_NS) < np.searchsorted(host.moves, state.end)
        )
        ranks = host.ranks[state.cpu].cut(state.start, state.end)
        for span, rank in zip(running.cut(state.start, state.end), ranks, strict=True):
            # Lent priorities come and go (by a lock, or by RCU to who was pre-empted reading): what it has here counts.
            lesser = span.what == IDLE or rank.what > host.own
            kind = _why(scene, span, lesser and state.what == PREEMPTED, away)
            if kind:
                yield span.start, span.end, kind, host.names.get(span.what, f"pid {span.what}")


def _why(scene: Scene, span: Span, throttled: bool, away: bool) -> Kind | None:
    """Why the vCPU waited while ``span.what`` ran; None: no cause, as when an idle CPU takes its time to wake.

    ``throttled``: it was pre-empted, and what runs is less than it."""
    if span.what == scene.tid:
        return None
    if away:
        return Kind.migrated
    if throttled:
        return Kind.throttled if span.end - span.start >= SWITCH_NS else None
    if span.what == IDLE:
        return None
    return Kind.emulator if span.what in scene.family else Kind.waits


def _host_interrupts(scene: Scene, interrupts: Mapping[int, Interrupts], states: Iterable[Span], kind: Kind) -> Layer:
    """Those of another CPU would not have met the vCPU where it belongs."""
    for state in states:
        here = interrupts.get(state.cpu)
        if here and state.what == RUNS:
            for span in here.spans.cut(state.start, state.end):
                home = state.cpu in scene.home or kind is Kind.host_nmi  # an NMI comes everywhere
                yield span.start, span.end, kind if home else Kind.migrated, here.names[span.what]


def _exits(scene: Scene, states: Iterable[Span]) -> Layer:
    """The vCPU is not in the guest: the host does what the guest cannot, or is on its way back into it."""
    inside = scene.host.inside
    if inside is None:
        return
    for state in states:
        # A vCPU that sleeps after HLT idles; one that sleeps after another exit waits for who handles it.
        if state.what not in (RUNS, SLEEPS):
            continue
        for span in inside.cut(state.start, state.end):
            if span.what < 0:
                continue
            name = _exit_name(scene, span.what)
            if name not in _OWN:
                kind = Kind.page_fault if name == "page fault" else Kind.exits
                yield span.start, span.end, kind, "" if kind == Kind.page_fault else name
            elif state.what == RUNS:  # it was woken from a halt, or its CPU handled an interrupt
                yield span.start, span.end, Kind.delivery, name


def _asleep(scene: Scene, states: Iterable[Span]) -> Layer:
    """The vCPU sleeps, and its timer was due.  Where the timer's interrupt of the host ends that, it came late.

    So a CPU does that needs long to come out of a deep idle state, whose firmware took it, or that is emulated.  What
    another wakes had no timer of its own here: slack.
    """
    timed = scene.host.timed
    for state in states:
        if state.what == SLEEPS:
            place = int(np.searchsorted(timed, state.end))
            late = place < len(timed) and int(timed[place]) == state.end
            yield state.start, state.end, Kind.host_timer if late else Kind.asleep, ""


def _guest_kernel(scene: Scene, states: Iterable[Span], start: int, end: int) -> Layer:
    """The vCPU is in the guest, and nothing there is known to disturb: it goes the way that every sample goes.

    Before the timer's interrupt only when it comes from a halt, in which interrupts are on.  Otherwise the guest may
    hold them off, or the host may be late with its timer, and which of the two no event tells.
    """
    inside, handled = scene.host.inside, scene.guest.interrupt_at
    if inside is None:
        return
    place = int(np.searchsorted(handled, end, "right")) - 1
    interrupt = int(handled[place]) if place >= 0 and handled[place] >= start else end
    for state in states:
        if state.what != RUNS:
            continue
        for span in inside.cut(state.start, state.end):
            if span.what >= 0:
                continue
            if span.end > interrupt:
                yield max(span.start, interrupt), span.end, Kind.guest_kernel, "from interrupt to thread"
            before = int(np.searchsorted(inside.at, span.start, "right")) - 2
            exited = int(inside.what[before]) if before >= 0 else -1
            if span.start < interrupt and exited >= 0 and _exit_name(scene, exited) == "HLT":
                yield span.start, min(span.end, interrupt), Kind.guest_kernel, "from halt to interrupt"


def _exit_name(scene: Scene, number: int) -> str:
    reason = int(scene.host.exits[number])
    return scene.exit_names.get(reason, f"reason {reason}")


def _noise(guest: GuestTimeline, number: int, kind: Kind, start: int, end: int) -> Layer:
    spans = guest.noise.get(number)
    if spans:
        for span in spans.cut(start, end):
            yield span.start, span.end, kind, guest.names[number][span.what]


_GUEST = (
    (NMI, Kind.guest_nmi),
    (IRQ, Kind.guest_irq),
    (SOFTIRQ, Kind.guest_softirq),
    (THREAD, Kind.guest_thread),
)
