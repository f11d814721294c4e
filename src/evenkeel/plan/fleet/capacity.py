"""How many more guests of each kind a fleet takes, what runs out first, and what each owner holds.  Pure.

The numbers come from packing copies of a guest until the fleet is full, so they are what placing them would give.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenkeel.documents.fleet import FleetPlan, Request
from evenkeel.plan.fleet.explain import Around, refusal
from evenkeel.plan.fleet.name import cpus_of
from evenkeel.plan.fleet.pack import Clock, Estimate, Kind, Limits, kinds_of, pack, table_with
from evenkeel.plan.fleet.room import Room

#: Copies of one guest that are placed at most.
MOST = 200_000


@dataclass(frozen=True)
class More:
    """``count``: so many more guests like ``like`` fit, alone.  ``short``: what the most hosts lack for one more then.

    ``exact``: no placement takes more; otherwise the bound says how many at most.
    """

    like: str
    guests: int  # of the site that are alike
    count: int
    bound: int | None
    short: tuple[tuple[str, int], ...]

    @property
    def exact(self) -> bool:
        return self.bound == self.count


def how_many_more(
    rooms: Sequence[Room],
    requests: Sequence[Request],
    limits: Limits,
    sitting: Sequence[tuple[int, Request]] = (),
    clock: Clock = lambda: 0.0,
) -> list[More]:
    """For each kind of guest among ``requests``, on hosts as they are now.  ``limits``: the time is for each kind."""
    found = []
    for kind in kinds_of(_as_new(requests)):
        sample = kind.sample.model_copy(update={"value": 1})
        most = min(MOST, int(Estimate(rooms, [Kind(sample, (sample,) * MOST)]).bound + 1e-6))
        copies = [sample.model_copy(update={"name": f"{sample.name}+{number + 1}"}) for number in range(most)]
        packing = pack(rooms, copies, limits, sitting=sitting, clock=clock)
        table = table_with(rooms, kinds_of(copies), packing, sitting)
        cuts = refusal(table.rooms, sample, Around(table.is_barred)).cuts
        bound = None if packing.bound is None or packing.cut_short else int(packing.bound + 1e-6)
        found.append(
            More(
                like=kind.sample.name,
                guests=len(kind.guests),
                count=len(packing.placed),
                bound=bound,
                short=tuple((cut.reason, cut.hosts) for cut in cuts),
            )
        )
    return found


def _as_new(requests: Iterable[Request]) -> list[Request]:
    """Guests as if they came now: wherever there is room, whatever their priority."""
    return [one.model_copy(update={"now": None, "movable": True, "priority": 0}) for one in requests]


@dataclass(frozen=True)
class Holding:
    """What guests of one owner hold.  ``cores``: whole ones, taken for nobody else; ``cpus``: with those kept empty."""

    owner: str
    guests: int
    vcpus: int
    cores: int
    cpus: int
    nodes: int
    memory_bytes: int
    huge_bytes: int
    functions: int


def holdings(plan: FleetPlan) -> list[Holding]:
    """Of every owner, by name; guests without an owner are under ``-``."""
    hosts = {host.name: host for host in plan.hosts}
    requests = {request.name: request for request in plan.guests}
    sums: dict[str, list[int]] = {}
    places: dict[str, set[tuple[str, int]]] = {}
    for seat in plan.seats:
        request, host = requests[seat.name], hosts[seat.host]
        mine = cpus_of(request, seat)
        cores = sum(core <= mine for node in host.nodes for core in node.cores)
        memory = sum(cell.memory_bytes for cell in request.cells)
        owner = request.owner or "-"
        row = sums.setdefault(owner, [0] * 7)
        for at, amount in enumerate(
            (
                1,
                sum(cell.vcpus for cell in request.cells),
                cores,
                len(mine),
                memory,
                memory if seat.page_bytes else 0,
                len(seat.functions),
            )
        ):
            row[at] += amount
        places.setdefault(owner, set()).update((seat.host, node) for node in seat.nodes)
    return [
        Holding(owner, row[0], row[1], row[2], row[3], len(places[owner]), row[4], row[5], row[6])
        for owner, row in sorted(sums.items())
    ]
