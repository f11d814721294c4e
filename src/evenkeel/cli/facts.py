"""``evenkeel facts``: read what a machine is and how it is set now.  Parse, call, print."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from evenkeel.documents.facts import Facts
    from evenkeel.machines.protocol import Machine


def register(app: typer.Typer) -> None:
    app.command("facts")(facts)


def facts(
    machine: Annotated[
        str,
        typer.Argument(
            help="local, ssh://root@HOST[:PORT], virtual:NAME, a recorded tree, or a saved document (*.json).",
            metavar="MACHINE",
        ),
    ] = "local",
    json: Annotated[bool, typer.Option("--json", help="Print the Facts document.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Save the Facts document.", metavar="FILE")
    ] = None,
    picture: Annotated[Path | None, typer.Option("--picture", help="Draw the machine.", metavar="FILE.svg")] = None,
    record: Annotated[
        Path | None,
        typer.Option("--record", help="Keep the files that the facts were read from.", metavar="FILE.tar.bz2"),
    ] = None,
) -> None:
    """Read what a machine is and how it is set now. Changes nothing.

      evenkeel facts                                      this machine, as tables

      evenkeel facts ssh://root@plc-host -o facts.json --picture plc-host.svg

      evenkeel facts virtual:lab --record lab.tar.bz2     a recording, to be read as a machine later:

      evenkeel facts lab.tar.bz2 --json

    The document is the same, byte for byte, as long as nothing on the machine changes. Run it as root: some files
    (debugfs, the kernel log) tell others nothing; the document lists them as unreadable.
    """
    from contextlib import closing

    from evenkeel.cli import files
    from evenkeel.cli import output as screen
    from evenkeel.documents.facts import Facts
    from evenkeel.machines.address import resolve

    taken = screen.takes_stdout({"-o": output, "--picture": picture, "--record": record}, json=json)
    if machine.endswith(".json") and record is None:
        document = files.load_document(Facts, machine)
    else:
        with closing(resolve(machine)) as found:
            document = _read(found, record)
    if output is not None:
        files.save_document(output, document)
    if picture is not None:
        from evenkeel.report.picture import machine_svg

        files.save_text(picture, machine_svg(document))
    for path in (output, picture, record):
        if path is not None:
            screen.wrote(path)
    if json and not taken:
        screen.emit_json(document)
    elif output is None and picture is None and record is None:
        from evenkeel.cli.facts_tables import print_facts

        print_facts(document, screen.out())


def _read(machine: Machine, record: Path | None) -> Facts:
    from base64 import b64decode

    from evenkeel.apply.hosts import facts_of, read_facts
    from evenkeel.cli import files
    from evenkeel.cli import output as screen

    with screen.progress(f"facts of {machine.address}") as on_progress, machine.probe() as probe:
        if record is None:
            return read_facts(probe, on_progress, machine.address)
        answer = probe.call("record", on_progress=on_progress, timeout_s=300.0)
    files.save_bytes(record, b64decode(answer["tarball"]))
    return facts_of(answer["facts"], machine.address)
