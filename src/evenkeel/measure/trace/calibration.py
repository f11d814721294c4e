"""What events cost on one machine: measured at the first question of a kind after its boot, and kept in the cache.

What comes back to back finds everything in the processor's caches, what is seldom does not and costs up to ten times
as much.  So a cost is a curve: over the time from one event to the next.  Where on it the events of a question lie is
first told by their rate.  Events that come in bursts, or among much or little other work, are dearer or cheaper than
that; so what the kernel timed of an answer is looked up in the curve, and kept as a factor for the next question about
the same events.  A machine whose system calls take longer than when it was calibrated is dearer by as much.
A measurement in which the machine was hardly ever as fast as it gets is repeated at the next questions.
A file for each boot, which names the machine and its kernel well enough; deleting it only makes the next question a few
seconds longer.  Must not decide which source is used.
"""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from evenkeel.documents.answer import Question
from evenkeel.machines.protocol import OnProgress, Probe, ProbeError
from evenkeel.machines.virtual.places import cache_dir
from evenkeel.measure.trace import planner
from evenkeel.measure.trace.planner import Each

#: Raised when what is kept means something else than before: a program that was updated since the boot measures anew.
_FORMAT = 4
#: Boots that are remembered.
_MOST = 50
#: A BTF tracepoint is a raw tracepoint whose arguments have types: it costs the same, but of a system call.
_SAME = {"tp_btf": "raw_tp"}
_FACTORS = "times what their rate tells"
#: What is added to a loop that is dear itself is soon less than how much the loop varies beside busy neighbours.  While
#: that is so, another one stands for it.
_INSTEAD = {"fault": "event"}
#: A source that was measured while the machine was hardly ever as fast as it gets is measured anew, so many times.
_AGAIN = 3

#: Of a run that the kernel timed, so much is the timing (measured).
TIMING_NS = 15.0
#: What the kernel timed, in times of what was expected: between these nothing is learnt, because it times a mean with
#: all that disturbed.  Corrections by less made more predictions worse than better.
_AS_EXPECTED = (0.4, 2.5)
#: What was measured to be a smaller part of what the table has was disturbed.
_LEAST = 0.25
#: Between these a machine is as fast as it was: both were timed for a moment only, by a system call.
_AS_FAST = (0.67, 1.5)
#: No machine is slower or faster than this by itself; what looks like it was measured at a bad moment.
_SPEEDS = (0.4, 3.0)


@dataclass(frozen=True)
class Point:
    """At one distance between events: what an event costs, what each other system call, what the kernel times of it."""

    gap_ns: float
    ns: float
    other_ns: float = 0.0
    timed_ns: float | None = None


def curve(raw: Sequence[Mapping[str, Any]]) -> tuple[Point, ...]:
    """From what was measured, the shortest distance first.

    Nothing gets cheaper by being seldom, and nothing costs less than its program alone: that is noise.

    Raises TypeError for something else.
    """
    found: list[Point] = []
    for one in sorted((Point(**one) for one in raw), key=lambda one: one.gap_ns):
        last = found[-1] if found else one
        timed = one.timed_ns if last.timed_ns is None or one.timed_ns is None else max(last.timed_ns, one.timed_ns)
        ns = max(last.ns, one.ns, (timed or 0.0) - TIMING_NS)
        found.append(Point(one.gap_ns, ns, max(last.other_ns, one.other_ns), timed))
    return tuple(found)


def at(points: Sequence[Point], gap_ns: float) -> Point:
    """Between two points straight by the logarithm of the distance; before the first and behind the last as there."""
    for left, right in itertools.pairwise(points):
        if left.gap_ns <= gap_ns < right.gap_ns:
            share = math.log(gap_ns / left.gap_ns) / math.log(right.gap_ns / left.gap_ns)
            return _between(left, right, share)
    return points[0] if gap_ns <= points[0].gap_ns else points[-1]


