"""The unit file for systemd that runs a watcher.  Text only; the user puts it where it belongs."""

from __future__ import annotations

from collections.abc import Sequence

from evenkeel.apply.unit import quoted

_UNIT = """\
# Written by `evenkeel watch --print-unit`.
[Unit]
Description=Evenkeel watches {name} for drift
Documentation=man:systemd.service(5)
Wants=network-online.target
After=network-online.target libvirtd.service

[Service]
ExecStart={command}
# What it says has a priority in front of each line: journalctl -p warning shows the drifts alone.
SyslogLevelPrefix=yes
SyslogIdentifier=evenkeel
# A host that does not answer is tried again by the watcher itself; this is for a site that cannot be planned yet.
Restart=on-failure
RestartSec=30
# A plan that cannot be read does not get better by waiting.
RestartPreventExitStatus=2
# SIGTERM lets a repair that is under way end.
KillMode=mixed
TimeoutStopSec=90
Nice=5

[Install]
WantedBy=multi-user.target
"""


def unit(name: str, command: Sequence[str]) -> str:
    """``name``: what is watched; ``command``: absolute program and its arguments, one word each."""
    return _UNIT.format(name=name.replace("%", "%%"), command=" ".join(map(quoted, command)))
