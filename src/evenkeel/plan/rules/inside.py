"""Rules about the inside of guests: I-CMD, I-SET, I-CLK.  Reports: what a guest's owner does there himself.

The values are :mod:`evenkeel.plan.inside`; what a directly booted guest gets through its definition is G-CMD.
Source: reference host-tuning §2.7.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Note, Phase
from evenkeel.plan import inside
from evenkeel.plan.placement import realtime_vcpus
from evenkeel.plan.rules.rule import ISOLATING, ONLY_REALTIME, Alternative, Context, Rule


def kernel_arguments(context: Context) -> Iterable[Note]:
    for placement in context.realtime:
        wanted = inside.arguments(placement)
        if placement.wish.boot is None and wanted:
            yield Note(
                rule="I-CMD",
                text=f"guest {placement.name} has a boot loader of its own, so its owner puts these on its kernel's "
                f"command line, if it is Linux: {' '.join(wanted)}{_ready(inside.cloud_config(placement))}",
            )


def settings(context: Context) -> Iterable[Note]:
    for placement in context.pinned:
        wanted = [f"{value.key} = {value.value}" for value in inside.values(placement)]
        wanted += [f"module {module} loaded" for module in inside.modules(placement)]
        if inside.fair_server(placement):
            cpus = format_cpus(realtime_vcpus(placement.wish))
            wanted.append(f"on Linux 6.12 and later debug/sched/fair_server/cpuN/runtime = 0 for N in {cpus}")
        if wanted:
            yield Note(
                rule="I-SET",
                text=f"inside guest {placement.name}, if it is Linux, its owner sets: {'; '.join(wanted)}"
                f"{_ready(inside.cloud_config(placement))}",
            )


def clock_source(context: Context) -> Iterable[Note]:
    """Only where it is in doubt: a guest that sees the host's invariant TSC chooses it by itself."""
    facts = context.facts
    if facts.identity.architecture != "x86_64" or "tsc" in (facts.clocksource, *facts.clocksources):
        return
    names = ", ".join(placement.name for placement in context.pinned)
    yield Note(
        rule="I-CLK",
        text=f"the host's kernel does not trust its TSC (clock source {facts.clocksource or 'unknown'}), so inside "
        f"{names} current_clocksource must not read tsc either; kvm-clock is always there.",
    )


def _ready(snippet: str) -> str:
    return ". As user data for cloud-init: `evenkeel explain PLAN GUEST` prints it." if snippet else "."


RULES = (
    Rule(
        id="I-CMD",
        subject="inside",
        title="Kernel arguments of a guest that boots by itself",
        levels=ONLY_REALTIME,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="without them the guest's own kernel brings back ticks, callbacks and interrupts",
        verification="/proc/cmdline in the guest",
        source="TuneD realtime-virtual-guest; host-tuning §2.7",
        inputs=("realtime vCPUs", "whether the guest is booted directly"),
        value="isolcpus, nohz_full, rcu_nocbs for its real-time vCPUs; irqaffinity for the others",
        alternatives=(
            Alternative(
                "idle=poll",
                "SEAPATH, for guests",
                "it means that the vCPU never goes idle, which is for the owner to say (trust: spins)",
            ),
        ),
        note=kernel_arguments,
    ),
    Rule(
        id="I-SET",
        subject="inside",
        title="Settings inside a guest",
        levels=ISOLATING,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="sched_rt_runtime_us = -1 lets a real-time task that never sleeps take a vCPU of the guest for good",
        verification="the same files in the guest",
        source="TuneD realtime-virtual-guest; kernel: virt/guest-halt-polling.rst; host-tuning §2.7",
        inputs=("goal", "trust", "deadline"),
        value="realtime: statistics every 10 s, no compaction, no huge page and no merging behind its back; "
        "performance: haltpoll as idle driver",
        alternatives=(
            Alternative(
                "through the guest agent",
                "host-tuning §2.7",
                "commands in somebody's guest are not the host's business; its owner gives it the user data",
            ),
        ),
        note=settings,
    ),
    Rule(
        id="I-CLK",
        subject="inside",
        title="Clock source of a guest",
        levels=ISOLATING,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="a guest that reads a TSC which the host does not trust has wrong time",
        verification="current_clocksource in the guest",
        source="libvirt: formatdomain (migratable=off passes invtsc on); host-tuning §2.7",
        inputs=("clock source of the host",),
        value="tsc where the host uses it, else kvm-clock",
        alternatives=(
            Alternative(
                "kvm-clock always", "SUSE guide for SAP HANA on KVM", "its own comment says tsc; reading it costs more"
            ),
        ),
        note=clock_source,
    ),
)
