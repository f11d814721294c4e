"""Times, durations and sizes as people read them."""

from __future__ import annotations

import pytest

from evenkeel.lab.pages.words import when
from evenkeel.lab.words import ago, duration, moment, size

S = 10**9


@pytest.mark.parametrize(
    ("ns", "text"),
    [
        (None, ""),
        (0, "0 s"),
        (250_000_000, "250 ms"),
        (45 * S, "45 s"),
        (125 * S, "2 min 5 s"),
        (3600 * S, "1 h"),
        (-90 * S, "-1 min 30 s"),
        (187_200 * S, "2 d 4 h"),
        (999_700_000, "1 s"),
        (59 * S + 600_000_000, "1 min"),
    ],
)
def test_duration(ns: int | None, text: str) -> None:
    assert duration(ns) == text


def test_ago_and_moment_and_size() -> None:
    assert ago(None, 5) == "never"
    assert ago(10 * S, 70 * S) == "1 min ago"
    assert ago(70 * S, 10 * S) == "in 1 min"
    assert moment(1_795_946_400 * S) == "2026-11-29 10:00"
    assert moment(None) == "" and when(None) == ""
    assert 'datetime="2026-11-29T10:00:00Z"' in when(1_795_946_400 * S)
    assert [size(n) for n in (0, 1023, 1536, 200 << 20, 5 << 40)] == ["0 B", "1023 B", "1.5 KiB", "200 MiB", "5120 GiB"]
