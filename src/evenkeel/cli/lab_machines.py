"""`evenkeel lab machines`, `search`, `machine ...`, `use`: the machines of the pool."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json, tell

_machine = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="""One machine of the pool: add it, look at it, change it, take it out.

  evenkeel lab machine add ssh://root@host1 --site prg
  evenkeel lab machine show host1
  evenkeel lab machine mark host1 broken --reason 'fan 3 stands still'
""",
)
Predicate = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="PREDICATE", help="What they must be, as in cpu.flag:avx512f 'mem>=256GiB'; all, if left out."
    ),
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="Of the machine.")]
Site = Annotated[str | None, typer.Option("--site", metavar="SITE", help="Where it stands.")]
Owner = Annotated[str | None, typer.Option("--owner", metavar="WHO", help="Who owns it; you, if left out.")]
Team = Annotated[str | None, typer.Option("--team", metavar="TEAM", help="Which team owns it.")]
Enclosure = Annotated[str | None, typer.Option("--enclosure", metavar="NAME", help="The machine that it stands in.")]
Note = Annotated[str | None, typer.Option("--note", metavar="TEXT", help="What others should know.")]
Tags = Annotated[
    list[str] | None, typer.Option("--tag", metavar="WORD", help="To be found by tag:WORD; more than once.")
]
Reach = Annotated[
    str | None,
    typer.Option("--reach", metavar="ADDRESS", help="Where the lab reaches it: ssh://root@HOST or virtual:NAME."),
]


def register(app: typer.Typer) -> None:
    app.command(name="machines")(machines)
    app.command(name="search")(search)
    app.command(name="use")(use)
    app.add_typer(_machine, name="machine")


def _endless(held: dict[str, Any]) -> str:
    return ", for a step without a time limit" if held["kind"] == "step" else ", for good"


def _line(one: dict[str, Any], now_ns: int) -> tuple[str, ...]:
    from evenkeel.lab.words import ago, size

    told, held = one["told"], one["held"]
    who = ""
    if held:
        who = held["holder"] + (f", ends {ago(held['until_ns'], now_ns)}" if held["until_ns"] else _endless(held))
    return (
        one["name"],
        one["state"],
        one["site"],
        " ".join(str(value) for value in told.get("arch", ())),
        str(next(iter(told.get("cpu.threads", ())), "")),
        size(next(iter(told.get("mem", ())), None)),
        ", ".join(told.get("nic.driver", ())),
        who or one["state_reason"],
    )


_COLUMNS = ("name", "state", "site", "arch", "CPUs", "memory", "NICs", "who, or why")


def _print_lines(found: list[dict[str, Any]]) -> None:
    import time

    from evenkeel.cli import output

    rows = [_line(one, time.time_ns()) for one in found]
    output.out().print(output.table(_COLUMNS, rows, right=("CPUs", "memory")))


def machines(predicate: Predicate = None, at: At = None, as_json: Json = False) -> None:
    """List machines, all or those that are as you say.

    evenkeel lab machines
    evenkeel lab machines cpu.flag:avx512f nic.driver:mlx5_core 'mem>=256GiB' 'sriov.vfs>=8'
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    text = " ".join(predicate or ())
    with connect(at) as lab:
        found = list(lab.pages("/machines", q=text, facets=False, limit=1000))
        nothing = None if found else lab.get("/machines", q=text)
    if as_json:
        output.emit_json(found)
    elif found:
        _print_lines(found)
    else:
        _say_instead(text, nothing)


def _say_instead(text: str, found: Any) -> None:
    from evenkeel.cli import output
    from evenkeel.lab.words import NO_MACHINE, several

    output.note(f"no machine is {text!r}" if text else NO_MACHINE)
    if text and found["nearest"]:
        output.note(found["nearest"])
    for one in found["instead"]:
        output.note(f"did you mean {one['predicate']} ({several(one['count'], 'machine')})?")


