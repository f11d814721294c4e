"""How long the command line takes to start, beside a Python that does nothing: ``python bench/start.py``.

Whole processes in turns, so that load on the machine falls on all of them.  ``--version`` is to be there within 150 ms;
on a busy or slow machine the ratio to ``python -c pass`` says more, and what is above it is ours.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time

GOAL_MS = 150
BARE = "python -c pass"
COMMANDS = {
    BARE: ["-c", "pass"],
    "evenkeel --version": ["-m", "evenkeel", "--version"],
    "evenkeel --help": ["-m", "evenkeel", "--help"],
    "evenkeel facts --help": ["-m", "evenkeel", "facts", "--help"],
}


def run(words: list[str]) -> float:
    """Milliseconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, *words], stdout=subprocess.DEVNULL, check=True)
    return 1e3 * (time.perf_counter() - started)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=11, help="runs of each, in turns (default 11)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args()
    for words in COMMANDS.values():
        run(words)  # reads the files from the disk, and writes what Python keeps of them
    times: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(arguments.runs):
        for name, words in COMMANDS.items():
            times[name].append(run(words))
    middle = {name: statistics.median(taken) for name, taken in times.items()}
    if arguments.json:
        found = {name: {"median_ms": round(ms, 1), "ratio": round(ms / middle[BARE], 2)} for name, ms in middle.items()}
        print(json.dumps(found, indent=2))
        return 0
    for name, ms in middle.items():
        ratio = f", {ms / middle[BARE]:.1f} times {BARE}" if name != BARE else ""
        goal = f"; the goal is {GOAL_MS} ms" if name == "evenkeel --version" else ""
        print(f"{name}: {ms:.0f} ms (smallest {min(times[name]):.0f}){ratio}{goal}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
