"""A definition as libvirt gives it back against the planned one: additions are fine, differences are named."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.verify.definition import differences
from tests.verify.record import load

PLAN, SEEN = load()
PLC = next(guest for guest in PLAN.hosts[0].guests if guest.name == "plc")
LIVE = SEEN.guests["plc"].live or ""
DEFINED = SEEN.guests["plc"].defined or ""


def test_what_libvirt_makes_of_the_planned_definition_is_the_planned_definition() -> None:
    assert len(DEFINED) > len(PLC.xml), "libvirt adds to it"
    assert differences(PLC.xml, DEFINED) == []
    assert differences(PLC.xml, LIVE) == []
    assert differences(PLC.xml, PLC.xml) == []


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("vcpu='1' cpuset='5'", "vcpu='1' cpuset='4-5'", "cputune/vcpupin[vcpu=1]: cpuset is 4-5, not 5"),
        ("<vcpupin vcpu='1' cpuset='5'/>", "", "cputune/vcpupin[vcpu=1]: missing"),
        ("'fifo' priority='2'", "'fifo' priority='1'", "cputune/vcpusched[vcpus=1]: priority is 1, not 2"),
        ("<locked/>", "", "memoryBacking/locked: missing"),
        ("mode='strict' nodeset='1'", "mode='strict' nodeset='0'", "numatune/memory: nodeset is 0, not 1"),
        ("<memory unit='KiB'>262144<", "<memory unit='KiB'>262145<", "memory: is 262145 KiB, not 262144 KiB"),
        ("mode='host-passthrough'", "mode='host-model'", "cpu: mode is host-model, not host-passthrough"),
        ("<memballoon model='none'/>", "<memballoon model='virtio'/>", "devices/memballoon: model is virtio, not none"),
        ("nohz_full=1", "nohz_full=0", "os/cmdline: is "),
    ],
)  # fmt: skip
def test_each_difference_is_named(old: str, new: str, told: str) -> None:
    changed = DEFINED.replace(old, new)
    assert changed != DEFINED, f"the recording does not say {old}"
    found = differences(PLC.xml, changed)
    assert any(text.startswith(told) for text in found), found


def test_the_same_in_other_words() -> None:
    plan = (
        "<domain><memory unit='MiB'>256</memory><cpu><numa><cell cpus='0-1' memory='1' unit='GiB'/></numa></cpu>"
        "<cputune><emulatorpin cpuset='0,1'/></cputune></domain>"
    )
    same = (
        "<domain><memory unit='KiB'>262144</memory><cpu><numa><cell cpus='0,1' memory='1048576' unit='KiB' id='0'/>"
        "</numa></cpu><cputune><emulatorpin cpuset='0-1'/></cputune></domain>"
    )
    assert differences(plan, same) == []
    assert differences(plan, same.replace("1048576", "1048577")) != []
    assert differences(plan, same.replace("cpuset='0-1'", "cpuset='0-2'")) != []


def test_two_of_a_kind_are_told_apart_by_what_they_are() -> None:
    plan = "<d><disk><source file='a'/></disk><disk><source file='b'/></disk></d>"
    turned = "<d><disk x='1'><source file='b'/></disk><disk><source file='a'/></disk></d>"
    assert differences(plan, turned) == []
    assert differences(plan, "<d><disk><source file='a'/></disk><disk><source file='a'/></disk></d>") == [
        "disk/source: file is a, not b"
    ]
    assert differences(plan, "<d><disk><source file='a'/></disk></d>") == ["disk: missing"]


@given(st.text(max_size=80))
def test_any_text_is_a_difference_or_none_and_never_an_error(text: str) -> None:
    assert differences(PLC.xml, text) != []


@given(st.randoms(use_true_random=False))
def test_whatever_element_is_dropped_is_missed(random: object) -> None:
    root = ET.fromstring(PLC.xml)
    parents = {child: parent for parent in root.iter() for child in parent}
    victim = random.choice(sorted(parents, key=lambda element: element.tag))  # type: ignore[attr-defined]
    parents[victim].remove(victim)
    assert differences(PLC.xml, ET.tostring(root, encoding="unicode")) != []


@pytest.mark.parametrize(
    ("found", "told"),
    [
        ("<vcpu placement='static'>2</vcpu>", []),
        ("<vcpu current='2'>2</vcpu>", []),
        ("<vcpu current='1'>2</vcpu>", ["vcpu: is 2, of which 1 plugged in, not 2"]),
        ("<vcpu current='2'>4</vcpu>", ["vcpu: is 4, of which 2 plugged in, not 2"]),
        ("<vcpu>3</vcpu>", ["vcpu: is 3, not 2"]),
        ("<vcpu/>", ["vcpu: is empty, not 2"]),
    ],
)
def test_vcpus_that_are_not_plugged_in(found: str, told: list[str]) -> None:
    """What `virsh setvcpus` changes: the planned number, or who of it is there."""
    assert differences("<domain><vcpu>2</vcpu></domain>", f"<domain>{found}</domain>") == told
