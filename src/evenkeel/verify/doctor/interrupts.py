"""Ailments of device interrupts: where they are directed, and those that nobody can direct.

Source: reference host-tuning R-IRQ-1, R-IRQ-2; Documentation/core-api/irq/irq-affinity.rst.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.verify.doctor.ailment import Ailment, Blind, Symptom, item
from evenkeel.verify.doctor.patient import Patient


def _directed(patient: Patient) -> Iterable[Symptom] | Blind:
    if not patient.isolated:
        return []
    if not patient.facts.interrupts:
        return Blind("the facts have no interrupts (a recorded tree without /proc/irq?)")
    firing, allowed = [], []
    for interrupt in patient.facts.interrupts:
        if interrupt.managed or not interrupt.action:
            continue
        # Where it fires changes at the next interrupt only: the old place alone is no finding.
        if interrupt.effective & interrupt.affinity & patient.isolated:
            firing.append(interrupt)
        elif not interrupt.effective and interrupt.affinity & patient.isolated:
            allowed.append(interrupt)
    found = []
    if firing:
        names = ", ".join(f"{one.action} ({one.number}) to {format_cpus(one.effective)}" for one in firing[:6])
        more = f" and {len(firing) - 6} more" if len(firing) > 6 else ""
        evidence = [
            item(f"/proc/irq/{one.number}/effective_affinity_list", format_cpus(one.effective)) for one in firing
        ]
        found.append(Symptom(f"interrupts go to isolated CPUs: {names}{more}", tuple(evidence)))
    if allowed:
        names = ", ".join(f"{one.action} ({one.number})" for one in allowed[:6])
        more = f" and {len(allowed) - 6} more" if len(allowed) > 6 else ""
        evidence = [item(f"/proc/irq/{one.number}/smp_affinity_list", format_cpus(one.affinity)) for one in allowed]
        found.append(Symptom(f"interrupts may go to isolated CPUs: {names}{more}", tuple(evidence), severity="warning"))
    return found


def _managed(patient: Patient) -> Iterable[Symptom]:
    """A managed vector whose every CPU is isolated: managed_irq has nowhere else to send it."""
    bound = [
        interrupt
        for interrupt in patient.facts.interrupts
        if interrupt.managed and interrupt.action and interrupt.affinity and interrupt.affinity <= patient.isolated
    ]
    if bound:
        names = ", ".join(f"{one.action} on {format_cpus(one.affinity)}" for one in bound[:6])
        more = f" and {len(bound) - 6} more" if len(bound) > 6 else ""
        queues = {
            f"/sys/class/block/{disk.name}/mq": disk.queues
            for disk in patient.facts.blocks
            if disk.queues and set(disk.interrupts) & {one.action for one in bound}
        }
        evidence = [item(f"/proc/irq/{one.number}/smp_affinity_list", format_cpus(one.affinity)) for one in bound]
        evidence += [item(path, f"{count} queues, {len(patient.online)} CPUs") for path, count in queues.items()]
        yield Symptom(f"managed interrupts have isolated CPUs only: {names}{more}", tuple(evidence))


AILMENTS = (
    Ailment(
        "D-IRQ-ISOLATED",
        "interrupt",
        "harmful",
        "No interrupt that can be moved is directed at an isolated CPU",
        "each one takes the CPU away from the vCPU for as long as the driver likes",
        "write the housekeeping CPUs into its smp_affinity_list; if it comes back, a driver or irqbalance sets it when "
        "the link comes up or a CPU is plugged",
        "host-tuning R-IRQ-1 (measured)",
        _directed,
        needs=("command line", "interrupts"),
    ),
    Ailment(
        "D-IRQ-MANAGED",
        "interrupt",
        "warning",
        "Devices with managed interrupts have fewer queues than there are CPUs",
        "with as many queues as CPUs each vector has one CPU, isolcpus=managed_irq can do nothing, and the kernel "
        "refuses a write (EPERM since 6.12, EIO before): I/O that is started on an isolated CPU interrupts it",
        "give the device at most as many queues as there are housekeeping CPUs, and start no I/O from isolated CPUs",
        "host-tuning R-IRQ-2 (measured)",
        _managed,
        needs=("command line", "interrupts"),
    ),
)
