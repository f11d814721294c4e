"""`evenkeel measure` as a user calls it: on saved evidence, and on this machine with a real load."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli import main
from evenkeel.documents.course import Course
from evenkeel.documents.evidence import EMULATION_NOTE, Evidence
from evenkeel.documents.plan import Ledger, Plan
from evenkeel.measure.verdict import deadlines
from tests.measure.test_verdict import FORBIDS, PLAN, evidence, run
from tests.report import factories
from tests.waiting import until

CPUS = sorted(os.sched_getaffinity(0))


def saved(folder: Path, found: Evidence, **more: Any) -> str:
    """A file of evidence, judged as `measure` does."""
    judged = found.model_copy(update={"deadlines": deadlines(PLAN.hosts[0], found), **more})
    file = folder / "evidence.json"
    file.write_text(judged.to_json())
    return str(file)


@pytest.mark.parametrize(
    ("found", "state", "code"),
    [
        (evidence(), "met", 0),
        (evidence(run({5: 60_000, 200: 1})), "missed", 1),
        (FORBIDS["too few"][0], "not provable", 1),
        (evidence(run(where="host", guest=None)), "not measured", 1),
        (evidence(run({5: 9})).model_copy(update={"moment": "before"}), None, 0),
    ],
    ids=["met", "missed", "not provable", "not measured", "before"],
)
def test_the_exit_code_is_the_verdict(
    found: Evidence, state: str | None, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = saved(tmp_path, found)
    assert main(["measure", file]) == code
    printed = capsys.readouterr().out
    assert (f"deadline 100us for guest plc-runtime: {state}" in printed) == (state is not None)
    assert main(["measure", file, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert [one["state"] for one in document["deadlines"]] == ([state] if state else [])


def test_the_arithmetic_and_the_load_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", saved(tmp_path, evidence())]) == 0
    printed = capsys.readouterr().out
    assert "no miss in 60,000 samples" in printed and "95 % confidence" in printed
    assert "119.0 s" in printed and "0,4" in printed


def test_in_emulation_no_rate_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", saved(tmp_path, evidence(conditions={"emulated": True}))]) == 1
    printed = capsys.readouterr().out
    assert "not provable" in printed and "confidence" not in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--load", "disco"], "--load disco"),
        (["--load", "cpu,hackbench"], "or hackbench or none, alone"),
        (["--miss-rate", "2"], "--miss-rate 2"),
        (["--for", "1ms"], "whole seconds"),
    ],
)
def test_a_wrong_option_is_told(
    words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    plan.write_text(PLAN.to_json())
    assert main(["measure", str(plan), *words]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "words",
    [["--for", "60s"], ["--tools", "oslat"], ["--load", "cpu"], ["--miss-rate", "1e-6"], ["--live"]],
)
def test_saved_evidence_refuses_what_only_a_measurement_heeds(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["measure", saved(tmp_path, evidence()), *words]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"does not heed {words[0]}" in said and "measure anew" in said


@pytest.mark.parametrize("words", [["--json"], ["--against", "earlier.json"]])
def test_a_format_for_others_stands_alone(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["measure", saved(tmp_path, evidence()), "--format", "prometheus", *words]) == 2
    assert f"does not go with {words[0]}" in " ".join(capsys.readouterr().err.split())


def test_a_damaged_document_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "evidence.json"
    for text in ("", "{", "[]", '{"kind": "Evidence"}', '{"kind": ["x"]}'):
        file.write_text(text)
        assert main(["measure", str(file)]) == 2, text
        assert "Traceback" not in capsys.readouterr().err


def test_a_heat_map_is_a_picture_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    course = Course.of([(n * 1_000_000, 80_000) for n in range(60_000)], length_ns=60_000_000_000)
    drawn, file = tmp_path / "plc.svg", saved(tmp_path, evidence(run(course=course)))
    assert main(["measure", file, "plc-runtime", "--heat-map", str(drawn)]) == 0
    picture = drawn.read_text()
    assert "guest plc-runtime, vCPU 1, cyclictest" in picture and "deadline 100 µs" in picture
    emulated = evidence(run(course=course, label=EMULATION_NOTE), conditions={"emulated": True})
    assert main(["measure", saved(tmp_path, emulated), "--heat-map", str(drawn)]) == 1
    assert EMULATION_NOTE in drawn.read_text() and "deadline" not in drawn.read_text()
    capsys.readouterr()
    assert main(["measure", saved(tmp_path, evidence()), "--heat-map", str(drawn)]) == 2
    assert "no run says when its samples were" in capsys.readouterr().err


# -- on this machine ----------------------------------------------------------------------------------------------

here = pytest.mark.skipif(
    not shutil.which("cyclictest") or os.getuid() != 0 or len(CPUS) < 2, reason="cyclictest, root and 2 CPUs are needed"
)


def local_plan(folder: Path) -> str:
    """A plan that changes nothing: the last CPU of this machine is for a real-time guest that there is none of."""
    ledger = Ledger(housekeeping=frozenset(CPUS[:-1]), realtime=frozenset(CPUS[-1:]), idle=frozenset())
    plan: Plan = factories.plan(address="local", name="here", ledger=ledger, settings=(), guests=(), notes=())
    file = folder / "plan.json"
    file.write_text(plan.to_json())
    return str(file)


@here
def test_a_placed_load_beside_cyclictest_here(tmp_path: Path) -> None:
    target = tmp_path / "evidence.json"
    arguments = [local_plan(tmp_path), "--for", "2s", "--load", "cpu,io,net,irq", "-o", str(target)]
    assert main(["measure", *arguments]) == 0
    found = Evidence.from_json(target.read_text(), file=target.name)
    (latency,) = found.latencies
    assert latency.cpus == frozenset(CPUS[-1:]) and latency.expected == 2000 and latency.samples > 0
    assert latency.course is not None and 0 <= latency.samples - latency.course.samples < 500
    assert {load.kind: load.trouble for load in latency.loads} == dict.fromkeys(("cpu", "io", "net", "irq"), "")
    for load in latency.loads:
        assert load.cpus is not None and load.seen <= load.cpus == frozenset(CPUS[:-1])
        assert load.operations and load.seconds >= 1.9
        assert (load.packets is not None) == (load.kind == "net")
    assert found.conditions.load.startswith("cpu,io,net,irq on ")
    assert found.conditions.dma_latency_holders is not None


@here
def test_ctrl_c_leaves_nothing_running(tmp_path: Path) -> None:
    arguments = [local_plan(tmp_path), "--for", "60s", "--load", "cpu,irq"]
    victim = subprocess.Popen([sys.executable, "-m", "evenkeel", "measure", *arguments], stderr=subprocess.DEVNULL)

    def running() -> list[str]:
        names = []
        for entry in Path("/proc").glob("[0-9]*/comm"):
            try:
                names.append(entry.read_text().strip())
            except OSError:
                continue
        return [name for name in names if name.startswith(("evk-load", "evenkeel-spin"))]

    try:
        deadline = time.monotonic() + 60
        while not {"evk-load-cpu", "evk-load-irq"} <= set(running()):
            assert time.monotonic() < deadline and victim.poll() is None
            time.sleep(0.05)
        victim.send_signal(signal.SIGINT)
        assert victim.wait(120) == 130
        until(lambda: not running(), told=running)
    finally:
        victim.kill()
        victim.wait()
