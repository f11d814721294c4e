"""Rules about the KVM modules: R-KVM-1, R-KVM-3 to R-KVM-5.  R-KVM-2 is in :mod:`evenkeel.plan.rules.mitigations`.

Source: reference host-tuning §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.plan import Phase
from evenkeel.plan.rules.rule import (
    ISOLATING,
    ONLY_REALTIME,
    Alternative,
    Context,
    Rule,
    Wanted,
    file_value,
    guests,
    module_parameter,
)

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


_ADVANCE = (
    "KVM lets the timer interrupt of a guest begin early by as much as the way into the guest takes, and finds that "
    "out by itself for each vCPU"
)


def timer_advance(context: Context) -> Iterable[Wanted]:
    """A number until Linux 6.11, of which -1 means adaptive; since 6.12 a truth value, see R-KVM-4."""
    path = "/sys/module/kvm/parameters/lapic_timer_advance_ns"
    if path in context.facts.settings:
        yield file_value(context, path, "-1", f"{context.who(context.realtime)}; {_ADVANCE}", compare="integer")


def boot_parameters(context: Context) -> Iterable[Wanted]:
    """Parameters that can only be read while the module is loaded."""
    owns = context.who(context.realtime)
    for module, name, new, shown, why in (
        ("kvm", "kvmclock_periodic_sync", "0", "N", "every five minutes a worker would stop all vCPUs of a guest to "
         "bring their kvm-clocks together, which an invariant TSC keeps together anyway"),
        ("kvm", "lapic_timer_advance", "1", "Y", _ADVANCE),
        ("kvm", "enable_virt_at_load", "1", "Y", "switching virtualisation on at the first guest and off after the "
         "last one interrupts every CPU of the host"),
        ("kvm_intel", "ple_gap", "0", "0", "leaving a guest that spins on a lock helps only where its vCPUs share a "
         "CPU"),
        ("kvm_amd", "pause_filter_count", "0", "0", "leaving a guest that spins on a lock helps only where its vCPUs "
         "share a CPU"),
        ("kvm_intel", "preemption_timer", "1", "Y", "the processor's own timer ends the guest in time, and no timer "
         "of the host needs to interrupt"),
    ):  # fmt: skip
        yield from module_parameter(context, module, name, new, shown, f"{owns}; {why}")


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
        inputs=("architecture", "idle=poll among the arguments of a guest"),
        value="200000 ns, the kernel's default; 0 where a guest polls by itself",
        alternatives=(
            Alternative(
                "0",
                "seapath",
                "each wake-up then takes the way through the scheduler; KVM itself stops polling as soon as another "
                "task wants the CPU",
            ),
            Alternative(
                "polling in the guest in place of the host (haltpoll)",
                "SUSE guide for SAP HANA on KVM and TuneD sap-hana-kvm-guest (which contradict each other: "
                "guest_halt_poll_grow_start 24000000 against 2400000)",
                "needs a driver in the guest; both at once poll twice",
            ),
        ),
    ),
    Rule(
        id="R-KVM-3",
        subject="kvm",
        title="Timers of guests begin early, as KVM finds out",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="a vCPU waits busily for the last microsecond of its timer",
        verification="/sys/module/kvm/parameters/lapic_timer_advance_ns reads -1",
        source="measured: a number before 6.12, gone since (host-tuning R-KVM-3); StarlingX computes it by hand",
        compute=timer_advance,
        inputs=("/sys/module/kvm/parameters/lapic_timer_advance_ns, which kernels since 6.12 lack",),
        value="-1 (adaptive), where there is such a file",
        alternatives=(
            Alternative(
                "a number found by a calibration guest",
                "TuneD realtime-virtual-host, StarlingX",
                "KVM adapts by itself since 5.1, per vCPU and while it runs",
            ),
        ),
    ),
    Rule(
        id="R-KVM-4",
        subject="kvm",
        title="KVM modules for vCPUs with CPUs of their own",
        levels=ONLY_REALTIME,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="guests that share CPUs on the same host lose pause-loop exits, which help them when they are crowded",
        verification="/proc/cmdline; /sys/module/kvm/parameters, kvm_intel and kvm_amd",
        source="TuneD realtime-virtual-host; SUSE guide for SAP HANA on KVM; host-tuning R-KVM-4, R-KVM-3 (the "
        "parameter lapic_timer_advance is a truth value since 6.12)",
        compute=boot_parameters,
        inputs=("parameters of the modules kvm, kvm_intel, kvm_amd", "kernel command line"),
        value="kvmclock_periodic_sync=0, enable_virt_at_load=1, ple_gap=0, pause_filter_count=0, preemption_timer=1, "
        "lapic_timer_advance=1: those that the modules have and that are not so by themselves",
        alternatives=(
            Alternative(
                "options in /etc/modprobe.d",
                "TuneD, SUSE",
                "the same effect, but in the initramfs only after it is built anew; the command line has one owner",
            ),
        ),
    ),
    Rule(
        id="R-KVM-5",
        subject="kvm",
        title="KVM's threads for a guest on housekeeping CPUs",
        levels=ISOLATING,
        phase=Phase.GUEST,
        disturbance="live",
        when="report",
        risk="an emulated PIT that a guest really uses ticks late",
        verification="where the threads kvm-pit and kvm-nx-lpage-recovery of each guest run",
        source="kernel: arch/x86/kvm/i8254.c; measured on 6.12 (host-tuning R-KVM-2, R-KVM-5)",
        inputs=("threads of the guest's process",),
        value="done as a step of each guest after its start (GUEST/helpers): CPUs of the emulator, ordinary policy",
        alternatives=(
            Alternative(
                "kvm-pit on the CPU of vCPU 0, at FIFO 2",
                "KubeVirt",
                "only guests without any other timer use the PIT; on vCPU 0's CPU it would interrupt a vCPU",
            ),
        ),
    ),
)
