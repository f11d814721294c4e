"""The clocks of a lab, and what each is for.  Reads the time; compares and waits for nothing.

What people read, what is agreed by date (reservations, expiry of tokens) and what outlives a process in a table is wall
time.  How long somebody was silent, how long a step runs, when something is tried again is never: the wall clock is set
while a lab works (NTP steps it, a virtual machine is resumed), and a minute that nobody lived through would end leases.
docs/explanation/lab-losses.md lists who follows which.
"""

from __future__ import annotations

import time


def now_ns() -> int:
    """The wall clock, nanoseconds since 1970.  Tests give a store a clock of their own, as with :func:`steady_ns`."""
    return time.time_ns()


def steady_ns() -> int:
    """The clock of a service: CLOCK_MONOTONIC, nanoseconds since some moment, of this machine's boot only.

    It stands while the machine sleeps (clock_gettime(2)): agents could not be heard then, so they were not silent.
    """
    return time.clock_gettime_ns(time.CLOCK_MONOTONIC)


def since_boot_ns() -> int:
    """The clock of an agent's lease: CLOCK_BOOTTIME, which goes on while the machine sleeps (clock_gettime(2)).

    The lab does not know that the agent sleeps, and gives its steps to another when the lease is over.
    """
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
