"""Ask a machine a question: count the rate first, try the sources from the cheapest on, wait, and make the Answer.

Must not print, and must not choose: the order is :mod:`evenkeel.measure.trace.planner`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from evenkeel.documents.answer import Answer, Question, Refused, Row, Stack, TraceCost
from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.evidence import EMULATION_NOTE, Conditions
from evenkeel.documents.histogram import Histogram
from evenkeel.errors import NotAsWanted, WrongInput
from evenkeel.machines.protocol import OnProgress, Probe, ProbeError
from evenkeel.measure.fetch import fetch
from evenkeel.measure.trace import planner
from evenkeel.measure.trace.calibration import TIMING_NS, Calibration
from evenkeel.measure.trace.planner import Candidate, Each

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: The rate of an event is counted for so long before a source is chosen.
PILOT_S = 0.2
#: Between two looks at whether the user wants to stop.
STEP_S = 0.25
#: Errors that every source would meet again: the event or process does not exist, or the question is wrong.
_FINAL = ("ENOENT", "EINVAL", "ESRCH")
_COUNTERS = ("software:", "hardware:")


def ask(
    probe: Probe,
    question: Question,
    *,
    host: str,
    conditions: Conditions,
    online: int,
    stop: threading.Event | None = None,
    source: str | None = None,
    on_progress: OnProgress | None = None,
    on_start: Callable[[str], None] | None = None,
    take: Callable[[NDArray[Any]], None] | None = None,
) -> Answer:
    """The answer to ``question``.  ``take`` is given the records, in the order of time, where they were asked for.

    ``online``: how many CPUs the machine has.  ``stop``: end early, with what there is by then.  ``source``: this one
    and no other.  ``on_start`` is called with the source as soon as events are seen.
    Raises WrongInput for an event or a process that the machine does not have, and for what nothing can answer;
    NotAsWanted when no source works there.
    """
    stop = stop or threading.Event()
    planner.check(question)
    rates, on_cpus = pilot(probe, question)
    if question.kind == "profile":
        rates = {"profile": float(question.frequency_hz * (len(question.cpus) if question.cpus else online))}
    known = Calibration(probe, on_progress)
    gap_ns = planner.gap_ns(question, rates, on_cpus)
    each, factor = known.each(question, gap_ns), known.factor(question)
    candidates, unable = planner.ladder(question, rates, each, factor)
    if source is not None:
        candidates = tuple(one for one in candidates if one.source == source)
        unable = ()
        if not candidates:
            raise WrongInput(f"{source} cannot answer `{question.kind}`", hint="leave --source out, and it is chosen")
    chosen, refused, pace = start(probe, question, candidates, rates)
    if on_start:
        on_start(chosen.source)
    rate = _wait(probe, question, pace, stop, on_progress)
    found = probe.call("trace_finish", timeout_s=120.0)
    if take is not None and "records" in found:
        from evenkeel.measure.trace.records import records

        take(records(found["records"], fetch(probe, found["records"], "the records", on_progress), question.field))
    cost = chosen.cost
    if (ns := _event_ns(question, chosen.source, found)) is not None:
        known.learn(question, chosen.source, gap_ns, ns)
    if rate is not None and not rates:  # nothing could be counted beforehand
        share = cost.ns_per_event * rate / 1e9
        how = f"{planner.TABLE}, at the rate of its first moment"
        cost = TraceCost(ns_per_event=cost.ns_per_event, events_per_s=round(rate, 1), share_of_core=share, how=how)
    measured = _timed(found) if found["cost"] else _reckoned(each.get(chosen.source), found)
    return Answer(
        host=host,
        question=question,
        source=chosen.source,
        mechanism=tuple(found["mechanism"]),
        refused=planner.cheaper(chosen, candidates, unable, refused),
        events=found["events"],
        lost=found["lost"],
        seconds=found["seconds"],
        sampled=_sampled(found),
        predicted=cost,
        measured=measured,
        reader_cpu_s=found["reader_cpu_s"],
        rows=_rows(found, question),
        durations=_durations(found),
        durations_ns=found.get("total_ns"),
        stacks=tuple(Stack(**one) for one in found.get("stacks", ())),
        conditions=conditions,
        notes=(*_notes(question, stop, found, conditions), *_over_budget(question, measured, cost, found)),
    )


def pilot(probe: Probe, question: Question) -> tuple[dict[str, float], float]:
    """Events a second by perf counters, which every question can afford; what they cannot count is left out.

    The second: on how many CPUs they happen, as many as would share them equally.
    Raises WrongInput for an event that does not exist.
    """
    if question.kind == "exits":
        return {}, 1.0  # the first sources cost nothing, whatever the rate
    wanted = [event for event in dict.fromkeys(question.events) if not event.startswith(("function:", "uprobe:"))]
    rates, on_cpus = {}, 1.0
    for event in wanted:
        try:
            found = _counted(probe, question, event)
        except ProbeError as error:
            if error.errno in _FINAL:
                listed = error.errno != "ESRCH" and not event.startswith(_COUNTERS)
                hint = "`evenkeel trace events WORD` lists what there is" if listed else None
                raise WrongInput(error.said, hint=hint) from None
            continue
        rates[event] = found["events"] / found["seconds"]
        on_cpus = max(on_cpus, found["on_cpus"] or 1.0)
    call = next((event for event in rates if event.startswith("syscalls:")), None)
    if call is not None:
        # At the same time: a machine that is slower for a moment would seem to have made fewer of the others.
        with suppress(ProbeError):
            found = _counted(probe, question, call, planner.SYSCALLS)
            own, every = found["each"]
            rates[planner.SYSCALLS] = rates[call] * every / own if own else every / found["seconds"]
    return rates, on_cpus


def _counted(probe: Probe, question: Question, *events: str) -> dict[str, Any]:
    """By perf counters, for a moment.  Raises ProbeError."""
    # Programs run for everybody's events, of whom one process is picked out; a counter of one process counts no others.
    process = question.process if events[0].startswith(_COUNTERS) else None
    counting = {**_request(question), "kind": "count", "events": list(events), "process": process}
    probe.call("trace_start", question=counting, source="perf")
    found: dict[str, Any] = probe.call("trace_wait", within_s=PILOT_S)
    probe.call("trace_close")
    return found


def start(
    probe: Probe, question: Question, candidates: tuple[Candidate, ...], rates: Mapping[str, float]
) -> tuple[Candidate, tuple[Refused, ...], _Pace]:
    """Start at the first source that the kernel lets us, and say what it refused before.  Rings have room for the rate.

    What may be too much for the budget is attached for a window only, until that has told its rate.
    Raises NotAsWanted.
    """
    refused: list[Refused] = []
    asked = {**_request(question), "rate_per_s": sum(rates.get(one, 0.0) for one in question.events)}
    for candidate in candidates:
        pace = _Pace(probe, question, candidate.cost, bool(rates))
        try:
            started = probe.call("trace_start", question=asked, source=candidate.source, window=pace.window)
        except ProbeError as error:
            if error.errno == "ESRCH" and question.process is not None:
                raise WrongInput(error.said) from None
            refused.append(Refused(source=candidate.source, why=error.said, errno=error.errno))
            continue
        pace.finish_s = started["finish_s"]
        if pace.window:
            found = probe.call("trace_wait", within_s=0)
            pace.look(found["events"], found["seconds"], question.seconds)
        return candidate, tuple(refused), pace
    wrong = next((one for one in refused if one.errno in _FINAL and one.source in planner.SEES_FIELDS), None)
    if wrong is not None:
        raise WrongInput(wrong.why)
    reasons = "; ".join(f"{one.source}: {one.why}{f' ({one.errno})' if one.errno else ''}" for one in refused)
    raise NotAsWanted(
        f"no source works for this question there: {reasons}",
        hint="root is needed, and a locked-down kernel lets nobody trace its functions; "
        "`evenkeel trace sources` shows what works",
    )


def _request(question: Question) -> dict[str, Any]:
    data = question.model_dump(mode="json")
    if question.cpus is not None:
        data["cpus"] = sorted(question.cpus)
    return data


def _sampled(found: dict[str, Any]) -> float:
    """The share of the time in which it was attached."""
    return round(min(1.0, found["seconds"] / found["elapsed"]), 5) if _paced(found) else 1.0


def _over_budget(
    question: Question, measured: TraceCost | None, expected: TraceCost, found: dict[str, Any]
) -> tuple[str, ...]:
    """What is to be said where the budget was not kept."""
    rate = found["events"] / found["seconds"] if found["seconds"] else 0.0
    over_all = (measured.share_of_core if measured else _at(expected, rate)) * _sampled(found)
    if not planner.paced(question) or over_all <= question.budget:
        return ()
    said = f"the budget of {question.budget:.3%} of a core was not kept: over the whole time it took {over_all:.3%}"
    if found["windows"] == 1:
        said += f", for the one window of {found['seconds']:.2g} s without which there is no answer"
    return (said,)


def _paced(found: dict[str, Any]) -> bool:
    """Whether it was taken off on purpose for a part of the time; attaching and reading takes a little of it always."""
    return bool(found["share"] < 1)


def _at(cost: TraceCost, rate: float) -> float:
    """What it takes of a core at another rate of the event; what other system calls cost stays."""
    return cost.share_of_core + cost.ns_per_event * (rate - cost.events_per_s) / 1e9


class _Pace:
    """Keeps the cost of a run within its budget, by what it has cost so far and what was expected.

    The rate that was counted beforehand stands for :data:`PILOT_S` of events: a moment at the beginning alone would
    tell too little.
    """

    def __init__(self, probe: Probe, question: Question, cost: TraceCost, known: bool) -> None:
        """``known``: whether the rate was counted beforehand; an assumed one says nothing."""
        self._probe, self._question, self._cost = probe, question, cost
        self._before_s = PILOT_S if known else 0.0
        self.finish_s = 0.0
        #: Whether it may be too much, so that no more than a window is seen before the first look.
        self.window = planner.paced(question) and (
            not known or planner.pace(question, cost.share_of_core, 0.0, 0.0, question.seconds) < 1
        )
        #: For so much of the time it is attached; None before the first look.
        self.share = None if self.window else 1.0

    def look(self, events: int, attached_s: float, left_s: float) -> None:
        """After so many events in so long a time: attach for less, or for more, from here on.

        ``left_s``: until the end of the time that the user gave.
        """
        if not planner.paced(self._question) or self.share == 0:
            return  # where nothing is seen any more, nothing new is known
        seen = events + self._cost.events_per_s * self._before_s
        attached = _at(self._cost, seen / (attached_s + self._before_s))
        left_s -= self.finish_s
        share = planner.pace(self._question, attached, attached_s, self.finish_s, left_s)
        if share != self.share:
            self.share = share
            self.finish_s = self._probe.call("trace_pace", share=share, most_s=share * max(0.0, left_s))["finish_s"]


def _wait(
    probe: Probe,
    question: Question,
    pace: _Pace,
    stop: threading.Event,
    on_progress: OnProgress | None,
) -> float | None:
    """Until the time is over or the user has seen enough.

    Returns the events a second of its first moment; None when it was over before.
    """
    seconds, rate = question.seconds, None
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - pace.finish_s - time.monotonic()) > 0:
        found = probe.call("trace_wait", within_s=min(STEP_S, left))
        if found["seconds"]:
            rate = found["events"] / found["seconds"] if rate is None else rate
            pace.look(found["events"], found["seconds"], end - time.monotonic())
        if on_progress:
            done = seconds - max(0.0, end - time.monotonic())
            on_progress(round(done * 10), round(seconds * 10), f"{found['events']:,} events")
        if found["full"]:
            break
    return rate


#: From so few runs nothing is learnt.
_FEWEST_RUNS = 50


def _event_ns(question: Question, source: str, found: dict[str, Any]) -> float | None:
    """What the kernel timed of one event, with the timing; None where runs are no events.

    A raw tracepoint's program runs for all system calls, and is over in no time for nearly all of them.
    """
    timed, raw = found["cost"], source in ("raw_tp", "tp_btf")
    if not timed or timed["runs"] < _FEWEST_RUNS:
        return None
    if raw and any(one.startswith("syscalls:") for one in question.events):
        return None
    return float(timed["ns_per_run"])


def _timed(found: dict[str, Any]) -> TraceCost:
    """From the time that the kernel took of our programs' runs."""
    timed = found["cost"]
    runs_per_s = timed["runs"] / timed["seconds"]
    return TraceCost(
        ns_per_event=round(timed["ns_per_run"], 1),
        events_per_s=round(runs_per_s, 1),
        share_of_core=timed["ns_per_run"] * runs_per_s / 1e9,
        how=f"the kernel timed {timed['runs']:,} runs in {timed['seconds']} s, "
        f"some {TIMING_NS:.0f} ns of each are the timing; without the slow path of traced system calls",
    )


