"""Durations and sizes: a number with its unit, exact, and nothing guessed."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evenkeel.documents.quantity import (
    Bytes,
    Nanoseconds,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("100us", 100_000),
        ("100 us", 100_000),
        ("100µs", 100_000),  # micro sign
        ("100μs", 100_000),  # Greek mu
        ("1.5ms", 1_500_000),
        ("2s", 2_000_000_000),
        ("3min", 180_000_000_000),
        ("1h", 3_600_000_000_000),
        ("0ns", 0),
        (" 7ns\n", 7),
    ],
)
def test_durations(text: str, value: int) -> None:
    assert parse_duration(text) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [("4GiB", 4 << 30), ("1.5GiB", 3 << 29), ("0B", 0), ("2 MiB", 2 << 20), ("1TiB", 1 << 40), ("0.5KiB", 512)],
)
def test_sizes(text: str, value: int) -> None:
    assert parse_size(text) == value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("100", "'100' has no unit; units are ns, us, ms, s, min, h, d"),
        ("100US", "did you mean 100us?"),
        ("100usec", "unknown unit 'usec'"),
        ("-1us", "not a duration"),
        ("1e3us", "not a duration"),
        ("us", "not a duration"),
        ("", "not a duration"),
        ("1:30", "not a duration"),
        ("0.1ns", "not a whole number of ns"),
        ("٣us", "not a duration"),
        ("1 2us", "not a duration"),
    ],
)
def test_what_is_not_a_duration(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_duration(text)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4096", "'4096' has no unit; units are B, KiB, MiB, GiB, TiB"),
        ("4GB", "did you mean 4GiB?"),
        ("4gb", "did you mean 4GiB?"),
        ("4G", "did you mean 4GiB?"),
        ("4gib", "did you mean 4GiB?"),
        ("4us", "unknown unit 'us' in '4us'; units are"),
        ("0.3B", "not a whole number of B"),
        ("1,5GiB", "not a size"),
    ],
)
def test_what_is_not_a_size(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        parse_size(text)
    assert message in str(caught.value)


@given(st.integers(0, 1 << 70))
def test_printing_is_exact_and_in_the_largest_unit(value: int) -> None:
    assert parse_size(format_size(value)) == value
    assert parse_duration(format_duration(value)) == value


def test_printing() -> None:
    assert [format_size(size) for size in (0, 1, 1024, 3 << 20, 1025)] == ["0B", "1B", "1KiB", "3MiB", "1025B"]
    assert [format_duration(time) for time in (0, 999, 100_000, 60_000_000_000)] == ["0ns", "999ns", "100us", "1min"]


@given(st.text(max_size=20))
def test_any_text_is_a_quantity_or_a_value_error(text: str) -> None:
    for parse in (parse_duration, parse_size):
        with contextlib.suppress(ValueError):
            assert parse(text) >= 0


def test_in_a_document_a_quantity_is_an_integer() -> None:
    size: TypeAdapter[int] = TypeAdapter(Bytes)
    time: TypeAdapter[int] = TypeAdapter(Nanoseconds)
    assert (size.validate_python("4GiB"), size.validate_python(4096)) == (4 << 30, 4096)
    assert (time.validate_python("100us"), time.dump_json(100)) == (100_000, b"100")
    for wrong in (True, 1.5, None, "4096", [1]):
        with pytest.raises(ValidationError):
            size.validate_python(wrong)
