"""Room for the guests of any one host that fails: whether it is there, where, and how to keep it.  Pure.

Whether it is there is certain where it is found: every failure has its placement in the plan, and the checker goes
through each.  Keeping it is a search: the plain placement first, then with one host after the other left empty.
Another placement may have room where none of these has.
"""

from __future__ import annotations

from dataclasses import replace

from evenkeel.documents.fleet import Failover, FleetPlan, GuestSeat
from evenkeel.plan.fleet.model import Clock, Limits, Packing, first_fit, kinds_of
from evenkeel.plan.fleet.name import seats_on
from evenkeel.plan.fleet.pack import pack
from evenkeel.plan.fleet.program import OnGap
from evenkeel.plan.fleet.room import Room
from evenkeel.plan.fleet.site import Board, fixed_of, place_all, room_of

#: Hosts that are tried as the one that stays empty.
MOST_EMPTY = 12


def place_with_standby(board: Board, *, clock: Clock = lambda: 0.0, on_gap: OnGap | None = None) -> FleetPlan:
    """As :func:`place_all`, so that any one host may fail.

    New guests are refused for it where they must be; one that sits already, also on a host that is drained, is not.
    Where that is not found, ``standby`` is False and all guests are placed all the same; :func:`gaps_of` says whose
    failure they would not survive.
    """
    plain = place_all(board, clock=clock, on_gap=on_gap)
    best, gaps = _with_failover(plain)
    if not gaps:
        return best
    sit = {request.name for request in board.requests if request.now is not None} & {one.name for one in plain.seats}
    used = {at for at, here in enumerate(board.fixed) if here}
    order = sorted(
        (at for at, room in enumerate(board.rooms) if at not in used and not room.host.drained),
        key=lambda at: (-sum(node.threads for node in board.rooms[at].nodes), at),
    )
    for at in order[:MOST_EMPTY]:
        empty = board.hosts[at].model_copy(update={"drained": True})
        hosts = (*board.hosts[:at], empty, *board.hosts[at + 1 :])
        rooms = [Room(empty) if number == at else room for number, room in enumerate(board.rooms)]
        found = place_all(replace(board, hosts=hosts, rooms=rooms), clock=clock, on_gap=on_gap)
        found = found.model_copy(update={"hosts": board.hosts, "bound": plain.bound})
        found, missing = _with_failover(found)
        if sit - {one.name for one in found.seats}:
            continue
        if not missing and (gaps or found.value > best.value):
            best, gaps = found, missing
            if len(best.seats) == len(plain.seats):
                break
    return best


def _with_failover(plan: FleetPlan) -> tuple[FleetPlan, dict[str, list[str]]]:
    """The plan with a placement for every failure; and hosts whose guests have no room elsewhere."""
    failovers, gaps = failovers_of(plan)
    return plan.model_copy(update={"standby": not gaps, "failover": tuple(failovers)}), gaps


def failovers_of(plan: FleetPlan) -> tuple[list[Failover], dict[str, list[str]]]:
    """(where the guests of each host go, host -> its guests that have no room elsewhere)."""
    fixed = fixed_of(
        plan.model_copy(update={"guests": tuple(one.model_copy(update={"now": None}) for one in plan.guests)})
    )
    rooms = [room_of(host, here) for host, here in zip(plan.hosts, fixed, strict=True)]
    found: list[Failover] = []
    gaps: dict[str, list[str]] = {}
    for at, here in enumerate(fixed):
        if not here:
            continue
        dead = Room(plan.hosts[at].model_copy(update={"drained": True}))
        left = [dead if number == at else room for number, room in enumerate(rooms)]
        sitting = [(number, one) for number, others in enumerate(fixed) if number != at for one, _ in others.values()]
        # Who may be on this host only is lost with it, as their owner wishes.
        orphans = [request for request, _ in here.values() if request.hosts != (plan.hosts[at].name,)]
        packing: Packing = first_fit(left, kinds_of(orphans), sitting)
        if len(packing.placed) < len(orphans):
            packing = pack(left, orphans, Limits(), sitting=sitting)
        if len(packing.placed) < len(orphans):
            gaps[plan.hosts[at].name] = sorted(one.name for one in orphans if one.name not in packing.placed)
            continue
        seats: list[GuestSeat] = []
        for number, host in enumerate(plan.hosts):
            placed = [(one, packing.placed[one.name][1]) for one in orphans if packing.placed[one.name][0] == number]
            if placed:
                seats += seats_on(host, placed, fixed[number])
        found.append(Failover(host=plan.hosts[at].name, seats=tuple(sorted(seats, key=lambda seat: seat.name))))
    return found, gaps


def gaps_of(plan: FleetPlan) -> list[str]:
    """One sentence for each host without which guests would have no place."""
    _, gaps = failovers_of(plan)
    return [f"if {host} fails, there is no room for {', '.join(names)}" for host, names in sorted(gaps.items())]
