"""A Nova database as a FleetPlan: its compute nodes as hosts, its instances as requests that have their seats.  Pure.

What Nova promised an instance becomes the request, what it stored becomes the seat, and the checker of placements
(:mod:`evenkeel.placement_check`), which knows nothing of Nova, judges.  Must not judge itself, with one exception:
whether a device is near enough under a policy that requests of Evenkeel do not have (``legacy``, ``socket``).

Source of the policies: docs.openstack.org/nova, extra specs ``hw:cpu_policy``, ``hw:cpu_thread_policy``,
``hw:emulator_threads_policy``, ``hw:mem_page_size``, ``hw:pci_numa_affinity_policy``; nova/virt/hardware.py and
nova/pci/stats.py of 34.0.0.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Literal

from evenkeel.documents.fleet import (
    CellRequest,
    FleetFunction,
    FleetHost,
    FleetNode,
    FleetPlan,
    FunctionRequest,
    GuestSeat,
    PageRoom,
    Request,
    Threads,
)
from evenkeel.verify.nova.stored import Cloud, Device, DeviceWish, Guest, GuestCell, HostCell, Node

KIB, MIB = 1 << 10, 1 << 20
_THREADS: dict[str | None, Threads] = {"isolate": "isolate", "require": "require", "prefer": "prefer", None: "prefer"}
_TYPES: dict[str, Literal["vf", "pf", "pci"]] = {
    "type-VF": "vf",
    "vdpa": "vf",
    "type-PF": "pf",
    "type-PCI": "pci",
}
_UNITS = {"kb": 1, "mb": 1 << 10, "gb": 1 << 20, "k": 1, "m": 1 << 10, "g": 1 << 20, "": 1}


def as_plan(cloud: Cloud) -> FleetPlan:
    """All of it.  Guests whose vCPUs and memory Nova binds to no node are left out: nothing was promised to them."""
    by_name = {(node.host, node.name): node for node in cloud.nodes}
    guests = [guest for guest in cloud.guests if guest.cells and (guest.host, guest.node) in by_name]
    requests: list[Request] = []
    seats: list[GuestSeat] = []
    shared: Counter[tuple[str, int, int | None]] = Counter()  # host, node and page size -> bytes
    for guest in guests:
        node = by_name[guest.host, guest.node]
        for cell in guest.cells:
            if not cell.dedicated:
                shared[node.name, cell.node, _page_bytes(cell, node)] += cell.memory_mib * MIB
        for request, seat in _parts(guest, node):
            requests.append(request)
            seats.append(seat)
    hosts = tuple(_host(node, cloud.devices.get(node.id, ()), shared) for node in cloud.nodes)
    return FleetPlan(hosts=hosts, guests=tuple(requests), seats=tuple(seats), method="Nova")


def guest_of(name: str) -> str:
    """The instance that a request of :func:`as_plan` is of."""
    return name.partition("#")[0]


def _host(node: Node, devices: Iterable[Device], shared: Counter[tuple[str, int, int | None]]) -> FleetHost:
    return FleetHost(
        name=node.name,
        overcommit=1,
        nodes=tuple(_node(node.name, cell, shared) for cell in node.cells),
        functions=tuple(
            FleetFunction(
                address=one.address,
                node=one.node if one.node is not None and one.node >= 0 else None,
                pool=f"{one.vendor}:{one.product}",
                type=_TYPES.get(one.type, "pci"),
                physical_function=one.parent if _TYPES.get(one.type) == "vf" else None,
            )
            for one in devices
        ),
    )


def _node(host: str, cell: HostCell, shared: Counter[tuple[str, int, int | None]]) -> FleetNode:
    """What of a cell dedicated guests may have: without what guests with shared CPUs hold there."""
    rooms = tuple(
        PageRoom(
            page_bytes=one.size_kib * KIB,
            free_bytes=max(
                0, (one.total - one.reserved) * one.size_kib * KIB - shared[host, cell.id, one.size_kib * KIB]
            ),
        )
        for one in cell.pages
    )
    whole = cell.memory_mib * MIB - sum(shared[key] for key in shared if key[:2] == (host, cell.id))
    return FleetNode(
        id=cell.id,
        socket=cell.socket,
        cores=tuple(sorted(cell.siblings, key=min)),
        # All that guests may not be pinned to.  Where each size has its own count, these counts are the limit.
        housekeeping=frozenset().union(*cell.siblings) - cell.dedicated,
        memory_bytes=max(0, whole, sum(room.free_bytes for room in rooms)),
        pages=rooms,
    )


def _page_bytes(cell: GuestCell, node: Node) -> int | None:
    """The pages that Nova counts a cell in: what it chose, or the smallest (``_numa_pagesize_usage_from_cell``)."""
    if cell.page_kib is not None and cell.page_kib > 0:
        return cell.page_kib * KIB
    sizes = [page.size_kib for host_cell in node.cells if host_cell.id == cell.node for page in host_cell.pages]
    return min(sizes) * KIB if sizes else None


def _parts(guest: Guest, node: Node) -> Iterable[tuple[Request, GuestSeat]]:
    """The request and the seat; one more of each for every further page size, because a seat has one."""
    sizes: dict[int | None, list[GuestCell]] = {}
    for cell in guest.cells:
        if cell.dedicated:
            sizes.setdefault(_page_bytes(cell, node), []).append(cell)
    nodes = {cell.node for cell in guest.cells}
    for number, (page, cells) in enumerate(sizes.items()):
        name = guest.uuid if number == 0 else f"{guest.uuid}#{number}"
        emulator = frozenset[int]().union(*(cell.reserved for cell in guest.cells)) if number == 0 else frozenset()
        own = guest.emulator_own and number == 0
        threads = _threads(cells[0], node)
        functions = guest.devices if number == 0 else ()
        yield (
            Request(
                name=name,
                cells=tuple(CellRequest(vcpus=len(one.dedicated), memory_bytes=one.memory_mib * MIB) for one in cells),
                threads=threads,
                pages=_page_wish(guest.page_wish, page, node),
                emulator="own" if own else "housekeeping",
                l3="any",
                functions=tuple(_wish(one, guest, node, nodes, whole=len(sizes) == 1) for one in guest.wishes)
                if number == 0
                else (),
            ),
            GuestSeat(
                name=name,
                host=node.name,
                nodes=tuple(one.node for one in cells),
                cpus=tuple(
                    tuple(one.pins[vcpu] for vcpu in sorted(one.dedicated) if vcpu in one.pins) for one in cells
                ),
                idle=_hidden(cells, emulator, node) if threads == "isolate" else frozenset(),
                emulator=emulator if own else frozenset(),
                page_bytes=page,
                functions=tuple(sorted(one.address for one in functions)),
            ),
        )


def _threads(cell: GuestCell, node: Node) -> Threads:
    """With more than two threads a core, ``require`` of Nova is content with two of them, and not judged."""
    widest = max((len(core) for one in node.cells for core in one.siblings), default=1)
    if cell.threads == "require" and widest > 2:
        return "prefer"
    return _THREADS[cell.threads]


def _hidden(cells: Iterable[GuestCell], emulator: frozenset[int], node: Node) -> frozenset[int]:
    """The threads beside an ``isolate`` guest, which Nova takes with it (``pin_cpus_with_siblings``)."""
    mine = emulator.union(*(cell.pins.values() for cell in cells))
    beside = [core for one in node.cells for core in one.siblings if core & mine]
    return frozenset().union(*beside) - mine


def _page_wish(wish: str | None, page: int | None, node: Node) -> Literal["any", "huge-largest", "ordinary"] | int:
    """What the flavor asks for; where it leaves a choice that was kept to, what was chosen."""
    kept: Literal["any"] | int = page if page is not None else "any"
    if not wish or wish == "any":
        return kept
    sizes = sorted({one.size_kib * KIB for cell in node.cells for one in cell.pages})
    if wish in ("small", "large"):
        small = bool(sizes) and page == sizes[0]
        return kept if small == (wish == "small") else "ordinary" if wish == "small" else "huge-largest"
    number = wish.strip().lower().removesuffix("ib").removesuffix("b")
    digits = number.rstrip("kmg")
    return int(digits) * _UNITS[number[len(digits) :]] * KIB if digits.isdecimal() else kept


def _wish(wish: DeviceWish, guest: Guest, node: Node, nodes: set[int], *, whole: bool) -> FunctionRequest:
    """``whole``: the request has all cells of the guest, so that the checker can judge what ``required`` means."""
    mine = [device for device in guest.devices if device.wish == wish.id]
    near = "any" if wish.near == "preferred" else "required"
    if wish.near == "legacy" and mine and all(one.node is None or one.node < 0 or one.node in nodes for one in mine):
        near = "any"
    if wish.near == "socket" and mine:
        socket = {cell.id: cell.socket for cell in node.cells}
        allowed = {socket.get(one) for one in nodes} - {None}
        if all(one.node is not None and (one.node in nodes or socket.get(one.node) in allowed) for one in mine):
            near = "any"
    if not whole and all(one.node in nodes for one in mine):
        near = "any"
    return FunctionRequest(
        pool=f"{wish.vendor}:{wish.product}" if wish.vendor and wish.product else None,
        type=_TYPES.get(wish.type or ""),
        count=wish.count,
        near="required" if near == "required" else "any",
    )
