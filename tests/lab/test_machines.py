"""Machines: registered by facts, known again by them, their history, their states, and who may change them."""

from __future__ import annotations

from itertools import product

import pytest

from evenkeel.errors import WrongInput
from evenkeel.lab import flat, machines
from evenkeel.lab.actor import Conflict, Forbidden, NotFound, Stale, with_roles
from evenkeel.lab.identity import Identity, compare
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Edit, Policy, Registration
from evenkeel.lab.predicate import Predicate
from tests.lab.pool import ANN, BOB, GIB, ROOT, add, facts, inventory

MAC, OTHER = "00:1b:21:00:00:01", "00:1b:21:00:00:02"


# -- which machine is it ------------------------------------------------------------------------------------------

HOST = Identity(uuid="u", system="s", board="b", macs=(MAC,))


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (HOST, "same"),
        (Identity(uuid="u", system="s", board="b", macs=(OTHER,)), "same"),  # another card
        (Identity(uuid="u", system="s", board="b"), "same"),
        (Identity(macs=(MAC,)), "same"),  # read without root
        (Identity(macs=(MAC, OTHER)), "same"),
        (Identity(uuid="u2", system="s", board="b2", macs=(OTHER,)), "doubt"),  # the board was swapped
        (Identity(uuid="u2", system="s2", board="b2", macs=(MAC,)), "doubt"),  # the card moved
        (Identity(uuid="u2", system="s2", board="b2", macs=(OTHER,)), "other"),
        (Identity(), "other"),
    ],
)
def test_likeness(found: Identity, verdict: str) -> None:
    assert compare(HOST, found).verdict == verdict


def test_doubt_says_what_agrees_and_what_does_not() -> None:
    found = compare(HOST, Identity(uuid="u2", system="s", board="b2", macs=(MAC,)))
    assert found.why == (
        "the serial number of the system and MAC 00:1b:21:00:00:01 are the same, "
        "but the serial number of the board and the UUID of the system are another"
    )


def test_placeholders_of_vendors_and_macs_of_virtual_machines_identify_nothing() -> None:
    from evenkeel.lab.identity import identity_of

    found = identity_of(facts(macs=("52:54:00:12:34:56",)), inventory("To be filled by O.E.M.", board="0000000"))
    assert found.empty
    assert identity_of(facts(macs=(MAC.upper(),)), inventory("S1")).macs == (MAC,)


# -- registering --------------------------------------------------------------------------------------------------


def test_a_machine_is_known_again_whatever_it_is_called_and_wherever_it_stands(lab: Lab) -> None:
    first = machines.register(lab, ROOT, Registration(facts=facts("host1"), inventory=inventory(), site="prg"))
    assert (first.was, first.machine.name, first.machine.owner) == ("new", "host1", "root")
    moved = Registration(name="host9", facts=facts("host9"), inventory=inventory(), site="nue")
    again = machines.register(lab, ROOT, moved)
    assert (again.was, again.known_as, again.machine.id) == ("known", "host1", first.machine.id)
    assert (again.machine.name, again.machine.site) == ("host9", "nue")
    told = [(entry.type, entry.data) for entry in machines.history(lab, ROOT, "host9").items]
    assert (
        "machine.edited",
        {"name": "host9", "fields": {"name": {"old": "host1", "new": "host9"}, "site": {"old": "prg", "new": "nue"}}},
    ) in told


def test_without_a_name_it_keeps_the_one_it_has(lab: Lab) -> None:
    machines.register(lab, ROOT, Registration(name="rack7", facts=facts("host1"), inventory=inventory()))
    again = machines.register(lab, ROOT, Registration(facts=facts("renumbered"), inventory=inventory()))
    assert again.machine.name == "rack7"


