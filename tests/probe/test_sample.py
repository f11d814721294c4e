"""Sampling: parsers on recorded and on damaged text; processes and spinners live, by structure only."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.machines.local import LocalMachine
from evenkeel.machines.protocol import ProbeError
from evenkeel.probe import sample, sample_guest, sample_partition, sample_process, sample_spin
from evenkeel.probe.sample_proc import (
    parse_interrupts,
    parse_numa_maps,
    parse_stat,
    parse_status,
    row_kind,
)
from tests.waiting import until

RECORDED = Path(__file__).parents[1] / "verify" / "recorded"
INTERRUPTS = """\
            CPU0       CPU2       CPU3
   0:        115          0          1  IR-IO-APIC   2-edge      timer
  25:          0          3          1  IR-PCI-MSIX-0000:40:00.0   0-edge      PCIe PME, aerdrv, pciehp
  31:          7          0          0  PCI-MSI 524288-edge      virtio0-req.0
  13:        900         80          7     GICv3  30 Level     arch_timer
  44:          0          0          0  PCI-MSIX-0000:00:03.0   1-edge
 LOC:      48261       1852         12   Local timer interrupts
 RES:          1          2          3   Rescheduling interrupts
 ERR:          4
"""


def test_interrupts_by_cpu_number_not_by_column() -> None:
    rows = parse_interrupts(INTERRUPTS)
    assert rows["LOC"]["counts"] == {0: 48261, 2: 1852, 3: 12}
    assert rows["25"]["action"] == "PCIe PME,aerdrv,pciehp", "as /sys/kernel/irq/N/actions writes it"
    assert rows["31"]["action"] == "virtio0-req.0"
    assert rows["13"]["action"] == "arch_timer"
    assert "ERR" not in rows, "one number that belongs to no CPU"


@pytest.mark.parametrize(
    ("label", "action", "kind"),
    [
        ("LOC", "Local timer interrupts", "timer"),
        ("13", "arch_timer", "timer"),
        ("0", "timer", "device"),
        ("31", "virtio0-req.0", "device"),
        ("RES", "Rescheduling interrupts", "other"),
    ],
)
def test_what_kind_of_interrupt_a_row_counts(label: str, action: str, kind: str) -> None:
    assert row_kind(label, action) == kind


def test_growth_names_the_device_and_leaves_out_what_stood_still() -> None:
    later = INTERRUPTS.replace("7          0          0  PCI-MSI", "7          5          0  PCI-MSI")
    new_row = "  99:          2          0          0  PCI-MSI 1-edge      hotplugged\n"
    rows = sample.grown(parse_interrupts(INTERRUPTS), parse_interrupts(later + new_row))
    assert rows == [
        {"label": "31", "action": "virtio0-req.0", "kind": "device", "counts": {2: 5}},
        {"label": "99", "action": "hotplugged", "kind": "device", "counts": {0: 2}},
    ]


def test_a_thread_whose_name_has_blanks_and_parentheses() -> None:
    # Field 3 (state) to 38, then 39 processor, 40 rt_priority, 41 policy: proc(5).
    fields = ["S", "1", "1", "0", "-1", "-1", "4194368", *["0"] * 29, "10", "2", "1"]
    stat = parse_stat(f"742 (CPU 1/KVM) (x)) {' '.join(fields)} 0 0\n")
    assert stat is not None
    assert (stat.name, stat.cpu, stat.priority, stat.policy) == ("CPU 1/KVM) (x)", 10, 2, "fifo")


def test_recorded_thread() -> None:
    stat = parse_stat((RECORDED / "stat.txt").read_text())
    status = parse_status((RECORDED / "status.txt").read_text())
    assert stat is not None and stat.name == "CPU 1/KVM" and (stat.policy, stat.priority) == ("fifo", 2)
    assert (stat.ticks, stat.began) == (4728 + 2271, 10303)
    assert sample.expand(status["Cpus_allowed_list"]) == {stat.cpu}
    assert int(status["nonvoluntary_ctxt_switches"]) >= 0


def test_recorded_interrupts() -> None:
    rows = parse_interrupts((RECORDED / "interrupts.txt").read_text())
    assert {len(row["counts"]) for row in rows.values()} == {6}
    assert {"LOC", "RES", "CAL"} <= rows.keys()
    assert any(row["action"].endswith("-input.0") for row in rows.values())


def test_recorded_memory_of_a_guest() -> None:
    huge = [mapping for mapping in parse_numa_maps((RECORDED / "numa_maps.txt").read_text()) if mapping["huge"]]
    assert [(one["policy"], one["page_bytes"], one["nodes"]) for one in huge] == [("bind:1", 2 << 20, {1: 128})]


def test_memory_on_two_nodes_and_one_mapping_without_pages() -> None:
    text = (
        "7f00 bind:0-1 file=/dev/hugepages/a\\040(deleted) huge dirty=3 N0=1 N1=2 kernelpagesize_kB=1048576\n"
        "7f01 default\n7f02 default anon=2 N1=2 kernelpagesize_kB=4\n"
    )
    first, second = parse_numa_maps(text)
    assert (first["nodes"], first["page_bytes"], first["huge"]) == ({0: 1, 1: 2}, 1 << 30, True)
    assert (second["nodes"], second["page_bytes"], second["huge"]) == ({1: 2}, 4096, False)


LINES = st.lists(st.text(st.characters(codec="utf-8"), max_size=60), max_size=12).map("\n".join)


@given(LINES, st.integers(0, 300))
def test_damaged_text_is_never_an_error(text: str, cut: int) -> None:
    for recorded in (INTERRUPTS, text, INTERRUPTS[:cut] + text):
        for row in parse_interrupts(recorded).values():
            assert all(count >= 0 for count in row["counts"].values())
        parse_numa_maps(recorded)
        parse_status(recorded)
        parse_stat(recorded)
        sample.expand("0-1,4")


@given(st.lists(st.integers(0, 500), max_size=40))
def test_cpu_lists_of_the_kernel_expand(cpus: list[int]) -> None:
    from evenkeel.documents.cpuset import format_cpus

    assert sample.expand(format_cpus(cpus)) == set(cpus)


# -- processes ----------------------------------------------------------------------------------------------------


def _named(name: str) -> list[int]:
    pids = [entry.name for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [int(pid) for pid in pids if (sample.read(f"/proc/{pid}/comm") or "").strip() == name]


def _gone(name: str, within_s: float = 120.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if not _named(name):
            return True
        time.sleep(0.05)
    return False


def test_a_look_ends_though_its_writer_is_faster_than_we_read() -> None:
    """Seen: a tracer of a busy host whose text never came to an end, and a load that went on for as long."""
    endless = os.open("/dev/zero", os.O_RDONLY | os.O_NONBLOCK)
    try:
        fed: list[bytes] = []
        assert not sample_process.drain(endless, fed.append, 0.05)
        assert fed
    finally:
        os.close(endless)


def test_a_look_takes_all_that_waits_and_no_more() -> None:
    reader, writer = os.pipe2(os.O_NONBLOCK)
    fed: list[bytes] = []
    os.write(writer, b"a line\n")
    assert sample_process.drain(reader, fed.append)
    assert sample_process.drain(reader, fed.append)
    os.write(writer, b"the last\n")
    os.close(writer)
    assert sample_process.drain(reader, fed.append, math.inf)
    assert fed == [b"a line\n", b"the last\n"]
    os.close(reader)


def test_a_child_that_cannot_be_set_up_tells_why() -> None:
    def setup() -> None:
        os.sched_setaffinity(0, {4095})

    with pytest.raises(OSError) as caught:
        sample_process.start("evk-test", setup, lambda: None)
    assert caught.value.errno == 22
    assert not _named("evk-test")


def test_a_child_ends_when_it_is_killed_and_once_more_is_no_error() -> None:
    child = sample_process.start("evk-test", lambda: None, lambda: time.sleep(60))
    assert child.running() and _named("evk-test") == [child.pid]
    child.kill()
    child.kill()
    assert not child.running() and not _named("evk-test")


needs_root = pytest.mark.skipif(os.getuid() != 0, reason="a PID namespace needs root")


@needs_root
def test_a_program_that_forks_is_killed_whole(tmp_path: Path) -> None:
    own = tmp_path / "evk-leaf"
    shutil.copy(shutil.which("sleep") or "", own)
    child = sample_process.start_tree(["sh", "-c", f"{own} 600 & {own} 600 & wait"])
    until(lambda: len(_named("evk-leaf")) == 2)
    child.kill()
    assert not _named("evk-leaf")


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        sample_process.start_tree(["evenkeel-has-no-such-program"])


@needs_root
def test_nothing_is_left_when_the_probe_is_killed(tmp_path: Path) -> None:
    """SIGKILL of the probe in the middle of a spin under load: no spinner, no load, nothing."""
    own = tmp_path / "evk-leaf2"
    shutil.copy(shutil.which("sleep") or "", own)
    program = (
        "import sys, time; sys.path[:0] = [sys.argv[1]]\n"
        "from evenkeel.probe import sample_process as p\n"
        "p.start('evk-spin2', lambda: None, lambda: [None for _ in iter(int, 1)])\n"
        "p.start_tree(['sh', '-c', sys.argv[2]])\n"
        "print('up', flush=True); time.sleep(60)\n"
    )
    source = str(Path(sample.__file__).parents[2])
    victim = subprocess.Popen(
        [sys.executable, "-c", program, source, f"{own} 600 & {own} 600 & wait"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert victim.stdout and victim.stdout.readline() == "up\n"
        until(lambda: len(_named("evk-leaf2")) == 2)
        victim.send_signal(signal.SIGKILL)
        victim.wait()
        assert _gone("evk-leaf2") and _gone("evk-spin2")
    finally:
        victim.kill()
        victim.wait()
        if victim.stdout:
            victim.stdout.close()


# -- the probe on this machine --------------------------------------------------------------------------------------

CPU = max(os.sched_getaffinity(0))
OTHER = min(os.sched_getaffinity(0))


def test_a_spinner_here_gets_counted() -> None:
    with LocalMachine().probe() as probe:
        answer = probe.call("spin", cpus=[CPU], seconds=1)
    (spin,) = answer["spins"]
    assert answer["load"] == "idle" and spin["cpu"] == CPU and spin["placement"] == "pinned, in no partition"
    assert 0.9 < spin["seconds"] < 30
    assert 0 < spin["cpu_seconds"] <= spin["watched_seconds"] + 0.02
    assert spin["watched_seconds"] >= spin["seconds"]
    assert spin["timer_interrupts"] >= 0 and spin["voluntary_switches"] == 0, "it makes no system call"
    assert _gone("evenkeel-spin")


def test_two_spinners_share_a_cpu_and_both_see_it() -> None:
    """The counters count: a second spinner on the same CPU costs the first half of it, by involuntary switches."""
    rival = sample_process.start("evk-rival", lambda: os.sched_setaffinity(0, {CPU}), _forever)
    try:
        spins = sample_spin.spin([CPU], 2.0)["spins"]
    finally:
        rival.kill()
    assert spins[0]["involuntary_switches"] >= 5
    assert spins[0]["cpu_seconds"] < 0.9 * spins[0]["seconds"]


@pytest.mark.skipif(CPU == OTHER, reason="needs two CPUs")
def test_an_intruder_in_the_vcpus_cgroup_is_told_from_the_vcpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its number alone: both are in that cgroup.  One that runs on another CPU disturbs nobody here."""
    pinned = lambda: os.sched_setaffinity(0, {CPU})  # noqa: E731
    with contextlib.ExitStack() as stack:
        vcpu = sample_process.start("evk-vcpu", pinned, lambda: time.sleep(600))
        rival = sample_process.start("evk-rival", pinned, _forever)
        elsewhere = sample_process.start("evk-far", lambda: os.sched_setaffinity(0, {OTHER}), _forever)
        for child in (vcpu, rival, elsewhere):
            stack.callback(child.kill)
        folder = tmp_path / "vcpu0"
        folder.mkdir()
        (folder / "cgroup.type").write_text("domain\n")
        (folder / "cgroup.procs").write_text("")
        (folder / "cgroup.threads").write_text(f"{vcpu.pid}\n{rival.pid}\n{elsewhere.pid}\n")
        monkeypatch.setattr(sample_partition, "CGROUPS", str(tmp_path))
        answer = sample_spin.spin([CPU], 1.0, cgroups={str(CPU): "/vcpu0"}, vcpus={str(CPU): vcpu.pid})
    (spin,) = answer["spins"]
    assert spin["placement"] == "beside the guest's vCPU, in its cgroup"
    assert [one["cpu_seconds"] for one in spin["tenants"]] == [0.0]
    assert [(one["tid"], one["name"]) for one in spin["intruders"]] == [(rival.pid, "evk-rival")]
    assert 0 < spin["intruders"][0]["cpu_seconds"] <= spin["intruders"][0]["watched_seconds"] + 0.02


