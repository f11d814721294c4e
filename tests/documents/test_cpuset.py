"""CPU lists and masks: what the kernel prints is read, what it would read is printed, the rest is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from evenkeel.documents.cpuset import MAX_CPU, CpuSet, format_cpus, format_mask, parse_cpus, parse_mask

CPUS = st.frozensets(st.integers(0, MAX_CPU), max_size=80) | st.frozensets(st.integers(0, 70))


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("", set()),
        ("\n", set()),
        ("0", {0}),
        ("0-3", {0, 1, 2, 3}),
        ("0-1,8,10-11\n", {0, 1, 8, 10, 11}),
        ("2,1,2", {1, 2}),
        ("5-5", {5}),
        (" 1 , 3 ", {1, 3}),
        ("007", {7}),
    ],
)
def test_lists_are_read(text: str, cpus: set[int]) -> None:
    assert parse_cpus(text) == frozenset(cpus)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4-N", "'4-N'"),
        ("N", "'N'"),
        ("all", "'all'"),
        ("0-15:2/4", "'0-15:2/4'"),
        ("1,,2", "''"),
        (",", "''"),
        ("1-", "'1-'"),
        ("-1", "'-1'"),
        ("1-2-3", "'1-2-3'"),
        ("3-1", "runs backwards"),
        ("0x3", "'0x3'"),
        ("1.0", "'1.0'"),
        ("1;2", "'1;2'"),
        ("٣", "'٣'"),
        (f"{MAX_CPU + 1}", "beyond 8191"),
        ("0-999999999999", "beyond 8191"),
    ],
)
def test_what_is_not_a_list_is_refused_with_the_part_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"CPU|range") as caught:
        parse_cpus(text)
    assert message in str(caught.value)


def test_lists_are_packed_as_the_kernel_packs_them() -> None:
    assert format_cpus({3, 1, 0, 2, 8}) == "0-3,8"
    assert format_cpus([]) == ""
    assert format_cpus({0, 2, 4}) == "0,2,4"
    assert format_cpus({6, 7}) == "6-7"


@given(CPUS)
def test_a_list_comes_back(cpus: frozenset[int]) -> None:
    assert parse_cpus(format_cpus(cpus)) == cpus


@given(CPUS)
def test_the_list_is_the_shortest(cpus: frozenset[int]) -> None:
    """No two ranges of it touch: as many parts as there are CPUs whose predecessor is not in the set."""
    parts = [part for part in format_cpus(cpus).split(",") if part]
    assert len(parts) == sum(cpu - 1 not in cpus for cpu in cpus)


@given(st.text(alphabet="0123456789,- N:/x\n", max_size=12))
def test_any_text_is_a_list_or_a_value_error(text: str) -> None:
    try:
        cpus = parse_cpus(text)
    except ValueError:
        return
    assert parse_cpus(format_cpus(cpus)) == cpus


@pytest.mark.parametrize(
    ("text", "cpus"),
    [
        ("00000000,00000033\n", {0, 1, 4, 5}),
        ("ff", set(range(8))),
        ("1,00000000", {32}),
        ("80000000,00000000,00000001", {0, 95}),
        ("0", set()),
        ("", set()),
    ],
)
def test_masks_are_read(text: str, cpus: set[int]) -> None:
    assert parse_mask(text) == frozenset(cpus)


def test_masks_are_printed_in_groups_of_32_bits() -> None:
    assert format_mask({0, 1, 4, 5}) == "33"
    assert format_mask({32}) == "1,00000000"
    assert format_mask({0, 95}) == "80000000,00000000,00000001"
    assert format_mask([]) == "0"


@given(CPUS)
def test_a_mask_comes_back(cpus: frozenset[int]) -> None:
    assert parse_mask(format_mask(cpus)) == cpus


def test_in_a_document_a_set_is_its_list() -> None:
    adapter: TypeAdapter[frozenset[int]] = TypeAdapter(CpuSet)
    assert adapter.validate_python("2-3") == adapter.validate_python([3, 2]) == frozenset({2, 3})
    assert adapter.dump_json(frozenset({7, 2, 3})) == b'"2-3,7"'
    with pytest.raises(ValidationError, match="4-N"):
        adapter.validate_python("4-N")
    for wrong in (-1, 8192):
        with pytest.raises(ValidationError, match=f"there is no CPU {wrong}"):
            adapter.validate_python([0, wrong])
