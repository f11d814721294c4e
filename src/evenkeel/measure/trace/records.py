"""Records of events as arrays, from a BPF ring or from the kernel's own trace pages, and as the bytes of a file.

Pure; where the file is, and when it is there, is the verb's.  No Python code for each event: numpy looks at the bytes
as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.lib.recfunctions import repack_fields

from evenkeel.measure.pages import decode, parse_format, parse_header_page

if TYPE_CHECKING:
    from numpy.typing import NDArray

#: As `evenkeel.probe.trace.records.RECORD`, with the eight bytes that stand in front of each in the ring.
STRIDE = np.dtype(
    [
        ("length", "<u4"),
        ("page", "<u4"),
        ("time_ns", "<u8"),
        ("thread", "<u4"),
        ("process", "<u4"),
        ("value", "<u8"),
        ("cpu", "<u4"),
        ("nothing", "<u4"),
    ]
)
FIELDS = ["time_ns", "thread", "process", "value", "cpu"]
ENDINGS = (".npy", ".csv")


def from_ring(raw: bytes) -> NDArray[Any]:
    """A structured array of :data:`FIELDS`, in the order of the ring.  A view of ``raw``, nothing is copied."""
    return np.frombuffer(raw, STRIDE)[FIELDS]


def from_pages(
    pages: Mapping[int, bytes], header_page: str, form: str, field: str | None, processes: Mapping[str, int]
) -> NDArray[Any]:
    """The same from trace pages whose clock is ``mono``, in the order of CPUs.

    ``processes``: thread -> process, which these records lack; it is 0 for the idle CPU, and where nobody knows.
    Raises WrongInput for pages that are damaged.
    """
    layout, event = parse_header_page(header_page), parse_format(form)
    known = sorted([(0, 0), *((int(thread), process) for thread, process in processes.items())])
    threads, owners = np.array(known, np.uint32).T
    parts = []
    for cpu, raw in sorted(pages.items()):
        rows = decode(raw, layout, cpu).of(event)
        part = np.zeros(len(rows), STRIDE)
        part["time_ns"], part["cpu"], part["thread"] = rows.at, cpu, rows.ints("common_pid")
        at = np.searchsorted(threads, part["thread"], side="right") - 1  # of thread 0 at the least
        part["process"] = np.where(threads[at] == part["thread"], owners[at], 0)
        if field is not None:
            part["value"] = rows.ints(field).view(np.uint64)
        parts.append(part)
    return np.concatenate(parts)[FIELDS] if parts else np.zeros(0, STRIDE)[FIELDS]


def records(kept: Mapping[str, Any], fetched: Mapping[int, bytes], field: str | None) -> NDArray[Any]:
    """Of an answer of the probe, by whatever source, in the order of time."""
    if kept["formats"]:
        (form,) = kept["formats"].values()
        found = from_pages(fetched, kept["header_page"], form, field, kept["processes"])
    else:
        found = from_ring(fetched[0])
    times = found["time_ns"]
    # Of one CPU they are in order already, and a copy of millions costs more than to look.
    return found[np.argsort(times, kind="stable")] if (times[1:] < times[:-1]).any() else found


def write(stream: BinaryIO, ending: str, found: NDArray[Any]) -> None:
    """As one of :data:`ENDINGS` says: ``.npy`` for numpy, ``.csv`` for anything else.  Raises OSError."""
    if ending == ".npy":
        packed = repack_fields(found)
        np.lib.format.write_array_header_1_0(stream, np.lib.format.header_data_from_array_1_0(packed))
        stream.write(packed.data)  # numpy's own way into a file tells of a full disk without an errno
    else:
        np.savetxt(stream, found, fmt="%d", delimiter=",", header=",".join(FIELDS), comments="")
