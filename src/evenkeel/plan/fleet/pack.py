"""A whole set of guests on a whole fleet, worth as much as can be: who goes where, and how near to the bound that is.

First comes a greedy answer, then the integer program (:mod:`evenkeel.plan.fleet.model`); more than :data:`LARGE` hosts
are solved in parts (:mod:`evenkeel.plan.fleet.pods`), and what is left over then gets a last look at the whole fleet.
Whoever is of higher priority is placed first, whatever it costs the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from evenkeel.documents.fleet import Request
from evenkeel.plan.fleet.model import (
    DEFAULTS,
    Clock,
    Kind,
    Limits,
    Model,
    Packing,
    fill,
    first_fit,
    kinds_of,
    realise,
)
from evenkeel.plan.fleet.options import rather_in_one_l3, rather_near
from evenkeel.plan.fleet.pods import pack_pods
from evenkeel.plan.fleet.program import OnGap
from evenkeel.plan.fleet.room import Room

#: Hosts that are solved at once; more are solved in pods.
LARGE = 250
#: Columns and nodes of the search tree for what guests would rather have; it is not worth more.
MOST_COLUMNS, MOST_NODES = 20_000, 100


def program_over(hosts: int) -> str:
    """How a fleet was packed, for people."""
    return f"integer program over {hosts} host{'s' * (hosts != 1)}"


def pack(
    rooms: Sequence[Room],
    requests: Sequence[Request],
    limits: Limits = DEFAULTS,
    *,
    sitting: Sequence[tuple[int, Request]] = (),
    clock: Clock = lambda: 0.0,
    on_gap: OnGap | None = None,
) -> Packing:
    """Place as much as can be.  ``rooms``: what is free now; they are left as they are.

    ``sitting``: (place of the host, guest) of those that are counted into the rooms already, for what groups and limits
    make of them.  ``clock``: seconds, for the time limit of whatever is solved in parts.  Raises AssertionError for a
    solution that cannot be carried out, which is a defect.
    """
    hosts = [room.host for room in rooms]
    kinds = kinds_of(requests)
    started = clock()
    if len(rooms) > LARGE and limits.max_hosts is None and limits.power_watts is None:
        return pack_pods(rooms, kinds, limits, sitting, clock, on_gap)
    best = Packing()
    levels = sorted({kind.sample.priority for kind in kinds}, reverse=True)
    fixed: dict[int, int] = {}  # kinds of levels that are settled -> how many of each
    for level in levels or [0]:
        known = [kind for kind in kinds if kind.sample.priority >= level]
        left = None if limits.time_limit_s is None else max(1.0, limits.time_limit_s - (clock() - started))
        model = Model(rooms, known, limits, fixed, sitting)
        start = None if fixed or model.capped else first_fit(rooms, known, sitting)
        found = model.solve(left, limits.gap, start, on_gap)
        best = replace(found, cut_short=found.cut_short or best.cut_short)
        fixed = {at: sum(1 for guest in kind.guests if guest.name in best.placed) for at, kind in enumerate(known)}
    left = None if limits.time_limit_s is None else limits.time_limit_s - (clock() - started)
    if left is None or left > 0:
        _please(rooms, kinds, best, limits, sitting, left)
    if limits.max_hosts is None and limits.power_watts is None:
        fill(rooms, kinds, best, sitting)
    best.method = program_over(len(hosts))
    return best


def _please(
    rooms: Sequence[Room],
    kinds: Sequence[Kind],
    best: Packing,
    limits: Limits,
    sitting: Sequence[tuple[int, Request]],
    time_limit_s: float | None,
) -> None:
    """Change the places of a packing so that as little as can be is missed that guests would rather have.

    The same number of each kind is placed, so this costs nobody a place.  Left as it is where the program is too large.
    """
    domains = any(len(node.l3) > 1 for room in rooms for node in room.nodes)
    wishing = [kind for kind in kinds if rather_near(kind.sample) or (domains and rather_in_one_l3(kind.sample))]
    if not wishing or not best.placed:
        return
    same = [Kind(kind.sample, tuple(guest for guest in kind.guests if guest.name in best.placed)) for kind in kinds]
    model = Model(rooms, same, limits, {at: len(kind.guests) for at, kind in enumerate(same)}, sitting, kept=True)
    if len(model.columns) > MOST_COLUMNS:
        return
    program = model.program
    program.gains = [0.0] * len(program.gains)
    for column, (_, _, way) in zip(model.ids, model.columns, strict=True):
        program.gains[column] = -float(way.misses)
    start = None if best.counts is None or model.capped else model.as_columns(best.counts)
    solution = program.solve(time_limit_s=time_limit_s, start=start, most_nodes=MOST_NODES)
    best.cut_short |= solution.cut_short
    if solution.feasible:
        best.placed = realise(rooms, same, model.counts(solution.values))


def fewest_hosts(
    rooms: Sequence[Room],
    requests: Sequence[Request],
    *,
    sitting: Sequence[tuple[int, Request]] = (),
    time_limit_s: float | None = 60.0,
    on_gap: OnGap | None = None,
) -> Packing:
    """Place everybody on as few hosts as can be; nobody, where not all fit.

    ``value`` is the number of hosts, ``bound`` how many are needed at least.
    """
    kinds = kinds_of(requests)
    everybody = {at: len(kind.guests) for at, kind in enumerate(kinds)}
    model = Model(rooms, kinds, Limits(max_hosts=len(rooms)), everybody, sitting)
    program = model.program
    program.gains = [0.0] * len(program.gains)
    for column in model.used.values():
        program.gains[column] = -1.0
    solution = program.solve(time_limit_s=time_limit_s, on_gap=on_gap)
    if not solution.feasible:
        return Packing(method=program_over(len(rooms)), cut_short=solution.cut_short)
    placed = realise(rooms, kinds, model.counts(solution.values))
    count = len({at for at, _ in placed.values()} | {at for at, _ in sitting})
    bound = None if not model.complete else -solution.bound
    return Packing(placed, count, bound, f"fewest of {len(rooms)} hosts", solution.cut_short)
