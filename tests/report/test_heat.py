"""Heat maps: every sample is under a cell of its colour; the picture is small, in its frame, and told in words."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evenkeel.documents.course import MOST, Course, Slice
from evenkeel.report.chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from evenkeel.report.heat import LEVELS, Panel, extent, heat_figure, heat_picture, heat_svg, in_words, level
from tests.report import factories
from tests.report.frame import inside
from tests.report.test_html import contrast
from tests.report.test_page import CHROMIUM, browse

S, MS, US = 1_000_000_000, 1_000_000, 1000
SVG = "{http://www.w3.org/2000/svg}"
_RECTANGLE = re.compile(r"M([\d.]+) ([\d.]+)h([\d.]+)v([\d.]+)H([\d.]+)z")


def drawn(picture: str) -> ET.Element:
    return ET.fromstring(picture)


def cells(root: ET.Element) -> list[tuple[int, float, float, float, float]]:
    """(colour, left, right, top, bottom) of each rectangle."""
    found = []
    for path in root.iter(f"{SVG}path"):
        text = path.get("d", "")
        parts = _RECTANGLE.findall(text)
        assert "".join(f"M{a} {b}h{c}v{d}H{e}z" for a, b, c, d, e in parts) == text
        for left, top, width, height, again in parts:
            assert left == again
            colour = int(path.get("class", "").removeprefix("h"))
            found.append((colour, float(left), float(left) + float(width), float(top), float(top) + float(height)))
    return found


def svg(course: Course, **more: Any) -> ET.Element:
    return drawn(heat_svg(course, title="x", standalone=True, **more))


def test_one_late_sample_is_where_and_when_it_was() -> None:
    course = Course.of([(n * MS, 50 * US) for n in range(10_000)] + [(7_500 * MS, 3 * MS)], length_ns=10 * S)
    root = svg(course)
    (late,) = (cell for cell in cells(root) if cell[0] == 0)
    middle = LEFT + 0.75 * (WIDTH - LEFT - RIGHT)
    assert late[1] - 0.1 <= middle <= late[2] + 0.1 and late[2] - late[1] < 6
    assert all(late[4] <= top + 0.11 for colour, _, _, top, _ in cells(root) if colour), "later is higher"


@settings(deadline=None, max_examples=60)  # a busy machine is not a defect
@given(st.lists(st.tuples(st.integers(0, 60 * S), st.integers(0, 5 * S)), max_size=80))
def test_every_sample_is_under_a_cell_and_no_two_cells_overlap(samples: list[tuple[int, int]]) -> None:
    course = Course.of(samples, length_ns=60 * S)
    root = svg(course, goal_ns=100 * US)
    found = cells(root)
    width = (WIDTH - LEFT - RIGHT) / len(course.slices)
    for number, one in enumerate(course.slices):
        centre = LEFT + (number + 0.5) * width
        column = sorted((top, bottom) for _, left, right, top, bottom in found if left < centre < right)
        assert bool(column) == bool(one.samples)
        for (_, above), (below, _) in pairwise(column):
            assert above <= below + 0.11
    inside(root)
    for _, left, right, top, bottom in found:
        assert LEFT <= left < right <= WIDTH - RIGHT + 0.11 and TOP <= top <= bottom <= HEIGHT - BOTTOM + 0.11


def test_colours_are_steps_of_ten() -> None:
    assert [level(n) for n in (1, 2, 9, 10, 99, 100, 999, 1000, 9999, 10_000, 10**9)] == [
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
        4,
        5,
        5,
    ]
    assert LEVELS == 6
    texts = [text.text for text in svg(Course.of([(0, US)] * 150, length_ns=S)).iter(f"{SVG}text")]
    assert {"1", "2+", "10+", "100+"} <= set(texts) and "1,000+" not in texts


def test_a_full_picture_is_small() -> None:
    counts = {low: 1 + (low * 7919) % 1500 for low in (8 << n for n in range(14))}
    noisy = tuple(
        Slice(max_ns=70_000, counts={low: 1 + (count * (n + 3)) % 1500 for low, count in counts.items()})
        for n in range(MOST)
    )
    assert len(heat_figure(Course(slice_ns=S, slices=noisy), title="x").encode()) < 60_000
    run = factories.run().hosts["plc"].evidence_after
    assert run and run.latencies[0].course
    assert len(heat_figure(run.latencies[0].course, title="x").encode()) < 20_000


def test_it_is_told_in_words() -> None:
    course = Course.of([(n * MS, 50 * US) for n in range(10_000)] + [(7_500 * MS, 3 * MS)], length_ns=10 * S)
    assert in_words(course, 100 * US) == (
        "10,001 samples in 80 slices of 125 ms; the largest, 3 ms, 7.5 s after the begin; "
        "deadline 100 µs, with later samples in 1 of the slices"
    )
    assert in_words(Course.of([], length_ns=S)) == "no samples"
    assert "slices of 125 ms" in (svg(course).get("aria-label") or "")


def test_before_and_after_are_on_one_scale() -> None:
    small, large = Course.of([(0, 10 * US)], length_ns=S), Course.of([(0, 10 * MS)], length_ns=S)
    within = extent([small, large], 100 * US)
    assert within[0] <= 10 * US and within[1] >= 10 * MS
    (low,), (high,) = cells(svg(small, within=within)), cells(svg(large, within=within))
    assert low[3] > high[4] + 100


def test_a_picture_of_its_own_holds_all_places_and_the_note() -> None:
    course = Course.of([(0, 10 * US)], length_ns=S)
    picture = heat_picture(
        [Panel("CPU 3, <cyclictest>", course), Panel("guest plc", course, 100 * US)], note="emulated!"
    )
    root = drawn(picture)
    texts = [text.text for text in root.iter(f"{SVG}text")]
    assert "CPU 3, <cyclictest>" in texts and "guest plc" in texts and "emulated!" in texts
    assert "deadline 100 µs" in texts and len(cells(root)) == 2
    assert not re.search(r"(?:src|href)=|url\(|@import", picture)


@pytest.mark.parametrize(("scheme", "ground"), [(0, "#ffffff"), (1, "#14171c")], ids=["light", "dark"])
def test_colours_differ_from_their_ground_and_from_each_other(scheme: int, ground: str) -> None:
    style = (Path(__file__).parents[2] / "src" / "evenkeel" / "report" / "chart.css").read_text()
    blocks = re.findall(r"--h0:#[^}]*", style)
    colours = re.findall(r"--h\d:(#[0-9a-f]{6})", blocks[scheme])
    assert len(colours) == LEVELS
    grounds = [contrast(colour, ground) for colour in colours]
    assert grounds[0] >= 3, "a single late sample must be seen"
    assert all(after >= 1.3 * before for before, after in pairwise(grounds))


SLIDING = """<!DOCTYPE html><meta charset="utf-8"><title>wrapper</title>
%s
<pre id="seen"></pre>
<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, heat = page.querySelector(".heat"), slider = heat.querySelector("input");
    const to = (value) => { slider.value = value; slider.dispatchEvent(new Event("input"));
      return heat.querySelector("output").textContent; };
    const box = heat.getBoundingClientRect();
    return {width: page.documentElement.clientWidth, hidden: heat.querySelector("div").hidden, first: to(0),
      late: to(60), cursor: heat.querySelector(".cursor").getAttribute("x1"), right: box.right,
      value: slider.getAttribute("aria-valuetext"), named: slider.getAttribute("aria-label"),
      focus: (slider.focus(), page.activeElement === slider)};
  });
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)")
def test_in_a_browser_a_slider_says_each_slice(tmp_path: Path) -> None:
    from evenkeel.report.timeline import render_explanation
    from tests.report.test_timeline import explanation

    course = Course.of([(n * MS, 50 * US) for n in range(10_000)] + [(7_500 * MS, 3 * MS)], length_ns=10 * S)
    seen = browse(render_explanation(explanation(courses={1: course})), tmp_path, wrapper_page=SLIDING)
    assert seen.console == [] and seen.requests == set()
    for width, frame in seen.frames.items():
        assert frame["hidden"] is False and frame["right"] <= width and frame["focus"] is True
        assert frame["first"] == "0 s to 0.125 s: 125 samples, the largest 50 µs"
        assert frame["late"] == frame["value"] == "7.5 s to 7.625 s: 126 samples, the largest 3 ms"
        assert abs(float(frame["cursor"]) - (LEFT + 60.5 / 80 * (WIDTH - LEFT - RIGHT))) < 0.1
        assert frame["named"] == "vCPU 1, over time: slice of time"