def search(
    predicate: Predicate = None,
    save: Annotated[str | None, typer.Option("--save", metavar="NAME", help="Keep this search.")] = None,
    share: Annotated[bool, typer.Option("--share", help="With --save: others see it too.")] = False,
    saved: Annotated[str | None, typer.Option("--saved", metavar="NAME", help="The search that was kept so.")] = None,
    forget: Annotated[str | None, typer.Option("--forget", metavar="NAME", help="Do not keep it any more.")] = None,
    kept: Annotated[bool, typer.Option("--list", help="List the searches that are kept.")] = False,
    keys: Annotated[bool, typer.Option("--keys", help="List what can be asked, with its meaning.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Search for machines, and see what else those are: facets to narrow it down.

    evenkeel lab search nic.driver:mlx5_core
    evenkeel lab search nic.driver:mlx5_core --save mellanox
    evenkeel lab search --saved mellanox
    evenkeel lab search --keys
    """
    from urllib.parse import quote

    from evenkeel.cli import output
    from evenkeel.errors import WrongInput
    from evenkeel.lab import flat
    from evenkeel.lab.client import connect

    if keys:
        if as_json:
            output.emit_json([{"key": key, "kind": known.kind, "what": known.what} for key, known in flat.KEYS.items()])
        else:
            rows = [(key, known.kind, known.what.replace("`", "")) for key, known in flat.KEYS.items()]
            output.out().print(output.table(("key", "kind", "what it is"), rows))
        return
    text = " ".join(predicate or ())
    with connect(at) as lab:
        if forget is not None:
            lab.send("DELETE", f"/searches/{quote(forget, safe='')}")
            output.note(f"forgot {forget}")
            return
        if kept:
            searches = lab.get("/searches")
            if as_json:
                output.emit_json(searches)
            else:
                rows = [(one["name"], one["owner"], one["predicate"]) for one in searches]
                output.out().print(output.table(("name", "of", "predicate"), rows))
            return
        if saved is not None:
            known = [one["predicate"] for one in lab.get("/searches") if one["name"] == saved]
            if not known:
                raise WrongInput(f"no search {saved!r} is kept", hint="`evenkeel lab search --list` lists them")
            text = f"{known[0]} {text}".strip()
        found = lab.get("/machines", q=text, limit=1000)
        if save is not None:
            lab.send("PUT", f"/searches/{quote(save, safe='')}", {"predicate": text, "shared": share})
            output.note(f"kept as {save}")
    if as_json:
        output.emit_json(found)
        return
    if not found["items"]:
        _say_instead(text, found)
        return
    _print_lines(found["items"])
    if found["next"]:
        output.note(f"the first {len(found['items'])} of {found['total']}")
    also = [
        (facet["key"], ", ".join(f"{value['value']} ({value['count']})" for value in facet["values"]))
        for facet in found["facets"]
    ]
    if also:
        output.out().print(output.table(("also", "of these"), also))


def use(
    predicate: Predicate = None,
    days: Annotated[int, typer.Option("--days", metavar="N", min=1, max=3650, help="Of the last N days.")] = 30,
    order: Annotated[str, typer.Option("--order", metavar="BY", help="idle, claimed, broken or name.")] = "idle",
    mine: Annotated[bool, typer.Option("--not-green", help="Yours (or your teams') that are not well.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show how machines are used: share of time, idle since, broken since.

    evenkeel lab use --days 365 --order idle
    evenkeel lab use --not-green
    """
    import time

    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import duration

    with connect(at) as lab:
        if mine:
            uses = lab.get("/use/not-green")
        else:
            start = time.time_ns() - days * 86_400 * 10**9
            pool = lab.get("/use", q=" ".join(predicate or ()), start_ns=start, order=order)
            uses = pool["machines"]
    if as_json:
        output.emit_json(uses if mine else pool)
        return
    rows = [
        (
            one["machine"],
            one["owner"] or one["team"],
            f"{one['claimed']:.0%}" if not mine else "",
            duration(one["idle_ns"]) if one["idle_ns"] and not mine else "",
            f"{one['state']} for {duration(one['not_green_ns'])}: {one['state_reason']}"
            if one["not_green_ns"] is not None
            else "",
        )
        for one in uses
    ]
    if rows:
        columns = ("machine", "owner", "claimed", "idle for", "not green")
        output.out().print(output.table(columns, rows, right=("claimed",)))
    elif mine:
        output.note("all of yours, and of your teams, are well")
    if not mine:
        output.note(
            f"{pool['claimed']:.0%} of all their time; {pool['never']} never had a claim; {pool['not_green']} not green"
        )


# -- one machine --------------------------------------------------------------------------------------------------


def probed(address: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Facts and inventory of a machine, read by this program; a saved Facts document has no inventory."""
    from contextlib import closing

    from evenkeel.cli import files, output
    from evenkeel.documents.facts import Facts
    from evenkeel.lab.prepare import look
    from evenkeel.machines.address import resolve

    if address.endswith(".json"):
        return files.load_document(Facts, address).model_dump(mode="json"), None
    with closing(resolve(address)) as machine, output.progress(f"reading {address}") as told, machine.probe() as probe:
        facts, inventory = look(probe, told)
    return facts.model_dump(mode="json"), inventory.model_dump(mode="json")


@_machine.command()
def add(
    address: Annotated[
        str | None,
        typer.Argument(
            metavar="ADDRESS",
            help="local, ssh://root@HOST[:PORT], virtual:NAME, a recorded tree, or saved facts (*.json); "
            "left out: a machine by name only, as an enclosure.",
        ),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="NAME", help="Its host name, if left out.")] = None,
    site: Site = None,
    owner: Owner = None,
    team: Team = None,
    enclosure: Enclosure = None,
    note: Note = None,
    tags: Tags = None,
    reach: Reach = None,
    same_as: Annotated[
        str | None, typer.Option("--same-as", metavar="NAME", help="It is that machine, with a swapped board.")
    ] = None,
    new: Annotated[bool, typer.Option("--new", help="It is another one than those that it is like.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Add a machine to the pool by what it is, or know it again.

    This command reads its facts itself; nothing is installed there. The lab knows a machine again by its serial
    numbers and MAC addresses, whatever it is called now.

    evenkeel lab machine add ssh://root@host1 --site prg
    evenkeel lab machine add virtual:lab1
    evenkeel lab machine add --name chassis1
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    facts, inventory = probed(address) if address else (None, None)
    if reach is None and address and address.startswith(("ssh://", "virtual:")):
        reach = address
    body: dict[str, Any] = {"facts": facts, "inventory": inventory, "address": reach, "name": name, "owner": owner}
    body |= {"site": site or "", "team": team or "", "note": note or "", "enclosure": enclosure, "new": new}
    body |= {"same_as": same_as, "policy": {"tags": tags or []}}
    with connect(at) as lab:
        done = lab.post("/machines", body)
    if as_json:
        output.emit_json(done)
        return
    what = done["machine"]["name"]
    if done["was"] == "new":
        output.out().print(f"{what} is in the pool")
    else:
        was = f", which was {done['known_as']}" if done["known_as"] != what else ""
        output.out().print(f"{what}{was}, is known: {done['why']}")
    _print_changes(done["changes"])


def _print_changes(changes: list[dict[str, Any]]) -> None:
    from evenkeel.cli import output

    def listed(values: list[Any]) -> str:
        return ", ".join(str(value) for value in values[:8]) + (" ..." if len(values) > 8 else "")

    if changes:
        rows = [(one["key"], listed(one["gone"]), listed(one["come"])) for one in changes]
        output.out().print(output.table(("fact", "went", "came"), rows))


@_machine.command()
def facts(
    name: Name,
    address: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="Where to read them; where the lab reaches it, if left out.")
    ] = None,
    swapped: Annotated[bool, typer.Option("--swapped", help="Its board was swapped; it is the same machine.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Read the facts of a machine anew, and say what changed.

    evenkeel lab machine facts host1
    evenkeel lab machine facts host1 ssh://root@192.0.2.7 --swapped
    """
    from evenkeel.cli import output
    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        address = address or lab.get(f"/machines/{name}")["address"]
        if address is None:
            raise WrongInput(f"where is {name}?", hint=f"evenkeel lab machine facts {name} ADDRESS")
        found, inventory = probed(address)
        body = {"facts": found, "inventory": inventory, "swapped": swapped}
        changes = lab.post(f"/machines/{name}/facts", body)
    if as_json:
        output.emit_json(changes)
    elif changes:
        _print_changes(changes)
    else:
        output.out().print(f"{name} is as it was")


@_machine.command()
def show(name: Name, at: At = None, as_json: Json = False) -> None:
    """Show what a machine is, who has it, and what happened to it last.

    evenkeel lab machine show host1
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import fact, moment

    with connect(at) as lab:
        one = lab.get(f"/machines/{name}")
        told = lab.get(f"/machines/{name}/facts")
        happened = lab.get(f"/machines/{name}/history", limit=5)["items"]
    if as_json:
        output.emit_json({"machine": one, "facts": told, "history": happened})
        return
    held = one["held"]
    rows = [("state", one["state"] + (f": {one['state_reason']}" if one["state_reason"] else ""))]
    if held:
        until = f" until {moment(held['until_ns'])} UTC" if held["until_ns"] else _endless(held)
        rows.append(("held by", f"{held['holder']}{until}: {held['reason']}"))
    if one["system_of"]:
        rows.append(
            ("system", f"{one['system_of']} booted it from a source of their own; installed again for the next")
        )
    if one["medium"]:
        rows.append(("in its drive", one["medium"]))
    rows += [(key, str(one[key])) for key in ("owner", "team", "site", "enclosure", "address", "note") if one[key]]
    for key, values in told.items():
        if key not in ("name", "state", "owner", "team", "site", "enclosure"):
            shown = ", ".join(fact(key, value) for value in values[:10])
            rows.append((key, shown + (f" ... ({len(values)})" if len(values) > 10 else "")))
    output.out().print(output.table((one["name"], ""), rows))
    rows3 = [(moment(entry["at_ns"]), entry["actor"], _happened(entry)) for entry in happened]
    output.out().print(output.table(("when (UTC)", "who", "what"), rows3))


def _happened(entry: dict[str, Any]) -> str:
    from evenkeel.lab.words import details

    if entry["type"] == "machine.system":
        whose = entry["data"]["new"]
        return f"booted from a source of {whose}'s own" if whose else "its system is its owner's again"
    said = {key: text for key, text in details(entry["data"]) if key not in ("name", "first", "machine", "machine id")}
    what = entry["type"].removeprefix("machine.")
    if {"old", "new"} <= said.keys():
        what = f"{said.pop('old')} → {said.pop('new')}"
    if "changes" in said:
        said["changes"] = ", ".join(one["key"] for one in entry["data"]["changes"])
    more = ", ".join(text if key in ("reason", "fields", "changes") else f"{key}: {text}" for key, text in said.items())
    return f"{what}: {more}" if more else what


@_machine.command()
def edit(
    name: Name,
    rename: Annotated[str | None, typer.Option("--name", metavar="NEW", help="Its new name.")] = None,
    site: Site = None,
    owner: Annotated[str | None, typer.Option("--owner", metavar="WHO", help="Who owns it.")] = None,
    team: Team = None,
    enclosure: Enclosure = None,
    note: Note = None,
    tags: Tags = None,
    reach: Reach = None,
    longest: Annotated[
        str | None, typer.Option("--longest", metavar="DURATION", help="The longest reservation, as in 2d.")
    ] = None,
    users: Annotated[
        list[str] | None, typer.Option("--only-for", metavar="WHO", help="Who may reserve it; more than once.")
    ] = None,
    teams: Annotated[
        list[str] | None, typer.Option("--only-for-team", metavar="TEAM", help="Teams that may reserve it.")
    ] = None,
    prepare: Annotated[
        str | None, typer.Option("--prepare", metavar="HOW", help="Before it is offered: full, check or none.")
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            metavar="URL",
            help="ISO that installs it by itself; its BMC boots it before the machine is offered. '' for none.",
        ),
    ] = None,
    netboot: Annotated[
        str | None,
        typer.Option(
            "--netboot",
            metavar="URL",
            help="iPXE script that installs it by itself; its firmware is given it before it is offered. '' for none.",
        ),
    ] = None,
    install_within: Annotated[
        str | None,
        typer.Option("--install-within", metavar="DURATION", help="How long that may take, as in 90min; usually 1h."),
    ] = None,
    own_boot: Annotated[
        bool | None,
        typer.Option(
            "--own-boot/--no-own-boot",
            help="Whether who reserves it may have it booted from a source of their own instead; with --no-steps.",
        ),
    ] = None,
    steps: Annotated[
        bool | None, typer.Option("--steps/--no-steps", help="Whether steps of the queue may take it.")
    ] = None,
    policy: Annotated[
        list[str] | None,
        typer.Option(
            "--policy",
            metavar="KEY=JSON",
            help="Another key of its policy: power, auto_off, draw_watts, idle_watts; null for none; more than once.",
        ),
    ] = None,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Change what is said of a machine; what is left out stays.

    evenkeel lab machine edit host1 --site nue --note 'moved to rack 7'
    evenkeel lab machine edit host1 --longest 2d --only-for-team kernel
    """
    import json

    from evenkeel.errors import WrongInput
    from evenkeel.lab.client import connect

    more: dict[str, Any] = {}
    for text in policy or []:
        key, equals, value = text.partition("=")
        try:
            more[key] = json.loads(value)
        except ValueError:
            raise WrongInput(f"{text!r}: {'JSON is wanted' if equals else 'no ='}", hint="KEY=JSON") from None
    with connect(at) as lab:
        one = lab.get(f"/machines/{name}")
        body: dict[str, Any] = {"name": rename, "site": site, "owner": owner, "team": team, "enclosure": enclosure}
        body |= {"note": note, "address": reach}
        wanted = {
            "tags": tags,
            "longest_ns": longest,
            "users": users,
            "teams": teams,
            "prepare": prepare,
            "image": image,
            "netboot": netboot,
            "install_ns": install_within,
            "own_boot": own_boot,
            "steps": steps,
        }
        given = {key: value for key, value in wanted.items() if value is not None} | more
        given |= {key: None for key in ("image", "netboot") if given.get(key) == ""}
        if given:
            body["policy"] = one["policy"] | given
        done = lab.send("PATCH", f"/machines/{name}", body, version=one["version"])
    tell(done, f"{done['name']} is changed", as_json)


@_machine.command()
def mark(
    name: Name,
    state: Annotated[str, typer.Argument(metavar="STATE", help="ready, suspect, broken or off.")],
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; all who want it read it.")] = "",
    installed: Annotated[
        bool,
        typer.Option("--installed", help="With ready: you have installed it, so nothing that a holder booted is left."),
    ] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Say that a machine is broken, suspect, off, or ready again.

    evenkeel lab machine mark host1 broken --reason 'fan 3 stands still'
    evenkeel lab machine mark host1 ready --installed
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        done = lab.post(f"/machines/{name}/state", {"state": state, "reason": reason, "installed": installed})
    tell(done, f"{done['name']} is {done['state']}", as_json)


@_machine.command()
def retire(
    name: Name,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why.")] = "",
    at: At = None,
    as_json: Json = False,
) -> None:
    """Take a machine out of the pool; its history stays.

    evenkeel lab machine retire host1 --reason 'given back to the vendor'
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        done = lab.post(f"/machines/{name}/retire", {"reason": reason})
    tell(done, f"{done['name']} is retired", as_json)
