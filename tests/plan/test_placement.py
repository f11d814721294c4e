"""Which guest runs where, and what is said when it does not fit."""

from __future__ import annotations

import pytest

from evenkeel.documents.cpuset import parse_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import GuestPlan
from evenkeel.documents.site import Boot, GuestWish, HostWish, Site
from evenkeel.errors import WrongInput
from evenkeel.plan import make_plan
from evenkeel.plan.placement import memory_reserve, priorities
from evenkeel.plan.problems import Misfit
from tests.plan.factories import GIB, MIB, RT_KERNEL, STANDARD_KERNEL, guest, make_facts, make_site


def place(facts: Facts | None = None, **guests: GuestWish) -> dict[str, GuestPlan]:
    plan = make_plan(make_site(guests), {"cell": facts or make_facts()})
    return {one.name: one for one in plan.hosts[0].guests}


def refuse(facts: Facts | None = None, **guests: GuestWish) -> Misfit:
    with pytest.raises(Misfit) as caught:
        place(facts, **guests)
    assert caught.value.hint, caught.value.message
    return caught.value


def cpus(plan: GuestPlan) -> list[int]:
    return [next(iter(vcpu.cpus)) for vcpu in plan.vcpus]


def test_near_a_network_card() -> None:
    plan = place(plc=guest(near="ens2"))["plc"]
    assert plan.node == 0
    assert cpus(plan) == [2, 4]
    assert "the node of ens2" in plan.why[0]


@pytest.mark.parametrize("near", ["0000:20:00.0", "20:00.0", "ens3"])
def test_near_takes_names_and_addresses(near: str) -> None:
    assert place(plc=guest(near=near))["plc"].node == 1


def test_near_without_a_known_node_is_no_tie() -> None:
    facts = make_facts()
    pci = tuple(one.model_copy(update={"node": None, "local_cpus": facts.online}) for one in facts.pci)
    nics = tuple(one.model_copy(update={"node": None}) for one in facts.nics)
    assert place(facts.model_copy(update={"pci": pci, "nics": nics}), plc=guest(near="ens2"))["plc"].node == 1


def test_unknown_near_suggests() -> None:
    error = refuse(plc=guest(near="ens22"))
    assert "no network interface or PCI function ens22" in error.message
    assert "did you mean ens2?" in str(error.hint)


def test_one_l3_domain_if_it_fits() -> None:
    facts = make_facts(sockets=1, cores=12, l3_cores=4, threads=1, node_bytes=16 * GIB)
    # Housekeeping takes one core of the first domain; three are left there, four in each other one.
    assert cpus(place(facts, a=guest(vcpus=3))["a"]) == [1, 2, 3]
    assert cpus(place(facts, a=guest(vcpus=4))["a"]) == [4, 5, 6, 7]
    spread = place(facts, a=guest(vcpus=5))["a"]
    assert "no single L3 domain" in spread.why[0]


def test_realtime_vcpus_and_the_guests_own_house() -> None:
    plan = place(plc=guest())["plc"]
    assert [(vcpu.policy, vcpu.priority) for vcpu in plan.vcpus] == [("other", 0), ("fifo", 2)]
    plan = place(plc=guest(realtime_vcpus="0-1"))["plc"]
    assert [vcpu.policy for vcpu in plan.vcpus] == ["fifo", "fifo"]
    plan = place(plc=guest(vcpus=1))["plc"]
    assert [vcpu.policy for vcpu in plan.vcpus] == ["fifo"]
    assert any("its only vCPU" in sentence for sentence in plan.why)


def test_performance_uses_both_threads() -> None:
    facts = make_facts(cores=4, interleaved=True)
    host = make_plan(make_site({"db": guest("performance", vcpus=4)}), {"cell": facts}).hosts[0]
    assert cpus(host.guests[0]) == [5, 13, 6, 14]
    assert all(vcpu.policy == "other" for vcpu in host.guests[0].vcpus)
    assert 'cores="2" threads="2"' in host.guests[0].xml
    assert not host.ledger.idle


def test_performance_with_an_odd_count_leaves_one_thread_empty() -> None:
    host = make_plan(make_site({"db": guest("performance", vcpus=3)}), {"cell": make_facts(cores=4)}).hosts[0]
    assert host.ledger.realtime == {10, 11, 12}
    assert host.ledger.idle == {13}
    assert 'cores="3" threads="1"' in host.guests[0].xml


