"""`evenkeel capacity`: how many more guests of each kind a site takes, what runs out first, what each owner holds."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.plan.fleet.capacity import More


class By(StrEnum):
    DAY = "day"
    MONTH = "month"
    ALL = "all"


def register(app: typer.Typer) -> None:
    @app.command()
    def capacity(
        site: Annotated[
            str, typer.Argument(metavar="SITE", help="Site file, or a folder of them.", show_default=False)
        ],
        facts: Annotated[
            list[str] | None,
            typer.Option(
                "--facts",
                metavar="HOST=FILE",
                help="Use saved facts of a host instead of asking it; or a folder of HOST.facts.json.",
            ),
        ] = None,
        keep: Annotated[
            str | None, typer.Option("--keep", metavar="PLAN", help="Leave guests where this older plan has them.")
        ] = None,
        owners: Annotated[bool, typer.Option("--owners", help="Show what each owner holds instead.")] = False,
        since: Annotated[
            str | None,
            typer.Option(
                "--since",
                metavar="TIME",
                help="With --owners: what each held from then on, in hours, out of the history of apply: a date in UTC "
                "(2026-11-01), or how long ago (30d, 12h).",
            ),
        ] = None,
        until: Annotated[
            str | None, typer.Option("--until", metavar="TIME", help="Where that ends; now when left out.")
        ] = None,
        by: Annotated[By, typer.Option("--by", help="One line an owner for each day, for each month, or for all.")] = (
            By.ALL
        ),
        history: Annotated[
            str | None,
            typer.Option(
                "--history", metavar="FILE", help="That history; evenkeel-history.jsonl beside the site when left out."
            ),
        ] = None,
        seconds: Annotated[
            float, typer.Option("--time", metavar="SECONDS", min=0, help="How long to look, for each kind of guest.")
        ] = 30.0,
        as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
        as_csv: Annotated[bool, typer.Option("--csv", help="Print what owners hold as CSV.")] = False,
    ) -> None:
        """Say how many more guests of each kind fit beside those of the site, and what runs out first.

        evenkeel capacity site.yaml

        evenkeel capacity site.yaml --owners

        evenkeel capacity site.yaml --owners --since 2026-11-01 --by day --csv

        Each number is for that kind alone: the hosts are filled with copies of it until no more fits.
        """
        from time import monotonic

        from evenkeel.cli import accounts, files
        from evenkeel.cli import output as console
        from evenkeel.cli.place import board_of, solve
        from evenkeel.documents.plan import Plan
        from evenkeel.errors import WrongInput
        from evenkeel.plan.fleet.capacity import holdings, how_many_more
        from evenkeel.plan.fleet.site import sitting_of

        if as_csv and (as_json or not owners):
            raise WrongInput("--csv is for --owners, without --json", hint="evenkeel capacity SITE --owners --csv")
        past = since is not None or until is not None or history is not None or by is not By.ALL
        if past and not (owners and since):
            raise WrongInput(
                "--until, --by and --history are for --owners --since TIME, which reads the history of apply",
                hint="evenkeel capacity SITE --owners --since 30d",
            )
        wanted = files.load_site(site)
        if since:
            if facts or keep:
                raise WrongInput("--since reads the history alone", hint="leave --facts and --keep out")
            accounts.show(site, since, until, by.value, history, as_json=as_json, as_csv=as_csv)
            return
        kept = files.load_document(Plan, keep) if keep else None
        with files.placed_in(site):
            board = board_of(wanted, facts or (), kept, seconds)
            placed = solve(board)
        if owners:
            accounts.show_now(holdings(placed), as_json=as_json, as_csv=as_csv)
            return
        rooms, there = sitting_of(placed)
        with console.progress(f"filling {len(rooms)} hosts with each kind of guest"):
            found = how_many_more(rooms, board.requests, board.limits, there, monotonic)
        if as_json:
            console.emit_json([asdict(one) for one in found])
            return
        _print(found)
        if placed.refused:
            names = ", ".join(one.name for one in placed.refused[:5])
            console.warn(f"{len(placed.refused)} guests of the site itself have no place: {names}")


def _print(found: list[More]) -> None:
    from evenkeel.cli.output import out, table

    rows = [
        (
            one.like + (f" (and {one.guests - 1} alike)" if one.guests > 1 else ""),
            f"{one.count}" if one.exact else f"{one.count}" + (f" to {one.bound}" if one.bound else " or more"),
            "; ".join(f"{what} ({hosts} host{'s' * (hosts != 1)})" for what, hosts in one.short[:3]),
        )
        for one in found
    ]
    out().print(table(["a guest like", "more", "what hosts then lack"], rows, right=["more"]))
