"""The questions to libvirt, put to its own test driver, which needs no daemon, and to a daemon that hangs."""

from __future__ import annotations

import errno
import socket
from pathlib import Path

import pytest

from evenkeel.probe import libvirt, sample_guest


@pytest.fixture(autouse=True)
def its_test_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """One guest, ``test``, which runs."""
    monkeypatch.setattr(libvirt, "_library", None)
    monkeypatch.setattr(libvirt, "URI", "test:///default")


def test_a_guest_and_its_definitions() -> None:
    assert libvirt.state("test") == "running"
    running, stored = libvirt.xml("test"), libvirt.xml("test", inactive=True)
    assert "<domain type='test' id='1'>" in running and "<domain type='test'>" in stored
    assert sample_guest.guest_state("test") == {"state": "running", "live": running, "defined": stored}


def test_a_guest_that_is_not_there_has_no_definition() -> None:
    assert sample_guest.guest_state("nope") == {"state": "undefined", "live": None, "defined": None}
    with pytest.raises(libvirt.Refused, match="not found"):
        libvirt.xml("nope")


def test_what_libvirt_refuses_is_told_in_its_words_and_not_printed(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(OSError, match="not support") as caught:
        sample_guest.agent("test", "guest-ping")
    assert caught.value.errno == errno.EPROTO
    assert capfd.readouterr() == ("", "")


def test_a_lost_connection_is_made_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    assert libvirt.state("test") == "running"
    library = libvirt._library
    assert library is not None
    opened: list[bytes] = []
    real = library.main.virConnectOpen

    def opening(uri: bytes) -> int:
        opened.append(uri)
        return int(real(uri))

    monkeypatch.setattr(library.main, "virConnectOpen", opening)
    assert libvirt.state("test") == "running" and not opened
    monkeypatch.setattr(library.main, "virConnectGetLibVersion", lambda connection, version: -1)
    assert libvirt.state("test") == "running" and opened == [b"test:///default"]


def test_without_a_daemon_the_address_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libvirt, "URI", f"qemu+unix:///system?socket={tmp_path}/none")
    with pytest.raises(OSError, match=f"{tmp_path}/none") as caught:
        sample_guest.guest_state("plc")
    assert caught.value.errno == errno.ECONNREFUSED


def test_a_daemon_that_hangs_is_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(f"{tmp_path}/silent")
        silent.listen()
        monkeypatch.setattr(libvirt, "URI", f"qemu+unix:///system?socket={tmp_path}/silent")
        with pytest.raises(OSError, match="did not answer within 0 s") as caught:
            libvirt.state("plc", within_s=0.2)
        assert caught.value.errno == errno.ETIMEDOUT
        monkeypatch.setattr(libvirt, "URI", "test:///default")
        assert libvirt.state("test") == "running"


def test_without_the_library_its_package_is_the_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    from evenkeel.machines.protocol import ProbeError
    from evenkeel.measure.guest import cure

    def none(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", none)
    with pytest.raises(OSError, match=r"libvirt\.so\.0") as caught:
        sample_guest.guest_state("plc")
    error = ProbeError("here", "guest_state", {"message": "", "errno": errno.errorcode[caught.value.errno or 0]})
    assert cure("plc", error) == "install libvirt-clients (virsh) on the host"
