"""Filters of the templates: ``{{ t | when }}`` a moment, with the exact one on hover; ``{{ t | ago(now_ns) }}``;
``{{ d | duration }}``; ``{{ n | size }}``.  The words themselves are in :mod:`evenkeel.lab.words`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

from markupsafe import Markup, escape

from evenkeel.lab.words import ago, details, duration, edits, moment, several, size, subject

__all__ = ["FILTERS", "ago", "duration", "moment", "size", "when"]


def when(at_ns: int | None) -> Markup:
    """The moment as ``<time>``, in UTC, with seconds on hover; a script of the page shows it in the reader's zone."""
    if at_ns is None:
        return Markup("")
    exact = datetime.fromtimestamp(at_ns // 10**9, UTC)
    iso = exact.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(iso, moment(at_ns))


def commands(text: str) -> Markup:
    """What stands between backticks as code: hints are written for a terminal first."""
    return Markup("").join(
        Markup("<code>{}</code>").format(part) if odd % 2 else escape(part) for odd, part in enumerate(text.split("`"))
    )


def there(event: Any) -> str:
    """The page of what an event is about; empty where there is none."""
    if event.object == "machine":
        return f"/machines/{event.object_id}"  # outlives a new name
    paths = {"claim": "/reservations", "submission": "/submissions", "step": "/steps", "principal": "/people"}
    paths |= {"webhook": "/webhooks"}
    return f"{paths[event.object]}/{quote(event.object_id, safe='')}" if event.object in paths else ""


FILTERS: dict[str, Callable[..., Any]] = {
    "when": when,
    "moment": moment,
    "duration": duration,
    "ago": ago,
    "size": size,
    "commands": commands,
    "details": details,
    "edits": edits,
    "several": several,
    "subject": lambda event: subject(event.object, event.object_id, event.data),
    "there": there,
}
