"""A flame graph as one HTML page: stacks of an Answer, merged to a tree, to be searched and zoomed into.

The tree travels compressed in the page and is drawn by ``flame.js``; without it the table of functions is still there.
A page of more stacks than fit in :data:`MOST_BYTES` leaves out the thinnest, and says so.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable

from evenkeel.documents.answer import Answer, Stack
from evenkeel.report.markup import Markup, el, join, text
from evenkeel.report.page import package_file, whole_page

#: Base64 of the compressed tree; the rest of a page is some 30 kB.
MOST_BYTES = 64_000
_TABLE_ROWS = 25


class Node:
    """A function at a place of the tree: samples in it and in what it called."""

    __slots__ = ("children", "count", "name")

    def __init__(self, name: str) -> None:
        self.name, self.count = name, 0
        self.children: dict[str, Node] = {}


def tree(stacks: Iterable[Stack]) -> Node:
    """All stacks as one tree below a root named "all"."""
    root = Node("all")
    for stack in stacks:
        node = root
        node.count += stack.count
        for frame in stack.frames:
            node = node.children.setdefault(frame, Node(frame))
            node.count += stack.count
    return root


def encode(root: Node, smallest: int) -> str:
    """The tree in preorder, without nodes of fewer than ``smallest`` samples, compressed, in base64.

    ``[names, [level, name, count, ...]]``: the level, then which name, then how many samples.
    """
    names: dict[str, int] = {}
    flat: list[int] = []
    waiting = [(root, 0)]
    while waiting:
        node, level = waiting.pop()
        flat += (level, names.setdefault(node.name, len(names)), node.count)
        children = sorted(node.children.values(), key=lambda child: child.name, reverse=True)
        waiting += [(child, level + 1) for child in children if child.count >= smallest]
    data = json.dumps([list(names), flat], separators=(",", ":"), ensure_ascii=False)
    return base64.b64encode(zlib.compress(data.encode("utf-8", "replace"), 9)).decode()


def fitting(root: Node) -> tuple[str, int]:
    """The encoded tree, and the smallest count that it shows: 1 when all of it fits."""
    data = encode(root, 1)
    if len(data) <= MOST_BYTES:
        return data, 1
    fits = 2
    while len(data := encode(root, fits)) > MOST_BYTES:
        fits *= 2
    low = fits // 2  # does not fit; between the two, to an eighth
    while fits - low > max(1, low // 8):
        middle = (low + fits) // 2
        tried = encode(root, middle)
        if len(tried) <= MOST_BYTES:
            data, fits = tried, middle
        else:
            low = middle
    return data, fits


def flame_page(answer: Answer, *, title: str = "Flame graph") -> str:
    """The page for the stacks of ``answer``."""
    root = tree(answer.stacks)
    data, smallest = fitting(root)
    facts = (
        ("host", answer.host),
        ("kernel", answer.conditions.kernel.split(" ")[0]),
        ("samples", f"{root.count:,} in {answer.seconds:.1f} s"),
        ("lost", f"{answer.lost:,}"),
        ("stacks", f"{len(answer.stacks):,}"),
    )
    notes = list(answer.notes)
    if answer.lost:
        notes.append(f"{answer.lost:,} samples were lost: shares may be a little off")
    if smallest > 1:
        notes.append(f"what has fewer than {smallest:,} samples is left out of the picture, to keep the page small")
    head = el(
        "header",
        el("div", el("b", "Evenkeel"), el("span", "; ".join(answer.mechanism)), class_="brand"),
        el("h1", title),
        el("ul", *(el("li", f"{name} ", el("b", value)) for name, value in facts), class_="facts"),
        el("div", *(el("p", note) for note in notes), class_="note") if notes else None,
    )
    main = el(
        "main",
        el("section", _picture(data), id="picture"),
        el("section", el("h2", "Functions"), _functions(answer.stacks, root.count), id="functions"),
        id="content",
    )
    return whole_page(
        f"{title}: {answer.host}",
        join(head, main),
        made_from="an Answer",
        script=package_file("flame.js"),
        style=package_file("flame.css"),
    )


def _picture(data: str) -> Markup:
    return join(
        el(
            "div",
            el("input", type="search", placeholder="Search functions", aria_label="Search functions", id="search"),
            el("button", "Zoom out", type="button", id="out"),
            el("output", id="found", aria_live="polite"),
            class_="tools",
            id="tools",
            hidden=True,
        ),
        el("div", id="flame", class_="flame", tabindex="0", role="tree", aria_label="Flame graph, the root at the top"),
        el("p", id="told", class_="told", aria_live="polite"),
        el(
            "p",
            "Wider is more time. A box lies below the function that called it. Click or Enter zooms in, Escape out; "
            "arrow keys move, / searches. Blue is the kernel.",
            class_="muted",
        ),
        el("script", text(data), type="application/octet-stream", id="data"),
        el("noscript", el("p", "The picture needs JavaScript; the table below does not.", class_="note")),
    )


def _functions(stacks: Iterable[Stack], total: int) -> Markup:
    """The functions with the most samples of their own."""
    own: dict[str, int] = {}
    within: dict[str, int] = {}
    for stack in stacks:
        own[stack.frames[-1]] = own.get(stack.frames[-1], 0) + stack.count
        for frame in set(stack.frames[1:]):
            within[frame] = within.get(frame, 0) + stack.count
    best = sorted(own.items(), key=lambda item: (-item[1], item[0]))[:_TABLE_ROWS]
    rows = (
        el(
            "tr",
            el("td", name),
            el("td", f"{100 * count / total:.1f} %", class_="num"),
            el("td", f"{100 * within.get(name, count) / total:.1f} %", class_="num"),
        )
        for name, count in best
    )
    head = el(
        "tr",
        el("th", "function", scope="col"),
        el("th", "itself", scope="col", class_="num"),
        el("th", "with what it called", scope="col", class_="num"),
    )
    return el("div", el("table", el("thead", head), el("tbody", *rows)), class_="scroll")
