"""Procrastinate on PostgreSQL: a server of its own, a worker with so many slots, and a client in another process."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.queues import Job
from tests.lab import postgres
from tools.environment import environment

HERE = Path(__file__).parent


def missing() -> str | None:
    """What it lacks here; None: nothing."""
    return None if postgres.BIN is not None else "Debian's postgresql is not installed"


@dataclass
class Procrastinate:
    client: subprocess.Popen[str]
    folder: Path
    durable: str = "all of it, and each start and end: PostgreSQL as it comes, fsync and synchronous_commit on"

    def send(self, jobs: Sequence[Job]) -> None:
        assert self.client.stdin and self.client.stdout
        self.client.stdin.write(json.dumps([job.command(self.folder) for job in jobs]) + "\n")
        self.client.stdin.flush()
        if self.client.stdout.readline() != "sent\n":
            raise RuntimeError("Procrastinate's client ended")


@contextlib.contextmanager
def running(folder: Path, slots: int) -> Iterator[Procrastinate]:
    name = "Procrastinate from its package"
    python = environment(".venv-procrastinate", HERE / "requirements.txt", name) / "python"
    with postgres.running(folder=folder / "pg") as server:
        # -P: beside its script lies this module, which is called as it is.
        words = [str(python), "-P", str(HERE / "procrastinate_peer.py"), server.database(), str(slots)]
        subprocess.run([*words, "schema"], check=True)
        with _process([*words, "worker"]), _process([*words, "client"]) as client:
            yield Procrastinate(client, folder)


@contextlib.contextmanager
def _process(words: Sequence[str]) -> Iterator[subprocess.Popen[str]]:
    """One of its two, when it is ready; ended with its jobs."""
    process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout
        if process.stdout.readline() != "ready\n":
            raise RuntimeError("Procrastinate did not start; what it said stands above")
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
