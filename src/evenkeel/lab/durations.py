"""How long steps take, learned by kind and key: quantiles, and the time-out of a step that names none.

Only steps that passed teach: a step that failed, hung or was lost says nothing of how long its like takes.
Class :class:`Durations` is pure; :func:`load` and :func:`add` read and write table ``duration``.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence

from sqlalchemy import Connection, insert, select, update

from evenkeel.lab import schema

#: The latest so many of each kind and key are kept: enough for quantiles, and an old compiler is soon forgotten.
KEPT = 100
#: A learned time-out: so many times the median of at least so many runs, and no shorter than that.
TIMEOUT_FACTOR = 3
TIMEOUT_FROM = 5
TIMEOUT_LEAST_NS = 60 * 10**9
#: Below this a kind's other keys are asked too.
_FEW = 3


class Durations:
    """By (kind, key): the latest durations in nanoseconds."""

    def __init__(self) -> None:
        self._latest: dict[tuple[str, str], deque[int]] = {}
        self._sorted: dict[tuple[str, str], tuple[int, ...]] = {}
        self._keys: dict[str, list[str]] = {}

    def copy(self) -> Durations:
        """An independent one, for another thread."""
        twin = Durations()
        twin._latest = {key: latest.copy() for key, latest in self._latest.items()}
        twin._keys = {kind: list(keys) for kind, keys in self._keys.items()}
        return twin

    def learn(self, kind: str, key: str, took_ns: int) -> None:
        latest = self._latest.get((kind, key))
        if latest is None:
            latest = self._latest[kind, key] = deque(maxlen=KEPT)
            self._keys.setdefault(kind, []).append(key)
        latest.append(took_ns)
        self._sorted.pop((kind, key), None)

    def like(self, kind: str, key: str) -> tuple[int, ...]:
        """Sorted durations of its like: of the same key, or of the whole kind while there are few; may be empty."""
        found = self._sorted.get((kind, key))
        if found is None:
            latest: Iterable[int] = self._latest.get((kind, key), ())
            if len(self._latest.get((kind, key), ())) < _FEW:
                latest = [took for other in self._keys.get(kind, ()) for took in self._latest[kind, other]]
                return tuple(sorted(latest))  # not kept: another key's next duration changes it
            found = self._sorted[kind, key] = tuple(sorted(latest))
        return found

    def median(self, kind: str, key: str) -> int | None:
        """None: nothing of this kind has passed yet."""
        found = self.like(kind, key)
        return quantile(found, 0.5) if found else None

    def timeout(self, kind: str, key: str) -> int | None:
        """The learned time-out of a step that names none; None while too few of its like have passed."""
        latest = self._latest.get((kind, key), ())
        if len(latest) < TIMEOUT_FROM:
            return None
        return max(TIMEOUT_LEAST_NS, TIMEOUT_FACTOR * quantile(sorted(latest), 0.5))


def quantile(ordered: Sequence[int], share: float) -> int:
    """Of a sorted sequence that is not empty; between two values by proportion."""
    at = share * (len(ordered) - 1)
    low = int(at)
    if low + 1 == len(ordered):
        return ordered[low]
    return round(ordered[low] + (at - low) * (ordered[low + 1] - ordered[low]))


def load(connection: Connection) -> Durations:
    """All that was learned."""
    durations = Durations()
    for kind, key, latest in connection.execute(
        select(schema.duration.c.kind, schema.duration.c.key, schema.duration.c.latest)
    ):
        for took_ns in latest:
            durations.learn(kind, key, took_ns)
    return durations


def add(connection: Connection, learned: Iterable[tuple[str, str, int]]) -> None:
    """(kind, key, nanoseconds) of steps that passed, within a change."""
    table = schema.duration.c
    by_key: dict[tuple[str, str], list[int]] = {}
    for kind, key, took_ns in learned:
        by_key.setdefault((kind, key), []).append(took_ns)
    for (kind, key), more in by_key.items():
        here = (table.kind == kind, table.key == key)
        known = connection.execute(select(table.latest, table.count).where(*here)).one_or_none()
        values = {
            "latest": [*(known[0] if known else ()), *more][-KEPT:],
            "count": (known[1] if known else 0) + len(more),
        }
        if known:
            connection.execute(update(schema.duration).where(*here).values(values))
        else:
            connection.execute(insert(schema.duration).values(values | {"kind": kind, "key": key}))
