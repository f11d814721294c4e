"""A solver's placement, broken at random: the checker tells each break, in the words for that break.

Every mutation is wrong for a reason that is in the mutation itself (two have one CPU, a thread beside it is not kept
empty, more memory than there is by addition), so that nobody has to be asked whether it is.  Mutations that are right
for such a reason, too, are there to be accepted.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

import pytest
from bench import fleets
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.fleet import FleetFunction, FleetHost, FleetPlan, Refusal, Request
from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet.name import seats_on
from evenkeel.plan.fleet.pack import pack
from evenkeel.plan.fleet.room import Room

GIB = 1 << 30
Plan = dict[str, Any]
PINNED = ("isolate", "whole", "require", "prefer")


def some_host(rng: Random, name: str) -> FleetHost:
    """Two nodes of six cores or four of four, in two L3 domains each; a tenth of its threads busy; eight functions."""
    nodes, cores = rng.choice(((2, 6), (4, 4)))
    made = []
    for number in range(nodes):
        node = fleets.node(
            number,
            first=number * cores,
            cores=cores,
            nodes=nodes,
            sockets=2,
            l3_cores=cores // 2,
            memory_bytes=rng.choice((6, 9)) * GIB,
            pages={fleets.ORDINARY: 8 * GIB, fleets.HUGE: 4 * GIB, fleets.GIANT: rng.choice((2, 4)) * GIB},
        )
        busy = frozenset(cpu for cpu in node.cpus - node.housekeeping if rng.random() < 0.1)
        made.append(node.model_copy(update={"busy": busy}))
    functions = tuple(
        FleetFunction(
            address=f"0000:{at + 1:02x}:00.0",
            node=at % nodes,
            pool="ab"[at % 2],
            network=rng.choice((None, "blue", "red")),
            iommu_group=rng.choice((None, None, 1, 2)),
            busy=rng.random() < 0.15,
        )
        for at in range(8)
    )
    return FleetHost(
        name=name,
        features=rng.choice(((), ("rt",))),
        networks=rng.choice((("blue",), ("blue", "red"))),
        drained=False,
        nodes=tuple(made),
        functions=functions,
        overcommit=2,
    )


def some_guest(rng: Random, name: str) -> Request:
    groups = {"apart": ("x",), "together": ("y",), "features": ("rt",), "networks": ("red",)}
    more = {key: value for key, value in groups.items() if rng.random() < 0.15}
    guest = fleets.small_guest(rng, name)
    return guest.model_copy(update={**more, "cells": guest.cells[:2], "l3": rng.choice((guest.l3, "any"))})


def solved(rng: Random) -> Plan:
    """Two hosts and few guests or more than fit, as the solver places them; the checker accepts it."""
    hosts = tuple(some_host(rng, f"h{number}") for number in range(2))
    guests = tuple(some_guest(rng, f"g{number:02}") for number in range(rng.choice((6, 14))))
    packing = pack([Room(host) for host in hosts], guests)
    on: list[list[Any]] = [[] for _ in hosts]
    for guest in guests:
        if guest.name in packing.placed:
            at, spot = packing.placed[guest.name]
            on[at].append((guest, spot))
    plan = FleetPlan(
        hosts=hosts,
        guests=guests,
        seats=tuple(seat for at, here in enumerate(on) for seat in seats_on(hosts[at], here)),
        refused=tuple(Refusal(name=guest.name, reasons=("-",)) for guest in guests if guest.name not in packing.placed),
    ).model_dump(mode="json")
    assert check_placement(plan) == []
    return plan


# -- looking at plain data --------------------------------------------------------------------------------------------


def guest_of(plan: Plan, seat: Plan) -> Plan:
    found: Plan = next(one for one in plan["guests"] if one["name"] == seat["name"])
    return found


def host_of(plan: Plan, seat: Plan) -> Plan:
    found: Plan = next(one for one in plan["hosts"] if one["name"] == seat["host"])
    return found


def node_of(plan: Plan, seat: Plan, number: int) -> Plan:
    found: Plan = next(one for one in host_of(plan, seat)["nodes"] if one["id"] == number)
    return found


def cpus(text: str) -> set[int]:
    return set(parse_cpus(text))


def listed(found: set[int]) -> str:
    return ",".join(map(str, sorted(found)))


def cores_of(node: Plan) -> list[set[int]]:
    return [cpus(core) for core in node["cores"]]


def free_on(plan: Plan, seat: Plan, number: int) -> set[int]:
    """CPUs of a node that nobody at all has or keeps empty."""
    node = node_of(plan, seat, number)
    found = set().union(*cores_of(node)) - cpus(node["housekeeping"]) - cpus(node["data_plane"]) - cpus(node["busy"])
    for other in plan["seats"]:
        if other["host"] == seat["host"]:
            found -= held(plan, other) | cpus(other["idle"])
    return found


def held(plan: Plan, seat: Plan) -> set[int]:
    """CPUs that carry its vCPUs, or its own emulator."""
    found = {cpu for cell in seat["cpus"] for cpu in cell}
    return found | (cpus(seat["emulator"]) if guest_of(plan, seat)["emulator"] == "own" else set())


def slots(plan: Plan, *kinds: str) -> Iterator[tuple[Plan, int, int]]:
    """(seat, cell, vCPU) of guests with CPUs of their own."""
    for seat in plan["seats"]:
        if guest_of(plan, seat)["threads"] in (kinds or PINNED):
            for number, cell in enumerate(seat["cpus"]):
                for vcpu in range(len(cell)):
                    yield seat, number, vcpu


# -- mutations that are wrong -----------------------------------------------------------------------------------------
# Each changes the plan and gives the words that the checker must have for it; None: there is nothing to break so.

Mutation = Callable[[Plan, Random], str | None]


def pick(rng: Random, found: Iterator[Any]) -> Any:
    """One of what is found; None: nothing."""
    every = list(found)
    return rng.choice(every) if every else None


def on_a_cpu_that_another_has(plan: Plan, rng: Random) -> str | None:
    found = pick(
        rng,
        (
            (seat, number, vcpu, other, cpu)
            for seat, number, vcpu in slots(plan)
            for other in plan["seats"]
            if other["host"] == seat["host"] and other is not seat
            for cpu in held(plan, other)
        ),
    )
    if found is None:
        return None
    seat, number, vcpu, other, cpu = found
    seat["cpus"][number][vcpu] = cpu
    first, second = sorted((seat["name"], other["name"]))
    return f"CPU {cpu} is {first}'s and {second}'s"


def on_a_thread_that_another_keeps_empty(plan: Plan, rng: Random) -> str | None:
    found = pick(
        rng,
        (
            (seat, number, vcpu, other, cpu)
            for seat, number, vcpu in slots(plan)
            for other in plan["seats"]
            if other["host"] == seat["host"] and other is not seat
            for cpu in cpus(other["idle"])
        ),
    )
    if found is None:
        return None
    seat, number, vcpu, other, cpu = found
    seat["cpus"][number][vcpu] = cpu
    return f"CPU {cpu} is kept empty by {other['name']} and carries {seat['name']}"


def two_vcpus_on_one_cpu(plan: Plan, rng: Random) -> str | None:
    found = pick(rng, ((seat, number) for seat, number, vcpu in slots(plan) if vcpu))
    if found is None:
        return None
    seat, number = found
    seat["cpus"][number][1] = seat["cpus"][number][0]
    return f"{seat['name']}: two vCPUs of cell {number} are on one CPU"


def on_a_cpu_that_is_not_for_guests(plan: Plan, rng: Random) -> str | None:
    """Housekeeping, somebody else's, or of another node."""
    found = pick(rng, slots(plan))
    if found is None:
        return None
    seat, number, vcpu = found
    node = node_of(plan, seat, seat["nodes"][number])
    wrong = cpus(node["housekeeping"]) | cpus(node["busy"])
    for other in host_of(plan, seat)["nodes"]:
        if other is not node:
            wrong |= set().union(*cores_of(other))
    cpu = rng.choice(sorted(wrong))
    seat["cpus"][number][vcpu] = cpu
    return f"{seat['name']}: CPU [{cpu}] is not free on node {node['id']}"


