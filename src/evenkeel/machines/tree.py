"""A recorded tree as a machine: a folder or tarball with the /sys and /proc of another computer.  Read-only.

Its facts are read in this process, through a root that no symbolic link leaves.  A tarball is unpacked to a temporary
folder that goes away with the machine.  This module must not write into the recording.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO, Any, Self, cast

from evenkeel.errors import Where, WrongInput
from evenkeel.machines.protocol import OnProgress, Probe
from evenkeel.probe.facts import read_facts

#: More than any real machine: the /sys of a 256-CPU server has 16 000 files of 4 KiB at most.
MOST_BYTES = 2 << 30
MOST_FILES = 2_000_000
_HOW = "record one with `evenkeel facts MACHINE --record FILE.tar.bz2`, or with hwloc-gather-topology"


class TreeMachine:
    """The machine that was recorded at ``path``."""

    read_only = True

    def __init__(self, path: Path) -> None:
        self.address = str(path)
        self._path = path
        self._unpacked: tempfile.TemporaryDirectory[str] | None = None

    def probe(self) -> Probe:
        """Raises WrongInput when the recording is damaged or holds no machine."""
        return TreeProbe(self)

    def root(self, on_progress: OnProgress | None = None) -> Path:
        """The folder that holds ``sys`` and ``proc``; a tarball is unpacked at the first call.  Raises WrongInput."""
        if self._path.is_dir():
            return _find_root(self._path, self._path)
        if self._unpacked is None:
            unpacked = tempfile.TemporaryDirectory(prefix="evenkeel-tree-")
            try:
                unpack(self._path, Path(unpacked.name), on_progress)
            except BaseException:  # Ctrl-C too: nothing may stay behind
                unpacked.cleanup()
                raise
            self._unpacked = unpacked
        return _find_root(Path(self._unpacked.name), self._path)

    def reboot(self, *, on_progress: OnProgress | None = None, timeout_s: float = 600.0) -> None:
        raise _not_a_machine(self.address, "rebooted")

    def close(self) -> None:
        if self._unpacked is not None:
            self._unpacked.cleanup()
            self._unpacked = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class TreeProbe:
    """Answers ``facts`` and nothing else."""

    def __init__(self, machine: TreeMachine) -> None:
        self._machine = machine

    def call(self, op: str, /, *, on_progress: OnProgress | None = None, timeout_s: float = 60.0, **args: Any) -> Any:
        if op != "facts":
            raise _not_a_machine(self._machine.address, "written or measured")
        return read_facts(str(self._machine.root(on_progress)), on_progress)

    def close(self) -> None:
        self._machine.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _not_a_machine(address: str, what: str) -> WrongInput:
    return WrongInput(
        f"{address} is a recorded tree, it cannot be {what}",
        hint="name the machine itself: local, ssh://root@HOST or virtual:NAME",
    )


def _find_root(folder: Path, path: Path) -> Path:
    """Tarballs have one folder around the tree, or none.  Raises WrongInput where there is no tree."""
    for _ in range(4):
        if (folder / "sys").is_dir() or (folder / "proc").is_dir():
            return folder
        inside = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
        if len(inside) != 1:
            break
        folder = inside[0]
    raise WrongInput(f"there is no recorded machine in {path}: no folder sys, no folder proc", hint=_HOW)


# -- unpacking --------------------------------------------------------------------------------------------------------


def unpack(path: Path, target: Path, on_progress: OnProgress | None = None) -> None:
    """Unpack regular files, folders and symbolic links into the empty folder ``target``.

    Permission bits are kept, because they tell a managed interrupt; device nodes and FIFOs are left out.  Links are
    made when all files are there, so that no file can be written through one.
    Raises WrongInput for what is no tarball, is damaged or truncated, or tries to leave its folder.
    """
    links: list[tuple[Path, str]] = []
    try:
        with _open(path) as (stream, position), tarfile.open(fileobj=stream, mode="r|") as archive:
            size = path.stat().st_size
            total = 0
            for count, member in enumerate(archive):
                if on_progress and count % 256 == 0:
                    on_progress(min(position(), size), size, "unpacking")
                total += member.size if member.isreg() else 0
                if total > MOST_BYTES or count > MOST_FILES:
                    raise WrongInput(f"{path} unpacks to more than any machine's /sys and /proc", hint=_HOW)
                _unpack_member(archive, member, target, links, path)
            while stream.read(1 << 20):  # to the end, so that the checksum of the compression is checked
                pass
    except tarfile.TarError as error:
        raise _damaged(path, str(error)) from None
    except (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile) as error:
        raise _damaged(path, str(error)) from None
    except OSError as error:
        if error.errno is None:  # bz2 says "Invalid data stream" this way
            raise _damaged(path, str(error)) from None
        raise
    for link, destination in links:
        with contextlib.suppress(FileExistsError):  # the file of the same name came first
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(destination)


def _unpack_member(
    archive: tarfile.TarFile, member: tarfile.TarInfo, target: Path, links: list[tuple[Path, str]], path: Path
) -> None:
    parts = [part for part in PurePosixPath(member.name).parts if part not in ("/", ".")]
    if ".." in parts:
        raise WrongInput(
            f"the name {member.name!r} leads out of the tarball's folder", where=Where(str(path)), hint=_HOW
        )
    if not parts:
        return
    place = target.joinpath(*parts)
    try:
        if member.issym():
            links.append((place, member.linkname))
        elif member.isdir():
            place.mkdir(parents=True, exist_ok=True)
        elif member.isreg():
            place.parent.mkdir(parents=True, exist_ok=True)
            content = archive.extractfile(member)
            with place.open("wb") as file:
                if content:
                    shutil.copyfileobj(content, file)
            place.chmod((member.mode & 0o777) | 0o400)
        elif member.islnk():
            source = target.joinpath(*(part for part in PurePosixPath(member.linkname).parts if part != "/"))
            if ".." not in source.parts and source.is_file() and not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, place)
    except (FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError, ValueError) as error:
        raise _damaged(path, f"{member.name!r} contradicts another entry ({error})") from None


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
                f"{path} is compressed with zstd, which is not supported", hint="unpack it: tar -xf FILE -C FOLDER"
            )
        with _decompress(raw, head) as stream:
            yield stream, raw.tell


def _damaged(path: Path, why: str) -> WrongInput:
    return WrongInput(
        f"{path} is not a whole tarball: {why}",
        hint="is it truncated? compare its size with the original, or record it anew",
    )
