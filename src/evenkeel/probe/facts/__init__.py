"""Facts: read in one pass what a machine is and how it is set now.

One module a subject; each takes a :class:`~evenkeel.probe.facts.root.Root` and returns plain data in the shape of
:class:`evenkeel.documents.facts.Facts`.  Read-only, and nothing that changes by itself is read: no counters, no
process ids, no times, so that the same machine in the same state gives the same bytes.
"""

from __future__ import annotations

from typing import Any, Callable

from evenkeel.probe.facts.bootentries import read_boot_entries
from evenkeel.probe.facts.caches import read_caches
from evenkeel.probe.facts.cgroups import read_cpusets, read_partitions, read_version
from evenkeel.probe.facts.cpulist import format_list, parse_list
from evenkeel.probe.facts.cpus import online, read_cpuinfo, read_cpus
from evenkeel.probe.facts.daemons import NAMES, read_daemons
from evenkeel.probe.facts.devices import read_blocks, read_nics
from evenkeel.probe.facts.guests import read_definitions, read_guests
from evenkeel.probe.facts.identity import read_identity, read_tsc_flags
from evenkeel.probe.facts.interrupts import read_interrupts
from evenkeel.probe.facts.kernel import read_frequency, read_idle, read_kernel, read_kvm, read_vulnerabilities, uname
from evenkeel.probe.facts.kernellog import read_log
from evenkeel.probe.facts.kinds import read_kinds
from evenkeel.probe.facts.nodes import read_huge_pages, read_memory, read_nodes
from evenkeel.probe.facts.owners import DAEMONS, POLLERS, read_owners, read_services
from evenkeel.probe.facts.pci import read_pci
from evenkeel.probe.facts.programs import read_programs
from evenkeel.probe.facts.resctrl import read_resctrl
from evenkeel.probe.facts.root import Root
from evenkeel.probe.facts.settings import read_settings
from evenkeel.probe.facts.speedselect import read_speed_select
from evenkeel.probe.facts.threads import read_processes

OnProgress = Callable[[int, int, str], None]

_CPU = "/sys/devices/system/cpu"
_CLOCK = "/sys/devices/system/clocksource/clocksource0"
_STEPS = ("CPUs", "caches", "devices", "kernel", "threads", "settings", "programs")


def read_facts(root: str = "/", on_progress: OnProgress | None = None) -> dict[str, Any]:
    """The Facts document of the machine at ``root`` (``/``: this one; else the folder of a recorded tree)."""
    return facts_of(Root(root), on_progress)


def facts_of(root: Root, on_progress: OnProgress | None = None) -> dict[str, Any]:
    """As :func:`read_facts`, through a root that the caller made."""
    step = iter(range(len(_STEPS)))

    def begin(what: str) -> None:
        if on_progress:
            on_progress(next(step), len(_STEPS), what)

    begin("CPUs")
    cpuinfo = read_cpuinfo(root)
    nodes, remarks = read_nodes(root, online(root))
    cpus = read_cpus(root, nodes, cpuinfo)
    begin("caches")
    caches = read_caches(root, cpus)
    kinds = read_kinds(root, cpus, caches, cpuinfo)
    for cpu in cpus:
        cpu["kind"] = kinds.get(cpu["id"])
    begin("devices")
    names = uname(root)
    interrupts = read_interrupts(root, names["release"])
    actions = {interrupt["number"]: interrupt["action"] for interrupt in interrupts}
    pci = read_pci(root, nodes)
    node_of = {function["address"]: function["node"] for function in pci}
    nics = read_nics(root, node_of, actions)
    blocks = read_blocks(root, node_of, actions)
    begin("kernel")
    kvm_usable, kvm_parameters = read_kvm(root)
    identity = read_identity(root, names, cpuinfo)
    kernel = read_kernel(root, names["release"], names["version"])
    begin("threads")
    kept: dict[str, list[int]] = {name: [] for name in NAMES}
    kernel_threads, daemons, processes = read_processes(root, frozenset(DAEMONS) | frozenset(POLLERS), kept)
    guests = read_guests(root, processes)
    begin("settings")
    settings = read_settings(root)
    owners = read_owners(root, daemons, settings)
    services = read_services(root, daemons)
    begin("programs")
    programs = read_programs(root, identity["architecture"])
    return {
        "kind": "Facts",
        "version": 1,
        "identity": identity,
        "kernel": kernel,
        "cpus": cpus,
        "possible": format_list(parse_list(root.read(_CPU + "/possible"))),
        "isolated": format_list(parse_list(root.read(_CPU + "/isolated"))),
        "nohz_full": format_list(parse_list(root.read(_CPU + "/nohz_full"))),
        "smt": root.read(_CPU + "/smt/control"),
        "caches": caches,
        "resctrl": read_resctrl(root),
        "nodes": nodes,
        "memory_bytes": read_memory(root, nodes),
        "huge_pages": read_huge_pages(root, "/sys/kernel/mm/hugepages"),
        "pci": pci,
        "nics": nics,
        "blocks": blocks,
        "interrupts": interrupts,
        "clocksource": root.read(_CLOCK + "/current_clocksource"),
        "clocksources": (root.read(_CLOCK + "/available_clocksource") or "").split(),
        "tsc_flags": read_tsc_flags(cpuinfo),
        "idle": read_idle(root),
        "frequency": read_frequency(root),
        "speed_select": read_speed_select(root),
        "vulnerabilities": read_vulnerabilities(root),
        "kvm_usable": kvm_usable,
        "kvm_parameters": kvm_parameters,
        "cgroup_version": read_version(root),
        "partitions": read_partitions(root),
        "cpusets": read_cpusets(root),
        "kernel_threads": kernel_threads,
        "daemons": read_daemons(root, kept),
        "guests": guests,
        "definitions": read_definitions(root),
        "boot_entries": read_boot_entries(root),
        "kernel_log": read_log(root),
        "owners": owners,
        "services": services,
        "programs": programs,
        "settings": settings,
        "remarks": remarks,
        "unreadable": dict(sorted(root.unreadable.items())),
    }
