"""Run a helper program so that nothing of it survives us, and turn its failure into a message.

Never with a shell.  ``contained`` is for programs that mount and fork (mmdebstrap): they get their own mount and
process namespaces and die with this process, even when it is killed with SIGKILL.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from evenkeel.errors import NotAsWanted, WrongInput

#: Everything of the program's output that goes into a message.
_TAIL = 12
#: How programs say that the disk is full: strerror(ENOSPC), and apt before it begins.
_NO_SPACE = ("No space left on device", "have enough free space in")


def tool(name: str) -> str:
    """The path of a program that packages.txt brings.  Raises WrongInput with the cure."""
    path = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if path is None:
        raise WrongInput(
            f"{name} is not installed",
            hint="apt-get install " + " ".join(host_packages()),
        )
    return path


def host_packages() -> list[str]:
    """The Debian packages that a machine which runs virtual hosts needs."""
    from evenkeel.machines.virtual.places import RECIPE

    return read_list(RECIPE / "packages.txt")


def read_list(file: Path) -> list[str]:
    words = (line.partition("#")[0].strip() for line in file.read_text().splitlines())
    return [word for word in words if word]


def contained(argv: Sequence[str]) -> list[str]:
    """The command in namespaces of its own that end with it; needs root."""
    return [
        tool("setpriv"),
        "--pdeathsig",
        "KILL",
        "--",
        tool("unshare"),
        "--mount",
        "--propagation",
        "private",
        "--pid",
        "--fork",
        "--kill-child=KILL",
        "--mount-proc",
        "--",
        *argv,
    ]


def run(
    argv: Sequence[str],
    *,
    what: str,
    on_line: Callable[[str], None] | None = None,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
) -> str:
    """Run to the end and return stdout and stderr together.

    ``what`` completes the sentence "could not ..." of the error.  Raises NotAsWanted with the last lines that the
    program wrote, or, when the disk is full, with that.
    """
    output: list[str] = []
    with subprocess.Popen(
        list(argv),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        cwd=cwd,
        env=({**os.environ, **env} if env else None),
    ) as process:
        try:
            assert process.stdout is not None
            for line in process.stdout:
                output.append(line.rstrip())
                if on_line is not None:
                    on_line(line.rstrip())
            code = process.wait()
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            assert process.stdout is not None
            process.stdout.read()  # its end is the end of the last child that could still write into our folders
            raise
    if code == 0:
        return "\n".join(output)
    tail = "\n  ".join(line[:200] for line in output[-_TAIL:])
    if any(words in line for line in output for words in _NO_SPACE):
        raise disk_full(what)
    raise NotAsWanted(f"could not {what}: {_program(argv)} ended with {code}\n  {tail}")


def _program(argv: Sequence[str]) -> str:
    """The name of the program, without what :func:`contained` put before it."""
    start = len(argv) - list(reversed(argv)).index("--") if "--" in argv else 0
    return Path(argv[start]).name


class DiskFull(NotAsWanted):
    """This machine's disk is, or would be, full: no fault of the virtual host."""


def disk_full(what: str, needed: int | None = None, place: Path | None = None, free: int | None = None) -> DiskFull:
    """The error for a disk that is, or would be, full.  Sizes in bytes."""
    mib = 1024**2
    size = f"; {needed // mib} MiB are needed" if needed else ""
    left = f" in {place}, {free // mib} MiB are free" if place and free is not None else ""
    return DiskFull(
        f"could not {what}: the disk is full{size}{left}",
        hint="make room, or point XDG_CACHE_HOME (images) or XDG_STATE_HOME (hosts) to a larger disk",
    )


def is_disk_full(error: OSError) -> bool:
    """``shutil.copytree`` raises no number: it goes on, and tells at its end, as text, what it could not copy."""
    if isinstance(error, shutil.Error):
        return any(f"[Errno {number}]" in str(error) for number in (errno.ENOSPC, errno.EDQUOT))
    return error.errno in (errno.ENOSPC, errno.EDQUOT)
