"""Measure: latency histograms on a host and in its guests, and what disturbs a spinner, with the conditions.

:func:`measure_host` gives Evidence.  Whether a goal is met is decided in :mod:`evenkeel.measure.verdict`, and nowhere
else; a latency that was taken in emulation is labelled as meaningless here, at its source.
"""

from evenkeel.measure.host import measure_host

__all__ = ["measure_host"]
