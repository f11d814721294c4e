"""The verb on this machine, in a network namespace of its own: drifts, ends, lost connections, wrong input."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from evenkeel.cli import main, output
from evenkeel.documents.findings import Findings
from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, EXIT_UNREACHABLE, EXIT_WRONG_INPUT
from tests.watch.here import MASK, evenkeel, make_plan, namespace, setting

SLOW_S = 120.0


class Watcher:
    """A watcher in its own process; its lines as they come."""

    def __init__(self, command: list[str]) -> None:
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self._lines: queue.Queue[str] = queue.Queue()
        self.said: list[str] = []
        self._errors: list[str] = []
        for stream, take in ((self.process.stdout, self._lines.put), (self.process.stderr, self._errors.append)):
            threading.Thread(target=self._read, args=(stream, take), daemon=True).start()

    @staticmethod
    def _read(stream: Any, take: Callable[[str], None]) -> None:
        for line in stream:
            take(line.rstrip("\n"))

    @property
    def errors(self) -> str:
        return "\n".join(self._errors)

    def wait_for(self, pattern: str) -> str:
        """The next line that matches; those before it are passed over."""
        deadline = time.monotonic() + SLOW_S
        while True:
            try:
                line = self._lines.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {pattern!r} in {self.said}\n{self.errors}") from None
            self.said.append(line)
            if re.search(pattern, line):
                return line

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(SLOW_S)


@contextlib.contextmanager
def watching(*words: str) -> Iterator[Watcher]:
    watcher = Watcher([*words])
    try:
        yield watcher
    finally:
        watcher.process.kill()
        watcher.process.wait()


@pytest.fixture
def plan(tmp_path: Path) -> str:
    file = tmp_path / "plan.json"
    file.write_text(make_plan().to_json())
    return str(file)


def test_a_value_drifts_and_is_gone_again_and_a_signal_ends_it_clean(plan: str) -> None:
    """Without --repair nothing is written, not even a journal."""
    before = Path("/var/lib/evenkeel").exists()
    with namespace() as enter, watching(*enter, *evenkeel("watch", plan, "--metrics", "0")) as watcher:

        def write(text: str) -> None:
            subprocess.run([*enter, "sh", "-c", f"echo {text} > {MASK}"], check=True)

        assert watcher.wait_for("watching").startswith("<6>here: watching: 1 settings")
        port = re.search(r"http://127\.0\.0\.1:(\d+)/metrics", watcher.errors)
        assert port, watcher.errors
        write("1")
        assert watcher.wait_for("R-NET") == "<4>here: drifted R-NET: 1, expected 0 (sweep)"
        scraped = subprocess.run(  # the port is in the namespace, too
            [*enter, *evenkeel_python(SCRAPE), port[1]], capture_output=True, text=True, check=True
        ).stdout
        assert 'evenkeel_check_failing{check="R-NET",host="here",severity="harmful"} 1.0' in scraped
        assert 'evenkeel_host_up{host="here"} 1.0' in scraped
        shown = subprocess.run([*enter, "cat", MASK], capture_output=True, text=True, check=True).stdout
        assert int(shown.replace(",", ""), 16) == 1, "as it drifted"
        write("2")
        assert watcher.wait_for("R-NET").startswith("<4>here: differs R-NET: 2")
        write("0")
        assert watcher.wait_for("R-NET").startswith("<5>here: gone again R-NET: 0")
        children = _children(watcher.process.pid)
        assert children, "its probe"
        assert watcher.end(signal.SIGTERM) == 0
        assert "Traceback" not in watcher.errors
        assert [child for child in children if Path(f"/proc/{child}").exists()] == []
    assert Path("/var/lib/evenkeel").exists() == before


SCRAPE = (
    "import sys, urllib.request as u; print(u.urlopen('http://127.0.0.1:' + sys.argv[1] + '/metrics').read().decode())"
)


def evenkeel_python(program: str) -> list[str]:
    return [evenkeel()[0], "-c", program]


def _children(process: int) -> list[int]:
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    found = [int(word) for task in tasks for word in task.read_text().split()]
    return found + [grandchild for child in found for grandchild in _children(child)]


def test_ctrl_c_is_the_usual_end_and_lines_of_json_are_json(plan: str) -> None:
    with namespace() as enter, watching(*enter, *evenkeel("watch", plan, "--json")) as watcher:
        first = json.loads(watcher.wait_for("watching"))
        assert (first["kind"], first["host"], first["check"]) == ("watching", "here", None)
        subprocess.run([*enter, "sh", "-c", f"echo 1 > {MASK}"], check=True)
        drift = json.loads(watcher.wait_for("drifted"))
        assert (drift["check"]["id"], drift["check"]["observed"], drift["cause"]) == ("R-NET", "1", "sweep")
        watcher.process.send_signal(signal.SIGINT)
        assert watcher.end(signal.SIGINT) == 0, "as timeout(1) does it: the process, then its group"
        assert "Traceback" not in watcher.errors


def test_a_lost_connection_is_said_once_made_again_and_everything_is_looked_at_anew(plan: str) -> None:
    """The probe is killed, and the value drifts before the next one is there."""
    with namespace() as enter, watching(*enter, *evenkeel("watch", plan)) as watcher:
        watcher.wait_for("watching")
        probes = _children(watcher.process.pid)
        subprocess.run([*enter, "sh", "-c", f"echo 1 > {MASK}"], check=True)
        for probe in probes:
            os.kill(probe, signal.SIGKILL)
        assert watcher.wait_for("lost").startswith("<3>here: lost: local: ")
        assert watcher.wait_for("back").startswith("<5>here: back")
        if not any("drifted R-NET" in line for line in watcher.said):  # it may have been seen just before
            watcher.wait_for("drifted R-NET")
        subprocess.run([*enter, "sh", "-c", f"echo 0 > {MASK}"], check=True)
        watcher.wait_for("gone again R-NET")
        assert sum("lost" in line for line in watcher.said) == 1
        assert watcher.end() == 0


def test_repair_on_a_host_to_which_nothing_was_applied_writes_nothing_and_says_so_once(plan: str) -> None:
    if Path("/var/lib/evenkeel/journal.jsonl").exists():
        pytest.fail("something is applied to this machine; this test is for one where nothing is")
    with namespace() as enter, watching(*enter, *evenkeel("watch", plan, "--repair", "live")) as watcher:
        watcher.wait_for("watching")
        subprocess.run([*enter, "sh", "-c", f"echo 1 > {MASK}"], check=True)
        assert "nothing is applied to this host" in watcher.wait_for("not repaired")
        time.sleep(2.0)
        assert watcher.end() == 0
        assert sum("not repaired" in line for line in watcher.said) == 1
    assert not Path("/var/lib/evenkeel/journal.jsonl").exists()


def test_once_tells_by_its_exit_code(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = tmp_path / "good.json", tmp_path / "bad.json"
    value = Path("/proc/sys/vm/stat_interval").read_text().strip()
    good.write_text(make_plan(setting("R-TIM-2", "/proc/sys/vm/stat_interval", value)).to_json())
    bad.write_text(make_plan(setting("R-TIM-2", "/proc/sys/vm/stat_interval", str(int(value) + 1))).to_json())
    assert main(["watch", str(good), "--once"]) == EXIT_DONE
    said = capsys.readouterr()
    assert said.out == "" and "none failed" in said.err
    assert main(["watch", str(bad), "--once"]) == EXIT_NOT_AS_WANTED
    assert "drifted R-TIM-2" in capsys.readouterr().out
    assert main(["watch", str(bad), "--once", "--json"]) == EXIT_NOT_AS_WANTED
    findings = Findings.from_json(capsys.readouterr().out, file="stdout")
    assert [check.id for check in findings.failed] == ["R-TIM-2"]


def test_a_host_that_does_not_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "_emitted", False)
    file = tmp_path / "plan.json"
    file.write_text(make_plan(address="ssh://root@127.0.0.1:1").to_json())
    assert main(["watch", str(file), "--once"]) == EXIT_UNREACHABLE
    assert "Traceback" not in capsys.readouterr().err
    with watching(*evenkeel("watch", str(file))) as watcher:
        assert "ssh://root@127.0.0.1:1" in watcher.wait_for("lost")
        assert watcher.end() == 0, "a watcher waits for it"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["no-such-plan.json"], "no-such-plan.json"),
        (["PLAN", "--repair", "drain"], "drain"),
        (["PLAN", "--sweep", "1"], "sweep"),
        (["PLAN", "--metrics", "everywhere"], "--metrics everywhere: not a port"),
        (["TREE"], "recorded tree"),
    ],
)
def test_wrong_input(
    words: list[str], told: str, plan: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tree" / "sys").mkdir(parents=True)
    tree = tmp_path / "tree.json"
    tree.write_text(make_plan(address=str(tmp_path / "tree")).to_json())
    given = {"PLAN": plan, "TREE": str(tree)}
    code = main(["watch", *(given.get(word, word) for word in words)])
    said = capsys.readouterr()
    assert code == EXIT_WRONG_INPUT, said.err
    assert told in said.err and "Traceback" not in said.err


def test_the_unit_names_the_same_command(plan: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", plan, "--repair", "live", "--metrics", "9153", "--print-unit"]) == EXIT_DONE
    text = capsys.readouterr().out
    assert f"-m evenkeel watch {plan} --repair live --metrics 9153\n" in text
    assert text.startswith("# Written by") and text.endswith("WantedBy=multi-user.target\n")
