"""Ailments of CPU isolation: which CPUs are set apart, by what means, and whether the means agree.

Source: reference host-tuning §2.1 (S1, S6), §2.3, §2.5; Documentation/admin-guide/cpu-isolation.rst.
"""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Partition
from evenkeel.documents.findings import EvidenceItem
from evenkeel.probe.facts.cpulist import parse_mask
from evenkeel.verify.doctor import commandline
from evenkeel.verify.doctor.ailment import Ailment, Blind, Severity, Symptom, item
from evenkeel.verify.doctor.patient import Patient

_SYSTEM = "/sys/devices/system/cpu"
_WORKQUEUE = "/sys/devices/virtual/workqueue"


def _sets(patient: Patient) -> tuple[EvidenceItem, ...]:
    """What isolates CPUs on this host, each with its source."""
    found = [
        item(f"/proc/cmdline: {key}", value)
        for key in ("isolcpus", "nohz_full")
        for value in commandline.values(patient.line, key)
    ]
    found += [
        item(
            f"/sys/fs/cgroup{one.path}/cpuset.cpus.partition",
            f"{one.state}, CPU {format_cpus(one.effective or one.exclusive or one.cpus)}",
        )
        for one in _used(patient)
    ]
    return tuple(found)


def _used(patient: Patient) -> list[Partition]:
    return [one for one in patient.facts.partitions if one.state != "member"]


def _shared_core(patient: Patient) -> Iterable[Symptom]:
    split = sorted(
        {
            tuple(sorted(core))
            for cpu in patient.isolated
            if (core := patient.siblings.get(cpu, frozenset())) - patient.isolated
        }
    )
    if split:
        cores = ", ".join(
            f"{format_cpus(set(core) & patient.isolated)} with {format_cpus(set(core) - patient.isolated)}"
            for core in split[:8]
        )
        more = f" and {len(split) - 8} more" if len(split) > 8 else ""
        evidence = [
            item(f"{_SYSTEM}/cpu{core[0]}/topology/thread_siblings_list", format_cpus(core)) for core in split[:8]
        ]
        yield Symptom(f"isolated CPUs share a core with housekeeping: {cores}{more}", (*evidence, *_sets(patient)))


def _irqaffinity(patient: Patient) -> Iterable[Symptom]:
    given = commandline.values(patient.line, "irqaffinity")
    if given:
        both = patient.asked("irqaffinity") & patient.isolated
        if both:
            yield Symptom(
                f"irqaffinity={given[-1]} directs interrupts at the isolated CPUs {format_cpus(both)}",
                (item("/proc/cmdline: irqaffinity", given[-1]), *_sets(patient)),
            )
        return
    text = patient.facts.settings.get("/proc/irq/default_smp_affinity")
    both = (parse_mask(text) if text else frozenset()) & patient.isolated
    if both:
        yield Symptom(
            f"new interrupts may go to the isolated CPUs {format_cpus(both)}; there is no irqaffinity=",
            (item("/proc/irq/default_smp_affinity", text), *_sets(patient)),
            severity="warning",
        )


def _as_asked(patient: Patient) -> Iterable[Symptom]:
    wanted = patient.asked("nohz_full")
    have = patient.facts.nohz_full
    known = f"{_SYSTEM}/nohz_full" in patient.facts.settings or patient.facts.kernel.config.get("NO_HZ_FULL") == "n"
    if wanted and known and wanted != have:
        dropped = wanted - have
        beyond = {cpu for cpu in dropped if cpu > patient.last}
        severity: Severity | None = "note" if dropped == beyond else "warning" if dropped - beyond == {0} else None
        text = f"nohz_full= asks for {format_cpus(wanted)}, the kernel took {format_cpus(have) or 'none'}"
        if 0 in dropped and have:
            text += "; it never takes the CPU that it boots on"
        yield Symptom(
            text,
            (
                item("/proc/cmdline: nohz_full", format_cpus(wanted)),
                item(f"{_SYSTEM}/nohz_full", format_cpus(have) or "(empty)"),
            ),
            severity=severity,
        )
    if "domain" in patient.isolcpus_flags and commandline.values(patient.line, "isolcpus"):
        wanted, have = patient.asked("isolcpus"), patient.facts.isolated
        if wanted != have:
            yield Symptom(
                f"isolcpus= asks for {format_cpus(wanted) or 'an unreadable list'}, "
                f"the kernel took {format_cpus(have) or 'none'}",
                (
                    item("/proc/cmdline: isolcpus", commandline.values(patient.line, "isolcpus")[-1]),
                    item(f"{_SYSTEM}/isolated", format_cpus(have) or "(empty)"),
                ),
            )
    log = patient.facts.kernel_log
    if log and "isolation" in log.lines:
        yield Symptom("the kernel refused a list", (item("kernel log", log.lines["isolation"]),))


def _no_housekeeping(patient: Patient) -> Iterable[Symptom]:
    if not patient.isolated:
        return
    for node in patient.facts.nodes:
        online = node.cpus & patient.online
        if online and online <= patient.isolated:
            yield Symptom(
                f"node {node.id} has no housekeeping CPU: all of {format_cpus(online)} are isolated",
                (item(f"/sys/devices/system/node/node{node.id}/cpulist", format_cpus(node.cpus)), *_sets(patient)),
            )


