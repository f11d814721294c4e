"""Services of the host: read from small trees; placed for real, with a process of ours in a cgroup of its own.

The tree of a step has its own /etc and a systemctl that writes down how it was called; its /proc is the real one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.facts import Facts
from evenkeel.probe import journal, tasks, write
from evenkeel.probe.facts import facts_of
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.steps import services
from tests.probe.test_facts_parts import process
from tests.probe.trees import Tree, cpus_tree, plant

UNIT = "evenkeel-test-ptp4l.service"
DROP_IN = f"etc/systemd/system/{UNIT}.d/50-evenkeel.conf"

# -- facts ------------------------------------------------------------------------------------------------------------


def daemons(folder: Path, tree: Tree) -> list[tuple[Any, ...]]:
    found = Facts.model_validate(facts_of(plant(folder, {**cpus_tree(4), **tree})))
    return [(one.name, one.unit, one.policy, one.priority, sorted(one.cpus), one.kept) for one in found.daemons]


def test_which_run_where_and_how(tmp_path: Path) -> None:
    found = daemons(
        tmp_path,
        {
            **process(10, "ptp4l", flags=0x400100, priority=0, policy=0, cpus="0-3"),
            "/proc/10/cgroup": "0::/system.slice/system-ptp4l.slice/ptp4l@eth0.service",
            **process(11, "corosync", flags=0x400100, priority=99, policy=2, cpus="0-1"),
            "/proc/11/cgroup": "0::/system.slice/corosync.service/sub",
            **process(12, "phc2sys", flags=0x400100, priority=10, policy=1, cpus="0"),
            "/proc/12/cgroup": "0::/user.slice/session-1.scope",
            **process(13, "sshd", flags=0x400100, priority=0, policy=0, cpus="0-3"),
            **process(14, "ptp4l", flags=0x200040, priority=0, policy=0, cpus="0-3"),  # a kernel thread of that name
            "/etc/systemd/system/corosync.service.d/50-evenkeel.conf": "# evenkeel: 0-1\n[Service]",
            "/etc/systemd/system/ptp4l@eth0.service.d/50-evenkeel.conf": "[Service]\nCPUAffinity=0",  # not ours
        },
    )
    assert found == [
        ("corosync", "corosync.service", "rr", 99, [0, 1], "0-1"),
        ("phc2sys", None, "fifo", 10, [0], None),
        ("ptp4l", "ptp4l@eth0.service", "other", 0, [0, 1, 2, 3], None),
    ]


def test_one_that_ended_meanwhile_is_left_out(tmp_path: Path) -> None:
    tree = process(10, "ptp4l", flags=0x400100, priority=0, policy=0, cpus="0-3")
    del tree["/proc/10/status"]
    assert daemons(tmp_path, tree) == []


# -- the step ---------------------------------------------------------------------------------------------------------

CHILD = """
import sys, threading, time
def named():
    with open("/proc/thread-self/comm", "w") as comm:
        comm.write("pmd-c01/id:3")
    print("ready", flush=True)
    time.sleep(600)
threading.Thread(target=named, daemon=True).start()
time.sleep(600)
"""


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    plant(tmp_path, {"/etc/systemd/system/other.service": "x", "/var/lib/x": ""})
    (tmp_path / "proc").symlink_to("/proc")
    program = tmp_path / "usr/bin/systemctl"
    program.parent.mkdir(parents=True)
    program.write_text('#!/bin/sh\necho "$@" >>var/systemctl\n[ ! -e var/broken ] || { echo refused >&2; exit 1; }\n')
    program.chmod(0o755)
    yield tmp_path
    journal.release(str(tmp_path))


@pytest.fixture
def service(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process named ptp4l in a cgroup named like a unit, with a thread of OVS's name."""
    folder = Path("/sys/fs/cgroup")
    if not (folder / "cgroup.procs").exists():
        folder = folder / "pids"  # cgroup v1
    group = folder / UNIT
    try:
        group.mkdir()
        (group / "cgroup.procs").read_text()
    except OSError as error:
        pytest.skip(f"a cgroup cannot be made here: {error}")
    program = tmp_path / "ptp4l"
    program.symlink_to(os.path.realpath(sys.executable))
    try:
        with subprocess.Popen([program, "-c", CHILD], stdout=subprocess.PIPE, text=True) as child:
            try:
                (group / "cgroup.procs").write_text(f"{child.pid}\n")
                assert child.stdout is not None and child.stdout.readline() == "ready\n"
                try:
                    tasks.set_schedule(child.pid, "fifo:3")
                    tasks.set_schedule(child.pid, "other:0")
                except StepFailed as failure:
                    pytest.skip(f"no real-time policy here: {failure}")
                yield child
            finally:
                child.kill()
                child.wait()
    finally:
        for _ in range(100):  # the kernel lets go of a process a moment after it was reaped
            try:
                group.rmdir()
                break
            except OSError:
                time.sleep(0.05)


