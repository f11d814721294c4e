"""Contrast of the pages by the numbers of their style sheet, light and dark: WCAG 2.2, 1.4.3 (text) and 1.4.11 (edges).

No browser: colours are variables, and a rule with a colour of its own would be found here.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

from evenkeel.lab import pages

CSS = (Path(pages.__file__).parent / "static" / "lab.css").read_text()
TEXT, EDGE = 4.5, 3.0
#: What stands on the page, and on panels, notes, chips, rows under the pointer and boxes of a graph.
GROUNDS = ("bg", "panel", "good-bg", "bad-bg", "warn-bg", "busy-bg")
ANYWHERE = ("text", "muted", "link")
#: Text and the ground that it stands on.
PAIRS = [
    *((text, ground) for text in ANYWHERE for ground in GROUNDS),
    *((kind, ground) for kind in ("good", "bad", "warn", "busy") for ground in ("bg", "panel", f"{kind}-bg")),
    ("on-link", "link"),
]
#: Of fields and buttons, and what shows where the keyboard is.
EDGES = [(edge, ground) for edge in ("edge", "link") for ground in ("bg", "panel")]


@cache
def colours(scheme: str) -> dict[str, str]:
    """The variables of a colour scheme; what a dark one does not name is as in the light one."""
    light, dark = re.findall(r":root\{(.*?)\}", CSS, re.DOTALL)
    found: dict[str, str] = {}
    for block in (light,) if scheme == "light" else (light, dark):
        found |= dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})\b", block))
    return found


def light_of(colour: str, brighter: float = 1) -> float:
    """Relative luminance (WCAG 2.2, definition); ``brighter``: as the filter ``brightness()`` makes it."""
    digits = colour[1:] if len(colour) == 7 else "".join(digit * 2 for digit in colour[1:])
    channels = [min(1, int(digits[at : at + 2], 16) / 255 * brighter) for at in (0, 2, 4)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str, brighter: float = 1) -> float:
    low, high = sorted((light_of(one), light_of(other, brighter)))
    return (high + 0.05) / (low + 0.05)


def test_the_ratio_is_that_of_the_standard() -> None:
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)  # the grey that famously just fails
    assert contrast("#767676", "#ffffff") == pytest.approx(4.54, abs=0.005)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_can_be_read(scheme: str) -> None:
    known = colours(scheme)
    ratios = {f"{text} on {ground}": contrast(known[text], known[ground]) for text, ground in PAIRS}
    # A button under the pointer is brighter, and its words are not.
    brighter = float(re.findall(r"button:hover[^}]*brightness\(([\d.]+)\)", CSS)[0])
    ratios["on-link on link, hovered"] = contrast(known["on-link"], known["link"], brighter)
    assert {pair: round(ratio, 2) for pair, ratio in ratios.items() if ratio < TEXT} == {}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_fields_and_the_focus_can_be_seen(scheme: str) -> None:
    known = colours(scheme)
    ratios = {f"{edge} on {ground}": contrast(known[edge], known[ground]) for edge, ground in EDGES}
    assert {pair: round(ratio, 2) for pair, ratio in ratios.items() if ratio < EDGE} == {}


def test_no_rule_has_colours_that_are_not_looked_at() -> None:
    rules = re.sub(r"/\*.*?\*/|:root\{.*?\}", "", CSS, flags=re.DOTALL)
    literal = re.findall(r"[^{}]*\{[^{}]*#[0-9a-fA-F]{3,8}\b[^{}]*\}", rules)
    # A shadow, and the white behind pictures that were drawn for paper.
    assert [rule for rule in literal if not rule.strip().startswith((".more>div{", ".picture{"))] == []
    for body in re.findall(r"\{([^{}]*)\}", rules):
        text = re.search(r"(?<![\w-])color:var\(--([\w-]+)\)", body)
        ground = re.search(r"background:var\(--([\w-]+)\)", body)
        if text and ground:
            assert (text[1], ground[1]) in PAIRS, body
