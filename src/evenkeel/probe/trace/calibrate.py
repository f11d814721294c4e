"""What one event costs at a source on this machine: the same loop without it and with it.

What comes back to back finds everything in the processor's caches; what is seldom finds nothing there, and costs
several times as much.  So each cost is measured at several distances, with other work in between, and the side that
asks takes it from between those where its own events lie.
It is taken without and with the source in many short turns, and compared where the machine was as fast as it gets
(:mod:`.pace`).  Everybody's system calls are slower by as much meanwhile.
Must not decide when to calibrate, and keeps nothing.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Callable, NamedTuple

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import bpf, loops, pace, question
from evenkeel.probe.trace.pace import Chunk

ROUNDS = 6
#: Of each phase of a round: so many chunks, each of so many turns.
CHUNKS = 16
TURNS = {"call": 300, "event": 300, "fault": 100, "switch": 30, "uprobe": 60, "profile": 400}
#: Rounds go on for so long: most sources come and go in a few milliseconds, some in a tenth of a second.  And for as
#: long as this where the machine is hardly ever at its best meanwhile.
LONG_S, MOST_S = 0.4, 2.0
#: Nobody waits longer than this, where others have the CPU nearly all the time: then two rounds have to do.
PATIENCE_S = 10.0
#: Two halves of a measurement tell the same when one has less than so many times as much as the other.
STEADY = 1.3
#: Samples a second of a profile, many times as many as are usual: one costs too little to be seen in a second.
PROFILE_HZ = 4000
#: A chunk that others had the CPU in between of is taken anew, so many times in all.
_TRIES = 5
#: Events in a turn of the loop by the kind of question, where it is not one for each event that is asked about.
_IN_TURN = {("switch", "wakeups"): 4}


class Distance(NamedTuple):
    """How far apart turns are: bytes that are moved in between (None: nothing is done), how many chunks in a phase, of
    how many turns each.  Of a chunk the mean is taken: by chance a single turn finds much in the caches, or nothing.
    """

    between: int | None
    chunks: int
    turns: int


BACK_TO_BACK = Distance(None, 0, 0)
#: With some of Python's own code in between, and with all of the second level of caches used by something else.
FURTHER = (Distance(0, 40, 25), Distance(1 << 20, 6, 5))
FAR = {"call": FURTHER, "event": FURTHER, "fault": FURTHER, "switch": FURTHER[1:], "uprobe": (), "profile": ()}


def calibrate(
    source: str, kind: str = "count", loop: str = "call", by: str = "process", like: str = ""
) -> dict[str, Any]:
    """Operation: ``{"at": [{"gap_ns", "ns", "other_ns", "timed_ns"}], "base_ns", "speed_ns", "settled", "steady",
    "events"}``.

    ``gap_ns``: from one turn to the next; ``ns``: what one event costs then; ``other_ns``: what each other system call
    costs while one is watched, 0 for an event that is none; ``timed_ns``: what the kernel timed of it, None where it
    does not; ``speed_ns``: as :func:`speed`; ``settled``: whether the machine was often enough as fast as it gets;
    ``steady``: whether every other round alone tells what the rest of them does.
    ``like``: for a loop of uprobes, the one that is asked about.
    Raises StepFailed where the source does not work.
    Runs in a thread on the first CPU that it may use: a source may leave out the thread that reads.
    """
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_calibrate, source, kind, loop, by, like).result()


def speed(within_s: float = 0.2) -> dict[str, float]:
    """Operation: ``{"ns"}`` of a system call that nobody watches, the quickest within that time.

    A machine is not as fast at all times; one that others use is slow for many milliseconds, and nobody else's in
    between.  What tracing adds is then slower by about as much as a system call, and by far less than what only
    computes (:mod:`.pace`): where that took 2 to 2.6 times as long beside busy neighbours, a call took 1.1 to 1.4 times
    as long, and counting it 1.0 to 1.4 times (measured, Linux 6.18).
    """
    run = loops.getuid_loop()
    found, end = _call_ns(run), time.monotonic() + within_s
    while time.monotonic() < end:
        time.sleep(0.002)
        found = min(found, _call_ns(run))
    return {"ns": found}


def _call_ns(run: loops.Run) -> float:
    return _spent(run, TURNS["call"], time.thread_time_ns)


def _calibrate(source: str, kind: str, loop: str, by: str, like: str) -> dict[str, Any]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of this thread alone, which ends soon
    try:
        with loops.loop(loop, like) as made:
            return _Measured(source, kind, loop, made, by).result()
    except OSError as error:
        raise StepFailed("%s: %s" % (source, error.strerror or error), error.errno) from None


#: Distance, and "event" or "other" -> chunks.
_Taken = dict[tuple[Distance, str], list[Chunk]]


class _Measured:
    """One source and one loop."""

    def __init__(self, source: str, kind: str, name: str, loop: loops.Loop, by: str) -> None:
        events = list(loop.events) if kind in ("latency", "wakeups") else [loop.events[0]]
        self._asked: dict[str, Any] = {"kind": kind, "events": events, "by": by, "ring_bytes": 1 << 20, "key": None}
        if kind == "wakeups":
            self._asked["key"] = "pid=next_pid"
        if kind == "profile":
            self._asked["frequency_hz"] = PROFILE_HZ
        self._source, self._kind, self._name = source, kind, name
        self._run, self._clock = loop.run, loop.clock
        self._distances = (BACK_TO_BACK, *FAR[name])
        self._between = {one: loops.Between(one.between) for one in self._distances if one.between is not None}
        self._other = loops.call_loop("getppid") if name == "call" else None

    def result(self) -> dict[str, Any]:
        rounds, seen = 0, 0
        without, with_it = self._nothing(), self._nothing()
        getuid, speed_ns = loops.getuid_loop(), math.inf
        begun = time.monotonic()
        while not self._enough(rounds, time.monotonic() - begun, without, with_it):
            self._phase(without)
            speed_ns = min(speed_ns, *(_call_ns(getuid) for _ in range(CHUNKS)))
            # From the beginning each time: a counter that is only switched off costs something, too.
            question.trace_start(self._asked, self._source)
            try:
                self._phase(with_it)
                seen += question.trace_wait(0)["events"]
            finally:
                question.trace_close()
            rounds += 1
        self._phase(without)
        timed, gaps, found = self._timed(), self._gaps(), []
        best_ns = pace.best(*without.values(), *with_it.values())
        for distance, gap in zip(self._distances, gaps):  # noqa: B905 - Python 3.9
            base, other = (self._added(without, with_it, distance, what, best_ns) for what in ("event", "other"))
            in_turn = self._in_turn(sum(base))
            found.append(
                {
                    "gap_ns": round(gap / in_turn, 1),
                    "ns": round(base[1] / in_turn, 1),
                    "other_ns": round(other[1], 1),
                    "timed_ns": timed[distance],
                }
            )
        base_ns = pace.typical(without[BACK_TO_BACK, "event"], best_ns)
        settled = self._settled(without, with_it)
        result = {"at": found, "base_ns": round(base_ns, 1), "speed_ns": round(speed_ns, 1)}
        steady = self._steady(without, with_it, best_ns)
        return {**result, "settled": settled, "steady": steady, "events": seen}

    def _steady(self, without: _Taken, with_it: _Taken, best_ns: float) -> bool:
        """By what it adds back to back."""
        halves = []
        for rest in (0, 1):
            first, second = (
                [one for number, one in enumerate(taken[BACK_TO_BACK, "event"]) if number // CHUNKS % 2 == rest]
                for taken in (without, with_it)
            )
            halves.append(pace.typical(second, best_ns) - pace.typical(first, best_ns))
        return 0 < max(halves) < STEADY * min(halves)

    def _enough(self, rounds: int, spent_s: float, without: _Taken, with_it: _Taken) -> bool:
        if rounds < ROUNDS:
            return rounds >= 2 and spent_s > PATIENCE_S
        return spent_s >= LONG_S and (spent_s > MOST_S or self._settled(without, with_it))

    def _settled(self, without: _Taken, with_it: _Taken) -> bool:
        best_ns = pace.best(*without.values(), *with_it.values())
        each = (pace.settled(one, best_ns) for taken in (without, with_it) for one in taken.values() if one)
        return min(each) >= pace.FEWEST

    def _added(
        self, without: _Taken, with_it: _Taken, distance: Distance, what: str, best_ns: float
    ) -> tuple[float, float]:
        """Nanoseconds of a turn without the source, and what it adds; nothing where there are no such turns."""
        if not without[distance, what]:
            return 0.0, 0.0
        base = pace.typical(without[distance, what], best_ns)
        return base, max(0.0, pace.typical(with_it[distance, what], best_ns) - base)

    def _in_turn(self, turn_ns: float) -> float:
        if self._kind == "profile":
            return turn_ns * PROFILE_HZ / 1e9
        return _IN_TURN.get((self._name, self._kind), len(self._asked["events"]))

    def _nothing(self) -> _Taken:
        return {(distance, what): [] for distance in self._distances for what in ("event", "other")}

    def _phase(self, taken: _Taken) -> None:
        """At each distance: nanoseconds of turns, and of system calls that are another one."""
        for distance in self._distances:
            self._turns(self._run, distance, taken[distance, "event"])
            if self._other is not None:
                self._turns(self._other, distance, taken[distance, "other"])

    def _turns(self, run: loops.Run, distance: Distance, taken: list[Chunk]) -> None:
        between = self._between.get(distance)
        if between is None:
            turns = TURNS[self._name]
            taken += itertools.islice(pace.beside(lambda: _spent(run, turns, self._clock)), CHUNKS)
            return
        clock = time.perf_counter_ns  # the CPU's time is a system call

        def measure() -> float:
            for _ in range(_TRIES):
                spent, begun, ran = 0, clock(), self._clock()
                for _ in itertools.repeat(None, distance.turns):
                    between()
                    start = clock()
                    run(1)
                    spent += clock() - start
                if clock() - begun < 1.05 * (self._clock() - ran):
                    break  # nobody else had the CPU in between
            return spent / distance.turns

        taken += itertools.islice(pace.beside(measure), distance.chunks)

    def _gaps(self) -> list[float]:
        """From one turn to the next at each distance, without tracing: the least of a few, others have the CPU too."""
        return [min(self._gap(distance) for _ in range(_TRIES)) for distance in self._distances]

    def _gap(self, distance: Distance) -> float:
        between, turns = self._between.get(distance), distance.chunks * distance.turns or TURNS[self._name]
        start = time.perf_counter_ns()
        if between is None:
            self._run(turns)
        else:
            for _ in itertools.repeat(None, turns):
                between()
                self._run(1)
        return (time.perf_counter_ns() - start) / turns

    def _timed(self) -> dict[Distance, float | None]:
        """What the kernel takes the time of, at each distance."""
        found: dict[Distance, float | None] = dict.fromkeys(self._distances)
        question.trace_start(self._asked, self._source)
        try:
            programs = [hook.program for hook in question._running().hooks if hook.program is not None]
            if not programs:
                return found
            try:
                timing = bpf.enable_stats()
            except OSError:
                return found  # before 5.8
            try:
                for distance in self._distances:
                    before = [program.runs() for program in programs]
                    for _ in range(3):
                        self._turns(self._run, distance, [])
                    after = [program.runs() for program in programs]
                    runs = sum(new[1] - old[1] for old, new in zip(before, after))  # noqa: B905
                    spent = sum(new[0] - old[0] for old, new in zip(before, after))  # noqa: B905
                    found[distance] = round(spent / runs, 1) if runs else None
            finally:
                timing.close()
        finally:
            question.trace_close()
        return found


def _spent(run: loops.Run, turns: int, clock: Callable[[], int]) -> float:
    """Nanoseconds of one of so many turns."""
    start = clock()
    run(turns)
    return (clock() - start) / turns