def _between(left: Point, right: Point, share: float) -> Point:
    def mixed(one: float, other: float) -> float:
        return one + share * (other - one)

    timed = None
    if left.timed_ns is not None and right.timed_ns is not None:
        timed = mixed(left.timed_ns, right.timed_ns)
    gap = math.exp(mixed(math.log(left.gap_ns), math.log(right.gap_ns)))
    return Point(gap, mixed(left.ns, right.ns), mixed(left.other_ns, right.other_ns), timed)


def correction(points: Sequence[Point], gap_ns: float, timed_ns: float) -> float | None:
    """What an event of which the kernel timed ``timed_ns`` costs, in times of what the curve has at ``gap_ns``.

    It is taken from where the curve has that time; behind its end it goes on as the last point does.  1 where the time
    is about as expected: of one program some ten nanoseconds are timed, and that well.  None where it cannot be told.
    """
    here = at(points, gap_ns)
    if not here.ns or not here.timed_ns:
        return None
    if _AS_EXPECTED[0] <= timed_ns / here.timed_ns <= _AS_EXPECTED[1]:
        return 1.0
    first, last = points[0], points[-1]
    if first.timed_ns is None or last.timed_ns is None:
        return None
    if timed_ns <= first.timed_ns:
        return first.ns / here.ns
    for left, right in itertools.pairwise(points):
        if left.timed_ns is not None and right.timed_ns is not None and left.timed_ns < timed_ns <= right.timed_ns:
            share = (timed_ns - left.timed_ns) / (right.timed_ns - left.timed_ns)
            return _between(left, right, share).ns / here.ns
    return last.ns / here.ns * timed_ns / last.timed_ns


class Calibration:
    """What is known of the machine behind ``probe`` since it was booted."""

    def __init__(self, probe: Probe, on_progress: OnProgress | None = None) -> None:
        self._probe, self._on_progress = probe, on_progress
        self._file = cache_dir() / "calibration" / f"{probe.call('hello')['boot_id']}-{_FORMAT}.json"
        self._kept: dict[str, Any] = {}
        self._now_ns: float | None = None
        with suppress(OSError, ValueError):
            found = json.loads(self._file.read_text())
            if isinstance(found, dict):
                self._kept = found

    def each(self, question: Question, gap_ns: float = 0.0, *, anew: bool = False) -> dict[str, Each]:
        """Source -> what an event costs there.  Empty where that cannot be measured.  ``anew``: again.

        ``gap_ns``: from one event to the next; 0: back to back.
        """
        kept = self._measured(question, anew)
        with suppress(TypeError, KeyError, ValueError):
            slower = self._slower(kept)
            found = {}
            for source, one in kept.items():
                here, table = at(curve(one["at"]), gap_ns), planner.SOURCES[source]
                ns = max(here.ns, table.ns[question.kind] * _LEAST)
                # What leaves other calls alone by its nature (fentry) does so here: what was measured of it is noise.
                call = planner.loop_of(question) == "call" and table.other_ns
                other_ns = max(here.other_ns, table.other_ns * _LEAST) if call else 0.0
                found[source] = Each(ns * slower, other_ns * slower, _how(here, gap_ns, slower))
            return found
        return {}

    def learn(self, question: Question, source: str, gap_ns: float, timed_ns: float) -> None:
        """Keep how much dearer such events are than their rate tells, by what the kernel timed of one."""
        kept = self._kept.get(_name(question, planner.loop_of(question) or ""), {})
        with suppress(TypeError, KeyError, ValueError):
            if source in kept:
                found = correction(curve(kept[source]["at"]), gap_ns, timed_ns / self._slower(kept))
            else:
                table = planner.SOURCES[source].ns[question.kind]
                found = max(1.0, timed_ns / table) if table else None
            if found is not None:
                self.remember(question, found)

    def _measured(self, question: Question, anew: bool) -> dict[str, Any]:
        loop = planner.loop_of(question)
        if loop is None:
            return {}
        name = _name(question, loop)
        found = self._kept.get(name)
        known = found if isinstance(found, dict) and not anew else None
        disturbed = [source for source, one in (known or {}).items() if isinstance(one, dict) and one.get("again")]
        if known is None or disturbed:
            measured = _measure(self._probe, question, loop, known, disturbed, self._on_progress)
            known = {**(known or {}), **measured}
            self._kept[name] = known
            self._write()
        return known

    def _slower(self, kept: Mapping[str, Any]) -> float:
        """How many times as slow the machine is now as when this was measured."""
        if not kept:
            return 1.0
        if self._now_ns is None:
            self._now_ns = float(self._probe.call("trace_speed")["ns"])
        then = float(next(iter(kept.values()))["speed_ns"])
        ratio = self._now_ns / then if then > 0 else 1.0
        return 1.0 if _AS_FAST[0] < ratio < _AS_FAST[1] else min(max(ratio, _SPEEDS[0]), _SPEEDS[1])

    def factor(self, question: Question) -> float:
        """How many times as much as their rate tells such events did cost when they were asked for the last time."""
        found = self._kept.get(_FACTORS)
        factor = found.get(_events(question)) if isinstance(found, dict) else None
        return factor if isinstance(factor, float) and factor > 0 else 1.0

    def remember(self, question: Question, factor: float) -> None:
        if not isinstance(self._kept.get(_FACTORS), dict):
            self._kept[_FACTORS] = {}
        self._kept[_FACTORS][_events(question)] = round(factor, 2)
        self._write()

    def _write(self) -> None:
        """Whole or not at all; a cache that cannot be written is no error."""
        folder = self._file.parent
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            for old in sorted(folder.glob("*.json"), key=lambda one: one.stat().st_mtime)[:-_MOST]:
                old.unlink()
            new = self._file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(self._kept, indent=2, sort_keys=True))
            new.replace(self._file)


