"""A scope of systemd for an agent, whose cgroup is left to it, so that each step can have one of its own.

Not ``Delegate=`` in the unit of the service: its agent outlives a service that was killed, and systemd cannot put the
next service into a cgroup that gives controllers to those below it (EBUSY; Linux, Documentation/admin-guide/
cgroup-v2.rst, "No Internal Process Constraint").  Standard library only, for its test on a virtual host.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess

log = logging.getLogger("evenkeel.lab")
_TRY_S = 10.0


def words() -> list[str]:
    """What to put before a command so that it runs in a scope of its own; nothing where systemd did not start us.

    The process stays our child, with its own number: systemd-run becomes the command.  Tried first, because a machine
    may refuse it (no bus, no right): then steps are watched instead.
    """
    if "INVOCATION_ID" not in os.environ or not (program := shutil.which("systemd-run")):
        return []
    manager = [] if os.geteuid() == 0 else ["--user"]
    found = [program, *manager, "--scope", "--quiet", "--collect", "--property=Delegate=yes", "--"]
    try:
        done = subprocess.run(
            [*found, "true"], stdin=subprocess.DEVNULL, capture_output=True, timeout=_TRY_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        why = str(error)
    else:
        if done.returncode == 0:
            return found
        why = done.stderr.decode(errors="replace").strip()
    log.warning("the local agent gets no scope of systemd, so limits of its steps are watched: %s", why)
    return []
