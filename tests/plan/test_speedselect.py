"""Intel Speed Select: faster cores go to guests, and the plan says what contradicts it.  Facts made of numbers.

No machine with it is at hand; the texts of the program are written after its source (isst-display.c).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.facts import Facts, Frequency
from evenkeel.documents.plan import HostPlan
from evenkeel.machines.tree import TreeMachine
from evenkeel.plan import make_plan
from evenkeel.plan.topology import Topology
from evenkeel.probe.facts import facts_of
from tests.plan.factories import guest, make_facts, make_site
from tests.probe.trees import Tree, cpus_tree, plant

MACHINES = Path(__file__).parents[2].parent / "shared" / "machines"
STATUS = "/sys/devices/system/cpu/intel_pstate/status"


def facts(fast: set[int], *, status: str | None = "active", line: str = "ro", **more: Any) -> Facts:
    """Two sockets of six cores; ``fast``: cores (by number) with the higher base frequency."""
    known = {STATUS: status} if status else {}
    found = make_facts(cores=6, settings=known, command_line=line, **more)
    cpus = tuple(
        cpu.model_copy(update={"base_khz": 2_700_000 if cpu.id // 2 in fast else 2_100_000}) for cpu in found.cpus
    )
    return found.model_copy(update={"cpus": cpus, "frequency": Frequency(driver="intel_pstate")})


def plan(machine: Facts, goal: str = "realtime", **wish: Any) -> HostPlan:
    return make_plan(make_site({"plc": guest(goal, **wish)}), {"cell": machine}).hosts[0]


def notes(host: HostPlan) -> str:
    return "\n".join(note.text for note in host.notes if note.rule == "H-SST")


def test_guests_get_the_faster_cores() -> None:
    slow = plan(facts(set()))
    assert slow.ledger.realtime == {14, 16} and notes(slow) == ""
    host = plan(facts({9, 11}))
    assert host.ledger.realtime == {18, 22}
    assert "CPUs 18-19,22-23 have a higher base frequency than the others (SST-BF): guest plc's vCPUs are all" in notes(
        host
    )


def test_housekeeping_leaves_the_faster_cores() -> None:
    assert plan(facts({6, 9, 11})).ledger.housekeeping == {0, 1, 14, 15}  # core 6 would be the first of node 1


def test_one_that_is_not_on_them_is_named() -> None:
    said = notes(plan(facts({9}), cpus="18-21"))
    assert "those on CPU 20 are not on them" in said


@pytest.mark.parametrize(
    ("status", "line", "why"),
    [
        ("active", "ro intel_pstate=passive", "intel_pstate=passive is on the command line"),
        ("passive", "ro", f"{STATUS} reads passive"),
        (None, "ro intel_pstate=disable", "intel_pstate=disable is on the command line"),
    ],
)
def test_a_driver_that_contradicts_it_is_named(status: str | None, line: str, why: str) -> None:
    said = notes(plan(facts({9, 11}, status=status, line=line)))
    assert f"SST-BF is switched on, but {why}" in said
    assert "switched on, but" not in notes(plan(facts({9, 11})))
    other = facts({9, 11}, status=None).model_copy(update={"frequency": Frequency(driver="acpi-cpufreq")})
    assert "the frequency driver is acpi-cpufreq" in notes(plan(other))


def test_what_the_program_says() -> None:
    off = facts(set()).model_copy(update={"speed_select": {"base-freq": "disabled", "core-power": "unsupported"}})
    assert "switched off): `intel-speed-select base-freq enable -a`" in notes(plan(off))
    power = {"base-freq": "unsupported", "core-power": "enabled", "turbo-freq": "enabled"}
    passive = facts(set(), status="passive").model_copy(update={"speed_select": power})
    assert "SST-CP and SST-TF is switched on, but" in notes(plan(passive))
    assert notes(plan(off, "balanced")) == ""


def test_frequencies_of_a_few_cpus_say_nothing() -> None:
    machine = facts({9, 11})
    first, *rest = machine.cpus
    partly = machine.model_copy(update={"cpus": (first.model_copy(update={"base_khz": None}), *rest)})
    assert Topology(partly).high_base == frozenset()
    assert plan(partly).ledger == plan(facts(set())).ledger


def test_kinds_of_a_hybrid_processor_are_no_speed_select() -> None:
    machine = facts({0, 1, 2, 6, 7, 8})
    cpus = tuple(
        cpu.model_copy(update={"kind": "performance" if cpu.base_khz == 2_700_000 else "efficiency"})
        for cpu in machine.cpus
    )
    assert Topology(machine.model_copy(update={"cpus": cpus})).high_base == frozenset()
    assert Topology(machine).high_base == frozenset({0, 1, 2, 3, 4, 5, 12, 13, 14, 15, 16, 17})


@pytest.mark.skipif(not MACHINES.is_dir(), reason="needs the recorded machines")
@pytest.mark.parametrize("name", ["20em64t-hybrid-1p6c2t+2ca4co1t.tar.bz2", "lscpu-x86_64-64cpu-linux6.2.tar.gz"])
def test_recorded_machines_without_it(name: str) -> None:
    with TreeMachine(MACHINES / name).probe() as probe:
        found = Facts.model_validate(probe.call("facts"))
    assert any(cpu.base_khz for cpu in found.cpus)
    assert Topology(found).high_base == frozenset()


# -- facts ------------------------------------------------------------------------------------------------------------

JSON = """Intel(R) Speed Select Technology
Executing on CPU model:106[0x6a]
{
  "package-0:die-0:cpu-0": {
    "perf-profile-level-0": {
      "cpu-count": "64",
      "speed-select-turbo-freq": "disabled",
      "speed-select-base-freq": "enabled",
      "speed-select-core-power": "unsupported",
    },
    "perf-profile-level-1": {
      "speed-select-turbo-freq": "disabled",
      "speed-select-base-freq": "disabled"
    }
  }
}
"""
TEXT = """ package-0
  die-0
    cpu-0
      perf-profile-level-0
        speed-select-turbo-freq:unsupported
        speed-select-base-freq:disabled
"""


@pytest.mark.parametrize(
    ("said", "features"),
    [
        (JSON, {"base-freq": "enabled", "turbo-freq": "disabled", "core-power": "unsupported"}),
        (TEXT, {"base-freq": "disabled", "turbo-freq": "unsupported"}),
        ("Invalid CPU model (142)\n", None),
        (None, None),
        (7, None),
    ],
)
def test_facts_of_a_recorded_answer(tmp_path: Path, said: object, features: dict[str, str] | None) -> None:
    tree: Tree = {
        **cpus_tree(1),
        "/sys/devices/system/cpu/cpu0/cpufreq/base_frequency": "2100000",
        "/evenkeel-asked.json": json.dumps({"intel-speed-select": said}),
    }
    found = Facts.model_validate(facts_of(plant(tmp_path, tree)))
    assert found.speed_select == features
    assert found.cpus[0].base_khz == 2_100_000
