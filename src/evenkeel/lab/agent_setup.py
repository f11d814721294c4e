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
from evenkeel.lab.executor import Processes
from evenkeel.lab.hold import delegated_cgroup
from evenkeel.lab.place import SYSTEM_FOLDER, SYSTEM_SOCKET, default_folder, socket_of
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
) -> Agent:
    """``at``: URL of a lab, its folder, or None for the one of this machine.  Raises WrongInput."""
    name = name or platform.node().partition(".")[0]
    slots = slots or os.cpu_count() or 1
    known = labels_here() | _given(labels)
    cgroup = delegated_cgroup()
    if at is not None and "://" in at:
        token = os.environ.get("EVENKEEL_LAB_TOKEN") or tokens().get(at.rstrip("/"))
        if not token:
            raise WrongInput("an agent elsewhere needs a token", hint="in EVENKEEL_LAB_TOKEN; its scope is `agent`")
        url, secret = at, token
        there = There(Client(url, secret))
        return Agent(
            folder or default_folder().parent / "lab-agent" / name,
            *(name, slots, known),
            lambda: remote_line(url, secret),
            lambda identity: Processes(name, identity, fetch=there.fetch, bring=there.bring, cgroup=cgroup),
            local=False,
            say=say,
        )
    lab = _lab_folder(at)
    here = Here(Contents(lab / "artifacts"))
    return Agent(
        folder or lab / "agents" / name,
        *(name, slots, known),
        lambda: local_line(socket_path(lab)),
        lambda identity: Processes(name, identity, fetch=here.fetch, bring=here.bring, cgroup=cgroup),
        say=say,
    )


def _lab_folder(at: str | None) -> Path:
    """Agents on the lab's machine need its folder: their socket is there, and the files that steps give."""
    if at is not None:
        path = Path(at).expanduser().absolute()
        return path if path.is_dir() else path.parent
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


def _given(labels: Sequence[str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for word in labels:
        match = _LABEL.fullmatch(word)
        if not match:
            raise WrongInput(f"{word!r} is no label", hint="--label NAME=VALUE, as in --label cross=arm64")
        found.setdefault(f"label.{match[1]}", []).append(match[2].lower())
    return found