def _forever() -> None:
    while True:
        pass


def test_a_cpu_that_is_not_there_is_refused_with_its_error() -> None:
    with LocalMachine().probe() as probe, pytest.raises(ProbeError) as caught:
        probe.call("spin", cpus=[4095], seconds=1)
    assert caught.value.errno == "EINVAL"


def test_a_lost_connection_ends_the_spinner() -> None:
    probe = LocalMachine().probe()

    def run() -> None:
        with contextlib.suppress(Exception):
            probe.call("spin", cpus=[CPU], seconds=600)  # longer than anything here is waited for

    worker = threading.Thread(target=run, daemon=True)
    worker.start()
    until(lambda: _named("evenkeel-spin"))
    probe.close()
    assert _gone("evenkeel-spin")


def test_interrupts_here() -> None:
    with LocalMachine().probe() as probe:
        told: list[int] = []
        answer = probe.call("interrupts", seconds=1, on_progress=lambda done, total, what: told.append(done))
    assert any(row["kind"] == "timer" for row in answer["rows"])
    assert told[0] == 0 and told[-1] == 10


def test_intruders_here_are_those_that_may_run_there() -> None:
    with LocalMachine().probe() as probe:
        everybody = probe.call("intruders", cpus=[CPU])
        nobody = probe.call("intruders", cpus=[4095])
    assert os.getpid() in {thread["pid"] for thread in everybody}
    assert nobody == []


