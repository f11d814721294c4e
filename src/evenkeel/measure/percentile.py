"""Percentiles of a histogram.  Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable

from evenkeel.documents.histogram import Histogram


def percentile(histogram: Histogram, fraction: float) -> int | None:
    """Nanoseconds that this share of the samples did not exceed, as the upper edge of their bucket.

    ``fraction`` is above 0 and at most 1: 0.999 for "99.9 %".  None where the answer lies beyond the last bucket, or
    there is no sample: a guess would look like a measurement.  Never below the exact percentile, and above it
    by one unit or ``2 ** -bits`` of it at most.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"{fraction} is no share: above 0, at most 1")
    edges = ((histogram.upper_ns(bucket), histogram.counts[bucket]) for bucket in sorted(histogram.counts))
    return upper_edge(edges, histogram.samples, fraction)


def upper_edge(edges: Iterable[tuple[int, int]], total: int, fraction: float) -> int | None:
    """Of ``(upper edge, count)`` in rising order the first edge up to which there is ``fraction`` of ``total``."""
    if not total:
        return None
    # Of 1000 samples 99.9 % are 999, although 0.999 * 1000 in floating point may be a hair more.
    wanted = max(1, math.ceil(round(total * fraction, 6)))
    seen = 0
    for edge, count in edges:
        seen += count
        if seen >= wanted:
            return edge
    return None
