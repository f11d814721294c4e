"""A verb that begins a virtual host and is killed cleans up as on Ctrl-C.  Boots nothing: a stand-in waits instead."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from evenkeel.machines.virtual.interrupt import terminated_like_ctrl_c

#: The verb of argv, with what takes long replaced by a signal to ourselves in the middle of it.
PROGRAM = """
import contextlib, os, sys
from evenkeel.cli import main
from evenkeel.machines.virtual import lifecycle

def long(*args, **kwargs):
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
        print("went on")
    except BaseException:
        print("cleaned up")
        raise

lifecycle.create = lifecycle.start = long
lifecycle.exists = lambda name: sys.argv[2] == "start"
sys.exit(main(["virtual", *sys.argv[2:]]))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("verb", ["create", "start"])
def test_a_kill_or_a_closed_terminal_cleans_up(verb: str, number: signal.Signals, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(int(number)), verb, "plc-1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
    )
    assert (done.returncode, done.stdout) == (130, "cleaned up\n"), done.stderr
    assert "interrupted" in done.stderr and "Traceback" not in done.stderr


def test_what_nohup_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with terminated_like_ctrl_c():
            os.kill(os.getpid(), signal.SIGHUP)
            assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGHUP, before)
