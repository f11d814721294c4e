"""`evenkeel capacity`: how many more guests of each kind a site takes, what runs out first, what each owner holds."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer


def register(app: typer.Typer) -> None:
    @app.command()
    def capacity(
        site: Annotated[
            str, typer.Argument(metavar="SITE", help="Site file, or a folder of them.", show_default=False)
        ],
        facts: Annotated[
            list[str] | None,
            typer.Option("--facts", metavar="HOST=FILE", help="Use saved facts of a host instead of asking it."),
        ] = None,
        keep: Annotated[
            str | None, typer.Option("--keep", metavar="PLAN", help="Leave guests where this older plan has them.")
        ] = None,
        owners: Annotated[bool, typer.Option("--owners", help="Show what each owner holds instead.")] = False,
        seconds: Annotated[
            float, typer.Option("--time", metavar="SECONDS", help="How long to look, for each kind of guest.")
        ] = 30.0,
        as_json: Annotated[bool, typer.Option("--json", help="Print the numbers as JSON.")] = False,
    ) -> None:
        """Say how many more guests of each kind fit beside those of the site, and what runs out first.

        evenkeel capacity site.yaml

        evenkeel capacity site.yaml --owners

        Each number is for that kind alone: the hosts are filled with copies of it until no more fits.
        """
        from time import monotonic

        from evenkeel.cli import files
        from evenkeel.cli import output as console
        from evenkeel.cli.place import board_of, solve
        from evenkeel.documents.plan import Plan
        from evenkeel.plan.fleet.capacity import holdings, how_many_more
        from evenkeel.plan.fleet.site import sitting_of

        wanted = files.load_site(site)
        kept = files.load_document(Plan, keep) if keep else None
        with files.placed_in(site):
            board = board_of(wanted, facts or (), kept, seconds)
            placed = solve(board)
        if owners:
            rows = holdings(placed)
            if as_json:
                console.emit_json([asdict(row) for row in rows])
            else:
                _print_owners([asdict(row) for row in rows])
            return
        rooms, there = sitting_of(placed)
        with console.progress(f"filling {len(rooms)} hosts with each kind of guest"):
            found = how_many_more(rooms, board.requests, board.limits, there, monotonic)
        if as_json:
            console.emit_json([asdict(one) for one in found])
            return
        table = [
            (
                one.like + (f" (and {one.guests - 1} alike)" if one.guests > 1 else ""),
                f"{one.count}" if one.exact else f"{one.count}" + (f" to {one.bound}" if one.bound else " or more"),
                "; ".join(f"{what} ({hosts} host{'s' * (hosts != 1)})" for what, hosts in one.short[:3]),
            )
            for one in found
        ]
        console.out().print(console.table(["a guest like", "more", "what hosts then lack"], table, right=["more"]))
        if placed.refused:
            names = ", ".join(one.name for one in placed.refused[:5])
            console.warn(f"{len(placed.refused)} guests of the site itself have no place: {names}")


def _print_owners(rows: list[dict[str, int | str]]) -> None:
    from evenkeel.cli.output import out, table
    from evenkeel.documents.quantity import format_size

    columns = ["owner", "guests", "vCPUs", "whole cores", "CPUs", "nodes", "memory", "of it huge pages", "functions"]
    cells = [
        tuple(
            format_size(int(value)) if key in ("memory_bytes", "huge_bytes") else str(value)
            for key, value in row.items()
        )
        for row in rows
    ]
    out().print(table(columns, cells, right=columns[1:]))
