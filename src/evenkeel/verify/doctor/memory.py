"""Ailments of memory: huge pages that are not there, are elsewhere, or left nothing else.

Source: reference host-tuning H-HP-1, R-MM-1, R-MM-3, F4; Documentation/admin-guide/mm/hugetlbpage.rst.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from evenkeel.documents.cpuset import format_cpus
from evenkeel.verify.doctor import commandline
from evenkeel.verify.doctor.ailment import Ailment, Blind, Symptom, item
from evenkeel.verify.doctor.definitions import Pages, pages_of
from evenkeel.verify.doctor.patient import Patient

_MIB = 1 << 20
_SIZES = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}
_SIZE = re.compile(r"(\d+)([kmg]?)", re.IGNORECASE)
#: What a node needs for everything that is not huge pages: below the first the host is in danger, below the second it
#: has less than what SUSE keeps free (8 %).
_DANGER, _DANGER_BYTES, _RESERVE = 0.03, 4 << 30, 0.08


def _folder(node: int | None, page: int) -> str:
    base = "/sys/kernel/mm" if node is None else f"/sys/devices/system/node/node{node}"
    return f"{base}/hugepages/hugepages-{page >> 10}kB"


def _asked(patient: Patient) -> list[tuple[int | None, int, int, str]]:
    """(node, page size, count, argument) of each pool that the command line asks for."""
    found = []
    size = next((_bytes(value) for value in commandline.values(patient.line, "default_hugepagesz")), None)
    size = size or (2 * _MIB if patient.facts.identity.architecture == "x86_64" else None)
    for word in commandline.words(patient.line):
        if word.key == "hugepagesz":
            size = _bytes(word.value or "")
        if word.key != "hugepages" or size is None:
            continue
        for part in (word.value or "").split(","):
            node, colon, count = part.rpartition(":")
            if count.isdecimal() and (not colon or node.isdecimal()):
                found.append((int(node) if colon else None, size, int(count), word.text))
    return found


def _bytes(text: str) -> int | None:
    match = _SIZE.fullmatch(text)
    return int(match[1]) * _SIZES[match[2].lower()] if match else None


def _pool(patient: Patient, node: int | None, page: int) -> int | None:
    if node is None:
        pools = patient.facts.huge_pages
    else:
        pools = next((one.huge_pages for one in patient.facts.nodes if one.id == node), ())
    return next((pool.total for pool in pools if pool.page_bytes == page), None)


def _short(patient: Patient) -> Iterable[Symptom] | Blind:
    found = []
    for node, page, count, text in _asked(patient):
        have = _pool(patient, node, page)
        if have is not None and have < count:
            place = f"node {node}" if node is not None else "the machine"
            found.append(
                Symptom(
                    f"{text} asks for {count} pages of {_size(page)} for {place}, there are {have}",
                    (item("/proc/cmdline", text), item(f"{_folder(node, page)}/nr_hugepages", have)),
                )
            )
    log = patient.facts.kernel_log
    if log and "huge-pages" in log.lines and not found:
        found.append(
            Symptom("the kernel could not allocate all huge pages", (item("kernel log", log.lines["huge-pages"]),))
        )
    for domain in patient.domains:
        pages = pages_of(domain)
        for page, need in _sums(pages).items():
            have = _pool(patient, None, page)
            if have is None or have < need:
                found.append(
                    Symptom(
                        f"guest {domain.definition.guest} needs {need} pages of {_size(page)}, there are {have or 0}",
                        (
                            item(f"{domain.definition.path}: memoryBacking/hugepages", f"{need} of {_size(page)}"),
                            item(f"{_folder(None, page)}/nr_hugepages", have if have is not None else "does not exist"),
                        ),
                        guest=domain.definition.guest,
                    )
                )
    return found or _together(patient)


def _together(patient: Patient) -> Iterable[Symptom]:
    """Each guest fits by itself; do all of them?"""
    needs: dict[int, int] = {}
    for domain in patient.domains:
        for page, need in _sums(pages_of(domain)).items():
            needs[page] = needs.get(page, 0) + need
    for page, need in needs.items():
        have = _pool(patient, None, page) or 0
        if have < need:
            yield Symptom(
                f"all guests together need {need} pages of {_size(page)}, the host has {have}: not all can run at once",
                (item(f"{_folder(None, page)}/nr_hugepages", have),),
                severity="warning",
            )


def _sums(pages: Iterable[Pages]) -> dict[int, int]:
    sums: dict[int, int] = {}
    for one in pages:
        sums[one.page] = sums.get(one.page, 0) + one.count
    return sums


def _wrong_node(patient: Patient) -> Iterable[Symptom]:
    for domain in patient.domains:
        needs: dict[tuple[frozenset[int], int], int] = {}
        for one in pages_of(domain):
            if one.nodes and one.strict:
                needs[one.nodes, one.page] = needs.get((one.nodes, one.page), 0) + one.count
        for (nodes, page), need in needs.items():
            have = sum(_pool(patient, node, page) or 0 for node in nodes)
            total = _pool(patient, None, page) or 0
            if have < need <= total:
                yield Symptom(
                    f"guest {domain.definition.guest} takes {need} pages of {_size(page)} from node "
                    f"{format_cpus(nodes)} only, where there are {have}; the others are elsewhere",
                    (
                        item(f"{domain.definition.path}: numatune", f"strict, node {format_cpus(nodes)}"),
                        *(
                            item(f"{_folder(node.id, page)}/nr_hugepages", _pool(patient, node.id, page))
                            for node in patient.facts.nodes
                        ),
                    ),
                    guest=domain.definition.guest,
                )


def _node_memory(patient: Patient) -> Iterable[Symptom]:
    for node in patient.facts.nodes:
        huge = sum(pool.total * pool.page_bytes for pool in node.huge_pages)
        meminfo = item(f"/sys/devices/system/node/node{node.id}/meminfo: MemTotal", f"{node.memory_bytes // _MIB} MiB")
        if node.memory_bytes and huge:
            left = node.memory_bytes - huge
            if left < node.memory_bytes * _RESERVE:
                yield Symptom(
                    f"node {node.id} keeps {left // _MIB} MiB of {node.memory_bytes // _MIB} for everything that is no "
                    "huge page",
                    (
                        meminfo,
                        *(
                            item(f"{_folder(node.id, pool.page_bytes)}/nr_hugepages", pool.total)
                            for pool in node.huge_pages
                            if pool.total
                        ),
                    ),
                    severity=None if left < min(node.memory_bytes * _DANGER, _DANGER_BYTES) else "warning",
                )
        if not node.memory_bytes and patient.facts.memory_bytes and node.cpus & patient.online:
            concerned = node.cpus & (
                patient.isolated | frozenset(cpu for one in patient.vcpus for cpu in one.thread.cpus)
            )
            yield Symptom(
                f"node {node.id} has CPUs ({format_cpus(node.cpus)}) and no memory: every access of theirs is remote",
                (meminfo,),
                severity="warning" if concerned else "note",
            )


def _background(patient: Patient) -> Iterable[Symptom]:
    if not patient.isolated and not patient.realtime_cpus:
        return
    for path, value, what in (
        ("/sys/kernel/mm/ksm/run", "1", "page merging (KSM) runs"),
        ("/proc/sys/kernel/numa_balancing", "1", "automatic NUMA balancing runs"),
    ):
        if patient.facts.settings.get(path) == value:
            yield Symptom(what, (item(path, value),))


def _size(page: int) -> str:
    return f"{page >> 30} GiB" if page >= 1 << 30 else f"{page >> 20} MiB" if page >= _MIB else f"{page >> 10} KiB"


AILMENTS = (
    Ailment(
        "D-HUGE-SHORT",
        "page",
        "harmful",
        "There are as many huge pages as were asked for, and as the guests need",
        "the kernel gives fewer without an error when memory is short or in pieces; the guest then does not start, or "
        "starts on ordinary pages",
        "reserve them at boot for each node (hugepages=0:N,1:M), read nr_hugepages back, leave each node its reserve",
        "host-tuning H-HP-1, R-MM-3, F4 (measured: asked 900, got 554)",
        _short,
        needs=("command line", "definitions", "log"),
    ),
    Ailment(
        "D-HUGE-NODE",
        "page",
        "harmful",
        "Huge pages are on the node that the guest takes them from",
        "with strict placement the guest does not start; without, its memory is remote for as long as it runs",
        "write nodeN/hugepages/.../nr_hugepages of that node; the machine-wide file spreads evenly over all",
        "host-tuning R-MM-3, F4 (measured: 100 became 50 and 50)",
        _wrong_node,
        needs=("definitions",),
    ),
    Ailment(
        "D-NODE-MEMORY",
        "page",
        "harmful",
        "Every node keeps memory for the host",
        "huge pages cannot be used for anything else: the kernel's own allocations on that node fail or go elsewhere, "
        "up to the OOM killer",
        "ask for fewer pages on that node: keep 8 % of it, and 4 GiB on a large machine",
        "host-tuning H-HP-1, F4 (measured: 6 MB left)",
        _node_memory,
        needs=("memory",),
    ),
    Ailment(
        "D-MEMORY-MOVES",
        "setting",
        "warning",
        "Nothing moves or merges memory behind a latency-critical guest",
        "a page that is merged or migrated is unmapped first, and the vCPU that touches it waits",
        "write 2 into ksm/run before guests start, 0 into kernel.numa_balancing",
        "host-tuning R-MM-1, H-NUMA",
        _background,
        needs=("command line", "settings"),
    ),
)
