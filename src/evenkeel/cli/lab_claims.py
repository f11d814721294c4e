"""`evenkeel lab reserve`, `extend`, `release`, `handover`, `reservations`, `waiting`, `calendar`: who has a machine."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from evenkeel.cli.lab_options import At, Json, tell

if TYPE_CHECKING:
    from evenkeel.lab.client import Client

Which = Annotated[
    str, typer.Argument(metavar="ID|NAME", help="Number of the reservation, or the machine that it is about.")
]


def register(app: typer.Typer) -> None:
    for command in (reserve, extend, release, handover, reservations, waiting, calendar):
        app.command(name=command.__name__)(command)


def reserve(
    predicate: Annotated[
        list[str], typer.Argument(metavar="PREDICATE", help="A name, or what it must be, as in 'mem>=256GiB'.")
    ],
    reason: Annotated[str, typer.Option("--reason", "-m", metavar="TEXT", help="What for; others see it.")],
    length: Annotated[
        str | None, typer.Option("--for", metavar="DURATION", help="How long, as in 4h or 3d; the usual, if left out.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="WHEN", help="'2026-12-01 09:00' here, or in so long, as in 12h; now, if left out."
        ),
    ] = None,
    permanent: Annotated[bool, typer.Option("--permanent", help="For good; for its owner only.")] = False,
    maintenance: Annotated[bool, typer.Option("--maintenance", help="To mend it; for its owner only.")] = False,
    urgent: Annotated[bool, typer.Option("--urgent", help="Before others, for one of your credits.")] = False,
    image: Annotated[
        str | None,
        typer.Option(
            "--image", metavar="URL", help="ISO that its BMC boots before you get it, if its owner allows it."
        ),
    ] = None,
    netboot: Annotated[
        str | None,
        typer.Option("--netboot", metavar="URL", help="The same, an iPXE script that its firmware is given."),
    ] = None,
    team: Annotated[str, typer.Option("--team", metavar="TEAM", help="For a team of yours, which may change it.")] = "",
    wait: Annotated[bool, typer.Option("--wait", help="Until you have it, or Ctrl-C (you stay in line).")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Reserve a machine: now if one is free, in turn if not, or later.

    It is installed anew or checked before you get it, as its owner decided; if that fails, the next one is tried.

    evenkeel lab reserve host1 --for 4h -m 'bisecting the NIC hang'
    evenkeel lab reserve cpu.flag:avx512f 'mem>=256GiB' --for 2d --wait -m 'measure it'
    evenkeel lab reserve host1 --from '2026-12-01 09:00' --for 8h -m 'demo'
    evenkeel lab reserve host1 --netboot http://images.example.org/rescue.ipxe -m 'its disk does not boot'
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    kind = "permanent" if permanent else "maintenance" if maintenance else "reservation"
    body: dict[str, Any] = {"predicate": " ".join(predicate), "reason": reason, "length_ns": length, "kind": kind}
    body |= {"urgent": urgent, "team": team, "not_before_ns": _moment(start) if start else None}
    if image or netboot:
        body["boot_source"] = {"image": image, "netboot": netboot}
    with connect(at) as lab:
        made = lab.post("/claims", body)
        if wait and made["state"] in ("waiting", "preparing"):
            made = _wait(lab, made)
        address = lab.get(f"/machines/{made['machine']}")["address"] if made["state"] == "active" else None
    if as_json:
        output.emit_json(made)
        return
    _tell(made)
    name = made["machine"]
    if address is not None and address.startswith(("ssh://", "virtual:")):
        words = f"ssh {address}" if address.startswith("ssh:") else f"evenkeel virtual ssh {address[8:]}"
        output.note(f"log in: {words}")
    if made["state"] == "active":
        output.note(f"its console: evenkeel lab console {name}; when you are done: evenkeel lab release {name}")


def _moment(text: str) -> int:
    """Nanoseconds since 1970.  Raises WrongInput."""
    import time
    from datetime import datetime

    from evenkeel.documents.quantity import parse_duration
    from evenkeel.errors import WrongInput

    try:
        return time.time_ns() + parse_duration(text)
    except ValueError:
        pass
    try:
        return int(datetime.fromisoformat(text).astimezone().timestamp()) * 10**9
    except (ValueError, OverflowError):
        raise WrongInput(f"{text!r} is no time", hint="as in '2026-12-01 09:00', or 12h from now") from None


def _wait(lab: Client, made: dict[str, Any]) -> dict[str, Any]:
    from evenkeel.cli import output

    with output.progress(f"waiting for {made['predicate']}") as on_progress:
        while made["state"] in ("waiting", "preparing"):
            on_progress(0, 0, _how_it_stands(made))
            made = lab.wait(f"/claims/{made['id']}", 5)  # not longer: so that its place and forecast are seen to move
    return made


def _how_it_stands(one: dict[str, Any]) -> str:
    import time

    from evenkeel.lab.words import ago

    if one["state"] == "preparing":
        return f"{one['machine']} is prepared"
    waits = one["waits"]
    if waits is None:
        return str(one["state"])
    if not waits["position"]:
        return f"booked: {one['machine']}, begins {ago(one['not_before_ns'], time.time_ns())}"
    likely = waits["likely_ns"]
    when = f", likely {ago(likely, time.time_ns())}" if likely else ", nobody knows until when"
    return f"number {waits['position']} in line{when}"


def _tell(one: dict[str, Any]) -> None:
    from evenkeel.cli import output
    from evenkeel.lab.words import moment

    number = f"reservation {one['id']}"
    if one["state"] == "active":
        until = f" until {moment(one['until_ns'])} UTC" if one["until_ns"] else " for good"
        output.out().print(f"{number}: {one['machine']} is yours{until}")
    elif one["state"] == "preparing":
        output.out().print(f"{number}: {one['machine']} is prepared for you")
    elif one["state"] == "waiting":
        output.out().print(f"{number}: {_how_it_stands(one)}")
        for why in (one["waits"] or {}).get("why", ()):
            output.note(why)
    else:
        output.out().print(f"{number} is {one['state']}: {one['end_cause']}")


def _number(lab: Client, which: str) -> int:
    """Of a reservation that is open, by its number or by the name of its machine.  Raises WrongInput."""
    from evenkeel.errors import WrongInput

    if which.isascii() and which.isdigit():
        return int(which)
    found = list(lab.pages("/claims", machine=which, state="held"))
    if not found:
        me = lab.get("/me")["name"]
        mine = lab.pages("/claims", holder=me, state="open")
        found = [one for one in mine if which in (one["machine"], one["predicate"])]
    if len(found) != 1:
        said = "several reservations are" if found else "no open reservation is"
        raise WrongInput(f"{said} about {which}", hint="name it by its number: evenkeel lab reservations")
    return int(found[0]["id"])


def extend(
    which: Which,
    by: Annotated[str, typer.Argument(metavar="DURATION", help="How much longer, as in 4h.")],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Keep a machine longer, unless somebody waits for it or booked it.

    evenkeel lab extend host1 4h
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        done = lab.post(f"/claims/{_number(lab, which)}/extend", {"by_ns": by})
    output.emit_json(done) if as_json else _tell(done)


def release(
    which: Which,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why, if it is somebody else's.")] = "",
    at: At = None,
    as_json: Json = False,
) -> None:
    """Give a machine back, or stop waiting for one.

    evenkeel lab release host1
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        done = lab.post(f"/claims/{_number(lab, which)}/release", {"reason": reason})
    output.emit_json(done) if as_json else _tell(done)


