"""Run one of a fixed set of programs on the machine, and reboot it.

Never a shell, never a program that is not in :data:`PROGRAMS`, never a search path that somebody else can write to.
This module must not decide what a failure means: it returns the exit code and what the program said.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from typing import Any

from evenkeel.probe.failure import StepFailed, from_os_error
from evenkeel.probe.inside import inside
from evenkeel.probe.journal import children_keep_lock

#: What may run, and nothing else.
PROGRAMS = ("findmnt", "grub2-mkconfig", "systemctl", "update-grub", "virsh")
FOLDERS = ("/usr/sbin", "/usr/bin", "/sbin", "/bin")
#: Of what a program prints, in bytes; more is cut off in the middle.
_MOST_OUTPUT = 1 << 20


def find_program(name: str, root: str = "/") -> str:
    """Absolute path of an allowed program.  Raises StepFailed."""
    if name not in PROGRAMS:
        raise StepFailed("the probe does not run %r; it runs %s" % (name, ", ".join(PROGRAMS)))
    for folder in FOLDERS:
        path = inside(root, "%s/%s" % (folder, name))
        if os.access(path, os.X_OK):
            return path
    raise StepFailed("the machine has no %s; install the package that brings it" % name, 2)


def run(argv: list[str], within_s: float = 60.0, stdin: str | None = None, root: str = "/") -> dict[str, Any]:
    """Operation: run a program to its end.  Returns ``rc``, ``stdout``, ``stderr``.

    After ``within_s`` seconds it and its children are killed and StepFailed is raised.
    """
    if not argv or not all(isinstance(word, str) and "\0" not in word for word in argv):
        raise StepFailed("a command is a list of texts")
    program = find_program(argv[0], root)
    try:
        process = subprocess.Popen(
            [program, *argv[1:]],
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=root,
            env={"PATH": ":".join(FOLDERS), "LC_ALL": "C", "HOME": "/root"},
            start_new_session=True,
            pass_fds=children_keep_lock(),
        )
    except OSError as error:
        raise from_os_error(error, "cannot start %s" % program, program) from None
    try:
        out, err = process.communicate(stdin.encode() if stdin is not None else None, within_s)
    except subprocess.TimeoutExpired:
        _end(process)
        raise StepFailed("%s did not end within %.0f s and was killed" % (" ".join(argv), within_s), 110) from None
    except BaseException:
        _end(process)
        raise
    return {"rc": process.returncode, "stdout": _text(out), "stderr": _text(err)}


def output(argv: list[str], within_s: float = 60.0, stdin: str | None = None, root: str = "/") -> str:
    """What a program that must succeed prints on stdout.  Raises StepFailed with what it said on stderr."""
    done = run(argv, within_s, stdin, root)
    if done["rc"] != 0:
        said = (done["stderr"].strip() or done["stdout"].strip()).splitlines()
        raise StepFailed("%s failed (exit code %d): %s" % (" ".join(argv), done["rc"], " / ".join(said[-6:])))
    return str(done["stdout"])


def reboot() -> None:
    """Operation: reboot through the init system, so that file systems are synced and the boot loader is used."""
    os.sync()
    output(["systemctl", "--no-block", "reboot"], 30.0)


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _text(data: bytes) -> str:
    if len(data) > _MOST_OUTPUT:
        half = _MOST_OUTPUT // 2
        data = data[:half] + b"\n[...]\n" + data[-half:]
    return data.decode("utf-8", "replace")
