"""The recorder for guests with a real guest agent, a real shell and the pages of this machine's kernel.

A virtual machine is not booted here: the script is shown what :mod:`.guest_here` makes, and libvirt is replaced by
a few lines that hand each question to the agent.  The script with timerlat itself is tried on a virtual host.
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar

import pytest

from evenkeel.documents.evidence import Conditions
from evenkeel.errors import EvenkeelError
from evenkeel.machines.protocol import OnProgress, ProbeError
from evenkeel.measure.explain import recording as controlling
from evenkeel.measure.explain.attribute import explanation, stage
from evenkeel.measure.tracer import tracer_latencies
from evenkeel.probe import recording, recording_guest, sample_guest_timerlat, sample_together, server
from evenkeel.probe.trace import tracefs
from evenkeel.report.timeline import ended_early
from tests.probe import guest_here
from tests.probe.guest_agent import Libvirt, running_agent
from tests.waiting import until

pytestmark = pytest.mark.skipif(os.getuid() != 0, reason="tracefs is for root")

CONDITIONS = Conditions(kernel="6.18", preempt_rt=False, command_line="")


class Here:
    """A probe in this process."""

    told: ClassVar[dict[str, Any]] = {"offsets": {"1": 0}, "ratio": None, "fraction_bits": None}

    def call(self, op: str, /, *, on_progress: OnProgress | None = None, timeout_s: float = 60.0, **args: Any) -> Any:
        if op == "threads":
            vcpu = {"tid": os.getpid(), "name": "CPU 1/KVM", "vcpu": 1, "policy": "other", "priority": 0, "cpus": "0"}
            return {"threads": [vcpu]}
        if op == "recording_guest_clock":
            return self.told
        function = server._resolve(op)
        if "on_progress" in function.__code__.co_varnames[: function.__code__.co_argcount]:
            args["on_progress"] = on_progress
        try:
            return function(**args)
        except OSError as error:
            raise ProbeError("here", op, server._describe(error)) from None

    def close(self) -> None:
        pass

    def __enter__(self) -> Here:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


class Guest:
    """A folder that looks like the tracefs of a guest, and its agent."""

    def __init__(self, folder: Path, real: Path) -> None:
        self.real, self.tracing, self.programs = real, folder / "guest", folder / "bin"
        self.prefix, self.files = f"guest-of-{os.getpid()}-", folder / "files"
        self.libvirt: Libvirt
        self.programs.mkdir()
        guest_here.make_tracing(self.tracing, real)

    def own_instance(self) -> Path:
        """That of the script."""
        (found,) = self.instances()
        return found

    def instances(self) -> list[Path]:
        return list((self.real / "instances").glob(f"{self.prefix}*"))


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    # A mount of this process alone has no other path for the agent and the shell.
    real = Path(tracefs.root().replace("/self/", f"/{os.getpid()}/"))
    found = Guest(tmp_path, real)
    monkeypatch.setattr(recording_guest, "FOLDER", str(found.files))
    monkeypatch.setattr(recording, "_PATIENCE_S", 4)
    script = guest_here.script(found.tracing, found.files, found.prefix)
    # In a guest there is less to record than the scheduler of a busy machine.
    assert "echo $ring >" in script
    monkeypatch.setattr(recording_guest, "SCRIPT", script.replace("echo $ring >", "echo 16384 >"))
    try:
        with running_agent(tmp_path, monkeypatch, f"{found.programs}:{os.environ['PATH']}") as found.libvirt:
            yield found
            assert not found.instances(), "an instance stayed behind"
            assert not found.files.exists(), "files stayed behind in the guest"
            assert (found.tracing / "osnoise/cpus").read_text() == "0-7\n"
            assert (found.tracing / "osnoise/stop_tracing_total_us").read_text() == "0\n"
    finally:
        for left in found.instances():
            recording._remove(str(left))


def gone_soon() -> None:
    """Removing files is the last thing that is asked of the guest, and nobody waits for it."""
    until(lambda: not Path(recording_guest.FOLDER).exists(), told=lambda: "its files stay in the guest")


def test_both_sides_record_and_nothing_is_lost(guest: Guest) -> None:
    found = controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=2.0)
    gone_soon()
    on = stage(found)
    assert sorted(found.guest.formats) == [
        "ftrace/print",
        "ftrace/timerlat",
        "sched/sched_switch",
        "sched/sched_waking",
    ]
    assert on.guest.lost == on.host.lost == 0 and found.full == ()
    # Both recorded the same machine, each on its own way: what the host saw is a stretch of what the guest saw.
    form_host, form_guest = (trace.events["sched/sched_switch"] for trace in (on.host, on.guest))
    compared = 0
    for cpu, records in on.host.cpus.items():
        ours = records.of(form_host).ints("next_pid").tolist()
        theirs = on.guest.cpus[cpu].of(form_guest).ints("next_pid").tolist()
        starts = (n for n in range(len(theirs) - len(ours) + 1) if theirs[n : n + len(ours)] == ours)
        assert next(starts, None) is not None, f"CPU {cpu}"
        compared += len(ours)
    assert compared > 50


def test_round_trips_bind_the_clock_of_the_guest(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guest and host have one counter here, so a clock that is off by nothing lies within what is said of it."""
    monkeypatch.setattr(Here, "told", {"offsets": {}, "ratio": None, "fraction_bits": None})
    monkeypatch.setattr(recording, "_ANSWER_S", 60)  # this machine may be busy
    found = controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=2.0)
    gone_soon()
    assert len(found.guest_trips) > recording._TRIPS
    on = stage(found)
    assert on.alignment.method == "round trips" and on.alignment.error_ns < 10_000_000_000
    for raw in (records.at for records in on.guest.cpus.values()):
        true = on.host_clock.ns(raw)
        both = raw[(true >= 0) & (true <= on.ends_ns["host"])]
        assert (abs(on.guest_clock.ns(both) - on.host_clock.ns(both)) <= on.alignment.error_ns).all()


