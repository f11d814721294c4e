"""Rules about idle states and frequencies of vCPUs' CPUs: H-PM-1, H-PM-3.  Source: reference host-tuning §2.4."""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.plan import Phase
from evenkeel.documents.quantity import format_duration
from evenkeel.plan.placement import Placement
from evenkeel.plan.rules.rule import ISOLATING, ONLY_REALTIME, Context, Rule, Wanted, file_value

#: Share of a deadline that waking up may take, and the deadline assumed where none is stated ([P], host-tuning H-PM-1).
_SHARE, _ASSUMED_NS = 4, 100_000


def wake_up_limit(placement: Placement) -> str:
    """What the kernel's file wants: microseconds, or ``n/a`` for "no idle state at all" (``0`` means no limit!)."""
    if placement.strict:
        return "n/a"
    return str((placement.wish.latency or _ASSUMED_NS) // _SHARE // 1000)


def idle_states(context: Context) -> Iterable[Wanted]:
    """Only CPUs that carry a vCPU: an empty sibling that polls in place of sleeping would take execution units away."""
    if context.facts.idle.driver in (None, "none"):
        return
    for placement in context.realtime:
        limit = wake_up_limit(placement)
        latency = placement.wish.latency
        goal = f"a deadline of {format_duration(latency)}" if latency else "no stated deadline (100us is assumed)"
        for cpu in sorted(placement.cpus):
            yield file_value(
                context,
                f"/sys/devices/system/cpu/cpu{cpu}/power/pm_qos_resume_latency_us",
                limit,
                f"CPU {cpu} carries a vCPU of guest {placement.name} with {goal}; "
                + (
                    "it may not sleep at all"
                    if limit == "n/a"
                    else f"waking up may take a quarter of it, {limit} us, which rules out deeper idle states"
                ),
                inputs={"idle driver": str(context.facts.idle.driver), "latency": goal},
                suffix=f"cpu{cpu}",
            )


def governors(context: Context) -> Iterable[Wanted]:
    if context.facts.frequency.driver is None:
        return
    for placement in context.pinned:
        for cpu in sorted(placement.cpus):
            path = f"/sys/devices/system/cpu/cpufreq/policy{cpu}/scaling_governor"
            if path not in context.facts.settings:
                continue  # this CPU follows the policy of another one
            yield file_value(
                context,
                path,
                "performance",
                f"CPU {cpu} carries a vCPU of guest {placement.name}, which must not wait for the clock to rise",
                inputs={"frequency driver": context.facts.frequency.driver},
                suffix=f"cpu{cpu}",
            )


RULES = (
    Rule(
        id="H-PM-1",
        subject="power",
        title="How deep real-time CPUs may sleep",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="more heat and power, and less turbo for the other CPUs",
        verification="/sys/devices/system/cpu/cpuN/power/pm_qos_resume_latency_us; deep states of cpuidle not entered",
        source="kernel: admin-guide/pm/cpuidle.rst (n/a: no idle state, 0: no limit); host-tuning H-PM-1 (judgement)",
        compute=idle_states,
    ),
    Rule(
        id="H-PM-3",
        subject="power",
        title="Full clock for vCPUs' CPUs",
        levels=ISOLATING,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="more heat and power",
        verification="/sys/devices/system/cpu/cpufreq/policyN/scaling_governor",
        source="kernel: admin-guide/pm/cpufreq.rst; SUSE guide for SAP HANA on KVM; host-tuning H-PM-3",
        compute=governors,
    ),
)
