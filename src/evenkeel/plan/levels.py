"""Goal levels: which there are, from the weakest to the strictest, and which one a deadline needs.

The one table of it: the site file's check, the planner and docs/explanation/goal-levels.md all read :data:`LEVELS`.
Which rules a level brings is not written here but asked of the catalogue (:func:`rules_of`), so the two cannot
disagree.  Nothing here looks at a machine; what a level costs on one is :mod:`evenkeel.plan.cost`.

Source of the numbers: reference host-tuning §2 (a proposal: SEAPATH tests against 100 us, KubeVirt's lane against
40 us, Kiszka 2015 was happy with 100 us).  That a level is enough for a deadline is a plan, never a promise: a
measurement on the machine itself decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from evenkeel.documents.quantity import format_duration
from evenkeel.documents.site import GoalLevel, GuestWish


@dataclass(frozen=True)
class Level:
    """One line of the table.  ``strict``: realtime, and what else is in the way of the last microseconds.

    ``within_ns``: deadlines of this many nanoseconds and less, down to the next line's, need this level; None: a guest
    without a deadline.  ``brings``: what it adds to the line before.
    """

    goal: GoalLevel
    strict: bool
    within_ns: int | None
    brings: str

    @property
    def name(self) -> str:
        return f"{self.goal}, strict" if self.strict else self.goal


LEVELS = (
    Level("flexible", False, None, "nothing is set aside; the guest runs wherever there is room"),
    Level("balanced", False, 1_000_000, "vCPUs bound to the CPUs of one NUMA node, huge pages of that node"),
    Level(
        "performance", False, 200_000, "a CPU for each vCPU, isolated from everything of the host; memory strictly near"
    ),
    Level("realtime", False, 100_000, "a core for each vCPU, its siblings empty; FIFO priority on a PREEMPT_RT kernel"),
    Level(
        "realtime",
        True,
        50_000,
        "no idle state at all on its CPUs, callbacks polled; for a guest that yields, also no brake on real-time tasks",
    ),
)

#: Tighter than this and even the fair server's 50 ms a second are in the way.
STRICT_NS = next(level.within_ns for level in LEVELS if level.strict and level.within_ns)
_RANK: dict[str, int] = {level.goal: rank for rank, level in reversed(list(enumerate(LEVELS)))}


def needed(latency_ns: int | None) -> Level:
    """The weakest level that is meant for this deadline.  A deadline longer than any in the table needs ``balanced``:
    ``flexible`` says nothing about time at all.
    """
    if latency_ns is None:
        return LEVELS[0]
    fitting = [level for level in LEVELS if level.within_ns is not None and latency_ns <= level.within_ns]
    return fitting[-1] if fitting else LEVELS[1]


def implied_goal(latency_ns: int | None) -> GoalLevel:
    """The goal of a guest that states a deadline and no goal."""
    return needed(latency_ns).goal


def is_strict(goal: str, latency_ns: int | None) -> bool:
    """Whether a guest is on the strictest line.  Only realtime guests are: a tight deadline alone gives no priority."""
    return goal == "realtime" and needed(latency_ns).strict


def too_weak(wish: GuestWish) -> tuple[str, str] | None:
    """Message and hint when the goal of a guest is weaker than its deadline needs; None when it is not.

    A goal stricter than needed is the owner's to choose.
    """
    level = needed(wish.latency)
    if wish.latency is None or _RANK[wish.goal] >= _RANK[level.goal]:
        return None
    deadline = format_duration(wish.latency)
    enough = [other.within_ns for other in LEVELS if other.goal == wish.goal and other.within_ns is not None]
    tightest = _next_below(wish.goal)
    own = (
        f"the goal {wish.goal} is meant for deadlines longer than {format_duration(tightest)}"
        if enough and tightest
        else f"the goal {wish.goal} promises none"
    )
    return (
        f"it has a deadline of {deadline}, but {own}",
        f"write goal: {level.goal}, or leave `goal` out and it follows from the deadline; "
        "or leave `latency` out, if there is none",
    )


def _next_below(goal: GoalLevel) -> int | None:
    """Nanoseconds at and below which the next stricter goal is needed."""
    return next(
        (level.within_ns for level in LEVELS if _RANK[level.goal] > _RANK[goal] and level.within_ns is not None), None
    )


class _Rule(Protocol):
    """What this module needs of a rule of the catalogue."""

    @property
    def id(self) -> str: ...
    @property
    def levels(self) -> frozenset[GoalLevel]: ...


def rules_of(goal: GoalLevel, catalogue: Iterable[_Rule]) -> tuple[str, ...]:
    """Ids of the rules that a guest of this goal brings to its host, in the order of the catalogue."""
    return tuple(rule.id for rule in catalogue if goal in rule.levels)
