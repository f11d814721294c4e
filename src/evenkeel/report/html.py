"""The report: one HTML page that says what was wanted, what was set, and what was found.  Nothing outside is loaded.

Pure: the same documents give the same bytes.  Everything from a document goes through :mod:`evenkeel.report.markup`,
which escapes it.  Judges nothing: verdicts are :mod:`evenkeel.report.verdict`'s.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.evidence import EMULATION_NOTE, Deadline, Evidence, Latency
from evenkeel.documents.facts import Facts
from evenkeel.documents.findings import Check, EvidenceItem, Findings
from evenkeel.documents.journal import Journal
from evenkeel.documents.plan import GuestPlan, HostPlan, Phase, Plan, Setting, VcpuPlan
from evenkeel.documents.quantity import format_duration, format_size
from evenkeel.measure.conditions import conditions as conditions_of
from evenkeel.measure.percentile import percentile
from evenkeel.report.chart import format_ns
from evenkeel.report.comparison import Measure, measures, pairs
from evenkeel.report.heat import extent, heat_figure
from evenkeel.report.histogram import Series, histogram_svg, largest_bucket_ns
from evenkeel.report.markup import Content, Markup, el, join, trusted
from evenkeel.report.page import package_file, whole_page
from evenkeel.report.percentiles import percentiles_svg
from evenkeel.report.picture import machine_svg
from evenkeel.report.placement import placement_section
from evenkeel.report.verdict import HostRun, Run, Verdict, judge

PHASES = {
    Phase.BOOT: "Kernel command line",
    Phase.MEMORY: "Memory",
    Phase.INTERRUPTS: "Interrupts",
    Phase.WORKQUEUES: "Workqueues",
    Phase.KERNEL: "Timers, statistics, watchdogs",
    Phase.THREADS: "Kernel threads",
    Phase.GUEST: "Guests",
    Phase.THROTTLE: "Real-time throttling",
}
DISTURBANCES = {
    "live": "takes effect at once and disturbs nothing",
    "drain": "needs the guests of this host to be stopped or moved away",
    "reboot": "takes effect at the next reboot",
}
SETTING_STATUS = {"change": "to be set", "satisfied": "already so", "absent": "not on this kernel"}
SUBJECTS = {
    "kernel": "Kernel",
    "ledger": "CPU ledger",
    "spinner": "What disturbs a real-time CPU",
    "interrupt": "Interrupts",
    "thread": "Threads",
    "page": "Memory pages",
    "guest": "Guests",
    "setting": "Settings",
}
#: Sign, word and colour class: a status is never told by colour alone.
CHECK_STATUS = {
    "failed": ("✕", "failed", "bad"),
    "not_checked": ("–", "not checked", "warn"),
    "passed": ("✓", "passed", "good"),
}
#: More checks of one kind that passed are folded away.
MANY = 16
VERDICTS = {
    "as planned": ("✓", "good", "Set as planned"),
    "not as planned": ("✕", "bad", "Not as planned"),
    "incomplete": ("–", "warn", "Incomplete"),
}


def render_report(run: Run, *, title: str = "Evenkeel report") -> str:
    """The page for ``run``: HTML that needs nothing beside it."""
    verdict = judge(run)
    several = len(run.plan.hosts) > 1
    sections: list[tuple[str, str, Markup]] = []
    if run.placement is not None:
        sections.append(("placement", "Placement", placement_section(run.placement)))
    for number, host in enumerate(run.plan.hosts):
        of_host = run.of(host)
        prefix = f"h{number}-" if several else ""
        suffix = f" · {host.name}" if several else ""
        for name, heading, body in (
            ("effect", "Before and after", _effect(of_host)),
            ("machine", "Machine", _machine(host, of_host)),
            ("latency", "Latency", _latency(host, of_host)),
            ("guests", "Guests", _guests(host, of_host, prefix)),
            ("plan", "Plan", _settings(host, of_host, f"{prefix}settings")),
            ("checks", "Checks", _checks(of_host.findings, of_host.findings_before)),
            ("journal", "Journal", _journal(of_host.journal)),
            ("conditions", "Conditions", _conditions(run.plan, host, of_host)),
        ):
            if body:
                sections.append((prefix + name, heading + suffix, body))
    sections.append(("limits", "Not covered", _limits(run, verdict)))
    body = join(
        _head(run, verdict, sections, title),
        el(
            "main",
            *(el("section", el("h2", heading), body, id=name) for name, heading, body in sections),
            id="content",
        ),
    )
    names = ", ".join(host.name for host in run.plan.hosts)
    return whole_page(
        f"{title}: {names}, {verdict.state}",
        body,
        made_from="the documents of this run",
        script=package_file("page.js") + package_file("heat.js"),
    )


# -- head -------------------------------------------------------------------------------------------------------------


def _head(run: Run, verdict: Verdict, sections: Sequence[tuple[str, str, Markup]], title: str) -> Markup:
    sign, colour, words = VERDICTS[verdict.state]
    counts = verdict.counts
    names = ", ".join(host.name for host in run.plan.hosts)
    if verdict.state == "as planned":
        hosts = len(run.plan.hosts)
        words = f"{names} is set as planned" if hosts == 1 else f"All {hosts} hosts are set as planned"
    if verdict.state == "not as planned":
        words = f"Not as planned: {_count(counts.failed, 'check')} of {counts.total} failed"
    elif verdict.state == "incomplete" and counts.not_checked:
        words = f"Incomplete: {_count(counts.not_checked, 'check')} of {counts.total} could not be made"
    applied = [
        entry.at for host in run.plan.hosts for entry in getattr(run.of(host).journal, "entries", ()) if entry.at
    ]
    written = {
        (host.name, entry.setting)
        for host in run.plan.hosts
        for entry in getattr(run.of(host).journal, "entries", ())
        if entry.event == "done" and entry.setting
    }
    changes = len(written) or sum(len(host.changes) for host in run.plan.hosts)
    shown = [
        ("passed", f"{counts.passed:,}"),
        ("failed", f"{counts.failed:,}"),
        ("not checked", f"{counts.not_checked:,}"),
        ("settings written" if written else "settings to change", f"{changes:,}"),
    ]
    return el(
        "header",
        el("div", el("b", title), el("span", f"Host {names}"), class_="brand"),
        el(
            "div",
            el("span", sign, class_=f"sign {colour}", aria_hidden="true"),
            el("h1", words, class_=colour),
            class_="verdict",
        ),
        el("ul", *(el("li", el("b", value), f" {name}") for name, value in shown), class_="facts"),
        _bullets(verdict.reasons, "reasons") if verdict.reasons else None,
        _promises(verdict),
        el("p", f"Applied from {_time(min(applied))} to {_time(max(applied))}.", class_="detail") if applied else None,
        el("nav", el("ul", *(_nav(name, heading) for name, heading, _ in sections)), aria_label="Sections"),
    )


def _nav(name: str, heading: str) -> Markup:
    return el("li", el("a", heading, href=f"#{name}"))


def _time(at: str) -> str:
    """RFC 3339 as a person reads it, to the second."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?Z", at)
    return f"{match[1]} {match[2]} UTC" if match else at


