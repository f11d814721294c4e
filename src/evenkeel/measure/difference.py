"""Two pieces of Evidence, compared: what differs by more than chance would make it, and what does not.

Pure.  Exact, and free of assumptions about the shape of the latencies: intervals of quantiles by order statistics,
misses by Fisher's test, the largest samples by the precedence test.  All questions that are asked share one level
(Bonferroni), so that of two equal runs at most one comparison in twenty shows anything.

It assumes samples that are independent of each other.  Two runs differ by more than their samples do: another boot lays
memory out anew.  What is shown is therefore a difference of these runs, and not yet of their settings.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from evenkeel.documents.comparison import Changed, Comparison, Difference, Shown
from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.evidence import EMULATION_NOTE, Conditions, Evidence, Latency
from evenkeel.documents.histogram import Histogram
from evenkeel.documents.quantity import format_duration
from evenkeel.measure.binomial import CONFIDENCE, quantile_ranks
from evenkeel.measure.verdict import decides

SHARES = (0.5, 0.9, 0.99, 0.999, 0.9999)
#: Largest samples of one run that may all be beyond the other one's largest: more are not needed at any level.
_MOST_LEADING = 64

_ranks = functools.cache(quantile_ranks)


def compare(earlier: Evidence, later: Evidence, confidence: float = CONFIDENCE) -> Comparison:
    """Pairs runs of the same tool in the same place at the same interval."""
    old = {_key(run): run for run in earlier.latencies}
    new = {_key(run): run for run in later.latencies}
    pairs = [(key, old[key], new[key]) for key in new if key in old]
    goals = {one.guest: one.wanted_ns for one in (*earlier.deadlines, *later.deadlines)}
    asked = sum(_questions(one, other, goals) for _, one, other in pairs)
    level = (1 - confidence) / max(1, asked)
    found = [difference for _, one, other in pairs for difference in _compare(one, other, goals, level)]
    emulated = earlier.conditions.emulated or later.conditions.emulated
    return Comparison(
        host=later.host,
        earlier_sha256=earlier.sha256(),
        later_sha256=later.sha256(),
        confidence=confidence,
        shown=_worst([difference.shown for difference in found]),
        differences=tuple(found),
        changed=tuple(_changed(earlier, later)),
        unpaired=tuple(
            f"{_place(run)}: {'only earlier' if run in old.values() else 'only later'}"
            for key, run in [*old.items(), *new.items()]
            if not (key in old and key in new)
        ),
        label=EMULATION_NOTE if emulated else "",
    )


def precedence(histogram: Histogram, other: Histogram) -> tuple[int, float]:
    """How many samples of ``histogram`` are beyond all of ``other``, and how likely that many are by chance.

    For equal distributions the probability that the ``j`` largest of ``m + n`` samples are all of the first kind is
    ``m (m-1) ... / (m+n) (m+n-1) ...``.  Samples that share a bucket with the other's largest do not count.
    """
    if other.overflows or not other.counts:
        return 0, 1.0
    largest = max(other.counts)
    leading = histogram.overflows + sum(count for low, count in histogram.counts.items() if low > largest)
    m, total, chance = histogram.samples, histogram.samples + other.samples, 1.0
    for taken in range(min(leading, _MOST_LEADING)):
        chance *= (m - taken) / (total - taken)
    return leading, chance


def fisher(events: int, samples: int, other_events: int, other_samples: int) -> float:
    """Chance that the first has at least ``events`` of all events, when both have the same rate (one-sided)."""
    total, all_events = samples + other_samples, events + other_events

    def logarithm(k: int) -> float:
        return _choose(samples, k) + _choose(other_samples, all_events - k) - _choose(total, all_events)

    chance = 0.0
    for k in range(max(events, all_events - other_samples), min(samples, all_events) + 1):
        term = math.exp(logarithm(k))
        chance += term
        # Beyond the most likely number terms only fall, and of millions few are more than nothing.
        if k * total > all_events * samples and term < 1e-20:
            break
    return min(1.0, chance)


def _choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)


# -- one place --------------------------------------------------------------------------------------------------------


def _key(run: Latency) -> tuple[str, str | None, frozenset[int], str, int]:
    return run.where, run.guest, run.cpus, run.tool, run.interval_ns


def _place(run: Latency) -> str:
    cpus = format_cpus(run.cpus)
    return f"{f'guest {run.guest}, vCPU {cpus}' if run.guest else f'CPU {cpus}'}, {run.tool}"


def _shares(one: Latency, other: Latency) -> list[float]:
    """Quantiles beyond which each run has ten samples: of higher ones nothing could be shown."""
    fewest = min(one.histogram.samples, other.histogram.samples)
    return [share for share in SHARES if fewest * (1 - share) >= 10]


def _questions(one: Latency, other: Latency, goals: dict[str, int]) -> int:
    return len(_shares(one, other)) + 1 + _has_goal(one, goals)


def _has_goal(run: Latency, goals: dict[str, int]) -> bool:
    return run.guest is not None and run.guest in goals and decides(run)


def _compare(one: Latency, other: Latency, goals: dict[str, int], level: float) -> Iterator[Difference]:
    place = _place(other)
    for share in _shares(one, other):
        yield _quantile(place, share, one.histogram, other.histogram, level)
    yield _largest(place, one, other, level)
    if _has_goal(other, goals):
        yield _misses(place, goals[other.guest or ""], one, other, level)


@dataclass(frozen=True)
class _Interval:
    low: float
    high: float  # math.inf: beyond what is told apart


def _quantile(place: str, share: float, one: Histogram, other: Histogram, level: float) -> Difference:
    # Two intervals that each fail with half the level: both hold with 1 - level, and so does their difference.
    old, new = _interval(one, share, 1 - level / 2), _interval(other, share, 1 - level / 2)
    low, high = new.low - old.high, new.high - old.low
    return Difference(
        place=place,
        of=f"{100 * share:g} %",
        earlier=_value(one, share),
        later=_value(other, share),
        low=low if math.isfinite(low) else None,
        high=high if math.isfinite(high) else None,
        shown="worse" if low > 0 else "better" if high < 0 else "no difference shown",
    )


def _interval(histogram: Histogram, share: float, confidence: float) -> _Interval:
    low, high = _ranks(histogram.samples, share, confidence)
    return _Interval(_at(histogram, low)[0], _at(histogram, high)[1])


def _value(histogram: Histogram, share: float) -> float | None:
    value = _at(histogram, max(1, math.ceil(round(share * histogram.samples, 6))))[1]
    return value if math.isfinite(value) else None


def _at(histogram: Histogram, rank: int) -> tuple[float, float]:
    """Smallest and largest value that the sample of this rank may have, in nanoseconds."""
    if rank < 1:
        return 0.0, 0.0
    seen = 0
    for low in sorted(histogram.counts):
        seen += histogram.counts[low]
        if seen >= rank:
            return float(low * histogram.bucket_ns), float(histogram.upper_ns(low) - histogram.bucket_ns)
    last = max(histogram.counts, default=0)
    return float((histogram.limit or last) * histogram.bucket_ns), math.inf


def _largest(place: str, one: Latency, other: Latency, level: float) -> Difference:
    # Two sides, one level.
    more, chance_more = precedence(other.histogram, one.histogram)
    fewer, chance_fewer = precedence(one.histogram, other.histogram)
    shown: Shown = "no difference shown"
    why = ""
    if more and chance_more <= level / 2:
        shown, why = "worse", f"{more:,} samples are beyond the largest one earlier"
    elif fewer and chance_fewer <= level / 2:
        shown, why = "better", f"{fewer:,} samples earlier are beyond the largest one now"
    return Difference(
        place=place,
        of="largest",
        earlier=float(one.max_ns),
        later=float(other.max_ns),
        low=None,
        high=None,
        shown=shown,
        why=why,
    )


def _misses(place: str, goal_ns: int, one: Latency, other: Latency, level: float) -> Difference:
    # Where a goal lies inside a bucket, what speaks against a difference is taken.
    (old_least, old_most), (new_least, new_most) = one.histogram.beyond(goal_ns), other.histogram.beyond(goal_ns)
    shown: Shown = "no difference shown"
    if fisher(new_least, other.samples, old_most, one.samples) <= level / 2:
        shown = "worse"
    elif fisher(old_least, one.samples, new_most, other.samples) <= level / 2:
        shown = "better"
    return Difference(
        place=place,
        of=f"misses of {format_duration(goal_ns)}",
        unit="share",
        earlier=old_most / one.samples if one.samples else None,
        later=new_most / other.samples if other.samples else None,
        low=None,
        high=None,
        shown=shown,
        why=f"{old_most:,} of {one.samples:,} earlier, {new_most:,} of {other.samples:,} now",
    )


def _worst(found: Sequence[Shown]) -> Shown:
    order: tuple[Shown, ...] = ("worse", "better", "no difference shown")
    return next((shown for shown in order if shown in found), "no difference shown")


# -- conditions -------------------------------------------------------------------------------------------------------

#: Field of Conditions -> how it is called.  The facts differ whenever a counter does.
_NAMES = {
    "kernel": "kernel", "preempt_rt": "PREEMPT_RT", "command_line": "kernel command line", "firmware": "firmware",
    "cpu_model": "CPU model", "hypervisor": "hypervisor", "qemu": "QEMU", "libvirt": "libvirt",
    "emulated": "emulated", "clocksource": "clock source", "plan_sha256": "plan", "load": "load",
    "dma_latency_holders": "holders of /dev/cpu_dma_latency",
    "guest_dma_latency_holders": "holders of /dev/cpu_dma_latency in guests",
}  # fmt: skip
assert _NAMES.keys() == Conditions.model_fields.keys() - {"facts_sha256"}


def _changed(earlier: Evidence, later: Evidence) -> Iterator[Changed]:
    if earlier.host != later.host:
        yield Changed(name="host", earlier=earlier.host, later=later.host)
    if earlier.moment != later.moment:
        yield Changed(name="moment", earlier=earlier.moment, later=later.moment)
    for field, name in _NAMES.items():
        old, new = getattr(earlier.conditions, field), getattr(later.conditions, field)
        if old != new:
            yield Changed(name=name, earlier=_words(old), later=_words(new))


def _words(value: object) -> str:
    if value is None:
        return "not known"
    if isinstance(value, tuple):
        return ", ".join(value) or "nobody"
    if isinstance(value, dict):
        return "; ".join(f"{guest}: {', '.join(names) or 'nobody'}" for guest, names in sorted(value.items()))
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
