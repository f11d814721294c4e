"""How latencies went over time: a run cut into slices of equal length, a small histogram of each.

Bounded however long the run was: at most :data:`MOST` slices, which are merged by twos when there would be more.  Pure
arithmetic.  Says where in a run samples were late, for a heat map; what is proven is a matter of the whole histogram.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Self

from pydantic import Field, model_validator

from evenkeel.documents.base import Model
from evenkeel.documents.histogram import Histogram, bucket_of

#: Slices at most.  Longer runs have between half as many and as many.
MOST = 128
#: Eight buckets for each doubling: a bucket is at most 12.5 % as wide as what it holds, finer than an eye tells.
BITS = 3
#: Slices of a short run: an eighth of a second.
SHORTEST_NS = 125_000_000


class Slice(Model):
    """Samples that were due in one stretch of time.  ``counts``: lower edge of a bucket, in units of the course."""

    max_ns: Annotated[int, Field(ge=0)]  # exact; 0 without samples
    counts: dict[Annotated[int, Field(ge=0)], Annotated[int, Field(gt=0)]]

    @property
    def samples(self) -> int:
        return sum(self.counts.values())


class Course(Model):
    """Slice N is from ``N * slice_ns`` to ``(N + 1) * slice_ns`` after the first sample was due.

    Buckets are those of :class:`~evenkeel.documents.histogram.Histogram` with ``bits``.  A tool may keep fewer samples
    here than it counted: cyclictest does not tell its last ones.
    """

    slice_ns: Annotated[int, Field(gt=0)]
    bucket_ns: Annotated[int, Field(gt=0)] = 1000
    bits: Annotated[int, Field(ge=1, le=20)] = BITS
    slices: Annotated[tuple[Slice, ...], Field(max_length=MOST)]

    @model_validator(mode="after")
    def _edges(self) -> Self:
        for low in {low for one in self.slices for low in one.counts}:
            if bucket_of(low, self.bits) != low:
                raise ValueError(f"no bucket begins at {low}")
        return self

    @property
    def samples(self) -> int:
        return sum(one.samples for one in self.slices)

    @property
    def length_ns(self) -> int:
        return self.slice_ns * len(self.slices)

    def histogram(self, number: int) -> Histogram:
        """Of one slice."""
        return Histogram(bucket_ns=self.bucket_ns, bits=self.bits, counts=dict(self.slices[number].counts))

    @classmethod
    def of(cls, samples: Iterable[tuple[int, int]], *, length_ns: int) -> Self:
        """From (when it was due, how late it was), both in ns, the former from 0 up to ``length_ns``."""
        slice_ns = SHORTEST_NS
        while slice_ns * MOST < length_ns:
            slice_ns *= 2
        count = max(1, -(-length_ns // slice_ns))
        counts: list[dict[int, int]] = [{} for _ in range(count)]
        largest = [0] * count
        for at, latency in samples:
            number = min(max(0, at) // slice_ns, count - 1)
            low = bucket_of(max(0, latency), BITS)
            counts[number][low] = counts[number].get(low, 0) + 1
            largest[number] = max(largest[number], latency)
        slices = tuple(Slice(max_ns=top, counts=found) for top, found in zip(largest, counts, strict=True))
        return cls(slice_ns=slice_ns, bucket_ns=1, slices=slices)