def _promises(verdict: Verdict) -> Markup | None:
    lines = [_deadline(deadline) for deadline in verdict.deadlines]
    if verdict.emulated:
        exact = f"What ran where, and how often, is exact here. Every latency number is {EMULATION_NOTE}."
        lines.insert(0, el("p", el("b", "Emulated machine. "), exact))
    return el("div", *lines, class_="note warn" if verdict.emulated else "note") if lines else None


def _deadline(deadline: Deadline) -> Markup:
    colour = {"met": "good", "missed": "bad"}.get(deadline.state, "warn")
    words = {"not provable": "not provable here", "not measured": "not measured"}.get(deadline.state, deadline.state)
    measured = ""
    # In emulation the number would invite a comparison that means nothing.
    if deadline.max_ns is not None and deadline.state in ("met", "missed"):
        measured = f" Largest of {deadline.samples:,} samples: {format_ns(deadline.max_ns)}."
    return el(
        "p",
        el("b", f"Deadline {format_duration(deadline.wanted_ns)} for guest {deadline.guest}: "),
        el("span", words, class_=f"status {colour}"),
        f", {deadline.why}{measured}",
        # In emulation a rate would be arithmetic with noise.
        el("span", f" {deadline.arithmetic}", class_="muted") if measured else None,
    )


# -- before and after -------------------------------------------------------------------------------------------------


