"""Apply a plan to a host: phases, journal, read-back, boot gate, rollback.

This package knows values and their order, never why: reasons are in the plan, and the machine itself is written to by
the probe alone.
"""