def a_thread_beside_it_is_not_kept_empty(plan: Plan, rng: Random) -> str | None:
    found = pick(rng, ((seat, cpu) for seat in plan["seats"] for cpu in cpus(seat["idle"])))
    if found is None:
        return None
    seat, cpu = found
    seat["idle"] = listed(cpus(seat["idle"]) - {cpu})
    return f"{seat['name']}: CPU [{cpu}] beside"


def keeps_empty_what_is_no_guests(plan: Plan, rng: Random) -> str | None:
    found = pick(rng, (one for one in plan["seats"] if guest_of(plan, one)["threads"] in ("isolate", "whole")))
    if found is None:
        return None
    house = cpus(node_of(plan, found, found["nodes"][0])["housekeeping"])
    if not house:
        return None
    found["idle"] = listed(cpus(found["idle"]) | {min(house)})
    return f"{found['name']}: CPU [{min(house)}], which is to stay empty beside it, is another's"


def isolated_vcpus_share_a_core(plan: Plan, rng: Random) -> str | None:
    """The second vCPU goes on the thread beside the first; nobody else is touched."""
    choices = []
    for seat, number, vcpu in slots(plan, "isolate"):
        core = next(c for c in cores_of(node_of(plan, seat, seat["nodes"][number])) if seat["cpus"][number][0] in c)
        if vcpu == 1 and len(core) > 1:
            choices.append((seat, number, core))
    found = pick(rng, iter(choices))
    if found is None:
        return None
    seat, number, core = found
    beside = min(core - {seat["cpus"][number][0]})
    old = seat["cpus"][number][1]
    seat["cpus"][number][1] = beside
    seat["idle"] = listed((cpus(seat["idle"]) - {beside}) | {old})
    return f"{seat['name']}: vCPUs of cell {number} share a core"


