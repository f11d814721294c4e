"""A choice of its own for everybody who has choices: matching in a bipartite graph, by augmenting paths.  Pure.

Only that.  What may be chosen, and in which order, is for the caller to know; :mod:`evenkeel.placement_check` shares
nothing with this on purpose.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def match(choices: Sequence[Sequence[int]], order: Iterable[int] | None = None) -> tuple[int, ...] | None:
    """What each one gets, in their own order; None: they cannot all have one.

    ``choices``: of each, the liked ones first.  ``order``: who chooses first; a later one pushes an earlier one on to
    another choice only where it must.
    """
    owner: dict[int, int] = {}

    def find(one: int, seen: set[int]) -> bool:
        for choice in choices[one]:
            if choice not in seen:
                seen.add(choice)
                if choice not in owner or find(owner[choice], seen):
                    owner[choice] = one
                    return True
        return False

    if not all(find(one, set()) for one in (range(len(choices)) if order is None else order)):
        return None
    given = {one: choice for choice, one in owner.items()}
    return tuple(given[one] for one in range(len(choices)))
