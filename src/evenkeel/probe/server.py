"""The conversation: one JSON request a line on stdin, one JSON answer a line on stdout.

Request  ``{"id": 1, "op": "facts", "args": {...}}``
Answer   ``{"id": 1, "ok": RESULT}`` or ``{"id": 1, "error": {"message": ..., "errno": "EPERM", "path": ...}}``,
before it any number of ``{"id": 1, "progress": [done, total, "what"]}``.

This module must not read or write the machine itself: operations live in the modules named in :data:`OPERATIONS`.
"""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
from typing import Any, BinaryIO, Callable

from evenkeel.probe.boot_id import boot_id
from evenkeel.probe.failure import StepFailed

#: Operation -> "module:function".  A function takes keyword arguments and may take ``on_progress(done, total, what)``.
#: Modules are loaded at first use, so that a `hello` stays cheap on a slow machine.
OPERATIONS = {
    "hello": "evenkeel.probe.server:hello",
    "facts": "evenkeel.probe.facts:read_facts",
    "inventory": "evenkeel.probe.inventory:read_inventory",
    "record": "evenkeel.probe.facts.record:record",
    # reading and writing (evenkeel.probe.write): journaled, read back
    "read": "evenkeel.probe.write:read_files",
    "apply_step": "evenkeel.probe.write:apply_step",
    "check_steps": "evenkeel.probe.write:check_steps",
    "undo_step": "evenkeel.probe.write:undo_step",
    "boot_menu": "evenkeel.probe.steps.boot:menu",
    "journal_read": "evenkeel.probe.journal:read_journal",
    "journal_note": "evenkeel.probe.journal:note",
    "journal_release": "evenkeel.probe.journal:release",
    "not_ready": "evenkeel.probe.journal:set_not_ready",
    "schedulable": "evenkeel.probe.journal:set_schedulable",
    "running_guests": "evenkeel.probe.running:running_guests",
    "watch_canary": "evenkeel.probe.write:watch_canary",
    "run": "evenkeel.probe.command:run",
    "reboot": "evenkeel.probe.command:reboot",
    # sampling (evenkeel.probe.sample*): never writes a setting, leaves nothing behind
    "threads": "evenkeel.probe.sample:threads",
    "intruders": "evenkeel.probe.sample:intruders",
    "interrupts": "evenkeel.probe.sample:interrupts",
    "numa_maps": "evenkeel.probe.sample:numa_maps",
    "units": "evenkeel.probe.sample:units",
    "spin": "evenkeel.probe.sample_spin:spin",
    "spin_guest": "evenkeel.probe.sample_spin:spin_guest",
    "together": "evenkeel.probe.sample_together:together",
    "dma_latency": "evenkeel.probe.sample_dma_latency:dma_latency",
    "guest_state": "evenkeel.probe.sample_guest:guest_state",
    "guest_exec": "evenkeel.probe.sample_guest:guest_exec",
    # tracing (evenkeel.probe.trace): counts in the kernel, changes no setting, and is gone with this process
    "trace_sources": "evenkeel.probe.trace.capabilities:try_sources",
    "trace_calibrate": "evenkeel.probe.trace.calibrate:calibrate",
    "trace_speed": "evenkeel.probe.trace.calibrate:speed",
    "trace_start": "evenkeel.probe.trace.question:trace_start",
    "trace_wait": "evenkeel.probe.trace.question:trace_wait",
    "trace_pace": "evenkeel.probe.trace.question:trace_pace",
    "trace_finish": "evenkeel.probe.trace.question:trace_finish",
    "trace_close": "evenkeel.probe.trace.question:trace_close",
    "trace_events": "evenkeel.probe.trace.tracefs:events",
    "trace_orphans": "evenkeel.probe.trace.tracefs:remove_orphans",
    # recording (evenkeel.probe.recording*): trace instances of its own, always removed again
    "recording": "evenkeel.probe.recording:record",
    "recording_flight": "evenkeel.probe.recording:fly",
    "recording_fetch": "evenkeel.probe.recording:fetch",
    "recording_mark": "evenkeel.probe.recording:mark_of",
    "recording_drop": "evenkeel.probe.recording:drop",
    "recording_guest_start": "evenkeel.probe.recording_guest:start",
    "recording_guest_stop": "evenkeel.probe.recording_guest:stop",
    "recording_guest_file": "evenkeel.probe.recording_guest:file",
    "recording_guest_clean": "evenkeel.probe.recording_guest:clean",
    "recording_guest_clock": "evenkeel.probe.recording_guest:clock",
    # watching (evenkeel.probe.watch): waits and looks, never writes
    "watch": "evenkeel.probe.watch:watch",
    "watch_look": "evenkeel.probe.watch_look:look",
}


def hello() -> dict[str, Any]:
    """Who answers: the boot id proves a reboot, the Python version explains failures."""
    return {
        "boot_id": boot_id(),
        "python": "%d.%d.%d" % sys.version_info[:3],
        "release": os.uname().release,
        "uid": os.getuid(),
        "pid": os.getpid(),
    }


def _resolve(op: str) -> Any:
    module, _, function = OPERATIONS[op].partition(":")
    return getattr(importlib.import_module(module), function)


def _describe(error: Exception) -> dict[str, Any]:
    if isinstance(error, StepFailed):
        return error.describe()
    answer = {"message": "%s: %s" % (type(error).__name__, error)}
    if isinstance(error, OSError):
        answer = {"message": error.strerror or str(error)}
        if error.errno is not None:
            answer["errno"] = errno.errorcode.get(error.errno, str(error.errno))
        if error.filename is not None:
            answer["path"] = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else str(error.filename)
    return answer


def _reporter(number: int, send: Callable[[dict[str, Any]], None]) -> Callable[[int, int, str], None]:
    return lambda done, total, what: send({"id": number, "progress": [done, total, what]})


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer until stdin ends.  An operation that fails is answered; only a lost connection ends the loop."""

    def send(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message, ensure_ascii=True).encode() + b"\n")
        answers.flush()

    for line in requests:
        if not line.strip():
            continue
        request = json.loads(line)
        number, op, args = request["id"], request["op"], dict(request.get("args") or {})
        try:
            if op not in OPERATIONS:
                raise ValueError("the probe has no operation %r" % op)
            function = _resolve(op)
            code = function.__code__
            if "on_progress" in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
                args["on_progress"] = _reporter(number, send)
            send({"id": number, "ok": function(**args)})
        except (BrokenPipeError, KeyboardInterrupt):
            raise
        except Exception as error:  # noqa: BLE001  every failure of an operation is an answer
            send({"id": number, "error": _describe(error)})


def close_all() -> None:
    """Let go of what would outlive this process: only tracing has such a thing, and only while it was asked for."""
    question = sys.modules.get("evenkeel.probe.trace.question")
    if question is not None:
        question.trace_close()


def main() -> None:
    """Keep stdout for answers alone: whatever an operation or its child prints by mistake goes to stderr."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    try:
        serve(sys.stdin.buffer, answers)
        close_all()
    except (BrokenPipeError, KeyboardInterrupt):
        # The other side went away.  What was being written is in the journal; there is nobody left to tell.
        close_all()
        os._exit(1)
