"""PCI functions from the wish to the definition: exactly those that placing chose, whole IOMMU groups, or a refusal."""

from __future__ import annotations

import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.facts import Definition, Facts, PciFunction
from evenkeel.documents.fleet import FleetPlan
from evenkeel.documents.plan import GuestPlan, Plan
from evenkeel.documents.site import FunctionWish, GuestWish, HostPlace, HostWish, PlaceWish, Site
from evenkeel.errors import WrongInput
from evenkeel.placement_check import check_placement
from evenkeel.plan import make_plan
from evenkeel.plan.fleet import site as fleet
from evenkeel.plan.passthrough import passed_in
from evenkeel.plan.seats import Seat, Seats
from tests.plan.factories import GIB, guest, make_facts

PF, GPU, SOUND, BRIDGE, DISK = "0000:20:00.0", "0000:21:00.0", "0000:21:00.1", "0000:00:1c.0", "0000:21:00.2"
VFS = tuple(f"0000:20:10.{number}" for number in range(3))


def function(address: str, **more: Any) -> PciFunction:
    base: dict[str, Any] = {"class_code": "020000", "vendor": "8086", "device": "1520", "node": 1}
    return PciFunction(address=address, **(base | more))


def functions(**gpu: Any) -> list[PciFunction]:
    """A card with three virtual functions, each in a group of its own, and a GPU with a sound function in one group."""
    return [
        function(PF, driver="igb", iommu_group=1, sriov_vfs=3, sriov_total_vfs=7),
        *(
            function(vf, driver="igbvf", iommu_group=10 + n, physical_function=PF, device="10ca")
            for n, vf in enumerate(VFS)
        ),
        function(GPU, class_code="030000", iommu_group=5, **({"driver": "nouveau"} | gpu)),
        function(SOUND, class_code="040300", driver="snd_hda_intel", iommu_group=5),
        function(BRIDGE, class_code="060400", driver="pcieport", iommu_group=5),
    ]


def facts(*more: PciFunction, pci: list[PciFunction] | None = None, **update: Any) -> Facts:
    base = make_facts(cores=8, node_bytes=32 * GIB)
    return base.model_copy(update={"pci": (*base.pci, *(functions() if pci is None else pci), *more), **update})


def site(guests: dict[str, GuestWish], **place: Any) -> Site:
    base: dict[str, Any] = {"pools": {"gpu": (GPU, SOUND)}, "wires": {PF: "blue"}}
    return Site(hosts={"cell": HostWish(address="virtual:cell", place=HostPlace(**(base | place)))}, guests=guests)


def wants(*wishes: FunctionWish, **more: Any) -> GuestWish:
    return guest(vcpus=1, memory=GIB, place=PlaceWish(functions=wishes), **more)


VF = FunctionWish(type="vf", network="blue")
A_GPU = FunctionWish(pool="gpu")


def planned(wanted: Site, known: Facts, keep: Plan | None = None) -> tuple[FleetPlan, Plan]:
    """As the verbs do it: placed, checked, planned."""
    placed = fleet.place_all(fleet.board_of(wanted, {"cell": known}, keep))
    assert check_placement(placed.model_dump(mode="json")) == []
    chosen = fleet.chosen_hosts(wanted, placed)
    return placed, make_plan(chosen, {"cell": known}, keep, fleet.seats_for_planner(placed))


def by_name(plan: Plan) -> dict[str, GuestPlan]:
    return {one.name: one for one in plan.hosts[0].guests}


def test_the_definition_has_the_function_that_was_chosen() -> None:
    placed, plan = planned(site({"a": wants(VF), "b": wants(VF, goal="flexible"), "c": guest()}), facts())
    seats = {seat.name: seat for seat in placed.seats}
    guests = by_name(plan)
    for name in "ab":
        (address,) = seats[name].functions
        assert guests[name].functions == (address,) == passed_in(ET.fromstring(guests[name].xml))
        (device,) = ET.fromstring(guests[name].xml).findall("devices/hostdev")
        assert device.attrib == {"mode": "subsystem", "type": "pci", "managed": "yes"}
        assert [one.attrib for one in device.findall("driver")] == [{"name": "vfio"}]
        assert ET.fromstring(guests[name].xml).find("devices/memballoon[@model='none']") is not None
    assert seats["a"].functions != seats["b"].functions
    assert guests["c"].functions == () and "hostdev" not in guests["c"].xml
    source = ET.fromstring(guests["a"].xml).find("devices/hostdev/source/address")
    assert source is not None
    number = guests["a"].functions[0][-1]
    assert source.attrib == {"domain": "0x0000", "bus": "0x20", "slot": "0x10", "function": f"0x{number}"}
    settings = {setting.id: setting for setting in plan.hosts[0].settings}
    assert "H-IOMMU:iommu" in settings, "a guest with a function needs the IOMMU"
    assert "G-16" in settings["G-15:a"].reason and "G-16" not in settings["G-15:c"].reason


