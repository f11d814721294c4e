"""Whether a guest keeps its deadline, as far as a measurement can say: met, missed or not provable, and by what sum.

Pure.  The only place that decides it: the verb, the report and the evidence itself ask here.  One late sample is a
miss.  `met` is said only when nothing speaks against it: see :func:`doubts`, where each reason is one line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.evidence import Deadline, Evidence, Latency
from evenkeel.documents.plan import GuestPlan, HostPlan
from evenkeel.documents.quantity import format_duration
from evenkeel.measure.binomial import CONFIDENCE, rate_at_least, rate_at_most, samples_needed

#: A rate of late samples that a measurement must exclude before the deadline counts as met, unless told otherwise.
#: At a sample a millisecond that takes 30 s without a miss, which is where cheap runs and honest ones meet.
MISS_RATE = 1e-4
#: Tools that tell for how long a CPU did something else, not how late a task woke up: they can raise doubts only.
NOISE_TOOLS = ("oslat", "osnoise")
#: What tells of a part of the way only: the rest of the same samples stands under the tool's own name.
PART_TOOLS = ("timerlat irq",)
#: Periods that may lack a sample: a tool needs a moment to start and to end.
_SLACK_SHARE, _SLACK_NS = 0.02, 1_000_000_000


def deadlines(
    host: HostPlan, evidence: Evidence, *, guest: str | None = None, rate: float = MISS_RATE
) -> tuple[Deadline, ...]:
    """Of each guest of ``host`` that has a latency goal, or of one when it is named, by ``evidence`` alone.

    None where the plan is not applied yet: nothing is promised there.
    """
    if evidence.moment == "before":
        return ()
    return tuple(
        judge(
            host.name,
            one,
            evidence,
            plan_sha256=evidence.conditions.plan_sha256,
            emulated=evidence.conditions.emulated,
            rate=rate,
        )
        for one in host.guests
        if one.latency_ns is not None and guest in (None, one.name)
    )


def judge(
    host: str,
    guest: GuestPlan,
    evidence: Evidence | None,
    *,
    plan_sha256: str | None,
    emulated: bool | None,
    rate: float = MISS_RATE,
) -> Deadline:
    """The verdict for one guest with a latency goal.

    ``emulated``: what is known of the host from all documents; ``rate``: the share of late samples that must be
    excluded, at 95 % confidence.
    """
    wanted_ns = guest.latency_ns
    assert wanted_ns is not None
    runs = [run for run in guest_latencies(evidence, guest.name) if decides(run)]
    facts: dict[str, Any] = {}
    if runs:
        late = [run.histogram.beyond(wanted_ns) for run in runs]
        # The largest sample is known exactly, also where its bucket is not.
        misses = sum(max(least, int(run.max_ns > wanted_ns)) for run, (least, _) in zip(runs, late, strict=True))
        facts = {
            "max_ns": max(run.max_ns for run in runs),
            "samples": sum(run.samples for run in runs),
            "misses": misses,
            "rate_bound": max(_bound(run, wanted_ns) for run in runs),
            "arithmetic": " ".join(_arithmetic(run, wanted_ns) for run in runs),
        }

    def say(state: str, why: str) -> Deadline:
        return Deadline.model_validate(
            {"host": host, "guest": guest.name, "wanted_ns": wanted_ns, "state": state, "why": why, **facts}
        )

    if emulated:
        return say("not provable", "emulated: the CPUs are simulated in software, so no latency taken here counts.")
    if evidence is None or not runs:
        return say("not measured", "no latency was measured in this guest.")
    if emulated is None:
        return say("not provable", "it is not known whether these CPUs are emulated.")
    if evidence.moment == "before":
        return say("not provable", "the measurement was taken before the plan was applied.")
    if evidence.conditions.plan_sha256 not in (None, plan_sha256):
        return say("not provable", "the measurement was taken under another plan.")
    if facts["misses"]:
        return say("missed", "a sample came later than the deadline.")
    against = doubts(guest, evidence, rate)
    if against:
        return say("not provable", " ".join(against))
    return say("met", f"every sample came in time, under the load: {evidence.conditions.load}.")


def doubts(guest: GuestPlan, evidence: Evidence, rate: float = MISS_RATE) -> list[str]:
    """Why samples that all came in time do not prove the deadline.  Sentences; none: they do."""
    assert guest.latency_ns is not None
    everything = guest_latencies(evidence, guest.name)
    runs = [run for run in everything if decides(run)]
    found: list[str] = []
    missing = frozenset(guest.realtime_vcpus) - {cpu for run in runs for cpu in run.cpus}
    if missing:
        found.append(f"vCPU {format_cpus(missing)} was not measured.")
    if any(run.label for run in runs):
        found.append(f"the samples are labelled: {next(run.label for run in runs if run.label)}.")
    if any(run.lost is None for run in runs):
        found.append("it is not known whether events were lost.")
    elif lost := sum(run.lost or 0 for run in runs):
        found.append(f"{lost:,} events were lost, and any of them may have been late.")
    needed = samples_needed(rate)
    for run in runs:
        if run.samples < needed:
            seconds = -(-needed * run.interval_ns // 1_000_000_000)
            found.append(
                f"{_place(run)}: {run.samples:,} samples are too few to exclude that {_share(rate)} are late: "
                f"{needed:,} are needed, --for {seconds}s."
            )
        elif run.expected is not None and (gap := _gap(run)) > 0:
            found.append(f"{_place(run)}: {gap:,} of {run.expected:,} periods have no sample, and nobody knows why.")
    holders = evidence.conditions.dma_latency_holders
    if holders is None:
        found.append("it is not known who held /dev/cpu_dma_latency meanwhile.")
    elif holders:
        found.append(
            f"{', '.join(holders)} held /dev/cpu_dma_latency and kept the CPUs awake: true only while that runs."
        )
    inside = (evidence.conditions.guest_dma_latency_holders or {}).get(guest.name)
    if inside is None:
        found.append("it is not known who held /dev/cpu_dma_latency in the guest meanwhile.")
    elif inside:
        found.append(
            f"{', '.join(inside)} held /dev/cpu_dma_latency in the guest and kept its vCPUs awake: true only while "
            "that runs."
        )
    for trouble in sorted({f"{load.kind}: {load.trouble}" for run in runs for load in run.loads if load.trouble}):
        found.append(f"the load was not the one that was asked for: {trouble}.")
    for run in everything:
        if run.tool in NOISE_TOOLS and run.max_ns > guest.latency_ns:
            found.append(f"{run.tool} saw {_place(run)} taken away for {format_duration(run.max_ns)}.")
    return found


def guest_latencies(evidence: Evidence | None, guest: str) -> tuple[Latency, ...]:
    """The latency runs that were taken inside ``guest``."""
    return tuple(run for run in evidence.latencies if run.where == "guest" and run.guest == guest) if evidence else ()


def decides(run: Latency) -> bool:
    """Whether a run in a guest decides about its deadline: it tells how late a task woke up, of the whole way."""
    return run.tool not in (*NOISE_TOOLS, *PART_TOOLS)


def proven(found: Sequence[Deadline]) -> bool:
    """Whether every deadline is met.  What is not proven is not as wanted."""
    return all(deadline.state == "met" for deadline in found)


def _late(run: Latency, wanted_ns: int) -> tuple[int, int]:
    least, most = run.histogram.beyond(wanted_ns)
    return (max(least, 1), max(most, 1)) if run.max_ns > wanted_ns else (least, least)


def _bound(run: Latency, wanted_ns: int) -> float:
    return rate_at_most(_late(run, wanted_ns)[1], run.samples) if run.samples else 1.0


def _arithmetic(run: Latency, wanted_ns: int) -> str:
    if not run.samples:
        return f"{_place(run)}: no samples."
    least, most = _late(run, wanted_ns)
    percent = f"{CONFIDENCE:.0%}".replace("%", " %")
    if not most:
        return (
            f"{_place(run)}: no miss in {run.samples:,} samples bounds the rate of misses by 3/{run.samples:,} "
            f"(exactly {_bound(run, wanted_ns):.3g}) at {percent} confidence."
        )
    number = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    # Two bounds of 97.5 % each hold together with 95 %.
    each = (1 + CONFIDENCE) / 2
    low, high = rate_at_least(least, run.samples, each), rate_at_most(most, run.samples, each)
    return (
        f"{_place(run)}: {number} of {run.samples:,} samples were late, which puts the rate of misses between "
        f"{low:.3g} and {high:.3g} at {percent} confidence (Clopper-Pearson)."
    )


def _gap(run: Latency) -> int:
    """Periods that are neither samples nor passed while a sample was late, as far as that is not the tool's start."""
    assert run.expected is not None
    unit = run.histogram.bucket_ns
    skipped = sum(low * unit // run.interval_ns * count for low, count in run.histogram.counts.items())
    skipped += run.histogram.overflows * (run.max_ns // run.interval_ns)
    gap = run.expected - run.samples - skipped
    return gap if gap > max(run.expected * _SLACK_SHARE, _SLACK_NS / run.interval_ns) else 0


def _place(run: Latency) -> str:
    return f"vCPU {format_cpus(run.cpus)}"


def _share(rate: float) -> str:
    return f"1 in {1 / rate:,.0f}"
