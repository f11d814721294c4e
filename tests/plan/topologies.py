"""Machines of every shape that the planner must cope with, told twice: as Facts, and as the /sys they are read from.

A :class:`Machine` is the truth: threads, cores, nodes, caches, memory.  Tests compare what the product made of its
facts with this truth, never with the product's own idea of it.  Nothing here may import :mod:`evenkeel.plan`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from hypothesis import strategies as st

from evenkeel.documents.cpuset import format_cpus, format_mask
from evenkeel.documents.facts import Cache, Cpu, Facts, HugePages, Node
from evenkeel.machines.tree import TarFiles
from tests.plan.factories import GIB, MIB, _devices, _kernel_threads, _settings, make_facts

L3_BYTES = 32 * MIB
PAGES = (2 * MIB, GIB)


@dataclass(frozen=True)
class Thread:
    """One logical CPU and the hardware that it is part of.  ``core`` is unique in the machine."""

    cpu: int
    package: int
    core: int
    node: int
    l3: int
    kind: str | None = None
    online: bool = True


@dataclass(frozen=True)
class Machine:
    """``memory``: node -> bytes, nodes without CPUs too.  ``pools``: (node, page bytes) -> pages, and in use."""

    threads: tuple[Thread, ...]
    memory: Mapping[int, int]
    numa: bool = True
    pools: Mapping[tuple[int, int], tuple[int, int]] = field(default_factory=dict)

    @property
    def online(self) -> frozenset[int]:
        return frozenset(thread.cpu for thread in self.threads if thread.online)

    def cores(self) -> dict[int, frozenset[int]]:
        """Core -> its online threads; cores that are wholly offline are left out."""
        return self._by(lambda thread: thread.core)

    def l3(self) -> dict[int, frozenset[int]]:
        return self._by(lambda thread: thread.l3)

    def node_cpus(self) -> dict[int, frozenset[int]]:
        """Node -> its online CPUs, for nodes that have any.  Without NUMA all are on node 0."""
        return self._by(lambda thread: thread.node if self.numa else 0)

    def node_memory(self) -> dict[int, int]:
        return dict(self.memory) if self.numa else {0: sum(self.memory.values())}

    def core_of(self, cpu: int) -> frozenset[int]:
        return next(cpus for cpus in self.cores().values() if cpu in cpus)

    def kind_of(self, cpu: int) -> str | None:
        return next(thread.kind for thread in self.threads if thread.cpu == cpu)

    def _by(self, key: Any) -> dict[int, frozenset[int]]:
        found: dict[int, set[int]] = {}
        for thread in self.threads:
            if thread.online:
                found.setdefault(key(thread), set()).add(thread.cpu)
        return {name: frozenset(cpus) for name, cpus in sorted(found.items())}

    def facts(self, **update: Any) -> Facts:
        """The facts that the probe would find, with the devices and settings of the demo host around them."""
        cores = self.cores()
        everyone = self.online
        hybrid = len({thread.kind for thread in self.threads if thread.online}) > 1
        numbers = {core: index for index, core in enumerate(sorted({thread.core for thread in self.threads}))}
        node_cpus = {node: set(self.node_cpus().get(node, ())) for node in sorted(self.node_memory())}
        pools = {node: tuple(self._pool(node, size) for size in PAGES) for node in node_cpus}
        nodes = tuple(
            Node(
                id=node,
                cpus=frozenset(cpus),
                memory_bytes=self.memory[node],
                distances={other: self.distance(node, other) for other in node_cpus},
                huge_pages=pools[node],
            )
            for node, cpus in node_cpus.items()
            if self.numa
        )
        body: dict[str, Any] = {
            "cpus": tuple(
                Cpu(
                    id=thread.cpu,
                    package=thread.package,
                    core=numbers[thread.core],
                    node=thread.node if self.numa else None,
                    siblings=cores[thread.core],
                    kind=thread.kind if hybrid else None,
                )
                if thread.online
                else Cpu(id=thread.cpu, online=False)
                for thread in self.threads
            ),
            "possible": frozenset(thread.cpu for thread in self.threads),
            "smt": "on" if any(len(cpus) > 1 for cpus in cores.values()) else "off",
            "caches": tuple(
                sorted(
                    (Cache(level=3, type="unified", size_bytes=L3_BYTES, cpus=cpus) for cpus in self.l3().values()),
                    key=lambda cache: min(cache.cpus),
                )
            ),
            "nodes": nodes,
            "memory_bytes": sum(self.memory.values()),
            "huge_pages": tuple(
                HugePages(
                    page_bytes=size,
                    total=sum(pools[node][index].total for node in pools),
                    free=sum(pools[node][index].free or 0 for node in pools),
                )
                for index, size in enumerate(PAGES)
            ),
            "kernel_threads": _kernel_threads(everyone, True),
            "settings": _settings(everyone, True, "6.12.117", nodes),
            **_devices({node: cpus for node, cpus in node_cpus.items() if cpus}, everyone, self.numa),
        }
        return make_facts(sockets=1, cores=1, threads=1).model_copy(update=body | update)

    def distance(self, one: int, other: int) -> int:
        """As firmware tells it: nodes of one socket (sub-NUMA clusters) are nearer than those of another."""
        packages = [{thread.package for thread in self.threads if thread.node == node} for node in (one, other)]
        return 10 if one == other else 12 if packages[0] & packages[1] else 21

    def _pool(self, node: int, size: int) -> HugePages:
        total, used = self.pools.get((node, size), (0, 0))
        return HugePages(page_bytes=size, total=total, free=total - used)

    def files(self) -> TarFiles:
        """The part of /sys and /proc that tells the topology, as the kernel writes it, in memory."""
        files = TarFiles()
        for path, text in self._paths():
            files.add_file(path, f"{text}\n".encode(), 0o444)
        files.descend()
        return files

    def _paths(self) -> Iterable[tuple[str, object]]:
        cpu = "/sys/devices/system/cpu"
        everyone = frozenset(thread.cpu for thread in self.threads)
        cores, caches = self.cores(), self.l3()
        numbers = {core: index for index, core in enumerate(sorted({thread.core for thread in self.threads}))}
        for name in ("present", "possible"):
            yield f"{cpu}/{name}", format_cpus(everyone)
        yield f"{cpu}/online", format_cpus(self.online)
        yield f"{cpu}/smt/control", self.facts().smt
        for thread in self.threads:
            here = f"{cpu}/cpu{thread.cpu}"
            yield f"{here}/online", int(thread.online)
            if not thread.online:  # the kernel takes the folders topology and cache away
                continue
            yield f"{here}/topology/physical_package_id", thread.package
            yield f"{here}/topology/core_id", numbers[thread.core]
            yield f"{here}/topology/thread_siblings", format_mask(cores[thread.core])
            yield f"{here}/topology/thread_siblings_list", format_cpus(cores[thread.core])
            for name, value in {
                "level": 3,
                "type": "Unified",
                "size": f"{L3_BYTES >> 10}K",
                "shared_cpu_map": format_mask(caches[thread.l3]),
                "shared_cpu_list": format_cpus(caches[thread.l3]),
            }.items():
                yield f"{here}/cache/index3/{name}", value
        for pmu, kind in (("cpu_core", "performance"), ("cpu_atom", "efficiency")):
            if any(thread.kind == kind for thread in self.threads):
                yield (
                    f"/sys/devices/{pmu}/cpus",
                    format_cpus(thread.cpu for thread in self.threads if thread.online and thread.kind == kind),
                )
        yield "/proc/meminfo", f"MemTotal: {sum(self.memory.values()) >> 10} kB"
        facts = self.facts()
        for pool in facts.huge_pages:
            yield from self._pool_paths("/sys/kernel/mm/hugepages", pool)
        for node in facts.nodes:
            here = f"/sys/devices/system/node/node{node.id}"
            yield f"{here}/cpulist", format_cpus(node.cpus)
            yield f"{here}/meminfo", f"Node {node.id} MemTotal: {node.memory_bytes >> 10} kB"
            yield f"{here}/distance", " ".join(str(distance) for _, distance in sorted(node.distances.items()))
            for pool in node.huge_pages:
                yield from self._pool_paths(f"{here}/hugepages", pool)

    @staticmethod
    def _pool_paths(folder: str, pool: HugePages) -> Iterable[tuple[str, object]]:
        here = f"{folder}/hugepages-{pool.page_bytes >> 10}kB"
        yield f"{here}/nr_hugepages", pool.total
        yield f"{here}/free_hugepages", pool.free


def build(
    *,
    sockets: int = 1,
    cores: int | Sequence[int] = 4,
    efficient: int = 0,
    threads: int = 2,
    nodes_per_socket: int = 1,
    l3_per_node: int = 1,
    interleaved: bool = True,
    hole: tuple[int, int] | None = None,
    offline: Iterable[int] = (),
    memory: int | Sequence[int] = 64 * GIB,
    node_numbers: Sequence[int] | None = None,
    expanders: Sequence[int] = (),
    numa: bool = True,
) -> Machine:
    """A machine from numbers.

    ``cores``: of each socket.  ``efficient``: single-threaded cores of each socket behind them (a hybrid machine).
    ``interleaved``: first all first threads, as most firmware counts (siblings 0,56); else siblings adjacent.
    ``hole`` (each, width): after ``each`` CPU numbers ``width`` are left out.  ``offline``: indices into the CPUs.
    ``memory``: of each node with CPUs.  ``node_numbers``: instead of 0, 1, ...  ``expanders``: memory of nodes
    without CPUs.
    """
    counts = [cores] * sockets if isinstance(cores, int) else list(cores)
    found: list[tuple[int, Thread]] = []  # which thread of its core, and the thread without its number
    core = node = l3 = 0
    for package, count in enumerate(counts):
        kinds: list[str | None] = ["performance" if efficient else None] * count + ["efficiency"] * efficient
        for part in range(nodes_per_socket):
            mine = kinds[len(kinds) * part // nodes_per_socket : len(kinds) * (part + 1) // nodes_per_socket]
            for index, kind in enumerate(mine):
                cache = l3 + index * l3_per_node // len(mine)
                for thread in range(1 if kind == "efficiency" else threads):
                    found.append((thread, Thread(0, package, core, node, cache, kind)))
                core += 1
            node += 1
            l3 += l3_per_node
    if interleaved:
        found.sort(key=lambda pair: pair[0])  # stable: cores stay in their order
    names = list(node_numbers or range(node + len(expanders)))
    sizes = [memory] * node if isinstance(memory, int) else list(memory)
    gone = set(offline)
    each, width = hole or (1 << 30, 0)
    return Machine(
        threads=tuple(
            replace(thread, cpu=index + index // each * width, node=names[thread.node], online=index not in gone)
            for index, (_, thread) in enumerate(found)
        ),
        memory=dict(zip(names, [*sizes, *expanders], strict=True)),
        numa=numa,
    )


#: One of each kind, with the name that a reader knows it by.
NAMED: dict[str, Machine] = {
    "interleaved siblings (0,56)": build(sockets=2, cores=28, memory=192 * GIB),
    "adjacent siblings": build(sockets=2, cores=4, interleaved=False),
    "AMD, one node, eight CCX": build(cores=64, l3_per_node=8, memory=512 * GIB),
    "AMD, four nodes a socket, two CCX each": build(sockets=2, cores=64, nodes_per_socket=4, l3_per_node=2),
    "sub-NUMA clusters": build(sockets=2, cores=12, nodes_per_socket=2),
    "holes in the numbers of CPUs": build(sockets=2, cores=6, hole=(4, 3)),
    "nodes 0 and 8 of POWER, SMT 4": build(sockets=2, cores=4, threads=4, interleaved=False, node_numbers=(0, 8)),
    "SMT 8": build(cores=3, threads=8, interleaved=False),
    "offline CPUs, CPU 0 among them": build(sockets=2, cores=4, offline=(0, 3, 9, 10)),
    "hybrid": build(cores=6, efficient=8, interleaved=False),
    "asymmetric memory": build(sockets=2, cores=4, memory=(256 * GIB, 2 * GIB)),
    "node without memory": build(sockets=2, cores=4, memory=(64 * GIB, 0)),
    "first node without memory": build(sockets=2, cores=4, memory=(0, 64 * GIB)),
    "node without CPUs": build(sockets=2, cores=4, expanders=(512 * GIB,)),
    "memory only where no CPU is": build(cores=4, memory=(0,), node_numbers=(1, 0), expanders=(64 * GIB,)),
    "unlike sockets": build(sockets=2, cores=(10, 2)),
    "one CPU": build(cores=1, threads=1, memory=4 * GIB),
    "one core": build(cores=1, memory=4 * GIB),
    "1024 CPUs": build(sockets=8, cores=64, memory=128 * GIB),
    "SMT off": build(sockets=2, cores=8, threads=1),
    "no NUMA": build(cores=6, numa=False),
}


@st.composite
def machines(draw: st.DrawFn, *, big: bool = False) -> Machine:
    """Any of these kinds, and what they have in common: mostly machines with room, now and then a crippled one."""
    sockets = draw(st.integers(1, 4 if big else 2))
    per_socket = draw(st.sampled_from((1, 1, 1, 2, 4) if big else (1, 1, 2)))
    sizes = st.sampled_from([size for size in (1, 2, 4, 8, 12, 24 if big else 6) if size >= per_socket])
    efficient = draw(st.sampled_from((0, 0, 0, 2, 4)))
    counts = draw(sizes.map(lambda cores: [cores] * sockets) | st.tuples(*[sizes] * sockets).map(list))
    threads = draw(st.sampled_from((1, 2, 2, 2, 4, 8) if big else (1, 2, 2, 4)))
    expanders = draw(st.lists(st.sampled_from((0, 16 * GIB)), max_size=1))
    nodes = sockets * per_socket + len(expanders)
    total = sum(counts) * threads + efficient * sockets
    machine = build(
        sockets=sockets,
        cores=counts,
        efficient=efficient,
        threads=threads,
        nodes_per_socket=per_socket,
        l3_per_node=draw(st.sampled_from((1, 1, 2, 4))),
        interleaved=draw(st.booleans()),
        hole=draw(st.none() | st.tuples(st.integers(1, 8), st.integers(1, 5))),
        offline=draw(st.frozensets(st.integers(0, total - 1), max_size=draw(st.sampled_from((0, 0, 3, total - 1))))),
        memory=draw(
            st.lists(
                st.sampled_from((64 * GIB, 64 * GIB, 8 * GIB, 1536 * MIB, 0)),
                min_size=sockets * per_socket,
                max_size=sockets * per_socket,
            )
        ),
        node_numbers=draw(st.none() | st.permutations(range(0, 2 * nodes, 2)).map(lambda names: names[:nodes])),
        expanders=expanders,
        numa=draw(st.sampled_from((True, True, True, True, False))),
    )
    key = st.tuples(st.sampled_from(sorted(machine.memory)), st.sampled_from(PAGES))
    pool = st.sampled_from(((1, 0), (1, 1), (4, 2), (30, 30), (30, 0), (600, 600)))
    pools = dict(draw(st.lists(st.tuples(key, pool), max_size=draw(st.sampled_from((0, 1, 3))))))
    room = {
        key: pool for key, pool in pools.items() if pool[0] * key[1] * 2 <= machine.memory[key[0]]
    }  # a kernel never shows more pages than the node has memory
    return replace(machine, pools=room)