def _mixed(patient: Patient) -> Iterable[Symptom]:
    value = commandline.values(patient.line, "isolcpus")
    used = _used(patient)
    if value and "domain" in patient.isolcpus_flags and used:
        yield Symptom(
            f"isolcpus={value[-1]} takes CPUs out of the scheduling domains at boot, and {len(used)} cgroup "
            f"{'partition does' if len(used) == 1 else 'partitions do'} so too",
            _sets(patient),
        )


def _invalid(patient: Patient) -> Iterable[Symptom] | Blind:
    if patient.facts.cgroup_version is None:
        return Blind("the facts have no control groups (a recorded tree without /proc/mounts?)")
    return [
        Symptom(
            f"{partition.path} is no partition any more: {partition.state}",
            (
                item(f"/sys/fs/cgroup{partition.path}/cpuset.cpus.partition", partition.state),
                item(f"/sys/fs/cgroup{partition.path}/cpuset.cpus", format_cpus(partition.cpus) or "(empty)"),
                item(
                    f"/sys/fs/cgroup{partition.path}/cpuset.cpus.exclusive",
                    format_cpus(partition.exclusive) or "(empty)",
                ),
            ),
            fix=_repair(partition.state),
        )
        for partition in patient.facts.partitions
        if "invalid" in partition.state
    ]


def _repair(state: str) -> str:
    if "not exclusive" in state:
        return (
            "a sibling cgroup lists one of these CPUs; make a remote partition: write cpuset.cpus.exclusive in every "
            "cgroup above it, then isolated into cpuset.cpus.partition"
        )
    if "housekeeping" in state:
        return "take domain out of isolcpus= (keep managed_irq), reboot, and let the partition isolate"
    return ""


def _workqueues(patient: Patient) -> Iterable[Symptom]:
    for name, what in (("cpumask", "unbound workqueues"), ("writeback/cpumask", "writeback")):
        text = patient.facts.settings.get(f"{_WORKQUEUE}/{name}")
        both = (parse_mask(text) if text else frozenset()) & patient.isolated
        if both:
            yield Symptom(
                f"{what} may run on the isolated CPUs {format_cpus(both)}",
                (item(f"{_WORKQUEUE}/{name}", text), *_sets(patient)),
            )


AILMENTS = (
    Ailment(
        "D-ISO-CORE",
        "ledger",
        "harmful",
        "No isolated CPU shares a core with a housekeeping CPU",
        "two threads of a core share its execution units and first caches: whatever the host does on the one slows "
        "the other down at once, and no priority helps",
        "isolate whole cores: put both threads of a core on the same side (evenkeel plan does), or take the sibling "
        "offline",
        "host-tuning §0.5 (measured: TuneD's default split), S6",
        _shared_core,
        needs=("command line", "cgroups"),
    ),
    Ailment(
        "D-ISO-IRQ",
        "interrupt",
        "harmful",
        "irqaffinity leaves the isolated CPUs out",
        "every interrupt that is set up later starts with this mask, and fires on a CPU that was to be left alone",
        "irqaffinity= must be the complement of the isolated set: the housekeeping CPUs and no others",
        "host-tuning H-ISO-4; seapath/ansible#865",
        _irqaffinity,
        needs=("command line", "settings"),
    ),
    Ailment(
        "D-ISO-TAKEN",
        "kernel",
        "harmful",
        "The kernel isolates the CPUs that its command line asks for",
        "a list that the kernel cuts or refuses leaves CPUs with ticks and other people's threads, and says so in one "
        "line of its log only",
        "correct the list: no CPU beyond the last one, not the CPU that the machine boots on (0), plain ranges",
        "host-tuning S1, H-ISO-2; Documentation/timers/no_hz.rst",
        _as_asked,
        needs=("command line",),
    ),
    Ailment(
        "D-ISO-NODE",
        "ledger",
        "warning",
        "Every node with isolated CPUs keeps a housekeeping CPU",
        "the node's memory, its timers and the emulator threads of its guests are then served from another node",
        "leave one core of each node to the host",
        "host-tuning S1; Documentation/admin-guide/cpu-isolation.rst",
        _no_housekeeping,
        needs=("command line", "cgroups"),
    ),
    Ailment(
        "D-ISO-MIXED",
        "ledger",
        "harmful",
        "CPUs are isolated by partitions or by isolcpus=domain, not by both",
        "the kernel refuses a local partition then (isolated invalid), and nothing can be given back without a reboot",
        "keep isolcpus=managed_irq,LIST and take domain out of it; the partition isolates, and can be changed live",
        "host-tuning C-3 (measured), F1",
        _mixed,
        needs=("command line", "cgroups"),
    ),
    Ailment(
        "D-PARTITION",
        "ledger",
        "harmful",
        "Every cgroup partition is valid",
        "an invalid partition isolates nothing: the scheduler puts other threads on these CPUs again, and nobody is "
        "told",
        "find who claims its CPUs, then write the state again; watch the file with inotify",
        "host-tuning C-2, C-4 (measured)",
        _invalid,
        needs=("cgroups",),
    ),
    Ailment(
        "D-WORKQUEUE",
        "setting",
        "warning",
        "Workqueues stay off the isolated CPUs",
        "a kworker that lands on an isolated CPU takes it away for as long as its work lasts",
        "write the mask of the housekeeping CPUs into it; nohz_full and partitions do that for the first, nothing does "
        "for writeback",
        "host-tuning R-WQ-1, R-WQ-2 (measured)",
        _workqueues,
        needs=("command line", "settings"),
    ),
)
