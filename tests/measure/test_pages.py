"""The decoder of raw trace pages against the kernel's own text of the same events, and against pages made by hand."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evenkeel.errors import WrongInput
from evenkeel.measure.pages import Format, PageLayout, Records, decode, parse_format, parse_header_page
from evenkeel.probe.trace import tracefs

RECORDED = Path(__file__).parent / "recorded/trace"
LAYOUT = PageLayout(commit=8, commit_size=8, data=16, size=4096)
NUMBER = """name: number
ID: 7
format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

	field:int value;	offset:8;	size:4;	signed:1;
	field:char word[4];	offset:12;	size:4;	signed:0;
"""
_SAMPLE = re.compile(r".{16}-(\d+) +\[\d+\] \S+ +(\d+): #(\d+) +context +(\w+) +timer_latency +(\d+) ns$")
_LINE = re.compile(r".{16}-(\d+) +\[(\d+)\] \S+ +([0-9.]+): (\w+): (.*)$")


# -- recorded and live: the kernel's own text is the truth --------------------------------------------------------


class Recording:
    """Files of one recording: pages and text a CPU, format files, the page header."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.layout = parse_header_page(files["header_page"].decode())
        self.formats = [parse_format(data.decode()) for name, data in files.items() if name.endswith(".format")]
        self.cpus = sorted(int(name[3:-4]) for name in files if re.fullmatch(r"cpu\d+\.raw", name))

    def records(self, cpu: int) -> Records:
        return decode(self.files[f"cpu{cpu}.raw"], self.layout, cpu)

    def said(self, cpu: int) -> list[tuple[int, float, str, str]]:
        """pid, time, event, text: what the kernel printed."""
        lines = self.files[f"cpu{cpu}.txt"].decode(errors="replace").splitlines()
        found = [_LINE.match(line) for line in lines]
        return [(int(m[1]), float(m[3]), m[4], m[5]) for m in found if m]


def agree(recording: Recording) -> int:
    """Compare every record of every CPU with the kernel's line.  Returns how many."""
    compared = 0
    names = {form.id: form.name for form in recording.formats if form.name != "timerlat"}
    names = {number: {"print": "tracing_mark_write"}.get(name, name) for number, name in names.items()}
    for cpu in recording.cpus:
        records, said = recording.records(cpu), recording.said(cpu)
        told = [line for line in said if line[2] in names.values()]
        known = np.isin(records.kind, list(names))
        assert int(known.sum()) == len(told), f"CPU {cpu}"
        assert [names[kind] for kind in records.kind[known].tolist()] == [line[2] for line in told]
        scale = 1 if told and told[0][1] > 1e7 else 1e9  # x86-tsc is printed as a whole number, mono as seconds
        times = np.array([line[1] for line in told]) * scale
        assert np.abs(records.at[known] - times).max() <= (0 if scale == 1 else 501)  # printed with microseconds
        for form in (form for form in recording.formats if form.id in names):
            rows = records.of(form)
            lines = [line for line in told if line[2] == names[form.id]]
            assert rows.ints("common_pid").tolist() == [line[0] for line in lines]
            for name, field in form.fields.items():
                if name.startswith("common_") or not lines:
                    continue
                printed = [re.search(rf"(?:^| ){name}=(\S+)", line[3]) for line in lines]
                if not all(printed) or name in ("prev_state", "start"):  # printed as words, as seconds
                    continue
                shown = [match[1] for match in printed if match]
                if field.text or field.located:
                    words = [text.split(" ")[0] for text in rows.texts(name)]
                    assert [word or shown[n] for n, word in enumerate(words)] == shown, name
                elif all(re.fullmatch(r"-?\d+", word) for word in shown):
                    assert rows.ints(name).tolist() == [int(word) for word in shown], name
        compared += len(told)
    return compared


