"""The domain definition of a guest, as libvirt XML.  Pure: the same placement gives the same text.

What each element is for stands in :data:`ELEMENTS`, which `evenkeel explain` prints.  Nothing here asks libvirt; the
engine defines the text through libvirt itself before it starts anything.  Source: reference host-tuning §2.6, §2.7.
"""

from __future__ import annotations

import hashlib
import uuid
import xml.etree.ElementTree as ET
from dataclasses import dataclass

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.site import Disk, Network
from evenkeel.plan import inside
from evenkeel.plan.placement import PINNED, Placement
from evenkeel.plan.ways import Share, WayLedger

#: uname -m -> machine type.  q35 has PCI Express, which passed-through devices expect.
MACHINES = {"x86_64": "q35", "aarch64": "virt"}
_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:evenkeel:guest")


@dataclass(frozen=True)
class GuestRule:
    """One line of host-tuning §2.6: what the definition of a guest says and why."""

    id: str
    title: str
    reason: str
    risk: str
    verification: str
    source: str = "libvirt: formatdomain; host-tuning §2.6"


ELEMENTS = (
    GuestRule(
        "G-1",
        "vcpupin: each vCPU on the CPU of its own",
        "performance and realtime: one host CPU per vCPU, out of whole cores; balanced and flexible: all shared CPUs",
        "a pinned vCPU waits when its CPU is busy, even while others idle; so nothing else may run there",
        "Cpus_allowed_list of the threads named CPU N/KVM",
    ),
    GuestRule(
        "G-2",
        "emulatorpin, iothreadpin: on housekeeping CPUs of the guest's nodes",
        "a FIFO vCPU that waits for its own emulator thread on the same CPU waits forever; and QEMU prefaults strictly "
        "bound memory from a CPU of that node, so the pin must contain one of each (measured: start fails otherwise)",
        "many guests share the housekeeping CPUs of a node",
        "Cpus_allowed_list of QEMU's other threads",
    ),
    GuestRule(
        "G-4",
        "memoryBacking: huge pages, locked, never merged, allocated at the start",
        "a page that is there, locked and large can neither fault nor move; realtime is locked, performance and "
        "balanced are in huge pages too",
        "the memory is taken whether the guest uses it or not; no ballooning, no overcommit",
        "numa_maps of QEMU: huge pages on the node; VmLck",
    ),
    GuestRule(
        "G-5",
        "numatune: memory of each cell strictly on the node of its vCPUs",
        "memory of another node costs half as much again at each access; strict means that the start fails instead",
        "no start when the node has too few pages; balanced prefers the node and takes others",
        "numa_maps of QEMU: bind:N",
    ),
    GuestRule(
        "G-6",
        "cpu: the host's own, in the shape of the pins",
        "host-passthrough gives every instruction and timer of the host; migratable=off (performance, realtime) also "
        "the invariant TSC; the topology is that of the pins, so that the guest's scheduler thinks of real cores; a "
        "guest of several cells has as many sockets as its nodes are of",
        "with migratable=off no live migration; in the other goals only between hosts with the same CPU",
        "lscpu in the guest",
    ),
    GuestRule(
        "G-7",
        "numa: a cell for each node, at the distances of the host",
        "a guest of several nodes has a cell for each, with the vCPUs that are pinned there and memory from there "
        "alone; the distances are those of the host's nodes, renumbered, since libvirt makes 20 of every other one",
        "a guest that does not look at its nodes (numactl, a NUMA-aware program) makes half of its accesses far",
        "numactl --hardware in the guest; distances in the live definition; numa_maps of QEMU, cell by cell",
        "libvirt: formatdomain, NUMA topology; kernel: /sys/devices/system/node/nodeN/distance; host-tuning G-7",
    ),
    GuestRule(
        "G-8",
        "features: no PMU, no vmport, dedicated hint, poll control, interrupt controller in the kernel",
        "a virtual PMU costs at each switch; the hint tells a guest that its CPUs are its own, so it may spin on "
        "locks; a guest that polls before it halts may tell the host not to poll too; interrupts need not go through "
        "QEMU",
        "no perf hardware counters in a realtime guest",
        "arguments of QEMU",
    ),
    GuestRule(
        "G-9",
        "clock: kvmclock, no HPET, lost ticks delayed",
        "the HPET is emulated in QEMU's own thread and slow; kvmclock is always there, and a guest prefers an "
        "invariant TSC by itself",
        "very old guests want a HPET",
        "current_clocksource in the guest",
    ),
    GuestRule(
        "G-10",
        "devices: none that nobody needs",
        "each emulated device is a timer or a thread of QEMU; no USB, graphics, sound, or balloon; a serial console "
        "and the channel of the guest agent remain",
        "no graphical console",
        "list of devices in the live definition",
    ),
    GuestRule(
        "G-11",
        "interface: virtio",
        "one queue, processed by vhost threads, which follow the emulator pin",
        "packets take the host's network stack; a function passed through is faster",
        "live definition",
    ),
    GuestRule(
        "G-12",
        "disk: virtio, no host cache, own I/O thread",
        "cache=none io=native leaves out the host's page cache and worker threads; the I/O thread is on housekeeping",
        "storage must support O_DIRECT; a realtime task must not wait for a disk at all",
        "live definition",
    ),
    GuestRule(
        "G-13",
        "cachetune: ways of the L3 for the real-time vCPUs alone",
        "where the CPU can divide its L3 (H-RDT), lines of the real-time vCPUs stay in the cache whatever the other "
        "cores do; libvirt takes the first ways that no group has, and the plan leaves them free before. Memory "
        "bandwidth is left alone: a new group has all of it",
        "less cache for everybody else; the start fails when resctrl is not mounted or others took the ways",
        "schemata of the guest's group in /sys/fs/resctrl",
        "libvirt: formatdomain, virresctrl.c; kernel: filesystems/resctrl.rst; host-tuning G-13, H-RDT",
    ),
    GuestRule(
        "G-14",
        "vCPU 0 for the guest's own housekeeping",
        "a Linux guest needs one CPU for its interrupts, timers and RCU; it has a core of its own and ordinary policy",
        "one core more for a realtime guest",
        "policy of the thread CPU 0/KVM",
        "host-tuning G-14, §2.2",
    ),
    GuestRule(
        "G-16",
        "hostdev: exactly the PCI functions that were chosen, through VFIO",
        "the function that placing chose, by its address, and the rest of its IOMMU group: QEMU does not start while "
        "the host uses any function of a group. libvirt takes them from their driver at the start and gives them back "
        "at the end (vfio: managed), or finds them at vfio-pci (vfio: bound)",
        "no live migration and no ballooning: the function writes to the guest's memory, which is locked, all of it; "
        "the host's own network or disk on such a function is gone while the guest runs",
        "addresses in the live definition, and the driver of each on the host (V-GUEST-PCI)",
        "libvirt: formatdomain, host device assignment; kernel: driver-api/vfio.rst",
    ),
    GuestRule(
        "G-CMD",
        "guest kernel arguments",
        "the same isolation inside: what the host keeps away from vCPU 1, the guest's kernel must not bring back. "
        "Added behind the owner's own arguments, which win where they name the same key",
        "needs direct kernel boot; otherwise set them in the guest's own boot loader",
        "/proc/cmdline in the guest",
        "TuneD realtime-virtual-guest; host-tuning §2.7",
    ),
)


