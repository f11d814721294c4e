"""Small recorded trees for tests, written file by file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from evenkeel.probe.facts.root import Root


class Link(str):
    """The target of a symbolic link."""


class Folder:
    """An empty folder."""


Tree = Mapping[str, "str | Link | Folder"]


def plant(folder: Path, tree: Tree) -> Root:
    """Write ``{absolute path: content}`` below ``folder``; a newline is added, as the kernel does."""
    (folder / "sys").mkdir(parents=True, exist_ok=True)
    for path, content in tree.items():
        place = folder / path.lstrip("/")
        if isinstance(content, Folder):
            place.mkdir(parents=True, exist_ok=True)
            continue
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            place.symlink_to(content)
        else:
            place.write_text(content + "\n")
    return Root(str(folder))


def cpus_tree(count: int) -> dict[str, str]:
    """``count`` CPUs without any topology."""
    return {
        "/sys/devices/system/cpu/present": f"0-{count - 1}",
        "/sys/devices/system/cpu/online": f"0-{count - 1}",
    }
