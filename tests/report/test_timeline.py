"""The page of an Explanation: what it says, what it must never say, and that a document cannot break out of it."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from html import unescape
from itertools import pairwise
from pathlib import Path

import pytest

from evenkeel.documents.course import Course
from evenkeel.documents.evidence import EMULATION_NOTE, Conditions
from evenkeel.documents.explanation import Alignment, Allowed, Cause, Charge, Explanation, Kind, Lost, Piece, Spike
from evenkeel.report.html import render_report
from evenkeel.report.timeline import STYLE, RuleText, blurred, explained_share, lanes_svg, render_explanation, words
from tests.report import factories
from tests.report.test_page import CHROMIUM, browse

MS = 1_000_000


def spike(**changes: object) -> Spike:
    at = 500 * MS
    plain = Spike(
        at_ns=at,
        vcpu=1,
        latency_ns=10 * MS,
        charges=(
            Charge(kind=Kind.waits, who="backup", ns=6 * MS),
            Charge(kind=Kind.asleep, who="", ns=2 * MS),
            Charge(kind=Kind.guest_irq, who="eth0", ns=MS),
            Charge(kind=Kind.unexplained, who="", ns=MS),
        ),
        pieces=(
            Piece(start_ns=at - 10 * MS, end_ns=at - 4 * MS, lane="host", kind=Kind.waits, who="backup"),
            Piece(start_ns=at - 4 * MS, end_ns=at - 2 * MS, lane="host", kind=Kind.asleep, who=""),
            Piece(start_ns=at - 2 * MS, end_ns=at - MS, lane="guest", kind=Kind.guest_irq, who="eth0"),
            Piece(start_ns=at - MS, end_ns=at, lane="guest", kind=Kind.unexplained, who=""),
        ),
    )
    return plain.model_copy(update=changes)


def explanation(**changes: object) -> Explanation:
    plain = Explanation(
        host="cell",
        guest="plc",
        conditions=Conditions(kernel="6.12-rt", preempt_rt=True, command_line="", emulated=True),
        label=EMULATION_NOTE,
        seconds=10.0,
        period_ns=MS,
        threshold_ns=MS,
        samples=10_000,
        max_latency_ns=10 * MS,
        alignment=Alignment(method="tsc-offset", error_ns=0),
        spikes=(spike(),),
        causes=(
            Cause(
                kind=Kind.waits,
                who="backup",
                ns=6 * MS,
                spikes=1,
                worst_ns=6 * MS,
                allowed=(Allowed(fact="CPU 3 is in no isolated partition", rule="C-1"),),
            ),
            Cause(kind=Kind.asleep, who="", ns=2 * MS, spikes=1, worst_ns=2 * MS),
        ),
    )
    return plain.model_copy(update=changes)


def rich() -> Explanation:
    """Two vCPUs, many short pieces, names as long as the kernel allows, and words that have no place to break."""
    names = ("ktimers/3", "kworker/u16:3-ev", "qemu-system-x86", "irq/137-nvme0q14", "a")
    spikes = []
    for number in range(3):
        at, latency = (2 + 3 * number) * 1_000_000_000, (40 + 60 * number) * MS // 10
        edges = [latency * n * n // 1600 for n in range(41)]
        pieces = tuple(
            Piece(
                start_ns=at - latency + begin,
                end_ns=at - latency + end,
                lane="guest" if n % 4 == 3 else "host",
                kind=(Kind.waits, Kind.host_irq, Kind.below, Kind.guest_thread)[n % 4],
                who=names[n % 5],
            )
            for n, (begin, end) in enumerate(pairwise(edges))
        )
        charges = tuple(Charge(kind=Kind.waits, who=name, ns=latency // 5) for name in names)
        spikes.append(Spike(at_ns=at, vcpu=number % 2, latency_ns=latency, charges=charges, pieces=pieces))
    samples = [(n * MS, 40_000 + n * 7919 % 90_000) for n in range(10_000)]
    samples += [(one.at_ns - one.latency_ns, one.latency_ns) for one in spikes]
    allowed = (Allowed(fact="thread " + "x" * 60 + " may run on CPU 3", rule="R-RT-4"), Allowed(fact="no partition"))
    causes = tuple(
        Cause(kind=kind, who=names[n % 5], ns=(20 - n) * MS, spikes=3, worst_ns=9 * MS, allowed=allowed[: n % 3])
        for n, kind in enumerate(Kind)
    )
    return explanation(
        spikes=tuple(spikes),
        causes=causes,
        lost=Lost(host=12),
        courses={vcpu: Course.of(samples, length_ns=10_000_000_000) for vcpu in (0, 1)},
    )


def text(page: str) -> str:
    return " ".join(unescape(re.sub(r"<(style|script)>.*?</\1>|<[^>]+>", " ", page, flags=re.DOTALL)).split())


def test_the_page_says_what_took_the_time_and_what_allowed_it() -> None:
    said = text(render_explanation(explanation()))
    for part in (
        "1 of 10,000 samples over 1 ms",
        "70% of their time charged to causes",
        "vCPU waited for backup on the host 6 ms 60%",
        "CPU 3 is in no isolated partition C-1",
        "asleep, no cause seen (slack)",
        "aligned by tsc-offset, off by 0 ns at most",
        EMULATION_NOTE,
    ):
        assert part in said, part


RULES = (
    RuleText("C-1", "A partition for each vCPU", (("value", "isolated"), ("risk", "<b>none</b>" + "x" * 60))),
    RuleText("G-3", "Priorities", (("value", "FIFO 2"),)),
    RuleText("R-RT-4", "What stands in rich() " + "y" * 40, (("verified by", "/proc/" + "z" * 90),)),
)


def test_the_rule_that_would_prevent_a_cause_is_told_in_the_page_and_linked() -> None:
    page = render_explanation(explanation(), RULES)
    (target,) = re.findall(r'href="#(rule-[^"]+)"', page)
    assert target == "rule-C-1" and page.count(f'id="{target}"') == 1
    assert "C-1 A partition for each vCPU value isolated" in text(page) and "<b>none" not in page
    assert "Priorities" not in page, "no cause names it"
    without = render_explanation(explanation())
    assert "#rule-" not in without and "<code>C-1</code>" in without and "Rules that" not in without


def test_slack_and_the_unexplained_are_not_explained() -> None:
    assert explained_share([spike()]) == 0.7
    assert explained_share([]) == 1.0
    claimed = spike(charges=(Charge(kind=Kind.asleep, who="", ns=10 * MS),))
    assert explained_share([claimed]) == 0.0


def test_what_was_lost_is_said_aloud() -> None:
    assert "Events were lost: host 7, guest 0" in text(render_explanation(explanation(lost=Lost(host=7))))
    assert "Events were lost" not in text(render_explanation(explanation()))


@pytest.mark.parametrize(
    ("error_ns", "threshold_ns", "said"), [(0, 0, False), (0, 1, False), (400, 1000, False), (500, 1000, True)]
)
def test_clocks_that_are_off_by_as_much_as_is_explained_are_said_aloud(
    error_ns: int, threshold_ns: int, said: bool
) -> None:
    alignment = Alignment(method="round trips" if error_ns else "tsc-offset", error_ns=error_ns)
    found = explanation(threshold_ns=threshold_ns, alignment=alignment)
    assert bool(blurred(found)) == said


def test_nothing_late_is_said_as_well() -> None:
    said = text(render_explanation(explanation(spikes=(), causes=())))
    assert "No sample was late." in said and "0 of 10,000 samples" in said


def test_a_flight_recorder_that_froze_without_a_late_sample_shows_its_end() -> None:
    frozen = explanation(spikes=(), causes=(), reason="guest gone", ending=(spike(),))
    said = text(render_explanation(frozen))
    assert "Before it was frozen: guest gone" in said and "The last 10 ms of vCPU 1" in said
    assert "Before it was frozen" not in text(render_explanation(explanation(reason="late sample")))


def test_of_a_flight_recorder_it_says_when_the_time_axis_begins() -> None:
    course = Course.of([(0, MS)], length_ns=5_000_000_000)
    flown = explanation(courses={1: course}, courses_from_ns=7_203_400_000_000)
    assert "The time begins 7203.4 s after the recording did" in text(render_explanation(flown))
    assert "The time begins" not in text(render_explanation(explanation(courses={1: course})))


def test_the_same_document_gives_the_same_bytes_and_loads_nothing() -> None:
    page = render_explanation(explanation())
    assert page == render_explanation(explanation())
    assert not re.search(r"(?:src|href)=\"(?!data:|#)|url\((?!#)|@import", page)


def test_a_task_cannot_name_itself_into_the_page() -> None:
    evil = "</title><script>alert(1)</script>"
    causes = (Cause(kind=Kind.waits, who=evil, ns=MS, spikes=1, worst_ns=MS),)
    pieces = (Piece(start_ns=490 * MS, end_ns=500 * MS, lane="host", kind=Kind.waits, who=evil),)
    page = render_explanation(explanation(guest=evil, causes=causes, spikes=(spike(pieces=pieces),)))
    assert page.count("<script") == 1 and "<script>alert" not in page and text(page).count("alert(1)") >= 2


def test_the_lanes_are_drawn_to_scale() -> None:
    root = ET.fromstring(lanes_svg(spike()))
    boxes = {
        group.findtext("{*}title", ""): group.find("{*}rect") for group in root.iter("{http://www.w3.org/2000/svg}g")
    }
    widths = {title: float(box.get("width", "0")) for title, box in boxes.items() if box is not None}
    assert len(widths) == 4
    (waits,) = (width for title, width in widths.items() if "backup" in title)
    (interrupt,) = (width for title, width in widths.items() if "eth0" in title)
    assert abs(waits / interrupt - 6) < 0.01


def test_every_kind_has_words() -> None:
    for kind in Kind:
        assert "{" not in words(kind, "x") and words(kind, "x")


LOOKING = """<!DOCTYPE html><meta charset="utf-8"><title>wrapper</title>
%s
<pre id="seen"></pre>
<script>
addEventListener("load", () => {
  const seen = [...document.querySelectorAll("iframe")].map((frame) => {
    const page = frame.contentDocument, root = page.documentElement, outside = [], touching = [];
    for (const group of page.querySelectorAll(".lanes g")) {
      const box = group.querySelector("rect").getBoundingClientRect(), text = group.querySelector("text");
      const words = text && text.getBoundingClientRect();
      if (words && (words.left < box.left || words.right > box.right)) outside.push(text.textContent);
    }
    for (const svg of page.querySelectorAll(".chart, .lanes")) {
      const labels = [...svg.querySelectorAll("text")].map((text) => [text.textContent, text.getBoundingClientRect()]);
      labels.forEach(([one, a], n) => labels.slice(n + 1).forEach(([other, b]) => {
        const across = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const down = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (across > 1 && down > 3) touching.push(`${one} / ${other}`);
      }));
    }
    const scrolls = [...page.querySelectorAll(".picture")].filter((one) => one.scrollWidth > one.clientWidth + 1);
    const hint = page.querySelector(".narrow"), told = hint && frame.contentWindow.getComputedStyle(hint).display;
    return {width: root.clientWidth, scrollWidth: root.scrollWidth, outside, touching, told,
      scrolls: scrolls.length, lanes: page.querySelectorAll(".lanes").length,
      unreachable: scrolls.filter((one) => one.tabIndex < 0).length};
  });
  document.getElementById("seen").textContent = JSON.stringify(seen);
});
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)")
def test_in_a_browser_nothing_overlaps_and_the_page_does_not_scroll_sideways(tmp_path: Path) -> None:
    seen = browse(render_explanation(rich(), RULES), tmp_path, wrapper_page=LOOKING)
    assert seen.console == [] and seen.requests == set()
    for width, frame in seen.frames.items():
        assert frame["scrollWidth"] <= width and frame["lanes"] == 3
        assert frame["outside"] == [] and frame["touching"] == [], frame
        assert frame["unreachable"] == 0, "what scrolls can be scrolled by keys"
        assert (frame["told"] != "none") == (frame["scrolls"] > 0), "and that it scrolls is said where it does"


@pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)")
def test_the_browser_would_see_labels_that_overlap(tmp_path: Path) -> None:
    page = render_explanation(rich())
    broken = re.sub(r'(<text class="axis" x=")[\d.]+"', r'\g<1>100"', page)
    assert browse(broken, tmp_path, wrapper_page=LOOKING).frames[1280]["touching"]


@pytest.mark.skipif(CHROMIUM is None, reason="no browser (Debian package chromium-headless-shell)")
def test_labels_of_the_charts_of_a_report_do_not_overlap(tmp_path: Path) -> None:
    for number, emulated in enumerate((True, False)):
        folder = tmp_path / str(number)
        folder.mkdir()
        seen = browse(render_report(factories.run(emulated=emulated)), folder, wrapper_page=LOOKING)
        for frame in seen.frames.values():
            assert frame["touching"] == [], frame


def test_patterns_have_the_colours_of_the_page() -> None:
    """Those change with light and dark, and a test holds their contrast; one of its own had 3.3 on a light lane."""
    page = render_explanation(explanation())
    assert not re.search(r"#[0-9a-f]{6}", STYLE)
    drawn = re.findall(r"<pattern.*?</pattern>", page)
    assert len(drawn) == 2 and not any(re.search(r"fill=|stroke=|#[0-9a-f]{3}", one) for one in drawn)
    assert ".pattern path{stroke:var(--muted)}.pattern circle{fill:var(--muted)}" in page
