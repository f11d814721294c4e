"""PCI functions for guests: which a host offers, what keeps one from being given, and exactly which each guest gets.

Placing (:mod:`evenkeel.plan.fleet`) chooses functions; here the plan of a host takes them over and refuses what cannot
run.  VFIO gives an IOMMU group to one guest as a whole: QEMU does not start while a driver of the host has any function
of the group (kernel: driver-api/vfio.rst, "groups").  So the rest of a group goes along with the function that was
asked for.  Bridges are not counted: their driver may stay.  Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from xml.etree import ElementTree as ET

from evenkeel.documents.facts import Facts, PciFunction
from evenkeel.documents.site import GuestWish, HostWish
from evenkeel.plan.problems import Problems, did_you_mean

#: PCI-to-PCI and host bridges: functions that VFIO lets stay with the host beside a guest's.
_BRIDGES = ("0600", "0604")


@dataclass(frozen=True)
class Passed:
    """What one guest gets.  ``managed``: libvirt takes functions from their driver at the start and gives them back."""

    functions: tuple[str, ...] = ()
    managed: bool = True


NOTHING = Passed()


@dataclass(frozen=True)
class Offer:
    """A function that its owner offers.  ``why_not``: what keeps any guest from having it now; "": nothing."""

    pci: PciFunction
    pool: str | None
    network: str | None
    why_not: str = ""


def pci_address(text: str) -> str:
    """With its domain, which may be left out when it is 0."""
    return text if text.count(":") == 2 else f"0000:{text}"


def passed_in(domain: ET.Element) -> tuple[str, ...]:
    """Addresses of the PCI functions in a domain definition, sorted: as host devices, or as interfaces on one."""
    sources = [
        *domain.findall("devices/hostdev[@type='pci']/source/address"),
        *domain.findall("devices/interface[@type='hostdev']/source/address"),
    ]
    found = set()
    for source in sources:
        try:
            part = {key: int(source.get(key, "0"), 0) for key in ("domain", "bus", "slot", "function")}
        except ValueError:  # no address of a machine
            continue
        found.add("{domain:04x}:{bus:02x}:{slot:02x}.{function:x}".format(**part))
    return tuple(sorted(found))


def held_by_others(facts: Facts, known: Collection[str]) -> dict[str, str]:
    """Address -> guest, of guests that libvirt has defined on the host and the site does not know."""
    found: dict[str, str] = {}
    for definition in facts.definitions:
        if definition.guest in known:
            continue
        try:
            domain = ET.fromstring(definition.xml)
        except ET.ParseError:
            continue
        found.update(dict.fromkeys(passed_in(domain), definition.guest))
    return found


def offers(facts: Facts, wish: HostWish, known: Collection[str]) -> dict[str, Offer]:
    """Address -> function, of those in a pool, those with a wire, and virtual functions of either.

    ``known``: guests of the site, whose definitions on the host hold nothing back.
    """
    pool_of = {pci_address(one): pool for pool, addresses in sorted(wish.place.pools.items()) for one in addresses}
    card_of = {nic.name: nic.pci for nic in facts.nics if nic.pci}
    wire_of = {card_of.get(name, pci_address(name)): wire for name, wire in sorted(wish.place.wires.items())}
    found: dict[str, Offer] = {}
    for pci in facts.pci:
        parent = pci.physical_function
        pool, wire = (table.get(pci.address) or (table.get(parent) if parent else None) for table in (pool_of, wire_of))
        # A function that is divided is not given away itself; its virtual functions are.
        if (pool is not None or wire is not None) and not pci.sriov_vfs:
            found[pci.address] = Offer(pci, pool, wire)
    others = held_by_others(facts, known)
    return {
        address: Offer(one.pci, one.pool, one.network, _why_not(one.pci, facts, wish, found, others))
        for address, one in found.items()
    }


def unknown_functions(host: str, wish: HostWish, facts: Facts) -> list[str]:
    """A sentence for each name under `pools` and `wires` that the host does not have, and that counts for nothing."""
    names = {nic.name for nic in facts.nics} | {pci.address for pci in facts.pci}
    named = [("wires", name) for name in wish.place.wires]
    named += [("pools", address) for addresses in wish.place.pools.values() for address in addresses]
    return [
        f"host {host}: place: {key}: it has no network interface or PCI function {name}"
        + (f" ({hint})" if (hint := did_you_mean(name, names)) else "")
        for key, name in sorted(named)
        if name not in names and pci_address(name) not in names
    ]


def _why_not(
    pci: PciFunction, facts: Facts, wish: HostWish, offered: Mapping[str, Offer], others: Mapping[str, str]
) -> str:
    for one in _group(pci, facts):
        of_it = "" if one.address == pci.address else f"IOMMU group {pci.iommu_group} has {one.address} too, and "
        if one.address in others:
            return f"{of_it}guest {others[one.address]}, which the site does not know, has it"
        if wish.place.vfio == "bound" and one.address in offered and not _is_vfio(one):
            return f"{of_it}its driver is {one.driver or 'none'}, not vfio-pci, to which the site says it is bound"
        if one.address not in offered and one.driver and not _is_vfio(one):
            return f"{of_it}the host uses that by its driver {one.driver}"
    return ""


def _group(pci: PciFunction, facts: Facts) -> list[PciFunction]:
    """The functions that go with this one, itself first."""
    if pci.iommu_group is None:
        return [pci]
    group = [one for one in facts.pci if one.iommu_group == pci.iommu_group and one.address != pci.address]
    return [pci, *(one for one in group if not one.class_code.startswith(_BRIDGES))]


def _is_vfio(pci: PciFunction) -> bool:
    """Whether its driver is for guests: vfio-pci, its like of a vendor (mlx5_vfio_pci), or one that only holds it."""
    return pci.driver is not None and ("vfio" in pci.driver or pci.driver == "pci-stub")


def pass_functions(
    host: str,
    wish: HostWish,
    facts: Facts,
    guests: Mapping[str, GuestWish],
    chosen: Mapping[str, tuple[str, ...]],
    known: Collection[str],
    problems: Problems,
) -> dict[str, Passed]:
    """What each guest of a host gets, by name: the functions that were chosen, and the rest of their IOMMU groups.

    A function that cannot be given, and a group that two guests would share, is a problem.
    """
    there = {pci.address: pci for pci in facts.pci}
    offered = offers(facts, wish, known)
    managed = wish.place.vfio == "managed"
    found: dict[str, Passed] = {}
    owner: dict[str, str] = {}
    for name, guest in sorted(guests.items()):
        mine = chosen.get(name, ())
        about = f"guest {name}"
        if len(mine) != (wanted := sum(one.count for one in guest.place.functions)):
            problems.add(
                about,
                f"it is to have {wanted} PCI function{'s' * (wanted != 1)}, and {len(mine)} are chosen",
                "place the site first: evenkeel place, or evenkeel plan with the whole site",
            )
        whole: set[str] = set()
        for address in mine:
            if address not in there:
                problems.add(about, f"it is to have PCI function {address}, which host {host} does not have")
            elif address not in offered:
                problems.add(
                    about,
                    f"it is to have PCI function {address}, which host {host} does not offer",
                    "name it under `pools` or `wires` of the host",
                )
            elif why_not := offered[address].why_not:
                problems.add(
                    about,
                    f"it cannot have PCI function {address}: {why_not}",
                    "an IOMMU group goes to one guest as a whole: name all of it under `pools`, or take another",
                )
            else:
                whole |= {one.address for one in _group(there[address], facts) if one.address in offered}
        for address in sorted(whole):
            other = owner.setdefault(address, name)
            if other != name:
                group = there[address].iommu_group
                problems.add(
                    about,
                    f"it cannot have {', '.join(mine)}: guest {other} has IOMMU group {group}, and a group is not "
                    "divided"
                    if group is not None
                    else f"it cannot have {address}: guest {other} has it",
                )
        found[name] = Passed(tuple(sorted(whole)), managed)
    return found
