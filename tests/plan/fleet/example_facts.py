"""Facts of the hosts of examples/fleet, made from numbers; ``python -m tests.plan.fleet.example_facts`` writes them.

Four hosts of three generations.  ``edge-a`` and ``edge-b``: two sockets of 16 cores with SMT, a card with two ports of
eight virtual functions each near node 0, a GPU with its sound function in one IOMMU group near node 1, and a second GPU
there that shares its group with the disk of the host.  ``edge-c``: one socket of 8 cores without SMT.  ``big``: four
sockets of 24 cores, without a real-time kernel.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from evenkeel.documents.facts import Facts, Idle, Nic, PciFunction
from tests.plan.factories import GIB, STANDARD_KERNEL, make_facts

FOLDER = Path(__file__).parents[3] / "examples" / "fleet"
PORTS = {"ens1f0": "0000:17:00.0", "ens1f1": "0000:17:00.1"}
GPU, SOUND, LATE_GPU, DISK = "0000:b1:00.0", "0000:b1:00.1", "0000:b2:00.0", "0000:b2:00.1"


def _function(address: str, node: int, **more: Any) -> PciFunction:
    base: dict[str, Any] = {"class_code": "020000", "vendor": "8086", "device": "1592", "node": node}
    return PciFunction(address=address, **(base | more))


def _edge() -> dict[str, Any]:
    pci: list[PciFunction] = []
    for number, port in enumerate(PORTS.values()):
        pci.append(_function(port, 0, driver="ice", iommu_group=20 + number, sriov_vfs=8, sriov_total_vfs=64))
        pci += [
            _function(
                f"0000:17:{1 + number:02x}.{vf}",
                0,
                device="1889",
                driver="iavf",
                iommu_group=40 + 8 * number + vf,
                physical_function=port,
            )
            for vf in range(8)
        ]
    gpu = {"vendor": "10de", "device": "20b5", "class_code": "030200"}
    pci.append(_function(GPU, 1, driver="nouveau", iommu_group=70, **gpu))
    pci.append(_function(SOUND, 1, driver="snd_hda_intel", iommu_group=70, **(gpu | {"class_code": "040300"})))
    pci.append(_function(LATE_GPU, 1, driver="nouveau", iommu_group=71, **gpu))
    pci.append(_function(DISK, 1, driver="nvme", iommu_group=71, class_code="010802", device="0a54"))
    nics = tuple(Nic(name=name, pci=pci, driver="ice", node=0) for name, pci in PORTS.items())
    return {"pci": tuple(pci), "nics": nics}


def example_facts() -> dict[str, Facts]:
    """By host.  What placing and planning do not look at is left out, so that the files are small."""
    edge = make_facts(cores=16, node_bytes=192 * GIB, **_edge())
    made = {
        "edge-a": edge,
        "edge-b": edge,
        "edge-c": make_facts(sockets=1, cores=8, threads=1, node_bytes=64 * GIB),
        "big": make_facts(
            sockets=4, cores=24, node_bytes=768 * GIB, interleaved=True, preempt_rt=False, kernel=STANDARD_KERNEL
        ),
    }
    return {name: _short(name, facts) for name, facts in made.items()}


def _short(name: str, facts: Facts) -> Facts:
    """As recorded from a machine of metal, without what is a line a CPU and plays no part here."""
    identity = facts.identity.model_copy(update={"hostname": name, "hypervisor": "none", "emulated": False})
    settings = {path: value for path, value in facts.settings.items() if "fair_server" not in path}
    update: dict[str, Any] = {"identity": identity, "settings": settings, "kernel_threads": (), "interrupts": ()}
    if name.startswith("edge-c") or name == "big":
        update |= {"pci": (), "nics": (), "blocks": (), "idle": Idle()}
    return facts.model_copy(update={**update, "blocks": ()})


def text_of(facts: Facts) -> str:
    return json.dumps(facts.model_dump(mode="json"), sort_keys=True, separators=(",", ":")) + "\n"


if __name__ == "__main__":
    for host, found in example_facts().items():
        (FOLDER / "facts" / f"{host}.facts.json").write_text(text_of(found))
