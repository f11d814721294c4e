"""Clocks of two machines on one axis: KVM's offset, round trips, and what is impossible."""

from __future__ import annotations

import random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.documents.explanation import Alignment
from evenkeel.measure.explain.clocks import (
    Clock,
    by_drifting_round_trips,
    by_round_trips,
    guest_clock,
    narrowed,
    narrowed_with_drift,
)

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


# -- round trips, where KVM tells nothing -------------------------------------------------------------------------

#: Of a recording in raw ticks of the host: 10 s at 2 GHz.
END = HOST.base + 20_000_000_000


def guests(host_raw: int, offset: int, rate: float) -> int:
    """What the guest's counter is when the host's is ``host_raw``."""
    return offset + round((host_raw - HOST.base) * rate)


def trips_of(offset: int, rate: float, at: list[int], delays: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    """A trip begins at each of ``at``, and takes so long to the guest, and back."""
    return [
        (begin, guests(begin + out, offset, rate), begin + out + back)
        for begin, (out, back) in zip(at, delays, strict=True)
    ]


DELAYS = st.tuples(st.integers(1, 4_000_000), st.integers(1, 4_000_000))


@given(
    st.integers(-(2**50), 2**50),
    st.one_of(st.just(1.0), st.floats(1 - 5e-4, 1 + 5e-4), st.floats(0.4, 2.5)),
    st.lists(st.tuples(st.floats(0, 0.1), DELAYS), min_size=1, max_size=12),
    st.lists(st.tuples(st.floats(0.1, 0.99), DELAYS), max_size=6),
    st.lists(st.tuples(st.floats(0.9, 0.99), DELAYS), min_size=1, max_size=12),
)
def test_the_true_time_lies_within_the_bound_whatever_offset_drift_and_delays(
    offset: int,
    rate: float,
    begins: list[tuple[float, tuple[int, int]]],
    between: list[tuple[float, tuple[int, int]]],
    ends: list[tuple[float, tuple[int, int]]],
) -> None:
    timed = sorted([*begins, *between, *ends])
    at = [HOST.base + round(share * (END - HOST.base)) for share, _ in timed]
    trips = trips_of(offset, rate, at, [delay for _, delay in timed])
    found = by_drifting_round_trips(HOST, trips, END)
    if found is None:
        assert trips[0][1] == trips[-1][1]
        return
    clock, alignment = found
    for part in range(11):
        raw = HOST.base + (END - HOST.base) * part // 10
        true_ns = (raw - HOST.base) * HOST.ns_per_tick
        seen = int(clock.ns(np.array([guests(raw, offset, rate)]))[0])
        # Where the guest's counter is the slower one, one tick of it is more than one of the host's.
        assert abs(seen - true_ns) <= alignment.error_ns + max(1.0, 1 / rate)


def test_half_of_the_smallest_round_trip_bounds_the_error_at_both_ends() -> None:
    """Slow ones between them change nothing."""
    at = [HOST.base, HOST.base + 1_000_000, HOST.base + 10_000_000_000, END - 2_000_000, END - 4_000]
    delays = [(1000, 3000), (900_000, 900_000), (5_000_000, 4_000_000), (800_000, 1_000_000), (3000, 1000)]
    found = by_drifting_round_trips(HOST, trips_of(77, 1.00003, at, delays), END)
    assert found is not None
    assert found[1].method == "round trips" and 900 <= found[1].error_ns <= 1100


def test_one_way_that_is_slower_than_the_other_costs_nothing_beside_its_opposite() -> None:
    at = [HOST.base, HOST.base + 9_000_000, END - 18_000_000, END - 9_000_000]
    delays = [(10, 5_000_000), (5_000_000, 10), (10, 5_000_000), (5_000_000, 10)]
    found = by_drifting_round_trips(HOST, trips_of(77, 1.00003, at, delays), END)
    assert found is not None and found[1].error_ns <= 20


def test_one_set_of_round_trips_bounds_its_own_time_only() -> None:
    """What lies far from it may be anywhere: the drift is not known."""
    at = [HOST.base + n * 10_000_000 for n in range(10)]
    found = by_drifting_round_trips(HOST, trips_of(5, 1.0, at, [(100_000, 100_000)] * 10), END)
    assert found is not None and found[1].error_ns > 1_000_000
    assert by_drifting_round_trips(HOST, trips_of(5, 1.0, at[:1], [(10, 10)]), END) is None
    assert by_drifting_round_trips(HOST, [], END) is None


def test_a_guest_whose_counter_jumped_has_no_clock() -> None:
    at = [HOST.base, HOST.base + 6_000_000_000, HOST.base + 12_000_000_000, END]
    trips = trips_of(5, 1.0, at, [(1000, 1000)] * 4)
    trips[2] = (trips[2][0], trips[2][1] + 1_000_000_000, trips[2][2])
    assert by_drifting_round_trips(HOST, trips, END) is None


def test_what_is_impossible_narrows_a_clock_that_drifts() -> None:
    """A vCPU leaves the guest now and then, and writes nothing there until it is back."""
    chance, offset, rate = random.Random(5), 123_456_789, 1.00002
    outside, stamps, now = [], [], HOST.base
    while now < END:
        begin = now + chance.randrange(100_000, 1_500_000)
        end = begin + chance.randrange(200_000, 3_000_000)
        stamps += [now + 500, *(chance.randrange(now, begin) for _ in range(10)), begin - 500]
        outside.append((begin, end))
        now = end
    at = [HOST.base + n * 20_000_000 for n in range(8)] + [END - n * 20_000_000 for n in range(1, 9)]
    delays = [(chance.randrange(900_000, 2_000_000), chance.randrange(400_000, 900_000)) for _ in at]
    trips = trips_of(offset, rate, at, delays)
    seen = {0: np.array([guests(one, offset, rate) for one in stamps], np.int64)}
    rough = by_drifting_round_trips(HOST, trips, END)
    found = narrowed_with_drift(HOST, trips, END, {0: outside}, seen)
    assert rough is not None and found is not None
    clock, alignment = found
    assert rough[1].error_ns > 300_000 and alignment.error_ns < 2_000
    for part in range(11):
        raw = HOST.base + (END - HOST.base) * part // 10
        true_ns = (raw - HOST.base) * HOST.ns_per_tick
        assert abs(int(clock.ns(np.array([guests(raw, offset, rate)]))[0]) - true_ns) <= alignment.error_ns + 1
    assert narrowed_with_drift(HOST, trips, END, {}, seen) == rough
    # Events of somebody who was not away then prove nothing.
    others = {0: np.array([guests(at, offset, rate) for at in range(HOST.base, END, 1_000_000)], np.int64)}
    assert narrowed_with_drift(HOST, trips, END, {0: outside}, others) == rough
