"""Guests against their plan: live definition, threads, memory.  Pure.  Partitions are settings: :mod:`.settings`."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from typing import Any

from evenkeel.documents.cpuset import format_cpus, parse_cpus
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check, EvidenceItem
from evenkeel.documents.plan import CellPlan, GuestPlan, HostPlan
from evenkeel.documents.quantity import format_size
from evenkeel.plan.passthrough import passed_in
from evenkeel.verify.catalogue import (
    GUEST_LIVE,
    GUEST_PCI,
    GUEST_RUNNING,
    INTRUDER,
    PAGE_CELL,
    PAGE_LOCKED,
    PAGE_NODE,
    THREAD_EMULATOR,
    THREAD_HELPER,
    THREAD_IO,
    THREAD_VCPU,
    Kind,
    item,
    shorten,
)
from evenkeel.verify.definition import differences
from evenkeel.verify.observe import GuestSeen, Observation, vcpu_cpus


def check(host: HostPlan, seen: Observation) -> tuple[Check, ...]:
    checks: list[Check] = []
    for guest in host.guests:
        checks += _guest(host, guest, seen.guests[guest.name], seen.facts)
    return (*checks, *_intruders(host, seen))


def _guest(host: HostPlan, guest: GuestPlan, seen: GuestSeen, facts: Facts) -> list[Check]:
    checks = [_running(guest, seen)]
    if seen.threads is None or seen.memory is None:
        reason = seen.trouble or f"the guest does not run ({seen.state})"
        kinds = [GUEST_LIVE, THREAD_VCPU, THREAD_EMULATOR, THREAD_HELPER, *_page_kinds(guest)]
        kinds += [GUEST_PCI] if guest.functions else []
        checks += [kind.not_checked(reason, guest=guest.name) for kind in kinds]
        checks += [THREAD_IO.not_checked(reason, guest=guest.name, part=name) for name in _io_threads(guest)]
        parts = [f"cell{number}" for number in range(len(guest.cells) if guest.page_bytes else 0)]
        return checks + [PAGE_CELL.not_checked(reason, guest=guest.name, part=part) for part in parts]
    checks += [_live(guest, seen), *_functions(guest, seen, facts)]
    checks += [_vcpu(guest, index, seen) for index in range(len(guest.vcpus))]
    checks += [_emulator(host, guest, seen.threads), _helpers(host, guest, seen.threads)]
    checks += [_io_thread(host, guest, name, seen.threads) for name in _io_threads(guest)]
    return checks + _pages(guest, seen.memory)


def _running(guest: GuestPlan, seen: GuestSeen) -> Check:
    if seen.state == "unknown":
        return GUEST_RUNNING.not_checked(seen.trouble, expected="running", guest=guest.name)
    return GUEST_RUNNING.judge(
        seen.state == "running",
        expected="running",
        observed=seen.state,
        evidence=(item(f"virsh domstate {guest.name}", seen.state),),
        guest=guest.name,
    )


def _live(guest: GuestPlan, seen: GuestSeen) -> Check:
    """The definition that the next start will use is a setting of the plan, and checked as such."""
    live = seen.live or ""
    wrong = differences(guest.xml, live)
    told = wrong or [f"{len(live.splitlines())} lines, nothing missing"]
    return GUEST_LIVE.judge(
        not wrong,
        expected="every element of the planned definition",
        observed=shorten(wrong, 3) or f"all {sum(1 for _ in ET.fromstring(guest.xml).iter())} elements",
        evidence=[item(f"virsh dumpxml {guest.name}", text) for text in told],
        guest=guest.name,
    )


def _functions(guest: GuestPlan, seen: GuestSeen, facts: Facts) -> list[Check]:
    """Nothing where the guest is to have no function and has none."""
    try:
        live = passed_in(ET.fromstring(seen.live or ""))
    except ET.ParseError:
        live = ()
    if not guest.functions and not live:
        return []
    driver_of = {pci.address: pci.driver or "none" for pci in facts.pci}
    wrong = [f"{address} is missing" for address in guest.functions if address not in live]
    wrong += [f"{address} is not in the plan" for address in live if address not in guest.functions]
    for address in guest.functions:
        driver = driver_of.get(address)
        if address in live and (driver is None or "vfio" not in driver):
            wrong.append(f"the host has {address} with driver {driver}" if driver else f"{address} is not on the host")
    expected = ", ".join(guest.functions) or "none"
    return [
        GUEST_PCI.judge(
            not wrong,
            expected=expected,
            observed=shorten(wrong, 3) or expected,
            evidence=[
                item(f"virsh dumpxml {guest.name}, hostdev", ", ".join(live) or "none"),
                *(item(f"/sys/bus/pci/devices/{one}/driver", driver_of.get(one, "no such device")) for one in live),
            ],
            guest=guest.name,
        )
    ]


# -- threads ------------------------------------------------------------------------------------------------------


def _vcpu(guest: GuestPlan, index: int, seen: GuestSeen) -> Check:
    plan = guest.vcpus[index]
    expected = f"{plan.policy}:{plan.priority} on {format_cpus(plan.cpus)}"
    thread = seen.vcpu(plan.index)
    part = f"vcpu{plan.index}"
    if thread is None:
        return THREAD_VCPU.judge(False, expected=expected, observed="no such thread", guest=guest.name, part=part)
    observed = f"{thread['policy']}:{thread['priority']} on {thread['cpus']}"
    # An ordinary vCPU may be at batch or idle by the owner's wish; real-time policies are what the plan decides.
    same = (thread["policy"], thread["priority"]) == (plan.policy, plan.priority)
    return THREAD_VCPU.judge(
        same and parse_cpus(thread["cpus"]) == plan.cpus,
        expected=expected,
        observed=observed,
        evidence=(_line(thread),),
        guest=guest.name,
        part=part,
    )


def _line(thread: dict[str, Any]) -> Any:
    ran = ",".join(str(cpu) for cpu in thread["seen"])
    text = f"{thread['policy']}:{thread['priority']}, allowed on {thread['cpus']}, ran on {ran}"
    return item(f"thread {thread['tid']} {thread['name']}", text)


def _emulator(host: HostPlan, guest: GuestPlan, threads: Sequence[dict[str, Any]]) -> Check:
    """All threads of QEMU but the vCPUs: main loop, workers, the one that prefaults memory.

    With them I/O threads that no plan asked for; those of the plan have a check each.
    """
    planned = {_io_name(name) for name in _io_threads(guest)}
    chosen = [
        thread
        for thread in threads
        if thread["kind"] == "emulator" or (thread["kind"] == "iothread" and thread["name"] not in planned)
    ]
    wrong = [
        thread
        for thread in chosen
        if not parse_cpus(thread["cpus"]) <= guest.emulator_cpus or set(thread["seen"]) & host.ledger.isolated
    ]
    return THREAD_EMULATOR.judge(
        bool(chosen) and not wrong,
        expected=f"on {format_cpus(guest.emulator_cpus)}",
        observed=_where(wrong) or f"{len(chosen)} threads on {_union(chosen)}",
        evidence=[_line(thread) for thread in wrong or chosen],
        guest=guest.name,
    )


def _io_threads(guest: GuestPlan) -> list[str]:
    """``["iothread1"]``: the I/O threads that the planned definition asks for, by the names that libvirt gives them."""
    return [f"iothread{number + 1}" for number in range(int(ET.fromstring(guest.xml).findtext("iothreads", "0")))]


def _io_name(part: str) -> str:
    """What QEMU calls the thread of that I/O thread; the kernel keeps 15 characters of a name."""
    return f"IO {part}"[:15]


def _io_thread(host: HostPlan, guest: GuestPlan, part: str, threads: Sequence[dict[str, Any]]) -> Check:
    """libvirt pins it and leaves its policy alone, so that is QEMU's own: ordinary.

    A thread that sleeps is where it ran last, which may be long ago: where it ran counts once it was seen to move.
    """
    expected = f"other:0 on {format_cpus(guest.emulator_cpus)}"
    thread = next((one for one in threads if one["name"] == _io_name(part)), None)
    if thread is None:
        return THREAD_IO.judge(False, expected=expected, observed="no such thread", guest=guest.name, part=part)
    strayed = frozenset(thread["seen"]) & host.ledger.isolated if len(thread["seen"]) > 1 else frozenset()
    observed = f"{thread['policy']}:{thread['priority']} on {thread['cpus']}"
    return THREAD_IO.judge(
        (thread["policy"], thread["priority"]) == ("other", 0)
        and parse_cpus(thread["cpus"]) == guest.emulator_cpus
        and not strayed,
        expected=expected,
        observed=observed + (f", ran on isolated {format_cpus(strayed)}" if strayed else ""),
        evidence=(_line(thread),),
        guest=guest.name,
        part=part,
    )


def _helpers(host: HostPlan, guest: GuestPlan, threads: Sequence[dict[str, Any]]) -> Check:
    """Where the plan isolates nothing they may run anywhere."""
    chosen = [thread for thread in threads if thread["kind"] == "kernel"]
    wrong = [thread for thread in chosen if parse_cpus(thread["cpus"]) & host.ledger.isolated]
    return THREAD_HELPER.judge(
        not wrong,
        expected=f"none on {format_cpus(host.ledger.isolated) or 'isolated CPUs'}",
        observed=_where(wrong) or f"{len(chosen)} threads on {_union(chosen) or 'no CPU'}",
        evidence=[_line(thread) for thread in wrong or chosen],
        guest=guest.name,
    )


def _where(threads: Sequence[dict[str, Any]]) -> str:
    told = []
    for thread in threads:
        seen = ",".join(str(cpu) for cpu in thread["seen"])
        told.append(f"{thread['name']} allowed on {thread['cpus']}, ran on {seen}")
    return shorten(told, 3)


def _union(threads: Sequence[dict[str, Any]]) -> str:
    return format_cpus(cpu for thread in threads for cpu in parse_cpus(thread["cpus"]))


def _intruders(host: HostPlan, seen: Observation) -> tuple[Check, ...]:
    """Meaningful while the guests run: without them there are no partitions, and anybody may go anywhere."""
    cpus = vcpu_cpus(host)
    if not cpus:
        return ()
    expected = f"no thread but those of the guests on {format_cpus(cpus)}"
    if seen.intruders is None:
        return (INTRUDER.not_checked(seen.trouble.get("intruders", "not looked at"), expected=expected),)
    running = [guest for guest in host.guests if guest.name in seen.guests and seen.guests[guest.name].threads]
    if not any(vcpu.cpus & cpus for guest in running for vcpu in guest.vcpus):
        return (INTRUDER.not_checked("no guest runs on these CPUs, so no partition guards them", expected=expected),)
    taken = frozenset(cpu for guest in running for vcpu in guest.vcpus for cpu in vcpu.cpus) & cpus
    found = [thread for thread in seen.intruders if parse_cpus(thread["cpus"]) & taken]
    # Those that can run nowhere else first: they are what somebody put there.
    found.sort(key=lambda thread: (not parse_cpus(thread["cpus"]) <= taken, thread["tid"]))
    told = [f"{thread['name']} ({thread['pid']}) allowed on {thread['cpus']}" for thread in found]
    check = INTRUDER.judge(
        not found,
        expected=expected,
        observed=shorten(told, 3) or "none",
        evidence=[item(f"thread {thread['tid']} {thread['name']}", thread["cpus"]) for thread in found[:20]]
        or [item("/proc/*/task/*/status Cpus_allowed_list", f"no other user thread has {format_cpus(taken)}")],
    )
    return (check,)


# -- memory -------------------------------------------------------------------------------------------------------


def _page_kinds(guest: GuestPlan) -> list[Kind]:
    return ([PAGE_NODE] if guest.page_bytes else []) + ([PAGE_LOCKED] if "<locked" in guest.xml else [])


def _pages(guest: GuestPlan, memory: dict[str, Any]) -> list[Check]:
    checks = []
    if guest.page_bytes:
        checks.append(_huge(guest, memory))
        checks += [_cell(guest, number, cell, memory) for number, cell in enumerate(guest.cells)]
    if "<locked" in guest.xml:
        checks.append(_locked(guest, memory))
    return checks


def _bytes_on(mappings: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Host node -> bytes."""
    found: dict[int, int] = {}
    for mapping in mappings:
        for node, pages in mapping["nodes"].items():
            found[int(node)] = found.get(int(node), 0) + pages * mapping["page_bytes"]
    return found


