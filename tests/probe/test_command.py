"""Programs on the machine: a fixed set, no shell, nothing left running."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

import pytest

from evenkeel.probe import command
from evenkeel.probe.failure import StepFailed
from tests.waiting import until


def program(root: Path, name: str, script: str) -> None:
    file = root / "usr/bin" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("#!/bin/sh\n" + script)
    file.chmod(0o755)


@pytest.mark.parametrize("name", ["sh", "/usr/bin/virsh", "../bin/virsh", "rm", ""])
def test_only_programs_of_the_list_run(name: str) -> None:
    with pytest.raises(StepFailed, match="does not run"):
        command.run([name, "-c", "true"])


def test_a_program_that_is_not_installed_is_named(tmp_path: Path) -> None:
    with pytest.raises(StepFailed, match="the machine has no virsh; install the package"):
        command.run(["virsh", "list"], root=str(tmp_path))


def test_words_arrive_as_they_are_and_nothing_is_expanded(tmp_path: Path) -> None:
    program(tmp_path, "virsh", 'for word; do printf "<%s>" "$word"; done; cat; echo "$LC_ALL $PATH" >&2; exit 3\n')
    answer = command.run(["virsh", "a b", "$HOME", "*", ";id"], stdin="from stdin", root=str(tmp_path))
    assert answer["stdout"] == "<a b><$HOME><*><;id>from stdin"
    assert answer["stderr"] == "C /usr/sbin:/usr/bin:/sbin:/bin\n"
    assert answer["rc"] == 3


def test_output_of_a_program_that_failed_is_in_the_error(tmp_path: Path) -> None:
    program(tmp_path, "virsh", "echo error: no domain >&2; exit 1\n")
    with pytest.raises(StepFailed, match=r"virsh start x failed \(exit code 1\): error: no domain"):
        command.output(["virsh", "start", "x"], root=str(tmp_path))


def test_one_that_hangs_is_killed_with_its_children(tmp_path: Path) -> None:
    program(tmp_path, "virsh", f"sleep 300 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/self; wait\n")
    start = time.monotonic()
    with pytest.raises(StepFailed, match="did not end within 1 s and was killed"):
        command.run(["virsh"], within_s=1.0, root=str(tmp_path))
    assert time.monotonic() - start < 150
    for name in ("child", "self"):
        number = int((tmp_path / name).read_text())
        until(partial(_gone, number))  # a killed process may wait for its turn to die


def _gone(number: int) -> bool:
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    program(tmp_path, "virsh", "true\n")
    command.run(["virsh"], root=str(tmp_path))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for _ in range(3):
        command.run(["virsh"], root=str(tmp_path))
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
