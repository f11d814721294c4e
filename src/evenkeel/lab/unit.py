"""The unit file for systemd that runs a lab.  Text only; the user puts it where it belongs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from evenkeel.apply.unit import quoted

_UNIT = """\
# Written by `evenkeel lab up --print-unit`.
[Unit]
Description=Evenkeel lab: pool of machines and queue of steps
Documentation=man:systemd.service(5)
Wants=network-online.target
After=network-online.target postgresql.service

[Service]
Type=exec
ExecStart={command}
SyslogIdentifier=evenkeel-lab
# A database that went away, or another service that took over: it stands by and comes back by itself.
Restart=always
RestartSec=2
# Settings that cannot be read do not get better by waiting.
RestartPreventExitStatus=2
# SIGTERM to the service alone, which ends its agent itself. Steps outlive a service that was killed: the next one finds
# them.
KillMode=process
TimeoutStopSec=30
StateDirectory=evenkeel/lab
StateDirectoryMode=0700
RuntimeDirectory=evenkeel
RuntimeDirectoryMode=0755
NoNewPrivileges=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""


def unit(options: Sequence[str]) -> str:
    """``options``: of ``evenkeel lab up``, one word each."""
    beside = Path(sys.executable).parent / "evenkeel"
    program = [str(beside)] if beside.exists() else [sys.executable, "-m", "evenkeel"]
    return _UNIT.format(command=" ".join(map(quoted, [*program, "lab", "up", *options])))
