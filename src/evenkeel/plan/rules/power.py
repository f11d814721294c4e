"""Rules about idle states and frequencies: H-PM-1, H-PM-3, and on request H-C, H-P; H-PM-2 is not used.

Idle states are limited per CPU while running, never for the whole host at boot: the other CPUs keep their sleep, and
with it the power and heat budget that turbo needs.  Source: reference host-tuning §2.3, §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.plan import Phase
from evenkeel.documents.quantity import format_duration
from evenkeel.plan.placement import Placement
from evenkeel.plan.rules.rule import (
    ISOLATING,
    ONLY_REALTIME,
    Alternative,
    Context,
    Rule,
    Wanted,
    boot_argument,
    file_value,
)

#: Share of a deadline that waking up may take, and the deadline assumed where none is stated ([P], host-tuning H-PM-1).
_SHARE, _ASSUMED_NS = 4, 100_000
#: What switches turbo off, by driver: intel_pstate has a file of its own, the others share one.
_TURBO = (
    ("no_turbo", "/sys/devices/system/cpu/intel_pstate/no_turbo", "1"),
    ("boost", "/sys/devices/system/cpu/cpufreq/boost", "0"),
)


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


def frequencies(context: Context) -> Iterable[Wanted]:
    if context.facts.frequency.driver is None:
        return
    inputs = {"frequency driver": context.facts.frequency.driver}
    owners = [
        (cpus, f"carries a vCPU of guest {placement.name}")
        for placement in context.pinned
        for cpus in (placement.cpus,)
    ]
    for cpus, does in (*owners, (context.polling, "polls for packets")):
        for cpu in sorted(cpus):
            folder = f"/sys/devices/system/cpu/cpufreq/policy{cpu}"
            carries = f"CPU {cpu} {does}"
            # A CPU without a governor of its own follows the policy of another one.
            if f"{folder}/scaling_governor" in context.facts.settings:
                yield file_value(
                    context,
                    f"{folder}/scaling_governor",
                    "performance",
                    f"{carries}, which must not wait for the clock to rise",
                    inputs=inputs,
                    suffix=f"cpu{cpu}",
                )
            # The only preference that intel_pstate takes beside the governor performance; another one is EBUSY.
            if f"{folder}/energy_performance_preference" in context.facts.settings:
                yield file_value(
                    context,
                    f"{folder}/energy_performance_preference",
                    "performance",
                    f"{carries}; the processor itself chooses the clock here, and is told not to save power",
                    inputs=inputs,
                    suffix=f"preference-cpu{cpu}",
                )
    for suffix, path, value in _TURBO:
        if path in context.facts.settings:
            yield file_value(
                context,
                path,
                value,
                "without turbo the clock is the same whatever the other CPUs do",
                compare="integer",
                inputs=inputs,
                suffix=suffix,
                on_request=True,
            )


def whole_host_idle(context: Context) -> Iterable[Wanted]:
    """``processor`` and ``intel_idle`` are the two drivers that x86 has; ``idle=poll`` is for either."""
    driver = context.facts.idle.driver
    if context.facts.identity.architecture != "x86_64" or driver in (None, "none"):
        return
    for key, value, why in (
        ("intel_idle.max_cstate", "0", "the driver intel_idle steps back and acpi_idle takes over"),
        ("processor.max_cstate", "1", "no CPU of the host sleeps deeper than C1"),
        ("idle", "poll", "no CPU of the host sleeps at all, housekeeping neither"),
    ):
        yield boot_argument(
            context, key, value, why, inputs={"idle driver": str(driver)}, suffix=key.partition(".")[0], on_request=True
        )


def frequency_driver(context: Context) -> Iterable[Wanted]:
    """Both drivers in every mode serve the governor performance, so there is nothing to gain by default."""
    for key, drivers in (
        ("intel_pstate", ("intel_pstate", "intel_cpufreq")),
        ("amd_pstate", ("amd-pstate", "amd-pstate-epp", "amd_pstate", "amd_pstate_epp")),
    ):
        if context.facts.frequency.driver in drivers:
            yield boot_argument(
                context,
                key,
                "passive",
                "the kernel's governor chooses the clock, and no longer the processor itself",
                inputs={"frequency driver": str(context.facts.frequency.driver)},
                suffix=key,
                on_request=True,
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
        inputs=("idle driver", "latency of the guest", "CPUs that carry a vCPU"),
        value="a quarter of the deadline in microseconds; n/a (no sleep at all) for a deadline of 50us or less",
        alternatives=(
            Alternative(
                "at most C1 on the whole host, at boot (H-C)",
                "SUSE guide for SAP HANA on KVM, cluster-node-tuning-operator, seapath",
                "housekeeping CPUs and empty siblings may sleep: it costs nothing there and leaves turbo to the rest",
            ),
            Alternative(
                "no limit",
                "distributions",
                "waking from a deep state takes longer than many deadlines: up to some hundred microseconds",
            ),
            Alternative(
                "a daemon that holds /dev/cpu_dma_latency open (H-PM-2)",
                "TuneD force_latency, cyclictest",
                "one value for the whole host, gone with the process that holds it",
            ),
        ),
    ),
    Rule(
        id="H-PM-3",
        subject="power",
        title="Full clock for vCPUs' CPUs",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="more heat and power",
        verification="/sys/devices/system/cpu/cpufreq/policyN/scaling_governor and energy_performance_preference",
        source="kernel: admin-guide/pm/cpufreq.rst, admin-guide/pm/intel_pstate.rst; SUSE guide for SAP HANA on KVM; "
        "host-tuning H-PM-3",
        compute=frequencies,
        inputs=("frequency driver", "policies of the vCPUs' CPUs", "turbo files"),
        value="governor and preference performance for each vCPU's CPU; turbo is left alone unless the owner asks "
        "(H-PM-3:no_turbo, H-PM-3:boost)",
        alternatives=(
            Alternative(
                "lowest clock = highest clock",
                "cluster-node-tuning-operator (hardwareTuning)",
                "the governor performance asks for the highest clock all the time already",
            ),
            Alternative(
                "turbo off",
                "whoever wants the same clock at any load",
                "a vCPU alone on its core gains more from turbo than the change of clock costs; measure both",
            ),
        ),
    ),
    Rule(
        id="H-C",
        subject="power",
        title="Idle states of the whole host",
        levels=ISOLATING,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="power and heat of every CPU, and with it less turbo; idle=poll also takes execution units from siblings",
        verification="/proc/cmdline; /sys/devices/system/cpu/cpuidle/current_driver",
        source="kernel: admin-guide/kernel-parameters.txt, admin-guide/pm/cpuidle.rst, timers/no_hz.rst (idle=poll "
        "disables turbo); host-tuning H-C",
        compute=whole_host_idle,
        inputs=("architecture", "idle driver", "override"),
        value="left alone: H-PM-1 limits the CPUs that need it; on request intel_idle.max_cstate=0, "
        "processor.max_cstate=1, idle=poll",
        alternatives=(
            Alternative(
                "intel_idle.max_cstate=0 processor.max_cstate=1",
                "SUSE guide for SAP HANA on KVM (max_cstate=0 in one place, 1 in another), seapath",
                "the whole host stays awake for the sake of a few CPUs, until the next reboot",
            ),
            Alternative(
                "idle=poll",
                "cluster-node-tuning-operator (ultra-low-latency)",
                "the same, and a polling sibling slows the vCPU beside it",
            ),
        ),
    ),
    Rule(
        id="H-P",
        subject="power",
        title="Mode of the frequency driver",
        levels=ISOLATING,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="disable and passive lose what the processor does by itself (HWP), and Speed Select with it (H-SST)",
        verification="/proc/cmdline; /sys/devices/system/cpu/intel_pstate/status, amd_pstate/status",
        source="kernel: admin-guide/pm/intel_pstate.rst, admin-guide/pm/amd-pstate.rst; host-tuning H-P",
        compute=frequency_driver,
        inputs=("frequency driver", "override"),
        value="left alone: the governor performance (H-PM-3) works in every mode; on request intel_pstate= or "
        "amd_pstate=, passive or disable",
        alternatives=(
            Alternative(
                "disable",
                "TuneD realtime",
                "acpi-cpufreq knows fewer clocks, and core priorities of Speed Select need intel_pstate active",
            ),
            Alternative(
                "passive",
                "cluster-node-tuning-operator (per-pod power management)",
                "only useful with a governor other than performance",
            ),
        ),
    ),
    Rule(
        id="H-PM-2",
        subject="power",
        title="No wake-up limit for the whole host",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="report",
        risk="a program that holds /dev/cpu_dma_latency open (cyclictest does) hides that H-PM-1 is missing",
        verification="who holds /dev/cpu_dma_latency open; a measurement names it among its conditions",
        source="kernel: admin-guide/pm/cpuidle.rst; host-tuning H-PM-2",
        value="not used: H-PM-1 does the same for the CPUs that need it, and lasts",
        inputs=("none",),
        alternatives=(
            Alternative(
                "cpu_dma_latency of 1 to 3 us",
                "TuneD force_latency",
                "it is for every CPU, and ends with the daemon that holds it",
            ),
        ),
    ),
)
