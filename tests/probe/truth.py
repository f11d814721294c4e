"""What lstopo and lscpu print for the recorded machines, read without any of our own code: the truth of the tests.

``.console`` is lstopo's indented tree, ``.xml`` its XML export, ``.expected`` the output of lscpu and of lscpu -p.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

MACHINES = Path(os.environ.get("EVENKEEL_MACHINES") or Path(__file__).parents[3] / "shared" / "machines")

Cpus = frozenset[int]


@dataclass
class Object:
    """One object of a topology.  ``cpus`` of a NUMA node or device are those of the object that it hangs on."""

    type: str
    index: int | None = None
    attributes: dict[str, str] = field(default_factory=dict)
    cpus: Cpus = frozenset()
    parent: Object | None = None
    children: list[Object] = field(default_factory=list)

    def walk(self) -> Iterator[Object]:
        yield self
        for child in self.children:
            yield from child.walk()

    def all(self, *types: str) -> list[Object]:
        return [one for one in self.walk() if one.type in types]

    def above(self, type: str) -> Object | None:
        """The nearest object of this type upwards, itself included."""
        one: Object | None = self
        while one is not None and one.type != type:
            one = one.parent
        return one


@dataclass
class Topology:
    machine: Object
    #: CPU sets of the kinds of core; empty for a uniform machine.
    kinds: list[Cpus] = field(default_factory=list)
    #: Rows of the matrix, in order of the nodes' numbers; empty when none is printed.
    distances: list[list[int]] = field(default_factory=list)


# -- lstopo's console -------------------------------------------------------------------------------------------------

_LINE = re.compile(r"(?P<indent> *)(?P<type>\w+)(?: L#\d+)?(?: \((?P<rest>.*)\))?$")
_ATTRIBUTE = re.compile(r'(\w+)=("(?:[^"\\]|\\.)*"|\S*)')
_MEMORY_CHILDREN = {"NUMANode"}


def read_console(path: Path) -> Topology:
    lines = path.read_bytes().decode().split("\n")  # a carriage return in a BIOS version ends no line
    machine: Object | None = None
    stack: list[tuple[int, Object]] = []
    topology: Topology | None = None
    for line in lines:
        if line.startswith("depth "):
            break
        match = _LINE.match(line)
        assert match, line
        rest = match["rest"] or ""
        number = re.match(r"P#(\d+)", rest)
        attributes = {key: value.strip('"') for key, value in _ATTRIBUTE.findall(rest)}
        one = Object(match["type"], int(number[1]) if number else None, attributes)
        depth = len(match["indent"])
        while stack and stack[-1][0] >= depth:
            stack.pop()
        if stack:
            one.parent = stack[-1][1]
            one.parent.children.append(one)
        else:
            machine = one
        stack.append((depth, one))
    assert machine is not None
    _fill(machine)
    topology = Topology(machine)
    for line in lines:
        if match := re.match(r"CPU kind #\d+ (?:efficiency \d+ )?cpuset (\S+)", line):
            topology.kinds.append(read_mask(match[1]))
    rows = [line.split() for line in lines[_start_of_matrix(lines) :]]
    for row in rows:
        if not row or not all(word.isdigit() for word in row):
            break
        topology.distances.append([int(word) for word in row[1:]])
    return topology


def _start_of_matrix(lines: list[str]) -> int:
    """The line after ``index 0 1 2 ...`` of the matrix of the operating system."""
    for number, line in enumerate(lines):
        if line.startswith("Relative latency matrix (name NUMALatency"):
            return number + 2
    return len(lines)


def _fill(one: Object) -> Cpus:
    """CPU sets from the PUs upwards; memory takes the set of what it hangs on."""
    if one.type == "PU":
        assert one.index is not None
        one.cpus = frozenset({one.index})
    for child in one.children:
        if child.type not in _MEMORY_CHILDREN:
            one.cpus |= _fill(child)
    for child in one.children:
        if child.type in _MEMORY_CHILDREN:
            child.cpus = one.cpus
    return one.cpus


# -- lstopo's XML -----------------------------------------------------------------------------------------------------


def read_xml(path: Path) -> Topology:
    document = ElementTree.parse(path).getroot()
    top = document.find("object")
    assert top is not None
    topology = Topology(_read_object(top, None))
    topology.kinds = [read_mask(kind.attrib["cpuset"]) for kind in document.findall("cpukind")]
    matrix = document.find("distances2[@type='NUMANode']")
    if matrix is not None:
        size = int(matrix.attrib["nbobjs"])
        values = [int(word) for part in matrix.findall("u64values") for word in (part.text or "").split()]
        topology.distances = [values[row * size : (row + 1) * size] for row in range(size)]
    return topology


def _read_object(element: ElementTree.Element, parent: Object | None) -> Object:
    attributes = dict(element.attrib)
    attributes.update({info.attrib["name"]: info.attrib["value"] for info in element.findall("info")})
    index = attributes.get("os_index")
    one = Object(attributes["type"], int(index) if index is not None else None, attributes, parent=parent)
    one.cpus = read_mask(attributes["cpuset"]) if "cpuset" in attributes else parent.cpus if parent else frozenset()
    one.children = [_read_object(child, one) for child in element.findall("object")]
    return one


def read_mask(text: str) -> Cpus:
    """``0x000000ff,0xffffffff`` (32 bits a group), an empty group is 0."""
    value = 0
    for group in text.split(","):
        value = value << 32 | int(group or "0", 16)
    return frozenset(bit for bit in range(value.bit_length()) if value >> bit & 1)


# -- lscpu ------------------------------------------------------------------------------------------------------------


@dataclass
class Lscpu:
    """``summary``: key -> values in order (hybrid machines repeat keys); ``logical``, ``physical``: lscpu -p."""

    summary: dict[str, list[str]]
    logical: list[dict[str, str]]
    physical: list[dict[str, str]]


def read_lscpu(path: Path) -> Lscpu:
    summary: dict[str, list[str]] = {}
    tables: list[list[dict[str, str]]] = []
    columns: list[str] = []
    for line in path.read_text().splitlines():
        if line.startswith("# CPU,"):
            columns = line[2:].split(",")
            tables.append([])
        elif line.startswith("#") or not line.strip():
            continue
        elif columns:
            tables[-1].append({key: value for key, value in zip(columns, line.split(","), strict=True) if key})
        else:
            key, _, value = line.partition(":")
            summary.setdefault(key.strip(), []).append(value.strip())
    logical, physical = tables
    return Lscpu(summary, logical, physical)


def groups_of(rows: list[dict[str, str]], *columns: str) -> set[Cpus]:
    """CPUs that have the same values in these columns, as sets."""
    members: dict[tuple[str, ...], set[int]] = {}
    for row in rows:
        members.setdefault(tuple(row[column] for column in columns), set()).add(int(row["CPU"]))
    return {frozenset(cpus) for cpus in members.values()}


# -- which there are --------------------------------------------------------------------------------------------------


@cache
def tarballs(*suffixes: str) -> tuple[Path, ...]:
    """Recorded machines, only those whose truth has one of these suffixes if any; empty where the folder is absent."""
    if not MACHINES.is_dir():
        return ()
    found = sorted(MACHINES.glob("*.tar.*"))
    return tuple(path for path in found if not suffixes or truth_of(path).suffix in suffixes)


def name_of(tarball: Path) -> str:
    return tarball.name.split(".tar.")[0]


def truth_of(tarball: Path) -> Path:
    """The file with what a tool prints for this machine."""
    for suffix in (".console", ".xml", ".expected"):
        path = tarball.with_name(name_of(tarball) + suffix)
        if path.is_file():
            return path
    raise AssertionError(f"no output of lstopo or lscpu beside {tarball.name}")
