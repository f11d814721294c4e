"""Slurm: one controller and four nodes on this machine, one call of sbatch for each submission (a job array)."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.queues import Job
from tests.lab import slurm_cluster

NODES = 4
#: For many short jobs, by Slurm's own guide (high_throughput.html): first come first served, nothing delayed.
_QUICK = (
    "SchedulerType=sched/builtin",
    "SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,default_queue_depth=1000",
    "MaxJobCount=100000",
    "MinJobAge=10",
    "SlurmdParameters=config_overrides",  # a node has as many CPUs as is said, whatever this machine has
    "SlurmctldDebug=error",
    "SlurmdDebug=error",
)


def missing() -> str | None:
    """What it lacks here; None: nothing."""
    return None if slurm_cluster.usable() else "it needs root, and Debian's slurm-wlm"


@dataclass
class Slurm:
    folder: Path
    durable: str = "nothing at once: the controller saves its state in the background, within seconds"

    def send(self, jobs: Sequence[Job]) -> None:
        words = ["sbatch", "--parsable", "--no-requeue", f"--array=0-{len(jobs) - 1}", "--output=/dev/null"]
        subprocess.run(
            [*words, f"--chdir={self.folder}", str(self.folder / "array.sh"), *(
                word for job in jobs for word in (str(job.number), f"{job.takes_s:.3f}")
            )],
            check=True, capture_output=True,
        )  # fmt: skip


@contextlib.contextmanager
def running(folder: Path, slots: int) -> Iterator[Slurm]:
    # Which of the jobs it is, is said by the index in the array; then the same script as everywhere.
    (folder / "array.sh").write_text(
        f'#!/bin/bash\nshift $((2 * SLURM_ARRAY_TASK_ID))\nexec bash {folder}/job.sh "$1" "$2" {folder}/ledger\n'
    )
    with slurm_cluster.slurm(folder, nodes=NODES, cpus=slots // NODES, more=_QUICK):
        yield Slurm(folder)
