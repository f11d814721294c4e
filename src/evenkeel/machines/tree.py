"""A recorded tree as a machine: a folder or tarball with the /sys and /proc of another computer.  Read-only.

Its facts are read in this process, through a root that no symbolic link leaves.  A tarball is read into memory and
never unpacked, so there is nothing to clean up and nothing that a name in it could write to.
"""

from __future__ import annotations

import bz2
import contextlib
import errno
import gzip
import lzma
import os
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self, cast

from evenkeel.errors import WrongInput
from evenkeel.machines.paths import kind_of
from evenkeel.machines.protocol import OnProgress, Probe
from evenkeel.probe.facts import facts_of
from evenkeel.probe.facts.root import Files, Root
from evenkeel.probe.inventory import inventory_of

#: More than any real machine: the /sys of a 256-CPU server has 16 000 files of 4 KiB at most.
MOST_BYTES = 1 << 30
MOST_FILES = 1_000_000
_HOW = "record one with `evenkeel facts MACHINE --record FILE.tar.bz2`, or with hwloc-gather-topology"


class TreeMachine:
    """The machine that was recorded at ``path``."""

    read_only = True

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._path = path
        self._files: Files | None = None

    def probe(self) -> Probe:
        return TreeProbe(self)

    def files(self, on_progress: OnProgress | None = None) -> Files:
        """The recorded files; a tarball is read at the first call.

        Raises WrongInput when it is damaged or holds no machine.
        """
        if self._files is None:
            folder = kind_of(self._path) == "folder"
            self._files = _open_folder(self._path) if folder else _read_tarball(self._path, on_progress)
        return self._files

    def reboot(self, *, on_progress: OnProgress | None = None, timeout_s: float = 600.0) -> None:
        raise _not_a_machine(self.address, "rebooted")

    def close(self) -> None:
        self._files = None


class TreeProbe:
    """Answers ``facts`` and ``inventory``, and nothing else."""

    def __init__(self, machine: TreeMachine) -> None:
        self._machine = machine

    def call(self, op: str, /, *, on_progress: OnProgress | None = None, timeout_s: float = 60.0, **args: Any) -> Any:
        if op == "inventory":
            return inventory_of(Root(self._machine.files(on_progress)))
        if op != "facts":
            raise _not_a_machine(self._machine.address, "written or measured")
        return facts_of(Root(self._machine.files(on_progress)), on_progress)

    def close(self) -> None:
        pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _not_a_machine(address: str, what: str) -> WrongInput:
    return WrongInput(
        f"{address} is a recorded tree, it cannot be {what}",
        hint="name the machine itself: local, ssh://root@HOST or virtual:NAME",
    )


def _open_folder(path: Path) -> Files:
    folder = path
    for _ in range(4):
        if "folder" in (kind_of(folder / "sys"), kind_of(folder / "proc")):
            return Files(str(folder))
        try:
            inside = [entry for entry in folder.iterdir() if kind_of(entry) == "folder" and not entry.is_symlink()]
        except OSError as error:
            raise WrongInput(f"cannot read {folder}: {error.strerror}") from None
        if len(inside) != 1:
            break
        folder = inside[0]
    raise _no_machine(path)


def _no_machine(path: Path) -> WrongInput:
    return WrongInput(f"there is no recorded machine in {path}: no folder sys, no folder proc", hint=_HOW)


# -- tarballs ---------------------------------------------------------------------------------------------------------