def test_an_iommu_group_goes_as_a_whole() -> None:
    _, plan = planned(site({"a": wants(FunctionWish(pool="gpu"))}), facts())
    assert by_name(plan)["a"].functions == (GPU, SOUND), "the bridge stays, the sound function goes along"
    placed, _ = planned_or_refused(site({"a": wants(A_GPU), "b": wants(A_GPU)}), facts())
    assert len(placed.seats) == 1 and len(placed.refused) == 1


def planned_or_refused(wanted: Site, known: Facts) -> tuple[FleetPlan, None]:
    placed = fleet.place_all(fleet.board_of(wanted, {"cell": known}))
    assert check_placement(placed.model_dump(mode="json")) == []
    return placed, None


@pytest.mark.parametrize(
    ("known", "place", "why"),
    [
        (
            facts(function(DISK, class_code="010802", driver="nvme", iommu_group=5)),
            {},
            f"{DISK} too, and the host uses",
        ),
        (facts(), {"pools": {"gpu": (GPU,)}}, f"{SOUND} too, and the host uses that by its driver snd_hda_intel"),
        (facts(), {"vfio": "bound"}, "its driver is nouveau, not vfio-pci, to which the site says it is bound"),
        (
            facts(
                definitions=(
                    Definition(
                        guest="stranger",
                        path="/etc/libvirt/qemu/stranger.xml",
                        running=False,
                        xml="<domain><devices><hostdev mode='subsystem' type='pci'><source><address domain='0x0000' "
                        "bus='0x21' slot='0x00' function='0x1'/></source></hostdev></devices></domain>",
                    ),
                )
            ),
            {},
            f"{SOUND} too, and guest stranger, which the site does not know, has it",
        ),
    ],
    ids=["disk-of-the-host", "half-a-pool", "not-bound", "another-guest"],
)
def test_a_group_that_somebody_else_uses_is_refused_with_the_reason(
    known: Facts, place: dict[str, Any], why: str
) -> None:
    wanted = site({"a": wants(A_GPU)}, **place)
    placed, _ = planned_or_refused(wanted, known)
    assert not placed.seats
    assert any(why in reason for reason in placed.refused[0].reasons), placed.refused[0].reasons
    # A placement made by hand is refused too.
    with pytest.raises(WrongInput) as caught:
        make_plan(wanted, {"cell": known}, chosen={"cell": Seats({"a": Seat(functions=(GPU,))})})
    assert why in str(caught.value)


def test_functions_that_are_bound_already_are_not_managed() -> None:
    bound = [one.model_copy(update={"driver": "vfio-pci"}) for one in functions()[-3:-1]]
    _, plan = planned(site({"a": wants(A_GPU)}, vfio="bound"), facts(pci=bound))
    assert 'managed="no"' in by_name(plan)["a"].xml and 'managed="yes"' not in by_name(plan)["a"].xml


@pytest.mark.parametrize(
    ("chosen", "why"),
    [
        ({}, "it is to have 1 PCI function, and 0 are chosen"),
        ({"a": ("0000:99:00.0",), "b": (VFS[0],)}, "0000:99:00.0, which host cell does not have"),
        ({"a": ("0000:10:00.0",), "b": (VFS[0],)}, "0000:10:00.0, which host cell does not offer"),
        ({"a": (VFS[0],), "b": (VFS[0],)}, f"it cannot have {VFS[0]}: guest a has IOMMU group 10"),
        (
            {"a": (GPU,), "b": (SOUND,)},
            f"it cannot have {SOUND}: guest a has IOMMU group 5, and a group is not divided",
        ),
    ],
)
def test_a_wrong_choice_is_refused(chosen: dict[str, tuple[str, ...]], why: str) -> None:
    wish = FunctionWish(near="any")
    seats = Seats({name: Seat(functions=functions) for name, functions in chosen.items()})
    with pytest.raises(WrongInput) as caught:
        make_plan(site({"a": wants(wish), "b": wants(wish)}), {"cell": facts()}, chosen={"cell": seats})
    assert why in str(caught.value)


