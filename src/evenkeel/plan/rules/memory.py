"""Rules about memory: H-HP-1, R-MM-3 (huge pages), H-THP, H-NUMA, R-MM-1 (KSM), R-MM-2 (compaction).

Source: reference host-tuning §2.3, §2.4.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from evenkeel.documents.facts import HugePages
from evenkeel.documents.plan import FileValue, Phase
from evenkeel.documents.quantity import format_size
from evenkeel.plan.placement import Placement
from evenkeel.plan.rules.rule import (
    ABSENT,
    ABSENT_ON_RT,
    HUGE,
    ISOLATING,
    Alternative,
    Context,
    Rule,
    Wanted,
    boot_argument,
    file_value,
    guests,
)

#: Guests that need pages of one size on one node, and how many.
Users = list[tuple[Placement, int]]
#: Pages of one size on one node, and the guests that need them.
Demand = dict[tuple[int, int], Users]


def demand(placements: Iterable[Placement]) -> Demand:
    """(page size in bytes, node) -> guests.  Without NUMA the node is 0."""
    wanted: Demand = {}
    for placement in placements:
        for cell in placement.cells if placement.page_bytes else ():
            wanted.setdefault((placement.page_bytes or 0, cell.node or 0), []).append((placement, cell.pages))
    return dict(sorted(wanted.items()))


def pool(context: Context, size: int, node: int) -> HugePages:
    """Huge pages of this size on this node now."""
    found = context.facts.node(node).huge_pages if context.topology.numa else context.facts.huge_pages
    return next((pages for pages in found if pages.page_bytes == size), HugePages(page_bytes=size, total=0))


def in_use(now: HugePages) -> int:
    return now.total - now.free if now.free is not None else 0


def count(context: Context, size: int, node: int, users: Users) -> int:
    """Pages to ask for: what the guests need, never fewer than are in use (by our guests or by others)."""
    return max(sum(pages for _, pages in users), in_use(pool(context, size, node)))


def short(size: int) -> str:
    """As the command line writes a page size: 2M, 1G, 64K."""
    return format_size(size).removesuffix("iB")


def pool_path(context: Context, size: int, node: int) -> str:
    kib = size >> 10
    if not context.topology.numa:
        return f"/sys/kernel/mm/hugepages/hugepages-{kib}kB/nr_hugepages"
    return f"/sys/devices/system/node/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages"


def _needs(users: Users) -> str:
    return ", ".join(
        f"{placement.name} {pages} ({format_size(pages * (placement.page_bytes or 0))})" for placement, pages in users
    )


def boot_pages(context: Context) -> Iterable[Wanted]:
    """Pages per node on the command line, for all guests: where there is a reboot anyway, balanced ones profit too."""
    wanted = demand(context.placements)
    sizes = sorted({size for size, _ in wanted})
    default = sizes[0]
    yield boot_argument(
        context,
        "default_hugepagesz",
        short(default),
        f"{guests(placement for placement in context.placements if placement.page_bytes)} memory is in pages of "
        f"{', '.join(format_size(size) for size in sizes)}; the smallest is the default, so that every other user of "
        "huge pages finds it",
        inputs={"page sizes": ", ".join(short(size) for size in sizes)},
        suffix="default",
    )
    for size in sizes:
        nodes = {node: users for (one, node), users in wanted.items() if one == size}
        counts = {node: count(context, size, node, users) for node, users in nodes.items()}
        numa = context.topology.numa
        value = ",".join(f"{node}:{number}" for node, number in counts.items()) if numa else str(counts[0])
        effective = None
        if len(counts) == 1:
            node = next(iter(counts))
            effective = FileValue(path=pool_path(context, size, node), compare="integer")
        yield boot_argument(
            context,
            "hugepages",
            value,
            f"taken at boot, while memory is in one piece: {_per_node(context, nodes)}",
            after=f"hugepagesz={short(size)}",
            effective=effective,
            effective_value=str(next(iter(counts.values()))) if effective else None,
            inputs={f"node {node}": _needs(users) for node, users in nodes.items()},
            suffix=short(size),
        )


def _per_node(context: Context, nodes: Mapping[int, Users]) -> str:
    if not context.topology.numa:
        return _needs(nodes[0])
    return "; ".join(f"node {node} for {_needs(users)}" for node, users in nodes.items())


def runtime_pages(context: Context) -> Iterable[Wanted]:
    """The same per node while running: repairs a pool that somebody changed, and serves balanced guests."""
    for (size, node), users in demand(context.placements).items():
        now = pool(context, size, node)
        number = count(context, size, node, users)
        target = FileValue(path=pool_path(context, size, node), compare="integer")
        where = f" on node {node}" if context.topology.numa else ""
        reason = f"{_needs(users)} of {format_size(size)}{where}, and strict binding allows no other place"
        if number > sum(pages for _, pages in users):
            reason += f"; {in_use(now)} are in use now, so the pool is not made smaller than that"
        yield Wanted(
            target=target,
            old=str(now.total),
            new=str(number),
            reason=reason,
            inputs={"guests": _needs(users), "in the pool": str(now.total), "in use": str(in_use(now))},
            suffix=f"node{node}-{short(size)}" if context.topology.numa else short(size),
            status="satisfied" if now.total == number else "change",
        )


def transparent(context: Context) -> Iterable[Wanted]:
    yield file_value(
        context,
        "/sys/kernel/mm/transparent_hugepage/enabled",
        "never",
        "khugepaged copies pages behind the back of whoever uses them; our guests have huge pages of their own",
        compare="choice",
        absent=ABSENT_ON_RT if context.preempt_rt else ABSENT,
    )


def balancing(context: Context) -> Iterable[Wanted]:
    yield file_value(
        context,
        "/proc/sys/kernel/numa_balancing",
        "0",
        "automatic NUMA balancing unmaps pages to learn who touches them, and each touch then faults; our guests are "
        "bound to their node anyway",
        compare="integer",
        absent=ABSENT_ON_RT if context.preempt_rt else ABSENT,
    )


def same_page_merging(context: Context) -> Iterable[Wanted]:
    path = "/sys/kernel/mm/ksm/run"
    # 0 only stops it; 2 also gives merged pages back.  Where it never ran, 0 is as good.
    never = context.facts.settings.get(path, "0") == "0" and context.facts.settings.get(
        "/sys/kernel/mm/ksm/pages_shared", "0"
    ) in ("0", "")
    yield file_value(
        context,
        path,
        "0" if never else "2",
        f"a write to a merged page must first copy it, which stops the vCPU; {guests(context.pinned)} pages are never "
        "merged (nosharepages), and the scanner itself runs on nobody's behalf",
        compare="integer",
    )


def compaction(context: Context) -> Iterable[Wanted]:
    for name, value, why in (
        ("compaction_proactiveness", "0", "background compaction moves pages and flushes the TLBs of all CPUs"),
        ("compact_unevictable_allowed", "0", "compaction must not move locked pages, guest memory among them"),
        ("swappiness", "10", "the host's own programs, QEMU among them, should stay in memory"),
        ("zone_reclaim_mode", "0", "a full node must not be reclaimed while another has memory free"),
    ):
        yield file_value(context, f"/proc/sys/vm/{name}", value, why, compare="integer", suffix=name)


RULES = (
    Rule(
        id="H-HP-1",
        subject="memory",
        title="Huge pages per node, at boot",
        levels=ISOLATING,
        phase=Phase.BOOT,
        disturbance="reboot",
        when="boot",
        risk="asking for more than a node has is silent and starves it (asked 900, got 554, 6 MB left free); the plan "
        "leaves each node at least 8 %",
        verification="/sys/devices/system/node/nodeN/hugepages/*/nr_hugepages equals the plan, node by node",
        source="kernel: admin-guide/mm/hugetlbpage.rst (per node since 5.16); measured, host-tuning H-HP-1; SUSE guide",
        compute=boot_pages,
        since=(5, 16),
        inputs=(
            "memory and page size of each guest",
            "pools per node",
            "memory per node",
        ),
        value="pages per node for every guest, never fewer than are in use",
        alternatives=(
            Alternative(
                "pages while running only",
                "cluster-node-tuning-operator (a unit at boot)",
                "memory may be in pieces by then, and 1 GiB pages rarely come",
            ),
            Alternative(
                "locking 1 GiB pages is not required",
                "SUSE guide for SAP HANA on KVM",
                "realtime guests are locked all the same (G-4): QEMU's own memory is not in these pages",
            ),
        ),
    ),
    Rule(
        id="R-MM-3",
        subject="memory",
        title="Huge pages per node, while running",
        levels=HUGE,
        phase=Phase.MEMORY,
        disturbance="live",
        when="runtime",
        risk="in fragmented memory the kernel gives fewer pages and reports success (measured: 2000 asked, 554 "
        "given), so the count is read back",
        verification="/sys/devices/system/node/nodeN/hugepages/*/nr_hugepages equals the plan",
        source="kernel: admin-guide/mm/hugetlbpage.rst; measured, host-tuning R-MM-3 (the global file splits evenly)",
        compute=runtime_pages,
        inputs=(
            "memory and page size of each guest",
            "pools per node",
        ),
        value="pages per node, the same counts as H-HP-1",
        alternatives=(
            Alternative(
                "/proc/sys/vm/nr_hugepages",
                "guides that name one number for a host",
                "spreads evenly over the nodes: 100 become 50 and 50 (measured)",
            ),
        ),
    ),
    Rule(
        id="H-THP",
        subject="memory",
        title="No transparent huge pages",
        levels=ISOLATING,
        phase=Phase.MEMORY,
        disturbance="live",
        when="runtime",
        risk="programs of the host that profit from transparent huge pages lose a few per cent",
        verification="/sys/kernel/mm/transparent_hugepage/enabled; absent on a PREEMPT_RT kernel, which counts as done",
        source="SUSE guide for SAP HANA on KVM; TuneD; measured absent on 6.12 PREEMPT_RT",
        compute=transparent,
        inputs=("/sys/kernel/mm/transparent_hugepage/enabled",),
        value="never",
        alternatives=(
            Alternative(
                "madvise",
                "distributions",
                "QEMU asks for it, and khugepaged then copies guest pages of balanced and flexible guests",
            ),
        ),
    ),
    Rule(
        id="H-NUMA",
        subject="memory",
        title="No automatic NUMA balancing",
        levels=ISOLATING,
        phase=Phase.MEMORY,
        disturbance="live",
        when="runtime",
        risk="unpinned programs of the host stay where they started",
        verification="/proc/sys/kernel/numa_balancing; absent on a PREEMPT_RT kernel, which counts as done",
        source="SUSE guide for SAP HANA on KVM; TuneD; measured absent on 6.12 PREEMPT_RT",
        compute=balancing,
        inputs=("/proc/sys/kernel/numa_balancing",),
        value="0",
        alternatives=(Alternative("1", "distributions", "unmaps pages of guests that are bound already"),),
    ),
    Rule(
        id="R-MM-1",
        subject="memory",
        title="No merging of equal pages (KSM)",
        levels=ISOLATING,
        phase=Phase.MEMORY,
        disturbance="drain",
        when="runtime",
        risk="giving merged pages back takes time and memory, so it comes before the guests start",
        verification="/sys/kernel/mm/ksm/run",
        source="kernel: admin-guide/mm/ksm.rst; TuneD; host-tuning R-MM-1",
        compute=same_page_merging,
        inputs=(
            "/sys/kernel/mm/ksm/run",
            "pages that are merged now",
        ),
        value="2; 0 where it never ran",
        alternatives=(Alternative("0", "SUSE guide for SAP HANA on KVM", "leaves merged pages merged"),),
    ),
    Rule(
        id="R-MM-2",
        subject="memory",
        title="No compaction or reclaim behind our back",
        levels=ISOLATING,
        phase=Phase.MEMORY,
        disturbance="live",
        when="runtime",
        risk="later requests for large pieces of memory are more likely to fail",
        verification="/proc/sys/vm/compaction_proactiveness, compact_unevictable_allowed, swappiness, "
        "zone_reclaim_mode",
        source="kernel: admin-guide/sysctl/vm.rst; host-tuning R-MM-2 (judgement)",
        compute=compaction,
        inputs=("files of /proc/sys/vm",),
        value="compaction_proactiveness=0, compact_unevictable_allowed=0, swappiness=10, zone_reclaim_mode=0",
    ),
)
