"""Which kept boot is found again: only that of the same name, topology, QEMU and CPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from evenkeel.machines.virtual import booted
from evenkeel.machines.virtual.image import Image
from evenkeel.machines.virtual.qemu import EMULATED_CPU, Qemu
from evenkeel.machines.virtual.spec import BUILT_IN, HostSpec

QEMU = Qemu((10, 0, 2), Path("/q"))


def _kept(tmp_path: Path, **changed: str) -> Image:
    image = Image(tmp_path)
    fields = {"name": "plc", "uuid": "u", "qemu": QEMU.text, "cpu": EMULATED_CPU, **changed}
    folder = booted.folder_of(image, "plc")
    folder.mkdir(parents=True)
    meta = booted.Booted.model_validate({**fields, "spec": HostSpec()})
    (folder / booted.META).write_text(meta.model_dump_json())
    return image


def test_the_same_host_is_found(tmp_path: Path) -> None:
    found = booted.find(_kept(tmp_path), "plc", HostSpec(), QEMU)
    assert found is not None and found.uuid == "u"


@pytest.mark.parametrize("changed", [{"cpu": "max,+erms"}, {"qemu": "9.0.0"}, {"name": "hmi"}])
def test_the_state_of_another_cpu_qemu_or_host_is_not(tmp_path: Path, changed: dict[str, str]) -> None:
    assert booted.find(_kept(tmp_path, **changed), "plc", HostSpec(), QEMU) is None


def test_another_topology_is_not(tmp_path: Path) -> None:
    assert booted.find(_kept(tmp_path), "plc", BUILT_IN["tiny"], QEMU) is None


def test_a_state_from_before_the_cpu_was_noted_is_not(tmp_path: Path) -> None:
    image = _kept(tmp_path)
    meta = booted.folder_of(image, "plc") / booted.META
    meta.write_text(meta.read_text().replace('"cpu"', '"was"'))
    assert booted.find(image, "plc", HostSpec(), QEMU) is None