def test_balanced_floats_over_one_node() -> None:
    plans = place(plc=guest(), gui=guest("balanced"))
    assert plans["gui"].node == 0
    assert plans["gui"].vcpus[0].cpus == parse_cpus("2-5")
    assert plans["gui"].emulator_cpus == {0, 1}
    assert plans["gui"].pages == 192


def test_balanced_on_a_node_without_shared_cpus() -> None:
    plan = place(plc=guest(), gui=guest("balanced", near="ens3"))["gui"]
    assert plan.vcpus[0].cpus == {6, 7}
    assert "no shared CPU is left" in plan.why[0]


def test_explicit_cpus_are_taken() -> None:
    plan = place(plc=guest(cpus="3,5"))["plc"]
    assert cpus(plan) == [3, 5]
    assert "its owner names them" in plan.why[0]
    assert place(plc=guest(cpus="2-5"))["plc"].vcpus[1].cpus == {4}


def test_explicit_cpus_far_from_near() -> None:
    plan = place(plc=guest(cpus="2,4", near="ens3"))["plc"]
    assert any("on node 0" in sentence and "node 1" in sentence for sentence in plan.why)


def test_explicit_floating_cpus_are_left_alone() -> None:
    plans = place(plc=guest(near="ens3"), gui=guest("flexible", cpus="2-3"))
    assert plans["gui"].vcpus[0].cpus == {2, 3}
    error = refuse(plc=guest(near="ens3"), gui=guest("flexible", cpus="8-9"))
    assert "1 free" in error.message


@pytest.mark.parametrize(
    ("wish", "says"),
    [
        (guest(cpus="0,2"), "which the kernel never isolates"),
        (guest(cpus="2,8"), "lie on nodes 0-1"),
        (guest(cpus="2-3"), "needs? 2 whole cores"),
        (guest(cpus="2-5,6-7", vcpus=1), "lie on nodes"),
        (guest(cpus="2-5", vcpus=1), "uses? 1 of them"),
        (guest(cpus="2,40"), "does not have online"),
        (guest(cpus=""), "cpus is empty"),
    ],
)
def test_wrong_cpus(wish: GuestWish, says: str) -> None:
    with pytest.raises(Misfit, match=says):
        place(plc=wish)


def test_two_guests_on_the_same_core() -> None:
    error = refuse(a=guest(cpus="2,4"), b=guest(cpus="5,8"))
    messages = [error.message, *(other.message for other in error.others)]
    assert any("guests a and b both want" in message and "4-5" in message for message in messages)
    assert "guests a and b" in refuse(a=guest(cpus="8,10"), b=guest("flexible", cpus="11")).message


def test_guest_larger_than_the_host() -> None:
    error = refuse(plc=guest(vcpus=7))
    assert "needs 7 whole cores" in error.message
    assert "node 0 has 2 free (CPUs 2-5)" in error.message
    assert "node 1 has 2 free (CPUs 8-11)" in error.message
    assert "13 vCPUs, but the host has 12" in refuse(gui=guest("flexible", vcpus=13)).message


def test_guest_larger_than_the_memory_of_a_node() -> None:
    error = refuse(plc=guest(memory=1400 * MIB))
    assert "1400MiB" in error.message
    assert "1152MiB for huge pages" in error.message  # 1536 MiB less a quarter
    assert "on ordinary pages" in refuse(gui=guest("flexible", memory=4 * GIB)).message
    assert "on ordinary pages" in refuse(plc=guest(), gui=guest("flexible", memory=2 * GIB)).message


def test_huge_page_sizes() -> None:
    big = make_facts(node_bytes=64 * GIB)
    assert place(big, plc=guest(memory=4 * GIB))["plc"].page_bytes == GIB
    assert place(big, plc=guest(memory=4 * GIB, page_size=2 * MIB))["plc"].pages == 2048
    assert place(big, plc=guest("balanced", memory=4 * GIB))["plc"].page_bytes == 2 * MIB
    assert "no huge pages of 64KiB" in refuse(big, plc=guest(page_size=64 << 10)).message
    error = refuse(big, plc=guest(memory=4 * GIB + 3 * MIB, page_size=GIB))
    assert error.hint == "write 5GiB"
    assert "ordinary pages" in refuse(big, plc=guest("flexible", page_size=GIB)).message
    assert "offers none" in refuse(make_facts(huge_pages=(), nodes=()), plc=guest()).message


