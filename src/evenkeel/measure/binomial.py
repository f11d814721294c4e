"""What a count of rare events says about their rate: exact intervals of the binomial distribution.  Pure.

Everything here assumes samples that are independent of each other.  Judges nothing.

Source: C. J. Clopper, E. S. Pearson, "The use of confidence or fiducial limits", Biometrika 26 (1934); the regularised
incomplete beta function by its continued fraction, NIST Digital Library of Mathematical Functions, 8.17.22.
"""

from __future__ import annotations

import math
from collections.abc import Callable

CONFIDENCE = 0.95


def rate_at_most(events: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """Upper bound of a rate of which ``events`` were seen in ``samples`` (Clopper-Pearson, one-sided).

    For no event it is ``1 - (1 - confidence) ** (1 / samples)``, about 3 / samples at 95 %.  1 where nothing is known.
    """
    _check(events, samples)
    if events == samples:
        return 1.0
    if events == 0:
        return -math.expm1(math.log1p(-confidence) / samples)
    # P(X <= events | p) falls with p; the bound is where it is as unlikely as the confidence leaves.
    return _where(lambda p: at_most(events, samples, p) - (1 - confidence))


def rate_at_least(events: int, samples: int, confidence: float = CONFIDENCE) -> float:
    """Lower bound of that rate (Clopper-Pearson, one-sided).  0 where no event was seen."""
    _check(events, samples)
    if events == 0:
        return 0.0
    return _where(lambda p: at_most(events - 1, samples, p) - confidence)


def samples_needed(rate: float, confidence: float = CONFIDENCE) -> int:
    """Samples without an event that exclude a rate above ``rate``."""
    if not 0 < rate < 1:
        raise ValueError(f"{rate} is no rate: above 0, below 1")
    return math.ceil(math.log1p(-confidence) / math.log1p(-rate))


def at_most(events: int, samples: int, rate: float) -> float:
    """P(X <= events) for X binomial (samples, rate)."""
    if events < 0:
        return 0.0
    if events >= samples:
        return 1.0
    return _beta(samples - events, events + 1, 1 - rate)


def quantile_ranks(samples: int, share: float, confidence: float) -> tuple[int, int]:
    """Ranks (from 1) of two sorted samples between which the quantile ``share`` lies, whatever the distribution.

    0: below the smallest sample; ``samples + 1``: beyond the largest.  With at least this ``confidence``.
    """
    error = (1 - confidence) / 2
    # The quantile is below the sample of rank r when fewer than r samples are at or below it: X < r.
    low = _largest(samples, lambda rank: at_most(rank - 1, samples, share) <= error)
    high = samples + 1 - _largest(samples, lambda rank: 1 - at_most(samples - rank, samples, share) <= error)
    return low, high


def _largest(samples: int, holds: Callable[[int], bool]) -> int:
    """Largest rank from 0 to ``samples`` of those from 0 on for which something holds."""
    low, high = 0, samples + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _check(events: int, samples: int) -> None:
    if not 0 <= events <= samples or samples < 1:
        raise ValueError(f"{events} of {samples} is no count of events")


def _where(falling: Callable[[float], float]) -> float:
    """Zero of a function that falls from 0 to 1."""
    low, high = 0.0, 1.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if falling(middle) > 0 else (low, middle)
    return (low + high) / 2


def _beta(a: float, b: float, x: float) -> float:
    """Regularised incomplete beta function I_x(a, b)."""
    if x <= 0:
        return 0.0
    if x >= 1:
        return 1.0
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side
        return 1.0 - _beta(b, a, 1 - x)
    front = math.exp(math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)) / a
    tiny = 1e-300
    c, d = 1.0, 1 - (a + b) * x / (a + 1)
    d = 1 / (d if abs(d) > tiny else tiny)
    total = d
    for m in range(1, 100_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 + numerator * d
            d = 1 / (d if abs(d) > tiny else tiny)
            c = 1 + numerator / c
            c = c if abs(c) > tiny else tiny
            total *= c * d
        if abs(c * d - 1) < 1e-14:
            break
    return front * total
