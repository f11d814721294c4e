"""The state of a lab in one file, and back: database, artifacts, logs, recordings, keys, settings.

Taken while the service runs: the database is copied first, by its own means (SQLite's online backup, ``pg_dump``),
then the files that it names, which never change.  Each file is in ``manifest.json`` with its SHA-256, and the finished
backup is read once more and compared before it gets its name.
The keys that sealed secrets open with are left out unless asked for: a stolen backup should not open them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import sqlite3
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath
from typing import IO

from pydantic import ValidationError
from sqlalchemy.engine import make_url

from evenkeel import __version__
from evenkeel.documents.base import Model
from evenkeel.errors import EvenkeelError, Where, WrongInput
from evenkeel.lab import folder as folders
from evenkeel.lab.settings import Settings

FORMAT = 1
DATABASE = {"sqlite": "lab.db", "postgresql": "lab.pgdump"}
#: What is made anew, or belongs to what runs: locks, sockets, the database itself, half-made files.
_NOT = ("lock", ".lock", "lab.db", "lab.db-wal", "lab.db-shm", "incoming", "work", "tmp")
#: Of the local agent, which finds out by itself what became of its steps.
_NOT_AT_TOP = ("agent", "agents")
KEYS = ("secrets.key", "session.key", "webhook.key")
_BLOCK = 1 << 20


class Manifest(Model):
    """``files``: name in the backup -> SHA-256; ``database``: kind of the database in it."""

    format: int
    evenkeel: str
    at_ns: int
    database: str
    files: dict[str, str]


class WrongBackup(EvenkeelError):
    """The backup is not whole, or is none."""


def backup(folder: Path, chosen: Settings, file: Path, *, keys: bool = False) -> Manifest:
    """Write the state of the lab in ``folder`` to ``file``, whether it runs or not.  Raises EvenkeelError.

    ``keys``: those of :data:`KEYS` too; without ``secrets.key`` no password that the lab keeps can be read again.
    """
    if file.exists():
        raise WrongInput(f"{file} exists", hint="name a new file; backups are not overwritten")
    kind = _kind(folder, chosen)
    part = file.with_name(file.name + ".part")
    files: dict[str, str] = {}
    try:
        with tempfile.TemporaryDirectory(dir=folder) as scratch, _new(part) as stream:
            copy = Path(scratch) / DATABASE[kind]
            _copy_database(folder, chosen, copy)
            with tarfile.open(fileobj=stream, mode="w") as tar:
                files[copy.name] = _add(tar, copy, copy.name)
                for name, path in _files(folder, Path(scratch), () if keys else KEYS):
                    with contextlib.suppress(FileNotFoundError):  # no longer kept: the database does not name it either
                        if not path.samefile(part):  # a backup that is written into the folder itself
                            files[name] = _add(tar, path, name)
                made = Manifest(format=FORMAT, evenkeel=__version__, at_ns=time.time_ns(), database=kind, files=files)
                _add_text(tar, "manifest.json", made.model_dump_json())
            stream.flush()
            os.fsync(stream.fileno())
        check(part)
        os.link(part, file)  # never over another
    except FileExistsError:
        raise WrongInput(f"{file} exists", hint="name a new file; backups are not overwritten") from None
    except OSError as error:
        raise EvenkeelError(f"the backup cannot be written: {error}") from None
    finally:
        part.unlink(missing_ok=True)
    return made


def check(file: Path) -> Manifest:
    """Read a whole backup and compare each file with the manifest.  Raises WrongBackup."""
    found: dict[str, str] = {}
    manifest: Manifest | None = None
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                if stream is None or not _plain(member):
                    raise WrongBackup(f"{member.name} in it is no plain file", where=Where(str(file)))
                if member.name == "manifest.json":
                    manifest = Manifest.model_validate_json(stream.read())
                else:
                    found[member.name] = _sha256(stream)
    except (tarfile.TarError, ValidationError, EOFError, OSError) as error:
        raise WrongBackup(f"it cannot be read: {error}", where=Where(str(file))) from None
    if manifest is None:
        raise WrongBackup("it has no manifest: not a backup of a lab, or not a whole one", where=Where(str(file)))
    if manifest.format != FORMAT:
        raise WrongBackup(f"format {manifest.format} is unknown to this evenkeel", where=Where(str(file)))
    different = sorted(
        name for name in found.keys() | manifest.files.keys() if found.get(name) != manifest.files.get(name)
    )
    if different:
        raise WrongBackup(f"{different[0]} in it is not what was written", where=Where(str(file)))
    return manifest


def restore(folder: Path, chosen: Settings, file: Path) -> Manifest:
    """Put the state in ``file`` into ``folder``, which has none.  Nothing is changed unless all of it is right.

    On PostgreSQL the database must be empty.  Raises EvenkeelError.
    """
    manifest = check(file)
    wanted = "postgresql" if chosen.database else "sqlite"
    if manifest.database != wanted:
        raise WrongInput(
            f"the backup holds a {manifest.database} database, and this lab has {wanted}",
            hint="--database URL names one" if wanted == "sqlite" else "leave the database out of the settings",
        )
    folders.prepare(folder)
    with folders.locked(folder, ""):
        there = {"lab.db", "artifacts", *(PurePosixPath(name).parts[0] for name in manifest.files)}
        for name in sorted(there):
            if (folder / name).is_dir() or ((folder / name).exists() and name in ("lab.db", *KEYS)):
                raise WrongInput(
                    f"there is a lab in {folder} already: {name}",
                    hint="move all of it away first, or name another folder",
                )
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            with tarfile.open(file, "r:") as tar:
                tar.extractall(scratch, filter="data")
            if manifest.database == "postgresql":
                assert chosen.database is not None
                dump = Path(scratch) / DATABASE["postgresql"]
                words, environment = _target(chosen.database)
                _run(
                    "pg_restore",
                    "--exit-on-error",
                    "--single-transaction",
                    "--no-owner",
                    *words,
                    str(dump),
                    environment=environment,
                )
                dump.unlink()
            (Path(scratch) / "manifest.json").unlink()
            for path in sorted(Path(scratch).iterdir()):
                target = folder / path.name
                if target.exists() and path.is_file():  # settings that were written for the new place stay
                    continue
                shutil.move(path, target)
    return manifest


# -- the database -------------------------------------------------------------------------------------------------


def _kind(folder: Path, chosen: Settings) -> str:
    if chosen.database:
        return make_url(chosen.database).get_backend_name()
    if not (folder / "lab.db").exists():
        raise WrongInput(f"there is no lab in {folder}", hint="--folder DIR names another")
    return "sqlite"


def _copy_database(folder: Path, chosen: Settings, copy: Path) -> None:
    if chosen.database:
        words, environment = _target(chosen.database)
        _run("pg_dump", "--format=custom", "--file", str(copy), *words, environment=environment)
        return
    source = sqlite3.connect(f"file:{folder / 'lab.db'}?mode=ro", uri=True)
    with contextlib.closing(source), contextlib.closing(sqlite3.connect(copy)) as target:
        source.backup(target)
        found = target.execute("PRAGMA integrity_check").fetchone()[0]
        if found != "ok":
            raise EvenkeelError(f"the database is damaged: {found}", hint="restore an older backup")
        target.execute("PRAGMA journal_mode=DELETE")  # one file, no others beside it


def _target(url: str) -> tuple[tuple[str, str], dict[str, str]]:
    """Words, and the environment that has the password: words could be read by everybody."""
    parsed = make_url(url).set(drivername="postgresql")
    plain = parsed._replace(password=None).render_as_string(hide_password=False)
    return ("--dbname", plain), {**os.environ, **({"PGPASSWORD": str(parsed.password)} if parsed.password else {})}


def _run(*command: str, environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        raise EvenkeelError(f"{command[0]} is not installed", hint="Debian package postgresql-client") from None
    if done.returncode:
        raise EvenkeelError(f"{command[0]} failed: {done.stderr.strip()}", hint="it must be as new as the server")


# -- files --------------------------------------------------------------------------------------------------------


def _files(folder: Path, scratch: Path, left_out: Collection[str]) -> Iterator[tuple[str, Path]]:
    """Name in the backup and place of each plain file of the state."""
    for root, names, files in os.walk(folder):
        here = Path(root)
        not_here = {*_NOT, *(_NOT_AT_TOP if here == folder else ())}
        names[:] = sorted(name for name in names if name not in not_here and here / name != scratch)
        for name in sorted(files):
            path = here / name
            if name not in (*_NOT, *left_out) and path.is_file() and not path.is_symlink():
                yield str(PurePosixPath(path.relative_to(folder))), path


def _plain(member: tarfile.TarInfo) -> bool:
    path = PurePosixPath(member.name)
    return member.isreg() and not path.is_absolute() and ".." not in path.parts


@contextlib.contextmanager
def _new(path: Path) -> Iterator[IO[bytes]]:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
        yield stream


def _add(tar: tarfile.TarFile, path: Path, name: str) -> str:
    """Its SHA-256, of the bytes that went in: a log may grow meanwhile."""
    with path.open("rb") as stream:
        member = tar.gettarinfo(arcname=name, fileobj=stream)
        reader = _Hashed(stream, member.size)
        tar.addfile(member, reader)  # type: ignore[arg-type]
    return reader.hash.hexdigest()


class _Hashed:
    """A file of which exactly ``size`` bytes are read."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self.stream, self.left, self.hash = stream, size, hashlib.sha256()

    def read(self, count: int) -> bytes:
        block = self.stream.read(min(count, self.left))
        self.left -= len(block)
        self.hash.update(block)
        return block


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(text.encode()), 0o600, int(time.time())
    tar.addfile(member, io.BytesIO(text.encode()))


def _sha256(stream: IO[bytes]) -> str:
    found = hashlib.sha256()
    while block := stream.read(_BLOCK):
        found.update(block)
    return found.hexdigest()