def test_recorded_samples_of_timerlat_are_those_that_the_kernel_printed() -> None:
    recording = recorded("6.12-rt-timerlat.tar.bz2")
    (form,) = (form for form in recording.formats if form.name == "timerlat")
    rows = recording.records(1).of(form)
    lines = [_SAMPLE.match(line) for line in recording.files["cpu1.txt"].decode().splitlines()]
    told = [(int(m[2]), int(m[3]), ("irq", "thread").index(m[4]), int(m[5])) for m in lines if m]
    columns = (rows.at, rows.ints("seqnum"), rows.ints("context"), rows.ints("timer_latency"))
    assert [tuple(row) for row in np.stack(columns, axis=1).tolist()] == told
    assert len(told) > 1000


def recorded(name: str) -> Recording:
    with tarfile.open(RECORDED / name) as archive:
        members = ((member.name.removeprefix("./"), archive.extractfile(member)) for member in archive)
        return Recording({place: file.read() for place, file in members if file})


@pytest.mark.parametrize("name", sorted(path.name for path in RECORDED.glob("*.tar.bz2")))
def test_recorded_pages_say_what_the_kernel_said(name: str) -> None:
    assert agree(recorded(name)) > 500


@pytest.fixture
def tracing() -> Path:
    return Path(tracefs.root())


@pytest.mark.skipif(os.getuid() != 0, reason="needs root; the recorded pages are compared above")
@pytest.mark.parametrize("clock", ["mono", "x86-tsc"])
def test_pages_of_this_kernel_say_what_it_says(tracing: Path, clock: str) -> None:
    instance = tracing / f"instances/evenkeel-{os.getpid()}-pages"
    events = ("sched/sched_switch", "sched/sched_waking", "irq/softirq_entry")
    instance.mkdir()
    try:
        (instance / "tracing_on").write_text("0")
        (instance / "trace_clock").write_text(clock)
        (instance / "buffer_size_kb").write_text("1024")
        for event in events:
            (instance / f"events/{event}/enable").write_text("1")
        (instance / "tracing_on").write_text("1")
        for _ in range(100):
            subprocess.run(["true"], check=True)
        (instance / "tracing_on").write_text("0")
        files = {"header_page": (tracing / "events/header_page").read_bytes()}
        for event in events:
            files[f"{event}.format"] = (instance / f"events/{event}/format").read_bytes()
        for folder in sorted(instance.glob("per_cpu/cpu*")):
            files[f"{folder.name}.txt"] = (folder / "trace").read_bytes()
            files[f"{folder.name}.raw"] = b"".join(pages(folder / "trace_pipe_raw"))
    finally:
        instance.rmdir()
    assert agree(Recording(files)) > 200


def pages(pipe: Path) -> Iterator[bytes]:
    descriptor = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        while page := os.read(descriptor, 4096):
            yield page
    except BlockingIOError:
        pass
    finally:
        os.close(descriptor)


# -- pages made by hand -------------------------------------------------------------------------------------------


def page(at: int, *records: bytes, missed: int | None = None, flags: int = 0) -> bytes:
    body = b"".join(records)
    commit = len(body) | flags | (0 if missed is None else (1 << 31) | (1 << 30 if missed else 0))
    tail = struct.pack("<Q", missed) if missed else b""
    return (struct.pack("<QQ", at, commit) + body + tail).ljust(4096, b"\0")


def number(delta: int, value: int, word: bytes = b"ab") -> bytes:
    """An event of 16 bytes: four words."""
    return struct.pack("<IHBBii4s", 4 | delta << 5, 7, 0, 0, 42, value, word)


def long_number(delta: int, value: int) -> bytes:
    """The same with its length in a word of its own, as the kernel writes long events."""
    return struct.pack("<IIHBBii4s", delta << 5, 20, 7, 0, 0, 42, value, b"long")


def extend(delta: int) -> bytes:
    return struct.pack("<II", 30 | (delta & (1 << 27) - 1) << 5, delta >> 27)


def stamp(at: int) -> bytes:
    return struct.pack("<II", 31 | (at & (1 << 27) - 1) << 5, at >> 27 & 0xFFFFFFFF)


