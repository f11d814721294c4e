"""Who owns which ways of the L3 caches: the ledger of Intel RDT and AMD QoS.  Pure.

The CPU ledger keeps the host off a real-time guest's cores; without this one every other core may still throw its
lines out of the cache that they share.  A realtime guest gets ways of its own at one end of each L3 that its real-time
vCPUs use; everybody else keeps the rest, which stays in one piece (Intel takes no mask with holes before Linux 6.7).

libvirt places the guests: at a start it takes the first gap among the ways that no group has, the default group
included (virResctrlAllocGetUnused() in libvirt's virresctrl.c).  So the default group must have left them before, and
the order in which guests start decides who gets which of the exclusive ways; how many is decided here.
Source: kernel filesystems/resctrl.rst; reference host-tuning H-RDT, G-13.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Cache, DividedCache, Facts, Resctrl
from evenkeel.documents.quantity import format_size
from evenkeel.plan.placement import Placement
from evenkeel.plan.problems import Problems

#: One way alone is direct-mapped: two hot lines of one set throw each other out ([P], a judgement).
LEAST_WAYS = 2
#: With code and data prioritisation (CDP) there are two resources, and both are divided alike.
_LEVEL3 = ("L3", "L3CODE", "L3DATA")
#: What libvirt calls the group of a guest's vCPUs: qemu-1-plc-vcpus_1.
_LIBVIRT = re.compile(r"qemu-\d+-(.+)-vcpus_[\d,^-]+")


@dataclass(frozen=True)
class Share:
    """What one guest has of one L3: ``ways`` of it, ``size_bytes`` in all, for its real-time vCPUs."""

    guest: str
    cache: int  # the number that resctrl and libvirt know the L3 by
    ways: int
    size_bytes: int
    vcpus: frozenset[int]


@dataclass(frozen=True)
class WayLedger:
    """Ways of a host.  ``rest``: L3 -> mask that the default group, which is everybody else, keeps.

    ``resources``: names in resctrl that are divided alike: L3, or L3CODE and L3DATA.
    """

    resources: tuple[str, ...] = ()
    shares: tuple[Share, ...] = ()
    rest: Mapping[int, int] = field(default_factory=dict)

    def of(self, guest: str) -> tuple[Share, ...]:
        return tuple(share for share in self.shares if share.guest == guest)

    @property
    def types(self) -> tuple[str, ...]:
        """The resources as libvirt names them: ``both``, or ``code`` and ``data``."""
        return tuple({"L3": "both", "L3CODE": "code", "L3DATA": "data"}[name] for name in self.resources)

    def exclusive(self, cache: int, full: int) -> int:
        """The ways of an L3 that only guests have."""
        return full & ~self.rest[cache]


def divisible(facts: Facts) -> tuple[DividedCache, ...]:
    """The L3 resources that can be divided; empty: none, or nobody mounted resctrl."""
    if facts.resctrl is None:
        return ()
    return tuple(cache for cache in facts.resctrl.caches if cache.name in _LEVEL3)


def share_ways(host: str, facts: Facts, placements: Sequence[Placement], problems: Problems) -> WayLedger:
    """Exclusive ways for the real-time vCPUs of every realtime guest.  Empty where the machine cannot.

    Each gets ways for what its owner asks for (``l3``), or in the proportion of its cores among those of the L3; at
    least :data:`LEAST_WAYS` and what the hardware wants.  What does not fit is a problem that names who is in the way.
    """
    resources = divisible(facts)
    realtime = [placement for placement in placements if placement.goal == "realtime" and placement.fifo_cpus]
    if not resources or not realtime or facts.resctrl is None:
        return WayLedger()
    names = {placement.name for placement in realtime}
    _check_classes(host, facts.resctrl, resources, names, problems)
    full = _common(resource.mask for resource in resources)
    least = max(LEAST_WAYS, *(resource.least_bits for resource in resources))
    shares: list[Share] = []
    rest: dict[int, int] = {}
    for cache in facts.caches:
        users = [placement for placement in realtime if placement.fifo_cpus & cache.cpus]
        if cache.level != 3 or cache.id is None or not cache.size_bytes or not users:
            continue
        way_bytes = cache.size_bytes // full.bit_count()
        wanted = {
            user.name: _needed(user.wish.l3, way_bytes, least)
            if user.wish.l3 is not None
            else _proportional(user, cache, full.bit_count(), least, facts.online)
            for user in users
        }
        occupied = _occupied(facts.resctrl, resources, cache.id, names)
        taken = _any(resource.shareable for resource in resources)
        for mask in occupied.values():
            taken |= mask
        ways = _at_one_end(full, taken, sum(wanted.values()))
        if ways is None or (full & ~ways).bit_count() < least:
            _no_room(host, cache, full, wanted, occupied, least, problems)
            continue
        rest[cache.id] = full & ~ways
        shares += [
            Share(
                guest=user.name,
                cache=cache.id,
                ways=wanted[user.name],
                size_bytes=wanted[user.name] * way_bytes,
                vcpus=frozenset(v.index for v in user.vcpus if v.policy == "fifo"),
            )
            for user in users
        ]
    return WayLedger(tuple(resource.name for resource in resources), tuple(shares), rest)


def is_groups_guest(group: str, guests: set[str]) -> bool:
    """Whether a resctrl group is the one that libvirt made for one of these guests.

    libvirt drops characters from the names of machines, so only letters and digits are compared.
    """
    match = _LIBVIRT.fullmatch(group)
    return match is not None and _plain(match[1]) in {_plain(guest) for guest in guests}


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9]", "", name)


def _needed(size: int, way_bytes: int, least: int) -> int:
    """As many ways as hold what the owner asks for."""
    return max(least, -(-size // way_bytes))


def _proportional(placement: Placement, cache: Cache, ways: int, least: int, online: frozenset[int]) -> int:
    """In proportion to the cores that its real-time vCPUs take of this L3, rounded up."""
    vcpus = [vcpu for vcpu in placement.vcpus if vcpu.policy == "fifo" and vcpu.cpus & cache.cpus]
    mine = len(vcpus) * (1 + len(placement.idle) // max(1, len(placement.vcpus)))
    return max(least, -(-ways * mine // max(1, len(cache.cpus & online))))


def _at_one_end(full: int, taken: int, count: int) -> int | None:
    """``count`` free ways at the low or the high end of the cache, so that the rest stays in one piece; None: no room.

    The end with more free ways; of equals the low one, since devices use the high ways on Intel's servers.
    """
    bits = [bit for bit in range(full.bit_length()) if full >> bit & 1]
    best: list[int] = []
    for order in (bits, bits[::-1]):
        free: list[int] = []
        for bit in order:
            if taken >> bit & 1:
                break
            free.append(bit)
        if len(free) > len(best):
            best = free
    if len(best) < count:
        return None
    return sum(1 << bit for bit in best[:count])


def _occupied(resctrl: Resctrl, resources: Sequence[DividedCache], cache: int, ours: set[str]) -> dict[str, int]:
    """Ways of an L3 that groups of somebody else have, by group."""
    found: dict[str, int] = {}
    for group in resctrl.groups:
        if group.name and not is_groups_guest(group.name, ours):
            mask = _any(group.schemata.get(resource.name, {}).get(cache, "0") for resource in resources)
            if mask:
                found[group.name] = mask
    return found


def _check_classes(
    host: str, resctrl: Resctrl, resources: Sequence[DividedCache], guests: set[str], problems: Problems
) -> None:
    """A class of service for each group: the default one, those of others, one for each of our guests."""
    others = sorted(g.name for g in resctrl.groups if g.name and not is_groups_guest(g.name, guests))
    limits = [resource.closids for resource in resources]
    if resctrl.bandwidth is not None:
        limits.append(resctrl.bandwidth.closids)
    free = min(limits) - 1 - len(others)
    if len(guests) > free:
        theirs = f", {len(others)} of somebody else ({', '.join(others[:4])})" if others else ""
        problems.add(
            f"host {host}",
            f"{len(guests)} realtime guests ({', '.join(sorted(guests))}) need a class of cache service each, and "
            f"{max(0, free)} are left: the CPU has {min(limits)}, one is the host's own{theirs}",
            "move guests to another host, or share the cache: overrides: { H-RDT: { off: true, because: ... } }",
        )


def _no_room(
    host: str,
    cache: Cache,
    full: int,
    wanted: Mapping[str, int],
    occupied: Mapping[str, int],
    least: int,
    problems: Problems,
) -> None:
    who = ", ".join(f"{name} {ways}" for name, ways in sorted(wanted.items()))
    theirs = "; ".join(f"the group {name} has {mask:x}" for name, mask in sorted(occupied.items()))
    size = f" ({format_size(cache.size_bytes)})" if cache.size_bytes else ""
    problems.add(
        f"host {host}",
        f"the L3 of CPUs {format_cpus(cache.cpus)}{size} has {full.bit_count()} ways, the realtime guests there want "
        f"{who}, and {least} must stay with the host at the other end of it" + (f"; {theirs}" if theirs else ""),
        "put fewer realtime guests on this L3, remove groups that nobody needs, or share the cache: "
        "overrides: { H-RDT: { off: true, because: ... } }",
    )


def _any(masks: Iterable[str]) -> int:
    """Ways that are in one of these hexadecimal masks."""
    found = 0
    for mask in masks:
        found |= _hexadecimal(mask)
    return found


def _common(masks: Iterable[str]) -> int:
    """Ways that are in all of them."""
    found = -1
    for mask in masks:
        found &= _hexadecimal(mask)
    return found


def _hexadecimal(text: str) -> int:
    """A mask as the kernel prints it; a group being pseudo-locked prints ``uninitialized``, which has no way yet."""
    try:
        return int(text, 16)
    except ValueError:
        return 0
