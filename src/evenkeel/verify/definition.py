"""Does a domain definition, as libvirt gives it back, say everything that the planned one says?  Pure.

libvirt adds a great deal (addresses, aliases, controllers, defaults), so equality is the wrong question.  Every element
and attribute of the plan must be there with the same meaning; what is there besides is libvirt's business.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from evenkeel.documents.cpuset import parse_cpus

#: Factors of libvirt's units to bytes.  Without a unit: KiB.
_UNITS = {"b": 1, "bytes": 1, "k": 1024, "kib": 1024, "m": 1024**2, "mib": 1024**2, "g": 1024**3, "gib": 1024**3}
#: Attributes whose value is a list of CPUs or nodes, and those that libvirt resolves to something of its own.
_LISTS = frozenset({"cpuset", "nodeset", "vcpus", "cpus"})
_RESOLVED = frozenset({("type", "machine")})
_SIZED = {"memory": None, "currentMemory": None, "page": "size", "cell": "memory", "cache": "size"}


def differences(planned: str, found: str) -> list[str]:
    """What of ``planned`` is missing or other in ``found``: ``cputune/vcpupin[vcpu=1]: cpuset is 3, not 10``.

    Empty: nothing.  A text that is no XML is a difference, never an error.
    """
    try:
        wanted, there = ET.fromstring(planned), ET.fromstring(found)
    except ET.ParseError as error:
        return [f"not XML: {error}"]
    return _compare(wanted, there, "")


def _compare(wanted: ET.Element, there: ET.Element, path: str) -> list[str]:
    found = _own(wanted, there, path)
    left = list(there)
    for child in wanted:
        match, wrong = _best(child, left, path)
        found += wrong
        if match is not None:
            left.remove(match)
    return found


def _best(child: ET.Element, candidates: list[ET.Element], path: str) -> tuple[ET.Element | None, list[str]]:
    """The candidate of the same name that differs least; two disks are told apart that way."""
    where = f"{path}/{_name(child)}".lstrip("/")
    best: tuple[ET.Element | None, list[str]] = (None, [f"{where}: missing"])
    fewest = None
    for candidate in candidates:
        if candidate.tag != child.tag:
            continue
        wrong = _compare(child, candidate, where)
        # Of two that differ equally the one with the same identity is meant, as vcpupin by its vcpu.
        rank = (_name(candidate) != _name(child), len(wrong))
        if fewest is None or rank < fewest:
            best, fewest = (candidate, wrong), rank
    return best


def _name(element: ET.Element) -> str:
    """Tag, with the attribute that identifies it among its like."""
    for key in ("vcpu", "vcpus", "iothread", "cellid", "id", "name"):
        if key in element.attrib:
            return f"{element.tag}[{key}={element.attrib[key]}]"
    return element.tag


def _own(wanted: ET.Element, there: ET.Element, path: str) -> list[str]:
    """Differences of text and attributes, without children."""
    wrong = []
    place = path or wanted.tag
    sized = _SIZED.get(wanted.tag, "")
    for key, value in wanted.attrib.items():
        if key == "unit" or (wanted.tag, key) in _RESOLVED:
            continue
        other = there.attrib.get(key)
        same = _bytes(value, wanted) == _bytes(other, there) if key == sized else _same(key, value, other)
        if not same:
            wrong.append(f"{place}: {key} is {other or 'not there'}, not {value}")
    text, other = (wanted.text or "").strip(), (there.text or "").strip()
    if wanted.tag in _SIZED and sized is None and text:
        if _bytes(text, wanted) != _bytes(other, there):
            wrong.append(f"{place}: is {other} {there.get('unit', 'KiB')}, not {text} {wanted.get('unit', 'KiB')}")
    elif wanted.tag == "vcpu" and text:
        wrong += _vcpus(wanted, there, place)
    elif text and " ".join(text.split()) != " ".join(other.split()):
        wrong.append(f"{place}: is {other or 'empty'}, not {text}")
    return wrong


def _vcpus(wanted: ET.Element, there: ET.Element, place: str) -> list[str]:
    """``<vcpu current="1">2</vcpu>``: there is room for two and one is plugged in, as `virsh setvcpus` leaves it."""
    planned, found = (wanted.text or "").strip(), (there.text or "").strip()
    plugged = there.get("current", found)
    if (found, plugged) == (planned, wanted.get("current", planned)):
        return []
    room = f"{found or 'empty'}, of which {plugged} plugged in" if plugged != found else found or "empty"
    return [f"{place}: is {room}, not {planned}"]


def _same(key: str, value: str, other: str | None) -> bool:
    if other is None or key not in _LISTS:
        return value == other
    try:
        return parse_cpus(value) == parse_cpus(other)
    except ValueError:
        return value == other


def _bytes(value: str | None, element: ET.Element) -> int | str | None:
    try:
        return int(value or "") * _UNITS[element.get("unit", "KiB").lower()]
    except (ValueError, KeyError):
        return value
