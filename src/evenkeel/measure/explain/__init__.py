"""Explain a spike: why a sample in a guest was late, from traces of host and guest on one clock.

recorder (probe calls) -> trace (arrays) -> clocks (one axis) -> timeline (who ran when) -> charge (where the time of
a spike went) -> allowed (which fact made it possible).  Only the recorder talks to machines.
"""
