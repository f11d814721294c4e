"""Rules about mitigations of processor faults: H-MIT, H-MIT-1, H-MIT-2, R-KVM-2.

No goal implies giving one up: each is left as the owner has it until he consents to it by name.  ``mitigations=off``,
which gives up all of them at once, is not offered.  Source: reference host-tuning §2.3, §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.plan import Note, Phase
from evenkeel.plan.order import boot_value
from evenkeel.plan.rules.rule import (
    ISOLATING,
    Alternative,
    Context,
    Rule,
    Wanted,
    boot_argument,
    file_value,
)

_NX = "/sys/module/kvm/parameters/nx_huge_pages"
_L1D = "/sys/module/kvm_intel/parameters/vmentry_l1d_flush"


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
        text=f"mitigations are the owner's ({known}); no goal implies giving one up. Each guest brings a thread "
        "kvm-nx-lpage-recovery, which inherits policy and CPU of its last vCPU (measured on 6.12), so it is moved to "
        "housekeeping after the start, and verification looks where it is.",
    )


def l1d_flush(context: Context) -> Iterable[Wanted]:
    """Only with consent, and only where the kernel flushes: the file reads ``not required`` on a CPU without L1TF."""
    if context.facts.settings.get(_L1D) not in ("cond", "always", "never"):
        return
    yield file_value(
        context,
        _L1D,
        "never",
        f"{context.who()}; every entry into a guest that might follow foreign code empties the L1 data cache",
        inputs={"l1tf": context.facts.vulnerabilities.get("l1tf", "unknown")},
    )


def transactional_memory(context: Context) -> Iterable[Wanted]:
    """Only with consent.  The kernel itself says what it does against TAA; ``TSX disabled`` leaves nothing to gain."""
    state = context.facts.vulnerabilities.get("tsx_async_abort", "")
    there = boot_value(context.facts.kernel.command_line, "tsx") == "off"
    if "Clear CPU buffers" not in state and not state.startswith("Vulnerable") and not there:
        return
    yield boot_argument(
        context,
        "tsx",
        "off",
        f"{context.who()}; without TSX the kernel need not clear CPU buffers against TAA on the way to a guest",
        inputs={"tsx_async_abort": state or "unknown"},
    )


def all_off(context: Context) -> Iterable[Note]:
    words = context.facts.kernel.command_line.split()
    if "mitigations=off" in words:
        yield Note(
            rule="H-MIT",
            text="the command line says mitigations=off: every guest can read the memory of the host and of the other "
            "guests on a CPU with such faults. This plan does not need it and does not touch it.",
        )


RULES = (
    Rule(
        id="R-KVM-2",
        subject="mitigations",
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
    Rule(
        id="H-MIT-1",
        subject="mitigations",
        title="The L1 data cache is not flushed before a guest runs",
        levels=ISOLATING,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="on a CPU with L1TF a malicious guest can read what its core had in the L1 cache (CVE-2018-3646)",
        verification="/sys/module/kvm_intel/parameters/vmentry_l1d_flush; /sys/devices/system/cpu/vulnerabilities/l1tf",
        source="kernel: admin-guide/hw-vuln/l1tf.rst; host-tuning H-MIT",
        compute=l1d_flush,
        inputs=("/sys/module/kvm_intel/parameters/vmentry_l1d_flush", "vulnerability l1tf", "consent"),
        value="left alone; never with the consent",
        alternatives=(
            Alternative(
                "never",
                "host-tuning H-MIT, for hosts whose guests are all trusted",
                "whether a guest can be trusted is the owner's knowledge, not a consequence of its deadline",
            ),
        ),
        consent="mitigations-off:l1tf",
        brings="an entry into a guest finds its L1 cache as it left it",
    ),
    Rule(
        id="H-MIT-2",
        subject="mitigations",
        title="No transactional memory (TSX)",
        levels=ISOLATING,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="programs of host and guests lose TSX, databases among them; a guest that was started with it cannot be "
        "migrated here",
        verification="/proc/cmdline; /sys/devices/system/cpu/vulnerabilities/tsx_async_abort reads Mitigation: TSX "
        "disabled",
        source="kernel: admin-guide/hw-vuln/tsx_async_abort.rst; SUSE guide for SAP HANA on KVM; host-tuning H-MIT",
        compute=transactional_memory,
        inputs=("vulnerability tsx_async_abort", "kernel command line", "consent"),
        value="left alone; tsx=off with the consent",
        alternatives=(
            Alternative(
                "tsx_async_abort=off",
                "those who need TSX and trust every guest",
                "leaves the fault open to every guest; switching TSX off closes it and costs nothing at each exit",
            ),
        ),
        consent="no-transactional-memory",
        brings="buffers are no longer cleared against TAA at each return to a guest",
    ),
    Rule(
        id="H-MIT",
        subject="mitigations",
        title="Mitigations stay as the owner has them",
        levels=ISOLATING,
        phase=Phase.KERNEL,
        disturbance="live",
        when="report",
        risk="mitigations cost time at each exit from a guest; the measurement includes it",
        verification="/sys/devices/system/cpu/vulnerabilities",
        source="kernel: admin-guide/hw-vuln, admin-guide/kernel-parameters.txt mitigations=; host-tuning H-MIT",
        note=all_off,
        inputs=("kernel command line",),
        value="left alone; noted where all of them are off",
        alternatives=(
            Alternative(
                "mitigations=off",
                "guides that want it simple",
                "gives up all at once; only iTLB multihit and TAA had a visible cost on hosts for SAP HANA (SUSE), and "
                "each has a consent of its own",
            ),
        ),
    ),
)
