"""Machines over a real sshd: what works, each way of not being reachable, and that nothing is left behind."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from evenkeel.errors import EvenkeelError, Unreachable
from evenkeel.machines import ssh as ssh_module
from evenkeel.machines.protocol import ProbeError
from evenkeel.probe import journal
from tests.machines.sshd import SSHD, Sshd, is_of_this_test, processes_with
from tests.probe import tree
from tests.waiting import until

pytestmark = pytest.mark.skipif(SSHD is None or shutil.which("ssh") is None, reason="needs openssh-server and -client")


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for control sockets that must be empty at the end, and no process of ours that is still there."""
    folder = tmp_path_factory.mktemp("r")
    short = Path(f"/tmp/evkr{os.getpid()}")
    short.symlink_to(folder)
    folder.chmod(0o700)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    yield short
    left = _wait_until_empty(lambda: processes_with(str(short)))
    assert left == [], [Path(f"/proc/{number}/cmdline").read_bytes() for number in left]
    assert list(folder.rglob("*")) == []
    short.unlink()
    assert _wait_until_empty(lambda: [n for n in processes_with("evenkeel-probe") if is_of_this_test(n)]) == []
    assert len(list(Path("/proc/self/fd").iterdir())) == descriptors


def _wait_until_empty(look: object, seconds: float = 60.0) -> list[int]:
    assert callable(look)
    deadline = time.monotonic() + seconds
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return list(found)


@pytest.fixture
def sshd(tmp_path: Path, runtime: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path)
    server.start()
    yield server
    server.stop()


def test_a_conversation_and_a_second_one_over_the_same_master(sshd: Sshd, runtime: Path) -> None:
    machine = sshd.machine()
    with machine.probe() as probe:
        assert probe.call("hello")["boot_id"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        # The look for what is left behind, which every test ends with, does see a probe.
        assert [n for n in processes_with("evenkeel-probe") if is_of_this_test(n)] != []
        [socket] = (runtime / "evenkeel").iterdir()
        with machine.probe() as second:
            assert second.call("hello")["pid"] != probe.call("hello")["pid"]
        with pytest.raises(ProbeError, match="no operation"):
            probe.call("nonsense")
        assert probe.call("hello")["uid"] == os.getuid()
    assert list((runtime / "evenkeel").iterdir()) == [socket]
    machine.close()
    machine.close()  # twice does no harm


def test_a_master_that_ended_by_itself_and_whose_folder_another_evenkeel_removed(sshd: Sshd, runtime: Path) -> None:
    machine = sshd.machine()
    with machine.probe() as probe:
        probe.call("hello")
    # As after ControlPersist: the master is gone with its socket, and the next evenkeel to end finds the folder empty.
    assert machine._control is not None
    subprocess.run(
        ["ssh", "-o", f"ControlPath={machine._control}", "-O", "exit", "--", machine.target.destination],
        capture_output=True,
        check=True,
    )
    _wait_until_empty(lambda: list((runtime / "evenkeel").iterdir()))
    (runtime / "evenkeel").rmdir()
    with machine.probe() as probe:
        assert probe.call("hello")["uid"] == os.getuid()
    machine.close()


def test_words_survive_the_shell_on_the_other_side(sshd: Sshd) -> None:
    machine = sshd.machine()
    words = ["a b", "$HOME", "'", '"', ";id", "*", "\\", ""]
    argv = machine._argv("printf", "<%s>", *words)
    said = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    machine.close()
    assert said == "".join(f"<{word}>" for word in words)


def test_nobody_listens(tmp_path: Path, runtime: Path) -> None:
    server = Sshd(tmp_path)  # never started
    machine = server.machine()
    with pytest.raises(Unreachable, match="Connection refused") as caught:
        machine.probe()
    machine.close()
    assert caught.value.exit_code == 3
    assert "sshd" in (caught.value.hint or "")


def test_a_name_that_does_not_exist(runtime: Path) -> None:
    from evenkeel.machines.address import resolve

    machine = resolve("ssh://root@no-such-host.invalid")
    with pytest.raises(Unreachable, match=r"Could not resolve hostname|Temporary failure"):
        machine.probe()
    machine.close()


def test_another_host_key_is_refused(sshd: Sshd, tmp_path: Path) -> None:
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "other")], check=True)
    sshd.trust_host_key((tmp_path / "other.pub").read_text())
    machine = sshd.machine()
    with pytest.raises(Unreachable, match="Host key verification failed") as caught:
        machine.probe()
    machine.close()
    assert "ssh-keygen -R" in (caught.value.hint or "")


def test_a_key_that_does_not_open_the_account(sshd: Sshd, tmp_path: Path) -> None:
    (tmp_path / "authorized").write_text("")
    machine = sshd.machine()
    with pytest.raises(Unreachable, match="Permission denied") as caught:
        machine.probe()
    machine.close()
    assert "BatchMode" in (caught.value.hint or "")


def test_a_machine_without_python(tmp_path: Path, runtime: Path) -> None:
    bare = '/usr/bin/env -i PATH=/nonexistent /bin/sh -c "$SSH_ORIGINAL_COMMAND"'
    server = Sshd(tmp_path, f"ForceCommand {bare}")
    server.start()
    try:
        machine = server.machine()
        with pytest.raises(Unreachable, match="python3") as caught:
            machine.probe()
        machine.close()
        assert caught.value.hint == "the machine needs Python 3.9 or newer as python3"
    finally:
        server.stop()


