"""The page as text: escaped, self-contained, the same every time, and saying what it must."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from importlib.resources import files
from itertools import pairwise
from typing import Any, TypeVar

import pytest
from pydantic import ValidationError

from evenkeel.documents.base import Document
from evenkeel.documents.evidence import EMULATION_NOTE
from evenkeel.documents.plan import Plan
from evenkeel.report.html import render_report
from evenkeel.report.markup import Markup, el, join, text
from evenkeel.report.verdict import HostRun, Run
from tests.report import factories

D = TypeVar("D", bound=Document)
HOSTILE = "\"'></pre></style></script><script>alert(1)</script><img src=x onerror=alert(2)>&lt;\x00\x1b[31m\u202e{}%s"
VOID = {"br", "hr", "img", "input", "meta", "link", "col"}


class Page(HTMLParser):
    """What a browser would make of the page: its elements, and whether every one is closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.mistakes: list[str] = []
        self.words: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open.pop() != tag:
            self.mistakes.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data: str) -> None:
        if not {"style", "script"} & set(self.open):
            self.words.append(data)

    @property
    def said(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def strings(value: Any) -> Iterator[str]:
    """Every key under which a text stands anywhere in a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if isinstance(inner, str):
                yield key
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


def poisoned(value: Any, name: str) -> Any:
    """``value`` with the hostile text in every place called ``name``, and in free keys and lists of texts."""
    if isinstance(value, dict):
        return {
            key: HOSTILE if key == name and isinstance(inner, str) else poisoned(inner, name)
            for key, inner in value.items()
        }
    if isinstance(value, list):
        return [HOSTILE if isinstance(inner, str) and name == "*" else poisoned(inner, name) for inner in value]
    return value


def hostile(document: D) -> D:
    """The document with the hostile text in every field that takes a text; those that refuse it keep their own."""
    raw = document.model_dump(mode="json")
    for name in [*sorted(set(strings(raw))), "*"]:
        attempt = poisoned(raw, name)
        try:
            type(document).model_validate(attempt)
        except ValidationError:
            continue
        raw = attempt
    return type(document).model_validate(raw)


@pytest.fixture(scope="module")
def good() -> Page:
    return Page(render_report(factories.run()))


def test_nothing_in_a_document_becomes_markup(good: Page) -> None:
    run = factories.run(emulated=True, passed=8, failed=3, not_checked=2)
    of_host = run.hosts["plc"]
    plan: Plan = hostile(run.plan)
    host = plan.hosts[0]
    assert host.name == HOSTILE
    attacked = Run(
        plan=plan,
        hosts={
            HOSTILE: HostRun(**{name: hostile(value) for name, value in vars(of_host).items() if value is not None})
        },
        stopped=HOSTILE,
    )
    html = render_report(attacked)
    page = Page(html)
    assert not page.mistakes
    assert html.count("alert(1)") > 100  # it is there, as text
    assert "<script>alert" not in html and "<img" not in html
    assert {tag for tag, _ in page.elements} <= {tag for tag, _ in good.elements}
    assert sum(tag == "script" for tag, _ in page.elements) == 1
    assert not [
        name for _, attributes in page.elements for name in attributes if name.startswith("on") or name == "src"
    ]
    assert "\x00" not in html and "\x1b" not in html


def test_markup_escapes_everything_but_markup() -> None:
    assert el("p", "<b>", title='"') == '<p title="&quot;">&lt;b&gt;</p>'
    assert join(Markup("<b>"), "&", None, 3) == "<b>&amp;3"
    assert text("\ud800\x00") == "\N{REPLACEMENT CHARACTER}" * 2
    assert text("\ud800").encode() == "\N{REPLACEMENT CHARACTER}".encode()
    assert el("input", hidden=True, value=None) == "<input hidden>"


def test_the_page_is_whole_and_loads_nothing(good: Page) -> None:
    assert not good.mistakes and not good.open
    for tag, attributes in good.elements:
        for name in ("href", "src", "action", "data", "srcset", "poster", "xlink:href"):
            value = attributes.get(name) or ""
            assert value.startswith(("#", "data:")) or not value, f"<{tag} {name}={value}>"
    policy = next(a["content"] for t, a in good.elements if t == "meta" and "http-equiv" in a)
    assert policy and policy.startswith("default-src 'none'") and "unsafe-inline' " not in policy.split("script-src")[1]
    style = files("evenkeel.report").joinpath("page.css").read_text()
    assert "url(" not in style and "@import" not in style


def test_the_same_documents_give_the_same_bytes() -> None:
    assert render_report(factories.run()) == render_report(factories.run())


def test_ids_are_unique_and_every_link_has_its_target(good: Page) -> None:
    identifiers = Counter(attributes["id"] for _, attributes in good.elements if "id" in attributes)
    assert max(identifiers.values()) == 1
    links = {attributes["href"] for tag, attributes in good.elements if tag == "a"}
    assert links and {str(link).removeprefix("#") for link in links} <= set(identifiers)


def test_headings_go_down_one_step_at_a_time(good: Page) -> None:
    levels = [int(tag[1]) for tag, _ in good.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(new <= old + 1 for old, new in pairwise(levels))


def test_pictures_and_controls_have_names(good: Page) -> None:
    for tag, attributes in good.elements:
        if tag == "svg":
            named = attributes.get("aria-label") or attributes.get("aria-labelledby")
            assert named or attributes.get("aria-hidden") == "true"
        if tag == "input":
            assert attributes.get("aria-label")


def test_every_setting_stands_with_reason_source_and_risk(good: Page) -> None:
    for setting in factories.settings():
        for word in (setting.id, setting.title, setting.reason, setting.source, setting.risk, setting.verification):
            assert word in good.said
    assert "ff → 33" in good.said
    assert "read back 33" in good.said  # the journal's word for it
    assert "R-IRQ-2 nvme0q4 is a managed interrupt" in good.said


def test_every_check_stands_with_its_evidence() -> None:
    run = factories.run(emulated=True, passed=3, failed=1, not_checked=1)
    said = Page(render_report(run)).said
    findings = run.hosts["plc"].findings
    assert findings is not None
    for check in findings.checks:
        assert check.id in said and check.evidence[0].where in said
    assert "Not as planned: 1 check of 5 failed" in said
    assert "not checked. the guest was not running" in said


def test_every_check_says_how_it_was_before() -> None:
    run = factories.run(emulated=True, passed=3, failed=1)
    of_host = run.hosts["plc"]
    before = factories.findings(not_checked=1, failed=2)  # and nobody looked at the last one
    run = replace(run, hosts={"plc": replace(of_host, findings_before=before)})
    page = Page(render_report(run))
    assert "Before anything was applied: 2 failed, 2 not checked, 0 passed." in page.said
    assert page.said.count("CPU 0-7, other:0 → CPU 3, fifo:2") == 2
    assert "not checked : the guest was not running" in page.said
    assert "Not as planned: 1 check of 4 failed" in page.said  # of now; how it was is no verdict
    assert "Before anything was applied" not in Page(render_report(factories.run())).said


def test_the_conditions_are_those_of_the_evidence(good: Page) -> None:
    for word in (factories.BUILD, factories.ADDED, "7.2.22", "SeaBIOS 1.16.3", "tsc", factories.plan().sha256()):
        assert word in good.said


def test_in_emulation_every_latency_is_marked_and_no_deadline_is_met(good: Page) -> None:
    assert "not provable here" in good.said
    assert not re.search(r"\bmet\b", good.said)
    figures = sum(tag == "figure" for tag, _ in good.elements)
    assert figures == 2
    assert good.said.count(EMULATION_NOTE) >= figures + 1


def test_the_mark_does_not_depend_on_the_label_of_the_run() -> None:
    run = factories.run()
    bare = factories.latency("host", factories.histogram(floor_us=140, peak=9, decay=1, last_us=900), label="")
    of_host = replace(run.hosts["plc"], evidence_after=factories.evidence("after", latencies=(bare,), spins=()))
    page = Page(render_report(replace(run, hosts={"plc": replace(of_host, evidence_before=None)})))
    assert page.said.count(EMULATION_NOTE) == 2  # at the head, and under the one figure


def test_on_hardware_there_is_no_such_mark() -> None:
    page = Page(render_report(factories.run(emulated=False)))
    assert EMULATION_NOTE not in page.said
    assert "Deadline 100us for guest plc-runtime: missed" in page.said


def test_a_plan_alone_makes_a_page() -> None:
    page = Page(render_report(Run(plan=factories.plan(), hosts={})))
    assert not page.mistakes
    assert "plc was not verified." in page.said and "Incomplete" in page.said


def test_two_hosts_do_not_mix() -> None:
    plan = factories.plan()
    second = plan.hosts[0].model_copy(update={"name": "twin"})
    run = Run(plan=plan.model_copy(update={"hosts": (plan.hosts[0], second)}), hosts=factories.run().hosts)
    page = Page(render_report(run))
    identifiers = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(identifiers) == len(set(identifiers))
    assert "Plan · plc" in page.said and "Plan · twin" in page.said
    assert "twin was not verified." in page.said


# -- contrast ---------------------------------------------------------------------------------------------------------


def luminance(colour: str) -> float:
    channels = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_can_be_read_on_every_ground(scheme: int) -> None:
    style = files("evenkeel.report").joinpath("page.css").read_text()
    block = re.findall(r":root\{([^}]*)\}", style)[scheme]
    colours = dict(re.findall(r"--([\w-]+):(#[0-9a-f]{3,6})\b", block))
    colours = {
        name: value if len(value) == 7 else "#" + "".join(2 * c for c in value[1:]) for name, value in colours.items()
    }
    assert len(colours) >= 13
    for name in ("text", "muted", "link", "good", "bad", "warn"):
        for ground in ("bg", "panel"):
            assert contrast(colours[name], colours[ground]) >= 4.5, (name, ground)
    assert contrast(colours["warn"], colours["warn-bg"]) >= 4.5
    for mark in ("old", "new"):  # lines and bars: 3:1 is what WCAG 2.1 asks of graphics
        assert contrast(colours[mark], colours["bg"]) >= 3