def test_priorities_follow_urgency() -> None:
    guests = {f"g{us}": guest(latency=us * 1000) for us in (30, 100, 500)} | {
        "none": guest(),
        "flex": guest("flexible"),
    }
    assert priorities(guests) == {"none": 2, "g500": 3, "g100": 4, "g30": 5}
    many = {f"g{us}": guest(latency=us * 1000) for us in range(1, 20)}
    assert set(priorities(many).values()) == set(range(2, 10))
    assert priorities(many)["g1"] == 9


def test_the_most_urgent_guest_chooses_first() -> None:
    plans = place(slow=guest(latency=1_000_000), fast=guest(latency=50_000, near=None))
    assert plans["fast"].node == 1
    assert plans["slow"].node == 0
    assert plans["fast"].vcpus[1].priority > plans["slow"].vcpus[1].priority


def test_memory_reserve() -> None:
    assert memory_reserve(1536 * MIB) == 384 * MIB  # a quarter of a small node
    assert memory_reserve(32 * GIB) == 4 * GIB
    assert memory_reserve(512 * GIB) == 512 * GIB * 8 // 100


# -- hosts ------------------------------------------------------------------------------------------------------------


def test_realtime_without_a_realtime_kernel() -> None:
    error = refuse(make_facts(kernel=STANDARD_KERNEL, preempt_rt=False), plc=guest())
    assert f"the kernel {STANDARD_KERNEL} is not PREEMPT_RT" in error.message
    assert f"{RT_KERNEL} is installed" in str(error.hint)
    assert "GRUB" in str(error.hint)
    facts = make_facts(kernel=STANDARD_KERNEL, preempt_rt=False)
    none = facts.model_copy(update={"kernel": facts.kernel.model_copy(update={"installed": (STANDARD_KERNEL,)})})
    assert "linux-image-rt-amd64" in str(refuse(none, plc=guest()).hint)
    assert place(facts, db=guest("performance"))


def test_host_without_virtualisation() -> None:
    error = refuse(make_facts(programs={"python": "3.11"}), plc=guest())
    assert "libvirt and qemu are not installed" in error.message
    assert "KVM cannot be used" in refuse(make_facts(kvm_usable=False), plc=guest()).message
    assert make_plan(make_site({}), {"cell": make_facts(programs={}, kvm_usable=False)}).hosts[0].guests == ()


def test_wrong_architecture() -> None:
    assert "architecture is aarch64, host cell is x86_64" in refuse(plc=guest(architecture="aarch64")).message


def test_contradictions_in_a_guest() -> None:
    idle = Boot(kernel="/k", arguments="console=ttyS0 idle=poll")
    assert "never goes idle" in refuse(plc=guest(boot=idle)).message
    assert place(plc=guest(boot=idle, trust="spins"))
    assert "realtime_vcpus names vCPU 2" in refuse(plc=guest(realtime_vcpus="1-2")).message
    assert "means nothing" in refuse(plc=guest("flexible", realtime_vcpus="1")).message
    assert "nothing to start from" in refuse(plc=guest(boot=None)).message


def test_all_problems_at_once() -> None:
    error = refuse(
        make_facts(kernel=STANDARD_KERNEL, preempt_rt=False, programs={}),
        a=guest(near="eth9"),
        b=guest(architecture="ppc64le"),
    )
    told = [error.message, *(other.message for other in error.others)]
    assert len(told) == 4
    for part in ("not installed", "not PREEMPT_RT", "eth9", "ppc64le"):
        assert any(part in message for message in told), part


def test_hosts_and_facts_must_belong_together() -> None:
    site = make_site()
    with pytest.raises(Misfit, match="there are no facts of it"):
        make_plan(site, {})
    with pytest.raises(Misfit, match="the site does not have it"):
        make_plan(site, {"cell": make_facts(), "cel": make_facts()})
    with pytest.raises(Misfit, match="its host edge is not in the site"):
        make_plan(make_site({"plc": guest(host="edge")}), {"cell": make_facts()})
    two = Site(
        hosts={"a": HostWish(address="local"), "b": HostWish(address="ssh://b")},
        guests={"plc": guest(host="b"), "x": guest()},
    )
    with pytest.raises(WrongInput, match="names no host"):
        make_plan(two, {"a": make_facts(), "b": make_facts()})
