"""`evenkeel watch SITE|PLAN`: say at once what drifts on the hosts, and put it back.  Thin: parse, call, print."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Sequence

    from evenkeel.documents.findings import Findings
    from evenkeel.documents.plan import Plan
    from evenkeel.watch.host import Wish
    from evenkeel.watch.notice import Notice


class Repair(StrEnum):
    live = "live"


def register(app: typer.Typer) -> None:
    app.command(name="watch")(watch)


def watch(
    source: Annotated[
        str,
        typer.Argument(metavar="SITE|PLAN", help="A saved plan, or a site to be planned first.", show_default=False),
    ],
    repair: Annotated[
        Repair | None,
        typer.Option(help="Put back what drifted and disturbs nobody, in plan order.", show_default=False),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Look at everything once, and leave.")] = False,
    metrics: Annotated[
        str | None,
        typer.Option(metavar="[ADDRESS:]PORT", help="Answer Prometheus there, at /metrics; a port alone: 127.0.0.1."),
    ] = None,
    sweep: Annotated[
        int, typer.Option(metavar="SECONDS", min=5, help="How often everything is looked at, events or not.")
    ] = 60,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.2, max=60.0, help="How often what no event tells is looked at.")
    ] = 1.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a line on stdout; with --once the Findings.")
    ] = False,
    print_unit: Annotated[
        bool, typer.Option("--print-unit", help="Print a unit file for systemd that runs this command, and leave.")
    ] = False,
) -> int:
    """Say at once when a host is no longer as planned: partitions, CPUs, links, guests, interrupts, other tuners.

    Runs until Ctrl-C or SIGTERM; a lost connection is made again. Without a terminal each line begins with its
    priority, as journald takes it. --repair live writes through the journal, as apply does: what drains or reboots, and
    guests, are only told.
    Exit code 0: stopped, or with --once as planned; 1: with --once, not as planned; 3: a host does not answer.

      evenkeel watch plan.json

      evenkeel watch plan.json --repair live --metrics 9153

      evenkeel watch site.yaml --once
    """
    import threading

    from evenkeel.cli import output
    from evenkeel.cli.plan import plan_of
    from evenkeel.watch.host import Wish

    if print_unit:
        output.out().print(_unit(source, repair, metrics, sweep, interval, as_json), end="", soft_wrap=True)
        return 0
    plan = plan_of(source)
    wish = Wish(repair=repair is not None, interval_s=interval, sweep_s=float(sweep))
    stop = threading.Event()
    say = _sayer(as_json)
    if once:
        return _once(plan, wish, as_json, stop, say)
    _run(plan, wish, metrics, stop, say)
    return 0


def _unit(source: str, repair: Repair | None, metrics: str | None, sweep: int, interval: float, as_json: bool) -> str:
    import sys
    from pathlib import Path

    from evenkeel.watch.unit import unit

    words = [sys.executable, "-m", "evenkeel", "watch", str(Path(source).resolve())]
    words += ["--repair", repair.value] if repair else []
    words += ["--metrics", metrics] if metrics else []
    words += ["--sweep", str(sweep)] if sweep != 60 else []
    words += ["--interval", str(interval)] if interval != 1.0 else []
    words += ["--json"] if as_json else []
    return unit(source, words)


def _sayer(as_json: bool) -> Callable[[Notice], None]:
    """Print a notice, a whole line at a time: several hosts speak."""
    import json
    import sys
    import threading
    import time

    lock = threading.Lock()
    terminal = sys.stdout.isatty()

    def say(notice: Notice) -> None:
        if as_json:
            text = json.dumps(notice.data(), ensure_ascii=False)
        elif terminal:
            text = time.strftime("%H:%M:%S ", time.localtime(notice.at)) + notice.line()
        else:
            text = notice.log_line()
        with lock:
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    return say


def _run(plan: Plan, wish: Wish, where: str | None, stop: threading.Event, say: Callable[[Notice], None]) -> None:
    import signal
    import time
    from contextlib import ExitStack

    from evenkeel.cli import output
    from evenkeel.machines.address import resolve
    from evenkeel.watch.host import Watch, watch_all
    from evenkeel.watch.metrics import Metrics, served

    numbers = Metrics()

    def tell(notice: Notice) -> None:
        numbers.said(notice)
        say(notice)

    asked_at: list[float] = []

    def end(number: int, _frame: object) -> None:
        """The first ends it after the step under way, a later one leaves at once.

        Not one that comes together with the first: timeout(1) signals the process, and then its group.
        """
        stop.set()
        asked_at.append(time.monotonic())
        if asked_at[-1] - asked_at[0] > 1.0:
            raise KeyboardInterrupt

    with ExitStack() as stack:
        for number in (signal.SIGINT, signal.SIGTERM):
            stack.callback(signal.signal, number, signal.signal(number, end))
        if where is not None:
            port = stack.enter_context(served(numbers, where))
            output.note(f"metrics: http://{where.rpartition(':')[0] or '127.0.0.1'}:{port}/metrics")
        watches = []
        for host in plan.hosts:
            machine = resolve(host.address)
            stack.callback(machine.close)
            numbers.begin(host.name, host.ledger.isolated)
            watches.append(Watch(host, plan.sha256(), machine, wish, tell, stop, numbers.happened))
        watch_all(watches, stop)


def _once(plan: Plan, wish: Wish, as_json: bool, stop: threading.Event, say: Callable[[Notice], None]) -> int:
    from contextlib import closing

    from evenkeel.cli import output
    from evenkeel.errors import EXIT_DONE, EXIT_NOT_AS_WANTED
    from evenkeel.machines.address import resolve
    from evenkeel.watch.host import Watch

    found: list[Findings] = []
    for host in plan.hosts:
        with closing(resolve(host.address)) as machine, output.progress(f"looking at {host.name}"):
            watching = Watch(host, plan.sha256(), machine, wish, say if not as_json else _silent, stop)
            found.append(watching.once())
    if as_json:
        output.emit_json(found[0] if len(found) == 1 else [one.model_dump(mode="json") for one in found])
    else:
        for findings in found:
            output.note(f"{findings.host}: {_verdict(findings)}")
    return EXIT_NOT_AS_WANTED if any(findings.failed for findings in found) else EXIT_DONE


def _silent(notice: Notice) -> None:
    pass


def _verdict(findings: Findings) -> str:
    failed = len(findings.failed)
    checks: Sequence[object] = findings.checks
    return f"{len(checks)} checks, {failed} failed" if failed else f"{len(checks)} checks, none failed"