def _events(question: Question) -> str:
    return " ".join((question.kind, *question.events))


def _name(question: Question, loop: str) -> str:
    """Of a uprobe it depends on the function's first instruction: each is measured by itself."""
    return " ".join((question.kind, loop, *(question.events if loop == "uprobe" else ())))


def _how(here: Point, gap_ns: float, slower: float) -> str:
    said = f", where events are {here.gap_ns / 1e3:.3g} us apart" if gap_ns and here.gap_ns >= 1000 else ""
    return said + (f", times {slower:.2g} as the machine is now" if slower != 1 else "")


def _measure(
    probe: Probe,
    question: Question,
    loop: str,
    known: Mapping[str, Any] | None,
    again: Sequence[str],
    on_progress: OnProgress | None,
) -> dict[str, Any]:
    """All that can be calibrated; where something is known, only what is to be measured ``again``."""
    found: dict[str, Any] = {}
    like = question.events[0] if loop == "uprobe" else ""
    wanted = [source for source in planner.calibrated(question) if known is None or source in again]
    for number, source in enumerate(wanted):
        if on_progress:
            on_progress(number, len(wanted), f"what an event costs by {source}, measured once after a boot")
        if loop != "call" and _SAME.get(source) in found:
            found[source] = found[_SAME[source]]
            continue
        try:
            one = _calibrate(probe, question, source, loop, like)
            settled = one["settled"]
            if loop in _INSTEAD and not one["steady"]:
                one, settled = _calibrate(probe, question, source, _INSTEAD[loop], like), False
        except ProbeError:
            continue  # refused here, as it will be for the question itself
        left = known[source]["again"] - 1 if known is not None else _AGAIN
        found[source] = {"at": one["at"], "speed_ns": one["speed_ns"], "again": 0 if settled else left}
    return found


def _calibrate(probe: Probe, question: Question, source: str, loop: str, like: str) -> dict[str, Any]:
    """Raises ProbeError."""
    found: dict[str, Any] = probe.call(
        "trace_calibrate", source=source, kind=question.kind, loop=loop, like=like, timeout_s=120.0
    )
    return found
