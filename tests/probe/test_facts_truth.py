"""Facts of recorded servers against what lstopo and lscpu print for them: who contains whom, on every machine.

A difference that we want is one entry below, for one machine, with its reason.  There is no tolerance anywhere else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import pytest

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import BlockDevice, Cache, Facts, Nic
from evenkeel.machines.tree import TreeMachine
from tests.probe import truth
from tests.probe.truth import Cpus, Object, Topology

ABSENT = f"no recorded machines in {truth.MACHINES} (set EVENKEEL_MACHINES)"
pytestmark = pytest.mark.skipif(not truth.tarballs(), reason=ABSENT)

#: Machines that come with lstopo's output, with its XML, with lscpu's output.
LSTOPO = truth.tarballs(".console", ".xml")
XML = truth.tarballs(".xml")
LSCPU = truth.tarballs(".expected")

# -- where we differ on purpose ---------------------------------------------------------------------------------------

#: hwloc leaves out what the process that recorded it might not use (cpuset /dummy: CPUs 0-6,12-15, nodes 1-4); facts
#: are about the machine, so they have every CPU and node.
ALLOWED = {"16amd64-8n2c-cpusets": (frozenset([*range(7), *range(12, 16)]), frozenset(range(1, 5)))}

#: The kernel calls the two integer cores of a Bulldozer module SMT siblings, hwloc calls them cores.  Facts keep the
#: kernel's siblings, because a noisy neighbour in the module (shared front end and FPU) disturbs; `core` differs.
MODULES = {"64amd64-4s2n4ca2co"}

#: The test sets HWLOC_PCI_LOCALITY, by which a user overrides what firmware says; facts say what firmware says.
FORCED_LOCALITY = {"40intel64-2g2n4c+pcilocality"}

#: hwloc puts a whole root bus where its first function is, facts give each function its own numa_node: -1 for the
#: NVMe disk that was put into the recording by hand, and for bridges and functions that have none of their own.
WITHOUT_NODE: dict[str, set[str]] = {"32em64t-2n8c+dax+nvme+mic+dimms": {"0000:00:02.0"}}

#: A bridge whose bus numbers firmware left at 0: hwloc drops it, yet it is there and bound to pcieport.
DROPPED_BRIDGES = {"32em64t-2n8c+dax+nvme+mic+dimms": {"0000:00:11.0"}}


@cache
def facts_of(tarball: Path) -> Facts:
    with TreeMachine(tarball).probe() as probe:
        return Facts.model_validate(probe.call("facts"))


@cache
def topology_of(tarball: Path) -> Topology:
    path = truth.truth_of(tarball)
    return truth.read_xml(path) if path.suffix == ".xml" else truth.read_console(path)


def on(tarballs: Sequence[Path]) -> pytest.MarkDecorator:
    """Run a test once for each of these machines."""
    return pytest.mark.parametrize("tarball", tarballs, ids=[truth.name_of(path) for path in tarballs])


def one(name: str) -> pytest.MarkDecorator:
    return on([path for path in truth.tarballs() if truth.name_of(path) == name])


def test_every_machine_has_its_truth() -> None:
    assert len(truth.tarballs()) >= 13
    assert {truth.truth_of(path).suffix for path in truth.tarballs()} == {".console", ".xml", ".expected"}


@on(truth.tarballs())
def test_same_bytes_twice(tarball: Path) -> None:
    facts = facts_of(tarball)
    with TreeMachine(tarball).probe() as probe:
        assert Facts.model_validate(probe.call("facts")).to_json() == facts.to_json()


@on(truth.tarballs())
def test_nothing_is_unreadable_in_a_recording(tarball: Path) -> None:
    facts = facts_of(tarball)
    assert facts.unreadable == {}


# -- against lstopo ---------------------------------------------------------------------------------------------------


def visible(facts: Facts, tarball: Path) -> Cpus:
    """CPUs that hwloc may show."""
    allowed, _ = ALLOWED.get(truth.name_of(tarball), (facts.online, None))
    return facts.online & allowed


@on(LSTOPO)
def test_cpus(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    assert {one.index for one in topology.machine.all("PU")} == visible(facts, tarball)


@on(LSTOPO)
def test_cores(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    seen = visible(facts, tarball)
    cores: set[Cpus] = set()
    for cpu in facts.cpus:
        if cpu.online:
            members = cpu.siblings
            if truth.name_of(tarball) in MODULES:
                members = frozenset(one for one in members if facts.cpu(one).core == cpu.core)
            cores.add(members & seen)
    cores.discard(frozenset())
    expected = topology.machine.all("Core")
    assert cores == {one.cpus for one in expected}
    for one in expected:
        assert {facts.cpu(cpu).core for cpu in one.cpus} == {one.index}


@one("64amd64-4s2n4ca2co")
def test_bulldozer_modules_are_siblings(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    shared_front_ends = {one.cpus for one in topology.machine.all("L1iCache")}
    assert {cpu.siblings for cpu in facts.cpus} == shared_front_ends


@on(LSTOPO)
def test_packages(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    seen = visible(facts, tarball)
    packages: dict[int | None, set[int]] = {}
    for cpu in facts.cpus:
        if cpu.id in seen:
            packages.setdefault(cpu.package, set()).add(cpu.id)
    expected = [one for one in topology.machine.all("Package") if one.cpus]
    assert {frozenset(cpus) for cpus in packages.values()} == {one.cpus for one in expected}
    for one in expected:
        number = {facts.cpu(cpu).package for cpu in one.cpus}
        # POWER7: firmware numbers no package, hwloc prints no number, ours count from 0
        assert number == {one.index} if one.index is not None else len(number) == 1
        model = one.attributes.get("CPUModel")
        if model is not None:
            assert {" ".join((facts.cpu(cpu).model or "").split()) for cpu in one.cpus} == {" ".join(model.split())}


@on(LSTOPO)
def test_dies(tarball: Path) -> None:
    """hwloc shows dies where a package has more than one; on all of these it has one, or says nothing."""
    facts, topology = facts_of(tarball), topology_of(tarball)
    dies = {(cpu.package, cpu.die) for cpu in facts.cpus if cpu.online}
    per_package = Counter(package for package, _ in dies)
    assert sum(count for count in per_package.values() if count > 1) == len(topology.machine.all("Die"))


@on(LSTOPO)
def test_nodes(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    seen = visible(facts, tarball)
    _, mems = ALLOWED.get(truth.name_of(tarball), (None, None))
    ours = {node.id: node for node in facts.nodes if mems is None or node.id in mems}
    expected = {one.index: one for one in topology.machine.all("NUMANode")}
    assert ours.keys() == expected.keys()
    for number, node in ours.items():
        assert node.cpus & seen == expected[number].cpus
        assert _same_memory(node.memory_bytes, expected[number].attributes)


def _same_memory(ours: int, attributes: dict[str, str]) -> bool:
    """XML has bytes, the console whole MiB, or GiB from 10 GiB on, rounded to the nearest."""
    if "local_memory" in attributes:
        return ours == int(attributes["local_memory"])
    amount, unit = re.fullmatch(r"(\d+)(MiB|GiB)", attributes["local"]).groups()  # type: ignore[union-attr]
    scale = {"MiB": 20, "GiB": 30}[unit]
    return (ours + (1 << scale - 1)) >> scale == int(amount)


@on(LSTOPO)
def test_distances(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    if not topology.distances:  # lstopo prints no matrix for one node
        assert len(facts.nodes) == 1
        return
    _, mems = ALLOWED.get(truth.name_of(tarball), (None, None))
    nodes = [node for node in facts.nodes if mems is None or node.id in mems]
    order = {one.index: place for place, one in enumerate(_logical_nodes(topology))}
    for node in nodes:
        for other in nodes:
            assert node.distances[other.id] == topology.distances[order[node.id]][order[other.id]]


def _logical_nodes(topology: Topology) -> list[Object]:
    """In the order of the tree, which is the order of the matrix."""
    return topology.machine.all("NUMANode")


@on(truth.tarballs())
def test_buggy_nodes_are_told(tarball: Path) -> None:
    facts = facts_of(tarball)
    if "buggynuma" not in tarball.name:
        assert facts.remarks == ()
        return
    assert len(facts.remarks) == 7
    assert facts.remarks[0] == "node 1 is left out: firmware gives it CPUs 0-7, which node 0 already has"


_CACHE_TYPES = {"L1dCache": (1, "data"), "L1iCache": (1, "instruction"), "L2Cache": (2, "unified")}


def _expected_caches(topology: Topology) -> Iterator[tuple[int, str, int | None, int | None, int | None, Cpus]]:
    """(level, type, bytes, line, ways, CPUs); what lstopo does not know is None."""
    for one in topology.machine.walk():
        match = re.fullmatch(r"L(\d)([di]?)Cache", one.type)
        if not match:
            continue
        words = one.attributes
        if "cache_size" in words:  # XML: type 0 unified, 1 data, 2 instruction; 0 for "not known"
            type = ("unified", "data", "instruction")[int(words["cache_type"])]
            numbers = [int(words[key]) for key in ("cache_size", "cache_linesize", "cache_associativity")]
        else:
            type = {"d": "data", "i": "instruction", "": "unified"}[match[2]]
            size = re.fullmatch(r"(\d+)(KiB|MiB|B)", words.get("size", "0B"))
            assert size
            factor = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20}[size[2]]
            numbers = [int(size[1]) * factor, int(words.get("linesize", 0)), int(words.get("ways", 0))]
        size_bytes, line, ways = (number or None for number in numbers)
        yield int(match[1]), type, size_bytes, line, ways, one.cpus


def _console_size(bytes: int | None) -> int | None:
    """The console prints KiB up to 10 MiB and MiB from there, rounded."""
    if bytes is None or bytes < 10 << 20:
        return bytes
    return ((bytes + (1 << 19)) >> 20) << 20


@on(LSTOPO)
def test_caches(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    seen = visible(facts, tarball)
    console = truth.truth_of(tarball).suffix == ".console"

    def key(cache: Cache) -> tuple[int, str, int | None, int | None, int | None, Cpus]:
        size = _console_size(cache.size_bytes) if console else cache.size_bytes
        return cache.level, cache.type, size, cache.line_bytes, cache.ways, cache.cpus & seen

    ours = Counter(key(cache) for cache in facts.caches if cache.cpus & seen)
    assert ours == Counter(_expected_caches(topology))


@on(LSTOPO)
def test_kinds(tarball: Path) -> None:
    """hwloc tells kinds apart that differ in the top frequency only; so far no machine here makes that a difference."""
    facts, topology = facts_of(tarball), topology_of(tarball)
    expected = set(topology.kinds) if len(topology.kinds) > 1 else set()
    kinds: dict[str, set[int]] = {}
    for cpu in facts.cpus:
        if cpu.kind is not None:
            kinds.setdefault(cpu.kind, set()).add(cpu.id)
    assert {frozenset(cpus) for cpus in kinds.values()} == expected


@on(LSTOPO)
def test_identity(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    told = topology.machine.attributes
    identity = facts.identity
    pairs = (
        ("DMIProductName", identity.product),
        ("DMISysVendor", identity.system_vendor),
        ("DMIBoardName", identity.board),
        ("DMIBIOSVendor", identity.firmware_vendor),
        ("DMIBIOSVersion", identity.firmware_version),
        ("DMIBIOSDate", identity.firmware_date),
    )
    for key, ours in pairs:
        if key in told:
            assert (told[key].strip() or None) == ours


# -- PCI, where the XML has it ----------------------------------------------------------------------------------------


def _pci(topology: Topology) -> dict[str, Object]:
    return {one.attributes["pci_busid"]: one for one in topology.machine.walk() if "pci_busid" in one.attributes}


@on(XML)
def test_pci_functions(tarball: Path) -> None:
    facts, expected = facts_of(tarball), _pci(topology_of(tarball))
    dropped = DROPPED_BRIDGES.get(truth.name_of(tarball), set())
    assert {function.address for function in facts.pci} == expected.keys() | dropped
    for function in facts.pci:
        if function.address in dropped:
            assert function.class_code == "060400"
            continue
        kind, ids = expected[function.address].attributes["pci_type"].split(" ")[:2]
        assert (function.class_code[:4], f"[{function.vendor}:{function.device}]") == (kind, ids)


@on([path for path in XML if truth.name_of(path) not in FORCED_LOCALITY])
def test_pci_locality(tarball: Path) -> None:
    facts, expected = facts_of(tarball), _pci(topology_of(tarball))
    without = set()
    for address, shown in expected.items():
        function = next(function for function in facts.pci if function.address == address)
        if function.node is None:
            without.add(address)
        else:
            assert function.local_cpus == shown.cpus
            assert facts.node(function.node).cpus == shown.cpus
    assert {address for address in without if expected[address].cpus != facts.online} == WITHOUT_NODE.get(
        truth.name_of(tarball), set()
    )


@one("40intel64-2g2n4c+pcilocality")
def test_pci_locality_that_the_user_forced_is_not_a_fact(tarball: Path) -> None:
    facts, topology = facts_of(tarball), topology_of(tarball)
    # firmware said nothing: every function is near all CPUs, but for one whose node was written in by hand
    assert {function.local_cpus for function in facts.pci} == {facts.online}
    assert {function.address: function.node for function in facts.pci if function.node is not None} == {
        "0000:43:00.0": 2
    }
    # and lstopo shows just what .test sets in the environment
    test = tarball.with_name(truth.name_of(tarball) + ".test").read_text()
    forced = re.findall(r"0000:([0-9a-f]{2})-([0-9a-f]{2}) (0x[0-9a-fx,]+)", test)
    assert len(forced) == 2
    for address, shown in _pci(topology).items():
        bus = int(address.split(":")[1], 16)
        cpus = next(cpus for first, last, cpus in forced if int(first, 16) <= bus <= int(last, 16))
        assert shown.cpus == truth.read_mask(cpus)


@on(XML)
def test_network_interfaces_and_disks(tarball: Path) -> None:
    """Same PCI function, same node.  osdev_type is a set of bits: 1 storage, 2 memory, 16 network."""
    facts, topology = facts_of(tarball), topology_of(tarball)
    devices: list[Nic | BlockDevice] = [*facts.nics, *facts.blocks]
    ours = {device.name: device for device in devices}
    shown = [device for device in topology.machine.all("OSDev") if int(device.attributes["osdev_type"]) in (1, 16)]
    assert {device.attributes["name"] for device in shown} == ours.keys()
    for device in shown:
        mine = ours[device.attributes["name"]]
        function = device.above("PCIDev")
        assert mine.pci == (function.attributes["pci_busid"] if function else None)
        if mine.node is not None and truth.name_of(tarball) not in FORCED_LOCALITY:
            assert facts.node(mine.node).cpus == device.cpus
        if isinstance(mine, Nic):
            assert mine.mac == device.attributes["Address"]
        elif "Size" in device.attributes:
            assert (mine.size_bytes or 0) >> 10 == int(device.attributes["Size"].removesuffix("KiB"))


# -- against lscpu ----------------------------------------------------------------------------------------------------


def _ours(facts: Facts, level: int, type: str) -> set[Cpus]:
    return {cache.cpus for cache in facts.caches if (cache.level, cache.type) == (level, type)}


@on(LSCPU)
def test_lscpu_columns(tarball: Path) -> None:
    facts, lscpu = facts_of(tarball), truth.read_lscpu(truth.truth_of(tarball))
    for rows in (lscpu.logical, lscpu.physical):
        assert truth.groups_of(rows, "L1d") == _ours(facts, 1, "data")
        assert truth.groups_of(rows, "L1i") == _ours(facts, 1, "instruction")
        assert truth.groups_of(rows, "L2") == _ours(facts, 2, "unified")
        assert truth.groups_of(rows, "L3") == _ours(facts, 3, "unified")
    physical = lscpu.physical
    assert truth.groups_of(physical, "Socket", "Core") == {cpu.siblings for cpu in facts.cpus}
    for row in physical:
        cpu = facts.cpu(int(row["CPU"]))
        assert (str(cpu.package), str(cpu.core)) == (row["Socket"], row["Core"])
        assert ("" if cpu.node is None else str(cpu.node)) == row["Node"]
    assert {int(row["CPU"]) for row in physical} == {cpu.id for cpu in facts.cpus}


@on(LSCPU)
def test_lscpu_summary(tarball: Path) -> None:
    facts, lscpu = facts_of(tarball), truth.read_lscpu(truth.truth_of(tarball))
    said = lscpu.summary
    assert said["CPU(s)"] == [str(len(facts.cpus))]
    models = {cpu.model for cpu in facts.cpus} - {None} or {cpu.kind for cpu in facts.cpus}
    if any(cpu.kind for cpu in facts.cpus):
        models = {cpu.kind for cpu in facts.cpus}
        cores = [int(word) for word in said["Core(s) per socket"]]
        assert cores == [sum(cpu.kind == model for cpu in facts.cpus) for model in said["Model name"]]
    else:
        per_socket = len({cpu.siblings for cpu in facts.cpus if cpu.package == 0})
        assert said["Core(s) per socket"] == [str(per_socket)]
        assert said["Socket(s)"] == [str(len({cpu.package for cpu in facts.cpus}))]
    assert set(said["Model name"]) == models
    assert set(said["Thread(s) per core"]) == {str(len(cpu.siblings)) for cpu in facts.cpus}
    for key, text in said.items():
        if match := re.fullmatch(r"NUMA node(\d+) CPU\(s\)", key):
            assert format_cpus(facts.node(int(match[1])).cpus) == text[0]
        if key.startswith("Vulnerability "):
            name = key.removeprefix("Vulnerability ").lower().replace(" ", "_")
            ours = facts.vulnerabilities[name]
            if ours.startswith("Mitigation:"):  # lscpu makes a semicolon of this colon and drops the others
                ours = "Mitigation;" + ours.removeprefix("Mitigation:").replace(":", "")
            assert ours == text[0]
    if "Frequency boost" in said:
        assert facts.frequency.boost is (said["Frequency boost"] == ["enabled"])
    highest = {f"{(cpu.max_khz or 0) / 1000:.4f}" for cpu in facts.cpus}
    assert highest == set(said["CPU max MHz"])


@on(LSCPU)
def test_lscpu_cache_sums(tarball: Path) -> None:
    facts, lscpu = facts_of(tarball), truth.read_lscpu(truth.truth_of(tarball))
    for level, type, key in ((1, "data", "L1d"), (1, "instruction", "L1i"), (2, "unified", "L2"), (3, "unified", "L3")):
        text = lscpu.summary.get(f"{key} cache")
        if text is None:
            continue  # lscpu prints no size where the tree has none; neither do we
        amount, unit, count = re.fullmatch(r"([\d.]+) (KiB|MiB) \((\d+) instances?\)", text[0]).groups()  # type: ignore[union-attr]
        caches = [cache for cache in facts.caches if (cache.level, cache.type) == (level, type)]
        assert len(caches) == int(count)
        total = sum(cache.size_bytes or 0 for cache in caches)
        assert total == float(amount) * {"KiB": 1 << 10, "MiB": 1 << 20}[unit]


@on(LSCPU)
def test_sizes_that_no_file_tells_stay_unknown(tarball: Path) -> None:
    facts, lscpu = facts_of(tarball), truth.read_lscpu(truth.truth_of(tarball))
    if "L2 cache" not in lscpu.summary:
        assert {cache.size_bytes for cache in facts.caches} == {None}


@one("16amd64-8n2c-cpusets")
def test_hidden_cpus_are_in_the_facts(tarball: Path) -> None:
    """The machine has 16 CPUs and 8 nodes, whatever the recording process was allowed to use."""
    facts = facts_of(tarball)
    assert [cpu.id for cpu in facts.cpus] == list(range(16))
    assert facts.online == frozenset(range(16)) - {4}
    assert [node.id for node in facts.nodes] == list(range(8))
