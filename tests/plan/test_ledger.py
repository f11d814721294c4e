"""The CPU ledger: who owns which CPU, and that its invariants hold on every machine that we can think of or saw."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Facts, HugePages, Node
from evenkeel.documents.plan import Ledger
from evenkeel.documents.site import GuestWish, HostWish
from evenkeel.errors import WrongInput
from evenkeel.plan import make_plan
from evenkeel.plan.ledger import check_ledger
from evenkeel.plan.placement import lay_out
from evenkeel.plan.problems import Problems
from evenkeel.plan.topology import Topology
from tests.plan.factories import GIB, MIB, guest, make_facts, make_site

MACHINES = Path(__file__).parents[2].parent / "shared" / "machines"


def ledger_of(facts: Facts, guests: dict[str, GuestWish] | None = None, **host: object) -> Ledger:
    return make_plan(make_site(guests, **host), {"cell": facts}).hosts[0].ledger


def test_demo_host() -> None:
    ledger = ledger_of(make_facts())
    assert ledger.housekeeping == parse_cpus("0-1,6-7")
    assert ledger.realtime == {8, 10}
    assert ledger.idle == {9, 11}
    assert ledger.shared == parse_cpus("2-5")
    assert ledger.isolated == parse_cpus("8-11")
    assert len(ledger.why) == 4


def test_interleaved_numbering_keeps_siblings_together() -> None:
    # CPUs 0-5 are the first threads, 6-11 the second ones: TuneD's own choice splits cores here (host-tuning §0.5).
    ledger = ledger_of(make_facts(interleaved=True))
    assert ledger.housekeeping == parse_cpus("0,3,6,9")
    assert ledger.realtime == {4, 5}
    assert ledger.idle == {10, 11}


def test_without_guests_everything_but_housekeeping_is_shared() -> None:
    ledger = ledger_of(make_facts(), {})
    assert ledger.shared == parse_cpus("2-5,8-11")
    assert "no guest runs there yet" in ledger.why[-1]


def test_housekeeping_grows_with_the_node() -> None:
    ledger = ledger_of(make_facts(sockets=1, cores=96, threads=2), {})
    assert ledger.housekeeping == parse_cpus("0-5")  # 96 cores: three of them


def test_housekeeping_in_the_l3_domain_of_the_devices() -> None:
    facts = make_facts(sockets=2, cores=8, l3_cores=4, threads=1)
    # The network card and the disk of node 1 call its second L3 domain local.
    pci = tuple(
        one.model_copy(update={"local_cpus": parse_cpus("12-15")}) if one.node == 1 else one for one in facts.pci
    )
    ledger = ledger_of(facts.model_copy(update={"pci": pci}), {})
    assert ledger.housekeeping == {0, 12}
    assert "network and storage devices" in ledger.why[1]


def test_offline_cpus_have_no_owner() -> None:
    # CPU 9 is the sibling of 8: its core has one thread left.
    ledger = ledger_of(make_facts(offline=(2, 3, 9)))
    assert 2 not in ledger.housekeeping | ledger.shared
    assert 9 not in ledger.idle
    assert ledger.realtime == {8, 10}
    assert ledger.idle == {11}


def test_cpu_zero_offline() -> None:
    ledger = ledger_of(make_facts(offline=(0, 1)))
    assert ledger.housekeeping == parse_cpus("2-3,6-7")


def test_no_smt() -> None:
    ledger = ledger_of(make_facts(threads=1))
    assert ledger.housekeeping == {0, 3}
    assert ledger.realtime == {4, 5}
    assert not ledger.idle


def test_four_threads_a_core() -> None:
    ledger = ledger_of(make_facts(threads=4))
    assert ledger.realtime == {16, 20}
    assert ledger.idle == parse_cpus("17-19,21-23")


def test_no_numa_folder() -> None:
    facts = make_facts(numa=False)
    host = make_plan(make_site(), {"cell": facts}).hosts[0]
    assert host.ledger.housekeeping == {0, 1}
    assert host.guests[1].node is None
    assert "numatune" not in host.guests[1].xml
    boot = host.setting("H-HP-1:2M")
    assert boot is not None and boot.new == "192"


def test_memory_only_node_needs_no_housekeeping() -> None:
    facts = make_facts()
    expander = Node(id=2, cpus=frozenset(), memory_bytes=64 * GIB, distances={0: 30, 1: 20, 2: 10})
    assert ledger_of(facts.model_copy(update={"nodes": (*facts.nodes, expander)})) == ledger_of(facts)


def test_node_without_memory_carries_no_realtime_guest() -> None:
    facts = make_facts()
    nodes = (facts.nodes[0], facts.nodes[1].model_copy(update={"memory_bytes": 0}))
    assert ledger_of(facts.model_copy(update={"nodes": nodes})).realtime == {2, 4}


def test_buggy_firmware_with_two_equal_nodes() -> None:
    facts = make_facts()
    everyone = facts.online
    nodes = tuple(node.model_copy(update={"cpus": everyone}) for node in facts.nodes)
    ledger = ledger_of(facts.model_copy(update={"nodes": nodes}))
    assert ledger.housekeeping == {0, 1}
    assert check_ledger(ledger, facts.model_copy(update={"nodes": nodes})) == []


def test_contradicting_siblings_make_one_core() -> None:
    facts = make_facts()
    cpus = tuple(cpu.model_copy(update={"siblings": frozenset({1, 2})}) if cpu.id == 1 else cpu for cpu in facts.cpus)
    ledger = ledger_of(facts.model_copy(update={"cpus": cpus}))
    assert ledger.housekeeping >= {0, 1, 2, 3}


def test_hybrid_cores_keep_the_fast_ones_for_guests() -> None:
    facts = make_facts(sockets=1, cores=6, threads=1)
    slow = (0, 1, 2)
    cpus = tuple(
        cpu.model_copy(update={"kind": "efficiency" if cpu.id in slow else "performance", "capacity": None})
        for cpu in facts.cpus
    )
    ledger = ledger_of(facts.model_copy(update={"cpus": cpus}))
    assert ledger.housekeeping == {0}
    assert ledger.realtime == {3, 4}


def test_nothing_left_to_share() -> None:
    host = make_plan(make_site(), {"cell": make_facts(sockets=1, cores=3)}).hosts[0]
    assert host.ledger.shared == frozenset()
    assert "run on the housekeeping CPUs" in host.ledger.why[-1]
    assert host.guests[0].vcpus[0].cpus == {0, 1}


def test_wished_housekeeping_is_taken() -> None:
    ledger = ledger_of(make_facts(), housekeeping="0-1,10-11")
    assert ledger.housekeeping == parse_cpus("0-1,10-11")
    assert ledger.realtime == {6, 8}


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        ("0-1", "has no CPU on node 1"),
        ("2-3,6-7", "lacks CPU 0"),
        ("0,6-7", "splits the core 0-1"),
        ("0-1,6-7,40", "does not have online"),
    ],
)
def test_wrong_housekeeping(wish: str, says: str) -> None:
    with pytest.raises(WrongInput, match=says) as caught:
        ledger_of(make_facts(), housekeeping=wish)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"shared": "2-5,8"}, "CPU 8 is in"),
        ({"shared": "2-4"}, "has no owner"),
        ({"shared": "2-5,12"}, "CPU 12 is not online"),
        ({"housekeeping": "6-7", "shared": "0-5"}, "which the kernel boots on"),
        ({"housekeeping": "0-1", "shared": "2-7"}, "node 1 has no housekeeping"),
        ({"housekeeping": "0-2,6-7", "shared": "3-5"}, "splits the core 2-3"),
        ({"realtime": "8,10-11", "idle": "", "shared": "2-5,9"}, "splits the core 8-9"),
        ({"idle": "9,11,4-5", "shared": "2-3"}, "idle CPU 4 is no sibling"),
    ],
)
def test_broken_invariants_are_named(change: dict[str, str], says: str) -> None:
    facts = make_facts()
    good = ledger_of(facts)
    assert check_ledger(good, facts) == []
    broken = Ledger.model_validate(good.model_dump(mode="json") | change)
    assert any(says in sentence for sentence in check_ledger(broken, facts)), check_ledger(broken, facts)


@st.composite
def machines(draw: st.DrawFn) -> Facts:
    """Mostly machines with room for guests; now and then one that is nearly all offline, or without memory."""
    per_socket = draw(st.integers(1, 2))
    sockets, cores, threads = (
        draw(st.integers(1, 4)),
        draw(st.integers(per_socket, 16)),
        draw(st.sampled_from((1, 2, 4))),
    )
    total = sockets * cores * threads
    most = draw(st.sampled_from((0, 0, 3, total - 1)))
    return make_facts(
        sockets=sockets,
        nodes_per_socket=per_socket,
        cores=cores,
        threads=threads,
        interleaved=draw(st.booleans()),
        offline=draw(st.frozensets(st.integers(0, total - 1), max_size=most)),
        l3_cores=draw(st.sampled_from((None, 1, 2, 4))),
        node_bytes=draw(st.sampled_from((64 * GIB, 64 * GIB, 1536 * MIB, 0))),
        numa=draw(st.booleans()),
    )


guest_wishes = st.builds(
    lambda goal, vcpus, latency, memory: guest(goal, vcpus=vcpus, latency=latency, memory=memory * MIB),
    st.sampled_from(("flexible", "balanced", "performance", "realtime")),
    st.integers(1, 4),
    st.sampled_from((None, 30_000, 100_000, 1_000_000)),
    st.sampled_from((64, 256)),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(machines(), st.dictionaries(st.sampled_from("abcde"), guest_wishes, min_size=1, max_size=4))
def test_invariants_hold_on_any_machine(facts: Facts, guests: dict[str, GuestWish]) -> None:
    assume(facts.online)
    try:
        host = make_plan(make_site(guests), {"cell": facts}).hosts[0]
    except WrongInput as error:
        assert error.message
        return
    assert check_ledger(host.ledger, facts) == []
    topology = Topology(facts)
    carried: dict[int, str] = {}
    for one in host.guests:
        cpus = [cpu for vcpu in one.vcpus for cpu in vcpu.cpus]
        if one.goal in ("realtime", "performance"):
            assert len(cpus) == len(set(cpus)) == len(one.vcpus)
            assert set(cpus) <= host.ledger.realtime
            cores = {topology.core_of[cpu] for cpu in cpus}
            assert len({core.node for core in cores}) == 1
            for core in cores:
                assert carried.setdefault(core.first, one.name) == one.name, "two guests on one core"
            if one.goal == "realtime":
                assert len(cores) == len(cpus), "two real-time vCPUs on one core"
            assert one.emulator_cpus and one.emulator_cpus <= host.ledger.housekeeping
        else:
            assert set(cpus) <= host.ledger.shared | host.ledger.housekeeping
            assert not set(cpus) & host.ledger.isolated


@pytest.mark.skipif(not MACHINES.is_dir(), reason="the recorded machines are not here")
@pytest.mark.parametrize("name", sorted(path.name for path in MACHINES.glob("*.tar.*")))
def test_recorded_machines(name: str) -> None:
    from evenkeel.machines.tree import TreeMachine

    machine = TreeMachine(MACHINES / name)
    with machine.probe() as probe:
        facts = Facts.model_validate(probe.call("facts"))
    machine.close()
    topology = Topology(facts)
    empty = lay_out("cell", HostWish(address="local"), topology, {}, Problems())
    assert empty is not None
    assert check_ledger(empty.ledger, facts) == []
    # Old kernels and partial recordings tell no memory or huge pages: give them some, the CPUs are what is tested.
    pools = (HugePages(page_bytes=2 * MIB, total=0, free=0),)
    nodes = tuple(node.model_copy(update={"memory_bytes": 64 * GIB, "huge_pages": pools}) for node in facts.nodes)
    facts = facts.model_copy(update={"nodes": nodes, "huge_pages": pools, "memory_bytes": 512 * GIB})
    guests = {"rt": guest("realtime", vcpus=1), "fast": guest("performance", vcpus=1), "any": guest("flexible")}
    problems = Problems()
    full = lay_out("cell", HostWish(address="local"), Topology(facts), guests, problems)
    assert full is not None, problems.found
    assert check_ledger(full.ledger, facts) == []
    assert len(full.ledger.realtime) == 2
