"""The picture of a placement: well formed, the same for the same plan, every name escaped, moves as arrows."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from bench import fleets

from evenkeel.cli import main
from evenkeel.documents.fleet import FleetHost, FleetPlan, Move, Request
from evenkeel.plan import make_plan
from evenkeel.plan.fleet.moves import place_anew
from evenkeel.plan.fleet.site import place_all
from evenkeel.report.fleet import WIDTH, fleet_svg, price_in_all, prices
from evenkeel.report.placement import render_placement
from tests.plan.factories import make_facts, make_site
from tests.plan.fleet.test_moves import board, isolated, seated
from tests.report.test_page import CHROMIUM, browse

SVG = "{http://www.w3.org/2000/svg}"


def drawn(plan: FleetPlan) -> ET.Element:
    text = fleet_svg(plan)
    assert text == fleet_svg(FleetPlan.model_validate_json(plan.model_dump_json()))
    for forbidden in ("<script", "javascript:", "url(", "@import"):
        assert forbidden not in text
    image = ET.fromstring(text)
    inside(image)
    return image


def inside(image: ET.Element) -> None:
    """Nothing is drawn outside of the frame."""
    _, _, width, height = map(float, image.attrib["viewBox"].split())
    assert width == WIDTH
    for element in image.iter():
        x, y = float(element.get("x", 0)), float(element.get("y", 0))
        assert x >= 0 and x + float(element.get("width", 0)) <= width + 0.11, element.attrib
        assert y >= 0 and y + (float(element.get("height", 0)) if element is not image else 0) <= height, element.attrib
        for number in re.findall(r"[MC ](-?[\d.]+) (-?[\d.]+)", element.get("d", "").partition("l")[0]):
            assert 0 <= float(number[0]) <= width and 0 <= float(number[1]) <= height


def words(image: ET.Element, kind: str = "text") -> list[str]:
    return ["".join(text.itertext()) for text in image.iter(f"{SVG}{kind}")]


def replanned(hosts: list[FleetHost], guests: list[Request], drained: set[str], moves: int = 0) -> FleetPlan:
    """Placed, and placed again with these hosts emptied."""
    first = place_all(board(hosts, guests))
    left = [host.model_copy(update={"drained": host.name in drained}) for host in hosts]
    return place_anew(board(left, seated(first)), moves)


def test_every_core_is_there_with_its_guest() -> None:
    plan = place_all(board(list(fleets.fleet(2)), [isolated("a<b", 2), isolated("c", 3)]))
    titles = words(drawn(plan), "title")
    assert sum(title.startswith("CPU") for title in titles) == 2 * 2 * 64
    assert sum(title.endswith(": a<b") for title in titles) == 2
    assert sum("a<b keeps it empty" in title for title in titles) == 2
    assert sum("housekeeping" in title for title in titles) == 2 * 2 * 4


def test_owners_have_the_colours_where_there_are_any() -> None:
    guests = [isolated("a", 2, owner="one"), isolated("b", 2, owner="one"), isolated("c", 2)]
    texts = words(drawn(place_all(board(list(fleets.fleet(2)), guests))))
    assert texts[-6:] == ["no owner", "one", "housekeeping", "others", "free, or shared", "memory in use"]


def test_before_and_after_with_an_arrow_for_each_way() -> None:
    plan = replanned(list(fleets.fleet(4)), list(fleets.demand(30, 1)), {"h00001"})
    assert len(plan.moves) > 3
    image = drawn(plan)
    arrows = [path for path in image.iter(f"{SVG}path") if (path.get("class") or "").startswith("arrow")]
    ways = {(move.from_host, move.to_host) for move in plan.moves}
    assert len(arrows) == len(ways) < len(plan.moves)
    texts = words(image)
    assert any(text.startswith("before: 30 guests on") for text in texts)
    assert any(text.startswith("after: 30 guests on") for text in texts)
    # Each move has its line with its price, and its number is on an arrow.
    labels = [
        text for element in image.iter(f"{SVG}text") if element.get("class") == "number" and (text := element.text)
    ]
    numbers = {
        n
        for one in labels
        for first, _, last in [one.partition("-")]
        for n in range(int(first), int(last or first) + 1)
    }
    assert numbers == set(range(1, len(plan.moves) + 1))
    for price in prices(plan):
        assert any(text.startswith(f"{price.number}  {price.move.name}: h00001 to ") for text in texts)
        assert price.what == f"{price.move.memory_bytes >> 30}GiB copied"
    size = sum(move.memory_bytes for move in plan.moves) >> 30
    assert texts[0] == f"Before and after: {len(plan.moves)} guests move to another host, {size}GiB copied in all"
    # A core that the guest leaves is its before and not after, and the other way round.
    titles = words(image, "title")
    name = plan.moves[0].name
    assert sum(title.endswith(f": {name}") for title in titles if title.startswith("CPU")) >= 2


def test_a_guest_that_is_pinned_anew_has_an_arrow_to_its_own_host() -> None:
    first = place_all(board([fleets.host(0)], [isolated("a", 2, 4)]))
    (seat,) = first.seats
    (now,) = seated(first)
    other = 1 - seat.nodes[0]
    moved = seat.model_copy(update={"nodes": (other,), "cpus": ((60 if other else 2, 62 if other else 4),)})
    for what, after in (
        ("pinned anew, nothing copied", {"cpus": (tuple(cpu + 4 for cpu in seat.cpus[0]),)}),
        ("pinned anew, 4GiB copied", {"nodes": moved.nodes, "cpus": moved.cpus}),
    ):
        copied = 4 << 30 if "4GiB" in what else 0
        plan = first.model_copy(
            update={
                "guests": (now,),
                "seats": (seat.model_copy(update=after),),
                "moves": (Move(name="a", from_host=seat.host, to_host=seat.host, memory_bytes=copied, repin=True),),
            }
        )
        assert [price.what for price in prices(plan)] == [what]
        assert price_in_all(plan).startswith("0 guests move to another host, 1 pinned anew")
        (arrow,) = (path for path in drawn(plan).iter(f"{SVG}path") if "again" in (path.get("class") or ""))
        assert arrow.get("d")


def test_who_lost_a_place_is_said() -> None:
    hosts = [fleets.host(index, cores=8) for index in range(2)]
    plan = replanned(hosts, [isolated(name, 6) for name in "abcd"], {hosts[0].name})
    lost = [one.name for one in plan.refused]
    assert lost
    assert f"{len(lost)} that had a place" in price_in_all(plan)


def test_a_large_fleet_is_a_heat_map() -> None:
    hosts = list(fleets.fleet(70))
    image = drawn(place_all(board(hosts, list(fleets.demand(100, 1)))))
    titles = words(image, "title")
    assert not any(title.startswith("CPU") for title in titles)
    assert any(re.fullmatch(r"h\d+ node \d: \S+ has \d+ of \d+ CPUs", title) for title in titles)
    assert any("functions" in title for title in titles)


def test_of_a_very_large_fleet_only_hosts_with_moves_are_drawn() -> None:
    hosts = list(fleets.fleet(210))
    plan = replanned(hosts, list(fleets.demand(60, 1)), {"h00000"})
    assert plan.moves
    touched = {name for move in plan.moves for name in (move.from_host, move.to_host)}
    texts = words(drawn(plan))
    assert f"{210 - len(touched)} hosts on which nothing moves are not drawn" in texts


# -- the page ---------------------------------------------------------------------------------------------------------

SEEN = """<!DOCTYPE html><meta charset="utf-8"><title>wrapper</title>
%s
<pre id="seen"></pre>
<script>
addEventListener("load", () => {
  document.getElementById("seen").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement;
    const svg = page.querySelector("svg.fleet"), text = svg.querySelector("text.small, text");
    return {width: root.clientWidth, scrollWidth: root.scrollWidth, letters: text.getBoundingClientRect().height,
      arrows: svg.querySelectorAll("path.arrow").length, rows: page.querySelectorAll("table.cards tbody tr").length,
      wide: [...page.body.querySelectorAll("*")].filter((e) => e.getBoundingClientRect().right > root.clientWidth + 1
        && !e.closest(".scroll,.picture,pre,.skip,thead")).map((e) => e.outerHTML.slice(0, 120)).slice(0, 5)};
  }));
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)")
def test_the_page_in_a_browser(tmp_path: Path) -> None:
    plan = replanned(list(fleets.fleet(8)), list(fleets.demand(60, 1)), {"h00002"})
    seen = browse(render_placement(plan), tmp_path, wrapper_page=SEEN)
    assert seen.console == [] and not {one for one in seen.requests if one.startswith("http")}
    assert set(seen.frames) == {1280, 375}
    for frame in seen.frames.values():
        assert frame["scrollWidth"] <= frame["width"] and frame["wide"] == []
        assert frame["letters"] >= 10, "the picture is not shrunk until nobody can read it"
        assert frame["arrows"] > 0 and frame["rows"] == len(plan.moves)


