"""Filters of the templates: ``{{ t | when }}`` a moment, with the exact one on hover; ``{{ t | ago(now_ns) }}``;
``{{ d | duration }}``; ``{{ n | size }}``.  The words themselves are in :mod:`evenkeel.lab.words`.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from markupsafe import Markup

from evenkeel.lab.words import ago, duration, moment, size

__all__ = ["FILTERS", "ago", "duration", "moment", "size", "when"]


def when(at_ns: int | None) -> Markup:
    """The moment as ``<time>``, in UTC, with seconds on hover; a script of the page shows it in the reader's zone."""
    if at_ns is None:
        return Markup("")
    exact = datetime.fromtimestamp(at_ns // 10**9, UTC)
    iso = exact.strftime("%Y-%m-%dT%H:%M:%SZ")
    return Markup('<time datetime="{0}" title="{0}">{1}</time>').format(iso, moment(at_ns))


FILTERS: dict[str, Callable[..., Any]] = {
    "when": when,
    "moment": moment,
    "duration": duration,
    "ago": ago,
    "size": size,
}
