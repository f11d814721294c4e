"""The same jobs for several queues, and what came of them: what `bench/lab_queue.py` runs ours and its peers with.

Each queue is a context manager with :class:`Queue`'s two members, in a module of its own.  What is measured is written
by the jobs themselves, which are real processes and the same for all: so no queue is asked how good it was.
"""

from __future__ import annotations

import heapq
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

#: Jobs of one submission; each queue takes them in one call, in its own way.
TOGETHER = 8
#: Written by each job when it begins and when it ends: lines that short are appended whole.
SCRIPT = """\
exec 3>>"$3"
echo "$1 begin $EPOCHREALTIME" >&3
sleep "$2"
echo "$1 end $EPOCHREALTIME" >&3
"""


@dataclass(frozen=True)
class Job:
    number: int
    takes_s: float

    def command(self, folder: Path) -> list[str]:
        """What runs it; its two lines go to ``folder/ledger``."""
        return ["bash", str(folder / "job.sh"), str(self.number), f"{self.takes_s:.3f}", str(folder / "ledger")]


@dataclass(frozen=True)
class Submission:
    at_s: float
    jobs: tuple[Job, ...]


class Queue(Protocol):
    """``durable``: what of an acknowledged submission a crash of the machine leaves, as it is set here."""

    durable: str

    def send(self, jobs: Sequence[Job]) -> None:
        """Submit them, to be run as soon as a slot is free; returns when they are acknowledged."""
        ...


@dataclass(frozen=True)
class Trace:
    slots: int
    submissions: tuple[Submission, ...]

    @property
    def jobs(self) -> list[Job]:
        return [job for one in self.submissions for job in one.jobs]

    def bound_s(self) -> float:
        """No queue can have ended all earlier: what comes from any moment on needs all slots for so long."""
        best, work = 0.0, 0.0
        for one in reversed(self.submissions):
            work += sum(job.takes_s for job in one.jobs)
            best = max(best, one.at_s + max(work / self.slots, max(job.takes_s for job in one.jobs)))
        return best

    def ideal(self) -> Times:
        """By age, by a queue and an operating system that take no time at all."""
        free = [0.0] * self.slots
        begun, ended = {}, {}
        for one in self.submissions:
            for job in one.jobs:
                begun[job.number] = max(heapq.heappop(free), one.at_s)
                ended[job.number] = begun[job.number] + job.takes_s
                heapq.heappush(free, ended[job.number])
        return Times(begun, ended, 0.0)


@dataclass(frozen=True)
class Times:
    """Seconds since the trace began, by number of the job.  ``acknowledged_s``: median of a submission's answer."""

    begun: dict[int, float]
    ended: dict[int, float]
    acknowledged_s: float

    def waits(self, trace: Trace) -> list[float]:
        """From the moment a job was due to its first line, sorted."""
        due = {job.number: one.at_s for one in trace.submissions for job in one.jobs}
        return sorted(at - due[number] for number, at in self.begun.items())

    @property
    def makespan_s(self) -> float:
        return max(self.ended.values(), default=0.0)


def trace(jobs: int, slots: int, seconds: float, seed: int = 6) -> Trace:
    """Submissions of eight jobs over so many seconds: 85 % of what the slots can do, in a Poisson stream, but for a
    tenth of them, which comes at once in the middle.  Durations are lognormal with a sigma of 0.6."""
    rng = random.Random(seed)
    number = jobs // TOGETHER
    at = [seconds / 2] * (number // 10)
    at += [rng.uniform(0, seconds) for _ in range(number - len(at))]
    draws = [rng.lognormvariate(0, 0.6) for _ in range(number * TOGETHER)]
    scale = 0.85 * seconds * slots / sum(draws)
    made = [Job(index + 1, draw * scale) for index, draw in enumerate(draws)]
    first = min(at)
    return Trace(
        slots,
        tuple(
            Submission(when - first, tuple(made[index * TOGETHER : (index + 1) * TOGETHER]))
            for index, when in enumerate(sorted(at))
        ),
    )


def replay(queue: Queue, what: Trace, folder: Path, limit_s: float) -> Times:
    """Send everything when it is due and wait for the last job, at most ``limit_s``; what ended until then counts."""
    ledger = folder / "ledger"
    wanted = len(what.jobs)
    answers = []
    began = time.time()
    for one in what.submissions:
        time.sleep(max(0.0, began + one.at_s - time.time()))
        asked = time.monotonic()
        queue.send(one.jobs)
        answers.append(time.monotonic() - asked)
    while _ended(ledger) < wanted and time.time() < began + limit_s:
        time.sleep(0.25)
    begun: dict[int, float] = {}
    ended: dict[int, float] = {}
    for line in ledger.read_text().splitlines() if ledger.exists() else ():
        number, which, at = line.split()
        where = begun if which == "begin" else ended
        if int(number) in where:
            print(f"job {number} ran twice", file=sys.stderr)
        where[int(number)] = float(at) - began
    return Times(begun, ended, sorted(answers)[len(answers) // 2])


def prepare(folder: Path) -> None:
    """Where the jobs of one run find their script, and leave their lines; whoever they run as may write there."""
    (folder / "job.sh").write_text(SCRIPT)


def _ended(ledger: Path) -> int:
    return ledger.read_bytes().count(b" end ") if ledger.exists() else 0
