"""`evenkeel lab demo`: fill a lab with virtual hosts as its pool, and send it something to do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json

if TYPE_CHECKING:
    from evenkeel.lab.client import Client

_TAG = "demo"
#: Two steps, of which the second takes a machine of the pool.
_GRAPH: dict[str, Any] = {
    "version": 1,
    "name": "demo",
    "steps": {
        "greet": {"step": {"kind": "demo-greet", "command": 'echo "hello from $(uname -n)"'}},
        "look": {
            "needs": ["greet"],
            "step": {
                "kind": "demo-look",
                "machine": f"tag:{_TAG}",
                "command": 'echo "I have $MACHINE_NAME for myself"',
            },
        },
    },
}


def register(app: typer.Typer) -> None:
    app.command(name="demo")(demo)


def demo(
    hosts: Annotated[int, typer.Option("--hosts", metavar="N", min=1, max=8, help="How many virtual hosts.")] = 2,
    topology: Annotated[
        str, typer.Option("--topology", "-t", metavar="FILE", help="A topology file, or default, small, tiny.")
    ] = "tiny",
    remove: Annotated[bool, typer.Option("--rm", help="Remove the virtual hosts of an earlier demo instead.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Fill the lab on this machine with virtual hosts as machines of its pool, and submit two steps.

    The lab must run (`evenkeel lab up` in another terminal). Run again, it goes on where it was.

    evenkeel lab demo
    evenkeel lab demo --rm
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        url = lab.get("/service")["url"]
        if remove:
            gone = _remove(lab)
            if as_json:
                output.emit_json({"removed": gone})
            else:
                output.out().print(f"removed {', '.join(gone)}" if gone else "there is no virtual host of a demo")
            return
        names = [_machine(lab, f"lab-demo-{number}", topology) for number in range(1, hosts + 1)]
        submission = lab.post("/submissions", {"graph": _GRAPH})["id"]
    if as_json:
        output.emit_json({"machines": names, "submission": submission, "url": url})
        return
    output.out().print(f"in the pool: {', '.join(names)}", soft_wrap=True)
    output.out().print(f"submitted: {url}/submissions/{submission}", soft_wrap=True)
    output.out().print(f"reserve one: evenkeel lab reserve tag:{_TAG} --for 1h --reason 'to try it'", soft_wrap=True)
    output.out().print("remove them: evenkeel lab demo --rm", soft_wrap=True)


def _machine(lab: Client, name: str, topology: str) -> str:
    """Boot the virtual host and have the lab know it; gives its name in the pool."""
    from evenkeel.cli import output
    from evenkeel.cli.lab_machines import probed
    from evenkeel.machines.virtual import lifecycle, spec

    with output.progress(f"booting {name}") as on_progress:
        if not lifecycle.exists(name):
            lifecycle.create(name, spec.read_spec(topology), on_progress=on_progress)
        lifecycle.start(name, on_progress=on_progress)
    facts, inventory = probed(f"virtual:{name}")
    wanted = {"name": name, "facts": facts, "inventory": inventory, "address": f"virtual:{name}", "site": "demo"}
    done = lab.post(
        "/machines", wanted | {"policy": {"tags": [_TAG]}, "note": "A virtual host of `evenkeel lab demo`."}
    )
    known = str(done["machine"]["name"])
    lab.post(f"/machines/{known}/endpoints", {"kind": "hypervisor", "driver": "virtual", "address": f"virtual:{name}"})
    return known


def _remove(lab: Client) -> list[str]:
    """Only those that a demo made: by their names here, and by tag and address in the pool."""
    from evenkeel.machines.virtual import lifecycle

    gone = [host.name for host in lifecycle.listing() if host.name.startswith("lab-demo-")]
    for one in lab.pages("/machines", q=f"tag:{_TAG}"):
        if one["state"] != "retired":
            lab.post(f"/machines/{one['name']}/retire", {"reason": "the demo is over"})
    for name in gone:
        lifecycle.remove(name)
    return gone
