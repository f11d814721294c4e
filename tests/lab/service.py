"""A lab's service as a process of its own, as `evenkeel lab up` starts it: for tests of what only a process can do."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evenkeel.cli import output
from evenkeel.cli.root import run
from evenkeel.lab.client import Client


@dataclass
class Running:
    """``url``: of the pages; ``link``: logs the service's user in, once."""

    folder: Path
    process: subprocess.Popen[str]
    url: str
    link: str
    told: Path

    def client(self) -> Client:
        return Client(str(self.folder / "lab.sock"))

    def said(self) -> str:
        """All that it told, on one line: it wraps its lines."""
        return " ".join(self.told.read_text().split())

    def says(self, what: str, seconds: float = 120) -> None:
        """Wait until it has said so."""
        end = time.monotonic() + seconds
        while what not in self.said():
            assert self.process.poll() is None and time.monotonic() < end, self.said()
            time.sleep(0.05)

    def end(self, sign: signal.Signals = signal.SIGTERM) -> int:
        """Send it and wait; the exit code."""
        self.process.send_signal(sign)
        return self.process.wait(120)


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


def evenkeel(*arguments: str) -> Done:
    """One command, in this process: starting another one costs a second."""
    output._emitted = False  # of the command before
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run(arguments)
    return Done(code, out.getvalue(), err.getvalue())


@contextlib.contextmanager
def up(folder: Path, *options: str, wait_for: str = "the lab is up") -> Iterator[Running]:
    """Start it and wait until it says ``wait_for``; ended, if need be by force, whatever happens."""
    folder.mkdir(parents=True, exist_ok=True)
    told = folder.parent / f"{folder.name}.log"
    command = [sys.executable, "-m", "evenkeel", "lab", "up", "--folder", str(folder), "--listen", "127.0.0.1:0"]
    with told.open("w") as stream:
        process = subprocess.Popen([*command, *options], stdout=stream, stderr=stream, text=True)
    try:
        end = time.monotonic() + 480  # on a machine that has much else to do
        while wait_for not in told.read_text() or ("log in by" not in told.read_text() and "--settings" not in options):
            assert process.poll() is None, told.read_text()
            assert time.monotonic() < end, told.read_text()
            time.sleep(0.02)
        text = told.read_text()
        url = re.search(r"the lab is up: (\S+)", text)
        link = re.search(r"log in by: (\S+)", text)
        yield Running(folder, process, url[1] if url else "", link[1] if link else "", told)
    finally:
        process.terminate()  # in order, so that it ends its agent too; a killed one leaves that behind
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _end_agents(folder)


def _end_agents(folder: Path) -> None:
    """The agent of a service that a test killed outlives it on purpose; the test leaves nothing behind."""
    for found in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (found / "cmdline").read_bytes().split(b"\0")
            if b"agent" in words and str(folder).encode() in words:
                os.kill(int(found.name), signal.SIGKILL)
