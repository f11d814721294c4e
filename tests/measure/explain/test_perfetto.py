"""The Perfetto file, read back by a plain reader of protobuf.

The same bytes were shown once to Perfetto's own Python bindings (0.59), which parsed every packet; they are not
installed for the tests, because they would bring more than they check.
"""

from __future__ import annotations

from collections.abc import Iterator

from evenkeel.measure.explain.perfetto import Writer

Message = dict[int, list[int | bytes]]


def number(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(data):
        key, at = number(data, at)
        value, at = number(data, at)
        if key & 7 == 2:
            yield key >> 3, data[at : at + value]
            at += value
        else:
            assert key & 7 == 0
            yield key >> 3, value


def message(data: bytes) -> Message:
    found: Message = {}
    for place, value in fields(data):
        found.setdefault(place, []).append(value)
    return found


def sub(data: int | bytes) -> Message:
    assert isinstance(data, bytes)
    return message(data)


def test_tracks_and_slices_come_back() -> None:
    writer = Writer()
    top = writer.track("guest plc")
    lane = writer.track("on the host", top)
    writer.slice(lane, -5, 300_000_000_000_000, "hög", {"waits": 7, "who": "x"})
    packets = [sub(data) for place, data in fields(writer.data()) if place == 1]
    assert [packet[10] for packet in packets] == [[1]] * 4
    first, second = (sub(packet[60][0]) for packet in packets[:2])
    assert (first[2], second[2], second[5]) == ([b"guest plc"], [b"on the host"], first[1])
    begin, end = packets[2:]
    began, ended = sub(begin[11][0]), sub(end[11][0])
    assert (began[9], ended[9]) == ([1], [2]) and began[11] == ended[11] == second[1]
    assert began[23] == ["hög".encode()]
    assert [sub(note)[10] for note in began[4]] == [[b"waits"], [b"who"]]
    later, earlier = end[8][0], begin[8][0]
    assert isinstance(later, int) and isinstance(earlier, int)
    assert earlier >= 0 and later - earlier == 300_000_000_000_005
