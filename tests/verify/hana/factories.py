"""A host and a guest that meet every demand of the SAP HANA profile, of any size; tests then break one thing."""

from __future__ import annotations

from typing import Any

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import Facts, Frequency, HugePages, Identity, Idle, PciFunction
from evenkeel.plan.topology import Topology
from tests.plan.factories import GIB, MIB, make_facts

LINE = "BOOT_IMAGE=/vmlinuz root=/dev/sda2 intel_idle.max_cstate=0 processor.max_cstate=0 intel_iommu=on iommu=pt"
HBA = ("0000:85:00.0", "0000:85:00.1")
CARD = "0000:17:02.0"  # a virtual function


def hana_facts(
    *, sockets: int = 2, cores: int = 4, node_gib: int = 64, pages: int | None = None, **update: Any
) -> Facts:
    """``pages``: of 1 GiB on each node; None: 91 % of it."""
    pages = node_gib * 91 // 100 if pages is None else pages
    facts = make_facts(
        sockets=sockets,
        cores=cores,
        interleaved=True,
        node_bytes=node_gib * GIB,
        kernel="5.14.21-150400.24.46-default",
        preempt_rt=False,
        command_line=LINE,
        settings={
            "/sys/kernel/mm/transparent_hugepage/enabled": "always madvise [never]",
            "/proc/sys/kernel/numa_balancing": "0",
            "/sys/module/kvm/parameters/nx_huge_pages": "N",
        },
        kvm_parameters={"kvm_intel": {"ple_gap": "0"}},
        programs={"libvirt": "8.0.0", "qemu": "6.2.0", "python": "3.9.2"},
        frequency=Frequency(driver="intel_pstate", governors=("performance",)),
        idle=Idle(driver="none"),
        identity=Identity(
            architecture="x86_64", os_release="SUSE Linux Enterprise Server for SAP Applications 15 SP4", emulated=False
        ),
        pci=tuple(
            PciFunction(
                address=address, class_code=code, vendor="8086", device="1572", node=0, physical_function=parent
            )
            for address, code, parent in (
                ("0000:17:00.0", "020000", None),
                (CARD, "020000", "0000:17:00.0"),
                (HBA[0], "0c0400", None),
                (HBA[1], "0c0400", None),
            )
        ),
    )
    pool = (HugePages(page_bytes=2 * MIB, total=0), HugePages(page_bytes=GIB, total=pages, free=pages))
    settings = dict(facts.settings) | {
        f"/sys/devices/system/node/node{node.id}/hugepages/hugepages-1048576kB/nr_hugepages": str(pages)
        for node in facts.nodes
    }
    return facts.model_copy(
        update={
            "nodes": tuple(node.model_copy(update={"huge_pages": pool}) for node in facts.nodes),
            "settings": settings,
        }
        | update
    )


def hana_xml(
    facts: Facts, *, sockets: tuple[int, ...] | None = None, cell_gib: int | None = None, name: str = "hana"
) -> str:
    """The definition of a guest that has these sockets of the host whole; None: all of them."""
    topology = Topology(facts)
    nodes = [node for node in facts.nodes if sockets is None or node.id in sockets]
    gib = cell_gib or next(pool.total for pool in facts.nodes[0].huge_pages if pool.page_bytes == GIB)
    pins, cells, memnodes = [], [], []
    vcpu = 0
    for cell, node in enumerate(nodes):
        first = vcpu
        for core in topology.cores_of(node.id):
            for _ in core.threads:
                pins.append(f"<vcpupin vcpu='{vcpu}' cpuset='{format_cpus(core.cpus)}'/>")
                vcpu += 1
        distances = "".join(
            f"<sibling id='{index}' value='{node.distances[other.id]}'/>" for index, other in enumerate(nodes)
        )
        cells.append(
            f"<cell id='{cell}' cpus='{first}-{vcpu - 1}' memory='{gib}' unit='GiB'>\n"
            f"        <distances>{distances}</distances>\n      </cell>"
        )
        memnodes.append(f"<memnode cellid='{cell}' mode='strict' nodeset='{node.id}'/>")
    total = gib * len(nodes)
    threads = len(topology.cores[0].threads)
    cores = len(topology.cores_of(nodes[0].id))
    functions = "\n    ".join(
        f"<hostdev mode='subsystem' type='pci' managed='yes'>\n      <source>"
        f"<address domain='0x0000' bus='0x85' slot='0x00' function='0x{function}'/></source>\n    </hostdev>"
        for function in (0, 1)
    )
    lines = "\n    "
    return f"""\
<domain type='kvm'>
  <name>{name}</name>
  <memory unit='GiB'>{total}</memory>
  <currentMemory unit='GiB'>{total}</currentMemory>
  <memoryBacking>
    <hugepages>
      <page size='1048576' unit='KiB'/>
    </hugepages>
    <nosharepages/>
  </memoryBacking>
  <vcpu placement='static'>{vcpu}</vcpu>
  <cputune>
    {lines.join(pins)}
  </cputune>
  <numatune>
    <memory mode='strict' nodeset='{format_cpus(node.id for node in nodes)}'/>
    {lines.join(memnodes)}
  </numatune>
  <features>
    <acpi/>
    <kvm>
      <hint-dedicated state='on'/>
    </kvm>
  </features>
  <cpu mode='host-passthrough' check='none' migratable='off'>
    <topology sockets='{len(nodes)}' dies='1' cores='{cores}' threads='{threads}'/>
    <cache mode='passthrough'/>
    <feature policy='require' name='rdtscp'/>
    <feature policy='require' name='invtsc'/>
    <feature policy='require' name='x2apic'/>
    <numa>
      {(lines + "  ").join(cells)}
    </numa>
  </cpu>
  <clock offset='utc'>
    <timer name='rtc' tickpolicy='catchup'/>
    <timer name='pit' tickpolicy='delay'/>
    <timer name='hpet' present='no'/>
  </clock>
  <devices>
    <disk type='block' device='disk'>
      <driver name='qemu' type='raw' cache='none' io='native'/>
      <source dev='/dev/disk/by-id/system'/>
      <target dev='vda' bus='virtio'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='raw'/>
      <source file='/dev/shm/vhostmd0'/>
      <target dev='vdx' bus='virtio'/>
      <readonly/>
    </disk>
    <interface type='hostdev' managed='yes'>
      <source>
        <address type='pci' domain='0x0000' bus='0x17' slot='0x02' function='0x0'/>
      </source>
    </interface>
    {functions}
    <memballoon model='none'/>
  </devices>
</domain>
"""