def _effect(run: HostRun) -> Markup | None:
    found = pairs(run.evidence_before, run.evidence_after)
    if not found:
        return None
    parts: list[Content] = [
        el(
            "p",
            "One spinner, pinned to a CPU that the plan gives to a real-time guest. What interrupted it, counted by "
            "the kernel: exact, in emulation too.",
            class_="lead",
        )
    ]
    columns = [
        el(
            "div",
            el("h3", pair.title),
            *(el("p", line, class_="detail") for line in pair.circumstances),
            *(_measure(measure) for measure in measures(pair)),
            class_="spinner",
        )
        for pair in found
    ]
    return join(*parts, el("div", *columns, class_="compare"))


def _measure(measure: Measure) -> Markup:
    moments = (("before", measure.before), ("after", measure.after))
    details = [f"{name}: {counted.detail}" for name, counted in moments if counted and counted.detail]
    more = el("p", "; ".join(details), class_="detail") if details else None
    if measure.before is None or measure.after is None:
        # A bar says something only beside another one.
        only = measure.before or measure.after
        return el("div", el("h4", measure.name, el("b", f"{only.count:,}") if only else None), more, class_="measure")
    largest = max(measure.before.rate, measure.after.rate)
    rows = [
        cell
        for name, counted in (("before", measure.before), ("after", measure.after))
        for cell in (
            el("dt", name),
            el("dd", _bar(name, 100 * counted.rate / largest if largest else 0.0)),
            el("dd", f"{counted.count:,}", class_="num"),
        )
    ]
    return el(
        "div",
        el("h4", measure.name, el("span", measure.change) if measure.change else None),
        el("dl", *rows, class_="bars"),
        more,
        class_="measure",
    )


def _bar(name: str, share: float) -> Markup:
    # A number above zero is never drawn as nothing.
    width = max(share, 0.7) if share > 0 else 0
    rectangle = el("rect", class_=f"b-{name}", x="0", y="1", width=f"{width:.2f}", height="8") if width else None
    return el("svg", rectangle, viewBox="0 0 100 10", preserveAspectRatio="none", aria_hidden="true")


# -- machine ----------------------------------------------------------------------------------------------------------


def _machine(host: HostPlan, run: HostRun) -> Markup:
    facts = run.facts_after or run.facts_before
    ledger = [(name, cpus, what) for name, cpus, what in _ledger(host) if cpus]
    parts: list[Content] = [el("p", _identity(facts), class_="lead") if facts else None]
    if facts is not None:
        # The picture escapes by itself (tests/report/test_picture.py); it is wider than a phone and scrolls in its box.
        drawn = trusted(machine_svg(facts, _roles(host), notes=_notes_on_cpus(host), title=host.name))
        parts.append(el("div", drawn, class_="picture", tabindex="0"))
    parts.append(
        _table(
            ("Role", "CPUs", "Who runs there"),
            [
                (el("th", name, scope="row"), _cell("CPUs", _value(format_cpus(cpus))), _cell("Who runs there", what))
                for name, cpus, what in ledger
            ],
            caption="The CPU ledger: every CPU has one owner",
        )
    )
    if host.ledger.why:
        parts += [el("h3", "Why so"), _bullets(host.ledger.why)]
    if facts is not None and facts.remarks:
        parts += [el("h3", "What the machine says of itself that cannot be true"), _bullets(facts.remarks)]
    return join(*parts)


def _roles(host: HostPlan) -> dict[int, str]:
    """CPU -> name of its role, as the picture calls them."""
    names = ("housekeeping", "data_plane", "realtime", "idle", "shared")
    return {cpu: name for name in names for cpu in getattr(host.ledger, name)}


def _notes_on_cpus(host: HostPlan) -> dict[int, str]:
    found: dict[int, list[str]] = {}
    for guest in host.guests:
        for vcpu in guest.vcpus:
            for cpu in vcpu.cpus if len(vcpu.cpus) == 1 else ():
                found.setdefault(cpu, []).append(f"vCPU {vcpu.index} of {guest.name}")
    return {cpu: ", ".join(words) for cpu, words in found.items()}


def _ledger(host: HostPlan) -> list[tuple[str, frozenset[int], str]]:
    ledger = host.ledger
    return [
        ("housekeeping", ledger.housekeeping, "the host itself, device interrupts, emulator and I/O threads of guests"),
        ("real-time", ledger.realtime, _who_runs(host)),
        ("idle", ledger.idle, "nobody: SMT siblings of real-time CPUs stay empty"),
        ("data plane", ledger.data_plane, "packet processing"),
        ("shared", ledger.shared, "ordinary guests"),
    ]


