"""`evenkeel lab webhook ...`: which programs are told of what happens, and whether they take it."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json, tell

_webhook = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Webhooks: programs that are told of what happens, by signed POSTs. For admins.

  evenkeel lab webhook add https://chat.example.org/hooks/lab 'claim.*' step.failed
  evenkeel lab webhook list
  evenkeel lab webhook test 1
""",
)
Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="As `evenkeel lab webhook list` shows it.")]


def register(app: typer.Typer) -> None:
    app.add_typer(_webhook, name="webhook")


@_webhook.command(name="list")
def list_(at: At = None, as_json: Json = False) -> None:
    """List webhooks, and whether their receivers take what they are sent.

    evenkeel lab webhook list
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.get("/webhooks")
    if as_json:
        output.emit_json(found)
    elif not found:
        output.note("no webhooks yet; `evenkeel lab webhook add URL TYPE` adds one")
    else:
        rows = [(str(one["id"]), one["url"], ", ".join(one["types"]), _state(one)) for one in found]
        output.out().print(output.table(("number", "address", "events", "state"), rows, right=("number",)))


@_webhook.command()
def add(
    url: Annotated[str, typer.Argument(metavar="URL", help="Of the receiver.")],
    types: Annotated[
        list[str], typer.Argument(metavar="TYPE...", help="Of events: 'claim.*' for all of a kind, '*' for all.")
    ],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Tell a program of what happens from now on; the key that it checks signatures with is printed this once.

    evenkeel lab webhook add https://chat.example.org/hooks/lab 'claim.*' step.failed
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        made = lab.post("/webhooks", {"url": url, "types": types})
    if as_json:
        output.emit_json(made)
        return
    number = made["webhook"]["id"]
    output.note(f"webhook {number} is added; try it with `evenkeel lab webhook test {number}`")
    output.note("the key that it signs with; it is not shown again:")
    output.out().print(made["key"], soft_wrap=True)


@_webhook.command()
def remove(number: Number, at: At = None, as_json: Json = False) -> None:
    """Tell it no more.

    evenkeel lab webhook remove 1
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        lab.send("DELETE", f"/webhooks/{number}")
    tell({"removed": number}, f"removed webhook {number}", as_json)


@_webhook.command()
def test(number: Number, at: At = None, as_json: Json = False) -> None:
    """Send one signed event that means nothing, now. Exit code 1: it was not taken.

    evenkeel lab webhook test 1
    """
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import duration

    with connect(at) as lab:
        sent = lab.post(f"/webhooks/{number}/test")
    tell(sent, f"{_outcome(sent)}, after {duration(sent['took_ns'])}", as_json)
    if sent["wrong"]:
        raise typer.Exit(1)


@_webhook.command()
def deliveries(
    number: Number,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1000, help="How many.")] = 20,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show what was sent last, tests too, and what became of it; the newest first.

    evenkeel lab webhook deliveries 1
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import duration, moment

    with connect(at) as lab:
        found = lab.get(f"/webhooks/{number}/deliveries", limit=limit)["items"]
    if as_json:
        output.emit_json(found)
    elif not found:
        output.note("nothing was sent yet")
    else:
        rows = [
            (moment(one["at_ns"]), one["type"], str(one["seq"] or "a test"), _outcome(one), duration(one["took_ns"]))
            for one in found
        ]
        output.out().print(output.table(("when", "event", "its number", "outcome", "took"), rows))


@_webhook.command()
def resume(number: Number, at: At = None, as_json: Json = False) -> None:
    """Try again now, with what was missed; also one that was switched off after a day without an answer.

    evenkeel lab webhook resume 1
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.post(f"/webhooks/{number}/resume")
    tell(found, f"webhook {number} goes on after event {found['after']}", as_json)


def _state(hook: dict[str, Any]) -> str:
    if hook["off"]:
        return f"off: {hook['last']}"
    return f"failing: {hook['last']}" if hook["failures"] else "nothing held up"


def _outcome(sent: dict[str, Any]) -> str:
    return f"not taken: {sent['wrong']}" if sent["wrong"] else f"taken ({sent['status']})"
