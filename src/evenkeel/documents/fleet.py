"""Fleet and FleetPlan: hosts as tables of what is free on them, guests as what they ask for, and who runs where.

A :class:`FleetPlan` carries the hosts and the requests that it was made from, so that the checker
(:mod:`evenkeel.placement_check`) needs nothing else.  Everything is counted as of before the guests of the document
are placed: a host's ``free`` never has them taken off.  Sizes are bytes, distances are the kernel's (10: itself).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from pydantic import Field

from evenkeel.documents.base import Document, Model
from evenkeel.documents.cpuset import CpuSet

Near = Literal["required", "preferred", "any"]
#: How the vCPUs of a guest use the threads of a core.
Threads = Literal["isolate", "whole", "require", "prefer", "float", "overcommit"]


class PageRoom(Model):
    """Pages of one size on a node: how many bytes guests may take in them at most.

    4096: ordinary pages, for guests that float over the whole host; without it ``memory_bytes`` alone limits them.
    """

    page_bytes: int = Field(ge=1)
    free_bytes: int = Field(ge=0)


class FleetNode(Model):
    """A NUMA node.  ``memory_bytes``: what guests may take there, in pages of whatever size together."""

    id: int
    socket: int | None = None
    cores: tuple[CpuSet, ...] = Field(description="the online threads of each core")
    l3: tuple[CpuSet, ...] = Field(default=(), description="CPUs that share an L3 cache; empty: all of the node do")
    housekeeping: CpuSet = frozenset()
    data_plane: CpuSet = frozenset()
    busy: CpuSet = Field(default=frozenset(), description="CPUs that others have, who are not among the requests")
    memory_bytes: int = Field(ge=0)
    pages: tuple[PageRoom, ...] = Field(default=(), description="huge pages, by size")
    distances: dict[int, int] = {}

    @property
    def cpus(self) -> frozenset[int]:
        return frozenset(cpu for core in self.cores for cpu in core)

    @property
    def free(self) -> frozenset[int]:
        """CPUs that guests may have."""
        return self.cpus - self.housekeeping - self.data_plane - self.busy


class FleetFunction(Model):
    """A PCI function that a guest may be given.  ``pool``: what its owner calls functions that are alike."""

    address: str
    node: int | None = None
    pool: str = ""
    type: Literal["vf", "pf", "pci"] = "pci"
    network: str | None = Field(default=None, description="the physical network that it is wired to")
    iommu_group: int | None = Field(default=None, description="all functions of a group go to one guest")
    physical_function: str | None = None
    busy: bool = Field(default=False, description="no guest may have it")
    why_busy: str = ""


class FleetHost(Model):
    name: str
    architecture: str = "x86_64"
    features: tuple[str, ...] = Field(default=(), description="what a guest may insist on, sorted: preempt-rt, smt")
    owner: str | None = None
    rack: str | None = None
    power_watts: int | None = Field(default=None, description="what it takes when it is on")
    drained: bool = Field(default=False, description="nothing may be placed there, and what is there is to leave")
    overcommit: int = Field(default=4, ge=1, description="vCPUs of flexible guests for one CPU that is left to share")
    networks: tuple[str, ...] = Field(default=(), description="networks that it is wired to, sorted")
    nodes: tuple[FleetNode, ...]
    functions: tuple[FleetFunction, ...] = ()
    places: dict[str, int] = Field(
        default={}, description="network interfaces and PCI addresses -> their node; -1 where it is not known"
    )


class Fleet(Document):
    """What is free on which host, before any of the guests in question is placed."""

    kind: Literal["Fleet"] = "Fleet"
    version: Literal[1] = 1
    hosts: tuple[FleetHost, ...] = ()


class CellRequest(Model):
    vcpus: int = Field(ge=1)
    memory_bytes: int = Field(ge=0)


class FunctionRequest(Model):
    """``count`` functions that have every property which is named.  ``near``: on a node of the guest."""

    pool: str | None = None
    type: Literal["vf", "pf", "pci"] | None = None
    network: str | None = None
    count: int = Field(default=1, ge=1)
    near: Near = "required"


class Seat(Model):
    """Where a guest is.  ``cells``: a node for each, ``cpus`` the host CPU of each vCPU; none for one that floats.

    ``idle``: threads that stay empty beside it; ``emulator``: of its emulator and I/O threads.
    """

    host: str
    nodes: tuple[int, ...] = Field(default=(), description="host node of each cell; empty: it floats over all of them")
    cpus: tuple[tuple[int, ...], ...] = Field(default=(), description="for each cell, the host CPU of each vCPU")
    idle: CpuSet = frozenset()
    emulator: CpuSet = frozenset()
    page_bytes: int | None = Field(default=None, description="size of its huge pages; None: ordinary pages")
    functions: tuple[str, ...] = Field(default=(), description="addresses of its PCI functions, sorted")


class Request(Model):
    """A guest, as placing sees it.

    ``threads``: ``isolate`` a whole core for each vCPU, its other threads empty; ``whole`` all threads of whole cores
    that nobody else is on; ``require`` the same, but a thread left over on the last core may be another's; ``prefer``
    any threads; ``float`` CPUs left to share on its node, as many as vCPUs, without names; ``overcommit`` those of the
    host, several vCPUs for each.
    """

    name: str
    owner: str | None = None
    goal: str = "flexible"
    priority: int = 0
    value: int = Field(default=1, ge=0, description="what placing it is worth, where not all fit")
    architecture: str = "x86_64"
    features: tuple[str, ...] = ()
    cells: tuple[CellRequest, ...] = Field(min_length=1)
    cut: bool = Field(default=False, description="its one cell may be cut into equal ones, each on a node of its own")
    threads: Threads = "isolate"
    #: "huge-largest": the largest size of the host that divides every cell; "huge-smallest": the smallest of 2 MiB or
    #: more that does; "ordinary"; "any": whatever; a number: this size.
    pages: Literal["ordinary", "any", "huge-largest", "huge-smallest"] | int = "huge-largest"
    emulator: Literal["housekeeping", "own"] = Field(
        default="housekeeping", description="own: a CPU of its own, on the node of its first cell (isolate: a core)"
    )
    l3: Literal["any", "prefer", "require"] = "prefer"
    max_distance: int | None = Field(default=None, description="between any two nodes of the guest")
    near: str | None = Field(default=None, description="interface or PCI address that one of its nodes must be that of")
    functions: tuple[FunctionRequest, ...] = ()
    networks: tuple[str, ...] = ()
    apart: tuple[str, ...] = Field(default=(), description="groups of which no two guests share a host")
    apart_racks: tuple[str, ...] = Field(default=(), description="groups of which no two guests share a rack")
    together: tuple[str, ...] = Field(default=(), description="groups whose guests are all on one host")
    hosts: tuple[str, ...] = Field(default=(), description="the only hosts that it may be on; empty: any")
    now: Seat | None = None
    movable: bool = Field(default=True, description="whether it may be moved from where it is now")


class GuestSeat(Seat):
    name: str


class Cut(Model):
    """How many hosts one constraint rules out for a guest; ``example``: one of them."""

    reason: str
    hosts: int
    example: str = ""


class Refusal(Model):
    """A guest without a place, and why: ``reasons`` the fewest that together leave no host."""

    name: str
    reasons: tuple[str, ...]
    cuts: tuple[Cut, ...] = ()
    cures: tuple[str, ...] = ()


class Move(Model):
    """A guest that changes its host (or, ``host`` the same, its CPUs), and what that costs."""

    name: str
    from_host: str
    to_host: str
    memory_bytes: int = Field(description="memory to be copied; 0 for one that is only pinned anew")
    repin: bool = False


class Failover(Model):
    """Where the guests of a host go when it fails; all others stay where they are."""

    host: str
    seats: tuple[GuestSeat, ...] = ()


class FleetPlan(Document):
    """Who runs where.  ``bound``: no placement whatever can be worth more; ``value``: what this one is worth."""

    kind: Literal["FleetPlan"] = "FleetPlan"
    version: Literal[1] = 1
    hosts: tuple[FleetHost, ...]
    guests: tuple[Request, ...]
    seats: tuple[GuestSeat, ...]
    refused: tuple[Refusal, ...] = ()
    moves: tuple[Move, ...] = ()
    max_hosts: int | None = Field(default=None, description="hosts that may be used at most")
    power_watts: int | None = Field(default=None, description="what all hosts that are used may take together")
    standby: bool = Field(default=False, description="whether there is room for the guests of any one host elsewhere")
    failover: tuple[Failover, ...] = Field(default=(), description="where that room is, host by host")
    value: int = 0
    bound: float | None = None
    method: str = ""


def refused_alike(refused: Iterable[Refusal]) -> list[list[Refusal]]:
    """Guests that are left out for the same reasons, together, in the order of the first of each."""
    found: dict[tuple[str, ...], list[Refusal]] = {}
    for one in refused:
        found.setdefault((*one.reasons, "", *one.cures), []).append(one)
    return list(found.values())