def test_a_swapped_board_is_asked_about(lab: Lab) -> None:
    add(lab, "host1", 1)
    swapped = Registration(facts=facts(macs=(OTHER,)), inventory=inventory("S1", board="B2"))
    with pytest.raises(Conflict, match="this may be host1: the serial number of the system is the same, but") as raised:
        machines.register(lab, ROOT, swapped)
    assert "same_as host1" in (raised.value.hint or "")
    with pytest.raises(Conflict, match="these are not the facts of host1"):
        machines.update_facts(lab, ROOT, "host1", facts(macs=(OTHER,)), inventory("S1", board="B2"))
    known = machines.register(lab, ROOT, swapped.model_copy(update={"same_as": "host1"}))
    assert known.was == "known" and known.machine.identity.board == "b2"
    other = machines.register(lab, ROOT, swapped.model_copy(update={"new": True, "name": "host2"}))
    assert other.was == "new" and other.machine.id != known.machine.id


def test_facts_of_another_machine_are_refused(lab: Lab) -> None:
    add(lab, "host1", 1)
    with pytest.raises(Conflict, match="no serial number and no MAC is the same"):
        machines.update_facts(lab, ROOT, "host1", facts(macs=(OTHER,)), inventory("S7", board="B7"))


def test_a_name_is_used_once(lab: Lab) -> None:
    add(lab, "host1", 1)
    with pytest.raises(Conflict, match="already a machine host1"):
        add(lab, "host1", 2)
    add(lab, "host2", 2)
    with pytest.raises(Conflict, match="already a machine host1"):
        machines.edit(lab, ROOT, "host2", Edit(name="HOST1"))


def test_a_machine_without_facts_needs_a_name(lab: Lab) -> None:
    with pytest.raises(WrongInput, match="needs facts or a name") as found:
        machines.register(lab, ROOT, Registration())
    assert "--name" in (found.value.hint or "")
    chassis = machines.register(lab, ROOT, Registration(name="chassis1"))
    blade = machines.register(lab, ROOT, Registration(name="blade1", enclosure="chassis1"))
    assert blade.machine.enclosure == "chassis1" and chassis.machine.told == {}
    assert machines.get(lab, ROOT, "chassis1").contains == ("blade1",)
    with pytest.raises(WrongInput, match="cannot be the name"):
        machines.edit(lab, ROOT, "blade1", Edit(name="search"))
    with pytest.raises(WrongInput, match="chassis1 cannot stand in blade1"):
        machines.edit(lab, ROOT, "chassis1", Edit(enclosure="blade1"))
    machines.edit(lab, ROOT, "chassis1", Edit(name="chassis2"))
    assert machines.facts_of(lab, ROOT, "blade1")["enclosure"] == ("chassis2",)


def test_changed_facts_are_kept_with_what_changed(lab: Lab) -> None:
    add(lab, "host1", 1)
    mac = machines.get(lab, ROOT, "host1").identity.macs
    same = facts(macs=mac)
    assert machines.update_facts(lab, ROOT, "host1", same, inventory("S1")) == ()
    changes = machines.update_facts(
        lab, ROOT, "host1", facts(macs=mac, mem=32 * GIB, release="6.12.3-rt"), inventory("S1")
    )
    assert {change.key: (change.gone, change.come) for change in changes} == {
        "kernel.rt": (("no",), ("yes",)),
        "kernel.version": (("6.12.3",), ("6.12.3-rt",)),
        "mem": ((64 * GIB,), (32 * GIB,)),
        "mem.usable": ((64 * GIB,), (32 * GIB,)),
    }
    entry = machines.history(lab, ROOT, "host1").items[0]
    assert entry.type == "machine.facts" and len(entry.data["changes"]) == 4
    assert machines.latest(lab, ROOT, "host1").facts.memory_bytes == 32 * GIB


def test_flat_facts_in_the_database_are_those_of_the_document(lab: Lab) -> None:
    add(lab, "host1", 1, policy=Policy(tags=("Fast",), labels={"rack": "7"}), team="kernel")
    told = machines.facts_of(lab, ROOT, "host1")
    snapshot = machines.latest(lab, ROOT, "host1")
    expected = flat.flatten(snapshot.facts, snapshot.inventory)
    assert {key: told[key] for key in expected} == expected
    assert told["tag"] == ("fast",) and told["label.rack"] == ("7",)
    assert all(flat.key(key) for key in told)
    with lab.store.read() as connection:
        (in_memory,) = machines.flat_of(connection).values()
    assert Predicate.parse("host1 tag:fast label.rack>=7 team:kernel mem:64GiB cpu.flag:avx512f").matches(in_memory)


