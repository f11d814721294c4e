"""The flame graph page: what it says, how large it is, and in a real browser search, zoom and keyboard."""

from __future__ import annotations

import base64
import json
import random
import re
import zlib
from pathlib import Path

import pytest

from evenkeel.documents.answer import Answer, Question, Stack
from evenkeel.documents.evidence import Conditions
from evenkeel.report.flame import flame_page, tree
from tests.report.test_html import contrast
from tests.report.test_page import CHROMIUM, browse

STACKS = (
    Stack(frames=("server", "main", "parse", "memcpy"), count=30),
    Stack(frames=("server", "main", "parse"), count=20),
    Stack(frames=("server", "main", "write", "sys_write_[k]"), count=40),
    Stack(frames=("other",), count=10),
)


def answer(stacks: tuple[Stack, ...], lost: int = 0) -> Answer:
    return Answer(
        host="cell",
        question=Question(kind="profile"),
        source="sampling",
        mechanism=("BPF on the CPU clock of perf",),
        events=sum(one.count for one in stacks),
        lost=lost,
        seconds=5.0,
        stacks=stacks,
        conditions=Conditions(kernel="6.12.0-rt #1", preempt_rt=True, command_line="quiet"),
    )


def many(number: int) -> tuple[Stack, ...]:
    """Stacks as a busy server has them: deep, with shared beginnings, names of C++ length."""
    dice = random.Random(7)
    names = [
        f"evenkeel::{dice.choice(('net', 'store', 'plan'))}::Worker{n}::run_{dice.randrange(1000)}" for n in range(3000)
    ]
    found: dict[tuple[str, ...], int] = {}
    while len(found) < number:
        frames = ["server"]
        place = 0
        for _ in range(dice.randrange(8, 40)):
            place = (place * 31 + dice.randrange(1 if dice.random() < 0.6 else 4) + 1) % len(names)
            frames.append(names[place])
        found[tuple(frames)] = dice.randrange(1, 50)
    return tuple(Stack(frames=frames, count=count) for frames, count in sorted(found.items()))


def shown(page: str) -> list[tuple[int, str, int]]:
    """(level, name, count) of every box in the page."""
    match = re.search(r'id="data">([^<]*)<', page)
    assert match
    names, flat = json.loads(zlib.decompress(base64.b64decode(match[1])))
    return [(flat[i], names[flat[i + 1]], flat[i + 2]) for i in range(0, len(flat), 3)]


def test_stacks_become_a_tree_that_keeps_every_sample() -> None:
    assert shown(flame_page(answer(STACKS))) == [
        (0, "all", 100),
        (1, "other", 10),
        (1, "server", 90),
        (2, "main", 90),
        (3, "parse", 50),
        (4, "memcpy", 30),
        (3, "write", 40),
        (4, "sys_write_[k]", 40),
    ]


def test_ten_thousand_stacks_are_less_than_a_hundred_kilobytes() -> None:
    stacks = many(10_000)
    page = flame_page(answer(stacks))
    assert len(page.encode()) < 100_000
    boxes = shown(page)
    assert boxes[0] == (0, "all", sum(one.count for one in stacks)), "what is left out still counts above it"
    left_out = re.search(r"fewer than ([\d,]+) samples is left out", page)
    if left_out:
        assert min(count for _, _, count in boxes) >= int(left_out[1].replace(",", ""))
    else:
        waiting, nodes = [tree(stacks)], 0
        while waiting:
            node = waiting.pop()
            nodes += 1
            waiting += node.children.values()
        assert len(boxes) == nodes


def test_the_same_answer_gives_the_same_bytes() -> None:
    assert flame_page(answer(STACKS)) == flame_page(answer(tuple(reversed(STACKS))))


def test_lost_samples_are_on_the_page() -> None:
    assert "7 samples were lost" in flame_page(answer(STACKS, lost=7))
    assert "samples were lost" not in flame_page(answer(STACKS))


def test_no_samples_make_a_page_that_says_so() -> None:
    assert "0 in 5.0 s" in flame_page(answer(()))


