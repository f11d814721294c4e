"""Ctrl-C and SIGTERM in each step of `evenkeel demo`: what is told, what is left, and that the next demo begins anew.

The steps are read out of the demo's own source, so that one that is added is interrupted here, too.  Everything below
them is a stand-in that does nothing but say that it goes on; the folder of the virtual host is a real one, and removed
by the real code.  Demos with real hosts are interrupted in test_demo.py.
"""

from __future__ import annotations

import ast
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest
from tests.report import factories

from evenkeel import demo
from evenkeel.apply.interrupt import stop_on_interrupt
from evenkeel.cli import demo as verb
from evenkeel.cli import main
from evenkeel.documents.evidence import Evidence
from evenkeel.machines.protocol import OnProgress
from evenkeel.machines.virtual import lifecycle
from evenkeel.machines.virtual.spec import HostSpec

SITE = """version: 1
hosts:
  plc: {address: "virtual:plc"}
guests:
  plc-runtime: {goal: realtime, vcpus: 2, memory: 512MiB, boot: {kernel: /k}}
"""
#: Of a step.  Its begin is the end of the one before.
Moment = Literal["within", "end"]


def steps_of_source() -> list[str]:
    """Titles of the calls of ``demo.step``, the name of the host filled in; the last one is the last that is taken."""
    calls = [
        node
        for node in ast.walk(ast.parse(Path(demo.__file__).read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "demo.step"
    ]
    titles = [call.args[0] for call in sorted(calls, key=lambda call: call.lineno)]
    return [ast.unparse(title).removeprefix("f").strip("'").replace("{name}", "plc") for title in titles]


STEPS = steps_of_source()


class FakeProbe:
    def __enter__(self) -> FakeProbe:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class FakeMachine:
    def __init__(self) -> None:
        self.closed = False

    def probe(self) -> FakeProbe:
        return FakeProbe()

    def close(self) -> None:
        self.closed = True


class Played:
    """One folder for demos that need no machine.  ``steps``: those that began, of all demos."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.steps: list[str] = []
        self.machines: list[FakeMachine] = []
        self.stop_at: Callable[[str, Moment], None] = lambda title, moment: None
        (folder / "site.yaml").write_text(SITE)
        _stand_ins(patch, self)

    @property
    def report(self) -> Path:
        return self.folder / "out/report.html"

    def run(self, *options: str) -> int:
        return main(["demo", "--site", str(self.folder / "site.yaml"), "-o", str(self.folder / "out"), *options])

    def interrupted(self, title: str, moment: Moment, number: signal.Signals, *options: str) -> int:
        sent: list[str] = []

        def stop_at(now: str, at: Moment) -> None:
            # A step that never says that it goes on is interrupted at its end.
            if not sent and now == title and (at == moment or (moment == "within" and at == "end")):
                sent.append(now)
                os.kill(os.getpid(), number)

        self.stop_at = stop_at
        code = self.run(*options)
        assert sent == [title], f"no stand-in comes to the step {title!r}"
        self.stop_at = lambda title, moment: None
        return code


def _stand_ins(patch: pytest.MonkeyPatch, played: Played) -> None:
    real_step = verb._Screen.step

    @contextlib.contextmanager
    def step(self: verb._Screen, title: str) -> Iterator[OnProgress]:
        played.steps.append(title)
        with real_step(self, title) as on_progress:

            def told(done: int, total: int, what: str) -> None:
                on_progress(done, total, what)
                played.stop_at(title, "within")

            yield told
            played.stop_at(title, "end")

    def goes_on(answer: Any = None) -> Callable[..., Any]:
        """Whatever it is called with: tells its progress, and gives ``answer``."""

        def stand_in(*given: Any, on_progress: OnProgress | None = None, **named: Any) -> Any:
            tell = on_progress or next(value for value in reversed(given) if callable(value))
            tell(0, 0, "working")
            return answer

        return stand_in

    def create(name: str, spec: HostSpec, *, on_progress: OnProgress) -> None:
        folder = lifecycle.folder_of(name)
        folder.mkdir(parents=True)
        (folder / "host.json").write_text(
            lifecycle.HostFile(name=name, uuid="0" * 8, image="none", spec=spec).model_dump_json()
        )
        on_progress(0, 0, "made")

    def resolve(address: str) -> FakeMachine:
        played.machines.append(FakeMachine())
        return played.machines[-1]

    def measure_host(*_: Any, moment: str, on_progress: OnProgress, **named: Any) -> Evidence:
        on_progress(0, 0, "measuring")
        return factories.evidence(moment, plan_sha256=plan.sha256())

    def apply_plan(*_: Any, on_progress: OnProgress, on_stop: Callable[[], None], **named: Any) -> None:
        with stop_on_interrupt(on_stop):
            on_progress(0, 0, "applying")

    @contextlib.contextmanager
    def guest(machine: Any, guest: Any) -> Iterator[None]:
        yield

    plan = factories.plan()
    patch.setattr(verb._Screen, "step", step)
    patch.setattr("evenkeel.machines.virtual.qemu.find", goes_on())
    patch.setattr("evenkeel.machines.virtual.image.ensure", goes_on())
    patch.setattr(lifecycle, "create", create)
    patch.setattr(lifecycle, "start", goes_on())
    patch.setattr("evenkeel.machines.address.resolve", resolve)
    patch.setattr("evenkeel.apply.hosts.read_facts", goes_on(factories.facts()))
    patch.setattr("evenkeel.apply.hosts.read_journal", lambda probe: factories.journal(plan))
    patch.setattr("evenkeel.apply.engine.apply_plan", apply_plan)
    patch.setattr("evenkeel.plan.make_plan", lambda site, facts: plan)
    patch.setattr("evenkeel.measure.measure_host", measure_host)
    patch.setattr("evenkeel.verify.observe.observe", goes_on(SimpleNamespace(spun=lambda: ())))
    patch.setattr("evenkeel.verify.host.findings", lambda *_, **__: factories.findings(plan.sha256(), passed=5))
    patch.setattr(demo, "_transient_guest", guest)
    patch.setattr(demo, "_wait_for_agents", goes_on())


@pytest.fixture
def played(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Played]:
    """With Ctrl-C as a terminal gives it, whatever runs the tests made of it."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield Played(tmp_path, monkeypatch)
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_demo_that_nobody_interrupts_takes_every_step_of_the_source(
    played: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    assert played.run() == 0, capsys.readouterr().err
    assert sorted(played.steps) == sorted(STEPS) and played.steps[-1] == STEPS[-1]
    assert played.report.exists() and capsys.readouterr().out.splitlines()[-1] == str(played.report)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("moment", ["within", "end"])
@pytest.mark.parametrize("title", STEPS)
def test_interrupted_in_each_step(
    title: str, moment: Moment, number: signal.Signals, played: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    assert played.interrupted(title, moment, number) == 130
    told = capsys.readouterr()
    assert f"stopped in the step “{title}”" in " ".join(told.err.split())
    assert "evenkeel demo" in told.err and "no virtual host is left" in " ".join(told.err.split())
    assert told.err.splitlines()[-1] == "interrupted" and "Traceback" not in told.err
    # No verdict on stdout, and a report only where the last step had written it.
    assert "as planned" not in told.out and str(played.report) not in told.out
    assert played.report.exists() == (title == STEPS[-1])
    assert ("no report" in told.err) == (not played.report.exists())
    assert not lifecycle.folder_of("plc").exists()
    assert all(machine.closed for machine in played.machines)


@pytest.mark.parametrize("title", STEPS)
def test_a_host_that_shall_be_kept_is_kept_by_a_demo_that_came_to_its_end_only(
    title: str, played: Played, capsys: pytest.CaptureFixture[str]
) -> None:
    """The report is made when the river has ended: by then the host is kept, and how to remove it is told."""
    assert played.interrupted(title, "within", signal.SIGTERM, "--keep") == 130
    kept = title == STEPS[-1]
    assert lifecycle.folder_of("plc").exists() == kept
    assert ("evenkeel virtual rm plc" in capsys.readouterr().err) == kept


def test_the_next_demo_begins_anew_and_ends_well(played: Played, capsys: pytest.CaptureFixture[str]) -> None:
    assert played.interrupted(STEPS[-2], "within", signal.SIGINT) == 130
    played.steps.clear()
    assert played.run() == 0, capsys.readouterr().err
    assert sorted(played.steps) == sorted(STEPS)
