"""Who owns which ways of the L3: the ledger, the setting, the definition, and what libvirt makes of them.

No emulated machine has RDT, so the facts are made of numbers; how they are read is tests/probe/test_facts_resctrl.py.
"""

from __future__ import annotations

import itertools
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.facts import Cache, DividedBandwidth, DividedCache, Facts, Resctrl, ResctrlGroup
from evenkeel.documents.plan import FileValue, HostPlan
from evenkeel.documents.site import GuestWish, Override
from evenkeel.errors import WrongInput
from evenkeel.plan import make_plan
from evenkeel.plan.rules.rdt import SCHEMATA
from evenkeel.plan.ways import LEAST_WAYS, is_groups_guest
from evenkeel.verify.definition import differences
from tests.plan.factories import MIB, guest, make_facts, make_site

SCHEMA = Path("/usr/share/libvirt/schemas/domain.rng")


def xeon(
    *,
    mask: str = "7ff",
    shareable: str = "600",
    least: int = 1,
    closids: int = 16,
    names: tuple[str, ...] = ("L3",),
    groups: tuple[ResctrlGroup, ...] = (),
    bandwidth: DividedBandwidth | None = None,
    mounted: bool = True,
    way_bytes: int = 3 * MIB // 2,
    **shape: Any,
) -> Facts:
    """Two sockets of ten cores with an L3 of 11 ways each; devices use the two highest."""
    facts = make_facts(**({"cores": 10, "node_bytes": 64 << 30} | shape))
    caches = tuple(
        Cache(
            level=3,
            type="unified",
            size_bytes=way_bytes * int(mask, 16).bit_count(),
            cpus=cache.cpus,
            id=number,
        )
        for number, cache in enumerate(facts.caches)
    )
    text = "    MB:0=100;1=100\n" + "".join(
        f"    {name}:" + ";".join(f"{cache.id}={mask}" for cache in caches) + "\n" for name in names
    )
    resources = tuple(
        DividedCache(name=name, closids=closids, mask=mask, least_bits=least, shareable=shareable) for name in names
    )
    resctrl = Resctrl(
        mounted=mounted,
        caches=resources if mounted else (),
        bandwidth=bandwidth,
        groups=(ResctrlGroup(name=""), *groups) if mounted else (),
    )
    known = facts.settings | ({SCHEMATA: text.rstrip("\n")} if mounted else {})
    return facts.model_copy(update={"caches": caches, "resctrl": resctrl, "settings": known})


def plan(facts: Facts, guests: dict[str, GuestWish] | None = None, **host: Any) -> HostPlan:
    return make_plan(make_site(guests or {"plc": guest()}, **host), {"cell": facts}).hosts[0]


def rest(host: HostPlan, resource: str = "") -> dict[int, int]:
    """L3 -> mask that the default group keeps."""
    setting = host.setting(f"H-RDT:{resource}" if resource else "H-RDT")
    assert setting is not None and setting.new is not None
    parts = setting.new.partition(":")[2].split(";")
    return {int(part.partition("=")[0]): int(part.partition("=")[2], 16) for part in parts}


def tuned(host: HostPlan, name: str = "plc") -> list[dict[str, str]]:
    """Attributes of the cache elements of a guest's definition."""
    (one,) = (one for one in host.guests if one.name == name)
    return [dict(cache.attrib) for cache in ET.fromstring(one.xml).findall("cputune/cachetune/cache")]


def test_a_realtime_guest_has_ways_of_its_own() -> None:
    host = plan(xeon())
    setting = host.setting("H-RDT")
    assert setting is not None
    assert isinstance(setting.target, FileValue) and setting.target.path == SCHEMATA
    assert (setting.new, setting.status, setting.disturbance) == (
        "L3:1=7fc",
        "change",
        "live",
    )  # low ways for the guest
    assert tuned(host) == [{"id": "1", "level": "3", "type": "both", "size": str(2 * 1536), "unit": "KiB"}]
    domain = ET.fromstring(host.guests[0].xml)
    assert [element.get("vcpus") for element in domain.findall("cputune/cachetune")] == ["1"]  # vCPU 0 shares
    assert domain.find("cputune/memorytune") is None
    assert host.settings.index(setting) < next(i for i, s in enumerate(host.settings) if s.rule == "G-15")


def test_in_proportion_to_the_cores() -> None:
    host = plan(xeon(), {"big": guest(vcpus=6), "small": guest(vcpus=2)})
    assert {one["size"] for one in tuned(host, "big")} == {str(6 * 1536)}  # 5 of 10 cores: 6 of 11 ways
    assert {one["size"] for one in tuned(host, "small")} == {str(2 * 1536)}


@pytest.mark.parametrize(("l3", "ways"), [(MIB, 2), (3 * MIB, 2), (3 * MIB + 1, 3), (6 * MIB, 4), (12 * MIB, 8)])
def test_as_much_as_the_owner_asks_for(l3: int, ways: int) -> None:
    host = plan(xeon(), {"plc": guest(l3=l3)})
    assert tuned(host)[0]["size"] == str(ways * 1536)
    assert rest(host) == {1: 0x7FF & ~((1 << ways) - 1)}