def _who_runs(host: HostPlan) -> str:
    pinned = [
        f"vCPU {vcpu.index} of {guest.name} on {format_cpus(vcpu.cpus)}"
        for guest in host.guests
        for vcpu in guest.vcpus
        if vcpu.cpus and vcpu.cpus <= host.ledger.realtime
    ]
    return "; ".join(pinned) or "vCPUs of real-time guests"


def _identity(facts: Facts) -> str:
    identity = facts.identity
    name = " ".join(part for part in (identity.system_vendor, identity.product) if part)
    online = len(facts.online)
    cores = len({(cpu.package, cpu.die, cpu.core) for cpu in facts.cpus if cpu.online and cpu.core is not None})
    parts = [
        name,
        f"{_count(len({cpu.package for cpu in facts.cpus if cpu.package is not None}), 'package')}, "
        f"{_count(cores, 'core')}, {_count(online, 'CPU')}, {_count(len(facts.nodes), 'NUMA node')}",
        f"{facts.memory_bytes / (1 << 30):.1f} GiB memory" if facts.memory_bytes else "",
        identity.os_release or "",
        identity.architecture,
    ]
    return " · ".join(part for part in parts if part)


# -- latency ----------------------------------------------------------------------------------------------------------


def _latency(host: HostPlan, run: HostRun) -> Markup | None:
    # In emulation a line for the deadline would invite a comparison that means nothing.
    goals = {} if run.emulated else {guest.name: guest.latency_ns for guest in host.guests}
    groups: dict[tuple[str, str, str], dict[str, Latency]] = {}
    for moment, evidence in (("before", run.evidence_before), ("after", run.evidence_after)):
        for latency in evidence.latencies if evidence else ():
            place = "Host" if latency.where == "host" else f"Guest {latency.guest}"
            cpus = f"{'CPU' if latency.where == 'host' else 'vCPU'} {format_cpus(latency.cpus)}"
            groups.setdefault((place, cpus, latency.tool), {})[moment] = latency
    if not groups:
        return None
    # Not every tool knows how many periods it missed.
    any_lost = any(run.lost is not None for moments in groups.values() for run in moments.values())
    figures: list[Markup] = []
    rows: list[Sequence[Content]] = []
    for (place, cpus, tool), moments in groups.items():
        series = [Series("before", moments["before"])] if "before" in moments else []
        series += [Series("after", moments["after"])] if "after" in moments else []
        caption = f"{place}, {cpus}, {tool}"
        labels = sorted({latency.label for latency in moments.values() if latency.label})
        if run.emulated and EMULATION_NOTE not in labels:
            labels.append(EMULATION_NOTE)
        figures.append(
            el(
                "figure",
                el("figcaption", caption),
                histogram_svg(series, title=caption),
                percentiles_svg(
                    series, title=f"{caption}, by percentile", goal_ns=goals.get(series[0].run.guest or "")
                ),
                *_over_time(series, caption, goals.get(series[0].run.guest or "")),
                *(el("p", el("span", label, class_="warn"), class_="detail") for label in labels),
            )
        )
        rows += [_latency_row(place, one.name, one.run, any_lost) for one in series]
    numbers = ("Samples", "min", "avg", "p99", "p99.9", "max", *(("lost",) if any_lost else ()))
    table = _table(("Where", "When", "CPUs", *numbers), rows, caption="The same in numbers", numbers=numbers)
    return join(el("div", *figures, class_="histograms"), table)


def _over_time(series: Sequence[Series], caption: str, goal_ns: int | None) -> Iterator[Markup]:
    """A heat map of each run that has a course, all on one scale."""
    courses = {one.name: one.run.course for one in series if one.run.course}
    within = extent(courses.values(), goal_ns)
    for name, course in courses.items():
        yield el("p", f"Over time, {name} the plan", class_="detail")
        yield heat_figure(course, title=f"{caption}, over time, {name}", goal_ns=goal_ns, within=within)