def _reckoned(each: Each | None, found: dict[str, Any]) -> TraceCost | None:
    """Of what the kernel does not time: as it was calibrated, for the events that came."""
    if each is None:
        return None
    rate = found["events"] / found["seconds"] if found["seconds"] else 0.0
    how = "calibrated here, and the events that came"
    return TraceCost(ns_per_event=each.ns, events_per_s=round(rate, 1), share_of_core=each.ns * rate / 1e9, how=how)


def _rows(found: dict[str, Any], question: Question) -> tuple[Row, ...]:
    """Those that did it often enough; in a sample as many as there must have been."""
    whole = found["elapsed"] / found["seconds"] if _paced(found) and found["seconds"] else 1.0
    return tuple(Row(**row) for row in found.get("rows", ()) if row["count"] * whole >= question.at_least)


def _durations(found: dict[str, Any]) -> Histogram | None:
    if "buckets" not in found:
        return None
    counts, overflows, limit = dict(found["buckets"]), found["overflows"], found["limit_ns"]
    return Histogram(bucket_ns=1, bits=found["bits"], counts=counts, overflows=overflows, limit=limit)


def _notes(question: Question, stop: threading.Event, found: dict[str, Any], conditions: Conditions) -> tuple[str, ...]:
    notes = []
    if "buckets" in found:
        if conditions.emulated:
            notes.append(EMULATION_NOTE)
        left = found["starts"] - found["events"]
        if left > 0:
            notes.append(f"{left:,} of {found['starts']:,} beginnings have no end: under way, or begun anew")
    if "idle" in found:
        notes.append(
            f"{found['idle']:,} of {found['events']:,} samples found their CPU idle; they are not in the stacks"
        )
    if found.get("full"):
        notes.append("ended early: no more records are kept, and those that came later are not counted either")
    if "records" in found and found["records"]["formats"]:
        notes.append(
            "a record of this source does not say the process: it is that of the thread before or after, and 0 "
            "for a thread that came and went meanwhile"
        )
    if refused := found.get("not_real_time"):
        notes.append(f"the reader got no real-time priority ({refused}), so it may be kept from its CPU, and lose more")
    if stop.is_set():
        notes.append("ended early by the user")
    if _paced(found):
        notes.append(f"sampled: it would have taken more than {question.budget:.3%} of a core, see --budget")
    if found.get("only_userspace"):
        notes.append("this KVM has no event for an exit: only those that reach QEMU are counted")
    if question.kind == "noise":
        notes.append("an interrupt inside of a softirq is in both: times of different kinds overlap")
    if question.process is not None:
        notes.append(f"only process {question.process}")
    if question.cpus is not None:
        notes.append(f"only on CPU {format_cpus(question.cpus)}")
    return tuple(notes)
