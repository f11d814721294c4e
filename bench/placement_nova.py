"""Placing beside OpenStack Nova, the named peer, in one run: ``python bench/placement_nova.py``.

Nova runs from its own package in its own process (:mod:`bench.openstack`); both sides get the same hosts and guests.
Four tables: one guest among many hosts; one guest on one host with many nodes; a fleet filled, once with more guests
than fit and once with guests that all fit; and random part-filled hosts, every answer of either side shown to the
checker.  Times are CPU seconds of the calls that decide.  Nova's are without HTTP, database and Placement, Evenkeel's
with nothing left out but the building of its tables, which is printed beside.

The defaults take some minutes.  ``--hosts 100 --fuzz 10000`` is what docs/explanation/nova.md shows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, ParamSpec, TypeVar

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import fleets
from bench.openstack.adapter import Nova, Style
from bench.openstack.cases import function, node

from evenkeel.documents.fleet import (
    CellRequest,
    FleetHost,
    FleetPlan,
    FunctionRequest,
    GuestSeat,
    PageRoom,
    Refusal,
    Request,
)
from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet.model import Limits
from evenkeel.plan.fleet.name import seats_on
from evenkeel.plan.fleet.pack import pack
from evenkeel.plan.fleet.room import Room, Spot, fit
from evenkeel.plan.fleet.table import Table
from evenkeel.verify.nova.catalogue import kind_of

GIB = 1 << 30
P = ParamSpec("P")
T = TypeVar("T")


def in_words_of_nova(request: Request) -> Request:
    """The same guest without what Nova has no words for: both sides are asked for this one."""
    threads = "require" if request.threads == "whole" else request.threads
    return request.model_copy(update={"threads": threads, "features": (), "networks": (), "l3": "any"})


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def cpu(call: Callable[P, T], *words: P.args, **named: P.kwargs) -> tuple[float, T]:
    """CPU seconds of a call, and what it gives."""
    before = time.process_time()
    result = call(*words, **named)
    return time.process_time() - before, result


# -- one guest among many hosts ---------------------------------------------------------------------------------------


@dataclass
class Among:
    hosts: int
    guest: str
    nova_s: float
    nova_how: str
    scan_s: float
    again_median_s: float
    again_p99_s: float
    passed_nova: int


def among(nova: Nova, counts: Sequence[int], most_for_nova: int) -> list[Among]:
    """Half-full hosts of the mixed fleet.  Above ``most_for_nova`` Nova's time is that of so many hosts, multiplied."""
    wanted = [in_words_of_nova(kind) for kind, _ in fleets.types() if kind.name in ("web", "plc", "ran", "gpu", "wide")]
    found = []
    for count in counts:
        note(f"one guest among {count} hosts")
        hosts = [fleets.part_filled(index, seed=1) for index in range(count)]
        asked = hosts[:most_for_nova]
        nova.define(asked)
        build_s, table = cpu(Table, hosts)
        note(f"  tables built in {build_s:.2f} s of CPU")
        for guest in wanted:
            said = nova.filter(guest)
            scan_s, _ = cpu(table.find, guest)
            times = sorted(cpu(table.place, guest)[0] for _ in range(200))
            found.append(
                Among(
                    count,
                    guest.name,
                    said["cpu_s"] * count / len(asked),
                    "measured" if len(asked) == count else f"{len(asked)} hosts, times {count // len(asked)}",
                    scan_s,
                    statistics.median(times),
                    times[int(len(times) * 0.99)],
                    len(said["hosts"]),
                )
            )
    return found


# -- one guest on one host --------------------------------------------------------------------------------------------


@dataclass
class OnHost:
    nodes: int
    cells: int
    nova_fits_s: float
    nova_not_s: float | None  # None: longer than the limit
    ours_fits_s: float
    ours_not_s: float


