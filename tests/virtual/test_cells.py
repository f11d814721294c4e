"""A guest over two NUMA nodes, planned, applied and started by libvirt: every cell is where it should be, and what is
elsewhere is found.  One host for all, because none of it needs another boot.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from tests.virtual.conftest import remove_orphans
from tests.virtual.tuned import KIT, SPEC, TunedHost, tuned

from evenkeel.apply.hosts import read_facts
from evenkeel.documents.findings import Check, Findings
from evenkeel.documents.plan import GuestPlan
from evenkeel.documents.site import GuestWish, HostWish, Site
from evenkeel.errors import EvenkeelError
from evenkeel.machines.virtual.spec import MIB
from evenkeel.measure.guest import guest_exec
from evenkeel.verify import Options, verify_host
from evenkeel.verify.doctor import examine

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(1800)]


def site(address: str) -> Site:
    # One vCPU a cell, since each is emulated twice: 0 keeps the guest's own house, 1 is real-time.
    wide = GuestWish(goal="realtime", vcpus=2, memory=512 * MIB, numa=2, boot=KIT, latency=100_000)
    return Site(hosts={"cell": HostWish(address=address)}, guests={"wide": wide})


@pytest.fixture(name="host", scope="module")
def _host() -> Iterator[TunedHost]:
    remove_orphans()
    with tuned("cells", SPEC, site) as host:
        yield host


def wide(host: TunedHost) -> GuestPlan:
    (guest,) = host.host.guests
    return guest


def verify(host: TunedHost) -> Findings:
    with host.machine.probe() as probe:
        return verify_host(host.host, probe, read_facts(probe), options=Options(spinners=False))


def failed(findings: Findings) -> dict[str, Check]:
    return {check.id: check for check in findings.failed}


def in_guest(host: TunedHost, script: str) -> str:
    """Output of a shell script inside the guest, through its agent; waits for the guest to have booted."""
    deadline = time.monotonic() + 300
    with host.machine.probe() as probe:
        while True:
            try:
                ran = guest_exec(probe, "wide", ["sh", "-c", script])
            except EvenkeelError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(3)
                continue
            assert ran.exit == 0, ran
            return ran.stdout


def restart(host: TunedHost, change: str) -> None:
    """Start the guest from its planned definition with something changed: a sed script."""
    host.run(
        "virsh -q destroy wide 2>/dev/null || true\n"
        "cat > /root/plan.xml <<'EOF'\n" + wide(host).xml + "\nEOF\n"
        f"sed {change} /root/plan.xml > /root/other.xml\n"
        "virsh -q define /root/other.xml; virsh -q start wide\n"
    )


def test_a_guest_of_two_cells_is_as_planned(host: TunedHost) -> None:
    guest = wide(host)
    assert [(cell.node, sorted(cell.vcpus)) for cell in guest.cells] == [(0, [0]), (1, [1])]
    findings = verify(host)
    assert [(check.id, check.observed) for check in findings.failed] == []
    passed = {check.id: check.observed for check in findings.checks if check.status == "passed"}
    assert passed["V-PAGE-NODE:wide"] == "256MiB on node 0, 256MiB on node 1"
    assert passed["V-PAGE-CELL:wide:cell0"] == "256MiB on node 0"
    assert passed["V-PAGE-CELL:wide:cell1"] == "256MiB on node 1"
    assert {"V-GUEST-LIVE:wide", *(f"V-THREAD-VCPU:wide:vcpu{n}" for n in range(2))} <= passed.keys()
    with host.machine.probe() as probe:
        assert [check.id for check in examine(read_facts(probe), "cell").failed if check.guest == "wide"] == []


def test_the_guest_sees_its_nodes_as_the_host_has_them(host: TunedHost) -> None:
    """What numactl --hardware reads in the guest: CPUs and distances of its nodes."""
    told = in_guest(host, "cd /sys/devices/system/node; cat node0/cpulist node1/cpulist node0/distance node1/distance")
    on_host = host.run("cat /sys/devices/system/node/node[01]/distance")
    assert told.split("\n")[:2] == ["0", "1"]
    assert [line.split() for line in told.splitlines()[2:]] == [line.split() for line in on_host.splitlines()]
    packages = in_guest(host, "cat /sys/devices/system/cpu/cpu[01]/topology/physical_package_id")
    assert packages.split() == ["0", "1"]


def test_cells_that_are_exchanged(host: TunedHost) -> None:
    """Every node has as many pages as planned, and yet each access of the guest is far."""
    restart(
        host,
        "-e '/cellid=.0./s/nodeset=.0./nodeset=\"X\"/' -e '/cellid=.1./s/nodeset=.1./nodeset=\"0\"/'"
        " -e '/cellid=.0./s/X/1/'",
    )
    found = failed(verify(host))
    assert {"V-PAGE-CELL:wide:cell0", "V-PAGE-CELL:wide:cell1", "V-GUEST-LIVE:wide", "G-15:wide"} <= found.keys()
    assert "V-PAGE-NODE:wide" not in found
    assert found["V-PAGE-CELL:wide:cell1"].observed == "256MiB on node 0"
    with host.machine.probe() as probe:
        assert "D-XML-NODE" in {check.id.partition(":")[0] for check in examine(read_facts(probe), "cell").failed}


def test_memory_of_both_cells_on_one_node(host: TunedHost) -> None:
    host.run("virsh -q destroy wide; echo 256 > /sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages")
    restart(host, "-e '/cellid=.1./s/nodeset=.1./nodeset=\"0\"/'")
    found = failed(verify(host))
    assert {"V-PAGE-NODE:wide", "V-PAGE-CELL:wide:cell1", "V-GUEST-LIVE:wide"} <= found.keys()
    assert "V-PAGE-CELL:wide:cell0" not in found
    assert found["V-PAGE-NODE:wide"].observed == "512MiB on node 0"


def test_pins_that_are_exchanged(host: TunedHost) -> None:
    one, other = (min(wide(host).vcpus[index].cpus) for index in (0, 1))
    restart(
        host,
        f"-e '/vcpu=.0. cpuset/s/cpuset=.{one}./cpuset=\"{other}\"/' "
        f"-e '/vcpu=.1. cpuset/s/cpuset=.{other}./cpuset=\"{one}\"/'",
    )
    found = failed(verify(host))
    assert {"V-THREAD-VCPU:wide:vcpu0", "V-THREAD-VCPU:wide:vcpu1", "V-GUEST-LIVE:wide"} <= found.keys()
    assert not {name for name in found if name.startswith("V-PAGE")}


def test_distances_that_are_not_those_of_the_host(host: TunedHost) -> None:
    restart(host, "-e 's/value=.21./value=\"30\"/'")
    found = failed(verify(host))
    assert "distances" in found["V-GUEST-LIVE:wide"].observed and "30" in found["V-GUEST-LIVE:wide"].observed
    assert not {name for name in found if name.startswith("V-PAGE")}


def test_an_emulator_without_a_cpu_of_one_node_cannot_take_memory_there(host: TunedHost) -> None:
    """Why the emulator's pin has a CPU of each node: QEMU takes strictly bound memory from a CPU beside it."""
    with pytest.raises(AssertionError, match="exit code"):
        restart(
            host, f"-e 's/<emulatorpin cpuset=[^/]*/<emulatorpin cpuset=\"{min(host.host.ledger.housekeeping)}\" /'"
        )