def handover(
    which: Which,
    to: Annotated[str, typer.Argument(metavar="WHO", help="Who has it from now on.")],
    at: At = None,
    as_json: Json = False,
) -> None:
    """Give a reservation to somebody else, with the time that is left of it.

    evenkeel lab handover host1 bob
    """
    from evenkeel.lab.client import connect

    with connect(at) as lab:
        done = lab.post(f"/claims/{_number(lab, which)}/hand-over", {"to": to})
    tell(done, f"reservation {done['id']} is {done['holder']}'s", as_json)


def reservations(
    everybody: Annotated[bool, typer.Option("--all", help="Of all people and steps, not only yours.")] = False,
    ended: Annotated[bool, typer.Option("--ended", help="Those that are over, too.")] = False,
    at: At = None,
    as_json: Json = False,
) -> None:
    """List your reservations, the newest first.

    evenkeel lab reservations
    evenkeel lab reservations --all
    """
    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment

    with connect(at) as lab:
        holder = None if everybody else lab.get("/me")["name"]
        found = list(lab.pages("/claims", holder=holder, state="all" if ended else "open"))
    if as_json:
        output.emit_json(found)
        return
    rows = [
        (
            str(one["id"]),
            one["holder"],
            one["state"],
            one["machine"] or one["predicate"],
            moment(one["began_ns"] or one["not_before_ns"]),
            moment(one["ended_ns"] or one["until_ns"]) or ("for good" if one["kind"] == "permanent" else ""),
            one["reason"],
        )
        for one in found
    ]
    if rows:
        output.out().print(
            output.table(("id", "who", "state", "machine", "from (UTC)", "until", "for"), rows, right=("id",))
        )
    else:
        output.note("no reservations; evenkeel lab reserve NAME -m REASON")


