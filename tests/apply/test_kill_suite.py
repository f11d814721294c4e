"""A thousand random kills of apply, of rollback, of the probe and of the whole: nothing half-done is ever left.

After each, the next apply finishes or rollback restores, and at the end of each round every byte of the tree and the
facts document are those of before.  A kill that came too late, after the work was done, is not counted.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from evenkeel.apply.engine import apply_plan
from evenkeel.apply.rollback import rollback_host
from evenkeel.documents.plan import Plan
from evenkeel.errors import EvenkeelError
from evenkeel.probe import journal, write
from evenkeel.probe.facts import read_facts
from tests.apply.tree_host import BOOT_SETTINGS, RUNTIME_SETTINGS, TreeHost, make_plan
from tests.probe import tree
from tests.probe.test_write import apply_all, die_at, in_child, undo_all
from tests.waiting import until

KILLS_AT_A_CALL, KILLS_AT_A_MOMENT = 800, 200
SEED = 20261121


def facts_document(root: Path) -> bytes:
    """The facts of the tree, as bytes; the id of the boot is drawn anew by a reboot, and is none of ours."""
    return json.dumps(read_facts(root=str(root)), sort_keys=True).encode()


@pytest.fixture
def template(tmp_path: Path) -> Path:
    made = tmp_path / "template"
    made.mkdir()
    tree.build(made)
    return made


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_killed_at_random_calls_of_the_probe(tmp_path: Path, template: Path) -> None:
    """The process ends at any call that touches the disk: of an apply, of the rollback after it, of the next apply."""
    dice = random.Random(SEED)
    before, facts = tree.picture(template), facts_document(template)
    kills: collections.Counter[str] = collections.Counter()
    rounds = 0
    while kills.total() < KILLS_AT_A_CALL:
        root = tmp_path / "root"
        shutil.copytree(template, root, symlinks=True)

        def killed(what: str, work: Callable[[Path], None], most: int, root: Path = root) -> None:
            point = dice.randrange(most)

            def run() -> None:
                die_at(point)
                work(root)

            ended = in_child(run)
            assert ended in (0, -signal.SIGKILL)
            kills[what] += ended == -signal.SIGKILL

        killed("apply", apply_all, 95)
        for _ in range(dice.randrange(3)):
            killed("rollback", undo_all, 40) if dice.random() < 0.5 else killed("apply again", apply_all, 60)
        if dice.random() < 0.5:
            assert in_child(lambda root=root: apply_all(root)) == 0  # type: ignore[misc]
            assert _as_wanted(root)
        assert in_child(lambda root=root: undo_all(root)) == 0  # type: ignore[misc]
        assert tree.picture(root) == before, f"round {rounds}"
        assert facts_document(root) == facts, f"round {rounds}"
        shutil.rmtree(root)
        rounds += 1
    print(f"\n{kills.total()} kills in {rounds} rounds: {dict(kills)}")
    assert min(kills[what] for what in ("apply", "rollback", "apply again")) > KILLS_AT_A_CALL // 20


def _as_wanted(root: Path) -> bool:
    found = write.check_steps(tree.STEPS, root=str(root))
    return all(answer["outcome"] == "unchanged" for answer in found)


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_killed_at_random_moments_from_outside(tmp_path: Path) -> None:
    """SIGKILL from another process, at any moment, to the engine, to its probe on the host, or to both."""
    dice = random.Random(SEED)
    kills: collections.Counter[str] = collections.Counter()
    rounds = 0
    folder = tmp_path / "first"
    folder.mkdir()
    first = TreeHost(folder)
    plan = make_plan(first, *RUNTIME_SETTINGS)
    whole_s = _time_of(lambda: _engine(first, plan))
    while kills.total() < KILLS_AT_A_MOMENT:
        folder = tmp_path / f"round{rounds}"
        folder.mkdir()
        _round(TreeHost(folder), plan, dice, whole_s, kills)
        shutil.rmtree(folder)
        rounds += 1
    print(f"\n{kills.total()} kills in {rounds} rounds: {dict(kills)}")
    assert min(kills.values()) > KILLS_AT_A_MOMENT // 20


def _round(host: TreeHost, plan: Plan, dice: random.Random, whole_s: float, kills: collections.Counter[str]) -> None:
    before, facts = host.picture(), facts_document(host.root)
    for work in (_engine, _engine if dice.random() < 0.5 else _rollback):
        whom = dice.choice(("engine", "probe", "both"))
        after_s = dice.uniform(0.1, 1.0) * whole_s
        kills[whom] += _killed_outside(lambda work=work: work(host, plan), whom, after_s)  # type: ignore[misc]
    if dice.random() < 0.5:
        _patiently(host, lambda: _engine(host, plan))
        assert apply_plan(plan.hosts[0], plan, host).outcome == "unchanged"
    _patiently(host, lambda: _rollback(host, plan))
    assert host.picture() == before
    assert facts_document(host.root) == facts


def test_the_suite_sees_a_write_that_was_not_journaled_first(tmp_path: Path, template: Path) -> None:
    """The negative of all: without the line before the write, a kill leaves something that no rollback knows of."""
    before = tree.picture(template)
    real = journal.Writer.append
    seen = 0
    for point in range(0, 90, 6):
        root = tmp_path / "root"
        shutil.copytree(template, root, symlinks=True)

        def careless(root: Path = root, point: int = point) -> None:
            def append(
                self: journal.Writer, name: str, plan: str, sequence: int | None = None, **fields: object
            ) -> int:
                return 1 if name == "intent" else real(self, name, plan, sequence, **fields)

            journal.Writer.append = append  # type: ignore[method-assign,assignment]
            die_at(point)
            apply_all(root)

        in_child(careless)
        assert in_child(lambda root=root: undo_all(root)) == 0  # type: ignore[misc]
        seen += tree.picture(root) != before
        shutil.rmtree(root)
    assert seen > 5


@pytest.mark.parametrize("event", ["begin", "gate", "intent", "done", "end"])
def test_killed_after_each_line_of_the_journal(tmp_path: Path, event: str) -> None:
    """The applier dies as soon as a line is on disk, at every line of this kind; then rollback, or apply again."""
    folder = tmp_path / "whole"
    folder.mkdir()
    host = TreeHost(folder)
    plan = make_plan(host, *BOOT_SETTINGS, *RUNTIME_SETTINGS)
    assert in_child(lambda: _take_all(plan, host)) == 0
    events = [entry["event"] for entry in journal.read_journal(str(host.root))["entries"]]
    assert events.count(event) >= 1
    for at in range(events.count(event)):
        folder = tmp_path / f"{event}-{at}"
        folder.mkdir()
        host = TreeHost(folder)
        before, facts = host.picture(), facts_document(host.root)

        def run(host: TreeHost = host, at: int = at) -> None:
            _die_after(event, at)
            _take_all(plan, host)

        assert in_child(run) == -signal.SIGKILL, f"{event} {at}"
        last = journal.read_journal(str(host.root))["entries"][-1]
        assert last["event"] == event
        if at % 2:
            assert in_child(lambda host=host: _take_all(plan, host)) == 0  # type: ignore[misc]
        assert rollback_host("cell", host).problems == ()
        assert host.picture() == before
        assert facts_document(host.root) == facts


def _take_all(plan: Plan, host: TreeHost) -> None:
    for step in _steps_of(plan):
        step(str(host.root))


def _steps_of(plan: Plan) -> Iterator[Callable[[str], object]]:
    """What the engine asks the probe for, one after the other; here in the process that is killed."""
    from evenkeel.apply.steps import host_steps

    sha = plan.sha256()
    yield lambda root: journal.note("begin", sha, root=root)
    steps = host_steps(plan.hosts[0])
    for step in steps:
        if step.phase == "memory":
            yield lambda root: journal.note("gate", sha, "passed", root=root)
        yield lambda root, step=step: write.apply_step(step.body, sha, step.name, str(step.phase), root=root)  # type: ignore[misc]
    yield lambda root: journal.note("end", sha, root=root)


def _die_after(event: str, at: int) -> None:
    """From here on, in this process, the line number ``at`` of this kind is the last thing that happens."""
    real = journal.Writer.append
    seen = [0]

    def append(self: journal.Writer, name: str, plan: str, sequence: int | None = None, **fields: object) -> int:
        number = real(self, name, plan, sequence, **fields)
        if name == event:
            if seen[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            seen[0] += 1
        return number

    journal.Writer.append = append  # type: ignore[method-assign,assignment]


def _engine(host: TreeHost, plan: Plan) -> None:
    apply_plan(plan.hosts[0], plan, host)


def _rollback(host: TreeHost, plan: Plan) -> None:
    problems = rollback_host("cell", host).problems
    assert problems == (), problems


def _time_of(work: Callable[[], None]) -> float:
    start = time.monotonic()
    work()
    return time.monotonic() - start


def _killed_outside(work: Callable[[], None], whom: str, after_s: float) -> bool:
    """Run in a process of its own and kill it, its probe, or both.  Whether there was still something to kill."""
    child = os.fork()
    if not child:
        try:
            with contextlib.suppress(EvenkeelError):  # a probe that is killed is answered with a rollback
                work()
        finally:
            os._exit(0)
    time.sleep(after_s)
    running = os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
    probes = _children(child)
    victims = {"engine": [child], "probe": probes, "both": [child, *probes]}[whom] if running else []
    for process in victims:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    os.waitpid(child, 0)
    return bool(victims)


def _children(process: int) -> list[int]:
    with contextlib.suppress(OSError):
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    return []


def _patiently(host: TreeHost, work: Callable[[], None]) -> None:
    """A probe whose engine was killed ends after the step that it is in; until then it holds the lock."""
    until(lambda: journal.read_journal(str(host.root))["writer"] is None)
    work()