def on_host(nova: Nova, limit_s: float) -> list[OnHost]:
    """Empty nodes with one virtual function each.  The guest that does not fit wants one more than it has cells."""
    found = []
    for nodes in (2, 4, 8, 16):
        host = FleetHost(
            name="h",
            nodes=tuple(node(number) for number in range(nodes)),
            functions=tuple(function(number + 1, number, "nic", "a") for number in range(nodes)),
        )
        nova.define([host])
        for cells in (1, 2, 3, 4, 6, 8):
            if cells >= nodes:
                continue
            fits, lacks = (
                Request(
                    name="g",
                    cells=(CellRequest(vcpus=2, memory_bytes=GIB),) * cells,
                    threads="prefer",
                    pages=GIB,
                    l3="any",
                    functions=(FunctionRequest(network="a", count=count),),
                )
                for count in (cells, cells + 1)
            )
            yes, no = nova.fit("h", fits, limit_s), nova.fit("h", lacks, limit_s)
            if not yes["answer"] or no["answer"]:
                raise RuntimeError("Nova answers what was not expected of it")
            room = Room(host)
            ours_yes_s, spot = cpu(fit, room, fits)
            ours_no_s, none = cpu(fit, room, lacks)
            if spot is None or none is not None:
                raise RuntimeError("Evenkeel answers what was not expected of it")
            found.append(
                OnHost(nodes, cells, yes["cpu_s"], None if no["timed_out"] else no["cpu_s"], ours_yes_s, ours_no_s)
            )
            note(f"{cells} cells on {nodes} nodes")
    return found


# -- a fleet ----------------------------------------------------------------------------------------------------------


@dataclass
class Filled:
    demand: str
    who: str
    guests: int
    placed: int
    value: int
    of_best_known: float
    cpu_s: float
    rejected: int  # sentences of the checker
    refused_claims: int  # fits of Nova that its own claim then refused


def filled(nova: Nova, count: int, seed: int, time_limit_s: float) -> tuple[list[Filled], float | None]:
    """(rows, the bound of the first demand).  16 guests a host; the second demand is what was placed of the first."""
    hosts = fleets.fleet(count)
    every = [in_words_of_nova(one) for one in fleets.demand(16 * count, seed)]
    limits = Limits(time_limit_s=time_limit_s)
    packing_s, packing = cpu(pack, [Room(one) for one in hosts], every, limits, clock=time.monotonic)
    planted = [one for one in every if one.name in packing.placed]
    rows = []
    for name, guests in (("more than fit", every), ("all fit", planted)):
        best = packing.value
        if guests is planted:
            packing_s, again = cpu(pack, [Room(one) for one in hosts], guests, limits, clock=time.monotonic)
        else:
            again = packing
        rows.append(_row(name, "Evenkeel, all at once", hosts, guests, again.placed, best, packing_s))
        seats_table = Table(hosts)
        online_s, placed = cpu(_one_by_one, seats_table, guests)
        rows.append(_row(name, "Evenkeel, first fit", hosts, guests, placed, best, online_s))
        for how, packs in (("Nova, spread", False), ("Nova, pack", True)):
            rows.append(_nova_row(nova, name, how, packs, hosts, guests, best))
    nova.pack(False)
    return rows, packing.bound


def _one_by_one(table: Table, guests: Sequence[Request]) -> dict[str, tuple[int, Spot]]:
    return {one.name: spot for one in guests if (spot := table.place(one))}


def _row(
    demand: str,
    who: str,
    hosts: Sequence[FleetHost],
    guests: Sequence[Request],
    placed: dict[str, tuple[int, Spot]],
    best: int,
    cpu_s: float,
) -> Filled:
    on: dict[int, list[tuple[Request, Spot]]] = {}
    for one in guests:
        if one.name in placed:
            at, spot = placed[one.name]
            on.setdefault(at, []).append((one, spot))
    seats = [seat for at, some in on.items() for seat in seats_on(hosts[at], some)]
    return _judged(demand, who, hosts, guests, seats, best, cpu_s, 0)


