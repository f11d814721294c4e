"""A host as the doctor sees it: the facts, and the CPU sets and threads that follow from them.  Pure, no judgement."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Definition, Facts, GuestThread
from evenkeel.probe.facts.interrupts import kernel_version
from evenkeel.verify.doctor import commandline

FAIR_SERVER = "/sys/kernel/debug/sched/fair_server"
#: Kernel that brought the fair server in place of real-time throttling (commit 557a6bfc662c).
FAIR_SERVER_SINCE = (6, 12)
_MOST_VCPUS = 1 << 14  # more than QEMU takes; a definition is a text that somebody typed
_VCPU = re.compile(r"CPU (\d+)/")


#: A part of the facts that a recorded tree, or a user who is not root, may not have.
Need = Literal["command line", "settings", "threads", "guests", "definitions", "interrupts", "cgroups", "log", "memory"]


@dataclass(frozen=True)
class VcpuThread:
    guest: str
    thread: GuestThread

    @property
    def realtime(self) -> bool:
        return self.thread.policy in ("fifo", "rr")

    def __str__(self) -> str:
        return f"guest {self.guest or '(without a name)'}, thread {self.thread.name}"


@dataclass(frozen=True)
class Domain:
    """A definition and its XML, parsed; ``root`` None: it is no XML, and ``error`` says where."""

    definition: Definition
    root: ET.Element | None
    error: str = ""


@dataclass(frozen=True)
class Patient:
    facts: Facts

    def missing(self, need: Need) -> str | None:
        """Why a part of the facts is not there; None: it is."""
        facts = self.facts
        there, reason = {
            "command line": (bool(self.line), "the facts have no kernel command line"),
            "settings": (
                any(path.startswith("/proc/sys/") for path in facts.settings),
                "the facts have no sysctls (a tree with the topology only?)",
            ),
            "threads": (bool(facts.kernel_threads), "the facts have no threads (a tree with the topology only?)"),
            "guests": (
                bool(facts.kernel_threads or facts.guests),
                "the facts have no processes, so guests could not be seen",
            ),
            "definitions": (
                bool(facts.definitions or facts.kernel_threads)
                and not any(path.startswith("/etc/libvirt/qemu") for path in facts.unreadable),
                "libvirt's definitions could not be read; run it as root"
                if facts.kernel_threads
                else "the facts have no definitions of guests (a tree with the topology only?)",
            ),
            "interrupts": (bool(facts.interrupts), "the facts have no interrupts (a tree with the topology only?)"),
            "cgroups": (facts.cgroup_version is not None, "the facts have no control groups"),
            "log": (facts.kernel_log is not None, "the kernel's log could not be read; run it as root"),
            "memory": (facts.memory_bytes > 0, "the facts do not tell how much memory there is"),
        }[need]
        return None if there else reason

    # -- what was asked for --------------------------------------------------------------------------------------

    @property
    def line(self) -> str:
        return self.facts.kernel.command_line

    @cached_property
    def kernel(self) -> tuple[int, int]:
        return kernel_version(self.facts.kernel.release)

    @cached_property
    def last(self) -> int:
        """The number of the last possible CPU."""
        return max([*self.facts.possible, *(cpu.id for cpu in self.facts.cpus), 0])

    def asked(self, key: str) -> frozenset[int]:
        """CPUs that a parameter of the command line names; an unreadable list is the empty set, as for the kernel."""
        cpus: frozenset[int] = frozenset()
        for value in commandline.values(self.line, key):
            text = commandline.isolcpus(value)[1] if key == "isolcpus" else value
            try:
                cpus |= commandline.parse(text, self.last) if text else frozenset()
            except ValueError:
                continue
        return cpus

    @cached_property
    def isolcpus_flags(self) -> frozenset[str]:
        flags: frozenset[str] = frozenset()
        for value in commandline.values(self.line, "isolcpus"):
            flags |= commandline.isolcpus(value)[0]
        return flags

    # -- what there is -------------------------------------------------------------------------------------------

    @cached_property
    def online(self) -> frozenset[int]:
        return self.facts.online

    @cached_property
    def partitioned(self) -> frozenset[int]:
        """CPUs of isolated partitions that are valid."""
        found: frozenset[int] = frozenset()
        for partition in self.facts.partitions:
            if partition.state == "isolated":
                found |= partition.effective or partition.exclusive or partition.cpus
        return found

    @cached_property
    def isolated(self) -> frozenset[int]:
        """Online CPUs that somebody set apart, by whatever means."""
        asked = self.asked("isolcpus")
        return (asked | self.facts.isolated | self.facts.nohz_full | self.partitioned) & self.online

    @cached_property
    def unbalanced(self) -> frozenset[int]:
        """CPUs on which threads stay where they are: the scheduler does not balance over them."""
        return (self.facts.isolated | self.partitioned) & self.online

    @cached_property
    def siblings(self) -> dict[int, frozenset[int]]:
        return {cpu.id: (cpu.siblings or frozenset({cpu.id})) & self.online for cpu in self.facts.cpus if cpu.online}

    def nodes_of(self, cpus: frozenset[int]) -> frozenset[int]:
        return frozenset(cpu.node for cpu in self.facts.cpus if cpu.id in cpus and cpu.node is not None)

    def owner(self, name: str) -> str | None:
        """What shows that a daemon runs; None: it does not."""
        return next((one.evidence for one in self.facts.owners if one.name == name and one.active), None)

    # -- guests --------------------------------------------------------------------------------------------------

    @cached_property
    def vcpus(self) -> tuple[VcpuThread, ...]:
        return tuple(
            VcpuThread(guest.name, thread)
            for guest in self.facts.guests
            for thread in guest.threads
            if _VCPU.match(thread.name)
        )

    @cached_property
    def realtime_cpus(self) -> frozenset[int]:
        """CPUs where a vCPU at FIFO or RR may run."""
        return frozenset(cpu for vcpu in self.vcpus if vcpu.realtime for cpu in vcpu.thread.cpus)

    def fair_server(self, cpu: int) -> int | None:
        """Nanoseconds a period that ordinary tasks are sure of; None: debugfs does not tell."""
        text = self.facts.settings.get(f"{FAIR_SERVER}/cpu{cpu}/runtime", "")
        return int(text) if text.isdecimal() else None

    @cached_property
    def domains(self) -> tuple[Domain, ...]:
        """What libvirt starts next time; of a guest that is defined nowhere (transient) what runs."""
        lasting = {one.guest for one in self.facts.definitions if not one.running}
        chosen = [one for one in self.facts.definitions if not one.running or one.guest not in lasting]
        return tuple(_parsed(one) for one in chosen)

    @cached_property
    def idle_domains(self) -> tuple[Domain, ...]:
        """Of guests that do not run: of the others the threads tell more."""
        running = {guest.name for guest in self.facts.guests}
        return tuple(one for one in self.domains if one.definition.guest not in running)


def _parsed(definition: Definition) -> Domain:
    if "<!DOCTYPE" in definition.xml or "<!ENTITY" in definition.xml:
        return Domain(definition, None, "it has a document type, which no definition needs")
    try:
        return Domain(definition, ET.fromstring(definition.xml))
    except ET.ParseError as error:
        return Domain(definition, None, str(error))


# -- reading domain XML ----------------------------------------------------------------------------------------------


def libvirt_set(text: str | None) -> frozenset[int] | None:
    """libvirt's list of CPUs, cells or nodes, with its ``^3`` for "not 3" (one number only); None where it is none."""
    if text is None:
        return None
    cpus: frozenset[int] = frozenset()
    for part in text.split(","):
        part = part.strip()
        try:
            if part.startswith("^"):
                cpus -= {int(part[1:])}
            else:
                cpus |= parse_cpus(part)
        except ValueError:
            return None
    return cpus