def waiting(at: At = None, as_json: Json = False) -> None:
    """Show who waits for a machine, when each turn comes, and what they wait for.

    evenkeel lab waiting
    """
    import time

    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import ago

    with connect(at) as lab:
        found = lab.get("/claims/waiting")
    if as_json:
        output.emit_json(found)
        return
    if not found:
        output.note("nobody waits for a machine")
        return
    now = time.time_ns()
    rows = [
        (
            str(one["id"]),
            str(one["waits"]["position"]),
            one["holder"] + (" (urgent)" if one["urgent"] else ""),
            one["predicate"],
            ago(one["waits"]["likely_ns"], now) if one["waits"]["likely_ns"] else "?",
            ago(one["waits"]["at_latest_ns"], now) if one["waits"]["at_latest_ns"] else "?",
            "; ".join(one["waits"]["why"]),
        )
        for one in found
    ]
    columns = ("id", "place", "who", "waits for", "likely", "at latest", "because")
    output.out().print(output.table(columns, rows, right=("id", "place")))


def calendar(
    predicate: Annotated[list[str] | None, typer.Argument(metavar="PREDICATE", help="Of which machines; all.")] = None,
    days: Annotated[int, typer.Option("--days", metavar="N", min=1, max=365, help="From now on.")] = 14,
    at: At = None,
    as_json: Json = False,
) -> None:
    """Show what is reserved and booked, by machine.

    evenkeel lab calendar 'mem>=256GiB' --days 7
    """
    import time

    from evenkeel.cli import output
    from evenkeel.lab.client import connect
    from evenkeel.lab.words import moment

    now = time.time_ns()
    with connect(at) as lab:
        lanes = lab.get("/calendar", q=" ".join(predicate or ()), start_ns=now, end_ns=now + days * 86_400 * 10**9)
    if as_json:
        output.emit_json(lanes)
        return
    rows = []
    for lane in lanes:
        for span in lane["spans"] or [None]:
            if span is None:
                rows.append((lane["machine"], "free", "", "", ""))
                continue
            end = ("about " if span["about"] else "") + (moment(span["end_ns"]) or "for good")
            rows.append((lane["machine"], moment(span["start_ns"]), end, span["holder"], span["reason"]))
    output.out().print(output.table(("machine", "from (UTC)", "until", "who", "for"), rows))
