"""Latencies counted in buckets that widen with the latency: few numbers, from nanoseconds to seconds, a bounded error.

Pure arithmetic.  Says nothing about where the samples come from, and judges nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Self

from pydantic import Field, model_validator

from evenkeel.documents.base import Model

#: Of new evidence: 128 buckets for each doubling, so that a bucket is at most 1/128 = 0.78 % as wide as what it holds.
BITS = 7


def bucket_of(value: int, bits: int) -> int:
    """Lower edge of the bucket of ``value`` (both in units).

    Below ``2 ** (bits + 1)`` each value has its own bucket; from there on each doubling has ``2 ** bits`` of them.
    """
    shift = max(0, value.bit_length() - 1 - bits)
    return value >> shift << shift


class Histogram(Model):
    """Samples in buckets.  Keys of ``counts`` are lower edges, in units of ``bucket_ns``.

    ``bits`` None: linear, each bucket one unit wide (evidence of version 1).  Otherwise log-linear as
    :func:`bucket_of` says: the upper edge of a bucket is at most one unit, or ``2 ** -bits`` of the value, whichever is
    more, above any sample in it, and never below one.
    """

    bucket_ns: Annotated[int, Field(gt=0)] = 1000
    bits: Annotated[int, Field(ge=1, le=20)] | None = None
    counts: dict[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]
    overflows: Annotated[int, Field(ge=0)] = 0  # samples of `limit` units or more, of which only the number is known
    limit: Annotated[int, Field(gt=0)] | None = None  # None: not known

    @model_validator(mode="after")
    def _edges(self) -> Self:
        for low in self.counts:
            if self.bits is not None and bucket_of(low, self.bits) != low:
                raise ValueError(f"no bucket begins at {low}")
        return self

    @classmethod
    def log_linear(
        cls,
        values: Mapping[int, int],
        *,
        bucket_ns: int = 1000,
        bits: int = BITS,
        overflows: int = 0,
        limit: int | None = None,
    ) -> Self:
        """From value (in units of ``bucket_ns``) -> how often it was seen."""
        counts: dict[int, int] = {}
        for value, count in values.items():
            if count:
                low = bucket_of(value, bits)
                counts[low] = counts.get(low, 0) + count
        return cls(bucket_ns=bucket_ns, bits=bits, counts=counts, overflows=overflows, limit=limit)

    @property
    def samples(self) -> int:
        return sum(self.counts.values()) + self.overflows

    def width(self, low: int) -> int:
        """Units from the lower edge of a bucket to its upper edge."""
        return 1 if self.bits is None else 1 << max(0, low.bit_length() - 1 - self.bits)

    def upper_ns(self, low: int) -> int:
        """Upper edge of the bucket that begins at ``low`` units: every sample in it is below that."""
        return (low + self.width(low)) * self.bucket_ns

    def beyond(self, limit_ns: int) -> tuple[int, int]:
        """How many samples were later than ``limit_ns``: at least, and at most.

        The two differ only where the limit lies inside a bucket of several units.  A sample that a tool gives as
        100 us is not later than 100 us: values are whole units, as the tool writes them.
        """
        least = most = 0
        for low, count in self.counts.items():
            if low * self.bucket_ns > limit_ns:
                least += count
            if self.upper_ns(low) - self.bucket_ns > limit_ns:
                most += count
        known = self.limit if self.limit is not None else max(self.counts, default=0)
        return least + (self.overflows if known * self.bucket_ns > limit_ns else 0), most + self.overflows
