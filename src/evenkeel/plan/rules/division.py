"""Rules about who owns which CPU: S1 to S6.  No settings: the ledger does it, and every other rule derives from it.

They stand here so that the catalogue is whole; :mod:`evenkeel.plan.ledger` and :mod:`evenkeel.plan.placement` hold the
code, and each plan says in its ledger what it decided and why.  Source: reference host-tuning §2.1.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Note, Phase
from evenkeel.plan.dataplane import Polling, export
from evenkeel.plan.rules.rule import ALL, HUGE, ISOLATING, Alternative, Context, Rule

_SHOWN = "the ledger of the plan and its reasons (`evenkeel plan`); ledger checks of every plan"


def polling_note(context: Context) -> Iterable[Note]:
    """What the owner of the process that polls must do himself."""
    data_plane = export(Polling(context.ledger.data_plane, context.polling), context.housekeeping)
    if data_plane is None:
        return
    options = " ".join(f"{key}={value}" for key, value in data_plane.options.items())
    yield Note(
        rule="S2",
        text=f"CPU {format_cpus(context.polling)} is for polling and whatever polls has to be told: with Open vSwitch "
        f"ovs-vsctl set Open_vSwitch . {options} (threads that poll on these CPUs, all its others on housekeeping "
        f"{format_cpus(context.housekeeping)}).",
    )
    if context.partitions:
        yield Note(
            rule="S2",
            text=f"CPU {format_cpus(context.ledger.data_plane)} has no interrupts, no tick and no work of the kernel's "
            "own, but the scheduler may still put ordinary tasks there: Evenkeel does not start what polls, so it has "
            "no partition to give it. Put its threads into one (cpuset.cpus.partition=isolated), or keep others off "
            "with CPUAffinity= in systemd's system.conf.",
        )


RULES = (
    Rule(
        id="S1",
        subject="division",
        title="Housekeeping: CPU 0 and a whole core of every node",
        levels=ALL,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="too few housekeeping CPUs make the host itself, its interrupts and its storage the bottleneck",
        verification=_SHOWN,
        source="kernel: admin-guide/cpu-isolation.rst (one per node), timers/no_hz.rst (the boot CPU); host-tuning S1",
        inputs=("topology", "housekeeping of the site", "CPUs that guests name"),
        value="at least one whole core of each node, one more for every 32 cores of a node",
        alternatives=(
            Alternative(
                "the first CPU numbers of each package",
                "TuneD (calc_isolated_cores)",
                "splits cores: CPU 1 became isolated beside housekeeping CPU 0 on a host of 2 x 2 x 2 (measured)",
            ),
            Alternative(
                "two masks that the owner writes",
                "OpenStack Nova, seapath, rt-conf",
                "two masks can contradict each other unnoticed (seapath/ansible#865); `housekeeping` sets "
                "the one there is",
            ),
        ),
    ),
    Rule(
        id="S2",
        subject="division",
        title="Data plane: whole cores beside the card that they poll",
        levels=ALL,
        data_plane=True,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="a core that polls is busy for ever, and draws power for it; at low rates a card does as well with "
        "interrupts",
        verification="ledger checks of every plan; nohz_full, interrupts and workqueues keep off these CPUs (V-LEDGER, "
        "V-LEDGER-ISOLATED, V-IRQ-AFFINITY, V-IRQ-COUNT)",
        source="host-tuning S2, §2.2; Open vSwitch: Documentation/intro/install/dpdk.rst (pmd-cpu-mask, "
        "dpdk-lcore-mask)",
        inputs=("data_plane of the site", "node of each card", "housekeeping", "CPUs that guests name"),
        value="a core of the card's node for each card, never that of CPU 0; one thread of it polls with ordinary "
        "policy, and its sibling stays empty",
        note=polling_note,
        alternatives=(
            Alternative(
                "both threads of each core",
                "Open vSwitch (its guide for DPDK)",
                "more packets, and each of them later: the two threads share the core; `data_plane: { cpus: ... }` may "
                "name both",
            ),
            Alternative(
                "a real-time policy for the threads that poll",
                "guides for real-time data planes",
                "on a CPU of its own it gains nothing, and starves the kernel's own threads there (host-tuning §2.2)",
            ),
        ),
    ),
    Rule(
        id="S3",
        subject="division",
        title="Real-time CPUs: whole cores, near each other and near the device",
        levels=ISOLATING,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="an empty sibling is half a core that nobody uses",
        verification=_SHOWN,
        source="host-tuning S3; SUSE guide for SAP HANA on KVM (both threads)",
        inputs=("topology", "L3 caches", "goal, vCPUs and near of each guest"),
        value="cores of one node, or of each node of a guest with several cells; of one L3 where they fit; realtime: "
        "one thread of each core, its sibling empty; performance: both threads, as siblings of the guest",
        alternatives=(
            Alternative(
                "both threads for real-time vCPUs",
                "SUSE guide for SAP HANA on KVM (for throughput)",
                "the two threads of a core share its execution units and its L1 and L2 caches",
            ),
            Alternative(
                "SMT off (H-SMT)",
                "documentation of OpenStack Nova, libvirt's real-time guide",
                "takes the second thread from every core, not only from those that need it",
            ),
        ),
    ),
    Rule(
        id="S4",
        subject="division",
        title="Emulator and I/O threads on housekeeping CPUs of the guest's node",
        levels=HUGE,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="many guests share the housekeeping CPUs of their node",
        verification="Cpus_allowed_list of QEMU's threads; G-2",
        source="host-tuning S4; measured: a start with strictly bound memory fails with a pin elsewhere",
        inputs=("housekeeping", "node of the guest"),
        value="housekeeping CPUs of the node; never a CPU that carries a vCPU of its own",
        alternatives=(
            Alternative(
                "with the vCPUs",
                "KubeVirt and OpenStack Nova without isolated emulator threads",
                "a FIFO vCPU that waits for its own emulator on the same CPU waits for ever",
            ),
            Alternative(
                "no isolation of emulator threads",
                "SUSE guide for SAP HANA on KVM",
                "whole sockets leave no CPU for them there; where there is one, it costs nothing",
            ),
        ),
    ),
    Rule(
        id="S5",
        subject="division",
        title="Shared CPUs for flexible and balanced guests",
        levels=ALL,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="where nothing is left these guests run on housekeeping CPUs, and the plan says so",
        verification=_SHOWN,
        source="host-tuning S5",
        inputs=("what the other roles leave",),
        value="the rest",
    ),
    Rule(
        id="S6",
        subject="division",
        title="Roles are disjoint, complete, and of whole cores",
        levels=ALL,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="none; a plan that breaks it is not made",
        verification="checked of every ledger before a plan is printed; lists read back from the kernel after the boot",
        source="host-tuning S6; seapath/ansible#865 (irqaffinity against isolcpus), TuneD#514 (length of the lists)",
        inputs=("ledger",),
        value="every online CPU has exactly one role, and no core has two; lists are packed, in the kernel's format",
        alternatives=(
            Alternative(
                "4-N, all, 0-15:2/4",
                "kernel: admin-guide/kernel-parameters.txt",
                "other tools that read the same list misread them: TuneD's inverse of 4-N is every CPU (measured)",
            ),
        ),
    ),
)