def definition_digest(xml: str) -> str:
    """Value of a GuestDefinition setting."""
    return hashlib.sha256(xml.encode()).hexdigest()


def guest_arguments(placement: Placement) -> str:
    """What is added to the kernel command line of a realtime guest that is booted directly; "" when nothing is."""
    if placement.wish.boot is None:
        return ""
    theirs = {argument.partition("=")[0] for argument in placement.wish.boot.arguments.split()}
    return " ".join(argument for argument in inside.arguments(placement) if argument.partition("=")[0] not in theirs)


def domain_xml(host: str, placement: Placement, arguments: str, ways: WayLedger) -> str:
    """The libvirt domain definition of a guest.  ``arguments``: :func:`guest_arguments`."""
    wish = placement.wish
    identity = uuid.uuid5(_NAMESPACE, f"{host}/{placement.name}")
    domain = ET.Element("domain", type="kvm")
    _text(domain, "name", placement.name)
    _text(domain, "uuid", str(identity))
    _text(domain, "memory", str(wish.memory >> 10), unit="KiB")
    _text(domain, "currentMemory", str(wish.memory >> 10), unit="KiB")
    _memory_backing(domain, placement)
    _vcpus(domain, placement, ways)
    _numatune(domain, placement)
    _boot(domain, placement, arguments)
    _features(domain, placement)
    _cpu(domain, placement)
    _clock(domain, placement)
    for event, action in (("on_poweroff", "destroy"), ("on_reboot", "restart"), ("on_crash", "destroy")):
        _text(domain, event, action)
    if wish.architecture == "x86_64":
        power = ET.SubElement(domain, "pm")
        ET.SubElement(power, "suspend-to-mem", enabled="no")
        ET.SubElement(power, "suspend-to-disk", enabled="no")
    _devices(domain, placement, identity)
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _text(parent: ET.Element, tag: str, text: str, **attributes: str) -> ET.Element:
    element = ET.SubElement(parent, tag, attributes)
    element.text = text
    return element


