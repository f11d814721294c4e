"""`evenkeel demo`: when it refuses, how it ends, and that nothing is left whatever happens.

The whole demo runs in test_the_whole_river (long); the others stop before or during the first boot.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.report import factories

from evenkeel import demo
from evenkeel.cli import main
from evenkeel.documents.evidence import Evidence
from evenkeel.documents.findings import Findings
from evenkeel.errors import Unreachable
from evenkeel.machines.virtual import booted, image, lifecycle, qemu
from evenkeel.machines.virtual.spec import BUILT_IN
from evenkeel.report.verdict import Run


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place of its own for virtual hosts; the cached image is shared."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state/evenkeel/virtual"


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, state: Path) -> Callable[[Callable[[demo.Demo], None]], None]:
    """Put a function in the place of the river, and no host below it."""

    def install(river: Callable[[demo.Demo], None]) -> None:
        @contextlib.contextmanager
        def no_host(one: demo.Demo, name: str, keep: bool) -> Iterator[None]:
            yield

        monkeypatch.setattr(demo, "_host", no_host)
        monkeypatch.setattr(demo, "_river", river)

    return install


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["ssh://root@192.0.2.1", "local"])
def test_it_throws_away_no_host_but_a_virtual_one(
    tmp_path: Path, state: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    site = tmp_path / "site.yaml"
    site.write_text(f"version: 1\nhosts:\n  cell:\n    address: {address}\n")
    assert main(["demo", "--site", str(site), "-o", str(tmp_path / "out")]) == 2
    assert address in capsys.readouterr().err


def test_a_virtual_host_of_the_user_stays(tmp_path: Path, state: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = state / "plc"
    folder.mkdir(parents=True)
    mine = lifecycle.HostFile(name="plc", uuid="0" * 8, image="none", spec=BUILT_IN["tiny"])
    (folder / "host.json").write_text(mine.model_dump_json())
    assert main(["demo", "-o", str(tmp_path / "out")]) == 2
    assert "evenkeel virtual rm plc" in capsys.readouterr().err
    assert lifecycle.read_host("plc") == mine


def test_one_demo_at_a_time(
    tmp_path: Path,
    played: Callable[[Callable[[demo.Demo], None]], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    codes: list[int] = []

    def river(one: demo.Demo) -> None:
        if not codes:
            codes.append(-1)  # the second one must not get here
            codes.append(main(["demo", "-o", str(tmp_path / "second")]))

    played(river)
    main(["demo", "-o", str(tmp_path / "first")])
    assert codes == [-1, 2]
    assert "another demo is running" in capsys.readouterr().err
    # Once it has ended the next one may run.
    main(["demo", "-o", str(tmp_path / "third")])
    assert "another demo" not in capsys.readouterr().err


# -- how it ends ------------------------------------------------------------------------------------------------------


def ends_with(run: Run, error: Unreachable | None = None) -> Callable[[demo.Demo], None]:
    def river(one: demo.Demo) -> None:
        one.run = run
        one.stage.plan(run.plan)
        if error:
            raise error

    return river


@pytest.mark.parametrize(
    ("statuses", "code"),
    [({"passed": 5}, 0), ({"passed": 5, "failed": 1}, 1), ({"passed": 5, "not_checked": 1}, 1)],
)
def test_only_all_green_is_success(
    tmp_path: Path,
    played: Callable[[Callable[[demo.Demo], None]], None],
    capsys: pytest.CaptureFixture[str],
    statuses: dict[str, int],
    code: int,
) -> None:
    played(ends_with(factories.run(emulated=True, **statuses)))
    assert main(["demo", "-o", str(tmp_path)]) == code
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_with_json_the_verdict_is_the_only_thing_on_stdout(
    tmp_path: Path, played: Callable[[Callable[[demo.Demo], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    played(ends_with(factories.run(emulated=True, passed=5)))
    assert main(["demo", "-o", str(tmp_path), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["verdict"], told["passed"], told["file"]) == ("as planned", 5, str(tmp_path / "report.html"))


def test_what_stops_it_is_told_and_stands_in_the_report(
    tmp_path: Path, played: Callable[[Callable[[demo.Demo], None]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    run = factories.run(emulated=True, passed=5)
    half = replace(run, hosts={"plc": replace(run.hosts["plc"], findings=None, evidence_after=None)})
    played(ends_with(half, Unreachable("connection lost")))
    assert main(["demo", "-o", str(tmp_path)]) == 3
    told = capsys.readouterr()
    assert "QEMU of virtual host plc ended: connection lost" in told.err and "see dmesg" in told.err
    assert told.out.splitlines()[-1] == str(tmp_path / "report.html")
    assert "The run stopped early: QEMU of virtual host plc ended" in (tmp_path / "report.html").read_text()


def test_nothing_of_an_older_run_is_left_beside_a_new_one(
    tmp_path: Path, played: Callable[[Callable[[demo.Demo], None]], None]
) -> None:
    def interrupted(one: demo.Demo) -> None:
        raise KeyboardInterrupt

    for name in demo.WRITTEN:
        (tmp_path / name).write_text("old")
    (tmp_path / "notes.txt").write_text("mine")
    played(interrupted)
    assert main(["demo", "-o", str(tmp_path)]) == 130
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["notes.txt"]


# -- with a real host -------------------------------------------------------------------------------------------------


def start(folder: Path, until: str) -> subprocess.Popen[str]:
    """Start a demo and return when it says ``until`` on stderr."""
    process = subprocess.Popen(
        [sys.executable, "-m", "evenkeel", "demo", "-o", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stderr is not None
    seen = ""
    for line in process.stderr:
        seen += line
        if until in line:
            return process
    raise AssertionError(f"the demo ended before {until!r}: {seen}")


def qemu_of(state: Path) -> list[int]:
    """Processes that run a virtual host of this place."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and os.fsencode(state) in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
    return found


