"""`evenkeel lab demo`: fill a lab with virtual hosts as its pool, and send it something to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from evenkeel.cli.lab_options import At, Json, tell

if TYPE_CHECKING:
    from evenkeel.lab.client import Client


def register(app: typer.Typer) -> None:
    app.command(name="demo")(demo)


def demo(
    hosts: Annotated[
        int | None,
        typer.Option(
            "--hosts",
            metavar="N",
            min=1,
            max=8,
            help="How many virtual hosts; left out: one on a machine of two cores, else two.",
            show_default=False,
        ),
    ] = None,
    topology: Annotated[
        str, typer.Option("--topology", "-t", metavar="FILE", help="A topology file, or default, small, tiny.")
    ] = "tiny",
    remove: Annotated[bool, typer.Option("--rm", help="Remove the virtual hosts of an earlier demo instead.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Fill the lab on this machine with virtual hosts as machines of its pool, and submit two steps.

    The lab must run (`evenkeel lab up` in another terminal). The first run boots each host; later ones go on from that
    boot within seconds. Run again, it goes on where it was. Ctrl-C removes what this run began.

    evenkeel lab demo
    evenkeel lab demo --rm
    """
    from evenkeel.cli import output
    from evenkeel.cli.lab_machines import probed
    from evenkeel.lab import demo as demos
    from evenkeel.lab.client import connect
    from evenkeel.machines.virtual import spec
    from evenkeel.machines.virtual.interrupt import terminated_like_ctrl_c

    with connect(at) as lab:
        if remove:
            _remove(lab, as_json)
            return
        url = demos.need_here(lab)
        wanted = spec.read_spec(topology)
        names = []
        with terminated_like_ctrl_c(), demos.whole_or_nothing(lab, output.note) as begun:
            for number in range(1, (hosts or demos.usual_hosts()) + 1):
                name = demos.name_of(number)
                with output.progress(f"booting {name}") as on_progress:
                    begun.boot(name, wanted, on_progress)
                names.append(begun.enrol(name, *probed(f"virtual:{name}")))
            submission = begun.submit()
    if as_json:
        output.emit_json({"machines": names, "submission": submission, "url": url})
        return
    rows = [(f"{name} is in the pool", f"{url}/machines/{name}") for name in names]
    rows += [
        ("its console, live", f"{url}/machines/{names[0]}/console"),
        ("two steps, of which one takes a machine", f"{url}/submissions/{submission}"),
        ("the same here", f"evenkeel lab show {submission}"),
        ("log in to the pages", "evenkeel lab open"),
        ("reserve a machine", f"evenkeel lab reserve tag:{demos.TAG} --for 1h --reason 'to try it'"),
        ("remove the machines", "evenkeel lab demo --rm"),
    ]
    output.out().print(output.table(("", ""), rows), soft_wrap=True)


def _remove(lab: Client, as_json: bool) -> None:
    """From the pool and from this machine; without a lab from this machine only."""
    from evenkeel.cli import output
    from evenkeel.errors import Unreachable
    from evenkeel.lab import demo as demos

    try:
        demos.need_here(lab)
        demos.leave_pool(lab)
    except Unreachable:
        output.note("no lab runs here, so its pool still knows them; the next demo in it has them again")
    gone = demos.hosts()
    for name in gone:
        with output.progress(f"removing {name}"):
            demos.remove(name)
    tell({"removed": gone}, f"removed {', '.join(gone)}" if gone else "there is no virtual host of a demo", as_json)