def test_more_than_there_is_is_refused() -> None:
    assert "the realtime guests there want plc 10" in refused(xeon(), {"plc": guest(l3=15 * MIB)})


def test_a_wish_that_means_nothing() -> None:
    assert "l3 means nothing with goal performance" in refused(xeon(), {"db": guest("performance", l3=MIB)})
    host = plan(make_facts(), {"plc": guest(l3=MIB)})
    assert [note.text for note in host.notes if note.rule == "H-RDT" and "guest plc's wish" in note.text]
    assert not [note for note in plan(make_facts()).notes if note.rule == "H-RDT"]


def test_the_rest_keeps_the_ways_of_devices_and_stays_in_one_piece() -> None:
    assert rest(plan(xeon(shareable="600"))) == {1: 0x7FC}
    assert rest(plan(xeon(shareable="3"))) == {1: 0x1FF}  # devices at the low end: the guest gets the high one
    assert rest(plan(xeon(shareable="0"))) == {1: 0x7FC}


def test_code_and_data_are_divided_alike() -> None:
    host = plan(xeon(names=("L3CODE", "L3DATA")))
    assert rest(host, "L3CODE") == rest(host, "L3DATA") == {1: 0x7FC}
    assert [one["type"] for one in tuned(host)] == ["code", "data"]


def test_satisfied_when_the_default_group_has_left_them() -> None:
    facts = xeon()
    done = facts.settings | {SCHEMATA: "    MB:0=100;1=100\n    L3:0=7ff;1=7fc"}
    setting = plan(facts.model_copy(update={"settings": done})).setting("H-RDT")
    assert setting is not None and setting.status == "satisfied"


def test_machines_that_cannot_get_nothing() -> None:
    assert plan(make_facts()).setting("H-RDT") is None
    assert "cachetune" not in plan(make_facts()).guests[0].xml
    only_l2 = xeon(names=("L2",))
    assert plan(only_l2).setting("H-RDT") is None
    unnumbered = xeon()
    without = tuple(cache.model_copy(update={"id": None}) for cache in unnumbered.caches)
    host = plan(unnumbered.model_copy(update={"caches": without}))
    assert host.setting("H-RDT") is None and "cachetune" not in host.guests[0].xml
    assert any(note.rule == "H-RDT" and "no number" in note.text for note in host.notes)


def test_other_goals_share() -> None:
    host = plan(xeon(), {"db": guest("performance")})
    assert host.setting("H-RDT") is None and "cachetune" not in host.guests[0].xml


def test_who_has_not_mounted_it_is_told() -> None:
    host = plan(xeon(mounted=False))
    assert host.setting("H-RDT") is None and "cachetune" not in host.guests[0].xml
    assert [note.text for note in host.notes if note.rule == "H-RDT" and "/etc/fstab" in note.text]


def test_the_owner_may_share_the_cache() -> None:
    host = plan(xeon(), overrides={"H-RDT": Override(off=True, because="measured: no gain")})
    assert host.setting("H-RDT") is None and "cachetune" not in host.guests[0].xml
    assert not any("fstab" in note.text for note in host.notes)


# -- what does not fit is said ----------------------------------------------------------------------------------------


def refused(facts: Facts, guests: dict[str, GuestWish]) -> str:
    with pytest.raises(WrongInput) as caught:
        plan(facts, guests)
    errors = [caught.value, *getattr(caught.value, "others", ())]
    return "\n".join(f"{error.message} {error.hint}" for error in errors)


def test_classes_of_service_run_out() -> None:
    guests = {name: guest(vcpus=2) for name in ("a", "b", "c")}
    assert rest(plan(xeon(closids=4), guests))
    said = refused(xeon(closids=3), guests)
    assert "3 realtime guests (a, b, c) need a class of cache service each, and 2 are left: the CPU has 3" in said
    assert "H-RDT: { off: true" in said
    other = ResctrlGroup(name="rmd", schemata={"L3": {0: "600", 1: "600"}})
    assert "1 of somebody else (rmd)" in refused(xeon(closids=4, groups=(other,)), guests)
    assert "the CPU has 3" in refused(xeon(bandwidth=DividedBandwidth(closids=3)), guests)  # MB has fewer than L3


def test_ways_run_out() -> None:
    said = refused(xeon(mask="f", shareable="8"), {"a": guest(near="ens3"), "b": guest(near="ens3")})
    assert "the L3 of CPUs 20-39 (6MiB) has 4 ways, the realtime guests there want a 2, b 2, and 2 must stay" in said


def test_a_group_of_somebody_else_is_left_alone() -> None:
    low = ResctrlGroup(name="rmd", schemata={"L3": {0: "7ff", 1: "f"}})
    assert rest(plan(xeon(shareable="0", groups=(low,)))) == {1: 0x1FF}  # the guest goes to the other end
    every = ResctrlGroup(name="rmd", schemata={"L3": {1: "7ff"}})
    assert "the group rmd has 7ff" in refused(xeon(groups=(every,)), {"plc": guest()})


