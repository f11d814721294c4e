"""The only place that prints: results on stdout, everything else on stderr.

``out()`` is for the result and for nothing else, so that ``--json`` and pipes stay clean; ``err()`` is for progress,
notes and errors.  Nothing here decides what is printed; the verbs do.
"""

from __future__ import annotations

import json
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from evenkeel.errors import EvenkeelError, Where, WrongInput

if TYPE_CHECKING:
    from rich.progress import Progress

    from evenkeel.machines.protocol import OnProgress

#: Width of tables where stdout is a pipe or a file and COLUMNS is not set: wide enough for a reason on one line.
PIPE_WIDTH = 140
#: Seconds between two lines about the same step where stderr is not a terminal.
SPARSE_S = 15.0


class _Console(Console):
    """A console that takes text literally (no markup, no guessing of colours) and lets a broken pipe through."""

    def __init__(self, *, stderr: bool) -> None:
        stream = sys.stderr if stderr else sys.stdout
        super().__init__(stderr=stderr, markup=False, highlight=False, emoji=False, soft_wrap=False)
        if not stream.isatty() and "COLUMNS" not in self._environ:
            self.width = PIPE_WIDTH

    def on_broken_pipe(self) -> None:
        raise


def out() -> Console:
    """The console of the result: stdout."""
    return _Console(stderr=False)


def err() -> Console:
    """The console of everything that is not the result: stderr."""
    return _live.console if _live is not None else _Console(stderr=True)


def note(text: str) -> None:
    """One line about what goes on."""
    err().print(text)


def to_journal() -> bool:
    """Whether stderr goes to systemd's journal, where others read it, and for a long time (systemd.exec(5))."""
    found = os.fstat(2)
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def wrote(path: str | Path) -> None:
    """Say that a file was written; of stdout there is nothing to say."""
    if str(path) != "-":
        err().print(f"wrote {path}", soft_wrap=True)  # a name stays on its line


def warn(text: str) -> None:
    """One line that should be seen."""
    err().print(Text.assemble(("warning", "bold yellow"), ": ", text))


# -- results ----------------------------------------------------------------------------------------------------------

_emitted = False


def emit_json(data: Any) -> None:
    """Print the result of ``--json``: a document in its canonical form, or plain data."""
    emit(data.to_json() if hasattr(data, "to_json") else json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def emit(data: str | bytes) -> None:
    """Put a whole file on stdout, as it is: for ``-`` as the name of a file."""
    global _emitted
    _emitted = True
    if isinstance(data, str):
        sys.stdout.write(data)
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(data)


def takes_stdout(files: Mapping[str, str | Path | None], **formats: bool) -> bool:
    """Whether one of these files is ``-``: stdout then holds that and nothing else, no table either.

    ``files``: option -> file, ``-o`` being the document that ``--json`` prints: `-o - --json` asks twice for one thing.
    ``formats``: options that print on stdout.  Ask before the work begins: raises WrongInput where two want stdout.
    """
    wanting = [f"{option} -" for option, file in files.items() if str(file) == "-"]
    taken = bool(wanting)
    wanting += [f"--{name}" for name, wanted in formats.items() if wanted]
    if len(wanting) > 1 and wanting != ["-o -", "--json"]:
        raise WrongInput(
            f"{wanting[0]} and {wanting[1]} both print on stdout", hint="name a file for one, or leave it out"
        )
    return taken


def table(
    columns: Sequence[str], rows: Iterable[Sequence[str | Text]], *, title: str | None = None, right: Sequence[str] = ()
) -> Table:
    """A table with a header and no frame; ``right`` names the columns of numbers.  Print it with ``out().print``."""
    made = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold"
    )
    for column in columns:
        made.add_column(column, justify="right" if column in right else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in row))
    return made


# -- errors -----------------------------------------------------------------------------------------------------------


def print_error(error: EvenkeelError) -> None:
    """What happened, where (with the line, when the file can be read), what to do next.  Goes to stderr."""
    console = err()
    for one in (error, *getattr(error, "others", ())):
        head = Text.assemble(("error", "bold red"), (": ", "bold"), (one.message, "bold"))
        console.print(head, soft_wrap=True)
        if one.where:
            console.print(Text.assemble(("  --> ", "blue"), str(one.where)), soft_wrap=True)
            for line in _excerpt(one.where):
                console.print(line, soft_wrap=True)
        if one.hint:
            console.print(Text.assemble(("hint", "bold cyan"), ": ", one.hint), soft_wrap=True)


_WIDE = 160  # characters of a line that are shown at least


