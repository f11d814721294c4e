"""What oslat wrote (``--json``, rt-tests 2.x) as :class:`~evenkeel.documents.evidence.Latency`.  Pure.

A sample is one turn of a busy loop: how long it took more than it should, in microseconds.  There is no interval.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evenkeel.documents.evidence import EMULATION_NOTE, Latency, LoadRun
from evenkeel.documents.histogram import Histogram
from evenkeel.errors import EvenkeelError

NS_PER_US = 1000


def oslat_latencies(
    answer: Mapping[str, Any],
    cpus: Sequence[int],
    *,
    guest: str | None,
    emulated: bool | None,
    loads: tuple[LoadRun, ...] = (),
) -> tuple[Latency, ...]:
    """One Latency a thread; thread N ran on the Nth of ``cpus``.  Raises EvenkeelError for any other document."""
    made = []
    try:
        document = answer["json"]
        if len(document["thread"]) != len(cpus):
            raise ValueError(f"{len(document['thread'])} threads for {len(cpus)} CPUs")
        version = document.get("rt_test_version:", document.get("rt_test_version"))
        limit = next(int(word[14:]) for word in answer["argv"] if word.startswith("--bucket-size="))
        for number, cpu in enumerate(cpus):
            thread = document["thread"][str(number)]
            counts = {int(bucket): int(count) for bucket, count in thread["histogram"].items() if int(count) > 0}
            # The last bucket holds whatever was later, too.
            histogram = Histogram.log_linear(
                {bucket: count for bucket, count in counts.items() if bucket < limit},
                bucket_ns=NS_PER_US,
                overflows=counts.get(limit, 0),
                limit=limit,
            )
            made.append(
                Latency(
                    tool="oslat",
                    tool_version=str(version) if version else None,
                    argv=tuple(answer["argv"]),
                    where="guest" if guest else "host",
                    guest=guest,
                    cpus=frozenset({cpu}),
                    interval_ns=0,
                    samples=histogram.samples,
                    lost=0,
                    min_ns=round(thread["min"] * NS_PER_US),
                    avg_ns=round(thread["avg"] * NS_PER_US),
                    max_ns=round(thread["max"] * NS_PER_US),
                    histogram=histogram,
                    loads=loads,
                    label=EMULATION_NOTE if emulated else "",
                )
            )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, StopIteration) as error:
        raise EvenkeelError(
            f"oslat's result has another shape than expected: {type(error).__name__} {error}",
            hint="rt-tests 2.0 or newer is needed, for oslat --json",
        ) from None
    return tuple(made)
