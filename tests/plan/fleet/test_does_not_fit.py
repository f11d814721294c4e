"""The examples that do not fit: each says why, in so many words, and every cure that it tells is one, once done."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.documents.fleet import FleetPlan, Refusal
from evenkeel.documents.site import Site
from evenkeel.placement_check import check_placement
from evenkeel.plan.fleet.site import board_of, place_all, without_standby
from evenkeel.plan.fleet.standby import place_with_standby
from evenkeel.plan.sitefile import parse_site
from tests.plan.fleet.example_facts import DISK, FOLDER, example_facts, text_of

FACTS = example_facts()
CASES = FOLDER / "does-not-fit"
#: From the text of a site and the facts of its hosts to those with one change.
Change = Callable[[str, dict[str, Facts]], tuple[str, dict[str, Facts]]]


def test_the_files_are_what_they_are_made_from() -> None:
    for host, facts in FACTS.items():
        assert (FOLDER / "facts" / f"{host}.facts.json").read_text() == text_of(facts)


def place(text: str, facts: dict[str, Facts]) -> FleetPlan:
    site: Site = parse_site(text, file="site.yaml")
    board = board_of(site, {host: facts[host] for host in site.hosts})
    placed = without_standby(board, place_with_standby(board)) if board.standby else place_all(board)
    assert check_placement(placed.model_dump(mode="json")) == []
    return placed


def edit(old: str, new: str, count: int = 1) -> Change:
    """In the site."""

    def change(text: str, facts: dict[str, Facts]) -> tuple[str, dict[str, Facts]]:
        assert old in text
        return text.replace(old, new, count), facts

    return change


def of_host(host: str, old: str, new: str) -> Change:
    """In the site, behind the name of a host."""

    def change(text: str, facts: dict[str, Facts]) -> tuple[str, dict[str, Facts]]:
        before, name, after = text.partition(f"  {host}:")
        assert name and old in after
        return before + name + after.replace(old, new, 1), facts

    return change


def more_functions(text: str, facts: dict[str, Facts]) -> tuple[str, dict[str, Facts]]:
    """Two more virtual functions on the first port of edge-a."""
    edge = facts["edge-a"]
    some = [one for one in edge.pci if one.address.startswith("0000:17:01.")]
    added = tuple(
        one.model_copy(update={"address": f"0000:17:03.{n}", "iommu_group": 90 + n}) for n, one in enumerate(some[:2])
    )
    return text, {**facts, "edge-a": edge.model_copy(update={"pci": (*edge.pci, *added)})}


def without(guest: str) -> Change:
    def change(text: str, facts: dict[str, Facts]) -> tuple[str, dict[str, Facts]]:
        changed = re.sub(rf"^  {guest}: .*\n", "", text, flags=re.MULTILINE)
        assert changed != text
        return changed, facts

    return change


SOFTER = "with goal performance, on both threads of its cores and without a real-time promise, it fits on edge-a"
#: File -> the guest, its reasons, its cuts (reason -> hosts), and every cure with the change that it means.
EXPECTED: dict[str, tuple[str, list[str], dict[str, int], dict[str, Change]]] = {
    "network": (
        "logger",
        ["it needs network white, to which no host is wired"],
        {"network white": 3},
        {"wire edge-a to white (or 2 others)": of_host("edge-a", "[blue, red]", "[blue, red, white]")},
    ),
    "pages": (
        "cache",
        ["it needs 200GiB in pages of 1GiB; the most on one node is 176GiB (edge-a, node 0)"],
        {"200GiB in pages of 1GiB": 3},
        {
            "with numa: 2 (2 vCPUs and 100GiB on each of 2 nodes) it fits on edge-a": edit(
                "vcpus: 4", "numa: 2, vcpus: 4"
            ),
            "with 176GiB instead of 200GiB it fits on edge-a": edit("memory: 200GiB", "memory: 176GiB"),
        },
    ),
    "cores": (
        "solver",
        ["it needs 20 whole cores; the most on one node are 15 whole cores (edge-a, node 0)"],
        {"20 whole cores": 3},
        {
            "with numa: 2 (10 vCPUs and 8GiB on each of 2 nodes) it fits on edge-a": edit(
                "vcpus: 20", "numa: 2, vcpus: 20"
            ),
            SOFTER: edit("goal: realtime", "goal: performance"),
            "with 15 vCPUs instead of 20 it fits on edge-a": edit("vcpus: 20", "vcpus: 15"),
        },
    ),
    "threads": (
        "robot",
        [
            "it needs 12 whole cores; the most on one node are 10 whole cores (edge-a, node 1): 15 are whole, but 10 "
            "of their threads are promised to guests that share CPUs"
        ],
        {"12 whole cores": 1},
        {
            SOFTER: edit("goal: realtime", "goal: performance"),
            "with 10 vCPUs instead of 12 it fits on edge-a": edit("vcpus: 12", "vcpus: 10"),
            "free 2 more cores of a node of edge-a": without("web-4"),
        },
    ),
    "cells": (
        "matrix",
        ["it needs 4 nodes, and no host has more than 2"],
        {"4 nodes": 3},
        {"with numa: 2 (8 vCPUs and 32GiB on each of 2 nodes) it fits on edge-a": edit("numa: 4", "numa: 2")},
    ),
    "functions": (
        "upf",
        ["it needs 10 PCI functions (vf on blue) near it, and the most that are free are 8 (edge-a, node 0)"],
        {"10 PCI functions (vf on blue) near it": 3, "8 whole cores": 1},
        {
            "have 10 PCI functions (vf on blue) near it free on edge-a, which has 8 (or 1 other)": more_functions,
            "with 8 instead of 10 PCI functions (vf on blue) near it, it fits on edge-a": edit("count: 10", "count: 8"),
        },
    ),
    "racks": (
        "witness-3",
        ["guests of witness are in racks r1, r2 already, and the site has no other rack"],
        {"a rack without witness": 3},
        {
            "allow it in one rack with others of witness, on edge-a (or 2 others)": lambda text, facts: (
                text.replace("witness-3 }], place: { apart_racks: [witness] }", "witness-3 }]").replace(
                    "place: { apart_racks: [witness] }, disks: [{ path: /dev/vg0/witness-3 }]",
                    "disks: [{ path: /dev/vg0/witness-3 }]",
                ),
                facts,
            )
        },
    ),
    "max-hosts": (
        "line-3",
        [
            "it needs 14 whole cores; the most on one node of edge-a, edge-c are 7 whole cores (edge-c, node 0)",
            "1 host may be used (max_hosts), and edge-a is",
        ],
        {"14 whole cores": 2, "room within max_hosts": 2},
        {
            "with max_hosts: 2 it fits on edge-b": edit("max_hosts: 1", "max_hosts: 2"),
            "free 13 more cores of a node of edge-a": without("line-1"),
        },
    ),
    "power": (
        "line-3",
        [
            "it needs 14 whole cores; the most on one node of edge-a, edge-c are 7 whole cores (edge-c, node 0)",
            "edge-a takes 900 of 1000 W (power_watts), and edge-c would take 250 more",
        ],
        {"14 whole cores": 2, "room within power_watts": 2},
        {
            "with power_watts: 1800 it fits on edge-b": edit("power_watts: 1000", "power_watts: 1800"),
            "free 13 more cores of a node of edge-a": without("line-1"),
        },
    ),
    "cpu": (
        "model",
        ["it needs amx-tile, which no host has"],
        {"feature amx-tile": 4, "8 threads of whole cores": 1},
        {
            "write amx-tile under `features` of big, if it has that (or 2 others)": of_host(
                "big", "[avx512f]", "[avx512f, amx-tile]"
            )
        },
    ),
    "iommu-group": (
        "render",
        [
            "it needs 1 PCI function (late) near it, and no host has one free; 0000:b2:00.0 of edge-a cannot be given: "
            "IOMMU group 71 has 0000:b2:00.1 too, and the host uses that by its driver nvme"
        ],
        {"1 PCI function (late) near it": 1},
        {
            "have 1 PCI function (late) near it free on edge-a, which has 1, with all of its IOMMU group under "
            "`pools`, if the host can do without": edit("late: [", f'disk: ["{DISK}"], late: [')
        },
    ),
    "standby": (
        "cell-6",
        ["there is room on edge-a, but with it no room was found for the guests of a host that fails"],
        {"room for its guests elsewhere, if it fails": 1, "4 whole cores": 1},
        {"without standby it fits on edge-a": edit("standby: true", "standby: false")},
    ),
}


def refused(plan: FleetPlan, guest: str) -> Refusal:
    return next(one for one in plan.refused if one.name == guest)


def test_every_example_is_told() -> None:
    assert {file.stem for file in CASES.glob("*.yaml")} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_why_it_does_not_fit(name: str) -> None:
    guest, reasons, cuts, cures = EXPECTED[name]
    text = (CASES / f"{name}.yaml").read_text()
    plan = place(text, FACTS)
    found = refused(plan, guest)
    assert list(found.reasons) == reasons
    assert {cut.reason: cut.hosts for cut in found.cuts} == cuts
    assert list(found.cures) == list(cures)


@pytest.mark.parametrize(
    ("name", "cure"), [(name, cure) for name, (_, _, _, cures) in EXPECTED.items() for cure in cures]
)
def test_every_cure_is_one(name: str, cure: str) -> None:
    """The change that it tells is made, and the guest has its place, on the host that is named."""
    guest, _, _, cures = EXPECTED[name]
    text, facts = cures[cure]((CASES / f"{name}.yaml").read_text(), FACTS)
    assert (text, facts) != ((CASES / f"{name}.yaml").read_text(), FACTS)
    plan = place(text, facts)
    assert guest in {seat.name for seat in plan.seats}, plan.refused


# -- cures that no example has ----------------------------------------------------------------------------------------

HOSTS = """\
version: 1
hosts:
  edge-a: {address: "ssh://root@a", place: {rack: r1, networks: [blue]}}
  big: {address: "ssh://root@b", place: {rack: r2, networks: [red]}}
