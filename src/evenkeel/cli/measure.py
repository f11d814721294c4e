"""`evenkeel measure PLAN|SITE [GUEST]`: latency histograms and disturbances, as Evidence.  Thin: parse, call, print."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli.plan import plan_of
from evenkeel.cli.verify import Load, file_for

if TYPE_CHECKING:
    from evenkeel.documents.evidence import Evidence, Latency, Spin
    from evenkeel.documents.plan import HostPlan, Plan
    from evenkeel.machines.protocol import OnProgress
    from evenkeel.measure.host import Wish


class Moment(StrEnum):
    before = "before"
    after = "after"


#: Shares that are shown besides the smallest and the largest.
SHARES = (0.5, 0.99, 0.999)
SHORTEST_NS, LONGEST_NS = 1_000_000_000, 30 * 86_400 * 1_000_000_000


def register(app: typer.Typer) -> None:
    app.command(name="measure")(measure)


def measure(
    source: Annotated[
        str,
        typer.Argument(metavar="PLAN|SITE", help="A saved plan, or a site to be planned first.", show_default=False),
    ],
    guest: Annotated[
        str | None,
        typer.Argument(metavar="GUEST", help="Measure in this guest only, not on the host.", show_default=False),
    ] = None,
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="How long cyclictest runs: 10s, 5min.")
    ] = "10s",
    load: Annotated[Load, typer.Option(help="What runs on the host meanwhile, wherever it may.")] = Load.none,
    moment: Annotated[
        Moment | None,
        typer.Option(help="Whether the plan is applied already; found out when left out.", show_default=False),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Save the Evidence; with several hosts FILE-HOST."),
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
    as_json: Annotated[bool, typer.Option("--json", help="Print the Evidence as JSON on stdout.")] = False,
) -> int:
    """Take latency histograms on a host and in its guests, and count what disturbs a spinner. Changes no setting.

    cyclictest runs on the CPUs of real-time vCPUs, where it pre-empts their guests for some microseconds a
    millisecond, and inside the guests, through the guest agent. Needs rt-tests on both.

      evenkeel measure plan.json --moment before -o before.json

      evenkeel measure plan.json plc --for 5min --load hackbench

    As a flight recorder it measures with timerlat instead, keeps the last seconds of traces of guest and host in
    rings, and freezes them at the first late sample, when the guest dies, or at an oops of the host. What it saves,
    evenkeel spikes explains.

      evenkeel measure plan.json plc --for 8h --flight-recorder 5s --on-miss 100us -o miss.zip

      evenkeel spikes plan.json plc --from miss.zip --report miss.html
    """
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.errors import WrongInput
    from evenkeel.measure.host import Wish

    if flight_recorder is not None:
        from evenkeel.cli.spikes import fly

        if guest is None or output is None or as_json:
            raise WrongInput("a flight recorder needs a guest and a file: GUEST -o FILE.zip, and has no --json")
        return fly(plan_of(source), guest, _seconds(duration), flight_recorder, on_miss, output)
    wish = Wish(seconds=_seconds(duration), load=load.value, guest=guest)
    plan = _of_guest(plan_of(source), guest)
    found = []
    for host in plan.hosts:
        with screen.progress(f"measuring {host.name}") as on_progress:
            found.append(_measure(host, plan, wish, moment, on_progress))
    for evidence in found:
        if output:
            target = file_for(evidence.host, output, several=len(found) > 1)
            files.save_document(target, evidence)
            if target != "-":
                screen.note(f"wrote {target}")
        if not as_json:
            _print(evidence)
    if as_json:
        screen.emit_json(found[0] if len(found) == 1 else [one.model_dump(mode="json") for one in found])
    return 0


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
    from evenkeel.cli import output as screen
    from evenkeel.documents.facts import Facts
    from evenkeel.machines.address import resolve
    from evenkeel.measure.host import guess_moment, measure_host

    machine = resolve(host.address)
    try:
        with machine.probe() as probe:
            facts = Facts.model_validate(probe.call("facts", timeout_s=300.0))
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
    finally:
        machine.close()


# -- printing ---------------------------------------------------------------------------------------------------------


def _print(evidence: Evidence) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    console.print(f"{evidence.host}, {evidence.moment} the plan is applied, {evidence.conditions.kernel}", style="bold")
    console.print(f"load: {evidence.conditions.load}")
    if evidence.latencies:
        columns = ("where", "samples", "min", *(f"{share:.1%}" for share in SHARES), "max")
        console.print()
        console.print(
            screen.table(columns, [_latency(one) for one in evidence.latencies], title="latency", right=columns[1:])
        )
        for label in sorted({one.label for one in evidence.latencies if one.label}):
            console.print(label, style="bold yellow")
    if evidence.spins:
        columns = ("spinner", "beside", "timer", "devices", "switched off", "CPU")
        console.print()
        console.print(screen.table(columns, [_spin(one) for one in evidence.spins], title="disturbances of a spinner"))


def _latency(latency: Latency) -> tuple[str, ...]:
    from evenkeel.documents.cpuset import format_cpus
    from evenkeel.measure.percentile import percentile

    cpus = format_cpus(latency.cpus)
    place = f"guest {latency.guest}, vCPU {cpus}" if latency.guest else f"CPU {cpus}"
    shares = [percentile(latency.histogram, share) for share in SHARES]
    return (
        place,
        str(latency.samples),
        _microseconds(latency.min_ns),
        *("beyond" if value is None else f"<= {_microseconds(value)}" for value in shares),
        _microseconds(latency.max_ns),
    )


def _microseconds(nanoseconds: int) -> str:
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
        f"{spin.involuntary_switches} times",
        f"{share:.0f} %",
    )
