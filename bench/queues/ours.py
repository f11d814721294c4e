"""Our queue as it comes: `evenkeel lab up` in a process of its own, its local agent, and REST over its socket."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.queues import Job
from tests.lab.service import up

from evenkeel.lab.client import Client


@dataclass
class Ours:
    client: Client
    folder: Path
    durable: str = "all of it, and each start and end: SQLite, WAL, synchronous=FULL"

    def send(self, jobs: Sequence[Job]) -> None:
        steps = {f"job{job.number}": {"step": {"kind": "job", "command": job.command(self.folder)}} for job in jobs}
        self.client.post("/submissions", {"graph": {"name": "trace", "steps": steps}})


@contextlib.contextmanager
def running(folder: Path, slots: int) -> Iterator[Ours]:
    lab = folder / "lab"
    lab.mkdir()
    (lab / "lab.yaml").write_text(f"agent_slots: {slots}\n")
    with up(lab) as service, service.client() as client:
        while not any(one["state"] == "online" for one in client.get("/agents")):
            time.sleep(0.1)
        yield Ours(client, folder)