def test_without_an_iommu_the_plan_says_so() -> None:
    alone = [one.model_copy(update={"iommu_group": None}) for one in functions()]
    _, plan = planned(site({"a": wants(VF)}), facts(pci=alone))
    assert any("no IOMMU group" in note.text for note in plan.hosts[0].notes if note.rule == "H-IOMMU")
    _, plan = planned(site({"a": wants(VF)}), facts())
    assert not [note for note in plan.hosts[0].notes if note.rule == "H-IOMMU"]


@pytest.mark.parametrize("by", ["plan", "definition"])
def test_a_guest_keeps_its_function(by: str) -> None:
    """Also when another, earlier in the alphabet, comes and would have got it."""
    _, first = planned(site({"m": wants(VF), "n": wants(A_GPU)}), facts())
    known = facts()
    keep: Plan | None = first
    if by == "definition":
        texts = tuple(
            Definition(guest=one.name, path=f"/etc/libvirt/qemu/{one.name}.xml", running=False, xml=one.xml)
            for one in first.hosts[0].guests
        )
        known, keep = facts(definitions=texts), None
    _, again = planned(site({"a": wants(VF), "b": wants(VF), "m": wants(VF), "n": wants(A_GPU)}), known, keep)
    before, after = by_name(first), by_name(again)
    assert (after["m"].functions, after["n"].functions) == (before["m"].functions, before["n"].functions)
    assert len({address for one in after.values() for address in one.functions}) == 5
    # A guest that asks for its first function only now takes none of those that others have.
    _, late = planned(site({"a": guest(vcpus=1, memory=GIB), "m": wants(VF)}), facts())
    _, now = planned(site({"a": wants(VF), "m": wants(VF)}), facts(), late)
    assert by_name(now)["m"].functions == by_name(late)["m"].functions != by_name(now)["a"].functions


def test_addresses_of_a_definition() -> None:
    xml = (
        "<domain><devices>"
        "<hostdev type='pci'><source><address domain='0x1' bus='0xaf' slot='0x1f' function='0x7'/></source></hostdev>"
        "<interface type='hostdev'><source><address type='pci' bus='2' slot='3' function='0'/></source></interface>"
        "<hostdev type='usb'><source><address bus='1' device='2'/></source></hostdev>"
        "<hostdev type='pci'><source><address bus='zero'/></source></hostdev>"
        "</devices></domain>"
    )
    assert passed_in(ET.fromstring(xml)) == ("0000:02:03.0", "0001:af:1f.7")


def test_libvirts_own_schema_takes_functions(tmp_path: Path) -> None:
    validate = shutil.which("virt-xml-validate")
    if validate is None:
        pytest.skip("no virt-xml-validate (Debian: libvirt-clients)")
    goals = ("realtime", "performance", "balanced", "flexible")
    guests = {goal: wants(VF if goal != "realtime" else A_GPU, goal=goal) for goal in goals}
    _, plan = planned(site(guests), facts())
    for one in plan.hosts[0].guests:
        assert one.functions
        for name, text in (("right", one.xml), ("wrong", one.xml.replace('slot="0x', 'slot="0xzz'))):
            file = tmp_path / f"{one.name}-{name}.xml"
            file.write_text(text)
            done = subprocess.run([validate, str(file), "domain"], capture_output=True, check=False)
            assert (done.returncode == 0) is (name == "right"), done.stderr


@pytest.mark.skipif(not shutil.which("virsh"), reason="needs virsh")
def test_libvirts_parser_gives_the_function_back(tmp_path: Path) -> None:
    _, plan = planned(site({"a": wants(VF, VF), "b": wants(A_GPU)}), facts())
    for one in plan.hosts[0].guests:
        (tmp_path / f"{one.name}.xml").write_text(one.xml)
        done = subprocess.run(
            ["virsh", "-q", "-c", "test:///default", f"define {tmp_path / one.name}.xml; dumpxml {one.name}"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        domain = done.stdout[done.stdout.index("<domain") :]
        assert passed_in(ET.fromstring(domain)) == one.functions