def left_in(state: Path) -> list[str]:
    """Files of virtual hosts that are still there; the empty folder itself is no leftover."""
    return sorted(entry.name for entry in state.iterdir()) if state.exists() else []


def wait_for_boot(state: Path) -> int:
    """Wait until the host of the demo boots, and return its QEMU."""
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline:
        if (state / "plc/run.json").exists():
            (running,) = qemu_of(state)
            return running
        time.sleep(0.1)
    raise AssertionError("QEMU did not start")


@pytest.mark.virtual
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "kill"])
def test_interrupted_while_it_boots_nothing_is_left(tmp_path: Path, state: Path, number: signal.Signals) -> None:
    process = start(tmp_path / "out", "boot plc")
    wait_for_boot(state)
    process.send_signal(number)
    _out, err = process.communicate(timeout=180)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err
    assert qemu_of(state) == []
    assert left_in(state) == []


@pytest.mark.virtual
def test_qemu_killed_each_time_is_a_clean_error(tmp_path: Path, state: Path) -> None:
    """A kept boot that ends is booted in its stead; a boot that ends is taken for a crash of the emulator, once."""
    found = image.find()
    kept = found is not None and booted.find(found, "plc", BUILT_IN["default"], qemu.find()) is not None
    with contextlib.ExitStack() as stack:
        if found is not None and kept:
            stack.enter_context(_put_back(booted.folder_of(found, "plc")))
        _kill_each_time(tmp_path, state, kept)


@contextlib.contextmanager
def _put_back(folder: Path) -> Iterator[None]:
    """A kept boot is forgotten when it ends, and this one is the user's: without it their next demo boots again."""
    aside = folder.with_name(f".{folder.name}-aside-{os.getpid()}")
    shutil.copytree(folder, aside, copy_function=os.link)
    try:
        yield
        assert not folder.exists(), "it is forgotten"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)


def _kill_each_time(tmp_path: Path, state: Path, kept: bool) -> None:
    process = start(tmp_path / "out", "boot plc")
    killed: list[int] = []
    try:
        deadline = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
            running = lifecycle.read_run("plc")
            if running is not None and running.pid not in killed:
                killed.append(running.pid)
                os.kill(running.pid, signal.SIGKILL)
        _out, err = process.communicate(timeout=300)
    finally:
        process.kill()
    assert len(killed) == 2 + kept, err
    assert process.returncode == 3, err
    assert "QEMU of virtual host plc ended" in err and "Traceback" not in err
    assert left_in(state) == []


@pytest.mark.virtual
@pytest.mark.long
@pytest.mark.timeout(1500)
def test_the_whole_river(tmp_path: Path, state: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "evenkeel", "demo", "-o", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:] + done.stdout[-2000:]
    assert done.stdout.splitlines()[-1] == str(tmp_path / "report.html")
    findings = Findings.from_json((tmp_path / "findings.json").read_text(), file="findings.json")
    assert findings.verdict == "as planned" and len(findings.checks) > 50
    before = Evidence.from_json((tmp_path / "evidence-before.json").read_text(), file="before")
    after = Evidence.from_json((tmp_path / "evidence-after.json").read_text(), file="after")
    ticks = {moment.moment: min(spin.timer_interrupts for spin in moment.spins) for moment in (before, after)}
    assert ticks["before"] > 100 and ticks["after"] <= 9
    pushed = {
        moment.moment: max(spin.involuntary_switches for spin in moment.spins if spin.load != "idle")
        for moment in (before, after)
    }
    assert pushed["before"] >= 5 * max(1, pushed["after"]), pushed
    untuned = Findings.from_json((tmp_path / "findings-before.json").read_text(), file="findings-before.json")
    settings = [{check.id for check in one.checks if check.subject == "setting"} for one in (untuned, findings)]
    assert settings[0] == settings[1]
    # Each kind of check fails on the host as it was, but for its kernel, which is the same; those of the spinner are
    # compared by the evidence above.
    kinds = {check.subject for check in findings.checks} - {"kernel", "spinner"}
    assert {check.subject for check in untuned.failed} >= kinds
    assert {latency.where for latency in after.latencies} == {"host", "guest"}
    assert qemu_of(state) == []
    assert not (state / "plc").exists()
