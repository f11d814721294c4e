"""Apply and undo one step, journaled: snapshot, intent to disk, write, read back, compare, result to disk.

A step that is right already is not written and leaves no line.  A step that reads back differently has failed.
:mod:`evenkeel.probe.steps` knows what the kinds mean; this module knows only that order.
"""

from __future__ import annotations

import errno
import importlib
from typing import Any

from evenkeel.probe import canary
from evenkeel.probe.boot_id import boot_id
from evenkeel.probe.failure import Refused, StepFailed, from_os_error
from evenkeel.probe.journal import writer
from evenkeel.probe.steps.files import read_value

#: Kind -> "module" or "module:Class"; loaded at first use.
KINDS = {
    "file": "files",
    "config": "config",
    "boot": "boot",
    "interrupt": "interrupts",
    "thread": "threads",
    "unit": "units",
    "channels": "channels",
    "service": "services",
    "partition": "partitions",
    "guest": "guests:Definition",
    "guest_power": "guests:Power",
    "guest_thread": "guests:Thread",
    "guest_drain": "guests:Drain",
    "guest_helpers": "guests:Helpers",
}
_MOST_IN_MESSAGE = 200


def kind_of(step: dict[str, Any]) -> Any:
    """The module or class that knows steps of this kind.  Raises StepFailed for one that there is not."""
    if step.get("kind") not in KINDS:
        raise StepFailed("the probe knows no step of the kind %r; is the probe older than the plan?" % step.get("kind"))
    module, _, name = KINDS[step["kind"]].partition(":")
    loaded = importlib.import_module("evenkeel.probe.steps." + module)
    return getattr(loaded, name) if name else loaded


def read_files(paths: list[str], root: str = "/") -> dict[str, Any]:
    """Operation: contents without the last newline.  ``values``: path -> text; ``errors``: path -> errno name."""
    values, errors = {}, {}
    for path in paths:
        try:
            content = read_value(path, root)
        except StepFailed as error:
            errors[path] = errno.errorcode.get(error.code or 0, "EIO")
            continue
        if content is None:
            errors[path] = "ENOENT"
        else:
            values[path] = content.rstrip("\n")
    return {"values": values, "errors": errors}


def apply_step(
    step: dict[str, Any],
    plan_sha256: str = "",
    setting: str | None = None,
    phase: str | None = None,
    dry_run: bool = False,
    root: str = "/",
) -> dict[str, Any]:
    """Operation: bring one thing to its wanted state.

    Returns ``outcome``: unchanged, absent, done, refused (the kernel keeps it to itself), taken_back (a step with
    ``canary`` starved the host, and the old value is in force again) or would_change (``dry_run``); ``old`` and
    ``read_back`` as a person writes them; ``message``.  Raises StepFailed when it did not work: the intent stays in
    the journal, so that it is undone with the rest.
    """
    kind = kind_of(step)
    state = _snapshot(kind, step, root)
    old = kind.shown(step, state)
    if state is None and getattr(kind, "ABSENT_IS_FINE", False):
        return {"outcome": "absent", "old": None, "read_back": None, "message": "not there now, so nothing to set"}
    if kind.satisfied(step, state):
        return {"outcome": "unchanged", "old": old, "read_back": old, "message": None}
    if dry_run:
        return {"outcome": "would_change", "old": old, "read_back": old, "message": None}
    journal = writer(root)
    names: dict[str, Any] = {"setting": setting, "phase": phase}
    watched = bool(step.get("canary")) and canary.takes_away(step.get("value"), old) and canary.exists(root)
    before, limit = canary.calibrate(root) if watched else (0.0, 0.0)
    number = journal.append("intent", plan_sha256, step=step, old=state, wanted=step.get("value"), **names)
    try:
        if watched:
            read_back, took = _write_watched(kind, step, state, limit, root)
            if took is None:
                message = _starved(limit, before)
                journal.append("refused", plan_sha256, number, errno="ETIMEDOUT", message=message, **names)
                now = kind.shown(step, _snapshot(kind, step, root))
                journal.append("undone", plan_sha256, number, read_back=now, message=message, **names)
                return {"outcome": "taken_back", "old": old, "read_back": now, "message": message, "errno": "ETIMEDOUT"}
        else:
            read_back = _write(kind, step, state, root)
    except Refused as refusal:
        code = errno.errorcode.get(refusal.code or 0)
        journal.append("refused", plan_sha256, number, errno=code, message=refusal.message, **names)
        now = kind.shown(step, _snapshot(kind, step, root))
        return {"outcome": "refused", "old": old, "read_back": now, "message": refusal.message, "errno": code}
    except StepFailed as failure:
        described = failure.describe()
        journal.append(
            "refused", plan_sha256, number, errno=described.get("errno"), message=described["message"], **names
        )
        raise
    journal.append("done", plan_sha256, number, read_back=read_back, **names)
    answer = {"outcome": "done", "old": old, "read_back": read_back, "message": None}
    if watched:
        answer["canary_limit_s"] = limit
    return answer


