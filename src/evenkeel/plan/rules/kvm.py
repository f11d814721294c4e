"""Rules about the KVM modules: R-KVM-1, R-KVM-2 (a note).  Source: reference host-tuning §2.4."""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.plan import Note, Phase
from evenkeel.plan.rules.rule import ISOLATING, Context, Rule, Wanted, file_value, guests

_POLL_NS = 200_000  # KVM_HALT_POLL_NS_DEFAULT of x86, arch/x86/include/asm/kvm_host.h


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


def nx_note(context: Context) -> Iterable[Note]:
    if not context.pinned or context.facts.identity.architecture != "x86_64":
        return
    value = context.facts.settings.get("/sys/module/kvm/parameters/nx_huge_pages")
    multihit = context.facts.vulnerabilities.get("itlb_multihit")
    known = f"nx_huge_pages is {value}" if value else "nx_huge_pages is not known"
    known += f", itlb_multihit: {multihit}" if multihit else ""
    yield Note(
        rule="R-KVM-2",
        text=f"mitigations stay as the owner has them ({known}); no goal implies giving one up. Each guest brings a "
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
)
