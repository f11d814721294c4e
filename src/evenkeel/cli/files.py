"""Reading and writing the files that a user names: sites and documents.  ``-`` is stdin or stdout.

Every failure becomes a WrongInput (or EvenkeelError, for a full disk) with a cure.  What a file means is decided in
:mod:`evenkeel.plan.sitefile` and in the documents themselves.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

from evenkeel.cli import output
from evenkeel.documents.base import Document
from evenkeel.documents.plan import Plan
from evenkeel.documents.site import Site
from evenkeel.errors import EvenkeelError, Where, WrongInput
from evenkeel.machines.paths import kind_of
from evenkeel.plan.sitefile import find_place, parse_site, parse_site_parts

D = TypeVar("D", bound=Document)
SITE_SUFFIXES = (".yaml", ".yml")
_ABOUT = re.compile(r"(guest|host) (\S+): (?:(?!goal\b)([a-z_]+)\b)?")  # a goal is never the culprit, but what it needs
#: A larger text is not something that a person or Evenkeel wrote; facts of 1024 CPUs are about 1 MiB.
MAX_BYTES = 64 << 20


def load_site(path: str | Path) -> Site:
    """Read a site file, or a folder whose ``*.yaml`` files make one site.  Raises WrongInput."""
    return parse_site_parts(_site_parts(path))


def _site_parts(path: str | Path) -> list[tuple[str, str]]:
    """Name and text of each file of a site."""
    folder = Path(path)
    if str(path) == "-" or kind_of(path) != "folder":
        return [(str(path), read_text(path))]
    try:
        parts = sorted(item for item in folder.iterdir() if item.suffix in SITE_SUFFIXES and kind_of(item) == "file")
    except OSError as error:
        raise _unreadable(folder, error) from None
    if not parts:
        raise WrongInput(
            f"no site file in the folder {folder}",
            where=Where(str(folder)),
            hint="a site is one YAML file, or a folder with files named *.yaml",
        )
    return [(str(part), read_text(part)) for part in parts]


def place_in_site(path: str | Path, *keys: str) -> Where | None:
    """Where a site says something, or where the nearest thing around it begins: ``("guests", "plc", "memory")``."""
    parts = [] if str(path) == "-" else _site_parts(path)  # stdin cannot be read twice
    for length in range(len(keys), 1, -1):
        if found := find_place(parts, *keys[:length]):
            return found
    return None


@contextmanager
def placed_in(path: str | Path) -> Iterator[None]:
    """Give errors about a guest or a host, found while planning, their line in the site file.

    The planner sees no files; it begins its messages with ``guest NAME: `` or ``host NAME: ``, and with the key after
    that where one key is the culprit.
    """
    try:
        yield
    except WrongInput as error:
        parts: list[tuple[str, str]] = []
        if str(path) != "-":  # stdin cannot be read twice
            with suppress(EvenkeelError):
                parts = _site_parts(path)
        for one in (error, *getattr(error, "others", ())):
            if one.where is None and (found := _ABOUT.match(one.message)):
                kind, name, key = f"{found[1]}s", found[2], found[3] or ""
                with suppress(EvenkeelError):
                    one.where = find_place(parts, kind, name, key) or find_place(parts, kind, name)
        raise


def load_document(kind: type[D], path: str | Path) -> D:
    """Read a saved document of this kind.  Raises WrongInput."""
    return kind.from_json(read_text(path), file=str(path))


def load_plan_or_site(path: str | Path) -> Plan | Site:
    """For the verbs that take either: a Plan document (JSON) or a site (YAML file or folder)."""
    if Path(path).suffix in SITE_SUFFIXES or kind_of(path) == "folder":
        return load_site(path)
    text = read_text(path)
    if text.lstrip().startswith("{"):
        return Plan.from_json(text, file=str(path))
    return parse_site(text, file=str(path))


def read_bytes(path: str | Path) -> bytes:
    """A whole file.  Raises WrongInput when it cannot be read."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise _unreadable(Path(path), error) from None


