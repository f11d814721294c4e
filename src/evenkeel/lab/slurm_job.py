"""What a job of Slurm runs for a step: ``python -m evenkeel.lab.slurm_job FOLDER``, on a node (see lab.slurm)."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path
from typing import Any

from evenkeel.lab import protocol
from evenkeel.lab.client import Client
from evenkeel.lab.contents import Contents
from evenkeel.lab.executor import Job, Processes
from evenkeel.lab.protocol import Ended, Start
from evenkeel.lab.transfer import Here, There


def main(folder: Path) -> None:
    orders = json.loads((folder / "orders.json").read_text())
    reach = _reach(orders)
    job = Job(Start.model_validate(orders["start"]), Path(orders["folder"]))
    processes = Processes(orders["name"], "slurm", fetch=reach.fetch, bring=reach.bring)
    ended: list[Ended] = []
    # Whoever ends the job: the agent knows whether it asked for that, else the step is tried elsewhere.
    signal.signal(signal.SIGTERM, lambda *_: processes.cancel(job.attempt, "lost", "Slurm ended the job"))
    thread = processes.begin(job, ended.append)
    while thread.is_alive():
        thread.join(0.2)  # so that signals are heard
    temporary = folder / "result.new"
    temporary.write_bytes(protocol.encode(ended[0]))
    temporary.replace(folder / "result.json")


def _reach(orders: dict[str, Any]) -> Here | There:
    if "contents" in orders:
        return Here(Contents(Path(orders["contents"])))
    return There(Client(orders["url"], Path(orders["token_file"]).read_text().strip()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
