"""A real Slurm on this machine, as Debian's slurm-wlm brings it: one controller, several nodes that are all this host.

For the long tests of the executor and for the benchmark of the queue.  Root is needed.  Everything lies in one folder
and ends with the block.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel", "sinfo")
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
AuthType=auth/none
CredType=cred/none
StateSaveLocation={folder}/state
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
"""


def usable() -> bool:
    return os.geteuid() == 0 and all(map(shutil.which, PROGRAMS))


def _free_ports(number: int) -> list[int]:
    sockets = [socket.socket() for _ in range(number)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@dataclass
class Cluster:
    """Daemons by name: ``slurmctld``, and a slurmd for each node: ``n1``, ``n2`` ..."""

    folder: Path
    nodes: int
    log: IO[bytes]
    daemons: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    def start(self, name: str) -> None:
        words = ["slurmctld", "-D", "-i"] if name == "slurmctld" else ["slurmd", "-D", "-N", name]
        # In a session of its own: Ctrl-C in the terminal is for who runs this, who then ends it in order.
        self.daemons[name] = subprocess.Popen(words, stdout=self.log, stderr=self.log, start_new_session=True)

    def kill(self, name: str) -> None:
        """As a crash does.  What a slurmd had started goes on under processes of its own."""
        self.daemons[name].kill()
        self.daemons[name].wait()

    def until(self, states: str, seconds: float = 180) -> None:
        """Until all nodes are in one of ``states`` (words of sinfo, with ``|`` between)."""
        end = time.monotonic() + seconds
        while sum(int(line.split()[0]) for line in self._nodes() if line.split()[1] in states.split("|")) < self.nodes:
            assert time.monotonic() < end, f"the nodes never came: {self._nodes()}"
            time.sleep(0.05)

    def _nodes(self) -> list[str]:
        return _said("sinfo", "-h", "-o", "%D %t").splitlines()


@contextlib.contextmanager
def slurm(
    folder: Path, *, nodes: int = 2, cpus: int = 2, more: Sequence[str] = ("SchedulerParameters=sched_interval=1",)
) -> Iterator[Cluster]:
    """Run it in ``folder``, which is there, with so many nodes of so many CPUs; $SLURM_CONF leads its commands to it.

    ``more``: lines for slurm.conf.  Jobs that still run when the block ends are cancelled."""
    host = socket.gethostname().partition(".")[0]
    controller, *ports = _free_ports(1 + nodes)
    lines = [_CONFIG.format(folder=folder, host=host, controller=controller), *more]
    lines += [
        f"NodeName=n{number} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} RealMemory=500"
        for number, port in enumerate(ports, 1)
    ]
    lines.append(f"PartitionName=build Nodes=n[1-{nodes}] Default=YES MaxTime=INFINITE State=UP")
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")
    (folder / "state").mkdir()
    before = os.environ.get("SLURM_CONF")
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    with (folder / "out").open("wb") as log:
        cluster = Cluster(folder, nodes, log)
        try:
            for name in ("slurmctld", *(f"n{number + 1}" for number in range(nodes))):
                cluster.start(name)
            cluster.until("idle")
            yield cluster
        finally:
            running = list(cluster.daemons.values())
            subprocess.run(["scancel", "--user=root"], check=False, capture_output=True)
            until = time.monotonic() + 20
            while _said("squeue", "-h", "-o", "%i") and time.monotonic() < until:
                time.sleep(0.1)
            for process in reversed(running):
                process.terminate()
            for process in running:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:  # a step that hangs holds its slurmd
                    process.kill()
                    process.wait()
            os.environ.pop("SLURM_CONF") if before is None else os.environ.update(SLURM_CONF=before)


def _said(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout
