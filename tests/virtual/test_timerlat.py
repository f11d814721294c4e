"""timerlat, oslat and cyclictest at once on a real PREEMPT_RT kernel.  No latency is asserted: it is emulated."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tests.virtual.conftest import on_host

from evenkeel.machines.protocol import ProbeError
from evenkeel.machines.virtual import VirtualMachine
from evenkeel.measure.oslat import oslat_latencies
from evenkeel.measure.tracer import tracer_latencies

pytestmark = [pytest.mark.virtual, pytest.mark.long, pytest.mark.timeout(1800)]

TRACING = "/sys/kernel/tracing"
STATE = f"cat {TRACING}/osnoise/cpus {TRACING}/osnoise/timerlat_period_us; ls {TRACING}/instances"
JOBS: list[dict[str, Any]] = [{"tool": "timerlat", "cpus": [1]}]


def test_timerlat_cyclictest_and_oslat_at_once_beside_a_placed_load(virtual_host: VirtualMachine) -> None:
    before = on_host(virtual_host, STATE)
    jobs = [*JOBS, {"tool": "cyclictest", "cpus": [0]}, {"tool": "oslat", "cpus": [0]}, {"tool": "oslat", "cpus": [99]}]
    with virtual_host.probe() as probe:
        answer = probe.call("together", jobs=jobs, seconds=3, load={"kinds": ["irq", "io"], "cpus": [0]})
    assert on_host(virtual_host, STATE) == before
    timerlat, cyclictest, oslat, refused = answer["jobs"]
    found = tracer_latencies(timerlat, interval_us=1000, seconds=3, emulated=True)
    assert [one.tool for one in found] == ["timerlat", "timerlat irq"]
    for one in found:
        assert one.cpus == frozenset({1}) and one.samples > 100 and one.histogram.samples == one.samples
        assert 0 < one.min_ns <= one.avg_ns <= one.max_ns and one.lost == 0
    assert list(cyclictest["json"]["thread"]) == ["0"]
    (spun,) = oslat_latencies(oslat, [0], guest=None, emulated=True)
    assert spun.tool == "oslat" and spun.samples > 1000
    assert refused["error"]["errno"] in ("EPROTO", "EINVAL"), "one tool that fails takes no other with it"
    assert [run["trouble"] for run in answer["loads"]] == ["", ""]
    assert answer["holders"] is not None


def test_osnoise_sums_up_each_second(virtual_host: VirtualMachine) -> None:
    before = on_host(virtual_host, STATE)
    with virtual_host.probe() as probe:
        (answer,) = probe.call("together", jobs=[{"tool": "osnoise", "cpus": [1]}], seconds=5)["jobs"]
    assert on_host(virtual_host, STATE) == before
    (found,) = tracer_latencies(answer, interval_us=1000, seconds=5, emulated=True)
    assert found.tool == "osnoise" and 1 <= found.samples <= 8 and found.max_ns > 0


def test_a_tracer_that_somebody_uses_is_left_alone(virtual_host: VirtualMachine) -> None:
    own = f"{TRACING}/instances/mine"
    on_host(virtual_host, f"mkdir {own}; echo timerlat >{own}/current_tracer")
    try:
        with virtual_host.probe() as probe:
            (found,) = probe.call("together", jobs=JOBS, seconds=1)["jobs"]
        assert found["error"]["errno"] == "EBUSY"
        assert on_host(virtual_host, f"cat {own}/current_tracer") == "timerlat"
    finally:
        on_host(virtual_host, f"echo nop >{own}/current_tracer; rmdir {own}")


def test_a_probe_that_is_killed_leaves_no_tracer_behind(virtual_host: VirtualMachine) -> None:
    before = on_host(virtual_host, STATE)
    program = (
        "import json, sys\n"
        "from evenkeel.machines.virtual import VirtualMachine\n"
        "with VirtualMachine(sys.argv[1]).probe() as probe:\n"
        "    print(probe.call('hello')['pid'], flush=True)\n"
        "    probe.call('together', jobs=json.loads(sys.argv[2]), seconds=300)\n"
    )
    name = virtual_host.address.partition(":")[2]
    victim = subprocess.Popen(
        [sys.executable, "-c", program, name, json.dumps(JOBS)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert victim.stdout
        pid = int(victim.stdout.readline())
        _wait(virtual_host, lambda state: "evenkeel-" in state)
        on_host(virtual_host, f"kill -9 {pid}")
        _wait(virtual_host, lambda state: state == before)
    finally:
        victim.kill()
        victim.wait()


def _wait(virtual_host: VirtualMachine, wanted: Any) -> None:
    deadline = time.monotonic() + 60
    while not wanted(state := on_host(virtual_host, STATE)):
        assert time.monotonic() < deadline, state
        time.sleep(0.5)


def test_a_kernel_without_timerlat_is_told() -> None:
    """On this machine, whose kernel may lack it; where it has it, nothing is claimed."""
    from evenkeel.machines.local import LocalMachine

    if "timerlat" in _text(Path(TRACING) / "available_tracers").split():
        pytest.skip("this kernel has timerlat")
    with LocalMachine().probe() as probe:
        (found,) = probe.call("together", jobs=JOBS, seconds=1)["jobs"]
        assert found["error"]["errno"] == "ENOENT" and "no timerlat" in found["error"]["message"]
        with pytest.raises(ProbeError):
            probe.call("together", jobs=JOBS, seconds=1, load={"kinds": ["x"], "cpus": [0]})


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
