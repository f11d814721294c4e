"""Times, durations and sizes as people read them."""

from __future__ import annotations

import pytest

from evenkeel.lab.pages.words import commands, when
from evenkeel.lab.words import ago, cause, details, duration, edits, moment, several, size, subject

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


def test_an_event_is_told_in_words_not_in_nanoseconds_and_numbers_of_rows() -> None:
    until = 1_795_946_400 * S
    data = {"machine": "host1", "machine_id": "f2", "until_ns": until, "length_ns": 7200 * S, "taken": False, "why": ""}
    assert details(data) == [
        ("machine", "host1"),
        ("until", "2026-11-29 10:00 UTC"),
        ("length", "2 h"),
        ("taken", "no"),
    ]
    fields = {"name": {"old": "a", "new": "b"}, "site": {"old": "", "new": "prg"}}
    assert details({"fields": fields}) == [("fields", "name a → b; site – → prg")]
    policy = {"old": {"prepare": "none", "install_ns": 60 * S}, "new": {"install_ns": 90 * S, "steps": False}}
    changed = [("prepare", "none", "–"), ("install", "1 min", "1 min 30 s"), ("steps", "–", "no")]
    assert edits({"policy": policy, "note": {"old": "", "new": None}}) == [*changed, ("note", "–", "–")]
    assert details({"fields": {"policy": policy}})[0][1].startswith("prepare none → –; install 1 min → ")
    assert subject("machine", "f2", {"name": "host1"}) == "machine host1"
    assert subject("claim", "4", {"name": "x"}) == "reservation 4" and subject("artifact", "", {}) == "artifact"
    assert (several(1, "machine"), several(2, "machine"), several(0, "comes", "come")) == (
        *("1 machine", "2 machines"),
        "0 come",
    )


def test_an_error_of_the_system_without_its_number() -> None:
    assert cause(ConnectionRefusedError(111, "Connection refused")) == "Connection refused"
    assert cause(OSError(2, "No such file or directory", "/x")) == "No such file or directory: '/x'"
    assert cause(TimeoutError()) == "TimeoutError"


def test_a_hint_for_a_terminal_reads_well_on_a_page() -> None:
    assert commands("`evenkeel lab search` shows <all>") == "<code>evenkeel lab search</code> shows &lt;all&gt;"
