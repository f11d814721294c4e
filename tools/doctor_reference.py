"""The page docs/reference/doctor.md, from the doctor's catalogue and from the table of faults that the tests make."""

from __future__ import annotations

from tests.verify.doctor.faults import FAULTS, Fault

from evenkeel.verify.doctor import AILMENTS
from evenkeel.verify.doctor.ailment import Ailment

HEAD = """\
# What the doctor looks for

`evenkeel doctor` looks for each of these, from the [facts](facts.md) of a host alone. This page is made by
`make reference` from the same tables as the program and its tests. How to use it: [the doctor](../how-to/doctor.md).

- *harmful*: a guest will miss its deadline, not start, or hang the host. The exit code is 1.
- *warning*: a danger, or something that will not last.
- *note*: worth knowing.

The table names the worst that each can be; one place where it shows may be less, and says so. What the facts do not
tell is *not checked*, never healthy: a recorded tree of the topology leaves most of it open, and so does a user who is
not root.
"""
FAULTS_HEAD = """\
## Fault by fault

Each row is a test. The fault is made on a healthy recorded host, and the doctor must name this finding and no other;
with *yes* it is also made on a running virtual host with its guests, named, and put back. The healthy hosts (as
installed; tuned, with two threads a core; tuned, with a real-time guest) have no harmful finding.
"""


def page() -> str:
    lines = [HEAD, "| finding | harm | healthy is |", "|---|---|---|"]
    lines += [f"| [{one.id}](#{one.id.lower()}) | {one.severity} | {_cell(one.healthy)} |" for one in AILMENTS]
    lines += [
        "",
        FAULTS_HEAD,
        "| fault | how it is made | finding | harm | on a running host |",
        "|---|---|---|---|---|",
    ]
    lines += [_row(fault) for fault in FAULTS]
    lines += ["", "## The findings", ""]
    return "\n".join(lines) + "\n" + "\n".join(_section(one) for one in AILMENTS)


def _row(fault: Fault) -> str:
    live = "yes" if fault.live else ""
    return f"| {fault.id} | {_cell(fault.what)} | {fault.finding} | {fault.severity} | {live} |"


def _section(one: Ailment) -> str:
    return (
        f"### {one.id}\n\n**{_text(one.healthy)}.** Else: {one.severity}.\n\n- Why: {_text(one.why)}.\n"
        f"- Fix: {_text(one.fix)}.\n- Source: {_text(one.source)}.\n"
    )


def _text(text: str) -> str:
    """XML elements are shown, not taken for HTML."""
    return text.replace("<", "&lt;").replace(">", "&gt;")


def _cell(text: str) -> str:
    return _text(text).replace("|", "\\|")
