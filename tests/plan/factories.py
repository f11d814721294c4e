"""Small Facts and Sites for tests: machines of any shape, made from numbers.  No I/O.

``make_facts()`` is the virtual host of the demo: 2 sockets x 3 cores x 2 threads, siblings adjacent, two nodes of
1.5 GiB, a 6.12 PREEMPT_RT kernel, with a network card and a disk on either node.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from evenkeel.documents.cpuset import format_cpus, format_mask
from evenkeel.documents.facts import (
    BlockDevice,
    Cache,
    Cpu,
    Facts,
    HugePages,
    Identity,
    Interrupt,
    Kernel,
    KernelThread,
    Nic,
    Node,
    PciFunction,
)
from evenkeel.documents.site import Boot, GuestWish, HostWish, Site

MIB, GIB = 1 << 20, 1 << 30
RT_KERNEL = "6.12.117+deb12-rt-amd64"
STANDARD_KERNEL = "6.12.117+deb12-amd64"


def number(socket: int, core: int, thread: int, *, sockets: int, cores: int, threads: int, interleaved: bool) -> int:
    """Logical CPU number: siblings adjacent, as QEMU counts, or all first threads first, as most firmware does."""
    if interleaved:
        return (thread * sockets + socket) * cores + core
    return (socket * cores + core) * threads + thread


def make_facts(
    *,
    sockets: int = 2,
    nodes_per_socket: int = 1,
    cores: int = 3,  # per socket
    threads: int = 2,
    interleaved: bool = False,
    offline: Iterable[int] = (),
    l3_cores: int | None = None,  # cores that share an L3; None: all of a socket
    node_bytes: int = 1536 * MIB,
    kernel: str = RT_KERNEL,
    preempt_rt: bool = True,
    command_line: str = "BOOT_IMAGE=/vmlinuz root=/dev/vda1 ro console=ttyS0",
    numa: bool = True,
    settings: dict[str, str] | None = None,
    **update: Any,
) -> Facts:
    """Facts of a machine.  ``update`` replaces whole parts of the document; ``settings`` adds to the files."""
    gone = frozenset(offline)
    shape = {"sockets": sockets, "cores": cores, "threads": threads}
    cpus: dict[int, Cpu] = {}
    node_cpus: dict[int, set[int]] = {n: set() for n in range(sockets * nodes_per_socket)}
    l3: dict[tuple[int, int], set[int]] = {}
    for socket in range(sockets):
        for core in range(cores):
            node = socket * nodes_per_socket + core * nodes_per_socket // cores
            siblings = (
                frozenset(number(socket, core, thread, interleaved=interleaved, **shape) for thread in range(threads))
                - gone
            )
            for thread in range(threads):
                cpu = number(socket, core, thread, interleaved=interleaved, **shape)
                if cpu in gone:
                    cpus[cpu] = Cpu(id=cpu, online=False)
                    continue
                cpus[cpu] = Cpu(
                    id=cpu, package=socket, core=core, node=node if numa else None, siblings=siblings, capacity=1024
                )
                node_cpus[node].add(cpu)
                l3.setdefault((socket, core // (l3_cores or cores)), set()).add(cpu)
    everyone = frozenset(cpus) - gone
    pools = (HugePages(page_bytes=2 * MIB, total=0, free=0), HugePages(page_bytes=GIB, total=0, free=0))
    nodes = tuple(
        Node(
            id=node,
            cpus=frozenset(members),
            memory_bytes=node_bytes,
            distances={other: 10 if other == node else 21 for other in node_cpus},
            huge_pages=pools,
        )
        for node, members in node_cpus.items()
    )
    body: dict[str, Any] = {
        "identity": Identity(architecture="x86_64", product="Standard PC", hypervisor="qemu", emulated=True),
        "kernel": Kernel(
            release=kernel,
            version="#1 SMP PREEMPT_RT" if preempt_rt else "#1 SMP PREEMPT_DYNAMIC",
            preempt_rt=preempt_rt,
            command_line=command_line,
            installed=(STANDARD_KERNEL, RT_KERNEL),
            boot_loader="grub",
        ),
        "cpus": tuple(cpus[cpu] for cpu in sorted(cpus)),
        "possible": frozenset(cpus),
        "smt": "on" if threads > 1 else "notsupported",
        "caches": tuple(
            Cache(level=3, type="unified", size_bytes=16 * MIB, cpus=frozenset(members))
            for _, members in sorted(l3.items())
        ),
        "nodes": nodes if numa else (),
        "memory_bytes": node_bytes * len(node_cpus),
        "huge_pages": pools,
        "clocksource": "tsc",
        "clocksources": ("tsc", "hpet"),
        "kvm_usable": True,
        "cgroup_version": 2,
        "programs": {"libvirt": "9.0.0", "qemu": "7.2.22", "python": "3.11.2", "systemd": "252"},
        "kernel_threads": _kernel_threads(everyone, preempt_rt),
        **_devices(node_cpus, everyone, numa),
    }
    body["settings"] = _settings(everyone, preempt_rt, kernel, nodes if numa else ()) | (settings or {})
    return Facts(**(body | update))


def _kernel_threads(cpus: frozenset[int], preempt_rt: bool) -> tuple[KernelThread, ...]:
    fifo = ("irq_work", "ktimers", "rcuc") if preempt_rt else ()
    return tuple(
        KernelThread(name=f"{name}/{cpu}", policy="fifo", priority=1, cpus=frozenset({cpu}))
        for name in fifo
        for cpu in sorted(cpus)
    ) + tuple(
        KernelThread(name=f"ksoftirqd/{cpu}", policy="other", priority=0, cpus=frozenset({cpu})) for cpu in sorted(cpus)
    )


def _devices(node_cpus: dict[int, set[int]], everyone: frozenset[int], numa: bool) -> dict[str, Any]:
    """On each of the first two nodes a network card with ordinary interrupts and an NVMe with a managed queue
    per CPU.
    """
    pci: list[PciFunction] = []
    nics: list[Nic] = []
    blocks: list[BlockDevice] = []
    interrupts = [Interrupt(number=0, action="timer", affinity=everyone, effective=frozenset({0}), managed=True)]
    irq = 24
    for index, (node, members) in enumerate(list(node_cpus.items())[:2]):
        where = node if numa else None
        local = frozenset(members) if numa else everyone
        bus = 0x10 * (index + 1)
        card, disk = f"0000:{bus:02x}:00.0", f"0000:{bus:02x}:01.0"
        pci.append(
            PciFunction(address=card, class_code="020000", vendor="8086", device="10d3", node=where, local_cpus=local)
        )
        pci.append(
            PciFunction(address=disk, class_code="010802", vendor="1b36", device="0010", node=where, local_cpus=local)
        )
        name = f"ens{index + 2}"  # as on the virtual host
        queues = tuple(f"nvme{index}q{queue}" for queue in range(1, len(everyone) + 1))
        nics.append(Nic(name=name, pci=card, driver="e1000e", node=where, interrupts=(f"{name}-rx-0", f"{name}-tx-0")))
        blocks.append(BlockDevice(name=f"nvme{index}n1", pci=disk, driver="nvme", node=where, interrupts=queues))
        for action in (f"{name}-rx-0", f"{name}-tx-0", f"nvme{index}q0"):
            interrupts.append(
                Interrupt(number=irq, action=action, affinity=everyone, effective=everyone, managed=False)
            )
            irq += 1
        for cpu, action in zip(sorted(everyone), queues, strict=True):
            one = frozenset({cpu})
            interrupts.append(Interrupt(number=irq, action=action, affinity=one, effective=one, managed=True))
            irq += 1
    return {"pci": tuple(pci), "nics": tuple(nics), "blocks": tuple(blocks), "interrupts": tuple(interrupts)}


def _settings(cpus: frozenset[int], preempt_rt: bool, kernel: str, nodes: tuple[Node, ...]) -> dict[str, str]:
    mask = format_mask(cpus)
    found = {
        "/proc/irq/default_smp_affinity": mask,
        "/proc/sys/kernel/hung_task_timeout_secs": "120",
        "/proc/sys/kernel/nmi_watchdog": "0",
        "/proc/sys/kernel/sched_rt_runtime_us": "950000",
        "/proc/sys/kernel/timer_migration": "1",
        "/proc/sys/kernel/watchdog_cpumask": format_cpus(cpus),
        "/proc/sys/net/core/rps_default_mask": "0",
        "/proc/sys/vm/compact_unevictable_allowed": "0" if preempt_rt else "1",
        "/proc/sys/vm/compaction_proactiveness": "20",
        "/proc/sys/vm/stat_interval": "1",
        "/proc/sys/vm/swappiness": "60",
        "/proc/sys/vm/zone_reclaim_mode": "0",
        "/sys/devices/system/cpu/isolated": "",
        "/sys/devices/system/cpu/nohz_full": " (null)",
        "/sys/devices/virtual/workqueue/cpumask": mask,
        "/sys/devices/virtual/workqueue/writeback/cpumask": mask,
        "/sys/kernel/mm/ksm/run": "0",
        "/sys/module/kvm/parameters/halt_poll_ns": "200000",
        "/sys/module/kvm/parameters/nx_huge_pages": "N",
        "/sys/module/rcutree/parameters/kthread_prio": "1",
        "/sys/module/rcutree/parameters/nohz_full_patience_delay": "0",
    }
    if not preempt_rt:
        found["/proc/sys/kernel/numa_balancing"] = "1"
        found["/sys/kernel/mm/transparent_hugepage/enabled"] = "always [madvise] never"
    if int(kernel.split(".")[0]) * 100 + int(kernel.split(".")[1]) >= 612:
        for cpu in sorted(cpus):
            found[f"/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime"] = "50000000"
    for node in nodes:
        for pool in node.huge_pages:
            folder = f"/sys/devices/system/node/node{node.id}/hugepages/hugepages-{pool.page_bytes >> 10}kB"
            found[f"{folder}/nr_hugepages"] = str(pool.total)
    return found


def guest(goal: str = "realtime", **wish: Any) -> GuestWish:
    """A guest of two vCPUs and 384 MiB that boots a kernel directly."""
    body: dict[str, Any] = {
        "goal": goal,
        "vcpus": 2,
        "memory": 384 * MIB,
        "boot": Boot(kernel="/var/lib/evenkeel/guest/vmlinux", initrd="/var/lib/evenkeel/guest/initrd.img"),
    }
    return GuestWish(**(body | wish))


def make_site(guests: dict[str, GuestWish] | None = None, **host: Any) -> Site:
    """One host named ``cell``.  Without guests: the two of examples/plc."""
    if guests is None:
        guests = {
            "hmi": guest("flexible", vcpus=1, memory=256 * MIB),
            "plc": guest("realtime", latency=100_000),
        }
    return Site(hosts={"cell": HostWish(**({"address": "virtual:plc"} | host))}, guests=guests)
