"""A lab of its own for each test: SQLite in a folder, with a clock that stands unless it is told to move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.lab.lab import Lab
from evenkeel.lab.store import Store, create, sqlite_url


class Clock:
    """Nanoseconds since 1970; starts on 2026-11-29 10:00 UTC."""

    def __init__(self) -> None:
        self.at_ns = 1_795_946_400 * 10**9

    def __call__(self) -> int:
        return self.at_ns

    def move(self, seconds: float) -> None:
        self.at_ns += round(seconds * 1e9)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lab(tmp_path: Path, clock: Clock) -> Iterator[Lab]:
    with Store(sqlite_url(tmp_path / "lab.db"), clock=clock) as store:
        create(store)
        yield Lab(tmp_path, store)
