"""Ailments of guests that run: where their threads may go.

Source: reference host-tuning §2.1 (S4), C-6, C-7, G-1, G-2, R-KVM-5.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.findings import EvidenceItem
from evenkeel.verify.doctor.ailment import Ailment, Symptom, item
from evenkeel.verify.doctor.patient import Domain, Patient, VcpuThread, pins, priorities, vcpu_pins

_HELPERS = re.compile(r"kvm-pit|kvm-nx-lpage|vhost")
_VCPU = re.compile(r"CPU \d+/")


def _stacked(patient: Patient) -> Iterable[Symptom]:
    alone: dict[int, list[VcpuThread]] = {}
    for vcpu in patient.vcpus:
        if len(vcpu.thread.cpus) == 1:
            alone.setdefault(min(vcpu.thread.cpus), []).append(vcpu)
    for cpu, vcpus in sorted(alone.items()):
        if len(vcpus) > 1:
            bad = cpu in patient.isolated or any(vcpu.realtime for vcpu in vcpus)
            yield Symptom(
                f"{len(vcpus)} vCPU threads have CPU {cpu} and no other: {_names(vcpus)}",
                _allowed(vcpus),
                severity=None if bad else "warning",
                guest=vcpus[0].guest,
            )
    sets: dict[frozenset[int], list[VcpuThread]] = {}
    for vcpu in patient.vcpus:
        if len(vcpu.thread.cpus) > 1 and vcpu.thread.cpus <= patient.unbalanced:
            sets.setdefault(vcpu.thread.cpus, []).append(vcpu)
    for cpus, vcpus in sets.items():
        if len(vcpus) > 1:
            yield Symptom(
                f"{len(vcpus)} vCPU threads share the CPUs {format_cpus(cpus)}, over which the scheduler does not "
                f"balance: they stay together on one of them ({_names(vcpus)})",
                (*_allowed(vcpus), item("CPUs without balancing", format_cpus(patient.unbalanced))),
                guest=vcpus[0].guest,
            )


def _names(vcpus: list[VcpuThread]) -> str:
    names = "; ".join(str(vcpu) for vcpu in vcpus[:4])
    return f"{names} and {len(vcpus) - 4} more" if len(vcpus) > 4 else names


def _allowed(vcpus: list[VcpuThread]) -> tuple[EvidenceItem, ...]:
    return tuple(item(f"{vcpu}: Cpus_allowed_list", format_cpus(vcpu.thread.cpus)) for vcpu in vcpus)


def _emulator(patient: Patient) -> Iterable[Symptom]:
    for guest in patient.facts.guests:
        others = [thread for thread in guest.threads if not _VCPU.match(thread.name)]
        on = [thread for thread in others if thread.cpus & patient.realtime_cpus]
        near = [thread for thread in others if thread not in on and thread.cpus & patient.isolated]
        for threads, cpus, severity in ((on, patient.realtime_cpus, None), (near, patient.isolated, "warning")):
            if threads:
                what = "CPUs of real-time vCPUs" if severity is None else "isolated CPUs"
                names = ", ".join(thread.name for thread in threads)
                both = format_cpus(frozenset().union(*(thread.cpus for thread in threads)) & cpus)
                yield Symptom(
                    f"guest {guest.name}: {names} may run on {what} ({both})",
                    tuple(
                        item(f"guest {guest.name}, thread {thread.name}: Cpus_allowed_list", format_cpus(thread.cpus))
                        for thread in threads
                    ),
                    severity=severity,  # type: ignore[arg-type]
                    guest=guest.name,
                )
    helpers = [
        thread
        for thread in patient.facts.kernel_threads
        if _HELPERS.match(thread.name) and thread.cpus & patient.realtime_cpus
    ]
    if helpers:
        yield Symptom(
            f"kernel threads that serve guests may run on CPUs of real-time vCPUs: "
            f"{', '.join(sorted({thread.name for thread in helpers}))}",
            tuple(
                item(f"kernel thread {thread.name}: Cpus_allowed_list", format_cpus(thread.cpus)) for thread in helpers
            ),
            severity="warning",
        )
    for domain in patient.idle_domains:
        yield from _emulator_as_defined(domain)


def _emulator_as_defined(domain: Domain) -> Iterable[Symptom]:
    """Of a guest that does not run: what its definition will do."""
    if domain.root is None or not priorities(domain.root):
        return
    definition, pinned = domain.definition, vcpu_pins(domain.root)
    realtime = frozenset(cpu for vcpu in priorities(domain.root) for cpu in pinned.get(vcpu, frozenset()))
    for tag in ("emulatorpin", "iothreadpin"):
        for number, cpus in pins(domain.root, tag):
            if cpus & realtime:
                yield Symptom(
                    f"guest {definition.guest}: <{tag}> holds {format_cpus(cpus & realtime)}, the CPU of a real-time "
                    "vCPU",
                    (
                        item(f"{definition.path}: cputune/{tag}{number and f' {number}'}", format_cpus(cpus)),
                        item(f"{definition.path}: cputune/vcpusched", f"vCPUs on {format_cpus(realtime)}"),
                    ),
                    guest=definition.guest,
                )
    if domain.root.find("cputune/emulatorpin") is None:
        yield Symptom(
            f"guest {definition.guest} has real-time vCPUs and no <emulatorpin>: its emulator goes anywhere",
            (item(f"{definition.path}: cputune/emulatorpin", "does not exist"),),
            severity="warning",
            guest=definition.guest,
        )


def _slice(patient: Patient) -> Iterable[Symptom]:
    for domain in patient.domains:
        if domain.root is None:
            continue
        definition = domain.definition
        place = _slice_of(domain.root.findtext("resource/partition") or "/machine")
        limits = [one for one in patient.facts.cpusets if place == one.path or place.startswith(one.path + "/")]
        for tag in ("emulatorpin", "iothreadpin", "vcpupin"):
            for number, cpus in pins(domain.root, tag):
                for limit in limits:
                    outside = cpus - limit.cpus
                    if outside:
                        cut = bool(cpus & limit.cpus)
                        yield Symptom(
                            f"guest {definition.guest}: <{tag}{number and f' {number}'}> wants CPU "
                            f"{format_cpus(outside)}, which {limit.path} does not have"
                            + ("; the rest is all it gets" if cut else ", and nothing is left: it does not start"),
                            (
                                item(f"{definition.path}: cputune/{tag}", format_cpus(cpus)),
                                item(f"/sys/fs/cgroup{limit.path}/cpuset.cpus", format_cpus(limit.cpus)),
                            ),
                            severity="warning" if cut else None,
                            guest=definition.guest,
                        )


def _slice_of(partition: str) -> str:
    """``/machine/rt`` -> ``/machine.slice/machine-rt.slice``, as systemd nests slices."""
    path, name = "", ""
    for part in partition.strip("/").split("/"):
        name = f"{name}-{part}" if name else part
        path += f"/{name}.slice"
    return path


AILMENTS = (
    Ailment(
        "D-VCPU-STACKED",
        "thread",
        "harmful",
        "Every vCPU has a CPU of its own",
        "vCPUs on one CPU take turns: a spinlock that one holds while the other runs costs a whole time slice; over "
        "isolated CPUs the scheduler never moves them apart",
        "pin each to one CPU (<vcpupin>); for guests whose vCPUs float use a partition of type root, which balances",
        "host-tuning C-6, G-1, H-ISO-1 (measured); seapath/ansible#908",
        _stacked,
        needs=("guests",),
    ),
    Ailment(
        "D-EMULATOR",
        "thread",
        "harmful",
        "QEMU's own threads and its kernel helpers stay off the CPUs of real-time vCPUs",
        "a FIFO vCPU that waits for its emulator thread on the same CPU waits for ever",
        "<emulatorpin> and <iothreadpin> to housekeeping CPUs of the guest's node; taskset for kvm-pit and vhost, or "
        "<timer name='pit' present='no'/>",
        "host-tuning S4, G-2, R-KVM-5",
        _emulator,
        needs=("guests", "definitions"),
    ),
    Ailment(
        "D-PIN-SLICE",
        "guest",
        "harmful",
        "Pins of a definition lie inside the slice that the guest runs in",
        "a pin outside the cgroup's CPUs is refused when the guest starts, or cut without a word",
        "add these CPUs to AllowedCPUs= of the slice, or pin elsewhere; the slice needs emulator and vCPU CPUs",
        "host-tuning C-7; seapath/ansible#439",
        _slice,
        needs=("definitions", "cgroups"),
    ),
)
