"""Load generators: they run where they should and prove it; one that does not is told; nothing of them is left."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from evenkeel.machines.local import LocalMachine
from evenkeel.machines.protocol import ProbeError
from evenkeel.probe import sample, sample_load
from evenkeel.probe.sample_load import under_load
from evenkeel.probe.sample_veth import join_with
from tests.waiting import until

CPUS = sorted(os.sched_getaffinity(0))
CPU = CPUS[-1]
KINDS = ["cpu", "io", "net", "irq"]


def _named(prefix: str) -> list[int]:
    pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    return [pid for pid in pids if (sample.read(f"/proc/{pid}/comm") or "").startswith(prefix)]


def _gone(prefix: str, within_s: float = 60.0) -> bool:
    deadline = time.monotonic() + within_s
    while _named(prefix):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _after(load: sample_load.Load, wait_s: float = 0.3) -> list[dict[str, Any]]:
    """The reports when each kind has done something, or after a while."""
    deadline = time.monotonic() + 60
    while True:
        time.sleep(wait_s)
        load.look()
        runs = load.report()
        if all(run["operations"] and not run["trouble"] for run in runs) or time.monotonic() > deadline:
            return runs


def test_all_kinds_run_on_the_cpu_that_they_are_given_and_on_no_other() -> None:
    with under_load({"kinds": KINDS, "cpus": [CPU]}) as load:
        runs = _after(load)
        load.check()
    assert load.text() == f"cpu,io,net,irq on {CPU}"
    assert [run["kind"] for run in runs] == KINDS
    for run in runs:
        assert (run["trouble"], run["seen"], run["cpus"]) == ("", [CPU], str(CPU)), run
        assert run["operations"] > 0 and run["seconds"] > 0 and run["processes"] in (1, 2)
    assert _gone("evk-load")


def test_one_process_of_kind_cpu_on_each_cpu() -> None:
    told: list[str] = []
    with under_load({"kinds": ["cpu"], "cpus": CPUS}, told.append) as load:
        (run,) = _after(load)
    assert told[0] == "starting the load cpu" and set(told[1:]) <= {"the load warms up"}
    assert run["seen"] == CPUS and run["processes"] == len(CPUS) and run["cpu_seconds"] >= 0


@pytest.mark.skipif(len(CPUS) < 2, reason="there is one CPU only")
def test_a_generator_that_is_moved_is_told() -> None:
    """Broken on purpose: another program, as TuneD or a person with taskset may, moves it to a CPU it was not given."""
    with under_load({"kinds": ["irq", "cpu"], "cpus": [CPU]}) as load:
        (victim,) = _named("evk-load-irq")
        os.sched_setaffinity(victim, {CPUS[0]})
        load.look()
        until(lambda: load.report()[1]["operations"] and not load.report()[1]["trouble"], told=load.report)
        irq, cpu = load.report()
        assert irq["trouble"] == f"it could run on CPU {CPUS[0]}, which it was not given" and not cpu["trouble"]
        with pytest.raises(ValueError, match="the load irq: it could run"):
            load.check()


def test_a_generator_that_ends_is_told() -> None:
    with under_load({"kinds": ["net"], "cpus": [CPU]}) as load:
        os.kill(_named("evk-load-net")[0], signal.SIGKILL)
        # On a busy machine another trouble comes first: the one that is left has not done anything yet.
        until(lambda: "of its 2 processes ended" in load.report()[0]["trouble"], told=load.report)


def test_packets_go_over_interfaces_that_nobody_else_sees() -> None:
    before = socket.if_nameindex()
    with under_load({"kinds": ["net"], "cpus": [CPU]}) as load:
        (run,) = _after(load)
        assert socket.if_nameindex() == before
        # 64 KiB are 45 packets of a wire; how many of them are merged again on their way is the kernel's business.
        assert run["packets"] > 4 * run["operations"] > 0 and CPU in run["softirqs"], run
        for pid in _named("evk-load-net"):
            assert Path(f"/proc/{pid}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
            assert "evk-load" in Path(f"/proc/{pid}/net/dev").read_text()
    assert _gone("evk-load")


def test_a_network_that_is_cut_is_told() -> None:
    """Broken on purpose: one of the two interfaces is switched off."""
    off = (
        "import fcntl, socket, struct; fcntl.ioctl(socket.socket(socket.AF_INET, socket.SOCK_DGRAM), 0x8914, "
        "struct.pack('16sH22x', b'evk-load', 0))"
    )
    with under_load({"kinds": ["net"], "cpus": [CPU]}) as load:
        pid = _named("evk-load-net")[0]
        subprocess.run(["nsenter", "-t", str(pid), "-n", sys.executable, "-c", off], check=True)
        time.sleep(0.1)
        load._generators[0].begin()
        time.sleep(0.3)
        (run,) = load.report()
        assert run["trouble"] == f"it did nothing on CPU {CPU}" and run["packets"] == 0


@pytest.mark.parametrize(
    ("name", "nothing", "said"),
    [
        ("received", lambda pid: 0, "no packet came in over its network interfaces"),
        ("receiving", dict, "no soft interrupt of a received packet ran on its CPUs"),
    ],
)
def test_a_network_load_that_is_none_is_told(
    name: str, nothing: Any, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data goes to and fro, as over loopback, and the counters of the kernel do not show it."""
    monkeypatch.setattr(sample_load, name, nothing)
    with under_load({"kinds": ["net"], "cpus": [CPU]}) as load:
        until(lambda: load.report()[0]["trouble"] == said, told=load.report)


