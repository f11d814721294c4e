"""Rules about the clock source, timers, statistics and watchdogs: H-CLK, H-TSC, H-WD, R-TIM-1, R-TIM-2.

Source: reference host-tuning §2.3, §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Phase
from evenkeel.plan.rules.rule import (
    ISOLATING,
    ONLY_REALTIME,
    Alternative,
    Context,
    Rule,
    Wanted,
    boot_argument,
    cpus_input,
    file_value,
)


def tsc_watchdog(context: Context) -> Iterable[Wanted]:
    """``tsc=nowatchdog`` only where the kernel would watch a TSC that it trusts enough to use.

    The watchdog timer visits each CPU in turn every half second (seen on a tuned virtual host: two of its seven timer
    interrupts in 4 s).  The kernel leaves it out by itself for an invariant TSC with a TSC_ADJUST register, which tells
    when firmware changed it, since 5.16 on up to two sockets (b50db7095fe0) and since 6.2 on up to four (233756a640be).
    AMD's CPUs have no such register, so there it is always watched.
    """
    facts = context.facts
    if facts.identity.architecture != "x86_64" or facts.clocksource != "tsc":
        return
    known = facts.tsc_flags
    # Without the flags a hypervisor's TSC is not ours to trust; with them it has said that it stays as it is.
    if facts.identity.hypervisor != "none" if known is None else not {"constant_tsc", "nonstop_tsc"} <= set(known):
        return
    packages = len({cpu.package for cpu in facts.cpus if cpu.online})
    trusted = 4 if context.kernel >= (6, 2) else 2 if context.kernel >= (5, 16) else 0
    adjusts = known is None or "tsc_adjust" in known
    if adjusts and packages <= trusted:
        return
    why = (
        f"{packages} sockets are more than the {trusted} for which kernel {facts.kernel.release} trusts it unwatched"
        if adjusts
        else "the CPUs have no TSC_ADJUST register, without which no kernel trusts it unwatched"
    )
    yield boot_argument(
        context,
        "tsc",
        "nowatchdog",
        f"the clock source is tsc, {why}, and the watchdog's timer visits every CPU, {context.who()}",
        inputs={
            "clocksource": "tsc",
            "TSC": "not known" if known is None else " ".join(known),
            "sockets": str(packages),
            "kernel": facts.kernel.release,
        },
    )


def clock_source(context: Context) -> Iterable[Wanted]:
    """tsc, where the kernel offers it: it takes one that it found unstable off the list itself."""
    facts = context.facts
    if (
        facts.identity.architecture != "x86_64"
        or facts.identity.hypervisor != "none"
        or "tsc" not in facts.clocksources
    ):
        return
    yield file_value(
        context,
        "/sys/devices/system/clocksource/clocksource0/current_clocksource",
        "tsc",
        f"{context.who()}; the TSC is read in nanoseconds by the CPU itself, hpet and acpi_pm are devices on a bus "
        "that all CPUs queue for, and KVM gives guests a clock without exits only beside tsc",
        inputs={"clock sources": ", ".join(facts.clocksources)},
    )


def watchdogs(context: Context) -> Iterable[Wanted]:
    cpus = context.topology.online - context.isolated
    yield file_value(
        context,
        "/proc/sys/kernel/watchdog_cpumask",
        format_cpus(cpus),
        f"{context.who(context.realtime)}, so the lockup watchdog stays on the other CPUs: it looks after the host and "
        "leaves the guests alone",
        compare="cpulist",
        inputs={"not isolated": cpus_input(cpus)},
        suffix="cpumask",
    )
    yield file_value(
        context,
        "/proc/sys/kernel/nmi_watchdog",
        "0",
        f"{context.who(context.realtime)}; the hard lockup detector interrupts with an NMI that nothing can mask",
        compare="integer",
        suffix="nmi",
    )


def timer_migration(context: Context) -> Iterable[Wanted]:
    yield file_value(
        context,
        "/proc/sys/kernel/timer_migration",
        "1",
        f"{context.who()}; with 1 timers that such a CPU arms move to a CPU that is awake anyway (vendors disagree: "
        "TuneD sets 0, the node tuning operator 1; 1 is the kernel's default)",
        compare="integer",
    )


def intervals(context: Context) -> Iterable[Wanted]:
    yield file_value(
        context,
        "/proc/sys/vm/stat_interval",
        "10",
        "memory statistics are folded per CPU by a worker; every 10 s instead of every second disturbs "
        f"{cpus_input(context.realtime_cpus)} a tenth as often",
        compare="integer",
        inputs={"realtime CPUs": cpus_input(context.realtime_cpus)},
        suffix="stat_interval",
    )
    yield file_value(
        context,
        "/proc/sys/kernel/hung_task_timeout_secs",
        "600",
        "a task that waits for a CPU with a real-time vCPU is late, not hung; 600 s tells the two apart",
        compare="integer",
        suffix="hung_task",
    )


RULES = (
    Rule(
        id="H-CLK",
        subject="clock",
        title="The TSC as clock source",
        levels=ISOLATING,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="a TSC that drifts after all makes the time wrong; the kernel's own choice of another may have a reason",
        verification="/sys/devices/system/clocksource/clocksource0/current_clocksource",
        source="kernel: timers/timekeeping.rst; a PREEMPT_RT host refuses KVM without a constant TSC (measured, "
        "host-tuning H-TSC)",
        compute=clock_source,
        inputs=("architecture", "hypervisor", "available clock sources"),
        value="tsc, on bare metal where the kernel offers it; guests have it through G-9",
        alternatives=(
            Alternative(
                "hpet",
                "guides from before invariant TSCs",
                "each reading goes over a bus to one device for all CPUs, and takes about a microsecond",
            ),
            Alternative(
                "kvm-clock in guests",
                "SUSE guide for SAP HANA on KVM (TuneD's sap-hana-kvm-guest says tsc, and so does a comment in the "
                "guide)",
                "right where guests migrate between hosts of different clocks; pinned guests do not migrate, and their "
                "own kernel prefers an invariant TSC",
            ),
        ),
    ),
    Rule(
        id="H-TSC",
        subject="clock",
        title="No watchdog timer for a trusted TSC",
        levels=ONLY_REALTIME,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="a TSC that drifts after all is noticed by nobody and the time is wrong",
        verification="/proc/cmdline; /sys/devices/system/clocksource/clocksource0/current_clocksource stays tsc",
        source="kernel: admin-guide/kernel-parameters.txt tsc=; arch/x86/kernel/tsc.c check_system_tsc_reliable(), "
        "commits b50db7095fe0 (5.16), 233756a640be (6.2)",
        compute=tsc_watchdog,
        inputs=(
            "architecture",
            "clock source",
            "flags of the TSC (constant, nonstop, TSC_ADJUST)",
            "hypervisor",
            "number of sockets",
            "kernel version",
        ),
        value="nowatchdog where the kernel would still watch",
        alternatives=(
            Alternative(
                "reliable", "TuneD realtime", "also skips the test at boot that finds a TSC out of step between sockets"
            ),
        ),
    ),
    Rule(
        id="H-WD",
        subject="clock",
        title="Lockup watchdogs on the other CPUs only",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="a lockup of an isolated CPU is not reported by the kernel",
        verification="/proc/sys/kernel/watchdog_cpumask and nmi_watchdog",
        source="kernel: admin-guide/sysctl/kernel.rst; host-tuning H-WD",
        compute=watchdogs,
        inputs=("CPUs of realtime guests",),
        value="watchdog_cpumask: the other CPUs; nmi_watchdog=0",
        alternatives=(
            Alternative("nosoftlockup", "TuneD realtime", "the host loses its watchdog too, where it disturbs nobody"),
        ),
    ),
    Rule(
        id="R-TIM-1",
        subject="clock",
        title="Let timers leave isolated CPUs",
        levels=ISOLATING,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="vendors contradict each other here; measure both if the last microsecond counts",
        verification="/proc/sys/kernel/timer_migration",
        source="cluster-node-tuning-operator (1, with its reason) against TuneD (0); host-tuning R-TIM-1",
        compute=timer_migration,
        inputs=("goals",),
        value="1",
        alternatives=(
            Alternative(
                "0",
                "TuneD realtime",
                "timers then stay on the isolated CPU that armed them, TCP keepalives of whoever ran there once "
                "included; the cluster-node-tuning-operator writes 1 for that reason. Measure both where the last "
                "microsecond counts",
            ),
        ),
    ),
    Rule(
        id="R-TIM-2",
        subject="clock",
        title="Collect statistics less often",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="counters in /proc/vmstat lag by up to 10 s; a hung task is reported after 600 s",
        verification="/proc/sys/vm/stat_interval and /proc/sys/kernel/hung_task_timeout_secs",
        source="TuneD realtime profile; host-tuning R-TIM-2",
        compute=intervals,
        inputs=("goals",),
        value="stat_interval=10, hung_task_timeout_secs=600",
        alternatives=(
            Alternative("stat_interval=1000", "partrt", "counters of memory are then a quarter of an hour old"),
        ),
    ),
)
