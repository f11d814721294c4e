"""Write what the injection suite counted into the docs: ``python -m tools.injection_table``, or ``make injections``.

The suite (tests/virtual/test_spikes.py) leaves its counts in :data:`COUNTS` when all its cases ran.  This makes tables
of them, and puts these between two comments of :data:`PAGE`; nothing else there is changed.  The goals are told here
only; the suite fails by less, as a goal that one run in emulation misses is no defect.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

HERE = Path(__file__).parents[1]
COUNTS = HERE / "build" / "injections.json"
PAGE = HERE / "docs" / "explanation" / "spikes.md"
BEGIN, END = "<!-- injections: written by make injections -->\n", "<!-- injections: end -->\n"


@dataclass(frozen=True)
class Row:
    """Counts of one case.  ``late``: spikes of 1.5 ms or more, as the three after it, of which 80 % of the time is
    charged: to any cause; to named causes and the machine under the host; to named causes alone.  None: not counted.
    """

    cause: str
    injected: int
    found: int
    named: int
    true: int
    late: int
    charged: int
    or_below: int | None
    by_named: int | None


@dataclass(frozen=True)
class Counts:
    """A whole run.  ``taken``: when and on what, in words."""

    taken: str
    rows: tuple[Row, ...]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Counts:
        found = json.loads(text)
        return Counts(found["taken"], tuple(Row(**row) for row in found["rows"]))


COLUMNS = (
    "cause",
    "injected",
    "found",
    "named",
    "true",
    "late by 1.5 ms or more",
    "80 % charged to any cause",
    "to named or below",
    "by named alone",
)


def all_of(rows: Sequence[Row]) -> Row:
    """Their sums; what one of them did not count is not known of all."""

    def total(name: str) -> int | None:
        counts = [getattr(row, name) for row in rows]
        return None if None in counts else sum(counts)

    return Row("all", **{one.name: total(one.name) for one in fields(Row)[1:]})  # type: ignore[arg-type]


def markdown(counts: Counts) -> str:
    """When and on what, the counts of each cause, and what became of the goals."""
    everything = all_of(counts.rows)
    lines = [_line(COLUMNS), _line(["---"] * len(COLUMNS))]
    lines += [_line([_cell(value) for value in asdict(row).values()]) for row in (*counts.rows, everything)]
    goals = [_line(("goal", "in this run", "")), _line(["---"] * 3), *(_line(goal) for goal in _goals(counts.rows))]
    return "\n".join([f"{counts.taken}:", "", *lines, "", *goals, ""])


def _goals(rows: Sequence[Row]) -> list[tuple[str, str, str]]:
    whole = all_of(rows)
    quiet = sum(row.named for row in rows if not row.injected)
    strict = whole.by_named
    return [
        ("all injected causes found", *_share(whole.found, whole.injected, lambda part, of: part == of)),
        ("95 % of what is named is true", *_share(whole.true, whole.named, lambda part, of: part >= 0.95 * of)),
        (
            "90 % of the late samples with 80 % of their time charged to named causes",
            *(_share(strict, whole.late, lambda part, of: part >= 0.9 * of) if strict is not None else _UNKNOWN),
        ),
        ("nobody named where nothing was injected", f"{quiet} named", "not met" if quiet else "met"),
    ]


_UNKNOWN = ("not counted", "not shown")


def _share(part: int, of: int, met: Callable[[int, int], bool]) -> tuple[str, str]:
    share = f" ({100 * part // of} %)" if of else ""
    return f"{part:,} of {of:,}{share}", "met" if met(part, of) else "not met"


def _cell(value: object) -> str:
    if value is None:
        return "not counted"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |".replace("|  |", "| |")


def written(page: str, table: str) -> str:
    """``page`` with ``table`` between the two comments.  Raises ValueError where they are not there once, in order."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"not one {BEGIN.strip()} before one {END.strip()}")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def main() -> int:
    if not COUNTS.exists():
        print(
            f"{COUNTS.relative_to(HERE)} is not there: run all of the suite, "
            "pytest -m long tests/virtual/test_spikes.py, which writes it",
            file=sys.stderr,
        )
        return 1
    page = written(PAGE.read_text(), markdown(Counts.from_json(COUNTS.read_text())))
    PAGE.write_text(page)
    return 0


if __name__ == "__main__":
    sys.exit(main())
