"""Writing on a machine: read back, compare, journal, undo; killed at every point where it touches the disk."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from evenkeel.documents.plan import FileValue
from evenkeel.probe import compare, journal, write
from evenkeel.probe.failure import StepFailed
from tests.probe import tree

PLAN = "ab" * 32


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    made = tmp_path / "root"
    made.mkdir()
    tree.build(made)
    yield made
    journal.release(str(made))


def take(root: Path, step: dict[str, Any], **more: Any) -> dict[str, Any]:
    return write.apply_step(step, PLAN, "S-1", "kernel", root=str(root), **more)


def undo_all(root: Path) -> None:
    for entry in reversed(journal.writer(str(root)).outstanding()):
        write.undo_step(entry["sequence"], root=str(root))


def lines(root: Path) -> list[dict[str, Any]]:
    file = root / "var/lib/evenkeel/journal.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("step", tree.STEPS, ids=lambda step: f"{step['kind']}-{step.get('path', '')}")
def test_a_step_is_written_read_back_and_journaled_once(root: Path, step: dict[str, Any]) -> None:
    before = tree.picture(root)
    first = take(root, step)
    assert first["outcome"] == "done"
    assert [line["event"] for line in lines(root)] == ["intent", "done"]
    assert tree.picture(root) != before

    again = take(root, step)
    assert again["outcome"] == "unchanged"
    assert len(lines(root)) == 2  # a step that is right already leaves no line

    undo_all(root)
    assert tree.picture(root) == before
    assert lines(root)[-1]["event"] == "undone"
    assert write.undo_step(lines(root)[0]["sequence"], root=str(root))["message"] == "it was undone before"
    assert tree.picture(root) == before


def test_dry_run_and_a_step_that_is_right_already_write_nothing_at_all(root: Path) -> None:
    before = tree.picture(root)
    for step in tree.STEPS:
        assert take(root, step, dry_run=True)["outcome"] == "would_change"
    assert tree.picture(root) == before
    right = {"kind": "file", "path": "/proc/sys/vm/stat_interval", "value": "0x1", "compare": "integer"}
    assert take(root, right)["outcome"] == "unchanged"
    assert not (root / "var/lib/evenkeel").exists()


def test_the_intent_holds_the_exact_old_value_before_anything_is_written(root: Path, monkeypatch: Any) -> None:
    from evenkeel.probe.steps import files

    seen: list[list[dict[str, Any]]] = []
    real = files.write_value

    def spy(path: str, content: str, where: str) -> None:
        seen.append(lines(root))
        real(path, content, where)

    monkeypatch.setattr(files, "write_value", spy)
    take(root, tree.STEPS[1])
    assert [line["event"] for line in seen[0]] == ["intent"]
    assert seen[0][0]["old"] == "1\n"
    assert seen[0][0]["step"]["boot_id"] == "11111111-1111-1111-1111-111111111111"


# -- killed at any moment ---------------------------------------------------------------------------------------------

#: Calls after or before which the machine can be found dead.
CALLS = ("write", "fsync", "rename", "unlink", "mkdir", "rmdir", "ftruncate", "open")


def in_child(work: Callable[[], None]) -> int:
    """Run in a forked process; return how it ended (-9: killed)."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:  # noqa: BLE001  a child of a test must not return into pytest
            import traceback

            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die_at(point: int) -> None:
    """From here on, in this process, the ``point``-th call that touches the disk is the last one.

    A write to a disk is cut in the middle: half of the bytes are there.  One to a kernel file happens or does not.
    """
    left = [point]

    def on_disk(descriptor: int) -> bool:
        return str(Path(f"/proc/self/fd/{descriptor}").readlink()).endswith((".jsonl", ".evenkeel-new"))

    def patch(name: str) -> None:
        real = getattr(os, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if name == "write" and on_disk(args[0]):
                    real(args[0], bytes(args[1])[: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        setattr(os, name, counted)

    for name in CALLS:
        patch(name)


def apply_all(root: Path) -> None:
    journal.note("begin", PLAN, root=str(root))
    for number, step in enumerate(tree.STEPS):
        write.apply_step(step, PLAN, f"S-{number}", "kernel", root=str(root))
    journal.note("end", PLAN, root=str(root))


def test_killed_at_every_point_rollback_gives_every_byte_back(tmp_path: Path) -> None:
    """Every call that touches the disk is once the last one of an apply; now and then the rollback is killed too."""
    template = tmp_path / "template"
    template.mkdir()
    tree.build(template)
    before = tree.picture(template)
    dice = random.Random(20)
    kills = second_kills = changed = 0
    point = 0
    while True:
        root = tmp_path / "root"
        shutil.copytree(template, root, symlinks=True)

        def killed(root: Path = root, point: int = point) -> None:
            die_at(point)
            apply_all(root)

        ended = in_child(killed)
        assert ended in (0, -signal.SIGKILL)
        changed += tree.picture(root) != before
        if dice.random() < 0.5:

            def killed_again(root: Path = root) -> None:
                die_at(dice.randrange(25))
                undo_all(root)

            second_kills += in_child(killed_again) == -signal.SIGKILL
        assert in_child(lambda root=root: undo_all(root)) == 0  # type: ignore[misc]
        assert tree.picture(root) == before, f"killed at call {point}"
        shutil.rmtree(root)
        if ended == 0:
            break
        kills += 1
        point += 1
    assert kills > 80  # so many calls there are; fewer means that the harness does not see them
    assert second_kills > 10
    assert changed > 40


def test_killed_anywhere_the_next_apply_goes_on_and_ends_as_one_that_was_not_killed(tmp_path: Path) -> None:
    template = tmp_path / "template"
    template.mkdir()
    tree.build(template)
    whole = tmp_path / "whole"
    shutil.copytree(template, whole)
    assert in_child(lambda: apply_all(whole)) == 0
    wanted = {name: content for name, content in tree.picture(whole).items() if not name.endswith(".evenkeel-new")}
    for point in random.Random(7).sample(range(90), 20):
        root = tmp_path / "root"
        shutil.copytree(template, root)

        def killed(root: Path = root, point: int = point) -> None:
            die_at(point)
            apply_all(root)

        assert in_child(killed) == -signal.SIGKILL
        assert in_child(lambda root=root: apply_all(root)) == 0  # type: ignore[misc]
        assert tree.picture(root) == wanted, f"killed at call {point}"
        assert in_child(lambda root=root: undo_all(root)) == 0  # type: ignore[misc]
        assert tree.picture(root) == tree.picture(template), f"killed at call {point}, applied again, rolled back"
        shutil.rmtree(root)


# -- what the kernel says ---------------------------------------------------------------------------------------------


def test_a_value_that_the_kernel_takes_and_changes_is_a_failed_step(root: Path) -> None:
    """A real kernel file that does so: 0 is taken, and the default is set in its place (fs/proc/base.c)."""
    own = "/proc/self/timerslack_ns"
    before = Path(own).read_text()
    assert before.strip() != "0"
    # The journal of this test must not go to /var/lib of this machine: a root whose /proc/self is the real one.
    (root / "proc/self").symlink_to("/proc/self")
    Path(own).write_text("70000")
    with pytest.raises(StepFailed, match=r"wrote '0' and reads '\d+'"):
        take(root, {"kind": "file", "path": own, "value": "0", "compare": "integer"})
    assert Path(own).read_text().strip() not in ("0", "70000")
    assert [line["event"] for line in lines(root)] == ["intent", "refused"]
    undo_all(root)
    assert Path(own).read_text() == "70000\n"
    Path(own).write_text(before)


@pytest.mark.parametrize(
    ("path", "value", "errno", "cure"),
    [
        ("/proc/self/oom_score_adj", "5000", "EINVAL", "made for another kernel"),
        ("/proc/self/no_such_file", "1", "ENOENT", "make the plan anew"),
        ("/proc/sys/kernel/random/uuid", "1", "EACCES", "not permitted"),
    ],
)
def test_what_the_kernel_refuses_is_told_with_its_error_and_a_cure(
    root: Path, path: str, value: str, errno: str, cure: str
) -> None:
    (root / "proc/self").symlink_to("/proc/self")
    (root / "proc/sys/kernel/random/uuid").symlink_to("/proc/sys/kernel/random/uuid")
    with pytest.raises(StepFailed) as caught:
        take(root, {"kind": "file", "path": path, "value": value})
    assert caught.value.describe().get("errno") == errno
    assert cure in caught.value.message
    assert lines(root)[-1]["event"] == "refused"
    assert lines(root)[-1]["errno"] == errno


def test_a_managed_interrupt_is_refused_and_not_a_failure(root: Path, monkeypatch: Any) -> None:
    """The kernel's answer cannot be had without a managed interrupt (tests/virtual has one), so the write gives it."""
    from evenkeel.probe.steps import files, interrupts

    real = files.write_value

    def managed(path: str, content: str, where: str) -> None:
        if "/25/" in path:
            raise PermissionError(1, "Operation not permitted", path)
        real(path, content, where)

    monkeypatch.setattr(interrupts, "write_value", managed)
    answer = take(root, tree.STEPS[5])
    assert answer["outcome"] == "refused"
    assert answer["errno"] == "EPERM"
    assert "25" in answer["message"] and "24" not in answer["message"]
    assert (root / "proc/irq/24/smp_affinity_list").read_text() == "0-1\n"
    undo_all(root)
    assert (root / "proc/irq/24/smp_affinity_list").read_text() == "0-7\n"


def test_an_interrupt_that_is_not_there_now_is_no_failure(root: Path) -> None:
    answer = take(root, {"kind": "interrupt", "action": "eth9-rx-0", "value": "0"})
    assert answer["outcome"] == "absent"
    assert lines(root) == []


def test_an_invalid_partition_is_a_failed_step_and_is_undone(root: Path, monkeypatch: Any) -> None:
    from evenkeel.probe.steps import files, partitions

    before = tree.picture(root)
    real = files.write_value

    def invalid(path: str, content: str, where: str) -> None:
        real(
            path, "isolated invalid (Cpu list in cpuset.cpus not exclusive)\n" if "isol" in content else content, where
        )

    monkeypatch.setattr(partitions, "write_value", invalid)
    with pytest.raises(StepFailed, match="isolated invalid"):
        take(root, tree.STEPS[8])
    undo_all(root)
    assert tree.picture(root) == before


def test_exclusive_cpus_of_others_stay_on_the_ancestors(root: Path) -> None:
    take(root, tree.STEPS[8])
    assert (root / "sys/fs/cgroup/machine.slice/cpuset.cpus.exclusive").read_text() == "2-3,6\n"
    assert (root / f"sys/fs/cgroup{tree.SCOPE}/vcpu1/cpuset.cpus.exclusive").read_text() == "2-3\n"


def test_what_a_reboot_took_away_is_not_written_again(root: Path) -> None:
    take(root, tree.STEPS[1])
    take(root, tree.STEPS[6])
    (root / "proc/sys/kernel/random/boot_id").write_text("22222222-2222-2222-2222-222222222222\n")
    (root / "proc/sys/vm/stat_interval").write_text("7\n")  # the next boot's own value
    outcomes = [
        write.undo_step(entry["sequence"], root=str(root))["outcome"]
        for entry in reversed(journal.writer(str(root)).outstanding())
    ]
    assert outcomes == ["undone", "gone"]
    assert (root / "proc/sys/vm/stat_interval").read_text() == "7\n"
    assert (root / "etc/somewhere/owner.conf").read_text() == "a = 1\n"  # a configuration file outlives a reboot


def test_an_unknown_kind_is_refused(root: Path) -> None:
    with pytest.raises(StepFailed, match="no step of the kind 'shell'"):
        take(root, {"kind": "shell", "value": "rm -rf /"})


@pytest.mark.parametrize(
    "step",
    [
        {"kind": "file", "path": "/etc/passwd", "value": "x"},
        {"kind": "file", "path": "/proc/../etc/passwd", "value": "x"},
        {"kind": "file", "path": "proc/sys/vm/stat_interval", "value": "x"},
        {"kind": "config", "path": "/root/.ssh/authorized_keys", "text": "x"},
        {"kind": "config", "path": "/etc/../root/x", "text": "x"},
        {"kind": "partition", "guest": "../../etc", "vcpu": 1, "value": "2"},
        {"kind": "guest_thread", "guest": "--all", "vcpu": 1, "value": "fifo:2"},
        {"kind": "unit", "unit": "--now", "value": "stopped"},
    ],
)
def test_a_step_reaches_only_what_its_kind_is_for(root: Path, step: dict[str, Any]) -> None:
    before = tree.picture(root)
    with pytest.raises(StepFailed, match=r"is not below|is not the name of"):
        take(root, step)
    assert tree.picture(root) == before
    assert lines(root) == []


def test_read_files_gives_contents_and_errors(root: Path) -> None:
    (root / "etc/binary").write_bytes(b"\xff\xfe")
    answer = write.read_files(["/proc/sys/vm/stat_interval", "/nowhere", "/etc/binary", "/etc"], root=str(root))
    assert answer["values"] == {"/proc/sys/vm/stat_interval": "1"}
    assert answer["errors"] == {"/nowhere": "ENOENT", "/etc/binary": "EIO", "/etc": "EISDIR"}


# -- the comparison is the one of the plan ----------------------------------------------------------------------------

TEXTS = st.one_of(
    st.text(alphabet="0123456789,- \n", max_size=12),
    st.text(alphabet="0123456789abcdefx,\n", max_size=12),
    st.sampled_from(
        [" (null)\n", "(null)", "always [madvise] never\n", "madvise", "never", "-1", "950000\n", "0x10", ""]
    ),
)


@given(read=st.one_of(st.none(), TEXTS), wanted=st.one_of(st.none(), TEXTS))
@example(read="0-3\n", wanted="0,1,2,3")
@example(read="00000000,0000000f\n", wanted="f")
@example(read="3-1", wanted="3-1")
@example(read="    MB:0=100;1=100\n    L3:0=7ff;1=07f0\n", wanted="L3:1=7f0")
@example(read="L3:0=7ff", wanted="L3:0=7ff;1=7ff")
@example(read="L3:0=7ff", wanted="L3:")
def test_the_probe_compares_as_the_plan_does(read: str | None, wanted: str | None) -> None:
    for how in ("text", "integer", "cpulist", "cpumask", "choice", "schemata", "words"):
        expected = FileValue(path="/x", compare=how).matches(read, wanted)
        assert compare.matches(read, wanted, how) == expected, how
