"""Step ``config``: a whole configuration file, replaced atomically; old bytes, mode and owner kept, or its absence.

``{"kind": "config", "path": "/etc/...", "text": "..."}``; ``text`` null removes the file.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import stat
from typing import Any

from evenkeel.probe.failure import StepFailed, from_os_error, require_below
from evenkeel.probe.inside import inside
from evenkeel.probe.journal import make_directory, sync_directory, write_all

PERSISTENT = True
FOLDERS = ("/etc/", "/var/lib/evenkeel/")

#: Beside the file, under a fixed name: what a kill leaves behind is found and removed by the next write or undo.
_NEW = ".evenkeel-new"
_LABEL = "security.selinux"


def snapshot(step: dict[str, Any], root: str, folders: tuple[str, ...] = FOLDERS) -> str:
    """JSON: ``base64``, ``mode``, ``owner`` of the file, or ``missing``: the folders that do not exist either."""
    require_below(step["path"], folders)
    path = inside(root, step["path"])
    try:
        info = os.lstat(path)
        if not stat.S_ISREG(info.st_mode):
            raise StepFailed("is no regular file; replace the link or folder by hand first", None, step["path"])
        with open(path, "rb") as file:
            data = file.read()
    except (FileNotFoundError, NotADirectoryError):
        missing = []
        folder = os.path.dirname(step["path"])
        while not os.path.isdir(inside(root, folder)):
            missing.append(folder)
            folder = os.path.dirname(folder)
        return json.dumps({"missing": missing})
    except OSError as error:
        raise from_os_error(error, "cannot read", step["path"]) from None
    return json.dumps(
        {
            "base64": base64.b64encode(data).decode(),
            "mode": stat.S_IMODE(info.st_mode),
            "owner": [info.st_uid, info.st_gid],
        }
    )


def content(state: str | None) -> bytes | None:
    """The bytes of the file in a snapshot; None: it did not exist."""
    found = json.loads(state or "{}")
    return base64.b64decode(found["base64"]) if "base64" in found else None


def satisfied(step: dict[str, Any], state: str | None) -> bool:
    wanted = step["text"]
    return content(state) == (wanted.encode() if wanted is not None else None)


def shown(step: dict[str, Any], state: str | None) -> str | None:
    data = content(state)
    return data.decode("utf-8", "replace") if data is not None else None


def write(step: dict[str, Any], state: str | None, root: str) -> None:
    if step["text"] is None:
        _remove(step["path"], root)
        return
    old = json.loads(state or "{}")
    replace(step["path"], step["text"].encode(), old.get("mode", step.get("mode", 0o644)), old.get("owner"), root)


def undo(step: dict[str, Any], state: str | None, root: str, folders: tuple[str, ...] = FOLDERS) -> None:
    old = json.loads(state or "{}")
    remove_temporary(step["path"], root)
    if snapshot(step, root, folders) == state:
        return
    if "base64" in old:
        replace(step["path"], base64.b64decode(old["base64"]), old["mode"], old["owner"], root)
    else:
        _remove(step["path"], root)
        for folder in old["missing"]:  # innermost first; one that somebody else uses by now stays
            with contextlib.suppress(OSError):
                os.rmdir(inside(root, folder))
                sync_directory(os.path.dirname(inside(root, folder)))


def remove_temporary(path: str, root: str) -> None:
    """Take away what a kill in the middle of :func:`replace` left behind."""
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.unlink(inside(root, path) + _NEW)


def replace(path: str, data: bytes, mode: int, owner: list[int] | None, root: str) -> None:
    """Old bytes or new bytes at any moment, never a part of either, power loss included."""
    where = inside(root, path)
    temporary = where + _NEW
    try:
        make_directory(os.path.dirname(where), 0o755)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, data)
            if owner is not None:
                os.fchown(descriptor, *owner)
            os.fchmod(descriptor, mode)
            # A new file gets the SELinux label of its folder; some files have one of their own (/etc/default/grub).
            with contextlib.suppress(OSError):
                os.setxattr(descriptor, _LABEL, os.getxattr(where, _LABEL))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.rename(temporary, where)
        sync_directory(os.path.dirname(where))
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise from_os_error(error, "cannot write", path) from None


def _remove(path: str, root: str) -> None:
    try:
        os.unlink(inside(root, path))
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise from_os_error(error, "cannot remove", path) from None
    sync_directory(os.path.dirname(inside(root, path)))