def test_the_page_says_why_guests_are_left_out() -> None:
    plan = place_all(board([fleets.host(0, cores=4)], [isolated(f"g{n}", 6, networks=("<b>",)) for n in range(14)]))
    page = render_placement(plan)
    assert "Without a place" in page and "and 2 more" in page
    assert "&lt;b&gt;" in page and "<b>&lt;" not in page.replace("<b>g", "") and "network <b>" not in page
    assert "<h3>Moves</h3>" not in page


def test_report_takes_a_placement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    plan = replanned(list(fleets.fleet(3)), list(fleets.demand(20, 1)), {"h00000"})
    Path("placement.json").write_text(plan.to_json())
    assert main(["report", "placement.json", "-o", "page.html"]) == 0
    assert "svg class=" in Path("page.html").read_text() or 'class="fleet"' in Path("page.html").read_text()
    capsys.readouterr()
    # Beside a plan it is the first section of the page about that plan; two of them are one too many.
    Path("plan.json").write_text(make_plan(make_site(), {"cell": make_facts(cores=5)}).to_json())
    assert main(["report", ".", "-o", "both.html"]) == 0
    page = Path("both.html").read_text()
    assert page.index('id="placement"') < page.index('id="guests"')
    capsys.readouterr()
    assert main(["report", "plan.json", "placement.json", "placement.json"]) == 2
    assert "several placements" in capsys.readouterr().err
