"""Two results of the same thing, one after the other: what is different now?  Pure: two documents in, one out."""

from __future__ import annotations

from typing import Any, Literal

from evenkeel.documents.base import Model
from evenkeel.documents.result import Result, Warned
from evenkeel.lab.warnings import new_warnings

#: Durations differ by a third from run to run on a busy machine; less than this says nothing.
SLOWER = 1.5
_SHORT_NS = 10**9
Word = Literal["better", "worse", "changed", "same"]


class Change(Model):
    """One value that differs; None: it was not there."""

    key: str
    before: Any = None
    now: Any = None


class ArtifactChange(Model):
    """``before``, ``now``: bytes."""

    name: str
    what: Literal["new", "gone", "changed", "same"]
    before: int | None = None
    now: int | None = None


class Comparison(Model):
    """``verdict``: better or worse by state and new warnings alone; what an output means, only its step knows."""

    verdict: Word
    state: tuple[str, str]
    settings: tuple[Change, ...]
    inputs: tuple[Change, ...]
    definition_changed: bool
    outputs: tuple[Change, ...]
    warnings_new: tuple[Warned, ...] | None
    warnings_gone: tuple[Warned, ...] | None
    artifacts: tuple[ArtifactChange, ...]
    took_ns: tuple[int, int]
    slower: bool
    faster: bool
    memory: tuple[int | None, int | None]


def compare(before: Result, now: Result) -> Comparison:
    """What differs in ``now``.  They need not be of the same thing, but then most will."""
    both = before.warnings is not None and now.warnings is not None
    new = new_warnings(now.warnings or (), before.warnings or ()) if both else None
    gone = new_warnings(before.warnings or (), now.warnings or ()) if both else None
    took = (before.times.ended_ns - before.times.started_ns, now.times.ended_ns - now.times.started_ns)
    outputs = _changes(flat(before.output), flat(now.output))
    artifacts = _artifacts(before, now)
    apart = abs(took[1] - took[0]) > _SHORT_NS
    return Comparison(
        verdict=_verdict(before, now, new, gone, bool(outputs) or any(one.what != "same" for one in artifacts)),
        state=(before.state, now.state),
        settings=_changes(before.settings, now.settings),
        inputs=_changes(before.inputs, now.inputs),
        # Settings are part of that digest; they are told by themselves.
        definition_changed=before.step_sha256 != now.step_sha256 and before.settings == now.settings,
        outputs=outputs,
        warnings_new=new,
        warnings_gone=gone,
        artifacts=artifacts,
        took_ns=took,
        slower=apart and took[1] > took[0] * SLOWER,
        faster=apart and took[1] * SLOWER < took[0],
        memory=(before.times.memory, now.times.memory),
    )


def _verdict(
    before: Result, now: Result, new: tuple[Warned, ...] | None, gone: tuple[Warned, ...] | None, differs: bool
) -> Word:
    if before.state != now.state and "passed" in (before.state, now.state):
        return "better" if now.state == "passed" else "worse"
    if new:
        return "worse"
    if gone:
        return "better"
    return "changed" if differs or before.state != now.state else "same"


def flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Keys with dots; a list stays whole."""
    made: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict) and value:
            made.update(flat(value, f"{prefix}{key}."))
        else:
            made[f"{prefix}{key}"] = value
    return made


def _changes(before: dict[str, Any], now: dict[str, Any]) -> tuple[Change, ...]:
    return tuple(
        Change(key=key, before=before.get(key), now=now.get(key))
        for key in sorted(before.keys() | now.keys())
        if key not in before or key not in now or before[key] != now[key]
    )


def _artifacts(before: Result, now: Result) -> tuple[ArtifactChange, ...]:
    old = {one.name: one for one in before.artifacts}
    new = {one.name: one for one in now.artifacts}
    made = []
    for name in sorted(old.keys() | new.keys()):
        a, b = old.get(name), new.get(name)
        what: Literal["new", "gone", "changed", "same"] = (
            "new" if a is None else "gone" if b is None else "same" if b.varies or a.sha256 == b.sha256 else "changed"
        )
        made.append(ArtifactChange(name=name, what=what, before=a.size if a else None, now=b.size if b else None))
    return tuple(made)
