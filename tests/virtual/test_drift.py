"""Drift on a real PREEMPT_RT kernel: each thing that undoes a tuned host, made on purpose beside a running watcher.

The host is one of its own, because a CPU that went offline and came back does not leave everything as it was.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.virtual.conftest import on_host, remove_orphans
from tests.virtual.tuned import TunedHost, tuned
from tests.virtual.watcher import watching

from evenkeel.apply.engine import apply_plan
from evenkeel.machines.virtual import apt, lifecycle

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(2400)]


@pytest.fixture(scope="module")
def host() -> Iterator[TunedHost]:
    remove_orphans()
    with tuned("drift") as made:
        yield made


@pytest.fixture(autouse=True)
def as_planned(host: TunedHost) -> Iterator[None]:
    """What no robot may put back (a pin, a guest's power) is put back by an apply, as its owner would."""
    yield
    report = apply_plan(host.host, host.plan, host.machine, drain=True)
    assert report.outcome in ("applied", "unchanged")


def test_a_cpu_goes_offline_and_comes_back(host: TunedHost) -> None:
    """A remote partition stays invalid when its CPU is back (measured on 6.12); the watcher makes it anew."""
    cpu, partition = host.cpu, "C-1:plc/vcpu1"
    with watching(host, repair=True) as watcher:
        mark = watcher.since()
        host.run(f"echo 0 > /sys/devices/system/cpu/cpu{cpu}/online")
        watcher.wait("drifted", partition, since=mark)
        assert [notice for notice in watcher.said[mark:] if f"CPU {cpu} went offline" in notice.cause]
        mark = watcher.since()
        host.run(f"echo 1 > /sys/devices/system/cpu/cpu{cpu}/online")
        watcher.wait("repaired", partition, since=mark)
        watcher.wait("gone again", partition, since=mark)
        assert host.run("cat $scope/vcpu1/cpuset.cpus.partition") == "isolated"


def test_without_repair_the_same_is_told_and_nothing_is_written(host: TunedHost) -> None:
    with watching(host, repair=False) as watcher:
        mark = watcher.since()
        host.run("echo member > $scope/vcpu1/cpuset.cpus.partition; echo 5 > /proc/sys/vm/swappiness")
        watcher.wait("drifted", "C-1:plc/vcpu1", cause="partition reads member", since=mark)
        watcher.wait("drifted", "R-MM-2:swappiness", since=mark)
        assert [notice for notice in watcher.said if notice.kind == "repaired"] == []
        assert host.run("cat $scope/vcpu1/cpuset.cpus.partition /proc/sys/vm/swappiness").split() == ["member", "5"]


def test_setvcpus_is_refused_live_and_told_when_it_changes_the_definition(host: TunedHost) -> None:
    with watching(host, repair=True) as watcher:
        mark = watcher.since()
        said = host.run("virsh setvcpus plc 1 --live 2>&1 && echo taken || true")
        assert "taken" not in said and "error" in said
        host.run("virsh setvcpus plc 1 --config")
        told = watcher.wait("drifted", cause="of plc changed", since=mark)
        assert told.check is not None and told.check.id.startswith("G-") and "plc" in told.check.id
        host.run("virsh setvcpus plc 2 --config")
        watcher.wait("gone again", told.check.id, since=mark)
        watcher.wait_until_well()


def test_a_link_goes_down_and_comes_up(host: TunedHost) -> None:
    nic = host.run(
        "for n in /sys/class/net/*; do case $(readlink -f $n/device/driver) in */e1000e) basename $n;; esac; done"
    )
    host.run(f"ip link set {nic} up")
    with watching(host, repair=True) as watcher:
        mark = watcher.since()
        host.run(f"ip link set {nic} down")
        watcher.wait("drifted", f"W-LINK:{nic}", cause=f"link {nic} is down", since=mark)
        mark = watcher.since()
        host.run(f"ip link set {nic} up")
        watcher.wait("gone again", f"W-LINK:{nic}", cause=f"link {nic} is up", since=mark)
        watcher.wait_until_well()  # affinities that a driver sets anew when the link comes up included


def test_irqbalance_is_started(host: TunedHost) -> None:
    with watching(host, repair=True) as watcher:
        mark = watcher.since()
        host.run("systemctl unmask irqbalance.service 2>/dev/null; systemctl start irqbalance.service")
        watcher.wait("drifted", "W-OWNER:irqbalance", cause="irqbalance started", since=mark)
        watcher.wait("repaired", "R-IRQ-4", since=mark)
        watcher.wait("gone again", "W-OWNER:irqbalance", since=mark)
        assert host.run("systemctl is-active irqbalance || true") == "inactive"
        watcher.wait_until_well()


def install(host: TunedHost, package: str, folder: Path) -> None:
    """Install a Debian package and what it needs on the virtual host, which has no way to a mirror itself."""
    status = folder / "status"
    status.write_text(host.run("cat /var/lib/dpkg/status") + "\n\n")
    options = [*apt.private_apt(folder, apt.lines(apt.sources())), "-o", f"Dir::State::status={status}"]
    for words in (["update"], ["-y", "--download-only", "--no-install-recommends", "install", package]):
        subprocess.run(["apt-get", *options, "-q", *words], check=True, capture_output=True, stdin=subprocess.DEVNULL)
    packages = sorted((folder / "archives").glob("*.deb"))
    assert packages
    archive = subprocess.run(
        ["tar", "-c", *(one.name for one in packages)], cwd=folder / "archives", stdout=-1, check=True
    )
    subprocess.run(
        lifecycle.ssh_command(host.machine.ssh_target(), "mkdir -p /root/debs; tar -x -C /root/debs"),
        input=archive.stdout,
        check=True,
    )
    # apt and not dpkg, which does not heed the order of what must be set up before what.
    apt_get = "apt-get -q -y --no-install-recommends install"
    on_host(
        host.machine, f"DEBIAN_FRONTEND=noninteractive {apt_get} /root/debs/*.deb >/root/apt.log 2>&1", timeout_s=900.0
    )


def test_tuned_starts_and_switches_its_profile(host: TunedHost, tmp_path: Path) -> None:
    """The real TuneD, installed beside the plan: told as a rival; what its profile overwrites is put back."""
    with watching(host, repair=True) as watcher:
        mark = watcher.since()
        install(host, "tuned", tmp_path)
        try:
            watcher.wait("drifted", "W-OWNER:tuned", cause="tuned started", since=mark)
            # The profile that it chooses by itself; one of its sysctls is the plan's.
            watcher.wait("drifted", "W-PROFILE", cause="TuneD's profile is virtual-guest", since=mark)
            watcher.wait("repaired", "R-MM-2:swappiness", since=mark)
            mark = watcher.since()
            host.run("tuned-adm profile latency-performance")
            told = watcher.wait("differs", "W-PROFILE", since=mark)
            assert told.check is not None and told.check.observed == "latency-performance"
        finally:
            host.run("systemctl disable --now tuned.service 2>/dev/null; dpkg --purge tuned >/dev/null 2>&1")
        watcher.wait("gone again", "W-OWNER:tuned", since=mark)
