"""Versions of the programs that a plan needs.  Fixed command lines, all started at once, nothing read from a shell."""

from __future__ import annotations

import platform
import re
import subprocess
from functools import partial

from evenkeel.probe.facts.root import Root

#: Name in the document -> command.  Each prints its version in the first line.
_COMMANDS = {
    "libvirt": ("libvirtd", "--version"),
    "qemu": ("qemu-system-%s", "--version"),
    "systemd": ("systemctl", "--version"),
    "irqbalance": ("irqbalance", "--version"),
    "cyclictest": ("cyclictest", "--help"),
}
_VERSION = re.compile(r"(\d+(?:\.\d+)+|\d+)")
_PATIENCE_S = 20.0  # for all together: QEMU takes seconds on an emulated machine
_ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/libexec", "LC_ALL": "C"}


def read_programs(root: Root, architecture: str) -> dict[str, str]:
    """Name -> version; a program that is not installed is absent."""
    started: dict[str, subprocess.Popen[bytes]] = {}
    if root.live:
        for name, command in _COMMANDS.items():
            words = [word.replace("%s", architecture) for word in command]
            try:
                started[name] = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    env=_ENVIRONMENT,
                )
            except OSError:
                continue
    found = {name: root.ask("version " + name, partial(_version, started.get(name))) for name in _COMMANDS}
    found["python"] = root.ask("version python", platform.python_version)
    return {name: version for name, version in found.items() if version}


def _version(process: subprocess.Popen[bytes] | None) -> str | None:
    if process is None:
        return None
    try:
        said, _ = process.communicate(timeout=_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return None
    match = _VERSION.search((said.decode("utf-8", "replace").splitlines() or [""])[0])
    return match.group(1) if match else None
