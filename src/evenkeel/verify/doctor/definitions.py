"""Ailments of libvirt domain definitions: what libvirt would refuse, and what means something else than it says.

Above all: ``nodeset`` of ``<page>`` counts the guest's own cells, ``nodeset`` of ``<memory>`` and ``<memnode>`` the
nodes of the host.  libvirt's own real-time guide confuses the two.  Source: reference host-tuning §0.4 (measured with
libvirt 9.0), §2.6; libvirt's formatdomain.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from evenkeel.documents.cpuset import format_cpus
from evenkeel.verify.doctor.ailment import Ailment, Symptom, item
from evenkeel.verify.doctor.patient import Domain, Patient, libvirt_set, pins, priorities, vcpu_count, vcpu_pins

#: libvirt's units to bytes; without one, KiB.
_UNITS = {"b": 1, "bytes": 1, "kb": 1000, "k": 1024, "kib": 1024, "mb": 1000**2, "m": 1 << 20, "mib": 1 << 20}
_UNITS |= {"gb": 1000**3, "g": 1 << 30, "gib": 1 << 30, "tb": 1000**4, "t": 1 << 40, "tib": 1 << 40}


@dataclass(frozen=True)
class Pages:
    """Huge pages that a cell of a guest needs.  ``nodes``: of the host, empty: any; ``strict``: no others."""

    cell: int
    page: int  # bytes
    count: int
    nodes: frozenset[int]
    strict: bool


@dataclass(frozen=True)
class _Cell:
    id: int
    cpus: frozenset[int]
    memory: int  # bytes


def _size(element: ET.Element | None, key: str | None = None) -> int | None:
    if element is None:
        return None
    text = (element.get(key) if key else element.text) or ""
    factor = _UNITS.get(element.get("unit", "KiB").lower())
    return int(text.strip()) * factor if text.strip().isdecimal() and factor else None


def _cells(root: ET.Element) -> list[_Cell]:
    """The guest's NUMA cells; one without a number has that of its place."""
    found = []
    for place, cell in enumerate(root.findall("cpu/numa/cell")):
        number = cell.get("id", str(place))
        found.append(
            _Cell(
                int(number) if number.isdecimal() else place,
                libvirt_set(cell.get("cpus")) or frozenset(),
                _size(cell, "memory") or 0,
            )
        )
    return found


def _nodes_of_cell(root: ET.Element, cell: int) -> tuple[frozenset[int], bool]:
    """(nodes of the host, whether strictly) that the memory of a cell comes from; no nodes: from anywhere."""
    for element in [*root.findall(f"numatune/memnode[@cellid='{cell}']"), *root.findall("numatune/memory")]:
        nodes = libvirt_set(element.get("nodeset"))
        if nodes:
            return nodes, element.get("mode", "strict") in ("strict", "restrictive")
    return frozenset(), False