def test_the_group_that_libvirt_made_for_the_guest_is_no_stranger() -> None:
    own = ResctrlGroup(name="qemu-3-plc-vcpus_1", schemata={"L3": {0: "7ff", 1: "3"}})
    assert rest(plan(xeon(groups=(own,), closids=2))) == {1: 0x7FC}
    old = ResctrlGroup(name="qemu-3-gone-vcpus_1", schemata={"L3": {1: "3"}})
    assert "qemu-3-gone-vcpus_1" in refused(xeon(groups=(old,), closids=2), {"plc": guest()})


@pytest.mark.parametrize(
    ("group", "ours"),
    [
        ("qemu-1-plc-vcpus_1", True),
        ("qemu-12-plc-vcpus_1-3,5", True),
        ("qemu-1-my_plc.2-vcpus_1", False),
        ("qemu-1-plc2-vcpus_1", False),
        ("plc", False),
        ("qemu-1-plc", False),
    ],
)
def test_names_of_groups(group: str, ours: bool) -> None:
    assert is_groups_guest(group, {"plc"}) is ours


# -- invariants, and libvirt's own search for free ways ---------------------------------------------------------------


def first_fit(free: int, ways: int) -> int | None:
    """The smallest gap that fits, its low end: virResctrlAllocFindUnused() of libvirt 9.0, written again."""
    gaps = [(match.end() - match.start(), match.start()) for match in re.finditer("1+", f"{free:b}"[::-1])]
    fitting = [gap for gap in gaps if gap[0] >= ways]
    return ((1 << ways) - 1) << min(fitting)[1] if fitting else None


@settings(max_examples=60, deadline=None)
@given(
    ways=st.integers(4, 20),
    least=st.integers(1, 3),
    low=st.booleans(),
    devices=st.integers(0, 3),
    vcpus=st.lists(st.integers(2, 4), min_size=1, max_size=4),
)
def test_whatever_the_cache_every_guest_finds_its_ways_in_any_order(
    ways: int, least: int, low: bool, devices: int, vcpus: list[int]
) -> None:
    full = (1 << ways) - 1
    shareable = (1 << devices) - 1 if low else (((1 << devices) - 1) << ways - devices) & full
    facts = xeon(mask=f"{full:x}", shareable=f"{shareable:x}", least=least)
    try:
        host = plan(facts, {f"g{index}": guest(vcpus=count) for index, count in enumerate(vcpus)})
    except WrongInput as error:
        assert "ways, the realtime guests there want" in error.message
        return
    shares: dict[int, list[int]] = {}
    for one in host.guests:
        for cache in tuned(host, one.name):
            shares.setdefault(int(cache["id"]), []).append(int(cache["size"]) * 1024 // (3 * MIB // 2))
    kept = rest(host)
    assert kept.keys() == shares.keys()
    for number, mask in kept.items():
        exclusive = full & ~mask
        assert mask.bit_count() >= max(least, LEAST_WAYS)
        assert re.fullmatch("0*1+0*", f"{mask:b}"), "a mask with holes"
        assert not exclusive & shareable
        assert sum(shares[number]) == exclusive.bit_count()
        assert min(shares[number]) >= max(least, LEAST_WAYS)
        for order in itertools.permutations(shares[number]):
            free = exclusive
            for wanted in order:
                found = first_fit(free, wanted)
                assert found is not None
                free &= ~found


# -- libvirt ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (SCHEMA.exists() and shutil.which("xmllint")), reason="needs libvirt's schema and xmllint")
@pytest.mark.skipif(not shutil.which("virsh"), reason="needs virsh")
@pytest.mark.parametrize("names", [("L3",), ("L3CODE", "L3DATA")], ids=["both", "cdp"])
@pytest.mark.parametrize("way_bytes", [3 * MIB // 2, 1_000_001], ids=["KiB", "B"])
def test_libvirt_takes_it_and_gives_it_back(tmp_path: Path, names: tuple[str, ...], way_bytes: int) -> None:
    text = plan(xeon(names=names, way_bytes=way_bytes)).guests[0].xml
    assert "cachetune" in text
    file = tmp_path / "plc.xml"
    file.write_text(text)
    subprocess.run(["xmllint", "--noout", "--relaxng", SCHEMA, file], check=True, capture_output=True)
    done = subprocess.run(
        ["virsh", "-q", "-c", "test:///default", f"define {file}; dumpxml plc"],
        capture_output=True,
        text=True,
        check=True,
    )
    back = done.stdout[done.stdout.index("<domain") :]
    assert [wrong for wrong in differences(text, back) if "cache" in wrong] == []
    smaller = re.sub(r"(<cache [^>]*size=.)\d+", r"\g<1>1", back)
    assert [wrong for wrong in differences(text, smaller) if "cache" in wrong], "another size is a difference"
