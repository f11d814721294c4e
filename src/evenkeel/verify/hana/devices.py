"""Clock, features, network and storage of a guest.  Pure."""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.documents.facts import PciFunction
from evenkeel.documents.findings import Check
from evenkeel.verify.hana.domain import Element
from evenkeel.verify.hana.subject import Guest, Host, cpus

_TIMERS = (("rtc", "tickpolicy", "catchup"), ("pit", "tickpolicy", "delay"), ("hpet", "present", "no"))
#: Class codes of PCI: mass storage, and the serial bus Fibre Channel.
_STORAGE = ("01", "0c04")
_NETWORK = ("02",)


def check_clock(guest: Guest) -> Iterator[Check]:
    clock = guest.domain.nearest("clock")
    offset = clock.get("offset") if clock.tag == "clock" else ""
    wrong = [] if offset == "utc" else [(clock, f"offset is {offset or 'not said'}")]
    timers = {timer.get("name"): timer for timer in guest.domain.all("clock/timer")}
    for name, key, value in _TIMERS:
        timer = timers.get(name)
        if timer is None or timer.get(key) != value:
            said = timer.get(key) if timer else ""
            wrong.append((timer or clock, f"{key} of {name} is {said or 'not said'}"))
    yield guest.judge("HANA-CLOCK", "utc; rtc catchup, pit delay, hpet present=no", wrong)
    off = timers.get("kvmclock")
    hidden = [(off, "kvmclock is not present")] if off is not None and off.get("present") == "no" else []
    yield guest.judge("HANA-KVM-CLOCK", "kvmclock present", hidden)
    state = guest.domain.word("features/kvm/hint-dedicated", "state")
    place = guest.domain.nearest("features/kvm/hint-dedicated")
    yield guest.judge(
        "HANA-HINT", "hint-dedicated on", [] if state == "on" else [(place, f"hint-dedicated is {state or 'not said'}")]
    )


def check_metrics(guest: Guest) -> Iterator[Check]:
    disks = [source.get("file") for source in guest.domain.all("devices/disk/source")]
    channels = [target.get("name") for target in guest.domain.all("devices/channel/target")]
    there = any(file.rsplit("/", 1)[-1].startswith("vhostmd") for file in disks) or any(
        name.startswith("org.github.vhostmd") for name in channels
    )
    place = guest.domain.nearest("devices")
    yield guest.judge("HANA-METRICS", "a vhostmd disk or channel", [] if there else [(place, "neither is there")])


def check_network(guest: Guest, host: Host | None) -> Iterator[Check]:
    expected = "a function of a network card passed through"
    place = guest.domain.nearest("devices/interface")
    if guest.domain.nearest("devices").tag != "devices":
        place = guest.domain
    known = _functions(host)
    wrong: list[tuple[Element, str]] = []
    through = False
    for address, element in guest.devices():
        if element.tag == "interface":
            if host is not None and known and address not in known:
                wrong.append((element, f"{address} is not on the host"))
            else:
                through = True
        elif address in known and known[address].class_code.startswith(_NETWORK):
            through = True
    if not through and not wrong:
        kinds = sorted({interface.get("type") for interface in guest.domain.all("devices/interface")})
        wrong.append((place, f"its interfaces are of type {', '.join(kinds)}" if kinds else "it has no interface"))
    yield guest.judge("HANA-NETWORK", expected, wrong)


def check_storage(guest: Guest, host: Host | None, *, nfs: bool) -> Iterator[Check]:
    """``nfs``: the owner says that data and log are on NFS, which the definition cannot show."""
    known = _functions(host)
    disks = [
        disk
        for disk in guest.domain.all("devices/disk")
        if disk.get("device", "disk") in ("disk", "lun") and disk.first("readonly") is None
    ]
    yield _volumes(guest, host, disks, known, nfs)
    wrong: list[tuple[Element, str]] = []
    for disk in disks:
        driver = disk.first("driver")
        said = {key: driver.get(key) if driver else "" for key in ("type", "cache", "io")}
        for key, value in (("type", "raw"), ("cache", "none"), ("io", "native")):
            if said[key] != value:
                wrong.append((driver or disk, f"{key} of {_target(disk)} is {said[key] or 'not said'}"))
    yield guest.judge("HANA-DISK-MODE", "raw, none, native", wrong)
    yield _whole_adapters(guest, host, known)
    yield _near(guest, host, known)


def _volumes(guest: Guest, host: Host | None, disks: list[Element], known: dict[str, PciFunction], nfs: bool) -> Check:
    expected = "a controller passed through, or block devices beside the system disk"
    files = [
        (disk, f"{_target(disk)} is {'qcow2' if disk.word('driver', 'type') == 'qcow2' else 'an image file'}")
        for disk in disks[1:]
        if disk.get("type") != "block" or disk.word("driver", "type") == "qcow2"
    ]
    if files:
        return guest.judge("HANA-STORAGE", expected, files)
    passed = [(address, element) for address, element in guest.devices() if element.tag == "hostdev"]
    if missing := [
        (element, f"{address} is not on the host") for address, element in passed if known and address not in known
    ]:
        return guest.judge("HANA-STORAGE", expected, missing)
    storage = [address for address, _ in passed if address in known and known[address].class_code.startswith(_STORAGE)]
    if storage or disks[1:]:
        fine = f"{', '.join(storage)} passed through" if storage else f"{len(disks) - 1} block devices"
        return guest.judge("HANA-STORAGE", expected, [], fine)
    if nfs:
        return guest.judge("HANA-STORAGE", expected, [], "on NFS, says the owner")
    if passed and not known:
        return guest.unknown("HANA-STORAGE", expected, "whether a device passed through is storage only its host knows")
    return guest.unknown(
        "HANA-STORAGE", expected, "nothing but the system disk is there; with data and log on NFS say --nfs"
    )


def _whole_adapters(guest: Guest, host: Host | None, known: dict[str, PciFunction]) -> Check:
    expected = "every function of the adapter"
    passed = {address: element for address, element in guest.devices() if element.tag == "hostdev"}
    if passed and not known:
        return guest.unknown("HANA-WHOLE-ADAPTER", expected, "the functions of its adapters are not known")
    wrong = []
    for address, element in passed.items():
        one = known.get(address)
        if one is None or not one.class_code.startswith(_STORAGE) or one.physical_function:
            continue
        slot = address.rpartition(".")[0]
        for other in sorted(known):
            if other.rpartition(".")[0] == slot and other not in passed and known[other].physical_function is None:
                wrong.append((element, f"{other} of the same adapter stays with the host"))
    return guest.judge("HANA-WHOLE-ADAPTER", expected, wrong)


def _near(guest: Guest, host: Host | None, known: dict[str, PciFunction]) -> Check:
    expected = "a node of the guest"
    if host is None or (guest.devices() and not known):
        return guest.unknown("HANA-NEAR", expected, "where its devices and CPUs are is not known")
    nodes = frozenset(host.nodes_of(guest.pinned))
    wrong = [
        (element, f"{address} is on node {known[address].node}, the guest on {cpus(nodes)}")
        for address, element in guest.devices()
        if address in known and (known[address].node or 0) >= 0 and nodes and known[address].node not in (None, *nodes)
    ]
    return guest.judge("HANA-NEAR", expected, wrong)


def _functions(host: Host | None) -> dict[str, PciFunction]:
    return {one.address: one for one in host.facts.pci} if host else {}


def _target(disk: Element) -> str:
    return disk.word("target", "dev", "a disk")
