"""Building the image: apt's own sources, one build at a time, no leftovers, a full disk.  Builds nothing real."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
import time
from collections import namedtuple
from pathlib import Path

import pytest

from evenkeel.errors import NotAsWanted, WrongInput
from evenkeel.machines.virtual import apt, build, image, kvm, lifecycle
from evenkeel.machines.virtual.places import RECIPE
from evenkeel.machines.virtual.qemu import Qemu
from evenkeel.machines.virtual.run import read_list, run

DEB822 = """Types: deb deb-src
# a comment
URIs: http://mirror.example/debian
Suites: trixie trixie-updates trixie-backports
Components: main contrib
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

Types: deb
URIs: http://mirror.example/debian-security
Suites: trixie-security
Components: main

Types: deb
Enabled: no
URIs: http://off.example/debian
Suites: trixie
Components: main

Types: deb
URIs: https://vendor.example/apt
Suites: stable-tools
Components: main
"""


def apt_root(tmp_path: Path, sources_list: str = "", **parts: str) -> Path:
    folder = tmp_path / "etc/apt/sources.list.d"
    folder.mkdir(parents=True)
    (folder.parent / "sources.list").write_text(sources_list)
    for name, text in parts.items():
        (folder / name.replace("_", ".")).write_text(text)
    return tmp_path


def test_sources_in_both_formats_become_those_of_our_release(tmp_path: Path) -> None:
    root = apt_root(
        tmp_path,
        "deb [arch=amd64 signed-by=/k.gpg] https://other.example/d bookworm main # x\n#deb http://no.example x main\n",
        debian_sources=DEB822,
    )
    lines = apt.lines(apt.sources(root))
    keyring = "[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] "
    assert lines == [
        "deb [signed-by=/k.gpg] https://other.example/d bookworm main",
        f"deb {keyring}http://mirror.example/debian bookworm main",
        f"deb {keyring}http://mirror.example/debian bookworm-updates main",
        "deb http://mirror.example/debian-security bookworm-security main",
    ]
    backports = apt.backports_lines(apt.sources(root))[len(lines) :]
    assert backports == [
        "deb [signed-by=/k.gpg] https://other.example/d bookworm-backports main",
        f"deb {keyring}http://mirror.example/debian bookworm-backports main",
    ]


def test_a_machine_without_debian_sources_is_told(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="no Debian archive"):
        apt.sources(apt_root(tmp_path, "deb http://x.example/ubuntu noble main\n"))


def test_no_project_file_names_a_mirror() -> None:
    for file in RECIPE.rglob("*"):
        if file.is_file() and file.suffix != ".pyc":
            assert "://" not in file.read_text(), file


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(image, "_check_machine", lambda: None)
    return tmp_path / "evenkeel/images"


def fake_build(work: Path, on_progress: object) -> None:
    (work / "out").mkdir()
    (work / "out/disk.raw").write_text("disk")


def test_two_builds_at_once_are_one(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builds: list[Path] = []

    def slow(work: Path, on_progress: object) -> None:
        builds.append(work)
        time.sleep(0.3)
        fake_build(work, on_progress)

    monkeypatch.setattr(image, "build", slow)
    results: list[image.Image] = []
    threads = [threading.Thread(target=lambda: results.append(image.ensure())) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(builds) == 1
    assert {result.folder for result in results} == {cache / image.recipe_key()}
    assert sorted(file.name for file in cache.iterdir()) == [".lock", image.recipe_key()]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), NotAsWanted("no"), OSError(errno.EIO, "broken")])
def test_a_failed_build_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(work: Path, on_progress: object) -> None:
        (work / "root").mkdir()
        raise error

    monkeypatch.setattr(image, "build", fail)
    with pytest.raises(type(error)):
        image.ensure()
    assert [file.name for file in cache.iterdir()] == [".lock"]


def test_what_a_killed_build_left_is_removed_by_the_next(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / ".build-1/root").mkdir(parents=True)
    monkeypatch.setattr(image, "build", fake_build)
    image.ensure()
    assert not (cache / ".build-1").exists()


def test_an_image_of_an_older_recipe_goes_when_nobody_used_it_for_a_week(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, days in (("old", 8), ("recent", 6)):
        (cache / name).mkdir(parents=True)
        os.utime(cache / name, (time.time() - days * 86400,) * 2)
    monkeypatch.setattr(image, "build", fake_build)
    image.ensure()
    assert sorted(file.name for file in cache.iterdir() if file.is_dir()) == sorted(["recent", image.recipe_key()])


def test_too_little_room_is_told_before_anything_is_done(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**10, 10**10, 5 * 1024**2))
    with pytest.raises(NotAsWanted, match=r"the disk is full; 2000 MiB are needed in .*, 5 MiB are free"):
        image.ensure()
    assert [file.name for file in cache.iterdir()] == [".lock"]


@pytest.mark.parametrize("how", ["python", "program"])
def test_a_disk_that_fills_up_in_the_middle(cache: Path, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    def fill(work: Path, on_progress: object) -> None:
        if how == "python":
            raise OSError(errno.ENOSPC, "No space left on device")
        run(["sh", "-c", "echo 'dpkg: error: No space left on device' >&2; exit 2"], what="install Debian")

    monkeypatch.setattr(image, "build", fill)
    with pytest.raises(NotAsWanted, match="2000 MiB are needed") as caught:
        image.ensure()
    assert caught.value.hint is not None and "XDG_CACHE_HOME" in caught.value.hint
    assert [file.name for file in cache.iterdir()] == [".lock"]


def test_a_failed_program_is_named_with_its_last_words() -> None:
    with pytest.raises(NotAsWanted, match=r"could not do it: sh ended with 3\n  reason"):
        run(["env", "--", "sh", "-c", "echo reason; exit 3"], what="do it")


def test_a_program_that_is_interrupted_is_ended(tmp_path: Path) -> None:
    """By us, and not by itself: then it would leave a file."""
    numbers: list[int] = []

    def stop(line: str) -> None:
        numbers.append(int(line))
        raise KeyboardInterrupt

    left = tmp_path / "it went on"
    program = f"import os, time; print(os.getpid(), flush=True); time.sleep(20); open({str(left)!r}, 'w')"
    with pytest.raises(KeyboardInterrupt):
        run([sys.executable, "-c", program], what="wait", on_line=stop)
    assert not left.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(numbers[0], 0)


def test_the_recipe_decides_the_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    copy = tmp_path / "recipe"
    shutil.copytree(RECIPE, copy)
    monkeypatch.setattr(image, "RECIPE", copy)
    before = image.recipe_key()
    assert before == image.recipe_key()
    (copy / "guest/init").write_text("#!/bin/sh\n")
    after = image.recipe_key()
    assert after != before
    (copy / "guest/init").chmod(0o600)
    assert image.recipe_key() != after


def test_the_initramfs_is_one_that_cpio_reads(tmp_path: Path) -> None:
    archive = build._cpio({"usr": (0o040755, b""), "usr/a": (0o100755, b"hello"), "l": (0o120777, b"usr/a")})
    assert archive.startswith(b"070701") and len(archive) % 4 == 0
    assert archive.count(b"070701") == 5
    assert b"TRAILER!!!" in archive[-16:]


def test_lists_of_packages_are_sorted_and_plain() -> None:
    packages = read_list(RECIPE / "image-packages.txt")
    assert packages == sorted(set(packages))
    assert all(word.replace("-", "").replace(".", "").isalnum() for word in packages)


def test_a_stranger_with_our_number_is_not_our_qemu(tmp_path: Path) -> None:
    assert not lifecycle.is_ours(os.getpid(), tmp_path)
    assert not lifecycle.is_ours(2**22 - 1, tmp_path)


def test_an_unknown_host_names_the_known_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with pytest.raises(WrongInput, match="no virtual host 'x'") as caught:
        lifecycle.ssh_target("x")
    assert caught.value.hint == "evenkeel virtual create x"
    with pytest.raises(WrongInput):
        lifecycle.remove("x")
    assert not (tmp_path / "evenkeel").exists()


@pytest.mark.parametrize(("module", "value", "works"), [("kvm_amd", "1", True), ("kvm_intel", "Y", True),
                                                        ("kvm_intel", "N", False), ("kvm", "1", False)])  # fmt: skip
def test_nested_kvm_is_read_from_the_module(tmp_path: Path, module: str, value: str, works: bool) -> None:
    parameters = tmp_path / f"sys/module/{module}/parameters"
    parameters.mkdir(parents=True)
    (parameters / "nested").write_text(value + "\n")
    assert kvm.nested(tmp_path) is works


def test_without_dev_kvm_there_is_no_kvm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda self: False)
    assert kvm.probe(Qemu((10, 0, 0), None), Path("/vmlinuz")).reason == "there is no /dev/kvm"


def test_a_kvm_that_cannot_run_a_kernel_is_told_and_remembered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The program stands in for a QEMU whose KVM fails in the middle, as there are machines that do."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    runs = tmp_path / "runs"
    program = tmp_path / "bin/qemu-system-x86_64"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho x >> {runs}\necho 'kvm_buf_set_msrs: Assertion failed'\nexit 134\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(Path, "exists", lambda self: True)
    monkeypatch.setattr(os, "access", lambda path, mode: True)
    for _ in range(2):
        verdict = kvm.probe(Qemu((10, 0, 0), None), tmp_path / "vmlinuz")
        assert not verdict.works and "does not boot" in verdict.reason and "kvm_buf_set_msrs" in verdict.detail
    assert runs.read_text() == "x\n"
