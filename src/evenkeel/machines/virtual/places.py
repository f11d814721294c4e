"""Where virtual hosts keep things: one cache that can be deleted at any time, one state folder a host.

Nothing else of Evenkeel may write there, but for :mod:`evenkeel.measure.trace.calibration`, which has a small folder
in the cache.  Both obey XDG; no folder is made before it is needed.
"""

from __future__ import annotations

import os
from pathlib import Path

RECIPE = Path(__file__).parent


def _xdg(variable: str, fallback: str) -> Path:
    value = os.environ.get(variable, "")
    return (Path(value) if value.startswith("/") else Path.home() / fallback) / "evenkeel"


def cache_dir() -> Path:
    """Images and QEMU: large, shared by all hosts, made again when missing."""
    return _xdg("XDG_CACHE_HOME", ".cache")


def hosts_dir() -> Path:
    """One folder for every virtual host that was created."""
    return _xdg("XDG_STATE_HOME", ".local/state") / "virtual"
