"""A virtual host with a plan applied to it and its guests running: what verify and measure are tested on.

Small, because every CPU is emulated: two nodes, six cores without SMT, one real-time guest and an ordinary one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.virtual.conftest import on_host, running_host

from evenkeel.apply.engine import apply_plan
from evenkeel.apply.hosts import read_facts
from evenkeel.documents.facts import Facts
from evenkeel.documents.plan import GuestPlan, HostPlan, Plan
from evenkeel.documents.site import Boot, GuestWish, HostWish, Site
from evenkeel.machines.virtual import VirtualMachine
from evenkeel.machines.virtual.spec import MIB, HostSpec, Nic, Node
from evenkeel.plan import make_plan

SPEC = HostSpec(
    sockets=2,
    cores=3,
    threads=1,
    nodes=(Node(memory=1536 * MIB), Node(memory=1536 * MIB)),
    devices=(Nic(kind="nic", model="e1000e", node=0),),
)
KIT = Boot(kernel="/var/lib/evenkeel/guest/vmlinux", initrd="/var/lib/evenkeel/guest/initrd.img")


@dataclass(frozen=True)
class TunedHost:
    machine: VirtualMachine
    plan: Plan

    @property
    def host(self) -> HostPlan:
        return self.plan.hosts[0]

    @property
    def plc(self) -> GuestPlan:
        """The real-time guest: vCPU 0 ordinary, vCPU 1 at FIFO."""
        return next(guest for guest in self.host.guests if guest.name == "plc")

    @property
    def cpu(self) -> int:
        """Host CPU of the real-time vCPU."""
        return min(self.plc.vcpus[1].cpus)

    def run(self, script: str) -> str:
        """Run a shell script on the host; ``$qemu``, ``$tid`` (of vCPU 1) and ``$scope`` (cgroup) are those of plc."""
        return on_host(
            self.machine,
            "qemu=$(cat /run/libvirt/qemu/plc.pid 2>/dev/null || true)\n"
            "tid=$(grep -l '^CPU 1/KVM' /proc/$qemu/task/*/comm 2>/dev/null | cut -d/ -f5 || true)\n"
            "scope=/sys/fs/cgroup$(cut -d: -f3 /proc/$qemu/cgroup 2>/dev/null | sed 's,/libvirt.*,/libvirt,' || true)\n"
            + script,
        )

    def wait_for_agent(self) -> None:
        """Until plc, which was started a moment ago, has booted so far that its agent answers."""
        ping = 'virsh qemu-agent-command plc \'{"execute":"guest-ping"}\' >/dev/null 2>&1'
        self.run(f"for _ in $(seq 120); do {ping} && exit 0; sleep 1; done; exit 1")

    def facts(self) -> Facts:
        with self.machine.probe() as probe:
            return read_facts(probe)


def site(address: str) -> Site:
    return Site(
        hosts={"cell": HostWish(address=address)},
        guests={
            "plc": GuestWish(goal="realtime", vcpus=2, memory=256 * MIB, boot=KIT, latency=100_000),
            "hmi": GuestWish(goal="flexible", vcpus=1, memory=192 * MIB, boot=KIT),
        },
    )


@contextlib.contextmanager
def tuned(what: str = "tuned", spec: HostSpec = SPEC, site: Callable[[str], Site] = site) -> Iterator[TunedHost]:
    """Boot a host, plan, apply with its reboot.  It is removed at the end.  ``site``: from its address."""
    with running_host(what, spec) as machine:
        with machine.probe() as probe:
            facts = read_facts(probe)
        plan = make_plan(site(machine.address), {"cell": facts})
        report = apply_plan(plan.hosts[0], plan, machine, reboot=True)
        assert report.outcome == "applied", report
        yield TunedHost(machine, plan)
