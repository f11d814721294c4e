"""The picture of a machine: every CPU once and in its box, nothing outside, nothing unreadable, the same bytes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evenkeel.documents.facts import BlockDevice, Cache, Cpu, Facts, Identity, Kernel, Nic, Node
from evenkeel.report.picture import ROLES, machine_svg

SVG = "{http://www.w3.org/2000/svg}"


@dataclass(frozen=True)
class Shape:
    """A rectangle or a text, in the coordinates of the whole picture."""

    tag: str
    style: str
    x: float
    y: float
    width: float
    height: float
    words: str = ""

    def holds(self, other: Shape) -> bool:
        return (
            self.x - 0.6 <= other.x
            and self.y - 0.6 <= other.y
            and other.x + other.width <= self.x + self.width + 0.6
            and other.y + other.height <= self.y + self.height + 0.6
        )

    def overlaps(self, other: Shape) -> bool:
        return (
            self.x + 0.6 < other.x + other.width
            and other.x + 0.6 < self.x + self.width
            and self.y + 0.6 < other.y + other.height
            and other.y + 0.6 < self.y + self.height
        )


def shapes(svg: str) -> list[Shape]:
    return list(_walk(ElementTree.fromstring(svg), 0, 0))


def _walk(element: ElementTree.Element, x: float, y: float) -> Iterator[Shape]:
    if match := re.fullmatch(r"translate\((\S+) (\S+)\)", element.get("transform", "")):
        x, y = x + float(match[1]), y + float(match[2])
    tag = element.tag.removeprefix(SVG)
    if tag == "defs":
        return
    if tag in ("rect", "text"):
        number = {key: float(element.get(key, 0)) for key in ("x", "y", "width", "height")}
        style = element.get("class", "")
        yield Shape(tag, style, x + number["x"], y + number["y"], number["width"], number["height"], element.text or "")
    for child in element:
        yield from _walk(child, x, y)


def cells(svg: str) -> list[Shape]:
    return [shape for shape in shapes(svg) if shape.style.startswith("mp-cpu") and shape.width > 25]


def numbers(svg: str) -> list[int]:
    return [int(shape.words) for shape in shapes(svg) if shape.style.startswith("mp-num")]


def server(
    packages: int = 2,
    nodes: int = 2,
    cores: int = 4,
    threads: int = 2,
    *,
    offline: frozenset[int] = frozenset(),
    l3_of: int = 4,
    **more: object,
) -> Facts:
    """``nodes`` in all packages together, ``cores`` in each node; siblings are half the machine apart."""
    total = nodes * cores
    cpus, caches, members = [], [], []
    for core in range(total):
        siblings = frozenset(core + thread * total for thread in range(threads)) - offline
        for thread in range(threads):
            number = core + thread * total
            if number in offline:
                cpus.append(Cpu(id=number, online=False))
                continue
            package = core * packages // total
            cpus.append(Cpu(id=number, package=package, node=core // cores, core=core, siblings=siblings))
        if siblings:
            caches.append(Cache(level=1, type="data", size_bytes=32768, cpus=siblings))
            caches.append(Cache(level=2, type="unified", size_bytes=1 << 20, cpus=siblings))
    for node in range(nodes):
        members.append(frozenset(cpu.id for cpu in cpus if cpu.node == node))
    for start in range(0, total, l3_of):
        block = range(start, min(start + l3_of, total))
        shared = frozenset(core + thread * total for core in block for thread in range(threads)) - offline
        if shared:
            caches.append(Cache(level=3, type="unified", size_bytes=32 << 20, cpus=shared))
    parts: dict[str, object] = {
        "identity": Identity(hostname="h", architecture="x86_64"),
        "kernel": Kernel(release="6.12"),
        "cpus": tuple(sorted(cpus, key=lambda cpu: cpu.id)),
        "caches": tuple(caches),
        "nodes": tuple(Node(id=node, cpus=cpus, memory_bytes=64 << 30) for node, cpus in enumerate(members)),
        "memory_bytes": nodes * 64 << 30,
    }
    return Facts.model_validate(parts | more)


MACHINES = st.builds(
    lambda packages, nodes, cores, threads, l3, off: server(
        packages,
        packages * nodes,
        cores,
        threads,
        l3_of=l3,
        offline=frozenset(cpu for cpu in off if cpu < packages * nodes * cores * threads),
    ),
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 9),
    st.sampled_from([1, 2, 4, 8]),
    st.integers(1, 8),
    st.sets(st.integers(1, 40), max_size=6),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(MACHINES, st.data())
def test_every_cpu_is_drawn_once_inside_and_over_nothing_else(facts: Facts, data: st.DataObject) -> None:
    roles = {cpu.id: data.draw(st.sampled_from(sorted(ROLES))) for cpu in facts.cpus if cpu.id % 3 == 0}
    svg = machine_svg(facts, roles or None)
    drawn = cells(svg)
    assert sorted(numbers(svg)) == [cpu.id for cpu in facts.cpus]
    assert len(drawn) == len(facts.cpus)
    page = ElementTree.fromstring(svg)
    width, height = float(page.get("width", 0)), float(page.get("height", 0))
    assert width <= 1100
    paper = Shape("rect", "", 0, 0, width, height)
    for shape in shapes(svg):
        assert paper.holds(shape), shape
    drawn.sort(key=lambda shape: (shape.y, shape.x))
    for one, next_ in pairwise(drawn):
        assert not one.overlaps(next_)
    frames = [shape for shape in shapes(svg) if shape.style.startswith("mp-box")]
    for one in frames:  # boxes are apart or one inside the other
        for other in frames:
            assert one is other or not one.overlaps(other) or one.holds(other) or other.holds(one), (one, other)
    for cell in drawn:  # and so are CPUs and boxes
        for frame in frames:
            assert not frame.overlaps(cell) or frame.holds(cell)


@pytest.mark.parametrize("l3_of", [1, 3, 4, 6, 12])
def test_cpus_are_in_the_box_of_their_node(l3_of: int) -> None:
    """Whatever the caches are, also where one is shared across nodes (4: impossible, so the cache goes)."""
    facts = server(packages=2, nodes=4, cores=3, threads=2, l3_of=l3_of)
    found = shapes(machine_svg(facts))
    boxes = {}
    for index, shape in enumerate(found):
        match = re.match(r"NUMA node (\d+)", shape.words)
        if match:
            frame = max(
                (one for one in found[:index] if one.style.startswith("mp-box") and one.holds(shape)),
                key=found.index,
            )
            boxes[int(match[1])] = frame
    assert boxes.keys() == {0, 1, 2, 3}
    for shape in found:
        if shape.style.startswith("mp-num"):
            inside = [number for number, frame in boxes.items() if frame.holds(shape)]
            assert inside == [facts.cpu(int(shape.words)).node]


def test_same_bytes_and_no_reference_to_anywhere() -> None:
    facts = server()
    roles = {0: "housekeeping", 8: "idle"}
    svg = machine_svg(facts, roles)
    assert svg == machine_svg(facts, dict(reversed(roles.items())))
    assert re.findall(r"(?:href|src|url)\s*[=(]\s*[\"']?(?!#)[^)\"']*", svg) == []
    assert re.findall(r"https?://[^\"]*", svg) == ["http://www.w3.org/2000/svg"]


def test_no_text_is_too_small() -> None:
    svg = machine_svg(server(8, 8, 8, 4), {0: "housekeeping"})
    sizes = [float(size) for size in re.findall(r"font-size:([\d.]+)px", svg)]
    assert min(sizes) >= 9
    classes = {name for shape in shapes(svg) if shape.tag == "text" for name in shape.style.split()}
    sized = set(re.findall(r"\.(mp-\w+)[^{}]*\{[^}]*font-size", svg)) | {"mp-key"}
    assert all(name in sized or name.startswith("mp-on-") for name in classes)


@pytest.mark.parametrize("name", [name for name in ROLES if name != "offline"])
def test_a_role_is_told_without_colour(name: str) -> None:
    """A letter on the CPU, the word in the legend and for those who cannot see; a pattern for the empty ones."""
    role = ROLES[name]
    plain = machine_svg(server(), {})
    svg = machine_svg(server(), {3: name, 11: name})
    letters = [shape.words for shape in shapes(svg) if shape.style.startswith("mp-letter")]
    assert letters == [role.letter] * 3  # two CPUs and the legend
    assert f"{role.name}: 3,11 (2)" in svg
    described = ElementTree.fromstring(svg).findtext(f"{SVG}desc") or ""
    assert f"{role.name}: CPUs 3,11." in described
    assert svg.count('fill="url(#mp-h-') == (3 if name == "idle" else 0)
    assert not [shape for shape in shapes(plain) if shape.style.startswith("mp-letter")]


def test_letters_and_fills_differ() -> None:
    assert len({role.letter for role in ROLES.values()}) == len(ROLES)
    assert len({role.fill for role in ROLES.values()}) == len(ROLES)


def test_offline_cpus_are_marked_whatever_the_plan_says() -> None:
    svg = machine_svg(server(offline=frozenset({5})), {5: "realtime"})
    assert "real-time" not in svg
    assert "offline: 5 (1)" in svg


def test_without_a_plan_what_the_kernel_isolates_is_marked() -> None:
    svg = machine_svg(server(isolated="2-3", nohz_full="3-4"))
    assert "isolated, no plan known: 2-4 (3)" in svg
    assert "isolated, no plan" not in machine_svg(server(isolated="2-3"), {})


def test_a_role_of_another_kind_is_shown_by_its_name() -> None:
    svg = machine_svg(server(), {0: "storage <&>"})
    assert "storage &lt;&amp;&gt;: 0 (1)" in svg
    assert [shape.words for shape in shapes(svg) if shape.style.startswith("mp-letter")] == ["S", "S"]


def test_words_of_a_machine_are_escaped() -> None:
    evil = '<script>alert("&")</script>'
    facts = server(
        identity=Identity(hostname=evil, architecture="x", product=evil),
        nics=(Nic(name=evil, pci="0000:01:00.0", driver=evil, node=0, operstate=evil),),
        blocks=(BlockDevice(name=evil, pci=None, node=1, driver=evil),),
    )
    svg = machine_svg(facts, notes={0: evil})
    assert "<script" not in svg
    page = ElementTree.fromstring(svg)
    assert page.findtext(f"{SVG}title", "").startswith("<script>")
    tips = [title.text or "" for title in page.iter(f"{SVG}title")]
    assert any(tip.startswith("CPU 0,") and tip.endswith(evil) for tip in tips)


def test_devices_are_at_their_node() -> None:
    facts = server(
        nics=(
            Nic(name="eth0", pci="0000:01:00.0", driver="ice", node=1),
            Nic(name="eth1", pci="0000:02:00.0", driver="ice", node=None),
            Nic(name="br0"),
        ),
        blocks=(BlockDevice(name="nvme0n1", pci="0000:03:00.0", node=0, driver="nvme", size_bytes=2 * 10**12),),
    )
    found = shapes(machine_svg(facts))
    chips = {shape.words: shape for shape in found if shape.style == "mp-chiptext"}
    assert chips.keys() == {"eth0 · ice", "nvme0n1 · 2 TB", "eth1 · ice", "node not known:"}
    package = {
        shape.words: next(frame for frame in found if frame.style == "mp-box mp-package" and frame.holds(shape))
        for shape in found
        if shape.words.startswith("Package")
    }
    assert package["Package 1"].holds(chips["eth0 · ice"])
    assert package["Package 0"].holds(chips["nvme0n1 · 2 TB"])
    assert not any(frame.holds(chips["eth1 · ice"]) for frame in package.values())


def test_many_devices_are_counted() -> None:
    nics = tuple(Nic(name=f"eth{number}", pci=f"0000:01:{number:02x}.0", node=0) for number in range(20))
    found = [shape.words for shape in shapes(machine_svg(server(nics=nics))) if shape.style == "mp-chiptext"]
    assert len(found) == 13
    assert found[-1] == "8 more"


def test_memory_without_cpus_has_a_box() -> None:
    facts = server()
    expander = Node(id=7, cpus=frozenset(), memory_bytes=256 << 30)
    words = [shape.words for shape in shapes(machine_svg(facts.model_copy(update={"nodes": (*facts.nodes, expander)})))]
    assert "NUMA node 7 · 256 GiB" in words
    assert "memory only, no CPUs" in words


def test_sets_that_cut_across_each_other_still_show_every_cpu() -> None:
    """A node of half of each package can be no box beside packages; the CPUs are drawn all the same."""
    facts = server(packages=2, nodes=2, cores=4, threads=1, l3_of=8)
    crossing = tuple(Node(id=n, cpus=frozenset(range(n, 8, 2)), memory_bytes=1 << 30) for n in (0, 1))
    svg = machine_svg(facts.model_copy(update={"nodes": crossing}))
    assert sorted(numbers(svg)) == list(range(8))


def test_a_machine_of_which_nothing_is_known() -> None:
    facts = Facts(identity=Identity(architecture="unknown"), kernel=Kernel(release=""), cpus=())
    assert ElementTree.fromstring(machine_svg(facts)).tag == f"{SVG}svg"
    single = facts.model_copy(update={"cpus": (Cpu(id=0),)})
    assert numbers(machine_svg(single)) == [0]
