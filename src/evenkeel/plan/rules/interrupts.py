"""Rules about device interrupts and receive packet steering: R-IRQ-1, R-IRQ-2 (a note), R-IRQ-4, R-NET.

Source: reference host-tuning §2.4.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus, format_mask
from evenkeel.documents.facts import BlockDevice, Interrupt, Nic
from evenkeel.documents.plan import InterruptAffinity, Note, Phase, UnitState
from evenkeel.plan.rules.rule import (
    ISOLATING,
    ONLY_REALTIME,
    Alternative,
    Context,
    Rule,
    Wanted,
    cpus_input,
    file_value,
)

# Vectors that drivers spread with managed affinity, for kernels before 6.11, which do not tell: queue 0 of NVMe is the
# admin queue and vector 0 of a virtio disk the configuration change, both ordinary.
_MANAGED = re.compile(r"nvme\d+q[1-9]\d*|virtio\d+-req\.\d+")
# Interrupts that nobody can move: the legacy timer, the cascade of the second PIC, per-CPU timers.
_IMMOVABLE = re.compile(r"timer|cascade|arch_timer.*|.*_timer|ipi.*")


def is_managed(interrupt: Interrupt) -> bool:
    """Whether the kernel refuses a write of its affinity; by its name where the facts cannot tell."""
    if interrupt.managed is not None:
        return interrupt.managed
    return bool(_MANAGED.fullmatch(interrupt.action))


def movable(context: Context) -> dict[str, list[Interrupt]]:
    """Interrupts that can be moved, by action: the numbers behind an action change from boot to boot."""
    found: dict[str, list[Interrupt]] = {}
    for interrupt in context.facts.interrupts:
        if interrupt.action and not is_managed(interrupt) and not _IMMOVABLE.fullmatch(interrupt.action):
            found.setdefault(interrupt.action, []).append(interrupt)
    return {action: found[action] for action in sorted(found, key=_natural)}


def _natural(text: str) -> list[tuple[int, str]]:
    """Sorts eth0-rx-10 behind eth0-rx-9."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", text)]


def device_nodes(context: Context) -> dict[str, tuple[str, int]]:
    """Action -> (device name, node) of the network and block devices that say where they sit."""
    nodes: dict[str, tuple[str, int]] = {}
    devices: tuple[Nic | BlockDevice, ...] = (*context.facts.nics, *context.facts.blocks)
    for device in devices:
        if device.node is not None and device.node in context.topology.cpu_nodes:
            for action in device.interrupts:
                nodes.setdefault(action, (device.name, device.node))
    return nodes


def affinities(context: Context) -> Iterable[Wanted]:
    nodes = device_nodes(context)
    for action, interrupts in movable(context).items():
        wanted, near = context.housekeeping, ""
        if action in nodes:
            name, node = nodes[action]
            local = context.housekeeping & context.topology.node_cpus(node)
            if local:
                wanted, near = local, f", of which {format_cpus(local)} are on node {node} like {name}"
        now = sorted({format_cpus(interrupt.affinity) for interrupt in interrupts})
        new = format_cpus(wanted)
        yield Wanted(
            target=InterruptAffinity(action=action),
            old=" or ".join(text or "none" for text in now),
            new=new,
            reason=f"{context.who()}, so device interrupts go to housekeeping "
            f"{format_cpus(context.housekeeping)}{near}",
            inputs={
                "interrupts": ", ".join(str(interrupt.number) for interrupt in interrupts),
                "housekeeping": cpus_input(context.housekeeping),
                "device": f"{nodes[action][0]} on node {nodes[action][1]}" if action in nodes else "node unknown",
            },
            suffix=action,
            status="satisfied" if now == [new] else "change",
        )


def managed_note(context: Context) -> Iterable[Note]:
    """R-IRQ-2 cannot be a setting: nobody may write these affinities.  What remains is to say so and to count."""
    reaching = [
        interrupt.action
        for interrupt in context.facts.interrupts
        if interrupt.action and is_managed(interrupt) and (interrupt.effective or interrupt.affinity) & context.isolated
    ]
    if not reaching:
        return
    refused = "EPERM" if context.kernel >= (6, 11) else "EIO"
    names = sorted(set(reaching), key=_natural)
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    yield Note(
        rule="R-IRQ-2",
        text=f"the kernel owns the affinity of {shown} (a write is refused with {refused}) and they may fire on "
        f"isolated CPUs {format_cpus(context.isolated)}. isolcpus=managed_irq moves them only where a queue has "
        "another CPU to choose, so a device needs fewer queues than CPUs; the others stay quiet as long as nothing "
        "on an isolated CPU uses the device. Verification counts them there.",
    )


def broadcasts_note(context: Context) -> Iterable[Note]:
    """Only where the plan itself takes away what kept one kind of them from coming."""
    owner = next((owner for owner in context.facts.owners if owner.name == "tuned" and owner.active), None)
    if owner is None or "realtime" not in owner.evidence:
        return
    yield Note(
        rule="R-IPI",
        text="with TuneD (R-OWN) its helper rtentsk ends, which keeps a socket with time stamps open: from then on the "
        "first and the last program that asks for time stamps (chronyd, ptp4l) interrupts every CPU once, isolated "
        "ones too. Start such programs before the guests, and leave them running.",
    )


