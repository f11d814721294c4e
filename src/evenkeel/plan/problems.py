"""Problems with a site that only show against the facts, gathered so that the user sees all of them at once."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from evenkeel.errors import WrongInput


@dataclass(frozen=True)
class Problem:
    """``about``: "guest plc" or "host edge"."""

    about: str
    message: str
    hint: str | None = None


@dataclass
class Problems:
    """A list that becomes one WrongInput."""

    found: list[Problem] = field(default_factory=list)

    def add(self, about: str, message: str, hint: str | None = None) -> None:
        problem = Problem(about, message, hint)
        if problem not in self.found:
            self.found.append(problem)

    def about(self, about: str) -> bool:
        return any(problem.about == about for problem in self.found)

    def raise_if_any(self) -> None:
        """Raise :class:`Misfit` when there is a problem."""
        if self.found:
            raise Misfit(
                [WrongInput(f"{problem.about}: {problem.message}", hint=problem.hint) for problem in self.found]
            )


class Misfit(WrongInput):
    """A site does not fit its hosts: this error is the first reason, ``others`` are the rest."""

    def __init__(self, errors: Sequence[WrongInput]) -> None:
        first, *rest = errors
        super().__init__(first.message, hint=first.hint)
        self.others = tuple(rest)


def did_you_mean(word: str, known: Iterable[str]) -> str | None:
    """``"did you mean eth0? known: eth0, eth1"``, or None when nothing is known."""
    names = sorted(known)
    if not names:
        return None
    # Case is folded because rule identifiers are capitals and people type small letters.
    close = difflib.get_close_matches(word.casefold(), [name.casefold() for name in names], n=1)
    original = next((name for name in names if close and name.casefold() == close[0]), None)
    shown = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
    return f"did you mean {original}? known: {shown}" if original else f"known: {shown}"
