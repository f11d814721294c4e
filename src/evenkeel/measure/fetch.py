"""Bring what a probe has kept of a recording to this side, piece by piece.  Must not decode it."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from typing import Any

from evenkeel.machines.protocol import OnProgress, Probe


def fetch(
    probe: Probe, answer: Mapping[str, Any], what: str, on_progress: OnProgress | None = None
) -> dict[int, bytes]:
    """``answer``: what a recording operation gave, of which ``id`` and ``bytes`` are used; it is dropped there.

    Returns the bytes of each CPU.  Raises ProbeError.
    """
    found = {}
    total, done = sum(answer["bytes"].values()), 0
    for cpu, size in sorted(answer["bytes"].items()):
        whole, offset = io.BytesIO(), 0 if size else None
        while offset is not None:
            piece = probe.call("recording_fetch", id=answer["id"], cpu=int(cpu), offset=offset)
            done += whole.write(zlib.decompress(base64.b64decode(piece["pages"])))
            offset = piece["next"]
            if on_progress:
                on_progress(done, total, f"fetching {what}")
        found[int(cpu)] = whole.getvalue()
    probe.call("recording_drop", id=answer["id"])
    return found
