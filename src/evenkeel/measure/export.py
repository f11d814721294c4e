"""Evidence in formats that other tools read: HdrHistogram's percentile table, cyclictest's JSON, Prometheus's text.

Pure.  Nothing is judged here, and no latency comes out smaller than it went in: a sample of a bucket of several units
is written as the largest value that it may have had.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.evidence import Evidence, Latency
from evenkeel.documents.histogram import Histogram
from evenkeel.errors import WrongInput

NS_PER_US, NS_PER_S = 1000, 1_000_000_000


def chosen(evidence: Evidence, guest: str | None) -> tuple[Latency, ...]:
    """The runs of one place and one tool: those of ``guest``; without one those of the host, or of the only guest.

    Raises WrongInput when there is none, or it is not clear which are meant.
    """
    runs = evidence.latencies
    places = list(dict.fromkeys((run.where, run.guest) for run in runs))
    guests = [name for _, name in places if name]
    if guest is not None:
        found = [run for run in runs if run.guest == guest]
    elif ("host", None) in places:
        found = [run for run in runs if run.where == "host"]
    elif len(guests) == 1:
        found = list(runs)
    elif guests:
        raise WrongInput("there are latencies of several guests", hint=f"name one: {', '.join(guests)}")
    else:
        found = []
    if not found:
        where = f"guest {guest}" if guest else "the host"
        raise WrongInput(f"the evidence has no latency of {where}", hint=f"it has: {', '.join(guests) or 'none'}")
    return tuple(run for run in found if run.tool == found[0].tool)


# -- HdrHistogram -----------------------------------------------------------------------------------------------------


def hgrm(runs: Sequence[Latency]) -> str:
    """The percentile table of HdrHistogram (``.hgrm``) in microseconds, all CPUs together.

    Its plotters read it; what they do not need stands in comment lines at the end.
    """
    values = sorted(_together(runs).items())
    notes = [f"#[Unit    = microseconds, {_title(runs)}]"]
    notes += [f"#[Note    = {label}]" for label in sorted({run.label for run in runs if run.label})]
    return percentile_table([(value / NS_PER_US, count) for value, count in values], levels(), 3) + "".join(
        f"{note}\n" for note in notes
    )


def levels(ticks: int = 5) -> Iterator[float]:
    """Shares at which HdrHistogram reports: ``ticks`` on the first half of the samples, on the half of the rest, ...

    Without an end.  Source: PercentileIterator of HdrHistogram (Java).
    """
    level = 0.0
    while True:
        yield level
        halves = math.floor(math.log2(1 / (1 - level)) + 1e-9) + 1 if level < 1 else 60
        level += 1 / (ticks * 2 ** min(halves, 60))


def percentile_table(values: Sequence[tuple[float, int]], shares: Iterable[float], digits: int) -> str:
    """``values``: (value, samples), ascending.  Ends when a share reaches the last value, which then stands for 1, too.

    Raises ValueError when there is no sample.
    """
    total = sum(count for _, count in values)
    if not total:
        raise ValueError("no sample")
    lines = [f"{'Value':>12} {'Percentile':>14} {'TotalCount':>10} {'1/(1-Percentile)':>14}", ""]
    position, seen = 0, values[0][1]
    for share in shares:
        # Percentiles, as HdrHistogram compares them: the last bit decides in which row a value appears.
        while 100 * seen / total < 100 * share and position < len(values) - 1:
            position += 1
            seen += values[position][1]
        lines.append(f"{values[position][0]:12.{digits}f} {share:2.12f} {seen:10d} {1 / (1 - share):14.2f}")
        if seen == total:
            break
    lines.append(f"{values[-1][0]:12.{digits}f} {1:2.12f} {total:10d}")
    mean = sum(value * count for value, count in values) / total
    deviation = math.sqrt(sum(count * (value - mean) ** 2 for value, count in values) / total)
    lines.append(f"#[Mean    = {mean:12.{digits}f}, StdDeviation   = {deviation:12.{digits}f}]")
    lines.append(f"#[Max     = {values[-1][0]:12.{digits}f}, Total count    = {total:12d}]")
    return "\n".join(lines) + "\n"


def _together(runs: Sequence[Latency]) -> dict[int, int]:
    """Largest possible value in ns -> samples, of all runs; what is beyond the last bucket counts as the largest."""
    found: dict[int, int] = {}
    for run in runs:
        for low, count in run.histogram.counts.items():
            value = _largest_in(run.histogram, low)
            found[value] = found.get(value, 0) + count
        if run.histogram.overflows:
            found[run.max_ns] = found.get(run.max_ns, 0) + run.histogram.overflows
    return {value: count for value, count in found.items() if count}


def _largest_in(histogram: Histogram, low: int) -> int:
    return histogram.upper_ns(low) - histogram.bucket_ns


def _title(runs: Sequence[Latency]) -> str:
    cpus = format_cpus(frozenset(cpu for run in runs for cpu in run.cpus))
    place = f"guest {runs[0].guest}, vCPU {cpus}" if runs[0].guest else f"host, CPU {cpus}"
    return f"{runs[0].tool}, {place}"


# -- cyclictest -------------------------------------------------------------------------------------------------------


def cyclictest(evidence: Evidence, runs: Sequence[Latency]) -> str:
    """What ``cyclictest --json`` writes (file_version 1): a thread a CPU, buckets of a microsecond.

    Raises WrongInput for a tool that counts in other units.
    """
    if any(run.histogram.bucket_ns != NS_PER_US for run in runs):
        raise WrongInput(f"{runs[0].tool} does not count in microseconds, as cyclictest's JSON does")
    threads = {}
    for number, run in enumerate(runs):
        histogram = run.histogram
        threads[str(number)] = {
            "histogram": {
                str(_largest_in(histogram, low) // NS_PER_US): histogram.counts[low] for low in sorted(histogram.counts)
            },
            "cycles": run.samples,
            "min": run.min_ns // NS_PER_US,
            "max": run.max_ns // NS_PER_US,
            "avg": round(run.avg_ns / NS_PER_US, 2),
            "cpu": min(run.cpus),
            "node": 0,
        }
    conditions = evidence.conditions
    document = {
        "file_version": 1,
        "cmdline:": " ".join(runs[0].argv),
        "rt_test_version:": runs[0].tool_version or "",
        "sysinfo": {"release": conditions.kernel.split(" ")[0], "realtime": int(conditions.preempt_rt)},
        "num_threads": len(threads),
        "resolution_in_ns": 0,
        "thread": threads,
        "note": "; ".join([_title(runs), *sorted({run.label for run in runs if run.label})]),
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


# -- Prometheus -------------------------------------------------------------------------------------------------------

#: 1 us to 10 s, three a decade: the alerts of people are round numbers.
EDGES_NS = (*(factor * 10**power for power in range(3, 10) for factor in (1, 2, 5)), 10 * NS_PER_S)
STATES = ("met", "missed", "not provable", "not measured")
_PLACE = ("host", "moment", "where", "guest", "cpu", "tool")


def prometheus(found: Sequence[Evidence]) -> str:
    """Text for the textfile collector of node_exporter, or for a push gateway."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(found))
    return generate_latest(registry).decode()


