"""How many hosts the same guests need, beside OpenStack Nova: ``python bench/placement_hosts.py``.

For each mix of guests and each seed the smallest fleet on which everybody has a place: for Evenkeel all at once, for
Evenkeel one guest after the other, and for Nova spreading and packing, which meet the guests in the order in which they
come.  All of them get the same hosts, the first N of one list, and N is counted upwards until nobody is refused.  Two
kinds of demand: ``as they come``, so many guests drawn at random; and ``planted``, those of a larger demand that the
best placement holds on a given number of hosts, so that these are full (where a good packing gains most).

``at least``: fewer hosts cannot do, by the bound of the integer program on one host less.  Every placement of either
side goes through the checker.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import fleets
from bench.openstack.adapter import Nova
from bench.placement_nova import cpu, in_words_of_nova, note, table

from evenkeel.documents.fleet import FleetPlan, GuestSeat, Request
from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet.bound import Estimate
from evenkeel.plan.fleet.model import Limits, kinds_of
from evenkeel.plan.fleet.name import seats_on
from evenkeel.plan.fleet.pack import pack
from evenkeel.plan.fleet.room import Room, Spot
from evenkeel.plan.fleet.table import Table

#: Guests of each mix that are drawn for each host of the wanted size, for planting a fifth more: more than fit.
A_HOST = {"mixed": 15, "real-time": 12, "large": 8, "small": 25}
#: Hosts that are tried beyond what the best placement needs.
MOST_MORE = 20
SOLVE_S = 60.0


@dataclass
class Case:
    """``hosts``: who -> the smallest fleet on which all are placed; None: not with :data:`MOST_MORE` more."""

    mix: str
    demand: str
    seed: int
    guests: int
    at_least: int
    hosts: dict[str, int | None]
    cpu_s: dict[str, float]
    rejected: int  # sentences of the checker, to all of these placements


#: Seats, None when somebody was refused; CPU seconds.
Placed = tuple[list[GuestSeat] | None, float]


def judged(count: int, guests: Sequence[Request], seats: Sequence[GuestSeat]) -> int:
    plan = FleetPlan(hosts=fleets.fleet(count), guests=tuple(guests), seats=tuple(seats))
    wrong = check_placement(plan.model_dump(mode="json"))
    for text in wrong[:3]:
        note(f"the checker: {text}")
    return len(wrong)


def seated(count: int, guests: Sequence[Request], placed: dict[str, tuple[int, Spot]]) -> list[GuestSeat]:
    hosts = fleets.fleet(count)
    on: dict[int, list[tuple[Request, Spot]]] = {}
    for one in guests:
        at, spot = placed[one.name]
        on.setdefault(at, []).append((one, spot))
    return [seat for at, some in sorted(on.items()) for seat in seats_on(hosts[at], some)]


def at_once(guests: Sequence[Request]) -> tuple[int, int, list[GuestSeat], float]:
    """(the smallest fleet, how many are needed at least, seats, CPU seconds)."""
    kinds = kinds_of(guests)
    worth = sum(one.value for one in guests)
    spent, count, least = 0.0, 1, 1
    while True:
        rooms = [Room(host) for host in fleets.fleet(count)]
        estimate_s, estimate = cpu(Estimate, rooms, kinds)
        spent += estimate_s
        if estimate.bound is not None and estimate.bound < worth - 0.5:
            count += 1
            least = count
            continue
        packing_s, packing = cpu(pack, rooms, guests, Limits(time_limit_s=SOLVE_S), clock=time.monotonic)
        spent += packing_s
        if len(packing.placed) == len(guests):
            return count, least, seated(count, guests, packing.placed), spent
        if packing.bound is not None and packing.bound < worth - 0.5 and least == count:
            least = count + 1
        count += 1


def one_by_one(count: int, guests: Sequence[Request]) -> Placed:
    hosts = fleets.fleet(count)

    def fill() -> dict[str, tuple[int, Spot]]:
        rooms = [Room(host) for host in hosts]
        found = Table(hosts, Estimate(rooms, kinds_of(guests), times=2).price, rooms)
        return {one.name: spot for one in guests if (spot := found.place(one))}

    spent, placed = cpu(fill)
    return seated(count, guests, placed) if len(placed) == len(guests) else None, spent


def by_nova(nova: Nova, packs: bool) -> Callable[[int, Sequence[Request]], Placed]:
    def fill(count: int, guests: Sequence[Request]) -> Placed:
        nova.pack(packs)
        nova.define(fleets.fleet(count))
        seats: list[GuestSeat] = []
        spent = 0.0
        for one in guests:
            said = nova.schedule(one)
            spent += said["cpu_s"]
            if said["host"] is None:
                return None, spent
            seats.append(nova.seat(one, said["host"], said))
        return seats, spent

    return fill


def case(nova: Nova, mix: str, demand: str, seed: int, size: int) -> Case:
    many = A_HOST[mix] * size
    wanted = fleets.demand(many if demand == "as they come" else many * 6 // 5, seed, mix)
    drawn = [in_words_of_nova(one) for one in wanted]
    guests = drawn
    if demand == "planted":
        rooms = [Room(host) for host in fleets.fleet(size)]
        best = pack(rooms, drawn, Limits(time_limit_s=SOLVE_S), clock=time.monotonic)
        guests = [one for one in drawn if one.name in best.placed]
    count, least, seats, spent = at_once(guests)
    found = Case(mix, demand, seed, len(guests), least, {"all at once": count}, {"all at once": spent}, 0)
    found.rejected += judged(count, guests, seats)
    ways = {"one by one": one_by_one, "Nova, spread": by_nova(nova, False), "Nova, pack": by_nova(nova, True)}
    for who, way in ways.items():
        found.hosts[who], found.cpu_s[who] = None, 0.0
        for number in range(count, count + MOST_MORE):
            seats_there, spent = way(number, guests)
            found.cpu_s[who] += spent
            if seats_there is not None:
                found.hosts[who] = number
                found.rejected += judged(number, guests, seats_there)
                break
    note(str(found))
    return found


def fewer(found: Case, who: str) -> float | None:
    """How many fewer hosts than this one needs, as a share of its hosts."""
    theirs, ours = found.hosts[who], found.hosts["all at once"]
    return None if theirs is None or ours is None else 1 - ours / theirs


def percent(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def show(cases: Sequence[Case]) -> None:
    names = ("all at once", "one by one", "Nova, spread", "Nova, pack")
    table(
        "The smallest fleet on which all guests have a place",
        ("mix", "demand", "seed", "guests", "at least", *names, "fewer than spread", "than pack", "checker"),
        [
            (
                one.mix,
                one.demand,
                one.seed,
                one.guests,
                one.at_least,
                *(one.hosts[name] or "-" for name in names),
                percent(fewer(one, "Nova, spread")),
                percent(fewer(one, "Nova, pack")),
                one.rejected,
            )
            for one in cases
        ],
    )
    for demand in dict.fromkeys(one.demand for one in cases):
        some = [one for one in cases if one.demand == demand]
        sums = {name: sum(one.hosts[name] or 0 for one in some) for name in names}
        lacking = sum(one.hosts[name] is None for one in some for name in names)
        print(
            f"\n{demand}, all cases together: {', '.join(f'{name} {count}' for name, count in sums.items())}; "
            f"{1 - sums['all at once'] / sums['Nova, spread']:.1%} fewer than Nova that spreads, "
            f"{1 - sums['all at once'] / sums['Nova, pack']:.1%} fewer than Nova that packs"
            + (f" ({lacking} searches without an end)" if lacking else "")
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--hosts", type=int, default=12, help="about so many hosts a case")
    parser.add_argument("--seeds", type=int, default=2, metavar="N")
    parser.add_argument("--mix", choices=sorted(A_HOST), action="append", help="all when none is named")
    parser.add_argument(
        "--demand", choices=("as they come", "planted"), action="append", help="both when none is named"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args()
    with Nova() as nova:
        cases = [
            case(nova, mix, demand, seed, options.hosts)
            for demand in options.demand or ("as they come", "planted")
            for mix in options.mix or A_HOST
            for seed in range(1, options.seeds + 1)
        ]
        version = nova.version
    if options.json:
        print(json.dumps({"nova": version, "cases": [asdict(one) for one in cases]}, indent=2))
    else:
        print(f"Nova {version}")
        show(cases)


if __name__ == "__main__":
    main()
