"""A real guest agent on this machine, in the place of libvirt's: a guest without a virtual machine."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evenkeel.probe import libvirt
from tests.waiting import until


class Libvirt:
    """Stands in for :mod:`evenkeel.probe.libvirt`: each question to an agent goes to the one that listens here."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.socket, self.says = folder, folder / "agent", "running"
        self.agent: subprocess.Popen[bytes]
        for name in ("state", "agent_command"):
            monkeypatch.setattr(libvirt, name, getattr(self, name))
        monkeypatch.setattr(libvirt, "xml", lambda guest, inactive=False: "<domain />")

    def state(self, guest: str) -> str:
        return self.says

    def agent_command(self, guest: str, request: str, limit_s: int, on_edge: Callable[[], None] | None = None) -> str:
        if on_edge:
            on_edge()
        try:
            return self._ask(request, limit_s)
        finally:
            if on_edge:
                on_edge()

    def _ask(self, request: str, limit_s: int) -> str:
        with socket.socket(socket.AF_UNIX) as agent:
            agent.settimeout(limit_s)
            try:
                agent.connect(str(self.socket))
                agent.sendall(request.encode() + b"\n")
                answer = b""
                while b"\n" not in answer:
                    piece = agent.recv(1 << 20)
                    if not piece:
                        raise libvirt.Refused("Guest agent is not responding: it closed the channel")
                    answer += piece
            except OSError:
                raise libvirt.Refused("Guest agent is not responding: QEMU guest agent is not connected") from None
        if "error" in (found := json.loads(answer)):
            raise libvirt.Refused("internal error: unable to execute QEMU agent command: " + found["error"]["desc"])
        return answer.decode()


@contextlib.contextmanager
def running_agent(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str | None = None) -> Iterator[Libvirt]:
    """Every guest has this agent until the end of the block.  ``path``: where programs are, in the guest."""
    program = shutil.which("qemu-ga", path=os.environ["PATH"] + ":/usr/sbin")
    assert program, "qemu-guest-agent is not installed"
    found = Libvirt(folder, monkeypatch)
    words = [program, "--method=unix-listen", f"--path={found.socket}", f"--statedir={folder}"]
    found.agent = subprocess.Popen(
        [*words, f"--pidfile={folder}/pid"], env={**os.environ, "PATH": path or os.environ["PATH"]}
    )
    try:
        until(lambda: found.socket.exists() or found.agent.poll() is not None)
        assert found.agent.poll() is None, "qemu-guest-agent does not run"
        yield found
    finally:
        found.agent.terminate()
        found.agent.wait()
