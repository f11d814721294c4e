"""A generated month of a build farm, replayed by a batch lock and by ours: ``python bench/lab_replay.py``.

In simulated time, so no load on the machine changes a number; only the seeds do.  What is printed and why it is asked:
docs/explanation/lab.md.  ``--quick`` takes one seed.  Seeds 1 and 2 chose the numbers in lab/forecast.py, so they are
not used here.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

from evenkeel.lab.durations import quantile
from evenkeel.lab.forecast import covered
from evenkeel.lab.order import MINUTE_NS
from evenkeel.lab.simulate import Branch, Came, Outcome, Park, Policy, batch_lock, generate, work_conserving

SEEDS = (3, 4, 5)
LOADS = (10, 25, 40, 55)
MAIN_LOAD = 40
UNLIMITED = 10**6
#: Two for each architecture: no builder may stand in for another.
BOUND = Park(builders=(("x86_64", 2), ("arm64", 2), ("s390x", 2), ("ppc64le", 2)))
#: One architecture each, and four that can do all: as a farm grows.
MIXED = Park(builders=(("x86_64", 1), ("arm64", 1), ("s390x", 1), ("ppc64le", 1), ("any", 4)))

Run = Callable[[list[Branch]], Outcome]
Table = dict[str, dict[str, float]]
SCHEDULERS: dict[str, Run] = {
    "lock, stage by stage (as told)": lambda trace: batch_lock(trace),
    "lock, branches independent inside": lambda trace: batch_lock(trace, stages=False),
    "lock, stages, learned time-outs": lambda trace: batch_lock(trace, learned_timeouts=True),
    "work-conserving, by age": lambda trace: work_conserving(
        trace, policy=Policy(fair=False, urgent=False, learned_timeouts=False)
    ),
    "+ urgent first, no credits": lambda trace: work_conserving(
        trace, policy=Policy(fair=False, learned_timeouts=False, credits=UNLIMITED)
    ),
    "+ learned time-outs": lambda trace: work_conserving(trace, policy=Policy(fair=False, credits=UNLIMITED)),
    "+ fair share and credits (ours)": lambda trace: work_conserving(trace),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one seed, two loads")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--only", choices=tuple(PARTS), help="one of the tables")
    chosen = parser.parse_args()
    seeds, loads = (SEEDS[:1], (25, 40)) if chosen.quick else (SEEDS, LOADS)
    tables: dict[str, Table] = {}
    for name, (title, part) in PARTS.items():
        if chosen.only in (None, name):
            tables[name] = part(seeds, loads)
            if not chosen.json:
                _print(title, tables[name])
    if chosen.json:
        print(json.dumps(tables, indent=2))


def _schedulers(seeds: Sequence[int], loads: Sequence[int]) -> Table:
    traces = _traces(MAIN_LOAD, seeds)
    return {name: _mean(_row(run(trace)) for trace in traces) for name, run in SCHEDULERS.items()}


def _loads(seeds: Sequence[int], loads: Sequence[int]) -> Table:
    told, ours = next(iter(SCHEDULERS)), list(SCHEDULERS)[-1]
    return {
        f"{load} a day, {name}": _mean(_row(SCHEDULERS[name](trace)) for trace in _traces(load, seeds))
        for load in loads
        if load != MAIN_LOAD
        for name in (told, ours)
    }


def _builders(seeds: Sequence[int], loads: Sequence[int]) -> Table:
    return {
        f"{words}, {load} a day": _mean(_row(work_conserving(trace, park)) for trace in _traces(load, seeds))
        for words, park in (("2 of each", BOUND), ("1 of each, 4 for all", MIXED))
        for load in loads
        if load < 55
    }


def _forecasts(seeds: Sequence[int], loads: Sequence[int]) -> Table:
    """Of the first two seeds, since each branch is a forecast of all that waits: most of the time of this bench."""
    return {f"{load} a day": _mean(map(_forecast_row, _traces(load, seeds[:2]))) for load in loads}


PARTS: dict[str, tuple[str, Callable[[Sequence[int], Sequence[int]], Table]]] = {
    "schedulers": (f"{MAIN_LOAD} branches a day", _schedulers),
    "loads": ("other loads", _loads),
    "builders": ("builders bound to an architecture", _builders),
    "forecasts": ("forecasts of the end, made when a branch is sent in", _forecasts),
}


def _traces(load: int, seeds: Sequence[int]) -> list[list[Branch]]:
    return [generate(seed, per_day=load) for seed in seeds]


def _row(outcome: Outcome) -> dict[str, float]:
    """Minutes and per cent; ``idle`` and ``fits others only`` of builder time while a branch waits.

    Heavy: who sends in most; light: those who send in less than the median person, and are not of the team of the heavy
    one; heavy's team: of that team, but for the heavy one."""
    counts: dict[str, int] = {}
    for came in outcome.came:
        counts[came.branch.person] = counts.get(came.branch.person, 0) + 1
    middle = statistics.median(counts.values())
    heavy = max(counts, key=lambda person: counts[person])
    team = next(came.branch.team for came in outcome.came if came.branch.person == heavy)

    def plain(came: Came) -> bool:
        return not came.branch.urgent

    def light(came: Came) -> bool:
        return plain(came) and counts[came.branch.person] < middle and came.branch.team != team

    def mates(came: Came) -> bool:
        return plain(came) and came.branch.person != heavy and came.branch.team == team

    row = {
        "idle %": 100 * outcome.idle_share(),
        "idle builder-h": outcome.idle_hours(),
        "fits others only %": 100 * outcome.idle_share("fit"),
        **_stats("wait", outcome.waits(plain)),
        **_stats("turn", outcome.turnarounds(plain)),
        "asked urgent p95": _minutes(outcome.waits(lambda came: came.branch.urgent), 0.95),
        "light p95": _minutes(outcome.waits(light), 0.95),
        "heavy p95": _minutes(outcome.waits(lambda c: plain(c) and c.branch.person == heavy), 0.95),
        "heavy's team p95": _minutes(outcome.waits(mates), 0.95),
    }
    within = outcome.waits(lambda came: came.urgent)
    return row | ({"urgent in credit p95": _minutes(within, 0.95)} if within else {})


