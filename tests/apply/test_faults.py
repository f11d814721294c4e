"""Writes that fail, each by a real fault of a real file system: a clear finding, and nothing half-done stays.

Immutable and read-only files, a full disk, a file that is a mount point, a disk that answers with I/O errors, a
process that ends between look and write.  Mounting and `chattr` need root, as the probe does.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.apply.engine import apply_plan
from evenkeel.apply.rollback import rollback_host
from evenkeel.documents.findings import Check
from evenkeel.documents.plan import FileValue, Phase, Plan
from evenkeel.errors import EvenkeelError, RolledBack
from evenkeel.machines.protocol import ProbeError
from evenkeel.probe import journal, write
from evenkeel.probe.failure import StepFailed
from tests.apply.tree_host import RUNTIME_SETTINGS, TreeHost, make_plan, setting
from tests.probe import tree
from tests.probe.test_write import PLAN, lines

LAST = "proc/sys/kernel/sched_rt_runtime_us"  # what RUNTIME_SETTINGS writes last of all


@pytest.fixture
def host(tmp_path: Path) -> TreeHost:
    return TreeHost(tmp_path)


def run(*argv: str | Path) -> str:
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout.strip()


@contextlib.contextmanager
def immutable(file: Path) -> Iterator[None]:
    run("chattr", "+i", file)
    try:
        yield
    finally:
        run("chattr", "-i", file)


@contextlib.contextmanager
def mounted(*argv: str | Path) -> Iterator[None]:
    run("mount", *argv)
    try:
        yield
    finally:
        run("umount", argv[-1])


@contextlib.contextmanager
def read_only(file: Path) -> Iterator[None]:
    with mounted("--bind", file, file):
        run("mount", "-o", "remount,bind,ro", file)
        yield


def refused(host: TreeHost, plan: Plan) -> tuple[str, Check]:
    """Apply, which must fail; what it says, and its one finding."""
    with pytest.raises(RolledBack) as caught:
        apply_plan(plan.hosts[0], plan, host)
    [finding] = caught.value.findings
    return caught.value.message, finding


@pytest.mark.parametrize(("fault", "code"), [(immutable, "EPERM"), (read_only, "EROFS")])
def test_an_unwritable_file_is_named_and_everything_before_it_is_undone(host: TreeHost, fault: Any, code: str) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    with fault(host.root / LAST):
        said, finding = refused(host, plan)
    assert f"({code})" in said and "Rolled back: 5 settings" in said
    assert (finding.id, finding.expected, finding.observed) == ("R-RT-1", "-1", code)
    assert finding.evidence[0].where == "/" + LAST
    assert "was 950000" in finding.evidence[0].value
    assert finding.why and finding.fix
    assert host.picture() == before
    assert apply_plan(plan.hosts[0], plan, host).outcome == "applied"  # the fault is gone, and so is all of its trace


def test_a_value_that_the_kernel_does_not_take(host: TreeHost) -> None:
    (host.root / "proc/self").symlink_to("/proc/self")
    bad = setting("R-BAD", FileValue(path="/proc/self/oom_score_adj"), "0", "5000", Phase.THROTTLE)
    before = host.picture()
    with host.probe() as probe:
        old = probe.call("read", paths=["/proc/self/oom_score_adj"])["values"]["/proc/self/oom_score_adj"]
    plan = make_plan(host, *RUNTIME_SETTINGS, bad.model_copy(update={"old": old}))
    _, finding = refused(host, plan)
    assert (finding.id, finding.observed) == ("R-BAD", "EINVAL")
    assert "another version" in finding.why
    assert host.picture() == before


def test_what_vanishes_between_look_and_write(host: TreeHost) -> None:
    """A device that is pulled, a guest that ends: here a process, and the file that it takes along."""
    process = subprocess.Popen(["sleep", "600"])
    (host.root / f"proc/{process.pid}").symlink_to(f"/proc/{process.pid}")
    path = f"/proc/{process.pid}/oom_score_adj"
    old = Path(path).read_text().strip()
    gone = setting("R-GONE-NOW", FileValue(path=path), old, "500", Phase.THROTTLE)
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS, gone)

    def end(done: int, total: int, what: str) -> None:
        if what.startswith("R-GONE-NOW"):
            process.kill()
            process.wait()

    with pytest.raises(RolledBack) as caught:
        apply_plan(plan.hosts[0], plan, host, on_progress=end)
    [finding] = caught.value.findings
    assert (finding.id, finding.observed) == ("R-GONE-NOW", "ENOENT")
    assert "vanished" in finding.why
    after = host.picture()
    assert {name for name in {**before, **after} if before.get(name) != after.get(name)} <= {f"/proc/{process.pid}"}


def test_a_full_disk_stops_apply_before_it_writes_a_setting(host: TreeHost) -> None:
    """The journal has to be kept there; without it there would be no way back."""
    plan = make_plan(host, *RUNTIME_SETTINGS)
    folder = host.root / "var/lib/evenkeel"
    folder.mkdir()
    with mounted("-t", "tmpfs", "-o", "size=8k", "none", folder):
        before = host.picture()
        (folder / "fill").write_bytes(b"x" * 4096)
        with pytest.raises((EvenkeelError, ProbeError)) as caught:
            apply_plan(plan.hosts[0], plan, host)
        assert "cannot" in caught.value.message and "make room" in caught.value.message
        assert host.picture() == before


def test_what_cannot_be_undone_is_said_and_undone_when_the_fault_is_gone(host: TreeHost) -> None:
    before, plan = host.picture(), make_plan(host, *RUNTIME_SETTINGS)
    apply_plan(plan.hosts[0], plan, host)
    with immutable(host.root / LAST):
        undone = rollback_host("cell", host)
    assert [problem.partition(":")[0] for problem in undone.problems] == ["R-RT-1"]
    assert "EPERM" in undone.problems[0]
    assert len(undone.undone) == 4
    assert rollback_host("cell", host).undone == ("R-RT-1",)
    assert host.picture() == before


# -- a whole configuration file: old bytes or new bytes, and nothing beside it ----------------------------------------

CONFIG = {"kind": "config", "path": "/etc/somewhere/owner.conf", "text": "a = 2\n" * 20000}


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "root"
    made.mkdir()
    tree.build(made)
    yield made
    journal.release(str(made))


def replace_fails(root: Path, code: str) -> None:
    """The step fails with this error; the file is the old one, and there is nothing else in its folder."""
    before = tree.picture(root / "etc")
    with pytest.raises(StepFailed) as caught:
        write.apply_step(CONFIG, PLAN, "S-1", "boot", root=str(root))
    assert caught.value.describe()["errno"] == code
    assert lines(root)[-1]["event"] == "refused"
    assert lines(root)[-1]["errno"] == code
    assert tree.picture(root / "etc") == before
    write.undo_step(lines(root)[-1]["sequence"], root=str(root))
    assert tree.picture(root / "etc") == before


def test_a_file_that_is_a_mount_point_is_busy(root: Path) -> None:
    file = root / "etc/somewhere/owner.conf"
    with mounted("--bind", file, file):
        replace_fails(root, "EBUSY")


def test_an_immutable_folder(root: Path) -> None:
    with immutable(root / "etc/somewhere"):
        replace_fails(root, "EPERM")


def test_a_full_file_system(root: Path) -> None:
    with mounted("-t", "tmpfs", "-o", "size=40k", "none", root / "etc/somewhere"):
        (root / "etc/somewhere/owner.conf").write_text("a = 1\n")
        replace_fails(root, "ENOSPC")


def test_a_disk_that_fails_when_the_data_reach_it(root: Path, tmp_path: Path) -> None:
    """write(2) takes every byte, and only fsync tells: the disk ends where it did not end before."""
    image = tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(16 << 20)
    run("mkfs.ext4", "-q", "-O", "^has_journal", "-E", "lazy_itable_init=0,nodiscard", image)
    device = run("losetup", "-f", "--show", image)
    try:
        with mounted(device, root / "etc/somewhere"):
            (root / "etc/somewhere/owner.conf").write_text("a = 1\n")
            (root / "etc/somewhere/lost+found").rmdir()  # nobody could list it once the disk fails
            os.sync()
            os.truncate(image, 64 << 10)
            run("losetup", "-c", device)
            try:
                replace_fails(root, "EIO")
            finally:
                os.truncate(image, 16 << 20)
                run("losetup", "-c", device)
    finally:
        run("losetup", "-d", device)


def test_without_the_read_back_a_changed_value_would_go_unseen(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative of all of the above: with the comparison taken out, the kernel's lie is believed."""
    own = "/proc/self/timerslack_ns"
    (root / "proc/self").symlink_to("/proc/self")
    step = {"kind": "file", "path": own, "value": "0", "compare": "integer"}
    before = Path(own).read_text()
    Path(own).write_text("70000")
    with pytest.raises(StepFailed) as caught:
        write.apply_step(step, PLAN, root=str(root))
    assert caught.value.read_back == "50000"
    Path(own).write_text("70000")
    monkeypatch.setattr(write, "_write", lambda kind, step, state, root: kind.write(step, state, root))
    assert write.apply_step(step, PLAN, root=str(root))["outcome"] == "done"
    Path(own).write_text(before)
