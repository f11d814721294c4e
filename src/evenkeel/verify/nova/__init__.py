"""Nova lint: what a live Nova promised its guests against what it stored, judged by the checker of placements.  Pure.

:func:`lint` takes databases that :mod:`dump` and :mod:`stored` have read.  Nova 34.0.0 stores places that break the
request (docs/explanation/nova.md); a claim that raises leaves the instance stored with its host and its pins too,
because ``instance_claim`` saves it before it counts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.findings import Check, EvidenceItem, Findings, ranked
from evenkeel.placement_check import check_placement
from evenkeel.verify.nova.catalogue import FAULTS, Fault, kind_of
from evenkeel.verify.nova.dump import read_dump
from evenkeel.verify.nova.seats import as_plan, guest_of
from evenkeel.verify.nova.stored import Cloud, Guest, HostCell, Node, read_cloud

_MOVING = ("migrating", "resize_prep", "resize_migrating", "resize_migrated", "resize_finish", "resized")


@dataclass(frozen=True)
class _Found:
    """One broken promise.  ``about``: the guest or the compute node."""

    fault: Fault
    about: str
    texts: tuple[str, ...]
    evidence: tuple[EvidenceItem, ...]
    guest: str | None


def read(text: str, file: str) -> Cloud:
    """A dump.  Raises WrongInput."""
    return read_cloud(read_dump(text, file), file)


def lint(clouds: Iterable[Cloud]) -> Findings:
    """Findings first, the worst on top; then what could not be checked; then what is well."""
    clouds = tuple(clouds)
    found = [one for cloud in clouds for one in _faults(cloud)]
    found.sort(key=lambda one: (FAULTS.index(one.fault), one.about))
    bound = sum(bool(guest.cells) for cloud in clouds for guest in cloud.guests)
    hit = {one.fault.id for one in found}
    checks = [*(_failed(one) for one in found), *(_clear(fault, bound) for fault in FAULTS if fault.id not in hit)]
    nodes = sum(len(cloud.nodes) for cloud in clouds)
    return Findings(
        host=f"{nodes} compute node{'s' * (nodes != 1)}, {bound} guest{'s' * (bound != 1)} bound to NUMA nodes",
        kernel="",
        checks=ranked(checks),
    )


def _failed(one: _Found) -> Check:
    return Check(
        id=f"{one.fault.id}:{one.about}",
        subject=one.fault.subject,
        title=one.fault.healthy,
        status="failed",
        expected=one.fault.healthy,
        observed="; ".join(one.texts),
        evidence=one.evidence,
        severity=one.fault.severity,
        why=one.fault.why,
        fix=one.fault.fix,
        guest=one.guest,
    )


def _clear(fault: Fault, bound: int) -> Check:
    return Check(
        id=fault.id,
        subject=fault.subject,
        title=fault.healthy,
        status="passed" if bound else "not_checked",
        expected=fault.healthy,
        observed="nothing found" if bound else "",
        severity=fault.severity,
        why=fault.why,
        fix=fault.fix,
        reason="" if bound else "no guest in the dump is bound to NUMA nodes",
    )


def _faults(cloud: Cloud) -> Iterator[_Found]:
    nodes = {node.name: node for node in cloud.nodes}
    guests = {guest.uuid: guest for guest in cloud.guests}
    merged: dict[tuple[str, str], list[str]] = {}
    kinds: dict[str, Fault] = {}
    for sentence in check_placement(as_plan(cloud).model_dump(mode="json")):
        about, colon, text = sentence.partition(": ")
        if not colon or (guest_of(about) not in guests and about not in nodes):
            about, text = cloud.file, sentence
        fault = kind_of(text)
        kinds[fault.id] = fault
        if about in nodes and (named := _named(text, guests)):  # two guests that are in each other's way
            about, text = named[0].uuid, f"{text}, on {about}"
        merged.setdefault((fault.id, guest_of(about)), []).append(text)
    for (kind, about), texts in merged.items():
        if about in guests:
            whose = dict.fromkeys([about, *(one.uuid for one in _named(" ".join(texts), guests))])
            evidence = tuple(item for uuid in whose for item in _of_guest(guests[uuid]))
        else:
            evidence = _of_node(nodes.get(about), texts, cloud)
        guest = about if about in guests else None
        yield _Found(kinds[kind], about, tuple(map(_readable, texts)), evidence, guest)
    yield from _books(cloud)
    yield from _strays(cloud)


_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def _named(text: str, guests: dict[str, Guest]) -> list[Guest]:
    return [guests[uuid] for uuid in dict.fromkeys(_UUID.findall(text)) if uuid in guests]


def _readable(text: str) -> str:
    text = re.sub(r"(\d+) bytes", lambda match: _size(int(match[1])), text)
    text = re.sub(r"(pages of|room for|offers) (\d{4,})", lambda match: f"{match[1]} {_size(int(match[2]))}", text)
    return re.sub(r"\[(\d+(?:, \d+)*)\]", lambda match: format_cpus(map(int, match[1].split(", "))), text)


def _size(number: int) -> str:
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if number and number % unit == 0:
            return f"{number // unit} {name}"
    return f"{number} bytes"


def _of_guest(guest: Guest) -> tuple[EvidenceItem, ...]:
    """What Nova stored for a guest, cell by cell, and its devices."""
    items = []
    for number, cell in enumerate(guest.cells):
        pins = ", ".join(f"{vcpu}>{cpu}" for vcpu, cpu in sorted(cell.pins.items())) or "none"
        text = f"node {cell.node}, {cell.policy} {cell.threads or ''}".strip()
        text += f", dedicated vCPUs {format_cpus(cell.dedicated) or 'none'}, pins {pins}"
        text += f", emulator on {format_cpus(cell.reserved)}" if cell.reserved else ""
        text += f", {cell.memory_mib} MiB" + (f" in pages of {_size(cell.page_kib << 10)}" if cell.page_kib else "")
        items.append(EvidenceItem(where=f"instance {guest.uuid} on {guest.node}, cell {number}", value=text))
    for device in guest.devices:
        wish = next((one for one in guest.wishes if one.id == device.wish), None)
        policy = f", asked for as {wish.near}" if wish else ""
        items.append(
            EvidenceItem(
                where=f"instance {guest.uuid}, device {device.address}",
                value=f"node {'unknown' if device.node is None else device.node}{policy}",
            )
        )
    return tuple(items)


def _of_node(node: Node | None, texts: Iterable[str], cloud: Cloud) -> tuple[EvidenceItem, ...]:
    """Who is on the cells of a host that a sentence names, the largest first."""
    if node is None:
        return ()
    named = {int(number) for text in texts for number in re.findall(r"\bnode (\d+)", text)}
    here = [
        (cell.memory_mib, guest, cell)
        for guest in cloud.guests
        if guest.node == node.name
        for cell in guest.cells
        if cell.node in named
    ]
    here.sort(key=lambda one: (-one[0], one[1].uuid))
    return tuple(
        EvidenceItem(
            where=f"instance {guest.uuid} on {node.name}, node {cell.node}",
            value=f"{memory} MiB" + (f" in pages of {_size(cell.page_kib << 10)}" if cell.page_kib else ""),
        )
        for memory, guest, cell in here
    )


def _books(cloud: Cloud) -> Iterator[_Found]:
    """Nova's own count of what is pinned and which pages are used, against the sum of its guests."""
    fault = next(one for one in FAULTS if one.id == "N-BOOKS")
    for node in cloud.nodes:
        mine = [guest for guest in cloud.guests if (guest.host, guest.node) == (node.host, node.name)]
        if any(guest.state in _MOVING for guest in mine):
            continue  # room on both hosts is as it should be
        texts, items = [], []
        for cell in node.cells:
            pinned = _pinned(cell, mine)
            for cpus, words in ((cell.pinned - pinned, "pinned and nobody's"), (pinned - cell.pinned, "not pinned")):
                if cpus:
                    texts.append(f"CPU {format_cpus(cpus)} of node {cell.id} is in the books as {words}")
            for page in cell.pages:
                held = sum(
                    one.memory_mib * 1024 // page.size_kib
                    for guest in mine
                    for one in guest.cells
                    if one.node == cell.id
                    and (one.page_kib or min(other.size_kib for other in cell.pages)) == page.size_kib
                )
                if held != page.used:
                    size = _size(page.size_kib << 10)
                    texts.append(f"{page.used} pages of {size} on node {cell.id} are in the books, guests have {held}")
            if texts:
                where = f"compute_nodes {node.name}, cell {cell.id}"
                items.append(EvidenceItem(where=where, value=f"pinned {format_cpus(cell.pinned) or 'none'}"))
        if texts:
            yield _Found(fault, node.name, tuple(texts), tuple(items), None)


def _pinned(cell: HostCell, guests: Iterable[Guest]) -> frozenset[int]:
    """As ``numa_usage_from_instance_numa`` counts: with the siblings of an isolate guest."""
    cpus: set[int] = set()
    for guest in guests:
        for one in guest.cells:
            if one.node == cell.id and one.policy != "shared":
                own = one.reserved.union(one.pins.values())
                if one.threads == "isolate":
                    own = frozenset().union(*(core for core in cell.siblings if core & own))
                cpus |= own
    return frozenset(cpus)


def _strays(cloud: Cloud) -> Iterator[_Found]:
    lost = next(one for one in FAULTS if one.id == "N-NO-HOST")
    moving = next(one for one in FAULTS if one.id == "N-MOVING")
    known = {(node.host, node.name) for node in cloud.nodes}
    for guest in cloud.guests:
        if guest.cells and (guest.host, guest.node) not in known:
            text = f"it is on {guest.node or 'no node'} of {guest.host}, which is not in {cloud.file}"
            yield _Found(lost, guest.uuid, (text,), _of_guest(guest), guest.uuid)
        if guest.cells and guest.state in _MOVING:
            yield _Found(moving, guest.uuid, (f"its state is {guest.state}",), (), guest.uuid)
