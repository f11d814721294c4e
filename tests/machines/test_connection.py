"""The controlling side of the conversation, with programs at the other end that are no probe, or one that dies."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.errors import Unreachable, WrongInput
from evenkeel.machines.connection import ProcessProbe
from evenkeel.machines.local import LocalMachine


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No descriptor and no child may be left by a conversation, however it ended."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    yield
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    assert not children.exists() or children.read_text().split() == []


def start(code: str, timeout_s: float = 10.0) -> ProcessProbe:
    return ProcessProbe([sys.executable, "-c", code], machine="there", start_timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import sys; sys.exit('sh: 1: python3: not found')", "python3: not found"),
        ("print('Welcome to this machine', flush=True); input()", "'Welcome to this machine', which is no probe"),
        ("import time; time.sleep(60)", "no answer to 'hello' within 1 s"),
        ("import os; os.close(1); os.close(0)", "went away before"),
        ("print('[1]', flush=True); input()", "no probe"),
        ("import sys; sys.stdout.buffer.write(bytes([255, 254, 10])); sys.stdout.flush(); input()", "no probe"),
    ],
)
def test_something_else_at_the_other_end(code: str, message: str) -> None:
    with pytest.raises(Unreachable, match=message):
        start(code, timeout_s=1.0 if "sleep" in code else 120.0)


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(Unreachable, match="cannot start /nowhere/ssh: No such file"):
        ProcessProbe(["/nowhere/ssh"], machine="there")


def test_a_probe_killed_in_the_middle_of_an_operation() -> None:
    with LocalMachine().probe() as probe:
        number = probe.call("hello")["pid"]
        killer = threading.Timer(0.5, os.kill, (number, signal.SIGKILL))
        killer.start()
        with pytest.raises(Unreachable, match="connection lost during 'spin'"):
            probe.call("spin", cpus=[min(os.sched_getaffinity(0))], seconds=20.0)
        killer.join()
        with pytest.raises(Unreachable, match=r"conversation ended|went away"):
            probe.call("hello")


def test_a_late_answer_is_not_taken_for_the_next_one() -> None:
    with LocalMachine().probe() as probe:
        with pytest.raises(Unreachable, match="no answer to 'spin' within 0 s"):
            probe.call("spin", cpus=[min(os.sched_getaffinity(0))], seconds=1.0, timeout_s=0.1)
        assert "boot_id" in probe.call("hello")


def test_ctrl_c_in_the_terminal_does_not_reach_the_probe() -> None:
    """Its process group is not ours, so the signal that the terminal sends to our group passes it by."""
    with LocalMachine().probe() as probe:
        number = probe.call("hello")["pid"]
        assert os.getpgid(number) != os.getpgid(0)
        assert os.getsid(number) != os.getsid(0)


def test_closing_twice_and_a_probe_that_ignores_the_end_of_its_input() -> None:
    with LocalMachine().probe() as probe:
        number = probe.call("hello")["pid"]
        with pytest.raises(Unreachable):
            probe.call("spin", cpus=[min(os.sched_getaffinity(0))], seconds=600.0, timeout_s=0.1)
        begun = time.monotonic()
        probe.close()  # it is busy for ten minutes: after a grace period it is ended
        assert time.monotonic() - begun < 300
        assert not Path(f"/proc/{number}").exists()
        probe.close()


def test_this_machine_does_not_reboot_itself() -> None:
    with pytest.raises(WrongInput, match="cannot reboot the machine that it runs on") as caught:
        LocalMachine().reboot()
    assert "reboot by hand" in (caught.value.hint or "")
