"""The page of an Explanation: ranked causes, and for the worst spikes a timeline in two lanes, host and guest.

Pure: a document in, a self-contained page out, the same bytes for the same document.  A cause is told by its words and
its pattern, never by its colour alone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from evenkeel.documents.explanation import NO_CAUSE, Alignment, Cause, Explanation, Kind, Piece, Recorder, Spike
from evenkeel.report.chart import format_ns
from evenkeel.report.heat import Panel, extent, heat_figure, heat_picture
from evenkeel.report.markup import Content, Markup, el, join, trusted
from evenkeel.report.page import package_file, whole_page

#: What a reader calls each kind; ``{who}`` is the task or interrupt.
WORDS = {
    Kind.below: "machine under the host ran {who}",
    Kind.migrated: "vCPU moved to a CPU where {who} ran",
    Kind.throttled: "vCPU had to leave its CPU to {who}",
    Kind.emulator: "vCPU waited for its own QEMU: {who}",
    Kind.waits: "vCPU waited for {who} on the host",
    Kind.host_nmi: "NMI on the host",
    Kind.host_irq: "interrupt on the host: {who}",
    Kind.page_fault: "host mapped memory of the guest",
    Kind.exits: "host handled exits: {who}",
    Kind.delivery: "host on its way back into the guest, after {who}",
    Kind.host_timer: "the host's timer came late",
    Kind.guest_nmi: "NMI in the guest",
    Kind.guest_irq: "interrupt in the guest: {who}",
    Kind.guest_softirq: "soft interrupt in the guest: {who}",
    Kind.guest_thread: "thread in the guest: {who}",
    Kind.guest_kernel: "guest's kernel, {who}",
    Kind.asleep: "asleep, no cause seen (slack)",
    Kind.unexplained: "unexplained",
}
_CLASS = {
    Kind.below: "below",
    Kind.asleep: "slack",
    Kind.unexplained: "open",
    **dict.fromkeys(
        (Kind.guest_nmi, Kind.guest_irq, Kind.guest_softirq, Kind.guest_thread, Kind.guest_kernel), "guest"
    ),
}
#: What the line of the threshold is called in a picture.
THRESHOLD = "explained from"
LEFT, WIDTH, LANE, TOP = 52, 760, 34, 8
_CHARACTER = 6.2  # px of a letter of the labels
STYLE = """
.lanes{width:100%;min-width:620px;height:auto;font:11px system-ui,sans-serif}
.lanes text{fill:var(--text);paint-order:stroke;stroke:var(--bg);stroke-width:3px;stroke-linejoin:round}
.lanes .axis{fill:var(--muted)}.lanes .tick{stroke:var(--line)}
.lanes .lane{fill:var(--panel)}
.lanes .host{fill:var(--new);fill-opacity:.30;stroke:var(--new)}
.lanes .guest{fill:var(--warn);fill-opacity:.30;stroke:var(--warn)}
.lanes .below{fill:url(#hatch);stroke:var(--muted)}
.lanes .slack{fill:url(#dots);stroke:var(--muted);stroke-dasharray:2 2}
.pattern path{stroke:var(--muted)}.pattern circle{fill:var(--muted)}
.lanes .open{fill:none;stroke:var(--muted);stroke-dasharray:4 3}
.share{display:inline-block;height:9px;background:var(--new);border-radius:2px;vertical-align:baseline}
.share.no{background:none;border:1px dashed var(--muted)}
.narrow{display:none}
@media(max-width:640px){.narrow{display:inline}}
"""
_PATTERNS = (
    '<svg width="0" height="0" style="position:absolute" class="pattern" aria-hidden="true"><defs>'
    '<pattern id="hatch" width="6" height="6" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">'
    '<path d="M0 0V6" stroke-width="2"/></pattern>'
    '<pattern id="dots" width="6" height="6" patternUnits="userSpaceOnUse">'
    '<circle cx="2" cy="2" r="1"/></pattern></defs></svg>'
)


def words(kind: Kind, who: str) -> str:
    """A cause in words: ``vCPU waited for ktimers/3 on the host``."""
    if kind == Kind.unexplained and who:
        return f"{WORDS[kind]}: {who}"
    return WORDS[kind].format(who=who or "something")


def usual(cause: Cause) -> str:
    """What a cause takes of a middling sample: a time, or ``0`` for none."""
    return format_ns(cause.usual_ns) if cause.usual_ns else "0"


def aligned(alignment: Alignment) -> str:
    if alignment.method == "none":
        return "not aligned: the guest left nothing"
    return f"aligned by {alignment.method}, off by {format_ns(alignment.error_ns)} at most"


def aligned_below(alignment: Alignment | None) -> str:
    """Of the machine under the host."""
    if alignment is None:
        return "not recorded"
    if alignment.method == "none":
        return "recorded, but no round trip binds its clock to the host's: nothing is charged to it"
    return aligned(alignment)


def blurred(explanation: Explanation) -> str:
    """What the clocks' error means where it is as large as what is to be explained; "" where it is not."""
    error = explanation.alignment.error_ns
    if not error or 2 * error < explanation.threshold_ns:
        return ""
    return (
        f"The clocks of host and guest may be off by {format_ns(error)}: nothing that the host did for less than "
        f"{format_ns(2 * error)} is charged. With debugfs mounted on the host KVM tells the offset."
    )


SIDES = {"host": "host", "guest": "guest", "below": "machine under the host"}


def lost(explanation: Explanation) -> str:
    """How many events are missing, also when none is: a count that is not told proves nothing."""
    count = explanation.lost
    below = str(count.below) if explanation.below else "not recorded"
    return f"host {count.host}, guest {count.guest}, {SIDES['below']} {below}"


def recorded(explanation: Explanation) -> list[tuple[str, str]]:
    """Of each side its name, and what its recorder kept and took; none where an older document does not say."""
    return [(SIDES[side], _recorded(one)) for side, one in explanation.recorders.items()]


def _recorded(one: Recorder) -> str:
    parts = [f"{one.seconds:.1f} s, {one.size_bytes / 1e6:.1f} MB"]
    if (share := one.share(one.cpu_ns)) is None:
        parts.append("what the recorder took was not measured")
    else:
        parts.append(f"the recorder took {format_ns(one.cpu_ns or 0)}, {share:.2%} of a CPU")
    if (share := one.share(one.timerlat_ns)) is not None:
        parts.append(f"timerlat {share:.2%}")
    return "; ".join(parts)


def ended_early(explanation: Explanation) -> list[str]:
    """Of each side whose limit of memory ended the recording before its time, what that means."""
    asked = explanation.asked_seconds
    return [
        f"The recording of the {SIDES[side]} was full and ended at {one.seconds:.1f} s"
        + (f" of {asked:.0f} s" if asked else "")
        + f" with {one.size_bytes / 1e6:.0f} MB. "
        + ("What it took later is not known." if side == "below" else "Nothing later is explained.")
        for side, one in explanation.recorders.items()
        if one.full
    ]


#: What to do about it.
SHORTER = "Record for a shorter time, or with a longer --period."


@dataclass(frozen=True)
class RuleText:
    """A rule of the catalogue in words: name and text of each line."""

    id: str
    title: str
    lines: Sequence[tuple[str, str]]


def render_explanation(explanation: Explanation, rules: Sequence[RuleText] = ()) -> str:
    """The page: HTML that needs nothing beside it.  ``rules``: those that a cause may name, which are linked then."""
    title = f"Late samples of {explanation.guest} on {explanation.host}"
    told = [rule for rule in rules if rule.id in rules_named(explanation)]
    sections = [
        *(
            [("ending", f"Before it was frozen: {explanation.reason}", _ending(explanation))]
            if explanation.ending
            else []
        ),
        ("causes", "Causes", _causes(explanation, {rule.id for rule in told})),
        *([("rules", "Rules that would prevent them", _rules(told))] if told else []),
        *([("time", "Over time", _over_time(explanation))] if explanation.courses else []),
        ("timelines", "The worst samples", _timelines(explanation)),
        ("conditions", "How it was taken", _conditions(explanation)),
    ]
    body = join(
        trusted(_PATTERNS),
        _head(explanation, title),
        el(
            "main",
            *(el("section", el("h2", name), content, id=place) for place, name, content in sections),
            id="content",
        ),
    )
    return whole_page(title, body, made_from="an Explanation", script=package_file("heat.js"), style=STYLE)


def _head(explanation: Explanation, title: str) -> Markup:
    late = len(explanation.spikes)
    missing = explanation.lost
    notes: list[Content] = []
    if explanation.label:
        notes.append(
            el("div", el("p", f"Latencies: {explanation.label}. What took the time is exact."), class_="note warn")
        )
    if said := blurred(explanation):
        notes.append(el("div", el("p", said), class_="note bad"))
    if full := ended_early(explanation):
        notes.append(el("div", *(el("p", one) for one in full), el("p", SHORTER), class_="note bad"))
    if missing.host or missing.guest or missing.below:
        said = f"Events were lost: {lost(explanation)}."
        notes.append(
            el("div", el("p", said, " What is charged is true; what is not may have had a cause."), class_="note bad")
        )
    facts = [
        f"{late:,} of {explanation.samples:,} samples over {format_ns(explanation.threshold_ns)}",
        f"worst {format_ns(explanation.max_latency_ns)}",
        f"{explained_share(explanation.spikes):.0%} of their time charged to causes",
        f"{explanation.seconds:.0f} s",
    ]
    return el("header", el("h1", title), el("ul", *(el("li", fact) for fact in facts), class_="facts"), *notes)


def explained_share(spikes: Sequence[Spike]) -> float:
    """Of the time of all spikes, how much is charged to causes; slack and the unexplained are none.  1.0 for none."""
    whole = sum(spike.latency_ns for spike in spikes)
    return sum(spike.explained_ns for spike in spikes) / whole if whole else 1.0


def rules_named(explanation: Explanation) -> frozenset[str]:
    """Identifiers of the rules that would have prevented a cause."""
    return frozenset(one.rule for cause in explanation.causes for one in cause.allowed if one.rule)


def _rules(rules: Sequence[RuleText]) -> Markup:
    return join(
        *(
            el(
                "div",
                el("h3", el("code", rule.id), f" {rule.title}", id=f"rule-{rule.id}"),
                el("dl", *(join(el("dt", name), el("dd", text)) for name, text in rule.lines), class_="pairs"),
            )
            for rule in rules
        )
    )


def _causes(explanation: Explanation, linked: Collection[str]) -> Markup:
    if not explanation.causes:
        return el("p", "No sample was late.", class_="lead")
    whole = sum(spike.latency_ns for spike in explanation.spikes) or 1
    rows = [_cause(cause, whole, linked) for cause in explanation.causes]
    head = el("tr", *(el("th", name, scope="col", class_="num" if name in _NUMBERS else None) for name in _COLUMNS))
    return el("div", el("table", el("thead", head), el("tbody", *rows), class_="cards"), class_="scroll")


_COLUMNS = ("What took the time", "Time", "Share", "Samples", "Made late", "Worst", "Usual", "What allowed it")
_NUMBERS = ("Time", "Share", "Samples", "Made late", "Worst", "Usual")


def _cause(cause: Cause, whole: int, linked: Collection[str]) -> Markup:
    share = cause.ns / whole
    bar = el(
        "span", class_="share no" if cause.kind in NO_CAUSE else "share", style=f"width:{max(2, round(70 * share))}px"
    )
    why = [
        el("div", one.fact, el("span", " ", _rule(one.rule, linked), class_="muted") if one.rule else None)
        for one in cause.allowed
    ]
    return el(
        "tr",
        el("td", words(cause.kind, cause.who), data_label=_COLUMNS[0]),
        el("td", format_ns(cause.ns), class_="num", data_label="Time"),
        el("td", bar, f" {share:.0%}", class_="num", data_label="Share"),
        el("td", cause.spikes, class_="num", data_label="Samples"),
        el("td", cause.named, class_="num", data_label="Made late"),
        el("td", format_ns(cause.worst_ns), class_="num", data_label="Worst"),
        el("td", usual(cause), class_="num", data_label="Usual"),
        el("td", join(*why), data_label=_COLUMNS[-1]),
    )


def _rule(rule: str, linked: Collection[str]) -> Markup:
    name = el("code", rule)
    return el("a", name, href=f"#rule-{rule}") if rule in linked else name


def _over_time(explanation: Explanation) -> Markup:
    """A heat map a vCPU, all on one scale, with the threshold above which samples are explained."""
    limit = explanation.threshold_ns
    within = extent(explanation.courses.values(), limit)
    figures = (
        el(
            "figure",
            el("h3", f"vCPU {vcpu}"),
            heat_figure(course, title=f"vCPU {vcpu}, over time", goal_ns=limit, goal_name=THRESHOLD, within=within),
            el("p", el("span", explanation.label, class_="warn"), class_="detail") if explanation.label else None,
        )
        for vcpu, course in sorted(explanation.courses.items())
    )
    begin = explanation.courses_from_ns
    lead = f"The time begins {begin / 1e9:.1f} s after the recording did: before that its rings were overwritten."
    return join(el("p", lead, class_="lead") if begin else None, el("div", *figures, class_="histograms"))


def heat_map(explanation: Explanation) -> str:
    """The same as a picture that stands alone."""
    panels = [
        Panel(f"guest {explanation.guest}, vCPU {vcpu}, timerlat", course, explanation.threshold_ns)
        for vcpu, course in sorted(explanation.courses.items())
    ]
    return heat_picture(panels, note=explanation.label, goal_name=THRESHOLD)


def _timelines(explanation: Explanation) -> Markup:
    shown = sorted((spike for spike in explanation.spikes if spike.pieces), key=lambda spike: -spike.latency_ns)
    if not shown:
        return el("p", "None to show.", class_="lead")
    lead = "From when the timer was due, at the left, to when the thread ran, at the right."
    # A lane is no narrower than its labels can be read: then it is to be moved.
    moved = el("span", " The pictures scroll sideways.", class_="narrow")
    return join(el("p", lead, moved, class_="lead"), *(_figure(spike) for spike in shown))


def _ending(explanation: Explanation) -> Markup:
    return join(
        *(
            _figure(spike, f"The last {format_ns(spike.latency_ns)} of vCPU {spike.vcpu}")
            for spike in explanation.ending
        )
    )


def _figure(spike: Spike, caption: str = "") -> Markup:
    late = f"{format_ns(spike.latency_ns)} late on vCPU {spike.vcpu}, {spike.at_ns / 1e9:.3f} s after the begin"
    caption = caption or late
    listed = [
        el("li", f"{format_ns(charge.ns)}: {words(charge.kind, charge.who)}")
        for charge in spike.charges
        if charge.ns * 100 >= spike.latency_ns
    ]
    return el(
        "figure",
        el("h3", caption),
        el("div", lanes_svg(spike), class_="picture", tabindex="0"),
        el("ul", *listed, class_="plain"),
    )


def lanes_svg(spike: Spike) -> Markup:
    """The two lanes of one spike; the patterns that it fills with are once in the page."""
    start, length = spike.at_ns - spike.latency_ns, max(1, spike.latency_ns)
    height = TOP + 2 * LANE + 30

    def x(at: int) -> float:
        return round(LEFT + (WIDTH - LEFT - 8) * (at - start) / length, 1)

    parts: list[Content] = []
    for number, lane in enumerate(("host", "guest")):
        y = TOP + number * LANE
        parts.append(el("text", lane, x=4, y=y + 18))
        parts.append(el("rect", class_="lane", x=LEFT, y=y + 2, width=WIDTH - LEFT - 8, height=LANE - 6))
        parts += [_piece(piece, x(piece.start_ns), x(piece.end_ns), y) for piece in spike.pieces if piece.lane == lane]
    for tick in range(5):
        at = start + length * tick // 4
        y = TOP + 2 * LANE
        parts.append(el("line", class_="tick", x1=str(x(at)), x2=str(x(at)), y1=y, y2=y + 5))
        anchor = ("start", "middle", "middle", "middle", "end")[tick]
        parts.append(el("text", format_ns(at - start), class_="axis", x=str(x(at)), y=y + 18, text_anchor=anchor))
    label = ", ".join(f"{format_ns(charge.ns)} {words(charge.kind, charge.who)}" for charge in spike.charges[:3])
    return el(
        "svg", *parts, viewBox=f"0 0 {WIDTH} {height}", class_="lanes", role="img", aria_label=label,
        xmlns="http://www.w3.org/2000/svg",
    )  # fmt: skip


def _piece(piece: Piece, left: float, right: float, y: int) -> Markup:
    kind = piece.kind
    told = words(kind, piece.who) if kind else piece.who
    width = max(0.6, right - left)
    text = piece.who or (kind.value.replace("_", " ") if kind else "")
    fits = len(text) * _CHARACTER < width - 6
    return el(
        "g",
        el("title", f"{told}, {format_ns(piece.end_ns - piece.start_ns)}"),
        el(
            "rect",
            class_=_CLASS.get(kind, "host") if kind else "lane",
            x=str(left),
            y=y + 2,
            width=f"{width:.1f}",
            height=LANE - 6,
        ),
        el("text", text, x=f"{left + width / 2:.1f}", y=y + 20, text_anchor="middle") if fits else None,
    )


def _conditions(explanation: Explanation) -> Markup:
    conditions = explanation.conditions
    rows = [
        ("Measured by", f"timerlat in the guest, every {format_ns(explanation.period_ns)}"),
        ("Clocks of host and guest", aligned(explanation.alignment)),
        ("Machine under the host", aligned_below(explanation.below)),
        ("Events lost", lost(explanation)),
        *((f"Recorded of the {side}", text) for side, text in recorded(explanation)),
        ("Kernel of the host", conditions.kernel),
        ("QEMU", conditions.qemu),
        ("Emulated in software", "yes" if conditions.emulated else "no"),
        ("Plan", conditions.plan_sha256),
    ]
    return el("dl", *(join(el("dt", name), el("dd", value)) for name, value in rows if value), class_="pairs")
