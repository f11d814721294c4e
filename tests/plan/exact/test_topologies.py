"""The generated machines are real ones: the probe reads from their /sys what their facts say."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings

from evenkeel.documents.facts import Facts
from evenkeel.plan.topology import Topology
from evenkeel.probe.facts import facts_of
from evenkeel.probe.facts.root import Root
from tests.plan.topologies import NAMED, Machine, machines

PARTS = ("cpus", "possible", "smt", "caches", "nodes", "memory_bytes", "huge_pages")


def read(machine: Machine) -> Facts:
    return Facts.model_validate(facts_of(Root(machine.files())))


def disagreements(machine: Machine, facts: Facts) -> list[str]:
    """Parts of the facts that the probe tells otherwise than the generator."""
    told = machine.facts()
    return [name for name in PARTS if getattr(facts, name) != getattr(told, name)]


def misread(machine: Machine, topology: Topology) -> list[str]:
    """What the planner's picture of a machine has wrong."""
    found = []
    if {core.cpus for core in topology.cores} != set(machine.cores().values()):
        found.append("cores")
    if {node: topology.node_cpus(node) for node in topology.cpu_nodes} != machine.node_cpus():
        found.append("nodes")
    if any(topology.l3_of(core) not in machine.l3().values() for core in topology.cores):
        found.append("L3 domains")
    kinds = {machine.kind_of(core.first): core.rank for core in topology.cores}
    if len(kinds) == 2 and not kinds["performance"] < kinds["efficiency"]:
        found.append("kinds")
    return found


@pytest.mark.parametrize("name", NAMED)
def test_the_probe_reads_what_the_generator_says(name: str) -> None:
    machine = NAMED[name]
    facts = read(machine)
    assert disagreements(machine, facts) == []
    assert misread(machine, Topology(facts)) == []


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines())
def test_any_generated_machine_is_read_as_told(machine: Machine) -> None:
    if machine.online:
        facts = read(machine)
        assert disagreements(machine, facts) == []
        assert misread(machine, Topology(facts)) == []


def test_a_disagreement_is_seen() -> None:
    machine = NAMED["adjacent siblings"]
    facts = read(machine)
    moved = (replace(machine.threads[0], core=machine.threads[2].core), *machine.threads[1:])
    other = replace(machine, threads=moved)
    assert "cpus" in disagreements(other, facts)
    assert "cores" in misread(other, Topology(facts))
    assert "nodes" in disagreements(replace(machine, memory={0: 1 << 30, 1: 1 << 30}), facts)
    hybrid = NAMED["hybrid"]
    swapped = {"performance": "efficiency", "efficiency": "performance"}
    other = replace(hybrid, threads=tuple(replace(t, kind=swapped[t.kind or ""]) for t in hybrid.threads))
    assert "kinds" in misread(other, Topology(hybrid.facts()))
