"""The independent checker: accepts a right placement, and tells each way to break it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench import fleets

from evenkeel.documents.fleet import FleetPlan, GuestSeat, Request
from evenkeel.placement_check import check_placement

GIB = 1 << 30
Mutation = Callable[[dict[str, Any]], Any]


def right() -> dict[str, Any]:
    """Two hosts of 2 nodes x 4 cores x 2 threads (core n: CPUs n and n + 8, core 0 and 4 housekeeping), five guests."""
    hosts = [
        fleets.host(index, cores=4, hosts_per_rack=1).model_copy(
            update={
                "nodes": tuple(
                    fleets.node(
                        number,
                        first=number * 4,
                        cores=4,
                        l3_cores=2,
                        memory_bytes=8 * GIB,
                        pages={fleets.ORDINARY: 8 * GIB, fleets.HUGE: 4 * GIB, fleets.GIANT: 4 * GIB},
                    )
                    for number in range(2)
                ),
                "overcommit": 2,
            }
        )
        for index in (0, 1)
    ]
    cell = {"vcpus": 2, "memory_bytes": GIB}
    vf = {"pool": "vf", "network": "blue"}
    guests: list[dict[str, Any]] = [
        {"name": "plc", "threads": "isolate", "cells": [cell], "features": ["preempt-rt"], "functions": [vf]},
        {"name": "db", "threads": "whole", "cells": [cell, {"vcpus": 1, "memory_bytes": GIB}], "max_distance": 21},
        {"name": "web", "threads": "prefer", "cells": [cell], "pages": fleets.HUGE, "apart": ["w"], "l3": "require"},
        {"name": "float", "threads": "float", "cells": [cell], "pages": "huge-smallest", "apart": ["w"]},
        {"name": "flex", "threads": "overcommit", "cells": [{"vcpus": 6, "memory_bytes": GIB}], "pages": "ordinary"},
        {"name": "big", "cells": [{"vcpus": 99, "memory_bytes": GIB}]},
    ]
    first, second = "h00000", "h00001"
    seats: list[dict[str, Any]] = [
        {"name": "plc", "host": first, "nodes": [0], "cpus": [[1, 10]], "idle": "2,9", "emulator": "0,8"},
        {"name": "db", "host": first, "nodes": [1, 0], "cpus": [[5, 13], [3]], "idle": "11", "emulator": "0,4"},
        {"name": "web", "host": second, "nodes": [0], "cpus": [[2, 11]], "page_bytes": fleets.HUGE},
        {"name": "float", "host": first, "nodes": [1], "page_bytes": fleets.HUGE, "emulator": "4"},
        {"name": "flex", "host": second},
    ]
    for seat in seats[:2]:
        seat["page_bytes"] = fleets.GIANT
    seats[0]["functions"] = ["0000:3b:02.0"]
    return FleetPlan(
        hosts=tuple(hosts),
        guests=tuple(Request.model_validate(guest) for guest in guests),
        seats=tuple(GuestSeat.model_validate(seat) for seat in seats),
        refused=({"name": "big", "reasons": ("too large",)},),
        max_hosts=2,
        power_watts=1200,
    ).model_dump(mode="json")


def test_a_right_placement_is_accepted() -> None:
    assert check_placement(right()) == []


def seat(plan: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in plan["seats"] if one["name"] == name)
    return found


def guest(plan: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in plan["guests"] if one["name"] == name)
    return found


def put(where: Callable[..., dict[str, Any]], name: str, **values: Any) -> Mutation:
    return lambda plan: where(plan, name).update(values)


def hosts(number: int, **values: Any) -> Mutation:
    return lambda plan: plan["hosts"][number].update(values)


def nodes(number: int, index: int, **values: Any) -> Mutation:
    return lambda plan: plan["hosts"][number]["nodes"][index].update(values)


SHORT = [{"page_bytes": fleets.HUGE, "free_bytes": GIB}, {"page_bytes": 4096, "free_bytes": 5}]
WRONG: list[tuple[Mutation, str]] = [
    (put(seat, "plc", cpus=[[1, 9]], idle=""), "plc: vCPUs of cell 0 share a core"),
    (put(seat, "plc", cpus=[[1]], idle="9"), "plc: cell 0 has 2 vCPUs, and 1 CPUs"),
    (put(seat, "plc", cpus=[[1, 1]], idle="9"), "two vCPUs of cell 0 are on one CPU"),
    (put(seat, "plc", cpus=[[1, 0]], idle="9,8"), "CPU [0] is not free on node 0"),
    (put(seat, "plc", cpus=[[1, 5]], idle="9,13"), "CPU [5] is not free on node 0"),
    (put(seat, "plc", cpus=[[1, 3]], idle="9,11"), "CPU 3 is db's and plc's"),
    (put(seat, "plc", idle="2"), "plc: CPU [9] beside cell 0 is not kept empty"),
    (put(seat, "plc", idle="2,9,13"), "h00000: CPU 13 is kept empty by plc and carries db"),
    (put(seat, "plc", idle="2,9,10"), "is to stay empty and carries a vCPU"),
    (put(seat, "plc", idle="2,9,8"), "CPU [8], which is to stay empty beside it, is another's"),
    (nodes(0, 0, busy="9"), "CPU [9], which is to stay empty beside it, is another's"),
    (put(seat, "plc", emulator="1"), "which is no housekeeping"),
    (put(seat, "plc", emulator="4"), "which is no housekeeping of node [0]"),
    (put(guest, "plc", emulator="own"), "is to have one CPU of its own, and has 2"),
    (put(seat, "plc", nodes=[0, 1]), "it has 1 cells and 2 nodes"),
    (put(seat, "plc", nodes=[7]), "node [7] is not on h00000"),
    (put(seat, "db", nodes=[1, 1]), "two of its cells are on one node"),
    (put(seat, "db", cpus=[[5, 6], [3]], idle="11,13,14"), "do not fill whole cores"),
    (put(seat, "db", idle=""), "db: CPU [11] beside cell 1 is not kept empty"),
    (put(guest, "db", max_distance=12), "nodes 1 and 0 are 21 apart, 12 is the most"),
    (put(seat, "web", cpus=[[1, 2]]), "do not share one L3 cache"),
    (put(seat, "web", page_bytes=fleets.GIANT), "it wants pages of 2097152 bytes"),
    (put(seat, "plc", page_bytes=fleets.HUGE), "its pages are of 2097152 bytes, and h00000 offers 1073741824"),
    (put(seat, "float", page_bytes=fleets.GIANT), "and h00000 offers 2097152"),
    (put(seat, "float", page_bytes=None), "it wants huge pages, and has ordinary ones"),
    (put(seat, "flex", page_bytes=fleets.HUGE), "it wants ordinary pages, and has huge ones"),
    (put(guest, "web", pages=3 << 20), "it wants pages of 3145728"),
    (put(guest, "plc", cells=[{"vcpus": 2, "memory_bytes": GIB + 4096}]), "no whole number of pages"),
    (
        put(guest, "plc", cells=[{"vcpus": 2, "memory_bytes": 5 * GIB}]),
        "in pages of 1073741824 on node 0, and there is room",
    ),
    (nodes(0, 0, memory_bytes=GIB), "h00000: 2147483648 bytes on node 0, and there is room for 1073741824"),
    (put(guest, "flex", cells=[{"vcpus": 6, "memory_bytes": 20 * GIB}]), "bytes for all guests, and there is room"),
    (
        lambda p: [node.update(pages=SHORT) for node in p["hosts"][1]["nodes"]],
        "h00001: 1073741824 bytes in ordinary pages, and there is room for 10",
    ),
    (put(guest, "float", cells=[{"vcpus": 5, "memory_bytes": GIB}]), "h00000: on node 1 1 CPUs too few are left"),
    (put(guest, "flex", cells=[{"vcpus": 21, "memory_bytes": GIB}]), "it has 21 vCPUs, h00001 16 CPUs"),
    (put(seat, "flex", host="h00000"), "6 vCPUs of flexible guests, and there is room for 4"),
    (put(seat, "flex", nodes=[0]), "its seat names nodes or CPUs"),
    (put(seat, "float", cpus=[[6, 7]]), "it floats, and its seat names CPUs"),
    (put(seat, "float", idle="6"), "it floats, and threads are kept empty"),
    (put(seat, "plc", functions=[]), "it wants 1 functions, and has 0"),
    (put(seat, "plc", functions=["0000:3b:03.0"]), "not those that it wants, near enough"),
    (put(seat, "plc", functions=["0000:ff:00.0"]), "h00000 has no function 0000:ff:00.0"),
    (put(seat, "plc", functions=["0000:3b:02.0"] * 2), "function 0000:3b:02.0 is there 2 times"),
    (lambda p: next(f for f in p["hosts"][0]["functions"] if f["address"] == "0000:3b:02.0").update(node=1), "near"),
    (
        lambda p: next(f for f in p["hosts"][0]["functions"] if f["address"] == "0000:3b:02.0").update(busy=True),
        "another's",
    ),
    (
        lambda p: [f.update(iommu_group=7, busy=f["address"] == "0000:af:00.0") for f in p["hosts"][0]["functions"]],
        "IOMMU group 7 is divided between plc, somebody else",
    ),
    (
        lambda p: [
            p["hosts"][0]["functions"][1].update(physical_function="0000:3b:02.0", busy=True),
            p["hosts"][0]["functions"][0].update(physical_function=None),
        ],
        "of which it is a part",
    ),
    (put(seat, "web", host="h00000", cpus=[[6, 15]]), "CPU [6, 15] is not free on node 0"),
    (put(seat, "float", host="h00001", nodes=[0], emulator="0"), "float, web of group w share host h00001"),
    (
        lambda p: [one.update(apart_racks=["x"], rack="r") for one in (guest(p, "plc"), guest(p, "db"))],
        "share rack r000",
    ),
    (lambda p: [guest(p, one).update(together=["t"]) for one in ("plc", "web")], "group t is to be together"),
    (put(guest, "plc", hosts=["h00001"]), "it may only be on h00001"),
    (put(guest, "plc", architecture="aarch64"), "its architecture is aarch64"),
    (put(guest, "plc", features=["avx512f"]), "h00000 lacks avx512f"),
    (put(guest, "plc", networks=["white"]), "h00000 is not wired to white"),
    (put(guest, "plc", near="eth0"), "h00000 has no eth0"),
    (lambda p: [put(guest, "plc", near="eth0")(p), p["hosts"][0].update(places={"eth0": 1})], "it is to be near eth0"),
    (hosts(0, drained=True), "h00000 is drained"),
    (put(seat, "plc", host="h9"), "plc sits on h9, which is no host"),
    (lambda p: p["seats"].append({"name": "who", "host": "h00000"}), "who has a seat, and is no guest"),
    (lambda p: p["seats"].append(copy.deepcopy(p["seats"][0])), "the seat of guest plc is there 2 times"),
    (lambda p: p["seats"].pop(), "flex has no seat and is not refused"),
    (lambda p: p["refused"].append({"name": "web"}), "web is refused and has a seat"),
    (lambda p: p.update(max_hosts=1), "2 hosts are used, 1 is the most"),
    (lambda p: p.update(power_watts=1000), "the hosts take 1200 W, 1000 W is the most"),
    (
        lambda p: guest(p, "plc").update(movable=False, now={"host": "h00000", "nodes": [0], "cpus": [[2, 1]]}),
        "plc may not be moved, and is",
    ),
]


@pytest.mark.parametrize(("mutate", "sentence"), WRONG, ids=[str(index) for index in range(len(WRONG))])
def test_each_mutation_is_told(mutate: Mutation, sentence: str) -> None:
    plan = right()
    mutate(plan)
    found = check_placement(plan)
    assert any(sentence in one for one in found), found


def test_a_guest_that_may_be_cut_has_equal_cells() -> None:
    plan = right()
    guest(plan, "db").update(cells=[{"vcpus": 4, "memory_bytes": 2 * GIB}], cut=True)
    seat(plan, "db").update(nodes=[0, 1], cpus=[[3, 11], [5, 13]], idle="")
    assert check_placement(plan) == []
    seat(plan, "db").update(cpus=[[3], [5, 13, 6]], idle="11,14")
    assert "db: cell 0 has 2 vCPUs, and 1 CPUs" in check_placement(plan)


def test_the_command_line_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from evenkeel.cli.root import run

    file = tmp_path / "placement.json"
    file.write_text(json.dumps(right()))
    assert run(["place", "--check", str(file)]) == 0
    assert "holds: 5 guests on 2 of 2 hosts" in capsys.readouterr().out
    plan = right()
    seat(plan, "plc").update(idle="2")
    file.write_text(json.dumps(plan))
    assert run(["place", "--check", str(file), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["violations"] == ["plc: CPU [9] beside cell 0 is not kept empty"]
    file.write_text('{"kind": "Plan"}')
    assert run(["place", "--check", str(file)]) == 2
