"""`evenkeel lab artifact ...`: the files that steps gave: list, fetch, pin, see what is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json, tell

artifact = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""Files that steps gave: list them, fetch them, keep them.

  evenkeel lab artifact list --same "kernel-module branch=main"
  evenkeel lab artifact get 17 -o module.ko
""",
)
Number = Annotated[int, typer.Argument(metavar="NUMBER", min=1, help="Of the artifact, as `list` shows it.")]


def register(app: typer.Typer) -> None:
    app.add_typer(artifact, name="artifact")


@artifact.command(name="list")
def list_(
    same: Annotated[
        str, typer.Option("--same", metavar="TEXT", help="Of results that begin so, as a result has it.")
    ] = "",
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="Of that name.")] = "",
    attempt: Annotated[int | None, typer.Option("--attempt", metavar="NUMBER", help="Of this attempt only.")] = None,
    most: Annotated[int, typer.Option("--most", min=1, max=1000, help="So many, the latest first.")] = 50,
    at: At = None,
    json: Json = False,
) -> None:
    """List artifacts, the latest first.

    evenkeel lab artifact list --name module
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment, size

    with connect(at) as lab:
        if attempt is not None:
            found = lab.get(f"/results/{attempt}")["artifacts"]
        else:
            found = lab.get("/artifacts", same=same or None, name=name or None, limit=most)["items"]
    if json:
        output.emit_json(found)
        return
    rows = [
        (str(one["id"]), one["name"], size(one["size"]), one["same"] or one["step"], one["state"],
         moment(one["ended_ns"]), f"pinned by {one['pinned_by']}" if one["pinned_by"] else "")
        for one in found
    ]  # fmt: skip
    output.out().print(output.table(("number", "name", "size", "of", "", "ended (UTC)", ""), rows, right=("size",)))


@artifact.command(name="get")
def get(
    number: Number,
    file: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Its name when left out; a folder is a tar file."),
    ] = None,
    at: At = None,
) -> None:
    """Fetch an artifact, check its hash, and go on where an earlier try broke off.

    evenkeel lab artifact get 17 -o module.ko
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.transfer import download

    if file is not None:
        _require_plain(file)
    with connect(at) as lab:
        found = lab.get(f"/artifacts/{number}")
        target = file or Path(found["name"] + (".tar" if found["media"].endswith("+tar") else ""))
        download(lab, f"/artifacts/{number}/content", found["sha256"], target)
    output.note(f"{target}: {found['size']} bytes, SHA-256 {found['sha256']}")


def _require_plain(file: Path) -> None:
    """What is fetched takes the place of a file; it must not take that of /dev/null.  Raises WrongInput."""
    from evenkeel.errors import WrongInput
    from evenkeel.machines.paths import kind_of

    if str(file) == "-" or kind_of(file) not in ("file", ""):
        raise WrongInput(
            f"{file} is no ordinary file; a fetch that broke off goes on in one",
            hint="-o FILE, and copy it from there",
        )


@artifact.command(name="pin")
def pin(number: Number, at: At = None, json: Json = False) -> None:
    """Keep an artifact until it is unpinned.

    evenkeel lab artifact pin 17
    """
    _change("POST", number, at, json)


@artifact.command(name="unpin")
def unpin(number: Number, at: At = None, json: Json = False) -> None:
    """Leave an artifact to the lab's policy again.

    evenkeel lab artifact unpin 17
    """
    _change("DELETE", number, at, json)


def _change(method: str, number: int, at: str | None, json: bool) -> None:
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        found: dict[str, Any] = lab.send(method, f"/artifacts/{number}/pin")
    if json:
        output.emit_json(found)
    else:
        output.note(f"{found['name']}: " + (f"pinned by {found['pinned_by']}" if found["pinned_by"] else "not pinned"))


@artifact.command(name="usage")
def usage(at: At = None, json: Json = False) -> None:
    """Say how much is kept.

    evenkeel lab artifact usage
    """
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import size

    with connect(at) as lab:
        found = lab.get("/artifacts/usage")
    tell(
        found,
        f"{found['artifacts']} artifacts ({found['pinned']} pinned), {found['contents']} different contents, "
        f"{size(found['size'])}",
        json,
    )


@artifact.command(name="collect")
def collect(at: At = None, json: Json = False) -> None:
    """Remove now what the policy does not keep: artifacts, logs, results and events. The service does so by itself each
    hour. Needs an admin.

    evenkeel lab artifact collect
    """
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import size

    with connect(at) as lab:
        found = lab.post("/artifacts/collect")
    tell(
        found,
        f"{found['artifacts']} artifacts forgotten, {found['contents']} contents ({size(found['size'])}) removed; "
        f"{found['logs']} logs ({size(found['log_size'])}), {found['results']} results and {found['events']} events "
        "removed",
        json,
    )
