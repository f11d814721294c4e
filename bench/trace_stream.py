"""Every event as a record, read as fast as it comes, beside bpftrace and perf: ``python bench/trace_stream.py``.

A process makes so many calls of getuid as fast as it can; each tool has to hand over a record of every one, in turns.
Shown are the records that arrived, those that were lost, the rate of the process that was watched and
the CPU time of the reader.  Root is needed.  What is missing is said and is no failure of the benchmark.
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
import threading
import time
from pathlib import Path
from typing import Any

from evenkeel.measure.trace.stream import Stream, consume, ring_bytes

from evenkeel.probe.trace.calibrate import EVENT
from evenkeel.probe.trace.sources import RawTracepoint
from evenkeel.probe.trace.templates import Constant

MOUNTED = 'test -d /sys/kernel/tracing/events || mount -t tracefs none /sys/kernel/tracing; exec "$@"'
LOOP = """
import itertools, os, sys, time
call = os.getuid
sys.stdin.readline()
start = time.perf_counter()
for _ in itertools.repeat(None, int(sys.argv[1])): call()
print(time.perf_counter() - start, flush=True)
sys.stdin.readline()
"""


class Load:
    """A process that waits, makes its calls, says how long they took, and waits again."""

    def __init__(self, calls: int) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", LOOP, str(calls)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def go(self) -> float:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("go\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def close(self) -> None:
        self.process.communicate("end\n")


def ours(calls: int) -> dict[str, Any]:
    load = Load(calls)
    stream = Stream(RawTracepoint(EVENT, process=load.process.pid), Constant(0), ring_bytes(calls))
    seen, took = [0], [0.0]
    done = threading.Event()

    def work() -> None:
        time.sleep(0.2)
        took[0] = load.go()
        done.set()

    def take(batch: Any) -> None:
        seen[0] += len(batch)

    thread = threading.Thread(target=work)
    thread.start()
    before = time.process_time()
    consume(stream, take, calls / 1e6 + 0.5)  # a call takes less than a microsecond
    while not done.is_set():  # on a busy machine it may take longer
        consume(stream, take, 0.5)
    cpu = time.process_time() - before
    thread.join()
    lost = stream.lost()
    stream.close()
    load.close()
    return {"arrived": seen[0], "lost": calls - seen[0], "told": lost, "seconds": took[0], "cpu_s": cpu}


def theirs(calls: int, argv: list[str], read: Any) -> dict[str, Any]:
    """A tool that writes to a file; ``read`` says how many records are in it."""
    load = Load(calls)
    with tempfile.TemporaryDirectory(prefix="evenkeel-bench-") as folder:
        target = str(Path(folder) / "out")
        words = [word.replace("PID", str(load.process.pid)).replace("FILE", target) for word in argv]
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", *words],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        time.sleep(3.0)
        took = load.go()
        time.sleep(0.5)
        process.send_signal(2)
        process.wait(timeout=120)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        arrived = int(read(target))
        load.close()
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"arrived": arrived, "lost": calls - arrived, "told": None, "seconds": took, "cpu_s": cpu}


def lines(target: str) -> int:
    with Path(target).open("rb") as file:
        return sum(line.startswith(b"ek ") for line in file)


def samples(target: str) -> int:
    report = subprocess.run(
        ["perf", "report", "-i", target, "--stats"], capture_output=True, text=True, check=True
    ).stdout
    return int(re.findall(r"SAMPLE events:\s+(\d+)", report)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2_000_000, help="events of each run (default 2 000 000)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds, in turns (default 3)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    calls = arguments.calls
    script = f'tracepoint:{EVENT} /pid == PID/ {{ printf("ek %d\\n", nsecs); }}'
    ways: dict[str, Any] = {"evenkeel, ring and numpy": lambda: ours(calls)}
    if shutil.which("bpftrace"):
        ways["bpftrace, printf"] = lambda: theirs(calls, ["bpftrace", "-o", "FILE", "-e", script], lines)
    if shutil.which("perf"):
        record = ["perf", "record", "-q", "-e", EVENT, "-c", "1", "-p", "PID", "-o", "FILE"]
        ways["perf record"] = lambda: theirs(calls, record, samples)
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in ways}
    for _ in range(arguments.rounds):
        for name, way in ways.items():
            found[name].append(way())
    if arguments.json:
        print(json.dumps({"calls": calls, "cpus": os.cpu_count(), "ways": found}, indent=2))
        return 0
    for name, runs in found.items():
        for one in runs:
            rate = calls / one["seconds"] / 1e6
            told = "" if one["told"] is None else f" ({one['told']:,} told)"
            print(
                f"{name:26} {one['arrived']:>10,} of {calls:,}, lost {100 * one['lost'] / calls:5.1f} %{told}; "
                f"{rate:.2f} M/s, {one['cpu_s']:.2f} s of CPU"
            )
    return 0


if __name__ == "__main__":
    sys.exit(main())