def whole_cores_are_not_filled(plan: Plan, rng: Random) -> str | None:
    """One vCPU of an even number moves to a free core of its own: one more core than so many threads need."""
    choices = []
    for seat, number, vcpu in slots(plan, "whole", "require"):
        node = node_of(plan, seat, seat["nodes"][number])
        cell = seat["cpus"][number]
        apart = [core for core in cores_of(node) if core <= free_on(plan, seat, node["id"])]
        if len(cell) % 2 == 0 and apart and all(len(core) == 2 for core in cores_of(node)):
            choices.append((seat, number, vcpu, rng.choice(apart)))
    found = pick(rng, iter(choices))
    if found is None:
        return None
    seat, number, vcpu, core = found
    old = seat["cpus"][number][vcpu]
    seat["cpus"][number][vcpu] = min(core)
    if guest_of(plan, seat)["threads"] == "whole":
        seat["idle"] = listed(cpus(seat["idle"]) | {old, max(core)})
    return f"{seat['name']}: the vCPUs of cell {number} do not fill whole cores"


def in_two_l3_domains(plan: Plan, rng: Random) -> str | None:
    """One vCPU moves to a free core of another domain, the thread beside it is kept empty as it should be."""
    choices = []
    for seat, number, vcpu in slots(plan):
        guest = guest_of(plan, seat)
        node = node_of(plan, seat, seat["nodes"][number])
        cell = seat["cpus"][number]
        if guest["l3"] != "require" or len(cell) < 2 or len(node["l3"]) < 2:
            continue
        own = next(cpus(group) for group in node["l3"] if cell[0] in cpus(group))
        apart = [core for core in cores_of(node) if core <= free_on(plan, seat, node["id"]) - own]
        if apart:
            choices.append((seat, number, vcpu, rng.choice(apart)))
    found = pick(rng, iter(choices))
    if found is None:
        return None
    seat, number, vcpu, core = found
    seat["cpus"][number][vcpu] = min(core)
    if guest_of(plan, seat)["threads"] in ("isolate", "whole"):
        seat["idle"] = listed(cpus(seat["idle"]) | (core - {min(core)}))
    return f"{seat['name']}: the vCPUs of cell {number} do not share one L3 cache"


def a_vcpu_has_no_cpu(plan: Plan, rng: Random) -> str | None:
    found = pick(rng, slots(plan))
    if found is None:
        return None
    seat, number, vcpu = found
    count = len(seat["cpus"][number])
    del seat["cpus"][number][vcpu]
    return f"{seat['name']}: cell {number} has {count} vCPUs, and {count - 1} CPUs"


def the_emulator_is_no_housekeeping(plan: Plan, rng: Random) -> str | None:
    found = pick(
        rng, (one for one in plan["seats"] if one["nodes"] and guest_of(plan, one)["emulator"] == "housekeeping")
    )
    if found is None:
        return None
    node = node_of(plan, found, found["nodes"][0])
    cpu = rng.choice(sorted(set().union(*cores_of(node)) - cpus(node["housekeeping"])))
    found["emulator"] = str(cpu)
    return f"{found['name']}: its emulator is on CPU [{cpu}], which is no housekeeping"


