"""A small recording of host and guest made by hand, in the kernel's own formats: one hog, one late sample.

Counter ticks are nanoseconds on the host; the guest's counter is 5 s behind.
"""

from __future__ import annotations

import struct
from typing import Any

from evenkeel.documents.evidence import Conditions
from evenkeel.measure.explain.recording import Raw, Recording
from tests.measure.test_pages import page

MS = 1_000_000
OFFSET = -5_000 * MS
BEGIN = 10_000 * MS  # of the host's recording, by its counter
VCPU, HOG, CPU = 100, 200, 3

_COMMON = """format:
	field:unsigned short common_type;	offset:0;	size:2;	signed:0;
	field:unsigned char common_flags;	offset:2;	size:1;	signed:0;
	field:unsigned char common_preempt_count;	offset:3;	size:1;	signed:0;
	field:int common_pid;	offset:4;	size:4;	signed:1;

"""
SWITCH = f"""name: sched_switch
ID: 300
{_COMMON}	field:char prev_comm[16];	offset:8;	size:16;	signed:0;
	field:pid_t prev_pid;	offset:24;	size:4;	signed:1;
	field:int prev_prio;	offset:28;	size:4;	signed:1;
	field:long prev_state;	offset:32;	size:8;	signed:1;
	field:char next_comm[16];	offset:40;	size:16;	signed:0;
	field:pid_t next_pid;	offset:56;	size:4;	signed:1;
	field:int next_prio;	offset:60;	size:4;	signed:1;
"""
PRINT = f"""name: print
ID: 5
{_COMMON}	field:unsigned long ip;	offset:8;	size:8;	signed:0;
	field:char buf[];	offset:16;	size:0;	signed:0;
"""
WAKING = f"""name: sched_waking
ID: 301
{_COMMON}	field:char comm[16];	offset:8;	size:16;	signed:0;
	field:pid_t pid;	offset:24;	size:4;	signed:1;
	field:int prio;	offset:28;	size:4;	signed:1;
	field:int target_cpu;	offset:32;	size:4;	signed:1;
"""
TIMERLAT = f"""name: timerlat
ID: 17
{_COMMON}	field:unsigned int seqnum;	offset:8;	size:4;	signed:0;
	field:int context;	offset:12;	size:4;	signed:1;
	field:u64 timer_latency;	offset:16;	size:8;	signed:0;
"""
HEADER = """	field: u64 timestamp;	offset:0;	size:8;	signed:0;
	field: local_t commit;	offset:8;	size:8;	signed:1;
	field: int overwrite;	offset:8;	size:1;	signed:1;
	field: char data;	offset:16;	size:4080;	signed:0;
"""


def _record(delta: int, kind: int, pid: int, body: bytes) -> bytes:
    """An event, with its time since the one before it in a record of its own."""
    content = struct.pack("<HBBi", kind, 0, 0, pid) + body
    content = content.ljust(-(-len(content) // 4) * 4, b"\0")
    stretch = struct.pack("<II", 30 | (delta & (1 << 27) - 1) << 5, delta >> 27)
    return stretch + struct.pack("<I", len(content) // 4) + content


def pages(*events: tuple[int, int, int, bytes]) -> bytes:
    """Events (time, kind, pid, body) as one page."""
    now, made = events[0][0], []
    for at, kind, pid, body in events:
        made.append(_record(at - now, kind, pid, body))
        now = at
    return page(events[0][0], *made)


def switch(at: int, old: tuple[str, int, int], state: int, new: tuple[str, int, int]) -> tuple[int, int, int, bytes]:
    """``old`` and ``new``: name, pid, priority as the kernel counts."""
    body = struct.pack("<16siiq16sii", old[0].encode(), old[1], old[2], state, new[0].encode(), new[1], new[2])
    return at, 300, old[1], body


def mark(at: int, nanoseconds: int) -> tuple[int, int, int, bytes]:
    return at, 5, 1, struct.pack("<Q", 0) + b"evenkeel %d\n\0" % nanoseconds


def sample(at: int, number: int, context: int, latency: int) -> tuple[int, int, int, bytes]:
    return at, 17, 900, struct.pack("<IiQ", number, context, latency)


#: What KVM tells of a clock where debugfs is not mounted.
UNTOLD: dict[str, Any] = {"offsets": {}, "ratio": None, "fraction_bits": None}


def recording(flight: bool = False, reason: str | None = None, trip_ns: int = 0) -> Recording:
    """A hog takes the vCPU's CPU from 20 to 26 ms; the sample at 27 ms is 8 ms late, another at 47 ms is not.

    ``trip_ns``: KVM does not tell the guest's clock, and two round trips to the guest take so long.
    """
    vcpu, hog = ("CPU 1/KVM", VCPU, 97), ("hog", HOG, 49)
    trips = [(2 * MS, 1), (90 * MS, 2)] if trip_ns else []
    host = pages(
        mark(BEGIN, 7),
        *(mark(BEGIN + at + side * trip_ns, 10 * number + side) for at, number in trips[:1] for side in (0, 1)),
        switch(BEGIN + 20 * MS, vcpu, 0, hog),
        switch(BEGIN + 26 * MS, hog, 1, vcpu),
        *(mark(BEGIN + at + side * trip_ns, 10 * number + side) for at, number in trips[1:] for side in (0, 1)),
        mark(BEGIN + 100 * MS, 7 + 100 * MS),
    )
    there = BEGIN + OFFSET
    guest = pages(
        *(mark(there + at + trip_ns // 2, 1000 + number) for at, number in trips[:1]),
        sample(there + 27 * MS - 10, 1, 0, 7 * MS),
        sample(there + 27 * MS, 1, 1, 8 * MS),
        sample(there + 47 * MS, 2, 1, 20_000),
        *(mark(there + at + trip_ns // 2, 1000 + number) for at, number in trips[1:]),
    )
    thread = {
        "tid": VCPU,
        "name": "CPU 1/KVM",
        "vcpu": 1,
        "policy": "fifo",
        "priority": 2,
        "cpus": "3",
        "partition": None,
    }
    return Recording(
        host_name="cell",
        guest_name="plc",
        conditions=Conditions(kernel="6.12-rt", preempt_rt=True, command_line="", emulated=True),
        seconds=0.1,
        period_ns=20 * MS,
        host=Raw(
            {CPU: host},
            {"sched/sched_switch": SWITCH, "ftrace/print": PRINT, "sched/sched_waking": WAKING},
            HEADER,
            marks=({"before": 7, "after": 8}, {"before": 7 + 100 * MS, "after": 8 + 100 * MS}),
        ),
        guest=Raw({1: guest}, {"ftrace/timerlat": TIMERLAT, "ftrace/print": PRINT}, HEADER),
        threads=(thread,),
        told=UNTOLD if trip_ns else {**UNTOLD, "offsets": {"0": OFFSET, "1": OFFSET}},
        guest_trips=tuple((10 * number, 1000 + number, 10 * number + 1) for _, number in trips),
        flight=flight,
        reason=reason,
    )