def _sizes(bytes_on: dict[int, int]) -> str:
    return ", ".join(f"{format_size(size)} on node {node}" for node, size in sorted(bytes_on.items()))


def _lines(pid: int, mappings: Sequence[dict[str, Any]]) -> list[EvidenceItem]:
    return [
        item(
            f"/proc/{pid}/numa_maps",
            f"{mapping['policy']} kernelpagesize_kB={mapping['page_bytes'] >> 10} "
            + " ".join(f"N{node}={pages}" for node, pages in sorted(mapping["nodes"].items())),
        )
        for mapping in mappings
    ]


def _huge(guest: GuestPlan, memory: dict[str, Any]) -> Check:
    """Guest memory is what QEMU maps in huge pages; with a strict binding the kernel says ``bind:NODE``."""
    bytes_on = _bytes_on(memory["huge"])
    wanted = {node: pages * (guest.page_bytes or 0) for node, pages in guest.pages_on.items()} if guest.nodes else {}
    passed = sum(bytes_on.values()) >= guest.memory_bytes and (
        not wanted or (set(bytes_on) == set(wanted) and all(bytes_on[node] >= size for node, size in wanted.items()))
    )
    return PAGE_NODE.judge(
        passed,
        expected=f"{_sizes(wanted) or format_size(guest.memory_bytes)}, in huge pages",
        observed=_sizes(bytes_on) or "no huge pages",
        evidence=_lines(memory["pid"], memory["huge"])
        or [item(f"/proc/{memory['pid']}/numa_maps", "no mapping with huge pages")],
        guest=guest.name,
    )


