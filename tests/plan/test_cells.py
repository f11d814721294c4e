"""Guests over several nodes: which nodes, when they stay, and what is said when they do not fit."""

from __future__ import annotations

import random
from itertools import permutations
from typing import Any

import pytest

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.plan import HostPlan, Plan
from evenkeel.documents.site import CellWish, GuestWish
from evenkeel.plan import make_plan
from evenkeel.plan.cells import deal
from tests.plan.exact.invariants import violations
from tests.plan.exact.wishes import plan_or_refusal
from tests.plan.factories import GIB, MIB, guest, make_site
from tests.plan.topologies import Machine, build

FOUR = build(sockets=2, nodes_per_socket=2, cores=8)  # nodes 0, 1 | 2, 3 of four cores, three of them for guests


def wide(numa: Any = 2, vcpus: int = 4, memory: int = 4 * GIB, **wish: Any) -> GuestWish:
    return guest("performance", numa=numa, vcpus=vcpus, memory=memory, **wish)


def placed(machine: Machine, guests: dict[str, GuestWish], keep: HostPlan | None = None) -> HostPlan:
    before = Plan(site_sha256="", hosts=(keep,)) if keep else None
    plan = make_plan(make_site(guests), {"cell": machine.facts()}, before).hosts[0]
    assert violations(machine, guests, plan) == []
    return plan


def nodes(plan: HostPlan, name: str = "a") -> tuple[int, ...]:
    return next(one.nodes for one in plan.guests if one.name == name)


def refused(machine: Machine, guests: dict[str, GuestWish]) -> tuple[str, str]:
    plan, error = plan_or_refusal(machine, guests)
    assert plan is None and error is not None
    return error.message, error.hint or ""


# -- which nodes ------------------------------------------------------------------------------------------------------


def test_the_nearest_nodes_and_not_those_of_the_boot_cpu() -> None:
    assert nodes(placed(FOUR, {"a": wide()})) == (2, 3)


def test_the_nearest_to_the_device() -> None:
    for nic, found in (("ens2", (0, 1)), ("ens3", (0, 1))):  # on nodes 0 and 1
        plan = placed(FOUR, {"a": wide(near=nic)})
        assert nodes(plan) == found
        assert f"the node of {nic} among them" in plan.guests[0].why[0]


def test_auto_takes_the_fewest_that_do() -> None:
    for vcpus, memory, found in ((6, 4 * GIB, 1), (12, 4 * GIB, 2), (24, 4 * GIB, 4), (4, 96 * GIB, 2)):
        assert len(nodes(placed(FOUR, {"a": wide("auto", vcpus, memory)}))) == found, (vcpus, memory)


def test_auto_takes_more_when_others_are_in_the_way() -> None:
    others = {f"rt{number}": guest(vcpus=2, memory=GIB) for number in range(4)}  # two of three cores of each node
    assert len(nodes(placed(FOUR, {"a": wide("auto", 4)}))) == 1
    assert len(nodes(placed(FOUR, others | {"a": wide("auto", 4)}))) == 2


def test_cells_that_are_not_equal_go_where_they_fit() -> None:
    machine = build(sockets=2, cores=6, memory=(64 * GIB, 16 * GIB))
    for sizes in ((40, 10), (10, 40)):
        cells = tuple(CellWish(vcpus=2, memory=size * GIB) for size in sizes)
        plan = placed(machine, {"a": guest("performance", cells=cells, vcpus=4, memory=50 * GIB)})
        assert nodes(plan) == ((0, 1) if sizes[0] == 40 else (1, 0))


def test_a_node_without_memory_or_without_cpus_carries_no_cell() -> None:
    machine = build(sockets=3, cores=4, memory=(64 * GIB, 0, 64 * GIB), expanders=(256 * GIB,))
    assert nodes(placed(machine, {"a": wide()})) == (0, 2)
    message, _ = refused(machine, {"a": wide(3, 6, 6 * GIB)})
    assert "needs 3 nodes with 2 threads of whole cores and 2GiB each" in message
    assert "node 1 has 6 free" in message and "0B for huge pages" in message


def test_named_cpus_of_as_many_nodes() -> None:
    # Nodes 0, 1, 2, 3 have CPUs 0-3,16-19 and so on.
    plan = placed(FOUR, {"a": wide(cpus="1,17,13,29")})
    assert nodes(plan) == (0, 3)
    assert [format_cpus(vcpu.cpus) for vcpu in plan.guests[0].vcpus] == ["1", "17", "13", "29"]
    assert nodes(placed(FOUR, {"a": wide("auto", cpus="1,17,13,29")})) == (0, 3)


@pytest.mark.parametrize(
    ("wish", "message", "hint"),
    [
        ({"numa": 2, "cpus": "1,17,2,18"}, "lie on node 0", "2 cells, each on a node of its own"),
        ({"numa": None, "cpus": "1,17,13,29"}, "lie on nodes 0,3", "use one, or write numa: 2"),
        ({"numa": 2, "cpus": "1,17,2,18,13,29"}, "names cores that its cells do not use: 2,18", "leave out"),
        ({"numa": 2, "vcpus": 6, "memory": 6 * GIB, "cpus": "1,17,13,29,14,30"}, "node 0 2, node 3 4", "as many CPUs"),
    ],
)
def test_named_cpus_that_do_not_make_the_cells(wish: dict[str, Any], message: str, hint: str) -> None:
    found, cure = refused(FOUR, {"a": wide(**wish)})
    assert message in found and hint in cure