def _memory_backing(domain: ET.Element, placement: Placement) -> None:
    """G-4.  ``nodeset`` of <page> counts guest cells, not host nodes; left out, the size is that of every cell."""
    if not placement.page_bytes:
        return
    backing = ET.SubElement(domain, "memoryBacking")
    pages = ET.SubElement(backing, "hugepages")
    ET.SubElement(pages, "page", size=str(placement.page_bytes >> 10), unit="KiB")
    if placement.pinned:
        ET.SubElement(backing, "nosharepages")
    if placement.goal == "realtime":
        ET.SubElement(backing, "locked")
    if placement.pinned:
        ET.SubElement(backing, "allocation", mode="immediate")


def _vcpus(domain: ET.Element, placement: Placement, ways: WayLedger) -> None:
    """G-1, G-2, G-3, G-13.  libvirt sets vcpusched before a vCPU runs: the engine starts guests paused."""
    wish = placement.wish
    if not placement.pinned:
        _text(domain, "vcpu", str(wish.vcpus), placement="static", cpuset=format_cpus(placement.cpus))
    else:
        _text(domain, "vcpu", str(wish.vcpus), placement="static")
    threads = _has_io_thread(placement)
    if threads:
        _text(domain, "iothreads", "1")
    if wish.goal == "flexible":
        return
    tune = ET.SubElement(domain, "cputune")
    if placement.pinned:
        for vcpu in placement.vcpus:
            ET.SubElement(tune, "vcpupin", vcpu=str(vcpu.index), cpuset=format_cpus(vcpu.cpus))
    ET.SubElement(tune, "emulatorpin", cpuset=format_cpus(placement.emulator))
    if threads:
        ET.SubElement(tune, "iothreadpin", iothread="1", cpuset=format_cpus(placement.emulator))
    # One element per vCPU: libvirt splits a list anyway, and so its text stays comparable with ours.
    for vcpu in placement.vcpus:
        if vcpu.policy == "fifo":
            ET.SubElement(tune, "vcpusched", vcpus=str(vcpu.index), scheduler="fifo", priority=str(vcpu.priority))
    _cache_tune(tune, ways.of(placement.name), ways.types)


def _cache_tune(tune: ET.Element, shares: tuple[Share, ...], types: tuple[str, ...]) -> None:
    """G-13.  No memorytune: the kernel gives a new group the whole bandwidth, and libvirt, which adds up what groups
    have, would refuse the second guest that asks for it (virResctrlAllocMemoryBandwidth()).
    """
    if not shares:
        return
    cache_tune = ET.SubElement(tune, "cachetune", vcpus=format_cpus(shares[0].vcpus))
    for share in shares:
        size, unit = (share.size_bytes >> 10, "KiB") if share.size_bytes % 1024 == 0 else (share.size_bytes, "B")
        for kind in types:
            ET.SubElement(cache_tune, "cache", id=str(share.cache), level="3", type=kind, size=str(size), unit=unit)


