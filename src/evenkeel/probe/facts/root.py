"""One door to the files of a machine, live or recorded: everything that facts are made of comes through here.

A :class:`Root` over ``/`` reads this machine.  Over anything else it reads a recorded tree, and then nothing of the
running system may leak in: symbolic links, absolute ones too, are resolved inside the tree, and what no file tells
(:meth:`Root.ask`) comes from the recording or is None.
This module must not know what any file means.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from typing import TYPE_CHECKING, Callable

if TYPE_CHECKING:
    from evenkeel.probe.facts.record import Recording

#: Answers that no file holds (what a program printed), kept beside the files of a recorded tree.
ASKED = "/evenkeel-asked.json"

#: The file, or the value in it, does not exist on this machine.  ENODEV, ENXIO, EINVAL and EOPNOTSUPP are how sysfs
#: and procfs attributes say "not for this device" (the speed of a link that is down, the node of a virtual port).
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENODEV, errno.ENXIO, errno.EINVAL, errno.EOPNOTSUPP)
_MOST_LINKS = 40  # as the kernel's MAXSYMLINKS
_CHUNK = 1 << 16


class Files:
    """A file system below ``prefix``.  Paths are absolute, as the machine itself sees them; errors are OSError.

    A recorded tree in a tarball has another implementation, which is why Root asks this one for everything.
    """

    def __init__(self, prefix: str = "/") -> None:
        self.prefix = os.path.realpath(prefix).rstrip("/")
        self.live = not self.prefix

    def readlink(self, path: str) -> str:
        return os.readlink(self.prefix + path)

    def listdir(self, path: str) -> list[str]:
        return os.listdir(self.prefix + path)

    def read(self, path: str) -> bytes:
        """The content.  In a tree a link at the end of ``path`` is ELOOP: Root resolves it, never the system."""
        return _read_bytes(self.prefix + path, 0 if self.live else os.O_NOFOLLOW)

    def mode(self, path: str) -> int:
        """Type and permission bits (stat(2) st_mode) of what is at ``path``; follows links on the live root only."""
        return os.stat(self.prefix + path, follow_symlinks=self.live).st_mode

    def folders(self, path: str) -> list[str]:
        """Names of the folders, not of links to folders, in a folder."""
        with os.scandir(self.prefix + path) as entries:
            return [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]


class Root:
    """The files of a machine, read-only.  Every path given to a method is absolute, as the machine itself sees it.

    ``unreadable`` collects path -> errno name of what exists and could not be read.
    With a ``recording``, everything that is touched is handed to it.
    """

    def __init__(self, files: Files | str = "/", recording: Recording | None = None) -> None:
        self._files = Files(files) if isinstance(files, str) else files
        self.live = self._files.live
        self.unreadable: dict[str, str] = {}
        self._recording = recording
        self._canonical: dict[str, str] = {"": "", "/": ""}
        self._listings: dict[str, list[str]] = {}
        self._asked: dict[str, str | None] | None = None

    # -- where things are ---------------------------------------------------------------------------------------

    def canonical(self, path: str) -> str:
        """``path`` with every symbolic link resolved inside the root.  Raises OSError (ELOOP) for a ring of links."""
        return self._follow(path, 0)

    def _follow(self, path: str, links: int) -> str:
        known = self._canonical.get(path)
        if known is not None:
            return known
        head, _, name = path.rpartition("/")
        parent = self._follow(head, links)
        if name in ("", "."):
            found = parent
        elif name == "..":
            found = parent.rpartition("/")[0]
        else:
            found = self._step(parent, name, links)
        self._canonical[path] = found
        return found

    def _step(self, parent: str, name: str, links: int) -> str:
        here = "%s/%s" % (parent, name)
        try:
            target = self._files.readlink(here)
        except OSError:
            return here  # not a link, or not there: reading it will tell
        if links >= _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), here)
        if self._recording:
            self._recording.add_link(here, target)
        return self._follow(target if target.startswith("/") else "%s/%s" % (parent, target), links + 1)

    def _real(self, path: str) -> str:
        """Where ``path`` leads.  The live root needs no care, the operating system follows its links."""
        return path if self.live and not self._recording else self.canonical(path)

    # -- reading ------------------------------------------------------------------------------------------------

    def read(self, path: str, record: bool = True) -> str | None:
        """The content without its last newline; None when it does not exist, or cannot be read (see unreadable)."""
        try:
            data = self._read(path)
        except OSError as error:
            if error.errno not in _ABSENT:
                self.unreadable[path] = errno.errorcode.get(error.errno or 0, "E%s" % error.errno)
            return None
        if self._recording and record:
            self._recording.add_file(self.canonical(path), data, self.mode(path) or 0o444)
        return data.decode("utf-8", "backslashreplace").rstrip("\n")

    def _read(self, path: str) -> bytes:
        if not self.live and not self._recording:
            # Most files are no links: try that first, it saves a readlink for each of thousands.
            head, _, name = path.rpartition("/")
            try:
                return self._files.read("%s/%s" % (self.canonical(head), name))
            except OSError as error:
                if error.errno != errno.ELOOP:
                    raise
        return self._files.read(self._real(path))

    def read_lines(self, path: str, wanted: Callable[[str], bool]) -> list[str]:
        """The wanted lines of a long file; a recording keeps no others.  Empty when it cannot be read."""
        lines = [line for line in (self.read(path, record=False) or "").splitlines() if wanted(line)]
        if lines:
            self.keep(path, "\n".join(lines))
        return lines

    def keep(self, path: str, text: str) -> None:
        """Put what was read with ``record=False`` into the recording after all."""
        if self._recording:
            self._recording.add_file(self.canonical(path), text.encode() + b"\n", 0o444)

    def read_int(self, path: str) -> int | None:
        """A decimal number, or None when the file is missing or holds something else."""
        text = self.read(path)
        try:
            return int(text) if text is not None else None
        except ValueError:
            return None

    def listdir(self, path: str) -> list[str]:
        """Sorted names in a folder; empty when it does not exist or cannot be read (see unreadable)."""
        known = self._listings.get(path)
        if known is None:
            try:
                known = sorted(self._files.listdir(self._real(path)))
            except OSError as error:
                if error.errno not in _ABSENT:
                    self.unreadable[path] = errno.errorcode.get(error.errno or 0, "E%s" % error.errno)
                known = []
            else:
                if self._recording:
                    self._recording.add_folder(self.canonical(path))
            self._listings[path] = known
        return known

    def folders(self, path: str) -> list[str]:
        """Sorted names of the folders (not links) in a folder."""
        try:
            names = sorted(self._files.folders(self._real(path)))
        except OSError:
            return []
        if self._recording:
            for name in names:
                self._recording.add_folder("%s/%s" % (self.canonical(path), name))
        return names

    def numbered(self, path: str, prefix: str) -> list[int]:
        """Numbers N of the entries ``prefixN`` in a folder, ascending: the CPUs of /sys/devices/system/cpu."""
        pattern = re.compile(re.escape(prefix) + r"(\d+)\Z")
        found = sorted(int(match.group(1)) for match in map(pattern.match, self.listdir(path)) if match)
        if self._recording and path != "/proc":  # of processes, only those that are read belong into a recording
            for number in found:
                self._recording.add_folder("%s/%s%d" % (self.canonical(path), prefix, number))
        return found

    def exists(self, path: str) -> bool:
        """Whether there is anything at ``path``, links followed."""
        mode = self._mode(path)
        if mode is None:
            return False
        if self._recording:
            if stat.S_ISDIR(mode):
                self._recording.add_folder(self.canonical(path))
            else:  # that it is there is all that was asked
                self._recording.add_file(self.canonical(path), b"", 0o444)
        return True

    def is_folder(self, path: str) -> bool:
        mode = self._mode(path)
        found = mode is not None and stat.S_ISDIR(mode)
        if found and self._recording:
            self._recording.add_folder(self.canonical(path))
        return found

    def mode(self, path: str) -> int | None:
        """Permission bits, or None."""
        mode = self._mode(path)
        return None if mode is None else stat.S_IMODE(mode)

    def _mode(self, path: str) -> int | None:
        try:
            return self._files.mode(self._real(path))
        except OSError:
            return None

    def link_name(self, path: str) -> str | None:
        """The last part of what the link at ``path`` points to: the driver behind ``device/driver``.  None: no link."""
        target = self.link_target(path)
        return target.rpartition("/")[2] if target else None

    def link_target(self, path: str) -> str | None:
        """Canonical path that the link at ``path`` points to, whether or not that exists; None: no link."""
        head, _, name = path.rpartition("/")
        try:
            here = "%s/%s" % (self.canonical(head), name)
            self._files.readlink(here)
            return self.canonical(path)
        except OSError:
            return None

    # -- what no file tells -------------------------------------------------------------------------------------

    def ask(self, question: str, answer: Callable[[], str | None]) -> str | None:
        """What a program or an instruction says: ``answer()`` on the live root, the recorded answer in a tree."""
        if not self.live:
            if self._asked is None:
                self._asked = self._recorded_answers()
            return self._asked.get(question)
        said = answer()
        if self._recording:
            self._recording.add_answer(question, said)
        return said

    def _recorded_answers(self) -> dict[str, str | None]:
        try:
            answers = json.loads(self.read(ASKED) or "{}")
        except ValueError:
            return {}
        return answers if isinstance(answers, dict) else {}


def _read_bytes(path: str, flags: int) -> bytes:
    # O_NONBLOCK: a FIFO in a tree that somebody gave us must not hang us; without effect on regular files.
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY | flags)
    try:
        parts: list[bytes] = []
        while True:
            part = os.read(fd, _CHUNK)
            if not part:
                return parts[0] if len(parts) == 1 else b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)
