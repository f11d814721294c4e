"""Rules about idle states, frequencies and mitigations on recorded servers, which no emulated host can stand in for.

The recordings lack what a planner insists on (libvirt, KVM, a PREEMPT_RT kernel, memory), so that alone is added.
"""

from __future__ import annotations

from functools import cache

import pytest

from evenkeel.documents.facts import Facts, HugePages
from evenkeel.documents.plan import FileValue, HostPlan
from evenkeel.documents.site import Override
from evenkeel.machines.tree import TreeMachine
from tests.plan.factories import GIB, MIB, RT_KERNEL, guest
from tests.plan.rules.ask import of, one, plan
from tests.probe.truth import MACHINES

EPYC = "lscpu-x86_64-epyc_7451.tar.gz"
HYBRID = "20em64t-hybrid-1p6c2t+2ca4co1t.tar.bz2"
INTEL = "lscpu-x86_64-64cpu-linux6.2.tar.gz"

pytestmark = pytest.mark.skipif(
    not MACHINES.is_dir(), reason=f"no recorded machines in {MACHINES} (set EVENKEEL_MACHINES)"
)


@cache
def facts(name: str) -> Facts:
    with TreeMachine(MACHINES / name).probe() as probe:
        found = Facts.model_validate(probe.call("facts"))
    kernel = found.kernel.model_copy(update={"release": RT_KERNEL, "preempt_rt": True})
    programs = {"libvirt": "9.0.0", "qemu": "7.2.22"}
    pools = (HugePages(page_bytes=2 * MIB, total=0, free=0),)
    memory = {"memory_bytes": 64 * GIB, "huge_pages": pools}
    nodes = tuple(node.model_copy(update=memory) for node in found.nodes)
    update = {"kernel": kernel, "programs": programs, "kvm_usable": True, "nodes": nodes}
    return found.model_copy(update=update | memory)


def planned(name: str, **host: object) -> HostPlan:
    return plan(facts(name), {"plc": guest(latency=100_000)}, **host)


def carriers(host: HostPlan) -> set[int]:
    return {cpu for one_guest in host.guests for vcpu in one_guest.vcpus for cpu in vcpu.cpus}


@pytest.mark.parametrize("name", [EPYC, INTEL])
def test_only_the_cpus_of_vcpus_are_kept_awake(name: str) -> None:
    host = planned(name)
    found = of(host, "H-PM-1")
    assert {setting.id for setting in found} == {f"H-PM-1:cpu{cpu}" for cpu in carriers(host)}
    assert {(setting.old, setting.new, setting.status) for setting in found} == {("0", "25", "change")}
    assert len(found) < len(facts(name).online)


def test_frequency_of_an_epyc() -> None:
    """acpi-cpufreq: governor performance everywhere already, boost in the shared file, no preference."""
    host = planned(EPYC)
    assert {setting.status for setting in of(host, "H-PM-3")} == {"satisfied"}
    assert {setting.id for setting in of(host, "H-PM-3")} == {f"H-PM-3:cpu{cpu}" for cpu in carriers(host)}
    calm = planned(EPYC, overrides={"H-PM-3:boost": Override(value="0", because="the same clock always")})
    assert (one(calm, "H-PM-3:boost").old, one(calm, "H-PM-3:boost").status) == ("1", "change")
    assert of(planned(EPYC, overrides={"H-P": Override(value="passive", because="x")}), "H-P") == []


@pytest.mark.parametrize("name", [INTEL, HYBRID])
def test_frequency_of_an_intel_that_chooses_the_clock_itself(name: str) -> None:
    host = planned(name)
    cpus = carriers(host)
    wanted = {f"H-PM-3:cpu{cpu}" for cpu in cpus} | {f"H-PM-3:preference-cpu{cpu}" for cpu in cpus}
    assert {setting.id for setting in of(host, "H-PM-3")} == wanted
    assert {setting.new for setting in of(host, "H-PM-3")} == {"performance"}
    asked = planned(name, overrides={"H-P": Override(value="disable", because="x")})
    assert one(asked, "H-P:intel_pstate").new == "disable"


def test_idle_states_of_the_whole_host_on_request() -> None:
    asked = planned(INTEL, overrides={"H-C:processor": Override(value="1", because="x")})
    assert [setting.id for setting in of(asked, "H-C")] == ["H-C:processor"]
    # This one was recorded without an idle driver: nothing to limit.
    assert of(planned(HYBRID, overrides={"H-C:processor": Override(value="1", because="x")}), "H-C") == []
    assert of(planned(HYBRID), "H-PM-1") == []


@pytest.mark.parametrize("name", [EPYC, INTEL, HYBRID])
def test_no_fault_no_mitigation_to_give_up_and_no_file_made_up(name: str) -> None:
    host = planned(name)
    assert not {"H-MIT-1", "H-MIT-2"} & {note.rule for note in host.notes}
    known = facts(name).settings
    for setting in host.settings:
        if isinstance(setting.target, FileValue) and setting.rule in ("H-PM-1", "H-PM-3", "H-CLK", "H-MCE", "H-CON"):
            assert setting.target.path in known or setting.status == "absent", setting.id
