"""Whether a placement keeps its word: an independent checker.  Standard library only; it shares no code with a solver.

It works on the plain data of a FleetPlan document (:mod:`evenkeel.documents.fleet`; dicts and lists, as json.load
gives them), and tells each violation in one sentence.  It must import nothing of Evenkeel, and it places nothing: a
mistake in the solver must not be made here a second time.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations
from typing import Any

SMALL = 4096  # bytes of an ordinary page, where a node says how much of its memory is for such
HUGE = 2 << 20  # the smallest page that counts as a huge one for "huge-smallest"


def check_placement(plan: dict[str, Any]) -> list[str]:
    """Every way in which the placement breaks a request or overfills a host; empty when it holds.

    ``plan``: hosts, guests, seats and limits.  Raises KeyError or ValueError for data that is no FleetPlan.
    """
    hosts = {host["name"]: _Host(host) for host in plan["hosts"]}
    guests = {guest["name"]: guest for guest in plan["guests"]}
    found: list[str] = []
    found += _duplicates("host", [host["name"] for host in plan["hosts"]])
    found += _duplicates("guest", [guest["name"] for guest in plan["guests"]])
    found += _duplicates("the seat of guest", [seat["name"] for seat in plan["seats"]])
    seats: dict[str, dict[str, Any]] = {}
    for seat in plan["seats"]:
        name = seat["name"]
        if name not in guests:
            found.append(f"{name} has a seat, and is no guest")
        elif seat["host"] not in hosts:
            found.append(f"{name} sits on {seat['host']}, which is no host")
        else:
            seats[name] = seat
    refused = {refusal["name"] for refusal in plan.get("refused", ())}
    found += [f"{name} is refused and has a seat" for name in sorted(refused & seats.keys())]
    seated = {seat["name"] for seat in plan["seats"]}
    found += [f"{name} has no seat and is not refused" for name in sorted(guests.keys() - refused - seated)]
    guests = {name: _as_cut(guest, seats.get(name)) for name, guest in guests.items()}
    for name, seat in sorted(seats.items()):
        found += [f"{name}: {text}" for text in _check_guest(guests[name], seat, hosts[seat["host"]])]
    on: dict[str, list[str]] = defaultdict(list)
    for name, seat in sorted(seats.items()):
        if set(seat.get("nodes", ())) <= hosts[seat["host"]].nodes.keys():
            on[seat["host"]].append(name)
    for host, names in sorted(on.items()):
        found += [f"{host}: {text}" for text in _check_host(hosts[host], names, guests, seats)]
    found += _check_groups(guests, seats, hosts)
    found += _check_stay(guests, seats)
    found += _check_limits(plan, on, hosts)
    if plan.get("standby"):
        found += _check_standby(plan, on)
    return found


def _as_cut(guest: dict[str, Any], seat: dict[str, Any] | None) -> dict[str, Any]:
    """A guest whose cell may be cut, with the cells that its seat makes of it, where these are equal."""
    count = len(seat.get("nodes", ())) if seat else 0
    if not guest.get("cut") or count < 2 or len(guest["cells"]) != 1:
        return guest
    cell = guest["cells"][0]
    if cell["vcpus"] % count or cell["memory_bytes"] % (count << 20):
        return guest
    each = {"vcpus": cell["vcpus"] // count, "memory_bytes": cell["memory_bytes"] // count}
    return {**guest, "cells": [each] * count}


class _Host:
    """The plain data of one host, with its CPU lists read once."""

    def __init__(self, data: dict[str, Any]) -> None:
        self.data = data
        self.name: str = data["name"]
        self.nodes: dict[int, dict[str, Any]] = {node["id"]: node for node in data["nodes"]}
        self.core_of: dict[int, frozenset[int]] = {}
        self.node_of: dict[int, int] = {}
        self.house: dict[int, set[int]] = {}
        self.free: dict[int, set[int]] = {}
        self.l3: dict[int, list[set[int]]] = {}
        for number, node in self.nodes.items():
            for text in node["cores"]:
                core = frozenset(_cpus(text))
                for cpu in core:
                    self.core_of[cpu] = core
                    self.node_of[cpu] = number
            mine = {cpu for cpu, where in self.node_of.items() if where == number}
            self.house[number] = _cpus(node.get("housekeeping", "")) & mine
            taken = self.house[number] | _cpus(node.get("data_plane", "")) | _cpus(node.get("busy", ""))
            self.free[number] = mine - taken
            self.l3[number] = [_cpus(text) for text in node.get("l3", ())] or [mine]
        self.functions: dict[str, dict[str, Any]] = {one["address"]: one for one in data.get("functions", ())}


# -- one guest --------------------------------------------------------------------------------------------------------


def _check_guest(guest: dict[str, Any], seat: dict[str, Any], host: _Host) -> list[str]:
    found: list[str] = []
    data = host.data
    if guest.get("hosts") and host.name not in guest["hosts"]:
        found.append(f"it may only be on {', '.join(guest['hosts'])}, and is on {host.name}")
    if data.get("drained"):
        found.append(f"{host.name} is drained")
    if guest.get("architecture", "x86_64") != data.get("architecture", "x86_64"):
        found.append(f"its architecture is {guest.get('architecture')}, that of {host.name} {data.get('architecture')}")
    for key, what in (("features", "lacks"), ("networks", "is not wired to")):
        missing = sorted(set(guest.get(key, ())) - set(data.get(key, ())))
        if missing:
            found.append(f"{host.name} {what} {', '.join(missing)}")
    nodes = list(seat.get("nodes", ()))
    if any(node not in host.nodes for node in nodes):
        return [*found, f"node {nodes} is not on {host.name}"]
    threads = guest.get("threads", "isolate")
    if threads == "overcommit":
        if nodes or seat.get("cpus"):
            found.append("it floats over the whole host, and its seat names nodes or CPUs")
        vcpus = sum(cell["vcpus"] for cell in guest["cells"])
        if vcpus > len(host.core_of):
            found.append(f"it has {vcpus} vCPUs, {host.name} {len(host.core_of)} CPUs")
    else:
        if len(nodes) != len(guest["cells"]):
            return [*found, f"it has {len(guest['cells'])} cells and {len(nodes)} nodes"]
        if len(set(nodes)) != len(nodes):
            found.append(f"two of its cells are on one node ({nodes})")
    found += _check_cpus(guest, seat, host, threads)
    found += _check_pages(guest, seat, host)
    found += _check_near(guest, nodes, host)
    found += _check_functions(guest, seat, nodes, host)
    return found


def _check_cpus(guest: dict[str, Any], seat: dict[str, Any], host: _Host, threads: str) -> list[str]:
    found: list[str] = []
    cpus = [list(cell) for cell in seat.get("cpus", ())]
    idle = _cpus(seat.get("idle", ""))
    if threads in ("float", "overcommit"):
        if cpus:
            found.append("it floats, and its seat names CPUs")
        if idle:
            found.append("it floats, and threads are kept empty for it")
    elif len(cpus) != len(guest["cells"]):
        return [f"it has {len(guest['cells'])} cells, and CPUs for {len(cpus)}"]
    mine = {cpu for cell in cpus for cpu in cell}
    for index, (cell, node) in enumerate(zip(cpus, seat.get("nodes", ()), strict=False)):
        wanted = guest["cells"][index]["vcpus"]
        if len(cell) != wanted:
            found.append(f"cell {index} has {wanted} vCPUs, and {len(cell)} CPUs")
        if len(set(cell)) != len(cell):
            found.append(f"two vCPUs of cell {index} are on one CPU")
        strange = sorted(set(cell) - host.free[node])
        if strange:
            found.append(f"CPU {strange} is not free on node {node}")
            continue
        cores = {host.core_of[cpu] for cpu in cell}
        if guest.get("l3", "prefer") == "require" and not any(set(cell) <= group for group in host.l3[node]):
            found.append(f"the vCPUs of cell {index} do not share one L3 cache")
        if threads == "isolate" and len(cores) != len(cell):
            found.append(f"vCPUs of cell {index} share a core")
        if threads in ("whole", "require") and cell:
            short = [core for core in cores if not core <= set(cell)]
            if len(short) > 1 or len(cores) > _fewest(len(cell), cores):
                found.append(f"the vCPUs of cell {index} do not fill whole cores")
        if threads in ("isolate", "whole"):
            beside = {cpu for core in cores for cpu in core} - mine
            if beside - idle:
                found.append(f"CPU {sorted(beside - idle)} beside cell {index} is not kept empty")
    lost = sorted(cpu for cpu in idle if cpu not in host.node_of or cpu not in host.free[host.node_of[cpu]])
    if lost:
        found.append(f"CPU {lost}, which is to stay empty beside it, is another's")
    if idle & mine:
        found.append(f"CPU {sorted(idle & mine)} is to stay empty and carries a vCPU")
    found += _check_emulator(guest, seat, host, mine, idle)
    return found


def _fewest(vcpus: int, cores: set[frozenset[int]]) -> int:
    """How many of these cores, the largest first, carry so many vCPUs on all their threads."""
    count, left = 0, vcpus
    for size in sorted((len(core) for core in cores), reverse=True):
        if left <= 0:
            break
        left -= size
        count += 1
    return count


def _check_emulator(
    guest: dict[str, Any], seat: dict[str, Any], host: _Host, mine: set[int], idle: set[int]
) -> list[str]:
    emulator = _cpus(seat.get("emulator", ""))
    nodes = list(seat.get("nodes", ())) or list(host.nodes)
    if guest.get("emulator", "housekeeping") == "housekeeping":
        house: set[int] = set().union(*(host.house[node] for node in nodes))
        if emulator - house:
            return [f"its emulator is on CPU {sorted(emulator - house)}, which is no housekeeping of node {nodes}"]
        return []
    if len(emulator) != 1:
        return [f"its emulator is to have one CPU of its own, and has {len(emulator)}"]
    (cpu,) = emulator
    if cpu not in host.free[nodes[0]]:
        return [f"CPU {cpu} of its emulator is not free on node {nodes[0]}, that of its first cell"]
    found = []
    if cpu in mine or cpu in idle:
        found.append(f"its emulator is on CPU {cpu}, which is a vCPU's or is to stay empty")
    if guest.get("threads", "isolate") == "isolate" and (host.core_of[cpu] - {cpu}) - idle:
        found.append(f"CPU {sorted((host.core_of[cpu] - {cpu}) - idle)} beside its emulator is not kept empty")
    return found


def _check_pages(guest: dict[str, Any], seat: dict[str, Any], host: _Host) -> list[str]:
    page = seat.get("page_bytes")
    wish = guest.get("pages", "huge-largest")
    if wish == "ordinary":
        return ["it wants ordinary pages, and has huge ones"] if page else []
    if wish == "any" and not page:
        return []
    if not page:
        return ["it wants huge pages, and has ordinary ones"]
    if isinstance(wish, int) and page != wish:
        return [f"it wants pages of {wish} bytes, and has such of {page}"]
    if any(cell["memory_bytes"] % page for cell in guest["cells"]):
        return [f"the memory of a cell is no whole number of pages of {page} bytes"]
    offered = {size["page_bytes"] for node in host.nodes.values() for size in node.get("pages", ())}
    fitting = sorted(
        size for size in offered if size >= HUGE and not any(cell["memory_bytes"] % size for cell in guest["cells"])
    )
    if wish == "huge-largest" and fitting and page != fitting[-1]:
        return [f"its pages are of {page} bytes, and {host.name} offers {fitting[-1]}"]
    if wish == "huge-smallest" and fitting and page != fitting[0]:
        return [f"its pages are of {page} bytes, and {host.name} offers {fitting[0]}"]
    return []


def _check_near(guest: dict[str, Any], nodes: list[int], host: _Host) -> list[str]:
    found = []
    limit = guest.get("max_distance")
    if limit is not None:
        for one, other in combinations(nodes, 2):
            far = _distance(host, one, other)
            if far is None or far > limit:
                found.append(f"nodes {one} and {other} are {far} apart, {limit} is the most")
    near = guest.get("near")
    if near is not None:
        place = host.data.get("places", {}).get(near)
        if place is None:
            found.append(f"{host.name} has no {near}")
        elif nodes and place >= 0 and place not in nodes:
            found.append(f"it is to be near {near} on node {place}, and is on {nodes}")
    return found


def _distance(host: _Host, one: int, other: int) -> int | None:
    table = host.nodes[one].get("distances", {})
    value = table.get(other, table.get(str(other)))
    return None if value is None else int(value)


def _check_functions(guest: dict[str, Any], seat: dict[str, Any], nodes: list[int], host: _Host) -> list[str]:
    addresses = list(seat.get("functions", ()))
    found = _duplicates("function", addresses)
    for address in addresses:
        if address not in host.functions:
            return [*found, f"{host.name} has no function {address}"]
        if host.functions[address].get("busy"):
            found.append(f"function {address} is another's")
    slots = [wish for wish in guest.get("functions", ()) for _ in range(wish.get("count", 1))]
    if len(slots) != len(addresses):
        return [*found, f"it wants {len(slots)} functions, and has {len(addresses)}"]
    owner: dict[str, int] = {}

    def give(slot: int, seen: set[str]) -> bool:
        for address in addresses:
            if address not in seen and _serves(host.functions[address], slots[slot], nodes):
                seen.add(address)
                if address not in owner or give(owner[address], seen):
                    owner[address] = slot
                    return True
        return False

    if not all(give(slot, set()) for slot in range(len(slots))):
        found.append("its functions are not those that it wants, near enough")
    return found


def _serves(function: dict[str, Any], wish: dict[str, Any], nodes: list[int]) -> bool:
    if any(wish.get(key) is not None and wish[key] != function.get(key) for key in ("pool", "type", "network")):
        return False
    return wish.get("near", "required") != "required" or not nodes or function.get("node") in nodes


# -- one host ---------------------------------------------------------------------------------------------------------


def _check_host(
    host: _Host, names: list[str], guests: dict[str, dict[str, Any]], seats: dict[str, dict[str, Any]]
) -> list[str]:
    found: list[str] = []
    holders: dict[int, str] = {}
    alone: dict[int, str] = {}  # threads that nobody may be on
    for name in names:
        seat, guest = seats[name], guests[name]
        taken = [cpu for cell in seat.get("cpus", ()) for cpu in cell]
        if guest.get("emulator", "housekeeping") == "own":
            taken += sorted(_cpus(seat.get("emulator", "")))
        for cpu in taken:
            if cpu in holders and holders[cpu] != name:
                found.append(f"CPU {cpu} is {holders[cpu]}'s and {name}'s")
            holders[cpu] = name
        for cpu in _cpus(seat.get("idle", "")):
            if cpu in alone and alone[cpu] != name:
                found.append(f"CPU {cpu} is kept empty by {alone[cpu]} and by {name}")
            alone[cpu] = name
    for cpu in sorted(holders.keys() & alone.keys()):
        if holders[cpu] != alone[cpu]:
            found.append(f"CPU {cpu} is kept empty by {alone[cpu]} and carries {holders[cpu]}")
    found += _check_shared(host, names, guests, seats, holders.keys() | alone.keys())
    found += _check_memory(host, names, guests, seats)
    return found + _check_groups_of_functions(host, names, seats)


def _check_shared(
    host: _Host,
    names: list[str],
    guests: dict[str, dict[str, Any]],
    seats: dict[str, dict[str, Any]],
    taken: set[int],
) -> list[str]:
    """Guests without CPUs of their own: what is left for them."""
    found: list[str] = []
    left = {node: len(free - taken) for node, free in host.free.items()}
    for name in names:
        if guests[name].get("threads") == "float":
            for cell, node in zip(guests[name]["cells"], seats[name]["nodes"], strict=False):
                left[node] -= cell["vcpus"]
    for node, count in left.items():
        if count < 0:
            found.append(f"on node {node} {-count} CPUs too few are left for guests that share")
    loose = sum(
        cell["vcpus"] for name in names if guests[name].get("threads") == "overcommit" for cell in guests[name]["cells"]
    )
    room = sum(max(0, count) for count in left.values()) * host.data.get("overcommit", 4)
    if loose > room:
        found.append(f"{loose} vCPUs of flexible guests, and there is room for {room}")
    return found


def _check_memory(
    host: _Host, names: list[str], guests: dict[str, dict[str, Any]], seats: dict[str, dict[str, Any]]
) -> list[str]:
    found: list[str] = []
    by_page: Counter[tuple[int, int]] = Counter()
    by_node: Counter[int] = Counter()
    loose = 0
    for name in names:
        guest, seat = guests[name], seats[name]
        if not seat.get("nodes"):
            loose += sum(cell["memory_bytes"] for cell in guest["cells"])
            continue
        for cell, node in zip(guest["cells"], seat["nodes"], strict=False):
            by_node[node] += cell["memory_bytes"]
            if seat.get("page_bytes"):
                by_page[node, seat["page_bytes"]] += cell["memory_bytes"]
    for (node, page), size in sorted(by_page.items()):
        room = sum(one["free_bytes"] for one in host.nodes[node].get("pages", ()) if one["page_bytes"] == page)
        if size > room:
            found.append(f"{size} bytes in pages of {page} on node {node}, and there is room for {room}")
    for node, size in sorted(by_node.items()):
        if size > host.nodes[node]["memory_bytes"]:
            found.append(f"{size} bytes on node {node}, and there is room for {host.nodes[node]['memory_bytes']}")
    total = sum(node["memory_bytes"] for node in host.nodes.values())
    if loose and loose + sum(by_node.values()) > total:
        found.append(f"{loose + sum(by_node.values())} bytes for all guests, and there is room for {total}")
    ordinary = [
        one["free_bytes"] for node in host.nodes.values() for one in node.get("pages", ()) if one["page_bytes"] == SMALL
    ]
    if ordinary and loose > sum(ordinary):
        found.append(f"{loose} bytes in ordinary pages, and there is room for {sum(ordinary)}")
    return found


def _check_groups_of_functions(host: _Host, names: list[str], seats: dict[str, dict[str, Any]]) -> list[str]:
    found: list[str] = []
    holder: dict[str, str] = {}
    for name in names:
        for address in seats[name].get("functions", ()):
            if address in holder:
                found.append(f"function {address} is {holder[address]}'s and {name}'s")
            holder[address] = name
    groups: dict[int, set[str]] = defaultdict(set)
    for address, one in host.functions.items():
        who = "somebody else" if one.get("busy") else holder.get(address)
        if one.get("iommu_group") is not None and who is not None:
            groups[one["iommu_group"]].add(who)
        parent = one.get("physical_function")
        if parent in holder and (address in holder or one.get("busy")):
            found.append(f"function {address} is taken, and so is {parent}, of which it is a part")
    for group, owners in sorted(groups.items()):
        if len(owners) > 1:
            found.append(f"IOMMU group {group} is divided between {', '.join(sorted(owners))}")
    return found


# -- the fleet --------------------------------------------------------------------------------------------------------


def _check_groups(
    guests: dict[str, dict[str, Any]], seats: dict[str, dict[str, Any]], hosts: dict[str, _Host]
) -> list[str]:
    found: list[str] = []
    apart: dict[tuple[str, str], list[str]] = defaultdict(list)
    racks: dict[tuple[str, str], list[str]] = defaultdict(list)
    together: dict[str, set[str]] = defaultdict(set)
    for name, seat in sorted(seats.items()):
        guest, host = guests[name], hosts[seat["host"]]
        rack = host.data.get("rack") or host.name  # a host that says nothing is a rack of its own
        for group in guest.get("apart", ()):
            apart[group, host.name].append(name)
        for group in guest.get("apart_racks", ()):
            racks[group, rack].append(name)
        for group in guest.get("together", ()):
            together[group].add(host.name)
    for where, what in ((apart, "host"), (racks, "rack")):
        for (group, place), names in sorted(where.items()):
            if len(names) > 1:
                found.append(f"{', '.join(names)} of group {group} share {what} {place}, and are to be apart")
    for group, places in sorted(together.items()):
        if len(places) > 1:
            found.append(f"group {group} is to be together, and is on {', '.join(sorted(places))}")
    return found


def _check_stay(guests: dict[str, dict[str, Any]], seats: dict[str, dict[str, Any]]) -> list[str]:
    found = []
    for name, guest in sorted(guests.items()):
        now = guest.get("now")
        if not now or guest.get("movable", True):
            continue
        if name not in seats:
            found.append(f"{name} may not be moved, and has no seat any more")
        elif (
            any(list(now.get(key, ())) != list(seats[name].get(key, ())) for key in ("nodes", "cpus", "functions"))
            or now["host"] != seats[name]["host"]
        ):
            found.append(f"{name} may not be moved, and is")
    return found


def _check_limits(plan: dict[str, Any], on: dict[str, list[str]], hosts: dict[str, _Host]) -> list[str]:
    found = []
    most = plan.get("max_hosts")
    if most is not None and len(on) > most:
        found.append(f"{len(on)} hosts are used, {most} is the most")
    budget = plan.get("power_watts")
    if budget is not None:
        power = sum(hosts[host].data.get("power_watts") or 0 for host in on)
        if power > budget:
            found.append(f"the hosts take {power} W, {budget} W is the most")
    return found


def _check_standby(plan: dict[str, Any], on: dict[str, list[str]]) -> list[str]:
    """For every host that has guests: a placement without it, in which nobody else moves."""
    found = []
    instead = {one["host"]: one["seats"] for one in plan.get("failover", ())}
    tied = {guest["name"]: guest.get("hosts") for guest in plan["guests"]}
    for host in sorted(on):
        here = {seat["name"] for seat in plan["seats"] if seat["host"] == host}
        lost = {name for name in here if list(tied.get(name) or ()) != [host]}
        new = instead.get(host, [])
        if {seat["name"] for seat in new} != lost:
            missing = sorted(lost - {seat["name"] for seat in new})
            found.append(f"if {host} fails, there is no room for {', '.join(missing) or 'others than its guests'}")
            continue
        after = {
            "hosts": [{**one, "drained": one.get("drained") or one["name"] == host} for one in plan["hosts"]],
            "guests": [{**one, "now": None} for one in plan["guests"] if one["name"] not in here - lost],
            "seats": [seat for seat in plan["seats"] if seat["host"] != host] + list(new),
            "refused": plan.get("refused", ()),
        }
        found += [f"if {host} fails: {text}" for text in check_placement(after)]
    return found


# -- plain things -----------------------------------------------------------------------------------------------------


def _duplicates(what: str, names: list[str]) -> list[str]:
    return [f"{what} {name} is there {count} times" for name, count in sorted(Counter(names).items()) if count > 1]


def _cpus(text: str) -> set[int]:
    """A CPU list of the kernel's format."""
    found: set[int] = set()
    for part in text.split(","):
        if part.strip():
            first, _, last = part.partition("-")
            found |= set(range(int(first), int(last or first) + 1))
    return found