def test_a_kernel_without_veth_is_told_and_nothing_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(pid: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(sample_load, "join_with", refuse)
    with (
        pytest.raises(OSError, match="pair of virtual network interfaces") as caught,
        under_load({"kinds": ["net"], "cpus": [CPU]}),
    ):
        pass
    assert caught.value.errno == errno.EPROTONOSUPPORT and _gone("evk-load")


def test_what_the_kernel_refuses_to_make_is_an_error() -> None:
    with pytest.raises(OSError, match="cannot make a pair of veth"):
        join_with(2**31 - 1)  # there is no such process


def test_a_generator_that_does_nothing_is_told() -> None:
    with under_load({"kinds": ["cpu", "irq"], "cpus": [CPU]}) as load:
        (victim,) = _named("evk-load-cpu")
        os.kill(victim, signal.SIGSTOP)
        time.sleep(0.1)
        load._generators[0].begin()
        time.sleep(0.3)
        assert load.report()[0]["trouble"] == f"it did nothing on CPU {CPU}"


def test_a_disk_that_is_full_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextlib.contextmanager
    def full() -> Any:
        file = os.open("/dev/full", os.O_RDWR)
        yield file

    monkeypatch.setattr(sample_load, "_unnamed_file", full)
    monkeypatch.setattr(sample_load, "WARM_UP_S", 0.2)
    with under_load({"kinds": ["io"], "cpus": [CPU]}) as load:
        until(lambda: "ended before the measurement did" in load.report()[0]["trouble"], told=load.report)


@pytest.mark.skipif(os.getuid() != 0, reason="a PID namespace needs root")
def test_hackbench_runs_wherever_it_is_put_and_says_where_that_was() -> None:
    with under_load({"tool": "hackbench", "groups": 1}) as load:
        until(lambda: load.report()[0]["seen"] and load.report()[0]["processes"] > 10, told=load.report)
        (run,) = load.report()
        assert load.text().startswith("hackbench -g 1 on ")
        assert run["cpus"] is None and set(run["seen"]) <= set(CPUS) and run["seen"] and run["processes"] > 10
        assert run["trouble"] == ""
        hackbench = load._generators[0]
        assert isinstance(hackbench, sample_load.Hackbench)
        processes = hackbench._processes()
        os.kill(hackbench._child.pid, signal.SIGKILL)
        until(lambda: load.report()[0]["trouble"] == "it ended before the measurement did", told=load.report)
    assert not [pid for pid in processes if sample.read(f"/proc/{pid}/comm") == "hackbench\n"]


def test_nothing_is_left_in_the_folder_of_temporary_files() -> None:
    before = set(Path("/var/tmp").iterdir())
    with under_load({"kinds": ["io"], "cpus": [CPU]}) as load:
        _after(load)
        assert set(Path("/var/tmp").iterdir()) - before == set(), "the file has no name while it is written, either"


def test_what_cannot_be_loaded_is_refused() -> None:
    with pytest.raises(ValueError, match="no load that the probe knows"), under_load({"kinds": ["disco"], "cpus": [0]}):
        pass
    with pytest.raises(OSError, match="no CPU to put the load"), under_load({"kinds": ["cpu"], "cpus": []}):
        pass
    with pytest.raises(OSError, match="Invalid argument"), under_load({"kinds": ["irq", "cpu"], "cpus": [4095]}):
        pass
    assert _gone("evk-load")


# -- with the probe -----------------------------------------------------------------------------------------------

SPIN: dict[str, Any] = {"cpus": [CPU], "seconds": 60, "load": {"kinds": KINDS, "cpus": [CPU]}}


def test_a_spinner_beside_a_placed_load() -> None:
    with LocalMachine().probe() as probe:
        answer = probe.call("spin", cpus=[CPU], seconds=1, load={"kinds": ["cpu"], "cpus": [CPU]})
    assert answer["load"] == f"cpu on {CPU}"
    assert answer["spins"][0]["cpu_seconds"] < 0.9 * answer["spins"][0]["watched_seconds"]


def test_a_lost_connection_ends_the_load() -> None:
    probe = LocalMachine().probe()

    def run() -> None:
        with contextlib.suppress(Exception):
            probe.call("spin", **SPIN)

    threading.Thread(target=run, daemon=True).start()
    deadline = time.monotonic() + 60
    while len(_named("evk-load")) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    probe.close()
    assert _gone("evk-load", 15)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL], ids=["Ctrl-C", "kill -9"])
def test_the_end_of_the_controlling_program_ends_the_load(end: signal.Signals) -> None:
    program = (
        "from evenkeel.machines.local import LocalMachine\n"
        "with LocalMachine().probe() as probe:\n"
        f"    probe.call('spin', **{SPIN!r})\n"
    )
    victim = subprocess.Popen([sys.executable, "-c", program], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 60
        while len(_named("evk-load")) < 5:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        victim.send_signal(end)
        assert victim.wait(20) != 0
        assert _gone("evk-load", 15)
    finally:
        victim.kill()
        victim.wait()


def test_an_unknown_load_is_an_answer_and_no_crash() -> None:
    with LocalMachine().probe() as probe, pytest.raises(ProbeError, match="no load that the probe knows"):
        probe.call("spin", cpus=[CPU], seconds=1, load={"kinds": ["disco"], "cpus": [CPU]})