def _excerpt(where: Where) -> list[Text]:
    """The line that is meant and a caret below it; empty where it cannot be read (any more)."""
    if where.line is None:
        return []
    try:
        # The line breaks that the YAML parser counts; str.splitlines() knows more.
        with Path(where.file).open(encoding="utf-8-sig", newline="") as stream:
            lines = re.split("\r\n|[\r\n\x85\u2028\u2029]", stream.read())
        line = lines[where.line - 1]
    except (OSError, ValueError, IndexError):
        return []
    gutter = " " * len(str(where.line))
    column = where.column or 1
    if column > _WIDE:  # in a file of one long line the place would be far off to the right
        line, column = "…" + line[column - _WIDE // 2 :], _WIDE // 2 + 1
    before = line[: column - 1].expandtabs(4)
    marked = re.match(r"[^\s:#,\]}]+|.", line[column - 1 :])
    carets = "^" * (len(marked[0]) if marked and where.column else 0)
    shown = [
        Text(f"{gutter} |", "blue"),
        Text.assemble((f"{where.line} |", "blue"), " ", line.expandtabs(4)[:200]),
    ]
    if carets and len(before) < 200:
        shown.append(Text.assemble((f"{gutter} |", "blue"), " ", " " * len(before), (carets, "bold red")))
    return shown


def emit_error(error: Exception, *, exit_code: int | None = None) -> None:
    """The error as JSON on stdout, unless a result is there already: two objects would be no JSON."""
    if not _emitted:
        emit_json({"error": error_data(error, exit_code=exit_code)})


def error_data(error: Exception, *, exit_code: int | None = None) -> dict[str, Any]:
    """The error as plain data, for a result that has one beside what went well."""
    found = (error, *getattr(error, "others", ()))
    body = _error_data(found[0], exit_code)
    if found[1:]:
        body["others"] = [_error_data(other, exit_code) for other in found[1:]]
    return body


def _error_data(error: Exception, exit_code: int | None) -> dict[str, Any]:
    where = getattr(error, "where", None)
    findings = [finding.model_dump(mode="json") for finding in getattr(error, "findings", ())]
    return {
        "kind": type(error).__name__,
        "message": getattr(error, "message", None) or str(error),
        "hint": getattr(error, "hint", None),
        "file": where.file if where else None,
        "line": where.line if where else None,
        "column": where.column if where else None,
        "exit_code": exit_code if exit_code is not None else getattr(error, "exit_code", None),
        **({"findings": findings} if findings else {}),
    }


# -- progress ---------------------------------------------------------------------------------------------------------

_live: Progress | None = None  # the one bar display on this terminal; steps inside steps share it


@contextmanager
def progress(title: str) -> Iterator[OnProgress]:
    """Show that a step is under way; gives the callback ``(done, total, what)`` for those who know how far it is.

    On a terminal a bar that is gone afterwards, elsewhere a line at the start, at the end, and every
    :data:`SPARSE_S` seconds.  Either way one line stays, with the seconds that the step took.
    """
    started = time.monotonic()
    show = _bar if sys.stderr.isatty() else _lines
    try:
        with show(title, started) as on_progress:
            yield on_progress
    except BaseException as error:
        how = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        err().print(Text.assemble(("✗ ", "red"), f"{title}: {how} after {_seconds(started)}"))
        raise
    err().print(Text.assemble(("✓ ", "green"), f"{title}: {_seconds(started)}"))


def _seconds(started: float) -> str:
    return f"{time.monotonic() - started:.1f} s"


@contextmanager
def _lines(title: str, started: float) -> Iterator[OnProgress]:
    console = err()
    console.print(f"… {title}")
    lock = threading.Lock()
    last = started

    def on_progress(done: int, total: int, what: str) -> None:
        nonlocal last
        with lock:
            now = time.monotonic()
            if now - last < SPARSE_S:
                return
            last = now
        share = f" {100 * done // total} %" if total else ""
        console.print(f"  {title}:{share}{' ' if what else ''}{what} ({now - started:.0f} s)")

    yield on_progress


@contextmanager
def _bar(title: str, started: float) -> Iterator[OnProgress]:
    global _live
    if _live is not None:
        with _task(_live, title) as on_progress:
            yield on_progress
        return
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    _live = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        TextColumn("{task.fields[what]}", markup=False),
        TimeElapsedColumn(),
        console=_Console(stderr=True),
        transient=True,
    )
    try:
        with _live, _task(_live, title) as on_progress:
            yield on_progress
    finally:
        _live = None


@contextmanager
def _task(display: Progress, title: str) -> Iterator[Callable[[int, int, str], None]]:
    task = display.add_task(title, total=None, what="")

    def on_progress(done: int, total: int, what: str) -> None:
        display.update(task, completed=done, total=total or None, what=what)

    try:
        yield on_progress
    finally:
        display.remove_task(task)
