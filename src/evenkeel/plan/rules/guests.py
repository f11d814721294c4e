"""Rules about guests on their host: C-1 (partitions), G-15 (definition), G-3 (threads).

What the definition says, element by element, is :mod:`evenkeel.plan.guest`.  Source: reference host-tuning §2.5, §2.6.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import GuestDefinition, GuestPartition, GuestThread, Phase
from evenkeel.documents.quantity import format_size
from evenkeel.plan.guest import elements_of
from evenkeel.plan.placement import KERNEL_PRIORITY
from evenkeel.plan.rules.rule import ALL, ISOLATING, ONLY_REALTIME, Alternative, Context, Rule, Wanted


def definitions(context: Context) -> Iterable[Wanted]:
    for placement in context.placements:
        elements = elements_of(placement.goal, len(placement.cells), len(placement.passed.functions))
        yield Wanted(
            target=GuestDefinition(guest=placement.name),
            old=None,
            new=context.definitions[placement.name],
            reason=f"{placement.why[0]}; the definition says so to libvirt, element by element ({', '.join(elements)})",
            inputs={
                "goal": placement.goal,
                "vCPUs": str(placement.wish.vcpus),
                "memory": format_size(placement.wish.memory),
                "node": format_cpus(placement.nodes) or "any",
            },
            suffix=placement.name,
        )


def partitions(context: Context) -> Iterable[Wanted]:
    """One remote partition per pinned vCPU, over its CPU and the empty siblings of its core."""
    if not context.partitions:
        return
    for placement in context.pinned:
        now = _existing(context, placement.name)
        for vcpu in placement.vcpus:
            empty = context.topology.whole(vcpu.cpus) & placement.idle
            new = format_cpus(vcpu.cpus | empty)
            old = now.get(vcpu.index)
            beside = f" and its empty sibling {format_cpus(empty)}" if empty else ""
            yield Wanted(
                target=GuestPartition(guest=placement.name, vcpu=vcpu.index),
                old=old,
                new=new,
                reason=f"CPU {format_cpus(vcpu.cpus)} carries vCPU {vcpu.index} of guest {placement.name}{beside} must "
                "carry nothing: an isolated partition takes them out of load balancing while the guest runs, and gives "
                "them back when it stops"
                if empty
                else f"CPU {format_cpus(vcpu.cpus)} carries vCPU {vcpu.index} of guest {placement.name}: an isolated "
                "partition takes it out of load balancing while the guest runs, and gives it back when it stops",
                inputs={"vCPU on": format_cpus(vcpu.cpus), "empty siblings": format_cpus(empty) or "none"},
                suffix=f"{placement.name}/vcpu{vcpu.index}",
                status="satisfied" if old == new else "change",
            )


def _existing(context: Context, guest: str) -> dict[int, str]:
    """vCPU -> exclusive CPUs of the valid partitions of a running guest.  In names systemd writes ``-`` as \\x2d."""
    name = re.escape(guest.replace("-", r"\x2d"))
    path = re.compile(r".*/machine-qemu\\x2d\d+\\x2d" + name + r"\.scope/(?:.*/)?vcpu(\d+)")
    found: dict[int, str] = {}
    for partition in context.facts.partitions:
        match = path.fullmatch(partition.path)
        if match and partition.state == "isolated":
            found[int(match[1])] = format_cpus(partition.exclusive or partition.effective)
    return found


def threads(context: Context) -> Iterable[Wanted]:
    for placement in context.realtime:
        for vcpu in placement.vcpus:
            if vcpu.policy == "fifo":
                reason = (
                    f"vCPU {vcpu.index} of guest {placement.name} does its real-time work: above the kernel's FIFO 1 "
                    f"threads, below those that the plan raises to {KERNEL_PRIORITY}"
                )
            else:
                reason = (
                    f"vCPU {vcpu.index} of guest {placement.name} keeps the guest's own house and may be busy for "
                    "long, so it has ordinary policy"
                )
            yield Wanted(
                target=GuestThread(guest=placement.name, vcpu=vcpu.index),
                old=None,
                new=f"{vcpu.policy}:{vcpu.priority}",
                reason=reason,
                inputs={"latency": str(placement.wish.latency or "none"), "trust": placement.wish.trust},
                suffix=f"{placement.name}/vcpu{vcpu.index}",
            )


RULES = (
    Rule(
        id="G-15",
        subject="guests",
        title="Definition of the guest, through libvirt itself",
        levels=ALL,
        phase=Phase.GUEST,
        disturbance="drain",
        when="define",
        risk="a running guest keeps its old definition until it is started again",
        verification="libvirt accepts it; live threads, pages and pins are compared with the plan",
        source="libvirt: formatdomain; libvirt's own real-time guide is refused by libvirt 9.0 (host-tuning §0.4)",
        compute=definitions,
        inputs=(
            "site",
            "facts",
            "ledger",
        ),
        value="the definition, by its digest",
    ),
    Rule(
        id="C-1",
        subject="guests",
        title="A cgroup partition of its own for each vCPU",
        levels=ISOLATING,
        phase=Phase.GUEST,
        disturbance="live",
        when="live",
        risk="CPU hotplug or an overlapping exclusive claim invalidates it; isolcpus=domain must not be used beside it",
        verification="cpuset.cpus.partition reads isolated; the root's cpuset.cpus.isolated contains the CPUs",
        source="kernel: admin-guide/cgroup-v2.rst (remote partitions, 6.7); measured, host-tuning C-1 to C-7",
        compute=partitions,
        inputs=(
            "ledger",
            "kernel version",
            "cgroup version",
        ),
        value="each vCPU's CPU and the empty siblings of its core, isolated",
        alternatives=(
            Alternative(
                "a local partition (cpuset.cpus alone)",
                "cgroup documentation",
                "any sibling group that lists one of its CPUs invalidates it silently (measured, C-2)",
            ),
            Alternative("isolcpus=domain", "TuneD, seapath", "beside it the kernel refuses partitions (measured, C-3)"),
            Alternative(
                "partition root",
                "guests whose vCPUs share several CPUs",
                "balances threads between its CPUs; pinned 1:1 there is nothing to balance (C-6)",
            ),
            Alternative(
                "AllowedCPUs= of a slice",
                "seapath",
                "restricts the guest, but keeps nobody else out (C-7: the emulator needs CPUs of its own)",
            ),
        ),
    ),
    Rule(
        id="G-3",
        subject="guests",
        title="Policy and priority of each vCPU thread",
        levels=ONLY_REALTIME,
        phase=Phase.GUEST,
        disturbance="live",
        when="live",
        risk="a FIFO vCPU that never goes idle starves ordinary tasks of its CPU; nothing else may be pinned there",
        verification="policy and priority of the threads named CPU N/KVM",
        source="libvirt: formatdomain, vcpusched; host-tuning §2.2 (never 1: ties with FIFO 1 kernel threads)",
        compute=threads,
        inputs=("goal, latency and real-time vCPUs of each guest",),
        value="FIFO 2 to 9, the most urgent guest highest; vCPU 0 ordinary",
        alternatives=(
            Alternative(
                "FIFO 1",
                "OpenStack Nova, KubeVirt, seapath, libvirt's real-time guide",
                "ties with kernel threads at FIFO 1, and equal priorities never preempt each other",
            ),
            Alternative(
                "FIFO 12, above the kernel's threads",
                "guests that are known to yield",
                "a few microseconds less, and a guest that spins starves the CPU's threads",
            ),
        ),
    ),
)