def test_where_kvm_tells_the_clock_no_round_trips_are_taken(guest: Guest) -> None:
    found = controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=1.0)
    asked = controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=1.0, round_trips=True)
    gone_soon()
    assert found.guest_trips == () and asked.guest_trips
    assert stage(asked).alignment.method == "tsc-offset"


def test_a_guest_that_does_not_answer_to_a_round_trip_is_recorded_all_the_same(
    guest: Guest, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*words: object, **more: object) -> None:
        asked.append(words)
        raise OSError(errno.ENOTCONN, "Guest agent is not responding")

    asked: list[object] = []
    monkeypatch.setattr(Here, "told", {"offsets": {}, "ratio": None, "fraction_bits": None})
    monkeypatch.setattr(recording_guest, "stamp", silent)
    found = controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=1.0)
    gone_soon()
    # Once, and once again at the end: each question stops the reading of the rings.
    assert len(asked) == 2 and found.guest_trips == () and found.guest.pages
    with pytest.raises(EvenkeelError, match="no round trip reached its agent"):
        stage(found)


def test_what_recording_took_in_the_guest_is_told(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the recorder, and of the threads of timerlat beside it."""
    busy = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done; echo started >$out/started"
    assert "echo started >$out/started" in recording_guest.SCRIPT
    monkeypatch.setattr(recording_guest, "SCRIPT", recording_guest.SCRIPT.replace("echo started >$out/started", busy))
    code = "import time\nopen('/proc/self/comm', 'w').write('timerlat/1')\nwhile True: time.sleep(0.001)"
    with subprocess.Popen([sys.executable, "-c", code]) as timerlat:
        stat = Path(f"/proc/{timerlat.pid}/schedstat")
        try:
            until(lambda: Path(f"/proc/{timerlat.pid}/comm").read_text() == "timerlat/1\n")
            before = int(stat.read_text().split()[0])
            found = controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=1.0)
            most = int(stat.read_text().split()[0]) - before
        finally:
            timerlat.kill()
    gone_soon()
    cost = found.guest.cost
    assert 1_000_000_000 <= cost["over_ns"] < 60_000_000_000
    # 300,000 turns of a shell's loop take 0.1 s at least of any processor that runs these tests.
    assert 100_000_000 <= cost["cpu_ns"] <= cost["over_ns"]
    assert 0 < cost["timerlat_ns"] <= most
    told = explanation(stage(found), found, over_ns=1).recorders
    assert told["guest"].cpu_ns == cost["cpu_ns"] and told["guest"].size_bytes > 0
    assert told["host"].cpu_ns and not told["host"].full and told["host"].seconds > 0.9


def test_a_guest_whose_limit_of_memory_ended_it_says_so(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(controlling, "_GUEST_MB", 0)
    found = controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=6.0)
    gone_soon()
    assert found.full == ("guest",)
    on = stage(found)
    told = explanation(on, found, over_ns=1)
    # It looks every two seconds; nothing is explained of what only the host recorded.
    assert told.recorders["guest"].full and not told.recorders["host"].full
    assert told.seconds == told.recorders["guest"].seconds < 5 < told.recorders["host"].seconds
    (said,) = ended_early(told)
    assert "recording of the guest was full" in said and "of 6 s" in said


@pytest.mark.long
def test_the_recorder_starts_no_program_for_each_page_that_comes(guest: Guest) -> None:
    """A program is dear in a guest.  While one empties the ring new pages come, and they are not worth the next.

    And none to wait, where the shell can: bash does, as busybox's does.
    """
    started = {name: guest.programs / f"{name}.started" for name in ("dd", "sleep")}
    for name, log in started.items():
        instead = guest.programs / name
        instead.write_text(f'#!/bin/sh\necho >>{log}\nexec {shutil.which(name)} "$@"\n')
        instead.chmod(0o755)
    switching = subprocess.Popen(["sh", "-c", "while :; do true | true; done"])
    try:
        begun = recording_guest.start("plc", seconds=30, vcpus=[1])
        time.sleep(5)
        recording_guest.stop("plc", begun["pid"])
        recording_guest.clean("plc")
    finally:
        switching.kill()
        switching.wait()
    gone_soon()
    assert 0 < len(started["dd"].read_text()) <= 5 * (os.cpu_count() or 1), "the last pages, and one or two before"
    assert not started["sleep"].exists()


@pytest.mark.long
@pytest.mark.parametrize("shell", ["dash", "bash", "busybox sh"])
def test_every_shell_waits_in_its_own_way(shell: str, guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """dash has no limit of time for reading, and starts a program to wait."""
    if not shutil.which(shell.split()[0]):
        pytest.skip(f"no {shell.split()[0]} here")
    slept = guest.programs / "slept"
    sleep = guest.programs / "sleep"
    sleep.write_text(f'#!/bin/sh\necho >>{slept}\nexec {shutil.which("sleep")} "$@"\n')
    sleep.chmod(0o755)
    monkeypatch.setattr(recording_guest, "_SHELL", f'script=$1; shift; exec {shell} -c "$script" evenkeel "$@"')
    found = controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=1.0)
    gone_soon()
    on = stage(found)
    assert on.guest.lost == 0 and on.guest.rows("sched/sched_switch")
    assert slept.exists() == (shell == "dash")


def test_the_flight_recorder_freezes_when_the_guest_stops_its_own(guest: Guest) -> None:
    threshold = guest.tracing / "osnoise/stop_tracing_total_us"
    seen = []

    def late() -> None:
        until((guest.files / "started").exists)
        # A late sample must not end it before the host records: the recording would be of one side only.
        while not (guest.files / "arm").exists():
            seen.append(threshold.read_text())
            time.sleep(0.01)
        time.sleep(2.0)
        seen.append(threshold.read_text())
        (guest.own_instance() / "tracing_on").write_text("0")

    helper = threading.Thread(target=late)
    helper.start()
    found = controlling.fly(
        Here(), "cell", "plc", [1], conditions=CONDITIONS, keep_s=2, late_us=3000, limit_s=30, period_us=1000
    )
    helper.join()
    gone_soon()
    assert found.reason == "late sample" and found.flight
    assert stage(found).alignment.method == "tsc-offset" and not found.guest_trips
    assert set(seen[:-1]) == {"0\n"} and seen[-1] == "3000\n"
    assert found.guest.pages and stage(found).end_ns > 1_000_000_000


@pytest.mark.parametrize("how", [pytest.param("killed", marks=pytest.mark.long), "off", "rebooted"])
def test_the_flight_recorder_freezes_when_the_guest_is_gone(how: str, guest: Guest) -> None:
    def end() -> None:
        until((guest.files / "started").exists)
        time.sleep(1.5)
        if how == "rebooted":
            shutil.rmtree(guest.files)
            return
        guest.libvirt.agent.send_signal(signal.SIGSTOP)  # it answers nothing more, as after a panic
        if how == "off":
            guest.libvirt.says = "shut off"

    helper = threading.Thread(target=end)
    helper.start()
    begun = time.monotonic()
    try:
        found = controlling.fly(
            Here(), "cell", "plc", [1], conditions=CONDITIONS, keep_s=2, late_us=3000, limit_s=120, period_us=1000
        )
    finally:
        helper.join()
        guest.libvirt.agent.send_signal(signal.SIGCONT)
    assert found.reason == "guest gone" and time.monotonic() - begun < 110
    assert not found.guest.pages and stage(found).end_ns > 1_000_000_000
    # The shell lives on here, other than in a guest that is gone, and packs what it has when it is told to stop.
    shell = Path("/proc") / guest.own_instance().name.removeprefix(guest.prefix)
    guest.files.mkdir(exist_ok=True)
    (guest.files / "stop").touch()
    until(lambda: not shell.exists())
    shutil.rmtree(guest.files)


@pytest.mark.long
def test_a_guest_that_is_only_slow_is_not_gone(guest: Guest) -> None:
    def stutter() -> None:
        until((guest.files / "started").exists)
        time.sleep(1.0)
        guest.libvirt.agent.send_signal(signal.SIGSTOP)
        time.sleep(recording._ANSWER_S + 2)
        guest.libvirt.agent.send_signal(signal.SIGCONT)

    helper = threading.Thread(target=stutter)
    helper.start()
    found = controlling.fly(Here(), "cell", "plc", [1], conditions=CONDITIONS, keep_s=2, late_us=3000, limit_s=12)
    helper.join()
    gone_soon()
    assert found.reason is None
    # What is kept has no gap: it begins where the guest answered again.
    assert 0 < stage(found).end_ns < 9_000_000_000


def test_a_flight_of_a_month_remembers_the_round_trips_of_its_rings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "trace_marker").touch()
    monkeypatch.setattr(recording_guest, "stamp", lambda guest, number, on_edge, limit_s: (on_edge(), on_edge()))
    with closing(recording.RoundTrips(str(tmp_path), "plc", most=3)) as trips:
        for _ in range(5):
            trips.take()
        assert len(trips.taken) == 3
        assert [one["before"] for one in trips.taken] == [
            int(line.split()[1]) for line in (tmp_path / "trace_marker").read_text().splitlines()[4::2]
        ]


def test_a_flight_asks_a_guest_again_that_was_silent_once(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else nothing that happens in the hours after that could be explained."""

    def stamp(*words: Any, **more: Any) -> None:
        asked.append(words)
        if len(asked) == 1:
            raise OSError(errno.ENOTCONN, "Guest agent is not responding")
        own(*words, **more)

    own, asked = recording_guest.stamp, list[object]()
    monkeypatch.setattr(Here, "told", {"offsets": {}, "ratio": None, "fraction_bits": None})
    monkeypatch.setattr(recording_guest, "stamp", stamp)
    monkeypatch.setattr(recording, "_ANSWER_S", 60)  # this machine may be busy
    monkeypatch.setattr(recording, "_AGAIN_S", 0.0)
    found = controlling.fly(Here(), "cell", "plc", [1], conditions=CONDITIONS, keep_s=1, late_us=3000, limit_s=4.0)
    gone_soon()
    assert len(asked) > 1 and found.guest_trips


def test_nothing_happens_in_time(guest: Guest) -> None:
    found = controlling.fly(Here(), "cell", "plc", [1], conditions=CONDITIONS, keep_s=1, late_us=3000, limit_s=1.5)
    gone_soon()
    assert found.reason is None


def test_a_kernel_without_timerlat_says_so(guest: Guest) -> None:
    (guest.tracing / "available_tracers").write_text("function nop\n")
    with pytest.raises(EvenkeelError, match="the kernel of the guest has no timerlat tracer"):
        controlling.record(Here(), "cell", "plc", [1], conditions=CONDITIONS, seconds=1.0)
    shutil.rmtree(recording_guest.FOLDER)  # it holds only what was said


def test_a_guest_that_nobody_ends_ends_by_itself(guest: Guest) -> None:
    recording_guest.start("plc", seconds=1, vcpus=[0])
    until((guest.files / "done").exists)
    assert not guest.instances()
    with tarfile.open(guest.files / recording_guest.ARCHIVE) as archive:
        assert any(one.name.endswith(".raw") and one.size for one in archive)
    recording_guest.clean("plc")
    gone_soon()


# -- timerlat that is counted in the guest --------------------------------------------------------------------------


@pytest.fixture
def counting(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> Guest:
    text = guest_here.script(guest.tracing, guest.files, guest.prefix, sample_guest_timerlat.SCRIPT)
    monkeypatch.setattr(sample_guest_timerlat, "SCRIPT", text)
    return guest


TIMERLAT = [{"tool": "timerlat", "guest": "plc", "vcpus": [1]}]


def test_timerlat_is_counted_inside_the_guest(counting: Guest) -> None:
    """The lines that it would write come from the trace's marker here, and go through the kernel's pipe and awk."""
    lines = [(1, "irq", 900), (1, "thread", 12_000), (2, "thread", 5_000_000_000), (4, "thread", 700)]

    def write() -> None:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # of one CPU: the marker knows no other
        until((counting.files / "started").exists)
        for number, context, latency in lines:
            marker = counting.own_instance() / "trace_marker"
            marker.write_text(f"#{number:<5} context {context:>6} timer_latency {latency:9} ns\n")

    helper = threading.Thread(target=write)
    helper.start()
    (found,) = sample_together.together(TIMERLAT, seconds=2)["jobs"]
    helper.join()
    gone_soon()
    assert "error" not in found, found
    (cpu,) = found["cpus"].values()
    assert cpu["irq"]["samples"] == 1 and found["kernel"] == os.uname().release
    thread = cpu["thread"]
    assert (thread["samples"], thread["min"], thread["max"], thread["sum"]) == (3, 700, 5_000_000_000, 5_000_012_700)
    assert thread["lost"] == 1, "of the numbers 1 to 4 one is missing"
    made = tracer_latencies(found, guest="plc", interval_us=1000, seconds=2, emulated=False)
    assert [(one.tool, one.where, one.guest, one.max_ns) for one in made] == [
        ("timerlat", "guest", "plc", 5_000_000_000),
        ("timerlat irq", "guest", "plc", 900),
    ]


@pytest.mark.parametrize("why", ["no timerlat tracer", "in use", "awk does not run"])
def test_what_timerlat_lacks_in_a_guest_is_said_in_its_words(why: str, counting: Guest) -> None:
    if why == "no timerlat tracer":
        (counting.tracing / "available_tracers").write_text("function nop\n")
    elif why == "in use":
        (counting.tracing / "current_tracer").write_text("osnoise\n")
    else:
        (counting.programs / "awk").write_text("#!/bin/sh\nexit 127\n")
        (counting.programs / "awk").chmod(0o755)
    (found,) = sample_together.together(TIMERLAT, seconds=1)["jobs"]
    gone_soon()
    assert found["error"]["errno"] == "ENOTSUP" and "guest plc" in found["error"]["message"]
    assert why in found["error"]["message"]


def test_without_an_agent_the_cure_is_told(guest: Guest, monkeypatch: pytest.MonkeyPatch) -> None:
    guest.libvirt.socket = Path("/nowhere")
    with pytest.raises(OSError, match="not connected"):
        recording_guest.start("plc", seconds=1, vcpus=[0], limit_s=0.1)
    with pytest.raises(OSError, match="not connected"):
        recording_guest.happened("plc")
    guest.libvirt.says = "shut off"
    assert recording_guest.happened("plc") == "guest gone"
