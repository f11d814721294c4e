"""Clocks of two machines on one axis: KVM's offset, round trips, and what is impossible."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.explanation import Alignment
from evenkeel.measure.explain.clocks import Clock, by_round_trips, guest_clock, narrowed

HOST = Clock(base=1_000_000, ns_per_tick=0.5)


def test_an_offset_of_kvm_is_exact() -> None:
    found = guest_clock(HOST, {"offsets": {"0": -700_000, "1": -700_000}, "ratio": None, "fraction_bits": None})
    assert found is not None
    clock, alignment = found
    assert clock.ns(np.array([300_000, 300_010])).tolist() == [0, 5]
    assert alignment == Alignment(method="tsc-offset", error_ns=0)


def test_an_offset_as_kvm_prints_it_may_wrap() -> None:
    found = guest_clock(HOST, {"offsets": {"0": (1 << 64) - 700_000}})
    assert found is not None and found[0].ns(np.array([300_010])).tolist() == [5]


def test_a_scaled_counter() -> None:
    found = guest_clock(HOST, {"offsets": {"0": 0}, "ratio": 1 << 33, "fraction_bits": 32})  # twice as fast
    assert found is not None and found[0].ns(np.array([2_000_020])).tolist() == [5]


def test_vcpus_that_differ_widen_the_error() -> None:
    found = guest_clock(HOST, {"offsets": {"0": 0, "1": 100}})
    assert found is not None and found[1].error_ns == 50


def test_without_kvm_nothing_is_claimed() -> None:
    assert guest_clock(HOST, {"offsets": {}}) is None
    assert by_round_trips(HOST, []) is None
    assert by_round_trips(HOST, [(0, 1000, 10), (0, 9000, 10)]) is None  # they contradict each other


@given(
    st.integers(-(2**50), 2**50),
    st.lists(st.tuples(st.integers(0, 2**40), st.integers(1, 9999), st.integers(1, 9999)), min_size=1, max_size=20),
)
def test_round_trips_bound_the_true_offset(offset: int, trips: list[tuple[int, int, int]]) -> None:
    found = by_round_trips(HOST, [(at, at + out + offset, at + out + back) for at, out, back in trips])
    assert found is not None
    clock, alignment = found
    assert abs(clock.offset - offset) * HOST.ns_per_tick <= alignment.error_ns
    assert alignment.error_ns <= min(out + back for _, out, back in trips) * HOST.ns_per_tick / 2 + 1


def test_what_is_impossible_narrows_the_offset() -> None:
    """A CPU is taken away now and then; its events, seen through an unknown offset, fit only where it was there."""
    chance, offset, rough = random.Random(4), 123_456, 2_000_000
    absent, stamps, now = [], [], 0
    for _ in range(400):
        begin = now + chance.randrange(1_000_000, 3_000_000)
        end = begin + chance.randrange(200_000, 2_000_000)
        # it writes until it is taken away, and again as soon as it is back
        stamps += [begin - 500, *(chance.randrange(now, begin) for _ in range(30)), end + 500]
        absent.append((begin, end))
        now = end
    seen = {0: np.array(stamps, np.int64) + offset}
    start = Clock(HOST.base, HOST.ns_per_tick, offset + 700_000)
    wide = Alignment(method="round trips", error_ns=int(rough * HOST.ns_per_tick))
    clock, alignment = narrowed(HOST, wide, start, {0: absent}, seen)
    assert abs(clock.offset - offset) * HOST.ns_per_tick <= alignment.error_ns <= 1000
    assert narrowed(HOST, wide, start, {}, seen) == (start, wide)
