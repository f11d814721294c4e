"""How fast system calls are while they are watched, beside perf and bpftrace in the same rounds: ``python
bench/trace_cost.py``.

The experiment of the tracing talk: a loop of getuid in machine code, pinned, without tracing (the base) and with each
way to ask, in turns.  Shown is the speed as a share of the base's, by the CPU time of the thread in many short chunks,
of those in which the machine was as fast as it gets; and in brackets from which to which 95 of 100 such numbers would
be.  The tools beside it take seconds to attach, so they have fewer turns, and longer ones.
``nothing`` is a BPF program that only returns, on the raw tracepoint: nothing that counts there can be cheaper.  The
last column is the speed as a share of the speed with it, in the same round; 1 is the most that a kernel gives.
Every source has a row.  ``fentry``, ``kprobe`` and ``function`` see the function in which getuid ends; what the kernel
refuses has its words in the row in place of numbers.  A uprobe cannot be on a system call: it has a loop of its own, of
calls of a function, and "of base" is of that; nothing of the rest is to be compared with it.
Root and x86 are needed.  What is missing is no failure of the benchmark.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench.peers import seen_by, turns
from bench.peers.turns import Turn

from evenkeel.probe.failure import StepFailed
from evenkeel.probe.trace import loops, question, sources
from evenkeel.probe.trace.assembler import R0, Assembler
from evenkeel.probe.trace.loops import GETUID as EVENT

#: Without and with, each time; of the tools beside, which take their time to come and go.
PHASE_S, TOOL_S = 0.005, 0.05
#: Of a chunk.
CALLS = 1000
NOTHING = "nothing, raw_tp"
#: Where getuid ends; the kernel has two names for it, and each source takes the one that it knows.
FUNCTION = "function:__x64_sys_getuid"


class Way(NamedTuple):
    """One way to ask, the peer that answers the same question, and the share of the base that is the goal."""

    name: str
    attached: Callable[[], contextlib.AbstractContextManager[None]]
    peer: str | None = None
    goal: float | None = None
    tool: bool = False
    #: Whether the loop is that of a function, and not of getuid.
    function: bool = False


@contextlib.contextmanager
def ours(source: str, kind: str, event: str = EVENT) -> Iterator[None]:
    question.trace_start({"kind": kind, "events": [event], "by": "process", "ring_bytes": 1 << 23}, source)
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


def libc() -> str:
    """A uprobe of a function that begins as most do, without a push."""
    path = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc.so" in line)
    return f"uprobe:{path}:getppid"


def ways(uprobe: str) -> list[Way]:
    """``uprobe``: the event on the function that its loop calls."""
    found = [
        Way(NOTHING, nothing),
        Way("count, raw_tp", lambda: ours("raw_tp", "count"), "bpftrace count()", 0.72),
        Way("count, tp_btf", lambda: ours("tp_btf", "count"), "bpftrace count()"),
        Way("count, perf", lambda: ours("perf", "count"), "perf stat -a"),
        Way("count, tracepoint", lambda: ours("tracepoint", "count"), "bpftrace count()"),
        Way("count, ring", lambda: ours("ring", "count")),
        Way("count, fentry", lambda: ours("fentry", "count"), "bpftrace count()"),
        Way("count, function", lambda: ours("function", "count", FUNCTION)),
        Way("count, kprobe", lambda: ours("kprobe", "count", FUNCTION)),
        Way("count, uprobe", lambda: ours("uprobe", "count", uprobe), function=True),
        Way("top by process, raw_tp", lambda: ours("raw_tp", "top"), "bpftrace @[pid]", 0.66),
        Way("top by process, tracepoint", lambda: ours("tracepoint", "top"), "bpftrace @[pid]"),
        Way("top by process, fentry", lambda: ours("fentry", "top"), "bpftrace @[pid]"),
        Way("top by process, kprobe", lambda: ours("kprobe", "top", FUNCTION)),
        Way("top by process, uprobe", lambda: ours("uprobe", "top", uprobe), function=True),
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


def drain() -> None:
    if question._run is not None and question._run.question["kind"] == "record":
        question.trace_wait(0)  # so that there is room for the next


class Found(NamedTuple):
    """Of each way its turns, or why there are none."""

    turns: dict[str, list[Turn]]
    refused: dict[str, str]


def measure(rounds: int, tool_rounds: int, some: list[Way], loop: loops.Run, function: loops.Run) -> Found:
    found = Found({way.name: [] for way in some}, {})
    for number in range(rounds):
        for way in some:
            if way.name in found.refused or (way.tool and number >= tool_rounds):
                continue
            seconds = TOOL_S if way.tool else PHASE_S
            run = function if way.function else loop
            try:
                without = turns.chunks(partial(run, CALLS), CALLS, seconds)
                with way.attached():
                    with_it = turns.chunks(partial(run, CALLS), CALLS, seconds, after=drain)
            except (OSError, StepFailed) as error:
                found.refused[way.name] = why(error)
            else:
                found.turns[way.name].append(Turn(without, with_it))
    return found


def why(error: OSError | StepFailed) -> str:
    code = error.code if isinstance(error, StepFailed) else error.errno
    return f"{errno.errorcode.get(code, code)}: {error}" if code else str(error)


def rows(found: Found, some: list[Way]) -> list[dict[str, Any]]:
    made: list[dict[str, Any]] = []
    nothing = turns.share(found.turns[NOTHING]) if found.turns[NOTHING] else None
    for way in some:
        if way.name in found.refused:
            made.append({"way": way.name, "refused": found.refused[way.name]})
            continue
        if not (taken := found.turns[way.name]):
            continue  # a tool that was given no turns
        share = turns.known(taken, turns.share)
        beside = found.turns.get(way.peer or "")
        made.append(
            {
                "way": way.name,
                "of_base": round(share.value, 3),
                "from": round(share.low, 3),
                "to": round(share.high, 3),
                "added_ns": round(turns.added(taken), 1),
                "of_nothing": round(share.value / nothing, 3) if nothing and not way.function else None,
                "goal": way.goal,
                "peer": way.peer if beside else None,
                "peer_of_base": round(turns.share(beside), 3) if beside else None,
            }
        )
    return made


def take(rounds: int, tool_rounds: int) -> tuple[float | None, list[dict[str, Any]]]:
    """Nanoseconds of a getuid without tracing, and the table."""
    with loops.loop("uprobe", libc()) as function:
        some = ways(function.events[0])
        found = measure(rounds, tool_rounds, some, loops.getuid_loop(), function.run)
        table = rows(found, some)
    of_getuid = [one for way in some if not way.function for one in found.turns[way.name]]
    return turns.without(of_getuid) if of_getuid else None, table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60, help="turns of each way of ours (default 60)")
    parser.add_argument("--tool-rounds", type=int, default=4, help="turns of each other tool (default 4)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    wish = parser.parse_args()
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with ThreadPoolExecutor(1) as thread:  # pages of records leave out the thread that reads, which is the first
        base, table = thread.submit(take, wish.rounds, wish.tool_rounds).result()
    if wish.json:
        print(json.dumps({"base_ns": base and round(base, 1), "rounds": wish.rounds, "ways": table}, indent=2))
        return 0
    if base is not None:
        print(f"getuid without tracing: {1e3 / base:.2f} million a second, {base:.1f} ns; {wish.rounds} turns")
    for row in table:
        if "refused" in row:
            print(f"{row['way']:28} refused: {row['refused']}")
            continue
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