def _has_io_thread(placement: Placement) -> bool:
    return bool(placement.wish.disks) and placement.goal != "flexible"


def _numatune(domain: ET.Element, placement: Placement) -> None:
    """G-5."""
    if not placement.nodes:
        return
    mode = "strict" if placement.pinned else "preferred"
    tune = ET.SubElement(domain, "numatune")
    ET.SubElement(tune, "memory", mode=mode, nodeset=format_cpus(placement.nodes))
    for number, node in enumerate(placement.nodes):
        ET.SubElement(tune, "memnode", cellid=str(number), mode=mode, nodeset=str(node))


def _boot(domain: ET.Element, placement: Placement, arguments: str) -> None:
    wish = placement.wish
    system = ET.SubElement(domain, "os")
    _text(system, "type", "hvm", arch=wish.architecture, machine=MACHINES[wish.architecture])
    if wish.boot is not None:
        _text(system, "kernel", wish.boot.kernel)
        if wish.boot.initrd:
            _text(system, "initrd", wish.boot.initrd)
        line = " ".join(part for part in (wish.boot.arguments.strip(), arguments) if part)
        if line:
            _text(system, "cmdline", line)
    else:
        ET.SubElement(system, "boot", dev="hd" if wish.disks else "network")


def _features(domain: ET.Element, placement: Placement) -> None:
    features = ET.SubElement(domain, "features")
    ET.SubElement(features, "acpi")
    if placement.wish.architecture == "x86_64":
        ET.SubElement(features, "apic")
        if placement.pinned:
            hints = ET.SubElement(features, "kvm")
            ET.SubElement(hints, "hint-dedicated", state="on")
            ET.SubElement(hints, "poll-control", state="on")
        ET.SubElement(features, "vmport", state="off")
        if placement.pinned:
            ET.SubElement(features, "ioapic", driver="kvm")
    else:
        ET.SubElement(features, "gic", version="host")
    if placement.goal == "realtime":
        ET.SubElement(features, "pmu", state="off")


def _cpu(domain: ET.Element, placement: Placement) -> None:
    wish = placement.wish
    x86 = wish.architecture == "x86_64"
    attributes = {"mode": "host-passthrough", "check": "none"}
    if x86:  # libvirt knows `migratable` of host-passthrough on x86 only
        attributes["migratable"] = "off" if placement.pinned else "on"
    cpu = ET.SubElement(domain, "cpu", attributes)
    sockets, threads = placement.sockets, placement.threads_per_core
    cores = wish.vcpus // (sockets * threads)
    ET.SubElement(cpu, "topology", sockets=str(sockets), cores=str(cores), threads=str(threads))
    if x86 and placement.pinned:
        ET.SubElement(cpu, "cache", mode="passthrough")
    if placement.nodes:
        _numa(cpu, placement)


def _numa(cpu: ET.Element, placement: Placement) -> None:
    """G-6, G-7."""
    numa = ET.SubElement(cpu, "numa")
    told = all(cell.distances for cell in placement.cells)
    for number, one in enumerate(placement.cells):
        cell = ET.SubElement(
            numa, "cell", id=str(number), cpus=format_cpus(one.vcpus), memory=str(one.memory >> 10), unit="KiB"
        )
        if told:
            distances = ET.SubElement(cell, "distances")
            for other, value in enumerate(one.distances):
                ET.SubElement(distances, "sibling", id=str(other), value=str(value))


def _clock(domain: ET.Element, placement: Placement) -> None:
    clock = ET.SubElement(domain, "clock", offset="utc")
    if placement.wish.architecture != "x86_64":
        return
    ET.SubElement(clock, "timer", name="rtc", tickpolicy="catchup")
    ET.SubElement(clock, "timer", name="pit", tickpolicy="delay")
    ET.SubElement(clock, "timer", name="hpet", present="no")
    ET.SubElement(clock, "timer", name="kvmclock", present="yes")


