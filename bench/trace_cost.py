"""How fast system calls are while they are watched, beside perf and bpftrace in the same rounds: ``python
bench/trace_cost.py``.

The experiment of the tracing talk: a loop of getuid in machine code, pinned, without tracing (the base) and with each
way to ask, in turns.  Shown is the speed as a share of the base's, each by the base taken just before and just after
it: in the middle of the quieter half of the rounds, and in brackets the middle half of those.  What is taken is the
CPU time of the thread, in the quickest tenth of many chunks, because what disturbs can only make it slower.
The tools beside it take seconds to attach, so they have fewer rounds, each of which is longer.
``nothing`` is a BPF program that only returns, on the raw tracepoint: nothing that counts there can be cheaper.  The
last column is the speed as a share of the speed with it, in the same round; 1 is the most that a kernel gives.
Root and x86 are needed.  What is missing is said and is no failure of the benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.peers import seen_by

from evenkeel.probe.trace import question, sources
from evenkeel.probe.trace.assembler import R0, Assembler
from evenkeel.probe.trace.loops import GETUID as EVENT
from evenkeel.probe.trace.loops import getuid_loop

#: Of a phase; of the tools beside, which take their time to come and go.
CHUNKS, TOOL_CHUNKS, CALLS = 20, 60, 2000
NOTHING = "nothing, raw_tp"


class Way(NamedTuple):
    """One way to ask, the peer that answers the same question, and the share of the base that is the goal."""

    name: str
    attached: Callable[[], contextlib.AbstractContextManager[None]]
    peer: str | None = None
    goal: float | None = None
    tool: bool = False


@contextlib.contextmanager
def ours(source: str, kind: str) -> Iterator[None]:
    question.trace_start({"kind": kind, "events": [EVENT], "by": "process", "ring_bytes": 1 << 23}, source)
    try:
        yield
    finally:
        question.trace_close()


@contextlib.contextmanager
def nothing() -> Iterator[None]:
    hook = sources.RawTracepoint(EVENT)
    asm = Assembler()
    asm.mov(R0, 0)
    asm.exit()
    try:
        hook.load(asm.code(), "nothing")
        hook.attach()
        yield
    finally:
        hook.close()


def ways() -> list[Way]:
    found = [
        Way(NOTHING, nothing),
        Way("count, raw_tp", lambda: ours("raw_tp", "count"), "bpftrace count()", 0.72),
        Way("count, tp_btf", lambda: ours("tp_btf", "count"), "bpftrace count()"),
        Way("count, perf", lambda: ours("perf", "count"), "perf stat -a"),
        Way("count, tracepoint", lambda: ours("tracepoint", "count"), "bpftrace count()"),
        Way("count, ring", lambda: ours("ring", "count")),
        Way("top by process, raw_tp", lambda: ours("raw_tp", "top"), "bpftrace @[pid]", 0.66),
        Way("top by process, tracepoint", lambda: ours("tracepoint", "top"), "bpftrace @[pid]"),
        Way("record, raw_tp", lambda: ours("raw_tp", "record")),
        Way("record, tracepoint", lambda: ours("tracepoint", "record")),
        Way("record, ring", lambda: ours("ring", "record")),
    ]
    if shutil.which("perf"):
        found.append(Way("perf stat -a", lambda: seen_by("perf", "stat", "-a", "-e", EVENT), tool=True))
    if shutil.which("bpftrace"):
        probe = f"tracepoint:{EVENT}"
        found.append(Way("bpftrace count()", lambda: seen_by("bpftrace", "-e", probe + " { @ = count(); }"), tool=True))
        found.append(
            Way("bpftrace @[pid]", lambda: seen_by("bpftrace", "-e", probe + " { @[pid] = count(); }"), tool=True)
        )
    return found


def chunk_ns(loop: Callable[[int], None], chunks: int) -> float:
    """Nanoseconds of a call: the first tenth of the chunks."""
    found = []
    for _ in range(chunks):
        start = time.thread_time_ns()
        loop(CALLS)
        found.append((time.thread_time_ns() - start) / CALLS)
        if question._run is not None and question._run.question["kind"] == "record":
            question.trace_wait(0)  # so that there is room for the next
    return statistics.quantiles(found, n=10)[0]


class Round(NamedTuple):
    """Nanoseconds of a call in one round: without tracing, and with it."""

    base: float
    ns: float

    @property
    def share(self) -> float:
        return self.base / self.ns


def measure(rounds: int, peer_rounds: int) -> dict[str, list[Round | None]]:
    """Of each way each round; None where it was refused."""
    loop = getuid_loop()
    found: dict[str, list[Round | None]] = {way.name: [] for way in ways()}
    for number in range(rounds):
        for way in ways():
            if way.tool and number >= peer_rounds:
                continue
            chunks = TOOL_CHUNKS if way.tool else CHUNKS
            before, one = chunk_ns(loop, chunks), None
            try:
                with way.attached():
                    with_it = chunk_ns(loop, chunks)
                one = Round((before + chunk_ns(loop, chunks)) / 2, with_it)
            except OSError as error:
                print(f"missing: {way.name}: {error}", file=sys.stderr)
            found[way.name].append(one)
    return found


def quiet(found: list[Round | None]) -> list[Round]:
    there = sorted((one for one in found if one), key=lambda one: one.base + one.ns)
    return there[: (len(there) + 1) // 2]


def rows(found: dict[str, list[Round | None]]) -> list[dict[str, Any]]:
    made = []
    for way in ways():
        if not (each := quiet(found[way.name])):
            continue
        shares = sorted(one.share for one in each)
        beside = quiet(found.get(way.peer or "", []))
        together = zip(found[way.name], found[NOTHING], strict=False)
        least = [one.share / nothing.share for one, nothing in together if one and nothing]
        low, *_, high = statistics.quantiles(shares, n=4) if len(shares) > 1 else shares * 2
        made.append(
            {
                "way": way.name,
                "of_base": round(statistics.median(shares), 3),
                "from": round(low, 3),
                "to": round(high, 3),
                "added_ns": round(statistics.median(one.ns - one.base for one in each), 1),
                "of_nothing": round(statistics.median(least), 3) if least else None,
                "goal": way.goal,
                "peer": way.peer if beside else None,
                "peer_of_base": round(statistics.median(one.share for one in beside), 3) if beside else None,
            }
        )
    return made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="rounds of each way of ours, in turns (default 40)")
    parser.add_argument("--tool-rounds", type=int, default=4, help="rounds of each other tool (default 4)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with ThreadPoolExecutor(1) as thread:  # pages of records leave out the thread that reads, which is the first
        found = thread.submit(measure, wish.rounds, wish.tool_rounds).result()
    base = statistics.median(one.base for each in found.values() for one in each if one)
    table = rows(found)
    if wish.json:
        print(json.dumps({"base_ns": round(base, 1), "rounds": wish.rounds, "ways": table}, indent=2))
        return 0
    print(f"getuid without tracing: {1e3 / base:.2f} million a second, {base:.1f} ns; {wish.rounds} rounds")
    for row in table:
        peer = f"   {row['peer']}: {row['peer_of_base']:.2f}" if row["peer"] else ""
        goal = f"   goal {row['goal']}" if row["goal"] else ""
        least = f"   {row['of_nothing']:.2f} of nothing" if row["of_nothing"] else ""
        print(
            f"{row['way']:28} {row['of_base']:.3f} ({row['from']:.3f} to {row['to']:.3f}) of base, "
            f"+ {row['added_ns']:6.1f} ns{least}{goal}{peer}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
