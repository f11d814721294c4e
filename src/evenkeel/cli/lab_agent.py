"""`evenkeel lab agent`, `agents`, `drain`, `resume`: who does the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from evenkeel.cli.lab_options import At, Json, tell

Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the agent.")]


def register(app: typer.Typer) -> None:
    app.command(name="agent")(agent)
    app.command(name="agents")(agents)
    app.command(name="drain")(drain)
    app.command(name="resume")(resume)


def agent(
    name: Annotated[
        str | None,
        typer.Option("--name", metavar="NAME", help="Of its own; the host's if left out.", show_default=False),
    ] = None,
    slots: Annotated[
        int | None,
        typer.Option("--slots", metavar="N", min=1, help="Steps at once; one a CPU if left out.", show_default=False),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option("--label", metavar="NAME=VALUE", help="Steps ask for it as label.NAME:VALUE; may be repeated."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Option("--folder", metavar="DIR", help="Of this agent; its steps run in it.", show_default=False),
    ] = None,
    slurm: Annotated[
        str | None,
        typer.Option(
            "--slurm",
            metavar="OPTIONS",
            help='Steps become jobs of Slurm, with these options for sbatch; "" for none.',
            show_default=False,
        ),
    ] = None,
    leave_after: Annotated[
        int | None,
        typer.Option(
            "--leave-after", metavar="SECONDS", min=1, hidden=True, help="What `lab up` starts leaves by itself."
        ),
    ] = None,
    print_unit: Annotated[
        bool, typer.Option("--print-unit", help="Print a unit file for systemd, start nothing.")
    ] = False,
    at: At = None,
) -> None:
    """Take steps from a lab and do them here, until it is ended.

    evenkeel lab agent --lab https://lab.example.org --slots 8 --label cross=arm64
    evenkeel lab agent --lab https://lab.example.org --print-unit
    evenkeel lab agent --lab https://lab.example.org --slots 200 --slurm "--partition=build" --folder /shared/lab

    A lab elsewhere wants a token with the scope `agent` in EVENKEEL_LAB_TOKEN. The lab may be away: steps go on, and
    their results are kept until it has them.
    """
    import asyncio
    import contextlib
    import logging
    import shlex
    import signal

    from evenkeel.cli import output
    from evenkeel.lab import agent_setup

    if print_unit:
        from evenkeel.lab import unit

        agent_setup.given(label or ())  # a mistake in them is told now, and not by the service
        if folder is None and at is not None and "://" in at:
            folder = unit.AGENT_FOLDER
        options = (
            ("--lab", at if at is None or "://" in at else str(Path(at).expanduser().absolute())),
            ("--name", name),
            ("--slots", None if slots is None else str(slots)),
            *(("--label", one) for one in label or ()),
            ("--folder", None if folder is None else str(folder.expanduser().absolute())),
            ("--slurm", slurm),
        )
        told = [word for option, value in options if value is not None for word in (option, value)]
        output.out().print(unit.agent_unit(told), end="", soft_wrap=True)
        return
    logging.basicConfig(level=logging.WARNING)
    words = None if slurm is None else shlex.split(slurm)
    made = agent_setup.agent(
        at,
        name=name,
        slots=slots,
        labels=label or (),
        folder=folder,
        say=output.note,
        sbatch=words,
        leave_after_s=leave_after,
    )

    async def run() -> None:
        task = asyncio.ensure_future(made.run())
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, task.cancel)
        with contextlib.suppress(asyncio.CancelledError):
            await task

    asyncio.run(run())


def agents(at: At = None, json: Json = False) -> None:
    """List agents, and what runs on them.

    evenkeel lab agents
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.get("/agents")
    if json:
        output.emit_json(found)
        return
    rows = [
        (one["name"], one["state"], f"{len(one['running'])} of {one['slots']}",
         ", ".join(f"{run['submission']}/{run['step']}" for run in one["running"]),
         " ".join(f"{key}:{value}" for key, values in sorted(one["labels"].items()) for value in values))
        for one in found
    ]  # fmt: skip
    output.out().print(output.table(("agent", "state", "busy", "runs", "is"), rows))


def drain(name: Name, at: At = None, json: Json = False) -> None:
    """Give an agent nothing more; it ends what it runs.

    evenkeel lab drain builder3
    """
    _move(name, "drain", at, json)


def resume(name: Name, at: At = None, json: Json = False) -> None:
    """Give a drained agent steps again.

    evenkeel lab resume builder3
    """
    _move(name, "resume", at, json)


def _move(name: str, what: str, at: str | None, json: bool) -> None:
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found = lab.post(f"/agents/{name}/{what}")
    # Only the dispatcher knows whether a resumed one is connected; it says so at the next look.
    state = found["state"] if what == "drain" else "no longer drained: it takes steps while it is connected"
    tell(found, f"agent {name} is {state}", json)