def discarded(delta: int, size: int) -> bytes:
    return struct.pack("<II", 29 | delta << 5, size - 4).ljust(size, b"\xee")


def read(*made: bytes) -> tuple[list[int], list[int]]:
    rows = decode(b"".join(made), LAYOUT).of(parse_format(NUMBER))
    return rows.at.tolist(), rows.ints("value").tolist()


def test_each_kind_of_record() -> None:
    big = (5 << 59) + 1000
    assert read(page(1000, number(0, -1), number(7, 2))) == ([1000, 1007], [-1, 2])
    assert read(page(1000, number(0, 1), extend(1 << 40), number(3, 2))) == ([1000, 1003 + (1 << 40)], [1, 2])
    assert read(page(big, number(0, 1), stamp(123456789), number(0, 2))) == ([big, (5 << 59) + 123456789], [1, 2])
    assert read(page(1000, discarded(1, 24), number(1, 2))) == ([1002], [2])
    assert read(page(1000, long_number(0, 5), number(1, 6))) == ([1000, 1001], [5, 6])
    assert read(page(1000, number(0, 1), struct.pack("<I", 29), number(0, 2))) == ([1000], [1])
    assert read(page(1000), page(2000, number(0, 9))) == ([2000], [9])
    assert read() == ([], [])


def test_what_was_lost_is_told() -> None:
    found = decode(page(0, number(0, 1), missed=12) + page(0, number(0, 1), missed=0) + page(0, number(0, 1)), LAYOUT)
    assert (found.loss.events, found.loss.gaps, found.loss.unknown) == (12, 2, 1)


def test_texts() -> None:
    rows = decode(page(0, number(0, 1, b"xy"), number(0, 2, b"abcd")), LAYOUT).of(parse_format(NUMBER))
    assert rows.texts("word") == ["xy", "abcd"]
    assert rows.where(rows.ints("value") == 2).texts("word") == ["abcd"]


@pytest.mark.parametrize(
    "damaged",
    [
        page(0, number(0, 1))[:-1],
        page(0, number(0, 1)[:-4]),
        page(0, number(0, 1), flags=8192),
        page(0, struct.pack("<II", 0, 4000), number(0, 1)),
        page(0, struct.pack("<II", 0, 0)),
    ],
)
def test_a_damaged_page_is_wrong_input(damaged: bytes) -> None:
    with pytest.raises(WrongInput):
        decode(damaged, LAYOUT)


@pytest.mark.parametrize("text", ["", "hello", "name: x\n"])
def test_what_is_no_format_is_wrong_input(text: str) -> None:
    with pytest.raises(WrongInput):
        parse_format(text)
    with pytest.raises(WrongInput):
        parse_header_page(text)


@given(st.binary(max_size=64), st.integers(0, 5000))
def test_any_bytes_are_records_or_wrong_input(junk: bytes, fill: int) -> None:
    with contextlib.suppress(WrongInput):
        decode((struct.pack("<QQ", 1, fill) + junk).ljust(4096, b"\x1d"), LAYOUT)


@given(st.lists(st.lists(st.tuples(st.integers(0, 2**58), st.integers(-(2**31), 2**31 - 1)), max_size=20), max_size=5))
def test_what_is_written_is_read(wanted: list[list[tuple[int, int]]]) -> None:
    made, times, values = [], [], []
    for records in wanted:
        records = sorted(records)
        body, now = [], 0
        for at, value in records:
            delta = at - now
            body.append(number(delta, value) if delta < 1 << 27 else extend(delta) + number(0, value))
            times.append(at)
            values.append(value)
            now = at
        made.append(page(0, *body))
    assert read(*made) == (times, values)


def test_many_pages_are_read_in_their_order() -> None:
    made = [page(1000 * n, number(0, n), number(1, -n)) for n in range(5000)]
    _, values = read(*made)
    assert values == [value for n in range(5000) for value in (n, -n)]


def test_an_event_that_is_not_there_has_no_rows() -> None:
    assert len(decode(page(0, number(0, 1)), LAYOUT).of(Format("other", 8, {}))) == 0
