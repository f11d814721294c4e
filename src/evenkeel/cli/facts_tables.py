"""Facts as tables that a person reads.  Prints on the console that it is given; decides nothing."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from evenkeel.cli.output import table
from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import BlockDevice, Cpu, Facts, HugePages, Interrupt, Nic

MOST_DEVICES = 40  # rows; a server with 256 virtual functions has them counted
#: PCI base classes that are listed even without a network interface or disk.  Source: pci.ids.
_LISTED_CLASSES = {"01": "storage", "02": "network", "03": "display", "0b": "processor", "12": "accelerator"}


def print_facts(facts: Facts, console: Console) -> None:
    """All sections; one that would be empty is left out."""
    sections = (
        _machine(facts),
        _cpus(facts),
        _caches(facts),
        _nodes(facts),
        _devices(facts),
        _interrupts(facts),
        _partitions(facts),
        _threads(facts),
        _daemons(facts),
        _owners(facts),
    )
    for section in sections:
        if section is not None and section.row_count:
            console.print(section)
            console.print()
    for remark in facts.remarks:
        console.print(Text.assemble(("firmware: ", "yellow"), remark))
    if facts.unreadable:
        some = ", ".join(list(facts.unreadable)[:3])
        console.print(f"{len(facts.unreadable)} files could not be read ({some}, …); run it as root to see them")


def _machine(facts: Facts) -> Table:
    identity, kernel = facts.identity, facts.kernel
    rows = [
        ("host", _words(identity.hostname, identity.system_vendor, identity.product)),
        ("firmware", _words(identity.firmware_vendor, identity.firmware_version, identity.firmware_date)),
        ("system", _words(identity.os_release, identity.architecture, sep=", ")),
        ("hypervisor", _hypervisor(facts)),
        ("kernel", _words(kernel.release, "PREEMPT_RT" if kernel.preempt_rt else "", sep=", ")),
        ("command line", kernel.command_line),
        ("ignored by it", " ".join(kernel.unknown_parameters)),
        ("isolated", _words(*_isolation(facts), sep="; ")),
        ("SMT", facts.smt or ""),
        ("clock", _words(facts.clocksource, f"of {', '.join(facts.clocksources)}" if facts.clocksources else "")),
        ("idle", _words(facts.idle.driver, facts.idle.governor, " ".join(facts.idle.states), sep=", ")),
        ("frequency", _frequency(facts)),
        ("Speed Select", ", ".join(f"{name} {state}" for name, state in sorted((facts.speed_select or {}).items()))),
        ("caches divided", _division(facts)),
        ("vulnerable to", ", ".join(n for n, t in facts.vulnerabilities.items() if t.startswith("Vulnerable"))),
        ("KVM", {True: "usable", False: "not usable", None: ""}[facts.kvm_usable]),
        ("cgroups", f"version {facts.cgroup_version}" if facts.cgroup_version else ""),
        ("programs", ", ".join(f"{name} {version}" for name, version in sorted(facts.programs.items()))),
    ]
    return table(("machine", ""), [row for row in rows if row[1]])


def _words(*parts: str | None, sep: str = " ") -> str:
    return sep.join(part for part in parts if part)


def _hypervisor(facts: Facts) -> str:
    name = facts.identity.hypervisor
    if name in (None, "none"):
        return "none, this is hardware" if name else ""
    return f"{name}, CPUs emulated in software" if facts.identity.emulated else str(name)


def _isolation(facts: Facts) -> Iterable[str]:
    for word, cpus in (("isolcpus", facts.isolated), ("nohz_full", facts.nohz_full)):
        if cpus:
            yield f"{word} {format_cpus(cpus)}"


def _frequency(facts: Facts) -> str:
    boost = {True: "boost on", False: "boost off", None: ""}[facts.frequency.boost]
    return _words(facts.frequency.driver, ", ".join(facts.frequency.governors), boost, sep=", ")


def _cpus(facts: Facts) -> Table:
    """One row for each place: package, node, shared L3 and kind of core."""
    l3 = {cpu: cache.cpus for cache in facts.caches if cache.level == 3 for cpu in cache.cpus}
    places: dict[tuple[str, ...], list[Cpu]] = defaultdict(list)
    for cpu in facts.cpus:
        key = (
            ("", "", "", "offline")
            if not cpu.online
            else (_number(cpu.package), _number(cpu.node), format_cpus(l3.get(cpu.id, ())), cpu.kind or "")
        )
        places[key].append(cpu)
    hybrid = any(key[3] for key in places)
    rows = []
    for (package, node, _, kind), cpus in sorted(places.items(), key=lambda item: item[1][0].id):
        cores = sorted({cpu.siblings or frozenset({cpu.id}) for cpu in cpus}, key=min)
        shown = " ".join(format_cpus(core) for core in cores) if max(map(len, cores)) > 1 else ""
        row = (package, node, format_cpus(cpu.id for cpu in cpus), str(len(cpus)), str(len(cores)), _shorten(shown))
        rows.append((*row, kind) if hybrid else row)
    columns = ("package", "node", "CPUs", "threads", "cores", "threads of each core")
    right = ("package", "node", "threads", "cores")
    return table((*columns, "kind") if hybrid else columns, rows, title=_title("CPUs", facts), right=right)


def _title(what: str, facts: Facts) -> str:
    models = sorted({cpu.model for cpu in facts.cpus if cpu.model})
    absent = facts.possible - {cpu.id for cpu in facts.cpus}
    words = f"{what}: {', '.join(' '.join(model.split()) for model in models[:3])}" if models else what
    return f"{words} ({len(absent)} more could be plugged in)" if absent else words


def _number(value: int | None) -> str:
    return "" if value is None else str(value)


def _shorten(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[: most - 2].rpartition(" ")[0] + " …"


def _caches(facts: Facts) -> Table:
    kinds: dict[tuple[str, str, int], int] = defaultdict(int)
    for cache in facts.caches:
        letter = {"data": "d", "instruction": "i", "unified": ""}[cache.type]
        kinds[f"L{cache.level}{letter}", _size(cache.size_bytes), len(cache.cpus)] += 1
    rows = [(name, str(count), size, str(sharing)) for (name, size, sharing), count in sorted(kinds.items())]
    return table(("cache", "how many", "size", "CPUs that share it"), rows, right=("how many", "size"))


def _division(facts: Facts) -> str:
    """``"L3 in 11 ways, 16 classes; groups: 1 besides the default"``; "" where the machine cannot."""
    resctrl = facts.resctrl
    if resctrl is None:
        return ""
    if not resctrl.mounted:
        return "it could, but resctrl is not mounted"
    caches = [f"{one.name} in {int(one.mask, 16).bit_count()} ways, {one.closids} classes" for one in resctrl.caches]
    return f"{'; '.join(caches) or 'nothing'}; groups: {max(0, len(resctrl.groups) - 1)} besides the default"


def _nodes(facts: Facts) -> Table:
    rows = []
    for node in facts.nodes:
        far = " ".join(str(node.distances[other]) for other in sorted(node.distances))
        cpus = format_cpus(node.cpus) or "none"
        rows.append((str(node.id), cpus, _size(node.memory_bytes) or "none", _pages(node.huge_pages), far))
    return table(("node", "CPUs", "memory", "huge pages (free of all)", "distances"), rows, right=("node", "memory"))


def _pages(pools: Sequence[HugePages]) -> str:
    used = [pool for pool in pools if pool.total]
    return ", ".join(
        f"{_size(pool.page_bytes)}: {pool.total if pool.free is None else f'{pool.free} of {pool.total}'}"
        for pool in used
    )


def _devices(facts: Facts) -> Table:
    """NICs and disks at their node, then PCI functions of interest that are neither."""
    rows: list[tuple[str, ...]] = []
    functions = {function.address: function for function in facts.pci}
    seen = set()
    devices: list[Nic | BlockDevice] = [*facts.nics, *facts.blocks]
    for device in devices:
        function = functions.get(device.pci or "")
        if function is None and not device.driver:
            continue  # bridges and the like
        seen.add(device.pci)
        queues = device.queues if isinstance(device, BlockDevice) else max(device.rx_queues, device.tx_queues)
        group = _number(function.iommu_group) if function else ""
        vfs = (
            f"{function.sriov_vfs or 0} of {function.sriov_total_vfs}" if function and function.sriov_total_vfs else ""
        )
        node = _number(device.node)
        most = device.channels.most_combined if isinstance(device, Nic) and device.channels else 0
        shown = f"{queues} of {most}" if most else str(queues or "")
        rows.append((node, device.name, device.pci or "", device.driver or "", group, vfs, shown))
    for function in facts.pci:
        what = _LISTED_CLASSES.get(function.class_code[:2])
        if what and function.address not in seen:
            words = f"{what} {function.vendor}:{function.device}"
            if function.physical_function:
                words += f", VF of {function.physical_function}"
            driver, group = function.driver or "", _number(function.iommu_group)
            rows.append((_number(function.node), words, function.address, driver, group, "", ""))
    rows.sort(key=lambda row: (row[0] == "", row[0].zfill(4)))
    if len(rows) > MOST_DEVICES:
        rows = [*rows[:MOST_DEVICES], ("", f"… and {len(rows) - MOST_DEVICES} more", "", "", "", "", "")]
    columns = ("node", "device", "PCI", "driver", "IOMMU group", "VFs", "queues")
    return table(columns, rows, right=("node", "IOMMU group", "queues"))


def _interrupts(facts: Facts) -> Table:
    """Interrupts by device: its vectors are one row."""
    devices: list[Nic | BlockDevice] = [*facts.blocks, *facts.nics]
    owners = {action: device.name for device in devices for action in device.interrupts}
    groups: dict[str, list[Interrupt]] = defaultdict(list)
    for interrupt in facts.interrupts:
        if interrupt.action:
            words = owners.get(interrupt.action) or re.sub(r"[-.:](?:\w+[-.])?\d+$", "", interrupt.action)
            groups[words].append(interrupt)
    rows = []
    for name, members in sorted(groups.items()):
        managed = sum(interrupt.managed is True for interrupt in members)
        allowed = frozenset().union(*(interrupt.affinity for interrupt in members))
        fires = frozenset().union(*(interrupt.effective for interrupt in members))
        rows.append((name, str(len(members)), str(managed or ""), format_cpus(allowed), format_cpus(fires)))
    columns = ("interrupts of", "how many", "fixed by the kernel", "may fire on", "fire on")
    return table(columns, rows, right=("how many", "fixed by the kernel"))


def _partitions(facts: Facts) -> Table:
    rows = [(one.path, one.state, format_cpus(one.exclusive), format_cpus(one.effective)) for one in facts.partitions]
    return table(("cgroup partition", "state", "exclusive", "effective"), rows)


def _threads(facts: Facts) -> Table:
    """Kernel threads with a real-time priority; those of the same name but for the CPU are one row."""
    groups: dict[tuple[str, str, int], list[frozenset[int]]] = defaultdict(list)
    for thread in facts.kernel_threads:
        if thread.priority:
            groups[re.sub(r"\d+", "N", thread.name), thread.policy, thread.priority].append(thread.cpus)
    rows = [
        (name, str(len(cpus)), f"{policy}:{priority}", format_cpus(frozenset().union(*cpus)))
        for (name, policy, priority), cpus in sorted(groups.items(), key=lambda item: (-item[0][2], item[0][0]))
    ]
    return table(("kernel thread", "how many", "priority", "allowed on"), rows, right=("how many",))


def _daemons(facts: Facts) -> Table:
    rows = [
        (one.name, one.unit or "none", f"{one.policy}:{one.priority}", format_cpus(one.cpus), one.kept or "")
        for one in facts.daemons
    ]
    return table(("must not wait", "unit", "priority", "allowed on", "kept for its next start"), rows)


def _owners(facts: Facts) -> Table:
    rows = [(one.name, "yes" if one.active else "no", one.evidence) for one in facts.owners]
    return table(("also tuned by", "active", "evidence"), rows)


def _size(value: int | None) -> str:
    """Bytes in the largest unit that leaves at most one decimal: ``31.5 GiB``."""
    if not value:
        return ""
    units = ("B", "KiB", "MiB", "GiB", "TiB")
    power = min((value.bit_length() - 1) // 10, len(units) - 1)
    return f"{value / 1024**power:.1f}".removesuffix(".0") + f" {units[power]}"