def the_emulator_is_on_a_vcpus_cpu(plan: Plan, rng: Random) -> str | None:
    found = pick(rng, (one for one in plan["seats"] if one["cpus"] and guest_of(plan, one)["emulator"] == "own"))
    if found is None:
        return None
    found["emulator"] = str(found["cpus"][0][0])
    return f"{found['name']}: its emulator is on CPU {found['emulator']}, which is a vCPU's"


def more_memory_than_a_node_has(plan: Plan, rng: Random) -> str | None:
    """A cell moves, in name only, to a node of its host where by addition its pages are not."""
    choices = []
    for seat in plan["seats"]:
        guest, page = guest_of(plan, seat), seat["page_bytes"]
        if len(guest["cells"]) != 1 or not seat["nodes"] or page is None:
            continue
        size = guest["cells"][0]["memory_bytes"]
        for node in host_of(plan, seat)["nodes"]:
            room = sum(one["free_bytes"] for one in node["pages"] if one["page_bytes"] == page)
            used = sum(
                cell["memory_bytes"]
                for other in plan["seats"]
                if other is not seat and other["host"] == seat["host"] and other["page_bytes"] == page
                for cell, number in zip(guest_of(plan, other)["cells"], other["nodes"], strict=False)
                if number == node["id"]
            )
            if used + size > room:
                choices.append((seat, node["id"], page, used + size, room))
    found = pick(rng, iter(choices))
    if found is None:
        return None
    seat, number, page, size, room = found
    seat["nodes"] = [number]
    return f"{size} bytes in pages of {page} on node {number}, and there is room for {room}"


def pages_of_another_size(plan: Plan, rng: Random) -> str | None:
    found = pick(rng, (one for one in plan["seats"] if one["nodes"] and guest_of(plan, one)["pages"] != "any"))
    if found is None:
        return None
    wish = guest_of(plan, found)["pages"]
    if found["page_bytes"] is not None and rng.random() < 0.5:
        found["page_bytes"] = None
        return f"{found['name']}: it wants huge pages, and has ordinary ones"
    found["page_bytes"] = 5 << 20  # no such is offered, and it divides none of these memories
    if wish == "ordinary":
        return f"{found['name']}: it wants ordinary pages, and has huge ones"
    if isinstance(wish, int):
        return f"{found['name']}: it wants pages of {wish} bytes, and has such of {5 << 20}"
    return f"{found['name']}: the memory of a cell is no whole number of pages of {5 << 20} bytes"


def a_function_that_another_has(plan: Plan, rng: Random) -> str | None:
    found = pick(
        rng,
        (
            (seat, other)
            for seat in plan["seats"]
            for other in plan["seats"]
            if seat is not other and seat["host"] == other["host"] and seat["functions"] and other["functions"]
        ),
    )
    if found is None:
        return None
    seat, other = found
    address = rng.choice(other["functions"])
    seat["functions"] = [address, *seat["functions"][1:]]
    first, second = sorted((seat["name"], other["name"]))
    return f"function {address} is {first}'s and {second}'s"


def a_function_that_does_not_serve(plan: Plan, rng: Random) -> str | None:
    """Of a guest with one wish: a function without what the wish names, or on another node where it must be near."""
    choices = []
    for seat in plan["seats"]:
        wishes = guest_of(plan, seat)["functions"]
        if len(wishes) != 1:
            continue
        (wish,) = wishes
        for one in host_of(plan, seat)["functions"]:
            unlike = any(wish[key] not in (None, one[key]) for key in ("pool", "network"))
            distant = wish["near"] == "required" and bool(seat["nodes"]) and one["node"] not in seat["nodes"]
            if unlike or distant:
                choices.append((seat, one["address"]))
    found = pick(rng, iter(choices))
    if found is None:
        return None
    seat, address = found
    seat["functions"] = [address]
    return f"{seat['name']}: its functions are not those that it wants, near enough"


def a_function_of_a_group_that_is_divided(plan: Plan, rng: Random) -> str | None:
    """Somebody else gets the other part of the group that a function is in."""
    choices = []
    for seat in plan["seats"]:
        by_address = {one["address"]: one for one in host_of(plan, seat)["functions"]}
        mine = {by_address[address]["iommu_group"] for address in seat["functions"]} - {None}
        for group in mine:
            for address, one in by_address.items():
                if one["iommu_group"] == group and address not in seat["functions"]:
                    choices.append((seat, one, group))
    found = pick(rng, iter(choices))
    if found is None:
        return None
    seat, one, group = found
    one["busy"] = True
    return f"IOMMU group {group} is divided between {seat['name']}, somebody else"