def _devices(domain: ET.Element, placement: Placement, identity: uuid.UUID) -> None:
    wish = placement.wish
    devices = ET.SubElement(domain, "devices")
    for index, disk in enumerate(wish.disks):
        _disk(devices, index, disk, _has_io_thread(placement))
    if wish.architecture == "x86_64":
        ET.SubElement(devices, "controller", type="usb", model="none")
    for index, network in enumerate(wish.networks):
        _interface(devices, index, network, identity)
    for address in placement.passed.functions:
        _host_device(devices, address, placement.passed.managed)
    serial = ET.SubElement(devices, "serial", type="pty")
    ET.SubElement(serial, "target", port="0")
    console = ET.SubElement(devices, "console", type="pty")
    ET.SubElement(console, "target", type="serial", port="0")
    channel = ET.SubElement(devices, "channel", type="unix")
    ET.SubElement(channel, "target", type="virtio", name="org.qemu.guest_agent.0")
    # Memory in huge pages cannot be given back piece by piece, nor any that a function writes to; the rest can.
    balloon = wish.goal == "flexible" and not placement.passed.functions
    ET.SubElement(devices, "memballoon", model="virtio" if balloon else "none")


def _disk(devices: ET.Element, index: int, wish: Disk, io_thread: bool) -> None:
    block = wish.path.startswith("/dev/")
    disk = ET.SubElement(devices, "disk", type="block" if block else "file", device="disk")
    driver = {"name": "qemu", "type": wish.format, "cache": "none", "io": "native"}
    if io_thread:
        driver["iothread"] = "1"
    ET.SubElement(disk, "driver", driver)
    ET.SubElement(disk, "source", {"dev" if block else "file": wish.path})
    ET.SubElement(disk, "target", dev=f"vd{_letters(index)}", bus="virtio")


def _letters(index: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    name = ""
    index += 1
    while index:
        index, digit = divmod(index - 1, 26)
        name = chr(ord("a") + digit) + name
    return name


def _interface(devices: ET.Element, index: int, wish: Network, identity: uuid.UUID) -> None:
    kind = "bridge" if wish.bridge else "network" if wish.network else "user"
    interface = ET.SubElement(devices, "interface", type=kind)
    # 52:54:00 is QEMU's own prefix; the rest must be the same at every run and differ between guests.
    tail = hashlib.sha256(f"{identity}/{index}".encode()).digest()
    ET.SubElement(interface, "mac", address=f"52:54:00:{tail[0]:02x}:{tail[1]:02x}:{tail[2]:02x}")
    if wish.bridge:
        ET.SubElement(interface, "source", bridge=wish.bridge)
    elif wish.network:
        ET.SubElement(interface, "source", network=wish.network)
    ET.SubElement(interface, "model", type="virtio")


def _host_device(devices: ET.Element, address: str, managed: bool) -> None:
    """G-16.  ``address``: 0000:3b:00.0."""
    device = ET.SubElement(devices, "hostdev", mode="subsystem", type="pci", managed="yes" if managed else "no")
    ET.SubElement(device, "driver", name="vfio")
    where, _, function = address.rpartition(".")
    domain, bus, slot = where.split(":")
    source = ET.SubElement(device, "source")
    ET.SubElement(source, "address", domain=f"0x{domain}", bus=f"0x{bus}", slot=f"0x{slot}", function=f"0x{function}")


def elements_of(goal: str, cells: int = 1, functions: int = 0) -> tuple[str, ...]:
    """Ids of the guest rules that shape a guest of this goal with so many cells and PCI functions."""
    always = ("G-1", "G-6", "G-9", "G-10", "G-11", "G-12")
    bound = ("G-2", "G-4", "G-5") if goal != "flexible" else ()
    pinned = ("G-8",) if goal in PINNED else ()
    realtime = ("G-13", "G-14", "G-CMD") if goal == "realtime" else ()
    several = ("G-7",) if cells > 1 and goal in PINNED else ()
    passed = ("G-16",) if functions else ()
    return tuple(rule.id for rule in ELEMENTS if rule.id in (*always, *bound, *pinned, *realtime, *several, *passed))
