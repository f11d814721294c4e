"""Draw a placement as one self-contained SVG: hosts by nodes, who has which core, how full memory is, what moves.

Pure: a FleetPlan in, text out, the same text for the same plan.  Where guests move there are two panels, before and
after, with an arrow for each move and its price below.  Small fleets show every core with its guest's colour, large
ones how full each node is.  Nothing is loaded from anywhere; every word of the plan is escaped.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

from evenkeel.documents.fleet import FleetHost, FleetNode, FleetPlan, GuestSeat, Move, Request, Seat
from evenkeel.documents.quantity import format_size
from evenkeel.report.markup import Content, Markup, el, trusted

WIDTH = 980  # px; a report page is not wider
NAME_W, SMALL_NAME_W = 112, 76
ROW_H, SMALL_H = 46, 18
TOP = 58
CORE = 11  # px of a core at most
GUTTER = 150  # between the two panels
GAP = 10  # between nodes
#: Hosts up to which every core is drawn, and up to which those that no move touches are drawn beside the others.
MOST_DETAILED, MOST_BESIDE = 60, 200
MOST_PRICED = 60  # moves whose price is written out
MOST_LABELS_W = 84  # px for the labels at the begin of arrows
PRICE_W = 326  # of a column of prices
#: Of guests or owners, in their order; twelve that can be told apart on white and on black, then again from the start.
COLOURS = (
    *("#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948"),
    *("#b07aa1", "#ff9da7", "#9c755f", "#3f8f6f", "#8a5fb0", "#5b7fd0"),
)
MOST_NAMED = 36  # in the legend

_STYLE = """
svg.fleet{--paper:#fff;--ink:#1b1f27;--soft:#5b6472;--free:#e9ecf0;--house:#c3c9d1;--busy:#8b929c;--fill:#5b6472;
--move:#b42318;max-width:none;background:var(--paper)}
@media(prefers-color-scheme:dark){svg.fleet{--paper:#14171c;--ink:#e8eaee;--soft:#a3abb8;--free:#262b33;--house:#4a515d;
--busy:#78808c;--fill:#a3abb8;--move:#ff9b8f}}
.picture svg.fleet{max-width:none}
.fleet text{font:11px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;fill:var(--ink)}
.fleet .title{font-size:15px;font-weight:600}.fleet .name{font-weight:600}
.fleet .gone{fill:var(--soft);text-decoration:line-through}.fleet .small{font-size:10px;fill:var(--soft)}
.fleet .paper{fill:var(--paper)}.fleet .core{stroke:var(--paper);stroke-width:1}
.fleet .house{fill:var(--house)}.fleet .free,.fleet .bar{fill:var(--free)}.fleet .busy{fill:var(--busy)}
.fleet .fill{fill:var(--fill)}.fleet .kept{fill-opacity:.35}
.fleet .arrow{fill:none;stroke:var(--move)}
.fleet .again{stroke-dasharray:4 3}.fleet .tip{fill:var(--move)}
.fleet .dot{fill:var(--paper);stroke:var(--move)}.fleet .number{font-size:9px;font-weight:600;fill:var(--move)}
"""


def fleet_svg(plan: FleetPlan) -> str:
    """The picture as the text of a file.  Colours are of owners where any guest has one, of guests otherwise."""
    return f"{fleet_picture(plan, standalone=True)}\n"


def fleet_picture(plan: FleetPlan, *, standalone: bool = False) -> Markup:
    """The picture, for a file of its own or for a page, which says itself what is in it and what moves cost."""
    ink = _Ink(plan)
    drawn = _before_and_after(ink, priced=standalone) if plan.moves else _alone(ink)
    legend, bottom = _legend(ink, drawn.bottom + 18)
    crop = 0.0 if standalone else 30.0  # without its title
    return el(
        "svg",
        el("title", drawn.title),
        el("style", trusted(_STYLE)),
        el("rect", class_="paper", width=WIDTH, height=_n(bottom + 10)),
        el("text", drawn.title, class_="title", x=4, y=22) if standalone else None,
        *drawn.parts,
        *legend,
        class_="fleet",
        viewBox=f"0 {_n(crop)} {WIDTH} {_n(bottom + 10 - crop)}",
        width=WIDTH,
        height=_n(bottom + 10 - crop),
        role="img",
        aria_label=drawn.title,
        xmlns="http://www.w3.org/2000/svg" if standalone else None,
    )


@dataclass(frozen=True)
class Price:
    """What one move costs: ``what`` in words, and between which places."""

    move: Move
    number: int
    places: str
    what: str


def prices(plan: FleetPlan) -> list[Price]:
    """Of every move, by its old host, then by its new one, numbered from 1."""
    row = {host.name: at for at, host in enumerate(plan.hosts)}
    requests = {request.name: request for request in plan.guests}
    seats = {seat.name: seat for seat in plan.seats}
    found = []
    ordered = sorted(plan.moves, key=lambda move: (row[move.from_host], row[move.to_host], move.name))
    for number, move in enumerate(ordered, 1):
        now, seat = requests[move.name].now, seats[move.name]
        if move.from_host != move.to_host:
            places, what = f"{move.from_host} to {move.to_host}", f"{format_size(move.memory_bytes)} copied"
        else:
            before, after = (_list(one.nodes) for one in (now or seat, seat))
            places = (
                f"{move.to_host}, node {before} to {after}" if move.memory_bytes else f"{move.to_host}, node {after}"
            )
            copied = f"{format_size(move.memory_bytes)} copied" if move.memory_bytes else "nothing copied"
            what = f"pinned anew, {copied}"
        found.append(Price(move, number, places, what))
    return found


def price_in_all(plan: FleetPlan) -> str:
    """``"12 guests move, 644GiB copied, 3 pinned anew"``."""
    across = [move for move in plan.moves if move.from_host != move.to_host]
    inside = len(plan.moves) - len(across)
    size = sum(move.memory_bytes for move in plan.moves)
    parts = [f"{len(across)} guest{'s' * (len(across) != 1)} move{'s' * (len(across) == 1)} to another host"]
    parts += [f"{inside} pinned anew"] if inside else []
    parts.append(f"{format_size(size)} copied in all")
    lost = sum(request.now is not None for request in plan.guests if request.name in {one.name for one in plan.refused})
    return ", ".join(parts) + (f"; {lost} that had a place {'have' if lost > 1 else 'has'} none" if lost else "")


# -- what is drawn ----------------------------------------------------------------------------------------------------


class _Ink:
    """The plan, and in which colour each guest is drawn."""

    def __init__(self, plan: FleetPlan) -> None:
        self.plan = plan
        self.requests: Mapping[str, Request] = {request.name: request for request in plan.guests}
        by_owner = any(request.owner for request in plan.guests)
        self.group = {n: (one.owner or "no owner") if by_owner else n for n, one in self.requests.items()}
        self.after = _by_host(plan.seats)
        self.before = _by_host(
            GuestSeat(name=request.name, **{key: getattr(request.now, key) for key in Seat.model_fields})
            for request in plan.guests
            if request.now is not None
        )
        there = {self.group[seat.name] for seats in (self.after, self.before) for one in seats.values() for seat in one}
        self.groups = sorted(there)
        self.colour = {name: COLOURS[at % len(COLOURS)] for at, name in enumerate(self.groups)}

    def of(self, guest: str) -> str:
        return self.colour[self.group[guest]]


def _by_host(seats: Iterable[GuestSeat]) -> dict[str, list[GuestSeat]]:
    found: dict[str, list[GuestSeat]] = {}
    for seat in seats:
        found.setdefault(seat.host, []).append(seat)
    return found


@dataclass(frozen=True)
class _Drawn:
    title: str
    parts: list[Markup]
    bottom: float


@dataclass(frozen=True)
class _Box:
    """Where something is drawn: its upper left corner and its width."""

    x: float
    y: float
    width: float


@dataclass(frozen=True)
class _Load:
    """One node of a host, with the guests of the host."""

    ink: _Ink
    host: FleetHost
    node: FleetNode
    seats: Sequence[GuestSeat]

    @cached_property
    def memory(self) -> int:
        """Bytes that guests have there."""
        found = 0
        for seat in self.seats:
            if self.node.id in seat.nodes:
                cells = self.ink.requests[seat.name].cells
                cut = len(cells) == 1 and len(seat.nodes) > 1  # into equal parts
                cell = cells[0 if cut else seat.nodes.index(self.node.id)]
                found += cell.memory_bytes // (len(seat.nodes) if cut else 1)
        return found

    @cached_property
    def functions(self) -> tuple[int, int]:
        """(PCI functions of the node that guests have, all of them)."""
        mine = {one.address for one in self.host.functions if one.node == self.node.id}
        given = {address for seat in self.seats for address in seat.functions}
        return len(mine & given), len(mine)

    @property
    def share(self) -> float:
        return min(1.0, self.memory / self.node.memory_bytes) if self.node.memory_bytes else 0.0

    def words(self, width: float) -> str:
        """Under a node of this width."""
        given, functions = self.functions
        of = _round(self.node.memory_bytes)
        wide = [f"node {self.node.id}: {_round(self.memory)} of {of}", f"{given} of {functions} functions"]
        close = [f"{self.node.id}: {_round(self.memory)}/{of}", f"{given}/{functions} fn"]
        for parts in (wide, close):
            text = ", ".join(parts[: 2 if functions else 1])
            if len(text) * 5.2 <= width:
                return text
        return close[0]


def _alone(ink: _Ink) -> _Drawn:
    plan = ink.plan
    title = f"{len(plan.seats)} of {len(plan.guests)} guests on {len(ink.after)} of {len(plan.hosts)} hosts"
    rows = _Rows(plan.hosts, TOP - 14)
    box = _Box(NAME_W + 8, 0, WIDTH - NAME_W - 8)
    names = [_host_name(host, rows, _Box(4, 0, NAME_W)) for host in rows.hosts]
    return _Drawn(title, [*names, *_panel(ink, rows, ink.after, box)], rows.bottom)


def _before_and_after(ink: _Ink, *, priced: bool) -> _Drawn:
    plan = ink.plan
    title = f"Before and after: {price_in_all(plan)}"
    hosts, touched = plan.hosts, {name for move in plan.moves for name in (move.from_host, move.to_host)}
    left_out = 0
    if len(hosts) > MOST_BESIDE:
        hosts = tuple(host for host in hosts if host.name in touched)
        left_out = len(plan.hosts) - len(hosts)
    rows = _Rows(hosts, TOP)
    wide = (WIDTH - SMALL_NAME_W - 8 - GUTTER) / 2
    left, right = _Box(SMALL_NAME_W + 8, 0, wide), _Box(WIDTH - wide, 0, wide)
    parts = [_host_name(host, rows, _Box(4, 0, SMALL_NAME_W)) for host in hosts]
    for words, seats, box in (("before", ink.before, left), ("after", ink.after, right)):
        used = f"{words}: {sum(map(len, seats.values()))} guests on {len(seats)} hosts"
        parts.append(el("text", used, class_="name", x=_n(box.x), y=44))
        parts += _panel(ink, rows, seats, box)
    parts += _arrows(ink, rows, left.x + left.width - GAP, right.x)
    y = rows.bottom + 14
    if left_out:
        parts.append(el("text", f"{left_out} hosts on which nothing moves are not drawn", class_="small", x=4, y=_n(y)))
        y += 18
    listed, bottom = _price_list(ink, y) if priced else ([], y)
    return _Drawn(title, [*parts, *listed], bottom)


class _Rows:
    """Hosts one below the other.  ``detailed``: every core is drawn."""

    def __init__(self, hosts: Sequence[FleetHost], top: float) -> None:
        self.hosts = hosts
        self.detailed = len(hosts) <= MOST_DETAILED
        self.height = ROW_H if self.detailed else SMALL_H
        self.y = {host.name: top + at * self.height for at, host in enumerate(hosts)}
        self.bottom = top + len(hosts) * self.height
        self.nodes = max((len(host.nodes) for host in hosts), default=1)


def _host_name(host: FleetHost, rows: _Rows, box: _Box) -> Markup:
    return el(
        "text",
        _short(host.name, int(box.width / 6.4)),
        el("title", host.name + (", which is drained" if host.drained else "")),
        class_="gone" if host.drained else "name",
        x=_n(box.x),
        y=_n(rows.y[host.name] + 12),
    )


def _panel(ink: _Ink, rows: _Rows, seats: Mapping[str, Sequence[GuestSeat]], box: _Box) -> Iterator[Markup]:
    width = box.width / max(1, rows.nodes)
    draw = _cores if rows.detailed else _bars
    for host in rows.hosts:
        for at, node in enumerate(host.nodes):
            place = _Box(box.x + at * width, rows.y[host.name], width - GAP)
            yield from draw(place, _Load(ink, host, node, seats.get(host.name, ())))


def _cores(box: _Box, load: _Load) -> Iterator[Markup]:
    """Cores in a row, each with its guest's colour (pale where it stays empty), memory and functions below."""
    node = load.node
    busy = {cpu: seat.name for seat in load.seats for cell in seat.cpus for cpu in cell}
    kept = {cpu: seat.name for seat in load.seats for cpu in seat.idle}
    size = min(float(CORE), box.width / max(1, len(node.cores)))
    for at, core in enumerate(node.cores):
        tall = 18 / len(core)
        for number, cpu in enumerate(sorted(core)):
            kind, fill = "core", None
            if cpu in busy:
                fill, what = load.ink.of(busy[cpu]), busy[cpu]
            elif cpu in kept:
                kind, fill, what = "core kept", load.ink.of(kept[cpu]), f"{kept[cpu]} keeps it empty"
            elif cpu in node.housekeeping:
                kind, what = "core house", "housekeeping"
            elif cpu in node.busy or cpu in node.data_plane:
                kind, what = "core busy", "others"
            else:
                kind, what = "core free", "free, or shared"
            yield el(
                "rect",
                el("title", f"CPU {cpu}: {what}"),
                class_=kind,
                x=_n(box.x + at * size),
                y=_n(box.y + number * tall),
                width=_n(size),
                height=_n(tall),
                fill=fill,
            )
    yield from _gauge(_Box(box.x, box.y + 21, box.width), 5, load.share)
    yield el("text", load.words(box.width), class_="small", x=_n(box.x), y=_n(box.y + 37))


def _bars(box: _Box, load: _Load) -> Iterator[Markup]:
    """Bars, one below the other: the cores that guests have, by colour; memory; functions where there are any."""
    node = load.node
    free = len(node.free) or 1
    yield el("rect", class_="bar", x=_n(box.x), y=_n(box.y + 1), width=_n(box.width), height=9)
    shares: dict[str, int] = {}
    for seat in load.seats:
        mine = (frozenset(cpu for cell in seat.cpus for cpu in cell) | seat.idle) & node.cpus
        group = load.ink.group[seat.name]
        shares[group] = shares.get(group, 0) + len(mine)
    at = box.x
    for name, count in sorted(shares.items()):
        wide = box.width * count / free
        words = f"{load.host.name} node {node.id}: {name} has {count} of {free} CPUs"
        fill = load.ink.colour[name]
        yield el("rect", el("title", words), x=_n(at), y=_n(box.y + 1), width=_n(wide), height=9, fill=fill)
        at += wide
    yield from _gauge(_Box(box.x, box.y + 11, box.width), 2, load.share, load.words(999))
    given, functions = load.functions
    if functions:
        yield from _gauge(_Box(box.x, box.y + 14, box.width), 2, given / functions, load.words(999))


def _gauge(box: _Box, height: int, share: float, words: str | None = None) -> Iterator[Markup]:
    for kind, width in (("bar", box.width), ("fill", box.width * share)):
        title = el("title", words) if words else None
        yield el("rect", title, class_=kind, x=_n(box.x), y=_n(box.y), width=_n(width), height=height)


# -- moves ------------------------------------------------------------------------------------------------------------


def _arrows(ink: _Ink, rows: _Rows, left: float, right: float) -> Iterator[Markup]:
    """One from each old host to each new one, with the numbers of its moves in the list of prices."""
    deep = max(1, int((rows.height - 3) // 15))  # labels one below the other
    ends = max(1, int((rows.height - 8) // 6))  # tips one below the other
    free: dict[str, list[float]] = {}  # where the next label of each line of a host may begin
    coming: Counter[str] = Counter()
    labels: list[Markup] = []
    for (old, new), group in groupby(prices(ink.plan), key=lambda price: (price.move.from_host, price.move.to_host)):
        moves = list(group)
        if old not in rows.y or new not in rows.y:
            continue
        first, last = moves[0].number, moves[-1].number
        label = f"{first}" if first == last else f"{first}-{last}"
        wide = 8 + 5.6 * len(label)
        begins = free.setdefault(old, [left + 4] * deep)
        line = begins.index(min(begins))
        x = min(begins[line], left + MOST_LABELS_W)
        begins[line] = x + wide + 3
        start = rows.y[old] + 8 + line * 15
        end = rows.y[new] + 5 + coming[new] % ends * 6
        coming[new] += 1
        words = "; ".join(f"{one.move.name}: {one.places}, {one.what}" for one in moves[:MOST_PRICED])
        middle = max((x + wide + right) / 2, x + wide)
        yield el(
            "path",
            el("title", words),
            class_="arrow again" if old == new else "arrow",
            stroke_width=_n(min(4.5, 1.2 + 0.3 * (len(moves) - 1))),
            d=f"M{_n(x + wide)} {_n(start)}C{_n(middle)} {_n(start)} {_n(middle)} {_n(end)} {_n(right - 9)} {_n(end)}",
        )
        yield el("path", class_="tip", d=f"M{_n(right - 2)} {_n(end)}l-8 -3.5v7z")
        labels.append(
            el("rect", el("title", words), class_="dot", x=_n(x), y=_n(start - 7), width=_n(wide), height=13, rx=6)
        )
        labels.append(el("text", label, class_="number", x=_n(x + wide / 2), y=_n(start + 3), text_anchor="middle"))
    yield from labels  # above all arrows


def _price_list(ink: _Ink, y: float) -> tuple[list[Markup], float]:
    """Columns of prices, and where they end."""
    found = prices(ink.plan)
    shown = found[:MOST_PRICED]
    columns = max(1, int(WIDTH // PRICE_W))
    deep = -(-len(shown) // columns)
    parts: list[Markup] = []
    for at, price in enumerate(shown):
        x, row = 4 + at // deep * PRICE_W, y + 10 + at % deep * 16
        words: Content = _short(f"{price.number}  {price.move.name}: {price.places}, {price.what}", 54)
        parts.append(el("rect", x=_n(x), y=_n(row - 9), width=10, height=10, fill=ink.of(price.move.name)))
        parts.append(el("text", words, x=_n(x + 15), y=_n(row)))
    bottom = y + 10 + deep * 16
    if len(found) > len(shown):
        rest = found[len(shown) :]
        size = format_size(sum(price.move.memory_bytes for price in rest))
        parts.append(el("text", f"and {len(rest)} more, {size} copied", class_="small", x=4, y=_n(bottom)))
        bottom += 16
    return parts, bottom


def _legend(ink: _Ink, y: float) -> tuple[list[Markup], float]:
    """Whose colour is which; then what is no guest's."""
    entries = [(_short(name, 24), el_colour) for name, el_colour in list(ink.colour.items())[:MOST_NAMED]]
    parts: list[Markup] = []
    x = 4.0
    more = len(ink.groups) - len(entries)
    plain = [("housekeeping", "house"), ("others", "busy"), ("free, or shared", "free"), ("memory in use", "fill")]
    swatches: list[tuple[str, dict[str, str]]] = [(name, {"fill": colour}) for name, colour in entries]
    swatches += [(name, {"class_": kind}) for name, kind in plain]
    for name, look in swatches:
        wide = 26 + 6.3 * len(name)
        if x + wide > WIDTH:
            x, y = 4.0, y + 18
        parts.append(el("rect", x=_n(x), y=_n(y - 9), width=11, height=11, **look))
        parts.append(el("text", name, x=_n(x + 15), y=_n(y)))
        x += wide
    if more > 0:
        y += 18
        parts.append(el("text", f"{more} more colours are not named; point at a core", class_="small", x=4, y=_n(y)))
    return parts, y + 6


def _list(nodes: Sequence[int]) -> str:
    return ", ".join(map(str, nodes)) or "any"


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _round(size: int) -> str:
    unit = 1 << 30 if size >= 1 << 30 else 1 << 20
    return format_size(size // unit * unit)


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
