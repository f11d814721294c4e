"""The live view: what the probe says becomes rows, and on a terminal they are really drawn."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
import time
from collections import deque
from pathlib import Path

from evenkeel.cli.measure_live import Standing, bars
from evenkeel.cli.output import out
from evenkeel.machines.local import LocalMachine
from evenkeel.probe.sample_rttests import line, unseen
from tests.measure.test_verb import CPUS, here, local_plan


def drawn(standing: Standing) -> str:
    console = out()
    with console.capture() as captured:
        console.print(standing.table())
    return captured.get()


def test_a_line_of_the_probe_is_a_row() -> None:
    standing = Standing("measuring cell")
    row = line("CPU 5, cyclictest", 1198, 11, 28, 38, 326)
    assert standing.hear(10, 40, f"cyclictest | {row} | {line('CPU 7, timerlat', 9, 1, 2, 3, 4)} | what is this")
    assert not standing.hear(10, 40, f"cyclictest | {row}"), "the same again is nothing new"
    text = drawn(standing)
    assert "measuring cell: cyclictest 25 %" in text and "cannot be seen" not in text
    assert re.search(r"CPU 5, cyclictest +1,198 +11 us +28 us +38 us +326 us +█", text)
    assert "CPU 7, timerlat" in text and "what is this" not in text


def test_guests_stand_beside_the_host_and_those_that_cannot_be_seen_are_named() -> None:
    standing = Standing("measuring cell")
    rows = [line("CPU 5, cyclictest", 9, 1, 2, 3, 4), line("guest plc, vCPU 1, cyclictest", 8, 5, 6, 7, 900)]
    assert standing.hear(1, 4, " | ".join(["cyclictest", *rows, unseen("hmi", "there is no awk in the guest")]))
    text = drawn(standing)
    assert re.search(r"guest plc, vCPU 1, cyclictest +8 +5 us +6 us +7 us +900 us", text)
    assert "guest hmi cannot be seen live: there is no awk in the guest" in " ".join(text.split())


def test_bars_show_the_last_seconds() -> None:
    assert bars(deque([0, 50, 100])) == "▁▄█" and bars(deque()) == ""
    standing = Standing("x")
    for now in range(200):
        standing.hear(1, 2, f"a | {line('CPU 1, cyclictest', now, 1, now, 1, now)}")
    assert drawn(standing).count("█") >= 1
    assert max(map(len, drawn(standing).splitlines())) <= 140


@here
def test_the_probe_tells_how_cyclictest_stands() -> None:
    told: list[str] = []
    with LocalMachine().probe() as probe:
        answer = probe.call(
            "together",
            jobs=[{"tool": "cyclictest", "cpus": [CPUS[-1]]}],
            seconds=4,
            live=True,
            on_progress=lambda done, total, what: told.append(what),
        )
    assert "error" not in answer["jobs"][0]
    rows = {what for what in told if re.search(rf"\| CPU {CPUS[-1]}, cyclictest: \d+ samples, min \d+, now ", what)}
    assert len(rows) >= 2, told


@here
def test_on_a_terminal_it_is_drawn_and_stdout_stays_clean(tmp_path: Path) -> None:
    """A real pseudo-terminal at stderr: the table must appear there, and only the result on stdout."""
    ours, theirs = pty.openpty()
    program = [sys.executable, "-m", "evenkeel", "measure", local_plan(tmp_path), "--for", "4s", "--live", "--json"]
    with (tmp_path / "out").open("wb") as result:
        process = subprocess.Popen(
            program, stdout=result, stderr=theirs, env={**os.environ, "TERM": "xterm", "COLUMNS": "120"}
        )
    os.close(theirs)
    seen = b""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            chunk = os.read(ours, 65536)
        except OSError:
            break  # the other end is closed
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(30) == 0
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode(errors="replace"))
    assert f"CPU {CPUS[-1]}, cyclictest" in text and "now" in text
    assert (tmp_path / "out").read_text().startswith("{")