def check_steps(steps: list[dict[str, Any]], root: str = "/") -> list[dict[str, Any]]:
    """Operation: what :func:`apply_step` would do with each, without writing; a step that fails gives ``error``."""
    found = []
    for step in steps:
        try:
            found.append(apply_step(step, dry_run=True, root=root))
        except StepFailed as failure:
            found.append({"outcome": "failed", "old": None, "read_back": None, "error": failure.describe()})
    return found


def undo_step(sequence: int, root: str = "/") -> dict[str, Any]:
    """Operation: restore the state that the intent with this number found.  Works after a kill anywhere, and twice.

    ``outcome``: undone, or gone (a setting of an earlier boot, which the reboot took away by itself).
    """
    journal = writer(root)
    intent = journal.intent(sequence)
    names: dict[str, Any] = {"setting": intent.get("setting"), "phase": intent.get("phase")}
    if all(entry["sequence"] != sequence for entry in journal.outstanding()):
        return {"outcome": "undone", "read_back": None, "message": "it was undone before"}
    step = dict(intent["step"])
    kind = kind_of(step)
    if not kind.PERSISTENT and step.pop("boot_id", None) != boot_id(root):
        message = "gone with the reboot"
        journal.append("undone", intent["plan_sha256"], sequence, message=message, **names)
        return {"outcome": "gone", "read_back": None, "message": message}
    try:
        kind.undo(step, intent.get("old"), root)
    except OSError as error:
        raise from_os_error(error, "cannot undo %s" % (intent.get("setting") or step["kind"])) from None
    now = kind.shown(step, _snapshot(kind, step, root))
    journal.append("undone", intent["plan_sha256"], sequence, read_back=now, **names)
    return {"outcome": "undone", "read_back": now, "message": None}


def watch_canary(
    sequences: list[int], within_s: float = 5.0, limit_s: float = canary.LIMIT_S, root: str = "/"
) -> dict[str, Any]:
    """Operation: watch the canary for ``within_s`` seconds; when it trips, undo these intents, newest first.

    Here and not on the controlling side, because a starved host may not answer any more.  ``slowest_s``: None when it
    tripped; ``undone``: what was taken back; ``problems``: what could not be.
    """
    if not canary.exists(root):
        return {"slowest_s": 0.0, "spent_s": 0.0, "undone": [], "problems": [], "message": "no %s here" % canary.FILE}
    slowest, spent = canary.watch(within_s, limit_s, root)
    undone, problems = [], []
    for sequence in sorted(sequences, reverse=True) if slowest is None else ():
        try:
            undo_step(sequence, root)
            undone.append(sequence)
        except StepFailed as failure:
            problems.append(failure.message)
    return {
        "slowest_s": slowest,
        "spent_s": spent,
        "undone": undone,
        "problems": problems,
        "message": _starved(limit_s, None) if slowest is None else None,
    }


def _write_watched(
    kind: Any, step: dict[str, Any], state: str | None, limit_s: float, root: str
) -> tuple[str | None, float | None]:
    """Write, read back, ask the canary.  (value read back, seconds; None: it starved the host and is taken back)."""
    switch = canary.DeadMansSwitch(lambda: kind.undo(step, state, root), limit_s + canary.PATIENCE_S)
    try:
        read_back = _write(kind, step, state, root)
        took = canary.host_wide(limit_s, root)
        if took is None:
            kind.undo(step, state, root)
        return read_back, took
    finally:
        switch.release()


def _starved(limit_s: float, before_s: float | None) -> str:
    told = "" if before_s is None else "; before the change it took %.2f s" % before_s
    return (
        "with it an operation that needs a turn on every CPU (%s) was not done within %.1f s%s: a real-time thread "
        "does not let go of its CPU, so the change was taken back" % (canary.FILE, limit_s, told)
    )


def _snapshot(kind: Any, step: dict[str, Any], root: str) -> str | None:
    try:
        state: str | None = kind.snapshot(step, root)
    except OSError as error:
        raise from_os_error(error, "cannot look at %s" % step["kind"], error.filename) from None
    return state


def _write(kind: Any, step: dict[str, Any], state: str | None, root: str) -> str | None:
    """Write and read back.  Returns what a person would call the new state."""
    try:
        kind.write(step, state, root)
    except OSError as error:
        raise from_os_error(error, "cannot write %s" % step["kind"], error.filename) from None
    after = _snapshot(kind, step, root)
    read_back: str | None = kind.shown(step, after)
    if not kind.satisfied(step, after):
        raise StepFailed(
            "wrote %s and reads %s: it was taken and changed; something else sets it too, or this kernel limits it"
            % (_brief(step.get("value")), _brief(read_back)),
            None,
            step.get("path"),
            read_back,
        )
    return read_back


def _brief(text: Any) -> str:
    shown = repr(text)
    return shown if len(shown) <= _MOST_IN_MESSAGE else shown[:_MOST_IN_MESSAGE] + "..."
