"""Ask a machine a question: count the rate first, try the sources from the cheapest on, wait, and make the Answer.

Must not print, and must not choose: the order is :mod:`evenkeel.measure.trace.planner`'s.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
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
    known = Calibration(probe)
    gap_ns = planner.gap_ns(question, rates, on_cpus)
    each, factor = known.each(question, gap_ns), known.factor(question)
    candidates, unable = planner.ladder(question, rates, each, factor)
    if source is not None:
        candidates = tuple(one for one in candidates if one.source == source)
        unable = ()
        if not candidates:
            raise WrongInput(f"{source} cannot answer `{question.kind}`", hint="leave --source out, and it is chosen")
    chosen, refused, finish_s = start(probe, question, candidates, sum(rates.get(one, 0.0) for one in question.events))
    if on_start:
        on_start(chosen.source)
    rate = _wait(probe, question, chosen.cost, finish_s, stop, on_progress)
    found = probe.call("trace_finish", timeout_s=120.0)
    if take is not None and "records" in found:
        from evenkeel.measure.trace.records import records

        take(records(found["records"], fetch(probe, found["records"], "the records", on_progress), question.field))
    cost = chosen.cost
    if (ns := _event_ns(question, chosen.source, found)) is not None:
        known.learn(question, chosen.source, gap_ns, ns)
    if rate is not None and not rates:  # nothing could be counted beforehand, so the first moment was the pilot
        share = cost.ns_per_event * rate / 1e9
        how = f"{planner.TABLE}, at the rate of its first {STEP_S} s"
        cost = TraceCost(ns_per_event=cost.ns_per_event, events_per_s=round(rate, 1), share_of_core=share, how=how)
    return Answer(
        host=host,
        question=question,
        source=chosen.source,
        mechanism=tuple(found["mechanism"]),
        refused=planner.cheaper(chosen, candidates, unable, refused),
        events=found["events"],
        lost=found["lost"],
        seconds=found["seconds"],
        sampled=round(min(1.0, found["seconds"] / found["elapsed"]), 5) if _paced(found) else 1.0,
        predicted=cost,
        measured=_timed(found) if found["cost"] else _reckoned(each.get(chosen.source), found),
        reader_cpu_s=found["reader_cpu_s"],
        rows=_rows(found, question),
        durations=_durations(found),
        durations_ns=found.get("total_ns"),
        stacks=tuple(Stack(**one) for one in found.get("stacks", ())),
        conditions=conditions,
        notes=_notes(question, stop, found, conditions),
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
                hint = "`evenkeel trace events WORD` lists what there is" if error.errno != "ESRCH" else None
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
    process = question.process if events[0].startswith(("software:", "hardware:")) else None
    counting = {**_request(question), "kind": "count", "events": list(events), "process": process}
    probe.call("trace_start", question=counting, source="perf")
    found: dict[str, Any] = probe.call("trace_wait", within_s=PILOT_S)
    probe.call("trace_close")
    return found


def start(
    probe: Probe, question: Question, candidates: tuple[Candidate, ...], rate_per_s: float
) -> tuple[Candidate, tuple[Refused, ...], float]:
    """Start at the first source that the kernel lets us, and say what it refused before.  Rings have room for the rate.

    The last that comes back is how long the finish goes on counting, in seconds.  Raises NotAsWanted.
    """
    refused: list[Refused] = []
    asked = {**_request(question), "rate_per_s": rate_per_s}
    for candidate in candidates:
        try:
            started = probe.call("trace_start", question=asked, source=candidate.source)
        except ProbeError as error:
            if error.errno == "ESRCH" and question.process is not None:
                raise WrongInput(error.said) from None
            refused.append(Refused(source=candidate.source, why=error.said, errno=error.errno))
            continue
        return candidate, tuple(refused), started["finish_s"]
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


def _paced(found: dict[str, Any]) -> bool:
    """Whether it was taken off on purpose for a part of the time; attaching and reading takes a little of it always."""
    return bool(found["share"] < 1)


def _wait(
    probe: Probe,
    question: Question,
    cost: TraceCost,
    finish_s: float,
    stop: threading.Event,
    on_progress: OnProgress | None,
) -> float | None:
    """Until the time is over or the user has seen enough.  The first moment tells whether it has to be sampled.

    Returns the events a second of that moment; None when it was over before.
    """
    seconds, rate = question.seconds - finish_s, None
    end = time.monotonic() + seconds
    while not stop.is_set() and (left := end - time.monotonic()) > 0:
        found = probe.call("trace_wait", within_s=min(STEP_S, left))
        if rate is None and found["seconds"]:
            rate = found["events"] / found["seconds"]
            changed = cost.ns_per_event * (rate - cost.events_per_s) / 1e9
            share = planner.pace(question, cost.share_of_core + changed)
            if share < 1:
                probe.call("trace_pace", share=share)
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
    whole = found["elapsed"] / found["seconds"] if _paced(found) else 1.0
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
        notes.append("a record of this source does not say the process: 0 stands in its place")
    if stop.is_set():
        notes.append("ended early by the user")
    if _paced(found):
        notes.append(f"sampled: it would have taken more than {question.budget:.3g} of a core, see --budget")
    if found.get("only_userspace"):
        notes.append("this KVM has no event for an exit: only those that reach QEMU are counted")
    if question.kind == "noise":
        notes.append("an interrupt inside of a softirq is in both: times of different kinds overlap")
    if question.process is not None:
        notes.append(f"only process {question.process}")
    if question.cpus is not None:
        notes.append(f"only on CPU {format_cpus(question.cpus)}")
    return tuple(notes)