guests:
"""


PERFORMANCE = "goal: performance, memory: 4GiB, disks: [{path: /d}]"


def with_rt_kernel(text: str, facts: dict[str, Facts]) -> tuple[str, dict[str, Facts]]:
    kernel = facts["big"].kernel.model_copy(update={"preempt_rt": True})
    return text, {**facts, "big": facts["big"].model_copy(update={"kernel": kernel})}


@pytest.mark.parametrize(
    ("guests", "cure", "change"),
    [
        (
            "g: {goal: realtime, vcpus: 2, memory: 4GiB, disks: [{path: /d}], place: {networks: [red]}}\n",
            "boot a PREEMPT_RT kernel on big",
            with_rt_kernel,
        ),
        (
            f"g: {{{PERFORMANCE}, vcpus: 2, near: ens1f9}}\n",
            "without `near` it fits on big (or 1 other)",
            edit(", near: ens1f9", ""),
        ),
        (
            f"g: {{{PERFORMANCE}, vcpus: 4, place: {{networks: [blue], functions: [{{network: blue, type: vf}}]}}}}\n",
            "have 1 PCI function (vf on blue) near it free on edge-a, which has none",
            of_host("edge-a", "networks: [blue]", "networks: [blue], wires: {ens1f0: blue}"),
        ),
        (
            f"a: {{{PERFORMANCE}, vcpus: 26, host: edge-a, near: ens1f0}}\n"
            f"  g: {{{PERFORMANCE}, vcpus: 8, host: edge-a, near: ens1f0}}\n",
            "without `near` it fits on edge-a",
            lambda text, facts: ("".join(text.rsplit(", near: ens1f0", 1)), facts),
        ),
        (
            f"a: {{{PERFORMANCE}, vcpus: 8, host: edge-a, place: {{together: [t], priority: 1}}}}\n"
            f"  g: {{{PERFORMANCE}, vcpus: 8, place: {{together: [t], networks: [red]}}}}\n",
            "allow it apart from the guests of t, on big",
            edit("together: [t], networks", "networks"),
        ),
        (
            f"g: {{{PERFORMANCE}, vcpus: 2, host: edge-a, place: {{networks: [red]}}}}\n",
            "let it be on big",
            edit("host: edge-a, ", ""),
        ),
    ],
    ids=["kernel", "near", "function", "far", "together", "host"],
)
def test_other_cures(guests: str, cure: str, change: Change) -> None:
    text, guest = f"{HOSTS}  {guests}", "g"
    found = refused(place(text, FACTS), guest)
    assert cure in found.cures, found
    changed, facts = change(text, FACTS)
    assert guest in {seat.name for seat in place(changed, facts).seats}


def test_cores_that_stay_with_the_host_are_none_to_be_freed() -> None:
    found = refused(place((CASES / "cores.yaml").read_text(), FACTS), "solver")
    assert not any(cure.startswith("free") for cure in found.cures), "the nodes are empty, and have 15 cores for guests"
