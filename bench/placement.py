"""How fast and how well guests are placed: ``python bench/placement.py [--large]``.

Three tables, all of this process's CPU time:

- one guest among N part-filled hosts, on the one where it takes least from others, beside an exact look at every host
  in plain Python (the peer: which hosts have room, without tables and prices);
- one host of 2 to 16 nodes, a guest of 1 to 8 cells whose function is near a node that is full, so that nothing fits
  and every set of nodes is looked at;
- a mixed fleet to which more guests come than fit: value placed against the bound of the linear program, beside first
  fit, on empty hosts, of which there are few kinds, and on such that others have half of, of which no two are alike.
  ``--large`` adds 1,000 hosts and 10,000, with up to 160,000 guests.

Every placement of the third table goes through the independent checker.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import fleets

from evenkeel.documents.fleet import CellRequest, FleetHost, FleetPlan, FunctionRequest, Refusal, Request
from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet.bound import Estimate
from evenkeel.plan.fleet.model import Limits, Packing, first_fit, kinds_of
from evenkeel.plan.fleet.name import seats_on
from evenkeel.plan.fleet.pack import pack
from evenkeel.plan.fleet.room import Room, Spot, fit
from evenkeel.plan.fleet.table import Table, type_of

PEER_LOOKS = 20
T = TypeVar("T")


def timed(call: Callable[..., T], *arguments: object) -> tuple[T, float]:
    """What the call gives, and its milliseconds of CPU time."""
    started = time.process_time_ns()
    found = call(*arguments)
    return found, (time.process_time_ns() - started) / 1e6


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def one_among_many(counts: list[int]) -> None:
    print("One guest among part-filled hosts, ms of CPU time; the peer asks every host\n")
    columns = ("hosts", "prices", "table", "new type", "p50", "p99", "most", "peer p50", "ratio")
    print(" ".join(f"{column:>9}" for column in columns))
    for count in counts:
        hosts = [fleets.part_filled(index, 1) for index in range(count)]
        rooms = [Room(host) for host in hosts]
        estimate, priced = timed(Estimate, rooms, kinds_of(fleets.demand(count * 8, 1)))
        table, build = timed(Table, hosts, estimate.price)
        kinds = [(kind, type_of(kind)) for kind, _ in fleets.types()]
        first = [timed(table.find, kind, key)[1] for kind, key in kinds]
        guests = fleets.demand(600, 2)
        known = [timed(table.place, guest)[1] for guest in guests]
        peer = [timed(_scan, rooms, guest)[1] for guest in guests[:PEER_LOOKS]]
        half, looked = percentile(known, 0.5), percentile(peer, 0.5)
        row = (priced, build, max(first), half, percentile(known, 0.99), max(known), looked, looked / half)
        print(f"{count:>9} " + " ".join(f"{value:>9.3f}" for value in row))


def _scan(rooms: list[Room], guest: Request) -> list[int]:
    return [at for at, room in enumerate(rooms) if fit(room, guest) is not None]


def one_host() -> None:
    print(
        "\nOne host, a guest whose function is near a full node: ms of CPU time until it is known that nothing fits\n"
    )
    cells = (1, 2, 3, 4, 6, 8)
    print(f"{'nodes':>6} " + " ".join(f"{count:>4} cells" for count in cells))
    for nodes in (2, 4, 8, 16):
        host = FleetHost(
            name="h",
            nodes=tuple(
                fleets.node(number, first=number * 8, cores=8, nodes=nodes, sockets=2, housekeeping=0 if number else 8)
                for number in range(nodes)
            ),
            functions=fleets.host(0).functions[:3],
        )
        row = []
        for count in cells:
            wish = (FunctionRequest(pool="vf", count=3),)  # near node 0 alone
            guest = Request(
                name="g", cells=(CellRequest(vcpus=2, memory_bytes=1 << 30),) * count, functions=wish, pages=fleets.HUGE
            )
            room = Room(host)
            fit(room, guest)
            row.append(min(timed(fit, room, guest)[1] for _ in range(5)))
        print(f"{nodes:>6} " + " ".join(f"{value:>10.3f}" for value in row))


def whole_fleet(sizes: list[int]) -> None:
    print("\nA mixed fleet, more guests than fit: 16 for an empty host, 9 for one that others have half of\n")
    columns = f"{'placed':>7} {'value':>8} {'of bound':>9} {'CPU s':>7} {'checked':>8}"
    print(f"{'hosts':>6} {'are':>10} {'guests':>7} {columns}  method")
    for count in sizes:
        for filled in (False, True):
            hosts = tuple(fleets.part_filled(index, 1) for index in range(count)) if filled else fleets.fleet(count)
            guests = fleets.demand((9 if filled else 16) * count, 1)
            rooms = [Room(host) for host in hosts]
            found, spent = timed(first_fit, rooms, kinds_of(guests))
            best, taken = timed(pack, rooms, guests, Limits(time_limit_s=None))
            bound = best.bound or float("nan")
            for packing, seconds, method in ((found, spent, "first fit"), (best, taken, best.method)):
                broken = check_placement(document(hosts, guests, packing).model_dump(mode="json"))
                print(
                    f"{count:>6} {'half full' if filled else 'empty':>10} {len(guests):>7} {len(packing.placed):>7} "
                    f"{packing.value:>8} {100 * packing.value / bound:>8.2f}% {seconds / 1000:>7.2f} "
                    f"{'BROKEN' if broken else 'holds':>8}  {method}",
                    flush=True,
                )
                assert not broken, broken[:3]
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
        print(f"{count:>6} hosts: {peak} MiB at most so far, with the checker")


def document(hosts: tuple[FleetHost, ...], guests: tuple[Request, ...], packing: Packing) -> FleetPlan:
    by_host: dict[int, list[tuple[Request, Spot]]] = {}
    for guest in guests:
        if guest.name in packing.placed:
            at, spot = packing.placed[guest.name]
            by_host.setdefault(at, []).append((guest, spot))
    return FleetPlan(
        hosts=hosts,
        guests=guests,
        seats=tuple(seat for at, placed in sorted(by_host.items()) for seat in seats_on(hosts[at], placed)),
        refused=tuple(Refusal(name=guest.name, reasons=("-",)) for guest in guests if guest.name not in packing.placed),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--large", action="store_true", help="also 1,000 and 10,000 hosts: minutes")
    large = parser.parse_args().large
    one_among_many([10, 100, 1000, *([10000] if large else [])])
    one_host()
    whole_fleet([100, *([1000, 10000] if large else [])])
    return 0


if __name__ == "__main__":
    sys.exit(main())
