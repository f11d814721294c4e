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


#: Up to this distance Linux takes memory of another node without first looking for some nearby (node_reclaim_distance).
_FAR = 30


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
    distances: tuple[tuple[int, int], ...] = ()  # (other cell, distance) as the definition says them


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
                tuple(
                    (int(one.get("id", "")), int(one.get("value", "")))
                    for one in cell.findall("distances/sibling")
                    if one.get("id", "").isdecimal() and one.get("value", "").isdecimal()
                ),
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
        for place, value, text in _reasons(domain.root):
            yield Symptom(
                f"guest {definition.guest}: {text}",
                (item(f"{definition.path}: {place}", value),),
                guest=definition.guest,
            )


def _reasons(root: ET.Element) -> Iterator[tuple[str, str, str]]:
    """(place, value, why libvirt refuses it): each one was shown to libvirt 9.0 with QEMU, which does."""
    count = vcpu_count(root)
    yield from _wrong_lists(root)
    yield from _wrong_schedules(root, count)
    seen: set[str] = set()
    for pin in root.findall("cputune/vcpupin"):
        number = pin.get("vcpu", "")
        if number in seen:
            yield "cputune/vcpupin", number, f"vCPU {number} is pinned twice"
        seen.add(number)
    threads = {pin for pin in root.findall("cputune/iothreadpin") if pin.get("iothread") not in _io_threads(root)}
    for pin in sorted(threads, key=lambda pin: pin.get("iothread", "")):
        number = pin.get("iothread", "")
        yield "cputune/iothreadpin", number, f"<iothreadpin> names I/O thread {number}, which the guest does not have"
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
            text = topology.get(key, "1")
            product *= int(text) if text.isdecimal() else 0
        if product != count:
            yield "cpu/topology", f"{product} threads", f"the topology has {product} threads, there are {count} vCPUs"
    outside = {cpu for cell in cells for cpu in cell.cpus if cpu >= count}
    if outside:
        yield "cpu/numa/cell", format_cpus(outside), f"cells hold vCPU {format_cpus(outside)}, there are {count}"


def _wrong_schedules(root: ET.Element, count: int) -> Iterator[tuple[str, str, str]]:
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
        if schedule.get("scheduler") in ("fifo", "rr") and schedule.get("priority") is None:
            yield "cputune/vcpusched", "no priority", "a real-time scheduler needs a priority"


def _wrong_lists(root: ET.Element) -> Iterator[tuple[str, str, str]]:
    """Lists of CPUs that libvirt cannot read: it knows ranges and ^, and none of the kernel's other forms."""
    for tag in ("vcpupin", "emulatorpin", "iothreadpin"):
        for pin in root.findall(f"cputune/{tag}"):
            text = pin.get("cpuset", "")
            if not libvirt_set(text):
                yield f"cputune/{tag}", f"cpuset={text}", f"<{tag} cpuset> is {text!r}, which is no list of CPUs"


def _io_threads(root: ET.Element) -> set[str | None]:
    named = [thread.get("id") for thread in root.findall("iothreadids/iothread")]
    text = (root.findtext("iothreads") or "").strip()
    free = (str(number) for number in range(1, 1 << 16) if str(number) not in named)
    missing = max(0, int(text) - len(named)) if text.isdecimal() else 0
    return {*named, *(next(free) for _ in range(min(missing, 1 << 10)))}