def a_function_is_missing(plan: Plan, rng: Random) -> str | None:
    found = pick(rng, (one for one in plan["seats"] if one["functions"]))
    if found is None:
        return None
    count = len(found["functions"])
    found["functions"].pop()
    return f"{found['name']}: it wants {count} functions, and has {count - 1}"


def on_a_host_that_lacks_what_it_needs(plan: Plan, rng: Random) -> str | None:
    choices = []
    for seat in plan["seats"]:
        guest = guest_of(plan, seat)
        for host in plan["hosts"]:
            for key in ("features", "networks"):
                if set(guest[key]) - set(host[key]):
                    choices.append((seat, host["name"], key))
    found = pick(rng, iter(choices))
    if found is None:
        return None
    seat, name, key = found
    seat["host"] = name
    return f"{seat['name']}: {name} {'lacks rt' if key == 'features' else 'is not wired to red'}"


def guests_to_be_apart_are_not(plan: Plan, rng: Random) -> str | None:
    there = [one for one in plan["seats"] if guest_of(plan, one)["apart"]]
    if len(there) < 2:
        return None
    one, other = rng.sample(there, 2)
    one["host"] = other["host"]
    return "of group x share"


def guests_to_be_together_are_not(plan: Plan, rng: Random) -> str | None:
    there = [one for one in plan["seats"] if guest_of(plan, one)["together"]]
    if len(there) < 2:
        return None
    rng.choice(there)["host"] = next(h["name"] for h in plan["hosts"] if h["name"] != there[0]["host"])
    return "group y is to be together"


def cells_on_one_node(plan: Plan, rng: Random) -> str | None:
    found = pick(rng, (one for one in plan["seats"] if len(one["nodes"]) > 1))
    if found is None:
        return None
    found["nodes"][1] = found["nodes"][0]
    return f"{found['name']}: two of its cells are on one node"


def nodes_too_far_apart(plan: Plan, rng: Random) -> str | None:
    choices = []
    for seat in plan["seats"]:
        guest = guest_of(plan, seat)
        if guest["max_distance"] is None or len(seat["nodes"]) != 2:
            continue
        one = node_of(plan, seat, seat["nodes"][0])
        choices += [(seat, int(number)) for number, far in one["distances"].items() if far > guest["max_distance"]]
    found = pick(rng, iter(choices))
    if found is None:
        return None
    found[0]["nodes"][1] = found[1]
    return f"apart, {guest_of(plan, found[0])['max_distance']} is the most"


def more_vcpus_than_are_left_to_share(plan: Plan, rng: Random) -> str | None:
    """Flexible guests, the vCPUs of which are more than the CPUs of a host, times its overcommit."""
    loose = [one for one in plan["seats"] if guest_of(plan, one)["threads"] == "overcommit"]
    if not loose:
        return None
    seat = rng.choice(loose)
    room = 2 * sum(len(free_on(plan, seat, node["id"])) for node in host_of(plan, seat)["nodes"])
    others = sum(cell["vcpus"] for one in loose if one["host"] == seat["host"] for cell in guest_of(plan, one)["cells"])
    guest_of(plan, seat)["cells"][0]["vcpus"] += room - others + 1
    return "vCPUs of flexible guests, and there is room for"


def a_seat_is_lost(plan: Plan, rng: Random) -> str | None:
    if not plan["seats"]:
        return None
    gone = plan["seats"].pop(rng.randrange(len(plan["seats"])))
    return f"{gone['name']} has no seat and is not refused"


def a_seat_is_there_twice(plan: Plan, rng: Random) -> str | None:
    if not plan["seats"]:
        return None
    twin = copy.deepcopy(rng.choice(plan["seats"]))
    plan["seats"].append(twin)
    return f"the seat of guest {twin['name']} is there 2 times"


