"""`evenkeel lab statistics`, `eta`: how the queue does, and when something will start and end."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json


def register(app: typer.Typer) -> None:
    app.command(name="statistics")(statistics)
    app.command(name="eta")(eta)


def statistics(
    days: Annotated[int, typer.Option("--days", min=1, max=400, help="How far back.")] = 7,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show idle slots by cause, waits, how good forecasts were, who used what, and what steps take.

    evenkeel lab statistics --days 30
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import duration

    with connect(at) as lab:
        found = lab.get("/statistics", days=days)
    if as_json:
        output.emit_json(found)
        return
    out, idle = output.out(), found["idle"]
    if idle["share"] is None:
        out.print("no agent was here in this time")
    else:
        out.print(f"idle while something waited: {_percent(idle['share'])} of {duration(idle['slots_ns'])} of slots")
        for cause, took in sorted(idle["by_cause"].items(), key=lambda one: -one[1]):
            out.print(f"  {cause}: {duration(took)}")
    _table("waits", ("of", "submissions", "half below", "19 of 20 below"), [
        (one["of"], str(one["count"]), duration(one["p50_ns"]), duration(one["p95_ns"])) for one in found["waits"]
    ])  # fmt: skip
    _table("forecasts", ("of", "number", "in the band", "half miss by", "9 of 10 miss by"), [
        (one["object"], str(one["count"]), _percent(one["covered"]), duration(one["error_p50_ns"]),
         duration(one["error_p90_ns"])) for one in found["forecasts"]
    ])  # fmt: skip
    _table("use", ("who", "team", "slot time", "of all", "submissions"), [
        (one["person"], one["team"], duration(one["used_ns"]), _percent(one["share"]), str(one["submissions"]))
        for one in found["usage"]
    ])  # fmt: skip
    _table("steps", ("kind", "key", "passed", "half below", "9 of 10 below", "learned time-out"), [
        (one["kind"], one["key"], str(one["count"]), duration(one["p50_ns"]), duration(one["p90_ns"]),
         duration(one["timeout_ns"]) or "none yet") for one in found["learned"]
    ])  # fmt: skip


def eta(
    number: Annotated[int, typer.Argument(metavar="SUBMISSION", min=1, help="Its number.")],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Say when a submission and its steps will start and end, and how many come before.

    evenkeel lab eta 42
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment, several

    with connect(at) as lab:
        found = lab.get(f"/submissions/{number}/eta")
    if as_json:
        output.emit_json(found)
        return
    out = output.out()
    if found["ended_ns"]:
        out.print(f"submission {number} ended {moment(found['ended_ns'])}")
    if found["first"]:
        out.print(f"foretold when it was sent in: {_end(found['first'])}")
    if not found["now"]:
        if not found["ended_ns"]:
            why = found["no_forecast"] or "nothing is known of it yet; ask again"
            out.print(f"nothing is foretold for it now: {why}", soft_wrap=True)
        return
    now = found["now"]
    out.print(f"as it looks now: {_end(now)}")
    of = f", of {several(now['people'], 'other person', 'other people')} or yours" if now["ahead"] else ""
    out.print(f"{several(now['ahead'], 'step starts', 'steps start')} before it{of}")
    _table("steps", ("step", "starts", "ends"), [
        (name, _times(one["start"]) or one["unknown"], _times(one["end"]) or one["unknown"])
        for name, one in found["steps"].items()
    ])  # fmt: skip


def _end(one: dict[str, Any]) -> str:
    return f"ends {_times(one['end'])}" if one["end"] else one["unknown"]


def _times(times: dict[str, int] | None) -> str:
    """``2026-11-29 10:04 (10:01 to 10:12)`` (UTC)."""
    from evenkeel.lab.words import moment

    if times is None:
        return ""
    low, middle, high = (moment(times[key]) for key in ("p10_ns", "p50_ns", "p90_ns"))
    if low == high:
        return middle
    short = [text[11:] if text[:10] == middle[:10] else text for text in (low, high)]
    return f"{middle} ({short[0]} to {short[1]})"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _table(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    from evenkeel.cli import output

    if rows:
        output.out().print()
        output.out().print(output.table((title, *columns[1:]), rows))
