"""Rules about CPU isolation on the kernel command line: H-ISO-1 to H-ISO-6.

They derive from the ledger alone.  Effect: at the reboot.  Source: reference host-tuning §2.3.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus, format_mask
from evenkeel.documents.plan import FileValue, Phase
from evenkeel.plan.placement import KERNEL_PRIORITY, VCPU_PRIORITIES
from evenkeel.plan.rules.rule import (
    ISOLATING,
    ONLY_REALTIME,
    Alternative,
    Context,
    Rule,
    Wanted,
    boot_argument,
    cpus_input,
    guests,
)


def isolcpus(context: Context) -> Iterable[Wanted]:
    """``managed_irq`` always; ``domain`` only where remote partitions do not exist (before 6.7), never beside them."""
    cpus = format_cpus(context.isolated)
    inputs = {
        "isolated": cpus,
        "kernel": context.facts.kernel.release,
        "cgroup version": str(context.facts.cgroup_version or "unknown"),
    }
    reason = f"{context.who()}, so the kernel shall keep managed device interrupts away from them where it has a choice"
    if context.partitions:
        reason += (
            "; scheduling domains are left to the cgroup partition of each vCPU (C-1), because isolcpus=domain makes "
            "the kernel refuse partitions"
        )
        yield boot_argument(context, "isolcpus", f"managed_irq,{cpus}", reason, inputs=inputs)
        return
    reason += (
        f"; kernel {context.facts.kernel.release} with cgroup version {context.facts.cgroup_version or 'unknown'} has "
        "no remote cpuset partitions (Linux 6.7, cgroup v2), so isolcpus also takes them out of load balancing"
    )
    # Only the domain part shows in this file: it is the complement of housekeeping_cpumask(HK_TYPE_DOMAIN).
    effective = FileValue(path="/sys/devices/system/cpu/isolated", compare="cpulist")
    yield boot_argument(
        context,
        "isolcpus",
        f"managed_irq,domain,{cpus}",
        reason,
        effective=effective,
        effective_value=cpus,
        inputs=inputs,
    )


def nohz_full(context: Context) -> Iterable[Wanted]:
    cpus = context.realtime_cpus | context.ledger.data_plane
    owners = [context.who(context.realtime)] if context.realtime else []
    if context.ledger.data_plane:
        owners.append(f"CPU {format_cpus(context.ledger.data_plane)} polls for packets")
    yield boot_argument(
        context,
        "nohz_full",
        format_cpus(cpus),
        f"{', and '.join(owners)}, so the scheduler tick stops there while one task runs; CPU "
        f"{context.topology.boot_cpu} is not among them, since the kernel would drop it silently",
        effective=FileValue(path="/sys/devices/system/cpu/nohz_full", compare="cpulist"),
        inputs={"realtime CPUs": cpus_input(context.realtime_cpus), "data plane": cpus_input(context.ledger.data_plane)}
        if context.ledger.data_plane
        else {"realtime CPUs": cpus_input(cpus)},
    )


def rcu_nocbs(context: Context) -> Iterable[Wanted]:
    cpus = format_cpus(context.isolated)
    yield boot_argument(
        context,
        "rcu_nocbs",
        cpus,
        f"{context.who()}, so RCU callbacks are handed to rcuo threads, which run on the other CPUs",
        inputs={"isolated": cpus},
    )
    strict = tuple(placement for placement in context.realtime if placement.strict)
    if strict:
        yield boot_argument(
            context,
            "rcu_nocb_poll",
            "",
            f"{guests(strict)} deadline is 50us or less, so the rcuo threads look for callbacks themselves and "
            "isolated CPUs need not wake them",
            inputs={"strict guests": ", ".join(placement.name for placement in strict)},
            suffix="poll",
        )


def irqaffinity(context: Context) -> Iterable[Wanted]:
    cpus = format_cpus(context.housekeeping)
    yield boot_argument(
        context,
        "irqaffinity",
        cpus,
        f"{context.who()}, so interrupts that ask for no CPU start on housekeeping {cpus}",
        effective=FileValue(path="/proc/irq/default_smp_affinity", compare="cpumask"),
        effective_value=format_mask(context.housekeeping),
        inputs={"housekeeping": cpus, "isolated": cpus_input(context.isolated)},
    )


def kthread_prio(context: Context) -> Iterable[Wanted]:
    ranks = sorted({vcpu.priority for placement in context.realtime for vcpu in placement.vcpus if vcpu.priority})
    shown = ", ".join(str(rank) for rank in ranks) or f"{VCPU_PRIORITIES[0]} to {VCPU_PRIORITIES[-1]}"
    yield boot_argument(
        context,
        "rcutree.kthread_prio",
        str(KERNEL_PRIORITY),
        f"vCPUs run at FIFO {shown}, so RCU's threads must stand above them: with FIFO 1 a busy vCPU stalls RCU for "
        "the whole host",
        effective=FileValue(path="/sys/module/rcutree/parameters/kthread_prio", compare="integer"),
        inputs={"vCPU priorities": shown, "kernel thread priority": str(KERNEL_PRIORITY)},
    )

    if context.kernel < (6, 11):
        return
    yield boot_argument(
        context,
        "rcutree.nohz_full_patience_delay",
        "1000",
        f"{context.who(context.realtime)}; RCU waits 1000 ms before it interrupts a tickless CPU for a grace period",
        effective=FileValue(path="/sys/module/rcutree/parameters/nohz_full_patience_delay", compare="integer"),
        inputs={"kernel": context.facts.kernel.release},
        suffix="patience",
    )


def skew_tick(context: Context) -> Iterable[Wanted]:
    yield boot_argument(
        context,
        "skew_tick",
        "1",
        f"{len(context.topology.online)} CPUs would otherwise take the same locks at the same instant of each tick",
        inputs={"CPUs online": str(len(context.topology.online))},
    )


RULES = (
    Rule(
        id="H-ISO-1",
        subject="isolation",
        title="Keep managed interrupts, and before 6.7 load balancing, off isolated CPUs",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="managed_irq does nothing for a device with at least as many queues as CPUs; domain is irreversible until "
        "the next boot, and threads of a group that spans isolated CPUs pile up on one of them",
        verification="/proc/cmdline; with domain also /sys/devices/system/cpu/isolated (managed_irq alone does not "
        "show there); interrupts counted on isolated CPUs",
        source="kernel: admin-guide/kernel-parameters.txt, admin-guide/cpu-isolation.rst; host-tuning H-ISO-1, C-3",
        compute=isolcpus,
        inputs=(
            "ledger",
            "kernel version",
            "cgroup version",
        ),
        value="managed_irq and the isolated CPUs; before 6.7 or with cgroup v1 also domain",
        alternatives=(
            Alternative(
                "isolcpus=managed_irq,domain",
                "TuneD, seapath",
                "irreversible until the next boot, deprecated, and beside it the kernel refuses partitions (measured)",
            ),
            Alternative(
                "no isolcpus, partitions alone",
                "kernel: admin-guide/cpu-isolation.rst",
                "partitions leave managed interrupts where they are",
            ),
        ),
    ),
    Rule(
        id="H-ISO-2",
        subject="isolation",
        title="Stop the scheduler tick on real-time CPUs",
        levels=ONLY_REALTIME,
        data_plane=True,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="system calls and switches between kernel and user cost more on these CPUs; works only while exactly one "
        "task is runnable there",
        verification="/sys/devices/system/cpu/nohz_full; local timer interrupts of a busy CPU: at most about 2 a "
        "second",
        source="kernel: timers/no_hz.rst; measured: 7 to 9 ticks in 4 s against 464 to 1047 (host-tuning H-ISO-2)",
        compute=nohz_full,
        inputs=("CPUs of realtime guests and their empty siblings",),
        value="the CPUs of realtime guests and their empty siblings",
        alternatives=(
            Alternative(
                "the CPUs of performance guests too",
                "TuneD cpu-partitioning",
                "throughput pays at each system call; a tick every few milliseconds does not hurt there",
            ),
        ),
    ),
    Rule(
        id="H-ISO-3",
        subject="isolation",
        title="Run RCU callbacks of isolated CPUs elsewhere",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="callbacks of isolated CPUs load the housekeeping CPUs; polling burns power there",
        verification="/proc/cmdline; dmesg: Offload RCU callbacks from CPUs; rcuop threads allowed on other CPUs only",
        source="kernel: admin-guide/kernel-parameters.txt rcu_nocbs, rcu_nocb_poll; host-tuning H-ISO-3",
        compute=rcu_nocbs,
        inputs=(
            "ledger",
            "deadline of 50us or less",
        ),
        value="the isolated CPUs; rcu_nocb_poll with a deadline of 50us or less",
        alternatives=(
            Alternative(
                "rcu_nocb_poll always",
                "seapath",
                "the rcuo threads then look for work all the time, on housekeeping CPUs",
            ),
            Alternative(
                "the housekeeping CPUs",
                "the example that rt-conf ships",
                "the wrong side: callbacks of isolated CPUs stay where they disturb",
            ),
        ),
    ),
    Rule(
        id="H-ISO-4",
        subject="isolation",
        title="Start new interrupts on housekeeping CPUs",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="too small a set makes housekeeping CPUs the bottleneck of devices; it must not contradict isolcpus",
        verification="/proc/irq/default_smp_affinity",
        source="kernel: core-api/irq/irq-affinity.rst; a contradiction went unnoticed in seapath/ansible#865",
        compute=irqaffinity,
        inputs=("ledger",),
        value="the housekeeping CPUs",
        alternatives=(
            Alternative(
                "left out, irqbalance does it",
                "distributions",
                "an interrupt that is asked for later starts on any CPU",
            ),
        ),
    ),
    Rule(
        id="H-ISO-5",
        subject="isolation",
        title="RCU's threads above the vCPUs, and patient with tickless CPUs",
        levels=ONLY_REALTIME,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="RCU threads interrupt a vCPU for a few microseconds; with patience, memory is freed up to a second later",
        verification="/sys/module/rcutree/parameters/kthread_prio and nohz_full_patience_delay; rcuc/N at FIFO 11",
        source="kernel: admin-guide/kernel-parameters.txt (patience since 6.11); measured: RCU stall with rcuc "
        "starved for 5311 jiffies (host-tuning §0.2)",
        compute=kthread_prio,
        inputs=(
            "priorities of the vCPUs",
            "kernel version",
        ),
        value="11; nohz_full_patience_delay=1000 since 6.11",
        alternatives=(
            Alternative(
                "rcuc and rcub at FIFO 4, ktimers and ksoftirqd at 2",
                "TuneD realtime",
                "ties with vCPUs at the same priority, and forgets irq_work",
            ),
            Alternative("1, the default", "kernel", "a busy vCPU stalls RCU for the whole host (measured)"),
        ),
    ),
    Rule(
        id="H-ISO-6",
        subject="isolation",
        title="Spread the ticks of the CPUs",
        levels=ISOLATING,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="a little more power, because CPUs wake one after the other",
        verification="/proc/cmdline",
        source="kernel: admin-guide/kernel-parameters.txt skew_tick; TuneD and cluster-node-tuning-operator set it",
        compute=skew_tick,
        inputs=("number of CPUs",),
        value="1",
    ),
)