def _nova_row(
    nova: Nova, demand: str, who: str, packs: bool, hosts: Sequence[FleetHost], guests: Sequence[Request], best: int
) -> Filled:
    nova.pack(packs)
    nova.define(hosts)
    seats, spent, refused = [], 0.0, 0
    for number, one in enumerate(guests):
        if number % 100 == 0:
            note(f"{who}, {demand}: {number} of {len(guests)} guests, {spent:.0f} s of CPU")
        said = nova.schedule(one)
        spent += said["cpu_s"]
        refused += len(said["failures"])
        if said["host"] is not None:
            seats.append(nova.seat(one, said["host"], said))
    return _judged(demand, who, hosts, guests, seats, best, spent, refused)


def _judged(
    demand: str,
    who: str,
    hosts: Sequence[FleetHost],
    guests: Sequence[Request],
    seats: Sequence[GuestSeat],
    best: int,
    cpu_s: float,
    refused_claims: int,
) -> Filled:
    there = {seat.name for seat in seats}
    value = sum(one.value for one in guests if one.name in there)
    plan = FleetPlan(
        hosts=tuple(hosts),
        guests=tuple(guests),
        seats=tuple(seats),
        refused=tuple(Refusal(name=one.name, reasons=()) for one in guests if one.name not in there),
    )
    wrong = check_placement(plan.model_dump(mode="json"))
    for text in wrong[:3]:
        note(f"the checker, to {who}: {text}")
    row = Filled(demand, who, len(guests), len(seats), value, value / best, cpu_s, len(wrong), refused_claims)
    note(str(row))  # the whole table may take an hour
    return row


# -- random hosts -----------------------------------------------------------------------------------------------------


@dataclass
class Fuzzed:
    style: str
    hosts: int
    fits: int  # what Nova calls one
    raises: int  # of those: Nova's own claim refuses it
    silent: int  # of those: claimed, and the checker rejects it
    impossible: int  # of raises and silent: there is no fit at all
    missed: int  # Nova says no, and Evenkeel has a seat that the checker accepts
    timed_out: int
    ours_missed: int  # Nova has a seat that the checker accepts, and Evenkeel says no
    ours_rejected: int
    nova_median_s: float
    nova_p99_s: float
    ours_median_s: float
    ours_p99_s: float
    ours_most_s: float
    kinds: dict[str, int]  # kinds of what the checker says to Nova's answers that were claimed
    limit_s: float


COUNTED = ("fits", "raises", "silent", "impossible", "missed", "timed_out", "ours_missed", "ours_rejected")


def fuzz(nova: Nova, count: int, seed: int, style: Style, limit_s: float) -> Fuzzed:
    nova.style = style
    tally: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    nova_times, our_times = [], []
    for index in range(count):
        if index % 500 == 0:
            note(f"random hosts, {style}: {index} of {count}")
        host, guest = random_case(Random(f"{seed}-{index}"))
        nova.define([host])
        said = nova.place(host.name, guest, limit_s)
        room = Room(host)
        ours_s, spot = cpu(fit, room, guest)
        nova_times.append(said["cpu_s"])
        our_times.append(ours_s)
        ours_wrong = spot is not None and bool(_says(host, guest, seats_on(host, [(guest, spot)])))
        tally["ours_rejected"] += ours_wrong
        if said["timed_out"]:
            tally["timed_out"] += 1
        elif said["answer"] is None:
            tally["missed"] += spot is not None and not ours_wrong
        else:
            tally["fits"] += 1
            wrong = _says(host, guest, [nova.seat(guest, host.name, said)])
            if said["claim"]:
                tally["raises"] += 1
            elif wrong:
                tally["silent"] += 1
                kinds.update({kind_of(text.partition(": ")[2]).id for text in wrong})
            elif spot is None:
                tally["ours_missed"] += 1
                note(f"Evenkeel has no place where Nova has one: seed {seed}-{index}")
            tally["impossible"] += spot is None and bool(said["claim"] or wrong)
    nova_times.sort()
    our_times.sort()
    p99 = int(count * 0.99)
    return Fuzzed(
        style=style,
        hosts=count,
        **{key: tally[key] for key in COUNTED},
        nova_median_s=statistics.median(nova_times),
        nova_p99_s=nova_times[p99],
        ours_median_s=statistics.median(our_times),
        ours_p99_s=our_times[p99],
        ours_most_s=our_times[-1],
        kinds=dict(kinds),
        limit_s=limit_s,
    )


