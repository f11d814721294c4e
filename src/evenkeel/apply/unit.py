"""The unit file for systemd that applies a plan at every boot of its host.  Text only; the user puts it in its place.

Values of the running kernel are gone after a reboot.  The unit runs the very same apply as a person would: the boot
gate first, and nothing at all on a kernel that did not take the plan or is not the planned one.
"""

from __future__ import annotations

from collections.abc import Sequence

_UNIT = """\
# Written by `evenkeel apply --print-unit`.
[Unit]
Description=Evenkeel applies {name} once the boot gate passed
Documentation=man:systemd.service(5)
# After whoever else sets values at boot, or they would have the last word.
Wants=network-online.target
After=network-online.target systemd-sysctl.service irqbalance.service tuned.service
After=libvirtd.service virtqemud.service
# A host that needs a reboot, a drain or another plan is left as it is, and this unit has failed: see its log.

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart={command}
SyslogIdentifier=evenkeel
# A guest is given its memory while it starts.  SIGINT has apply undo what it wrote.
TimeoutStartSec=30min
KillSignal=SIGINT
TimeoutStopSec=5min

[Install]
WantedBy=multi-user.target
"""


def unit(name: str, command: Sequence[str]) -> str:
    """``name``: the plan; ``command``: absolute program and its arguments, one word each."""
    return _UNIT.format(name=name.replace("%", "%%"), command=" ".join(map(quoted, command)))


def quoted(word: str) -> str:
    """As systemd reads it (systemd.syntax(7), systemd.service(5)): ``%`` and ``$`` are its own."""
    word = word.replace("\\", "\\\\").replace("%", "%%").replace("$", "$$")
    if word and not any(sign in word for sign in " \t\"';"):
        return word
    return '"' + word.replace('"', '\\"') + '"'