WRAPPER = """<!DOCTYPE html><meta charset="utf-8"><title>wrapper</title>
%s
<pre id="seen"></pre>
<script>
const use = (frame) => {
  const page = frame.contentDocument, root = page.documentElement, flame = page.getElementById("flame");
  const press = (key) => flame.dispatchEvent(new frame.contentWindow.KeyboardEvent("keydown", {key, bubbles: true}));
  const told = () => page.getElementById("told").textContent;
  const boxes = () => flame.querySelectorAll("[role=treeitem]").length;
  const found = {width: root.clientWidth, scrollWidth: root.scrollWidth, boxes: boxes(), steps: []};
  for (const key of ["ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowLeft", "ArrowUp"]) {
    press(key); found.steps.push(told().split(":")[0]);
  }
  press("ArrowDown"); press("Enter");
  found.zoomed = boxes(); found.zoom = told();
  const colours = () => [...flame.querySelectorAll("[role=treeitem]")].map((box) => {
    const style = frame.contentWindow.getComputedStyle(box);
    return [box.getAttribute("aria-label"), style.color, style.backgroundColor, style.opacity];
  });
  found.colours = colours();
  press("Escape"); press("Home");
  found.out = boxes();
  const box = page.getElementById("search");
  box.value = "PARSE"; box.dispatchEvent(new Event("input"));
  found.colours.push(...colours());
  found.matches = flame.querySelectorAll(".m").length; found.found = page.getElementById("found").textContent;
  box.value = ""; box.dispatchEvent(new Event("input"));
  flame.querySelector("[aria-label^=parse]").click();
  found.clicked = told();
  found.ground = frame.contentWindow.getComputedStyle(page.body).backgroundColor;
  return found;
};
const wait = setInterval(() => {
  const frames = [...document.querySelectorAll("iframe")];
  if (!frames.every((frame) => frame.contentDocument?.getElementById("flame")?.dataset.ready)) return;
  clearInterval(wait);
  document.getElementById("seen").textContent = JSON.stringify(frames.map(use));
}, 20);
</script>"""


def hexadecimal(colour: str) -> str:
    """``#1b1f27`` of ``rgb(27, 31, 39)``."""
    numbers = re.fullmatch(r"rgb\((\d+), (\d+), (\d+)\)", colour)
    assert numbers, f"{colour} is seen through"
    return "#" + "".join(f"{int(number):02x}" for number in numbers.groups())


@pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)")
@pytest.mark.parametrize(
    ("scheme", "ground"), [(1, "rgb(255, 255, 255)"), (0, "rgb(20, 23, 28)")], ids=["light", "dark"]
)
def test_in_a_browser_it_is_searched_zoomed_and_walked_by_keys(scheme: int, ground: str, tmp_path: Path) -> None:
    words = ("--virtual-time-budget=10000", f"--blink-settings=preferredColorScheme={scheme}")
    seen = browse(flame_page(answer(STACKS)), tmp_path, *words, wrapper_page=WRAPPER)
    assert seen.console == []
    assert seen.requests == set()
    for frame in seen.frames.values():
        assert frame["scrollWidth"] <= frame["width"]
        assert frame["boxes"] == frame["out"] == 8
        assert frame["steps"] == ["server", "main", "parse", "write (kernel)"[:5], "parse", "main"]
        assert frame["zoom"] == "parse: 50 samples, 50.00 %"
        assert frame["zoomed"] == 5, "all, server and main above it, and memcpy"
        assert frame["matches"] == 1
        assert frame["found"] == "1 function, 50.0 % of the samples"
        assert frame["clicked"] == "parse: 50 samples, 50.00 %"
        assert frame["ground"] == ground
        assert len(frame["colours"]) == 5 + 8, "zoomed in, so with what is above; and all, with one that was searched"
        for name, text, box, opacity in frame["colours"]:
            assert opacity == "1" and contrast(hexadecimal(text), hexadecimal(box)) >= 4.5, (name, text, box)


DEEP = WRAPPER.replace(
    "return found;",
    """const words = page.getElementById("told").getBoundingClientRect(), seen = frame.contentWindow.innerHeight;
  found.told = [words.top, words.bottom, seen];
  found.deep = flame.getBoundingClientRect().bottom;
  return found;""",
)


@pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)")
def test_what_a_box_is_stays_in_sight_of_a_picture_that_is_higher_than_the_window(tmp_path: Path) -> None:
    deep = Stack(frames=("server", "main", "parse", *(f"step{n}" for n in range(60))), count=50)
    seen = browse(flame_page(answer((deep, *STACKS))), tmp_path, "--virtual-time-budget=10000", wrapper_page=DEEP)
    for frame in seen.frames.values():
        top, bottom, height = frame["told"]
        assert frame["deep"] > height and 0 < top < bottom <= height


@pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)")
def test_names_cannot_become_markup(tmp_path: Path) -> None:
    evil = (*STACKS, Stack(frames=("</script><img src=x onerror=alert(1)>", "<b>&amp;"), count=5))
    page = flame_page(answer(evil))
    assert "<img" not in page
    seen = browse(page, tmp_path, "--virtual-time-budget=10000", wrapper_page=WRAPPER)
    assert seen.console == []
    assert seen.requests == set()
