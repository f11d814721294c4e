"""Journal: what was really written on a host.  Old value, new value, value read back, when.

The probe appends one line a step to the journal file on the host and syncs it to disk *before* it writes; this is
the model of that file once it is read back.
"""

from __future__ import annotations

from typing import Any, Literal

from evenkeel.documents.base import Document, Model


class JournalEntry(Model):
    """One line.  ``intent`` is on disk before the write; ``done``, ``refused`` or ``undone`` follow it."""

    sequence: int
    at: str  # UTC, RFC 3339
    event: Literal["begin", "intent", "done", "refused", "undone", "reboot", "gate", "end"]
    plan_sha256: str
    setting: str | None = None  # Setting.id
    phase: str | None = None
    #: The operation as sent to the probe: enough to write it again or to undo it without the plan.
    step: dict[str, Any] | None = None
    old: str | None = None  # exact content before; None: did not exist
    wanted: str | None = None
    read_back: str | None = None
    errno: str | None = None
    message: str | None = None


class Journal(Document):
    kind: Literal["Journal"] = "Journal"
    version: Literal[1] = 1
    host: str
    entries: tuple[JournalEntry, ...] = ()