def read_text(path: str | Path) -> str:
    """The text of a file, or of stdin for ``-``.  Raises WrongInput that names the nearest file of that name."""
    try:
        if str(path) == "-":
            raw = sys.stdin.buffer.read(MAX_BYTES + 1)
        else:
            with Path(path).open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(Path(path), error) from None
    except ValueError:  # a NUL in the name
        raise WrongInput(f"{str(path)!r} is not the name of a file") from None
    if len(raw) > MAX_BYTES:
        raise WrongInput("the file is too large to be a site or a document", where=Where(str(path)))
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise WrongInput(
            f"not UTF-8 text: byte 0x{raw[error.start]:02x}",
            where=Where(str(path), line, error.start - raw.rfind(b"\n", 0, error.start)),
            hint="a tarball or an image? a text file is needed here",
        ) from None


def _unreadable(path: Path, error: OSError) -> WrongInput:
    if error.errno == errno.ENOENT:
        near: list[str] = []
        with suppress(OSError):
            near = difflib.get_close_matches(path.name, [item.name for item in path.parent.iterdir()], n=1)
        hint = f"did you mean {path.parent / near[0]}?" if near else None
        return WrongInput(f"there is no file {path}", hint=hint)
    if error.errno == errno.EISDIR:
        return WrongInput(f"{path} is a folder, a file is needed here")
    return WrongInput(f"cannot read {path}: {os.strerror(error.errno) if error.errno else error}")


def save_document(path: str | Path, document: Document) -> None:
    """Write a document; ``-`` is stdout.  Raises EvenkeelError."""
    save_text(path, document.to_json())


def save_text(path: str | Path, text: str) -> None:
    """Write text as UTF-8; ``-`` is stdout.  Raises as :func:`save_bytes`."""
    if str(path) == "-":
        output.emit(text)
    else:
        save_bytes(path, text.encode())


def save_bytes(path: str | Path, data: bytes) -> None:
    """Write a file whole or not at all; ``-`` is stdout.  Raises as :func:`writing`."""
    if str(path) == "-":
        output.emit(data)
        return
    with writing(path) as stream:
        stream.write(data)


@contextmanager
def writing(path: str | Path) -> Iterator[BinaryIO]:
    """A stream whose file is there whole or not at all: a reader, a full disk or a kill never leaves half of one.

    Raises WrongInput for a place that cannot be written to and EvenkeelError for a full disk; every OSError within is
    taken for one of the file.
    """
    temporary: Path | None = None
    try:
        target = _behind_links(Path(path))
        if _is_device(target):
            with target.open("wb") as stream:
                yield stream
            return
        mode = target.stat().st_mode & 0o7777 if target.exists() else 0o666 & ~_umask()
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        temporary = Path(name)
        with os.fdopen(descriptor, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(mode)
        temporary.replace(target)
        temporary = None
    except OSError as error:
        raise _unwritable(path, error) from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def check_places(*paths: str | Path | None) -> None:
    """Whether files can be made there, asked before the work that fills them.  Raises as :func:`writing`."""
    for path in paths:
        if path is None or str(path) == "-":
            continue
        try:
            target = _behind_links(Path(path))
            if target.is_dir():
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not _is_device(target):
                tempfile.TemporaryFile(dir=target.parent).close()
        except OSError as error:
            raise _unwritable(path, error) from None


def _is_device(target: Path) -> bool:
    """Or a pipe, as in ``-o /dev/stdout``: written to, and never replaced."""
    return target.exists() and not target.is_file() and not target.is_dir()


def _unwritable(path: str | Path, error: OSError) -> EvenkeelError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG):
        return EvenkeelError(f"cannot write {path}: {reason}", hint="the old file, if any, is untouched")
    hint = f"make the folder first: mkdir -p {Path(path).parent}" if error.errno == errno.ENOENT else None
    return WrongInput(f"cannot write {path}: {reason}", hint=hint)


def _behind_links(path: Path) -> Path:
    """What a symbolic link points to, so that the link stays.  Raises OSError, for links in a circle too."""
    try:
        return path.resolve()
    except RuntimeError:  # what Python before 3.13 makes of ELOOP
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from None


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
