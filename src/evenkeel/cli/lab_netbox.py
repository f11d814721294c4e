"""`evenkeel lab netbox ...`: what NetBox and the lab exchange, by asking the lab's service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json

if TYPE_CHECKING:
    from rich.table import Table

Machine = Annotated[str, typer.Argument(metavar="MACHINE", help="Name of a machine of the lab.")]


def register(app: typer.Typer) -> None:
    netbox = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help=_HELP)
    app.add_typer(netbox, name="netbox")
    for command in (status, plan, sync, import_, push, log, undo):
        netbox.command(name=command.__name__.strip("_"))(command)


_HELP = """What NetBox and the lab exchange: plans, syncs, imports, pushes, and every overwritten field with undo.

  evenkeel lab netbox plan                  what would a sync do?
  evenkeel lab netbox sync                  do it
  evenkeel lab netbox log --machine host1   what was overwritten?
"""


def status(lab: At = None, json: Json = False) -> int:
    """Say which NetBox the lab follows, when it was synced, and who owns which field.

    evenkeel lab netbox status
    """
    from evenkeel.cli.output import emit_json, out, table
    from evenkeel.lab.client import connect
    from evenkeel.lab.pages.words import moment

    with connect(lab) as asked:
        found = asked.get("/netbox")
    if json:
        emit_json(found)
        return 0
    if found["url"] is None:
        out().print("This lab follows no NetBox.")
        return 0
    last = found["last_full"]
    out().print(f"{found['machines']} machines follow {found['url']}.")
    if last:
        out().print(f"Full sync: {moment(last['started_ns'])}, next {moment(found['next_full_ns'])}.")
        out().print(f"Next incremental sync: {moment(found['next_incremental_ns'])}.")
    else:
        out().print("It was never synced; the service does it within a minute.")
    if found["gone"]:
        out().print(f"Gone from NetBox: {', '.join(found['gone'])}")
    rows = [(one["field"], one["owner"], one["netbox"], one["what"]) for one in found["fields"]]
    out().print(table(("field", "owner", "in NetBox", "what"), rows))
    return 0


def plan(
    machine: Annotated[str | None, typer.Option(metavar="NAME", help="Only this machine.")] = None,
    lab: At = None,
    json: Json = False,
) -> int:
    """Ask NetBox and say what a sync would do; write nothing.  Exit code 1: it would do something.

    evenkeel lab netbox plan --machine host1
    """
    from evenkeel.cli.output import emit_json, out, table
    from evenkeel.lab.client import connect

    with connect(lab) as asked:
        found = asked.get("/netbox/plan", machine=machine)
    taken = any(one["gone"] or any(f["act"] == "take" for f in one["fields"]) for one in found["machines"])
    if json:
        emit_json(found)
        return int(taken)
    rows = []
    for one in found["machines"]:
        if one["gone"]:
            rows.append((one["machine"], "", "", "", "mark", "NetBox has it no more"))
        for f in one["fields"]:
            rows.append((one["machine"], f["field"], _shown(f["netbox"]), _shown(f["lab"]), f["act"], _why(f)))
    if rows:
        out().print(table(("machine", "field", "NetBox", "lab", "sync will", "why"), rows))
    out().print(
        f"{found['read']} devices in NetBox, {found['known']} of them machines here; "
        f"{len(found['machines'])} machines differ."
    )
    return int(taken)


def sync(
    incremental: Annotated[bool, typer.Option("--incremental", help="Only what changed since the last one.")] = False,
    lab: At = None,
    json: Json = False,
) -> int:
    """Bring the lab up to date with NetBox.

    evenkeel lab netbox sync --incremental
    """
    from evenkeel.lab.client import connect

    with connect(lab) as asked:
        return _print_run(asked.post("/netbox/sync", {"kind": "incremental" if incremental else "full"}), json)


def import_(
    devices: Annotated[list[int], typer.Argument(metavar="ID...", help="Ids of devices in NetBox.")],
    lab: At = None,
    json: Json = False,
) -> int:
    """Make machines of NetBox devices, or link those that are here by their names.

    evenkeel lab netbox import 17 18
    """
    from evenkeel.lab.client import connect

    with connect(lab) as asked:
        return _print_run(asked.post("/netbox/import", {"devices": devices}), json)


def push(
    machine: Machine,
    field: Annotated[
        list[str] | None, typer.Option(metavar="FIELD", help="May overwrite what somebody wrote in NetBox; repeat it.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", "-n", help="Only say what would be written.")] = False,
    lab: At = None,
    json: Json = False,
) -> int:
    """Write what the lab knows of a machine to NetBox: facts, owners, interfaces, MAC addresses.

    evenkeel lab netbox push host1 --dry-run
    """
    from urllib.parse import quote

    from evenkeel.cli.output import emit_json, note, out
    from evenkeel.lab.client import connect

    path = f"/netbox/machines/{quote(machine, safe='')}/push"
    with connect(lab) as asked:
        planned = asked.get(path, field=field or None)
        if dry_run and json:
            emit_json(planned)
            return 0
        if planned["writes"] and not json:
            out().print(_push_table(planned["writes"]))
        if dry_run:
            if not planned["writes"]:
                out().print("NetBox has all of it.")
            return 0
        if not any(one["act"] == "write" for one in planned["writes"]):
            note("nothing to write")
        return _print_run(asked.post(path, {"fields": field or []}), json)


def _push_table(writes: list[dict[str, Any]]) -> Table:
    from evenkeel.cli.output import table

    rows = [(one["field"], _shown(one["netbox"]), _shown(one["lab"]), one["act"], _why(one)) for one in writes]
    return table(("field", "NetBox", "lab", "push will", "why"), rows)


def log(
    machine: Annotated[str | None, typer.Option(metavar="NAME", help="Of this machine.")] = None,
    run: Annotated[int | None, typer.Option(metavar="RUN", help="Of this run.")] = None,
    runs: Annotated[bool, typer.Option("--runs", help="List the runs instead.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="So many, newest first.")] = 50,
    lab: At = None,
    json: Json = False,
) -> int:
    """List every field that was overwritten, with old and new value; `undo` takes its number.

    evenkeel lab netbox log --machine host1
    """
    from evenkeel.cli.output import emit_json, out, table
    from evenkeel.lab.client import connect
    from evenkeel.lab.pages.words import moment

    with connect(lab) as asked:
        if runs:
            found = asked.get("/netbox/runs", limit=limit)
        else:
            found = asked.get("/netbox/changes", machine=machine, run=run, limit=limit)
    if json:
        emit_json(found)
    elif not found["items"]:
        out().print("Nothing.")
    elif runs:
        rows = [
            (str(one["id"]), moment(one["started_ns"]), one["kind"], one["actor"], one["state"], _counted(one))
            for one in found["items"]
        ]
        out().print(table(("run", "when", "kind", "by", "state", "what"), rows, right=("run",)))
    else:
        out().print(_changes_table(found["items"]))
    return 0


def _changes_table(changes: list[dict[str, Any]]) -> Table:
    from evenkeel.cli.output import table
    from evenkeel.lab.pages.words import moment

    rows = []
    for one in changes:
        state = f"undone by {one['undone_by']}" if one["undone_by"] else "" if one["state"] == "done" else one["state"]
        where = f"{one['machine']}: {one['field']}"
        values = (_shown(one["old"]), _shown(one["new"]))
        rows.append((str(one["id"]), moment(one["at_ns"]), one["side"], where, *values, one["source"], state))
    return table(("change", "when", "of", "field", "old", "new", "by", ""), rows, right=("change",))


def undo(
    change: Annotated[int, typer.Argument(metavar="CHANGE", help="Its number in the log.")],
    lab: At = None,
    json: Json = False,
) -> int:
    """Put the old value of one overwritten field back, unless the field was changed since.

    evenkeel lab netbox undo 12
    """
    from evenkeel.cli.output import emit_json, out
    from evenkeel.lab.client import connect

    with connect(lab) as asked:
        made = asked.post(f"/netbox/changes/{change}/undo")
    if json:
        emit_json(made)
    else:
        out().print(f"{made['machine']}: {made['field']} is {_shown(made['new'])} again (change {made['id']}).")
    return 0


def _print_run(run: dict[str, Any], json: bool) -> int:
    from evenkeel.cli.output import emit_json, out, warn

    if json:
        emit_json(run)
        return 0
    out().print(f"Run {run['id']}: {_counted(run)}.")
    for one in run["conflicts"]:
        kept = {"netbox": "NetBox's was taken", "lab": "the lab's was written", "both": "both stay"}[one["kept"]]
        values = f"NetBox {_shown(one['netbox'])}, lab {_shown(one['lab'])}"
        warn(f"{one['machine']}: {one['field']}: {one['conflict']} ({values}; {kept})")
    return 0


def _counted(run: dict[str, Any]) -> str:
    return run["error"] or ", ".join(f"{count} {what}" for what, count in run["counts"].items()) or "nothing to do"


def _why(one: dict[str, Any]) -> str:
    return f"{one['why']}; {one['conflict']}" if one["conflict"] else str(one["why"])


def _shown(value: Any) -> str:
    return "-" if value is None else ", ".join(value) if isinstance(value, list) else str(value)
