"""What the kernel said since it started that the doctor asks about: the first line of each kind.

Source: /dev/kmsg (Documentation/ABI/testing/dev-kmsg); in a recorded tree the recorded answer, or /var/log/dmesg.
Whole logs are never kept: they grow, and hold addresses and names.
"""

from __future__ import annotations

import errno
import json
import os
import re
from typing import Any, Iterable

from evenkeel.probe.facts.root import Root

#: Kind -> what such a line looks like.
KINDS = {
    "rcu-stall": re.compile(r"rcu.*(self-detected stall|detected stalls|kthread starved)"),
    "lockup": re.compile(r"soft lockup - CPU|hard LOCKUP|blocked for more than \d+ seconds"),
    "huge-pages": re.compile(r"HugeTLB: allocating \d+ of page size .* failed"),
    "clocksource": re.compile(r"clocksource.* unstable|Marking TSC unstable|TSC found unstable"),
    "isolation": re.compile(r"Housekeeping: nohz_full= (or isolcpus= incorrect|must match)"),
    "throttling": re.compile(r"sched: RT throttling activated"),
}
_STAMP = re.compile(r"\A\s*(?:<\d+>)?\[\s*\d+\.\d+\]\s*(?:\[\s*[TC]\d+\]\s*)?")


def read_log(root: Root) -> dict[str, Any] | None:
    """``{"complete": whether its beginning is still there, "lines": {kind: line}}``; None: no log can be read."""
    told = root.ask("kernel-log", _read_kmsg)
    if told is not None:
        answer: dict[str, Any] = json.loads(told)
        return answer
    lines = root.read_lines("/var/log/dmesg", lambda line: any(kind.search(line) for kind in KINDS.values()))
    if not lines and not root.exists("/var/log/dmesg"):
        return None
    return {"complete": True, "lines": _sorted_out(_STAMP.sub("", line) for line in lines)}


def _sorted_out(lines: Iterable[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for line in lines:
        for kind, pattern in KINDS.items():
            if pattern.search(line):
                found.setdefault(kind, line)
    return found


def _read_kmsg() -> str | None:
    """One record a read: ``priority,number,time,flags;text``.  None where the log may not be read."""
    try:
        fd = os.open("/dev/kmsg", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    lines: list[str] = []
    complete = None
    try:
        while True:
            try:
                record = os.read(fd, 1 << 13).decode("utf-8", "replace")
            except OSError as error:
                if error.errno == errno.EPIPE:  # overwritten while we read
                    complete = False
                    continue
                if error.errno != errno.EAGAIN and not lines:
                    return None
                break
            head, _, text = record.partition(";")
            if complete is None:
                complete = head.split(",")[1:2] == ["0"]
            lines.append(text.split("\n", 1)[0])
    finally:
        os.close(fd)
    return json.dumps({"complete": bool(complete), "lines": _sorted_out(lines)}, sort_keys=True)
