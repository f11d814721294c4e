"""Placing anew where guests that sit may move: to empty a host, to make room for others, with the fewest bytes moved.

First as much value as can be had with so many moves; then, of all placements worth that, one that copies the least
memory.  A guest that stays on its nodes keeps its CPUs where that can be: a real-time guest always does, unless naming
cannot come out otherwise.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evenkeel.documents.fleet import FleetFunction, FleetPlan, Request, Seat
from evenkeel.plan.fleet.model import Kind, Model, Packing, kinds_of
from evenkeel.plan.fleet.name import CannotName, seats_on
from evenkeel.plan.fleet.options import Way, give_by_sort, told_apart
from evenkeel.plan.fleet.pack import program_over
from evenkeel.plan.fleet.program import OnGap
from evenkeel.plan.fleet.room import Spot, cells_of, without
from evenkeel.plan.fleet.site import Board, Fixed, document, room_of

GIB = 1 << 30
#: Memory that a guest copies from one node to another of its host counts so much of what it counts between hosts.
INSIDE = 0.5


@dataclass(frozen=True)
class _Slot:
    kind: int
    way: Way
    count: int


def place_anew(board: Board, most: int, *, on_gap: OnGap | None = None) -> FleetPlan:
    """Everybody who waits is placed, and at most ``most`` of those that sit move for it.

    Guests of drained hosts wait, so they are not counted.  Bound and value are of all guests together.
    """
    staying: list[Fixed] = [{name: one for name, one in here.items() if not one[0].movable} for here in board.fixed]
    loose: list[Fixed] = [{name: one for name, one in here.items() if one[0].movable} for here in board.fixed]
    rooms = [room_of(host, here) for host, here in zip(board.hosts, staying, strict=True)]
    sitting = [(at, request) for at, here in enumerate(staying) for request, _ in here.values()]
    there = {name for here in staying for name in here}
    requests = [request for request in board.requests if request.name not in there]
    kinds = kinds_of(requests)
    kind_of = {guest.name: number for number, kind in enumerate(kinds) for guest in kind.guests}
    now: dict[tuple[int, int], list[tuple[Request, Seat]]] = defaultdict(list)
    for at, here in enumerate(loose):
        for name, one in sorted(here.items()):
            now[kind_of[name], at].append(one)
    sat: dict[int, int] = defaultdict(int)
    for (number, _), guests in now.items():
        sat[number] += len(guests)
    model = Model(rooms, _weighed(kinds), board.limits, sat, sitting)
    stays = _stays(model, now, most)
    time_limit = board.limits.time_limit_s
    first = model.program.solve(time_limit_s=time_limit, gap=board.limits.gap, on_gap=on_gap)
    assert first.feasible, "everybody may stay where they are, so there is an answer"
    gains = list(model.program.gains)
    worth = model.program.row(low=round(first.value) - 0.5)
    for column, gain in enumerate(gains):
        if gain:
            model.program.put(worth, column, gain)
    model.program.gains = [0.0] * len(gains)
    for column, gain in stays:
        model.program.gains[column] = gain
    second = model.program.solve(time_limit_s=time_limit, start=first.values)
    chosen = second if second.feasible else first
    slots: list[list[_Slot]] = [[] for _ in board.hosts]
    for (number, at, way), count in model.counts(chosen.values):
        slots[at].append(_Slot(number, way, count))
    seats = _assign(board, kinds, now, slots, staying)
    packing = Packing()
    if model.complete and len({kind.sample.priority for kind in kinds}) < 2:
        # document() adds what those with a seat are worth; here the bound has most of them in it.
        packing.bound = first.bound + _value(staying) - _value(seats)
    moved = sum(1 for at, here in enumerate(loose) for name in here if name not in seats[at])
    packing.method = f"{program_over(len(board.hosts))}, {moved} of at most {most} guests moved for it"
    packing.cut_short = first.cut_short or second.cut_short
    return document(replace(board, fixed=seats), packing)


def _value(seats: Sequence[Fixed]) -> int:
    return sum(request.value for here in seats for request, _ in here.values())


def _weighed(kinds: Sequence[Kind]) -> list[Kind]:
    """Kinds worth so much that no number of less urgent ones outweighs one of theirs."""
    found: list[Kind] = []
    factor, below = 1, 0
    for level in sorted({kind.sample.priority for kind in kinds}):
        factor, total = factor + below, 0
        for kind in kinds:
            if kind.sample.priority == level:
                value = kind.sample.value * factor
                total += value * len(kind.guests)
                found.append(Kind(kind.sample.model_copy(update={"value": value}), kind.guests))
        below += total
    order = {kind.guests[0].name: at for at, kind in enumerate(kinds)}
    return sorted(found, key=lambda kind: order[kind.guests[0].name])


def _stays(model: Model, now: dict[tuple[int, int], list[tuple[Request, Seat]]], most: int) -> list[tuple[int, float]]:
    """(column, GiB) of guests that stay on their host, and of those that stay on their nodes."""
    program = model.program
    total = program.row(low=float(sum(len(guests) for guests in now.values()) - most))
    ways: dict[tuple[int, int], list[tuple[int, Way]]] = defaultdict(list)
    for column, (number, at, way) in zip(model.ids, model.columns, strict=True):
        ways[number, at].append((column, way))
    gains: list[tuple[int, float]] = []
    for (number, at), guests in sorted(now.items()):
        size = sum(cell.memory_bytes for cell in guests[0][0].cells) / GIB
        stay = program.column(0.0, float(len(guests)))
        program.put(total, stay, 1.0)
        gains.append((stay, size * (1 - INSIDE)))
        row = program.row(high=0.0)
        program.put(row, stay, 1.0)
        by_nodes: dict[tuple[int, ...], int] = defaultdict(int)
        for _, seat in guests:
            by_nodes[_nodes(guests[0][0], seat)] += 1
        for column, _ in ways[number, at]:
            program.put(row, column, -1.0)
        for nodes, count in sorted(by_nodes.items()):
            keep = program.column(0.0, float(count))
            gains.append((keep, size * INSIDE))
            there = program.row(high=0.0)
            program.put(there, keep, 1.0)
            for column, way in ways[number, at]:
                if way.spot.nodes == nodes:
                    program.put(there, column, -1.0)
    return gains


def _nodes(request: Request, seat: Seat) -> tuple[int, ...]:
    """The nodes on which it sits, as ways name them."""
    return told_apart(request, cells_of(request, len(seat.nodes)), seat.nodes) if seat.nodes else ()


def _assign(
    board: Board,
    kinds: Sequence[Kind],
    now: dict[tuple[int, int], list[tuple[Request, Seat]]],
    slots: Sequence[Sequence[_Slot]],
    staying: Sequence[Fixed],
) -> list[Fixed]:
    """Of each host the guests that keep their seat, those that get another one there, and those that come."""
    settled: set[str] = set()
    kept: list[dict[str, tuple[Request, Seat, Way]]] = []
    inside: list[list[tuple[Request, Way]]] = []
    coming: list[list[tuple[int, Way, int]]] = []
    for at, here in enumerate(slots):
        same, other, open_slots = {}, [], []
        left = {number: list(now.get((number, at), ())) for number in {slot.kind for slot in here}}
        counts = {id_: slot.count for id_, slot in enumerate(here)}
        for id_, slot in enumerate(here):  # those that stay on their nodes
            for request, seat in list(left[slot.kind]):
                if counts[id_] and _nodes(request, seat) == slot.way.spot.nodes:
                    same[request.name] = (request, seat, slot.way)
                    left[slot.kind].remove((request, seat))
                    counts[id_] -= 1
        for id_, slot in enumerate(here):  # those that stay on their host
            while counts[id_] and left[slot.kind]:
                other.append((left[slot.kind].pop(0)[0], slot.way))
                counts[id_] -= 1
            if counts[id_]:
                open_slots.append((slot.kind, slot.way, counts[id_]))
        settled.update(same, (request.name for request, _ in other))
        kept.append(same)
        inside.append(other)
        coming.append(open_slots)
    # Whoever sits somewhere must have a place again, so they come before those who never had one.
    queue = [
        sorted(
            (guest for guest in kind.guests if guest.name not in settled),
            key=lambda guest: (guest.now is None, guest.name),
        )
        for kind in kinds
    ]
    seats: list[Fixed] = []
    for at, host in enumerate(board.hosts):
        new = [(queue[number].pop(0), way) for number, way, count in coming[at] for _ in range(count)]
        seats.append(_name(board, at, kept[at], [*inside[at], *new], staying[at]))
        assert len(seats[at]) == len(kept[at]) + len(inside[at]) + len(new) + len(staying[at]), host.name
    return seats


def _name(
    board: Board,
    at: int,
    kept: dict[str, tuple[Request, Seat, Way]],
    others: Sequence[tuple[Request, Way]],
    staying: Fixed,
) -> Fixed:
    """Seats of all guests of a host: as many as possible keep their CPUs, those that isolate cores first of all."""
    host = board.hosts[at]
    same = {name: (request, seat) for name, (request, seat, _) in kept.items()}
    for keeps in (
        same,
        {name: one for name, one in same.items() if one[0].threads == "isolate"},
        {},
    ):
        fixed: Fixed = {**staying, **keeps}
        anew = [*others, *((request, way) for name, (request, _, way) in kept.items() if name not in keeps)]
        spots = _spots(room_of(host, fixed).functions, anew)
        if spots is None:
            continue
        try:
            found = seats_on(host, spots, fixed)
        except CannotName:  # the CPUs that stay are in the way of whole cores that were counted
            continue
        requests = {request.name: request for request, _ in anew}
        return {**fixed, **{seat.name: (requests[seat.name], seat) for seat in found}}
    raise CannotName(f"{host.name}: guests were counted in, and cannot be named")


def _spots(
    functions: tuple[FleetFunction, ...], guests: Sequence[tuple[Request, Way]]
) -> list[tuple[Request, Spot]] | None:
    found = []
    for request, way in guests:
        given = give_by_sort(functions, request, way)
        if given is None:
            return None
        functions = without(functions, given)
        found.append((request, replace(way.spot, functions=given)))
    return found
