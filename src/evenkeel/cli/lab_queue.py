"""`evenkeel lab submit`, `submissions`, `queue`, `show`, `log`, `cancel`, `retry`: steps in a lab's queue."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Given, Json, Set, StepOrFile, tell

Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Of the submission.")]
Step = Annotated[str, typer.Argument(metavar="STEP", help="Its name in the submission.")]


def register(app: typer.Typer) -> None:
    app.command(name="submit")(submit)
    app.command(name="submissions")(submissions)
    app.command(name="queue")(queue)
    app.command(name="show")(show)
    app.command(name="log")(log)
    app.command(name="cancel")(cancel)
    app.command(name="retry")(retry)


def submit(
    step: StepOrFile,
    set_: Set = None,
    given: Given = None,
    team: Annotated[str, typer.Option("--team", metavar="NAME", help="For this team of yours.")] = "",
    urgent: Annotated[bool, typer.Option("--urgent", help="Before all others, for one of your credits.")] = False,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Of the urgency; shown to all.")] = "",
    wait: Annotated[
        bool, typer.Option("--wait", help="Return when it has ended; exit code 1 unless it passed.")
    ] = False,
    at: At = None,
    json: Json = False,
) -> int:
    """Send a step, or a graph of steps, to the lab.

    evenkeel lab submit kernel-module --input source=examples/lab/heartbeat
    evenkeel lab submit review.yaml --set branch=next --urgent --reason "the release is blocked"

    The smallest file has two lines, `kind: hello` and `command: echo hello`; `evenkeel lab log 1 hello` prints what it
    said. The same files run on your own machine with `evenkeel lab run`.
    """
    from evenkeel.cli import output
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED, WrongInput
    from evenkeel.lab.client import connect
    from evenkeel.lab.sending import send
    from evenkeel.lab.step import find_step, graph_of_step, is_graph, parse_inputs, parse_settings, read_graph
    from evenkeel.lab.words import several

    settings, inputs = parse_settings(set_ or ()), parse_inputs(given or ())
    if ("/" in step or step.endswith((".yaml", ".yml"))) and is_graph(step):
        if inputs:
            raise WrongInput("--input is for one step; a graph says itself where its inputs come from")
        graph, files_from = read_graph(step, settings), Path(step).parent
    else:
        graph, files_from = graph_of_step(find_step(step), settings, inputs), Path()
    with connect(at) as lab:
        made = send(lab, graph, files_from, team=team, urgent=urgent, reason=reason)
        if not json:
            steps = several(len(made["lines"]), "step")
            output.note(f"submission {made['id']}, {steps}: evenkeel lab show {made['id']}")
        if urgent and not made["urgent"]:
            output.warn("no credit is left this month, so it waits like any other")
        if wait:
            made = _wait(lab, made["id"])
    if json:
        output.emit_json(made)
    elif wait:
        _print(made, {})
    return EXIT_DONE if not wait or made["state"] == "passed" else EXIT_NOT_AS_WANTED


def _wait(lab: Any, number: int) -> Any:
    while (found := lab.wait(f"/submissions/{number}", 20))["state"] == "open":
        pass
    return found


def submissions(
    mine: Annotated[bool, typer.Option("--mine", help="Only yours.")] = False,
    state: Annotated[
        str | None, typer.Option("--state", metavar="STATE", help="Only these: open, passed, failed or cancelled.")
    ] = None,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="So many.")] = 20,
    at: At = None,
    json: Json = False,
) -> None:
    """List submissions, the newest first.

    evenkeel lab submissions --mine
    evenkeel lab submissions --state failed
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment

    with connect(at) as lab:
        who = lab.get("/me")["name"] if mine else None
        found = lab.get("/submissions", submitter=who, state=state, limit=most)["items"]
    if json:
        output.emit_json(found)
    elif not found:
        output.note("none; `evenkeel lab submit STEP` sends one in")
    else:
        rows = [
            (str(one["id"]), one["name"], one["submitter"], one["state"] + (", urgent" if one["urgent"] else ""),
             ", ".join(f"{count} {what}" for what, count in one["steps"].items()), moment(one["submitted_ns"]))
            for one in found
        ]  # fmt: skip
        columns = ("number", "name", "who", "state", "steps", "sent in (UTC)")
        output.out().print(output.table(columns, rows, right=("number",)))


