"""What changed from one judgement to the next: a check that fails now and did not, or that passes again.  Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from evenkeel.documents.findings import Check

#: What varies from look to look without meaning anything else: counts, process ids, where a thread happened to run.
_NOISE = re.compile(r"\d+ times|and \d+ more|, ran on [\d,]+|\(\d+\)")


@dataclass(frozen=True)
class Drift:
    """``drifted``: it fails now.  ``differs``: it failed before, and in another way now.  ``gone again``: it passes.

    ``not checked``: it failed before, and what it is about is not there any more (a guest that was shut down).
    """

    kind: Literal["drifted", "differs", "gone again", "not checked"]
    check: Check


def drifts(before: Mapping[str, Check], checks: Iterable[Check]) -> tuple[Drift, ...]:
    """``before``: the failed checks so far, by id.  What could not be checked now and did not fail is no news."""
    found: list[Drift] = []
    present = set()
    for check in checks:
        present.add(check.id)
        old = before.get(check.id)
        if check.status == "failed" and old is None:
            found.append(Drift("drifted", check))
        elif check.status == "failed" and old is not None and _meaning(old) != _meaning(check):
            found.append(Drift("differs", check))
        elif check.status == "passed" and old is not None:
            found.append(Drift("gone again", check))
        elif check.status == "not_checked" and old is not None:
            found.append(Drift("not checked", check))
    # A check that is not made any more (an interface that was taken out): what it said does not hold any longer.
    found += [Drift("not checked", check) for name, check in before.items() if name not in present]
    return tuple(found)


def _meaning(check: Check) -> str:
    return _NOISE.sub("", check.observed)


def still_failing(before: Mapping[str, Check], found: Iterable[Drift]) -> dict[str, Check]:
    """The failed checks, by id, after these changes."""
    now = dict(before)
    for drift in found:
        if drift.kind in ("drifted", "differs"):
            now[drift.check.id] = drift.check
        else:
            now.pop(drift.check.id, None)
    return now
