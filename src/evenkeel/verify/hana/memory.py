"""Huge pages, strict binding, ballooning and the share of the host's memory.  Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from evenkeel.documents.findings import Check, EvidenceItem
from evenkeel.documents.quantity import format_size
from evenkeel.verify.hana.catalogue import rule
from evenkeel.verify.hana.domain import Element, size_of
from evenkeel.verify.hana.subject import GIB, Guest, Host, cpu_list, cpus

#: What guests may have of the host's memory, in per cent (guide, "Memory sizing").
MOST_PERCENT = 92


def check_memory(guest: Guest) -> Iterator[Check]:
    """What the definition says of memory, host or not."""
    yield _pages(guest)
    yield _equal(guest)
    wrong: list[tuple[Element, str]] = []
    current = guest.domain.first("currentMemory")
    if current is not None and size_of(current) != guest.memory:
        size = size_of(current)
        wrong.append((current, f"current memory is {'unreadable' if size is None else format_size(size)}"))
    yield guest.judge("HANA-BALLOON", "currentMemory as memory", wrong)
    balloon = guest.domain.first("devices/memballoon")
    model = balloon.get("model") if balloon else "not said, so libvirt adds one"
    yield guest.judge(
        "HANA-NO-BALLOON-DEVICE",
        "model none",
        [] if model == "none" else [(guest.domain.nearest("devices/memballoon"), f"model is {model}")],
    )
    backing = guest.domain.nearest("memoryBacking")
    merged = guest.domain.first("memoryBacking/nosharepages") is None
    yield guest.judge("HANA-SHARING", "nosharepages", [(backing, "not said")] if merged else [])


def _pages(guest: Guest) -> Check:
    expected = "1 GiB for every cell"
    pools = guest.domain.all("memoryBacking/hugepages/page")
    place = guest.domain.nearest("memoryBacking/hugepages")
    if guest.domain.first("memoryBacking/hugepages") is None:
        return guest.judge("HANA-PAGES", expected, [(place, "no huge pages")])
    if not pools:
        return guest.judge("HANA-PAGES", expected, [(place, "no page size, so the host's default")])
    wrong = []
    covered: set[int] = set()
    cells = frozenset(cell.id for cell in guest.cells) or frozenset({0})
    for pool in pools:
        # nodeset counts cells of the guest, not nodes of the host; without one the size is for all cells.
        covered |= cpu_list(pool.get("nodeset")) if pool.get("nodeset") else cells
        size = size_of(pool, "size")
        if size != GIB:
            wrong.append((pool, f"pages of {'no readable size' if size is None else format_size(size)}"))
    if left := cells - covered:
        wrong.append((place, f"cell {cpus(left)} has no page size"))
    return guest.judge("HANA-PAGES", expected, wrong)


def _equal(guest: Guest) -> Check:
    sizes = [(cell.element, cell.bytes) for cell in guest.cells] or [(guest.domain.nearest("memory"), guest.memory)]
    wrong = [
        (element, "unreadable" if size is None else f"{format_size(size)} is no whole number of GiB")
        for element, size in sizes
        if not size or size % GIB
    ]
    if len({size for _, size in sizes}) > 1:
        wrong.append((sizes[-1][0], "cells have " + ", ".join(format_size(size or 0) for _, size in sizes)))
    total = sum(size or 0 for _, size in sizes)
    if guest.cells and guest.memory != total:
        wrong.append((guest.domain.nearest("memory"), f"memory is not the {format_size(total)} of its cells"))
    return guest.judge("HANA-EQUAL-CELLS", "equal, in whole GiB", wrong)


def check_binding(guest: Guest, host: Host | None) -> Iterator[Check]:
    expected = "strict, each cell on the node of its vCPUs"
    memory = guest.domain.first("numatune/memory")
    place = guest.domain.nearest("numatune/memory")
    mode = memory.get("mode", "strict") if memory else "not said"  # libvirt: strict is the default
    if memory is None or mode != "strict":
        yield guest.judge("HANA-NODES", expected, [(place, f"mode is {mode}")])
        return
    wrong: list[tuple[Element, str]] = []
    bound = {element.get("cellid"): element for element in guest.domain.all("numatune/memnode")}
    for cell in guest.cells:
        element = bound.get(str(cell.id))
        if element is None:
            if len(guest.cells) > 1:
                wrong.append((place, f"cell {cell.id} has no memnode"))
            continue
        if element.get("mode", "strict") != "strict":
            wrong.append((element, f"mode of cell {cell.id} is {element.get('mode')}"))
    if host is None:
        if wrong:
            yield guest.judge("HANA-NODES", expected, wrong)
        else:
            yield guest.unknown("HANA-NODES", expected, "which node its CPUs are on is not known; name it with --host")
        return
    nodes = frozenset(host.nodes_of(guest.pinned))
    if nodes and cpu_list(memory.get("nodeset")) != nodes:
        wrong.append((memory, f"nodeset is {memory.get('nodeset') or 'not said'}, its CPUs are on {cpus(nodes)}"))
    for cell in guest.cells:
        homes = host.nodes_of(frozenset(cpu for vcpu in cell.vcpus for cpu in guest.pins.get(vcpu, ())))
        element = bound.get(str(cell.id))
        if element is not None and homes and cpu_list(element.get("nodeset")) != frozenset(homes):
            wrong.append(
                (element, f"cell {cell.id} on node {element.get('nodeset')}, its CPUs are on {cpus(frozenset(homes))}")
            )
    yield guest.judge("HANA-NODES", expected, wrong)


def check_share(guests: Sequence[Guest], host: Host | None) -> Iterator[Check]:
    """All guests together against the host.  Which one is too many nobody can say, so each is named."""
    expected = f"at most {MOST_PERCENT} % of the host's memory, all guests together"
    if host is None or not host.facts.memory_bytes:
        reason = "nothing is known of its host" if host is None else "the facts do not know how much memory there is"
        for guest in guests:
            yield guest.unknown("HANA-92-PERCENT", expected, reason)
        return
    total, whole = sum(guest.memory or 0 for guest in guests), host.facts.memory_bytes
    percent = f"{format_size(total >> 20 << 20)} of {format_size(whole >> 20 << 20)}, {100 * total / whole:.1f} %"
    too_much = total * 100 > whole * MOST_PERCENT
    for guest in guests:
        place = guest.domain.nearest("memory")
        yield guest.judge("HANA-92-PERCENT", expected, [(place, percent)] if too_much else [], percent)


def check_pool(guests: Sequence[Guest], host: Host) -> Iterator[Check]:
    """Pages of 1 GiB on each node against what the cells that are bound there need."""
    needs: dict[int, int] = {}
    for guest in guests:
        for cell in guest.cells:
            homes = host.nodes_of(frozenset(cpu for vcpu in cell.vcpus for cpu in guest.pins.get(vcpu, ())))
            if len(homes) == 1 and cell.bytes:
                needs[homes[0]] = needs.get(homes[0], 0) + -(-cell.bytes // GIB)
        nodes = host.nodes_of(guest.pinned)
        if not guest.cells and guest.memory and len(nodes) == 1:
            needs[nodes[0]] = needs.get(nodes[0], 0) + -(-guest.memory // GIB)
    expected = ", ".join(f"node {node}: {count}" for node, count in sorted(needs.items()))
    one = rule("HANA-HOST-PAGES")
    if not needs:
        yield one.not_checked(
            None, "as many as its guests need", "which cell is on which node is not clear (HANA-CELLS)"
        )
        return
    found = {node: host.pages(node) for node in needs}
    if any(number is None for number in found.values()):
        missing = "the kernel of this host offers no pages of 1 GiB"
        place = EvidenceItem(where="/sys/kernel/mm/hugepages", value=missing)
        yield one.judge(False, None, expected, missing, (place,))
        return
    have = ", ".join(f"node {node}: {number}" for node, number in sorted(found.items()))
    evidence = [
        EvidenceItem(
            where=f"/sys/devices/system/node/node{node}/hugepages/hugepages-1048576kB/nr_hugepages",
            value=f"{found[node]}, needed are {count}",
        )
        for node, count in sorted(needs.items())
        if (found[node] or 0) < count
    ]
    yield one.judge(not evidence, None, expected, have, evidence)
