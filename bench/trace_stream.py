"""Every event as a record, read as fast as it comes, beside bpftrace and perf: ``python bench/trace_stream.py``.

A process on one CPU makes so many calls of getuid as fast as it can, in a loop of machine code, at FIFO so that others
do not slow it down; each tool has to hand over a record of every one, reading on another CPU, in turns.  Shown are the
records that arrived, those that were lost, the rate of the process that was watched, and the CPU time of the reader.
perf and bpftrace are asked twice: as they are, and with the buffer that we take.
Root, x86 and two CPUs are needed.  What is missing is said and is no failure of the benchmark.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.peers import CallLoop, seen_by

from evenkeel.measure.trace.records import records
from evenkeel.probe import recording
from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import question
from evenkeel.probe.trace.loops import GETUID as EVENT
from evenkeel.probe.trace.records import ring_bytes

#: Calls a second that no tool reaches, so that our ring has the size for it.
PEAK = 5e6


def ours(calls: int, source: str) -> dict[str, Any]:
    """The reader is the probe itself; its CPU time is that until the last record was kept, then arrays are made."""
    with CallLoop(calls) as load:
        asked = {"kind": "record", "events": [EVENT], "rate_per_s": PEAK, "most_bytes": 8 << 30}
        if source != "ring":
            asked["process"] = load.pid
        question.trace_start(asked, source)
        question.trace_wait(0.05)
        before = time.process_time()
        load.start()
        while not load.done():
            question.trace_wait(0.1)
        question.trace_wait(0.1)
        cpu = time.process_time() - before
        found = question.trace_finish()
        kept = recording._kept[found["records"]["id"]]
        before = time.process_time()
        array = records(found["records"], {cpu: bytes(one) for cpu, one in kept.items()}, None)
        decode = time.process_time() - before
        arrived = int((array["thread"] == load.pid).sum())
        recording.drop(found["records"]["id"])
        return _row(calls, arrived, load.seconds(), cpu, told=found["lost"], decode_s=round(decode, 3))


def theirs(calls: int, argv: list[str], read: Callable[[str], int], variables: dict[str, str]) -> dict[str, Any]:
    """A tool that writes to a file; ``read`` says how many records are in it."""
    with tempfile.TemporaryDirectory(prefix="evenkeel-bench-") as folder, CallLoop(calls) as load:
        target = str(Path(folder) / "out")
        words = [word.replace("PID", str(load.pid)).replace("FILE", target) for word in argv]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        with seen_by(*words, variables=variables):
            load.start()
            while not load.done():
                time.sleep(0.05)
            time.sleep(0.5)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return _row(calls, int(read(target)), load.seconds(), cpu)


def _row(calls: int, arrived: int, seconds: float, cpu_s: float, **more: Any) -> dict[str, Any]:
    return {"arrived": arrived, "lost": calls - arrived, "seconds": seconds, "cpu_s": round(cpu_s, 3), **more}


def lines(target: str) -> int:
    with Path(target).open("rb") as file:
        return sum(line.startswith(b"ek ") for line in file)


def samples(target: str) -> int:
    report = subprocess.run(
        ["perf", "report", "-i", target, "--stats"], capture_output=True, text=True, check=True
    ).stdout
    return int(re.findall(r"SAMPLE events:\s+(\d+)", report)[0])


def ways(calls: int) -> dict[str, Callable[[], dict[str, Any]]]:
    found: dict[str, Callable[[], dict[str, Any]]] = {
        "evenkeel, BPF ring": lambda: ours(calls, "raw_tp"),
        "evenkeel, trace pages": lambda: ours(calls, "ring"),
    }
    pages = ring_bytes(PEAK) // os.sysconf("SC_PAGE_SIZE")
    if shutil.which("bpftrace"):
        script = f'tracepoint:{EVENT} /pid == PID/ {{ printf("ek %d\\n", nsecs); }}'
        argv = ["bpftrace", "-o", "FILE", "-e", script]
        found["bpftrace printf"] = lambda: theirs(calls, argv, lines, {})
        large = {"BPFTRACE_PERF_RB_PAGES": str(pages)}
        found["bpftrace printf, as large"] = lambda: theirs(calls, argv, lines, large)
    if shutil.which("perf"):
        argv_perf = ["perf", "record", "-q", "-e", EVENT, "-c", "1", "-p", "PID", "-o", "FILE"]
        found["perf record"] = lambda: theirs(calls, argv_perf, samples, {})
        found["perf record, as large"] = lambda: theirs(calls, [*argv_perf, "-m", str(pages)], samples, {})
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=5_000_000, help="events of each run (default 5 000 000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (default 3)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways(wish.calls)}
    for _ in range(wish.rounds):
        for name, way in ways(wish.calls).items():
            try:
                found[name].append(way())
            except (OSError, StepFailed) as error:
                print(f"missing: {name}: {error}", file=sys.stderr)
    if wish.json:
        print(json.dumps({"calls": wish.calls, "cpus": os.cpu_count(), "ways": found}, indent=2))
        return 0
    for name, runs in found.items():
        for one in runs:
            lost = f"lost {100 * one['lost'] / wish.calls:5.1f} %" + (
                f" ({one['told']:,} told)" if "told" in one else ""
            )
            decode = f", arrays in {one['decode_s']:.2f} s" if "decode_s" in one else ""
            print(
                f"{name:26} {one['arrived']:>10,} of {wish.calls:,}, {lost}; "
                f"{wish.calls / one['seconds'] / 1e6:.2f} M/s, {one['cpu_s']:.2f} s of CPU{decode}"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