WRONG: tuple[Mutation, ...] = (
    on_a_cpu_that_another_has,
    on_a_thread_that_another_keeps_empty,
    two_vcpus_on_one_cpu,
    on_a_cpu_that_is_not_for_guests,
    a_thread_beside_it_is_not_kept_empty,
    keeps_empty_what_is_no_guests,
    isolated_vcpus_share_a_core,
    whole_cores_are_not_filled,
    in_two_l3_domains,
    a_vcpu_has_no_cpu,
    the_emulator_is_no_housekeeping,
    the_emulator_is_on_a_vcpus_cpu,
    more_memory_than_a_node_has,
    pages_of_another_size,
    a_function_that_another_has,
    a_function_that_does_not_serve,
    a_function_of_a_group_that_is_divided,
    a_function_is_missing,
    on_a_host_that_lacks_what_it_needs,
    guests_to_be_apart_are_not,
    guests_to_be_together_are_not,
    cells_on_one_node,
    nodes_too_far_apart,
    more_vcpus_than_are_left_to_share,
    a_seat_is_lost,
    a_seat_is_there_twice,
)


def broken(plan: Plan, seed: int) -> Counter[str]:
    """How often each mutation could be made; each is told in its own words."""
    made: Counter[str] = Counter()
    for mutate in WRONG:
        wrecked = copy.deepcopy(plan)
        words = mutate(wrecked, Random(f"{seed}-{mutate.__name__}"))
        if words is not None:
            found = check_placement(wrecked)
            assert any(words in sentence for sentence in found), (mutate.__name__, words, found)
            made[mutate.__name__] += 1
    return made


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 1 << 32))
def test_every_break_is_told(seed: int) -> None:
    broken(solved(Random(seed)), seed)


def test_every_break_is_made() -> None:
    """No mutation is in the list that these fleets have nothing for."""
    made: Counter[str] = Counter()
    for seed in range(20):
        made += broken(solved(Random(seed)), seed)
    assert {mutate.__name__ for mutate in WRONG} == set(made)


# -- mutations that are right -----------------------------------------------------------------------------------------


def vcpus_change_places(plan: Plan, rng: Random) -> bool:
    """The CPUs of a cell are the same set."""
    found = pick(rng, slots(plan))
    if found is None:
        return False
    rng.shuffle(found[0]["cpus"][found[1]])
    return True


def a_vcpu_takes_a_free_thread(plan: Plan, rng: Random) -> bool:
    """It may be on any thread; as many as before are left, and none of those that others have."""
    found = pick(
        rng,
        (
            (seat, number, vcpu, cpu)
            for seat, number, vcpu in slots(plan, "prefer")
            if guest_of(plan, seat)["l3"] != "require"
            for cpu in free_on(plan, seat, seat["nodes"][number])
        ),
    )
    if found is None:
        return False
    seat, number, vcpu, cpu = found
    seat["cpus"][number][vcpu] = cpu
    return True


def an_isolated_vcpu_takes_another_core(plan: Plan, rng: Random) -> bool:
    """A core of the same size and node that is wholly free, and its threads instead of the old ones."""
    choices = []
    for seat, number, vcpu in slots(plan, "isolate"):
        node = node_of(plan, seat, seat["nodes"][number])
        old = next(core for core in cores_of(node) if seat["cpus"][number][vcpu] in core)
        free = free_on(plan, seat, node["id"])
        if guest_of(plan, seat)["l3"] != "require":
            choices += [
                (seat, number, vcpu, old, core) for core in cores_of(node) if core <= free and len(core) == len(old)
            ]
    found = pick(rng, iter(choices))
    if found is None:
        return False
    seat, number, vcpu, old, core = found
    cpu = rng.choice(sorted(core))
    seat["cpus"][number][vcpu] = cpu
    seat["idle"] = listed((cpus(seat["idle"]) - old) | (core - {cpu}))
    return True


def a_guest_leaves(plan: Plan, rng: Random) -> bool:
    if not plan["seats"]:
        return False
    gone = plan["seats"].pop(rng.randrange(len(plan["seats"])))
    plan["refused"].append({"name": gone["name"], "reasons": ["-"]})
    return True


@pytest.mark.parametrize(
    "change",
    [vcpus_change_places, a_vcpu_takes_a_free_thread, an_isolated_vcpu_takes_another_core, a_guest_leaves],
    ids=lambda change: str(change.__name__),
)
def test_what_stays_right_is_accepted(change: Callable[[Plan, Random], bool]) -> None:
    changed = 0
    for seed in range(6):
        plan = solved(Random(seed))
        rng = Random(seed)
        for _ in range(5):
            changed += change(plan, rng)
            assert check_placement(plan) == []
    assert changed >= 5
