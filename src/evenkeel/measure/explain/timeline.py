"""Who ran when: from a trace of the host the states of a vCPU thread, of the guest what disturbed it.  Pure.

All times are nanoseconds on the axis of :mod:`.clocks`.  Arrays are made once; a window is cut out by bisection.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from evenkeel.measure.explain.clocks import Clock
from evenkeel.measure.explain.trace import Trace
from evenkeel.measure.pages import Ints

#: States of a thread.  It waits for a CPU either because it was pre-empted or since it was woken.
RUNS, PREEMPTED, SLEEPS, WOKEN = 0, 1, 2, 3
IDLE = 0  # the pid of every idle task
#: Bits of prev_state that mean "not runnable any more": the kernel's TASK_REPORT.  Above them stands "pre-empted".
_ASLEEP = 0xFF
#: Worse than any priority that there is.
_UNKNOWN = 999


@dataclass(frozen=True)
class Span:
    """``what``: a state, a pid, or the place of a record, as its maker says.  ``cpu``: -1 where it does not matter."""

    start: int
    end: int
    what: int
    cpu: int = -1


@dataclass(frozen=True)
class Steps:
    """Something that has one value at any time: ``what[i]`` holds from ``at[i]`` to ``at[i + 1]``."""

    at: Ints
    what: Ints
    cpu: Ints

    def cut(self, start: int, end: int) -> Iterator[Span]:
        """Its values from ``start`` to ``end``; nothing before the first change, when the value is not known."""
        first = max(0, int(np.searchsorted(self.at, start, "right")) - 1)
        last = int(np.searchsorted(self.at, end, "left"))
        for n in range(first, last):
            begin = max(start, int(self.at[n]))
            until = min(end, int(self.at[n + 1])) if n + 1 < len(self.at) else end
            if begin < until:
                yield Span(begin, until, int(self.what[n]), int(self.cpu[n]))

    def on(self, clock: Clock) -> Steps:
        """The same on the axis, of steps in the raw clock."""
        return Steps(clock.ns(self.at), self.what, self.cpu)

    def absences(self) -> Iterator[tuple[int, int]]:
        """Of a thread: the stretches in which it did not run."""
        for n in np.flatnonzero(self.what[:-1] != RUNS).tolist():
            yield int(self.at[n]), int(self.at[n + 1])


@dataclass(frozen=True)
class Spans:
    """Stretches that may overlap, in the order of their end; ``what``: the place of each in the table it is from."""

    start: Ints
    end: Ints
    what: Ints
    longest: int = field(default=0)

    @staticmethod
    def of(start: Ints, end: Ints, what: Ints | None = None) -> Spans:
        order = np.argsort(end, kind="stable")
        what = np.arange(len(end)) if what is None else what
        longest = int((end - start).max()) if len(end) else 0
        return Spans(start[order], end[order], what[order], longest)

    def cut(self, start: int, end: int) -> Iterator[Span]:
        """The parts of them within ``start`` to ``end``."""
        first = int(np.searchsorted(self.end, start, "right"))
        last = int(np.searchsorted(self.end, end + self.longest, "right"))
        for n in range(first, last):
            begin, until = max(start, int(self.start[n])), min(end, int(self.end[n]))
            if begin < until:
                yield Span(begin, until, int(self.what[n]))


# -- the host -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interrupts:
    """Interrupts of one CPU of the host: stretches, and the name of each."""

    spans: Spans
    names: Sequence[str]


@dataclass(frozen=True)
class HostTimeline:
    """What the host did around one vCPU thread.

    ``running``: CPU -> pid of the task on it; ``ranks``: the priority that it had when it came there, as the kernel
    counts (0 to 98 real-time, the lower the better, 120 ordinary); ``own``: what the vCPU had most often; ``thread``:
    states of the vCPU thread; ``inside``: 1 while it runs the guest, ``reasons`` of the exits by their number;
    ``moves``: when it was put on another CPU; ``timed``: when the timer's interrupt of a CPU woke it.
    """

    running: dict[int, Steps]
    ranks: dict[int, Steps]
    own: int
    thread: Steps
    inside: Steps | None
    exits: Ints  # reason of each exit, in the order of ``inside``
    moves: Ints
    interrupts: dict[int, Interrupts]
    nmis: dict[int, Interrupts]
    names: dict[int, str]
    timed: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


@dataclass(frozen=True)
class HostEvents:
    """What the scheduler and KVM did on the host, decoded once, in the raw clock: it is asked for before the guest's
    clock is known, and after.
    """

    trace: Trace
    switches: Switches
    entries: dict[str, Ints]
    exits: dict[str, Ints]

    @staticmethod
    def of(trace: Trace) -> HostEvents:
        return HostEvents(
            trace,
            Switches.of(trace),
            trace.table("kvm/kvm_entry", "common_pid"),
            trace.table("kvm/kvm_exit", "common_pid", "exit_reason"),
        )

    def outside(self, tid: int) -> list[tuple[int, int]]:
        """Stretches, in the raw clock, in which the vCPU did not run the guest, which then wrote nothing."""
        inside = self._inside(tid)
        if inside is None:
            return list(self.switches.states(tid).absences())
        away = np.flatnonzero(inside.what[:-1] >= 0)
        return list(zip(inside.at[away].tolist(), inside.at[away + 1].tolist(), strict=True))

    def timelines(self, clock: Clock, tids: Iterable[int]) -> dict[int, HostTimeline]:
        """Of each vCPU thread.  What is not of one thread is shared by all."""
        switches = self.switches.on(clock)
        interrupts, nmis = _interrupts(self.trace, clock), _nmis(self.trace, clock)
        moves = self.trace.table("sched/sched_migrate_task", "pid")
        found = {}
        for tid in tids:
            inside = self._inside(tid)
            found[tid] = HostTimeline(
                running=switches.running,
                ranks=switches.ranks,
                own=switches.own(tid),
                thread=switches.states(tid),
                inside=inside.on(clock) if inside else None,
                exits=self.exits["exit_reason"][self.exits["common_pid"] == tid],
                moves=clock.ns(moves["at"][moves["pid"] == tid]),
                interrupts=interrupts,
                nmis=nmis,
                names=switches.names,
                timed=_timed(switches, interrupts, tid),
            )
        return found

    def _inside(self, tid: int) -> Steps | None:
        """``what``: -1 within the guest, else the number of the exit.  None where KVM was not traced."""
        entries, exits = (table["at"][table["common_pid"] == tid] for table in (self.entries, self.exits))
        if not len(entries) or not len(exits):
            return None
        times = np.concatenate([entries, exits])
        what = np.concatenate([np.full(len(entries), -1), np.arange(len(exits))])
        order = np.argsort(times, kind="stable")
        return Steps(times[order], what[order], np.full(len(order), -1, np.int64))


def _timed(switches: Switches, interrupts: Mapping[int, Interrupts], tid: int) -> Ints:
    waking, found = switches.waking, []
    for n in np.flatnonzero(waking["pid"] == tid).tolist():
        at, here = int(waking["at"][n]), interrupts.get(int(waking["cpu"][n]))
        if here and any(here.names[span.what] == "local_timer" for span in here.spans.cut(at, at + 1)):
            found.append(at)
    return np.array(sorted(found), np.int64)


@dataclass(frozen=True)
class Switches:
    """What the scheduler of a machine did: the events themselves, and what ran on each CPU.  In the raw clock, as
    :meth:`of` makes it, or on the axis.
    """

    table: dict[str, Ints]
    waking: dict[str, Ints]
    running: dict[int, Steps]
    ranks: dict[int, Steps]
    names: dict[int, str]

    @staticmethod
    def of(trace: Trace) -> Switches:
        table = trace.table("sched/sched_switch", "prev_pid", "prev_prio", "prev_state", "next_pid", "next_prio")
        waking = trace.table("sched/sched_waking", "pid", "target_cpu")
        running, ranks = {}, {}
        for cpu in np.unique(table["cpu"]).tolist():
            here = table["cpu"] == cpu
            # Before its first switch a CPU ran what it then left.
            at, where = (
                np.concatenate([table["at"][:1], table["at"][here]]),
                np.full(int(here.sum()) + 1, cpu, np.int64),
            )
            running[cpu], ranks[cpu] = (
                Steps(at, np.concatenate([table[f"prev_{field}"][here][:1], table[f"next_{field}"][here]]), where)
                for field in ("pid", "prio")
            )
        names = trace.named("sched/sched_switch", "next_pid", "next_comm")
        return Switches(table, waking, running, ranks, {**names, IDLE: "idle"})

    def on(self, clock: Clock) -> Switches:
        """The same on the axis, of what is in the raw clock."""
        table, waking = ({**one, "at": clock.ns(one["at"])} for one in (self.table, self.waking))
        running, ranks = ({cpu: one.on(clock) for cpu, one in steps.items()} for steps in (self.running, self.ranks))
        return Switches(table, waking, running, ranks, self.names)

    def own(self, tid: int) -> int:
        """The priority that a thread had most often.  One that is lent to it for a moment is not its own."""
        priorities, times = np.unique(self.table["next_prio"][self.table["next_pid"] == tid], return_counts=True)
        return int(priorities[times.argmax()]) if len(times) else _UNKNOWN

    def states(self, tid: int) -> Steps:
        """The states of one thread, and the CPU that it has them on."""
        table, waking = self.table, self.waking
        into, out, woken = table["next_pid"] == tid, table["prev_pid"] == tid, waking["pid"] == tid
        asleep = (table["prev_state"] & _ASLEEP) != 0
        parts = [
            (table["at"][into], np.full(int(into.sum()), RUNS), table["cpu"][into]),
            (table["at"][out], np.where(asleep[out], SLEEPS, PREEMPTED), table["cpu"][out]),
            (waking["at"][woken], np.full(int(woken.sum()), WOKEN), waking["target_cpu"][woken]),
        ]
        times, what, cpu = (np.concatenate([part[n] for part in parts]).astype(np.int64) for n in range(3))
        order = np.argsort(times, kind="stable")
        times, what, cpu = times[order], what[order], cpu[order]
        # A wake-up of a thread that runs or waits already changes nothing.
        before = np.concatenate([[SLEEPS], what[:-1]])
        kept = (what != WOKEN) | (before == SLEEPS)
        times, what, cpu = times[kept], what[kept], cpu[kept]
        # Before its first event a thread that then left its CPU ran, and one that was then woken slept.
        first = {WOKEN: SLEEPS, PREEMPTED: RUNS, SLEEPS: RUNS}.get(int(what[0])) if len(what) else None
        if first is None:
            return Steps(times, what, cpu)
        begin = min(int(times[0]), int(table["at"][0]))
        return Steps(np.concatenate([[begin], times]), np.concatenate([[first], what]), np.concatenate([cpu[:1], cpu]))


#: Pairs of events that enclose an interrupt, and the field that names it.
_PAIRS = (
    ("irq/irq_handler_entry", "irq/irq_handler_exit", "name"),
    ("irq/softirq_entry", "irq/softirq_exit", None),
    ("irq_vectors/local_timer_entry", "irq_vectors/local_timer_exit", None),
    ("irq_vectors/reschedule_entry", "irq_vectors/reschedule_exit", None),
    ("irq_vectors/call_function_entry", "irq_vectors/call_function_exit", None),
    ("irq_vectors/call_function_single_entry", "irq_vectors/call_function_single_exit", None),
    ("irq_vectors/irq_work_entry", "irq_vectors/irq_work_exit", None),
)
_SOFTIRQS = ("HI", "TIMER", "NET_TX", "NET_RX", "BLOCK", "IRQ_POLL", "TASKLET", "SCHED", "HRTIMER", "RCU")


def _interrupts(trace: Trace, clock: Clock) -> dict[int, Interrupts]:
    found: dict[int, list[tuple[Ints, Ints, list[str]]]] = {}
    for entry, leave, name in _PAIRS:
        for rows in trace.rows(entry):
            ends = [part.at for part in trace.rows(leave) if part.records.cpu == rows.records.cpu]
            if not ends:
                continue
            begin, end = clock.ns(rows.at), clock.ns(ends[0])
            place = np.searchsorted(end, begin, "right")
            whole = place < len(end)
            if name:
                names = rows.texts(name)
            elif entry == "irq/softirq_entry":
                names = [_SOFTIRQS[n] if n < len(_SOFTIRQS) else str(n) for n in rows.ints("vec").tolist()]
            else:
                names = [entry.rpartition("/")[2].removesuffix("_entry")] * len(rows)
            kept = [text for text, ok in zip(names, whole.tolist(), strict=True) if ok]
            found.setdefault(rows.records.cpu, []).append((begin[whole], end[place[whole]], kept))
    return {cpu: _merged(parts) for cpu, parts in found.items()}


def _merged(parts: Sequence[tuple[Ints, Ints, list[str]]]) -> Interrupts:
    start, end = (np.concatenate([part[n] for part in parts]) for n in (0, 1))
    return Interrupts(Spans.of(start, end), [name for part in parts for name in part[2]])


def _nmis(trace: Trace, clock: Clock) -> dict[int, Interrupts]:
    """``nmi:nmi_handler`` is written at the end, with how long it took in nanoseconds."""
    found = {}
    for rows in trace.rows("nmi/nmi_handler"):
        end = clock.ns(rows.at)
        found[rows.records.cpu] = Interrupts(Spans.of(end - rows.ints("delta_ns"), end), ["NMI"] * len(rows))
    return found


# -- the guest ----------------------------------------------------------------------------------------------------

NMI, IRQ, SOFTIRQ, THREAD = 0, 1, 2, 3
_NOISE = (
    ("osnoise/nmi_noise", NMI, None),
    ("osnoise/irq_noise", IRQ, "desc"),
    ("osnoise/softirq_noise", SOFTIRQ, "vector"),
    ("osnoise/thread_noise", THREAD, "comm"),
)


@dataclass(frozen=True)
class GuestTimeline:
    """What osnoise saw on one vCPU.  Samples of timerlat: parallel arrays; noise: stretches a class, with names.

    ``interrupt_at``: when timerlat's timer was handled, once before each sample.
    """

    sample_at: Ints
    sample_latency: Ints
    noise: dict[int, Spans]
    names: dict[int, Sequence[str]]
    interrupt_at: Ints = field(default_factory=lambda: np.zeros(0, np.int64))


def guest_timeline(trace: Trace, clock: Clock, vcpu: int) -> GuestTimeline:
    """``clock``: that brings the guest's counter to the axis.  Samples are what timerlat's thread saw: context 1."""
    own = Trace({cpu: records for cpu, records in trace.cpus.items() if cpu == vcpu}, trace.events)
    samples = own.table("ftrace/timerlat", "context", "timer_latency")
    thread = samples["context"] == 1
    noise: dict[int, Spans] = {}
    names: dict[int, Sequence[str]] = {}
    for event, number, name in _NOISE:
        rows = own.rows(event)
        if not rows:
            continue
        ends, took, begun = rows[0].at, rows[0].ints("duration"), rows[0].ints("start")
        end = clock.ns(ends)
        # ``duration`` is without what interrupted it in turn; ``start`` is of another clock of the guest.
        start = np.minimum(end - took, _began(begun, took, end))
        if number == SOFTIRQ:
            texts = [_SOFTIRQS[n] if n < len(_SOFTIRQS) else str(n) for n in rows[0].ints("vector").tolist()]
        else:
            texts = rows[0].texts(name) if name else ["NMI"] * len(rows[0])
        own_noise = np.array([text.startswith(("swapper/", "timerlat/", "osnoise/")) for text in texts], bool)
        kept = np.flatnonzero(~own_noise)
        noise[number] = Spans.of(start[kept], end[kept], kept)
        names[number] = texts
    at, handled = clock.ns(samples["at"][thread]), clock.ns(samples["at"][samples["context"] == 0])
    return GuestTimeline(at, samples["timer_latency"][thread], noise, names, handled)


def _began(begun: Ints, took: Ints, end: Ints) -> Ints:
    """Bring ``start`` of osnoise to the axis: a noise that nothing interrupted ends at start + duration.

    The distance of the two clocks drifts slowly, so of each hundred neighbours the shortest distance is taken.
    """
    distance = end - (begun + took)
    shortest = np.empty_like(distance)
    for first in range(0, len(distance), 100):
        part = slice(max(0, first - 50), first + 150)
        shortest[first : first + 100] = distance[part].min()
    return begun + shortest


# -- the machine under the host ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Below:
    """A host that is a virtual machine itself: when each of its CPUs had none.

    ``waits``: CPU of the host -> stretches in which its thread could not run, ``what``: the pid that ran instead;
    ``sleeps``: in which it slept, which is no fault while the host idles; ``timer``: in which the thread that runs
    the timers of the host's CPUs could not run.
    """

    waits: dict[int, Spans]
    sleeps: dict[int, Spans]
    timer: Spans
    names: dict[int, str]


def below_timeline(switches: Switches, tids: Mapping[int, int], timer_tid: int) -> Below:
    """``switches``: of the machine under the host, on the axis; ``tids``: CPU of the host -> thread there."""
    waits, sleeps = {}, {}
    for cpu, tid in tids.items():
        waits[cpu], sleeps[cpu] = _without_cpu(switches, tid)
    return Below(waits, sleeps, _without_cpu(switches, timer_tid)[0], switches.names)


def _without_cpu(switches: Switches, tid: int) -> tuple[Spans, Spans]:
    steps = switches.states(tid)
    waits: list[Span] = []
    slept = []
    for n in np.flatnonzero(steps.what[:-1] != RUNS).tolist():
        start, end, cpu = int(steps.at[n]), int(steps.at[n + 1]), int(steps.cpu[n])
        if steps.what[n] == SLEEPS:
            slept.append((start, end))
        elif cpu in switches.running:
            waits += switches.running[cpu].cut(start, end)
    return (
        Spans.of(*(np.array([getattr(span, name) for span in waits], np.int64) for name in ("start", "end", "what"))),
        Spans.of(*(np.array([pair[n] for pair in slept], np.int64) for n in (0, 1))),
    )
