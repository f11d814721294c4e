"""The disk fills up while the image of virtual hosts is built: for real, on a tmpfs that is too small.

The programs of the build are the real ones, since it is by their words that a full disk is known.  What is tested is
that it is told (what, where, cure), that nothing half-made stays, and that the next build is not taken in by it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from evenkeel.cli import main
from evenkeel.machines.virtual import build, image, lifecycle
from evenkeel.machines.virtual.qemu import Qemu
from evenkeel.machines.virtual.run import DiskFull
from tests.machines.test_virtual_image import fake_build

Small = Callable[[str], Path]


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Small]:
    """Makes the folder of images a file system of that size; gives the folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    folder = tmp_path / "cache/evenkeel/images"

    def mount(size: str) -> Path:
        folder.mkdir(parents=True)
        argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
        if done.returncode:
            pytest.skip(f"a small disk needs root: {done.stderr.strip()}")
        mounted.callback(subprocess.run, ["umount", "-l", str(folder)], check=True)
        return folder

    with ExitStack() as mounted:
        yield mount


def left_in(folder: Path) -> list[str]:
    """Everything below it, hidden files too."""
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*"))


def fails_and_leaves_nothing(folder: Path) -> None:
    """The image does not fit there: told, cleaned up, and not in the way once there is room."""
    with pytest.raises(DiskFull) as caught:
        image.ensure()
    told = caught.value
    assert told.message.startswith("could not build the image: the disk is full; 2000 MiB are needed")
    assert f"in {folder}, " in told.message and told.message.endswith("MiB are free")
    assert "XDG_CACHE_HOME" in (told.hint or "")
    assert left_in(folder) == [".lock"] and image.find() is None
    subprocess.run(["mount", "-o", "remount,size=1m", str(folder)], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(image, "build", fake_build)
        patch.setattr(image, "_check_room", lambda: None)  # this one needs none
        assert image.ensure().disk.read_text() == "disk"


@pytest.fixture
def began_with_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody else filled the disk after the build had looked at it."""
    monkeypatch.setattr(image, "_check_room", lambda: None)


def test_no_room_is_seen_before_anything_is_done(small: Small, monkeypatch: pytest.MonkeyPatch) -> None:
    def begin(*_: object) -> None:
        raise AssertionError("the build began")

    folder = small("8m")
    monkeypatch.setattr(image, "build", begin)
    fails_and_leaves_nothing(folder)


@pytest.mark.usefixtures("began_with_room")
@pytest.mark.parametrize("size", ["4k", "16k", "48k"], ids=["keys", "first file", "last files"])
def test_full_before_a_package_is_there(size: str, small: Small) -> None:
    fails_and_leaves_nothing(small(size))


@pytest.mark.long
@pytest.mark.usefixtures("began_with_room")
@pytest.mark.parametrize("size", ["400k", "8m", "150m"], ids=["signatures", "package lists", "packages"])
def test_full_while_debian_is_installed(size: str, small: Small) -> None:
    """Needs the mirror; half a minute to two."""
    fails_and_leaves_nothing(small(size))


@pytest.mark.usefixtures("began_with_room")
def test_full_while_the_disk_is_written(small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sparse file of 6 GiB is made on any disk; it is mke2fs that fills it."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "large").write_bytes(os.urandom(1 << 20))

    def write(work: Path, on_progress: object) -> None:
        (work / "out").mkdir()
        build._write_disk(root, work / "out/disk.raw", "c0ffee00-0000-4000-8000-000000000000")

    folder = small("2m")
    monkeypatch.setattr(image, "build", write)
    fails_and_leaves_nothing(folder)


@pytest.mark.usefixtures("began_with_room")
def test_a_user_reads_what_where_and_what_to_do(
    small: Small, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = small("48k")
    monkeypatch.setattr("evenkeel.machines.virtual.qemu.find", lambda *_: Qemu((10, 0, 0), None))
    assert main(["virtual", "create", "cell"]) == 1
    told = capsys.readouterr().err
    words = " ".join(told.split())
    assert "error: could not build the image: the disk is full" in words and str(folder) in words
    assert "hint: make room, or point XDG_CACHE_HOME" in words and "Traceback" not in told
    assert left_in(folder) == [".lock"] and not lifecycle.exists("cell")
