"""Where a file of the machine is: below "/", or below a constructed root that tests give.  Touches nothing."""

from __future__ import annotations


def inside(root: str, path: str) -> str:
    """The absolute ``path`` of the machine below ``root``; "/" is the machine itself."""
    return path if root == "/" else root.rstrip("/") + path