def _says(host: FleetHost, guest: Request, seats: Sequence[GuestSeat]) -> list[str]:
    plan = FleetPlan(hosts=(host,), guests=(guest,), seats=tuple(seats))
    return check_placement(plan.model_dump(mode="json"))


def random_case(rng: Random) -> tuple[FleetHost, Request]:
    """A part-filled host of one to eight nodes, and a guest that may or may not fit: Nova has words for all of it."""
    count, cores = rng.choice((1, 2, 2, 3, 4, 4, 6, 8)), rng.choice((2, 4, 8))
    threads = rng.choice((1, 2, 2, 2, 2))
    nodes = []
    for number in range(count):
        share = rng.uniform(0.0, 0.7)
        made = fleets.node(
            number,
            first=number * cores,
            cores=cores,
            threads=threads,
            nodes=count,
            sockets=1 if count < 4 else 2,
            housekeeping=0,
            memory_bytes=64 * GIB,
            pages={},
        )
        busy: set[int] = set()
        for core in made.cores:
            draw = rng.random()
            if draw < share * 0.7:
                busy |= core
            elif draw < share:
                busy.add(rng.choice(sorted(core)))
        pages = (PageRoom(page_bytes=GIB, free_bytes=rng.choice((1, 2, 4, 8, 16)) * GIB),)
        nodes.append(made.model_copy(update={"busy": frozenset(busy), "pages": pages}))
    functions = tuple(
        function(number + 1, rng.randrange(count), rng.choice("xy"), rng.choice("ab"))
        for number in range(rng.choice((0, 1, count, 2 * count)))
    )
    host = FleetHost(name="h", nodes=tuple(nodes), functions=functions)
    policy = rng.choice(("isolate", "prefer", "prefer", "require" if threads > 1 else "prefer"))
    # An odd vCPU of a require guest may sit on a broken core for Evenkeel and not for Nova, so there is none.
    sizes = (2, 2, 4, 6) if policy == "require" else (1, 2, 2, 3, 4)
    cells = tuple(
        CellRequest(vcpus=rng.choice(sizes), memory_bytes=rng.choice((1, 1, 2, 4)) * GIB)
        for _ in range(min(count, rng.choice((1, 1, 1, 2, 2, 3, 4))))
    )
    wishes = tuple(
        FunctionRequest(
            pool=rng.choice((None, None, "x", "y")),
            network=rng.choice(("a", "b", None)),
            count=rng.choice((1, 1, 2)),
            near=rng.choice(("required", "required", "preferred")),
        )
        for _ in range(rng.choice((0, 0, 1, 1, 2)) if functions else 0)
    )
    guest = Request(
        name="g",
        threads=policy,
        cells=cells,
        pages=GIB,
        l3="any",
        emulator="own" if rng.random() < 0.25 else "housekeeping",
        functions=wishes,
    )
    return host, guest


# -- print ------------------------------------------------------------------------------------------------------------


def seconds(value: float | None, limit_s: float = 0) -> str:
    if value is None:
        return f"> {limit_s:g} s"
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value / 1e-6:.3g} us"


