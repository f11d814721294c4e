"""`evenkeel measure PLAN|SITE [GUEST]`: latency histograms and a verdict, as Evidence.  Thin: parse, call, print."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli.plan import plan_of
from evenkeel.cli.unheeded import given_options, refuse
from evenkeel.cli.verify import file_for

if TYPE_CHECKING:
    from collections.abc import Sequence

    from evenkeel.documents.comparison import Comparison, Difference
    from evenkeel.documents.evidence import Deadline, Evidence, Latency, LoadRun, Spin
    from evenkeel.documents.plan import HostPlan, Plan
    from evenkeel.errors import EvenkeelError
    from evenkeel.machines.protocol import OnProgress
    from evenkeel.measure.host import Wish


class Moment(StrEnum):
    before = "before"
    after = "after"


class Format(StrEnum):
    text = "text"
    hgrm = "hgrm"
    cyclictest = "cyclictest"
    prometheus = "prometheus"


#: Kinds of load that are placed; hackbench goes wherever it wants.
LOADS = ("cpu", "io", "net", "irq")
#: Shares that are shown besides the smallest and the largest.
SHARES = (0.5, 0.99, 0.999)
SHORTEST_NS, LONGEST_NS = 1_000_000_000, 30 * 86_400 * 1_000_000_000
#: Options that a flight recorder would take and not heed -> what to do in their place.
_NOT_IN_FLIGHT = {
    "--tools": "it always measures with timerlat in the guest: leave --tools out",
    "--load": "start a load of your own on the host before it, without --load",
    "--miss-rate": "one late sample ends it, so there is no rate: leave --miss-rate out",
    "--moment": "it gives no verdict that depends on the plan: leave --moment out",
    "--live": "it writes nothing before a miss: to watch, measure with --live and without --flight-recorder",
    "--heat-map": "evenkeel spikes PLAN GUEST --from FILE.zip --heat-map draws what it kept",
    "--against": "compare Evidence, which measure without --flight-recorder saves",
    "--format": "only Evidence has other forms, which measure without --flight-recorder saves",
}
#: Options of a measurement, which saved Evidence has behind it.
_HELD_BY_EVIDENCE = dict.fromkeys(
    ("--for", "--tools", "--load", "--miss-rate", "--moment", "--live"), "measure anew, from the plan or the site"
)


def register(app: typer.Typer) -> None:
    app.command(name="measure")(measure)


def measure(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="PLAN|SITE|EVIDENCE",
            help="A saved plan, or a site to be planned first. Saved Evidence is shown, and nothing measured.",
            show_default=False,
        ),
    ],
    guest: Annotated[
        str | None,
        typer.Argument(metavar="GUEST", help="Measure, or show, this guest only, not the host.", show_default=False),
    ] = None,
    duration: Annotated[str, typer.Option("--for", metavar="TIME", help="How long each tool runs: 10s, 5min.")] = "60s",
    tools: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="cyclictest, timerlat, oslat, osnoise: one after the other, each for that long. osnoise is of the "
            "host, not of GUEST.",
        ),
    ] = "cyclictest",
    load: Annotated[
        str,
        typer.Option(
            metavar="KINDS",
            help="What runs on the host meanwhile: cpu,io,net,irq on the CPUs that are not real-time; or hackbench, "
            "wherever the scheduler puts it; or none.",
        ),
    ] = "none",
    miss_rate: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of late samples that must be excluded at 95 %.")
    ] = 1e-4,
    moment: Annotated[
        Moment | None,
        typer.Option(help="Whether the plan is applied already; found out when left out.", show_default=False),
    ] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="EARLIER", help="Saved Evidence to compare with: what differs by more than chance."),
    ] = None,
    live: Annotated[
        bool, typer.Option("--live", help="Show in the terminal how host and guests stand, once a second.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Save the Evidence; with several hosts FILE-HOST."),
    ] = None,
    heat_map: Annotated[
        Path | None,
        typer.Option("--heat-map", metavar="FILE", help="Save a picture (SVG) of the latencies over time."),
    ] = None,
    flight_recorder: Annotated[
        str | None,
        typer.Option(
            "--flight-recorder", metavar="TIME", help="Keep this much of a trace, until a miss.", show_default=False
        ),
    ] = None,
    on_miss: Annotated[
        str, typer.Option("--on-miss", metavar="TIME", help="With --flight-recorder: a sample later than this.")
    ] = "100us",
    form: Annotated[
        Format,
        typer.Option(
            "--format",
            help="On stdout, for other tools: HdrHistogram's percentile table; cyclictest's JSON; Prometheus's text. "
            "The first two are of GUEST, or of the host.",
        ),
    ] = Format.text,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the Evidence as JSON on stdout; with --against the Comparison.")
    ] = False,
) -> int:
    """Take latency histograms on a host and in its guests, and say whether deadlines are kept. Changes no setting.

    Each tool runs at the same time on the CPUs of real-time vCPUs, where it pre-empts their guests for some
    microseconds a millisecond, and inside the guests, through the guest agent. Needs rt-tests on both; timerlat and
    osnoise need a kernel that has them. Naming a GUEST leaves the host in peace. An option that would do nothing is
    refused.

    The deadline of a guest is its latency in the site file: met, missed, or not provable, with the reason.
    Exit code 0: every deadline is met, or none was asked for; 1: one is missed, not provable or not measured, or
    --against shows, not in emulation, that something got worse; 3: a host does not answer.

    Of several hosts one is measured after the other, and each is printed and saved when it is done: what fails on the
    next, or Ctrl-C, loses nothing of it. A host that fails or does not answer leaves the others to be measured.

      evenkeel measure plan.json --for 60s --load cpu,io,net,irq -o evidence.json

      evenkeel measure plan.json --tools cyclictest,timerlat,oslat

      evenkeel measure plan.json plc --for 5min --miss-rate 1e-5

      evenkeel measure evidence.json --against earlier.json

      evenkeel measure evidence.json plc --format hgrm

      evenkeel measure evidence.json plc --heat-map plc.svg

    As a flight recorder it measures with timerlat instead, keeps the last seconds of traces of guest and host in
    rings, and freezes them at the first late sample, when the guest dies, or at an oops of the host. What it saves,
    evenkeel spikes explains.

      evenkeel measure plan.json plc --for 8h --flight-recorder 5s --on-miss 100us -o miss.zip

      evenkeel spikes plan.json plc --from miss.zip --report miss.html
    """
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.errors import WrongInput

    given = given_options(context)
    if flight_recorder is not None:
        from evenkeel.cli.spikes import fly

        if guest is None or output is None or as_json:
            raise WrongInput("a flight recorder needs a guest and a file: GUEST -o FILE.zip, and has no --json")
        refuse(given, "a flight recorder does not heed", _NOT_IN_FLIGHT)
        files.check_places(output)  # it may fly for a day
        return fly(plan_of(source), guest, _seconds(duration), flight_recorder, on_miss, output)
    if "--on-miss" in given:
        raise WrongInput(
            "--on-miss is the miss that a flight recorder waits for, and there is none",
            hint="add --flight-recorder 5s; a guest's deadline is its latency in the site file",
        )
    if form is not Format.text:
        unheeded = {"--json": "--format already says how", "--against": "print the comparison with --json instead"}
        refuse(given, f"--format {form.value} does not go with", unheeded)
    taken = screen.takes_stdout({"-o": output, "--heat-map": heat_map}, json=as_json, format=form is not Format.text)
    files.check_places(output, heat_map)
    if against and as_json and taken:
        raise WrongInput("-o - is the Evidence and --json the Comparison, and both print on stdout")
    earlier = _earlier(against) if against else None
    saved = _saved(source)
    if saved:
        refuse(given, "saved Evidence is shown and nothing measured, so it does not heed", _HELD_BY_EVIDENCE)
    results = _Results(output, heat_map, form, guest, earlier, as_json=as_json, taken=taken)
    if saved:
        results.expect([saved.host])
        results.keep(_part(saved, guest))
        return results.end()
    wish = _wish(guest, duration, tools, load, miss_rate, live)
    plan = _plan(source, guest, results.failed)
    results.expect([host.name for host in plan.hosts])
    try:
        for host in plan.hosts:
            _measure_one(host, plan, wish, moment, results)
    except KeyboardInterrupt:
        results.end()  # of those that were measured; stdout has nothing of them yet, where it is JSON
        raise
    return results.end()


@dataclass
class _Results:
    """What was measured, host by host; each is saved and shown at once, since the next may fail or take hours.

    ``failed``: hosts of which there is nothing, or not all that was asked for, and why.
    """

    output: str | None
    heat_map: Path | None
    form: Format
    guest: str | None
    earlier: Evidence | None
    as_json: bool
    taken: bool
    found: list[Evidence] = field(default_factory=list)
    failed: dict[str, EvenkeelError] = field(default_factory=dict)
    several: bool = False

    def expect(self, hosts: Sequence[str]) -> None:
        """Before anything is measured.  Raises WrongInput for what these hosts cannot give."""
        from evenkeel.errors import WrongInput

        self.several = len(hosts) + len(self.failed) > 1
        if len(hosts) > 1 and self.form not in (Format.text, Format.prometheus):
            told = f"--format {self.form.value} is about one host, this plan has {len(hosts)}"
            raise WrongInput(told, hint="name a guest")
        # One that is away is told of, and hides nothing of the others.
        if self.earlier and self.several and self.earlier.host not in (*hosts, *self.failed):
            raise WrongInput(f"the earlier evidence is about host {self.earlier.host}, which is not measured now")

    def keep(self, evidence: Evidence) -> None:
        """Raises EvenkeelError when it cannot be saved; it is shown by then."""
        from evenkeel.cli import files
        from evenkeel.cli import output as screen

        self.found.append(evidence)
        if self.form is Format.text and not (self.as_json or self.taken):
            _print(evidence)
        if self.output and self.output != "-":
            target = file_for(evidence.host, self.output, several=self.several)
            files.save_document(target, evidence)
            screen.wrote(target)
        if self.heat_map:
            _save_heat_map(evidence, file_for(evidence.host, str(self.heat_map), several=self.several))

    def end(self) -> int:
        """Print what is about all hosts together.  Returns the exit code; raises where there is nothing to print."""
        from evenkeel.cli import output as screen
        from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED
        from evenkeel.measure.verdict import proven

        if self.failed and not self.several:
            raise next(iter(self.failed.values()))
        good = all(proven(evidence.deadlines) for evidence in self.found)
        comparison = self._comparison()
        if comparison:
            # In emulation a difference means as little as the latencies do.
            good &= comparison.shown != "worse" or bool(comparison.label)
        if self.form is not Format.text:
            if self.found:
                screen.out().file.write(_formatted(self.found, self.guest, self.form))
        elif self.as_json and comparison:
            screen.emit_json(comparison)
        elif self.as_json or self.output == "-":
            errors = [{"host": name, "error": screen.error_data(error)} for name, error in self.failed.items()]
            every = [*(one.model_dump(mode="json") for one in self.found), *errors]
            if every:
                screen.emit_json(every if self.several else self.found[0])
        elif comparison and not self.taken:
            _print_comparison(comparison)
        if self.failed:
            return max(error.exit_code for error in self.failed.values())
        return EXIT_DONE if good else EXIT_NOT_AS_WANTED

    def _comparison(self) -> Comparison | None:
        """With the earlier evidence, where its host was measured; the only host is taken for it whatever its name."""
        from evenkeel.measure.difference import compare

        for evidence in self.found if self.earlier else ():
            if self.earlier and (evidence.host == self.earlier.host or not self.several):
                return compare(self.earlier, evidence)
        return None


def _save_heat_map(evidence: Evidence, target: str) -> None:
    """One panel for each CPU of each tool that tells when its samples were.  Raises WrongInput when there is none."""
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.errors import WrongInput
    from evenkeel.report.heat import Panel, heat_picture

    goals = {} if evidence.conditions.emulated else {one.guest: one.wanted_ns for one in evidence.deadlines}
    panels = [
        Panel(f"{_place(one)}, {one.tool}", one.course, goals.get(one.guest or ""))
        for one in evidence.latencies
        if one.course
    ]
    if not panels:
        raise WrongInput(
            "no run says when its samples were, so there is no heat map",
            hint="oslat does not; nor does evidence that an older evenkeel saved, or a guest without awk",
        )
    note = next((one.label for one in evidence.latencies if one.label), "")
    files.save_text(Path(target), heat_picture(panels, note=note))
    screen.wrote(target)


def _formatted(found: Sequence[Evidence], guest: str | None, form: Format) -> str:
    from evenkeel.measure import export

    if form is Format.prometheus:
        return export.prometheus(found)
    runs = export.chosen(found[0], guest)
    return export.hgrm(runs) if form is Format.hgrm else export.cyclictest(found[0], runs)


def _earlier(file: str) -> Evidence:
    from evenkeel.cli import files
    from evenkeel.documents.evidence import Evidence

    return files.load_document(Evidence, file)


def _part(evidence: Evidence, guest: str | None) -> Evidence:
    """What evidence says about one guest; all of it without one.  Raises WrongInput when it says nothing."""
    from evenkeel.errors import WrongInput

    if guest is None:
        return evidence
    known = {one.guest for one in evidence.latencies if one.guest}
    known |= {one.guest for one in evidence.spins if one.guest} | {one.guest for one in evidence.deadlines}
    if guest not in known:
        hint = f"it knows: {', '.join(sorted(known)) or 'none'}"
        raise WrongInput(f"the evidence says nothing about guest {guest}", hint=hint)
    return evidence.model_copy(
        update={
            "latencies": tuple(one for one in evidence.latencies if one.guest == guest),
            "spins": tuple(one for one in evidence.spins if one.guest == guest),
            "deadlines": tuple(one for one in evidence.deadlines if one.guest == guest),
        }
    )


def _saved(source: str) -> Evidence | None:
    """Evidence, when this is the file of one."""
    import json

    from evenkeel.cli import files
    from evenkeel.documents.evidence import Evidence
    from evenkeel.machines.paths import kind_of

    if Path(source).suffix != ".json" or kind_of(source) != "file":
        return None
    text = files.read_text(source)
    try:
        kind = json.loads(text).get("kind")
    except (ValueError, AttributeError, RecursionError):
        return None  # whoever reads it as a plan says what is wrong
    return Evidence.from_json(text, file=source) if kind == "Evidence" else None


def _wish(guest: str | None, duration: str, tools: str, load: str, miss_rate: float, live: bool) -> Wish:
    """Raises WrongInput for an option that is not understood."""
    from evenkeel.errors import WrongInput
    from evenkeel.measure.host import TOOLS, Wish

    if not 1e-9 <= miss_rate <= 0.5:
        raise WrongInput(f"--miss-rate {miss_rate:g}: a share from 1e-9 to 0.5, please")
    names = tuple(dict.fromkeys(part.strip() for part in tools.split(",")))
    if not set(names) <= set(TOOLS):
        raise WrongInput(f"--tools {tools}: one or more of {','.join(TOOLS)}")
    return Wish(seconds=_seconds(duration), tools=names, load=_loads(load), guest=guest, miss_rate=miss_rate, live=live)


def _plan(source: str, guest: str | None, away: dict[str, EvenkeelError]) -> Plan:
    """The plan of the hosts that answer; with a guest, of its host only.  ``away``: gets those that do not answer."""
    from evenkeel.cli import output as screen
    from evenkeel.cli.plan import plan_of_answering

    plan, silent = plan_of_answering(source)
    if guest is not None:
        if silent and not any(one.name == guest for host in plan.hosts for one in host.guests):
            raise next(iter(silent.values()))[1]  # it may be there
        return _of_guest(plan, guest)
    away.update((name, error) for name, (_, error) in silent.items())
    if len(plan.hosts) + len(away) > 1:
        for error in away.values():
            screen.print_error(error)
    return plan


def _measure_one(host: HostPlan, plan: Plan, wish: Wish, moment: Moment | None, results: _Results) -> None:
    """What fails on one host of several hides nothing of the others."""
    from evenkeel.cli import output as screen
    from evenkeel.cli.measure_live import watching
    from evenkeel.errors import EvenkeelError

    try:
        with watching(f"measuring {host.name}", live=wish.live) as on_progress:
            evidence = _measure(host, plan, wish, moment, on_progress)
        results.keep(evidence)
    except EvenkeelError as error:
        results.failed[host.name] = error
        if results.several:
            screen.print_error(error)


def _loads(text: str) -> tuple[str, ...]:
    """``"cpu,io"`` -> the kinds, each once.  Raises WrongInput."""
    from evenkeel.errors import WrongInput

    kinds = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if kinds == ("none",):
        return ()
    if kinds == ("hackbench",) or all(kind in LOADS for kind in kinds):
        return kinds
    raise WrongInput(
        f"--load {text}: one or more of {','.join(LOADS)}; or hackbench or none, alone",
        hint="hackbench goes wherever the scheduler puts it, the others stay where they are put",
    )


def _seconds(duration: str) -> int:
    """Whole seconds, as cyclictest takes them.  Raises WrongInput."""
    from evenkeel.documents.quantity import parse_duration
    from evenkeel.errors import WrongInput

    try:
        nanoseconds = parse_duration(duration)
    except ValueError as error:
        raise WrongInput(f"--for: {error}") from None
    if nanoseconds % SHORTEST_NS or not SHORTEST_NS <= nanoseconds <= LONGEST_NS:
        raise WrongInput(f"--for {duration}: whole seconds from 1s to 720h, please")
    return nanoseconds // SHORTEST_NS


def _of_guest(plan: Plan, guest: str | None) -> Plan:
    """Only the host that has this guest.  Raises WrongInput when none has."""
    from evenkeel.errors import WrongInput

    if guest is None:
        return plan
    hosts = tuple(host for host in plan.hosts if any(one.name == guest for one in host.guests))
    if not hosts:
        known = sorted(one.name for host in plan.hosts for one in host.guests)
        raise WrongInput(f"the plan has no guest {guest}", hint=f"its guests: {', '.join(known) or 'none'}")
    return plan.model_copy(update={"hosts": hosts})


def _measure(host: HostPlan, plan: Plan, wish: Wish, moment: Moment | None, on_progress: OnProgress) -> Evidence:
    from contextlib import closing

    from evenkeel.apply.hosts import read_facts
    from evenkeel.cli import output as screen
    from evenkeel.machines.address import resolve
    from evenkeel.measure.host import guess_moment, measure_host

    with closing(resolve(host.address)) as machine, machine.probe() as probe:
        facts = read_facts(probe, address=host.address)
        return measure_host(
            host,
            probe,
            facts,
            moment=moment.value if moment else guess_moment(host, facts),
            wish=wish,
            plan_sha256=plan.sha256(),
            on_progress=on_progress,
            on_note=screen.note,
        )


# -- printing ---------------------------------------------------------------------------------------------------------


def _print(evidence: Evidence) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    console.print(f"{evidence.host}, {evidence.moment} the plan is applied, {evidence.conditions.kernel}", style="bold")
    console.print(f"load: {evidence.conditions.load}")
    if evidence.conditions.dma_latency_holders:
        screen.warn(f"{', '.join(evidence.conditions.dma_latency_holders)} held /dev/cpu_dma_latency meanwhile")
    for guest, names in sorted((evidence.conditions.guest_dma_latency_holders or {}).items()):
        if names:
            screen.warn(f"{', '.join(names)} held /dev/cpu_dma_latency in guest {guest} meanwhile")
    if evidence.latencies:
        columns = ("where", "tool", "samples", "min", *(f"{share:.1%}" for share in SHARES), "max")
        console.print()
        console.print(
            screen.table(columns, [_latency(one) for one in evidence.latencies], title="latency", right=columns[2:])
        )
        for label in sorted({one.label for one in evidence.latencies if one.label}):
            console.print(label, style="bold yellow")
        # CPUs of one run share their load.
        loads = list(dict.fromkeys(load for one in evidence.latencies for load in one.loads))
        if loads:
            columns = ("load", "on CPU", "ran on", "processes", "work done", "CPU time", "")
            console.print()
            console.print(screen.table(columns, [_load(one) for one in loads], title="load", right=columns[3:6]))
    if evidence.spins:
        columns = ("spinner", "beside", "timer", "devices", "switched off", "CPU")
        console.print()
        console.print(screen.table(columns, [_spin(one) for one in evidence.spins], title="disturbances of a spinner"))
    _print_deadlines(evidence.deadlines, meaningless=bool(evidence.conditions.emulated))


def _print_deadlines(found: Sequence[Deadline], *, meaningless: bool) -> None:
    from evenkeel.cli import output as screen
    from evenkeel.documents.quantity import format_duration

    console = screen.out()
    for deadline in found:
        console.print()
        console.print(
            f"deadline {format_duration(deadline.wanted_ns)} for guest {deadline.guest}: {deadline.state}",
            style={"met": "bold green", "missed": "bold red"}.get(deadline.state, "bold yellow"),
        )
        console.print(f"  {deadline.why}")
        if deadline.arithmetic and not meaningless:  # in emulation a rate is arithmetic with noise
            console.print(f"  {deadline.arithmetic}")


def _print_comparison(comparison: Comparison) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    console.print()
    columns = ("where", "", "earlier", "now", "difference", "shown")
    rows = [_difference(one) for one in comparison.differences]
    console.print(screen.table(columns, rows, title="against the earlier run", right=columns[2:4]))
    for line in comparison.unpaired:
        console.print(line)
    for one in comparison.changed:
        console.print(f"not the same {one.name}: {one.earlier} -> {one.later}", style="yellow")
    if comparison.label:
        console.print(comparison.label, style="bold yellow")
    console.print()
    console.print(
        f"{comparison.shown}: all intervals together hold with {100 * comparison.confidence:.0f} %", style="bold"
    )
    console.print(
        "  of these two runs: another boot may differ by as much, so measure over several before you conclude"
    )


def _difference(one: Difference) -> tuple[str, ...]:
    def number(value: float | None) -> str:
        if value is None:
            return "beyond"
        return f"{value:.3g}" if one.unit == "share" else _microseconds(value)

    interval = one.why
    if one.unit == "ns" and (one.low is not None or one.high is not None):
        low = "?" if one.low is None else f"{one.low / 1000:+.0f}"
        high = "?" if one.high is None else f"{one.high / 1000:+.0f}"
        interval = f"{low} to {high} us"
    return one.place, one.of, number(one.earlier), number(one.later), interval, one.shown


def _load(load: LoadRun) -> tuple[str, ...]:
    from evenkeel.documents.cpuset import format_cpus

    return (
        load.kind,
        "anywhere" if load.cpus is None else format_cpus(load.cpus),
        format_cpus(load.seen),
        str(load.processes),
        "" if load.operations is None else f"{load.operations:,}",
        f"{load.cpu_seconds:.1f} s",
        load.trouble or ("" if load.packets is None else f"{load.packets:,} packets"),
    )


def _place(latency: Latency) -> str:
    from evenkeel.documents.cpuset import format_cpus

    cpus = format_cpus(latency.cpus)
    return f"guest {latency.guest}, vCPU {cpus}" if latency.guest else f"CPU {cpus}"


def _latency(latency: Latency) -> tuple[str, ...]:
    from evenkeel.measure.percentile import percentile

    shares = [percentile(latency.histogram, share) for share in SHARES]
    return (
        _place(latency),
        latency.tool,
        str(latency.samples),
        _microseconds(latency.min_ns),
        *("beyond" if value is None else f"<= {_microseconds(value)}" for value in shares),
        _microseconds(latency.max_ns),
    )


def _microseconds(nanoseconds: float) -> str:
    return f"{nanoseconds / 1000:.0f} us"


def _spin(spin: Spin) -> tuple[str, ...]:
    place = f"guest {spin.guest}, on CPU {spin.cpu}" if spin.guest else f"CPU {spin.cpu}"
    watched = spin.watched_seconds or spin.seconds
    share = 100 * spin.cpu_seconds / watched if watched else 0.0
    return (
        place,
        spin.load,
        f"{spin.timer_interrupts} in {spin.seconds:.1f} s",
        ", ".join(f"{name} {count}" for name, count in sorted(spin.device_interrupts.items())) or "0",
        f"{spin.foreign_switches} times" + (f", and {spin.guest_switches} by its guest" if spin.guest_switches else ""),
        f"{share:.0f} %",
    )
