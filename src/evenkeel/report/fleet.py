"""Draw a placement as one self-contained SVG: hosts by nodes, who has which core, how full memory is, what moves.

Pure: a FleetPlan in, text out, the same text for the same plan.  Small fleets show every core with its guest's colour,
large ones only how full each node is.  Nothing is loaded from anywhere; every word of the plan is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from xml.sax.saxutils import escape, quoteattr

from evenkeel.documents.fleet import FleetHost, FleetNode, FleetPlan, GuestSeat, Request
from evenkeel.documents.quantity import format_size

WIDTH = 1080  # px; a report page is not wider
NAME_W = 150
ROW_H, SMALL_H = 46, 16
CORE = 11
ARROWS_W = 90
#: Hosts up to which every core is drawn.
MOST_DETAILED = 60
#: Of guests or owners, in their order; twelve that can be told apart, then again from the start.
COLOURS = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948"),
    *("#b07aa1", "#ff9da7", "#9c755f", "#2f6f4f", "#7a5195", "#4b6cb7"),
)


def fleet_svg(plan: FleetPlan) -> str:
    """The picture.  Colours are of owners where any guest has one, of guests otherwise."""
    requests = {request.name: request for request in plan.guests}
    by_owner = any(request.owner for request in plan.guests)
    group = {name: (request.owner or "no owner") if by_owner else name for name, request in requests.items()}
    there = sorted({group[seat.name] for seat in plan.seats})
    colour = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(there)}
    seats: dict[str, list[GuestSeat]] = {}
    for seat in plan.seats:
        seats.setdefault(seat.host, []).append(seat)
    detailed = len(plan.hosts) <= MOST_DETAILED
    height_of = ROW_H if detailed else SMALL_H
    most = max((len(host.nodes) for host in plan.hosts), default=1)
    arrows = ARROWS_W if plan.moves else 0
    node_w = (WIDTH - NAME_W - arrows) / max(1, most)
    top = 40
    body: list[str] = []
    for row, host in enumerate(plan.hosts):
        y = top + row * height_of
        here = seats.get(host.name, [])
        style = "gone" if host.drained else "name"
        body.append(f'<text class="{style}" x="4" y="{y + 13}">{escape(_short(host.name, 22))}</text>')
        for at, node in enumerate(host.nodes):
            x = NAME_W + at * node_w
            draw = _node if detailed else _heat
            body += draw(x, y, node_w - 10, host, node, here, requests, colour, group)
    y = top + len(plan.hosts) * height_of
    if detailed:
        rows = {host.name: top + at * height_of for at, host in enumerate(plan.hosts)}
        body += _moves(plan, rows)
    legend, bottom = _legend(there[:36], colour, y + 18)
    body += legend
    used = len(seats)
    title = f"{len(plan.seats)} of {len(plan.guests)} guests on {used} of {len(plan.hosts)} hosts"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom + 10}" width="{WIDTH}" '
        f'height="{bottom + 10}" role="img" aria-label={quoteattr(title)}>\n'
        f"<style>{_STYLE}</style>\n"
        f"{_DEFS}\n"
        f'<rect class="paper" width="{WIDTH}" height="{bottom + 10}"/>\n'
        f'<text class="title" x="4" y="22">{escape(title)}</text>\n' + "\n".join(body) + "\n</svg>\n"
    )


_STYLE = (
    "text{font:11px sans-serif;fill:#222}.title{font-size:15px;font-weight:600}.name{font-weight:600}"
    ".gone{fill:#999;text-decoration:line-through}.small{font-size:9px;fill:#555}.paper{fill:#fff}"
    ".core{stroke:#fff;stroke-width:1}.house{fill:#c9c9c9}.free{fill:#eef0f2}.busy{fill:#8a8a8a}"
    ".bar{fill:#eef0f2}.fill{fill:#555}.arrow{fill:none;stroke:#c0392b;stroke-width:1.4}"
)
_DEFS = (
    '<defs><marker id="tip" viewBox="0 0 6 6" refX="6" refY="3" markerWidth="6" markerHeight="6" orient="auto">'
    '<path d="M0 0L6 3L0 6z" fill="#c0392b"/></marker></defs>'
)


def _node(
    x: float,
    y: float,
    width: float,
    host: FleetHost,
    node: FleetNode,
    seats: Sequence[GuestSeat],
    requests: Mapping[str, Request],
    colour: Mapping[str, str],
    group: Mapping[str, str],
) -> list[str]:
    """Cores in a row, each with its guest's colour (pale where it stays empty), memory and functions below."""
    holders = {cpu: seat.name for seat in seats for cell in seat.cpus for cpu in cell}
    size = min(float(CORE), width / max(1, len(node.cores)))
    out = []
    for at, core in enumerate(node.cores):
        threads = sorted(core)
        for number, cpu in enumerate(threads):
            holder = holders.get(cpu)
            owner = holder or next((seat.name for seat in seats if cpu in seat.idle), None)
            kind, style = "core", ""
            if owner is not None:
                style = f' fill="{colour[group[owner]]}"' + ("" if holder else ' fill-opacity="0.35"')
                what = f"CPU {cpu}: {owner}" + ("" if holder else " keeps it empty")
            elif cpu in node.housekeeping:
                kind, what = "core house", f"CPU {cpu}: housekeeping"
            elif cpu in node.busy or cpu in node.data_plane:
                kind, what = "core busy", f"CPU {cpu}: others"
            else:
                kind, what = "core free", f"CPU {cpu}: free, or shared"
            tall = 18 / len(threads)
            out.append(
                f'<rect class="{kind}" x="{_n(x + at * size)}" y="{_n(y + number * tall)}" width="{_n(size)}" '
                f'height="{_n(tall)}"{style}><title>{escape(what)}</title></rect>'
            )
    memory, functions, total = _taken(host, node, seats, requests)
    share = min(1.0, memory / node.memory_bytes) if node.memory_bytes else 0.0
    text = f"node {node.id}: {format_size(memory)} of {_round(node.memory_bytes)}"
    text += f", {functions} of {total} functions" if total else ""
    out.append(f'<rect class="bar" x="{_n(x)}" y="{y + 21}" width="{_n(width)}" height="5"/>')
    out.append(f'<rect class="fill" x="{_n(x)}" y="{y + 21}" width="{_n(width * share)}" height="5"/>')
    out.append(f'<text class="small" x="{_n(x)}" y="{y + 36}">{escape(text)}</text>')
    return out