# -- what is said when it does not fit --------------------------------------------------------------------------------


@pytest.mark.parametrize(("vcpus", "memory", "count"), [(8, GIB, 2), (24, 24 * GIB, 4), (2, 100 * GIB, 2)])
@pytest.mark.parametrize("near", [None, "ens2"])
def test_a_guest_larger_than_a_node_is_told_the_key(vcpus: int, memory: int, count: int, near: str | None) -> None:
    wish = wide(None, vcpus, memory, near=near)
    message, hint = refused(FOUR, {"a": wish})
    assert "goal performance needs" in message
    assert f"it is larger than a node of this host; spread it over {count} with  numa: {count}" in hint
    # And it is true.
    assert len(nodes(placed(FOUR, {"a": wish.model_copy(update={"numa": count})}))) == count


def test_a_guest_that_others_leave_no_room_is_not_told_to_spread() -> None:
    many = {f"rt{number}": guest(vcpus=3, memory=GIB) for number in range(4)}
    _, hint = refused(FOUR, many | {"z": wide(None, 2)})
    assert "numa" not in hint


def test_a_guest_larger_than_the_host() -> None:
    _, hint = refused(FOUR, {"a": wide(None, 26, 26 * GIB)})
    assert "numa" not in hint
    message, _ = refused(FOUR, {"a": wide("auto", 28, 28 * GIB)})
    assert "28 threads of whole cores and 28GiB, over as many nodes as it takes" in message


def test_more_cells_than_nodes() -> None:
    message, hint = refused(FOUR, {"a": wide(8, 8, 8 * GIB)})
    assert "8 cells, each on a node of its own, and the host has 4 nodes with CPUs" in message
    assert hint == "write numa: 4"
    message, hint = refused(build(cores=8, numa=False), {"a": wide()})
    assert "the host has 1 node with CPUs" in message and "leave `numa`" in hint


def test_pages_are_whole_in_each_cell() -> None:
    plan = placed(FOUR, {"a": wide(2, 4, 3 * GIB)})  # 1.5 GiB a cell
    assert plan.guests[0].page_bytes == 2 * MIB
    message, hint = refused(FOUR, {"a": wide(2, 4, 3 * GIB, page_size=GIB)})
    assert "the memory of a cell, 1536MiB is no whole number of huge pages" in message and hint == "write 4GiB"


# -- planning again ---------------------------------------------------------------------------------------------------


def test_auto_stays_on_as_many_nodes_as_it_has() -> None:
    others = {f"rt{number}": guest(vcpus=2, memory=GIB) for number in range(4)}
    before = placed(FOUR, others | {"a": wide("auto", 4)})
    alone = placed(FOUR, {"a": wide("auto", 4)}, before)
    assert nodes(alone) == nodes(before) and len(nodes(alone)) == 2
    assert "it is there already" in alone.guests[0].why[0]
    assert [note for note in alone.notes if " moves from " in note.text] == []


def test_cells_grow_and_shrink_where_they_are() -> None:
    before = placed(FOUR, {"a": wide(2, 4)})
    more = placed(FOUR, {"a": wide(2, 8, 8 * GIB)}, before)
    less = placed(FOUR, {"a": wide(2, 4)}, more)
    for plan in (more, less):
        assert nodes(plan) == nodes(before)
        assert [note for note in plan.notes if " moves from " in note.text] == []
    assert {cpu for v in less.guests[0].vcpus for cpu in v.cpus} == {
        cpu for v in before.guests[0].vcpus for cpu in v.cpus
    }


def test_other_cells_are_a_move_and_said() -> None:
    before = placed(FOUR, {"a": wide(None, 4)})
    after = placed(FOUR, {"a": wide(2, 4)}, before)
    (note,) = (note.text for note in after.notes if " moves from " in note.text)
    assert note.endswith("it sat on node 1, and it is to have 2 cells.")
    back = placed(FOUR, {"a": wide(None, 4)}, after)
    texts = [note.text for note in back.notes if " moves from " in note.text]
    assert all(text.endswith("and one must do.") for text in texts)


# -- the ways to deal cells to nodes ----------------------------------------------------------------------------------


def test_every_way_is_dealt_once() -> None:
    """Against all permutations, for random cells and random room: equal neighbours are exchanged in no two ways."""
    dice = random.Random(2026)
    for _ in range(300):
        shape = tuple(CellWish(vcpus=dice.choice((1, 1, 2)), memory=GIB) for _ in range(dice.randint(1, 4)))
        places = list(range(dice.randint(1, 5)))
        fits = {(cell, node): dice.random() < 0.6 for cell in set(shape) for node in places}
        found = list(deal(shape, places, fits))
        assert len(found) == len(set(found))
        right = {
            way for way in permutations(places, len(shape)) if all(fits[c, n] for c, n in zip(shape, way, strict=True))
        }
        assert set(found) <= right

        def kind(way: tuple[int, ...], shape: tuple[CellWish, ...] = shape) -> tuple[object, ...]:
            """Runs of equal cells as sets."""
            runs: list[tuple[CellWish, frozenset[int]]] = []
            for cell, node in zip(shape, way, strict=True):
                if runs and runs[-1][0] == cell:
                    runs[-1] = (cell, runs[-1][1] | {node})
                else:
                    runs.append((cell, frozenset({node})))
            return tuple(runs)

        assert {kind(way) for way in found} == {kind(way) for way in right}
        assert len({kind(way) for way in found}) == len(found)