# -- changing -----------------------------------------------------------------------------------------------------


def test_only_owner_team_and_who_looks_after_machines_change_one(lab: Lab) -> None:
    add(lab, "host1", owner="ann", team="kernel")
    machines.edit(lab, ANN, "host1", Edit(note="mine"))
    machines.edit(lab, with_roles("dan", ["user"], ["kernel"]), "host1", Edit(note="ours"))
    machines.edit(lab, with_roles("mia", ["maintainer"]), "host1", Edit(note="all mine"))
    with pytest.raises(Forbidden, match="belongs to ann, not to bob"):
        machines.edit(lab, BOB, "host1", Edit(note="bob was here"))
    with pytest.raises(Forbidden):
        machines.mark(lab, BOB, "host1", "broken", "no power")
    with pytest.raises(Forbidden):
        machines.retire(lab, BOB, "host1", "old")
    with pytest.raises(Forbidden):
        machines.register(lab, ANN, Registration(name="host2"))
    assert machines.get(lab, BOB, "host1").note == "all mine"


def test_a_change_for_another_version_is_refused(lab: Lab) -> None:
    version = add(lab, "host1").version
    machines.edit(lab, ROOT, "host1", Edit(note="one"), version)
    with pytest.raises(Stale):
        machines.edit(lab, ROOT, "host1", Edit(note="two"), version)


def test_states_have_reasons_and_a_history(lab: Lab) -> None:
    add(lab, "host1")
    with pytest.raises(WrongInput, match="why is it broken"):
        machines.mark(lab, ROOT, "host1", "broken")
    with pytest.raises(WrongInput, match="comes of claims"):
        machines.mark(lab, ROOT, "host1", "claimed", "mine")
    found = machines.mark(lab, ROOT, "host1", "broken", "no power")
    assert (found.state, found.state_reason) == ("broken", "no power")
    machines.mark(lab, ROOT, "host1", "ready")
    states = [entry.data for entry in machines.history(lab, ROOT, "host1").items if entry.type == "machine.state"]
    assert [(data["old"], data["new"], data["reason"]) for data in states] == [
        ("broken", "ready", ""),
        ("ready", "broken", "no power"),
    ]


def test_a_retired_machine_comes_back_when_it_is_registered_again(lab: Lab) -> None:
    first = add(lab, "host1", 1)
    assert machines.retire(lab, ROOT, "host1", "old").state == "retired"
    with pytest.raises(Conflict, match="retired"):
        machines.mark(lab, ROOT, "host1", "ready")
    again = add(lab, "host1", 1)
    assert (again.id, again.state) == (first.id, "ready")


def test_an_address_that_the_lab_cannot_use_is_refused(lab: Lab) -> None:
    add(lab, "host1", address="ssh://root@host1")
    with pytest.raises(WrongInput, match="cannot reach"):
        machines.edit(lab, ROOT, "host1", Edit(address="telnet://host1"))
    assert machines.edit(lab, ROOT, "host1", Edit(address="virtual:host1")).address == "virtual:host1"
    assert machines.edit(lab, ROOT, "host1", Edit(address="")).address is None


def test_nobody_without_a_role_sees_machines(lab: Lab) -> None:
    add(lab, "host1")
    with pytest.raises(Forbidden):
        machines.get(lab, with_roles("eve", []), "host1")
    with pytest.raises(NotFound, match="no machine 'host2'"):
        machines.get(lab, ANN, "host2")


@pytest.mark.parametrize(
    ("known", "found"), list(product([HOST, Identity(macs=(MAC,)), Identity(system="s")], repeat=2))
)
def test_likeness_is_mutual(known: Identity, found: Identity) -> None:
    assert (compare(known, found).verdict == "other") == (compare(found, known).verdict == "other")
