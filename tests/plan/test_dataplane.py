"""CPUs that poll for packets: whole cores beside their card, isolated as those of guests, and told to their owner."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.cpuset import format_cpus, parse_cpus
from evenkeel.documents.plan import HostPlan, Plan
from evenkeel.documents.site import DataPlane, GuestWish
from evenkeel.plan import make_plan
from evenkeel.plan.rules import CATALOGUE
from tests.plan.exact.invariants import violations
from tests.plan.exact.wishes import plan_or_refusal, sites
from tests.plan.factories import GIB, guest, make_site
from tests.plan.topologies import Machine, build, machines

#: Two nodes of six cores, 0-5,12-17 and 6-11,18-23; ens2 is on node 0, ens3 on node 1.
TWO = build(sockets=2, cores=6)


def planned(
    plane: DataPlane | None, guests: dict[str, GuestWish] | None = None, keep: HostPlan | None = None, **host: Any
) -> HostPlan:
    guests = guests or {}
    before = Plan(site_sha256="", hosts=(keep,)) if keep else None
    plan = make_plan(make_site(guests, data_plane=plane, **host), {"cell": TWO.facts()}, before).hosts[0]
    assert violations(TWO, guests, plan) == []
    return plan


def refused(plane: DataPlane, guests: dict[str, GuestWish] | None = None, **host: Any) -> str:
    plan, error = plan_or_refusal(TWO, guests or {}, data_plane=plane, **host)
    assert plan is None and error is not None
    return error.message


def value(plan: HostPlan, identifier: str) -> str | None:
    setting = plan.setting(identifier)
    return setting.new if setting else None


def test_a_core_for_each_card_on_its_node() -> None:
    plan = planned(DataPlane(near=("ens2", "ens3")))
    assert format_cpus(plan.ledger.data_plane) == "1,7,13,19"
    assert plan.data_plane is not None and format_cpus(plan.data_plane.polling) == "1,7"
    assert plan.data_plane.options == {
        "other_config:pmd-cpu-mask": hex(1 << 1 | 1 << 7),
        "other_config:dpdk-lcore-mask": hex(sum(1 << cpu for cpu in plan.ledger.housekeeping)),
    }
    why = " ".join(plan.ledger.why)
    assert "data plane 1,13 polls for ens2: 1 whole core of the node of ens2" in why
    assert "siblings 13,19 stay empty" in why
    twice = planned(DataPlane(near=("ens3",), cores=2))
    assert format_cpus(twice.ledger.data_plane) == "7-8,19-20"
    both = planned(DataPlane(near=("ens2", "0000:10:01.0")))  # two functions of one node: a core each
    assert format_cpus(both.ledger.data_plane) == "1-2,13-14"


def test_named_cpus_poll_and_their_cores_are_taken_whole() -> None:
    plan = planned(DataPlane(cpus=frozenset({2, 8, 20})))
    assert format_cpus(plan.ledger.data_plane) == "2,8,14,20"
    assert plan.data_plane is not None and plan.data_plane.polling == {2, 8, 20}
    # Housekeeping makes room for what the owner names.
    moved = planned(DataPlane(cpus=frozenset({6})))
    assert 6 not in moved.ledger.housekeeping


def test_isolated_without_any_guest() -> None:
    """As CPUs of real-time guests: no interrupts, no tick, no work of the kernel's, full clock."""
    plan = planned(DataPlane(near=("ens2",)))
    assert value(plan, "H-ISO-1") == "managed_irq,1,13"
    assert value(plan, "H-ISO-2") == value(plan, "H-ISO-3") == "1,13"
    assert value(plan, "H-ISO-4") == format_cpus(plan.ledger.housekeeping)
    assert {"R-WQ-1", "R-WQ-2", "R-IRQ-1", "R-NET"} <= {setting.rule for setting in plan.settings}
    assert {setting.rule for setting in planned(None).settings} == set()
    setting = plan.setting("H-ISO-2")
    assert setting is not None and "CPU 1,13 polls for packets, so the scheduler tick stops" in setting.reason
    for note in (note.text for note in plan.notes if note.rule == "S2"):
        assert "other_config:pmd-cpu-mask=0x2" in note or "the scheduler may still put ordinary tasks there" in note
    assert sum(note.rule == "S2" for note in plan.notes) == 2


def test_beside_guests() -> None:
    plan = planned(DataPlane(near=("ens2",)), {"rt": guest(), "db": guest("performance", vcpus=4, memory=GIB)})
    assert value(plan, "H-ISO-1") == f"managed_irq,{format_cpus(plan.ledger.isolated)}"
    full = parse_cpus(value(plan, "H-ISO-2") or "")
    rt = {cpu for vcpu in plan.guests[1].vcpus for cpu in vcpu.cpus}
    assert full == plan.ledger.data_plane | plan.ledger.idle | rt
    setting = plan.setting("R-WQ-1")
    assert setting is not None
    assert "carry guests db and rt's vCPUs and their empty siblings, and CPU 1,13 polls for packets" in setting.reason


