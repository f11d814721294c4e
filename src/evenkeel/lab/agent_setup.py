"""What an agent is on this machine: its lab, its folder, its labels, its executor."""

from __future__ import annotations

import contextlib
import os
import platform
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from evenkeel.errors import WrongInput
from evenkeel.lab.agent import Agent, local_line, remote_line
from evenkeel.lab.client import Client, tokens
from evenkeel.lab.contents import Contents
from evenkeel.lab.dispatching import socket_path
from evenkeel.lab.executor import Executor, Processes
from evenkeel.lab.hold import NoCgroup, delegated_cgroup
from evenkeel.lab.place import SYSTEM_FOLDER, SYSTEM_SOCKET, default_folder, folder_of, socket_of
from evenkeel.lab.tools import tools_here
from evenkeel.lab.transfer import Here, There

_LABEL = re.compile(r"([a-z][a-z0-9_.-]{0,40})=(.{1,200})")


def agent(
    at: str | None,
    *,
    name: str | None,
    slots: int | None,
    labels: Sequence[str],
    folder: Path | None,
    say: Callable[[str], None],
    sbatch: Sequence[str] | None = None,
    leave_after_s: float | None = None,
) -> Agent:
    """``at``: URL of a lab, its folder, or None for the one of this machine.  ``sbatch``: steps become jobs of Slurm,
    submitted with these options.  Raises WrongInput."""
    name = name or platform.node().partition(".")[0]
    slots = slots or os.cpu_count() or 1
    known = labels_here() | given(labels)
    if at is not None and "://" in at:
        token = os.environ.get("EVENKEEL_LAB_TOKEN") or tokens().get(at.rstrip("/"))
        if not token:
            raise WrongInput("an agent elsewhere needs a token", hint="in EVENKEEL_LAB_TOKEN; its scope is `agent`")
        url, secret = at, token
        folder = folder or default_folder().parent / "lab-agent" / name
        return Agent(
            *(folder, name, slots, known),
            lambda: remote_line(url, secret),
            _slurm(name, folder, sbatch, url, secret)
            if sbatch is not None
            else _processes(name, There(Client(url, secret)), say),
            local=False,
            say=say,
        )
    lab = _lab_folder(at)
    folder = folder or lab / "agents" / name
    return Agent(
        *(folder, name, slots, known),
        lambda: local_line(socket_path(lab)),
        _slurm(name, folder, sbatch, lab / "artifacts")
        if sbatch is not None
        else _processes(name, Here(Contents(lab / "artifacts")), say),
        leave_after_s=leave_after_s,
        say=say,
    )


def _processes(name: str, reach: Here | There, say: Callable[[str], None]) -> Callable[[str], Executor]:
    def made(identity: str) -> Executor:
        cgroup = None
        try:
            cgroup = delegated_cgroup()
        except NoCgroup as error:
            say(f"limits of steps are watched, not held by cgroups: {error}")
        return Processes(name, identity, fetch=reach.fetch, bring=reach.bring, cgroup=cgroup)

    return made


def _slurm(
    name: str, folder: Path, words: Sequence[str], lab: Path | str, token: str = ""
) -> Callable[[str], Executor]:
    from evenkeel.lab.slurm import Slurm, reach_here, reach_there

    def made(identity: str) -> Executor:
        if isinstance(lab, Path):
            return Slurm(name, identity, folder / "slurm", reach_here(lab), words)
        file, new = folder / "token", folder / "token.new"
        new.unlink(missing_ok=True)
        # Jobs of the agent before read it at any time, and a file that was there may be one that others can read.
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as stream:
            stream.write(token)
        new.replace(file)
        return Slurm(name, identity, folder / "slurm", reach_there(lab, file), words)

    return made


def _lab_folder(at: str | None) -> Path:
    """Agents on the lab's machine need its folder: their socket is there, and the files that steps give."""
    if at is not None:
        return folder_of(at)
    own = default_folder()
    return SYSTEM_FOLDER if not socket_of(own).exists() and SYSTEM_SOCKET.exists() else own


def labels_here() -> dict[str, list[str]]:
    """What any agent says of itself, in the words of predicates (docs/reference/lab-predicate.md)."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {"arch": [platform.machine()], "cpu.threads": [str(os.cpu_count() or 1)], "mem": [str(memory)]}
    found["tool"] = tools_here()
    with contextlib.suppress(OSError, KeyError):
        found["os"] = [platform.freedesktop_os_release()["PRETTY_NAME"].lower()]
    return found


def given(labels: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in labels:
        match = _LABEL.fullmatch(word)
        if not match:
            raise WrongInput(f"{word!r} is no label", hint="--label NAME=VALUE, as in --label cross=arm64")
        found.setdefault(f"label.{match[1]}", []).append(match[2].lower())
    return found
