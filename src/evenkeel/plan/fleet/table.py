"""One guest among many hosts: what is free, as arrays, and for each type which hosts have room and at what cost.

A type's answer is worked out once for all hosts and then only for hosts that changed, so that the next guest of a type
costs one look for the smallest number.  The arrays only sort out hosts that cannot do; the host that is chosen is
asked exactly (:func:`evenkeel.plan.fleet.room.fit`), and the next one when it says no.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from evenkeel.documents.fleet import CellRequest, FleetHost, Request
from evenkeel.plan.fleet.room import ORDINARY, Room, Spot, admits, fit, page_of

Array = NDArray[np.int64]
Costs = NDArray[np.float64]
#: Hosts that were said to have room and have none, before the arrays are read anew.
MOST_MISSES = 8
#: What a host would lose by taking a guest, in value that could then not be placed; same length as the hosts.
Price = Callable[[Request], Costs]


def type_of(request: Request) -> tuple[object, ...]:
    """What a guest asks for, whoever it is: guests of a type are interchangeable."""
    return (
        tuple((cell.vcpus, cell.memory_bytes) for cell in request.cells),
        (request.threads, request.pages, request.emulator, request.l3, request.cut, request.max_distance, request.near),
        (request.architecture, request.features, request.networks, request.hosts),
        (request.apart, request.apart_racks, request.together),
        tuple((one.pool, one.type, one.network, one.count, one.near) for one in request.functions),
        (request.value, request.priority),
    )


class Table:
    """All hosts.  ``rooms`` is the truth; guests are only ever counted in."""

    def __init__(
        self, hosts: Sequence[FleetHost], price: Price | None = None, rooms: Sequence[Room] | None = None
    ) -> None:
        self.hosts = list(hosts)
        self.rooms = list(rooms) if rooms is not None else [Room(host) for host in hosts]
        self.price = price
        self.racks: dict[tuple[str, str], int] = {}  # (group to be apart, rack) -> guests of it there
        self.homes: dict[str, int] = {}  # group to be together -> the host that it is on
        self._known: dict[tuple[object, ...], Costs] = {}
        self._samples: dict[tuple[object, ...], Request] = {}
        count, most = len(self.rooms), max((len(room.nodes) for room in self.rooms), default=1)
        sizes = {size for room in self.rooms for node in room.nodes for size in node.pages if size != ORDINARY}
        self._full, self._threads, self._memory, self._width, self._least = (
            np.zeros((count, most), dtype=np.int64) for _ in range(5)
        )
        self._pages: dict[int, Array] = {size: np.zeros((count, most), dtype=np.int64) for size in sorted(sizes)}
        # Hosts that are alike in what never changes share a number: what is true of one is true of all.
        kinds: dict[object, int] = {}
        self._kind = np.array([kinds.setdefault(_kind(host), len(kinds)) for host in self.hosts], dtype=np.int64)
        self._examples = [int(np.argmax(self._kind == number)) for number in range(len(kinds))]
        self._functions: dict[tuple[str, str, str | None], Array] = {}
        self._touched: set[int] = set()  # hosts that are not as the arrays have them
        for at in range(count):
            self._read(at)

    def _read(self, at: int) -> None:
        room = self.rooms[at]
        for number, node in enumerate(room.nodes):
            self._full[at, number] = node.full
            self._threads[at, number] = node.threads
            self._memory[at, number] = node.memory
            self._width[at, number] = node.width
            self._least[at, number] = node.least
            for size, rooms in self._pages.items():
                rooms[at, number] = node.pages.get(size, 0)
        for counts in self._functions.values():
            counts[at] = 0
        for one in room.functions:
            sort = (one.pool, one.type, one.network)
            if sort not in self._functions:
                # The last column: functions of which nobody knows where they are.
                self._functions[sort] = np.zeros((len(self.rooms), self._full.shape[1] + 1), dtype=np.int64)
            self._functions[sort][at, -1 if one.node is None else room.index.get(one.node, -1)] += 1

    # -- asking -------------------------------------------------------------------------------------------------------

    def find(self, request: Request, key: tuple[object, ...] | None = None) -> tuple[int, Spot] | None:
        """The host (its place in the list) and where on it; None: the guest fits nowhere.

        The host that loses least by it; of equals the first.  ``key``: :func:`type_of` the guest, if it is at hand.
        """
        key = key or type_of(request)
        costs = self._costs(request, key)
        barred = self._barred(request)
        misses = 0
        while True:
            at = int(np.argmin(costs if barred is None else np.where(barred, np.inf, costs)))
            if costs[at] == np.inf or (barred is not None and barred[at]):
                return None
            spot = fit(self.rooms[at], request)
            if spot is not None:
                return at, spot
            costs[at] = np.inf
            misses += 1
            if misses == MOST_MISSES:  # others have filled hosts: one look at all, rather than an exact one at each
                np.maximum(costs, self._priced(self._samples[key]), out=costs)

    def place(self, request: Request, key: tuple[object, ...] | None = None) -> tuple[int, Spot] | None:
        """As :meth:`find`, and the guest is counted in."""
        found = self.find(request, key)
        if found is not None:
            self.take(found[0], request, found[1])
        return found

    def take(self, at: int, request: Request, spot: Spot) -> None:
        """Count a guest in.  What has no room already has none now either, and the rest is asked when it is chosen."""
        self.rooms[at].take(request, spot)
        self.join(at, request)
        self._touched.add(at)

    def join(self, at: int, request: Request) -> None:
        """A guest is on this host: what that means for others of its groups."""
        for group in request.apart_racks:
            place = (group, rack_of(self.hosts[at]))
            self.racks[place] = self.racks.get(place, 0) + 1
        for group in request.together:
            self.homes.setdefault(group, at)

    def shut(self, at: int) -> None:
        """No guest of a type that is known goes to this host any more."""
        for costs in self._known.values():
            costs[at] = np.inf

    def is_barred(self, at: int, request: Request) -> bool:
        """Whether guests of the same groups, on other hosts, keep it from this one."""
        rack = rack_of(self.hosts[at])
        return any((group, rack) in self.racks for group in request.apart_racks) or any(
            self.homes.get(group, at) != at for group in request.together
        )

    def _barred(self, request: Request) -> NDArray[np.bool_] | None:
        """Hosts that guests of the same groups keep it from; None: there are no such groups."""
        if not request.apart_racks and not request.together:
            return None
        return np.array([self.is_barred(at, request) for at in range(len(self.hosts))], dtype=bool)

    def _costs(self, request: Request, key: tuple[object, ...]) -> Costs:
        found = self._known.get(key)
        if found is None:
            found = self._priced(request)
            self._known[key], self._samples[key] = found, request
        return found

    def _priced(self, request: Request) -> Costs:
        for at in self._touched:
            self._read(at)
        self._touched.clear()
        costs = np.zeros(len(self.hosts)) if self.price is None else self.price(request)
        fits = np.ones(len(self.hosts), dtype=bool)
        if request.threads != "overcommit" and not request.cut:
            fits = self._cells_fit(request)
        return np.where(fits & self._admitted(request), costs, np.inf)

    def _admitted(self, request: Request) -> NDArray[np.bool_]:
        plain = request.model_copy(update={"near": None, "hosts": ()})
        kinds = np.array([admits(self.hosts[at], plain) for at in self._examples], dtype=bool)
        found: NDArray[np.bool_] = kinds[self._kind]
        if request.near is not None or request.hosts:
            found &= np.array([admits(host, request) for host in self.hosts], dtype=bool)
        return found

    def _cells_fit(self, request: Request) -> NDArray[np.bool_]:
        """Hosts that may have room; who is False here has none for certain."""
        near, there = self._functions_near(request)
        pages = self._page_sizes(request)[self._kind]
        for number, cell in enumerate(dict.fromkeys(request.cells)):
            width, least = self._width, np.maximum(self._least, 1)
            # An emulator of its own may be with this cell or with another that is equal to it.
            first = request.emulator == "own" and number == 0 and len(request.cells) == 1
            full, threads = _needs(request, cell, first, width, least)
            fits = (self._full >= full) & (self._threads >= threads)
            fits &= self._memory >= cell.memory_bytes
            for size, rooms in self._pages.items():
                fits &= (pages != size)[:, None] | (rooms >= cell.memory_bytes)
            if len(request.cells) == 1 and near is not None:
                fits &= near
            there &= fits.sum(axis=1) >= sum(other == cell for other in request.cells)
        there &= pages >= 0
        return there

    def _functions_near(self, request: Request) -> tuple[NDArray[np.bool_] | None, NDArray[np.bool_]]:
        """(nodes that have what must be near, None where nothing must; hosts that have enough at all)."""
        there = np.ones(len(self.hosts), dtype=bool)
        near: NDArray[np.bool_] | None = None
        for wish in request.functions:
            counts = np.zeros((len(self.hosts), self._full.shape[1] + 1), dtype=np.int64)
            for (pool, sort, network), have in self._functions.items():
                if wish.pool in (None, pool) and wish.type in (None, sort) and wish.network in (None, network):
                    counts += have
            there &= counts.sum(axis=1) >= wish.count
            if wish.near == "required":
                enough = counts[:, :-1] >= wish.count
                near = enough if near is None else near & enough
        return near, there

    def _page_sizes(self, request: Request) -> Array:
        """For each kind of host the size of the guest's pages: 0 ordinary ones, -1 none."""
        found = [page_of(self.hosts[at], request, request.cells) for at in self._examples]
        return np.array([(size or 0) if there else -1 for there, size in found], dtype=np.int64)


def _kind(host: FleetHost) -> tuple[object, ...]:
    sizes = tuple(sorted({size.page_bytes for node in host.nodes for size in node.pages}))
    return host.architecture, host.features, host.networks, host.drained, sizes


def _needs(request: Request, cell: CellRequest, first: bool, width: Array, least: Array) -> tuple[Array, Array]:
    """As :func:`evenkeel.plan.fleet.room.need`, for all nodes at once."""
    vcpus, own = cell.vcpus, int(first)
    none = np.zeros_like(width)
    if request.threads == "isolate":
        return none + vcpus + own, (vcpus + own) * width
    cores = -(-vcpus // least)
    if request.threads == "whole":
        return cores, cores * width + own
    if request.l3 == "require":
        return cores, none + vcpus + own
    if request.threads == "require":
        return np.where(vcpus % least > 1, cores, vcpus // least), none + vcpus + own
    return none, none + vcpus + own


def rack_of(host: FleetHost) -> str:
    """Where hosts fail together; a host of which that is not said stands alone."""
    return host.rack or host.name
