"""Run a step, or a whole graph, here and now, without a lab: what `evenkeel lab run` does.

The same definitions, the same runner and the same documents as in a lab; only that steps come one after the other, and
that what one gives to the next lies in a folder.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evenkeel.documents.base import Model
from evenkeel.documents.result import Result
from evenkeel.errors import Where, WrongInput
from evenkeel.lab.runner import Ran, Run
from evenkeel.lab.step import Ended, Graph, Input, Use, decide, output_text

RESULT = "result.json"


class Outcome(Model):
    """Of one step of a graph.  ``result``: None for one that was skipped."""

    step: str
    state: str
    result: Result | None = None


@dataclass
class Watch:
    """What is told while it runs: a step begins, a step says something, a step has ended."""

    begins: Callable[[str], None] = lambda name: None
    log: Callable[[bytes], None] = lambda chunk: None
    ended: Callable[[Outcome], None] = lambda outcome: None


@dataclass
class _Kept:
    """Artifacts of the steps before, by their hash and by step and name."""

    files: dict[str, Path] = field(default_factory=dict)
    given: dict[tuple[str, str], tuple[str, str]] = field(default_factory=dict)

    def add(self, step: str, ran: Ran) -> None:
        for one in ran.result.artifacts:
            self.files[one.sha256] = ran.files[one.name]
            self.given[step, one.name] = (one.sha256, one.media)

    def fetch(self, sha256: str, target: Path) -> None:
        shutil.copyfile(self.files[sha256], target)


def run_graph(
    graph: Graph, folder: Path, *, files_from: Path, baseline: Path | None = None, watch: Watch | None = None
) -> tuple[Outcome, ...]:
    """``graph``: resolved.  Each step gets ``folder/STEP``; its result document is ``result.json`` there.

    ``baseline``: the folder of an earlier run, whose artifacts are what inputs with ``baseline`` mean.
    Raises WrongInput when ``folder`` holds something else than an earlier run."""
    prepare(folder)
    watch = watch or Watch()
    kept, before = _Kept(), _earlier(baseline)
    ended: dict[str, tuple[Ended, Mapping[str, Any]]] = {}
    outcomes: dict[str, Outcome] = {}
    while len(ended) < len(graph.steps):
        for name, use in graph.steps.items():
            if name in ended or (next_ := decide(use, ended)) == "blocked":
                continue
            if next_ == "skipped":
                outcome = Outcome(step=name, state="skipped")
            else:
                watch.begins(name)
                outcome = _run(name, use, folder, files_from, kept, before, ended, watch)
            state: Ended = "passed" if outcome.state == "passed" else "skipped" if next_ == "skipped" else "failed"
            ended[name] = (state, outcome.result.output if outcome.result else {})
            outcomes[name] = outcome
            watch.ended(outcome)
    return tuple(outcomes[name] for name in graph.steps)


def _run(
    name: str,
    use: Use,
    folder: Path,
    files_from: Path,
    kept: _Kept,
    before: _Kept,
    ended: Mapping[str, tuple[Ended, Mapping[str, Any]]],
    watch: Watch,
) -> Outcome:
    inputs = {key: _filled(given, kept, before, ended) for key, given in use.inputs.items()}
    all_files = _Kept({**before.files, **kept.files})
    run = Run(
        use.model_copy(update={"inputs": inputs}),
        (folder / name).absolute(),
        fetch=all_files.fetch,
        files_from=files_from,
        on_log=watch.log,
    )
    try:
        ran = run.run()
    except KeyboardInterrupt:
        run.cancel()
        raise
    kept.add(name, ran)
    (folder / name / RESULT).write_text(ran.result.to_json())
    return Outcome(step=name, state=ran.result.state, result=ran.result)


def _filled(given: Input, kept: _Kept, before: _Kept, ended: Mapping[str, tuple[Ended, Mapping[str, Any]]]) -> Input:
    """As :func:`evenkeel.lab.artifacts.fill_inputs` does it in a lab."""
    cleared = {"artifact": None, "output": None, "baseline": None}
    if given.output is not None and given.output in ended:
        return given.model_copy(update={**cleared, "json_text": output_text(ended[given.output][1])})
    where = before if given.baseline is not None else kept
    step, _, name = (given.artifact or given.baseline or "").partition("/")
    if (step, name) in where.given:
        sha256, media = where.given[step, name]
        return given.model_copy(update={**cleared, "content": sha256, "media": media})
    return given.model_copy(update={"baseline": None}) if given.baseline is not None else given


def _earlier(folder: Path | None) -> _Kept:
    """The artifacts of the steps that passed in an earlier run."""
    kept = _Kept()
    if folder is None:
        return kept
    results = sorted(folder.glob(f"*/{RESULT}"))
    if not results:
        raise WrongInput(f"{folder} holds no run", where=Where(str(folder)), hint="the folder of `lab run -o FOLDER`")
    for file in results:
        result = Result.from_json(file.read_text(), file=str(file))
        for one in result.artifacts if result.state == "passed" else ():
            kept.given[file.parent.name, one.name] = (one.sha256, one.media)
            kept.files[one.sha256] = file.parent / "artifacts" / one.name
    return kept


def prepare(folder: Path) -> None:
    """An empty folder for a run; an earlier run in it is removed.  Raises WrongInput when it holds anything else."""
    if folder.exists():
        strangers = [path for path in folder.iterdir() if not (path / RESULT).exists() and not (path / "log").exists()]
        if not folder.is_dir() or strangers:
            what = f"{strangers[0].name}, which is no step of an earlier run" if strangers else "no folder"
            raise WrongInput(f"{folder} has {what}", hint="name a folder of its own: -o FOLDER")
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
