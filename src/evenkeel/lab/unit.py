"""The unit files for systemd that run a lab, and an agent of one.  Text only; the user puts them where they belong."""

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
# Its agent does what whoever submits steps likes, as this user. Without the line it is root, who alone has virtual
# hosts, and cgroups for steps.
#User=evenkeel
NoNewPrivileges=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""


_AGENT = """\
# Written by `evenkeel lab agent --print-unit`.
[Unit]
Description=Evenkeel agent: does steps for a lab
Documentation=man:systemd.service(5)
Wants=network-online.target
After=network-online.target evenkeel-lab.service

[Service]
Type=exec
# The token, of a lab elsewhere: EVENKEEL_LAB_TOKEN=ekl_..., readable for root alone.
EnvironmentFile=-/etc/evenkeel/agent.env
ExecStart={command}
SyslogIdentifier=evenkeel-agent
# The agent that comes next tells the lab what this one had done, and that no step of it runs any more.
Restart=always
RestartSec=2
# What it was told to do cannot be done; that does not get better by waiting.
RestartPreventExitStatus=2
# SIGTERM to the agent alone, which ends its steps itself. But whatever ends the agent, nothing of its cgroup outlives
# it: no step runs on here after the lab has given it to another agent.
KillMode=mixed
SendSIGKILL=yes
TimeoutStopSec=30
# A cgroup for each step, below the one of this unit, holds its limits.
Delegate=yes
StateDirectory=evenkeel/lab-agent
StateDirectoryMode=0700
# Steps do what whoever submits them likes, as this user. Without the line it is root.
#User=evenkeel
NoNewPrivileges=yes
ProtectSystem=full

[Install]
WantedBy=multi-user.target
"""


#: Of the agent, for its steps: whatever user it has, systemd gives it that.
AGENT_FOLDER = Path("/var/lib/evenkeel/lab-agent")


def unit(options: Sequence[str]) -> str:
    """``options``: of ``evenkeel lab up``, one word each; with the folder, which would be another one for its user."""
    return _UNIT.format(command=_command("up", options))


def agent_unit(options: Sequence[str]) -> str:
    """``options``: of ``evenkeel lab agent``, one word each."""
    return _AGENT.format(command=_command("agent", options))


def _command(verb: str, options: Sequence[str]) -> str:
    beside = Path(sys.executable).parent / "evenkeel"
    program = [str(beside)] if beside.exists() else [sys.executable, "-m", "evenkeel"]
    return " ".join(map(quoted, [*program, "lab", verb, *options]))