def test_something_that_is_no_probe(tmp_path: Path, runtime: Path) -> None:
    server = Sshd(tmp_path, "ForceCommand echo welcome to this machine; sleep 30")
    server.start()
    try:
        machine = server.machine()
        with pytest.raises(Unreachable, match=r"welcome to this machine.*no probe"):
            machine.probe()
        machine.close()
    finally:
        server.stop()


def test_one_that_never_answers_is_given_up(tmp_path: Path, runtime: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from evenkeel.machines.connection import ProcessProbe

    server = Sshd(tmp_path, "ForceCommand cat >/dev/null")
    server.start()
    try:
        machine = server.machine()
        argv = machine._argv("true")
        with pytest.raises(Unreachable, match="no answer to 'hello' within 2 s"):
            ProcessProbe(argv, machine=machine.address, start_timeout_s=2.0)
        machine.close()
    finally:
        server.stop()


def test_killed_in_the_middle_of_a_step_the_host_finishes_it_and_frees_the_lock(sshd: Sshd, tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    tree.build(root)
    script = root / "usr/sbin/update-grub"
    goes_on = f"for n in $(seq 600); do [ -e {tmp_path}/looked ] && break; sleep 0.1; done"
    script.write_text(script.read_text().replace("set -e\n", f"set -e\ntouch {tmp_path}/started\n{goes_on}\n"))
    machine = sshd.machine()
    probe = machine.probe()
    ssh_process = probe._process.pid  # type: ignore[attr-defined]

    def cut() -> None:
        until((tmp_path / "started").exists)
        os.kill(ssh_process, signal.SIGKILL)

    cutter = threading.Thread(target=cut)
    cutter.start()
    with pytest.raises(Unreachable, match="connection lost during 'apply_step'"):
        probe.call("apply_step", step=tree.STEPS[0], plan_sha256="0" * 64, root=str(root))
    cutter.join()
    probe.close()
    assert journal.read_journal(str(root))["writer"] is not None
    (tmp_path / "looked").touch()
    with machine.probe() as again:
        # Waits for the first one, which is still at it, and finds nothing to do.
        def begins() -> bool:
            with contextlib.suppress(ProbeError):
                again.call("journal_note", event="begin", plan_sha256="0" * 64, root=str(root))
                return True
            return False

        until(begins)
        answer = again.call("apply_step", step=tree.STEPS[0], plan_sha256="0" * 64, root=str(root))
    assert answer["outcome"] == "unchanged"
    machine.close()
    events = [entry["event"] for entry in journal.read_journal(str(root))["entries"]]
    assert events == ["intent", "done", "begin"]


def test_the_machine_goes_down_in_the_middle(sshd: Sshd) -> None:
    machine = sshd.machine()
    probe = machine.probe()
    sshd.stop()
    with pytest.raises(Unreachable, match=r"went away before|connection lost during"):
        probe.call("hello")
    probe.close()
    machine.close()


def test_waiting_for_a_boot(sshd: Sshd) -> None:
    """sshd goes away and comes back; the boot id is another one than the one that we say was there before."""
    machine = sshd.machine()
    machine.probe().close()
    sshd.stop()
    back = threading.Timer(2.0, sshd.start)
    back.start()
    told: list[str] = []
    boot = machine.wait_for_boot("before", on_progress=lambda done, total, what: told.append(what), timeout_s=180)
    back.join()
    assert boot == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert told
    with pytest.raises(Unreachable, match="not back within 2 s") as caught:
        machine.wait_for_boot(boot, on_progress=None, timeout_s=2)
    machine.close()
    assert "console" in (caught.value.hint or "")


def test_a_controlling_process_that_is_killed_leaves_nothing_for_long(sshd: Sshd, runtime: Path) -> None:
    """SIGKILL: the probe ends with its pipe, the master by itself (ControlPersist, shortened here)."""
    code = (
        "import sys; sys.path[:0] = sys.argv[2:]\n"
        "from pathlib import Path\n"
        "from tests.machines.sshd import Sshd\n"
        "from evenkeel.machines import ssh\n"
        "ssh.PERSIST_S = 1\n"
        "server = Sshd.__new__(Sshd); server.folder = Path(sys.argv[1]); server.port = int(sys.argv[2])\n"
        "probe = server.machine().probe(); print(probe.call('hello')['pid'], flush=True); sys.stdin.read()\n"
    )
    here = str(Path(__file__).parents[2])
    with subprocess.Popen(
        [sys.executable, "-c", code, str(sshd.folder), str(sshd.port), here],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        number = int(process.stdout.readline())
        assert Path(f"/proc/{number}").exists()
        process.kill()
    assert _wait_until_empty(lambda: [number] if Path(f"/proc/{number}").exists() else []) == []
    assert _wait_until_empty(lambda: processes_with(str(runtime)), 20) == []
    with contextlib.suppress(FileNotFoundError):
        assert list((runtime / "evenkeel").iterdir()) == []
        (runtime / "evenkeel").rmdir()


def test_a_folder_for_sockets_that_others_can_enter_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = Path(f"/tmp/evkr{os.getpid()}")
    (short / "evenkeel").mkdir(parents=True)
    (short / "evenkeel").chmod(0o777)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    try:
        with pytest.raises(EvenkeelError, match="belongs to somebody else"):
            ssh_module._socket_folder()
    finally:
        shutil.rmtree(short)
