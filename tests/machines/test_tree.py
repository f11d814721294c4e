"""Recorded trees as machines: tarballs of every kind, damaged ones, hostile ones, and folders."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.facts import Facts
from evenkeel.errors import WrongInput
from evenkeel.machines import tree
from evenkeel.machines.address import resolve
from evenkeel.machines.tree import TreeMachine

FILES = {
    "sys/devices/system/cpu/present": b"0-1\n",
    "sys/devices/system/cpu/online": b"0-1\n",
    "proc/sys/kernel/osrelease": b"6.12.1-rt\n",
    "proc/irq/24/smp_affinity_list": b"0-1\n",
}


def tar(
    members: dict[str, bytes], *, top: str = "machine/", change: Callable[[tarfile.TarFile], None] | None = None
) -> bytes:
    """An uncompressed tarball; ``change`` adds what is not a plain file."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(top + name)
            info.size, info.mode = len(content), 0o444 if name.endswith("affinity_list") else 0o644
            archive.addfile(info, io.BytesIO(content))
        if change:
            change(archive)
    return buffer.getvalue()


def special(name: str, type: bytes, target: str = "") -> Callable[[tarfile.TarFile], None]:
    def add(archive: tarfile.TarFile) -> None:
        info = tarfile.TarInfo(name)
        info.type, info.linkname = type, target
        archive.addfile(info)

    return add


def machine(tmp_path: Path, content: bytes, name: str = "tree.tar") -> TreeMachine:
    path = tmp_path / name
    path.write_bytes(content)
    return TreeMachine(path)


def facts(found: TreeMachine) -> Facts:
    with found.probe() as probe:
        return Facts.model_validate(probe.call("facts"))


@pytest.mark.parametrize(
    "compress", [bytes, bz2.compress, gzip.compress, lzma.compress], ids=["plain", "bz2", "gz", "xz"]
)
@pytest.mark.parametrize("top", ["machine/", "./machine/", "", "./", "/", "a/b/"])
def test_tarballs(tmp_path: Path, compress: Callable[[bytes], bytes], top: str) -> None:
    # the name says nothing: what counts are the first bytes
    found = facts(machine(tmp_path, compress(tar(FILES, top=top)), "tree.bin"))
    assert found.online == {0, 1}
    assert found.kernel.release == "6.12.1-rt"
    assert found.interrupts[0].managed is True  # 0444 in the tarball


def test_an_address_of_a_tarball_or_folder(tmp_path: Path) -> None:
    (tmp_path / "tree.tar").write_bytes(tar(FILES))
    found = resolve(str(tmp_path / "tree.tar"))
    assert isinstance(found, TreeMachine)
    assert (found.read_only, found.address) == (True, str(tmp_path / "tree.tar"))
    with tarfile.open(tmp_path / "tree.tar") as archive:
        archive.extractall(tmp_path / "unpacked", filter="tar")
    assert facts(TreeMachine(tmp_path / "unpacked")).to_json() == facts(TreeMachine(tmp_path / "tree.tar")).to_json()


def test_only_facts_can_be_asked(tmp_path: Path) -> None:
    found = machine(tmp_path, tar(FILES))
    with found.probe() as probe:
        for op in ("apply_step", "hello", "run", "record"):
            with pytest.raises(WrongInput, match="is a recorded tree, it cannot be written"):
                probe.call(op)
    with pytest.raises(WrongInput, match="cannot be rebooted"):
        found.reboot()


def test_progress_and_nothing_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    seen: list[tuple[int, int, str]] = []
    found = machine(tmp_path, bz2.compress(tar(FILES)))
    with found.probe() as probe:
        probe.call("facts", on_progress=lambda *step: seen.append(step))
    found.close()
    assert list(temporary.iterdir()) == []
    assert seen[0][2] == "reading the tarball"
    assert all(0 <= done <= total for done, total, _ in seen)


