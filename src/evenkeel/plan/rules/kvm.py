"""Rules about the KVM modules: R-KVM-1, R-KVM-2 (and a note).  Source: reference host-tuning §2.4."""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.plan import Note, Phase
from evenkeel.plan.rules.rule import ISOLATING, Alternative, Context, Rule, Wanted, file_value, guests

_POLL_NS = 200_000  # KVM_HALT_POLL_NS_DEFAULT of x86, arch/x86/include/asm/kvm_host.h
_NX = "/sys/module/kvm/parameters/nx_huge_pages"


def polls_idle(arguments: str) -> bool:
    """Whether a guest kernel with these arguments never halts its CPU."""
    return "idle=poll" in arguments.split()


def halt_poll(context: Context) -> Iterable[Wanted]:
    if context.facts.identity.architecture != "x86_64":
        return  # the default differs by architecture and is left alone there
    polling = [
        placement for placement in context.pinned if placement.wish.boot and polls_idle(placement.wish.boot.arguments)
    ]
    if polling:
        new = "0"
        reason = (
            f"{guests(polling)} kernel polls by itself when idle (idle=poll), so the host need not poll again for it"
        )
    else:
        new = str(_POLL_NS)
        reason = (
            f"{context.who()}: they have their CPUs to themselves, so the host may poll 200 us for the next event "
            "before it sleeps, which saves the wake-up; this is the kernel's default"
        )
    yield file_value(
        context,
        "/sys/module/kvm/parameters/halt_poll_ns",
        new,
        reason,
        compare="integer",
        inputs={"guests that poll": ", ".join(placement.name for placement in polling) or "none"},
    )


def nx_huge_pages(context: Context) -> Iterable[Wanted]:
    """Only with the owner's consent.  The kernel's ``auto`` is off by itself on a CPU without the erratum."""
    if context.facts.identity.architecture != "x86_64":
        return
    yield file_value(
        context,
        _NX,
        "N",
        f"{context.who()}; with Y the kernel breaks a huge page that a guest executes from into small ones",
        inputs={"itlb_multihit": context.facts.vulnerabilities.get("itlb_multihit", "unknown")},
    )


def nx_note(context: Context) -> Iterable[Note]:
    if not context.pinned or context.facts.identity.architecture != "x86_64":
        return
    value = context.facts.settings.get(_NX)
    multihit = context.facts.vulnerabilities.get("itlb_multihit")
    known = f"nx_huge_pages is {value}" if value else "nx_huge_pages is not known"
    known += f", itlb_multihit: {multihit}" if multihit else ""
    yield Note(
        rule="R-KVM-2",
        text=f"mitigations are the owner's ({known}); no goal implies giving one up. Each guest brings a "
        "thread kvm-nx-lpage-recovery, which inherits policy and CPU of its last vCPU (measured on 6.12), so it is "
        "moved to housekeeping after the start, and verification looks where it is.",
    )


RULES = (
    Rule(
        id="R-KVM-1",
        subject="kvm",
        title="How long KVM polls for a halted vCPU",
        levels=ISOLATING,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="polling takes power, and CPU time on CPUs that are shared; guests that run already keep their value",
        verification="/sys/module/kvm/parameters/halt_poll_ns",
        source="kernel: virt/kvm/halt-polling.rst; seapath sets 0; host-tuning R-KVM-1",
        compute=halt_poll,
    ),
    Rule(
        id="R-KVM-2",
        subject="kvm",
        title="Huge pages that guests may execute from",
        levels=ISOLATING,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="on a CPU with the iTLB multihit erratum a malicious guest can stop the whole host (CVE-2018-12207)",
        verification="/sys/module/kvm/parameters/nx_huge_pages; where the threads kvm-nx-lpage-recovery run",
        source="kernel: admin-guide/hw-vuln/multihit.rst; SUSE guide for SAP HANA on KVM; TuneD; host-tuning H-MIT, "
        "R-KVM-2",
        compute=nx_huge_pages,
        note=nx_note,
        inputs=("architecture", "/sys/module/kvm/parameters/nx_huge_pages", "vulnerability itlb_multihit", "consent"),
        value="left alone; N with the consent",
        alternatives=(
            Alternative(
                "off everywhere",
                "TuneD realtime-virtual-host, SUSE guide for SAP HANA on KVM",
                "a goal must not weaken the host against its guests; CPUs without the erratum have it off anyway",
            ),
        ),
        consent="mitigations-off:itlb-multihit",
        brings="guest memory that holds code stays in huge pages, and no worker splits and restores them",
    ),
)
