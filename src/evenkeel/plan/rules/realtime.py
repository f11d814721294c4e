"""Rules about real-time scheduling of the host: R-RT-1 to R-RT-4.

The question behind them: may a guest occupy its CPU forever (``trust: spins``), or does it always go idle in between
(``yields``)?  It decides between the last microseconds and losing the host.  Source: reference host-tuning §0.1, §0.2,
§2.2, §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.plan import Phase, ThreadSchedule
from evenkeel.plan.placement import KERNEL_PRIORITY, Placement
from evenkeel.plan.rules.rule import ONLY_REALTIME, Alternative, Context, Rule, Wanted, file_value

#: Kernel version that brought the deadline "fair server" in place of real-time throttling (commit 557a6bfc662c).
FAIR_SERVER = (6, 12)
_DEFAULT_RUNTIME_NS = 50_000_000  # of each second, for ordinary tasks: FAIR_SERVER's default in kernel/sched/deadline.c
_THREADS = ("ktimers", "ksoftirqd", "irq_work")


def gives_up_fair_server(placement: Placement) -> bool:
    """Only a guest that yields and has a deadline of 50 us or less: there 50 ms of every second are in the way, and
    its own idle time is what keeps the host's threads alive."""
    return placement.wish.trust == "yields" and placement.strict


def throttling(context: Context) -> Iterable[Wanted]:
    path = "/proc/sys/kernel/sched_rt_runtime_us"
    inputs = {
        "kernel": context.facts.kernel.release,
        "trust": ", ".join(f"{placement.name} {placement.wish.trust}" for placement in context.realtime),
    }
    spinning = [placement.name for placement in context.realtime if placement.wish.trust == "spins"]
    if context.kernel >= FAIR_SERVER:
        off = [placement.name for placement in context.realtime if gives_up_fair_server(placement)]
        if off:
            new = "-1"
            reason = (
                f"the fair server goes off for guest {', '.join(off)} (R-RT-2), and the kernel accepts that only after "
                "this is -1; by itself -1 gives real-time tasks nothing since 6.12"
            )
        else:
            new = "950000"
            reason = (
                "since 6.12 this no longer throttles FIFO tasks (measured: a FIFO 1 task starved 6 s at 950000) and -1 "
                "no longer hands them the CPU, because the fair server takes its share either way; so it keeps the "
                "kernel's default, and R-RT-2 decides"
            )
    elif spinning:
        new = "950000"
        reason = (
            f"guest {', '.join(spinning)} may occupy its CPU forever, and before 6.12 this throttle is all that lets "
            "the host's own threads run there; the price is a pause of up to 50 ms in a second that the guest uses up"
        )
    else:
        new = "-1"
        reason = (
            "every real-time guest goes idle in between, so the host's threads get their turn without a throttle; "
            "before 6.12, -1 means that real-time tasks are never stopped"
        )
    yield file_value(context, path, new, reason, compare="integer", inputs=inputs)


def fair_server(context: Context) -> Iterable[Wanted]:
    for placement in context.realtime:
        off = gives_up_fair_server(placement)
        wish = placement.wish
        for cpu in sorted(placement.fifo_cpus):
            path = f"/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime"
            if off:
                reason = (
                    f"CPU {cpu} carries a vCPU of guest {placement.name}, whose deadline is 50us or less and which "
                    "always goes idle in between; the fair server would take up to 50 ms a second from it"
                )
            else:
                ground = "may occupy its CPU forever" if wish.trust == "spins" else "has no deadline of 50us or less"
                reason = (
                    f"CPU {cpu} carries a vCPU of guest {placement.name}, which {ground}: the fair server stays, since "
                    "without it one spinning vCPU hangs whoever waits for a worker on that CPU (measured: 11 s against "
                    "0.1 s)"
                )
            yield file_value(
                context,
                path,
                "0" if off else str(_DEFAULT_RUNTIME_NS),
                reason,
                compare="integer",
                inputs={
                    "trust": wish.trust,
                    "latency": str(wish.latency or "none"),
                    "kernel": context.facts.kernel.release,
                },
                suffix=f"cpu{cpu}",
                absent="; the facts do not show this file: debugfs is not mounted or not allowed, and the default "
                "holds",
            )


