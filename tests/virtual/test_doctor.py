"""The doctor on a tuned virtual host: healthy it has nothing harmful to say; each fault that can be made on a running
host is made, named, and put back.  The others are made on recorded trees (tests/verify/doctor)."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from xml.etree import ElementTree

import pytest
from tests.verify.doctor.faults import FAULTS
from tests.verify.doctor.test_definitions import QEMU_ONLY
from tests.verify.doctor.tree import ETC_GUEST, Tree
from tests.virtual.tuned import TunedHost

from evenkeel.documents.findings import Check, Findings
from evenkeel.verify.doctor import examine

pytestmark = [pytest.mark.virtual, pytest.mark.timeout(1800)]

BUSY = {fault.id: fault for fault in FAULTS}
#: What a healthy virtual host is warned of: its disk has a queue for each CPU.
WELL = {"D-IRQ-MANAGED"}
_MENU = "/boot/grub/grub.cfg"
_DEFAULTS = "/etc/default/grub.d/zz-evenkeel.cfg"
_CLOCK = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
_FAIR = "/sys/kernel/debug/sched/fair_server/cpu{cpu}/runtime"
_KEEP = f"cp -p {_MENU} /root/menu; cp -p {_DEFAULTS} /root/defaults"
_GIVE_BACK = f"cp -p /root/menu {_MENU}; cp -p /root/defaults {_DEFAULTS}"
# /run is mounted noexec.
_DAEMON = "cp /bin/sleep /root/{0}; setsid /root/{0} 600 >/dev/null 2>&1 & echo $! > /run/{0}.pid"
_NO_DAEMON = "kill $(cat /run/{0}.pid); rm -f /root/{0} /run/{0}.pid"
#: Fault -> how it is made on the running host, and how it is put back.
LIVE = {
    "parameter-gone": (
        "echo 'options kvm lapic_timer_advance_ns=1000' > /etc/modprobe.d/doctor.conf",
        "rm /etc/modprobe.d/doctor.conf",
    ),
    "pending-reboot": (f"{_KEEP}; sed -i s/skew_tick=1/skew_tick=0/ {_MENU} {_DEFAULTS}", _GIVE_BACK),
    "edited-menu-only": (f"{_KEEP}; rm {_DEFAULTS}", _GIVE_BACK),
    "other-kernel-untuned": (
        f"{_KEEP}; sed -i -e '/linux.*vmlinuz/{{/'$(uname -r)'/!s/ nohz_full=[^ ]*//}}' {_MENU}",
        _GIVE_BACK,
    ),
    # A local partition: the second cgroup that lists its CPU ends it (host-tuning C-2).
    "partition-invalid": (
        "cd /sys/fs/cgroup; mkdir doctor-a doctor-b\n"
        "echo {shared} > doctor-a/cpuset.cpus; echo isolated > doctor-a/cpuset.cpus.partition\n"
        "echo {shared} > doctor-b/cpuset.cpus\n"
        "grep -q invalid doctor-a/cpuset.cpus.partition",
        "rmdir /sys/fs/cgroup/doctor-a /sys/fs/cgroup/doctor-b",
    ),
    "workqueues-everywhere": (
        "cat {wq} > /run/doctor.wq; echo 3f > {wq}",
        "cat /run/doctor.wq > {wq}",
    ),
    "interrupt-on-isolated": (
        "cat /proc/irq/{irq}/smp_affinity_list > /run/doctor.irq\n"
        "echo {cpu} > /proc/irq/{irq}/smp_affinity_list; sleep 1; ip link >/dev/null; sleep 1",
        "cat /run/doctor.irq > /proc/irq/{irq}/smp_affinity_list; sleep 1",
    ),
    "slow-clock": (f"cat {_CLOCK} > /run/doctor.clock; echo hpet > {_CLOCK}", f"cat /run/doctor.clock > {_CLOCK}"),
    "pages-merged": ("echo 1 > /sys/kernel/mm/ksm/run", "echo 0 > /sys/kernel/mm/ksm/run"),
    "vcpu-at-one": ("chrt -f -p 1 $tid", "chrt -f -p {priority} $tid"),
    "timers-below-vcpu": (
        "chrt -f -p 1 $(pgrep -x ktimers/{cpu})",
        "chrt -f -p 11 $(pgrep -x ktimers/{cpu})",
    ),
    "throttle-misread": (
        "sysctl -qw kernel.sched_rt_runtime_us=-1",
        "sysctl -qw kernel.sched_rt_runtime_us=950000",
    ),
    # In this order, and back in the other one: the kernel answers EBUSY otherwise (host-tuning R-RT-3).
    "fair-server-off": (
        f"sysctl -qw kernel.sched_rt_runtime_us=-1; echo 0 > {_FAIR}",
        f"echo 50000000 > {_FAIR}; sysctl -qw kernel.sched_rt_runtime_us=950000",
    ),
    "vcpus-stacked": (
        "t=$(grep -l '^CPU 0/KVM' /proc/$qemu/task/*/comm | cut -d/ -f5)\n"
        "echo $t > $scope/vcpu1/cgroup.threads; taskset -p -c {cpu} $t >/dev/null",
        "t=$(grep -l '^CPU 0/KVM' /proc/$qemu/task/*/comm | cut -d/ -f5)\n"
        "echo $t > $scope/vcpu0/cgroup.threads; taskset -p -c {vcpu0} $t >/dev/null",
    ),
    "emulator-on-vcpu": (
        "echo $qemu > $scope/vcpu1/cgroup.threads; taskset -p -c {cpu} $qemu >/dev/null",
        "echo $qemu > $scope/emulator/cgroup.threads; taskset -p -c {emulator} $qemu >/dev/null",
    ),
    "numad-runs": (_DAEMON.format("numad"), _NO_DAEMON.format("numad")),
    "tuned-runs": (_DAEMON.format("tuned"), _NO_DAEMON.format("tuned")),
    "two-sysctl-files": (
        "echo vm.swappiness=60 > /etc/sysctl.d/10-doctor.conf; echo vm.swappiness=10 > /etc/sysctl.d/20-doctor.conf",
        "rm /etc/sysctl.d/10-doctor.conf /etc/sysctl.d/20-doctor.conf",
    ),
}


def look(host: TunedHost) -> Findings:
    return examine(host.facts(), "cell")


def kinds(findings: Findings) -> set[str]:
    return {check.id.partition(":")[0] for check in findings.failed}


def harmful(findings: Findings) -> list[Check]:
    return [check for check in findings.failed if check.severity == "harmful"]


class Words:
    """Numbers of this host for the scripts above."""

    def __init__(self, host: TunedHost) -> None:
        interrupts = [row for row in host.facts().interrupts if row.action.endswith("-input.0")]
        self._words = {
            "{cpu}": str(host.cpu),
            "{vcpu0}": str(min(host.plc.vcpus[0].cpus)),
            "{priority}": str(host.plc.vcpus[1].priority),
            "{emulator}": ",".join(str(cpu) for cpu in sorted(host.plc.emulator_cpus)),
            "{shared}": str(max(host.host.ledger.shared)),
            "{irq}": str(interrupts[0].number),
            "{wq}": "/sys/devices/virtual/workqueue/cpumask",
        }

    def fill(self, text: str) -> str:
        for word, value in self._words.items():
            text = text.replace(word, value)
        return text


@pytest.fixture(scope="module")
def words(tuned_host: TunedHost) -> Words:
    return Words(tuned_host)


@contextlib.contextmanager
def broken(host: TunedHost, breaking: str, mending: str) -> Iterator[None]:
    try:
        host.run(breaking)
        yield
    finally:
        host.run(mending)


def test_the_table_says_which_faults_are_made_here() -> None:
    assert set(LIVE) == {fault.id for fault in FAULTS if fault.live}


def test_a_healthy_tuned_host_has_nothing_harmful(tuned_host: TunedHost) -> None:
    findings = look(tuned_host)
    assert harmful(findings) == []
    assert kinds(findings) <= WELL, findings.failed
    assert [check for check in findings.checks if check.status == "not_checked"] == []


#: Faults that do not get into each other's way, made at the same time and looked at once.  Not
#: edited-menu-only: what it takes away is how tuned-runs is known.
TOGETHER = {
    "host": (
        *("parameter-gone", "pending-reboot", "partition-invalid", "workqueues-everywhere", "interrupt-on-isolated"),
        *("slow-clock", "pages-merged", "timers-below-vcpu", "throttle-misread", "numad-runs", "two-sysctl-files"),
    ),
    "guests": ("vcpu-at-one", "fair-server-off", "vcpus-stacked", "emulator-on-vcpu", "tuned-runs"),
}


@pytest.mark.long
@pytest.mark.parametrize("group", TOGETHER)
def test_the_doctor_names_what_is_wrong_and_nothing_else(tuned_host: TunedHost, words: Words, group: str) -> None:
    scripts = [
        (words.fill(breaking), words.fill(mending)) for breaking, mending in (LIVE[fault] for fault in TOGETHER[group])
    ]
    with broken(
        tuned_host,
        "\n".join(f"({breaking}\n)" for breaking, _ in scripts),
        "\n".join(f"({mending}\n)" for _, mending in reversed(scripts)),
    ):
        findings = look(tuned_host)
    assert kinds(findings) - WELL == {BUSY[fault].finding for fault in TOGETHER[group]}, findings.failed
    assert kinds(look(tuned_host)) <= WELL, "still there after it was put back"


@pytest.mark.long
@pytest.mark.parametrize("fault", LIVE)
def test_the_doctor_names_each_fault_by_itself(tuned_host: TunedHost, words: Words, fault: str) -> None:
    breaking, mending = LIVE[fault]
    with broken(tuned_host, words.fill(breaking), words.fill(mending)):
        findings = look(tuned_host)
    assert kinds(findings) - WELL == {BUSY[fault].finding}, findings.failed
    assert kinds(look(tuned_host)) <= WELL, "still there after it was put back"


@pytest.mark.long
def test_libvirt_refuses_what_the_doctor_says_it_refuses(tuned_host: TunedHost) -> None:
    """The real libvirt of the host, and every definition of the table that it must refuse."""
    refused = [fault for fault in FAULTS if fault.finding == "D-XML-REFUSED"]
    assert len(refused) >= 4
    assert "defined" in _define(tuned_host, Tree("guests").text(ETC_GUEST))
    tuned_host.run("virsh -q undefine doctor")
    for fault in refused:
        tree = Tree("guests")
        fault.make(tree)
        assert "error:" in _define(tuned_host, tree.text(ETC_GUEST)), fault.id
    for what, old, new in QEMU_ONLY:
        tree = Tree("guests")
        tree.swap(ETC_GUEST, old, new)
        assert "error:" in _define(tuned_host, tree.text(ETC_GUEST)), what


def _define(host: TunedHost, xml: str) -> str:
    """What virsh says of the definition under another name."""
    text = xml.replace("<name>plc</name>", "<name>doctor</name>")
    for line in text.splitlines():
        if "<uuid>" in line:
            text = text.replace(line + "\n", "")
    with contextlib.suppress(ElementTree.ParseError):
        assert ElementTree.fromstring(text).findtext("name") == "doctor"
    return host.run(f"cat > /root/doctor.xml <<'EOF'\n{text}\nEOF\nvirsh define /root/doctor.xml 2>&1 || true")
