"""What a traced system call costs, beside perf and bpftrace in the same rounds: ``python bench/trace_cost.py``.

A pinned loop of getuid is timed in chunks, without tracing and with each tool, in turns; the quickest chunk counts,
because what disturbs a chunk can only make it slower.  Shown is what each adds to a call, and its ratio to the peer
that answers the same question.  Root is needed.  What is missing is said and is no failure of the benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from evenkeel.probe.trace import calibrate, question

EVENT = calibrate.EVENT
#: tracefs for the peers, in a mount namespace of their own.
MOUNTED = 'test -d /sys/kernel/tracing/events || mount -t tracefs none /sys/kernel/tracing; exec "$@"'


class Way(NamedTuple):
    """One way to ask, and which peer answers the same question."""

    name: str
    attached: Callable[[], contextlib.AbstractContextManager[None]]
    peer: str | None


@contextlib.contextmanager
def ours(source: str, kind: str) -> Iterator[None]:
    question.trace_start({"kind": kind, "events": [EVENT], "by": "process"}, source)
    try:
        yield
    finally:
        question.trace_close()


@contextlib.contextmanager
def theirs(*argv: str) -> Iterator[None]:
    """A tool that runs meanwhile; it is given time to attach, and ended by Ctrl-C."""
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", MOUNTED, "sh", *argv],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    time.sleep(2.5)
    try:
        if process.poll() is not None:
            raise OSError(f"{argv[0]} ended with {process.returncode}")
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(2)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def ways() -> list[Way]:
    found = [
        Way("evenkeel count, raw_tp", lambda: ours("raw_tp", "count"), "bpftrace count()"),
        Way("evenkeel count, perf", lambda: ours("perf", "count"), "perf stat -a"),
        Way("evenkeel count, tracepoint", lambda: ours("tracepoint", "count"), "bpftrace count()"),
        Way("evenkeel top by process, raw_tp", lambda: ours("raw_tp", "top"), "bpftrace @[pid]"),
    ]
    if shutil.which("perf"):
        found.append(Way("perf stat -a", lambda: theirs("perf", "stat", "-a", "-e", EVENT), None))
    if shutil.which("bpftrace"):
        probe = f"tracepoint:{EVENT}"
        found.append(Way("bpftrace count()", lambda: theirs("bpftrace", "-e", probe + " { @ = count(); }"), None))
        found.append(Way("bpftrace @[pid]", lambda: theirs("bpftrace", "-e", probe + " { @[pid] = count(); }"), None))
    return found


def measure(rounds: int) -> tuple[float, dict[str, float]]:
    """Nanoseconds of a call without tracing, and what each way adds: the least of ``rounds``, in turns."""
    added: dict[str, float] = {}
    plain = float("inf")
    for _ in range(rounds):
        for way in ways():
            base = calibrate.quickest()
            plain = min(plain, base)
            try:
                with way.attached():
                    cost = max(0.0, calibrate.quickest() - min(base, plain))
            except OSError as error:
                print(f"missing: {way.name}: {error}", file=sys.stderr)
                continue
            added[way.name] = min(added.get(way.name, float("inf")), cost)
    return plain, added


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each, in turns (default 5)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    plain, added = measure(arguments.rounds)
    peers = {way.name: way.peer for way in ways()}
    rows = [
        {
            "way": name,
            "added_ns": round(cost, 1),
            "peer": peers[name],
            "ratio": round(cost / added[peer], 2) if (peer := peers[name]) and added.get(peer) else None,
        }
        for name, cost in added.items()
    ]
    if arguments.json:
        print(json.dumps({"plain_ns": round(plain, 1), "ways": rows}, indent=2))
        return 0
    print(f"a call of getuid from Python without tracing: {plain:.0f} ns")
    for row in rows:
        beside = f"{row['ratio']:.2f} of {row['peer']}" if row["ratio"] is not None else ""
        print(f"{row['way']:34} + {row['added_ns']:6.1f} ns   {beside}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