# -- damaged ----------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 0.999), compress=st.sampled_from([bz2.compress, gzip.compress, lzma.compress]))
def test_a_truncated_tarball_is_told(tmp_path: Path, share: float, compress: Callable[[bytes], bytes]) -> None:
    whole = compress(tar(FILES | {f"proc/{number}/stat": b"x" * 3000 for number in range(20)}))
    with pytest.raises(WrongInput) as caught:
        facts(machine(tmp_path, whole[: int(len(whole) * share)]))
    assert "not a whole tarball" in caught.value.message
    assert caught.value.hint


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), compress=st.sampled_from([bytes, bz2.compress, gzip.compress, lzma.compress]))
def test_flipped_bytes_are_told_or_harmless(
    tmp_path: Path, data: st.DataObject, compress: Callable[[bytes], bytes]
) -> None:
    content = bytearray(compress(tar(FILES)))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        facts(machine(tmp_path, bytes(content)))
    except WrongInput as error:
        assert error.hint  # and no other exception, whatever the bytes are


def test_what_is_no_tarball(tmp_path: Path) -> None:
    for content in (b"", b"hello", bz2.compress(b"hello"), b"\x1f\x8b", b"BZh9"):
        with pytest.raises(WrongInput, match="not a whole tarball"):
            facts(machine(tmp_path, content))


def test_zstd_is_named(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="zstd"):
        facts(machine(tmp_path, b"\x28\xb5\x2f\xfd" + bytes(100)))


def test_a_file_that_nobody_may_read(tmp_path: Path) -> None:
    with pytest.raises(WrongInput, match="cannot read"):
        facts(TreeMachine(tmp_path / "gone.tar"))


@pytest.mark.parametrize("members", [{}, {"readme": b"hello"}, {"a/sysfs": b"", "b/x": b""}])
def test_a_tarball_without_a_machine(tmp_path: Path, members: dict[str, bytes]) -> None:
    with pytest.raises(WrongInput, match="no recorded machine") as caught:
        facts(machine(tmp_path, tar(members)))
    assert "--record" in (caught.value.hint or "")
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(WrongInput, match="no recorded machine"):
        facts(TreeMachine(empty))


# -- hostile ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../../x", "machine/../../x", "machine/sys/../../../x"])
def test_names_that_lead_out(tmp_path: Path, name: str) -> None:
    content = tar(FILES, change=special(name, tarfile.REGTYPE))
    with pytest.raises(WrongInput, match="leads out of the tarball"):
        facts(machine(tmp_path, content))


def test_links_lead_nowhere_else(tmp_path: Path) -> None:
    (tmp_path / "hostname").write_text("of this machine\n")

    def add(archive: tarfile.TarFile) -> None:
        special("machine/proc/sys/kernel/hostname", tarfile.SYMTYPE, str(tmp_path / "hostname"))(archive)
        special("machine/proc/cpuinfo", tarfile.SYMTYPE, "../../../../../../../../proc/cpuinfo")(archive)
        special("machine/proc/cmdline", tarfile.LNKTYPE, "/proc/cmdline")(archive)
        special("machine/proc/meminfo", tarfile.LNKTYPE, "machine/proc/sys/kernel/osrelease")(archive)

    found = facts(machine(tmp_path, tar(FILES, change=add)))
    assert found.identity.hostname is None
    assert found.kernel.command_line == ""
    assert {cpu.model for cpu in found.cpus} == {None}
    assert found.kernel.release == "6.12.1-rt"


@pytest.mark.parametrize("type", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_device_nodes_are_not_there(tmp_path: Path, type: bytes) -> None:
    content = tar(FILES, change=special("machine/proc/cpuinfo", type))
    assert facts(machine(tmp_path, content)).online == {0, 1}


def test_a_bomb_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "MOST_BYTES", 1 << 20)
    content = bz2.compress(tar(FILES | {"proc/zeros": bytes(2 << 20)}))
    assert len(content) < 2000
    with pytest.raises(WrongInput, match="more than any machine"):
        facts(machine(tmp_path, content))
    monkeypatch.setattr(tree, "MOST_FILES", 3)
    with pytest.raises(WrongInput, match="more than any machine"):
        facts(machine(tmp_path, tar({f"proc/{number}": b"" for number in range(9)})))
