"""What is at a path that a user named.  Must not open anything.

Python's ``Path.exists`` and its like raise, before 3.14, where one may not look or where a name is too long: of a name
that a user typed that is no defect of ours, so every such question is asked here.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Literal

from evenkeel.errors import WrongInput

Kind = Literal["folder", "file", "device", ""]


def kind_of(path: str | Path) -> Kind:
    """Through symbolic links; ``device`` is a pipe or a socket, too; empty where nothing is or can be of that name.

    Raises WrongInput where one may not look.
    """
    try:
        mode = Path(path).stat().st_mode
    except ValueError:  # a NUL in the name
        return ""
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP):
            return ""
        raise WrongInput(f"cannot read {path}: {os.strerror(error.errno or errno.EIO)}") from None
    return "folder" if stat.S_ISDIR(mode) else "file" if stat.S_ISREG(mode) else "device"
