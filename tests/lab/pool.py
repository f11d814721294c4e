"""Machines for tests of the pool: Facts and Inventory documents, made up but whole, and people."""

from __future__ import annotations

from evenkeel.documents.facts import Cpu, Facts, Identity, Kernel, Nic, Node, PciFunction
from evenkeel.documents.inventory import Inventory
from evenkeel.lab import machines
from evenkeel.lab.actor import Actor, with_roles
from evenkeel.lab.lab import Lab
from evenkeel.lab.machines import Machine, Policy, Registration

GIB = 1 << 30
ROOT = with_roles("root", ["admin"])
ANN, BOB, CAT = (with_roles(name, ["user"]) for name in ("ann", "bob", "cat"))


def facts(name: str = "host1", *, threads: int = 8, mem: int = 64 * GIB, macs: tuple[str, ...] = ("00:1b:21:00:00:01",),
          driver: str = "mlx5_core", release: str = "6.12.3", vfs: int = 8) -> Facts:  # fmt: skip
    """A machine of one socket, with a network card for each of ``macs``."""
    return Facts(
        identity=Identity(hostname=name, architecture="x86_64", hypervisor="none"),
        kernel=Kernel(release=release, preempt_rt="rt" in release),
        cpus=tuple(Cpu(id=n, package=0, core=n, node=0, siblings=frozenset({n})) for n in range(threads)),
        nodes=(Node(id=0, cpus=frozenset(range(threads)), memory_bytes=mem),),
        memory_bytes=mem,
        pci=tuple(
            PciFunction(
                address=f"0000:0{n}:00.0", class_code="020000", vendor="15b3", device="101d", sriov_total_vfs=vfs
            )
            for n in range(len(macs))
        ),
        nics=tuple(
            Nic(name=f"eth{n}", pci=f"0000:0{n}:00.0", driver=driver, mac=mac) for n, mac in enumerate(macs)
        ),
    )  # fmt: skip


def inventory(
    serial: str | None = "S1", *, board: str | None = "B1", flags: tuple[str, ...] = ("avx512f", "sse2")
) -> Inventory:
    serials = {name: text for name, text in (("system", serial), ("board", board)) if text}
    return Inventory.model_validate({"serials": serials, "cpu_vendor": "GenuineIntel", "cpu_flags": flags})


def add(lab: Lab, name: str, number: int = 0, *, by: Actor = ROOT, address: str | None = None,
        policy: Policy | None = None, owner: str | None = None, team: str = "",
        **of_facts: object) -> Machine:  # fmt: skip
    """Register a machine of its own; ``number`` makes its serial number and MAC, by default from its name."""
    number = number or sum(ord(letter) * 31**place for place, letter in enumerate(name)) % 16**6
    digits = f"{number:06x}"
    mac = f"00:1b:21:{digits[:2]}:{digits[2:4]}:{digits[4:]}"
    made = Registration(
        name=name,
        facts=facts(name, macs=(mac,), **of_facts),  # type: ignore[arg-type]
        inventory=inventory(f"S{number}", board=f"B{number}"),
        address=address,
        owner=owner,
        team=team,
        policy=policy or Policy(),
    )
    return machines.register(lab, by, made).machine