def queue(
    mine: Annotated[bool, typer.Option("--mine", help="Only yours, with their places among all.")] = False,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="So many of each.")] = 50,
    at: At = None,
    json: Json = False,
) -> None:
    """Show what waits, in the order in which it will start, and why it waits; what runs; what idled.

    evenkeel lab queue
    evenkeel lab queue --mine
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import duration, several

    with connect(at) as lab:
        who = lab.get("/me")["name"] if mine else None
        found = lab.get("/queue", limit=most, submitter=who)
    if json:
        output.emit_json(found)
        return
    console, now = output.out(), found["now_ns"]
    rows = [
        (f"{one['submission']}", one["step"], one["submitter"], one["agent"], duration(now - one["since_ns"]),
         _until(one["eta"], "end", now))
        for one in found["running"]
    ]  # fmt: skip
    if rows:
        columns = ("submission", "runs", "who", "on", "for", "ends in")
        console.print(output.table(columns, rows, right=("submission",)))
    rows = [
        (f"{one['place']}", f"{one['submission']}", one["step"], one["submitter"] + (" !" if one["urgent"] else ""),
         _until(one["eta"], "start", now), one["why"]["text"])
        for one in found["waiting"]
    ]  # fmt: skip
    if rows:
        columns = ("place", "submission", "waits", "who", "starts in", "why")
        console.print(output.table(columns, rows, right=("place", "submission")))
    if found["no_forecast"] and (found["running"] or found["waiting"]):
        output.note(f"nothing is foretold now: {found['no_forecast']}")
    idle = found["idle"]["share"]
    waits = several(found["ready"], "step waits", "steps wait")
    output.note(
        f"{found['runs']} of {found['slots']} slots busy, {waits}, {several(found['blocked'], 'comes', 'come')} after "
        f"others; idle while something waited, last day: {'-' if idle is None else f'{100 * idle:.1f} %'}"
    )


def _until(eta: Any, what: str, now: int) -> str:
    """The middle and the 80 % band, from now."""
    from evenkeel.lab.words import duration

    times = eta and eta[what]
    if not times:
        return ""
    low, mid, high = (max(0, times[f"{edge}_ns"] - now) for edge in ("p10", "p50", "p90"))
    return duration(mid) if high - low < 10**9 else f"{duration(mid)} ({duration(low)} to {duration(high)})"


def show(number: Number, at: At = None, json: Json = False) -> None:
    """Show a submission: its steps, what each waits for, and when it will probably end.

    Its log: `evenkeel lab log 17 STEP`; what differs from the time before: `evenkeel lab compare ATTEMPT`; its files:
    `evenkeel lab artifact list --attempt ATTEMPT`.

    evenkeel lab show 17
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.get(f"/submissions/{number}")
        reasons = lab.get(f"/submissions/{number}/reasons")
    if json:
        output.emit_json(found)
    else:
        _print(found, reasons)


def _print(found: Any, reasons: Any) -> None:
    from evenkeel.cli import output
    from evenkeel.lab.words import duration

    rows = []
    for line in found["lines"]:
        took = line["ended_ns"] - line["started_ns"] if line["ended_ns"] and line["started_ns"] else None
        why = reasons.get(str(line["id"]))
        told = why["text"] if why else line["cause"]
        result = str(line["attempt"]) if line["attempt"] else ""
        rows.append((line["name"], line["state"], str(line["attempts"]), duration(took) if took else "", result, told))
    state = found["state"] + (", urgent" if found["urgent"] else "")
    output.out().print(f"{found['name']}, submission {found['id']} of {found['submitter']}: {state}")
    columns = ("step", "state", "tries", "took", "attempt", "why")
    output.out().print(output.table(columns, rows, right=("tries", "attempt")))


def log(
    number: Number,
    step: Step,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the step has ended.")] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", metavar="N", min=1, help="Of this try; the last one if left out.")
    ] = None,
    at: At = None,
) -> None:
    """Print the log of a step, also while it runs.

    evenkeel lab log 17 build -f
    """
    import sys
    import time

    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment

    with connect(at) as lab:
        while True:
            found = lab.get(f"/submissions/{number}/steps/{step}")
            attempts = found["attempts"]
            chosen = [one for one in attempts if attempt in (None, one["number"])]
            if chosen or not follow or found["state"] in ("skipped", "cancelled"):
                break
            time.sleep(0.3)
        if not chosen:
            raise _no_try(number, found, attempt)
        offset = 0
        while True:
            answer = lab.ask("GET", f"/attempts/{chosen[-1]['id']}/log", parameters={"offset": offset})
            sys.stdout.buffer.write(answer.content)
            sys.stdout.buffer.flush()
            offset += len(answer.content)
            if answer.headers["Lab-Log-More"] == "no" or (not answer.content and not follow):
                if not offset:
                    removed = chosen[-1]["log_removed_ns"]
                    output.note(
                        f"the log of step {step} was removed on {moment(removed)} UTC: it was older than the lab keeps"
                        if removed
                        else f"step {step} printed nothing"
                    )
                return
            if not answer.content:
                time.sleep(0.3)


def _no_try(number: int, step: Any, attempt: int | None) -> Exception:
    from evenkeel.errors import NotAsWanted

    if step["attempts"]:
        return NotAsWanted(f"step {step['name']} was not tried {attempt} times", hint=f"evenkeel lab show {number}")
    if step["state"] in ("skipped", "cancelled"):
        return NotAsWanted(f"step {step['name']} was {step['state']}, and never ran", hint=step["cause"] or None)
    return NotAsWanted(f"step {step['name']} did not begin yet", hint="--follow waits for it")


def cancel(
    number: Number,
    step: Annotated[str | None, typer.Argument(metavar="[STEP]", help="Only this step.", show_default=False)] = None,
    at: At = None,
    json: Json = False,
) -> None:
    """End a submission, or one step of it: what waits never starts, what runs is killed.

    evenkeel lab cancel 17
    evenkeel lab cancel 17 build
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        if step is None:
            found = lab.post(f"/submissions/{number}/cancel")
        else:
            found = lab.post(f"/steps/{lab.get(f'/submissions/{number}/steps/{step}')['id']}/cancel")
    tell(found, "cancelled", json)


def retry(number: Number, step: Step, at: At = None, json: Json = False) -> None:
    """Do a failed step again, with all that comes after it.

    evenkeel lab retry 17 build
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.post(f"/steps/{lab.get(f'/submissions/{number}/steps/{step}')['id']}/retry")
    tell(found, f"step {step} is {found['state']} again", json)
