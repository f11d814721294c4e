"""What is known of events by their names: which pairs belong together, and what joins them.  Pure."""

from __future__ import annotations

SWITCH = "sched:sched_switch"
WAKEUP = ("sched:sched_waking", SWITCH)
#: What happens most often of what disturbs a CPU: their rate is counted beforehand.
NOISE = (SWITCH, "irq:irq_handler_entry", "irq:softirq_entry")
EXIT = "kvm:kvm_exit"
_WAKES = ("sched:sched_waking", "sched:sched_wakeup", "sched:sched_wakeup_new")


def joined_by(start: str, end: str) -> str:
    """The key that joins a beginning to its end: a thread for system calls, a CPU for interrupts."""
    if start in _WAKES and end == SWITCH:
        return "pid=next_pid"
    systems = {start.partition(":")[0], end.partition(":")[0]}
    return "cpu" if systems <= {"irq", "irq_vectors"} else "thread"
