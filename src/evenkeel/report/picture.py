"""Draw a machine as one self-contained SVG: packages, NUMA nodes, shared caches, cores, threads, devices, roles.

Pure: Facts (and who owns which CPU) in, text out, the same text for the same input.  Nothing is loaded from anywhere,
and every word that comes from a machine is escaped.  A role has a colour, a letter and, for CPUs that are to stay
empty, a pattern, so that the picture can be read without colours.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from xml.sax.saxutils import escape

from evenkeel.documents.cpuset import format_cpus
from evenkeel.documents.facts import BlockDevice, Cpu, Facts, Nic, Node

WIDTH = 1080  # px; a report page is not wider
GAP = 8
PAD = 9
THREAD_W = 31
THREAD_H = 30
BAR = 4  # a cache of one core
SHARED_BAR = 15  # a cache with its size written on it
CHIP_H = 17
CHARACTER = 0.56  # mean width of a character, of the font size
MOST_CHIPS = 12  # devices drawn for one node; the rest are counted


@dataclass(frozen=True)
class Role:
    """How a role looks.  ``fill`` names a colour class of the style sheet."""

    name: str
    letter: str
    fill: str


#: By the names of the ledger (:class:`evenkeel.documents.plan.Ledger`), in the order of the legend.
ROLES = {
    "housekeeping": Role("housekeeping", "H", "hk"),
    "shared": Role("shared by ordinary guests", "S", "sh"),
    "realtime": Role("real-time vCPU", "R", "rt"),
    "idle": Role("kept empty beside a real-time vCPU", "idle", "id"),
    "data_plane": Role("data plane", "D", "dp"),
    "isolated": Role("isolated, no plan known", "I", "is"),
    "offline": Role("offline", "×", "off"),
}
_NO_ROLE = Role("", "", "none")


def machine_svg(
    facts: Facts,
    roles: Mapping[int, str] | None = None,
    *,
    notes: Mapping[int, str] | None = None,
    title: str | None = None,
) -> str:
    """The picture of a machine as the text of an SVG file.

    ``roles``: CPU -> name of a role, as in the ledger of a plan; None: only what the kernel itself isolates is marked.
    ``notes``: CPU -> more words for its tooltip, such as the vCPU that it carries.
    An unknown role is drawn without a colour and called by its own name.
    """
    drawing = _Drawing(facts, roles, notes or {})
    heading = title or _heading(facts)
    body = drawing.machine()
    width = max(body.width, 420.0)
    lines = _wrap_heading(heading, width)
    top = 8 + 17 * len(lines) + 6
    legend = drawing.legend(width)
    height = top + body.height + 10 + legend.height + 4
    mark = hashlib.sha256(facts.sha256().encode() + repr(sorted((roles or {}).items())).encode()).hexdigest()[:8]
    described = _description(facts, drawing)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" class="mp" role="img" aria-labelledby="mp-t-{mark} mp-d-{mark}" '
        f'viewBox="0 0 {_n(width + 2)} {_n(height)}" width="{_n(width + 2)}" height="{_n(height)}" '
        'style="max-width:100%;height:auto">',
        f'<title id="mp-t-{mark}">{escape(heading)}</title>',
        f'<desc id="mp-d-{mark}">{escape(described)}</desc>',
        f"<style>{_STYLE}</style>",
        f'<defs><pattern id="mp-h-{mark}" width="5" height="5" patternUnits="userSpaceOnUse" '
        'patternTransform="rotate(45)"><rect width="1.4" height="5" class="mp-line"/></pattern></defs>',
    ]
    parts += [_text(1, 8 + 13 + 17 * i, line, "mp-title") for i, line in enumerate(lines)]
    parts += body.draw(1, top)
    parts += legend.draw(1, top + body.height + 10)
    parts.append("</svg>")
    return "\n".join(parts).replace("%HATCH%", f"url(#mp-h-{mark})") + "\n"


# -- what is inside what ----------------------------------------------------------------------------------------------


@dataclass
class _Group:
    """A set of CPUs that something holds together: a package, a node, a cache.  Several of the same set are one."""

    cpus: frozenset[int]
    titles: list[str] = field(default_factory=list)
    bars: list[tuple[str, str]] = field(default_factory=list)  # caches: (class, words)
    nodes: list[int] = field(default_factory=list)
    children: list[_Group] = field(default_factory=list)
    cores: list[tuple[Cpu, ...]] = field(default_factory=list)


def _cores(facts: Facts) -> list[tuple[Cpu, ...]]:
    """Threads of each core, in order of the first; an offline CPU, of which nothing is known, is a core of its own."""
    by_number = {cpu.id: cpu for cpu in facts.cpus}
    cores: dict[tuple[int, ...], tuple[Cpu, ...]] = {}
    for cpu in facts.cpus:
        members = tuple(sorted((cpu.siblings or {cpu.id}) & by_number.keys()))
        if members:
            cores[members] = tuple(by_number[number] for number in members)
    return [cores[members] for members in sorted(cores)]


def _tree(facts: Facts, cores: list[tuple[Cpu, ...]]) -> _Group:
    """Nest the sets by containment, largest outside."""
    everything = frozenset(cpu.id for cpu in facts.cpus)
    groups: dict[frozenset[int], _Group] = {}

    def add(named: Iterable[tuple[str, frozenset[int]]]) -> None:
        """Boxes of one kind: all of them, or none where each has one core only."""
        sets = [(words, cpus & everything) for words, cpus in named if cpus & everything]
        if any(_is_wide(cpus, cores) for _, cpus in sets) or len(cores) == 1:
            for words, cpus in sets:
                groups.setdefault(cpus, _Group(cpus)).titles.append(words)

    add((f"Package {number}", cpus) for (number,), cpus in _by(facts, lambda cpu: (cpu.package,)))
    add((_node_title(facts, node), node.cpus) for node in facts.nodes)
    for node in facts.nodes:
        if found := groups.get(node.cpus & everything):
            found.nodes.append(node.id)
    dies = _by(facts, lambda cpu: (cpu.package, cpu.die))
    if len(dies) > len({key[0] for key, _ in dies}):
        add((f"Die {key[1]}", cpus) for key, cpus in dies)
    for cache in sorted(facts.caches, key=lambda cache: -cache.level):
        if cache.level > 1 and (_is_wide(cache.cpus, cores) or (cache.level > 2 and cache.cpus in groups)):
            found = groups.setdefault(cache.cpus & everything, _Group(cache.cpus & everything))
            found.bars.append((f"mp-l{min(cache.level, 3)}", f"L{cache.level} {_size(cache.size_bytes)}".strip()))
    top = _Group(everything)
    kept: list[_Group] = []
    # What cuts across another set can be no box: then packages and nodes stay, caches go.
    for found in sorted(groups.values(), key=lambda found: (not found.titles, -len(found.cpus), min(found.cpus))):
        if all(_nested(found.cpus, other.cpus) for other in kept):
            kept.append(found)
    for found in sorted(kept, key=lambda found: (-len(found.cpus), min(found.cpus))):
        _innermost(top, found.cpus).children.append(found)
    for core in cores:
        _innermost(top, frozenset(cpu.id for cpu in core if cpu.online) or {core[0].id}).cores.append(core)
    _sort(top)
    return top


def _nested(one: frozenset[int], other: frozenset[int]) -> bool:
    return not one & other or one <= other or other <= one


def _innermost(top: _Group, cpus: frozenset[int] | set[int]) -> _Group:
    """The smallest box around all of these CPUs."""
    for child in top.children:
        if cpus <= child.cpus:
            return _innermost(child, cpus)
    return top


def _sort(group: _Group) -> None:
    group.children.sort(key=lambda child: min(child.cpus))
    for child in group.children:
        _sort(child)


def _is_wide(cpus: frozenset[int], cores: Sequence[tuple[Cpu, ...]]) -> bool:
    """Whether a set of CPUs is more than one core."""
    return sum(any(cpu.id in cpus for cpu in core) for core in cores) > 1


def _by(facts: Facts, key: Callable[[Cpu], tuple[int | None, ...]]) -> list[tuple[tuple[int, ...], frozenset[int]]]:
    """CPUs by a number, or several, that each of them has, in order of the numbers; those without are left out."""
    members: dict[tuple[int, ...], set[int]] = {}
    for cpu in facts.cpus:
        numbers = tuple(number for number in key(cpu) if number is not None)
        if len(numbers) == len(key(cpu)):
            members.setdefault(numbers, set()).add(cpu.id)
    return [(numbers, frozenset(cpus)) for numbers, cpus in sorted(members.items())]


# -- boxes ------------------------------------------------------------------------------------------------------------


@dataclass
class _Box:
    """Something with a size that can be drawn at a place.  A box with children draws a frame, lines of text, bars,
    the children in a grid and chips below them."""

    width: float
    height: float
    kind: str = ""
    lines: Sequence[str] = ()
    bars: Sequence[tuple[str, str]] = ()
    rows: Sequence[Sequence[_Box]] = ()
    chips: Sequence[Sequence[tuple[float, str, str, str]]] = ()
    markup: Sequence[str] = ()

    def draw(self, x: float, y: float) -> list[str]:
        if self.markup:
            return [f'<g transform="translate({_n(x)} {_n(y)})">', *self.markup, "</g>"]
        parts = []
        if self.kind:
            parts.append(_rect(x, y, self.width, self.height, f"mp-box {self.kind}", radius=6))
        inner = self.width - 2 * PAD if self.kind else self.width
        left = x + PAD if self.kind else x
        cursor = y + (PAD if self.kind else 0)
        for index, line in enumerate(self.lines):
            parts.append(_text(left, cursor + 11, _fit(line, inner, 12 if index == 0 else 11), _line_class(line)))
            cursor += 15
        for style, words in self.bars:
            parts.append(_rect(left, cursor, inner, SHARED_BAR - 3, f"mp-bar {style}", radius=2))
            parts.append(_text(left + 4, cursor + 9.5, _fit(words, inner - 6, 9), "mp-small"))
            cursor += SHARED_BAR
        if self.lines or self.bars:
            cursor += 3
        widest = max((_row_width(row) for row in self.rows), default=0.0)
        for row in self.rows:
            across = left + (inner - widest) / 2 if self.kind else left
            tallest = max(box.height for box in row)
            for box in row:
                if not box.markup:
                    box.height = tallest  # a row of frames ends on one line
                parts += box.draw(across, cursor)
                across += box.width + GAP
            cursor += tallest + GAP
        for chips in self.chips:
            across = left
            for width, style, words, tip in chips:
                parts.append(f"<g><title>{escape(tip)}</title>")
                parts.append(_rect(across, cursor, width, CHIP_H, f"mp-chip {style}", radius=8))
                parts.append(_text(across + 8, cursor + 12, _fit(words, width - 12, 10), "mp-chiptext"))
                parts.append("</g>")
                across += width + 5
            cursor += CHIP_H + 4
        return parts


def _line_class(line: str) -> str:
    return "mp-strong" if line.startswith("Package") else "mp-words"


class _Drawing:
    """One picture being made."""

    def __init__(self, facts: Facts, roles: Mapping[int, str] | None, notes: Mapping[int, str]) -> None:
        self._facts = facts
        self._notes = notes
        self._cores = _cores(facts)
        self.roles = {cpu.id: self._role(cpu, roles) for cpu in facts.cpus}
        self._kinds = len({cpu.kind for cpu in facts.cpus if cpu.online}) > 1
        self._tree = _tree(facts, self._cores)
        self._private = _private_caches(facts, self._tree)

    def _role(self, cpu: Cpu, roles: Mapping[int, str] | None) -> str:
        if not cpu.online:
            return "offline"
        if roles is not None:
            return roles.get(cpu.id, "")
        return "isolated" if cpu.id in self._facts.isolated | self._facts.nohz_full else ""

    # -- cores

    def _core(self, core: tuple[Cpu, ...]) -> _Box:
        """Threads side by side, four to a square; the caches of the core as thin bars below."""
        columns = len(core) if len(core) <= 2 else math.ceil(len(core) / 2)
        rows = math.ceil(len(core) / columns)
        width = columns * THREAD_W + 6.0
        caches = self._private.get(frozenset(cpu.id for cpu in core if cpu.online), [])
        caption = _short_kind(core[0].kind) if self._kinds and core[0].online else ""
        height = rows * THREAD_H + 6.0 + (len(caches) * (BAR + 1) + 1 if caches else 0) + (11 if caption else 0)
        parts = [_rect(0, 0, width, height, "mp-core", radius=4)]
        for index, cpu in enumerate(core):
            x, y = 3 + index % columns * THREAD_W, 3 + index // columns * THREAD_H
            parts += self._thread(cpu, x + 0.5, y + 0.5)
        cursor = rows * THREAD_H + 5.0
        for style, words in caches:
            parts.append(f"<g><title>{escape(words)}</title>")
            parts.append(_rect(4, cursor, width - 8, BAR, f"mp-bar {style}", radius=1) + "</g>")
            cursor += BAR + 1
        if caption:
            words = _fit(caption, width - 4, 9)
            parts.append(_text(width / 2, height - 3, words, "mp-small", anchor="middle"))
        return _Box(width, height, markup=parts)

    def _thread(self, cpu: Cpu, x: float, y: float) -> list[str]:
        name = self.roles[cpu.id]
        role = ROLES.get(name, _NO_ROLE)
        words = role.name or name
        tip = ", ".join(
            part
            for part in (
                f"CPU {cpu.id}",
                f"core {cpu.core}" if cpu.core is not None else "",
                f"package {cpu.package}" if cpu.package is not None else "",
                f"node {cpu.node}" if cpu.node is not None else "",
                cpu.kind or "",
                words,
                self._notes.get(cpu.id, ""),
            )
            if part
        )
        w, h = THREAD_W - 1, THREAD_H - 1
        parts = [f"<g><title>{escape(tip)}</title>", _rect(x, y, w, h, f"mp-cpu mp-{role.fill}", radius=3)]
        if name == "idle":
            parts.append(f'<rect x="{_n(x)}" y="{_n(y)}" width="{w}" height="{h}" rx="3" fill="%HATCH%"/>')
        centre = x + w / 2
        mark = role.letter or name[:1].upper()
        if mark:
            parts.append(_text(centre, y + 13.5, str(cpu.id), f"mp-num mp-on-{role.fill}", anchor="middle"))
            parts.append(_text(centre, y + 25, mark, f"mp-letter mp-on-{role.fill}", anchor="middle"))
        else:
            parts.append(_text(centre, y + 19, str(cpu.id), f"mp-num mp-on-{role.fill}", anchor="middle"))
        parts.append("</g>")
        return parts

    # -- boxes around them

    def machine(self) -> _Box:
        rows, width = self._inside(self._tree, WIDTH)
        memory_only = [self._memory_only(node) for node in self._facts.nodes if not node.cpus]
        rows += [memory_only[start : start + 5] for start in range(0, len(memory_only), 5)]
        width = max([width, *map(_row_width, rows)])
        chips = self._chips(None, max(width, 420), labelled=True)
        height = sum(max(box.height for box in row) + GAP for row in rows)
        height += len(chips) * (CHIP_H + 4)
        return _Box(max(width, _chips_width(chips)), height, rows=rows, chips=chips)

    def _memory_only(self, node: Node) -> _Box:
        """A NUMA node without CPUs: a memory expander, or the memory of an accelerator."""
        lines = [*_wrap_title(_node_title(self._facts, node), 180), "memory only, no CPUs"]
        chips = self._chips(node.id, 180)
        return _Box(198, 2 * PAD + 15 * len(lines) + len(chips) * (CHIP_H + 4), "mp-node", lines, chips=chips)

    def _group(self, group: _Group, budget: float) -> _Box:
        inner = budget - 2 * PAD
        rows, width = self._inside(group, inner)
        titles = [part for line in group.titles for part in _wrap_title(line, inner)]
        needed = max((len(line) * CHARACTER * 11.5 for line in titles), default=0.0)
        width = max(width, min(needed, inner, 190.0))
        chips = [line for node in group.nodes for line in self._chips(node, max(width, min(inner, 240)))]
        width = max(width, _chips_width(chips))
        kind = "mp-package" if group.titles and group.titles[0].startswith("Package") else "mp-node"
        if not group.titles:
            kind = "mp-cache"
        head = 15 * len(titles) + SHARED_BAR * len(group.bars)
        height = 2.0 * PAD + head + (3 if head else 0)
        height += sum(max(box.height for box in row) + GAP for row in rows) - (0 if chips else GAP if rows else 0)
        height += len(chips) * (CHIP_H + 4)
        return _Box(width + 2 * PAD, height, kind, titles, group.bars, rows, chips)

    def _inside(self, group: _Group, budget: float) -> tuple[list[list[_Box]], float]:
        """The children of a group in a grid that is as low as the width allows, and the cores that no child has."""
        boxes = min(self._grids(group.children, budget), key=_cost) if group.children else []
        cores = [self._core(core) for core in group.cores]
        grid: list[list[_Box]] = []
        if cores:
            most = max(1, int((budget + GAP) // (max(box.width for box in cores) + GAP)))
            lines = math.ceil(len(cores) / most)
            columns = math.ceil(len(cores) / lines)
            grid = [cores[start : start + columns] for start in range(0, len(cores), columns)]
        cores_first = boxes and grid and group.cores[0][0].id < min(group.children[0].cpus)
        rows = grid + boxes if cores_first else boxes + grid
        return rows, max((_row_width(row) for row in rows), default=0.0)

    def _grids(self, children: list[_Group], budget: float) -> Iterator[list[list[_Box]]]:
        for columns in range(1, min(len(children), 8) + 1):
            share = (budget - GAP * (columns - 1)) / columns
            if columns > 1 and share < 70:
                return
            boxes = [self._group(child, share) for child in children]
            grid = [boxes[start : start + columns] for start in range(0, len(boxes), columns)]
            for column in range(columns):  # one width for each column
                widest = max(row[column].width for row in grid if column < len(row))
                for row in grid:
                    if column < len(row):
                        row[column].width = widest
            if columns == 1 or all(_row_width(row) <= budget + 0.5 for row in grid):
                yield grid

    # -- devices

    def _chips(self, node: int | None, width: float, labelled: bool = False) -> list[list[tuple[float, str, str, str]]]:
        """Devices of a node, NICs first; None: those whose node firmware does not tell."""
        known = {entry.id for entry in self._facts.nodes}
        devices = [
            *(_nic(nic) for nic in self._facts.nics if nic.pci and _home(nic, known) == node),
            *(_block(block) for block in self._facts.blocks if _home(block, known) == node),
        ]
        if len(devices) > MOST_CHIPS:
            rest = len(devices) - MOST_CHIPS
            names = ", ".join(words for _, words, _ in devices[MOST_CHIPS:])
            devices = [*devices[:MOST_CHIPS], ("mp-more", f"{rest} more", names)]
        if labelled and devices:
            devices.insert(0, ("mp-more", "node not known:", "firmware gives no NUMA node for these"))
        lines: list[list[tuple[float, str, str, str]]] = []
        used = width + 1
        for style, words, tip in devices:
            wide = min(len(words) * CHARACTER * 10.5 + 16, max(width, 60.0))
            if used + wide > width:
                lines.append([])
                used = 0.0
            lines[-1].append((wide, style, words, tip))
            used += wide + 5
        return lines

    # -- legend

    def legend(self, width: float) -> _Box:
        items: list[tuple[float, list[str]]] = []
        present = [*ROLES, *sorted({role for role in self.roles.values() if role and role not in ROLES})]
        for name in present:
            cpus = [cpu for cpu, role in self.roles.items() if role == name]
            if not cpus:
                continue
            role = ROLES.get(name, Role(name, name[:1].upper(), "none"))
            words = f"{role.name}: {_fit(format_cpus(cpus), 330, 10)} ({len(cpus)})"
            parts = [_rect(0.5, 0.5, 22, 17, f"mp-cpu mp-{role.fill}", radius=3)]
            if name == "idle":
                parts.append('<rect x="0.5" y="0.5" width="22" height="17" rx="3" fill="%HATCH%"/>')
            parts.append(_text(11.5, 12.5, role.letter, f"mp-letter mp-on-{role.fill}", anchor="middle"))
            parts.append(_text(28, 12.5, words, "mp-key"))
            items.append((28 + len(words) * CHARACTER * 10 + 18, parts))
        for style, words in _cache_legend(self._facts, self._private):
            parts = [_rect(0.5, 7, 22, BAR, f"mp-bar {style}", radius=1), _text(28, 12.5, words, "mp-key")]
            items.append((28 + len(words) * CHARACTER * 10 + 18, parts))
        markup: list[str] = []
        x, y = 0.0, 0.0
        for wide, parts in items:
            if x and x + wide > width:
                x, y = 0.0, y + 22
            markup += [f'<g transform="translate({_n(x)} {_n(y)})">', *parts, "</g>"]
            x += wide
        return _Box(width, y + 20.0 if items else 0, markup=markup or ["<g/>"])


def _row_width(row: Sequence[_Box]) -> float:
    return sum(box.width + GAP for box in row) - GAP


def _cost(grid: list[list[_Box]]) -> tuple[float, float]:
    """Low first, then narrow."""
    return sum(max(box.height for box in row) + GAP for row in grid), max(_row_width(row) for row in grid)


def _chips_width(chips: Sequence[Sequence[tuple[float, str, str, str]]]) -> float:
    return max((sum(chip[0] + 5 for chip in line) - 5 for line in chips), default=0.0)


def _home(device: Nic | BlockDevice, known: set[int]) -> int | None:
    """On a machine with one node every device is at it, whether or not firmware says so."""
    if device.node in known:
        return device.node
    return next(iter(known)) if len(known) == 1 else None


def _nic(nic: Nic) -> tuple[str, str, str]:
    words = f"{nic.name} · {nic.driver}" if nic.driver else nic.name
    return "mp-nic", words, f"network interface {nic.name}, PCI {nic.pci}, driver {nic.driver}, {nic.operstate}"


def _block(block: BlockDevice) -> tuple[str, str, str]:
    kind = "NVMe disk" if block.name.startswith("nvme") else "disk"
    size = f" · {_size(block.size_bytes, decimal=True)}" if block.size_bytes else ""
    return "mp-disk", block.name + size, f"{kind} {block.name}, PCI {block.pci}, driver {block.driver}"


def _private_caches(facts: Facts, tree: _Group) -> dict[frozenset[int], list[tuple[str, str]]]:
    """Caches that one core has for itself, from L1 outwards: CPUs of the core -> (class, words).

    Without the last level of a package that has one core left: that one is drawn as the package's.
    """
    found: dict[frozenset[int], list[tuple[str, str]]] = {}
    cores = {frozenset(cpu.siblings) or frozenset({cpu.id}) for cpu in facts.cpus}
    boxes = {group.cpus for group in _all_groups(tree) if group.bars}
    for cache in facts.caches:
        if cache.cpus in cores and not (cache.level > 2 and cache.cpus in boxes):
            letter = {"data": "d", "instruction": "i", "unified": ""}[cache.type]
            size = f" {_size(cache.size_bytes)}" if cache.size_bytes else ""
            words = f"L{cache.level}{letter}{size}"
            found.setdefault(cache.cpus, []).append((f"mp-l{min(cache.level, 3)}", words))
    return found


def _all_groups(group: _Group) -> Iterator[_Group]:
    yield group
    for child in group.children:
        yield from _all_groups(child)


def _cache_legend(facts: Facts, private: Mapping[frozenset[int], list[tuple[str, str]]]) -> list[tuple[str, str]]:
    """One entry a level: what a core has for itself; on a hybrid machine by kind of core."""
    kind_of = {cpu.id: _short_kind(cpu.kind) for cpu in facts.cpus}
    hybrid = len(set(kind_of.values())) > 1
    seen: dict[str, dict[str, dict[str, None]]] = {}
    for core, caches in private.items():
        for style, words in caches:
            seen.setdefault(style, {}).setdefault(kind_of[min(core)], {})[words] = None
    entries = []
    for style, kinds in sorted(seen.items()):
        words = "; ".join((f"{kind}: " if hybrid else "") + ", ".join(caches) for kind, caches in kinds.items())
        entries.append((style, words + " of each core"))
    return entries


def _short_kind(kind: str | None) -> str:
    return {"performance": "P", "efficiency": "E", "low-power": "LP"}.get(kind or "", (kind or "").rpartition("-")[2])


# -- words ------------------------------------------------------------------------------------------------------------


def _heading(facts: Facts) -> str:
    identity = facts.identity
    product, vendor = identity.product or "", identity.system_vendor or ""
    what = product if product.lower().startswith(vendor.lower()) else f"{vendor} {product}"
    models = sorted({cpu.model for cpu in facts.cpus if cpu.model})
    said = [
        ": ".join(" ".join(part.split()) for part in (identity.hostname or "", what) if part.strip()),
        *(" ".join(re.sub(r"\((R|TM)\)", "", model).split()) for model in models[:1]),
        f"{len(facts.online)} CPUs",
        _size(facts.memory_bytes) if facts.memory_bytes else "",
    ]
    return " · ".join(part for part in said if part)


def _node_title(facts: Facts, node: Node) -> str:
    """A tree that tells of no memory at all is no machine without memory."""
    return f"NUMA node {node.id} · {_size(node.memory_bytes)}" if facts.memory_bytes else f"NUMA node {node.id}"


def _wrap_title(line: str, width: float) -> list[str]:
    return [line] if len(line) * CHARACTER * 11.5 <= width else line.split(" · ")


def _wrap_heading(text: str, width: float) -> list[str]:
    most = max(20, int(width / (0.64 * 14)))
    lines = [""]
    for word in text.split(" "):
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines


def _description(facts: Facts, drawing: _Drawing) -> str:
    """What the picture shows, for those who cannot see it."""
    packages = {cpu.package for cpu in facts.cpus if cpu.package is not None}
    cores = {cpu.siblings for cpu in facts.cpus if cpu.online}
    said = [
        f"{len(packages)} packages, {len(facts.nodes)} NUMA nodes, {len(cores)} cores, "
        f"{len(facts.online)} CPUs online of {len(facts.cpus)}."
    ]
    for node in facts.nodes:
        said.append(f"Node {node.id}: CPUs {format_cpus(node.cpus) or 'none'}, {_size(node.memory_bytes)}.")
    pairs = sorted((role, cpu) for cpu, role in drawing.roles.items() if role)
    for role, members in groupby(pairs, key=lambda pair: pair[0]):
        name = ROLES[role].name if role in ROLES else role
        said.append(f"{name}: CPUs {format_cpus(cpu for _, cpu in members)}.")
    return " ".join(said)


def _size(value: int | None, *, decimal: bool = False) -> str:
    """Bytes for people: ``1.5 MiB``; disks are sold in powers of ten."""
    if not value:
        return "" if value is None else "no memory"
    base = 1000 if decimal else 1024
    units = ("B", "kB", "MB", "GB", "TB", "PB") if decimal else ("B", "KiB", "MiB", "GiB", "TiB", "PiB")
    power = 0
    amount = float(value)
    while amount >= base and power < len(units) - 1:
        amount /= base
        power += 1
    digits = 0 if amount >= 100 else 1 if amount >= 10 else 2
    shown = f"{amount:.{digits}f}"
    return f"{shown.rstrip('0').rstrip('.') if digits else shown} {units[power]}"


def _fit(text: str, width: float, size: float) -> str:
    most = int(width / (CHARACTER * size))
    return text if len(text) <= most else text[: max(most - 1, 1)] + "…"


# -- markup -----------------------------------------------------------------------------------------------------------


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _rect(x: float, y: float, width: float, height: float, style: str, *, radius: float = 0) -> str:
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" rx="{_n(radius)}" class="{style}"/>'
    )


def _text(x: float, y: float, words: str, style: str, *, anchor: str = "") -> str:
    where = f' text-anchor="{anchor}"' if anchor else ""
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{style}"{where}>{escape(words)}</text>'


def _join(lines: Iterable[str]) -> str:
    return "".join(line.strip() for line in lines)


#: All names begin with mp-, so that the picture can stand inside a page without touching it.  Fills of CPUs are light
#: in both modes and carry dark text; only paper, frames and words change with the mode.
_STYLE = _join(
    """
    .mp{--mp-ink:#1c2330;--mp-soft:#5b6575;--mp-paper:#fff;--mp-pack:#f4f6f9;--mp-node:#fff;--mp-edge:#aeb7c4;--mp-core:#e6eaf0;
    font-family:system-ui,-apple-system,"Segoe UI","DejaVu Sans",sans-serif}
    @media (prefers-color-scheme:dark){.mp{--mp-ink:#e8ecf2;--mp-soft:#a3adbd;--mp-paper:#12161d;--mp-pack:#1a2029;
    --mp-node:#202732;--mp-edge:#495465;--mp-core:#2d3644}}
    .mp text{fill:var(--mp-ink)}
    .mp .mp-title{font-size:14px;font-weight:600}
    .mp .mp-strong{font-size:12px;font-weight:600}
    .mp .mp-words{font-size:11px}
    .mp .mp-small{font-size:9px}
    .mp .mp-key,.mp .mp-chiptext{font-size:10px}
    .mp .mp-num{font-size:12px;font-weight:600;font-variant-numeric:tabular-nums}
    .mp .mp-letter{font-size:9.5px;font-weight:700}
    .mp .mp-box{stroke:var(--mp-edge);stroke-width:1}
    .mp .mp-package{fill:var(--mp-pack);stroke-width:1.6}
    .mp .mp-node{fill:var(--mp-node)}
    .mp .mp-cache{fill:none;stroke-dasharray:3 2}
    .mp .mp-core{fill:var(--mp-core)}
    .mp .mp-cpu{stroke:#1c2330;stroke-opacity:.35;stroke-width:1}
    .mp .mp-line{fill:#1c2330;fill-opacity:.17}
    .mp .mp-none{fill:#fbfcfd}.mp .mp-hk{fill:#9cc3f0}.mp .mp-sh{fill:#b5dfb2}.mp .mp-rt{fill:#f7a35c}
    .mp .mp-id{fill:#f3e3d3}.mp .mp-dp{fill:#d5b3ec}.mp .mp-is{fill:#f5d76e}
    .mp .mp-off{fill:none;stroke:var(--mp-soft);stroke-opacity:1;stroke-dasharray:3 2}
    .mp .mp-on-none,.mp .mp-on-hk,.mp .mp-on-sh,.mp .mp-on-rt,.mp .mp-on-id,.mp .mp-on-dp,.mp .mp-on-is{fill:#161b24}
    .mp .mp-on-off{fill:var(--mp-soft)}
    .mp .mp-bar{stroke:none}
    .mp .mp-l1{fill:#7fb8ad}.mp .mp-l2{fill:#7aaede;fill-opacity:.8}.mp .mp-l3{fill:#b9a5d6;fill-opacity:.6}
    .mp .mp-chip{stroke:var(--mp-edge);fill:var(--mp-paper)}
    .mp .mp-nic{stroke:#2f7d6d;stroke-width:1.4}.mp .mp-disk{stroke:#8a6d1f;stroke-width:1.4}
    .mp .mp-more{stroke:none;fill:none}
    """.splitlines()
)
