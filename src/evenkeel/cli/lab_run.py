"""`evenkeel lab run` and `steps`: the lab's steps on this machine, without a lab."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evenkeel.cli.lab_options import Given, Json, Set, StepOrFile


def register(app: typer.Typer) -> None:
    app.command(name="run")(run)
    app.command(name="steps")(steps)


def run(
    step: StepOrFile,
    set_: Set = None,
    given: Given = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where results go; an earlier run is replaced.")
    ] = Path("lab-run"),
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", metavar="FOLDER", help="An earlier run, to compare with.", show_default=False),
    ] = None,
    json: Json = False,
) -> int:
    """Run a step, or a graph of steps, here: the same definition and the same result document as in a lab.

    evenkeel lab run kernel-module --input source=examples/lab/heartbeat
    evenkeel lab run kernel-module --input source=examples/lab/heartbeat --set arch=arm64 -o arm64
    evenkeel lab run ./my-step.yaml --set branch=next
    evenkeel lab run examples/lab/kernel-module.yaml --set repository=/srv/git/driver --set branch=next

    Needs no server. Steps run as the user who calls this. Exit code 0: all that ran passed; 1: a step failed.
    """
    from evenkeel.cli import output as out
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, WrongInput
    from evenkeel.lab import local
    from evenkeel.lab.step import find_step, graph_of_step, is_graph, parse_inputs, parse_settings, read_graph

    settings, inputs = parse_settings(set_ or ()), parse_inputs(given or ())
    named_file = "/" in step or step.endswith((".yaml", ".yml"))
    if named_file and is_graph(step):
        if inputs:
            raise WrongInput("--input is for one step; a graph says itself where its inputs come from")
        graph, files_from = read_graph(step, settings), Path(step).parent
    else:
        graph, files_from = graph_of_step(find_step(step), settings, inputs), Path()

    def log(chunk: bytes) -> None:
        out.err().print(chunk.decode(errors="replace"), end="", soft_wrap=True)

    watch = local.Watch(begins=lambda name: out.note(f"-- {name}"), log=log)
    outcomes = local.run_graph(graph, output, files_from=files_from, baseline=baseline, watch=watch)
    if json:
        out.emit_json([one.model_dump(mode="json") for one in outcomes])
    else:
        from evenkeel.lab.words import duration

        rows = []
        for one in outcomes:
            result = one.result
            took = duration(result.times.ended_ns - result.times.started_ns) if result else ""
            told = result.detail or _brief(result.output) if result else ""
            rows.append((one.step, one.state, took, told))
        out.out().print(out.table(("step", "result", "took", ""), rows, right=("took",)))
        out.note(f"documents and artifacts: {output}/STEP/result.json, {output}/STEP/artifacts")
    return EXIT_DONE if all(one.state in ("passed", "skipped") for one in outcomes) else EXIT_NOT_AS_WANTED


def _brief(output: dict[str, object]) -> str:
    """Numbers, words and yes-or-no of an output; what is longer is in the document."""
    words = [f"{key}: {str(value).lower() if isinstance(value, bool) else value}" for key, value in output.items()
             if isinstance(value, (bool, int, float, str))]  # fmt: skip
    return ", ".join(words)


def steps(
    name: Annotated[str | None, typer.Argument(metavar="[STEP]", help="Show this one in full.")] = None,
    json: Json = False,
) -> None:
    """List the steps that come with Evenkeel, or show one: its parameters, inputs, outputs.

    evenkeel lab steps
    evenkeel lab steps kernel-module
    """
    from evenkeel.cli import output as out
    from evenkeel.lab.step import find_step, read_step, shipped

    if name is None:
        found = {each: read_step(path) for each, path in shipped().items()}
        if json:
            out.emit_json({each: step.model_dump(mode="json") for each, step in found.items()})
            return
        out.out().print(
            out.table(("step", "what it does"), [(each, step.help.splitlines()[0]) for each, step in found.items()])
        )
        return
    step = find_step(name)
    if json:
        out.emit_json(step.model_dump(mode="json"))
        return
    console = out.out()
    console.print(step.help.strip() + "\n")
    parameters = [
        (each, one.help, "must be set" if one.default is None else one.default or "(empty)", ", ".join(one.choices))
        for each, one in step.parameters.items()
    ]
    console.print(out.table(("parameter", "", "default", "choices"), parameters))
    inputs = [(each, one.help, "may be left out" if one.optional else "needed") for each, one in step.inputs.items()]
    console.print(out.table(("input", "", ""), inputs))
    artifacts = [(each, one.path, "" if not one.optional else "not always") for each, one in step.artifacts.items()]
    console.print(out.table(("artifact", "below $OUT", ""), artifacts))