def _heat(
    x: float,
    y: float,
    width: float,
    host: FleetHost,
    node: FleetNode,
    seats: Sequence[GuestSeat],
    requests: Mapping[str, Request],
    colour: Mapping[str, str],
    group: Mapping[str, str],
) -> list[str]:
    """Two bars: the cores that guests have, by colour, and memory."""
    free = len(node.free) or 1
    out = [f'<rect class="bar" x="{_n(x)}" y="{y + 2}" width="{_n(width)}" height="8"/>']
    shares: dict[str, int] = {}
    for seat in seats:
        mine = (frozenset(cpu for cell in seat.cpus for cpu in cell) | seat.idle) & node.cpus
        shares[group[seat.name]] = shares.get(group[seat.name], 0) + len(mine)
    at = x
    for name, count in sorted(shares.items()):
        wide = width * count / free
        out.append(
            f'<rect x="{_n(at)}" y="{y + 2}" width="{_n(wide)}" height="8" fill="{colour[name]}">'
            f"<title>{escape(f'{host.name} node {node.id}: {name} has {count} of {free} CPUs')}</title></rect>"
        )
        at += wide
    memory, _, _ = _taken(host, node, seats, requests)
    share = min(1.0, memory / node.memory_bytes) if node.memory_bytes else 0.0
    out.append(f'<rect class="fill" x="{_n(x)}" y="{y + 11}" width="{_n(width * share)}" height="2"/>')
    return out


def _taken(
    host: FleetHost, node: FleetNode, seats: Sequence[GuestSeat], requests: Mapping[str, Request]
) -> tuple[int, int, int]:
    """(bytes of the node, its functions that guests have, all of its functions)."""
    memory = 0
    for seat in seats:
        request = requests[seat.name]
        if node.id in seat.nodes:
            cells = request.cells
            whole = len(cells) == 1 and len(seat.nodes) > 1  # cut into equal parts
            cell = cells[0 if whole else seat.nodes.index(node.id)]
            memory += cell.memory_bytes // (len(seat.nodes) if whole else 1)
    mine = {one.address for one in host.functions if one.node == node.id}
    given = {address for seat in seats for address in seat.functions}
    return memory, len(mine & given), len(mine)


def _moves(plan: FleetPlan, rows: Mapping[str, float]) -> list[str]:
    out = []
    right = WIDTH - ARROWS_W
    for number, move in enumerate(one for one in plan.moves if one.from_host != one.to_host):
        start, end = rows.get(move.from_host), rows.get(move.to_host)
        if start is None or end is None:
            continue
        bend = right + 20 + (number % 8) * 8
        start, end = start + 10 + number % 5 * 3, end + 12 + number % 5 * 3
        text = f"{move.name}: {format_size(move.memory_bytes)}, {move.from_host} to {move.to_host}"
        out.append(
            f'<path class="arrow" marker-end="url(#tip)" d="M{right} {_n(start)}C{bend + 30} {_n(start)} '
            f'{bend + 30} {_n(end)} {right} {_n(end)}"><title>{escape(text)}</title></path>'
        )
    return out


def _legend(names: Sequence[str], colour: Mapping[str, str], y: float) -> tuple[list[str], float]:
    out, x = [], 4.0
    for name in names:
        wide = 24 + 6.2 * len(_short(name, 24))
        if x + wide > WIDTH:
            x, y = 4.0, y + 18
        out.append(f'<rect x="{_n(x)}" y="{_n(y - 9)}" width="11" height="11" fill="{colour[name]}"/>')
        out.append(f'<text x="{_n(x + 15)}" y="{_n(y)}">{escape(_short(name, 24))}</text>')
        x += wide
    return out, y + 6


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _round(size: int) -> str:
    unit = 1 << 30 if size >= 1 << 30 else 1 << 20
    return format_size(size // unit * unit)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
