"""What cyclictest wrote (``--json``, rt-tests 2.x) as :class:`~evenkeel.documents.evidence.Latency`.  Pure.

cyclictest counts in its own memory, so it drops nothing (``lost`` is 0).  It skips the periods that passed while it was
late and counts the late one with its whole delay, so skipped periods hide no maximum; they are no samples, which is why
``samples`` may be below ``expected``.  The course comes from what it told while it ran, without its last samples.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from evenkeel.documents.evidence import EMULATION_NOTE, Latency, LoadRun
from evenkeel.documents.histogram import Histogram
from evenkeel.errors import EvenkeelError
from evenkeel.measure.course import course

NS_PER_US = 1000
US_PER_S = 1_000_000


def latencies(
    answer: Mapping[str, Any],
    cpus: Sequence[int],
    *,
    guest: str | None,
    interval_us: int,
    emulated: bool | None,
    seconds: int | None = None,
    loads: tuple[LoadRun, ...] = (),
) -> tuple[Latency, ...]:
    """One Latency a thread.  ``answer``: of the probe; ``cpus``: thread N ran on the Nth of them; ``seconds``: how long
    it was to run; ``loads``: what ran beside it.

    Raises EvenkeelError when the document is not one that this knows, or a thread took no sample.
    """
    found = answer.get("json")
    threads = found.get("thread") if isinstance(found, dict) else None
    if not isinstance(found, dict) or not isinstance(threads, dict) or len(threads) != len(cpus):
        raise EvenkeelError(
            "cyclictest's result has another shape than expected",
            hint="rt-tests 2.0 or newer is needed, for cyclictest --json",
        )
    version = found.get("rt_test_version:", found.get("rt_test_version"))
    where: Literal["host", "guest"] = "guest" if guest else "host"
    expected = None if seconds is None else seconds * US_PER_S // interval_us
    limit = next((int(word[12:]) for word in answer["argv"] if re.fullmatch(r"--histogram=\d+", word)), None)
    made = []
    for number, cpu in enumerate(cpus):
        try:
            thread = threads[str(number)]
            histogram = _histogram(thread, limit)
            made.append(
                Latency(
                    tool="cyclictest",
                    tool_version=str(version) if version else None,
                    argv=tuple(answer["argv"]),
                    where=where,
                    guest=guest,
                    cpus=frozenset({cpu}),
                    interval_ns=interval_us * NS_PER_US,
                    samples=histogram.samples,
                    lost=0,
                    expected=expected,
                    min_ns=round(thread["min"] * NS_PER_US),
                    avg_ns=round(thread["avg"] * NS_PER_US),
                    max_ns=round(thread["max"] * NS_PER_US),
                    histogram=histogram,
                    course=course(answer.get("courses", {}).get(str(number)), bucket_ns=NS_PER_US),
                    loads=loads,
                    label=EMULATION_NOTE if emulated else "",
                )
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise EvenkeelError(
                f"cyclictest's result for thread {number} cannot be read: {type(error).__name__} {error}",
                hint="rt-tests 2.0 or newer is needed, for cyclictest --json",
            ) from None
        if not histogram.samples:
            place = f"vCPU {cpu} of guest {guest}" if guest else f"CPU {cpu}"
            raise EvenkeelError(
                f"cyclictest took no sample on {place}",
                hint="does something of higher priority keep that CPU busy? measure longer, or see evenkeel verify",
            )
    return tuple(made)


def _histogram(thread: Mapping[str, Any], limit: int | None) -> Histogram:
    """Units of a microsecond; what came later than the last bucket is counted in ``cycles`` only."""
    values = {int(bucket): int(count) for bucket, count in thread["histogram"].items() if int(count) > 0}
    overflows = max(0, int(thread["cycles"]) - sum(values.values()))
    return Histogram.log_linear(values, bucket_ns=NS_PER_US, overflows=overflows, limit=limit)
