"""`evenkeel spikes PLAN|SITE GUEST`: why samples in a guest were late, as an Explanation.  Thin: parse, call, print."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli.plan import plan_of
from evenkeel.cli.unheeded import given_options, refuse

if TYPE_CHECKING:
    from evenkeel.documents.evidence import Conditions
    from evenkeel.documents.explanation import Explanation
    from evenkeel.documents.plan import GuestPlan, HostPlan, Plan
    from evenkeel.machines.protocol import Machine, OnProgress, Probe
    from evenkeel.measure.explain.recording import Recording, Under

SHORTEST_NS, LONGEST_NS = 1_000_000_000, 3_600_000_000_000
PERIOD_NS = 100_000, 1_000_000_000
#: Options of recording.
_RECORDS = dict.fromkeys(("--for", "--period"), "leave --from out to record anew")


def register(app: typer.Typer) -> None:
    app.command(name="spikes")(spikes)


def spikes(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(metavar="PLAN|SITE", help="A saved plan, or a site to be planned first.", show_default=False),
    ],
    guest: Annotated[str, typer.Argument(metavar="GUEST", help="Explain samples in this guest.", show_default=False)],
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="How long to record: 10s, 5min.")] = "10s",
    over: Annotated[
        str, typer.Option("--over", metavar="TIME", help="Explain samples that are later than this.")
    ] = "100us",
    period: Annotated[str, typer.Option("--period", metavar="TIME", help="Between two samples.")] = "1ms",
    output: Annotated[
        str | None, typer.Option("--output", "-o", metavar="FILE", help="Save the Explanation.", show_default=False)
    ] = None,
    pftrace: Annotated[
        Path | None,
        typer.Option("--pftrace", metavar="FILE", help="Save the timeline for ui.perfetto.dev.", show_default=False),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", metavar="FILE", help="Save a page with timelines.", show_default=False)
    ] = None,
    heat_map: Annotated[
        Path | None,
        typer.Option(
            "--heat-map", metavar="FILE", help="Save a picture (SVG) of all samples over time.", show_default=False
        ),
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option("--keep", metavar="FILE", help="Save the raw recording, to explain it again.", show_default=False),
    ] = None,
    from_file: Annotated[
        Path | None,
        typer.Option(
            "--from", metavar="FILE", help="Explain a kept recording; nothing is recorded.", show_default=False
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the Explanation as JSON on stdout.")] = False,
) -> int:
    """Say why samples in a guest were late: who ran instead, in the guest and on the host, and what allowed it.

    timerlat runs in the guest meanwhile, on its real-time vCPUs at FIFO 95. The guest needs its agent, a shell, and a
    kernel with timerlat (5.14 or newer); the host needs tracefs. Sleep without a cause is shown as slack, never as a
    cause.

      evenkeel spikes plan.json plc --for 60s --over 100us --report spikes.html

      evenkeel trace explain plan.json plc --from kept.zip --pftrace plc.pftrace
    """
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.errors import Where, WrongInput
    from evenkeel.measure.explain.allowed import allowed
    from evenkeel.measure.explain.attribute import explanation, stage
    from evenkeel.measure.explain.perfetto import pftrace as draw
    from evenkeel.measure.explain.recording import from_bytes, to_bytes

    over_ns = _time("--over", over)
    written = {"-o": output, "--keep": keep, "--pftrace": pftrace, "--report": report, "--heat-map": heat_map}
    taken = screen.takes_stdout(written, json=as_json)
    files.check_places(*written.values())
    if from_file:
        refuse(
            given_options(context),
            "a kept recording is explained and nothing recorded, so --from does not heed",
            _RECORDS,
        )
        recording = from_bytes(files.read_bytes(from_file), str(from_file))
        if recording.guest_name != guest:
            raise WrongInput(
                f"this is a recording of guest {recording.guest_name}, not of {guest}",
                where=Where(str(from_file)),
                hint=f"evenkeel spikes {source} {recording.guest_name} --from {from_file}",
            )
    else:
        recording = _record(plan_of(source), guest, _time("--for", duration), _time("--period", period))
    if keep:
        files.save_bytes(keep, to_bytes(recording))
        screen.wrote(keep)
    on = stage(recording)
    found = allowed(on, recording, explanation(on, recording, over_ns=over_ns))
    if output:
        files.save_document(output, found)
        screen.wrote(output)
    if pftrace:
        files.save_bytes(pftrace, draw(on, found))
        screen.wrote(pftrace)
    if report:
        from evenkeel.plan.catalogue import entries
        from evenkeel.report.timeline import RuleText, render_explanation

        rules = [RuleText(entry.id, entry.title, entry.lines()) for entry in entries()]
        files.save_text(report, render_explanation(found, rules))
        screen.wrote(report)
    if heat_map:
        from evenkeel.report.timeline import heat_map as drawn

        files.save_text(heat_map, drawn(found))
        screen.wrote(heat_map)
    if as_json and not taken:
        screen.emit_json(found)
    elif not taken:
        _print(found)
    return 0


def _time(option: str, text: str) -> int:
    """Nanoseconds.  Raises WrongInput."""
    from evenkeel.documents.quantity import parse_duration
    from evenkeel.errors import WrongInput

    try:
        return parse_duration(text)
    except ValueError as error:
        raise WrongInput(f"{option}: {error}") from None


def fly(plan: Plan, guest: str, limit_s: int, keep: str, on_miss: str, output: str) -> int:
    """The flight recorder of `evenkeel measure`: save what its rings held.  1 when nothing happened in time."""
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.errors import WrongInput
    from evenkeel.measure.explain.recording import fly as wait
    from evenkeel.measure.explain.recording import to_bytes

    keep_ns, late_ns = _time("--flight-recorder", keep), _time("--on-miss", on_miss)
    if not SHORTEST_NS <= keep_ns <= 60 * SHORTEST_NS:
        raise WrongInput("--flight-recorder: from 1s to 60s, please")
    if not PERIOD_NS[0] // 100 <= late_ns <= PERIOD_NS[1]:
        raise WrongInput("--on-miss: from 1us to 1s, please")
    with _session(plan, guest) as session:
        found = wait(
            session.probe,
            session.host.name,
            guest,
            session.vcpus,
            conditions=session.conditions,
            keep_s=keep_ns / 1e9,
            late_us=late_ns // 1000,
            limit_s=limit_s,
            siblings=session.siblings,
            on_progress=session.on_progress,
        )
    if found.reason is None:
        screen.note(f"no sample was later than {on_miss}; nothing is saved")
        return 1
    files.save_bytes(output, to_bytes(found))
    screen.note(f"frozen: {found.reason}")
    screen.wrote(output)
    return 0


def _record(plan: Plan, guest: str, length_ns: int, period_ns: int) -> Recording:
    from evenkeel.errors import WrongInput
    from evenkeel.measure.explain.recording import record

    if not SHORTEST_NS <= length_ns <= LONGEST_NS:
        raise WrongInput("--for: from 1s to 1h, please")
    if not PERIOD_NS[0] <= period_ns <= PERIOD_NS[1]:
        raise WrongInput("--period: from 100us to 1s, please")
    with _session(plan, guest) as session:
        return record(
            session.probe,
            session.host.name,
            guest,
            session.vcpus,
            conditions=session.conditions,
            seconds=length_ns / 1e9,
            period_us=period_ns // 1000,
            siblings=session.siblings,
            under=_under(session.machine, session.conditions.emulated),
            on_progress=session.on_progress,
        )


@dataclass(frozen=True)
class _Session:
    machine: Machine
    probe: Probe
    host: HostPlan
    vcpus: list[int]
    conditions: Conditions
    siblings: dict[str, tuple[int, ...]]
    on_progress: OnProgress


@contextmanager
def _session(plan: Plan, guest: str) -> Iterator[_Session]:
    """A conversation with the host of ``guest``, and what a recording is bound to."""
    from evenkeel.apply.hosts import read_facts
    from evenkeel.cli import output as screen
    from evenkeel.machines.address import resolve
    from evenkeel.measure.conditions import conditions

    host, wanted = _find(plan, guest)
    doing = f"recording {guest} on {host.name}"
    with closing(resolve(host.address)) as machine, machine.probe() as probe, screen.progress(doing) as on_progress:
        facts = read_facts(probe)
        bound = conditions(facts, load="what runs there", plan_sha256=plan.sha256())
        siblings = {str(cpu.id): tuple(sorted(cpu.siblings - {cpu.id})) for cpu in facts.cpus}
        yield _Session(machine, probe, host, list(wanted.realtime_vcpus), bound, siblings, on_progress)


def _find(plan: Plan, guest: str) -> tuple[HostPlan, GuestPlan]:
    from evenkeel.errors import WrongInput

    for host in plan.hosts:
        for one in host.guests:
            if one.name == guest:
                return host, one
    known = sorted(one.name for host in plan.hosts for one in host.guests)
    raise WrongInput(f"the plan has no guest {guest}", hint=f"its guests: {', '.join(known) or 'none'}")


def _under(machine: Machine, emulated: bool | None) -> Under | None:
    """This machine, where the host is a virtual one on it: what it does to the host is part of the truth."""
    from evenkeel.cli import output as screen
    from evenkeel.machines.local import LocalMachine
    from evenkeel.measure.explain.recording import Under
    from evenkeel.probe.trace import tracefs

    kind, _, name = machine.address.partition(":")
    if kind != "virtual" or not emulated:
        return None
    try:
        tracefs.root()
    except OSError as error:
        screen.warn(f"what this machine does to {machine.address} is not recorded: no tracefs here: {error.strerror}")
        return None
    return Under(name, LocalMachine().probe, machine.probe)


# -- printing ---------------------------------------------------------------------------------------------------------


def _print(found: Explanation) -> None:
    from evenkeel.cli import output as screen
    from evenkeel.report.chart import format_ns
    from evenkeel.report.timeline import (
        SHORTER,
        aligned,
        aligned_below,
        blurred,
        ended_early,
        explained_share,
        lost,
        recorded,
        usual,
        words,
    )

    console = screen.out()
    late = len(found.spikes)
    console.print(
        f"guest {found.guest} on {found.host}: {late:,} of {found.samples:,} samples later than "
        f"{format_ns(found.threshold_ns)}, worst {format_ns(found.max_latency_ns)}",
        style="bold",
    )
    if found.label:
        console.print(f"latencies: {found.label}; what took the time is exact", style="bold yellow")
    console.print(f"clocks of host and guest: {aligned(found.alignment)}")
    if found.below:
        console.print(f"machine under the host: {aligned_below(found.below)}")
    if said := blurred(found):
        console.print(said, style="bold red")
    missing = bool(found.lost.host or found.lost.guest or found.lost.below)
    console.print(f"events lost: {lost(found)}", style="bold red" if missing else None)
    for side, text in recorded(found):
        console.print(f"recorded of the {side}: {text}")
    if full := ended_early(found):
        console.print(" ".join([*full, SHORTER]), style="bold red")
    if not found.causes:
        return
    whole = sum(spike.latency_ns for spike in found.spikes) or 1
    columns = ("what took the time", "time", "share", "samples", "made late", "worst", "usual")
    rows = [
        (
            words(cause.kind, cause.who),
            format_ns(cause.ns),
            f"{cause.ns / whole:.0%}",
            str(cause.spikes),
            str(cause.named),
            format_ns(cause.worst_ns),
            usual(cause),
        )
        for cause in found.causes
    ]
    console.print()
    console.print(screen.table(columns, rows, title="causes", right=columns[1:]))
    console.print(
        "usual: what it takes of a middling sample, late or not; made late: samples in which it took far more"
    )
    allowed = [
        (words(cause.kind, cause.who), one.fact, one.rule or "") for cause in found.causes for one in cause.allowed
    ]
    if allowed:
        console.print()
        console.print(screen.table(("cause", "what allowed it", "rule"), allowed))
    console.print(f"{explained_share(found.spikes):.0%} of the time of late samples is charged to causes")
