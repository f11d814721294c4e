"""A real guest agent on this machine, and a virsh that hands it each question: a guest without a virtual machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_VIRSH = """#!{python}
import json, socket, sys
if "domstate" in sys.argv:
    print("{state}")
elif "qemu-agent-command" in sys.argv:
    agent = socket.socket(socket.AF_UNIX)
    try:
        agent.connect("{socket}")
    except OSError:
        sys.exit("error: Guest agent is not responding: QEMU guest agent is not connected")
    agent.sendall(sys.argv[sys.argv.index("--cmd") + 1].encode() + b"\\n")
    answer = b""
    while b"\\n" not in answer:
        answer += agent.recv(1 << 20)
    answer = json.loads(answer)
    if "error" in answer:
        sys.exit("error: internal error: unable to execute QEMU agent command: " + answer["error"]["desc"])
    print(json.dumps(answer))
"""


class Virsh:
    """The program that stands in for virsh below ``folder``, and where the agent listens."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.socket = folder, folder / "agent"
        self.program = folder / "bin" / "virsh"
        self.program.parent.mkdir()
        self.says("running")

    def says(self, state: str) -> None:
        """What it answers when it is asked how the guest is."""
        self.program.write_text(_VIRSH.format(python=sys.executable, socket=self.socket, state=state))
        self.program.chmod(self.program.stat().st_mode | stat.S_IXUSR)


@contextlib.contextmanager
def running_agent(folder: Path, monkeypatch: pytest.MonkeyPatch, path: str | None = None) -> Iterator[Virsh]:
    """Every guest has this agent until the end of the block.  ``path``: where programs are, in the guest."""
    program = shutil.which("qemu-ga", path=os.environ["PATH"] + ":/usr/sbin")
    assert program, "qemu-guest-agent is not installed"
    virsh = Virsh(folder)
    words = [program, "--method=unix-listen", f"--path={virsh.socket}", f"--statedir={folder}"]
    agent = subprocess.Popen(
        [*words, f"--pidfile={folder}/pid"], env={**os.environ, "PATH": path or os.environ["PATH"]}
    )
    monkeypatch.setenv("PATH", f"{virsh.program.parent}:{os.environ['PATH']}")
    try:
        while not virsh.socket.exists():
            time.sleep(0.05)
        yield virsh
    finally:
        agent.terminate()
        agent.wait()