def _not_started(patient: Patient) -> Iterable[Symptom]:
    """What libvirt takes as a definition, and what then keeps the guest from starting on this host."""
    host = frozenset(node.id for node in patient.facts.nodes)
    sizes = {pool.page_bytes for pool in patient.facts.huge_pages}
    for domain in patient.domains:
        if domain.root is None:
            continue
        guest, path = domain.definition.guest, domain.definition.path
        for tag in ("vcpupin", "emulatorpin", "iothreadpin"):
            for number, cpus in pins(domain.root, tag):
                missing = cpus - patient.online
                if missing and patient.online:
                    yield Symptom(
                        f"guest {guest}: <{tag}{number and f' {number}'}> names CPU {format_cpus(missing)}, which the "
                        "host does not have online",
                        (
                            item(f"{path}: cputune/{tag}", format_cpus(cpus)),
                            item("/sys/devices/system/cpu/online", format_cpus(patient.online)),
                        ),
                        severity="warning" if cpus & patient.online else None,
                        guest=guest,
                    )
        for element in [*domain.root.findall("numatune/memory"), *domain.root.findall("numatune/memnode")]:
            strange = (libvirt_set(element.get("nodeset")) or frozenset()) - host
            if host and strange:
                yield Symptom(
                    f"guest {guest}: <{element.tag} nodeset> names node {format_cpus(strange)}; these are nodes of the "
                    f"host, and it has {format_cpus(host)}",
                    (item(f"{path}: numatune/{element.tag}", f"nodeset={element.get('nodeset')}"),),
                    guest=guest,
                )
        for vcpu, priority in sorted(priorities(domain.root).items()):
            if not 1 <= priority <= 99:
                yield Symptom(
                    f"guest {guest}: vCPU {vcpu} has real-time priority {priority}; the kernel knows 1 to 99",
                    (item(f"{path}: cputune/vcpusched", f"priority={priority}"),),
                    guest=guest,
                )
        for page in domain.root.findall("memoryBacking/hugepages/page"):
            size = _size(page, "size")
            if sizes and size and size not in sizes:
                yield Symptom(
                    f"guest {guest}: the host has no huge pages of {size >> 10} KiB",
                    (item(f"{path}: memoryBacking/hugepages/page", f"size={page.get('size')}"),),
                    guest=guest,
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
        count = vcpu_count(root)
        ignored = sorted(vcpu for vcpu in vcpu_pins(root) if vcpu >= count)
        if ignored:
            yield Symptom(
                f"guest {domain.definition.guest}: <vcpupin> for vCPU {format_cpus(ignored)}, there are {count}; "
                "libvirt ignores it",
                (item(f"{domain.definition.path}: cputune/vcpupin", f"vcpu={format_cpus(ignored)}"),),
                severity="warning",
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
            elif comes - runs and len(cells) > 1:
                yield Symptom(
                    f"guest {domain.definition.guest}: vCPUs of cell {cell.id} run on node {format_cpus(runs)}, their "
                    f"memory may come from node {format_cpus(comes - runs)} too",
                    (*evidence, item(f"{domain.definition.path}: numatune", f"node {format_cpus(comes)}")),
                    severity="warning",
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


def _other_nodes(patient: Patient) -> Iterable[Symptom]:
    """Guests of which every vCPU is pinned to one node of the host, and that believe in other nodes."""
    for domain in patient.domains:
        root = domain.root
        if root is None or len(patient.facts.nodes) < 2:
            continue
        pinned = vcpu_pins(root)
        every = frozenset(range(vcpu_count(root)))
        nodes = {vcpu: patient.nodes_of(pinned.get(vcpu, frozenset())) for vcpu in every}
        if any(len(on) != 1 for on in nodes.values()):
            continue  # it floats, at least in part, and nothing would be true of it
        cells = _cells(root) or [_Cell(0, every, 0)]
        homes = {cell.id: frozenset().union(*(nodes.get(vcpu, frozenset()) for vcpu in cell.cpus)) for cell in cells}
        guest, path = domain.definition.guest, domain.definition.path
        for cell in cells:
            if len(homes[cell.id]) > 1:
                yield Symptom(
                    f"guest {guest}: vCPUs of cell {cell.id} are pinned to nodes {format_cpus(homes[cell.id])}, which "
                    "the guest takes for one",
                    (
                        item(f"{path}: cpu/numa/cell {cell.id}", f"vCPU {format_cpus(cell.cpus)}"),
                        item(f"{path}: cputune/vcpupin", f"nodes {format_cpus(homes[cell.id])}"),
                    ),
                    guest=guest,
                )
        if all(len(home) == 1 for home in homes.values()):
            yield from _other_distances(patient, domain, cells, {cell: min(home) for cell, home in homes.items()})


def _other_distances(patient: Patient, domain: Domain, cells: list[_Cell], homes: dict[int, int]) -> Iterator[Symptom]:
    """``homes``: cell -> node.  What is left out libvirt makes 20, which is as good as 21: both are "another node"."""
    real = {node.id: node.distances for node in patient.facts.nodes}
    wrong = []
    for cell in cells:
        said = dict(cell.distances)
        for other in cells:
            value = said.get(other.id, 10 if other.id == cell.id else 20)
            there = real[homes[cell.id]].get(homes[other.id])
            near_enough = other.id not in said and there is not None and 20 <= there <= _FAR
            apart = other.id == cell.id or homes[cell.id] != homes[other.id]
            if apart and there is not None and value != there and not near_enough:
                wrong.append(
                    f"cell {cell.id} to {other.id}: {value}, nodes {homes[cell.id]} and {homes[other.id]}: {there}"
                )
    if wrong:
        yield Symptom(
            f"guest {domain.definition.guest}: distances between its cells are not those of the nodes they are on "
            f"({wrong[0]})",
            tuple(item(f"{domain.definition.path}: cpu/numa/cell/distances", text) for text in wrong),
            severity="note",
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
        "D-XML-START",
        "guest",
        "harmful",
        "Every definition can be started on this host",
        "libvirt takes the definition, and refuses the guest on the day when it is needed; of a pin it silently keeps "
        "the CPUs that are there",
        "name CPUs that are online, nodes and page sizes that the host has, priorities from 1 to 99; after SMT was "
        "switched off only one thread of each core is left",
        "host-tuning F6, G-1, G-3, G-4, G-5",
        _not_started,
        needs=("definitions",),
    ),
    Ailment(
        "D-XML-MEANS",
        "guest",
        "harmful",
        "A definition means what it seems to say",
        "nodeset of <page> counts the guest's own cells, not the nodes of the host: whoever means host node 1 gives "
        "huge pages to guest cell 1 only, and says nothing about where they come from",
        "leave nodeset out of <page>, or list every cell; choose the host's node with <numatune><memnode>",
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
    Ailment(
        "D-XML-CELLS",
        "guest",
        "warning",
        "A pinned guest believes in the nodes that it is on",
        "its kernel and its programs place memory and threads by what they take for a node: two nodes that look like "
        "one make half of all accesses far",
        "a <cell> for each node, with the vCPUs that are pinned there, and <distances> as numactl --hardware prints "
        "them on the host; virsh edit, then start the guest anew",
        "host-tuning G-7; libvirt: formatdomain, NUMA topology",
        _other_nodes,
        needs=("definitions",),
    ),
)
