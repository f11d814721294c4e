"""A placement as a section of a page, and as a page of its own: the picture, what moves, who has no place.

Pure: the same FleetPlan gives the same bytes.  Judges nothing, and draws nothing itself (:mod:`evenkeel.report.fleet`).
"""

from __future__ import annotations

from evenkeel.documents.fleet import FleetPlan, Refusal, refused_alike
from evenkeel.documents.quantity import format_size
from evenkeel.report.fleet import fleet_picture, price_in_all, prices
from evenkeel.report.markup import Content, Markup, el, join
from evenkeel.report.page import package_file, whole_page

_HEAD = ("move", "guest", "from", "to", "copied", "")


def render_placement(plan: FleetPlan, *, title: str = "Evenkeel placement") -> str:
    """A page about a placement alone: HTML that needs nothing beside it."""
    body = join(
        el(
            "header",
            el("p", el("span", el("b", "Evenkeel")), el("span", plan.method), class_="brand"),
            el("h1", in_words(plan)),
            el("p", _worth(plan), class_="lead") if plan.bound else None,
        ),
        el("main", el("section", el("h2", "Placement"), placement_section(plan), id="placement"), id="content"),
    )
    return whole_page(f"{title}: {in_words(plan)}", body, made_from="a saved placement", script=package_file("page.js"))


def placement_section(plan: FleetPlan) -> Markup:
    """The picture, what moves and what that costs, and why guests are left out."""
    parts: list[Content] = []
    if plan.moves:
        parts.append(el("p", f"{_sentence(price_in_all(plan))} An arrow leads from the old host to the new one."))
    parts.append(el("div", fleet_picture(plan), class_="picture", tabindex=0, role="group", aria_label="Placement"))
    if plan.moves:
        parts += [el("h3", "Moves"), _moves(plan)]
    if plan.refused:
        parts.append(el("h3", "Without a place"))
        parts += [_refusal(alike) for alike in refused_alike(plan.refused)]
    return join(*parts)


def in_words(plan: FleetPlan) -> str:
    """``"8 of 9 guests on 3 of 4 hosts"``."""
    used = len({seat.host for seat in plan.seats})
    return f"{len(plan.seats)} of {len(plan.guests)} guests on {used} of {len(plan.hosts)} hosts"


def _worth(plan: FleetPlan) -> str:
    share = 100 * plan.value / plan.bound if plan.bound else 0.0
    text = f"Worth {plan.value} of at most {plan.bound:.0f} ({share:.2f} %)."
    return f"{text} Any one host may fail." if plan.standby else text


def _moves(plan: FleetPlan) -> Markup:
    rows = []
    for price in prices(plan):
        move = price.move
        copied = format_size(move.memory_bytes) if move.memory_bytes else "nothing"
        cells = [
            el("th", price.number, scope="row"),
            _cell("guest", move.name),
            _cell("from", move.from_host),
            _cell("to", move.to_host if move.to_host != move.from_host else price.places),
            _cell("copied", copied, number=True),
            _cell("", "pinned anew" if move.repin else ""),
        ]
        rows.append(el("tr", *cells))
    head = el("thead", el("tr", *(el("th", name, scope="col", class_="num" * (name == "copied")) for name in _HEAD)))
    return el("div", el("table", head, el("tbody", *rows), class_="cards"), class_="scroll")


def _cell(label: str, content: str, number: bool = False) -> Markup:
    return el("td", content, data_label=label or None, class_="num" if number else None)


def _refusal(alike: list[Refusal]) -> Markup:
    one = alike[0]
    names = ", ".join(other.name for other in alike[:12]) + (f" and {len(alike) - 12} more" if len(alike) > 12 else "")
    cuts = el(
        "ul",
        *(
            el("li", f"{cut.reason}: {cut.hosts} host{'s' * (cut.hosts != 1)} without it, such as {cut.example}")
            for cut in one.cuts
        ),
    )
    return el(
        "div",
        el("p", el("b", names), *(join(el("br"), _sentence(reason)) for reason in one.reasons)),
        cuts if one.cuts else None,
        join(el("p", "What would help:"), el("ul", *(el("li", cure) for cure in one.cures))) if one.cures else None,
        class_="note",
    )


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."
