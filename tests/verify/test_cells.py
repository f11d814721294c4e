"""A guest of two cells against its plan: each thing that can be wrong with its cells is one finding of its own.

What is seen is made from the plan in the form of the recordings (numa_maps names the memory of cell N ``ram-nodeN``);
tests/virtual/test_cells.py looks at a real one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.findings import Check
from evenkeel.documents.plan import GuestPlan, HostPlan
from evenkeel.plan import make_plan
from evenkeel.verify.guests import check
from evenkeel.verify.observe import GuestSeen, Observation
from tests.plan.factories import GIB, MIB, guest, make_facts, make_site

FACTS = make_facts(cores=5, node_bytes=8 * GIB)
(HOST,) = make_plan(make_site({"wide": guest(vcpus=4, memory=512 * MIB, numa=2)}), {"cell": FACTS}).hosts
(WIDE,) = HOST.guests
Change = Callable[[GuestSeen], GuestSeen]


def thread(name: str, cpus: frozenset[int], vcpu: int | None = None, schedule: str = "other:0") -> dict[str, Any]:
    policy, _, priority = schedule.partition(":")
    return {
        "tid": 500 + (99 if vcpu is None else vcpu),
        "name": name,
        "kind": "emulator" if vcpu is None else "vcpu",
        "vcpu": vcpu,
        "cpus": format_cpus(cpus),
        "seen": [min(cpus)],
        "policy": policy,
        "priority": int(priority),
        "cgroup": "",
    }


def mapping(cell: int, node: int, pages: int = 128) -> dict[str, Any]:
    file = f"/dev/hugepages/libvirt/qemu/1-wide/qemu_back_mem.ram-node{cell}.aBcDe1\\040(deleted)"
    return {
        "policy": f"bind:{node}",
        "file": file,
        "huge": True,
        "page_bytes": 2 * MIB,
        "nodes": {str(node): pages},
    }


def healthy(plan: GuestPlan) -> GuestSeen:
    threads = [thread("qemu-system-x86", plan.emulator_cpus)]
    threads += [
        thread(f"CPU {vcpu.index}/KVM", vcpu.cpus, vcpu.index, f"{vcpu.policy}:{vcpu.priority}") for vcpu in plan.vcpus
    ]
    memory = {"pid": 500, "huge": [mapping(0, 0), mapping(1, 1)], "ordinary": {}, "locked_bytes": GIB}
    return GuestSeen("running", live=plan.xml, defined=plan.xml, threads=threads, memory=memory)


def judge(seen: GuestSeen, host: HostPlan = HOST) -> dict[str, Check]:
    found = check(host, Observation(facts=FACTS, guests={"wide": seen}, intruders=[]))
    return {one.id: one for one in found}


def failed(seen: GuestSeen) -> set[str]:
    return {one.id for one in judge(seen).values() if one.status == "failed"}


def memory(*mappings: dict[str, Any]) -> Change:
    return lambda seen: replace(seen, memory={**(seen.memory or {}), "huge": list(mappings)})


def live(old: str, new: str) -> Change:
    assert old in WIDE.xml, old
    return lambda seen: replace(seen, live=WIDE.xml.replace(old, new))


def exchanged_pins(seen: GuestSeen) -> GuestSeen:
    threads = [dict(one) for one in seen.threads or ()]
    one, other = (next(t for t in threads if t["vcpu"] == vcpu) for vcpu in (1, 2))
    one["cpus"], other["cpus"] = other["cpus"], one["cpus"]
    one["seen"], other["seen"] = other["seen"], one["seen"]
    return replace(seen, threads=threads)


BREAKS: list[tuple[set[str], Change]] = [
    ({"V-PAGE-CELL:wide:cell1", "V-PAGE-NODE:wide"}, memory(mapping(0, 0), mapping(1, 0))),
    ({"V-PAGE-CELL:wide:cell0", "V-PAGE-CELL:wide:cell1"}, memory(mapping(0, 1), mapping(1, 0))),
    ({"V-PAGE-CELL:wide:cell1", "V-PAGE-NODE:wide"}, memory(mapping(0, 0), mapping(1, 1, pages=127))),
    ({"V-PAGE-CELL:wide:cell1", "V-PAGE-NODE:wide"}, memory(mapping(0, 0), mapping(1, 2))),
    ({"V-PAGE-CELL:wide:cell1", "V-PAGE-NODE:wide"}, memory(mapping(0, 0))),
    ({"V-PAGE-NODE:wide"}, memory()),
    ({"V-THREAD-VCPU:wide:vcpu1", "V-THREAD-VCPU:wide:vcpu2"}, exchanged_pins),
    ({"V-GUEST-LIVE:wide"}, live('id="1" value="21"', 'id="1" value="20"')),
    ({"V-GUEST-LIVE:wide"}, live('cellid="1" mode="strict" nodeset="1"', 'cellid="1" mode="strict" nodeset="0"')),
    ({"V-GUEST-LIVE:wide"}, live('cpus="2-3"', 'cpus="3"')),
]


def test_a_healthy_guest_of_two_cells() -> None:
    found = judge(healthy(WIDE))
    assert failed(healthy(WIDE)) == set()
    assert found["V-PAGE-NODE:wide"].observed == "256MiB on node 0, 256MiB on node 1"
    assert found["V-PAGE-CELL:wide:cell1"].status == "passed"
    assert "bind:1" in found["V-PAGE-CELL:wide:cell1"].evidence[0].value


@pytest.mark.parametrize(("identifiers", "change"), BREAKS)
def test_each_break_is_found_and_nothing_else(identifiers: set[str], change: Change) -> None:
    assert failed(change(healthy(WIDE))) == identifiers


def test_which_distance_differs_is_told() -> None:
    seen = live('id="1" value="21"', 'id="1" value="20"')(healthy(WIDE))
    assert "sibling[id=1]: value is 20, not 21" in judge(seen)["V-GUEST-LIVE:wide"].observed


def test_cells_that_cannot_be_told_apart_are_not_checked() -> None:
    """Another QEMU may name the files otherwise; that the sums are right proves nothing about the cells."""
    nameless = [{**mapping(cell, cell), "file": "/dev/hugepages/x"} for cell in (0, 1)]
    found = judge(memory(*nameless)(healthy(WIDE)))
    assert found["V-PAGE-NODE:wide"].status == "passed"
    for cell in (0, 1):
        one = found[f"V-PAGE-CELL:wide:cell{cell}"]
        assert one.status == "not_checked" and "does not tell which mapping" in one.reason


def test_cell_10_is_not_cell_1() -> None:
    found = judge(memory(mapping(0, 0), mapping(10, 1), mapping(1, 1))(healthy(WIDE)))
    assert found["V-PAGE-CELL:wide:cell1"].observed == "256MiB on node 1"


def test_a_guest_that_is_off_leaves_its_cells_unchecked() -> None:
    found = judge(GuestSeen("shut off", defined=WIDE.xml))
    assert {one.status for name, one in found.items() if name.startswith("V-PAGE")} == {"not_checked"}
    assert "V-PAGE-CELL:wide:cell1" in found
