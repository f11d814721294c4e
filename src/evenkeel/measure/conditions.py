"""What a measurement is bound to, from the facts of the host.  Pure."""

from __future__ import annotations

from evenkeel.documents.evidence import Conditions
from evenkeel.documents.facts import Facts


def conditions(
    facts: Facts,
    *,
    load: str,
    plan_sha256: str | None = None,
    dma_latency_holders: tuple[str, ...] | None = None,
    guest_dma_latency_holders: dict[str, tuple[str, ...]] | None = None,
) -> Conditions:
    """Kernel, firmware, hypervisor, programs: another one of any of these makes another measurement necessary."""
    identity = facts.identity
    firmware = (identity.firmware_vendor, identity.firmware_version, identity.firmware_date)
    return Conditions(
        kernel=" ".join(part for part in (facts.kernel.release, facts.kernel.version) if part),
        preempt_rt=facts.kernel.preempt_rt,
        command_line=facts.kernel.command_line,
        firmware=" ".join(part for part in firmware if part) or None,
        cpu_model=next((cpu.model for cpu in facts.cpus if cpu.model), None),
        hypervisor=identity.hypervisor,
        qemu=facts.programs.get("qemu"),
        libvirt=facts.programs.get("libvirt"),
        emulated=identity.emulated,
        clocksource=facts.clocksource,
        plan_sha256=plan_sha256,
        facts_sha256=facts.sha256(),
        load=load,
        dma_latency_holders=dma_latency_holders,
        guest_dma_latency_holders=guest_dma_latency_holders,
    )
