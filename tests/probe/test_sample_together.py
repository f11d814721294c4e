"""Several tools at once on this machine; the text of timerlat; the process that puts its settings back."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.histogram import BITS, bucket_of
from evenkeel.machines.local import LocalMachine
from evenkeel.probe import sample_tracer
from evenkeel.probe.sample_rttests import arguments
from evenkeel.probe.sample_tracer import Counts, put_back
from tests.waiting import until

CPU = max(os.sched_getaffinity(0))
#: Documentation/trace/timerlat-tracer.rst, one line of another event, and a gap in the numbers of CPU 1.
TEXT = b"""\
          <idle>-0       [000] d.h1    54.029328: #1     context    irq timer_latency       932 ns
           <...>-867     [000] ....    54.029339: #1     context thread timer_latency     11700 ns
          <idle>-0       [001] dNh1    54.029346: #1     context    irq timer_latency      2833 ns
           <...>-868     [001] ....    54.029353: #1     context thread timer_latency      9820 ns
 CPU:1 [LOST 4 EVENTS]
          <idle>-0       [001] d.h1    54.034328: #4     context    irq timer_latency       769 ns
           <...>-868     [001] ....    54.034330: #4     context thread timer_latency      3070 ns
          timerlat/1-868 [001] d...1   54.034331: irq_noise: hwirq 1 duration 12 ns
"""


def counted(*chunks: bytes) -> dict[str, dict[str, Any]]:
    counts = Counts(1000)
    for chunk in chunks:
        counts.feed(chunk)
    return counts.result()


def test_the_text_of_the_kernel_is_counted() -> None:
    found = counted(TEXT)
    assert found["0"]["irq"] == {
        "counts": {932: 1},
        "samples": 1,
        "sum": 932,
        "min": 932,
        "max": 932,
        "lost": 0,
        "course": {"slice_us": 125_000, "slices": [[932, {896: 1}]]},
    }
    thread = found["1"]["thread"]
    assert (thread["samples"], thread["min"], thread["max"], thread["sum"]) == (2, 3070, 9820, 12890)
    assert thread["lost"] == 2, "of the numbers 1 to 4 two are missing"


@pytest.mark.parametrize("task", ["[007]", "a [007] b", "#1 context"])
def test_a_task_cannot_name_itself_another_cpu(task: str) -> None:
    assert list(counted(b"  %s-1 [002] d.h1. 51.13: #5 context irq timer_latency 9 ns\n" % task.encode())) == ["2"]
    noise = b"  %s-1 [002] ..... 2.5: 1000000 4 99.99 4 2 0 1 0 1\n" % task.encode()
    assert list(counted(noise)) == ["2"]


def test_the_summary_of_osnoise_is_counted() -> None:
    """Documentation/trace/osnoise-tracer.rst: the fourth number is the longest single noise, in microseconds."""
    task = b"           <...>-859     [000] ....    "
    found = counted(
        task + b"81.637220: 1000000        190  99.98100       9     18      0   1007     18      1\n",
        task + b"82.638154: 1000000        656  99.93440      74     23      0   1006     16      3\n",
    )
    noise = found["0"]["noise"]
    assert (noise["samples"], noise["min"], noise["max"], noise["lost"]) == (2, 9_000, 74_000, 0)


@given(st.lists(st.integers(0, len(TEXT)), max_size=8))
def test_the_text_may_be_cut_anywhere(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(TEXT)]
    chunks = [TEXT[low:high] for low, high in itertools.pairwise(places)]
    assert counted(*chunks) == counted(TEXT)


@given(st.binary(max_size=300))
def test_damaged_text_is_no_error(text: bytes) -> None:
    counted(text, TEXT)


@given(st.integers(0, 10**12))
def test_its_buckets_are_those_of_the_document(latency: int) -> None:
    line = b"[000] x: #1 context thread timer_latency %d ns\n" % latency
    assert list(counted(line)["0"]["thread"]["counts"]) == [bucket_of(latency, BITS)]


def test_settings_are_put_back_and_the_instance_goes(tmp_path: Path) -> None:
    instance, cpus = tmp_path / "instance", tmp_path / "cpus"
    instance.mkdir()
    cpus.write_text("1\n")
    put_back(str(instance), {str(cpus): "0-3", str(tmp_path / "gone"): "x"})
    assert not instance.exists() and cpus.read_text() == "0-3\n"


@pytest.mark.parametrize("end", ["told", "killed"])
def test_the_keeper_works_when_told_and_when_its_probe_is_killed(end: str, tmp_path: Path) -> None:
    setting = tmp_path / "cpus"
    setting.write_text("1\n")
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        done = sample_tracer._keeper(str(tmp_path / "instance"), {str(setting): "0-3"})
        os.write(tell, b"kept")
        if end == "told":
            done()
            os._exit(0)
        time.sleep(60)
        os._exit(1)
    assert os.read(ready, 4) == b"kept"
    os.close(ready)
    os.close(tell)
    if end == "killed":
        time.sleep(0.3)
        assert setting.read_text() == "1\n"
        os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(lambda: setting.read_text() == "0-3\n")


needs_tools = pytest.mark.skipif(
    not shutil.which("cyclictest") or not shutil.which("oslat") or os.getuid() != 0, reason="rt-tests and root needed"
)


def test_each_period_of_timerlat_is_in_the_slice_in_which_it_was_due() -> None:
    row = b"   <...>-868     [001] ....    54.0: #%d     context thread timer_latency     %d ns\n"
    course = counted(row % (1, 900), row % (125, 800), row % (126, 5000))["1"]["thread"]["course"]
    assert course == {"slice_us": 125_000, "slices": [[900, {896: 1, 768: 1}], [5000, {4608: 1}]]}


@needs_tools
def test_two_tools_at_once_here_and_one_that_fails() -> None:
    jobs = [
        {"tool": "cyclictest", "cpus": [CPU]},
        {"tool": "oslat", "cpus": [CPU]},
        {"tool": "cyclictest", "guest": "no-such-guest", "vcpus": [0]},
        {"tool": "disco", "cpus": [CPU]},
    ]
    with LocalMachine().probe() as probe:
        begin = time.monotonic()
        answer = probe.call("together", jobs=jobs, seconds=2, load={"kinds": ["irq"], "cpus": [CPU]})
        spent = time.monotonic() - begin
    cyclictest, oslat, guest, disco = answer["jobs"]
    assert cyclictest["spent_s"] >= 1.9
    assert list(cyclictest["json"]["thread"]) == ["0"] and oslat["json"]["thread"]["0"]["cpu"] == CPU
    assert answer["guest_holders"] == {"no-such-guest": None}, "not known is not nobody"
    slices = cyclictest["courses"]["0"]["slices"]
    told = sum(sum(counts.values()) for _, counts in slices)
    assert 0 <= cyclictest["json"]["thread"]["0"]["cycles"] - told < 500 and 10 <= len(slices) <= 20
    assert max(largest for largest, _ in slices) <= cyclictest["json"]["thread"]["0"]["max"]
    assert "error" in guest and "error" in disco, "what fails takes nothing else with it"
    assert answer["load"] == f"irq on {CPU}" and answer["loads"][0]["operations"] > 0
    assert spent >= 2


def test_oslat_runs_at_ordinary_priority() -> None:
    line = arguments("oslat", [3], 5, 95, 1000, "x")
    assert not any(word.startswith(("--rtprio", "-f")) for word in line)
    assert "--default-system" in arguments("cyclictest", [3], 5, 95, 1000, "x")
