"""Rules about unbound workqueues: R-WQ-1, R-WQ-2.  Source: reference host-tuning §2.4."""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus, format_mask
from evenkeel.documents.plan import Phase
from evenkeel.plan.rules.rule import ISOLATING, Alternative, Context, Rule, Wanted, cpus_input, file_value

# The devices themselves, not the links below /sys/bus/workqueue/devices: one file, one path in every document.
_FOLDER = "/sys/devices/virtual/workqueue"


def unbound(context: Context) -> Iterable[Wanted]:
    yield file_value(
        context,
        f"{_FOLDER}/cpumask",
        format_mask(context.housekeeping),
        f"{context.who()}, so work that is bound to no CPU runs on housekeeping {format_cpus(context.housekeeping)}",
        compare="cpumask",
        inputs={"housekeeping": cpus_input(context.housekeeping)},
    )


def writeback(context: Context) -> Iterable[Wanted]:
    yield file_value(
        context,
        f"{_FOLDER}/writeback/cpumask",
        format_mask(context.housekeeping),
        f"{context.who()}, and writing dirty pages to disk has a mask of its own, which neither isolcpus nor nohz_full "
        "touches",
        compare="cpumask",
        inputs={"housekeeping": cpus_input(context.housekeeping)},
    )


RULES = (
    Rule(
        id="R-WQ-1",
        subject="workqueues",
        title="Unbound kernel work on housekeeping CPUs",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.WORKQUEUES,
        disturbance="drain",
        when="runtime",
        risk="moving work on a live cluster node froze its network (seapath), so it comes before the guests start",
        verification="/sys/devices/virtual/workqueue/cpumask",
        source="kernel: core-api/workqueue.rst; measured, host-tuning R-WQ-1; redhat-performance/tuned#452",
        compute=unbound,
        inputs=("ledger",),
        value="the housekeeping CPUs",
        alternatives=(
            Alternative(
                "left alone",
                "seapath (the network of a live cluster froze when it was changed)",
                "it is written before the guests start, as a step that may disturb (drain)",
            ),
        ),
    ),
    Rule(
        id="R-WQ-2",
        subject="workqueues",
        title="Write-back of dirty pages on housekeeping CPUs",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.WORKQUEUES,
        disturbance="live",
        when="runtime",
        risk="heavy writing of the host shares the housekeeping CPUs with interrupts",
        verification="/sys/devices/virtual/workqueue/writeback/cpumask",
        source="kernel: core-api/workqueue.rst; measured: stayed ff with isolcpus and nohz_full (host-tuning R-WQ-2)",
        compute=writeback,
        inputs=("ledger",),
        value="the housekeeping CPUs",
    ),
)
