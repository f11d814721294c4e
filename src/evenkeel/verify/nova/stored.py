"""The objects that Nova stores as JSON in its columns, read into plain dataclasses.  Pure.

Source: nova/objects/numa.py, instance_numa.py, instance_pci_requests.py, pci_device.py of Nova 34.0.0, with the older
versions of the same objects that a live database may still hold.  Must not judge; that is the lint's.
Sizes are MiB and KiB where Nova has them so, and the names say which.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from evenkeel.errors import Where, WrongInput
from evenkeel.verify.nova.dump import Dump, Row


@dataclass(frozen=True)
class Pages:
    size_kib: int
    total: int
    reserved: int
    used: int


@dataclass(frozen=True)
class HostCell:
    """``dedicated``: CPUs that guests may be pinned to; ``pinned``: those that Nova's own books count as taken."""

    id: int
    socket: int | None
    shared: frozenset[int]
    dedicated: frozenset[int]
    pinned: frozenset[int]
    siblings: tuple[frozenset[int], ...]
    memory_mib: int
    pages: tuple[Pages, ...]


@dataclass(frozen=True)
class Node:
    """A compute node."""

    id: int
    host: str
    name: str
    cells: tuple[HostCell, ...]


@dataclass(frozen=True)
class GuestCell:
    """``node``: the host cell that it is on; ``pins``: vCPU -> host CPU; ``reserved``: CPUs of its emulator."""

    node: int
    shared: frozenset[int]
    dedicated: frozenset[int]
    pins: dict[int, int]
    reserved: frozenset[int]
    memory_mib: int
    page_kib: int | None
    policy: str
    threads: str | None


@dataclass(frozen=True)
class DeviceWish:
    id: str | None
    count: int
    vendor: str | None
    product: str | None
    type: str | None
    near: str


@dataclass(frozen=True)
class Device:
    address: str
    vendor: str
    product: str
    type: str
    status: str
    node: int | None
    parent: str | None
    guest: str | None
    wish: str | None


@dataclass(frozen=True)
class Guest:
    """An instance that is on a compute node.  ``page_wish``: ``hw:mem_page_size`` of its flavor."""

    uuid: str
    host: str
    node: str
    state: str
    cells: tuple[GuestCell, ...]
    emulator_own: bool
    page_wish: str | None
    vcpus: int | None
    wishes: tuple[DeviceWish, ...]
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True)
class Cloud:
    """One cell database.  ``lost``: guests on a compute node that is not in it, by uuid."""

    file: str
    nodes: tuple[Node, ...]
    guests: tuple[Guest, ...]
    devices: dict[int, tuple[Device, ...]] = field(default_factory=dict)


def read_cloud(dump: Dump, file: str) -> Cloud:
    """Raises WrongInput, with the table and row, for an object that cannot be read."""
    nodes = tuple(
        _guarded(_node, row, f"compute_nodes {row.get('hypervisor_hostname')}", file) for row in dump["compute_nodes"]
    )
    devices: dict[int, list[Device]] = {}
    held: dict[str, list[Device]] = {}
    for row in dump["pci_devices"]:
        device = _guarded(_device, row, f"pci_devices {row.get('address')}", file)
        if device.status in ("deleted", "removed"):
            continue
        devices.setdefault(row["compute_node_id"], []).append(device)
        if device.guest and device.status in ("allocated", "claimed"):
            held.setdefault(device.guest, []).append(device)
    extra = {row["instance_uuid"]: row for row in dump["instance_extra"]}
    guests = []
    for row in dump["instances"]:
        if row.get("host") is None or row.get("vm_state") in ("deleted", "soft-delete"):
            continue
        both = {**extra.get(row["uuid"], {}), **row}
        guests.append(_guarded(lambda both: _guest(both, held), both, f"instance {row['uuid']}", file))
    return Cloud(file, nodes, tuple(guests), {node: tuple(found) for node, found in devices.items()})


def _guarded(read: Any, row: Row, what: str, file: str) -> Any:
    try:
        return read(row)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WrongInput(
            f"{what}: an object that cannot be read ({type(error).__name__}: {error})",
            where=Where(file),
            hint="the tables as Nova 34 and its forerunners since Liberty store them are understood",
        ) from None


