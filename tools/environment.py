"""A virtual environment for a program that does not go into the project's own: a named peer, an emulator.

Beside the project's and made from pinned packages; made anew when they change.  Must not touch the project's own.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]


def environment(
    name: str, requirements: Path, what: str, *, python: str = sys.executable, options: Sequence[str] = ()
) -> Path:
    """Its folder of programs, made on the first call.

    ``name``: the folder in the project's.  ``what``: what is installed, for the reader.  ``python``: whose environment
    it is; ``options``: of ``python -m venv``.  Raises CalledProcessError, and TimeoutExpired after ten minutes.
    """
    folder = ROOT / name
    wanted = requirements.read_text(encoding="utf-8")
    mark = folder / ".made-from"
    if not mark.exists() or mark.read_text(encoding="utf-8") != wanted:
        print(f"installing {what} into {name}", file=sys.stderr)
        subprocess.run([python, "-m", "venv", "--clear", "--without-pip", *options, str(folder)], check=True)
        # Our pip, for its Python: Debian's has none.
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin/python")]
        pip += ["--quiet", "--disable-pip-version-check", "--no-input"]
        subprocess.run([*pip, "install", "--requirement", str(requirements)], check=True, timeout=600)
        mark.write_text(wanted, encoding="utf-8")
    return folder / "bin"
