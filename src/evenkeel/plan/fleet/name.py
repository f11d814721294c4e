"""Names for what was counted: the CPUs of every guest of one host.  Pure, and the same for the same guests.

Who insists on an L3 domain comes first, then whole cores, then single threads out of cores that are broken up already;
that order is what makes counting (:mod:`evenkeel.plan.fleet.room`) come out.  Whole cores are taken in the fullest L3
domain that still carries them, as the planner of one host does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from evenkeel.documents.fleet import CellRequest, FleetHost, FleetNode, GuestSeat, Request, Seat
from evenkeel.plan.fleet.room import Spot

KINDS = ("isolate", "whole", "require", "prefer")


class CannotName(AssertionError):
    """Counting promised what naming cannot keep: a defect, unless the CPUs that others keep were chosen beforehand."""


@dataclass
class _Desk:
    """What is free on a node.  ``cores``: those wholly free; ``threads``: free threads of all others."""

    node: FleetNode
    cores: list[frozenset[int]]
    threads: list[int]

    def domains(self) -> list[list[frozenset[int]]]:
        groups = self.node.l3 or (self.node.cpus,)
        found = [[core for core in self.cores if core <= group] for group in groups]
        return [group for group in found if group]


def seats_on(
    host: FleetHost, guests: Sequence[tuple[Request, Spot]], fixed: Mapping[str, tuple[Request, Seat]] | None = None
) -> tuple[GuestSeat, ...]:
    """Seats of all these guests of a host, by name.  ``fixed``: guests that keep the CPUs which they have.

    Raises CannotName where counting promised what naming cannot keep.
    """
    fixed = fixed or {}
    taken = frozenset(cpu for request, seat in fixed.values() for cpu in cpus_of(request, seat))
    desks = {node.id: _desk(node, taken) for node in host.nodes}
    order = sorted(guests, key=lambda one: one[0].name)
    tasks = [
        (request, spot, number, cell)
        for request, spot in order
        if request.threads in KINDS
        for number, cell in enumerate(spot.cells)
    ]
    tasks.sort(key=lambda task: (KINDS.index(task[0].threads), -task[3].vcpus))
    cpus: dict[tuple[str, int], tuple[int, ...]] = {}
    idle: dict[str, set[int]] = {request.name: set() for request, _ in guests}
    emulators: dict[str, frozenset[int]] = {}
    odd: list[tuple[str, int, _Desk]] = []  # cells whose last vCPU goes on a core that is broken up, best of all

    def seat_cell(request: Request, spot: Spot, number: int, cell: CellRequest) -> None:
        desk = desks[spot.nodes[number]]
        if request.threads == "prefer" and spot.groups[number] < 0:
            cpus[request.name, number] = _threads(desk, cell.vcpus)
        elif request.threads == "require" and spot.groups[number] < 0 and cell.vcpus % _least(desk) == 1:
            most = cell.vcpus - 1
            part = CellRequest(vcpus=most, memory_bytes=0) if most else None
            cpus[request.name, number] = _cores(desk, request, part, -1)[0] if part else ()
            odd.append((request.name, number, desk))
        else:
            found, left = _cores(desk, request, cell, spot.groups[number])
            cpus[request.name, number] = found
            if request.threads in ("isolate", "whole"):
                idle[request.name] |= left
            else:
                desk.threads += sorted(left)

    for request, spot, number, cell in [task for task in tasks if task[1].groups[task[2]] >= 0]:
        seat_cell(request, spot, number, cell)
    for request, spot in order:  # after all that insist on a domain, before anybody takes single threads
        if request.emulator == "own" and request.threads == "isolate":
            (cpu,), beside = _cores(desks[spot.nodes[0]], request, CellRequest(vcpus=1, memory_bytes=0), -1)
            emulators[request.name] = frozenset({cpu})
            idle[request.name] |= beside
    for request, spot, number, cell in [task for task in tasks if task[1].groups[task[2]] < 0]:
        seat_cell(request, spot, number, cell)
    for name, number, desk in odd:
        cpus[name, number] += _threads(desk, 1)
    for request, spot in order:
        if request.emulator == "own" and request.threads != "isolate":
            emulators[request.name] = frozenset(_threads(desks[spot.nodes[0]], 1))
    house = {node.id: node.housekeeping for node in host.nodes}
    return tuple(
        GuestSeat(
            name=request.name,
            host=host.name,
            nodes=spot.nodes,
            cpus=tuple(cpus[request.name, number] for number in range(len(spot.cells)))
            if request.threads in KINDS
            else (),
            idle=frozenset(idle[request.name]),
            emulator=emulators.get(request.name)
            or frozenset().union(*(house[node] for node in spot.nodes or tuple(house))),
            page_bytes=spot.page_bytes,
            functions=tuple(sorted(spot.functions)),
        )
        for request, spot in order
    )


def cpus_of(request: Request, seat: Seat) -> frozenset[int]:
    """All CPUs that a seat takes from others."""
    found = frozenset(cpu for cell in seat.cpus for cpu in cell) | seat.idle
    return found | seat.emulator if request.emulator == "own" else found


def _desk(node: FleetNode, taken: frozenset[int]) -> _Desk:
    free = node.free - taken
    cores = [core for core in node.cores if core <= free]
    whole = frozenset().union(*cores)
    return _Desk(node, sorted(cores, key=min), sorted(free - whole))


def _least(desk: _Desk) -> int:
    """Threads of the smallest core that is wholly free; of the largest where none is."""
    return min((len(core) for core in desk.cores), default=max(len(core) for core in desk.node.cores))


def _cores(desk: _Desk, request: Request, cell: CellRequest, group: int) -> tuple[tuple[int, ...], set[int]]:
    """(the CPU of each vCPU, the threads left over) on whole cores."""
    each = 1 if request.threads == "isolate" else 0  # vCPUs of a core; 0: one for every thread

    def enough(cores: Iterable[frozenset[int]]) -> list[frozenset[int]]:
        chosen, carried = [], 0
        for core in cores:
            if carried >= cell.vcpus:
                break
            chosen.append(core)
            carried += each or len(core)
        return chosen if carried >= cell.vcpus else []

    if group >= 0:
        inside = desk.node.l3[group] if desk.node.l3 else desk.node.cpus
        chosen = enough(_largest(core for core in desk.cores if core <= inside))
    else:
        domains = desk.domains()
        fitting = [
            (len(cores), min(min(core) for core in cores), cores) for cores in domains if enough(_largest(cores))
        ]
        if fitting:
            chosen = enough(_largest(min(fitting, key=lambda one: one[:2])[2]))
        else:
            chosen = enough(
                _largest(core for cores in sorted(domains, key=lambda d: (-len(d), min(d[0]))) for core in cores)
            )
    if not chosen:
        raise CannotName(
            f"{request.name}: counted {cell.vcpus} vCPUs into node {desk.node.id}, and no cores carry them"
        )
    for core in chosen:
        desk.cores.remove(core)
    order = [min(core) for core in chosen] if each else [cpu for core in chosen for cpu in sorted(core)]
    used = order[: cell.vcpus]
    return tuple(used), {cpu for core in chosen for cpu in core} - set(used)


def _largest(cores: Iterable[frozenset[int]]) -> list[frozenset[int]]:
    """The largest first, otherwise as they come."""
    return sorted(cores, key=lambda core: -len(core))


def _threads(desk: _Desk, count: int) -> tuple[int, ...]:
    """Threads of broken cores first, then of whole ones."""
    desk.threads.sort()
    while len(desk.threads) < count and desk.cores:
        domains = desk.domains()
        smallest = min(domains, key=lambda cores: (len(cores), min(cores[0])))
        core = smallest[0]
        desk.cores.remove(core)
        desk.threads += sorted(core)
    if len(desk.threads) < count:
        raise CannotName(f"counted {count} threads into node {desk.node.id}, and they are not there")
    found, desk.threads = desk.threads[:count], desk.threads[count:]
    return tuple(found)
