"""The picture of a placement: well formed, the same for the same plan, every name escaped, moves as arrows."""

from __future__ import annotations

from xml.etree import ElementTree as ET

from bench import fleets

from evenkeel.documents.fleet import FleetPlan
from evenkeel.plan.fleet.moves import place_anew
from evenkeel.plan.fleet.site import place_all
from evenkeel.report.fleet import fleet_svg
from tests.plan.fleet.test_moves import board, isolated, seated

SVG = "{http://www.w3.org/2000/svg}"


def drawn(plan: FleetPlan) -> ET.Element:
    text = fleet_svg(plan)
    assert text == fleet_svg(FleetPlan.model_validate_json(plan.model_dump_json()))
    for forbidden in ("<script", "javascript:", "url(http", "@import"):
        assert forbidden not in text
    return ET.fromstring(text)


def test_every_core_is_there_with_its_guest() -> None:
    plan = place_all(board(list(fleets.fleet(2)), [isolated("a<b", 2), isolated("c", 3)]))
    image = drawn(plan)
    titles = [title.text or "" for title in image.iter(f"{SVG}title")]
    assert sum(title.startswith("CPU") for title in titles) == 2 * 2 * 64
    assert sum(title.endswith(": a<b") for title in titles) == 2
    assert sum("a<b keeps it empty" in title for title in titles) == 2
    assert sum("housekeeping" in title for title in titles) == 2 * 2 * 4


def test_owners_have_the_colours_where_there_are_any() -> None:
    guests = [isolated("a", 2, owner="one"), isolated("b", 2, owner="one"), isolated("c", 2)]
    texts = [text.text for text in drawn(place_all(board(list(fleets.fleet(2)), guests))).iter(f"{SVG}text")]
    assert texts[-2:] == ["no owner", "one"]


def test_moves_are_arrows() -> None:
    hosts = list(fleets.fleet(2))
    first = place_all(board(hosts, [isolated("a", 2), isolated("b", 3)]))
    left = first.seats[0].host
    empty = [host.model_copy(update={"drained": host.name == left}) for host in hosts]
    moved = place_anew(board(empty, seated(first)), 0)
    assert len(moved.moves) == sum(seat.host == left for seat in first.seats)
    image = drawn(moved)
    arrows = [path for path in image.iter(f"{SVG}path") if path.get("class") == "arrow"]
    assert len(arrows) == len(moved.moves)


def test_a_large_fleet_is_a_heat_map() -> None:
    hosts = list(fleets.fleet(70))
    image = drawn(place_all(board(hosts, list(fleets.demand(100, 1)))))
    assert not any((title.text or "").startswith("CPU") for title in image.iter(f"{SVG}title"))
    assert any("CPUs" in (title.text or "") for title in image.iter(f"{SVG}title"))
