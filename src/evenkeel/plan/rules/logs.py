"""Rules about what the kernel writes down: H-AUD (audit), H-CON (console), H-LINT.

Source: reference host-tuning §2.3.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evenkeel.documents.plan import Phase
from evenkeel.plan.rules.rule import ALL, ONLY_REALTIME, Alternative, Context, Rule, Wanted, boot_argument, file_value

_PRINTK = "/proc/sys/kernel/printk"
#: Consoles that send a character at a time at the speed of a line, or through a hypervisor.
_SLOW = re.compile(r"(?:^|\s)console=((?:tty(?:S|AMA|USB)|hvc|uart)\w*)")
_LEVEL = "3"  # worse than an error: KERN_CRIT and up, include/linux/kern_levels.h


def audit(context: Context) -> Iterable[Wanted]:
    yield boot_argument(
        context,
        "audit",
        "0",
        f"{context.who(context.realtime)}; audit hooks run at each system call, QEMU's among them, and wake kauditd",
    )


def console(context: Context) -> Iterable[Wanted]:
    """Only the level of the console changes; the other three numbers stay as they are."""
    slow = _SLOW.search(context.facts.kernel.command_line)
    now = context.facts.settings.get(_PRINTK, "").split()
    if not slow or len(now) != 4 or not now[0].isdecimal():
        return
    level = str(min(int(now[0]), int(_LEVEL)))
    yield file_value(
        context,
        _PRINTK,
        " ".join([level, *now[1:]]),
        f"the console is {slow[1]}, and whoever prints a line to it waits for it, milliseconds at times, with "
        "interrupts off on many kernels; the log keeps every line (dmesg, journal)",
        compare="words",
        inputs={"console": slow[1]},
    )


RULES = (
    Rule(
        id="H-AUD",
        subject="logs",
        title="No audit records",
        levels=ONLY_REALTIME,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="who did what on this host is no longer recorded, which rules of compliance may demand",
        verification="/proc/cmdline; auditctl -s says enabled 0",
        source="kernel: admin-guide/kernel-parameters.txt audit=; host-tuning H-AUD",
        compute=audit,
        inputs=("kernel command line", "consent"),
        value="left alone; audit=0 with the consent",
        alternatives=(
            Alternative("audit=0", "host-tuning H-AUD", "takes evidence of an attack away; the owner decides"),
        ),
        consent="no-audit",
        brings="system calls of QEMU without audit hooks, and no kauditd that wakes",
    ),
    Rule(
        id="H-CON",
        subject="logs",
        title="Few lines on a slow console",
        levels=ONLY_REALTIME,
        phase=Phase.KERNEL,
        disturbance="live",
        when="runtime",
        risk="warnings no longer show on the serial console; they are in the log",
        verification="/proc/sys/kernel/printk, first number",
        source="kernel: core-api/printk-basics.rst; seapath (printk=3 1 1 7); host-tuning H-AUD",
        compute=console,
        inputs=("console= on the command line", "/proc/sys/kernel/printk"),
        value="first number at most 3, where the console is a serial line or a hypervisor's",
        alternatives=(
            Alternative("printk=3 1 1 7", "seapath", "would also make every line without a level an alert"),
            Alternative("quiet", "distributions", "level 4: errors still go to the line, and only from the next boot"),
        ),
    ),
    Rule(
        id="H-LINT",
        subject="logs",
        title="Arguments that this kernel did not know",
        levels=ALL,
        phase=Phase.KERNEL,
        disturbance="live",
        when="report",
        risk="a setting that looks as if it were in force and is not",
        verification='dmesg: Unknown kernel command line parameters "..."; the boot gate refuses one of ours',
        source="measured, host-tuning H-LINT (kthread_cpus is known to some distributions only)",
        inputs=("dmesg", "boot arguments of the plan"),
        value="noted, argument by argument",
    ),
)
