"""What an operator can take out of a Nova cell database with one command, as rows by table.  Pure: text in, rows out.

Two forms are read.  JSON lines, as the statements of :func:`query` make them: the columns that are needed and no
other.  And a ``mysqldump`` of the tables, which many have as a backup.  Rows that Nova has marked as deleted are left
out.  Must not look into the objects that stand in the columns; that is :mod:`evenkeel.verify.nova.stored`.

Source of the tables: nova/db/main/models.py of Nova 34.0.0.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from evenkeel.errors import Where, WrongInput

#: Table -> the columns that are read.
TABLES = {
    "compute_nodes": ("id", "host", "hypervisor_hostname", "numa_topology"),
    "instances": ("uuid", "host", "node", "vm_state", "task_state"),
    "instance_extra": ("instance_uuid", "numa_topology", "pci_requests", "flavor"),
    "pci_devices": (
        *("compute_node_id", "address", "vendor_id", "product_id", "dev_type", "status", "numa_node"),
        *("parent_addr", "instance_uuid", "request_id"),
    ),
}
Row = dict[str, Any]
Dump = dict[str, list[Row]]
_HINT = "make it with: evenkeel lint nova --query | mysql --batch --raw --skip-column-names nova > nova.jsonl"


def query() -> str:
    """The SQL whose output is JSON lines.  Reads in one snapshot, and changes nothing.  MySQL 5.7, MariaDB 10.2."""
    lines = ["START TRANSACTION WITH CONSISTENT SNAPSHOT;"]
    for table, columns in TABLES.items():
        pairs = ", ".join(f"'{column}', {column}" for column in columns)
        where = "deleted = 0"
        if table == "instances":
            where += " AND host IS NOT NULL"
        lines.append(f"SELECT JSON_OBJECT('table', '{table}', {pairs}) FROM {table} WHERE {where};")
    return "\n".join([*lines, "COMMIT;", ""])


def read_dump(text: str, file: str) -> Dump:
    """Rows by table.  Raises WrongInput for what is neither form, and when a table is missing."""
    start = text.lstrip()[:1]
    rows = _json_lines(text, file) if start == "{" else _sql(text, file)
    dump: Dump = {table: [] for table in TABLES}
    seen: set[str] = set()
    for table, row in rows:
        if table in TABLES:
            seen.add(table)
            if row and not row.get("deleted"):
                dump[table].append(row)
    if "compute_nodes" not in seen:
        raise WrongInput("no compute_nodes of Nova in here", where=Where(file), hint=_HINT)
    if start != "{":  # a table without rows leaves no line in the other form
        for table in TABLES:
            if table not in seen:
                raise WrongInput(f"the table {table} is missing", where=Where(file), hint=_HINT)
    return dump


def _json_lines(text: str, file: str) -> Iterator[tuple[str, Row]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise WrongInput(f"not a line of JSON: {error}", where=Where(file, number), hint=_HINT) from None
        table = row.pop("table", None) if isinstance(row, dict) else None
        if table not in TABLES:
            raise WrongInput("no row of Nova: it names no table", where=Where(file, number), hint=_HINT)
        missing = [column for column in TABLES[table] if column not in row]
        if missing:
            raise WrongInput(f"a row of {table} without {', '.join(missing)}", where=Where(file, number), hint=_HINT)
        yield table, row


# -- mysqldump ----------------------------------------------------------------------------------------------------

_CREATE = re.compile(r"CREATE TABLE `(\w+)` \(\n(.*?)\n\)", re.DOTALL)
_COLUMN = re.compile(r"^\s*`(\w+)`", re.MULTILINE)
_INSERT = re.compile(r"INSERT INTO `(\w+)`(?: \(([^)]*)\))? VALUES\s*")
_VALUE = re.compile(
    r"(?:_\w+ )?'((?:[^'\\]|\\.|'')*)'|(NULL)|(-?\d+(?:\.\d+)?(?:e[-+]?\d+)?)|(\()|(\))|(,)|(;)|\s+", re.S
)
_ESCAPES = {"0": "\0", "n": "\n", "r": "\r", "t": "\t", "b": "\b", "Z": "\x1a"}


def _sql(text: str, file: str) -> Iterator[tuple[str, Row]]:
    """Each row of a dump; for each table also an empty one, so that a table without rows is known to be there."""
    columns: dict[str, list[str]] = {}
    for match in _CREATE.finditer(text):
        columns[match[1]] = _COLUMN.findall(match[2])
        yield match[1], {}
    for match in _INSERT.finditer(text):
        if match[1] not in TABLES or (match.start() and text[match.start() - 1] != "\n"):
            continue  # another table, or words inside a value
        names = re.findall(r"`(\w+)`", match[2]) if match[2] else columns.get(match[1], [])
        for values in _values(text, match.end(), file):
            if len(values) != len(names):
                raise WrongInput(
                    f"a row of {match[1]} with {len(values)} values for {len(names)} columns",
                    where=Where(file, text.count("\n", 0, match.start()) + 1),
                    hint="dump with column names: mysqldump --complete-insert",
                )
            yield match[1], dict(zip(names, values, strict=True))


def _values(text: str, start: int, file: str) -> Iterator[list[Any]]:
    row: list[Any] = []
    at = start
    while match := _VALUE.match(text, at):
        at = match.end()
        string, null, number, opens, closes, _, ends = match.groups()
        if string is not None:
            row.append(_unescaped(string))
        elif null:
            row.append(None)
        elif number:
            row.append(int(number) if re.fullmatch(r"-?\d+", number) else float(number))
        elif opens:
            row = []
        elif closes:
            yield row
        elif ends:
            return
    raise WrongInput(
        "this INSERT is cut off or no SQL of mysqldump", where=Where(file, text.count("\n", 0, at) + 1), hint=_HINT
    )


def _unescaped(text: str) -> str:
    if "\\" not in text and "'" not in text:
        return text
    return re.sub(r"\\(.)|''", lambda match: _ESCAPES.get(match[1], match[1]) if match[1] else "'", text, flags=re.S)
