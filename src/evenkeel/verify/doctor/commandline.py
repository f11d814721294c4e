"""The kernel command line, read as the kernel reads it: also the forms of a CPU list that other tools misread.

:mod:`evenkeel.documents.cpuset` refuses those forms, because Evenkeel never writes them; somebody else may have.
Source: bitmap_parselist() in lib/bitmap-str.c, housekeeping_isolcpus_setup() in kernel/sched/isolation.c.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_REGION = re.compile(r"(all|\d+|N)(?:-(\d+|N))?(?::(\d+)/(\d+))?")
_FLAGS = frozenset({"nohz", "domain", "managed_irq"})

#: Parameters whose value is a CPU list.
CPU_LISTS = ("isolcpus", "nohz_full", "rcu_nocbs", "irqaffinity")
#: Parameters that somebody sets to make a host fast or steady; with a dot at the end: all of that module.
TUNING = (
    *CPU_LISTS,
    *("nohz", "rcu_nocb_poll", "skew_tick", "tsc", "clocksource", "nosoftlockup", "nowatchdog", "nmi_watchdog"),
    *("hugepages", "hugepagesz", "default_hugepagesz", "transparent_hugepage", "numa_balancing", "nosmt", "idle"),
    *("intel_iommu", "amd_iommu", "iommu", "intel_pstate", "amd_pstate", "mitigations", "mce", "audit", "threadirqs"),
    *("processor.", "intel_idle.", "rcutree.", "rcupdate.", "kvm.", "kvm_intel.", "kvm_amd.", "workqueue."),
)


@dataclass(frozen=True)
class Word:
    """One argument.  ``key``: with ``_`` for ``-``, which the kernel does not tell apart; ``value`` None: bare."""

    text: str
    key: str
    value: str | None


def words(line: str) -> tuple[Word, ...]:
    """The kernel's own arguments: what follows ``--`` is for init.  A value in quotes stays one word."""
    found = []
    for text in re.findall(r'(?:[^\s"]|"[^"]*")+', line):
        if text == "--":
            break
        key, equals, value = text.replace('"', "").partition("=")
        found.append(Word(text, key.replace("-", "_"), value if equals else None))
    return tuple(found)


def is_tuning(word: Word) -> bool:
    return any(word.key.startswith(key) if key.endswith(".") else word.key == key for key in TUNING)


def tuning(line: str) -> tuple[str, ...]:
    """The tuning arguments in their order, each as it is written."""
    return tuple(word.text for word in words(line) if is_tuning(word))


def values(line: str, key: str) -> tuple[str, ...]:
    return tuple(word.value or "" for word in words(line) if word.key == key)


def parse(text: str, last: int) -> frozenset[int]:
    """A CPU list as the kernel parses it; ``last``: the number that ``N`` stands for.  ValueError where it refuses."""
    cpus: set[int] = set()
    for region in text.split(","):
        match = _REGION.fullmatch(region.strip())
        if not match:
            raise ValueError(f"{region.strip()!r} is no CPU list")
        low, high, used, group = match.groups()
        if low == "all":
            first, end = 0, last
        else:
            first = last if low == "N" else int(low)
            end = first if high is None else last if high == "N" else int(high)
        if end < first or (group is not None and (int(group) == 0 or int(used) > int(group))):
            raise ValueError(f"{region.strip()!r} is no range")
        if end - first > 1 << 16:
            raise ValueError(f"{region.strip()!r} is beyond every kernel")
        cpus.update(cpu for cpu in range(first, end + 1) if group is None or (cpu - first) % int(group) < int(used))
    return frozenset(cpus)


def isolcpus(value: str) -> tuple[frozenset[str], str]:
    """``"managed_irq,domain,2-3"`` -> its flags and ``"2-3"``.  No flag means domain."""
    flags: set[str] = set()
    rest = value.split(",")
    while rest and rest[0] in _FLAGS:
        flags.add(rest.pop(0))
    return frozenset(flags or {"domain"}), ",".join(rest)


def strange(text: str) -> str | None:
    """Why another tool may misread this list; None: it is plain."""
    if re.search(r"\ball\b", text):
        return "'all' is known to the kernel only, since 5.8"
    if "N" in text:
        return "N, for the last CPU, is known to the kernel only"
    if ":" in text:
        return "a stride (a-b:used/group) is known to the kernel only"
    return None