def vcpu_count(root: ET.Element) -> int:
    text = (root.findtext("vcpu") or "1").strip()
    return min(int(text), _MOST_VCPUS) if text.isdecimal() and len(text) < 10 else 1


def pins(root: ET.Element, tag: str) -> Iterator[tuple[str, frozenset[int]]]:
    """(what is pinned, host CPUs) of each ``<vcpupin>``, ``<emulatorpin>`` or ``<iothreadpin>``."""
    for pin in root.findall(f"cputune/{tag}"):
        cpus = libvirt_set(pin.get("cpuset"))
        if cpus is not None:
            yield pin.get("vcpu") or pin.get("iothread") or "", cpus


def vcpu_pins(root: ET.Element) -> dict[int, frozenset[int]]:
    return {int(number): cpus for number, cpus in pins(root, "vcpupin") if number.isdecimal()}


def priorities(root: ET.Element) -> dict[int, int]:
    """vCPU -> real-time priority of its ``<vcpusched>``."""
    found = {}
    for schedule in root.findall("cputune/vcpusched"):
        priority = schedule.get("priority", "")
        if schedule.get("scheduler") in ("fifo", "rr") and priority.lstrip("-").isdecimal():
            found.update(dict.fromkeys(libvirt_set(schedule.get("vcpus")) or (), int(priority)))
    return found
