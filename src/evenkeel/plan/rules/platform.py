"""Rules about the machine below the kernel: H-MCE, H-SMT, H-IOMMU, R-SMI, R-SVC.

What the firmware decides is reported and never touched.  Source: reference host-tuning §2.3, §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import Note, Phase, UnitState
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

#: Services that ask the hardware by themselves, and what they are for: stopping one hides what it would tell.
_POLLERS = {
    "ipmievd": "the event log of the management controller",
    "ipmiseld": "the event log of the management controller",
    "mcelog": "machine checks",
    "smartd": "the health of the disks",
}


def corrected_errors(context: Context) -> Iterable[Wanted]:
    if context.facts.identity.architecture != "x86_64":
        return
    yield file_value(
        context,
        "/sys/devices/system/machinecheck/machinecheck0/ignore_ce",
        "1",
        f"{context.who(context.realtime)}; every five minutes a timer on each CPU looks for corrected errors, and each "
        "such error interrupts",
        compare="integer",
    )


def no_smt(context: Context) -> Iterable[Wanted]:
    if context.facts.smt not in ("on", "off", "forceoff"):
        return
    idle = format_cpus(frozenset(cpu for placement in context.realtime for cpu in placement.idle))
    yield boot_argument(
        context,
        "nosmt",
        "",
        f"siblings of real-time vCPUs are kept empty already ({idle or 'none here'}); with nosmt they are gone, the "
        "other cores' too, and the plan must be made anew from the facts after the reboot",
        inputs={"smt": context.facts.smt},
        on_request=True,
    )


def iommu(context: Context) -> Iterable[Wanted]:
    """By default where a guest gets a function or vfio-pci has one already; else when the owner asks."""
    if context.facts.identity.architecture != "x86_64":
        return
    given = {address for placement in context.placements for address in placement.passed.functions}
    passed = sorted(given | {device.address for device in context.facts.pci if device.driver == "vfio-pci"})
    intel = "kvm_intel" in context.facts.kvm_parameters
    where = f"{', '.join(passed[:4])} passed through" if passed else "no device is passed through now"
    if intel:
        yield boot_argument(
            context,
            "intel_iommu",
            "on",
            f"{where}; many kernels leave the IOMMU of Intel off, and without it no function can be passed through",
            inputs={"passed through": ", ".join(passed) or "none"},
            suffix="intel_iommu",
            on_request=not passed,
        )
    yield boot_argument(
        context,
        "iommu",
        "pt",
        f"{where}; the host's own devices need no translation, which saves work at each transfer",
        inputs={"passed through": ", ".join(passed) or "none"},
        suffix="iommu",
        on_request=not passed,
    )


def iommu_note(context: Context) -> Iterable[Note]:
    group_of = {pci.address: pci.iommu_group for pci in context.facts.pci}
    for placement in context.placements:
        alone = [address for address in placement.passed.functions if group_of.get(address) is None]
        if alone:
            yield Note(
                rule="H-IOMMU",
                text=f"{', '.join(alone)} of guest {placement.name} {'is' if len(alone) == 1 else 'are'} in no IOMMU "
                "group: the IOMMU is off, and libvirt will not start the guest. Switch it on (this rule, and VT-d or "
                "AMD-Vi in the firmware), then read the facts and plan again: only then is it known which functions go "
                "together",
            )


def smi_note(context: Context) -> Iterable[Note]:
    if context.facts.identity.hypervisor != "none":
        return
    tracer = context.facts.kernel.config.get("HWLAT_TRACER")
    how = {
        "y": "the hwlat tracer, which this kernel has, shows them: echo hwlat > /sys/kernel/tracing/current_tracer",
        "n": "this kernel has no hwlat tracer (CONFIG_HWLAT_TRACER) to show them",
    }.get(tracer or "", "the hwlat tracer shows them, where the kernel has it (CONFIG_HWLAT_TRACER)")
    yield Note(
        rule="R-SMI",
        text="system management interrupts stop every CPU for as long as the firmware likes, and no setting of the "
        f"kernel prevents them; {how}. Power capping, legacy USB and memory scrubbing by the firmware are the usual "
        "causes.",
    )


def firmware_updates(context: Context) -> Iterable[Wanted]:
    evidence = context.facts.services.get("fwupd-refresh.timer")
    if evidence is None:
        return
    masked = evidence.endswith(": masked")
    yield Wanted(
        target=UnitState(unit="fwupd-refresh.timer"),
        old="stopped" if masked else "running",
        new="stopped",
        reason="asking the firmware for its versions raises system management interrupts, which stop every CPU, "
        f"{context.who(context.realtime)} ({evidence})",
        inputs={"fwupd-refresh.timer": evidence},
        suffix="fwupd-refresh",
        status="satisfied" if masked else "change",
    )


def pollers_note(context: Context) -> Iterable[Note]:
    found = [name for name in sorted(_POLLERS) if name in context.facts.services]
    if found:
        told = ", ".join(f"{name} ({_POLLERS[name]}; {context.facts.services[name]})" for name in found)
        yield Note(
            rule="R-SVC",
            text=f"asks the hardware now and then, which may raise a system management interrupt: {told}. Not stopped, "
            "since no goal implies hiding what it tells; lengthen its interval, or stop it in a service window.",
        )


RULES = (
    Rule(
        id="H-MCE",
        subject="platform",
        title="No search for corrected memory errors",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="a memory module that begins to fail is noticed by nobody until it fails",
        verification="/sys/devices/system/machinecheck/machinecheck0/ignore_ce",
        source="kernel: arch/x86/x86_64/machinecheck.rst, boot-options mce=ignore_ce; TuneD; host-tuning H-MCE",
        compute=corrected_errors,
        inputs=("architecture", "consent"),
        value="left alone; 1 with the consent",
        alternatives=(
            Alternative("ignore_ce=1 for every real-time host", "TuneD realtime-virtual-host", "hides hardware errors"),
            Alternative(
                "mce=off",
                "cluster-node-tuning-operator",
                "hides uncorrected errors too: the host goes on with wrong data. Not offered",
            ),
        ),
        consent="ignore-corrected-memory-errors",
        brings="no timer every five minutes and no interrupt for an error that was corrected",
    ),
    Rule(
        id="H-SMT",
        subject="platform",
        title="SMT stays on, siblings of real-time vCPUs stay empty",
        levels=ISOLATING,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="nosmt halves the CPUs of the whole host, and the plan must be made anew after the reboot",
        verification="/sys/devices/system/cpu/smt/active",
        source="kernel: admin-guide/kernel-parameters.txt nosmt; measured: CPUs keep their numbers (host-tuning H-SMT)",
        compute=no_smt,
        inputs=("/sys/devices/system/cpu/smt/control", "override"),
        value="left alone; on request nosmt",
        alternatives=(
            Alternative(
                "SMT off",
                "documentation of OpenStack Nova, libvirt's real-time guide",
                "an empty sibling disturbs as little, and the other cores keep both threads",
            ),
            Alternative(
                "both threads for every guest",
                "SUSE guide for SAP HANA on KVM",
                "right for throughput, and what performance does; the other thread would disturb a real-time vCPU",
            ),
        ),
    ),
    Rule(
        id="H-IOMMU",
        subject="platform",
        title="IOMMU for devices that are passed through",
        levels=ISOLATING,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="with iommu=pt the host's own devices reach all memory, as they do without an IOMMU",
        verification="/proc/cmdline; /sys/kernel/iommu_groups is not empty",
        source="kernel: admin-guide/kernel-parameters.txt intel_iommu, iommu; SUSE guide for SAP HANA on KVM; "
        "host-tuning H-IOMMU",
        compute=iommu,
        note=iommu_note,
        inputs=("architecture", "functions of guests", "devices bound to vfio-pci", "module kvm_intel", "override"),
        value="intel_iommu=on (Intel) and iommu=pt where a guest or vfio-pci has a function; else on request",
        alternatives=(
            Alternative(
                "intremap=no_x2apic_optout",
                "cluster-node-tuning-operator",
                "overrules firmware that asks for xAPIC for a reason; only hosts with more than 255 CPUs need it, and "
                "the kernel says so there",
            ),
            Alternative("no iommu=pt", "kernel default", "each transfer of the host's own devices is translated"),
        ),
    ),
    Rule(
        id="R-SVC",
        subject="platform",
        title="No question to the firmware by itself",
        levels=ONLY_REALTIME,
        phase=Phase.MEMORY,
        disturbance="live",
        when="runtime",
        risk="new firmware is not announced; ask by hand in a service window (fwupdmgr refresh)",
        verification="unit state of fwupd-refresh.timer",
        source="cluster-node-tuning-operator (stops fwupd-refresh.timer for its interrupts); host-tuning R-SVC",
        compute=firmware_updates,
        note=pollers_note,
        inputs=("services that run or start at boot",),
        value="fwupd-refresh.timer stopped; smartd, mcelog and IPMI event daemons are only noted",
        alternatives=(
            Alternative(
                "smartd, mcelog and IPMI polling stopped too",
                "host-tuning R-SVC, for service windows",
                "they tell of failing hardware; the owner decides",
            ),
        ),
    ),
    Rule(
        id="R-SMI",
        subject="platform",
        title="System management interrupts",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="report",
        risk="what the firmware takes is in no statistic of the kernel",
        verification="the hwlat tracer; turbostat, column SMI",
        source="kernel: trace/hwlat_detector.rst; documentation of OpenStack Nova; host-tuning R-SMI",
        note=smi_note,
        inputs=("hypervisor", "CONFIG_HWLAT_TRACER"),
        value="cannot be set from here; noted on bare metal",
    ),
)