def kernel_threads(context: Context) -> Iterable[Wanted]:
    """ktimers, ksoftirqd and irq_work of CPUs with FIFO vCPUs; rcuc is raised at boot by H-ISO-5."""
    now = {thread.name: thread for thread in context.facts.kernel_threads}
    new = f"fifo:{KERNEL_PRIORITY}"
    for cpu in sorted(context.fifo_cpus):
        rank = max(vcpu.priority for placement in context.realtime for vcpu in placement.vcpus if cpu in vcpu.cpus)
        for name in (f"{thread}/{cpu}" for thread in _THREADS):
            thread = now.get(name)
            if thread is None:
                continue  # ktimers and irq_work exist on PREEMPT_RT kernels only
            old = f"{thread.policy}:{thread.priority}"
            yield Wanted(
                target=ThreadSchedule(name=name),
                old=old,
                new=new,
                reason=f"CPU {cpu} carries a vCPU at FIFO {rank}; {name} at {old} would wait as long as that vCPU is "
                "busy",
                inputs={"vCPU priority": str(rank), "kernel thread priority": str(KERNEL_PRIORITY)},
                suffix=name,
                status="satisfied" if old == new else "change",
            )


RULES = (
    Rule(
        id="R-RT-4",
        subject="realtime",
        title="Kernel threads of real-time CPUs above the vCPUs",
        levels=ONLY_REALTIME,
        phase=Phase.THREADS,
        disturbance="live",
        when="runtime",
        risk="these threads interrupt a vCPU for a few microseconds; CPU hotplug makes new ones with the old priority",
        verification="policy and priority of each thread (/proc/PID/stat, fields 40 and 41)",
        source="cluster-node-tuning-operator (11); measured defaults FIFO 1 on 6.12 PREEMPT_RT (host-tuning §2.2)",
        compute=kernel_threads,
        inputs=(
            "kernel threads and their priorities",
            "CPUs that carry a FIFO vCPU",
        ),
        value="FIFO 11 for ktimers, ksoftirqd, irq_work",
        alternatives=(
            Alternative(
                "FIFO 2 for ksoftirqd and ktimers, irq_work left at 1",
                "TuneD realtime",
                "irq_work then waits for the vCPU",
            ),
            Alternative("left at FIFO 1", "distributions", "ties with a vCPU at 1, and starves below one at 2"),
        ),
    ),
    Rule(
        id="R-RT-1",
        subject="realtime",
        title="Real-time throttling",
        levels=ONLY_REALTIME,
        phase=Phase.THROTTLE,
        disturbance="live",
        when="runtime",
        risk="-1 before 6.12: a vCPU that never goes idle takes its CPU from the host for good",
        verification="/proc/sys/kernel/sched_rt_runtime_us",
        source="kernel: scheduler/sched-rt-group.rst; measured on 6.12, host-tuning §0.1 and R-RT-1",
        compute=throttling,
        inputs=(
            "kernel version",
            "trust and deadline of realtime guests",
        ),
        value="950000; -1 before 6.12 for guests that yield, and since 6.12 only where the fair server goes off",
        alternatives=(
            Alternative(
                "-1 always",
                "TuneD, cluster-node-tuning-operator, KubeVirt (takes it for the sign of a real-time host)",
                "since 6.12 it changes nothing by itself (measured); before, a guest that spins takes the host with it",
            ),
        ),
    ),
    Rule(
        id="R-RT-2",
        subject="realtime",
        title="The fair server of real-time CPUs",
        levels=ONLY_REALTIME,
        phase=Phase.THROTTLE,
        disturbance="live",
        when="runtime",
        risk="0 and a vCPU that spins: anything that needs a worker on every CPU (libvirt, systemd, compaction) hangs",
        verification="/sys/kernel/debug/sched/fair_server/cpuN/runtime, read back (dmesg claims success even when the "
        "write failed); canary: writing /proc/sys/vm/stat_refresh returns within two seconds",
        source="measured on 6.12, host-tuning §0.1, §0.2, R-RT-2, R-RT-3 (order); ni/meta-nilrt#864",
        compute=fair_server,
        since=FAIR_SERVER,
        inputs=(
            "trust and deadline of each realtime guest",
            "kernel version",
        ),
        value="0 for a guest that yields and has a deadline of 50us or less, else the default",
        alternatives=(
            Alternative(
                "0 on all CPUs",
                "ni/meta-nilrt",
                "one spinning vCPU then hangs whoever waits for a worker on its CPU (measured: 11 s)",
            ),
            Alternative(
                "a smaller share, 1 ms of a second",
                "a proposal (host-tuning R-RT-2)",
                "nobody has measured yet what it is worth",
            ),
        ),
    ),
    Rule(
        id="R-RT-3",
        subject="realtime",
        title="Order of throttling and fair server",
        levels=ONLY_REALTIME,
        phase=Phase.THROTTLE,
        disturbance="live",
        when="report",
        risk="in another order the kernel answered EBUSY, and its log claims success even then",
        verification="every write is read back; the order of the steps in the plan",
        source="measured on 6.12, host-tuning R-RT-3",
        since=FAIR_SERVER,
        inputs=("settings of R-RT-1 and R-RT-2",),
        value="done by the order of the plan: sched_rt_runtime_us -1 before the fair server goes off, the fair server "
        "back before 950000; all of it last",
    ),
)
