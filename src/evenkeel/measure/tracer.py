"""What the kernel's tracers counted, as :class:`~evenkeel.documents.evidence.Latency`.  Pure.

Of timerlat two of each CPU: ``timerlat``, until the woken thread ran, which is what a deadline is about; ``timerlat
irq``, until the timer interrupt came, so that one sees on which side of it the time was lost.  Of osnoise one: the
longest time in each second for which a busy loop was stopped.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evenkeel.documents.evidence import EMULATION_NOTE, Latency, LoadRun
from evenkeel.documents.histogram import BITS, Histogram
from evenkeel.errors import EvenkeelError
from evenkeel.measure.course import course

NS_PER_US, US_PER_S = 1000, 1_000_000
_TOOLS = {"thread": "timerlat", "irq": "timerlat irq", "noise": "osnoise"}
_NOISE_INTERVAL_US = US_PER_S


def tracer_latencies(
    answer: Mapping[str, Any],
    *,
    guest: str | None = None,
    interval_us: int,
    seconds: int,
    emulated: bool | None,
    loads: tuple[LoadRun, ...] = (),
) -> tuple[Latency, ...]:
    """Of each CPU that took samples, or of each vCPU of ``guest``.  The version of a tracer is its kernel's release.

    Raises EvenkeelError when there is not one sample, or the answer is of another kind.
    """
    try:
        made = [
            Latency(
                tool=_TOOLS[context],
                tool_version=answer["kernel"],
                argv=tuple(answer["argv"]),
                where="guest" if guest else "host",
                guest=guest,
                cpus=frozenset({int(cpu)}),
                interval_ns=_interval_us(context, interval_us) * NS_PER_US,
                samples=one["samples"],
                lost=None if context == "noise" else one["lost"],  # its lines have no number
                expected=seconds * US_PER_S // _interval_us(context, interval_us),
                min_ns=one["min"],
                avg_ns=one["sum"] // one["samples"],
                max_ns=one["max"],
                histogram=Histogram(
                    bucket_ns=1, bits=BITS, counts={int(low): count for low, count in one["counts"].items()}
                ),
                course=course(one.get("course"), bucket_ns=1),
                loads=loads,
                label=EMULATION_NOTE if emulated else "",
            )
            for cpu, contexts in answer["cpus"].items()
            for context, one in sorted(contexts.items(), reverse=True)
        ]
    except (KeyError, TypeError, ValueError, AttributeError, ZeroDivisionError) as error:
        raise EvenkeelError(f"a tracer's result cannot be read: {type(error).__name__} {error}") from None
    if not made:
        raise EvenkeelError(
            f"{(*answer['argv'], 'the tracer')[0]} took no sample",
            hint="does something of higher priority keep these CPUs busy? see evenkeel verify",
        )
    return tuple(made)


def _interval_us(context: str, interval_us: int) -> int:
    """osnoise sums up once a second, whatever the interval of the others is."""
    return _NOISE_INTERVAL_US if context == "noise" else interval_us