def _latency_row(place: str, moment: str, run: Latency, with_lost: bool) -> Sequence[Content]:
    def share(fraction: float) -> str:
        found = percentile(run.histogram, fraction)
        return f"> {format_ns(largest_bucket_ns(run.histogram))}" if found is None else format_ns(found)

    return (
        el("th", place, scope="row"),
        _cell("When", moment),
        _cell("CPUs", _value(format_cpus(run.cpus))),
        _cell("Samples", f"{run.samples:,}", "num"),
        _cell("min", format_ns(run.min_ns), "num"),
        _cell("avg", format_ns(run.avg_ns), "num"),
        _cell("p99", share(0.99), "num"),
        _cell("p99.9", share(0.999), "num"),
        _cell("max", format_ns(run.max_ns), "num"),
        *((_cell("lost", "" if run.lost is None else f"{run.lost:,}", "num"),) if with_lost else ()),
    )


# -- guests -----------------------------------------------------------------------------------------------------------


def _guests(host: HostPlan, run: HostRun, prefix: str) -> Markup | None:
    if not host.guests:
        return None
    table = _table(
        ("Guest", "Goal", "NUMA node", "vCPUs", "Emulator threads", "Memory"),
        [_guest_row(guest) for guest in host.guests],
        caption="Where each guest runs",
    )
    more: list[Content] = []
    for number, guest in enumerate(host.guests):
        more.append(el("h3", guest.name, id=f"{prefix}guest-{number}"))
        more.append(_bullets(guest.why) if guest.why else None)
        if guest.guest_arguments:
            more.append(el("p", "Added to its own kernel command line: ", el("code", guest.guest_arguments)))
        more.append(
            el("details", el("summary", "Domain definition", class_="more"), el("pre", guest.xml, tabindex="0"))
        )
    return join(table, *more)


def _guest_row(guest: GuestPlan) -> Sequence[Content]:
    goal = guest.goal + (f", {format_duration(guest.latency_ns)}" if guest.latency_ns else "")
    pages = f" in {guest.pages:,} pages of {format_size(guest.page_bytes)}" if guest.page_bytes else ""
    return (
        el("th", guest.name, scope="row"),
        _cell("Goal", goal),
        _cell("NUMA node", format_cpus(guest.nodes) or "floats"),
        _cell("vCPUs", el("span", "\n".join(_vcpu(vcpu) for vcpu in guest.vcpus), class_="value")),
        _cell("Emulator threads", _value(format_cpus(guest.emulator_cpus))),
        _cell("Memory", f"{format_size(guest.memory_bytes)}{pages}"),
    )


def _vcpu(vcpu: VcpuPlan) -> str:
    schedule = f" {vcpu.policy}:{vcpu.priority}" if vcpu.policy == "fifo" else ""
    return f"{vcpu.index} → CPU {format_cpus(vcpu.cpus)}{schedule}"


# -- plan -------------------------------------------------------------------------------------------------------------


def _settings(host: HostPlan, run: HostRun, identifier: str) -> Markup:
    written: dict[str, str] = {}
    for entry in run.journal.entries if run.journal else ():
        if entry.setting and entry.event in ("done", "refused", "undone"):
            said = f", read back {_shown(entry.read_back)}" if entry.read_back is not None else ""
            said += f" ({entry.errno})" if entry.errno else ""
            written[entry.setting] = f"{entry.event} at {_time(entry.at)}{said}"
    found = {check.id: check for check in run.findings.checks} if run.findings else {}
    counts = {status: sum(setting.status == status for setting in host.settings) for status in SETTING_STATUS}
    words = ", ".join(f"{count} {SETTING_STATUS[status]}" for status, count in counts.items() if count)
    buttons = [("", f"all {len(host.settings)}")]
    buttons += [(status, f"{SETTING_STATUS[status]} {count}") for status, count in counts.items() if count]
    groups: list[Markup] = []
    for phase in Phase:
        of_phase = [setting for setting in host.settings if setting.phase is phase]
        if of_phase:
            rules = groupby(of_phase, key=lambda setting: (setting.rule, setting.title))
            body = [_rule(title, list(members), found, written) for (_, title), members in rules]
            groups.append(el("div", el("h3", PHASES[phase]), el("div", *body, class_="rows"), data_group=True))
    return join(
        el("p", f"{words or 'No settings'}, in the order of applying. Open a line for its reason.", class_="lead"),
        el(
            "div",
            el("input", type="search", placeholder="Search settings", aria_label="Search settings"),
            *(
                el("button", label, type="button", data_status=status, aria_pressed="false" if status else "true")
                for status, label in buttons
            ),
            el("button", "open all", type="button", data_open=True, aria_pressed="false"),
            el("output"),
            class_="tools",
            data_filter=identifier,
            hidden=True,
        ),
        el("div", *groups, id=identifier),
        *((el("h3", "What the plan cannot set"), _notes(host)) if host.notes else ()),
    )


