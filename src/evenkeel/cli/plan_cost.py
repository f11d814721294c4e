"""How `evenkeel plan --what-you-give-up` looks: a table for the host and one for each guest.  Printing only."""

from __future__ import annotations

from collections.abc import Iterable

from evenkeel.cli.output import out, table
from evenkeel.documents.cost import Cost, CostItem
from evenkeel.plan.levels import rules_of
from evenkeel.plan.rules import CATALOGUE

_ORDER = {"given up": 0, "limited": 1, "kept": 2}


def print_cost(cost: Cost) -> None:
    """The worst first."""
    console = out()
    for index, host in enumerate(cost.hosts):
        if index:
            console.print()
        console.print(f"Host {host.name}", style="bold")
        _print(host.items)
        for guest in host.guests:
            console.print()
            brings = f"{len(rules_of(guest.goal, CATALOGUE))} rules: evenkeel rules --level {guest.goal}"
            level = f"{guest.goal}{', strict' if guest.strict else ''}"
            console.print(f"Guest {guest.name}: {level} ({brings})", style="bold")
            _print(guest.items)
        console.print()
        parts = [f"the host {_lost(host.items)}", *(f"{guest.name} {_lost(guest.items)}" for guest in host.guests)]
        console.print(f"{host.name}: given up by {', by '.join(parts)}", style="bold")


def _lost(items: Iterable[CostItem]) -> int:
    return sum(item.state == "given up" for item in items)


def _print(items: Iterable[CostItem]) -> None:
    rows = [
        (item.state, item.what, item.amount, item.because + (f"; instead: {item.instead}" if item.instead else ""))
        for item in sorted(items, key=lambda item: _ORDER[item.state])
    ]
    out().print(table(["", "what", "how much", "why"], rows))
