"""Who holds /dev/cpu_dma_latency: a real holder is named, what the probe started is not."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.machines.local import LocalMachine
from evenkeel.probe import sample_dma_latency
from evenkeel.probe.sample_dma_latency import DEVICE, GUEST_SCRIPT, GuestHolders, Holders, dma_latency, parse_guest

here = pytest.mark.skipif(os.getuid() != 0 or not Path(DEVICE).exists(), reason=f"root and {DEVICE} are needed")
HOLD = f"import sys; file = open({DEVICE!r}, 'rb', buffering=0); print('held', flush=True); sys.stdin.read()"


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A program that holds the device until it is told to end."""
    program = [sys.executable, "-c", HOLD]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stdout.readline() == "held\n"
        yield process
        process.kill()


@here
def test_a_stranger_that_holds_it_is_named(holder: subprocess.Popen[str]) -> None:
    with LocalMachine().probe() as probe:
        assert holder.pid in [one["pid"] for one in probe.call("dma_latency")]
        assert all(one["name"] for one in probe.call("dma_latency"))
        holder.kill()
        holder.wait()
        assert holder.pid not in [one["pid"] for one in probe.call("dma_latency")]


@here
def test_what_we_started_ourselves_is_no_stranger(holder: subprocess.Popen[str]) -> None:
    """Here the holder descends from the process that looks, as cyclictest does from the probe."""
    assert holder.pid not in [one["pid"] for one in dma_latency() or ()]


@here
def test_one_who_came_and_went_stays_named(monkeypatch: pytest.MonkeyPatch, holder: subprocess.Popen[str]) -> None:
    monkeypatch.setattr(sample_dma_latency, "_is_ours", lambda pid: False)
    holders = Holders()
    holders.look()
    holder.kill()
    holder.wait()
    holders.look(now=True)
    names = holders.names()
    assert names is not None and f"(pid {holder.pid})" in " ".join(names)


def test_who_is_not_root_does_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    holders = Holders()
    holders.look()
    assert dma_latency() is None and holders.names() is None


@here
def test_in_a_guest_the_shell_says_who_holds_it(holder: subprocess.Popen[str]) -> None:
    """The script as a guest runs it, by the shell of this machine."""
    done = subprocess.run(["/bin/sh", "-c", GUEST_SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr == ""
    assert (holder.pid, "python") in [(one["pid"], one["name"][:6]) for one in parse_guest(done.stdout) or ()]


@pytest.mark.parametrize("text", ["", "812 tuned\n", "looked\n812 tuned\n", "sh: syntax error\n"])
def test_a_look_into_a_guest_that_did_not_end_is_no_look(text: str) -> None:
    assert parse_guest(text) is None
    assert parse_guest("812 tuned\n9 \nlooked\n") == [{"pid": 812, "name": "tuned"}, {"pid": 9, "name": "?"}]


def test_a_guest_that_cannot_be_asked_is_not_known() -> None:
    holders = GuestHolders("no-such-guest")
    holders.look()
    assert holders.names() is None