def _notes(host: HostPlan) -> Markup:
    return el("ul", *(el("li", el("code", note.rule), f" {note.text}") for note in host.notes), class_="plain")


def _rule(title: str, settings: Sequence[Setting], found: Mapping[str, Check], written: Mapping[str, str]) -> Markup:
    """Settings of one rule that follow each other.  A title that they share stands once, above them."""
    several = len(settings) > 1
    rows = [
        _setting(setting, found.get(setting.id), written.get(_step_of(setting)), titled=not several)
        for setting in settings
    ]
    if not several:
        return join(*rows)
    return el("div", el("h4", title, el("span", f" {len(settings)} settings")), *rows, class_="rule", data_group=True)


def _step_of(setting: Setting) -> str:
    """Name of the step in the journal: all boot arguments are written as one."""
    return "boot" if setting.target.type == "boot" else setting.id


def _setting(setting: Setting, check: Check | None, written: str | None, *, titled: bool) -> Markup:
    def short(value: str | None) -> str:
        # A definition stands here by its digest, of which nobody reads more than the beginning.
        if setting.target.type == "guest" and value is not None and len(value) > 24:
            return f"{value[:12]}…"
        # The value of a bare flag on the command line is empty, and being there is all that it says.
        return "present" if setting.target.type == "boot" and value == "" else _shown(value)

    if setting.status == "change":
        value = join(
            el("span", short(setting.old), class_="was"),
            " → ",
            el("span", "removed" if setting.new is None else short(setting.new)),
        )
    elif setting.status == "satisfied":
        value = join(short(setting.new), el("span", " (already so)", class_="was"))
    else:
        value = el("span", "this kernel lacks it on purpose", class_="was")
    inputs = "; ".join(f"{name}: {what}" for name, what in sorted(setting.inputs.items()))
    rows: list[tuple[str, Content]] = [
        ("Reason", setting.reason),
        ("Inputs", inputs),
        ("Where", _target(setting)),
        ("Disturbance", f"{setting.disturbance}: {DISTURBANCES[setting.disturbance]}"),
        ("Risk", setting.risk),
        ("Verified by", setting.verification),
        ("Found", join(_status(check.status), f": {check.observed}") if check else None),
        ("Journal", written),
        ("Source", setting.source),
    ]
    return el(
        "details",
        el(
            "summary",
            el("span", el("b", setting.title) if titled else None, el("code", setting.id), class_="what"),
            el("span", value, class_="tovalue"),
            el("span", el("span", setting.disturbance, class_="chip"), class_="when"),
        ),
        el("div", _pairs(rows), class_="body"),
        class_="row",
        data_status=setting.status,
    )


def _target(setting: Setting) -> Markup:
    parts = setting.target.model_dump(mode="json", exclude={"compare", "type"}, exclude_none=True)
    effective = parts.pop("effective", None)
    words = [f"{name} {value}" for name, value in parts.items()]
    if isinstance(effective, dict):
        words.append(f"effective in {effective.get('path')}")
    return join(f"{setting.target.type.replace('_', ' ')}: ", el("code", ", ".join(words)))


# -- checks -----------------------------------------------------------------------------------------------------------


def _checks(findings: Findings | None, before: Findings | None) -> Markup | None:
    if findings is None:
        return None
    old = {check.id: check for check in before.checks} if before else {}
    counts = {status: sum(check.status == status for check in findings.checks) for status in CHECK_STATUS}
    parts: list[Content] = [
        el(
            "p",
            f"{_count(len(findings.checks), 'comparison')} of the running machine with the plan: "
            + ", ".join(f"{count} {CHECK_STATUS[status][1]}" for status, count in counts.items())
            + ".",
            class_="lead",
        )
    ]
    if before:
        parts.append(el("p", _count_before(findings, old), class_="lead"))
    not_passed = [check for check in findings.checks if check.status != "passed"]
    not_passed.sort(key=lambda check: list(CHECK_STATUS).index(check.status))
    if not_passed:
        parts += [
            el("h3", "Not passed"),
            el("div", *(_check(check, old.get(check.id), opened=True) for check in not_passed), class_="rows"),
        ]
    for subject, heading in SUBJECTS.items():
        of_subject = [check for check in findings.checks if check.subject == subject and check.status == "passed"]
        if not of_subject:
            continue
        rows = el("div", *(_check(check, old.get(check.id)) for check in of_subject), class_="rows")
        if len(of_subject) > MANY:
            rows = el("details", el("summary", f"{len(of_subject)} passed", class_="more"), rows)
        parts += [el("h3", heading), rows]
    return join(*parts)


