"""Pages of long lists, by cursor: what comes after the last row that was seen, so that nothing is skipped or doubled.

A service function that lists takes ``after`` (a cursor) and ``limit``, selects ``limit + 1`` rows beyond
``key_of(after)``, and hands them to :func:`page`.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from evenkeel.documents.base import Model
from evenkeel.errors import WrongInput

T = TypeVar("T")
#: Rows of a page, if none is asked for, and at most.
DEFAULT, MOST = 100, 1000


class Page(Model, Generic[T]):
    """``next``: the cursor of the page after this one; None: this is the last one."""

    items: tuple[T, ...]
    next: str | None = None


def page(rows: Sequence[T], limit: int, key: Callable[[T], Sequence[str | int]]) -> Page[T]:
    """``rows``: up to ``limit + 1`` of them, in order; ``key``: of a row, by which the list is sorted."""
    items = tuple(rows[:limit])
    return Page(items=items, next=_cursor(key(items[-1])) if len(rows) > limit and items else None)


def _cursor(key: Sequence[str | int]) -> str:
    return base64.urlsafe_b64encode(json.dumps(list(key), separators=(",", ":")).encode()).decode().rstrip("=")


def key_of(cursor: str | None, *kinds: type[str] | type[int]) -> list[str | int] | None:
    """The key of the last row that was seen, its parts of these types; None without a cursor.  Raises WrongInput."""
    if not cursor:
        return None
    try:
        key = json.loads(base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)))
    except (ValueError, binascii.Error, RecursionError):
        key = None
    if (
        not isinstance(key, list)
        or len(key) != len(kinds)
        or any(type(p) is not k for p, k in zip(key, kinds, strict=True))
    ):
        raise WrongInput(f"{cursor[:60]!r} is no cursor of this list", hint="take `next` as it was answered")
    if any(isinstance(part, int) and abs(part) >= 1 << 63 for part in key):
        raise WrongInput(f"{cursor[:60]!r} is no cursor of this list", hint="take `next` as it was answered")
    return key
