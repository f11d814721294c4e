"""`evenkeel lab credits ...`, `urgent`: urgent work, what it costs, and who asked for it and why."""

from __future__ import annotations

from typing import Annotated

import typer

from evenkeel.cli.lab_options import At, Json, tell

_credits = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Credits for urgent work: each person has a few a month.

  evenkeel lab credits show                 yours, and who spent how many
  evenkeel lab credits uses                 who used priority for what, and why
  evenkeel lab credits grant ann 5 --reason "release week"
""",
)
Reason = Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; all see it, with your name.")]


def register(app: typer.Typer) -> None:
    app.add_typer(_credits, name="credits")
    app.command(name="urgent")(urgent)


@_credits.command()
def show(at: At = None, as_json: Json = False) -> None:
    """Show what you have left in this month, and who spent how many.

    evenkeel lab credits show
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        mine, people = lab.get("/credits/mine"), lab.get("/credits")
    if as_json:
        output.emit_json({"mine": mine, "people": people})
        return
    output.out().print(f"you have {mine['left']} of {mine['granted']} left this month")
    if people:
        rows = [(one["principal"], f"{one['spent']} of {one['granted']}", str(one["left"])) for one in people]
        output.out().print(output.table(("who", "spent", "left"), rows))


@_credits.command()
def uses(
    person: Annotated[
        str | None, typer.Option("--person", metavar="NAME", help="Of one person only.", show_default=False)
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show who used priority for what, and why; the newest first.

    evenkeel lab credits uses --person ann
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment

    with connect(at) as lab:
        found = lab.get("/credits/uses", principal=person)["items"]
    if as_json:
        output.emit_json(found)
        return
    if not found:
        output.out().print("nobody asked for priority yet")
        return
    rows = [
        (moment(use["at_ns"]), use["principal"], f"{use['object']} {use['object_id']}", _WORDS[use["outcome"]],
         use["reason"]) for use in found
    ]  # fmt: skip
    output.out().print(output.table(("when", "who", "for", "credit", "why"), rows))


@_credits.command()
def grant(
    person: Annotated[str, typer.Argument(metavar="NAME", help="Who gets them.")],
    granted: Annotated[int, typer.Argument(metavar="NUMBER", min=0, help="Of credits in this month, in all.")],
    reason: Reason,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Give somebody another number of credits in this month. For admins.

    evenkeel lab credits grant ann 5 --reason "release week"
    """
    from urllib.parse import quote

    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.send("PUT", f"/credits/{quote(person, safe='')}", {"granted": granted, "reason": reason})
    tell(found, f"{person} has {found['left']} of {found['granted']} left this month", as_json)


def urgent(
    number: Annotated[int, typer.Argument(metavar="SUBMISSION", min=1, help="Its number.")],
    reason: Reason,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Make a submission that waits urgent, for one of your credits. Exit code 1: you have none left.

    evenkeel lab urgent 42 --reason "customer is down"
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        use = lab.post(f"/submissions/{number}/urgent", {"reason": reason})
    tell(use, f"submission {number}: {_WORDS[use['outcome']]}", as_json)
    if use["outcome"] == "beyond":
        raise typer.Exit(1)


_WORDS = {
    "spent": "urgent",
    "beyond": "no credit left: treated as any other",
    "refunded": "given back: cancelled before it began",
}
