"""How a guest is cut into NUMA cells, each for a host node of its own.  Pure.

Which nodes these are is :mod:`evenkeel.plan.seating`; what libvirt is told is :mod:`evenkeel.plan.guest`.  A cell is
never cut again, and two cells of a guest never share a node: then the guest's own idea of near and far is the truth.
Source: reference host-tuning §2.1, §2.6 (G-5 to G-7).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import gcd

from evenkeel.documents.quantity import format_size
from evenkeel.documents.site import CellWish, GuestWish
from evenkeel.plan.cores import PINNED, capacity, with_vcpus
from evenkeel.plan.matching import match
from evenkeel.plan.topology import Core, Topology

MIB = 1 << 20
MOST_CELLS = 64
#: Ways to give the cells of one guest to nodes that are looked at.
MOST_WAYS = 500

Shape = tuple[CellWish, ...]  # one cell for a guest on one node


def wrong_cells(wish: GuestWish) -> tuple[str, str, str] | None:
    """What is wrong with ``numa`` and ``cells`` in themselves: (key, message, hint)."""
    if wish.numa is None and not wish.cells:
        return None
    key = "cells" if wish.cells else "numa"
    if wish.goal not in PINNED:
        return (
            key,
            f"{key} means nothing with goal {wish.goal}: only pinned guests have cells",
            ("take goal performance or realtime, or leave it out"),
        )
    if isinstance(wish.numa, int) and not 1 <= wish.numa <= MOST_CELLS:
        return "numa", f"numa is {wish.numa}; it is a number of nodes, 1 to {MOST_CELLS}, or auto", "as in  numa: 2"
    if wish.cells:
        vcpus, memory = sum(cell.vcpus for cell in wish.cells), sum(cell.memory for cell in wish.cells)
        if wish.numa is not None and wish.numa != len(wish.cells):
            return "numa", f"numa is {wish.numa}, and there are {len(wish.cells)} cells", "leave `numa` out"
        if len(wish.cells) > MOST_CELLS:
            return "cells", f"{len(wish.cells)} cells; there can be {MOST_CELLS}", "take fewer, larger cells"
        if vcpus != wish.vcpus:
            return "cells", f"its cells have {vcpus} vCPUs, the guest has {wish.vcpus}", "make the two agree"
        if memory != wish.memory:
            return (
                "cells",
                (f"its cells have {format_size(memory)} of memory, the guest has {format_size(wish.memory)}"),
                "make the two agree",
            )
        if odd := [cell.memory for cell in wish.cells if cell.memory % MIB or not cell.memory]:
            return "cells", f"a cell of {format_size(odd[0])}", "memory of a cell is a whole number of MiB"
        return None
    if isinstance(wish.numa, int) and even(wish, wish.numa) is None:
        return (
            "numa",
            (f"{wish.vcpus} vCPUs and {format_size(wish.memory)} cannot be cut into {wish.numa} equal cells"),
            "take numbers that can, or say with `cells` what each node is to have",
        )
    return None


def even(wish: GuestWish, count: int) -> Shape | None:
    """``count`` equal cells; None where vCPUs or MiB cannot be divided."""
    if count == 1:
        return (CellWish(vcpus=wish.vcpus, memory=wish.memory),)
    if wish.vcpus % count or wish.memory % (count * MIB):
        return None
    return (CellWish(vcpus=wish.vcpus // count, memory=wish.memory // count),) * count


def shapes(wish: GuestWish, topology: Topology, unit: int | None = None) -> tuple[Shape, ...]:
    """The cells that a guest may have on this machine, those of fewest nodes first; empty: none is possible.

    ``unit``: bytes of which the memory of each cell is a whole number, where ``numa: auto`` leaves the choice.
    """
    if wish.goal not in PINNED:  # it floats over the CPUs of one node, or of all
        return tuple(shape for shape in (even(wish, 1),) if shape is not None)
    if wish.cells:
        return (wish.cells,)
    if wish.numa != "auto":
        found = even(wish, wish.numa or 1)
        return () if found is None else (found,)
    many = range(1, max(1, len(topology.cpu_nodes)) + 1)
    return tuple(
        shape
        for count in many
        if (shape := even(wish, count)) is not None and (count == 1 or not shape[0].memory % (unit or MIB))
    )


def unit_of(shape: Shape) -> int:
    """The largest size that divides the memory of every cell: page sizes are powers of two, so they divide it too."""
    return gcd(*(cell.memory for cell in shape))


def part(wish: GuestWish, cell: CellWish) -> GuestWish:
    """The guest as one of its cells sees it: so many vCPUs."""
    return with_vcpus(wish, cell.vcpus)


def numbers(shape: Sequence[CellWish]) -> Iterator[range]:
    """The vCPUs of each cell: the first cell has the first ones."""
    first = 0
    for cell in shape:
        yield range(first, first + cell.vcpus)
        first += cell.vcpus


def deal(shape: Shape, nodes: Sequence[int], fits: Mapping[tuple[CellWish, int], bool]) -> Iterator[tuple[int, ...]]:
    """Each way to give every cell a node of its own that fits it, as nodes in the order of the cells.

    Equal cells that follow each other take nodes in the order of ``nodes``: exchanging them makes no other way.  A
    beginning that cannot be completed is never gone into, so the first way comes soon whatever the number of nodes.
    """

    def go(index: int, taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        if index == len(shape):
            yield taken
            return
        cell = shape[index]
        start = nodes.index(taken[-1]) + 1 if index and shape[index - 1] == cell else 0
        for place in range(start, len(nodes)):
            node = nodes[place]
            if node in taken or not fits[cell, node]:
                continue
            if index + 1 == len(shape) or _completes(shape[index + 1 :], nodes, place, (*taken, node), cell, fits):
                yield from go(index + 1, (*taken, node))

    if len(shape) <= len(nodes) and _completes(shape, nodes, -1, (), None, fits):
        yield from go(0, ())


def _completes(
    rest: Sequence[CellWish],
    nodes: Sequence[int],
    place: int,
    taken: tuple[int, ...],
    last: CellWish | None,
    fits: Mapping[tuple[CellWish, int], bool],
) -> bool:
    """Whether the rest of the cells can be matched to the nodes that are left."""
    run = 0  # cells that follow the last one and are equal to it must take later nodes
    while last is not None and run < len(rest) and rest[run] == last:
        run += 1
    choices = [
        [
            node
            for at, node in enumerate(nodes)
            if node not in taken and fits[cell, node] and (index >= run or at > place)
        ]
        for index, cell in enumerate(rest)
    ]
    return match(choices) is not None


def carries(wish: GuestWish, cell: CellWish, cores: Iterable[Core]) -> bool:
    """Whether these cores have room for the vCPUs of a cell."""
    return capacity(part(wish, cell), cores) >= cell.vcpus


def sockets(shape: Sequence[CellWish], packages: Sequence[int | None]) -> int:
    """Sockets that the guest is shown.  ``packages``: the host's socket of each cell, None where it is not known.

    As many as the host's where each carries equally many vCPUs in cells that follow each other; so cells of one socket
    (sub-NUMA clusters) stay in one.  Otherwise as many equal ones as leave no cell with a part of a socket.
    """
    total = sum(cell.vcpus for cell in shape)
    runs: list[tuple[int | None, int]] = []
    for cell, package in zip(shape, packages, strict=True):
        if runs and package is not None and runs[-1][0] == package:
            runs[-1] = (package, runs[-1][1] + cell.vcpus)
        else:
            runs.append((package, cell.vcpus))
    if len({vcpus for _, vcpus in runs}) == 1 and len({package for package, _ in runs}) == len(runs):
        return len(runs)
    return total // gcd(*(cell.vcpus for cell in shape))
