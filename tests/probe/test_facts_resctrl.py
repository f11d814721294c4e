"""How caches are divided, read from small trees: a Xeon with two L3 domains, the same with CDP, one that cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.probe import write
from evenkeel.probe.facts import facts_of
from tests.probe.trees import Folder, Tree, cpus_tree, plant

RESCTRL = "/sys/fs/resctrl"
XEON: Tree = {
    **cpus_tree(4),
    f"{RESCTRL}/info/L3/num_closids": "16",
    f"{RESCTRL}/info/L3/cbm_mask": "7ff",
    f"{RESCTRL}/info/L3/min_cbm_bits": "1",
    f"{RESCTRL}/info/L3/shareable_bits": "600",
    f"{RESCTRL}/info/L3/bit_usage": "0=XXSSSSSSSSS;1=XXSSSSSSSSS",
    f"{RESCTRL}/info/L3_MON/num_rmids": "224",
    f"{RESCTRL}/info/MB/num_closids": "8",
    f"{RESCTRL}/info/MB/min_bandwidth": "10",
    f"{RESCTRL}/info/MB/bandwidth_gran": "10",
    f"{RESCTRL}/info/last_cmd_status": "ok",
    f"{RESCTRL}/mode": "shareable",
    f"{RESCTRL}/cpus_list": "0-3",
    f"{RESCTRL}/schemata": "    MB:0=100;1=100\n    L3:0=7ff;1=7f0",
    f"{RESCTRL}/mon_groups": Folder(),
    f"{RESCTRL}/mon_data/mon_L3_00/llc_occupancy": "123",
    f"{RESCTRL}/qemu-1-plc-vcpus_1/mode": "shareable",
    f"{RESCTRL}/qemu-1-plc-vcpus_1/cpus_list": "",
    f"{RESCTRL}/qemu-1-plc-vcpus_1/schemata": "    MB:0=100;1=100\n    L3:0=7ff;1=f",
}


def facts(folder: Path, tree: Tree) -> Facts:
    return Facts.model_validate(facts_of(plant(folder, tree)))


def test_a_divided_xeon(tmp_path: Path) -> None:
    found = facts(tmp_path, XEON).resctrl
    assert found is not None and found.mounted
    (l3,) = found.caches  # counters (L3_MON) are no resource
    assert (l3.name, l3.closids, l3.mask, l3.least_bits, l3.shareable) == ("L3", 16, "7ff", 1, "600")
    assert found.bandwidth is not None
    assert (found.bandwidth.closids, found.bandwidth.least_percent, found.bandwidth.step_percent) == (8, 10, 10)
    assert [group.name for group in found.groups] == ["", "qemu-1-plc-vcpus_1"]
    assert found.groups[0].cpus == frozenset(range(4))
    assert found.groups[1].schemata == {"MB": {0: "100", 1: "100"}, "L3": {0: "7ff", 1: "f"}}


def test_code_and_data_apart(tmp_path: Path) -> None:
    tree: dict[str, Any] = {path: text for path, text in XEON.items() if "/info/L3/" not in path}
    for name in ("L3CODE", "L3DATA"):
        tree |= {f"{RESCTRL}/info/{name}/{file}": "8" for file in ("num_closids", "min_cbm_bits")}
        tree[f"{RESCTRL}/info/{name}/cbm_mask"] = "7ff"
    found = facts(tmp_path, tree).resctrl
    assert found is not None
    assert [(cache.name, cache.closids, cache.shareable) for cache in found.caches] == [
        ("L3CODE", 8, "0"),
        ("L3DATA", 8, "0"),
    ]


def test_nobody_mounted_it_and_a_machine_that_cannot(tmp_path: Path) -> None:
    unmounted = facts(tmp_path / "a", {**cpus_tree(1), RESCTRL: Folder()}).resctrl
    assert unmounted is not None and not unmounted.mounted and unmounted.groups == ()
    assert facts(tmp_path / "b", cpus_tree(1)).resctrl is None


@pytest.mark.parametrize("text", ["", "L3", "L3:", "    L3:0=", "nonsense;;=", "L3:0=7ff;x"])
def test_a_schemata_file_of_another_make_is_no_trouble(tmp_path: Path, text: str) -> None:
    found = facts(tmp_path, {**XEON, f"{RESCTRL}/schemata": text}).resctrl
    assert found is not None and found.mounted


def test_its_file_is_among_the_settings_and_counters_are_not_read(tmp_path: Path) -> None:
    found = facts(tmp_path, XEON)
    assert found.settings[f"{RESCTRL}/schemata"].strip().startswith("MB:")
    assert "123" not in found.to_json()


def test_the_number_of_a_cache_is_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    index = "/sys/devices/system/cpu/cpu0/cache/index3"
    tree: dict[str, Any] = {**cpus_tree(1), f"{index}/level": "3", f"{index}/type": "Unified", f"{index}/id": "4"}
    with_number = facts(tmp_path / "a", tree)
    assert [cache.id for cache in with_number.caches] == [4]
    del tree[f"{index}/id"]
    assert facts(tmp_path / "b", tree).fingerprint() == with_number.fingerprint()


def test_a_line_of_the_schemata_is_set_and_given_back(tmp_path: Path) -> None:
    """The kernel merges a line into the file; a plain file only holds it, which is what is compared."""
    file = tmp_path / "sys/fs/resctrl/schemata"
    plant(tmp_path, {**XEON, "/proc/sys/kernel/random/boot_id": "11111111-1111-1111-1111-111111111111"})
    before = file.read_text()
    step = {"kind": "file", "path": f"{RESCTRL}/schemata", "value": "L3:1=7fc", "compare": "schemata"}
    assert write.apply_step(step, root=str(tmp_path))["outcome"] == "done"
    assert file.read_text() == "L3:1=7fc\n"
    file.write_text("    MB:0=100;1=100\n    L3:0=7ff;1=7fc\n")
    assert write.apply_step(step, root=str(tmp_path))["outcome"] == "unchanged"
    assert write.undo_step(1, root=str(tmp_path))["outcome"] == "undone"
    assert file.read_text() == before