class TarFiles(Files):
    """Regular files, folders and symbolic links of a tarball.  Device nodes and FIFOs are not there."""

    def __init__(self) -> None:
        self.prefix = ""
        self.live = False
        self._contents: dict[str, bytes] = {}
        self._modes: dict[str, int] = {"": stat.S_IFDIR | 0o755}
        self._links: dict[str, str] = {}
        self._names: dict[str, dict[str, None]] = {"": {}}

    def add_folder(self, path: str) -> None:
        if path not in self._names:
            self._names[path] = {}
            self._modes[path] = stat.S_IFDIR | 0o755
            self._add_name(path)

    def add_file(self, path: str, content: bytes, mode: int) -> None:
        """Permission bits are kept: they tell a managed interrupt."""
        self._contents[path] = content
        self._modes[path] = stat.S_IFREG | mode & 0o777
        self._add_name(path)

    def add_link(self, path: str, target: str) -> None:
        self._links[path] = target
        self._modes[path] = stat.S_IFLNK | 0o777
        self._add_name(path)

    def add_hard_link(self, path: str, target: str) -> None:
        if target in self._contents:
            self.add_file(path, self._contents[target], self._modes[target])

    def _add_name(self, path: str) -> None:
        parent, _, name = path.rpartition("/")
        self.add_folder(parent)
        self._names[parent][name] = None

    def descend(self) -> bool:
        """Make the folder that holds sys or proc the root.  False: there is none."""
        top = ""
        for _ in range(5):
            names = self._names.get(top, {})
            if "sys" in names or "proc" in names:
                self.prefix = top
                return True
            if len(names) != 1:
                return False
            top = f"{top}/{next(iter(names))}"
        return False

    def readlink(self, path: str) -> str:
        try:
            return self._links[self.prefix + path]
        except KeyError:
            raise _error(errno.EINVAL, path) from None

    def listdir(self, path: str) -> list[str]:
        try:
            return list(self._names[self.prefix + path])
        except KeyError:
            raise _error(errno.ENOENT, path) from None

    def read(self, path: str) -> bytes:
        try:
            return self._contents[self.prefix + path]
        except KeyError:
            link = self.prefix + path in self._links
            raise _error(errno.ELOOP if link else errno.ENOENT, path) from None

    def mode(self, path: str) -> int:
        try:
            return self._modes[self.prefix + path]
        except KeyError:
            raise _error(errno.ENOENT, path) from None

    def folders(self, path: str) -> list[str]:
        return [name for name in self.listdir(path) if f"{self.prefix}{path}/{name}" in self._names]


def _error(number: int, path: str) -> OSError:
    return OSError(number, os.strerror(number), path)


def _read_tarball(path: Path, on_progress: OnProgress | None) -> TarFiles:
    """Raises WrongInput for what is no tarball, is damaged or truncated, or has names that lead out of it."""
    files = TarFiles()
    total = 0
    try:
        with _open(path) as (stream, position), tarfile.open(fileobj=stream, mode="r|") as archive:
            size = path.stat().st_size
            for count, member in enumerate(archive):
                if on_progress and count % 256 == 0:
                    on_progress(min(position(), size), size, "reading the tarball")
                total += member.size if member.isreg() else 0
                if total > MOST_BYTES or count > MOST_FILES:
                    raise WrongInput(f"{path} holds more than any machine's /sys and /proc", hint=_HOW)
                _add_member(files, archive, member, path)
            while stream.read(1 << 20):  # to the end, so that the checksum of the compression is checked
                pass
    except tarfile.TarError as error:
        raise _damaged(path, str(error)) from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        if error.errno is None:  # bz2 says "Invalid data stream" this way
            raise _damaged(path, str(error)) from None
        raise WrongInput(f"cannot read {path}: {error.strerror}") from None
    if not files.descend():
        raise _no_machine(path)
    return files


def _add_member(files: TarFiles, archive: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    name = _clean(member.name, path)
    if not name:
        return
    if member.isdir():
        files.add_folder(name)
    elif member.issym():
        files.add_link(name, member.linkname)
    elif member.isreg():
        content = archive.extractfile(member)
        files.add_file(name, content.read() if content else b"", member.mode)
    elif member.islnk():
        files.add_hard_link(name, _clean(member.linkname, path))


def _clean(name: str, path: Path) -> str:
    """``./a/b`` or ``/a/b`` -> ``/a/b``."""
    parts = [part for part in PurePosixPath(name).parts if part not in ("/", ".")]
    if ".." in parts:
        raise WrongInput(f"{path}: the name {name!r} leads out of the tarball", hint=_HOW)
    return "".join(f"/{part}" for part in parts)


def _decompress(raw: IO[bytes], head: bytes) -> IO[bytes]:
    """A reader for what the first bytes say; each is closed with ``raw`` by the caller."""
    if head.startswith(b"BZh"):
        return bz2.BZ2File(raw)
    if head.startswith(b"\x1f\x8b"):
        return cast(IO[bytes], gzip.GzipFile(fileobj=raw))
    if head.startswith(b"\xfd7zXZ"):
        return cast(IO[bytes], lzma.LZMAFile(raw))
    return raw


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[IO[bytes], Callable[[], int]]]:
    """The decompressed stream, and a function that tells how many bytes of the file are read."""
    try:
        raw = path.open("rb")
    except OSError as error:
        raise WrongInput(f"cannot read {path}: {error.strerror}") from None
    with raw:
        head = raw.peek(6)[:6]
        if head.startswith(b"\x28\xb5\x2f\xfd"):
            raise WrongInput(
                f"{path} is compressed with zstd, which is not supported", hint="unpack it and name the folder"
            )
        with _decompress(raw, head) as stream:
            yield stream, raw.tell


def _damaged(path: Path, why: str) -> WrongInput:
    return WrongInput(
        f"{path} is not a whole tarball: {why}",
        hint="is it truncated? compare its size with the original, or record it anew",
    )
