"""What owners hold, and held over time, as `evenkeel capacity --owners` prints it: table, JSON, CSV.  Thin."""

from __future__ import annotations

import csv
import io
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evenkeel.errors import WrongInput

if TYPE_CHECKING:
    from evenkeel.plan.fleet.capacity import Holding

_AGO = re.compile(r"(\d{1,5})\s*([dh])")
#: Periods of a table at most: days of twenty years.
MOST_PERIODS = 7400
#: Key -> column of the table, and of the CSV.
_NOW = {
    "owner": "owner",
    "guests": "guests",
    "vcpus": "vCPUs",
    "cores": "whole cores",
    "cpus": "CPUs",
    "nodes": "nodes",
    "memory_bytes": "memory",
    "huge_bytes": "of it huge pages",
    "functions": "functions",
}
_OVER_TIME = {
    "guest": "guests",
    "vcpu": "vCPUs",
    "core": "whole cores",
    "cpu": "CPUs",
    "node": "nodes",
    "memory_gib": "GiB",
    "huge_gib": "of it huge pages",
    "function": "functions",
}


def show_now(rows: Sequence[Holding], *, as_json: bool, as_csv: bool) -> None:
    from evenkeel.cli import output
    from evenkeel.documents.quantity import format_size

    found = [asdict(row) for row in rows]
    if as_json:
        output.emit_json(found)
    elif as_csv:
        _print_csv(list(_NOW), found)
    else:
        cells = [
            tuple(format_size(row[key]) if key.endswith("bytes") else str(row[key]) for key in _NOW) for row in found
        ]
        columns = list(_NOW.values())
        output.out().print(output.table(columns, cells, right=columns[1:]))


def show(
    site: str, since: str, until: str | None, by: str, history: str | None, *, as_json: bool, as_csv: bool
) -> None:
    """Raises WrongInput for a time or a history that is none."""
    from evenkeel.apply.history import beside, read_history, seconds_of
    from evenkeel.cli import output
    from evenkeel.plan.fleet.usage import Dated, straighten, usage

    now = datetime.now(UTC)
    begin, end = _time(since, now, "--since"), min(now, _time(until, now, "--until") if until else now)
    if begin >= end:
        raise WrongInput(
            f"nothing is between --since {since} and {f'--until {until}' if until else 'now'}", hint="exchange them?"
        )
    edges = _edges(begin, end, by)
    file = Path(history) if history else beside(site)
    entries, remarks = read_history(file)
    dated, more = straighten([Dated(seconds_of(one), one) for one in entries], now.timestamp())
    for remark in [*remarks, *more]:
        output.warn(remark)
    if dated and dated[0].seconds > begin.timestamp() + 1:
        first = datetime.fromtimestamp(dated[0].seconds, UTC)
        output.note(f"the history begins {first:%Y-%m-%d %H:%M} UTC; of the time before nothing is known")
    rows: list[dict[str, Any]] = []
    for one in usage(dated, [edge.timestamp() for edge in edges]):
        body = asdict(one)
        period = body.pop("period")
        rows.append({"from": _iso(edges[period]), "to": _iso(edges[period + 1]), "owner": body.pop("owner"), **body})
    for row in rows:
        for key in _OVER_TIME:
            row[f"{key}_hours"] = row.pop(key)
    if as_json:
        output.emit_json(rows)
    elif as_csv:
        _print_csv(["from", "to", "owner", *(f"{key}_hours" for key in _OVER_TIME)], rows)
    else:
        columns = ["from", "to", "owner", *_OVER_TIME.values()]
        cells = [
            (row["from"], row["to"], row["owner"], *(f"{row[f'{key}_hours']:,.1f}" for key in _OVER_TIME))
            for row in rows
        ]
        output.out().print(output.table(columns, cells, title="hours, each times what was held", right=columns[3:]))


def _time(text: str, now: datetime, option: str) -> datetime:
    if match := _AGO.fullmatch(text.strip()):
        return now - timedelta(**{"days" if match[2] == "d" else "hours": int(match[1])})
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise WrongInput(
            f"{option} {text} is no time", hint="write a date in UTC, as 2026-11-01 or 2026-11-01T12:00, or 30d, 12h"
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _edges(begin: datetime, end: datetime, by: str) -> list[datetime]:
    """Where periods begin, and where the last one ends.  Days and months are those of UTC."""
    edges = [begin]
    while by != "all":
        last = edges[-1].astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
        after = last + timedelta(days=1) if by == "day" else (last.replace(day=1) + timedelta(days=32)).replace(day=1)
        if after >= end:
            break
        edges.append(after)
        if len(edges) > MOST_PERIODS:
            raise WrongInput("these are more days than a table can show", hint="--by month")
    return [*edges, end]


def _iso(moment: datetime) -> str:
    moment = moment.astimezone(UTC)
    midnight = (moment.hour, moment.minute, moment.second, moment.microsecond) == (0, 0, 0, 0)
    return f"{moment:%Y-%m-%d}" if midnight else f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _print_csv(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """As RFC 4180 has it, but for the ends of lines."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    sys.stdout.write(text.getvalue())
