"""The images that virtual hosts boot from, kept in the cache by the hash of their recipe.

Decides when one is built, sees to it that only one is, and that a build which is stopped leaves nothing.  How it is
built is :mod:`.build`.  Must not know about running hosts.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evenkeel.errors import NotAsWanted, WrongInput
from evenkeel.machines.protocol import OnProgress
from evenkeel.machines.virtual import apt
from evenkeel.machines.virtual.build import build
from evenkeel.machines.virtual.places import RECIPE, cache_dir
from evenkeel.machines.virtual.run import disk_full, is_disk_full, tool

MIB = 1024**2
#: Peak of one build, with room to spare; measured 1.5 GiB: 0.7 GiB root, 0.75 GiB disk.
NEEDED_BYTES = 2000 * MIB


@dataclass(frozen=True)
class Image:
    """One built image; all of it is read-only to the hosts that use it."""

    folder: Path

    @property
    def disk(self) -> Path:
        return self.folder / "disk.raw"

    @property
    def identity(self) -> Path:
        """The private key that root of every host made from this image accepts."""
        return self.folder / "id_ed25519"

    @property
    def host_key(self) -> str:
        """``ssh-ed25519 AAAA...``: fixed when the image is built, so that a host can be known before it boots."""
        return " ".join((self.folder / "host_key.pub").read_text().split()[:2])

    @property
    def kernel(self) -> Path:
        """A kernel of the image, to try KVM with."""
        return self.folder / "vmlinuz"

    @property
    def key(self) -> str:
        return self.folder.name


def recipe_key() -> str:
    """Hash of everything that decides what comes out, but for the day's package versions: 16 hexadecimal digits."""
    state = hashlib.sha256(f"{apt.RELEASE} {platform.machine()}".encode())
    files = [RECIPE / "build.py", RECIPE / "image-packages.txt"]
    for folder in ("rootfs", "guest"):
        files += sorted(file for file in (RECIPE / folder).rglob("*") if file.is_file())
    for file in files:
        state.update(f"\0{file.relative_to(RECIPE)}\0{file.stat().st_mode & 0o111:o}\0".encode())
        state.update(file.read_bytes())
    return state.hexdigest()[:16]


def images_dir() -> Path:
    return cache_dir() / "images"


def find() -> Image | None:
    """The image of today's recipe, if it is built."""
    image = Image(images_dir() / recipe_key())
    return image if image.disk.is_file() else None


def ensure(on_progress: OnProgress | None = None) -> Image:
    """The image of today's recipe, built if need be (1 to 2 minutes).

    Raises WrongInput (not root, a tool is missing, not amd64) and NotAsWanted (disk full, a package cannot be had).
    """
    if (image := find()) is not None:
        return image
    _check_machine()
    images_dir().mkdir(parents=True, exist_ok=True)
    with locked(images_dir() / ".lock", on_progress, "waiting for another build of the image"):
        if (image := find()) is not None:
            return image
        _remove_leftovers()
        _check_room()
        work = images_dir() / f".build-{os.getpid()}"
        try:
            work.mkdir()
            build(work, on_progress or (lambda done, total, what: None))
            final = images_dir() / recipe_key()
            work.joinpath("out").rename(final)
            _remove_unused(final)
            return Image(final)
        except OSError as error:
            if is_disk_full(error):
                raise disk_full("build the image", NEEDED_BYTES, images_dir(), _free()) from None
            raise
        except NotAsWanted as error:
            if "the disk is full" in error.message:
                raise disk_full("build the image", NEEDED_BYTES, images_dir(), _free()) from None
            raise
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def locked(file: Path, on_progress: OnProgress | None = None, waiting: str = "waiting") -> Iterator[None]:
    """Hold an exclusive lock on ``file``; it ends with the process, however that ends."""
    while True:
        with file.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if on_progress is not None:
                    on_progress(0, 0, waiting)
                fcntl.flock(handle, fcntl.LOCK_EX)
            # Whoever held it may have removed the file meanwhile: then this is a lock on nothing.
            if not file.exists() or file.stat().st_ino != os.fstat(handle.fileno()).st_ino:
                continue
            yield
            return


def _check_machine() -> None:
    if platform.machine() != "x86_64":
        raise WrongInput(f"virtual hosts are amd64 machines; this is {platform.machine()}")
    for name in ("mmdebstrap", "mke2fs", "ssh-keygen", "setpriv", "unshare", "chroot"):
        tool(name)
    if os.geteuid() != 0:
        raise WrongInput(
            "building the image of a virtual host needs root",
            hint="run this once as root with XDG_CACHE_HOME set to a folder that you can read; later runs need no root",
        )


def _free() -> int:
    return shutil.disk_usage(images_dir()).free


def _check_room() -> None:
    if _free() < NEEDED_BYTES:
        raise disk_full("build the image", NEEDED_BYTES, images_dir(), _free())


def _remove_leftovers() -> None:
    """What a killed build left.  Called under the lock, so nobody is using it."""
    for folder in images_dir().glob(".build-*"):
        shutil.rmtree(folder, ignore_errors=True)


#: An image of an older recipe that nobody started a host from for so long is removed when a new one is built.
_UNUSED_S = 7 * 24 * 3600


def mark_used(image: Image) -> None:
    """Called by every start of a host, so that :func:`_remove_unused` knows which images are in use."""
    with contextlib.suppress(OSError):
        os.utime(image.folder)


def _remove_unused(newest: Path) -> None:
    for folder in images_dir().iterdir():
        if folder != newest and folder.is_dir() and time.time() - folder.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)
