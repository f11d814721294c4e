"""What a job of Slurm runs for a step: ``python -m evenkeel.lab.slurm_job FOLDER``, on a node (see lab.slurm)."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path
from typing import Any

from evenkeel.lab import protocol
from evenkeel.lab.client import Client
from evenkeel.lab.contents import Contents
from evenkeel.lab.executor import Job, Processes
from evenkeel.lab.protocol import Ended, Start
from evenkeel.lab.transfer import Here, There

#: So often it is looked whether the attempt still counts.
_LOOK_S = 2.0


def main(folder: Path) -> None:
    orders = json.loads((folder / "orders.json").read_text())
    reach = _reach(orders)
    job = Job(Start.model_validate(orders["start"]), Path(orders["folder"]))
    processes = Processes(orders["name"], "slurm", fetch=reach.fetch, bring=reach.bring)
    ended: list[Ended] = []
    # Whoever ends the job: the agent knows whether it asked for that, else the step is tried elsewhere.
    signal.signal(signal.SIGTERM, lambda *_: processes.cancel(job.attempt, "lost", "Slurm ended the job"))
    thread = processes.begin(job, ended.append)
    looked = time.monotonic()
    while thread.is_alive():
        thread.join(0.2)  # so that signals are heard
        if time.monotonic() - looked > _LOOK_S:
            looked = time.monotonic()
            # Its agent gave it up, because Slurm lost sight of this node or forgot the job, and the step may begin
            # again elsewhere any moment.  Slurm itself would end it when it hears of it, if ever.
            if _given_up(folder):
                processes.cancel(job.attempt, "lost", "its agent has given it up")
    if _given_up(folder):
        return
    temporary = folder / "result.new"
    temporary.write_bytes(protocol.encode(ended[0]))
    temporary.replace(folder / "result.json")


def _given_up(folder: Path) -> bool:
    """A folder that cannot be looked at now, because what it is shared from is away, says nothing."""
    try:
        return not (folder / "orders.json").exists()
    except OSError:
        return False


def _reach(orders: dict[str, Any]) -> Here | There:
    if "contents" in orders:
        return Here(Contents(Path(orders["contents"])))
    return There(Client(orders["url"], Path(orders["token_file"]).read_text().strip()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
