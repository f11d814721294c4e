"""From nothing to the first attached probe, interpreter included, beside bpftrace: ``python bench/trace_start.py``.

Ours is the probe as it is started on a managed machine: a Python that imports what it needs, loads one program and
says so; once by a raw tracepoint, and once by a tracepoint whose fields are asked of the kernel's types (BTF).
bpftrace says so in BEGIN, which it runs when all is attached.  In turns; the median.  Root is needed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.peers import MOUNTED

OURS = """
from evenkeel.probe.trace import question
question.trace_start({asked!r}, {source!r})
print("on", flush=True)
question.trace_close()
"""
COUNT = {"kind": "count", "events": ["syscalls:sys_enter_getuid"]}
WAKEUPS = {"kind": "wakeups", "events": ["sched:sched_waking", "sched:sched_switch"], "key": "pid=next_pid"}


def seconds(argv: list[str]) -> float:
    """Until it says "on"."""
    start = time.perf_counter()
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout
    while "on" not in (line := process.stdout.readline()):
        if not line:
            sys.exit(f"{argv[0]} did not attach")
    found = time.perf_counter() - start
    process.kill()  # a bpftrace that has just begun does not hear SIGTERM
    process.communicate()
    return found


def ways() -> dict[str, list[str]]:
    python = [sys.executable, "-S", "-c"]
    path = f"import sys; sys.path[:] = {sys.path!r}\n"
    found = {
        "python alone": [*python, "print('on')"],
        "evenkeel count, raw_tp": [*python, path + OURS.format(asked=COUNT, source="raw_tp")],
        "evenkeel wakeups, tp_btf": [*python, path + OURS.format(asked=WAKEUPS, source="tp_btf")],
    }
    if shutil.which("bpftrace"):
        begin = 'BEGIN { printf("on\\n"); } '
        count = begin + "tracepoint:syscalls:sys_enter_getuid { @ = count(); }"
        wakeups = begin + (
            "tracepoint:sched:sched_waking { @at[args->pid] = nsecs; } tracepoint:sched:sched_switch "
            "/@at[args->next_pid]/ { @ = hist(nsecs - @at[args->next_pid]); delete(@at[args->next_pid]); }"
        )
        mounted = ["unshare", "--mount", "sh", "-c", MOUNTED, "sh"]
        for name, script in (("bpftrace count()", count), ("bpftrace wakeups", wakeups)):
            found[name] = [*mounted, "bpftrace", "-B", "line", "-e", script]
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10, help="rounds of each, in turns (default 10)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    found: dict[str, list[float]] = {name: [] for name in ways()}
    for _ in range(wish.rounds):
        for name, argv in ways().items():
            found[name].append(seconds(argv))
    medians = {name: round(1000 * statistics.median(all_), 1) for name, all_ in found.items()}
    if wish.json:
        print(json.dumps({"rounds": wish.rounds, "ms": medians}, indent=2))
        return 0
    for name, one in medians.items():
        print(f"{name:26} {one:7.1f} ms")
    return 0


if __name__ == "__main__":
    sys.exit(main())
