"""Measuring in a guest with a real guest agent, a real awk and cyclictest, on this machine instead of a virtual one."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.documents.evidence import Latency
from evenkeel.measure.cyclictest import latencies
from evenkeel.probe.sample_dma_latency import DEVICE, GuestHolders
from evenkeel.probe.sample_together import together
from tests.probe.guest_agent import running_agent
from tests.waiting import until

CPU = max(os.sched_getaffinity(0))
SECONDS = 3

pytestmark = pytest.mark.skipif(
    not shutil.which("cyclictest") or os.getuid() != 0, reason="cyclictest and root are needed"
)


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a guest in which all of this machine's programs are."""
    with running_agent(tmp_path, monkeypatch) as found:
        yield found.folder


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Path]:
    """One that has only the programs which the test names."""
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in request.param:
        found = shutil.which(name)
        assert found
        (programs / name).symlink_to(found)
    with running_agent(tmp_path, monkeypatch, str(programs)) as found:
        yield found.folder


def measured(live: bool = False, seconds: int = SECONDS) -> tuple[dict[str, Any], list[str]]:
    told: list[str] = []
    job = {"tool": "cyclictest", "guest": "plc", "vcpus": [CPU]}
    answer = together([job], seconds, live=live, on_progress=lambda done, total, what: told.append(what))
    return answer, told


def run_of(answer: dict[str, Any]) -> Latency:
    (run,) = latencies(answer["jobs"][0], [CPU], guest="plc", interval_us=1000, emulated=None, seconds=SECONDS)
    return run


def test_a_guest_tells_when_it_was_late_and_how_it_stands(guest: Path) -> None:
    answer, told = measured(live=True)
    run = run_of(answer)
    assert run.course is not None and 0 <= run.samples - run.course.samples < 500
    assert max(one.max_ns for one in run.course.slices) <= run.max_ns and len(run.course.slices) >= 20
    # Also at the ends of a measurement: whoever asked takes 60 s without a word for a probe that hangs.
    words = [what for what, _ in itertools.groupby(what.split(" | ")[0] for what in told)]
    # A guest that answers at once has no need of a word.
    assert [what for what in words if what != "sh in guest plc"] == ["starting cyclictest", "cyclictest"], told

    def rows_of(told: list[str]) -> set[str]:
        return {row for what in told for row in what.split(" | ")[1:]}

    # A machine that has much else to do looks once in these seconds.
    rows = rows_of(told) if len(rows_of(told)) > 1 else rows_of(measured(live=True, seconds=30)[1])
    assert len(rows) >= 2, told
    assert all(re.fullmatch(rf"guest plc, vCPU {CPU}, cyclictest: \d+ samples, min .* us", row) for row in rows), rows
    until(lambda: not list(Path("/run").glob("evenkeel-live-*")))


def test_an_interrupted_measurement_ends_in_the_guest(guest: Path) -> None:
    def stop(done: int, total: int, what: str) -> None:
        if done:
            raise KeyboardInterrupt

    before = _cyclictests()
    with pytest.raises(KeyboardInterrupt):
        together([{"tool": "cyclictest", "guest": "plc", "vcpus": [CPU]}], 600, on_progress=stop)
    until(lambda: not _cyclictests() - before, told=lambda: "without its reader it cannot write, and ends")


def _cyclictests() -> set[str]:
    return set(
        subprocess.run(["pgrep", "-x", "cyclictest"], capture_output=True, text=True, check=False).stdout.split()
    )


@pytest.mark.parametrize("bare", [("sh", "cyclictest", "kill")], indirect=True)
def test_a_guest_without_awk_is_measured_all_the_same(bare: Path) -> None:
    answer, told = measured(live=True)
    run = run_of(answer)
    assert run.samples > 0 and run.course is None
    assert any("guest plc: not seen live: there is no awk in the guest" in what for what in told)


@pytest.mark.parametrize("bare", [("sh", "awk")], indirect=True)
def test_a_guest_without_cyclictest_says_so(bare: Path) -> None:
    answer, _ = measured()
    assert "cyclictest: not found" in answer["jobs"][0]["error"]["message"]


@pytest.mark.parametrize("bare", [("sh", "cyclictest", "awk")], indirect=True)
def test_a_guest_without_live_view_writes_no_file(bare: Path) -> None:
    before = set(Path("/run").iterdir())
    answer, told = measured()
    assert run_of(answer).course is not None and not any(" | " in what for what in told)
    assert not {path for path in set(Path("/run").iterdir()) - before if "live" in path.name}


def test_who_holds_the_vcpus_awake_is_found_in_the_guest_and_forgotten_never(guest: Path) -> None:
    holders = GuestHolders("plc")
    with Path(DEVICE).open("rb", buffering=0):
        holders.look()
    holders.look(now=True)
    names = holders.names()
    assert names is not None and f"(pid {os.getpid()})" in " ".join(names)
