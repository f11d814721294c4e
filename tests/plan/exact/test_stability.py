"""Planning again moves nothing that need not move: who sits on a CPU stays there, or the plan says why not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Definition, Facts
from evenkeel.documents.plan import GuestPlan, HostPlan, Plan
from evenkeel.documents.site import GuestWish
from evenkeel.errors import WrongInput
from evenkeel.plan import make_plan
from tests.plan.exact.invariants import PINNED, violations
from tests.plan.exact.wishes import most_that_fit, plan_or_refusal, sites, small, wishes
from tests.plan.factories import GIB, MIB, guest, make_site
from tests.plan.topologies import NAMED, Machine, build, machines

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much]


def again(
    machine: Machine | Facts, guests: dict[str, GuestWish], keep: HostPlan | None, **host: Any
) -> tuple[HostPlan | None, WrongInput | None]:
    facts = machine.facts() if isinstance(machine, Machine) else machine
    before = Plan(site_sha256="", hosts=(keep,)) if keep else None
    try:
        return make_plan(make_site(guests, **host), {"cell": facts}, before).hosts[0], None
    except WrongInput as error:
        return None, error


def seats(plan: HostPlan) -> dict[str, tuple[object, ...]]:
    """What a guest must not lose: its CPUs and priority, or the node of its memory."""
    return {
        one.name: (*one.nodes, *((vcpu.cpus, vcpu.priority) for vcpu in one.vcpus if one.goal in PINNED))
        for one in plan.guests
        if one.goal != "flexible"
    }


def moved(before: HostPlan, after: HostPlan) -> set[str]:
    """Guests with CPUs of their own, or with memory on a node, that have others now.  More or fewer is no move."""
    old = {one.name: one for one in before.guests}
    found = set()
    for one in after.guests:
        was = old.get(one.name)
        if was is None or "flexible" in (one.goal, was.goal):
            continue
        if one.goal in PINNED and was.goal in PINNED:
            mine = {cpu for vcpu in one.vcpus for cpu in vcpu.cpus}
            kept = kept_at_most(was, one)
            if not kept <= mine:
                found.add(one.name)
        elif one.goal == was.goal == "balanced" and one.node != was.node:
            found.add(one.name)
    return found


def kept_at_most(was: GuestPlan, now: GuestPlan) -> set[int]:
    """CPUs of the vCPUs that are still wanted: the first ones, of each cell where the cells are as many as before."""
    if len(was.cells) != len(now.cells) or not was.cells:
        return {cpu for vcpu in was.vcpus[: len(now.vcpus)] for cpu in vcpu.cpus}
    return {
        cpu
        for before, after in zip(was.cells, now.cells, strict=True)
        for index in sorted(before.vcpus)[: len(after.vcpus)]
        for cpu in was.vcpus[index].cpus
    }


def told(plan: HostPlan) -> set[str]:
    """Guests that the notes say are moved."""
    return {note.text.split()[1] for note in plan.notes if " moves from " in note.text}


def nailed(guests: dict[str, GuestWish], plan: HostPlan) -> dict[str, GuestWish]:
    """The same guests, each with the CPUs that it has, as if its owner had named them."""
    cpus = {one.name: {cpu for vcpu in one.vcpus for cpu in vcpu.cpus} for one in plan.guests if one.goal in PINNED}
    return {
        name: wish.model_copy(update={"cpus": frozenset(cpus[name])}) if name in cpus else wish
        for name, wish in guests.items()
    }


def check_addition(machine: Machine, guests: dict[str, GuestWish], more: GuestWish) -> str:
    """One guest more: nobody moves but where nothing else is possible, and then the plan says it."""
    guests, before = most_that_fit(machine, guests)
    if before is None:
        return "no plan"
    after, error = again(machine, guests | {"new": more}, before)
    if after is None:
        assert error is not None
        fresh, _ = plan_or_refusal(machine, guests | {"new": more})
        assert fresh is None, "what fits afresh must fit again"
        return "refused"
    assert violations(machine, guests | {"new": more}, after) == []
    assert moved(before, after) == told(after)
    if moved(before, after):
        fixed = nailed(guests, before) | {"new": more}
        stays, _ = plan_or_refusal(machine, fixed, housekeeping=before.ledger.housekeeping)
        assert stays is None or moved(before, stays), f"{moved(before, after)} need not move"
        return "moved"
    return "stayed"


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(machines(), st.data())
def test_a_guest_more(machine: Machine, data: st.DataObject) -> None:
    if machine.online:
        check_addition(machine, data.draw(sites(machine)), data.draw(wishes(machine)))


@pytest.mark.long
@settings(max_examples=600, deadline=None, suppress_health_check=SLOW)
@given(machines(big=True), st.data())
def test_a_guest_more_on_many_machines(machine: Machine, data: st.DataObject) -> None:
    if machine.online:
        check_addition(machine, data.draw(sites(machine)), data.draw(wishes(machine)))


def check_change(machine: Machine, data: st.DataObject) -> None:
    """A guest removed, another one changed, or none at all: the rest stays."""
    if not machine.online:
        return
    guests, before = most_that_fit(machine, data.draw(sites(machine)))
    if before is None or not guests:
        return
    same, _ = again(machine, guests, before)
    assert same is not None and seats(same) == seats(before) and same.ledger.housekeeping == before.ledger.housekeeping
    assert told(same) == set()
    name = data.draw(st.sampled_from(sorted(guests)))
    less, _ = again(machine, {other: wish for other, wish in guests.items() if other != name}, before)
    assert less is not None and told(less) == set()
    assert seats(less) == {other: seat for other, seat in seats(before).items() if other != name}
    changed = guests | {name: data.draw(wishes(machine))}
    after, _ = again(machine, changed, before)
    if after is not None:
        assert violations(machine, changed, after) == []
        assert moved(before, after) - {name} == told(after) - {name}
        if moved(before, after) - {name}:
            fixed = nailed(guests, before) | {name: changed[name]}
            stays, _ = plan_or_refusal(machine, fixed, housekeeping=before.ledger.housekeeping)
            assert stays is None or moved(before, stays), f"{moved(before, after)} need not move"


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(machines(), st.data())
def test_a_guest_less_or_another_one(machine: Machine, data: st.DataObject) -> None:
    check_change(machine, data)


@pytest.mark.long
@settings(max_examples=600, deadline=None, suppress_health_check=SLOW)
@given(machines(big=True), st.data())
def test_a_guest_less_or_another_one_on_many_machines(machine: Machine, data: st.DataObject) -> None:
    check_change(machine, data)


# -- one by one -------------------------------------------------------------------------------------------------------

TWO_NODES = build(sockets=2, cores=6)  # five cores of each node are for guests


def placed(machine: Machine, guests: dict[str, GuestWish], keep: HostPlan | None = None, **host: Any) -> HostPlan:
    plan, error = again(machine, guests, keep, **host)
    assert plan is not None, error
    return plan


def cpus(plan: HostPlan, name: str) -> str:
    (one,) = (one for one in plan.guests if one.name == name)
    return format_cpus(cpu for vcpu in one.vcpus for cpu in vcpu.cpus)


def test_a_more_urgent_guest_does_not_push_another_one_aside() -> None:
    before = placed(TWO_NODES, {"slow": guest()})
    both = {"slow": guest(), "fast": guest(latency=50_000)}
    assert cpus(placed(TWO_NODES, both), "slow") != cpus(before, "slow"), "else this test proves nothing"
    after = placed(TWO_NODES, both, before)
    assert cpus(after, "slow") == cpus(before, "slow")
    assert told(after) == set()
    assert "it is there already" in after.guests[1].why[0]


def test_a_guest_moves_when_another_one_has_no_room_otherwise() -> None:
    guests = {"a": guest(), "b": guest()}
    before = placed(TWO_NODES, guests)
    assert {one.node for one in before.guests} == {0, 1}
    after = placed(TWO_NODES, guests | {"wide": guest(vcpus=5)}, before)
    assert len(moved(before, after)) == 1
    (note,) = (note for note in after.notes if " moves from " in note.text)
    (name,) = moved(before, after)
    assert note.text == (
        f"guest {name} moves from CPUs {cpus(before, name)} (node {1 if name == 'a' else 0}) to CPUs "
        f"{cpus(after, name)} (node {0 if name == 'a' else 1}): there is no room for guest wide otherwise."
    )
    assert note.rule == "G-1"


def test_a_guest_that_grows_keeps_what_it_has() -> None:
    before = placed(TWO_NODES, {"a": guest(), "b": guest(), "c": guest()})
    after = placed(TWO_NODES, {"a": guest(vcpus=3), "b": guest(), "c": guest()}, before)
    assert moved(before, after) == told(after) == set()
    assert set(seats(after)["a"]) > set(seats(before)["a"])
    less = placed(TWO_NODES, {"a": guest(vcpus=1), "b": guest(), "c": guest()}, after)
    assert less.guests[0].vcpus[0].cpus == before.guests[0].vcpus[0].cpus


def test_from_a_core_each_to_both_threads_is_no_move() -> None:
    before = placed(TWO_NODES, {"a": guest(vcpus=4)})
    after = placed(TWO_NODES, {"a": guest("performance", vcpus=4)}, before)
    assert after.guests[0].node == before.guests[0].node
    assert told(after) == set()
    assert after.ledger.isolated < before.ledger.isolated


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"cpus": "1,2"}, "its owner names its CPUs now"),
        ({"near": "ens2"}, "it is to be near ens2, which is on node 0"),
        ({"memory": 60 * GIB, "vcpus": 5}, ""),
    ],
)
def test_a_guest_that_must_move_says_why(change: dict[str, Any], why: str) -> None:
    before = placed(TWO_NODES, {"a": guest()})
    assert before.guests[0].node == 1
    after, _ = again(TWO_NODES, {"a": guest(**change)}, before)
    texts = [note.text for note in after.notes if " moves from " in note.text] if after else []
    assert [text.endswith(f"{why}.") for text in texts] == ([True] if why else [])


def test_a_cpu_that_went_offline_or_to_another_owner() -> None:
    before = placed(TWO_NODES, {"a": guest()})
    first = min(cpu for vcpu in before.guests[0].vcpus for cpu in vcpu.cpus)
    gone = replace(
        TWO_NODES,
        threads=tuple(replace(t, online=t.cpu not in TWO_NODES.core_of(first)) for t in TWO_NODES.threads),
    )
    after = placed(gone, {"a": guest()}, before)
    assert f"CPU {first} is not online" in next(note.text for note in after.notes if "moves" in note.text)
    taken = {"a": guest(), "b": guest("performance", cpus=TWO_NODES.core_of(first))}
    after = placed(TWO_NODES, taken, before)
    assert "the owner of guest b gives it the core" in next(note.text for note in after.notes if "moves" in note.text)
    core = TWO_NODES.core_of(first) | TWO_NODES.core_of(0)
    after = placed(TWO_NODES, {"a": guest()}, before, housekeeping=format_cpus(core))
    assert f"CPU {first} is housekeeping" in next(note.text for note in after.notes if "moves" in note.text)


def test_housekeeping_stays_when_a_device_appears() -> None:
    machine = build(sockets=2, cores=8, l3_per_node=2)
    before = placed(machine, {"a": guest()})
    home = before.ledger.housekeeping & machine.node_cpus()[1]
    other = next(cpus for cpus in machine.l3().values() if cpus <= machine.node_cpus()[1] and not home <= cpus)
    facts = machine.facts()
    card = facts.pci[0].model_copy(update={"address": "0000:f0:00.0", "node": 1, "local_cpus": other})
    facts = facts.model_copy(update={"pci": (*facts.pci, card)})
    fresh, _ = again(facts, {"a": guest()}, None)
    assert fresh is not None and fresh.ledger.housekeeping != before.ledger.housekeeping, "else this proves nothing"
    after, _ = again(facts, {"a": guest()}, before)
    assert after is not None and after.ledger.housekeeping == before.ledger.housekeeping
    assert "as it is now" in " ".join(after.ledger.why)


def test_a_priority_stays_and_no_less_urgent_guest_outranks_another() -> None:
    before = placed(TWO_NODES, {"a": guest(latency=100_000)})
    assert before.guests[0].vcpus[1].priority == 2
    both = {"a": guest(latency=100_000), "b": guest(latency=1_000_000)}
    assert placed(TWO_NODES, both).guests[0].vcpus[1].priority == 3, "else this test proves nothing"
    after = placed(TWO_NODES, both, before)
    assert [one.vcpus[1].priority for one in after.guests] == [2, 2]
    third = placed(TWO_NODES, both | {"c": guest(latency=30_000)}, after)
    assert [one.vcpus[1].priority for one in third.guests] == [2, 2, 4]
    # Whose deadlines changed so that their order is another one begin anew.
    turned = {"a": guest(latency=100_000), "b": guest(latency=40_000), "c": guest(latency=500_000)}
    assert [one.vcpus[1].priority for one in placed(TWO_NODES, turned, third).guests] == [3, 4, 2]


def test_a_balanced_guest_keeps_its_node() -> None:
    before = placed(TWO_NODES, {"gui": guest("balanced")})
    assert before.guests[0].node == 0
    more = {"gui": guest("balanced"), **small(3, near="ens2")}
    assert placed(TWO_NODES, more).guests[-1].node == 1, "else this test proves nothing"
    after = placed(TWO_NODES, more, before)
    assert after.guests[-1].node == 0 and told(after) == set()


def test_a_balanced_guest_on_cpus_of_two_nodes_keeps_the_node_of_its_memory() -> None:
    machine = build(sockets=2, cores=6, memory=(64 * GIB, 32 * GIB))
    gui = {"gui": guest("balanced", cpus="1,7")}
    before = placed(machine, gui)
    assert before.guests[0].node == 0
    more = gui | small(4, near="ens2")
    assert placed(machine, more).guests[-1].node == 1, "else this test proves nothing"
    after = placed(machine, more, before)
    assert after.guests[-1].node == 0 and told(after) == set()


# -- what the facts found on the host ---------------------------------------------------------------------------------


def defined(machine: Machine, plan: HostPlan, running: bool = True) -> Facts:
    """The machine once libvirt has these definitions."""
    return machine.facts(
        definitions=tuple(
            Definition(guest=one.name, path=f"/run/libvirt/qemu/{one.name}.xml", running=running, xml=one.xml)
            for one in plan.guests
        )
    )


@settings(max_examples=25, deadline=None, suppress_health_check=SLOW)
@given(machines(), st.data())
def test_definitions_on_the_host_are_seats_too(machine: Machine, data: st.DataObject) -> None:
    if not machine.online:
        return
    guests, before = most_that_fit(machine, data.draw(sites(machine)))
    if before is None:
        return
    facts = defined(machine, before)
    after, error = again(facts, guests | {"new": data.draw(wishes(machine))}, None)
    if after is not None:
        assert moved(before, after) == told(after)
    same, error = again(facts, guests, None)
    assert same is not None, error
    assert seats(same) == seats(before)


def test_an_urgent_guest_more_beside_a_running_one() -> None:
    before = placed(TWO_NODES, {"slow": guest()})
    both = {"slow": guest(), "fast": guest(latency=50_000)}
    after, _ = again(defined(TWO_NODES, before), both, None)
    assert after is not None and cpus(after, "slow") == cpus(before, "slow")


def test_what_outlives_the_run_counts_more_than_a_live_change() -> None:
    guests = {"a": guest()}
    here, there = placed(TWO_NODES, {"a": guest(near="ens2")}), placed(TWO_NODES, guests)
    assert cpus(here, "a") != cpus(there, "a")
    for running, lasting in ((here, there), (there, here)):
        definitions = tuple(
            Definition(guest="a", path=f"/{plan is running}", running=plan is running, xml=plan.guests[0].xml)
            for plan in (running, lasting)
        )
        after, _ = again(TWO_NODES.facts(definitions=definitions), guests, None)
        assert after is not None and cpus(after, "a") == cpus(lasting, "a")
        alone, _ = again(TWO_NODES.facts(definitions=definitions[:1]), guests, None)
        assert alone is not None and cpus(alone, "a") == cpus(running, "a")


@pytest.mark.parametrize(
    "xml",
    [
        "",
        "<domain",
        "<domain/>",
        "<domain><cputune><vcpupin vcpu='x' cpuset='1'/></cputune></domain>",
        "<domain><cputune><vcpupin vcpu='0' cpuset='1-'/></cputune></domain>",
        "<domain><cputune><vcpupin vcpu='0' cpuset='0-23'/></cputune></domain>",
        "<domain><cputune><vcpupin vcpu='0' cpuset='0'/><vcpupin vcpu='1' cpuset='99'/></cputune></domain>",
        "<domain><cputune><vcpusched vcpus='0' scheduler='fifo' priority='high'/></cputune></domain>",
        "<domain><numatune><memory nodeset='7'/></numatune></domain>",
        "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;'>]><domain>&b;</domain>",
    ],
)
def test_a_definition_that_says_nothing_changes_nothing(xml: str) -> None:
    guests = {"a": guest(), "b": guest("balanced")}
    definitions = tuple(Definition(guest=name, path=f"/{name}", running=True, xml=xml) for name in guests)
    after, error = again(TWO_NODES.facts(definitions=definitions), guests, None)
    assert after is not None, error
    assert seats(after) == seats(placed(TWO_NODES, guests))


def test_a_definition_that_shares_cores_is_not_kept() -> None:
    xml = placed(TWO_NODES, {"a": guest(memory=64 * MIB)}).guests[0].xml
    # Two guests defined by hand on the very same CPUs: the first keeps them.
    definitions = tuple(Definition(guest=name, path=f"/{name}", running=True, xml=xml) for name in ("a", "b"))
    guests = small(0) | {"a": guest(memory=64 * MIB), "b": guest(memory=64 * MIB)}
    after, _ = again(TWO_NODES.facts(definitions=definitions), guests, None)
    assert after is not None and violations(TWO_NODES, guests, after) == []
    assert cpus(after, "a") in xml or cpus(after, "a") != cpus(after, "b")
    assert told(after) == {"b"}


def test_1024_cpus_and_many_guests_keep_their_seats() -> None:
    machine = NAMED["1024 CPUs"]
    guests = {f"g{n:03}": guest(memory=64 * MIB) for n in range(200)}
    before = placed(machine, guests)
    after = placed(machine, guests | {"new": guest(memory=64 * MIB, latency=30_000)}, before)
    assert moved(before, after) == set()
