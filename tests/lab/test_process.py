"""Which process of this machine, and whether it lives: real ones."""

from __future__ import annotations

import os
import subprocess
from dataclasses import replace

from evenkeel.lab.process import Process


def test_a_process_lives_until_it_has_ended() -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        one = Process.of(child.pid)
        assert Process.parse(str(one)) == one
        assert not one.gone()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert one.gone(), "it is a zombie, which runs nothing"
    assert one.gone()


def test_a_number_that_is_used_again_is_another_process() -> None:
    own = Process.of(os.getpid())
    assert not own.gone()
    assert replace(own, began=own.began + 1).gone()
    assert replace(own, boot="before").gone()


def test_of_what_nobody_noted_nothing_is_known() -> None:
    assert Process.parse("") is None
