"""`evenkeel trace QUESTION`: ask the running kernel how often, who, how long, where.  Thin: parse, call, print."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenkeel.cli.spikes import spikes

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from numpy.typing import NDArray

    from evenkeel.documents.answer import Answer, Question, Row, TraceCost
    from evenkeel.documents.histogram import Histogram
    from evenkeel.machines.protocol import Probe

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Ask the running kernel: how often, who, how long, where. Changes no setting, and leaves nothing behind.\n\n"
    "The cheapest source that works there is found by trying; the answer says which, why no cheaper one, what it cost "
    "and what was lost. Nothing is installed there: no compiler, no headers. Ctrl-C ends early and prints the answer.",
)

On = Annotated[str, typer.Option("--on", metavar="MACHINE", help="local, ssh://root@HOST[:PORT] or virtual:NAME.")]
For = Annotated[str, typer.Option("--for", metavar="TIME", help="How long: 500ms, 5s, 10min.")]
Cpus = Annotated[
    str | None, typer.Option("--cpus", metavar="LIST", help="Only what happens on these: 2-3,6.", show_default=False)
]
Process = Annotated[
    int | None, typer.Option("--process", metavar="PID", min=1, help="Only what its threads do.", show_default=False)
]
From = Annotated[
    str | None,
    typer.Option("--source", metavar="NAME", help="Use this source and no other.", show_default=False),
]
Budget = Annotated[
    float,
    typer.Option(
        metavar="PERCENT",
        min=0.001,
        max=100.0,
        help="What it may take of one core over the whole time; what would take more is looked at only now and then.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the Answer as JSON on stdout.")]
Save = Annotated[str | None, typer.Option("--output", "-o", metavar="FILE", help="Save the Answer.")]
Event = Annotated[
    str,
    typer.Argument(
        metavar="EVENT",
        help="SYSTEM:NAME, software:page-faults, function:NAME[+0x10], or uprobe:/FILE:FUNCTION.",
        show_default=False,
    ),
]


class By(StrEnum):
    process = "process"
    thread = "thread"
    command = "command"
    user = "user"
    cgroup = "cgroup"
    cpu = "cpu"
    vcpu = "vcpu"
    guest = "guest"


@app.command()
def count(
    event: Event,
    duration: For = "5s",
    on: On = "local",
    cpus: Cpus = None,
    process: Process = None,
    budget: Budget = 1.0,
    source: From = None,
    output: Save = None,
    as_json: Json = False,
) -> int:
    """How often does this happen?

    evenkeel trace count syscalls:sys_enter_getuid --for 5s

    evenkeel trace count kvm:kvm_exit --on ssh://root@plc-host --cpus 2-3
    """
    question = _question("count", duration, cpus, process=process, budget=budget / 100, events=(event,))
    return _answer(question, on, source, output, as_json)


@app.command()
def top(
    event: Event,
    by: Annotated[By, typer.Option(help="What to count by.")] = By.process,
    at_least: Annotated[int, typer.Option(metavar="N", min=1, help="Leave out what did it less often.")] = 1,
    duration: For = "5s",
    on: On = "local",
    cpus: Cpus = None,
    process: Process = None,
    budget: Budget = 1.0,
    source: From = None,
    output: Save = None,
    as_json: Json = False,
) -> int:
    """Who does this, and how often?

    evenkeel trace top syscalls:sys_enter_getuid --by process --at-least 100

    evenkeel trace top irq:irq_handler_entry --by cpu --on virtual:lab
    """
    question = _question(
        "top", duration, cpus, process=process, budget=budget / 100, events=(event,), by=by.value, at_least=at_least
    )
    return _answer(question, on, source, output, as_json)


@app.command()
def latency(
    start: Annotated[str, typer.Argument(metavar="START", help="The event that begins it.", show_default=False)],
    end: Annotated[str, typer.Argument(metavar="END", help="The event that ends it.", show_default=False)],
    key: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="What joins them: thread, process, cpu, a field of both events, or FIELD=FIELD.",
            show_default="pid=next_pid where END is sched:sched_switch, cpu for interrupts, else thread",
        ),
    ] = None,
    duration: For = "5s",
    on: On = "local",
    cpus: Cpus = None,
    process: Process = None,
    source: From = None,
    output: Save = None,
    as_json: Json = False,
) -> int:
    """How long from one event to the other?

    evenkeel trace latency sched:sched_waking sched:sched_switch

    evenkeel trace latency syscalls:sys_enter_fsync syscalls:sys_exit_fsync
    """
    from evenkeel.measure.trace.questions import joined_by

    question = _question(
        "latency", duration, cpus, process=process, events=(start, end), key=key or joined_by(start, end)
    )
    return _answer(question, on, source, output, as_json)


@app.command()
def wakeups(
    at_least: Annotated[int, typer.Option(metavar="N", min=1, help="Leave out who was woken less often.")] = 1,
    duration: For = "5s",
    on: On = "local",
    cpus: Cpus = None,
    source: From = None,
    output: Save = None,
    as_json: Json = False,
) -> int:
    """How long does a thread that is woken wait for its CPU, and which threads wait longest?

    evenkeel trace wakeups --cpus 2-3 --for 30s
    """
    from evenkeel.measure.trace.questions import WAKEUP, joined_by

    question = _question("wakeups", duration, cpus, events=WAKEUP, key=joined_by(*WAKEUP), at_least=at_least)
    return _answer(question, on, source, output, as_json)


@app.command()
def noise(
    cpu: Annotated[str, typer.Argument(metavar="CPU", help="One, or a list: 3, 2-3,6.", show_default=False)],
    duration: For = "5s",
    on: On = "local",
    output: Save = None,
    as_json: Json = False,
) -> int:
    """What disturbs a CPU: interrupts, softirqs, threads; how often, how long?

    evenkeel trace noise 3 --on ssh://root@plc-host --for 30s
    """
    from evenkeel.measure.trace.questions import NOISE

    question = _question("noise", duration, cpu, cpus_are="CPU", events=NOISE)
    return _answer(question, on, None, output, as_json)


@app.command()
def exits(
    guest: Annotated[str, typer.Argument(metavar="GUEST", help="The name of a running guest.", show_default=False)],
    duration: For = "5s",
    on: On = "local",
    source: From = None,
    output: Save = None,
    as_json: Json = False,
) -> int:
    """Why, and how often, do the vCPUs of a guest leave it?

    KVM's own counters are free, and tell kinds of exits; --source tracepoint tells the processor's reasons.

      evenkeel trace exits plc --on ssh://root@plc-host

      evenkeel trace exits plc --source tracepoint
    """
    from evenkeel.measure.trace.questions import EXIT

    return _answer(_question("exits", duration, None, events=(EXIT,), guest=guest), on, source, output, as_json)


@app.command()
def profile(
    flame: Annotated[
        str | None, typer.Option("--flame", metavar="FILE", help="Write a flame graph, one HTML page.")
    ] = None,
    hertz: Annotated[int, typer.Option("--hz", min=1, max=10_000, help="Samples a second on each CPU.")] = 99,
    duration: For = "5s",
    on: On = "local",
    cpus: Cpus = None,
    process: Process = None,
    output: Save = None,
    as_json: Json = False,
) -> int:
    """Where does the time of the CPUs go?

    evenkeel trace profile --flame flame.html --for 10s
    """
    question = _question("profile", duration, cpus, process=process, frequency_hz=hertz)
    return _answer(question, on, None, output, as_json, flame)


@app.command()
def record(
    event: Event,
    target: Annotated[
        str, typer.Argument(metavar="FILE", help="NAME.npy for numpy, NAME.csv for the rest.", show_default=False)
    ],
    field: Annotated[
        str | None, typer.Option(metavar="NAME", help="A number of the event to keep, too.", show_default=False)
    ] = None,
    duration: For = "5s",
    on: On = "local",
    cpus: Cpus = None,
    process: Process = None,
    source: From = None,
    output: Save = None,
    as_json: Json = False,
) -> int:
    """Write every event to a file: when, on which CPU, by which thread, and one number of it.

    Millions a second are read without loss; what is lost is counted. At most 6.7 million are kept. The file is written
    at the end, whole or not at all; Ctrl-C is an end, too.

    evenkeel trace record sched:sched_switch switches.npy --field next_pid --for 10s
    """
    from pathlib import Path

    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.errors import WrongInput
    from evenkeel.measure.trace.records import ENDINGS, write

    ending = Path(target).suffix
    if ending not in ENDINGS:  # before the time is spent
        raise WrongInput(f"{target}: records are written as {' or '.join(ENDINGS)}")
    files.check_places(target)
    question = _question("record", duration, cpus, process=process, events=(event,), field=field)

    def take(found: NDArray[Any]) -> None:
        with files.writing(target) as stream:
            write(stream, ending, found)
        screen.wrote(target)

    return _answer(question, on, source, output, as_json, take=take)


@app.command()
def events(
    word: Annotated[str, typer.Argument(metavar="WORD", help="A part of the name.")] = "",
    on: On = "local",
    as_json: Json = False,
) -> int:
    """List the events that a machine has.

    evenkeel trace events getuid
    """
    from evenkeel.cli import output as screen

    with _probe(on) as probe:
        found = probe.call("trace_events", word=word)
    if as_json:
        screen.emit_json(found)
    else:
        for one in found:
            screen.out().print(one)
    if not found:
        screen.note(f"no event of {on} has {word!r} in its name")
    return 0


@app.command()
def sources(
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="Measure anew what an event costs: slows all system calls for seconds.")
    ] = False,
    on: On = "local",
    as_json: Json = False,
) -> int:
    """Show what works on a machine, by trying each source on an event that hardly ever happens.

    evenkeel trace sources --on ssh://root@plc-host
    """
    from evenkeel.cli import output as screen

    with _probe(on) as probe:
        removed = probe.call("trace_orphans")
        found = probe.call("trace_sources", timeout_s=120.0)
        if calibrate:
            _calibrate(probe, found)
    for name in removed:
        screen.note(f"removed {name}, which a killed probe had left in tracefs")
    if as_json:
        screen.emit_json(found)
        return 0
    measured = ("ns an event", "ns a call", "ns another call") if calibrate else ()
    columns = ("source", "tried on", "works", "how, or why not", *measured)
    rows = [
        (
            row["source"],
            row["event"],
            "yes" if row["works"] else (row["errno"] or "no"),
            row["mechanism"] if row["works"] else row["message"],
            *(f"{row[name]:.0f}" if name in row else "" for name in (_CALIBRATED if calibrate else ())),
        )
        for row in found
    ]
    screen.out().print(screen.table(columns, rows, right=measured))
    return 0


#: What is measured of counting: one event that is no system call, one that is, and each other system call meanwhile.
_CALIBRATED = ("ns_per_event", "ns_per_call", "ns_per_other_call")


def _calibrate(probe: Probe, rows: list[dict[str, Any]]) -> None:
    """Measure anew, for the planner too, and write it into the rows of sources."""
    from evenkeel.documents.answer import Question
    from evenkeel.measure.trace.calibration import Calibration

    known = Calibration(probe)
    event = known.each(Question(kind="count", events=("sched:sched_switch",)), anew=True)
    call = known.each(Question(kind="count", events=("syscalls:sys_enter_getuid",)), anew=True)
    for row in rows:
        if row["source"] in event and row["works"]:
            row["ns_per_event"] = event[row["source"]].ns
        if row["source"] in call and row["works"]:
            row["ns_per_call"], row["ns_per_other_call"] = call[row["source"]].ns, call[row["source"]].other_ns


# Why was this guest late?  The same command as `evenkeel spikes`, at home among the other questions.
app.command(name="explain")(spikes)


# -- asking -----------------------------------------------------------------------------------------------------------


def _probe(on: str) -> AbstractContextManager[Probe]:
    """A conversation with the machine.  Raises WrongInput for a recorded tree, which runs no kernel."""
    from contextlib import closing, contextmanager

    from evenkeel.errors import WrongInput
    from evenkeel.machines.address import resolve

    machine = resolve(on)
    if machine.read_only:
        raise WrongInput(f"{on} is a recording; only a running machine can be asked")

    @contextmanager
    def conversation() -> Iterator[Probe]:
        with closing(machine), machine.probe() as probe:
            yield probe

    return conversation()


def _question(kind: str, duration: str, cpus: str | None, *, cpus_are: str = "--cpus", **more: object) -> Question:
    """``cpus_are``: what the user calls them.  Raises WrongInput."""
    from evenkeel.documents.answer import Question
    from evenkeel.documents.cpuset import parse_cpus
    from evenkeel.documents.quantity import parse_duration
    from evenkeel.errors import WrongInput

    try:
        seconds = parse_duration(duration) / 1e9
    except ValueError as error:
        raise WrongInput(f"--for: {error}") from None
    if not 0.1 <= seconds <= 86_400:
        raise WrongInput(f"--for {duration}: from 100ms to 24h, please")
    try:
        wanted = None if cpus is None else parse_cpus(cpus)
    except ValueError as error:
        raise WrongInput(f"{cpus_are}: {error}") from None
    if wanted is not None and not wanted:
        raise WrongInput(f"{cpus_are}: the list is empty")
    return Question.model_validate({"kind": kind, "seconds": seconds, "cpus": wanted, **more})


def _answer(
    question: Question,
    on: str,
    source: str | None,
    output: str | None,
    as_json: bool,
    flame: str | None = None,
    take: Callable[[NDArray[Any]], None] | None = None,
) -> int:
    from evenkeel.apply.hosts import read_facts
    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.documents.cpuset import format_cpus
    from evenkeel.errors import WrongInput
    from evenkeel.measure.conditions import conditions
    from evenkeel.measure.trace.ask import ask

    taken = screen.takes_stdout({"-o": output, "--flame": flame}, json=as_json)
    files.check_places(output, flame)
    with _probe(on) as probe, _stopping() as (begun, stop), screen.progress(f"asking {on}") as on_progress:

        def on_start(name: str) -> None:
            begun.set()
            screen.note(f"watching by {name}; Ctrl-C ends early")

        facts = read_facts(probe)
        online = frozenset(cpu.id for cpu in facts.cpus if cpu.online)
        if question.cpus is not None and (missing := question.cpus - online):  # where nothing ever happens
            raise WrongInput(f"{on} has no CPU {format_cpus(missing)}; online there: {format_cpus(online)}")
        answer = ask(
            probe,
            question,
            host=facts.identity.hostname or on,
            conditions=conditions(facts, load="as it was"),
            online=len(online),
            stop=stop,
            source=source,
            on_progress=on_progress,
            on_start=on_start,
            take=take,
        )
    if flame:
        from evenkeel.report.flame import flame_page

        files.save_text(flame, flame_page(answer))
        screen.wrote(flame)
    if output:
        files.save_document(output, answer)
        screen.wrote(output)
    if as_json and not taken:
        screen.emit_json(answer)
    elif not taken:
        _print(answer)
    return 0


def _stopping() -> AbstractContextManager[tuple[threading.Event, threading.Event]]:
    """Two events: one to be set when there begins to be an answer, and one that the first Ctrl-C or SIGTERM sets then.

    One before, and a second one, leave at once.
    """
    import signal
    import threading
    import time
    from contextlib import contextmanager

    asked_at: list[float] = []

    @contextmanager
    def handling() -> Iterator[tuple[threading.Event, threading.Event]]:
        begun, stop = threading.Event(), threading.Event()

        def end(number: int, _frame: object) -> None:
            stop.set()
            asked_at.append(time.monotonic())
            # Not one that comes together with the first: timeout(1) signals the process, and then its group.
            if (len(asked_at) == 1 and not begun.is_set()) or asked_at[-1] - asked_at[0] > 1.0:
                raise KeyboardInterrupt

        before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield begun, stop
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    return handling()


# -- printing ---------------------------------------------------------------------------------------------------------


def _print(answer: Answer) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    console.print(_headline(answer), style="bold")
    if answer.durations is not None:
        _print_durations(answer.durations, answer.durations_ns or 0)
    if answer.rows:
        _print_rows(answer)
    elif answer.question.kind in ("top", "wakeups"):
        console.print(_nobody(answer.question))
    elif answer.question.kind == "exits":
        console.print("no exits")
    if answer.stacks:
        _print_stacks(answer)
    for line in _account(answer):
        console.print(line, soft_wrap=True)
    if answer.lost:
        screen.warn(f"{answer.lost:,} events were lost: the numbers are too small")


def _nobody(question: Question) -> str:
    said = "nobody did it" if question.kind == "top" else "nobody was woken"
    return said + (f" {question.at_least} times or more" if question.at_least > 1 else "")


def _headline(answer: Answer) -> str:
    rate = answer.events / answer.seconds if answer.seconds else 0.0
    question = answer.question
    if answer.sampled < 1:
        about = round(answer.events / answer.sampled)
        return (
            f"{answer.host}: {' '.join(question.events)}: about {about:,}, {rate:,.0f} a second; "
            f"seen {answer.events:,} in {100 * answer.sampled:.2g} % of the time"
        )
    names = {"noise": "noise", "exits": f"exits of {question.guest}", "wakeups": "wake-ups", "profile": "profile"}
    subject = names.get(question.kind) or " to ".join(question.events)
    return f"{answer.host}: {subject}: {answer.events:,} in {answer.seconds:.1f} s, {rate:,.0f} a second"


#: Rows that are shown; all are in the Answer.
_MOST_ROWS = 40


def _print_rows(answer: Answer) -> None:
    from evenkeel.cli import output as screen

    console = screen.out()
    timed = any(row.longest_ns is not None for row in answer.rows)
    columns = ("count", *(("longest", "mean", "in all") if timed else ()), _subject(answer.question), "")
    rows = [_row(row) for row in answer.rows[:_MOST_ROWS]]
    console.print(screen.table(columns, rows, right=("count", "longest", "mean", "in all")))
    if len(answer.rows) > _MOST_ROWS:
        console.print(f"and {len(answer.rows) - _MOST_ROWS} more, see --json")
    console.print()


def _subject(question: Question) -> str:
    return question.by or {"noise": "what", "exits": "who"}.get(question.kind, "thread")


def _row(row: Row) -> tuple[str, ...]:
    from evenkeel.report.chart import format_ns

    timed: tuple[str, ...] = ()
    if row.longest_ns is not None and row.total_ns is not None:
        timed = (format_ns(row.longest_ns), format_ns(row.total_ns // max(1, row.count)), format_ns(row.total_ns))
    return f"{row.count:,}", *timed, row.key, row.label if row.label != row.key else ""


def _print_durations(durations: Histogram, total_ns: int) -> None:
    from evenkeel.cli import output as screen
    from evenkeel.measure.percentile import percentile
    from evenkeel.report.chart import format_ns

    if not durations.samples:
        return
    columns, cells = ["mean"], [format_ns(total_ns // durations.samples)]
    for share in (50, 90, 99, 99.9, 100):
        edge = percentile(durations, share / 100)
        columns.append(f"{share:.10g} % <=")
        cells.append("longer" if edge is None else format_ns(edge))
    screen.out().print(screen.table(tuple(columns), [tuple(cells)], right=tuple(columns)))
    screen.out().print()


def _print_stacks(answer: Answer) -> None:
    """The functions in which samples were, the most frequent first."""
    from evenkeel.cli import output as screen

    own: dict[tuple[str, str], int] = {}
    for stack in answer.stacks:
        key = (stack.frames[-1] if len(stack.frames) > 1 else "[unknown]", stack.frames[0])
        own[key] = own.get(key, 0) + stack.count
    total = sum(own.values())
    best = sorted(own.items(), key=lambda item: (-item[1], item[0]))[:15]
    rows = [(f"{100 * count / total:.1f} %", name, command) for (name, command), count in best]
    screen.out().print(screen.table(("of busy time", "function", "command"), rows, right=("of busy time",)))
    screen.out().print()


def _account(answer: Answer) -> list[str]:
    """How it was found out, why not cheaper, and what it cost."""
    shown, more = answer.mechanism[:3], len(answer.mechanism) - 3
    how = "; ".join(shown) + (f"; and {more} more of the kind" if more > 0 else "")
    lines = [f"source     {answer.source}: {how}"]
    for one in answer.refused:
        lines.append(f"not        {one.source}: {one.why}{f' ({one.errno})' if one.errno else ''}")
    if answer.predicted:
        lines.append(f"predicted  {_cost(answer.predicted, answer.sampled)}")
    measured = (
        _cost(answer.measured, answer.sampled)
        if answer.measured
        else "not: the kernel did not time it, and nothing was calibrated"
    )
    lines.append(f"measured   {measured}")
    lines.append(f"reader     {answer.reader_cpu_s:.2f} s of CPU")
    lines.append(f"lost       {answer.lost:,}")
    lines += [f"note       {note}" for note in answer.notes]
    return lines


def _cost(cost: TraceCost, sampled: float) -> str:
    """``sampled``: the share of the time in which it was attached."""
    share = f"{cost.share_of_core:.2%} of a core"
    if sampled < 1:
        share += f" while attached, {cost.share_of_core * sampled:.3%} over the whole time"
    return f"{share}: {cost.ns_per_event:.0f} ns x {cost.events_per_s:,.0f}/s, {cost.how}"