class _Collector(Collector):
    def __init__(self, found: Sequence[Evidence]) -> None:
        self._found = found

    def collect(self) -> Iterator[Metric]:
        latency = HistogramMetricFamily("evenkeel_latency_seconds", "Latencies, by place", labels=_PLACE)
        largest = GaugeMetricFamily("evenkeel_latency_max_seconds", "Largest latency", labels=_PLACE)
        lost = GaugeMetricFamily("evenkeel_latency_lost", "Events lost before they were counted", labels=_PLACE)
        deadline = GaugeMetricFamily("evenkeel_deadline_seconds", "Latency goal of a guest", labels=("host", "guest"))
        state = GaugeMetricFamily(
            "evenkeel_deadline_state", "1 for the verdict on the goal", labels=("host", "guest", "state")
        )
        emulated = GaugeMetricFamily(
            "evenkeel_measurement_emulated",
            "1 where latencies say nothing, because CPUs are emulated",
            labels=("host",),
        )
        for evidence in self._found:
            emulated.add_metric([evidence.host], 0 if evidence.conditions.emulated is False else 1)
            for run in evidence.latencies:
                cpus = format_cpus(run.cpus)
                labels = [evidence.host, evidence.moment, run.where, run.guest or "", cpus, run.tool]
                latency.add_metric(labels, _buckets(run), run.avg_ns * run.samples / NS_PER_S)
                largest.add_metric(labels, run.max_ns / NS_PER_S)
                if run.lost is not None:
                    lost.add_metric(labels, run.lost)
            for one in evidence.deadlines:
                deadline.add_metric([one.host, one.guest], one.wanted_ns / NS_PER_S)
                for name in STATES:
                    state.add_metric([one.host, one.guest, name], int(one.state == name))
        yield from (latency, largest, lost, deadline, state, emulated)


def _buckets(run: Latency) -> list[tuple[str, float]]:
    sizes = [(_largest_in(run.histogram, low), count) for low, count in run.histogram.counts.items()]
    rows = [(repr(edge / NS_PER_S), sum(count for top, count in sizes if top <= edge)) for edge in EDGES_NS]
    return [*((edge, float(count)) for edge, count in rows), ("+Inf", float(run.samples))]
