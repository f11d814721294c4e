"""The ledger, the placement and the memory of every machine and site: a plan that holds, or a refusal with a cure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.plan import GuestPlan, HostPlan
from tests.plan.exact.invariants import violations
from tests.plan.exact.wishes import GOALS, most_that_fit, plan_or_refusal, sites, small
from tests.plan.factories import GIB, MIB, guest
from tests.plan.topologies import NAMED, Machine, machines

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


@pytest.mark.parametrize("goal", GOALS)
@pytest.mark.parametrize("name", NAMED)
def test_one_guest_of_each_goal_on_each_kind_of_machine(name: str, goal: str) -> None:
    machine = NAMED[name]
    guests = small(1, goal, vcpus=1 if name.startswith("one ") else 2)
    plan, error = plan_or_refusal(machine, guests)
    if plan is not None:
        assert violations(machine, guests, plan) == []
        return
    # Where a core must stay with the host, there is none for the guest; balanced memory must be on a node with CPUs.
    assert error is not None
    if name == "memory only where no CPU is":
        assert goal != "flexible"
    else:
        assert name in ("one CPU", "one core") and goal in ("performance", "realtime"), error


def check(machine: Machine, data: st.DataObject) -> None:
    if not machine.online:
        return
    guests, plan = most_that_fit(machine, data.draw(sites(machine)))
    if plan is not None:
        assert violations(machine, guests, plan) == []


@settings(max_examples=120, deadline=None, suppress_health_check=SLOW)
@given(machines(), st.data())
def test_any_machine_and_site(machine: Machine, data: st.DataObject) -> None:
    check(machine, data)


@pytest.mark.long
@settings(max_examples=1200, deadline=None, suppress_health_check=SLOW)
@given(machines(big=True), st.data())
def test_many_machines_and_sites(machine: Machine, data: st.DataObject) -> None:
    check(machine, data)


# -- the oracle sees what it is for -----------------------------------------------------------------------------------

GUESTS = {
    "a": guest(memory=64 * MIB),
    "b": guest("performance", memory=64 * MIB, vcpus=4),
    "c": guest("balanced", memory=64 * MIB),
    "d": guest("flexible", memory=64 * MIB),
}
MACHINE = NAMED["adjacent siblings"]  # two nodes of four cores: 0-7, 8-15


def healthy() -> HostPlan:
    plan, _ = plan_or_refusal(MACHINE, GUESTS)
    assert plan is not None and violations(MACHINE, GUESTS, plan) == []
    return plan


def with_ledger(**roles: str) -> HostPlan:
    plan = healthy()
    ledger = plan.ledger.model_copy(update={role: parse_cpus(cpus) for role, cpus in roles.items()})
    return plan.model_copy(update={"ledger": ledger})


def with_guest(which: str, **update: Any) -> HostPlan:
    plan = healthy()
    guests = tuple(one.model_copy(update=update) if one.name == which else one for one in plan.guests)
    return plan.model_copy(update={"guests": guests})


def with_vcpu(name: str, index: int, **update: Any) -> HostPlan:
    (one,) = (one for one in healthy().guests if one.name == name)
    vcpus = tuple(vcpu.model_copy(update=update) if vcpu.index == index else vcpu for vcpu in one.vcpus)
    return with_guest(name, vcpus=vcpus)


def with_setting(identifier: str, new: str) -> HostPlan:
    plan = healthy()
    assert plan.setting(identifier), [setting.id for setting in plan.settings]
    found = tuple(one.model_copy(update={"new": new}) if one.id == identifier else one for one in plan.settings)
    return plan.model_copy(update={"settings": found})


def test_the_healthy_plan_is_what_the_mutations_below_say() -> None:
    plan = healthy()
    cpus = {one.name: [sorted(vcpu.cpus) for vcpu in one.vcpus] for one in plan.guests}
    assert cpus["a"] == [[10], [12]]
    assert cpus["b"] == [[2], [3], [4], [5]]
    assert plan.ledger.shared == {6, 7, 14, 15}


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda: with_ledger(shared="6-8,14-15"), "is housekeeping and shared"),
        (lambda: with_ledger(shared="6-7,14"), "the roles cover"),
        (lambda: with_ledger(housekeeping="0-1,8", shared="6-7,9,14-15"), "has a part of core 8-9"),
        (lambda: with_ledger(housekeeping="8-9", shared="0-1,6-7,14-15"), "the boot CPU is not housekeeping"),
        (lambda: with_ledger(housekeeping="0-1", shared="6-9,14-15"), "node 1 has no whole core"),
        (lambda: with_ledger(realtime="2-5,10,12,14", idle="11,13,15", shared="6-7"), "isolated CPUs and those of"),
        (lambda: with_guest("a", name="z"), "are not those of the site"),
        (lambda: with_guest("a", vcpus=healthy().guests[0].vcpus[:1]), "not those that were asked for"),
        (lambda: with_vcpu("a", 1, cpus=frozenset({10})), "not pinned one to one"),
        (lambda: with_vcpu("a", 1, cpus=frozenset({6})), "its vCPUs are on nodes [0, 1]"),
        (lambda: with_vcpu("a", 1, cpus=frozenset({14})), "its CPUs are not isolated"),
        (lambda: with_vcpu("a", 1, cpus=frozenset({11})), "two of its vCPUs share a core"),
        (lambda: with_vcpu("b", 3, cpus=frozenset({11})), "guests a and b are on one core"),
        (lambda: with_guest("a", page_bytes=None, pages=0), "not in huge pages"),
        (lambda: with_guest("a", pages=1), "are not its memory"),
        (lambda: with_guest("a", emulator_cpus=frozenset({0})), "not on housekeeping of its node"),
        (lambda: with_vcpu("a", 1, policy="other", priority=0), "none of its vCPUs is real-time"),
        (lambda: with_vcpu("a", 1, priority=11), "vCPU 1 is fifo 11"),
        (lambda: with_vcpu("a", 1, priority=1), "vCPU 1 is fifo 1"),
        (lambda: with_vcpu("b", 1, policy="fifo", priority=2), "vCPU 1 is real-time"),
        (lambda: with_vcpu("c", 0, cpus=frozenset({10})), "CPUs that are not shared"),
        (lambda: with_vcpu("d", 0, cpus=frozenset({0})), "though shared CPUs are left"),
        (lambda: with_vcpu("b", 0, cpus=frozenset({4})), "vcpupin says otherwise"),
        (lambda: with_vcpu("b", 1, cpus=frozenset({4})), "are siblings in the guest and not on the host"),
        (lambda: with_vcpu("a", 1, priority=3), "vcpusched says otherwise"),
        (lambda: with_guest("a", xml=healthy().guests[0].xml.replace('cores="2"', 'cores="3"')), "topology has 3 CPUs"),
        (lambda: with_guest("a", pages=51200), "guests take 102400 MiB of node 1"),
        (lambda: with_setting("R-MM-3:node1-2M", "99999"), "huge pages take"),
        (lambda: with_setting("R-MM-3:node1-2M", "1"), "fewer huge pages than its guests need"),
        (lambda: with_setting("H-ISO-4", "0-7"), "irqaffinity=0-7 is not housekeeping"),
        (lambda: with_setting("H-ISO-1", "managed_irq,2-5"), "isolcpus=managed_irq,2-5 is not"),
        (lambda: with_setting("H-ISO-2", "6,10-13"), "nohz_full=6,10-13 is not within"),
    ],
)
def test_a_violation_is_seen(broken: Any, says: str) -> None:
    found = violations(MACHINE, GUESTS, broken())
    assert any(says in sentence for sentence in found), found


def test_a_violation_in_the_cpus_that_an_owner_names_is_seen() -> None:
    guests = {"d": guest("flexible", memory=64 * MIB, cpus="2-3")}
    plan, _ = plan_or_refusal(MACHINE, guests)
    assert plan is not None and violations(MACHINE, guests, plan) == []
    other = {"d": guest("flexible", memory=64 * MIB, cpus="4-5")}
    assert any("where its owner says" in sentence for sentence in violations(MACHINE, other, plan))


def test_pages_of_others_count_as_taken_memory() -> None:
    crowded = replace(MACHINE, pools={(1, GIB): (63, 63)})
    assert any("huge pages take" in sentence for sentence in violations(crowded, GUESTS, healthy()))


# -- a guest of several cells: the oracle sees what is wrong with them ------------------------------------------------

WIDE = {"w": guest("performance", vcpus=8, memory=8 * GIB, numa=2)}


def wide() -> GuestPlan:
    plan, error = plan_or_refusal(MACHINE, WIDE)
    assert plan is not None, error
    assert violations(MACHINE, WIDE, plan) == []
    return plan.guests[0]


def with_wide(**update: Any) -> HostPlan:
    plan, _ = plan_or_refusal(MACHINE, WIDE)
    assert plan is not None
    return plan.model_copy(update={"guests": (plan.guests[0].model_copy(update=update),)})


def with_cell(number: int, **update: Any) -> HostPlan:
    cells = list(wide().cells)
    cells[number] = cells[number].model_copy(update=update)
    return with_wide(cells=tuple(cells))


def rewritten(old: str, new: str) -> HostPlan:
    text = wide().xml
    assert old in text
    return with_wide(xml=text.replace(old, new))


def test_the_healthy_cells_are_what_the_mutations_below_say() -> None:
    cells = [(cell.node, sorted(cell.vcpus), cell.memory_bytes, cell.pages) for cell in wide().cells]
    assert cells == [(0, [0, 1, 2, 3], 4 * GIB, 4), (1, [4, 5, 6, 7], 4 * GIB, 4)]
    assert [min(vcpu.cpus) for vcpu in wide().vcpus] == [2, 3, 4, 5, 10, 11, 12, 13]
    assert wide().node is None and wide().nodes == (0, 1)


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (lambda: with_cell(1, node=0), "two of its cells are on one node"),
        (lambda: with_cell(1, node=0), "cell 1 is on node 0, its vCPUs on 10-13"),
        (lambda: with_cell(0, vcpus=frozenset({0, 1, 2, 4})), "do not hold each vCPU once"),
        (lambda: with_cell(0, memory_bytes=5 * GIB), "its cells are"),
        (lambda: with_cell(0, pages=3), "pages of its cells are not its pages"),
        (lambda: with_cell(0, pages=3), "3 pages are not the memory of cell 0"),
        (lambda: with_wide(cells=()), "its cells are ()"),
        (lambda: with_wide(emulator_cpus=frozenset({0, 1})), "no CPU of one of its nodes"),
        (lambda: rewritten('cellid="1" mode="strict" nodeset="1"', 'cellid="1" mode="strict" nodeset="0"'), "memnode"),
        (
            lambda: rewritten('<memory mode="strict" nodeset="0-1"', '<memory mode="strict" nodeset="0"'),
            "numatune says",
        ),
        (lambda: rewritten('cpus="4-7"', 'cpus="4-6"'), "cells of the definition say otherwise"),
        (lambda: rewritten('value="21"', 'value="20"'), "distances of cell 0 are"),
        (lambda: rewritten('sockets="2" cores="2"', 'sockets="1" cores="4"'), "is on two sockets of the host"),
    ],
)
def test_a_violation_of_cells_is_seen(broken: Any, says: str) -> None:
    found = violations(MACHINE, WIDE, broken())
    assert any(says in sentence for sentence in found), found