def test_a_guest_that_is_not_there_is_named() -> None:
    with LocalMachine().probe() as probe:
        for op in ("threads", "numa_maps"):
            with pytest.raises(ProbeError, match="no-such-guest") as caught:
                probe.call(op, guest="no-such-guest")
            assert caught.value.errno == "ESRCH"


@pytest.mark.parametrize("name", ["-c", "--help", "", "a b", "a;b", "../x"])
def test_a_guest_name_is_no_option_of_virsh(name: str) -> None:
    with pytest.raises(OSError, match="is not the name of a guest"):
        sample_guest.guest_state(name)


def test_a_partition_needs_cgroup_v2(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sample_partition, "CGROUPS", str(tmp_path))
    with pytest.raises(OSError, match="cgroup v2"), sample_partition.places([1], [1], {}):
        pass
    with sample_partition.places([1], [], {}) as found:
        assert found == {}


@pytest.mark.parametrize("path", ["machine.slice", "/../../etc", "/a/../b", ""])
def test_a_cgroup_is_a_path_below_the_cgroups(path: str) -> None:
    with pytest.raises(OSError, match="not the path of a cgroup"), sample_partition.places([1], [], {"1": path}):
        pass


@pytest.mark.skipif(not shutil.which("cyclictest") or os.getuid() != 0, reason="cyclictest and root are needed")
def test_cyclictest_here() -> None:
    with LocalMachine().probe() as probe:
        (answer,) = probe.call("together", jobs=[{"tool": "cyclictest", "cpus": [CPU]}], seconds=1)["jobs"]
    assert answer["argv"][0] == "cyclictest" and "--default-system" in answer["argv"]
    assert list(answer["json"]["thread"]) == ["0"]
    assert _gone("cyclictest")