def pages_of(domain: Domain) -> list[Pages]:
    """The huge pages of known size that a guest will take.  Empty: none, or they cannot be told."""
    root = domain.root
    if root is None or root.find("memoryBacking/hugepages") is None:
        return []
    cells = _cells(root) or [_Cell(0, frozenset(), _size(root.find("memory")) or 0)]
    found = []
    for cell in cells:
        page = _page_of_cell(root, cell.id)
        if page:
            nodes, strict = _nodes_of_cell(root, cell.id)
            found.append(Pages(cell.id, page, -(-cell.memory // page), nodes, strict))
    return found


def _page_of_cell(root: ET.Element, cell: int) -> int | None:
    rest = None
    for page in root.findall("memoryBacking/hugepages/page"):
        nodeset = page.get("nodeset")
        if nodeset is None:
            rest = _size(page, "size")
        elif cell in (libvirt_set(nodeset) or ()):
            return _size(page, "size")
    return rest


# -- what libvirt refuses --------------------------------------------------------------------------------------------


def _refused(patient: Patient) -> Iterable[Symptom]:
    for domain in patient.domains:
        definition = domain.definition
        if domain.root is None:
            yield Symptom(
                f"guest {definition.guest}: not XML: {domain.error}",
                (item(definition.path, domain.error),),
                guest=definition.guest,
            )
            continue
        for place, value, text in _reasons(domain.root, patient):
            yield Symptom(
                f"guest {definition.guest}: {text}",
                (item(f"{definition.path}: {place}", value),),
                guest=definition.guest,
            )


def _reasons(root: ET.Element, patient: Patient) -> Iterator[tuple[str, str, str]]:
    """(place, value, why libvirt refuses it)."""
    count = vcpu_count(root)
    scheduled: frozenset[int] = frozenset()
    for schedule in root.findall("cputune/vcpusched"):
        text = schedule.get("vcpus", "")
        numbers = libvirt_set(text) or frozenset()
        beyond = {number for number in numbers if number >= count}
        if beyond:
            yield "cputune/vcpusched", text, f"<vcpusched> names vCPU {format_cpus(beyond)}, there are {count}"
        if numbers & scheduled:
            yield "cputune/vcpusched", text, f"vCPU {format_cpus(numbers & scheduled)} is scheduled twice"
        scheduled |= numbers
        priority = schedule.get("priority", "")
        if schedule.get("scheduler") in ("fifo", "rr") and not (priority.isdecimal() and 1 <= int(priority) <= 99):
            yield "cputune/vcpusched", priority or "(none)", "a real-time scheduler needs a priority from 1 to 99"
    seen: set[str] = set()
    for pin in root.findall("cputune/vcpupin"):
        number = pin.get("vcpu", "")
        if number in seen:
            yield "cputune/vcpupin", number, f"vCPU {number} is pinned twice"
        seen.add(number)
    cells = _cells(root)
    known = {cell.id for cell in cells}
    for page in root.findall("memoryBacking/hugepages/page"):
        nodes = libvirt_set(page.get("nodeset"))
        missing = (nodes or frozenset()) - (known or {0})
        if missing:
            has = f"cells {format_cpus(known)}" if known else "no NUMA cells, so cell 0 only"
            yield (
                "memoryBacking/hugepages/page",
                f"nodeset={page.get('nodeset')}",
                f"<page nodeset> names cell {format_cpus(missing)}; these are cells of the guest, and it has {has}",
            )
    for memnode in root.findall("numatune/memnode"):
        number = memnode.get("cellid", "")
        if not number.isdecimal() or int(number) not in known:
            yield (
                "numatune/memnode",
                f"cellid={number}",
                f"<memnode> names cell {number}, which the guest does not have",
            )
    topology = root.find("cpu/topology")
    if topology is not None:
        product = 1
        for key in ("sockets", "dies", "clusters", "cores", "threads"):
            product *= int(topology.get(key, "1")) if topology.get(key, "1").isdecimal() else 0
        if product != count:
            yield "cpu/topology", str(topology.attrib), f"the topology has {product} threads, there are {count} vCPUs"
    outside = {cpu for cell in cells for cpu in cell.cpus if cpu >= count}
    if outside:
        yield "cpu/numa/cell", format_cpus(outside), f"cells hold vCPU {format_cpus(outside)}, there are {count}"
    host = frozenset(node.id for node in patient.facts.nodes)
    for element in [*root.findall("numatune/memory"), *root.findall("numatune/memnode")]:
        strange = (libvirt_set(element.get("nodeset")) or frozenset()) - host
        if host and strange:
            yield (
                f"numatune/{element.tag}",
                f"nodeset={element.get('nodeset')}",
                f"<{element.tag} nodeset> names node {format_cpus(strange)}; these are nodes of the host, and it has "
                f"{format_cpus(host)}",
            )


def _no_cpu(patient: Patient) -> Iterable[Symptom]:
    """Pins to CPUs that are not there: libvirt takes the definition, and the guest does not start."""
    if not patient.online:
        return
    for domain in patient.domains:
        if domain.root is None:
            continue
        for tag in ("vcpupin", "emulatorpin", "iothreadpin"):
            for number, cpus in pins(domain.root, tag):
                missing = cpus - patient.online
                if missing:
                    yield Symptom(
                        f"guest {domain.definition.guest}: <{tag}{number and f' {number}'}> names CPU "
                        f"{format_cpus(missing)}, which the host does not have online",
                        (
                            item(f"{domain.definition.path}: cputune/{tag}", format_cpus(cpus)),
                            item("/sys/devices/system/cpu/online", format_cpus(patient.online)),
                        ),
                        severity="warning" if cpus & patient.online else None,
                        guest=domain.definition.guest,
                    )


# -- what means something else -----------------------------------------------------------------------------------------


def _other_meaning(patient: Patient) -> Iterable[Symptom]:
    for domain in patient.domains:
        root = domain.root
        if root is None:
            continue
        cells = {cell.id for cell in _cells(root)}
        bare = [cell for cell in sorted(cells) if _page_of_cell(root, cell) is None]
        named = [page for page in root.findall("memoryBacking/hugepages/page") if page.get("nodeset")]
        chosen = [page for page in named if (libvirt_set(page.get("nodeset")) or frozenset()) <= cells]
        if chosen and bare:
            yield Symptom(
                f"guest {domain.definition.guest}: <page nodeset> gives huge pages to some of its cells; cell "
                f"{format_cpus(bare)} gets ordinary ones",
                tuple(
                    item(f"{domain.definition.path}: memoryBacking/hugepages/page", f"nodeset={page.get('nodeset')}")
                    for page in chosen
                ),
                guest=domain.definition.guest,
            )


def _far_memory(patient: Patient) -> Iterable[Symptom]:
    if len(patient.facts.nodes) < 2:
        return
    for domain in patient.domains:
        root = domain.root
        if root is None:
            continue
        pinned = vcpu_pins(root)
        if not pinned:
            continue
        urgent = bool(priorities(root))
        cells = _cells(root) or [_Cell(0, frozenset(range(vcpu_count(root))), 0)]
        for cell in cells:
            host = frozenset(cpu for vcpu in cell.cpus for cpu in pinned.get(vcpu, frozenset()))
            runs, (comes, _) = patient.nodes_of(host), _nodes_of_cell(root, cell.id)
            if not runs or runs == patient.nodes_of(patient.online):
                continue
            evidence = (item(f"{domain.definition.path}: cputune/vcpupin", f"CPUs {format_cpus(host)}"),)
            if comes and not comes & runs:
                yield Symptom(
                    f"guest {domain.definition.guest}: vCPUs of cell {cell.id} run on node {format_cpus(runs)}, their "
                    f"memory comes from node {format_cpus(comes)}",
                    (*evidence, item(f"{domain.definition.path}: numatune", f"node {format_cpus(comes)}")),
                    guest=domain.definition.guest,
                )
            elif not comes:
                yield Symptom(
                    f"guest {domain.definition.guest}: vCPUs of cell {cell.id} are pinned to node {format_cpus(runs)}, "
                    "their memory comes from anywhere",
                    (*evidence, item(f"{domain.definition.path}: numatune", "does not exist")),
                    severity="warning" if urgent else "note",
                    guest=domain.definition.guest,
                )


AILMENTS = (
    Ailment(
        "D-XML-REFUSED",
        "guest",
        "harmful",
        "libvirt accepts every definition",
        "a definition that libvirt refuses is dropped when its daemon starts again, and with it the guest",
        "correct it with virsh edit, which checks; virsh define FILE tells the same",
        "host-tuning §0.4 (measured with libvirt 9.0: its own real-time guide is refused twice), G-15",
        _refused,
        needs=("definitions",),
    ),
    Ailment(
        "D-XML-PIN",
        "guest",
        "harmful",
        "Definitions pin to CPUs that are online",
        "libvirt takes such a definition, and refuses to start the guest; a pin with some CPUs left is cut",
        "pin to online CPUs; after SMT was switched off only one thread of each core is left",
        "host-tuning F6, G-1",
        _no_cpu,
        needs=("definitions",),
    ),
    Ailment(
        "D-XML-CELL",
        "guest",
        "harmful",
        "nodeset of <page> covers all cells of the guest",
        "it counts the guest's own cells, not the nodes of the host: whoever means host node 1 gives huge pages to "
        "guest cell 1 only, and says nothing about where they come from",
        "leave nodeset out, or list every cell; choose the host's node with <numatune><memnode>",
        "host-tuning §0.4, G-4 (measured with libvirt 9.0)",
        _other_meaning,
        needs=("definitions",),
    ),
    Ailment(
        "D-XML-NODE",
        "guest",
        "harmful",
        "A guest's memory comes from the node that its vCPUs are pinned to",
        "remote memory costs half as much again at each access; without <numatune> it lands where there was room",
        "<numatune><memory mode='strict' nodeset='N'/>, and <memnode> for each cell",
        "host-tuning G-5",
        _far_memory,
        needs=("definitions",),
    ),
)