def _count_before(findings: Findings, old: Mapping[str, Check]) -> str:
    """The same comparisons on the host as it was.  What nobody looked at then is said, and is no failure."""
    found = [old[check.id].status if check.id in old else "not_checked" for check in findings.checks]
    counts = ", ".join(f"{sum(one == status for one in found)} {CHECK_STATUS[status][1]}" for status in CHECK_STATUS)
    return f"Before anything was applied: {counts}."


def _check(check: Check, before: Check | None, *, opened: bool = False) -> Markup:
    observed: Content = check.observed or check.reason
    # What could not be looked at says so below; here it would stand in front of what was.
    if before is not None and before.status != "not_checked" and before.observed != check.observed:
        observed = join(el("span", _shown(before.observed), class_="was"), " → ", el("span", observed))
    was = join(_status(before.status), f": {before.reason or before.observed}") if before else None
    rows: list[tuple[str, Content]] = [
        ("Before", was),
        ("Expected", _value(check.expected) if check.expected else None),
        ("Observed", _value(check.observed) if check.observed else None),
        ("Could not be checked", check.reason),
        ("Why it matters", check.why),
        ("What to do", check.fix if check.status == "failed" else None),
        ("Evidence", join(*(_evidence(item) for item in check.evidence)) if check.evidence else None),
    ]
    return el(
        "details",
        el(
            "summary",
            el("span", el("b", check.title), el("code", check.id), class_="what"),
            el("span", observed, class_="tovalue"),
            el("span", _status(check.status), class_="when"),
        ),
        el("div", _pairs(rows), class_="body"),
        class_="row",
        data_status=check.status,
        open=opened,
    )


def _evidence(item: EvidenceItem) -> Markup:
    return el("div", el("code", item.where, class_="muted"), " ", _value(item.value))


def _status(status: str) -> Markup:
    sign, word, colour = CHECK_STATUS[status]
    return el("span", el("span", sign, aria_hidden="true"), f" {word}", class_=f"status {colour}")


# -- journal ----------------------------------------------------------------------------------------------------------


def _journal(journal: Journal | None) -> Markup | None:
    if journal is None or not journal.entries:
        return None
    rows = [
        (
            _cell("Step", str(entry.sequence), "num"),
            _cell("At", entry.at),
            _cell("Event", entry.event),
            _cell("Setting", entry.setting or entry.phase or ""),
            _cell("Old", _value(entry.old) if entry.old is not None else ""),
            _cell("Wanted", _value(entry.wanted) if entry.wanted is not None else ""),
            _cell("Read back", _value(entry.read_back) if entry.read_back is not None else ""),
            _cell("Said", " ".join(part for part in (entry.errno, entry.message) if part)),
        )
        for entry in journal.entries
    ]
    table = _table(("Step", "At", "Event", "Setting", "Old", "Wanted", "Read back", "Said"), rows)
    return join(
        el("p", "What was really written, as the host recorded it before and after each write.", class_="lead"),
        el("details", el("summary", f"{_count(len(rows), 'line')}", class_="more"), table),
    )


# -- conditions and limits --------------------------------------------------------------------------------------------


def _conditions(plan: Plan, host: HostPlan, run: HostRun) -> Markup:
    before = _described(run.evidence_before, run.facts_before)
    after = _described(run.evidence_after, run.facts_after)
    rows: list[Sequence[Content]] = []
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name), after.get(name)
        same = old == new
        rows.append(
            (
                el("th", name, scope="row"),
                *(
                    (el("td", _value(old or "not known"), colspan=2),)
                    if same
                    else (
                        _cell("before", _value(old or "not known")),
                        _cell("after", _value(new or "not known")),
                    )
                ),
            )
        )
    hashes = [
        ("Plan", plan.sha256()),
        ("Site file", plan.site_sha256),
        ("Facts that the plan was made from", host.facts_sha256),
        ("Address", host.address),
        ("Kernel that the plan was made for", host.kernel_release + (" (PREEMPT_RT)" if host.preempt_rt else "")),
    ]
    return join(
        el("p", "What this result is bound to. Change one of these, and it must be taken again.", class_="lead"),
        _table(("", "Before", "After"), rows, caption="Conditions before and after") if rows else None,
        el("h3", "Documents"),
        _pairs([(name, _value(value)) for name, value in hashes]),
    )


