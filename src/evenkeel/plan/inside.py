"""What the inside of a guest needs, so that its own kernel does not undo what the host keeps away from it.  Pure.

Nobody reaches into a guest: what is booted directly gets its arguments through the definition (:mod:`.guest`), all else
is the guest's owner's to do, and is given to him as a list (the rules of subject ``inside``) and as user data for
cloud-init.  Source: reference host-tuning §2.7; TuneD realtime-virtual-guest.
"""

from __future__ import annotations

from dataclasses import dataclass

from evenkeel.documents.cpuset import format_cpus
from evenkeel.plan.placement import KERNEL_PRIORITY, Placement, realtime_vcpus


@dataclass(frozen=True)
class Value:
    """One value in a file of the guest.  ``reason``: half a sentence."""

    path: str
    value: str
    reason: str

    @property
    def key(self) -> str:
        """As sysctl names it, where it is one."""
        return self.path.removeprefix("/proc/sys/").replace("/", ".") if self.sysctl else self.path

    @property
    def sysctl(self) -> bool:
        return self.path.startswith("/proc/sys/")


def arguments(placement: Placement) -> tuple[str, ...]:
    """Arguments of the guest's kernel: the same isolation inside.  Empty for one that has no vCPU for its own house."""
    wish = placement.wish
    fifo = realtime_vcpus(wish)
    house = frozenset(range(wish.vcpus)) - fifo
    if wish.goal != "realtime" or not house:
        return ()
    cpus, own = format_cpus(fifo), format_cpus(house)
    wanted = [
        f"isolcpus=managed_irq,domain,{cpus}",
        f"nohz_full={cpus}",
        f"rcu_nocbs={cpus}",
        f"irqaffinity={own}",
        f"rcutree.kthread_prio={KERNEL_PRIORITY}",
        "skew_tick=1",
        "nosoftlockup",
    ]
    if wish.architecture == "x86_64":
        wanted.append("tsc=nowatchdog")
    return tuple(wanted)


def values(placement: Placement) -> tuple[Value, ...]:
    """Settings inside a realtime guest.  A file that its kernel lacks on purpose (PREEMPT_RT) is as good as set."""
    if placement.goal != "realtime":
        return ()
    found = [
        Value("/proc/sys/vm/stat_interval", "10", "each sum of statistics interrupts every vCPU"),
        Value("/proc/sys/vm/compaction_proactiveness", "0", "nothing moves pages behind a real-time task"),
        Value("/sys/kernel/mm/transparent_hugepage/enabled", "never", "nor gathers them into larger ones"),
        Value("/sys/kernel/mm/ksm/run", "0", "nor merges them"),
    ]
    if placement.wish.trust == "yields":
        found.insert(
            0,
            Value("/proc/sys/kernel/sched_rt_runtime_us", "-1", "its real-time tasks go idle by themselves (trust)"),
        )
    return tuple(found)


def fair_server(placement: Placement) -> bool:
    """Whether the guest's own fair server is in the way, as on the host: a guest that yields, and the last 50 us."""
    return placement.strict and placement.wish.trust == "yields"


def modules(placement: Placement) -> tuple[str, ...]:
    """Modules to load: a vCPU that polls a moment before it halts saves the way out to the host and back.

    The driver wants the hint of a dedicated CPU (haltpoll_want() in drivers/cpuidle/cpuidle-haltpoll.c), which the
    definition of a pinned guest gives; it asks the host not to poll as well.  A realtime guest's own choice is
    idle=poll or sleep, so it is left alone.
    """
    x86 = placement.wish.architecture == "x86_64"
    return ("cpuidle-haltpoll",) if placement.goal == "performance" and x86 else ()


def cloud_config(placement: Placement) -> str:
    """User data for cloud-init in a Linux guest that boots from a disk, with GRUB; "" where there is nothing to say."""
    wish = placement.wish
    if not wish.disks:
        return ""
    files: list[tuple[str, list[str]]] = []
    line = " ".join(arguments(placement)) if wish.boot is None else ""
    if line:
        add = f'GRUB_CMDLINE_LINUX_DEFAULT="$GRUB_CMDLINE_LINUX_DEFAULT {line}"'
        files.append(("/etc/default/grub.d/60-evenkeel.cfg", [add]))
    wanted = values(placement)
    # sysctl.d(5): a leading minus means that a key which this kernel lacks is no error.
    sysctls = [f"-{value.key} = {value.value}" for value in wanted if value.sysctl]
    if sysctls:
        files.append(("/etc/sysctl.d/60-evenkeel.conf", sysctls))
    writes = [f"w {value.path} - - - - {value.value}" for value in wanted if not value.sysctl]
    if writes:
        files.append(("/etc/tmpfiles.d/60-evenkeel.conf", writes))
    if modules(placement):
        files.append(("/etc/modules-load.d/60-evenkeel.conf", list(modules(placement))))
    if not files:
        return ""
    text = [
        "#cloud-config",
        f"# For the inside of guest {placement.name}: Linux, booted with GRUB (Debian, Ubuntu). Its owner gives it to",
        "# cloud-init as user data; Evenkeel itself does not reach into a guest.",
        "write_files:",
    ]
    for path, lines in files:
        text += [f"  - path: {path}", "    content: |", *(f"      {one}" for one in lines)]
    if line:
        text += ["runcmd:", "  - [update-grub]", "power_state:", "  mode: reboot"]
    else:
        text += ["runcmd:", "  - [systemctl, restart, systemd-sysctl, systemd-modules-load]"]
        text += ["  - [systemd-tmpfiles, --create, /etc/tmpfiles.d/60-evenkeel.conf]"] if writes else []
    return "\n".join(text) + "\n"
