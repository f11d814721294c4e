"""What the probe counted over time, as a part of Evidence.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenkeel.documents.course import Course, Slice

NS_PER_US = 1000


def course(answer: Mapping[str, Any] | None, *, bucket_ns: int) -> Course | None:
    """``answer``: of the probe's ``sample_course``, in units of ``bucket_ns``; None where the tool did not tell.

    Raises ValueError for an answer of another shape.
    """
    if not answer:
        return None
    return Course(
        slice_ns=answer["slice_us"] * NS_PER_US,
        bucket_ns=bucket_ns,
        slices=tuple(
            Slice(max_ns=largest * bucket_ns, counts={int(low): count for low, count in counts.items()})
            for largest, counts in answer["slices"]
        ),
    )