def _cell(guest: GuestPlan, number: int, cell: CellPlan, memory: dict[str, Any]) -> Check:
    """libvirt calls the memory of cell N ``ram-nodeN``, and QEMU names its file after that."""
    part, expected = f"cell{number}", f"{format_size(cell.memory_bytes)} on node {cell.node}"
    names = [re.search(r"ram-node(\d+)(?!\d)", mapping["file"] or "") for mapping in memory["huge"]]
    if not any(names):
        reason = (
            "numa_maps does not tell which mapping is which cell" if names else "it has no huge pages (V-PAGE-NODE)"
        )
        return PAGE_CELL.not_checked(reason, expected=expected, guest=guest.name, part=part)
    mine = [
        mapping
        for name, mapping in zip(names, memory["huge"], strict=True)
        if name is not None and int(name[1]) == number
    ]
    bytes_on = _bytes_on(mine)
    return PAGE_CELL.judge(
        set(bytes_on) == {cell.node} and bytes_on[cell.node] >= cell.memory_bytes,
        expected=expected,
        observed=_sizes(bytes_on) or "no mapping of this cell",
        evidence=_lines(memory["pid"], mine) or _lines(memory["pid"], memory["huge"]),
        guest=guest.name,
        part=part,
    )


def _locked(guest: GuestPlan, memory: dict[str, Any]) -> Check:
    locked = int(memory["locked_bytes"])
    return PAGE_LOCKED.judge(
        locked >= guest.memory_bytes,
        expected=f"at least {format_size(guest.memory_bytes)}",
        observed=format_size(locked) if locked else "nothing",
        evidence=(item(f"/proc/{memory['pid']}/status VmLck", f"{locked >> 10} kB"),),
        guest=guest.name,
    )
