"""This machine, through the same zipapp and the same conversation as any other."""

from __future__ import annotations

import sys

from evenkeel.errors import WrongInput
from evenkeel.machines.connection import ProcessProbe
from evenkeel.machines.protocol import OnProgress, Probe
from evenkeel.machines.zipapp import BOOTSTRAP


class LocalMachine:
    """The machine that Evenkeel runs on."""

    address = "local"
    read_only = False

    def probe(self) -> Probe:
        return ProcessProbe([sys.executable, "-I", "-c", BOOTSTRAP], machine=self.address)

    def reboot(self, *, on_progress: OnProgress | None = None, timeout_s: float = 600.0) -> None:
        raise WrongInput(
            "Evenkeel cannot reboot the machine that it runs on and go on afterwards",
            hint="run `evenkeel apply` without --reboot, reboot by hand, then run the same command again; "
            "or drive this host from another machine over ssh",
        )

    def close(self) -> None:
        pass
