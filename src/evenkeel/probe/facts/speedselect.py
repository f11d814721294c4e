"""Intel Speed Select: which of its features the running profile has, as intel-speed-select(8) tells.

No file tells; the program asks the hardware's mailbox, and only its questions are used.  Which cores have the higher
base frequency is in sysfs (base_khz of each CPU).  Source: Documentation/admin-guide/pm/intel-speed-select.rst.
"""

from __future__ import annotations

import re
import subprocess

from evenkeel.probe.facts.root import Root

_COMMAND = ("intel-speed-select", "--format", "json", "perf-profile", "info")
_DEVICE = "/dev/isst_interface"
_PATIENCE_S = 10.0
_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
#: Both of its formats have these lines; its JSON is not always JSON (commas before closing braces), so lines it is.
_FEATURE = re.compile(r'"?speed-select-(base-freq|turbo-freq|core-power)"?\s*:\s*"?(enabled|disabled|unsupported)\b')
_RANK = ("unsupported", "disabled", "enabled")


def read_speed_select(root: Root) -> dict[str, str] | None:
    """``base-freq``, ``turbo-freq``, ``core-power`` -> enabled, disabled or unsupported; None: it cannot be known.

    Of several packages and profiles the most that one has counts: a profile that is not in force has nothing enabled.
    """
    said = root.ask("intel-speed-select", lambda: _ask() if root.exists(_DEVICE) else None)
    found: dict[str, str] = {}
    for feature, state in _FEATURE.findall(said if isinstance(said, str) else ""):
        found[feature] = max(found.get(feature, state), state, key=_RANK.index)
    return found or None


def _ask() -> str | None:
    try:
        done = subprocess.run(
            _COMMAND,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,  # where it prints unless it is given a file
            env=_ENVIRONMENT,
            timeout=_PATIENCE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None