def irqbalance(context: Context) -> Iterable[Wanted]:
    owner = next((owner for owner in context.facts.owners if owner.name == "irqbalance"), None)
    if owner is None and "irqbalance" not in context.facts.programs:
        return
    running = owner is not None and owner.active
    yield Wanted(
        target=UnitState(unit="irqbalance.service"),
        old="running" if running else "stopped",
        new="stopped",
        reason="irqbalance moves interrupts every 10 s by its own measure and would undo R-IRQ-1; reading its counters "
        "alone costs latency" + (f" ({owner.evidence})" if owner else ""),
        inputs={"irqbalance": owner.evidence if owner else "installed, not running"},
        status="change" if running else "satisfied",
    )


def steering(context: Context) -> Iterable[Wanted]:
    yield file_value(
        context,
        "/proc/sys/net/core/rps_default_mask",
        format_mask(context.housekeeping),
        f"{context.who()}, so network interfaces that appear from now on (taps of guests, bridges) process their "
        f"packets on housekeeping {format_cpus(context.housekeeping)}",
        compare="cpumask",
        inputs={"housekeeping": cpus_input(context.housekeeping)},
    )


RULES = (
    Rule(
        id="R-IRQ-4",
        subject="interrupts",
        title="irqbalance stopped",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.INTERRUPTS,
        disturbance="live",
        when="runtime",
        risk="interrupts are no longer spread by load; the plan places each one instead",
        verification="unit state of irqbalance.service; affinities stay as planned",
        source="SUSE guide for SAP HANA on KVM; seapath/ansible; host-tuning R-IRQ-4",
        compute=irqbalance,
        inputs=("irqbalance runs or is installed",),
        value="stopped and masked",
        alternatives=(
            Alternative(
                "IRQBALANCE_BANNED_CPULIST",
                "TuneD (banned_cpus)",
                "it goes on reading every counter, and moves interrupts within what is left against R-IRQ-1",
            ),
        ),
    ),
    Rule(
        id="R-IRQ-1",
        subject="interrupts",
        title="Device interrupts on housekeeping CPUs, near the device",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.INTERRUPTS,
        disturbance="live",
        when="runtime",
        risk="drivers set it again: virtio-net on any CPU hotplug (measured), others when a link comes up",
        verification="/proc/irq/N/smp_affinity_list (effective_affinity_list follows at the next interrupt); no "
        "device interrupt counted on isolated CPUs",
        source="kernel: core-api/irq/irq-affinity.rst; measured, host-tuning R-IRQ-1",
        compute=affinities,
        inputs=(
            "ledger",
            "node of each device",
            "interrupts that can be moved",
        ),
        value="housekeeping CPUs of the device's node",
        alternatives=(
            Alternative(
                "all housekeeping CPUs",
                "TuneD",
                "an interrupt far from its device costs a trip over the interconnect each time",
            ),
        ),
    ),
    Rule(
        id="R-NET",
        subject="interrupts",
        title="Receive packet steering on housekeeping CPUs",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.INTERRUPTS,
        disturbance="live",
        when="runtime",
        risk="packets of new interfaces take one more hop between CPUs",
        verification="/proc/sys/net/core/rps_default_mask",
        source="kernel: networking/scaling.rst; rps_default_mask since 6.3; cluster-node-tuning-operator",
        compute=steering,
        since=(6, 3),
        inputs=("ledger",),
        value="the housekeeping CPUs",
    ),
    Rule(
        id="R-IRQ-2",
        subject="interrupts",
        title="Managed interrupts that may fire on isolated CPUs",
        levels=ISOLATING,
        data_plane=True,
        phase=Phase.INTERRUPTS,
        disturbance="live",
        when="report",
        risk="an isolated CPU that uses the device is interrupted by its queue",
        verification="interrupts counted on isolated CPUs (/proc/interrupts)",
        source="kernel: admin-guide/kernel-parameters.txt isolcpus=managed_irq; EPERM since 6.11 (measured on "
        "6.12), EIO before; a queue stays where its only CPU is (host-tuning R-IRQ-2)",
        note=managed_note,
        inputs=("managed interrupts and where they may fire",),
        value="cannot be set; noted, and counted by verification",
        alternatives=(
            Alternative(
                "a daemon that writes the affinity again and again", "seapath", "the kernel refuses every time"
            ),
        ),
    ),
    Rule(
        id="R-IPI",
        subject="interrupts",
        title="What interrupts every CPU at once",
        levels=ONLY_REALTIME,
        phase=Phase.INTERRUPTS,
        disturbance="live",
        when="report",
        risk="loading or unloading modules, perf, ftrace, drop_caches and changes of the kernel's own code while "
        "guests run interrupt isolated CPUs too",
        verification="rows CAL, TLB and IWI of /proc/interrupts on isolated CPUs",
        source="TuneD rtentsk; host-tuning R-IPI",
        note=broadcasts_note,
        inputs=("TuneD and its profile",),
        value="cannot be set: do such things in a service window; noted where the plan stops TuneD's own helper",
        alternatives=(
            Alternative(
                "a program that keeps a socket with time stamps open",
                "TuneD realtime (rtentsk)",
                "covers one cause of many; a time service that runs all the time does the same",
            ),
        ),
    ),
)