def table(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    lines = [[str(cell) for cell in row] for row in rows]
    widths = [max(len(row[at]) for row in (list(head), *lines)) for at in range(len(head))]
    print(f"\n{title}\n")
    for row in (list(head), ["-" * width for width in widths], *lines):
        print("  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def show(result: dict[str, Any]) -> None:
    print(f"Nova {result['nova']}; CPU seconds")
    if rows := result.get("among"):
        table(
            "One guest among many half-full hosts",
            ("hosts", "guest", "Nova's filters", "how", "Evenkeel, first", "next 200: median", "p99", "ratio"),
            [
                (
                    one["hosts"],
                    one["guest"],
                    seconds(one["nova_s"]),
                    one["nova_how"],
                    seconds(one["scan_s"]),
                    seconds(one["again_median_s"]),
                    seconds(one["again_p99_s"]),
                    f"{one['nova_s'] / one['scan_s']:,.0f}",
                )
                for one in rows
            ],
        )
    limit = result["limit_s"]
    if rows := result.get("on_host"):
        table(
            "One guest on one host: it fits; its functions are one too few on any set of its nodes",
            ("nodes", "cells", "Nova: fits", "does not", "Evenkeel: fits", "does not"),
            [
                (
                    one["nodes"],
                    one["cells"],
                    seconds(one["nova_fits_s"]),
                    seconds(one["nova_not_s"], limit),
                    seconds(one["ours_fits_s"]),
                    seconds(one["ours_not_s"]),
                )
                for one in rows
            ],
        )
    if rows := result.get("filled"):
        table(
            f"A fleet of {result['fleet_hosts']} hosts filled; bound of the first demand {result['bound']}",
            ("demand", "who", "guests", "placed", "value", "of best", "CPU s", "checker", "claims refused"),
            [
                (
                    one["demand"],
                    one["who"],
                    one["guests"],
                    one["placed"],
                    one["value"],
                    f"{one['of_best_known']:.1%}",
                    f"{one['cpu_s']:.3g}",
                    one["rejected"],
                    one["refused_claims"],
                )
                for one in rows
            ],
        )
    for one in result.get("fuzz", ()):
        bad = one["raises"] + one["silent"]
        print(f"\nRandom part-filled hosts, configured the {one['style']} way: {one['hosts']}\n")
        print(f"Nova says fits         {one['fits']}")
        print(f"  unusable             {bad} ({bad / max(1, one['fits']):.1%} of its fits)")
        print(f"    its claim raises   {one['raises']}")
        print(f"    silently wrong     {one['silent']} {one['kinds'] or ''}")
        print(f"    and no fit exists  {one['impossible']}")
        print(f"Nova misses a fit      {one['missed']}")
        print(f"Nova over {one['limit_s']:g} s of CPU  {one['timed_out']}")
        print(f"Evenkeel misses a fit  {one['ours_missed']}, seats that the checker rejects {one['ours_rejected']}")
        print(f"Nova's fit and claim   median {seconds(one['nova_median_s'])}, p99 {seconds(one['nova_p99_s'])}")
        print(
            f"Evenkeel's fit         median {seconds(one['ours_median_s'])}, p99 {seconds(one['ours_p99_s'])}, "
            f"most {seconds(one['ours_most_s'])}"
        )


PARTS = ("among", "on-host", "fleet", "fuzz")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", choices=PARTS, action="append", help="a table; all when none is named")
    parser.add_argument("--hosts", type=int, default=20, help="hosts of the fleet that is filled")
    parser.add_argument("--fuzz", type=int, default=2000, metavar="N", help="random hosts; a third as many new style")
    parser.add_argument("--limit", type=float, default=5.0, metavar="S", help="CPU seconds for one fit of Nova")
    parser.add_argument("--solve", type=float, default=10.0, metavar="S", help="seconds that packing may take")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    options = parser.parse_args()
    parts = options.only or PARTS
    with Nova() as nova:
        result: dict[str, Any] = {"nova": nova.version, "limit_s": options.limit, "seed": options.seed}
        if "among" in parts:
            result["among"] = [asdict(one) for one in among(nova, (10, 100, 1000, 10000), 1000)]
        if "on-host" in parts:
            result["on_host"] = [asdict(one) for one in on_host(nova, options.limit)]
        if "fleet" in parts:
            rows, bound = filled(nova, options.hosts, options.seed, options.solve)
            result |= {"fleet_hosts": options.hosts, "bound": bound, "filled": [asdict(one) for one in rows]}
        if "fuzz" in parts:
            runs: tuple[tuple[Style, int], ...] = (("legacy", options.fuzz), ("new", options.fuzz // 3))
            result["fuzz"] = [
                asdict(fuzz(nova, count, options.seed, style, options.limit)) for style, count in runs if count
            ]
    if options.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