def _data(primitive: dict[str, Any]) -> dict[str, Any]:
    """The fields of a versioned object.  Raises KeyError for one that predates them (before Liberty)."""
    data: dict[str, Any] = primitive["nova_object.data"]
    return data


def _version(primitive: dict[str, Any]) -> tuple[int, ...]:
    return tuple(int(part) for part in primitive["nova_object.version"].split("."))


def _node(row: Row) -> Node:
    text = row.get("numa_topology")
    cells = _data(json.loads(text))["cells"] if text else []
    return Node(row["id"], row["host"], row["hypervisor_hostname"], tuple(_host_cell(_data(cell)) for cell in cells))


def _host_cell(data: dict[str, Any]) -> HostCell:
    shared = frozenset(data["cpuset"])
    dedicated = frozenset(data["pcpuset"]) if "pcpuset" in data else shared  # before version 1.4 there was one set
    siblings = [frozenset(core) for core in data.get("siblings", ())]
    alone = dedicated - frozenset().union(*siblings)
    return HostCell(
        id=data["id"],
        socket=data.get("socket"),
        shared=shared,
        dedicated=dedicated,
        pinned=frozenset(data.get("pinned_cpus", ())),
        siblings=(*siblings, *(frozenset([cpu]) for cpu in sorted(alone))),
        memory_mib=data["memory"],
        pages=tuple(
            Pages(one["size_kb"], one["total"], one.get("reserved", 0), int(one.get("used", 0)))
            for one in map(_data, data.get("mempages", ()))
        ),
    )


def _guest(row: Row, held: dict[str, list[Device]]) -> Guest:
    topology = json.loads(row["numa_topology"]) if row.get("numa_topology") else None
    data = _data(topology) if topology else {"cells": []}
    flavor = _data(json.loads(row["flavor"])["cur"]) if row.get("flavor") else {}
    return Guest(
        uuid=row["uuid"],
        host=row["host"],
        node=row["node"],
        state=row.get("task_state") or row.get("vm_state") or "",
        cells=tuple(_guest_cell(cell) for cell in data["cells"]),
        emulator_own=data.get("emulator_threads_policy") == "isolate",
        page_wish=flavor.get("extra_specs", {}).get("hw:mem_page_size"),
        vcpus=flavor.get("vcpus"),
        wishes=tuple(_wish(one) for one in json.loads(row.get("pci_requests") or "[]")),
        devices=tuple(held.get(row["uuid"], ())),
    )


def _guest_cell(primitive: dict[str, Any]) -> GuestCell:
    data = _data(primitive)
    policy = data.get("cpu_policy") or "shared"
    shared, dedicated = frozenset(data["cpuset"]), frozenset(data.get("pcpuset") or ())
    if policy == "dedicated" and not dedicated and _version(primitive) < (1, 5):
        shared, dedicated = frozenset(), shared  # InstanceNUMATopology._migrate_legacy_dedicated_instance_cpuset
    return GuestCell(
        node=data["id"],
        shared=shared,
        dedicated=dedicated,
        pins={int(vcpu): cpu for vcpu, cpu in (data.get("cpu_pinning_raw") or {}).items()},
        reserved=frozenset(data.get("cpuset_reserved") or ()),
        memory_mib=data["memory"],
        page_kib=data.get("pagesize"),
        policy=policy,
        threads=data.get("cpu_thread_policy"),
    )


def _wish(one: dict[str, Any]) -> DeviceWish:
    specs = one.get("spec") or [{}]
    first = specs[0] if len(specs) == 1 else {}  # alternatives: any of them may have been taken
    return DeviceWish(
        id=one.get("request_id"),
        count=one["count"],
        vendor=first.get("vendor_id"),
        product=first.get("product_id"),
        type=first.get("dev_type"),
        near=one.get("numa_policy") or "legacy",
    )


def _device(row: Row) -> Device:
    return Device(
        address=row["address"],
        vendor=row["vendor_id"],
        product=row["product_id"],
        type=row["dev_type"],
        status=row["status"],
        node=row.get("numa_node"),
        parent=row.get("parent_addr"),
        guest=row.get("instance_uuid"),
        wish=row.get("request_id"),
    )
