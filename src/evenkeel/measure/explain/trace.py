"""A trace of one machine: the records of all its CPUs, as columns in the order of time.  Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from evenkeel.measure.pages import Format, Ints, Loss, Records, Rows, decode, parse_format, parse_header_page


@dataclass(frozen=True)
class Trace:
    """``events``: ``sched/sched_switch`` -> its format; ``overrun`` a CPU: what the kernel says that it overwrote.

    ``flight``: it was overwritten on purpose, over and over, so the trace of a CPU is whole from its first record on.
    """

    cpus: Mapping[int, Records]
    events: Mapping[str, Format]
    overrun: Mapping[int, int] = field(default_factory=dict)
    flight: bool = False

    @property
    def lost(self) -> int:
        """Events that are missing: as the kernel counted them, or as the pages tell, whichever is more."""
        if self.flight:
            return 0
        loss = sum((records.loss for records in self.cpus.values()), Loss())
        return max(sum(self.overrun.values()), loss.events + loss.unknown)

    @property
    def whole_from(self) -> int | None:
        """Raw time from which on no CPU misses anything; None: from the begin."""
        firsts = [int(self.cpus[cpu].at[0]) for cpu, count in self.overrun.items() if count and len(self.cpus[cpu])]
        return max(firsts, default=None) if self.flight else None

    @cached_property
    def marks(self) -> Mapping[int, int]:
        """The number in each mark of a recorder, whoever wrote it -> its raw time."""
        found = {}
        for at, text in zip(self.table("ftrace/print")["at"].tolist(), self.texts("ftrace/print", "buf"), strict=True):
            if match := re.match(r"evenkeel (\d+)", text):
                found[int(match[1])] = at
        return found

    def rows(self, event: str) -> list[Rows]:
        """The records of an event, one item a CPU that has some.  None where it was not recorded."""
        form = self.events.get(event)
        if form is None:
            return []
        found = (records.of(form) for records in self.cpus.values())
        return [rows for rows in found if len(rows)]

    def table(self, event: str, *names: str) -> dict[str, Ints]:
        """Columns ``at``, ``cpu`` and the named fields of all CPUs, in the order of time."""
        parts = self.rows(event)
        columns = {"at": [part.at for part in parts]}
        columns["cpu"] = [np.full(len(part), part.records.cpu, np.int64) for part in parts]
        for name in names:
            columns[name] = [part.ints(name) for part in parts]
        joined = {key: np.concatenate(values) if values else np.zeros(0, np.int64) for key, values in columns.items()}
        order = np.argsort(joined["at"], kind="stable")
        return {key: values[order] for key, values in joined.items()}

    def texts(self, event: str, name: str) -> list[str]:
        """One field of text, in the order of :meth:`table`."""
        parts = self.rows(event)
        texts = [text for part in parts for text in part.texts(name)]
        at = np.concatenate([part.at for part in parts]) if parts else np.zeros(0, np.int64)
        return [texts[n] for n in np.argsort(at, kind="stable").tolist()]

    def named(self, event: str, number: str, name: str) -> dict[int, str]:
        """Number -> name, such as pid -> comm; the name that was seen last.  Looks at each number once a CPU."""
        found: dict[int, str] = {}
        for part in self.rows(event):
            numbers, last = np.unique(part.ints(number)[::-1], return_index=True)
            chosen = Rows(part.form, part.records, part.index[::-1][last])
            found.update(zip(numbers.tolist(), chosen.texts(name), strict=True))
        return found


def make_trace(
    pages: Mapping[int, bytes],
    formats: Mapping[str, str],
    header_page: str,
    overrun: Mapping[int, int] | None = None,
    flight: bool = False,
) -> Trace:
    """From raw pages a CPU and the texts of the format files.  Raises WrongInput when they are damaged."""
    layout = parse_header_page(header_page)
    return Trace(
        {cpu: decode(bytes(raw), layout, cpu) for cpu, raw in sorted(pages.items())},
        {event: parse_format(text) for event, text in formats.items()},
        overrun or {},
        flight,
    )