def test_before_partitions_the_kernel_itself_takes_them_out_of_balancing() -> None:
    facts = TWO.facts()
    old = facts.model_copy(update={"kernel": facts.kernel.model_copy(update={"release": "6.1.0-rt"})})
    plan = make_plan(make_site({}, data_plane=DataPlane(near=("ens2",))), {"cell": old}).hosts[0]
    assert value(plan, "H-ISO-1") == "managed_irq,domain,1,13"
    assert sum(note.rule == "S2" for note in plan.notes) == 1


def test_every_rule_that_isolates_knows_it() -> None:
    assert {rule.id for rule in CATALOGUE if rule.data_plane} == {
        "S2", "H-ISO-1", "H-ISO-2", "H-ISO-3", "H-ISO-4", "R-WQ-1", "R-WQ-2", "R-IRQ-1", "R-IRQ-2", "R-IRQ-3",
        "R-IRQ-4", "R-NET", "R-NET-Q", "H-PM-3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("plane", "message"),
    [
        (DataPlane(near=("ens9",)), "data_plane: the host has no network interface or PCI function ens9"),
        (DataPlane(near=("ens2",), cores=6), "data_plane wants 6 cores of node 0 (the node of ens2), and 5 are left"),
        (DataPlane(cpus=frozenset({99})), "data_plane names CPU 99, which the host does not have online"),
        (DataPlane(cpus=frozenset({12})), "takes the core of CPU 0,12, which is housekeeping"),
    ],
)
def test_what_cannot_be(plane: DataPlane, message: str) -> None:
    assert message in refused(plane)


def test_a_guest_that_names_such_a_cpu() -> None:
    plane = DataPlane(cpus=frozenset({2}))
    assert "takes the core of CPU 2,14, which is a guest's by number" in refused(
        plane, {"a": guest("performance", cpus="14,2")}
    )
    assert "which is a guest's by number" in refused(plane, {"a": guest("flexible", cpus="3,14")})


def test_polling_stays_and_a_guest_that_is_in_the_way_moves_and_says_so() -> None:
    before = planned(DataPlane(near=("ens3",)), {"a": guest(near="ens3")})
    more = planned(DataPlane(near=("ens2", "ens3")), {"a": guest(near="ens3"), "b": guest()}, before)
    assert before.ledger.data_plane < more.ledger.data_plane
    assert [note.text for note in more.notes if " moves from " in note.text] == []
    # A new data plane takes free cores before those of guests.
    alone = planned(None, {"a": guest(near="ens3")})
    added = planned(DataPlane(near=("ens3",)), {"a": guest(near="ens3")}, alone)
    assert [note.text for note in added.notes if " moves from " in note.text] == []
    cpu = min(alone.guests[0].vcpus[0].cpus)
    moved = planned(DataPlane(cpus=frozenset({cpu})), {"a": guest(near="ens3")}, alone)
    assert any(f"CPU {cpu} polls for packets now." in note.text for note in moved.notes)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(machines(), st.data())
def test_on_any_machine_beside_any_guests(machine: Machine, data: st.DataObject) -> None:
    if not machine.online:
        return
    plane = data.draw(
        st.one_of(
            st.builds(DataPlane, near=st.sampled_from((("ens2",), ("0000:10:01.0", "ens2"))), cores=st.integers(1, 2)),
            st.builds(DataPlane, cpus=st.frozensets(st.sampled_from(sorted(machine.online)), min_size=1, max_size=3)),
        )
    )
    guests = data.draw(sites(machine)) if data.draw(st.booleans()) else {}
    plan, _ = plan_or_refusal(machine, guests, data_plane=plane)
    if plan is None:
        return
    assert violations(machine, guests, plan) == []
    assert plan.data_plane is not None
    cpus, polling = plan.ledger.data_plane, plan.data_plane.polling
    assert polling <= cpus and {machine.core_of(cpu) for cpu in polling} == {machine.core_of(cpu) for cpu in cpus}
    assert min(machine.online) not in cpus
    assert int(plan.data_plane.options["other_config:pmd-cpu-mask"], 16) == sum(1 << cpu for cpu in polling)
    if plane.cpus is None:
        assert len(polling) == len(plane.near) * plane.cores == len({machine.core_of(cpu) for cpu in cpus})
    else:
        assert polling == plane.cpus
    again, error = plan_or_refusal(machine, guests, data_plane=plane)
    assert again is not None and again.model_dump_json() == plan.model_dump_json(), error
