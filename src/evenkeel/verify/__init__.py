"""Compare reality with the plan: every setting, thread, page and interrupt, and a spinner on a real-time CPU.

:func:`verify_host` looks (through the probe) and then judges; looking is :mod:`.observe`, judging is pure and lives in
one module a subject.  :mod:`.catalogue` says what each check is for.  Nothing in this package changes a setting.
"""

from evenkeel.verify.host import verify_host
from evenkeel.verify.observe import Options

__all__ = ["Options", "verify_host"]
