"""`evenkeel virtual ...`: create, start, stop, remove, list and enter virtual hosts.  Thin: parse, call, print."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Create, start and stop virtual hosts: a real Debian with a PREEMPT_RT kernel in QEMU.

  evenkeel virtual start plc-1              create it if need be, boot it
  evenkeel virtual ssh plc-1 -- uname -a    run a command on it
  evenkeel facts virtual:plc-1              read what it is
  evenkeel virtual rm plc-1                 remove it and all it wrote
""",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the virtual host, as in plc-1.", show_default=False)]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Topology = Annotated[
    str,
    typer.Option("--topology", "-t", metavar="FILE", help="A topology file, or one of: default, small, tiny."),
]
Emulate = Annotated[bool, typer.Option("--emulate", help="Use software emulation even where KVM works.")]


def _tell(name: str, as_json: bool, *facts: str) -> None:
    from evenkeel.cli import output
    from evenkeel.machines.virtual import lifecycle

    if as_json:
        output.emit_json(next(host.as_dict() for host in lifecycle.listing() if host.name == name))
        return
    for fact in facts:
        output.out().print(fact)


@app.command()
def create(name: Name, topology: Topology = "default", emulate: Emulate = False, as_json: Json = False) -> None:
    """Define a virtual host; the first time builds its image, about a minute.

    evenkeel virtual create plc-1 --topology host.yaml
    """
    from evenkeel.cli import output
    from evenkeel.machines.virtual import lifecycle, spec
    from evenkeel.machines.virtual.interrupt import terminated_like_ctrl_c

    wanted = spec.read_spec(topology)
    with terminated_like_ctrl_c(), output.progress(f"creating virtual host {name}") as on_progress:
        lifecycle.create(name, wanted, accel="tcg" if emulate else "auto", on_progress=on_progress)
    _tell(name, as_json, f"created {name}: {wanted.describe()}", f"next: evenkeel virtual start {name}")


@app.command()
def start(
    name: Name,
    topology: Annotated[
        str | None,
        typer.Option("--topology", "-t", metavar="FILE", help="Create it first, when it is not there (see create)."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Boot a virtual host and wait until it answers; creates it when it is not there.

    evenkeel virtual start plc-1
    """
    from evenkeel.cli import output
    from evenkeel.errors import WrongInput
    from evenkeel.machines.virtual import lifecycle, spec
    from evenkeel.machines.virtual.interrupt import terminated_like_ctrl_c

    known = lifecycle.exists(name)
    if known and topology is not None and spec.read_spec(topology) != lifecycle.read_host(name).spec:
        raise WrongInput(
            f"virtual host {name} exists with another topology",
            hint=f"evenkeel virtual rm {name}, or leave out --topology",
        )
    with terminated_like_ctrl_c(), output.progress(f"starting virtual host {name}") as on_progress:
        if not known:
            lifecycle.create(name, spec.read_spec(topology or "default"), on_progress=on_progress)
        running = lifecycle.start(name, on_progress=on_progress)
    how = "KVM" if running.kvm else f"software emulation: {running.why}; latency numbers taken on it mean nothing"
    for remark in running.notes:
        output.warn(remark)
    _tell(name, as_json, f"{name} runs (QEMU {running.qemu}, {how})", f"next: evenkeel facts virtual:{name}")


@app.command()
def stop(
    name: Name,
    force: Annotated[bool, typer.Option("--force", help="Cut its power instead of shutting it down.")] = False,
    as_json: Json = False,
) -> None:
    """Shut a virtual host down; its disk keeps what was written.

    evenkeel virtual stop plc-1
    """
    from evenkeel.cli import output
    from evenkeel.machines.virtual import lifecycle

    if force:
        lifecycle.power_cut(name)
        _tell(name, as_json, f"{name}: power cut")
        return
    with output.progress(f"stopping virtual host {name}") as on_progress:
        graceful = lifecycle.stop(name, on_progress=on_progress)
    _tell(name, as_json, f"{name} is stopped" if graceful else f"{name} did not shut down in time; its power was cut")


@app.command()
def rm(name: Name, as_json: Json = False) -> None:
    """Remove a virtual host and all that it wrote; stops it at once when it runs.

    evenkeel virtual rm plc-1
    """
    from evenkeel.cli import output
    from evenkeel.machines.virtual import lifecycle

    lifecycle.remove(name)
    if as_json:
        output.emit_json({"name": name, "removed": True})
    else:
        output.out().print(f"removed {name}")


@app.command(name="list")
def list_(as_json: Json = False) -> None:
    """List the virtual hosts of this user.

    evenkeel virtual list --json
    """
    from evenkeel.cli import output
    from evenkeel.machines.virtual import lifecycle

    hosts = lifecycle.listing()
    if as_json:
        output.emit_json([host.as_dict() for host in hosts])
        return
    if not hosts:
        output.note("no virtual hosts; evenkeel virtual create NAME makes one")
        return
    rows = [
        (
            host.name,
            host.state,
            host.spec.describe() if host.spec else "?",
            "" if not host.run else "KVM" if host.run.kvm else "emulated",
            str(host.run.ssh_port) if host.run else "",
        )
        for host in hosts
    ]
    output.out().print(output.table(("name", "state", "topology", "runs by", "ssh port"), rows, right=("ssh port",)))


@app.command(context_settings={"ignore_unknown_options": True})
def ssh(
    name: Name,
    command: Annotated[list[str] | None, typer.Argument(metavar="[-- COMMAND...]", show_default=False)] = None,
) -> None:
    """Log in to a running virtual host as root, or run one command on it.

    evenkeel virtual ssh plc-1 -- uname -a
    """
    import os
    import shlex

    from evenkeel.machines.virtual import lifecycle

    target = lifecycle.ssh_target(name)
    words = [shlex.join(command)] if command else []
    # One word was a whole command line, as ssh itself takes it: ssh NAME -- 'a | b'.
    if command and len(command) == 1:
        words = command
    argv = lifecycle.ssh_command(target, *words, options=() if command else ("-t",))
    os.execvp(argv[0], argv)  # ssh takes over this terminal and our exit code becomes the command's


@app.command()
def console(name: Name) -> None:
    """The serial console of a running virtual host; Ctrl-] leaves it.

    evenkeel virtual console plc-1
    """
    from evenkeel.cli import output
    from evenkeel.machines.virtual import console as serial

    output.note(f"console of {name}; Ctrl-] leaves")
    serial.attach(name)
    output.note("")