def _described(evidence: Evidence | None, facts: Facts | None) -> dict[str, str | None]:
    if evidence is not None:
        conditions = evidence.conditions
    elif facts is not None:
        conditions = conditions_of(facts, load="not measured")
    else:
        return {}
    return {
        "Kernel": conditions.kernel,
        "PREEMPT_RT": _yes(conditions.preempt_rt),
        "Kernel command line": conditions.command_line,
        "Emulated in software": _yes(conditions.emulated),
        "Hypervisor": conditions.hypervisor,
        "CPU model": conditions.cpu_model,
        "Firmware": conditions.firmware,
        "Clock source": conditions.clocksource,
        "QEMU on the host": conditions.qemu,
        "libvirt on the host": conditions.libvirt,
        "Load": conditions.load,
        "Holds CPUs awake": _holders(conditions.dma_latency_holders),
        **{
            f"Holds vCPUs awake in {guest}": _holders(names)
            for guest, names in sorted((conditions.guest_dma_latency_holders or {}).items())
        },
    }


def _holders(names: tuple[str, ...] | None) -> str | None:
    return None if names is None else ", ".join(names) or "nobody"


def _yes(value: bool | None) -> str | None:
    return None if value is None else "yes" if value else "no"


def _limits(run: Run, verdict: Verdict) -> Markup:
    said: list[str] = []
    if verdict.emulated:
        said += [
            "Latency. The CPUs of this machine are simulated in software and share those of the machine below, so "
            "every time between two events is noise. The histograms show that measuring works, not how fast it is.",
            "What emulation does not have: idle states, frequency scaling, system management interrupts, cache "
            "allocation, memory bandwidth. Settings for them are neither made nor checked here.",
        ]
    for host in run.plan.hosts:
        findings = run.of(host).findings
        said += [
            f"{check.title} ({check.id}): not checked. {check.reason}".rstrip()
            for check in (findings.checks if findings else ())
            if check.status == "not_checked"
        ]
        if run.of(host).evidence_after is None:
            said.append(f"Nothing was measured on {host.name} after the plan was applied.")
    said += [
        f"The deadline of guest {deadline.guest} ({format_duration(deadline.wanted_ns)}): {deadline.why}"
        for deadline in verdict.deadlines
        if deadline.state not in ("met", "missed")
    ]
    said += [
        "Rare events. A run of seconds or minutes cannot show what happens once a day.",
        "Other loads than the ones named under Conditions.",
    ]
    return _bullets(said)


# -- small parts ------------------------------------------------------------------------------------------------------


def _table(
    head: Sequence[str], rows: Iterable[Sequence[Content]], caption: str | None = None, numbers: Sequence[str] = ()
) -> Markup:
    """``numbers``: the heads of columns of numbers, which stand at the right like their numbers."""
    return el(
        "div",
        el(
            "table",
            el("caption", caption) if caption else None,
            el("thead", el("tr", *(_head_cell(name, name in numbers) for name in head))),
            el("tbody", *(el("tr", *cells) for cells in rows)),
            class_="cards",
        ),
        class_="scroll",
    )


def _head_cell(name: str, number: bool) -> Markup:
    return el("th", name, scope="col", class_="num" if number else None) if name else el("td")


def _cell(label: str, content: Content, class_: str | None = None) -> Markup:
    return el("td", content, data_label=label, class_=class_)


def _pairs(rows: Iterable[tuple[str, Content]]) -> Markup:
    """A list of names and values; an empty value is left out."""
    return el("dl", *(join(el("dt", name), el("dd", value)) for name, value in rows if value), class_="pairs")


def _bullets(lines: Iterable[str], class_: str = "plain") -> Markup:
    return el("ul", *(el("li", line) for line in lines), class_=class_)


def _value(value: str) -> Markup:
    return el("span", value, class_="value")


def _shown(value: str | None) -> str:
    return "not set" if value is None else "(empty)" if value == "" else value


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