def state(child: subprocess.Popen[str]) -> list[tuple[str, str | None, set[int]]]:
    """(name, schedule, CPUs) of each thread."""
    folder = Path(f"/proc/{child.pid}/task")
    return sorted(
        ((task / "comm").read_text().strip(), tasks.schedule(int(task.name)), os.sched_getaffinity(int(task.name)))
        for task in folder.iterdir()
    )


def step(value: str, **other: str) -> dict[str, Any]:
    return {"kind": "service", "unit": UNIT, "process": "ptp4l", "value": value, **other}


def test_placed_now_and_at_its_next_start_and_given_back(root: Path, service: subprocess.Popen[str]) -> None:
    cpu = min(os.sched_getaffinity(0))
    before = state(service)
    answer = write.apply_step(step(f"{cpu} fifo:10"), root=str(root))
    assert (answer["outcome"], answer["read_back"]) == ("done", f"{cpu} fifo:10")
    everywhere = os.sched_getaffinity(0)
    assert state(service) == [("pmd-c01/id:3", "other:0", everywhere), ("ptp4l", "fifo:10", {cpu})]
    text = (root / DROP_IN).read_text()
    assert text == (
        f"# evenkeel: {cpu} fifo:10\n[Service]\nCPUAffinity=\nCPUAffinity={cpu}\n"
        "CPUSchedulingPolicy=fifo\nCPUSchedulingPriority=10\n"
    )
    assert (root / "var/systemctl").read_text() == "daemon-reload\n"
    assert write.apply_step(step(f"{cpu} fifo:10"), root=str(root))["outcome"] == "unchanged"

    tasks.set_schedule(service.pid, "other:0")  # somebody else takes it back
    assert write.apply_step(step(f"{cpu} fifo:10"), root=str(root), dry_run=True)["outcome"] == "would_change"

    assert write.undo_step(1, root=str(root))["outcome"] == "undone"
    assert state(service) == before
    assert not (root / DROP_IN).exists() and not (root / DROP_IN).parent.exists()
    assert (root / "var/systemctl").read_text() == "daemon-reload\n" * 2


def test_cpus_alone_leave_the_schedule(root: Path, service: subprocess.Popen[str]) -> None:
    cpu = min(os.sched_getaffinity(0))
    tasks.set_schedule(service.pid, "rr:4")
    assert write.apply_step(step(str(cpu)), root=str(root))["outcome"] == "done"
    assert ("ptp4l", "rr:4", {cpu}) in state(service)
    assert "Scheduling" not in (root / DROP_IN).read_text()


def test_a_process_of_that_name_elsewhere_is_not_touched(root: Path, service: subprocess.Popen[str]) -> None:
    before = state(service)
    other = step(f"{min(os.sched_getaffinity(0))} fifo:10", unit="evenkeel-test-other.service")
    answer = write.apply_step(other, root=str(root))
    assert (answer["outcome"], answer["read_back"]) == ("done", "at its next start")
    assert state(service) == before


def test_when_systemd_refuses_nothing_is_left(root: Path, service: subprocess.Popen[str]) -> None:
    before = state(service)
    (root / "var/broken").touch()
    with pytest.raises(StepFailed, match=r"daemon-reload failed .*refused"):
        write.apply_step(step("0 fifo:10"), root=str(root))
    (root / "var/broken").unlink()
    assert write.undo_step(1, root=str(root))["outcome"] == "undone"
    assert state(service) == before and not (root / DROP_IN).exists()


def test_after_a_restart_of_the_service_undo_gives_the_new_process_the_old_place(
    root: Path, service: subprocess.Popen[str]
) -> None:
    """Its threads have other numbers then; the journal is changed to name numbers that nobody has."""
    everywhere, cpu = os.sched_getaffinity(0), min(os.sched_getaffinity(0))
    write.apply_step(step(f"{cpu} fifo:10"), root=str(root))
    journal.release(str(root))
    file = root / "var/lib/evenkeel/journal.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    old = json.loads(lines[0]["old"])
    services.undo(step(f"{cpu} fifo:10"), json.dumps({**old, "threads": {"999999999": ["other:0", "0-1"]}}), str(root))
    assert ("ptp4l", "other:0", everywhere & {0, 1}) in state(service)


@pytest.mark.parametrize(
    "wrong",
    [
        step(""),
        step("fifo:10"),
        step("0 fifo"),
        step("0 fifo:0"),
        step("0 fifo:100"),
        step("0 other:0"),
        step("0\nExecStart=/bin/sh fifo:10"),
        step("0 fifo:10\n"),
        step("0", unit="../../../etc/passwd"),
        step("0", unit="a/b.service"),
        step("0", unit="x.timer"),
        step("0", process="../x"),
        step("0", process=""),
    ],
    ids=lambda step: f"{step['unit']}-{step['process']}-{step['value']!r}",
)
def test_nonsense_is_refused(root: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(StepFailed):
        write.apply_step(wrong, root=str(root))
    assert not list(root.glob("etc/systemd/system/*.d"))
