"""The history file beside a site or plan: one line for a host whenever what its guests hold has changed.

Lines are appended under a lock and reach the disk before the lock is given up.  What a crash or a full disk left of a
line is closed off by the next one, and skipped by the reader, which says so.  Nothing here adds anything up
(:mod:`evenkeel.plan.fleet.usage`), and a history that cannot be written never fails an apply.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from evenkeel.apply.report import ApplyReport
from evenkeel.documents.history import HeldGuest, HistoryEntry, held_by
from evenkeel.documents.plan import HostPlan
from evenkeel.errors import EvenkeelError, WrongInput
from evenkeel.probe.boot_id import boot_id

NAME = "evenkeel-history.jsonl"
#: How long to wait for another writer, who holds the lock for milliseconds.
PATIENCE_S = 10.0
#: A history of a hundred hosts with a change a day grows by a few MiB a year.
MAX_BYTES = 1 << 30


@dataclass(frozen=True)
class Moment:
    """When, as the clock says, and as the kernel counts since its boot, which nobody can set."""

    seconds: float
    boot: str
    uptime_s: float


def now() -> Moment:
    try:
        boot = boot_id()
    except OSError:
        boot = ""
    return Moment(time.time(), boot, time.clock_gettime(time.CLOCK_BOOTTIME))


def beside(source: str) -> Path:
    """The history that belongs to a site, a folder of site files, or a plan; of stdin in this folder."""
    path = Path("." if source == "-" else source)
    return (path if path.is_dir() else path.parent) / NAME


def note_applied(file: Path, host: HostPlan, report: ApplyReport, moment: Callable[[], Moment] = now) -> bool:
    """Write down what the guests of a host hold now; False: nothing has changed, or nothing was applied.

    A guest that still runs with its old definition holds what it held.  Raises EvenkeelError.
    """
    if report.outcome not in ("applied", "unchanged"):
        return False
    waiting = {step.name.partition(":")[2] for step in report.of("left", "refused") if step.name.startswith("G-15:")}
    planned = {guest.name: held_by(guest) for guest in host.guests if guest.name not in waiting}

    def entry(before: HistoryEntry | None, when: Moment) -> HistoryEntry | None:
        kept = {guest.name: guest for guest in (before.guests if before else ()) if guest.name in waiting}
        guests = tuple(one for _, one in sorted({**kept, **planned}.items()))
        if before is None and not guests:
            return None
        if before is not None and before.guests == guests and before.address == host.address:
            return None
        return _entry(when, "applied", host.name, host.address, report.plan_sha256, guests)

    return _append(file, lambda one: one.host == host.name, entry, moment)


def note_rolled_back(file: Path, address: str, moment: Callable[[], Moment] = now) -> bool:
    """Write down that a host is as before its first apply, so that no guest holds anything there."""

    def entry(before: HistoryEntry | None, when: Moment) -> HistoryEntry | None:
        if before is None or not before.guests:
            return None
        return _entry(when, "rolled back", before.host, address, None, ())

    return file.exists() and _append(file, lambda one: one.address == address, entry, moment)


def read_history(file: Path) -> tuple[list[HistoryEntry], list[str]]:
    """(entries in the order of the file, what was skipped, with its line).  Raises WrongInput for no such file."""
    try:
        with file.open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise WrongInput(
            f"there is no history {file}",
            hint="evenkeel apply begins it beside the plan or site that it applies; --history FILE names another",
        ) from None
    except OSError as error:
        raise WrongInput(f"cannot read {file}: {os.strerror(error.errno or 0)}") from None
    if len(raw) > MAX_BYTES:
        raise WrongInput(f"{file} is larger than {MAX_BYTES >> 30} GiB, which is no history", hint="begin a new one")
    found, remarks = _parse(raw)
    return found, [f"{file}:{line}: {text}" for line, text in remarks]


def seconds_of(entry: HistoryEntry) -> float:
    return datetime.fromisoformat(entry.at).timestamp()


def _parse(raw: bytes) -> tuple[list[HistoryEntry], list[tuple[int, str]]]:
    found: list[HistoryEntry] = []
    remarks: list[tuple[int, str]] = []
    lines = raw.split(b"\n")
    for number, line in enumerate(lines, 1):
        if entry := _entry_of(line):
            found.append(entry)
        elif line.strip():
            torn = number == len(lines)
            remarks.append((number, "the line has no end, so it was never written in full" if torn else "not an entry"))
    return found, remarks


def _entry_of(line: bytes) -> HistoryEntry | None:
    try:
        entry = HistoryEntry.model_validate(json.loads(line))
        return entry if datetime.fromisoformat(entry.at).tzinfo else None
    except (ValueError, RecursionError):
        return None


def _last(raw: bytes, mine: Callable[[HistoryEntry], bool]) -> HistoryEntry | None:
    return next((one for line in reversed(raw.split(b"\n")) if (one := _entry_of(line)) and mine(one)), None)


def _entry(
    when: Moment, event: str, host: str, address: str, plan_sha256: str | None, guests: Sequence[HeldGuest]
) -> HistoryEntry:
    at = datetime.fromtimestamp(when.seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return HistoryEntry.model_validate(
        {
            **{"at": at, "boot": when.boot, "uptime_s": round(when.uptime_s, 3), "event": event, "host": host},
            **{"address": address, "plan_sha256": plan_sha256, "guests": tuple(guests)},
        }
    )


def _append(
    file: Path,
    mine: Callable[[HistoryEntry], bool],
    entry: Callable[[HistoryEntry | None, Moment], HistoryEntry | None],
    moment: Callable[[], Moment],
) -> bool:
    """Append what ``entry`` makes of the last line that is ``mine``.  The time is taken under the lock."""
    try:
        with _locked(file) as descriptor:
            with open(descriptor, "rb", closefd=False) as stream:
                raw = stream.read()
            before = _last(raw, mine)
            made = entry(before, moment())
            if made is None:
                return False
            line = json.dumps(made.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            # One write, so that a reader who takes no lock sees all of it or an end that is torn.
            data = (b"\n" if raw and not raw.endswith(b"\n") else b"") + line.encode() + b"\n"
            while data:
                data = data[os.write(descriptor, data) :]
            os.fsync(descriptor)
            return True
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise EvenkeelError(f"cannot write the history {file}: {reason}") from None


@contextmanager
def _locked(file: Path) -> Iterator[int]:
    """The file, made where it is missing, for this writer alone.  Raises OSError, EvenkeelError."""
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise EvenkeelError(
                        f"cannot write the history {file}: another program holds its lock for {PATIENCE_S:.0f} s"
                    ) from None
                time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)
