"""The probe's CPU lists against the product's: two parsers, one meaning."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents import cpuset
from evenkeel.probe.facts import cpulist

CPUS = st.frozensets(st.integers(0, cpuset.MAX_CPU), max_size=80)


@given(CPUS)
def test_lists_agree_with_the_documents(cpus: frozenset[int]) -> None:
    text = cpuset.format_cpus(cpus)
    assert cpulist.format_list(cpus) == text
    assert cpulist.parse_list(text) == cpuset.parse_cpus(text) == cpus


@given(CPUS)
def test_masks_agree_with_the_documents(cpus: frozenset[int]) -> None:
    text = cpuset.format_mask(cpus)
    assert cpulist.parse_mask(text) == cpuset.parse_mask(text) == cpus


def test_what_kernels_print_for_nothing() -> None:
    for text in (None, "", "\n", " (null)", "(null)"):
        assert cpulist.parse_list(text) == frozenset()
    for text in (None, "", "0", "00000000,00000000"):
        assert cpulist.parse_mask(text) == frozenset()


@given(st.text(max_size=30))
def test_no_text_is_an_error(text: str) -> None:
    """What a strange kernel prints may be misunderstood, but must not end the probe."""
    assert isinstance(cpulist.parse_list(text[:8]), frozenset)
    assert isinstance(cpulist.parse_mask(text), frozenset)
