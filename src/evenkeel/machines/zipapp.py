"""Pack the probe as one zipapp in memory, and the few bytes of Python that start it on the other side.

Deterministic: the same sources give the same bytes.  Must not touch any machine.
"""

from __future__ import annotations

import io
import zipfile
from functools import cache
from importlib import resources
from importlib.resources.abc import Traversable

_EPOCH = (1980, 1, 1, 0, 0, 0)

#: Started as ``python3 -c BOOTSTRAP``: reads the zipapp from stdin into an anonymous file (memfd) and runs it from
#: there, so that no file is ever created on the machine.  The first line is the size in bytes.
BOOTSTRAP = """
import os, runpy, sys
if sys.version_info < (3, 9):
    sys.exit("evenkeel needs Python 3.9 or newer, this is " + sys.version.split()[0])
size = int(sys.stdin.buffer.readline())
fd = os.memfd_create("evenkeel-probe")
with os.fdopen(os.dup(fd), "wb") as file:
    file.write(sys.stdin.buffer.read(size))
sys.path.insert(0, "/proc/self/fd/%d" % fd)
sys.dont_write_bytecode = True
runpy.run_module("evenkeel.probe", run_name="__main__")
""".strip()


def _sources(folder: Traversable, prefix: str) -> list[tuple[str, bytes]]:
    found: list[tuple[str, bytes]] = []
    for entry in sorted(folder.iterdir(), key=lambda item: item.name):
        if entry.is_dir() and entry.name != "__pycache__":
            found += _sources(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".py"):
            found.append((f"{prefix}{entry.name}", entry.read_bytes()))
    return found


@cache
def probe_zipapp() -> bytes:
    """The probe and an empty ``evenkeel`` package around it, as a zip archive that Python can run."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        files = [("evenkeel/__init__.py", b""), ("__main__.py", b"from evenkeel.probe.server import main\nmain()\n")]
        files += _sources(resources.files("evenkeel") / "probe", "evenkeel/probe/")
        for name, content in files:
            archive.writestr(zipfile.ZipInfo(name, _EPOCH), content, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
