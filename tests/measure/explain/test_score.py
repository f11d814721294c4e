"""The score is strict: nothing for slack, nothing for the right cause at the wrong time."""

from __future__ import annotations

from evenkeel.documents.explanation import NO_CAUSE, Charge, Kind, Spike
from evenkeel.measure.explain.score import Injection, explained, explained_by_named, score
from tests.report.test_timeline import explanation

MS = 1_000_000
HOG = Injection("hog", frozenset({Kind.waits}), "hog", 100 * MS, 110 * MS)


def late(at_ms: int, *charges: tuple[Kind, str, int]) -> Spike:
    total = sum(ms for *_, ms in charges)
    parts = tuple(Charge(kind=kind, who=who, ns=ms * MS, named=kind not in NO_CAUSE) for kind, who, ms in charges)
    return Spike(at_ns=at_ms * MS, vcpu=1, latency_ns=total * MS, charges=parts)


def of(*spikes: Spike) -> tuple[int, int, int, int]:
    found = score(explanation(spikes=spikes), [HOG], "hog")
    return found.injected, found.found, found.named, found.true


def test_found_and_true() -> None:
    assert of(late(110, (Kind.waits, "hog", 9), (Kind.unexplained, "", 1))) == (1, 1, 1, 1)


def test_the_right_cause_at_the_wrong_time_is_neither() -> None:
    assert of(late(500, (Kind.waits, "hog", 9))) == (1, 0, 1, 0)


def test_another_cause_at_the_right_time_is_neither() -> None:
    assert of(late(110, (Kind.waits, "backup", 9))) == (1, 0, 1, 0)
    assert of(late(110, (Kind.guest_thread, "hog", 9))) == (1, 0, 1, 0)


def test_what_comes_with_a_cause_is_true_and_does_not_find_it() -> None:
    one = Injection("hog", HOG.kinds, HOG.who, HOG.start_ns, HOG.end_ns, "exits CPUID")
    for at, true in ((110, 1), (500, 0)):
        found = score(explanation(spikes=(late(at, (Kind.exits, "CPUID", 9)),)), [one], "hog")
        assert (found.found, found.named, found.true) == (0, 1, true)


def test_slack_and_the_unexplained_earn_and_cost_nothing() -> None:
    assert of(late(110, (Kind.asleep, "", 5), (Kind.unexplained, "", 5), (Kind.below, "make", 5))) == (1, 0, 0, 0)


def test_a_little_is_no_verdict() -> None:
    small = Spike(at_ns=500 * MS, vcpu=1, latency_ns=MS, charges=(Charge(kind=Kind.exits, who="MSR", ns=MS // 5),))
    assert of(small) == (1, 0, 0, 0)


def test_a_spike_is_explained_by_its_causes_only() -> None:
    good = late(10, (Kind.waits, "hog", 8), (Kind.asleep, "", 2))
    bad = late(20, (Kind.waits, "hog", 7), (Kind.asleep, "", 3))
    short = late(30, (Kind.unexplained, "", 1))
    assert explained([good, bad, short], 2 * MS) == (1, 2)
    assert explained([good, bad, short], 10 * MS) == (1, 2), "as late as that is late"


def test_strictly_it_is_explained_by_named_causes_only() -> None:
    """Time that is charged to what is never named earns nothing, nor does what nobody injects."""
    named = late(10, (Kind.waits, "hog", 8), (Kind.asleep, "", 2))
    way = Charge(kind=Kind.guest_kernel, who="from halt to interrupt", ns=2 * MS, usual_ns=2 * MS)
    hog = Charge(kind=Kind.waits, who="hog", ns=8 * MS, named=True)
    half = Charge(kind=Kind.waits, who="hog", ns=6 * MS, named=True)
    other = Charge(kind=Kind.waits, who="backup", ns=4 * MS)
    spikes = [
        named,
        Spike(at_ns=20 * MS, vcpu=1, latency_ns=10 * MS, charges=(hog, way)),
        Spike(at_ns=30 * MS, vcpu=1, latency_ns=10 * MS, charges=(half, other)),
        Spike(at_ns=40 * MS, vcpu=1, latency_ns=2 * MS, charges=(way,)),
    ]
    assert explained(spikes, 2 * MS) == (4, 4)
    assert explained_by_named(spikes, 2 * MS) == (2, 4)
    under = [late(50, (Kind.below, "make", 9), (Kind.unexplained, "", 1))]
    assert explained_by_named(under, MS) == (0, 1) and explained_by_named(under, MS, below=True) == (1, 1)
    assert explained_by_named([late(60, (Kind.asleep, "", 9))], MS, below=True) == (0, 1)
