"""What events cost on one machine: measured at the first question of a kind after its boot, and kept in the cache.

The loop that measures has everything in the processor's caches.  What happens seldom finds them cold, and was seen to
cost up to ten times as much; so what the kernel timed of an answer is kept, too, as a factor for the next question
about the same events.  A file for each boot, which names the machine and its kernel well enough; deleting it only makes
the next question a second or two longer.  Must not decide which source is used.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from typing import Any

from evenkeel.documents.answer import Question
from evenkeel.machines.protocol import Probe, ProbeError
from evenkeel.machines.virtual.places import cache_dir
from evenkeel.measure.trace import planner
from evenkeel.measure.trace.planner import Each

#: Boots that are remembered.
_MOST = 50
#: A BTF tracepoint is a raw tracepoint whose arguments have types: it costs the same.
_SAME = {"tp_btf": "raw_tp"}
_FACTORS = "times as dear as in a loop"


class Calibration:
    """What is known of the machine behind ``probe`` since it was booted."""

    def __init__(self, probe: Probe) -> None:
        self._probe = probe
        self._file = cache_dir() / "calibration" / f"{probe.call('hello')['boot_id']}.json"
        self._kept: dict[str, Any] = {}
        with suppress(OSError, ValueError):
            found = json.loads(self._file.read_text())
            if isinstance(found, dict):
                self._kept = found

    def each(self, question: Question, *, anew: bool = False) -> dict[str, Each]:
        """Source -> what an event costs there, in a loop.  Empty where that cannot be measured.  ``anew``: again."""
        loop = planner.loop_of(question)
        if loop is None:
            return {}
        name = f"{question.kind} {loop}"
        if name not in self._kept or anew:
            self._kept[name] = _measure(self._probe, question, loop)
            self._write()
        with suppress(TypeError):
            return {source: Each(**one) for source, one in self._kept[name].items()}
        return {}

    def factor(self, question: Question) -> float:
        """How many times as much as in a loop such an event did cost when it was asked for the last time."""
        found = self._kept.get(_FACTORS)
        factor = found.get(_events(question)) if isinstance(found, dict) else None
        return factor if isinstance(factor, float) and factor >= 1 else 1.0

    def remember(self, question: Question, factor: float) -> None:
        if not isinstance(self._kept.get(_FACTORS), dict):
            self._kept[_FACTORS] = {}
        self._kept[_FACTORS][_events(question)] = round(max(1.0, factor), 2)
        self._write()

    def _write(self) -> None:
        """Whole or not at all; a cache that cannot be written is no error."""
        folder = self._file.parent
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            for old in sorted(folder.glob("*.json"), key=lambda one: one.stat().st_mtime)[:-_MOST]:
                old.unlink()
            new = self._file.with_suffix(f".{os.getpid()}")
            new.write_text(json.dumps(self._kept, indent=2, sort_keys=True))
            new.replace(self._file)


def _events(question: Question) -> str:
    return " ".join((question.kind, *question.events))


def _measure(probe: Probe, question: Question, loop: str) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for source in planner.TO_CALIBRATE:
        if question.kind not in planner.SOURCES[source].ns:
            continue
        if _SAME.get(source) in found:
            found[source] = found[_SAME[source]]
            continue
        try:
            one = probe.call("trace_calibrate", source=source, kind=question.kind, loop=loop, timeout_s=120.0)
        except ProbeError:
            continue  # refused here, as it will be for the question itself
        found[source] = {"ns": one["ns"], "other_ns": one["other_ns"]}
    return found
