"""Guests of a site as what they ask of a host.  Pure; the goal decides, as :mod:`evenkeel.plan.placement` has it."""

from __future__ import annotations

from collections.abc import Mapping

from evenkeel.documents.fleet import CellRequest, FunctionRequest, Request, Seat, Threads
from evenkeel.documents.site import GuestWish, Site
from evenkeel.plan.cells import even
from evenkeel.plan.cores import PINNED
from evenkeel.plan.passthrough import pci_address

THREADS: Mapping[str, Threads] = {
    "realtime": "isolate",
    "performance": "whole",
    "balanced": "float",
    "flexible": "overcommit",
}


def requests_of(site: Site, now: Mapping[str, Seat]) -> tuple[Request, ...]:
    """All guests of a site, in the order of their names.  ``now``: where they sit, as far as that is known."""
    only = next(iter(site.hosts)) if len(site.hosts) == 1 else None
    return tuple(request_of(name, wish, only, now.get(name)) for name, wish in sorted(site.guests.items()))


def request_of(name: str, wish: GuestWish, only: str | None = None, now: Seat | None = None) -> Request:
    """``only``: the one host of the site; None: there are several."""
    host, place = wish.host or only, wish.place
    features = {*place.features, "kvm", "libvirt", "qemu"} | ({"preempt-rt"} if wish.goal == "realtime" else set())
    cells = wish.cells
    if not cells:
        count = wish.numa if isinstance(wish.numa, int) else 1
        cells = even(wish, count) or ()
    near = wish.near
    if near is not None and near.count(":") == 1:
        near = pci_address(near)
    return Request(
        name=name,
        owner=place.owner,
        goal=wish.goal,
        priority=place.priority,
        value=worth(wish),
        architecture=wish.architecture,
        features=tuple(sorted(features)),
        cells=tuple(CellRequest(vcpus=cell.vcpus, memory_bytes=cell.memory) for cell in cells),
        cut=wish.numa == "auto" and wish.goal in PINNED,
        threads=THREADS[wish.goal],
        pages=wish.page_size
        or ("ordinary" if wish.goal == "flexible" else "huge-smallest" if wish.goal == "balanced" else "huge-largest"),
        l3=place.l3,
        max_distance=place.max_distance,
        near=near,
        functions=tuple(
            FunctionRequest(pool=one.pool, type=one.type, network=one.network, count=one.count, near=one.near)
            for one in place.functions
        ),
        networks=tuple(sorted(place.networks)),
        apart=tuple(sorted(place.apart)),
        apart_racks=tuple(sorted(place.apart_racks)),
        together=tuple(sorted(place.together)),
        hosts=() if host is None else (host,),
        now=now,
        movable=not place.stay,
    )


def worth(wish: GuestWish) -> int:
    """What placing a guest counts for where not all fit: its vCPUs, whole cores twice."""
    return wish.vcpus * (2 if wish.goal == "realtime" else 1)
