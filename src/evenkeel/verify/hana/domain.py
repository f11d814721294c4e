"""A libvirt domain definition as elements that know their line.  Text in, elements out; nothing is judged here.

xml.etree does not keep lines, and a linter without lines is none.  A DOCTYPE is refused, so an entity that unfolds to
gigabytes cannot be declared.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from xml.parsers import expat

from evenkeel.errors import Where, WrongInput

#: libvirt: formatdomain, "memory": KB is 1000 and k or KiB is 1024; without a unit it is KiB.
_UNITS = {"b": 1, "bytes": 1} | {
    name: base**power
    for power, letter in enumerate("kmgt", 1)
    for name, base in ((letter, 1024), (f"{letter}ib", 1024), (f"{letter}b", 1000))
}
MAX_CHARACTERS = 4 << 20  # a definition of 710 vCPUs has some 100 KiB
MAX_DEPTH = 60


@dataclass
class Element:
    """One element: attributes, own text, children, and where it begins."""

    tag: str
    attributes: dict[str, str]
    where: Where
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def get(self, name: str, default: str = "") -> str:
        return self.attributes.get(name, default)

    def all(self, path: str) -> list[Element]:
        """Elements at a path such as ``devices/disk``."""
        found = [self]
        for tag in path.split("/"):
            found = [child for element in found for child in element.children if child.tag == tag]
        return found

    def first(self, path: str) -> Element | None:
        return next(iter(self.all(path)), None)

    def nearest(self, path: str) -> Element:
        """The first element at the path, or what would enclose it: where a missing one belongs."""
        found = self
        for tag in path.split("/"):
            inner = found.first(tag)
            if inner is None:
                break
            found = inner
        return found

    def word(self, path: str, attribute: str, default: str = "") -> str:
        """An attribute of the first element at a path; the default where either is missing."""
        element = self.first(path)
        return element.get(attribute, default) if element else default

    def walk(self) -> Iterator[Element]:
        yield self
        for child in self.children:
            yield from child.walk()


def parse_domain(text: str, file: str) -> Element:
    """The ``<domain>`` of a definition, a ``virsh dumpxml``, or libvirt's own status file.

    Raises WrongInput, with line and column, for what is not XML, has a DOCTYPE, or holds no domain.
    """
    root = _parse(text, file)
    domain = root if root.tag == "domain" else root.first("domain")
    if domain is None:
        raise WrongInput(
            f"this is a <{root.tag}>, not the definition of a domain",
            where=root.where,
            hint="virsh dumpxml --inactive GUEST writes one",
        )
    return domain


def _parse(text: str, file: str) -> Element:
    if len(text) > MAX_CHARACTERS:
        raise WrongInput("the file is too large for the definition of a domain", where=Where(file))
    parser = expat.ParserCreate()
    parser.buffer_text = True
    stack: list[Element] = []
    roots: list[Element] = []

    def here() -> Where:
        return Where(file, parser.CurrentLineNumber, parser.CurrentColumnNumber + 1)

    def start(tag: str, attributes: dict[str, str]) -> None:
        if len(stack) >= MAX_DEPTH:
            raise WrongInput("nested more deeply than a domain can be", where=here())
        element = Element(tag, attributes, here())
        (stack[-1].children if stack else roots).append(element)
        stack.append(element)

    def end(tag: str) -> None:
        stack.pop()

    def data(content: str) -> None:
        if stack:
            stack[-1].text += content

    def doctype(name: str, system: str | None, public: str | None, internal: bool) -> None:
        raise WrongInput("a domain has no DOCTYPE", where=here(), hint="take the line out")

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.StartDoctypeDeclHandler = data, doctype
    try:
        parser.Parse(text.encode("utf-8", "surrogatepass"), True)
    except expat.ExpatError as error:
        raise WrongInput(
            f"not XML: {expat.ErrorString(error.code)}", where=Where(file, error.lineno, error.offset + 1)
        ) from None
    return roots[0]


def size_of(element: Element, attribute: str | None = None) -> int | None:
    """Bytes that an element says in its text, or in an attribute; the unit is its attribute ``unit``.

    None where it is no number or the unit is unknown.
    """
    text = element.text if attribute is None else element.get(attribute)
    factor = _UNITS.get(element.get("unit", "KiB").lower())
    text = text.strip()
    return int(text) * factor if factor and text.isascii() and text.isdigit() and len(text) <= 18 else None
