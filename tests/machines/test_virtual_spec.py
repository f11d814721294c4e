"""The topology file: what is accepted, and what a mistake in it is answered with."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import WrongInput
from evenkeel.machines.virtual.qemu import Launch, Qemu, arguments
from evenkeel.machines.virtual.spec import BUILT_IN, MIB, HostSpec, Node, check_name, read_spec

LAUNCH = Launch(name="h", uuid="0" * 8, kvm=False, ssh_port=1234, folder=Path("/x"))
QEMU = Qemu((10, 0, 2), Path("/q"))


def test_a_file_is_read_with_units(tmp_path: Path) -> None:
    file = tmp_path / "host.yaml"
    file.write_text("""
sockets: 2
cores: 2
nodes:
  - {memory: 1GiB}
  - {memory: 768MiB, distances: [17, 10]}
devices:
  - {kind: nic, model: virtio-net, node: 1}
  - {kind: nvme, size: 1GiB}
  - {kind: virtio-blk, node: 1}
""")
    spec = read_spec(str(file))
    assert (spec.cpus, spec.memory) == (8, 1792 * MIB)
    assert (spec.distance(0, 1), spec.distance(1, 0)) == (21, 17)
    assert HostSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("text", "message", "line"),
    [
        ("sokets: 2", 'unknown key "sokets"; did you mean "sockets"?', 1),
        ("sockets: 2\nnodes:\n  - memory: 1.5G", "unknown unit 'G' in '1.5G'; did you mean 1.5GiB?", 3),
        ("nodes:\n  - memory: 64", "write a number and a unit, as in 4GiB", 2),
        ("nodes: [{memory: 2GiB}]\ndevices:\n  - {kind: nvme, size: 64}", "write a number and a unit", 3),
        ("cores: 0", "greater than or equal to 1", 1),
        ("cores: 2024-13-45", "valid integer", 1),
        ("cores: " + "9" * 5000, "this number is too large", 1),
        ("cores: " + "[" * 5000, "not YAML", None),
        ("cores: 2\ncores: 3", '"cores" is said twice', 2),
        ("", "the file is empty", None),
        ("cores: 3\nsockets: 1\nnodes: [{memory: 1GiB}, {memory: 1GiB}]", "cannot be dealt evenly to 2 nodes", None),
        ("nodes: [{memory: 16MiB}]", "a host needs 1024MiB", None),
        ("nodes: [{memory: 2GiB}, {memory: 2GiB, distances: [10, 10]}]", "to another node is 11 to 254", None),
        ("nodes: [{memory: 2GiB}, {memory: 2GiB, distances: [21, 20]}]", "the distance to itself is 10", None),
        ("devices:\n  - {kind: nic, model: igb, node: 7}", "is on node 7; nodes are 0 to 1", None),
        ("devices:\n  - {kind: nic, model: rtl8139}", "'virtio-net', 'e1000e' or 'igb'", 2),
        ("devices:\n  - kind: gpu", "'gpu'", 2),
        ("sockets: [", "not YAML", 1),
        ("- 1", "a mapping is needed here, this is a list", None),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, message: str, line: int | None) -> None:
    file = tmp_path / "host.yaml"
    file.write_text(text)
    with pytest.raises(WrongInput) as caught:
        read_spec(str(file))
    assert message in str(caught.value)
    assert caught.value.where is not None and caught.value.where.file == str(file)
    if line is not None:
        assert caught.value.where.line == line


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "host.yaml").write_bytes(b"sockets: \xff")
    with pytest.raises(WrongInput, match="not UTF-8 text"):
        read_spec(str(tmp_path / "host.yaml"))


def test_a_missing_file_names_the_built_in_topologies() -> None:
    with pytest.raises(WrongInput, match="default, small, tiny"):
        read_spec("no/such/file")


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a/b", "..", "a" * 33, "a b", "a,b", "ä"])
def test_a_name_that_would_do_harm_is_refused(name: str) -> None:
    with pytest.raises(WrongInput):
        check_name(name)


@pytest.mark.parametrize("name", ["a", "plc-1", "0", "a" * 32])
def test_a_plain_name_is_accepted(name: str) -> None:
    assert check_name(name) == name


@given(st.integers(1, 4), st.integers(1, 6), st.integers(1, 2), st.integers(1, 4))
def test_cores_are_dealt_evenly_and_in_order(sockets: int, cores: int, threads: int, nodes: int) -> None:
    try:
        spec = HostSpec(
            sockets=sockets,
            cores=cores,
            threads=threads,
            devices=(),
            nodes=tuple([Node(memory=1024 * MIB)] * nodes),
        )
    except ValueError:
        return
    dealt = [spec.node_of_core(socket, core) for socket in range(sockets) for core in range(cores)]
    assert dealt == sorted(dealt)
    assert {dealt.count(node) for node in range(nodes)} == {sockets * cores // nodes}
    argv = arguments(QEMU, spec, LAUNCH)
    assert sum(word.startswith("cpu,node-id=") for word in argv) == spec.cpus


def test_every_device_is_on_a_port_of_its_node() -> None:
    argv = arguments(QEMU, BUILT_IN["default"], LAUNCH)
    devices = [word for option, word in pairwise(argv) if option == "-device"]
    ports = {word.split("id=")[1].split(",")[0]: word.split("bus=")[1].split(",")[0]
             for word in devices if word.startswith("pcie-root-port")}  # fmt: skip
    where = {word.split(",")[0]: ports[word.split("bus=")[1].split(",")[0]] for word in devices if "bus=port" in word}
    assert where["igb"] == "node1" and where["e1000e"] == "node0" and where["virtio-net-pci"] == "node0"


def test_an_old_qemu_gets_no_igb() -> None:
    argv = arguments(Qemu((7, 2, 22), Path("/q")), BUILT_IN["default"], LAUNCH)
    assert not any(word.startswith("igb") for word in argv)


def test_an_emulated_host_speaks_x2apic_where_the_emulator_can() -> None:
    """By xAPIC a CPU of it is deaf after some boots; an older QEMU refuses the option, and KVM decides by itself."""

    def iommu(qemu: Qemu, kvm: bool) -> str:
        argv = arguments(qemu, BUILT_IN["default"], replace(LAUNCH, kvm=kvm))
        return next(word for word in argv if word.startswith("intel-iommu"))

    assert "eim=on" in iommu(Qemu((10, 0, 2), Path("/q")), kvm=False)
    assert "eim" not in iommu(Qemu((10, 0, 2), Path("/q")), kvm=True)
    assert "eim" not in iommu(Qemu((7, 2, 22), Path("/q")), kvm=False)


def test_the_same_input_gives_the_same_arguments() -> None:
    assert arguments(QEMU, BUILT_IN["default"], LAUNCH) == arguments(QEMU, HostSpec(), LAUNCH)
