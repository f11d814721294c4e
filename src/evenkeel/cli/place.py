"""`evenkeel place`: the host, nodes, CPUs, pages and devices of a guest, or why none fits; and the checker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.documents.facts import Facts
    from evenkeel.documents.fleet import FleetPlan, GuestSeat, Refusal
    from evenkeel.documents.plan import Plan
    from evenkeel.documents.site import Site
    from evenkeel.plan.fleet.program import OnGap
    from evenkeel.plan.fleet.site import Board
    from evenkeel.plan.seats import Seats


MOST_NAMED = 6  # guests that are left out for the same reasons, by name


def register(app: typer.Typer) -> None:
    @app.command()
    def place(
        site: Annotated[str | None, typer.Argument(metavar="SITE", help="Site file, or a folder of them.")] = None,
        guest: Annotated[
            str | None, typer.Argument(metavar="GUEST", help="The guest in question; all of them when left out.")
        ] = None,
        output: Annotated[
            str | None,
            typer.Option("--output", "-o", metavar="FILE", help="Write the placement (FleetPlan) here (- is stdout)."),
        ] = None,
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
        moves: Annotated[
            int | None,
            typer.Option("--moves", metavar="NUMBER", min=0, help="Let so many guests move where that makes room."),
        ] = None,
        fewest: Annotated[bool, typer.Option("--fewest", help="Use as few hosts as can be.")] = False,
        seconds: Annotated[
            float, typer.Option("--time", metavar="SECONDS", min=0, help="How long to look for a better placement.")
        ] = 60.0,
        picture: Annotated[
            str | None,
            typer.Option("--picture", metavar="FILE", help="Draw hosts, nodes, cores and moves as SVG here."),
        ] = None,
        check: Annotated[
            str | None,
            typer.Option("--check", metavar="FILE", help="Check a saved placement (FleetPlan) instead; - is stdin."),
        ] = None,
        as_json: Annotated[bool, typer.Option("--json", help="Print the placement on stdout.")] = False,
    ) -> int:
        """Say on which host, nodes, CPUs and devices guests go, or why one fits nowhere. Changes nothing.

        evenkeel place site.yaml plc

        evenkeel place site.yaml -o placement.json --picture placement.svg

        evenkeel place site.yaml --keep plan.json --moves 10

        evenkeel place --check placement.json

        Exit code 1: a guest has no place, standby is wanted and was not found, or the placement that was checked does
        not hold.
        """
        from evenkeel.cli import files
        from evenkeel.cli import output as console
        from evenkeel.documents.plan import Plan
        from evenkeel.errors import WrongInput

        if check is not None:
            return _check(check, as_json)
        if site is None:
            raise WrongInput("a site is needed", hint="evenkeel place SITE [GUEST], or evenkeel place --check FILE")
        if guest is not None and (moves is not None or fewest):
            raise WrongInput(
                f"{'--fewest' if fewest else '--moves'} is for the whole site",
                hint=f"leave out {guest}: all guests that wait are placed",
            )
        if fewest and moves is not None:
            raise WrongInput("--fewest does not go with --moves", hint="take one of them")
        taken = console.takes_stdout({"-o": output, "--picture": picture}, json=as_json)
        wanted = files.load_site(site)
        if guest is not None:
            from evenkeel.plan.fleet.site import require_guest

            require_guest(guest, wanted.guests)  # before any host is asked
        if fewest and wanted.placing.standby:
            raise WrongInput("--fewest does not go with standby", hint="leave one of them out")
        kept = files.load_document(Plan, keep) if keep else None
        with files.placed_in(site):
            board = board_of(wanted, facts or (), kept, seconds)
            placed = solve(board, guest, moves, fewest=fewest)
        if output:
            files.save_document(output, placed)
        if picture:
            from evenkeel.report.fleet import fleet_svg

            files.save_text(picture, fleet_svg(placed))
        if as_json and not taken:
            console.emit_json(placed)
        elif not taken:
            print_placement(placed, guest)
        refused = [one for one in placed.refused if guest in (None, one.name)]
        return 1 if refused or (board.standby and not placed.standby and guest is None) else 0


def board_of(site: Site, facts: Iterable[str], keep: Plan | None, seconds: float) -> Board:
    """The fleet as it is now.  Raises WrongInput, Unreachable."""
    from evenkeel.cli.plan import gather_facts
    from evenkeel.plan.fleet import site as fleet

    known = gather_facts(site, facts)
    _warn_of_functions(site, known)
    return fleet.board_of(site, known, keep, time_limit_s=seconds)


def _warn_of_functions(site: Site, known: dict[str, Facts]) -> None:
    """A card that is gone is no reason not to place at all, and a name that is misspelt must be seen."""
    from evenkeel.cli import output
    from evenkeel.plan.passthrough import unknown_functions

    for host, wish in sorted(site.hosts.items()):
        for sentence in unknown_functions(host, wish, known[host]) if host in known else ():
            output.warn(sentence)


def solve(board: Board, guest: str | None = None, moves: int | None = None, *, fewest: bool = False) -> FleetPlan:
    """Place, with progress, and check what comes out.  Raises AssertionError when the checker finds a fault."""
    from time import monotonic

    from evenkeel.cli import output
    from evenkeel.placement_check import check_placement
    from evenkeel.plan.fleet.moves import place_anew
    from evenkeel.plan.fleet.site import place_all, place_on_fewest, place_one, without_standby
    from evenkeel.plan.fleet.standby import gaps_of, place_with_standby

    count, room = len(board.waiting), len(board.hosts)
    what = f"placing {count} guest{'s' * (count != 1)} on {room} host{'s' * (room != 1)}"
    with output.progress(what) as on_progress:

        def on_gap(spent: float, best: float | None, bound: float) -> None:
            if fewest:  # counted downwards
                most = f"at most {-best:.0f}" if best is not None else "?"
                on_progress(0, 0, f" {most} hosts, at least {-bound:.0f}")
                return
            share = 100.0 * best / bound if best is not None and bound > 0 else 0.0
            on_progress(int(share), 100, f" value {best or 0:.0f} of at most {bound:.0f}")

        on: OnGap = on_gap
        if fewest:
            placed = place_on_fewest(board, clock=monotonic, on_gap=on)
        elif moves is not None:
            placed = place_anew(board, moves, on_gap=on)
        elif guest is None and board.standby:
            placed = without_standby(board, place_with_standby(board, clock=monotonic, on_gap=on))
        elif guest is None:
            placed = place_all(board, clock=monotonic, on_gap=on)
        else:
            placed = place_one(board, guest, clock=monotonic, on_gap=on)
    if board.standby and not placed.standby:
        for gap in gaps_of(placed):
            output.warn(f"no standby found: {gap}")
    broken = check_placement(placed.model_dump(mode="json"))
    assert not broken, f"a placement that does not hold: {'; '.join(broken[:5])}"
    return placed


def settle_hosts(site: Site, known: dict[str, Facts], keep: Plan | None) -> tuple[Site, dict[str, Seats] | None]:
    """For the verbs that plan: the site with a host for every guest, and seats.

    Unchanged where each names its own and wishes nothing that only placing knows.  Raises WrongInput when a guest fits
    nowhere.
    """
    from evenkeel.documents.site import PlaceWish

    named = len(site.hosts) < 2 or all(wish.host for wish in site.guests.values())
    if named and all(wish.place == PlaceWish(owner=wish.place.owner) for wish in site.guests.values()):
        return site, None
    from evenkeel.plan.fleet import site as fleet

    _warn_of_functions(site, known)
    placed = solve(fleet.board_of(site, known, keep))
    return fleet.chosen_hosts(site, placed), fleet.seats_for_planner(placed)


def _check(file: str, as_json: bool) -> int:
    """Exit code 0: it holds; 1: it does not."""
    import json

    from evenkeel.cli import files, output
    from evenkeel.documents.fleet import FleetPlan
    from evenkeel.placement_check import check_placement

    text = files.read_text(file)
    plan = FleetPlan.from_json(text, file=file)
    found = check_placement(json.loads(text))
    if as_json:
        output.emit_json({"violations": found, "guests": len(plan.seats), "hosts": len(plan.hosts)})
    else:
        for sentence in found:
            output.out().print(sentence, soft_wrap=True)
        used = len({seat.host for seat in plan.seats})
        what = f"{len(plan.seats)} guest{'s' * (len(plan.seats) != 1)} on {used} of {len(plan.hosts)} hosts"
        output.out().print(f"{len(found)} violations; {what}" if found else f"holds: {what}", style="bold")
    return 1 if found else 0


# -- printing ---------------------------------------------------------------------------------------------------------


def print_placement(plan: FleetPlan, guest: str | None = None) -> None:
    """For a person: who goes where; then who does not, and why; then moves, and how good it is."""
    from evenkeel.cli.output import out, table
    from evenkeel.documents.fleet import refused_alike
    from evenkeel.documents.quantity import format_size

    console = out()
    seats = [seat for seat in plan.seats if guest in (None, seat.name)]
    if seats:
        columns = ["guest", "host", "node: CPUs", "memory in pages of", "emulator", "functions"]
        console.print(table(columns, [_row(seat) for seat in seats]))
    for alike in refused_alike(one for one in plan.refused if guest in (None, one.name)):
        _print_refusal(alike, len(plan.hosts))
    for move in plan.moves:
        what = "is pinned anew on" if move.repin else f"moves from {move.from_host} to"
        size = f", {format_size(move.memory_bytes)} to copy" if move.memory_bytes else ""
        console.print(f"move: {move.name} {what} {move.to_host}{size}")
    console.print()
    if guest is None:
        count = len(plan.guests)
        text = f"{len(plan.seats)} of {count} guest{'s' * (count != 1)} placed"
        if plan.bound is not None and plan.bound > 0:
            text += f", worth {plan.value} of at most {plan.bound:.0f} ({100 * plan.value / plan.bound:.2f} %)"
        if plan.standby:
            text += ", any one host may fail"
        console.print(f"{text}; {plan.method}", style="bold", soft_wrap=True)


def _row(seat: GuestSeat) -> tuple[str, ...]:
    from evenkeel.documents.cpuset import format_cpus
    from evenkeel.documents.quantity import format_size

    parts = [f"{node}: {format_cpus(cpus)}" for node, cpus in zip(seat.nodes, seat.cpus, strict=False)]
    if not parts:
        parts = [f"floats on node {node}" for node in seat.nodes] or ["floats"]
    idle = f" (empty: {format_cpus(seat.idle)})" if seat.idle else ""
    page = format_size(seat.page_bytes) if seat.page_bytes else "ordinary"
    return seat.name, seat.host, "; ".join(parts) + idle, page, format_cpus(seat.emulator), " ".join(seat.functions)


def _print_refusal(alike: Sequence[Refusal], hosts: int) -> None:
    """Guests that are left out for the same reasons."""
    from evenkeel.cli.output import out, table

    console, one = out(), alike[0]
    names = ", ".join(other.name for other in alike[:MOST_NAMED])
    names += f" and {len(alike) - MOST_NAMED} more" if len(alike) > MOST_NAMED else ""
    if hosts == 1:
        what = f"do{'es' * (len(alike) == 1)} not fit on the only host"
    else:
        what = f"fit{'s' * (len(alike) == 1)} on none of {hosts} hosts"
    console.print(f"\n{names} {what}{', each by itself' * (len(alike) > 1)}:", style="bold", soft_wrap=True)
    for reason in one.reasons:
        console.print(f"  {reason}", soft_wrap=True)
    if one.cuts:
        rows = [(cut.reason, str(cut.hosts), cut.example) for cut in one.cuts]
        console.print(table(["what it asks for", "hosts without it", "such as"], rows, right=["hosts without it"]))
    if one.cures:
        console.print("what would help:")
    for cure in one.cures:
        console.print(f"  {cure}", soft_wrap=True)