def _stats(name: str, sorted_ns: list[int]) -> dict[str, float]:
    return {
        f"{name} mean": statistics.fmean(sorted_ns) / MINUTE_NS,
        f"{name} p95": _minutes(sorted_ns, 0.95),
    }


def _minutes(sorted_ns: list[int], share: float) -> float:
    return quantile(sorted_ns, share) / MINUTE_NS if sorted_ns else float("nan")


def _forecast_row(trace: list[Branch]) -> dict[str, float]:
    began = time.process_time()
    outcome = work_conserving(trace, policy=Policy(forecast_every=1))
    took = time.process_time() - began
    came = [c for c in outcome.came if c.end is not None and c.ended_ns is not None]
    built = [c for c in came if c.begun_ns is not None]
    errors = sorted(abs(c.end[0].p50_ns - c.ended_ns) for c in built if c.end and c.ended_ns)
    turn = statistics.fmean(outcome.turnarounds(lambda c: c.end is not None)) / MINUTE_NS
    middle = _minutes(errors, 0.5)
    return {
        "error p50": middle,
        "error p90": _minutes(errors, 0.9),
        "turn mean": turn,
        "error p50 % of turn": 100 * middle / turn,
        "in band as drawn %": 100 * _covered(came, 1),
        "in band %": 100 * _covered(came, 0),
        "of those built %": 100 * _covered(built, 0),
        "ms of CPU each": 1000 * took / len(trace),
    }


def _covered(came: list[Came], which: int) -> float:
    share = covered((c.end[which], c.ended_ns) for c in came if c.end is not None and c.ended_ns is not None)
    assert share is not None
    return share


def _mean(rows: Iterable[dict[str, float]]) -> dict[str, float]:
    """Of the seeds."""
    found = list(rows)
    return {name: statistics.fmean(row[name] for row in found if name in row) for name in found[0]}


def _print(title: str, table: Table) -> None:
    names = list(dict.fromkeys(name for row in table.values() for name in row))
    print(f"\n{title} (minutes unless said otherwise)\n")
    print("| | " + " | ".join(names) + " |")
    print("|---|" + "---|" * len(names))
    for row_name, row in table.items():
        cells = [_cell(row, name) for name in names]
        print(f"| {row_name} | " + " | ".join(cells) + " |")


def _cell(row: dict[str, float], name: str) -> str:
    if name not in row:
        return "-"
    return f"{row[name]:.1f}" if "%" in name or "ms" in name else f"{row[name]:.0f}"


if __name__ == "__main__":
    main()
