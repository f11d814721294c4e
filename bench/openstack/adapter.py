"""Fleets and requests in Nova's words, Nova's answers as seats, and the environment that Nova runs in.

:func:`python` installs Nova from its package into ``.venv-nova``, beside the project's own environment and never
in it; :class:`Nova` talks to :mod:`bench.openstack.peer`, which runs there.  Must not decide anything: a request that
Nova has no words for raises NotInNova, so that no number of a comparison stands for something else.

What is the same on both sides: CPUs by thread policy, nodes, page sizes and their room, functions by pool, type and
network with their affinity, the emulator's own CPU.  ``whole``, ``float`` and ``overcommit`` have no equal in Nova,
nor have L3 caches, distances, racks and features: requests that use them raise.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from tools.environment import environment

from evenkeel.documents.fleet import FleetFunction, FleetHost, FleetNode, GuestSeat, Request

HERE = Path(__file__).parent
KIB, MIB = 1 << 10, 1 << 20
#: ``legacy``: one set of CPUs (``vcpu_pin_set``), the only one with which isolate works on SMT; ``new``: two sets.
Style = Literal["legacy", "new"]
_TYPES = {"vf": "type-VF", "pf": "type-PF", "pci": "type-PCI"}
_PAGES = {"huge-largest": "large", "any": "any", "ordinary": "small", "huge-smallest": "2MB"}
_VENDOR = "8086"


class NotInNova(ValueError):
    """A host or a request for which Nova has no words."""


def python() -> Path:
    """The Python of the environment with Nova in it, made on the first call (a minute, 400 MB)."""
    return environment(".venv-nova", HERE / "requirements.txt", "Nova from its package (a minute, 400 MB)") / "python"


class Nova(AbstractContextManager["Nova"]):
    """A running Nova.  Hosts are defined once and then known by name; a claim changes them."""

    def __init__(self, style: Style = "legacy") -> None:
        self.style = style
        self._hosts: dict[str, FleetHost] = {}
        self._process = subprocess.Popen(
            [str(python()), "-W", "ignore", str(HERE / "peer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version: str = self.ask("hello")["nova"]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin
        self._process.stdin.close()
        self._process.wait(timeout=30)

    def ask(self, do: str, **words: Any) -> dict[str, Any]:
        """One request, its answer.  Raises RuntimeError when the other side ended or Nova refused the request."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"do": do, **words}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("the process with Nova in it ended; run bench/openstack/peer.py by hand to see why")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"Nova: {reply['error']}")
        return reply

    def define(self, hosts: Iterable[FleetHost], *, keep: bool = False) -> None:
        known = {host.name: host for host in hosts}
        self._hosts = {**self._hosts, **known} if keep else known
        self.ask("define", hosts=[host_to_nova(host, self.style) for host in known.values()], keep=keep)

    def pack(self, pack: bool) -> None:
        self.ask("config", pack=pack)

    def fit(self, host: str, guest: Request, limit_s: float | None = None) -> dict[str, Any]:
        return self.ask("fit", host=host, guest=guest_to_nova(guest), limit_s=limit_s)

    def place(self, host: str, guest: Request, limit_s: float | None = None) -> dict[str, Any]:
        """Fit and claim; see :meth:`bench.openstack.peer.Peer.place`."""
        return self.ask("place", host=host, guest=guest_to_nova(guest), limit_s=limit_s)

    def filter(self, guest: Request, hosts: Sequence[str] | None = None) -> dict[str, Any]:
        return self.ask("filter", guest=guest_to_nova(guest), hosts=hosts)

    def schedule(self, guest: Request) -> dict[str, Any]:
        return self.ask("schedule", guest=guest_to_nova(guest))

    def seat(self, guest: Request, host: str, reply: dict[str, Any]) -> GuestSeat:
        """The seat that an answer names."""
        return seat_from_nova(guest, self._hosts[host], reply["answer"], reply.get("devices", ()))


# -- to Nova ------------------------------------------------------------------------------------------------------


def host_to_nova(host: FleetHost, style: Style = "legacy") -> dict[str, Any]:
    return {
        "name": host.name,
        "cells": [_cell(node, style) for node in host.nodes],
        "devices": [_device(one) for one in host.functions if not one.busy],
    }


