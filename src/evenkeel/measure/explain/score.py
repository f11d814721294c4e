"""Score an Explanation against injections of known time and cause: precision and recall, strictly.  Pure.

Slack earns nothing.  What is named is decided by :attr:`Charge.named`: large beyond what every sample goes through.  It
is true only when an injection of that very cause was under way.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evenkeel.documents.explanation import Charge, Explanation, Kind, Spike


@dataclass(frozen=True)
class Injection:
    """From ``start_ns`` to ``end_ns`` on the axis of the recording.  ``who``: a regular expression, from its begin.

    ``besides``: another, of kind and who: what comes with the cause.  Naming that is true, and does not find the cause.
    """

    name: str
    kinds: frozenset[Kind]
    who: str
    start_ns: int
    end_ns: int
    besides: str = ""

    def is_named_by(self, charge: Charge) -> bool:
        return charge.kind in self.kinds and re.match(self.who, charge.who) is not None

    def brings(self, charge: Charge) -> bool:
        """Whether it is the cause, or what comes with it."""
        also = bool(self.besides) and re.match(self.besides, f"{charge.kind} {charge.who}") is not None
        return also or self.is_named_by(charge)

    def touches(self, spike: Spike) -> bool:
        return spike.at_ns - spike.latency_ns < self.end_ns and self.start_ns < spike.at_ns


@dataclass(frozen=True)
class Score:
    """``found`` of ``injected``, ``true`` of ``named``; ``missed``: not found; ``wrong``: named and not true."""

    name: str
    injected: int
    found: int
    named: int
    true: int
    missed: tuple[Injection, ...] = ()
    wrong: tuple[tuple[Spike, Charge], ...] = ()

    @property
    def recall(self) -> float | None:
        return self.found / self.injected if self.injected else None

    @property
    def precision(self) -> float | None:
        return self.true / self.named if self.named else None


def named(spike: Spike) -> Iterable[Charge]:
    return (charge for charge in spike.charges if charge.named and charge.kind is not Kind.below)


def score(explanation: Explanation, injections: Sequence[Injection], name: str) -> Score:
    """Of one run.  What the machine under the host does is not injected: it is told apart, and not scored.

    An injection is found when a spike that it touches names it."""
    verdicts = [(spike, charge) for spike in explanation.spikes for charge in named(spike)]
    missed = [
        one
        for one in injections
        if not any(one.touches(spike) and one.is_named_by(charge) for spike, charge in verdicts)
    ]
    wrong = [
        (spike, charge)
        for spike, charge in verdicts
        if not any(one.touches(spike) and one.brings(charge) for one in injections)
    ]
    return Score(
        name=name,
        injected=len(injections),
        found=len(injections) - len(missed),
        named=len(verdicts),
        true=len(verdicts) - len(wrong),
        missed=tuple(missed),
        wrong=tuple(wrong),
    )


def explained(spikes: Iterable[Spike], over_ns: int, share: float = 0.8) -> tuple[int, int]:
    """How many spikes of ``over_ns`` or more have ``share`` of their time charged to causes, and how many there are.

    Charged is not named: what every sample goes through and what an emulator takes within it count here too, and are
    never named there.  The strict number is :func:`explained_by_named`.
    """
    late = _late(spikes, over_ns)
    return sum(spike.explained_ns >= share * spike.latency_ns for spike in late), len(late)


def explained_by_named(
    spikes: Iterable[Spike], over_ns: int, share: float = 0.8, *, below: bool = False
) -> tuple[int, int]:
    """The same of what is charged to named causes only: those that are scored, and ``below`` if asked.

    What the machine under the host took is charged exactly, but nobody injects it, so no score says whether it is true.
    """
    late = _late(spikes, over_ns)
    return sum(_named_ns(spike, below) >= share * spike.latency_ns for spike in late), len(late)


def _late(spikes: Iterable[Spike], over_ns: int) -> list[Spike]:
    return [spike for spike in spikes if spike.latency_ns >= over_ns]


def _named_ns(spike: Spike, below: bool) -> int:
    return sum(charge.ns for charge in spike.charges if charge.named and (below or charge.kind is not Kind.below))
