"""What fits is placed and what does not fit is refused: many guests share cores, memory and priorities of one host."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from itertools import permutations, product

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.site import CellWish, GuestWish
from evenkeel.plan.placement import memory_reserve
from tests.plan.exact.invariants import PINNED, violations
from tests.plan.exact.wishes import plan_or_refusal, small
from tests.plan.factories import GIB, MIB, guest
from tests.plan.topologies import NAMED, Machine, build

SLOW = [HealthCheck.too_slow]


def ways(wish: GuestWish, nodes: Iterable[int]) -> list[tuple[tuple[int, int, int], ...]]:
    """All ways to spread one guest: (node, vCPUs, memory) of each cell.  Told from the wish alone."""
    found = []
    every = tuple(nodes)
    for count in range(1, len(every) + 1) if wish.numa == "auto" else (wish.numa or len(wish.cells) or 1,):
        assert isinstance(count, int)
        if not wish.cells and (wish.vcpus % count or wish.memory % (count * 2 * MIB)):
            continue
        cells = wish.cells or [CellWish(vcpus=wish.vcpus // count, memory=wish.memory // count)] * count
        found += [
            tuple((node, cell.vcpus, cell.memory) for node, cell in zip(some, cells, strict=True))
            for some in permutations(every, count)
        ]
    return found


def fits_somehow(machine: Machine, guests: Mapping[str, GuestWish]) -> bool:
    """Try every way for every guest: realtime ones need a core a vCPU, balanced ones only memory."""
    nodes = machine.node_cpus()
    cores = {node: sum(core <= cpus for core in machine.cores().values()) - 1 for node, cpus in nodes.items()}
    memory = {node: size - memory_reserve(size) for node, size in machine.node_memory().items()}
    for homes in product(*(ways(wish, nodes) for wish in guests.values())):
        left, room = dict(cores), dict(memory)
        for home, wish in zip(homes, guests.values(), strict=True):
            for node, vcpus, size in home:
                left[node] -= vcpus if wish.goal == "realtime" else 0
                room[node] -= size
        if min(left.values()) >= 0 and min(room.values()) >= 0:
            return True
    return False


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(
    st.sampled_from((build(sockets=2, cores=5), build(sockets=3, cores=4), build(sockets=2, cores=(6, 3)))),
    st.lists(
        st.tuples(
            st.sampled_from(("realtime", "realtime", "balanced")),
            st.sampled_from((1, 1, 2, 3)),
            st.sampled_from((1, 20, 30, 40)),
        ),
        min_size=2,
        max_size=6,
    ),
)
def test_a_guest_is_refused_only_when_no_spread_fits(machine: Machine, shapes: list[tuple[str, int, int]]) -> None:
    guests = {f"g{n}": guest(goal, vcpus=v, memory=size * GIB) for n, (goal, v, size) in enumerate(shapes)}
    plan, error = plan_or_refusal(machine, guests)
    assert (plan is not None) == fits_somehow(machine, guests), error
    if plan is not None:
        assert violations(machine, guests, plan) == []


CELLS = st.lists(st.tuples(st.sampled_from((1, 2, 3)), st.sampled_from((1, 20, 30))), min_size=1, max_size=3)
SPREADS = st.one_of(
    st.tuples(st.sampled_from((None, 2, 2, 3, "auto", "auto")), st.sampled_from((1, 2, 3)), st.sampled_from((1, 24))),
    CELLS,
)


def spread(shape: object) -> GuestWish:
    if isinstance(shape, list):
        cells = tuple(CellWish(vcpus=vcpus, memory=size * GIB) for vcpus, size in shape)
        return guest(cells=cells, vcpus=sum(cell.vcpus for cell in cells), memory=sum(cell.memory for cell in cells))
    assert isinstance(shape, tuple)
    numa, vcpus, size = shape
    count = {None: 1, "auto": 2}.get(numa, numa)
    return guest(numa=numa, vcpus=count * vcpus, memory=count * size * GIB)


@settings(max_examples=150, deadline=None, suppress_health_check=SLOW)
@given(
    st.sampled_from(
        (
            build(sockets=2, cores=5),
            build(sockets=3, cores=4),
            build(sockets=2, cores=(6, 3)),
            build(sockets=2, nodes_per_socket=2, cores=6),
            build(sockets=3, cores=4, memory=(64 * GIB, 8 * GIB, 32 * GIB)),
        )
    ),
    st.lists(SPREADS, min_size=1, max_size=4),
)
def test_a_guest_of_several_cells_is_refused_only_when_no_spread_fits(machine: Machine, shapes: list[object]) -> None:
    guests = {f"g{n}": spread(shape) for n, shape in enumerate(shapes)}
    plan, error = plan_or_refusal(machine, guests)
    assert (plan is not None) == fits_somehow(machine, guests), error
    if plan is not None:
        assert violations(machine, guests, plan) == []


def test_small_guests_make_room_for_a_large_one() -> None:
    # Spread evenly, the two small guests leave no node with four cores.
    guests = small(2, vcpus=2) | {"wide": guest(vcpus=4)}
    plan, error = plan_or_refusal(build(sockets=2, cores=5), guests)
    assert plan is not None, error
    nodes = {one.name: one.node for one in plan.guests}
    assert nodes["g00"] == nodes["g01"] != nodes["wide"]
    assert "a node where all guests find room beside each other" in plan.guests[0].why[0]


def test_a_hopeless_site_is_refused_in_a_moment() -> None:
    # 60 equal guests on 8 nodes have more spreads than there are atoms; the search gives up in good time.
    error = plan_or_refusal(build(sockets=8, cores=8), small(57))[1]
    assert error is not None and "needs 1 whole core" in error.message
    plan, error = plan_or_refusal(build(sockets=8, cores=8), small(56))
    assert plan is not None, error


@pytest.mark.parametrize("name", ["1024 CPUs", "AMD, four nodes a socket, two CCX each"])
def test_many_guests_share_one_ledger(name: str) -> None:
    machine = NAMED[name]
    room = sum(1 for core in machine.cores().values()) // 4
    guests: dict[str, GuestWish] = {}
    for number in range(room // 3):
        guests[f"rt{number}"] = guest(latency=(number % 12 + 1) * 20_000, memory=128 * MIB)
        guests[f"db{number}"] = guest("performance", vcpus=2, memory=256 * MIB)
        guests[f"gui{number}"] = guest("balanced", memory=512 * MIB)
        guests[f"log{number}"] = guest("flexible", memory=64 * MIB)
    plan, error = plan_or_refusal(machine, guests)
    assert plan is not None, error
    assert violations(machine, guests, plan) == []
    ranks = {one.name: one.vcpus[-1].priority for one in plan.guests if one.goal == "realtime"}
    assert set(ranks.values()) == set(range(2, 10))
    by_urgency = sorted(ranks, key=lambda one: guests[one].latency or 0)
    assert [ranks[one] for one in by_urgency] == sorted(ranks.values(), reverse=True)
    # Interrupts and emulators of all of them share the housekeeping CPUs, and nobody's core.
    used = {cpu for one in plan.guests if one.goal in PINNED for vcpu in one.vcpus for cpu in vcpu.cpus}
    for one in plan.guests:
        assert not one.emulator_cpus & used


# -- memory -----------------------------------------------------------------------------------------------------------

NODE = build(cores=4, memory=64 * GIB)  # 4 GiB and more stay with the host


def test_pages_that_others_use_are_taken() -> None:
    crowded = replace(NODE, pools={(0, 2 * MIB): (20480, 20480)})  # 40 GiB in use
    guests = {"a": guest(memory=30 * GIB, page_size=GIB)}
    assert plan_or_refusal(NODE, guests)[0] is not None
    error = plan_or_refusal(crowded, guests)[1]
    assert error is not None and "needs 2 whole cores and 30GiB" in error.message
    # 8 % stay with the host, so 18.88 GiB are left beside the 40.
    assert "19333MiB for huge pages" in error.message


def test_free_pages_of_another_size_are_told_and_can_be_given_back() -> None:
    idle = replace(NODE, pools={(0, GIB): (40, 0)})
    error = plan_or_refusal(idle, {"a": guest(memory=30 * GIB, page_size=2 * MIB)})[1]
    assert error is not None
    assert "or give back what no guest uses: node 0 holds 40GiB in free pages of 1GiB" in str(error.hint)
    assert plan_or_refusal(idle, {"a": guest(memory=30 * GIB, page_size=GIB)})[0] is not None


def test_flexible_guests_count_what_huge_pages_take() -> None:
    guests = {"a": guest("flexible", memory=30 * GIB)}
    assert plan_or_refusal(NODE, guests)[0] is not None
    error = plan_or_refusal(replace(NODE, pools={(0, GIB): (40, 40)}), guests)[1]
    assert error is not None and "left for guests on ordinary pages" in error.message


# -- what a guest is shown --------------------------------------------------------------------------------------------


def test_siblings_in_the_guest_are_siblings_on_the_host() -> None:
    # Cores of 4, 4, 3 and 4 threads: the third one has a thread offline.
    machine = build(cores=5, threads=4, interleaved=False, offline=(11,))
    guests = {"a": guest("performance", vcpus=12, cpus="4-10,12-16")}
    plan, error = plan_or_refusal(machine, guests)
    assert plan is not None, error
    assert violations(machine, guests, plan) == []
    assert 'threads="1"' in plan.guests[0].xml
    even = {"a": guest("performance", vcpus=8, cpus="4-7,12-15")}
    plan, error = plan_or_refusal(machine, even)
    assert plan is not None, error
    assert 'threads="4"' in plan.guests[0].xml
