"""A site on its hosts: who stays where, who goes where, who has no place and why.  Pure.

Guests that sit somewhere stay there, with the CPUs that they have, as long as the site and the machine allow it.  Then
all others are placed at once (:mod:`evenkeel.plan.fleet.pack`).  What comes out names nodes, CPUs, pages and functions;
the planner of each host takes them over as seats, so that both say the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from evenkeel.documents.facts import Facts
from evenkeel.documents.fleet import Cut, FleetHost, FleetPlan, GuestSeat, Move, Refusal, Request
from evenkeel.documents.fleet import Seat as SeatDocument
from evenkeel.documents.plan import HostPlan, Plan
from evenkeel.documents.site import GuestWish, Site
from evenkeel.errors import WrongInput
from evenkeel.plan.cells import shapes
from evenkeel.plan.claims import cells_of as cells_of_claim
from evenkeel.plan.cores import PINNED, threads
from evenkeel.plan.fleet.bound import Estimate
from evenkeel.plan.fleet.explain import Around, Limit, fits_with, refusal, things_of
from evenkeel.plan.fleet.hosts import fleet_of
from evenkeel.plan.fleet.model import Clock, Limits, Packing, kinds_of, table_with
from evenkeel.plan.fleet.name import cpus_of, seats_on
from evenkeel.plan.fleet.pack import fewest_hosts, pack
from evenkeel.plan.fleet.program import OnGap
from evenkeel.plan.fleet.requests import requests_of
from evenkeel.plan.fleet.room import NodeRoom, Room, Spot, admits, cells_of, fit, give_functions, page_of, usable
from evenkeel.plan.fleet.table import Table, rack_of
from evenkeel.plan.problems import Misfit, did_you_mean
from evenkeel.plan.seats import Seat, Seats, merge, seats_of_facts, seats_of_plan
from evenkeel.plan.topology import Topology

Fixed = dict[str, tuple[Request, SeatDocument]]


@dataclass
class Board:
    """A fleet with the guests that stay on it.  ``fixed``: of each host, in the order of the hosts."""

    hosts: tuple[FleetHost, ...]
    requests: tuple[Request, ...]
    fixed: list[Fixed]
    rooms: list[Room]
    limits: Limits
    standby: bool = False

    @property
    def sitting(self) -> list[tuple[int, Request]]:
        return [(at, request) for at, here in enumerate(self.fixed) for request, _ in here.values()]

    @property
    def waiting(self) -> list[Request]:
        """Guests that have no place yet."""
        there = {name for here in self.fixed for name in here}
        return [request for request in self.requests if request.name not in there]


def board_of(
    site: Site, facts: Mapping[str, Facts], keep: Plan | None = None, *, time_limit_s: float | None = 60.0
) -> Board:
    """The fleet of a site, and who sits where on it.  Raises WrongInput for a site that cannot be."""
    kept = {host.name: host for host in keep.hosts} if keep else {}
    seats = {host: _seats(site, host, facts[host], kept.get(host)) for host in sorted(site.hosts)}
    hosts = fleet_of(site, facts, seats).hosts
    known = {host: _known(host, facts[host], kept.get(host)) for host in site.hosts}
    by_name = {host.name: host for host in hosts}
    now: dict[str, SeatDocument] = {}
    plain = {request.name: request for request in requests_of(site, {})}
    for name, wish in sorted(site.guests.items()):
        for host in [wish.host] if wish.host else sorted(site.hosts):
            if wish.cpus and wish.goal in PINNED and (wish.host or len(site.hosts) == 1):
                claimed, held = _claimed(wish, plain[name], by_name[host], facts[host]), seats[host].guests.get(name)
                seat = _with_functions(claimed, plain[name], by_name[host], held) if held else claimed
            elif name in known[host]:
                seat = _sitting(plain[name], by_name[host], seats[host].guests.get(name))
            else:
                continue
            if seat is not None:
                now[name] = seat
                break
    requests = requests_of(site, now)
    limits = Limits(site.placing.max_hosts, site.placing.power_watts, time_limit_s)
    return settle(Board(hosts, requests, [], [], limits, site.placing.standby))


def settle(board: Board) -> Board:
    """Everybody who can stays where they are now, or at least on their host; whoever cannot is waiting."""
    fixed: list[Fixed] = [{} for _ in board.hosts]
    index = {host.name: at for at, host in enumerate(board.hosts)}
    staying = [
        (request, request.now, index[request.now.host])
        for request in sorted(board.requests, key=_precedence)
        if request.now is not None and request.now.host in index
        if admits(board.hosts[index[request.now.host]], request)
    ]
    rooms = [Room(host) for host in board.hosts]
    taken: list[frozenset[int]] = [frozenset() for _ in board.hosts]

    def stay(at: int, request: Request, seat: SeatDocument, room: Room | None = None) -> None:
        mine = cpus_of(request, seat)
        rooms[at] = room or _beside(rooms[at], taken[at] | mine, mine, request, seat)
        taken[at] |= mine
        fixed[at][request.name] = (request, seat)

    for request, seat, at in staying:
        if (kept := _still(rooms[at], taken[at], request, seat)) is not None:
            stay(at, request, *kept)
    for request, _, at in staying:
        if request.name not in fixed[at]:
            spot = fit(rooms[at], request)
            if spot is not None:
                (anew,) = seats_on(board.hosts[at], [(request, spot)], fixed[at])
                stay(at, request, anew)
    return replace(board, fixed=fixed, rooms=rooms)


def _precedence(request: Request) -> tuple[bool, bool, str]:
    """Those that may not move first; those that are to get functions now after those that have theirs."""
    known = request.now is not None and bool(request.now.functions)
    return request.movable, bool(request.functions) and not known, request.name


def room_of(host: FleetHost, here: Fixed) -> Room:
    """A host with the guests that stay there taken out by name."""
    taken = frozenset(cpu for request, seat in here.values() for cpu in cpus_of(request, seat))
    room = Room(host, taken)
    for request, seat in here.values():
        room.take_seat(request, seat)
    return room


def _beside(room: Room, taken: frozenset[int], mine: frozenset[int], request: Request, seat: SeatDocument) -> Room:
    """The room with one more guest taken out by name.  ``taken``: the CPUs of all guests there, ``mine`` of this one.

    As :func:`room_of` of all of them, without going through those that were there.
    """
    made = room.copy()
    for at, (node, data) in enumerate(zip(made.nodes, room.host.nodes, strict=True)):
        here = mine & data.cpus
        if here:
            fresh = NodeRoom(room.host, at, taken)
            node.full, node.least, node.l3 = fresh.full, fresh.least, fresh.l3
            node.threads -= len(here)
    made.take_seat(request, seat)
    return made


def _still(
    before: Room, taken: frozenset[int], request: Request, seat: SeatDocument
) -> tuple[SeatDocument, Room] | None:
    """The seat of a guest that keeps it beside those that keep theirs, and the room then; None: it cannot."""
    if request.threads != "overcommit" and (not seat.nodes or bool(seat.cpus) == (request.threads == "float")):
        return None  # only its host is known
    host, mine = before.host, cpus_of(request, seat)
    if mine & taken or not mine <= frozenset().union(*(node.free for node in host.nodes)):
        return None
    if request.apart and before.apart.intersection(request.apart):
        return None
    if request.functions and not seat.functions:  # it gets them now: the first that serve
        found = give_functions(before.functions, request, seat.nodes or None)
        if found is None:
            return None
        seat = seat.model_copy(update={"functions": tuple(sorted(found))})
    if not set(seat.functions) <= {one.address for one in before.functions}:
        return None
    room = _beside(before, taken | mine, mine, request, seat)
    if any(node.memory < 0 or node.threads < 0 or min(node.pages.values(), default=0) < 0 for node in room.nodes):
        return None
    if room.loose_vcpus > host.overcommit * sum(node.threads for node in room.nodes):
        return None
    if room.loose_memory > min(
        sum(node.memory for node in room.nodes), 1 << 62 if room.ordinary is None else room.ordinary
    ):
        return None
    left = {one.address for one in before.functions}
    return (seat, room) if set(seat.functions) <= left else None


# -- what is now ------------------------------------------------------------------------------------------------------


def _seats(site: Site, host: str, facts: Facts, kept: HostPlan | None) -> Seats:
    """Of guests that may be on this host."""
    known = {name for name, wish in site.guests.items() if wish.host in (None, host)}
    found = seats_of_facts(facts, known)
    if kept is None:
        return found
    plan = seats_of_plan(kept)
    return merge(plan.without(plan.guests.keys() - known), found)


def _known(host: str, facts: Facts, kept: HostPlan | None) -> set[str]:
    """Guests that are on this host, as an earlier plan or the host itself says."""
    return {one.guest for one in facts.definitions} | ({one.name for one in kept.guests} if kept else set())


def _sitting(request: Request, host: FleetHost, seat: Seat | None) -> SeatDocument:
    """The seat of a guest as this fleet would write it; the host alone, where it does not sit as it wishes now."""
    only = SeatDocument(host=host.name)
    nodes = {node.id: node for node in host.nodes}
    if request.threads == "overcommit":
        house = frozenset(cpu for node in host.nodes for cpu in node.housekeeping)
        held = _held(request, host, seat, ()) if seat is not None else ()
        return SeatDocument(host=host.name, emulator=house, functions=held)
    if seat is None:
        return only
    if request.threads == "float":
        node = seat.node if seat.node in nodes else next(iter(nodes)) if len(nodes) == 1 else None
        found = _seat(host, request, {node: ()}) if node is not None else None
        return _with_functions(found, request, host, seat) or only
    on: dict[int, list[int]] = {}
    node_of = {cpu: node.id for node in host.nodes for cpu in node.cpus}
    for cpu in seat.cpus:
        if cpu not in node_of:
            return only
        on.setdefault(node_of[cpu], []).append(cpu)
    found = _seat(host, request, {node: tuple(cpus) for node, cpus in on.items()})
    return _with_functions(found, request, host, seat) or only


def _with_functions(found: SeatDocument | None, request: Request, host: FleetHost, seat: Seat) -> SeatDocument | None:
    if found is None:
        return None
    return found.model_copy(update={"functions": _held(request, host, seat, found.nodes)})


def _held(request: Request, host: FleetHost, seat: Seat, nodes: tuple[int, ...]) -> tuple[str, ...]:
    """Of the functions that it has those that it asks for; the others only share their IOMMU groups."""
    mine = [one for one in usable(host.functions) if one.address in seat.functions]
    return tuple(sorted(give_functions(mine, request, nodes or None) or ()))


def _claimed(wish: GuestWish, request: Request, host: FleetHost, facts: Facts) -> SeatDocument | None:
    """The seat that an owner names by its CPUs; None where the planner of the host will say what is wrong with it."""
    topology = Topology(facts)
    if not wish.cpus or not wish.cpus <= topology.online:
        return None
    cores = tuple(sorted({topology.core_of[cpu] for cpu in wish.cpus}))
    for shape in shapes(wish, topology, wish.page_size):
        if len(shape) == len({core.node for core in cores}):
            found = cells_of_claim(wish, shape, cores)
            if found is not None:
                parts = {
                    node: threads(wish.model_copy(update={"vcpus": cell.vcpus}), here)
                    for cell, (node, here) in zip(shape, found, strict=True)
                }
                return _seat(host, request, parts)
    return None


def _seat(host: FleetHost, request: Request, parts: Mapping[int, tuple[int, ...]]) -> SeatDocument | None:
    cells = cells_of(request, len(parts)) if parts else ()
    if not cells or len(cells) != len(parts):
        return None
    floats = request.threads == "float"
    if not floats and any(cell.vcpus != len(cpus) for cell, cpus in zip(cells, parts.values(), strict=True)):
        return None
    there, page = page_of(host, request, cells)
    if not there:
        return None
    core_of = {cpu: core for node in host.nodes for core in node.cores for cpu in core}
    mine = frozenset(cpu for cpus in parts.values() for cpu in cpus)
    beside = frozenset(cpu for one in mine for cpu in core_of[one]) - mine
    house = {node.id: node.housekeeping for node in host.nodes}
    return SeatDocument(
        host=host.name,
        nodes=tuple(parts),
        cpus=() if floats else tuple(parts.values()),
        idle=beside if request.threads in ("isolate", "whole") else frozenset(),
        emulator=frozenset().union(*(house[node] for node in parts)),
        page_bytes=page,
    )


# -- placing ----------------------------------------------------------------------------------------------------------


def place_all(board: Board, *, clock: Clock = lambda: 0.0, on_gap: OnGap | None = None) -> FleetPlan:
    """Everybody who waits is placed, as far as possible; the others stay."""
    packing = pack(board.rooms, board.waiting, board.limits, sitting=board.sitting, clock=clock, on_gap=on_gap)
    return document(board, packing)


def place_on_fewest(board: Board, *, clock: Clock = lambda: 0.0, on_gap: OnGap | None = None) -> FleetPlan:
    """Everybody on as few hosts as can be; as :func:`place_all` where not all fit, or where a fleet has limits."""
    limit = board.limits.time_limit_s
    limited = board.limits.max_hosts is not None or board.limits.power_watts is not None
    packing = Packing()
    if not limited:
        packing = fewest_hosts(board.rooms, board.waiting, sitting=board.sitting, time_limit_s=limit, on_gap=on_gap)
    if limited or len(packing.placed) < len(board.waiting):
        return place_all(board, clock=clock, on_gap=on_gap)
    needed = "?" if packing.bound is None else f"{packing.bound:.0f}"
    packing.method = f"{packing.value} hosts are used, {needed} are needed at least"
    packing.bound = None
    return document(board, packing)


def require_guest(name: str, known: Iterable[str]) -> None:
    """Raises WrongInput where ``known``, the guests of a site, has none of that name."""
    if name not in (names := list(known)):
        raise WrongInput(f"the site has no guest {name}", hint=did_you_mean(name, names))


def place_one(board: Board, name: str, *, clock: Clock = lambda: 0.0, on_gap: OnGap | None = None) -> FleetPlan:
    """All others first, as :func:`place_all` would, then this guest on the host that loses least by it.

    Raises WrongInput where there is no such guest.
    """
    require_guest(name, [request.name for request in board.requests])
    guest = next(request for request in board.requests if request.name == name)
    others = [request for request in board.waiting if request.name != name]
    packing = pack(board.rooms, others, board.limits, sitting=board.sitting, clock=clock, on_gap=on_gap)
    if any(request.name == name for request in board.waiting):
        kinds = kinds_of(board.requests)
        table = table_with(board.rooms, kinds_of(others), packing, board.sitting)
        table.price = Estimate(table.rooms, kinds).price
        allowed = _allowed(board, packing)
        while (found := table.find(guest)) is not None:
            if allowed is None or found[0] in allowed:
                packing.placed[name] = found
                packing.value += guest.value
                break
            table.shut(found[0])
    packing.bound = None
    packing.method = f"one guest among {len(board.hosts)} hosts; {packing.method} for the others"
    return document(board, packing)


def _allowed(board: Board, packing: Packing) -> set[int] | None:
    """Hosts that limits of the fleet let one more guest be on; None: all."""
    if board.limits.max_hosts is None and board.limits.power_watts is None:
        return None
    used = {at for at, _ in packing.placed.values()} | {at for at, _ in board.sitting}
    power = sum(board.hosts[at].power_watts or 0 for at in used)
    return used | {
        at
        for at, host in enumerate(board.hosts)
        if (board.limits.max_hosts is None or len(used) < board.limits.max_hosts)
        and (board.limits.power_watts is None or power + (host.power_watts or 0) <= board.limits.power_watts)
    }


def document(board: Board, packing: Packing) -> FleetPlan:
    """The FleetPlan of a packing, with CPUs by name, and why guests that are left out are."""
    by_host: list[list[tuple[Request, Spot]]] = [[] for _ in board.hosts]
    for request in board.waiting:
        if request.name in packing.placed:
            at, spot = packing.placed[request.name]
            by_host[at].append((request, spot))
    seats: list[GuestSeat] = []
    for host, here, placed in zip(board.hosts, board.fixed, by_host, strict=True):
        seats += [_named(name, seat) for name, (_, seat) in here.items()]
        seats += seats_on(host, placed, here) if placed else ()
    left = [request for request in board.waiting if request.name not in packing.placed]
    sitting = {seat.name for seat in seats}
    kept_value = sum(request.value for here in board.fixed for request, _ in here.values())
    return FleetPlan(
        hosts=board.hosts,
        guests=board.requests,
        seats=tuple(sorted(seats, key=lambda seat: seat.name)),
        refused=tuple(refusals(board, packing, left)),
        moves=tuple(_moves(board, {seat.name: seat for seat in seats})),
        max_hosts=board.limits.max_hosts,
        power_watts=board.limits.power_watts,
        value=sum(request.value for request in board.requests if request.name in sitting),
        bound=None if packing.bound is None else round(packing.bound + kept_value, 6),
        method=packing.method + (", cut short by its time limit" if packing.cut_short else ""),
    )


def sitting_of(plan: FleetPlan) -> tuple[list[Room], list[tuple[int, Request]]]:
    """The hosts of a plan with all its guests on them: (what is left on each, who is where)."""
    fixed = fixed_of(plan)
    rooms = [room_of(host, here) for host, here in zip(plan.hosts, fixed, strict=True)]
    return rooms, [(at, request) for at, here in enumerate(fixed) for request, _ in here.values()]


def fixed_of(plan: FleetPlan) -> list[Fixed]:
    """Of each host of a plan, in their order, the guests that have a seat there, in the order of the seats."""
    requests = {request.name: request for request in plan.guests}
    here: dict[str, Fixed] = {host.name: {} for host in plan.hosts}
    for seat in plan.seats:
        here[seat.host][seat.name] = (requests[seat.name], seat)
    return list(here.values())


def _named(name: str, seat: SeatDocument) -> GuestSeat:
    return GuestSeat(name=name, **{key: getattr(seat, key) for key in SeatDocument.model_fields})


def refusals(board: Board, packing: Packing, left: Sequence[Request]) -> list[Refusal]:
    """Why these guests are left out; guests of a type share the answer."""
    if not left:
        return []
    table = table_with(board.rooms, kinds_of(board.waiting), packing, board.sitting)
    limits = _limits(board, packing)
    found: list[Refusal] = []
    for kind in kinds_of(left):
        sample = kind.sample
        around = Around(table.is_barred, _groups(sample, table, board.hosts), limits)
        answer = refusal(table.rooms, sample, around)
        if not answer.cuts:
            answer = answer.model_copy(update={"reasons": ("guests that are worth more have the room",)})
        found += [answer.model_copy(update={"name": guest.name}) for guest in kind.guests]
    return sorted(found, key=lambda one: one.name)


def _groups(request: Request, table: Table, hosts: Sequence[FleetHost]) -> str:
    """Where the other guests of its groups are, and what follows from it; "": it has no such groups."""
    said = []
    for group in request.apart_racks:
        racks = sorted(rack for other, rack in table.racks if other == group)
        if racks:
            free = sorted({rack_of(host) for host in hosts} - set(racks))
            rest = f"has no room for it on {', '.join(free)}" if free else "has no other rack"
            where = f"rack{'s' * (len(racks) > 1)} {', '.join(racks)}"
            said.append(f"guests of {group} are in {where} already, and the site {rest}")
    for group in request.together:
        if group in table.homes:
            home = hosts[table.homes[group]].name
            said.append(f"it is to be with the guests of {group} on {home}, and there is no room for it there")
    return "; ".join(said)


def _limits(board: Board, packing: Packing) -> tuple[Limit, ...]:
    """Limits of the fleet that keep further hosts from being used."""
    used = {at for at, _ in packing.placed.values()} | {at for at, _ in board.sitting}
    names = ", ".join(board.hosts[at].name for at in sorted(used)[:3]) + ("..." if len(used) > 3 else "")
    others = [at for at in range(len(board.hosts)) if at not in used]
    found = []
    most, watts = board.limits.max_hosts, board.limits.power_watts
    if most is not None and others and len(used) >= most:
        reason = f"{len(used)} host{'s' * (len(used) != 1)} may be used (max_hosts), and {names or 'none'} is"
        reason = reason.removesuffix("is") + ("is" if len(used) == 1 else "are")
        cure = f"max_hosts: {len(used) + 1}"
        found.append(Limit("max_hosts", frozenset(others), reason, dict.fromkeys(others, cure)))
    if watts is not None:
        takes = {at: board.hosts[at].power_watts or 0 for at in range(len(board.hosts))}
        taken = sum(takes[at] for at in used)
        closed = [at for at in others if taken + takes[at] > watts]
        if closed:
            least = min(closed, key=lambda at: (takes[at], at))
            reason = (
                f"{names} take{'s' * (len(used) == 1)} {taken} of {watts} W (power_watts), "
                f"and {board.hosts[least].name} would take {takes[least]} more"
                if used
                else f"there are {watts} W (power_watts), and {board.hosts[least].name} alone takes {takes[least]}"
            )
            cures = {at: f"power_watts: {taken + takes[at]}" for at in closed}
            found.append(Limit("power_watts", frozenset(closed), reason, cures))
    return tuple(found)


def without_standby(board: Board, plan: FleetPlan) -> FleetPlan:
    """The plan, with the true reason for guests that are left out only to keep room for the failure of a host.

    Looking for such room leaves hosts empty as if they were drained, which is nothing that an owner should read.
    """
    if not plan.refused:
        return plan
    rooms, sitting = sitting_of(plan)
    packing = Packing()
    table = table_with(rooms, kinds_of(board.requests), packing, sitting)
    requests = {request.name: request for request in plan.guests}
    found = []
    for one in plan.refused:
        request = requests[one.name]
        around = Around(table.is_barred, _groups(request, table, plan.hosts))
        things = things_of(request, around)
        open_to = [room.host.name for at, room in enumerate(rooms) if fits_with(at, room, request, things, around)]
        answer = refusal(rooms, request, around)
        if not open_to:
            found.append(answer.model_copy(update={"name": one.name}))
            continue
        where = ", ".join(open_to[:3]) + (f" and {len(open_to) - 3} more" if len(open_to) > 3 else "")
        cut = Cut(reason="room for its guests elsewhere, if it fails", hosts=len(open_to), example=open_to[0])
        found.append(
            Refusal(
                name=one.name,
                reasons=(
                    f"there is room on {where}, but with it no room was found for the guests of a host that fails",
                ),
                cuts=(cut, *answer.cuts),
                cures=(f"without standby it fits on {open_to[0]}",),
            )
        )
    return plan.model_copy(update={"refused": tuple(found)})


def _moves(board: Board, seats: Mapping[str, GuestSeat]) -> list[Move]:
    found = []
    for request in board.requests:
        now, seat = request.now, seats.get(request.name)
        if now is None or seat is None:
            continue
        size = sum(cell.memory_bytes for cell in request.cells)
        if now.host != seat.host:
            found.append(Move(name=request.name, from_host=now.host, to_host=seat.host, memory_bytes=size))
        elif now.nodes and (now.nodes != seat.nodes or now.cpus != seat.cpus):
            same = now.nodes == seat.nodes
            found.append(
                Move(
                    name=request.name,
                    from_host=now.host,
                    to_host=seat.host,
                    memory_bytes=0 if same else size,
                    repin=True,
                )
            )
    return found


# -- for the planner of each host -------------------------------------------------------------------------------------


def chosen_hosts(site: Site, plan: FleetPlan) -> Site:
    """The site in which every guest that has a seat names its host.

    Raises WrongInput, with one error for each, when guests have no place.
    """
    if plan.refused:
        errors = [
            WrongInput(
                f"guest {one.name}: it fits on none of {len(plan.hosts)} hosts: {'; '.join(one.reasons)}",
                hint="; or ".join(one.cures[:2]) or None,
            )
            for one in plan.refused
        ]
        raise Misfit(errors)
    where = {seat.name: seat.host for seat in plan.seats}
    guests = {name: wish.model_copy(update={"host": where[name]}) for name, wish in site.guests.items()}
    return site.model_copy(update={"guests": guests})


def seats_for_planner(plan: FleetPlan) -> dict[str, Seats]:
    """Host -> seats of its guests, as the planner of one host takes them."""
    found: dict[str, Seats] = {}
    for host, here in zip(plan.hosts, fixed_of(plan), strict=True):
        guests = {
            name: Seat(
                cpus=tuple(cpu for cell in seat.cpus for cpu in cell),
                node=seat.nodes[0] if len(seat.nodes) == 1 else None,
                because="chosen with all hosts in view",
                functions=seat.functions,
            )
            for name, (_, seat) in here.items()
            if seat.nodes or seat.functions
        }
        house = frozenset(cpu for node in host.nodes for cpu in node.housekeeping)
        polling = frozenset(cpu for node in host.nodes for cpu in node.data_plane)
        found[host.name] = Seats(guests, house, polling)
    return found
