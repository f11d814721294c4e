"""Record a machine: the files that facts are read from, and no others, as one small tarball.

The recording is a recorded tree: ``evenkeel facts FILE.tar.bz2`` gives the same document as the machine itself.
This module must not choose what is read; it keeps what :class:`~evenkeel.probe.facts.root.Root` touched.
"""

from __future__ import annotations

import base64
import io
import json
import tarfile
from typing import Any, Callable

from evenkeel.probe.facts.root import ASKED, Root


class Recording:
    """What was touched: files with their permission bits (they tell a managed interrupt), links, folders, answers."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[bytes, int]] = {}
        self.links: dict[str, str] = {}
        self.folders: dict[str, None] = {}
        self.answers: dict[str, str | None] = {}

    def add_file(self, path: str, data: bytes, mode: int) -> None:
        if data or path not in self.files:
            self.files[path] = (data, mode)

    def add_link(self, path: str, target: str) -> None:
        self.links[path] = target

    def add_folder(self, path: str) -> None:
        self.folders[path] = None

    def add_answer(self, question: str, answer: str | None) -> None:
        self.answers[question] = answer

    def tarball(self) -> bytes:
        """bzip2 tar, byte for byte the same for the same content: no owners, no times, sorted."""
        buffer = io.BytesIO()
        asked = json.dumps(self.answers, indent=2, sort_keys=True).encode() + b"\n"
        files = dict(self.files)
        files[ASKED] = (asked, 0o644)
        with tarfile.open(fileobj=buffer, mode="w:bz2", format=tarfile.GNU_FORMAT) as archive:
            for path in sorted(set(files) | set(self.links) | set(self.folders)):
                if not path or path == "/":
                    continue
                info = tarfile.TarInfo(path.lstrip("/"))
                if path in self.links:
                    info.type, info.linkname = tarfile.SYMTYPE, self.links[path]
                    archive.addfile(info)
                elif path in files:
                    data, info.mode = files[path]
                    info.size = len(data)
                    archive.addfile(info, io.BytesIO(data))
                else:
                    info.type, info.mode = tarfile.DIRTYPE, 0o755
                    archive.addfile(info)
        return buffer.getvalue()


def record(root: str = "/", on_progress: Callable[[int, int, str], None] | None = None) -> dict[str, Any]:
    """Read the facts and what they were made of: ``{"facts": document, "tarball": base64 text}``."""
    from evenkeel.probe.facts import facts_of

    recording = Recording()
    facts = facts_of(Root(root, recording), on_progress)
    return {"facts": facts, "tarball": base64.b64encode(recording.tarball()).decode("ascii")}
