"""A machine's CPUs as the planner sees them: whole cores, their node, their L3 domain, their class.

Made from Facts once per host; answers every "who sits where" question of the ledger and the rules.  It must not decide
anything.  What firmware gets wrong is repaired here, in one place: each online CPU belongs to exactly one core and
exactly one node, whatever the tables say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Cpu, Facts


@dataclass(frozen=True, order=True)
class Core:
    """One physical core: its online threads.  ``rank`` 0 is the fastest class of the machine (hybrid CPUs)."""

    first: int  # the lowest online thread, which names the core
    node: int
    rank: int
    threads: tuple[int, ...]

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(self.threads)


@dataclass(frozen=True)
class Topology:
    """Cores and nodes of one machine.  Source: the Facts it was made from."""

    facts: Facts

    @cached_property
    def online(self) -> frozenset[int]:
        return self.facts.online

    @property
    def boot_cpu(self) -> int:
        """The CPU that the kernel booted on and never isolates: 0, or the lowest one where there is no CPU 0."""
        return min(self.online)

    @cached_property
    def numa(self) -> bool:
        """False on a kernel without /sys/devices/system/node: then nothing may name a node."""
        return bool(self.facts.nodes)

    @cached_property
    def node_of(self) -> Mapping[int, int]:
        """Online CPU -> node.  A node of a buggy table whose CPUs all belong to an earlier one ends up without CPUs."""
        listed: dict[int, int] = {}
        for node in sorted(self.facts.nodes, key=lambda node: node.id):
            for cpu in node.cpus:
                listed.setdefault(cpu, node.id)
        known = {node.id for node in self.facts.nodes}
        fallback = min(known, default=0)
        return {
            cpu.id: listed.get(cpu.id, cpu.node if cpu.node in known and cpu.node is not None else fallback)
            for cpu in self.facts.cpus
            if cpu.online
        }

    @cached_property
    def cores(self) -> tuple[Core, ...]:
        """Every core with an online thread, by its lowest thread.

        Sibling lists that contradict one another (old firmware) are merged: too large a core is safe, a core in two
        parts is not.  A core that two nodes claim belongs to the node of its lowest thread.
        """
        parent = {cpu: cpu for cpu in self.online}

        def root(cpu: int) -> int:
            while parent[cpu] != cpu:
                cpu = parent[cpu]
            return cpu

        for cpu in self.facts.cpus:
            if cpu.online:
                for sibling in cpu.siblings & self.online:
                    low, high = sorted((root(cpu.id), root(sibling)))
                    parent[high] = low
        groups: dict[int, list[int]] = {}
        for number in sorted(self.online):
            groups.setdefault(root(number), []).append(number)
        fast = self.high_base
        speeds = {cpu.id: (*_speed(cpu), cpu.id in fast) for cpu in self.facts.cpus}
        classes = sorted({speeds[first] for first in groups}, reverse=True)
        return tuple(
            Core(first, self.node_of[first], classes.index(speeds[first]), tuple(threads))
            for first, threads in sorted(groups.items())
        )

    @cached_property
    def high_base(self) -> frozenset[int]:
        """Online CPUs whose base frequency is above that of others of their kind: Intel SST-BF.  Empty: all alike.

        Only where every online CPU tells one; a recorded tree may have the frequencies of a few CPUs.
        """
        running = [cpu for cpu in self.facts.cpus if cpu.online]
        slowest: dict[str | None, int] = {}
        for cpu in running:
            if not cpu.base_khz:
                return frozenset()
            slowest[cpu.kind] = min(slowest.get(cpu.kind, cpu.base_khz), cpu.base_khz)
        return frozenset(cpu.id for cpu in running if (cpu.base_khz or 0) > slowest[cpu.kind])

    @cached_property
    def core_of(self) -> Mapping[int, Core]:
        return {cpu: core for core in self.cores for cpu in core.threads}

    @cached_property
    def cpu_nodes(self) -> tuple[int, ...]:
        """Nodes that have online CPUs, sorted."""
        return tuple(sorted({core.node for core in self.cores}))

    def node_cpus(self, node: int) -> frozenset[int]:
        return frozenset(cpu for core in self.cores_of(node) for cpu in core.threads)

    def cores_of(self, node: int) -> tuple[Core, ...]:
        return self._cores_by_node.get(node, ())

    @cached_property
    def _cores_by_node(self) -> dict[int, tuple[Core, ...]]:
        return {node: tuple(core for core in self.cores if core.node == node) for node in self.cpu_nodes}

    @cached_property
    def _l3_of(self) -> dict[int, frozenset[int]]:
        return {
            cpu: cache.cpus & self.online
            for cache in self.facts.caches
            if cache.level == 3
            for cpu in cache.cpus & self.online
        }

    def l3_of(self, core: Core) -> frozenset[int]:
        """CPUs that share the L3 cache with this core, of its own node; the whole node where there is no L3."""
        node = self.node_cpus(core.node)
        return (self._l3_of.get(core.first, node) & node) | core.cpus

    def device_score(self, cpus: frozenset[int]) -> int:
        """How many network and storage functions call these CPUs local: a property of the board, not of the load."""
        return sum(1 for pci in self.facts.pci if pci.class_code[:2] in ("01", "02") and pci.local_cpus & cpus)

    def memory_of(self, node: int) -> int:
        """Bytes of memory of a node."""
        if not self.numa:
            return self.facts.memory_bytes
        return self.facts.node(node).memory_bytes

    def distance(self, one: int, other: int) -> int | None:
        """From one node to another, as the firmware tells it: 10 is a node's own; None where the facts do not say."""
        return next((node.distances.get(other) for node in self.facts.nodes if node.id == one), None)

    def package_of(self, node: int) -> int | None:
        """The socket of a node's CPUs; None where it is not known, or where they are of several."""
        cpus = self.node_cpus(node)
        found = {cpu.package for cpu in self.facts.cpus if cpu.id in cpus}
        return found.pop() if len(found) == 1 else None

    def whole(self, cpus: Iterable[int]) -> frozenset[int]:
        """These CPUs and their online siblings."""
        return frozenset(thread for cpu in cpus for thread in self.core_of[cpu].threads)

    def split_cores(self, cpus: frozenset[int]) -> tuple[Core, ...]:
        """Cores of which some threads, but not all, are in ``cpus``."""
        return tuple(core for core in self.cores if core.cpus & cpus and not core.cpus <= cpus)

    def place(self, cpus: Iterable[int]) -> str:
        """``"CPUs 8-11 (node 1)"``: for sentences."""
        numbers = frozenset(cpus)
        nodes = sorted({self.node_of[cpu] for cpu in numbers if cpu in self.node_of})
        name = f"CPU{'s' if len(numbers) > 1 else ''} {format_cpus(numbers)}"
        if not self.numa or not nodes:
            return name
        return f"{name} (node{'s' if len(nodes) > 1 else ''} {format_cpus(nodes)})"


def _speed(cpu: Cpu) -> tuple[int, int]:
    """Orders the core types of a hybrid machine: capacity where the kernel knows it, else the name of the kind.

    Highest frequencies are left out: turbo bins differ by core on uniform machines too.
    """
    return (0 if cpu.kind in ("efficiency", "low-power") else 1, cpu.capacity or 0)
