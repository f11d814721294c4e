"""What is still free on a host while guests are placed, one after the other: whole cores, and memory of each node.

Huge pages that the plan does not ask for stay where they are, so they count as taken; those that somebody uses count
too, whoever that is.  Nothing here decides where a guest goes (:mod:`evenkeel.plan.placement`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from evenkeel.documents.facts import HugePages
from evenkeel.documents.quantity import format_size
from evenkeel.plan.topology import Core, Topology

GIB = 1 << 30


def memory_reserve(node_bytes: int) -> int:
    """What huge pages must leave to the host on a node: 8 %, at least 4 GiB, but never more than a quarter of the node.

    Asking the kernel for too much is silent and starves the node: 900 pages asked, 554 given, 6 MB left (measured,
    host-tuning H-HP-1).  8 % is SUSE's figure for SAP HANA hosts; the other two bounds are our judgement.
    """
    return max(node_bytes * 8 // 100, min(4 * GIB, node_bytes // 4))


@dataclass
class Books:
    """``capacity``: node -> bytes that guests may take at most.  ``promised``: (node, page bytes) -> bytes taken.

    Without NUMA the only node is 0.
    """

    topology: Topology
    free: set[Core]
    capacity: dict[int, int]
    promised: dict[tuple[int, int], int] = field(default_factory=dict)

    def copy(self) -> Books:
        return Books(self.topology, set(self.free), self.capacity, dict(self.promised))

    def free_on(self, node: int) -> list[Core]:
        return [core for core in self.topology.cores_of(node) if core in self.free]

    def take(self, cores: Iterable[Core]) -> None:
        self.free.difference_update(cores)

    def room(self, node: int, page: int | None) -> int:
        """Bytes that guests on pages of this size may still take on this node; at least 0."""
        if page is None or node not in self.capacity:
            return 0
        others = sum(self._held(node, pool) for pool in self._pools(node) if pool.page_bytes != page)
        # What is in use is there, even where it is more than we would ask for.
        mine = next(
            (pool for pool in self._pools(node) if pool.page_bytes == page), HugePages(page_bytes=page, total=0)
        )
        limit = max(self.capacity[node] - others, _in_use(mine))
        return max(0, limit - self.promised.get((node, page), 0))

    def take_memory(self, node: int, page: int | None, size: int) -> None:
        if page is not None:
            self.promised[node, page] = self.promised.get((node, page), 0) + size

    def give_back(self, cores: Iterable[Core], node: int, page: int | None, size: int) -> None:
        """Undo :meth:`take` and :meth:`take_memory`."""
        self.free.update(cores)
        self.take_memory(node, page, -size)

    def ordinary(self) -> int:
        """Bytes left for guests on ordinary pages, on all nodes together; at least 0."""
        if not self.capacity:  # an old or partial recording does not say what its nodes have
            whole = self.topology.facts.memory_bytes
            return whole - memory_reserve(whole)
        return sum(
            max(0, size - sum(self._held(node, pool) for pool in self._pools(node)))
            for node, size in self.capacity.items()
        )

    def idle_pools(self) -> str:
        """``"node 0 holds 30GiB in pages of 1GiB"``: free pages of sizes that no guest asked for; "" where none are."""
        return ", ".join(
            f"{f'node {node}' if self.topology.numa else 'the host'} holds "
            f"{format_size(idle * pool.page_bytes)} in free pages of {format_size(pool.page_bytes)}"
            for node in sorted(self.capacity)
            for pool in self._pools(node)
            if (idle := pool.total - _in_use(pool) // pool.page_bytes)
            and not self.promised.get((node, pool.page_bytes))
        )

    def _pools(self, node: int) -> tuple[HugePages, ...]:
        facts = self.topology.facts
        found = facts.node(node).huge_pages if self.topology.numa else facts.huge_pages
        known = {pool.page_bytes for pool in found}
        promised = {page for where, page in self.promised if where == node}
        return (*found, *(HugePages(page_bytes=page, total=0) for page in sorted(promised - known)))

    def _held(self, node: int, pool: HugePages) -> int:
        """Bytes of a pool once the plan is applied: one that it asks for is resized, any other stays as it is."""
        promised = self.promised.get((node, pool.page_bytes), 0)
        return max(promised, _in_use(pool)) if promised else pool.total * pool.page_bytes


def _in_use(pool: HugePages) -> int:
    return max(0, pool.total - (pool.total if pool.free is None else pool.free)) * pool.page_bytes


def open_books(topology: Topology, kept: frozenset[int]) -> Books:
    """Everything is free but the cores of ``kept``."""
    facts = topology.facts
    sizes = {node.id: node.memory_bytes for node in facts.nodes} if topology.numa else {0: facts.memory_bytes}
    return Books(
        topology=topology,
        free={core for core in topology.cores if not core.cpus & kept},
        capacity={node: size - memory_reserve(size) for node, size in sizes.items() if size},
    )