def _cell(node: FleetNode, style: Style) -> dict[str, Any]:
    dedicated = node.cpus - node.housekeeping - node.data_plane
    huge = [room for room in node.pages if room.page_bytes != 4096]
    ordinary = node.memory_bytes - sum(room.free_bytes for room in huge)
    return {
        "id": node.id,
        "socket": node.socket,
        "dedicated": sorted(dedicated),
        "shared": sorted(dedicated if style == "legacy" else node.housekeeping),
        "pinned": sorted(node.busy & dedicated),
        "siblings": [sorted(core) for core in node.cores],
        "memory_mib": node.memory_bytes // MIB,
        "pages": [
            {"size_kib": 4, "total": max(0, ordinary) // 4096},
            *({"size_kib": one.page_bytes // KIB, "total": one.free_bytes // one.page_bytes} for one in huge),
        ],
    }


def product(pool: str) -> str:
    """Four hex digits for a pool: what Nova tells devices apart by."""
    return hashlib.sha256(pool.encode()).hexdigest()[:4]


def _device(one: FleetFunction) -> dict[str, Any]:
    return {
        "address": one.address,
        "vendor": _VENDOR,
        "product": product(one.pool),
        "type": _TYPES[one.type],
        "node": one.node,
        "parent": one.physical_function,
        "network": one.network,
    }


def identity(name: str) -> str:
    """The UUID of a guest: its name where that is one."""
    try:
        return str(uuid.UUID(name))
    except ValueError:
        return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def guest_to_nova(guest: Request) -> dict[str, Any]:
    """A flavor and PCI requests.  Raises NotInNova."""
    if guest.threads not in ("isolate", "require", "prefer"):
        raise NotInNova(f"{guest.name}: threads {guest.threads}")
    if guest.l3 == "require" or guest.max_distance is not None or guest.near or guest.features or guest.networks:
        raise NotInNova(f"{guest.name}: L3 caches, distances, near, features and networks")
    specs = {"hw:cpu_policy": "dedicated", "hw:cpu_thread_policy": guest.threads}
    specs["hw:mem_page_size"] = _PAGES[guest.pages] if isinstance(guest.pages, str) else str(guest.pages // KIB)
    if guest.emulator == "own":
        specs["hw:emulator_threads_policy"] = "isolate"
    specs["hw:numa_nodes"] = str(len(guest.cells))
    first = 0
    for number, cell in enumerate(guest.cells):
        if cell.memory_bytes % MIB:
            raise NotInNova(f"{guest.name}: memory that is no whole number of MiB")
        specs[f"hw:numa_cpus.{number}"] = ",".join(map(str, range(first, first + cell.vcpus)))
        specs[f"hw:numa_mem.{number}"] = str(cell.memory_bytes // MIB)
        first += cell.vcpus
    return {
        "uuid": identity(guest.name),
        "vcpus": first,
        "memory_mib": sum(cell.memory_bytes for cell in guest.cells) // MIB,
        "extra_specs": specs,
        "pci": [
            {
                "id": identity(f"{guest.name}/{number}"),
                "count": wish.count,
                "spec": {
                    **({"vendor_id": _VENDOR, "product_id": product(wish.pool)} if wish.pool is not None else {}),
                    **({"dev_type": _TYPES[wish.type]} if wish.type else {}),
                    **({"physical_network": wish.network} if wish.network else {}),
                },
                "policy": "required" if wish.near == "required" else "preferred",
            }
            for number, wish in enumerate(guest.functions)
        ],
    }


# -- from Nova ----------------------------------------------------------------------------------------------------


def seat_from_nova(guest: Request, host: FleetHost, answer: dict[str, Any], devices: Iterable[str] = ()) -> GuestSeat:
    """``answer``: an InstanceNUMATopology as Nova serialises it.  An isolate guest hides the threads beside it."""
    cells = [cell["nova_object.data"] for cell in answer["nova_object.data"]["cells"]]
    pins = [{int(vcpu): cpu for vcpu, cpu in (cell["cpu_pinning_raw"] or {}).items()} for cell in cells]
    emulator = frozenset(cpu for cell in cells for cpu in cell.get("cpuset_reserved") or ())
    mine = emulator.union(*(one.values() for one in pins))
    cores = [core for node in host.nodes for core in node.cores if core & mine]
    sizes = {cell["pagesize"] for cell in cells if cell["pagesize"]}
    page = max(sizes) * KIB if sizes else None
    return GuestSeat(
        name=guest.name,
        host=host.name,
        nodes=tuple(cell["id"] for cell in cells),
        cpus=tuple(tuple(one[vcpu] for vcpu in sorted(one)) for one in pins),
        idle=frozenset().union(*cores) - mine if guest.threads == "isolate" else frozenset(),
        emulator=emulator if guest.emulator == "own" else frozenset(),
        page_bytes=None if page in (None, 4096) else page,
        functions=tuple(sorted(devices)),
    )
